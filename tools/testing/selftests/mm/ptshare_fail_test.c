// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory runs out at each place where shared page tables need some: when a file is made,
 * mapped and faulted in, when mappings are changed, locked, copied and taken away, and
 * where an administrator says who shares. See ../memfd/memfd_protect_fail.h.
 *
 * Whatever fails, what is mapped has its contents, and in the end shares as if nothing
 * had failed.
 */
#include "ptshare_common.h"
#include "../memfd/memfd_protect_fail.h"

#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/shm.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	900

#define GIB		(1UL << 30)
#define NR_TABLES	4UL
#define SEED		31
#define ENABLED		"/sys/kernel/mm/ptshare/shmem_enabled"
#define MMU_NOTIFIER	"/sys/kernel/debug/ptshare/mmu_notifier"
#define MOUNT_POINT	"/tmp/ptshare_fail"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif

/* A file that this process maps, and another one perhaps */
struct world {
	/* What it is to be like */
	unsigned int flags;	/* of memfd_create() */
	size_t tables;		/* NR_TABLES if it is 0 */
	int prot;		/* PROT_RW if it is 0 */
	bool unmapped;		/* by this process */
	bool empty;		/* nobody has touched it */
	bool peer;		/* maps it, and has filled it */
	bool locked;		/* by this process */
	bool paged_out;
	/* What is done */
	long (*change)(struct world *w);
	unsigned long madvice;
	unsigned int mode;	/* of memfd_protect() */

	int fd;
	int other_fd;
	size_t size;
	char *area;		/* that is reserved */
	size_t area_size;
	char *map;
	struct peer other;
	int id;			/* of System V */
};

/* One page of each table */
static size_t used_page(size_t table)
{
	return table * TABLE_PAGES + table * 7 % TABLE_PAGES;
}

static void fill(char *map, size_t tables, uint64_t seed)
{
	for (size_t i = 0; i < tables; i++)
		store64(map + used_page(i) * page_size(), page_mark(seed, used_page(i)));
}

static size_t wrong(const char *map, size_t tables, uint64_t seed)
{
	size_t nr = 0;

	for (size_t i = 0; i < tables; i++)
		nr += load64(map + used_page(i) * page_size()) !=
		      page_mark(seed, used_page(i));
	return nr;
}

static size_t wrong_in_file(const struct world *w, uint64_t seed)
{
	size_t nr = 0;

	for (size_t i = 0; i < w->tables; i++)
		nr += file64(w->fd, used_page(i) * page_size()) !=
		      page_mark(seed, used_page(i));
	return nr;
}

static long peer_fill_used(void *data)
{
	struct peer_arg *arg = data;

	fill(arg->map, arg->len / TABLE_SIZE, SEED);
	return 0;
}

static bool set_up_nothing(void *arg)
{
	struct world *w = arg;

	w->fd = -1;
	w->other_fd = -1;
	w->id = -1;
	w->map = MAP_FAILED;
	w->area = MAP_FAILED;
	w->other.arg = NULL;
	w->tables = w->tables ?: NR_TABLES;
	w->size = w->tables * TABLE_SIZE;
	w->prot = w->prot ?: PROT_RW;
	return true;
}

/* Where nothing else is: upper page tables have to be allocated, too */
#define AREA		((void *)(1UL << 45))

/* Address space for twice as much, so that mremap() has somewhere to go */
static bool reserve_area(struct world *w)
{
	size_t unit = w->size >= GIB ? GIB : TABLE_SIZE;

	w->area_size = 2 * w->size + unit;
	w->area = mmap(AREA, w->area_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
		       MAP_NORESERVE, -1, 0);
	w->map = (char *)(((uintptr_t)w->area + unit - 1) & -unit);
	return w->area != MAP_FAILED;
}

static bool map_it(struct world *w)
{
	return map_at(w->map, w->fd, 0, w->size, w->prot) == w->map;
}

static bool set_up(void *arg)
{
	struct world *w = arg;

	set_up_nothing(w);
	w->fd = share_file(w->tables, w->flags);
	if (w->fd < 0 || !reserve_area(w))
		return false;
	if (w->peer && (!peer_start_mapped(&w->other, w->fd, 0, w->size, PROT_RW) ||
			peer_call(&w->other, peer_fill_used)))
		return false;
	if (w->unmapped)
		return true;
	if (!map_it(w))
		return false;
	if (!w->empty && !w->peer)
		fill(w->map, w->tables, SEED);
	if (!w->empty && wrong(w->map, w->tables, SEED))
		return false;
	if (w->locked && mlock2(w->map, w->size, MLOCK_ONFAULT))
		return false;
	return !w->paged_out || fail_page_out(w->map, w->size);
}

static void tear_down(void *arg)
{
	struct world *w = arg;

	if (w->other.arg)
		peer_exit(&w->other);
	if (w->area != MAP_FAILED)
		munmap(w->area, w->area_size);
	if (w->id >= 0)
		shmctl(w->id, IPC_RMID, NULL);
	if (w->other_fd >= 0)
		close(w->other_fd);
	if (w->fd >= 0)
		close(w->fd);
}

/* What must not change by a failure: contents, and how it is mapped */
static void print_contents(void *arg, FILE *to)
{
	struct world *w = arg;

	fprintf(to, "%ld open files\n", fail_count_files());
	if (w->fd < 0)
		return;
	fprintf(to, "%lld guests\n", fdinfo(w->fd, "ptshare_guests"));
	if (!w->empty)
		fprintf(to, "%zu wrong\n", wrong_in_file(w, SEED));
}

/* Guests may be more: a mapping that was split to be changed stays in two parts */
static void print_file(void *arg, FILE *to)
{
	struct world *w = arg;

	fprintf(to, "%ld open files\n", fail_count_files());
	fprintf(to, "%zu wrong\n", wrong_in_file(w, SEED));
}

/* What has become of it, and is the same whatever failed before */
static void print_sharing(void *arg, FILE *to)
{
	struct world *w = arg;
	unsigned int mappings;

	fprintf(to, "%lld guests\n", fdinfo(w->fd, "ptshare_guests"));
	fprintf(to, "%lld tables\n", fdinfo(w->fd, "ptshare_tables"));
	fprintf(to, "%lld links\n", fdinfo(w->fd, "ptshare_links"));
	fprintf(to, "%lld kB are shared\n",
		smaps_sum(getpid(), w->area, w->area_size, "Ptshare", &mappings));
	fprintf(to, "%u mappings\n", mappings);
	fprintf(to, "%lld kB are locked\n", pid_field(getpid(), "status", "VmLck"));
}

/* Part 1: files and mappings */

static long run_create(void *arg)
{
	struct world *w = arg;

	w->fd = share_memfd(w->flags);
	return w->fd;
}

TEST(create)
{
	static const struct fail_case create = {
		.name = "memfd_create", .set_up = set_up_nothing, .run = run_create,
		.state = print_contents, .tear_down = tear_down,
		.errors = { -ENOSPC },
	};
	struct world share = {}, both = { .flags = MFD_ALLOW_PROTECT };

	EXPECT_TRUE(fail_each(&create, &share));
	EXPECT_TRUE(fail_each(&create, &both));
}

static long run_map(void *arg)
{
	struct world *w = arg;

	return neg_errno((long)map_at(w->map, w->fd, 0, w->size, w->prot)) < 0 ? -errno : 0;
}

static bool mapped(void *arg)
{
	struct world *w = arg;

	fill(w->map, w->tables, SEED);
	return !wrong(w->map, w->tables, SEED) && !wrong_in_file(w, SEED);
}

TEST(map)
{
	static const struct fail_case first = {
		.name = "first mmap", .set_up = set_up, .run = run_map, .done = mapped,
		.state = print_contents, .result = print_sharing, .tear_down = tear_down,
	};
	struct world w = { .unmapped = true, .empty = true };
	struct world again = { .unmapped = true, .peer = true };
	struct world gib = { .unmapped = true, .empty = true, .tables = GIB / TABLE_SIZE };

	EXPECT_TRUE(fail_each(&first, &w));
	EXPECT_TRUE(fail_each(&first, &again));
	EXPECT_TRUE(fail_each(&first, &gib));
}

/* Part 2: faults */

static long run_advise(void *arg)
{
	struct world *w = arg;

	return neg_errno(madvise(w->map, w->size, w->madvice));
}

/* Only the pages that are used: of all, each would allocate */
static long run_populate(void *arg)
{
	struct world *w = arg;
	long ret = 0;

	for (size_t i = 0; i < w->tables && ret >= 0; i++)
		ret = neg_errno(madvise(w->map + used_page(i) * page_size(), page_size(),
					w->madvice));
	return ret;
}

/* The same by an access of user mode, which is tried again until there is memory */
static long run_load(void *arg)
{
	struct world *w = arg;

	return wrong(w->map, w->tables, SEED) ? -EIO : 0;
}

static long run_store(void *arg)
{
	struct world *w = arg;

	fill(w->map, w->tables, SEED);
	return 0;
}

static bool faulted_in(void *arg)
{
	struct world *w = arg;

	return !wrong(w->map, w->tables, SEED);
}

static bool fault_works(struct world *w, const char *name, operation_fn run)
{
	struct fail_case c = {
		.name = name, .set_up = set_up, .run = run, .done = faulted_in,
		.state = print_contents, .result = print_sharing, .tear_down = tear_down,
		.allocates = w->locked ? FAIL_SOMETIMES : FAIL_ALWAYS,
	};

	if (run == run_populate && w->empty)
		c.done = NULL;
	/* A look would bring the pages back. */
	if (w->paged_out)
		c.state = NULL;
	return fail_each(&c, w);
}

TEST(first_faults)
{
	struct world w = { .empty = true };

	EXPECT_TRUE(fault_works(&w, "first store", run_store));
	w.madvice = MADV_POPULATE_WRITE;
	EXPECT_TRUE(fault_works(&w, "populate", run_populate));
	w.madvice = MADV_POPULATE_READ;
	EXPECT_TRUE(fault_works(&w, "populate to read", run_populate));
}

TEST(links)
{
	/* Set up without a look at the contents: that would be the fault */
	struct world w = { .peer = true, .empty = true };
	struct world reader = { .peer = true, .empty = true, .prot = PROT_READ };

	EXPECT_TRUE(fault_works(&w, "link by a load", run_load));
	EXPECT_TRUE(fault_works(&w, "link by a store", run_store));
	w.madvice = MADV_POPULATE_WRITE;
	EXPECT_TRUE(fault_works(&w, "link by populating", run_populate));
	EXPECT_TRUE(fault_works(&reader, "first reader", run_load));
	reader.madvice = MADV_POPULATE_READ;
	EXPECT_TRUE(fault_works(&reader, "first reader populates", run_populate));
}

TEST(links_of_gibs)
{
	struct world w = { .empty = true, .tables = GIB / TABLE_SIZE, .peer = true };

	EXPECT_TRUE(fault_works(&w, "link to a GiB", run_load));
	EXPECT_TRUE(fault_works(&w, "link to a GiB by a store", run_store));
}

TEST(swap)
{
	struct world w = { .paged_out = true };
	struct world out = { .madvice = MADV_PAGEOUT };
	static const struct fail_case page_out = {
		.name = "MADV_PAGEOUT", .set_up = set_up, .run = run_advise,
		.done = faulted_in, .state = print_contents, .result = print_sharing,
		.tear_down = tear_down,
	};

	if (!fail_enter_cgroup())
		SKIP(return, "no memory cgroup");
	EXPECT_TRUE(fault_works(&w, "swap-in by a load", run_load));
	EXPECT_TRUE(fault_works(&w, "swap-in by a store", run_store));
	w.madvice = MADV_POPULATE_WRITE;
	EXPECT_TRUE(fault_works(&w, "swap-in by populating", run_populate));
	w.locked = true;
	w.paged_out = false;
	EXPECT_TRUE(fault_works(&w, "locked memory", run_store));
	EXPECT_TRUE(fail_each(&page_out, &out));
	fail_leave_cgroup();
}

/* Part 3: changes of mappings */

static long run_change(void *arg)
{
	struct world *w = arg;

	return w->change(w);
}

static long change_nothing(struct world *w)
{
	return 0;
}

static long unmap_page(struct world *w)
{
	return neg_errno(munmap(w->map + TABLE_SIZE + page_size(), page_size()));
}

static long unmap_all(struct world *w)
{
	return neg_errno(munmap(w->map, w->size));
}

static long protect_page(struct world *w)
{
	return neg_errno(mprotect(w->map + TABLE_SIZE + page_size(), page_size(), PROT_READ));
}

static long protect_tables(struct world *w)
{
	return neg_errno(mprotect(w->map + TABLE_SIZE, TABLE_SIZE, PROT_READ));
}

static long move(struct world *w)
{
	char *to = w->map + w->size;
	char *map = mremap(w->map, w->size, w->size, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	if (map == MAP_FAILED)
		return -errno;
	w->map = map;
	return 0;
}

static long move_by_a_page(struct world *w)
{
	char *to = w->map + w->size + page_size();
	char *map = mremap(w->map, w->size, w->size, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	if (map == MAP_FAILED)
		return -errno;
	w->map = map;
	return 0;
}

/* Not the thousands of pages that nobody has used, of which each is an allocation */
static long lock(struct world *w)
{
	return neg_errno(mlock2(w->map, w->size, MLOCK_ONFAULT));
}

static long lock_page(struct world *w)
{
	return neg_errno(mlock(w->map + TABLE_SIZE + page_size(), page_size()));
}

static long unlock(struct world *w)
{
	return neg_errno(munlock(w->map, w->size));
}

static long unlock_page(struct world *w)
{
	return neg_errno(munlock(w->map + TABLE_SIZE + page_size(), page_size()));
}

static long advise_huge(struct world *w)
{
	return neg_errno(madvise(w->map, TABLE_SIZE, MADV_HUGEPAGE));
}

static long drop(struct world *w)
{
	return neg_errno(madvise(w->map, w->size, MADV_DONTNEED));
}

static long track_soft_dirty(struct world *w)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	long ret;

	if (fd < 0)
		return -errno;
	ret = neg_errno(write(fd, "4", 1));
	close(fd);
	return ret;
}

static long register_uffd(struct world *w)
{
	long ret;

	w->other_fd = uffd_open(0);
	if (w->other_fd < 0)
		return -errno;
	ret = uffd_register(w->other_fd, w->map + TABLE_SIZE, TABLE_SIZE,
			    UFFDIO_REGISTER_MODE_MISSING);
	if (ret) {
		close(w->other_fd);
		w->other_fd = -1;
	}
	return ret;
}

/* The child has the same contents */
static long fork_it(struct world *w)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return -errno;
	if (!pid)
		_exit(!!wrong(w->map, w->tables, SEED));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : -ECHILD;
}

static long register_notifier(struct world *w)
{
	int fd = open(MMU_NOTIFIER, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	w->other_fd = fd;
	return 0;
}

static bool change_works(struct world *w, const char *name, long (*change)(struct world *w))
{
	struct fail_case c = {
		.name = name, .set_up = set_up, .run = run_change, .done = faulted_in,
		.state = print_file, .result = print_sharing, .tear_down = tear_down,
		.errors = { -EAGAIN },
		/* What has moved is unmapped where it was, if there is memory for that. */
		.once = change == move || change == move_by_a_page,
	};

	w->change = change;
	if (change == unmap_all)
		c.done = NULL;
	return fail_each(&c, w);
}

static bool change_allocates_nothing(struct world *w, const char *name,
				     long (*change)(struct world *w))
{
	struct fail_case c = {
		.name = name, .set_up = set_up, .run = run_change, .done = faulted_in,
		.state = print_file, .result = print_sharing, .tear_down = tear_down,
		.allocates = FAIL_NEVER,
	};

	w->change = change;
	return fail_each(&c, w);
}

/* A failure that nobody makes is not counted */
TEST(no_operation)
{
	struct world w = {};

	EXPECT_TRUE(change_allocates_nothing(&w, "nothing", change_nothing));
}

TEST(unmap_mapping)
{
	struct world w = { .peer = true };

	EXPECT_TRUE(change_works(&w, "munmap of a page", unmap_page));
	EXPECT_TRUE(change_works(&w, "munmap", unmap_all));
	w.peer = false;
	EXPECT_TRUE(change_works(&w, "last munmap", unmap_all));
}

TEST(change_rights)
{
	struct world w = { .peer = true };

	EXPECT_TRUE(change_works(&w, "mprotect of a page", protect_page));
	EXPECT_TRUE(change_works(&w, "mprotect of a table", protect_tables));
}

TEST(move_mapping)
{
	struct world w = { .peer = true };

	EXPECT_TRUE(change_works(&w, "mremap", move));
	EXPECT_TRUE(change_works(&w, "mremap that ends sharing", move_by_a_page));
}

TEST(lock_memory)
{
	struct world w = { .peer = true };
	struct world locked = { .peer = true, .locked = true };

	EXPECT_TRUE(change_allocates_nothing(&w, "mlock", lock));
	EXPECT_TRUE(change_works(&w, "mlock of a page", lock_page));
	EXPECT_TRUE(change_allocates_nothing(&locked, "munlock", unlock));
	EXPECT_TRUE(change_works(&locked, "munlock of a page", unlock_page));
	EXPECT_TRUE(change_works(&locked, "munmap of a locked page", unmap_page));
	EXPECT_TRUE(change_works(&locked, "mremap of locked memory", move));
}

TEST(others)
{
	struct world w = { .peer = true };

	EXPECT_TRUE(change_works(&w, "fork", fork_it));
	EXPECT_TRUE(change_works(&w, "MADV_HUGEPAGE", advise_huge));
	EXPECT_TRUE(change_works(&w, "userfaultfd", register_uffd));
	EXPECT_TRUE(change_works(&w, "soft-dirty tracking", track_soft_dirty));
	EXPECT_TRUE(change_allocates_nothing(&w, "MADV_DONTNEED", drop));
	if (!access(MMU_NOTIFIER, R_OK))
		EXPECT_TRUE(change_works(&w, "MMU notifier", register_notifier));
}

TEST(gib_is_cut)
{
	struct world w = { .peer = true, .tables = GIB / TABLE_SIZE };

	EXPECT_TRUE(change_works(&w, "munmap of a page of a GiB", unmap_page));
	EXPECT_TRUE(change_works(&w, "mprotect of a page of a GiB", protect_page));
	EXPECT_TRUE(change_works(&w, "fork with a GiB", fork_it));
}

/* Part 4: who shares without asking */

static bool set_up_enabled(void *arg)
{
	struct world *w = arg;

	set_up_nothing(w);
	return reserve_area(w) && write_file(ENABLED, "always");
}

static void tear_down_enabled(void *arg)
{
	struct world *w = arg;

	if (w->id >= 0)
		shmdt(w->map);
	tear_down(w);
	write_file(ENABLED, "never");
}

static long map_anonymous(struct world *w)
{
	char *map = mmap(w->map, w->size, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
			 -1, 0);

	return map == MAP_FAILED ? -errno : 0;
}

static long map_sysv(struct world *w)
{
	if (w->id < 0)
		w->id = shmget(IPC_PRIVATE, w->size, IPC_CREAT | 0600);
	if (w->id < 0)
		return -errno;
	return shmat(w->id, w->map, SHM_REMAP) == (void *)-1 ? -errno : 0;
}

static bool shares(void *arg)
{
	struct world *w = arg;

	fill(w->map, w->tables, SEED);
	return shared_kb(w->map, w->size) == (long long)(w->tables * page_size() >> 10) &&
	       !wrong(w->map, w->tables, SEED);
}

static void print_enabled(void *arg, FILE *to)
{
	char text[64] = "";

	read_file(ENABLED, text, sizeof(text));
	fprintf(to, "%s%ld open files\n", text, fail_count_files());
}

TEST(shmem_enabled)
{
	struct fail_case c = {
		.set_up = set_up_enabled, .run = run_change, .done = shares,
		.state = print_enabled, .tear_down = tear_down_enabled,
		.errors = { -ENOSPC },
	};
	struct world w = { .change = map_anonymous };

	if (access(ENABLED, W_OK))
		SKIP(return, "no %s", ENABLED);
	c.name = "shared anonymous memory";
	EXPECT_TRUE(fail_each(&c, &w));
	c.name = "System V";
	w.change = map_sysv;
	EXPECT_TRUE(fail_each(&c, &w));
}

/* By hand: write_file() opens it, and does not tell what failed */
static long write_enabled(struct world *w)
{
	return neg_errno(write(w->other_fd, "always", 6));
}

static bool set_up_enabling(void *arg)
{
	struct world *w = arg;

	set_up_nothing(w);
	w->other_fd = open(ENABLED, O_WRONLY | O_CLOEXEC);
	return w->other_fd >= 0;
}

static bool is_enabled(void *arg)
{
	char text[64] = "";

	return read_file(ENABLED, text, sizeof(text)) && strstr(text, "[always]");
}

TEST(enable)
{
	static const struct fail_case c = {
		.name = "shmem_enabled", .set_up = set_up_enabling, .run = run_change,
		.done = is_enabled, .state = print_enabled, .tear_down = tear_down_enabled,
	};
	struct world w = { .change = write_enabled };

	if (access(ENABLED, W_OK))
		SKIP(return, "no %s", ENABLED);
	EXPECT_TRUE(fail_each(&c, &w));
}

static long mount_it(struct world *w)
{
	return neg_errno(mount("none", MOUNT_POINT, "tmpfs", 0, "ptshare=always"));
}

static long remount_it(struct world *w)
{
	return neg_errno(mount("none", MOUNT_POINT, "tmpfs", MS_REMOUNT, "ptshare=always"));
}

static bool set_up_mount_point(void *arg)
{
	set_up_nothing(arg);
	return !mkdir(MOUNT_POINT, 0755) || errno == EEXIST;
}

static bool set_up_mounted(void *arg)
{
	return set_up_mount_point(arg) && !mount("none", MOUNT_POINT, "tmpfs", 0, NULL);
}

static void unmount(void *arg)
{
	struct world *w = arg;

	tear_down(w);
	umount(MOUNT_POINT);
}

/* A file there shares */
static bool mount_shares(void *arg)
{
	struct world *w = arg;

	w->fd = open(MOUNT_POINT "/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	return w->fd >= 0 && !ftruncate(w->fd, w->size) && reserve_area(w) && map_it(w) &&
	       shares(w);
}

static void print_mounts(void *arg, FILE *to)
{
	char text[4096] = "", *line;

	read_file("/proc/self/mounts", text, sizeof(text));
	line = strstr(text, MOUNT_POINT);
	fprintf(to, "%ld open files, %s\n", fail_count_files(), line ? line : "not mounted");
}

TEST(mount_option)
{
	static const struct fail_case c = {
		.name = "mount", .set_up = set_up_mount_point, .run = run_change,
		.done = mount_shares, .state = print_mounts, .tear_down = unmount,
		.errors = { -ENOSPC },
	};
	static const struct fail_case again = {
		.name = "remount", .set_up = set_up_mounted, .run = run_change,
		.done = mount_shares, .state = print_mounts, .tear_down = unmount,
	};
	struct world w = { .change = mount_it }, remount = { .change = remount_it };

	EXPECT_TRUE(fail_each(&c, &w));
	EXPECT_TRUE(fail_each(&again, &remount));
	rmdir(MOUNT_POINT);
}

/* Part 5: protection of shared tables */

static long protect_it(struct world *w)
{
	return sys_memfd_protect(w->fd, 0, 0, PROT_READ, w->mode);
}

static bool is_protected(void *arg)
{
	struct world *w = arg;

	for (size_t i = 0; i < w->tables; i++)
		if (try_store(w->map + used_page(i) * page_size(), 1) != SIGBUS)
			return false;
	return !wrong(w->map, w->tables, SEED);
}

TEST(protect_tables_as_a_whole)
{
	struct fail_case c = {
		.name = "memfd_protect", .set_up = set_up, .run = run_change,
		.done = is_protected, .state = print_file, .result = print_sharing,
		.tear_down = tear_down,
	};
	struct world w = {
		.flags = MFD_ALLOW_PROTECT, .peer = true, .change = protect_it,
		.mode = MEMFD_PROTECT_DENY,
	};
	struct world gib = w;

	if (!have_protect())
		SKIP(return, "no memfd_protect()");
	EXPECT_TRUE(fail_each(&c, &w));
	gib.tables = GIB / TABLE_SIZE;
	c.name = "memfd_protect of a GiB";
	EXPECT_TRUE(fail_each(&c, &gib));
}

/* Part 6: a process that ends, in which the failures are */

static void child_that_ends(struct world *w, unsigned int nth)
{
	struct fail_point point;

	fail_open(&point, nth, 1);
	if (wrong(w->map, w->tables, SEED))
		_exit(1);
	fail_arm(&point);
	syscall(SYS_exit_group, 0);
}

/* Whether it fired can be asked while the process is dead and not yet buried */
static bool end_a_child(struct world *w, unsigned int nth, bool *fired)
{
	pid_t pid = fork();
	char path[64];
	siginfo_t info;
	int nth_fd, status;

	if (!pid)
		child_that_ends(w, nth);
	while (waitid(P_PID, pid, &info, WEXITED | WNOWAIT) && errno == EINTR)
		;
	snprintf(path, sizeof(path), "/proc/%d/fail-nth", pid);
	nth_fd = open(path, O_RDONLY | O_CLOEXEC);
	*fired = nth && nth_fd >= 0 && fail_fired(nth_fd);
	close(nth_fd);
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
	       !WEXITSTATUS(status);
}

TEST(end_of_a_process)
{
	struct world w = {};
	struct fail_figures before = fail_figures();
	unsigned int nth = 0, nr = 0;
	bool fired = false;

	do {
		ASSERT_TRUE(set_up(&w));
		EXPECT_TRUE(end_a_child(&w, nth, &fired));
		EXPECT_EQ(1, fdinfo(w.fd, "ptshare_guests"));
		EXPECT_EQ(w.tables, fdinfo(w.fd, "ptshare_tables"));
		EXPECT_EQ(w.tables, fdinfo(w.fd, "ptshare_links"));
		EXPECT_EQ(0, wrong(w.map, w.tables, SEED));
		tear_down(&w);
		nr += fired;
	} while (nth++ == 0 || (fired && nth < FAIL_MAX));
	printf("# exit: %u failures\n", nr);
	EXPECT_TRUE(fail_settled("exit", &before));
}

/* Last: nothing of all that was lost */
TEST(no_leaks)
{
	EXPECT_TRUE(fail_no_leaks());
}

int main(int argc, char **argv)
{
	const char *why = have_ptshare() ? fail_init() : "no shared page tables";

	if (why) {
		printf("TAP version 13\n1..0 # SKIP %s\n", why);
		return 4;
	}
	/* What a test has said is there if it dies */
	setvbuf(stdout, NULL, _IOLBF, 0);
	atexit(fail_exit);
	return test_harness_run(argc, argv);
}
