// SPDX-License-Identifier: GPL-2.0-only
/*
 * Large files: memfd_protect() of all of one, what the stores after it cost, and what a
 * process needs to map it.
 *
 * What is too large for the machine is computed from how the figures grow, and says so.
 */
#include "bench.h"

#include <linux/memfd_protect.h>
#include <signal.h>
#include <sys/prctl.h>

#define ROUNDS		5
#define MAX_PROCESSES	1000

static unsigned int rounds = ROUNDS;

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
	for (unsigned int i = 0; i < rounds; i++) {
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

	for (unsigned int i = 0; i < rounds; i++) {
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
	for (unsigned int i = 0; i < rounds; i++) {
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

/* What was measured for it, and what it was to be at most; 0: no goal */
static struct row *line(const char *what, long n, const char *unit,
			const struct series *s, double goal)
{
	struct row *r = row("sharing", n, unit, NULL, "%s", what);

	*r->ours = *s;
	return goal ? with_goal(r, OURS_AT_MOST, goal) : r;
}

static struct row *against(struct row *r, const char *whom,
			   const struct series *s)
{
	r->against = whom;
	r->theirs = *s;
	return r;
}

/* As it grows from 1 GiB to 16 */
static void computed(const struct protection *sparse,
		     const struct protection *large, unsigned int gib)
{
	struct series s = { .nr = 0 };
	struct protection a = *sparse, b = *large;
	double slope = (median(&b.protect) - median(&a.protect)) / 15;

	add(&s, median(&a.protect) + (gib - 1) * slope);
	row("sharing", 1, "us", NULL, "computed: protect %u GiB", gib)->own = s;
}

static void measure_protect(void)
{
	struct protection one, many, sparse, large, unshared;
	struct series pinned = { .nr = 0 }, rights = { .nr = 0 };
	struct row *r;

	protect_all(MFD_SHARE_PGTABLES, GIB, PAGE, 0, &one);
	protect_all(MFD_SHARE_PGTABLES, GIB, PAGE, 255, &many);
	protect_all(MFD_SHARE_PGTABLES, GIB, TABLE, 0, &sparse);
	protect_all(MFD_SHARE_PGTABLES, 16 * GIB, TABLE, 0, &large);
	protect_all(0, GIB, PAGE, 0, &unshared);
	protect_pinned_once(&pinned);
	mprotect_all(GIB, &rights);

	against(line("protect 1 GiB, resident", 1, "us", &one.protect, 100),
		"mprotect", &rights);
	line("protect 1 GiB, resident", 256, "us", &many.protect, 150);
	line("protect 1 GiB, resident, after direct I/O to some of it", 1, "us",
	     &pinned, 100);
	line("protect 1 GiB, one page in 2 MiB resident", 1, "us",
	     &sparse.protect, 100);
	line("protect 16 GiB, one page in 2 MiB resident", 1, "us",
	     &large.protect, 1200);
	computed(&sparse, &large, 300);
	computed(&sparse, &large, 1024);
	line("first store after it to 2 MiB", 1, "us", &one.first, 25);
	line("store after it to another page of them", 1, "us", &one.second, 0);
	r = row("ordinary tables", 1, "us", "mprotect", "protect 1 GiB, resident");
	*r->ours = unshared.protect;
	r->theirs = rights;
	with_goal(r, RATIO_AT_MOST, 0.7);
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
	struct series kb[2][2] = { 0 }, nr[2][2] = { 0 };

	for (int on = 0; on < 2; on++) {
		unsigned int flags = on ? MFD_SHARE_PGTABLES : 0;

		join(flags, 8 * GIB, &kb[on][0], &nr[on][0]);
		join(flags, 64 * GIB, &kb[on][1], &nr[on][1]);
	}
	against(line("page tables of a process that maps 64 GiB", 1, "kB",
		     &kb[1][1], 12), "without sharing", &kb[0][1]);
	against(line("faults of a process that joins and reads 8 GiB", 1, "faults",
		     &nr[1][0], 8), "without sharing", &nr[0][0]);
	against(line("faults of a process that joins and reads 64 GiB", 1, "faults",
		     &nr[1][1], 64), "without sharing", &nr[0][1]);
}

static void look(double kb[2])
{
	stat_refresh();
	kb[0] = figure("/proc/meminfo", "PageTables:");
	kb[1] = figure("/proc/meminfo", "Slab:");
}

/* What there is while so many processes have all of a file mapped, and have used it */
static void crowd(unsigned int nr, size_t size, double kb[2])
{
	static struct sleepers sleepers;
	int fd = memfd(MFD_SHARE_PGTABLES, size);
	double before[2];

	look(before);
	sleepers_start(&sleepers, nr, fd, size);
	look(kb);
	for (int i = 0; i < 2; i++)
		kb[i] -= before[i];
	sleepers_stop(&sleepers);
	close(fd);
}

/* The tables of the file are among it */
static void measure_crowd(void)
{
	unsigned int nr = quick ? 100 : 1000;
	struct series kb[2] = { 0 };
	double small[2], large[2];

	crowd(nr, PAGE, small);
	crowd(nr, 64 * GIB, large);
	for (int i = 0; i < 2; i++)
		add(&kb[i], (large[i] - small[i]) / nr);
	line("page tables of 64 GiB that all map, each", nr, "kB", &kb[0], 0);
	kb[0].nr = 0;
	add(&kb[0], (large[0] - small[0] - 64 * GIB / TABLE * 4) / nr);
	line("the same without the file's own of the lowest level, each", nr, "kB", &kb[0], 12);
	line("other memory of the kernel, each", nr, "kB", &kb[1], 0);
}

int main(int argc, char **argv)
{
	open_results(argc, argv);
	if (quick)
		rounds = 1;
	measure_protect();
	measure_join();
	measure_crowd();
	return report("Large files", "Resident memory is mapped and written by all processes, which are asleep then.");
}
