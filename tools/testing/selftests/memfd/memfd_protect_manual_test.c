// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the manual pages say in passing, and a caller runs into: values that are
 * 0, what a scan returns at its end, what fields hold that nobody needs.
 */
#include "memfd_protect_common.h"

#include <limits.h>

#include "kselftest_harness.h"

#define NR_PAGES	8

FIXTURE(file) {
	int fd;
	int nfd;
	size_t page;
};

FIXTURE_SETUP(file)
{
	self->page = page_size();
	self->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, NR_PAGES * self->page));
	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_NONBLOCK);
	ASSERT_LE(0, self->nfd);
}

FIXTURE_TEARDOWN(file)
{
	close(self->nfd);
	close(self->fd);
}

static ssize_t write_page(const FIXTURE_DATA(file) *self, size_t page)
{
	return pwrite(self->fd, "x", 1, page * self->page);
}

/* What fdinfo shows under that name, LONG_MIN if it does not */
static long shown_in(int fd, const char *name)
{
	char path[64], text[4096], *line;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (!read_file(path, text, sizeof(text)))
		return LONG_MIN;
	line = strstr(text, name);
	return line ? atol(line + strlen(name)) : LONG_MIN;
}

static long op_write_page(void *arg)
{
	return neg_errno(pwrite(*(int *)arg, "x", 1, 0));
}

/* WAIT and ALLOW are what a forgotten field means */
TEST_F(file, zero_is_wait_and_allow)
{
	struct memfd_resolve nothing_set = { 0 };
	struct memfd_event event;
	struct writer writer;

	ASSERT_EQ(0, sys_memfd_protect(self->fd, 0, 0, PROT_READ, 0));
	EXPECT_EQ(1, shown_in(self->fd, "protect_wait:"));
	ASSERT_TRUE(writer_start(&writer, self->nfd, op_write_page, &self->fd));
	ASSERT_TRUE(read_event(self->nfd, &event));
	nothing_set.cookie = event.cookie;
	EXPECT_EQ(0, ioctl(self->nfd, MEMFD_NOTIFY_RESOLVE, &nothing_set));
	EXPECT_TRUE(writer_finishes(&writer));
	EXPECT_EQ(1, writer.out->ret);
	writer_free(&writer);
}

/* Modes are numbers, not bits: WAIT | DENY is DENY, ASYNC | DENY is none */
TEST_F(file, modes_are_not_bits)
{
	EXPECT_EQ(0, protect_pages(self->fd, 1, 1,
				   MEMFD_PROTECT_WAIT | MEMFD_PROTECT_DENY));
	EXPECT_EQ(1, shown_in(self->fd, "protect_deny:"));
	EXPECT_EQ(0, shown_in(self->fd, "protect_wait:"));
	EXPECT_EQ(-EINVAL, protect_pages(self->fd, 1, 1, MEMFD_PROTECT_ASYNC |
					 MEMFD_PROTECT_DENY));
}

/* Who forgets the flags on a file without an event fd learns it so */
TEST_F(file, forgotten_flags_without_notify)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);

	ASSERT_LE(0, fd);
	EXPECT_EQ(-ENXIO, sys_memfd_protect(fd, 0, 0, PROT_READ, 0));
	close(fd);
}

TEST_F(file, walk_end)
{
	struct memfd_range range[2];
	uint64_t end;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	ASSERT_EQ(1, write_page(self, 1));
	ASSERT_EQ(1, write_page(self, 3));
	ASSERT_EQ(1, write_page(self, 5));

	/* Too small: behind the last range that was returned */
	EXPECT_EQ(2, scan_range(self->nfd, 0, 0, range, 2, 0, &end));
	EXPECT_EQ(4 * self->page, end);
	EXPECT_EQ(1, scan_range(self->nfd, end, 0, range, 2, 0, &end));
	/* Large enough: the end that was asked for, the largest one for 0 */
	EXPECT_EQ(1ULL << 63, end);
	EXPECT_EQ(1, scan_range(self->nfd, 0, 2 * self->page, range, 2, 0, &end));
	EXPECT_EQ(2 * self->page, end);
	/* Just full: it cannot know that nothing comes behind */
	EXPECT_EQ(1, scan_range(self->nfd, 0, 3 * self->page, range, 1, 0, &end));
	EXPECT_EQ(2 * self->page, end);
	EXPECT_EQ(0, scan_range(self->nfd, end, 3 * self->page, range, 1, 0, &end));
	EXPECT_EQ(3 * self->page, end);
}

/* The array is looked at when there is something to put into it */
TEST_F(file, scan_of_an_empty_log)
{
	struct memfd_range *nowhere = bad_pointer();
	uint64_t end;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	EXPECT_EQ(0, scan_range(self->nfd, 0, 0, nowhere, 1, 0, &end));
	ASSERT_EQ(1, write_page(self, 2));
	EXPECT_EQ(-EFAULT, scan_range(self->nfd, 0, 0, nowhere, 1, 0, &end));
}

/* The range and the process of DIRTY are those of the write that caused it */
TEST_F(file, dirty_names_the_first_write)
{
	struct memfd_event event;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	ASSERT_EQ(1, write_page(self, 2));
	ASSERT_EQ(1, write_page(self, 5));
	ASSERT_TRUE(read_event(self->nfd, &event));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, event.type);
	EXPECT_EQ(0, event.cookie);
	EXPECT_EQ(0, event.flags);
	EXPECT_EQ(2 * self->page, event.offset);
	EXPECT_EQ(self->page, event.length);
	EXPECT_EQ(getpid(), event.pid);
	EXPECT_TRUE(no_event(self->nfd));
}

/* Every line of fdinfo is in memfd_notify(2), and the other way round */
TEST_F(file, fdinfo_as_documented)
{
	static const char * const names[] = {
		"event_fd", "protect_wait", "protect_async", "protect_deny",
		"protect_bytes", "protect_busy", "log_ranges", "log_pages",
		"log_bytes", "waiters", "pending", "unread", "events", "waits",
	};
	char path[64], text[4096], *line, *rest = text;
	size_t seen = 0;

	EXPECT_EQ(1, shown_in(self->fd, "event_fd:"));
	EXPECT_EQ(-1, shown_in(self->fd, "protect_busy:"));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->nfd);
	ASSERT_TRUE(read_file(path, text, sizeof(text)));
	while ((line = strsep(&rest, "\n")) && *line) {
		char *name = strsep(&line, ":");
		size_t i = 0;

		if (!strcmp(name, "pos") || !strcmp(name, "flags") ||
		    !strcmp(name, "mnt_id") || !strcmp(name, "ino") ||
		    !strncmp(name, "ptshare_", 8))
			continue;
		while (i < ARRAY_SIZE(names) && strcmp(name, names[i]))
			i++;
		EXPECT_LT(i, ARRAY_SIZE(names)) TH_LOG("%s", name);
		seen++;
	}
	EXPECT_EQ(ARRAY_SIZE(names), seen);
}

TEST_F(file, not_seekable)
{
	char byte;

	EXPECT_EQ(-ESPIPE, neg_errno(lseek(self->nfd, 0, SEEK_SET)));
	EXPECT_EQ(-ESPIPE, neg_errno(lseek(self->nfd, 0, SEEK_CUR)));
	EXPECT_EQ(-ESPIPE, neg_errno(pread(self->nfd, &byte, 1, 0)));
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
