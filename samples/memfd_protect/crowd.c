// SPDX-License-Identifier: BSD-3-Clause
/*
 * A protected memfd, and processes that write all of its pages: by stores, every fourth
 * one by pwrite(2), each process in another order.
 */
#define _GNU_SOURCE
#include "crowd.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#endif
#ifndef __NR_memfd_notify
#define __NR_memfd_notify	549
#endif

static long page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

/* Writes byte @number of each page. */
static void write_all(const struct crowd *crowd, unsigned int number)
{
	for (size_t i = 0; i < crowd->pages; i++) {
		/* All writers meet in the first page. */
		size_t page = (i * (2 * number + 1)) % crowd->pages;
		size_t offset = page * page_size() + number;

		if (page % 4 == 3) {
			if (pwrite(crowd->memfd, "x", 1, offset) != 1)
				err(1, "pwrite");
		} else {
			crowd->memory[offset] = 'x';
		}
	}
	_exit(0);
}

/**
 * crowd_make() - make a memfd, and protect it
 * @crowd: Is filled.
 * @pages: Pages of the memfd, a power of two so that each writer comes to all.
 *
 * Exits if something fails.
 */
void crowd_make(struct crowd *crowd, size_t pages)
{
	size_t size = pages * page_size();

	*crowd = (struct crowd){ .pages = pages };
	crowd->memfd = memfd_create("crowd", MFD_CLOEXEC | MFD_ALLOW_PROTECT);
	if (crowd->memfd < 0 || ftruncate(crowd->memfd, size))
		err(1, "memfd_create(MFD_ALLOW_PROTECT): does this kernel have memfd_protect?");
	crowd->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, crowd->memfd, 0);
	if (crowd->memory == MAP_FAILED)
		err(1, "mmap");
	crowd->notify = syscall(__NR_memfd_notify, crowd->memfd, MEMFD_NOTIFY_NONBLOCK);
	if (crowd->notify < 0)
		err(1, "memfd_notify");
	if (syscall(__NR_memfd_protect, crowd->memfd, 0, size, PROT_READ, MEMFD_PROTECT_WAIT))
		err(1, "memfd_protect");
}

static void start_writers(struct crowd **crowds, size_t nr, struct crowd *crowd,
			  unsigned int writers)
{
	crowd->writers = writers;
	crowd->children = calloc(writers, sizeof(*crowd->children));
	if (!crowd->children)
		err(1, "writers");
	for (unsigned int i = 0; i < writers; i++) {
		crowd->children[i] = fork();
		if (crowd->children[i] < 0)
			err(1, "fork");
		if (crowd->children[i])
			continue;
		for (size_t other = 0; other < nr; other++)
			close(crowds[other]->notify);
		write_all(crowd, i);
	}
}

/**
 * crowd_start() - let processes write memfds
 * @crowds: From crowd_make(), all that there are: no child may keep an event fd, or
 *	    closing it here would not be the last time.
 * @nr: How many.
 * @writers: Processes for each.
 *
 * Exits if something fails.
 */
void crowd_start(struct crowd **crowds, size_t nr, unsigned int writers)
{
	for (size_t i = 0; i < nr; i++)
		start_writers(crowds, nr, crowds[i], writers);
}

/**
 * crowd_handle() - allow what an event is about
 * @crowd: Whose event it is.
 * @event: The event.
 *
 * Return: False if somebody else has done so before.
 */
bool crowd_handle(struct crowd *crowd, const struct memfd_event *event)
{
	struct memfd_resolve allow = {
		.cookie = event->cookie,
		.action = MEMFD_RESOLVE_ALLOW,
	};

	__atomic_add_fetch(&crowd->events, 1, __ATOMIC_RELAXED);
	if (!event->cookie)
		return false;
	if (!ioctl(crowd->notify, MEMFD_NOTIFY_RESOLVE, &allow))
		return true;
	/* The writer may have been killed, or the range unprotected. */
	if (errno != ENOENT)
		err(1, "MEMFD_NOTIFY_RESOLVE");
	return false;
}

/**
 * crowd_has_ended() - whether all writers have
 * @crowd: The crowd. Its children are waited for, without blocking.
 *
 * Exits if one of them has failed.
 *
 * Return: True if so.
 */
bool crowd_has_ended(const struct crowd *crowd)
{
	bool all = true;
	int status;

	for (unsigned int i = 0; i < crowd->writers; i++) {
		if (!crowd->children[i])
			continue;
		if (waitpid(crowd->children[i], &status, WNOHANG) == 0) {
			all = false;
			continue;
		}
		crowd->children[i] = 0;
		if (status)
			errx(1, "a writer ended with status %#x", status);
	}
	return all;
}

/**
 * crowd_check() - exit unless each writer has written each page
 * @crowd: The crowd, which has ended.
 */
void crowd_check(const struct crowd *crowd)
{
	for (size_t page = 0; page < crowd->pages; page++)
		for (unsigned int i = 0; i < crowd->writers; i++)
			if (crowd->memory[page * page_size() + i] != 'x')
				errx(1, "page %zu lacks what writer %u wrote", page, i);
}

/**
 * number_argument() - a number from the command line
 * @argc: Of main().
 * @argv: Of main().
 * @index: Which argument.
 * @value: If it is not there.
 * @most: The largest that is allowed; the smallest is 1.
 *
 * Exits with status 2 if it is wrong.
 */
unsigned int number_argument(int argc, char **argv, int index, unsigned int value,
			     unsigned int most)
{
	unsigned long number;
	char *end;

	if (argc <= index)
		return value;
	number = strtoul(argv[index], &end, 10);
	if (end == argv[index] || *end || number < 1 || number > most)
		errx(2, "'%s' is no number from 1 to %u", argv[index], most);
	return number;
}
