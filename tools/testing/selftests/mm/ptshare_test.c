// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of shared page tables: memfds made with MFD_SHARE_PGTABLES, whose
 * leaf page tables belong to the file, and which processes link to.
 *
 * Whatever is done to a mapping, three things are asked afterwards: are the
 * contents right for everybody, is sharing in effect just where it should be
 * (the Ptshare line of smaps, the counters of /proc/vmstat), and is everything
 * gone when the last mapping is. A mapping that shares no tables any more is
 * called ordinary here.
 */
#include "ptshare_common.h"

#include <sys/mount.h>
#include <sys/ptrace.h>
#include <liburing.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/loop.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	90

#define SEED	7
#define SEED2	11

#define NR_TABLES	4
#define FILE_SIZE	(NR_TABLES * TABLE_SIZE)
#define FILE_PAGES	(FILE_SIZE / 4096)

#define NEED(cond, why) do { \
	if (!(cond)) \
		SKIP(return, "%s", why); \
} while (0)

#define NEED_PTSHARE() NEED(have_ptshare(), "no CONFIG_PTSHARE")

/* All of [addr, addr + len) is mapped through shared tables, or nothing */
#define EXPECT_SHARED(addr, len) \
	EXPECT_EQ((long long)((len) >> 10), shared_kb(addr, len))
#define EXPECT_ORDINARY(addr, len) \
	EXPECT_EQ(0, shared_kb(addr, len))

/* A file, mapped writable and filled here, and mapped by a peer too */

FIXTURE(pair) {
	int fd;
	char *area;	/* ours, with room around the mapping */
	char *map;	/* one table behind the beginning of @area */
	struct peer peer;
	long long tables;
	struct ptshare_counts counts;
};

#define AREA_SIZE	(FILE_SIZE + 6 * TABLE_SIZE)

FIXTURE_SETUP(pair)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->tables = ptshare_tables();
	self->counts = ptshare_counts();
	self->fd = share_file(NR_TABLES, MFD_ALLOW_SEALING);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, FILE_SIZE,
				      PROT_RW));
	self->area = reserve(AREA_SIZE);
	ASSERT_NE(MAP_FAILED, self->area);
	self->map = map_at(self->area + TABLE_SIZE, self->fd, 0, FILE_SIZE,
			   PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
}

/* Whoever drops the last link to a table has it freed */
FIXTURE_TEARDOWN(pair)
{
	struct ptshare_counts now;

	peer_kill(&self->peer);
	munmap(self->area, AREA_SIZE);
	close(self->fd);
	EXPECT_TRUE(tables_become(self->tables));
	now = ptshare_counts();
	EXPECT_EQ(now.link - self->counts.link,
		  now.unlink - self->counts.unlink);
}

static long long unshared_since(const struct ptshare_counts *before)
{
	return vmstat("ptshare_unshare") - before->unshare;
}

static long long shared_since(const struct ptshare_counts *before)
{
	return vmstat("ptshare_share") - before->share;
}

/* What no change of our mapping may do to the other process */
#define EXPECT_PEER_UNAFFECTED(p) do { \
	EXPECT_EQ(0, peer_call(p, peer_check)); \
	EXPECT_EQ((long long)((p)->arg->len >> 10), \
		  peer_call(p, peer_shared_kb)); \
} while (0)

/* CPUs keep some pages to themselves for a while before they count as locked, or not */
static bool locked_is(long long kb)
{
	for (unsigned int i = 0; i < 20; i++) {
		long long more = meminfo_kb("Mlocked") - kb;

		if (more > -512 && more < 512)
			return true;
		usleep(50000);
	}
	return false;
}

static long peer_lock(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(mlock(arg->map, arg->len));
}

/* Whole mappings, right and shared, or right and ordinary */
#define EXPECT_RIGHT_SHARED(self) do { \
	EXPECT_EQ(0, wrong_pages((self)->map, 0, FILE_PAGES, SEED)); \
	EXPECT_SHARED((self)->map, FILE_SIZE); \
} while (0)

#define EXPECT_RIGHT_ORDINARY(self) do { \
	EXPECT_EQ(0, wrong_pages((self)->map, 0, FILE_PAGES, SEED)); \
	EXPECT_ORDINARY((self)->map, FILE_SIZE); \
} while (0)

/* Part 1: memfd_create(2), and which mappings share */

TEST(create_flags)
{
	static const unsigned int good[] = {
		0, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC,
		MFD_ALLOW_SEALING | MFD_EXEC,
	};
	int fd;

	NEED_PTSHARE();
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		fd = share_memfd(good[i]);
		EXPECT_LE(0, fd) TH_LOG("flags %#x", good[i]);
		close(fd);
		if (!have_protect())
			continue;
		fd = share_memfd(MFD_ALLOW_PROTECT | good[i]);
		EXPECT_LE(0, fd) TH_LOG("flags %#x", good[i]);
		close(fd);
	}
	EXPECT_EQ(-EINVAL, share_memfd(0x80000U));
	EXPECT_EQ(-EINVAL, share_memfd(0x00400000U));
	EXPECT_EQ(-EINVAL, share_memfd(MFD_EXEC | MFD_NOEXEC_SEAL));
}

TEST(create_hugetlb_einval)
{
	NEED_PTSHARE();
	EXPECT_EQ(-EINVAL, share_memfd(MFD_HUGETLB));
	EXPECT_EQ(-EINVAL, share_memfd(MFD_HUGETLB | MFD_HUGE_2MB));
	EXPECT_EQ(-EINVAL, share_memfd(MFD_HUGETLB | MFD_ALLOW_SEALING));
}

/* No other flag comes with it, and it comes with no other */
TEST(create_independent)
{
	struct ptshare_counts before;
	char *map;
	int fd;

	NEED_PTSHARE();
	fd = share_file(1, 0);
	EXPECT_EQ(F_SEAL_SEAL, fcntl(fd, F_GET_SEALS));
	if (have_protect()) {
		EXPECT_EQ(-EOPNOTSUPP, protect_pages(fd, 0, 1,
						     MEMFD_PROTECT_DENY));
	}
	close(fd);

	fd = share_file(1, MFD_ALLOW_SEALING);
	EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));
	close(fd);

	before = ptshare_counts();
	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ASSERT_EQ(0, ftruncate(fd, TABLE_SIZE));
	map = map_at(reserve(TABLE_SIZE), fd, 0, TABLE_SIZE, PROT_RW);
	fill_pages(map, 0, TABLE_PAGES, SEED);
	EXPECT_ORDINARY(map, TABLE_SIZE);
	EXPECT_EQ(before.link, vmstat("ptshare_link"));
	munmap(map, TABLE_SIZE);
	close(fd);
}

/* The figures exist, and a reader of smaps finds the line in each mapping */
TEST(figures_exist)
{
	unsigned int mappings;
	int fd;

	NEED_PTSHARE();
	EXPECT_LE(0, vmstat("ptshare_link"));
	EXPECT_LE(0, vmstat("ptshare_unlink"));
	EXPECT_LE(0, vmstat("ptshare_unshare"));
	EXPECT_LE(0, vmstat("ptshare_share"));
	EXPECT_LE(0, vmstat("nr_ptshare_tables"));
	EXPECT_LE(0, pid_field(getpid(), "smaps_rollup", "Ptshare"));
	EXPECT_EQ(0, smaps_sum(getpid(), NULL, -1UL, "Ptshare", &mappings));
	EXPECT_LT(0, mappings);
	fd = share_file(1, 0);
	EXPECT_EQ(0, fdinfo(fd, "ptshare_guests"));
	EXPECT_EQ(0, fdinfo(fd, "ptshare_tables"));
	EXPECT_EQ(0, fdinfo(fd, "ptshare_links"));
	close(fd);
}

FIXTURE(shape) {
	int fd;
	int map_fd;
	char *area;
};

FIXTURE_VARIANT(shape) {
	size_t skew;		/* of the address, against alignment */
	size_t offset;
	size_t len;
	int prot;
	int flags;		/* of mmap() */
	int open_flags;		/* the descriptor is opened anew with them */
	size_t shared_kb;
};

#define SHAPE_IS(_name, ...) \
	FIXTURE_VARIANT_ADD(shape, _name) { __VA_ARGS__ }

SHAPE_IS(whole_rw, .len = FILE_SIZE, .prot = PROT_RW, .flags = MAP_SHARED,
	 .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(whole_ro, .len = FILE_SIZE, .prot = PROT_READ, .flags = MAP_SHARED,
	 .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(rdonly_fd, .len = FILE_SIZE, .prot = PROT_READ, .flags = MAP_SHARED,
	 .open_flags = O_RDONLY, .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(validate, .len = FILE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED_VALIDATE, .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(middle, .offset = TABLE_SIZE, .len = TABLE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED, .shared_kb = TABLE_KB);
SHAPE_IS(beyond_eof, .offset = TABLE_SIZE, .len = FILE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED, .shared_kb = (FILE_SIZE - TABLE_SIZE) >> 10);
SHAPE_IS(populate, .len = FILE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED | MAP_POPULATE, .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(locked, .len = FILE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED | MAP_LOCKED, .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(locked_ro, .len = FILE_SIZE, .prot = PROT_READ,
	 .flags = MAP_SHARED | MAP_LOCKED, .shared_kb = FILE_SIZE >> 10);
SHAPE_IS(noreserve, .len = FILE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED | MAP_NORESERVE, .shared_kb = FILE_SIZE >> 10);

SHAPE_IS(skewed, .skew = 4096, .len = FILE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED);
SHAPE_IS(skewed_offset, .offset = 4096, .len = TABLE_SIZE, .prot = PROT_RW,
	 .flags = MAP_SHARED);
/* One table as a whole, with parts of others around it */
SHAPE_IS(congruent_ends, .skew = 4096, .offset = 4096, .len = 2 * TABLE_SIZE,
	 .prot = PROT_RW, .flags = MAP_SHARED, .shared_kb = TABLE_KB);
SHAPE_IS(congruent_ends_ro, .skew = 4096, .offset = 4096,
	 .len = 2 * TABLE_SIZE, .prot = PROT_READ, .flags = MAP_SHARED,
	 .shared_kb = TABLE_KB);
SHAPE_IS(congruent_unaligned, .skew = 4096, .offset = 4096, .len = TABLE_SIZE,
	 .prot = PROT_RW, .flags = MAP_SHARED);
SHAPE_IS(congruent_unaligned_ro, .skew = 4096, .offset = 4096,
	 .len = TABLE_SIZE, .prot = PROT_READ, .flags = MAP_SHARED);
SHAPE_IS(short_end, .len = TABLE_SIZE - 4096, .prot = PROT_RW,
	 .flags = MAP_SHARED);
SHAPE_IS(long_end, .len = TABLE_SIZE + 4096, .prot = PROT_RW,
	 .flags = MAP_SHARED, .shared_kb = TABLE_KB);
SHAPE_IS(one_page, .len = 4096, .prot = PROT_RW, .flags = MAP_SHARED);
SHAPE_IS(write_only, .len = FILE_SIZE, .prot = PROT_WRITE, .flags = MAP_SHARED);
SHAPE_IS(exec, .len = FILE_SIZE, .prot = PROT_READ | PROT_EXEC,
	 .flags = MAP_SHARED);
SHAPE_IS(private, .len = FILE_SIZE, .prot = PROT_RW, .flags = MAP_PRIVATE);
SHAPE_IS(private_ro, .len = FILE_SIZE, .prot = PROT_READ, .flags = MAP_PRIVATE);

FIXTURE_SETUP(shape)
{
	uint64_t mark;

	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->fd = share_file(NR_TABLES, MFD_EXEC);
	ASSERT_LE(0, self->fd);
	for (size_t i = 0; i < FILE_PAGES; i++) {
		mark = page_mark(SEED, i);
		ASSERT_EQ(8, pwrite(self->fd, &mark, 8, i * page_size()));
	}
	self->map_fd = open_again(self->fd, variant->open_flags ==
				  O_RDONLY && variant->prot == PROT_READ ?
				  O_RDONLY : O_RDWR);
	ASSERT_LE(0, self->map_fd);
	self->area = reserve(FILE_SIZE + 3 * TABLE_SIZE);
	ASSERT_NE(MAP_FAILED, self->area);
}

FIXTURE_TEARDOWN(shape)
{
	munmap(self->area, FILE_SIZE + 3 * TABLE_SIZE);
	close(self->map_fd);
	close(self->fd);
	EXPECT_TRUE(tables_become(0));
}

/* The contents are the file's, whether shared or not, and so is the rest */
TEST_F(shape, shares)
{
	size_t first = variant->offset / page_size();
	size_t nr = variant->len / page_size();
	struct ptshare_counts before = ptshare_counts();
	char *map;

	map = mmap(self->area + TABLE_SIZE + variant->skew, variant->len,
		   variant->prot, variant->flags | MAP_FIXED, self->map_fd,
		   variant->offset);
	ASSERT_NE(MAP_FAILED, map);
	if (nr > FILE_PAGES - first)
		nr = FILE_PAGES - first;
	EXPECT_EQ(0, wrong_pages(map, first, nr, SEED));
	EXPECT_EQ(variant->shared_kb, shared_kb(map, variant->len));
	EXPECT_EQ(!!variant->shared_kb,
		  vmstat("ptshare_link") > before.link);
	if (variant->prot & PROT_WRITE) {
		fill_pages(map, first, nr, SEED2);
		EXPECT_EQ(0, wrong_file_pages(self->fd, first, nr,
					      (variant->flags & MAP_TYPE) ==
					      MAP_PRIVATE ? SEED : SEED2));
	} else {
		EXPECT_EQ(SIGSEGV, try_store(map + 4096, 1));
		EXPECT_EQ(0, wrong_file_pages(self->fd, first, nr, SEED));
	}
	EXPECT_EQ(variant->shared_kb, shared_kb(map, variant->len));
	if (variant->len > FILE_SIZE - variant->offset) {
		EXPECT_EQ(SIGBUS, try_load(map + nr * page_size()));
		EXPECT_EQ(SIGBUS, try_store(map + nr * page_size(), 1));
	}
}

/* PROT_NONE lets nothing through, whatever tables there are */
TEST_F(pair, none_is_ordinary)
{
	char *map = map_file(self->fd, 0, FILE_SIZE, PROT_NONE);

	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(SIGSEGV, try_load(map));
	EXPECT_EQ(SIGSEGV, try_store(map + 4096, 1));
	EXPECT_ORDINARY(map, FILE_SIZE);
	munmap(map, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
}

/* Without a hint the address fits the offset */
TEST_F(pair, mmap_picks_congruent_address)
{
	char *map, *disturb;

	for (size_t t = 0; t < NR_TABLES; t++) {
		size_t len = FILE_SIZE - t * TABLE_SIZE;

		/* Makes the next free address an odd one */
		disturb = mmap(NULL, 4096 * (t + 1), PROT_READ,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		map = map_file(self->fd, t * TABLE_SIZE, len, PROT_RW);
		ASSERT_NE(MAP_FAILED, map);
		EXPECT_EQ(0, (uintptr_t)map % TABLE_SIZE);
		EXPECT_EQ(0, wrong_pages(map, t * TABLE_PAGES,
					 len / page_size(), SEED));
		EXPECT_SHARED(map, len);
		munmap(map, len);
		munmap(disturb, 4096 * (t + 1));
	}
}

/* A hint that does not fit is taken as one that fits nothing, or obeyed */
TEST_F(pair, mmap_hint)
{
	char *map, *hint = self->area + FILE_SIZE + 3 * TABLE_SIZE;

	munmap(hint, TABLE_SIZE);
	map = mmap(hint, TABLE_SIZE, PROT_RW, MAP_SHARED, self->fd, 0);
	EXPECT_EQ(hint, map);
	EXPECT_EQ(0, wrong_pages(map, 0, TABLE_PAGES, SEED));
	EXPECT_SHARED(map, TABLE_SIZE);
	munmap(map, TABLE_SIZE);
}

static int have_pkey(void)
{
	int pkey = syscall(__NR_pkey_alloc, 0, 0);

	return pkey < 0 ? 0 : pkey;
}

TEST_F(pair, pkey_is_ordinary)
{
	int pkey = have_pkey();

	NEED(pkey > 0, "no protection keys");
	EXPECT_EQ(0, syscall(__NR_pkey_mprotect, self->map, FILE_SIZE, PROT_RW,
			     pkey));
	EXPECT_RIGHT_ORDINARY(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	syscall(__NR_pkey_free, pkey);
}

/* Ordinary and shared mappings of a file are one memory */
TEST_F(pair, coherent_with_ordinary)
{
	char *skewed, *private;

	skewed = map_at(self->area + FILE_SIZE + 2 * TABLE_SIZE + 4096,
			self->fd, 0, FILE_SIZE / 2, PROT_RW);
	private = mmap(NULL, FILE_SIZE, PROT_RW, MAP_PRIVATE, self->fd, 0);
	ASSERT_NE(MAP_FAILED, skewed);
	ASSERT_NE(MAP_FAILED, private);
	EXPECT_EQ(0, wrong_pages(skewed, 0, FILE_PAGES / 2, SEED));
	EXPECT_EQ(0, wrong_pages(private, 0, FILE_PAGES, SEED));
	store64(private, 1);
	fill_pages(skewed, 0, FILE_PAGES / 2, SEED2);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES / 2, SEED2));
	EXPECT_EQ(1, load64(private));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	EXPECT_EQ(0, wrong_pages(skewed, 0, FILE_PAGES / 2, SEED));
	EXPECT_EQ(0, wrong_pages(private + 4096, 1, FILE_PAGES - 1, SEED));
	EXPECT_ORDINARY(skewed, FILE_SIZE / 2);
	EXPECT_ORDINARY(private, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	munmap(private, FILE_SIZE);
}

/* Part 2: sharing between processes */

TEST_F(pair, unrelated_at_other_address)
{
	EXPECT_NE(self->map, self->peer.arg->map);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(self->tables + NR_TABLES, ptshare_tables());
	EXPECT_EQ(2, fdinfo(self->fd, "ptshare_guests"));
	EXPECT_EQ(NR_TABLES, fdinfo(self->fd, "ptshare_tables"));
	EXPECT_EQ(2 * NR_TABLES, fdinfo(self->fd, "ptshare_links"));
	EXPECT_EQ(2 * NR_TABLES, vmstat("ptshare_link") - self->counts.link);

	self->peer.arg->seed = SEED2;
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED2));
	EXPECT_EQ(0, wrong_file_pages(self->fd, 0, FILE_PAGES, SEED2));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, unshared_since(&self->counts));
}

/* A child that was forked from a mapping shares at the same address */
TEST_F(pair, forked)
{
	struct peer child;

	ASSERT_TRUE(peer_start(&child, self->fd));
	child.arg->map = self->map;
	child.arg->len = FILE_SIZE;
	child.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&child, peer_check));
	EXPECT_EQ(FILE_SIZE >> 10, peer_call(&child, peer_shared_kb));
	child.arg->seed = SEED2;
	EXPECT_EQ(0, peer_call(&child, peer_fill));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED2));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(self->tables + NR_TABLES, ptshare_tables());
	EXPECT_TRUE(peer_exit(&child));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, unshared_since(&self->counts));
}

/* What is locked in the parent is not in the child: each shares what is for it */
TEST_F(pair, forked_from_locked)
{
	long long locked = meminfo_kb("Mlocked");
	struct peer child;

	ASSERT_EQ(0, mlock(self->map, FILE_SIZE));
	ASSERT_TRUE(peer_start(&child, self->fd));
	child.arg->map = self->map;
	child.arg->len = FILE_SIZE;
	child.arg->seed = SEED;
	EXPECT_PEER_UNAFFECTED(&child);
	EXPECT_EQ(0, pid_field(child.pid, "status", "VmLck"));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, munmap(self->map, FILE_SIZE));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_PEER_UNAFFECTED(&child);
	EXPECT_TRUE(peer_exit(&child));
	self->map = map_at(self->map, self->fd, 0, FILE_SIZE, PROT_RW);
	EXPECT_RIGHT_SHARED(self);
}

/* Returns the faults that reading all pages has cost; @value: wrong pages */
static long peer_count_faults(void *data)
{
	struct peer_arg *arg = data;
	long before = faults();

	arg->value = wrong_pages(arg->map, arg->offset / page_size(),
				 arg->len / page_size(), arg->seed);
	return faults() - before;
}

static long peer_nothing(void *data)
{
	struct peer_arg *arg = data;

	arg->value = 0;
	return peer_count_faults(data) * 0;
}

/* One link for a table, and one fault for all tables around it */
TEST_F(pair, faults_of_second_process)
{
	struct ptshare_counts before = ptshare_counts();
	struct peer reader;
	long faults;

	ASSERT_TRUE(peer_start(&reader, self->fd));
	reader.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&reader, peer_nothing));
	reader.arg->len = FILE_SIZE;
	reader.arg->prot = PROT_RW;
	EXPECT_EQ(0, peer_call(&reader, peer_map));
	faults = peer_call(&reader, peer_count_faults);
	EXPECT_LE(1, faults);
	EXPECT_GE(NR_TABLES, faults);
	EXPECT_GE(2, faults) TH_LOG("neighbours were not linked: %ld", faults);
	EXPECT_EQ(0, reader.arg->value);
	EXPECT_EQ(NR_TABLES, vmstat("ptshare_link") - before.link);
	EXPECT_EQ(0, peer_call(&reader, peer_count_faults));
	EXPECT_TRUE(peer_exit(&reader));
	EXPECT_EQ(NR_TABLES, vmstat("ptshare_unlink") - before.unlink);
}

/* A page that one process has faulted in is there for a linked one */
TEST_F(pair, faults_of_linked_process)
{
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_REMOVE));
	fill_pages(self->map, 0, FILE_PAGES, SEED2);
	self->peer.arg->seed = SEED2;
	EXPECT_GE(NR_TABLES, peer_call(&self->peer, peer_count_faults));
	EXPECT_EQ(0, self->peer.arg->value);
	EXPECT_EQ(0, peer_call(&self->peer, peer_count_faults));
}

/* Touches one byte of each table */
static long peer_touch_tables(void *data)
{
	struct peer_arg *arg = data;
	long wrong = 0;

	for (size_t t = 0; t < arg->len / TABLE_SIZE; t++)
		wrong += load64(arg->map + t * TABLE_SIZE) !=
			 page_mark(arg->seed, t * TABLE_PAGES);
	return wrong;
}

FIXTURE(growth) {
	int fd;
	long long tables;
};

FIXTURE_VARIANT(growth) {
	unsigned int processes;
};

FIXTURE_VARIANT_ADD(growth, 1) { .processes = 1 };
FIXTURE_VARIANT_ADD(growth, 16) { .processes = 16 };
FIXTURE_VARIANT_ADD(growth, 64) { .processes = 64 };

#define GROWTH_TABLES	32UL
#define MAX_PEERS	64

FIXTURE_SETUP(growth)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->tables = ptshare_tables();
	self->fd = share_file(GROWTH_TABLES, 0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(growth)
{
	close(self->fd);
	EXPECT_TRUE(tables_become(self->tables));
}

static bool start_idle_peers(struct peer *peers, unsigned int nr, int fd)
{
	for (unsigned int i = 0; i < nr; i++) {
		if (!peer_start(&peers[i], fd))
			return false;
		peers[i].arg->prot = PROT_RW;
		peers[i].arg->seed = SEED;
		peer_call(&peers[i], peer_nothing);
		peers[i].arg->len = GROWTH_TABLES * TABLE_SIZE;
	}
	return true;
}

/* The sum of a line of smaps over the mappings of these processes */
static long long peers_smaps(struct peer *peers, unsigned int nr,
			     const char *key)
{
	long long sum = 0;

	for (unsigned int i = 0; i < nr; i++)
		sum += smaps_sum(peers[i].pid, peers[i].arg->map,
				 peers[i].arg->len, key, NULL);
	return sum;
}

/* Those of processes that have ended are freed by and by */
static long long page_tables_kb(void)
{
	long long kb = meminfo_kb("PageTables"), before;

	do {
		before = kb;
		usleep(50000);
		kb = meminfo_kb("PageTables");
	} while (kb != before);
	return kb;
}

/*
 * Tables grow once, and by a few upper tables for each process; each page
 * counts once in the sum of all PSS.
 */
TEST_F(growth, page_tables)
{
	const long long size_kb = GROWTH_TABLES * TABLE_KB;
	unsigned int nr = variant->processes;
	static struct peer peers[MAX_PEERS];
	long long before, grown, pss;

	ASSERT_TRUE(start_idle_peers(peers, nr, self->fd));
	before = page_tables_kb();
	for (unsigned int i = 0; i < nr; i++)
		ASSERT_EQ(0, peer_call(&peers[i], peer_map));
	EXPECT_EQ(0, peer_call(&peers[0], peer_fill));
	for (unsigned int i = 0; i < nr; i++)
		EXPECT_EQ(0, peer_call(&peers[i], peer_touch_tables));
	grown = page_tables_kb() - before;
	EXPECT_LE((long long)GROWTH_TABLES * 4, grown);
	/* Some slack is for what the processes do beside */
	EXPECT_GE((long long)GROWTH_TABLES * 4 + 12 * nr + 64, grown);
	EXPECT_EQ(self->tables + GROWTH_TABLES, ptshare_tables());
	EXPECT_EQ(nr, fdinfo(self->fd, "ptshare_guests"));
	EXPECT_EQ(nr * GROWTH_TABLES, fdinfo(self->fd, "ptshare_links"));
	EXPECT_EQ(nr * size_kb, peers_smaps(peers, nr, "Ptshare"));
	EXPECT_EQ(nr * size_kb, peers_smaps(peers, nr, "Rss"));
	pss = peers_smaps(peers, nr, "Pss");
	EXPECT_LE(size_kb - nr, pss);
	EXPECT_GE(size_kb + nr, pss);
	for (unsigned int i = 0; i < nr; i++)
		EXPECT_TRUE(peer_exit(&peers[i]));
}

static bool start_mapped_peers(struct peer *peers, unsigned int nr, int fd)
{
	for (unsigned int i = 0; i < nr; i++) {
		if (!peer_start_mapped(&peers[i], fd, 0, FILE_SIZE, PROT_RW))
			return false;
		peers[i].arg->seed = SEED;
	}
	return true;
}

/* Whoever was first or made the tables may go; the last one frees them */
FIXTURE(exits) {
	int fd;
	long long tables;
	struct peer peers[4];
};

FIXTURE_SETUP(exits)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->tables = ptshare_tables();
	self->fd = share_file(NR_TABLES, 0);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(start_mapped_peers(self->peers, 4, self->fd));
	ASSERT_EQ(0, peer_call(&self->peers[0], peer_fill));
	for (int i = 1; i < 4; i++)
		ASSERT_EQ(0, peer_call(&self->peers[i], peer_check));
}

FIXTURE_TEARDOWN(exits)
{
	close(self->fd);
	EXPECT_TRUE(tables_become(self->tables));
}

FIXTURE_VARIANT(exits) {
	int order[4];
	bool kill;
};

FIXTURE_VARIANT_ADD(exits, first_to_last) { .order = { 0, 1, 2, 3 } };
FIXTURE_VARIANT_ADD(exits, last_to_first) { .order = { 3, 2, 1, 0 } };
FIXTURE_VARIANT_ADD(exits, mixed) { .order = { 2, 0, 3, 1 } };
FIXTURE_VARIANT_ADD(exits, killed) { .order = { 0, 2, 1, 3 }, .kill = true };

TEST_F(exits, others_go_on)
{
	for (int i = 0; i < 4; i++) {
		struct peer *leaving = &self->peers[variant->order[i]];

		if (variant->kill) {
			peer_kill(leaving);
		} else {
			EXPECT_TRUE(peer_exit(leaving));
		}
		for (int j = i + 1; j < 4; j++) {
			struct peer *p = &self->peers[variant->order[j]];

			EXPECT_EQ(0, peer_call(p, peer_check));
			p->arg->seed = SEED + i;
			EXPECT_EQ(0, peer_call(p, peer_fill));
			for (int k = i + 1; k < 4; k++)
				self->peers[variant->order[k]].arg->seed =
					SEED + i;
			EXPECT_PEER_UNAFFECTED(p);
		}
	}
	EXPECT_TRUE(tables_become(self->tables));
	EXPECT_EQ(0, wrong_file_pages(self->fd, 0, FILE_PAGES, SEED + 2));
}

/* The file outlives its tables, and gets new ones */
TEST_F(exits, mapped_again)
{
	char *map;

	for (int i = 0; i < 4; i++)
		EXPECT_TRUE(peer_exit(&self->peers[variant->order[i]]));
	EXPECT_TRUE(tables_become(self->tables));
	map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(map, FILE_SIZE);
	munmap(map, FILE_SIZE);
}

/* Without its descriptor a mapping is as good */
TEST_F(pair, descriptor_closed)
{
	close(self->fd);
	EXPECT_RIGHT_SHARED(self);
	fill_pages(self->map, 0, FILE_PAGES, SEED2);
	self->peer.arg->seed = SEED2;
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Two mappings of one process, at two addresses */
TEST_F(pair, twice_in_one_process)
{
	char *map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);
	char *half = map_file(self->fd, FILE_SIZE / 2, FILE_SIZE / 2,
			      PROT_READ);

	ASSERT_NE(MAP_FAILED, map);
	ASSERT_NE(MAP_FAILED, half);
	fill_pages(map, 0, FILE_PAGES, SEED2);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED2));
	EXPECT_EQ(0, wrong_pages(half, FILE_PAGES / 2, FILE_PAGES / 2, SEED2));
	EXPECT_SHARED(map, FILE_SIZE);
	EXPECT_SHARED(half, FILE_SIZE / 2);
	munmap(map, FILE_SIZE);
	EXPECT_EQ(0, wrong_pages(half, FILE_PAGES / 2, FILE_PAGES / 2, SEED2));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED2));
	EXPECT_SHARED(self->map, FILE_SIZE);
	munmap(half, FILE_SIZE / 2);
}

/* A process that maps, and becomes another program */
static long peer_exec(void *data)
{
	execl("/bin/true", "true", NULL);
	return -errno;
}

TEST_F(pair, exec)
{
	struct ptshare_counts before = ptshare_counts();

	ASSERT_TRUE(peer_tell(&self->peer, peer_exec));
	ASSERT_TRUE(peer_reap(&self->peer));
	EXPECT_TRUE(WIFEXITED(self->peer.status));
	EXPECT_EQ(0, WEXITSTATUS(self->peer.status));
	EXPECT_EQ(NR_TABLES, vmstat("ptshare_unlink") - before.unlink);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(1, fdinfo(self->fd, "ptshare_guests"));
}

static long peer_vfork_exec(void *data)
{
	pid_t pid = vfork();
	int status = -1;

	if (!pid) {
		execl("/bin/true", "true", NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -errno;
	return status;
}

TEST_F(pair, vfork_exec)
{
	EXPECT_EQ(0, peer_call(&self->peer, peer_vfork_exec));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_RIGHT_SHARED(self);
}

/* Fork in a fork in a fork, each of which changes its page */
static long peer_fork_chain(void *data)
{
	struct peer_arg *arg = data;
	int status = 0;
	pid_t pid;

	for (int depth = 0; depth < 6; depth++) {
		pid = fork();
		if (pid < 0)
			return -errno;
		if (pid) {
			if (waitpid(pid, &status, 0) != pid)
				status = -1;
			if (depth)
				_exit(WEXITSTATUS(status));
			return status;
		}
		store64(arg->map + depth * TABLE_SIZE / 2, 1000 + depth);
	}
	/* A fault links those tables that are near */
	for (size_t at = 0; at < arg->len; at += TABLE_SIZE)
		load64(arg->map + at);
	_exit(shared_kb(arg->map, arg->len) != (long long)(arg->len >> 10));
}

TEST_F(pair, fork_chain)
{
	EXPECT_EQ(0, peer_call(&self->peer, peer_fork_chain));
	for (int depth = 0; depth < 6; depth++) {
		EXPECT_EQ(1000 + depth,
			  load64(self->map + depth * TABLE_SIZE / 2));
		store64(self->map + depth * TABLE_SIZE / 2,
			page_mark(SEED, depth * TABLE_PAGES / 2));
	}
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Part 3: munmap(2), mmap(2) over a part, mprotect(2), mremap(2) */

TEST_F(pair, munmap_aligned_part)
{
	char *hole = self->map + TABLE_SIZE;

	EXPECT_EQ(0, munmap(hole, TABLE_SIZE));
	EXPECT_EQ(SIGSEGV, try_load(hole));
	EXPECT_EQ(SIGSEGV, try_store(hole + TABLE_SIZE - 1, 1));
	EXPECT_EQ(0, wrong_pages(self->map, 0, TABLE_PAGES, SEED));
	EXPECT_EQ(0, wrong_pages(hole + TABLE_SIZE, 2 * TABLE_PAGES,
				 2 * TABLE_PAGES, SEED));
	EXPECT_SHARED(self->map, TABLE_SIZE);
	EXPECT_SHARED(hole + TABLE_SIZE, 2 * TABLE_SIZE);
	EXPECT_EQ(0, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(1, vmstat("ptshare_unlink") - self->counts.unlink);
}

/*
 * A mapping may cross what an upper table maps, and have links only behind: here
 * 512 GiB, what an entry of the topmost table maps.
 */
TEST_F(pair, munmap_across_upper_tables)
{
	char *boundary = (char *)(64UL << 39);
	char *map = boundary - 2 * TABLE_SIZE;
	struct ptshare_counts before;

	ASSERT_EQ(map, mmap(map, FILE_SIZE, PROT_RW, MAP_SHARED |
			    MAP_FIXED_NOREPLACE, self->fd, 0));
	before = ptshare_counts();
	EXPECT_EQ(0, wrong_pages(boundary, 2 * TABLE_PAGES, 2 * TABLE_PAGES,
				 SEED));
	EXPECT_EQ(2, vmstat("ptshare_link") - before.link);
	ASSERT_EQ(0, munmap(map, FILE_SIZE));
	ASSERT_EQ(2, vmstat("ptshare_unlink") - before.unlink);
	EXPECT_EQ(SIGSEGV, try_load(boundary));
	EXPECT_RIGHT_SHARED(self);
}

/* An unaligned hole makes the tables that it cuts ordinary, and no others */
FIXTURE(part) {
	int fd;
	char *area;
	char *map;
	struct peer peer;
	struct ptshare_counts counts;
};

FIXTURE_VARIANT(part) {
	size_t first;		/* pages */
	size_t nr;
};

FIXTURE_VARIANT_ADD(part, first_page) { .first = 0, .nr = 1 };
FIXTURE_VARIANT_ADD(part, last_page) { .first = FILE_SIZE / 4096 - 1, .nr = 1 };
FIXTURE_VARIANT_ADD(part, middle_page) { .first = 700, .nr = 1 };
FIXTURE_VARIANT_ADD(part, half_table) { .first = 512, .nr = 256 };
FIXTURE_VARIANT_ADD(part, over_boundary) { .first = 500, .nr = 24 };
FIXTURE_VARIANT_ADD(part, table_and_page) { .first = 512, .nr = 513 };

FIXTURE_SETUP(part)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->fd = share_file(NR_TABLES, 0);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, FILE_SIZE,
				      PROT_RW));
	self->area = reserve(FILE_SIZE);
	self->map = map_at(self->area, self->fd, 0, FILE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
	self->counts = ptshare_counts();
}

FIXTURE_TEARDOWN(part)
{
	peer_kill(&self->peer);
	munmap(self->area, FILE_SIZE);
	close(self->fd);
	EXPECT_TRUE(tables_become(0));
}

#define PART_START(self) ((self)->map + variant->first * page_size())
#define PART_SIZE (variant->nr * page_size())

/* What is shared of the tables that no page of a part is in, and within it */
static size_t kb_around(size_t first, size_t nr)
{
	size_t behind = (first + nr + TABLE_PAGES - 1) / TABLE_PAGES;

	return (first / TABLE_PAGES + NR_TABLES - behind) * TABLE_KB;
}

static size_t kb_within(size_t first, size_t nr)
{
	size_t begin = (first + TABLE_PAGES - 1) / TABLE_PAGES;
	size_t end = (first + nr) / TABLE_PAGES;

	return begin < end ? (end - begin) * TABLE_KB : 0;
}

#define EXPECT_PART_ORDINARY(self) \
	EXPECT_EQ(kb_around(variant->first, variant->nr), \
		  shared_kb((self)->map, FILE_SIZE))

/* The part may share as well, but in a mapping of its own */
#define EXPECT_PART_APART(self) \
	EXPECT_EQ(kb_around(variant->first, variant->nr) + \
		  kb_within(variant->first, variant->nr), \
		  shared_kb((self)->map, FILE_SIZE))

static size_t wrong_around(const char *map, size_t first, size_t nr)
{
	return wrong_pages(map, 0, first, SEED) +
	       wrong_pages(map + (first + nr) * page_size(), first + nr,
			   FILE_PAGES - first - nr, SEED);
}

TEST_F(part, munmap_unaligned)
{
	EXPECT_EQ(0, munmap(PART_START(self), PART_SIZE));
	EXPECT_EQ(SIGSEGV, try_load(PART_START(self)));
	EXPECT_EQ(SIGSEGV, try_store(PART_START(self) + PART_SIZE - 1, 1));
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_PART_ORDINARY(self);
	EXPECT_LE(1, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(part, map_fixed_anonymous)
{
	char *part = PART_START(self);

	ASSERT_EQ(part, mmap(part, PART_SIZE, PROT_RW, MAP_PRIVATE |
			     MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	EXPECT_TRUE(filled_with(part, PART_SIZE, 0));
	memset(part, 0x55, PART_SIZE);
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_PART_ORDINARY(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* The same offset again: whether this is one mapping again is left open */
TEST_F(part, map_fixed_same_file)
{
	char *part = PART_START(self);

	ASSERT_EQ(part, map_at(part, self->fd, variant->first * page_size(),
			       PART_SIZE, PROT_RW));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	fill_pages(self->map, 0, FILE_PAGES, SEED2);
	self->peer.arg->seed = SEED2;
	EXPECT_PEER_UNAFFECTED(&self->peer);
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* The first pages of the file, in the middle */
TEST_F(part, map_fixed_other_offset)
{
	char *part = PART_START(self);

	ASSERT_EQ(part, map_at(part, self->fd, 4096 * 3, PART_SIZE,
			       PROT_RW));
	EXPECT_EQ(0, wrong_pages(part, 3, variant->nr, SEED));
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	store64(part, 5);
	EXPECT_EQ(5, file64(self->fd, 4096 * 3));
	store64(part, page_mark(SEED, 3));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(part, mprotect_unaligned_read)
{
	char *part = PART_START(self);

	EXPECT_EQ(0, mprotect(part, PART_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(part + 8, 1));
	EXPECT_EQ(SIGSEGV, try_store(part + PART_SIZE - 1, 1));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_PART_APART(self);
	EXPECT_LE(1, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);

	/* The reason has gone */
	EXPECT_EQ(0, mprotect(part, PART_SIZE, PROT_RW));
	EXPECT_EQ(0, try_store(part + 8, 1));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_LE(1, shared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(part, mprotect_unaligned_none)
{
	char *part = PART_START(self);

	EXPECT_EQ(0, mprotect(part, PART_SIZE, PROT_NONE));
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(SIGSEGV, try_load(part + PART_SIZE - 1));
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_PART_ORDINARY(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, mprotect(part, PART_SIZE, PROT_RW));
	EXPECT_RIGHT_SHARED(self);
}

/* Guards of one process are no business of the others, nor of the file */
TEST_F(part, guards)
{
	char *part = PART_START(self);

	if (madvise(part, PART_SIZE, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions in files");
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(SIGSEGV, try_store(part + PART_SIZE - 1, 1));
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_ORDINARY(self->map, FILE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);

	EXPECT_EQ(0, madvise(part, PART_SIZE, MADV_GUARD_REMOVE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	fill_pages(self->map, 0, FILE_PAGES, SEED2);
	self->peer.arg->seed = SEED2;
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* They outlive changes of rights and advice, and a child has them too */
TEST_F(part, guards_stay)
{
	char *part = PART_START(self);
	int status;
	pid_t pid;

	if (madvise(part, PART_SIZE, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions in files");
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
	EXPECT_EQ(0, madvise(part, PART_SIZE, MADV_RANDOM));
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(0, madvise(part, PART_SIZE, MADV_NORMAL));
	EXPECT_EQ(SIGSEGV, try_load(part + PART_SIZE - 1));
	pid = fork();
	if (!pid)
		_exit(try_load(part) == SIGSEGV &&
		      try_store(part + PART_SIZE - 1, 1) == SIGSEGV &&
		      !wrong_around(self->map, variant->first, variant->nr) ?
		      0 : 1);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* A hole is filled between mappings that share and one that has guards */
TEST_F(part, guards_merge)
{
	char *part = PART_START(self), *hole, *table;

	if (madvise(part, PART_SIZE, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions in files");
	for (size_t i = 0; i < NR_TABLES; i++) {
		if (i == variant->first / TABLE_PAGES)
			continue;
		table = self->map + i * TABLE_SIZE;
		hole = i < variant->first / TABLE_PAGES ? table :
		       table + TABLE_SIZE / 2;
		if (hole < part + PART_SIZE && hole + TABLE_SIZE / 2 > part)
			continue;
		ASSERT_EQ(0, munmap(hole, TABLE_SIZE / 2));
		ASSERT_EQ(hole, map_at(hole, self->fd, hole - self->map,
				       TABLE_SIZE / 2, PROT_RW));
		EXPECT_EQ(SIGSEGV, try_load(part));
		EXPECT_EQ(SIGSEGV, try_load(part + PART_SIZE - 1));
		EXPECT_EQ(0, wrong_around(self->map, variant->first,
					  variant->nr));
	}
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, madvise(part, PART_SIZE, MADV_GUARD_REMOVE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
}

static int madvise_by_io_uring(void *addr, size_t len, int advice)
{
	struct io_uring ring;
	struct io_uring_cqe *cqe;
	int ret;

	ret = io_uring_queue_init(1, &ring, 0);
	if (ret)
		return ret;
	io_uring_prep_madvise(io_uring_get_sqe(&ring), addr, len, advice);
	ret = io_uring_submit_and_wait(&ring, 1);
	if (ret == 1 && !io_uring_wait_cqe(&ring, &cqe))
		ret = cqe->res;
	io_uring_queue_exit(&ring);
	return ret;
}

/* Which cannot start a system call again */
TEST_F(part, guards_by_io_uring)
{
	char *part = PART_START(self);
	int ret;

	ret = madvise_by_io_uring(part, PART_SIZE, MADV_GUARD_INSTALL);
	if (ret == -EINVAL)
		SKIP(return, "no guard regions in files");
	EXPECT_EQ(0, ret);
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, madvise_by_io_uring(part, PART_SIZE, MADV_GUARD_REMOVE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
}

/* Guards are installed while the mapping gets rights with which it would share */
struct guard_race {
	char *part;
	size_t len;
	pthread_barrier_t barrier;
	int rounds;
};

static void *install_guards(void *arg)
{
	struct guard_race *race = arg;

	pin_to_cpu(0, 1);
	for (int i = 0; i < race->rounds; i++) {
		pthread_barrier_wait(&race->barrier);
		madvise(race->part, race->len, MADV_GUARD_INSTALL);
		pthread_barrier_wait(&race->barrier);
	}
	return NULL;
}

TEST_F(part, guards_beside_mprotect)
{
	struct guard_race race = {
		.part = PART_START(self), .len = PART_SIZE, .rounds = 300,
	};
	unsigned int lost = 0;
	pthread_t thread;

	if (madvise(race.part, race.len, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions in files");
	pin_to_cpu(0, 0);
	ASSERT_EQ(0, pthread_barrier_init(&race.barrier, NULL, 2));
	ASSERT_EQ(0, pthread_create(&thread, NULL, install_guards, &race));
	for (int i = 0; i < race.rounds; i++) {
		map_at(self->map, self->fd, 0, FILE_SIZE, PROT_NONE);
		pthread_barrier_wait(&race.barrier);
		mprotect(self->map, FILE_SIZE, PROT_RW);
		pthread_barrier_wait(&race.barrier);
		lost += try_load(race.part) != SIGSEGV;
	}
	pthread_join(thread, NULL);
	EXPECT_EQ(0, lost);
	EXPECT_EQ(0, wrong_around(self->map, variant->first, variant->nr));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Advice that splits the mapping, and advice that merges it again */
TEST_F(part, madvise_unaligned_random)
{
	char *part = PART_START(self);

	EXPECT_EQ(0, madvise(part, PART_SIZE, MADV_RANDOM));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_PART_APART(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, madvise(part, PART_SIZE, MADV_NORMAL));
	EXPECT_RIGHT_SHARED(self);
}

/* Nothing is split here: only entries are dropped */
TEST_F(part, madvise_unaligned_dontneed)
{
	EXPECT_EQ(0, madvise(PART_START(self), PART_SIZE, MADV_DONTNEED));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(part, mlock_unaligned)
{
	char *part = PART_START(self);

	EXPECT_EQ(0, mlock(part, PART_SIZE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_PART_APART(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, munlock(part, PART_SIZE));
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, map_fixed_aligned_part)
{
	char *part = self->map + TABLE_SIZE;

	ASSERT_EQ(part, mmap(part, TABLE_SIZE, PROT_RW, MAP_PRIVATE |
			     MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	EXPECT_TRUE(filled_with(part, TABLE_SIZE, 0));
	memset(part, 0x55, TABLE_SIZE);
	EXPECT_EQ(0, wrong_around(self->map, TABLE_PAGES, TABLE_PAGES));
	EXPECT_SHARED(self->map, FILE_SIZE - TABLE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);

	/* Another table of the file there */
	ASSERT_EQ(part, map_at(part, self->fd, 3 * TABLE_SIZE, TABLE_SIZE,
			       PROT_RW));
	EXPECT_EQ(0, wrong_pages(part, 3 * TABLE_PAGES, TABLE_PAGES, SEED));
	EXPECT_SHARED(part, TABLE_SIZE);

	/* And what was there before */
	ASSERT_EQ(part, map_at(part, self->fd, TABLE_SIZE, TABLE_SIZE,
			       PROT_RW));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, unshared_since(&self->counts));
}

/* Another class's table, not an ordinary mapping */
TEST_F(pair, mprotect_aligned_stays_shared)
{
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
		EXPECT_EQ(SIGSEGV, try_store(self->map, 1));
		EXPECT_EQ(SIGSEGV, try_store(self->map + FILE_SIZE - 1, 1));
		EXPECT_RIGHT_SHARED(self);
		EXPECT_EQ(SIGSEGV, try_store(self->map + 4096, 1));
		EXPECT_PEER_UNAFFECTED(&self->peer);
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));

		EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
		fill_pages(self->map, 0, FILE_PAGES, SEED);
		EXPECT_RIGHT_SHARED(self);
		EXPECT_PEER_UNAFFECTED(&self->peer);
	}
	EXPECT_EQ(0, unshared_since(&self->counts));
}

TEST_F(pair, mprotect_aligned_part)
{
	char *part = self->map + TABLE_SIZE;

	EXPECT_EQ(0, mprotect(part, TABLE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(part, 1));
	EXPECT_EQ(SIGSEGV, try_store(part + TABLE_SIZE - 1, 1));
	fill_pages(self->map, 0, TABLE_PAGES, SEED);
	fill_pages(part + TABLE_SIZE, 2 * TABLE_PAGES, 2 * TABLE_PAGES, SEED);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, mprotect(part, TABLE_SIZE, PROT_RW));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Rights that no class has: ordinary, and shared when they are gone */
static void mprotect_and_back(struct __test_metadata *_metadata,
			      FIXTURE_DATA(pair) *self, int prot)
{
	struct ptshare_counts before = ptshare_counts();

	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, prot));
	EXPECT_EQ(prot == PROT_NONE ? SIGSEGV : 0, try_load(self->map));
	EXPECT_EQ(prot & PROT_WRITE ? 0 : SIGSEGV,
		  try_store(self->map + 8, 1));
	EXPECT_ORDINARY(self->map, FILE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_LE(1, unshared_since(&before));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
	EXPECT_EQ(0, try_store(self->map + 8, 1));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_LE(1, shared_since(&before));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, mprotect_none)
{
	mprotect_and_back(_metadata, self, PROT_NONE);
}

TEST_F(pair, mprotect_exec)
{
	mprotect_and_back(_metadata, self, PROT_READ | PROT_EXEC);
	mprotect_and_back(_metadata, self, PROT_RW | PROT_EXEC);
}

TEST_F(pair, mprotect_write_only)
{
	mprotect_and_back(_metadata, self, PROT_WRITE);
}

/* None of it holds when entries were never there */
TEST_F(pair, mprotect_untouched)
{
	char *map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);

	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, mprotect(map, FILE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(map, 1));
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(SIGSEGV, try_store(map, 1));
	EXPECT_SHARED(map, FILE_SIZE);
	munmap(map, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
}

/* mremap(2) */

static size_t expected_zero(const char *map, size_t nr)
{
	size_t wrong = 0;

	for (size_t i = 0; i < nr; i++)
		wrong += load64(map + i * page_size()) != 0;
	return wrong;
}

TEST_F(pair, mremap_grow_aligned)
{
	size_t grown = FILE_SIZE + 2 * TABLE_SIZE;

	ASSERT_EQ(0, ftruncate(self->fd, grown));
	munmap(self->map + FILE_SIZE, 2 * TABLE_SIZE);
	ASSERT_EQ(self->map, mremap(self->map, FILE_SIZE, grown, 0));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, expected_zero(self->map + FILE_SIZE, 2 * TABLE_PAGES));
	EXPECT_SHARED(self->map, grown);
	store64(self->map + FILE_SIZE, 3);
	EXPECT_EQ(3, file64(self->fd, FILE_SIZE));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, mremap_grow_unaligned)
{
	size_t grown = FILE_SIZE + page_size();

	ASSERT_EQ(0, ftruncate(self->fd, FILE_SIZE + TABLE_SIZE));
	munmap(self->map + FILE_SIZE, TABLE_SIZE);
	ASSERT_EQ(self->map, mremap(self->map, FILE_SIZE, grown, 0));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, load64(self->map + FILE_SIZE));
	store64(self->map + FILE_SIZE, 3);
	EXPECT_EQ(3, file64(self->fd, FILE_SIZE));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, unshared_since(&self->counts));

	/* What has grown too much shrinks again */
	ASSERT_EQ(self->map, mremap(self->map, grown, FILE_SIZE, 0));
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, mremap_shrink_aligned)
{
	size_t half = FILE_SIZE / 2;

	ASSERT_EQ(self->map, mremap(self->map, FILE_SIZE, half, 0));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES / 2, SEED));
	EXPECT_EQ(SIGSEGV, try_load(self->map + half));
	EXPECT_SHARED(self->map, half);
	EXPECT_EQ(0, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, mremap_shrink_unaligned)
{
	size_t part = FILE_SIZE - page_size();

	ASSERT_EQ(self->map, mremap(self->map, FILE_SIZE, part, 0));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES - 1, SEED));
	EXPECT_EQ(SIGSEGV, try_load(self->map + part));
	EXPECT_SHARED(self->map, FILE_SIZE - TABLE_SIZE);
	EXPECT_LE(1, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Moves the mapping to @to and looks at both places */
static void move_mapping(struct __test_metadata *_metadata,
			 FIXTURE_DATA(pair) *self, char *to, bool shared)
{
	char *from = self->map;

	ASSERT_EQ(to, mremap(from, FILE_SIZE, FILE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	EXPECT_EQ(0, wrong_pages(to, 0, FILE_PAGES, SEED));
	EXPECT_EQ(shared ? FILE_SIZE >> 10 : 0, shared_kb(to, FILE_SIZE));
	EXPECT_EQ(SIGSEGV, try_load(from));
	EXPECT_EQ(SIGSEGV, try_store(from + FILE_SIZE - 1, 1));
	fill_pages(to, 0, FILE_PAGES, SEED2);
	self->peer.arg->seed = SEED2;
	EXPECT_PEER_UNAFFECTED(&self->peer);
	fill_pages(to, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	self->map = to;
}

TEST_F(pair, mremap_move)
{
	char *there = reserve(FILE_SIZE + 2 * TABLE_SIZE);
	char *back = self->map;

	ASSERT_NE(MAP_FAILED, there);
	move_mapping(_metadata, self, there + TABLE_SIZE, true);
	move_mapping(_metadata, self, back, true);
	move_mapping(_metadata, self, there + 4096, false);
	EXPECT_LE(1, unshared_since(&self->counts));
	move_mapping(_metadata, self, back, true);
	EXPECT_LE(1, shared_since(&self->counts));
	munmap(there, FILE_SIZE + 2 * TABLE_SIZE);
}

/* One table is moved out of the middle, by itself */
TEST_F(pair, mremap_move_part)
{
	char *there = reserve(2 * TABLE_SIZE);
	char *part = self->map + TABLE_SIZE;

	ASSERT_EQ(there, mremap(part, TABLE_SIZE, TABLE_SIZE,
				MREMAP_MAYMOVE | MREMAP_FIXED, there));
	EXPECT_EQ(0, wrong_pages(there, TABLE_PAGES, TABLE_PAGES, SEED));
	EXPECT_SHARED(there, TABLE_SIZE);
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(0, wrong_around(self->map, TABLE_PAGES, TABLE_PAGES));
	EXPECT_SHARED(self->map, FILE_SIZE - TABLE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);

	/* A page of another one */
	part += TABLE_SIZE;
	there += TABLE_SIZE;
	ASSERT_EQ(there, mremap(part, 4096, 4096,
				MREMAP_MAYMOVE | MREMAP_FIXED, there));
	EXPECT_EQ(0, wrong_pages(there, 2 * TABLE_PAGES, 1, SEED));
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(0, wrong_pages(part + 4096, 2 * TABLE_PAGES + 1,
				 2 * TABLE_PAGES - 1, SEED));
	EXPECT_SHARED(part, TABLE_SIZE);
	EXPECT_ORDINARY(there, TABLE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	munmap(there - TABLE_SIZE, 2 * TABLE_SIZE);
}

/* The kernel finds a new place that fits */
TEST_F(pair, mremap_grow_moves)
{
	size_t grown = FILE_SIZE + TABLE_SIZE;
	char *map;

	ASSERT_EQ(0, ftruncate(self->fd, grown));
	map = mremap(self->map, FILE_SIZE, grown, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_NE(self->map, map);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, expected_zero(map + FILE_SIZE, TABLE_PAGES));
	EXPECT_EQ(0, (uintptr_t)map % TABLE_SIZE);
	EXPECT_SHARED(map, grown);
	EXPECT_EQ(SIGSEGV, try_load(self->map));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	munmap(map, grown);
}

/* An old size of 0 makes a second mapping */
TEST_F(pair, mremap_duplicate)
{
	char *map = reserve(FILE_SIZE);

	ASSERT_EQ(map, mremap(self->map, 0, FILE_SIZE,
			      MREMAP_MAYMOVE | MREMAP_FIXED, map));
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(map, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
	munmap(map, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, mremap_dontunmap)
{
	char *there = reserve(FILE_SIZE);
	char *map;

	map = mremap(self->map, FILE_SIZE, FILE_SIZE, MREMAP_MAYMOVE |
		     MREMAP_FIXED | MREMAP_DONTUNMAP, there);
	ASSERT_EQ(there, map);
	EXPECT_EQ(0, wrong_pages(there, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(there, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
	store64(there, 77);
	EXPECT_EQ(77, load64(self->map));
	store64(self->map, page_mark(SEED, 0));
	munmap(there, FILE_SIZE);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Part 4: locked memory and advice */

TEST_F(pair, mlock_and_munlock)
{
	long long locked = meminfo_kb("Mlocked");

	EXPECT_EQ(0, mlock(self->map, FILE_SIZE));
	EXPECT_SHARED(self->map, FILE_SIZE);
	EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(FILE_SIZE >> 10, smaps_sum(getpid(), self->map, FILE_SIZE,
					     "Rss", NULL));
	EXPECT_LE(FILE_SIZE >> 10, pid_field(getpid(), "status", "VmLck"));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
	EXPECT_EQ(0, munlock(self->map, FILE_SIZE));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/*
 * Pages move away from where they are locked, to where nothing is shared. Nobody has
 * locked them any more when that is gone, though what they have left still maps them.
 */
TEST_F(pair, mlock_and_dontunmap)
{
	const size_t parts[] = { FILE_SIZE, TABLE_SIZE };
	long long locked = meminfo_kb("Mlocked");

	for (size_t i = 0; i < 2; i++) {
		char *there = reserve(FILE_SIZE + TABLE_SIZE) + page_size();
		long long rest = (FILE_SIZE - parts[i]) >> 10;

		EXPECT_EQ(0, mlock(self->map, FILE_SIZE));
		EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
		ASSERT_EQ(there, mremap(self->map, parts[i], parts[i],
					MREMAP_MAYMOVE | MREMAP_FIXED |
					MREMAP_DONTUNMAP, there));
		EXPECT_EQ(0, munlock(there, parts[i]));
		EXPECT_EQ(0, munmap(there, parts[i]));
		EXPECT_TRUE(locked_is(locked + rest));
		EXPECT_EQ(rest, pid_field(getpid(), "status", "VmLck"));
		EXPECT_RIGHT_SHARED(self);
		EXPECT_PEER_UNAFFECTED(&self->peer);
	}
}

/* Several have it locked: it is locked once, and as long as one of them has */
TEST_F(pair, mlock_by_several)
{
	long long tables, locked = meminfo_kb("Mlocked");

	EXPECT_EQ(0, mlock(self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	tables = ptshare_tables();
	EXPECT_EQ(0, peer_call(&self->peer, peer_lock));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_GE(tables, ptshare_tables());
	EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
	EXPECT_EQ(0, munlock(self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
	/* What one wants to have paged out, another has locked */
	madvise(self->map, FILE_SIZE, MADV_PAGEOUT);
	EXPECT_EQ(FILE_SIZE >> 10, peer_call(&self->peer, peer_shared_kb));
	EXPECT_TRUE(peer_exit(&self->peer));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
}

/* Pages that come later are locked as well, and those that go are not any more */
TEST_F(pair, mlock_onfault)
{
	long long locked = meminfo_kb("Mlocked");

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 0, FILE_SIZE));
	EXPECT_EQ(0, mlock2(self->map, FILE_SIZE, MLOCK_ONFAULT));
	EXPECT_TRUE(locked_is(locked));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
	EXPECT_RIGHT_SHARED(self);
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 0, TABLE_SIZE));
	EXPECT_TRUE(locked_is(locked + ((FILE_SIZE - TABLE_SIZE) >> 10)));
	fill_pages(self->map, 0, TABLE_PAGES, SEED);
	EXPECT_EQ(0, munlock(self->map, FILE_SIZE));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, unshared_since(&self->counts));
}

TEST_F(pair, mlock_aligned_part)
{
	long long locked = meminfo_kb("Mlocked");
	char *part = self->map + TABLE_SIZE;

	EXPECT_EQ(0, mlock(part, TABLE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_TRUE(locked_is(locked + (TABLE_SIZE >> 10)));
	EXPECT_EQ(0, munlock(part, TABLE_SIZE));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, unshared_since(&self->counts));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Whatever becomes of the mapping, its pages stay where they are without an access */
TEST_F(pair, mlock_lasts)
{
	char *there = reserve(FILE_SIZE + TABLE_SIZE) + 4096;
	long long locked = meminfo_kb("Mlocked") + (FILE_SIZE >> 10);

	ASSERT_EQ(0, mlock(self->map, FILE_SIZE));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_EQ(0, mprotect(self->map + TABLE_SIZE, TABLE_SIZE, PROT_RW));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_HUGEPAGE));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_NOHUGEPAGE));
	EXPECT_TRUE(locked_is(locked));
	for (size_t at = 4096; at < FILE_SIZE; at += TABLE_SIZE)
		EXPECT_EQ(0, munlock(self->map + at, 4096));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_EQ(0, mlock(self->map, FILE_SIZE));
	EXPECT_TRUE(locked_is(locked));
	ASSERT_EQ(there, mremap(self->map, FILE_SIZE, FILE_SIZE,
				MREMAP_MAYMOVE | MREMAP_FIXED, there));
	EXPECT_TRUE(locked_is(locked));
	ASSERT_EQ(self->map, mremap(there, FILE_SIZE, FILE_SIZE,
				    MREMAP_MAYMOVE | MREMAP_FIXED, self->map));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, munlock(self->map, FILE_SIZE));
	EXPECT_TRUE(locked_is(locked - (FILE_SIZE >> 10)));
	munmap(there - 4096, FILE_SIZE + TABLE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, mlock_in_pieces)
{
	long long locked = meminfo_kb("Mlocked");
	size_t half = TABLE_SIZE / 2;

	for (size_t at = 0; at < FILE_SIZE; at += half)
		EXPECT_EQ(0, mlock(self->map + at, half));
	EXPECT_TRUE(locked_is(locked + (FILE_SIZE >> 10)));
	EXPECT_RIGHT_SHARED(self);
	for (size_t at = 0; at < FILE_SIZE; at += half)
		EXPECT_EQ(0, munlock(self->map + at, half));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Nothing stays locked for nobody, though others map the same blocks */
TEST_F(pair, mlock_is_given_back)
{
	long long locked = meminfo_kb("Mlocked");
	size_t half = TABLE_SIZE / 2;

	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
	ASSERT_EQ(0, mlock(self->map, FILE_SIZE));
	for (size_t at = 0; at < FILE_SIZE; at += TABLE_SIZE) {
		EXPECT_EQ(0, munlock(self->map + at, half));
		EXPECT_EQ(0, munmap(self->map + at, half));
		EXPECT_EQ(0, munlock(self->map + at + half, half));
	}
	EXPECT_TRUE(locked_is(locked));
	ASSERT_EQ(self->map, map_at(self->map, self->fd, 0, FILE_SIZE, PROT_RW));
	EXPECT_RIGHT_SHARED(self);

	/* Nor by way of pieces that are none of a guest */
	ASSERT_EQ(0, mlock(self->map, FILE_SIZE));
	for (size_t at = 0; at < FILE_SIZE; at += TABLE_SIZE) {
		EXPECT_EQ(0, mprotect(self->map + at, 4096, PROT_READ));
		EXPECT_EQ(0, mprotect(self->map + at + TABLE_SIZE - 4096, 4096,
				      PROT_READ));
	}
	EXPECT_EQ(0, munlock(self->map, FILE_SIZE));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
	EXPECT_TRUE(locked_is(locked));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* The limit is that of the process, whatever others have locked */
TEST_F(pair, mlock_limit)
{
	struct rlimit limit = { FILE_SIZE - 4096, FILE_SIZE - 4096 };
	int status = -1;
	pid_t pid;

	ASSERT_EQ(0, mlock(self->map, FILE_SIZE));
	pid = fork();
	if (!pid) {
		if (setrlimit(RLIMIT_MEMLOCK, &limit) || setuid(65534))
			_exit(1);
		if (!mlock(self->map, FILE_SIZE) || errno != ENOMEM)
			_exit(2);
		if (mlock(self->map, FILE_SIZE - TABLE_SIZE))
			_exit(3);
		_exit(shared_kb(self->map, FILE_SIZE - TABLE_SIZE) !=
		      (FILE_SIZE - TABLE_SIZE) >> 10 ? 4 : 0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, mlockall)
{
	long long locked = meminfo_kb("Mlocked");
	char *map;

	ASSERT_EQ(0, mlockall(MCL_CURRENT));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_LE(locked + (FILE_SIZE >> 10), meminfo_kb("Mlocked"));
	ASSERT_EQ(0, munlockall());
	EXPECT_RIGHT_SHARED(self);

	ASSERT_EQ(0, mlockall(MCL_FUTURE));
	EXPECT_RIGHT_SHARED(self);
	map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);
	EXPECT_SHARED(map, FILE_SIZE);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	ASSERT_EQ(0, mlockall(MCL_CURRENT | MCL_FUTURE));
	EXPECT_RIGHT_SHARED(self);
	ASSERT_EQ(0, munlockall());
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(map, FILE_SIZE);
	munmap(map, FILE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Each advice does and says what it does with an ordinary memfd */
FIXTURE(advice) {
	int fd[2];		/* with and without shared tables */
	char *map[2];
};

enum after {
	STAYS,			/* shared throughout */
	ORDINARY,
	EITHER,
};

FIXTURE_VARIANT(advice) {
	int advice;
	enum after after;
	int undo;		/* advice after which it is shared, or 0 */
	size_t offset;
	size_t len;		/* 0: the whole file */
};

#define MADVISE(_name, _advice, _after, ...) \
	FIXTURE_VARIANT_ADD(advice, _name) { \
		.advice = _advice, .after = _after, __VA_ARGS__ \
	}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif

MADVISE(normal, MADV_NORMAL, STAYS);
MADVISE(random, MADV_RANDOM, STAYS);
MADVISE(sequential, MADV_SEQUENTIAL, STAYS);
MADVISE(willneed, MADV_WILLNEED, STAYS);
MADVISE(dontneed, MADV_DONTNEED, STAYS);
MADVISE(dontneed_table, MADV_DONTNEED, STAYS, .offset = TABLE_SIZE,
	.len = TABLE_SIZE);
MADVISE(dontneed_page, MADV_DONTNEED, STAYS, .offset = TABLE_SIZE + 4096,
	.len = 4096);
MADVISE(dontneed_locked, MADV_DONTNEED_LOCKED, STAYS);
MADVISE(free, MADV_FREE, STAYS);
MADVISE(remove, MADV_REMOVE, STAYS);
MADVISE(remove_table, MADV_REMOVE, STAYS, .offset = TABLE_SIZE,
	.len = TABLE_SIZE);
MADVISE(remove_page, MADV_REMOVE, STAYS, .offset = TABLE_SIZE + 4096,
	.len = 4096);
MADVISE(dontfork, MADV_DONTFORK, EITHER, .undo = MADV_DOFORK);
MADVISE(dofork, MADV_DOFORK, STAYS);
MADVISE(wipeonfork, MADV_WIPEONFORK, STAYS);
MADVISE(keeponfork, MADV_KEEPONFORK, STAYS);
MADVISE(mergeable, MADV_MERGEABLE, STAYS);
MADVISE(unmergeable, MADV_UNMERGEABLE, STAYS);
MADVISE(hugepage, MADV_HUGEPAGE, ORDINARY, .undo = MADV_NOHUGEPAGE);
MADVISE(hugepage_table, MADV_HUGEPAGE, EITHER, .undo = MADV_NOHUGEPAGE,
	.offset = TABLE_SIZE, .len = TABLE_SIZE);
MADVISE(nohugepage, MADV_NOHUGEPAGE, STAYS);
MADVISE(collapse, MADV_COLLAPSE, EITHER);
MADVISE(collapse_table, MADV_COLLAPSE, EITHER, .offset = TABLE_SIZE,
	.len = TABLE_SIZE);
MADVISE(dontdump, MADV_DONTDUMP, STAYS);
MADVISE(dodump, MADV_DODUMP, STAYS);
MADVISE(cold, MADV_COLD, STAYS);
MADVISE(cold_page, MADV_COLD, STAYS, .offset = 4096, .len = 4096);
MADVISE(pageout, MADV_PAGEOUT, STAYS);
MADVISE(pageout_page, MADV_PAGEOUT, STAYS, .offset = 4096, .len = 4096);
MADVISE(populate_read, MADV_POPULATE_READ, STAYS);
MADVISE(populate_write, MADV_POPULATE_WRITE, STAYS);
MADVISE(unknown, 999, STAYS);
MADVISE(unaligned, MADV_DONTNEED, STAYS, .offset = 1, .len = 4096);
MADVISE(beyond_end, MADV_COLD, STAYS, .len = FILE_SIZE + TABLE_SIZE);

FIXTURE_SETUP(advice)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->fd[0] = share_file(NR_TABLES, 0);
	self->fd[1] = sys_memfd_create(MFD_CLOEXEC);
	ASSERT_LE(0, self->fd[0]);
	ASSERT_EQ(0, ftruncate(self->fd[1], FILE_SIZE));
	for (int i = 0; i < 2; i++) {
		self->map[i] = reserve(FILE_SIZE + TABLE_SIZE);
		munmap(self->map[i] + FILE_SIZE, TABLE_SIZE);
		map_at(self->map[i], self->fd[i], 0, FILE_SIZE, PROT_RW);
		fill_pages(self->map[i], 0, FILE_PAGES, SEED);
	}
}

FIXTURE_TEARDOWN(advice)
{
	for (int i = 0; i < 2; i++) {
		munmap(self->map[i], FILE_SIZE);
		close(self->fd[i]);
	}
	EXPECT_TRUE(tables_become(0));
}

static size_t differing_pages(char *const map[2])
{
	size_t differ = 0;

	for (size_t i = 0; i < FILE_PAGES; i++)
		differ += load64(map[0] + i * page_size()) !=
			  load64(map[1] + i * page_size());
	return differ;
}

TEST_F(advice, as_ordinary)
{
	size_t len = variant->len ?: FILE_SIZE;
	long ret[2];

	for (int i = 0; i < 2; i++)
		ret[i] = neg_errno(madvise(self->map[i] + variant->offset, len,
					   variant->advice));
	EXPECT_EQ(ret[1], ret[0]);
	EXPECT_EQ(0, differing_pages(self->map));
	if (variant->after != EITHER) {
		EXPECT_EQ(variant->after == STAYS ? FILE_SIZE >> 10 : 0,
			  shared_kb(self->map[0], FILE_SIZE));
	}
	for (int i = 0; i < 2; i++)
		fill_pages(self->map[i], 0, FILE_PAGES, SEED2);
	EXPECT_EQ(0, differing_pages(self->map));
	EXPECT_EQ(0, wrong_file_pages(self->fd[0], 0, FILE_PAGES, SEED2));
	if (!variant->undo)
		return;
	EXPECT_EQ(0, madvise(self->map[0] + variant->offset, len,
			     variant->undo));
	EXPECT_EQ(0, wrong_pages(self->map[0], 0, FILE_PAGES, SEED2));
	EXPECT_SHARED(self->map[0], FILE_SIZE);
}

TEST_F(pair, dontfork)
{
	struct peer child;

	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_DONTFORK));
	ASSERT_TRUE(peer_start(&child, self->fd));
	child.arg->map = self->map;
	child.arg->len = FILE_SIZE;
	EXPECT_EQ(PEER_SIGNAL(SIGSEGV), peer_call(&child, peer_check));
	EXPECT_TRUE(peer_exit(&child));
	EXPECT_RIGHT_SHARED(self);
}

/* POPULATE of a hole makes pages, for everybody */
TEST_F(pair, populate)
{
	ASSERT_EQ(0, madvise(self->map, FILE_SIZE, MADV_REMOVE));
	EXPECT_ORDINARY(self->map, FILE_SIZE);
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE / 2, MADV_POPULATE_READ));
	EXPECT_SHARED(self->map, FILE_SIZE / 2);
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_POPULATE_WRITE));
	EXPECT_SHARED(self->map, FILE_SIZE);
	EXPECT_EQ(0, expected_zero(self->map, FILE_PAGES));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
	EXPECT_EQ(-EINVAL, neg_errno(madvise(self->map, FILE_SIZE,
					     MADV_POPULATE_WRITE)));
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_POPULATE_READ));
	EXPECT_SHARED(self->map, FILE_SIZE);
}

TEST_F(pair, process_madvise)
{
	static const int advice[] = {
		MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE,
	};
	struct iovec iov = { self->peer.arg->map, FILE_SIZE };
	int pidfd = syscall(__NR_pidfd_open, self->peer.pid, 0);
	long ret;

	NEED(pidfd >= 0, "no pidfd_open()");
	for (size_t i = 0; i < ARRAY_SIZE(advice); i++) {
		ret = neg_errno(syscall(__NR_process_madvise, pidfd, &iov, 1UL,
					advice[i], 0U));
		if (advice[i] != MADV_COLLAPSE) {
			EXPECT_EQ(FILE_SIZE, ret) TH_LOG("%d", advice[i]);
		}
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_EQ(0, peer_call(&self->peer, peer_check));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	}
	close(pidfd);
	EXPECT_RIGHT_SHARED(self);
}

static size_t resident_pages(char *map, size_t nr)
{
	unsigned char vec[FILE_PAGES];
	size_t resident = 0;

	if (mincore(map, nr * page_size(), vec))
		return -1;
	for (size_t i = 0; i < nr; i++)
		resident += vec[i] & 1;
	return resident;
}

TEST_F(pair, mincore)
{
	EXPECT_EQ(FILE_PAGES, resident_pages(self->map, FILE_PAGES));
	ASSERT_EQ(0, madvise(self->map + 4096, 4096 * 5, MADV_REMOVE));
	EXPECT_EQ(FILE_PAGES - 5, resident_pages(self->map, FILE_PAGES));
	ASSERT_EQ(0, madvise(self->map, FILE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(FILE_PAGES - 5, resident_pages(self->map, FILE_PAGES));
	EXPECT_EQ(0, munmap(self->map + TABLE_SIZE, TABLE_SIZE));
	EXPECT_EQ(-1UL, resident_pages(self->map, FILE_PAGES));
}

TEST_F(pair, msync)
{
	EXPECT_EQ(0, msync(self->map, FILE_SIZE, MS_SYNC));
	EXPECT_EQ(0, msync(self->map, FILE_SIZE, MS_ASYNC | MS_INVALIDATE));
	EXPECT_EQ(0, msync(self->map + 4096, 4096, MS_SYNC | MS_INVALIDATE));
	EXPECT_EQ(0, fsync(self->fd));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	munmap(self->map + TABLE_SIZE, 4096);
	EXPECT_EQ(-ENOMEM, neg_errno(msync(self->map, FILE_SIZE, MS_SYNC)));
}

/* A sealed mapping can be used, and only used. For good: so in a child. */
static long peer_mseal(void *data)
{
	struct peer_arg *arg = data;

#ifndef __NR_mseal
#define __NR_mseal	462
#endif
	if (syscall(__NR_mseal, arg->map, arg->len, 0))
		return -errno;
	if (!munmap(arg->map, arg->len) || errno != EPERM ||
	    !mprotect(arg->map, arg->len, PROT_READ) || errno != EPERM ||
	    !munmap(arg->map + 4096, 4096) || errno != EPERM ||
	    mmap(arg->map, 4096, PROT_READ, MAP_FIXED | MAP_PRIVATE |
		 MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
		return 1;
	return 0;
}

TEST_F(pair, mseal)
{
	long ret = peer_call(&self->peer, peer_mseal);

	NEED(ret != -ENOSYS, "no mseal()");
	EXPECT_EQ(0, ret);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_TRUE(peer_exit(&self->peer));
	EXPECT_RIGHT_SHARED(self);
}

/* Part 5: userfaultfd */

static long uffd_unregister(int uffd, char *map, size_t len)
{
	struct uffdio_range range = { (uintptr_t)map, len };

	return neg_errno(ioctl(uffd, UFFDIO_UNREGISTER, &range));
}

static long uffd_wp(int uffd, char *addr, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)addr, page_size() },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return neg_errno(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
}

/* The flags of the fault that comes, if it is at @addr; ~0 if none comes */
static uint64_t uffd_fault(int uffd, const char *addr)
{
	struct uffd_msg msg;

	if (!readable(uffd, LONG_MS) ||
	    read(uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_PAGEFAULT ||
	    (msg.arg.pagefault.address & -page_size()) != (uintptr_t)addr)
		return ~0ULL;
	return msg.arg.pagefault.flags;
}

/* A thread that accesses one word, and sleeps in its fault */
struct toucher {
	pthread_t thread;
	uint64_t *addr;
	uint64_t value;		/* is stored; 0: is loaded */
	volatile int done;
};

static void *toucher_run(void *arg)
{
	struct toucher *t = arg;

	if (t->value)
		store64(t->addr, t->value);
	else
		t->value = load64(t->addr);
	t->done = 1;
	return NULL;
}

static bool toucher_start(struct toucher *t, char *addr, uint64_t value)
{
	t->addr = (uint64_t *)addr;
	t->value = value;
	t->done = 0;
	return !pthread_create(&t->thread, NULL, toucher_run, t);
}

static bool toucher_ends(struct toucher *t)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += LONG_MS / 1000;
	return !pthread_timedjoin_np(t->thread, NULL, &until);
}

TEST_F(pair, uffd_missing)
{
	char *page = self->map + TABLE_SIZE + 4096, content[4096];
	int uffd = uffd_open(UFFD_FEATURE_MISSING_SHMEM);
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page, .src = (uintptr_t)content, .len = 4096,
	};
	struct toucher t;

	NEED(uffd >= 0, "no userfaultfd");
	ASSERT_EQ(0, madvise(page, 4096, MADV_REMOVE));
	ASSERT_EQ(0, uffd_register(uffd, self->map, FILE_SIZE,
				   UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_ORDINARY(self->map, FILE_SIZE);
	EXPECT_LE(1, unshared_since(&self->counts));
	EXPECT_EQ(0, wrong_pages(self->map, 0, TABLE_PAGES, SEED));
	ASSERT_TRUE(toucher_start(&t, page, 0));
	ASSERT_EQ(0, uffd_fault(uffd, page));
	memset(content, 0, sizeof(content));
	store64(content, page_mark(SEED, TABLE_PAGES + 1));
	EXPECT_EQ(0, ioctl(uffd, UFFDIO_COPY, &copy));
	ASSERT_TRUE(toucher_ends(&t));
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES + 1), t.value);
	EXPECT_RIGHT_ORDINARY(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, uffd_unregister(uffd, self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_LE(1, shared_since(&self->counts));
	close(uffd);
}

/* Closing is as good as unregistering */
TEST_F(pair, uffd_closed)
{
	int uffd = uffd_open(UFFD_FEATURE_MISSING_SHMEM);

	NEED(uffd >= 0, "no userfaultfd");
	ASSERT_EQ(0, uffd_register(uffd, self->map, FILE_SIZE,
				   UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_RIGHT_ORDINARY(self);
	close(uffd);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, uffd_wp)
{
	char *page = self->map + TABLE_SIZE + 2 * 4096;
	int uffd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			     UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	struct toucher t;

	NEED(uffd >= 0, "no userfaultfd write-protection of shmem");
	ASSERT_EQ(0, uffd_register(uffd, self->map, FILE_SIZE,
				   UFFDIO_REGISTER_MODE_WP));
	EXPECT_RIGHT_ORDINARY(self);
	ASSERT_EQ(0, uffd_wp(uffd, page, true));
	ASSERT_TRUE(toucher_start(&t, page, 99));
	EXPECT_EQ(UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE,
		  uffd_fault(uffd, page));
	EXPECT_EQ(0, t.done);
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES + 2), load64(page));
	/* It is one mapping's business */
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, uffd_wp(uffd, page, false));
	ASSERT_TRUE(toucher_ends(&t));
	EXPECT_EQ(99, file64(self->fd, TABLE_SIZE + 2 * 4096));
	store64(page, page_mark(SEED, TABLE_PAGES + 2));
	EXPECT_EQ(0, uffd_unregister(uffd, self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	close(uffd);
}

/* Linux 7.3: pages that the next access, read or write, tells of */
TEST_F(pair, uffd_rwp)
{
	char *page = self->map + TABLE_SIZE + 2 * 4096;
	int uffd = uffd_open(UFFD_FEATURE_RWP);
	struct toucher t;

	NEED(uffd >= 0, "no read-write protection by userfaultfd");
	ASSERT_EQ(0, uffd_register(uffd, self->map, FILE_SIZE,
				   UFFDIO_REGISTER_MODE_RWP));
	EXPECT_RIGHT_ORDINARY(self);
	ASSERT_EQ(0, uffd_rwprotect(uffd, page, 4096,
				    UFFDIO_RWPROTECT_MODE_RWP));
	ASSERT_TRUE(toucher_start(&t, page, 0));
	EXPECT_EQ(UFFD_PAGEFAULT_FLAG_RWP,
		  uffd_fault(uffd, page) & UFFD_PAGEFAULT_FLAG_RWP);
	EXPECT_EQ(0, t.done);
	/* It is one mapping's business */
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, uffd_rwprotect(uffd, page, 4096, 0));
	ASSERT_TRUE(toucher_ends(&t));
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES + 2), t.value);
	EXPECT_EQ(0, uffd_unregister(uffd, self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	close(uffd);
}

TEST_F(pair, uffd_minor)
{
	char *page = self->map + 5 * 4096;
	int uffd = uffd_open(UFFD_FEATURE_MINOR_SHMEM);
	struct uffdio_continue cont = {
		.range = { (uintptr_t)page, 4096 },
	};
	struct toucher t;

	NEED(uffd >= 0, "no minor faults of shmem");
	ASSERT_EQ(0, uffd_register(uffd, self->map, FILE_SIZE,
				   UFFDIO_REGISTER_MODE_MINOR));
	ASSERT_EQ(0, madvise(page, 4096, MADV_DONTNEED));
	ASSERT_TRUE(toucher_start(&t, page, 0));
	EXPECT_EQ(UFFD_PAGEFAULT_FLAG_MINOR, uffd_fault(uffd, page));
	EXPECT_EQ(0, ioctl(uffd, UFFDIO_CONTINUE, &cont));
	ASSERT_TRUE(toucher_ends(&t));
	EXPECT_EQ(page_mark(SEED, 5), t.value);
	EXPECT_ORDINARY(self->map, FILE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, uffd_unregister(uffd, self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	close(uffd);
}

/* One aligned table of it: the others stay shared, and all is again later */
TEST_F(pair, uffd_aligned_part)
{
	int uffd = uffd_open(UFFD_FEATURE_MISSING_SHMEM);
	char *part = self->map + TABLE_SIZE;

	NEED(uffd >= 0, "no userfaultfd");
	ASSERT_EQ(0, uffd_register(uffd, part, TABLE_SIZE,
				   UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_ORDINARY(part, TABLE_SIZE);
	EXPECT_SHARED(self->map, TABLE_SIZE);
	EXPECT_SHARED(part + TABLE_SIZE, 2 * TABLE_SIZE);
	EXPECT_EQ(0, uffd_unregister(uffd, part, TABLE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	close(uffd);
}

/* Who mirrors the page tables of a process is told of what others change */

#define MMU_NOTIFIER	"/sys/kernel/debug/ptshare/mmu_notifier"

static long invalidations(int notifier)
{
	char text[32] = { 0 };

	if (read(notifier, text, sizeof(text) - 1) <= 0)
		return -1;
	return strtol(text, NULL, 10);
}

TEST_F(pair, mmu_notifier)
{
	int notifier = open(MMU_NOTIFIER, O_RDONLY | O_CLOEXEC);
	struct peer child;
	char *map;
	long before;

	NEED(notifier >= 0, "no CONFIG_PTSHARE_DEBUG");
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, unshared_since(&self->counts));
	map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(map, FILE_SIZE);
	before = invalidations(notifier);
	EXPECT_LE(0, before);
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 4096, 4096));
	/* Two mappings of the page */
	EXPECT_LE(before + 2, invalidations(notifier));
	munmap(map, FILE_SIZE);
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	before = invalidations(notifier);
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_DONTNEED));
	EXPECT_LT(before, invalidations(notifier));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);

	ASSERT_TRUE(peer_start(&child, self->fd));
	child.arg->map = self->map;
	child.arg->len = FILE_SIZE;
	child.arg->seed = SEED;
	EXPECT_PEER_UNAFFECTED(&child);
	EXPECT_TRUE(peer_exit(&child));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));

	/* The kernel does not forget that there was one */
	close(notifier);
	EXPECT_RIGHT_SHARED(self);
}

/* Part 6: nodes */

static bool two_nodes(void)
{
	return !access("/sys/devices/system/node/node1", F_OK);
}

static long sys_mbind(void *addr, size_t len, int mode, unsigned long nodes,
		      unsigned int flags)
{
	return neg_errno(syscall(__NR_mbind, addr, len, mode, &nodes,
				 8 * sizeof(nodes), flags));
}

/* The node that a page is on, or -errno */
static long node_of(const void *addr)
{
	int node = -1;

	if (syscall(__NR_get_mempolicy, &node, NULL, 0UL, addr,
		    MPOL_F_NODE | MPOL_F_ADDR))
		return -errno;
	return node;
}

static long policy_of(const void *addr)
{
	int mode = -1;

	if (syscall(__NR_get_mempolicy, &mode, NULL, 0UL, addr, MPOL_F_ADDR))
		return -errno;
	return mode;
}

/* The policy is the file's: pages that the peer faults in follow it */
TEST_F(pair, mbind)
{
	NEED(two_nodes(), "one node only");
	for (int node = 1; node >= 0; node--) {
		ASSERT_EQ(0, madvise(self->map, FILE_SIZE, MADV_REMOVE));
		EXPECT_EQ(0, sys_mbind(self->map, FILE_SIZE, MPOL_BIND,
				       1UL << node, 0));
		EXPECT_EQ(MPOL_BIND, policy_of(self->map));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
		for (size_t t = 0; t < NR_TABLES; t++)
			EXPECT_EQ(node, node_of(self->map + t * TABLE_SIZE));
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	}
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, mbind_part)
{
	NEED(two_nodes(), "one node only");
	EXPECT_EQ(0, sys_mbind(self->map + TABLE_SIZE, TABLE_SIZE, MPOL_BIND, 2,
			       MPOL_MF_MOVE_ALL));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, sys_mbind(self->map + TABLE_SIZE - 4096, 8192, MPOL_BIND, 1,
			       MPOL_MF_MOVE_ALL));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, sys_mbind(self->map, FILE_SIZE, MPOL_DEFAULT, 0, 0));
	EXPECT_EQ(MPOL_DEFAULT, policy_of(self->map + TABLE_SIZE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Moves @nr pages to a node; returns how many are there then */
static size_t move_to_node(pid_t pid, char *map, size_t nr, int node,
			   int flags)
{
	static void *pages[FILE_PAGES];
	static int nodes[FILE_PAGES], status[FILE_PAGES];
	size_t there = 0;

	for (size_t i = 0; i < nr; i++) {
		pages[i] = map + i * page_size();
		nodes[i] = node;
		status[i] = -1;
	}
	syscall(__NR_move_pages, pid, nr, pages, nodes, status, flags);
	memset(status, -1, sizeof(status));
	syscall(__NR_move_pages, pid, nr, pages, NULL, status, flags);
	for (size_t i = 0; i < nr; i++)
		there += status[i] == node;
	return there;
}

TEST_F(pair, move_pages)
{
	size_t moved;

	NEED(two_nodes(), "one node only");
	for (int turn = 0; turn < 4; turn++) {
		moved = move_to_node(0, self->map, FILE_PAGES, turn % 2,
				     MPOL_MF_MOVE_ALL);
		EXPECT_LE(FILE_PAGES - FILE_PAGES / 50, moved);
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_PEER_UNAFFECTED(&self->peer);
	}
	EXPECT_LE(FILE_PAGES / 2, move_to_node(self->peer.pid,
					       self->peer.arg->map, FILE_PAGES,
					       0, MPOL_MF_MOVE_ALL));
	EXPECT_RIGHT_SHARED(self);
}

/* Without MOVE_ALL pages that others map too stay: EACCES, as without sharing */
TEST_F(pair, move_pages_mapped_by_others)
{
	int node = 0, status = 0;
	void *page = self->map;

	NEED(two_nodes(), "one node only");
	node = !node_of(self->map);
	EXPECT_LE(0, neg_errno(syscall(__NR_move_pages, 0, 1UL, &page, &node,
				       &status, MPOL_MF_MOVE)));
	EXPECT_EQ(-EACCES, status);
	EXPECT_EQ(!node, node_of(self->map));
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, migrate_pages)
{
	unsigned long from, to;

	NEED(two_nodes(), "one node only");
	for (int turn = 0; turn < 2; turn++) {
		from = 1UL << (turn % 2);
		to = 3 - from;
		EXPECT_LE(0, neg_errno(syscall(__NR_migrate_pages,
					       self->peer.pid, 64UL, &from,
					       &to)));
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_PEER_UNAFFECTED(&self->peer);
	}
	EXPECT_RIGHT_SHARED(self);
}

#define NUMA_DIR	"/sys/kernel/debug/sched/numa_balancing"

static void numa_scan_fast(bool fast)
{
	write_file("/proc/sys/kernel/numa_balancing", fast ? "1" : "0");
	write_file(NUMA_DIR "/scan_delay_ms", fast ? "5" : "1000");
	write_file(NUMA_DIR "/scan_period_min_ms", fast ? "5" : "1000");
	write_file(NUMA_DIR "/scan_period_max_ms", fast ? "10" : "60000");
}

/* Reads and writes for a while; returns faults, @value: wrong pages */
static long peer_busy(void *data)
{
	struct peer_arg *arg = data;
	uint64_t end = now_ns() + 700000000ULL, wrong = 0;
	long faults = 0;

	while (now_ns() < end) {
		faults += peer_count_faults(data);
		wrong += arg->value;
		fill_pages(arg->map, 0, FILE_PAGES, arg->seed);
	}
	arg->value = wrong;
	return faults;
}

/*
 * No entry of a shared table is made inaccessible for one process's hinting
 * faults: then a reader gets none. Files are only looked at if their policy says
 * so.
 */
TEST_F(pair, numa_balancing)
{
	struct peer busy;
	long faults;

	NEED(two_nodes() && !access(NUMA_DIR, F_OK), "no NUMA balancing");
	ASSERT_EQ(0, sys_mbind(self->map, FILE_SIZE,
			       MPOL_BIND | MPOL_F_NUMA_BALANCING, 3, 0));
	EXPECT_EQ(FILE_PAGES, move_to_node(0, self->map, FILE_PAGES, 1,
					   MPOL_MF_MOVE_ALL));
	/* A process takes the delays that there are when it is born */
	numa_scan_fast(true);
	ASSERT_TRUE(peer_start_mapped(&busy, self->fd, 0, FILE_SIZE, PROT_RW));
	busy.arg->seed = SEED;
	pin_to_cpu(busy.pid, 0);
	ASSERT_TRUE(peer_tell(&busy, peer_busy));
	for (int i = 0; i < 5; i++) {
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		usleep(50000);
	}
	faults = peer_answer(&busy);
	numa_scan_fast(false);
	EXPECT_EQ(0, busy.arg->value);
	/* Its stack and its code may have some */
	EXPECT_GE(FILE_PAGES / 10, faults);
	EXPECT_TRUE(peer_exit(&busy));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Part 7: reclaim, swap, memory cgroups, compaction */

#define CGROUP		"/sys/fs/cgroup"
#define GROUP_A		CGROUP "/ptshare_test_a"
#define GROUP_B		CGROUP "/ptshare_test_b"

static bool have_swap(void)
{
	return field_of("/proc/meminfo", "SwapFree") > 100000;
}

FIXTURE(group) {
	int fd;
	struct peer peers[2];	/* in group A, in group B */
	long long tables;
};

static bool group_write(const char *group, const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", group, name);
	return write_file(path, text);
}

static long long group_read(const char *group, const char *name,
			    const char *key)
{
	char path[128], text[64];

	snprintf(path, sizeof(path), "%s/%s", group, name);
	if (key)
		return field_of(path, key);
	return read_file(path, text, sizeof(text)) ? strtoll(text, NULL, 10) :
	       -1;
}

/* What it has of shared memory, when the kernel has added it up */
static bool group_has(const char *group, long long bytes)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (group_read(group, "memory.stat", "shmem") != bytes) {
		if (now_ns() > end)
			return false;
		usleep(100000);
	}
	return true;
}

static bool group_make(const char *group, pid_t pid)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", pid);
	return (!mkdir(group, 0755) || errno == EEXIST) &&
	       group_write(group, "cgroup.procs", text);
}

/* When its processes have gone, and the kernel has noticed */
static void group_remove(const char *group)
{
	for (int i = 0; i < 200; i++) {
		if (!rmdir(group) || errno != EBUSY)
			return;
		usleep(5000);
	}
}

FIXTURE_SETUP(group)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	write_file(CGROUP "/cgroup.subtree_control", "+memory");
	self->tables = ptshare_tables();
	self->fd = share_file(NR_TABLES, 0);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(start_mapped_peers(self->peers, 2, self->fd));
	if (!group_make(GROUP_A, self->peers[0].pid) ||
	    !group_make(GROUP_B, self->peers[1].pid) ||
	    group_read(GROUP_A, "memory.current", NULL) < 0)
		SKIP(return, "no memory cgroups");
}

FIXTURE_TEARDOWN(group)
{
	peer_kill(&self->peers[0]);
	peer_kill(&self->peers[1]);
	close(self->fd);
	group_remove(GROUP_A);
	group_remove(GROUP_B);
	EXPECT_TRUE(tables_become(self->tables));
}

/* Who faults a page in is charged for it, not who made the tables */
TEST_F(group, charged_to_who_faults)
{
	EXPECT_EQ(0, peer_call(&self->peers[0], peer_fill));
	EXPECT_EQ(0, peer_call(&self->peers[1], peer_check));
	EXPECT_TRUE(group_has(GROUP_A, FILE_SIZE));
	EXPECT_TRUE(group_has(GROUP_B, 0));
	EXPECT_LE(FILE_SIZE, group_read(GROUP_A, "memory.current", NULL));
	EXPECT_GE(TABLE_SIZE, group_read(GROUP_B, "memory.current", NULL));

	/* Now the other way round, with the tables as they are */
	ASSERT_EQ(0, ftruncate(self->fd, 0));
	ASSERT_EQ(0, ftruncate(self->fd, FILE_SIZE));
	EXPECT_EQ(0, peer_call(&self->peers[1], peer_fill));
	EXPECT_EQ(0, peer_call(&self->peers[0], peer_check));
	EXPECT_TRUE(group_has(GROUP_A, 0));
	EXPECT_TRUE(group_has(GROUP_B, FILE_SIZE));
}

/* The kernel faults pages in on behalf of the task, too */
static long peer_read_urandom(void *data)
{
	struct peer_arg *arg = data;
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	long ret = neg_errno(read(fd, arg->map, arg->len));

	close(fd);
	return ret;
}

TEST_F(group, charged_in_system_call)
{
	EXPECT_EQ(FILE_SIZE, peer_call(&self->peers[1], peer_read_urandom));
	EXPECT_EQ(FILE_SIZE, group_read(GROUP_B, "memory.stat", "shmem"));
	EXPECT_EQ(0, group_read(GROUP_A, "memory.stat", "shmem"));
}

/*
 * More than the limit: the rest goes to swap, and comes back right. Beyond memory.high
 * a process waits for a slow disk. Beyond memory.max it may be killed when all of its
 * pages are on their way there, whoever has them mapped.
 */
TEST_F(group, limit)
{
	struct ptshare_counts before = ptshare_counts();

	NEED(have_swap(), "no swap");
	ASSERT_TRUE(group_write(GROUP_A, "memory.high", "6291456"));
	for (int turn = 0; turn < 2; turn++) {
		EXPECT_EQ(0, peer_call(&self->peers[0], peer_fill));
		EXPECT_EQ(0, peer_call(&self->peers[0], peer_check));
	}
	/* What is on its way to swap still: to set the limit is to wait for it */
	for (int i = 0; i < 200 &&
	     group_read(GROUP_A, "memory.current", NULL) > 6291456; i++) {
		usleep(5000);
		group_write(GROUP_A, "memory.high", "6291456");
	}
	EXPECT_GE(6291456, group_read(GROUP_A, "memory.current", NULL));
	EXPECT_LT(0, group_read(GROUP_A, "memory.swap.current", NULL));
	EXPECT_EQ(0, group_read(GROUP_A, "memory.events", "oom_kill"));
	EXPECT_EQ(0, peer_call(&self->peers[1], peer_check));
	EXPECT_EQ(0, wrong_file_pages(self->fd, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, unshared_since(&before));
}

/* What has been used since the last look stays; at last it goes */
TEST_F(group, reclaim)
{
	long long before, swapped = 0;

	NEED(have_swap(), "no swap");
	EXPECT_EQ(0, peer_call(&self->peers[0], peer_fill));
	EXPECT_EQ(0, peer_call(&self->peers[1], peer_check));
	before = shared_kb_of(self->peers[1].pid, self->peers[1].arg->map,
			      FILE_SIZE);
	EXPECT_EQ(FILE_SIZE >> 10, before);
	for (int i = 0; i < 20 && swapped < FILE_SIZE / 4; i++) {
		group_write(GROUP_A, "memory.reclaim", "4194304");
		swapped = group_read(GROUP_A, "memory.swap.current", NULL);
	}
	EXPECT_LE(FILE_SIZE / 4, swapped);
	EXPECT_GE(before - (FILE_SIZE >> 13),
		  shared_kb_of(self->peers[1].pid, self->peers[1].arg->map,
			       FILE_SIZE));
	EXPECT_EQ(0, peer_call(&self->peers[1], peer_check));
	EXPECT_EQ(0, peer_call(&self->peers[0], peer_check));
	EXPECT_EQ(FILE_SIZE >> 10, peer_call(&self->peers[0], peer_shared_kb));
	EXPECT_EQ(FILE_SIZE >> 10, peer_call(&self->peers[1], peer_shared_kb));
}

/* Uses the first half of the file, by entries that are not in the TLB */
static long peer_use_half(void *data)
{
	struct peer_arg *arg = data;

	if (madvise(arg->map, arg->len, MADV_DONTNEED))
		return -errno;
	return wrong_pages(arg->map, 0, FILE_PAGES / 2, arg->seed);
}

static size_t resident_pages_of(int fd, size_t first, size_t nr)
{
	char *map = map_file(fd, first * 4096, nr * 4096, PROT_READ);
	size_t resident = resident_pages(map, nr);

	munmap(map, nr * 4096);
	return resident;
}

/*
 * What a process of another group uses is not reclaimed before what nobody
 * uses, though it is older.
 */
TEST_F(group, young_pages_stay)
{
	size_t used, unused;

	NEED(have_swap(), "no swap");
	EXPECT_EQ(0, peer_call(&self->peers[0], peer_fill));
	for (int i = 0; i < 6; i++) {
		EXPECT_EQ(0, peer_call(&self->peers[1], peer_use_half));
		group_write(GROUP_A, "memory.reclaim", "524288");
	}
	used = resident_pages_of(self->fd, 0, FILE_PAGES / 2);
	unused = resident_pages_of(self->fd, FILE_PAGES / 2, FILE_PAGES / 2);
	EXPECT_LT(unused, FILE_PAGES / 2);
	EXPECT_LT(unused, used);
	EXPECT_EQ(0, peer_call(&self->peers[1], peer_check));
}

/* The only process that maps the file pages it out */
TEST_F(pair, pageout_by_sole_mapper)
{
	long long before;

	NEED(have_swap(), "no swap");
	EXPECT_TRUE(peer_exit(&self->peer));
	for (int turn = 0; turn < 3; turn++) {
		before = vmstat("pswpout");
		EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_PAGEOUT));
		EXPECT_LE(FILE_PAGES / 2, vmstat("pswpout") - before);
		EXPECT_GE(FILE_SIZE >> 11, shared_kb(self->map, FILE_SIZE));
		EXPECT_RIGHT_SHARED(self);
		/* Dirty, or it would not be written again */
		fill_pages(self->map, 0, FILE_PAGES, SEED);
	}
}

TEST_F(pair, compaction)
{
	ASSERT_TRUE(peer_tell(&self->peer, peer_busy));
	for (int i = 0; i < 3; i++) {
		EXPECT_TRUE(write_file("/proc/sys/vm/compact_memory", "1"));
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	}
	EXPECT_LE(0, peer_answer(&self->peer));
	EXPECT_EQ(0, self->peer.arg->value);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Part 8: large folios, and who makes them */

#define THP_DIR		"/sys/kernel/mm/transparent_hugepage"
#define THP_SHMEM	THP_DIR "/shmem_enabled"
#define THP_64K		THP_DIR "/hugepages-64kB/shmem_enabled"
#define THP_2M		THP_DIR "/hugepages-2048kB/shmem_enabled"

/* The word in brackets is what is set */
static bool thp_set(const char *path, const char *text, char *old, size_t size)
{
	char *word;

	if (!read_file(path, old, size))
		return false;
	word = strchr(old, '[');
	if (!word)
		return false;
	word[strcspn(word, "]")] = 0;
	memmove(old, word + 1, strlen(word));
	khugepaged_stop();
	return write_file(path, text);
}

/* Collapses through @addr, as khugepaged would some day */
static void collapse_through(struct __test_metadata *_metadata,
			     FIXTURE_DATA(pair) *self, char *addr)
{
	long ret;

	for (int turn = 0; turn < 3; turn++) {
		ret = neg_errno(madvise(addr, FILE_SIZE, MADV_COLLAPSE));
		if (ret)
			TH_LOG("MADV_COLLAPSE: %ld", ret);
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_PEER_UNAFFECTED(&self->peer);
		EXPECT_EQ(0, wrong_pages(addr, 0, FILE_PAGES, SEED));
		/* Splits a huge page again */
		EXPECT_EQ(0, madvise(self->map + 4096, 4096, MADV_REMOVE));
		EXPECT_EQ(0, load64(addr + 4096));
		store64(self->map + 4096, page_mark(SEED, 1));
	}
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, collapse_through_private)
{
	char *map = reserve(FILE_SIZE);

	map = mmap(map, FILE_SIZE, PROT_READ, MAP_PRIVATE | MAP_FIXED, self->fd,
		   0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	collapse_through(_metadata, self, map);
	munmap(map, FILE_SIZE);
}

static long peer_map_private(void *data)
{
	struct peer_arg *arg = data;

	arg->map = mmap(NULL, arg->len, PROT_READ, MAP_PRIVATE, arg->fd, 0);
	return arg->map == MAP_FAILED ? -errno : 0;
}

static long collapse_own_map(void *data)
{
	struct peer_arg *arg = data;

	for (int turn = 0; turn < 3; turn++) {
		madvise(arg->map, arg->len, MADV_COLLAPSE);
		if (peer_check(data))
			return 1;
	}
	return 0;
}

/* The same by a process that maps nothing shared */
TEST_F(pair, collapse_by_others)
{
	struct peer other;

	ASSERT_TRUE(peer_start(&other, self->fd));
	other.arg->len = FILE_SIZE;
	other.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&other, peer_map_private));
	EXPECT_EQ(0, peer_call(&other, collapse_own_map));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(0, peer_call(&other, peer_check));
	EXPECT_TRUE(peer_exit(&other));
}

/* There is nothing that could be collapsed, but it is looked at */
TEST_F(pair, collapse_through_misaligned)
{
	char *map = map_at(self->area + 2 * TABLE_SIZE + FILE_SIZE - 4096,
			   self->fd, 0, FILE_SIZE, PROT_RW);

	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	collapse_through(_metadata, self, map);
	EXPECT_ORDINARY(map, FILE_SIZE);
}

/* khugepaged itself, which looks at mappings with MADV_HUGEPAGE */
TEST_F(pair, khugepaged)
{
	char old[128], *map = reserve(FILE_SIZE);

	NEED(thp_set(THP_SHMEM, "advise", old, sizeof(old)), "no huge shmem");
	write_file(THP_DIR "/khugepaged/scan_sleep_millisecs", "10");
	write_file(THP_DIR "/khugepaged/alloc_sleep_millisecs", "10");
	map = mmap(map, FILE_SIZE, PROT_READ, MAP_PRIVATE | MAP_FIXED, self->fd,
		   0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, madvise(map, FILE_SIZE, MADV_HUGEPAGE));
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	for (int i = 0; i < 30; i++) {
		usleep(20000);
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	}
	khugepaged_stop();
	write_file(THP_DIR "/khugepaged/alloc_sleep_millisecs", "60000");
	write_file(THP_SHMEM, old);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	munmap(map, FILE_SIZE);
}

/* Files whose pages come in large folios */
FIXTURE(folio) {
	int fd;
	char *map;
	struct peer peer;
	char old[128];
	bool set;
};

FIXTURE_VARIANT(folio) {
	const char *path;
	const char *mode;
};

FIXTURE_VARIANT_ADD(folio, 64k) { .path = THP_64K, .mode = "always" };
FIXTURE_VARIANT_ADD(folio, 2m) { .path = THP_2M, .mode = "always" };
FIXTURE_VARIANT_ADD(folio, huge_always) { .path = THP_SHMEM, .mode = "always" };

FIXTURE_SETUP(folio)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->set = thp_set(variant->path, variant->mode, self->old,
			    sizeof(self->old));
	if (!self->set)
		SKIP(return, "no large folios of shmem");
	self->fd = share_file(NR_TABLES, 0);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, FILE_SIZE,
				      PROT_RW));
	self->map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
}

FIXTURE_TEARDOWN(folio)
{
	if (self->set)
		write_file(variant->path, self->old);
	peer_kill(&self->peer);
	munmap(self->map, FILE_SIZE);
	close(self->fd);
	EXPECT_TRUE(tables_become(0));
}

/* Room for large folios is made by reclaim, which may meet these: they come back */
static bool folios_are_shared(const FIXTURE_DATA(folio) *self,
			      struct peer *peer)
{
	for (unsigned int i = 0; i < 20; i++) {
		if (wrong_pages(self->map, 0, FILE_PAGES, SEED) ||
		    peer_call(peer, peer_check))
			return false;
		if (shared_kb(self->map, FILE_SIZE) == FILE_SIZE >> 10 &&
		    peer_call(peer, peer_shared_kb) == FILE_SIZE >> 10)
			return true;
		usleep(100000);
	}
	return false;
}

TEST_F(folio, shared)
{
	EXPECT_TRUE(folios_are_shared(self, &self->peer));
	EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(self->map, 1));
	EXPECT_TRUE(folios_are_shared(self, &self->peer));
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(0, wrong_file_pages(self->fd, 0, FILE_PAGES, SEED));
}

/* Neither a whole folio is lost, nor one page kept */
TEST_F(folio, punched_and_truncated)
{
	size_t hole = TABLE_PAGES + 5;

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, hole * 4096, 4096));
	EXPECT_EQ(0, load64(self->map + hole * 4096));
	EXPECT_EQ(0, wrong_around(self->map, hole, 1));
	store64(self->map + hole * 4096, page_mark(SEED, hole));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	ASSERT_EQ(0, ftruncate(self->fd, FILE_SIZE - 9 * 4096));
	EXPECT_EQ(SIGBUS, try_load(self->map + FILE_SIZE - 9 * 4096));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES - 9, SEED));
	ASSERT_EQ(0, ftruncate(self->fd, FILE_SIZE));
	EXPECT_EQ(0, expected_zero(self->map + FILE_SIZE - 9 * 4096, 9));
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(folio, swapped)
{
	NEED(have_swap(), "no swap");
	EXPECT_TRUE(peer_exit(&self->peer));
	for (int turn = 0; turn < 2; turn++) {
		EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_PAGEOUT));
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		fill_pages(self->map, 0, FILE_PAGES, SEED);
	}
	EXPECT_RIGHT_SHARED(self);
}

/* Part 9: truncation, holes, poison */

/* Beyond the end of the file there is nothing for anybody */
static long peer_load_offset(void *data)
{
	struct peer_arg *arg = data;

	return try_load(arg->map + arg->value);
}

static long peer_store_offset(void *data)
{
	struct peer_arg *arg = data;

	return try_store(arg->map + arg->value, 1);
}

static void expect_sigbus_at(struct __test_metadata *_metadata,
			     FIXTURE_DATA(pair) *self, size_t offset)
{
	self->peer.arg->value = offset;
	EXPECT_EQ(SIGBUS, try_load(self->map + offset));
	EXPECT_EQ(SIGBUS, try_store(self->map + offset, 1));
	EXPECT_EQ(SIGBUS, peer_call(&self->peer, peer_load_offset));
	EXPECT_EQ(SIGBUS, peer_call(&self->peer, peer_store_offset));
}

TEST_F(pair, truncate_shrinks)
{
	size_t half = FILE_SIZE / 2, odd = TABLE_SIZE + 7 * 4096 + 100;

	ASSERT_EQ(0, ftruncate(self->fd, half));
	expect_sigbus_at(_metadata, self, half);
	expect_sigbus_at(_metadata, self, FILE_SIZE - 1);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES / 2, SEED));
	EXPECT_EQ(half >> 10, shared_kb(self->map, FILE_SIZE));

	ASSERT_EQ(0, ftruncate(self->fd, odd));
	expect_sigbus_at(_metadata, self, TABLE_SIZE + 8 * 4096);
	EXPECT_EQ(0, wrong_pages(self->map, 0, TABLE_PAGES + 8, SEED));
	EXPECT_TRUE(filled_with(self->map + odd, 4096 - 100, 0));
	EXPECT_EQ(0, unshared_since(&self->counts));
}

TEST_F(pair, truncate_to_nothing_and_back)
{
	ASSERT_EQ(0, ftruncate(self->fd, 0));
	expect_sigbus_at(_metadata, self, 0);
	expect_sigbus_at(_metadata, self, TABLE_SIZE);
	EXPECT_EQ(0, shared_kb(self->map, FILE_SIZE));
	ASSERT_EQ(0, ftruncate(self->fd, FILE_SIZE));
	EXPECT_EQ(0, expected_zero(self->map, FILE_PAGES));
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, unshared_since(&self->counts));
}

/* Growing shows the new part to mappings that were there before */
TEST_F(pair, truncate_grows)
{
	size_t grown = FILE_SIZE + TABLE_SIZE;
	char *map;

	map = map_file(self->fd, 0, grown, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(SIGBUS, try_load(map + FILE_SIZE));
	ASSERT_EQ(0, ftruncate(self->fd, grown));
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, expected_zero(map + FILE_SIZE, TABLE_PAGES));
	EXPECT_EQ(0, try_store(map + grown - 1, 1));
	EXPECT_SHARED(map, grown);
	munmap(map, grown);
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, punch_hole)
{
	static const struct {
		size_t first, nr;
	} holes[] = {
		{ 5, 1 }, { 0, 1 }, { 512, 512 }, { 500, 600 }, { 2047, 1 },
		{ 0, 2048 },
	};
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	size_t first, nr;

	for (size_t i = 0; i < ARRAY_SIZE(holes); i++) {
		first = holes[i].first;
		nr = holes[i].nr;
		ASSERT_EQ(0, fallocate(self->fd, mode, first * 4096,
				       nr * 4096));
		EXPECT_EQ((FILE_PAGES - nr) * 4,
			  shared_kb(self->map, FILE_SIZE));
		EXPECT_EQ(0, expected_zero(self->map + first * 4096, nr));
		EXPECT_EQ(0, wrong_around(self->map, first, nr));
		EXPECT_EQ(nr, peer_call(&self->peer, peer_check));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
		EXPECT_RIGHT_SHARED(self);
	}
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* write(2), fallocate(2) and mappings are one */
TEST_F(pair, write_shows)
{
	uint64_t value = 4711;

	for (size_t i = 0; i < FILE_PAGES; i += 37) {
		ASSERT_EQ(8, pwrite(self->fd, &value, 8, i * 4096));
		EXPECT_EQ(value, load64(self->map + i * 4096));
		value = page_mark(SEED, i);
		ASSERT_EQ(8, pwrite(self->fd, &value, 8, i * 4096));
		value = i;
	}
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

static long peer_poison(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(madvise(arg->map + arg->value, 4096, MADV_HWPOISON));
}

static long peer_drop_links(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(madvise(arg->map, arg->len, MADV_DONTNEED));
}

/*
 * Who has poisoned a page gets the signal at once, and who touches it later then;
 * nobody who does not. It is the same without sharing.
 */
TEST_F(pair, hwpoison)
{
	const size_t poisoned = TABLE_PAGES + 1;
	char *page = self->map + poisoned * 4096;
	struct peer ordinary;
	int fd = sys_memfd_create(MFD_CLOEXEC);
	long theirs, ours;

	ASSERT_EQ(0, ftruncate(fd, FILE_SIZE));
	ASSERT_TRUE(peer_start_mapped(&ordinary, fd, 0, FILE_SIZE, PROT_RW));
	EXPECT_EQ(0, peer_call(&ordinary, peer_fill));
	ordinary.arg->value = poisoned * 4096;
	theirs = peer_call(&ordinary, peer_poison);
	EXPECT_TRUE(peer_exit(&ordinary));
	close(fd);
	NEED(theirs != -EINVAL && theirs != -EPERM, "no memory failures");

	self->peer.arg->value = poisoned * 4096;
	ours = peer_call(&self->peer, peer_poison);
	EXPECT_EQ(theirs, ours);
	EXPECT_EQ(PEER_SIGNAL(SIGBUS), ours);
	EXPECT_EQ(SIGBUS, try_load(page));
	EXPECT_EQ(SIGBUS, try_store(page, 1));
	EXPECT_EQ(SIGBUS, peer_call(&self->peer, peer_load_offset));
	EXPECT_EQ(0, wrong_around(self->map, poisoned, 1));

	/* A hole takes the poison away, for mappings that know nothing of it */
	EXPECT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, poisoned * 4096, 4096));
	EXPECT_EQ(0, madvise(page, 4096, MADV_DONTNEED));
	EXPECT_EQ(0, peer_call(&self->peer, peer_drop_links));
	EXPECT_EQ(0, try_load(page));
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Part 10: /proc and core dumps */

#define CORE_PATTERN	"/proc/sys/kernel/core_pattern"

static long peer_abort(void *data)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_CORE, &unlimited);
	prctl(PR_SET_DUMPABLE, 1);
	write_file("/proc/self/coredump_filter", "0x7f");
	signal(SIGABRT, SIG_DFL);
	abort();
}

/* How many of the first pages' marks a file has, at page boundaries or not */
static size_t marks_in_file(const char *path, size_t nr)
{
	uint64_t *words;
	size_t found = 0;
	struct stat st;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return 0;
	words = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (words == MAP_FAILED)
		return 0;
	for (size_t i = 0; i < st.st_size / sizeof(*words) && found < nr; i++)
		found += words[i] == page_mark(SEED, found);
	munmap(words, st.st_size);
	return found;
}

TEST_F(pair, coredump)
{
	char old[256], path[64];

	NEED(read_file(CORE_PATTERN, old, sizeof(old)) &&
	     write_file(CORE_PATTERN, "/tmp/ptshare-core.%p"),
	     "core_pattern cannot be set");
	snprintf(path, sizeof(path), "/tmp/ptshare-core.%d", self->peer.pid);
	ASSERT_TRUE(peer_tell(&self->peer, peer_abort));
	EXPECT_TRUE(peer_reap(&self->peer));
	write_file(CORE_PATTERN, old);
	EXPECT_TRUE(WIFSIGNALED(self->peer.status));
	EXPECT_TRUE(WCOREDUMP(self->peer.status));
	EXPECT_EQ(FILE_PAGES, marks_in_file(path, FILE_PAGES));
	unlink(path);
	EXPECT_RIGHT_SHARED(self);
}

TEST_F(pair, proc_maps)
{
	char path[128], text[256];
	unsigned int mappings;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx",
		 (unsigned long)self->map,
		 (unsigned long)self->map + FILE_SIZE);
	memset(text, 0, sizeof(text));
	ASSERT_LT(0, readlink(path, text, sizeof(text) - 1));
	EXPECT_NE(NULL, strstr(text, "memfd:ptshare-test"));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	EXPECT_EQ(page_mark(SEED, 3), file64(fd, 3 * 4096));
	close(fd);
	EXPECT_EQ(FILE_SIZE >> 10, smaps_sum(getpid(), self->map, FILE_SIZE,
					     "Size", &mappings));
	EXPECT_EQ(1, mappings);
}

/* The line of numa_maps that begins with this address */
static bool numa_maps_line(const char *map, char *line, size_t size)
{
	FILE *file = fopen("/proc/self/numa_maps", "re");
	bool found = false;

	while (file && !found && fgets(line, size, file))
		found = strtoul(line, NULL, 16) == (unsigned long)map;
	if (file)
		fclose(file);
	return found;
}

TEST_F(pair, proc_numa_maps)
{
	size_t nr[2] = { 0 };
	char line[512], *at;

	NEED(!access("/proc/self/numa_maps", F_OK), "no numa_maps");
	ASSERT_TRUE(numa_maps_line(self->map, line, sizeof(line)));
	EXPECT_NE(NULL, strstr(line, "memfd:ptshare-test"));
	for (int node = 0; node < 2; node++) {
		at = strstr(line, node ? " N1=" : " N0=");
		nr[node] = at ? strtoul(at + 4, NULL, 10) : 0;
	}
	EXPECT_EQ(FILE_PAGES, nr[0] + nr[1]) TH_LOG("%s", line);
}

/* Each page once in the sum of PSS, and fully in each RSS */
TEST_F(pair, proc_smaps)
{
	const long long size_kb = FILE_SIZE >> 10;
	pid_t peer = self->peer.pid;
	long long pss, rollup;

	EXPECT_EQ(size_kb, smaps_sum(getpid(), self->map, FILE_SIZE, "Rss",
				     NULL));
	EXPECT_EQ(size_kb, smaps_sum(peer, self->peer.arg->map, FILE_SIZE,
				     "Rss", NULL));
	pss = smaps_sum(getpid(), self->map, FILE_SIZE, "Pss", NULL);
	EXPECT_LE(size_kb / 2 - 1, pss);
	EXPECT_GE(size_kb / 2 + 1, pss);
	pss += smaps_sum(peer, self->peer.arg->map, FILE_SIZE, "Pss", NULL);
	EXPECT_LE(size_kb - 2, pss);
	EXPECT_GE(size_kb + 2, pss);
	EXPECT_EQ(0, smaps_sum(getpid(), self->map, FILE_SIZE, "Private_Dirty",
			       NULL));
	EXPECT_EQ(0, smaps_sum(getpid(), self->map, FILE_SIZE, "Private_Clean",
			       NULL));
	EXPECT_EQ(size_kb, pid_field(getpid(), "smaps_rollup", "Ptshare"));
	rollup = pid_field(getpid(), "smaps_rollup", "Pss");
	EXPECT_LE(size_kb / 2 - 1, rollup);
	EXPECT_GE(size_kb / 2 + 4096, rollup);

	/* Alone it has all */
	EXPECT_TRUE(peer_exit(&self->peer));
	pss = smaps_sum(getpid(), self->map, FILE_SIZE, "Pss", NULL);
	EXPECT_EQ(size_kb, pss);
}

/* Swapped out pages of the file count as such */
TEST_F(pair, proc_smaps_swap)
{
	const long long size_kb = FILE_SIZE >> 10;
	long long swap, rss;

	NEED(have_swap(), "no swap");
	EXPECT_TRUE(peer_exit(&self->peer));
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_PAGEOUT));
	swap = smaps_sum(getpid(), self->map, FILE_SIZE, "Swap", NULL);
	rss = smaps_sum(getpid(), self->map, FILE_SIZE, "Rss", NULL);
	EXPECT_LT(0, swap);
	EXPECT_EQ(size_kb, swap + rss);
	EXPECT_EQ(rss, shared_kb(self->map, FILE_SIZE));
	EXPECT_RIGHT_SHARED(self);
}

/*
 * What belongs to the file is not counted as a process's: neither the tables
 * nor the pages.
 */
static long peer_growth_of_pte(void *data)
{
	struct peer_arg *arg = data;
	long long before = pid_field(getpid(), "status", "VmPTE");

	if (peer_check(data))
		return -EIO;
	arg->value = pid_field(getpid(), "status", "RssShmem");
	return pid_field(getpid(), "status", "VmPTE") - before;
}

TEST(proc_status)
{
	const size_t size = 32 * TABLE_SIZE;
	struct peer filler, reader;
	int fd;

	NEED_PTSHARE();
	fd = share_file(32, 0);
	ASSERT_TRUE(peer_start_mapped(&filler, fd, 0, size, PROT_RW));
	EXPECT_EQ(0, peer_call(&filler, peer_fill));
	ASSERT_TRUE(peer_start_mapped(&reader, fd, 0, size, PROT_RW));
	EXPECT_LE(0, peer_call(&reader, peer_shared_kb));
	EXPECT_GE(24, peer_call(&reader, peer_growth_of_pte));
	EXPECT_EQ(size >> 10, peer_call(&reader, peer_shared_kb));
	EXPECT_GE(1024, reader.arg->value);
	EXPECT_TRUE(peer_exit(&filler));
	EXPECT_EQ(0, peer_call(&reader, peer_check));
	EXPECT_TRUE(peer_exit(&reader));
	close(fd);
	EXPECT_TRUE(tables_become(0));
}

static size_t pages_with(const uint64_t *entries, size_t nr, uint64_t bits)
{
	size_t found = 0;

	for (size_t i = 0; i < nr; i++)
		found += (entries[i] & bits) == bits;
	return found;
}

TEST_F(pair, proc_pagemap)
{
	static uint64_t entries[FILE_PAGES], other[FILE_PAGES];
	char *skewed;

	ASSERT_TRUE(read_pagemap(self->map, FILE_PAGES, entries));
	EXPECT_EQ(FILE_PAGES, pages_with(entries, FILE_PAGES,
					 PM_PRESENT | PM_FILE));
	EXPECT_EQ(0, pages_with(entries, FILE_PAGES, PM_EXCLUSIVE));

	/* The same page frames as through an ordinary mapping */
	skewed = map_at(self->area + FILE_SIZE + 2 * TABLE_SIZE + 4096,
			self->fd, 0, FILE_SIZE, PROT_READ);
	EXPECT_EQ(0, wrong_pages(skewed, 0, FILE_PAGES, SEED));
	ASSERT_TRUE(read_pagemap(skewed, FILE_PAGES, other));
	ASSERT_TRUE(read_pagemap(self->map, FILE_PAGES, entries));
	for (size_t i = 0; i < FILE_PAGES; i++) {
		ASSERT_EQ(other[i] & ((1ULL << 55) - 1),
			  entries[i] & ((1ULL << 55) - 1));
	}

	ASSERT_EQ(0, madvise(self->map + 4096, 4096, MADV_REMOVE));
	ASSERT_TRUE(read_pagemap(self->map, FILE_PAGES, entries));
	EXPECT_EQ(0, entries[1] & (PM_PRESENT | PM_SWAP));
	EXPECT_EQ(FILE_PAGES - 1, pages_with(entries, FILE_PAGES, PM_PRESENT));
}

#ifdef PAGEMAP_SCAN
TEST_F(pair, proc_pagemap_scan)
{
	struct page_region region = { 0 };
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .start = (uintptr_t)self->map,
		.end = (uintptr_t)self->map + FILE_SIZE,
		.vec = (uintptr_t)&region, .vec_len = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_FILE,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	EXPECT_EQ(1, ioctl(fd, PAGEMAP_SCAN, &arg));
	EXPECT_EQ((uintptr_t)self->map, region.start);
	EXPECT_EQ((uintptr_t)self->map + FILE_SIZE, region.end);
	EXPECT_EQ(PAGE_IS_PRESENT | PAGE_IS_FILE, region.categories);
	close(fd);
	EXPECT_RIGHT_SHARED(self);
}
#endif

/* After clear_refs only what this process changes is soft-dirty */
TEST_F(pair, clear_refs_soft_dirty)
{
	static uint64_t entries[FILE_PAGES];

	ASSERT_TRUE(write_file("/proc/self/clear_refs", "4"));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	ASSERT_TRUE(read_pagemap(self->map, FILE_PAGES, entries));
	EXPECT_EQ(0, pages_with(entries, FILE_PAGES, PM_SOFT_DIRTY));
	EXPECT_ORDINARY(self->map, FILE_SIZE);
	store64(self->map + 7 * 4096, 1);
	store64(self->map + 700 * 4096, 1);
	ASSERT_TRUE(read_pagemap(self->map, FILE_PAGES, entries));
	EXPECT_TRUE(entries[7] & PM_SOFT_DIRTY);
	EXPECT_TRUE(entries[700] & PM_SOFT_DIRTY);
	EXPECT_EQ(2, pages_with(entries, FILE_PAGES, PM_SOFT_DIRTY));
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	ASSERT_TRUE(read_pagemap(self->map, FILE_PAGES, entries));
	EXPECT_EQ(2, pages_with(entries, FILE_PAGES, PM_SOFT_DIRTY));
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
}

/* The other numbers only say what is used */
TEST_F(pair, clear_refs_referenced)
{
	for (int kind = 1; kind <= 3; kind++) {
		char text[2] = { '0' + kind };

		ASSERT_TRUE(write_file("/proc/self/clear_refs", text));
		EXPECT_RIGHT_SHARED(self);
		EXPECT_PEER_UNAFFECTED(&self->peer);
	}
}

/* Part 11: the kernel accesses the mapping */

/* From and to a pipe; entries are there, or not, or no link is */
TEST_F(pair, read_and_write)
{
	char *page = self->map + TABLE_SIZE + 4096;
	uint64_t value = 1, got = 0;
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	for (int turn = 0; turn < 3; turn++, value++) {
		ASSERT_EQ(8, write(fds[1], &value, 8));
		if (turn == 1)
			madvise(page, 4096, MADV_REMOVE);
		if (turn == 2)
			madvise(self->map, FILE_SIZE, MADV_DONTNEED);
		EXPECT_EQ(8, read(fds[0], page, 8));
		EXPECT_EQ(value, file64(self->fd, TABLE_SIZE + 4096));
		if (turn == 2)
			madvise(self->map, FILE_SIZE, MADV_DONTNEED);
		EXPECT_EQ(8, write(fds[1], page, 8));
		EXPECT_EQ(8, read(fds[0], &got, 8));
		EXPECT_EQ(value, got);
	}
	close(fds[0]);
	close(fds[1]);
	store64(page, page_mark(SEED, TABLE_PAGES + 1));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* The mapping as source and target of the same file */
TEST_F(pair, write_from_itself)
{
	EXPECT_EQ(4096, pwrite(self->fd, self->map + 4096, 4096, 0));
	EXPECT_EQ(page_mark(SEED, 1), load64(self->map));
	EXPECT_EQ(4096, pread(self->fd, self->map, 4096, 2 * 4096));
	EXPECT_EQ(page_mark(SEED, 2), load64(self->map));
	EXPECT_EQ(4096, pread(self->fd, self->map, 4096, 0));
	store64(self->map, page_mark(SEED, 0));
	EXPECT_RIGHT_SHARED(self);
}

static long remote_rw(struct peer *p, size_t offset, uint64_t *value, bool out)
{
	struct iovec local = { value, 8 };
	struct iovec remote = { p->arg->map + offset, 8 };

	return neg_errno(out ?
			 process_vm_writev(p->pid, &local, 1, &remote, 1, 0) :
			 process_vm_readv(p->pid, &local, 1, &remote, 1, 0));
}

TEST_F(pair, process_vm)
{
	struct peer fresh;
	uint64_t value = 0;

	EXPECT_EQ(8, remote_rw(&self->peer, 4096, &value, false));
	EXPECT_EQ(page_mark(SEED, 1), value);
	value = 42;
	EXPECT_EQ(8, remote_rw(&self->peer, 4096, &value, true));
	EXPECT_EQ(42, load64(self->map + 4096));

	/* One that has touched nothing yet, so has no link */
	ASSERT_TRUE(peer_start_mapped(&fresh, self->fd, 0, FILE_SIZE, PROT_RW));
	EXPECT_EQ(8, remote_rw(&fresh, TABLE_SIZE, &value, false));
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES), value);
	value = page_mark(SEED, 1);
	EXPECT_EQ(8, remote_rw(&fresh, 4096, &value, true));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	EXPECT_TRUE(peer_exit(&fresh));
}

static bool trace(pid_t pid)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	if (ptrace(PTRACE_SEIZE, pid, 0, 0) ||
	    ptrace(PTRACE_INTERRUPT, pid, 0, 0))
		return false;
	while (waitpid(pid, NULL, WNOHANG | __WALL) != pid) {
		if (now_ns() > end)
			return false;
		usleep(500);
	}
	return true;
}

TEST_F(pair, ptrace)
{
	char *addr = self->peer.arg->map + 3 * 4096;

	ASSERT_TRUE(trace(self->peer.pid));
	errno = 0;
	EXPECT_EQ(page_mark(SEED, 3),
		  ptrace(PTRACE_PEEKDATA, self->peer.pid, addr, 0));
	EXPECT_EQ(0, ptrace(PTRACE_POKEDATA, self->peer.pid, addr, 99));
	EXPECT_EQ(99, load64(self->map + 3 * 4096));
	store64(self->map + 3 * 4096, page_mark(SEED, 3));
	EXPECT_EQ(page_mark(SEED, 3),
		  ptrace(PTRACE_PEEKDATA, self->peer.pid, addr, 0));
	EXPECT_EQ(0, ptrace(PTRACE_DETACH, self->peer.pid, 0, 0));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

TEST_F(pair, proc_mem)
{
	uint64_t value = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", self->peer.pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(8, pread(fd, &value, 8,
			   (uintptr_t)self->peer.arg->map + 4096));
	EXPECT_EQ(page_mark(SEED, 1), value);
	value = 43;
	EXPECT_EQ(8, pwrite(fd, &value, 8,
			    (uintptr_t)self->peer.arg->map + 4096));
	EXPECT_EQ(43, load64(self->map + 4096));
	close(fd);
	store64(self->map + 4096, page_mark(SEED, 1));
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Processes at different addresses meet at one futex */
static long peer_futex_wait(void *data)
{
	struct peer_arg *arg = data;
	struct timespec limit = { LONG_MS / 1000 };

	return neg_errno(syscall(__NR_futex, arg->map + 64, FUTEX_WAIT, 0,
				 &limit, NULL, 0));
}

TEST_F(pair, futex)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	long woken = 0;

	ASSERT_TRUE(peer_tell(&self->peer, peer_futex_wait));
	while (!woken && now_ns() < end) {
		usleep(1000);
		woken = syscall(__NR_futex, self->map + 64, FUTEX_WAKE, 1,
				NULL, NULL, 0);
	}
	EXPECT_EQ(1, woken);
	EXPECT_EQ(0, peer_answer(&self->peer));
	EXPECT_RIGHT_SHARED(self);
}

/* A block device that is a file in /tmp */
struct loop {
	int file;
	int fd;
	char path[32];
};

static bool loop_open(struct loop *l, size_t size)
{
	int nr, ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC);

	nr = ctl < 0 ? -1 : ioctl(ctl, LOOP_CTL_GET_FREE);
	close(ctl);
	l->file = sys_memfd_create(MFD_CLOEXEC);
	snprintf(l->path, sizeof(l->path), "/dev/loop%d", nr);
	l->fd = nr < 0 ? -1 : open(l->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	return l->fd >= 0 && !ftruncate(l->file, size) &&
	       !ioctl(l->fd, LOOP_SET_FD, l->file);
}

static void loop_close(struct loop *l)
{
	if (l->fd >= 0)
		ioctl(l->fd, LOOP_CLR_FD);
	close(l->fd);
	close(l->file);
}

TEST_F(pair, o_direct)
{
	const size_t half = FILE_SIZE / 2;
	struct loop l;

	NEED(loop_open(&l, FILE_SIZE), "no loop device");
	EXPECT_EQ(half, pwrite(l.fd, self->map, half, 0));
	EXPECT_EQ(0, wrong_file_pages(l.file, 0, FILE_PAGES / 2, SEED));
	EXPECT_EQ(0, madvise(self->map, half, MADV_REMOVE));
	EXPECT_EQ(0, madvise(self->map, half, MADV_DONTNEED));
	EXPECT_EQ(half, pread(l.fd, self->map, half, 0));
	loop_close(&l);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* A buffer that is pinned for long stays the file's page */
TEST_F(pair, uring_fixed_buffer)
{
	struct iovec iov = { self->map + TABLE_SIZE - 8192, 16384 };
	struct __kernel_timespec limit = { .tv_sec = LONG_MS / 1000 };
	int src = sys_memfd_create(MFD_CLOEXEC);
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	char buf[16384];

	memset(buf, 0x5a, sizeof(buf));
	ASSERT_EQ(sizeof(buf), write(src, buf, sizeof(buf)));
	NEED(!io_uring_queue_init(4, &ring, 0), "no io_uring");
	ASSERT_EQ(0, io_uring_register_buffers(&ring, &iov, 1));
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_PAGEOUT));
	io_uring_prep_read_fixed(io_uring_get_sqe(&ring), src, iov.iov_base,
				 iov.iov_len, 0, 0);
	EXPECT_EQ(1, io_uring_submit(&ring));
	ASSERT_EQ(0, io_uring_wait_cqe_timeout(&ring, &cqe, &limit));
	EXPECT_EQ(sizeof(buf), cqe->res);
	EXPECT_TRUE(filled_with(iov.iov_base, sizeof(buf), 0x5a));
	EXPECT_EQ(0x5a5a5a5a5a5a5a5aULL, file64(self->fd, TABLE_SIZE));
	io_uring_unregister_buffers(&ring);
	io_uring_queue_exit(&ring);
	close(src);
	fill_pages(iov.iov_base, TABLE_PAGES - 2, 4, SEED);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* As in mm/gup_test.h */
#define GUP_TEST	"/sys/kernel/debug/gup_test"
#define FOLL_WRITE	1
#define PIN_WRITE	1
#define PIN_FAST	2

struct gup_arg {
	__u64 get_delta_usec;
	__u64 put_delta_usec;
	__u64 addr;
	__u64 size;
	__u32 nr_pages_per_call;
	__u32 gup_flags;
	__u32 test_flags;
	__u32 which_pages[8];
};

struct gup_pin {
	__u64 addr;
	__u64 size;
	__u32 flags;
};

#define GUP_FAST	_IOWR('g', 1, struct gup_arg)
#define GUP_PIN_FAST	_IOWR('g', 2, struct gup_arg)
#define GUP_LONGTERM	_IOWR('g', 3, struct gup_arg)
#define GUP_BASIC	_IOWR('g', 4, struct gup_arg)
#define GUP_PIN_START	_IOW('g', 7, struct gup_pin)
#define GUP_PIN_STOP	_IO('g', 8)
#define GUP_PIN_READ	_IOW('g', 9, __u64)

static const unsigned long gup_calls[] = {
	GUP_FAST, GUP_PIN_FAST, GUP_LONGTERM, GUP_BASIC,
};

/* How many bytes of a range it gets pages for */
static long gup_bytes(int fd, unsigned long call, char *map, size_t len,
		      unsigned int flags)
{
	struct gup_arg arg = {
		.addr = (uintptr_t)map, .size = len, .nr_pages_per_call = 64,
		.gup_flags = flags,
	};

	if (ioctl(fd, call, &arg))
		return -errno;
	return arg.size;
}

TEST_F(pair, gup)
{
	int fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);

	NEED(fd >= 0, "no CONFIG_GUP_TEST");
	for (size_t i = 0; i < ARRAY_SIZE(gup_calls); i++) {
		for (unsigned int flags = 0; flags <= FOLL_WRITE; flags++) {
			EXPECT_EQ(FILE_SIZE, gup_bytes(fd, gup_calls[i],
						       self->map, FILE_SIZE,
						       flags));
			/* Now with nothing linked */
			madvise(self->map, FILE_SIZE, MADV_DONTNEED);
			EXPECT_EQ(FILE_SIZE, gup_bytes(fd, gup_calls[i],
						       self->map, FILE_SIZE,
						       flags));
		}
	}
	close(fd);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* The pages that are pinned are the file's */
TEST_F(pair, gup_pins_the_right_pages)
{
	static char content[64 * 4096];
	struct gup_pin pin = {
		.addr = (uintptr_t)self->map + TABLE_SIZE - sizeof(content) / 2,
		.size = sizeof(content),
	};
	__u64 to = (uintptr_t)content;
	int fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);

	NEED(fd >= 0, "no CONFIG_GUP_TEST");
	for (pin.flags = 0; pin.flags < 4; pin.flags++) {
		ASSERT_EQ(0, ioctl(fd, GUP_PIN_START, &pin));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
		memset(content, 0, sizeof(content));
		EXPECT_EQ(0, ioctl(fd, GUP_PIN_READ, &to));
		EXPECT_EQ(0, wrong_pages(content, TABLE_PAGES - 32, 64, SEED));
		EXPECT_EQ(0, ioctl(fd, GUP_PIN_STOP));
	}
	close(fd);
	EXPECT_RIGHT_SHARED(self);
}

/* Part 12: a mapping that is for reading only is never written through */

/*
 * The peer has the whole file mapped writable, and has dirtied it, so that
 * writable entries for each offset exist. The test has it for reading.
 */
FIXTURE(readonly) {
	int fd;
	int map_fd;
	char *map;
	struct peer peer;
};

enum readonly_kind {
	RO_MAPPED,		/* PROT_READ, of a writable descriptor */
	RO_DESCRIPTOR,		/* a descriptor that cannot write */
	RO_MPROTECTED,		/* was writable, and dirty */
	RO_MPROTECTED_PART,	/* the same, one table of it */
	RO_SEALED,		/* F_SEAL_FUTURE_WRITE */
};

FIXTURE_VARIANT(readonly) {
	enum readonly_kind kind;
};

FIXTURE_VARIANT_ADD(readonly, mapped) { .kind = RO_MAPPED };
FIXTURE_VARIANT_ADD(readonly, descriptor) { .kind = RO_DESCRIPTOR };
FIXTURE_VARIANT_ADD(readonly, mprotected) { .kind = RO_MPROTECTED };
FIXTURE_VARIANT_ADD(readonly, mprotected_part) { .kind = RO_MPROTECTED_PART };
FIXTURE_VARIANT_ADD(readonly, sealed) { .kind = RO_SEALED };

static char *map_readonly(int fd, enum readonly_kind kind)
{
	char *map;

	if (kind != RO_MPROTECTED && kind != RO_MPROTECTED_PART)
		return map_file(fd, 0, FILE_SIZE, PROT_READ);
	map = map_file(fd, 0, FILE_SIZE, PROT_RW);
	if (map == MAP_FAILED)
		return map;
	fill_pages(map, 0, FILE_PAGES, SEED);
	if (kind == RO_MPROTECTED)
		mprotect(map, FILE_SIZE, PROT_READ);
	else
		mprotect(map + TABLE_SIZE, TABLE_SIZE, PROT_READ);
	return map;
}

FIXTURE_SETUP(readonly)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->fd = share_file(NR_TABLES, MFD_ALLOW_SEALING);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, FILE_SIZE,
				      PROT_RW));
	self->peer.arg->seed = SEED;
	ASSERT_EQ(0, peer_call(&self->peer, peer_fill));
	if (variant->kind == RO_SEALED) {
		ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS,
				   F_SEAL_FUTURE_WRITE));
	}
	self->map_fd = open_again(self->fd, variant->kind == RO_DESCRIPTOR ?
				  O_RDONLY : O_RDWR);
	self->map = map_readonly(self->map_fd, variant->kind);
	ASSERT_NE(MAP_FAILED, self->map);
	ASSERT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	ASSERT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_SHARED(self->map, FILE_SIZE);
}

/* Whatever was tried: nothing has changed, and the rights are what they were */
FIXTURE_TEARDOWN(readonly)
{
	EXPECT_EQ(0, wrong_file_pages(self->fd, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(self->map, FILE_SIZE);
	EXPECT_PEER_UNAFFECTED(&self->peer);
	if (self->peer.arg->prot & PROT_WRITE) {
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	}
	peer_kill(&self->peer);
	munmap(self->map, FILE_SIZE);
	close(self->map_fd);
	close(self->fd);
	EXPECT_TRUE(tables_become(0));
}

/* In the table that is for reading in every variant */
#define RO_PAGE(self)	((self)->map + TABLE_SIZE + 3 * 4096)

TEST_F(readonly, store)
{
	EXPECT_EQ(SIGSEGV, try_store(RO_PAGE(self), 1));
	EXPECT_EQ(SIGSEGV, try_store(self->map + 2 * TABLE_SIZE - 1, 1));
	EXPECT_EQ(0, try_load(RO_PAGE(self)));
	EXPECT_EQ(SIGSEGV, try_store(RO_PAGE(self), 1));
	/* With no link, the fault is the first one */
	EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(SIGSEGV, try_store(RO_PAGE(self), 1));
}

TEST_F(readonly, read_into)
{
	char *page = RO_PAGE(self);
	int fds[2], zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	ASSERT_EQ(0, pipe(fds));
	ASSERT_EQ(8, write(fds[1], "12345678", 8));
	for (int turn = 0; turn < 2; turn++) {
		EXPECT_EQ(-EFAULT, neg_errno(read(fds[0], page, 8)));
		EXPECT_EQ(-EFAULT, neg_errno(read(zero, page, 4096)));
		EXPECT_EQ(-EFAULT, neg_errno(pread(self->fd, page, 8, 0)));
		EXPECT_EQ(-EFAULT, neg_errno(syscall(__NR_getrandom, page, 64,
						     0)));
		madvise(self->map, FILE_SIZE, MADV_DONTNEED);
	}
	close(zero);
	close(fds[0]);
	close(fds[1]);
}

TEST_F(readonly, process_vm_writev)
{
	uint64_t value = 1;
	struct iovec local = { &value, 8 }, remote = { RO_PAGE(self), 8 };

	EXPECT_EQ(-EFAULT, neg_errno(process_vm_writev(getpid(), &local, 1,
						       &remote, 1, 0)));
	EXPECT_EQ(8, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(-EFAULT, neg_errno(process_vm_writev(getpid(), &local, 1,
						       &remote, 1, 0)));
}

/* FOLL_FORCE does not help: a shared mapping cannot be copied */
TEST_F(readonly, proc_mem)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	uint64_t value = 1;

	ASSERT_LE(0, fd);
	EXPECT_EQ(-EIO, neg_errno(pwrite(fd, &value, 8,
					 (uintptr_t)RO_PAGE(self))));
	EXPECT_EQ(8, pread(fd, &value, 8, (uintptr_t)RO_PAGE(self)));
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES + 3), value);
	close(fd);
}

static long peer_sleep(void *data)
{
	struct peer_arg *arg = data;
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (!arg->stop && now_ns() < end)
		usleep(1000);
	return 0;
}

TEST_F(readonly, ptrace)
{
	struct peer child;
	long ret;

	/* It has inherited the mapping */
	ASSERT_TRUE(peer_start(&child, self->fd));
	ASSERT_TRUE(peer_tell(&child, peer_sleep));
	ASSERT_TRUE(trace(child.pid));
	ret = neg_errno(ptrace(PTRACE_POKEDATA, child.pid, RO_PAGE(self), 1));
	EXPECT_EQ(-EIO, ret);
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES + 3),
		  ptrace(PTRACE_PEEKDATA, child.pid, RO_PAGE(self), 0));
	ret = neg_errno(ptrace(PTRACE_POKEDATA, child.pid, RO_PAGE(self), 1));
	EXPECT_EQ(-EIO, ret);
	EXPECT_EQ(0, ptrace(PTRACE_DETACH, child.pid, 0, 0));
	child.arg->stop = 1;
	EXPECT_EQ(0, peer_answer(&child));
	EXPECT_TRUE(peer_exit(&child));
}

TEST_F(readonly, gup)
{
	int fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	char *page = RO_PAGE(self);

	NEED(fd >= 0, "no CONFIG_GUP_TEST");
	for (size_t i = 0; i < ARRAY_SIZE(gup_calls); i++) {
		for (int turn = 0; turn < 2; turn++) {
			EXPECT_EQ(0, gup_bytes(fd, gup_calls[i], page, 8192,
					       FOLL_WRITE))
				TH_LOG("call %zu turn %d", i, turn);
			EXPECT_EQ(8192, gup_bytes(fd, gup_calls[i], page, 8192,
						  0));
			EXPECT_EQ(0, gup_bytes(fd, gup_calls[i], page, 8192,
					       FOLL_WRITE));
			madvise(self->map, FILE_SIZE, MADV_DONTNEED);
		}
	}
	close(fd);
}

TEST_F(readonly, gup_pin)
{
	struct gup_pin pin = {
		.addr = (uintptr_t)RO_PAGE(self), .size = 4096,
	};
	int fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);

	NEED(fd >= 0, "no CONFIG_GUP_TEST");
	for (int fast = 0; fast <= PIN_FAST; fast += PIN_FAST) {
		pin.flags = PIN_WRITE | fast;
		EXPECT_EQ(-EFAULT, neg_errno(ioctl(fd, GUP_PIN_START, &pin)));
		pin.flags = fast;
		EXPECT_EQ(0, ioctl(fd, GUP_PIN_START, &pin));
		EXPECT_EQ(0, ioctl(fd, GUP_PIN_STOP));
	}
	close(fd);
}

TEST_F(readonly, uring_buffer)
{
	struct iovec iov = { RO_PAGE(self), 4096 };
	struct io_uring ring;

	NEED(!io_uring_queue_init(4, &ring, 0), "no io_uring");
	EXPECT_EQ(-EFAULT, io_uring_register_buffers(&ring, &iov, 1));
	io_uring_queue_exit(&ring);
}

TEST_F(readonly, o_direct)
{
	struct loop l;

	NEED(loop_open(&l, TABLE_SIZE), "no loop device");
	EXPECT_EQ(-EFAULT, neg_errno(pread(l.fd, RO_PAGE(self), 4096, 0)));
	EXPECT_EQ(4096, pwrite(l.fd, RO_PAGE(self), 4096, 0));
	EXPECT_EQ(page_mark(SEED, TABLE_PAGES + 3), file64(l.file, 0));
	loop_close(&l);
}

/* Only who could have mapped it writable can get there by mprotect(2) */
TEST_F(readonly, mprotect)
{
	bool may = variant->kind != RO_DESCRIPTOR &&
		   variant->kind != RO_SEALED;
	char *page = RO_PAGE(self);

	EXPECT_EQ(may ? 0 : -EACCES,
		  neg_errno(mprotect(self->map, FILE_SIZE, PROT_RW)));
	EXPECT_EQ(may ? 0 : SIGSEGV, try_store(page + 100, 1));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(self->map, FILE_SIZE);
}

/* A fork, and the child's children */
TEST_F(readonly, forked)
{
	struct peer child;

	ASSERT_TRUE(peer_start(&child, self->fd));
	child.arg->map = self->map;
	child.arg->value = TABLE_SIZE + 3 * 4096;
	child.arg->len = FILE_SIZE;
	child.arg->seed = SEED;
	EXPECT_EQ(SIGSEGV, peer_call(&child, peer_store_offset));
	EXPECT_EQ(0, peer_call(&child, peer_load_offset));
	EXPECT_EQ(SIGSEGV, peer_call(&child, peer_store_offset));
	EXPECT_EQ(0, peer_call(&child, peer_check));
	EXPECT_EQ(FILE_SIZE >> 10, peer_call(&child, peer_shared_kb));
	EXPECT_TRUE(peer_exit(&child));
}

/* What the peer changes is seen at once, through the other class's table */
TEST_F(readonly, follows_writer)
{
	self->peer.arg->seed = SEED2;
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED2));
	if (variant->kind != RO_SEALED) {
		ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE, 0, FILE_SIZE));
		EXPECT_EQ(0, expected_zero(self->map, FILE_PAGES));
	}
	self->peer.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
}

/* Part 13: seals */

/* What adding a seal says at each step; the same for every kind of memfd */
struct seal_story {
	long while_writable;
	long while_readonly;
	long after_unmap;
	long write_later;
	long map_later;
	long read_later;
};

static struct seal_story seal_write(int fd)
{
	struct seal_story s = { 0 };
	char *map = map_file(fd, 0, FILE_SIZE, PROT_RW), *again;

	fill_pages(map, 0, FILE_PAGES, SEED);
	s.while_writable = neg_errno(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	mprotect(map, FILE_SIZE, PROT_READ);
	s.while_readonly = neg_errno(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	munmap(map, FILE_SIZE);
	s.after_unmap = neg_errno(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	s.write_later = neg_errno(pwrite(fd, "x", 1, 0));
	again = map_file(fd, 0, FILE_SIZE, PROT_RW);
	s.map_later = again == MAP_FAILED ? -errno : 0;
	again = map_file(fd, 0, FILE_SIZE, PROT_READ);
	s.read_later = again == MAP_FAILED ? -errno :
		       wrong_pages(again, 0, FILE_PAGES, SEED);
	if (again != MAP_FAILED)
		munmap(again, FILE_SIZE);
	return s;
}

TEST(seal_write_as_ordinary)
{
	struct seal_story ours, theirs;
	int fd[2];

	NEED_PTSHARE();
	fd[0] = share_file(NR_TABLES, MFD_ALLOW_SEALING);
	fd[1] = sys_memfd_create(MFD_ALLOW_SEALING);
	ASSERT_EQ(0, ftruncate(fd[1], FILE_SIZE));
	ours = seal_write(fd[0]);
	theirs = seal_write(fd[1]);
	EXPECT_EQ(-EBUSY, ours.while_writable);
	EXPECT_EQ(theirs.while_writable, ours.while_writable);
	EXPECT_EQ(theirs.while_readonly, ours.while_readonly);
	EXPECT_EQ(0, ours.after_unmap);
	EXPECT_EQ(theirs.after_unmap, ours.after_unmap);
	EXPECT_EQ(theirs.write_later, ours.write_later);
	EXPECT_EQ(-EPERM, ours.map_later);
	EXPECT_EQ(theirs.map_later, ours.map_later);
	EXPECT_EQ(0, ours.read_later);
	close(fd[0]);
	close(fd[1]);
	EXPECT_TRUE(tables_become(0));
}

/* No writable mapping is left: then at once, whatever is torn down later */
TEST(seal_write_at_once)
{
	struct peer peer;
	char *map;
	int fd;

	NEED_PTSHARE();
	for (int turn = 0; turn < 20; turn++) {
		fd = share_file(NR_TABLES, MFD_ALLOW_SEALING);
		ASSERT_TRUE(peer_start_mapped(&peer, fd, 0, FILE_SIZE,
					      PROT_RW));
		map = map_file(fd, 0, FILE_SIZE, PROT_RW);
		ASSERT_NE(MAP_FAILED, map);
		store64(map, 1);
		store64(map + 3 * TABLE_SIZE, 1);
		peer.arg->value = TABLE_SIZE;
		EXPECT_EQ(0, peer_call(&peer, peer_store_offset));
		EXPECT_EQ(-EBUSY, neg_errno(fcntl(fd, F_ADD_SEALS,
						  F_SEAL_WRITE)));
		munmap(map, FILE_SIZE);
		if (turn % 2) {
			EXPECT_EQ(0, peer_call(&peer, peer_unmap));
		} else {
			EXPECT_TRUE(peer_exit(&peer));
		}
		EXPECT_EQ(0, neg_errno(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)))
			TH_LOG("turn %d", turn);
		if (turn % 2) {
			EXPECT_TRUE(peer_exit(&peer));
		}
		close(fd);
	}
	EXPECT_TRUE(tables_become(0));
}

/* Readers that share are no writers, unless they may become some */
TEST_F(readonly, seal_write)
{
	bool may = variant->kind != RO_DESCRIPTOR &&
		   variant->kind != RO_SEALED;

	EXPECT_EQ(0, peer_call(&self->peer, peer_unmap));
	EXPECT_EQ(may ? -EBUSY : 0,
		  neg_errno(fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE)));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(self->map, FILE_SIZE);
	EXPECT_EQ(SIGSEGV, try_store(RO_PAGE(self), 1));
	self->peer.arg->prot = PROT_READ;
	EXPECT_EQ(0, peer_call(&self->peer, peer_map));
	EXPECT_EQ(0, peer_call(&self->peer, peer_check));
}

TEST_F(pair, seal_future_write)
{
	char *map;

	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	EXPECT_RIGHT_SHARED(self);
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill));
	EXPECT_EQ(MAP_FAILED, map_file(self->fd, 0, FILE_SIZE, PROT_RW));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-EPERM, neg_errno(pwrite(self->fd, "x", 1, 0)));
	map = map_file(self->fd, 0, FILE_SIZE, PROT_READ);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, wrong_pages(map, 0, FILE_PAGES, SEED));
	EXPECT_SHARED(map, FILE_SIZE);
	EXPECT_EQ(-EACCES, neg_errno(mprotect(map, FILE_SIZE, PROT_RW)));
	EXPECT_EQ(SIGSEGV, try_store(map, 1));
	munmap(map, FILE_SIZE);
}

TEST_F(pair, seal_size)
{
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS,
			   F_SEAL_SHRINK | F_SEAL_GROW));
	EXPECT_EQ(-EPERM, neg_errno(ftruncate(self->fd, FILE_SIZE / 2)));
	EXPECT_EQ(-EPERM, neg_errno(ftruncate(self->fd, 2 * FILE_SIZE)));
	EXPECT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 0, 4096));
	EXPECT_EQ(0, load64(self->map));
	store64(self->map, page_mark(SEED, 0));
	EXPECT_RIGHT_SHARED(self);
	EXPECT_PEER_UNAFFECTED(&self->peer);
}

/* Part 14: threads */

#define NR_THREADS	8

struct crew {
	char *map;
	pthread_barrier_t start;
	volatile int stop;
	size_t wrong[NR_THREADS];
	unsigned int turns[NR_THREADS];
};

struct member {
	struct crew *crew;
	unsigned int nr;
	pthread_t thread;
};

/* Each fills every eighth page, and checks what it has filled before */
static void *fault_all(void *arg)
{
	struct member *m = arg;
	struct crew *crew = m->crew;
	size_t wrong = 0;

	pthread_barrier_wait(&crew->start);
	for (unsigned int turn = 0; turn < 6; turn++) {
		for (size_t i = m->nr; i < FILE_PAGES; i += NR_THREADS) {
			char *page = crew->map + i * 4096;

			if (turn)
				wrong += load64(page) !=
					 page_mark(turn - 1, i);
			store64(page, page_mark(turn, i));
		}
		crew->turns[m->nr]++;
	}
	crew->wrong[m->nr] = wrong;
	return NULL;
}

/* Runs the crew; whoever calls may do something to the mapping meanwhile */
static size_t run_crew(struct crew *crew, long (*meanwhile)(char *map))
{
	uint64_t end = now_ns() + 2000000000ULL;
	struct member members[NR_THREADS];
	size_t wrong = 0;

	pthread_barrier_init(&crew->start, NULL, NR_THREADS + 1);
	for (unsigned int i = 0; i < NR_THREADS; i++) {
		members[i].crew = crew;
		members[i].nr = i;
		pthread_create(&members[i].thread, NULL, fault_all,
			       &members[i]);
	}
	pthread_barrier_wait(&crew->start);
	for (int i = 0; i < 30 && meanwhile && now_ns() < end; i++) {
		meanwhile(crew->map);
		usleep(1000);
	}
	for (unsigned int i = 0; i < NR_THREADS; i++) {
		pthread_join(members[i].thread, NULL);
		wrong += crew->wrong[i];
	}
	pthread_barrier_destroy(&crew->start);
	return wrong + wrong_pages(crew->map, 0, FILE_PAGES, 5);
}

static long drop_links(char *map)
{
	return madvise(map, FILE_SIZE, MADV_DONTNEED);
}

/* By tables of one class and of the other */
static long lock_and_unlock(char *map)
{
	return mlock2(map, FILE_SIZE, MLOCK_ONFAULT) ||
	       munlock(map, FILE_SIZE);
}

static long split_and_merge(char *map)
{
	return madvise(map + 4096, 4096, MADV_RANDOM) ||
	       madvise(map + 4096, 4096, MADV_NORMAL);
}

static long map_and_unmap(char *map)
{
	char *other = mremap(map, 0, FILE_SIZE, MREMAP_MAYMOVE);

	if (other == MAP_FAILED)
		return -errno;
	(void)load64(other + TABLE_SIZE);
	return munmap(other, FILE_SIZE);
}

static long fork_once(char *map)
{
	pid_t pid = fork();

	if (!pid)
		_exit(try_load(map + 3 * TABLE_SIZE));
	return waitpid(pid, NULL, 0) == pid ? 0 : -errno;
}

static long page_out(char *map)
{
	return madvise(map, FILE_SIZE, MADV_PAGEOUT);
}

static long migrate_all(char *map)
{
	static unsigned int turn;

	return move_to_node(0, map, FILE_PAGES, turn++ % 2, MPOL_MF_MOVE_ALL);
}

static long collapse_private(char *map)
{
	static char *private;
	char path[64];
	int fd;

	if (!private) {
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx",
			 (unsigned long)map, (unsigned long)map + FILE_SIZE);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		private = mmap(reserve(FILE_SIZE), FILE_SIZE, PROT_READ,
			       MAP_PRIVATE | MAP_FIXED, fd, 0);
		close(fd);
		if (private == MAP_FAILED)
			return -errno;
	}
	(void)load64(private);
	return madvise(private, FILE_SIZE, MADV_COLLAPSE);
}

/* By a page, which is ordinary, and back; what is behind it is free */
static long grow_and_shrink(char *map)
{
	if (mremap(map, FILE_SIZE, FILE_SIZE + 4096, 0) != map)
		return -errno;
	return mremap(map, FILE_SIZE + 4096, FILE_SIZE, 0) != map;
}

FIXTURE(threads) {
	int fd;
	struct crew crew;
};

FIXTURE_VARIANT(threads) {
	long (*meanwhile)(char *map);
};

FIXTURE_VARIANT_ADD(threads, undisturbed) { .meanwhile = NULL };
FIXTURE_VARIANT_ADD(threads, dontneed) { .meanwhile = drop_links };
FIXTURE_VARIANT_ADD(threads, mlock) { .meanwhile = lock_and_unlock };
FIXTURE_VARIANT_ADD(threads, split) { .meanwhile = split_and_merge };
FIXTURE_VARIANT_ADD(threads, map) { .meanwhile = map_and_unmap };
FIXTURE_VARIANT_ADD(threads, fork) { .meanwhile = fork_once };
FIXTURE_VARIANT_ADD(threads, pageout) { .meanwhile = page_out };
FIXTURE_VARIANT_ADD(threads, migrate) { .meanwhile = migrate_all };
FIXTURE_VARIANT_ADD(threads, collapse) { .meanwhile = collapse_private };
FIXTURE_VARIANT_ADD(threads, grow) { .meanwhile = grow_and_shrink };

FIXTURE_SETUP(threads)
{
	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	self->fd = share_file(NR_TABLES, 0);
	ASSERT_LE(0, self->fd);
	self->crew.map = reserve(FILE_SIZE + TABLE_SIZE);
	munmap(self->crew.map + FILE_SIZE, TABLE_SIZE);
	self->crew.map = map_at(self->crew.map, self->fd, 0, FILE_SIZE,
				PROT_RW);
	ASSERT_NE(MAP_FAILED, self->crew.map);
}

FIXTURE_TEARDOWN(threads)
{
	munmap(self->crew.map, FILE_SIZE);
	close(self->fd);
	EXPECT_TRUE(tables_become(0));
}

TEST_F(threads, fault)
{
	EXPECT_EQ(0, run_crew(&self->crew, variant->meanwhile));
	for (int i = 0; i < NR_THREADS; i++)
		EXPECT_EQ(6, self->crew.turns[i]);
	EXPECT_SHARED(self->crew.map, FILE_SIZE);
	EXPECT_EQ(0, wrong_file_pages(self->fd, 0, FILE_PAGES, 5));
}

/* Part 15: the TLB of another CPU */

/*
 * A spinner stores ascending numbers on CPU 1, and enters the kernel only to
 * fault. Somebody on CPU 0 takes away its entry. From then on its stores must
 * either be stopped, or reach the page that the file has now.
 *
 * Each scenario returns the number of violations that it has seen.
 */
struct tlb_scene {
	int fd;
	char *map;		/* of whoever changes things */
	struct spinner spin;
	struct spin_state *state;
	size_t offset;		/* of the word that is stored to */
	unsigned int rounds;
	unsigned int tries;	/* rounds in which it could have gone wrong */
	unsigned int violations;
	const char *skip;
	pthread_t thread;	/* of scenarios within one process */
	struct outcome out;
};

static void tlb_settle(void)
{
	uint64_t end = now_ns() + 1000000;

	/* Without sleeping: the other CPU is not to be disturbed */
	while (now_ns() < end)
		;
}

/* The spinner is to have been stopped: one store may not be counted yet */
static void tlb_count_late_stores(struct tlb_scene *s)
{
	uint64_t stores = s->state->stores;

	s->tries++;
	tlb_settle();
	s->violations += s->state->stores > stores + 1;
}

/* The spinner goes on, and what it stores is to reach the file */
static void tlb_count_lost_stores(struct tlb_scene *s)
{
	uint64_t stores = s->state->stores;
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	s->tries++;
	while (s->state->stores < stores + 20 && now_ns() < end)
		;
	s->violations += file64(s->fd, s->offset) < stores + 1 ||
			 s->state->stores < stores + 20;
}

static bool tlb_spin(struct tlb_scene *s)
{
	return spinner_start(&s->spin, &s->spin.peer, s->state, s->offset);
}

static unsigned int tlb_truncate(struct tlb_scene *s)
{
	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_spin(s) || ftruncate(s->fd, 0))
			return ++s->violations;
		tlb_count_late_stores(s);
		s->violations += spinner_stop(&s->spin) != PEER_SIGNAL(SIGBUS);
		if (ftruncate(s->fd, FILE_SIZE))
			return ++s->violations;
	}
	return s->violations;
}

/* The rest of its table, all of its table, or all of the file */
static unsigned int tlb_punch(struct tlb_scene *s)
{
	static const size_t sizes[] = { 4096, TABLE_SIZE, FILE_SIZE };
	size_t size;

	if (!tlb_spin(s))
		return ++s->violations;
	for (unsigned int i = 0; i < s->rounds; i++) {
		size = sizes[i % 3];
		if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE |
			      FALLOC_FL_KEEP_SIZE, s->offset & -size, size))
			return ++s->violations;
		tlb_count_lost_stores(s);
	}
	s->violations += spinner_stop(&s->spin) != 0;
	return s->violations;
}

static unsigned int tlb_migrate(struct tlb_scene *s)
{
	void *page = s->map + s->offset;
	int status, node;

	if (!two_nodes()) {
		s->skip = "one node only";
		return 0;
	}
	if (!tlb_spin(s))
		return ++s->violations;
	for (unsigned int i = 0; i < s->rounds; i++) {
		(void)load64(page);
		node = !node_of(page);
		status = -1;
		syscall(__NR_move_pages, 0, 1UL, &page, &node, &status,
			MPOL_MF_MOVE_ALL);
		if (status == node)
			tlb_count_lost_stores(s);
	}
	s->violations += spinner_stop(&s->spin) != 0;
	return s->violations;
}

/* Many pages at once: the flush is put off, and done for all of them */
static unsigned int tlb_migrate_batch(struct tlb_scene *s)
{
	size_t first = s->offset / 4096 & ~511UL;

	if (!two_nodes()) {
		s->skip = "one node only";
		return 0;
	}
	if (!tlb_spin(s))
		return ++s->violations;
	for (unsigned int i = 0; i < s->rounds; i++) {
		for (size_t p = 0; p < 512; p++)
			(void)load64(s->map + (first + p) * 4096);
		if (move_to_node(0, s->map + first * 4096, 512, i % 2,
				 MPOL_MF_MOVE_ALL) > 256)
			tlb_count_lost_stores(s);
	}
	s->violations += spinner_stop(&s->spin) != 0;
	return s->violations;
}

static unsigned int tlb_protect(struct tlb_scene *s)
{
	if (!have_protect()) {
		s->skip = "no CONFIG_MEMFD_PROTECT";
		return 0;
	}
	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_spin(s) ||
		    protect_pages(s->fd, 0, 0, MEMFD_PROTECT_DENY))
			return ++s->violations;
		tlb_count_late_stores(s);
		s->violations += spinner_stop(&s->spin) != PEER_SIGNAL(SIGBUS);
		unprotect_pages(s->fd, 0, 0);
	}
	return s->violations;
}

/*
 * Within one process: a thread spins, and another one changes the mapping.
 * @map is the spinner's mapping too.
 */
static void *tlb_thread(void *arg)
{
	struct tlb_scene *s = arg;

	pin_to_cpu(0, 1);
	run_guarded(spin_stores, s->state, &s->out);
	return NULL;
}

static bool tlb_thread_start(struct tlb_scene *s)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	memset(s->state, 0, sizeof(*s->state));
	memset(&s->out, 0, sizeof(s->out));
	s->state->word = (uint64_t *)(s->map + s->offset);
	if (pthread_create(&s->thread, NULL, tlb_thread, s))
		return false;
	while (s->state->stores < 100 && now_ns() < end)
		usleep(100);
	return s->state->stores >= 100;
}

/* The signal that has ended the thread, or 0 if it had to be told to end */
static int tlb_thread_stop(struct tlb_scene *s)
{
	s->state->stop = 1;
	pthread_join(s->thread, NULL);
	return s->out.sig;
}

static bool tlb_map(struct tlb_scene *s)
{
	return map_at(s->map, s->fd, 0, FILE_SIZE, PROT_RW) == s->map;
}

static unsigned int tlb_munmap(struct tlb_scene *s)
{
	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_map(s) || !tlb_thread_start(s) ||
		    munmap(s->map, FILE_SIZE))
			return ++s->violations;
		tlb_count_late_stores(s);
		s->violations += tlb_thread_stop(s) != SIGSEGV;
	}
	return s->violations;
}

/* Its page goes, the rest stays mapped, as an ordinary mapping */
static unsigned int tlb_munmap_page(struct tlb_scene *s)
{
	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_map(s) || !tlb_thread_start(s) ||
		    munmap(s->map + s->offset, 4096))
			return ++s->violations;
		tlb_count_late_stores(s);
		s->violations += tlb_thread_stop(s) != SIGSEGV;
	}
	return s->violations;
}

static unsigned int tlb_mprotect(struct tlb_scene *s)
{
	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_map(s) || !tlb_thread_start(s) ||
		    mprotect(s->map, FILE_SIZE, PROT_READ))
			return ++s->violations;
		tlb_count_late_stores(s);
		s->violations += tlb_thread_stop(s) != SIGSEGV;
	}
	return s->violations;
}

static unsigned int tlb_mremap(struct tlb_scene *s)
{
	char *there = reserve(FILE_SIZE);

	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_map(s) || !tlb_thread_start(s) ||
		    mremap(s->map, FILE_SIZE, FILE_SIZE,
			   MREMAP_MAYMOVE | MREMAP_FIXED, there) != there)
			return ++s->violations;
		tlb_count_late_stores(s);
		s->violations += tlb_thread_stop(s) != SIGSEGV;
	}
	munmap(there, FILE_SIZE);
	return s->violations;
}

/* Another page at the same address: stores are to go there */
static unsigned int tlb_map_fixed(struct tlb_scene *s)
{
	char *table = s->map + (s->offset & -TABLE_SIZE);
	size_t other = FILE_SIZE - TABLE_SIZE;

	s->offset %= TABLE_SIZE;
	for (unsigned int i = 0; i < s->rounds; i++) {
		if (!tlb_map(s) || !tlb_thread_start(s) ||
		    map_at(table, s->fd, other, TABLE_SIZE, PROT_RW) != table)
			return ++s->violations;
		s->offset += other;
		tlb_count_lost_stores(s);
		s->offset -= other;
		s->violations += tlb_thread_stop(s) != 0;
	}
	return s->violations;
}

/*
 * Sole mapper: reclaim takes the entry of just the page that it stores to. The
 * spinner faults at once, and so keeps the page; if it does not, its stores are
 * lost with it. A page that was faulted in lately waits on its CPU to be put on
 * a list, and is spared: moving pages, whichever, drains those.
 */
static unsigned int tlb_pageout(struct tlb_scene *s)
{
	char *page = s->map + (s->offset & -4096UL);
	static char any[8192];
	long long out;
	long before;

	if (!have_swap()) {
		s->skip = "no swap";
		return 0;
	}
	if (!tlb_map(s) || !tlb_thread_start(s))
		return ++s->violations;
	for (unsigned int i = 0; i < s->rounds; i++) {
		any[4096] = 1;
		move_to_node(0, any + 4096, 1, 0, MPOL_MF_MOVE);
		out = vmstat("pswpout");
		before = faults();
		madvise(page, 4096, MADV_PAGEOUT);
		tlb_count_lost_stores(s);
		/* Spared: it does not count */
		s->tries -= faults() == before &&
			    vmstat("pswpout") == out;
	}
	s->violations += tlb_thread_stop(s) != 0;
	return s->violations;
}

FIXTURE(tlb) {
	struct tlb_scene scene;
};

FIXTURE_VARIANT(tlb) {
	unsigned int (*scenario)(struct tlb_scene *s);
	bool thread;		/* the spinner is one */
	unsigned int rounds;
	size_t offset;
};

#define TLB(_name, _thread, _rounds, _offset) \
	FIXTURE_VARIANT_ADD(tlb, _name) { \
		.scenario = tlb_##_name, .thread = _thread, \
		.rounds = _rounds, .offset = _offset, \
	}

TLB(truncate, false, 50, TABLE_SIZE + 5 * 4096);
TLB(punch, false, 60, TABLE_SIZE + 5 * 4096);
TLB(migrate, false, 60, TABLE_SIZE + 5 * 4096);
TLB(migrate_batch, false, 20, TABLE_SIZE + 5 * 4096);
TLB(protect, false, 50, TABLE_SIZE + 5 * 4096);
TLB(munmap, true, 50, TABLE_SIZE + 5 * 4096);
TLB(munmap_page, true, 50, TABLE_SIZE + 5 * 4096);
TLB(mprotect, true, 50, TABLE_SIZE + 5 * 4096);
TLB(mremap, true, 50, TABLE_SIZE + 5 * 4096);
TLB(map_fixed, true, 50, 5 * 4096);
TLB(pageout, true, 30, 5 * 4096);

FIXTURE_SETUP(tlb)
{
	struct tlb_scene *s = &self->scene;
	unsigned int flags = 0;

	if (!have_ptshare())
		SKIP(return, "no CONFIG_PTSHARE");
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU only");
	if (variant->scenario == tlb_protect && have_protect())
		flags = MFD_ALLOW_PROTECT;
	s->rounds = variant->rounds;
	s->offset = variant->offset;
	s->state = spin_state_alloc();
	ASSERT_NE(NULL, s->state);
	s->fd = share_file(NR_TABLES, flags);
	ASSERT_LE(0, s->fd);
	s->map = reserve(FILE_SIZE);
	if (!variant->thread) {
		ASSERT_TRUE(peer_start_mapped(&s->spin.peer, s->fd, 0,
					      FILE_SIZE, PROT_RW));
	}
	ASSERT_TRUE(tlb_map(s));
	pin_to_cpu(0, 0);
}

FIXTURE_TEARDOWN(tlb)
{
	struct tlb_scene *s = &self->scene;

	if (!variant->thread)
		peer_kill(&s->spin.peer);
	munmap(s->map, FILE_SIZE);
	munmap(s->state, sizeof(*s->state));
	close(s->fd);
	EXPECT_TRUE(tables_become(0));
}

TEST_F(tlb, holds)
{
	struct tlb_scene *s = &self->scene;
	long long links = vmstat("ptshare_link");

	EXPECT_EQ(0, variant->scenario(s));
	if (s->skip)
		SKIP(return, "%s", s->skip);
	EXPECT_LE(s->rounds / 2, s->tries);
	/* It was about shared tables, all the time */
	EXPECT_LT(links, vmstat("ptshare_link"));
}

/* Part 16: memfd_protect(2) of such files */

FIXTURE(protect) {
	int fd;
	int nfd;
	char *map;
	char *skewed;		/* an ordinary mapping */
	struct peer peer;
	struct peer reader;	/* its mapping is for reading */
};

FIXTURE_SETUP(protect)
{
	if (!have_ptshare() || !have_protect())
		SKIP(return, "needs CONFIG_PTSHARE and CONFIG_MEMFD_PROTECT");
	self->fd = share_file(NR_TABLES, MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, FILE_SIZE,
				      PROT_RW));
	ASSERT_TRUE(peer_start_mapped(&self->reader, self->fd, 0, FILE_SIZE,
				      PROT_READ));
	self->map = map_file(self->fd, 0, FILE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	self->reader.arg->seed = SEED;
	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
	ASSERT_EQ(0, peer_call(&self->reader, peer_check));
	self->skewed = map_at(reserve(FILE_SIZE + TABLE_SIZE) + 4096,
			      self->fd, 0, FILE_SIZE, PROT_RW);
	ASSERT_EQ(0, wrong_pages(self->skewed, 0, FILE_PAGES, SEED));
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
}

FIXTURE_TEARDOWN(protect)
{
	EXPECT_SHARED(self->map, FILE_SIZE);
	EXPECT_EQ(0, peer_call(&self->reader, peer_check));
	EXPECT_EQ(FILE_SIZE >> 10, peer_call(&self->reader, peer_shared_kb));
	close(self->nfd);
	peer_kill(&self->peer);
	peer_kill(&self->reader);
	munmap(self->map, FILE_SIZE);
	munmap(self->skewed - 4096, FILE_SIZE + TABLE_SIZE);
	close(self->fd);
	EXPECT_TRUE(tables_become(0));
}

#define THE_PAGE	(TABLE_SIZE / 4096 + 7)
#define THE_OFFSET	(THE_PAGE * 4096)

/* What a store of each kind of mapping gets */
static void expect_stores(struct __test_metadata *_metadata,
			  FIXTURE_DATA(protect) *self, size_t page, int sig)
{
	const size_t at = page * 4096 + 100;

	self->peer.arg->value = at;
	EXPECT_EQ(sig, try_store(self->map + at, 1)) TH_LOG("page %zu", page);
	EXPECT_EQ(sig, peer_call(&self->peer, peer_store_offset));
	EXPECT_EQ(sig, try_store(self->skewed + at, 1));
}

TEST_F(protect, deny)
{
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	expect_stores(_metadata, self, THE_PAGE, SIGBUS);
	expect_stores(_metadata, self, THE_PAGE - 1, 0);
	expect_stores(_metadata, self, THE_PAGE + 1, 0);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	expect_stores(_metadata, self, THE_PAGE, 0);

	/* All of it, and one out of the middle */
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	for (size_t page = 0; page < FILE_PAGES; page += 171)
		expect_stores(_metadata, self, page, SIGBUS);
	EXPECT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	expect_stores(_metadata, self, THE_PAGE, 0);
	expect_stores(_metadata, self, THE_PAGE + 1, SIGBUS);
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	expect_stores(_metadata, self, THE_PAGE + 1, 0);
}

/* A page that was only read since it was protected, or never touched */
TEST_F(protect, deny_untouched)
{
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 0, FILE_SIZE));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, load64(self->map + THE_OFFSET));
	expect_stores(_metadata, self, THE_PAGE, SIGBUS);
	expect_stores(_metadata, self, THE_PAGE + 1, SIGBUS);
	EXPECT_EQ(0, expected_zero(self->map, FILE_PAGES));
	expect_stores(_metadata, self, THE_PAGE + 2, SIGBUS);
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	fill_pages(self->map, 0, FILE_PAGES, SEED);
	EXPECT_EQ(0, peer_call(&self->peer, peer_check));
}

/* No change of the mapping lifts it */
TEST_F(protect, deny_lasts)
{
	struct peer child;

	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	for (int turn = 0; turn < 2; turn++) {
		EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_READ));
		EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
		EXPECT_EQ(0, mprotect(self->map, FILE_SIZE, PROT_RW));
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
		EXPECT_EQ(0, madvise(self->map, FILE_SIZE, MADV_DONTNEED));
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
		EXPECT_EQ(0, mlock(self->map, FILE_SIZE));
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
		EXPECT_EQ(0, munlock(self->map, FILE_SIZE));
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
		EXPECT_EQ(0, mprotect(self->map, 4096, PROT_READ));
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
		EXPECT_EQ(0, mprotect(self->map, 4096, PROT_RW));
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
		madvise(self->map, FILE_SIZE, MADV_PAGEOUT);
		expect_stores(_metadata, self, THE_PAGE, SIGBUS);
	}
	ASSERT_TRUE(peer_start(&child, self->fd));
	child.arg->map = self->map;
	child.arg->value = THE_OFFSET;
	EXPECT_EQ(SIGBUS, peer_call(&child, peer_store_offset));
	EXPECT_TRUE(peer_exit(&child));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
}

/* The kernel's writes into the mapping fail too */
TEST_F(protect, deny_kernel)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	int gup = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	char *page = self->map + THE_OFFSET;
	uint64_t value = 1;

	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EFAULT, neg_errno(read(zero, page, 8)));
	EXPECT_EQ(-EFAULT, remote_rw(&self->peer, THE_OFFSET, &value, true));
	EXPECT_EQ(-EPERM, neg_errno(pwrite(self->fd, &value, 8, THE_OFFSET)));
	if (gup >= 0) {
		EXPECT_EQ(0, gup_bytes(gup, GUP_PIN_FAST, page, 4096,
				       FOLL_WRITE));
		EXPECT_EQ(4096, gup_bytes(gup, GUP_PIN_FAST, page, 4096, 0));
		close(gup);
	}
	close(zero);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(8, remote_rw(&self->peer, THE_OFFSET, &value, true));
	store64(page, page_mark(SEED, THE_PAGE));
}

/* A writer sleeps until it is let go; everybody else goes on */
static void wait_for_release(struct __test_metadata *_metadata,
			     FIXTURE_DATA(protect) *self, bool by_resolve)
{
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	self->peer.arg->value = THE_OFFSET + 100;
	ASSERT_TRUE(peer_tell(&self->peer, peer_store_offset));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_FAULT, ev.type);
	EXPECT_EQ(THE_OFFSET, ev.offset);
	EXPECT_EQ(4096, ev.length);
	EXPECT_EQ(self->peer.pid, ev.pid);
	EXPECT_TRUE(ev.flags & MEMFD_EVENT_F_WAITING);
	sleep_ms(SHORT_MS);
	EXPECT_EQ(0, self->peer.arg->out.done);
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
	EXPECT_EQ(0, self->map[THE_OFFSET + 100]);
	EXPECT_EQ(0, peer_call(&self->reader, peer_check));
	if (by_resolve) {
		EXPECT_EQ(0, resolve(self->nfd, ev.cookie,
				     MEMFD_RESOLVE_ALLOW));
	} else {
		EXPECT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	}
	EXPECT_EQ(0, peer_answer(&self->peer));
	EXPECT_EQ(1, self->map[THE_OFFSET + 100]);
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
}

TEST_F(protect, wait_unprotect)
{
	wait_for_release(_metadata, self, false);
}

TEST_F(protect, wait_resolve)
{
	wait_for_release(_metadata, self, true);
}

/* The handler dies: its writers go on, in shared mappings too */
TEST_F(protect, wait_closed)
{
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	self->peer.arg->value = THE_OFFSET + 100;
	ASSERT_TRUE(peer_tell(&self->peer, peer_store_offset));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	close(self->nfd);
	EXPECT_EQ(0, peer_answer(&self->peer));
	EXPECT_EQ(1, self->map[THE_OFFSET + 100]);
	expect_stores(_metadata, self, THE_PAGE + 1, 0);
	self->nfd = sys_memfd_notify(self->fd, 0);
	EXPECT_LE(0, self->nfd);
}

/* Every store of every mapping is in the log, once */
TEST_F(protect, async)
{
	struct memfd_range ranges[8];
	const unsigned int pages[3] = { 3, 600, 1500 };

	NEED(features(self->nfd) & MEMFD_FEATURE_ASYNC, "no ASYNC");
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_ASYNC));
	for (int turn = 0; turn < 3; turn++) {
		EXPECT_EQ(0, try_store(self->map + pages[0] * 4096 + 9, 1));
		self->peer.arg->value = pages[1] * 4096 + 9;
		EXPECT_EQ(0, peer_call(&self->peer, peer_store_offset));
		EXPECT_EQ(0, peer_call(&self->peer, peer_store_offset));
		EXPECT_EQ(0, try_store(self->skewed + pages[2] * 4096 + 9, 1));
		EXPECT_EQ(3, scan_range(self->nfd, 0, 0, ranges, 8,
					MEMFD_SCAN_REPROTECT, NULL));
		for (int i = 0; i < 3; i++) {
			EXPECT_EQ(pages[i] * 4096, ranges[i].offset);
			EXPECT_EQ(4096, ranges[i].length);
		}
		EXPECT_EQ(0, scan_range(self->nfd, 0, 0, ranges, 8, 0, NULL));
	}
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, wrong_pages(self->map, 0, FILE_PAGES, SEED));
}

TEST_HARNESS_MAIN
