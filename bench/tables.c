// SPDX-License-Identifier: GPL-2.0-only
/*
 * What N processes need that map the same resident GiB: memory for page tables, and
 * work until all of them have touched all of it; and what fork() and exit() of one
 * cost. With shared page tables, with ordinary ones, with huge pages, and with
 * MAP_POPULATE.
 */
#include "pool.h"

#define SIZE	GIB
#define HUGE	(SIZE / TABLE)	/* pages of hugetlb */
#define PART	(256 * MIB)	/* of it, that all touch */
#define ROUNDS	5

enum side { OFF, ON, HUGETLB, POPULATE, SIDES };
enum todo { NOTHING, MAP, TOUCH_TABLES, MAP_PART, READ_PART };

static int files[SIDES];
static enum side side;

static void read_pages(const char *map, size_t size, size_t step)
{
	for (size_t at = 0; at < size; at += step)
		(void)*(const volatile char *)(map + at);
}

/* Ours gets such an address by itself; hugetlb shares its tables only there */
static char *gib_address(void)
{
	char *area = mmap(NULL, SIZE + GIB, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		err(1, "mmap");
	munmap(area, SIZE + GIB);
	return (char *)(((uintptr_t)area + GIB - 1) & -GIB);
}

static char *map_side(size_t size)
{
	int flags = MAP_SHARED | (side == POPULATE ? MAP_POPULATE : 0) |
		    (side == HUGETLB ? MAP_FIXED : 0);
	char *map = mmap(side == HUGETLB ? gib_address() : NULL, size,
			 PROT_READ | PROT_WRITE, flags, files[side], 0);

	if (map == MAP_FAILED)
		err(1, "mmap");
	return map;
}

static void act(unsigned int member __attribute__((unused)), char todo)
{
	static char *map;

	switch (todo) {
	case MAP:
		map = map_side(SIZE);
		break;
	case TOUCH_TABLES:
		read_pages(map, SIZE, TABLE);
		break;
	case MAP_PART:
		map = map_side(PART);
		break;
	case READ_PART:
		read_pages(map, PART, PAGE);
		break;
	}
}

static void make_files(void)
{
	static char some[16 * PAGE];
	char *huge;
	FILE *f;

	files[OFF] = memfd(0, SIZE);
	files[ON] = memfd(MFD_SHARE_PGTABLES, SIZE);
	for (int i = OFF; i <= ON; i++)
		for (size_t at = 0; at < SIZE; at += sizeof(some))
			if (pwrite(files[i], some, sizeof(some), at) != sizeof(some))
				err(1, "pwrite");
	f = fopen("/proc/sys/vm/nr_hugepages", "we");
	if (!f || fprintf(f, "%lu\n", HUGE) < 0 || fclose(f))
		err(1, "nr_hugepages");
	files[HUGETLB] = memfd(MFD_HUGETLB, SIZE);
	huge = map_shared(files[HUGETLB], SIZE);
	write_pages(huge, SIZE, TABLE);
	munmap(huge, SIZE);
	files[POPULATE] = files[OFF];
}

/* Entries that a fault makes: one, where it is about tables and not about faults */
static void fault_around(const char *bytes)
{
	int fd = open("/sys/kernel/debug/fault_around_bytes", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, bytes, strlen(bytes)) < 0)
		err(1, "fault_around_bytes");
	close(fd);
}

static long page_tables(void)
{
	stat_refresh();
	return figure("/proc/meminfo", "PageTables:");
}

/* Tables of processes that have ended are freed some time later */
static long settled_page_tables(void)
{
	long before, now = page_tables();

	for (int i = 0; i < 20; i++) {
		before = now;
		usleep(100000);
		now = page_tables();
		if (i > 3 && now == before)
			break;
	}
	return now;
}

static void grow(enum side which, unsigned int nr, struct series *kb)
{
	struct pool p;
	long before;

	side = which;
	pool_start(&p, nr, act);
	before = settled_page_tables();
	tell_all(&p, MAP);
	tell_all(&p, TOUCH_TABLES);
	add(kb, page_tables() - before);
	pool_stop(&p);
}

/*
 * At least there must be 8 bytes for each page, once, and what points to these: the
 * tables of the file itself.
 */
static void growth(unsigned int nr)
{
	static const char what[] = "page tables when each has touched all of 1 GiB";
	struct row *off = row("", nr, "kB", "without sharing", what);
	struct row *huge = beside(off, "hugetlb");
	struct row *least = row("beside the least possible", nr, "kB", NULL, what);

	grow(OFF, nr, &off->theirs);
	grow(ON, nr, off->ours);
	grow(HUGETLB, nr, &huge->theirs);
	least->ours = off->ours;
	with_limit(least, 8 * (SIZE / PAGE) / 1024 + PAGE / 1024);
	with_goal(least, LIMIT_AT_MOST, 1.05);
	if (nr == 256)
		with_goal(off, RATIO_AT_MOST, 1.0 / 60);
}

static void touch_all(enum side which, unsigned int nr, struct series *us,
		      struct series *faults)
{
	uint64_t start;
	struct pool p;
	long before;

	side = which;
	pool_start(&p, nr, act);
	before = figure("/proc/vmstat", "pgfault ");
	start = now_ns();
	tell_all(&p, MAP_PART);
	tell_all(&p, READ_PART);
	add(us, (now_ns() - start) / 1e3);
	add(faults, figure("/proc/vmstat", "pgfault ") - before);
	pool_stop(&p);
}

static void touched(unsigned int nr)
{
	struct row *us = row("", nr, "us", "without sharing",
			     "until each has mapped 256 MiB and read all pages");
	struct row *us_populate = beside(us, "MAP_POPULATE");
	struct row *faults = row("", nr, "faults", "without sharing",
				 "until each has mapped 256 MiB and read all pages");
	struct row *faults_populate = beside(faults, "MAP_POPULATE");

	touch_all(OFF, nr, &us->theirs, &faults->theirs);
	touch_all(ON, nr, us->ours, faults->ours);
	touch_all(POPULATE, nr, &us_populate->theirs, &faults_populate->theirs);
	if (nr == 64) {
		with_goal(us, RATIO_AT_MOST, 0.1);
		with_goal(us_populate, RATIO_AT_MOST, 0.1);
	}
}

static void fork_exit(const char *map, bool touch, struct series *us)
{
	uint64_t start = now_ns();
	pid_t pid = fork();

	if (!pid) {
		if (touch)
			read_pages(map, SIZE, TABLE);
		_exit(0);
	}
	if (waitpid(pid, NULL, 0) != pid)
		err(1, "fork");
	add(us, (now_ns() - start) / 1e3);
}

/* The process that forks is the one that maps it, and so is the one that ends */
static void map_exit(enum side which, struct series *us)
{
	uint64_t start = now_ns();
	pid_t pid = fork();

	if (!pid) {
		side = which;
		read_pages(map_side(SIZE), SIZE, TABLE);
		_exit(0);
	}
	if (waitpid(pid, NULL, 0) != pid)
		err(1, "fork");
	add(us, (now_ns() - start) / 1e3);
}

static void forks(int rounds)
{
	static const char what[] = "fork, exit, wait; 1 GiB is mapped";
	struct row *bare = row("child uses nothing of it", 1, "us", "without sharing", what);
	struct row *touch = row("child reads a byte in every 2 MiB", 1, "us",
				"without sharing", what);
	struct row *own = row("child maps it itself, reads a byte in every 2 MiB", 1, "us",
			      "without sharing", what);

	for (int i = 0; i < rounds * 2; i++) {
		enum side which = i % 2;
		char *map;

		map_exit(which, which == ON ? own->ours : &own->theirs);
		side = which;
		map = map_side(SIZE);
		read_pages(map, SIZE, TABLE);
		fork_exit(map, false, which == ON ? bare->ours : &bare->theirs);
		fork_exit(map, true, which == ON ? touch->ours : &touch->theirs);
		munmap(map, SIZE);
	}
	with_goal(bare, RATIO_AT_MOST, 1);
	with_goal(touch, RATIO_AT_MOST, 1);
	with_goal(own, RATIO_AT_MOST, 1);
}

int main(int argc, char **argv)
{
	static const unsigned int many[] = { 1, 16, 64, 256, 1500 };

	open_results(argc, argv);
	run_on(0);
	make_files();
	fault_around("4096");
	for (int i = 0; i < (quick ? 2 : 5); i++)
		growth(many[i]);
	fault_around("65536");
	for (int i = 0; i < (quick ? 1 : 3); i++)
		touched(many[i]);
	forks(quick ? 1 : ROUNDS);
	return report("Many processes that map the same GiB",
		      "A resident memfd of 1 GiB. Page tables are PageTables of /proc/meminfo, more than before. The least possible is 8 bytes for each page, and the one table that points to these.");
}
