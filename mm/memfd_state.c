// SPDX-License-Identifier: GPL-2.0-only
/*
 * The protection of a memfd: its life, its modes and its log, and how they change.
 *
 * Three maps say all there is to say about a page offset:
 *
 *   modes	what happens to a writer; NONE if the page may be written
 *   async	whether the last memfd_protect() of it was ASYNC
 *   log	whether it was written since a scan took it last
 *
 * A writer of a page with mode ASYNC puts it into the log and makes the mode NONE,
 * so that it is asked once. A scan takes it out of the log, and makes the mode ASYNC
 * again if that is still what the page is to have (async). A page that is pinned
 * when it is scanned goes back into the log and keeps the mode: who stores to it
 * next is asked, and told of.
 *
 * Locking:
 *
 *   inode_lock()			memfd_protect(PROT_READ), SCAN
 *     memfd_protect.flight.settled	rw_semaphore: a flight holds it for writing
 *       memfd_protect.lock		the maps; all changes
 *         memfd_waiters.lock		pending events
 *
 * The maps are read under RCU as well. Nobody waits for memory under
 * memfd_protect.lock (memfd_state_change()). Who holds a page table lock may try to
 * get it, and does nothing with it that sleeps (memfd_state_log_at_once()).
 *
 * The flight. memfd_protect() stores its modes before it knows whether it will
 * succeed: the walk has to come after them, and pins that stay are found after
 * the walk. Until then the range is in flight. Whoever would act on a mode in it
 * waits on the semaphore, for as long as one walk and memfd_pin_settle() take. The
 * semaphore is fair: who waited for a flight has its turn before the next one
 * begins, so any number of flights cannot keep anybody for longer. System calls
 * that write the file do not see a flight, because it has inode_lock().
 *
 * Invariant L. What memfd_flight_lock() returns with is final: no mode of the
 * range is in flight, and none will be as long as memfd_protect.lock is held.
 */

#include <linux/fs.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>

#include "memfd_debug.h"
#include "memfd_protect.h"

#define CREATE_TRACE_POINTS
#include <trace/events/memfd_protect.h>

DEFINE_STATIC_KEY_FALSE(memfd_protect_used);
EXPORT_SYMBOL_GPL(memfd_protect_used);

/*
 * Life
 */

static void state_free(struct kref *ref)
{
	struct memfd_protect *mp = container_of(ref, struct memfd_protect, ref);

	memfd_ranges_destroy(&mp->modes);
	memfd_ranges_destroy(&mp->async);
	memfd_ranges_destroy(&mp->log);
	memfd_blocks_free(mp);
	kfree_rcu(mp, rcu);
}

/**
 * memfd_state_put() - give a reference back
 * @mp: Protection of a file.
 *
 * Context: May sleep.
 */
void memfd_state_put(struct memfd_protect *mp)
{
	kref_put(&mp->ref, state_free);
}

/**
 * memfd_protect_create() - memfd_protect() may be used on a new memfd
 * @file: The shmem file, not yet visible to user space.
 *
 * Context: May sleep.
 * Return: 0 or -ENOMEM.
 */
int memfd_protect_create(struct file *file)
{
	struct inode *inode = file_inode(file);
	struct memfd_protect *mp = kzalloc(sizeof(*mp), GFP_KERNEL_ACCOUNT);

	if (!mp)
		return -ENOMEM;
	kref_init(&mp->ref);
	mp->inode = inode;
	mp->dev = inode->i_sb->s_dev;
	mp->ino = inode->i_ino;
	mp->busy = -1;
	mutex_init(&mp->lock);
	memfd_ranges_init(&mp->modes);
	memfd_ranges_init(&mp->async);
	memfd_ranges_init(&mp->log);
	memfd_waiters_init(&mp->waiters);
	init_rwsem(&mp->flight.settled);
	SHMEM_I(inode)->protect = mp;
	memfd_protect_open(inode, file);
	/* Never off again: text patching costs more than the few branches. */
	static_branch_enable(&memfd_protect_used);
	return 0;
}

/**
 * memfd_protect_evict() - the file is going away
 * @inode: A shmem inode that nobody uses any more.
 *
 * Context: May sleep.
 */
void memfd_protect_evict(struct inode *inode)
{
	struct memfd_protect *mp = SHMEM_I(inode)->protect;

	if (!mp)
		return;
	SHMEM_I(inode)->protect = NULL;
	memfd_state_put(mp);
}

/**
 * memfd_protect_mmap() - a file is mapped
 * @inode: A shmem inode.
 * @shared: Whether it is mapped with MAP_SHARED.
 * @ops: The operations that the VMA would have.
 *
 * The VMA's operations tell page faults that it is one to ask for. What is written
 * through a private mapping does not change the file.
 *
 * Context: Any.
 * Return: The operations that the VMA is to have.
 */
const struct vm_operations_struct *
memfd_protect_mmap(struct inode *inode, bool shared,
		   const struct vm_operations_struct *ops)
{
	return memfd_protected(inode) && shared ? &memfd_protect_vm_ops : ops;
}

/**
 * memfd_protected() - whether memfd_protect() may be used on a file
 * @inode: A shmem inode.
 *
 * Context: Any.
 * Return: True if so.
 */
bool memfd_protected(struct inode *inode)
{
	return SHMEM_I(inode)->protect;
}

/**
 * memfd_protect_may_wrap() - whether somebody may map a file by operations of his own
 * @inode: Any inode.
 * @vma: Its new mapping.
 *
 * What is stored to a shared mapping that is not known as one would not be caught.
 *
 * Context: Any.
 * Return: True if so.
 */
bool memfd_protect_may_wrap(struct inode *inode, const struct vm_area_struct *vma)
{
	return !(vma->vm_flags & VM_MAYSHARE) || !memfd_protect_of(inode);
}
EXPORT_SYMBOL_GPL(memfd_protect_may_wrap);	/* for Coda */

/**
 * memfd_protect_open() - a file is opened
 * @inode: A shmem inode.
 * @file: The new open file description.
 *
 * Writers can ask not to be kept waiting (IOCB_NOWAIT). Nobody sleeps with the file
 * position locked: what memfd_create() returns does not lock it either.
 *
 * Context: Any.
 */
void memfd_protect_open(struct inode *inode, struct file *file)
{
	if (!SHMEM_I(inode)->protect)
		return;
	file->f_mode |= FMODE_NOWAIT;
	file->f_mode &= ~FMODE_ATOMIC_POS;
}

/*
 * The flight
 */

static bool flight_over(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	return mp->flight.open && first <= mp->flight.last &&
	       last >= mp->flight.first && memfd_hook(FLIGHT);
}

static int flight_down_read(struct memfd_protect *mp, unsigned int state)
{
	if (state == TASK_UNINTERRUPTIBLE) {
		down_read(&mp->flight.settled);
		return 0;
	}
	return down_read_killable(&mp->flight.settled);
}

/**
 * memfd_flight_lock() - take the lock when the outcome for some pages is known
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 * @state: How to sleep: TASK_KILLABLE or TASK_UNINTERRUPTIBLE.
 *
 * Context: May sleep, as long as one flight takes. Who holds inode_lock(), shared
 * even, does not wait, because then nothing is in flight.
 * Return: 0 with &memfd_protect.lock held, or -EINTR.
 */
int memfd_flight_lock(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		      unsigned int state)
{
	mutex_lock(&mp->lock);
	if (!flight_over(mp, first, last))
		return 0;
	mutex_unlock(&mp->lock);
	if (flight_down_read(mp, state))
		return -EINTR;
	/* The next flight needs the semaphore first, and then this lock. */
	mutex_lock(&mp->lock);
	up_read(&mp->flight.settled);
	return 0;
}

/**
 * memfd_flight_trylock() - memfd_flight_lock() unless there is a flight
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: May sleep, but not for a flight.
 * Return: True with &memfd_protect.lock held, or false.
 */
bool memfd_flight_trylock(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	mutex_lock(&mp->lock);
	if (!flight_over(mp, first, last))
		return true;
	mutex_unlock(&mp->lock);
	return false;
}

/**
 * memfd_flight_wait() - wait until what is in flight now is settled
 * @mp: Protection of the file, with a reference.
 *
 * Context: Sleeps, killable.
 */
void memfd_flight_wait(struct memfd_protect *mp)
{
	if (!down_read_killable(&mp->flight.settled))
		up_read(&mp->flight.settled);
}

/* A change has failed for good: what was allocated at its ends goes. */
static void give_up(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	mutex_lock(&mp->lock);
	memfd_ranges_unprepare(&mp->modes, first, last);
	memfd_ranges_unprepare(&mp->async, first, last);
	memfd_ranges_unprepare(&mp->log, first, last);
	mutex_unlock(&mp->lock);
}

/* Stores the modes so that they can be taken back. mp->lock is held. */
static int flight_store(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
			enum memfd_mode mode, struct memfd_ranges_pool *pool)
{
	bool async = mode == MEMFD_MODE_ASYNC;
	int err;

	/* What WAIT and ASYNC writers would tell, there must be one to read. */
	if (mode != MEMFD_MODE_DENY && !mp->waiters.open)
		return -ENXIO;
	err = memfd_ranges_prepare(&mp->async, first, last, async, pool);
	if (!err && async)
		err = memfd_ranges_prepare(&mp->log, first, last, 0, pool);
	if (!err)
		err = memfd_ranges_try_set(&mp->modes, first, last, mode, pool);
	if (err)
		return err;
	/* Nobody else changes what is in flight: the end will not fail. */
	memfd_ranges_hold(&mp->async);
	memfd_ranges_hold(&mp->log);
	mp->flight.first = first;
	mp->flight.last = last;
	mp->flight.open = true;
	return 0;
}

/**
 * memfd_flight_begin() - the outcome for some pages is open from now on
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 * @mode: The mode that they are to have; it is stored.
 *
 * memfd_flight_end() must follow if it succeeds.
 *
 * Context: May sleep. inode_lock().
 * Return: 0, -ENXIO if @mode needs an event fd and there is none, -ENOMEM, -EINTR.
 */
int memfd_flight_begin(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		       enum memfd_mode mode)
{
	struct memfd_ranges_pool pool = {};
	int err;

	do {
		if (down_write_killable(&mp->flight.settled)) {
			err = -EINTR;
			break;
		}
		mutex_lock(&mp->lock);
		err = flight_store(mp, first, last, mode, &pool);
		mutex_unlock(&mp->lock);
		if (!err)
			break;
		up_write(&mp->flight.settled);
	} while (err == -ENOMEM && !(err = memfd_ranges_refill(&pool, 0)));
	if (err)
		give_up(mp, first, last);
	memfd_ranges_drain(&pool);
	return err;
}

/**
 * memfd_flight_end() - the outcome is known
 * @mp: Protection of the file.
 * @mode: The mode that memfd_flight_begin() has stored.
 * @keep: Whether it stays. Otherwise all is as before.
 *
 * Context: May sleep. inode_lock(). Never fails.
 */
void memfd_flight_end(struct memfd_protect *mp, enum memfd_mode mode, bool keep)
{
	pgoff_t first = mp->flight.first, last = mp->flight.last;
	bool async = mode == MEMFD_MODE_ASYNC;

	mutex_lock(&mp->lock);
	memfd_ranges_try_end(&mp->modes, keep);
	if (keep)
		memfd_ranges_set(&mp->async, first, last, async);
	if (keep && async)
		memfd_ranges_set(&mp->log, first, last, 0);
	memfd_ranges_release(&mp->async, first, last);
	memfd_ranges_release(&mp->log, first, last);
	if (keep && async)
		memfd_state_log_shrunk(mp);
	mp->flight.open = false;
	/* It is not a WAIT range any more, or was one only for a moment. */
	memfd_waiters_recheck(mp, first, last,
			      keep && mode == MEMFD_MODE_DENY);
	mutex_unlock(&mp->lock);
	up_write(&mp->flight.settled);
}

/*
 * Changes
 */

/**
 * memfd_state_change() - change the maps in a range
 * @mp: Protection of the file.
 * @first: First page offset that @change may change.
 * @last: Last page offset.
 * @state: How to sleep: TASK_KILLABLE, or TASK_UNINTERRUPTIBLE for changes that
 *	   must not fail.
 * @change: Called with &memfd_protect.lock held. If it returns -ENOMEM it is called
 *	    again when the pool has more memory, and starts over.
 * @arg: Passed to @change.
 *
 * Context: May sleep.
 * Return: What @change returned, -ENOMEM, or -EINTR.
 */
int memfd_state_change(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		       unsigned int state, memfd_change_fn *change, void *arg)
{
	gfp_t gfp = state == TASK_UNINTERRUPTIBLE ? __GFP_NOFAIL : 0;
	struct memfd_ranges_pool pool = {};
	int err;

	do {
		err = memfd_flight_lock(mp, first, last, state);
		if (err)
			break;
		err = change(mp, arg, &pool);
		mutex_unlock(&mp->lock);
	} while (err == -ENOMEM && !(err = memfd_ranges_refill(&pool, gfp)));
	if (err == -ENOMEM || err == -EINTR)
		give_up(mp, first, last);
	memfd_ranges_drain(&pool);
	return err;
}

/**
 * memfd_state_unprotect() - pages of a range with a mode may be written
 * @mp: Protection of the file.
 * @span: The range.
 * @modes: Bit set of modes; others stay.
 * @pool: As for memfd_ranges_prepare().
 *
 * Who waits for them is woken by memfd_waiters_recheck().
 *
 * Context: &memfd_protect.lock, nothing of @span in flight.
 * Return: 0 or -ENOMEM.
 */
int memfd_state_unprotect(struct memfd_protect *mp,
			  const struct memfd_span *span, unsigned int modes,
			  struct memfd_ranges_pool *pool)
{
	struct memfd_span run = *span;
	int err = 0;

	while (!err && memfd_ranges_find(&mp->modes, modes, &run.first,
					 &run.last)) {
		err = memfd_ranges_change(&mp->modes, run.first, run.last,
					  MEMFD_MODE_NONE, pool);
		run.first = run.last + 1;
		run.last = span->last;
	}
	return err;
}

/*
 * The log
 */

void memfd_state_trace_caught(struct memfd_protect *mp,
			      const struct memfd_writer *writer,
			      enum memfd_mode mode)
{
	static const u8 user_mode[] = {
		[MEMFD_MODE_WAIT] = MEMFD_PROTECT_WAIT,
		[MEMFD_MODE_ASYNC] = MEMFD_PROTECT_ASYNC,
		[MEMFD_MODE_DENY] = MEMFD_PROTECT_DENY,
	};

	trace_memfd_protect_caught(mp->dev, mp->ino,
				   memfd_offset(writer->first),
				   memfd_length(writer->first, writer->last),
				   writer->type, user_mode[mode],
				   writer->flags & MEMFD_EVENT_F_KERNEL);
}

/**
 * memfd_state_log() - a writer is about to write pages of ASYNC ranges
 * @mp: Protection of the file.
 * @writer: What it wants to write. Pages that do not have the mode ASYNC are passed
 *	    over.
 * @pool: As for memfd_ranges_prepare().
 *
 * Context: &memfd_protect.lock, nothing of @writer in flight.
 * Return: 0 or -ENOMEM.
 */
int memfd_state_log(struct memfd_protect *mp, const struct memfd_writer *writer,
		    struct memfd_ranges_pool *pool)
{
	pgoff_t first = writer->first, last = writer->last;
	bool any = false;
	int err = 0;

	while (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_ASYNC), &first,
				 &last)) {
		err = memfd_ranges_change(&mp->log, first, last, 1, pool);
		if (!err)
			err = memfd_ranges_change(&mp->modes, first, last,
						  MEMFD_MODE_NONE, pool);
		if (err)
			break;
		any = true;
		first = last + 1;
		last = writer->last;
	}
	if (any) {
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_ASYNC);
		memfd_waiters_tell_dirty(&mp->waiters, writer);
	}
	return err;
}

/**
 * memfd_state_log_at_once() - memfd_state_log() of a page, in the usual case
 * @mp: Protection of the file.
 * @writer: Who is about to write it, a page of which the mode was ASYNC.
 *
 * The lock is free, nothing of it is in flight, both maps have a word for the page, and
 * the handler has been told that something is in the log.
 *
 * Context: Process context; page table locks may be held.
 * Return: False if it is not so, or the mode is another one: memfd_state_log().
 */
bool memfd_state_log_at_once(struct memfd_protect *mp,
			     const struct memfd_writer *writer)
{
	pgoff_t index = writer->first;
	struct memfd_ranges_word log, mode;
	bool done;

	if (!mutex_trylock(&mp->lock))
		return false;
	done = !flight_over(mp, index, index) && READ_ONCE(mp->waiters.told) &&
	       memfd_ranges_word(&mp->modes, index, index, MEMFD_MODE_NONE, &mode) &&
	       mode.value == MEMFD_MODE_ASYNC &&
	       memfd_ranges_word(&mp->log, index, index, 1, &log);
	if (done) {
		WRITE_ONCE(*log.at, log.to);
		WRITE_ONCE(*mode.at, mode.to);
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_ASYNC);
	}
	mutex_unlock(&mp->lock);
	return done;
}

static int unlog(struct memfd_protect *mp, void *arg,
		 struct memfd_ranges_pool *pool)
{
	const struct memfd_span *span = arg;

	return memfd_ranges_change(&mp->log, span->first, span->last, 1, pool);
}

/**
 * memfd_state_unlog() - put pages that a scan took back into the log
 * @mp: Protection of the file.
 * @span: The pages. Their modes stay.
 *
 * Context: May sleep. Never fails: nothing that was written may be forgotten.
 */
void memfd_state_unlog(struct memfd_protect *mp, struct memfd_span *span)
{
	memfd_state_change(mp, span->first, span->last, TASK_UNINTERRUPTIBLE,
			   unlog, span);
}

/**
 * memfd_state_log_shrunk() - something was taken out of the log
 * @mp: Protection of the file.
 *
 * Context: &memfd_protect.lock.
 */
void memfd_state_log_shrunk(struct memfd_protect *mp)
{
	if (memfd_ranges_empty(&mp->log))
		memfd_waiters_drop_dirty(&mp->waiters);
}

static int verdict_of(struct memfd_protect *mp, struct memfd_writer *writer)
{
	pgoff_t first = writer->first, last = writer->last;

	if (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_DENY), &first, &last)) {
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_DENY);
		return -EPERM;
	}
	first = writer->first;
	last = writer->last;
	if (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_WAIT), &first, &last)) {
		writer->first = first;
		writer->last = last;
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_WAIT);
		return -EAGAIN;
	}
	return 0;
}

static int verdict_only(struct memfd_protect *mp, void *arg,
			struct memfd_ranges_pool *pool)
{
	return verdict_of(mp, arg);
}

static int verdict_and_log(struct memfd_protect *mp, void *arg,
			   struct memfd_ranges_pool *pool)
{
	return verdict_of(mp, arg) ?: memfd_state_log(mp, arg, pool);
}

/**
 * memfd_state_verdict() - what a system call that changes pages is to do
 * @mp: Protection of the file.
 * @writer: What it wants to write. Is narrowed to the pages to wait for.
 * @log: What may go on is logged. Otherwise there will be another question.
 *
 * Context: May sleep.
 * Return: 0 to go on, -EPERM to fail, -EAGAIN to wait, -ENOMEM, -EINTR.
 */
int memfd_state_verdict(struct memfd_protect *mp, struct memfd_writer *writer,
			bool log)
{
	return memfd_state_change(mp, writer->first, writer->last,
				  TASK_KILLABLE,
				  log ? verdict_and_log : verdict_only, writer);
}
