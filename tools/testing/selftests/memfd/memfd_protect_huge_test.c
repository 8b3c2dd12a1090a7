// SPDX-License-Identifier: GPL-2.0-only
/*
 * Huge pages of memfds with MFD_ALLOW_PROTECT: they are mapped by huge entries where
 * nothing is protected, and by small ones where something is.
 *
 * Needs root, for /sys/kernel/mm/transparent_hugepage/shmem_enabled.
 */
#include "memfd_protect_paths.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define HUGE_KB		2048UL
#define HUGE_SIZE	(HUGE_KB << 10)
#define NR_HUGE		2
#define SIZE		(NR_HUGE * HUGE_SIZE)
#define THE_PAGE	77

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/* The number that a line of a file of /proc has, -1 without such a line. */
static long proc_number(const char *path, const char *key, const char *behind)
{
	static char text[1 << 20];
	char *line = text, pattern[64];

	if (!read_file(path, text, sizeof(text)))
		return -1;
	if (behind)
		line = strstr(text, behind);
	snprintf(pattern, sizeof(pattern), "\n%s:", key);
	line = line ? strstr(line, pattern) : NULL;
	return line ? atol(line + strlen(pattern)) : -1;
}

/* kB that a mapping has by huge entries */
static long huge_kb(const char *map)
{
	char start[32];

	snprintf(start, sizeof(start), "%lx-", (unsigned long)map);
	return proc_number("/proc/self/smaps", "ShmemPmdMapped", start);
}

/* An address at which huge pages can be mapped */
static char *map_huge(int fd, int prot, int flags, size_t offset)
{
	char *area, *map;

	area = mmap(NULL, SIZE + HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		return area;
	map = (char *)(((uintptr_t)area + HUGE_SIZE - 1) & -HUGE_SIZE);
	munmap(area, SIZE + HUGE_SIZE);
	return mmap(map, SIZE - offset, prot, flags | MAP_FIXED, fd, offset);
}

static void touch(const char *map, size_t size)
{
	for (size_t i = 0; i < size; i += page_size())
		(void)*(volatile const char *)(map + i);
}

/* A word of a page that nobody else stores to */
static uint64_t *word(char *map, size_t page)
{
	return (uint64_t *)(map + page * page_size());
}

static long store(void *addr)
{
	*(volatile uint64_t *)addr += 1;
	return 0;
}

static int stores(char *map, size_t page)
{
	struct outcome out = {};

	run_guarded(store, word(map, page), &out);
	return out.sig;
}

/* A file of two huge pages, mapped */
struct file {
	int fd;
	int nfd;
	char *map;
	size_t pages;		/* of 2 MiB */
	char before[64];	/* shmem_enabled */
};

/* NULL, or why there are no huge pages */
static const char *file_init(struct file *f)
{
	f->fd = -1;
	f->nfd = -1;
	f->pages = HUGE_SIZE / page_size();
	f->before[0] = 0;
	if (!set_shmem_huge("always", f->before, sizeof(f->before)))
		return "no huge pages of shmem";
	f->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (f->fd < 0 || ftruncate(f->fd, SIZE))
		return "no file";
	f->map = map_huge(f->fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	if (f->map == MAP_FAILED)
		return "no mapping";
	memset(f->map, 0, SIZE);
	if (proc_number("/proc/meminfo", "ShmemHugePages", NULL) < (long)(NR_HUGE * HUGE_KB))
		return "no memory for huge pages";
	f->nfd = sys_memfd_notify(f->fd, 0);
	return f->nfd < 0 ? "no event fd" : NULL;
}

static void file_exit(struct file *f)
{
	if (f->before[0])
		set_shmem_huge(f->before, NULL, 0);
	close(f->nfd);
	close(f->fd);
}

FIXTURE(huge) {
	struct file file;
	int fd;
	int nfd;
	char *map;
	size_t pages;
};

FIXTURE_SETUP(huge)
{
	const char *why = file_init(&self->file);

	if (why)
		SKIP(return, "%s", why);
	self->fd = self->file.fd;
	self->nfd = self->file.nfd;
	self->map = self->file.map;
	self->pages = self->file.pages;
}

FIXTURE_TEARDOWN(huge)
{
	file_exit(&self->file);
}

TEST_F(huge, by_huge_entries)
{
	char *other = map_huge(self->fd, PROT_READ, MAP_SHARED, 0);

	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	touch(other, SIZE);
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(other));
}

/* What is not protected stays mapped, and the folio whole */
TEST_F(huge, others_do_not_fault)
{
	long whole = proc_number("/proc/meminfo", "ShmemHugePages", NULL);
	long before;

	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ((NR_HUGE - 1) * HUGE_KB, huge_kb(self->map));
	EXPECT_EQ(whole, proc_number("/proc/meminfo", "ShmemHugePages", NULL));

	before = faults();
	for (size_t i = 0; i < NR_HUGE * self->pages; i++)
		if (i != THE_PAGE)
			*word(self->map, i) = i;
	EXPECT_EQ(before, faults());
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE));
	for (size_t i = 0; i < NR_HUGE * self->pages; i++)
		EXPECT_EQ(i == THE_PAGE ? 0 : i, *word(self->map, i));
}

/*
 * A file that ends in a huge page: what is stored behind the end would be there when the
 * file has grown, and nobody would have been asked. Returns the word that was stored
 * there, or -1 if it could not be.
 */
static long behind_the_end(size_t pages, unsigned int mode)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT), sig;
	char *map = map_huge(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	size_t page = pages - 50;
	long seen;

	if (fd < 0 || map == MAP_FAILED || ftruncate(fd, HUGE_SIZE - 100 * page_size()) ||
	    stores(map, THE_PAGE))
		return -2;
	/* Loads map what is around them, too */
	touch(map + THE_PAGE * page_size(), 4 * page_size());
	sig = stores(map, page);
	if ((mode != MODE_NONE && protect_pages(fd, page, 1, mode)) ||
	    ftruncate(fd, HUGE_SIZE))
		return -3;
	seen = *word(map, page);
	munmap(map, SIZE);
	close(fd);
	return sig ? -1 : seen;
}

TEST_F(huge, not_where_the_file_ends)
{
	EXPECT_EQ(-1, behind_the_end(self->pages, MODE_NONE));
	EXPECT_EQ(-1, behind_the_end(self->pages, MEMFD_PROTECT_DENY));
	if (!debug_set("disable", "end", 1))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	/* It is cleared when the file grows, nevertheless */
	EXPECT_EQ(0, behind_the_end(self->pages, MODE_NONE));
	EXPECT_EQ(0, behind_the_end(self->pages, MEMFD_PROTECT_DENY));
	debug_set("disable", "grow", 1);
	EXPECT_EQ(1, behind_the_end(self->pages, MODE_NONE));
	EXPECT_EQ(1, behind_the_end(self->pages, MEMFD_PROTECT_DENY));
	debug_set("disable", "grow", 0);
	debug_set("disable", "end", 0);
}

/* As a whole: who is refused changes nothing */
TEST_F(huge, all_of_it)
{
	long before;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 2 * self->pages, MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < NR_HUGE * self->pages; i += 63)
		EXPECT_EQ(SIGBUS, stores(self->map, i));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	before = faults();
	for (size_t i = 0; i < NR_HUGE * self->pages; i++)
		EXPECT_EQ(0, stores(self->map, i));
	EXPECT_EQ(before + NR_HUGE, faults());
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
}

/* All of it is protected, then a part of it is let go */
TEST_F(huge, and_a_part_is_let_go)
{
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 2));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE - 1));
	EXPECT_EQ(0, stores(self->map, THE_PAGE));
	EXPECT_EQ((NR_HUGE - 1) * HUGE_KB, huge_kb(self->map));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE - 1));
	EXPECT_EQ(0, stores(self->map, THE_PAGE + 1));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE + 2));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, stores(self->map, THE_PAGE + 2));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
}

/* A log of all of it: each page is told once */
TEST_F(huge, all_of_it_logged)
{
	struct memfd_range ranges[4];

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_ASYNC));
	EXPECT_EQ(0, stores(self->map, THE_PAGE));
	EXPECT_EQ(0, stores(self->map, THE_PAGE + 2));
	EXPECT_EQ(0, stores(self->map, THE_PAGE));
	ASSERT_EQ(2, scan_range(self->nfd, 0, 0, ranges, 4, MEMFD_SCAN_REPROTECT, NULL));
	EXPECT_EQ(THE_PAGE * page_size(), ranges[0].offset);
	EXPECT_EQ((THE_PAGE + 2) * page_size(), ranges[1].offset);
	EXPECT_EQ(page_size(), ranges[0].length);
	EXPECT_EQ(0, stores(self->map, THE_PAGE + 1));
	ASSERT_EQ(1, scan_range(self->nfd, 0, 0, ranges, 4, 0, NULL));
	EXPECT_EQ((THE_PAGE + 1) * page_size(), ranges[0].offset);
}

TEST_F(huge, in_every_process)
{
	struct writer first, second;
	struct memfd_event ev;

	ASSERT_TRUE(writer_start(&first, self->nfd, store, word(self->map, THE_PAGE)));
	EXPECT_TRUE(writer_finishes(&first));
	EXPECT_EQ(1, *word(self->map, THE_PAGE));
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&second, self->nfd, store, word(self->map, THE_PAGE)));
	EXPECT_TRUE(writer_blocks(&second));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(THE_PAGE * page_size(), ev.offset);
	EXPECT_EQ(page_size(), ev.length);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&second));
	EXPECT_EQ(2, *word(self->map, THE_PAGE));
	writer_free(&first);
	writer_free(&second);
}

/* A process that has mapped it by huge entries, and then is told to store */
static long store_when_gone(void *arg)
{
	char *map = arg;

	touch(map, SIZE);
	map[SIZE - 1] = 1;
	while (map[SIZE - 1] != 2)
		usleep(500);
	return store(word(map, THE_PAGE));
}

TEST_F(huge, of_others)
{
	struct writer w;

	ASSERT_TRUE(writer_start(&w, self->nfd, store_when_gone, self->map));
	while (((volatile char *)self->map)[SIZE - 1] != 1)
		usleep(500);
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	self->map[SIZE - 1] = 2;
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(SIGBUS, w.out->sig);
	EXPECT_EQ(0, *word(self->map, THE_PAGE));
	writer_free(&w);
}

TEST_F(huge, protected_before_it_is_mapped)
{
	char *other;

	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	other = map_huge(self->fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	touch(other, SIZE);
	EXPECT_EQ((NR_HUGE - 1) * HUGE_KB, huge_kb(other));
	EXPECT_EQ(0, stores(other, THE_PAGE + 1));
	EXPECT_EQ(SIGBUS, stores(other, THE_PAGE));
	/* MADV_COLLAPSE does not change that */
	EXPECT_NE(0, madvise(other, HUGE_SIZE, MADV_COLLAPSE));
	EXPECT_EQ(SIGBUS, stores(other, THE_PAGE));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	EXPECT_EQ(0, madvise(other, HUGE_SIZE, MADV_COLLAPSE));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(other));
	EXPECT_EQ(0, stores(other, THE_PAGE));
}

TEST_F(huge, huge_again)
{
	long before;

	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 2, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	EXPECT_EQ(0, stores(self->map, THE_PAGE));
	EXPECT_EQ((NR_HUGE - 1) * HUGE_KB, huge_kb(self->map));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE + 1, 1));
	EXPECT_EQ(0, stores(self->map, THE_PAGE + 1));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	before = faults();
	memset(self->map, 1, SIZE);
	EXPECT_EQ(before, faults());
}

/* What is in the log may be written; when it is taken it may not any more */
TEST_F(huge, with_a_log)
{
	struct memfd_range range;

	ASSERT_EQ(0, protect_pages(self->fd, 0, self->pages, MEMFD_PROTECT_ASYNC));
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(0, stores(self->map, THE_PAGE + i));
		EXPECT_EQ((NR_HUGE - 1) * HUGE_KB, huge_kb(self->map));
		EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1, MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_EQ((THE_PAGE + i) * page_size(), range.offset);
		EXPECT_EQ(page_size(), range.length);
	}
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, stores(self->map, 0));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	EXPECT_EQ(0, scan_range(self->nfd, 0, 0, &range, 1, 0, NULL));
}

/* Who cannot write the file reads it by huge entries, whatever is protected */
TEST_F(huge, readers_keep_theirs)
{
	int reader = reopen_fd(self->fd, O_RDONLY);
	char *map, *private;

	ASSERT_LE(0, reader);
	map = map_huge(reader, PROT_READ, MAP_SHARED, 0);
	private = map_huge(self->fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	touch(map, SIZE);
	touch(private, SIZE);
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(map));
	EXPECT_EQ(0, stores(private, THE_PAGE));
	EXPECT_EQ(1, *word(private, THE_PAGE));
	EXPECT_EQ(0, *word(map, THE_PAGE));
	close(reader);
}

/* A right that comes later does not come for what is protected */
TEST_F(huge, read_only_meanwhile)
{
	ASSERT_EQ(0, mprotect(self->map, SIZE, PROT_READ));
	touch(self->map, SIZE);
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, mprotect(self->map, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE));
	EXPECT_EQ(0, stores(self->map, THE_PAGE + 1));
}

/* Pages are counted a little later, and for each processor by itself */
static long mlocked_is(bool (*is)(long now, long wanted), long wanted)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	long now;

	do {
		write_file("/proc/sys/vm/compact_memory", "1");
		write_file("/proc/sys/vm/stat_refresh", "1");
		now = proc_number("/proc/meminfo", "Mlocked", NULL);
	} while (!is(now, wanted) && now_ns() < end);
	return now;
}

static bool at_least(long now, long wanted)
{
	return now >= wanted;
}

static bool at_most(long now, long wanted)
{
	return now <= wanted;
}

/* Locked memory stays locked, and mapped */
TEST_F(huge, locked)
{
	long before = mlocked_is(at_least, 0), locked;

	ASSERT_EQ(0, mlock(self->map, SIZE));
	locked = mlocked_is(at_least, before + (SIZE >> 10));
	EXPECT_LE(before + (long)(SIZE >> 10), locked);
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ((NR_HUGE - 1) * HUGE_KB, huge_kb(self->map));
	EXPECT_LE(locked, mlocked_is(at_least, locked));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE));
	ASSERT_EQ(0, munlock(self->map, SIZE));
	EXPECT_GE(before, mlocked_is(at_most, before));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, stores(self->map, THE_PAGE));
}

/*
 * Pages that were read first are dirty in page-table entries only. Whoever does away
 * with those must not forget that, or reclaim drops the huge page.
 */
TEST_F(huge, stays_dirty)
{
	char *map;
	int fd;

	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	map = map_huge(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	touch(map, SIZE);
	ASSERT_EQ(NR_HUGE * HUGE_KB, huge_kb(map));
	memset(map, NEW_BYTE, SIZE);
	ASSERT_EQ(0, protect_pages(fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, unprotect_pages(fd, THE_PAGE, 1));
	/* Small entries become a huge one, which is clean, and goes */
	ASSERT_EQ(0, madvise(map, HUGE_SIZE, MADV_COLLAPSE));
	ASSERT_EQ(0, madvise(map, SIZE, MADV_DONTNEED));
	for (int i = 0; i < 50; i++) {
		touch(map, SIZE);
		madvise(map, SIZE, MADV_PAGEOUT);
		write_file("/proc/sys/vm/drop_caches", "1");
		ASSERT_TRUE(filled_with(map, SIZE, NEW_BYTE)) TH_LOG("turn %d", i);
	}
	close(fd);
}

/* Where it is mapped by a part of it, or not at such an address, there is no huge entry */
TEST_F(huge, not_aligned)
{
	char *map = map_huge(self->fd, PROT_READ | PROT_WRITE, MAP_SHARED, page_size());

	ASSERT_NE(MAP_FAILED, map);
	touch(map, SIZE - page_size());
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, stores(map, THE_PAGE - 1));
	EXPECT_EQ(0, stores(map, THE_PAGE));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, stores(map, THE_PAGE - 1));
	EXPECT_EQ(0, huge_kb(map));
}

/* Moved as a whole, and to where it must be taken apart */
TEST_F(huge, moved)
{
	char *to = map_huge(self->fd, PROT_NONE, MAP_SHARED, 0);

	to = mremap(self->map, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	ASSERT_NE(MAP_FAILED, to);
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(to));
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, stores(to, THE_PAGE));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, stores(to, THE_PAGE));
	self->map = mmap(NULL, SIZE + 2 * HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	self->map = mremap(to, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   ((uintptr_t)self->map & -HUGE_SIZE) + HUGE_SIZE + page_size());
	ASSERT_NE(MAP_FAILED, self->map);
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE));
	EXPECT_EQ(1, *word(self->map, THE_PAGE));
}

/* A buffer of which the kernel got hold through a huge entry */
TEST_F(huge, pinned)
{
	struct job job = {
		.fd = self->fd, .nfd = -1, .map = self->map, .len = page_size(),
		.offset = THE_PAGE * page_size(), .byte = NEW_BYTE,
	};
	struct iovec iov = job_iov(&job);

	if (!job_init(&job, &paths[P_uring_read_fixed]) || job.path->prepare(&job) < 0 ||
	    io_uring_register_buffers(&job.ring, &iov, 1) < 0)
		SKIP(return, "no registered buffers");
	EXPECT_EQ(NR_HUGE * HUGE_KB, huge_kb(self->map));
	/* The folio is pinned as one */
	EXPECT_EQ(-EBUSY, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, stores(self->map, THE_PAGE));
	EXPECT_EQ(0, protect_pages(self->fd, self->pages, 1, MEMFD_PROTECT_DENY));
	io_uring_unregister_buffers(&job.ring);
	job_exit(&job);
	EXPECT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, stores(self->map, THE_PAGE));
}

/*
 * A file is cut off in a huge page that cannot be split, because somebody holds it pinned. What
 * he writes behind the end is not to be in the file when it has grown.
 */

static long grow_truncate(int fd, size_t page)
{
	return ftruncate(fd, (page + 9) * page_size());
}

static long grow_fallocate(int fd, size_t page)
{
	return fallocate(fd, 0, (page - 3) * page_size(), 9 * page_size());
}

static long grow_write(int fd, size_t page)
{
	return pwrite(fd, "end", 4, (page + 7) * page_size() + 5) - 4;
}

/* By less than a page each time, into the page but not to its end, which is mapped, too */
static long grow_append(int fd, size_t page)
{
	static const char line[3000];
	struct iovec iov = { (char *)line, sizeof(line) };
	struct stat st;

	do {
		if (pwritev2(fd, &iov, 1, -1, RWF_APPEND) != sizeof(line) || fstat(fd, &st))
			return -1;
	} while ((size_t)st.st_size <= page * page_size());
	return 0;
}

FIXTURE(cut_off) {
	struct file file;
	struct job job;
	size_t page;		/* behind the end */
};

FIXTURE_VARIANT(cut_off) {
	long (*grow)(int fd, size_t page);
	unsigned int mode;
};

#define CUT_OFF(_grow, _mode) \
FIXTURE_VARIANT_ADD(cut_off, _grow) { .grow = grow_##_grow, .mode = _mode }

CUT_OFF(truncate, MEMFD_PROTECT_DENY);
CUT_OFF(fallocate, MEMFD_PROTECT_DENY);
CUT_OFF(write, MEMFD_PROTECT_DENY);
CUT_OFF(append, MODE_NONE);

FIXTURE_SETUP(cut_off)
{
	const char *why = file_init(&self->file);

	if (why)
		SKIP(return, "%s", why);
	self->page = self->file.pages + 100;
	self->job = (struct job) {
		.fd = self->file.fd, .nfd = -1, .map = self->file.map, .len = page_size(),
		.offset = self->page * page_size(), .byte = NEW_BYTE,
	};
	if (!job_init(&self->job, &paths[P_uring_read_fixed]) ||
	    self->job.path->prepare(&self->job) < 0)
		SKIP(return, "no io_uring");
}

FIXTURE_TEARDOWN(cut_off)
{
	job_exit(&self->job);
	file_exit(&self->file);
}

/* The last byte of the page after all that; negative if something went wrong */
static int byte_there(FIXTURE_DATA(cut_off) *self, const FIXTURE_VARIANT(cut_off) *variant)
{
	struct iovec iov = job_iov(&self->job);
	size_t size = page_size(), page = self->page;
	int fd = self->file.fd;
	char before = 0, old = OLD_BYTE, *map = self->file.map;

	if (ftruncate(fd, SIZE) || pwrite(fd, &old, 1, (page - 50) * size) != 1 ||
	    io_uring_register_buffers(&self->job.ring, &iov, 1) < 0)
		return -1;
	if (ftruncate(fd, (page - 50) * size + 1))
		return -2;
	io_uring_prep_read_fixed(io_uring_get_sqe(&self->job.ring), self->job.src,
				 job_addr(&self->job), size, 0, 0);
	if (uring_do(&self->job) < 0 || io_uring_unregister_buffers(&self->job.ring) < 0)
		return -3;
	if (variant->mode != MODE_NONE && protect_pages(fd, page, 1, variant->mode))
		return -4;
	if (variant->grow(fd, page))
		return -5;
	if (pread(fd, &before, 1, (page - 50) * size) != 1 || before != old ||
	    unprotect_pages(fd, 0, 0))
		return -6;
	return map[(page + 1) * size - 1];
}

TEST_F(cut_off, grows)
{
	EXPECT_EQ(0, byte_there(self, variant));
	if (!debug_set("disable", "grow", 1))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	EXPECT_EQ(NEW_BYTE, byte_there(self, variant));
	debug_set("disable", "grow", 0);
}

/*
 * Somebody does things to the mapping while two threads store, and pages are protected
 * and unprotected: what is protected does not change, and no store is lost.
 */
struct storm {
	char *map;
	int fd;
	size_t pages;
	volatile bool stop;
	const char *skip;
};

struct storer {
	struct storm *storm;
	unsigned int seed;
	volatile unsigned long stored;
	volatile unsigned long tried;
};

static long bump(void *arg)
{
	struct storer *s = arg;
	size_t page = THE_PAGE + rand_r(&s->seed) % 4 * 11;

	s->tried++;
	__atomic_fetch_add(word(s->storm->map, page), 1, __ATOMIC_SEQ_CST);
	s->stored++;
	return 0;
}

static void *storer_loop(void *arg)
{
	struct storer *s = arg;

	while (!s->storm->stop) {
		struct outcome out = {};

		run_guarded(bump, s, &out);
		if (s->tried % 64 == 0)
			usleep(10);
	}
	return NULL;
}

static const char *by_nothing(struct storm *s)
{
	usleep(1000);
	return NULL;
}

static const char *by_dontneed(struct storm *s)
{
	madvise(s->map, HUGE_SIZE, MADV_DONTNEED);
	usleep(100);
	return NULL;
}

static const char *by_collapse(struct storm *s)
{
	madvise(s->map, HUGE_SIZE, MADV_COLLAPSE);
	return NULL;
}

static const char *by_pageout(struct storm *s)
{
	madvise(s->map, HUGE_SIZE, MADV_PAGEOUT);
	usleep(2000);
	madvise(s->map, HUGE_SIZE, MADV_COLLAPSE);
	return NULL;
}

static const char *by_migration(struct storm *s)
{
	static int node;
	void *pages[1] = { s->map };
	int status[1] = { -1 };

	if (access("/sys/devices/system/node/node1", F_OK))
		return "one node only";
	node = !node;
	touch(s->map, 1);
	syscall(__NR_move_pages, 0, 1, pages, &node, status, 2);
	return NULL;
}

static const char *by_clear_refs(struct storm *s)
{
	if (!write_file("/proc/self/clear_refs", "4"))
		return "no soft-dirty bits";
	usleep(500);
	return NULL;
}

static const char *by_fork(struct storm *s)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	waitpid(pid, NULL, 0);
	return NULL;
}

static const char *by_mlock(struct storm *s)
{
	mlock(s->map, HUGE_SIZE);
	munlock(s->map, HUGE_SIZE);
	return NULL;
}

static const char *by_another_mapping(struct storm *s)
{
	char *map = map_huge(s->fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0);

	touch(map, HUGE_SIZE);
	munmap(map, SIZE);
	return NULL;
}

FIXTURE(storm) {
	struct file file;
};

FIXTURE_VARIANT(storm) {
	const char *(*disturb)(struct storm *s);
};

#define STORM(_name) \
FIXTURE_VARIANT_ADD(storm, _name) { .disturb = by_##_name, }

STORM(nothing);
STORM(dontneed);
STORM(collapse);
STORM(pageout);
STORM(migration);
STORM(clear_refs);
STORM(fork);
STORM(mlock);
STORM(another_mapping);

FIXTURE_SETUP(storm)
{
	const char *why = file_init(&self->file);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(storm)
{
	file_exit(&self->file);
}

static void *disturb_loop(void *arg)
{
	struct storm *s = ((void **)arg)[0];
	const char *(*disturb)(struct storm *s) = ((void **)arg)[1];

	while (!s->stop && !s->skip)
		s->skip = disturb(s);
	return NULL;
}

static const struct { unsigned int first, nr; } parts[] = {
	{ THE_PAGE, 1 }, { 0, 512 }, { THE_PAGE - 7, 50 }, { 100, 700 },
};

TEST_F(storm, protects)
{
	struct storm s = {
		.map = self->file.map, .fd = self->file.fd, .pages = self->file.pages,
	};
	struct storer storers[2] = {{ &s, 1 }, { &s, 2 }};
	void *args[2] = { &s, variant->disturb };
	unsigned int rounds = 0, changed = 0, busy = 0;
	pthread_t threads[3];
	unsigned long stored = 0, found = 0;
	uint64_t end, before;
	char *view;

	view = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, s.fd, 0);
	ASSERT_NE(MAP_FAILED, view);
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, storer_loop, &storers[i]));
	ASSERT_EQ(0, pthread_create(&threads[2], NULL, disturb_loop, args));
	for (end = now_ns() + 5000000000ULL; now_ns() < end && !s.skip; rounds++) {
		unsigned int part = rounds % ARRAY_SIZE(parts);
		size_t page = part == 3 ? THE_PAGE + 33 : THE_PAGE;
		long ret = protect_pages(s.fd, parts[part].first, parts[part].nr,
					 MEMFD_PROTECT_DENY);

		if (ret == -EBUSY) {
			busy++;
			continue;
		}
		ASSERT_EQ(0, ret);
		before = *(volatile uint64_t *)word(view, page);
		usleep(1000);
		changed += *(volatile uint64_t *)word(view, page) != before;
		ASSERT_EQ(0, unprotect_pages(s.fd, 0, 0));
		usleep(1000);
	}
	s.stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	for (size_t i = 0; i < s.pages; i++)
		found += *word(view, i);
	for (int i = 0; i < 2; i++)
		stored += storers[i].stored;
	EXPECT_EQ(0, changed);
	EXPECT_EQ(stored, found);
	EXPECT_NE(0, stored);
	EXPECT_GT(rounds, busy);
	if (busy)
		TH_LOG("%u of %u calls failed with EBUSY", busy, rounds);
	if (s.skip)
		SKIP(return, "%s", s.skip);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
