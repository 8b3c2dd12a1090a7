// SPDX-License-Identifier: GPL-2.0-only
/*
 * The protection of a memfd: its life, its log, and the flight.
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

static void memfd_protect_free(struct kref *ref)
{
	struct memfd_protect *mp = container_of(ref, struct memfd_protect, ref);

	memfd_ranges_destroy(&mp->modes);
	memfd_ranges_destroy(&mp->log);
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
	kref_put(&mp->ref, memfd_protect_free);
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
	mutex_init(&mp->lock);
	memfd_ranges_init(&mp->modes);
	memfd_ranges_init(&mp->log);
	memfd_waiters_init(&mp->waiters);
	init_waitqueue_head(&mp->flight.settled);
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
 * @vma: The new VMA, its vm_ops set.
 *
 * The VMA's operations tell page faults that it is one to ask for. What is written
 * through a private mapping does not change the file.
 *
 * Context: mmap lock.
 */
void memfd_protect_mmap(struct inode *inode, struct vm_area_struct *vma)
{
	if (SHMEM_I(inode)->protect && (vma->vm_flags & VM_MAYSHARE))
		vma->vm_ops = &memfd_protect_vm_ops;
}

/**
 * memfd_protect_open() - a file is opened
 * @inode: A shmem inode.
 * @file: The new open file description.
 *
 * Writers can ask not to be kept waiting (IOCB_NOWAIT).
 *
 * Context: Any.
 */
void memfd_protect_open(struct inode *inode, struct file *file)
{
	if (SHMEM_I(inode)->protect)
		file->f_mode |= FMODE_NOWAIT;
}

/*
 * The flight
 */

/**
 * memfd_flight_over() - whether the outcome for some pages is open
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: &memfd_protect.lock.
 * Return: True if a memfd_protect() under way concerns any of them.
 */
bool memfd_flight_over(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	return (mp->flight.seq & 1) && first <= mp->flight.last &&
	       last >= mp->flight.first;
}

/**
 * memfd_flight_lock() - take the lock when the outcome for some pages is known
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 * @state: How to sleep, TASK_*.
 *
 * Context: May sleep. Who holds inode_lock(), shared even, does not wait, because
 * then nothing is in flight.
 * Return: 0 with &memfd_protect.lock held, or -EINTR.
 */
int memfd_flight_lock(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		      unsigned int state)
{
	unsigned int seq;
	int err;

	for (;;) {
		mutex_lock(&mp->lock);
		if (!memfd_flight_over(mp, first, last))
			return 0;
		seq = mp->flight.seq;
		mutex_unlock(&mp->lock);
		err = wait_event_state(mp->flight.settled,
				       READ_ONCE(mp->flight.seq) != seq, state);
		if (err)
			return -EINTR;
	}
}

/**
 * memfd_flight_begin() - the outcome for some pages is open from now on
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * mode_settled() is the reader.
 *
 * Context: inode_lock(), &memfd_protect.lock. Before the modes are stored.
 */
void memfd_flight_begin(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	WRITE_ONCE(mp->flight.first, first);
	WRITE_ONCE(mp->flight.last, last);
	/* The limits are visible before the flight is. */
	smp_store_release(&mp->flight.seq, mp->flight.seq + 1);
	/* The flight is visible before the modes are. */
	smp_wmb();
}

/**
 * memfd_flight_end() - the outcome is known
 * @mp: Protection of the file.
 *
 * Context: &memfd_protect.lock. After the final modes have been stored.
 */
void memfd_flight_end(struct memfd_protect *mp)
{
	/* The final modes are visible before the end of the flight is. */
	smp_store_release(&mp->flight.seq, mp->flight.seq + 1);
	wake_up_all(&mp->flight.settled);
}

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

/* Moves one run of pages from protected to logged. mp->lock is held. */
static int log_run(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		   gfp_t gfp)
{
	int err = memfd_ranges_prepare(&mp->log, first, last, 1, gfp);

	if (!err)
		err = memfd_ranges_prepare(&mp->modes, first, last,
					   MEMFD_MODE_NONE, gfp);
	if (err)
		return err;
	memfd_ranges_set(&mp->log, first, last, 1);
	memfd_ranges_set(&mp->modes, first, last, MEMFD_MODE_NONE);
	return 0;
}

/*
 * Moves the ASYNC pages of a range from protected to logged. Tells whether there
 * were any, also if memory runs out. mp->lock is held.
 */
static int log_range(struct memfd_protect *mp, pgoff_t first, pgoff_t end,
		     gfp_t gfp, bool *any)
{
	pgoff_t last = end;
	int err;

	*any = false;

	while (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_ASYNC), &first,
				 &last)) {
		err = log_run(mp, first, last, gfp);
		if (err)
			return err;
		*any = true;
		first = last + 1;
		last = end;
	}
	return 0;
}

/* Tells the event fd if the log was empty before. mp->lock is held. */
static void log_tell(struct memfd_protect *mp,
		     const struct memfd_writer *writer)
{
	struct memfd_pending *event = NULL;
	struct memfd_writer dirty = *writer;

	dirty.type = MEMFD_EVENT_DIRTY;
	dirty.flags = 0;
	if (!READ_ONCE(mp->waiters.logged))
		event = memfd_pending_alloc(&dirty, __GFP_NOFAIL);
	memfd_waiters_set_dirty(&mp->waiters, event);
}

/* Writes pages of ASYNC ranges into the log. mp->lock is held. */
int memfd_state_log_locked(struct memfd_protect *mp,
		      const struct memfd_writer *writer)
{
	bool any;
	int err = log_range(mp, writer->first, writer->last,
			    GFP_KERNEL_ACCOUNT, &any);

	if (any) {
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_ASYNC);
		log_tell(mp, writer);
	}
	return err;
}

/**
 * memfd_state_verdict() - what a system call that changes pages is to do
 * @mp: Protection of the file.
 * @writer: What it wants to write. Is narrowed to the pages to wait for.
 * @log: What may go on is logged. Otherwise there will be another question.
 *
 * Context: May sleep. &memfd_protect.lock, nothing of @writer in flight.
 * Return: 0 to go on, -EPERM to fail, -EAGAIN to wait, -ENOMEM.
 */
int memfd_state_verdict(struct memfd_protect *mp, struct memfd_writer *writer,
			bool log)
{
	pgoff_t first = writer->first, last = writer->last;
	int verdict = 0;

	if (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_DENY), &first, &last)) {
		verdict = -EPERM;
	} else {
		first = writer->first;
		last = writer->last;
		if (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_WAIT), &first,
				      &last)) {
			writer->first = first;
			writer->last = last;
			verdict = -EAGAIN;
		} else if (log) {
			verdict = memfd_state_log_locked(mp, writer);
		}
	}
	if (verdict == -EPERM)
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_DENY);
	else if (verdict == -EAGAIN)
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_WAIT);
	return verdict;
}

/**
 * memfd_state_log() - a writer is about to write pages of ASYNC ranges
 * @mp: Protection of the file.
 * @writer: What it wants to write. Pages that are not in ASYNC ranges, or are in
 *	    the log already, are passed over.
 *
 * Context: May sleep.
 * Return: 0 or -ENOMEM. -EAGAIN if memfd_protect() is under way there.
 */
int memfd_state_log(struct memfd_protect *mp, const struct memfd_writer *writer)
{
	int err = -EAGAIN;

	mutex_lock(&mp->lock);
	if (!memfd_flight_over(mp, writer->first, writer->last))
		err = memfd_state_log_locked(mp, writer);
	mutex_unlock(&mp->lock);
	return err;
}

/**
 * memfd_state_unlog() - put pages that a scan took back into the log
 * @mp: Protection of the file.
 * @span: The pages. Those that have another mode by now are passed over.
 * @tell: Whether the event fd is to be told that the log is not empty.
 *
 * Context: May sleep. &memfd_protect.lock, nothing of @span in flight. Never
 * fails: nothing that was written may be forgotten.
 */
void memfd_state_unlog(struct memfd_protect *mp, const struct memfd_span *span,
		       bool tell)
{
	struct memfd_writer writer = {
		.first = span->first,
		.last = span->last,
	};

	bool any;

	log_range(mp, span->first, span->last,
		  GFP_KERNEL_ACCOUNT | __GFP_NOFAIL, &any);
	if (!any)
		return;
	if (tell)
		log_tell(mp, &writer);
	else
		memfd_waiters_set_dirty(&mp->waiters, NULL);
}
