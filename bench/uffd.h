/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What userfaultfd has in place of memfd_protect(): write protection of what one process
 * maps.
 */
#ifndef BENCH_UFFD_H
#define BENCH_UFFD_H

#include "bench.h"

#include <linux/userfaultfd.h>

/* Stores wait until a reader has allowed them */
#define UFFD_WAIT	UFFD_FEATURE_WP_HUGETLBFS_SHMEM
/* Stores are noted in the page tables */
#define UFFD_ASYNC	(UFFD_WAIT | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

/* Nothing is protected yet. @flags: those of open(2) */
static inline int uffd_open(char *map, size_t size, uint64_t features, int flags)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { (uintptr_t)map, size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | flags);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		err(1, "userfaultfd");
	return uffd;
}

static inline void uffd_protect(int uffd, char *map, size_t size, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)map, size },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		err(1, "UFFDIO_WRITEPROTECT");
}

/* Lets those go on who wait for the page. */
static inline void uffd_allow(int uffd, const struct uffd_msg *msg)
{
	uffd_protect(uffd, (char *)(uintptr_t)(msg->arg.pagefault.address & -PAGE), PAGE,
		     false);
}

#endif /* BENCH_UFFD_H */
