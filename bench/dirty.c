// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which pages were written? What the writers pay: their first store to each page while
 * a log is kept; and what the log costs who takes it, with 0.1 to 100 % of the pages in
 * it. ASYNC with one MEMFD_NOTIFY_SCAN, beside userfaultfd (WP_ASYNC) with
 * PAGEMAP_SCAN and soft-dirty with /proc/PID/pagemap, which each process has to do for
 * itself.
 */
#include "pool.h"
#include "uffd.h"

#include <linux/fs.h>

#define WRITE_SIZE	(64 * MIB)
#define MAX_RANGES	(GIB / PAGE)
#define SOFT_DIRTY	(1ULL << 55)	/* of /proc/PID/pagemap */

enum how { SHARED, ORDINARY, UFFD, SOFTDIRTY, HOWS };
enum todo { NOTHING, MAP, WRITE_ALL, WRITE_OWN, TRACK, WRITE_SOME, HARVEST };

/* For the processes; they are forked after these are set */
static enum how how;
static int file;
static size_t size;
static unsigned int processes;

static struct {
	unsigned long found;	/* by the last harvest, in pages, of all processes */
	size_t step;		/* every so manieth byte is written */
} *common;

static unsigned int member_nr;
static char *map;
static int uffd, pagemap, clear_refs;

static void clear_soft_dirty(void)
{
	if (pwrite(clear_refs, "4", 1, 0) != 1)
		err(1, "clear_refs");
}

/* From now on stores are noted */
static void track(void)
{
	if (how == UFFD)
		uffd_protect(uffd, map, size, true);
	if (how == SOFTDIRTY)
		clear_soft_dirty();
}

static struct page_region regions[MAX_RANGES];

static unsigned long scan_pagemap(void)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)map, .end = (uintptr_t)map + size,
		.vec = (uintptr_t)regions, .vec_len = MAX_RANGES,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	unsigned long pages = 0;
	long nr = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	if (nr < 0)
		err(1, "PAGEMAP_SCAN");
	for (long i = 0; i < nr; i++)
		pages += (regions[i].end - regions[i].start) / PAGE;
	return pages;
}

static unsigned long scan_soft_dirty(void)
{
	static uint64_t entries[TABLE / PAGE];
	unsigned long pages = 0;

	for (size_t at = 0; at < size; at += TABLE) {
		if (pread(pagemap, entries, sizeof(entries),
			  ((uintptr_t)map + at) / PAGE * 8) != sizeof(entries))
			err(1, "pagemap");
		for (size_t i = 0; i < TABLE / PAGE; i++)
			pages += !!(entries[i] & SOFT_DIRTY);
	}
	clear_soft_dirty();
	return pages;
}

/* Pages are written by one process each, in turn */
static void write_some(void)
{
	for (size_t at = member_nr * common->step; at < size;
	     at += processes * common->step)
		*(volatile char *)(map + at) = 1;
}

static void act(unsigned int member, char todo)
{
	unsigned long pages;

	switch (todo) {
	case MAP:
		member_nr = member;
		map = map_shared(file, size);
		for (size_t at = 0; at < size; at += PAGE)
			(void)*(volatile char *)(map + at);
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		clear_refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
		if (how == UFFD) {
			uffd = uffd_open(map, size, UFFD_ASYNC, 0);
			/* Not to be faulted in while time is taken */
			memset(regions, 1, sizeof(regions));
		}
		break;
	case WRITE_ALL:
		write_pages(map, size, PAGE);
		break;
	case WRITE_OWN:
		for (size_t at = member_nr * PAGE; at < size; at += processes * PAGE)
			*(volatile char *)(map + at) = 1;
		break;
	case TRACK:
		track();
		break;
	case WRITE_SOME:
		write_some();
		break;
	case HARVEST:
		pages = how == UFFD ? scan_pagemap() : scan_soft_dirty();
		__atomic_fetch_add(&common->found, pages, __ATOMIC_RELAXED);
		break;
	}
}

/* Entries of 2 MiB at once, so that preparing does not take most of the time */
static void fault_around(const char *bytes)
{
	int fd = open("/sys/kernel/debug/fault_around_bytes", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, bytes, strlen(bytes)) < 0)
		err(1, "fault_around_bytes");
	close(fd);
}

static int make_file(void)
{
	static const unsigned int flags[HOWS] = {
		[SHARED] = MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES,
		[ORDINARY] = MFD_ALLOW_PROTECT,
	};
	static char some[16 * PAGE];
	int fd = memfd(flags[how], size);

	for (size_t at = 0; at < size; at += sizeof(some))
		if (pwrite(fd, some, sizeof(some), at) != sizeof(some))
			err(1, "pwrite");
	return fd;
}

static void start(struct pool *p, enum how which, unsigned int nr, size_t bytes)
{
	how = which;
	processes = nr;
	size = bytes;
	file = make_file();
	pool_start(p, nr, act);
	fault_around("2097152");
	tell_all(p, MAP);
	fault_around("65536");
}

static void stop(struct pool *p)
{
	pool_stop(p);
	close(file);
}

static bool is_ours(enum how which)
{
	return which == SHARED || which == ORDINARY;
}

static struct memfd_range ranges[MAX_RANGES];

static unsigned long take_log(int nfd)
{
	struct memfd_scan scan = {
		.end = size, .ranges = (uintptr_t)ranges,
		.nr_ranges = MAX_RANGES, .flags = MEMFD_SCAN_REPROTECT,
	};
	unsigned long pages = 0;
	long nr = ioctl(nfd, MEMFD_NOTIFY_SCAN, &scan);

	if (nr < 0)
		err(1, "MEMFD_NOTIFY_SCAN");
	for (long i = 0; i < nr; i++)
		pages += ranges[i].length / PAGE;
	return pages;
}

/* Processes store to all pages, or share them out; each is to be noted */
static void first_writes(enum how which, unsigned int nr, bool own, struct series *ns,
			 struct series *faults, int rounds)
{
	struct pool p;
	int nfd = -1;

	memset(ranges, 1, sizeof(ranges));
	start(&p, which, nr, WRITE_SIZE);
	if (is_ours(which))
		nfd = notify(file);
	for (int i = 0; i < rounds; i++) {
		double pages = (own ? 1.0 : nr) * (WRITE_SIZE / PAGE);
		uint64_t begin;
		long before;

		tell_all(&p, WRITE_ALL);
		if (is_ours(which))
			protect(file, 0, size, MEMFD_PROTECT_ASYNC);
		else
			tell_all(&p, TRACK);
		before = figure("/proc/vmstat", "pgfault ");
		begin = now_ns();
		tell_all(&p, own ? WRITE_OWN : WRITE_ALL);
		add(ns, (now_ns() - begin) / pages);
		add(faults, (figure("/proc/vmstat", "pgfault ") - before) / pages);
		if (is_ours(which))
			take_log(nfd);
	}
	stop(&p);
	if (nfd >= 0)
		close(nfd);
}

static const char * const names[HOWS] = {
	[SHARED] = "sharing", [ORDINARY] = "ordinary tables",
	[UFFD] = "userfaultfd", [SOFTDIRTY] = "soft-dirty",
};

/* A row of each of ours beside each of theirs */
struct comparison {
	struct row *rows[2][2];
};

static struct comparison compare_all(unsigned int nr, const char *unit, const char *what)
{
	struct comparison c;

	for (int i = 0; i < 2; i++) {
		c.rows[i][0] = row(names[i], nr, unit, names[UFFD], "%s", what);
		c.rows[i][1] = beside(c.rows[i][0], names[SOFTDIRTY]);
	}
	return c;
}

static struct series *series_of(struct comparison *c, enum how which)
{
	if (is_ours(which))
		return c->rows[which][0]->ours;
	return &c->rows[0][which - UFFD]->theirs;
}

/* What was measured once for theirs, beside the other of ours too */
static void complete(struct comparison *c)
{
	for (int i = 0; i < 2; i++)
		c->rows[1][i]->theirs = c->rows[0][i]->theirs;
}

static void write_all_of(unsigned int nr, bool own, int rounds)
{
	const char *what = own ? "first store to each page of 64 MiB by one of all, logged" :
				 "first store to each page of 64 MiB, logged";
	struct comparison ns = compare_all(nr, "ns a page", what);
	struct comparison faults = compare_all(nr, "faults a page", what);

	for (enum how which = 0; which < HOWS; which++)
		first_writes(which, nr, own, series_of(&ns, which),
			     series_of(&faults, which), rounds);
	complete(&ns);
	complete(&faults);
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++)
			with_goal(ns.rows[i][j], RATIO_AT_MOST, 1);
}

#define SHARES 4	/* of the pages that were written */

static void harvest(enum how which, unsigned int nr, struct comparison *us)
{
	static const unsigned int steps[SHARES] = { 1000, 100, 10, 1 };
	struct pool p;
	int nfd = -1;

	start(&p, which, nr, GIB);
	if (is_ours(which)) {
		nfd = notify(file);
		protect(file, 0, size, MEMFD_PROTECT_ASYNC);
	} else {
		tell_all(&p, TRACK);
	}
	for (int i = 0; i < SHARES; i++) {
		unsigned long pages = (GIB / PAGE + steps[i] - 1) / steps[i];
		uint64_t begin;

		common->step = steps[i] * PAGE;
		common->found = 0;
		tell_all(&p, WRITE_SOME);
		begin = now_ns();
		if (is_ours(which))
			common->found = take_log(nfd);
		else
			tell_all(&p, HARVEST);
		add(series_of(&us[i], which), (now_ns() - begin) / 1e3);
		if (common->found != pages)
			errx(1, "%s: %lu pages were written, %lu found",
			     names[which], pages, common->found);
	}
	stop(&p);
	if (nfd >= 0)
		close(nfd);
}

static void harvest_all(unsigned int nr)
{
	static const char * const shares[SHARES] = { "0.1 %", "1 %", "10 %", "100 %" };
	struct comparison us[SHARES];
	char what[64];

	for (int i = 0; i < SHARES; i++) {
		snprintf(what, sizeof(what), "log of 1 GiB taken, %s of it written", shares[i]);
		us[i] = compare_all(nr, "us", what);
	}
	for (enum how which = 0; which < HOWS; which++)
		harvest(which, nr, us);
	for (int i = 0; i < SHARES; i++)
		complete(&us[i]);
	for (int i = 0; i < 2; i++) {
		if (nr == 1)
			with_goal(us[1].rows[SHARED][i], RATIO_AT_MOST, 0.5);
		if (nr == 64)
			with_goal(us[1].rows[SHARED][i], RATIO_AT_MOST, 0.02);
	}
}

int main(int argc, char **argv)
{
	static const unsigned int writers[] = { 1, 4, 16 }, mappers[] = { 1, 16, 64 };

	open_results(argc, argv);
	run_on(0);
	common = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (common == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < (quick ? 1 : 3); i++)
		write_all_of(writers[i], false, quick ? 1 : 3);
	for (int i = 1; i < (quick ? 0 : 3); i++)
		write_all_of(writers[i], true, 3);
	for (int i = 0; i < (quick ? 1 : 3); i++)
		harvest_all(mappers[i]);
	return report("Which pages were written",
		      "A memfd, all of it resident and mapped by N processes. Ours: ASYNC, and one MEMFD_NOTIFY_SCAN. Theirs: each process is woken by a pipe and takes what it has written itself, by PAGEMAP_SCAN (WP_ASYNC), or from /proc/self/pagemap and clear_refs. The log is checked to have all that was written.");
}
