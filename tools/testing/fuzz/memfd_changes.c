// SPDX-License-Identifier: GPL-2.0-only
/*
 * Operations of memfd_fuzz that change the file, and so may be waited for or refused.
 */
#include "memfd_fuzz.h"

#include <linux/io_uring.h>

void drain_pipe(unsigned int process)
{
	char data[PAGE];

	while (read(pipes[process][0], data, sizeof(data)) > 0)
		;
}

void check_outcome(unsigned int process, const struct outcome *want)
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
void settle(void)
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

bool do_store(const unsigned int *arg)
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

bool do_load(const unsigned int *arg)
{
	unsigned int nr = hot[arg[1]] + shift_of(arg[2]);
	const struct mapped *page = &m->process[arg[0]].window[nr];
	struct order order = {
		.what = WORK_LOAD, .arg = { address(nr) + arg[3] * CELL },
	};
	const unsigned char *data;
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
	data = page->copy ? page->copy : m->data + page->page * PAGE;
	memcpy(&want, data + arg[3] * CELL, sizeof(want));
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

bool do_write(const unsigned int *arg)
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

bool do_splice(const unsigned int *arg)
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

bool do_copy(const unsigned int *arg)
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

bool do_read_into(const unsigned int *arg)
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

bool do_vm_write(const unsigned int *arg)
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
bool uniform(unsigned int process, struct range r)
{
	const struct mapped *page = &m->process[process].window[r.first];

	for (unsigned int i = 0; i <= r.last - r.first; i++)
		if (!page[i].mapped || page[i].shared != page->shared ||
		    page[i].may_write != page->may_write ||
		    page[i].prot != page->prot || page[i].page != page->page + i)
			return false;
	return true;
}

bool do_populate(const unsigned int *arg)
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

int rings[PROCESSES];
bool pinning[PROCESSES];

bool do_pin(const unsigned int *arg)
{
	unsigned int page = hot[arg[1]] + shift_of(arg[2]);
	const struct mapped *mapped = &m->process[arg[0]].window[page];
	unsigned char *scratch = workers[arg[0]].scratch;
	struct access a = {
		.change = CHANGE_PIN, .owner = arg[0], .at = page * PAGE, .len = PAGE,
	};
	struct order order = { .what = WORK_SYSCALL, .nr = SYS_io_uring_register };

	if (!free_to_act(arg[0]) || pinning[arg[0]] || !mapped->mapped ||
	    !(mapped->prot & PROT_WRITE) || model_conflicts(m, arg[0], &a))
		return false;
	memset(scratch, 0, PAGE);
	/* It stays: closing one wakes those who made it, some time later. */
	if (!rings[arg[0]])
		rings[arg[0]] = worker_syscall(arg[0], SYS_io_uring_setup, 1,
					       (unsigned long)scratch, 0, 0, 0, 0);
	if (rings[arg[0]] < 0)
		fail("result", "io_uring_setup: %s", name_of(rings[arg[0]]));
	*(struct iovec *)scratch = (struct iovec){ (void *)address(page), PAGE };
	order.arg[0] = rings[arg[0]];
	order.arg[1] = IORING_REGISTER_BUFFERS;
	order.arg[2] = (unsigned long)scratch;
	order.arg[3] = 1;
	pinning[arg[0]] = true;
	return change(arg[0], &order, &a);
}

/* By hand: a ring that is closed lets go of its buffers some time later */
void unpin(unsigned int process)
{
	worker_syscall(process, SYS_io_uring_register, rings[process],
		       IORING_UNREGISTER_BUFFERS, 0, 0, 0, 0);
	pinning[process] = false;
	model_unpin(m, process);
}

bool do_unpin(const unsigned int *arg)
{
	bool pinned = m->process[arg[0]].pin != NO_PAGE;

	if (!free_to_act(arg[0]) || !pinning[arg[0]])
		return false;
	unpin(arg[0]);
	return pinned;
}

bool do_punch(const unsigned int *arg)
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

bool do_remove(const unsigned int *arg)
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

bool do_truncate(const unsigned int *arg)
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

bool do_allocate(const unsigned int *arg)
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
