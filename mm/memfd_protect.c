// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfd_protect(2): write protection of a memfd by file offset.
 *
 * This file has the system call, and what the event fd (fs/memfd_notify.c) does
 * to the state: open, close, resolve, scan. What a writer meets is decided in
 * mm/memfd_fault.c, where the invariants W, C and S stand.
 *
 * When memfd_protect() has returned 0 for PROT_READ, nothing that began before
 * can still change the range unnoticed:
 *  - system calls: the modes are stored under inode_lock(), which writers hold
 *    from their question to the end of their writing;
 *  - stores: the walk takes write access from all page-table entries and
 *    flushes TLBs (mm/memfd_walk.c);
 *  - DMA and the like: pages with a pin are waited for, for as long as memfd
 *    sealing waits, and then the call fails with EBUSY.
 *
 * A call that fails changes nothing. Until the outcome is known the range is in
 * flight: its new modes are stored so that they can be taken back, faults that
 * meet them sleep until they are settled, and everybody else who changes
 * modes of the range waits too. There is at most one flight for a file, because
 * memfd_protect() and the scan hold inode_lock().
 *
 * Locking:
 *
 *   inode_lock()		memfd_protect(PROT_READ), SCAN
 *     memfd_protect.lock	modes, log, flight; all changes
 *       memfd_waiters.lock	pending events
 *     i_mmap_rwsem, page table lock	the walk; memfd_protect.lock is not held
 *
 * Relaxing (memfd_protect(PROT_READ | PROT_WRITE), RESOLVE, close) does without
 * inode_lock(), which a write(2) may hold for as long as its source takes to
 * fault in.
 */

#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/memfd_notify.h>
#include <linux/mman.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/syscalls.h>

#include "memfd_debug.h"
#include "memfd_protect.h"

#include <trace/events/memfd_protect.h>

/* As mm/memfd.c: five looks, with sleeps in between of about 150 ms together. */
#define PIN_LAST_SCAN	4

/*
 * The system call
 */

static enum memfd_mode mode_of(unsigned int flags)
{
	switch (flags) {
	case MEMFD_PROTECT_WAIT:
		return MEMFD_MODE_WAIT;
	case MEMFD_PROTECT_ASYNC:
		return MEMFD_MODE_ASYNC;
	default:
		return MEMFD_MODE_DENY;
	}
}

/* Waits for pins that come and go, for about 150 ms. */
static int wait_for_pins(struct memfd_protect *mp,
			 struct address_space *mapping,
			 const struct memfd_span *span)
{
	struct memfd_span pinned = *span;
	unsigned int scan;
	bool references;

	/* Pairs with the one in __memfd_protect_got_pages(). */
	smp_mb();
	references = READ_ONCE(mp->got_pages) && memfd_hook(GOT_PAGES);
	/* Folios on their way to the LRU lists have a reference more. */
	if (references)
		lru_add_drain_all();
	for (scan = 0; memfd_walk_pinned(mapping, &pinned, references);
	     scan++) {
		if (scan > PIN_LAST_SCAN)
			return -EBUSY;
		if (schedule_timeout_killable((HZ << scan) / 200))
			if (fatal_signal_pending(current))
				return -EINTR;
		/* What was before the pinned page has been looked at. */
		pinned.last = span->last;
	}
	return 0;
}

static void drop_log(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	memfd_ranges_set(&mp->log, first, last, 0);
	if (memfd_ranges_empty(&mp->log))
		memfd_waiters_drop_dirty(&mp->waiters);
}

/* Stores the new modes so that they can be taken back. */
static int protect_begin(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
			 enum memfd_mode mode)
{
	int err = 0;

	mutex_lock(&mp->lock);
	if (mode != MEMFD_MODE_DENY && !mp->waiters.open) {
		err = -ENXIO;
		goto unlock;
	}
	memfd_flight_begin(mp, first, last);
	err = memfd_ranges_try_set(&mp->modes, first, last, mode,
				   GFP_KERNEL_ACCOUNT);
	if (err)
		memfd_flight_end(mp);
unlock:
	mutex_unlock(&mp->lock);
	return err;
}

static void protect_end(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
			bool keep)
{
	mutex_lock(&mp->lock);
	memfd_ranges_try_end(&mp->modes, keep);
	if (keep) {
		/* Not earlier: the log may have folded since. */
		memfd_ranges_prepare(&mp->log, first, last, 0,
				     GFP_KERNEL_ACCOUNT | __GFP_NOFAIL);
		drop_log(mp, first, last);
	}
	memfd_flight_end(mp);
	mutex_unlock(&mp->lock);
	/* It is not a WAIT range any more, or was one only for a moment. */
	memfd_waiters_recheck(mp, first, last);
}

static int protect(struct memfd_protect *mp, struct inode *inode,
		   pgoff_t first, pgoff_t last, enum memfd_mode mode)
{
	struct memfd_span span = { .first = first, .last = last };
	struct address_space *mapping = inode->i_mapping;
	int err;

	if (down_write_killable(&inode->i_rwsem))
		return -EINTR;
	err = protect_begin(mp, first, last, mode);
	if (err)
		goto unlock;
	err = memfd_walk_protect(mapping, &span, 1);
	memfd_delay(FLIGHT);
	if (!err)
		err = wait_for_pins(mp, mapping, &span);
	protect_end(mp, first, last, !err);
unlock:
	inode_unlock(inode);
	return err;
}

static int unprotect(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	int err = memfd_flight_lock(mp, first, last, TASK_KILLABLE);

	if (err)
		return err;
	err = memfd_ranges_prepare(&mp->modes, first, last, MEMFD_MODE_NONE,
				   GFP_KERNEL_ACCOUNT);
	if (!err)
		err = memfd_ranges_prepare(&mp->log, first, last, 0,
					   GFP_KERNEL_ACCOUNT);
	if (!err) {
		memfd_ranges_set(&mp->modes, first, last, MEMFD_MODE_NONE);
		drop_log(mp, first, last);
	}
	mutex_unlock(&mp->lock);
	if (!err)
		memfd_waiters_wake(&mp->waiters, first, last);
	return err;
}

/* Arguments to page offsets, or -EINVAL. */
static int check_range(loff_t offset, size_t length, pgoff_t *first,
		       pgoff_t *last)
{
	loff_t end;

	if (offset < 0 || !PAGE_ALIGNED(offset) || !PAGE_ALIGNED(length))
		return -EINVAL;
	if (length > LLONG_MAX || check_add_overflow(offset, length, &end))
		return -EINVAL;
	*first = offset >> PAGE_SHIFT;
	*last = length ? (end >> PAGE_SHIFT) - 1 : MEMFD_RANGES_LAST;
	return 0;
}

static int check_mode(int prot, unsigned int flags)
{
	if (prot == PROT_READ)
		return flags <= MEMFD_PROTECT_DENY ? 0 : -EINVAL;
	if (prot == (PROT_READ | PROT_WRITE))
		return flags ? -EINVAL : 0;
	return -EINVAL;
}

/* The checks that both system calls make first. */
static int check_file(struct file *file)
{
	if (!file || !(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!shmem_file(file) && !is_file_hugepages(file))
		return -EINVAL;
	return 0;
}

static struct memfd_protect *file_protect(struct file *file)
{
	return shmem_file(file) ? SHMEM_I(file_inode(file))->protect : NULL;
}

/**
 * sys_memfd_protect - change the write protection of a range of a memfd
 * @fd: A memfd made with MFD_ALLOW_PROTECT, open for writing.
 * @offset: First byte, page-aligned.
 * @length: Bytes, page-aligned. 0: to the largest offset.
 * @prot: PROT_READ to protect, PROT_READ | PROT_WRITE to remove protection.
 * @flags: With PROT_READ one of MEMFD_PROTECT_*, otherwise 0.
 *
 * Errors, in the order in which they are checked:
 * - %EBADF: @fd is not open, or not for writing.
 * - %EINVAL: not a shmem or hugetlb file; a range that is not page-aligned, is
 *   negative or overflows; unknown @prot or @flags.
 * - %EOPNOTSUPP: such a file without MFD_ALLOW_PROTECT.
 * - %ENXIO: WAIT or ASYNC while no event fd of memfd_notify(2) is open.
 * - %EBUSY: a page is pinned and stays so for longer than sealing waits.
 * - %EINTR: killed.
 * - %ENOMEM: no memory, or the memory cgroup's limit is reached.
 *
 * A call that fails changes nothing.
 *
 * Return: 0 or a negative error.
 */
SYSCALL_DEFINE5(memfd_protect, int, fd, loff_t, offset, size_t, length,
		int, prot, unsigned int, flags)
{
	struct fd f = fdget(fd);
	struct memfd_protect *mp;
	pgoff_t first, last;
	int err;

	err = check_file(fd_file(f));
	if (!err)
		err = check_range(offset, length, &first, &last);
	if (!err)
		err = check_mode(prot, flags);
	if (err)
		goto out;
	mp = file_protect(fd_file(f));
	if (!mp) {
		err = -EOPNOTSUPP;
		goto out;
	}
	if (prot & PROT_WRITE)
		err = unprotect(mp, first, last);
	else
		err = protect(mp, file_inode(fd_file(f)), first, last,
			      mode_of(flags));
	trace_memfd_protect_set(mp->dev, mp->ino, offset, length,
				prot & PROT_WRITE ? -1 : (int)flags, err);
out:
	fdput(f);
	return err;
}

/*
 * For the event fd
 */

/**
 * memfd_protect_open_notify() - somebody is going to listen
 * @file: What memfd_notify(2) was called for.
 * @kernel: MEMFD_NOTIFY_KERNEL.
 *
 * Context: May sleep.
 * Return: The protection of the file, with references to it and to the inode for
 * memfd_protect_release_notify(). Otherwise -EBADF, -EINVAL, -EOPNOTSUPP as
 * memfd_protect(2), -EBUSY if somebody listens already.
 */
struct memfd_protect *memfd_protect_open_notify(struct file *file, bool kernel)
{
	struct memfd_protect *mp = file_protect(file);
	int err = 0;

	mutex_lock(&mp->lock);
	if (mp->waiters.open) {
		err = -EBUSY;
	} else {
		WRITE_ONCE(mp->kernel, kernel);
		memfd_waiters_open(&mp->waiters);
		kref_get(&mp->ref);
		ihold(mp->inode);
	}
	mutex_unlock(&mp->lock);
	return err ? ERR_PTR(err) : mp;
}

/**
 * memfd_protect_check_notify() - whether a file can have an event fd
 * @file: What memfd_notify(2) was called for, or NULL.
 *
 * Context: Any.
 * Return: 0, -EBADF, -EINVAL or -EOPNOTSUPP as memfd_protect(2).
 */
int memfd_protect_check_notify(struct file *file)
{
	int err = check_file(file);

	if (err)
		return err;
	return file_protect(file) ? 0 : -EOPNOTSUPP;
}

/**
 * memfd_protect_release_notify() - nobody listens any more
 * @mp: From memfd_protect_open_notify(); its references are given back.
 *
 * Every writer goes on, WAIT and ASYNC ranges and the log are dropped.
 *
 * Context: May sleep, not killable. Never fails.
 */
void memfd_protect_release_notify(struct memfd_protect *mp)
{
	static const u8 only_deny[MEMFD_RANGES_VALUES] = {
		[MEMFD_MODE_DENY] = MEMFD_MODE_DENY,
	};
	struct inode *inode = mp->inode;

	memfd_flight_lock(mp, 0, MEMFD_RANGES_LAST, TASK_UNINTERRUPTIBLE);
	memfd_ranges_translate(&mp->modes, only_deny);
	memfd_ranges_destroy(&mp->log);
	memfd_waiters_close(&mp->waiters);
	mutex_unlock(&mp->lock);
	memfd_state_put(mp);
	iput(inode);
}

/**
 * memfd_protect_next_event() - take the oldest unread event
 * @mp: Protection of the file.
 * @record: Out: what to tell user space.
 *
 * Context: Process context.
 * Return: The event for memfd_protect_end_event(), or NULL.
 */
struct memfd_pending *memfd_protect_next_event(struct memfd_protect *mp,
					       struct memfd_event *record)
{
	return memfd_waiters_next(&mp->waiters, record);
}

/**
 * memfd_protect_end_event() - done with an event
 * @mp: Protection of the file.
 * @event: From memfd_protect_next_event().
 * @delivered: Whether user space has it. Otherwise it is unread again.
 *
 * Context: Process context.
 */
void memfd_protect_end_event(struct memfd_protect *mp,
			     struct memfd_pending *event, bool delivered)
{
	memfd_waiters_end(&mp->waiters, event, delivered);
}

/**
 * memfd_protect_readable() - whether there is an unread event
 * @mp: Protection of the file.
 *
 * A reader that goes to sleep is on memfd_protect_readers() before it looks
 * here, and an event is queued before that is woken.
 *
 * Context: Any.
 * Return: True if so.
 */
bool memfd_protect_readable(struct memfd_protect *mp)
{
	return READ_ONCE(mp->waiters.nr_unread);
}

/**
 * memfd_protect_readers() - where readers and pollers of the event fd wait
 * @mp: Protection of the file.
 *
 * Return: The wait queue.
 */
wait_queue_head_t *memfd_protect_readers(struct memfd_protect *mp)
{
	return &mp->waiters.readers;
}

/* The event's WAIT pages become writable, and its writers go on. */
static int resolve_allow(struct memfd_protect *mp, u64 cookie,
			 struct memfd_span *span, unsigned int *nr)
{
	pgoff_t first, last;
	int err;

	if (!memfd_waiters_find(&mp->waiters, cookie, span, nr))
		return -ENOENT;
	err = memfd_flight_lock(mp, span->first, span->last, TASK_KILLABLE);
	if (err)
		return err;
	/* Only now is the answer final: others may have resolved it. */
	if (!memfd_waiters_find(&mp->waiters, cookie, span, nr)) {
		err = -ENOENT;
		goto unlock;
	}
	first = span->first;
	last = span->last;
	while (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_WAIT), &first,
				 &last)) {
		err = memfd_ranges_prepare(&mp->modes, first, last,
					   MEMFD_MODE_NONE, GFP_KERNEL_ACCOUNT);
		if (err)
			goto unlock;
		memfd_ranges_set(&mp->modes, first, last, MEMFD_MODE_NONE);
		first = last + 1;
		last = span->last;
	}
	memfd_waiters_wake(&mp->waiters, span->first, span->last);
unlock:
	mutex_unlock(&mp->lock);
	return err;
}

/**
 * memfd_protect_resolve() - answer an event
 * @mp: Protection of the file.
 * @cookie: The event's.
 * @allow: Whether its writers may go on.
 *
 * Context: May sleep, killable.
 * Return: 0, -ENOENT if there is no such event any more, -ENOMEM, -EINTR.
 */
int memfd_protect_resolve(struct memfd_protect *mp, u64 cookie, bool allow)
{
	struct memfd_span span;
	unsigned int nr;
	int err;

	if (allow)
		err = resolve_allow(mp, cookie, &span, &nr);
	else
		err = memfd_waiters_deny(&mp->waiters, cookie, &span, &nr) ?
		      0 : -ENOENT;
	if (!err)
		trace_memfd_protect_resolve(mp->dev, mp->ino, cookie,
					    memfd_offset(span.first),
					    memfd_length(span.first, span.last),
					    allow ? MEMFD_RESOLVE_ALLOW :
						    MEMFD_RESOLVE_DENY, nr);
	return err;
}

/* Takes a range out of the log and protects it again. mp->lock is held. */
static int scan_take(struct memfd_protect *mp, const struct memfd_span *span)
{
	int err;

	err = memfd_ranges_prepare(&mp->modes, span->first, span->last,
				   MEMFD_MODE_ASYNC, GFP_KERNEL_ACCOUNT);
	if (!err)
		err = memfd_ranges_prepare(&mp->log, span->first, span->last,
					   0, GFP_KERNEL_ACCOUNT);
	if (err)
		return err;
	memfd_ranges_set(&mp->modes, span->first, span->last,
			 MEMFD_MODE_ASYNC);
	memfd_ranges_set(&mp->log, span->first, span->last, 0);
	return 0;
}

/* The next ranges of the log from @start to @last, at most @nr. */
static int scan_log(struct memfd_protect *mp, pgoff_t start, pgoff_t last,
		    struct memfd_span *spans, unsigned int nr, bool take)
{
	unsigned int n = 0;
	int err = 0;

	mutex_lock(&mp->lock);
	while (n < nr) {
		struct memfd_span *span = &spans[n];

		span->first = start;
		span->last = last;
		if (!memfd_ranges_find(&mp->log, BIT(1), &span->first,
				       &span->last))
			break;
		if (take)
			err = scan_take(mp, span);
		if (err)
			break;
		start = span->last + 1;
		n++;
		cond_resched();
	}
	if (take && memfd_ranges_empty(&mp->log))
		memfd_waiters_drop_dirty(&mp->waiters);
	mutex_unlock(&mp->lock);
	/* What was found before memory ran out is worth returning. */
	return n ?: err;
}

/* Pages with a pin can be written at any time: they stay in the log. */
static void scan_keep_pinned(struct memfd_protect *mp,
			     const struct memfd_span *span)
{
	struct memfd_span pinned = *span;

	/* Pairs with the one in __memfd_protect_got_pages(). */
	smp_mb();
	while (pinned.first <= span->last &&
	       memfd_walk_pinned(mp->inode->i_mapping, &pinned,
				 READ_ONCE(mp->got_pages))) {
		mutex_lock(&mp->lock);
		memfd_state_unlog(mp, &pinned, false);
		mutex_unlock(&mp->lock);
		pinned.first = pinned.last + 1;
		pinned.last = span->last;
	}
}

/**
 * memfd_protect_unscan() - put back what could not be told to user space
 * @mp: Protection of the file.
 * @spans: From memfd_protect_scan() that took them.
 * @nr: Elements of @spans.
 *
 * Context: May sleep. Never fails.
 */
void memfd_protect_unscan(struct memfd_protect *mp,
			  const struct memfd_span *spans, unsigned int nr)
{
	for (; nr--; spans++) {
		memfd_flight_lock(mp, spans->first, spans->last,
				  TASK_UNINTERRUPTIBLE);
		memfd_state_unlog(mp, spans, true);
		mutex_unlock(&mp->lock);
	}
}

/**
 * memfd_protect_scan() - ranges that have been written
 * @mp: Protection of the file, with the reference of its event fd.
 * @start: First page offset to look at.
 * @last: Last one.
 * @spans: Out: the ranges, merged and ascending.
 * @nr: Elements of @spans.
 * @take: Take them out of the log and protect them again.
 *
 * A write that is not in this scan will be in the next. Both the dirty mark and
 * the data of a system call belong to one side of the scan, because both hold
 * inode_lock(). A store is logged before its page-table entry becomes writable,
 * and the walk makes that undone before the scan returns.
 *
 * Context: May sleep, killable.
 * Return: The number of ranges, or -EINTR, -ENOMEM with nothing taken.
 */
int memfd_protect_scan(struct memfd_protect *mp, pgoff_t start, pgoff_t last,
		       struct memfd_span *spans, unsigned int nr, bool take)
{
	struct inode *inode = mp->inode;
	int n, i, err;

	if (!take)
		return scan_log(mp, start, last, spans, nr, false);
	if (down_write_killable(&inode->i_rwsem))
		return -EINTR;
	n = scan_log(mp, start, last, spans, nr, true);
	if (n > 0) {
		err = memfd_walk_protect(inode->i_mapping, spans, n);
		if (err)
			memfd_protect_unscan(mp, spans, n);
		for (i = 0; !err && i < n; i++)
			scan_keep_pinned(mp, &spans[i]);
		n = err ?: n;
	}
	inode_unlock(inode);
	return n;
}

/*
 * What /proc/PID/fdinfo shows
 */

static void count_runs(struct memfd_ranges *ranges, unsigned int value,
		       unsigned long *runs, unsigned long *pages)
{
	pgoff_t first = 0, last = MEMFD_RANGES_LAST;

	*runs = 0;
	*pages = 0;
	while (memfd_ranges_find(ranges, BIT(value), &first, &last)) {
		*pages += last - first + 1;
		++*runs;
		first = last + 1;
		last = MEMFD_RANGES_LAST;
		cond_resched();
	}
}

/**
 * memfd_protect_show() - state of a file's protection for people
 * @m: Where to write it.
 * @mp: Protection of the file.
 *
 * Context: May sleep.
 */
void memfd_protect_show(struct seq_file *m, struct memfd_protect *mp)
{
	struct memfd_waiters *waiters = &mp->waiters;
	unsigned long wait, async, deny, log, pages, log_pages;

	mutex_lock(&mp->lock);
	count_runs(&mp->modes, MEMFD_MODE_WAIT, &wait, &pages);
	count_runs(&mp->modes, MEMFD_MODE_ASYNC, &async, &pages);
	count_runs(&mp->modes, MEMFD_MODE_DENY, &deny, &pages);
	count_runs(&mp->log, 1, &log, &log_pages);
	seq_printf(m, "protect_wait:\t%lu\n", wait);
	seq_printf(m, "protect_async:\t%lu\n", async);
	seq_printf(m, "protect_deny:\t%lu\n", deny);
	seq_printf(m, "protect_bytes:\t%zu\n", mp->modes.bytes);
	seq_printf(m, "log_ranges:\t%lu\n", log);
	seq_printf(m, "log_pages:\t%lu\n", log_pages);
	seq_printf(m, "log_bytes:\t%zu\n", mp->log.bytes);
	mutex_unlock(&mp->lock);

	spin_lock(&waiters->lock);
	seq_printf(m, "waiters:\t%lu\n", waiters->nr_waiters);
	seq_printf(m, "pending:\t%lu\n", waiters->nr_pending);
	seq_printf(m, "unread:\t%lu\n", waiters->nr_unread);
	seq_printf(m, "events:\t%llu\n", waiters->events);
	seq_printf(m, "waits:\t%llu\n", waiters->waits);
	spin_unlock(&waiters->lock);
}

/**
 * memfd_protect_show_fdinfo() - /proc/PID/fdinfo of a shmem file
 * @m: Where to write it.
 * @file: The file.
 *
 * Context: May sleep.
 */
void memfd_protect_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct memfd_protect *mp = file_protect(file);

	if (mp)
		memfd_protect_show(m, mp);
}
