// SPDX-License-Identifier: GPL-2.0-only
/*
 * What shared page tables save and cost: memory for page tables, faults of a
 * process that joins, memfd_protect() with many processes, and what is done all
 * the time: first touch, fork, mmap.
 *
 * Each measurement is made with an ordinary memfd ("off") and with one of
 * MFD_SHARE_PGTABLES ("on") in turn. Exit status 1 if page tables grow by more
 * than 2 kB for each MiB of the file and the upper levels of each process, if the
 * cost of memfd_protect() depends on the number of processes, or if a ratio is above
 * its goal.
 */
#include "bench.h"

#include <signal.h>
#include <sys/prctl.h>

#define MIB		(1UL << 20)
#define TABLE		(2 * MIB)
#define SIZE		(64 * MIB)
#define MAX_PROCESSES	256
#define ROUNDS		5
#define SINGLE		1000	/* pages of the log */
#define REPEAT		20	/* of what is short */
#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES 0x00200000U
#endif

enum side { OFF, ON, SIDES };

static const unsigned int share[SIDES] = { [ON] = MFD_SHARE_PGTABLES };

/* The table: a row for what is done, a column for each side */
static struct row {
	char what[48];
	const char *unit;
	double goal;		/* of the ratio, 0 for none */
	struct series value[SIDES];
} rows[40];
static unsigned int nr_rows;

__attribute__((format(printf, 2, 3)))
static struct row *row(const char *unit, const char *fmt, ...)
{
	struct row *r = &rows[nr_rows++];
	va_list args;

	va_start(args, fmt);
	vsnprintf(r->what, sizeof(r->what), fmt, args);
	va_end(args);
	r->unit = unit;
	return r;
}

static struct row *with_goal(struct row *r, double goal)
{
	r->goal = goal;
	return r;
}

static void say_rows(void)
{
	say("%-44s %-6s %32s %32s %8s %8s\n", "", "unit", "off", "on", "on/off",
	    "at most");
	for (unsigned int i = 0; i < nr_rows; i++) {
		say("%-44s %-6s", rows[i].what, rows[i].unit);
		for (int side = 0; side < SIDES; side++) {
			struct series *s = &rows[i].value[side];

			say(" %10.2f (%8.2f to %8.2f)", median(s), lowest(s),
			    highest(s));
		}
		if (median(&rows[i].value[OFF])) {
			double ratio = median(&rows[i].value[ON]) /
				       median(&rows[i].value[OFF]);

			say(" %8.3f", ratio);
			say_goal(ratio, rows[i].goal);
		}
		say("\n");
	}
	nr_rows = 0;
	memset(rows, 0, sizeof(rows));
}

/* Processes that are told by a letter what to do, and then say that it is done */
enum todo { NOTHING, MAP, READ_ALL, WRITE_ALL, WRITE_SINGLE };

struct pool {
	unsigned int nr;
	size_t size;
	int fd;
	int from;
	int to[MAX_PROCESSES];
	pid_t pid[MAX_PROCESSES];
};

static void read_pages(const char *map, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE)
		(void)*(const volatile char *)(map + at);
}

static void member(const struct pool *p, unsigned int nr, int in, int out)
{
	char *map = NULL, todo;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	run_on(nr);
	while (read(in, &todo, 1) == 1) {
		switch (todo) {
		case MAP:
			map = map_shared(p->fd, p->size);
			break;
		case READ_ALL:
			read_pages(map, p->size);
			break;
		case WRITE_ALL:
			write_pages(map, p->size, PAGE);
			break;
		case WRITE_SINGLE:
			write_pages(map, 16 * SINGLE * PAGE, 16 * PAGE);
			break;
		}
		if (write(out, &todo, 1) != 1)
			break;
	}
	_exit(0);
}

static void tell(struct pool *p, unsigned int nr, enum todo todo)
{
	char c = todo;

	for (unsigned int i = 0; i < nr; i++)
		if (write(p->to[i], &c, 1) != 1)
			err(1, "write to a process");
	for (unsigned int i = 0; i < nr; i++)
		if (read(p->from, &c, 1) != 1)
			err(1, "read from a process");
}

static void pool_start(struct pool *p, unsigned int nr, int fd, size_t size)
{
	int in[2], out[2];

	p->nr = nr;
	p->size = size;
	p->fd = fd;
	if (pipe2(out, O_CLOEXEC))
		err(1, "pipe");
	for (unsigned int i = 0; i < nr; i++) {
		if (pipe2(in, O_CLOEXEC))
			err(1, "pipe");
		p->pid[i] = fork();
		if (p->pid[i] < 0)
			err(1, "fork");
		if (!p->pid[i]) {
			close(in[1]);
			member(p, i, in[0], out[1]);
		}
		close(in[0]);
		p->to[i] = in[1];
	}
	close(out[1]);
	p->from = out[0];
	tell(p, nr, NOTHING);
}

static void pool_stop(struct pool *p)
{
	for (unsigned int i = 0; i < p->nr; i++) {
		kill(p->pid[i], SIGKILL);
		waitpid(p->pid[i], NULL, 0);
		close(p->to[i]);
	}
	close(p->from);
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

/* Memory of page tables */

static long page_tables(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "1", 1) != 1)
		err(1, "stat_refresh");
	close(fd);
	return figure("/proc/meminfo", "PageTables:");
}

static double own_tables(const struct pool *p)
{
	char path[64];
	double sum = 0;

	for (unsigned int i = 0; i < p->nr; i++) {
		snprintf(path, sizeof(path), "/proc/%d/status", p->pid[i]);
		sum += figure(path, "VmPTE:");
	}
	return sum / p->nr;
}

struct growth {
	long all;		/* kB, of the whole system */
	double own;		/* kB, of a process */
};

/* Tables of the pool before are freed some time after its end */
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

static struct growth grow(enum side side, unsigned int nr, size_t size)
{
	int fd = resident_file(share[side], size);
	struct growth g;
	struct pool p;

	pool_start(&p, nr, fd, size);
	g.all = settled_page_tables();
	g.own = own_tables(&p);
	tell(&p, nr, MAP);
	tell(&p, nr, READ_ALL);
	g.all = page_tables() - g.all;
	g.own = own_tables(&p) - g.own;
	pool_stop(&p);
	close(fd);
	return g;
}

/*
 * Leaf tables once, and what is above them for each process and for the file
 * itself: 4 kB for each GiB, and 8 kB.
 */
static long most(unsigned int nr, size_t size)
{
	long gib = (size + 1024 * MIB - 1) / (1024 * MIB);

	return 2 * (size / MIB) + (nr + 1) * (4 * gib + 8);
}

static bool table_growth(unsigned int nr, size_t size)
{
	struct growth off = grow(OFF, nr, size), on = grow(ON, nr, size);
	long limit = most(nr, size);

	say("%9u %9lu %12ld %12ld %12ld %6s %12.1f %12.1f\n", nr, size / MIB,
	    off.all, on.all, limit, on.all <= limit ? "" : "over", off.own,
	    on.own);
	return on.all <= limit;
}

static bool all_growth(void)
{
	bool ok = true;

	say("Page tables, kB: how much PageTables of /proc/meminfo grows when all processes\n"
	    "read all pages of a resident memfd, and VmPTE of each. The limit is 2 kB for each\n"
	    "MiB, and for each process and the file itself 8 kB and 4 kB for each GiB.\n\n");
	say("%9s %9s %12s %12s %12s %6s %12s %12s\n", "processes", "MiB", "off",
	    "on", "limit", "", "VmPTE, off", "VmPTE, on");
	ok &= table_growth(1, SIZE);
	ok &= table_growth(16, SIZE);
	ok &= table_growth(256, SIZE);
	ok &= table_growth(16, 1024 * MIB);
	say("\n");
	return ok;
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
	struct row *nr = row("faults", "%s reads 64 MiB", who);
	struct row *us = row("us", "  the same");

	for (int i = 0; i < ROUNDS * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *map = map_shared(fd, SIZE);
		pid_t pid;

		write_pages(map, SIZE, PAGE);
		pid = fork();
		if (!pid)
			join_file(fd, j, prot);
		waitpid(pid, NULL, 0);
		add(&nr->value[side], j->faults);
		add(&us->value[side], j->us);
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

	tell(p, p->nr, WRITE_ALL);
	begin();
	protect(p->fd, 0, SIZE, MEMFD_PROTECT_WAIT);
	end_us(&w->on->value[side], 1);
	unprotect(p->fd, 0, SIZE);

	tell(p, p->nr, WRITE_ALL);
	usleep(20000);	/* until they are asleep, and their CPUs idle */
	begin();
	protect(p->fd, 0, PAGE, MEMFD_PROTECT_WAIT);
	end_us(&w->page->value[side], 1);
	begin();
	protect(p->fd, 0, PAGE, MEMFD_PROTECT_WAIT);
	end_us(&w->clean->value[side], 1);
	unprotect(p->fd, 0, PAGE);

	protect(p->fd, 0, SIZE, MEMFD_PROTECT_ASYNC);
	tell(p, 1, WRITE_SINGLE);
	begin();
	if (ioctl(nfd, MEMFD_NOTIFY_SCAN, &scan) != SINGLE)
		err(1, "MEMFD_NOTIFY_SCAN");
	end_us(&w->scan->value[side], 1);
	unprotect(p->fd, 0, SIZE);
}

static void protect_side(unsigned int nr, struct walk *w, enum side side)
{
	int fd = resident_file(MFD_ALLOW_PROTECT | share[side], SIZE);
	int nfd = notify(fd), rounds = nr < 64 ? ROUNDS : 3;
	struct pool p;

	pool_start(&p, nr, fd, SIZE);
	tell(&p, nr, MAP);
	tell(&p, nr, READ_ALL);
	for (int i = 0; i < rounds; i++)
		protect_round(&p, nfd, w, side);
	pool_stop(&p);
	close(nfd);
	close(fd);
}

/* The cost of one process, then of more, with sharing on */
static double protect_walk(unsigned int nr)
{
	struct walk w = {
		.on = row("us", "write-protect 64 MiB, %u process%s", nr,
			  nr > 1 ? "es" : ""),
	};

	w.page = row("us", "  1 page");
	w.clean = row("us", "  the same again, not written since");
	w.scan = row("us", "  log of %u single pages taken", SINGLE);
	for (int side = 0; side < SIDES; side++)
		protect_side(nr, &w, side);
	return median(&w.on->value[ON]);
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
	struct row *bare = row("us", "fork, exit, wait; 64 MiB mapped");
	struct row *touch = row("us", "  child reads a byte in every 2 MiB");

	for (int i = 0; i < ROUNDS * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *map = map_shared(fd, SIZE);

		read_pages(map, SIZE);
		fork_exit(map, &bare->value[side], false);
		fork_exit(map, &touch->value[side], true);
		munmap(map, SIZE);
		close(fd);
	}
}

static void first_touch(bool resident, struct row *r)
{
	for (int i = 0; i < ROUNDS * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident ? resident_file(share[side], SIZE) :
			 memfd(share[side], SIZE);
		char *map = map_shared(fd, SIZE);

		begin();
		write_pages(map, SIZE, PAGE);
		end_us(&r->value[side], SIZE / PAGE);
		munmap(map, SIZE);
		close(fd);
	}
}

/* Another mapping keeps the page, or the file's tables, where they are */
static void map_touch_unmap(bool alone, struct row *r)
{
	for (int i = 0; i < ROUNDS * SIDES; i++) {
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
		end_us(&r->value[side], REPEAT);
		if (other)
			munmap(other, SIZE);
		close(fd);
	}
}

static void map_unmap_all(struct row *map_row, struct row *unmap_row)
{
	for (int i = 0; i < ROUNDS * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = resident_file(share[side], SIZE);
		char *other = map_shared(fd, SIZE), *map;

		read_pages(other, SIZE);
		begin();
		map = map_shared(fd, SIZE);
		read_pages(map, SIZE);
		end_us(&map_row->value[side], 1);
		begin();
		munmap(map, SIZE);
		end_us(&unmap_row->value[side], 1);
		munmap(other, SIZE);
		close(fd);
	}
}

/* One page becomes read-only, and back, with an access after each */
static void page_rights(size_t size)
{
	struct row *r = row("us", "mprotect 1 page and back, of %lu MiB",
			    size / MIB);

	for (int i = 0; i < ROUNDS * SIDES; i++) {
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
		end_us(&r->value[side], REPEAT);
		munmap(map, size);
		close(fd);
	}
}

/* A page goes that one process has mapped so often */
static void many_mappings(unsigned int nr)
{
	struct row *r = row("us", "punch of a page that is mapped %u times", nr);
	char **maps = calloc(nr, sizeof(*maps));

	for (int i = 0; i < ROUNDS * SIDES; i++) {
		enum side side = i % SIDES;
		int fd = memfd(share[side], TABLE);

		for (unsigned int n = 0; n < nr; n++)
			maps[n] = map_shared(fd, TABLE);
		write_pages(maps[0], TABLE, PAGE);
		begin();
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      i * PAGE, PAGE))
			err(1, "fallocate");
		end_us(&r->value[side], 1);
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
	first_touch(false, row("us", "first store to a page, hole"));
	first_touch(true, with_goal(row("us", "first store to a page, resident"), 1.05));
	map_touch_unmap(true, with_goal(row("us", "mmap, read 1 byte, munmap: alone"),
					1.2));
	map_touch_unmap(false, row("us", "  another mapping has read all"));
	map = row("us", "  mmap and read all 64 MiB");
	unmap = row("us", "  munmap of all that");
	map_unmap_all(map, unmap);
	page_rights(SIZE);
	page_rights(1024 * MIB);
	many_mappings(1);
	many_mappings(30000);
}

/* One table is walked, whoever is linked to it: within a tenth the same */
static bool same_cost(double one, double many)
{
	bool ok = many <= one * 1.1;

	say("\nwrite-protect 64 MiB with sharing, 256 processes to 1: %.3f%s\n",
	    many / one, ok ? "" : ", over the limit of 1.1");
	return ok;
}

int main(int argc, char **argv)
{
	double one, many;
	bool ok;

	open_results(argc, argv);
	run_on(0);
	say_machine("Shared page tables, and ordinary ones", "bench/ptshare");
	ok = all_growth();

	say("Median (lowest to highest). Processes are asleep while memfd_protect() works.\n\n");
	joining("joining process", PROT_READ | PROT_WRITE);
	joining("joining read-only process", PROT_READ);
	one = protect_walk(1);
	protect_walk(16);
	protect_walk(64);
	many = protect_walk(MAX_PROCESSES);
	ordinary_work();
	say_rows();
	ok &= same_cost(one, many);
	return !ok || missed;
}
