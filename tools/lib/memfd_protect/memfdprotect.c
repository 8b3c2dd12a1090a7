// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The system calls, and what needs one call of them.
 */
#define _GNU_SOURCE
#include "memfdprotect.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Numbers for 64-bit x86, the only architecture so far. Others have none: ENOSYS. */
#if defined(__x86_64__) && !defined(__ILP32__)
#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#endif
#ifndef __NR_memfd_notify
#define __NR_memfd_notify	549
#endif
#endif
#ifndef __NR_memfd_protect
#define __NR_memfd_protect	(-1)
#define __NR_memfd_notify	(-1)
#endif

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#define MFD_EXEC		0x0010U
#endif

#define ALL_MODES	(MEMFD_FEATURE_WAIT | MEMFD_FEATURE_ASYNC | MEMFD_FEATURE_DENY)

int memfd_protect(int fd, off_t offset, size_t length, int prot,
		  unsigned int flags)
{
	return syscall(__NR_memfd_protect, fd, offset, length, prot, flags);
}

int memfd_notify(int fd, unsigned int flags)
{
	return syscall(__NR_memfd_notify, fd, flags);
}

int memfdp_features(uint64_t *features)
{
	int bits = memfd_notify(-1, MEMFD_NOTIFY_QUERY);

	/* Another kernel may have another system call of that number. */
	if (bits < 0 || (bits & ALL_MODES) != ALL_MODES) {
		errno = ENOSYS;
		return -1;
	}
	*features = bits;
	return 0;
}

int memfdp_create(const char *name, uint64_t size, unsigned int flags)
{
	uint64_t features;
	int fd, error;

	if (memfdp_features(&features))
		return -1;
	if (!(features & MEMFD_FEATURE_SHARE_PGTABLES))
		flags &= ~MFD_SHARE_PGTABLES;
	if (size > INT64_MAX) {
		errno = EFBIG;
		return -1;
	}
	flags |= MFD_ALLOW_PROTECT | MFD_CLOEXEC;
	if (!(flags & (MFD_NOEXEC_SEAL | MFD_EXEC | MFD_HUGETLB)))
		flags |= MFD_NOEXEC_SEAL;
	fd = syscall(__NR_memfd_create, name, flags);
	if (fd < 0)
		return -1;
	if (!ftruncate(fd, size))
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

int memfdp_resolve(int notify_fd, uint64_t cookie, bool allow)
{
	struct memfd_resolve resolve = {
		.cookie = cookie,
		.action = allow ? MEMFD_RESOLVE_ALLOW : MEMFD_RESOLVE_DENY,
	};

	return ioctl(notify_fd, MEMFD_NOTIFY_RESOLVE, &resolve);
}

int memfdp_protect(int notify_fd, off_t offset, size_t length, int prot,
		   unsigned int flags)
{
	struct memfd_protect_range range = {
		.offset = offset,
		.length = length,
		.prot = prot,
		.flags = flags,
	};

	return ioctl(notify_fd, MEMFD_NOTIFY_PROTECT, &range);
}
