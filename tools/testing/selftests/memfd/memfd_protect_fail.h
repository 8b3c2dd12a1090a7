/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Makes allocations and copies from and to user memory fail, in one place in each attempt
 * of an operation: the first one that it makes, then the second, and so on, until an
 * attempt has fewer than that (/proc/thread-self/fail-nth). Slab objects, pages
 * and copies are counted together, those of other code in the operation's way too.
 *
 * There are attempts in which that one fails, and others in which the next few allocations
 * fail as well: what falls back to another way to get memory meets a failure there, too.
 *
 * After an attempt that has failed everything must be as it was, and the operation
 * succeeds when it is repeated. An attempt that succeeds nevertheless has done all of it.
 * When everything is taken down again, nothing is left.
 *
 * Needs root, and CONFIG_FAULT_INJECTION with FAILSLAB, FAIL_PAGE_ALLOC and DEBUG_FS.
 */
#ifndef MEMFD_PROTECT_FAIL_H
#define MEMFD_PROTECT_FAIL_H

#include "memfd_protect_common.h"

#include <dirent.h>
#include <limits.h>
#include <sys/rseq.h>

#define FAIL_DIR	"/sys/kernel/debug"
#define KMEMLEAK	FAIL_DIR "/kmemleak"

/* More failures than any operation here has: it does not come to an end */
#define FAIL_MAX	2000

/* What the kernel needs to give memory back that waits for a grace period */
#define SETTLE_MS	10000

/* How many allocations fail in a row */
static const unsigned int fail_bursts[] = { 1, 4 };
#define FAIL_BURSTS	2

static const char * const fail_kinds[] = { "failslab", "fail_page_alloc" };
#define FAIL_KINDS	2

static inline bool fail_set(const char *what, const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), FAIL_DIR "/%s/%s", what, name);
	return write_file(path, value);
}

/*
 * Where the kernel itself warns: an address space of vmalloc() that is split, for the
 * stack of a new thread, needs an object in reserve.
 */
#define FAIL_NOT_IN	"alloc_vmap_area"

/* The addresses from that symbol to the one behind it */
static inline bool fail_reject(void)
{
	unsigned long addr, from = 0, to = ULONG_MAX;
	char line[512], name[256], text[32];
	bool ok = true;
	FILE *f;

	for (int turn = 0; turn < 2; turn++) {
		f = fopen("/proc/kallsyms", "r");
		while (f && fgets(line, sizeof(line), f)) {
			if (sscanf(line, "%lx %*c %255s", &addr, name) != 2)
				continue;
			if (!turn && !strcmp(name, FAIL_NOT_IN))
				from = addr;
			else if (turn && addr > from && addr < to)
				to = addr;
		}
		if (f)
			fclose(f);
	}
	if (!from)
		return false;
	for (size_t i = 0; i < FAIL_KINDS; i++) {
		snprintf(text, sizeof(text), "0x%lx", from);
		ok &= fail_set(fail_kinds[i], "reject-start", text);
		snprintf(text, sizeof(text), "0x%lx", to);
		ok &= fail_set(fail_kinds[i], "reject-end", text);
	}
	return ok;
}

/*
 * fork() makes the page that has the thread's struct rseq one to be copied, and the kernel
 * writes there before it returns: without memory for the copy it sends SIGSEGV.
 */
static inline void fail_no_rseq(void)
{
	if (__rseq_size)
		syscall(__NR_rseq, (char *)__builtin_thread_pointer() + __rseq_offset,
			sizeof(struct rseq), RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
}

/*
 * Every allocation counts, those that may sleep and those of single pages too. Those of
 * a thread that is marked (make-it-fail) fail, as long as fail_arm() says. NULL, or why there
 * is no fault injection.
 */
static inline const char *fail_init(void)
{
	if (access("/proc/thread-self/fail-nth", W_OK))
		return "no fault injection";
	if (!fail_set("fail_page_alloc", "ignore-gfp-highmem", "N") ||
	    !fail_set("fail_page_alloc", "min-order", "0"))
		return "no fail_page_alloc";
	fail_set("fail_usercopy", "verbose", "0");
	for (size_t i = 0; i < FAIL_KINDS; i++)
		if (!fail_set(fail_kinds[i], "verbose", "0") ||
		    !fail_set(fail_kinds[i], "ignore-gfp-wait", "N") ||
		    !fail_set(fail_kinds[i], "task-filter", "Y") ||
		    !fail_set(fail_kinds[i], "times", "0") ||
		    !fail_set(fail_kinds[i], "probability", "100"))
			return "no failslab";
	if (!fail_reject())
		return "no filter by stack trace";
	fail_no_rseq();
	return NULL;
}

static inline void fail_exit(void)
{
	for (size_t i = 0; i < FAIL_KINDS; i++) {
		fail_set(fail_kinds[i], "probability", "0");
		fail_set(fail_kinds[i], "task-filter", "N");
	}
}

/**
 * struct fail_point - where something is to fail in this thread
 * @nth: The allocation or copy, 0 for none.
 * @burst: So many fail from there on.
 * @nth_fd: fail-nth of the thread, which is opened before: that allocates.
 * @mark_fd: make-it-fail.
 */
struct fail_point {
	unsigned int nth;
	unsigned int burst;
	int nth_fd;
	int mark_fd;
};

static inline void fail_open(struct fail_point *point, unsigned int nth, unsigned int burst)
{
	char text[16];

	point->nth = nth;
	point->burst = burst;
	point->nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	point->mark_fd = open("/proc/thread-self/make-it-fail", O_RDWR | O_CLOEXEC);
	snprintf(text, sizeof(text), "%u", nth ? burst : 0);
	for (size_t i = 0; i < FAIL_KINDS; i++)
		fail_set(fail_kinds[i], "times", text);
}

/* This copies from user memory itself, and may have a failure before it. */
static inline void fail_write(int fd, unsigned int value)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", value);

	while (pwrite(fd, text, len, 0) != len)
		;
}

/* What comes next is the first. Until then nothing fails that the mark is for. */
static inline void fail_arm(const struct fail_point *point)
{
	if (!point->nth)
		return;
	fail_write(point->nth_fd, FAIL_MAX * 2);
	fail_write(point->mark_fd, point->burst > 1);
	fail_write(point->nth_fd, point->nth);
}

/* Whether something has failed since fail_arm() */
static inline bool fail_fired(int nth_fd)
{
	char text[16] = "";

	/* If the answer cannot be copied, 1 was left */
	return pread(nth_fd, text, sizeof(text) - 1, 0) > 0 && !atoi(text);
}

/* The end of it, with the same answer */
static inline bool fail_close(struct fail_point *point)
{
	bool fired = point->nth && fail_fired(point->nth_fd);

	if (point->nth) {
		fail_write(point->nth_fd, FAIL_MAX * 2);
		fail_write(point->mark_fd, 0);
		fail_write(point->nth_fd, 0);
	}
	close(point->nth_fd);
	close(point->mark_fd);
	return fired;
}

/* One attempt. Returns what it returned. */
static inline long fail_attempt(struct fail_point *point, operation_fn run, void *arg)
{
	fail_arm(point);
	return run(arg);
}

/* Figures of the whole system, and of this process, that come back to what they were */
struct fail_figures {
	long nr[8];
};

static const char * const fail_figure_names[] = {
	"nr_page_table_pages", "nr_shmem", "nr_shmem_hugepages", "nr_mlock",
	"nr_ptshare_tables", "nr_foll_pin_acquired", "open files", "mappings",
};

#define FAIL_VMSTATS	5
#define FAIL_PINS	5
#define FAIL_FILES	6
#define FAIL_MAPPINGS	7

static inline long fail_vmstat(const char *text, const char *name)
{
	char pattern[64];
	const char *line;

	snprintf(pattern, sizeof(pattern), "\n%s ", name);
	line = strstr(text, pattern);
	return line ? atol(line + strlen(pattern)) : 0;
}

static inline long fail_count_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	long nr = 0;

	while (dir && readdir(dir))
		nr++;
	if (dir)
		closedir(dir);
	return nr;
}

static inline struct fail_figures fail_figures(void)
{
	static char text[1 << 16];
	struct fail_figures f = {};

	write_file("/proc/sys/vm/stat_refresh", "1");
	if (!read_file("/proc/vmstat", text, sizeof(text)))
		return f;
	for (int i = 0; i < FAIL_VMSTATS; i++)
		f.nr[i] = fail_vmstat(text, fail_figure_names[i]);
	f.nr[FAIL_PINS] = fail_vmstat(text, "nr_foll_pin_acquired") -
			  fail_vmstat(text, "nr_foll_pin_released");
	f.nr[FAIL_FILES] = fail_count_files();
	if (read_file("/proc/self/maps", text, sizeof(text)))
		for (char *c = text; *c; c++)
			f.nr[FAIL_MAPPINGS] += *c == '\n';
	return f;
}

/* Says what differs for good */
static inline bool fail_settled(const char *name, const struct fail_figures *before)
{
	uint64_t end = now_ns() + SETTLE_MS * 1000000ULL;
	struct fail_figures now = fail_figures();

	while (memcmp(&now, before, sizeof(now)) && now_ns() < end) {
		usleep(20000);
		now = fail_figures();
	}
	for (size_t i = 0; i < sizeof(now.nr) / sizeof(*now.nr); i++)
		if (now.nr[i] != before->nr[i])
			printf("# %s: %s was %ld, is %ld\n", name,
			       fail_figure_names[i], before->nr[i], now.nr[i]);
	return !memcmp(&now, before, sizeof(now));
}

/**
 * struct fail_case - something to do that can fail
 * @name: Of what is done.
 * @set_up: What is there before.
 * @run: Does it: 0 or more, or -errno.
 * @done: Whether all of it was done, if that is to be looked at.
 * @state: Writes what an attempt that fails must not change.
 * @result: Writes what is the same after each success, whatever failed before.
 * @tear_down: Takes all of it away.
 * @errors: How it may fail, besides -ENOMEM and -EFAULT.
 * @once: Only one thing fails: Linux itself does not take all back if that fails, too.
 * @allocates: Whether there is something to fail.
 *
 * Each is called with the same argument, and anew for each attempt.
 */
struct fail_case {
	const char *name;
	bool (*set_up)(void *arg);
	operation_fn run;
	bool (*done)(void *arg);
	void (*state)(void *arg, FILE *to);
	void (*result)(void *arg, FILE *to);
	void (*tear_down)(void *arg);
	long errors[4];
	bool once;
	enum { FAIL_ALWAYS, FAIL_SOMETIMES, FAIL_NEVER } allocates;
};

/* What @print writes, to be freed; NULL if there is nothing to print */
static inline char *fail_print(void (*print)(void *arg, FILE *to), void *arg)
{
	char *text = NULL;
	size_t size = 0;
	FILE *to = print ? open_memstream(&text, &size) : NULL;

	if (!to)
		return NULL;
	print(arg, to);
	fclose(to);
	return text;
}

static inline bool fail_prints(void (*print)(void *arg, FILE *to), void *arg,
			       const char *expected)
{
	char *now;
	bool same;

	if (!expected)
		return true;
	now = fail_print(print, arg);
	same = now && !strcmp(now, expected);
	if (!same)
		printf("# is\n%s# and should be\n%s", now, expected);
	free(now);
	return same;
}

static inline bool fail_expected(const struct fail_case *c, long ret)
{
	if (ret == -ENOMEM || ret == -EFAULT)
		return true;
	for (size_t i = 0; i < sizeof(c->errors) / sizeof(*c->errors); i++)
		if (c->errors[i] && ret == c->errors[i])
			return true;
	return false;
}

/**
 * struct fail_count - what has come of the attempts so far
 * @fired: Failures.
 * @failed: Attempts that failed because of them.
 * @result: What the first success has led to.
 */
struct fail_count {
	unsigned int fired;
	unsigned int failed;
	char *result;
};

/* The attempt has failed, as it may, and changed nothing. */
static inline bool fail_well(const struct fail_case *c, void *arg, long ret,
			     const char *before)
{
	if (!fail_expected(c, ret)) {
		printf("# %s: returns %ld\n", c->name, ret);
		return false;
	}
	return fail_prints(c->state, arg, before);
}

/* One attempt, what is there having been set up. */
static inline bool fail_try(const struct fail_case *c, void *arg, struct fail_point *point,
			    struct fail_count *count, bool *fired)
{
	char *before = fail_print(c->state, arg);
	bool ok = true;
	long ret;

	fail_open(point, point->nth, point->burst);
	ret = fail_attempt(point, c->run, arg);
	*fired = fail_close(point);
	count->fired += *fired;
	if (ret < 0 && *fired) {
		count->failed++;
		ok = fail_well(c, arg, ret, before);
		if (ok)
			ret = c->run(arg);
	}
	free(before);
	if (!ok)
		return false;
	if (ret < 0 || (c->done && !c->done(arg))) {
		printf("# %s: returns %ld, and it is not done\n", c->name, ret);
		return false;
	}
	if (!count->result)
		count->result = fail_print(c->result, arg);
	return fail_prints(c->result, arg, count->result);
}

static inline bool fail_round(const struct fail_case *c, void *arg, unsigned int nth,
			      unsigned int burst, struct fail_count *count, bool *fired)
{
	struct fail_point point = { .nth = nth, .burst = burst };
	bool ok = c->set_up(arg);

	*fired = false;
	if (!ok)
		printf("# %s: cannot be set up: %s\n", c->name, strerror(errno));
	else
		ok = fail_try(c, arg, &point, count, fired);
	if (!ok)
		printf("# %s: that was at failure %u of %u\n", c->name, nth, burst);
	c->tear_down(arg);
	return ok;
}

/* Each place in turn */
static inline bool fail_rounds(const struct fail_case *c, void *arg, unsigned int burst,
			       struct fail_count *count)
{
	bool fired = true;

	for (unsigned int nth = 1; fired; nth++)
		if (nth == FAIL_MAX || !fail_round(c, arg, nth, burst, count, &fired))
			return false;
	return true;
}

static inline bool fail_all(const struct fail_case *c, void *arg, struct fail_count *count)
{
	struct fail_figures before;
	bool fired;

	/* Without a failure, and again: now all is there that stays */
	for (int i = 0; i < 2; i++) {
		before = fail_figures();
		if (!fail_round(c, arg, 0, 0, count, &fired))
			return false;
	}
	for (size_t i = 0; i < (c->once ? 1 : FAIL_BURSTS); i++)
		if (!fail_rounds(c, arg, fail_bursts[i], count))
			return false;
	return fail_settled(c->name, &before);
}

/* All failures that an operation can meet, one after the other */
static inline bool fail_each(const struct fail_case *c, void *arg)
{
	struct fail_count count = {};
	bool ok = fail_all(c, arg, &count);

	printf("# %s: %u failures, %u errors\n", c->name, count.fired, count.failed);
	if (ok && (count.fired ? c->allocates == FAIL_NEVER :
				 c->allocates == FAIL_ALWAYS)) {
		printf("# %s: that is not what it allocates\n", c->name);
		ok = false;
	}
	free(count.result);
	return ok;
}

/* Swap-in allocates where the swap cache has nothing: a cgroup is reclaimed from */
#define FAIL_CGROUP	"/sys/fs/cgroup/memfd_fail"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif

static inline bool fail_enter_cgroup(void)
{
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	return (!mkdir(FAIL_CGROUP, 0755) || errno == EEXIST) &&
	       !access(FAIL_CGROUP "/memory.reclaim", W_OK) &&
	       write_file(FAIL_CGROUP "/cgroup.procs", "0");
}

static inline void fail_leave_cgroup(void)
{
	write_file("/sys/fs/cgroup/cgroup.procs", "0");
	rmdir(FAIL_CGROUP);
}

/* It fails when it has found less than that: all there is */
static inline bool fail_page_out(char *map, size_t size)
{
	if (madvise(map, size, MADV_PAGEOUT))
		return false;
	/* What is still being written is found the next time */
	for (int i = 0; i < 3; i++) {
		write_file(FAIL_CGROUP "/memory.reclaim", "64M");
		usleep(20000);
	}
	return true;
}

/* What kmemleak has found, after two scans: an object is no leak in its first 5 s */
static inline bool fail_no_leaks(void)
{
	static char text[1 << 16];

	if (!write_file(KMEMLEAK, "scan"))
		return true;
	sleep(6);
	write_file(KMEMLEAK, "scan");
	if (!read_file(KMEMLEAK, text, sizeof(text)))
		return false;
	if (*text)
		printf("# %s\n", text);
	return !*text;
}

#endif /* MEMFD_PROTECT_FAIL_H */
