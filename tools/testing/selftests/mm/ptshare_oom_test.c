// SPDX-License-Identifier: GPL-2.0-only
/*
 * Out of memory because of one process, which fills it through a memfd: that
 * process is the one that is killed, and its memory is there again when it was
 * waited for. The same on an ordinary memfd, which says what is right.
 *
 * In a memory cgroup, with each thing that could go wrong, and in the whole
 * system if that is small (scripts/guest -m 700M).
 */
#include "ptshare_common.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define MIB		(1UL << 20)
#define CGROUP		"/sys/fs/cgroup"
#define GROUP		CGROUP "/ptshare_oom"
#define SWITCH		"/sys/kernel/debug/ptshare/disable/oom"
#define INNOCENTS	4
#define INNOCENT_SIZE	(16 * MIB)
#define LIMIT		"167772160"	/* 160 MiB */
#define HOG_SIZE	(1200 * MIB)
#define SMALL_KB	(800L << 10)	/* such a system is filled as a whole */
#define ROUNDS		3

static bool enter(const char *group)
{
	char path[96], pid[16];

	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	snprintf(pid, sizeof(pid), "%d", getpid());
	return write_file(path, pid);
}

static bool make_group(void)
{
	write_file(CGROUP "/cgroup.subtree_control", "+memory");
	rmdir(GROUP);
	return !mkdir(GROUP, 0755) && write_file(GROUP "/memory.max", LIMIT) &&
	       (access(GROUP "/memory.swap.max", F_OK) ||
		write_file(GROUP "/memory.swap.max", "0"));
}

static void hog(unsigned int flags)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | flags);
	char *map;

	if (fd < 0 || ftruncate(fd, HOG_SIZE))
		_exit(1);
	map = map_file(fd, 0, HOG_SIZE, PROT_RW);
	if (map == MAP_FAILED)
		_exit(1);
	fill_pages(map, 0, HOG_SIZE / page_size(), 1);
	_exit(2);
}

/* Has some memory of its own, and is there until told to go */
static void innocent(int told)
{
	char *map = mmap(NULL, INNOCENT_SIZE, PROT_RW, MAP_PRIVATE |
			 MAP_ANONYMOUS | MAP_POPULATE, -1, 0), c = 0;

	if (map == MAP_FAILED || write(told, &c, 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

/* A process in a group, if any */
static pid_t start(const char *group)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (group && !enter(group))
		_exit(1);
	return 0;
}

struct crowd {
	pid_t hog;
	pid_t innocent[INNOCENTS];
	int hog_status;
	int killed;		/* of the innocent */
};

static int reap(struct crowd *c)
{
	int killed = 0;

	for (int i = 0; i < INNOCENTS; i++) {
		int status;

		if (waitpid(c->innocent[i], &status, WNOHANG))
			killed++;
		kill(c->innocent[i], SIGKILL);
		waitpid(c->innocent[i], NULL, 0);
	}
	return killed;
}

static bool fill(struct crowd *c, const char *group, unsigned int flags)
{
	int told[2];
	char byte;

	if (pipe2(told, O_CLOEXEC))
		return false;
	for (int i = 0; i < INNOCENTS; i++) {
		c->innocent[i] = start(group);
		if (!c->innocent[i])
			innocent(told[1]);
		if (read(told[0], &byte, 1) != 1)
			return false;
	}
	c->hog = start(group);
	if (!c->hog)
		hog(flags);
	waitpid(c->hog, &c->hog_status, 0);
	return true;
}

static long long group_mib(void)
{
	char text[32] = "";
	int fd = open(GROUP "/memory.current", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	close(fd);
	return atoll(text) >> 20;
}

FIXTURE(oom) {
	int unused;
};

FIXTURE_VARIANT(oom) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(oom, shared) {
	.flags = MFD_SHARE_PGTABLES,
};

FIXTURE_VARIANT_ADD(oom, ordinary) {
	.flags = 0,
};

FIXTURE_SETUP(oom)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
}

FIXTURE_TEARDOWN(oom)
{
	rmdir(GROUP);
}

TEST_F(oom, of_a_cgroup_kills_who_fills_it)
{
	struct crowd c;

	if (!make_group())
		SKIP(return, "no memory cgroups");
	for (int i = 0; i < ROUNDS; i++) {
		ASSERT_TRUE(fill(&c, GROUP, variant->flags));
		EXPECT_TRUE(WIFSIGNALED(c.hog_status));
		EXPECT_EQ(SIGKILL, WTERMSIG(c.hog_status));
		EXPECT_GE(INNOCENTS * INNOCENT_SIZE / MIB + 8, group_mib());
		EXPECT_EQ(0, reap(&c));
	}
}

TEST_F(oom, of_the_system_kills_who_fills_it)
{
	struct crowd c;

	if (meminfo_kb("MemTotal") > SMALL_KB || meminfo_kb("SwapTotal"))
		SKIP(return, "too much memory");
	for (int i = 0; i < ROUNDS; i++) {
		long long before = meminfo_kb("Shmem");

		ASSERT_TRUE(fill(&c, NULL, variant->flags));
		EXPECT_TRUE(WIFSIGNALED(c.hog_status));
		EXPECT_EQ(SIGKILL, WTERMSIG(c.hog_status));
		EXPECT_GE(before + 1024, meminfo_kb("Shmem"));
		EXPECT_EQ(0, reap(&c));
	}
}

/* Many small parts of large mappings are not much */
static void sparse(int told)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_SHARE_PGTABLES);
	char *map, c = 0;

	if (fd < 0 || ftruncate(fd, HOG_SIZE))
		_exit(1);
	map = map_file(fd, 0, HOG_SIZE, PROT_RW);
	if (map == MAP_FAILED)
		_exit(1);
	for (size_t at = 0; at < HOG_SIZE; at += TABLE_SIZE)
		store64(map + at, 1);
	if (write(told, &c, 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

TEST(sparse_mappings_are_spared)
{
	struct crowd c;
	int told[2], status;
	pid_t pid;
	char byte;

	if (!have_ptshare() || !make_group())
		SKIP(return, "no shared page tables or memory cgroups");
	ASSERT_EQ(0, pipe2(told, O_CLOEXEC));
	pid = start(GROUP);
	if (!pid)
		sparse(told[1]);
	ASSERT_EQ(1, read(told[0], &byte, 1));
	ASSERT_TRUE(fill(&c, GROUP, MFD_SHARE_PGTABLES));
	EXPECT_TRUE(WIFSIGNALED(c.hog_status));
	EXPECT_EQ(0, reap(&c));
	EXPECT_EQ(0, waitpid(pid, &status, WNOHANG));
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	rmdir(GROUP);
}

/* If links did not count, others would be killed first */
TEST(killed_innocents_are_seen)
{
	struct crowd c;
	bool filled;

	if (!have_ptshare() || !make_group() || !write_file(SWITCH, "1"))
		SKIP(return, "no switches or memory cgroups");
	filled = fill(&c, GROUP, MFD_SHARE_PGTABLES);
	write_file(SWITCH, "0");
	ASSERT_TRUE(filled);
	EXPECT_LT(0, reap(&c));
	rmdir(GROUP);
}

TEST_HARNESS_MAIN
