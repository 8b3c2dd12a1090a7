// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of memfd_protect(2), memfd_notify(2) and the event fd: every error and
 * the order of checks, and every rule of the WAIT and DENY modes. Each path by
 * which a file can be written has its case in memfd_protect_paths_test.c.
 */
#include "memfd_protect_common.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	90

#define SYSCTL_UNPRIVILEGED	"/proc/sys/vm/unprivileged_memfd_notify"

#define NR_PAGES	32

#define LARGEST_PAGE	((off_t)(INT64_MAX & ~(int64_t)(page_size() - 1)))

/* What an operation works on */
struct op {
	int fd;
	char *map;
	size_t offset;
	size_t len;
};

static long op_store(void *arg)
{
	struct op *op = arg;

	*(volatile char *)(op->map + op->offset) = NEW_BYTE;
	return 1;
}

static long op_write(void *arg)
{
	struct op *op = arg;
	char buf[op->len];

	memset(buf, NEW_BYTE, op->len);
	return neg_errno(pwrite(op->fd, buf, op->len, op->offset));
}

/* Maps the file for itself: anywhere but where its parent has it */
static long op_store_own_mapping(void *arg)
{
	struct op *op = arg;
	char *old = op->map, *map;

	map = mmap(NULL, NR_PAGES * page_size(), PROT_READ | PROT_WRITE,
		   MAP_SHARED, op->fd, 0);
	if (map == MAP_FAILED || map == old)
		return -ENOMEM;
	munmap(old, NR_PAGES * page_size());
	map[op->offset] = NEW_BYTE;
	return 1;
}

FIXTURE_MAPPED_FILE(MFD_ALLOW_SEALING);

static struct op op_at(const FIXTURE_DATA(file) *self, size_t page, size_t nr)
{
	return (struct op) {
		.fd = self->fd, .map = self->map,
		.offset = page * self->page, .len = nr * self->page,
	};
}

/* Part 1: memfd_create(2) */

TEST(create_flags)
{
	static const unsigned int good[] = {
		0, MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC,
		MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC,
	};
	int fd;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		fd = sys_memfd_create(MFD_ALLOW_PROTECT | good[i]);
		ASSERT_LE(0, fd) TH_LOG("flags %#x", good[i]);
		EXPECT_EQ(0, ftruncate(fd, page_size()));
		EXPECT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_DENY))
			TH_LOG("flags %#x", good[i]);
		close(fd);
	}
	EXPECT_EQ(-EINVAL, sys_memfd_create(MFD_ALLOW_PROTECT | 0x80000U));
	EXPECT_EQ(-EINVAL, sys_memfd_create(MFD_ALLOW_PROTECT | MFD_EXEC |
					    MFD_NOEXEC_SEAL));
}

TEST(create_hugetlb_einval)
{
	EXPECT_EQ(-EINVAL, sys_memfd_create(MFD_ALLOW_PROTECT | MFD_HUGETLB));
	EXPECT_EQ(-EINVAL, sys_memfd_create(MFD_ALLOW_PROTECT | MFD_HUGETLB |
					    MFD_HUGE_2MB));
}

/* The flag is not a way round MFD_ALLOW_SEALING, and does not need it */
TEST(create_independent_of_sealing)
{
	int fd = sys_memfd_create(MFD_ALLOW_PROTECT);

	ASSERT_LE(0, fd);
	EXPECT_EQ(F_SEAL_SEAL, fcntl(fd, F_GET_SEALS));
	close(fd);

	fd = sys_memfd_create(MFD_ALLOW_PROTECT | MFD_ALLOW_SEALING);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));
	close(fd);
}

/* Part 2: errors of memfd_protect(2), and their order */

#define RW	(PROT_READ | PROT_WRITE)

TEST_F(file, protect_prot_and_flags)
{
	static const struct {
		int prot;
		unsigned int flags;
	} bad[] = {
		{ PROT_NONE, 0 }, { PROT_WRITE, 0 }, { PROT_EXEC, 0 },
		{ PROT_READ | PROT_EXEC, 0 }, { RW | PROT_EXEC, 0 },
		{ PROT_READ | PROT_GROWSDOWN, 0 }, { -1, 0 },
		{ PROT_READ, 3 }, { PROT_READ, 4 }, { PROT_READ, 0x80000000U },
		{ PROT_READ, ~0U }, { RW, MEMFD_PROTECT_ASYNC },
		{ RW, MEMFD_PROTECT_DENY }, { RW, 3 }, { RW, 0x80000000U },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, sys_memfd_protect(self->fd, 0, self->page,
						     bad[i].prot,
						     bad[i].flags))
			TH_LOG("prot %#x flags %#x", bad[i].prot, bad[i].flags);
	}
	/* None of these did anything */
	self->map[0] = NEW_BYTE;
	EXPECT_TRUE(no_event(self->nfd));
}

TEST_F(file, protect_range)
{
	const size_t page = self->page;
	const struct {
		off_t offset;
		size_t length;
	} bad[] = {
		{ 1, page }, { page - 1, page }, { page / 2, 0 }, { 0, 1 },
		{ 0, page - 1 }, { 0, page + 1 }, { -1, page },
		{ -(off_t)page, page }, { -(off_t)page, 0 },
		{ INT64_MIN, 0 }, { LARGEST_PAGE, 2 * page },
		{ page, -page }, { 0, -page }, { 2 * page, -page },
		{ page, (size_t)INT64_MAX + 1 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, sys_memfd_protect(self->fd, bad[i].offset,
						     bad[i].length, PROT_READ,
						     MEMFD_PROTECT_DENY))
			TH_LOG("offset %#llx length %#zx",
			       (long long)bad[i].offset, bad[i].length);
		EXPECT_EQ(-EINVAL, sys_memfd_protect(self->fd, bad[i].offset,
						     bad[i].length, RW, 0))
			TH_LOG("offset %#llx length %#zx",
			       (long long)bad[i].offset, bad[i].length);
	}
	self->map[0] = NEW_BYTE;
	EXPECT_EQ(NEW_BYTE, self->map[0]);
}

TEST_F(file, protect_range_limits)
{
	EXPECT_EQ(0, sys_memfd_protect(self->fd, LARGEST_PAGE, 0, PROT_READ,
				       MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, sys_memfd_protect(self->fd, LARGEST_PAGE - self->page,
				       self->page, PROT_READ,
				       MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, sys_memfd_protect(self->fd, 0, LARGEST_PAGE, PROT_READ,
				       MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, sys_memfd_protect(self->fd, 0, 0, RW, 0));
	self->map[0] = NEW_BYTE;
	EXPECT_EQ(NEW_BYTE, self->map[0]);
}

/* What a file of another kind says: to a good call, and to a bad one */
static void check_kind(struct __test_metadata *_metadata, int fd,
		       const char *kind, int good, int bad)
{
	const size_t page = page_size();

	ASSERT_LE(0, fd) TH_LOG("%s", kind);
	EXPECT_EQ(good, sys_memfd_protect(fd, 0, page, PROT_READ,
					  MEMFD_PROTECT_DENY))
		TH_LOG("%s", kind);
	EXPECT_EQ(good, sys_memfd_protect(fd, 0, page, PROT_READ,
					  MEMFD_PROTECT_WAIT))
		TH_LOG("%s: WAIT without a notify fd", kind);
	EXPECT_EQ(good, sys_memfd_protect(fd, 0, 0, RW, 0)) TH_LOG("%s", kind);
	EXPECT_EQ(bad, sys_memfd_protect(fd, 1, page, PROT_READ, 0))
		TH_LOG("%s: unaligned", kind);
	EXPECT_EQ(bad, sys_memfd_protect(fd, 0, page, PROT_EXEC, 0))
		TH_LOG("%s: bad prot", kind);
	EXPECT_EQ(bad, sys_memfd_protect(fd, 0, page, PROT_READ, 77))
		TH_LOG("%s: bad mode", kind);
	EXPECT_EQ(good, sys_memfd_notify(fd, 0)) TH_LOG("%s: notify", kind);
	EXPECT_EQ(bad, sys_memfd_notify(fd, 0x40000000))
		TH_LOG("%s: notify with bad flags", kind);
	close(fd);
}

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

static int sysv_fd(void)
{
	const size_t page = page_size();
	char path[96];
	char *addr;
	int id, fd;

	id = shmget(IPC_PRIVATE, page, IPC_CREAT | 0600);
	if (id < 0)
		return -1;
	addr = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	if (addr == (void *)-1)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx",
		 (unsigned long)addr, (unsigned long)addr + page);
	fd = open(path, O_RDWR | O_CLOEXEC);
	shmdt(addr);
	return fd;
}

static int tmpfs_fd(void)
{
	char path[] = "/dev/shm/memfd_protect.XXXXXX";
	int fd = mkstemp(path);

	if (fd >= 0)
		unlink(path);
	return fd;
}

/* EBADF comes first, whatever else is wrong */
TEST_F(file, order_ebadf)
{
	int fd;

	EXPECT_EQ(-EBADF, sys_memfd_protect(-1, 0, self->page, PROT_READ, 2));
	EXPECT_EQ(-EBADF, sys_memfd_protect(-1, 1, 1, PROT_EXEC, 77));
	EXPECT_EQ(-EBADF, sys_memfd_notify(-1, 0));
	EXPECT_EQ(-EBADF, sys_memfd_notify(-1, ~0U));

	check_kind(_metadata, reopen(self->fd, O_RDONLY), "read-only memfd",
		   -EBADF, -EBADF);
	check_kind(_metadata, reopen(self->fd, O_PATH), "O_PATH memfd",
		   -EBADF, -EBADF);
	check_kind(_metadata, open("/dev/null", O_RDONLY), "read-only device",
		   -EBADF, -EBADF);

	fd = reopen(self->fd, O_WRONLY);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_DENY));
	close(fd);
}

/* Then EINVAL for files that are neither shmem nor hugetlb */
TEST(order_einval_kind)
{
	int fds[2], secret;

	check_kind(_metadata, open("/dev/null", O_RDWR), "device", -EINVAL,
		   -EINVAL);
	check_kind(_metadata, eventfd(0, 0), "eventfd", -EINVAL, -EINVAL);
	ASSERT_EQ(0, pipe(fds));
	check_kind(_metadata, fds[1], "pipe", -EINVAL, -EINVAL);
	close(fds[0]);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	check_kind(_metadata, fds[1], "socket", -EINVAL, -EINVAL);
	close(fds[0]);
	check_kind(_metadata, open("/proc/self/comm", O_RDWR), "proc file",
		   -EINVAL, -EINVAL);
#ifdef __NR_memfd_secret
	secret = syscall(__NR_memfd_secret, 0);
	if (secret >= 0)
		check_kind(_metadata, secret, "memfd_secret", -EINVAL, -EINVAL);
#endif
}

/* Then EINVAL for arguments, then EOPNOTSUPP for the file */
TEST(order_eopnotsupp)
{
	int fd;

	check_kind(_metadata, sys_memfd_create(0), "memfd without the flag",
		   -EOPNOTSUPP, -EINVAL);
	check_kind(_metadata, sys_memfd_create(MFD_ALLOW_SEALING),
		   "memfd with sealing", -EOPNOTSUPP, -EINVAL);
	check_kind(_metadata, tmpfs_fd(), "tmpfs file", -EOPNOTSUPP, -EINVAL);
	fd = sysv_fd();
	if (fd >= 0)
		check_kind(_metadata, fd, "SysV segment", -EOPNOTSUPP, -EINVAL);
	else
		TH_LOG("no SysV segment to open: %m");
	fd = sys_memfd_create(MFD_HUGETLB);
	if (fd >= 0)
		check_kind(_metadata, fd, "hugetlb memfd", -EOPNOTSUPP,
			   -EINVAL);
	else
		TH_LOG("no hugetlb memfd: %d", fd);
}

/* ENXIO: after EINVAL, and only for the modes that need a reader */
TEST(order_enxio)
{
	const size_t page = page_size();
	int fd = create_filled(1, MFD_ALLOW_PROTECT), nfd;

	ASSERT_LE(0, fd);
	EXPECT_EQ(-ENXIO, protect_pages(fd, 0, 1, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-ENXIO, protect_pages(fd, 0, 0, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 1, page, PROT_READ,
					     MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 0, page, RW,
					     MEMFD_PROTECT_ASYNC));
	EXPECT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(0, unprotect_pages(fd, 0, 1));

	nfd = sys_memfd_notify(fd, 0);
	ASSERT_LE(0, nfd);
	EXPECT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_WAIT));
	if (features(nfd) & MEMFD_FEATURE_ASYNC) {
		EXPECT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_ASYNC));
	}
	EXPECT_EQ(0, unprotect_pages(fd, 0, 1));
	close(nfd);

	EXPECT_EQ(-ENXIO, protect_pages(fd, 0, 1, MEMFD_PROTECT_WAIT));
	if (protect_pages(fd, 0, 1, MEMFD_PROTECT_ASYNC) != -EOPNOTSUPP) {
		EXPECT_EQ(-ENXIO, protect_pages(fd, 0, 1, MEMFD_PROTECT_ASYNC));
	}
	close(fd);
}

/* A failed call changes nothing: DENY stands after ENXIO and EINVAL */
TEST(failed_call_changes_nothing)
{
	struct outcome out = { 0 };
	struct op op = { .len = page_size() };
	int fd = create_filled(2, MFD_ALLOW_PROTECT);

	ASSERT_LE(0, fd);
	op.fd = fd;
	ASSERT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-ENXIO, protect_pages(fd, 0, 2, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-EINVAL, sys_memfd_protect(fd, 0, 2 * page_size(), RW, 1));
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	op.offset = page_size();
	run_guarded(op_write, &op, &out);
	EXPECT_EQ((long)page_size(), out.ret);
	close(fd);
}

/* Part 3: memfd_notify(2) */

TEST_F(file, notify_one_at_a_time)
{
	int other = reopen(self->fd, O_RDWR);

	EXPECT_EQ(-EBUSY, sys_memfd_notify(self->fd, 0));
	EXPECT_EQ(-EBUSY, sys_memfd_notify(self->fd, O_NONBLOCK));
	ASSERT_LE(0, other);
	EXPECT_EQ(-EBUSY, sys_memfd_notify(other, 0));
	EXPECT_EQ(-EINVAL, sys_memfd_notify(other, ~0U));

	ASSERT_EQ(0, close(self->nfd));
	self->nfd = sys_memfd_notify(other, 0);
	EXPECT_LE(0, self->nfd);
	EXPECT_EQ(-EBUSY, sys_memfd_notify(self->fd, 0));
	close(other);
}

TEST_F(file, notify_flags)
{
	static const unsigned int bad[] = { 2, 4, 0x40000000, O_CLOEXEC, ~0U };

	close(self->nfd);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, sys_memfd_notify(self->fd, bad[i]))
			TH_LOG("flags %#x", bad[i]);
	}

	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	EXPECT_EQ(FD_CLOEXEC, fcntl(self->nfd, F_GETFD));
	EXPECT_EQ(0, fcntl(self->nfd, F_GETFL) & O_NONBLOCK);
	close(self->nfd);

	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_NONBLOCK);
	ASSERT_LE(0, self->nfd);
	EXPECT_EQ(FD_CLOEXEC, fcntl(self->nfd, F_GETFD));
	EXPECT_EQ(O_NONBLOCK, fcntl(self->nfd, F_GETFL) & O_NONBLOCK);
}

static long notify_as_nobody(int fd, unsigned int flags)
{
	int status, nfd;
	pid_t pid;

	pid = fork();
	if (!pid) {
		if (setresgid(65534, 65534, 65534) ||
		    setresuid(65534, 65534, 65534))
			_exit(255);
		nfd = sys_memfd_notify(fd, flags);
		_exit(nfd < 0 ? -nfd : 0);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -ECHILD;
	return -WEXITSTATUS(status);
}

TEST_F(file, notify_kernel_privilege)
{
	const unsigned int flags = MEMFD_NOTIFY_KERNEL | MEMFD_NOTIFY_NONBLOCK;
	char old[16];

	if (geteuid())
		SKIP(return, "needs root");
	close(self->nfd);
	ASSERT_TRUE(read_file(SYSCTL_UNPRIVILEGED, old, sizeof(old)));
	EXPECT_STREQ("0\n", old);
	EXPECT_EQ(0, notify_as_nobody(self->fd, 0));
	EXPECT_EQ(-EPERM, notify_as_nobody(self->fd, flags));
	EXPECT_EQ(-EINVAL, notify_as_nobody(self->fd, flags | 2));

	ASSERT_TRUE(write_file(SYSCTL_UNPRIVILEGED, "1"));
	EXPECT_EQ(0, notify_as_nobody(self->fd, flags));
	EXPECT_FALSE(write_file(SYSCTL_UNPRIVILEGED, "2"));
	EXPECT_FALSE(write_file(SYSCTL_UNPRIVILEGED, "-1"));
	EXPECT_TRUE(write_file(SYSCTL_UNPRIVILEGED, "0"));
	EXPECT_EQ(-EPERM, notify_as_nobody(self->fd, flags));

	self->nfd = sys_memfd_notify(self->fd, flags);
	EXPECT_LE(0, self->nfd);
}

TEST_F(file, notify_features)
{
	const uint64_t all = MEMFD_FEATURE_WAIT | MEMFD_FEATURE_ASYNC |
			     MEMFD_FEATURE_DENY | MEMFD_FEATURE_RESOLVE |
			     MEMFD_FEATURE_SCAN | MEMFD_FEATURE_PROTECT |
			     MEMFD_FEATURE_SEAL_PROTECT |
			     MEMFD_FEATURE_SHARE_PGTABLES;
	const uint64_t least = MEMFD_FEATURE_WAIT | MEMFD_FEATURE_DENY |
			       MEMFD_FEATURE_RESOLVE;
	uint64_t bits = features(self->nfd);
	struct memfd_range range;
	bool works;

	EXPECT_EQ(least, bits & least);
	EXPECT_EQ(0, bits & ~all);
	works = !protect_pages(self->fd, 0, 1, MEMFD_PROTECT_ASYNC);
	EXPECT_EQ(works, !!(bits & MEMFD_FEATURE_ASYNC));
	works = !scan_range(self->nfd, 0, 0, &range, 1, 0, NULL);
	EXPECT_EQ(works, !!(bits & MEMFD_FEATURE_SCAN));

	EXPECT_EQ(-EFAULT, neg_errno(ioctl(self->nfd, MEMFD_NOTIFY_FEATURES,
					   NULL)));
	EXPECT_EQ(-ENOTTY, neg_errno(ioctl(self->nfd, _IO('M', 99), &bits)));
}

/* Part 4: WAIT, by a store and by a write */

/* What a record says about a waiting writer */
static void check_event(struct __test_metadata *_metadata,
			const struct memfd_event *ev, unsigned int type,
			size_t page, size_t nr)
{
	EXPECT_EQ(sizeof(*ev), ev->len);
	EXPECT_EQ(type, ev->type);
	EXPECT_EQ(MEMFD_EVENT_F_WAITING, ev->flags & MEMFD_EVENT_F_WAITING);
	EXPECT_EQ(0, ev->flags & ~(MEMFD_EVENT_F_WAITING |
				   MEMFD_EVENT_F_KERNEL));
	if (type == MEMFD_EVENT_FAULT) {
		EXPECT_EQ(0, ev->flags & MEMFD_EVENT_F_KERNEL);
	}
	EXPECT_NE(0, ev->cookie);
	EXPECT_EQ(page * page_size(), ev->offset);
	EXPECT_EQ(nr * page_size(), ev->length);
}

TEST_F(file, event_layout)
{
	EXPECT_EQ(48, sizeof(struct memfd_event));
	EXPECT_EQ(16, sizeof(struct memfd_resolve));
	EXPECT_EQ(16, sizeof(struct memfd_range));
	EXPECT_EQ(48, sizeof(struct memfd_scan));
	EXPECT_EQ(40, offsetof(struct memfd_event, time_ns));
}

/*
 * The whole life of one event. @touch: 'w' the page was written and is
 * writable in the page table before protection, 'r' only read, 0 untouched.
 */
static void wait_store(struct __test_metadata *_metadata,
		       FIXTURE_DATA(file) *self, char touch)
{
	struct op op = op_at(self, 3, 1);
	uint64_t before, after;
	struct memfd_event ev;
	struct writer w;

	if (touch == 'w')
		self->map[op.offset] = OLD_BYTE;
	else if (touch == 'r')
		EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	EXPECT_TRUE(no_event(self->nfd));

	before = now_ns();
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	after = now_ns();
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 3, 1);
	EXPECT_EQ(w.pid, ev.pid);
	EXPECT_EQ(w.pid, ev.tid);
	EXPECT_LE(before, ev.time_ns);
	EXPECT_GE(after, ev.time_ns);

	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(0, w.out->sig);
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&w);
}

TEST_F(file, wait_store_written_before)
{
	wait_store(_metadata, self, 'w');
}

TEST_F(file, wait_store_read_before)
{
	wait_store(_metadata, self, 'r');
}

TEST_F(file, wait_store_untouched)
{
	wait_store(_metadata, self, 0);
}

/* The parent has a writable PTE, the child an inherited one */
TEST_F(file, wait_store_two_processes_two_addresses)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	self->map[op.offset] = OLD_BYTE;
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store_own_mapping, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 3, 1);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
	EXPECT_EQ(0, unprotect_pages(self->fd, 3, 1));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(1, w.out->ret);
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	writer_free(&w);
}

struct two_step {
	struct op op;
	volatile int *go;
};

/* Maps elsewhere and makes the page writable, then stores when told */
static long op_store_when_told(void *arg)
{
	struct two_step *step = arg;
	struct op *op = &step->op;
	char *map;

	map = mmap(NULL, NR_PAGES * page_size(), PROT_READ | PROT_WRITE,
		   MAP_SHARED, op->fd, 0);
	if (map == MAP_FAILED)
		return -ENOMEM;
	map[op->offset] = OLD_BYTE;
	*step->go = 1;
	while (*step->go != 2)
		usleep(200);
	map[op->offset] = NEW_BYTE;
	return 1;
}

static bool wait_for_int(volatile int *value, int wanted)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (*value != wanted && now_ns() < end)
		usleep(200);
	return *value == wanted;
}

/* Another process holds a writable PTE and a warm TLB when we protect */
TEST_F(file, wait_store_writable_elsewhere)
{
	struct two_step step = { .op = op_at(self, 5, 1) };
	struct memfd_event ev;
	struct writer w;

	step.go = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, step.go);
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store_when_told, &step));
	ASSERT_TRUE(wait_for_int(step.go, 1));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	*step.go = 2;
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 5, 1);
	EXPECT_EQ(w.pid, ev.pid);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(OLD_BYTE, self->map[step.op.offset]);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(NEW_BYTE, self->map[step.op.offset]);
	writer_free(&w);
}

TEST_F(file, wait_write)
{
	struct op op = op_at(self, 3, 2);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_WRITE, 3, 2);
	EXPECT_EQ(w.pid, ev.pid);
	EXPECT_EQ(w.pid, ev.tid);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_TRUE(file_filled_with(self->fd, 3, 2, OLD_BYTE));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)op.len, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 3, 2, NEW_BYTE));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&w);
}

/* Which part of a write its event covers */
static void write_event_range(struct __test_metadata *_metadata,
			      FIXTURE_DATA(file) *self, size_t offset,
			      size_t len, size_t page, size_t nr)
{
	struct op op = { .fd = self->fd, .offset = offset, .len = len };
	size_t first = offset / self->page;
	struct memfd_event ev;
	struct writer w;

	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_WRITE, page, nr);
	EXPECT_TRUE(writer_blocks(&w));
	/* Nothing is written before the wait, not even where it may be */
	EXPECT_TRUE(file_filled_with(self->fd, first, page - first + nr,
				     OLD_BYTE));
	writer_kill(&w);
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	writer_free(&w);
}

TEST_F(file, wait_write_event_range)
{
	const size_t page = self->page;

	ASSERT_EQ(0, protect_pages(self->fd, 4, 4, MEMFD_PROTECT_WAIT));
	write_event_range(_metadata, self, 4 * page, page, 4, 1);
	write_event_range(_metadata, self, 2 * page, 4 * page, 4, 2);
	write_event_range(_metadata, self, 2 * page, 12 * page, 4, 4);
	write_event_range(_metadata, self, 6 * page, 8 * page, 6, 2);
	write_event_range(_metadata, self, 5 * page + 100, 10, 5, 1);
	write_event_range(_metadata, self, 5 * page - 1, 2, 4, 2);
	write_event_range(_metadata, self, 3 * page + 1, page, 4, 1);
	write_event_range(_metadata, self, 7 * page + 1, page, 7, 1);
}

/* A write over two WAIT ranges waits for the one, then for the other */
TEST_F(file, wait_write_two_ranges)
{
	struct op op = op_at(self, 2, 8);
	struct memfd_event ev, ev2;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 7, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_WRITE, 3, 2);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	ASSERT_TRUE(read_event(self->nfd, &ev2));
	check_event(_metadata, &ev2, MEMFD_EVENT_WRITE, 7, 1);
	EXPECT_NE(ev.cookie, ev2.cookie);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_TRUE(file_filled_with(self->fd, 2, 8, OLD_BYTE));
	EXPECT_EQ(0, resolve(self->nfd, ev2.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)op.len, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 2, 8, NEW_BYTE));
	writer_free(&w);
}

/* Reads see the file as it is, through a descriptor or a mapping */
TEST_F(file, reads_never_block)
{
	unsigned char vec[NR_PAGES];
	char *map, *hole;

	ASSERT_EQ(0, ftruncate(self->fd, self->size + 4 * self->page));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
	EXPECT_TRUE(file_filled_with(self->fd, NR_PAGES, 4, 0));
	EXPECT_TRUE(filled_with(self->map, self->size, OLD_BYTE));
	map = mmap(NULL, self->size, PROT_READ, MAP_SHARED | MAP_POPULATE,
		   self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_TRUE(filled_with(map, self->size, OLD_BYTE));
	hole = mmap(NULL, 4 * self->page, PROT_READ | PROT_WRITE, MAP_SHARED,
		    self->fd, self->size);
	ASSERT_NE(MAP_FAILED, hole);
	EXPECT_TRUE(filled_with(hole, 4 * self->page, 0));
	EXPECT_EQ(0, madvise(hole, 4 * self->page, MADV_POPULATE_READ));
	EXPECT_EQ(0, mlock(self->map, self->page));
	EXPECT_EQ(0, mincore(self->map, self->size, vec));
	EXPECT_TRUE(no_event(self->nfd));
	munmap(hole, 4 * self->page);
	munmap(map, self->size);
}

/* A page that was first read, in a hole, is still caught when written */
TEST_F(file, wait_hole_read_then_stored)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, op.offset, op.len));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(0, self->map[op.offset]);
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 3, 1);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, self->map[op.offset]);
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	writer_free(&w);
}

/* Part 5: DENY */

TEST_F(file, deny_store)
{
	static const size_t in_page[] = { 0, 1, 1000, 4095 };
	struct outcome out = { 0 };
	struct op op;

	self->map[2 * self->page] = OLD_BYTE;
	ASSERT_EQ(0, protect_pages(self->fd, 2, 2, MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < ARRAY_SIZE(in_page); i++) {
		op = op_at(self, 2 + i % 2, 1);
		op.offset += in_page[i];
		run_guarded(op_store, &op, &out);
		EXPECT_EQ(SIGBUS, out.sig);
		EXPECT_EQ(BUS_ADRERR, out.code);
		EXPECT_EQ((void *)(self->map + op.offset), out.addr);
	}
	EXPECT_TRUE(filled_with(self->map, self->size, OLD_BYTE));
	EXPECT_TRUE(no_event(self->nfd));

	op = op_at(self, 4, 1);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(0, out.sig);
	ASSERT_EQ(0, unprotect_pages(self->fd, 2, 1));
	op = op_at(self, 2, 1);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(0, out.sig);
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	op = op_at(self, 3, 1);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
}

/* In a hole, and through a mapping made after protection */
TEST_F(file, deny_store_hole_new_mapping)
{
	struct outcome out = { 0 };
	struct op op = op_at(self, 2, 1);

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, op.offset, op.len));
	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_DENY));
	op.map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED,
		      self->fd, 0);
	ASSERT_NE(MAP_FAILED, op.map);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	EXPECT_EQ(BUS_ADRERR, out.code);
	EXPECT_EQ((void *)(op.map + op.offset), out.addr);
	EXPECT_EQ(0, op.map[op.offset]);
	munmap(op.map, self->size);
}

/* Guard regions come and go; pages are protected before, meanwhile, and after */
TEST_F(file, deny_behind_guards)
{
	struct op before = op_at(self, 2, 1), between = op_at(self, 3, 1);
	struct op meanwhile = op_at(self, 4, 1);
	char *guarded = self->map + before.offset;
	struct outcome out = { 0 };

	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_DENY));
	if (madvise(guarded, 3 * self->page, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions in files");
	ASSERT_EQ(0, protect_pages(self->fd, 4, 1, MEMFD_PROTECT_DENY));
	run_guarded(op_store, &before, &out);
	EXPECT_EQ(SIGSEGV, out.sig);
	run_guarded(op_store, &meanwhile, &out);
	EXPECT_EQ(SIGSEGV, out.sig);
	EXPECT_TRUE(no_event(self->nfd));

	ASSERT_EQ(0, madvise(guarded, 3 * self->page, MADV_GUARD_REMOVE));
	run_guarded(op_store, &before, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	run_guarded(op_store, &meanwhile, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	run_guarded(op_store, &between, &out);
	EXPECT_EQ(0, out.sig);
}

/* EPERM for the whole call when one page of it is protected */
TEST_F(file, deny_write_nothing_written)
{
	static const struct {
		size_t page, nr;
	} calls[] = { { 5, 1 }, { 2, 4 }, { 5, 4 }, { 2, 12 }, { 6, 1 } };
	struct outcome out = { 0 };
	struct op op;

	ASSERT_EQ(0, protect_pages(self->fd, 5, 2, MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		op = op_at(self, calls[i].page, calls[i].nr);
		run_guarded(op_write, &op, &out);
		EXPECT_EQ(-EPERM, out.ret);
	}
	op = op_at(self, 6, 1);
	op.offset += self->page - 1;
	op.len = 2;
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_TRUE(file_filled_with(self->fd, 0, NR_PAGES, OLD_BYTE));
	EXPECT_TRUE(no_event(self->nfd));

	op = op_at(self, 4, 1);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ((long)self->page, out.ret);
	op = op_at(self, 7, 1);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ((long)self->page, out.ret);
	op = op_at(self, 5, 0);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(0, out.ret);
}

/* The file position does not move when nothing is written */
TEST_F(file, deny_write_position)
{
	char buf[64] = { NEW_BYTE };

	ASSERT_EQ(0, protect_pages(self->fd, 1, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(self->page - 10, lseek(self->fd, self->page - 10, SEEK_SET));
	EXPECT_EQ(-EPERM, neg_errno(write(self->fd, buf, sizeof(buf))));
	EXPECT_EQ(self->page - 10, lseek(self->fd, 0, SEEK_CUR));
	EXPECT_TRUE(file_filled_with(self->fd, 0, 2, OLD_BYTE));
}

/* A call that touches both is denied and does not wait first */
TEST_F(file, deny_and_wait_in_one_write)
{
	struct op op = op_at(self, 2, 6);
	struct outcome out = { 0 };

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 6, 1, MEMFD_PROTECT_DENY));
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_TRUE(file_filled_with(self->fd, 2, 6, OLD_BYTE));
	EXPECT_TRUE(no_event(self->nfd));
}

/* DENY needs no event fd and survives its end */
TEST_F(file, deny_without_notify)
{
	struct op op = op_at(self, 2, 1);
	struct outcome out = { 0 };

	close(self->nfd);
	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_DENY));
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	close(self->nfd);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_TRUE(file_filled_with(self->fd, 2, 1, OLD_BYTE));
	self->nfd = sys_memfd_notify(self->fd, 0);
}

/* RWF_NOWAIT: where the file system knows it, EAGAIN instead of sleep */
TEST_F(file, nowait_write)
{
	char buf[16] = { NEW_BYTE };
	struct iovec iov = { buf, sizeof(buf) };
	struct memfd_event ev;
	long free_page;

	ASSERT_EQ(0, protect_pages(self->fd, 2, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_DENY));
	free_page = neg_errno(pwritev2(self->fd, &iov, 1, 0, RWF_NOWAIT));
	if (free_page == -EOPNOTSUPP) {
		EXPECT_EQ(-EOPNOTSUPP, neg_errno(pwritev2(self->fd, &iov, 1,
							  2 * self->page,
							  RWF_NOWAIT)));
		SKIP(return, "shmem has no RWF_NOWAIT here");
	}
	EXPECT_EQ((long)sizeof(buf), free_page);
	EXPECT_EQ(-EAGAIN, neg_errno(pwritev2(self->fd, &iov, 1,
					      2 * self->page, RWF_NOWAIT)));
	EXPECT_EQ(-EPERM, neg_errno(pwritev2(self->fd, &iov, 1,
					     3 * self->page, RWF_NOWAIT)));
	EXPECT_TRUE(file_filled_with(self->fd, 1, 3, OLD_BYTE));
	/* If it tells the reader at all, then as an event without a waiter */
	if (read_event_in(self->nfd, &ev, SHORT_MS)) {
		EXPECT_EQ(0, ev.flags & MEMFD_EVENT_F_WAITING);
	}
}

/* Part 6: resolving and replacing */

TEST_F(file, resolve_errors)
{
	struct memfd_resolve arg = { 0 };
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	EXPECT_EQ(-ENOENT, resolve(self->nfd, 0, MEMFD_RESOLVE_ALLOW));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, 0, MEMFD_RESOLVE_DENY));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, 12345678, MEMFD_RESOLVE_ALLOW));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ~0ULL, MEMFD_RESOLVE_DENY));
	EXPECT_EQ(-EINVAL, resolve(self->nfd, 12345678, 2));
	EXPECT_EQ(-EFAULT, neg_errno(ioctl(self->nfd, MEMFD_NOTIFY_RESOLVE,
					   NULL)));

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(-EINVAL, resolve(self->nfd, ev.cookie, 2));
	EXPECT_EQ(-EINVAL, resolve(self->nfd, ev.cookie, ~0U));
	arg.cookie = ev.cookie;
	arg.reserved = 1;
	EXPECT_EQ(-EINVAL, neg_errno(ioctl(self->nfd, MEMFD_NOTIFY_RESOLVE,
					   &arg)));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie + 1,
				   MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	writer_free(&w);
}

/* DENY keeps the protection: the writer fails, the next one is caught anew */
TEST_F(file, resolve_deny)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev, ev2;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(SIGBUS, w.out->sig);
	EXPECT_EQ(BUS_ADRERR, w.out->code);
	EXPECT_EQ((void *)(self->map + op.offset), w.out->addr);
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	writer_free(&w);

	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev2));
	EXPECT_NE(ev.cookie, ev2.cookie);
	EXPECT_EQ(0, resolve(self->nfd, ev2.cookie, MEMFD_RESOLVE_DENY));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EPERM, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 3, 1, OLD_BYTE));
	writer_free(&w);

	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_TRUE(writer_blocks(&w));
	writer_free(&w);
}

/* ALLOW unprotects the event's range, and not more */
TEST_F(file, resolve_allow_only_its_range)
{
	struct op op = op_at(self, 3, 1), next = op_at(self, 4, 1);
	struct outcome out = { 0 };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 2, 4, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	writer_free(&w);
	/* Open now for everyone */
	run_guarded(op_write, &op, &out);
	EXPECT_EQ((long)op.len, out.ret);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(0, out.sig);
	EXPECT_TRUE(no_event(self->nfd));
	/* The neighbour is not */
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &next));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(next.offset, ev.offset);
	EXPECT_TRUE(writer_blocks(&w));
	writer_free(&w);
}

/*
 * Cookies are handed out by the events only: a reader that lost its records
 * can still resolve from what another reader told it.
 */
TEST_F(file, resolve_without_read)
{
	struct op op = op_at(self, 3, 1), op2 = op_at(self, 9, 1);
	struct memfd_event ev;
	struct writer w, w2;
	uint64_t guess;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_TRUE(writer_start(&w2, self->nfd, op_store, &op2));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	/* Its cookie is not known; it is near the last one */
	for (guess = ev.cookie + 1; guess < ev.cookie + 4096; guess++)
		if (!resolve(self->nfd, guess, MEMFD_RESOLVE_ALLOW))
			break;
	if (guess == ev.cookie + 4096) {
		writer_free(&w);
		writer_free(&w2);
		SKIP(return, "cookies cannot be guessed");
	}
	EXPECT_TRUE(writer_finishes(&w2));
	/* What was resolved need not be read any more */
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	writer_free(&w);
	writer_free(&w2);
}

/* Resolving one event leaves the others alone */
TEST_F(file, resolve_out_of_order)
{
	enum { NR = 6 };
	struct memfd_event ev[NR];
	struct writer w[NR];
	struct op op[NR];

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < NR; i++) {
		op[i] = op_at(self, 2 * i, 1);
		ASSERT_TRUE(writer_start(&w[i], self->nfd,
					 i % 2 ? op_write : op_store, &op[i]));
		ASSERT_TRUE(read_event(self->nfd, &ev[i]));
		EXPECT_EQ(op[i].offset, ev[i].offset);
	}
	for (int i = NR - 1; i >= 0; i--) {
		EXPECT_TRUE(writer_sleeps(&w[i]));
		EXPECT_EQ(0, resolve(self->nfd, ev[i].cookie,
				     MEMFD_RESOLVE_ALLOW));
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ(NEW_BYTE, self->map[op[i].offset]);
		if (i) {
			EXPECT_FALSE(w[0].out->done);
		}
		writer_free(&w[i]);
	}
}

/* Removing protection resolves as allow everything in the range */
TEST_F(file, unprotect_resolves_all)
{
	enum { NR = 5 };
	struct memfd_event ev[NR];
	struct writer w[NR];
	struct op op[NR];

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < NR; i++) {
		op[i] = op_at(self, 3 * i, 1);
		ASSERT_TRUE(writer_start(&w[i], self->nfd,
					 i % 2 ? op_write : op_store, &op[i]));
		ASSERT_TRUE(read_event(self->nfd, &ev[i]));
	}
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	for (int i = 0; i < NR; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ(0, w[i].out->sig);
		EXPECT_LE(0, w[i].out->ret);
		EXPECT_EQ(NEW_BYTE, self->map[op[i].offset]);
		EXPECT_EQ(-ENOENT, resolve(self->nfd, ev[i].cookie,
					   MEMFD_RESOLVE_ALLOW));
		writer_free(&w[i]);
	}
}

/* Unread events of the range are withdrawn when it is unprotected */
TEST_F(file, unprotect_withdraws_unread)
{
	struct op op = op_at(self, 3, 1);
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	EXPECT_EQ(0, unprotect_pages(self->fd, 3, 1));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&w);
}

TEST_F(file, partial_unprotect)
{
	struct op low = op_at(self, 4, 1), high = op_at(self, 6, 1);
	struct op both = op_at(self, 4, 4);
	struct writer wl, wh, wb;

	ASSERT_EQ(0, protect_pages(self->fd, 4, 4, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&wl, self->nfd, op_store, &low));
	ASSERT_TRUE(writer_start(&wh, self->nfd, op_store, &high));
	ASSERT_TRUE(writer_start(&wb, self->nfd, op_write, &both));
	ASSERT_TRUE(writer_sleeps(&wl));
	ASSERT_TRUE(writer_sleeps(&wh));
	ASSERT_TRUE(writer_sleeps(&wb));

	EXPECT_EQ(0, unprotect_pages(self->fd, 4, 2));
	EXPECT_TRUE(writer_finishes(&wl));
	EXPECT_TRUE(writer_blocks(&wh));
	EXPECT_TRUE(writer_blocks(&wb));
	EXPECT_TRUE(file_filled_with(self->fd, 5, 3, OLD_BYTE));

	EXPECT_EQ(0, unprotect_pages(self->fd, 6, 2));
	EXPECT_TRUE(writer_finishes(&wh));
	EXPECT_TRUE(writer_finishes(&wb));
	EXPECT_EQ((long)both.len, wb.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 4, 4, NEW_BYTE));
	writer_free(&wl);
	writer_free(&wh);
	writer_free(&wb);
}

/* A store and a write(2) that overlap have an event each */
TEST_F(file, overlapping_events)
{
	struct op store = op_at(self, 5, 1), write = op_at(self, 4, 3);
	struct memfd_event ev, ev2;
	struct writer ws, ww;

	ASSERT_EQ(0, protect_pages(self->fd, 4, 4, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&ws, self->nfd, op_store, &store));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 5, 1);
	ASSERT_TRUE(writer_start(&ww, self->nfd, op_write, &write));
	ASSERT_TRUE(read_event(self->nfd, &ev2));
	check_event(_metadata, &ev2, MEMFD_EVENT_WRITE, 4, 3);
	EXPECT_NE(ev.cookie, ev2.cookie);

	/* The range of the second contains that of the first */
	EXPECT_EQ(0, resolve(self->nfd, ev2.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&ww));
	EXPECT_TRUE(writer_finishes(&ws));
	EXPECT_EQ(0, ws.out->sig);
	EXPECT_EQ((long)write.len, ww.out->ret);
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	writer_free(&ws);
	writer_free(&ww);
}

/* A range becomes DENY: who sleeps in it fails */
TEST_F(file, wait_replaced_by_deny)
{
	struct op op = op_at(self, 3, 1);
	struct writer ws, ww;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&ws, self->nfd, op_store, &op));
	ASSERT_TRUE(writer_start(&ww, self->nfd, op_write, &op));
	ASSERT_TRUE(writer_sleeps(&ws));
	ASSERT_TRUE(writer_sleeps(&ww));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_DENY));
	EXPECT_TRUE(writer_finishes(&ws));
	EXPECT_EQ(SIGBUS, ws.out->sig);
	EXPECT_EQ(BUS_ADRERR, ws.out->code);
	EXPECT_TRUE(writer_finishes(&ww));
	EXPECT_EQ(-EPERM, ww.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 3, 1, OLD_BYTE));
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&ws);
	writer_free(&ww);
}

/* WAIT over WAIT: who sleeps goes on sleeping, and can be resolved */
TEST_F(file, wait_replaced_by_wait)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 8, MEMFD_PROTECT_WAIT));
	EXPECT_TRUE(writer_blocks(&w));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 3, 1);
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&w);
}

/* WAIT becomes ASYNC: who sleeps goes on, and is logged */
TEST_F(file, wait_replaced_by_async)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_range range;
	struct writer w;

	if (!(features(self->nfd) & MEMFD_FEATURE_ASYNC))
		SKIP(return, "no ASYNC");
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_ASYNC));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1, 0, NULL));
	EXPECT_EQ(op.offset, range.offset);
	writer_free(&w);
}

/* DENY becomes WAIT, then nothing, by parts of the range */
TEST_F(file, modes_side_by_side)
{
	struct op op = op_at(self, 0, 1);
	struct outcome out = { 0 };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, protect_pages(self->fd, 4, 4, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, unprotect_pages(self->fd, 5, 1));
	for (size_t page = 0; page < 12; page++) {
		op = op_at(self, page, 1);
		if (page == 5) {
			run_guarded(op_store, &op, &out);
			EXPECT_EQ(0, out.sig);
		} else if (page < 4 || page > 7) {
			run_guarded(op_store, &op, &out);
			EXPECT_EQ(SIGBUS, out.sig) TH_LOG("page %zu", page);
		} else {
			ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
			ASSERT_TRUE(read_event(self->nfd, &ev));
			EXPECT_EQ(op.offset, ev.offset);
			writer_free(&w);
		}
	}
}

/* Part 7: waiters that are killed or interrupted */

static void killed_waiter(struct __test_metadata *_metadata,
			  FIXTURE_DATA(file) *self, operation_fn fn,
			  bool read_first)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev = { 0 };
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, fn, &op));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	if (read_first) {
		ASSERT_TRUE(read_event(self->nfd, &ev));
	}
	EXPECT_TRUE(writer_blocks(&w));
	kill(w.pid, SIGKILL);
	EXPECT_TRUE(writer_reap(&w, LONG_MS));
	EXPECT_TRUE(WIFSIGNALED(w.status));
	EXPECT_EQ(SIGKILL, WTERMSIG(w.status));
	EXPECT_TRUE(no_event(self->nfd));
	if (read_first) {
		EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie,
					   MEMFD_RESOLVE_ALLOW));
	}
	EXPECT_TRUE(file_filled_with(self->fd, 3, 1, OLD_BYTE));
	writer_free(&w);

	/* The range is still protected, and the next event is another one */
	ASSERT_TRUE(writer_start(&w, self->nfd, fn, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(w.pid, ev.pid);
	EXPECT_TRUE(writer_blocks(&w));
	writer_free(&w);
}

TEST_F(file, killed_store_read)
{
	killed_waiter(_metadata, self, op_store, true);
}

TEST_F(file, killed_store_unread)
{
	killed_waiter(_metadata, self, op_store, false);
}

TEST_F(file, killed_write_read)
{
	killed_waiter(_metadata, self, op_write, true);
}

TEST_F(file, killed_write_unread)
{
	killed_waiter(_metadata, self, op_write, false);
}

/* One of two is killed: the event stays for the other */
TEST_F(file, killed_one_of_two)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w, w2;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_TRUE(writer_start(&w2, self->nfd, op_store, &op));
	ASSERT_TRUE(writer_sleeps(&w2));
	writer_kill(&w);
	EXPECT_TRUE(writer_blocks(&w2));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w2));
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	writer_free(&w);
	writer_free(&w2);
}

/*
 * A cookie of a killed writer never names the event of a later one, though
 * page and offset are the same.
 */
TEST_F(file, cookies_unique)
{
	enum { NR = 24 };
	struct op op = op_at(self, 3, 1);
	uint64_t cookies[NR];
	struct memfd_event ev;
	struct writer w;

	for (int i = 0; i < NR; i++) {
		ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
		ASSERT_TRUE(writer_start(&w, self->nfd,
					 i % 3 ? op_store : op_write, &op));
		ASSERT_TRUE(read_event(self->nfd, &ev));
		EXPECT_NE(0, ev.cookie);
		for (int k = 0; k < i; k++) {
			EXPECT_NE(cookies[k], ev.cookie);
			EXPECT_EQ(-ENOENT, resolve(self->nfd, cookies[k],
						   MEMFD_RESOLVE_ALLOW));
		}
		cookies[i] = ev.cookie;
		EXPECT_FALSE(w.out->done);
		if (i % 4 == 3) {
			EXPECT_EQ(0, unprotect_pages(self->fd, 3, 1));
		}
		writer_free(&w);
	}
	/* Nor does a cookie of the last event fd work on the next one */
	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	for (int k = 0; k < NR; k++) {
		EXPECT_NE(cookies[k], ev.cookie);
	}
	writer_free(&w);
}

static volatile sig_atomic_t *handler_ran;

static void count_signal(int sig)
{
	(*handler_ran)++;
}

struct signal_op {
	struct op op;
	operation_fn fn;
	int sa_flags;
};

static long op_with_handler(void *arg)
{
	struct signal_op *sop = arg;
	struct sigaction act = {
		.sa_handler = count_signal, .sa_flags = sop->sa_flags,
	};

	sigaction(SIGUSR1, &act, NULL);
	return sop->fn(&sop->op);
}

static void interrupted_waiter(struct __test_metadata *_metadata,
			       FIXTURE_DATA(file) *self, struct signal_op *sop,
			       bool may_fail)
{
	struct memfd_event ev, ev2;
	struct writer w;

	handler_ran = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, handler_ran);
	sop->op = op_at(self, 3, 1);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_with_handler, sop));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_TRUE(writer_blocks(&w));
	kill(w.pid, SIGUSR1);

	if (may_fail) {
		EXPECT_TRUE(writer_finishes(&w));
		EXPECT_EQ(-EINTR, w.out->ret);
		EXPECT_EQ(1, *handler_ran);
		EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie,
					   MEMFD_RESOLVE_ALLOW));
		EXPECT_TRUE(no_event(self->nfd));
		EXPECT_TRUE(file_filled_with(self->fd, 3, 1, OLD_BYTE));
		goto out;
	}
	/* It may have left and come back with another event, but not gone on */
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(OLD_BYTE, self->map[sop->op.offset]);
	if (read_event_in(self->nfd, &ev2, 200)) {
		EXPECT_NE(ev.cookie, ev2.cookie);
		EXPECT_EQ(ev.offset, ev2.offset);
		ev = ev2;
	}
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_LT(0, w.out->ret);
	EXPECT_EQ(1, *handler_ran);
	EXPECT_EQ(NEW_BYTE, self->map[sop->op.offset]);
out:
	writer_free(&w);
}

TEST_F(file, interrupted_write)
{
	struct signal_op sop = { .fn = op_write };

	interrupted_waiter(_metadata, self, &sop, true);
}

TEST_F(file, interrupted_write_restarts)
{
	struct signal_op sop = { .fn = op_write, .sa_flags = SA_RESTART };

	interrupted_waiter(_metadata, self, &sop, false);
}

TEST_F(file, interrupted_store)
{
	struct signal_op sop = { .fn = op_store };

	interrupted_waiter(_metadata, self, &sop, false);
}

/* A stop and a continue do not make a write fail, nor lose its wait */
TEST_F(file, stopped_and_continued)
{
	struct op op = op_at(self, 3, 1), op2 = op_at(self, 4, 1);
	struct writer w, w2;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(writer_start(&w2, self->nfd, op_store, &op2));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(writer_sleeps(&w2));
	kill(w.pid, SIGSTOP);
	kill(w2.pid, SIGSTOP);
	sleep_ms(SHORT_MS);
	kill(w.pid, SIGCONT);
	kill(w2.pid, SIGCONT);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_TRUE(writer_blocks(&w2));
	EXPECT_TRUE(file_filled_with(self->fd, 3, 2, OLD_BYTE));
	EXPECT_EQ(0, unprotect_pages(self->fd, 3, 2));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_TRUE(writer_finishes(&w2));
	EXPECT_EQ((long)op.len, w.out->ret);
	EXPECT_EQ(0, w2.out->sig);
	writer_free(&w);
	writer_free(&w2);
}

/* Part 8: who waits holds no lock */

struct sleeper {
	struct op op;
	operation_fn fn;
	struct outcome out;
	pthread_t thread;
};

static void *sleeper_thread(void *arg)
{
	struct sleeper *s = arg;

	run_guarded(s->fn, &s->op, &s->out);
	return NULL;
}

static bool sleeper_ended(struct sleeper *s)
{
	return wait_for_int(&s->out.done, 1);
}

/* Everything that takes mmap_lock, the VMA's lock or the inode's */
static void use_locks(struct __test_metadata *_metadata,
		      FIXTURE_DATA(file) *self)
{
	size_t page = self->page;
	struct stat st;
	char *map;

	map = mmap(NULL, self->size, RW, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	map[page] = OLD_BYTE;
	EXPECT_EQ(0, mprotect(map, self->size, PROT_READ));
	EXPECT_EQ(0, munmap(map, self->size));
	EXPECT_EQ(0, mprotect(self->map, self->size, PROT_READ));
	EXPECT_EQ(0, mprotect(self->map, self->size, RW));
	EXPECT_EQ(0, madvise(self->map + 3 * page, 2 * page, MADV_DONTNEED));
	EXPECT_EQ(OLD_BYTE, self->map[3 * page]);
	EXPECT_EQ(0, ftruncate(self->fd, self->size + page));
	EXPECT_EQ(0, fallocate(self->fd, 0, 0, self->size + 2 * page));
	EXPECT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ((ssize_t)page, pwrite(self->fd, self->map + page, page, 0));
	EXPECT_EQ(0, protect_pages(self->fd, 20, 2, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(0, unprotect_pages(self->fd, 20, 2));
	EXPECT_LE(0, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(file, waiters_hold_no_lock)
{
	struct sleeper store = { .fn = op_store }, write = { .fn = op_write };
	pid_t pid;
	int status;

	store.op = op_at(self, 3, 1);
	write.op = op_at(self, 4, 1);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, pthread_create(&store.thread, NULL, sleeper_thread,
				    &store));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	EXPECT_EQ(1, drain_events(self->nfd));
	ASSERT_EQ(0, pthread_create(&write.thread, NULL, sleeper_thread,
				    &write));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));

	use_locks(_metadata, self);
	pid = fork();
	if (!pid)
		_exit(self->map[5 * self->page]);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(OLD_BYTE, WEXITSTATUS(status));

	EXPECT_FALSE(store.out.done);
	EXPECT_FALSE(write.out.done);
	EXPECT_TRUE(file_filled_with(self->fd, 3, 2, OLD_BYTE));
	EXPECT_EQ(0, unprotect_pages(self->fd, 3, 2));
	EXPECT_TRUE(sleeper_ended(&store));
	EXPECT_TRUE(sleeper_ended(&write));
	EXPECT_EQ(self->page, write.out.ret);
}

/* A thread of a process that waits: the event names process and thread */
TEST_F(file, event_names_thread)
{
	struct sleeper store = { .fn = op_store };
	struct memfd_event ev;

	store.op = op_at(self, 3, 1);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, pthread_create(&store.thread, NULL, sleeper_thread,
				    &store));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(getpid(), ev.pid);
	EXPECT_EQ(store.out.tid, ev.tid);
	EXPECT_NE(ev.pid, ev.tid);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(sleeper_ended(&store));
	pthread_join(store.thread, NULL);
}

/* The mapping goes away under a sleeping store: it dies of SIGSEGV */
TEST_F(file, unmap_under_waiter)
{
	struct sleeper store = { .fn = op_store };
	struct memfd_event ev;
	char *map;

	store.op = op_at(self, 3, 1);
	map = mmap(NULL, self->size, RW, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	store.op.map = map;
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, pthread_create(&store.thread, NULL, sleeper_thread,
				    &store));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_EQ(0, munmap(map, self->size));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(sleeper_ended(&store));
	EXPECT_EQ(SIGSEGV, store.out.sig);
	EXPECT_TRUE(file_filled_with(self->fd, 3, 1, OLD_BYTE));
	pthread_join(store.thread, NULL);
}

/* mprotect to read-only under a sleeping store, then allow: SIGSEGV too */
TEST_F(file, mprotect_under_waiter)
{
	struct sleeper store = { .fn = op_store };
	struct memfd_event ev;

	store.op = op_at(self, 3, 1);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, pthread_create(&store.thread, NULL, sleeper_thread,
				    &store));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_EQ(0, mprotect(self->map, self->size, PROT_READ));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(sleeper_ended(&store));
	EXPECT_EQ(SIGSEGV, store.out.sig);
	EXPECT_EQ(OLD_BYTE, self->map[store.op.offset]);
	pthread_join(store.thread, NULL);
}

/* Part 9: many waiters, many events */

/* However many wait on a page: one event */
TEST_F(file, many_waiters_one_event)
{
	enum { NR = 12 };
	struct op op = op_at(self, 3, 1);
	struct writer w[NR];
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < NR; i++) {
		ASSERT_TRUE(writer_start(&w[i], self->nfd, i % 2 ? op_store :
					 op_store_own_mapping, &op));
	}
	for (int i = 0; i < NR; i++) {
		EXPECT_TRUE(writer_sleeps(&w[i]));
	}
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, 3, 1);
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	for (int i = 0; i < NR; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ(0, w[i].out->sig);
		writer_free(&w[i]);
	}
	EXPECT_TRUE(no_event(self->nfd));
}

/* All of them fail when it is denied */
TEST_F(file, many_waiters_denied)
{
	enum { NR = 8 };
	struct op op = op_at(self, 3, 1);
	struct writer w[NR];
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < NR; i++) {
		ASSERT_TRUE(writer_start(&w[i], self->nfd, op_store, &op));
	}
	for (int i = 0; i < NR; i++) {
		EXPECT_TRUE(writer_sleeps(&w[i]));
	}
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	for (int i = 0; i < NR; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ(SIGBUS, w[i].out->sig);
		EXPECT_EQ((void *)(self->map + op.offset), w[i].out->addr);
		writer_free(&w[i]);
	}
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
}

/* Several writers of one range join one WRITE event */
TEST_F(file, many_writes_one_event)
{
	enum { NR = 4 };
	struct op op = op_at(self, 3, 2);
	struct writer w[NR];
	struct memfd_event ev;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < NR; i++) {
		ASSERT_TRUE(writer_start(&w[i], self->nfd, op_write, &op));
		EXPECT_TRUE(writer_sleeps(&w[i]));
	}
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_WRITE, 3, 2);
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	for (int i = 0; i < NR; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ((long)op.len, w[i].out->ret);
		writer_free(&w[i]);
	}
}

#define NR_MANY	10

static void start_many(struct __test_metadata *_metadata,
		       FIXTURE_DATA(file) *self, struct writer *w,
		       struct op *op)
{
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	for (int i = 0; i < NR_MANY; i++) {
		op[i] = op_at(self, i, 1);
		ASSERT_TRUE(writer_start(&w[i], self->nfd, op_store, &op[i]));
		ASSERT_TRUE(writer_sleeps(&w[i]));
	}
}

static void finish_many(struct __test_metadata *_metadata,
			FIXTURE_DATA(file) *self, struct writer *w)
{
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	for (int i = 0; i < NR_MANY; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		writer_free(&w[i]);
	}
	EXPECT_TRUE(no_event(self->nfd));
}

/* read(2) returns whole records, as many as fit, each once */
TEST_F(file, read_many_records)
{
	struct memfd_event ev[NR_MANY + 1];
	struct writer w[NR_MANY];
	struct op op[NR_MANY];
	uint64_t seen = 0;
	size_t got;

	start_many(_metadata, self, w, op);
	EXPECT_EQ((ssize_t)(3 * sizeof(ev[0])),
		  read(self->nfd, ev, 3 * sizeof(ev[0])));
	EXPECT_EQ((ssize_t)(2 * sizeof(ev[0])),
		  read(self->nfd, ev + 3, 3 * sizeof(ev[0]) - 1));
	EXPECT_EQ((ssize_t)sizeof(ev[0]),
		  read(self->nfd, ev + 5, sizeof(ev[0]) + 47));
	got = read(self->nfd, ev + 6, 5 * sizeof(ev[0]));
	EXPECT_EQ((NR_MANY - 6) * sizeof(ev[0]), got);
	for (int i = 0; i < NR_MANY; i++) {
		check_event(_metadata, &ev[i], MEMFD_EVENT_FAULT,
			    ev[i].offset / self->page, 1);
		seen |= 1ULL << (ev[i].offset / self->page);
		if (i) {
			EXPECT_LE(ev[i - 1].time_ns, ev[i].time_ns);
		}
	}
	EXPECT_EQ((1ULL << NR_MANY) - 1, seen);
	EXPECT_TRUE(no_event(self->nfd));
	finish_many(_metadata, self, w);
}

/* Part 10: the event fd as a file */

TEST_F(file, read_small_buffer)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, fcntl(self->nfd, F_SETFL, O_NONBLOCK));
	EXPECT_EQ(-EINVAL, neg_errno(read(self->nfd, &ev, 47)));
	EXPECT_EQ(-EINVAL, neg_errno(read(self->nfd, &ev, 0)));
	EXPECT_EQ(-EAGAIN, neg_errno(read(self->nfd, &ev, 48)));

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	EXPECT_EQ(-EINVAL, neg_errno(read(self->nfd, &ev, 47)));
	EXPECT_EQ(-EINVAL, neg_errno(read(self->nfd, &ev, 1)));
	EXPECT_EQ(-EFAULT, neg_errno(read(self->nfd, bad_pointer(), 48)));
	/* It is still there */
	EXPECT_EQ(48, read(self->nfd, &ev, 48));
	EXPECT_EQ(op.offset, ev.offset);
	EXPECT_EQ(-EAGAIN, neg_errno(read(self->nfd, &ev, 48)));
	writer_free(&w);
}

TEST_F(file, not_written_nor_mapped)
{
	char byte = 0;

	EXPECT_GT(0, write(self->nfd, &byte, 1));
	EXPECT_EQ(-ENODEV, neg_errno((long)mmap(NULL, self->page, PROT_READ,
						MAP_SHARED, self->nfd, 0)));
	EXPECT_GT(0, ftruncate(self->nfd, 0));
	EXPECT_EQ(-EINVAL, protect_pages(self->nfd, 0, 1, MEMFD_PROTECT_DENY));
}

static long op_read_event(void *arg)
{
	struct memfd_event ev;

	return neg_errno(read(*(int *)arg, &ev, sizeof(ev)));
}

TEST_F(file, read_blocks)
{
	struct op op = op_at(self, 3, 1);
	struct writer reader, w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&reader, -1, op_read_event, &self->nfd));
	ASSERT_TRUE(writer_sleeps(&reader));
	EXPECT_TRUE(writer_blocks(&reader));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	EXPECT_TRUE(writer_finishes(&reader));
	EXPECT_EQ(48, reader.out->ret);
	EXPECT_TRUE(no_event(self->nfd));
	writer_free(&reader);

	/* A sleeping reader can be killed */
	ASSERT_TRUE(writer_start(&reader, -1, op_read_event, &self->nfd));
	ASSERT_TRUE(writer_sleeps(&reader));
	writer_kill(&reader);
	EXPECT_TRUE(reader.reaped);
	writer_free(&reader);
	writer_free(&w);
}

TEST_F(file, read_interrupted)
{
	struct sigaction act = { .sa_handler = count_signal };
	struct memfd_event ev;
	sig_atomic_t ran = 0;
	pid_t pid;

	handler_ran = &ran;
	sigaction(SIGUSR1, &act, NULL);
	pid = fork();
	if (!pid) {
		close(self->nfd);
		task_sleeps(getppid(), getppid());
		sleep_ms(SHORT_MS);
		kill(getppid(), SIGUSR1);
		_exit(0);
	}
	EXPECT_EQ(-EINTR, neg_errno(read(self->nfd, &ev, sizeof(ev))));
	EXPECT_EQ(1, ran);
	waitpid(pid, NULL, 0);
}

/* Two readers: every record goes to one of them */
TEST_F(file, several_readers)
{
	struct memfd_event ev;
	struct writer w[NR_MANY];
	struct op op[NR_MANY];
	struct writer readers[3];

	for (int i = 0; i < 3; i++) {
		ASSERT_TRUE(writer_start(&readers[i], -1, op_read_event,
					 &self->nfd));
		ASSERT_TRUE(writer_sleeps(&readers[i]));
	}
	start_many(_metadata, self, w, op);
	for (int i = 0; i < 3; i++) {
		EXPECT_TRUE(writer_finishes(&readers[i]));
		EXPECT_EQ(48, readers[i].out->ret);
		writer_free(&readers[i]);
	}
	for (int i = 0; i < NR_MANY - 3; i++) {
		EXPECT_TRUE(read_event(self->nfd, &ev));
	}
	EXPECT_TRUE(no_event(self->nfd));
	finish_many(_metadata, self, w);
}

static short poll_now(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN | POLLPRI | POLLOUT };

	poll(&pfd, 1, 0);
	return pfd.revents;
}

TEST_F(file, poll_level)
{
	struct op op = op_at(self, 3, 1), op2 = op_at(self, 4, 1);
	struct memfd_event ev;
	struct writer w, w2;

	EXPECT_EQ(0, poll_now(self->nfd));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(0, poll_now(self->nfd));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	EXPECT_EQ(POLLIN, poll_now(self->nfd));
	EXPECT_EQ(POLLIN, poll_now(self->nfd));
	ASSERT_TRUE(writer_start(&w2, self->nfd, op_store, &op2));
	ASSERT_TRUE(writer_sleeps(&w2));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(POLLIN, poll_now(self->nfd));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, poll_now(self->nfd));
	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(0, poll_now(self->nfd));
	writer_free(&w);
	writer_free(&w2);
}

static int epoll_ready(int epfd, int timeout_ms)
{
	struct epoll_event ev;

	if (epoll_wait(epfd, &ev, 1, timeout_ms) != 1)
		return 0;
	return ev.events;
}

static int epoll_on(int nfd, unsigned int events)
{
	struct epoll_event ev = { .events = events };
	int epfd = epoll_create1(EPOLL_CLOEXEC);

	if (epfd >= 0 && epoll_ctl(epfd, EPOLL_CTL_ADD, nfd, &ev))
		return -1;
	return epfd;
}

TEST_F(file, epoll_level)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;
	int epfd = epoll_on(self->nfd, EPOLLIN);

	ASSERT_LE(0, epfd);
	EXPECT_EQ(0, epoll_ready(epfd, 0));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	EXPECT_EQ(EPOLLIN, epoll_ready(epfd, LONG_MS));
	EXPECT_EQ(EPOLLIN, epoll_ready(epfd, 0));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, epoll_ready(epfd, 0));
	writer_free(&w);
	close(epfd);
}

TEST_F(file, epoll_edge)
{
	struct op op = op_at(self, 3, 1), op2 = op_at(self, 4, 1);
	struct writer w, w2;
	int epfd = epoll_on(self->nfd, EPOLLIN | EPOLLET);

	ASSERT_LE(0, epfd);
	EXPECT_EQ(0, epoll_ready(epfd, 0));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	EXPECT_EQ(EPOLLIN, epoll_ready(epfd, LONG_MS));
	/* No new edge while nothing new comes, though nothing was read */
	EXPECT_EQ(0, epoll_ready(epfd, SHORT_MS));
	ASSERT_TRUE(writer_start(&w2, self->nfd, op_store, &op2));
	EXPECT_EQ(EPOLLIN, epoll_ready(epfd, LONG_MS));
	EXPECT_EQ(0, epoll_ready(epfd, SHORT_MS));
	EXPECT_EQ(2, drain_events(self->nfd));
	EXPECT_EQ(0, epoll_ready(epfd, SHORT_MS));
	writer_free(&w);
	writer_free(&w2);
	close(epfd);
}

/* Two that sleep in epoll_wait see the event, as the event loop expects */
TEST_F(file, epoll_wakes_sleeper)
{
	struct sleeper s = { .fn = op_store };
	int epfd = epoll_on(self->nfd, EPOLLIN);
	struct memfd_event ev;

	ASSERT_LE(0, epfd);
	s.op = op_at(self, 3, 1);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, pthread_create(&s.thread, NULL, sleeper_thread, &s));
	EXPECT_EQ(EPOLLIN, epoll_ready(epfd, LONG_MS));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(sleeper_ended(&s));
	pthread_join(s.thread, NULL);
	close(epfd);
}

/* Part 11: the end of the handler */

/* After the last close: waiters went on, WAIT is gone, DENY is not */
static void check_after_handler(struct __test_metadata *_metadata,
				FIXTURE_DATA(file) *self, size_t wait_page,
				size_t deny_page)
{
	struct op op = op_at(self, wait_page, 1);
	struct outcome out = { 0 };

	run_guarded(op_store, &op, &out);
	EXPECT_EQ(0, out.sig);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ((long)op.len, out.ret);
	op = op_at(self, deny_page, 1);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_EQ(-ENXIO, protect_pages(self->fd, 0, 1, MEMFD_PROTECT_WAIT));
}

#define NR_HELD	4

/* Stores and writes that sleep in pages 2, 3, 4, 5; page 7 is DENY */
static void hold_writers(struct __test_metadata *_metadata,
			 FIXTURE_DATA(file) *self, struct writer *w,
			 struct op *op)
{
	ASSERT_EQ(0, protect_pages(self->fd, 0, 6, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 7, 1, MEMFD_PROTECT_DENY));
	for (int i = 0; i < NR_HELD; i++) {
		op[i] = op_at(self, 2 + i, 1);
		ASSERT_TRUE(writer_start(&w[i], self->nfd,
					 i % 2 ? op_write : op_store, &op[i]));
		ASSERT_TRUE(writer_sleeps(&w[i]));
	}
}

static void held_writers_finish(struct __test_metadata *_metadata,
				FIXTURE_DATA(file) *self, struct writer *w,
				struct op *op)
{
	for (int i = 0; i < NR_HELD; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ(0, w[i].out->sig);
		EXPECT_LT(0, w[i].out->ret);
		EXPECT_EQ(NEW_BYTE, self->map[op[i].offset]);
		writer_free(&w[i]);
	}
}

TEST_F(file, close_wakes_writers)
{
	struct writer w[NR_HELD];
	struct op op[NR_HELD];

	hold_writers(_metadata, self, w, op);
	for (int i = 0; i < NR_HELD; i++) {
		EXPECT_FALSE(w[i].out->done);
	}
	close(self->nfd);
	held_writers_finish(_metadata, self, w, op);
	check_after_handler(_metadata, self, 0, 7);
	/* The next handler starts with nothing but DENY */
	self->nfd = sys_memfd_notify(self->fd, 0);
	EXPECT_LE(0, self->nfd);
	EXPECT_TRUE(no_event(self->nfd));
}

/* Events that were read are no longer ours to resolve either */
TEST_F(file, close_wakes_after_read)
{
	struct writer w[NR_HELD];
	struct op op[NR_HELD];

	hold_writers(_metadata, self, w, op);
	EXPECT_EQ(NR_HELD, drain_events(self->nfd));
	close(self->nfd);
	held_writers_finish(_metadata, self, w, op);
	check_after_handler(_metadata, self, 0, 7);
	self->nfd = -1;
}

static long op_handler_forever(void *arg)
{
	struct memfd_event ev;

	for (;;)
		if (read(*(int *)arg, &ev, sizeof(ev)) < 0)
			return -errno;
	return 0;
}

/* The handler is another process, and is killed */
TEST_F(file, handler_killed)
{
	struct writer handler, w[NR_HELD];
	struct op op[NR_HELD];
	int nfd = self->nfd;

	ASSERT_TRUE(writer_start(&handler, -1, op_handler_forever,
				 &self->nfd));
	ASSERT_TRUE(writer_sleeps(&handler));
	hold_writers(_metadata, self, w, op);
	close(nfd);
	self->nfd = -1;
	/* The child's copy keeps it open */
	for (int i = 0; i < NR_HELD; i++) {
		EXPECT_TRUE(writer_blocks(&w[i]));
	}
	EXPECT_EQ(-EBUSY, sys_memfd_notify(self->fd, 0));
	writer_kill(&handler);
	held_writers_finish(_metadata, self, w, op);
	check_after_handler(_metadata, self, 0, 7);
	writer_free(&handler);
}

/* Handler and writer die at once, as in a crash of the whole process */
TEST_F(file, handler_is_the_waiter)
{
	int status, nfd = self->nfd;
	struct op op = op_at(self, 3, 1);
	pid_t pid;

	close(nfd);
	self->nfd = -1;
	pid = fork();
	if (!pid) {
		nfd = sys_memfd_notify(self->fd, 0);
		if (nfd < 0 || protect_pages(self->fd, 3, 1, 0))
			_exit(1);
		op_store(&op);
		_exit(2);
	}
	EXPECT_TRUE(task_sleeps(pid, pid));
	sleep_ms(SHORT_MS);
	kill(pid, SIGKILL);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
	self->nfd = sys_memfd_notify(self->fd, 0);
	EXPECT_LE(0, self->nfd);
	EXPECT_TRUE(no_event(self->nfd));
	op_store(&op);
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
}

/* A dup is the same open file: the first close does nothing */
TEST_F(file, dup_keeps_it_open)
{
	struct op op = op_at(self, 3, 1);
	int other = dup(self->nfd);
	struct memfd_event ev;
	struct writer w;

	ASSERT_LE(0, other);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	close(self->nfd);
	self->nfd = other;
	ASSERT_TRUE(writer_start(&w, other, op_store, &op));
	ASSERT_TRUE(read_event(other, &ev));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(other, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	writer_free(&w);
}

/* The memfd may be closed before the event fd, and the mapping lives on */
TEST_F(file, memfd_closed_first)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	close(self->fd);
	self->fd = -1;
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	writer_free(&w);
	/* And before everything else goes */
	munmap(self->map, self->size);
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
}

/* Receives the event fd over a socket and allows one event */
static int handle_one(int sock)
{
	struct memfd_event ev;
	int nfd = recv_fd(sock);

	if (nfd < 0)
		return 1;
	if (!read_event(nfd, &ev))
		return 2;
	if (resolve(nfd, ev.cookie, MEMFD_RESOLVE_ALLOW))
		return 3;
	return 0;
}

TEST_F(file, passed_over_socket)
{
	struct op op = op_at(self, 3, 1), op2 = op_at(self, 4, 1);
	struct writer w, w2;
	int status, sock[2];
	pid_t handler;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	handler = fork();
	if (!handler) {
		close(self->nfd);
		close(sock[0]);
		_exit(handle_one(sock[1]));
	}
	close(sock[1]);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(send_fd(sock[0], self->nfd));
	close(self->nfd);
	close(sock[0]);
	self->nfd = -1;
	ASSERT_TRUE(writer_start(&w, -1, op_store, &op));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(0, w.out->sig);
	EXPECT_EQ(handler, waitpid(handler, &status, 0));
	EXPECT_EQ(0, status);
	/* It has ended, and the protection with it */
	ASSERT_TRUE(writer_start(&w2, -1, op_store, &op2));
	EXPECT_TRUE(writer_finishes(&w2));
	writer_free(&w);
	writer_free(&w2);
}

/* In flight in a socket's queue it is open; it closes with the socket */
TEST_F(file, in_flight_in_socket)
{
	struct op op = op_at(self, 3, 1);
	struct writer w;
	int sock[2];

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(send_fd(sock[0], self->nfd));
	close(self->nfd);
	self->nfd = -1;
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(-EBUSY, sys_memfd_notify(self->fd, 0));
	writer_free(&w);
	close(sock[0]);
	close(sock[1]);
	self->nfd = sys_memfd_notify(self->fd, 0);
	EXPECT_LE(0, self->nfd);
}

/* A forked child inherits it, and the child's copy keeps it open */
TEST_F(file, inherited_by_fork)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;
	pid_t child;
	int status;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	child = fork();
	if (!child) {
		if (!read_event(self->nfd, &ev))
			_exit(1);
		_exit(resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW) ?
		      2 : 0);
	}
	close(self->nfd);
	self->nfd = -1;
	ASSERT_TRUE(writer_start(&w, -1, op_store, &op));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	writer_free(&w);
}

/* Part 12: offsets, ends of file, what is always allowed */

/* Length 0 covers growth; protection belongs to the offset */
TEST_F(file, beyond_eof_then_grow)
{
	struct op op = op_at(self, NR_PAGES + 2, 1);
	struct outcome out = { 0 };
	struct memfd_event ev;
	struct writer w;
	char *map;

	ASSERT_EQ(0, protect_pages(self->fd, NR_PAGES, 0,
				   MEMFD_PROTECT_WAIT));
	EXPECT_EQ(0, ftruncate(self->fd, self->size + 4 * self->page));
	EXPECT_TRUE(no_event(self->nfd));
	map = mmap(NULL, self->size + 4 * self->page, RW, MAP_SHARED, self->fd,
		   0);
	ASSERT_NE(MAP_FAILED, map);
	op.map = map;
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_FAULT, NR_PAGES + 2, 1);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(SIGBUS, w.out->sig);
	writer_free(&w);

	/* Below it is open */
	op = op_at(self, NR_PAGES - 1, 1);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(0, out.sig);
	munmap(map, self->size + 4 * self->page);
}

/*
 * What fallocate() puts behind the end is there, and empty, when the file grows over it: from
 * nothing, and from where no huge page ends.
 */
TEST_F(file, grow_over_preallocated)
{
	static const size_t starts[] = { 3, 0 };
	static const char byte = NEW_BYTE;

	for (size_t i = 0; i < ARRAY_SIZE(starts); i++) {
		off_t start = starts[i] * self->page, behind = start + 5 * self->page;

		for (unsigned int how = 0; how < 3; how++) {
			ASSERT_EQ(0, ftruncate(self->fd, start));
			/* The second time it is made up to date */
			for (int twice = 0; twice < 2; twice++)
				ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE, behind,
						       2 * self->page));
			ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE, start,
					       self->page));
			switch (how) {
			case 0:
				EXPECT_EQ(0, ftruncate(self->fd, start + self->page));
				break;
			case 1:
				EXPECT_EQ(0, fallocate(self->fd, 0, start, self->page));
				break;
			default:
				EXPECT_EQ(1, pwrite(self->fd, &byte, 1, start));
			}
			EXPECT_EQ(0, ftruncate(self->fd, behind + 2 * self->page));
			EXPECT_TRUE(file_filled_with(self->fd, starts[i] + 1, 6, 0));
			EXPECT_TRUE(file_filled_with(self->fd, 0, starts[i], OLD_BYTE));
		}
	}
}

/* A write that would grow the file into the range */
TEST_F(file, write_beyond_eof)
{
	struct op op = op_at(self, NR_PAGES, 2);
	struct outcome out = { 0 };
	struct memfd_event ev;
	struct writer w;
	struct stat st;

	ASSERT_EQ(0, protect_pages(self->fd, NR_PAGES + 1, 4,
				   MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_WRITE, NR_PAGES + 1, 1);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ((off_t)self->size, st.st_size);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ((long)op.len, w.out->ret);
	writer_free(&w);

	ASSERT_EQ(0, protect_pages(self->fd, NR_PAGES + 3, 4,
				   MEMFD_PROTECT_DENY));
	op = op_at(self, NR_PAGES + 2, 2);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ((off_t)(self->size + 2 * self->page), st.st_size);
}

static long op_append(void *arg)
{
	struct op *op = arg;
	char buf[100];
	int fd;

	memset(buf, NEW_BYTE, sizeof(buf));
	fd = reopen(op->fd, O_WRONLY | O_APPEND);
	if (fd < 0)
		return -errno;
	return neg_errno(write(fd, buf, sizeof(buf)));
}

/* O_APPEND: where it writes is known only under the file's lock */
TEST_F(file, append)
{
	struct op op = op_at(self, 0, 1);
	struct outcome out = { 0 };
	struct memfd_event ev;
	struct writer w;
	struct stat st;

	ASSERT_EQ(0, protect_pages(self->fd, NR_PAGES, 0,
				   MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_append, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	check_event(_metadata, &ev, MEMFD_EVENT_WRITE, NR_PAGES, 1);
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(100, w.out->ret);
	writer_free(&w);

	ASSERT_EQ(0, protect_pages(self->fd, NR_PAGES, 0,
				   MEMFD_PROTECT_DENY));
	run_guarded(op_append, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ((off_t)self->size + 100, st.st_size);
}

/* Growing, preallocating and dropping page-table entries change nothing */
TEST_F(file, always_allowed)
{
	static const unsigned int modes[] = {
		MEMFD_PROTECT_WAIT, MEMFD_PROTECT_DENY,
	};
	size_t page = self->page, size = self->size;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		ASSERT_EQ(0, protect_pages(self->fd, 0, 0, modes[i]));
		size += page;
		EXPECT_EQ(0, ftruncate(self->fd, size));
		EXPECT_EQ(0, ftruncate(self->fd, size));
		size += 2 * page;
		EXPECT_EQ(0, fallocate(self->fd, 0, 0, size));
		EXPECT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE,
				       size + 8 * page, page));
		EXPECT_EQ(0, madvise(self->map, self->size, MADV_DONTNEED));
		EXPECT_TRUE(filled_with(self->map, self->size, OLD_BYTE));
		EXPECT_EQ(0, msync(self->map, self->size, MS_SYNC));
		EXPECT_EQ(0, fsync(self->fd));
		EXPECT_TRUE(no_event(self->nfd));
	}
}

TEST_F(file, private_mappings_unaffected)
{
	static const unsigned int modes[] = {
		MEMFD_PROTECT_WAIT, MEMFD_PROTECT_DENY,
	};
	const size_t page = self->page;
	char *before, *after;

	before = mmap(NULL, self->size, RW, MAP_PRIVATE, self->fd, 0);
	ASSERT_NE(MAP_FAILED, before);
	EXPECT_EQ(OLD_BYTE, before[2 * page]);
	before[3 * page] = NEW_BYTE;
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		ASSERT_EQ(0, protect_pages(self->fd, 0, 0, modes[i]));
		after = mmap(NULL, self->size, RW, MAP_PRIVATE, self->fd, 0);
		ASSERT_NE(MAP_FAILED, after);
		before[(2 + i) * page] = NEW_BYTE;
		before[(4 + i) * page] = NEW_BYTE;
		after[(2 + i) * page] = NEW_BYTE;
		EXPECT_EQ(OLD_BYTE, after[6 * page]);
		after[6 * page] = NEW_BYTE;
		EXPECT_TRUE(no_event(self->nfd));
		EXPECT_TRUE(filled_with(self->map, self->size, OLD_BYTE));
		munmap(after, self->size);
	}
	munmap(before, self->size);
}

/* A private mapping beside the shared one must not hide it from the walk */
TEST_F(file, private_beside_shared)
{
	struct op op = op_at(self, 3, 1);
	struct outcome out = { 0 };
	char *private[4], *shared[4];

	for (int i = 0; i < 4; i++) {
		private[i] = mmap(NULL, self->size, RW, MAP_PRIVATE, self->fd,
				  0);
		shared[i] = mmap(NULL, self->size, RW, MAP_SHARED, self->fd, 0);
		ASSERT_NE(MAP_FAILED, private[i]);
		ASSERT_NE(MAP_FAILED, shared[i]);
		private[i][0] = OLD_BYTE;
		shared[i][op.offset] = OLD_BYTE;
	}
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_DENY));
	for (int i = 0; i < 4; i++) {
		op.map = shared[i];
		run_guarded(op_store, &op, &out);
		EXPECT_EQ(SIGBUS, out.sig);
		op.map = private[i];
		run_guarded(op_store, &op, &out);
		EXPECT_EQ(0, out.sig);
	}
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
}

/* No write permission, no event: SIGSEGV as ever */
TEST_F(file, read_only_mapping)
{
	struct op op = op_at(self, 3, 1);
	struct outcome out = { 0 };

	op.map = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, op.map);
	EXPECT_EQ(OLD_BYTE, op.map[op.offset]);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGSEGV, out.sig);
	EXPECT_TRUE(no_event(self->nfd));
	/* Made writable later: then it is caught */
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, mprotect(op.map, self->size, RW));
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
}

/* Beyond the end of file a store gets its SIGBUS, waited for or not */
TEST_F(file, store_beyond_eof)
{
	struct op op = op_at(self, NR_PAGES - 1, 1);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, ftruncate(self->fd, self->size - self->page));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	if (!writer_reap(&w, 200)) {
		ASSERT_TRUE(read_event(self->nfd, &ev));
		EXPECT_EQ(0, resolve(self->nfd, ev.cookie,
				     MEMFD_RESOLVE_ALLOW));
	}
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(SIGBUS, w.out->sig);
	writer_free(&w);
}

/* Part 13: seals */

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC	0x0020
#endif

TEST_F(file, seal_shrink_and_grow)
{
	struct op op = op_at(self, NR_PAGES, 1);
	struct outcome out = { 0 };

	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EPERM, neg_errno(ftruncate(self->fd, self->page)));
	EXPECT_EQ(-EPERM, neg_errno(ftruncate(self->fd, 2 * self->size)));
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_EQ(-EPERM, neg_errno(ftruncate(self->fd, self->page)));
	EXPECT_EQ(-EPERM, neg_errno(ftruncate(self->fd, 2 * self->size)));
}

/*
 * F_SEAL_WRITE: refused while mapped writable; then the seal has its say, also about
 * who may protect. memfd_protect_seal_test has the rest of that.
 */
TEST_F(file, seal_write)
{
	struct op op = op_at(self, 3, 1);
	struct outcome out = { 0 };

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EBUSY, neg_errno(fcntl(self->fd, F_ADD_SEALS,
					  F_SEAL_WRITE)));
	ASSERT_EQ(0, munmap(self->map, self->size));
	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	EXPECT_EQ(-EPERM, unprotect_pages(self->fd, 3, 1));
	EXPECT_EQ(-EPERM, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size, RW, MAP_SHARED, self->fd,
				   0));
	self->map = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	EXPECT_NE(MAP_FAILED, self->map);
	EXPECT_EQ(OLD_BYTE, self->map[op.offset]);
}

/* Sealed while a write(2) sleeps: it looks again, and finds the seal */
TEST_F(file, seal_write_under_waiter)
{
	struct op op = op_at(self, 3, 1);
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, munmap(self->map, self->size));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_write, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EPERM, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 3, 1, OLD_BYTE));
	writer_free(&w);
	self->map = NULL;
}

/* F_SEAL_FUTURE_WRITE: old mappings may write, and are caught */
TEST_F(file, seal_future_write)
{
	struct op op = op_at(self, 3, 1);
	struct outcome out = { 0 };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(0, w.out->sig);
	EXPECT_EQ(NEW_BYTE, self->map[op.offset]);
	writer_free(&w);
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
}

TEST_F(file, seal_seal)
{
	struct op op = op_at(self, 3, 1);
	struct outcome out = { 0 };

	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_SEAL));
	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_DENY));
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	EXPECT_EQ(0, unprotect_pages(self->fd, 3, 1));
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(0, out.sig);
}

/* MFD_NOEXEC_SEAL: its F_SEAL_EXEC has no say about contents */
TEST_F(file, noexec_seal)
{
	struct op op = op_at(self, 3, 1);
	struct outcome out = { 0 };

	op.fd = create_filled(NR_PAGES, MFD_ALLOW_PROTECT | MFD_NOEXEC_SEAL);
	ASSERT_LE(0, op.fd);
	EXPECT_EQ(F_SEAL_EXEC, fcntl(op.fd, F_GET_SEALS));
	ASSERT_EQ(0, protect_pages(op.fd, 3, 1, MEMFD_PROTECT_DENY));
	run_guarded(op_write, &op, &out);
	EXPECT_EQ(-EPERM, out.ret);
	op.map = mmap(NULL, self->size, RW, MAP_SHARED, op.fd, 0);
	ASSERT_NE(MAP_FAILED, op.map);
	run_guarded(op_store, &op, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	EXPECT_EQ(0, unprotect_pages(op.fd, 3, 1));
	run_guarded(op_write, &op, &out);
	EXPECT_EQ((long)op.len, out.ret);
	munmap(op.map, self->size);
	close(op.fd);
}

/* Part 14: process ids across PID namespaces */

struct ns_child {
	FIXTURE_DATA(file) *self;
	int (*fn)(FIXTURE_DATA(file) *self);
};

static int run_ns_child(void *arg)
{
	struct ns_child *child = arg;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return child->fn(child->self);
}

static pid_t start_in_pid_ns(struct ns_child *child)
{
	static char stack[65536] __attribute__((aligned(16)));

	return clone(run_ns_child, stack + sizeof(stack),
		     CLONE_NEWPID | SIGCHLD, child);
}

static int ns_store(FIXTURE_DATA(file) *self)
{
	struct op op = op_at(self, 3, 1);

	close(self->nfd);
	op_store(&op);
	return getpid() == 1 ? 0 : 1;
}

static int ns_read_event(FIXTURE_DATA(file) *self)
{
	struct memfd_event ev;

	if (!read_event(self->nfd, &ev))
		return 1;
	if (ev.pid || ev.tid)
		return 2;
	if (resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW))
		return 3;
	return 0;
}

/* The writer's id is the one that the reader knows it by */
TEST_F(file, pid_of_writer_in_child_ns)
{
	struct ns_child child = { self, ns_store };
	struct memfd_event ev;
	int status;
	pid_t pid;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	pid = start_in_pid_ns(&child);
	if (pid < 0)
		SKIP(return, "no PID namespaces");
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(pid, ev.pid);
	EXPECT_EQ(pid, ev.tid);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

/* And 0 where it is not visible */
TEST_F(file, pid_not_visible)
{
	struct ns_child child = { self, ns_read_event };
	struct op op = op_at(self, 3, 1);
	struct writer w;
	int status;
	pid_t pid;

	ASSERT_EQ(0, protect_pages(self->fd, 3, 1, MEMFD_PROTECT_WAIT));
	pid = start_in_pid_ns(&child);
	if (pid < 0)
		SKIP(return, "no PID namespaces");
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status) TH_LOG("step %d", WEXITSTATUS(status));
	EXPECT_TRUE(writer_finishes(&w));
	writer_free(&w);
}

/* Part 15: what the system sees of it */

/* The number behind a key in a fdinfo file, or -1 */
static long fdinfo_value(int fd, const char *key)
{
	char path[64], text[4096], *line;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (!read_file(path, text, sizeof(text)))
		return -1;
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		size_t len = strlen(key);

		if (!strncmp(line, key, len) && line[len] == ':')
			return strtol(line + len + 1, NULL, 10);
	}
	return -1;
}

static void check_fdinfo(struct __test_metadata *_metadata, int fd,
			 long ranges[3], long waiters, long pending)
{
	EXPECT_EQ(ranges[MEMFD_PROTECT_WAIT], fdinfo_value(fd, "protect_wait"));
	EXPECT_EQ(ranges[MEMFD_PROTECT_ASYNC], fdinfo_value(fd, "protect_async"));
	EXPECT_EQ(ranges[MEMFD_PROTECT_DENY], fdinfo_value(fd, "protect_deny"));
	EXPECT_EQ(waiters, fdinfo_value(fd, "waiters"));
	EXPECT_EQ(pending, fdinfo_value(fd, "pending"));
}

/* The memfd and its event fd tell the same */
TEST_F(file, fdinfo)
{
	struct op op = op_at(self, 3, 1);
	long none[3] = { 0, 0, 0 }, some[3] = { 1, 0, 2 };
	struct memfd_event ev;
	struct writer w, w2;
	int plain;

	check_fdinfo(_metadata, self->fd, none, 0, 0);
	check_fdinfo(_metadata, self->nfd, none, 0, 0);
	ASSERT_EQ(0, protect_pages(self->fd, 2, 4, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, protect_pages(self->fd, 10, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, protect_pages(self->fd, 12, 3, MEMFD_PROTECT_DENY));
	ASSERT_TRUE(writer_start(&w, self->nfd, op_store, &op));
	ASSERT_TRUE(writer_start(&w2, self->nfd, op_store, &op));
	ASSERT_TRUE(writer_sleeps(&w));
	ASSERT_TRUE(writer_sleeps(&w2));
	check_fdinfo(_metadata, self->fd, some, 2, 1);
	check_fdinfo(_metadata, self->nfd, some, 2, 1);
	EXPECT_EQ(1, fdinfo_value(self->nfd, "unread"));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, fdinfo_value(self->nfd, "unread"));
	EXPECT_EQ(1, fdinfo_value(self->nfd, "pending"));
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_TRUE(writer_finishes(&w2));
	check_fdinfo(_metadata, self->fd, none, 0, 0);
	check_fdinfo(_metadata, self->nfd, none, 0, 0);
	writer_free(&w);
	writer_free(&w2);

	/* Nothing is added where nothing is to be said */
	plain = sys_memfd_create(MFD_CLOEXEC);
	EXPECT_EQ(-1, fdinfo_value(plain, "protect_wait"));
	EXPECT_LE(0, fdinfo_value(plain, "pos"));
	close(plain);
}

TEST_F(file, fdinfo_log)
{
	long async[3] = { 0, 1, 0 };
	struct memfd_range range;

	if (!(features(self->nfd) & MEMFD_FEATURE_ASYNC))
		SKIP(return, "no ASYNC");
	ASSERT_EQ(0, protect_pages(self->fd, 4, 8, MEMFD_PROTECT_ASYNC));
	check_fdinfo(_metadata, self->fd, async, 0, 0);
	EXPECT_EQ(0, fdinfo_value(self->fd, "log_pages"));
	EXPECT_EQ(0, fdinfo_value(self->fd, "log_bytes"))
		TH_LOG("a clean log costs nothing");
	self->map[5 * self->page] = NEW_BYTE;
	self->map[6 * self->page] = NEW_BYTE;
	EXPECT_EQ(2, fdinfo_value(self->fd, "log_pages"));
	EXPECT_EQ(1, fdinfo_value(self->nfd, "log_ranges"));
	EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1,
				MEMFD_SCAN_REPROTECT, NULL));
	EXPECT_EQ(0, fdinfo_value(self->fd, "log_pages"));
	EXPECT_EQ(0, fdinfo_value(self->fd, "log_bytes"));
	check_fdinfo(_metadata, self->fd, async, 0, 0);
}

#define CGROUP_ROOT	"/sys/fs/cgroup"
#define CGROUP_TEST	CGROUP_ROOT "/memfd_protect_test"

static bool cgroup_make(void)
{
	write_file(CGROUP_ROOT "/cgroup.subtree_control", "+memory");
	return !mkdir(CGROUP_TEST, 0755) || errno == EEXIST;
}

static bool cgroup_put(const char *cgroup, pid_t pid)
{
	char path[128], text[16];

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	snprintf(text, sizeof(text), "%d", pid);
	return write_file(path, text);
}

static bool cgroup_frozen(bool wanted)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	const char *text = wanted ? "frozen 1" : "frozen 0";
	char buf[256];

	while (now_ns() < end) {
		if (read_file(CGROUP_TEST "/cgroup.events", buf, sizeof(buf)) &&
		    strstr(buf, text))
			return true;
		usleep(1000);
	}
	return false;
}

/* Two that wait: a store in page 3, a write of page 4 */
static void start_two(struct __test_metadata *_metadata,
		      FIXTURE_DATA(file) *self, struct op *ops,
		      struct writer *w)
{
	ops[0] = op_at(self, 3, 1);
	ops[1] = op_at(self, 4, 1);
	ASSERT_EQ(0, protect_pages(self->fd, 3, 2, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w[0], self->nfd, op_store, &ops[0]));
	ASSERT_TRUE(writer_start(&w[1], self->nfd, op_write, &ops[1]));
	ASSERT_TRUE(writer_sleeps(&w[0]));
	ASSERT_TRUE(writer_sleeps(&w[1]));
}

static void finish_two(struct __test_metadata *_metadata,
		       FIXTURE_DATA(file) *self, struct writer *w)
{
	for (int i = 0; i < 2; i++)
		EXPECT_TRUE(writer_blocks(&w[i]));
	EXPECT_TRUE(file_filled_with(self->fd, 3, 2, OLD_BYTE));
	EXPECT_EQ(0, unprotect_pages(self->fd, 3, 2));
	for (int i = 0; i < 2; i++) {
		EXPECT_TRUE(writer_finishes(&w[i]));
		EXPECT_EQ(0, w[i].out->sig);
		EXPECT_LT(0, w[i].out->ret);
		writer_free(&w[i]);
	}
}

/* Waiters freeze with their cgroup, and thaw as waiters */
TEST_F(file, cgroup_freezes_waiters)
{
	struct writer w[2];
	struct op ops[2];

	if (!cgroup_make() || access(CGROUP_TEST "/cgroup.freeze", W_OK))
		SKIP(return, "no cgroup freezer");
	start_two(_metadata, self, ops, w);
	ASSERT_TRUE(cgroup_put(CGROUP_TEST, w[0].pid));
	ASSERT_TRUE(cgroup_put(CGROUP_TEST, w[1].pid));
	ASSERT_TRUE(write_file(CGROUP_TEST "/cgroup.freeze", "1"));
	EXPECT_TRUE(cgroup_frozen(true));
	ASSERT_TRUE(write_file(CGROUP_TEST "/cgroup.freeze", "0"));
	EXPECT_TRUE(cgroup_frozen(false));
	finish_two(_metadata, self, w);
	rmdir(CGROUP_TEST);
}

/* They freeze for suspend: the freezer is tested, nothing else of it */
TEST_F(file, suspend_freezes_waiters)
{
	struct writer w[2];
	struct op ops[2];
	bool done;

	write_file("/sys/module/suspend/parameters/pm_test_delay", "0");
	if (!write_file("/sys/power/pm_test", "freezer"))
		SKIP(return, "no CONFIG_PM_DEBUG");
	start_two(_metadata, self, ops, w);
	done = write_file("/sys/power/state", "freeze") ||
	       write_file("/sys/power/state", "mem");
	write_file("/sys/power/pm_test", "none");
	EXPECT_TRUE(done) TH_LOG("suspend: %m");
	finish_two(_metadata, self, w);
}

static long cgroup_memory(void)
{
	char text[32];

	if (!read_file(CGROUP_TEST "/memory.current", text, sizeof(text)))
		return -1;
	return strtol(text, NULL, 10);
}

/* Ranges are charged to the caller's memory cgroup, and given back */
TEST_F(file, ranges_are_charged)
{
	const size_t nr = 1 << 20;
	long before, during, after, bytes;

	if (!cgroup_make() || !cgroup_put(CGROUP_TEST, getpid()) ||
	    cgroup_memory() < 0)
		SKIP(return, "no memory cgroup");
	ASSERT_EQ(0, protect_pages(self->fd, 0, 1, MEMFD_PROTECT_DENY));
	before = cgroup_memory();
	/* Far apart, so that nothing is shared between them */
	for (size_t i = 0; i < 1024; i++)
		ASSERT_EQ(0, protect_pages(self->fd, i * nr, 1,
					   MEMFD_PROTECT_DENY));
	during = cgroup_memory();
	bytes = fdinfo_value(self->fd, "protect_bytes");
	TH_LOG("%ld bytes in 1024 ranges, charged %ld", bytes, during - before);
	EXPECT_LT(bytes / 2, during - before);
	ASSERT_EQ(0, unprotect_pages(self->fd, 0, 0));
	for (int i = 0; i < 100; i++) {
		after = cgroup_memory();
		if (after < during - bytes / 2)
			break;
		sleep_ms(20);
	}
	EXPECT_GT(during - bytes / 2, after);
	cgroup_put(CGROUP_ROOT, getpid());
	rmdir(CGROUP_TEST);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
