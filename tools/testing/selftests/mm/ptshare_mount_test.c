// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sharing by programs that do not ask for it: the mount option ptshare= of tmpfs, and
 * /sys/kernel/mm/ptshare/shmem_enabled for shared memory without a path.
 */
#include "ptshare_common.h"

#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/shm.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	60

#define ENABLED		"/sys/kernel/mm/ptshare/shmem_enabled"
#define NR_TABLES	3UL
#define SIZE		(NR_TABLES * TABLE_SIZE)
#define PAGES		(SIZE / page_size())
#define SEED		11

static bool enable(const char *value)
{
	return write_file(ENABLED, value);
}

static bool enabled_is(const char *text)
{
	char buf[64];

	return read_file(ENABLED, buf, sizeof(buf)) && !strcmp(buf, text);
}

/* What a child sees that inherits a mapping: all of it, through shared tables */
static int child_checks(char *map, size_t len)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid) {
		if (wrong_pages(map, 0, PAGES, SEED))
			_exit(1);
		if (shared_kb(map, len) != (long long)(SIZE >> 10))
			_exit(2);
		fill_pages(map, 0, PAGES, SEED + 1);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	if (WEXITSTATUS(status))
		return WEXITSTATUS(status);
	return wrong_pages(map, 0, PAGES, SEED + 1) ? 3 : 0;
}

/* Memory without a path that processes share, by all roads that lead to it */
enum kind { ANON, DEV_ZERO, MEMFD, SYSV };

static char *map_kind(enum kind kind, size_t size)
{
	char *map = MAP_FAILED;
	int fd = -1, id;

	switch (kind) {
	case ANON:
		return mmap(NULL, size, PROT_RW, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	case DEV_ZERO:
		fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
		break;
	case MEMFD:
		fd = sys_memfd_create(MFD_CLOEXEC);
		if (fd >= 0 && ftruncate(fd, size))
			return MAP_FAILED;
		break;
	case SYSV:
		id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
		if (id >= 0) {
			map = shmat(id, NULL, 0);
			shmctl(id, IPC_RMID, NULL);
		}
		return map;
	}
	if (fd >= 0) {
		map = map_file(fd, 0, size, PROT_RW);
		close(fd);
	}
	return map;
}

static int unmap_kind(enum kind kind, char *map, size_t size)
{
	return kind == SYSV ? shmdt(map) : munmap(map, size);
}

FIXTURE(kernel) {
	long long tables;
};

FIXTURE_VARIANT(kernel) {
	enum kind kind;
};

FIXTURE_VARIANT_ADD(kernel, anonymous) { .kind = ANON };
FIXTURE_VARIANT_ADD(kernel, dev_zero) { .kind = DEV_ZERO };
FIXTURE_VARIANT_ADD(kernel, memfd) { .kind = MEMFD };
FIXTURE_VARIANT_ADD(kernel, sysv) { .kind = SYSV };

FIXTURE_SETUP(kernel)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	self->tables = ptshare_tables();
	ASSERT_TRUE(enable("always"));
}

FIXTURE_TEARDOWN(kernel)
{
	enable("never");
	EXPECT_TRUE(tables_become(self->tables));
}

TEST_F(kernel, shares)
{
	char *map = map_kind(variant->kind, SIZE);

	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, (uintptr_t)map % TABLE_SIZE);
	fill_pages(map, 0, PAGES, SEED);
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(map, SIZE));
	EXPECT_EQ(self->tables + (long long)NR_TABLES, ptshare_tables());
	EXPECT_EQ(0, child_checks(map, SIZE));
	EXPECT_EQ(0, unmap_kind(variant->kind, map, SIZE));
}

/* What was made before does not change, nor what is made after it was taken back */
TEST_F(kernel, property_of_the_file)
{
	char *before, *during, *after;

	ASSERT_TRUE(enable("never"));
	before = map_kind(variant->kind, SIZE);
	ASSERT_TRUE(enable("always"));
	during = map_kind(variant->kind, SIZE);
	ASSERT_TRUE(enable("never"));
	after = map_kind(variant->kind, SIZE);
	ASSERT_TRUE(before != MAP_FAILED && during != MAP_FAILED &&
		    after != MAP_FAILED);
	fill_pages(before, 0, PAGES, SEED);
	fill_pages(during, 0, PAGES, SEED);
	fill_pages(after, 0, PAGES, SEED);
	EXPECT_EQ(0, shared_kb(before, SIZE));
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(during, SIZE));
	EXPECT_EQ(0, shared_kb(after, SIZE));
	EXPECT_EQ(0, child_checks(during, SIZE));
	EXPECT_EQ(0, unmap_kind(variant->kind, before, SIZE));
	EXPECT_EQ(0, unmap_kind(variant->kind, during, SIZE));
	EXPECT_EQ(0, unmap_kind(variant->kind, after, SIZE));
}

/* A part goes, moves, gets other rights: as everywhere */
TEST_F(kernel, parts)
{
	char *map = map_kind(variant->kind, SIZE), *moved;

	ASSERT_NE(MAP_FAILED, map);
	fill_pages(map, 0, PAGES, SEED);
	ASSERT_EQ(0, mprotect(map, page_size(), PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(map, 1));
	EXPECT_EQ((long long)((NR_TABLES - 1) * TABLE_KB),
		  shared_kb(map, SIZE));
	ASSERT_EQ(0, mprotect(map, page_size(), PROT_RW));
	EXPECT_EQ(0, wrong_pages(map, 0, PAGES, SEED));
	moved = reserve(TABLE_SIZE);
	ASSERT_EQ(moved, mremap(map + 2 * TABLE_SIZE, TABLE_SIZE, TABLE_SIZE,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(0, wrong_pages(moved, 2 * TABLE_PAGES, TABLE_PAGES, SEED));
	ASSERT_EQ(0, munmap(map + TABLE_SIZE, TABLE_SIZE));
	EXPECT_EQ(0, wrong_pages(map, 0, TABLE_PAGES, SEED));
	EXPECT_EQ(0, munmap(map, TABLE_SIZE));
	EXPECT_EQ(0, munmap(moved, TABLE_SIZE));
}

/* Of whole GiBs the level above is shared as well: a child finds all by one fault */
#define GIB		(1UL << 30)
#define GIB_TABLES	(GIB / TABLE_SIZE)

static int child_faults(char *map)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid) {
		long before = faults();

		for (size_t i = 0; i < GIB_TABLES; i++)
			if (load64(map + i * TABLE_SIZE) != i)
				_exit(255);
		_exit(faults() - before > 254 ? 254 : faults() - before);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ?
	       WEXITSTATUS(status) : -1;
}

TEST_F(kernel, whole_gib)
{
	char *map = map_kind(variant->kind, GIB);

	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, (uintptr_t)map % GIB);
	for (size_t i = 0; i < GIB_TABLES; i++)
		store64(map + i * TABLE_SIZE, i);
	EXPECT_EQ(1, child_faults(map));
	/* Cut, it is links one level below, and whole again; SysV mappings do not merge */
	ASSERT_EQ(0, mprotect(map + TABLE_SIZE, page_size(), PROT_READ));
	EXPECT_LT(1, child_faults(map));
	ASSERT_EQ(0, mprotect(map + TABLE_SIZE, page_size(), PROT_RW));
	EXPECT_EQ(1, load64(map + TABLE_SIZE));
	if (variant->kind != SYSV)
		EXPECT_EQ(1, child_faults(map));
	EXPECT_EQ(0, unmap_kind(variant->kind, map, GIB));
}

/* Such memory is protected as a whole, too */
TEST(protected_gib)
{
	long long before;
	char *map;
	int fd;

	if (!have_ptshare() || !have_protect())
		SKIP(return, "not both features");
	ASSERT_TRUE(enable("always"));
	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	enable("never");
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, GIB));
	map = map_file(fd, 0, GIB, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	for (size_t i = 0; i < GIB_TABLES; i++)
		store64(map + i * TABLE_SIZE, i);
	before = vmstat("ptshare_protect");
	ASSERT_EQ(0, protect_pages(fd, 0, 0, MEMFD_PROTECT_DENY));
	EXPECT_EQ(before + (long long)GIB_TABLES, vmstat("ptshare_protect"));
	EXPECT_EQ(SIGBUS, try_store(map + 5 * TABLE_SIZE, 1));
	ASSERT_EQ(0, unprotect_pages(fd, 0, 0));
	EXPECT_EQ(0, try_store(map + 5 * TABLE_SIZE, 1));
	munmap(map, GIB);
	close(fd);
}

/* SysV segments: who is attached is counted, and shmdt() finds what is left */
FIXTURE(sysv) {
	long long tables;
	int id;
};

FIXTURE_SETUP(sysv)
{
	self->id = -1;
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	self->tables = ptshare_tables();
	ASSERT_TRUE(enable("always"));
	self->id = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	ASSERT_LE(0, self->id);
}

FIXTURE_TEARDOWN(sysv)
{
	enable("never");
	if (self->id >= 0)
		shmctl(self->id, IPC_RMID, NULL);
	EXPECT_TRUE(tables_become(self->tables));
}

static long attached(int id)
{
	struct shmid_ds ds;

	return shmctl(id, IPC_STAT, &ds) ? -1 : (long)ds.shm_nattch;
}

TEST_F(sysv, attached)
{
	char *map = shmat(self->id, NULL, 0), *second, *reader;
	int status;
	pid_t pid;

	ASSERT_NE((char *)-1, map);
	EXPECT_EQ(1, attached(self->id));
	fill_pages(map, 0, PAGES, SEED);
	second = shmat(self->id, NULL, 0);
	reader = shmat(self->id, NULL, SHM_RDONLY);
	EXPECT_EQ(3, attached(self->id));
	EXPECT_EQ(0, wrong_pages(second, 0, PAGES, SEED));
	EXPECT_EQ(0, wrong_pages(reader, 0, PAGES, SEED));
	EXPECT_EQ(SIGSEGV, try_store(reader, 1));
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(reader, SIZE));
	pid = fork();
	if (!pid)
		_exit(attached(self->id) == 6 && !shmdt(map) &&
		      attached(self->id) == 5 ? 0 : 1);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(3, attached(self->id));
	/* Two parts are left of it, and go together */
	ASSERT_EQ(0, munmap(map + TABLE_SIZE, page_size()));
	EXPECT_EQ(4, attached(self->id));
	EXPECT_EQ(0, shmdt(map));
	EXPECT_EQ(2, attached(self->id));
	EXPECT_EQ(SIGSEGV, try_load(map));
	EXPECT_EQ(SIGSEGV, try_load(map + 2 * TABLE_SIZE));
	EXPECT_EQ(0, shmdt(second));
	EXPECT_EQ(0, shmdt(reader));
	EXPECT_EQ(0, attached(self->id));
	EXPECT_EQ(-EINVAL, neg_errno(shmdt(reader)));
}

static size_t pages_present(const char *map)
{
	size_t nr = 0;

	for (size_t i = 0; i < PAGES; i++)
		nr += page_has(map + i * page_size(), PM_PRESENT);
	return nr;
}

/* Reclaim leaves it alone, whether it was locked before it was mapped or after */
TEST_F(sysv, locked_segment)
{
	char *map = shmat(self->id, NULL, 0);

	ASSERT_NE((char *)-1, map);
	ASSERT_EQ(0, shmctl(self->id, SHM_LOCK, NULL));
	fill_pages(map, 0, PAGES, SEED);
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(map, SIZE));
	ASSERT_EQ(0, madvise(map, SIZE, MADV_PAGEOUT));
	EXPECT_EQ(PAGES, pages_present(map));
	ASSERT_EQ(0, shmctl(self->id, SHM_UNLOCK, NULL));
	if (field_of("/proc/meminfo", "SwapFree") > (long long)(SIZE >> 10)) {
		for (int i = 0; i < 200 && pages_present(map); i++) {
			ASSERT_EQ(0, madvise(map, SIZE, MADV_PAGEOUT));
			usleep(5000);
		}
		EXPECT_EQ(0, pages_present(map));
	}
	EXPECT_EQ(0, wrong_pages(map, 0, PAGES, SEED));
	ASSERT_EQ(0, shmctl(self->id, SHM_LOCK, NULL));
	ASSERT_EQ(0, madvise(map, SIZE, MADV_PAGEOUT));
	EXPECT_EQ(PAGES, pages_present(map));
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(map, SIZE));
	ASSERT_EQ(0, shmctl(self->id, SHM_UNLOCK, NULL));
	EXPECT_EQ(0, shmdt(map));
}

/* With the segment removed, the last detach frees it */
TEST_F(sysv, removed)
{
	char *map = shmat(self->id, NULL, 0);

	ASSERT_NE((char *)-1, map);
	ASSERT_EQ(0, shmctl(self->id, IPC_RMID, NULL));
	fill_pages(map, 0, PAGES, SEED);
	EXPECT_EQ(0, child_checks(map, SIZE));
	EXPECT_EQ(0, shmdt(map));
	EXPECT_EQ(-EINVAL, neg_errno(attached(self->id)));
	self->id = -1;
}

/* The mount option */
#define DIR	"/tmp/ptshare_mount"
#define OTHER	"/tmp/ptshare_other"

/* The options of the mount at a place */
static bool mount_has(const char *where, const char *option)
{
	char line[1024], dir[256], options[512];
	bool found = false;
	FILE *file = fopen("/proc/self/mounts", "re");

	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%*s %255s %*s %511s", dir, options) != 2 ||
		    strcmp(dir, where))
			continue;
		found = false;
		for (char *o = strtok(options, ","); o; o = strtok(NULL, ","))
			found |= !strcmp(o, option);
	}
	fclose(file);
	return found;
}

static int mount_tmpfs(const char *options)
{
	return neg_errno(mount("tmpfs", DIR, "tmpfs", 0, options));
}

static int remount_tmpfs(const char *options)
{
	return neg_errno(mount("tmpfs", DIR, "tmpfs", MS_REMOUNT, options));
}

static int make_file(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), DIR "/%s", name);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0 && ftruncate(fd, SIZE))
		return -1;
	return fd;
}

/* How much of a file a new mapping shares once it is filled */
static long long file_shares(int fd)
{
	char *map = map_file(fd, 0, SIZE, PROT_RW);
	long long kb;

	if (map == MAP_FAILED)
		return -1;
	fill_pages(map, 0, PAGES, SEED);
	kb = shared_kb(map, SIZE);
	munmap(map, SIZE);
	return kb;
}

FIXTURE(mount) {
	long long tables;
};

FIXTURE_SETUP(mount)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	self->tables = ptshare_tables();
	mkdir(DIR, 0700);
	mkdir(OTHER, 0700);
}

FIXTURE_TEARDOWN(mount)
{
	umount2(OTHER, MNT_DETACH);
	umount2(DIR, MNT_DETACH);
	EXPECT_TRUE(tables_become(self->tables));
}

TEST_F(mount, option)
{
	int early, late, off;

	ASSERT_EQ(0, mount_tmpfs("size=64m"));
	EXPECT_FALSE(mount_has(DIR, "ptshare=always"));
	EXPECT_FALSE(mount_has(DIR, "ptshare=never"));
	off = make_file("off");
	ASSERT_LE(0, off);
	EXPECT_EQ(0, file_shares(off));

	ASSERT_EQ(0, remount_tmpfs("ptshare=always"));
	EXPECT_TRUE(mount_has(DIR, "ptshare=always"));
	EXPECT_TRUE(mount_has(DIR, "size=65536k"));
	early = make_file("early");
	EXPECT_EQ((long long)(SIZE >> 10), file_shares(early));
	EXPECT_EQ(0, file_shares(off));

	/* Other options leave it alone */
	ASSERT_EQ(0, remount_tmpfs("size=65m"));
	EXPECT_TRUE(mount_has(DIR, "ptshare=always"));

	ASSERT_EQ(0, remount_tmpfs("ptshare=never"));
	EXPECT_FALSE(mount_has(DIR, "ptshare=always"));
	late = make_file("late");
	EXPECT_EQ(0, file_shares(late));
	EXPECT_EQ((long long)(SIZE >> 10), file_shares(early));
	close(off);
	close(early);
	close(late);
}

/* A tmpfs with huge pages as well: entries of whole GiBs are huge */
TEST_F(mount, huge)
{
	char *map;
	int fd;

	if (mount_tmpfs("size=1100m,huge=always,ptshare=always"))
		SKIP(return, "no huge pages of tmpfs");
	EXPECT_TRUE(mount_has(DIR, "ptshare=always"));
	EXPECT_TRUE(mount_has(DIR, "huge=always"));
	fd = make_file("huge");
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, GIB));
	map = map_file(fd, 0, GIB, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	fill_pages(map, 0, PAGES, SEED);
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(map, SIZE));
	EXPECT_EQ((long long)(SIZE >> 10),
		  smaps_sum(getpid(), map, GIB, "ShmemPmdMapped", NULL));
	EXPECT_EQ(0, child_checks(map, GIB));
	munmap(map, GIB);
	close(fd);
}

TEST_F(mount, bad_value)
{
	EXPECT_EQ(-EINVAL, mount_tmpfs("ptshare=sometimes"));
	EXPECT_EQ(-EINVAL, mount_tmpfs("ptshare="));
	EXPECT_EQ(-EINVAL, mount_tmpfs("ptshare"));
	ASSERT_EQ(0, mount_tmpfs("ptshare=always"));
	EXPECT_EQ(-EINVAL, remount_tmpfs("ptshare=1"));
	EXPECT_TRUE(mount_has(DIR, "ptshare=always"));
}

/* One mount's option is not another's, nor the kernel's */
TEST_F(mount, of_its_own)
{
	int fd, memfd = sys_memfd_create(MFD_CLOEXEC);

	ASSERT_EQ(0, mount_tmpfs("ptshare=always"));
	ASSERT_EQ(0, mount("tmpfs", OTHER, "tmpfs", 0, NULL));
	fd = open(OTHER "/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	EXPECT_EQ(0, file_shares(fd));
	ASSERT_EQ(0, ftruncate(memfd, SIZE));
	EXPECT_EQ(0, file_shares(memfd));
	EXPECT_TRUE(enabled_is("always [never]\n"));
	close(fd);
	close(memfd);
}

/* A mapping outlives the mount through which it was made, and what it shares as well */
TEST_F(mount, mount_goes)
{
	char *map, *direct;
	int fd, other;

	ASSERT_EQ(0, mount_tmpfs("ptshare=always"));
	ASSERT_EQ(0, mount(DIR, OTHER, NULL, MS_BIND, NULL));
	other = open(OTHER "/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_LE(0, other);
	ASSERT_EQ(0, ftruncate(other, SIZE));
	/* The first fault comes through the mount that goes first */
	map = map_file(other, 0, SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	fill_pages(map, 0, 10, SEED);
	fd = open(DIR "/file", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	direct = map_file(fd, 0, SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, direct);
	close(other);
	ASSERT_EQ(0, munmap(map, SIZE));
	ASSERT_EQ(0, umount2(OTHER, 0));
	usleep(100000);
	fill_pages(direct, 0, PAGES, SEED);
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(direct, SIZE));
	ASSERT_EQ(0, umount2(DIR, MNT_DETACH));
	close(fd);
	EXPECT_EQ(0, child_checks(direct, SIZE));
	EXPECT_EQ(0, munmap(direct, SIZE));
}

/* Who may only read, reads; and a file without a name any more shares on */
TEST_F(mount, readers)
{
	char *map, *reader;
	int fd, ro;

	ASSERT_EQ(0, mount_tmpfs("ptshare=always"));
	fd = make_file("file");
	ASSERT_LE(0, fd);
	ro = open(DIR "/file", O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, ro);
	map = map_file(fd, 0, SIZE, PROT_RW);
	reader = map_file(ro, 0, SIZE, PROT_READ);
	ASSERT_TRUE(map != MAP_FAILED && reader != MAP_FAILED);
	fill_pages(map, 0, PAGES, SEED);
	EXPECT_EQ(0, wrong_pages(reader, 0, PAGES, SEED));
	EXPECT_EQ((long long)(SIZE >> 10), shared_kb(reader, SIZE));
	EXPECT_EQ(SIGSEGV, try_store(reader, 1));
	EXPECT_EQ(-EACCES, neg_errno(mprotect(reader, SIZE, PROT_RW)));
	ASSERT_EQ(0, unlink(DIR "/file"));
	EXPECT_EQ((long long)(SIZE >> 10), file_shares(fd));
	EXPECT_EQ(0, child_checks(map, SIZE));
	munmap(map, SIZE);
	munmap(reader, SIZE);
	close(ro);
	close(fd);
}

/* Stores change the time of the file as they do on any other: into holes, and to what is there */
TEST_F(mount, modification_time)
{
	long long before;
	char *map;
	int fd;

	ASSERT_EQ(0, mount_tmpfs("ptshare=always"));
	fd = make_file("file");
	map = map_file(fd, 0, SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	for (size_t i = 0; i < 4; i++) {
		char *at = map + i * 64 * page_size();

		if (i)
			ASSERT_EQ(1, pwrite(fd, "x", 1, at - map));
		before = modified_ns(fd);
		ASSERT_LE(0, before);
		usleep(20000);
		store64(at, 1);
		EXPECT_LT(before, modified_ns(fd));
	}
	munmap(map, SIZE);
	close(fd);
}

TEST(enabled)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	EXPECT_TRUE(enabled_is("always [never]\n"));
	EXPECT_FALSE(enable("sometimes"));
	EXPECT_FALSE(enable("alway"));
	EXPECT_FALSE(enable("never always"));
	EXPECT_TRUE(enabled_is("always [never]\n"));
	ASSERT_TRUE(enable("always\n"));
	EXPECT_TRUE(enabled_is("[always] never\n"));
	ASSERT_TRUE(enable("never"));
	EXPECT_TRUE(enabled_is("always [never]\n"));
}

/* Files that are too small to share a table cost no more than others */
TEST(small_files)
{
	long long tables;
	char *map;
	int fd;

	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	tables = ptshare_tables();
	ASSERT_TRUE(enable("always"));
	fd = sys_memfd_create(MFD_CLOEXEC);
	ASSERT_EQ(0, ftruncate(fd, page_size()));
	map = map_file(fd, 0, page_size(), PROT_RW);
	store64(map, 1);
	EXPECT_EQ(tables, ptshare_tables());
	EXPECT_EQ(0, fdinfo(fd, "ptshare_tables"));
	EXPECT_EQ(0, fdinfo(fd, "ptshare_guests"));
	munmap(map, page_size());
	close(fd);
	enable("never");
}

TEST_HARNESS_MAIN
