// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Events and ranges, one at a time.
 */
#define _GNU_SOURCE
#include "memfdprotect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define EVENTS		64
#define RANGES		1024
#define BATCH_MOST	65536

/* Later kernels may have longer records: read(2) wants room for one. */
#define BYTES_LEAST	4096

/**
 * struct memfdp_events - events that have been read
 * @fd: The event fd.
 * @event: A copy of what was returned last: with the length of this library's struct.
 * @size: Bytes of @buf.
 * @at: Where the next record is.
 * @have: Bytes of @buf that were read.
 * @buf: The records.
 */
struct memfdp_events {
	int fd;
	struct memfd_event event;
	size_t size;
	size_t at;
	size_t have;
	char buf[];
};

struct memfdp_events *memfdp_events_new(int notify_fd, size_t batch)
{
	struct memfdp_events *events;
	size_t size;

	if (!batch)
		batch = EVENTS;
	if (batch > BATCH_MOST)
		batch = BATCH_MOST;
	size = batch * sizeof(struct memfd_event);
	events = calloc(1, sizeof(*events) + (size < BYTES_LEAST ? BYTES_LEAST : size));
	if (!events)
		return NULL;
	events->fd = notify_fd;
	events->size = size;
	return events;
}

static bool read_more(struct memfdp_events *events)
{
	ssize_t got = read(events->fd, events->buf, events->size);

	/* Only a record that is longer than the room makes it fail so. */
	if (got < 0 && errno == EINVAL && events->size < BYTES_LEAST) {
		events->size = BYTES_LEAST;
		got = read(events->fd, events->buf, events->size);
	}
	if (got < 0)
		return false;
	events->at = 0;
	events->have = got;
	if (got)
		return true;
	errno = EPROTO;
	return false;
}

/* The length of the next record, 0 if it cannot be one. */
static uint32_t next_length(const struct memfdp_events *events)
{
	size_t left = events->have - events->at;
	uint32_t len;

	if (left < sizeof(len))
		return 0;
	memcpy(&len, events->buf + events->at, sizeof(len));
	return len < sizeof(struct memfd_event) || len > left ? 0 : len;
}

const struct memfd_event *memfdp_events_next(struct memfdp_events *events)
{
	uint32_t len;

	if (!memfdp_events_left(events) && !read_more(events))
		return NULL;
	len = next_length(events);
	if (!len) {
		events->at = events->have;
		errno = EPROTO;
		return NULL;
	}
	memcpy(&events->event, events->buf + events->at, sizeof(events->event));
	events->at += len;
	return &events->event;
}

bool memfdp_events_left(const struct memfdp_events *events)
{
	return events->at < events->have;
}

void memfdp_events_free(struct memfdp_events *events)
{
	free(events);
}

/**
 * struct memfdp_scan - ranges that have been found
 * @fd: The event fd.
 * @scan: What is asked of the kernel next.
 * @over: There is nothing behind what was found.
 * @at: The next range to return.
 * @have: Ranges in @ranges.
 * @max: How many there can be.
 * @ranges: The ranges.
 */
struct memfdp_scan {
	int fd;
	struct memfd_scan scan;
	bool over;
	size_t at;
	size_t have;
	size_t max;
	struct memfd_range ranges[];
};

struct memfdp_scan *memfdp_scan_new(int notify_fd, uint64_t start, uint64_t end,
				    unsigned int flags, size_t batch)
{
	struct memfdp_scan *scan;

	if (!batch)
		batch = RANGES;
	if (batch > BATCH_MOST)
		batch = BATCH_MOST;
	scan = calloc(1, sizeof(*scan) + batch * sizeof(scan->ranges[0]));
	if (!scan)
		return NULL;
	scan->fd = notify_fd;
	scan->max = batch;
	scan->scan = (struct memfd_scan) {
		.start = start,
		.end = end,
		.ranges = (uintptr_t)scan->ranges,
		.nr_ranges = batch,
		.flags = flags,
	};
	return scan;
}

static int scan_more(struct memfdp_scan *scan)
{
	int got = ioctl(scan->fd, MEMFD_NOTIFY_SCAN, &scan->scan);

	if (got < 0)
		return -1;
	scan->at = 0;
	scan->have = got;
	scan->over = (size_t)got < scan->max ||
		     (scan->scan.end && scan->scan.walk_end >= scan->scan.end);
	scan->scan.start = scan->scan.walk_end;
	return 0;
}

int memfdp_scan_next(struct memfdp_scan *scan, struct memfd_range *range)
{
	if (scan->at == scan->have) {
		if (scan->over)
			return 0;
		if (scan_more(scan))
			return -1;
		if (!scan->have)
			return 0;
	}
	*range = scan->ranges[scan->at++];
	return 1;
}

void memfdp_scan_free(struct memfdp_scan *scan)
{
	free(scan);
}
