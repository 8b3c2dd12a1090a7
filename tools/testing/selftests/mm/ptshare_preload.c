// SPDX-License-Identifier: GPL-2.0-only
/*
 * Runs a program that knows nothing of shared page tables with them:
 *
 *   LD_PRELOAD=./ptshare_preload.so PROGRAM
 *
 * Every memfd that it makes gets MFD_SHARE_PGTABLES, or the flags of memfd_create(2) that
 * MEMFD_FLAGS in the environment has as a number. Shared mappings of a file
 * from a table's boundary on, where it leaves the address to the kernel, become as
 * long as whole tables, because others do not share. The program does not see
 * the rest: what it does to a whole mapping is done to all of it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define MFD_HUGETLB_FLAG	0x0004U
#define MFD_SHARE_PGTABLES	0x00200000U
#define TABLE_SIZE		(2UL << 20)
#define NR_SPANS		4096

static struct {
	char *start;
	size_t len;	/* as the program knows it */
} spans[NR_SPANS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static long raw(long nr, long a, long b, long c, long d, long e, long f)
{
	static long (*next)(long nr, ...);

	if (!next)
		next = dlsym(RTLD_NEXT, "syscall");
	return next(nr, a, b, c, d, e, f);
}

static size_t whole(size_t len)
{
	return (len + TABLE_SIZE - 1) & ~(TABLE_SIZE - 1);
}

static void remember(char *start, size_t len)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < NR_SPANS; i++) {
		if (!spans[i].len || spans[i].start == start) {
			spans[i].start = start;
			spans[i].len = len;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
}

/* The length to use for what the program takes for the whole of a mapping */
static size_t length_of(char *start, size_t len, int forget)
{
	size_t ret = len;

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < NR_SPANS; i++) {
		if (!spans[i].len || spans[i].start != start)
			continue;
		if (spans[i].len == len)
			ret = whole(len);
		if (forget)
			spans[i].len = 0;
		break;
	}
	pthread_mutex_unlock(&lock);
	return ret;
}

static unsigned long flags_to_add(void)
{
	const char *flags = getenv("MEMFD_FLAGS");

	return flags ? strtoul(flags, NULL, 0) : MFD_SHARE_PGTABLES;
}

long syscall(long nr, ...)
{
	long a[6];
	va_list ap;

	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (nr == SYS_memfd_create && !(a[1] & MFD_HUGETLB_FLAG))
		a[1] |= flags_to_add();
	return raw(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int memfd_create(const char *name, unsigned int flags)
{
	return syscall(SYS_memfd_create, (long)name, (long)flags, 0L, 0L, 0L, 0L);
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	int shared = (flags & MAP_TYPE) == MAP_SHARED ||
		     (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
	size_t use = len;
	char *map;

	if (fd >= 0 && shared && !addr && !(flags & MAP_FIXED) && len &&
	    !(offset % TABLE_SIZE))
		use = whole(len);
	map = (char *)raw(SYS_mmap, (long)addr, use, prot, flags, fd, offset);
	if (map != MAP_FAILED && use != len)
		remember(map, len);
	return map;
}

/* What mmap() is called with large file support */
void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
	__attribute__((alias("mmap")));

int munmap(void *addr, size_t len)
{
	return raw(SYS_munmap, (long)addr, length_of(addr, len, 1), 0, 0, 0, 0);
}

int mprotect(void *addr, size_t len, int prot)
{
	return raw(SYS_mprotect, (long)addr, length_of(addr, len, 0), prot, 0,
		   0, 0);
}
