// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a review of shared page tables found, so that it stays found: things that a
 * process can see of the host of the file, and the edges of what it maps. Each
 * case runs on an ordinary memfd too, which says what is right.
 */
#include "ptshare_common.h"

#include <linux/userfaultfd.h>
#include <sys/file.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define SPAN		(24UL << 40)	/* what the host maps of a file */
#define MAX_MAPS	"/proc/sys/vm/max_map_count"
#define NR_MAPS		"1000"		/* mappings that are allowed */
#define NR_PIECES	1500UL

static sigjmp_buf jump;

static void on_signal(int nr)
{
	siglongjmp(jump, nr);
}

/* The signal that a load or store gets, 0 if it goes through */
static int signal_of(char *addr, int store)
{
	int nr;

	signal(SIGSEGV, on_signal);
	signal(SIGBUS, on_signal);
	nr = sigsetjmp(jump, 1);
	if (nr)
		return nr;
	if (store)
		*(volatile char *)addr = 'X';
	else
		(void)*(volatile char *)addr;
	return 0;
}

/* How many mappings there are */
static long long lines_of(const char *path)
{
	FILE *file = fopen(path, "re");
	long long lines = 0;
	int c;

	if (!file)
		return -1;
	while ((c = getc(file)) != EOF)
		lines += c == '\n';
	fclose(file);
	return lines;
}

FIXTURE(edge) {
	int fd;
};

FIXTURE_VARIANT(edge) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(edge, shared) {
	.flags = MFD_SHARE_PGTABLES,
};

FIXTURE_VARIANT_ADD(edge, ordinary) {
	.flags = 0,
};

FIXTURE_SETUP(edge)
{
	if (!have_ptshare())
		SKIP(return, "no shared page tables");
	self->fd = sys_memfd_create(MFD_CLOEXEC | variant->flags);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, 4 * TABLE_SIZE));
}

FIXTURE_TEARDOWN(edge)
{
	close(self->fd);
}

/* Locks a description of its own, is the first to touch the file, and dies. */
static void lock_touch_and_die(int fd, int told, int wait)
{
	int own = open_again(fd, O_RDWR);
	char *map, c = 0;

	if (own < 0 || flock(own, LOCK_EX))
		_exit(1);
	map = map_file(own, 0, 4 * TABLE_SIZE, PROT_RW);
	if (map == MAP_FAILED)
		_exit(2);
	store64(map, 1);
	if (write(told, &c, 1) != 1 || read(wait, &c, 1) != 1)
		_exit(3);
	_exit(0);
}

/* The host must not keep a process's open file description */
TEST_F(edge, locks_end_with_their_owner)
{
	int told[2], go[2], other, status;
	char *map, c = 0;
	pid_t pid;

	ASSERT_EQ(0, pipe(told));
	ASSERT_EQ(0, pipe(go));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		lock_touch_and_die(self->fd, told[1], go[0]);
	ASSERT_EQ(1, read(told[0], &c, 1));
	map = map_file(self->fd, 0, 4 * TABLE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	store64(map + page_size(), 2);
	other = open_again(self->fd, O_RDWR);
	ASSERT_LE(0, other);
	EXPECT_EQ(-EWOULDBLOCK, neg_errno(flock(other, LOCK_EX | LOCK_NB)));

	ASSERT_EQ(1, write(go[1], &c, 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	EXPECT_EQ(0, neg_errno(flock(other, LOCK_EX | LOCK_NB)));
	EXPECT_EQ(1, load64(map));
	munmap(map, 4 * TABLE_SIZE);
	close(other);
	close(told[0]);
	close(told[1]);
	close(go[0]);
	close(go[1]);
}

/* Memory that userfaultfd has poisoned stays so when sharing could begin again */
TEST_F(edge, poison_outlives_userfaultfd)
{
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_POISON,
	};
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_poison poison = {};
	char *map;
	int uffd;

	map = map_file(self->fd, 0, 4 * TABLE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	uffd = neg_errno(syscall(__NR_userfaultfd, O_CLOEXEC));
	ASSERT_LE(0, uffd);
	ASSERT_EQ(0, neg_errno(ioctl(uffd, UFFDIO_API, &api)));
	reg.range.start = (uintptr_t)map;
	reg.range.len = 4 * TABLE_SIZE;
	ASSERT_EQ(0, neg_errno(ioctl(uffd, UFFDIO_REGISTER, &reg)));
	poison.range.start = (uintptr_t)map;
	poison.range.len = page_size();
	ASSERT_EQ(0, neg_errno(ioctl(uffd, UFFDIO_POISON, &poison)));
	EXPECT_EQ(SIGBUS, signal_of(map, 0));

	ASSERT_EQ(0, neg_errno(ioctl(uffd, UFFDIO_UNREGISTER, &reg.range)));
	EXPECT_EQ(SIGBUS, signal_of(map, 0));
	EXPECT_EQ(0, signal_of(map + page_size(), 0));
	close(uffd);
	EXPECT_EQ(SIGBUS, signal_of(map, 0));
	munmap(map, 4 * TABLE_SIZE);
}

/* A file that is mapped piece by piece needs no more VMAs than otherwise */
TEST_F(edge, pieces_are_merged)
{
	size_t len = NR_PIECES * TABLE_SIZE, i;
	char *area = reserve(len), normal[24];
	long long allowed = -1;
	FILE *file;

	ASSERT_NE(MAP_FAILED, area);
	file = fopen(MAX_MAPS, "re");
	ASSERT_NE(NULL, file);
	ASSERT_EQ(1, fscanf(file, "%lld", &allowed));
	fclose(file);
	ASSERT_TRUE(write_file(MAX_MAPS, NR_MAPS));
	ASSERT_EQ(0, ftruncate(self->fd, len));
	for (i = 0; i < NR_PIECES; i++)
		if (map_at(area + i * TABLE_SIZE, self->fd, i * TABLE_SIZE,
			   TABLE_SIZE, PROT_RW) == MAP_FAILED)
			break;
	snprintf(normal, sizeof(normal), "%lld", allowed);
	EXPECT_TRUE(write_file(MAX_MAPS, normal));
	EXPECT_EQ(NR_PIECES, i);
	if (i == NR_PIECES) {
		store64(area + len - TABLE_SIZE, 5);
		EXPECT_EQ(5, file64(self->fd, len - TABLE_SIZE));
	}
	munmap(area, len);
}

/* So do pieces whose flags came and went */
TEST_F(edge, pieces_are_merged_again)
{
	long long before, after;
	char *map;

	map = map_file(self->fd, 0, 4 * TABLE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	fill_pages(map, 0, 4 * TABLE_PAGES, 3);
	before = lines_of("/proc/self/maps");
	for (int i = 0; i < 4; i++) {
		ASSERT_EQ(0, mlock(map + i * TABLE_SIZE, TABLE_SIZE));
		ASSERT_EQ(0, munlock(map + i * TABLE_SIZE, TABLE_SIZE));
		ASSERT_EQ(0, mprotect(map + i * TABLE_SIZE, TABLE_SIZE,
				      PROT_READ));
		ASSERT_EQ(0, mprotect(map + i * TABLE_SIZE, TABLE_SIZE,
				      PROT_RW));
	}
	after = lines_of("/proc/self/maps");
	EXPECT_EQ(before, after);
	EXPECT_EQ(0, wrong_pages(map, 0, 4 * TABLE_PAGES, 3));
	munmap(map, 4 * TABLE_SIZE);
}

/*
 * The host maps the first 24 TiB. What grows beyond must not reach the tables of
 * the other class, which are next to it.
 */
TEST_F(edge, growth_beyond_the_host)
{
	char *area = reserve(2 * TABLE_SIZE), *map;

	ASSERT_NE(MAP_FAILED, area);
	ASSERT_EQ(0, ftruncate(self->fd, SPAN + 4 * TABLE_SIZE));
	map = map_file(self->fd, 0, TABLE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	store64(map, 'A');
	ASSERT_EQ(1, pwrite(self->fd, "Z", 1, SPAN));

	for (int prot = PROT_READ; prot <= PROT_RW; prot += PROT_WRITE) {
		ASSERT_EQ(area, map_at(area, self->fd, SPAN - TABLE_SIZE,
				       TABLE_SIZE, prot));
		EXPECT_EQ(0, signal_of(area, 0));
		ASSERT_EQ(area + TABLE_SIZE,
			  map_at(area + TABLE_SIZE, self->fd, SPAN, TABLE_SIZE,
				 prot));
		EXPECT_EQ('Z', *(volatile char *)(area + TABLE_SIZE));
		EXPECT_EQ(prot == PROT_READ ? SIGSEGV : 0,
			  signal_of(area + TABLE_SIZE, 1));
		EXPECT_EQ('A', *(volatile char *)map);
		EXPECT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE, SPAN, TABLE_SIZE));
		EXPECT_EQ(0, *(volatile char *)(area + TABLE_SIZE));
		ASSERT_EQ(1, pwrite(self->fd, "Z", 1, SPAN));
		munmap(area, 2 * TABLE_SIZE);
	}
	munmap(map, TABLE_SIZE);
}

/* The same by mremap() */
TEST_F(edge, mremap_beyond_the_host)
{
	char *map, *grown;

	ASSERT_EQ(0, ftruncate(self->fd, SPAN + 4 * TABLE_SIZE));
	ASSERT_EQ(1, pwrite(self->fd, "Z", 1, SPAN));
	map = map_file(self->fd, SPAN - TABLE_SIZE, TABLE_SIZE, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	store64(map, 'B');
	grown = mremap(map, TABLE_SIZE, 2 * TABLE_SIZE, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, grown);
	EXPECT_EQ('B', *(volatile char *)grown);
	EXPECT_EQ('Z', *(volatile char *)(grown + TABLE_SIZE));
	munmap(grown, 2 * TABLE_SIZE);
}

TEST_HARNESS_MAIN
