// SPDX-License-Identifier: GPL-2.0-only
/*
 * The unit of sharing is a block: what one page table maps. A mapping shares the
 * blocks that it maps as a whole, and no others, whatever has been done to it
 * before; and the same is done to an ordinary memfd, to see that nothing but that
 * is different. Also what it costs: faults of readers, a page whose rights change,
 * flushes of many mappings.
 */
#include "ptshare_common.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	240

#define SEED		7
#define BLOCK_PAGES	(TABLE_SIZE / 4096)
#define NR_TABLES	6UL
#define FILE_SIZE	(NR_TABLES * TABLE_SIZE)
#define FILE_PAGES	(NR_TABLES * BLOCK_PAGES)
#define MAX_LINES	200
#define NR_ROUNDS	60	/* of random changes */
#define NR_CHANGES	12	/* in each */

enum side { ORDINARY, SHARED, SIDES };

/* A VMA, relative to the area */
struct line {
	unsigned long start, end, offset;
	char perms[5];
	bool locked;
	bool huge;		/* with MADV_HUGEPAGE, and so not shared */
	long long shared_kb;
};

struct lines {
	unsigned int nr;
	struct line line[MAX_LINES];
};

/* What /proc/self/smaps says of an area */
static void read_lines(const char *area, size_t len, struct lines *lines)
{
	unsigned long first = (unsigned long)area, start, end, offset;
	struct line *line = NULL;
	char text[512], perms[5];
	FILE *file;

	lines->nr = 0;
	file = fopen("/proc/self/smaps", "re");
	if (!file)
		return;
	while (fgets(text, sizeof(text), file)) {
		if (sscanf(text, "%lx-%lx %4s %lx", &start, &end, perms,
			   &offset) == 4) {
			line = NULL;
			if (start < first || start >= first + len ||
			    lines->nr == MAX_LINES)
				continue;
			line = &lines->line[lines->nr++];
			memset(line, 0, sizeof(*line));
			line->start = start - first;
			line->end = end - first;
			line->offset = offset;
			strcpy(line->perms, perms);
		} else if (line && !strncmp(text, "Ptshare:", 8)) {
			line->shared_kb = strtoll(text + 8, NULL, 10);
		} else if (line && !strncmp(text, "VmFlags:", 8)) {
			line->locked = strstr(text, " lo");
			line->huge = strstr(text, " hg");
		}
	}
	fclose(file);
}

/* What a VMA is to share when all of it has been touched */
static long long due_kb(const struct line *line)
{
	unsigned long start = (line->start + TABLE_SIZE - 1) & -TABLE_SIZE;
	unsigned long end = line->end & -TABLE_SIZE;

	if (line->perms[0] != 'r' || line->perms[2] != '-' ||
	    line->perms[3] != 's' || line->huge)
		return 0;
	if ((line->start ^ line->offset) & (TABLE_SIZE - 1) || start >= end)
		return 0;
	return (end - start) >> 10;
}

static bool same_line(const struct line *a, const struct line *b)
{
	return a->start == b->start && a->end == b->end &&
	       a->offset == b->offset && !strcmp(a->perms, b->perms) &&
	       a->locked == b->locked && a->huge == b->huge;
}

/* Reads and, where it may, writes a page's own mark; false if it is another's */
static bool touch_line(char *area, const struct line *line)
{
	for (size_t at = line->start; at < line->end; at += page_size()) {
		size_t page = (line->offset + at - line->start) / page_size();
		char *addr = area + at;

		/* It may have grown beyond the file */
		if (page >= FILE_PAGES)
			break;
		if (line->perms[0] == 'r' &&
		    load64(addr) != page_mark(SEED, page))
			return false;
		if (line->perms[1] == 'w')
			store64(addr, page_mark(SEED, page));
	}
	return true;
}

FIXTURE(block) {
	int fd[SIDES];
	char *area[SIDES];
	struct peer peer;
	long long tables;
	struct ptshare_counts counts;
};

#define AREA_SIZE	(FILE_SIZE + 2 * TABLE_SIZE)
#define AT(side)	(self->area[side] + TABLE_SIZE)

FIXTURE_SETUP(block)
{
	static const unsigned int flags[SIDES] = { [SHARED] = MFD_SHARE_PGTABLES };

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	self->tables = ptshare_tables();
	self->counts = ptshare_counts();
	for (int side = 0; side < SIDES; side++) {
		self->fd[side] = sys_memfd_create(MFD_CLOEXEC | flags[side]);
		ASSERT_LE(0, self->fd[side]);
		ASSERT_EQ(0, ftruncate(self->fd[side], FILE_SIZE));
	}
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd[SHARED], 0,
				      FILE_SIZE, PROT_RW));
	for (int side = 0; side < SIDES; side++) {
		self->area[side] = reserve(AREA_SIZE);
		ASSERT_NE(MAP_FAILED, self->area[side]);
		ASSERT_NE(MAP_FAILED, map_at(AT(side), self->fd[side], 0,
					     FILE_SIZE, PROT_RW));
		fill_pages(AT(side), 0, FILE_PAGES, SEED);
	}
	self->peer.arg->seed = SEED;
	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
}

FIXTURE_TEARDOWN(block)
{
	struct ptshare_counts now;

	peer_kill(&self->peer);
	for (int side = 0; side < SIDES; side++) {
		munmap(self->area[side], AREA_SIZE);
		close(self->fd[side]);
	}
	EXPECT_TRUE(tables_become(self->tables));
	now = ptshare_counts();
	EXPECT_EQ(now.link - self->counts.link,
		  now.unlink - self->counts.unlink);
}

/* The same VMAs on both sides, right contents, and what is whole is shared */
static void compare(struct __test_metadata *_metadata,
		    FIXTURE_DATA(block) *self)
{
	static struct lines lines[SIDES];

	read_lines(self->area[ORDINARY], AREA_SIZE, &lines[ORDINARY]);
	read_lines(self->area[SHARED], AREA_SIZE, &lines[SHARED]);
	ASSERT_EQ(lines[ORDINARY].nr, lines[SHARED].nr);
	for (unsigned int i = 0; i < lines[SHARED].nr; i++) {
		const struct line *line = &lines[SHARED].line[i];

		ASSERT_TRUE(same_line(&lines[ORDINARY].line[i], line));
		if (strcmp(line->perms, "---p"))
			ASSERT_TRUE(touch_line(self->area[SHARED], line));
	}
	read_lines(self->area[SHARED], AREA_SIZE, &lines[SHARED]);
	for (unsigned int i = 0; i < lines[SHARED].nr; i++) {
		const struct line *line = &lines[SHARED].line[i];

		ASSERT_EQ(due_kb(line), line->shared_kb)
			TH_LOG("%lx-%lx %s", line->start, line->end,
			       line->perms);
	}
	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
	ASSERT_EQ((long long)(FILE_SIZE >> 10),
		  peer_call(&self->peer, peer_shared_kb));
}

/* What can be done to a part of a mapping */
enum change {
	UNMAP, MAP, MAP_RO, READ_ONLY, READ_WRITE, NO_ACCESS, ADVISE_RANDOM,
	ADVISE_NORMAL, DONTNEED, LOCK, UNLOCK, HUGE, NO_HUGE, GROW, CHANGES
};

static long grow(char *addr, size_t len)
{
	char *got;

	/* The page behind, if there is none, and a mapping ends here */
	munmap(addr + len, page_size());
	got = mremap(addr, len, len + page_size(), 0);
	return got == MAP_FAILED ? -errno : 0;
}

static long change(enum change what, int fd, char *addr, size_t offset,
		   size_t len)
{
	switch (what) {
	case UNMAP:
		return neg_errno(munmap(addr, len));
	case MAP:
		return map_at(addr, fd, offset, len, PROT_RW) != addr;
	case MAP_RO:
		return map_at(addr, fd, offset, len, PROT_READ) != addr;
	case READ_ONLY:
		return neg_errno(mprotect(addr, len, PROT_READ));
	case READ_WRITE:
		return neg_errno(mprotect(addr, len, PROT_RW));
	case NO_ACCESS:
		return neg_errno(mprotect(addr, len, PROT_NONE));
	case ADVISE_RANDOM:
		return neg_errno(madvise(addr, len, MADV_RANDOM));
	case ADVISE_NORMAL:
		return neg_errno(madvise(addr, len, MADV_NORMAL));
	case DONTNEED:
		return neg_errno(madvise(addr, len, MADV_DONTNEED));
	case LOCK:
		return neg_errno(mlock(addr, len));
	case UNLOCK:
		return neg_errno(munlock(addr, len));
	case HUGE:
		return neg_errno(madvise(addr, len, MADV_HUGEPAGE));
	case NO_HUGE:
		return neg_errno(madvise(addr, len, MADV_NOHUGEPAGE));
	default:
		return grow(addr, len);
	}
}

/* On both sides, with the same result */
static void change_both(struct __test_metadata *_metadata,
			FIXTURE_DATA(block) *self, enum change what,
			size_t first, size_t nr)
{
	size_t at = first * page_size(), len = nr * page_size();
	long ret[SIDES];

	for (int side = 0; side < SIDES; side++)
		ret[side] = change(what, self->fd[side], AT(side) + at, at, len);
	ASSERT_EQ(ret[ORDINARY], ret[SHARED])
		TH_LOG("change %d of %zu pages at %zu", what, nr, first);
}

/* Begin or end at a table's boundary, next to it, or anywhere */
static size_t random_page(void)
{
	size_t page = (rand() % (NR_TABLES + 1)) * BLOCK_PAGES;

	switch (rand() % 4) {
	case 0:
		page += 1;
		break;
	case 1:
		page -= page ? 1 : 0;
		break;
	case 2:
		page = rand() % FILE_PAGES;
		break;
	}
	return page < FILE_PAGES ? page : FILE_PAGES - 1;
}

/* Whatever is done, what is whole in the end is shared */
TEST_F(block, random_changes)
{
	srand(8);
	for (int round = 0; round < NR_ROUNDS; round++) {
		for (int i = 0; i < NR_CHANGES; i++) {
			size_t first = random_page(), end = random_page() + 1;

			if (first >= end)
				end = first + 1;
			change_both(_metadata, self, rand() % CHANGES, first,
				    end - first);
		}
		compare(_metadata, self);
		if (round % 4)
			continue;
		change_both(_metadata, self, MAP, 0, FILE_PAGES);
		compare(_metadata, self);
		ASSERT_EQ((long long)(FILE_SIZE >> 10),
			  shared_kb(AT(SHARED), FILE_SIZE));
	}
}

/* A change, and the same undone, for ranges of all kinds */

static const struct { enum change change, undo; } undone[] = {
	{ UNMAP, MAP }, { READ_ONLY, READ_WRITE }, { NO_ACCESS, READ_WRITE },
	{ ADVISE_RANDOM, ADVISE_NORMAL }, { LOCK, UNLOCK }, { MAP_RO, MAP },
};

static const struct { size_t first, nr; } part[] = {
	{ 0, 1 }, { FILE_PAGES - 1, 1 }, { 700, 1 }, { BLOCK_PAGES, 1 },
	{ BLOCK_PAGES - 1, 1 }, { BLOCK_PAGES, BLOCK_PAGES },
	{ BLOCK_PAGES - 12, 24 }, { BLOCK_PAGES, BLOCK_PAGES + 1 },
	{ 0, FILE_PAGES }, { 3, FILE_PAGES - 5 },
};

/* What of the file lies in tables that a part does not touch */
static long long untouched_kb(size_t first, size_t nr)
{
	size_t before = first / BLOCK_PAGES;
	size_t behind = (first + nr + BLOCK_PAGES - 1) / BLOCK_PAGES;

	return (before + NR_TABLES - behind) * TABLE_KB;
}

TEST_F(block, undone)
{
	for (size_t i = 0; i < sizeof(undone) / sizeof(*undone); i++) {
		for (size_t j = 0; j < sizeof(part) / sizeof(*part); j++) {
			size_t first = part[j].first, nr = part[j].nr;

			change_both(_metadata, self, undone[i].change, first,
				    nr);
			compare(_metadata, self);
			EXPECT_LE(untouched_kb(first, nr),
				  shared_kb(AT(SHARED), FILE_SIZE));
			change_both(_metadata, self, undone[i].undo, first, nr);
			/* Before anything is touched */
			EXPECT_LE(untouched_kb(first, nr),
				  shared_kb(AT(SHARED), FILE_SIZE));
			compare(_metadata, self);
			ASSERT_EQ((long long)(FILE_SIZE >> 10),
				  shared_kb(AT(SHARED), FILE_SIZE))
				TH_LOG("change %zu part %zu", i, j);
		}
	}
}

/* Ends that are not on boundaries: the whole tables between them are shared */
TEST_F(block, unaligned_ends)
{
	static const struct { size_t first, nr, tables; } cases[] = {
		{ 0, BLOCK_PAGES + 1, 1 }, { 1, 2 * BLOCK_PAGES - 1, 1 },
		{ 1, 3 * BLOCK_PAGES, 2 }, { BLOCK_PAGES - 1, 2 + BLOCK_PAGES, 1 },
		{ 1, BLOCK_PAGES, 0 }, { 0, FILE_PAGES - 1, NR_TABLES - 1 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		size_t len = cases[i].nr * page_size();
		/* Wherever mmap() likes */
		char *map = map_file(self->fd[SHARED],
				     cases[i].first * page_size(), len, PROT_RW);

		ASSERT_NE(MAP_FAILED, map);
		EXPECT_EQ(0, wrong_pages(map, cases[i].first, cases[i].nr,
					 SEED));
		EXPECT_EQ(cases[i].tables * TABLE_KB, shared_kb(map, len));
		fill_pages(map, cases[i].first, cases[i].nr, SEED);
		EXPECT_EQ(0, peer_call(&self->peer, peer_check));
		/* What is changed in the file is seen at the ends, and between */
		ASSERT_EQ(0, fallocate(self->fd[SHARED], FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE, 0, FILE_SIZE));
		for (size_t page = 0; page < cases[i].nr; page++)
			ASSERT_EQ(0, load64(map + page * page_size()));
		fill_pages(AT(SHARED), 0, FILE_PAGES, SEED);
		EXPECT_EQ(0, wrong_pages(map, cases[i].first, cases[i].nr,
					 SEED));
		ASSERT_EQ(0, madvise(map, len, MADV_PAGEOUT));
		EXPECT_EQ(0, wrong_pages(map, cases[i].first, cases[i].nr,
					 SEED));
		munmap(map, len);
	}
}

/* A mapping that goes elsewhere shares what is whole there */
TEST_F(block, moved)
{
	for (size_t i = 0; i < sizeof(part) / sizeof(*part); i++) {
		size_t at = part[i].first * page_size();
		size_t len = part[i].nr * page_size();

		for (int side = 0; side < SIDES; side++) {
			char *to = reserve(FILE_SIZE), *map;

			ASSERT_NE(MAP_FAILED, to);
			map = mremap(AT(side) + at, len, len, MREMAP_MAYMOVE |
				     MREMAP_FIXED, to + at);
			ASSERT_EQ(to + at, map);
			EXPECT_EQ(0, wrong_pages(map, part[i].first,
						 part[i].nr, SEED));
			fill_pages(map, part[i].first, part[i].nr, SEED);
			if (side == SHARED && part[i].nr == FILE_PAGES)
				EXPECT_EQ((long long)(FILE_SIZE >> 10),
					  shared_kb(map, len));
			/* And back */
			map = mremap(to + at, len, len, MREMAP_MAYMOVE |
				     MREMAP_FIXED, AT(side) + at);
			ASSERT_EQ(AT(side) + at, map);
			munmap(to, FILE_SIZE);
		}
		compare(_metadata, self);
		EXPECT_EQ((long long)(FILE_SIZE >> 10),
			  shared_kb(AT(SHARED), FILE_SIZE));
	}
}

/* An alarm's child has what its parent has, and what its parent could not have */
TEST_F(block, forked)
{
	int status;
	pid_t pid;

	change_both(_metadata, self, UNMAP, 700, 1);
	change_both(_metadata, self, LOCK, 3 * BLOCK_PAGES, BLOCK_PAGES);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *map = AT(SHARED);
		size_t wrong = wrong_pages(map, 0, 700, SEED) +
			       wrong_pages(map + 701 * page_size(), 701,
					   FILE_PAGES - 701, SEED);

		fill_pages(map, 0, 700, SEED);
		_exit(wrong || shared_kb(map, FILE_SIZE) !=
		      (long long)(NR_TABLES - 1) * TABLE_KB);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	compare(_metadata, self);
}

/* What came in between, or went wrong */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/* A huge entry that an ordinary mapping has got must go before it shares again */
TEST_F(block, huge_entry_in_between)
{
	size_t at = 2 * TABLE_SIZE, len = TABLE_SIZE;
	char *map = AT(SHARED) + at;

	ASSERT_EQ(0, change(HUGE, self->fd[SHARED], map, at, len));
	EXPECT_EQ(0, wrong_pages(map, at / page_size(), len / page_size(),
				 SEED));
	if (madvise(map, len, MADV_COLLAPSE))
		SKIP(return, "no huge pages");
	EXPECT_EQ(0, wrong_pages(map, at / page_size(), len / page_size(),
				 SEED));
	ASSERT_EQ((long long)TABLE_KB, smaps_sum(getpid(), map, len,
						 "ShmemPmdMapped", NULL));
	ASSERT_EQ(0, change(NO_HUGE, self->fd[SHARED], map, at, len));
	fill_pages(AT(SHARED), 0, FILE_PAGES, SEED + 1);
	self->peer.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&self->peer, peer_check));
	EXPECT_EQ((long long)(FILE_SIZE >> 10),
		  shared_kb(AT(SHARED), FILE_SIZE));
	/* What is cut off is gone, through that mapping too */
	ASSERT_EQ(0, ftruncate(self->fd[SHARED], at));
	ASSERT_EQ(0, ftruncate(self->fd[SHARED], FILE_SIZE));
	EXPECT_EQ(0, load64(map));
	self->peer.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(0, wrong_pages(AT(SHARED), 0, FILE_PAGES, SEED));
}

/*
 * fork() fails at a mapping behind one that shares, and before another. The child
 * that is thrown away has a part of its parent's mappings.
 */
TEST_F(block, fork_that_fails)
{
	size_t huge = 1UL << 40, half = FILE_SIZE / 2;
	char *area = reserve(2 * FILE_SIZE + huge);
	pid_t pid;

	ASSERT_NE(MAP_FAILED, area);
	ASSERT_NE(MAP_FAILED, map_at(area, self->fd[SHARED], 0, FILE_SIZE,
				     PROT_RW));
	ASSERT_NE(MAP_FAILED, map_at(area + FILE_SIZE + huge, self->fd[SHARED],
				     half, half, PROT_READ));
	EXPECT_EQ(0, wrong_pages(area, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, wrong_pages(area + FILE_SIZE + huge, FILE_PAGES / 2,
				 FILE_PAGES / 2, SEED));
	/* More than there is, which fork() counts anew */
	ASSERT_TRUE(write_file("/proc/sys/vm/overcommit_memory", "1"));
	ASSERT_NE(MAP_FAILED, mmap(area + FILE_SIZE, huge, PROT_RW, MAP_PRIVATE |
				   MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	ASSERT_TRUE(write_file("/proc/sys/vm/overcommit_memory", "0"));
	for (int i = 0; i < 20; i++) {
		pid = fork();
		if (!pid)
			_exit(0);
		ASSERT_EQ(-1, pid);
		ASSERT_EQ(ENOMEM, errno);
	}
	fill_pages(area, 0, FILE_PAGES, SEED + 1);
	EXPECT_EQ(0, wrong_pages(area + FILE_SIZE + huge, FILE_PAGES / 2,
				 FILE_PAGES / 2, SEED + 1));
	munmap(area, 2 * FILE_SIZE + huge);
	self->peer.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&self->peer, peer_check));
}

/* Looks for pages to drop, again and again, until it is told to stop */
static long peer_drop(void *data)
{
	struct peer_arg *arg = data;
	long nr = 0;

	for (; !arg->stop; nr++)
		if (fallocate(arg->fd, FALLOC_FL_PUNCH_HOLE |
			      FALLOC_FL_KEEP_SIZE, arg->offset, arg->len))
			return -errno;
	return nr;
}

#define WALKED		(4UL << 30)	/* all that some PMD tables map */

/*
 * A mapping that is cut at both ends is in the reverse mapping with all that is
 * between. Its own tables there go while others look for entries of the file.
 */
TEST(own_tables_under_a_walker)
{
	uint64_t end = now_ns() + 4000000000ULL;
	size_t len = WALKED - 2 * page_size();
	struct peer peer = { 0 };
	unsigned int turns = 0;
	char *map;
	long drops;
	int fd;

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	fd = share_file(WALKED / TABLE_SIZE, 0);
	ASSERT_LE(0, fd);
	map = reserve(WALKED);
	ASSERT_NE(MAP_FAILED, map);
	munmap(map, WALKED);
	map = map_at(map + page_size(), fd, page_size(), len, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_TRUE(peer_start(&peer, fd));
	/* Faults must not wait for it, but the PMD table is the same */
	peer.arg->offset = WALKED / 2 + 2 * TABLE_SIZE;
	peer.arg->len = WALKED / 4;
	ASSERT_TRUE(peer_tell(&peer, peer_drop));
	while (now_ns() < end) {
		ASSERT_EQ(0, madvise(map, len, MADV_HUGEPAGE));
		load64(map + WALKED / 2);
		ASSERT_EQ(0, madvise(map, len, MADV_NOHUGEPAGE));
		turns++;
	}
	peer.arg->stop = 1;
	drops = peer_answer(&peer);
	EXPECT_LT(0, drops);
	TH_LOG("%u turns, %ld drops", turns, drops);
	store64(map + WALKED / 2, 1);
	EXPECT_LT(0, shared_kb(map, len));
	peer_kill(&peer);
	munmap(map, len);
	close(fd);
	EXPECT_TRUE(tables_become(0));
}

/* Who is merged with a mapping whose soft-dirty bits are tracked is tracked too */
TEST_F(block, merged_with_tracked)
{
	size_t half = FILE_SIZE / 2;
	char *map = AT(SHARED), *other = map + half;
	unsigned int mappings;

	if (!write_file("/proc/self/clear_refs", "4"))
		SKIP(return, "no soft-dirty bits");
	if (soft_dirty(map))
		SKIP(return, "no soft-dirty bits");
	ASSERT_NE(MAP_FAILED, map_at(other, self->fd[SHARED], half, half,
				     PROT_READ));
	EXPECT_EQ(0, wrong_pages(other, FILE_PAGES / 2, FILE_PAGES / 2, SEED));
	ASSERT_EQ((long long)(half >> 10), shared_kb(other, half));
	ASSERT_EQ(0, mprotect(map, half, PROT_READ));
	ASSERT_EQ(0, mprotect(map, FILE_SIZE, PROT_RW));
	smaps_sum(getpid(), map, FILE_SIZE, "Ptshare", &mappings);
	ASSERT_EQ(1, mappings);
	fill_pages(map, 0, FILE_PAGES, SEED);
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	ASSERT_TRUE(write_file("/proc/self/clear_refs", "4"));
	/* Entries of the peer are none of its business */
	EXPECT_GT(10, peer_call(&self->peer, peer_faults_of_fill));
	EXPECT_EQ(0, shared_kb(map, FILE_SIZE));
	EXPECT_FALSE(soft_dirty(other + page_size()));
	store64(other + page_size(), page_mark(SEED, FILE_PAGES / 2 + 1));
	EXPECT_TRUE(soft_dirty(other + page_size()));
	EXPECT_FALSE(soft_dirty(other));
}

/* What it costs */

#define JOIN_SIZE	(64UL << 20)
#define JOIN_PAGES	(JOIN_SIZE / page_size())

/* A reader that comes after a writer takes a fault for each table */
TEST(reader_after_writer)
{
	int fd = share_file(JOIN_SIZE / TABLE_SIZE, 0), status;
	long long before, taken;
	char *map, *readers;
	pid_t pid;

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	ASSERT_LE(0, fd);
	map = map_file(fd, 0, JOIN_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	fill_pages(map, 0, JOIN_PAGES, SEED);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		readers = map_file(fd, 0, JOIN_SIZE, PROT_READ);
		before = faults();
		if (wrong_pages(readers, 0, JOIN_PAGES, SEED))
			_exit(255);
		taken = faults() - before;
		_exit(taken < 250 ? taken : 250);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_LE(WEXITSTATUS(status), 40);

	/* They are not writable, and go with their pages */
	readers = map_file(fd, 0, JOIN_SIZE, PROT_READ);
	ASSERT_NE(MAP_FAILED, readers);
	EXPECT_EQ(0, wrong_pages(readers, 0, JOIN_PAGES, SEED));
	EXPECT_EQ(SIGSEGV, try_store(readers + 5 * page_size(), 1));
	ASSERT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       page_size(), TABLE_SIZE));
	EXPECT_EQ(0, load64(readers + page_size()));
	EXPECT_EQ(0, load64(readers + TABLE_SIZE));
	EXPECT_EQ(page_mark(SEED, 0), load64(readers));
	munmap(readers, JOIN_SIZE);
	munmap(map, JOIN_SIZE);
	close(fd);
	EXPECT_TRUE(tables_become(0));
}

/* Stores to pages that are there: a fault for each 64 KiB, and none for the second process */
TEST(writer_of_what_is_there)
{
	const size_t tables = JOIN_SIZE / TABLE_SIZE;
	int fd = share_file(tables, 0);
	struct peer peer;
	long long before;
	char byte = 1;
	char *map;

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	if (page_size() != 4096)
		SKIP(return, "64 KiB are not 16 pages");
	ASSERT_LE(0, fd);
	for (size_t i = 0; i < JOIN_PAGES; i++)
		ASSERT_EQ(1, pwrite(fd, &byte, 1, i * page_size()));
	ASSERT_TRUE(peer_start_mapped(&peer, fd, 0, JOIN_SIZE, PROT_RW));
	peer.arg->seed = SEED;
	map = map_file(fd, 0, JOIN_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	before = faults();
	fill_pages(map, 0, JOIN_PAGES, SEED);
	EXPECT_GE((long long)(JOIN_PAGES / 16 + tables), faults() - before);
	EXPECT_GE((long)tables, peer_call(&peer, peer_faults_of_fill));
	EXPECT_EQ(0, wrong_pages(map, 0, JOIN_PAGES, SEED));
	EXPECT_EQ(JOIN_SIZE >> 10, shared_kb(map, JOIN_SIZE));
	/* All that is mapped is counted */
	EXPECT_EQ((long long)JOIN_SIZE >> 10, pid_field(getpid(), "status", "VmPtshare"));
	peer_kill(&peer);
	munmap(map, JOIN_SIZE);
	close(fd);
	EXPECT_TRUE(tables_become(0));
}

#define BIG		(1024UL << 20)
#define SMALL		(64UL << 20)

/*
 * The shortest of some: us for one page that becomes read-only, and back; with an
 * access after each, which brings entries back that sharing does not keep
 */
static double page_us(unsigned int flags, size_t size, bool touch)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | flags);
	double best = 1e9;
	char *map, *page;

	if (fd < 0 || ftruncate(fd, size))
		return -1;
	map = map_file(fd, 0, size, PROT_RW);
	page = map + size / 2 + 100 * page_size();
	for (size_t at = 0; at < size; at += TABLE_SIZE)
		store64(map + at, 1);
	for (int i = 0; i < 40; i++) {
		uint64_t start = now_ns();

		mprotect(page, page_size(), PROT_READ);
		if (touch)
			(void)load64(page);
		mprotect(page, page_size(), PROT_RW);
		if (touch)
			store64(page, i);
		if ((now_ns() - start) / 1000.0 < best)
			best = (now_ns() - start) / 1000.0;
	}
	munmap(map, size);
	close(fd);
	return best;
}

/* In one page of 1 GiB, without sharing and with it, and of 64 MiB with it */
struct page_costs {
	double plain;
	double big;
	double small;
};

static void keep_shorter(double *best, double us)
{
	if (us < *best)
		*best = us;
}

/*
 * The shortest of some in turn, until they are in this proportion: what disturbs one of them
 * on a busy machine is not there each time.
 */
static struct page_costs page_costs(double of_plain, double of_small, bool touch)
{
	struct page_costs c = { 1e9, 1e9, 1e9 };

	for (int i = 0; i < 6; i++) {
		keep_shorter(&c.plain, page_us(0, BIG, touch));
		keep_shorter(&c.small, page_us(MFD_SHARE_PGTABLES, SMALL, touch));
		keep_shorter(&c.big, page_us(MFD_SHARE_PGTABLES, BIG, touch));
		if (c.big <= of_plain * c.plain && c.big <= of_small * c.small)
			break;
	}
	return c;
}

/* One page of 1 GiB costs what it costs otherwise, nearly, and as in 64 MiB */
TEST(page_of_a_large_mapping)
{
	struct page_costs c;

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	c = page_costs(3, 2, false);
	TH_LOG("ordinary %.1f us, shared %.1f us, of 64 MiB %.1f us", c.plain, c.big,
	       c.small);
	ASSERT_LT(0, c.plain);
	EXPECT_LE(c.big, 3 * c.plain);
	EXPECT_LE(c.big, 2 * c.small);

	c = page_costs(1e9, 2, true);
	TH_LOG("with accesses: ordinary %.1f us, shared %.1f us, of 64 MiB %.1f us",
	       c.plain, c.big, c.small);
	ASSERT_LT(0, c.small);
	EXPECT_LE(c.big, 2 * c.small);
	EXPECT_TRUE(tables_become(0));
}

/* The shortest of some: us for reclaim's look at one page that is mapped so often */
static double flush_us(unsigned int mappings)
{
	size_t len = TABLE_SIZE;
	int fd = share_file(1, 0);
	char **map = calloc(mappings, sizeof(*map));
	double best = 1e9;

	if (fd < 0 || !map)
		return -1;
	for (unsigned int i = 0; i < mappings; i++) {
		/* A page apart, so that they are not merged */
		map[i] = map_file(fd, 0, len, i & 1 ? PROT_READ : PROT_RW);
		if (map[i] == MAP_FAILED)
			return -1;
	}
	for (int i = 0; i < 20; i++) {
		uint64_t start;

		store64(map[0] + page_size(), i);
		start = now_ns();
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      page_size(), page_size()))
			return -1;
		if ((now_ns() - start) / 1000.0 < best)
			best = (now_ns() - start) / 1000.0;
	}
	for (unsigned int i = 0; i < mappings; i++)
		munmap(map[i], len);
	free(map);
	close(fd);
	return best;
}

/* An address space is flushed once, however often it has mapped the page */
TEST(many_mappings_in_one_process)
{
	double few = 1e9, many = 1e9;

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	for (int i = 0; i < 3 && (!i || many > 4 * few); i++) {
		keep_shorter(&few, flush_us(2));
		keep_shorter(&many, flush_us(30000));
	}
	TH_LOG("2 mappings %.1f us, 30000 mappings %.1f us", few, many);
	ASSERT_LT(0, few);
	ASSERT_LT(0, many);
	EXPECT_LE(many, 4 * few);
	EXPECT_TRUE(tables_become(0));
}

TEST_HARNESS_MAIN
