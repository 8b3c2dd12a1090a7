// SPDX-License-Identifier: GPL-2.0-only
/*
 * First stores of threads and of processes at the same time, on processors of their own,
 * to a memfd that all of them map: whether twice as many do twice as much, and what a
 * plain memfd and userfaultfd do beside. While nothing is protected, while all is
 * logged, while the log is taken again and again, and while each store waits to be
 * allowed. userfaultfd's reader has one of its own for each process.
 *
 * Time is real, and that of QEMU: nothing is repeatable but what is far from 1.
 */
#include "uffd.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

#define MAX_WORKERS	4
#define ROUNDS		7
#define BATCH		64

/* Whose memory; what happens meanwhile */
enum how { SHARED, ORDINARY, PLAIN, UFFD, HOWS };
enum mode { NOTHING, LOGGED, TAKEN, WAITING };

static const char * const names[HOWS] = {
	[SHARED] = "sharing", [ORDINARY] = "ordinary tables",
	[PLAIN] = "plain memfd", [UFFD] = "userfaultfd",
};

/* What is measured: set before the workers start */
static struct {
	enum how how;
	enum mode mode;
	bool processes;
	bool tables;		/* workers use the same page tables, pages in turn */
	unsigned int workers;
	size_t size;		/* of the file */
} test;

static int file, nfd, ready[2], go[2], done[2];
static char *thread_map;	/* of all threads */

/* Of userfaultfd, one for all threads or one for each process; theirs at first */
static struct {
	int nr;
	struct pollfd fd[MAX_WORKERS];
} uffds;

/* What a worker says when it is ready */
struct greeting {
	pid_t pid;
	int uffd;
};

/* The pages of a worker: a part of the file, or every so manieth */
static void store_pages(char *map, unsigned int id, bool store)
{
	size_t part = test.size / test.workers;
	size_t at = test.tables ? id * PAGE : id * part;
	size_t end = test.tables ? test.size : at + part;
	size_t step = test.tables ? test.workers * PAGE : PAGE;

	for (; at < end; at += step) {
		if (store)
			*(volatile char *)(map + at) = 1;
		else
			(void)*(volatile char *)(map + at);
	}
}

/* Maps the file. Returns the descriptor of userfaultfd, or -1. */
static int map_file(char **map)
{
	int uffd;

	*map = map_shared(file, test.size);
	if (test.how != UFFD)
		return -1;
	uffd = test.mode == WAITING ? uffd_open(*map, test.size, UFFD_WAIT, O_NONBLOCK) :
				      uffd_open(*map, test.size, UFFD_ASYNC, 0);
	uffd_protect(uffd, *map, test.size, true);
	return uffd;
}

static void *worker(void *arg)
{
	struct greeting hello = { .pid = getpid(), .uffd = -1 };
	unsigned int id = (unsigned long)arg;
	char *map = thread_map, c = 0;

	run_on(id);
	if (!map)
		hello.uffd = map_file(&map);
	/* Then it is about the write bit alone */
	if (test.mode != NOTHING)
		store_pages(map, id, false);
	if (write(ready[1], &hello, sizeof(hello)) != sizeof(hello) ||
	    read(go[0], &c, 1) != 1)
		err(1, "pipe");
	store_pages(map, id, true);
	if (write(done[1], &c, 1) != 1)
		err(1, "pipe");
	return NULL;
}

/* What goes on beside them */

static volatile bool stop;
static unsigned long pages_served;

static void take_log(void)
{
	static struct memfd_range ranges[16384];
	struct memfd_scan scan = {
		.end = test.size, .ranges = (uintptr_t)ranges,
		.nr_ranges = sizeof(ranges) / sizeof(ranges[0]),
		.flags = MEMFD_SCAN_REPROTECT,
	};
	long nr = ioctl(nfd, MEMFD_NOTIFY_SCAN, &scan);

	if (nr < 0)
		err(1, "MEMFD_NOTIFY_SCAN");
	for (long i = 0; i < nr; i++)
		pages_served += ranges[i].length / PAGE;
}

static void take_log_at_times(void)
{
	take_log();
	usleep(500);
}

static void allow_events(void)
{
	struct memfd_resolve resolve = { .action = MEMFD_RESOLVE_ALLOW };
	struct pollfd pfd = { .fd = nfd, .events = POLLIN };
	struct memfd_event events[BATCH];
	long n;

	if (poll(&pfd, 1, 10) != 1)
		return;
	n = read(nfd, events, sizeof(events));
	if (n < 0)
		err(1, "read of the event fd");
	n /= sizeof(events[0]);
	for (long i = 0; i < n; i++) {
		resolve.cookie = events[i].cookie;
		if (ioctl(nfd, MEMFD_NOTIFY_RESOLVE, &resolve))
			err(1, "MEMFD_NOTIFY_RESOLVE");
	}
	pages_served += n;
}

static void allow_uffd_events(void)
{
	struct uffd_msg msgs[BATCH];

	if (poll(uffds.fd, uffds.nr, 10) < 1)
		return;
	for (int i = 0; i < uffds.nr; i++) {
		long n = read(uffds.fd[i].fd, msgs, sizeof(msgs));

		if (n < 0 && errno != EAGAIN)
			err(1, "read of userfaultfd");
		for (n = n < 0 ? 0 : n / sizeof(msgs[0]); n--; pages_served++)
			uffd_allow(uffds.fd[i].fd, &msgs[n]);
	}
}

static void *serve(void *arg)
{
	void (*something)(void) = arg;

	while (!stop)
		something();
	return NULL;
}

static void make_file(void)
{
	static const unsigned int flags[HOWS] = {
		[SHARED] = MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES,
		[ORDINARY] = MFD_ALLOW_PROTECT,
	};
	static char some[16 * PAGE];

	file = memfd(flags[test.how], test.size);
	for (size_t at = 0; at < test.size; at += sizeof(some))
		if (pwrite(file, some, sizeof(some), at) != sizeof(some))
			err(1, "pwrite");
}

static void start(pthread_t *threads, pid_t *pids)
{
	for (unsigned long i = 0; i < test.workers; i++) {
		if (!test.processes) {
			pthread_create(&threads[i], NULL, worker, (void *)i);
			continue;
		}
		pids[i] = fork();
		if (pids[i] < 0)
			err(1, "fork");
		if (!pids[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			worker((void *)i);
			_exit(0);
		}
	}
}

static void add_uffd(int fd)
{
	uffds.fd[uffds.nr++] = (struct pollfd){ .fd = fd, .events = POLLIN };
}

static void wait_ready(void)
{
	struct greeting hello;

	for (unsigned int i = 0; i < test.workers; i++) {
		int pidfd, fd;

		if (read(ready[0], &hello, sizeof(hello)) != sizeof(hello))
			err(1, "pipe");
		if (hello.uffd < 0)
			continue;
		pidfd = syscall(__NR_pidfd_open, hello.pid, 0);
		fd = syscall(__NR_pidfd_getfd, pidfd, hello.uffd, 0);
		if (fd < 0)
			err(1, "pidfd_getfd");
		close(pidfd);
		add_uffd(fd);
	}
}

static void wait_done(void)
{
	char c;

	for (unsigned int i = 0; i < test.workers; i++)
		if (read(done[0], &c, 1) != 1)
			err(1, "pipe");
}

static void close_uffds(void)
{
	while (uffds.nr)
		close(uffds.fd[--uffds.nr].fd);
}

static void join(pthread_t *threads, pid_t *pids)
{
	int status;

	for (unsigned int i = 0; i < test.workers; i++) {
		if (!test.processes)
			pthread_join(threads[i], NULL);
		else if (waitpid(pids[i], &status, 0) != pids[i] || status)
			errx(1, "a process failed");
	}
}

/* A log may be taken between a fault and the store, which is logged again then */
static bool right_number(unsigned long served, unsigned long pages)
{
	return test.mode == TAKEN ? served >= pages : served == pages;
}

/* Stores in a ms, of all workers together */
static double measure(void)
{
	static const unsigned int modes[] = {
		[LOGGED] = MEMFD_PROTECT_ASYNC, [TAKEN] = MEMFD_PROTECT_ASYNC,
		[WAITING] = MEMFD_PROTECT_WAIT,
	};
	static const char bytes[MAX_WORKERS];
	bool protected = test.mode && test.how < PLAIN;
	bool served = test.mode == WAITING || test.mode == TAKEN;
	void (*server)(void) = test.how == UFFD ? allow_uffd_events :
			       test.mode == WAITING ? allow_events : take_log_at_times;
	pthread_t threads[MAX_WORKERS], helper;
	pid_t pids[MAX_WORKERS];
	uint64_t ns;

	stop = false;
	pages_served = 0;
	make_file();
	thread_map = NULL;
	if (!test.processes) {
		int uffd = map_file(&thread_map);

		if (uffd >= 0)
			add_uffd(uffd);
	}
	nfd = protected ? notify(file) : -1;
	start(threads, pids);
	wait_ready();
	if (protected)
		protect(file, 0, test.size, modes[test.mode]);
	if (served)
		pthread_create(&helper, NULL, serve, server);
	ns = now_ns();
	if (write(go[1], bytes, test.workers) != test.workers)
		err(1, "pipe");
	wait_done();
	ns = now_ns() - ns;
	stop = true;
	if (served)
		pthread_join(helper, NULL);
	if (protected && test.mode != WAITING)
		take_log();
	if ((protected || served) && !right_number(pages_served, test.size / PAGE))
		errx(1, "%s: %lu pages of %lu", names[test.how], pages_served, test.size / PAGE);
	join(threads, pids);
	if (nfd >= 0)
		close(nfd);
	close_uffds();
	if (thread_map)
		munmap(thread_map, test.size);
	close(file);
	return test.size / PAGE * 1e6 / ns;
}

/* Of N workers; the speed-up is what they did through what one did in the same round */
struct measured {
	struct row *stores, *speedup;
};

static struct measured rows_of(enum how how, enum how theirs, const char *what)
{
	const char *against = theirs < HOWS ? names[theirs] : NULL;
	char variant[64];
	struct measured m;

	snprintf(variant, sizeof(variant), "%s, %s", names[how],
		 test.processes ? "processes" : "threads");
	m.stores = row(variant, test.workers, "stores/ms", against, "%s", what);
	m.speedup = test.workers == 1 ? NULL :
		    row(variant, test.workers, "times one", against, "%s", what);
	return m;
}

static void add_to(struct measured *m, bool ours, double value, double one)
{
	add(ours ? m->stores->ours : &m->stores->theirs, value);
	if (m->speedup)
		add(ours ? m->speedup->ours : &m->speedup->theirs, value / one);
}

static void measure_all(const char *what, enum how theirs, unsigned int rounds)
{
	static const unsigned int workers[] = { 1, 2, MAX_WORKERS };
	struct measured us[2][3];
	double one[HOWS], value;

	for (int n = 0; n < 3; n++)
		for (enum how how = SHARED; how <= ORDINARY; how++) {
			test.workers = workers[n];
			us[how][n] = rows_of(how, theirs, what);
		}
	for (unsigned int i = 0; i < rounds; i++)
		for (int n = 0; n < 3; n++) {
			test.workers = workers[n];
			for (test.how = SHARED; test.how <= ORDINARY; test.how++) {
				value = measure();
				one[test.how] = n ? one[test.how] : value;
				add_to(&us[test.how][n], true, value, one[test.how]);
			}
			if (theirs == HOWS)
				continue;
			test.how = theirs;
			value = measure();
			one[theirs] = n ? one[theirs] : value;
			add_to(&us[SHARED][n], false, value, one[theirs]);
			add_to(&us[ORDINARY][n], false, value, one[theirs]);
		}
}

int main(int argc, char **argv)
{
	unsigned int rounds;

	open_results(argc, argv);
	rounds = quick ? 1 : ROUNDS;
	if (pipe2(ready, O_CLOEXEC) || pipe2(go, O_CLOEXEC) || pipe2(done, O_CLOEXEC))
		err(1, "pipe");
	for (int processes = 0; processes < 2; processes++) {
		test.processes = processes;
		test.size = (quick ? 8 : 64) * MIB;
		test.mode = NOTHING;
		measure_all("first store, each a part", PLAIN, rounds);
		test.tables = true;
		measure_all("first store, pages in turn", PLAIN, rounds);
		test.tables = false;
		test.mode = LOGGED;
		measure_all("logged store", UFFD, rounds);
		test.mode = TAKEN;
		measure_all("logged store, the log is taken all the time", HOWS, rounds);
		test.mode = WAITING;
		test.size = 8 * MIB;
		measure_all("store that waits, one reader allows", UFFD, rounds);
	}
	return report("At the same time on several processors",
		      "N threads or processes store to each page of a memfd once, each to pages of its own: a part of the file, so that no two use the same page table, or pages in turn, so that those who share page tables, or an address space, use the same. \\\"Times one\\\": stores in the same time, as many times as one does. The guest's processors are threads of the host: more than the host has take turns.");
}
