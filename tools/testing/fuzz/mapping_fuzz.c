// SPDX-License-Identifier: GPL-2.0-only
/*
 * Looks for differences that sharing page tables makes. There are two worlds, each with a
 * memfd and processes that map it: in one the memfd has MFD_SHARE_PGTABLES. Each operation
 * is carried out in both, and must have the same result: what a call returns, which
 * signal comes, contents, what is mapped with which rights, and what mincore(), smaps and
 * pagemap say, but for what Documentation/userspace-api/ptshare.rst says is different:
 *
 * - what is present in a page table (Rss, Pss, the present bit of pagemap), and what
 *   somebody has accessed or changed (Referenced, *_Dirty): not compared;
 * - that locked memory is faulted in again where page tables are dropped, which finds holes
 *   that were made since: from the first mlock() on, mincore(), soft-dirty bits and
 *   st_blocks are not compared;
 * - how much is mapped by huge entries (FilePmdMapped): not compared;
 * - what MADV_PAGEOUT and MADV_COLD pass over: from the first reclaim of a program on,
 *   the same is not.
 */
#include "fuzz.h"
#include "worker.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_memfd_protect
#define SYS_memfd_protect	548
#define SYS_memfd_notify	549
#endif
#ifndef SYS_mseal
#define SYS_mseal		462
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

#define PAGE		4096UL
#define BLOCK		512UL			/* pages */
#define GIB		(512 * BLOCK)
#define BASE		0x100000000000UL
#define ROOM		(64UL << 30)		/* for the mappings of a process */
#define PROCS		4
#define WORLDS		2
#define HOT		20
#define FEW		2048UL			/* pages that one call may make */
#define CGROUP		"/sys/fs/cgroup/mapping_fuzz"
#define THP		"/sys/kernel/mm/transparent_hugepage/shmem_enabled"

enum kind {
	OP_FILE, OP_MMAP, OP_ANON, OP_MUNMAP, OP_MPROTECT, OP_MREMAP, OP_REMAP_FILE,
	OP_ADVISE, OP_MLOCK, OP_MUNLOCK, OP_MSYNC, OP_MSEAL, OP_STORE, OP_LOAD,
	OP_READ_INTO, OP_VM_COPY, OP_WRITE, OP_TRUNCATE, OP_PUNCH, OP_ALLOCATE, OP_FORK,
	OP_KILL, OP_CLEAR_REFS, OP_UFFD, OP_UFFD_WP, OP_PROTECT, OP_SCAN, OP_RECLAIM,
	OP_MIGRATE, OP_CHECK, NR_KINDS
};

#define P	{ "process", PROCS }
#define AT	{ "at", HOT, true }
#define RANGE	{ "from", HOT, true }, { "nr", 8 }
#define PLACE	{ "place", 10, true }

static const struct op_kind kinds[NR_KINDS] = {
	[OP_FILE] = { "file", 0, { { "large", 3 }, { "tail", 2 }, { "protect", 2 },
				   { "mapped", 8 }, { "huge", 4 } } },
	[OP_MMAP] = { "mmap", 40, { P, RANGE, PLACE, { "prot", 10 }, { "private", 6 },
				    { "more", 12 } } },
	[OP_ANON] = { "anon", 4, { P, RANGE, PLACE, { "prot", 10 } } },
	[OP_MUNMAP] = { "munmap", 15, { P, RANGE, PLACE } },
	[OP_MPROTECT] = { "mprotect", 40, { P, RANGE, PLACE, { "prot", 10 } } },
	[OP_MREMAP] = { "mremap", 25, { P, RANGE, PLACE, { "to", 10, true },
					{ "resize", 6 } } },
	[OP_REMAP_FILE] = { "remap-file", 3, { P, RANGE, PLACE, AT } },
	[OP_ADVISE] = { "advise", 40, { P, RANGE, PLACE, { "advice", 20 } } },
	[OP_MLOCK] = { "mlock", 12, { P, RANGE, PLACE, { "onfault", 2 } } },
	[OP_MUNLOCK] = { "munlock", 8, { P, RANGE, PLACE, { "all", 5 } } },
	[OP_MSYNC] = { "msync", 2, { P, RANGE, PLACE, { "flags", 3 } } },
	[OP_MSEAL] = { "mseal", 1, { P, RANGE, PLACE } },
	[OP_STORE] = { "store", 80, { P, AT, PLACE, { "value", 100 } } },
	[OP_LOAD] = { "load", 50, { P, AT, PLACE } },
	[OP_READ_INTO] = { "read-into", 12, { P, AT, PLACE, { "len", 5 } } },
	[OP_VM_COPY] = { "vm-copy", 12, { P, { "owner", PROCS }, AT, PLACE, { "len", 5 },
					  { "write", 2 } } },
	[OP_WRITE] = { "write", 15, { P, AT, { "len", 5 }, { "value", 100 } } },
	[OP_TRUNCATE] = { "truncate", 10, { P, AT, { "full", 3 } } },
	[OP_PUNCH] = { "punch", 12, { P, RANGE } },
	[OP_ALLOCATE] = { "allocate", 3, { P, RANGE } },
	[OP_FORK] = { "fork", 8, { P, { "child", PROCS } } },
	[OP_KILL] = { "kill", 4, { P } },
	[OP_CLEAR_REFS] = { "clear-refs", 3, { P, { "what", 5 } } },
	[OP_UFFD] = { "uffd", 6, { P, RANGE, PLACE, { "unregister", 3 } } },
	[OP_UFFD_WP] = { "uffd-wp", 8, { P, RANGE, PLACE, { "wp", 3 },
					 { "registered", 3 } } },
	[OP_PROTECT] = { "protect", 15, { RANGE, { "mode", 4 } } },
	[OP_SCAN] = { "scan", 4, { { "take", 2 } } },
	[OP_RECLAIM] = { "reclaim", 3, { { "unused", 1 } } },
	[OP_MIGRATE] = { "migrate", 4, { P, PLACE, { "node", 2 } } },
	[OP_CHECK] = { "check", 10, { P } },
};

enum { BREAK_CONTENTS, BREAK_RIGHTS, BREAK_MAPPED, BREAK_LOCKED };

static const char * const breaks[] = {
	[BREAK_CONTENTS] = "contents",
	[BREAK_RIGHTS] = "rights",
	[BREAK_MAPPED] = "mapped",
	[BREAK_LOCKED] = "locked",
	NULL
};

enum { COUNT_LINKS, COUNT_UNSHARED, COUNT_CHECKS };

static const char * const counters[] = {
	[COUNT_LINKS] = "programs in which page tables were shared",
	[COUNT_UNSHARED] = "programs in which mappings stopped sharing",
	[COUNT_CHECKS] = "comparisons of smaps",
	NULL
};

static const struct program *program;
static unsigned int now;
static bool present_differs;		/* what there are pages of, from now on */
static bool huge;
static bool alive[PROCS];
static int uffd[WORLDS][PROCS];		/* descriptors, 0: none */
static unsigned long hot[HOT];
static unsigned long file_pages;	/* as the file was made */

static struct world {
	int fd;
	int event_fd;
} worlds[WORLDS];
static int source;

#define fail(what, ...) found(now, what, __VA_ARGS__)

static unsigned int worker_of(unsigned int world, unsigned int process)
{
	return world * PROCS + process;
}

/*
 * What the arguments of operations mean
 */

/* From the first page to the last, and one behind it */
struct range {
	unsigned long first, end;
};

static struct range file_range(const unsigned int *from_nr)
{
	unsigned int from = from_nr[0], nr = from_nr[1];

	if (!nr || from + nr > HOT)
		return (struct range){ hot[from], (hot[HOT - 1] + BLOCK) / BLOCK * BLOCK };
	return (struct range){ hot[from], hot[from + nr - 1] + 1 };
}

/*
 * Where in the address space a page of the file is to be: where page tables can be
 * shared, or by a page, a table or a GiB beside that; and once more elsewhere.
 */
static unsigned long address(unsigned long page, unsigned int place)
{
	static const unsigned long shift[] = {
		0, 0, 0, 8 * GIB, 8 * GIB, BLOCK, 16 * GIB + 1, GIB, 24 * GIB + BLOCK, 1,
	};

	return BASE + (page + shift[place]) * PAGE;
}

static unsigned long bytes_of(struct range r)
{
	return (r.end - r.first) * PAGE;
}

static int prot_of(unsigned int prot)
{
	static const int prots[] = {
		PROT_NONE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC,
		PROT_WRITE, PROT_READ, PROT_READ, PROT_READ,
	};

	if (prot < sizeof(prots) / sizeof(*prots))
		return prots[prot];
	return PROT_READ | PROT_WRITE;
}

/*
 * In both worlds
 */

static long both(unsigned int process, const char *name, long call, unsigned long a,
		 unsigned long b, unsigned long c, unsigned long d, unsigned long e,
		 unsigned long f)
{
	long ret[WORLDS];

	for (unsigned int w = 0; w < WORLDS; w++)
		ret[w] = worker_syscall(worker_of(w, process), call, a, b, c, d, e, f);
	if (verbose)
		printf("    %s: %s\n", name, name_of(ret[0]));
	if (ret[0] != ret[1])
		fail("result", "%s: %s, if page tables are shared %s", name,
		     name_of(ret[0]), name_of(ret[1]));
	return ret[0];
}

/* A call with the file as its argument, which has a number of its own in each world */
static long both_files(unsigned int process, const char *name, long call,
		       unsigned int which, unsigned long *arg)
{
	long ret[WORLDS];

	for (unsigned int w = 0; w < WORLDS; w++) {
		arg[which] = worlds[w].fd;
		ret[w] = worker_syscall(worker_of(w, process), call, arg[0], arg[1],
					arg[2], arg[3], arg[4], arg[5]);
	}
	if (verbose)
		printf("    %s: %s\n", name, name_of(ret[0]));
	if (ret[0] != ret[1])
		fail("result", "%s: %s, if page tables are shared %s", name,
		     name_of(ret[0]), name_of(ret[1]));
	return ret[0];
}

static bool same_answers(unsigned int process, const struct order *order, const char *name,
			 struct answer *answer)
{
	struct answer got[WORLDS];

	for (unsigned int w = 0; w < WORLDS; w++)
		if (!worker_does(worker_of(w, process), order, &got[w]))
			fail("died", "%s: process %u of world %u", name, process, w);
	if (verbose)
		printf("    %s at %#lx: signal %d\n", name, order->arg[0], got[0].sig);
	if (got[0].sig != got[1].sig ||
	    (got[0].sig && (got[0].code != got[1].code || got[0].addr != got[1].addr)))
		fail("rights", "%s at %#lx: signal %d, code %d, if page tables are shared %d, %d",
		     name, order->arg[0], got[0].sig, got[0].code, got[1].sig, got[1].code);
	if (got[0].value != got[1].value)
		fail("contents", "%s at %#lx: %#llx, if page tables are shared %#llx", name,
		     order->arg[0], (unsigned long long)got[0].value,
		     (unsigned long long)got[1].value);
	*answer = got[0];
	return !got[0].sig;
}

/*
 * Operations on mappings
 */

static bool do_mmap(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	int flags = MAP_FIXED | (arg[5] ? MAP_SHARED : MAP_PRIVATE);
	unsigned long call[6] = {
		address(r.first, arg[3]), bytes_of(r), prot_of(arg[4]), 0, 0, r.first * PAGE
	};

	if (r.end - r.first <= FEW && arg[6] == 1)
		flags |= MAP_POPULATE;
	if (r.end - r.first <= FEW && arg[6] == 2)
		flags |= MAP_LOCKED;
	if (flags & MAP_LOCKED)
		present_differs = true;
	if (arg[6] == 3)
		flags |= MAP_NORESERVE;
	call[3] = flags;
	return both_files(arg[0], "mmap", SYS_mmap, 4, call) > 0;
}

static bool do_anon(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);

	return both(arg[0], "mmap", SYS_mmap, address(r.first, arg[3]), bytes_of(r),
		    prot_of(arg[4]), MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0) > 0;
}

/* A call about a range of the address space, with one argument more */
static bool on_range(const unsigned int *arg, const char *name, long call,
		     unsigned long more)
{
	struct range r = file_range(&arg[1]);

	return !both(arg[0], name, call, address(r.first, arg[3]), bytes_of(r), more, 0, 0, 0);
}

static bool do_munmap(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);

	if (broken == BREAK_MAPPED) {
		worker_syscall(worker_of(1, arg[0]), SYS_munmap, address(r.first, arg[3]),
			       bytes_of(r), 0, 0, 0, 0);
		return false;
	}
	return on_range(arg, "munmap", SYS_munmap, 0);
}

static bool do_mprotect(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);

	if (broken == BREAK_RIGHTS) {
		worker_syscall(worker_of(1, arg[0]), SYS_mprotect, address(r.first, arg[3]),
			       bytes_of(r), prot_of(arg[4]), 0, 0, 0);
		return false;
	}
	return on_range(arg, "mprotect", SYS_mprotect, prot_of(arg[4]));
}

static bool do_mremap(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	unsigned long old = bytes_of(r), new = old;
	unsigned int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	switch (arg[5]) {
	case 1:
		new += PAGE;
		break;
	case 2:
		new += BLOCK * PAGE;
		break;
	case 3:
		new = PAGE;
		break;
	case 4:		/* a second mapping of the same */
		old = 0;
		break;
	case 5:
		flags |= MREMAP_DONTUNMAP;
	}
	return both(arg[0], "mremap", SYS_mremap, address(r.first, arg[3]), old, new, flags,
		    address(r.first, arg[4]), 0) > 0;
}

static bool do_remap_file(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);

	/* It fills locked memory. */
	if (r.end - r.first > FEW)
		return false;
	return !both(arg[0], "remap_file_pages", SYS_remap_file_pages,
		     address(r.first, arg[3]), bytes_of(r), 0, hot[arg[4]], 0, 0);
}

static bool do_advise(const unsigned int *arg)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_PAGEOUT, MADV_COLD, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
		MADV_COLLAPSE, MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
		MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_FREE, MADV_DONTDUMP,
		MADV_DODUMP, MADV_SEQUENTIAL, MADV_NORMAL, MADV_DONTNEED_LOCKED,
		MADV_GUARD_INSTALL, MADV_GUARD_REMOVE,
	};
	struct range r = file_range(&arg[1]);
	int advice = advices[arg[4]];

	switch (advice) {
	case MADV_COLD:
	case MADV_PAGEOUT:
		present_differs = true;
		break;
	case MADV_COLLAPSE:	/* depends on where there is memory */
		if (r.end - r.first > FEW || !huge)
			return false;
		for (unsigned int w = 0; w < WORLDS; w++)
			worker_syscall(worker_of(w, arg[0]), SYS_madvise,
				       address(r.first, arg[3]), bytes_of(r), advice, 0, 0, 0);
		present_differs = true;
		return true;
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
		if (r.end - r.first > FEW)
			return false;
	}
	return on_range(arg, "madvise", SYS_madvise, advice);
}

static bool do_mlock(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	bool onfault = arg[4] || r.end - r.first > FEW;

	if (broken == BREAK_LOCKED) {
		worker_syscall(worker_of(1, arg[0]), SYS_mlock2, address(r.first, arg[3]),
			       bytes_of(r), 1, 0, 0, 0);
		return false;
	}
	if (!onfault)
		present_differs = true;
	return on_range(arg, "mlock2", SYS_mlock2, onfault ? 1 /* MLOCK_ONFAULT */ : 0);
}

static bool do_munlock(const unsigned int *arg)
{
	if (!arg[4])
		return !both(arg[0], "munlockall", SYS_munlockall, 0, 0, 0, 0, 0, 0);
	return on_range(arg, "munlock", SYS_munlock, 0);
}

static bool do_msync(const unsigned int *arg)
{
	static const int flags[] = { MS_SYNC, MS_ASYNC, MS_INVALIDATE };

	return on_range(arg, "msync", SYS_msync, flags[arg[4]]);
}

static bool do_mseal(const unsigned int *arg)
{
	return on_range(arg, "mseal", SYS_mseal, 0);
}

static bool do_clear_refs(const unsigned int *arg)
{
	char path[64], what = '1' + arg[1];
	bool ok = true;

	for (unsigned int w = 0; w < WORLDS; w++) {
		int file;

		snprintf(path, sizeof(path), "/proc/%d/clear_refs",
			 workers[worker_of(w, arg[0])].pid);
		file = open(path, O_WRONLY | O_CLOEXEC);
		ok &= write(file, &what, 1) == 1;
		close(file);
	}
	return ok;
}

/* With WP_ASYNC nobody has to handle faults */
static void get_uffd(unsigned int process)
{
	const struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
	};

	if (uffd[0][process])
		return;
	for (unsigned int w = 0; w < WORLDS; w++) {
		unsigned int worker = worker_of(w, process);
		long ret = worker_syscall(worker, SYS_userfaultfd,
					  O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0, 0);

		memcpy(workers[worker].scratch, &api, sizeof(api));
		if (ret < 0 ||
		    worker_syscall(worker, SYS_ioctl, ret, UFFDIO_API,
				   (unsigned long)workers[worker].scratch, 0, 0, 0))
			fail("result", "userfaultfd: %s", name_of(ret));
		uffd[w][process] = ret;
	}
}

static bool uffd_ioctl(unsigned int process, unsigned long request, const void *data,
		       size_t size)
{
	long ret[WORLDS];

	for (unsigned int w = 0; w < WORLDS; w++) {
		unsigned int worker = worker_of(w, process);

		memcpy(workers[worker].scratch, data, size);
		ret[w] = worker_syscall(worker, SYS_ioctl, uffd[w][process], request,
					(unsigned long)workers[worker].scratch, 0, 0, 0);
	}
	if (ret[0] != ret[1])
		fail("result", "ioctl of userfaultfd: %s, if page tables are shared %s",
		     name_of(ret[0]), name_of(ret[1]));
	return !ret[0];
}

static struct uffdio_range registered[PROCS];	/* what was last */

static bool do_uffd(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	struct uffdio_register to = {
		.range = { address(r.first, arg[3]), bytes_of(r) },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	get_uffd(arg[0]);
	if (!arg[4])
		return uffd_ioctl(arg[0], UFFDIO_UNREGISTER, &to.range, sizeof(to.range));
	if (!uffd_ioctl(arg[0], UFFDIO_REGISTER, &to, sizeof(to)))
		return false;
	registered[arg[0]] = to.range;
	return true;
}

static bool do_uffd_wp(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	struct uffdio_writeprotect wp = {
		.range = { address(r.first, arg[3]), bytes_of(r) },
		.mode = arg[4] ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (arg[5] && registered[arg[0]].len)
		wp.range = registered[arg[0]];
	/* Where there is no page, markers are put into page tables: not into so many. */
	if (!uffd[0][arg[0]] || wp.range.len > FEW * PAGE)
		return false;
	return uffd_ioctl(arg[0], UFFDIO_WRITEPROTECT, &wp, sizeof(wp));
}

/*
 * Accesses
 */

static bool do_store(const unsigned int *arg)
{
	unsigned long at = address(hot[arg[1]], arg[2]) + 8 * arg[0];
	struct order order = { .what = WORK_STORE, .arg = { at, arg[3] + 1 } };
	struct answer answer;

	if (broken == BREAK_CONTENTS && arg[3] == 99) {
		worker_does(worker_of(1, arg[0]), &order, &answer);
		return false;
	}
	return same_answers(arg[0], &order, "store", &answer);
}

static bool do_load(const unsigned int *arg)
{
	unsigned long at = address(hot[arg[1]], arg[2]);
	struct order order = { .what = WORK_LOAD, .arg = { at } };
	struct answer answer;

	return same_answers(arg[0], &order, "load", &answer);
}

static unsigned long length_of(unsigned int len)
{
	static const unsigned int lengths[] = { 8, 100, 4096, 6000, 12288 };

	return lengths[len];
}

static bool do_read_into(const unsigned int *arg)
{
	return both(arg[0], "pread", SYS_pread64, source, address(hot[arg[1]], arg[2]) + 64,
		    length_of(arg[3]), 0, 0, 0) > 0;
}

static bool do_vm_copy(const unsigned int *arg)
{
	long ret[WORLDS], call = arg[5] ? SYS_process_vm_writev : SYS_process_vm_readv;

	if (!alive[arg[1]])
		return false;
	for (unsigned int w = 0; w < WORLDS; w++) {
		unsigned int worker = worker_of(w, arg[0]);
		struct iovec *iov = (struct iovec *)workers[worker].scratch;
		unsigned char *data = workers[worker].scratch + PAGE;

		memset(data, 0x77, length_of(arg[4]));
		iov[0] = (struct iovec){ data, length_of(arg[4]) };
		iov[1] = (struct iovec){
			(void *)(address(hot[arg[2]], arg[3]) + 128), length_of(arg[4]),
		};
		ret[w] = worker_syscall(worker, call, workers[worker_of(w, arg[1])].pid,
					(unsigned long)&iov[0], 1, (unsigned long)&iov[1],
					1, 0);
	}
	if (ret[0] != ret[1])
		fail("result", "process_vm: %s, if page tables are shared %s",
		     name_of(ret[0]), name_of(ret[1]));
	if (memcmp(workers[worker_of(0, arg[0])].scratch + PAGE,
		   workers[worker_of(1, arg[0])].scratch + PAGE, length_of(arg[4])))
		fail("contents", "process_vm_readv: other bytes if page tables are shared");
	return ret[0] > 0;
}

static bool do_write(const unsigned int *arg)
{
	long ret[WORLDS];

	for (unsigned int w = 0; w < WORLDS; w++) {
		unsigned int worker = worker_of(w, arg[0]);

		memset(workers[worker].scratch, arg[3] + 1, length_of(arg[2]));
		ret[w] = worker_syscall(worker, SYS_pwrite64, worlds[w].fd,
					(unsigned long)workers[worker].scratch,
					length_of(arg[2]), hot[arg[1]] * PAGE + 256, 0, 0);
	}
	if (ret[0] != ret[1])
		fail("result", "pwrite: %s, if page tables are shared %s",
		     name_of(ret[0]), name_of(ret[1]));
	return ret[0] > 0;
}

static bool do_truncate(const unsigned int *arg)
{
	unsigned long size = arg[2] ? file_pages : hot[arg[1]];
	unsigned long call[6] = { 0, size * PAGE };

	return !both_files(arg[0], "ftruncate", SYS_ftruncate, 0, call);
}

static bool do_punch(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	unsigned long call[6] = {
		0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, r.first * PAGE, bytes_of(r)
	};

	return !both_files(arg[0], "fallocate", SYS_fallocate, 0, call);
}

static bool do_allocate(const unsigned int *arg)
{
	struct range r = file_range(&arg[1]);
	unsigned long call[6] = { 0, 0, r.first * PAGE, bytes_of(r) };

	if (r.end - r.first > FEW)
		return false;
	return !both_files(arg[0], "fallocate", SYS_fallocate, 0, call);
}

/*
 * Processes
 */

static void kill_process(unsigned int process)
{
	for (unsigned int w = 0; w < WORLDS; w++)
		worker_kill(worker_of(w, process));
	alive[process] = false;
	for (unsigned int w = 0; w < WORLDS; w++)
		uffd[w][process] = 0;
}

static bool do_fork(const unsigned int *arg)
{
	if (arg[0] == arg[1])
		return false;
	if (alive[arg[1]])
		kill_process(arg[1]);
	for (unsigned int w = 0; w < WORLDS; w++)
		if (!worker_fork(worker_of(w, arg[0]), worker_of(w, arg[1])))
			fail("result", "process %u of world %u cannot fork", arg[0], w);
	alive[arg[1]] = true;
	/* The child has the descriptor, but it is about its parent. */
	for (unsigned int w = 0; w < WORLDS; w++)
		uffd[w][arg[1]] = 0;
	return true;
}

static bool do_kill(const unsigned int *arg)
{
	unsigned int nr = 0;

	for (unsigned int i = 0; i < PROCS; i++)
		nr += alive[i];
	if (nr == 1)
		return false;
	kill_process(arg[0]);
	return true;
}

/*
 * Protection of the file
 */

static bool do_protect(const unsigned int *arg)
{
	struct range r = file_range(arg);
	bool lift = arg[2] == 3;
	long ret[WORLDS];

	if (!program->ops[0].arg[2] || arg[2] == 0)
		return false;
	for (unsigned int w = 0; w < WORLDS; w++) {
		ret[w] = syscall(SYS_memfd_protect, worlds[w].fd, r.first * PAGE, bytes_of(r),
				 PROT_READ | (lift ? PROT_WRITE : 0),
				 lift ? 0 : arg[2] == 1 ? MEMFD_PROTECT_ASYNC :
				 MEMFD_PROTECT_DENY);
		ret[w] = ret[w] ? -errno : 0;
	}
	if (ret[0] != ret[1])
		fail("result", "memfd_protect: %s, if page tables are shared %s",
		     name_of(ret[0]), name_of(ret[1]));
	return !ret[0];
}

static bool do_scan(const unsigned int *arg)
{
	struct memfd_range got[WORLDS][64];
	int nr[WORLDS];

	if (!program->ops[0].arg[2])
		return false;
	for (unsigned int w = 0; w < WORLDS; w++) {
		struct memfd_scan scan = {
			.ranges = (uintptr_t)got[w], .nr_ranges = 64,
			.flags = arg[0] ? MEMFD_SCAN_REPROTECT : 0,
		};

		nr[w] = ioctl(worlds[w].event_fd, MEMFD_NOTIFY_SCAN, &scan);
	}
	if (nr[0] < 0 || nr[0] != nr[1] || memcmp(got[0], got[1], nr[0] * sizeof(got[0][0])))
		fail("scan", "%d ranges, if page tables are shared %d, or others", nr[0],
		     nr[1]);
	return nr[0];
}

/*
 * What is to make no difference
 */

static bool do_reclaim(const unsigned int *arg)
{
	present_differs = true;
	return write_text(CGROUP "/memory.reclaim", "4M");
}

static bool do_migrate(const unsigned int *arg)
{
	bool any = false;

	for (unsigned int w = 0; w < WORLDS; w++) {
		void *pages[HOT];
		int nodes[HOT], status[HOT];

		for (unsigned int i = 0; i < HOT; i++) {
			pages[i] = (void *)address(hot[i], arg[1]);
			nodes[i] = arg[2];
			status[i] = -1;
		}
		if (syscall(SYS_move_pages, workers[worker_of(w, arg[0])].pid,
			    (unsigned long)HOT, pages, nodes, status, 1 << 2) < 0)
			continue;
		for (unsigned int i = 0; i < HOT; i++)
			any |= status[i] == nodes[i];
	}
	return any;
}

/*
 * Comparing
 */

static char *read_proc(unsigned int world, unsigned int process, const char *name)
{
	static char buf[WORLDS][1 << 20];
	char path[64], *to = buf[world];
	size_t len = 0;
	ssize_t got;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/%s", workers[worker_of(world, process)].pid,
		 name);
	file = open(path, O_RDONLY | O_CLOEXEC);
	while ((got = read(file, to + len, sizeof(buf[0]) - 1 - len)) > 0)
		len += got;
	if (got < 0)
		err(3, "%s", path);
	to[len] = 0;
	close(file);
	return to;
}

/*
 * Lines of smaps that are compared, as one text. Of the line of a mapping that is what
 * comes before the file's name; of others those that tell nothing of page tables.
 */
static void gather(const char *smaps, char *to, size_t size)
{
	static const char * const fields[] = {
		"Size:", "KernelPageSize:", "MMUPageSize:", "AnonHugePages:", "VmFlags:",
		"Private_Hugetlb:", "ProtectionKey:",
	};
	bool ours = false;

	while (*smaps) {
		const char *end = strchrnul(smaps, '\n');
		unsigned long start, stop;
		size_t len = end - smaps;

		if (sscanf(smaps, "%lx-%lx ", &start, &stop) == 2) {
			ours = start >= BASE && start < BASE + ROOM;
			if (ours && strchr(smaps, ' ') + 14 < end)
				len = strchr(smaps, ' ') + 14 - smaps;
		} else if (ours) {
			bool wanted = false;

			for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
				wanted |= !strncmp(smaps, fields[i], strlen(fields[i]));
			if (!wanted)
				len = 0;
		}
		if (ours && len && len + 2 < size) {
			memcpy(to, smaps, len);
			to[len] = '\n';
			to += len + 1;
			size -= len + 1;
		}
		smaps = *end ? end + 1 : end;
	}
	*to = 0;
}

/* Shows the first line in which two texts differ */
static void compare_texts(const char *what, unsigned int process, const char *a,
			  const char *b)
{
	unsigned int line = 1;
	const char *start = a;

	if (!strcmp(a, b))
		return;
	for (size_t i = 0; a[i] == b[i]; i++)
		if (a[i] == '\n') {
			line++;
			start = a + i + 1;
		}
	fail(what, "process %u, line %u: '%.*s', if page tables are shared '%.*s'", process,
	     line, (int)strcspn(start, "\n"), start,
	     (int)strcspn(b + (start - a), "\n"), b + (start - a));
}

static void compare_smaps(unsigned int process, const char *file)
{
	static char text[WORLDS][1 << 18];

	for (unsigned int w = 0; w < WORLDS; w++)
		gather(read_proc(w, process, file), text[w], sizeof(text[w]));
	compare_texts(file, process, text[0], text[1]);
}

static void compare_status(unsigned int process)
{
	static const char * const fields[] = {
		"VmSize:", "VmLck:", "VmPin:", "VmData:", "VmStk:", "VmExe:", "VmLib:",
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		unsigned long kb[WORLDS];

		for (unsigned int w = 0; w < WORLDS; w++) {
			const char *at = strstr(read_proc(w, process, "status"), fields[i]);

			kb[w] = at ? strtoul(at + strlen(fields[i]), NULL, 10) : 0;
		}
		if (kb[0] != kb[1])
			fail("status", "process %u, %s %lu kB, if page tables are shared %lu kB",
			     process, fields[i], kb[0], kb[1]);
	}
}

/* Bits of pagemap that tell of the mapping and not of what is present */
#define SOFT_DIRTY	(1ULL << 55)
#define UFFD_WP		(1ULL << 57)

static int open_pagemap(unsigned int world, unsigned int process)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap",
		 workers[worker_of(world, process)].pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Bits of each page's entry. 0 where there can be none */
static void read_pagemap(unsigned int world, unsigned int process, const struct probe *probe,
			 unsigned int nr, uint64_t bits, uint64_t *entries)
{
	int file = open_pagemap(world, process);

	for (unsigned int i = 0; i < nr; i++) {
		if (pread(file, &entries[i], 8, probe[i].addr / PAGE * 8) != 8)
			entries[i] = 0;
		entries[i] &= bits;
	}
	close(file);
}

static void compare_pagemaps(unsigned int process, const struct probe *probe, unsigned int nr,
			     uint64_t bits, const char *what)
{
	uint64_t entries[WORLDS][nr];

	for (unsigned int w = 0; w < WORLDS; w++)
		read_pagemap(w, process, probe, nr, bits, entries[w]);
	for (unsigned int i = 0; i < nr; i++)
		if (entries[0][i] != entries[1][i])
			fail(what, "process %u, %#lx: %#llx, if page tables are shared %#llx",
			     process, probe[i].addr, (unsigned long long)entries[0][i],
			     (unsigned long long)entries[1][i]);
}

/* What can be read at each place, and what it is */
static void compare_pages(unsigned int process)
{
	static const unsigned int places[] = { 0, 3, 5, 6, 7, 8, 9 };
	const unsigned int nr_places = sizeof(places) / sizeof(*places);
	const unsigned int nr = nr_places * HOT;
	struct probe *probe[WORLDS];
	struct answer answer;

	for (unsigned int w = 0; w < WORLDS; w++) {
		const struct order order = { .what = WORK_PROBE, .arg = { nr } };

		probe[w] = (struct probe *)workers[worker_of(w, process)].scratch;
		for (unsigned int i = 0; i < nr; i++)
			probe[w][i].addr = address(hot[i % HOT], places[i / HOT]);
		if (!w)
			compare_pagemaps(process, probe[0], nr, UFFD_WP, "pagemap");
		if (!worker_does(worker_of(w, process), &order, &answer))
			fail("died", "process %u of world %u", process, w);
	}
	for (unsigned int i = 0; i < nr; i++) {
		if (probe[0][i].sig != probe[1][i].sig)
			fail("rights", "process %u, %#lx: signal %d, if page tables are shared %d",
			     process, probe[0][i].addr, probe[0][i].sig, probe[1][i].sig);
		if (probe[0][i].value != probe[1][i].value)
			fail("contents", "process %u, %#lx: %#llx, if page tables are shared %#llx",
			     process, probe[0][i].addr,
			     (unsigned long long)probe[0][i].value,
			     (unsigned long long)probe[1][i].value);
	}
	if (!present_differs)
		compare_pagemaps(process, probe[0], nr, SOFT_DIRTY, "soft-dirty");
}

static void compare_mincore(unsigned int process)
{
	if (present_differs || huge)
		return;
	for (unsigned int i = 0; i < HOT; i++) {
		unsigned char *core[WORLDS];
		long ret[WORLDS];

		for (unsigned int w = 0; w < WORLDS; w++) {
			unsigned int worker = worker_of(w, process);

			core[w] = workers[worker].scratch;
			*core[w] = 0xff;
			ret[w] = worker_syscall(worker, SYS_mincore, address(hot[i], 0), PAGE,
						(unsigned long)core[w], 0, 0, 0);
		}
		if (ret[0] != ret[1] || *core[0] != *core[1])
			fail("mincore", "process %u, page %lu: %s, %u, with shared tables %s, %u",
			     process, hot[i], name_of(ret[0]), *core[0], name_of(ret[1]),
			     *core[1]);
	}
}

static void compare_process(unsigned int process)
{
	compare_smaps(process, "smaps");
	compare_status(process);
	compare_mincore(process);
	compare_pages(process);
	counted(COUNT_CHECKS);
}

static bool do_check(const unsigned int *arg)
{
	compare_process(arg[0]);
	return true;
}

static void compare_files(void)
{
	unsigned char page[WORLDS][PAGE];
	struct stat st[WORLDS];

	for (unsigned int w = 0; w < WORLDS; w++)
		if (fstat(worlds[w].fd, &st[w]))
			err(3, "fstat");
	if (st[0].st_size != st[1].st_size)
		fail("size", "%lld, if page tables are shared %lld",
		     (long long)st[0].st_size, (long long)st[1].st_size);
	/* Huge pages are made where there is memory; reclaim drops pages of holes. */
	if (!huge && !present_differs && st[0].st_blocks != st[1].st_blocks)
		fail("blocks", "%lld, if page tables are shared %lld",
		     (long long)st[0].st_blocks, (long long)st[1].st_blocks);
	for (unsigned int i = 0; i < HOT; i++) {
		ssize_t len[WORLDS];

		for (unsigned int w = 0; w < WORLDS; w++)
			len[w] = pread(worlds[w].fd, page[w], PAGE, hot[i] * PAGE);
		if (len[0] != len[1] || (len[0] > 0 && memcmp(page[0], page[1], len[0])))
			fail("contents", "page %lu of the file", hot[i]);
	}
}

/* Returns whether it had an effect */
typedef bool operation_fn(const unsigned int *arg);

static operation_fn * const operations[NR_KINDS] = {
	[OP_MMAP] = do_mmap, [OP_ANON] = do_anon, [OP_MUNMAP] = do_munmap,
	[OP_MPROTECT] = do_mprotect, [OP_MREMAP] = do_mremap,
	[OP_REMAP_FILE] = do_remap_file, [OP_ADVISE] = do_advise, [OP_MLOCK] = do_mlock,
	[OP_MUNLOCK] = do_munlock, [OP_MSYNC] = do_msync, [OP_MSEAL] = do_mseal,
	[OP_STORE] = do_store, [OP_LOAD] = do_load, [OP_READ_INTO] = do_read_into,
	[OP_VM_COPY] = do_vm_copy, [OP_WRITE] = do_write, [OP_TRUNCATE] = do_truncate,
	[OP_PUNCH] = do_punch, [OP_ALLOCATE] = do_allocate, [OP_FORK] = do_fork,
	[OP_KILL] = do_kill, [OP_CLEAR_REFS] = do_clear_refs, [OP_UFFD] = do_uffd,
	[OP_UFFD_WP] = do_uffd_wp, [OP_PROTECT] = do_protect, [OP_SCAN] = do_scan,
	[OP_RECLAIM] = do_reclaim, [OP_MIGRATE] = do_migrate, [OP_CHECK] = do_check,
};

/* The first argument is a process, but for these */
static bool has_process(unsigned int kind)
{
	return kind != OP_PROTECT && kind != OP_SCAN && kind != OP_RECLAIM;
}

/*
 * A program
 */

/* Pages at the ends of tables, of GiBs in a large file, and of the file */
static void choose_pages(bool large)
{
	static const unsigned long small_at[] = {
		0, 1, 2, 16, 255, 510, 511, 512, 513, 514, 700, 1022, 1023, 1024, 1025, 1200,
		1534, 1535, 1536, 1540,
	};
	static const unsigned long large_at[] = {
		0, 1, 511, 512, 513, GIB - 513, GIB - 512, GIB - 1, GIB, GIB + 1, GIB + 511,
		GIB + 512, 2 * GIB - 512, 2 * GIB - 1, 2 * GIB, 2 * GIB + 1, 2 * GIB + 512,
		3 * GIB - 1, 3 * GIB, 3 * GIB + 4,
	};

	memcpy(hot, large ? large_at : small_at, sizeof(hot));
}

static void make_files(const unsigned int *arg)
{
	unsigned int flags = MFD_CLOEXEC | (arg[2] ? MFD_ALLOW_PROTECT : 0);

	for (unsigned int w = 0; w < WORLDS; w++) {
		worlds[w].fd = syscall(SYS_memfd_create, "fuzz",
				       flags | (w ? MFD_SHARE_PGTABLES : 0));
		if (worlds[w].fd < 0 || ftruncate(worlds[w].fd, file_pages * PAGE))
			err(3, "memfd_create");
		worlds[w].event_fd = -1;
	}
	source = syscall(SYS_memfd_create, "source", MFD_CLOEXEC);
	for (unsigned long i = 0; i < 4 * PAGE; i += 8)
		if (pwrite(source, "\x91\x92\x93\x94\x95\x96\x97\x98", 8, i) != 8)
			err(3, "source file");
}

static void prepare(const unsigned int *arg)
{
	huge = !arg[4];
	write_text(THP, huge ? "advise" : "never");
	choose_pages(arg[0] == 2);
	file_pages = hot[HOT - 1] + 1;
	if (!arg[1])
		file_pages = (file_pages + BLOCK - 1) / BLOCK * BLOCK;
	make_files(arg);
	workers_prepare(WORLDS * PROCS);
	for (unsigned int i = 0; i < PROCS - 1; i++) {
		for (unsigned int w = 0; w < WORLDS; w++)
			worker_start(worker_of(w, i));
		alive[i] = true;
		if (arg[3])
			do_mmap((unsigned int []){ i, 0, 0, 0, i ? 9 : 4 + arg[3] % 2, 1, 0 });
	}
	for (unsigned int w = 0; arg[2] && w < WORLDS; w++) {
		worlds[w].event_fd = syscall(SYS_memfd_notify, worlds[w].fd, MEMFD_NOTIFY_NONBLOCK);
		if (worlds[w].event_fd < 0)
			err(3, "memfd_notify");
	}
}

static long counter_of(const char *name)
{
	static char buf[16384];
	int file = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	ssize_t len = read(file, buf, sizeof(buf) - 1);
	const char *at;

	close(file);
	buf[len < 0 ? 0 : len] = 0;
	at = strstr(buf, name);
	return at ? strtol(at + strlen(name), NULL, 10) : 0;
}

static void run(const struct program *what)
{
	long links = counter_of("ptshare_link "), unshared = counter_of("ptshare_unshare ");

	program = what;
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir(CGROUP, 0755);
	write_text(CGROUP "/cgroup.procs", "0");
	prepare(program->ops[0].arg);
	for (now = 1; now < program->nr; now++) {
		const struct op *op = &program->ops[now];
		operation_fn *operation = operations[op->kind];

		if (verbose)
			printf("%u %s\n", now + 1, kinds[op->kind].name);
		if (!operation ||
		    (has_process(op->kind) && !alive[op->arg[0]]))
			continue;
		if (operation(op->arg))
			worked(op->kind);
		compare_files();
		if (has_process(op->kind) && alive[op->arg[0]])
			compare_smaps(op->arg[0], "maps");
	}
	for (unsigned int i = 0; i < PROCS; i++)
		if (alive[i])
			compare_process(i);
	if (counter_of("ptshare_link ") > links)
		counted(COUNT_LINKS);
	if (counter_of("ptshare_unshare ") > unshared)
		counted(COUNT_UNSHARED);
	for (unsigned int i = 0; i < PROCS; i++)
		if (alive[i])
			kill_process(i);
}

static bool available(void)
{
	int file = syscall(SYS_memfd_create, "fuzz", MFD_SHARE_PGTABLES | MFD_ALLOW_PROTECT);

	close(file);
	return file >= 0;
}

static const struct fuzzer fuzzer = {
	.name = "mapping_fuzz",
	.about = "Compares mappings that share page tables with mappings that do not.",
	.kinds = kinds,
	.nr_kinds = NR_KINDS,
	.breaks = breaks,
	.counters = counters,
	.available = available,
	.run = run,
};

int main(int argc, char **argv)
{
	return fuzz_main(argc, argv, &fuzzer);
}
