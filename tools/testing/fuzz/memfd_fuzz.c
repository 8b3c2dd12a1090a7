// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fuzzes memfd_protect(2) and memfd_notify(2): several processes map a memfd, change it in
 * every way there is, fork, and end, while it is protected and unprotected, events are
 * read and resolved, and pages are reclaimed and migrated. After each operation all is
 * compared with a model (memfd_model.h): what a call returned, which signal came, who
 * waits, what is in the log and in the queue, and what is in the file.
 *
 * Operations are carried out one after the other, by worker processes. One that the
 * model says waits is left alone until the model says that it goes on. This process has
 * the event fd and no mapping.
 */
#include "fuzz.h"
#include "memfd_model.h"
#include "worker.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/memfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
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

#define LONG_MS		(impatient ? 3000 : 30000)
#define BASE		0x100000000000UL	/* of the window of each process */
#define HOT		24			/* pages that operations are about */
#define VALUES		8
#define SOURCE		(4 * PAGE)		/* of each value, in the source file */
#define CGROUP		"/sys/fs/cgroup/memfd_fuzz"

enum kind {
	OP_FILE, OP_MMAP, OP_MUNMAP, OP_MPROTECT, OP_MREMAP, OP_ADVISE, OP_STORE,
	OP_LOAD, OP_WRITE, OP_SPLICE, OP_COPY, OP_READ_INTO, OP_VM_WRITE, OP_POPULATE,
	OP_PIN, OP_UNPIN, OP_PUNCH, OP_REMOVE, OP_TRUNCATE, OP_ALLOCATE, OP_FORK, OP_KILL, OP_SIGNAL,
	OP_PROTECT, OP_UNPROTECT, OP_NOTIFY, OP_CLOSE, OP_EVENTS, OP_RESOLVE, OP_SCAN,
	OP_SEAL, OP_BAD, OP_RECLAIM, OP_MIGRATE, NR_KINDS
};

#define P	{ "process", PROCESSES }
#define AT	{ "at", HOT, true }
#define RANGE	{ "from", HOT, true }, { "nr", 9 }
#define PLACE	{ "place", 12 }		/* of a mapping: mostly where the page is in the file */

static const struct op_kind kinds[NR_KINDS] = {
	[OP_FILE] = { "file", 0, { { "tables", 2 }, { "share", 2 }, { "plain", 12 },
				   { "seals", 3 }, { "pages", 2 * HOT },
				   { "mapped", 8 }, { "notify", 8 } } },
	[OP_MMAP] = { "mmap", 16, { P, RANGE, PLACE, { "prot", 6 }, { "private", 4 },
				    { "fd", 6 } } },
	[OP_MUNMAP] = { "munmap", 3, { P, RANGE, PLACE } },
	[OP_MPROTECT] = { "mprotect", 8, { P, RANGE, PLACE, { "prot", 8 } } },
	[OP_MREMAP] = { "mremap", 8, { P, RANGE, PLACE, { "to", 6 } } },
	[OP_ADVISE] = { "advise", 14, { P, RANGE, PLACE, { "advice", 8 } } },
	[OP_STORE] = { "store", 120, { P, AT, PLACE, { "value", VALUES } } },
	[OP_LOAD] = { "load", 30, { P, AT, PLACE } },
	[OP_WRITE] = { "write", 30, { P, AT, { "in", 4 }, { "len", 9 },
				      { "value", VALUES }, { "nowait", 4 }, { "fd", 2 } } },
	[OP_SPLICE] = { "splice", 8, { P, AT, { "in", 4 }, { "len", 9 },
				       { "value", VALUES } } },
	[OP_COPY] = { "copy", 8, { P, AT, { "in", 4 }, { "len", 9 },
				   { "value", VALUES } } },
	[OP_READ_INTO] = { "read-into", 14, { P, AT, PLACE, { "in", 4 },
					      { "len", 9 }, { "value", VALUES } } },
	[OP_VM_WRITE] = { "vm-write", 14, { P, { "owner", PROCESSES }, AT,
					    { "in", 4 }, { "len", 9 },
					    { "value", VALUES } } },
	[OP_POPULATE] = { "populate", 8, { P, RANGE, PLACE } },
	[OP_PIN] = { "pin", 8, { P, AT, PLACE } },
	[OP_UNPIN] = { "unpin", 16, { P } },
	[OP_PUNCH] = { "punch", 10, { P, AT, { "in", 4 }, { "len", 9 } } },
	[OP_REMOVE] = { "remove", 6, { P, RANGE, PLACE } },
	[OP_TRUNCATE] = { "truncate", 10, { P, { "at", 2 * HOT }, { "in", 4 } } },
	[OP_ALLOCATE] = { "allocate", 5, { P, AT, { "len", 9 } } },
	[OP_FORK] = { "fork", 8, { P, { "child", PROCESSES } } },
	[OP_KILL] = { "kill", 5, { P } },
	[OP_SIGNAL] = { "signal", 12, { P } },
	[OP_PROTECT] = { "protect", 50, { RANGE, { "mode", 5 }, { "fd", 4 } } },
	[OP_UNPROTECT] = { "unprotect", 30, { RANGE, { "fd", 4 } } },
	[OP_NOTIFY] = { "notify", 8, { { "kernel", 3 } } },
	[OP_CLOSE] = { "close", 4, { { "unused", 1 } } },
	[OP_EVENTS] = { "events", 40, { { "nr", 5 }, { "bad", 12 } } },
	[OP_RESOLVE] = { "resolve", 50, { { "which", 5 }, { "deny", 2 }, { "unread", 3 } } },
	[OP_SCAN] = { "scan", 25, { RANGE, { "max", 5 }, { "take", 2 } } },
	[OP_SEAL] = { "seal", 2, { { "seal", 6 } } },
	[OP_BAD] = { "bad", 6, { { "which", 20 }, { "handler", 2 } } },
	[OP_RECLAIM] = { "reclaim", 5, { { "unused", 1 } } },
	[OP_MIGRATE] = { "migrate", 4, { P, { "node", 2 } } },
};

enum {
	COUNT_WAITS, COUNT_JOINED, COUNT_GOES_ON, COUNT_AGAIN, COUNT_REFUSED,
	COUNT_REPORTS, COUNT_DIRTY, COUNT_KERNEL_WAITS, COUNT_LEFT, COUNT_BUSY
};

static const char * const counters[] = {
	[COUNT_WAITS] = "accesses waited",
	[COUNT_JOINED] = "of them joined the event of another",
	[COUNT_GOES_ON] = "went on",
	[COUNT_AGAIN] = "waited for the next range",
	[COUNT_REFUSED] = "were refused while they waited",
	[COUNT_REPORTS] = "events of accesses that failed",
	[COUNT_DIRTY] = "DIRTY events",
	[COUNT_KERNEL_WAITS] = "accesses of the kernel waited",
	[COUNT_LEFT] = "events that a signal left to be resolved",
	[COUNT_BUSY] = "calls of memfd_protect() failed because of a pin",
	NULL
};

static struct model *m;
static const struct program *program;
static unsigned int now;		/* the operation that is being carried out */
static unsigned int hot[HOT];
static int fd, fd_again, fd_read, source, event_fd = -1;
static int pipes[PROCESSES][2];
static pid_t pid_of[MAX_EVENTS][PROCESSES];
static int read_events[MAX_EVENTS], nr_read;

#define fail(what, ...) found(now, what, __VA_ARGS__)

static long result(long ret)
{
	return ret < 0 ? -errno : ret;
}

static const char *name_of(long ret)
{
	static char text[2][32];
	static unsigned int which;
	char *to = text[which++ % 2];

	if (ret < 0)
		snprintf(to, sizeof(text[0]), "%s", strerrorname_np(-ret));
	else
		snprintf(to, sizeof(text[0]), "%ld", ret);
	return to;
}

static void expect(const char *call, long got, long want)
{
	if (verbose)
		printf("    %s: %s\n", call, name_of(got));
	if (got != want)
		fail("result", "%s: %s, not %s", call, name_of(got), name_of(want));
}

/*
 * What the arguments of operations mean
 */

static unsigned int last_of(unsigned int from, unsigned int nr)
{
	return nr && from + nr <= HOT ? from + nr - 1 : HOT - 1;
}

static unsigned int shift_of(unsigned int place)
{
	if (place != 4 && place != 5)
		return 0;
	return place == 4 ? 1 : m->pages > HOT ? 512 : 8;
}

/* Pages of the window that a range of an operation means */
struct range {
	unsigned int first, last;
};

static struct range range_of(const unsigned int *from_nr, unsigned int place)
{
	return (struct range){
		.first = hot[from_nr[0]] + shift_of(place),
		.last = hot[last_of(from_nr[0], from_nr[1])] + shift_of(place),
	};
}

static unsigned long address(unsigned int page)
{
	return BASE + page * PAGE;
}

static size_t bytes_of(struct range r)
{
	return (r.last - r.first + 1) * PAGE;
}

static unsigned int in_page(unsigned int in)
{
	static const unsigned int places[] = { 0, 64, 100, 4032 };

	return places[in];
}

/* No end of a write cuts the cells of a page, which are at its beginning; @pages there are */
static uint64_t length_of(uint64_t pos, unsigned int len, unsigned int pages)
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

static int prot_of(unsigned int prot)
{
	return prot == 0 ? PROT_READ : prot == 1 ? PROT_NONE : PROT_READ | PROT_WRITE;
}

static unsigned char byte_of(unsigned int value)
{
	return 0x81 + value;
}

static bool free_to_act(unsigned int process)
{
	return m->process[process].alive && !m->process[process].waits;
}

/*
 * The kernel's state
 */

static long field(const char *info, const char *name)
{
	const char *at = strstr(info, name);

	return at ? strtol(at + strlen(name), NULL, 10) : -1;
}

static void read_fdinfo(char *buf, size_t size)
{
	char path[64];
	ssize_t len;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	len = read(info, buf, size - 1);
	if (len < 0)
		err(3, "%s", path);
	buf[len] = 0;
	close(info);
}

struct figure {
	const char *name;
	long want;
};

/* True if all are so; the first that is not is left in *@wrong */
static bool figures_agree(const struct figure *figures, unsigned int nr,
			  const struct figure **wrong, long *got)
{
	char info[2048];

	read_fdinfo(info, sizeof(info));
	for (unsigned int i = 0; i < nr; i++) {
		*got = field(info, figures[i].name);
		*wrong = &figures[i];
		if (*got != figures[i].want)
			return false;
	}
	return true;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/* The page because of which memfd_protect() failed last */
static void check_busy(void)
{
	char info[2048];
	long busy;

	read_fdinfo(info, sizeof(info));
	busy = field(info, "\nprotect_busy:\t");
	if (busy < 0 || busy % PAGE || busy / PAGE >= m->pages || !m->pinned[busy / PAGE])
		fail("figure", "protect_busy is %ld, which nobody has pinned", busy);
	counted(COUNT_BUSY);
}

static void check_figures(void)
{
	unsigned int waiters, pending, unread;
	const struct figure *wrong;
	uint64_t end = now_ms() + LONG_MS;
	long got;

	if (!m->protectable)
		return;
	model_counts(m, &waiters, &pending, &unread);

	const struct figure figures[] = {
		/* Who was woken, or is to wait, may be on its way. */
		{ "\nevents:\t", m->nr_events },
		{ "\nwaits:\t", m->waits },
		{ "\nwaiters:\t", waiters },
		{ "\npending:\t", pending },
		{ "\nunread:\t", unread },
		{ "\nevent_fd:\t", m->open },
		{ "\nprotect_wait:\t", model_runs(m, m->mode, MODE_WAIT) },
		{ "\nprotect_async:\t", model_runs(m, m->mode, MODE_ASYNC) },
		{ "\nprotect_deny:\t", model_runs(m, m->mode, MODE_DENY) },
		{ "\nlog_ranges:\t", model_runs(m, m->log, 1) },
	};
	const unsigned int nr = sizeof(figures) / sizeof(*figures);

	while (!figures_agree(figures, nr, &wrong, &got)) {
		/* Nothing that goes on will change the others. */
		if (wrong - figures >= 5 || now_ms() > end)
			fail("figure", "%.*s is %ld, not %ld",
			     (int)strlen(wrong->name) - 3, wrong->name + 1, got, wrong->want);
		usleep(500);
	}
	if (m->open) {
		struct pollfd pfd = { .fd = event_fd, .events = POLLIN };

		poll(&pfd, 1, 0);
		if (pfd.revents != (unread ? POLLIN : 0))
			fail("poll", "poll() says %#x with %u unread events",
			     pfd.revents, unread);
	}
}

static void check_page(unsigned int page)
{
	static unsigned char got[PAGE];
	const unsigned char *want = m->data + page * PAGE;
	uint64_t len = m->size - page * PAGE;

	if (len > PAGE)
		len = PAGE;
	if (pread(fd_read, got, len, page * PAGE) != (ssize_t)len)
		fail("contents", "page %u cannot be read", page);
	for (unsigned int i = 0; i < len; i++)
		if (got[i] != want[i])
			fail("contents", "page %u, byte %u: %#x, not %#x", page, i,
			     got[i], want[i]);
}

static void check_contents(bool all)
{
	struct stat st;

	if (fstat(fd, &st))
		err(3, "fstat");
	if (st.st_size != (off_t)m->size)
		fail("size", "%lld, not %llu", (long long)st.st_size,
		     (unsigned long long)m->size);
	for (unsigned int i = 0; i < (all ? m->pages : HOT); i++) {
		unsigned int page = all ? i : hot[i];

		if (page * PAGE < m->size)
			check_page(page);
	}
}

/* Who waits is not to have come to an end */
static void check_waiters(void)
{
	struct answer answer;

	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && worker_answers(i, &answer, 0))
			fail("wait", "process %u does not wait: %s, signal %d", i,
			     name_of(answer.ret), answer.sig);
}

/*
 * Accesses
 */

static void drain_pipe(unsigned int process)
{
	char data[PAGE];

	while (read(pipes[process][0], data, sizeof(data)) > 0)
		;
}

static void check_outcome(unsigned int process, const struct outcome *want)
{
	const struct access *a = &m->process[process].access;
	struct answer got;

	if (!worker_answers(process, &got, LONG_MS))
		fail("wait", "process %u goes on waiting, or died; %s, signal %d were expected",
		     process, name_of(want->ret), want->sig);
	if (verbose)
		printf("    process %u: %s, signal %d\n", process, name_of(got.ret),
		       got.sig);
	if (got.sig != want->sig || (got.sig && got.code != want->code))
		fail("signal", "process %u: signal %d with code %d, not %d with %d",
		     process, got.sig, got.code, want->sig, want->code);
	if (got.sig && got.addr != BASE + a->at)
		fail("signal", "process %u: address %#lx, not %#llx", process, got.addr,
		     (unsigned long long)(BASE + a->at));
	if (!got.sig && a->change != CHANGE_STORE && got.ret != want->ret)
		fail("result", "process %u: %s, not %s", process, name_of(got.ret),
		     name_of(want->ret));
	drain_pipe(process);
}

static void count_wait(unsigned int process)
{
	const struct process *p = &m->process[process];

	counted(COUNT_WAITS);
	if (m->events[p->event].waiters > 1)
		counted(COUNT_JOINED);
	if (p->access.change >= CHANGE_COPY)
		counted(COUNT_KERNEL_WAITS);
	if (verbose)
		printf("    process %u waits\n", process);
}

/* Carries out an order of a process that changes the file in that way */
static bool change(unsigned int process, const struct order *order,
		   const struct access *access)
{
	struct outcome outcome;

	model_access(m, process, access, &outcome);
	worker_send(process, order);
	if (!outcome.waits)
		check_outcome(process, &outcome);
	else
		count_wait(process);
	return outcome.waits || (!outcome.sig && outcome.ret >= 0);
}

/* Those that the operation has let go on */
static void settle(void)
{
	struct outcome outcome;

	for (unsigned int i = 0; i < PROCESSES; i++) {
		if (!m->process[i].waits || !m->process[i].woken)
			continue;
		model_resume(m, i, &outcome);
		counted(outcome.waits ? COUNT_AGAIN :
			outcome.sig || outcome.ret < 0 ? COUNT_REFUSED : COUNT_GOES_ON);
		if (!outcome.waits)
			check_outcome(i, &outcome);
	}
}

static bool do_store(const unsigned int *arg)
{
	unsigned int page = hot[arg[1]] + shift_of(arg[2]);
	struct access a = {
		.change = CHANGE_STORE, .owner = arg[0],
		.at = page * PAGE + arg[0] * CELL, .value = byte_of(arg[3]),
	};
	struct order order = {
		.what = WORK_STORE,
		.arg = { BASE + a.at, byte_of(arg[3]) * 0x0101010101010101UL },
	};

	if (!free_to_act(arg[0]) || model_conflicts(m, arg[0], &a))
		return false;
	return change(arg[0], &order, &a);
}

static bool do_load(const unsigned int *arg)
{
	unsigned int nr = hot[arg[1]] + shift_of(arg[2]);
	const struct mapped *page = &m->process[arg[0]].window[nr];
	struct order order = { .what = WORK_LOAD, .arg = { address(nr) } };
	struct answer got;
	uint64_t want;
	int sig = 0;

	if (!free_to_act(arg[0]))
		return false;
	if (!page->mapped || page->prot == PROT_NONE)
		sig = SIGSEGV;
	else if (page->page >= (m->size + PAGE - 1) / PAGE)
		sig = SIGBUS;
	if (!worker_does(arg[0], &order, &got))
		fail("wait", "process %u waits for a load", arg[0]);
	if (got.sig != sig)
		fail("signal", "load: signal %d, not %d", got.sig, sig);
	if (sig)
		return false;
	memcpy(&want, page->copy ? page->copy : m->data + page->page * PAGE,
	       sizeof(want));
	if (got.value != want)
		fail("contents", "load of page %u in window: %#llx, not %#llx", nr,
		     (unsigned long long)got.value, (unsigned long long)want);
	return true;
}

static struct access file_access(enum change how, const unsigned int *at_in_len)
{
	uint64_t pos = hot[at_in_len[0]] * PAGE + in_page(at_in_len[1]);

	return (struct access){
		.change = how, .pos = pos, .len = length_of(pos, at_in_len[2], m->pages),
	};
}

/* A write that is cut because the file may not grow would need a model of folios */
static void cut_at_seal(struct access *a)
{
	if ((m->seals & F_SEAL_GROW) && a->pos < m->size && a->pos + a->len > m->size)
		a->len = m->size - a->pos;
}

/* Bytes to be written, and where they are, in the memory of the worker's own */
static struct iovec *fill_scratch(unsigned int process, const struct access *a)
{
	unsigned char *scratch = workers[process].scratch;
	struct iovec *iov = (struct iovec *)scratch;

	memset(scratch + PAGE, a->value, a->len);
	iov[0] = (struct iovec){ scratch + PAGE, a->len };
	return iov;
}

static bool do_write(const unsigned int *arg)
{
	struct access a = file_access(CHANGE_WRITE, &arg[1]);
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_pwritev2 };

	a.value = byte_of(arg[4]);
	a.nowait = arg[5] == 1;
	cut_at_seal(&a);
	if (!free_to_act(arg[0]) || (!a.nowait && model_conflicts(m, arg[0], &a)))
		return false;
	/* Other files do not know of it. */
	if (a.nowait && !m->protectable)
		return false;
	order.arg[0] = arg[6] ? fd_again : fd;
	order.arg[1] = (unsigned long)fill_scratch(arg[0], &a);
	order.arg[2] = 1;
	order.arg[3] = a.pos;
	order.arg[5] = a.nowait ? RWF_NOWAIT : 0;
	return change(arg[0], &order, &a);
}

static bool do_splice(const unsigned int *arg)
{
	struct access a = file_access(CHANGE_WRITE, &arg[1]);
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_splice };
	struct iovec *iov;

	a.value = byte_of(arg[4]);
	cut_at_seal(&a);
	if (!a.len || !free_to_act(arg[0]) || model_conflicts(m, arg[0], &a))
		return false;
	iov = fill_scratch(arg[0], &a);
	if (write(pipes[arg[0]][1], iov->iov_base, a.len) != (ssize_t)a.len)
		err(3, "pipe");
	*(uint64_t *)workers[arg[0]].scratch = a.pos;
	order.arg[0] = pipes[arg[0]][0];
	order.arg[2] = fd;
	order.arg[3] = (unsigned long)workers[arg[0]].scratch;
	order.arg[4] = a.len;
	return change(arg[0], &order, &a);
}

static bool do_copy(const unsigned int *arg)
{
	struct access a = file_access(CHANGE_WRITE, &arg[1]);
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_copy_file_range };
	uint64_t *offsets = (uint64_t *)workers[arg[0]].scratch;

	a.value = byte_of(arg[4]);
	cut_at_seal(&a);
	if (!a.len || !free_to_act(arg[0]) || model_conflicts(m, arg[0], &a))
		return false;
	offsets[0] = arg[4] * SOURCE;
	offsets[1] = a.pos;
	order.arg[0] = source;
	order.arg[1] = (unsigned long)&offsets[0];
	order.arg[2] = fd;
	order.arg[3] = (unsigned long)&offsets[1];
	order.arg[4] = a.len;
	return change(arg[0], &order, &a);
}

static struct access window_access(enum change how, unsigned int owner,
				   unsigned int at, unsigned int place,
				   unsigned int in, unsigned int len)
{
	uint64_t start = (hot[at] + shift_of(place)) * PAGE + in_page(in);

	return (struct access){
		.change = how, .owner = owner, .at = start,
		.len = length_of(start, len, m->window),
	};
}

static bool do_read_into(const unsigned int *arg)
{
	struct access a = window_access(CHANGE_COPY, arg[0], arg[1], arg[2], arg[3],
					arg[4]);
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_pread64 };

	a.value = byte_of(arg[5]);
	if (!a.len || !free_to_act(arg[0]) || model_conflicts(m, arg[0], &a))
		return false;
	order.arg[0] = source;
	order.arg[1] = BASE + a.at;
	order.arg[2] = a.len;
	order.arg[3] = arg[5] * SOURCE;
	return change(arg[0], &order, &a);
}

static bool do_vm_write(const unsigned int *arg)
{
	struct access a = window_access(CHANGE_PINNED, arg[1], arg[2], 0, arg[3],
					arg[4]);
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_process_vm_writev };
	struct iovec *iov;

	a.value = byte_of(arg[5]);
	if (!a.len || !free_to_act(arg[0]) || !m->process[arg[1]].alive ||
	    model_conflicts(m, arg[0], &a))
		return false;
	iov = fill_scratch(arg[0], &a);
	iov[1] = (struct iovec){ (void *)(BASE + a.at), a.len };
	order.arg[0] = workers[arg[1]].pid;
	order.arg[1] = (unsigned long)&iov[0];
	order.arg[2] = 1;
	order.arg[3] = (unsigned long)&iov[1];
	order.arg[4] = 1;
	return change(arg[0], &order, &a);
}

/* Whether all pages are mapped, and by one thing: what calls do with several is another matter */
static bool uniform(unsigned int process, struct range r)
{
	const struct mapped *page = &m->process[process].window[r.first];

	for (unsigned int i = 0; i <= r.last - r.first; i++)
		if (!page[i].mapped || page[i].shared != page->shared ||
		    page[i].may_write != page->may_write ||
		    page[i].prot != page->prot || page[i].page != page->page + i)
			return false;
	return true;
}

static bool do_populate(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);
	struct access a = {
		.change = CHANGE_POPULATE, .owner = arg[0], .at = r.first * PAGE,
		.len = bytes_of(r),
	};
	struct order order = {
		.what = WORK_SYSCALL, .nr = SYS_madvise,
		.arg = { address(r.first), bytes_of(r), MADV_POPULATE_WRITE },
	};

	if (!free_to_act(arg[0]) || !uniform(arg[0], r) ||
	    !(m->process[arg[0]].window[r.first].prot & PROT_WRITE) ||
	    model_conflicts(m, arg[0], &a))
		return false;
	return change(arg[0], &order, &a);
}

/*
 * Pins, as buffers of io_uring: one page at most for each process, whose ring has it.
 */

static int rings[PROCESSES];

static bool do_pin(const unsigned int *arg)
{
	unsigned int page = hot[arg[1]] + shift_of(arg[2]);
	const struct mapped *mapped = &m->process[arg[0]].window[page];
	unsigned char *scratch = workers[arg[0]].scratch;
	struct access a = {
		.change = CHANGE_PIN, .owner = arg[0], .at = page * PAGE, .len = PAGE,
	};
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_io_uring_register };

	if (!free_to_act(arg[0]) || rings[arg[0]] || !mapped->mapped ||
	    !(mapped->prot & PROT_WRITE) || model_conflicts(m, arg[0], &a))
		return false;
	memset(scratch, 0, PAGE);
	rings[arg[0]] = worker_syscall(arg[0], SYS_io_uring_setup, 1,
				       (unsigned long)scratch, 0, 0, 0, 0);
	if (rings[arg[0]] < 0)
		fail("result", "io_uring_setup: %s", name_of(rings[arg[0]]));
	*(struct iovec *)scratch = (struct iovec){ (void *)address(page), PAGE };
	order.arg[0] = rings[arg[0]];
	order.arg[1] = IORING_REGISTER_BUFFERS;
	order.arg[2] = (unsigned long)scratch;
	order.arg[3] = 1;
	return change(arg[0], &order, &a);
}

/* By hand: a ring that is closed lets go of its buffers some time later */
static void unpin(unsigned int process)
{
	worker_syscall(process, SYS_io_uring_register, rings[process],
		       IORING_UNREGISTER_BUFFERS, 0, 0, 0, 0);
	worker_syscall(process, SYS_close, rings[process], 0, 0, 0, 0, 0);
	rings[process] = 0;
	model_unpin(m, process);
}

static bool do_unpin(const unsigned int *arg)
{
	bool pinned = m->process[arg[0]].pin != NO_PAGE;

	if (!free_to_act(arg[0]) || !rings[arg[0]])
		return false;
	unpin(arg[0]);
	return pinned;
}

static bool do_punch(const unsigned int *arg)
{
	struct access a = file_access(CHANGE_PUNCH, &arg[1]);
	struct order order = {
		.what = WORK_SYSCALL, .nr = SYS_fallocate,
		.arg = { fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a.pos, a.len },
	};

	if (!a.len || !free_to_act(arg[0]) || model_conflicts(m, arg[0], &a))
		return false;
	return change(arg[0], &order, &a);
}

static bool do_remove(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);
	const struct mapped *page = &m->process[arg[0]].window[r.first];
	struct access a = {
		.change = CHANGE_PUNCH, .pos = page->page * PAGE, .len = bytes_of(r),
	};
	struct order order = {
		.what = WORK_SYSCALL, .nr = SYS_madvise,
		.arg = { address(r.first), bytes_of(r), MADV_REMOVE },
	};

	/* VMAs that are not merged are removed one by one. */
	if (!free_to_act(arg[0]) || !uniform(arg[0], r) || !page->shared ||
	    !page->may_write || r.last > r.first + 8 ||
	    model_conflicts(m, arg[0], &a))
		return false;
	if (r.first != r.last) {
		a.len = PAGE;
		order.arg[1] = PAGE;
	}
	return change(arg[0], &order, &a);
}

static bool do_truncate(const unsigned int *arg)
{
	static const unsigned int cut[] = { 0, 100, 2048 };
	uint64_t size = arg[1] >= HOT ? m->pages * PAGE : hot[arg[1]] * PAGE;
	struct access a = { .change = CHANGE_TRUNCATE };
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_ftruncate };

	a.pos = arg[2] == 3 ? m->size : size + cut[arg[2]];
	if (a.pos > m->pages * PAGE)
		a.pos = m->pages * PAGE;
	order.arg[0] = fd;
	order.arg[1] = a.pos;
	if (!free_to_act(arg[0]) || model_conflicts(m, arg[0], &a))
		return false;
	return change(arg[0], &order, &a);
}

static bool do_allocate(const unsigned int *arg)
{
	uint64_t pos = hot[arg[1]] * PAGE, len = length_of(pos, arg[2], m->pages);
	bool sealed = (m->seals & F_SEAL_GROW) && pos + len > m->size;

	if (!len || !free_to_act(arg[0]))
		return false;
	/* The size decides what a store does that waits for a page behind it. */
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && m->process[i].woken)
			return false;
	expect("fallocate", worker_syscall(arg[0], SYS_fallocate, fd, 0, pos, len, 0, 0),
	       sealed ? -EPERM : 0);
	if (!sealed)
		model_grow(m, pos + len);
	return !sealed;
}

/*
 * Mappings
 */

static void unmap_pages(unsigned int process, struct range r)
{
	for (unsigned int i = r.first; i <= r.last; i++) {
		struct mapped *page = &m->process[process].window[i];

		model_drop_copy(page);
		*page = (struct mapped){ 0 };
	}
}

static bool do_mmap(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);
	int prot = prot_of(arg[4]), from = arg[6] ? fd : fd_read;
	bool shared = arg[5], writable = from == fd, may_write = true;
	unsigned int first = hot[arg[1]];
	long want = address(r.first);

	if (!free_to_act(arg[0]))
		return false;
	if (shared) {
		bool sealed = m->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);

		may_write = writable && !sealed;
		if (!writable && (prot & PROT_WRITE))
			want = -EACCES;
		else if (sealed && (prot & PROT_WRITE))
			want = -EPERM;
	}
	expect("mmap", worker_syscall(arg[0], SYS_mmap, address(r.first), bytes_of(r),
				      prot, MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE),
				      from, first * PAGE), want);
	if (want < 0)
		return false;
	unmap_pages(arg[0], r);
	for (unsigned int i = r.first; i <= r.last; i++)
		m->process[arg[0]].window[i] = (struct mapped){
			.mapped = true, .shared = shared, .may_write = may_write,
			.prot = prot, .page = first + i - r.first,
		};
	return true;
}

static bool do_munmap(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);

	if (!free_to_act(arg[0]))
		return false;
	expect("munmap", worker_syscall(arg[0], SYS_munmap, address(r.first),
					bytes_of(r), 0, 0, 0, 0), 0);
	unmap_pages(arg[0], r);
	return true;
}

static bool do_mprotect(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);
	struct mapped *window = m->process[arg[0]].window;
	int prot = prot_of(arg[4]);
	long want = 0;

	if (!free_to_act(arg[0]))
		return false;
	for (unsigned int i = r.first; i <= r.last && !want; i++) {
		if (!window[i].mapped)
			want = -ENOMEM;
		else if ((prot & PROT_WRITE) && !window[i].may_write)
			want = -EACCES;
		else
			window[i].prot = prot;
	}
	expect("mprotect", worker_syscall(arg[0], SYS_mprotect, address(r.first),
					  bytes_of(r), prot, 0, 0, 0), want);
	return !want;
}

static bool do_mremap(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]), to;
	struct mapped *window = m->process[arg[0]].window;
	long ret;

	to.first = hot[arg[1]] + shift_of(arg[4]);
	to.last = to.first + r.last - r.first;
	if (!free_to_act(arg[0]) || !uniform(arg[0], r) ||
	    (to.first <= r.last && to.last >= r.first))
		return false;
	/* Before, because it is unmapped even if the rest fails. */
	expect("munmap", worker_syscall(arg[0], SYS_munmap, address(to.first),
					bytes_of(to), 0, 0, 0, 0), 0);
	unmap_pages(arg[0], to);
	ret = worker_syscall(arg[0], SYS_mremap, address(r.first), bytes_of(r),
			     bytes_of(r), MREMAP_MAYMOVE | MREMAP_FIXED,
			     address(to.first), 0);
	/* Two VMAs that could be one need not be. */
	if (ret == -EFAULT && r.first != r.last)
		return false;
	expect("mremap", ret, address(to.first));
	for (unsigned int i = r.first; i <= r.last; i++) {
		window[to.first + i - r.first] = window[i];
		window[i] = (struct mapped){ 0 };
	}
	return true;
}

static bool do_advise(const unsigned int *arg)
{
	static const struct {
		int advice;
		bool known;	/* what it returns */
	} advices[] = {
		{ MADV_DONTNEED, true }, { MADV_PAGEOUT, true }, { MADV_COLD, true },
		{ MADV_HUGEPAGE, true }, { MADV_NOHUGEPAGE, true },
		{ MADV_COLLAPSE, false }, { MADV_WILLNEED, true },
		{ MADV_POPULATE_READ, false },
	};
	struct range r = range_of(&arg[1], arg[3]);
	struct mapped *window = m->process[arg[0]].window;
	int advice = advices[arg[4]].advice;
	long want = 0, ret;

	if (!free_to_act(arg[0]))
		return false;
	for (unsigned int i = r.first; i <= r.last; i++) {
		if (!window[i].mapped)
			want = -ENOMEM;
		else if (advice == MADV_DONTNEED)
			model_drop_copy(&window[i]);
	}
	ret = worker_syscall(arg[0], SYS_madvise, address(r.first), bytes_of(r),
			     advice, 0, 0, 0);
	if (advices[arg[4]].known)
		expect("madvise", ret, want);
	return !ret;
}

/*
 * Processes
 */

static unsigned int nr_alive(void)
{
	unsigned int nr = 0;

	for (unsigned int i = 0; i < PROCESSES; i++)
		nr += m->process[i].alive;
	return nr;
}

static int ioctl_resolve(uint64_t cookie, unsigned int action)
{
	struct memfd_resolve resolve = { .cookie = cookie, .action = action };

	return result(ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, &resolve));
}

static void kill_process(unsigned int process)
{
	int left = m->process[process].left;
	uint64_t cookie = left != NO_EVENT && m->events[left].alive ?
			  m->events[left].cookie : 0;

	if (rings[process])
		unpin(process);
	worker_kill(process);
	drain_pipe(process);
	model_kill(m, process);
	/* The last of its writers has died, which this finds out. */
	if (cookie)
		expect("resolving for the dead",
		       ioctl_resolve(cookie, MEMFD_RESOLVE_ALLOW), -ENOENT);
}

/*
 * Its address space lives as long as somebody writes to it from outside, and what it has
 * pinned as long as it likes.
 */
static bool lives_on(unsigned int process)
{
	if (rings[process] && m->process[process].waits)
		return true;
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (i != process && m->process[i].waits &&
		    m->process[i].access.change == CHANGE_PINNED &&
		    m->process[i].access.owner == process)
			return true;
	return false;
}

static bool do_kill(const unsigned int *arg)
{
	if (!m->process[arg[0]].alive || nr_alive() == 1 ||
	    lives_on(arg[0]))
		return false;
	kill_process(arg[0]);
	return true;
}

static bool do_fork(const unsigned int *arg)
{
	if (!free_to_act(arg[0]) || arg[0] == arg[1] || lives_on(arg[1]))
		return false;
	if (m->process[arg[1]].alive)
		kill_process(arg[1]);
	if (!worker_fork(arg[0], arg[1]))
		fail("result", "process %u cannot fork", arg[0]);
	model_fork(m, arg[0], arg[1]);
	return true;
}

static bool do_signal(const unsigned int *arg)
{
	struct process *p = &m->process[arg[0]];
	struct outcome outcome = { .ret = -EINTR };

	/* What the kernel does in the middle of a copy is its own affair. */
	if (!p->alive || !p->waits || p->access.change >= CHANGE_COPY)
		return false;
	kill(workers[arg[0]].pid, SIGUSR1);
	if (m->events[p->event].waiters == 1 && !m->events[p->event].unread)
		counted(COUNT_LEFT);
	if (model_signal(m, arg[0]))
		check_outcome(arg[0], &outcome);
	else
		model_resume(m, arg[0], &outcome);
	return true;
}

/*
 * The handler
 */

static long call_protect(const unsigned int *from_nr, int prot, unsigned int flags,
			 bool handler)
{
	unsigned int first = hot[from_nr[0]];
	unsigned int last = hot[last_of(from_nr[0], from_nr[1])];
	struct memfd_protect_range range = {
		.offset = first * PAGE,
		.length = from_nr[1] ? (last - first + 1) * PAGE : 0,
		.prot = prot,
		.flags = flags,
	};

	if (handler)
		return result(ioctl(event_fd, MEMFD_NOTIFY_PROTECT, &range));
	return result(syscall(SYS_memfd_protect, fd, range.offset, range.length, prot,
			      flags));
}

static bool protect(const unsigned int *from_nr, enum mode mode, unsigned int how)
{
	static const unsigned int flags[] = {
		[MODE_WAIT] = MEMFD_PROTECT_WAIT, [MODE_ASYNC] = MEMFD_PROTECT_ASYNC,
		[MODE_DENY] = MEMFD_PROTECT_DENY,
	};
	unsigned int first = hot[from_nr[0]];
	unsigned int last = from_nr[1] ? hot[last_of(from_nr[0], from_nr[1])] : m->pages;
	bool handler = how && m->open;
	long ret = call_protect(from_nr, mode ? PROT_READ : PROT_READ | PROT_WRITE,
				flags[mode], handler);

	expect("memfd_protect", ret, model_protect(m, first, last, mode, handler));
	if (ret == -EBUSY)
		check_busy();
	return !ret;
}

static bool do_protect(const unsigned int *arg)
{
		static const enum mode modes[] = {
		MODE_WAIT, MODE_ASYNC, MODE_DENY, MODE_WAIT, MODE_ASYNC,
	};

	return protect(arg, modes[arg[2]], arg[3] == 3);
}

static bool do_unprotect(const unsigned int *arg)
{
	return protect(arg, MODE_NONE, arg[2] == 3);
}

static bool do_notify(const unsigned int *arg)
{
	unsigned int flags = MEMFD_NOTIFY_NONBLOCK | (arg[0] ? 0 : MEMFD_NOTIFY_KERNEL);
	long ret = result(syscall(SYS_memfd_notify, fd, flags));
	long want = model_notify(m, flags);

	expect("memfd_notify", ret < 0 ? ret : 0, want);
	if (!want)
		event_fd = ret;
	return !want;
}

static bool do_close(const unsigned int *arg)
{
	if (!m->open)
		return false;
	close(event_fd);
	event_fd = -1;
	model_close(m);
	nr_read = 0;
	return true;
}

static bool same_record(const struct memfd_event *got, int nr)
{
	const struct event *e = &m->events[nr];
	uint64_t offset = e->first * PAGE, end = (e->last + 1) * PAGE;
	bool pid = false;

	if (got->len != sizeof(*got) || got->type != e->type ||
	    got->flags != e->flags || got->pid != got->tid ||
	    !got->cookie != !(e->flags & MEMFD_EVENT_F_WAITING))
		return false;
	for (unsigned int i = 0; i < PROCESSES; i++)
		if ((e->writers & (1U << i)) && pid_of[nr][i] == got->pid)
			pid = true;
	if (!pid)
		return false;
	/* That of any write which was logged: it is told by the first. */
	if (e->type == MEMFD_EVENT_DIRTY)
		return got->offset >= offset && got->offset + got->length <= end;
	return got->offset == offset && got->offset + got->length == end;
}

/* Finds what a record tells among the oldest events */
static void check_record(const struct memfd_event *got)
{
	int oldest = NO_EVENT;

	for (int i = 0; i < m->nr_events; i++) {
		struct event *e = &m->events[i];

		if (!e->unread)
			continue;
		if (oldest == NO_EVENT)
			oldest = i;
		if (e->batch != m->events[oldest].batch)
			break;
		if (!same_record(got, i))
			continue;
		e->unread = false;
		e->cookie = got->cookie;
		if (got->cookie)
			read_events[nr_read++] = i;
		return;
	}
	fail("event", "type %u, flags %u, %llu+%llu, pid %d; not %u, %u, page %u to %u, by %#x",
	     got->type, got->flags, got->offset, got->length, got->pid,
	     m->events[oldest].type, m->events[oldest].flags, m->events[oldest].first,
	     m->events[oldest].last, m->events[oldest].writers);
}

static bool do_events(const unsigned int *arg)
{
	struct memfd_event record[8];
	unsigned int waiters, pending, unread, nr = arg[0] + 1;
	long ret;

	if (!m->open)
		return false;
	model_counts(m, &waiters, &pending, &unread);
	if (arg[1] == 1) {
		expect("read with a small buffer",
		       result(read(event_fd, record, sizeof(record[0]) - 1)), -EINVAL);
		return true;
	}
	if (arg[1] == 2) {
		expect("read to nowhere", result(read(event_fd, (void *)BASE, sizeof(record))),
		       unread ? -EFAULT : -EAGAIN);
		return true;
	}
	if (nr > unread)
		nr = unread;
	ret = result(read(event_fd, record, (arg[0] + 1) * sizeof(record[0])));
	expect("read", ret, nr ? (long)(nr * sizeof(record[0])) : -EAGAIN);
	for (unsigned int i = 0; i < nr; i++)
		check_record(&record[i]);
	return nr;
}

static bool kernel_waits_for(int nr)
{
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && m->process[i].event == nr &&
		    m->process[i].access.change >= CHANGE_COPY)
			return true;
	return false;
}

/* One of those that can be resolved, if there are any, or one that was */
static int event_to_resolve(unsigned int which)
{
	for (int i = nr_read; i--; )
		if (m->events[read_events[i]].alive && !which--)
			return read_events[i];
	return which < (unsigned int)nr_read ? read_events[nr_read - 1 - which] : NO_EVENT;
}

static bool do_resolve(const unsigned int *arg)
{
	unsigned int action = arg[1] ? MEMFD_RESOLVE_DENY : MEMFD_RESOLVE_ALLOW;
	int nr;

	if (!m->open)
		return false;
	if (!arg[2])
		do_events((unsigned int []){ 7, 0 });
	nr = event_to_resolve(arg[0]);
	if (nr == NO_EVENT) {
		expect("resolving nothing", ioctl_resolve(UINT64_MAX, action), -ENOENT);
		return false;
	}
	/* A copy that is denied may be tried again byte by byte. */
	if (kernel_waits_for(nr))
		action = MEMFD_RESOLVE_ALLOW;
	expect("MEMFD_NOTIFY_RESOLVE", ioctl_resolve(m->events[nr].cookie, action),
	       model_resolve(m, nr, action == MEMFD_RESOLVE_ALLOW));
	return true;
}

static bool do_scan(const unsigned int *arg)
{
	static const unsigned int room[] = { 64, 1, 2, 3, 64 };
	struct model_range want[64];
	unsigned int nr, max = room[arg[2]];
	unsigned int first = hot[arg[0]];
	unsigned int last = arg[1] ? hot[last_of(arg[0], arg[1])] : m->pages;
	struct memfd_range got[64];
	struct memfd_scan scan = {
		.start = first * PAGE, .end = arg[1] ? (last + 1) * PAGE : 0,
		.ranges = (uintptr_t)got, .nr_ranges = max,
		.flags = arg[3] ? MEMFD_SCAN_REPROTECT : 0,
	};
	uint64_t end;

	if (!m->open)
		return false;
	nr = model_scan(m, first, last, max, arg[3], want);
	expect("MEMFD_NOTIFY_SCAN", result(ioctl(event_fd, MEMFD_NOTIFY_SCAN, &scan)), nr);
	for (unsigned int i = 0; i < nr; i++)
		if (got[i].offset != want[i].first * PAGE ||
		    got[i].length != want[i].nr * PAGE)
			fail("scan", "range %u: %llu bytes at %llu, not %u pages from %u on",
			     i, got[i].length, got[i].offset, want[i].nr, want[i].first);
	end = nr == max ? (want[nr - 1].first + want[nr - 1].nr) * PAGE :
	      arg[1] ? (last + 1) * PAGE : 1ULL << 63;
	if (scan.walk_end != end)
		fail("scan", "walk_end: %llu, not %llu", scan.walk_end,
		     (unsigned long long)end);
	return nr;
}

static bool do_seal(const unsigned int *arg)
{
	static const unsigned int seals[] = {
		F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_PROTECT, F_SEAL_FUTURE_WRITE,
		F_SEAL_WRITE, F_SEAL_SEAL,
	};
	long want = model_seal(m, seals[arg[0]]);

	expect("F_ADD_SEALS", result(fcntl(fd, F_ADD_SEALS, seals[arg[0]])), want);
	expect("F_GET_SEALS", result(fcntl(fd, F_GET_SEALS)), m->seals);
	return !want;
}

/*
 * Calls that are wrong
 */

enum { ON_FILE, ON_READ_ONLY, ON_NOTHING, ON_PIPE };

static const struct {
	const char *name;
	int on;
	uint64_t offset, length;
	int prot;
	unsigned int flags;
	long want;
} bad_protects[] = {
	{ "offset 1", ON_FILE, 1, PAGE, PROT_READ, 2, -EINVAL },
	{ "length 1", ON_FILE, 0, 1, PROT_READ, 2, -EINVAL },
	{ "negative", ON_FILE, 1ULL << 63, PAGE, PROT_READ, 2, -EINVAL },
	{ "overflow", ON_FILE, (1ULL << 63) - PAGE, 2 * PAGE, PROT_READ, 2, -EINVAL },
	{ "PROT_NONE", ON_FILE, 0, 0, PROT_NONE, 0, -EINVAL },
	{ "PROT_WRITE", ON_FILE, 0, 0, PROT_WRITE, 0, -EINVAL },
	{ "mode 3", ON_FILE, 0, 0, PROT_READ, 3, -EINVAL },
	{ "flags to unprotect", ON_FILE, 0, 0, PROT_READ | PROT_WRITE, 1, -EINVAL },
	{ "read-only", ON_READ_ONLY, 1, 1, 0, 9, -EBADF },
	{ "not open", ON_NOTHING, 0, 0, PROT_READ, 2, -EBADF },
	{ "a pipe", ON_PIPE, 0, 0, PROT_READ, 2, -EINVAL },
};

static const struct {
	const char *name;
	uint64_t start, end, nr, flags;
	long want;
} bad_scans[] = {
	{ "no room", 0, 0, 0, 0, -EINVAL },
	{ "end before start", 8192, 4096, 1, 0, -EINVAL },
	{ "flags 2", 0, 0, 1, 2, -EINVAL },
	{ "unaligned", 1, 0, 1, 0, -EINVAL },
	{ "end too large", 0, (1ULL << 63) + 4096, 1, 0, -EINVAL },
	{ "nothing to scan", 4096, 4096, 1, MEMFD_SCAN_REPROTECT, 0 },
};

static const struct {
	const char *name;
	unsigned int action, reserved;
} bad_resolves[] = {
	{ "action 2", 2, 0 },
	{ "reserved 1", 0, 1 },
};

#define NR(array)	(sizeof(array) / sizeof(*(array)))

static void bad_protect(unsigned int i, bool handler)
{
	const int files[] = { fd, fd_read, -1, pipes[0][1] };
	struct memfd_protect_range range = {
		bad_protects[i].offset, bad_protects[i].length, bad_protects[i].prot,
		bad_protects[i].flags,
	};
	long ret;

	if (handler && bad_protects[i].on == ON_FILE)
		ret = ioctl(event_fd, MEMFD_NOTIFY_PROTECT, &range);
	else
		ret = syscall(SYS_memfd_protect, files[bad_protects[i].on], range.offset,
			      range.length, range.prot, range.flags);
	expect(bad_protects[i].name, result(ret), bad_protects[i].want);
}

static void bad_scan(unsigned int i)
{
	struct memfd_range range;
	struct memfd_scan scan = {
		.start = bad_scans[i].start, .end = bad_scans[i].end,
		.nr_ranges = bad_scans[i].nr, .flags = bad_scans[i].flags,
		.ranges = (uintptr_t)&range,
	};

	expect(bad_scans[i].name, result(ioctl(event_fd, MEMFD_NOTIFY_SCAN, &scan)),
	       bad_scans[i].want);
}

static void bad_resolve(unsigned int i)
{
	struct memfd_resolve resolve = {
		UINT64_MAX, bad_resolves[i].action, bad_resolves[i].reserved,
	};

	expect(bad_resolves[i].name,
	       result(ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, &resolve)), -EINVAL);
}

static bool do_bad(const unsigned int *arg)
{
	unsigned int which = arg[0];

	if (which < NR(bad_protects)) {
		bad_protect(which, m->open && arg[1]);
		return true;
	}
	which -= NR(bad_protects);
	if (!m->open) {
		expect("notify with flags", result(syscall(SYS_memfd_notify, fd, 4)), -EINVAL);
		expect("notify read-only", result(syscall(SYS_memfd_notify, fd_read, 0)),
		       -EBADF);
		return true;
	}
	if (which < NR(bad_scans)) {
		bad_scan(which);
	} else if (which - NR(bad_scans) < NR(bad_resolves)) {
		bad_resolve(which - NR(bad_scans));
	} else {
		expect("no such ioctl", result(ioctl(event_fd, _IO('M', 99))), -ENOTTY);
		expect("lseek", result(lseek(event_fd, 0, SEEK_SET)), -ESPIPE);
		expect("ioctl to nowhere",
		       result(ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, NULL)), -EFAULT);
	}
	return true;
}

/*
 * What is to make no difference
 */

static bool write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = file >= 0 && write(file, text, strlen(text)) > 0;

	close(file);
	return ok;
}

static bool do_reclaim(const unsigned int *arg)
{
	return write_text(CGROUP "/memory.reclaim", "4M");
}

static bool do_migrate(const unsigned int *arg)
{
	void *pages[HOT];
	int nodes[HOT], status[HOT];
	bool any = false;

	if (!m->process[arg[0]].alive)
		return false;
	for (unsigned int i = 0; i < HOT; i++) {
		pages[i] = (void *)address(hot[i]);
		nodes[i] = arg[1];
		status[i] = -1;
	}
	if (syscall(SYS_move_pages, workers[arg[0]].pid, (unsigned long)HOT, pages, nodes,
		    status, 1 << 2 /* MPOL_MF_MOVE_ALL */) < 0)
		return false;
	for (unsigned int i = 0; i < HOT; i++)
		any |= status[i] == nodes[i];
	return any;
}

/* Returns whether it had an effect */
typedef bool operation_fn(const unsigned int *arg);

static operation_fn * const operations[NR_KINDS] = {
	[OP_MMAP] = do_mmap, [OP_MUNMAP] = do_munmap, [OP_MPROTECT] = do_mprotect,
	[OP_MREMAP] = do_mremap, [OP_ADVISE] = do_advise, [OP_STORE] = do_store,
	[OP_LOAD] = do_load, [OP_WRITE] = do_write, [OP_SPLICE] = do_splice,
	[OP_COPY] = do_copy, [OP_READ_INTO] = do_read_into, [OP_VM_WRITE] = do_vm_write,
	[OP_POPULATE] = do_populate, [OP_PIN] = do_pin, [OP_UNPIN] = do_unpin,
	[OP_PUNCH] = do_punch, [OP_REMOVE] = do_remove,
	[OP_TRUNCATE] = do_truncate, [OP_ALLOCATE] = do_allocate, [OP_FORK] = do_fork,
	[OP_KILL] = do_kill, [OP_SIGNAL] = do_signal, [OP_PROTECT] = do_protect,
	[OP_UNPROTECT] = do_unprotect, [OP_NOTIFY] = do_notify, [OP_CLOSE] = do_close,
	[OP_EVENTS] = do_events, [OP_RESOLVE] = do_resolve, [OP_SCAN] = do_scan,
	[OP_SEAL] = do_seal, [OP_BAD] = do_bad, [OP_RECLAIM] = do_reclaim,
	[OP_MIGRATE] = do_migrate,
};

/*
 * A program
 */

static int open_again(int file, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	return open(path, flags | O_CLOEXEC);
}

static void make_source(void)
{
	unsigned char data[SOURCE];

	source = syscall(SYS_memfd_create, "source", MFD_CLOEXEC);
	for (unsigned int i = 0; i < VALUES; i++) {
		memset(data, byte_of(i), sizeof(data));
		if (pwrite(source, data, sizeof(data), i * SOURCE) != SOURCE)
			err(3, "source file");
	}
}

/*
 * The pages that operations are about. With page tables, those at the ends of the
 * first three, of which the last is not whole.
 */
static void choose_pages(bool tables)
{
	static const unsigned int begin[] = { 0, 508, 1022 }, nr[] = { 6, 8, 10 };
	unsigned int n = 0;

	for (unsigned int i = 0; i < HOT; i++)
		hot[i] = i;
	for (unsigned int i = 0; tables && i < 3; i++)
		for (unsigned int j = 0; j < nr[i]; j++)
			hot[n++] = begin[i] + j;
}

static void prepare(const unsigned int *arg)
{
	unsigned int flags = MFD_CLOEXEC;
	const bool tables = arg[0];

	flags |= arg[1] ? MFD_SHARE_PGTABLES : 0;
	flags |= arg[2] == 1 ? 0 : MFD_ALLOW_PROTECT;
	flags |= arg[3] == 1 ? MFD_ALLOW_SEALING : 0;
	choose_pages(tables);
	m = malloc(sizeof(*m));
	if (!m)
		err(3, "the model");
	model_init(m, hot[HOT - 1] + 1, hot[HOT - 1] + 1 + (tables ? 512 : 8));
	m->protectable = flags & MFD_ALLOW_PROTECT;
	m->seals = flags & MFD_ALLOW_SEALING ? 0 : F_SEAL_SEAL;
	fd = syscall(SYS_memfd_create, "fuzz", flags);
	if (fd < 0 && errno == EINVAL && (flags & MFD_SHARE_PGTABLES))
		fd = syscall(SYS_memfd_create, "fuzz", flags & ~MFD_SHARE_PGTABLES);
	if (fd < 0)
		err(3, "memfd_create");
	m->size = arg[4] >= HOT ? m->pages * PAGE : hot[arg[4]] * PAGE;
	if (ftruncate(fd, m->size))
		err(3, "ftruncate");
	fd_again = open_again(fd, O_RDWR);
	fd_read = open_again(fd, O_RDONLY);
	make_source();
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (pipe2(pipes[i], O_NONBLOCK | O_CLOEXEC))
			err(3, "pipe");
	workers_prepare(PROCESSES);
	for (unsigned int i = 0; i < PROCESSES - 1; i++) {
		const unsigned int all[] = { i, 0, 0, 0, 2, 1, 1 };

		worker_start(i);
		m->process[i].alive = true;
		if (arg[5])
			do_mmap(all);
	}
	if (arg[6])
		do_notify((unsigned int []){ arg[6] > 2 });
}

/* Events of now tell who is a process now */
static void note_events(int from)
{
	for (; from < m->nr_events; from++) {
		if (m->events[from].type == MEMFD_EVENT_DIRTY)
			counted(COUNT_DIRTY);
		else if (!(m->events[from].flags & MEMFD_EVENT_F_WAITING))
			counted(COUNT_REPORTS);
		for (unsigned int i = 0; i < PROCESSES; i++)
			pid_of[from][i] = workers[i].pid;
	}
}

static void run(const struct program *what)
{
	program = what;
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir(CGROUP, 0755);
	write_text(CGROUP "/cgroup.procs", "0");
	prepare(program->ops[0].arg);
	for (now = 1; now < program->nr && m->nr_events < MAX_EVENTS - 64; now++) {
		const struct op *op = &program->ops[now];
		operation_fn *operation = operations[op->kind];
		int events = m->nr_events;

		if (verbose)
			printf("%u %s\n", now + 1, kinds[op->kind].name);
		if (!operation)
			continue;
		m->batch++;
		if (operation(op->arg))
			worked(op->kind);
		settle();
		note_events(events);
		check_figures();
		check_waiters();
		check_contents(false);
	}
	check_contents(true);
	for (unsigned int i = 0; i < PROCESSES; i++)
		worker_kill(i);
}

static bool available(void)
{
	int file = syscall(SYS_memfd_create, "fuzz", MFD_ALLOW_PROTECT);

	close(file);
	return file >= 0;
}

static const struct fuzzer fuzzer = {
	.name = "memfd_fuzz",
	.about = "Compares memfd_protect(2) with a model of what it promises.",
	.kinds = kinds,
	.nr_kinds = NR_KINDS,
	.breaks = model_breaks,
	.counters = counters,
	.available = available,
	.run = run,
};

int main(int argc, char **argv)
{
	return fuzz_main(argc, argv, &fuzzer);
}
