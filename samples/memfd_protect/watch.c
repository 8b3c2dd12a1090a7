// SPDX-License-Identifier: BSD-3-Clause
/*
 * watch - the smallest useful handler of memfd_protect(2) events.
 *
 * A child stores to four pages of a memfd and writes a fifth with pwrite(2).
 * The parent has write-protected the file, is told of each attempt before it
 * happens, and allows it. sga.c is the larger example.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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

#define NR_PAGES	8

static void writer(int memfd, char *memory, long page_size)
{
	for (int i = 0; i < 4; i++)
		memory[i * page_size] = 'x';
	if (pwrite(memfd, "x", 1, 4 * page_size) != 1)
		err(1, "pwrite");
	_exit(0);
}

/* Tells of one event and lets its writers go on. */
static void handle(int notify, const struct memfd_event *event, const char *memory)
{
	struct memfd_resolve allow = {
		.cookie = event->cookie,
		.action = MEMFD_RESOLVE_ALLOW,
	};

	printf("process %d wants to change %llu bytes at %llu by a %s; there is now '%c'\n",
	       event->pid, event->length, event->offset,
	       event->type == MEMFD_EVENT_FAULT ? "store" : "system call",
	       memory[event->offset]);
	if (event->cookie && ioctl(notify, MEMFD_NOTIFY_RESOLVE, &allow) && errno != ENOENT)
		err(1, "MEMFD_NOTIFY_RESOLVE");
}

int main(void)
{
	long page_size = sysconf(_SC_PAGESIZE);
	size_t size = NR_PAGES * page_size;
	struct memfd_event event;
	struct pollfd pollfd;
	int memfd, notify;
	char *memory;
	pid_t child;

	memfd = memfd_create("watch", MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (memfd < 0 || ftruncate(memfd, size))
		err(1, "memfd_create(MFD_ALLOW_PROTECT): does this kernel have memfd_protect?");
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	memset(memory, '.', size);

	notify = syscall(__NR_memfd_notify, memfd, 0);
	if (notify < 0)
		err(1, "memfd_notify");
	if (syscall(__NR_memfd_protect, memfd, 0, size, PROT_READ, MEMFD_PROTECT_WAIT))
		err(1, "memfd_protect");

	child = fork();
	if (!child) {
		close(notify);	/* or it would outlive a parent that dies */
		writer(memfd, memory, page_size);
	}

	pollfd = (struct pollfd){ .fd = notify, .events = POLLIN };
	while (waitpid(child, NULL, WNOHANG) == 0) {
		if (poll(&pollfd, 1, 100) < 1)
			continue;
		if (read(notify, &event, sizeof(event)) == sizeof(event))
			handle(notify, &event, memory);
	}
	return 0;
}
