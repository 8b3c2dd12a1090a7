/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of memfd_protect() share. Core kernel code includes
 * <linux/memfd_protect.h> instead, the event fd <linux/memfd_notify.h>.
 */
#ifndef _MM_MEMFD_PROTECT_H
#define _MM_MEMFD_PROTECT_H

#include <linux/interval_tree.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/memfd_notify.h>
#include <linux/memfd_protect.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/rbtree.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/shmem_fs.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <uapi/linux/memfd_protect.h>

#include "internal.h"
#include "memfd_ranges.h"

/**
 * enum memfd_mode - values of &memfd_protect.modes
 * @MEMFD_MODE_NONE: May be written. Pages of ASYNC ranges too, once they are in
 *		     the log.
 * @MEMFD_MODE_WAIT: MEMFD_PROTECT_WAIT.
 * @MEMFD_MODE_ASYNC: MEMFD_PROTECT_ASYNC, not written since.
 * @MEMFD_MODE_DENY: MEMFD_PROTECT_DENY.
 */
enum memfd_mode {
	MEMFD_MODE_NONE,
	MEMFD_MODE_WAIT,
	MEMFD_MODE_ASYNC,
	MEMFD_MODE_DENY,
};

/**
 * struct memfd_pending - an event that reader and resolver know
 * @offsets: Its pages, in &memfd_waiters.by_offset.
 * @by_cookie: In &memfd_waiters.by_cookie.
 * @by_leaver: In &memfd_waiters.by_leaver, with @leaver.
 * @leavers: In &memfd_waiters.leavers at the same time.
 * @queue: In &memfd_waiters.queue while it is unread.
 * @wait: Where its writers sleep.
 * @cookie: Its name, 0 if nobody waits for it.
 * @time_ns: CLOCK_MONOTONIC when the first writer was caught.
 * @pid: The first writer's process, holds a reference.
 * @tid: The first writer's thread, holds a reference.
 * @leaver: The last writer's thread, if it was called away and is expected back.
 *	    Holds a reference.
 * @refs: One for each writer that sleeps, one for a reader that copies it, one
 *	  for the queue if nobody sleeps, one for @by_leaver.
 * @waiters: Writers that sleep.
 * @type: MEMFD_EVENT_*.
 * @flags: MEMFD_EVENT_F_*.
 * @kernel: Whether @leaver is in an access of the kernel, and @verdict is for its
 *	    second try only.
 * @verdict: 0 while it is pending. Otherwise it is in no tree but @by_leaver, and
 *	     its writers go on (MEMFD_VERDICT_RETRY) or fail (_DENY).
 *
 * All fields that change are guarded by &memfd_waiters.lock.
 */
struct memfd_pending {
	struct interval_tree_node offsets;
	struct rb_node by_cookie;
	struct rb_node by_leaver;
	struct list_head leavers;
	struct list_head queue;
	wait_queue_head_t wait;
	u64 cookie;
	u64 time_ns;
	struct pid *pid;
	struct pid *tid;
	struct pid *leaver;
	refcount_t refs;
	unsigned int waiters;
	u16 type;
	u16 flags;
	bool kernel;
	u8 verdict;
};

#define MEMFD_VERDICT_RETRY	1
#define MEMFD_VERDICT_DENY	2

/**
 * struct memfd_waiters - pending events and sleeping writers of one file
 * @lock: Guards everything here. A leaf, but for the locks of wait queues.
 * @by_offset: Pending events that writers wait for, by page offset.
 * @by_cookie: The same, by cookie.
 * @reports: Unread events that nobody waits for, by page offset.
 * @queue: Unread events, oldest first.
 * @by_leaver: Events whose last writer was called away by a signal after they had
 *	       been read, and notes for writers that will come back and are to fail,
 *	       by &memfd_pending.leaver. One for each thread at most.
 * @leavers: The same, oldest first.
 * @readers: Readers and pollers of the event fd.
 * @dirty: The DIRTY event; it has the numbers of a process while it is in @queue.
 * @told: A DIRTY event was queued since a scan took something, or the log was
 *	  empty.
 * @open: There is an event fd. Otherwise nobody may sleep.
 * @nr_waiters: Writers that sleep now.
 * @nr_pending: Events in @by_cookie.
 * @nr_unread: Events in @queue.
 * @events: Events created so far.
 * @waits: Sleeps that have ended so far.
 */
struct memfd_waiters {
	spinlock_t lock; /* see above */
	struct rb_root_cached by_offset;
	struct rb_root by_cookie;
	struct rb_root_cached reports;
	struct list_head queue;
	struct rb_root by_leaver;
	struct list_head leavers;
	wait_queue_head_t readers;
	struct memfd_pending dirty;
	bool told;
	bool open;
	unsigned long nr_waiters;
	unsigned long nr_pending;
	unsigned long nr_unread;
	u64 events;
	u64 waits;
};

/**
 * struct memfd_protect - protection of one file
 * @ref: The inode, the event fd and every sleeping writer hold one.
 * @inode: The file; only valid for those who hold it by other means.
 * @dev: Device number of @inode, for tracing.
 * @ino: Inode number of @inode, for tracing.
 * @lock: Guards changes of @modes, @async, @log, @flight and of @waiters.open.
 * @modes: enum memfd_mode of every page offset, read under RCU or @lock.
 * @async: 1 for each page whose last memfd_protect() was ASYNC, likewise.
 * @log: 1 for each page that was written and not taken by a scan, likewise.
 * @waiters: Pending events and sleeping writers.
 * @flight: memfd_protect() that is under way, see mm/memfd_state.c.
 * @flight.settled: Held for writing by it, and for reading by who waits for it.
 * @flight.open: Whether there is one, under @lock.
 * @flight.first: First page offset, under @lock.
 * @flight.last: Last page offset, under @lock.
 * @kernel: MEMFD_NOTIFY_KERNEL of the event fd.
 * @pinned: Pages may be pinned for writing anywhere, see mm/memfd_blocks.c.
 * @noted: Blocks up to the last one that was pinned while it had no bit.
 * @blocks: Otherwise, where they may be. NULL until the first memfd_protect().
 * @got_pages: Somebody got pages to write them, and holds mere references.
 *	       Never false again.
 * @busy: Where memfd_protect() last found a pin that stays, in bytes, or -1.
 * @rcu: For those who find it through a page.
 */
struct memfd_protect {
	struct kref ref;
	struct inode *inode;
	dev_t dev;
	unsigned long ino;
	struct mutex lock; /* see above */
	struct memfd_ranges modes;
	struct memfd_ranges async;
	struct memfd_ranges log;
	struct memfd_waiters waiters;
	struct {
		struct rw_semaphore settled;
		bool open;
		pgoff_t first;
		pgoff_t last;
	} flight;
	bool kernel;
	bool pinned;
	atomic_long_t noted;
	struct memfd_blocks __rcu *blocks;
	bool got_pages;
	loff_t busy;
	struct rcu_head rcu;
};

/**
 * struct memfd_writer - who wants to change what
 * @first: First page offset.
 * @last: Last page offset.
 * @type: MEMFD_EVENT_*.
 * @flags: MEMFD_EVENT_F_*.
 * @state: How to sleep, TASK_*.
 * @limit: For how long, in jiffies. 0: until the event is resolved.
 * @resumes: Whether a signal may come before it is told the answer, and it will be back.
 */
struct memfd_writer {
	pgoff_t first;
	pgoff_t last;
	u16 type;
	u16 flags;
	unsigned int state;
	unsigned int limit;
	bool resumes;
};

/* The protection of the file that @vma, one of vma_memfd_protect(), maps. */
static inline struct memfd_protect *
memfd_protect_of_vma(const struct vm_area_struct *vma)
{
	return SHMEM_I(file_inode(vma->vm_file))->protect;
}

/*
 * The protection of a file, NULL if it has none. &inode.i_mapping and &file.f_mapping do not
 * tell: those of a file of Coda are of the file that it has in its cache.
 */
static inline struct memfd_protect *memfd_protect_of(struct inode *inode)
{
	return shmem_mapping(&inode->i_data) ? SHMEM_I(inode)->protect : NULL;
}

/* Whether a file can be written through @vma, or can be when mprotect() has been called. */
static inline bool memfd_vma_may_write(const struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_SHARED) &&
	       (vma->vm_flags & (VM_WRITE | VM_MAYWRITE));
}

/* The mode of one page. Without locks it may be another one by now. */
static inline enum memfd_mode memfd_mode_at(struct memfd_protect *mp,
					    pgoff_t index)
{
	enum memfd_mode mode;

	rcu_read_lock();
	mode = memfd_ranges_get(&mp->modes, index);
	rcu_read_unlock();
	return mode;
}

static inline u64 memfd_offset(pgoff_t first)
{
	return (u64)first << PAGE_SHIFT;
}

static inline u64 memfd_length(pgoff_t first, pgoff_t last)
{
	return (u64)(last - first + 1) << PAGE_SHIFT;
}

/* mm/memfd_blocks.c */
void memfd_blocks_prepare(struct memfd_protect *mp);
void memfd_blocks_free(struct memfd_protect *mp);
void memfd_blocks_note(struct memfd_protect *mp, pgoff_t index);
bool memfd_blocks_next(struct memfd_protect *mp, struct memfd_span *part,
		       bool locked);
bool memfd_blocks_clear(struct memfd_protect *mp,
			const struct memfd_span *part);
void memfd_blocks_restore(struct memfd_protect *mp,
			  const struct memfd_span *part);

/* mm/memfd_waiters.c */
void memfd_waiters_init(struct memfd_waiters *waiters);
void memfd_waiters_open(struct memfd_waiters *waiters);
void memfd_waiters_close(struct memfd_waiters *waiters);
int memfd_waiters_wait(struct memfd_protect *mp,
		       const struct memfd_writer *writer);
bool memfd_waiters_was_denied(struct memfd_waiters *waiters,
			      const struct memfd_writer *writer, bool tried);
void memfd_waiters_report(struct memfd_waiters *waiters,
			  const struct memfd_writer *writer);
void memfd_waiters_recheck(struct memfd_protect *mp, pgoff_t first,
			   pgoff_t last, bool denied);
bool memfd_waiters_find(struct memfd_waiters *waiters, u64 cookie,
			struct memfd_span *span, unsigned int *nr);
bool memfd_waiters_deny(struct memfd_waiters *waiters, u64 cookie,
			struct memfd_span *span, unsigned int *nr);
void memfd_waiters_tell_dirty(struct memfd_waiters *waiters,
			      const struct memfd_writer *writer);
void memfd_waiters_scanned(struct memfd_waiters *waiters);
void memfd_waiters_drop_dirty(struct memfd_waiters *waiters);
struct memfd_pending *memfd_waiters_next(struct memfd_waiters *waiters,
					 struct memfd_event *record);
void memfd_waiters_end(struct memfd_waiters *waiters,
		       struct memfd_pending *event, bool delivered);

/* mm/memfd_fault.c */
bool memfd_beyond_end(const struct vm_area_struct *vma, pgoff_t index);

/* mm/memfd_huge.c */
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
bool memfd_huge_wanted(struct vm_fault *vmf);
vm_fault_t memfd_huge_again(struct vm_fault *vmf);
#else
static inline bool memfd_huge_wanted(struct vm_fault *vmf)
{
	return false;
}

static inline vm_fault_t memfd_huge_again(struct vm_fault *vmf)
{
	return 0;
}
#endif

/* mm/memfd_walk.c */
int memfd_walk_protect(struct address_space *mapping,
		       const struct memfd_span *spans, unsigned int nr);

/* mm/memfd_state.c */

/**
 * typedef memfd_change_fn - a change for memfd_state_change()
 * @mp: Protection of the file, its lock held.
 * @arg: The caller's.
 * @pool: For memfd_ranges_prepare().
 */
typedef int (memfd_change_fn)(struct memfd_protect *mp, void *arg,
			      struct memfd_ranges_pool *pool);

void memfd_state_put(struct memfd_protect *mp);
int memfd_flight_lock(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		      unsigned int state);
bool memfd_flight_trylock(struct memfd_protect *mp, pgoff_t first,
			  pgoff_t last);
void memfd_flight_wait(struct memfd_protect *mp);
int memfd_flight_begin(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		       enum memfd_mode mode);
void memfd_flight_end(struct memfd_protect *mp, enum memfd_mode mode,
		      bool keep);
int memfd_state_change(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		       unsigned int state, memfd_change_fn *change, void *arg);
int memfd_state_unprotect(struct memfd_protect *mp,
			  const struct memfd_span *span, unsigned int modes,
			  struct memfd_ranges_pool *pool);
void memfd_state_trace_caught(struct memfd_protect *mp,
			      const struct memfd_writer *writer,
			      enum memfd_mode mode);
int memfd_state_log(struct memfd_protect *mp, const struct memfd_writer *writer,
		    struct memfd_ranges_pool *pool);
bool memfd_state_log_at_once(struct memfd_protect *mp,
			     const struct memfd_writer *writer);
void memfd_state_unlog(struct memfd_protect *mp, struct memfd_span *span);
void memfd_state_log_shrunk(struct memfd_protect *mp);
int memfd_state_verdict(struct memfd_protect *mp, struct memfd_writer *writer,
			bool log);

/* mm/memfd_pin.c */
bool memfd_pin_possible(struct memfd_protect *mp, pgoff_t first, pgoff_t last);
bool memfd_pin_find(struct memfd_protect *mp, struct memfd_span *span);
int memfd_pin_wait(struct memfd_protect *mp, pgoff_t first, pgoff_t last);
int memfd_pin_settle(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		     unsigned int round);

#endif /* _MM_MEMFD_PROTECT_H */
