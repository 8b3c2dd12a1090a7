// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writers that wait for a memfd, and the events that tell of them.
 *
 * A writer that may not go on makes an event, or joins the one of another writer
 * that wants the same pages, and sleeps on it. Three things end the sleep. A
 * change of the protection of any of its pages: the writer then asks again from
 * the start, and may find itself waiting anew, under a new cookie. A resolver's
 * no. A signal: then an event that nobody else waits for is gone, read or not.
 *
 * Locking: memfd_waiters.lock guards all of it. It is taken in process
 * context only, and nothing but locks of wait queues is taken inside:
 *
 *   memfd_waiters.lock
 *     memfd_pending.wait.lock
 *     memfd_waiters.readers.lock
 *
 * No wake-up is lost: who changes protection first stores it and then takes
 * the lock to wake; a writer looks at the protection once more under the lock,
 * before it makes itself known there. One of the two sees the other.
 *
 * An event lives as long as its references. A writer gives its reference back
 * under the lock, so one who holds the lock and found an event there may use it.
 */

#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

#include "memfd_protect.h"

#include <trace/events/memfd_protect.h>

/* Never reused: one counter for all files, for as long as the system runs. */
static atomic64_t last_cookie;

/**
 * memfd_pending_alloc() - make an event on behalf of the current task
 * @writer: What it is about.
 * @gfp: 0, or __GFP_NOFAIL if nobody could do without it.
 *
 * Context: May sleep. No locks that reclaim takes.
 * Return: The event with one reference, or NULL.
 */
struct memfd_pending *memfd_pending_alloc(const struct memfd_writer *writer,
					  gfp_t gfp)
{
	struct memfd_pending *event = kzalloc(sizeof(*event),
					      GFP_KERNEL_ACCOUNT | gfp);

	if (!event)
		return NULL;
	event->offsets.start = writer->first;
	event->offsets.last = writer->last;
	RB_CLEAR_NODE(&event->by_cookie);
	INIT_LIST_HEAD(&event->queue);
	init_waitqueue_head(&event->wait);
	event->time_ns = ktime_get_ns();
	event->pid = get_pid(task_tgid(current));
	event->tid = get_pid(task_pid(current));
	refcount_set(&event->refs, 1);
	event->type = writer->type;
	event->flags = writer->flags;
	return event;
}

/**
 * memfd_pending_put() - give a reference back
 * @event: The event, or NULL.
 *
 * Context: Any.
 */
void memfd_pending_put(struct memfd_pending *event)
{
	if (!event || !refcount_dec_and_test(&event->refs))
		return;
	put_pid(event->pid);
	put_pid(event->tid);
	kfree(event);
}

/**
 * memfd_waiters_init() - nobody waits, and nobody may
 * @waiters: To be initialised.
 */
void memfd_waiters_init(struct memfd_waiters *waiters)
{
	spin_lock_init(&waiters->lock);
	waiters->by_offset = RB_ROOT_CACHED;
	waiters->by_cookie = RB_ROOT;
	waiters->reports = RB_ROOT_CACHED;
	INIT_LIST_HEAD(&waiters->queue);
	init_waitqueue_head(&waiters->readers);
}

/* Two writes of the same pages are one event, but data is not a hole. */
static bool same_kind(u16 a, u16 b)
{
	bool a_writes = a == MEMFD_EVENT_FAULT || a == MEMFD_EVENT_WRITE;
	bool b_writes = b == MEMFD_EVENT_FAULT || b == MEMFD_EVENT_WRITE;

	return a == b || (a_writes && b_writes);
}

static struct memfd_pending *find_same(struct rb_root_cached *root,
				       const struct memfd_writer *writer)
{
	struct interval_tree_node *node;

	for (node = interval_tree_iter_first(root, writer->first, writer->last);
	     node;
	     node = interval_tree_iter_next(node, writer->first,
					    writer->last)) {
		struct memfd_pending *event;

		event = container_of(node, struct memfd_pending, offsets);
		if (node->start == writer->first &&
		    node->last == writer->last &&
		    same_kind(event->type, writer->type))
			return event;
	}
	return NULL;
}

static struct memfd_pending *find_cookie(struct memfd_waiters *waiters,
					 u64 cookie)
{
	struct rb_node *node = waiters->by_cookie.rb_node;

	while (node) {
		struct memfd_pending *event;

		event = rb_entry(node, struct memfd_pending, by_cookie);
		if (cookie == event->cookie)
			return event;
		node = cookie < event->cookie ? node->rb_left : node->rb_right;
	}
	return NULL;
}

static bool cookie_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct memfd_pending, by_cookie)->cookie <
	       rb_entry(b, struct memfd_pending, by_cookie)->cookie;
}

static void enqueue(struct memfd_waiters *waiters, struct memfd_pending *event)
{
	list_add_tail(&event->queue, &waiters->queue);
	waiters->nr_unread++;
	wake_up_poll(&waiters->readers, EPOLLIN | EPOLLRDNORM);
}

static void dequeue(struct memfd_waiters *waiters, struct memfd_pending *event)
{
	if (list_empty(&event->queue))
		return;
	list_del_init(&event->queue);
	waiters->nr_unread--;
}

/* Publishes an event that its writer is going to wait for. */
static void attach(struct memfd_waiters *waiters, struct memfd_pending *event)
{
	event->cookie = atomic64_inc_return(&last_cookie);
	interval_tree_insert(&event->offsets, &waiters->by_offset);
	rb_add(&event->by_cookie, &waiters->by_cookie, cookie_less);
	waiters->nr_pending++;
	waiters->events++;
	enqueue(waiters, event);
}

/* Ends an event: nobody finds it any more, and its writers wake up. */
static void detach(struct memfd_waiters *waiters, struct memfd_pending *event,
		   u8 verdict)
{
	interval_tree_remove(&event->offsets, &waiters->by_offset);
	rb_erase(&event->by_cookie, &waiters->by_cookie);
	waiters->nr_pending--;
	dequeue(waiters, event);
	WRITE_ONCE(event->verdict, verdict);
	wake_up_all(&event->wait);
}

/*
 * Joins the event for @writer's pages, or makes @new that event. Returns it with
 * a reference, or NULL if the writer need not wait any more.
 */
static struct memfd_pending *join(struct memfd_protect *mp,
				  const struct memfd_writer *writer,
				  struct memfd_pending *new)
{
	struct memfd_waiters *waiters = &mp->waiters;
	struct memfd_pending *event = NULL;
	bool blocked;

	spin_lock(&waiters->lock);
	rcu_read_lock();
	blocked = memfd_ranges_get(&mp->modes, writer->first) ==
		  MEMFD_MODE_WAIT;
	rcu_read_unlock();
	if (!blocked || !waiters->open)
		goto out;
	event = find_same(&waiters->by_offset, writer);
	if (!event)
		event = new;
	refcount_inc(&event->refs);
	event->waiters++;
	waiters->nr_waiters++;
	if (event == new)
		attach(waiters, event);
	else if (!list_empty(&event->queue))
		event->flags |= writer->flags;
out:
	spin_unlock(&waiters->lock);
	return event;
}

/* Returns the verdict; an event that its last writer leaves is gone. */
static u8 leave(struct memfd_waiters *waiters, struct memfd_pending *event)
{
	u8 verdict;

	spin_lock(&waiters->lock);
	verdict = event->verdict;
	waiters->nr_waiters--;
	waiters->waits++;
	if (!--event->waiters && !verdict)
		detach(waiters, event, MEMFD_VERDICT_RETRY);
	spin_unlock(&waiters->lock);
	return verdict;
}

/**
 * memfd_waiters_wait() - sleep until the protection of some pages changes
 * @mp: Protection of the file; the caller holds a reference.
 * @writer: What the caller wants to write. It waits as long as the first page
 *	    has mode WAIT.
 *
 * Context: Sleeps in @writer->state. The caller holds no lock that anybody
 * needs to make progress (Invariant S).
 * Return: 0 to ask again, -EPERM if the event was denied, -ERESTARTSYS on a
 * signal, -ENOMEM.
 */
int memfd_waiters_wait(struct memfd_protect *mp,
		       const struct memfd_writer *writer)
{
	struct memfd_waiters *waiters = &mp->waiters;
	struct memfd_pending *new, *event;
	u64 start = ktime_get_ns();
	int err;
	u8 verdict;

	new = memfd_pending_alloc(writer, 0);
	if (!new)
		return -ENOMEM;
	new->flags |= MEMFD_EVENT_F_WAITING;
	event = join(mp, writer, new);
	memfd_pending_put(new);
	if (!event)
		return 0;

	err = wait_event_state(event->wait, READ_ONCE(event->verdict),
			       writer->state);
	verdict = leave(waiters, event);
	if (verdict)
		err = verdict == MEMFD_VERDICT_DENY ? -EPERM : 0;
	trace_memfd_protect_wait(mp->dev, mp->ino, event->cookie,
				 memfd_offset(writer->first),
				 memfd_length(writer->first, writer->last),
				 writer->type, ktime_get_ns() - start, err);
	memfd_pending_put(event);
	return err;
}

/**
 * memfd_waiters_report() - tell of a writer that failed and does not wait
 * @waiters: The file's.
 * @writer: What it wanted to write.
 *
 * Writers that fail over and over again before anybody reads are one event, so
 * that they cannot fill the memory. Without an event fd nobody is told.
 *
 * Context: May sleep.
 */
void memfd_waiters_report(struct memfd_waiters *waiters,
			  const struct memfd_writer *writer)
{
	struct memfd_pending *new = memfd_pending_alloc(writer, __GFP_NOFAIL);

	spin_lock(&waiters->lock);
	if (waiters->open && !find_same(&waiters->reports, writer)) {
		refcount_inc(&new->refs);
		interval_tree_insert(&new->offsets, &waiters->reports);
		waiters->events++;
		enqueue(waiters, new);
	}
	spin_unlock(&waiters->lock);
	memfd_pending_put(new);
}

/**
 * memfd_waiters_wake() - all who wait for any page of a range ask again
 * @waiters: The file's.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: Any but interrupts. After the change has been stored.
 */
void memfd_waiters_wake(struct memfd_waiters *waiters, pgoff_t first,
			pgoff_t last)
{
	struct interval_tree_node *node;

	spin_lock(&waiters->lock);
	while ((node = interval_tree_iter_first(&waiters->by_offset, first,
						last)))
		detach(waiters,
		       container_of(node, struct memfd_pending, offsets),
		       MEMFD_VERDICT_RETRY);
	spin_unlock(&waiters->lock);
}

/**
 * memfd_waiters_recheck() - who waits for pages that are no WAIT pages asks again
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: Any but interrupts. After the change has been stored.
 */
void memfd_waiters_recheck(struct memfd_protect *mp, pgoff_t first,
			   pgoff_t last)
{
	struct memfd_waiters *waiters = &mp->waiters;
	struct interval_tree_node *node, *next;

	spin_lock(&waiters->lock);
	rcu_read_lock();
	for (node = interval_tree_iter_first(&waiters->by_offset, first, last);
	     node; node = next) {
		next = interval_tree_iter_next(node, first, last);
		if (memfd_ranges_get(&mp->modes, node->start) !=
		    MEMFD_MODE_WAIT)
			detach(waiters, container_of(node, struct memfd_pending,
						     offsets),
			       MEMFD_VERDICT_RETRY);
	}
	rcu_read_unlock();
	spin_unlock(&waiters->lock);
}

/**
 * memfd_waiters_find() - what a cookie stands for
 * @waiters: The file's.
 * @cookie: The cookie.
 * @span: Out: pages of the event.
 * @nr: Out: writers that wait for it.
 *
 * Context: Any but interrupts.
 * Return: False if there is no such event (any more).
 */
bool memfd_waiters_find(struct memfd_waiters *waiters, u64 cookie,
			struct memfd_span *span, unsigned int *nr)
{
	struct memfd_pending *event;

	spin_lock(&waiters->lock);
	event = find_cookie(waiters, cookie);
	if (event) {
		span->first = event->offsets.start;
		span->last = event->offsets.last;
		*nr = event->waiters;
	}
	spin_unlock(&waiters->lock);
	return event;
}

/**
 * memfd_waiters_deny() - the writers of an event fail
 * @waiters: The file's.
 * @cookie: The event's.
 * @span: Out: pages of the event.
 * @nr: Out: writers that waited for it.
 *
 * Context: Any but interrupts.
 * Return: False if there is no such event (any more).
 */
bool memfd_waiters_deny(struct memfd_waiters *waiters, u64 cookie,
			struct memfd_span *span, unsigned int *nr)
{
	struct memfd_pending *event;

	spin_lock(&waiters->lock);
	event = find_cookie(waiters, cookie);
	if (event) {
		span->first = event->offsets.start;
		span->last = event->offsets.last;
		*nr = event->waiters;
		detach(waiters, event, MEMFD_VERDICT_DENY);
	}
	spin_unlock(&waiters->lock);
	return event;
}

/**
 * memfd_waiters_set_dirty() - the log is not empty
 * @waiters: The file's.
 * @event: A DIRTY event to queue if it was empty, with one reference that goes
 *	   with it; or NULL if nobody is to be told.
 *
 * Context: memfd_protect.lock, which orders changes of the log.
 */
void memfd_waiters_set_dirty(struct memfd_waiters *waiters,
			     struct memfd_pending *event)
{
	spin_lock(&waiters->lock);
	if (!waiters->logged && waiters->open && event) {
		waiters->dirty = event;
		waiters->events++;
		enqueue(waiters, event);
		event = NULL;
	}
	waiters->logged = true;
	spin_unlock(&waiters->lock);
	memfd_pending_put(event);
}

/**
 * memfd_waiters_drop_dirty() - the log is empty: a DIRTY event is withdrawn
 * @waiters: The file's.
 *
 * Context: memfd_protect.lock, which orders changes of the log.
 */
void memfd_waiters_drop_dirty(struct memfd_waiters *waiters)
{
	struct memfd_pending *event;

	spin_lock(&waiters->lock);
	event = waiters->dirty;
	waiters->dirty = NULL;
	waiters->logged = false;
	if (event)
		dequeue(waiters, event);
	spin_unlock(&waiters->lock);
	memfd_pending_put(event);
}

static bool is_report(const struct memfd_pending *event)
{
	return !event->cookie && event->type != MEMFD_EVENT_DIRTY;
}

/**
 * memfd_waiters_next() - take the oldest unread event
 * @waiters: The file's.
 * @record: Out: what to tell user space. Process numbers are those that the
 *	    current task sees.
 *
 * Context: Process context; may be called by several readers at once.
 * Return: The event with a reference for memfd_waiters_end(), or NULL if
 * nothing is unread.
 */
struct memfd_pending *memfd_waiters_next(struct memfd_waiters *waiters,
					 struct memfd_event *record)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	struct memfd_pending *event;

	spin_lock(&waiters->lock);
	event = list_first_entry_or_null(&waiters->queue, struct memfd_pending,
					 queue);
	if (!event)
		goto out;
	dequeue(waiters, event);
	if (event->cookie)
		refcount_inc(&event->refs);
	else if (is_report(event))
		interval_tree_remove(&event->offsets, &waiters->reports);
	else
		waiters->dirty = NULL;
	*record = (struct memfd_event) {
		.len = sizeof(*record),
		.type = event->type,
		.flags = event->flags,
		.cookie = event->cookie,
		.offset = memfd_offset(event->offsets.start),
		.length = memfd_length(event->offsets.start,
				       event->offsets.last),
		.pid = pid_nr_ns(event->pid, ns),
		.tid = pid_nr_ns(event->tid, ns),
		.time_ns = event->time_ns,
	};
out:
	spin_unlock(&waiters->lock);
	return event;
}

/**
 * memfd_waiters_end() - the event has been delivered, or could not be
 * @waiters: The file's.
 * @event: From memfd_waiters_next().
 * @delivered: If not, it becomes the oldest unread event again, unless it is
 *	       resolved meanwhile.
 *
 * Context: Process context.
 */
void memfd_waiters_end(struct memfd_waiters *waiters,
		       struct memfd_pending *event, bool delivered)
{
	bool back = false;

	if (delivered)
		goto put;
	spin_lock(&waiters->lock);
	if (event->cookie) {
		back = !event->verdict;
	} else if (!waiters->open) {
		back = false;
	} else if (is_report(event)) {
		interval_tree_insert(&event->offsets, &waiters->reports);
		back = true;
	} else if (waiters->logged && !waiters->dirty) {
		waiters->dirty = event;
		back = true;
	}
	if (back) {
		list_add(&event->queue, &waiters->queue);
		waiters->nr_unread++;
		wake_up_poll(&waiters->readers, EPOLLIN | EPOLLRDNORM);
	}
	/* The queue holds no reference of an event that writers wait for. */
	back = back && !event->cookie;
	spin_unlock(&waiters->lock);
put:
	if (!back)
		memfd_pending_put(event);
}

/**
 * memfd_waiters_open() - there is an event fd: writers may wait
 * @waiters: The file's.
 *
 * Context: memfd_protect.lock.
 */
void memfd_waiters_open(struct memfd_waiters *waiters)
{
	spin_lock(&waiters->lock);
	waiters->open = true;
	spin_unlock(&waiters->lock);
}

/**
 * memfd_waiters_close() - the event fd is gone: nobody waits any more
 * @waiters: The file's. All WAIT ranges are dropped already.
 *
 * Context: memfd_protect.lock.
 */
void memfd_waiters_close(struct memfd_waiters *waiters)
{
	struct memfd_pending *event, *next;
	LIST_HEAD(unread);

	memfd_waiters_drop_dirty(waiters);
	spin_lock(&waiters->lock);
	waiters->open = false;
	spin_unlock(&waiters->lock);
	memfd_waiters_wake(waiters, 0, MEMFD_RANGES_LAST);

	spin_lock(&waiters->lock);
	list_splice_init(&waiters->queue, &unread);
	waiters->reports = RB_ROOT_CACHED;
	waiters->nr_unread = 0;
	spin_unlock(&waiters->lock);
	list_for_each_entry_safe(event, next, &unread, queue) {
		list_del_init(&event->queue);
		memfd_pending_put(event);
	}
}
