// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files of Coda whose cache is a file of shmem that shares page tables, or a memfd that
 * can be protected. Coda maps the file of its cache, the container, with a copy of the
 * operations that this gives the VMA; mappings that share, or that are protected, are
 * known by theirs.
 *
 * The program is Venus, too, the cache manager of Coda in user space: a process that
 * answers what the kernel asks (<linux/coda.h>). There is a root directory, and in it a
 * file for each descriptor that a test has given to Venus: its container.
 *
 * Needs root, and CONFIG_CODA_FS. Lockdep reports an order of locks that is Coda's own:
 * mmap() asks Venus, for which it takes the lock of the device, with the mmap lock held;
 * read(2) of the device copies to user space with its lock held.
 */
#include "ptshare_common.h"

#include <linux/types.h>
#define _LINUX_TIME_H	/* its types are those of <time.h> once more */
#include <linux/coda.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	240

#define CODA_MAJOR	67
#define NR_TABLES	3UL
#define SIZE		(NR_TABLES * TABLE_SIZE)
#define SIZE_KB		((long long)(SIZE >> 10))
#define PAGES		(SIZE / page_size())
#define SEED		21

/* A file of Coda, as Venus knows it */
struct venus_file {
	int container;		/* a descriptor of Venus; -1: nobody needs it any more */
	unsigned int opens;
	unsigned int closes;
};

#define NR_FILES	256

/* Seen by all processes, written by Venus */
static struct venus {
	unsigned int nr;
	struct venus_file file[NR_FILES];
} *venus;

static int venus_sock;		/* where tests give descriptors to Venus */
static char dir[64];		/* what is mounted is in there */

static const char *path_of(const char *name)
{
	static char path[sizeof(dir) + 32];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

/* Venus */

static struct CodaFid fid_of(unsigned int nr)
{
	return (struct CodaFid) { .opaque = { 1, 0, 0, nr } };
}

#define ROOT_NR		NR_FILES

static struct venus_file *file_of(const struct CodaFid *fid)
{
	return fid->opaque[3] < venus->nr ? &venus->file[fid->opaque[3]] : NULL;
}

static int venus_getattr(const struct CodaFid *fid, struct coda_vattr *attr)
{
	struct venus_file *file = file_of(fid);
	struct stat st;

	attr->va_nlink = 1;
	if (fid->opaque[3] == ROOT_NR) {
		attr->va_type = C_VDIR;
		attr->va_mode = 0700;
		return 0;
	}
	if (!file || fstat(file->container, &st))
		return ENOENT;
	attr->va_type = C_VREG;
	attr->va_mode = 0600;
	attr->va_size = st.st_size;
	return 0;
}

static int venus_lookup(const struct coda_lookup_in *in,
			struct coda_lookup_out *out)
{
	unsigned int nr = atoi((const char *)in + in->name);

	if (nr >= venus->nr || venus->file[nr].container < 0)
		return ENOENT;
	out->VFid = fid_of(nr);
	out->vtype = C_VREG;
	return 0;
}

static int venus_open(const struct CodaFid *fid, int *fd)
{
	struct venus_file *file = file_of(fid);

	if (!file || file->container < 0)
		return ENOENT;
	file->opens++;
	*fd = file->container;
	return 0;
}

/* The container goes with its last user. */
static int venus_close(const struct CodaFid *fid)
{
	struct venus_file *file = file_of(fid);

	if (!file)
		return ENOENT;
	if (++file->closes == file->opens) {
		close(file->container);
		file->container = -1;
	}
	return 0;
}

/* Returns the size of the answer; 0 if none is wanted */
static size_t venus_answer(const union inputArgs *in, union outputArgs *out)
{
	memset(out, 0, sizeof(*out));
	out->oh.opcode = in->ih.opcode;
	out->oh.unique = in->ih.unique;
	switch (in->ih.opcode) {
	case CODA_ROOT:
		out->coda_root.VFid = fid_of(ROOT_NR);
		return sizeof(out->coda_root);
	case CODA_GETATTR:
		out->oh.result = venus_getattr(&in->coda_getattr.VFid,
					       &out->coda_getattr.attr);
		return sizeof(out->coda_getattr);
	case CODA_LOOKUP:
		out->oh.result = venus_lookup(&in->coda_lookup,
					      &out->coda_lookup);
		return sizeof(out->coda_lookup);
	case CODA_OPEN_BY_FD:
		out->oh.result = venus_open(&in->coda_open_by_fd.VFid,
					    &out->coda_open_by_fd.fd);
		return sizeof(out->coda_open_by_fd);
	case CODA_CLOSE:
		out->oh.result = venus_close(&in->coda_close.VFid);
		return sizeof(out->oh);
	case CODA_ACCESS:
		return sizeof(out->oh);
	case CODA_ACCESS_INTENT:
		if (in->coda_access_intent.type == CODA_ACCESS_TYPE_READ_FINISH ||
		    in->coda_access_intent.type == CODA_ACCESS_TYPE_WRITE_FINISH)
			return 0;
		return sizeof(out->oh);
	case CODA_SIGNAL:
		return 0;
	}
	out->oh.result = EOPNOTSUPP;
	return sizeof(out->oh);
}

static void venus_upcall(int dev)
{
	union {
		union inputArgs args;
		char bytes[VC_MAXMSGSIZE];
	} in;
	union outputArgs out;
	size_t len;

	if (read(dev, &in, sizeof(in)) <= 0)
		return;
	len = venus_answer(&in.args, &out);
	if (len && write(dev, &out, len) != (ssize_t)len)
		fprintf(stderr, "venus: opcode %u: no answer: %m\n",
			in.args.ih.opcode);
}

/* A test gives a container: it gets the number of the file */
static void venus_take(int sock)
{
	int nr = -1, fd = recv_fd(sock);

	if (fd >= 0 && venus->nr < NR_FILES) {
		nr = venus->nr;
		venus->file[nr].container = fd;
		venus->nr++;
	}
	send(sock, &nr, sizeof(nr), MSG_NOSIGNAL);
}

static bool venus_has_users(void)
{
	for (unsigned int i = 0; i < venus->nr; i++)
		if (venus->file[i].opens != venus->file[i].closes)
			return true;
	return false;
}

/* Until the tests are over, and what they had open is closed: false if it is not */
static bool venus_serve(int dev, int sock, pid_t tests, int *status)
{
	struct pollfd pfd[] = {
		{ .fd = dev, .events = POLLIN },
		{ .fd = sock, .events = POLLIN },
		{ .fd = syscall(SYS_pidfd_open, tests, 0), .events = POLLIN },
	};
	uint64_t end = 0;

	while (!end || (venus_has_users() && now_ns() < end)) {
		poll(pfd, 3, end ? 100 : -1);
		if (pfd[0].revents & POLLIN)
			venus_upcall(dev);
		if (pfd[1].revents & POLLIN)
			venus_take(sock);
		else if (pfd[1].revents)
			pfd[1].fd = -1;
		if (!end && pfd[2].revents) {
			waitpid(tests, status, 0);
			end = now_ns() + LONG_MS * 1000000ULL;
			pfd[2].fd = -1;
		}
	}
	return !venus_has_users();
}

/* The side of the tests */

static int mount_coda(int dev)
{
	struct coda_mount_data data = {
		.version = CODA_MOUNT_VERSION, .fd = dev,
	};

	return neg_errno(mount("coda", path_of("coda"), "coda", 0, &data));
}

struct coda_file {
	int nr;
	int fd;
};

static int coda_open_nr(int nr, int flags)
{
	char name[32];

	snprintf(name, sizeof(name), "coda/%d", nr);
	return neg_errno(open(path_of(name), flags | O_CLOEXEC));
}

/* Opens a new file of Coda with this container */
static struct coda_file coda_open(int container, int flags)
{
	struct coda_file file = { .nr = -1, .fd = -1 };

	if (!send_fd(venus_sock, container) ||
	    read(venus_sock, &file.nr, sizeof(file.nr)) != sizeof(file.nr) ||
	    file.nr < 0)
		return file;
	file.fd = coda_open_nr(file.nr, flags);
	return file;
}

/* Nobody has it open or mapped */
static bool coda_gone(const struct coda_file *file)
{
	const volatile struct venus_file *f = &venus->file[file->nr];

	return f->opens && f->container < 0;
}

/*
 * At an address at which a mapping of the container would share. Coda's files are mapped
 * once only: a second time the kernel takes the inode for one of shmem, and reads its
 * seals beyond the end of it (memfd_check_seals_mmap()).
 */
static char *coda_map(int fd, size_t len, int flags)
{
	return mmap(reserve(len), len, PROT_RW, flags | MAP_FIXED, fd, 0);
}

/* A mapping that is all that is left of a new file of Coda */
static char *coda_map_new(int container, size_t len, int flags)
{
	struct coda_file file = coda_open(container, O_RDWR);
	char *map = coda_map(file.fd, len, flags);

	close(file.fd);
	return map;
}

/* Files that Coda maps as it maps any other */

enum kind { PLAIN, SHARE, TMPFS };

FIXTURE(mapped) {
	long long tables;
	long long shmem_kb;
	int container;
	struct coda_file file;
	char *map;
};

FIXTURE_VARIANT(mapped) {
	enum kind kind;
};

FIXTURE_VARIANT_ADD(mapped, plain) { .kind = PLAIN };
FIXTURE_VARIANT_ADD(mapped, share) { .kind = SHARE };
FIXTURE_VARIANT_ADD(mapped, tmpfs) { .kind = TMPFS };

static int make_container(enum kind kind)
{
	switch (kind) {
	case PLAIN:
		return sys_memfd_create(MFD_CLOEXEC);
	case SHARE:
		return share_memfd(0);
	case TMPFS:
		return open(path_of("tmpfs/container"),
			    O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	}
	return -1;
}

FIXTURE_SETUP(mapped)
{
	if (variant->kind != PLAIN && !have_ptshare())
		SKIP(return, "no shared page tables");
	self->tables = ptshare_tables();
	self->shmem_kb = meminfo_kb("Shmem");
	if (variant->kind == TMPFS)
		ASSERT_EQ(0, mount("tmpfs", path_of("tmpfs"), "tmpfs", 0,
				   "ptshare=always"));
	self->container = make_container(variant->kind);
	ASSERT_LE(0, self->container);
	ASSERT_EQ(0, ftruncate(self->container, SIZE));
	self->file = coda_open(self->container, O_RDWR);
	ASSERT_LE(0, self->file.fd);
	self->map = coda_map(self->file.fd, SIZE, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->map);
	fill_pages(self->map, 0, PAGES, SEED);
}

/* Tests leave no mapping: nothing must be left but the file */
FIXTURE_TEARDOWN(mapped)
{
	EXPECT_FALSE(coda_gone(&self->file));
	close(self->file.fd);
	EXPECT_TRUE(coda_gone(&self->file));
	EXPECT_TRUE(tables_become(self->tables));
	close(self->container);
	if (variant->kind == TMPFS) {
		EXPECT_EQ(0, unlink(path_of("tmpfs/container")));
		EXPECT_EQ(0, umount2(path_of("tmpfs"), 0));
	}
	EXPECT_GT(self->shmem_kb + SIZE_KB / 2, meminfo_kb("Shmem"));
}

/* What another process that maps the container itself has through shared tables */
#define SHARED_BY_PEER	(variant->kind == PLAIN ? 0 : SIZE_KB)

/* Each side sees what the other has stored, and write(2), and only the other shares */
TEST_F(mapped, contents)
{
	uint64_t word = page_mark(SEED + 2, 7);
	struct peer p;

	ASSERT_TRUE(peer_start_mapped(&p, self->container, 0, SIZE, PROT_RW));
	p.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&p, peer_check));
	EXPECT_EQ(0, wrong_file_pages(self->file.fd, 0, PAGES, SEED));
	p.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&p, peer_fill));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED + 1));
	EXPECT_EQ(8, pwrite(self->file.fd, &word, 8, 7 * page_size()));
	EXPECT_EQ(word, load64(self->map + 7 * page_size()));

	EXPECT_EQ(0, shared_kb(self->map, SIZE));
	EXPECT_EQ(SHARED_BY_PEER, peer_call(&p, peer_shared_kb));
	EXPECT_EQ(SIZE_KB, smaps_sum(getpid(), self->map, SIZE, "Rss", NULL));

	fill_pages(self->map, 0, PAGES, SEED);
	EXPECT_EQ(0, munmap(self->map, SIZE));
	p.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&p, peer_check));
	EXPECT_EQ(SHARED_BY_PEER, peer_call(&p, peer_shared_kb));
	EXPECT_EQ(0, peer_call(&p, peer_unmap));
	EXPECT_TRUE(tables_become(self->tables));
	EXPECT_TRUE(peer_exit(&p));
}

/* The mapping goes after those who share, and after the file is closed */
TEST_F(mapped, goes_last)
{
	int fd = dup(self->file.fd);
	struct peer p;

	ASSERT_LE(0, fd);
	ASSERT_TRUE(peer_start_mapped(&p, self->container, 0, SIZE, PROT_RW));
	p.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&p, peer_fill));
	EXPECT_EQ(0, peer_call(&p, peer_unmap));
	EXPECT_TRUE(peer_exit(&p));
	EXPECT_TRUE(tables_become(self->tables));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED + 1));
	close(self->file.fd);
	close(fd);
	EXPECT_FALSE(coda_gone(&self->file));
	fill_pages(self->map, 0, PAGES, SEED);
	EXPECT_EQ(0, wrong_file_pages(self->container, 0, PAGES, SEED));
	EXPECT_EQ(0, munmap(self->map, SIZE));
	EXPECT_TRUE(coda_gone(&self->file));

	/* For the teardown */
	self->file = coda_open(self->container, O_RDWR);
	ASSERT_LE(0, self->file.fd);
}

/* The file of Coda is none of shmem, whatever it maps: no inode is taken for another */
TEST_F(mapped, no_memfd)
{
	const size_t page = page_size();

	EXPECT_EQ(-EINVAL, sys_memfd_protect(self->file.fd, 0, page, PROT_READ,
					     MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EINVAL, sys_memfd_notify(self->file.fd, 0));
	EXPECT_EQ(-EOPNOTSUPP, neg_errno(ftruncate(self->file.fd, page)));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	EXPECT_EQ(0, munmap(self->map, SIZE));
}

/* A child has the mapping, and parts with it before, after, or with its end */
TEST_F(mapped, fork)
{
	struct peer child, heir;

	ASSERT_TRUE(peer_start(&child, self->container));
	ASSERT_TRUE(peer_start(&heir, self->container));
	child.arg->map = self->map;
	child.arg->len = SIZE;
	heir.arg->map = self->map;
	heir.arg->len = SIZE;
	child.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&child, peer_check));
	EXPECT_EQ(0, peer_call(&child, peer_shared_kb));
	child.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&child, peer_fill));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED + 1));
	EXPECT_EQ(0, peer_call(&child, peer_unmap));
	EXPECT_TRUE(peer_exit(&child));

	EXPECT_EQ(0, munmap(self->map, SIZE));
	heir.arg->seed = SEED + 1;
	EXPECT_EQ(0, peer_call(&heir, peer_check));
	EXPECT_EQ(0, peer_call(&heir, peer_shared_kb));
	peer_kill(&heir);
}

/* Rights of a part, in which tables are cut, and back */
TEST_F(mapped, split)
{
	char *part = self->map + TABLE_SIZE / 2;

	EXPECT_EQ(0, mprotect(part, TABLE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(part, 1));
	EXPECT_EQ(0, try_load(part));
	EXPECT_EQ(0, try_store(self->map + SIZE - 1, 1));
	EXPECT_EQ(0, mprotect(part, TABLE_SIZE, PROT_RW));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	fill_pages(self->map, 0, PAGES, SEED + 1);
	EXPECT_EQ(0, wrong_file_pages(self->container, 0, PAGES, SEED + 1));
	EXPECT_EQ(0, shared_kb(self->map, SIZE));

	/* From the middle: what is left are two mappings */
	EXPECT_EQ(0, munmap(part, TABLE_SIZE));
	EXPECT_EQ(SIGSEGV, try_load(part));
	EXPECT_EQ(0, wrong_pages(self->map, 0, TABLE_PAGES / 2, SEED + 1));
	EXPECT_EQ(0, munmap(self->map, TABLE_SIZE / 2));
	EXPECT_EQ(0, wrong_pages(part + TABLE_SIZE, TABLE_PAGES * 3 / 2,
				 TABLE_PAGES * 3 / 2, SEED + 1));
	EXPECT_FALSE(coda_gone(&self->file));
	EXPECT_EQ(0, munmap(part + TABLE_SIZE, TABLE_SIZE * 3 / 2));
}

/* A mapping that moves, shrinks and grows */
TEST_F(mapped, mremap)
{
	const size_t small = SIZE - TABLE_SIZE - page_size();
	char *to = reserve(SIZE), *map;

	map = mremap(self->map, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	ASSERT_EQ(to, map);
	EXPECT_EQ(SIGSEGV, try_load(self->map));
	EXPECT_EQ(0, wrong_pages(map, 0, PAGES, SEED));
	EXPECT_EQ(map, mremap(map, SIZE, small, 0));
	EXPECT_EQ(SIGSEGV, try_load(map + small));
	map = mremap(map, small, SIZE, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, wrong_pages(map, 0, PAGES, SEED));
	fill_pages(map, 0, PAGES, SEED + 1);
	EXPECT_EQ(0, wrong_file_pages(self->container, 0, PAGES, SEED + 1));
	EXPECT_EQ(0, shared_kb(map, SIZE));
	EXPECT_EQ(0, munmap(map, SIZE));
}

/*
 * The container is mapped next to Coda's mapping, so that both go on where the other
 * ends, by the descriptor that Venus has got: they must not become one mapping.
 */
TEST_F(mapped, neighbour)
{
	char *guest = self->map, *coda = self->map + TABLE_SIZE;
	const long long kb = TABLE_SIZE >> 10;
	const size_t len = SIZE - TABLE_SIZE;
	char *away = reserve(TABLE_SIZE);
	struct peer p;

	if (variant->kind == PLAIN)
		SKIP(goto out, "Linux merges them, and nobody minds");
	ASSERT_TRUE(peer_start_mapped(&p, self->container, 0, SIZE, PROT_RW));
	p.arg->seed = SEED;
	ASSERT_EQ(0, munmap(guest, TABLE_SIZE));
	ASSERT_EQ(guest, mmap(guest, TABLE_SIZE, PROT_RW, MAP_SHARED | MAP_FIXED,
			      self->container, 0));
	ASSERT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	ASSERT_EQ(kb, shared_kb(guest, TABLE_SIZE));

	/* Flags that differ for a while: one would be merged into the other */
	EXPECT_EQ(0, madvise(guest, TABLE_SIZE, MADV_DONTDUMP));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	EXPECT_EQ(0, madvise(guest, TABLE_SIZE, MADV_DODUMP));
	EXPECT_EQ(kb, shared_kb(self->map, SIZE));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));

	/* A part of one would become the other's */
	EXPECT_EQ(0, mprotect(guest, TABLE_SIZE, PROT_READ));
	EXPECT_EQ(0, mprotect(coda, TABLE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_store(guest, 1));
	EXPECT_EQ(SIGSEGV, try_store(coda, 1));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	EXPECT_EQ(0, mprotect(self->map, SIZE, PROT_RW));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	EXPECT_EQ(kb, shared_kb(self->map, SIZE));

	/* It comes back to where it would be a part of the other. (Coda's are not merged.) */
	ASSERT_EQ(away, mremap(coda, TABLE_SIZE, TABLE_SIZE,
			       MREMAP_MAYMOVE | MREMAP_FIXED, away));
	ASSERT_EQ(coda, mremap(away, TABLE_SIZE, TABLE_SIZE,
			       MREMAP_MAYMOVE | MREMAP_FIXED, coda));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	EXPECT_EQ(kb, shared_kb(self->map, SIZE));
	EXPECT_EQ(0, peer_call(&p, peer_check));

	/* Nobody keeps a page of what is cut off */
	EXPECT_EQ(0, ftruncate(self->container, 0));
	for (size_t i = 0; i < NR_TABLES; i++)
		EXPECT_EQ(SIGBUS, try_load(self->map + i * TABLE_SIZE));
	EXPECT_EQ(0, smaps_sum(getpid(), self->map, SIZE, "Rss", NULL));
	peer_kill(&p);
out:
	EXPECT_EQ(0, munmap(guest, TABLE_SIZE));
	EXPECT_EQ(0, munmap(coda, len));
}

/* All orders of what can be done to a mapping, while another process shares */

enum step { FORK, SPLIT, MOVE, CUT, NR_STEPS };

/* Where each table of the file is mapped; NULL: it is not any more */
struct places {
	char *table[NR_TABLES];
};

static size_t wrong_places(const struct places *places)
{
	size_t wrong = 0;

	for (size_t i = 0; i < NR_TABLES; i++)
		if (places->table[i])
			wrong += wrong_pages(places->table[i], i * TABLE_PAGES,
					     8, SEED) +
				 shared_kb(places->table[i], TABLE_SIZE);
	return wrong;
}

static bool child_finds_no_fault(const struct places *places)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid)
		_exit(wrong_places(places) ? 1 : 0);
	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

static bool take_step(struct places *places, enum step step)
{
	char *from = places->table[0], *to;

	switch (step) {
	case FORK:
		return child_finds_no_fault(places);
	case SPLIT:
		return !mprotect(places->table[1], TABLE_SIZE / 2, PROT_READ) &&
		       try_store(places->table[1], 1) == SIGSEGV &&
		       !mprotect(places->table[1], TABLE_SIZE / 2, PROT_RW);
	case MOVE:
		to = reserve(TABLE_SIZE);
		places->table[0] = mremap(from, TABLE_SIZE, TABLE_SIZE,
					  MREMAP_MAYMOVE | MREMAP_FIXED, to);
		return places->table[0] == to;
	case CUT:
		to = places->table[2];
		places->table[2] = NULL;
		return !munmap(to, TABLE_SIZE);
	default:
		return false;
	}
}

static bool take_steps(int container, const enum step *steps)
{
	char *map = coda_map_new(container, SIZE, MAP_SHARED);
	struct places places;
	bool ok = true;

	if (map == MAP_FAILED)
		return false;
	for (size_t i = 0; i < NR_TABLES; i++)
		places.table[i] = map + i * TABLE_SIZE;
	for (size_t i = 0; i < NR_STEPS; i++)
		ok &= !wrong_places(&places) && take_step(&places, steps[i]);
	ok &= !wrong_places(&places);
	for (size_t i = 0; i < NR_TABLES; i++)
		if (places.table[i])
			ok &= !munmap(places.table[i], TABLE_SIZE);
	return ok;
}

/* The next one in lexicographic order; false after the last */
static bool next_order(enum step *steps)
{
	int i = NR_STEPS - 2, last = NR_STEPS - 1;
	enum step step;

	while (i >= 0 && steps[i] > steps[i + 1])
		i--;
	if (i < 0)
		return false;
	while (steps[last] < steps[i])
		last--;
	step = steps[i];
	steps[i] = steps[last];
	steps[last] = step;
	for (i++, last = NR_STEPS - 1; i < last; i++, last--) {
		step = steps[i];
		steps[i] = steps[last];
		steps[last] = step;
	}
	return true;
}

TEST_F(mapped, orders)
{
	enum step steps[NR_STEPS] = { FORK, SPLIT, MOVE, CUT };
	unsigned int orders = 0;
	struct peer p;

	ASSERT_TRUE(peer_start_mapped(&p, self->container, 0, SIZE, PROT_RW));
	p.arg->seed = SEED;
	EXPECT_EQ(0, munmap(self->map, SIZE));
	do {
		EXPECT_TRUE(take_steps(self->container, steps)) {
			TH_LOG("order %d %d %d %d", steps[0], steps[1],
			       steps[2], steps[3]);
		}
		orders++;
	} while (next_order(steps));
	EXPECT_EQ(24, orders);
	EXPECT_EQ(0, peer_call(&p, peer_check));
	EXPECT_EQ(SHARED_BY_PEER, peer_call(&p, peer_shared_kb));
	EXPECT_TRUE(peer_exit(&p));
}

/*
 * How many objects there are for mappings that share, of all processes; -1: the kernel does
 * not say. Those that processors, or KASAN, keep for later are given back first.
 */
#define OBJECTS		"/sys/kernel/slab/ptshare_vma/"

static long kernel_objects(void)
{
	char text[64];

	if (!write_file(OBJECTS "shrink", "1") ||
	    !read_file(OBJECTS "objects", text, sizeof(text)))
		return -1;
	return strtol(text, NULL, 10);
}

/* Memory for what shares is made before it is known that Coda maps it */
TEST_F(mapped, objects)
{
	struct coda_file file = coda_open(self->container, O_RDWR);
	const long nr = 64;
	long before, after;

	EXPECT_EQ(0, munmap(self->map, SIZE));
	before = kernel_objects();
	if (before < 0)
		SKIP(return, "no figures of slabs");
	for (long i = 0; i < nr; i++) {
		int fd = coda_open_nr(file.nr, O_RDWR);

		ASSERT_LE(0, fd);
		self->map = coda_map(fd, SIZE, MAP_SHARED);
		ASSERT_NE(MAP_FAILED, self->map);
		close(fd);
		ASSERT_EQ(0, munmap(self->map, SIZE));
	}
	after = kernel_objects();
	close(file.fd);
	EXPECT_TRUE(coda_gone(&file));
	EXPECT_LE(0, after);
	EXPECT_LT(after - before, nr / 2);
}

/* Private memory that begins as the file */
TEST_F(mapped, private)
{
	char *map = coda_map_new(self->container, SIZE, MAP_PRIVATE);
	struct peer p;

	ASSERT_NE(MAP_FAILED, map);
	ASSERT_TRUE(peer_start_mapped(&p, self->container, 0, SIZE, PROT_RW));
	EXPECT_EQ(0, wrong_pages(map, 0, PAGES, SEED));
	fill_pages(map, 0, TABLE_PAGES, SEED + 1);
	EXPECT_EQ(0, wrong_pages(map, 0, TABLE_PAGES, SEED + 1));
	p.arg->seed = SEED;
	EXPECT_EQ(0, peer_call(&p, peer_check));
	EXPECT_EQ(0, wrong_pages(self->map, 0, PAGES, SEED));
	EXPECT_EQ(0, shared_kb(map, SIZE));
	EXPECT_EQ(0, munmap(map, TABLE_SIZE / 2));
	EXPECT_EQ(0, wrong_pages(map + TABLE_SIZE, TABLE_PAGES,
				 PAGES - TABLE_PAGES, SEED));
	EXPECT_EQ(0, munmap(self->map, SIZE));
	EXPECT_EQ(0, munmap(map + TABLE_SIZE / 2, SIZE - TABLE_SIZE / 2));
	EXPECT_EQ(SHARED_BY_PEER, peer_call(&p, peer_shared_kb));
	EXPECT_TRUE(peer_exit(&p));
}

/* Memfds that can be protected */

#define NR_PAGES	(2 * TABLE_PAGES)

FIXTURE(protected) {
	long long shmem_kb;
	size_t page;
	size_t size;
	int container;
	int nfd;
	struct coda_file file;
};

FIXTURE_VARIANT(protected) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(protected, alone) { .flags = 0 };
FIXTURE_VARIANT_ADD(protected, share) { .flags = MFD_SHARE_PGTABLES };

FIXTURE_SETUP(protected)
{
	self->shmem_kb = meminfo_kb("Shmem");
	self->page = page_size();
	self->size = NR_PAGES * self->page;
	self->container = create_filled(NR_PAGES, MFD_ALLOW_PROTECT |
					MFD_ALLOW_SEALING | variant->flags);
	if (self->container < 0)
		SKIP(return, "no memfd_protect(), or no shared page tables");
	self->nfd = sys_memfd_notify(self->container, 0);
	ASSERT_LE(0, self->nfd);
	self->file = coda_open(self->container, O_RDWR);
	ASSERT_LE(0, self->file.fd);
}

FIXTURE_TEARDOWN(protected)
{
	EXPECT_FALSE(coda_gone(&self->file));
	close(self->file.fd);
	EXPECT_TRUE(coda_gone(&self->file));
	close(self->nfd);
	close(self->container);
	EXPECT_GT(self->shmem_kb + (long long)(self->size >> 11),
		  meminfo_kb("Shmem"));
}

/* Whoever may write, or come to write, and whatever is protected: nothing is left behind */
TEST_F(protected, shared)
{
	struct coda_file reader = coda_open(self->container, O_RDONLY);
	const int prots[] = { PROT_RW, PROT_READ, PROT_NONE };

	ASSERT_LE(0, reader.fd);
	for (size_t i = 0; i < 3; i++) {
		errno = 0;
		EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size, prots[i],
					   MAP_SHARED, self->file.fd, 0));
		EXPECT_EQ(ENODEV, errno);
	}
	errno = 0;
	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size, PROT_READ, MAP_SHARED,
				   reader.fd, 0));
	EXPECT_EQ(ENODEV, errno);
	close(reader.fd);
	EXPECT_TRUE(coda_gone(&reader));

	/* No writable mapping is counted */
	EXPECT_EQ(0, fcntl(self->container, F_ADD_SEALS, F_SEAL_WRITE));
}

/* The memfd itself can still be mapped, and is protected */
TEST_F(protected, beside)
{
	char *map;

	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size, PROT_RW, MAP_SHARED,
				   self->file.fd, 0));
	map = map_file(self->container, 0, self->size, PROT_RW);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, protect_pages(self->container, 2, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(SIGBUS, try_store(map + 2 * self->page, NEW_BYTE));
	EXPECT_EQ(0, try_store(map + 3 * self->page, NEW_BYTE));
	EXPECT_EQ(0, munmap(map, self->size));
}

/* What is stored to private memory does not change the file, protected or not */
TEST_F(protected, private)
{
	char *map = coda_map(self->file.fd, self->size, MAP_PRIVATE);

	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, protect_pages(self->container, 2, 1, MEMFD_PROTECT_DENY));
	EXPECT_TRUE(filled_with(map, self->size, OLD_BYTE));
	for (size_t i = 1; i < 4; i++) {
		EXPECT_EQ(0, try_store(map + i * self->page, NEW_BYTE));
		EXPECT_EQ(NEW_BYTE, map[i * self->page]);
	}
	EXPECT_TRUE(file_filled_with(self->container, 0, NR_PAGES, OLD_BYTE));
	EXPECT_EQ(0, munmap(map + self->page, self->page));
	EXPECT_EQ(0, munmap(map, self->page));
	EXPECT_EQ(0, munmap(map + 2 * self->page, self->size - 2 * self->page));
}

struct page_write {
	int fd;
	size_t page;
	size_t nr;
};

static long write_pages(void *arg)
{
	struct page_write *w = arg;
	size_t len = w->nr * page_size();
	char buf[len];

	memset(buf, NEW_BYTE, len);
	return neg_errno(pwrite(w->fd, buf, len, w->page * page_size()));
}

TEST_F(protected, write_denied)
{
	struct page_write inside = { self->file.fd, 2, 1 };
	struct page_write across = { self->file.fd, 1, 3 };
	struct page_write outside = { self->file.fd, 4, 1 };

	ASSERT_EQ(0, protect_pages(self->container, 2, 1, MEMFD_PROTECT_DENY));
	EXPECT_EQ(-EPERM, write_pages(&inside));
	EXPECT_EQ(-EPERM, write_pages(&across));
	EXPECT_TRUE(file_filled_with(self->container, 0, NR_PAGES, OLD_BYTE));
	EXPECT_TRUE(file_filled_with(self->file.fd, 0, NR_PAGES, OLD_BYTE));
	EXPECT_EQ(self->page, write_pages(&outside));
	EXPECT_TRUE(file_filled_with(self->file.fd, 4, 1, NEW_BYTE));
	EXPECT_TRUE(no_event(self->nfd));
}

/* A writer waits until it is decided what becomes of it */
TEST_F(protected, write_waits)
{
	struct page_write arg = { self->file.fd, 2, 1 };
	const struct {
		unsigned int action;
		long ret;
		unsigned char byte;
	} answers[] = {
		{ MEMFD_RESOLVE_DENY, -EPERM, OLD_BYTE },
		{ MEMFD_RESOLVE_ALLOW, self->page, NEW_BYTE },
	};
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->container, 2, 1, MEMFD_PROTECT_WAIT));
	for (size_t i = 0; i < 2; i++) {
		ASSERT_TRUE(writer_start(&w, self->nfd, write_pages, &arg));
		ASSERT_TRUE(read_event(self->nfd, &ev));
		EXPECT_EQ(MEMFD_EVENT_WRITE, ev.type);
		EXPECT_EQ(MEMFD_EVENT_F_WAITING, ev.flags);
		EXPECT_EQ(2 * self->page, ev.offset);
		EXPECT_EQ(self->page, ev.length);
		EXPECT_EQ(w.pid, ev.pid);
		EXPECT_TRUE(writer_blocks(&w));
		EXPECT_TRUE(file_filled_with(self->file.fd, 2, 1, OLD_BYTE));
		EXPECT_EQ(0, resolve(self->nfd, ev.cookie, answers[i].action));
		EXPECT_TRUE(writer_finishes(&w));
		EXPECT_EQ(answers[i].ret, w.out->ret);
		EXPECT_TRUE(file_filled_with(self->file.fd, 2, 1,
					     answers[i].byte));
		writer_free(&w);
	}
}

/* It holds a lock of Coda's file meanwhile: who is killed gives it back */
TEST_F(protected, writer_killed)
{
	struct page_write arg = { self->file.fd, 2, 1 };
	struct page_write outside = { self->file.fd, 4, 1 };
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->container, 2, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, write_pages, &arg));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_TRUE(writer_blocks(&w));
	writer_kill(&w);
	EXPECT_TRUE(w.reaped);
	writer_free(&w);
	EXPECT_TRUE(file_filled_with(self->file.fd, 2, 1, OLD_BYTE));
	EXPECT_EQ(self->page, write_pages(&outside));
}

/*
 * A directory with the device and the places for mounts, which nobody else sees. Returns
 * the device; a negative number where there is none.
 */
static int prepare_dir(void)
{
	if (unshare(CLONE_NEWNS) ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    !mkdtemp(strcpy(dir, "/tmp/ptshare-coda.XXXXXX")))
		return -1;
	if (mount("tmpfs", dir, "tmpfs", 0, NULL) ||
	    mkdir(path_of("coda"), 0700) || mkdir(path_of("tmpfs"), 0700) ||
	    mknod(path_of("cfs0"), S_IFCHR | 0600, makedev(CODA_MAJOR, 0)))
		return -1;
	return open(path_of("cfs0"), O_RDWR | O_CLOEXEC);
}

static void remove_dir(void)
{
	umount2(dir, MNT_DETACH);
	rmdir(dir);
}

/* The tests are a child of Venus, which looks at what they leave behind. */
int main(int argc, char **argv)
{
	int dev, socks[2], status = -1;
	bool closed;
	pid_t tests;

	dev = prepare_dir();
	if (dev < 0) {
		remove_dir();
		printf("TAP version 13\n1..0 # SKIP no Coda\n");
		return 4;
	}
	venus = mmap(NULL, sizeof(*venus), PROT_RW, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	if (venus == MAP_FAILED ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks))
		return 1;
	tests = fork();
	if (!tests) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		venus_sock = socks[0];
		close(socks[1]);
		status = mount_coda(dev);
		close(dev);
		if (!status)
			return test_harness_run(argc, argv);
		printf("Bail out! mount: %s\n", strerror(-status));
		return 1;
	}
	close(socks[0]);
	closed = venus_serve(dev, socks[1], tests, &status);
	if (!closed)
		printf("# files of Coda are still in use\n");

	/* In this order: who unmounts destroys a lock that who closes would take. */
	close(dev);
	if (umount2(path_of("coda"), 0)) {
		printf("# umount: %m\n");
		closed = false;
	}
	remove_dir();
	return closed && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
