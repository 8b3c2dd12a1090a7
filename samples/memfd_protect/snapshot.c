// SPDX-License-Identifier: BSD-3-Clause
/*
 * The snapshotter: a libuv loop that copies the cache as it was at T0.
 *
 *   phase_timer   before -> T0 ... after -> stop
 *   poll[]        the event fd: somebody waits for a page, copy that one next
 *   copier        idle handle: when nobody waits, copy the next few in order
 *   uv_fs_write   copies go to the file from libuv's threads
 *   bar_timer     the progress bar, on a terminal
 *   child         a client ended
 *
 * A page is copied to a private buffer first, then its writers may go on, and
 * the buffer goes to the file whenever the disk has time. So a writer waits for
 * one memcpy() and never for the disk.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "sga.h"

#define BATCH_PAGES	8
/* Copies that wait for the disk. Pages that a client wants are not held back. */
#define MAX_BUFFERED	(4UL << 20)
#define PACE_MS		10

struct snapshot {
	struct sga *sga;
	uv_loop_t loop;
	uv_timer_t phase_timer;
	uv_timer_t pace_timer;
	uv_timer_t bar_timer;
	uv_idle_t copier;
	uv_signal_t child;
	uv_poll_t poll[SGA_MAX_CLIENTS];
	uv_fs_t sync;
	uv_file file;

	__u8 *copied;
	size_t nr_copied;
	size_t next;		/* where the copier goes on */
	size_t buffered;	/* bytes of chunks not yet in the file */
	bool complete;		/* all pages are copied, if not all written */
	int alive;
	bool stopping;
};

struct chunk {
	uv_fs_t request;
	uv_buf_t buffer;
	off_t offset;
	struct sga_page page[];
};

static struct snapshot snap;

static void stop_clients(void)
{
	snap.stopping = true;
	atomic_store(&snap.sga->control->stop, 1);
}

static void mark_phase(int phase)
{
	struct snapshot_result *result = &snap.sga->result;

	result->start_ns[phase] = now_ns();
	result->changes[phase] = clients_changes(snap.sga);
	if (phase < NR_PHASES)
		atomic_store(&snap.sga->control->phase, phase);
}

static void draw_bar(uv_timer_t *timer)
{
	const size_t width = 40, total = snap.sga->nr_pages;
	size_t full = snap.nr_copied * width / total;
	char bar[width + 1];

	memset(bar, '.', width);
	memset(bar, '#', full);
	bar[width] = '\0';
	fprintf(stderr, "\r  [%s] %3zu %%  %zu on demand ", bar,
		snap.nr_copied * 100 / total, snap.sga->result.on_demand);
	if (!timer)
		fputc('\n', stderr);
}

static void on_after_end(uv_timer_t *timer)
{
	(void)timer;
	mark_phase(NR_PHASES);
	stop_clients();
}

static void on_synced(uv_fs_t *request)
{
	if (request->result < 0)
		errx(1, "fsync: %s", uv_strerror(request->result));
	uv_fs_req_cleanup(request);
	snap.sga->result.copy_ns = now_ns() - snap.sga->result.start_ns[PHASE_DURING];
	mark_phase(PHASE_AFTER);
	if (uv_is_active((uv_handle_t *)&snap.bar_timer)) {
		uv_timer_stop(&snap.bar_timer);
		draw_bar(NULL);
	}
	uv_timer_start(&snap.phase_timer, on_after_end, snap.sga->seconds * 1000, 0);
}

/* How far T0 is the past by now: a glance, the clients go on meanwhile. */
static size_t count_moved_on(const struct sga *sga)
{
	size_t i, moved = 0;

	for (i = 0; i < sga->nr_pages; i++)
		if (sga->control->slot[i].record.version != sga->t0[i].version)
			moved++;
	return moved;
}

static void check_complete(void)
{
	if (snap.complete || snap.nr_copied < snap.sga->nr_pages)
		return;
	snap.complete = true;
	uv_idle_stop(&snap.copier);
	uv_timer_stop(&snap.pace_timer);
	if (snap.sga->backend->finish)
		snap.sga->backend->finish(snap.sga);
	snap.sga->result.moved_on = count_moved_on(snap.sga);
}

static void copier_start(void);

static void on_written(uv_fs_t *request)
{
	struct chunk *chunk = request->data;
	ssize_t done = request->result;

	uv_fs_req_cleanup(request);
	if (done < 0)
		errx(1, "writing the snapshot: %s", uv_strerror(done));
	if ((size_t)done < chunk->buffer.len) {
		chunk->buffer.base += done;
		chunk->buffer.len -= done;
		chunk->offset += done;
		snap.buffered -= done;
		uv_fs_write(&snap.loop, &chunk->request, snap.file,
			    &chunk->buffer, 1, chunk->offset, on_written);
		return;
	}
	snap.buffered -= done;
	free(chunk);
	if (!snap.complete)
		copier_start();
	else if (!snap.buffered)
		uv_fs_fsync(&snap.loop, &snap.sync, snap.file, on_synced);
}

/* Copies pages that are still as at T0. Their writers wait until the caller ends that. */
static void copy_pages(size_t first, size_t count)
{
	size_t bytes = count * SGA_PAGE_SIZE;
	struct chunk *chunk = malloc(sizeof(*chunk) + bytes);

	if (!chunk)
		errx(1, "out of memory");
	memcpy(chunk->page, snap.sga->view + first, bytes);
	memset(snap.copied + first, 1, count);
	snap.nr_copied += count;

	chunk->buffer = uv_buf_init((char *)chunk->page, bytes);
	chunk->offset = first * SGA_PAGE_SIZE;
	chunk->request.data = chunk;
	snap.buffered += bytes;
	if (snap.buffered > snap.sga->result.peak_buffers)
		snap.sga->result.peak_buffers = snap.buffered;
	uv_fs_write(&snap.loop, &chunk->request, snap.file, &chunk->buffer, 1,
		    chunk->offset, on_written);
}

/* A client waits for this page. True if it had to be copied for it. */
bool snapshot_want(struct sga *sga, size_t page)
{
	if (page >= sga->nr_pages || snap.copied[page])
		return false;
	copy_pages(page, 1);
	sga->result.on_demand++;
	return true;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	if (status < 0) {
		/* A client that is gone takes its userfaultfd with it. */
		uv_poll_stop(poll);
		return;
	}
	if (!(events & UV_READABLE))
		return;
	snap.sga->backend->wanted(snap.sga, poll - snap.poll);
	check_complete();
}

/* The next pages in order that no client was faster to ask for. */
static void copy_batch(void)
{
	struct sga *sga = snap.sga;
	size_t first, count = 0;

	while (snap.next < sga->nr_pages && snap.copied[snap.next])
		snap.next++;
	first = snap.next;
	while (count < BATCH_PAGES && first + count < sga->nr_pages &&
	       !snap.copied[first + count])
		count++;
	copy_pages(first, count);
	sga->backend->unprotect(sga, first, count);
	snap.next += count;
	check_complete();
}

static void on_idle(uv_idle_t *copier)
{
	if (snap.buffered >= MAX_BUFFERED)
		uv_idle_stop(copier);	/* on_written() starts it again */
	else
		copy_batch();
}

static void on_pace(uv_timer_t *timer)
{
	struct snapshot_result *result = &snap.sga->result;
	__u64 elapsed = now_ns() - result->start_ns[PHASE_DURING];
	__u64 due = snap.sga->rate * (elapsed / 1e9) / SGA_PAGE_SIZE;

	while (snap.next < due && snap.buffered < MAX_BUFFERED &&
	       uv_is_active((uv_handle_t *)timer))
		copy_batch();
}

static void copier_start(void)
{
	if (!snap.sga->rate)
		uv_idle_start(&snap.copier, on_idle);
}

/*
 * T0. While the gate is shut no change is half done, so that each page is as
 * its record says; when it opens, no page can change before it was copied.
 * Nobody is stopped for the copy: the gate is shut for the one call only.
 */
static void on_t0(uv_timer_t *timer)
{
	struct sga *sga = snap.sga;
	struct snapshot_result *result = &sga->result;
	__u64 asked, shut, protected, open;
	size_t i;

	(void)timer;
	mark_phase(PHASE_DURING);
	asked = now_ns();
	pthread_rwlock_wrlock(&sga->control->gate);
	shut = now_ns();
	sga->backend->protect(sga);
	protected = now_ns();
	for (i = 0; i < sga->nr_pages; i++)
		sga->t0[i] = sga->control->slot[i].record;
	pthread_rwlock_unlock(&sga->control->gate);
	open = now_ns();

	result->gate_wait_ns = shut - asked;
	result->protect_ns = protected - shut;
	result->gate_held_ns = open - shut;
	copier_start();
	if (sga->rate)
		uv_timer_start(&snap.pace_timer, on_pace, 0, PACE_MS);
	if (isatty(STDERR_FILENO))
		uv_timer_start(&snap.bar_timer, draw_bar, 0, 100);
}

static void close_handle(uv_handle_t *handle, void *unused)
{
	(void)unused;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

static void on_child(uv_signal_t *handle, int signal_number)
{
	int status;

	(void)handle;
	(void)signal_number;
	while (waitpid(-1, &status, WNOHANG) > 0) {
		if (!snap.stopping || !WIFEXITED(status) || WEXITSTATUS(status))
			errx(1, "a client ended early or failed");
		snap.alive--;
	}
	if (!snap.alive)
		uv_walk(&snap.loop, close_handle, NULL);
}

static void snapshot_init(struct sga *sga)
{
	int i;

	snap.sga = sga;
	snap.alive = sga->nr_clients;
	snap.copied = calloc(sga->nr_pages, 1);
	sga->t0 = calloc(sga->nr_pages, sizeof(*sga->t0));
	if (!snap.copied || !sga->t0)
		errx(1, "out of memory");
	/* Page faults now, not while the gate is shut or a client waits. */
	memset(sga->t0, 0xff, sga->nr_pages * sizeof(*sga->t0));
	mallopt(M_TRIM_THRESHOLD, 4 * MAX_BUFFERED);
	snap.file = open(sga->snapshot_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
			 0600);
	if (snap.file < 0)
		err(1, "%s", sga->snapshot_path);

	uv_loop_init(&snap.loop);
	uv_timer_init(&snap.loop, &snap.phase_timer);
	uv_timer_init(&snap.loop, &snap.pace_timer);
	uv_timer_init(&snap.loop, &snap.bar_timer);
	uv_idle_init(&snap.loop, &snap.copier);
	uv_signal_init(&snap.loop, &snap.child);
	uv_signal_start(&snap.child, on_child, SIGCHLD);
	for (i = 0; i < sga->nr_poll; i++) {
		uv_poll_init(&snap.loop, &snap.poll[i], sga->poll_fd[i]);
		uv_poll_start(&snap.poll[i], UV_READABLE, on_poll);
	}
}

void snapshot_run(struct sga *sga)
{
	snapshot_init(sga);
	mark_phase(PHASE_BEFORE);
	uv_timer_start(&snap.phase_timer, on_t0, sga->seconds * 1000, 0);
	uv_run(&snap.loop, UV_RUN_DEFAULT);

	sga->waits = sga->backend->waits(sga);
	uv_loop_close(&snap.loop);
	close(snap.file);
	free(snap.copied);
}
