// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfd_protect() of files whose processes link to whole GiBs: it protects page tables
 * as a whole, and the first store to each pushes that down. What a process sees is the
 * same as ever.
 */
#include "ptshare_gib.h"

#include <limits.h>
#include <linux/io_uring.h>
#include <sys/uio.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	120

#define ALL		0, 0		/* pages */
/* In a GiB that both have linked */
#define THE_TABLE	700
#define NEXT		(THE_TABLE * TABLE_PAGES + 511)	/* another page of it */

static char *address(char *map, size_t page)
{
	return map + page * page_size();
}

static long peer_try_store(void *data)
{
	struct peer_arg *arg = data;

	return try_store(arg->map + arg->value, 1);
}

static long peer_store_at(struct peer *p, size_t page)
{
	p->arg->value = page * page_size();
	return peer_call(p, peer_try_store);
}

/* Tables that were protected as a whole, and those to which that was pushed down */
struct levels {
	long long protect;
	long long push_down;
};

static struct levels levels_since(struct levels then)
{
	return (struct levels) {
		vmstat("ptshare_protect") - then.protect,
		vmstat("ptshare_push_down") - then.push_down,
	};
}

static struct levels levels(void)
{
	return levels_since((struct levels) { 0 });
}

/* Pages in the log, one by one */
static size_t logged(int nfd, size_t *pages, size_t nr, uint64_t flags)
{
	struct memfd_range ranges[64];
	uint64_t at = 0;
	size_t n = 0;
	int got;

	do {
		got = scan_range(nfd, at, 0, ranges, ARRAY_SIZE(ranges), flags,
				 &at);
		for (int i = 0; i < got; i++)
			for (uint64_t o = 0; o < ranges[i].length;
			     o += page_size(), n++)
				if (n < nr)
					pages[n] = (ranges[i].offset + o) /
						   page_size();
	} while (got == ARRAY_SIZE(ranges));
	return got < 0 ? SIZE_MAX : n;
}

FIXTURE(tables) {
	int fd;
	int nfd;
	char *map;
	struct peer peer;
	long long tables;
	struct levels levels;
};

FIXTURE_SETUP(tables)
{
	if (!have_ptshare() || !have_protect())
		SKIP(return, "no shared page tables, or no memfd_protect()");
	self->tables = ptshare_tables();
	self->fd = share_file(TABLES, MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, SIZE, PROT_RW));
	self->map = map_file(self->fd, 0, SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill(self->map, 0, TABLES, SEED);
	store64(address(self->map, NEXT), 1);
	self->peer.arg->seed = SEED;
	ASSERT_EQ(0, peer_call(&self->peer, peer_check_all));
	self->levels = levels();
}

FIXTURE_TEARDOWN(tables)
{
	peer_kill(&self->peer);
	munmap(self->map, SIZE);
	close(self->nfd);
	close(self->fd);
	EXPECT_TRUE(tables_become(self->tables));
}

#define EXPECT_LEVELS(self, protected, pushed) do { \
	EXPECT_EQ(protected, levels_since((self)->levels).protect); \
	EXPECT_EQ(pushed, levels_since((self)->levels).push_down); \
} while (0)

TEST_F(tables, deny)
{
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_LEVELS(self, TABLES, 0);
	for (size_t i = 0; i < TABLES; i += 37) {
		EXPECT_EQ(SIGBUS, try_store(address(self->map, page_of(i)), 1));
		EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, page_of(i)));
	}
	/* Nor where there is no page */
	EXPECT_EQ(SIGBUS, try_store(address(self->map, page_of(5) + 1), 1));
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED));
	EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
	/* Who is refused changes nothing */
	EXPECT_LEVELS(self, TABLES, 0);
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	self->peer.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill_all));
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED + 1));
	EXPECT_LEVELS(self, TABLES, TABLES);
}

/* A store pushes it down to the pages of one table, each of which is caught then */
TEST_F(tables, async)
{
	size_t pages[4];

	for (int turn = 0; turn < 3; turn++) {
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_ASYNC));
		EXPECT_LEVELS(self, TABLES + turn, turn);
		EXPECT_EQ(0, try_store(address(self->map, page_of(THE_TABLE)), 1));
		EXPECT_LEVELS(self, TABLES + turn, turn + 1);
		EXPECT_EQ(1, logged(self->nfd, pages, 4, 0));
		EXPECT_EQ(page_of(THE_TABLE), pages[0]);
		EXPECT_EQ(0, peer_store_at(&self->peer, NEXT));
		EXPECT_EQ(2, logged(self->nfd, pages, 4, MEMFD_SCAN_REPROTECT));
		EXPECT_EQ(NEXT, pages[1]);
		/* The scan protects two pages, not the table */
		EXPECT_LEVELS(self, TABLES + turn, turn + 1);
		EXPECT_EQ(0, peer_store_at(&self->peer, page_of(THE_TABLE)));
		EXPECT_EQ(1, logged(self->nfd, pages, 4, MEMFD_SCAN_REPROTECT));
		EXPECT_EQ(page_of(THE_TABLE), pages[0]);
	}
}

TEST_F(tables, wait)
{
	struct memfd_event event;
	struct peer *p = &self->peer;

	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_WAIT));
	p->arg->value = page_of(THE_TABLE) * page_size();
	ASSERT_TRUE(peer_tell(p, peer_try_store));
	ASSERT_TRUE(read_event_in(self->nfd, &event, LONG_MS));
	EXPECT_EQ(p->arg->value, event.offset);
	EXPECT_FALSE(p->arg->out.done);
	EXPECT_LEVELS(self, TABLES, 0);
	EXPECT_EQ(0, resolve(self->nfd, event.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_EQ(0, peer_answer(p));
	EXPECT_LEVELS(self, TABLES, 1);
	/* The next one waits as well */
	p->arg->value = NEXT * page_size();
	ASSERT_TRUE(peer_tell(p, peer_try_store));
	ASSERT_TRUE(read_event_in(self->nfd, &event, LONG_MS));
	EXPECT_EQ(0, resolve(self->nfd, event.cookie, MEMFD_RESOLVE_DENY));
	EXPECT_EQ(SIGBUS, peer_answer(p));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
}

/* What is no whole table has the entries of those pages changed, and no others */
TEST_F(tables, part)
{
	size_t first = THE_TABLE * TABLE_PAGES + 256, nr = 3 * TABLE_PAGES;

	ASSERT_EQ(0, protect_pages(self->fd, first, nr, MEMFD_PROTECT_DENY));
	EXPECT_LEVELS(self, 2, 0);
	EXPECT_EQ(0, try_store(address(self->map, first - 1), 1));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, first), 1));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, first + nr - 1), 1));
	EXPECT_EQ(0, try_store(address(self->map, first + nr), 1));
	EXPECT_EQ(0, peer_store_at(&self->peer, first + nr));
	EXPECT_LEVELS(self, 2, 0);
}

/* One page of a protected table may be written; its neighbours may not */
TEST_F(tables, part_lifted)
{
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, unprotect_pages(self->fd, page_of(THE_TABLE), 1));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, NEXT));
	EXPECT_EQ(0, try_store(address(self->map, page_of(THE_TABLE)), 1));
	EXPECT_EQ(0, peer_store_at(&self->peer, page_of(THE_TABLE)));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, NEXT));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, page_of(THE_TABLE) + 1), 1));
	EXPECT_LEVELS(self, TABLES, 1);
}

static long faults_of_stores(FIXTURE_DATA(tables) *self)
{
	size_t page = page_of(THE_TABLE);
	long before;

	store64(address(self->map, page), 1);
	before = faults();
	for (int i = 0; i < 1000; i++) {
		store64(address(self->map, page), i);
		store64(address(self->map, NEXT), i);
	}
	return faults() - before;
}

/*
 * Pages that are not protected stay writable, without another fault. The kernel may cause
 * some of its own, anywhere in the process: NUMA hinting, pages that it moves.
 */
TEST_F(tables, no_more_faults)
{
	long taken = 1;

	for (int i = 0; i < 5 && taken; i++) {
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
		ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
		taken = faults_of_stores(self);
	}
	EXPECT_EQ(0, taken);
}

/*
 * A store that is logged takes one fault: the first one of a table, which asks in the
 * guest's name, and those that the host's part logs.
 */
TEST_F(tables, logged_by_one_fault)
{
	size_t first = THE_TABLE * TABLE_PAGES, nr = TABLE_PAGES / 4;
	long taken = LONG_MAX;

	for (int turn = 0; turn < 5 && taken > (long)nr; turn++) {
		long before;

		ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
		for (size_t i = 0; i < nr; i++)
			store64(address(self->map, first + i), i);
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_ASYNC));
		before = faults();
		for (size_t i = 0; i < nr; i++)
			store64(address(self->map, first + i), turn);
		taken = faults() - before;
		EXPECT_EQ(nr, logged(self->nfd, NULL, 0, MEMFD_SCAN_REPROTECT));
	}
	EXPECT_EQ((long)nr, taken);
}

/* A mapping that links table by table: its entries in PMD tables know nothing of it */
static char *map_aslant(int fd)
{
	char *area = reserve_gibs(SIZE + GIB);

	return map_at(area + TABLE_SIZE, fd, 0, SIZE, PROT_RW);
}

static void unmap_aslant(char *map)
{
	munmap(map - TABLE_SIZE, SIZE + GIB);
}

TEST_F(tables, joined_later)
{
	char *map = map_aslant(self->fd);

	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_LEVELS(self, TABLES, 0);
	EXPECT_EQ(0, load64(address(map, page_of(THE_TABLE) + 1)));
	EXPECT_EQ(SIGBUS, try_store(address(map, page_of(THE_TABLE)), 1));
	EXPECT_EQ(SIGBUS, try_store(address(map, NEXT), 1));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, NEXT), 1));
	EXPECT_LT(0, levels_since(self->levels).push_down);
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	fill(map, 0, TABLES, SEED + 1);
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED + 1));
	unmap_aslant(map);
}

TEST_F(tables, there_before)
{
	char *map = map_aslant(self->fd);

	EXPECT_EQ(0, wrong(map, 0, TABLES, SEED));
	for (int turn = 0; turn < 2; turn++) {
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
		EXPECT_LEVELS(self, turn * TABLES, 0);
		EXPECT_EQ(SIGBUS, try_store(address(self->map, NEXT), 1));
		EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, NEXT));
		if (!turn) {
			EXPECT_EQ(SIGBUS, try_store(address(map, NEXT), 1));
			unmap_aslant(map);
		}
		ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	}
}

/* A GiB that is cut has links of its own, until it is whole again */
TEST_F(tables, cut)
{
	char *page = address(self->map, page_of(THE_TABLE + 9));

	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, mprotect(page, page_size(), PROT_READ));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, NEXT), 1));
	EXPECT_EQ(SIGSEGV, try_store(page, 1));
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, try_store(address(self->map, NEXT), 1));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, NEXT));
	ASSERT_EQ(0, mprotect(page, page_size(), PROT_RW));
	EXPECT_EQ(SIGBUS, try_store(page, 1));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	fill(self->map, 0, TABLES, SEED);
	EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
}

/* Other ways than stores, through page tables and past them */
enum way {
	WAY_REMOTE, WAY_READ, WAY_DIRECT, WAY_WRITE, NR_WAYS
};

static const char * const way_names[NR_WAYS] = {
	"process_vm_writev", "read", "direct read", "write",
};

static long take_way(enum way way, int fd, char *page, void *buf)
{
	struct iovec here = { buf, page_size() }, there = { page, page_size() };
	int from = -1;
	long ret;

	switch (way) {
	case WAY_REMOTE:
		return neg_errno(process_vm_writev(getpid(), &here, 1, &there,
						   1, 0));
	case WAY_READ:
		from = open("/dev/zero", O_RDONLY | O_CLOEXEC);
		break;
	case WAY_DIRECT:
		from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC | O_DIRECT);
		break;
	default:
		return neg_errno(pwrite(fd, buf, page_size(), 0));
	}
	ret = from < 0 ? -ENODEV : neg_errno(read(from, page, page_size()));
	close(from);
	return ret;
}

TEST_F(tables, other_ways)
{
	static char buf[4096];
	char *page = address(self->map, page_of(THE_TABLE));

	for (int way = 0; way < NR_WAYS; way++) {
		uint64_t mark = page_mark(SEED, page_of(THE_TABLE));
		long ret;

		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
		ret = take_way(way, self->fd, page, buf);
		TH_LOG("%s: %ld", way_names[way], ret);
		if (ret == -ENODEV)
			continue;
		EXPECT_GT(0, ret);
		EXPECT_EQ(mark, load64(page));
		EXPECT_EQ(mark, file64(self->fd, page_of(THE_TABLE) * 4096));
		ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
		EXPECT_EQ(4096, take_way(way, self->fd, page, buf));
		fill(self->map, 0, TABLES, SEED);
	}
}

/* Pages come and go while their tables are protected */
TEST_F(tables, reclaimed)
{
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	for (int turn = 0; turn < 3; turn++) {
		madvise(self->map, SIZE, MADV_PAGEOUT);
		write_file("/proc/sys/vm/compact_memory", "1");
		EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED));
		EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, NEXT));
		EXPECT_EQ(SIGBUS, try_store(address(self->map, NEXT), 1));
	}
	EXPECT_LEVELS(self, TABLES, 0);
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill_all));
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED));
}

/* A page that stays pinned for writing, or -1 */
static int pin_page(char *page)
{
	struct io_uring_params params = { 0 };
	struct iovec iov = { page, page_size() };
	int ring = syscall(__NR_io_uring_setup, 1, &params);

	if (ring >= 0 && syscall(__NR_io_uring_register, ring,
				 IORING_REGISTER_BUFFERS, &iov, 1)) {
		close(ring);
		return -1;
	}
	return ring;
}

/* A call that fails changes nothing */
TEST_F(tables, busy)
{
	char *page = address(self->map, page_of(THE_TABLE));
	size_t pages[4];
	int ring;

	ring = pin_page(page);
	if (ring < 0)
		SKIP(return, "no io_uring");
	EXPECT_EQ(-EBUSY, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, peer_store_at(&self->peer, NEXT));
	EXPECT_EQ(0, try_store(page, 1));
	EXPECT_EQ(0, logged(self->nfd, pages, 4, 0));
	close(ring);
	/* The ring is gone when a worker has let go of the page */
	for (int i = 0; i < 100 && protect_pages(self->fd, ALL,
						 MEMFD_PROTECT_DENY); i++)
		usleep(20000);
	EXPECT_EQ(SIGBUS, try_store(page, 1));
	EXPECT_EQ(SIGBUS, peer_store_at(&self->peer, NEXT));
	/* What is denied cannot be pinned either */
	EXPECT_EQ(-1, pin_page(page));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
}

/*
 * Stores everywhere, through mappings of both kinds and by GUP, while all is protected
 * again and again, and pages are reclaimed. What is not in the log has not changed.
 */
struct storm {
	struct peer_arg *arg;
	char *map;
	volatile bool stop;
	unsigned long stores;
};

static void *storm_stores(void *arg)
{
	struct storm *storm = arg;
	unsigned int seed = gettid();
	uint64_t value = 0;

	while (!storm->stop) {
		size_t table = rand_r(&seed) % 64 * 24;
		size_t page = table * TABLE_PAGES + rand_r(&seed) % 8;
		char *addr = address(storm->map, page);
		struct iovec here = { &value, 8 }, there = { addr, 8 };

		value = (uint64_t)gettid() << 32 | ++storm->stores;
		if (rand_r(&seed) % 4)
			store64(addr, value);
		else
			process_vm_writev(getpid(), &here, 1, &there, 1, 0);
		if (!(rand_r(&seed) % 64))
			usleep(100);
	}
	return NULL;
}

static long peer_storm(void *data)
{
	struct peer_arg *arg = data;
	struct storm storms[2] = { { .map = arg->map }, { .map = arg->map } };
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, storm_stores, &storms[i]))
			return -EAGAIN;
	while (!arg->stop)
		usleep(1000);
	for (int i = 0; i < 2; i++) {
		storms[i].stop = true;
		pthread_join(threads[i], NULL);
	}
	return storms[0].stores + storms[1].stores;
}

#define LOOKED_AT	512

static size_t looked_at(size_t i)
{
	return i / 8 * 24 * TABLE_PAGES + i % 8;
}

static bool in_log(const size_t *pages, size_t nr, size_t page)
{
	for (size_t i = 0; i < nr; i++)
		if (pages[i] == page)
			return true;
	return false;
}

TEST_F(tables, storm)
{
	static uint64_t before[LOOKED_AT], after[LOOKED_AT];
	static size_t pages[LOOKED_AT];
	uint64_t end = now_ns() + 20000000000ULL;
	unsigned int turns = 0, changed = 0, missed = 0;
	struct storm storm = { .map = self->map };
	char *aslant = NULL;
	struct levels now;
	pthread_t thread;
	size_t nr;

	ASSERT_EQ(0, pthread_create(&thread, NULL, storm_stores, &storm));
	self->peer.arg->stop = 0;
	ASSERT_TRUE(peer_tell(&self->peer, peer_storm));
	for (; now_ns() < end; turns++) {
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_ASYNC));
		logged(self->nfd, pages, 0, MEMFD_SCAN_REPROTECT);
		/* What is logged now may have been written before we look */
		for (size_t i = 0; i < LOOKED_AT; i++)
			before[i] = file64(self->fd, looked_at(i) * 4096);
		if (turns % 8 == 0) {
			aslant = map_aslant(self->fd);
			load64(address(aslant, looked_at(turns % LOOKED_AT)));
		} else if (turns % 8 == 4) {
			unmap_aslant(aslant);
			aslant = NULL;
		}
		if (turns % 3 == 0)
			madvise(self->map, GIB, MADV_PAGEOUT);
		if (aslant)
			store64(address(aslant, looked_at(turns % LOOKED_AT)),
				turns);
		for (size_t i = 0; i < LOOKED_AT; i++)
			after[i] = file64(self->fd, looked_at(i) * 4096);
		nr = logged(self->nfd, pages, LOOKED_AT, 0);
		for (size_t i = 0; i < LOOKED_AT; i++) {
			if (after[i] == before[i])
				continue;
			changed++;
			missed += !in_log(pages, nr, looked_at(i));
		}
	}
	storm.stop = true;
	pthread_join(thread, NULL);
	self->peer.arg->stop = 1;
	EXPECT_LT(0, peer_answer(&self->peer));
	if (aslant)
		unmap_aslant(aslant);
	now = levels_since(self->levels);
	TH_LOG("%u turns, %lu stores, %u pages changed, %lld tables protected, %lld pushed down",
	       turns, storm.stores, changed, now.protect, now.push_down);
	EXPECT_EQ(0, missed);
	EXPECT_LT(0, changed);
	EXPECT_LT(TABLES, now.protect);
	EXPECT_LT(0, now.push_down);
}

TEST_HARNESS_MAIN
