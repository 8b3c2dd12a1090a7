// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a small memfd costs that is mapped, used and unmapped, with shared page
 * tables ("on") and without: each step of it alone, and a process that maps it
 * and ends.
 *
 * Goals are those of mmap() with the first store, and of munmap().
 */
#include "bench.h"

#define ROUNDS		51
#define GOAL		1.3

enum side { OFF, ON, SIDES };
enum step { CREATE, FIRST_MAP, UNMAP, MAP_AGAIN, UNMAP_AGAIN, FORK_EXIT, CLOSE, STEPS };

static const unsigned int share[SIDES] = { [ON] = MFD_SHARE_PGTABLES };

static const char * const names[STEPS] = {
	[CREATE] = "memfd_create, ftruncate to 2 MiB",
	[FIRST_MAP] = "first mmap, first store",
	[UNMAP] = "munmap",
	[MAP_AGAIN] = "mmap again, store",
	[UNMAP_AGAIN] = "munmap again",
	[FORK_EXIT] = "fork, child maps, stores and ends, wait",
	[CLOSE] = "close",
};

static struct row *cost[STEPS];

static void map_and_store(int fd)
{
	*(volatile char *)map_shared(fd, TABLE) = 1;
}

static void child(int fd)
{
	pid_t pid = fork();

	if (!pid) {
		map_and_store(fd);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static void note(enum side side, enum step step, uint64_t *start)
{
	uint64_t now = now_ns();

	add(side == ON ? cost[step]->ours : &cost[step]->theirs,
	    (now - *start) / 1000.0);
	*start = now_ns();
}

static void life_of_a_file(enum side side)
{
	uint64_t start = now_ns();
	int fd = memfd(share[side], TABLE);
	char *map;

	note(side, CREATE, &start);
	map = map_shared(fd, TABLE);
	*(volatile char *)map = 1;
	note(side, FIRST_MAP, &start);
	munmap(map, TABLE);
	note(side, UNMAP, &start);
	map = map_shared(fd, TABLE);
	*(volatile char *)map = 1;
	note(side, MAP_AGAIN, &start);
	munmap(map, TABLE);
	note(side, UNMAP_AGAIN, &start);
	child(fd);
	note(side, FORK_EXIT, &start);
	close(fd);
	note(side, CLOSE, &start);
}

int main(int argc, char **argv)
{
	int rounds = ROUNDS;

	open_results(argc, argv);
	run_on(0);
	if (quick)
		rounds /= 10;
	for (int i = 0; i < STEPS; i++)
		cost[i] = row("", 1, "us", "without sharing", "%s", names[i]);
	with_goal(cost[FIRST_MAP], RATIO_AT_MOST, GOAL);
	with_goal(cost[UNMAP], RATIO_AT_MOST, GOAL);
	for (int i = 0; i < rounds * SIDES; i++)
		life_of_a_file(i % SIDES);
	return report("Small memfds, with shared page tables and without",
		      "A memfd of 2 MiB, of which one page is used. Both kinds take turns.");
}
