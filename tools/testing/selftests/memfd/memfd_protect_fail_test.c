// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory runs out, or user memory cannot be copied, at each place where that can happen:
 * in every system call of memfd_protect(), in every operation on the event fd, in every
 * path by which a protected page is written, and in what moves such pages. The call
 * fails with an error that the manual has, or the access is tried again; protection,
 * log, events and contents are as before; and nothing is left behind.
 */
#include "memfd_protect_fail.h"
#include "memfd_protect_paths.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	900

#define NR_PAGES	64
#define THE_PAGE	11
#define NR_MAPPERS	2
#define NR_STEPS	3

/* Behind all that a small tree has */
#define FAR_PAGE	(1UL << 31)

#define HUGE_SIZE	(2UL << 20)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#endif

#define TO_END		(~0UL)

/* A change of the protection of @nr pages, TO_END: of all from @first on */
struct step {
	size_t first;
	size_t nr;
	unsigned int mode;
	bool by_handler;
};

/* A file with an event fd that other processes map, too. */
struct world {
	/* What it is to be like */
	unsigned int flags;		/* of memfd_create() */
	unsigned int notify_flags;
	size_t size;
	bool mapped;			/* by other processes, too */
	struct step before[NR_STEPS];	/* its protection */
	size_t dirty;			/* every second ASYNC page below is written */
	struct step step;		/* what is done then */
	uint32_t action;		/* of MEMFD_NOTIFY_RESOLVE */
	unsigned long madvice;

	int fd;
	int nfd;
	int other_fd;
	char *map;
	struct writer mapper[NR_MAPPERS];
	struct writer writer;
	struct memfd_event event;
	unsigned int events;
	struct memfd_range *ranges;
	size_t nr_ranges;
	size_t asked;			/* of the ranges */
	uint64_t from;
};

static bool has_async(const struct world *w)
{
	for (size_t i = 0; i < NR_STEPS; i++)
		if (w->before[i].nr && w->before[i].mode == MEMFD_PROTECT_ASYNC)
			return true;
	return false;
}

static long do_step(const struct world *w, const struct step *s)
{
	struct memfd_protect_range range = {
		.offset = s->first * page_size(),
		.length = s->nr == TO_END ? 0 : s->nr * page_size(),
		.prot = s->mode == MODE_NONE ? PROT_READ | PROT_WRITE : PROT_READ,
		.flags = s->mode == MODE_NONE ? 0 : s->mode,
	};

	if (s->by_handler)
		return neg_errno(ioctl(w->nfd, MEMFD_NOTIFY_PROTECT, &range));
	return sys_memfd_protect(w->fd, range.offset, range.length, range.prot, range.flags);
}

/* The mode of a page that is not ASYNC, which would be open afterwards */
static long mode_of_page(const struct world *w, size_t page)
{
	struct iovec iov;
	char byte;

	if (pread(w->fd, &byte, 1, page * page_size()) != 1)
		return -EIO;
	iov = (struct iovec) { &byte, 1 };
	switch (neg_errno(pwritev2(w->fd, &iov, 1, page * page_size(), RWF_NOWAIT))) {
	case 1:
		return MODE_NONE;
	case -EAGAIN:
		return MEMFD_PROTECT_WAIT;
	case -EPERM:
		return MEMFD_PROTECT_DENY;
	default:
		return -errno;
	}
}

/* What steps make of a page */
static unsigned int expected_mode(const struct world *w, size_t page, bool with_last)
{
	const struct step *s = w->before;
	unsigned int mode = MODE_NONE;

	for (size_t i = 0; i <= NR_STEPS; i++, s++) {
		if (i == NR_STEPS) {
			if (!with_last)
				break;
			s = &w->step;
		}
		if (page >= s->first && page - s->first < s->nr)
			mode = s->mode;
	}
	return mode;
}

/* Another process maps all of it, and sleeps */
static long map_and_sleep(void *arg)
{
	struct world *w = arg;
	volatile char *map = mmap(NULL, w->size, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);

	if (map == MAP_FAILED)
		_exit(1);
	for (size_t i = 0; i < w->size; i += page_size())
		map[i] = map[i];
	raise(SIGSTOP);
	return 0;
}

static bool start_mapper(struct world *w, struct writer *mapper)
{
	return writer_start(mapper, w->nfd, map_and_sleep, w) && writer_stops(mapper);
}

static void *map_aligned(int fd, size_t size)
{
	char *area, *map;

	area = mmap(NULL, size + HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		return area;
	map = (char *)(((uintptr_t)area + HUGE_SIZE - 1) & -HUGE_SIZE);
	munmap(area, size + HUGE_SIZE);
	return mmap(map, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* Nothing but the description is there */
static bool set_up_nothing(void *arg)
{
	struct world *w = arg;

	w->fd = -1;
	w->nfd = -1;
	w->other_fd = -1;
	w->map = MAP_FAILED;
	memset(w->mapper, 0, sizeof(w->mapper));
	memset(&w->writer, 0, sizeof(w->writer));
	w->events = 0;
	w->ranges = NULL;
	w->nr_ranges = 0;
	w->from = 0;
	if (!w->size)
		w->size = NR_PAGES * page_size();
	return true;
}

static bool set_up_file(void *arg)
{
	struct world *w = arg;

	set_up_nothing(w);
	w->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT | w->flags);
	if (w->fd < 0 || ftruncate(w->fd, w->size))
		return false;
	w->map = map_aligned(w->fd, w->size);
	if (w->map == MAP_FAILED)
		return false;
	memset(w->map, OLD_BYTE, w->size);
	return true;
}

static bool set_up(void *arg)
{
	struct world *w = arg;

	if (!set_up_file(w))
		return false;
	w->nfd = sys_memfd_notify(w->fd, w->notify_flags);
	if (w->nfd < 0)
		return false;
	for (size_t i = 0; i < NR_MAPPERS && w->mapped; i++)
		if (!start_mapper(w, &w->mapper[i]))
			return false;
	for (size_t i = 0; i < NR_STEPS; i++) {
		struct step *s = &w->before[i];

		if (s->nr && do_step(w, s))
			return false;
	}
	for (size_t i = 0; i < w->dirty; i += 2)
		if (expected_mode(w, i, false) == MEMFD_PROTECT_ASYNC)
			w->map[i * page_size()] = OLD_BYTE;
	return true;
}

static void tear_down(void *arg)
{
	struct world *w = arg;

	close_if_open(&w->nfd);
	close_if_open(&w->other_fd);
	for (size_t i = 0; i < NR_MAPPERS; i++)
		if (w->mapper[i].pid)
			writer_free(&w->mapper[i]);
	if (w->writer.pid)
		writer_free(&w->writer);
	if (w->map != MAP_FAILED)
		munmap(w->map, w->size);
	close_if_open(&w->fd);
	free(w->ranges);
}

static void print_file(FILE *to, const char *path)
{
	char text[4096];

	fputs(read_file(path, text, sizeof(text)) ? text : "none\n", to);
}

static void print_fdinfo(FILE *to, int fd)
{
	char path[64];

	if (fd < 0)
		return;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	print_file(to, path);
}

static void print_log(void *arg, FILE *to)
{
	struct memfd_range ranges[NR_PAGES] = {};
	struct world *w = arg;
	int nr = scan_range(w->nfd, 0, 0, ranges, NR_PAGES, 0, NULL);

	for (int i = 0; i < nr; i++)
		fprintf(to, "%llu+%llu ", ranges[i].offset, ranges[i].length);
	fprintf(to, "%d\n", nr);
}

/* Protection, contents, log */
static void print_state(void *arg, FILE *to)
{
	struct world *w = arg;

	fprintf(to, "size\t%zu\n", w->size);
	print_fdinfo(to, w->fd);
	print_fdinfo(to, w->nfd);
	if (w->fd < 0)
		return;
	for (size_t i = 0; i < NR_PAGES && i * page_size() < w->size; i++) {
		unsigned char byte = 0;

		pread(w->fd, &byte, 1, i * page_size());
		fprintf(to, "%x", byte);
		if (!has_async(w))
			fprintf(to, "(%ld)", mode_of_page(w, i));
	}
	fprintf(to, "\n");
	if (w->nfd >= 0)
		print_log(w, to);
}

static bool is_logged(const struct world *w, size_t page)
{
	uint64_t at = page * page_size();
	struct memfd_range range;

	return scan_range(w->nfd, at, at + page_size(), &range, 1, 0, NULL) == 1;
}

/* An ASYNC page is logged by then if it was written since it became one, and else now */
static bool async_is_set(const struct world *w, size_t page)
{
	bool anew = page >= w->step.first && page - w->step.first < w->step.nr;
	bool written = page < w->dirty && !(page % 2) && !anew;

	if (is_logged(w, page) != written)
		return false;
	w->map[page * page_size()] = NEW_BYTE;
	return is_logged(w, page);
}

/* Every page has the mode that it should have, and is caught as that says */
static bool modes_are_set(void *arg)
{
	struct world *w = arg;

	for (size_t i = 0; i < NR_PAGES; i++) {
		unsigned int mode = expected_mode(w, i, true);

		if (mode == MEMFD_PROTECT_ASYNC ? !async_is_set(w, i) :
						  mode_of_page(w, i) != mode) {
			printf("# page %zu is not in mode %u\n", i, mode);
			return false;
		}
	}
	return true;
}

/* Part 1: what makes files and event fds */

static long run_create(void *arg)
{
	struct world *w = arg;

	w->fd = sys_memfd_create(w->flags);
	return w->fd;
}

static bool created(void *arg)
{
	struct world *w = arg;

	return !ftruncate(w->fd, w->size) && pwrite(w->fd, "", 1, 0) == 1 &&
	       (!(w->flags & MFD_ALLOW_PROTECT) ||
		!protect_pages(w->fd, 0, 1, MEMFD_PROTECT_DENY));
}

static void print_nothing(void *arg, FILE *to)
{
	fprintf(to, "%ld open files\n", fail_count_files());
}

/* shmem says ENOSPC when there is no memory for an inode */
static const struct fail_case create_case = {
	.name = "memfd_create", .set_up = set_up_nothing, .run = run_create,
	.done = created, .state = print_nothing, .tear_down = tear_down,
	.errors = { -ENOSPC },
};

TEST(create)
{
	static const unsigned int flags[] = {
		MFD_ALLOW_PROTECT, MFD_ALLOW_PROTECT | MFD_ALLOW_SEALING,
		MFD_ALLOW_PROTECT | MFD_NOEXEC_SEAL,
	};

	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		struct world w = { .flags = flags[i] };

		EXPECT_TRUE(fail_each(&create_case, &w));
	}
}

static long run_reopen(void *arg)
{
	struct world *w = arg;

	w->other_fd = reopen_fd(w->fd, O_RDWR);
	return w->other_fd;
}

TEST(reopen)
{
	static const struct fail_case reopen = {
		.name = "open", .set_up = set_up, .run = run_reopen,
		.state = print_state, .tear_down = tear_down,
	};
	struct world w = {};

	EXPECT_TRUE(fail_each(&reopen, &w));
}

static long run_notify(void *arg)
{
	struct world *w = arg;

	w->nfd = sys_memfd_notify(w->fd, w->notify_flags);
	return w->nfd;
}

static bool notified(void *arg)
{
	struct world *w = arg;

	return features(w->nfd) && !protect_pages(w->fd, 0, 1, MEMFD_PROTECT_WAIT) &&
	       mode_of_page(w, 0) == MEMFD_PROTECT_WAIT;
}

static bool set_up_denied_file(void *arg)
{
	struct world *w = arg;

	return set_up_file(w) && !protect_pages(w->fd, 1, 1, MEMFD_PROTECT_DENY);
}

TEST(notify)
{
	static const struct fail_case notify = {
		.name = "memfd_notify", .set_up = set_up_denied_file, .run = run_notify,
		.done = notified, .state = print_state, .tear_down = tear_down,
		.errors = { -ENFILE },
	};
	struct world w = {}, kernel = {
		.notify_flags = MEMFD_NOTIFY_NONBLOCK | MEMFD_NOTIFY_KERNEL,
	};

	EXPECT_TRUE(fail_each(&notify, &w));
	EXPECT_TRUE(fail_each(&notify, &kernel));
}

static long run_close(void *arg)
{
	struct world *w = arg;

	close_if_open(&w->nfd);
	return 0;
}

/* Nothing but DENY is left, whatever failed */
static bool notify_closed(void *arg)
{
	struct world *w = arg;

	for (size_t i = 0; i < NR_PAGES; i++) {
		unsigned int mode = expected_mode(w, i, false);

		if (mode != MEMFD_PROTECT_DENY)
			mode = MODE_NONE;
		if (mode_of_page(w, i) != mode)
			return false;
	}
	w->nfd = sys_memfd_notify(w->fd, 0);
	return w->nfd >= 0;
}

TEST(close_event_fd)
{
	static const struct fail_case close_it = {
		.name = "close of the event fd", .set_up = set_up, .run = run_close,
		.done = notify_closed, .tear_down = tear_down,
		.allocates = FAIL_SOMETIMES,
	};
	struct world w = {
		.before = {
			{ 0, TO_END, MEMFD_PROTECT_WAIT },
			{ 3, 20, MEMFD_PROTECT_ASYNC },
			{ 40, 1, MEMFD_PROTECT_DENY },
		},
		.dirty = 20,
	};

	/* To set memory free after a grace period takes some, now and then */
	EXPECT_TRUE(fail_each(&close_it, &w));
}

static long run_last_close(void *arg)
{
	struct world *w = arg;

	close_if_open(&w->nfd);
	if (w->map != MAP_FAILED && munmap(w->map, w->size))
		return -errno;
	w->map = MAP_FAILED;
	close_if_open(&w->fd);
	return 0;
}

TEST(close_file)
{
	static const struct fail_case close_it = {
		.name = "close of the file", .set_up = set_up, .run = run_last_close,
		.tear_down = tear_down, .allocates = FAIL_SOMETIMES,
	};
	struct world w = {
		.before = {
			{ 0, 30, MEMFD_PROTECT_WAIT },
			{ 3, 2, MEMFD_PROTECT_ASYNC },
			{ FAR_PAGE, 1, MEMFD_PROTECT_DENY },
		},
	};

	EXPECT_TRUE(fail_each(&close_it, &w));
}

/* Part 2: changes of the protection */

static long run_step(void *arg)
{
	struct world *w = arg;

	return do_step(w, &w->step);
}

static bool step_works(struct world *w, const char *name)
{
	struct fail_case c = {
		.name = name, .set_up = set_up, .run = run_step,
		.done = modes_are_set, .state = print_state, .tear_down = tear_down,
	};

	return fail_each(&c, w);
}

TEST(protect)
{
	static const char * const names[] = { "WAIT", "ASYNC", "DENY" };

	for (unsigned int mode = 0; mode < MODE_NONE; mode++) {
		struct world all = { .step = { 0, TO_END, mode } };
		struct world file = { .step = { 0, NR_PAGES, mode }, .mapped = true };
		struct world page = { .step = { THE_PAGE, 1, mode } };
		struct world far = { .step = { 5, FAR_PAGE, mode } };

		EXPECT_TRUE(step_works(&all, names[mode]));
		EXPECT_TRUE(step_works(&file, names[mode]));
		EXPECT_TRUE(step_works(&page, names[mode]));
		EXPECT_TRUE(step_works(&far, names[mode]));
	}
}

/* What was there is split, replaced or merged with */
TEST(protect_anew)
{
	struct world split = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT } },
		.step = { THE_PAGE, 1, MEMFD_PROTECT_DENY },
		.mapped = true,
	};
	struct world merge = {
		.before = { { 0, 8, MEMFD_PROTECT_DENY }, { 20, 8, MEMFD_PROTECT_WAIT },
			    { FAR_PAGE, 8, MEMFD_PROTECT_WAIT } },
		.step = { 4, FAR_PAGE, MEMFD_PROTECT_WAIT },
	};
	struct world replace = {
		.before = { { 0, TO_END, MEMFD_PROTECT_ASYNC }, { 0, 1, MEMFD_PROTECT_WAIT },
			    { FAR_PAGE, TO_END, MEMFD_PROTECT_DENY } },
		.dirty = NR_PAGES,
		.step = { 5, FAR_PAGE, MEMFD_PROTECT_ASYNC },
	};
	struct world freeze = {
		.before = { { 0, NR_PAGES, MEMFD_PROTECT_ASYNC } },
		.dirty = NR_PAGES,
		.step = { 5, 32, MEMFD_PROTECT_WAIT },
	};
	struct world handler = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT } },
		.step = { THE_PAGE, 1, MEMFD_PROTECT_DENY, true },
	};

	EXPECT_TRUE(step_works(&split, "a part of WAIT becomes DENY"));
	EXPECT_TRUE(step_works(&merge, "WAIT over holes"));
	EXPECT_TRUE(step_works(&replace, "ASYNC again"));
	EXPECT_TRUE(step_works(&freeze, "logged pages become WAIT"));
	EXPECT_TRUE(step_works(&handler, "MEMFD_NOTIFY_PROTECT"));
}

TEST(unprotect)
{
	struct world part = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT } },
		.step = { THE_PAGE, 1, MODE_NONE },
	};
	struct world far = {
		.before = { { 0, TO_END, MEMFD_PROTECT_DENY } },
		.step = { 3, FAR_PAGE, MODE_NONE },
	};
	struct world handler = {
		.before = { { 0, TO_END, MEMFD_PROTECT_ASYNC } },
		.step = { THE_PAGE, 7, MODE_NONE, true },
	};

	EXPECT_TRUE(step_works(&part, "unprotect a page"));
	EXPECT_TRUE(step_works(&far, "unprotect to far behind"));
	EXPECT_TRUE(step_works(&handler, "unprotect by the handler"));
}

static bool no_failure(struct world *w, const char *name)
{
	struct fail_case c = {
		.name = name, .set_up = set_up, .run = run_step,
		.done = modes_are_set, .state = print_state, .tear_down = tear_down,
		.allocates = FAIL_NEVER,
	};

	return fail_each(&c, w);
}

/* What is said to need no memory needs none */
TEST(unprotect_all)
{
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_DENY } },
		.step = { 0, TO_END, MODE_NONE },
	};

	EXPECT_TRUE(no_failure(&w, "unprotect all"));
}

/* Part 3: the event fd */

static long store_new(void *arg)
{
	struct world *w = arg;

	w->map[THE_PAGE * page_size()] = NEW_BYTE;
	return 1;
}

/* A writer waits for THE_PAGE */
static bool set_up_waiting(void *arg)
{
	struct world *w = arg;

	return set_up(w) && writer_start(&w->writer, w->nfd, store_new, w) &&
	       readable(w->nfd, LONG_MS) && writer_sleeps(&w->writer);
}

static bool set_up_resolve(void *arg)
{
	struct world *w = arg;

	return set_up_waiting(w) && read_event(w->nfd, &w->event);
}

static long run_resolve(void *arg)
{
	struct world *w = arg;

	return resolve(w->nfd, w->event.cookie, w->action);
}

static bool resolved(void *arg)
{
	struct world *w = arg;
	bool allowed = w->action == MEMFD_RESOLVE_ALLOW;

	if (!writer_finishes(&w->writer) || !w->writer.out->sig != allowed)
		return false;
	if (w->map[THE_PAGE * page_size()] != (allowed ? NEW_BYTE : OLD_BYTE))
		return false;
	return mode_of_page(w, THE_PAGE) == (allowed ? MODE_NONE : MEMFD_PROTECT_WAIT) &&
	       mode_of_page(w, THE_PAGE + 1) == MEMFD_PROTECT_WAIT;
}

TEST(allow)
{
	static const struct fail_case allow = {
		.name = "MEMFD_RESOLVE_ALLOW", .set_up = set_up_resolve, .run = run_resolve,
		.done = resolved, .state = print_state, .tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT } }, .action = MEMFD_RESOLVE_ALLOW,
	};

	EXPECT_TRUE(fail_each(&allow, &w));
}

TEST(deny)
{
	static const struct fail_case deny = {
		.name = "MEMFD_RESOLVE_DENY", .set_up = set_up_resolve, .run = run_resolve,
		.done = resolved, .state = print_state, .tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT } }, .action = MEMFD_RESOLVE_DENY,
	};

	EXPECT_TRUE(fail_each(&deny, &w));
}

/* A protection that ends the wait of others */
static bool waiter_was_denied(void *arg)
{
	struct world *w = arg;

	return writer_finishes(&w->writer) && w->writer.out->sig == SIGBUS;
}

TEST(protect_under_waiters)
{
	static const struct fail_case c = {
		.name = "WAIT becomes DENY under a waiter", .set_up = set_up_waiting,
		.run = run_step, .done = waiter_was_denied, .state = print_state,
		.tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT } },
		.step = { 2, FAR_PAGE, MEMFD_PROTECT_DENY },
	};

	EXPECT_TRUE(fail_each(&c, &w));
}

/* Reads as many events as there are; what it has got it keeps */
static long run_read(void *arg)
{
	struct world *w = arg;
	struct memfd_event events[4];
	ssize_t ret = neg_errno(read(w->nfd, events, sizeof(events)));

	if (ret < 0)
		return ret;
	for (size_t i = 0; i < ret / sizeof(*events); i++)
		w->events += events[i].type == MEMFD_EVENT_FAULT;
	return ret;
}

static bool events_were_read(void *arg)
{
	struct world *w = arg;

	if (w->events < 2)
		run_read(w);
	return w->events == 2 && no_event(w->nfd);
}

/* The writer's event, and one that tells of an access that failed */
static bool set_up_events(void *arg)
{
	struct world *w = arg;

	return set_up_waiting(w) &&
	       madvise(w->map, page_size(), MADV_POPULATE_WRITE) == -1;
}

TEST(read_events)
{
	static const struct fail_case c = {
		.name = "read of the event fd", .set_up = set_up_events, .run = run_read,
		.done = events_were_read, .state = print_state, .tear_down = tear_down,
	};
	struct world w = { .before = { { 0, TO_END, MEMFD_PROTECT_WAIT } } };

	EXPECT_TRUE(fail_each(&c, &w));
}

static long run_fdinfo(void *arg)
{
	struct world *w = arg;
	char path[64], buf[4096];
	ssize_t ret;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", w->nfd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = neg_errno(read(fd, buf, sizeof(buf)));
	close(fd);
	return ret;
}

TEST(show_fdinfo)
{
	static const struct fail_case c = {
		.name = "fdinfo", .set_up = set_up, .run = run_fdinfo,
		.state = print_state, .tear_down = tear_down, .errors = { -ENOENT },
	};
	struct world w = { .before = { { 0, TO_END, MEMFD_PROTECT_WAIT } } };

	EXPECT_TRUE(fail_each(&c, &w));
}

static long run_features(void *arg)
{
	struct world *w = arg;
	uint64_t features = 0;

	return neg_errno(ioctl(w->nfd, MEMFD_NOTIFY_FEATURES, &features)) ?:
	       (features ? 0 : -EPROTO);
}

TEST(get_features)
{
	static const struct fail_case c = {
		.name = "MEMFD_NOTIFY_FEATURES", .set_up = set_up, .run = run_features,
		.state = print_state, .tear_down = tear_down,
		.allocates = FAIL_NEVER,	/* put_user() is not made to fail */
	};
	struct world w = { .before = { { 0, TO_END, MEMFD_PROTECT_WAIT } } };

	EXPECT_TRUE(fail_each(&c, &w));
}

/* Room for a part of the ranges that are in the log */
static bool set_up_scan(void *arg)
{
	struct world *w = arg;

	w->ranges = NULL;
	if (!set_up(w))
		return false;
	w->ranges = calloc(w->dirty, sizeof(*w->ranges));
	return w->ranges;
}

static long scan_on(struct world *w, unsigned int flags)
{
	uint64_t from = w->from;
	int nr;

	nr = scan_range(w->nfd, w->from, w->dirty * page_size(), w->ranges + w->nr_ranges,
			w->asked, flags, &from);
	if (nr < 0)
		return nr;
	w->nr_ranges += nr;
	w->from = from;
	return nr;
}

static long run_look(void *arg)
{
	return scan_on(arg, 0);
}

static long run_take(void *arg)
{
	return scan_on(arg, MEMFD_SCAN_REPROTECT);
}

/* Each page that was written is told of, once */
static bool told_of_all(struct world *w)
{
	size_t page = 0;

	for (size_t i = 0; i < w->nr_ranges; i++, page += 2)
		if (w->ranges[i].offset != page * page_size() ||
		    w->ranges[i].length != page_size())
			return false;
	return page >= w->dirty;
}

static bool looked(void *arg)
{
	struct world *w = arg;

	while (w->from < w->dirty * page_size())
		if (scan_on(w, 0) < 0)
			return false;
	return told_of_all(w);
}

static bool taken(void *arg)
{
	struct memfd_range range;
	struct world *w = arg;

	while (w->from < w->dirty * page_size())
		if (scan_on(w, MEMFD_SCAN_REPROTECT) < 0)
			return false;
	if (!told_of_all(w) || scan_range(w->nfd, 0, 0, &range, 1, 0, NULL))
		return false;
	/* They are protected again */
	w->map[0] = NEW_BYTE;
	return scan_range(w->nfd, 0, 0, &range, 1, 0, NULL) == 1;
}

TEST(scan)
{
	static const struct fail_case look = {
		.name = "scan", .set_up = set_up_scan, .run = run_look, .done = looked,
		.state = print_state, .tear_down = tear_down,
	};
	/* What it could not tell is in the log again, and protected nevertheless */
	static const struct fail_case take = {
		.name = "scan and protect again", .set_up = set_up_scan, .run = run_take,
		.done = taken, .state = print_log, .tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_ASYNC } }, .dirty = NR_PAGES,
		.asked = NR_PAGES,
	};

	EXPECT_TRUE(fail_each(&look, &w));
	EXPECT_TRUE(fail_each(&take, &w));
	w.asked = 5;
	EXPECT_TRUE(fail_each(&take, &w));
}

/* A scan that the kernel does in several parts */
TEST(scan_much)
{
	static const struct fail_case take = {
		.name = "scan of much", .set_up = set_up_scan, .run = run_take,
		.done = taken, .tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_ASYNC } }, .dirty = 2600,
		.asked = 2600, .size = 2600 * page_size(),
	};

	EXPECT_TRUE(fail_each(&take, &w));
}

/*
 * A scan that ends amid a run, for which the kernel needs memory, when it has taken another run:
 * an array that is not full says that there is nothing more.
 */
#define CUT_START	512
#define CUT_TAKEN	100
#define CUT_END		1024

static bool set_up_cut(void *arg)
{
	struct world *w = arg;

	if (!set_up(w))
		return false;
	w->map[0] = NEW_BYTE;
	for (size_t i = CUT_START; i < CUT_END; i++)
		w->map[i * page_size()] = NEW_BYTE;
	return true;
}

static long run_cut(void *arg)
{
	uint64_t end = (CUT_START + CUT_TAKEN) * page_size(), stop;
	struct memfd_range ranges[4];
	struct world *w = arg;
	int nr;

	nr = scan_range(w->nfd, 0, end, ranges, ARRAY_SIZE(ranges), MEMFD_SCAN_REPROTECT,
			&stop);
	if (nr < 0)
		return nr;
	return nr == 2 && stop == end && ranges[1].length == CUT_TAKEN * page_size() ?
	       0 : -EPROTO;
}

static bool rest_is_there(void *arg)
{
	struct memfd_range ranges[4];
	struct world *w = arg;

	return scan_range(w->nfd, 0, 0, ranges, ARRAY_SIZE(ranges), MEMFD_SCAN_REPROTECT,
			  NULL) == 1 &&
	       ranges[0].offset == (CUT_START + CUT_TAKEN) * page_size() &&
	       ranges[0].length == (CUT_END - CUT_START - CUT_TAKEN) * page_size();
}

TEST(scan_of_a_part)
{
	static const struct fail_case cut = {
		.name = "scan of a part", .set_up = set_up_cut, .run = run_cut,
		.done = rest_is_there, .state = print_log, .tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_ASYNC } },
		.size = 3 * CUT_START * page_size(),
	};

	EXPECT_TRUE(fail_each(&cut, &w));
}

/* Part 4: what is done to pages that are protected */

static long run_advise(void *arg)
{
	struct world *w = arg;

	return neg_errno(madvise(w->map, w->size, w->madvice));
}

static bool still_protected(void *arg)
{
	struct world *w = arg;

	if (!file_filled_with(w->fd, 0, NR_PAGES, OLD_BYTE))
		return false;
	for (size_t i = 0; i < NR_PAGES; i++)
		if (mode_of_page(w, i) != expected_mode(w, i, false))
			return false;
	return true;
}

static bool set_up_paged_out(void *arg)
{
	struct world *w = arg;

	return set_up(w) && fail_page_out(w->map, w->size);
}

TEST(reclaim)
{
	static const struct fail_case out = {
		.name = "MADV_PAGEOUT", .set_up = set_up, .run = run_advise,
		.done = still_protected, .tear_down = tear_down,
	};
	static const struct fail_case in = {
		.name = "pages come back", .set_up = set_up_paged_out, .run = run_advise,
		.done = still_protected, .tear_down = tear_down,
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT }, { 7, 5, MEMFD_PROTECT_DENY } },
		.madvice = MADV_PAGEOUT,
	};

	if (!fail_enter_cgroup())
		SKIP(return, "no memory cgroup");
	EXPECT_TRUE(fail_each(&out, &w));
	w.madvice = MADV_POPULATE_READ;
	EXPECT_TRUE(fail_each(&in, &w));
	fail_leave_cgroup();
}

static long fork_once(struct world *w)
{
	pid_t pid = fork();
	int status = 0;

	if (pid < 0)
		return -errno;
	if (!pid)
		_exit(w->map[0] != OLD_BYTE);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : -ECHILD;
}

/* A child inherits the mark: failures that are left are its own, and it may die of them. */
static long run_fork(void *arg)
{
	long ret = -ECHILD;

	for (size_t i = 0; i <= fail_bursts[FAIL_BURSTS - 1] && ret == -ECHILD; i++)
		ret = fork_once(arg);
	return ret;
}

TEST(fork_of_a_mapper)
{
	static const struct fail_case c = {
		.name = "fork", .set_up = set_up, .run = run_fork, .done = still_protected,
		.state = print_state, .tear_down = tear_down, .errors = { -EAGAIN },
	};
	struct world w = {
		.before = { { 0, TO_END, MEMFD_PROTECT_WAIT }, { 7, 5, MEMFD_PROTECT_DENY } },
	};

	EXPECT_TRUE(fail_each(&c, &w));
}

/* Huge entries: if there is no memory for a table, the entry goes */

static bool set_up_huge(void *arg)
{
	struct world *w = arg;

	w->size = 2 * HUGE_SIZE;
	return set_up(w);
}

static bool huge_is_protected(void *arg)
{
	struct world *w = arg;

	if (!file_filled_with(w->fd, 0, w->size / page_size(), OLD_BYTE))
		return false;
	/* Others can be stored to */
	w->map[(THE_PAGE + 1) * page_size()] = NEW_BYTE;
	w->map[HUGE_SIZE] = NEW_BYTE;
	return modes_are_set(w);
}

TEST(huge_entries)
{
	static const struct fail_case c = {
		.name = "a page of a huge one", .set_up = set_up_huge, .run = run_step,
		.done = huge_is_protected, .state = print_state, .tear_down = tear_down,
	};
	struct world w = { .step = { THE_PAGE, 1, MEMFD_PROTECT_DENY }, .mapped = true };
	char before[64];

	if (!set_shmem_huge("always", before, sizeof(before)))
		SKIP(return, "no huge pages of shmem");
	EXPECT_TRUE(fail_each(&c, &w));
	EXPECT_TRUE(set_shmem_huge(before, NULL, 0));
}

/* Part 5: all that writes */

/* A handler that allows everything, and has seen what it was asked */
struct handler {
	int nfd;
	int stop[2];
	pthread_t thread;
	volatile unsigned int asked;
};

static void *handler_thread(void *arg)
{
	struct handler *h = arg;

	for (;;) {
		struct pollfd fds[] = {
			{ .fd = h->nfd, .events = POLLIN },
			{ .fd = h->stop[0], .events = POLLIN },
		};
		struct memfd_event ev;

		if (poll(fds, 2, LONG_MS) <= 0)
			continue;
		if ((fds[0].revents & POLLIN) && read(h->nfd, &ev, sizeof(ev)) > 0) {
			h->asked++;
			if (ev.cookie)
				resolve(h->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW);
		} else if (fds[1].revents) {
			return NULL;
		}
	}
}

static bool handler_start(struct handler *h, int nfd)
{
	h->nfd = nfd;
	h->asked = 0;
	return !pipe2(h->stop, O_CLOEXEC) &&
	       !pthread_create(&h->thread, NULL, handler_thread, h);
}

static void handler_stop(struct handler *h)
{
	close(h->stop[1]);
	pthread_join(h->thread, NULL);
	close(h->stop[0]);
}

/* A path, with a failure in it */
struct attempt {
	struct job job;
	struct fail_point point;
};

static long attempt_path(void *arg)
{
	struct attempt *a = arg;

	fail_arm(&a->point);
	return a->job.path->run(&a->job);
}

static bool went_through(const struct path *path, const struct outcome *out)
{
	return !out->sig && out->ret >= 0 && !(path->flags & PATH_SILENT);
}

static void read_all(int fd, unsigned char *bytes, size_t size)
{
	memset(bytes, 0, size);
	while (pread(fd, bytes, size, 0) < 0 && errno == EINTR)
		;
}

/* Whatever has failed: nothing was written that should not, or that nobody was told of */
static bool all_is_told(struct world *w, const struct path *path, unsigned int asked,
			bool changed)
{
	struct memfd_range range;

	switch (w->before[0].mode) {
	case MEMFD_PROTECT_DENY:
		return !changed;
	case MEMFD_PROTECT_ASYNC:
		return !changed || scan_range(w->nfd, 0, 0, &range, 1, 0, NULL) == 1;
	default:
		return !changed || asked;
	}
}

static bool nobody_waits(struct world *w)
{
	char path[64], text[4096];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", w->nfd);
	return read_file(path, text, sizeof(text)) && strstr(text, "\nwaiters:\t0\n") &&
	       strstr(text, "\npending:\t0\n");
}

/* Pins of a ring go some time after the ring. */
static bool protect_all(int fd)
{
	uint64_t end = now_ns() + SETTLE_MS * 1000000ULL;
	long ret;

	do {
		ret = protect_pages(fd, 0, 0, MEMFD_PROTECT_DENY);
	} while (ret == -EBUSY && now_ns() < end);
	return !ret;
}

/* It can still be protected, and is caught */
static bool works_as_ever(struct world *w)
{
	return !ftruncate(w->fd, w->size) && protect_all(w->fd) &&
	       mode_of_page(w, THE_PAGE) == MEMFD_PROTECT_DENY &&
	       !unprotect_pages(w->fd, 0, 0) && mode_of_page(w, THE_PAGE) == MODE_NONE;
}

/* What siglongjmp() does, unless it was that which failed */
static void unblock_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	sigaddset(&set, SIGSEGV);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static bool path_attempt(struct world *w, struct attempt *a, struct handler *h,
			 const struct path *path, bool *fired)
{
	unsigned char before[w->size], after[w->size];
	struct outcome out = {};
	bool changed;

	read_all(w->fd, before, w->size);
	run_guarded(attempt_path, a, &out);
	*fired = fail_close(&a->point);
	unblock_signals();
	job_exit(&a->job);
	/* What an event tells of is done, or not: nothing goes on behind the scenes */
	if (h->nfd >= 0)
		handler_stop(h);
	read_all(w->fd, after, w->size);
	changed = memcmp(before, after, w->size);
	if (!all_is_told(w, path, h->asked, changed)) {
		printf("# %s: nobody was told at failure %u\n", path->name, a->point.nth);
		return false;
	}
	if (went_through(path, &out) && !(path->flags & PATH_NO_CHANGE) && !changed) {
		printf("# %s: returns %ld, but has done nothing at failure %u\n", path->name,
		       out.ret, a->point.nth);
		return false;
	}
	if (!nobody_waits(w) || !works_as_ever(w)) {
		printf("# %s: things are in a mess after failure %u\n", path->name, a->point.nth);
		return false;
	}
	return true;
}

/* One attempt; @fired says whether there was a failure. -1: no such path here. */
static int path_round(struct world *w, const struct path *path, unsigned int nth,
		      unsigned int burst, bool *fired)
{
	struct attempt a = {};
	struct handler h = { .nfd = -1 };
	int ok = 0;
	long ret;

	*fired = false;
	if (!set_up(w))
		goto out;
	a.job = (struct job) {
		.fd = w->fd, .nfd = w->nfd, .map = w->map,
		.offset = THE_PAGE * page_size(), .len = page_size(), .byte = NEW_BYTE,
	};
	/* It is protected before anything is prepared, but for what that writes */
	if (!job_init(&a.job, path))
		goto out;
	unprotect_pages(w->fd, 0, 0);
	ret = path->prepare ? path->prepare(&a.job) : 0;
	do_step(w, &w->before[0]);
	if (path_missing(ret)) {
		job_exit(&a.job);
		ok = -1;
		goto out;
	}
	if (ret < 0 || (w->before[0].mode == MEMFD_PROTECT_WAIT && !handler_start(&h, w->nfd)))
		goto out;
	fail_open(&a.point, nth, burst);
	ok = path_attempt(w, &a, &h, path, fired);
out:
	if (!ok)
		printf("# %s: fails at %u\n", path->name, nth);
	tear_down(w);
	return ok;
}

/*
 * Those whose writing is done by this thread. Two cannot do without memory in Linux itself:
 * direct reads of 9p, which is the root here, put a request twice, and say that they have
 * read; udmabuf keeps pins that it has no list for.
 */
static bool path_is_ours(const struct path *path)
{
	return path->kind != PATH_KTHREAD && path != &paths[P_sigframe] &&
	       path != &paths[P_direct_read_file] && path != &paths[P_udmabuf] &&
	       path != &paths[P_robust] && path != &paths[P_uring_write_sqpoll] &&
	       path != &paths[P_uring_read_sqpoll];
}

/* Each place in turn; the number of failures, or -1 */
static int path_rounds(struct world *w, const struct path *path, unsigned int burst)
{
	bool fired = true;
	unsigned int nth;

	for (nth = 1; fired; nth++)
		if (nth == FAIL_MAX || path_round(w, path, nth, burst, &fired) <= 0)
			return -1;
	return nth - 2;
}

/* Whether all went well; @settled says whether nothing is left. */
static bool path_fails_once(struct world *w, const struct path *path, bool *settled)
{
	int ok, nr = 0, nr_burst, burst;
	struct fail_figures before;
	bool fired;

	*settled = true;
	for (int i = 0; i < 2; i++) {
		before = fail_figures();
		ok = path_round(w, path, 0, 0, &fired);
		if (ok <= 0)
			return ok < 0;
	}
	for (burst = 0; burst < FAIL_BURSTS; burst++) {
		nr_burst = path_rounds(w, path, fail_bursts[burst]);
		if (nr_burst < 0)
			return false;
		nr += nr_burst;
	}
	printf("# %s: %d failures\n", path->name, nr);
	*settled = fail_settled(path->name, &before);
	return true;
}

/* What this process itself needs for the first time stays; a leak is there each time. */
static bool path_fails(struct world *w, const struct path *path)
{
	bool settled;

	return path_fails_once(w, path, &settled) &&
	       (settled || (path_fails_once(w, path, &settled) && settled));
}

static unsigned int paths_fail(unsigned int mode)
{
	unsigned int bad = 0;

	for (size_t i = 0; i < NR_PATHS; i++) {
		struct world w = {
			.notify_flags = MEMFD_NOTIFY_KERNEL,
			.size = 16 * page_size(), .before = { { THE_PAGE, 1, mode } },
		};

		if (path_is_ours(&paths[i]) && !path_fails(&w, &paths[i]))
			bad++;
	}
	return bad;
}

TEST(paths_wait)
{
	EXPECT_EQ(0, paths_fail(MEMFD_PROTECT_WAIT));
}

TEST(paths_async)
{
	EXPECT_EQ(0, paths_fail(MEMFD_PROTECT_ASYNC));
}

TEST(paths_deny)
{
	EXPECT_EQ(0, paths_fail(MEMFD_PROTECT_DENY));
}

/* Part 6: controls, of what is not as it should be and is to be found */

/* If it fails, a file stays open */
static long run_leaky(void *arg)
{
	struct world *w = arg;
	int first = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	long ret;

	if (first < 0)
		return -errno;
	ret = run_reopen(w);
	if (ret >= 0)
		close(first);
	return ret;
}

TEST(leaks_are_found)
{
	static const struct fail_case leaky = {
		.name = "a call that leaks", .set_up = set_up, .run = run_leaky,
		.state = print_nothing, .tear_down = tear_down,
	};
	struct world w = {};

	EXPECT_FALSE(fail_each(&leaky, &w));
}

TEST(writes_are_found)
{
	struct world w = {
		.notify_flags = MEMFD_NOTIFY_KERNEL, .size = 16 * page_size(),
		.before = { { THE_PAGE, 1, MEMFD_PROTECT_ASYNC } },
	};

	if (!debug_set("disable", "write", 1))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	EXPECT_FALSE(path_fails(&w, &paths[P_pwrite]));
	debug_set("disable", "write", 0);
}

/* Last: nothing of all that was lost */
TEST(no_leaks)
{
	EXPECT_TRUE(fail_no_leaks());
}

int main(int argc, char **argv)
{
	const char *why;

	need_memfd_protect();
	why = fail_init();
	if (why) {
		printf("TAP version 13\n1..0 # SKIP %s\n", why);
		return 4;
	}
	/* What a test has said is there if it dies */
	setvbuf(stdout, NULL, _IOLBF, 0);
	atexit(fail_exit);
	return test_harness_run(argc, argv);
}
