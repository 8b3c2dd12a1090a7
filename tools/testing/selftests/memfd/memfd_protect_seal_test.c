// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of memfd_protect(2) and seals: who may protect, what a seal refuses before
 * anybody is asked, MEMFD_NOTIFY_PROTECT for the holder of the event fd, the query of
 * features, and what lies behind the end of the file.
 */
#include "memfd_protect_common.h"

#include <sched.h>
#include <sys/sendfile.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	90

#define DISABLE_DIR	"/sys/kernel/debug/memfd_protect/disable/"
#define DELAY_DIR	"/sys/kernel/debug/memfd_protect/delay_us/"
#define RW		(PROT_READ | PROT_WRITE)

#define NR_PAGES	16

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC	0x0020
#endif

FIXTURE(file) {
	int fd;
	int nfd;
	size_t page;
	size_t size;
};

/* What can be sealed, and its event fd */
static bool create_sealable(int *fd, int *nfd)
{
	*fd = create_filled(NR_PAGES, MFD_ALLOW_PROTECT | MFD_ALLOW_SEALING);
	*nfd = sys_memfd_notify(*fd, 0);
	return *fd >= 0 && *nfd >= 0;
}

FIXTURE_SETUP(file)
{
	self->page = page_size();
	self->size = NR_PAGES * self->page;
	ASSERT_TRUE(create_sealable(&self->fd, &self->nfd));
}

FIXTURE_TEARDOWN(file)
{
	close(self->nfd);
	close(self->fd);
}

static int add_seals(int fd, unsigned int seals)
{
	return neg_errno(fcntl(fd, F_ADD_SEALS, seals));
}

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return neg_errno(open(path, flags | O_CLOEXEC));
}

static int notify_protect(int nfd, uint64_t offset, uint64_t length,
			  uint32_t prot, uint32_t flags)
{
	struct memfd_protect_range range = {
		.offset = offset, .length = length,
		.prot = prot, .flags = flags,
	};

	return neg_errno(ioctl(nfd, MEMFD_NOTIFY_PROTECT, &range));
}

/* What an operation works on */
struct op {
	int fd;
	off_t offset;
	size_t len;
	int flags;
};

static long op_write(void *arg)
{
	struct op *op = arg;
	char buf[op->len];
	struct iovec iov = { buf, op->len };

	memset(buf, NEW_BYTE, op->len);
	return neg_errno(pwritev2(op->fd, &iov, 1, op->offset, op->flags));
}

static long op_punch(void *arg)
{
	struct op *op = arg;

	return neg_errno(fallocate(op->fd, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, op->offset, op->len));
}

static long op_truncate(void *arg)
{
	struct op *op = arg;

	return neg_errno(ftruncate(op->fd, op->offset));
}

/* From a file of @len bytes */
static long op_sendfile(void *arg)
{
	struct op *op = arg;
	int src = create_filled(op->len / page_size(), 0);
	off_t from = 0;
	long ret;

	if (lseek(op->fd, op->offset, SEEK_SET) < 0)
		return -ESPIPE;
	ret = neg_errno(sendfile(op->fd, src, &from, op->len));
	close(src);
	return ret;
}

/* From a pipe with @len bytes in it */
static long op_splice(void *arg)
{
	struct op *op = arg;
	char buf[op->len];
	loff_t to = op->offset;
	int fds[2];
	long ret;

	memset(buf, NEW_BYTE, op->len);
	if (pipe(fds) || write(fds[1], buf, op->len) != (ssize_t)op->len)
		return -EPIPE;
	ret = neg_errno(splice(fds[0], NULL, op->fd, &to, op->len, 0));
	close(fds[0]);
	close(fds[1]);
	return ret;
}

static const operation_fn writes[] = { op_write, op_sendfile, op_splice };

/* Part 1: the seal itself */

TEST(seal_needs_allow_protect)
{
	char path[] = "/dev/shm/protect-seal-XXXXXX";
	int fd;

	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_SEALING);
	EXPECT_EQ(-EINVAL, add_seals(fd, F_SEAL_PROTECT));
	EXPECT_EQ(-EINVAL, add_seals(fd, F_SEAL_PROTECT | F_SEAL_SHRINK));
	EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));
	close(fd);

	fd = mkstemp(path);
	ASSERT_LE(0, fd);
	unlink(path);
	EXPECT_EQ(-EINVAL, add_seals(fd, F_SEAL_PROTECT));
	close(fd);
}

TEST_F(file, seal_is_shown)
{
	EXPECT_EQ(0x0040, F_SEAL_PROTECT);
	EXPECT_EQ(-EINVAL, add_seals(self->fd, 0x0080));
	EXPECT_EQ(0, add_seals(self->fd, F_SEAL_PROTECT));
	EXPECT_EQ(F_SEAL_PROTECT, fcntl(self->fd, F_GET_SEALS));
	EXPECT_EQ(0, add_seals(self->fd, F_SEAL_PROTECT | F_SEAL_GROW));
	EXPECT_EQ(F_SEAL_PROTECT | F_SEAL_GROW, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(file, seal_is_a_seal)
{
	int fd = reopen(self->fd, O_RDONLY);

	EXPECT_EQ(-EPERM, add_seals(fd, F_SEAL_PROTECT));
	close(fd);
	EXPECT_EQ(0, add_seals(self->fd, F_SEAL_SEAL));
	EXPECT_EQ(-EPERM, add_seals(self->fd, F_SEAL_PROTECT));
	EXPECT_EQ(0, protect_pages(self->fd, 0, 1, MEMFD_PROTECT_DENY));

	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	EXPECT_EQ(-EPERM, add_seals(fd, F_SEAL_PROTECT));
	close(fd);
}

/* It says nothing about contents */
TEST_F(file, seal_lets_write)
{
	struct op op = { .fd = self->fd, .len = self->page };
	char *map;

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_PROTECT));
	EXPECT_EQ((long)self->page, op_write(&op));
	map = mmap(NULL, self->size, RW, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	map[self->page] = NEW_BYTE;
	munmap(map, self->size);
	EXPECT_EQ(0, ftruncate(self->fd, self->page));
	EXPECT_EQ(0, ftruncate(self->fd, self->size));
}

/* Part 2: who is bound by it */

FIXTURE(sealed) {
	int fd;
	int nfd;
	size_t page;
	size_t size;
};

FIXTURE_VARIANT(sealed) {
	unsigned int seal;
};

FIXTURE_VARIANT_ADD(sealed, protect) { .seal = F_SEAL_PROTECT };
FIXTURE_VARIANT_ADD(sealed, write) { .seal = F_SEAL_WRITE };
FIXTURE_VARIANT_ADD(sealed, future_write) { .seal = F_SEAL_FUTURE_WRITE };

FIXTURE_SETUP(sealed)
{
	self->page = page_size();
	self->size = NR_PAGES * self->page;
	ASSERT_TRUE(create_sealable(&self->fd, &self->nfd));
	ASSERT_EQ(0, protect_pages(self->fd, 9, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, protect_pages(self->fd, 10, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, add_seals(self->fd, variant->seal));
}

FIXTURE_TEARDOWN(sealed)
{
	close(self->nfd);
	close(self->fd);
}

TEST_F(sealed, nobody_protects)
{
	int again = reopen(self->fd, O_RDWR);

	for (unsigned int mode = 0; mode <= MEMFD_PROTECT_DENY; mode++) {
		EXPECT_EQ(-EPERM, protect_pages(self->fd, 0, 1, mode));
		EXPECT_EQ(-EPERM, protect_pages(again, 0, 0, mode));
	}
	EXPECT_EQ(-EPERM, unprotect_pages(self->fd, 9, 1));
	EXPECT_EQ(-EPERM, unprotect_pages(again, 0, 0));
	EXPECT_EQ(-EPERM, sys_memfd_notify(self->fd, 0));
	EXPECT_EQ(-EPERM, sys_memfd_notify(again, MEMFD_NOTIFY_KERNEL));
	close(self->nfd);
	EXPECT_EQ(-EPERM, sys_memfd_notify(self->fd, 0));
	self->nfd = -1;
	close(again);
}

/* Another user, who got it read-only: the reviewers' attack */
TEST_F(sealed, stranger_cannot)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		char path[64];
		int fd;

		close(self->nfd);
		snprintf(path, sizeof(path), "/proc/self/fd/%d",
			 reopen(self->fd, O_RDONLY));
		if (fchmod(self->fd, 0777) || setgid(65534) || setuid(65534))
			_exit(2);
		prctl(PR_SET_DUMPABLE, 1);
		fd = open(path, O_RDWR);
		if (fd < 0)
			_exit(3);
		if (protect_pages(fd, 0, 1, MEMFD_PROTECT_DENY) != -EPERM)
			_exit(4);
		if (protect_pages(fd, 0, 1, MEMFD_PROTECT_WAIT) != -EPERM)
			_exit(5);
		if (sys_memfd_notify(fd, 0) != -EPERM)
			_exit(6);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

/* EBADF, EINVAL, EOPNOTSUPP come before EPERM, ENXIO and EBUSY behind it */
TEST_F(sealed, order_of_checks)
{
	int rdonly = reopen(self->fd, O_RDONLY);
	int fd = self->fd;

	EXPECT_EQ(-EBADF, protect_pages(rdonly, 0, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EBADF, sys_memfd_notify(rdonly, 0));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 1, 0, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 0, 1, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 0, 0, PROT_READ, 3));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 0, 0, RW, 1));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 0, 0, PROT_NONE, 0));
	EXPECT_EQ(-EINVAL, sys_memfd_notify(fd, 4));
	EXPECT_EQ(-EPERM, sys_memfd_notify(fd, 0));
	close(self->nfd);
	self->nfd = -1;
	EXPECT_EQ(-EPERM, protect_pages(fd, 0, 1, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-EPERM, protect_pages(fd, 0, 1, MEMFD_PROTECT_ASYNC));
	close(rdonly);
}

TEST_F(sealed, protection_stands)
{
	struct op op = { .fd = self->fd, .offset = 9 * self->page,
			 .len = self->page };

	EXPECT_EQ(-EPERM, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(-EPERM, op_write(&op));
	if (variant->seal != F_SEAL_PROTECT)
		return;
	/* Behind a dead handler only DENY is left, for good */
	close(self->nfd);
	self->nfd = -1;
	EXPECT_EQ(-EPERM, op_write(&op));
	op.offset = 10 * self->page;
	EXPECT_EQ((long)self->page, op_write(&op));
}

/* The holder of the event fd stays in control */
TEST_F(sealed, handler_protects)
{
	size_t page = self->page;
	char info[4096], path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->nfd);
	EXPECT_EQ(0, notify_protect(self->nfd, 0, 2 * page, PROT_READ,
				    MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, notify_protect(self->nfd, 2 * page, page, PROT_READ,
				    MEMFD_PROTECT_WAIT));
	EXPECT_EQ(0, notify_protect(self->nfd, 3 * page, page, PROT_READ,
				    MEMFD_PROTECT_ASYNC));
	ASSERT_TRUE(read_file(path, info, sizeof(info)));
	EXPECT_NE(NULL, strstr(info, "protect_deny:\t2\n"));
	EXPECT_NE(NULL, strstr(info, "protect_wait:\t2\n"));
	EXPECT_NE(NULL, strstr(info, "protect_async:\t1\n"));
	EXPECT_EQ(0, notify_protect(self->nfd, 0, 0, RW, 0));
	ASSERT_TRUE(read_file(path, info, sizeof(info)));
	EXPECT_NE(NULL, strstr(info, "protect_deny:\t0\n"));
	EXPECT_NE(NULL, strstr(info, "protect_wait:\t0\n"));
	EXPECT_NE(NULL, strstr(info, "protect_async:\t0\n"));
}

/* Without its check the seal binds nobody: the tests above would fail */
TEST_F(sealed, check_is_needed)
{
	if (!write_file(DISABLE_DIR "seal", "1"))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	EXPECT_EQ(0, protect_pages(self->fd, 0, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 1));
	EXPECT_EQ(-EBUSY, sys_memfd_notify(self->fd, 0));
	EXPECT_TRUE(write_file(DISABLE_DIR "seal", "0"));
	EXPECT_EQ(-EPERM, protect_pages(self->fd, 0, 1, MEMFD_PROTECT_DENY));
}

/* Part 3: when F_ADD_SEALS has returned, nothing is protected any more */

struct hammer {
	int fd;
	unsigned int mode;	/* MODE_NONE: memfd_notify() */
	volatile bool *go;
	long last;
};

static void *hammer_loop(void *arg)
{
	struct hammer *h = arg;
	int nfd;

	while (!*h->go)
		;
	do {
		if (h->mode == MODE_NONE) {
			nfd = sys_memfd_notify(h->fd, 0);
			h->last = nfd;
			if (nfd >= 0)
				close(nfd);
			continue;
		}
		h->last = protect_pages(h->fd, 0, 1, h->mode);
		if (!h->last)
			h->last = unprotect_pages(h->fd, 0, 1);
	} while (h->last != -EPERM);
	return NULL;
}

static bool shows_state(int fd, char *info, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	return read_file(path, info, size) && strstr(info, "event_fd:\t");
}

TEST(seal_ends_what_is_under_way)
{
	char before[4096], after[4096];

	for (int round = 0; round < 60; round++) {
		volatile bool go = false;
		int fd = create_filled(1, MFD_ALLOW_PROTECT |
				       MFD_ALLOW_SEALING);
		struct hammer h[] = {
			{ .fd = fd, .mode = MEMFD_PROTECT_DENY, .go = &go },
			{ .fd = fd, .mode = MODE_NONE, .go = &go },
		};
		pthread_t threads[2];

		for (int i = 0; i < 2; i++)
			ASSERT_EQ(0, pthread_create(&threads[i], NULL,
						    hammer_loop, &h[i]));
		go = true;
		usleep(round * 50);
		ASSERT_EQ(0, add_seals(fd, F_SEAL_PROTECT));
		/* The last event fd may still be closed, but none be opened */
		while (strstr(shows_state(fd, before, sizeof(before)) ?
			      before : "", "event_fd:\t1"))
			usleep(100);
		for (int i = 0; i < 2; i++)
			ASSERT_EQ(0, pthread_join(threads[i], NULL));
		ASSERT_TRUE(shows_state(fd, after, sizeof(after)));
		EXPECT_STREQ(before, after) TH_LOG("round %d", round);
		close(fd);
	}
}

static long op_protect(void *arg)
{
	struct op *op = arg;

	return sys_memfd_protect(op->fd, op->offset, op->len, PROT_READ,
				 op->flags);
}

/* It has passed all checks, and sleeps before it protects */
TEST_F(file, seal_overtakes)
{
	struct op op = { .fd = self->fd, .len = self->page,
			 .flags = MEMFD_PROTECT_DENY };
	struct writer w;

	if (!write_file(DELAY_DIR "pins", "1000000"))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	ASSERT_TRUE(writer_start(&w, self->nfd, op_protect, &op));
	EXPECT_TRUE(writer_sleeps(&w));
	EXPECT_EQ(0, add_seals(self->fd, F_SEAL_PROTECT));
	EXPECT_FALSE(w.out->done);
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EPERM, w.out->ret);
	writer_free(&w);
	EXPECT_TRUE(write_file(DELAY_DIR "pins", "0"));
	op.flags = 0;
	EXPECT_EQ((long)self->page, op_write(&op));
}

/* What a consumer looks at before it trusts a file */
TEST_F(file, fdinfo_shows_event_fd)
{
	char info[4096];

	ASSERT_TRUE(shows_state(self->fd, info, sizeof(info)));
	EXPECT_NE(NULL, strstr(info, "event_fd:\t1\n"));
	close(self->nfd);
	self->nfd = -1;
	ASSERT_TRUE(shows_state(self->fd, info, sizeof(info)));
	EXPECT_NE(NULL, strstr(info, "event_fd:\t0\n"));
}

/* Part 4: MEMFD_NOTIFY_PROTECT is memfd_protect() */

TEST_F(file, ioctl_arguments)
{
	const uint64_t page = self->page, huge = 1ULL << 63;
	int nfd = self->nfd;

	EXPECT_EQ(-EFAULT, neg_errno(ioctl(nfd, MEMFD_NOTIFY_PROTECT,
					   bad_pointer())));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 1, page, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page + 1, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, huge, page, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, -page, page, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, page, huge - page, PROT_READ,
					  2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, huge, PROT_READ, 2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page, PROT_NONE, 2));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page, PROT_WRITE, 0));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page, PROT_EXEC, 0));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page, PROT_READ, 3));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page, PROT_READ, -1));
	EXPECT_EQ(-EINVAL, notify_protect(nfd, 0, page, RW, 1));
	EXPECT_EQ(0, notify_protect(nfd, 0, huge - page, PROT_READ, 2));
	EXPECT_EQ(0, notify_protect(nfd, 0, huge - page, RW, 0));
	EXPECT_EQ(-ENOTTY, neg_errno(ioctl(self->fd, MEMFD_NOTIFY_PROTECT,
					   bad_pointer())));
	EXPECT_EQ(24, sizeof(struct memfd_protect_range));
	EXPECT_EQ(0x40184d04, MEMFD_NOTIFY_PROTECT);
}

TEST_F(file, ioctl_wakes_writers)
{
	struct op op = { .fd = self->fd, .offset = 3 * self->page,
			 .len = self->page };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_PROTECT));
	ASSERT_EQ(0, notify_protect(self->nfd, 0, 0, PROT_READ,
				    MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(op.offset, (off_t)ev.offset);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, notify_protect(self->nfd, op.offset, op.len, RW, 0));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)op.len, w.out->ret);
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	writer_free(&w);
}

TEST_F(file, ioctl_async)
{
	struct op op = { .fd = self->fd, .offset = 3 * self->page,
			 .len = 2 * self->page };
	struct memfd_range range;

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_PROTECT));
	ASSERT_EQ(0, notify_protect(self->nfd, 0, 0, PROT_READ,
				    MEMFD_PROTECT_ASYNC));
	EXPECT_EQ((long)op.len, op_write(&op));
	ASSERT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1,
				MEMFD_SCAN_REPROTECT, NULL));
	EXPECT_EQ(op.offset, (off_t)range.offset);
	EXPECT_EQ(op.len, range.length);
}

/* Part 5: features */

TEST_F(file, query)
{
	const unsigned int query = MEMFD_NOTIFY_QUERY;
	const uint64_t ours = MEMFD_FEATURE_PROTECT |
			      MEMFD_FEATURE_SEAL_PROTECT;
	uint64_t bits = features(self->nfd);
	int share;

	EXPECT_EQ(2, MEMFD_NOTIFY_QUERY);
	EXPECT_EQ((int64_t)bits, sys_memfd_notify(-1, query));
	EXPECT_EQ(ours, bits & ours);
	EXPECT_EQ(0, bits >> 31);
	EXPECT_EQ(-EINVAL, sys_memfd_notify(self->fd, query));
	/* Any other call is one for an event fd, and checks that first */
	EXPECT_EQ(-EBADF, sys_memfd_notify(-2, query));
	EXPECT_EQ(-EBADF, sys_memfd_notify(-1, query | MEMFD_NOTIFY_KERNEL));
	EXPECT_EQ(-EBADF, sys_memfd_notify(-1, query | MEMFD_NOTIFY_NONBLOCK));
	EXPECT_EQ(-EINVAL, sys_memfd_notify(self->fd, query | O_NONBLOCK));
	EXPECT_EQ(-EBADF, sys_memfd_notify(-1, 0));

	share = sys_memfd_create(MFD_CLOEXEC | MFD_SHARE_PGTABLES);
	EXPECT_EQ(share >= 0, !!(bits & MEMFD_FEATURE_SHARE_PGTABLES));
	close(share);
}

/* Part 6: what a seal refuses nobody is asked for */

/* Fails at once with EPERM; nobody hears of it, and nothing is logged */
static void expect_refused(struct __test_metadata *_metadata,
			   FIXTURE_DATA(file) *self, operation_fn fn,
			   struct op *op)
{
	static const unsigned int modes[] = {
		MEMFD_PROTECT_WAIT, MEMFD_PROTECT_ASYNC,
	};
	struct memfd_range range;
	struct writer w;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		ASSERT_EQ(0, notify_protect(self->nfd, 0, 0, PROT_READ,
					    modes[i]));
		ASSERT_TRUE(writer_start(&w, self->nfd, fn, op));
		EXPECT_TRUE(writer_finishes(&w))
			TH_LOG("mode %u", modes[i]);
		EXPECT_EQ(-EPERM, w.out->ret);
		EXPECT_TRUE(no_event(self->nfd));
		EXPECT_EQ(0, scan_range(self->nfd, 0, 0, &range, 1, 0, NULL));
		writer_free(&w);
	}
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
}

static const unsigned int write_seals[] = {
	F_SEAL_WRITE, F_SEAL_FUTURE_WRITE,
};

TEST_F(file, refused_writes)
{
	struct op op = { .fd = self->fd, .offset = 2 * self->page,
			 .len = 3 * self->page };

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_FUTURE_WRITE));
	for (size_t i = 0; i < ARRAY_SIZE(writes); i++)
		expect_refused(_metadata, self, writes[i], &op);
	op.flags = RWF_NOWAIT;
	expect_refused(_metadata, self, op_write, &op);
	op.flags = RWF_APPEND;
	expect_refused(_metadata, self, op_write, &op);
}

TEST_F(file, refused_punches)
{
	struct op op = { .fd = self->fd, .offset = 2 * self->page,
			 .len = 3 * self->page };

	for (size_t i = 0; i < ARRAY_SIZE(write_seals); i++) {
		ASSERT_EQ(0, add_seals(self->fd, write_seals[i]));
		expect_refused(_metadata, self, op_punch, &op);
		expect_refused(_metadata, self, op_write, &op);
	}
}

TEST_F(file, refused_truncation)
{
	struct op op = { .fd = self->fd, .offset = 2 * self->page };

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_SHRINK));
	expect_refused(_metadata, self, op_truncate, &op);
}

TEST_F(file, refused_growth)
{
	struct op op = { .fd = self->fd, .offset = self->size,
			 .len = self->page };

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_GROW));
	for (size_t i = 0; i < ARRAY_SIZE(writes); i++)
		expect_refused(_metadata, self, writes[i], &op);
	op.flags = RWF_APPEND;
	op.offset = 0;
	expect_refused(_metadata, self, op_write, &op);
	op.flags = 0;
	op.offset = self->size + 7 * self->page;
	expect_refused(_metadata, self, op_write, &op);
}

/*
 * Across the end of the file: as much is asked for as is written, which depends on
 * the size of folios. Nothing behind the end is ever asked for.
 */
TEST_F(file, refused_growth_in_part)
{
	struct op op = { .fd = self->fd, .offset = self->size - self->page,
			 .len = 3 * self->page };
	struct memfd_event ev;
	struct writer w;
	long written;

	ASSERT_EQ(0, add_seals(self->fd, F_SEAL_GROW));
	/* What comes of it where nothing is protected */
	written = op_write(&op);
	ASSERT_TRUE(written == -EPERM || written == (long)self->page);
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	if (written > 0) {
		ASSERT_TRUE(read_event(self->nfd, &ev));
		EXPECT_EQ(op.offset, (off_t)ev.offset);
		EXPECT_EQ(self->page, ev.length);
		EXPECT_EQ(0, resolve(self->nfd, ev.cookie,
				     MEMFD_RESOLVE_ALLOW));
	}
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(written, w.out->ret);
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&w);
}

/*
 * A write whose source is not there goes on in smaller pieces, of which one may end before the
 * end of the file where a larger one would not: none is written that was not asked for.
 */
TEST_F(file, refused_growth_from_what_is_not_there)
{
	size_t piece = 2UL << 20, len = 2 * piece;
	off_t starts[] = { 0, piece };
	char *source, old[self->page];
	long written;
	int fd;

	memset(old, OLD_BYTE, sizeof(old));
	for (size_t i = 0; i < ARRAY_SIZE(starts); i++) {
		fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT | MFD_ALLOW_SEALING);
		ASSERT_EQ(0, ftruncate(fd, piece + piece / 2));
		ASSERT_EQ((ssize_t)sizeof(old), pwrite(fd, old, sizeof(old), piece));
		ASSERT_EQ(0, protect_pages(fd, piece / self->page, 1, MEMFD_PROTECT_DENY));
		ASSERT_EQ(0, add_seals(fd, F_SEAL_GROW));
		source = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(MAP_FAILED, source);
		written = neg_errno(pwrite(fd, source, len, starts[i]));
		EXPECT_GE(starts[i] ? -EPERM : (long)piece, written);
		EXPECT_TRUE(file_filled_with(fd, piece / self->page, 1, OLD_BYTE));
		munmap(source, len);
		close(fd);
	}
}

/* All of a write in pieces is refused before the first is written, also where the last would be */
TEST_F(file, refused_growth_in_pieces)
{
	size_t size = 1UL << 20;
	struct op op = { .len = 2 * size };

	op.fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT | MFD_ALLOW_SEALING);
	ASSERT_EQ(0, ftruncate(op.fd, size));
	ASSERT_EQ(0, protect_pages(op.fd, 100, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, add_seals(op.fd, F_SEAL_GROW));
	EXPECT_EQ(-EPERM, op_sendfile(&op));
	EXPECT_TRUE(file_filled_with(op.fd, 0, size / self->page, 0));
	close(op.fd);
}

/* A seal that comes while a writer waits has its say when the writer goes on */
TEST_F(file, sealed_while_waiting)
{
	struct op op = { .fd = self->fd, .offset = 2 * self->page,
			 .len = self->page };
	struct memfd_event ev;
	struct writer w;

	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, notify_protect(self->nfd, 0, 0, PROT_READ,
					    MEMFD_PROTECT_WAIT));
		ASSERT_TRUE(writer_start(&w, self->nfd,
					 i ? op_write : op_truncate, &op));
		ASSERT_TRUE(read_event(self->nfd, &ev));
		ASSERT_EQ(0, add_seals(self->fd, i ? F_SEAL_WRITE :
				       F_SEAL_SHRINK));
		EXPECT_EQ(0, resolve(self->nfd, ev.cookie,
				     MEMFD_RESOLVE_ALLOW));
		EXPECT_TRUE(writer_finishes(&w));
		EXPECT_EQ(-EPERM, w.out->ret);
		writer_free(&w);
	}
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
}

/* Part 7: behind the end of the file, in its last page */

FIXTURE(tail) {
	int fd;
	int nfd;
	volatile char *map;
	size_t page;
	size_t size;	/* ends in the middle of page 2 */
};

FIXTURE_SETUP(tail)
{
	self->page = page_size();
	self->size = 2 * self->page + 100;
	self->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	self->map = mmap(NULL, 3 * self->page, RW, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->map);
	memset((char *)self->map, OLD_BYTE, 3 * self->page);
}

FIXTURE_TEARDOWN(tail)
{
	munmap((char *)self->map, 3 * self->page);
	close(self->nfd);
	close(self->fd);
}

static bool tail_is_old(const FIXTURE_DATA(tail) *self)
{
	return filled_with((char *)self->map, 3 * self->page, OLD_BYTE);
}

TEST_F(tail, punch_denied)
{
	struct op op = { .fd = self->fd, .offset = self->size + 200,
			 .len = 50 };

	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EPERM, op_punch(&op));
	op.len = 10 * self->page;
	EXPECT_EQ(-EPERM, op_punch(&op));
	EXPECT_TRUE(tail_is_old(self));
	/* The whole pages behind have no contents */
	op.offset = 3 * self->page;
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, op_punch(&op));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	op.offset = self->size + 200;
	EXPECT_EQ(0, op_punch(&op));
	EXPECT_EQ(0, self->map[op.offset]);
	EXPECT_EQ(OLD_BYTE, self->map[op.offset - 1]);
}

TEST_F(tail, same_size_denied)
{
	struct op op = { .fd = self->fd, .offset = self->size };

	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EPERM, op_truncate(&op));
	EXPECT_TRUE(tail_is_old(self));
	/* Growth changes nothing there */
	op.offset = self->size + 10;
	EXPECT_EQ(0, op_truncate(&op));
	EXPECT_TRUE(tail_is_old(self));
	EXPECT_EQ(-EPERM, op_truncate(&op));
	op.offset = 3 * self->page;
	EXPECT_EQ(0, op_truncate(&op));
	/* No last page in part: nothing would change */
	EXPECT_EQ(0, op_truncate(&op));
	EXPECT_TRUE(tail_is_old(self));
}

TEST_F(tail, same_size_unprotected)
{
	struct op op = { .fd = self->fd, .offset = self->size };

	ASSERT_EQ(0, protect_pages(self->fd, 0, 2, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, op_truncate(&op));
	EXPECT_EQ(0, self->map[self->size]);
}

static void expect_tail_event(struct __test_metadata *_metadata,
			      FIXTURE_DATA(tail) *self, operation_fn fn,
			      struct op *op, unsigned int type)
{
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, fn, op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(type, ev.type);
	EXPECT_EQ(2 * self->page, ev.offset);
	EXPECT_EQ(self->page, ev.length);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_TRUE(tail_is_old(self));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(0, w.out->ret);
	EXPECT_EQ(0, self->map[self->size + 200]);
	EXPECT_EQ(OLD_BYTE, self->map[self->size - 1]);
	writer_free(&w);
}

TEST_F(tail, punch_waits)
{
	struct op op = { .fd = self->fd, .offset = self->size + 200,
			 .len = 10 * self->page };

	expect_tail_event(_metadata, self, op_punch, &op, MEMFD_EVENT_PUNCH);
}

TEST_F(tail, same_size_waits)
{
	struct op op = { .fd = self->fd, .offset = self->size };

	expect_tail_event(_metadata, self, op_truncate, &op,
			  MEMFD_EVENT_TRUNCATE);
}

TEST_F(tail, logged)
{
	struct op punch = { .fd = self->fd, .offset = self->size + 200,
			    .len = 1 };
	struct op truncate = { .fd = self->fd, .offset = self->size };
	struct memfd_range range;

	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, protect_pages(self->fd, 0, 0,
					   MEMFD_PROTECT_ASYNC));
		EXPECT_EQ(0, i ? op_punch(&punch) : op_truncate(&truncate));
		ASSERT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1, 0, NULL));
		EXPECT_EQ(2 * self->page, range.offset);
		EXPECT_EQ(self->page, range.length);
	}
}

/* Nothing in it, nothing to ask for */
TEST(empty_file)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	struct op op = { .fd = fd, .len = 100 };

	ASSERT_EQ(0, protect_pages(fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, op_truncate(&op));
	EXPECT_EQ(0, op_punch(&op));
	op.fd = reopen(fd, O_RDWR | O_TRUNC);
	EXPECT_LE(0, op.fd);
	close(op.fd);
	close(fd);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
