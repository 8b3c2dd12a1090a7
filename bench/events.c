// SPDX-License-Identifier: GPL-2.0-only
/*
 * How many writers of a protected memfd can be let go on: 64 threads store to pages of
 * their own, and one, two or four readers take events, as many at a time as there are,
 * and allow each. Beside userfaultfd, with the same readers. All on one processor, so
 * that work is counted, and not who waits for whom.
 */
#include "uffd.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#define WRITERS		64
#define PAGES		64	/* of each writer */
#define SIZE		(WRITERS * PAGES * PAGE)
#define BATCH		64	/* events that are read at once */
#define MAX_READERS	4
#define ROUNDS		5

static int fd, event_fd, stop_fd;
static char *map;
static pthread_barrier_t go;
static unsigned long handled, reads;

static void *writer(void *arg)
{
	unsigned long i = (unsigned long)arg;

	pthread_barrier_wait(&go);
	for (unsigned long n = 0; n < PAGES; n++)
		*(volatile char *)(map + (n * WRITERS + i) * PAGE) = 1;
	return NULL;
}

/* What a reader does once: events that it has allowed, 0 if others were faster */
static long serve_memfd(void)
{
	struct memfd_event events[BATCH];
	struct memfd_resolve resolve = { .action = MEMFD_RESOLVE_ALLOW };
	long n = read(event_fd, events, sizeof(events));

	if (n < 0)
		return errno == EAGAIN ? 0 : -1;
	n /= sizeof(events[0]);
	for (long i = 0; i < n; i++) {
		resolve.cookie = events[i].cookie;
		if (ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, &resolve))
			return -1;
	}
	return n;
}

static long serve_uffd(void)
{
	struct uffd_msg msgs[BATCH];
	long n = read(event_fd, msgs, sizeof(msgs));

	if (n < 0)
		return errno == EAGAIN ? 0 : -1;
	n /= sizeof(msgs[0]);
	for (long i = 0; i < n; i++)
		uffd_allow(event_fd, &msgs[i]);
	return n;
}

static void *reader(void *arg)
{
	long (*serve)(void) = arg;
	struct pollfd fds[2] = {
		{ .fd = event_fd, .events = POLLIN },
		{ .fd = stop_fd, .events = POLLIN },
	};

	pthread_barrier_wait(&go);
	while (poll(fds, 2, -1) > 0 && !fds[1].revents) {
		long n = serve();

		if (n < 0)
			err(1, "event");
		if (n > 0) {
			__atomic_fetch_add(&handled, n, __ATOMIC_RELAXED);
			__atomic_fetch_add(&reads, 1, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

static void run_threads(unsigned int readers, long (*serve)(void), struct series *us,
			struct series *batch)
{
	pthread_t threads[WRITERS], others[MAX_READERS];
	uint64_t begin, one = 1;

	handled = 0;
	reads = 0;
	stop_fd = eventfd(0, EFD_CLOEXEC);
	pthread_barrier_init(&go, NULL, WRITERS + readers + 1);
	for (unsigned int i = 0; i < readers; i++)
		pthread_create(&others[i], NULL, reader, serve);
	for (unsigned long i = 0; i < WRITERS; i++)
		pthread_create(&threads[i], NULL, writer, (void *)i);
	pthread_barrier_wait(&go);
	begin = now_ns();
	for (int i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	add(us, (now_ns() - begin) / 1e3 / handled);
	add(batch, (double)handled / reads);
	if (write(stop_fd, &one, sizeof(one)) != sizeof(one))
		err(1, "eventfd");
	for (unsigned int i = 0; i < readers; i++)
		pthread_join(others[i], NULL);
	if (handled != WRITERS * PAGES)
		errx(1, "%lu events, and %d stores", handled, WRITERS * PAGES);
	close(stop_fd);
	pthread_barrier_destroy(&go);
}

static void with_memfd(unsigned int readers, struct series *us, struct series *batch)
{
	fd = memfd(MFD_ALLOW_PROTECT, SIZE);
	map = map_shared(fd, SIZE);
	event_fd = syscall(__NR_memfd_notify, fd, MEMFD_NOTIFY_NONBLOCK);
	if (event_fd < 0)
		err(1, "memfd_notify");
	write_pages(map, SIZE, PAGE);
	protect(fd, 0, SIZE, MEMFD_PROTECT_WAIT);
	run_threads(readers, serve_memfd, us, batch);
	close(event_fd);
	munmap(map, SIZE);
	close(fd);
}

static void with_uffd(unsigned int readers, struct series *us, struct series *batch)
{
	fd = memfd(0, SIZE);
	map = map_shared(fd, SIZE);
	write_pages(map, SIZE, PAGE);
	event_fd = uffd_open(map, SIZE, UFFD_WAIT, O_NONBLOCK);
	uffd_protect(event_fd, map, SIZE, true);
	run_threads(readers, serve_uffd, us, batch);
	close(event_fd);
	munmap(map, SIZE);
	close(fd);
}

int main(int argc, char **argv)
{
	open_results(argc, argv);
	run_on(0);
	for (unsigned int readers = 1; readers <= MAX_READERS; readers *= 2) {
		struct row *us, *batch;

		us = row("64 writers", readers, "us an event", "userfaultfd",
			 "stores caught, read, allowed, by N readers");
		with_goal(us, RATIO_AT_MOST, 1);
		batch = row("64 writers", readers, "events a read", "userfaultfd",
			    "stores caught, read, allowed, by N readers");
		for (int i = 0; i < (quick ? 1 : ROUNDS); i++) {
			with_memfd(readers, us->ours, batch->ours);
			with_uffd(readers, &us->theirs, &batch->theirs);
		}
	}
	return report("Events of many writers",
		      "64 threads store to 64 pages each. A reader polls, reads up to 64 events at once, and allows each by a call of its own, all on one processor: MEMFD_NOTIFY_RESOLVE, UFFDIO_WRITEPROTECT.");
}
