// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device that keeps page tables of its own (HMM) and maps files that are protected,
 * that share page tables, or both. The device is lib/test_hmm.c: it reads and writes
 * through a copy of what hmm_range_fault() found in the page tables of its process, and
 * the kernel tells it when that is not true any more.
 *
 * Needs root, for the device and for huge pages.
 */
#include "ptshare_gib.h"

#include <linux/ioctl.h>
#include <sys/ioctl.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	120

#define DEVICE		"/dev/hmm_dmirror0"
#define ALL		0, 0		/* pages */
#define THE_PAGE	(3 * TABLE_PAGES + 77)
#define NEXT		(THE_PAGE + 1)	/* another page of the table */
#define USED		8		/* tables that are filled */

/* The interface of lib/test_hmm_uapi.h, which no package has */
struct device_command {
	uint64_t addr;		/* what the device accesses */
	uint64_t ptr;		/* where it copies to or from */
	uint64_t npages;
	uint64_t cpages;	/* out: how many it has done */
	uint64_t faults;	/* out */
};

#define DEVICE_READ	_IOWR('H', 0x00, struct device_command)
#define DEVICE_WRITE	_IOWR('H', 0x01, struct device_command)
#define DEVICE_SNAPSHOT	_IOWR('H', 0x04, struct device_command)

/* What a snapshot says of a page */
#define SEEN_NONE	0x00
#define SEEN_READ	0x01
#define SEEN_WRITE	0x02
#define SEEN_HUGE	0x04		/* flag */

static char *address(char *map, size_t page)
{
	return map + page * page_size();
}

static int device_do(int dev, unsigned long request, char *addr, void *buf)
{
	struct device_command command = {
		.addr = (uintptr_t)addr, .ptr = (uintptr_t)buf, .npages = 1,
	};

	return neg_errno(ioctl(dev, request, &command));
}

/* A page, whose first word is what counts */
static int device_write(int dev, char *addr, uint64_t value)
{
	uint64_t buf[page_size() / sizeof(uint64_t)];

	memset(buf, 0, sizeof(buf));
	buf[0] = value;
	return device_do(dev, DEVICE_WRITE, addr, buf);
}

static uint64_t device_read(int dev, char *addr)
{
	uint64_t buf[page_size() / sizeof(uint64_t)];

	memset(buf, 0xee, sizeof(buf));
	if (device_do(dev, DEVICE_READ, addr, buf))
		return UINT64_MAX;
	return buf[0];
}

static int seen(int dev, char *addr)
{
	unsigned char what = 0xff;
	int err = device_do(dev, DEVICE_SNAPSHOT, addr, &what);

	return err ?: what;
}

FIXTURE(device) {
	int fd;
	int nfd;
	int dev;
	size_t len;
	char *map;
	struct peer peer;
	long long tables;
	char huge[32];
};

FIXTURE_VARIANT(device) {
	unsigned int flags;
	size_t len;
	bool huge;
};

/* Entries of its own; links to single tables; to whole GiBs; huge entries in these. */
FIXTURE_VARIANT_ADD(device, alone) { MFD_ALLOW_PROTECT, USED * TABLE_SIZE, false };
FIXTURE_VARIANT_ADD(device, alone_huge) { MFD_ALLOW_PROTECT, USED * TABLE_SIZE, true };
FIXTURE_VARIANT_ADD(device, tables) {
	MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES, USED * TABLE_SIZE, false
};

FIXTURE_VARIANT_ADD(device, gib) { MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES, GIB, false };
FIXTURE_VARIANT_ADD(device, gib_huge) { MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES, GIB, true };

/* Both have all that is used in their page tables; the device has seen nothing yet. */
FIXTURE_SETUP(device)
{
	self->fd = sys_memfd_create(MFD_CLOEXEC | variant->flags);
	if (self->fd == -EINVAL)
		SKIP(return, "not all features");
	ASSERT_LE(0, self->fd);
	self->dev = open(DEVICE, O_RDWR | O_CLOEXEC);
	if (self->dev < 0)
		SKIP(return, "no " DEVICE " (CONFIG_TEST_HMM)");
	if (!set_shmem_huge(variant->huge ? "always" : "never", self->huge,
			    sizeof(self->huge)))
		SKIP(return, "no huge pages of shmem");
	self->tables = ptshare_tables();
	self->len = variant->len;
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
	self->nfd = sys_memfd_notify(self->fd, 0);
	ASSERT_LE(0, self->nfd);
	ASSERT_TRUE(peer_start_mapped(&self->peer, self->fd, 0, self->len, PROT_RW));
	self->map = map_file(self->fd, 0, self->len, PROT_RW);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, USED * TABLE_PAGES, SEED);
	self->peer.arg->seed = SEED;
	self->peer.arg->len = USED * TABLE_SIZE;
	ASSERT_EQ(0, peer_call(&self->peer, peer_check));
}

/* The device may outlive the mapping, not the process: its file is closed before. */
FIXTURE_TEARDOWN(device)
{
	peer_kill(&self->peer);
	munmap(self->map, self->len);
	close(self->dev);
	close(self->nfd);
	close(self->fd);
	set_shmem_huge(self->huge, NULL, 0);
	EXPECT_TRUE(tables_become(self->tables));
}

/* Contents of two pages: what this process, the device, and the peer's file see */
#define EXPECT_CONTENT(self, page, value) do { \
	char *_at = address((self)->map, page); \
	EXPECT_EQ(value, load64(_at)); \
	EXPECT_EQ(value, device_read((self)->dev, _at)); \
	EXPECT_EQ(value, file64((self)->fd, (page) * page_size())); \
} while (0)

#define OLD(page)	page_mark(SEED, page)

TEST_F(device, not_protected)
{
	char *at = address(self->map, THE_PAGE);

	EXPECT_CONTENT(self, THE_PAGE, OLD(THE_PAGE));
	EXPECT_EQ(SEEN_WRITE, seen(self->dev, at) & ~SEEN_HUGE);
	EXPECT_EQ(variant->huge, !!(seen(self->dev, at) & SEEN_HUGE));
	EXPECT_EQ(0, device_write(self->dev, at, 1));
	EXPECT_CONTENT(self, THE_PAGE, 1);
	EXPECT_CONTENT(self, NEXT, OLD(NEXT));
}

/* A page that is not there: the device's own fault makes it. */
TEST_F(device, hole)
{
	char *at = address(self->map, THE_PAGE);

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       3 * TABLE_SIZE, TABLE_SIZE));
	EXPECT_EQ(0, device_read(self->dev, at));
	EXPECT_EQ(0, device_write(self->dev, at, 2));
	EXPECT_CONTENT(self, THE_PAGE, 2);
	/* Gone again, under the device's hands */
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       3 * TABLE_SIZE, TABLE_SIZE));
	EXPECT_CONTENT(self, THE_PAGE, 0);
}

TEST_F(device, denied)
{
	char *at = address(self->map, THE_PAGE);

	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SEEN_READ, seen(self->dev, at) & ~SEEN_HUGE);
	EXPECT_EQ(-EFAULT, device_write(self->dev, at, 1));
	EXPECT_CONTENT(self, THE_PAGE, OLD(THE_PAGE));
	ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	EXPECT_EQ(0, device_write(self->dev, at, 1));
	EXPECT_CONTENT(self, THE_PAGE, 1);
}

/* Without the look at the table's PMD entry, the device writes through it */
TEST_F(device, denied_control)
{
	static const char rule[] = "/sys/kernel/debug/ptshare/disable/gup";
	char *at = address(self->map, THE_PAGE);

	if (variant->len != GIB || variant->huge)
		SKIP(return, "no table that is protected as a whole");
	if (!write_file(rule, "0"))
		SKIP(return, "no switches");
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SEEN_READ, seen(self->dev, at));
	ASSERT_TRUE(write_file(rule, "1"));
	EXPECT_EQ(SEEN_WRITE, seen(self->dev, at));
	EXPECT_EQ(0, device_write(self->dev, at, 1));
	EXPECT_EQ(1, load64(at));
	write_file(rule, "0");
}

/* What the device could write is taken away from it as well. */
TEST_F(device, had_it)
{
	char *at = address(self->map, THE_PAGE);

	for (size_t turn = 1; turn < 4; turn++) {
		EXPECT_EQ(0, device_write(self->dev, at, turn));
		EXPECT_EQ(0, device_write(self->dev, address(self->map, NEXT), turn));
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
		EXPECT_EQ(-EFAULT, device_write(self->dev, at, 99));
		EXPECT_CONTENT(self, THE_PAGE, turn);
		/* One page of the table is free, and no other. */
		ASSERT_EQ(0, unprotect_pages(self->fd, NEXT, 1));
		EXPECT_EQ(0, device_write(self->dev, address(self->map, NEXT), 50));
		EXPECT_CONTENT(self, NEXT, 50);
		EXPECT_EQ(SEEN_WRITE, seen(self->dev, address(self->map, NEXT)));
		EXPECT_EQ(SEEN_READ, seen(self->dev, at));
		EXPECT_EQ(-EFAULT, device_write(self->dev, at, 99));
		EXPECT_CONTENT(self, THE_PAGE, turn);
		ASSERT_EQ(0, unprotect_pages(self->fd, ALL));
	}
	EXPECT_EQ(0, device_write(self->dev, at, 7));
	EXPECT_CONTENT(self, THE_PAGE, 7);
}

/* One page, of which the device has the neighbours */
TEST_F(device, one_page)
{
	char *at = address(self->map, THE_PAGE);

	EXPECT_EQ(0, device_write(self->dev, at, 1));
	ASSERT_EQ(0, protect_pages(self->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SEEN_READ, seen(self->dev, at));
	EXPECT_EQ(-EFAULT, device_write(self->dev, at, 2));
	EXPECT_EQ(0, device_write(self->dev, address(self->map, NEXT), 2));
	EXPECT_EQ(SEEN_READ, seen(self->dev, at));
	EXPECT_CONTENT(self, THE_PAGE, 1);
	EXPECT_CONTENT(self, NEXT, 2);
}

TEST_F(device, logged)
{
	struct memfd_range range = {};
	char *at = address(self->map, THE_PAGE);

	EXPECT_EQ(0, device_write(self->dev, at, 1));
	for (size_t turn = 2; turn < 5; turn++) {
		ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_ASYNC));
		EXPECT_EQ(0, device_write(self->dev, at, turn));
		EXPECT_EQ(0, device_write(self->dev, at, turn));
		EXPECT_EQ(SEEN_WRITE, seen(self->dev, at));
		EXPECT_EQ(SEEN_READ, seen(self->dev, address(self->map, NEXT)));
		EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1,
					MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_EQ(THE_PAGE * page_size(), range.offset);
		EXPECT_EQ(page_size(), range.length);
		EXPECT_EQ(SEEN_READ, seen(self->dev, at));
		EXPECT_EQ(0, scan_range(self->nfd, 0, 0, &range, 1, 0, NULL));
		EXPECT_CONTENT(self, THE_PAGE, turn);
	}
}

/* It faults with the mmap lock held, so it cannot wait: it fails, and is told of. */
TEST_F(device, cannot_wait)
{
	struct memfd_event event;
	char *at = address(self->map, THE_PAGE);

	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_WAIT));
	EXPECT_EQ(-EFAULT, device_write(self->dev, at, 1));
	ASSERT_TRUE(read_event(self->nfd, &event));
	EXPECT_EQ(THE_PAGE * page_size(), event.offset);
	EXPECT_EQ(0, event.flags & MEMFD_EVENT_F_WAITING);
	EXPECT_EQ(getpid(), (pid_t)event.pid);
	EXPECT_CONTENT(self, THE_PAGE, OLD(THE_PAGE));
	/* This process does wait there, and the device after it need not. */
	EXPECT_TRUE(no_event(self->nfd));
	ASSERT_EQ(0, unprotect_pages(self->fd, THE_PAGE, 1));
	EXPECT_EQ(0, device_write(self->dev, at, 1));
	EXPECT_CONTENT(self, THE_PAGE, 1);
}

static long peer_write(void *data)
{
	struct peer_arg *arg = data;

	store64(address(arg->map, THE_PAGE), arg->value);
	return 0;
}

/* What another process writes, the device reads, and the other way round. */
TEST_F(device, other_process)
{
	char *at = address(self->map, THE_PAGE);

	EXPECT_EQ(0, device_write(self->dev, at, 1));
	self->peer.arg->value = 5;
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_ASYNC));
	/* The peer's store makes the table writable, in which the device has read. */
	EXPECT_EQ(1, device_read(self->dev, at));
	ASSERT_EQ(0, peer_call(&self->peer, peer_write));
	EXPECT_CONTENT(self, THE_PAGE, 5);
	EXPECT_EQ(SEEN_READ, seen(self->dev, address(self->map, NEXT)) & ~SEEN_HUGE);
	ASSERT_EQ(0, protect_pages(self->fd, ALL, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EFAULT, device_write(self->dev, at, 6));
	EXPECT_CONTENT(self, THE_PAGE, 5);
}

/* Behind the end there is nothing, for the device neither. */
TEST_F(device, truncated)
{
	char *at = address(self->map, THE_PAGE);

	EXPECT_EQ(0, device_write(self->dev, at, 1));
	ASSERT_EQ(0, ftruncate(self->fd, 2 * TABLE_SIZE));
	EXPECT_EQ(-EFAULT, device_write(self->dev, at, 2));
	EXPECT_EQ(UINT64_MAX, device_read(self->dev, at));
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
	EXPECT_CONTENT(self, THE_PAGE, 0);
}

TEST_HARNESS_MAIN
