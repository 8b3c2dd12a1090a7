/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of memfd_fuzz share: the file, the operation that is being carried out,
 * and what arguments of operations mean.
 */
#ifndef FUZZ_MEMFD_FUZZ_H
#define FUZZ_MEMFD_FUZZ_H

#include "fuzz.h"
#include "memfd_model.h"
#include "worker.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_memfd_protect
#define SYS_memfd_protect	548
#define SYS_memfd_notify	549
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif

#define LONG_MS		(impatient ? 1500 : 30000)
#define BASE		0x100000000000UL	/* of the window of each process */
#define HOT		24			/* pages that operations are about */
#define VALUES		8
#define SOURCE		(4 * PAGE)		/* of each value, in the source file */
#define CGROUP		"/sys/fs/cgroup/memfd_fuzz"

/* What counted() counts */
enum {
	COUNT_WAITS, COUNT_JOINED, COUNT_GOES_ON, COUNT_AGAIN, COUNT_REFUSED,
	COUNT_REPORTS, COUNT_DIRTY, COUNT_KERNEL_WAITS, COUNT_LEFT, COUNT_BUSY
};

extern struct model *m;
extern unsigned int now;		/* the operation that is being carried out */
extern unsigned int hot[HOT];
extern int fd, fd_again, fd_read, source, event_fd;
extern int pipes[PROCESSES][2];
extern pid_t pid_of[MAX_EVENTS][PROCESSES];	/* when the event came */

#define NR(array)	(sizeof(array) / sizeof(*(array)))
#define fail(what, ...) found(now, what, __VA_ARGS__)

static inline long result(long ret)
{
	return ret < 0 ? -errno : ret;
}

static inline void expect(const char *call, long got, long want)
{
	if (verbose)
		printf("    %s: %s\n", call, name_of(got));
	if (got != want)
		fail("result", "%s: %s, not %s", call, name_of(got), name_of(want));
}

/*
 * What the arguments of operations mean
 */

static inline unsigned int last_of(unsigned int from, unsigned int nr)
{
	return nr && from + nr <= HOT ? from + nr - 1 : HOT - 1;
}

static inline unsigned int shift_of(unsigned int place)
{
	if (place != 4 && place != 5)
		return 0;
	return place == 4 ? 1 : m->pages > HOT ? 512 : 8;
}

/* Pages of the window that a range of an operation means */
struct range {
	unsigned int first, last;
};

static inline struct range range_of(const unsigned int *from_nr, unsigned int place)
{
	return (struct range){
		.first = hot[from_nr[0]] + shift_of(place),
		.last = hot[last_of(from_nr[0], from_nr[1])] + shift_of(place),
	};
}

static inline unsigned long address(unsigned int page)
{
	return BASE + page * PAGE;
}

static inline size_t bytes_of(struct range r)
{
	return (r.last - r.first + 1) * PAGE;
}

static inline unsigned int in_page(unsigned int in)
{
	static const unsigned int places[] = { 0, 64, 100, 4032 };

	return places[in];
}

/* No end of a write cuts the cells of a page, which are at its beginning; @pages there are */
static inline uint64_t length_of(uint64_t pos, unsigned int len, unsigned int pages)
{
	static const unsigned int lengths[] = {
		0, 1, 64, 100, 2000, 4096, 5000, 8192, 9000
	};
	uint64_t end = pos + lengths[len];

	if (len && end % PAGE && end % PAGE < 64)
		end += 64;
	if (end > pages * PAGE)
		end = pages * PAGE;
	return end - pos;
}

static inline int prot_of(unsigned int prot)
{
	return prot == 0 ? PROT_READ : prot == 1 ? PROT_NONE : PROT_READ | PROT_WRITE;
}

static inline unsigned char byte_of(unsigned int value)
{
	return 0x81 + value;
}

static inline bool free_to_act(unsigned int process)
{
	return m->process[process].alive && !m->process[process].waits;
}

/* Nobody is writing to its memory from outside: it may change what is mapped there */
static inline bool free_to_map(unsigned int process)
{
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && m->process[i].access.change == CHANGE_PINNED &&
		    m->process[i].access.owner == process)
			return false;
	return free_to_act(process);
}

/* memfd_check.c: what the kernel has to agree with */
void check_busy(void);
void check_figures(void);
void check_contents(bool all);
void check_waiters(void);
void check_window(unsigned int process);	/* of one that does not wait */

/* memfd_changes.c: what changes the file */
extern int rings[PROCESSES];		/* of io_uring; 0: none */
extern bool pinning[PROCESSES];		/* it has tried to pin a page */
void drain_pipe(unsigned int process);
void check_outcome(unsigned int process, const struct outcome *want);
void settle(void);
bool uniform(unsigned int process, struct range r);
void unpin(unsigned int process);

/* memfd_handler.c */
int ioctl_resolve(uint64_t cookie, unsigned int action);

/* Operations. They return whether they had an effect */
typedef bool operation_fn(const unsigned int *arg);

operation_fn do_mmap, do_munmap, do_mprotect, do_mremap, do_advise, do_store, do_load,
	     do_write, do_splice, do_copy, do_read_into, do_vm_write, do_populate,
	     do_pin, do_unpin, do_punch, do_remove, do_truncate, do_allocate, do_fork,
	     do_kill, do_signal, do_protect, do_unprotect, do_notify, do_close,
	     do_events, do_resolve, do_scan, do_seal, do_bad, do_reclaim, do_migrate;

#endif /* FUZZ_MEMFD_FUZZ_H */
