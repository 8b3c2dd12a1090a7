/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the benchmarks share: the clock, statistics, and what every table says of
 * the machine that it was measured on.
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
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif

#define PAGE		4096UL
#define MAX_ROUNDS	101

/* The table goes to standard output and to the file of results */
static FILE *results;

__attribute__((format(printf, 1, 2)))
static inline void say(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	if (!results)
		return;
	va_start(args, fmt);
	vfprintf(results, fmt, args);
	va_end(args);
}

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

/* Whether a figure was above its goal */
static bool missed;

/* How a figure compares with what it was to be at most; 0: no goal */
static inline void say_goal(double figure, double goal)
{
	if (!goal)
		return;
	say(" %8.2f  %s", goal, figure <= goal ? "met" : "missed");
	missed |= figure > goal;
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

static inline void say_config(const char *option)
{
	char command[128], line[128] = "";
	FILE *f;

	snprintf(command, sizeof(command),
		 "zgrep -h '^CONFIG_%s[ =]' /proc/config.gz 2>/dev/null", option);
	f = popen(command, "r");
	if (f && fgets(line, sizeof(line), f))
		say(" %.*s", (int)strcspn(line, "\n") - 7, line + 7);
	if (f)
		pclose(f);
}

static inline void open_results(int argc, char **argv)
{
	const char *path = NULL;
	int option;

	while ((option = getopt(argc, argv, "o:")) != -1) {
		if (option != 'o')
			errx(2, "usage: %s [-o FILE]", argv[0]);
		path = optarg;
	}
	results = path ? fopen(path, "w") : NULL;
	if (path && !results)
		err(1, "%s", path);
}

static inline void say_machine(const char *what, const char *reproduce)
{
	static const char * const options[] = {
		"MEMFD_PROTECT", "MEMFD_PROTECT_DEBUG", "PTSHARE", "PTSHARE_DEBUG",
		"DEBUG_VM", "HZ", "PREEMPT_VOLUNTARY", "MEM_SOFT_DIRTY",
	};
	double ns = ns_per_instruction();
	struct utsname u;

	uname(&u);
	say("%s\n", what);
	say("kernel      %s %s\n", u.release, u.version);
	say("config     ");
	for (unsigned int i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		say_config(options[i]);
	say("\nguest       %ld MiB, %ld CPUs\n",
	    sysconf(_SC_PHYS_PAGES) * (sysconf(_SC_PAGESIZE) >> 10) >> 10,
	    sysconf(_SC_NPROCESSORS_ONLN));
	if (ns > 1.98 && ns < 2.02)
		say("clock       virtual: 2 ns for each instruction that is executed\n");
	else
		say("clock       real, %.2f ns an instruction: compare ratios at most\n",
		    ns);
	say("reproduce   %s\n\n", reproduce);
}

#endif /* BENCH_H */
