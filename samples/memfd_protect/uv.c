// SPDX-License-Identifier: BSD-3-Clause
/*
 * uv - one libuv loop handles many memfds.
 *
 * Usage: uv [MEMFDS [WRITERS]]
 *
 * Each event fd is a uv_poll_t. The first one is closed in the middle, while writers wait
 * for it and with events that have not been read: they go on, because nobody
 * listens any more. Polling has to stop (uv_poll_stop()) before the descriptor is closed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <uv.h>

#include "crowd.h"

#define PAGES	64

struct file {
	struct crowd crowd;
	uv_poll_t poll;
	unsigned int number;
	bool ended;
};

static struct file *files;
static unsigned int nr_files, nr_open;
static uv_signal_t children;

static void fine(int error, const char *what)
{
	if (error)
		errx(1, "%s: %s", what, uv_strerror(error));
}

static void close_file(struct file *file)
{
	fine(uv_poll_stop(&file->poll), "uv_poll_stop");
	uv_close((uv_handle_t *)&file->poll, NULL);
	close(file->crowd.notify);
	file->crowd.notify = -1;
	if (!--nr_open)
		uv_close((uv_handle_t *)&children, NULL);
}

static void on_event(uv_poll_t *poll, int status, int events)
{
	struct file *file = poll->data;
	struct memfd_event event;

	(void)events;
	fine(status, "uv_poll");
	/* One at a time, so that no file keeps the others waiting */
	if (read(file->crowd.notify, &event, sizeof(event)) != sizeof(event)) {
		if (errno != EAGAIN)
			err(1, "read");
		return;
	}
	/* Not answered: its writers wait until the event fd is closed. */
	if (!file->number && file->crowd.events == PAGES / 4) {
		printf("memfd 0: closed while a writer waits\n");
		close_file(file);
		return;
	}
	crowd_handle(&file->crowd, &event);
}

/* A signal may stand for several children, of any file. */
static void on_child(uv_signal_t *handle, int sig)
{
	(void)handle;
	(void)sig;
	for (unsigned int i = 0; i < nr_files; i++) {
		struct file *file = &files[i];

		if (file->ended || !crowd_has_ended(&file->crowd))
			continue;
		file->ended = true;
		if (file->crowd.notify >= 0)
			close_file(file);
	}
}

int main(int argc, char **argv)
{
	unsigned int writers = number_argument(argc, argv, 2, 2, 64);
	unsigned long events = 0;
	uv_loop_t *loop = uv_default_loop();
	struct crowd *crowds[256];

	nr_files = number_argument(argc, argv, 1, 8, 256);
	nr_open = nr_files;
	files = calloc(nr_files, sizeof(*files));
	if (!files)
		err(1, "memfds");
	fine(uv_signal_init(loop, &children), "uv_signal_init");
	fine(uv_signal_start(&children, on_child, SIGCHLD), "uv_signal_start");
	for (unsigned int i = 0; i < nr_files; i++) {
		struct file *file = &files[i];

		file->number = i;
		crowd_make(&file->crowd, PAGES);
		crowds[i] = &file->crowd;
		fine(uv_poll_init(loop, &file->poll, file->crowd.notify), "uv_poll_init");
		file->poll.data = file;
		fine(uv_poll_start(&file->poll, UV_READABLE, on_event), "uv_poll_start");
	}
	crowd_start(crowds, nr_files, writers);
	uv_run(loop, UV_RUN_DEFAULT);
	/* The writers of the first one may need a moment more than the loop. */
	while (!crowd_has_ended(&files[0].crowd))
		usleep(10000);
	for (unsigned int i = 0; i < nr_files; i++) {
		crowd_check(&files[i].crowd);
		events += files[i].crowd.events;
	}
	printf("%lu events of %u memfds, all writers have written all %d pages of each\n", events,
	       nr_files, PAGES);
	return 0;
}
