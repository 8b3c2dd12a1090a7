// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protection that nothing gets around: every path by which a memfd can be
 * written, in every mode; the ASYNC log; pinned pages; and what must not lose
 * the protection of a page. The paths are in memfd_protect_paths.h.
 */
#include "memfd_protect_paths.h"

#include <limits.h>
#include <linux/userfaultfd.h>
#include <sys/sysinfo.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	120

#define NR_PAGES	16

/* One page that is never protected, and the one that is */
#define FREE_PAGE	5
#define THE_PAGE	11

/* A file, its event fd and its mapping: made anew for every round */
struct target {
	int fd;
	int nfd;
	char *map;
	size_t size;
};

static bool target_init(struct target *t, size_t nr_pages,
			unsigned int notify_flags)
{
	t->size = nr_pages * page_size();
	t->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT |
				 MFD_ALLOW_SEALING);
	if (t->fd < 0 || ftruncate(t->fd, t->size))
		return false;
	t->map = mmap(NULL, t->size, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd,
		      0);
	if (t->map == MAP_FAILED)
		return false;
	memset(t->map, OLD_BYTE, t->size);
	t->nfd = sys_memfd_notify(t->fd, notify_flags);
	return t->nfd >= 0;
}

static void target_exit(struct target *t)
{
	close_if_open(&t->nfd);
	if (t->map)
		munmap(t->map, t->size);
	close_if_open(&t->fd);
}

/* What the file holds: the independent copy that it is compared with */
struct snapshot {
	off_t size;
	unsigned char bytes[NR_PAGES * 4096];
};

static bool snapshot_take(struct snapshot *snap, int fd)
{
	struct stat st;

	memset(snap, 0, sizeof(*snap));
	if (fstat(fd, &st) || st.st_size > (off_t)sizeof(snap->bytes))
		return false;
	snap->size = st.st_size;
	return pread(fd, snap->bytes, sizeof(snap->bytes), 0) == st.st_size;
}

static bool snapshot_same(const struct snapshot *snap, int fd)
{
	static struct snapshot now;

	return snapshot_take(&now, fd) && !memcmp(&now, snap, sizeof(now));
}

/* The job in a thread of its own: prepare, wait to be told, run */
enum { STAGE_START, STAGE_READY, STAGE_GO };

struct round {
	struct target target;
	struct job job;
	struct outcome out;
	struct snapshot before;
	pthread_t thread;
	volatile int stage;
	long prepared;
	unsigned int mode;
	bool joined;
};

static bool reaches(volatile int *value, int wanted)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (*value != wanted && now_ns() < end)
		usleep(200);
	return *value == wanted;
}

static long run_job(void *arg)
{
	struct job *job = arg;

	return job->path->run(job);
}

static void *round_thread(void *arg)
{
	struct round *r = arg;

	job_touch(&r->job);
	r->prepared = r->job.path->prepare ? r->job.path->prepare(&r->job) : 0;
	r->stage = STAGE_READY;
	while (r->stage != STAGE_GO)
		usleep(100);
	if (r->prepared >= 0)
		run_guarded(run_job, &r->job, &r->out);
	else
		r->out.ret = r->prepared;
	job_exit(&r->job);
	r->out.done = 2;
	return NULL;
}

/* Up to the moment at which the page would be protected */
static bool round_prepare(struct round *r, const struct path *path,
			  size_t page, size_t nr, bool touch)
{
	memset(&r->out, 0, sizeof(r->out));
	r->stage = STAGE_START;
	r->joined = false;
	r->job.fd = r->target.fd;
	r->job.nfd = r->target.nfd;
	r->job.map = r->target.map;
	r->job.offset = page * page_size();
	r->job.len = nr * page_size();
	r->job.byte = NEW_BYTE;
	r->job.touch = touch;
	if (!job_init(&r->job, path))
		return false;
	if (pthread_create(&r->thread, NULL, round_thread, r))
		return false;
	return reaches(&r->stage, STAGE_READY);
}

static void round_go(struct round *r)
{
	r->stage = STAGE_GO;
}

static bool round_ended(struct round *r)
{
	if (!r->joined && reaches(&r->out.done, 2)) {
		pthread_join(r->thread, NULL);
		r->joined = true;
	}
	return r->joined;
}

/* Failed, by signal or by return, or in silence */
static bool round_failed(const struct round *r)
{
	return r->out.sig || r->out.ret < 0;
}

static void round_exit(struct round *r)
{
	target_exit(&r->target);
}

FIXTURE(path) {
	struct round *round;
};

FIXTURE_VARIANT(path) {
	enum path_nr nr;
	unsigned int mode;
	unsigned int notify_flags;
};

#define PATH_VARIANT(_name, _suffix, _mode, _flags) \
FIXTURE_VARIANT_ADD(path, _name##_##_suffix) { \
	.nr = P_##_name, .mode = MEMFD_PROTECT_##_mode, .notify_flags = _flags, \
}

#define PATH_VARIANTS(_name) \
	PATH_VARIANT(_name, wait, WAIT, 0); \
	PATH_VARIANT(_name, wait_kernel, WAIT, MEMFD_NOTIFY_KERNEL); \
	PATH_VARIANT(_name, deny, DENY, 0); \
	PATH_VARIANT(_name, async, ASYNC, 0)

PATH_VARIANTS(store);
PATH_VARIANTS(store_atomic);
PATH_VARIANTS(write);
PATH_VARIANTS(pwrite);
PATH_VARIANTS(pwritev2);
PATH_VARIANTS(direct);
PATH_VARIANTS(sendfile);
PATH_VARIANTS(copy_file_range);
PATH_VARIANTS(splice);
PATH_VARIANTS(aio_write);
PATH_VARIANTS(uring_write);
PATH_VARIANTS(uring_write_fixed);
PATH_VARIANTS(uring_write_sqpoll);
PATH_VARIANTS(uring_splice);
PATH_VARIANTS(read_pipe);
PATH_VARIANTS(readv_pipe);
PATH_VARIANTS(read_file);
PATH_VARIANTS(recv);
PATH_VARIANTS(getrandom);
PATH_VARIANTS(put_user);
PATH_VARIANTS(vmsplice);
PATH_VARIANTS(aio_read);
PATH_VARIANTS(uring_read);
PATH_VARIANTS(uring_read_sqpoll);
PATH_VARIANTS(uring_read_fixed);
PATH_VARIANTS(direct_read_block);
PATH_VARIANTS(direct_read_file);
PATH_VARIANTS(direct_read_shmem);
PATH_VARIANTS(process_vm_writev);
PATH_VARIANTS(process_vm_writev_child);
PATH_VARIANTS(proc_mem);
PATH_VARIANTS(ptrace);
PATH_VARIANTS(futex);
PATH_VARIANTS(futex_unlock);
PATH_VARIANTS(clone_parent_settid);
PATH_VARIANTS(clone_child_settid);
PATH_VARIANTS(clone_child_cleartid);
PATH_VARIANTS(robust);
PATH_VARIANTS(sigframe);
PATH_VARIANTS(populate_write);
PATH_VARIANTS(gup_pin);
PATH_VARIANTS(gup_pin_fast);
PATH_VARIANTS(udmabuf);
PATH_VARIANTS(punch);
PATH_VARIANTS(punch_part);
PATH_VARIANTS(madv_remove);
PATH_VARIANTS(uring_punch);
PATH_VARIANTS(ftruncate);
PATH_VARIANTS(ftruncate_part);
PATH_VARIANTS(truncate_path);
PATH_VARIANTS(open_trunc);
PATH_VARIANTS(uring_ftruncate);
PATH_VARIANTS(loop);

FIXTURE_SETUP(path)
{
	self->round = calloc(1, sizeof(*self->round));
	ASSERT_NE(NULL, self->round);
	self->round->mode = variant->mode;
}

FIXTURE_TEARDOWN(path)
{
	free(self->round);
}

/* The path does what it says where nothing is protected */
static bool path_works(struct __test_metadata *_metadata, struct round *r,
		       const struct path *path)
{
	struct snapshot *before = &r->before;
	bool same;

	if (!round_prepare(r, path, FREE_PAGE, 1, true)) {
		EXPECT_TRUE(false) TH_LOG("cannot prepare");
		return false;
	}
	snapshot_take(before, r->target.fd);
	round_go(r);
	EXPECT_TRUE(round_ended(r));
	if (path_missing(r->out.ret))
		return false;
	EXPECT_EQ(0, r->out.sig);
	EXPECT_LE(0, r->out.ret);
	same = snapshot_same(before, r->target.fd);
	EXPECT_EQ(!!(path->flags & PATH_NO_CHANGE), same);
	EXPECT_EQ(0, drain_events(r->target.nfd));
	return true;
}

/* What of the page is there before protection */
enum touch { TOUCHED, UNTOUCHED, HOLE, NR_TOUCH };

static const char * const touch_names[] = { "touched", "untouched", "hole" };

/* A target whose page is protected, and a job that stands before it */
static void round_begin(struct __test_metadata *_metadata, struct round *r,
			const FIXTURE_VARIANT(path) *variant, enum touch touch)
{
	const struct path *path = &paths[variant->nr];

	ASSERT_TRUE(target_init(&r->target, NR_PAGES, variant->notify_flags));
	if (touch == HOLE) {
		ASSERT_EQ(0, fallocate(r->target.fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE,
				       THE_PAGE * page_size(), page_size()));
	}
	if (touch != TOUCHED) {
		ASSERT_EQ(0, madvise(r->target.map, r->target.size,
				     MADV_DONTNEED));
	}
	ASSERT_TRUE(round_prepare(r, path, THE_PAGE, 1, touch == TOUCHED));
	ASSERT_EQ(0, protect_pages(r->target.fd, THE_PAGE, 1, variant->mode))
		TH_LOG("%s", touch_names[touch]);
	ASSERT_TRUE(snapshot_take(&r->before, r->target.fd));
}

static unsigned int event_type(const struct path *path)
{
	switch (path->kind) {
	case PATH_CALL:
	case PATH_KTHREAD:
		return MEMFD_EVENT_WRITE;
	case PATH_PUNCH:
		return MEMFD_EVENT_PUNCH;
	case PATH_TRUNCATE:
		return MEMFD_EVENT_TRUNCATE;
	default:
		return MEMFD_EVENT_FAULT;
	}
}

/*
 * What the kernel does for a system call can be several accesses to the page:
 * it may try bytes after words, and is caught anew.
 */
static void deny_the_rest(struct round *r)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	struct memfd_event ev;

	if (r->job.path->kind != PATH_MAPPING || r->mode != MEMFD_PROTECT_WAIT)
		return;
	while (r->out.done != 2 && now_ns() < end) {
		if (read_event_in(r->target.nfd, &ev, 1) && ev.cookie)
			resolve(r->target.nfd, ev.cookie, MEMFD_RESOLVE_DENY);
	}
}

/* As DENY makes it fail; nothing of the file has changed */
static void check_denied(struct __test_metadata *_metadata, struct round *r)
{
	const struct path *path = r->job.path;

	ASSERT_TRUE(round_ended(r));
	EXPECT_TRUE(snapshot_same(&r->before, r->target.fd));
	switch (path->kind) {
	case PATH_STORE:
		EXPECT_EQ(SIGBUS, r->out.sig);
		EXPECT_EQ(BUS_ADRERR, r->out.code);
		EXPECT_EQ(job_addr(&r->job), r->out.addr);
		return;
	case PATH_CALL:
	case PATH_PUNCH:
	case PATH_TRUNCATE:
		EXPECT_EQ(-EPERM, r->out.ret);
		break;
	case PATH_MAPPING:
		if (path->flags & PATH_SILENT)
			break;
		if (!path->error || r->out.ret != path->error)
			EXPECT_EQ(-EFAULT, r->out.ret);
		break;
	default:
		EXPECT_GT(0, r->out.ret);
	}
	EXPECT_EQ(0, r->out.sig);
}

/* It went through */
static void check_done(struct __test_metadata *_metadata, struct round *r)
{
	ASSERT_TRUE(round_ended(r));
	EXPECT_EQ(0, r->out.sig);
	EXPECT_LE(0, r->out.ret);
	EXPECT_EQ(!!(r->job.path->flags & PATH_NO_CHANGE),
		  snapshot_same(&r->before, r->target.fd));
}

static void check_event_common(struct __test_metadata *_metadata,
			       struct round *r, const struct memfd_event *ev)
{
	EXPECT_EQ(event_type(r->job.path), ev->type);
	EXPECT_EQ(THE_PAGE * page_size(), ev->offset);
	EXPECT_EQ(page_size(), ev->length);
	EXPECT_LT(0, ev->pid);
	EXPECT_LT(0, ev->tid);
}

/* Nobody waits: the records say so, and there is nothing to resolve */
static void check_told_only(struct __test_metadata *_metadata, struct round *r)
{
	struct memfd_event ev;
	unsigned int nr = 0;

	check_denied(_metadata, r);
	while (read_event_in(r->target.nfd, &ev, SHORT_MS)) {
		nr++;
		if (r->job.path->kind == PATH_MAPPING) {
			check_event_common(_metadata, r, &ev);
			EXPECT_EQ(MEMFD_EVENT_F_KERNEL, ev.flags);
		}
		EXPECT_EQ(0, ev.flags & MEMFD_EVENT_F_WAITING);
		EXPECT_EQ(0, ev.cookie);
	}
	if (r->job.path->kind == PATH_MAPPING)
		EXPECT_LT(0, nr);
}

/* Nobody waits for an exiting task, and its write is not lost */
static void check_goes_through(struct __test_metadata *_metadata,
			       struct round *r)
{
	struct memfd_event ev;

	check_done(_metadata, r);
	EXPECT_TRUE(read_event(r->target.nfd, &ev));
	check_event_common(_metadata, r, &ev);
	EXPECT_EQ(MEMFD_EVENT_F_KERNEL, ev.flags);
	EXPECT_EQ(0, ev.cookie);
	EXPECT_EQ(0, drain_events(r->target.nfd));
}

/*
 * It waits, and then goes the way that the event is resolved. False: it
 * could not wait, and has failed.
 */
static bool check_waits(struct __test_metadata *_metadata, struct round *r,
			uint32_t action)
{
	const struct path *path = r->job.path;
	struct memfd_event ev;

	EXPECT_TRUE(read_event(r->target.nfd, &ev)) {
		return false;
	}
	check_event_common(_metadata, r, &ev);
	if (!(ev.flags & MEMFD_EVENT_F_WAITING) &&
	    path->flags & PATH_NO_WAIT) {
		EXPECT_EQ(0, ev.cookie);
		check_denied(_metadata, r);
		return false;
	}
	EXPECT_EQ(MEMFD_EVENT_F_WAITING, ev.flags & MEMFD_EVENT_F_WAITING);
	EXPECT_NE(0, ev.cookie);
	if (path->kind == PATH_STORE)
		EXPECT_EQ(0, ev.flags & MEMFD_EVENT_F_KERNEL);
	if (path->kind == PATH_MAPPING)
		EXPECT_EQ(MEMFD_EVENT_F_KERNEL, ev.flags & MEMFD_EVENT_F_KERNEL);
	sleep_ms(SHORT_MS);
	EXPECT_FALSE(r->out.done);
	EXPECT_TRUE(snapshot_same(&r->before, r->target.fd));
	EXPECT_EQ(0, resolve(r->target.nfd, ev.cookie, action));
	return true;
}

static void round_wait(struct __test_metadata *_metadata, struct round *r,
		       const FIXTURE_VARIANT(path) *variant, enum touch touch,
		       uint32_t action)
{
	enum path_kind kind = paths[variant->nr].kind;

	round_begin(_metadata, r, variant, touch);
	round_go(r);
	if (paths[variant->nr].flags & PATH_EXIT && !variant->notify_flags) {
		check_goes_through(_metadata, r);
	} else if ((kind == PATH_MAPPING && !variant->notify_flags) ||
	    kind == PATH_PIN || kind == PATH_KTHREAD) {
		check_told_only(_metadata, r);
	} else if (check_waits(_metadata, r, action)) {
		if (action == MEMFD_RESOLVE_ALLOW) {
			check_done(_metadata, r);
		} else {
			deny_the_rest(r);
			check_denied(_metadata, r);
		}
	}
	round_exit(r);
}

static void round_deny(struct __test_metadata *_metadata, struct round *r,
		       const FIXTURE_VARIANT(path) *variant, enum touch touch)
{
	round_begin(_metadata, r, variant, touch);
	round_go(r);
	check_denied(_metadata, r);
	EXPECT_EQ(0, drain_events(r->target.nfd));
	round_exit(r);
}

/*
 * What is pinned stays in the log. A worker may let go of the pages of direct I/O
 * after its end, if they were cleaned meanwhile: by the scan that takes them.
 */
static void log_without_pins(struct round *r)
{
	uint64_t limit = now_ns() + LONG_MS * 1000000ULL, end;
	struct memfd_range range[2];

	while (scan_range(r->target.nfd, 0, 0, range, 2, MEMFD_SCAN_REPROTECT,
			  &end) > 0 && now_ns() < limit)
		usleep(1000);
}

/* What was written is logged, exactly and once */
static void round_async(struct __test_metadata *_metadata, struct round *r,
			const FIXTURE_VARIANT(path) *variant, enum touch touch)
{
	struct memfd_range range[2];
	struct memfd_event ev;
	uint64_t end;

	round_begin(_metadata, r, variant, touch);
	EXPECT_EQ(0, scan_range(r->target.nfd, 0, 0, range, 2, 0, &end));
	round_go(r);
	check_done(_metadata, r);
	EXPECT_TRUE(read_event(r->target.nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	EXPECT_EQ(0, ev.cookie);
	EXPECT_EQ(0, ev.flags & MEMFD_EVENT_F_WAITING);
	EXPECT_EQ(0, drain_events(r->target.nfd));
	EXPECT_EQ(1, scan_range(r->target.nfd, 0, 0, range, 2,
				MEMFD_SCAN_REPROTECT, &end));
	EXPECT_EQ(THE_PAGE * page_size(), range[0].offset);
	EXPECT_EQ(page_size(), range[0].length);
	if (r->job.path->flags & PATH_PINS)
		log_without_pins(r);
	EXPECT_EQ(0, scan_range(r->target.nfd, 0, 0, range, 2, 0, &end));
	round_exit(r);
}

/*
 * A store waits before the job does: the job joins its event, or has one of
 * its own when it is of another kind. Both end when the event fd is closed.
 */
static void round_beside_store(struct __test_metadata *_metadata,
			       struct round *r,
			       const FIXTURE_VARIANT(path) *variant)
{
	struct round *store = calloc(1, sizeof(*store));

	ASSERT_NE(NULL, store);
	round_begin(_metadata, r, variant, TOUCHED);
	store->target = r->target;
	ASSERT_TRUE(round_prepare(store, &paths[P_store], THE_PAGE, 1, false));
	round_go(store);
	ASSERT_TRUE(readable(r->target.nfd, LONG_MS));
	round_go(r);
	sleep_ms(SHORT_MS);
	EXPECT_FALSE(store->out.done);
	EXPECT_TRUE(snapshot_same(&r->before, r->target.fd));
	close_if_open(&r->target.nfd);
	ASSERT_TRUE(round_ended(store));
	ASSERT_TRUE(round_ended(r));
	/* The store may find the file cut off before it */
	if (r->job.path->kind != PATH_TRUNCATE)
		EXPECT_EQ(0, store->out.sig);
	/* What the store writes is a stack in use there */
	if (variant->nr != P_sigframe)
		EXPECT_FALSE(round_failed(r));
	round_exit(r);
	free(store);
}

/* Such a job sleeps in such a range */
static bool job_waits(const FIXTURE_VARIANT(path) *variant)
{
	const struct path *path = &paths[variant->nr];

	return variant->mode == MEMFD_PROTECT_WAIT && variant->notify_flags &&
	       !(path->flags & PATH_NO_WAIT) && path->kind != PATH_PIN &&
	       path->kind != PATH_KTHREAD;
}

/* Zeros in a hole are no change */
static bool touch_makes_sense(const struct path *path, enum touch touch)
{
	return touch != HOLE ||
	       (path->kind != PATH_PUNCH && !(path->flags & PATH_ZERO));
}

TEST_F(path, is_caught)
{
	const struct path *path = &paths[variant->nr];
	struct round *r = self->round;

	if (path->flags & PATH_ROOT && geteuid())
		SKIP(return, "needs root");
	ASSERT_TRUE(target_init(&r->target, NR_PAGES, 0));
	if (!path_works(_metadata, r, path)) {
		if (!_metadata->exit_code)
			SKIP(return, "%s is not to be had here", path->name);
		return;
	}
	round_exit(r);

	for (enum touch touch = TOUCHED; touch < NR_TOUCH; touch++) {
		if (!touch_makes_sense(path, touch))
			continue;
		if (variant->mode == MEMFD_PROTECT_DENY) {
			round_deny(_metadata, r, variant, touch);
		} else if (variant->mode == MEMFD_PROTECT_ASYNC) {
			round_async(_metadata, r, variant, touch);
		} else {
			round_wait(_metadata, r, variant, touch,
				   MEMFD_RESOLVE_ALLOW);
			round_wait(_metadata, r, variant, touch,
				   MEMFD_RESOLVE_DENY);
		}
		EXPECT_EQ(0, _metadata->exit_code) {
			TH_LOG("%s: page was %s", path->name,
			       touch_names[touch]);
			return;
		}
	}
	if (job_waits(variant))
		round_beside_store(_metadata, r, variant);
}

/*
 * A call that writes many pages is one: it fails, or waits, before it has
 * written the first, though only a late one is protected.
 */

#define WHOLE_PAGES	48
#define WHOLE_START	4
#define WHOLE_NR	40
#define WHOLE_LATE	40

FIXTURE(whole) {
	struct round *round;
};

FIXTURE_VARIANT(whole) {
	enum path_nr nr;
};

#define WHOLE(_name) \
FIXTURE_VARIANT_ADD(whole, _name) { .nr = P_##_name }

WHOLE(write);
WHOLE(pwrite);
WHOLE(pwritev2);
WHOLE(direct);
WHOLE(sendfile);
WHOLE(copy_file_range);
WHOLE(splice);
WHOLE(aio_write);
WHOLE(uring_write);
WHOLE(uring_write_fixed);
WHOLE(uring_write_sqpoll);
WHOLE(uring_splice);

FIXTURE_SETUP(whole)
{
	self->round = calloc(1, sizeof(*self->round));
	ASSERT_NE(NULL, self->round);
}

FIXTURE_TEARDOWN(whole)
{
	free(self->round);
}

static void whole_begin(struct __test_metadata *_metadata, struct round *r,
			enum path_nr nr, unsigned int mode)
{
	ASSERT_TRUE(target_init(&r->target, WHOLE_PAGES, 0));
	ASSERT_EQ(0, protect_pages(r->target.fd, WHOLE_LATE, 1, mode));
	ASSERT_TRUE(round_prepare(r, &paths[nr], WHOLE_START, WHOLE_NR,
				  false));
	round_go(r);
}

TEST_F(whole, denied_as_a_whole)
{
	struct round *r = self->round;

	whole_begin(_metadata, r, variant->nr, MEMFD_PROTECT_DENY);
	ASSERT_TRUE(round_ended(r));
	EXPECT_EQ(-EPERM, r->out.ret);
	EXPECT_TRUE(file_filled_with(r->target.fd, 0, WHOLE_PAGES, OLD_BYTE));
	round_exit(r);
}

TEST_F(whole, waits_before_it_writes)
{
	static const uint32_t actions[] = {
		MEMFD_RESOLVE_DENY, MEMFD_RESOLVE_ALLOW,
	};
	struct round *r = self->round;
	struct memfd_event ev;

	for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
		whole_begin(_metadata, r, variant->nr, MEMFD_PROTECT_WAIT);
		ASSERT_TRUE(read_event(r->target.nfd, &ev));
		EXPECT_EQ(MEMFD_EVENT_WRITE, ev.type);
		EXPECT_EQ(WHOLE_LATE * page_size(), ev.offset);
		EXPECT_EQ(page_size(), ev.length);
		EXPECT_TRUE(file_filled_with(r->target.fd, 0, WHOLE_PAGES,
					     OLD_BYTE));
		EXPECT_EQ(0, resolve(r->target.nfd, ev.cookie, actions[i]));
		ASSERT_TRUE(round_ended(r));
		EXPECT_EQ(actions[i] == MEMFD_RESOLVE_DENY ? -EPERM :
			  WHOLE_NR * (long)page_size(), r->out.ret);
		EXPECT_TRUE(file_filled_with(r->target.fd, WHOLE_START,
					     WHOLE_NR, actions[i] ?
					     OLD_BYTE : NEW_BYTE));
		EXPECT_EQ(0, drain_events(r->target.nfd));
		round_exit(r);
	}
}

/* The log of ASYNC ranges */

FIXTURE(log) {
	struct target t;
	size_t page;
};

#define LOG_PAGES	64

FIXTURE_SETUP(log)
{
	self->page = page_size();
	ASSERT_TRUE(target_init(&self->t, LOG_PAGES, 0));
	if (!(features(self->t.nfd) & MEMFD_FEATURE_SCAN))
		SKIP(return, "no MEMFD_NOTIFY_SCAN");
	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_ASYNC));
}

FIXTURE_TEARDOWN(log)
{
	target_exit(&self->t);
}

/* Ranges by page numbers, as many as given; then the end of the scan */
struct pages {
	size_t page, nr;
};

static void expect_log(struct __test_metadata *_metadata,
		       FIXTURE_DATA(log) *self, uint64_t flags,
		       const struct pages *want, int nr_want)
{
	struct memfd_range got[LOG_PAGES];
	int nr;

	nr = scan_range(self->t.nfd, 0, 0, got, LOG_PAGES, flags, NULL);
	EXPECT_EQ(nr_want, nr);
	for (int i = 0; i < nr && i < nr_want; i++) {
		EXPECT_EQ(want[i].page * self->page, got[i].offset)
			TH_LOG("range %d", i);
		EXPECT_EQ(want[i].nr * self->page, got[i].length)
			TH_LOG("range %d", i);
	}
}

static void store_page(FIXTURE_DATA(log) *self, size_t page)
{
	self->t.map[page * self->page] = NEW_BYTE;
}

TEST_F(log, empty_at_first)
{
	expect_log(_metadata, self, 0, NULL, 0);
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, NULL, 0);
	EXPECT_TRUE(no_event(self->t.nfd));
}

/* Merged, ascending, once, whatever the order of the writes */
TEST_F(log, merged_and_ascending)
{
	static const size_t order[] = { 40, 7, 9, 8, 0, 63, 20, 22, 7, 8 };
	static const struct pages want[] = {
		{ 0, 1 }, { 7, 3 }, { 20, 1 }, { 22, 1 }, { 40, 1 }, { 63, 1 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		store_page(self, order[i]);
	expect_log(_metadata, self, 0, want, ARRAY_SIZE(want));
	/* To look takes nothing */
	expect_log(_metadata, self, 0, want, ARRAY_SIZE(want));
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want,
		   ARRAY_SIZE(want));
	expect_log(_metadata, self, 0, NULL, 0);
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, NULL, 0);
}

/* After REPROTECT the same page is logged again, without it not */
TEST_F(log, reprotect_catches_again)
{
	static const struct pages five[] = { { 5, 1 } };

	for (int i = 0; i < 10; i++) {
		store_page(self, 5);
		store_page(self, 5);
		expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, five, 1);
		expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, NULL, 0);
	}
}

/* A store that is logged takes one fault. The kernel may cause some of its own. */
TEST_F(log, one_fault_for_each_page)
{
	static const struct pages all[] = { { 0, LOG_PAGES } };
	long taken = LONG_MAX;

	for (int turn = 0; turn < 5 && taken > LOG_PAGES; turn++) {
		long before;

		ASSERT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
		for (size_t i = 0; i < LOG_PAGES; i++)
			store_page(self, i);
		ASSERT_EQ(0, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_ASYNC));
		before = faults();
		for (size_t i = 0; i < LOG_PAGES; i++)
			store_page(self, i);
		taken = faults() - before;
		expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, all, 1);
	}
	EXPECT_EQ(LOG_PAGES, taken);
}

/* Every writer of a page, each through page tables of its own */
TEST_F(log, reprotect_catches_every_mapping)
{
	static const struct pages five[] = { { 5, 1 } };
	char *maps[4];

	for (int i = 0; i < 4; i++) {
		maps[i] = mmap(NULL, self->t.size, PROT_READ | PROT_WRITE,
			       MAP_SHARED, self->t.fd, 0);
		ASSERT_NE(MAP_FAILED, maps[i]);
		maps[i][5 * self->page] = NEW_BYTE;
	}
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, five, 1);
	for (int i = 0; i < 4; i++) {
		maps[i][5 * self->page] = NEW_BYTE;
		expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, five, 1);
	}
}

TEST_F(log, write_calls_are_logged)
{
	static const struct pages want[] = { { 3, 4 }, { 10, 2 } };
	static char buf[4 * 4096];

	ASSERT_EQ(4 * self->page, pwrite(self->t.fd, buf, 4 * self->page,
					 3 * self->page));
	ASSERT_EQ(2, pwrite(self->t.fd, buf, 2, 11 * self->page - 1));
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want, 2);
	expect_log(_metadata, self, 0, NULL, 0);
}

TEST_F(log, sub_ranges)
{
	struct memfd_range got[8];
	uint64_t page = self->page, end;
	int nfd = self->t.nfd;

	for (size_t i = 10; i < 20; i++)
		store_page(self, i);
	EXPECT_EQ(0, scan_range(nfd, 0, 10 * page, got, 8, 0, &end));
	EXPECT_EQ(10 * page, end);
	EXPECT_EQ(0, scan_range(nfd, 20 * page, 0, got, 8, 0, &end));
	EXPECT_EQ(1, scan_range(nfd, 12 * page, 14 * page, got, 8,
				MEMFD_SCAN_REPROTECT, &end));
	EXPECT_EQ(12 * page, got[0].offset);
	EXPECT_EQ(2 * page, got[0].length);
	EXPECT_EQ(14 * page, end);
	EXPECT_EQ(2, scan_range(nfd, 0, 64 * page, got, 8, 0, &end));
	EXPECT_EQ(10 * page, got[0].offset);
	EXPECT_EQ(2 * page, got[0].length);
	EXPECT_EQ(14 * page, got[1].offset);
	EXPECT_EQ(6 * page, got[1].length);
	EXPECT_EQ(64 * page, end);
	EXPECT_EQ(1, scan_range(nfd, 19 * page, 0, got, 8, 0, &end));
	EXPECT_EQ(page, got[0].length);
}

/* Too small an array: walk_end says where to go on, and nothing is lost */
TEST_F(log, walk_end)
{
	const uint64_t page = self->page;
	struct memfd_range got[3];
	uint64_t start = 0, end;
	int nr, seen = 0, rounds = 0;

	for (size_t i = 0; i < 20; i += 2)
		store_page(self, i);
	do {
		nr = scan_range(self->t.nfd, start, LOG_PAGES * page, got, 3,
				MEMFD_SCAN_REPROTECT, &end);
		ASSERT_LE(0, nr);
		ASSERT_LT(start, end);
		for (int i = 0; i < nr; i++) {
			EXPECT_EQ(2 * seen * page, got[i].offset);
			EXPECT_EQ(page, got[i].length);
			EXPECT_GE(end, got[i].offset + got[i].length);
			seen++;
		}
		start = end;
	} while (end < LOG_PAGES * page && ++rounds < 20);
	EXPECT_EQ(10, seen);
	expect_log(_metadata, self, 0, NULL, 0);
}

/* What did not fit stays in the log */
TEST_F(log, small_array_takes_only_what_it_returns)
{
	static const struct pages rest[] = { { 9, 1 }, { 11, 3 } };
	struct memfd_range got[2];
	uint64_t end;

	store_page(self, 2);
	store_page(self, 5);
	store_page(self, 9);
	for (size_t i = 11; i < 14; i++)
		store_page(self, i);
	EXPECT_EQ(2, scan_range(self->t.nfd, 0, 0, got, 2,
				MEMFD_SCAN_REPROTECT, &end));
	EXPECT_EQ(5 * self->page, got[1].offset);
	EXPECT_LE(6 * self->page, end);
	EXPECT_GE(9 * self->page, end);
	expect_log(_metadata, self, 0, rest, 2);
}

TEST_F(log, errors)
{
	const uint64_t page = self->page;
	struct memfd_range got[2];
	int nfd = self->t.nfd;
	const struct {
		uint64_t start, end, nr, flags;
	} bad[] = {
		{ 1, 0, 2, 0 }, { page - 1, 0, 2, 0 }, { 0, 1, 2, 0 },
		{ 0, page + 1, 2, 0 }, { 2 * page, page, 2, 0 },
		{ 0, 0, 0, 0 }, { 0, 0, 2, 2 }, { 0, 0, 2, ~0ULL },
		{ 0, 0, 2, 1ULL << 63 | 1 }, { 1, 2, 0, 2 },
		{ -page, page, 2, 0 },
	};

	store_page(self, 3);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, scan_range(nfd, bad[i].start, bad[i].end,
					      got, bad[i].nr, bad[i].flags,
					      NULL))
			TH_LOG("case %zu", i);
	}
	EXPECT_EQ(-EFAULT, neg_errno(ioctl(nfd, MEMFD_NOTIFY_SCAN, NULL)));
	EXPECT_EQ(1, scan_range(nfd, 0, 0, got, 2, 0, NULL));
}

/* EFAULT loses nothing: not the page at which it failed, nor those before */
TEST_F(log, efault_loses_nothing)
{
	static const struct pages want[] = { { 2, 1 }, { 5, 1 }, { 9, 1 } };
	struct memfd_range *edge;
	uint64_t end;
	char *area;
	int nr;

	area = mmap(NULL, 2 * self->page, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	ASSERT_EQ(0, munmap(area + self->page, self->page));
	edge = (void *)(area + self->page - sizeof(*edge));
	for (size_t i = 0; i < ARRAY_SIZE(want); i++)
		store_page(self, want[i].page);

	EXPECT_EQ(-EFAULT, scan_range(self->t.nfd, 0, 0, bad_pointer(), 8,
				      MEMFD_SCAN_REPROTECT, NULL));
	expect_log(_metadata, self, 0, want, 3);
	/* What was copied out may be returned and taken, and nothing else */
	nr = scan_range(self->t.nfd, 0, 0, edge, 8, MEMFD_SCAN_REPROTECT,
			&end);
	if (nr != -EFAULT) {
		EXPECT_EQ(1, nr);
		EXPECT_EQ(want[0].page * self->page, edge->offset);
		EXPECT_EQ((want[0].page + 1) * self->page, end);
		store_page(self, want[0].page);
	}
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want, 3);
}

/* The argument is read-only: walk_end cannot be stored */
TEST_F(log, efault_in_argument_loses_nothing)
{
	static const struct pages want[] = { { 2, 1 } };
	struct memfd_range got[2];
	struct memfd_scan *arg;

	arg = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, arg);
	arg->ranges = (uintptr_t)got;
	arg->nr_ranges = 2;
	arg->flags = MEMFD_SCAN_REPROTECT;
	ASSERT_EQ(0, mprotect(arg, self->page, PROT_READ));
	store_page(self, 2);
	EXPECT_EQ(-EFAULT, neg_errno(ioctl(self->t.nfd, MEMFD_NOTIFY_SCAN,
					   arg)));
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want, 1);
}

/* The array lies in the protected memory itself */
TEST_F(log, array_in_the_file)
{
	struct memfd_range *got = (void *)(self->t.map + 30 * self->page);
	static const struct pages want[] = { { 30, 1 } };
	int nr;

	store_page(self, 2);
	/* Its own page too, if the array was tried before the log was read */
	nr = scan_range(self->t.nfd, 0, 0, got, 8, MEMFD_SCAN_REPROTECT, NULL);
	EXPECT_LE(1, nr);
	EXPECT_GE(2, nr);
	EXPECT_EQ(2 * self->page, got[0].offset);
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want, 1);
}

/* DIRTY: one record when something is logged, and not again until a scan takes */
TEST_F(log, dirty_event)
{
	int nfd = self->t.nfd;
	struct memfd_event ev;
	struct memfd_range got;
	uint64_t before = now_ns();

	store_page(self, 3);
	ASSERT_TRUE(read_event(nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	EXPECT_EQ(0, ev.cookie);
	EXPECT_EQ(0, ev.flags & MEMFD_EVENT_F_WAITING);
	EXPECT_EQ(0, ev.offset % self->page);
	EXPECT_EQ(0, ev.length % self->page);
	EXPECT_LE(before, ev.time_ns);
	EXPECT_GE(now_ns(), ev.time_ns);
	store_page(self, 4);
	store_page(self, 40);
	EXPECT_TRUE(no_event(nfd));

	EXPECT_EQ(1, scan_range(nfd, 0, 10 * self->page, &got, 1,
				MEMFD_SCAN_REPROTECT, NULL));
	store_page(self, 5);
	ASSERT_TRUE(read_event(nfd, &ev)) TH_LOG("new since the scan");
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	EXPECT_EQ(1, scan_range(nfd, 0, 10 * self->page, &got, 1,
				MEMFD_SCAN_REPROTECT, NULL));
	EXPECT_EQ(1, scan_range(nfd, 0, 0, &got, 1, MEMFD_SCAN_REPROTECT,
				NULL));
	EXPECT_TRUE(no_event(nfd));
	store_page(self, 6);
	ASSERT_TRUE(read_event(nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	EXPECT_TRUE(no_event(nfd));
}

/* At most one is unread, and it goes when the log was emptied first */
TEST_F(log, dirty_event_withdrawn)
{
	struct memfd_range got[4];
	int nfd = self->t.nfd;

	for (int i = 0; i < 5; i++) {
		store_page(self, 3);
		store_page(self, 30);
		ASSERT_TRUE(readable(nfd, LONG_MS));
		EXPECT_EQ(2, scan_range(nfd, 0, 0, got, 4,
					MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_FALSE(readable(nfd, 0)) TH_LOG("by a scan");
	}
	store_page(self, 3);
	ASSERT_TRUE(readable(nfd, LONG_MS));
	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_ASYNC));
	EXPECT_FALSE(readable(nfd, 0)) TH_LOG("by ASYNC again");

	store_page(self, 3);
	ASSERT_TRUE(readable(nfd, LONG_MS));
	ASSERT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 8, MEMFD_PROTECT_DENY));
	EXPECT_TRUE(readable(nfd, 0)) TH_LOG("not by other modes");
	EXPECT_EQ(1, drain_events(nfd));
}

/* Setting ASYNC again drops what the log held of the range, only of it */
TEST_F(log, set_again_drops)
{
	static const struct pages rest[] = { { 20, 1 } };
	static const struct pages both[] = { { 3, 1 }, { 20, 1 } };

	store_page(self, 3);
	store_page(self, 20);
	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 10, MEMFD_PROTECT_ASYNC));
	expect_log(_metadata, self, 0, rest, 1);
	store_page(self, 3);
	expect_log(_metadata, self, 0, both, 2);
}

/* Other modes leave the log alone, for a last scan */
TEST_F(log, other_modes_keep)
{
	static const struct pages all[] = { { 3, 1 }, { 7, 1 }, { 20, 1 } };

	store_page(self, 3);
	store_page(self, 7);
	store_page(self, 20);
	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 5, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, unprotect_pages(self->t.fd, 5, 5));
	ASSERT_EQ(0, protect_pages(self->t.fd, 20, 1, MEMFD_PROTECT_WAIT));
	expect_log(_metadata, self, 0, all, 3);
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, all, 3);
	/* Unprotected: not logged */
	store_page(self, 6);
	expect_log(_metadata, self, 0, NULL, 0);
}

/* Only ASYNC ranges are logged */
TEST_F(log, only_async_ranges)
{
	static const struct pages want[] = { { 1, 1 } };
	struct outcome out = { 0 };
	struct job job = { 0 };

	ASSERT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
	ASSERT_EQ(0, protect_pages(self->t.fd, 1, 1, MEMFD_PROTECT_ASYNC));
	ASSERT_EQ(0, protect_pages(self->t.fd, 2, 1, MEMFD_PROTECT_DENY));
	store_page(self, 0);
	store_page(self, 1);
	store_page(self, 3);
	job.path = &paths[P_store_atomic];
	job.map = self->t.map;
	job.offset = 2 * self->page;
	run_guarded(run_job, &job, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want, 1);
	/* REPROTECT protects what it takes, not what was open */
	store_page(self, 0);
	expect_log(_metadata, self, 0, NULL, 0);
}

/* A fresh event fd starts with an empty log */
TEST_F(log, dropped_by_close)
{
	store_page(self, 3);
	close(self->t.nfd);
	self->t.nfd = sys_memfd_notify(self->t.fd, 0);
	ASSERT_LE(0, self->t.nfd);
	EXPECT_TRUE(no_event(self->t.nfd));
	expect_log(_metadata, self, 0, NULL, 0);
	store_page(self, 3);
	expect_log(_metadata, self, 0, NULL, 0);
}

/* Pages that the file grows by */
TEST_F(log, growth_is_logged)
{
	static const struct pages want[] = { { LOG_PAGES + 2, 1 } };
	char byte = NEW_BYTE;

	ASSERT_EQ(1, pwrite(self->t.fd, &byte, 1,
			    (LOG_PAGES + 2) * self->page));
	expect_log(_metadata, self, MEMFD_SCAN_REPROTECT, want, 1);
	expect_log(_metadata, self, 0, NULL, 0);
}

/* Reads are not logged, though they may map the page */
TEST_F(log, reads_are_not_logged)
{
	static char buf[LOG_PAGES * 4096];

	EXPECT_TRUE(filled_with(self->t.map, self->t.size, OLD_BYTE));
	EXPECT_EQ(self->t.size, pread(self->t.fd, buf, self->t.size, 0));
	EXPECT_EQ(0, madvise(self->t.map, self->t.size, MADV_POPULATE_READ));
	expect_log(_metadata, self, 0, NULL, 0);
	EXPECT_TRUE(no_event(self->t.nfd));
}

/*
 * A write is in this scan or in the next, never in neither: a thread counts in
 * a page, and whenever the scan reports no write the count stands still.
 */
struct counter {
	volatile uint64_t *cell;
	volatile bool stop;
};

static void *count_up(void *arg)
{
	struct counter *c = arg;

	while (!c->stop)
		(*c->cell)++;
	return NULL;
}

TEST_F(log, no_write_between_scans_is_lost)
{
	uint64_t copy, now, end = now_ns() + 2000000000ULL;
	struct counter counter = { 0 };
	unsigned long written = 0, rounds = 0;
	struct memfd_range got[2];
	pthread_t thread;
	int nr;

	counter.cell = (void *)(self->t.map + 3 * self->page);
	ASSERT_EQ(0, pthread_create(&thread, NULL, count_up, &counter));
	nr = scan_range(self->t.nfd, 0, 0, got, 2, MEMFD_SCAN_REPROTECT, NULL);
	copy = *counter.cell;
	while (now_ns() < end) {
		usleep(rounds % 7 * 50);
		now = *counter.cell;
		nr = scan_range(self->t.nfd, 0, 0, got, 2,
				MEMFD_SCAN_REPROTECT, NULL);
		ASSERT_LE(0, nr);
		if (now != copy)
			written++;
		/* Changed between the two copies: this scan has it */
		ASSERT_TRUE(nr == 1 || now == copy)
			TH_LOG("round %lu", rounds);
		copy = *counter.cell;
		rounds++;
	}
	counter.stop = true;
	pthread_join(thread, NULL);
	EXPECT_LT(10, written);
}

/* Pages that a writer holds pinned */

enum holder { HOLD_URING, HOLD_GUP, HOLD_GUP_FAST, HOLD_UDMABUF };

FIXTURE(pinned) {
	struct target t;
	struct io_uring ring;
	struct job job;
	bool held;
};

FIXTURE_VARIANT(pinned) {
	enum holder holder;
};

FIXTURE_VARIANT_ADD(pinned, uring_buffers) { .holder = HOLD_URING };
FIXTURE_VARIANT_ADD(pinned, gup_longterm) { .holder = HOLD_GUP };
FIXTURE_VARIANT_ADD(pinned, gup_longterm_fast) { .holder = HOLD_GUP_FAST };
FIXTURE_VARIANT_ADD(pinned, udmabuf) { .holder = HOLD_UDMABUF };

static long hold_job(FIXTURE_DATA(pinned) *self, const struct path *path)
{
	long ret;

	self->job.path = path;
	ret = path->prepare(&self->job);
	return ret < 0 ? ret : path->run(&self->job);
}

static long hold_page(FIXTURE_DATA(pinned) *self, enum holder holder)
{
	struct job *job = &self->job;
	struct iovec iov;
	long ret;

	switch (holder) {
	case HOLD_URING:
		iov = job_iov(job);
		ret = io_uring_queue_init(4, &job->ring, 0);
		if (ret < 0)
			return ret;
		ret = io_uring_register_buffers(&job->ring, &iov, 1);
		break;
	case HOLD_GUP:
		ret = hold_job(self, &paths[P_gup_pin]);
		break;
	case HOLD_GUP_FAST:
		ret = hold_job(self, &paths[P_gup_pin_fast]);
		break;
	default:
		ret = hold_job(self, &paths[P_udmabuf]);
	}
	self->held = ret >= 0;
	return ret;
}

static void let_go(FIXTURE_DATA(pinned) *self, enum holder holder)
{
	if (!self->held)
		return;
	self->held = false;
	if (holder == HOLD_URING) {
		io_uring_unregister_buffers(&self->job.ring);
		io_uring_queue_exit(&self->job.ring);
	} else if (holder == HOLD_UDMABUF) {
		close_if_open(&self->job.out);
	} else {
		cleanup_gup(&self->job);
	}
	close_if_open(&self->job.src);
}

FIXTURE_SETUP(pinned)
{
	ASSERT_TRUE(target_init(&self->t, NR_PAGES, 0));
	self->job.fd = self->t.fd;
	self->job.nfd = self->t.nfd;
	self->job.map = self->t.map;
	self->job.offset = THE_PAGE * page_size();
	self->job.len = page_size();
	self->job.byte = NEW_BYTE;
	self->job.src = -1;
	self->job.out = -1;
}

FIXTURE_TEARDOWN(pinned)
{
	let_go(self, variant->holder);
	target_exit(&self->t);
}

#define HOLD_OR_SKIP() do { \
	long __held = hold_page(self, variant->holder); \
	if (path_missing(__held)) \
		SKIP(return, "no such holder here"); \
	ASSERT_LE(0, __held); \
} while (0)

/* EBUSY after a bounded time, for every mode; then, let go, it works */
TEST_F(pinned, protect_is_busy)
{
	static const unsigned int modes[] = {
		MEMFD_PROTECT_WAIT, MEMFD_PROTECT_ASYNC, MEMFD_PROTECT_DENY,
	};
	uint64_t start;

	HOLD_OR_SKIP();
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		start = now_ns();
		EXPECT_EQ(-EBUSY, protect_pages(self->t.fd, 0, 0, modes[i]))
			TH_LOG("mode %u", modes[i]);
		EXPECT_GT(15000000000ULL, now_ns() - start);
		/* Nothing is protected: this would kill, or wait forever */
		memset(self->t.map, OLD_BYTE, self->t.size);
		EXPECT_TRUE(no_event(self->t.nfd));
	}
	/* Beside the page it is not busy */
	EXPECT_EQ(0, protect_pages(self->t.fd, 0, THE_PAGE,
				   MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, protect_pages(self->t.fd, THE_PAGE + 1, 0,
				   MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
	let_go(self, variant->holder);
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		EXPECT_EQ(0, protect_pages(self->t.fd, 0, 0, modes[i]))
			TH_LOG("mode %u", modes[i]);
	}
}

static int store_outcome(char *addr, struct outcome *out)
{
	struct job job = { .path = &paths[P_store_atomic], .map = addr };

	memset(out, 0, sizeof(*out));
	run_guarded(run_job, &job, out);
	return out->sig;
}

/*
 * The previous protection stands, older modes included: DENY, WAIT, ASYNC with
 * its log, and none lie side by side before the call that fails.
 */
TEST_F(pinned, previous_protection_is_back)
{
	const size_t page = page_size();
	char *map = self->t.map;
	struct memfd_range range[4];
	struct memfd_event ev;
	struct outcome out;
	struct writer w;
	struct job job;

	HOLD_OR_SKIP();
	ASSERT_EQ(0, protect_pages(self->t.fd, 1, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, protect_pages(self->t.fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->t.fd, 5, 3, MEMFD_PROTECT_ASYNC));
	map[5 * page] = NEW_BYTE;
	drain_events(self->t.nfd);
	for (unsigned int mode = 0; mode < 3; mode++)
		EXPECT_EQ(-EBUSY, protect_pages(self->t.fd, 0, 0, mode));

	EXPECT_EQ(0, store_outcome(map, &out));
	EXPECT_EQ(SIGBUS, store_outcome(map + page, &out));
	EXPECT_EQ(0, store_outcome(map + 2 * page, &out));
	EXPECT_EQ(0, store_outcome(map + 4 * page, &out));
	EXPECT_EQ(0, store_outcome(map + THE_PAGE * page, &out));
	job = self->job;
	job.path = &paths[P_store];
	job.offset = 3 * page;
	ASSERT_TRUE(writer_start(&w, self->t.nfd, run_job, &job));
	ASSERT_TRUE(read_event(self->t.nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_FAULT, ev.type);
	EXPECT_EQ(3 * page, ev.offset);
	writer_free(&w);
	/* A lost log would be a lost write: here it may not be lost */
	EXPECT_EQ(1, scan_range(self->t.nfd, 0, 0, range, 4, 0, NULL));
	EXPECT_EQ(5 * page, range[0].offset);
	EXPECT_EQ(page, range[0].length);
	EXPECT_EQ(0, store_outcome(map + 7 * page, &out));
	EXPECT_EQ(2, scan_range(self->t.nfd, 0, 0, range, 4, 0, NULL));
	EXPECT_EQ(7 * page, range[1].offset);
}

/* A writer that waits when the call fails is not woken by it */
TEST_F(pinned, waiters_keep_waiting)
{
	struct job job;
	struct writer w;

	HOLD_OR_SKIP();
	ASSERT_EQ(0, protect_pages(self->t.fd, 3, 1, MEMFD_PROTECT_WAIT));
	job = self->job;
	job.path = &paths[P_store];
	job.offset = 3 * page_size();
	ASSERT_TRUE(writer_start(&w, self->t.nfd, run_job, &job));
	ASSERT_TRUE(readable(self->t.nfd, LONG_MS));
	EXPECT_EQ(-EBUSY, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(-EBUSY, protect_pages(self->t.fd, 0, 0,
					MEMFD_PROTECT_ASYNC));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(0, w.out->sig);
	writer_free(&w);
}

struct late {
	FIXTURE_DATA(pinned) *self;
	enum holder holder;
	uint64_t end;			/* when it had let go */
};

static void *let_go_late(void *arg)
{
	struct late *late = arg;

	usleep(20000);
	let_go(late->self, late->holder);
	late->end = now_ns();
	return NULL;
}

/* A holder that lets go within the time is waited for. Who was late himself tries again. */
TEST_F(pinned, waits_for_holder)
{
	const uint64_t in_time = 100000000;
	struct late late = { .self = self, .holder = variant->holder };
	struct outcome out;
	pthread_t thread;
	uint64_t start;
	int tries = 0;
	long ret;

	do {
		HOLD_OR_SKIP();
		start = now_ns();
		ASSERT_EQ(0, pthread_create(&thread, NULL, let_go_late, &late));
		ret = protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_DENY);
		pthread_join(thread, NULL);
	} while (ret == -EBUSY && late.end - start > in_time && ++tries < 10);
	EXPECT_EQ(0, ret);
	EXPECT_EQ(SIGBUS, store_outcome(self->t.map + THE_PAGE * page_size(),
					&out));
}

/* Pinned while ASYNC: it stays in the log until it is let go */
TEST_F(pinned, stays_in_log)
{
	const size_t page = page_size();
	struct memfd_range range[2];
	int nfd = self->t.nfd;

	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_ASYNC));
	HOLD_OR_SKIP();
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(1, scan_range(nfd, 0, 0, range, 2,
					MEMFD_SCAN_REPROTECT, NULL))
			TH_LOG("scan %d", i);
		EXPECT_EQ(THE_PAGE * page, range[0].offset);
		EXPECT_EQ(page, range[0].length);
	}
	/* Its neighbours are taken as ever */
	self->t.map[(THE_PAGE - 1) * page] = NEW_BYTE;
	EXPECT_EQ(1, scan_range(nfd, 0, 0, range, 2, MEMFD_SCAN_REPROTECT,
				NULL));
	EXPECT_EQ(2 * page, range[0].length);
	EXPECT_EQ(1, scan_range(nfd, 0, 0, range, 2, MEMFD_SCAN_REPROTECT,
				NULL));
	EXPECT_EQ(page, range[0].length);

	let_go(self, variant->holder);
	EXPECT_EQ(1, scan_range(nfd, 0, 0, range, 2, MEMFD_SCAN_REPROTECT,
				NULL));
	EXPECT_EQ(0, scan_range(nfd, 0, 0, range, 2, MEMFD_SCAN_REPROTECT,
				NULL));
}

/* EINTR: the caller is killed while it waits for the pins */
TEST_F(pinned, caller_killed)
{
	struct outcome out;
	int status;
	pid_t pid;

	HOLD_OR_SKIP();
	pid = fork();
	if (!pid) {
		close(self->t.nfd);
		for (;;)
			protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_DENY);
	}
	sleep_ms(30);
	kill(pid, SIGKILL);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(0, store_outcome(self->t.map, &out));
}

/* Errors that come before EBUSY */
TEST_F(pinned, order_of_errors)
{
	const size_t page = page_size();

	HOLD_OR_SKIP();
	EXPECT_EQ(-EINVAL, sys_memfd_protect(self->t.fd, 0, 0, PROT_READ, 9));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(self->t.fd, 1, page, PROT_READ,
					     MEMFD_PROTECT_DENY));
	close_if_open(&self->t.nfd);
	EXPECT_EQ(-ENXIO, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-EBUSY, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
}

/* What must not lose the protection of a page */

/* Larger than a huge page, on its boundary, so that one can form */
#define KEEP_SIZE	(4UL << 20)
#define HUGE_SIZE	(2UL << 20)

FIXTURE(keeps) {
	int fd;
	int nfd;
	char *map;
	char *page;	/* address of the protected page */
	size_t nr;	/* its number */
	char old_huge[64];
};

FIXTURE_VARIANT(keeps) {
	const char *(*disturb)(FIXTURE_DATA(keeps) *self);
	unsigned int mode;
	const char *huge;	/* for shmem_enabled, if not as it is */
};

/* An address at which a huge page could be mapped */
static char *map_aligned(int fd, size_t size)
{
	char *area, *start;

	area = mmap(NULL, size + HUGE_SIZE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		return area;
	start = (char *)(((uintptr_t)area + HUGE_SIZE - 1) & -HUGE_SIZE);
	return mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		    fd, 0);
}

FIXTURE_SETUP(keeps)
{
	if (variant->huge && !set_shmem_huge(variant->huge, self->old_huge,
					     sizeof(self->old_huge)))
		SKIP(return, "no huge pages of shmem");
	self->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, KEEP_SIZE));
	self->map = map_aligned(self->fd, KEEP_SIZE);
	ASSERT_NE(MAP_FAILED, self->map);
	memset(self->map, OLD_BYTE, KEEP_SIZE);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	self->nr = 77;
	self->page = self->map + self->nr * page_size();
}

FIXTURE_TEARDOWN(keeps)
{
	if (self->old_huge[0])
		set_shmem_huge(self->old_huge, NULL, 0);
	close(self->nfd);
	close(self->fd);
}

/* What may happen to a page; NULL, or why it cannot be done here */

static const char *page_out(FIXTURE_DATA(keeps) *self)
{
	struct sysinfo info;

	if (sysinfo(&info) || !info.totalswap)
		return "no swap";
	for (int i = 0; i < 200 && !swapped_kb(self->fd, self->nr, 1); i++) {
		madvise(self->map, KEEP_SIZE, MADV_PAGEOUT);
		usleep(2000);
	}
	return swapped_kb(self->fd, self->nr, 1) ? NULL :
		"the page does not leave";
}

static const char *page_out_and_read(FIXTURE_DATA(keeps) *self)
{
	const char *why = page_out(self);

	if (!why && *(volatile char *)self->page != OLD_BYTE)
		return "what came back is not what went";
	return why;
}

static long move_to_node(char *addr, int node)
{
	void *pages[1] = { addr };
	int nodes[1] = { node }, status[1] = { -1 };

	/* Only what is mapped is moved */
	(void)*(volatile char *)addr;
	if (syscall(__NR_move_pages, 0, 1, pages, nodes, status, 2))
		return -errno;
	return status[0];
}

static const char *migrate(FIXTURE_DATA(keeps) *self)
{
	if (access("/sys/devices/system/node/node1", F_OK))
		return "one node only";
	if (move_to_node(self->page, 1) != 1)
		return "the page does not move";
	return move_to_node(self->page, 0) ? "it does not come back" : NULL;
}

static const char *compact(FIXTURE_DATA(keeps) *self)
{
	return write_file("/proc/sys/vm/compact_memory", "1") ? NULL :
		"no compaction";
}

static unsigned long shmem_huge_kb(void)
{
	static char text[8192];
	char *line;

	if (!read_file("/proc/meminfo", text, sizeof(text)))
		return 0;
	line = strstr(text, "ShmemHugePages:");
	return line ? strtoul(line + 15, NULL, 10) : 0;
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

static const char *collapse(FIXTURE_DATA(keeps) *self)
{
	for (int i = 0; i < 20 && !shmem_huge_kb(); i++) {
		madvise(self->map, HUGE_SIZE, MADV_COLLAPSE);
		usleep(5000);
	}
	return shmem_huge_kb() ? NULL : "no huge page forms";
}

static const char *mprotect_round_trip(FIXTURE_DATA(keeps) *self)
{
	static const int prots[] = {
		PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, PROT_WRITE,
		PROT_READ | PROT_WRITE | PROT_EXEC,
	};

	for (size_t i = 0; i < ARRAY_SIZE(prots); i++)
		if (mprotect(self->map, KEEP_SIZE, prots[i]) ||
		    mprotect(self->map, KEEP_SIZE, PROT_READ | PROT_WRITE))
			return "mprotect";
	/* Only the page itself, so that VMAs are split and merged */
	if (mprotect(self->page, page_size(), PROT_NONE) ||
	    mprotect(self->page, page_size(), PROT_READ | PROT_WRITE))
		return "mprotect of the page";
	return NULL;
}

/* To another place; nothing is left at the old one */
static const char *move_mapping(FIXTURE_DATA(keeps) *self)
{
	char *to = map_aligned(self->fd, KEEP_SIZE);

	if (to == MAP_FAILED)
		return "mmap";
	to = mremap(self->map, KEEP_SIZE, KEEP_SIZE,
		    MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (to == MAP_FAILED)
		return "mremap";
	self->map = to;
	self->page = to + self->nr * page_size();
	return NULL;
}

/* By less than a huge page, so that no page table moves as a whole */
static const char *move_mapping_unaligned(FIXTURE_DATA(keeps) *self)
{
	char *to;

	to = mmap(NULL, KEEP_SIZE + 3 * page_size(), PROT_NONE,
		  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to == MAP_FAILED)
		return "mmap";
	to = mremap(self->map, KEEP_SIZE, KEEP_SIZE,
		    MREMAP_MAYMOVE | MREMAP_FIXED, to + page_size());
	if (to == MAP_FAILED)
		return "mremap";
	self->map = to;
	self->page = to + self->nr * page_size();
	return NULL;
}

/* A second mapping made of the first one */
static const char *duplicate_mapping(FIXTURE_DATA(keeps) *self)
{
	char *to = mremap(self->map, 0, KEEP_SIZE, MREMAP_MAYMOVE);

	if (to == MAP_FAILED)
		return "mremap";
	self->map = to;
	self->page = to + self->nr * page_size();
	return NULL;
}

/* Another order of the pages: the offset counts, not the place */
static const char *remap_pages(FIXTURE_DATA(keeps) *self)
{
	if (syscall(__NR_remap_file_pages, self->map, page_size(), 0, self->nr,
		    0))
		return "no remap_file_pages";
	self->page = self->map;
	return NULL;
}

static const char *map_again(FIXTURE_DATA(keeps) *self)
{
	if (munmap(self->map, KEEP_SIZE))
		return "munmap";
	self->map = map_aligned(self->fd, KEEP_SIZE);
	self->page = self->map + self->nr * page_size();
	return self->map == MAP_FAILED ? "mmap" : NULL;
}

static const char *drop_entries(FIXTURE_DATA(keeps) *self)
{
	return madvise(self->map, KEEP_SIZE, MADV_DONTNEED) ? "madvise" : NULL;
}

static const char *advise_everything(FIXTURE_DATA(keeps) *self)
{
	static const int advice[] = {
		MADV_COLD, MADV_WILLNEED, MADV_SEQUENTIAL, MADV_RANDOM,
		MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_HUGEPAGE,
		MADV_POPULATE_READ, MADV_NOHUGEPAGE,
	};

	for (size_t i = 0; i < ARRAY_SIZE(advice); i++)
		madvise(self->map, KEEP_SIZE, advice[i]);
	return NULL;
}

static const char *lock_and_unlock(FIXTURE_DATA(keeps) *self)
{
	if (mlock(self->map, HUGE_SIZE))
		return "mlock";
	return munlock(self->map, HUGE_SIZE) ? "munlock" : NULL;
}

static const char *clear_soft_dirty(FIXTURE_DATA(keeps) *self)
{
	for (int i = 0; i < 3; i++) {
		if (!write_file("/proc/self/clear_refs", "4"))
			return "no soft-dirty";
		self->map[(self->nr + 1) * page_size()] = OLD_BYTE;
	}
	return write_file("/proc/self/clear_refs", "1") ? NULL : "clear_refs";
}

static const char *sync_file(FIXTURE_DATA(keeps) *self)
{
	if (msync(self->map, KEEP_SIZE, MS_SYNC) || fsync(self->fd) ||
	    sync_file_range(self->fd, 0, 0, SYNC_FILE_RANGE_WRITE))
		return "sync";
	return NULL;
}

/* Children come and go with copies of the mapping */
static const char *fork_children(FIXTURE_DATA(keeps) *self)
{
	int status;
	pid_t pid;

	for (int i = 0; i < 3; i++) {
		pid = fork();
		if (!pid)
			_exit(*(volatile char *)self->page != OLD_BYTE);
		if (waitpid(pid, &status, 0) != pid || status)
			return "fork";
	}
	return NULL;
}

static const char *grow_file(FIXTURE_DATA(keeps) *self)
{
	if (ftruncate(self->fd, 2 * KEEP_SIZE) ||
	    fallocate(self->fd, 0, 0, KEEP_SIZE))
		return "grow";
	return NULL;
}

/* Holes around the page, up to its edges */
static const char *punch_around(FIXTURE_DATA(keeps) *self)
{
	const off_t page = page_size(), at = self->nr * page;
	const int how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	if (fallocate(self->fd, how, 0, at) ||
	    fallocate(self->fd, how, at + page, KEEP_SIZE - at - page))
		return "fallocate";
	return NULL;
}

#define KEEP_VARIANT(_name, _fn, _huge, _mode) \
FIXTURE_VARIANT_ADD(keeps, _name##_##_mode) { \
	.disturb = _fn, .huge = _huge, .mode = MEMFD_PROTECT_##_mode, \
}

#define KEEP(_name, _fn, _huge) \
	KEEP_VARIANT(_name, _fn, _huge, WAIT); \
	KEEP_VARIANT(_name, _fn, _huge, DENY); \
	KEEP_VARIANT(_name, _fn, _huge, ASYNC)

KEEP(page_out, page_out, NULL);
KEEP(page_out_and_read, page_out_and_read, NULL);
KEEP(migrate, migrate, NULL);
KEEP(compact, compact, NULL);
KEEP(collapse, collapse, NULL);
KEEP(mprotect, mprotect_round_trip, NULL);
KEEP(mremap, move_mapping, NULL);
KEEP(mremap_unaligned, move_mapping_unaligned, NULL);
KEEP(mremap_duplicate, duplicate_mapping, NULL);
KEEP(remap_file_pages, remap_pages, NULL);
KEEP(munmap_mmap, map_again, NULL);
KEEP(dontneed, drop_entries, NULL);
KEEP(madvise, advise_everything, NULL);
KEEP(mlock, lock_and_unlock, NULL);
KEEP(clear_refs, clear_soft_dirty, NULL);
KEEP(sync, sync_file, NULL);
KEEP(fork, fork_children, NULL);
KEEP(grow, grow_file, NULL);
KEEP(punch_around, punch_around, NULL);
KEEP(huge_alone, drop_entries, "always");
KEEP(huge_page_out, page_out, "always");
KEEP(huge_migrate, migrate, "always");
KEEP(huge_mprotect, mprotect_round_trip, "always");
KEEP(huge_mremap, move_mapping, "always");
KEEP(huge_punch_around, punch_around, "always");
KEEP(huge_clear_refs, clear_soft_dirty, "always");

struct store_thread {
	char *addr;
	struct outcome out;
	pthread_t thread;
};

static void *store_thread(void *arg)
{
	struct store_thread *t = arg;

	store_outcome(t->addr, &t->out);
	t->out.done = 2;
	return NULL;
}

/* A store in this address space waits; it is denied, so the page stays */
static void check_store_waits(struct __test_metadata *_metadata,
			      FIXTURE_DATA(keeps) *self)
{
	struct store_thread t = { .addr = self->page };
	struct memfd_event ev;

	ASSERT_EQ(0, pthread_create(&t.thread, NULL, store_thread, &t));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_FAULT, ev.type);
	EXPECT_EQ(self->nr * page_size(), ev.offset);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	ASSERT_TRUE(reaches(&t.out.done, 2));
	pthread_join(t.thread, NULL);
	EXPECT_EQ(SIGBUS, t.out.sig);
}

static void check_store_logged(struct __test_metadata *_metadata,
			       FIXTURE_DATA(keeps) *self)
{
	struct memfd_range range[2];

	EXPECT_EQ(0, scan_range(self->nfd, 0, 0, range, 2, 0, NULL));
	for (int i = 0; i < 2; i++) {
		*(volatile char *)self->page = OLD_BYTE;
		EXPECT_EQ(1, scan_range(self->nfd, 0, 0, range, 2,
					MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_EQ(self->nr * page_size(), range[0].offset);
		EXPECT_EQ(page_size(), range[0].length);
	}
	EXPECT_EQ(0, scan_range(self->nfd, 0, 0, range, 2, 0, NULL));
}

static void check_caught(struct __test_metadata *_metadata,
			 FIXTURE_DATA(keeps) *self, unsigned int mode)
{
	struct outcome out;

	if (mode == MEMFD_PROTECT_WAIT) {
		check_store_waits(_metadata, self);
	} else if (mode == MEMFD_PROTECT_ASYNC) {
		check_store_logged(_metadata, self);
	} else {
		EXPECT_EQ(SIGBUS, store_outcome(self->page, &out));
		EXPECT_EQ(BUS_ADRERR, out.code);
	}
	EXPECT_TRUE(filled_with(self->page, page_size(), OLD_BYTE));
}

/* After the disturbance: caught, twice, and the neighbours are open */
TEST_F(keeps, protected_then_disturbed)
{
	const size_t page = page_size();
	struct outcome out;
	const char *why;

	*self->page = OLD_BYTE;
	ASSERT_EQ(0, protect_pages(self->fd, self->nr, 1, variant->mode));
	for (int i = 0; i < 2; i++) {
		why = variant->disturb(self);
		if (why)
			SKIP(return, "%s", why);
		check_caught(_metadata, self, variant->mode);
	}
	if (self->page != self->map) {
		EXPECT_EQ(0, store_outcome(self->page - page, &out));
		EXPECT_EQ(0, store_outcome(self->page + page, &out));
	}
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, store_outcome(self->page, &out));
	EXPECT_TRUE(no_event(self->nfd));
}

/* The page is swapped out, migrated, split when protection comes */
TEST_F(keeps, disturbed_then_protected)
{
	struct outcome out;
	const char *why;

	for (int i = 0; i < 2; i++) {
		*self->page = OLD_BYTE;
		why = variant->disturb(self);
		if (why)
			SKIP(return, "%s", why);
		ASSERT_EQ(0, protect_pages(self->fd, self->nr, 1,
					   variant->mode));
		check_caught(_metadata, self, variant->mode);
		ASSERT_EQ(0, unprotect_pages(self->fd, self->nr, 1));
		EXPECT_EQ(0, store_outcome(self->page, &out));
		*self->page = OLD_BYTE;
	}
	EXPECT_TRUE(no_event(self->nfd));
}

/* Neighbours and extremes */

FIXTURE(near) {
	struct target t;
	size_t page;
};

FIXTURE_SETUP(near)
{
	self->page = page_size();
	ASSERT_TRUE(target_init(&self->t, 64, 0));
}

FIXTURE_TEARDOWN(near)
{
	target_exit(&self->t);
}

/* A fault may make open neighbours writable, never protected ones */
TEST_F(near, every_other_page)
{
	struct outcome out;

	for (size_t i = 1; i < 64; i += 2)
		ASSERT_EQ(0, protect_pages(self->t.fd, i, 1,
					   MEMFD_PROTECT_DENY));
	for (int round = 0; round < 3; round++) {
		ASSERT_EQ(0, madvise(self->t.map, self->t.size,
				     MADV_DONTNEED));
		for (size_t i = 0; i < 64; i++) {
			size_t at = (i * 13 + round) % 64;

			EXPECT_EQ(at % 2 ? SIGBUS : 0,
				  store_outcome(self->t.map + at * self->page,
						&out)) TH_LOG("page %zu", at);
		}
	}
}

/* In an ASYNC range a fault logs the page that is written, and no other */
TEST_F(near, async_logs_only_what_is_written)
{
	struct memfd_range range[8];

	for (int fresh = 0; fresh < 2; fresh++) {
		ASSERT_EQ(0, protect_pages(self->t.fd, 0, 0,
					   MEMFD_PROTECT_ASYNC));
		if (fresh) {
			ASSERT_EQ(0, madvise(self->t.map, self->t.size,
					     MADV_DONTNEED));
		}
		self->t.map[30 * self->page] = NEW_BYTE;
		EXPECT_EQ(1, scan_range(self->t.nfd, 0, 0, range, 8, 0, NULL));
		EXPECT_EQ(30 * self->page, range[0].offset);
		EXPECT_EQ(self->page, range[0].length);
	}
}

/* Open, DENY and ASYNC in turns */
TEST_F(near, three_kinds_in_turns)
{
	struct memfd_range range[64];
	struct outcome out;
	int nr;

	for (size_t i = 0; i < 64; i++) {
		if (i % 3) {
			ASSERT_EQ(0, protect_pages(self->t.fd, i, 1, i % 3));
		}
	}
	ASSERT_EQ(0, madvise(self->t.map, self->t.size, MADV_DONTNEED));
	for (size_t i = 0; i < 64; i++)
		EXPECT_EQ(i % 3 == MEMFD_PROTECT_DENY ? SIGBUS : 0,
			  store_outcome(self->t.map + i * self->page, &out));
	nr = scan_range(self->t.nfd, 0, 0, range, 64, MEMFD_SCAN_REPROTECT,
			NULL);
	EXPECT_EQ(21, nr);
	for (int i = 0; i < nr; i++) {
		EXPECT_EQ((3 * i + 1) * self->page, range[i].offset);
		EXPECT_EQ(self->page, range[i].length);
	}
}

/* Empty offsets cost one operation, however many they are */
TEST_F(near, large_and_empty)
{
	const size_t size = 64UL << 30;
	uint64_t start, small, large;
	char byte = NEW_BYTE;

	ASSERT_EQ(0, ftruncate(self->t.fd, size));
	start = now_ns();
	ASSERT_EQ(0, protect_pages(self->t.fd, 100, 1, MEMFD_PROTECT_DENY));
	small = now_ns() - start;
	start = now_ns();
	ASSERT_EQ(0, protect_pages(self->t.fd, 100, size / self->page - 100,
				   MEMFD_PROTECT_DENY));
	large = now_ns() - start;
	TH_LOG("1 page %llu us, 64 GiB %llu us",
	       (unsigned long long)small / 1000,
	       (unsigned long long)large / 1000);
	EXPECT_GT(200000000ULL, large);
	EXPECT_EQ(-EPERM, neg_errno(pwrite(self->t.fd, &byte, 1,
					   size - self->page)));
	EXPECT_EQ(-EPERM, neg_errno(pwrite(self->t.fd, &byte, 1,
					   size / 2 + 5)));
	EXPECT_EQ(1, pwrite(self->t.fd, &byte, 1, size));
	EXPECT_EQ(0, unprotect_pages(self->t.fd, 0, 0));
	EXPECT_EQ(1, pwrite(self->t.fd, &byte, 1, size / 2 + 5));
}

/* Very many ranges, and one call that replaces them */
TEST_F(near, many_ranges)
{
	const size_t nr = 4000;
	char byte = NEW_BYTE;

	for (size_t i = 0; i < nr; i += 2)
		ASSERT_EQ(0, protect_pages(self->t.fd, i, 1,
					   MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < nr; i += 37)
		EXPECT_EQ(i % 2 ? 1 : -EPERM,
			  neg_errno(pwrite(self->t.fd, &byte, 1,
					   i * self->page)));
	EXPECT_EQ(0, unprotect_pages(self->t.fd, 1, nr - 2));
	EXPECT_EQ(-EPERM, neg_errno(pwrite(self->t.fd, &byte, 1, 0)));
	for (size_t i = 1; i < nr - 2; i += 37)
		EXPECT_EQ(1, pwrite(self->t.fd, &byte, 1, i * self->page));
}

/* A kernel-mode access that failed has opened nothing */
TEST_F(near, kernel_fault_opens_nothing)
{
	struct memfd_event ev;
	struct store_thread t = { .addr = self->t.map + 3 * self->page };

	ASSERT_EQ(0, protect_pages(self->t.fd, 3, 1, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(-EFAULT, neg_errno(syscall(__NR_getrandom, t.addr,
						     8, 0)));
		EXPECT_LT(0, drain_events(self->t.nfd));
	}
	ASSERT_EQ(0, pthread_create(&t.thread, NULL, store_thread, &t));
	ASSERT_TRUE(read_event(self->t.nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_F_WAITING, ev.flags);
	EXPECT_EQ(0, resolve(self->t.nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	ASSERT_TRUE(reaches(&t.out.done, 2));
	pthread_join(t.thread, NULL);
	EXPECT_EQ(0, t.out.sig);
}

/* Nobody reads, and many kernel-mode accesses fail: memory is bounded */
TEST_F(near, kernel_faults_unread)
{
	unsigned int nr;

	ASSERT_EQ(0, protect_pages(self->t.fd, 0, 0, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < 2000; i++) {
		void *to = self->t.map + i % 8 * self->page;

		EXPECT_EQ(-EFAULT,
			  neg_errno(syscall(__NR_getrandom, to, 8, 0)));
	}
	nr = drain_events(self->t.nfd);
	EXPECT_LE(8, nr);
	TH_LOG("2000 accesses to 8 pages left %u records", nr);
}

/* userfaultfd would fill pages behind our back: it is refused */
TEST_F(near, userfaultfd_refused)
{
	static const unsigned int modes[] = {
		UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { 0 };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd");
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		reg.range.start = (uintptr_t)self->t.map;
		reg.range.len = self->t.size;
		reg.mode = modes[i];
		EXPECT_EQ(-EINVAL, neg_errno(ioctl(uffd, UFFDIO_REGISTER,
						   &reg)))
			TH_LOG("mode %#x", modes[i]);
	}
	close(uffd);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
