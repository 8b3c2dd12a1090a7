// SPDX-License-Identifier: GPL-2.0-only
/*
 * What shared page tables save and cost: memory for page tables, faults of a
 * process that joins, memfd_protect() with many processes, and what is done all
 * the time: first touch, fork, mmap.
 *
 * Each measurement is made with an ordinary memfd ("off") and with one of
 * MFD_SHARE_PGTABLES ("on") in turn. What page tables take is measured by bench/tables.c.
 */
#include "pool.h"

#define SIZE		(64 * MIB)
#define MAX_PROCESSES	256
#define ROUNDS		5
#define SINGLE		1000	/* pages of the log */
#define REPEAT		20	/* of what is short */

enum side { OFF, ON, SIDES };

static const unsigned int share[SIDES] = { [ON] = MFD_SHARE_PGTABLES };

static int rounds = ROUNDS;

/* Without sharing */
#define against_off(variant, n, unit, ...) \
	row(variant, n, unit, "without sharing", __VA_ARGS__)

static struct series *series_of(struct row *r, enum side side)
{
	return side == ON ? r->ours : &r->theirs;
}

/* What a process of the pool is told to do */
enum todo { NOTHING, MAP, READ_ALL, WRITE_ALL, WRITE_SINGLE };

static int file;	/* that they map */

static void read_pages(const char *map, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE)
		(void)*(const volatile char *)(map + at);
}

static void act(unsigned int member __attribute__((unused)), char todo)
{
	static char *map;

	switch (todo) {
	case MAP:
		map = map_shared(file, SIZE);
		break;
	case READ_ALL:
		read_pages(map, SIZE);
		break;
	case WRITE_ALL:
		write_pages(map, SIZE, PAGE);
		break;
	case WRITE_SINGLE:
		write_pages(map, 16 * SINGLE * PAGE, 16 * PAGE);
		break;
	}
}

/* All pages are there, and no page table knows of them */
static int resident_file(unsigned int flags, size_t size)
{
	static char some[16 * PAGE];
	int fd = memfd(flags, size);

	for (size_t at = 0; at < size; at += sizeof(some))
		if (pwrite(fd, some, sizeof(some), at) != sizeof(some))
			err(1, "pwrite");
	return fd;
}

/* What a process has to do that comes later than another */

static uint64_t start;

static void begin(void)
{
	start = now_ns();
}

static void end_us(struct series *s, double times)
{
	add(s, (now_ns() - start) / 1000.0 / times);
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

struct joined {
	long faults;
	double us;
};

static void join_file(int fd, struct joined *j, int prot)
{
	char *map = mmap(NULL, SIZE, prot, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		err(1, "mmap");
	j->faults = faults();
	begin();
	read_pages(map, SIZE);
	j->us = (now_ns() - start) / 1000.0;
	j->faults = faults() - j->faults;
	_exit(0);
}

/* It has the rights of those who were there before, or fewer */
static void joining(const char *who, int prot)
{
	struct joined *j = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED |
				MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct row *nr = against_off(who, 1, "faults", "a process joins and reads 64 MiB");
	struct row *us = against_off(who, 1, "us", "a process joins and reads 64 MiB");

	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *map = map_shared(fd, SIZE);
		pid_t pid;

		write_pages(map, SIZE, PAGE);
		pid = fork();
		if (!pid)
			join_file(fd, j, prot);
		waitpid(pid, NULL, 0);
		add(series_of(nr, side), j->faults);
		add(series_of(us, side), j->us);
		munmap(map, SIZE);
		close(fd);
	}
}

/* memfd_protect() where many processes have the file mapped */

struct walk {
	struct row *on, *page, *clean, *scan;
};

static void protect_round(struct pool *p, int nfd, struct walk *w,
			  enum side side)
{
	static struct memfd_range ranges[SINGLE + 24];
	struct memfd_scan scan = {
		.end = SIZE, .ranges = (uintptr_t)ranges,
		.nr_ranges = SINGLE + 24, .flags = MEMFD_SCAN_REPROTECT,
	};

	tell_all(p, WRITE_ALL);
	begin();
	protect(file, 0, SIZE, MEMFD_PROTECT_WAIT);
	end_us(series_of(w->on, side), 1);
	unprotect(file, 0, SIZE);

	tell_all(p, WRITE_ALL);
	usleep(20000);	/* until they are asleep, and their CPUs idle */
	begin();
	protect(file, 0, PAGE, MEMFD_PROTECT_WAIT);
	end_us(series_of(w->page, side), 1);
	begin();
	protect(file, 0, PAGE, MEMFD_PROTECT_WAIT);
	end_us(series_of(w->clean, side), 1);
	unprotect(file, 0, PAGE);

	protect(file, 0, SIZE, MEMFD_PROTECT_ASYNC);
	tell(p, 1, WRITE_SINGLE);
	begin();
	if (ioctl(nfd, MEMFD_NOTIFY_SCAN, &scan) != SINGLE)
		err(1, "MEMFD_NOTIFY_SCAN");
	end_us(series_of(w->scan, side), 1);
	unprotect(file, 0, SIZE);
}

static void protect_side(unsigned int nr, struct walk *w, enum side side)
{
	int nfd, count = nr < 64 || rounds < 3 ? rounds : 3;
	struct pool p;

	file = resident_file(MFD_ALLOW_PROTECT | share[side], SIZE);
	nfd = notify(file);
	pool_start(&p, nr, act);
	tell_all(&p, MAP);
	tell_all(&p, READ_ALL);
	for (int i = 0; i < count; i++)
		protect_round(&p, nfd, w, side);
	pool_stop(&p);
	close(nfd);
	close(file);
}

/* The cost of one process, then of more, with sharing on */
static struct row *protect_walk(unsigned int nr)
{
	struct walk w = {
		.on = against_off("", nr, "us", "write-protect 64 MiB"),
	};

	w.page = against_off("", nr, "us", "write-protect 1 page");
	w.clean = against_off("", nr, "us", "write-protect 1 page again, not written since");
	w.scan = against_off("", nr, "us", "log of %u single pages taken", SINGLE);
	for (int side = 0; side < SIDES; side++)
		protect_side(nr, &w, side);
	return w.on;
}

/* What is done all the time */

static void touch_tables(const char *map)
{
	for (size_t at = 0; at < SIZE; at += TABLE)
		(void)*(const volatile char *)(map + at);
}

static void fork_exit(const char *map, struct series *s, bool touch)
{
	pid_t pid;

	begin();
	for (int i = 0; i < REPEAT; i++) {
		pid = fork();
		if (!pid) {
			if (touch)
				touch_tables(map);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
	}
	end_us(s, REPEAT);
}

static void forks(void)
{
	struct row *bare = against_off("", 1, "us", "fork, exit, wait; 64 MiB mapped");
	struct row *touch = against_off("child reads a byte in every 2 MiB", 1, "us",
					 "fork, exit, wait; 64 MiB mapped");

	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *map = map_shared(fd, SIZE);

		read_pages(map, SIZE);
		fork_exit(map, series_of(bare, side), false);
		fork_exit(map, series_of(touch, side), true);
		munmap(map, SIZE);
		close(fd);
	}
}

static void first_touch(bool resident, struct row *r)
{
	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident ? resident_file(share[side], SIZE) :
			 memfd(share[side], SIZE);
		char *map = map_shared(fd, SIZE);

		begin();
		write_pages(map, SIZE, PAGE);
		end_us(series_of(r, side), SIZE / PAGE);
		munmap(map, SIZE);
		close(fd);
	}
}

/* Another mapping keeps the page, or the file's tables, where they are */
static void map_touch_unmap(bool alone, struct row *r)
{
	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *other = alone ? NULL : map_shared(fd, SIZE);

		if (other)
			read_pages(other, SIZE);
		begin();
		for (int n = 0; n < REPEAT; n++) {
			char *map = map_shared(fd, SIZE);

			(void)*(volatile char *)(map + n * TABLE);
			munmap(map, SIZE);
		}
		end_us(series_of(r, side), REPEAT);
		if (other)
			munmap(other, SIZE);
		close(fd);
	}
}

static void map_unmap_all(struct row *map_row, struct row *unmap_row)
{
	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *other = map_shared(fd, SIZE), *map;

		read_pages(other, SIZE);
		begin();
		map = map_shared(fd, SIZE);
		read_pages(map, SIZE);
		end_us(series_of(map_row, side), 1);
		begin();
		munmap(map, SIZE);
		end_us(series_of(unmap_row, side), 1);
		munmap(other, SIZE);
		close(fd);
	}
}

/* One page becomes read-only, and back, with an access after each */
static void page_rights(size_t size)
{
	struct row *r = against_off("", 1, "us", "mprotect 1 page and back, of %lu MiB", size / MIB);

	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = memfd(share[side], size);
		char *map = map_shared(fd, size);
		char *page = map + size / 2 + 100 * PAGE;

		write_pages(map, size, TABLE);
		begin();
		for (int n = 0; n < REPEAT; n++) {
			mprotect(page, PAGE, PROT_READ);
			(void)*(volatile char *)page;
			mprotect(page, PAGE, PROT_READ | PROT_WRITE);
			*(volatile char *)page = n;
		}
		end_us(series_of(r, side), REPEAT);
		munmap(map, size);
		close(fd);
	}
}

/* A page goes that one process has mapped so often */
static void many_mappings(unsigned int nr)
{
	struct row *r = against_off("", nr, "us", "punch of a page that is mapped so often");
	char **maps = calloc(nr, sizeof(*maps));

	for (int i = 0; i < rounds * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = memfd(share[side], TABLE);

		for (unsigned int n = 0; n < nr; n++)
			maps[n] = map_shared(fd, TABLE);
		write_pages(maps[0], TABLE, PAGE);
		begin();
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      i * PAGE, PAGE))
			err(1, "fallocate");
		end_us(series_of(r, side), 1);
		for (unsigned int n = 0; n < nr; n++)
			munmap(maps[n], TABLE);
		close(fd);
	}
	free(maps);
}

static void ordinary_work(void)
{
	struct row *map, *unmap;

	forks();
	first_touch(false, against_off("hole", 1, "us", "first store to a page"));
	first_touch(true, with_goal(against_off("resident", 1, "us", "first store to a page"),
				    RATIO_AT_MOST, 1.05));
	map_touch_unmap(true, with_goal(against_off("alone", 1, "us", "mmap, read 1 byte, munmap"),
					RATIO_AT_MOST, 1.2));
	map_touch_unmap(false, against_off("another mapping has read all", 1, "us",
					   "mmap, read 1 byte, munmap"));
	map = against_off("another mapping has read all", 1, "us", "mmap and read all 64 MiB");
	unmap = against_off("another mapping has read all", 1, "us", "munmap of all 64 MiB");
	map_unmap_all(map, unmap);
	page_rights(SIZE);
	page_rights(GIB);
	many_mappings(1);
	many_mappings(quick ? 3000 : 30000);
}

/* One table is walked, whoever is linked to it: within a tenth the same */
static void same_cost(struct row *one, struct row *many)
{
	struct row *r = row("sharing", many->n, "us", "1 process", "write-protect 64 MiB");

	*r->ours = *many->ours;
	r->theirs = *one->ours;
	with_goal(r, RATIO_AT_MOST, 1.1);
}

int main(int argc, char **argv)
{
	static const unsigned int more[] = { 16, 64, MAX_PROCESSES };
	struct row *one, *many = NULL;

	open_results(argc, argv);
	run_on(0);
	if (quick)
		rounds = 1;
	joining("reads and writes", PROT_READ | PROT_WRITE);
	joining("reads only", PROT_READ);
	one = protect_walk(1);
	for (unsigned int i = 0; i < (quick ? 1 : 3); i++)
		many = protect_walk(more[i]);
	same_cost(one, many);
	ordinary_work();
	return report("Shared page tables, and ordinary ones",
		      "Processes are asleep while memfd_protect() works.");
}
