// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every safety hook of memfd_protect() has a scenario here that goes wrong
 * without it. A kernel with CONFIG_MEMFD_PROTECT_DEBUG can switch a hook off and
 * widen the window that it closes. Each scenario runs twice: with the hook it
 * must see no violation, without it at least one. A scenario that sees none
 * without its hook proves nothing, and fails.
 */
#include "memfd_protect_paths.h"

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define DEBUG_DIR	"/sys/kernel/debug/memfd_protect"
#define SHMEM_HUGE	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"

#define NR_PAGES	16
#define THE_PAGE	5
#define OLD_BYTE	0x11
#define NEW_BYTE	0x22
#define HUGE_SIZE	(2UL << 20)

static bool debug_set(const char *dir, const char *name, unsigned int value)
{
	char path[128], text[16];

	snprintf(path, sizeof(path), DEBUG_DIR "/%s/%s", dir, name);
	snprintf(text, sizeof(text), "%u", value);
	return write_file(path, text);
}

/* What a scenario works with, and what it has seen */
struct scene {
	int fd;
	int nfd;
	char *map;		/* where the writer stores */
	const char *view;	/* where the file is looked at: read-only */
	size_t page;		/* page size */
	unsigned int delay_us;
	unsigned int rounds;
	unsigned int violations;
	unsigned int tries;	/* rounds in which it could have gone wrong */
	const char *skip;	/* why it cannot be played here */
};

static volatile uint64_t *scene_view(const struct scene *s)
{
	return (volatile uint64_t *)(s->view + THE_PAGE * s->page);
}

static char *scene_addr(const struct scene *s)
{
	return s->map + THE_PAGE * s->page;
}

/* Looks twice at a page that must not change in between */
static bool changes_within(const struct scene *s, unsigned int us)
{
	uint64_t before = *scene_view(s);

	usleep(us);
	return *scene_view(s) != before;
}

/* A thread that does something again and again, and survives a SIGBUS */
struct actor {
	struct scene *scene;
	operation_fn fn;
	pthread_t thread;
	volatile bool stop;
	volatile unsigned int turns;
	volatile int go;
	struct outcome out;
};

static void *actor_loop(void *arg)
{
	struct actor *a = arg;

	while (!a->stop) {
		memset(&a->out, 0, sizeof(a->out));
		run_guarded(a->fn, a, &a->out);
		a->turns++;
	}
	return NULL;
}

static bool actor_start(struct actor *a, struct scene *s, operation_fn fn)
{
	memset(a, 0, sizeof(*a));
	a->scene = s;
	a->fn = fn;
	return !pthread_create(&a->thread, NULL, actor_loop, a);
}

static void actor_stop(struct actor *a)
{
	a->stop = true;
	a->go = 1;
	pthread_join(a->thread, NULL);
}

static void bump(struct scene *s)
{
	__atomic_fetch_add((uint64_t *)scene_addr(s), 1, __ATOMIC_SEQ_CST);
}

/*
 * set_ptes: a fault on an empty entry asked, and sets the entry when protection
 * has come meanwhile.
 */
static long drop_and_store(void *arg)
{
	struct actor *a = arg;

	madvise(scene_addr(a->scene), a->scene->page, MADV_DONTNEED);
	for (int i = 0; i < 40 && !a->stop; i++) {
		bump(a->scene);
		usleep(50);
	}
	return 0;
}

static void protect_and_look(struct scene *s, unsigned int us)
{
	if (protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY))
		return;
	s->tries++;
	s->violations += changes_within(s, us);
	unprotect_pages(s->fd, THE_PAGE, 1);
}

static void scenario_set_ptes(struct scene *s)
{
	struct actor a;

	actor_start(&a, s, drop_and_store);
	for (unsigned int i = 0; i < s->rounds && !s->violations; i++) {
		protect_and_look(s, 3 * s->delay_us + 1000);
		usleep(s->delay_us / 3 * (i % 7));
	}
	actor_stop(&a);
}

/*
 * wp_recheck: a fault on a read-only entry finds an ASYNC page, logs it, and
 * makes the entry writable when DENY has come meanwhile.
 */
static long store_when_told(void *arg)
{
	struct actor *a = arg;

	while (!a->go)
		usleep(20);
	a->go = 0;
	if (a->stop)
		return 0;
	for (int i = 0; i < 40; i++) {
		bump(a->scene);
		usleep(50);
	}
	return 0;
}

static void scenario_wp_recheck(struct scene *s)
{
	struct actor a;

	actor_start(&a, s, store_when_told);
	for (unsigned int i = 0; i < s->rounds && !s->violations; i++) {
		unsigned int turn = a.turns;

		protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_ASYNC);
		/* Present and read-only */
		(void)*(volatile char *)scene_addr(s);
		a.go = 1;
		usleep(s->delay_us / 6 * (1 + i % 6));
		protect_and_look(s, 2 * s->delay_us + 1000);
		while (a.turns == turn)
			usleep(100);
		unprotect_pages(s->fd, 0, 0);
	}
	actor_stop(&a);
}

/* pte: mprotect, and page migration, set entries that they had taken away */
static bool mprotect_opens(struct scene *s)
{
	struct actor a = { .scene = s };

	mprotect(s->map, NR_PAGES * s->page, PROT_READ);
	mprotect(s->map, NR_PAGES * s->page, PROT_READ | PROT_WRITE);
	a.go = 1;
	run_guarded(store_when_told, &a, &a.out);
	return !a.out.sig;
}

static void scenario_pte_mprotect(struct scene *s)
{
	for (unsigned int i = 0; i < 20 && !s->violations; i++) {
		bump(s);
		protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
		s->tries++;
		s->violations += mprotect_opens(s);
		unprotect_pages(s->fd, 0, 0);
	}
}

static void *move_page(void *arg)
{
	struct actor *a = arg;
	void *pages[1] = { scene_addr(a->scene) };
	int node[1], status[1];

	while (!a->stop) {
		node[0] = a->turns++ % 2;
		syscall(__NR_move_pages, 0, 1, pages, node, status, 4);
	}
	return NULL;
}

static long store_often(void *arg)
{
	struct actor *a = arg;

	for (int i = 0; i < 100 && !a->stop; i++)
		bump(a->scene);
	return 0;
}

static void scenario_pte_migrate(struct scene *s)
{
	struct actor mover = { .scene = s }, writer;

	if (access("/sys/devices/system/node/node1", F_OK)) {
		s->skip = "one node only";
		return;
	}
	pthread_create(&mover.thread, NULL, move_page, &mover);
	actor_start(&writer, s, store_often);
	for (unsigned int i = 0; i < 4 * s->rounds && !s->violations; i++) {
		protect_and_look(s, 2000 + s->delay_us);
		usleep(i % 5 * 200);
	}
	actor_stop(&writer);
	actor_stop(&mover);
}

/* pmd: a huge entry is none that the walk knows */
static void scenario_pmd(struct scene *s)
{
	char *area, *map, old[128];
	struct outcome out = { 0 };
	struct scene huge = *s;
	struct actor a = { .scene = &huge, .go = 1 };

	if (!read_file(SHMEM_HUGE, old, sizeof(old)) ||
	    !write_file(SHMEM_HUGE, "always")) {
		s->skip = "no huge pages of shmem";
		return;
	}
	huge.fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (ftruncate(huge.fd, HUGE_SIZE))
		s->skip = "ftruncate";
	area = mmap(NULL, 2 * HUGE_SIZE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map = (char *)(((uintptr_t)area + HUGE_SIZE - 1) & -HUGE_SIZE);
	huge.map = mmap(map, HUGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_FIXED, huge.fd, 0);
	memset(huge.map, OLD_BYTE, HUGE_SIZE);
	madvise(huge.map, HUGE_SIZE, MADV_DONTNEED);
	bump(&huge);
	if (!protect_pages(huge.fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		s->tries++;
		run_guarded(store_when_told, &a, &out);
		s->violations += !out.sig;
	}
	munmap(area, 2 * HUGE_SIZE);
	close(huge.fd);
	/* "always within_size [advise] never": the word in brackets */
	old[strcspn(old, "]")] = 0;
	write_file(SHMEM_HUGE, strchr(old, '[') ? strchr(old, '[') + 1 :
		   "never");
}

/* flush: another CPU goes on with the entry that it has in its TLB */
static void scenario_flush(struct scene *s)
{
	cpu_set_t cpu;
	struct actor a;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
		s->skip = "one CPU only";
		return;
	}
	actor_start(&a, s, store_often);
	CPU_ZERO(&cpu);
	CPU_SET(1, &cpu);
	pthread_setaffinity_np(a.thread, sizeof(cpu), &cpu);
	CPU_ZERO(&cpu);
	CPU_SET(0, &cpu);
	pthread_setaffinity_np(pthread_self(), sizeof(cpu), &cpu);
	for (unsigned int i = 0; i < 4 * s->rounds && !s->violations; i++) {
		usleep(500);
		protect_and_look(s, 1000);
	}
	actor_stop(&a);
}

/* pins: a buffer that a ring keeps can be written without any page table */
static void scenario_pins(struct scene *s)
{
	struct job job = {
		.fd = s->fd, .nfd = -1, .map = s->map, .len = s->page,
		.offset = THE_PAGE * s->page, .byte = NEW_BYTE,
	};
	struct iovec iov = job_iov(&job);
	uint64_t before;

	if (!job_init(&job, &paths[P_uring_read_fixed]) ||
	    job.path->prepare(&job) < 0 ||
	    io_uring_register_buffers(&job.ring, &iov, 1) < 0) {
		s->skip = "no registered buffers";
		return;
	}
	s->tries++;
	if (!protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		before = *scene_view(s);
		io_uring_prep_read_fixed(io_uring_get_sqe(&job.ring), job.src,
					 job_addr(&job), job.len, 0, 0);
		uring_do(&job);
		s->violations += *scene_view(s) != before;
	}
	io_uring_unregister_buffers(&job.ring);
	job_exit(&job);
}

/* flight: a call that is going to fail is not to be noticed by anyone */
static long store_far(void *arg)
{
	struct actor *a = arg;

	__atomic_fetch_add((int *)(a->scene->map + (THE_PAGE + 5) *
				   a->scene->page), 1, __ATOMIC_SEQ_CST);
	return 0;
}

static void *watch_store(void *arg)
{
	struct actor *a = arg;

	while (!a->stop) {
		memset(&a->out, 0, sizeof(a->out));
		run_guarded(store_far, a, &a->out);
		a->turns += !!a->out.sig;
		usleep(200);
	}
	return NULL;
}

static void scenario_flight(struct scene *s)
{
	struct actor a = { .scene = s };
	struct job job = {
		.fd = s->fd, .nfd = -1, .map = s->map, .len = s->page,
		.offset = THE_PAGE * s->page, .byte = NEW_BYTE,
	};

	if (!job_init(&job, &paths[P_uring_read_fixed]) ||
	    uring_up(&job, 0) < 0) {
		s->skip = "no io_uring";
		return;
	}
	pthread_create(&a.thread, NULL, watch_store, &a);
	for (unsigned int i = 0; i < 3 && !a.turns; i++) {
		struct iovec iov = job_iov(&job);

		if (io_uring_register_buffers(&job.ring, &iov, 1) < 0)
			continue;
		if (protect_pages(s->fd, 0, 0, MEMFD_PROTECT_DENY) == -EBUSY)
			s->tries++;
		io_uring_unregister_buffers(&job.ring);
	}
	actor_stop(&a);
	s->violations += a.turns;
	job_exit(&job);
}

/* One path into a DENY page: succeeds without its hook */
static void scenario_path(struct scene *s, enum path_nr nr)
{
	struct job job = {
		.fd = s->fd, .nfd = -1, .map = s->map, .len = s->page,
		.offset = THE_PAGE * s->page, .byte = NEW_BYTE,
	};
	long ret;

	if (!job_init(&job, &paths[nr]))
		return;
	ret = job.path->prepare ? job.path->prepare(&job) : 0;
	if (ret < 0) {
		s->skip = "the path is not to be had here";
	} else if (!protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		s->tries++;
		s->violations += job.path->run(&job) >= 0;
	}
	job_exit(&job);
}

static void scenario_write(struct scene *s)
{
	scenario_path(s, P_pwrite);
}

static void scenario_punch(struct scene *s)
{
	scenario_path(s, P_punch);
}

static void scenario_truncate(struct scene *s)
{
	scenario_path(s, P_ftruncate);
}

static void scenario_pin_folios(struct scene *s)
{
	scenario_path(s, P_udmabuf);
}

/*
 * remote: /proc/PID/mem has the page, and copies to it when protection has come
 * meanwhile.
 */
static long write_proc_mem(void *arg)
{
	struct actor *a = arg;
	static int mem = -1;
	uint64_t data = a->turns * 2 + 1;

	if (mem < 0)
		mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	pwrite(mem, &data, sizeof(data), (off_t)(uintptr_t)
	       scene_addr(a->scene));
	return 0;
}

static void scenario_remote(struct scene *s)
{
	struct actor a;

	actor_start(&a, s, write_proc_mem);
	for (unsigned int i = 0; i < s->rounds && !s->violations; i++) {
		usleep(s->delay_us / 3 * (i % 5));
		protect_and_look(s, 2 * s->delay_us + 1000);
	}
	actor_stop(&a);
}

/* The list */

FIXTURE(hook) {
	struct scene scene;
};

FIXTURE_VARIANT(hook) {
	const char *hook;
	void (*scenario)(struct scene *s);
	const char *delay;
	unsigned int delay_us;
	unsigned int rounds;
};

#define HOOK(_name, _hook, _delay, _us, _rounds) \
FIXTURE_VARIANT_ADD(hook, _name) { \
	.hook = _hook, .scenario = scenario_##_name, .delay = _delay, \
	.delay_us = _us, .rounds = _rounds, \
}

HOOK(set_ptes, "set_ptes", "fault", 3000, 60);
HOOK(wp_recheck, "wp_recheck", "fault", 6000, 60);
HOOK(pte_mprotect, "pte", NULL, 0, 1);
HOOK(pte_migrate, "pte", NULL, 0, 100);
HOOK(pmd, "pmd", NULL, 0, 1);
HOOK(flush, "flush", NULL, 0, 50);
HOOK(pins, "pins", NULL, 0, 1);
HOOK(flight, "flight", "flight", 20000, 1);
HOOK(write, "write", NULL, 0, 1);
HOOK(punch, "punch", NULL, 0, 1);
HOOK(truncate, "truncate", NULL, 0, 1);
HOOK(remote, "remote", "remote", 5000, 60);
HOOK(pin_folios, "pin_folios", NULL, 0, 1);

static void hooks_reset(void)
{
	static const char * const hooks[] = {
		"set_ptes", "wp_recheck", "pte", "pmd", "flush",
		"nested_flush", "batched_flush", "pins", "flight", "write",
		"punch", "truncate", "remote", "pin_folios", "get_pages",
	};
	static const char * const delays[] = {
		"fault", "flight", "remote", "enqueue",
	};

	for (size_t i = 0; i < ARRAY_SIZE(hooks); i++)
		debug_set("disable", hooks[i], 0);
	for (size_t i = 0; i < ARRAY_SIZE(delays); i++)
		debug_set("delay_us", delays[i], 0);
}

FIXTURE_SETUP(hook)
{
	struct scene *s = &self->scene;
	size_t size = NR_PAGES * page_size();

	if (access(DEBUG_DIR, F_OK))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
	s->page = page_size();
	s->rounds = variant->rounds;
	s->delay_us = variant->delay_us;
	s->fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT |
				 MFD_ALLOW_SEALING);
	ASSERT_LE(0, s->fd);
	ASSERT_EQ(0, ftruncate(s->fd, size));
	s->map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd,
		      0);
	ASSERT_NE(MAP_FAILED, s->map);
	memset(s->map, OLD_BYTE, size);
	s->view = mmap(NULL, size, PROT_READ, MAP_SHARED, s->fd, 0);
	ASSERT_NE(MAP_FAILED, s->view);
	s->nfd = sys_memfd_notify(s->fd, 0);
	ASSERT_LE(0, s->nfd);
	if (variant->delay)
		ASSERT_TRUE(debug_set("delay_us", variant->delay,
				      variant->delay_us));
}

/* In the parent, which lives on when a scenario is killed */
FIXTURE_TEARDOWN_PARENT(hook)
{
	hooks_reset();
}

TEST_F(hook, holds)
{
	variant->scenario(&self->scene);
	if (self->scene.skip)
		SKIP(return, "%s", self->scene.skip);
	EXPECT_EQ(0, self->scene.violations);
	EXPECT_LT(0, self->scene.tries);
}

TEST_F(hook, is_missed)
{
	ASSERT_TRUE(debug_set("disable", variant->hook, 1));
	variant->scenario(&self->scene);
	if (self->scene.skip)
		SKIP(return, "%s", self->scene.skip);
	EXPECT_LT(0, self->scene.violations)
		TH_LOG("%u tries without the hook, and nothing went wrong",
		       self->scene.tries);
}

int main(int argc, char **argv)
{
	int ret;

	hooks_reset();
	ret = test_harness_run(argc, argv);
	hooks_reset();
	return ret;
}
