// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfd_protect(2): write protection of a memfd by file offset.
 *
 * This file has the system call, and what the event fd (fs/memfd_notify.c) does
 * to the state: open, close, resolve. The scan is in mm/memfd_scan.c. What a writer
 * meets is decided in mm/memfd_fault.c, where the invariants W, C and S stand.
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
 * A call that fails changes nothing: it looks for pins before it protects anything,
 * and until the outcome is known the range is in flight (mm/memfd_state.c).
 *
 * Locking: see mm/memfd_state.c. Relaxing (memfd_protect(PROT_READ | PROT_WRITE),
 * RESOLVE, close) does without inode_lock(), which a write(2) may hold for as long
 * as its source takes to fault in.
 *
 * Seals are added under inode_lock(), which is followed by a round through
 * memfd_protect.lock (memfd_protect_sealed()). Who is bound by them looks at them
 * under the one or the other lock, and makes its change before it drops that. So
 * when F_ADD_SEALS has returned, no call that began before can still take effect.
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

/**
 * struct protect_request - what is to be done
 * @offset: As for memfd_protect(2).
 * @length: Likewise.
 * @prot: Likewise.
 * @flags: Likewise.
 * @handler: The caller has the event fd: it is not bound by seals.
 * @span: The pages, from check_request().
 */
struct protect_request {
	loff_t offset;
	u64 length;
	int prot;
	unsigned int flags;
	bool handler;
	struct memfd_span span;
};

/*
 * Whether only the holder of the event fd may change the protection. Anybody can
 * open a memfd for writing through /proc, even who got it read-only.
 */
static bool protect_sealed(struct memfd_protect *mp)
{
	const unsigned int seals = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE |
				   F_SEAL_PROTECT;

	return (READ_ONCE(SHMEM_I(mp->inode)->seals) & seals) &&
	       memfd_hook(SEAL);
}

static bool request_sealed(struct memfd_protect *mp,
			   const struct protect_request *request)
{
	return !request->handler && protect_sealed(mp);
}

/*
 * One attempt: stores the modes, takes write access away, and has a look at pins.
 * Fails with -EAGAIN if there were some, with all as before.
 */
static int try_protect(struct memfd_protect *mp,
		       const struct protect_request *request,
		       unsigned int round)
{
	const enum memfd_mode mode = mode_of(request->flags);
	const struct memfd_span *span = &request->span;
	struct inode *inode = mp->inode;
	int err;

	if (down_write_killable(&inode->i_rwsem))
		return -EINTR;
	err = -EPERM;
	if (request_sealed(mp, request))
		goto unlock;
	memfd_blocks_prepare(mp);
	err = memfd_flight_begin(mp, span->first, span->last, mode);
	if (err)
		goto unlock;
	err = memfd_walk_protect(inode->i_mapping, span, 1);
	memfd_delay(FLIGHT);
	if (!err)
		err = memfd_pin_settle(mp, span->first, span->last, round);
	memfd_flight_end(mp, mode, !err);
unlock:
	inode_unlock(inode);
	return err;
}

/*
 * Pins that stay make it fail before anybody could notice. Those that were taken
 * since then are few, and an attempt that meets them ends soon, for the sake of
 * those who wait for it; the next one begins when they have had their turn. After
 * some of them the attempts become longer, so that it comes to an end.
 */
static int protect(struct memfd_protect *mp,
		   const struct protect_request *request)
{
	unsigned int round = 0;
	int err;

	if (request->flags != MEMFD_PROTECT_DENY &&
	    !READ_ONCE(mp->waiters.open))
		return -ENXIO;
	do {
		err = memfd_pin_wait(mp, request->span.first,
				     request->span.last);
		memfd_delay(PINS);
		if (!err)
			err = try_protect(mp, request, round++);
		cond_resched();
	} while (err == -EAGAIN);
	return err;
}

/* What it does not change, the log, is for a last scan. */
static int unprotect_locked(struct memfd_protect *mp, void *arg,
			    struct memfd_ranges_pool *pool)
{
	const struct protect_request *request = arg;
	const struct memfd_span *span = &request->span;
	int err;

	if (request_sealed(mp, request))
		return -EPERM;
	err = memfd_ranges_prepare(&mp->modes, span->first, span->last,
				   MEMFD_MODE_NONE, pool);
	if (!err)
		err = memfd_ranges_prepare(&mp->async, span->first, span->last,
					   0, pool);
	if (err)
		return err;
	memfd_ranges_set(&mp->modes, span->first, span->last, MEMFD_MODE_NONE);
	memfd_ranges_set(&mp->async, span->first, span->last, 0);
	memfd_waiters_recheck(mp, span->first, span->last, false);
	return 0;
}

static int carry_out(struct memfd_protect *mp, struct protect_request *request)
{
	bool lift = request->prot & PROT_WRITE;
	int err;

	/* Before other errors; once more when nobody can add a seal. */
	if (request_sealed(mp, request))
		err = -EPERM;
	else if (lift)
		err = memfd_state_change(mp, request->span.first,
					 request->span.last, TASK_KILLABLE,
					 unprotect_locked, request);
	else
		err = protect(mp, request);
	trace_memfd_protect_set(mp->dev, mp->ino, request->offset,
				request->length,
				lift ? -1 : (int)request->flags, err);
	return err;
}

static int check_range(loff_t offset, u64 length, struct memfd_span *span)
{
	loff_t end;

	if (offset < 0 || !PAGE_ALIGNED(offset) || !PAGE_ALIGNED(length))
		return -EINVAL;
	if (length > LLONG_MAX || check_add_overflow(offset, length, &end))
		return -EINVAL;
	span->first = offset >> PAGE_SHIFT;
	span->last = length ? (end >> PAGE_SHIFT) - 1 : MEMFD_RANGES_LAST;
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

/* All checks of arguments, and what pages they mean. */
static int check_request(struct protect_request *request)
{
	int err = check_range(request->offset, request->length,
			      &request->span);

	return err ?: check_mode(request->prot, request->flags);
}

/* The checks that both system calls make first. */
static int check_file(struct file *file)
{
	if (!file || !(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!shmem_mapping(&file_inode(file)->i_data) && !is_file_hugepages(file))
		return -EINVAL;
	return 0;
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
 * - %EPERM: F_SEAL_PROTECT, F_SEAL_WRITE or F_SEAL_FUTURE_WRITE forbids it.
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
	struct protect_request request = {
		.offset = offset,
		.length = length,
		.prot = prot,
		.flags = flags,
	};
	struct fd f = fdget(fd);
	struct memfd_protect *mp;
	int err;

	err = check_file(fd_file(f));
	if (!err)
		err = check_request(&request);
	if (err)
		goto out;
	mp = memfd_protect_of(file_inode(fd_file(f)));
	err = mp ? carry_out(mp, &request) : -EOPNOTSUPP;
out:
	fdput(f);
	return err;
}

/*
 * Seals
 */

/**
 * memfd_protect_seals() - seals that a file can have because of its protection
 * @file: Any file.
 *
 * Context: Any.
 * Return: F_SEAL_PROTECT or 0.
 */
unsigned int memfd_protect_seals(struct file *file)
{
	return memfd_protect_of(file_inode(file)) ? F_SEAL_PROTECT : 0;
}

/**
 * memfd_protect_sealed() - a file has got more seals
 * @file: A memfd, its new seals stored.
 *
 * Who has looked before, and may still protect, is done when this returns.
 *
 * Context: May sleep. inode_lock().
 */
void memfd_protect_sealed(struct file *file)
{
	struct memfd_protect *mp = memfd_protect_of(file_inode(file));

	if (!mp)
		return;
	mutex_lock(&mp->lock);
	mutex_unlock(&mp->lock);
}

/*
 * For the event fd
 */

/**
 * memfd_protect_by_handler() - MEMFD_NOTIFY_PROTECT
 * @mp: Protection of the file, with the reference of its event fd.
 * @range: What is to be done.
 *
 * Seals do not bind the holder of the event fd.
 *
 * Context: May sleep, killable.
 * Return: As memfd_protect(2).
 */
int memfd_protect_by_handler(struct memfd_protect *mp,
			     const struct memfd_protect_range *range)
{
	struct protect_request request = {
		.offset = range->offset,
		.length = range->length,
		.prot = range->prot,
		.flags = range->flags,
		.handler = true,
	};

	return check_request(&request) ?: carry_out(mp, &request);
}

/**
 * memfd_protect_open_notify() - somebody is going to listen
 * @file: What memfd_notify(2) was called for.
 * @kernel: MEMFD_NOTIFY_KERNEL.
 *
 * Context: May sleep.
 * Return: The protection of the file, with references to it and to the inode for
 * memfd_protect_release_notify(). Otherwise -EPERM if the file is sealed against
 * it, -EBUSY if somebody listens already.
 */
struct memfd_protect *memfd_protect_open_notify(struct file *file, bool kernel)
{
	struct memfd_protect *mp = memfd_protect_of(file_inode(file));
	int err = 0;

	mutex_lock(&mp->lock);
	if (protect_sealed(mp)) {
		err = -EPERM;
	} else if (mp->waiters.open) {
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
 * Return: 0, -EBADF, -EINVAL, -EOPNOTSUPP or -EPERM as memfd_protect(2).
 */
int memfd_protect_check_notify(struct file *file)
{
	struct memfd_protect *mp;
	int err = check_file(file);

	if (err)
		return err;
	mp = memfd_protect_of(file_inode(file));
	if (!mp)
		return -EOPNOTSUPP;
	/* memfd_protect_open_notify() looks once more, under the lock. */
	return protect_sealed(mp) ? -EPERM : 0;
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
	trace_memfd_protect_close(mp->dev, mp->ino,
				  READ_ONCE(mp->waiters.nr_waiters),
				  READ_ONCE(mp->waiters.events));
	memfd_ranges_translate(&mp->modes, only_deny);
	memfd_ranges_destroy(&mp->async);
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

/**
 * struct resolution - an event that is allowed
 * @cookie: The event's.
 * @span: Its pages.
 * @nr: Writers that wait for it.
 */
struct resolution {
	u64 cookie;
	struct memfd_span span;
	unsigned int nr;
};

/* The event's WAIT pages become writable, and its writers go on. */
static int allow_locked(struct memfd_protect *mp, void *arg,
			struct memfd_ranges_pool *pool)
{
	struct resolution *res = arg;
	int err;

	/* Only now is the answer final: others may have resolved it. */
	if (!memfd_waiters_find(&mp->waiters, res->cookie, &res->span,
				&res->nr))
		return -ENOENT;
	err = memfd_state_unprotect(mp, &res->span, BIT(MEMFD_MODE_WAIT), pool);
	/* If memory ran out, a part of it was. The event is found again. */
	if (!err)
		memfd_waiters_recheck(mp, res->span.first, res->span.last,
				      false);
	return err;
}

static int resolve_allow(struct memfd_protect *mp, struct resolution *res)
{
	if (!memfd_waiters_find(&mp->waiters, res->cookie, &res->span,
				&res->nr))
		return -ENOENT;
	return memfd_state_change(mp, res->span.first, res->span.last,
				  TASK_KILLABLE, allow_locked, res);
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
	struct resolution res = { .cookie = cookie };
	int err;

	if (allow)
		err = resolve_allow(mp, &res);
	else
		err = memfd_waiters_deny(&mp->waiters, cookie, &res.span,
					 &res.nr) ? 0 : -ENOENT;
	if (!err)
		trace_memfd_protect_resolve(mp->dev, mp->ino, cookie,
					    memfd_offset(res.span.first),
					    memfd_length(res.span.first,
							 res.span.last),
					    allow ? MEMFD_RESOLVE_ALLOW :
						    MEMFD_RESOLVE_DENY, res.nr);
	return err;
}

/*
 * What /proc/PID/fdinfo shows
 */

/**
 * struct tally - what is in a map
 * @runs: Runs of pages with each value.
 * @pages: Pages with each value.
 */
struct tally {
	unsigned long runs[MEMFD_RANGES_VALUES];
	unsigned long pages[MEMFD_RANGES_VALUES];
};

/*
 * Without the lock: whoever reads this as often as he likes is in nobody's way. If
 * there are changes meanwhile, it is right for no one moment.
 */
static void count_runs(struct memfd_ranges *map, struct tally *tally)
{
	unsigned int value, before = 0;
	pgoff_t index = 0, last;

	memset(tally, 0, sizeof(*tally));
	do {
		rcu_read_lock();
		value = memfd_ranges_get_run(map, index, &last);
		rcu_read_unlock();
		if (!index || value != before)
			tally->runs[value]++;
		tally->pages[value] += last - index + 1;
		before = value;
		index = last + 1;
		cond_resched();
	} while (last < MEMFD_RANGES_LAST && !fatal_signal_pending(current));
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
	struct tally modes, log;

	count_runs(&mp->modes, &modes);
	count_runs(&mp->log, &log);
	seq_printf(m, "event_fd:\t%d\n", READ_ONCE(waiters->open));
	seq_printf(m, "protect_wait:\t%lu\n", modes.runs[MEMFD_MODE_WAIT]);
	seq_printf(m, "protect_async:\t%lu\n", modes.runs[MEMFD_MODE_ASYNC]);
	seq_printf(m, "protect_deny:\t%lu\n", modes.runs[MEMFD_MODE_DENY]);
	seq_printf(m, "protect_bytes:\t%zu\n", READ_ONCE(mp->modes.bytes) +
						READ_ONCE(mp->async.bytes));
	seq_printf(m, "protect_busy:\t%lld\n", READ_ONCE(mp->busy));
	seq_printf(m, "log_ranges:\t%lu\n", log.runs[1]);
	seq_printf(m, "log_pages:\t%lu\n", log.pages[1]);
	seq_printf(m, "log_bytes:\t%zu\n", READ_ONCE(mp->log.bytes));

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
	struct memfd_protect *mp = memfd_protect_of(file_inode(file));

	if (mp)
		memfd_protect_show(m, mp);
}
