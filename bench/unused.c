// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is done all the time, where nothing is protected and nothing shared: to be run on
 * our kernel and on one without our patches, and to be the same.
 */
#include "bench.h"

#include <spawn.h>

#define SIZE	(16 * MIB)
#define ROUNDS	15
#define GOAL	1.005

extern char **environ;

static struct series *now_measured;
static uint64_t start;

static void begin(void)
{
	start = now_ns();
}

static void end(double times)
{
	add(now_measured, (now_ns() - start) / times);
}

static char *map_anonymous(int flags)
{
	char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

	if (map == MAP_FAILED || madvise(map, SIZE, MADV_NOHUGEPAGE))
		err(1, "mmap");
	return map;
}

static void anonymous_faults(void)
{
	char *map = map_anonymous(MAP_PRIVATE);

	begin();
	write_pages(map, SIZE, PAGE);
	end(SIZE / PAGE);
	munmap(map, SIZE);
}

static void shared_faults(void)
{
	char *map = map_anonymous(MAP_SHARED);

	begin();
	write_pages(map, SIZE, PAGE);
	end(SIZE / PAGE);
	munmap(map, SIZE);
}

/*
 * Where a mapping comes to lie beside a page that is there, so that its page table is not
 * made and freed with it: where it lies otherwise is chance.
 */
static char *beside_a_page(void)
{
	static char *area;

	if (!area) {
		area = map_anonymous(MAP_PRIVATE);
		area = (char *)(((uintptr_t)area + TABLE - 1) & -TABLE);
		area[TABLE - PAGE] = 1;
	}
	return area;
}

/* A file of the root file system, in the page cache */
static void file_faults(void)
{
	static char page[PAGE];
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	char *area = beside_a_page();
	size_t size = 4 * PAGE;

	for (size_t at = 0; at < size; at += PAGE)
		if (pread(fd, page, PAGE, at) != PAGE)
			err(1, "pread");
	munmap(area, size);
	begin();
	for (int i = 0; i < 100; i++) {
		char *map = mmap(area, size, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE,
				 fd, 0);

		if (map == MAP_FAILED)
			err(1, "mmap");
		(void)*(volatile char *)map;
		munmap(map, size);
	}
	end(100);
	close(fd);
}

static void memfd_faults(void)
{
	int fd = memfd(0, SIZE);
	char *map = map_shared(fd, SIZE);

	begin();
	write_pages(map, SIZE, PAGE);
	end(SIZE / PAGE);
	munmap(map, SIZE);
	close(fd);
}

static void memfd_resident(void)
{
	static char some[16 * PAGE];
	int fd = memfd(0, SIZE);
	char *map = map_shared(fd, SIZE);

	for (size_t at = 0; at < SIZE; at += sizeof(some))
		if (pwrite(fd, some, sizeof(some), at) != sizeof(some))
			err(1, "pwrite");
	begin();
	write_pages(map, SIZE, PAGE);
	end(SIZE / PAGE);
	munmap(map, SIZE);
	close(fd);
}

static void memfd_writes(void)
{
	static char page[PAGE];
	int fd = memfd(0, SIZE);

	begin();
	for (size_t at = 0; at < SIZE; at += PAGE)
		if (pwrite(fd, page, PAGE, at) != PAGE)
			err(1, "pwrite");
	end(SIZE / PAGE);
	close(fd);
}

static void fork_exit(void)
{
	char *map = map_anonymous(MAP_PRIVATE);

	write_pages(map, SIZE, PAGE);
	begin();
	for (int i = 0; i < 5; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
	end(5);
	munmap(map, SIZE);
}

/* Time of processors, without that in which files are opened on the host */
static double cpu_ns(void)
{
	struct rusage children;
	struct timespec own;

	getrusage(RUSAGE_CHILDREN, &children);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
	return own.tv_sec * 1e9 + own.tv_nsec +
	       (children.ru_utime.tv_sec + children.ru_stime.tv_sec) * 1e9 +
	       (children.ru_utime.tv_usec + children.ru_stime.tv_usec) * 1e3;
}

static void exec_true(void)
{
	char *const argv[] = { "true", NULL };
	double before = cpu_ns();

	for (int i = 0; i < 10; i++) {
		pid_t pid;

		if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ))
			errx(1, "/bin/true");
		waitpid(pid, NULL, 0);
	}
	add(now_measured, (cpu_ns() - before) / 10);
}

static void map_unmap(void)
{
	begin();
	for (int i = 0; i < 200; i++) {
		char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		*(volatile char *)map = 1;
		munmap(map, SIZE);
	}
	end(200);
}

static void map_unmap_memfd(void)
{
	int fd = memfd(0, SIZE);

	begin();
	for (int i = 0; i < 200; i++) {
		char *map = map_shared(fd, SIZE);

		*(volatile char *)map = 1;
		munmap(map, SIZE);
	}
	end(200);
	close(fd);
}

static void change_rights(void)
{
	char *map = map_anonymous(MAP_PRIVATE);

	write_pages(map, SIZE, PAGE);
	begin();
	for (int i = 0; i < 20; i++) {
		mprotect(map, SIZE, PROT_READ);
		mprotect(map, SIZE, PROT_READ | PROT_WRITE);
	}
	end(20);
	munmap(map, SIZE);
}

static const struct work {
	const char *what;
	const char *unit;
	void (*run)(void);
} works[] = {
	{ "first store to anonymous memory", "ns a page", anonymous_faults },
	{ "first store to shared anonymous memory", "ns a page", shared_faults },
	{ "mmap, fault and munmap of a file", "ns", file_faults },
	{ "first store to a memfd, hole", "ns a page", memfd_faults },
	{ "first store to a memfd, resident", "ns a page", memfd_resident },
	{ "write(2) to a memfd", "ns a page", memfd_writes },
	{ "fork, exit, wait; 16 MiB of anonymous memory", "ns", fork_exit },
	{ "fork, exec, exit, wait of /bin/true", "ns", exec_true },
	{ "mmap, fault and munmap of anonymous memory", "ns", map_unmap },
	{ "mmap, fault and munmap of a memfd", "ns", map_unmap_memfd },
	{ "mprotect of 16 MiB of anonymous memory and back", "ns", change_rights },
};

int main(int argc, char **argv)
{
	open_results(argc, argv);
	run_on(0);
	/* The first round of each warms up */
	for (unsigned int i = 0; i < sizeof(works) / sizeof(works[0]); i++) {
		struct series first = { .nr = 0 };

		now_measured = &first;
		works[i].run();
		now_measured = with_goal(row("", 1, works[i].unit, "vanilla", "%s", works[i].what),
					 RATIO_AT_MOST, GOAL)->ours;
		for (int n = 0; n < (quick ? 1 : ROUNDS); n++)
			works[i].run();
	}
	report("A kernel with our patches where nobody uses them, and one without",
	       "Two guests, one after the other: no memfd of ours is ever made.");
	return 0;	/* who sees both tells which goals are met */
}
