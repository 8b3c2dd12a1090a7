// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of what memfd_protect(2) means to bystanders: who uses the pipe or the open
 * file of a writer that waits is not kept waiting, and can be killed. Then what
 * splice(2) and sendfile(2) do if nobody knows how much there is to write, reads
 * that must not block, and users of the pages that are no writers: userfaultfd, and
 * FUSE servers.
 */
#include "memfd_protect_common.h"

#include <linux/fuse.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sendfile.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	120

#define DISABLE_DIR	"/sys/kernel/debug/memfd_protect/disable/"
#define RW		(PROT_READ | PROT_WRITE)

#define NR_PAGES	32
#define THE_PAGE	3

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif

FIXTURE(file) {
	int fd;
	int nfd;
	int pipe[2];
	size_t page;
	size_t size;
};

FIXTURE_SETUP(file)
{
	char *buf;

	self->page = page_size();
	self->size = NR_PAGES * self->page;
	self->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	buf = malloc(self->size);
	memset(buf, OLD_BYTE, self->size);
	ASSERT_EQ((ssize_t)self->size, pwrite(self->fd, buf, self->size, 0));
	free(buf);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	ASSERT_EQ(0, pipe2(self->pipe, O_CLOEXEC));
}

FIXTURE_TEARDOWN(file)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	close(self->nfd);
	close(self->fd);
}

/* What an operation works on */
struct op {
	int in;
	int out;
	off_t from;
	off_t to;
	size_t len;
	unsigned char byte;
};

static long op_splice(void *arg)
{
	struct op *op = arg;
	loff_t to = op->to;

	return neg_errno(splice(op->in, NULL, op->out, &to, op->len, 0));
}

static long op_sendfile(void *arg)
{
	struct op *op = arg;
	off_t from = op->from;

	if (lseek(op->out, op->to, SEEK_SET) < 0)
		return -ESPIPE;
	return neg_errno(sendfile(op->out, op->in, &from, op->len));
}

/* At the file position, and for as long as that takes */
static long op_write(void *arg)
{
	struct op *op = arg;
	char buf[op->len];

	memset(buf, op->byte, op->len);
	return neg_errno(write(op->out, buf, op->len));
}

static long op_read(void *arg)
{
	struct op *op = arg;
	char buf[op->len];

	return neg_errno(read(op->in, buf, op->len));
}

static long op_seek(void *arg)
{
	struct op *op = arg;

	return neg_errno(lseek(op->in, 0, SEEK_SET));
}

static bool put_bytes(int fd, size_t len)
{
	struct op op = { .out = fd, .len = len, .byte = NEW_BYTE };

	return op_write(&op) == (long)len;
}

/* Part 1: who uses the pipe of a splice() that waits */

/* splice() from an empty pipe sleeps; then data comes, and it waits */
static bool splice_waits(FIXTURE_DATA(file) *self, struct writer *w,
			 struct op *op, struct memfd_event *ev)
{
	*op = (struct op) {
		.in = self->pipe[0], .out = self->fd,
		.to = THE_PAGE * self->page, .len = 4 * self->page,
	};
	return !protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT) &&
	       writer_start(w, self->nfd, op_splice, op) &&
	       writer_sleeps(w) && put_bytes(self->pipe[1], self->page) &&
	       read_event(self->nfd, ev);
}

TEST_F(file, bystander_goes_on)
{
	struct op op, by_op = { .in = self->pipe[0], .out = self->pipe[1],
				.len = 1, .byte = NEW_BYTE };
	struct memfd_event ev;
	struct writer w, by;
	int bytes = 0;

	ASSERT_TRUE(splice_waits(self, &w, &op, &ev));
	EXPECT_EQ(MEMFD_EVENT_WRITE, ev.type);
	EXPECT_EQ(op.to, (off_t)ev.offset);
	EXPECT_EQ(self->page, ev.length);
	ASSERT_TRUE(writer_start(&by, self->nfd, op_write, &by_op));
	EXPECT_TRUE(writer_finishes(&by));
	EXPECT_EQ(1, by.out->ret);
	writer_free(&by);
	EXPECT_EQ(0, ioctl(self->pipe[0], FIONREAD, &bytes));
	EXPECT_EQ(self->page + 1, bytes);
	EXPECT_TRUE(writer_blocks(&w));

	/* What has come since is written as well: it belongs to the call */
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)self->page + 1, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, THE_PAGE, 1, NEW_BYTE));
	writer_free(&w);
}

/* Who comes while it sleeps in the pipe, and is killed after the data came */
TEST_F(file, bystander_is_killed)
{
	struct op op, by_op = { .in = self->pipe[0], .len = 1 };
	struct memfd_event ev;
	struct writer w, by[3];

	ASSERT_TRUE(splice_waits(self, &w, &op, &ev));
	for (int i = 0; i < 3; i++)
		ASSERT_TRUE(writer_start(&by[i], self->nfd, op_read, &by_op));
	for (int i = 0; i < 3; i++) {
		kill(by[i].pid, SIGKILL);
		EXPECT_TRUE(writer_reap(&by[i], LONG_MS));
		writer_free(&by[i]);
	}
	writer_kill(&w);
	EXPECT_TRUE(w.reaped);
	writer_free(&w);
}

TEST_F(file, lock_held_is_missed)
{
	struct op op, by_op = { .out = self->pipe[1], .len = 1 };
	struct memfd_event ev;
	struct writer w, by;

	if (!write_file(DISABLE_DIR "splice_lock", "1"))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	ASSERT_TRUE(splice_waits(self, &w, &op, &ev));
	ASSERT_TRUE(writer_start(&by, self->nfd, op_write, &by_op));
	EXPECT_TRUE(writer_blocks(&by));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_TRUE(writer_finishes(&by));
	writer_free(&w);
	writer_free(&by);
	EXPECT_TRUE(write_file(DISABLE_DIR "splice_lock", "0"));
}

/*
 * Each of several that write to one file by sendfile(2) gets on, a page at a time, as
 * many as there are processors and more. (They once tried to lock the inode only, and
 * kept each other from it.)
 */
TEST_F(file, splices_get_on)
{
	enum { NR = 6, ENOUGH = 50 };
	volatile unsigned int *done;
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	unsigned int behind = NR;
	pid_t pids[NR];

	done = mmap(NULL, self->page, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, done);
	for (unsigned int i = 0; i < NR; i++) {
		struct op op = { .to = i * self->page, .len = self->page };
		char path[64];

		pids[i] = fork();
		if (pids[i])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
		op.out = open(path, O_RDWR | O_CLOEXEC);
		op.in = sys_memfd_create(0);
		if (ftruncate(op.in, self->page))
			_exit(1);
		while (op_sendfile(&op) == (long)self->page)
			done[i]++;
		_exit(1);
	}
	while (behind && now_ns() < end) {
		usleep(10000);
		behind = 0;
		for (unsigned int i = 0; i < NR; i++)
			behind += done[i] < ENOUGH;
	}
	EXPECT_EQ(0, behind);
	for (unsigned int i = 0; i < NR; i++) {
		if (behind)
			TH_LOG("%u: %u times", i, done[i]);
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	munmap((void *)done, self->page);
}

TEST_F(file, splice_denied)
{
	struct memfd_event ev;
	struct writer w;
	struct op op;
	int bytes;

	ASSERT_TRUE(splice_waits(self, &w, &op, &ev));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EPERM, w.out->ret);
	EXPECT_EQ(0, ioctl(self->pipe[0], FIONREAD, &bytes));
	EXPECT_EQ(self->page, bytes);
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
	writer_free(&w);
}

/* Somebody else takes the data away meanwhile: it waits for more */
TEST_F(file, data_is_taken)
{
	struct op op, by_op = { .in = self->pipe[0], .len = self->page };
	struct memfd_event ev;
	struct writer w;

	ASSERT_TRUE(splice_waits(self, &w, &op, &ev));
	EXPECT_EQ((long)self->page, op_read(&by_op));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_TRUE(file_filled_with(self->fd, THE_PAGE, 1, OLD_BYTE));
	EXPECT_TRUE(put_bytes(self->pipe[1], self->page));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)self->page, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, THE_PAGE, 1, NEW_BYTE));
	writer_free(&w);
}

static void no_handler(int sig)
{
}

static long op_splice_interrupted(void *arg)
{
	struct sigaction act = { .sa_handler = no_handler };

	sigaction(SIGUSR1, &act, NULL);
	return op_splice(arg);
}

TEST_F(file, splice_interrupted)
{
	struct op op = { .in = self->pipe[0], .out = self->fd,
			 .to = THE_PAGE * self->page, .len = self->page };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_splice_interrupted, &op));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(put_bytes(self->pipe[1], self->page));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_TRUE(writer_sleeps(&w));
	kill(w.pid, SIGUSR1);
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EINTR, w.out->ret);
	writer_free(&w);
}

/* Milliseconds of CPU that a process has used */
static long cpu_ms(pid_t pid)
{
	char path[64], text[64];

	snprintf(path, sizeof(path), "/proc/%d/schedstat", pid);
	if (!read_file(path, text, sizeof(text)))
		return -1;
	return strtoull(text, NULL, 10) / 1000000;
}

/*
 * inode_lock() is held for long by a write(2) whose source does not come: splice()
 * sleeps, it neither spins nor holds the pipe.
 */
static long op_stalled_write(void *arg)
{
	struct op *op = arg;
	char *src = mmap(NULL, op->len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)src, op->len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		return neg_errno(-1);
	return neg_errno(pwrite(op->out, src, op->len, op->to));
}

TEST_F(file, inode_lock_is_busy)
{
	struct op stall = { .out = self->fd, .to = 20 * self->page,
			    .len = self->page };
	struct op op = { .in = self->pipe[0], .out = self->fd,
			 .to = THE_PAGE * self->page, .len = self->page };
	struct op by_op = { .out = self->pipe[1], .len = 1 };
	struct writer s, w, by;
	long cpu;

	ASSERT_TRUE(writer_start(&w, self->nfd, op_splice, &op));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(writer_start(&s, self->nfd, op_stalled_write, &stall));
	ASSERT_TRUE(writer_sleeps(&s));
	ASSERT_TRUE(put_bytes(self->pipe[1], self->page));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(writer_start(&by, self->nfd, op_write, &by_op));
	EXPECT_TRUE(writer_finishes(&by));
	cpu = cpu_ms(w.pid);
	sleep_ms(300);
	EXPECT_GT(100, cpu_ms(w.pid) - cpu);
	EXPECT_FALSE(w.out->done);
	writer_kill(&s);
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)self->page, w.out->ret);
	writer_free(&s);
	writer_free(&w);
	writer_free(&by);
}

/* Writers all over the file do not starve a splice() of a few megabytes */
static void *write_on(void *arg)
{
	struct op *op = arg;
	char *buf = malloc(op->len);

	memset(buf, NEW_BYTE, op->len);
	while (!__atomic_load_n(&op->in, __ATOMIC_RELAXED))
		if (pwrite(op->out, buf, op->len, op->to) < 0)
			break;
	free(buf);
	return NULL;
}

static void *feed_pipe(void *arg)
{
	struct op *op = arg;

	for (size_t done = 0; done < op->len; done += page_size())
		if (!put_bytes(op->out, page_size()))
			break;
	return NULL;
}

TEST_F(file, splice_among_writers)
{
	const size_t total = 1 << 20;
	struct op writers = { .out = self->fd, .to = 8 << 20, .len = 1 << 18 };
	struct op feed = { .out = self->pipe[1], .len = total };
	struct op op = { .in = self->pipe[0], .out = self->fd };
	pthread_t threads[3];
	long ret;

	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, write_on,
					    &writers));
	ASSERT_EQ(0, pthread_create(&threads[2], NULL, feed_pipe, &feed));
	for (size_t done = 0; done < total; done += ret) {
		op.to = done;
		op.len = total - done;
		ret = op_splice(&op);
		ASSERT_LT(0, ret);
	}
	__atomic_store_n(&writers.in, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	EXPECT_TRUE(file_filled_with(self->fd, 0, total / self->page,
				     NEW_BYTE));
}

/* Part 2: who shares the file position of a write() that waits */

TEST_F(file, position_is_not_locked)
{
	char path[64];
	struct op op = { .len = self->page, .byte = NEW_BYTE };
	struct memfd_event ev;
	struct writer w, by;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	op.out = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, op.out);
	op.in = op.out;
	ASSERT_EQ(0, protect_pages(self->fd, 0, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_TRUE(writer_sleeps(&w));

	ASSERT_TRUE(writer_start(&by, self->nfd, op_seek, &op));
	EXPECT_TRUE(writer_finishes(&by));
	writer_free(&by);
	ASSERT_TRUE(writer_start(&by, self->nfd, op_read, &op));
	EXPECT_TRUE(writer_finishes(&by));
	EXPECT_EQ((long)self->page, by.out->ret);
	writer_free(&by);
	ASSERT_TRUE(writer_start(&by, self->nfd, op_write, &op));
	kill(by.pid, SIGKILL);
	EXPECT_TRUE(writer_reap(&by, LONG_MS));
	writer_free(&by);

	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)self->page, w.out->ret);
	writer_free(&w);
	close(op.out);
}

/* Part 3: sources of which nobody knows how much they have */

/* What it returns is all that was written, and it ends at a protected page */
static void expect_count(struct __test_metadata *_metadata,
			 FIXTURE_DATA(file) *self, struct op *op, size_t page,
			 size_t nr)
{
	op->out = self->fd;
	op->to = page * self->page;
	op->len = (NR_PAGES - page) * self->page;
	EXPECT_EQ((long)(nr * self->page), op_sendfile(op));
	EXPECT_TRUE(file_filled_with(self->fd, page, nr, 0));
	EXPECT_TRUE(file_filled_with(self->fd, page + nr, NR_PAGES - page - nr,
				     OLD_BYTE));
	EXPECT_TRUE(no_event(self->nfd));
}

TEST_F(file, sendfile_ends_before_deny)
{
	struct op op = { .in = open("/dev/zero", O_RDONLY | O_CLOEXEC) };

	ASSERT_EQ(0, protect_pages(self->fd, 20, 1, MEMFD_PROTECT_DENY));
	expect_count(_metadata, self, &op, 1, 19);
	op.to = 20 * self->page;
	EXPECT_EQ(-EPERM, op_sendfile(&op));
	op.to = 20 * self->page + 100;
	EXPECT_EQ(-EPERM, op_sendfile(&op));
	/* To the very byte */
	op.to = 19 * self->page + 100;
	EXPECT_EQ((long)self->page - 100, op_sendfile(&op));
	EXPECT_TRUE(file_filled_with(self->fd, 20, NR_PAGES - 20, OLD_BYTE));
	close(op.in);
}

TEST_F(file, sendfile_ends_before_wait)
{
	struct op op = { .in = open("/dev/zero", O_RDONLY | O_CLOEXEC) };

	ASSERT_EQ(0, protect_pages(self->fd, 18, 2, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 25, 1, MEMFD_PROTECT_DENY));
	expect_count(_metadata, self, &op, 0, 18);
	close(op.in);
}

TEST_F(file, sendfile_from_proc)
{
	struct op op = { .in = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC),
			 .out = self->fd, .to = 20 * self->page - 100,
			 .len = self->size };
	char want[100], got[100];

	if (op.in < 0)
		SKIP(return, "no /proc/cpuinfo");
	ASSERT_EQ(0, protect_pages(self->fd, 20, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(100, op_sendfile(&op));
	EXPECT_TRUE(file_filled_with(self->fd, 20, NR_PAGES - 20, OLD_BYTE));
	EXPECT_EQ(100, pread(op.in, want, 100, 0));
	EXPECT_EQ(100, pread(self->fd, got, 100, op.to));
	EXPECT_EQ(0, memcmp(want, got, 100));
	close(op.in);
}

/* The first page waits, as with any source; the count ends before the next */
TEST_F(file, sendfile_waits_for_first)
{
	struct op op = { .in = open("/dev/zero", O_RDONLY | O_CLOEXEC),
			 .out = self->fd, .to = 2 * self->page,
			 .len = self->size };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 25, 1, MEMFD_PROTECT_DENY));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_sendfile, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(op.to, (off_t)ev.offset);
	EXPECT_EQ(self->page, ev.length);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)(23 * self->page), w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 2, 23, 0));
	EXPECT_TRUE(file_filled_with(self->fd, 25, NR_PAGES - 25, OLD_BYTE));
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&w);
	close(op.in);
}

/* Nothing to write, nothing to ask for */
TEST_F(file, sendfile_of_nothing)
{
	struct op op = { .in = sys_memfd_create(MFD_CLOEXEC), .out = self->fd,
			 .len = self->size };

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(0, op_sendfile(&op));
	ASSERT_EQ(0, ftruncate(op.in, self->page));
	op.from = self->page;
	EXPECT_EQ(0, op_sendfile(&op));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, op_sendfile(&op));
	EXPECT_TRUE(no_event(self->nfd));
	close(op.in);
}

/* A source with a size: the whole of it or nothing */
TEST_F(file, sendfile_whole_or_nothing)
{
	struct op op = { .in = sys_memfd_create(MFD_CLOEXEC), .out = self->fd,
			 .len = self->size };

	ASSERT_EQ(0, ftruncate(op.in, 21 * self->page));
	ASSERT_EQ(0, protect_pages(self->fd, 20, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EPERM, op_sendfile(&op));
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
	ASSERT_EQ(0, ftruncate(op.in, 20 * self->page));
	EXPECT_EQ((long)(20 * self->page), op_sendfile(&op));
	close(op.in);
}

/* What is in the pipe: all of it or nothing. What comes later: up to there */
TEST_F(file, splice_ends_before_deny)
{
	struct op op = { .in = self->pipe[0], .out = self->fd,
			 .len = self->size };
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_DENY));
	ASSERT_TRUE(put_bytes(self->pipe[1], 6 * self->page));
	EXPECT_EQ(-EPERM, op_splice(&op));
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
	op.len = 6 * self->page;
	EXPECT_EQ((long)op.len, op_read(&op));

	op.len = self->size;
	ASSERT_TRUE(writer_start(&w, self->nfd, op_splice, &op));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(put_bytes(self->pipe[1], 7 * self->page));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_LT(0, w.out->ret);
	EXPECT_GE((long)(5 * self->page), w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 5, NR_PAGES - 5, OLD_BYTE));
	writer_free(&w);
}

/* Part 4: reads that must not block */

static long read_nowait(int fd, size_t page, size_t nr)
{
	char buf[nr * page_size()];
	struct iovec iov = { buf, sizeof(buf) };

	return neg_errno(preadv2(fd, &iov, 1, page * page_size(), RWF_NOWAIT));
}

/* Swaps a mapped page out, and says whether that worked */
static bool page_out(char *map)
{
	*(volatile char *)map;
	for (int i = 0; i < 200 && !swap_kb_of(map); i++) {
		madvise(map, page_size(), MADV_PAGEOUT);
		usleep(2000);
	}
	return swap_kb_of(map) > 0;
}

TEST_F(file, read_nowait)
{
	char *map = mmap(NULL, self->page, RW, MAP_SHARED, self->fd,
			 5 * self->page);
	char byte;

	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ((long)self->page, read_nowait(self->fd, 5, 1));
	if (!page_out(map))
		SKIP(return, "no swap");
	EXPECT_EQ(-EAGAIN, read_nowait(self->fd, 5, 1));
	/* What is there is read */
	EXPECT_EQ((long)self->page, read_nowait(self->fd, 4, 2));
	EXPECT_EQ(1, pread(self->fd, &byte, 1, 5 * self->page));
	EXPECT_EQ((long)(2 * self->page), read_nowait(self->fd, 4, 2));
	/* A hole has nothing to wait for */
	EXPECT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 5 * self->page,
			       self->page));
	EXPECT_EQ((long)self->page, read_nowait(self->fd, 5, 1));
	munmap(map, self->page);
}

/* Part 5: userfaultfd fills no page of the file */

static int uffd_zeropage(int uffd, void *to)
{
	struct uffdio_zeropage arg = {
		.range = { (uintptr_t)to, page_size() },
	};

	return neg_errno(ioctl(uffd, UFFDIO_ZEROPAGE, &arg));
}

/* A file of holes, all of it denied */
FIXTURE(holes) {
	int fd;
	int uffd;
	char *map;
	char *src;
	size_t page;
	size_t size;
};

FIXTURE_SETUP(holes)
{
	self->page = page_size();
	self->size = NR_PAGES * self->page;
	self->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
	self->map = mmap(NULL, self->size, RW, MAP_SHARED, self->fd, 0);
	self->src = mmap(NULL, self->page, RW, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	memset(self->src, NEW_BYTE, self->page);
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	self->uffd = uffd_open(UFFD_FEATURE_MISSING_SHMEM |
			       UFFD_FEATURE_MINOR_SHMEM |
			       UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			       UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			       UFFD_FEATURE_WP_UNPOPULATED |
			       UFFD_FEATURE_WP_ASYNC);
	if (self->uffd < 0)
		SKIP(return, "no userfaultfd");
}

FIXTURE_TEARDOWN(holes)
{
	close(self->uffd);
	munmap(self->src, self->page);
	munmap(self->map, self->size);
	close(self->fd);
}

TEST_F(holes, userfaultfd_registers_not)
{
	static const uint64_t modes[] = {
		UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_MINOR,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP,
	};

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		EXPECT_EQ(-EINVAL, uffd_register(self->uffd, self->map,
						 self->size, modes[i]))
			TH_LOG("mode %#llx", (unsigned long long)modes[i]);
	}
}

/* It would put entries back as they were, which need not be right any more */
TEST_F(holes, userfaultfd_no_rwp)
{
	int uffd = uffd_open(UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC);
	int plain = sys_memfd_create(MFD_CLOEXEC);
	char *map;

	if (uffd < 0)
		SKIP(return, "no read-write protection by userfaultfd");
	ASSERT_EQ(0, ftruncate(plain, self->size));
	map = mmap(NULL, self->size, RW, MAP_SHARED, plain, 0);
	EXPECT_EQ(0, uffd_register(uffd, map, self->size,
				   UFFDIO_REGISTER_MODE_RWP));
	EXPECT_EQ(-EINVAL, uffd_register(uffd, self->map, self->size,
					 UFFDIO_REGISTER_MODE_RWP));
	munmap(map, self->size);
	close(plain);
	close(uffd);
}

TEST_F(holes, userfaultfd_fills_not)
{
	/* Asynchronous write protection is for all memory */
	ASSERT_EQ(0, uffd_register(self->uffd, self->map, self->size,
				   UFFDIO_REGISTER_MODE_WP));
	EXPECT_EQ(-EINVAL, uffd_copy(self->uffd, self->map, self->src));
	EXPECT_EQ(-EINVAL, uffd_zeropage(self->uffd, self->map));
	EXPECT_EQ(-EINVAL, uffd_continue(self->uffd, self->map));
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, 0));
}

/* A private page is not the file's */
TEST_F(holes, userfaultfd_private)
{
	char *map = mmap(NULL, self->size, RW, MAP_PRIVATE, self->fd, 0);

	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, uffd_register(self->uffd, map, self->size,
				   UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_EQ(0, uffd_copy(self->uffd, map, self->src));
	EXPECT_EQ(NEW_BYTE, map[0]);
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, 0));
	munmap(map, self->size);
}

TEST_F(holes, userfaultfd_check_is_needed)
{
	if (!write_file(DISABLE_DIR "userfault", "1"))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	EXPECT_EQ(0, uffd_register(self->uffd, self->map, self->size,
				   UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_EQ(0, uffd_copy(self->uffd, self->map, self->src));
	EXPECT_TRUE(write_file(DISABLE_DIR "userfault", "0"));
	EXPECT_FALSE(file_filled_with(self->fd, 0, 1, 0));
}

/* Part 6: a FUSE server that reads its requests into the file */

TEST_F(file, fuse_server)
{
	char dir[] = "/tmp/protect-fuse-XXXXXX", options[128];
	char *map = mmap(NULL, self->size, RW, MAP_SHARED, self->fd, 0);
	loff_t from = 0;
	ssize_t got;
	int fuse;

	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse < 0 || unshare(CLONE_NEWNS) ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		SKIP(return, "no FUSE");
	ASSERT_NE(NULL, mkdtemp(dir));
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	ASSERT_EQ(0, mount("fuse", dir, "fuse", 0, options));
	got = read(fuse, map, self->size);
	ASSERT_LT((ssize_t)sizeof(struct fuse_in_header), got);
	EXPECT_EQ(FUSE_INIT, ((struct fuse_in_header *)map)->opcode);

	/* It was a pin and is gone; a reader's reference is no writer's */
	ASSERT_EQ((ssize_t)self->page, splice(self->fd, &from, self->pipe[1],
					      NULL, self->page, 0));
	EXPECT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));

	/* The next request finds it protected */
	umount2(dir, MNT_DETACH);
	rmdir(dir);
	close(fuse);
	munmap(map, self->size);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
