/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Files of several GiB, and mappings of them. They are sparse: one page of each page
 * table is used.
 */
#ifndef PTSHARE_GIB_H
#define PTSHARE_GIB_H

#include "ptshare_common.h"

#include <sys/stat.h>

#define GIB		(1UL << 30)
#define NR_GIBS		3UL
#define SIZE		(NR_GIBS * GIB)
#define TABLES		(SIZE / TABLE_SIZE)
#define SEED		21

/* The page of a table that is used: not always the same one */
static inline size_t page_of(size_t table)
{
	return table * TABLE_PAGES + table * 7 % TABLE_PAGES;
}

static inline void fill(char *map, size_t first, size_t nr, uint64_t seed)
{
	for (size_t i = first; i < first + nr; i++)
		store64(map + page_of(i) * page_size(),
			page_mark(seed, page_of(i)));
}

static inline size_t wrong(const char *map, size_t first, size_t nr, uint64_t seed)
{
	size_t bad = 0;

	for (size_t i = first; i < first + nr; i++)
		bad += load64(map + page_of(i) * page_size()) !=
		       page_mark(seed, page_of(i));
	return bad;
}

static inline long peer_fill_all(void *data)
{
	struct peer_arg *arg = data;

	fill(arg->map, 0, TABLES, arg->seed);
	return 0;
}

static inline long peer_check_all(void *data)
{
	struct peer_arg *arg = data;

	return wrong(arg->map, 0, TABLES, arg->seed);
}

/* Faults that looking at all of it has cost */
static inline long peer_faults(void *data)
{
	struct peer_arg *arg = data;
	long before = faults();

	return wrong(arg->map, 0, TABLES, arg->seed) ? -1 : faults() - before;
}

/* The same in a process that has no links yet */
static inline long peer_faults_of_child(void *data)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(peer_faults(data));
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ?
	       WEXITSTATUS(status) : -1;
}

/* Memory that a file has */
static inline long long file_kb(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? -1 : st.st_blocks / 2;
}

/*
 * Page tables of a process. So that those of a test's own are the same however often it
 * asks, it has all that its program, its heap and its stack can need from the first time on.
 */
static inline long long table_kb(pid_t pid)
{
	unsigned long start, end;
	volatile char stack[64 << 10];
	char line[512], prot[8];
	FILE *maps;

	for (size_t i = 0; i < sizeof(stack); i += page_size())
		stack[i] = 0;
	maps = pid == getpid() ? fopen("/proc/self/maps", "re") : NULL;
	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %7s", &start, &end, prot) == 3 &&
		    prot[0] == 'r' && prot[3] == 'p' && end - start < GIB)
			madvise((void *)start, end - start, MADV_POPULATE_READ);
	if (maps)
		fclose(maps);
	now_ns();
	return pid_field(pid, "status", "VmPTE");
}

/* What a process has mapped, for who looks for tables that should not be there */
static inline void print_maps(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "re");

	while (maps && fgets(line, sizeof(line), maps))
		printf("# %s", line);
	if (maps)
		fclose(maps);
}

/* Address space in which nothing is, at a multiple of a GiB */
static inline char *reserve_gibs(size_t len)
{
	char *area = mmap(NULL, len + GIB, PROT_NONE, MAP_PRIVATE |
			  MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *start = (char *)(((uintptr_t)area + GIB - 1) & -GIB);

	if (area == MAP_FAILED)
		return area;
	if (start > area)
		munmap(area, start - area);
	munmap(start + len, area + GIB - start);
	return start;
}

#endif /* PTSHARE_GIB_H */
