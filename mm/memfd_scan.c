// SPDX-License-Identifier: GPL-2.0-only
/*
 * The scan of the log of written pages, for the event fd.
 *
 * What it takes it protects again: where the mode is still NONE, and the last
 * memfd_protect() was ASYNC, the mode becomes ASYNC (see mm/memfd_state.c).
 *
 * Logs are of two kinds. Long runs are values of whole slots in the maps, and are taken
 * run by run. Single pages are bits in leaves of 512 pages: where the log and the modes
 * both have a leaf, all of its runs are taken at once, a word of 32 pages at a time.
 *
 * Runs are returned as long as possible: behind each is a page that was not in the
 * log, or the end of the range that is scanned. So one that is all there is room for
 * still grows for as long as the next page follows. Only if memory runs out, a run may
 * be cut, and the rest of it comes next.
 *
 * Locking: memfd_protect.lock for each leaf or run, and, if something is taken,
 * inode_lock() for the whole scan: no memfd_protect() is under way, and no system
 * call writes.
 */

#include <linux/bits.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <trace/events/memfd_protect.h>
#include <uapi/linux/memfd_protect.h>

#include "memfd_debug.h"
#include "memfd_protect.h"

/* Makes pages ASYNC again that are NONE because they were logged. */
static int reprotect(struct memfd_protect *mp, const struct memfd_span *span,
		     struct memfd_ranges_pool *pool)
{
	pgoff_t first = span->first, last = span->last;
	int err = 0;

	while (!err && memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_NONE),
					 &first, &last)) {
		err = memfd_ranges_change(&mp->modes, first, last,
					  MEMFD_MODE_ASYNC, pool);
		first = last + 1;
		last = span->last;
	}
	return err;
}

/* Takes a run out of the log. What has another mode by now keeps that. */
static int take_run(struct memfd_protect *mp, const struct memfd_span *span,
		    struct memfd_ranges_pool *pool)
{
	struct memfd_span run = *span;
	int err = 0;

	while (!err && memfd_ranges_find(&mp->async, BIT(1), &run.first,
					 &run.last)) {
		err = reprotect(mp, &run, pool);
		run.first = run.last + 1;
		run.last = span->last;
	}
	return err ?: memfd_ranges_change(&mp->log, span->first, span->last, 0,
					  pool);
}

/**
 * struct scan - a look for runs of the log
 * @next: Where it goes on.
 * @last: Last page offset to look at.
 * @spans: The runs, merged and ascending.
 * @nr: How many there are.
 * @max: How many there can be.
 * @take: Take them out of the log.
 * @more: Some were told by the same call before.
 * @over: There are no more, or no room for the next one.
 */
struct scan {
	pgoff_t next;
	pgoff_t last;
	struct memfd_span *spans;
	unsigned int nr;
	unsigned int max;
	bool take;
	bool more;
	bool over;
};

static bool scan_follows(const struct scan *scan, pgoff_t first)
{
	return scan->nr && scan->spans[scan->nr - 1].last + 1 == first;
}

static bool scan_has_room(const struct scan *scan, pgoff_t first)
{
	return scan->nr < scan->max || scan_follows(scan, first);
}

static void scan_add(struct scan *scan, pgoff_t first, pgoff_t last)
{
	if (scan_follows(scan, first))
		scan->spans[scan->nr - 1].last = last;
	else
		scan->spans[scan->nr++] = (struct memfd_span){ first, last };
}

/*
 * Adds the runs of a word of the log, which begins with @page, as long as there is room.
 * Returns their pages.
 */
static unsigned long scan_word(struct scan *scan, pgoff_t page,
			       unsigned long logged)
{
	unsigned long found = 0;

	while (logged) {
		unsigned int from = __ffs(logged) / MEMFD_RANGES_BITS;
		/* Both bits of each page, so that the first zero ends the run. */
		unsigned long run = (logged | logged << 1) >>
				    from * MEMFD_RANGES_BITS;
		unsigned int nr = (~run ? __ffs(~run) : BITS_PER_LONG) /
				  MEMFD_RANGES_BITS;
		unsigned long mask = memfd_ranges_mask(from, from + nr - 1);

		if (!scan_has_room(scan, page + from)) {
			scan->over = true;
			break;
		}
		scan_add(scan, page + from, page + from + nr - 1);
		found |= logged & mask;
		logged &= ~mask;
	}
	return found;
}

/* take_run() of the pages of a word that have a bit in @taken. */
static void take_word(unsigned long *log, unsigned long *modes,
		      unsigned long async, unsigned long taken)
{
	unsigned long protected = *modes | *modes >> 1;

	WRITE_ONCE(*modes, *modes | (taken & async & ~protected) *
				    MEMFD_MODE_ASYNC);
	WRITE_ONCE(*log, *log & ~taken);
}

/* All runs of a leaf. Returns false if the maps have none at @first. */
static bool scan_leaf(struct memfd_protect *mp, struct scan *scan, pgoff_t first)
{
	pgoff_t last = min(scan->last, first | (MEMFD_RANGES_LEAF_PAGES - 1));
	unsigned long *log = memfd_ranges_leaf(&mp->log, first);
	unsigned long *modes = memfd_ranges_leaf(&mp->modes, first);
	unsigned long *async = memfd_ranges_leaf(&mp->async, first);
	unsigned long all_async = 0;
	pgoff_t page, end;

	if (!log || !modes)
		return false;
	if (!async)
		all_async = memfd_ranges_get(&mp->async, first) *
			    MEMFD_RANGES_ONES;
	for (page = first; page <= last && !scan->over; page = end + 1) {
		unsigned int i = page % MEMFD_RANGES_LEAF_PAGES /
				 MEMFD_RANGES_WORD_PAGES;
		unsigned long found;

		end = min(last, page | (MEMFD_RANGES_WORD_PAGES - 1));
		found = log[i] & memfd_ranges_mask(page, end);
		if (!found)
			continue;
		found = scan_word(scan, ALIGN_DOWN(page, MEMFD_RANGES_WORD_PAGES),
				  found);
		if (scan->take)
			take_word(&log[i], &modes[i],
				  async ? async[i] : all_async, found);
	}
	if (scan->take) {
		memfd_ranges_fold(&mp->modes, first);
		memfd_ranges_fold(&mp->log, first);
	}
	scan->next = last + 1;
	return true;
}

static int scan_locked(struct memfd_protect *mp, void *arg,
		       struct memfd_ranges_pool *pool)
{
	struct scan *scan = arg;
	struct memfd_span run = { scan->next, scan->last };
	int err;

	if (!memfd_ranges_find(&mp->log, BIT(1), &run.first, &run.last) ||
	    !scan_has_room(scan, run.first)) {
		scan->over = true;
		return 0;
	}
	if (!scan_leaf(mp, scan, run.first)) {
		/* If memory runs out, what was found once is found again. */
		err = scan->take ? take_run(mp, &run, pool) : 0;
		if (err)
			return err;
		scan_add(scan, run.first, run.last);
		scan->next = run.last + 1;
	}
	if (scan->take)
		memfd_waiters_scanned(&mp->waiters);
	return 0;
}

static void log_shrunk(struct memfd_protect *mp)
{
	mutex_lock(&mp->lock);
	memfd_state_log_shrunk(mp);
	mutex_unlock(&mp->lock);
}

/*
 * Who scans takes an array that is not full for the end of the log. So memory may be missing for
 * the first run that is taken, but not for those that follow, of which there are not many more.
 * When it returns the page behind the last run has been looked at, too.
 */
static int scan_log(struct memfd_protect *mp, struct scan *scan)
{
	int err = 0;

	while (!err && !scan->over && scan->next <= scan->last) {
		bool must = scan->take && (scan->nr || scan->more);

		err = memfd_state_change(mp, scan->next, scan->last,
					 must ? TASK_UNINTERRUPTIBLE : TASK_KILLABLE,
					 scan_locked, scan);
		cond_resched();
	}
	if (!scan->nr)
		return err;
	if (scan->take)
		log_shrunk(mp);
	scan->next = scan->spans[scan->nr - 1].last + 2;
	return scan->nr;
}

/* Pages with a pin can be written at any time: they stay in the log. */
static void keep_pinned(struct memfd_protect *mp, const struct memfd_span *span)
{
	struct memfd_span pinned = *span;

	while (pinned.first <= span->last && memfd_pin_find(mp, &pinned)) {
		memfd_state_unlog(mp, &pinned);
		pinned.first = pinned.last + 1;
		pinned.last = span->last;
	}
}

static void keep_all_pinned(struct memfd_protect *mp,
			    const struct memfd_span *spans, unsigned int nr)
{
	if (!memfd_pin_possible(mp, spans[0].first, spans[nr - 1].last))
		return;
	for (; nr--; spans++)
		keep_pinned(mp, spans);
}

static int tell_dirty(struct memfd_protect *mp, void *arg,
		      struct memfd_ranges_pool *pool)
{
	memfd_waiters_tell_dirty(&mp->waiters, arg);
	return 0;
}

/**
 * memfd_protect_unscan() - put back what could not be told to user space
 * @mp: Protection of the file.
 * @spans: From memfd_protect_scan() that took them.
 * @nr: Elements of @spans.
 *
 * Context: May sleep. Never fails.
 */
void memfd_protect_unscan(struct memfd_protect *mp, struct memfd_span *spans,
			  unsigned int nr)
{
	struct memfd_writer writer;

	for (; nr--; spans++) {
		memfd_state_unlog(mp, spans);
		writer = (struct memfd_writer) {
			.first = spans->first,
			.last = spans->last,
		};
		memfd_state_change(mp, spans->first, spans->last,
				   TASK_UNINTERRUPTIBLE, tell_dirty, &writer);
	}
}

static int let_go(struct memfd_protect *mp, void *arg,
		  struct memfd_ranges_pool *pool)
{
	return memfd_state_unprotect(mp, arg, BIT(MEMFD_MODE_ASYNC), pool);
}

/* The walk has not come to its end: entries may let write what is in the log again. */
static void unscan_unwalked(struct memfd_protect *mp, struct memfd_span *spans,
			    unsigned int nr)
{
	memfd_protect_unscan(mp, spans, nr);
	for (; nr--; spans++)
		memfd_state_change(mp, spans->first, spans->last,
				   TASK_UNINTERRUPTIBLE, let_go, spans);
}

/**
 * memfd_protect_scan() - ranges that have been written
 * @mp: Protection of the file, with the reference of its event fd.
 * @start: In: first page offset to look at. Out, if there are ranges: where to go on.
 * @last: Last one.
 * @spans: Out: the ranges, merged and ascending.
 * @nr: Elements of @spans.
 * @take: Take them out of the log and protect them again.
 * @more: Whether the same system call has taken some before: then it does not fail.
 *
 * A write that is not in this scan will be in the next. Both the dirty mark and
 * the data of a system call belong to one side of the scan, because both hold
 * inode_lock(). A store is logged before its page-table entry becomes writable,
 * and the walk makes that undone before the scan returns.
 *
 * Context: May sleep, killable.
 * Return: The number of ranges, or -EINTR, -ENOMEM with nothing taken.
 */
int memfd_protect_scan(struct memfd_protect *mp, pgoff_t *start, pgoff_t last,
		       struct memfd_span *spans, unsigned int nr, bool take,
		       bool more)
{
	struct scan scan = {
		.next = *start,
		.last = last,
		.spans = spans,
		.max = nr,
		.take = take,
		.more = more,
	};
	struct inode *inode = mp->inode;
	int n, err = 0;

	if (take && down_write_killable(&inode->i_rwsem))
		return -EINTR;
	if (take)
		memfd_blocks_prepare(mp);
	n = scan_log(mp, &scan);
	*start = scan.next;
	if (!take)
		return n;
	memfd_delay(WALK);
	if (n > 0)
		err = memfd_walk_protect(inode->i_mapping, spans, n);
	if (err)
		unscan_unwalked(mp, spans, n);
	else if (n > 0)
		keep_all_pinned(mp, spans, n);
	inode_unlock(inode);
	return err ?: n;
}

/**
 * memfd_protect_scanned() - a handler has been told of written ranges
 * @mp: Protection of the file.
 * @scan: What he asked for, with walk_end.
 * @nr: The number of ranges.
 * @pages: Pages in them.
 *
 * Context: Any.
 */
void memfd_protect_scanned(struct memfd_protect *mp,
			   const struct memfd_scan *scan, unsigned int nr,
			   u64 pages)
{
	trace_memfd_protect_scan(mp->dev, mp->ino, scan->start,
				 scan->walk_end - scan->start, nr, pages,
				 scan->flags & MEMFD_SCAN_REPROTECT);
}
