// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings of several GiB, of which each whole one is a single link. Files are sparse:
 * one page of each page table is used, and those around the limits of GiBs.
 */
#include "ptshare_gib.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	120

/* What a mapping of whole GiBs costs a process, at most: PMD and PUD tables */
#define TABLES_KB	12

FIXTURE(gibs) {
	int fd;
	char *map;
	struct peer peer;
	long long tables;
	struct ptshare_counts counts;
};

/*
 * A file that this process has mapped and filled, and a peer that has mapped it; and
 * their end. Macros, because each fixture has a type of its own.
 */
#define MAP_GIBS(self) do { \
	if (!have_ptshare()) \
		SKIP(return, "no shared page tables"); \
	(self)->tables = ptshare_tables(); \
	(self)->counts = ptshare_counts(); \
	(self)->fd = share_file(TABLES, have_protect() ? MFD_ALLOW_PROTECT : 0); \
	ASSERT_LE(0, (self)->fd); \
	ASSERT_TRUE(peer_start_mapped(&(self)->peer, (self)->fd, 0, SIZE, \
				      PROT_RW)); \
	(self)->map = map_file((self)->fd, 0, SIZE, PROT_RW); \
	ASSERT_NE(MAP_FAILED, (self)->map); \
	fill((self)->map, 0, TABLES, SEED); \
	(self)->peer.arg->seed = SEED; \
} while (0)

#define UNMAP_GIBS(self) do { \
	struct ptshare_counts now; \
	\
	peer_kill(&(self)->peer); \
	munmap((self)->map, SIZE); \
	close((self)->fd); \
	EXPECT_TRUE(tables_become((self)->tables)); \
	now = ptshare_counts(); \
	EXPECT_EQ(now.link - (self)->counts.link, \
		  now.unlink - (self)->counts.unlink); \
} while (0)

FIXTURE_SETUP(gibs)
{
	MAP_GIBS(self);
}

FIXTURE_TEARDOWN(gibs)
{
	UNMAP_GIBS(self);
}

/* All pages are right for both, and shared */
#define EXPECT_ALL_RIGHT(self) do { \
	EXPECT_EQ(0, wrong((self)->map, 0, TABLES, SEED)); \
	EXPECT_EQ(file_kb((self)->fd), shared_kb((self)->map, SIZE)); \
	EXPECT_EQ(0, peer_call(&(self)->peer, peer_check_all)); \
	EXPECT_EQ(file_kb((self)->fd), \
		  peer_call(&(self)->peer, peer_shared_kb)); \
} while (0)

TEST_F(gibs, addresses)
{
	char *map;

	EXPECT_EQ(0, (uintptr_t)self->map % GIB);
	EXPECT_EQ(0, (uintptr_t)self->peer.arg->map % GIB);
	map = map_file(self->fd, 3 * TABLE_SIZE, 2 * GIB, PROT_RW);
	EXPECT_EQ(3 * TABLE_SIZE, (uintptr_t)map % GIB);
	munmap(map, 2 * GIB);
	/* No GiB as a whole */
	map = map_file(self->fd, TABLE_SIZE, GIB, PROT_RW);
	EXPECT_EQ(0, (uintptr_t)map % TABLE_SIZE);
	EXPECT_EQ(0, wrong(map - TABLE_SIZE, 1, GIB / TABLE_SIZE, SEED));
	munmap(map, GIB);
}

/* One link, one fault for each GiB, and no page tables */
TEST_F(gibs, cost_of_a_reader)
{
	long long before = table_kb(self->peer.pid);
	struct ptshare_counts counts = ptshare_counts();

	long faults = peer_call(&self->peer, peer_faults);

	EXPECT_EQ(NR_GIBS, ptshare_counts().link - counts.link);
	EXPECT_GE(TABLES_KB, table_kb(self->peer.pid) - before);
	/* Pages may have been on their way to other places: not every time. */
	for (int i = 0; i < 3 && faults > NR_GIBS + 1; i++) {
		TH_LOG("%ld faults", faults);
		faults = peer_call(&self->peer, peer_faults_of_child);
	}
	/* And one, maybe, that the peer has of its own */
	EXPECT_LE(NR_GIBS, faults);
	EXPECT_GE(NR_GIBS + 1, faults);
	EXPECT_ALL_RIGHT(self);
}

TEST_F(gibs, contents)
{
	EXPECT_ALL_RIGHT(self);
	self->peer.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&self->peer, peer_fill_all));
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED + 1));
	for (size_t i = 0; i < TABLES; i += 100)
		EXPECT_EQ(page_mark(SEED + 1, page_of(i)),
			  file64(self->fd, page_of(i) * page_size()));
}

/* A process's rights are its own, and two classes of tables */
TEST_F(gibs, readers)
{
	char *map = map_file(self->fd, 0, SIZE, PROT_READ);

	EXPECT_EQ(0, wrong(map, 0, TABLES, SEED));
	EXPECT_EQ((long long)(TABLES * 4), shared_kb(map, SIZE));
	EXPECT_EQ(SIGSEGV, try_store(map + GIB, 1));
	EXPECT_EQ(SIGSEGV, try_store(map + page_of(700) * page_size(), 1));
	EXPECT_EQ(0, mprotect(map, SIZE, PROT_RW));
	EXPECT_EQ(0, try_store(map + page_of(700) * page_size(), 1));
	fill(map, 700, 1, SEED);
	EXPECT_EQ(0, mprotect(self->map, SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(self->map + page_of(700) * page_size(), 1));
	EXPECT_EQ(0, mprotect(self->map, SIZE, PROT_RW));
	munmap(map, SIZE);
	EXPECT_ALL_RIGHT(self);
}

/* A change of a part of a GiB, which has links of 2 MiB until it is undone */
FIXTURE(part) {
	int fd;
	char *map;
	struct peer peer;
	long long tables;
	struct ptshare_counts counts;
};

FIXTURE_VARIANT(part) {
	size_t offset;
	size_t len;
};

FIXTURE_VARIANT_ADD(part, page) { GIB + 5 * TABLE_SIZE + 4096, 4096 };
FIXTURE_VARIANT_ADD(part, table) { GIB + 5 * TABLE_SIZE, TABLE_SIZE };
FIXTURE_VARIANT_ADD(part, first_table) { GIB, TABLE_SIZE };
FIXTURE_VARIANT_ADD(part, last_page) { 2 * GIB - 4096, 4096 };
FIXTURE_VARIANT_ADD(part, over_limit) { GIB - TABLE_SIZE, 2 * TABLE_SIZE };
FIXTURE_VARIANT_ADD(part, gib) { GIB, GIB };
FIXTURE_VARIANT_ADD(part, gib_and_page) { GIB, GIB + 4096 };
FIXTURE_VARIANT_ADD(part, two_halves) { GIB / 2, GIB };
FIXTURE_VARIANT_ADD(part, end) { SIZE - GIB / 2, GIB / 2 };

FIXTURE_SETUP(part)
{
	MAP_GIBS(self);
	ASSERT_EQ(0, peer_call(&self->peer, peer_check_all));
}

FIXTURE_TEARDOWN(part)
{
	UNMAP_GIBS(self);
}

/* It was undone: whole GiBs again, and nothing else left */
#define EXPECT_WHOLE_AGAIN(self, kb) do { \
	EXPECT_ALL_RIGHT(self); \
	EXPECT_EQ(kb, table_kb(getpid())) { \
		print_maps(); \
	} \
} while (0)

TEST_F(part, read_only)
{
	long long kb = table_kb(getpid());
	char *part = self->map + variant->offset;

	for (int turn = 0; turn < 2; turn++) {
		EXPECT_EQ(0, mprotect(part, variant->len, PROT_READ));
		EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED));
		EXPECT_EQ(SIGSEGV, try_store(part + 8, 1));
		EXPECT_EQ(SIGSEGV, try_store(part + variant->len - 8, 1));
		EXPECT_EQ(0, try_store(part - 8, 1));
		if (variant->offset + variant->len < SIZE) {
			EXPECT_EQ(0, try_store(part + variant->len + 8, 1));
		}
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill_all));
		EXPECT_EQ(0, mprotect(part, variant->len, PROT_RW));
	}
	/* The pages beside it that were stored to are as they were */
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 0, SIZE));
	fill(self->map, 0, TABLES, SEED);
	EXPECT_WHOLE_AGAIN(self, kb);
}

TEST_F(part, unmapped)
{
	long long kb = table_kb(getpid());
	char *part = self->map + variant->offset;

	EXPECT_EQ(0, munmap(part, variant->len));
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(SIGSEGV, try_load(part + variant->len - 1));
	EXPECT_EQ(0, wrong(self->map, 0, variant->offset / TABLE_SIZE, SEED));
	EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
	EXPECT_EQ(part, map_at(part, self->fd, variant->offset, variant->len,
			       PROT_RW));
	EXPECT_WHOLE_AGAIN(self, kb);
}

TEST_F(part, anonymous)
{
	long long kb = table_kb(getpid());
	char *part = self->map + variant->offset;

	EXPECT_EQ(part, mmap(part, variant->len, PROT_RW, MAP_FIXED |
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	store64(part, 1);
	store64(part + variant->len - 8, 2);
	EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
	EXPECT_EQ(part, map_at(part, self->fd, variant->offset, variant->len,
			       PROT_RW));
	EXPECT_WHOLE_AGAIN(self, kb);
}

/* What a part has that is mapped at another address */
static size_t moved_wrong(const char *there, size_t offset, size_t len)
{
	size_t bad = 0;

	for (size_t i = 0; i < TABLES; i++) {
		size_t at = page_of(i) * page_size();

		if (at >= offset && at < offset + len)
			bad += load64(there + at - offset) !=
			       page_mark(SEED, page_of(i));
	}
	return bad;
}

TEST_F(part, moved)
{
	long long kb = table_kb(getpid());
	char *part = self->map + variant->offset, *to = reserve_gibs(2 * GIB);

	for (int turn = 0; turn < 2; turn++) {
		/* Congruent, or not */
		char *there = to + (turn ? 4096 : variant->offset % GIB);

		ASSERT_EQ(there, mremap(part, variant->len, variant->len,
					MREMAP_MAYMOVE | MREMAP_FIXED, there));
		EXPECT_EQ(SIGSEGV, try_load(part));
		EXPECT_EQ(0, moved_wrong(there, variant->offset, variant->len));
		EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
		ASSERT_EQ(part, mremap(there, variant->len, variant->len,
				       MREMAP_MAYMOVE | MREMAP_FIXED, part));
		EXPECT_ALL_RIGHT(self);
	}
	munmap(to, 2 * GIB);
	/* Upper tables for the other place may be left */
	EXPECT_GE(kb + TABLES_KB, table_kb(getpid()));
}

TEST_F(part, dropped)
{
	long long kb = table_kb(getpid());

	EXPECT_EQ(0, madvise(self->map + variant->offset, variant->len,
			     MADV_DONTNEED));
	EXPECT_WHOLE_AGAIN(self, kb);
	madvise(self->map + variant->offset, variant->len, MADV_PAGEOUT);
	EXPECT_WHOLE_AGAIN(self, kb);
}

TEST_F(part, punched)
{
	size_t first = variant->offset / page_size();
	size_t behind = first + variant->len / page_size();

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, variant->offset,
			       variant->len));
	for (size_t i = 0; i < TABLES; i++) {
		uint64_t value = load64(self->map + page_of(i) * page_size());
		bool gone = page_of(i) >= first && page_of(i) < behind;

		EXPECT_EQ(gone ? 0 : page_mark(SEED, page_of(i)), value);
	}
	fill(self->map, 0, TABLES, SEED);
	EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
}

TEST_F(part, locked)
{
	long long kb = table_kb(getpid());
	char *part = self->map + variant->offset;

	EXPECT_EQ(0, mlock2(part, variant->len, MLOCK_ONFAULT));
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED));
	EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
	EXPECT_EQ(0, munlock(part, variant->len));
	EXPECT_WHOLE_AGAIN(self, kb);
}

TEST_F(part, denied)
{
	char *part = self->map + variant->offset;

	int nfd;

	if (!have_protect())
		SKIP(return, "no memfd_protect()");
	nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, nfd);
	for (int mode = MEMFD_PROTECT_ASYNC; mode <= MEMFD_PROTECT_DENY; mode++) {
		int sig = mode == MEMFD_PROTECT_DENY ? SIGBUS : 0;

		store64(part + 8, 0);
		store64(part + variant->len - 8, 0);
		ASSERT_EQ(0, protect_pages(self->fd, variant->offset /
					   page_size(), variant->len /
					   page_size(), mode));
		EXPECT_EQ(sig, try_store(part + 8, 0));
		EXPECT_EQ(sig, try_store(part + variant->len - 8, 0));
		EXPECT_EQ(0, try_store(part - 8, 0));
		EXPECT_EQ(0, peer_call(&self->peer, peer_check_all));
		ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
		EXPECT_EQ(0, peer_call(&self->peer, peer_fill_all));
	}
	close(nfd);
}

/* Both ends of a mapping come and go */
TEST_F(gibs, grows_and_shrinks)
{
	static const size_t sizes[] = {
		GIB / 2, GIB, 2 * GIB - 4096, 2 * GIB, 2 * GIB + TABLE_SIZE,
		SIZE - TABLE_SIZE, SIZE, GIB + 4096, SIZE,
	};
	char *area = reserve_gibs(SIZE);
	size_t len = 4096;
	char *map = map_at(area, self->fd, 0, len, PROT_RW);

	ASSERT_EQ(area, map);
	munmap(area + 4096, SIZE - 4096);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		ASSERT_EQ(map, mremap(map, len, sizes[i], 0));
		len = sizes[i];
		EXPECT_EQ(0, wrong(map, 0, len / TABLE_SIZE, SEED));
	}
	EXPECT_EQ(file_kb(self->fd), shared_kb(map, SIZE));
	/* And down from the top: what begins in the middle of a GiB */
	munmap(map, SIZE);
	for (size_t at = SIZE; at; at -= GIB / 4) {
		ASSERT_EQ(area + at - GIB / 4,
			  map_at(area + at - GIB / 4, self->fd, at - GIB / 4,
				 GIB / 4, PROT_RW));
		EXPECT_EQ(0, wrong(area, (at - GIB / 4) / TABLE_SIZE,
				   TABLES - (at - GIB / 4) / TABLE_SIZE, SEED));
	}
	EXPECT_EQ((long long)(TABLES * 4), shared_kb(area, SIZE));
	munmap(area, SIZE);
	EXPECT_ALL_RIGHT(self);
}

/* The same file once more, at an address that fits tables but not GiBs */
TEST_F(gibs, mapped_aslant)
{
	char *area = reserve_gibs(SIZE + GIB), *map;

	map = map_at(area + TABLE_SIZE, self->fd, 0, SIZE, PROT_RW);
	ASSERT_EQ(area + TABLE_SIZE, map);
	EXPECT_EQ(0, wrong(map, 0, TABLES, SEED));
	EXPECT_EQ((long long)(TABLES * 4), shared_kb(map, SIZE));
	fill(map, 0, TABLES, SEED + 1);
	EXPECT_EQ(0, wrong(self->map, 0, TABLES, SEED + 1));
	munmap(area, SIZE + GIB);
	fill(self->map, 0, TABLES, SEED);
	EXPECT_ALL_RIGHT(self);
}

TEST_F(gibs, forked)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid) {
		if (wrong(self->map, 0, TABLES, SEED))
			_exit(1);
		if (mprotect(self->map + GIB, 4096, PROT_NONE))
			_exit(2);
		fill(self->map, 0, TABLES / 3, SEED);
		_exit(munmap(self->map + GIB, GIB) ? 3 : 0);
	}
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_ALL_RIGHT(self);
}

/* What was cut off is gone for everybody, and comes back as zeros */
TEST_F(gibs, truncated)
{
	ASSERT_EQ(0, ftruncate(self->fd, GIB + TABLE_SIZE));
	EXPECT_EQ(SIGBUS, try_load(self->map + 2 * GIB));
	EXPECT_EQ(SIGBUS, try_load(self->map + GIB + TABLE_SIZE));
	EXPECT_EQ(0, wrong(self->map, 0, GIB / TABLE_SIZE + 1, SEED));
	ASSERT_EQ(0, ftruncate(self->fd, SIZE));
	EXPECT_EQ(0, load64(self->map + page_of(TABLES - 1) * page_size()));
	fill(self->map, 0, TABLES, SEED);
	EXPECT_ALL_RIGHT(self);
}

/* Swapped out and back */
TEST_F(gibs, reclaimed)
{
	EXPECT_ALL_RIGHT(self);
	for (int turn = 0; turn < 3; turn++) {
		madvise(self->map, SIZE, MADV_PAGEOUT);
		write_file("/proc/sys/vm/compact_memory", "1");
		EXPECT_ALL_RIGHT(self);
	}
}

/* Threads fault everywhere, while another one breaks GiBs and makes them whole */
struct crew {
	char *map;
	volatile bool stop;
	size_t wrong;
	unsigned long rounds;
};

static void *look_around(void *arg)
{
	struct crew *crew = arg;
	unsigned int seed = 1;

	while (!crew->stop) {
		size_t table = rand_r(&seed) % TABLES;

		crew->wrong += wrong(crew->map, table, 1, SEED);
		fill(crew->map, table, 1, SEED);
		crew->rounds++;
	}
	return NULL;
}

TEST_F(gibs, threads)
{
	struct crew crews[3] = { { self->map }, { self->map }, { self->map } };
	uint64_t end = now_ns() + 5000000000ULL;
	pthread_t threads[ARRAY_SIZE(crews)];
	unsigned int seed = 7, turns = 0;

	for (size_t i = 0; i < ARRAY_SIZE(crews); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, look_around,
					    &crews[i]));
	while (now_ns() < end) {
		size_t at = rand_r(&seed) % (SIZE / 4096) * 4096;
		size_t len = (1 + rand_r(&seed) % 1000) * 4096;
		char *addr = self->map + at;

		if (at + len > SIZE)
			len = SIZE - at;
		switch (turns++ % 4) {
		case 0:
			ASSERT_EQ(0, madvise(addr, len, MADV_RANDOM));
			ASSERT_EQ(0, madvise(addr, len, MADV_NORMAL));
			break;
		case 1:
			ASSERT_EQ(0, madvise(addr, len, MADV_DONTNEED));
			break;
		case 2:
			ASSERT_EQ(0, mlock2(addr, len, MLOCK_ONFAULT));
			ASSERT_EQ(0, munlock(addr, len));
			break;
		default:
			ASSERT_EQ(addr, map_at(addr, self->fd, at, len, PROT_RW));
		}
	}
	for (size_t i = 0; i < ARRAY_SIZE(crews); i++) {
		crews[i].stop = true;
		pthread_join(threads[i], NULL);
		EXPECT_EQ(0, crews[i].wrong);
		EXPECT_LT(0, crews[i].rounds);
	}
	TH_LOG("%u changes, %lu rounds", turns, crews[0].rounds);
	EXPECT_ALL_RIGHT(self);
}

TEST_HARNESS_MAIN
