// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writers that wait for a memfd, and the events that tell of them.
 *
 * A writer that may not go on makes an event, or joins the one of another writer
 * that wants the same pages, and sleeps on it. Three things end the sleep. A
 * change of the protection of any of its pages: the writer then asks again from
 * the start, and may find itself waiting anew, under a new cookie. A resolver's
 * no. A signal: then an event that nobody else waits for is gone if nobody has
 * read it. If it was read it stays, and its writer, the leaver, comes back to it,
 * or finds its pages writable, or is told that it was denied meanwhile: an answer
 * takes as long as it takes, and must not be lost to a writer's timer. Each thread
 * has one such event at most, and one that died has none: so there are not more
 * of them than there are threads.
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
 * An event lives as long as its references. What can be found under the lock has
 * one: its writers', who give theirs back when the last of them has taken it away
 * from there, or its leaver's. So who holds the lock and found it there may use it.
 */

#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/time_namespace.h>
#include <linux/timekeeping.h>

#include "memfd_protect.h"

#include <trace/events/memfd_protect.h>

/* For how long a task that exits, and cannot be killed, waits for an answer. */
#define EXIT_WAIT	(10 * HZ)

/* Never reused: one counter for all files, for as long as the system runs. */
static atomic64_t last_cookie;

/* Fills in what the current task wants to write. */
static void pending_init(struct memfd_pending *event,
			 const struct memfd_writer *writer)
{
	event->offsets.start = writer->first;
	event->offsets.last = writer->last;
	RB_CLEAR_NODE(&event->by_cookie);
	RB_CLEAR_NODE(&event->by_leaver);
	INIT_LIST_HEAD(&event->leavers);
	INIT_LIST_HEAD(&event->queue);
	init_waitqueue_head(&event->wait);
	event->time_ns = ktime_get_ns();
	event->pid = get_pid(task_tgid(current));
	event->tid = get_pid(task_pid(current));
	refcount_set(&event->refs, 1);
	event->type = writer->type;
	event->flags = writer->flags;
}

/* An event with one reference, or NULL; with __GFP_NOFAIL never NULL. */
static struct memfd_pending *pending_alloc(const struct memfd_writer *writer,
					   gfp_t gfp)
{
	struct memfd_pending *event = kzalloc(sizeof(*event),
					      GFP_KERNEL_ACCOUNT | gfp);

	if (event)
		pending_init(event, writer);
	return event;
}

static void pending_put(struct memfd_pending *event)
{
	if (!event || !refcount_dec_and_test(&event->refs))
		return;
	put_pid(event->pid);
	put_pid(event->tid);
	put_pid(event->leaver);
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
	waiters->by_leaver = RB_ROOT;
	INIT_LIST_HEAD(&waiters->leavers);
	init_waitqueue_head(&waiters->readers);
	INIT_LIST_HEAD(&waiters->dirty.queue);
	waiters->dirty.type = MEMFD_EVENT_DIRTY;
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

/* An event that could not be delivered is the oldest one again. */
static void requeue(struct memfd_waiters *waiters, struct memfd_pending *event)
{
	list_add(&event->queue, &waiters->queue);
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

/*
 * Leavers
 */

static struct memfd_pending *find_leaver(struct memfd_waiters *waiters,
					 const struct pid *tid)
{
	struct rb_node *node = waiters->by_leaver.rb_node;

	while (node) {
		struct memfd_pending *event;

		event = rb_entry(node, struct memfd_pending, by_leaver);
		if (tid == event->leaver)
			return event;
		node = tid < event->leaver ? node->rb_left : node->rb_right;
	}
	return NULL;
}

static bool leaver_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct memfd_pending, by_leaver)->leaver <
	       rb_entry(b, struct memfd_pending, by_leaver)->leaver;
}

/* Whoever is told of its end by a pidfd is told so here too, even if nobody has reaped it. */
static bool leaver_died(const struct memfd_pending *event)
{
	struct task_struct *task;
	bool died;

	rcu_read_lock();
	task = pid_task(event->leaver, PIDTYPE_PID);
	died = !task || READ_ONCE(task->exit_state);
	rcu_read_unlock();
	return died;
}

/* The current thread will come back to @event, which gets a reference for it. */
static void add_leaver(struct memfd_waiters *waiters,
		       struct memfd_pending *event)
{
	refcount_inc(&event->refs);
	event->leaver = get_pid(task_pid(current));
	rb_add(&event->by_leaver, &waiters->by_leaver, leaver_less);
	list_add_tail(&event->leavers, &waiters->leavers);
}

/* Nobody comes back to @event any more. */
static void drop_leaver(struct memfd_waiters *waiters,
			struct memfd_pending *event)
{
	rb_erase(&event->by_leaver, &waiters->by_leaver);
	RB_CLEAR_NODE(&event->by_leaver);
	list_del_init(&event->leavers);
	put_pid(event->leaver);
	event->leaver = NULL;
	pending_put(event);
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

/*
 * Ends an event: nobody finds it any more, and its writers wake up. A leaver finds
 * out by itself that it may go on, but not that it is denied. The caller holds
 * a reference, or does not use @event any more.
 */
static void detach(struct memfd_waiters *waiters, struct memfd_pending *event,
		   u8 verdict)
{
	interval_tree_remove(&event->offsets, &waiters->by_offset);
	rb_erase(&event->by_cookie, &waiters->by_cookie);
	waiters->nr_pending--;
	dequeue(waiters, event);
	WRITE_ONCE(event->verdict, verdict);
	wake_up_all(&event->wait);
	if (event->leaver && verdict != MEMFD_VERDICT_DENY)
		drop_leaver(waiters, event);
}

/* Forgets what a leaver left behind, whether it was answered or not. */
static void forget(struct memfd_waiters *waiters, struct memfd_pending *event)
{
	if (event->verdict)
		drop_leaver(waiters, event);
	else
		detach(waiters, event, MEMFD_VERDICT_RETRY);
}

/*
 * Forgets what the current thread left behind, unless it is @but, and those of the
 * oldest leavers that have died. A look at two for each new one is enough.
 */
static void forget_leavers(struct memfd_waiters *waiters,
			   struct memfd_pending *but)
{
	struct memfd_pending *event;
	unsigned int i;

	event = find_leaver(waiters, task_pid(current));
	if (event && event != but)
		forget(waiters, event);
	for (i = 0; i < 2 && !list_empty(&waiters->leavers); i++) {
		event = list_first_entry(&waiters->leavers,
					 struct memfd_pending, leavers);
		if (event != but && leaver_died(event))
			forget(waiters, event);
		else
			list_move_tail(&event->leavers, &waiters->leavers);
	}
}

/* Whether all that @writer wants to write are WAIT pages still. Under RCU. */
static bool must_wait(struct memfd_protect *mp,
		      const struct memfd_writer *writer)
{
	pgoff_t index = writer->first, last;

	do {
		if (memfd_ranges_get_run(&mp->modes, index, &last) !=
		    MEMFD_MODE_WAIT)
			return false;
		index = last + 1;
	} while (last < writer->last);
	return true;
}

static bool is_kernel_access(const struct memfd_writer *writer)
{
	return writer->type == MEMFD_EVENT_FAULT &&
	       (writer->flags & MEMFD_EVENT_F_KERNEL);
}

/*
 * The note that says that @writer, the current thread, was denied what it wants. A
 * note that is not for it is dropped: it went on to something else. What an access of
 * the kernel was denied does not concern the next one, which has not been tried.
 */
static struct memfd_pending *find_denial(struct memfd_waiters *waiters,
					 const struct memfd_writer *writer,
					 bool tried)
{
	struct memfd_pending *note = find_leaver(waiters, task_pid(current));

	if (!note || note->verdict != MEMFD_VERDICT_DENY)
		return NULL;
	if (note->offsets.start == writer->first &&
	    note->offsets.last == writer->last &&
	    same_kind(note->type, writer->type) && (tried || !note->kernel))
		return note;
	drop_leaver(waiters, note);
	return NULL;
}

/*
 * Joins the event for @writer's pages, or makes @new that event. Returns it with
 * a reference, NULL if the writer need not wait any more, or ERR_PTR(-EPERM) if it
 * was denied while it came back.
 */
static struct memfd_pending *join(struct memfd_protect *mp,
				  const struct memfd_writer *writer,
				  struct memfd_pending *new)
{
	struct memfd_waiters *waiters = &mp->waiters;
	struct memfd_pending *event = NULL, *note;
	bool blocked;

	spin_lock(&waiters->lock);
	rcu_read_lock();
	blocked = must_wait(mp, writer);
	rcu_read_unlock();
	if (!blocked || !waiters->open)
		goto out;
	note = find_denial(waiters, writer, false);
	if (note) {
		/* An access of the kernel comes back once more to be told. */
		if (is_kernel_access(writer))
			note->kernel = !writer->resumes;
		else
			drop_leaver(waiters, note);
		event = ERR_PTR(-EPERM);
		goto out;
	}
	event = find_same(&waiters->by_offset, writer);
	forget_leavers(waiters, event);
	if (!event)
		event = new;
	refcount_inc(&event->refs);
	if (event->leaver)
		drop_leaver(waiters, event);
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

/*
 * Returns the verdict. An event that its last writer leaves is gone, unless it was
 * read and the writer will come back, or comes back at once. @note is a reference of
 * the caller's to an event that nobody else knows, or the event itself.
 */
static u8 leave(struct memfd_waiters *waiters, struct memfd_pending *event,
		struct memfd_pending *note, const struct memfd_writer *writer)
{
	bool comes_back = !fatal_signal_pending(current);
	u8 verdict;

	spin_lock(&waiters->lock);
	verdict = event->verdict;
	waiters->nr_waiters--;
	waiters->waits++;
	event->waiters--;
	if (!verdict && !event->waiters) {
		if (comes_back && !(current->flags & PF_EXITING) &&
		    (writer->limit || list_empty(&event->queue)))
			add_leaver(waiters, event);
		else
			detach(waiters, event, MEMFD_VERDICT_RETRY);
	} else if (verdict == MEMFD_VERDICT_DENY && comes_back &&
		   waiters->open && is_kernel_access(writer)) {
		forget_leavers(waiters, NULL);
		note->verdict = verdict;
		note->kernel = !writer->resumes;
		if (!note->leaver)
			add_leaver(waiters, note);
	}
	spin_unlock(&waiters->lock);
	return verdict;
}

/**
 * memfd_waiters_was_denied() - whether a fault comes back that was denied meanwhile
 * @waiters: The file's.
 * @writer: What it wants to write, a WAIT page still.
 * @tried: Whether it is the second try of one access.
 *
 * Context: Process context.
 * Return: True if it is to fail. It is not told again.
 */
bool memfd_waiters_was_denied(struct memfd_waiters *waiters,
			      const struct memfd_writer *writer, bool tried)
{
	struct memfd_pending *note;

	if (RB_EMPTY_ROOT(&waiters->by_leaver))
		return false;
	spin_lock(&waiters->lock);
	note = find_denial(waiters, writer, tried);
	if (note)
		drop_leaver(waiters, note);
	spin_unlock(&waiters->lock);
	return note;
}

static int sleep_on(struct memfd_pending *event,
		    const struct memfd_writer *writer)
{
	long limit = writer->limit;

	/* No signal reaches it any more. */
	if (current->flags & PF_EXITING)
		limit = EXIT_WAIT;
	if (!limit)
		return wait_event_state(event->wait, READ_ONCE(event->verdict),
					writer->state);
	___wait_event(event->wait,
		      ___wait_cond_timeout(READ_ONCE(event->verdict)),
		      writer->state, 0, limit,
		      __ret = schedule_timeout(__ret));
	return READ_ONCE(event->verdict) ? 0 : -ERESTARTSYS;
}

/**
 * memfd_waiters_wait() - sleep until the protection of some pages changes
 * @mp: Protection of the file; the caller holds a reference.
 * @writer: What the caller wants to write, WAIT pages all of them.
 *
 * A fault in kernel mode that was denied leaves a note for
 * memfd_waiters_was_denied().
 *
 * Context: Sleeps in @writer->state. The caller holds no lock that anybody
 * needs to make progress (Invariant S).
 * Return: 0 to ask again, -EPERM if the event was denied, -ERESTARTSYS on a
 * signal or after @writer->limit (or if the task exits and has waited for long
 * enough), -ENOMEM.
 */
int memfd_waiters_wait(struct memfd_protect *mp,
		       const struct memfd_writer *writer)
{
	struct memfd_waiters *waiters = &mp->waiters;
	struct memfd_pending *new, *event;
	int err = 0;
	u8 verdict;

	new = pending_alloc(writer, 0);
	if (!new)
		return -ENOMEM;
	new->flags |= MEMFD_EVENT_F_WAITING;
	event = join(mp, writer, new);
	if (IS_ERR_OR_NULL(event)) {
		err = PTR_ERR_OR_ZERO(event);
		goto put;
	}

	err = sleep_on(event, writer);
	verdict = leave(waiters, event, new, writer);
	if (verdict)
		err = verdict == MEMFD_VERDICT_DENY ? -EPERM : 0;
	/* The clock is read for those who trace only. */
	if (trace_memfd_protect_wait_enabled())
		trace_memfd_protect_wait(mp->dev, mp->ino, event->cookie,
					 memfd_offset(writer->first),
					 memfd_length(writer->first, writer->last),
					 writer->type,
					 ktime_get_ns() - new->time_ns, err);
	pending_put(event);
put:
	pending_put(new);
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
	struct memfd_pending *new = pending_alloc(writer, __GFP_NOFAIL);

	spin_lock(&waiters->lock);
	if (waiters->open && !find_same(&waiters->reports, writer)) {
		refcount_inc(&new->refs);
		interval_tree_insert(&new->offsets, &waiters->reports);
		waiters->events++;
		enqueue(waiters, new);
	}
	spin_unlock(&waiters->lock);
	pending_put(new);
}

/**
 * memfd_waiters_recheck() - modes have changed: who need not wait asks again
 * @mp: Protection of the file.
 * @first: First page offset that changed.
 * @last: Last page offset.
 * @denied: Whether they are DENY pages now.
 *
 * Those go on that wait for a first page that is no WAIT page any more, or for
 * pages of which one is denied. Others would but go to sleep again.
 *
 * Context: Any but interrupts. After the change has been stored.
 */
void memfd_waiters_recheck(struct memfd_protect *mp, pgoff_t first,
			   pgoff_t last, bool denied)
{
	struct memfd_waiters *waiters = &mp->waiters;
	struct interval_tree_node *node, *next;

	spin_lock(&waiters->lock);
	rcu_read_lock();
	for (node = interval_tree_iter_first(&waiters->by_offset, first, last);
	     node; node = next) {
		struct memfd_pending *event;

		next = interval_tree_iter_next(node, first, last);
		event = container_of(node, struct memfd_pending, offsets);
		if (denied || memfd_ranges_get(&mp->modes, node->start) !=
			      MEMFD_MODE_WAIT)
			detach(waiters, event, MEMFD_VERDICT_RETRY);
	}
	rcu_read_unlock();
	spin_unlock(&waiters->lock);
}

/*
 * The event of a cookie, and what it stands for. An event whose writers all died
 * is none.
 */
static struct memfd_pending *look_up(struct memfd_waiters *waiters, u64 cookie,
				     struct memfd_span *span, unsigned int *nr)
{
	struct memfd_pending *event = find_cookie(waiters, cookie);

	if (!event)
		return NULL;
	if (event->leaver && leaver_died(event)) {
		forget(waiters, event);
		return NULL;
	}
	span->first = event->offsets.start;
	span->last = event->offsets.last;
	*nr = event->waiters;
	return event;
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
	event = look_up(waiters, cookie, span, nr);
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
	event = look_up(waiters, cookie, span, nr);
	if (event)
		detach(waiters, event, MEMFD_VERDICT_DENY);
	spin_unlock(&waiters->lock);
	return event;
}

/*
 * DIRTY
 */

static bool is_dirty(const struct memfd_waiters *waiters,
		     const struct memfd_pending *event)
{
	return event == &waiters->dirty;
}

/* The DIRTY event keeps the numbers of a process until it has others. */
static void put_dirty(struct memfd_waiters *waiters)
{
	put_pid(waiters->dirty.pid);
	put_pid(waiters->dirty.tid);
	waiters->dirty.pid = NULL;
	waiters->dirty.tid = NULL;
}

/**
 * memfd_waiters_tell_dirty() - something was written into the log
 * @waiters: The file's.
 * @writer: Who writes.
 *
 * Told once between two scans that take something.
 *
 * Context: memfd_protect.lock, which orders changes of the log.
 */
void memfd_waiters_tell_dirty(struct memfd_waiters *waiters,
			      const struct memfd_writer *writer)
{
	struct memfd_pending *event = &waiters->dirty;

	if (READ_ONCE(waiters->told))
		return;
	spin_lock(&waiters->lock);
	if (waiters->open && list_empty(&event->queue)) {
		put_dirty(waiters);
		event->offsets.start = writer->first;
		event->offsets.last = writer->last;
		event->time_ns = ktime_get_ns();
		event->pid = get_pid(task_tgid(current));
		event->tid = get_pid(task_pid(current));
		waiters->events++;
		enqueue(waiters, event);
	}
	WRITE_ONCE(waiters->told, true);
	spin_unlock(&waiters->lock);
}

/**
 * memfd_waiters_scanned() - a scan is about to take something out of the log
 * @waiters: The file's.
 *
 * What is written from now on is told anew.
 *
 * Context: memfd_protect.lock, which orders changes of the log.
 */
void memfd_waiters_scanned(struct memfd_waiters *waiters)
{
	WRITE_ONCE(waiters->told, false);
}

/**
 * memfd_waiters_drop_dirty() - the log is empty: a DIRTY event is withdrawn
 * @waiters: The file's.
 *
 * Context: memfd_protect.lock, which orders changes of the log.
 */
void memfd_waiters_drop_dirty(struct memfd_waiters *waiters)
{
	spin_lock(&waiters->lock);
	dequeue(waiters, &waiters->dirty);
	put_dirty(waiters);
	WRITE_ONCE(waiters->told, false);
	spin_unlock(&waiters->lock);
}

/*
 * Readers
 */

/* In the reader's time namespace. */
static u64 reader_time(u64 time_ns)
{
	struct timespec64 ts = ns_to_timespec64(time_ns);

	timens_add_monotonic(&ts);
	return timespec64_to_ns(&ts);
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
	else if (!is_dirty(waiters, event))
		interval_tree_remove(&event->offsets, &waiters->reports);
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
		.time_ns = reader_time(event->time_ns),
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
	bool put = true;

	spin_lock(&waiters->lock);
	if (is_dirty(waiters, event)) {
		/* Unless it has been told anew, or was withdrawn. */
		if (!delivered && event->pid && list_empty(&event->queue))
			requeue(waiters, event);
		put = false;
	} else if (!delivered && event->cookie && !event->verdict) {
		requeue(waiters, event);
	} else if (!delivered && !event->cookie && waiters->open) {
		interval_tree_insert(&event->offsets, &waiters->reports);
		requeue(waiters, event);
		put = false;
	}
	spin_unlock(&waiters->lock);
	if (put)
		pending_put(event);
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
	struct interval_tree_node *node;
	LIST_HEAD(unread);

	memfd_waiters_drop_dirty(waiters);
	spin_lock(&waiters->lock);
	waiters->open = false;
	while ((node = interval_tree_iter_first(&waiters->by_offset, 0,
						ULONG_MAX)))
		detach(waiters,
		       container_of(node, struct memfd_pending, offsets),
		       MEMFD_VERDICT_RETRY);
	list_for_each_entry_safe(event, next, &waiters->leavers, leavers)
		drop_leaver(waiters, event);
	list_splice_init(&waiters->queue, &unread);
	waiters->reports = RB_ROOT_CACHED;
	waiters->nr_unread = 0;
	spin_unlock(&waiters->lock);
	list_for_each_entry_safe(event, next, &unread, queue) {
		list_del_init(&event->queue);
		pending_put(event);
	}
}
