// SPDX-License-Identifier: BSD-3-Clause
/*
 * epoll - several threads handle the events of one memfd, edge-triggered.
 *
 * Usage: epoll [THREADS [WRITERS]]
 *
 * An edge-triggered event fd wakes one thread for each new event, no matter how many
 * wait in epoll_wait(2). That thread reads until there is nothing left (EAGAIN): there
 * is no other edge for what it leaves. Each event is read by one thread only, and
 * whoever has read it answers it.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "crowd.h"

#define PAGES	256

struct reader {
	pthread_t thread;
	struct crowd *crowd;
	int epoll;
	int stop;
	unsigned long events;
};

static void read_all(struct reader *reader)
{
	struct memfd_event events[8];
	ssize_t got;

	while ((got = read(reader->crowd->notify, events, sizeof(events))) > 0) {
		for (size_t i = 0; i < got / sizeof(*events); i++)
			crowd_handle(reader->crowd, &events[i]);
		reader->events += got / sizeof(*events);
	}
	if (got < 0 && errno != EAGAIN)
		err(1, "read");
}

static void *reader_thread(void *arg)
{
	struct reader *reader = arg;
	struct epoll_event event;

	for (;;) {
		if (epoll_wait(reader->epoll, &event, 1, -1) < 1)
			continue;
		if (event.data.fd == reader->stop)
			return NULL;
		read_all(reader);
	}
}

static void add(int epoll, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
}

int main(int argc, char **argv)
{
	unsigned int threads = number_argument(argc, argv, 1, 4, 64);
	unsigned int writers = number_argument(argc, argv, 2, 8, 64);
	int epoll = epoll_create1(EPOLL_CLOEXEC), stop = eventfd(0, EFD_CLOEXEC);
	struct reader readers[64] = { 0 };
	struct crowd crowd;
	uint64_t one = 1;

	if (epoll < 0 || stop < 0)
		err(1, "epoll");
	crowd_make(&crowd, PAGES);
	crowd_start(&(struct crowd *){ &crowd }, 1, writers);
	add(epoll, crowd.notify, EPOLLIN | EPOLLET);
	add(epoll, stop, EPOLLIN);
	for (unsigned int i = 0; i < threads; i++) {
		readers[i] = (struct reader){ .crowd = &crowd, .epoll = epoll, .stop = stop };
		errno = pthread_create(&readers[i].thread, NULL, reader_thread, &readers[i]);
		if (errno)
			err(1, "pthread_create");
	}
	while (!crowd_has_ended(&crowd))
		usleep(10000);
	if (write(stop, &one, sizeof(one)) != sizeof(one))
		err(1, "eventfd");
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(readers[i].thread, NULL);
		printf("thread %u: %lu events\n", i, readers[i].events);
	}
	crowd_check(&crowd);
	printf("%lu events, all %u writers have written all %d pages\n", crowd.events, writers,
	       PAGES);
	return 0;
}
