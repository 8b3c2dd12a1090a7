// SPDX-License-Identifier: GPL-2.0-only
/*
 * Huge pages of files whose page tables are shared: processes that link to whole GiBs
 * have huge entries, which they share too. What a process sees is the same as ever.
 *
 * Needs root, for /sys/kernel/mm/transparent_hugepage/shmem_enabled.
 */
#include "ptshare_common.h"

#include <linux/mempolicy.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define GIB		(1UL << 30)
#define NR_HUGE		4UL		/* that are touched */
#define USED		(NR_HUGE * TABLE_SIZE)
#define SEED		7
#define THE_PAGE	77
#define ALL		0, 0		/* pages */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MADV_PAGEOUT
#define MADV_COLD	20
#define MADV_PAGEOUT	21
#endif

static char *address(char *map, size_t page)
{
	return map + page * page_size();
}

/* kB that a process has by huge entries */
static long long huge_kb_of(pid_t pid, const char *map)
{
	return smaps_sum(pid, map, GIB, "ShmemPmdMapped", NULL);
}

static long long huge_kb(const char *map)
{
	return huge_kb_of(getpid(), map);
}

static long peer_faults(void *data __attribute__((unused)))
{
	return faults();
}

static long peer_huge_kb(void *data)
{
	struct peer_arg *arg = data;

	return huge_kb(arg->map);
}

static long peer_try_store(void *data)
{
	struct peer_arg *arg = data;

	return try_store(arg->map + arg->value, arg->flags);
}

static long peer_store_at(struct peer *p, size_t page)
{
	p->arg->value = page * page_size() + 8;
	return peer_call(p, peer_try_store);
}

/* Links */
static long peer_load(void *data)
{
	struct peer_arg *arg = data;

	return try_load(arg->map);
}

/* How many pages of those that are used are wrong */
static long peer_wrong(void *data)
{
	struct peer_arg *arg = data;

	return wrong_pages(arg->map, 0, NR_HUGE * TABLE_PAGES, arg->seed);
}

FIXTURE(huge) {
	int fd;
	int nfd;
	char *map;
	struct peer peer;
	long long tables;
	char before[32];
};

FIXTURE_VARIANT(huge) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(huge, plain) {
	.flags = 0,
};

FIXTURE_VARIANT_ADD(huge, protectable) {
	.flags = MFD_ALLOW_PROTECT,
};

/* Both have it all by huge entries; the peer has it after this process */
FIXTURE_SETUP(huge)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	if (variant->flags && !have_protect())
		SKIP(return, "no memfd_protect()");
	if (!set_shmem_huge("always", self->before, sizeof(self->before)))
		SKIP(return, "no huge pages of shmem");
	self->tables = ptshare_tables();
	self->fd = share_memfd(variant->flags);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, GIB));
	self->nfd = variant->flags ? sys_memfd_notify(self->fd, 0) : -1;
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, GIB, PROT_RW));
	self->peer.arg->seed = SEED;
	self->map = map_file(self->fd, 0, GIB, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED);
	if (meminfo_kb("ShmemHugePages") < (long long)(USED >> 10))
		SKIP(return, "no memory for huge pages");
	ASSERT_EQ(0, peer_call(&self->peer, peer_wrong));
}

FIXTURE_TEARDOWN(huge)
{
	peer_kill(&self->peer);
	munmap(self->map, GIB);
	close(self->nfd);
	close(self->fd);
	set_shmem_huge(self->before, NULL, 0);
	EXPECT_TRUE(tables_become(self->tables));
	EXPECT_EQ(0, meminfo_kb("ShmemPmdMapped"));
}

#define NEEDS_PROTECT() do {			\
	if (!variant->flags)			\
		SKIP(return, "protectable only"); \
} while (0)

/* Both have so many huge entries, and small ones for the rest */
#define EXPECT_HUGE(nr) do {						\
	EXPECT_EQ((long long)((nr) * TABLE_KB), huge_kb(self->map));	\
	EXPECT_EQ((long)((nr) * TABLE_KB), peer_call(&self->peer, peer_huge_kb)); \
	EXPECT_TRUE(tables_become(self->tables + NR_HUGE - (nr)));	\
} while (0)

/* One process has made the entries, the other has not a single fault but for the link */
TEST_F(huge, shared)
{
	struct peer third;
	long before;

	EXPECT_HUGE(NR_HUGE);
	EXPECT_EQ(USED >> 10, shared_kb(self->map, GIB));
	ASSERT_TRUE(peer_start_mapped(&third, self->fd, 0, GIB, PROT_RW));
	third.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&third, peer_load));
	before = peer_call(&third, peer_faults);
	EXPECT_EQ(0, peer_call(&third, peer_wrong));
	EXPECT_EQ(before, peer_call(&third, peer_faults));
	EXPECT_EQ((long)(USED >> 10), peer_call(&third, peer_huge_kb));
	EXPECT_TRUE(peer_exit(&third));
	/* Counted once, as any page of theirs */
	EXPECT_EQ((long long)(USED >> 10), meminfo_kb("ShmemPmdMapped"));
}

/* A fault for each 2 MiB */
TEST_F(huge, one_fault)
{
	long before = faults();

	for (size_t i = NR_HUGE; i < 2 * NR_HUGE; i++)
		for (size_t page = 0; page < TABLE_PAGES; page++)
			store64(self->map + i * TABLE_SIZE + page * page_size(), 1);
	EXPECT_GE(before + NR_HUGE, (unsigned long)faults());
	EXPECT_EQ(2 * NR_HUGE * TABLE_KB, huge_kb(self->map));
	EXPECT_TRUE(tables_become(self->tables));
}

/* Also where there is a page table, because somebody links to that: it maps all of a folio */
TEST_F(huge, one_fault_in_a_table)
{
	struct peer small;

	for (size_t i = NR_HUGE; i < 2 * NR_HUGE; i++)
		for (size_t page = 0; page < TABLE_PAGES; page++)
			ASSERT_EQ(1, pwrite(self->fd, "x", 1,
					    i * TABLE_SIZE + page * page_size()));
	ASSERT_TRUE(peer_start_mapped(&small, self->fd, USED, USED, PROT_RW));
	small.arg->seed = SEED;
	EXPECT_GE((long)NR_HUGE, peer_call(&small, peer_faults_of_fill));
	EXPECT_TRUE(peer_exit(&small));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, USED, USED));
}

/* Who reads only has entries of his own class */
TEST_F(huge, readers)
{
	struct peer reader;

	ASSERT_TRUE(peer_start_mapped(&reader, self->fd, 0, GIB, PROT_READ));
	reader.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&reader, peer_wrong));
	EXPECT_EQ((long)(USED >> 10), peer_call(&reader, peer_huge_kb));
	EXPECT_EQ(SIGSEGV, peer_store_at(&reader, THE_PAGE));
	EXPECT_TRUE(tables_become(self->tables));
	EXPECT_TRUE(peer_exit(&reader));
	EXPECT_HUGE(NR_HUGE);
}

/* A guest that links by PMD entries needs a table: so do others, then, until it goes */
TEST_F(huge, small_links)
{
	struct peer small;

	ASSERT_TRUE(peer_start_mapped(&small, self->fd, 0, USED, PROT_RW));
	small.arg->seed = SEED;
	store64(address(self->map, 1) + 8, 99);
	EXPECT_EQ(0, peer_call(&small, peer_check));
	EXPECT_EQ(99, load64(address(self->map, 1) + 8));
	EXPECT_HUGE(0);
	small.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&small, peer_fill));
	self->peer.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	EXPECT_EQ(0, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED + 1));
	EXPECT_TRUE(peer_exit(&small));
	/* The next fault there makes it huge again: there is one after the entries went */
	ASSERT_EQ(0, madvise(self->map, USED, MADV_DONTNEED));
	EXPECT_EQ(0, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED + 1));
}

TEST_F(huge, protect_all)
{
	long long splits, tables = ptshare_tables();

	NEEDS_PROTECT();
	splits = vmstat("thp_split_pmd");
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < NR_HUGE * TABLE_PAGES; i += 61)
		EXPECT_EQ(SIGBUS, try_store(address(self->map, i) + 8, 1));
	for (size_t i = 0; i < NR_HUGE * TABLE_PAGES; i += 61)
		EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, i));
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	/* Nobody has written: all is as large as it was */
	EXPECT_EQ(splits, vmstat("thp_split_pmd"));
	EXPECT_HUGE(NR_HUGE);
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	EXPECT_EQ(0, try_store(address(self->map, 1) + 8, 5));
	EXPECT_EQ(0, peer_store_at(&self->peer, TABLE_PAGES + 1));
	EXPECT_EQ(splits, vmstat("thp_split_pmd"));
	EXPECT_EQ(tables, ptshare_tables());
	EXPECT_HUGE(NR_HUGE);
}

TEST_F(huge, protect_a_page)
{
	long before;

	NEEDS_PROTECT();
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, THE_PAGE) + 8, 1));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, THE_PAGE));
	EXPECT_HUGE(NR_HUGE - 1);
	/* Others of it are not concerned */
	before = faults();
	for (size_t i = 0; i < NR_HUGE * TABLE_PAGES; i++)
		if (i != THE_PAGE)
			store64(address(self->map, i), page_mark(SEED + 1, i));
	EXPECT_EQ(before, faults());
	store64(address(self->map, 0), load64(address(self->map, 0)));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	store64(address(self->map, THE_PAGE), page_mark(SEED + 1, THE_PAGE));
	EXPECT_HUGE(NR_HUGE);
	self->peer.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
}

/* All of it, then all but a page are let go */
TEST_F(huge, unprotect_in_parts)
{
	NEEDS_PROTECT();
	ASSERT_EQ(0, protect_pages(self->fd, 0, TABLE_PAGES, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, THE_PAGE));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE + 1, TABLE_PAGES - THE_PAGE - 1));
	EXPECT_HUGE(NR_HUGE);
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, THE_PAGE));
	EXPECT_EQ(0, peer_store_at(&self->peer, THE_PAGE + 1));
	EXPECT_HUGE(NR_HUGE - 1);
	EXPECT_EQ(SIGBUS, try_store(address(self->map, THE_PAGE) + 8, 1));
	for (size_t i = 0; i < TABLE_PAGES; i++)
		if (i != THE_PAGE)
			store64(address(self->map, i), page_mark(SEED, i));
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	EXPECT_EQ(0, peer_store_at(&self->peer, THE_PAGE));
	EXPECT_HUGE(NR_HUGE);
}

/* A store waits, is read, and let go */
TEST_F(huge, waits)
{
	struct memfd_event ev;

	NEEDS_PROTECT();
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	self->peer.arg->value = THE_PAGE * page_size() + 8;
	self->peer.arg->flags = 3;
	ASSERT_TRUE(peer_tell(&self->peer, peer_try_store));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(THE_PAGE * page_size(), ev.offset);
	EXPECT_EQ(page_size(), ev.length);
	EXPECT_EQ(0, *(volatile char *)(address(self->map, THE_PAGE) + 8));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_EQ(0, peer_answer(&self->peer));
	EXPECT_EQ(3, *(volatile char *)(address(self->map, THE_PAGE) + 8));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
}

TEST_F(huge, log)
{
	struct memfd_range range;

	NEEDS_PROTECT();
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_ASYNC));
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(0, peer_store_at(&self->peer, THE_PAGE + i));
		EXPECT_EQ(0, try_store(address(self->map, THE_PAGE + i) + 16, 1));
		ASSERT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1, MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_EQ((THE_PAGE + i) * page_size(), range.offset);
		EXPECT_EQ(page_size(), range.length);
	}
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
}

/* What a part of the mapping of one process is made leaves others alone */
TEST_F(huge, changes_of_one)
{
	char *middle = self->map + TABLE_SIZE + TABLE_SIZE / 2;
	char *moved;

	ASSERT_EQ(0, madvise(middle, page_size(), MADV_DONTNEED));
	EXPECT_EQ(0, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED));
	EXPECT_HUGE(NR_HUGE);
	/* From here on this process has tables of its own there, or links to small ones */
	ASSERT_EQ(0, mprotect(middle, page_size(), PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(middle, 1));
	EXPECT_EQ(0, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED));
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	ASSERT_EQ(0, mprotect(middle, page_size(), PROT_RW));
	EXPECT_EQ(0, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED));
	ASSERT_EQ(0, munmap(middle, page_size()));
	EXPECT_EQ(SIGSEGV, try_load(middle));
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	moved = mremap(self->map, TABLE_SIZE, TABLE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       reserve(TABLE_SIZE));
	ASSERT_NE(MAP_FAILED, moved);
	EXPECT_EQ(0, wrong_pages(moved, 0, TABLE_PAGES, SEED));
	ASSERT_EQ(0, munmap(moved, TABLE_SIZE));
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	ASSERT_EQ(0, mlock(self->map + 2 * TABLE_SIZE, TABLE_SIZE));
	EXPECT_EQ(0, wrong_pages(self->map + 2 * TABLE_SIZE, 2 * TABLE_PAGES, TABLE_PAGES, SEED));
	ASSERT_EQ(0, munlock(self->map + 2 * TABLE_SIZE, TABLE_SIZE));
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
}

/* A child, that ends by itself */
TEST_F(huge, fork)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		long bad = wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED);

		store64(address(self->map, THE_PAGE) + 8, 44);
		_exit(bad || huge_kb(self->map) != (long long)(USED >> 10));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(44, load64(address(self->map, THE_PAGE) + 8));
	EXPECT_HUGE(NR_HUGE);
}

TEST_F(huge, hole_in_a_part)
{
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       THE_PAGE * page_size(), page_size()));
	EXPECT_EQ(0, load64(address(self->map, THE_PAGE)));
	EXPECT_EQ(1, peer_call(&self->peer, peer_wrong));
	EXPECT_EQ(1, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED));
	ASSERT_EQ(0, ftruncate(self->fd, TABLE_SIZE + page_size()));
	EXPECT_EQ(0, try_load(self->map + TABLE_SIZE));
	EXPECT_EQ(SIGBUS, try_load(self->map + 2 * TABLE_SIZE));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, 3 * TABLE_PAGES));
	ASSERT_EQ(0, ftruncate(self->fd, GIB));
	EXPECT_EQ(0, load64(self->map + 2 * TABLE_SIZE));
	EXPECT_EQ(0, peer_store_at(&self->peer, 3 * TABLE_PAGES));
}

/* To swap, and back */
TEST_F(huge, reclaim)
{
	long whole;

	/* Not obeyed: others use it */
	whole = meminfo_kb("Shmem");
	madvise(self->map, USED, MADV_COLD);
	madvise(self->map, USED, MADV_PAGEOUT);
	EXPECT_EQ(whole, meminfo_kb("Shmem"));
	EXPECT_HUGE(NR_HUGE);
	peer_kill(&self->peer);
	madvise(self->map, USED, MADV_PAGEOUT);
	EXPECT_EQ(0, wrong_pages(self->map, 0, NR_HUGE * TABLE_PAGES, SEED));
}

static long move_pages_of(char *map, size_t nr, int node)
{
	void *addr[TABLE_PAGES];
	int nodes[TABLE_PAGES], status[TABLE_PAGES];
	long moved = 0;

	for (size_t i = 0; i < nr; i++) {
		addr[i] = map + i * page_size();
		nodes[i] = node;
	}
	if (syscall(__NR_move_pages, 0, nr, addr, nodes, status, MPOL_MF_MOVE_ALL) < 0)
		return -errno;
	for (size_t i = 0; i < nr; i++)
		moved += status[i] == node;
	return moved;
}

/* What is protected stays so when its page moves */
TEST_F(huge, migration)
{
	NEEDS_PROTECT();
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	for (int i = 0; i < 4; i++) {
		if (move_pages_of(self->map, TABLE_PAGES, !(i & 1)) < 0)
			SKIP(return, "no second node");
		EXPECT_EQ(SIGBUS, try_store(address(self->map, THE_PAGE) + 8, 1));
		EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, THE_PAGE + i));
	}
	EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	EXPECT_EQ(0, try_store(address(self->map, THE_PAGE) + 8, 1));
}

/* Small pages that become a huge one: it is mapped as such from the next fault on */
TEST_F(huge, collapse)
{
	struct peer second;
	char *map;
	int fd;

	ASSERT_TRUE(write_file(SHMEM_HUGE, "advise"));
	fd = share_memfd(variant->flags);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, GIB));
	ASSERT_TRUE(peer_start_mapped(&second, fd, 0, GIB, PROT_RW));
	map = map_file(fd, 0, GIB, PROT_RW);
	fill_pages(map, 0, NR_HUGE * TABLE_PAGES, SEED);
	EXPECT_EQ(0, huge_kb(map));
	EXPECT_TRUE(tables_become(self->tables + NR_HUGE));
	EXPECT_EQ(0, madvise(map, USED, MADV_COLLAPSE));
	second.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&second, peer_wrong));
	EXPECT_EQ(0, wrong_pages(map, 0, NR_HUGE * TABLE_PAGES, SEED));
	EXPECT_EQ((long long)(USED >> 10), huge_kb(map));
	EXPECT_EQ((long)(USED >> 10), peer_call(&second, peer_huge_kb));
	EXPECT_TRUE(tables_become(self->tables));
	EXPECT_TRUE(peer_exit(&second));
	munmap(map, GIB);
	close(fd);
}

/* What fallocate() has made is cleared by who touches it first */
TEST_F(huge, fallocated)
{
	struct peer small;
	size_t filled = 0;
	uint64_t value;

	/* That there is a page table, empty */
	ASSERT_TRUE(peer_start_mapped(&small, self->fd, 0, TABLE_SIZE, PROT_RW));
	small.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&small, peer_check));
	EXPECT_TRUE(peer_exit(&small));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			       TABLE_SIZE));
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, TABLE_SIZE));
	for (size_t i = 0; i < TABLE_PAGES; i++)
		filled += load64(address(self->map, i)) != 0;
	EXPECT_EQ(0, filled);
	store64(address(self->map, THE_PAGE), 99);
	ASSERT_EQ(8, pread(self->fd, &value, 8, THE_PAGE * page_size()));
	EXPECT_EQ(99, value);
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, TABLE_SIZE));
	EXPECT_EQ(99, load64(address(self->map, THE_PAGE)));
}

/* Behind the end of the file there is nothing, whatever the page cache has */
TEST_F(huge, behind_the_end)
{
	struct peer small;

	ASSERT_TRUE(peer_start_mapped(&small, self->fd, 0, TABLE_SIZE, PROT_RW));
	small.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&small, peer_check));
	EXPECT_TRUE(peer_exit(&small));
	ASSERT_EQ(0, ftruncate(self->fd, 0));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 0, TABLE_SIZE));
	EXPECT_EQ(SIGBUS, try_load(address(self->map, THE_PAGE)));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, THE_PAGE));
	ASSERT_EQ(0, ftruncate(self->fd, GIB));
	EXPECT_EQ(0, load64(address(self->map, THE_PAGE)));
}

/* How much a process maps stays about the same, whatever comes and goes */
TEST_F(huge, figures)
{
	long long kb;

	for (int i = 0; i < 200; i++) {
		ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       0, TABLE_SIZE));
		store64(self->map, i);
		if (!variant->flags)
			continue;
		ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
		ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
		store64(address(self->map, THE_PAGE), i);
	}
	EXPECT_HUGE(NR_HUGE);
	kb = pid_field(getpid(), "status", "VmPtshare");
	EXPECT_LE((long long)(USED >> 10), kb);
	/* An estimate: too much by some tables at most */
	EXPECT_GE((long long)(USED >> 10) + 20 * (long long)TABLE_KB, kb);
}

struct toucher {
	pthread_t thread;
	char *map;
	volatile bool *stop;
	unsigned long wrong;
};

static void *drop_and_touch(void *data)
{
	struct toucher *t = data;

	for (unsigned int i = 0; !*t->stop; i++) {
		madvise(t->map, i & 1 ? GIB : USED, MADV_DONTNEED);
		t->wrong += wrong_pages(t->map + i % NR_HUGE * TABLE_SIZE,
					i % NR_HUGE * TABLE_PAGES, 8, SEED);
	}
	return NULL;
}

/* MADV_DONTNEED of several threads at once, beside who walks the tables */
TEST_F(huge, dropped_by_threads)
{
	static unsigned char vec[NR_HUGE * 512];
	uint64_t end = now_ns() + 4000000000ULL;
	volatile bool stop = false;
	struct toucher t[4];

	for (unsigned int i = 0; i < ARRAY_SIZE(t); i++) {
		t[i] = (struct toucher) { .map = self->map, .stop = &stop };
		pthread_create(&t[i].thread, NULL, drop_and_touch, &t[i]);
	}
	while (now_ns() < end) {
		mincore(self->map, USED, vec);
		smaps_sum(getpid(), self->map, GIB, "Rss", NULL);
		page_has(self->map, PM_PRESENT);
		EXPECT_EQ(0, peer_call(&self->peer, peer_wrong));
	}
	stop = true;
	for (unsigned int i = 0; i < ARRAY_SIZE(t); i++) {
		pthread_join(t[i].thread, NULL);
		EXPECT_EQ(0, t[i].wrong);
	}
	EXPECT_HUGE(NR_HUGE);
}

/* Nobody learns from the entries what others do, nor takes it away from them */
TEST_F(huge, privacy)
{
	EXPECT_TRUE(write_file("/proc/self/clear_refs", "1"));
	EXPECT_EQ(0, smaps_sum(getpid(), self->map, GIB, "Referenced", NULL));
	EXPECT_EQ((long long)(USED >> 10), smaps_sum(getpid(), self->map, GIB, "Rss", NULL));
	EXPECT_EQ((long long)(USED >> 11), smaps_sum(getpid(), self->map, GIB, "Pss", NULL));
	EXPECT_TRUE(page_has(address(self->map, THE_PAGE), PM_PRESENT | PM_FILE | PM_SOFT_DIRTY));
	EXPECT_FALSE(page_has(address(self->map, THE_PAGE), PM_EXCLUSIVE));
}

/* A process that stores through its TLB, in user mode, meets the protection */
TEST_F(huge, spinner)
{
	struct spin_state *state = spin_state_alloc();
	struct spinner spinner;
	uint64_t seen;

	NEEDS_PROTECT();
	munmap(self->map, GIB);
	peer_kill(&self->peer);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, GIB, PROT_RW));
	self->map = map_file(self->fd, 0, GIB, PROT_RW);
	for (int i = 0; i < 40; i++) {
		bool part = i & 1;

		ASSERT_TRUE(spinner_start(&spinner, &self->peer, state,
					  THE_PAGE * page_size()));
		ASSERT_EQ(0, protect_pages(self->fd, part ? THE_PAGE : 0, part ? 1 : 0,
					   MEMFD_PROTECT_DENY));
		seen = load64(address(self->map, THE_PAGE));
		usleep(500);
		EXPECT_EQ(seen, load64(address(self->map, THE_PAGE)));
		EXPECT_EQ(PEER_SIGNAL(SIGBUS), spinner_stop(&spinner));
		ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	}
}

TEST_HARNESS_MAIN
