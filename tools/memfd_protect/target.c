// SPDX-License-Identifier: GPL-2.0-only
/*
 * How a memfd is named, and what can be wrong with it.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* PID:FD, nothing before, between or behind */
static bool parse_pid_fd(const char *name, int *pid, int *fd)
{
	char rest;

	return sscanf(name, "%d:%d%c", pid, fd, &rest) == 2 && *pid > 0 && *fd >= 0 &&
	       name[strspn(name, "0123456789:")] == '\0';
}

static int open_pid_fd(const char *name, int pid, int number)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	int fd, error;

	if (pidfd < 0) {
		bad_usage("%s: process %d: %s", name, pid, strerror(errno));
		return -1;
	}
	fd = syscall(SYS_pidfd_getfd, pidfd, number, 0);
	error = errno;
	close(pidfd);
	if (fd >= 0)
		return fd;
	if (error == EBADF)
		bad_usage("%s: process %d has no descriptor %d", name, pid, number);
	else if (error == EPERM)
		bad_usage("%s: you may not take descriptors of process %d (ptrace access)",
			  name, pid);
	else
		bad_usage("%s: %s", name, strerror(error));
	return -1;
}

/**
 * target_open() - open what was named on the command line
 * @target: Is filled.
 * @name: PID:FD or a path.
 * @writes: Whether protection is to be changed, for which it must be open for writing.
 *
 * Return: 0, or USAGE; the message is printed.
 */
int target_open(struct target *target, const char *name, bool writes)
{
	struct stat st;
	int pid, fd;

	target->name = name;
	if (parse_pid_fd(name, &pid, &fd)) {
		target->fd = open_pid_fd(name, pid, fd);
		if (target->fd < 0)
			return USAGE;
	} else {
		target->fd = open(name, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
		if (target->fd < 0)
			return bad_usage("%s: %s", name, strerror(errno));
	}
	if (fstat(target->fd, &st) || !S_ISREG(st.st_mode) ||
	    fcntl(target->fd, F_GET_SEALS) < 0) {
		close(target->fd);
		return bad_usage("%s: this is no memfd", name);
	}
	if (writes && (fcntl(target->fd, F_GETFL) & O_ACCMODE) == O_RDONLY) {
		close(target->fd);
		return bad_usage("%s: not open for writing", name);
	}
	target->size = st.st_size;
	return 0;
}

/* What errors of the two system calls mean here */
static int refused(const struct target *target, const char *what)
{
	const char *why;

	switch (errno) {
	case ENOSYS:
		why = "this kernel has no memfd_protect";
		break;
	case EOPNOTSUPP:
		why = "it was made without MFD_ALLOW_PROTECT";
		break;
	case EPERM:
		why = "it is sealed against that";
		break;
	case EBUSY:
		why = "somebody has its event fd, or pages of it are pinned";
		break;
	case ENXIO:
		why = "nobody has its event fd open, who could answer";
		break;
	default:
		why = strerror(errno);
	}
	fprintf(stderr, "memfdctl: %s: %s: %s\n", target->name, what, why);
	return FAILED;
}

/**
 * target_notify() - the event fd of a memfd
 * @target: The memfd.
 * @waits: Whether writers are going to wait. Then the kernel, which writes there for
 *	   read(2) and its kin, is to wait as well, and not to fail.
 *
 * Return: The fd, non-blocking; or -1, and the message is printed.
 */
int target_notify(const struct target *target, bool waits)
{
	int fd = -1;

	if (waits) {
		fd = memfd_notify(target->fd, MEMFD_NOTIFY_NONBLOCK | MEMFD_NOTIFY_KERNEL);
		if (fd >= 0 || errno != EPERM)
			waits = false;
	}
	if (fd < 0)
		fd = memfd_notify(target->fd, MEMFD_NOTIFY_NONBLOCK);
	if (fd >= 0 && waits)
		fprintf(stderr, "memfdctl: %s: without CAP_SYS_PTRACE, read(2) into it will fail\n",
			target->name);
	if (fd < 0)
		refused(target, "event fd");
	return fd;
}

/**
 * target_protect() - change the protection of a range
 * @target: The memfd.
 * @notify_fd: Its event fd, or -1.
 * @offset: First byte.
 * @length: Bytes, 0: all behind @offset.
 * @mode: MEMFD_PROTECT_*, or MODE_NONE to remove protection.
 *
 * Return: 0, or FAILED; the message is printed.
 */
int target_protect(const struct target *target, int notify_fd, uint64_t offset,
		   uint64_t length, int mode)
{
	int prot = mode == MODE_NONE ? PROT_READ | PROT_WRITE : PROT_READ;
	unsigned int flags = mode == MODE_NONE ? 0 : mode;
	int ret = notify_fd < 0 ?
		  memfd_protect(target->fd, offset, length, prot, flags) :
		  memfdp_protect(notify_fd, offset, length, prot, flags);

	return ret ? refused(target, mode == MODE_NONE ? "unprotect" : "protect") : 0;
}

static bool aligned(uint64_t value, const char *text, const char *what)
{
	uint64_t page = sysconf(_SC_PAGESIZE);

	if (value % page == 0)
		return true;
	bad_usage("%s: '%s' is no multiple of the page size, %llu", what, text,
		  (unsigned long long)page);
	return false;
}

/**
 * parse_range() - -o and -l
 * @offset_text: What was typed, or NULL: 0.
 * @length_text: What was typed, or NULL: to the end.
 * @offset: Out.
 * @length: Out, 0: to the end.
 *
 * Return: False if something is wrong; the message is printed.
 */
bool parse_range(const char *offset_text, const char *length_text, uint64_t *offset,
		 uint64_t *length)
{
	*offset = 0;
	*length = 0;
	if (offset_text && (!parse_size(offset_text, "-o", offset) ||
			    !aligned(*offset, offset_text, "-o")))
		return false;
	if (!length_text)
		return true;
	if (!parse_size(length_text, "-l", length) || !aligned(*length, length_text, "-l"))
		return false;
	if (*length && *length <= INT64_MAX - *offset)
		return true;
	bad_usage("-l: '%s' is %s", length_text, *length ? "too large" : "nothing");
	return false;
}
