/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A protected memfd and processes that write all of its pages: what the samples for
 * event loops handle. epoll.c, uring.c and uv.c differ in how they wait for events.
 */
#ifndef CROWD_H
#define CROWD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <linux/memfd.h>

/**
 * struct crowd - a memfd, and its writers
 * @memfd: The memfd, all of it protected.
 * @notify: Its event fd, non-blocking. -1 once it has been closed.
 * @memory: Where this process maps it.
 * @pages: How many it has.
 * @writers: Processes that write.
 * @children: Their process IDs.
 * @events: Events that were handled.
 */
struct crowd {
	int memfd;
	int notify;
	char *memory;
	size_t pages;
	unsigned int writers;
	pid_t *children;
	unsigned long events;
};

void crowd_make(struct crowd *crowd, size_t pages);
void crowd_start(struct crowd **crowds, size_t nr, unsigned int writers);
bool crowd_handle(struct crowd *crowd, const struct memfd_event *event);
bool crowd_has_ended(const struct crowd *crowd);
void crowd_check(const struct crowd *crowd);
unsigned int number_argument(int argc, char **argv, int index, unsigned int value,
			     unsigned int most);

#endif /* CROWD_H */
