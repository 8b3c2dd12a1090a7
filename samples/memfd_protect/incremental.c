// SPDX-License-Identifier: BSD-3-Clause
/*
 * incremental - a base image and increments of memory that is in use.
 *
 * Client processes move money between accounts, a page each, all the time. The
 * parent keeps an image of the accounts: it copies all pages once, and then again
 * and again those that have changed since. After each increment the image is the
 * memory at one moment at which no transfer was half done, so all accounts
 * together hold what they held at the beginning.
 *
 * Where the modes come from and go to:
 *
 *   everything is ASYNC        writers go on, the log says where they were
 *   the gate is closed         no transfer is half done: this is the moment
 *     SCAN takes the log       these pages make the increment
 *     they become WAIT         and stay as they are until they are copied
 *   the gate is open           clients go on; who wants one of these pages waits
 *   copied: ASYNC, once        who waited goes on, and is logged for the next
 *                              increment. A second time would drop that entry.
 *
 * The base image is copied after everything has become ASYNC. It is not the memory of
 * one moment, but what changed behind the copy's back is in the first increment.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/memfd.h>

#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#endif
#ifndef __NR_memfd_notify
#define __NR_memfd_notify	549
#endif

#define PAGE		4096UL
#define ACCOUNTS	2048
#define MONEY		1000
#define CLIENTS		3
#define INCREMENTS	12
#define PAUSE_US	50000

struct account {
	atomic_long balance;
	long last[CLIENTS];	/* the last transfer of each client, by pwrite() */
	char rest[PAGE - sizeof(long) * (1 + CLIENTS)];
};

/* Not in the memfd: nobody is ever stopped here. */
struct control {
	pthread_rwlock_t gate;	/* held shared for the length of a transfer */
	atomic_bool stop;
};

static struct control *control;
static int memfd, notify;

static struct account image[ACCOUNTS];
static bool pending[ACCOUNTS];	/* WAIT, and not copied yet */
static bool dirty;		/* something was logged since the last scan */

static void transfer(struct account *accounts, int client, long number)
{
	size_t from = random() % ACCOUNTS, to = random() % ACCOUNTS;
	off_t last = to * PAGE + offsetof(struct account, last[client]);

	pthread_rwlock_rdlock(&control->gate);
	atomic_fetch_sub(&accounts[from].balance, 1);
	atomic_fetch_add(&accounts[to].balance, 1);
	if (number % 4 == 0 &&
	    pwrite(memfd, &number, sizeof(number), last) != sizeof(number))
		err(1, "client %d: pwrite", client);
	pthread_rwlock_unlock(&control->gate);
}

static void client_main(int client, pid_t parent)
{
	struct account *accounts;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	accounts = mmap(NULL, sizeof(image), PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (accounts == MAP_FAILED)
		err(1, "client %d: mmap", client);
	srandom(client);
	for (long number = 1; !atomic_load(&control->stop); number++) {
		transfer(accounts, client, number);
		usleep(100);
	}
	_exit(0);
}

static void create_control(void)
{
	pthread_rwlockattr_t attr;

	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (control == MAP_FAILED)
		err(1, "mmap");
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&control->gate, &attr);
}

static void create_accounts(void)
{
	struct account account = { .balance = MONEY };

	memfd = memfd_create("accounts", MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (memfd < 0)
		err(1, "memfd_create(MFD_ALLOW_PROTECT): does this kernel have memfd_protect?");
	for (size_t i = 0; i < ACCOUNTS; i++)
		if (pwrite(memfd, &account, PAGE, i * PAGE) != (ssize_t)PAGE)
			err(1, "filling the accounts");
}

static void protect(size_t first, size_t nr, unsigned int mode)
{
	/* EBUSY: a page is pinned for longer than usual. Nothing has changed. */
	while (syscall(__NR_memfd_protect, memfd, first * PAGE, nr * PAGE, PROT_READ, mode))
		if (errno != EBUSY)
			err(1, "memfd_protect");
}

/* pread() needs no mapping, and never waits. */
static void copy(size_t first, size_t nr)
{
	if (pread(memfd, &image[first], nr * PAGE, first * PAGE) != (ssize_t)(nr * PAGE))
		err(1, "pread");
}

/* Copies what is pending of these pages, and lets their writers go on. */
static void take(size_t first, size_t end)
{
	for (size_t next; first < end; first = next) {
		next = first + 1;
		if (!pending[first])
			continue;
		while (next < end && pending[next])
			next++;
		copy(first, next - first);
		memset(&pending[first], false, next - first);
		protect(first, next - first, MEMFD_PROTECT_ASYNC);
	}
}

/* Copies first what somebody waits for. Returns how many events there were. */
static unsigned int take_wanted(void)
{
	struct memfd_event event;
	unsigned int events = 0;

	while (read(notify, &event, sizeof(event)) == sizeof(event)) {
		size_t end = (event.offset + event.length) / PAGE;

		if (event.type == MEMFD_EVENT_DIRTY)
			dirty = true;
		if (!(event.flags & MEMFD_EVENT_F_WAITING))
			continue;
		/* No MEMFD_NOTIFY_RESOLVE: that would leave the pages unprotected. */
		take(event.offset / PAGE, end < ACCOUNTS ? end : ACCOUNTS);
		events++;
	}
	if (errno != EAGAIN)
		err(1, "reading events");
	return events;
}

static void wait_for_writes(void)
{
	struct pollfd pfd = { .fd = notify, .events = POLLIN };

	while (!dirty) {
		if (poll(&pfd, 1, -1) < 0)
			err(1, "poll");
		take_wanted();
	}
}

/* Takes the log; its pages are to stay as they are. Returns how many there are. */
static size_t stop_changed_pages(void)
{
	struct memfd_range range[64];
	struct memfd_scan scan = {
		.ranges = (uintptr_t)range,
		.nr_ranges = 64,
		.flags = MEMFD_SCAN_REPROTECT,
	};
	size_t pages = 0;
	int nr;

	dirty = false;	/* a record that is not read yet is withdrawn */
	do {
		nr = ioctl(notify, MEMFD_NOTIFY_SCAN, &scan);
		if (nr < 0)
			err(1, "MEMFD_NOTIFY_SCAN");
		for (int i = 0; i < nr; i++) {
			size_t first = range[i].offset / PAGE, count = range[i].length / PAGE;

			protect(first, count, MEMFD_PROTECT_WAIT);
			memset(&pending[first], true, count);
			pages += count;
		}
		scan.start = scan.walk_end;
	} while (nr == 64);
	return pages;
}

/* All money is there, whoever has it. */
static bool image_is_right(void)
{
	long sum = 0;

	for (size_t i = 0; i < ACCOUNTS; i++)
		sum += image[i].balance;
	return sum == (long)ACCOUNTS * MONEY;
}

static bool take_increment(int number)
{
	unsigned int events = 0;
	size_t pages;

	pthread_rwlock_wrlock(&control->gate);
	pages = stop_changed_pages();
	pthread_rwlock_unlock(&control->gate);

	for (size_t i = 0; i < ACCOUNTS; i++) {
		events += take_wanted();
		take(i, i + 1);
	}
	printf("increment %2d: %4zu pages, %3u of them wanted by somebody: %s\n", number, pages,
	       events, image_is_right() ? "right" : "WRONG");
	return image_is_right() && pages;
}

/* Nobody writes any more: after a last increment the image is the memory. */
static bool last_increment(void)
{
	static struct account now[ACCOUNTS];
	bool same;

	take(0, ACCOUNTS * !!stop_changed_pages());
	if (pread(memfd, now, sizeof(now), 0) != sizeof(now))
		err(1, "pread");
	same = !memcmp(image, now, sizeof(now));
	printf("at the end the image is %s\n", same ? "the memory" : "NOT the memory");
	return same;
}

int main(void)
{
	pid_t parent = getpid();
	bool right = true;
	int status;

	create_control();
	create_accounts();
	for (int i = 0; i < CLIENTS; i++) {
		pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (!pid)
			client_main(i, parent);
	}
	/* After fork(): a copy of it that a client has would keep it open. */
	notify = syscall(__NR_memfd_notify, memfd, MEMFD_NOTIFY_NONBLOCK);
	if (notify < 0)
		err(1, "memfd_notify");

	protect(0, ACCOUNTS, MEMFD_PROTECT_ASYNC);
	copy(0, ACCOUNTS);
	for (int i = 1; i <= INCREMENTS; i++) {
		wait_for_writes();
		usleep(PAUSE_US);
		right &= take_increment(i);
	}
	atomic_store(&control->stop, true);
	while (wait(&status) > 0)
		right &= !status;
	return !(last_increment() && right);
}
