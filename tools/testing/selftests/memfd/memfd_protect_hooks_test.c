// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every safety hook of memfd_protect() has a scenario here that goes wrong
 * without it. A kernel with CONFIG_MEMFD_PROTECT_DEBUG can switch a hook off and
 * widen the window that it closes. Each scenario runs twice: with the hook it
 * must see no violation, without it at least one. A scenario that sees none
 * without its hook proves nothing, and fails.
 */
#include "memfd_protect_paths.h"

#include <dirent.h>
#include <linux/mempolicy.h>

#include "kselftest_harness.h"

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	180

#define NR_PAGES	16
#define THE_PAGE	5
#define HUGE_SIZE	(2UL << 20)

/* What a scenario works with, and what it has seen */
struct scene {
	int fd;
	int nfd;
	char *map;		/* where the writer stores */
	const char *view;	/* where the file is looked at: read-only */
	size_t page;		/* page size */
	unsigned int delay_us;
	unsigned int rounds;
	uint64_t end_ns;	/* goes on until then, not for @rounds */
	unsigned int violations;
	unsigned int tries;	/* rounds in which it could have gone wrong */
	const char *skip;	/* why it cannot be played here */
};

/*
 * With the hook a scenario has so many rounds. Without it, it has until it has
 * seen a violation, or a long time: how soon depends on the machine.
 */
static bool goes_on(const struct scene *s, unsigned int round)
{
	if (s->violations)
		return false;
	return s->end_ns ? now_ns() < s->end_ns : round < s->rounds;
}

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
	volatile unsigned long stored;	/* stores that went through */
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
	for (unsigned int i = 0; goes_on(s, i); i++) {
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
	for (unsigned int i = 0; goes_on(s, i); i++) {
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

/* set_ptes again: a fault for reading maps the page, and as writable */
static void scenario_set_ptes_read(struct scene *s)
{
	struct actor a = { .scene = s, .go = 1 };

	protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
	madvise(s->map, NR_PAGES * s->page, MADV_DONTNEED);
	(void)*(volatile char *)scene_addr(s);
	s->tries++;
	run_guarded(store_when_told, &a, &a.out);
	s->violations += !a.out.sig;
}

/*
 * pte: mprotect, page migration and NUMA balancing set entries anew that they
 * had taken away
 */
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

	for (int i = 0; i < 100 && !a->stop; i++) {
		bump(a->scene);
		a->stored++;
	}
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
	for (unsigned int i = 0; goes_on(s, i); i++) {
		protect_and_look(s, 2000 + s->delay_us);
		usleep(i % 5 * 200);
	}
	actor_stop(&writer);
	actor_stop(&mover);
}

#define NUMA_DIR	"/sys/kernel/debug/sched/numa_balancing"

static unsigned long numa_hint_faults(void)
{
	static char text[16384];
	char *line;

	if (!read_file("/proc/vmstat", text, sizeof(text)))
		return 0;
	line = strstr(text, "\nnuma_hint_faults ");
	return line ? strtoul(line + 18, NULL, 10) : 0;
}

static void numa_scan_fast(bool fast)
{
	write_file("/proc/sys/kernel/numa_balancing", "1");
	write_file(NUMA_DIR "/scan_delay_ms", fast ? "5" : "1000");
	write_file(NUMA_DIR "/scan_period_min_ms", fast ? "5" : "1000");
	write_file(NUMA_DIR "/scan_period_max_ms", fast ? "10" : "60000");
}

/* Reads the page until hinting faults have come, then tries to store */
static bool numa_opens(struct scene *s)
{
	uint64_t end = now_ns() + 3000000000ULL;
	struct actor a = { .scene = s, .go = 1 };
	unsigned long before = numa_hint_faults();

	while (now_ns() < end && numa_hint_faults() < before + 4)
		for (int i = 0; i < 1000; i++)
			(void)*(volatile char *)scene_addr(s);
	if (numa_hint_faults() == before)
		return false;
	s->tries++;
	run_guarded(store_when_told, &a, &a.out);
	return !a.out.sig;
}

/* With so many pages protected, from @first on; 0: all of them */
static void play_numa(struct scene *s, size_t first, size_t nr)
{
	struct actor other;

	if (access("/sys/devices/system/node/node1", F_OK) ||
	    access(NUMA_DIR, F_OK)) {
		s->skip = "no NUMA balancing";
		return;
	}
	numa_scan_fast(true);
	/* Alone, a process is spared pages of the node that it runs on */
	actor_start(&other, s, store_when_told);
	for (unsigned int i = 0; goes_on(s, i); i++) {
		bump(s);
		protect_pages(s->fd, first, nr, MEMFD_PROTECT_DENY);
		s->violations += numa_opens(s);
		unprotect_pages(s->fd, 0, 0);
	}
	actor_stop(&other);
	numa_scan_fast(false);
	if (!s->tries)
		s->skip = "no NUMA hinting faults";
}

static void scenario_pte_numa(struct scene *s)
{
	play_numa(s, THE_PAGE, 1);
}

/* A file of one large folio, and where it is mapped */
struct huge {
	struct scene scene;
	char *area;
	char before[64];	/* the setting */
};

static bool huge_start(struct huge *h, struct scene *s)
{
	char *map;

	h->scene = *s;
	if (!set_shmem_huge("always", h->before, sizeof(h->before))) {
		s->skip = "no huge pages of shmem";
		return false;
	}
	h->scene.fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (ftruncate(h->scene.fd, HUGE_SIZE)) {
		s->skip = "no memory for a huge page";
		close(h->scene.fd);
		set_shmem_huge(h->before, NULL, 0);
		return false;
	}
	h->area = mmap(NULL, 2 * HUGE_SIZE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map = (char *)(((uintptr_t)h->area + HUGE_SIZE - 1) & -HUGE_SIZE);
	h->scene.map = mmap(map, HUGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED, h->scene.fd, 0);
	memset(h->scene.map, OLD_BYTE, HUGE_SIZE);
	return true;
}

static void huge_end(struct huge *h)
{
	munmap(h->area, 2 * HUGE_SIZE);
	close(h->scene.fd);
	set_shmem_huge(h->before, NULL, 0);
}

/* Stores to the page when @start has protected it, and mapped it by a huge entry */
static void huge_play(struct scene *s, void (*start)(struct huge *h))
{
	struct outcome out = { 0 };
	struct huge h;
	struct actor a = { .scene = &h.scene, .go = 1 };

	if (!huge_start(&h, s))
		return;
	madvise(h.scene.map, HUGE_SIZE, MADV_DONTNEED);
	start(&h);
	s->skip = h.scene.skip;
	s->tries++;
	run_guarded(store_when_told, &a, &out);
	s->violations += !out.sig;
	huge_end(&h);
}

/* pmd: a fault makes a huge entry where something is protected already */
static void protect_and_map(struct huge *h)
{
	protect_pages(h->scene.fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
	h->scene.map[0] = NEW_BYTE;
}

static void scenario_pmd(struct scene *s)
{
	huge_play(s, protect_and_map);
}

/* ... or it is there, has lost its write bit, and gets it back by mprotect() */
static void protect_and_change(struct huge *h)
{
	h->scene.map[0] = NEW_BYTE;
	protect_pages(h->scene.fd, 0, 0, MEMFD_PROTECT_DENY);
	mprotect(h->scene.map, HUGE_SIZE, PROT_READ);
	mprotect(h->scene.map, HUGE_SIZE, PROT_READ | PROT_WRITE);
}

static void scenario_pmd_mprotect(struct scene *s)
{
	huge_play(s, protect_and_change);
}

/* ... when its page comes to another node */
static void protect_and_move(struct huge *h)
{
	void *addr = h->scene.map;
	int node = 1, status = -1;

	h->scene.map[0] = NEW_BYTE;
	protect_pages(h->scene.fd, 0, 0, MEMFD_PROTECT_DENY);
	if (syscall(__NR_move_pages, 0, 1, &addr, &node, &status, MPOL_MF_MOVE_ALL) ||
	    status != node)
		h->scene.skip = "no second node";
}

static void scenario_pmd_migrate(struct scene *s)
{
	huge_play(s, protect_and_move);
}

/* ... after a NUMA hinting fault */
static void scenario_pmd_numa(struct scene *s)
{
	struct huge h;

	if (!huge_start(&h, s))
		return;
	play_numa(&h.scene, 0, 0);
	s->tries = h.scene.tries;
	s->violations = h.scene.violations;
	s->skip = h.scene.skip;
	huge_end(&h);
}

/* huge: one is there, and the walk passes it by */
static void map_and_protect(struct huge *h)
{
	h->scene.map[0] = NEW_BYTE;
	protect_pages(h->scene.fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
}

static void scenario_huge(struct scene *s)
{
	huge_play(s, map_and_protect);
}

/*
 * zap: munmap() flushes a huge entry when its VMA has left the reverse mapping. In between it
 * waits to take a VMA out of that of another file, which a walk holds: it is splitting a huge
 * entry, and is delayed. Who finds the VMA flushes, so protection comes when it has left.
 */
struct unmapping {
	struct huge huge;
	struct huge other;
	volatile bool begun;
	volatile bool ended;
};

static long store_until_gone(void *arg)
{
	struct actor *a = arg;

	for (;;)
		bump(a->scene);
	return 0;
}

static void *unmap_both(void *arg)
{
	struct unmapping *u = arg;

	u->begun = true;
	munmap(u->huge.scene.map, HUGE_SIZE + u->huge.scene.page);
	u->ended = true;
	return NULL;
}

static void *split_other(void *arg)
{
	struct unmapping *u = arg;

	protect_pages(u->other.scene.fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
	return NULL;
}

/* A page of the other file behind the huge one, which is looked at as a reader. */
static bool map_both(struct unmapping *u)
{
	struct scene *s = &u->huge.scene;
	int reader = reopen_fd(s->fd, O_RDONLY);
	char *to;

	s->view = mmap(NULL, HUGE_SIZE, PROT_READ, MAP_SHARED, reader, 0);
	close(reader);
	munmap(u->huge.area, 2 * HUGE_SIZE);
	u->huge.area = mmap(NULL, 3 * HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	to = (char *)(((uintptr_t)u->huge.area + HUGE_SIZE - 1) & -HUGE_SIZE);
	s->map = mmap(to, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s->fd, 0);
	bump(s);
	u->other.scene.map[0] = NEW_BYTE;
	return s->view != MAP_FAILED && s->map != MAP_FAILED &&
	       mmap(to + HUGE_SIZE, s->page, PROT_READ, MAP_SHARED | MAP_FIXED,
		    u->other.scene.fd, 0) != MAP_FAILED;
}

static void zap_once(struct scene *s, struct unmapping *u)
{
	struct scene *h = &u->huge.scene;
	pthread_t splitter, unmapper;
	struct actor a;

	if (!map_both(u) || !actor_start(&a, h, store_until_gone)) {
		s->skip = "no memory";
		return;
	}
	pthread_create(&splitter, NULL, split_other, u);
	usleep(s->delay_us / 4);
	pthread_create(&unmapper, NULL, unmap_both, u);
	while (!u->begun)
		;
	usleep(s->delay_us / 4);
	if (!protect_pages(h->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		s->tries += !u->ended;
		s->violations += changes_within(h, 1000);
	}
	pthread_join(unmapper, NULL);
	pthread_join(splitter, NULL);
	actor_stop(&a);
	munmap((void *)h->view, HUGE_SIZE);
	munmap(u->huge.area, 3 * HUGE_SIZE);
	u->huge.area = MAP_FAILED;
}

static void scenario_zap(struct scene *s)
{
	for (unsigned int i = 0; goes_on(s, i) && !s->skip; i++) {
		struct unmapping u = {};

		if (!huge_start(&u.huge, s))
			return;
		if (huge_start(&u.other, s)) {
			zap_once(s, &u);
			huge_end(&u.other);
		}
		huge_end(&u.huge);
	}
}

/* split: who uses the other pages faults because one was protected */
static void scenario_split(struct scene *s)
{
	struct huge h;
	long before;

	if (!huge_start(&h, s))
		return;
	if (!protect_pages(h.scene.fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		s->tries++;
		before = faults();
		memset(h.scene.map + HUGE_SIZE / 2, NEW_BYTE, HUGE_SIZE / 2);
		s->violations += faults() != before;
	}
	huge_end(&h);
}

static void run_on(pthread_t thread, unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	pthread_setaffinity_np(thread, sizeof(set), &set);
}

/* For who opens a window, so that it need not be left for another to get in */
static unsigned int third_cpu(void)
{
	return sysconf(_SC_NPROCESSORS_ONLN) > 2 ? 2 : 0;
}

static bool two_cpus(struct scene *s)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) >= 2)
		return true;
	s->skip = "one CPU only";
	return false;
}

/*
 * A writer on another CPU that does not enter the kernel may go on with what it
 * has in its TLB. Its own count tells, without a look at the page. One store may
 * have gone through before protection, and not be counted yet.
 */
static void protect_and_count(struct actor *writer, unsigned int us)
{
	struct scene *s = writer->scene;
	unsigned long stored;

	if (protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY))
		return;
	s->tries++;
	stored = writer->stored;
	usleep(us);
	s->violations += writer->stored > stored + 1;
	unprotect_pages(s->fd, THE_PAGE, 1);
}

/* flush: another CPU goes on with the entry that it has in its TLB */
static void scenario_flush(struct scene *s)
{
	struct actor a;

	if (!two_cpus(s))
		return;
	actor_start(&a, s, store_often);
	run_on(a.thread, 1);
	run_on(pthread_self(), 0);
	for (unsigned int i = 0; goes_on(s, i); i++) {
		usleep(500);
		protect_and_count(&a, 1000);
	}
	actor_stop(&a);
}

/*
 * nested_flush: mprotect() has taken write access away and has not flushed yet, so
 * the walk finds nothing to do. It sleeps: the range goes on in another mapping,
 * the gate, whose lock is held by a fault that is made slow.
 */
static long fault_at_gate(void *arg)
{
	struct actor *a = arg;
	char *gate = a->scene->map + NR_PAGES * a->scene->page;

	madvise(gate, a->scene->page, MADV_DONTNEED);
	*(volatile char *)gate = 1;
	return 0;
}

static long mprotect_all(void *arg)
{
	struct actor *a = arg;
	size_t len = (NR_PAGES + 1) * a->scene->page;

	mprotect(a->scene->map, len, PROT_READ);
	mprotect(a->scene->map, len, PROT_READ | PROT_WRITE);
	usleep(1000);
	return 0;
}

/* What is mapped and its gate, next to each other */
static char *map_with_gate(const struct scene *s)
{
	size_t len = NR_PAGES * s->page;
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	char *map;

	map = mmap(NULL, len + s->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (map == MAP_FAILED || ftruncate(fd, s->page))
		return NULL;
	mmap(map, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s->fd,
	     0);
	mmap(map + len, s->page, PROT_READ | PROT_WRITE,
	     MAP_SHARED | MAP_FIXED, fd, 0);
	close(fd);
	return map;
}

/* The writer has a CPU of its own: each entry to the kernel may flush its TLB */
static void scenario_nested_flush(struct scene *s)
{
	struct actor protector, writer, faulter;
	struct scene gated = *s;

	gated.map = map_with_gate(s);
	if (!gated.map || !two_cpus(s))
		return;
	run_on(pthread_self(), 0);
	actor_start(&writer, &gated, store_often);
	run_on(writer.thread, 1);
	actor_start(&faulter, &gated, fault_at_gate);
	actor_start(&protector, &gated, mprotect_all);
	for (unsigned int i = 0; goes_on(&gated, i); i++) {
		usleep(100 * (i % 37));
		protect_and_count(&writer, 500);
	}
	actor_stop(&protector);
	actor_stop(&faulter);
	actor_stop(&writer);
	s->violations = gated.violations;
	s->tries = gated.tries;
	munmap(gated.map, (NR_PAGES + 1) * s->page);
}

/*
 * batched_flush: migration has taken the entries of many pages away, and flushes
 * for all of them together. The page is the first of them.
 */
#define BATCH	400

static void *move_batch(void *arg)
{
	static int nodes[BATCH], status[BATCH];
	static void *pages[BATCH];
	struct actor *a = arg;
	size_t page = a->scene->page;
	char *others;

	others = mmap(NULL, BATCH * page, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(others, BATCH * page, MADV_NOHUGEPAGE);
	memset(others, 1, BATCH * page);
	for (int i = 0; i < BATCH; i++)
		pages[i] = others + i * page;
	pages[0] = scene_addr(a->scene);
	while (!a->stop) {
		for (int i = 0; i < BATCH; i++)
			nodes[i] = a->turns % 2;
		syscall(__NR_move_pages, 0, BATCH, pages, nodes, status, 4);
		a->turns++;
	}
	munmap(others, BATCH * page);
	return NULL;
}

static void scenario_batched_flush(struct scene *s)
{
	struct actor mover = { .scene = s }, writer;

	if (access("/sys/devices/system/node/node1", F_OK)) {
		s->skip = "one node only";
		return;
	}
	if (!two_cpus(s))
		return;
	actor_start(&writer, s, store_often);
	run_on(writer.thread, 1);
	run_on(pthread_self(), 0);
	pthread_create(&mover.thread, NULL, move_batch, &mover);
	run_on(mover.thread, third_cpu());
	for (unsigned int i = 0; goes_on(s, i); i++) {
		usleep(100 * (i % 37));
		protect_and_count(&writer, 300);
	}
	actor_stop(&writer);
	actor_stop(&mover);
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

/* mark: GUP tells the pin from those of readers */
static void scenario_mark(struct scene *s)
{
	scenario_pins(s);
}

/* blocks: that there is a pin in 2 MiB of which the kernel knew that there was none */
static void scenario_blocks(struct scene *s)
{
	protect_pages(s->fd, 0, 0, MEMFD_PROTECT_DENY);
	unprotect_pages(s->fd, 0, 0);
	scenario_pins(s);
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
		if (a->out.sig)
			a->turns++;
		else
			a->stored++;
		usleep(200);
	}
	return NULL;
}

static void *protect_all(void *arg)
{
	struct actor *a = arg;

	a->out.ret = protect_pages(a->scene->fd, 0, 0, MEMFD_PROTECT_DENY);
	return NULL;
}

/* A whole store has gone through: what came of those before has been counted */
static bool stores_again(const struct actor *watcher)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	unsigned long stored = watcher->stored;

	while (watcher->stored < stored + 2 && now_ns() < end)
		usleep(1000);
	return watcher->stored >= stored + 2;
}

/* The pin comes when it has been looked for, and before the walk */
static void scenario_flight(struct scene *s)
{
	struct actor watcher = { .scene = s }, protector = { .scene = s };
	unsigned int rightly = 0;
	struct job job = {
		.fd = s->fd, .nfd = -1, .map = s->map, .len = s->page,
		.offset = THE_PAGE * s->page, .byte = NEW_BYTE,
	};

	if (!job_init(&job, &paths[P_uring_read_fixed]) ||
	    uring_up(&job, 0) < 0) {
		s->skip = "no io_uring";
		return;
	}
	debug_set("delay_us", "pins", 60000);
	pthread_create(&watcher.thread, NULL, watch_store, &watcher);
	for (unsigned int i = 0; i < 5 && watcher.turns == rightly; i++) {
		struct iovec iov = job_iov(&job);

		pthread_create(&protector.thread, NULL, protect_all,
			       &protector);
		usleep(20000);
		if (io_uring_register_buffers(&job.ring, &iov, 1) >= 0) {
			pthread_join(protector.thread, NULL);
			s->tries += protector.out.ret == -EBUSY;
			io_uring_unregister_buffers(&job.ring);
		} else {
			pthread_join(protector.thread, NULL);
		}
		if (protector.out.ret)
			continue;
		/* The pin was too late */
		if (unprotect_pages(s->fd, 0, 0) || !stores_again(&watcher))
			break;
		rightly = watcher.turns;
	}
	actor_stop(&watcher);
	s->violations += watcher.turns - rightly;
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

/* splice: a pipe's worth is written before a later page fails the rest */
static void scenario_splice(struct scene *s)
{
	const size_t nr = 40;
	struct job job = {
		.fd = s->fd, .nfd = -1, .map = s->map, .byte = NEW_BYTE,
		.len = nr * s->page,
	};

	if (!job_init(&job, &paths[P_sendfile]) || prepare_src(&job) < 0 ||
	    ftruncate(s->fd, nr * s->page)) {
		s->skip = "no source";
		return;
	}
	if (!protect_pages(s->fd, nr - 1, 1, MEMFD_PROTECT_DENY)) {
		s->tries++;
		job.path->run(&job);
		s->violations += *s->view != OLD_BYTE;
	}
	job_exit(&job);
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
	for (unsigned int i = 0; goes_on(s, i); i++) {
		usleep(s->delay_us / 3 * (i % 5));
		protect_and_look(s, 2 * s->delay_us + 1000);
	}
	actor_stop(&a);
}

/*
 * got_pages: reading /dev/fuse gets the pages of its buffer without a pin, and
 * writes them later. The first request is there as soon as it is mounted.
 */
struct fuse_scene {
	struct scene *scene;
	int fd;
	long ret;
	volatile int done;
};

static void *read_fuse(void *arg)
{
	struct fuse_scene *f = arg;

	f->ret = neg_errno(read(f->fd, scene_addr(f->scene),
				4 * f->scene->page));
	f->done = 1;
	return NULL;
}

static bool fuse_mount(int fd, char *dir)
{
	char options[80];

	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
	return mkdtemp(dir) &&
	       !syscall(__NR_mount, "test", dir, "fuse", 0, options);
}

static void scenario_got_pages(struct scene *s)
{
	char dir[] = "/tmp/memfd_protect.XXXXXX";
	struct fuse_scene f = { .scene = s };
	pthread_t thread;
	long ret;

	f.fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (f.fd < 0 || !fuse_mount(f.fd, dir)) {
		s->skip = "no FUSE";
		return;
	}
	pthread_create(&thread, NULL, read_fuse, &f);
	usleep(s->delay_us / 4);
	ret = protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
	if (f.done)
		s->skip = "the read was over too soon";
	s->tries++;
	if (!ret)
		s->violations += changes_within(s, 2 * s->delay_us);
	pthread_join(thread, NULL);
	if (f.ret < 0)
		s->skip = "the read failed";
	syscall(__NR_umount2, dir, 2);
	close(f.fd);
	rmdir(dir);
}

/*
 * fill: userfaultfd is registered for asynchronous write protection, which every
 * mapping may have, and is asked for more.
 */
static int uffd_of_scene(struct scene *s, size_t len, uint64_t features)
{
	int uffd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			     UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			     UFFD_FEATURE_WP_UNPOPULATED |
			     UFFD_FEATURE_WP_ASYNC | features);

	if (uffd >= 0 && !uffd_register(uffd, s->map, len,
					UFFDIO_REGISTER_MODE_WP))
		return uffd;
	s->skip = "no userfaultfd";
	close(uffd);
	return -1;
}

/* A hole gets a page with contents. Nobody must look through a mapping before. */
static void scenario_fill_copy(struct scene *s)
{
	int uffd = uffd_of_scene(s, NR_PAGES * s->page, 0);

	if (uffd < 0)
		return;
	fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		  THE_PAGE * s->page, s->page);
	if (!protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		s->tries++;
		uffd_copy(uffd, scene_addr(s), s->map);
		s->violations += !file_filled_with(s->fd, THE_PAGE, 1, 0);
	}
	close(uffd);
}

/* A page gets an entry, and as writable */
static void scenario_fill_continue(struct scene *s)
{
	struct actor a = { .scene = s, .go = 1 };
	int uffd = uffd_of_scene(s, NR_PAGES * s->page, 0);
	uint64_t before = *scene_view(s);

	if (uffd < 0)
		return;
	if (!protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY)) {
		madvise(s->map, NR_PAGES * s->page, MADV_DONTNEED);
		s->tries++;
		uffd_continue(uffd, scene_addr(s));
		run_guarded(store_when_told, &a, &a.out);
		s->violations += *scene_view(s) != before;
	}
	close(uffd);
}

/*
 * fork: a child has its parent's entries where userfaultfd is told of it. If those
 * of a large folio are copied at once, they all get the rights of one.
 */
struct monitor {
	int uffd;
	int child;	/* that of the child: closed, it would mend the entries */
};

static void *let_fork_go_on(void *arg)
{
	struct monitor *m = arg;
	struct uffd_msg msg;

	if (readable(m->uffd, LONG_MS) &&
	    read(m->uffd, &msg, sizeof(msg)) == sizeof(msg) &&
	    msg.event == UFFD_EVENT_FORK)
		m->child = msg.arg.fork.ufd;
	return NULL;
}

static void store_in_child(struct scene *s)
{
	struct actor a = { .scene = s, .go = 1 };
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		run_guarded(store_when_told, &a, &a.out);
		_exit(a.out.sig);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return;
	s->tries++;
	s->violations += !WEXITSTATUS(status);
}

static void scenario_fork(struct scene *s)
{
	struct monitor m = { .child = -1 };
	pthread_t thread;
	struct huge h;

	if (!huge_start(&h, s))
		return;
	m.uffd = uffd_of_scene(&h.scene, HUGE_SIZE, UFFD_FEATURE_EVENT_FORK);
	if (m.uffd >= 0 &&
	    !protect_pages(h.scene.fd, THE_PAGE, 1, MEMFD_PROTECT_DENY) &&
	    !pthread_create(&thread, NULL, let_fork_go_on, &m)) {
		store_in_child(&h.scene);
		pthread_join(thread, NULL);
	}
	s->skip = h.scene.skip;
	s->tries = h.scene.tries;
	s->violations = h.scene.violations;
	close(m.child);
	close(m.uffd);
	huge_end(&h);
}

/*
 * futex: the kernel tells of an owner that has ended, with a store that waits for
 * the handler. If it may not wait, the mutex is lost.
 */
static void scenario_futex(struct scene *s)
{
	pthread_mutex_t *mutex = (void *)scene_addr(s);
	struct memfd_event ev;
	struct writer w;

	close(s->nfd);
	s->nfd = sys_memfd_notify(s->fd, MEMFD_NOTIFY_KERNEL);
	if (s->nfd < 0 || !owner_ends(&w, s->fd, s->nfd, THE_PAGE, mutex))
		return;
	if (read_event(s->nfd, &ev) && ev.cookie)
		resolve(s->nfd, ev.cookie, MEMFD_RESOLVE_ALLOW);
	s->tries += writer_reap(&w, LONG_MS);
	unprotect_pages(s->fd, 0, 0);
	s->violations += pthread_mutex_trylock(mutex) != EOWNERDEAD;
	writer_free(&w);
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
HOOK(set_ptes_read, "set_ptes", NULL, 0, 1);
HOOK(wp_recheck, "wp_recheck", "fault", 6000, 60);
HOOK(pte_mprotect, "pte", NULL, 0, 1);
HOOK(pte_migrate, "pte", NULL, 0, 400);
HOOK(pte_numa, "pte", NULL, 0, 8);
HOOK(pmd, "pmd", NULL, 0, 1);
HOOK(pmd_mprotect, "pmd", NULL, 0, 1);
HOOK(pmd_migrate, "pmd", NULL, 0, 1);
HOOK(pmd_numa, "pmd", NULL, 0, 8);
HOOK(huge, "huge", NULL, 0, 1);
HOOK(split, "split", NULL, 0, 1);
HOOK(zap, "zap", "split", 200000, 20);
HOOK(fork, "fork", NULL, 0, 1);
HOOK(flush, "flush", NULL, 0, 200);
HOOK(nested_flush, "nested_flush", "fault", 3000, 400);
HOOK(batched_flush, "batched_flush", NULL, 0, 400);
HOOK(pins, "pins", NULL, 0, 1);
HOOK(mark, "mark", NULL, 0, 1);
HOOK(blocks, "blocks", NULL, 0, 1);
HOOK(flight, "flight", "flight", 20000, 1);
HOOK(write, "write", NULL, 0, 1);
HOOK(punch, "punch", NULL, 0, 1);
HOOK(truncate, "truncate", NULL, 0, 1);
HOOK(splice, "splice", NULL, 0, 1);
HOOK(remote, "remote", "remote", 5000, 60);
HOOK(pin_folios, "pin_folios", NULL, 0, 1);
HOOK(got_pages, "got_pages", "remote", 800000, 1);
HOOK(fill_copy, "fill", NULL, 0, 1);
HOOK(fill_continue, "fill", NULL, 0, 1);
HOOK(futex, "futex", NULL, 0, 1);

static void debug_clear(const char *dir)
{
	char path[128];
	struct dirent *entry;
	DIR *list;

	snprintf(path, sizeof(path), MEMFD_DEBUG_DIR "/%s", dir);
	list = opendir(path);
	if (!list)
		return;
	while ((entry = readdir(list)))
		if (entry->d_name[0] != '.')
			debug_set(dir, entry->d_name, 0);
	closedir(list);
}

static void hooks_reset(void)
{
	debug_clear("disable");
	debug_clear("delay_us");
}

FIXTURE_SETUP(hook)
{
	struct scene *s = &self->scene;
	size_t size = NR_PAGES * page_size();

	if (access(MEMFD_DEBUG_DIR, F_OK))
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

/*
 * Page-table isolation flushes whenever the kernel is entered, if the processor has no
 * PCIDs (as in QEMU without KVM): hardly a stale entry lives until somebody else
 * flushes, who has changed the page table and is not done yet.
 */
static bool flushes_at_entry(void)
{
	char cpus[65536];

	return read_file("/proc/cpuinfo", cpus, sizeof(cpus)) &&
	       strstr(cpus, " pti") && !strstr(cpus, " pcid");
}

TEST_F(hook, is_missed)
{
	if (flushes_at_entry() && (!strcmp(variant->hook, "nested_flush") ||
				   !strcmp(variant->hook, "batched_flush")))
		SKIP(return, "each entry of the kernel flushes");
	ASSERT_TRUE(debug_set("disable", variant->hook, 1));
	self->scene.end_ns = now_ns() + 100 * 1000000000ULL;
	variant->scenario(&self->scene);
	if (self->scene.skip)
		SKIP(return, "%s", self->scene.skip);
	EXPECT_LT(0, self->scene.violations)
		TH_LOG("%u tries without the hook, and nothing went wrong",
		       self->scene.tries);
}

/*
 * A writer that has asked, and is about to sleep, when the range is lifted:
 * it must see that, or it sleeps for ever. There is nothing to switch off.
 */
FIXTURE(window) { };

FIXTURE_SETUP(window)
{
	if (!debug_set("delay_us", "enqueue", 20000))
		SKIP(return, "no CONFIG_MEMFD_PROTECT_DEBUG");
}

FIXTURE_TEARDOWN_PARENT(window)
{
	hooks_reset();
}

static long store_byte(void *arg)
{
	*(volatile char *)arg = NEW_BYTE;
	return 1;
}

TEST_F(window, no_wakeup_is_lost)
{
	size_t page = page_size();
	struct writer w;
	int fd, nfd;
	char *map;

	fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	ASSERT_EQ(0, ftruncate(fd, page));
	map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	for (int i = 0; i < 12; i++) {
		nfd = sys_memfd_notify(fd, 0);
		ASSERT_LE(0, nfd);
		ASSERT_EQ(0, protect_pages(fd, 0, 1, MEMFD_PROTECT_WAIT));
		ASSERT_TRUE(writer_start(&w, nfd, store_byte, map));
		while (!w.out->started)
			usleep(100);
		usleep(i * 3000);
		/* One way or the other, before it sleeps, or after */
		if (i % 2)
			close(nfd);
		else
			EXPECT_EQ(0, unprotect_pages(fd, 0, 1));
		EXPECT_TRUE(writer_finishes(&w)) TH_LOG("round %d", i);
		EXPECT_EQ(0, w.out->sig);
		writer_free(&w);
		if (i % 2 == 0)
			close(nfd);
	}
}

int main(int argc, char **argv)
{
	int ret;

	need_memfd_protect();
	hooks_reset();
	ret = test_harness_run(argc, argv);
	hooks_reset();
	return ret;
}
