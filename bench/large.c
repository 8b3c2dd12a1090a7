// SPDX-License-Identifier: GPL-2.0-only
/*
 * Large files: memfd_protect() of all of one, what the stores after it cost, and what a
 * process needs to map it.
 *
 * Each line with a goal says whether it was met; exit status 1 if one was missed. What
 * is too large for the machine is computed from how the figures grow, and says so.
 */
#include "bench.h"

#include <linux/memfd_protect.h>
#include <signal.h>
#include <sys/prctl.h>

#define MIB		(1UL << 20)
#define GIB		(1UL << 30)
#define TABLE		(2 * MIB)
#define ROUNDS		5
#define MAX_PROCESSES	256
#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES 0x00200000U
#endif

/* A median, and what it was to be at most; 0: no goal */
static void say_line(const char *what, const char *unit, struct series *s,
		     double goal)
{
	say("%-52s %10.2f (%8.2f to %8.2f) %-6s", what, median(s), lowest(s),
	    highest(s), unit);
	say_goal(median(s), goal);
	say("\n");
}

/* Processes that map a file, have used it, and sleep */
struct sleepers {
	unsigned int nr;
	pid_t pid[MAX_PROCESSES];
};

static void sleepers_start(struct sleepers *s, unsigned int nr, int fd,
			   size_t size)
{
	int ready[2];
	char c = 0;

	s->nr = nr;
	if (pipe2(ready, O_CLOEXEC))
		err(1, "pipe");
	for (unsigned int i = 0; i < nr; i++) {
		s->pid[i] = fork();
		if (s->pid[i] < 0)
			err(1, "fork");
		if (s->pid[i])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		write_pages(map_shared(fd, size), size, TABLE);
		if (write(ready[1], &c, 1) == 1)
			for (;;)
				pause();
		_exit(1);
	}
	for (unsigned int i = 0; i < nr; i++)
		if (read(ready[0], &c, 1) != 1)
			err(1, "a process did not get ready");
	close(ready[0]);
	close(ready[1]);
}

static void sleepers_stop(struct sleepers *s)
{
	for (unsigned int i = 0; i < s->nr; i++)
		kill(s->pid[i], SIGKILL);
	while (wait(NULL) > 0)
		;
}

/* A file of @size, of which every @step bytes a page is resident */
static int make_file(unsigned int flags, size_t size, size_t step, char **map)
{
	int fd = memfd(flags, size);

	*map = map_shared(fd, size);
	write_pages(*map, size, step);
	return fd;
}

static void add_since(struct series *s, uint64_t start)
{
	add(s, (now_ns() - start) / 1e3);
}

struct protection {
	struct series protect;
	struct series first;	/* store to a table */
	struct series second;	/* to another page of it */
};

/* All of a file is protected, and then stored to in one place */
static void protect_all(unsigned int flags, size_t size, size_t step,
			unsigned int others, struct protection *p)
{
	struct sleepers sleepers;
	uint64_t start;
	char *map;
	int fd, nfd;

	fd = make_file(flags | MFD_ALLOW_PROTECT, size, step, &map);
	nfd = notify(fd);
	sleepers_start(&sleepers, others, fd, size);
	memset(p, 0, sizeof(*p));
	for (int i = 0; i < ROUNDS; i++) {
		start = now_ns();
		protect(fd, 0, 0, MEMFD_PROTECT_ASYNC);
		add_since(&p->protect, start);
		start = now_ns();
		*(volatile char *)(map + size / 2) = 1;
		add_since(&p->first, start);
		start = now_ns();
		*(volatile char *)(map + size / 2 + 17 * PAGE) = 1;
		add_since(&p->second, start);
		/* Back to what it was, with all entries writable */
		unprotect(fd, 0, 0);
		write_pages(map, size, step);
	}
	sleepers_stop(&sleepers);
	munmap(map, size);
	close(nfd);
	close(fd);
}

/* What mprotect() of the same takes in one process */
static void mprotect_all(size_t size, struct series *s)
{
	uint64_t start;
	char *map;
	int fd = make_file(0, size, PAGE, &map);

	for (int i = 0; i < ROUNDS; i++) {
		start = now_ns();
		if (mprotect(map, size, PROT_READ))
			err(1, "mprotect");
		add_since(s, start);
		if (mprotect(map, size, PROT_READ | PROT_WRITE))
			err(1, "mprotect");
		write_pages(map, size, PAGE);
	}
	munmap(map, size);
	close(fd);
}

/* The same of a file into which a disk has been read, without the page cache */
static void protect_pinned_once(struct series *s)
{
	uint64_t start;
	char *map;
	int from, fd = make_file(MFD_SHARE_PGTABLES | MFD_ALLOW_PROTECT, GIB,
				 PAGE, &map);

	from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC | O_DIRECT);
	if (from < 0)
		err(1, "O_DIRECT");
	for (int i = 0; i < ROUNDS; i++) {
		for (size_t at = 0; at < GIB; at += 64 * MIB)
			if (pread(from, map + at, PAGE, 0) != PAGE)
				err(1, "pread");
		/* The first one looks where that was */
		protect(fd, 0, 0, MEMFD_PROTECT_DENY);
		unprotect(fd, 0, 0);
		write_pages(map, GIB, PAGE);
		start = now_ns();
		protect(fd, 0, 0, MEMFD_PROTECT_DENY);
		add_since(s, start);
		unprotect(fd, 0, 0);
		write_pages(map, GIB, PAGE);
	}
	munmap(map, GIB);
	close(from);
	close(fd);
}

static void measure_protect(void)
{
	struct protection one, many, sparse, large, unshared;
	struct series pinned = { .nr = 0 };
	struct series rights = { .nr = 0 }, ratio = { .nr = 0 };
	double slope;

	protect_all(MFD_SHARE_PGTABLES, GIB, PAGE, 0, &one);
	protect_all(MFD_SHARE_PGTABLES, GIB, PAGE, 255, &many);
	protect_all(MFD_SHARE_PGTABLES, GIB, TABLE, 0, &sparse);
	protect_all(MFD_SHARE_PGTABLES, 16 * GIB, TABLE, 0, &large);
	protect_all(0, GIB, PAGE, 0, &unshared);
	protect_pinned_once(&pinned);
	mprotect_all(GIB, &rights);
	add(&ratio, median(&unshared.protect) / median(&rights));

	say_line("protect 1 GiB, resident, 1 process", "us", &one.protect, 100);
	say_line("  256 processes", "us", &many.protect, 150);
	say_line("  after direct I/O to some pages of it", "us", &pinned, 100);
	say_line("  one page in 2 MiB resident, 1 process", "us",
		 &sparse.protect, 100);
	say_line("protect 16 GiB, one page in 2 MiB, 1 process", "us",
		 &large.protect, 1200);
	slope = (median(&large.protect) - median(&sparse.protect)) / 15;
	say("  as it grows (%.1f us a GiB), 300 GiB: %.1f ms; 1 TiB: %.1f ms\n",
	    slope, (median(&sparse.protect) + 299 * slope) / 1e3,
	    (median(&sparse.protect) + 1023 * slope) / 1e3);
	say_line("first store after it to 2 MiB", "us", &one.first, 25);
	say_line("  to another page of them", "us", &one.second, 0);
	say_line("protect 1 GiB, resident, without sharing, 1 process", "us",
		 &unshared.protect, 0);
	say_line("mprotect() 1 GiB, resident, 1 process", "us", &rights, 0);
	say_line("  memfd_protect() to mprotect()", "", &ratio, 0.7);
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/* What a process has that joins, and reads a byte in every 2 MiB */
static void join(unsigned int flags, size_t size, struct series *table_kb,
		 struct series *nr_faults)
{
	int result[2];
	char *map;
	int fd = make_file(flags, size, TABLE, &map);

	if (pipe2(result, O_CLOEXEC))
		err(1, "pipe");
	for (int i = 0; i < 3; i++) {
		double value[2];

		if (!fork()) {
			long kb = figure("/proc/self/status", "VmPTE:");
			long before;
			char *mine;

			/* Code and stack first */
			munmap(map, size);
			before = faults();
			before = faults();
			mine = map_shared(fd, size);
			for (size_t at = 0; at < size; at += TABLE)
				(void)*(volatile char *)(mine + at);
			value[1] = faults() - before;
			value[0] = figure("/proc/self/status", "VmPTE:") - kb;
			_exit(write(result[1], value, sizeof(value)) !=
			      sizeof(value));
		}
		if (read(result[0], value, sizeof(value)) != sizeof(value))
			err(1, "read");
		wait(NULL);
		add(table_kb, value[0]);
		add(nr_faults, value[1]);
	}
	close(result[0]);
	close(result[1]);
	munmap(map, size);
	close(fd);
}

static void measure_join(void)
{
	struct series kb[2] = { 0 }, nr[2] = { 0 }, kb64[2] = { 0 };
	struct series nr64[2] = { 0 };

	for (int on = 0; on < 2; on++) {
		join(on ? MFD_SHARE_PGTABLES : 0, 8 * GIB, &kb[on], &nr[on]);
		join(on ? MFD_SHARE_PGTABLES : 0, 64 * GIB, &kb64[on],
		     &nr64[on]);
	}
	say_line("page tables of a process that maps 64 GiB", "kB", &kb64[1], 12);
	say_line("  without sharing", "kB", &kb64[0], 0);
	say_line("faults of a process that joins and reads 8 GiB", "", &nr[1], 8);
	say_line("  without sharing", "", &nr[0], 0);
	say_line("  64 GiB", "", &nr64[1], 64);
}

int main(int argc, char **argv)
{
	open_results(argc, argv);
	say_machine("Large files", "bench/large");
	say("Median of %u rounds (lowest to highest). Resident memory is mapped and written by all\n"
	    "processes, which are asleep then.\n\n", ROUNDS);
	say("%-52s %10s %22s %-6s %8s\n", "", "", "", "unit", "at most");
	measure_protect();
	measure_join();
	return missed;
}
