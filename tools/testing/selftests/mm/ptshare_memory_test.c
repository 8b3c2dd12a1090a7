// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whose memory it is that is mapped through shared page tables: when it is
 * given back, for whom it counts, and what others may learn. Each case runs on
 * an ordinary memfd too, which says what is right.
 */
#include "ptshare_common.h"

#include <linux/fs.h>
#include <linux/mempolicy.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define DEBUG_DIR	"/sys/kernel/debug/ptshare"
#define TABLES		16UL
#define SIZE		(TABLES * TABLE_SIZE)
#define SIZE_KB		(SIZE >> 10)
#define SLACK_KB	512	/* of what others do in the meantime */
#define ROUNDS		5
#define TOUCHED		37UL	/* pages of the victim */
#define VICTIM		65533
#define STRANGER	65534

#ifndef MPOL_MF_MOVE
#define MPOL_MF_MOVE	2
#endif

static bool debug_rule(const char *name, bool off)
{
	char path[96];

	snprintf(path, sizeof(path), DEBUG_DIR "/disable/%s", name);
	return write_file(path, off ? "1" : "0");
}

FIXTURE(memory) {
	int fd;
	char *map;
	struct peer peer;
};

FIXTURE_VARIANT(memory) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(memory, shared) {
	.flags = MFD_SHARE_PGTABLES,
};

FIXTURE_VARIANT_ADD(memory, ordinary) {
	.flags = 0,
};

static int make_file(unsigned int flags, size_t size)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | flags);

	if (fd >= 0 && ftruncate(fd, size)) {
		close(fd);
		return -ENOSPC;
	}
	return fd;
}

FIXTURE_SETUP(memory)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	self->fd = make_file(variant->flags, SIZE);
	ASSERT_LE(0, self->fd);
	ASSERT_TRUE(peer_start(&self->peer, self->fd));
	self->map = map_file(self->fd, 0, SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
}

FIXTURE_TEARDOWN(memory)
{
	peer_exit(&self->peer);
	munmap(self->map, SIZE);
	close(self->fd);
}

/*
 * What a child has filled through a memfd of its own is there again as soon as
 * it was waited for. Returns kB that are not.
 */

enum end { EXIT, KILL, UNMAP_FIRST, GRANDCHILD_STAYS };

static void fill_and_end(unsigned int flags, enum end end)
{
	int fd = make_file(flags, SIZE);
	char *map = map_file(fd, 0, SIZE, PROT_RW);
	pid_t pid = 0;

	fill_pages(map, 0, SIZE / page_size(), 1);
	if (end == GRANDCHILD_STAYS) {
		pid = fork();
		if (!pid) {
			(void)load64(map);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
	}
	close(fd);
	if (end == KILL)
		raise(SIGKILL);
	if (end == UNMAP_FIRST)
		munmap(map, SIZE);
	_exit(0);
}

static long long kept_after(unsigned int flags, enum end end)
{
	long long before = meminfo_kb("Shmem");
	pid_t pid = fork();

	if (!pid)
		fill_and_end(flags, end);
	waitpid(pid, NULL, 0);
	return meminfo_kb("Shmem") - before;
}

TEST_F(memory, is_back_when_waited_for)
{
	long long tables = ptshare_tables();

	for (int i = 0; i < ROUNDS; i++) {
		EXPECT_GE(SLACK_KB, kept_after(variant->flags, EXIT));
		EXPECT_GE(SLACK_KB, kept_after(variant->flags, KILL));
		EXPECT_GE(SLACK_KB, kept_after(variant->flags, UNMAP_FIRST));
		EXPECT_GE(SLACK_KB,
			  kept_after(variant->flags, GRANDCHILD_STAYS));
		EXPECT_EQ(tables, ptshare_tables());
	}
}

TEST_F(memory, is_back_after_munmap_and_close)
{
	long long before = meminfo_kb("Shmem"), tables = ptshare_tables();

	for (int i = 0; i < ROUNDS; i++) {
		int fd = make_file(variant->flags, SIZE);
		char *map = map_file(fd, 0, SIZE, PROT_RW);

		fill_pages(map, 0, SIZE / page_size(), 1);
		EXPECT_LE(SIZE_KB, meminfo_kb("Shmem") - before);
		if (i & 1)
			close(fd);
		munmap(map, SIZE);
		EXPECT_EQ(tables, ptshare_tables());
		if (!(i & 1))
			close(fd);
		EXPECT_GE(SLACK_KB, meminfo_kb("Shmem") - before);
	}
}

/* The part that was mapped by one process alone goes with it */
static long map_second_half(void *p)
{
	struct peer_arg *arg = p;

	arg->map = map_file(arg->fd, SIZE / 2, SIZE / 2, PROT_RW);
	if (arg->map == MAP_FAILED)
		return -errno;
	fill_pages(arg->map, 0, SIZE / 2 / page_size(), 2);
	return 0;
}

static long unmap_half(void *p)
{
	struct peer_arg *arg = p;

	return neg_errno(munmap(arg->map, SIZE / 2));
}

TEST_F(memory, tables_of_one_process_go_with_it)
{
	long long tables = ptshare_tables();
	bool shared = variant->flags;

	ASSERT_EQ(0, munmap(self->map + SIZE / 2, SIZE / 2));
	store64(self->map, 1);
	ASSERT_EQ(0, peer_call(&self->peer, map_second_half));
	EXPECT_EQ(shared ? tables + 1 + (long)TABLES / 2 : tables,
		  ptshare_tables());
	ASSERT_EQ(0, peer_call(&self->peer, unmap_half));
	EXPECT_EQ(shared ? tables + 1 : tables, ptshare_tables());
}

/* With a worker that is late in place of the process, this is seen */
TEST(late_release_is_seen)
{
	long long kept = 0, before;

	if (!have_ptshare() || !debug_rule("release", true))
		SKIP(return, "no switches");
	write_file(DEBUG_DIR "/delay_us/teardown", "500000");
	before = ptshare_tables();
	for (int i = 0; i < ROUNDS && kept < SLACK_KB; i++)
		kept = kept_after(MFD_SHARE_PGTABLES, EXIT);
	write_file(DEBUG_DIR "/delay_us/teardown", "0");
	debug_rule("release", false);
	EXPECT_LT(SLACK_KB, kept);
	EXPECT_TRUE(tables_become(before));
}

/* status says what is mapped, whichever way */
static long long mapped_kb(pid_t pid)
{
	long long kb = pid_field(pid, "status", "RssShmem");
	long long shared = pid_field(pid, "status", "VmPtshare");

	return kb < 0 || shared < 0 ? -1 : kb + shared;
}

static long long badness(pid_t pid)
{
	char path[64], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/oom_score", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	close(fd);
	return atoll(text);
}

TEST_F(memory, counts_for_who_maps_it)
{
	long long kb = mapped_kb(getpid()), score = badness(getpid());

	ASSERT_LE(0, kb);
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	EXPECT_LE(kb + (long)SIZE_KB - SLACK_KB, mapped_kb(getpid()));
	EXPECT_GE(kb + (long)SIZE_KB + SLACK_KB, mapped_kb(getpid()));
	EXPECT_LT(score, badness(getpid()));
	ASSERT_EQ(0, munmap(self->map, SIZE / 2));
	EXPECT_GE(kb + (long)SIZE_KB / 2 + SLACK_KB, mapped_kb(getpid()));
	ASSERT_EQ(0, munmap(self->map + SIZE / 2, SIZE / 2));
	EXPECT_GE(kb + SLACK_KB, mapped_kb(getpid()));
	EXPECT_GE(score, badness(getpid()));
}

/* Who only reads gets all that writers have by one fault for each shared table */
TEST_F(memory, counts_for_who_reads_what_others_wrote)
{
	size_t step = variant->flags ? TABLE_SIZE : page_size();
	long long kb;
	char *map;

	fill_pages(self->map, 0, SIZE / page_size(), 1);
	kb = mapped_kb(getpid());
	ASSERT_LE(0, kb);
	map = map_file(self->fd, 0, SIZE, PROT_READ);
	ASSERT_NE(MAP_FAILED, map);
	for (size_t at = 0; at < SIZE; at += step)
		load64(map + at);
	EXPECT_LE(kb + (long)SIZE_KB - SLACK_KB, mapped_kb(getpid()));
	EXPECT_GE(kb + (long)SIZE_KB + SLACK_KB, mapped_kb(getpid()));
	munmap(map, SIZE);
}

/* What a reader does that maps all, reads it, and goes */

static long map_and_read(void *p)
{
	struct peer_arg *arg = p;

	arg->map = map_file(arg->fd, 0, SIZE, arg->prot);
	if (arg->map == MAP_FAILED)
		return -errno;
	for (size_t at = 0; at < SIZE; at += page_size())
		arg->value += load64(arg->map + at);
	return 0;
}

static long unmap_all(void *p)
{
	struct peer_arg *arg = p;

	return neg_errno(munmap(arg->map, SIZE));
}

static long protect_all_rw(void *p)
{
	struct peer_arg *arg = p;

	return neg_errno(mprotect(arg->map, SIZE, PROT_RW));
}

static long long private_kb(const void *map, size_t len)
{
	return smaps_sum(getpid(), map, len, "Private_Clean", NULL) +
	       smaps_sum(getpid(), map, len, "Private_Dirty", NULL);
}

static long long pss_kb(const void *map, size_t len)
{
	return smaps_sum(getpid(), map, len, "Pss", NULL);
}

/* Pages of which pagemap says all of @bits */
static size_t pages_with(const char *map, size_t len, uint64_t bits)
{
	size_t nr = len / page_size(), found = 0;
	uint64_t *entry = calloc(nr, sizeof(*entry));

	if (!read_pagemap(map, nr, entry))
		found = ~0UL;
	for (size_t i = 0; found != ~0UL && i < nr; i++)
		found += (entry[i] & bits) == bits;
	free(entry);
	return found;
}

static void private_again(struct __test_metadata *_metadata, char *map)
{
	EXPECT_EQ(SIZE_KB, pss_kb(map, SIZE));
	EXPECT_EQ(SIZE_KB, private_kb(map, SIZE));
	EXPECT_EQ(SIZE / page_size(),
		  pages_with(map, SIZE, PM_PRESENT | PM_EXCLUSIVE));
}

static void others_map_it(struct __test_metadata *_metadata, char *map)
{
	EXPECT_EQ(SIZE_KB / 2, pss_kb(map, SIZE));
	EXPECT_EQ(0, private_kb(map, SIZE));
	EXPECT_EQ(0, pages_with(map, SIZE, PM_EXCLUSIVE));
}

TEST_F(memory, is_private_when_the_reader_has_left)
{
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	private_again(_metadata, self->map);
	for (int prot = PROT_READ; prot <= PROT_RW; prot += PROT_WRITE) {
		self->peer.arg->prot = prot;
		ASSERT_EQ(0, peer_call(&self->peer, map_and_read));
		others_map_it(_metadata, self->map);
		ASSERT_EQ(0, peer_call(&self->peer, unmap_all));
		private_again(_metadata, self->map);
	}
}

/* A reader that becomes a writer does not count twice */
TEST_F(memory, is_shared_once_when_rights_change)
{
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	self->peer.arg->prot = PROT_READ;
	ASSERT_EQ(0, peer_call(&self->peer, map_and_read));
	ASSERT_EQ(0, peer_call(&self->peer, protect_all_rw));
	if (!variant->flags)
		others_map_it(_metadata, self->map);
	else
		private_again(_metadata, self->map);
	ASSERT_EQ(0, peer_call(&self->peer, unmap_all));
	private_again(_metadata, self->map);
}

/* MADV_PAGEOUT takes what nobody else maps, whatever others map of the file */
static long long left_kb(char *map, size_t len)
{
	if (madvise(map, len, MADV_PAGEOUT))
		return -1;
	return smaps_sum(getpid(), map, len, "Rss", NULL);
}

TEST_F(memory, can_be_paged_out_by_its_only_user)
{
	if (meminfo_kb("SwapTotal") < (long)SIZE_KB)
		SKIP(return, "no swap");
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	self->peer.arg->prot = PROT_READ;
	ASSERT_EQ(0, peer_call(&self->peer, map_and_read));
	EXPECT_EQ(SIZE_KB, left_kb(self->map, SIZE));
	ASSERT_EQ(0, peer_call(&self->peer, unmap_all));
	EXPECT_GE(SLACK_KB, left_kb(self->map, SIZE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, SIZE / page_size(), 1));

	ASSERT_EQ(0, munmap(self->map + SIZE / 2, SIZE / 2));
	ASSERT_EQ(0, peer_call(&self->peer, map_second_half));
	EXPECT_GE(SLACK_KB, left_kb(self->map, SIZE / 2));
}

/* move_pages() and mbind() too */
static int node_of(void *addr)
{
	int status = -1;

	if (syscall(__NR_move_pages, 0, 1UL, &addr, NULL, &status, 0))
		return -1;
	return status;
}

static int move_to(void *addr, int node)
{
	int status = -1;

	if (syscall(__NR_move_pages, 0, 1UL, &addr, &node, &status,
		    MPOL_MF_MOVE) < 0)
		return -errno;
	return status;
}

static int bind_to(void *addr, int node)
{
	unsigned long mask = 1UL << node;

	if (syscall(__NR_mbind, addr, SIZE / 2, MPOL_BIND, &mask, 64UL,
		    MPOL_MF_MOVE))
		return -errno;
	return node_of(addr);
}

TEST_F(memory, can_be_moved_by_its_only_user)
{
	char *page = self->map;
	int node;

	if (access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "one node");
	store64(page, 1);
	ASSERT_EQ(0, munmap(self->map + SIZE / 2, SIZE / 2));
	ASSERT_EQ(0, peer_call(&self->peer, map_second_half));
	node = node_of(page);
	EXPECT_EQ(!node, move_to(page, !node));
	EXPECT_EQ(node, bind_to(page, node));
	EXPECT_EQ(0, syscall(__NR_mbind, page, SIZE / 2, MPOL_DEFAULT, NULL,
			     0UL, 0));
	self->peer.arg->prot = PROT_RW;
	ASSERT_EQ(0, peer_call(&self->peer, unmap_half));
	ASSERT_EQ(0, peer_call(&self->peer, map_and_read));
	EXPECT_EQ(-EACCES, move_to(page, !node));
	EXPECT_EQ(node, node_of(page));
	EXPECT_EQ(1, load64(page));
}

/* Two users who must not learn of each other */

static bool become(uid_t uid)
{
	return !setresgid(uid, uid, uid) && !setresuid(uid, uid, uid) &&
	       !prctl(PR_SET_DUMPABLE, 1);
}

/* A user with descriptor and mapping of its own */
static long map_as_user(void *p)
{
	struct peer_arg *arg = p;
	int fd = open_again(arg->fd, arg->prot & PROT_WRITE ? O_RDWR : O_RDONLY);

	if (fd < 0 || !become(arg->flags))
		return -EPERM;
	arg->map = map_file(fd, 0, SIZE, arg->prot);
	if (arg->map == MAP_FAILED)
		return -errno;
	for (size_t at = 0; at < SIZE; at += page_size())
		arg->value += load64(arg->map + at);
	return 0;
}

static long forget_refs(void *p)
{
	return write_file("/proc/self/clear_refs", "1") &&
	       write_file("/proc/self/clear_refs", "3") ? 0 : -EIO;
}

static long touch_some(void *p)
{
	struct peer_arg *arg = p;

	for (size_t i = 0; i < TOUCHED; i++) {
		if (arg->prot & PROT_WRITE)
			store64(arg->map + i * page_size(), i);
		else
			arg->value += load64(arg->map + i * page_size());
	}
	return 0;
}

static long scanned(const char *map, uint64_t category)
{
	struct page_region regions[64];
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .start = (uintptr_t)map,
		.end = (uintptr_t)map + SIZE, .vec = (uintptr_t)regions,
		.vec_len = 64, .category_mask = category,
		.return_mask = category,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long pages = 0, nr = neg_errno(ioctl(fd, PAGEMAP_SCAN, &scan));

	close(fd);
	for (long i = 0; i < nr; i++)
		pages += (regions[i].end - regions[i].start) / page_size();
	return nr < 0 ? nr : pages;
}

/* All that a process can read of its own mapping, in pages, added up */
static long spy(void *p)
{
	static const char * const lines[] = {
		"Rss", "Referenced", "Shared_Dirty", "Private_Dirty",
	};
	static const uint64_t categories[] = {
		PAGE_IS_PRESENT, PAGE_IS_WRITTEN, PAGE_IS_SOFT_DIRTY,
	};
	struct peer_arg *arg = p;
	size_t at = 0;

	for (int i = 0; i < 4; i++)
		at += snprintf(arg->text + at, sizeof(arg->text) - at,
			       "%s %lld ", lines[i],
			       smaps_sum(getpid(), arg->map, SIZE, lines[i],
					 NULL));
	at += snprintf(arg->text + at, sizeof(arg->text) - at,
		       "soft-dirty %zu present %zu ",
		       pages_with(arg->map, SIZE, PM_SOFT_DIRTY),
		       pages_with(arg->map, SIZE, PM_PRESENT));
	for (int i = 0; i < 3; i++)
		at += snprintf(arg->text + at, sizeof(arg->text) - at,
			       "scan %ld ", scanned(arg->map, categories[i]));
	return 0;
}

static void spy_on(struct __test_metadata *_metadata, struct peer *stranger,
		   struct peer *victim, int prot, bool seen)
{
	char before[256];

	stranger->arg->prot = prot;
	victim->arg->prot = prot;
	stranger->arg->flags = STRANGER;
	victim->arg->flags = VICTIM;
	ASSERT_EQ(0, peer_call(victim, map_as_user));
	ASSERT_EQ(0, peer_call(stranger, map_as_user));
	ASSERT_EQ(0, peer_call(stranger, forget_refs));
	ASSERT_EQ(0, peer_call(stranger, spy));
	strcpy(before, stranger->arg->text);
	ASSERT_EQ(0, peer_call(victim, touch_some));
	ASSERT_EQ(0, peer_call(stranger, spy));
	if (seen) {
		EXPECT_STRNE(before, stranger->arg->text);
	} else {
		EXPECT_STREQ(before, stranger->arg->text);
	}
}

TEST_F(memory, reads_of_another_user_are_not_seen)
{
	struct peer victim;

	ASSERT_TRUE(peer_start(&victim, self->fd));
	ASSERT_EQ(0, fchmod(self->fd, 0666));
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	spy_on(_metadata, &self->peer, &victim, PROT_READ, false);
	peer_exit(&victim);
}

TEST_F(memory, writes_of_another_user_are_not_seen)
{
	struct peer victim;

	ASSERT_TRUE(peer_start(&victim, self->fd));
	ASSERT_EQ(0, fchmod(self->fd, 0666));
	spy_on(_metadata, &self->peer, &victim, PROT_RW, false);
	peer_exit(&victim);
}

TEST(spying_is_seen)
{
	struct peer victim, stranger;
	int fd;

	if (!have_ptshare() || !debug_rule("privacy", true))
		SKIP(return, "no switches");
	fd = make_file(MFD_SHARE_PGTABLES, SIZE);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(peer_start(&victim, fd));
	ASSERT_TRUE(peer_start(&stranger, fd));
	EXPECT_EQ(0, fchmod(fd, 0666));
	spy_on(_metadata, &stranger, &victim, PROT_READ, true);
	debug_rule("privacy", false);
	peer_exit(&stranger);
	peer_exit(&victim);
	close(fd);
}

/* clear_refs of a stranger takes nobody's accessed bits away */
TEST(accessed_bits_stay)
{
	struct peer stranger;
	long long kb;
	char *map;
	int fd;

	if (!have_ptshare() || !debug_rule("privacy", false))
		SKIP(return, "no switches");
	fd = make_file(MFD_SHARE_PGTABLES, SIZE);
	map = map_file(fd, 0, SIZE, PROT_READ);
	ASSERT_NE(MAP_FAILED, map);
	for (size_t at = 0; at < SIZE; at += page_size())
		(void)load64(map + at);
	ASSERT_TRUE(peer_start(&stranger, fd));
	stranger.arg->prot = PROT_READ;
	stranger.arg->flags = STRANGER;
	EXPECT_EQ(0, fchmod(fd, 0666));
	EXPECT_EQ(0, peer_call(&stranger, map_as_user));
	EXPECT_EQ(0, peer_call(&stranger, forget_refs));
	/* Only to look */
	debug_rule("privacy", true);
	kb = smaps_sum(getpid(), map, SIZE, "Referenced", NULL);
	EXPECT_EQ(SIZE_KB, kb);
	EXPECT_EQ(0, peer_call(&stranger, forget_refs));
	kb = smaps_sum(getpid(), map, SIZE, "Referenced", NULL);
	EXPECT_EQ(0, kb);
	debug_rule("privacy", false);
	peer_exit(&stranger);
	munmap(map, SIZE);
	close(fd);
}

/*
 * A secondary MMU may be the only one that uses a page. Who looks for idle pages asks
 * for the host, and those of all guests are asked.
 */
#define MMU_NOTIFIER	DEBUG_DIR "/mmu_notifier"
#define IDLE		"/sys/kernel/mm/page_idle/bitmap"

static uint64_t pfn_of(const char *addr)
{
	uint64_t entry = 0;

	return read_pagemap(addr, 1, &entry) && (entry & PM_PRESENT) ?
	       entry & ((1ULL << 55) - 1) : 0;
}

/* Marks it, and returns whether it is idle still when all have been asked, or -1 */
static int stays_idle(const char *addr)
{
	int fd = open(IDLE, O_RDWR | O_CLOEXEC);
	uint64_t pfn = pfn_of(addr), bit = 1ULL << (pfn % 64), word = bit;
	off_t offset = pfn / 64 * 8;
	int ret = -1;

	if (pfn && pwrite(fd, &word, 8, offset) == 8 &&
	    pread(fd, &word, 8, offset) == 8)
		ret = !!(word & bit);
	close(fd);
	return ret;
}

/* How often it was asked */
static long looks(int notifier)
{
	char text[64] = "";
	long told, asked;

	if (read(notifier, text, sizeof(text) - 1) <= 0 ||
	    sscanf(text, "%ld %ld", &told, &asked) != 2)
		return -1;
	return asked;
}

TEST_F(memory, is_idle_if_no_secondary_mmu_uses_it)
{
	int notifier = open(MMU_NOTIFIER, O_RDWR | O_CLOEXEC);
	long before;

	if (notifier < 0 || access(IDLE, R_OK))
		SKIP(return, "no CONFIG_PTSHARE_DEBUG or CONFIG_IDLE_PAGE_TRACKING");
	/* It is looked at when it is on a list of reclaim, to which pages come in batches */
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	EXPECT_EQ(1, stays_idle(self->map));
	before = looks(notifier);
	ASSERT_EQ(1, write(notifier, "1", 1));
	EXPECT_EQ(0, stays_idle(self->map));
	EXPECT_LT(before, looks(notifier));
	ASSERT_EQ(1, write(notifier, "0", 1));
	EXPECT_EQ(1, stays_idle(self->map));
	close(notifier);
}

/* DAMON, in the process's address space and in that of the machine */
#define DAMON		"/sys/kernel/mm/damon/admin/kdamonds"
#define CONTEXT		DAMON "/0/contexts/0"

static bool damon_start(const char *operations, uint64_t start, uint64_t end)
{
	char text[32];

	if (!write_file(DAMON "/nr_kdamonds", "1") ||
	    !write_file(DAMON "/0/contexts/nr_contexts", "1") ||
	    !write_file(CONTEXT "/operations", operations) ||
	    !write_file(CONTEXT "/targets/nr_targets", "1"))
		return false;
	write_file(CONTEXT "/monitoring_attrs/intervals/sample_us", "1000");
	write_file(CONTEXT "/monitoring_attrs/intervals/aggr_us", "10000");
	if (end) {
		write_file(CONTEXT "/targets/0/regions/nr_regions", "1");
		snprintf(text, sizeof(text), "%llu", (unsigned long long)start);
		write_file(CONTEXT "/targets/0/regions/0/start", text);
		snprintf(text, sizeof(text), "%llu", (unsigned long long)end);
		write_file(CONTEXT "/targets/0/regions/0/end", text);
	} else {
		snprintf(text, sizeof(text), "%d", getpid());
		write_file(CONTEXT "/targets/0/pid_target", text);
	}
	return write_file(DAMON "/0/state", "on");
}

static void damon_stop(void)
{
	write_file(DAMON "/0/state", "off");
	write_file(DAMON "/nr_kdamonds", "0");
}

TEST_F(memory, is_looked_at_by_damon)
{
	int notifier = open(MMU_NOTIFIER, O_RDWR | O_CLOEXEC);
	uint64_t end, pfn;
	long before;

	if (access(DAMON, R_OK))
		SKIP(return, "no CONFIG_DAMON_SYSFS");
	fill_pages(self->map, 0, SIZE / page_size(), 1);
	ASSERT_TRUE(damon_start("vaddr", 0, 0));
	for (int i = 0; i < 20; i++) {
		madvise(self->map, SIZE, MADV_DONTNEED);
		usleep(20000);
		EXPECT_EQ(0, wrong_pages(self->map, 0, SIZE / page_size(), 1));
	}
	damon_stop();

	pfn = pfn_of(self->map);
	ASSERT_NE(0, pfn);
	ASSERT_TRUE(damon_start("paddr", pfn * page_size(), (pfn + 1) * page_size()));
	before = looks(notifier);
	end = now_ns() + LONG_MS * 1000000ULL;
	while (notifier >= 0 && looks(notifier) == before && now_ns() < end)
		usleep(10000);
	if (notifier >= 0)
		EXPECT_LT(before, looks(notifier));
	damon_stop();
	EXPECT_EQ(0, wrong_pages(self->map, 0, SIZE / page_size(), 1));
	close(notifier);
}

TEST_HARNESS_MAIN
