// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libmemfdprotect as its users have it: compiled with what pkg-config says, by
 * tests/library. Where the kernel has no memfd_protect, everything must say so.
 */
#define _GNU_SOURCE
#include <memfdprotect.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE	4096UL
#define PAGES	64
#define WRITERS	5

static int nr_tests, failed;

#define CHECK(what) check(__LINE__, #what, what)

static int check(int line, const char *what, int holds)
{
	if (!holds) {
		printf("# line %d: not %s (errno %d, %s)\n", line, what, errno, strerror(errno));
		failed++;
	}
	return holds;
}

static void result(const char *what)
{
	printf("%s %d %s\n", failed ? "not ok" : "ok", ++nr_tests, what);
	failed = 0;
}

/* Whether a call failed with an error, and reset it */
static int fails(int ret, int error)
{
	int found = errno;

	errno = 0;
	return ret == -1 && found == error;
}

static void without_memfd_protect(void)
{
	uint64_t bits = 0;

	CHECK(fails(memfdp_features(&bits), ENOSYS) && !bits);
	CHECK(fails(memfdp_create("test", PAGE, 0), ENOSYS));
	CHECK(fails(memfd_protect(-1, 0, PAGE, PROT_READ, 0), ENOSYS));
	CHECK(fails(memfd_notify(-1, 0), ENOSYS));
	result("ENOSYS, and nothing else");
}

struct file {
	int fd;
	int nfd;
	char *map;
};

static struct file new_file(unsigned int flags, unsigned int notify_flags)
{
	struct file f = { .fd = memfdp_create("test", PAGES * PAGE, flags) };

	CHECK(f.fd >= 0);
	f.nfd = memfd_notify(f.fd, notify_flags);
	CHECK(f.nfd >= 0);
	f.map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, f.fd, 0);
	CHECK(f.map != MAP_FAILED);
	return f;
}

static void end_file(struct file *f)
{
	munmap(f->map, PAGES * PAGE);
	close(f->nfd);
	close(f->fd);
}

static void creates(void)
{
	struct stat st;
	uint64_t bits;
	int fd;

	CHECK(!memfdp_features(&bits) && bits & MEMFD_FEATURE_SCAN);
	fd = memfdp_create("test", 3 * PAGE, MFD_SHARE_PGTABLES);
	CHECK(fd >= 0 && !fstat(fd, &st) && st.st_size == 3 * PAGE);
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	CHECK(!memfd_protect(fd, 0, 0, PROT_READ, MEMFD_PROTECT_DENY));
	CHECK(fails(pwrite(fd, "x", 1, 0), EPERM));
	CHECK(!memfd_protect(fd, 0, 0, PROT_READ | PROT_WRITE, 0));
	CHECK(pwrite(fd, "x", 1, 0) == 1);
	close(fd);
	CHECK(fails(memfdp_create("test", UINT64_MAX, 0), EFBIG));
	CHECK(fails(memfdp_create("test", PAGE, 1U << 30), EINVAL));
	CHECK(fails(memfd_protect(fd, 0, PAGE, PROT_READ, 0), EBADF));
	result("create, protect, and the errors of both");
}

static void *store(void *addr)
{
	*(volatile char *)addr = 1;
	return NULL;
}

static void several_writers(void)
{
	struct file f = new_file(0, MEMFD_NOTIFY_NONBLOCK);
	struct memfdp_events *events = memfdp_events_new(f.nfd, 2);
	const struct memfd_event *event;
	unsigned int seen = 0, all = 0, tries = 0;
	pthread_t writer[WRITERS];

	CHECK(events && !memfdp_events_left(events));
	CHECK(!memfdp_events_next(events) && errno == EAGAIN);
	CHECK(!memfd_protect(f.fd, 0, 0, PROT_READ, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < WRITERS; i++) {
		pthread_create(&writer[i], NULL, store, f.map + 2 * i * PAGE);
		all |= 1U << i;
	}
	while (seen != all && tries++ < 20000) {
		event = memfdp_events_next(events);
		if (!event) {
			CHECK(errno == EAGAIN);
			usleep(1000);
			continue;
		}
		CHECK(event->type == MEMFD_EVENT_FAULT && event->pid == getpid());
		CHECK(event->flags & MEMFD_EVENT_F_WAITING && event->length == PAGE);
		CHECK(!(seen & 1U << event->offset / PAGE / 2));
		seen |= 1U << event->offset / PAGE / 2;
		CHECK(!memfdp_resolve(f.nfd, event->cookie, true));
		CHECK(fails(memfdp_resolve(f.nfd, event->cookie, true), ENOENT));
	}
	CHECK(seen == all);
	for (int i = 0; i < WRITERS; i++)
		pthread_join(writer[i], NULL);
	memfdp_events_free(events);
	memfdp_events_free(NULL);
	end_file(&f);
	result("events of several writers, allowed one by one");
}

static void *try_write(void *fd)
{
	return (void *)(uintptr_t)fails(pwrite(*(int *)fd, "x", 1, 7 * PAGE), EPERM);
}

static void denies(void)
{
	struct file f = new_file(0, 0);
	struct memfdp_events *events = memfdp_events_new(f.nfd, 0);
	const struct memfd_event *event;
	pthread_t writer;
	void *denied;

	CHECK(!memfd_protect(f.fd, 7 * PAGE, PAGE, PROT_READ, MEMFD_PROTECT_WAIT));
	pthread_create(&writer, NULL, try_write, &f.fd);
	event = memfdp_events_next(events);
	CHECK(event && event->type == MEMFD_EVENT_WRITE && event->offset == 7 * PAGE);
	CHECK(event && !memfdp_resolve(f.nfd, event->cookie, false));
	pthread_join(writer, &denied);
	CHECK(!!denied);
	memfdp_events_free(events);
	end_file(&f);
	result("deny");
}

static int count_ranges(int nfd, uint64_t start, uint64_t end, unsigned int flags,
			size_t batch)
{
	struct memfdp_scan *scan = memfdp_scan_new(nfd, start, end, flags, batch);
	struct memfd_range range;
	uint64_t before = 0;
	int nr = 0, ret;

	while ((ret = memfdp_scan_next(scan, &range)) == 1) {
		CHECK(range.length == PAGE && range.offset % (4 * PAGE) == 0);
		CHECK(!nr || range.offset > before);
		before = range.offset;
		nr++;
	}
	CHECK(!ret && !memfdp_scan_next(scan, &range));
	memfdp_scan_free(scan);
	return nr;
}

static void scans(void)
{
	struct file f = new_file(0, 0);
	struct memfdp_scan *scan;
	struct memfd_range range;

	CHECK(!memfd_protect(f.fd, 0, 0, PROT_READ, MEMFD_PROTECT_ASYNC));
	for (int i = 0; i < PAGES; i += 4)
		f.map[i * PAGE] = 1;
	CHECK(count_ranges(f.nfd, 0, 0, 0, 0) == 16);
	CHECK(count_ranges(f.nfd, 4 * PAGE, 12 * PAGE, 0, 1) == 2);
	CHECK(count_ranges(f.nfd, 0, 0, 0, 16) == 16);
	CHECK(count_ranges(f.nfd, 0, 0, MEMFD_SCAN_REPROTECT, 3) == 16);
	CHECK(count_ranges(f.nfd, 0, 0, MEMFD_SCAN_REPROTECT, 3) == 0);
	f.map[8 * PAGE] = 2;
	CHECK(count_ranges(f.nfd, 0, 0, MEMFD_SCAN_REPROTECT, 0) == 1);
	scan = memfdp_scan_new(f.nfd, 1, 0, 0, 0);
	CHECK(fails(memfdp_scan_next(scan, &range), EINVAL));
	CHECK(fails(memfdp_scan_next(scan, &range), EINVAL));
	memfdp_scan_free(scan);
	memfdp_scan_free(NULL);
	scan = memfdp_scan_new(f.fd, 0, 0, 0, 0);
	CHECK(memfdp_scan_next(scan, &range) == -1);
	memfdp_scan_free(scan);
	end_file(&f);
	result("scan in batches, of a part, twice");
}

static void by_handler(void)
{
	struct file f = new_file(0, 0);

	CHECK(!fcntl(f.fd, F_ADD_SEALS, F_SEAL_PROTECT));
	CHECK(fails(memfd_protect(f.fd, 0, PAGE, PROT_READ, MEMFD_PROTECT_DENY), EPERM));
	CHECK(!memfdp_protect(f.nfd, 0, PAGE, PROT_READ, MEMFD_PROTECT_DENY));
	CHECK(fails(pwrite(f.fd, "x", 1, 0), EPERM));
	end_file(&f);
	result("a sealed file is protected by the holder of the event fd");
}

/* What a later kernel, or something that is no event fd, sends */
static void odd_records(void)
{
	struct {
		struct memfd_event event;
		uint64_t more;
	} later[2] = {
		{ { .len = sizeof(later[0]), .cookie = 1 }, 0 },
		{ { .len = sizeof(later[0]), .cookie = 2 }, 0 },
	};
	const struct memfd_event *event;
	struct memfdp_events *events;
	uint32_t tiny = 3;
	int pipes[2];

	if (!CHECK(!pipe(pipes)))
		return;
	events = memfdp_events_new(pipes[0], 0);
	CHECK(write(pipes[1], later, sizeof(later)) == sizeof(later));
	event = memfdp_events_next(events);
	CHECK(event && event->cookie == 1 && memfdp_events_left(events));
	event = memfdp_events_next(events);
	CHECK(event && event->cookie == 2 && !memfdp_events_left(events));
	CHECK(write(pipes[1], &tiny, sizeof(tiny)) == sizeof(tiny));
	CHECK(!memfdp_events_next(events) && errno == EPROTO);
	CHECK(write(pipes[1], later, sizeof(later[0]) - 1) == sizeof(later[0]) - 1);
	CHECK(!memfdp_events_next(events) && errno == EPROTO && !memfdp_events_left(events));
	close(pipes[1]);
	CHECK(!memfdp_events_next(events) && errno == EPROTO);
	close(pipes[0]);
	CHECK(!memfdp_events_next(events) && errno == EBADF);
	memfdp_events_free(events);
	result("longer records, and what is none");
}

int main(int argc, char **argv)
{
	bool here = argc > 1 && !strcmp(argv[1], "--with");

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..%d\n", here ? 6 : 2);
	odd_records();
	if (!here) {
		if (memfd_notify(-1, MEMFD_NOTIFY_QUERY) >= 0)
			printf("ok 2 ENOSYS, and nothing else # SKIP this kernel has it\n");
		else
			without_memfd_protect();
		return 0;
	}
	creates();
	several_writers();
	denies();
	scans();
	by_handler();
	return 0;
}
