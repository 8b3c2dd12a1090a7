// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a small memfd costs that is mapped, used and unmapped, with shared page
 * tables ("on") and without: each step of it alone, and a process that maps it
 * and ends.
 *
 * Exit status 1 if mmap() with the first store, or munmap(), costs more than
 * 1.3 times what it costs without.
 */
#include "bench.h"

#define TABLE		(2UL << 20)
#define ROUNDS		51
#define LIMIT		1.3
#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES 0x00200000U
#endif

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

static struct series cost[STEPS][SIDES];

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

	add(&cost[step][side], (now - *start) / 1000.0);
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
	bool ok = true;

	open_results(argc, argv);
	run_on(0);
	say_machine("Small memfds, with shared page tables and without",
		    "scripts/bench small_files");
	say("Median of %d, us\n\n%-42s %10s %10s %8s\n", ROUNDS, "", "off", "on",
	    "on/off");
	for (int i = 0; i < ROUNDS * SIDES; i++)
		life_of_a_file(i % SIDES);
	for (int i = 0; i < STEPS; i++) {
		double off = median(&cost[i][OFF]), on = median(&cost[i][ON]);
		bool over = on > LIMIT * off && (i == FIRST_MAP || i == UNMAP);

		say("%-42s %10.2f %10.2f %8.3f%s\n", names[i], off, on,
		    on / off, over ? "  over the limit" : "");
		ok &= !over;
	}
	return ok ? 0 : 1;
}
