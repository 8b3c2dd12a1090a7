// SPDX-License-Identifier: GPL-2.0-only
/*
 * Nothing gets stuck, lost or leaked: what pins may do to memfd_protect(), what
 * memfd_protect() may do to bystanders, and what the log and an answer survive. Also
 * what a first store maps.
 */
#include "memfd_protect_common.h"

#include <linux/futex.h>
#include <linux/loop.h>
#include <liburing.h>
#include <numaif.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	170

#define SYSCTL_UNPRIVILEGED	"/proc/sys/vm/unprivileged_memfd_notify"

#define NR_PAGES	64

/* EXIT_WAIT in mm/memfd_waiters.c */
#define EXIT_WAIT_MS	10000
/* PIN_STAYS_MS in mm/memfd_pin.c */
#define PIN_STAYS_MS	150

FIXTURE_MAPPED_FILE(0);

static long fdinfo_value(int fd, const char *name)
{
	char path[64], buf[4096], *line;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (!read_file(path, buf, sizeof(buf)))
		return -1000;
	line = strstr(buf, name);
	return line ? strtol(line + strlen(name) + 1, NULL, 10) : -1000;
}

/* A pin for writing that stays until it is given back */
struct pin {
	struct io_uring ring;
};

static bool pin_take(struct pin *pin, void *addr, size_t len)
{
	struct iovec iov = { addr, len };

	if (io_uring_queue_init(2, &pin->ring, 0))
		return false;
	if (!io_uring_register_buffers(&pin->ring, &iov, 1))
		return true;
	io_uring_queue_exit(&pin->ring);
	return false;
}

static void pin_give_back(struct pin *pin)
{
	io_uring_unregister_buffers(&pin->ring);
	io_uring_queue_exit(&pin->ring);
}

/* Many processes that do the same until they are killed */
struct crowd {
	pid_t pid[64];
	unsigned int nr;
	volatile unsigned long *turns;
	volatile uint64_t *slowest;	/* ns of the longest turn */
};

static void take_turn(const struct crowd *crowd, long (*turn)(void *arg), void *arg)
{
	uint64_t ns = now_ns(), before = *crowd->slowest;

	turn(arg);
	ns = now_ns() - ns;
	while (ns > before &&
	       !__atomic_compare_exchange_n(crowd->slowest, &before, ns, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
	__atomic_fetch_add(crowd->turns, 1, __ATOMIC_SEQ_CST);
}

static bool crowd_start(struct crowd *crowd, unsigned int nr, int close_fd,
			long (*turn)(void *arg), void *arg)
{
	crowd->nr = 0;
	crowd->turns = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (crowd->turns == MAP_FAILED)
		return false;
	crowd->slowest = (void *)(crowd->turns + 1);
	while (crowd->nr < nr) {
		pid_t pid = fork();

		if (pid < 0)
			return false;
		if (pid) {
			crowd->pid[crowd->nr++] = pid;
			continue;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (close_fd >= 0)
			close(close_fd);
		for (;;)
			take_turn(crowd, turn, arg);
	}
	return true;
}

/* Each of them has done what it does a few times */
static bool crowd_runs(const struct crowd *crowd)
{
	unsigned long enough = *crowd->turns + crowd->nr;
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (*crowd->turns < enough && now_ns() < end)
		usleep(1000);
	return *crowd->turns >= enough;
}

static void crowd_stop(struct crowd *crowd)
{
	for (unsigned int i = 0; i < crowd->nr; i++)
		kill(crowd->pid[i], SIGKILL);
	for (unsigned int i = 0; i < crowd->nr; i++)
		waitpid(crowd->pid[i], NULL, 0);
	munmap((void *)crowd->turns, page_size());
}

/* Part 1: pins */

/* A block device on which O_DIRECT pins the pages for as long as the I/O takes */
static int open_disk(size_t bytes)
{
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), file, disk, nr;
	char path[32];

	if (ctl < 0)
		return -1;
	nr = ioctl(ctl, LOOP_CTL_GET_FREE);
	close(ctl);
	snprintf(path, sizeof(path), "/dev/loop%d", nr);
	disk = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
	file = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	if (disk < 0 || file < 0 || ftruncate(file, bytes) ||
	    ioctl(disk, LOOP_SET_FD, file))
		return -1;
	close(file);
	return disk;
}

struct disk_io {
	int disk;
	char *map;
	size_t size;
};

static long write_out(void *arg)
{
	struct disk_io *io = arg;

	return pwrite(io->disk, io->map, io->size, 0);
}

static long read_in(void *arg)
{
	struct disk_io *io = arg;
	size_t page = rand() % NR_PAGES * page_size();

	return pread(io->disk, io->map + page, page_size(), page);
}

/* How many of 100 calls fail, while a crowd does I/O; and its longest */
static int calls_that_fail(struct __test_metadata *_metadata,
			   FIXTURE_DATA(file) *self, unsigned int nr,
			   long (*turn)(void *arg), unsigned long *longest_ms)
{
	struct disk_io io = { open_disk(self->size), self->map, self->size };
	struct crowd crowd;
	int failed = 0;
	long ret;

	if (io.disk < 0)
		return -1;
	ASSERT_TRUE(crowd_start(&crowd, nr, self->nfd, turn, &io));
	EXPECT_TRUE(crowd_runs(&crowd));
	for (int i = 0; i < 100; i++) {
		ret = protect_pages(self->fd, 0, NR_PAGES,
				    i % 2 ? MEMFD_PROTECT_ASYNC :
					    MEMFD_PROTECT_DENY);
		if (ret)
			TH_LOG("call %d: %ld", i, ret);
		failed += !!ret;
		unprotect_pages(self->fd, 0, NR_PAGES);
	}
	EXPECT_TRUE(crowd_runs(&crowd));
	*longest_ms = *crowd.slowest / 1000000;
	if (failed)
		TH_LOG("%d calls failed; longest I/O %lu ms", failed, *longest_ms);
	crowd_stop(&crowd);
	ioctl(io.disk, LOOP_CLR_FD, 0);
	close(io.disk);
	return failed;
}

/* Who reads the pages pins them too, but is in nobody's way */
TEST_F(file, pins_that_read)
{
	unsigned long longest_ms = 0;
	int failed = calls_that_fail(_metadata, self, 32, write_out, &longest_ms);

	if (failed < 0)
		SKIP(return, "no loop device");
	EXPECT_EQ(0, failed);
}

/* Unless one of them stays: in a slow guest an I/O may take that long */
TEST_F(file, pins_that_come_and_go)
{
	unsigned long longest_ms = 0;
	int failed = calls_that_fail(_metadata, self, 4, read_in, &longest_ms);

	if (failed < 0)
		SKIP(return, "no loop device");
	if (failed && longest_ms >= PIN_STAYS_MS)
		SKIP(return, "an I/O took %lu ms", longest_ms);
	EXPECT_EQ(0, failed);
}

static long op_store(void *arg)
{
	*(volatile char *)arg = NEW_BYTE;
	return 1;
}

/*
 * A pin that stays: EBUSY, and it is as if nobody had called. Nobody waits, no
 * event, older modes and the log are as they were.
 */
TEST_F(file, pin_that_stays)
{
	struct memfd_range range;
	struct memfd_event ev;
	struct outcome out;
	struct pin pin;
	uint64_t start;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 8, MEMFD_PROTECT_ASYNC));
	self->map[3 * self->page] = NEW_BYTE;
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_TRUE(pin_take(&pin, self->map + 20 * self->page, self->page));

	start = now_ns();
	EXPECT_EQ(-EBUSY, protect_pages(self->fd, 0, NR_PAGES,
					MEMFD_PROTECT_DENY));
	EXPECT_LT(100000000ULL, now_ns() - start);
	EXPECT_EQ(20 * self->page, fdinfo_value(self->fd, "protect_busy:"));
	EXPECT_EQ(20 * self->page, fdinfo_value(self->nfd, "protect_busy:"));
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(0, fdinfo_value(self->fd, "protect_deny:"));
	run_guarded(op_store, self->map + 40 * self->page, &out);
	EXPECT_EQ(0, out.sig);
	EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1, 0, NULL));
	EXPECT_EQ(3 * self->page, range.offset);

	/* Whoever stores meanwhile is not kept waiting for the 150 ms */
	for (int i = 0; i < 5; i++) {
		struct writer w;

		ASSERT_TRUE(writer_start(&w, self->nfd, op_store,
					 self->map + 50 * self->page));
		EXPECT_EQ(-EBUSY, protect_pages(self->fd, 0, NR_PAGES,
						MEMFD_PROTECT_WAIT));
		EXPECT_TRUE(writer_finishes(&w));
		EXPECT_EQ(0, w.out->sig);
		writer_free(&w);
	}
	EXPECT_TRUE(no_event(self->nfd));
	pin_give_back(&pin);
	EXPECT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_DENY));
}

/*
 * A pin is found wherever it is in a large file: at both ends of 2 MiB, in what the file
 * has grown by, behind its end, and next to others. Where there is none any more there
 * is nothing in the way.
 */
#define BLOCK		(2UL << 20)
#define LARGE		(70 * BLOCK)

static bool pinned_at(int fd, uint64_t offset, uint64_t from, uint64_t length)
{
	return sys_memfd_protect(fd, from, length, PROT_READ,
				 MEMFD_PROTECT_DENY) == -EBUSY &&
	       fdinfo_value(fd, "protect_busy:") == (long)offset;
}

static bool free_of_pins(int fd)
{
	return !protect_pages(fd, 0, 0, MEMFD_PROTECT_DENY) &&
	       !unprotect_pages(fd, 0, 0);
}

TEST_F(file, pins_in_a_large_file)
{
	const size_t page = self->page;
	const size_t offsets[] = {
		0, BLOCK - page, BLOCK, 5 * BLOCK + 77 * page,
		64 * BLOCK - page, 64 * BLOCK, LARGE - page,
	};
	struct pin pins[ARRAY_SIZE(offsets)];
	char *map;

	/* It knows of each block of the small file, before it grows */
	EXPECT_TRUE(free_of_pins(self->fd));
	ASSERT_EQ(0, ftruncate(self->fd, LARGE));
	map = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	for (int turn = 0; turn < 3; turn++) {
		for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
			size_t at = offsets[i];

			ASSERT_TRUE(pin_take(&pins[i], map + at, page));
			EXPECT_TRUE(pinned_at(self->fd, at, at, page));
			/* A page near it is free */
			EXPECT_EQ(0, protect_pages(self->fd, at / page ^ 2, 1,
						   MEMFD_PROTECT_DENY));
			EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
		}
		/* From below, one after the other is let go */
		for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
			EXPECT_TRUE(pinned_at(self->fd, offsets[i], 0, 0));
			pin_give_back(&pins[i]);
		}
		EXPECT_TRUE(free_of_pins(self->fd));
	}
	/* It grows once more, with a pin in what was there */
	ASSERT_TRUE(pin_take(&pins[0], map + 3 * BLOCK, page));
	ASSERT_EQ(0, ftruncate(self->fd, 1000 * BLOCK));
	EXPECT_TRUE(pinned_at(self->fd, 3 * BLOCK, 0, 0));
	pin_give_back(&pins[0]);
	EXPECT_TRUE(free_of_pins(self->fd));
	munmap(map, LARGE);
}

/* A scan leaves pages with a pin in the log, and finds them, after growth as well */
TEST_F(file, pins_in_a_log)
{
	struct memfd_range range;
	struct pin pin;
	char *map;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 0, MEMFD_PROTECT_ASYNC));
	ASSERT_EQ(0, ftruncate(self->fd, LARGE));
	map = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_TRUE(pin_take(&pin, map + 33 * BLOCK, self->page));
	for (int turn = 0; turn < 3; turn++) {
		EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1,
					MEMFD_SCAN_REPROTECT, NULL));
		EXPECT_EQ(33 * BLOCK, range.offset);
	}
	pin_give_back(&pin);
	EXPECT_EQ(1, scan_range(self->nfd, 0, 0, &range, 1,
				MEMFD_SCAN_REPROTECT, NULL));
	EXPECT_EQ(0, scan_range(self->nfd, 0, 0, &range, 1,
				MEMFD_SCAN_REPROTECT, NULL));
	munmap(map, LARGE);
}

/* Part 2: bystanders */

struct attack {
	int fd;
	char *map;
};

static long protect_in_vain(void *arg)
{
	struct attack *attack = arg;

	return protect_pages(attack->fd, 0, NR_PAGES, MEMFD_PROTECT_DENY);
}

static long pin_and_unpin(void *arg)
{
	struct attack *attack = arg;
	struct pin pin;

	if (!pin_take(&pin, attack->map + 20 * page_size(), page_size()))
		return -1;
	usleep(rand() % 30000);
	pin_give_back(&pin);
	return 0;
}

/* The longest of some operations on the file that nobody has business to delay */
static uint64_t longest_ms(FIXTURE_DATA(file) *self, int zero)
{
	uint64_t start, longest = 0;
	char cmdline[256];

	for (int i = 0; i < 60; i++) {
		start = now_ns();
		switch (i % 3) {
		case 0:		/* a kernel-mode access */
			if (read(zero, self->map + 20 * self->page,
				 self->page) < 0 && errno != EFAULT)
				return UINT64_MAX;
			break;
		case 1:		/* a reader of /proc */
			read_file("/proc/self/cmdline", cmdline,
				  sizeof(cmdline));
			break;
		case 2:		/* RESOLVE */
			resolve(self->nfd, 12345, MEMFD_RESOLVE_ALLOW);
			unprotect_pages(self->fd, 20, 1);
			break;
		}
		if (now_ns() - start > longest)
			longest = now_ns() - start;
	}
	return longest / 1000000;
}

/*
 * Nobody is kept for longer than 20 ms and a walk. The bound is wide because a
 * crowd competes for the processors; without the rule it is tens of seconds.
 */
static void expect_calm(struct __test_metadata *_metadata,
			FIXTURE_DATA(file) *self)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	uint64_t longest = longest_ms(self, zero), start;
	struct outcome out;
	int nfd;

	TH_LOG("longest %llu ms", (unsigned long long)longest);
	EXPECT_GT(1500, longest);
	/* A store to a page that is not protected when it is tried again */
	start = now_ns();
	run_guarded(op_store, self->map, &out);
	EXPECT_GT(1500000000ULL, now_ns() - start);
	/* Closing */
	start = now_ns();
	close(self->nfd);
	EXPECT_GT(1500000000ULL, now_ns() - start);
	nfd = sys_memfd_notify(self->fd, 0);
	EXPECT_EQ(self->nfd, nfd);
	close(zero);
}

TEST_F(file, flights_in_vain)
{
	struct attack attack = { self->fd, self->map };
	struct crowd crowd;
	struct pin pin;

	ASSERT_TRUE(pin_take(&pin, self->map + 20 * self->page, self->page));
	ASSERT_TRUE(crowd_start(&crowd, 8, self->nfd, protect_in_vain,
				&attack));
	EXPECT_TRUE(crowd_runs(&crowd));
	expect_calm(_metadata, self);
	EXPECT_TRUE(crowd_runs(&crowd));
	crowd_stop(&crowd);
	pin_give_back(&pin);
}

/* Pins that appear between the look for them and the walk */
TEST_F(file, flights_and_pins)
{
	struct attack attack = { self->fd, self->map };
	struct crowd flights, pins;

	ASSERT_TRUE(crowd_start(&pins, 4, self->nfd, pin_and_unpin, &attack));
	ASSERT_TRUE(crowd_start(&flights, 4, self->nfd, protect_in_vain,
				&attack));
	EXPECT_TRUE(crowd_runs(&flights));
	expect_calm(_metadata, self);
	crowd_stop(&flights);
	crowd_stop(&pins);
}

/* Part 3: who sleeps holds nothing */

struct sleeper {
	pthread_t thread;
	char *addr;
};

static void *sleeper_main(void *arg)
{
	struct sleeper *sleeper = arg;

	*(volatile char *)sleeper->addr = NEW_BYTE;
	return NULL;
}

static bool waiters_are(int fd, long nr)
{
	uint64_t end = now_ns() + 4 * LONG_MS * 1000000ULL;

	while (fdinfo_value(fd, "waiters:") != nr && now_ns() < end)
		usleep(2000);
	return fdinfo_value(fd, "waiters:") == nr;
}

TEST_F(file, sleepers_hold_no_page)
{
	enum { NR = 2000 };
	struct sleeper *sleepers = calloc(NR, sizeof(*sleepers));
	void *pages[] = { self->map + 5 * self->page };
	int nodes[] = { 0 }, status[1], pipefd[2], i;
	pthread_attr_t attr;
	loff_t off;

	/* It is mapped: move_pages() finds it there */
	ASSERT_EQ(OLD_BYTE, *(volatile char *)pages[0]);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_WAIT));
	for (i = 0; i < NR; i++) {
		sleepers[i].addr = self->map + 5 * self->page;
		if (pthread_create(&sleepers[i].thread, &attr, sleeper_main,
				   &sleepers[i]))
			break;
	}
	EXPECT_EQ(NR, i);
	EXPECT_TRUE(waiters_are(self->fd, i));

	/* A pipe that is full of the page */
	ASSERT_EQ(0, pipe(pipefd));
	fcntl(pipefd[1], F_SETPIPE_SZ, 1 << 20);
	for (;;) {
		off = 5 * self->page;
		if (splice(self->fd, &off, pipefd[1], NULL, self->page,
			   SPLICE_F_NONBLOCK) <= 0)
			break;
	}
	EXPECT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	close(pipefd[0]);
	close(pipefd[1]);

	/* To the other node, and back */
	for (int node = 1; node >= 0; node--) {
		nodes[0] = node;
		if (move_pages(0, 1, pages, nodes, status, MPOL_MF_MOVE_ALL)) {
			TH_LOG("move_pages: %m");
			break;
		}
		if (status[0] == -ENODEV)
			break;
		EXPECT_EQ(node, status[0]);
	}

	EXPECT_EQ(0, unprotect_pages(self->fd, 0, 0));
	while (i--)
		EXPECT_EQ(0, pthread_join(sleepers[i].thread, NULL));
	free(sleepers);
}

/* Part 4: the log */

static int scan_pages(int nfd, size_t *page, uint64_t flags)
{
	struct memfd_range ranges[8];
	int nr = scan_range(nfd, 0, 0, ranges, 8, flags, NULL);

	for (int i = 0; i < nr; i++)
		page[i] = ranges[i].offset / page_size();
	return nr;
}

/* The last scan comes after the writers have been stopped */
static void log_survives(struct __test_metadata *_metadata,
			 FIXTURE_DATA(file) *self, unsigned int mode)
{
	size_t page[8];

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	self->map[3 * self->page] = NEW_BYTE;
	self->map[9 * self->page] = NEW_BYTE;
	ASSERT_EQ(0, mode == MODE_NONE ?
		     unprotect_pages(self->fd, 0, NR_PAGES) :
		     protect_pages(self->fd, 0, NR_PAGES, mode));
	ASSERT_EQ(2, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
	EXPECT_EQ(3, page[0]);
	EXPECT_EQ(9, page[1]);
	EXPECT_EQ(0, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
	/* The scan has left the newer mode alone */
	EXPECT_EQ(0, fdinfo_value(self->fd, "protect_async:"));
	if (mode == MEMFD_PROTECT_DENY) {
		EXPECT_EQ(-EPERM, neg_errno(pwrite(self->fd, "x", 1,
						   3 * self->page)));
	} else if (mode == MODE_NONE) {
		EXPECT_EQ(1, pwrite(self->fd, "x", 1, 3 * self->page));
		EXPECT_EQ(0, scan_pages(self->nfd, page, 0));
	}
}

TEST_F(file, log_survives_deny)
{
	log_survives(_metadata, self, MEMFD_PROTECT_DENY);
}

TEST_F(file, log_survives_wait)
{
	log_survives(_metadata, self, MEMFD_PROTECT_WAIT);
}

TEST_F(file, log_survives_unprotect)
{
	log_survives(_metadata, self, MODE_NONE);
}

/* Only the part that is ASYNC still is protected again */
TEST_F(file, scan_of_a_part)
{
	size_t page[8];

	ASSERT_EQ(0, protect_pages(self->fd, 0, 8, MEMFD_PROTECT_ASYNC));
	memset(self->map, NEW_BYTE, 8 * self->page);
	ASSERT_EQ(0, unprotect_pages(self->fd, 2, 2));
	ASSERT_EQ(0, protect_pages(self->fd, 6, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(1, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
	EXPECT_EQ(0, page[0]);
	EXPECT_EQ(3, fdinfo_value(self->fd, "protect_async:"));
	EXPECT_EQ(1, fdinfo_value(self->fd, "protect_deny:"));
	self->map[2 * self->page] = OLD_BYTE;
	EXPECT_EQ(0, scan_pages(self->nfd, page, 0));
	self->map[4 * self->page] = OLD_BYTE;
	ASSERT_EQ(1, scan_pages(self->nfd, page, 0));
	EXPECT_EQ(4, page[0]);
}

TEST_F(file, async_drops_the_log)
{
	size_t page[8];

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	self->map[3 * self->page] = NEW_BYTE;
	self->map[9 * self->page] = NEW_BYTE;
	ASSERT_EQ(0, protect_pages(self->fd, 0, 8, MEMFD_PROTECT_ASYNC));
	ASSERT_EQ(1, scan_pages(self->nfd, page, 0));
	EXPECT_EQ(9, page[0]);
	ASSERT_EQ(0, protect_pages(self->fd, 8, 8, MEMFD_PROTECT_ASYNC));
	EXPECT_EQ(0, scan_pages(self->nfd, page, 0));
	/* Nothing is left to be told of */
	EXPECT_TRUE(no_event(self->nfd));
}

/*
 * The log against plain arrays. There are four leaves of the maps in mm/memfd_ranges.c,
 * and what is written are pages, runs and whole leaves.
 */
#define MODEL_PAGES	1700

struct model {
	uint8_t mode[MODEL_PAGES];
	bool async[MODEL_PAGES];
	bool logged[MODEL_PAGES];
	unsigned int seed;
	int fd, nfd;
	char *map;
};

static void model_range(struct model *m, size_t *first, size_t *nr)
{
	static const size_t most[] = { 2, 20, 100, MODEL_PAGES };

	*first = rand_r(&m->seed) % MODEL_PAGES;
	if (!(rand_r(&m->seed) % 4))
		*first &= -512UL;
	*nr = 1 + rand_r(&m->seed) % most[rand_r(&m->seed) % 4];
	if (*nr > MODEL_PAGES - *first)
		*nr = MODEL_PAGES - *first;
}

static long model_protect(struct model *m)
{
	static const uint8_t modes[] = {
		MEMFD_PROTECT_ASYNC, MEMFD_PROTECT_ASYNC, MEMFD_PROTECT_DENY, MODE_NONE,
	};
	uint8_t mode = modes[rand_r(&m->seed) % 4];
	size_t first, nr;

	model_range(m, &first, &nr);
	for (size_t i = first; i < first + nr; i++) {
		m->mode[i] = mode;
		m->async[i] = mode == MEMFD_PROTECT_ASYNC;
		m->logged[i] &= !m->async[i];
	}
	return mode == MODE_NONE ? unprotect_pages(m->fd, first, nr) :
				   protect_pages(m->fd, first, nr, mode);
}

/* Every page of a range, or every so many */
static bool model_write(struct model *m)
{
	unsigned int stride = rand_r(&m->seed) % 2 ? 1 : 1 + rand_r(&m->seed) % 20;
	bool call = rand_r(&m->seed) % 4 == 0;
	size_t first, nr, i;

	model_range(m, &first, &nr);
	for (i = first; i < first + nr; i += stride) {
		if (m->mode[i] == MEMFD_PROTECT_DENY)
			continue;
		if (!call)
			m->map[i * page_size()] = NEW_BYTE;
		else if (pwrite(m->fd, "x", 1, i * page_size()) != 1)
			return false;
		if (m->mode[i] != MEMFD_PROTECT_ASYNC)
			continue;
		m->mode[i] = MODE_NONE;
		m->logged[i] = true;
	}
	return true;
}

/* The next run of the model's log in front of page @end */
static bool model_run(const struct model *m, size_t *first, size_t *nr, size_t end)
{
	size_t i = *first;

	while (i < end && !m->logged[i])
		i++;
	*first = i;
	while (i < end && m->logged[i])
		i++;
	*nr = i - *first;
	return *nr;
}

static bool model_scan(struct model *m, bool all)
{
	static struct memfd_range ranges[MODEL_PAGES];
	bool take = all || rand_r(&m->seed) % 2;
	unsigned int most, n = 0;
	size_t first = 0, nr = MODEL_PAGES, end, i;
	uint64_t walk_end;
	int found;

	if (!all)
		model_range(m, &first, &nr);
	end = first + nr;
	most = all || rand_r(&m->seed) % 2 ? MODEL_PAGES :
					    1 + rand_r(&m->seed) % 30;
	found = scan_range(m->nfd, first * page_size(), end * page_size(), ranges,
			   most, take ? MEMFD_SCAN_REPROTECT : 0, &walk_end);
	for (; n < most && model_run(m, &first, &nr, end); first += nr) {
		if (n == found || ranges[n].offset != first * page_size() ||
		    ranges[n].length != nr * page_size()) {
			ksft_print_msg("range %u of %d is to be %zu, %zu pages\n",
				       n, found, first, nr);
			return false;
		}
		n++;
		for (i = first; take && i < first + nr; i++) {
			m->logged[i] = false;
			if (m->async[i] && m->mode[i] == MODE_NONE)
				m->mode[i] = MEMFD_PROTECT_ASYNC;
		}
	}
	return n == found && walk_end == (n < most ? end : first) * page_size();
}

static void log_against_model(struct __test_metadata *_metadata, unsigned int flags)
{
	static struct model m;

	m = (struct model){ .seed = 20261122 };
	memset(m.mode, MODE_NONE, sizeof(m.mode));
	m.fd = sys_memfd_create(MFD_ALLOW_PROTECT | flags);
	if (m.fd < 0 && flags)
		SKIP(return, "no sharing");
	ASSERT_LE(0, m.fd);
	ASSERT_EQ(0, ftruncate(m.fd, MODEL_PAGES * page_size()));
	m.nfd = sys_memfd_notify(m.fd, 0);
	ASSERT_LE(0, m.nfd);
	m.map = mmap(NULL, MODEL_PAGES * page_size(), PROT_READ | PROT_WRITE,
		     MAP_SHARED, m.fd, 0);
	ASSERT_NE(MAP_FAILED, m.map);
	for (unsigned int i = 0; i < 2000; i++) {
		switch (rand_r(&m.seed) % 4) {
		case 0:
			ASSERT_EQ(0, model_protect(&m));
			break;
		case 1:
			ASSERT_TRUE(model_scan(&m, false));
			break;
		default:
			ASSERT_TRUE(model_write(&m));
		}
	}
	ASSERT_TRUE(model_scan(&m, true));
	/* What it has protected again is caught again, and nothing else */
	for (size_t i = 0; i < MODEL_PAGES; i++) {
		if (m.mode[i] == MEMFD_PROTECT_DENY)
			continue;
		m.map[i * page_size()] = OLD_BYTE;
		m.logged[i] |= m.mode[i] == MEMFD_PROTECT_ASYNC;
	}
	EXPECT_TRUE(model_scan(&m, true));
	munmap(m.map, MODEL_PAGES * page_size());
	close(m.nfd);
	close(m.fd);
}

TEST(log_follows_model)
{
	log_against_model(_metadata, 0);
}

TEST(log_follows_model_shared)
{
	log_against_model(_metadata, MFD_SHARE_PGTABLES);
}

/* A page that was pinned at a scan stays in the log, and does not count as told */
TEST_F(file, dirty_after_a_pinned_scan)
{
	struct memfd_event ev;
	size_t page[8];
	struct pin pin;

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	ASSERT_TRUE(pin_take(&pin, self->map + 3 * self->page, self->page));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
		EXPECT_EQ(3, page[0]);
		EXPECT_TRUE(no_event(self->nfd));
	}
	/* Another page */
	self->map[7 * self->page] = NEW_BYTE;
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	ASSERT_EQ(2, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
	/* The very page, when it is written again */
	EXPECT_TRUE(no_event(self->nfd));
	self->map[3 * self->page] = OLD_BYTE;
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_DIRTY, ev.type);
	pin_give_back(&pin);
	ASSERT_EQ(1, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
	EXPECT_EQ(0, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
}

/* What a failing scan has taken is told of again */
TEST_F(file, dirty_after_efault)
{
	struct memfd_range *ranges = bad_pointer();
	struct memfd_event ev;
	size_t page[8];

	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_ASYNC));
	self->map[3 * self->page] = NEW_BYTE;
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(-EFAULT, scan_range(self->nfd, 0, 0, ranges, 1,
				      MEMFD_SCAN_REPROTECT, NULL));
	EXPECT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(1, scan_pages(self->nfd, page, MEMFD_SCAN_REPROTECT));
	munmap(ranges, self->page);
}

/* Part 5: answers to writers that signals call away */

/* How often the writer was called away; the handler sees it, too. */
static volatile int *ticks;

static void tick(int sig)
{
	++*ticks;
}

__attribute__((constructor)) static void make_ticks(void)
{
	ticks = mmap(NULL, sizeof(*ticks), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ticks == MAP_FAILED)
		exit(KSFT_FAIL);
}

/* Until the writer has been called away three times, on a busy machine as well */
static bool three_ticks(void)
{
	for (int i = 0; i < 1000 && *ticks < 3; i++)
		sleep_ms(10);
	return *ticks >= 3;
}

static long store_with_timer(void *arg)
{
	struct sigaction act = { .sa_handler = tick };
	struct itimerval often = { { 0, 5000 }, { 0, 5000 } };

	sigaction(SIGALRM, &act, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	*(volatile char *)arg = NEW_BYTE;
	memset(&often, 0, sizeof(often));
	setitimer(ITIMER_REAL, &often, NULL);
	return *ticks;
}

static void stop_here(int sig __attribute__((unused)))
{
	raise(SIGSTOP);
}

/* Stops in the handler of a signal that called it away from its store */
static long leave_by_signal(void *arg)
{
	struct sigaction act = { .sa_handler = stop_here };

	sigaction(SIGALRM, &act, NULL);
	*(volatile char *)arg = NEW_BYTE;
	return 0;
}

/* A handler that needs ten times as long as its writer stays */
static void slow_handler(struct __test_metadata *_metadata,
			 FIXTURE_DATA(file) *self, uint32_t action)
{
	struct memfd_event ev;
	struct writer w;

	*ticks = 0;
	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, store_with_timer,
				 self->map + 5 * self->page));
	/* An event that is withdrawn before it is read is no event */
	ASSERT_TRUE(read_event(self->nfd, &ev));
	sleep_ms(50);
	EXPECT_TRUE(three_ticks());
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, action));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, action));
	EXPECT_TRUE(writer_finishes(&w));
	if (action == MEMFD_RESOLVE_ALLOW) {
		EXPECT_EQ(0, w.out->sig);
		EXPECT_LT(2, w.out->ret);
	} else {
		EXPECT_EQ(SIGBUS, w.out->sig);
	}
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(0, fdinfo_value(self->fd, "pending:"));
	writer_free(&w);
}

TEST_F(file, slow_handler_allows)
{
	slow_handler(_metadata, self, MEMFD_RESOLVE_ALLOW);
}

TEST_F(file, slow_handler_denies)
{
	slow_handler(_metadata, self, MEMFD_RESOLVE_DENY);
}

/* The answer comes while its writer is on the way back */
TEST_F(file, slow_handler_denies_late)
{
	if (!debug_set("delay_us", "enqueue", 4000))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	slow_handler(_metadata, self, MEMFD_RESOLVE_DENY);
	EXPECT_TRUE(debug_set("delay_us", "enqueue", 0));
}

/* An answer for writers that have died meanwhile is none, if nobody has reaped them either */
TEST_F(file, called_away_and_dead)
{
	struct memfd_event ev;
	siginfo_t info;
	struct writer w;

	*ticks = 0;
	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, leave_by_signal,
				 self->map + 5 * self->page));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_EQ(0, kill(w.pid, SIGALRM));
	ASSERT_TRUE(writer_stops(&w));
	ASSERT_EQ(1, fdinfo_value(self->fd, "pending:"));
	ASSERT_EQ(0, kill(w.pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, w.pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(-ENOENT, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_EQ(0, fdinfo_value(self->fd, "pending:"));
	writer_free(&w);
}

static sigjmp_buf away;

static void jump_away(int sig)
{
	siglongjmp(away, 1);
}

struct fickle {
	char *map;
	volatile unsigned long *turns;
};

/* Wants another page each time, and never comes back to one */
static long fickle_stores(void *arg)
{
	struct sigaction act = {
		.sa_handler = jump_away, .sa_flags = SA_NODEFER,
	};
	struct itimerval once = { { 0, 0 }, { 0, 3000 } };
	struct fickle *fickle = arg;

	sigaction(SIGALRM, &act, NULL);
	for (;;) {
		if (!sigsetjmp(away, 1)) {
			setitimer(ITIMER_REAL, &once, NULL);
			fickle->map[*fickle->turns % NR_PAGES * page_size()] = 1;
		}
		++*fickle->turns;
	}
	return 0;
}

/* There are not more events than threads, however often they turn away */
TEST_F(file, leavers_are_bounded)
{
	struct fickle fickle = { self->map };
	uint64_t end = now_ns() + 2000000000ULL;
	struct memfd_event ev;
	struct writer w;
	long most = 0;

	fickle.turns = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_EQ(0, protect_pages(self->fd, 0, NR_PAGES, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, fickle_stores, &fickle));
	while (now_ns() < end) {
		read_event_in(self->nfd, &ev, 100);
		if (fdinfo_value(self->fd, "pending:") > most)
			most = fdinfo_value(self->fd, "pending:");
	}
	EXPECT_LT(10, *fickle.turns);
	EXPECT_GE(2, most);
	writer_kill(&w);
	writer_free(&w);
}

static long write_with_timer(void *arg)
{
	struct sigaction act = { .sa_handler = tick, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, 5000 }, { 0, 5000 } };
	int fd = *(int *)arg;
	long ret;

	sigaction(SIGALRM, &act, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	ret = neg_errno(pwrite(fd, "x", 1, 5 * page_size()));
	memset(&often, 0, sizeof(often));
	setitimer(ITIMER_REAL, &often, NULL);
	return ret;
}

static void slow_handler_of_write(struct __test_metadata *_metadata,
				  FIXTURE_DATA(file) *self)
{
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, write_with_timer, &self->fd));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	sleep_ms(50);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_DENY));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EPERM, w.out->ret);
	writer_free(&w);
}

TEST_F(file, slow_handler_denies_write)
{
	slow_handler_of_write(_metadata, self);
}

TEST_F(file, slow_handler_denies_write_late)
{
	if (!debug_set("delay_us", "enqueue", 4000))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	slow_handler_of_write(_metadata, self);
	EXPECT_TRUE(debug_set("delay_us", "enqueue", 0));
}

struct inlet {
	int fd;
	char *page;
};

/* read(2) stores to the page: in kernel mode, and tried again after signals */
static long read_into_page(void *arg)
{
	struct sigaction act = { .sa_handler = tick };
	struct inlet *inlet = arg;

	sigaction(SIGALRM, &act, NULL);
	return neg_errno(read(inlet->fd, inlet->page, 1));
}

/* With a signal pending it looks up now and then, and stays one event */
TEST_F(file, read_with_a_signal_pending)
{
	struct inlet inlet = { .page = self->map + 5 * self->page };
	struct memfd_event ev;
	struct writer w;
	int fds[2];

	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_KERNEL);
	ASSERT_LE(0, self->nfd);
	ASSERT_EQ(0, pipe(fds));
	ASSERT_EQ(1, write(fds[1], "x", 1));
	inlet.fd = fds[0];
	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, read_into_page, &inlet));
	ASSERT_TRUE(readable(self->nfd, LONG_MS));
	kill(w.pid, SIGALRM);
	sleep_ms(1000);
	/* The one that the signal ended, unread, and the one after it */
	EXPECT_EQ(2, fdinfo_value(self->fd, "events:"));
	EXPECT_EQ(1, fdinfo_value(self->fd, "pending:"));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	sleep_ms(500);
	EXPECT_EQ(2, fdinfo_value(self->fd, "events:"));
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(1, w.out->ret);
	writer_free(&w);
	close(fds[0]);
	close(fds[1]);
}

/* Part 6: waiting writes, and who is woken for what */

static long write_eight(void *arg)
{
	char buf[8 * page_size()];

	memset(buf, NEW_BYTE, sizeof(buf));
	return neg_errno(pwrite(*(int *)arg, buf, sizeof(buf), 0));
}

TEST_F(file, deny_in_a_waiting_write)
{
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 8, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, write_eight, &self->fd));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_EQ(0, protect_pages(self->fd, 4, 1, MEMFD_PROTECT_DENY));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(-EPERM, w.out->ret);
	EXPECT_TRUE(file_filled_with(self->fd, 0, 8, OLD_BYTE));
	writer_free(&w);
}

/* A page in the middle does not wake who waits for the first one */
TEST_F(file, unprotect_in_a_waiting_write)
{
	struct memfd_event ev;
	struct writer w;

	ASSERT_EQ(0, protect_pages(self->fd, 0, 8, MEMFD_PROTECT_WAIT));
	ASSERT_TRUE(writer_start(&w, self->nfd, write_eight, &self->fd));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	ASSERT_EQ(0, unprotect_pages(self->fd, 4, 1));
	EXPECT_TRUE(no_event(self->nfd));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(8 * self->page, w.out->ret);
	writer_free(&w);
}

/* Part 7: exit */

static int lock_in(pthread_mutex_t *mutex, unsigned int ms)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += ms / 1000;
	return pthread_mutex_timedlock(mutex, &ts);
}

/* A robust mutex in a WAIT page is not lost when its owner ends */
TEST_F(file, robust_mutex)
{
	pthread_mutex_t *mutex = (void *)(self->map + 5 * self->page);
	struct memfd_event ev;
	struct writer w;

	ASSERT_TRUE(owner_ends(&w, self->fd, self->nfd, 5, mutex));
	EXPECT_TRUE(writer_reap(&w, LONG_MS));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_F_KERNEL, ev.flags);
	EXPECT_EQ(0, ev.cookie);
	EXPECT_EQ(5 * self->page, ev.offset);
	unprotect_pages(self->fd, 0, 0);
	EXPECT_EQ(EOWNERDEAD, lock_in(mutex, 5000));
	writer_free(&w);
}

/* With MEMFD_NOTIFY_KERNEL it waits, unless it was killed */
TEST_F(file, robust_mutex_kernel)
{
	pthread_mutex_t *mutex = (void *)(self->map + 5 * self->page);
	struct memfd_event ev;
	struct writer w;

	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_KERNEL);
	ASSERT_LE(0, self->nfd);
	ASSERT_TRUE(owner_ends(&w, self->fd, self->nfd, 5, mutex));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_F_KERNEL | MEMFD_EVENT_F_WAITING, ev.flags);
	EXPECT_NE(0, ev.cookie);
	EXPECT_FALSE(writer_reap(&w, 50));
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_reap(&w, LONG_MS));
	EXPECT_EQ(EOWNERDEAD, lock_in(mutex, 5000));
	writer_free(&w);

	/* Killed with the mutex: goes through */
	pthread_mutex_consistent(mutex);
	pthread_mutex_unlock(mutex);
	ASSERT_TRUE(owner_stops(&w, self->fd, self->nfd, 5, mutex));
	kill(w.pid, SIGKILL);
	EXPECT_TRUE(writer_reap(&w, LONG_MS));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(0, ev.cookie);
	unprotect_pages(self->fd, 0, 0);
	EXPECT_EQ(EOWNERDEAD, lock_in(mutex, 5000));
	writer_free(&w);
}

/*
 * Who waits while it exits cannot be killed: SIGKILL is dropped. Its wait ends by
 * itself instead, and what it had to write goes through.
 */
TEST_F(file, exit_wait_has_a_limit)
{
	pthread_mutex_t *mutex = (void *)(self->map + 5 * self->page);
	struct memfd_event ev;
	struct writer w;
	uint64_t ms;

	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_KERNEL);
	ASSERT_LE(0, self->nfd);
	ASSERT_TRUE(owner_ends(&w, self->fd, self->nfd, 5, mutex));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_NE(0, ev.cookie);
	EXPECT_FALSE(writer_reap(&w, 50));
	kill(w.pid, SIGKILL);
	EXPECT_TRUE(writer_reap(&w, LONG_MS));
	ms = (now_ns() - ev.time_ns) / 1000000;
	EXPECT_LE(EXIT_WAIT_MS - 100, ms);
	EXPECT_GE(EXIT_WAIT_MS + 5000, ms);
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_F_KERNEL, ev.flags);
	EXPECT_EQ(0, ev.cookie);
	unprotect_pages(self->fd, 0, 0);
	EXPECT_EQ(EOWNERDEAD, lock_in(mutex, 5000));
	writer_free(&w);
}

#define CGROUP_ROOT	"/sys/fs/cgroup"
#define CGROUP_COLD	CGROUP_ROOT "/memfd_protect_cold"

static bool enter_cgroup(const char *cgroup)
{
	char path[128], pid[16];

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	snprintf(pid, sizeof(pid), "%d", getpid());
	return write_file(path, pid);
}

/* Its end is told in the page: the kernel clears the word as the thread exits */
static void *exit_by_word(void *word)
{
	syscall(SYS_set_tid_address, word);
	/* The page is protected meanwhile */
	raise(SIGSTOP);
	syscall(SYS_exit, 0);
	return NULL;
}

static long thread_ends(void *arg)
{
	volatile int *word = arg;
	pthread_t thread;

	if (pthread_create(&thread, NULL, exit_by_word, arg))
		return -EAGAIN;
	while (*word)
		usleep(1000);
	return 0;
}

/* Being frozen is no reason to go through either */
TEST_F(file, exit_wait_while_frozen)
{
	volatile int *word = (void *)(self->map + 5 * self->page);
	struct memfd_event ev;
	struct writer w;

	if ((mkdir(CGROUP_COLD, 0755) && errno != EEXIST) ||
	    access(CGROUP_COLD "/cgroup.freeze", W_OK))
		SKIP(return, "no cgroup freezer");
	close(self->nfd);
	self->nfd = sys_memfd_notify(self->fd, MEMFD_NOTIFY_KERNEL);
	ASSERT_LE(0, self->nfd);
	*word = 1;
	/* Who exits cannot be moved */
	ASSERT_TRUE(enter_cgroup(CGROUP_COLD));
	ASSERT_TRUE(writer_start(&w, self->nfd, thread_ends, (void *)word));
	ASSERT_TRUE(enter_cgroup(CGROUP_ROOT));
	ASSERT_TRUE(writer_stops(&w));
	ASSERT_EQ(0, protect_pages(self->fd, 5, 1, MEMFD_PROTECT_WAIT));
	ASSERT_EQ(0, kill(w.pid, SIGCONT));
	ASSERT_TRUE(read_event(self->nfd, &ev));
	EXPECT_EQ(MEMFD_EVENT_F_KERNEL | MEMFD_EVENT_F_WAITING, ev.flags);
	ASSERT_TRUE(write_file(CGROUP_COLD "/cgroup.freeze", "1"));
	sleep_ms(1000);
	EXPECT_EQ(1, *word);
	EXPECT_TRUE(no_event(self->nfd));
	ASSERT_TRUE(write_file(CGROUP_COLD "/cgroup.freeze", "0"));
	EXPECT_TRUE(writer_blocks(&w));
	EXPECT_EQ(1, *word);
	EXPECT_EQ(0, resolve(self->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW));
	EXPECT_TRUE(writer_finishes(&w));
	EXPECT_EQ(0, *word);
	writer_free(&w);
	rmdir(CGROUP_COLD);
}

/* Part 8: readers of fdinfo, and memory cgroups */

static long read_fdinfo(void *arg)
{
	static int nr;

	if (!nr)
		nr = *(int *)arg;
	return fdinfo_value(nr, "log_pages:");
}

static volatile unsigned long sink;

static long burn(void *arg)
{
	for (int i = 0; i < 1000000; i++)
		sink++;
	return 0;
}

/* Stores to ASYNC pages in a second, beside somebody */
static unsigned long stores_beside(struct __test_metadata *_metadata, int fd,
				   char *map, size_t nr, int nfd,
				   long (*turn)(void *arg))
{
	unsigned long stores = 0;
	struct crowd crowd;
	uint64_t end;

	ASSERT_TRUE(crowd_start(&crowd, 1, nfd, turn, &fd));
	ASSERT_EQ(0, protect_pages(fd, 0, nr, MEMFD_PROTECT_ASYNC));
	for (size_t i = 0; i < nr; i += 2)
		map[i * page_size()] = 1;
	EXPECT_TRUE(crowd_runs(&crowd));
	end = now_ns() + 1000000000ULL;
	/* Fragments come and go, window by window, and their number stays */
	for (size_t i = 0; now_ns() < end; i = (i + 64) % nr) {
		struct memfd_range range;

		for (size_t j = 1; j < 64; j += 2)
			map[(i + j) * page_size()] = 1;
		EXPECT_EQ(1, scan_range(nfd, i * page_size(),
					(i + 64) * page_size(), &range, 1,
					MEMFD_SCAN_REPROTECT, NULL));
		for (size_t j = 0; j < 64; j += 2)
			map[(i + j) * page_size()] = 1;
		stores += 64;
	}
	crowd_stop(&crowd);
	return stores;
}

TEST(fdinfo_beside_writers)
{
	const size_t nr = 1 << 17;
	unsigned long with = 0, without = 0;
	int fd = sys_memfd_create(MFD_ALLOW_PROTECT), nfd;
	char *map;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, nr * page_size()));
	map = mmap(NULL, nr * page_size(), PROT_READ | PROT_WRITE, MAP_SHARED,
		   fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	nfd = sys_memfd_notify(fd, 0);
	ASSERT_LE(0, nfd);
	/* The best of some of each, by turns: whoever else runs is not to decide it. */
	for (int i = 0; i < 12 && (i < 4 || with <= without * 7 / 10); i++) {
		unsigned long stores;

		stores = stores_beside(_metadata, fd, map, nr, nfd, burn);
		without = stores > without ? stores : without;
		stores = stores_beside(_metadata, fd, map, nr, nfd, read_fdinfo);
		with = stores > with ? stores : with;
	}
	TH_LOG("stores beside a busy process %lu, a reader of fdinfo %lu",
	       without, with);
	EXPECT_LT(without * 7 / 10, with);
	close(nfd);
	munmap(map, nr * page_size());
	close(fd);
}

#define CGROUP_TIGHT	CGROUP_ROOT "/memfd_protect_tight"

struct tight {
	int fd;
	char *map;
	size_t nr;
};

/* Allocates nodes for the log all the time, in a cgroup that has no memory left */
static long tight_stores(void *arg)
{
	static size_t page;
	static char *own;
	struct tight *tight = arg;

	if (!own) {
		enter_cgroup(CGROUP_TIGHT);
		own = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
	/* Keeps it at its limit */
	for (size_t i = 0; i < 8 << 20; i += page_size())
		own[i] = i;
	for (int i = 0; i < 32; i++) {
		page = (page + 1024) % tight->nr;
		tight->map[page * page_size()] = 1;
	}
	return 0;
}

TEST(memory_of_others)
{
	struct tight tight = { .nr = 1 << 17 };
	uint64_t start, longest = 0;
	struct crowd crowd;
	int nfd;

	write_file(CGROUP_ROOT "/cgroup.subtree_control", "+memory");
	mkdir(CGROUP_TIGHT, 0755);
	if (!write_file(CGROUP_TIGHT "/memory.max", "6M"))
		SKIP(return, "no memory cgroup");
	tight.fd = sys_memfd_create(MFD_ALLOW_PROTECT);
	ASSERT_LE(0, tight.fd);
	ASSERT_EQ(0, ftruncate(tight.fd, tight.nr * page_size()));
	tight.map = mmap(NULL, tight.nr * page_size(), PROT_READ | PROT_WRITE,
			 MAP_SHARED, tight.fd, 0);
	ASSERT_NE(MAP_FAILED, tight.map);
	/* The pages themselves are ours */
	memset(tight.map, 0, 1 << 20);
	for (size_t i = 0; i < tight.nr; i += 1024)
		tight.map[i * page_size()] = 1;
	nfd = sys_memfd_notify(tight.fd, 0);
	ASSERT_LE(0, nfd);
	ASSERT_EQ(0, protect_pages(tight.fd, 0, 0, MEMFD_PROTECT_ASYNC));
	ASSERT_TRUE(crowd_start(&crowd, 2, nfd, tight_stores, &tight));
	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(0, protect_pages(tight.fd, 0, 0,
					   MEMFD_PROTECT_ASYNC));
		start = now_ns();
		tight.map[i * 2 * page_size()] = 1;
		if (now_ns() - start > longest)
			longest = now_ns() - start;
		usleep(10000);
	}
	TH_LOG("longest store beside a full cgroup: %llu us",
	       (unsigned long long)longest / 1000);
	EXPECT_GT(400000000ULL, longest);
	crowd_stop(&crowd);
	close(nfd);
	munmap(tight.map, tight.nr * page_size());
	close(tight.fd);
	rmdir(CGROUP_TIGHT);
}

/* Part 9: what a first store maps */

#define AROUND_PAGES	512UL

/* Maps a file anew, in as few page tables as possible */
static char *map_anew(int fd)
{
	size_t len = AROUND_PAGES * page_size();
	char *area = mmap(NULL, 2 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *map = (char *)(((uintptr_t)area + len - 1) & -len);

	return area == MAP_FAILED ? area :
	       mmap(map, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* Faults of stores to pages, in ascending order */
static long faults_of_stores(char *map, size_t first, size_t behind)
{
	long before = faults();

	for (; first < behind; first++)
		*(volatile char *)(map + first * page_size()) = NEW_BYTE;
	return faults() - before;
}

/* A file that has all its pages */
static int resident_file(void)
{
	int fd = sys_memfd_create(MFD_ALLOW_PROTECT);
	char byte = OLD_BYTE;

	if (fd < 0 || ftruncate(fd, AROUND_PAGES * page_size()))
		return -1;
	for (size_t i = 0; i < AROUND_PAGES; i++)
		if (pwrite(fd, &byte, 1, i * page_size()) != 1)
			return -1;
	return fd;
}

/* What is there and not protected is mapped around; what is protected stays so */
TEST(first_store_maps_around)
{
	const size_t page = page_size(), denied = 20, logged = 41;
	struct memfd_range range[2];
	int fd = resident_file(), nfd;
	struct outcome out;
	long taken;
	char *map;

	if (page != 4096)
		SKIP(return, "64 KiB are not 16 pages");
	ASSERT_LE(0, fd);
	nfd = sys_memfd_notify(fd, 0);
	ASSERT_EQ(0, protect_pages(fd, denied, 1, MEMFD_PROTECT_DENY));
	ASSERT_EQ(0, protect_pages(fd, logged, 1, MEMFD_PROTECT_ASYNC));
	map = map_anew(fd);
	ASSERT_NE(MAP_FAILED, map);
	taken = faults_of_stores(map, 0, denied) +
		faults_of_stores(map, denied + 1, logged) +
		faults_of_stores(map, logged + 1, AROUND_PAGES);
	TH_LOG("%ld faults", taken);
	/* One for each 16, and where there is no page table yet, and what is looked at */
	EXPECT_GE((long)AROUND_PAGES / 16 + 4, taken);

	run_guarded(op_store, map + denied * page, &out);
	EXPECT_EQ(SIGBUS, out.sig);
	EXPECT_EQ(OLD_BYTE, map[denied * page]);
	EXPECT_EQ(0, scan_range(nfd, 0, 0, range, 2, 0, NULL));
	map[logged * page] = NEW_BYTE;
	EXPECT_EQ(1, scan_range(nfd, 0, 0, range, 2, 0, NULL));
	EXPECT_EQ(logged * page, range[0].offset);
	EXPECT_EQ(page, range[0].length);
	for (size_t i = 0; i < AROUND_PAGES; i++)
		EXPECT_EQ(i == denied ? OLD_BYTE : NEW_BYTE, map[i * page]);
	/* What was mapped around is as protected as all, when it is */
	ASSERT_EQ(0, protect_pages(fd, 0, 0, MEMFD_PROTECT_DENY));
	for (size_t i = 0; i < AROUND_PAGES; i += 7) {
		run_guarded(op_store, map + i * page, &out);
		EXPECT_EQ(SIGBUS, out.sig);
	}
	munmap(map, AROUND_PAGES * page);
	close(nfd);
	close(fd);
}

/* The file's time tells of the store, whether there is a page table or not */
TEST(first_store_is_told)
{
	const size_t page = page_size();
	int fd = resident_file();
	long long before;
	char *map;

	ASSERT_LE(0, fd);
	map = map_anew(fd);
	ASSERT_NE(MAP_FAILED, map);
	/* There is a page table from now on */
	map[0] = NEW_BYTE;
	for (size_t i = 100; i < AROUND_PAGES; i += 100) {
		before = modified_ns(fd);
		ASSERT_LE(0, before);
		sleep_ms(20);
		map[i * page] = NEW_BYTE;
		EXPECT_LT(before, modified_ns(fd));
	}
	munmap(map, AROUND_PAGES * page);
	close(fd);
}

/*
 * Who wants each page mapped by itself has that: MLOCK_ONFAULT, userfaultfd and
 * soft-dirty bits
 */
TEST(first_store_maps_one)
{
	const size_t len = AROUND_PAGES * page_size();
	int fd, uffd;
	char *map;

	set_shmem_huge("never", NULL, 0);
	fd = resident_file();
	map = map_anew(fd);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, mlock2(map, len, MLOCK_ONFAULT));
	EXPECT_LE((long)AROUND_PAGES, faults_of_stores(map, 0, AROUND_PAGES));
	munmap(map, len);

	map = map_anew(fd);
	ASSERT_NE(MAP_FAILED, map);
	uffd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
			 UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	if (uffd >= 0) {
		ASSERT_EQ(0, uffd_register(uffd, map, len, UFFDIO_REGISTER_MODE_WP));
		EXPECT_LE((long)AROUND_PAGES, faults_of_stores(map, 0, AROUND_PAGES));
		close(uffd);
	}
	munmap(map, len);

	/* Once, not twice */
	map = map_anew(fd);
	ASSERT_NE(MAP_FAILED, map);
	if (write_file("/proc/self/clear_refs", "4")) {
		long taken = faults_of_stores(map, 0, AROUND_PAGES);

		EXPECT_LE((long)AROUND_PAGES, taken);
		EXPECT_GE((long)AROUND_PAGES + 4, taken);
	}
	munmap(map, len);

	/* Holes: there is nothing to be mapped */
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, ftruncate(fd, len));
	map = map_anew(fd);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_LE((long)AROUND_PAGES, faults_of_stores(map, 0, AROUND_PAGES));
	munmap(map, len);
	close(fd);
}

int main(int argc, char **argv)
{
	need_memfd_protect();
	return test_harness_run(argc, argv);
}
