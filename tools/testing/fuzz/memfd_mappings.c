// SPDX-License-Identifier: GPL-2.0-only
/*
 * Operations of memfd_fuzz that change mappings, begin and end processes, or are to make
 * no difference.
 */
#include "memfd_fuzz.h"

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

bool do_mmap(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);
	int prot = prot_of(arg[4]), from = arg[6] ? fd : fd_read;
	bool shared = arg[5], writable = from == fd, may_write = true;
	unsigned int first = hot[arg[1]];
	long want = address(r.first);

	if (!free_to_map(arg[0]))
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

bool do_munmap(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);

	if (!free_to_map(arg[0]))
		return false;
	expect("munmap", worker_syscall(arg[0], SYS_munmap, address(r.first),
					bytes_of(r), 0, 0, 0, 0), 0);
	unmap_pages(arg[0], r);
	return true;
}

bool do_mprotect(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]);
	struct mapped *window = m->process[arg[0]].window;
	int prot = prot_of(arg[4]);
	long want = 0;

	if (!free_to_map(arg[0]))
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

bool do_mremap(const unsigned int *arg)
{
	struct range r = range_of(&arg[1], arg[3]), to;
	struct mapped *window = m->process[arg[0]].window;
	long ret;

	to.first = hot[arg[1]] + shift_of(arg[4]);
	to.last = to.first + r.last - r.first;
	if (!free_to_map(arg[0]) || !uniform(arg[0], r) ||
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

bool do_advise(const unsigned int *arg)
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

	if (!free_to_map(arg[0]))
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

static void kill_process(unsigned int process)
{
	int left = m->process[process].left;
	uint64_t cookie = left != NO_EVENT && m->events[left].alive ?
			  m->events[left].cookie : 0;

	if (pinning[process])
		unpin(process);
	rings[process] = 0;
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
	if (pinning[process] && m->process[process].waits)
		return true;
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (i != process && m->process[i].waits &&
		    m->process[i].access.change == CHANGE_PINNED &&
		    m->process[i].access.owner == process)
			return true;
	return false;
}

bool do_kill(const unsigned int *arg)
{
	if (!m->process[arg[0]].alive || nr_alive() == 1 ||
	    lives_on(arg[0]))
		return false;
	kill_process(arg[0]);
	return true;
}

bool do_fork(const unsigned int *arg)
{
	if (!free_to_map(arg[0]) || arg[0] == arg[1] || lives_on(arg[1]))
		return false;
	if (m->process[arg[1]].alive)
		kill_process(arg[1]);
	if (!worker_fork(arg[0], arg[1]))
		fail("result", "process %u cannot fork", arg[0]);
	model_fork(m, arg[0], arg[1]);
	check_window(arg[1]);
	return true;
}

bool do_signal(const unsigned int *arg)
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
 * What is to make no difference
 */

bool do_reclaim(const unsigned int *arg)
{
	return write_text(CGROUP "/memory.reclaim", "4M");
}

bool do_migrate(const unsigned int *arg)
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
