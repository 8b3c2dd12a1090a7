// SPDX-License-Identifier: GPL-2.0-only
/*
 * What one user can do to others. He fills memory: it is charged to his memory cgroup,
 * whose limit stops him. He keeps writers waiting: each can be killed, by whichever path it
 * came, and so can the threads beside it. No kernel thread that comes across his
 * pages waits for him.
 *
 * Each has its control: what fills memory does so without a limit, who is killed was
 * waiting, and who is found waiting in a stack is looked for in the same way.
 */
#include "memfd_protect_paths.h"

#include <dirent.h>
#include <sys/resource.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	400

#define CGROUP_ROOT	"/sys/fs/cgroup"
#define CGROUP		CGROUP_ROOT "/memfd_protect_dos"
#define KIB		1024L
#define MIB		(1024 * KIB)
#define HUGE_SIZE	(2UL * MIB)
#define THE_PAGE	11
#define NR_PAGES	16

/* Another user than that of the test */
#define USER		1001

#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES	0x00200000U
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE	23
#endif

static long number_in(const char *path, const char *key)
{
	static char text[1 << 16];
	char *line;

	if (!read_file(path, text, sizeof(text)))
		return -1;
	line = key ? strstr(text, key) : text;
	return line ? atol(line + (key ? strlen(key) : 0)) : -1;
}

/* What is free, with the lists of the processors, or would be if it were wanted */
static long available_kib(void)
{
	long kib = number_in("/proc/meminfo", "MemFree:") +
		   number_in("/proc/meminfo", "Active(file):") +
		   number_in("/proc/meminfo", "Inactive(file):") +
		   number_in("/proc/meminfo", "SReclaimable:");
	FILE *zones = fopen("/proc/zoneinfo", "re");
	char line[256];
	long pages;

	while (zones && fgets(line, sizeof(line), zones))
		if (sscanf(line, " count: %ld", &pages) == 1)
			kib += pages * page_size() / KIB;
	if (zones)
		fclose(zones);
	return kib;
}

/* A file, mapped where a huge page could be */
static char *map_huge(int fd, size_t size)
{
	char *area = mmap(NULL, size + HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		return area;
	munmap(area, size + HUGE_SIZE);
	area = (char *)(((uintptr_t)area + HUGE_SIZE - 1) & -HUGE_SIZE);
	return mmap(area, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* Part 1: memory */

/* Goes on until it cannot, or has been told enough */
struct hog {
	volatile unsigned long items;
	volatile bool stopped;		/* by an error */
	unsigned long wanted;
	int fd;
	int nfd;
	char *map;
	size_t size;
};

/* Ranges that share no part of the tree */
static bool hog_ranges(struct hog *h)
{
	return !protect_pages(h->fd, h->items << 15, 1, MEMFD_PROTECT_DENY);
}

/* Reports of accesses that fail, which nobody reads: one for each page */
static bool hog_reports(struct hog *h)
{
	char *page = h->map + (h->items << 12) % h->size;

	return madvise(page, page_size(), MADV_POPULATE_WRITE) && errno != ENOMEM;
}

/* Logged pages, with no two in the same part of the log. The pages count as well. */
static bool hog_log(struct hog *h)
{
	size_t at = (h->items << 21) % h->size;

	*(volatile char *)(h->map + at) = 1;
	return true;
}

/* Files with an event fd each; they stay open until the hog dies */
static bool hog_event_fds(struct hog *h)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);

	return fd >= 0 && sys_memfd_notify(fd, 0) >= 0;
}

static void *sleeper(void *arg)
{
	struct hog *h = arg;

	h->map[0] = 1;
	return NULL;
}

/* Threads that wait: each has an event, or joins one */
static bool hog_waiters(struct hog *h)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * KIB);
	return !pthread_create(&thread, &attr, sleeper, h);
}

/* A file that shares its page tables, which have an owner: once for each file */
static int sharing_file(void)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_SHARE_PGTABLES);

	return fd >= 0 && !ftruncate(fd, HUGE_SIZE) ? fd : -1;
}

static bool hog_hosts(struct hog *h)
{
	int fd = sharing_file();
	char *map = map_huge(fd, HUGE_SIZE);

	close(fd);
	if (map == MAP_FAILED)
		return false;
	*(volatile char *)map = 1;
	return true;
}

/* Mappings of one file, each of which links */
static bool hog_guests(struct hog *h)
{
	static int fd = -1;
	char *map;

	if (fd < 0)
		fd = sharing_file();
	map = map_huge(fd, HUGE_SIZE);
	if (map == MAP_FAILED)
		return false;
	*(volatile char *)map = 1;
	return true;
}

enum hog_nr {
	HOG_RANGES, HOG_REPORTS, HOG_LOG, HOG_EVENT_FDS, HOG_WAITERS, HOG_HOSTS, HOG_GUESTS
};

static const struct hog_kind {
	const char *name;
	bool (*add)(struct hog *h);
	unsigned int mode;		/* of the whole file before */
	size_t size;			/* of the file */
	unsigned long items;		/* what a limit of half of that stops */
	unsigned long many;		/* what is more than the system's memory varies by */
} hogs[] = {
	[HOG_RANGES] = { "ranges", hog_ranges, MODE_NONE, 0, 1 << 14, 1 << 17 },
	[HOG_REPORTS] = { "reports", hog_reports, MEMFD_PROTECT_WAIT, 1L << 36, 1 << 15,
			  1 << 18 },
	[HOG_LOG] = { "log", hog_log, MEMFD_PROTECT_ASYNC, 1L << 36, 1 << 11, 1 << 13 },
	[HOG_EVENT_FDS] = { "event fds", hog_event_fds, MODE_NONE, 0, 1500, 7000 },
	[HOG_WAITERS] = { "waiters", hog_waiters, MEMFD_PROTECT_WAIT, 4096, 300, 2000 },
	[HOG_HOSTS] = { "hosts", hog_hosts, MODE_NONE, 0, 300, 2000 },
	[HOG_GUESTS] = { "guests", hog_guests, MODE_NONE, 0, 6000, 60000 },
};

static bool group_make(const char *limit)
{
	write_file(CGROUP_ROOT "/cgroup.subtree_control", "+memory");
	rmdir(CGROUP);
	return (!mkdir(CGROUP, 0755) || errno == EEXIST) &&
	       write_file(CGROUP "/memory.max", limit) &&
	       (access(CGROUP "/memory.swap.max", F_OK) ||
		write_file(CGROUP "/memory.swap.max", "0"));
}

static bool group_enter(void)
{
	return write_file(CGROUP "/cgroup.procs", "0");
}

static bool become_user(void)
{
	return !setgid(USER) && !setuid(USER);
}

/* An unprivileged process that fills memory in the group, and then sleeps */
static void hog_run(struct hog *h, const struct hog_kind *kind)
{
	struct rlimit files = { 16384, 16384 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setrlimit(RLIMIT_NOFILE, &files);
	if (!group_enter() || !become_user())
		_exit(1);
	h->size = kind->size;
	h->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	h->nfd = sys_memfd_notify(h->fd, 0);
	if (h->fd < 0 || h->nfd < 0 || ftruncate(h->fd, h->size))
		_exit(1);
	if (h->size)
		h->map = mmap(NULL, h->size, PROT_READ | PROT_WRITE, MAP_SHARED |
			      MAP_NORESERVE, h->fd, 0);
	if (kind->mode != MODE_NONE && protect_pages(h->fd, 0, 0, kind->mode))
		_exit(1);
	while (h->items < h->wanted && kind->add(h))
		h->items++;
	h->stopped = true;
	for (;;)
		pause();
}

static pid_t hog_start(struct hog *h, const struct hog_kind *kind, unsigned long wanted)
{
	pid_t pid;

	h->items = 0;
	h->stopped = false;
	h->wanted = wanted;
	pid = fork();
	if (!pid)
		hog_run(h, kind);
	return pid;
}

/* Whether it was killed before it had all that it wanted */
static bool hog_ends(struct hog *h, pid_t pid, bool *killed)
{
	uint64_t end = now_ns() + 100000000000ULL;
	siginfo_t info = {};

	while (!h->stopped && now_ns() < end) {
		waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT);
		if (info.si_pid)
			break;
		usleep(20000);
	}
	*killed = info.si_pid && info.si_code == CLD_KILLED;
	return h->stopped || *killed;
}

static void hog_bury(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	rmdir(CGROUP);
}

/*
 * Without a limit: what has gone of the system's memory is in the group's account.
 * Checkers take memory for each allocation, and keep for a while what is given back: on
 * their kernels it is only seen that something is charged. *@rest is what is not charged.
 */
static long hog_charged(struct __test_metadata *_metadata, struct hog *h,
			const struct hog_kind *kind, unsigned long items, long *rest)
{
	long before, gone, charged;
	bool killed;
	pid_t pid;

	EXPECT_TRUE(group_make("max"));
	write_file("/proc/sys/vm/drop_caches", "3");
	before = available_kib();
	pid = hog_start(h, kind, items);
	EXPECT_TRUE(hog_ends(h, pid, &killed));
	EXPECT_EQ(items, h->items);
	gone = (before - available_kib()) * KIB;
	charged = number_in(CGROUP "/memory.current", NULL);
	hog_bury(pid);
	TH_LOG("%s: %lu take %ld KiB of the system, %ld KiB are charged", kind->name,
	       h->items, gone / KIB, charged / KIB);
	*rest = 0;
	if (items == kind->many) {
		EXPECT_LT(12 * MIB, gone);
		/* The kernel does not charge its tree of mappings */
		if (kind->add == hog_guests)
			charged += items * 64;
		*rest = gone - (charged + charged / 8 + 4 * MIB);
	}
	return charged;
}

static void hog_limited(struct __test_metadata *_metadata, struct hog *h,
			const struct hog_kind *kind, long limit)
{
	char text[32];
	long peak;
	bool killed;
	pid_t pid;

	snprintf(text, sizeof(text), "%ld", limit);
	EXPECT_TRUE(group_make(text));
	pid = hog_start(h, kind, kind->items);
	EXPECT_TRUE(hog_ends(h, pid, &killed));
	peak = number_in(CGROUP "/memory.peak", NULL);
	hog_bury(pid);
	TH_LOG("%s: %s after %lu of %lu; the limit is %ld KiB, and the peak was %ld",
	       kind->name, killed ? "killed" : "stopped", h->items, kind->items,
	       limit / KIB, peak / KIB);
	EXPECT_GT(kind->items, h->items);
	EXPECT_GT(limit + limit / 8 + MIB, peak);
}

FIXTURE(memory) {
	struct hog *hog;
};

FIXTURE_VARIANT(memory) {
	enum hog_nr nr;
};

FIXTURE_VARIANT_ADD(memory, of_ranges) { .nr = HOG_RANGES };
FIXTURE_VARIANT_ADD(memory, of_reports) { .nr = HOG_REPORTS };
FIXTURE_VARIANT_ADD(memory, of_the_log) { .nr = HOG_LOG };
FIXTURE_VARIANT_ADD(memory, of_event_fds) { .nr = HOG_EVENT_FDS };
FIXTURE_VARIANT_ADD(memory, of_waiters) { .nr = HOG_WAITERS };
FIXTURE_VARIANT_ADD(memory, of_sharing_files) { .nr = HOG_HOSTS };
FIXTURE_VARIANT_ADD(memory, of_sharing_mappings) { .nr = HOG_GUESTS };

FIXTURE_SETUP(memory)
{
	if (getuid() || !group_make("max") || number_in(CGROUP "/memory.current", NULL) < 0)
		SKIP(return, "no memory cgroup");
	if (variant->nr >= HOG_HOSTS && sharing_file() < 0)
		SKIP(return, "no shared page tables");
	self->hog = mmap(NULL, sizeof(*self->hog), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->hog);
}

FIXTURE_TEARDOWN(memory)
{
	munmap(self->hog, sizeof(*self->hog));
	rmdir(CGROUP);
}

TEST_F(memory, is_charged_and_limited)
{
	const struct hog_kind *kind = &hogs[variant->nr];
	bool exact = access("/sys/kernel/debug/kmemleak", F_OK);
	long charged, rest = exact;

	/* What others take meanwhile is not there each time */
	for (int i = 0; i < 3 && rest > 0; i++)
		hog_charged(_metadata, self->hog, kind, kind->many, &rest);
	EXPECT_GE(0, rest);
	charged = hog_charged(_metadata, self->hog, kind, kind->items, &rest);
	EXPECT_LT(MIB, charged);
	hog_limited(_metadata, self->hog, kind, charged / 2);
}

/*
 * Huge entries give way to page tables where a part is protected: one for each mapping.
 * They are charged, and where the limit is reached entries go instead.
 */
#define SPLIT_BLOCKS	16
#define SPLIT_MAPS	500

struct split {
	volatile long before;		/* what is charged */
	volatile bool done;
	volatile bool right;		/* stores to the last mapping */
};

static long store_byte(void *arg)
{
	*(volatile char *)arg = NEW_BYTE;
	return 0;
}

static int signal_of_store(char *at)
{
	struct outcome out = { 0 };

	run_guarded(store_byte, at, &out);
	return out.sig;
}

static void split_run(struct split *s, bool limited)
{
	char *map, *last = NULL, text[32];
	size_t size = SPLIT_BLOCKS * HUGE_SIZE;
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (fd < 0 || ftruncate(fd, size) || !group_enter())
		_exit(1);
	for (int i = 0; i < SPLIT_MAPS; i++) {
		map = map_huge(fd, size);
		if (map == MAP_FAILED)
			_exit(1);
		if (!i)
			memset(map, OLD_BYTE, size);
		if (!i && madvise(map, size, MADV_COLLAPSE))
			_exit(KSFT_SKIP);
		for (size_t at = 0; at < size; at += HUGE_SIZE)
			(void)*(volatile char *)(map + at);
		last = map;
	}
	s->before = number_in(CGROUP "/memory.current", NULL);
	snprintf(text, sizeof(text), "%ld", s->before + 4 * MIB);
	if (limited && !write_file(CGROUP "/memory.max", text))
		_exit(1);
	for (int i = 0; i < SPLIT_BLOCKS; i++)
		if (protect_pages(fd, i * HUGE_SIZE / page_size() + THE_PAGE, 1,
				  MEMFD_PROTECT_DENY))
			_exit(1);
	s->right = signal_of_store(last + THE_PAGE * page_size()) == SIGBUS &&
		   !signal_of_store(last + (THE_PAGE + 1) * page_size());
	/* Stores need memory, too: it may be killed for it. */
	s->done = true;
	_exit(0);
}

TEST(tables_of_split_entries)
{
	const long tables = SPLIT_BLOCKS * SPLIT_MAPS * 4 * KIB;
	struct split *s;

	if (getuid() || !group_make("max") || number_in(CGROUP "/memory.current", NULL) < 0)
		SKIP(return, "no memory cgroup");
	s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, s);
	for (int limited = 0; limited < 2; limited++) {
		long more;
		int status;
		pid_t pid;

		memset(s, 0, sizeof(*s));
		ASSERT_TRUE(group_make("max"));
		pid = fork();
		if (!pid)
			split_run(s, limited);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
			SKIP(break, "no huge pages");
		more = number_in(CGROUP "/memory.peak", NULL) - s->before;
		TH_LOG("%s a limit: %ld KiB more are charged%s", limited ? "with" : "without",
		       more / KIB, s->done ? "" : ", and it is killed");
		/* What it wants then that it must have, kills it */
		if (limited) {
			EXPECT_GT(5 * MIB, more);
		} else {
			EXPECT_LT(tables / 10 * 9, more);
			EXPECT_TRUE(s->done);
		}
		if (s->done) {
			EXPECT_EQ(0, status);
			EXPECT_TRUE(s->right);
		}
	}
	munmap(s, sizeof(*s));
	rmdir(CGROUP);
}

/* Part 2: who waits can be killed */

struct target {
	int fd;
	int nfd;
	char *map;
	size_t size;
};

static bool target_init(struct target *t, size_t nr_pages, unsigned int notify_flags)
{
	t->size = nr_pages * page_size();
	t->fd = create_filled(nr_pages, MFD_ALLOW_PROTECT);
	t->map = map_huge(t->fd, t->size);
	t->nfd = sys_memfd_notify(t->fd, notify_flags);
	return t->map != MAP_FAILED && t->nfd >= 0;
}

static void target_exit(struct target *t)
{
	munmap(t->map, t->size);
	close(t->nfd);
	close(t->fd);
}

/* In a process of its own: prepares, says so, and goes the path when it is told */
struct victim {
	struct job job;
	volatile int *stage;
};

static long walk_into_it(void *arg)
{
	struct victim *v = arg;
	long ret = v->job.path->prepare ? v->job.path->prepare(&v->job) : 0;

	if (path_missing(ret)) {
		*v->stage = -1;
		return ret;
	}
	*v->stage = 1;
	while (*v->stage == 1)
		usleep(200);
	return v->job.path->run(&v->job);
}

static bool stage_is_over(volatile int *stage, int value)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (*stage == value && now_ns() < end)
		usleep(200);
	return *stage != value;
}

/* Whether it waited, and was dead soon after it was killed; -1 if it did not wait */
static int killed_in_path(const struct path *path)
{
	struct victim v = { .job.path = path };
	struct memfd_event ev;
	struct writer w;
	struct target t;
	int result = 0;

	if (!target_init(&t, NR_PAGES, MEMFD_NOTIFY_KERNEL))
		return 0;
	v.stage = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_SHARED |
		       MAP_ANONYMOUS, -1, 0);
	v.job = (struct job) {
		.fd = t.fd, .nfd = t.nfd, .map = t.map, .len = page_size(),
		.offset = THE_PAGE * page_size(), .byte = NEW_BYTE,
	};
	if (!job_init(&v.job, path) || !writer_start(&w, t.nfd, walk_into_it, &v))
		goto out;
	if (!stage_is_over(v.stage, 0) || *v.stage < 0) {
		result = *v.stage < 0 ? -1 : 0;
		goto free;
	}
	if (protect_pages(t.fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT))
		goto free;
	*v.stage = 2;
	/* One that fails instead has been looked at elsewhere */
	if (!read_event(t.nfd, &ev) || !ev.cookie || !writer_blocks(&w)) {
		result = -1;
		goto free;
	}
	kill(w.pid, SIGKILL);
	result = writer_reap(&w, LONG_MS) && WIFSIGNALED(w.status) &&
		 file_filled_with(t.fd, THE_PAGE, 1, OLD_BYTE);
free:
	writer_free(&w);
	v.job.child = 0;
out:
	munmap((void *)v.stage, page_size());
	target_exit(&t);
	return result;
}

/* Those in which nobody waits who could be killed: they go on, or belong to the kernel */
static bool path_waits(const struct path *path)
{
	return !(path->flags & (PATH_EXIT | PATH_NO_WAIT)) &&
	       path->kind != PATH_KTHREAD && path->kind != PATH_PIN;
}

TEST(killed_in_every_path)
{
	unsigned int nr = 0, waited = 0;

	for (size_t i = 0; i < NR_PATHS; i++) {
		int result;

		if (!path_waits(&paths[i]) || i == P_robust)
			continue;
		result = killed_in_path(&paths[i]);
		EXPECT_NE(0, result)
			TH_LOG("%s", paths[i].name);
		nr++;
		waited += result > 0;
	}
	TH_LOG("%u of %u paths waited", waited, nr);
	/* The control: they do wait */
	/* Some cannot be stopped where they are, on some kernels */
	EXPECT_LE(nr - 3, waited);
}

/* A thread that waits does not keep its process from what it does meanwhile */

struct beside {
	struct target t;
	volatile int *told;
	long (*what)(struct beside *b);
};

static void *wait_in_thread(void *arg)
{
	struct beside *b = arg;

	b->t.map[THE_PAGE * page_size()] = NEW_BYTE;
	return NULL;
}

static long do_exec(struct beside *b)
{
	execl("/bin/true", "true", NULL);
	return -errno;
}

static long do_exit(struct beside *b)
{
	syscall(SYS_exit_group, 0);
	return -1;
}

static long do_core(struct beside *b)
{
	struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY };

	if (chdir("/tmp"))
		return -errno;
	setrlimit(RLIMIT_CORE, &core);
	prctl(PR_SET_DUMPABLE, 1);
	signal(SIGABRT, SIG_DFL);
	abort();
}

static long do_munmap(struct beside *b)
{
	return neg_errno(munmap(b->t.map, 4 * page_size()));
}

static long do_fork(struct beside *b)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	return neg_errno(waitpid(pid, NULL, 0));
}

static long do_truncate(struct beside *b)
{
	return neg_errno(ftruncate(b->t.fd, (THE_PAGE + 2) * page_size()));
}

static long do_fdinfo(struct beside *b)
{
	char text[4096];

	return read_file("/proc/self/smaps", text, sizeof(text)) ? 0 : -EIO;
}

static long with_a_waiter(void *arg)
{
	struct beside *b = arg;
	pthread_t thread;

	if (pthread_create(&thread, NULL, wait_in_thread, b))
		return -EAGAIN;
	while (!*b->told)
		usleep(200);
	return b->what(b);
}

TEST(beside_a_waiter)
{
	static const struct {
		const char *name;
		long (*what)(struct beside *b);
		bool returns;
	} deeds[] = {
		{ "exec", do_exec }, { "exit", do_exit }, { "core dump", do_core },
		{ "munmap", do_munmap, true }, { "fork", do_fork, true },
		{ "truncate", do_truncate, true }, { "smaps", do_fdinfo, true },
	};

	for (size_t i = 0; i < sizeof(deeds) / sizeof(*deeds); i++) {
		struct beside b = { .what = deeds[i].what };
		struct memfd_event ev;
		struct writer w;

		b.told = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		ASSERT_TRUE(target_init(&b.t, NR_PAGES, MEMFD_NOTIFY_KERNEL));
		ASSERT_EQ(0, protect_pages(b.t.fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT));
		ASSERT_TRUE(writer_start(&w, b.t.nfd, with_a_waiter, &b));
		ASSERT_TRUE(read_event(b.t.nfd, &ev));
		EXPECT_TRUE(task_sleeps(w.pid, ev.tid));
		*b.told = 1;
		if (deeds[i].returns) {
			EXPECT_TRUE(writer_finishes(&w)) TH_LOG("%s", deeds[i].name);
			EXPECT_LE(0, w.out->ret) TH_LOG("%s", deeds[i].name);
		} else {
			EXPECT_TRUE(writer_reap(&w, LONG_MS)) TH_LOG("%s", deeds[i].name);
		}
		writer_free(&w);
		target_exit(&b.t);
		munmap((void *)b.told, page_size());
	}
}

/* Part 3: kernel threads */

/* Tasks that are in our code: kernel threads, or all others */
static unsigned int tasks_inside(bool kernel)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	unsigned int nr = 0;

	while (proc && (entry = readdir(proc))) {
		char path[300], stack[4096], exe[16];

		if (!atoi(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/exe", entry->d_name);
		/* A kernel thread has no program */
		if ((readlink(path, exe, sizeof(exe)) < 0) != kernel)
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stack", entry->d_name);
		if (!read_file(path, stack, sizeof(stack)) ||
		    (!strstr(stack, "memfd_waiters_") && !strstr(stack, "memfd_flight_")))
			continue;
		nr++;
		if (kernel)
			printf("# %s:\n%s", path, stack);
	}
	if (proc)
		closedir(proc);
	return nr;
}

static bool grows(const char *path, const char *key)
{
	long before = number_in(path, key);
	uint64_t end = now_ns() + 3 * LONG_MS * 1000000ULL;

	while (number_in(path, key) < before + 2 && now_ns() < end)
		usleep(20000);
	return number_in(path, key) >= before + 2;
}

static long store_there(void *arg)
{
	*(volatile char *)arg = NEW_BYTE;
	return 0;
}

/* What kernel threads do to pages for which others wait */

enum thread_result { THREAD_WAITS, THREAD_PASSES, THREAD_MISSING };

static enum thread_result passes_if(bool ok)
{
	return ok ? THREAD_PASSES : THREAD_WAITS;
}

static enum thread_result run_reclaim(struct target *t)
{
	if (!group_make("max"))
		return THREAD_MISSING;
	return passes_if(group_enter() && !madvise(t->map, t->size, MADV_PAGEOUT) &&
			 (write_file(CGROUP "/memory.reclaim", "1M") || true) &&
			 write_file(CGROUP_ROOT "/cgroup.procs", "0") && !rmdir(CGROUP));
}

#define THP	"/sys/kernel/mm/transparent_hugepage/"

/* It looks at the mapping, again and again */
static enum thread_result run_khugepaged(struct target *t)
{
	char before[64];
	bool ok;

	if (!set_shmem_huge("advise", before, sizeof(before)))
		return THREAD_MISSING;
	write_file(THP "khugepaged/scan_sleep_millisecs", "10");
	write_file(THP "khugepaged/alloc_sleep_millisecs", "10");
	ok = !madvise(t->map, t->size, MADV_HUGEPAGE) &&
	     grows(THP "khugepaged/full_scans", NULL);
	set_shmem_huge(before, NULL, 0);
	return passes_if(ok);
}

#define KSM	"/sys/kernel/mm/ksm/"

/* It looks at private copies of some pages, beside those that are protected */
static enum thread_result run_ksmd(struct target *t)
{
	char *map;
	bool ok;

	if (access(KSM "run", W_OK))
		return THREAD_MISSING;
	map = mmap(NULL, t->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, t->fd, 0);
	if (map == MAP_FAILED)
		return THREAD_WAITS;
	memset(map, NEW_BYTE, t->size / 2);
	ok = !madvise(map, t->size, MADV_MERGEABLE) && write_file(KSM "run", "1") &&
	     grows(KSM "full_scans", NULL);
	write_file(KSM "run", "0");
	munmap(map, t->size);
	return passes_if(ok);
}

static enum thread_result run_compaction(struct target *t)
{
	if (access("/proc/sys/vm/compact_memory", W_OK))
		return THREAD_MISSING;
	return passes_if(write_file("/proc/sys/vm/compact_memory", "1"));
}

static enum thread_result run_writeback(struct target *t)
{
	sync();
	return passes_if(write_file("/proc/sys/vm/drop_caches", "3"));
}

/* Its thread does not wait for a request: others are carried out meanwhile */
static enum thread_result run_sqpoll(struct target *t)
{
	struct __kernel_timespec limit = { .tv_sec = LONG_MS / 1000 };
	static const char byte = NEW_BYTE;
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	bool ok = false;

	if (io_uring_queue_init(4, &ring, IORING_SETUP_SQPOLL))
		return THREAD_MISSING;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_write(sqe, t->fd, &byte, 1, THE_PAGE * page_size());
	sqe->user_data = 1;
	io_uring_submit(&ring);
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_write(sqe, t->fd, &byte, 1, 0);
	sqe->user_data = 2;
	io_uring_submit(&ring);
	/* A page that is not protected is written, whatever the other one waits for */
	if (!io_uring_wait_cqe_timeout(&ring, &cqe, &limit))
		ok = cqe->user_data == 2 && cqe->res == 1;
	io_uring_queue_exit(&ring);
	return passes_if(ok);
}

FIXTURE(kernel_thread) {
	struct target t;
};

FIXTURE_VARIANT(kernel_thread) {
	enum thread_result (*run)(struct target *t);
};

#define KERNEL_THREAD(_name) \
FIXTURE_VARIANT_ADD(kernel_thread, _name) { .run = run_##_name }

KERNEL_THREAD(compaction);
KERNEL_THREAD(writeback);
KERNEL_THREAD(reclaim);
KERNEL_THREAD(khugepaged);
KERNEL_THREAD(ksmd);
KERNEL_THREAD(sqpoll);

FIXTURE_SETUP(kernel_thread)
{
	if (getuid())
		SKIP(return, "not root");
	ASSERT_TRUE(target_init(&self->t, HUGE_SIZE / page_size(), MEMFD_NOTIFY_KERNEL));
}

FIXTURE_TEARDOWN(kernel_thread)
{
	target_exit(&self->t);
}

TEST_F(kernel_thread, does_not_wait)
{
	struct target *t = &self->t;
	enum thread_result result;
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(t->fd, 4, 0, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, t->nfd, store_there, t->map + THE_PAGE * page_size()));
	ASSERT_TRUE(read_event(t->nfd, &ev));
	ASSERT_TRUE(writer_sleeps(&w));
	/* The control */
	EXPECT_LT(0, tasks_inside(false));
	result = variant->run(t);
	EXPECT_NE(THREAD_WAITS, result);
	EXPECT_EQ(0, tasks_inside(true));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(t->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	writer_free(&w);
	if (result == THREAD_MISSING)
		SKIP(return, "not in this kernel");
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
