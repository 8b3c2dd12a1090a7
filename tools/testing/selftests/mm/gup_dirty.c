// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is written through a pin has to survive reclaim, even if the page was
 * clean when it was pinned and nobody marks it dirty afterwards.
 *
 * A page of a shared memory file that was first touched by a read has a clean
 * entry that is writable all the same. So has an anonymous page that a read has
 * brought back from swap, where its old contents are still. Each case makes such
 * a page, or has memfd_pin_folios() allocate one, writes it through a pin, lets
 * go of the pin, has the page reclaimed, and looks at it. It begins with two
 * units (pages, or huge pages) of which only the first is written: the second is
 * clean and tells whether reclaim has come that far.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/memfd.h>
#include <linux/udmabuf.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "../../../include/io_uring/mini_liburing.h"
#include "../kselftest.h"
#include "vm_util.h"

#define SHMEM_ENABLED	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define OLD		'o'
#define NEW		'n'
#define ROUNDS		200	/* of reclaim, 5 ms each */

static size_t pagesize;
static int pagemap_fd;

/* An address that is aligned to @unit, with room for two of them */
static char *map_units(int fd, size_t unit)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	char *area = NULL;

	if (unit > pagesize) {
		area = mmap(NULL, 3 * unit, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (area == MAP_FAILED)
			return NULL;
		area = (char *)(((uintptr_t)area + unit - 1) & ~(unit - 1));
		flags |= MAP_FIXED;
	}
	area = mmap(area, 2 * unit, PROT_READ | PROT_WRITE, flags, fd, 0);
	return area == MAP_FAILED ? NULL : area;
}

static int new_memfd(size_t size)
{
	int fd = syscall(__NR_memfd_create, "gup_dirty", MFD_ALLOW_SEALING);

	if (fd >= 0 && ftruncate(fd, size)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static bool is_filled(const char *mem, size_t size, char with)
{
	for (size_t i = 0; i < size; i++)
		if (mem[i] != with)
			return false;
	return true;
}

/* True if no page of the unit is in memory any more */
static bool is_reclaimed(char *mem, size_t unit)
{
	unsigned char *vec = malloc(unit / pagesize);
	bool all = vec && !mincore(mem, unit, vec);

	for (size_t i = 0; all && i < unit / pagesize; i++)
		all = !(vec[i] & 1);
	free(vec);
	return all;
}

/*
 * Without swap only the second unit can go. It may take several rounds: pages
 * may not be on the LRU yet, and what is written to swap goes when it is written.
 */
static bool reclaim(char *mem, size_t unit)
{
	bool gone = false;

	for (int i = 0; i < ROUNDS && !gone; i++) {
		madvise(mem, 2 * unit, MADV_PAGEOUT);
		usleep(5000);
		gone = is_reclaimed(mem + unit, unit) &&
		       (is_reclaimed(mem, unit) || i > ROUNDS / 10);
	}
	return gone;
}

static void report(char *mem, size_t unit, const char *what)
{
	if (!is_filled(mem, unit, NEW))
		ksft_test_result_fail("%s: not written\n", what);
	else if (!reclaim(mem, unit))
		ksft_test_result_skip("%s: nothing was reclaimed\n", what);
	else
		ksft_test_result(is_filled(mem, unit, NEW),
				 "%s: the data is still there\n", what);
}

static long read_fixed(struct io_uring *ring, int fd, char *mem, size_t size)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int ret;

	if (!sqe)
		return -EBUSY;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ_FIXED;
	sqe->fd = fd;
	sqe->addr = (unsigned long)mem;
	sqe->len = size;
	ret = io_uring_submit(ring);
	if (ret < 0)
		return ret;
	ret = io_uring_wait_cqe(ring, &cqe);
	if (ret < 0)
		return ret;
	ret = cqe->res;
	io_uring_cqe_seen(ring);
	return ret;
}

/* A registered buffer is pinned for writing, and never marked dirty */
static long write_by_uring(char *mem, size_t size)
{
	struct iovec iov = { mem, size };
	struct io_uring ring;
	int fd = new_memfd(size);
	char *src = map_units(fd, size);
	long ret;

	if (fd < 0 || !src)
		return -ENOMEM;
	memset(src, NEW, size);
	ret = io_uring_queue_init(1, &ring, 0);
	if (ret < 0)
		goto out;
	ret = io_uring_register_buffers(&ring, &iov, 1);
	if (!ret) {
		ret = read_fixed(&ring, fd, mem, size);
		/* At once, and not some time after close() */
		syscall(__NR_io_uring_register, ring.ring_fd,
			IORING_UNREGISTER_BUFFERS, NULL, 0);
	}
	io_uring_queue_exit(&ring);
out:
	munmap(src, 2 * size);
	close(fd);
	return ret;
}

static void write_and_report(char *mem, size_t unit, const char *what)
{
	long ret = write_by_uring(mem, unit);

	if (ret == (long)unit)
		report(mem, unit, what);
	else
		ksft_test_result_skip("%s: io_uring: %ld\n", what, ret);
}

static void read_units(char *mem, size_t unit)
{
	for (size_t i = 0; i < 2 * unit; i += pagesize)
		*(volatile char *)(mem + i);
}

static void test_memfd(void)
{
	const char *what = "memfd, read before";
	int fd = new_memfd(2 * pagesize);
	char *mem = map_units(fd, pagesize);

	if (fd < 0 || !mem) {
		ksft_test_result_fail("%s: no memfd: %m\n", what);
		return;
	}
	read_units(mem, pagesize);
	write_and_report(mem, pagesize, what);
	munmap(mem, 2 * pagesize);
	close(fd);
}

static void test_shared_anon(void)
{
	char *mem = mmap(NULL, 2 * pagesize, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	read_units(mem, pagesize);
	write_and_report(mem, pagesize, "shared anonymous memory, read before");
	munmap(mem, 2 * pagesize);
}

/* Sets what is in brackets, and returns what was */
static bool set_shmem_enabled(const char *to, char *was, size_t len)
{
	char text[256] = "", *from, *end;
	int fd = open(SHMEM_ENABLED, O_RDWR);
	bool done = false;

	if (fd < 0)
		return false;
	if (!was) {
		done = write(fd, to, strlen(to)) > 0;
	} else if (read(fd, text, sizeof(text) - 1) > 0) {
		from = strchr(text, '[');
		end = from ? strchr(from, ']') : NULL;
		if (end) {
			*end = 0;
			snprintf(was, len, "%s", from + 1);
			done = write(fd, to, strlen(to)) > 0;
		}
	}
	close(fd);
	return done;
}

/* kB of this process that huge entries of shared memory map */
static unsigned long huge_shmem_kb(void)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "r");
	unsigned long kb = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "ShmemPmdMapped: %lu", &kb) == 1)
			break;
	if (file)
		fclose(file);
	return kb;
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/* Not by a pin, but alike: small entries of a huge page, dirty, give way to a huge one */
static void collapse_and_report(char *mem, size_t unit, const char *what)
{
	mprotect(mem, pagesize, PROT_READ);
	read_units(mem, unit);
	mprotect(mem, pagesize, PROT_READ | PROT_WRITE);
	memset(mem, NEW, unit);
	if (madvise(mem, unit, MADV_COLLAPSE))
		ksft_test_result_skip("%s: MADV_COLLAPSE: %m\n", what);
	else
		report(mem, unit, what);
}

static void test_memfd_huge(void (*test)(char *mem, size_t unit, const char *what),
			    const char *what)
{
	size_t unit = read_pmd_pagesize();
	char was[32], *mem;
	int fd;

	if (!unit || !set_shmem_enabled("always", was, sizeof(was))) {
		ksft_test_result_skip("%s: no huge pages\n", what);
		return;
	}
	fd = new_memfd(2 * unit);
	mem = map_units(fd, unit);
	if (fd >= 0 && mem) {
		read_units(mem, unit);
		if (huge_shmem_kb() == 2 * unit / 1024)
			test(mem, unit, what);
		else
			ksft_test_result_skip("%s: small pages\n", what);
		munmap(mem, 2 * unit);
	} else {
		ksft_test_result_fail("%s: no memfd: %m\n", what);
	}
	close(fd);
	set_shmem_enabled(was, NULL, 0);
}

/* The swap slot is kept by a page that is in the swap cache, and clean */
static void test_swapped_anon(void)
{
	const char *what = "anonymous memory, read from swap";
	char *mem = map_units(-1, pagesize);
	bool swapped = false;

	memset(mem, OLD, 2 * pagesize);
	for (int i = 0; i < ROUNDS && !swapped; i++) {
		madvise(mem, 2 * pagesize, MADV_PAGEOUT);
		usleep(5000);
		swapped = pagemap_is_swapped(pagemap_fd, mem) &&
			  pagemap_is_swapped(pagemap_fd, mem + pagesize);
	}
	if (swapped) {
		read_units(mem, pagesize);
		write_and_report(mem, pagesize, what);
	} else {
		ksft_test_result_skip("%s: no swap\n", what);
	}
	munmap(mem, 2 * pagesize);
}

/* The writer is a mapping of the buffer: as a device, it marks nothing dirty */
static bool write_by_udmabuf(int memfd, size_t size)
{
	struct udmabuf_create create = { .memfd = memfd, .size = size };
	int dev = open("/dev/udmabuf", O_RDWR), buf;
	char *mem;

	if (dev < 0)
		return false;
	buf = ioctl(dev, UDMABUF_CREATE, &create);
	close(dev);
	if (buf < 0)
		return false;
	mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	close(buf);
	if (mem == MAP_FAILED)
		return false;
	memset(mem, NEW, size);
	munmap(mem, size);
	return true;
}

/* @touch: read the page before, or have memfd_pin_folios() allocate it */
static void test_udmabuf(bool touch)
{
	const char *what = touch ? "udmabuf, read before" : "udmabuf";
	int fd = new_memfd(2 * pagesize);
	char *mem = map_units(fd, pagesize);

	if (fd < 0 || !mem) {
		ksft_test_result_fail("%s: no memfd: %m\n", what);
		return;
	}
	if (touch)
		read_units(mem, pagesize);
	fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
	if (write_by_udmabuf(fd, pagesize)) {
		/* Only what is mapped is reclaimed by madvise() */
		read_units(mem, pagesize);
		report(mem, pagesize, what);
	} else {
		ksft_test_result_skip("%s: %m\n", what);
	}
	munmap(mem, 2 * pagesize);
	close(fd);
}

int main(void)
{
	pagesize = getpagesize();
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);

	ksft_print_header();
	ksft_set_plan(7);
	if (pagemap_fd < 0)
		ksft_exit_fail_msg("/proc/self/pagemap: %m\n");
	test_memfd();
	test_shared_anon();
	test_memfd_huge(write_and_report, "huge page of a memfd, read before");
	test_memfd_huge(collapse_and_report, "small entries of one, read before");
	test_swapped_anon();
	test_udmabuf(false);
	test_udmabuf(true);
	ksft_finished();
}
