// SPDX-License-Identifier: BSD-3-Clause
/*
 * uring - the events of a memfd are read by io_uring.
 *
 * Usage: uring [READS [WRITERS]]
 *
 * Several reads of the event fd are in flight. Each completes with as many events as
 * there are then, or as have room. At the end those that are still waiting are
 * cancelled. The memfd must not be written through the same ring by a thread that is
 * also the handler: such a write waits for the answer that nobody could give.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crowd.h"

#define PAGES	256
#define BATCH	8
#define MOST	64

struct request {
	struct memfd_event events[BATCH];
	unsigned long completed;
};

/* user_data of what is not one of our reads */
#define OTHER	NULL

static void submit_read(struct io_uring *ring, struct crowd *crowd, struct request *request)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read(sqe, crowd->notify, request->events, sizeof(request->events), 0);
	io_uring_sqe_set_data(sqe, request);
	io_uring_submit(ring);
}

/* Whether the read is to be repeated */
static bool complete(struct crowd *crowd, struct request *request, int result)
{
	if (result == -ECANCELED)
		return false;
	if (result < 0 && result != -EAGAIN && result != -EINTR) {
		errno = -result;
		err(1, "read");
	}
	for (int i = 0; i < result / (int)sizeof(*request->events); i++)
		crowd_handle(crowd, &request->events[i]);
	if (result > 0)
		request->completed++;
	return true;
}

static void cancel_all(struct io_uring *ring, const struct crowd *crowd)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_cancel_fd(sqe, crowd->notify, IORING_ASYNC_CANCEL_ALL);
	io_uring_sqe_set_data(sqe, OTHER);
	io_uring_submit(ring);
}

int main(int argc, char **argv)
{
	unsigned int reads = number_argument(argc, argv, 1, 4, MOST);
	unsigned int writers = number_argument(argc, argv, 2, 8, 64);
	struct __kernel_timespec patience = { .tv_nsec = 10 * 1000 * 1000 };
	struct request *requests = calloc(reads, sizeof(*requests));
	unsigned int in_flight = reads;
	bool ending = false;
	struct io_uring ring;
	struct crowd crowd;

	if (!requests)
		err(1, "requests");
	errno = -io_uring_queue_init(2 * MOST, &ring, 0);
	if (errno)
		err(1, "io_uring_queue_init");
	crowd_make(&crowd, PAGES);
	crowd_start(&(struct crowd *){ &crowd }, 1, writers);
	for (unsigned int i = 0; i < reads; i++)
		submit_read(&ring, &crowd, &requests[i]);
	while (in_flight) {
		struct io_uring_cqe *cqe;
		struct request *request;
		int result;

		if (io_uring_wait_cqe_timeout(&ring, &cqe, &patience)) {
			if (!ending && crowd_has_ended(&crowd)) {
				ending = true;
				cancel_all(&ring, &crowd);
			}
			continue;
		}
		request = io_uring_cqe_get_data(cqe);
		result = cqe->res;
		io_uring_cqe_seen(&ring, cqe);
		if (request == OTHER)
			continue;
		if (complete(&crowd, request, result) && !ending)
			submit_read(&ring, &crowd, request);
		else
			in_flight--;
	}
	for (unsigned int i = 0; i < reads; i++)
		printf("read %u: completed %lu times\n", i, requests[i].completed);
	crowd_check(&crowd);
	printf("%lu events, all %u writers have written all %d pages\n", crowd.events, writers,
	       PAGES);
	io_uring_queue_exit(&ring);
	free(requests);
	return 0;
}
