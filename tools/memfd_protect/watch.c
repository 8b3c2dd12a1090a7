// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl watch, scan: who writes, and what was written.
 *
 * Both are the file's handler while they run. When they end, in whatever way, the event
 * fd is closed, and with it goes all that they have protected.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/**
 * struct job - what the command line says
 * @name: The command.
 * @target: The memfd.
 * @notify_fd: Its event fd.
 * @offset: First byte.
 * @length: Bytes, 0: to the end.
 * @count: Events, or intervals, after which it ends.
 * @interval: Seconds, of scan.
 * @deny: Events are denied.
 */
struct job {
	const char *name;
	struct target target;
	int notify_fd;
	uint64_t offset;
	uint64_t length;
	unsigned long count;
	double interval;
	bool deny;
};

static int parse_job(int argc, char **argv, struct job *job)
{
	static const struct option options[] = {
		{ "offset", required_argument, NULL, 'o' },
		{ "length", required_argument, NULL, 'l' },
		{ "count", required_argument, NULL, 'c' },
		{ "interval", required_argument, NULL, 'i' },
		{ "deny", no_argument, NULL, 'd' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	const char *offset_text = NULL, *length_text = NULL;
	bool scans = !strcmp(argv[0], "scan");
	double count;
	int option;

	*job = (struct job) { .name = argv[0], .count = ULONG_MAX, .interval = 1 };
	while ((option = getopt_long(argc, argv, "o:l:c:i:h", options, NULL)) != -1) {
		switch (option) {
		case 'o':
			offset_text = optarg;
			break;
		case 'l':
			length_text = optarg;
			break;
		case 'c':
			if (!parse_number(optarg, "-c", 1, &count))
				return USAGE;
			job->count = count;
			break;
		case 'i':
			if (!scans)
				return bad_usage("-i is for scan only");
			if (!parse_number(optarg, "-i", 0.001, &job->interval))
				return USAGE;
			break;
		case 'd':
			if (scans)
				return bad_usage("--deny is for watch only");
			job->deny = true;
			break;
		case 'h':
			usage_of(argv[0]);
			exit(0);
		default:
			return USAGE;
		}
	}
	if (optind + 1 != argc)
		return bad_usage("%s: one TARGET, please", argv[0]);
	if (!parse_range(offset_text, length_text, &job->offset, &job->length))
		return USAGE;
	return target_open(&job->target, argv[optind], true);
}

static int begin(struct job *job, int mode)
{
	job->notify_fd = target_notify(&job->target, mode == MEMFD_PROTECT_WAIT);
	if (job->notify_fd < 0)
		return FAILED;
	stop_on_signals();
	return target_protect(&job->target, job->notify_fd, job->offset, job->length, mode);
}

static const char *type_name(const struct memfd_event *event)
{
	static const char * const names[] = {
		[MEMFD_EVENT_FAULT] = "store", [MEMFD_EVENT_WRITE] = "write",
		[MEMFD_EVENT_PUNCH] = "punch", [MEMFD_EVENT_TRUNCATE] = "truncate",
		[MEMFD_EVENT_DIRTY] = "dirty",
	};

	return event->type < sizeof(names) / sizeof(names[0]) && names[event->type] ?
	       names[event->type] : "?";
}

static void print_event(const struct memfd_event *event)
{
	char comm[64];

	if (json) {
		json_open(stdout);
		json_number(stdout, "time_ns", event->time_ns);
		json_string(stdout, "type", type_name(event));
		json_number(stdout, "pid", event->pid);
		json_number(stdout, "tid", event->tid);
		json_string(stdout, "comm", comm_of(event->pid, comm));
		json_number(stdout, "offset", event->offset);
		json_number(stdout, "length", event->length);
		json_number(stdout, "waits", !!(event->flags & MEMFD_EVENT_F_WAITING));
		json_number(stdout, "kernel", !!(event->flags & MEMFD_EVENT_F_KERNEL));
		json_close(stdout);
		return;
	}
	printf("%14.6f %7d %7d %-16s %-8s %#14llx %10llu%s%s\n", event->time_ns / 1e9,
	       event->pid, event->tid, comm_of(event->pid, comm), type_name(event),
	       (unsigned long long)event->offset, (unsigned long long)event->length,
	       event->flags & MEMFD_EVENT_F_KERNEL ? " kernel" : "",
	       event->flags & MEMFD_EVENT_F_WAITING ? "" : " failed");
	fflush(stdout);
}

/* The event is answered before it is printed: nobody waits for the terminal. */
static int handle_events(struct job *job, struct memfdp_events *events,
			 unsigned long *seen)
{
	const struct memfd_event *event;

	while (*seen < job->count && !stopped() && (event = memfdp_events_next(events))) {
		if (event->cookie && memfdp_resolve(job->notify_fd, event->cookie, !job->deny) &&
		    errno != ENOENT) {
			perror("memfdctl: answer");
			return FAILED;
		}
		print_event(event);
		++*seen;
	}
	if (*seen == job->count || stopped() || errno == EAGAIN || errno == EINTR)
		return 0;
	perror("memfdctl: event fd");
	return FAILED;
}

int cmd_watch(int argc, char **argv)
{
	struct memfdp_events *events;
	unsigned long seen = 0;
	struct pollfd wait;
	struct job job;
	int status = parse_job(argc, argv, &job);

	if (!status)
		status = begin(&job, MEMFD_PROTECT_WAIT);
	if (status)
		return status;
	events = memfdp_events_new(job.notify_fd, 0);
	if (!events) {
		perror("memfdctl");
		return FAILED;
	}
	if (!json)
		printf("%14s %7s %7s %-16s %-8s %14s %10s\n", "TIME", "PID", "TID", "COMMAND",
		       "WHAT", "OFFSET", "LENGTH");
	fflush(stdout);
	wait = (struct pollfd) { .fd = job.notify_fd, .events = POLLIN };
	while (!status && seen < job.count && !stopped()) {
		if (poll(&wait, 1, -1) < 0 && errno != EINTR) {
			perror("memfdctl: poll");
			status = FAILED;
			break;
		}
		status = handle_events(&job, events, &seen);
	}
	memfdp_events_free(events);
	close(job.notify_fd);
	close(job.target.fd);
	return status;
}

static int print_scan(struct job *job, double start)
{
	uint64_t end = job->length ? job->offset + job->length : 0, bytes = 0;
	struct memfdp_scan *scan = memfdp_scan_new(job->notify_fd, job->offset, end,
						   MEMFD_SCAN_REPROTECT, 0);
	double time = now() - start;
	unsigned long ranges = 0;
	struct memfd_range range;
	char text[16];
	int found = -1;

	while (scan && (found = memfdp_scan_next(scan, &range)) == 1) {
		ranges++;
		bytes += range.length;
		if (!json) {
			printf("%10.3f %#14llx %10llu\n", time, (unsigned long long)range.offset,
			       (unsigned long long)range.length);
			continue;
		}
		json_open(stdout);
		json_real(stdout, "time", time);
		json_number(stdout, "offset", range.offset);
		json_number(stdout, "length", range.length);
		json_close(stdout);
	}
	if (found)
		perror("memfdctl: scan");
	else if (!json)
		printf("%10.3f %lu ranges, %s\n", time, ranges, human_size(bytes, text));
	memfdp_scan_free(scan);
	fflush(stdout);
	return found ? FAILED : 0;
}

int cmd_scan(int argc, char **argv)
{
	struct job job;
	struct timespec nap;
	double start;
	int status = parse_job(argc, argv, &job);

	if (!status)
		status = begin(&job, MEMFD_PROTECT_ASYNC);
	if (status)
		return status;
	start = now();
	nap.tv_sec = job.interval;
	nap.tv_nsec = (job.interval - nap.tv_sec) * 1e9;
	if (!json)
		printf("%10s %14s %10s\n", "TIME", "OFFSET", "LENGTH");
	fflush(stdout);
	while (!status && job.count-- && !stopped()) {
		nanosleep(&nap, NULL);
		status = print_scan(&job, start);
	}
	close(job.notify_fd);
	close(job.target.fd);
	return status;
}
