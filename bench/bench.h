/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the benchmarks share: the clock, statistics, and how they report: as rows,
 * from which the tables, the plots and the figures in documents are made.
 *
 * They are meant for a guest that counts instructions (scripts/guest --icount):
 * its clock goes on by 2 ns with each instruction, of whatever processor. Then
 * a time is counted work, the same in every run.
 */
#ifndef BENCH_H
#define BENCH_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#define __NR_memfd_notify	549
#endif
#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES	0x00200000U
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif

#define PAGE		4096UL
#define MIB		(1UL << 20)
#define GIB		(1UL << 30)
#define TABLE		(2 * MIB)	/* what a page table maps */
#define MAX_ROUNDS	101
#define MAX_ROWS	160


static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* The number after a name at the start of a line */
static inline long figure(const char *path, const char *name)
{
	FILE *f = fopen(path, "re");
	size_t len = strlen(name);
	char line[256];
	long value = -1;

	if (!f)
		err(1, "%s", path);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len))
			value = atol(line + len);
	fclose(f);
	if (value < 0)
		errx(1, "no %s in %s", name, path);
	return value;
}

/* What processors have counted for themselves is in /proc/meminfo then */
static inline void stat_refresh(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "1", 1) != 1)
		err(1, "stat_refresh");
	close(fd);
}

static inline int memfd(unsigned int flags, uint64_t size)
{
	int fd = syscall(__NR_memfd_create, "bench",
			 flags | MFD_CLOEXEC | MFD_NOEXEC_SEAL);

	if (fd < 0)
		err(1, "memfd_create");
	if (ftruncate(fd, size))
		err(1, "ftruncate");
	return fd;
}

static inline int notify(int fd)
{
	int nfd = syscall(__NR_memfd_notify, fd, 0);

	if (nfd < 0)
		err(1, "memfd_notify");
	return nfd;
}

static inline void protect(int fd, uint64_t offset, uint64_t length,
			   unsigned int mode)
{
	if (syscall(__NR_memfd_protect, fd, offset, length, PROT_READ, mode))
		err(1, "memfd_protect");
}

static inline void unprotect(int fd, uint64_t offset, uint64_t length)
{
	if (syscall(__NR_memfd_protect, fd, offset, length,
		    PROT_READ | PROT_WRITE, 0))
		err(1, "memfd_protect, to remove protection");
}

static inline char *map_shared(int fd, size_t size)
{
	char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		err(1, "mmap");
	return map;
}

static inline void write_pages(char *map, size_t size, size_t step)
{
	for (size_t at = 0; at < size; at += step)
		*(volatile char *)(map + at) = 1;
}

static inline void run_on(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu % sysconf(_SC_NPROCESSORS_ONLN), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "sched_setaffinity");
}

/* What was measured in each round */
struct series {
	double value[MAX_ROUNDS];
	unsigned int nr;
};

static inline void add(struct series *s, double value)
{
	if (s->nr < MAX_ROUNDS)
		s->value[s->nr++] = value;
}

static inline int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static inline double median(struct series *s)
{
	if (!s->nr)
		return 0;
	qsort(s->value, s->nr, sizeof(s->value[0]), compare);
	return s->nr % 2 ? s->value[s->nr / 2] :
	       (s->value[s->nr / 2 - 1] + s->value[s->nr / 2]) / 2;
}

static inline double lowest(struct series *s)
{
	median(s);
	return s->nr ? s->value[0] : 0;
}

static inline double highest(struct series *s)
{
	median(s);
	return s->nr ? s->value[s->nr - 1] : 0;
}

/* How long an instruction takes, from a loop of two million of them */
static inline double ns_per_instruction(void)
{
	struct series s = { .nr = 0 };

	for (int i = 0; i < 5; i++) {
		uint64_t count = 1000000, start = now_ns();

		asm volatile("1: dec %0; jnz 1b" : "+r" (count));
		add(&s, (now_ns() - start) / 2e6);
	}
	return median(&s);
}

/*
 * Rows. Each is a figure of ours, beside that of somebody else if there is one; both
 * are the median of their rounds.
 */

/* What is compared with the goal */
enum rule { NO_GOAL, RATIO_AT_MOST, RATIO_AT_LEAST, OURS_AT_MOST, OURS_AT_LEAST, LIMIT_AT_MOST };

static const char * const rule_names[] = {
	[RATIO_AT_MOST] = "ratio <= goal",
	[RATIO_AT_LEAST] = "ratio >= goal",
	[OURS_AT_MOST] = "ours <= goal",
	[OURS_AT_LEAST] = "ours >= goal",
	[LIMIT_AT_MOST] = "ours / limit <= goal",
};

struct row {
	char what[96];		/* the case */
	char variant[64];
	long n;			/* processes, or what else there are many of */
	const char *unit;
	const char *against;	/* whose figure "theirs" is, or NULL */
	struct series *ours;	/* own, or that of another row */
	struct series own;
	struct series theirs;
	double limit;		/* what ours can be at least, or 0 */
	double goal;
	enum rule rule;
};

static struct row rows[MAX_ROWS];
static unsigned int nr_rows;
static bool quick;		/* a tenth of the work will do */

__attribute__((format(printf, 5, 6)))
static inline struct row *row(const char *variant, long n, const char *unit,
			      const char *against, const char *what, ...)
{
	struct row *r = &rows[nr_rows++];
	va_list args;

	if (nr_rows > MAX_ROWS)
		errx(1, "more than %d rows", MAX_ROWS);
	va_start(args, what);
	vsnprintf(r->what, sizeof(r->what), what, args);
	va_end(args);
	snprintf(r->variant, sizeof(r->variant), "%s", variant);
	r->n = n;
	r->unit = unit;
	r->against = against;
	r->ours = &r->own;
	return r;
}

/* The same figure of ours beside that of another one */
static inline struct row *beside(struct row *first, const char *against)
{
	struct row *r = row(first->variant, first->n, first->unit, against,
			    "%s", first->what);

	r->ours = first->ours;
	return r;
}

static inline struct row *with_goal(struct row *r, enum rule rule, double goal)
{
	r->rule = rule;
	r->goal = goal;
	return r;
}

static inline struct row *with_limit(struct row *r, double limit)
{
	r->limit = limit;
	return r;
}

static inline double ratio(struct row *r)
{
	double theirs = median(&r->theirs);

	return theirs ? median(r->ours) / theirs : NAN;
}

static inline bool is_met(struct row *r)
{
	switch (r->rule) {
	case RATIO_AT_MOST:
		return ratio(r) <= r->goal;
	case RATIO_AT_LEAST:
		return ratio(r) >= r->goal;
	case OURS_AT_MOST:
		return median(r->ours) <= r->goal;
	case OURS_AT_LEAST:
		return median(r->ours) >= r->goal;
	case LIMIT_AT_MOST:
		return median(r->ours) <= r->goal * r->limit;
	case NO_GOAL:
		break;
	}
	return true;
}

/* Where the rows go: bench/results.py makes the table of it */
static FILE *results;
static const char *program;

static inline void open_results(int argc, char **argv)
{
	const char *path = NULL;
	int option;

	program = strrchr(argv[0], '/');
	program = program ? program + 1 : argv[0];
	while ((option = getopt(argc, argv, "qo:")) != -1) {
		if (option == 'q')
			quick = true;
		else if (option == 'o')
			path = optarg;
		else
			errx(2, "usage: %s [-q] [-o FILE]", program);
	}
	results = path ? fopen(path, "w") : stdout;
	if (!results)
		err(1, "%s", path);
}

static inline void put_number(const char *name, bool known, double value)
{
	if (known)
		fprintf(results, "\"%s\": %.6g, ", name, value);
	else
		fprintf(results, "\"%s\": null, ", name);
}

static inline void put_range(const char *name, struct series *s)
{
	if (s->nr)
		fprintf(results, ", \"%s\": [%.6g, %.6g]", name, lowest(s),
			highest(s));
}

static inline void put_row(struct row *r, bool last)
{
	bool both = r->ours->nr && r->theirs.nr && median(&r->theirs);

	fprintf(results, "{\"case\": \"%s\", \"variant\": \"%s\", \"n\": %ld, \"unit\": \"%s\", ",
		r->what, r->variant, r->n, r->unit);
	put_number("ours", r->ours->nr, median(r->ours));
	put_number("theirs", r->theirs.nr, median(&r->theirs));
	put_number("ratio", both, ratio(r));
	put_number("limit", r->limit, r->limit);
	put_number("goal", r->rule, r->goal);
	fprintf(results, "\"met\": %s",
		!r->rule ? "null" : is_met(r) ? "true" : "false");
	if (r->rule)
		fprintf(results, ", \"rule\": \"%s\"", rule_names[r->rule]);
	if (r->against)
		fprintf(results, ", \"against\": \"%s\"", r->against);
	put_range("ours_range", r->ours);
	put_range("theirs_range", &r->theirs);
	fprintf(results, "}%s\n", last ? "" : ",");
}

static inline void put_config(void)
{
	static const char * const options[] = {
		"MEMFD_PROTECT", "MEMFD_PROTECT_DEBUG", "PTSHARE", "PTSHARE_DEBUG",
		"DEBUG_VM", "HZ", "PREEMPT_VOLUNTARY", "MEM_SOFT_DIRTY",
	};
	const char *comma = "";

	fprintf(results, " \"config\": [");
	for (unsigned int i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		char command[128], line[128] = "";
		FILE *f;

		snprintf(command, sizeof(command),
			 "zgrep -h '^CONFIG_%s=' /proc/config.gz 2>/dev/null",
			 options[i]);
		f = popen(command, "r");
		if (f && fgets(line, sizeof(line), f)) {
			fprintf(results, "%s\"%.*s\"", comma,
				(int)strcspn(line, "\n") - 7, line + 7);
			comma = ", ";
		}
		if (f)
			pclose(f);
	}
	fprintf(results, "],\n");
}

/*
 * All rows, and what they were measured on. Returns the exit status: whether a goal
 * was missed. A tenth of the work shows that it runs, not how fast: no goal is.
 */
static inline int report(const char *title, const char *about)
{
	double ns = ns_per_instruction();
	bool missed = false;
	struct utsname u;

	uname(&u);
	fprintf(results, "{\"title\": \"%s\",\n \"about\": \"%s\",\n", title, about);
	fprintf(results, " \"name\": \"%s\", \"kernel\": \"%s %s\",\n", program,
		u.release, u.version);
	put_config();
	fprintf(results, " \"memory_mib\": %ld, \"cpus\": %ld, \"quick\": %s,\n",
		sysconf(_SC_PHYS_PAGES) * (sysconf(_SC_PAGESIZE) >> 10) >> 10,
		sysconf(_SC_NPROCESSORS_ONLN), quick ? "true" : "false");
	fprintf(results, " \"ns_per_instruction\": %.3g,\n \"rows\": [\n", ns);
	for (unsigned int i = 0; i < nr_rows; i++) {
		put_row(&rows[i], i == nr_rows - 1);
		missed |= !is_met(&rows[i]);
	}
	fprintf(results, "]}\n");
	if (fflush(results))
		err(1, "cannot write the results");
	return missed && !quick;
}

#endif /* BENCH_H */
