// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the walk that takes write access away: many ranges at once, which a scan
 * has, against many mappings. Every entry of every range is found, and what it costs
 * is not ranges times mappings.
 */
#include "memfd_protect_common.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	120

#define RW		(PROT_READ | PROT_WRITE)
#define NR_PAGES	2048
#define MAX_RANGES	1024

static unsigned int seed;

static unsigned int below(unsigned int limit)
{
	seed = seed * 1103515245 + 12345;
	return (seed >> 8) % limit;
}

FIXTURE(file) {
	int fd;
	int nfd;
	size_t page;
	struct memfd_range *ranges;
};

FIXTURE_SETUP(file)
{
	self->page = page_size();
	self->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, NR_PAGES * self->page));
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	self->ranges = calloc(MAX_RANGES, sizeof(*self->ranges));
	ASSERT_NE(NULL, self->ranges);
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_ASYNC));
}

FIXTURE_TEARDOWN(file)
{
	free(self->ranges);
	close(self->nfd);
	close(self->fd);
}

static char *map_pages(int fd, size_t page, size_t nr)
{
	char *map = mmap(NULL, nr * page_size(), RW, MAP_SHARED, fd,
			 page * page_size());

	return map == MAP_FAILED ? NULL : map;
}

static int take(const FIXTURE_DATA(file) *self)
{
	return scan_range(self->nfd, 0, 0, self->ranges, MAX_RANGES,
			  MEMFD_SCAN_REPROTECT, NULL);
}

/* A mapping of some pages of the file */
struct window {
	size_t first;
	size_t nr;
	char *map;
};

#define NR_WINDOWS	48

/* Marks the pages of what a scan has found; false if one has no business there */
static bool all_expected(const FIXTURE_DATA(file) *self, int nr, bool *expected)
{
	size_t page, end;

	for (int i = 0; i < nr; i++) {
		page = self->ranges[i].offset / self->page;
		end = page + self->ranges[i].length / self->page;
		for (; page < end; page++) {
			if (!expected[page])
				return false;
			expected[page] = false;
		}
	}
	return !memchr(expected, true, NR_PAGES);
}

/*
 * Random pages are written through random mappings, and taken by a scan. Had it left
 * one of them writable in one of the mappings, a store there would not be logged.
 */
TEST_F(file, every_entry_is_found)
{
	struct window w[NR_WINDOWS];
	bool expected[NR_PAGES];
	size_t page;

	for (int i = 0; i < NR_WINDOWS; i++) {
		w[i].first = below(NR_PAGES);
		w[i].nr = 1 + below(i % 3 ? 40 : NR_PAGES);
		if (w[i].nr > NR_PAGES - w[i].first)
			w[i].nr = NR_PAGES - w[i].first;
		w[i].map = map_pages(self->fd, w[i].first, w[i].nr);
		ASSERT_NE(NULL, w[i].map);
	}
	for (int round = 0; round < 30; round++) {
		unsigned int density = 1 + below(40);

		/* Everything that is written is writable in all mappings */
		memset(expected, 0, sizeof(expected));
		for (page = 0; page < NR_PAGES; page++) {
			if (below(density))
				continue;
			for (int i = 0; i < NR_WINDOWS; i++) {
				if (page - w[i].first >= w[i].nr)
					continue;
				w[i].map[(page - w[i].first) * self->page]++;
				expected[page] = true;
			}
		}
		EXPECT_TRUE(all_expected(self, take(self), expected))
			TH_LOG("round %d, first scan", round);

		/* Each page through one mapping, and another one each round */
		memset(expected, 0, sizeof(expected));
		for (page = 0; page < NR_PAGES; page++) {
			int i = below(NR_WINDOWS);

			if (page - w[i].first >= w[i].nr)
				continue;
			w[i].map[(page - w[i].first) * self->page]++;
			expected[page] = true;
		}
		EXPECT_TRUE(all_expected(self, take(self), expected))
			TH_LOG("round %d, second scan", round);
	}
	for (int i = 0; i < NR_WINDOWS; i++)
		munmap(w[i].map, w[i].nr * self->page);
}

/* Writes every page, or every second, and times the scan that takes them */
static uint64_t scan_ns(const FIXTURE_DATA(file) *self, size_t step)
{
	const int ranges = step == 1 ? 1 : NR_PAGES / step;
	uint64_t best = UINT64_MAX, start, ns;
	int found;

	for (int i = 0; i < 15; i++) {
		for (size_t page = 0; page < NR_PAGES; page += step)
			pwrite(self->fd, "x", 1, page * self->page);
		start = now_ns();
		found = take(self);
		ns = now_ns() - start;
		if (found != ranges)
			return 0;
		if (ns < best)
			best = ns;
	}
	return best;
}

#define NR_VMAS		4000

/*
 * 1024 ranges and 4000 mappings of one page each cost what 1024 ranges cost, and one
 * range in 4000 mappings: a sum, not a product of four millions.
 */
TEST_F(file, ranges_times_mappings)
{
	uint64_t many_ranges, many_vmas, both;
	char *map;

	many_ranges = scan_ns(self, 2);
	map = mmap(NULL, NR_VMAS * self->page, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	for (size_t i = 0; i < NR_VMAS; i++)
		ASSERT_NE(MAP_FAILED, mmap(map + i * self->page, self->page, RW,
					   MAP_SHARED | MAP_FIXED, self->fd,
					   i * 7919 % NR_PAGES * self->page));
	many_vmas = scan_ns(self, 1);
	both = scan_ns(self, 2);
	ASSERT_NE(0, many_ranges);
	ASSERT_NE(0, many_vmas);
	ASSERT_NE(0, both);
	TH_LOG("1024 ranges %llu us, %d mappings %llu us, both %llu us",
	       many_ranges / 1000ULL, NR_VMAS, many_vmas / 1000ULL,
	       both / 1000ULL);
	munmap(map, NR_VMAS * self->page);
	EXPECT_GT(5 * (many_ranges + many_vmas), both);
}

/*
 * A scan whose walk is yet to come: who writes by /proc/PID/mem finds entries that are writable,
 * and pages that are logged no more.
 */
#define WALK_US		2000000
#define BLOCK_PAGES	512
#define LAST_BLOCK	(NR_PAGES - BLOCK_PAGES)

static long op_take(void *arg)
{
	return take(arg);
}

/* Of the parent, whose page tables have the entries */
static long op_poke(void *arg)
{
	char path[32], byte = NEW_BYTE;
	long ret;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ret = neg_errno(pwrite(fd, &byte, 1, (uintptr_t)arg));
	close(fd);
	return ret;
}

/*
 * Writes a page in each page table, and begins a scan that sleeps before its walk. Returns where
 * the last of the pages is mapped, or NULL.
 */
static char *scan_begins(FIXTURE_DATA(file) *self, struct writer *scanner)
{
	char *map = map_pages(self->fd, 0, NR_PAGES);

	if (!map)
		return NULL;
	for (size_t page = 0; page < NR_PAGES; page += BLOCK_PAGES)
		map[page * self->page] = OLD_BYTE;
	if (!debug_set("delay_us", "walk", WALK_US) ||
	    !writer_start(scanner, -1, op_take, self) || !writer_blocks(scanner))
		return NULL;
	/* What it takes is taken at once; then it sleeps */
	return debug_set("delay_us", "walk", 0) ? map + LAST_BLOCK * self->page : NULL;
}

/* How many pages the next scan has, the written one being the last of them */
static int pages_until_last(FIXTURE_DATA(file) *self)
{
	int nr = take(self);

	return nr > 0 && self->ranges[nr - 1].offset == LAST_BLOCK * self->page ? nr : -1;
}

TEST_F(file, remote_write_before_the_walk)
{
	struct writer scanner, writer;
	char *at;

	if (!debug_set("delay_us", "walk", 0))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	at = scan_begins(self, &scanner);
	ASSERT_NE(NULL, at);
	ASSERT_TRUE(writer_start(&writer, self->nfd, op_poke, at));
	EXPECT_TRUE(writer_finishes(&writer));
	EXPECT_FALSE(scanner.out->done);
	EXPECT_EQ(1, writer.out->ret);
	EXPECT_TRUE(writer_finishes(&scanner));
	EXPECT_EQ(NR_PAGES / BLOCK_PAGES, scanner.out->ret);
	EXPECT_EQ(1, pages_until_last(self));
	writer_free(&writer);
	writer_free(&scanner);
}

/* ... and never comes, because who scans is killed: all is as if he had not begun */
TEST_F(file, remote_write_after_a_killed_scan)
{
	struct writer scanner, writer;
	char *at;

	if (!debug_set("delay_us", "walk", 0))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	at = scan_begins(self, &scanner);
	ASSERT_NE(NULL, at);
	writer_kill(&scanner);
	ASSERT_TRUE(writer_start(&writer, self->nfd, op_poke, at));
	EXPECT_TRUE(writer_finishes(&writer));
	EXPECT_EQ(1, writer.out->ret);
	EXPECT_EQ(NEW_BYTE, *at);
	EXPECT_EQ(NR_PAGES / BLOCK_PAGES, pages_until_last(self));
	writer_free(&writer);
	writer_free(&scanner);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
