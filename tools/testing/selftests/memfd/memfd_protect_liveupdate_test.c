// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of memfds and live update (Linux 7.3): a session preserves memfds over kexec.
 * The next kernel knows nothing of what is protected, so a memfd that can be
 * protected is refused. Needs a kernel that was booted with "kho=on liveupdate=on".
 */
#include "memfd_protect_common.h"

#include <sys/ioctl.h>

#include "kselftest_harness.h"

#if __has_include(<linux/liveupdate.h>)
#include <linux/liveupdate.h>

#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES	0x00200000U
#endif

#define NR_PAGES	16

FIXTURE(session) {
	int fd;
	size_t size;
};

FIXTURE_SETUP(session)
{
	struct liveupdate_ioctl_create_session create = {
		.size = sizeof(create), .name = "memfd_protect",
	};
	int device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);

	self->fd = -1;
	if (device < 0)
		SKIP(return, "no live update");
	ASSERT_EQ(0, ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &create));
	close(device);
	self->fd = create.fd;
	self->size = NR_PAGES * page_size();
}

FIXTURE_TEARDOWN(session)
{
	close(self->fd);
}

static int preserve(const FIXTURE_DATA(session) *self, int fd)
{
	struct liveupdate_session_preserve_fd arg = {
		.size = sizeof(arg), .fd = fd, .token = 1,
	};

	return neg_errno(ioctl(self->fd, LIVEUPDATE_SESSION_PRESERVE_FD, &arg));
}

/* So that what is refused below is refused for what it is */
TEST_F(session, ordinary)
{
	int fd = create_filled(NR_PAGES, 0);

	EXPECT_EQ(0, preserve(self, fd));
	close(fd);
}

TEST_F(session, protected_is_refused)
{
	int fd = create_filled(NR_PAGES, MFD_ALLOW_PROTECT);

	if (fd < 0)
		SKIP(return, "no CONFIG_MEMFD_PROTECT");
	EXPECT_EQ(-ENOENT, preserve(self, fd));
	ASSERT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-ENOENT, preserve(self, fd));

	/* And nothing is frozen by the attempt */
	EXPECT_EQ(0, ftruncate(fd, self->size * 2));
	EXPECT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       page_size(), page_size()));
	close(fd);
}

/* Shared page tables are no property of the contents: they are made anew */
TEST_F(session, shared_tables)
{
	int fd = create_filled(NR_PAGES, MFD_SHARE_PGTABLES);
	char *map;

	if (fd < 0)
		SKIP(return, "no CONFIG_PTSHARE");
	map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, preserve(self, fd));
	EXPECT_TRUE(filled_with(map, self->size, OLD_BYTE));

	/* The size is frozen, the contents are not */
	EXPECT_NE(0, ftruncate(fd, self->size / 2));
	memset(map, NEW_BYTE, self->size);
	EXPECT_TRUE(file_filled_with(fd, 0, NR_PAGES, NEW_BYTE));
	munmap(map, self->size);
	close(fd);
}

#else

TEST(session)
{
	SKIP(return, "this kernel's headers have no live update");
}

#endif

TEST_HARNESS_MAIN
