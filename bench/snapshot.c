// SPDX-License-Identifier: GPL-2.0-only
/*
 * A copy of a cache as it is at one moment, while processes go on to change it: how long
 * a change takes at most, and how many there are meanwhile. By memfd_protect(WAIT);
 * by stopping all until all is copied; by userfaultfd in each process; and by fork() of
 * one process that has the cache in private memory, and threads.
 *
 * The writer has a processor, and so has the copier, which is as busy before the
 * snapshot, with nothing. A guest that counts instructions executes one processor at
 * a time, until it sleeps or pauses: so both pause after each small piece of work, and
 * take turns. What the kernel does for one of them the other waits for, as it would
 * not on a real machine: stalls are at most what is said here. Others map the cache
 * and sleep. Copied pages are checked not to be from after the moment.
 */
#include "uffd.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>

#define WRITERS		1	/* each with a processor of its own */
#define PROCESSES	8
#define BATCH		8	/* pages that are let go at once, if nobody wants them before */
#define EVENTS		64
#define BEFORE_NS	100000000ULL
#define PIECE		256	/* bytes between two turns */
#define WORK_US		25	/* of a writer that does more than to change pages */

enum how { SHARED, ORDINARY, STOP, UFFD, FORK, HOWS };
enum phase { WARM_UP, BEFORE, DURING, AFTER, END };

struct writer {
	unsigned long changes[END];
	uint64_t longest[END];	/* ns that a change took */
	bool stopped;
};

/* All processes see it */
static struct {
	enum phase phase;
	unsigned int moment;	/* 1 from the moment of the snapshot on */
	unsigned int gate;	/* closed: 1 */
	unsigned int ready;	/* processes */
	int uffd[PROCESSES];
	struct writer writers[WRITERS];
} *common;

static enum how how;
static unsigned int work_us;	/* what a writer does before each change */
static size_t size = GIB;
static char *cache, *copy;

/* The other processor's turn */
static void take_turns(void)
{
	asm volatile("pause");
}

/* Something that has nothing to do with the cache: 500 instructions a microsecond */
static void work(void)
{
	for (unsigned int i = 0; i < 2 * work_us; i++) {
		uint64_t count = 250 / 2;

		asm volatile("1: dec %0; jnz 1b" : "+r" (count));
		take_turns();
	}
}

/* Cells of a page: counters, and the moment of the last change */
static void change(uint64_t *random)
{
	volatile unsigned int *page;

	*random = *random * 6364136223846793005ULL + 1442695040888963407ULL;
	page = (unsigned int *)(cache + (*random >> 33) % (size / PAGE) * PAGE);
	page[1] = __atomic_load_n(&common->moment, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 64; i++)
		page[16 * i]++;
}

static void wait_at_gate(struct writer *w)
{
	w->stopped = true;
	while (__atomic_load_n(&common->gate, __ATOMIC_SEQ_CST))
		syscall(__NR_futex, &common->gate, FUTEX_WAIT, 1, NULL, NULL, 0);
	w->stopped = false;
}

static enum phase phase_now(void)
{
	return __atomic_load_n(&common->phase, __ATOMIC_SEQ_CST);
}

static void write_until_end(unsigned int i)
{
	struct writer *w = &common->writers[i];
	uint64_t random = i + 1, begin, took;
	enum phase at_start, at_end;

	run_on(1 + i);
	while ((at_start = phase_now()) != END) {
		begin = now_ns();
		if (__atomic_load_n(&common->gate, __ATOMIC_SEQ_CST))
			wait_at_gate(w);
		work();
		change(&random);
		take_turns();
		took = now_ns() - begin;
		at_end = phase_now();
		if (at_start == DURING)
			at_end = DURING;
		if (at_end == END)
			break;
		w->changes[at_end]++;
		if (took > w->longest[at_end])
			w->longest[at_end] = took;
	}
}

/* What the copier has to do for each page */
static unsigned char *copied;

static void copy_page(size_t page)
{
	if (copied[page])
		return;
	for (size_t at = page * PAGE; at < (page + 1) * PAGE; at += PIECE) {
		memcpy(copy + at, cache + at, PIECE);
		take_turns();
	}
	copied[page] = 1;
}

static int file, nfd, uffds[PROCESSES];

static void copy_what_memfd_events_tell(void)
{
	struct memfd_resolve resolve = { .action = MEMFD_RESOLVE_ALLOW };
	struct memfd_event events[EVENTS];
	long n = read(nfd, events, sizeof(events));

	for (long i = 0; i < n / (long)sizeof(events[0]); i++) {
		for (size_t at = 0; at < events[i].length; at += PAGE)
			copy_page((events[i].offset + at) / PAGE);
		resolve.cookie = events[i].cookie;
		if (ioctl(nfd, MEMFD_NOTIFY_RESOLVE, &resolve) && errno != ENOENT)
			err(1, "MEMFD_NOTIFY_RESOLVE");
	}
}

static void uffd_protect_all(size_t at, size_t length, bool on)
{
	for (int i = 0; i < PROCESSES; i++)
		uffd_protect(uffds[i], cache + at, length, on);
}

static void copy_what_uffds_tell(void)
{
	struct uffd_msg msgs[EVENTS];

	for (int i = 0; i < WRITERS; i++) {
		long n = read(uffds[i], msgs, sizeof(msgs));

		for (long j = 0; j < n / (long)sizeof(msgs[0]); j++) {
			size_t at = (msgs[j].arg.pagefault.address & -PAGE) - (uintptr_t)cache;

			copy_page(at / PAGE);
			uffd_protect_all(at, PAGE, false);
		}
	}
}

/* In order, and what writers wait for in between */
static void copy_protected(void)
{
	for (size_t page = 0; page < size / PAGE; page += BATCH) {
		for (size_t i = page; i < page + BATCH; i++) {
			if (how == UFFD)
				copy_what_uffds_tell();
			else
				copy_what_memfd_events_tell();
			copy_page(i);
		}
		if (how == UFFD)
			uffd_protect_all(page * PAGE, BATCH * PAGE, false);
		else
			unprotect(file, page * PAGE, BATCH * PAGE);
	}
}

static void copy_all(void)
{
	for (size_t page = 0; page < size / PAGE; page++)
		copy_page(page);
}

static void stop_writers(void)
{
	__atomic_store_n(&common->gate, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < WRITERS; i++)
		while (!*(volatile bool *)&common->writers[i].stopped)
			take_turns();
}

static void let_writers_go(void)
{
	__atomic_store_n(&common->gate, 0, __ATOMIC_SEQ_CST);
	syscall(__NR_futex, &common->gate, FUTEX_WAKE, WRITERS, NULL, NULL, 0);
}

static void moment(void)
{
	__atomic_store_n(&common->moment, 1, __ATOMIC_SEQ_CST);
}

static void fork_and_copy(void)
{
	pid_t pid = fork();

	if (!pid) {
		copy_all();
		_exit(0);
	}
	moment();
	if (waitpid(pid, NULL, 0) != pid)
		err(1, "fork");
}

static void take_snapshot(uint64_t *protected_ns)
{
	uint64_t begin = now_ns();

	switch (how) {
	case SHARED:
	case ORDINARY:
		protect(file, 0, size, MEMFD_PROTECT_WAIT);
		*protected_ns = now_ns() - begin;
		moment();
		copy_protected();
		break;
	case UFFD:
		uffd_protect_all(0, size, true);
		*protected_ns = now_ns() - begin;
		moment();
		copy_protected();
		break;
	case STOP:
		stop_writers();
		*protected_ns = now_ns() - begin;
		moment();
		copy_all();
		let_writers_go();
		break;
	case FORK:
		fork_and_copy();
		break;
	default:
		break;
	}
}

static void set_phase(enum phase phase)
{
	__atomic_store_n(&common->phase, phase, __ATOMIC_SEQ_CST);
}

static void spin_ns(uint64_t ns)
{
	uint64_t end = now_ns() + ns;

	while (now_ns() < end)
		for (int i = 0; i < 100; i++)
			if (i % 10 == 0)
				take_turns();
}

static void check_copy(void)
{
	for (size_t page = 0; page < size / PAGE; page++)
		if (!copied[page] || ((unsigned int *)(copy + page * PAGE))[1])
			errx(1, "page %zu is not of the moment", page);
}

static pid_t pids[PROCESSES];
static pthread_t threads[WRITERS];

static void *writer_thread(void *arg)
{
	write_until_end((unsigned long)arg);
	return NULL;
}

static void process(unsigned int i)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	write_pages(cache, size, PAGE);
	if (how == UFFD)
		common->uffd[i] = uffd_open(cache, size, UFFD_WAIT, O_NONBLOCK);
	__atomic_fetch_add(&common->ready, 1, __ATOMIC_SEQ_CST);
	if (i < WRITERS)
		write_until_end(i);
	else
		pause();
	_exit(0);
}

static void start_processes(void)
{
	for (unsigned int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			err(1, "fork");
		if (!pids[i])
			process(i);
	}
	while (__atomic_load_n(&common->ready, __ATOMIC_SEQ_CST) < PROCESSES)
		usleep(1000);
	for (unsigned int i = 0; how == UFFD && i < PROCESSES; i++) {
		int pidfd = syscall(__NR_pidfd_open, pids[i], 0);

		uffds[i] = syscall(__NR_pidfd_getfd, pidfd, common->uffd[i], 0);
		if (uffds[i] < 0)
			err(1, "pidfd_getfd");
		close(pidfd);
	}
}

static void end_processes(void)
{
	for (unsigned int i = 0; i < PROCESSES; i++) {
		if (i >= WRITERS)
			kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
		if (how == UFFD)
			close(uffds[i]);
	}
}

static void start_writers(void)
{
	if (how != FORK) {
		start_processes();
		return;
	}
	write_pages(cache, size, PAGE);
	for (unsigned long i = 0; i < WRITERS; i++)
		if (pthread_create(&threads[i], NULL, writer_thread, (void *)i))
			errx(1, "pthread_create");
}

static void end_writers(void)
{
	set_phase(END);
	if (how != FORK) {
		end_processes();
		return;
	}
	for (int i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
}

static void make_cache(void)
{
	static const unsigned int flags[HOWS] = {
		[SHARED] = MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES,
		[ORDINARY] = MFD_ALLOW_PROTECT,
	};

	if (how == FORK) {
		cache = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (cache == MAP_FAILED || madvise(cache, size, MADV_NOHUGEPAGE))
			err(1, "mmap");
		return;
	}
	file = memfd(flags[how], size);
	cache = map_shared(file, size);
	write_pages(cache, size, PAGE);
	if (flags[how])
		nfd = syscall(__NR_memfd_notify, file, MEMFD_NOTIFY_NONBLOCK);
	if (nfd < 0)
		err(1, "memfd_notify");
}

static void free_cache(void)
{
	munmap(cache, size);
	if (how == FORK)
		return;
	close(file);
	if (how == SHARED || how == ORDINARY)
		close(nfd);
}

struct outcome {
	struct series stall, kept, copied, protect, before;
};

static uint64_t longest(enum phase phase)
{
	uint64_t ns = 0;

	for (int i = 0; i < WRITERS; i++)
		if (common->writers[i].longest[phase] > ns)
			ns = common->writers[i].longest[phase];
	return ns;
}

static unsigned long changes(enum phase phase)
{
	unsigned long sum = 0;

	for (int i = 0; i < WRITERS; i++)
		sum += common->writers[i].changes[phase];
	return sum;
}

static void measure(enum how which, struct outcome *out)
{
	uint64_t begin, before, during, protected_ns = 0;

	how = which;
	memset(common, 0, sizeof(*common));
	memset(copied, 0, size / PAGE);
	make_cache();
	start_writers();
	spin_ns(BEFORE_NS / 10);
	begin = now_ns();
	set_phase(BEFORE);
	spin_ns(BEFORE_NS);
	before = now_ns() - begin;
	begin = now_ns();
	set_phase(DURING);
	take_snapshot(&protected_ns);
	during = now_ns() - begin;
	set_phase(AFTER);
	spin_ns(BEFORE_NS / 10);
	end_writers();
	check_copy();
	free_cache();
	add(&out->stall, longest(DURING) / 1e3);
	add(&out->before, longest(BEFORE) / 1e3);
	add(&out->copied, during / 1e3);
	add(&out->protect, protected_ns / 1e3);
	add(&out->kept, 100.0 * changes(DURING) / during * before / changes(BEFORE));
}

static const char * const names[HOWS] = {
	"sharing", "ordinary tables", "stop and copy", "userfaultfd in each", "fork of a private copy",
};

/* Both of ours beside all of theirs */
static void compare_with(const struct outcome *outcomes, const char *what, const char *unit,
			 size_t series, enum rule rule, double goal)
{
	for (enum how ours = SHARED; ours <= ORDINARY; ours++)
		for (enum how theirs = STOP; theirs < HOWS; theirs++) {
			struct row *r = row(names[ours], PROCESSES, unit, names[theirs], "%s%s",
					    what, work_us ? ", other work between" : "");

			*r->ours = *(struct series *)((char *)&outcomes[ours] + series);
			r->theirs = *(struct series *)((char *)&outcomes[theirs] + series);
			if (theirs == STOP && rule)
				with_goal(r, rule, goal);
		}
}

static void measure_all(unsigned int us)
{
	static struct outcome outcomes[HOWS];

	work_us = us;
	memset(outcomes, 0, sizeof(outcomes));
	for (enum how which = 0; which < HOWS; which++)
		measure(which, &outcomes[which]);
	compare_with(outcomes, "longest change while the snapshot is taken", "us",
		     offsetof(struct outcome, stall), RATIO_AT_MOST, 0.05);
	compare_with(outcomes, "longest change before it", "us",
		     offsetof(struct outcome, before), NO_GOAL, 0);
	compare_with(outcomes, "changes that go on meanwhile", "% of before",
		     offsetof(struct outcome, kept), OURS_AT_LEAST, 50);
	compare_with(outcomes, "until all is copied", "us",
		     offsetof(struct outcome, copied), NO_GOAL, 0);
	compare_with(outcomes, "until all is protected, or stands still", "us",
		     offsetof(struct outcome, protect), NO_GOAL, 0);
}

static char *map_anonymous(size_t length)
{
	char *map = mmap(NULL, length, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (map == MAP_FAILED)
		err(1, "mmap");
	return map;
}

int main(int argc, char **argv)
{
	open_results(argc, argv);
	if (sysconf(_SC_NPROCESSORS_ONLN) <= WRITERS)
		errx(4, "needs %d processors", WRITERS + 1);
	if (quick)
		size /= 16;
	run_on(0);
	common = (void *)map_anonymous(sizeof(*common));
	copy = map_anonymous(size);
	copied = (void *)map_anonymous(size / PAGE);
	measure_all(0);
	measure_all(WORK_US);
	return report("Snapshot of a cache that is in use",
		      "1 GiB, mapped by 8 processes, of which one changes random pages, one every half a microsecond, or with other work of 25 us between two; another processor copies, and is as busy before, with nothing. For fork: a thread, and private memory. The processors take turns, so the time of each is half of the clock's, and work of the kernel for one is a stall of the other.");
}
