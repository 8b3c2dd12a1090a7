// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl snapshot: a copy of a memfd as it is at one moment, T0, while its processes
 * go on to use it.
 *
 * At T0 the whole file is protected by one call. From then on a page is written only
 * after it has been copied: pages are copied in order and given back, and those that
 * somebody waits for come first. The copy is complete, or there is none.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK	(256 * 1024UL)

/**
 * struct copy - a snapshot under way
 * @target: The memfd.
 * @notify_fd: Its event fd.
 * @out: The file.
 * @page: Bytes of a page.
 * @pages: How many there are.
 * @next: Before that page all are copied.
 * @on_demand: Pages that somebody waited for.
 * @data: Bytes that are not zero.
 * @copied: A byte for each page.
 * @buf: For a chunk.
 */
struct copy {
	struct target target;
	int notify_fd;
	int out;
	size_t page;
	size_t pages;
	size_t next;
	size_t on_demand;
	uint64_t data;
	char *copied;
	char *buf;
};

static bool is_zero(const char *buf, size_t len)
{
	return !buf[0] && !memcmp(buf, buf + 1, len - 1);
}

static int fail(const char *what)
{
	fprintf(stderr, "memfdctl: snapshot: %s: %s\n", what, strerror(errno));
	return FAILED;
}

/* What is all zeros stays a hole. */
static int put(struct copy *c, const char *buf, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t done = len < c->page ? len : c->page;

		if (!is_zero(buf, done)) {
			done = pwrite(c->out, buf, done, offset);
			if (done < 0 && errno == EINTR)
				continue;
			if (done <= 0)
				return fail("writing the copy");
			c->data += done;
		}
		buf += done;
		len -= done;
		offset += done;
	}
	return 0;
}

/* Copies pages that have not been copied yet, all within one chunk. */
static int copy_pages(struct copy *c, size_t first, size_t nr)
{
	uint64_t offset = (uint64_t)first * c->page;
	size_t len = nr * c->page, have = 0;

	if (len > c->target.size - offset)
		len = c->target.size - offset;
	while (have < len) {
		ssize_t got = pread(c->target.fd, c->buf + have, len - have, offset + have);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			if (!got)
				errno = EIO;
			return fail("reading the memfd");
		}
		have += got;
	}
	memset(c->copied + first, 1, nr);
	return put(c, c->buf, len, offset);
}

/* Somebody waits to write a range: what of it is not copied yet comes now. */
static int copy_range(struct copy *c, uint64_t offset, uint64_t length)
{
	size_t page = offset / c->page, end, nr, most = CHUNK / c->page;
	int status = 0;

	if (page >= c->pages)
		return 0;
	end = length / c->page < c->pages - page ? page + length / c->page : c->pages;
	for (; !status && page < end; page += nr) {
		nr = 1;
		if (c->copied[page])
			continue;
		while (nr < most && page + nr < end && !c->copied[page + nr])
			nr++;
		status = copy_pages(c, page, nr);
		c->on_demand += nr;
	}
	return status;
}

static int answer_events(struct copy *c, struct memfdp_events *events)
{
	const struct memfd_event *event;
	int status;

	while ((event = memfdp_events_next(events))) {
		if (!event->cookie)
			continue;
		status = copy_range(c, event->offset, event->length);
		if (status)
			return status;
		if (memfdp_resolve(c->notify_fd, event->cookie, true) && errno != ENOENT)
			return fail("answer");
	}
	return errno == EAGAIN || errno == EINTR ? 0 : fail("event fd");
}

/* The next pages in order, which are given back then. */
static int copy_next(struct copy *c)
{
	size_t nr = 0, most = CHUNK / c->page;
	int status;

	while (c->next < c->pages && c->copied[c->next])
		c->next++;
	while (nr < most && c->next + nr < c->pages && !c->copied[c->next + nr])
		nr++;
	if (!nr)
		return 0;
	status = copy_pages(c, c->next, nr);
	if (!status)
		status = target_protect(&c->target, c->notify_fd, (uint64_t)c->next * c->page,
					nr * c->page, MODE_NONE);
	c->next += nr;
	return status;
}

static void progress(const struct copy *c, bool end)
{
	static double last;
	unsigned int percent = c->pages ? c->next * 100 / c->pages : 100;
	double time = now();

	if (json || !isatty(STDERR_FILENO) || (!end && time - last < 0.1))
		return;
	last = time;
	fprintf(stderr, "\r[%-50.*s] %3u%%%s", (int)(percent / 2),
		"##################################################", percent, end ? "\n" : "");
}

static int copy_all(struct copy *c)
{
	struct memfdp_events *events = memfdp_events_new(c->notify_fd, 0);
	int status = events ? 0 : fail("events");

	while (!status && c->next < c->pages) {
		if (stopped()) {
			fputs("memfdctl: snapshot: stopped, there is no copy\n", stderr);
			status = FAILED;
			break;
		}
		status = answer_events(c, events);
		if (!status)
			status = copy_next(c);
		progress(c, false);
	}
	progress(c, true);
	memfdp_events_free(events);
	if (!status && (ftruncate(c->out, c->target.size) || fsync(c->out)))
		status = fail("the copy");
	return status;
}

static void report(const struct copy *c, const char *path, double seconds, double protect)
{
	char size[16], data[16];

	if (json) {
		json_open(stdout);
		json_string(stdout, "file", path);
		json_number(stdout, "size", c->target.size);
		json_number(stdout, "data", c->data);
		json_real(stdout, "seconds", seconds);
		json_real(stdout, "protect_seconds", protect);
		json_number(stdout, "pages_on_demand", c->on_demand);
		json_close(stdout);
		return;
	}
	printf("%s: %s of data in a file of %s, in %.3f s\n"
	       "protected by one call of %.0f us; %zu pages were copied because a writer waited\n",
	       path, human_size(c->data, data), human_size(c->target.size, size), seconds,
	       protect * 1e6, c->on_demand);
}

/* The copy has another name until it is complete. */
static int snapshot(struct copy *c, const char *path)
{
	double start, protect;
	char *temporary;
	int status;

	if (asprintf(&temporary, "%s.memfdctl.XXXXXX", path) < 0)
		return fail("memory");
	c->out = mkostemp(temporary, O_CLOEXEC);
	if (c->out < 0) {
		free(temporary);
		return bad_usage("%s: %s", path, strerror(errno));
	}
	c->notify_fd = target_notify(&c->target, true);
	status = c->notify_fd < 0 ? FAILED : 0;
	stop_on_signals();
	start = now();
	if (!status)
		status = target_protect(&c->target, c->notify_fd, 0,
					(uint64_t)c->pages * c->page, MEMFD_PROTECT_WAIT);
	protect = now() - start;
	if (!status)
		status = copy_all(c);
	/* Whoever waits goes on now, whatever came of it. */
	if (c->notify_fd >= 0)
		close(c->notify_fd);
	if (!status && rename(temporary, path))
		status = fail(path);
	if (status)
		unlink(temporary);
	else
		report(c, path, now() - start, protect);
	close(c->out);
	free(temporary);
	return status;
}

int cmd_snapshot(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	struct copy c = { .page = sysconf(_SC_PAGESIZE) };
	int option, status;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		return option == 'h' ? usage_of(argv[0]) : USAGE;
	if (optind + 2 != argc)
		return bad_usage("snapshot: TARGET and FILE, please");
	status = target_open(&c.target, argv[optind], true);
	if (status)
		return status;
	if (!c.target.size)
		return bad_usage("%s: the memfd is empty", argv[optind]);
	c.pages = (c.target.size + c.page - 1) / c.page;
	c.copied = calloc(c.pages, 1);
	c.buf = malloc(CHUNK);
	if (!c.copied || !c.buf)
		return fail("memory");
	status = snapshot(&c, argv[optind + 1]);
	close(c.target.fd);
	free(c.copied);
	free(c.buf);
	return status;
}
