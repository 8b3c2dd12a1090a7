// SPDX-License-Identifier: BSD-3-Clause
/*
 * --mode memfd: the cache is protected by file offset. One call covers every
 * mapping of every process, and write(2).
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/memfd.h>

#include "sga.h"

#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#endif
#ifndef __NR_memfd_notify
#define __NR_memfd_notify	549
#endif

#define EVENTS_PER_READ	64

static int memfd_protect(int fd, off_t offset, size_t length, int prot,
			 unsigned int flags)
{
	return syscall(__NR_memfd_protect, fd, offset, length, prot, flags);
}

static int memfd_notify(int fd, unsigned int flags)
{
	return syscall(__NR_memfd_notify, fd, flags);
}

static const char no_kernel[] =
	"this kernel has no memfd_protect (%s: %s).\n"
	"  It needs Linux 6.12 with the memfd_protect series and CONFIG_MEMFD_PROTECT=y.\n"
	"  \"make demo\" in the top directory builds one and runs this program in it;\n"
	"  \"sga --mode uffd\" and \"sga --mode mprotect\" run here, with what they lack";

/*
 * Where whole GiBs are mapped, processes that share page tables have one of them all
 * for each GiB. Then the cache is protected in a few stores, 2 MiB at a time.
 */
static int memfd_backend_create(struct sga *sga)
{
	int fd = memfd_create("sga", MFD_CLOEXEC | MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES);

	if (fd >= 0) {
		sga->map_unit = 1UL << 30;
		return fd;
	}
	fd = memfd_create("sga", MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (fd < 0 && errno == EINVAL)
		errx(2, no_kernel, "memfd_create(MFD_ALLOW_PROTECT)", strerror(errno));
	return fd;
}

static void memfd_backend_open(struct sga *sga)
{
	int fd = memfd_notify(sga->memfd, MEMFD_NOTIFY_NONBLOCK);

	if (fd < 0 && errno == ENOSYS)
		errx(2, no_kernel, "memfd_notify()", strerror(errno));
	if (fd < 0)
		err(1, "memfd_notify");
	sga->poll_fd[0] = fd;
	sga->nr_poll = 1;
}

static void memfd_backend_protect(struct sga *sga)
{
	if (memfd_protect(sga->memfd, 0, sga->nr_pages * SGA_PAGE_SIZE,
			  PROT_READ, MEMFD_PROTECT_WAIT))
		err(1, "memfd_protect(PROT_READ)");
}

static void memfd_backend_unprotect(struct sga *sga, size_t first, size_t count)
{
	if (memfd_protect(sga->memfd, first * SGA_PAGE_SIZE, count * SGA_PAGE_SIZE,
			  PROT_READ | PROT_WRITE, 0))
		err(1, "memfd_protect(PROT_READ | PROT_WRITE)");
}

/*
 * A store is reported as one 4 KiB page, a write(2) as its range. To allow an
 * event opens its range only. Where that is less than our pages, open these as
 * a whole, or the writer is stopped again at the other half.
 */
static void release(struct sga *sga, const struct memfd_event *event,
		    size_t first, size_t count)
{
	struct memfd_resolve allow = {
		.cookie = event->cookie,
		.action = MEMFD_RESOLVE_ALLOW,
	};

	if (event->offset % SGA_PAGE_SIZE || event->length % SGA_PAGE_SIZE) {
		memfd_backend_unprotect(sga, first, count);
		return;
	}
	/* ENOENT: the writer is gone, or our own unprotect was faster. */
	if (ioctl(sga->poll_fd[0], MEMFD_NOTIFY_RESOLVE, &allow) && errno != ENOENT)
		err(1, "MEMFD_NOTIFY_RESOLVE");
}

static void count_event(struct sga *sga, const struct memfd_event *event)
{
	int i;

	for (i = 0; i < sga->nr_clients; i++)
		if (sga->client[i].pid == event->pid)
			sga->client[i].wanted++;
}

static void handle_event(struct sga *sga, const struct memfd_event *event)
{
	size_t first = event->offset / SGA_PAGE_SIZE;
	size_t end = (event->offset + event->length + SGA_PAGE_SIZE - 1) / SGA_PAGE_SIZE;
	size_t page;

	if (!(event->flags & MEMFD_EVENT_F_WAITING))
		return;
	count_event(sga, event);
	for (page = first; page < end; page++)
		snapshot_want(sga, page);
	release(sga, event, first, end - first);
}

static void memfd_backend_wanted(struct sga *sga, int which)
{
	char buffer[EVENTS_PER_READ * sizeof(struct memfd_event)];
	ssize_t got, at;

	got = read(sga->poll_fd[which], buffer, sizeof(buffer));
	if (got < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return;
		err(1, "reading events");
	}
	/* A later kernel's records may be longer: step by their own length. */
	for (at = 0; at < got; ) {
		struct memfd_event event;

		memcpy(&event, buffer + at, sizeof(event));
		handle_event(sga, &event);
		at += event.len;
	}
}

/* The kernel's own count of sleeps, from the event fd's fdinfo. */
static unsigned long long memfd_backend_waits(struct sga *sga)
{
	unsigned long long waits;
	char path[64], line[128];
	bool found = false;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", sga->poll_fd[0]);
	info = fopen(path, "re");
	if (!info)
		err(1, "%s", path);
	while (!found && fgets(line, sizeof(line), info))
		found = sscanf(line, "waits: %llu", &waits) == 1;
	fclose(info);
	if (!found)
		errx(1, "%s: no line \"waits:\"", path);
	return waits;
}

const struct backend backend_memfd = {
	.name = "memfd",
	.cannot = "nothing left out: stores and write(2) of every process, one call",
	.sees_write = true,
	.create = memfd_backend_create,
	.open = memfd_backend_open,
	.protect = memfd_backend_protect,
	.unprotect = memfd_backend_unprotect,
	.wanted = memfd_backend_wanted,
	.waits = memfd_backend_waits,
};
