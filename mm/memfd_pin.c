// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel code that gets hold of pages of a memfd and writes them later: DMA, and
 * whatever else GUP serves.
 *
 * Who pins a page for writing marks its folio (PG_owner_2, which is the file
 * system's), and the mark goes when the folio is seen without pins. Pins cannot
 * be told apart by their count, but a folio without the mark has none that writes:
 * whoever reads pages for as long as he likes, with O_DIRECT say, is in nobody's
 * way.
 *
 * Invariant P. A folio that is pinned for writing is marked, as seen by who holds
 * inode_lock(). The pin is taken first, the mark is looked at next. Who takes the
 * mark away, one at a time under inode_lock(), looks at the pins once more
 * afterwards, and puts it back if there are any:
 *
 *   pinner				memfd_pin_find()
 *
 *   take pin				no pins: clear mark
 *   full barrier			full barrier
 *   set mark unless it is set		pins: set mark
 *
 * When the walk is over nobody takes a pin for writing any more without asking:
 * GUP looks at the page-table entry again after it has marked the folio, or holds
 * the page table lock. So a folio that has been seen without pins after the walk
 * is free for good.
 *
 * In which parts of the file there may be pins is kept in mm/memfd_blocks.c.
 *
 * References. iov_iter_get_pages2() takes mere references, which cannot be told from
 * others. It marks the folio as well, and memfd_protect.got_pages: from then on
 * any reference to a folio with a mark counts, as for memfd sealing.
 */

#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/rcupdate_wait.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/xarray.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_protect.h"

/*
 * For how long a pin must stay to be one that stays: as memfd sealing. How long a
 * flight waits for those that do not: others wait for the flight.
 */
#define PIN_STAYS_MS	150
#define PIN_SETTLE_MS	20
/* Rounds after which it does so twice as long each time, to come to an end. */
#define PIN_SHORT_ROUNDS	8

/* Folios that are watched at a time. */
#define PIN_BATCH	64

/*
 * The mark
 */

static bool folio_marked(const struct folio *folio)
{
	return test_bit(PG_owner_2, const_folio_flags(folio, 0));
}

static void folio_mark(struct folio *folio)
{
	set_bit(PG_owner_2, folio_flags(folio, 0));
}

static void folio_unmark(struct folio *folio)
{
	clear_bit(PG_owner_2, folio_flags(folio, 0));
}

/* The protection of the memfd that a folio belongs to. RCU, or a reference to it. */
static struct memfd_protect *folio_protect(struct folio *folio)
{
	struct address_space *mapping = READ_ONCE(folio->mapping);

	if (!mapping || ((unsigned long)mapping & MEMFD_MAPPING_FLAGS) ||
	    !shmem_mapping(mapping))
		return NULL;
	return READ_ONCE(SHMEM_I(mapping->host)->protect);
}

static void mark_pinned(struct memfd_protect *mp, struct folio *folio)
{
	/* The pin is there before the mark is looked at (P). */
	smp_mb();
	if (!folio_marked(folio))
		folio_mark(folio);
	/* And the mark before the bit of its block (N in mm/memfd_blocks.c). */
	smp_mb();
	memfd_blocks_note(mp, folio->index);
	/* All are visible before the page-table entry is looked at again. */
	smp_mb();
}

void __memfd_protect_pinned(struct folio *folio)
{
	struct memfd_protect *mp;

	if (!folio_test_swapbacked(folio) || folio_test_anon(folio))
		return;
	rcu_read_lock();
	mp = folio_protect(folio);
	if (mp && memfd_hook(MARK))
		mark_pinned(mp, folio);
	rcu_read_unlock();
}

/*
 * A pin on a small folio adds GUP_PIN_COUNTING_BIAS to the reference count.
 * folio_maybe_dma_pinned() would also take 1024 mappings for one. The two counts
 * are not read at once, so half of the bias is left for mappings that come and go
 * in between. If references count, then all but those of page cache and mappings do.
 */
static bool folio_has_pins(struct folio *folio, bool references)
{
	if (folio_test_large(folio) && atomic_read(&folio->_pincount) > 0)
		return true;
	if (references)
		return folio_ref_count(folio) - folio_mapcount(folio) !=
		       folio_nr_pages(folio);
	if (folio_test_large(folio))
		return false;
	if (folio_ref_count(folio) < GUP_PIN_COUNTING_BIAS)
		return false;
	return folio_ref_count(folio) - folio_mapcount(folio) >=
	       GUP_PIN_COUNTING_BIAS / 2;
}

/*
 * Looking for pins
 */

/**
 * struct pin_look - how to look for pins
 * @mp: Protection of the file.
 * @references: References count, see above.
 * @unmark: Take marks away from folios that have no pins.
 */
struct pin_look {
	struct memfd_protect *mp;
	bool references;
	bool unmark;
};

static bool references_count(struct memfd_protect *mp)
{
	return READ_ONCE(mp->got_pages) && memfd_hook(GOT_PAGES);
}

/*
 * Whether a writer may hold @folio, and where it is then. The lock keeps it in the
 * page cache: otherwise its flags may be those of another page by now.
 */
static bool folio_is_held(struct xa_state *xas, struct folio *folio,
			  const struct pin_look *look, struct memfd_span *span)
{
	bool held;

	if (!folio_marked(folio))
		return false;
	xas_lock_irq(xas);
	held = xas_reload(xas) == folio && folio_marked(folio);
	if (held && !folio_has_pins(folio, look->references)) {
		held = false;
		if (look->unmark) {
			folio_unmark(folio);
			/* See (P). The first reference may have come meanwhile. */
			smp_mb__after_atomic();
			held = folio_has_pins(folio, references_count(look->mp));
			if (held)
				folio_mark(folio);
		}
	}
	if (held) {
		pgoff_t last = folio->index + folio_nr_pages(folio) - 1;

		span->first = max(span->first, folio->index);
		span->last = min(span->last, last);
	}
	xas_unlock_irq(xas);
	return held;
}

/* Looks at each folio of a range. */
static bool find_in(struct memfd_span *span, const struct pin_look *look)
{
	XA_STATE(xas, &look->mp->inode->i_mapping->i_pages, span->first);
	unsigned int batch = 0;
	struct folio *folio;
	bool found = false;

	rcu_read_lock();
	xas_for_each(&xas, folio, span->last) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		found = folio_is_held(&xas, folio, look, span);
		if (found)
			break;
		if (++batch % XA_CHECK_SCHED == 0) {
			xas_pause(&xas);
			cond_resched_rcu();
		}
	}
	rcu_read_unlock();
	return found;
}

/* There were no pins in a part of the file: so it is not looked at the next time. */
static bool find_late(struct memfd_protect *mp, struct memfd_span *part)
{
	const struct pin_look look = { mp, references_count(mp), false };
	struct memfd_span rest = *part;

	if (!memfd_blocks_clear(mp, part) || !find_in(part, &look))
		return false;
	rest.first = part->first;
	memfd_blocks_restore(mp, &rest);
	return true;
}

static bool find_pin(struct memfd_protect *mp, struct memfd_span *span,
		     bool unmark)
{
	const struct pin_look look = { mp, references_count(mp), unmark };
	struct memfd_span part = *span;

	/* Page-table entries and modes are changed before counts are read. */
	smp_mb();
	if (!memfd_hook(PINS))
		return false;
	while (part.first <= span->last && memfd_blocks_next(mp, &part, unmark)) {
		if (find_in(&part, &look) ||
		    (unmark && find_late(mp, &part))) {
			*span = part;
			return true;
		}
		part.first = part.last + 1;
		part.last = span->last;
		cond_resched();
	}
	return false;
}

/**
 * memfd_pin_possible() - whether a writer may hold pages of a range
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: As memfd_pin_find().
 * Return: False if memfd_pin_find() would find none in any part of it.
 */
bool memfd_pin_possible(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	struct memfd_span part = { first, last };

	/* Page-table entries and modes are changed before bits are read. */
	smp_mb();
	return memfd_blocks_next(mp, &part, true) && memfd_hook(PINS);
}

/**
 * memfd_pin_find() - find pages that a writer may hold
 * @mp: Protection of the file.
 * @span: In: where to look. Out: the part of it that the first such folio has.
 *
 * Pins taken through a page table are seen if memfd_walk_protect() came before.
 *
 * Context: May sleep. inode_lock(): two who take marks away would not see what the
 * other is about to put back.
 * Return: True if there are any.
 */
bool memfd_pin_find(struct memfd_protect *mp, struct memfd_span *span)
{
	return find_pin(mp, span, true);
}

static bool page_held(struct memfd_protect *mp, pgoff_t index)
{
	struct memfd_span span = { index, index };

	return find_pin(mp, &span, false);
}

/* The first page of each folio that is held from *@next on; moves *@next behind. */
static unsigned int find_held(struct memfd_protect *mp, pgoff_t *next,
			      pgoff_t last, pgoff_t held[PIN_BATCH])
{
	unsigned int nr = 0;

	while (nr < PIN_BATCH && *next <= last) {
		struct memfd_span span = { *next, last };

		if (!find_pin(mp, &span, false)) {
			*next = last + 1;
			break;
		}
		held[nr++] = span.first;
		*next = span.last + 1;
	}
	return nr;
}

/* Strikes out who has been seen without pins. */
static unsigned int still_held(struct memfd_protect *mp,
			       pgoff_t held[PIN_BATCH], unsigned int nr)
{
	unsigned int i, left = 0;

	for (i = 0; i < nr; i++)
		if (page_held(mp, held[i]))
			held[left++] = held[i];
	return left;
}

/* A few looks a millisecond, so that short gaps between pins are seen. */
static int nap(void)
{
	usleep_range(100, 300);
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/**
 * memfd_pin_wait() - wait until each page was free of writers' pins once
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Nothing is protected meanwhile, so nobody is kept waiting. Pins that come and go
 * do no harm, however many: it fails for a page only that was pinned each time
 * it was looked at, for 150 ms.
 *
 * Context: Sleeps. No locks that anybody needs.
 * Return: 0, -EBUSY with &memfd_protect.busy set, or -EINTR.
 */
int memfd_pin_wait(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	pgoff_t held[PIN_BATCH];
	unsigned long stays;
	unsigned int nr;

	while ((nr = find_held(mp, &first, last, held))) {
		/* Folios on their way to the LRU lists have a reference more. */
		if (references_count(mp))
			lru_add_drain_all();
		stays = jiffies + msecs_to_jiffies(PIN_STAYS_MS);
		while ((nr = still_held(mp, held, nr))) {
			if (time_after(jiffies, stays)) {
				WRITE_ONCE(mp->busy, memfd_offset(held[0]));
				return -EBUSY;
			}
			if (nap())
				return -EINTR;
		}
	}
	return 0;
}

/**
 * memfd_pin_settle() - wait for pins that were taken before the walk
 * @mp: Protection of the file.
 * @first: First page offset of what is in flight.
 * @last: Last page offset.
 * @round: How often it has failed before.
 *
 * Nobody takes a pin for writing meanwhile. A pin that is there at the end of the
 * longest wait was there all the time.
 *
 * Context: Sleeps, 20 ms at most for the first eight rounds, since others wait, then 40,
 * 80, and 160. After memfd_walk_protect(), inode_lock().
 * Return: 0 if there are none any more, and there will be none. -EAGAIN if there
 * are. -EBUSY after the longest wait, with &memfd_protect.busy set. -EINTR.
 */
int memfd_pin_settle(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		     unsigned int round)
{
	unsigned int ms = PIN_SETTLE_MS <<
			  (round < PIN_SHORT_ROUNDS ? 0 :
			   min(round - PIN_SHORT_ROUNDS, 3));
	unsigned long end = jiffies + msecs_to_jiffies(ms);
	struct memfd_span span = { first, last };

	while (memfd_pin_find(mp, &span)) {
		if (time_after(jiffies, end)) {
			if (ms < PIN_STAYS_MS)
				return -EAGAIN;
			WRITE_ONCE(mp->busy, memfd_offset(span.first));
			return -EBUSY;
		}
		if (nap())
			return -EINTR;
		/* What was before the pinned page has been looked at. */
		span.last = last;
	}
	return 0;
}

/*
 * Those who hold pages
 */

static struct memfd_writer remote_writer(pgoff_t index)
{
	return (struct memfd_writer) {
		.first = index,
		.last = index,
		.type = MEMFD_EVENT_FAULT,
		.flags = MEMFD_EVENT_F_KERNEL,
	};
}

bool __memfd_protect_access_begin(struct vm_area_struct *vma,
				  unsigned long addr, struct page *page)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vma);
	struct folio *folio = page_folio(page);
	struct memfd_writer writer;
	enum memfd_mode mode;

	if (!memfd_hook(REMOTE)) {
		memfd_delay(REMOTE);
		return true;
	}
	if (try_grab_folio(folio, 1, FOLL_PIN))
		return false;
	/* memfd_protect() stores the mode before it looks for pins. */
	mark_pinned(mp, folio);
	mode = memfd_mode_at(mp, linear_page_index(vma, addr));
	if (mode == MEMFD_MODE_NONE) {
		memfd_delay(REMOTE);
		return true;
	}
	unpin_user_page(page);
	/*
	 * Until the walk has been here GUP would find it writable still. That of a scan may take
	 * long; who logs the write need not wait for it.
	 */
	memfd_flight_wait(mp);
	if (mode == MEMFD_MODE_ASYNC) {
		writer = remote_writer(linear_page_index(vma, addr));
		memfd_state_verdict(mp, &writer, true);
	}
	return false;
}

void __memfd_protect_access_end(struct page *page)
{
	if (memfd_hook(REMOTE))
		unpin_user_page(page);
}

/* The protection of the memfd that a page belongs to, with a reference. */
static struct memfd_protect *get_page_protect(struct page *page, pgoff_t *index)
{
	struct folio *folio = page_folio(page);
	struct memfd_protect *mp;

	rcu_read_lock();
	mp = folio_protect(folio);
	if (mp && !kref_get_unless_zero(&mp->ref))
		mp = NULL;
	*index = folio->index + folio_page_idx(folio, page);
	rcu_read_unlock();
	return mp;
}

/* Whether a page that was got for writing may still be written. */
static bool got_page(struct memfd_protect *mp, struct page *page, pgoff_t index)
{
	struct memfd_writer writer = remote_writer(index);

	WRITE_ONCE(mp->got_pages, true);
	/* memfd_protect() stores modes before it looks for references. */
	mark_pinned(mp, page_folio(page));
	/* Taken by a scan since it was got? Then it goes into the next one. */
	return memfd_mode_at(mp, index) == MEMFD_MODE_NONE ||
	       !memfd_state_verdict(mp, &writer, true);
}

int __memfd_protect_got_pages(struct page **pages, int nr)
{
	bool ours = false;
	int i, j;

	for (i = 0; i < nr; i++) {
		struct memfd_protect *mp;
		bool may_write;
		pgoff_t index;

		mp = get_page_protect(pages[i], &index);
		if (!mp)
			continue;
		ours = true;
		may_write = !memfd_hook(GOT_PAGES) ||
			    got_page(mp, pages[i], index);
		memfd_state_put(mp);
		if (!may_write)
			break;
	}
	for (j = i; j < nr; j++)
		put_page(pages[j]);
	if (ours)
		memfd_delay(REMOTE);
	return i ?: -EFAULT;
}

int __memfd_protect_pin_begin(struct file *file, loff_t start, loff_t end)
{
	struct memfd_protect *mp = memfd_protect_of(file->f_mapping->host);
	struct memfd_writer writer = {
		.first = start >> PAGE_SHIFT,
		.last = end >> PAGE_SHIFT,
		.type = MEMFD_EVENT_FAULT,
		.flags = MEMFD_EVENT_F_KERNEL,
	};
	int err;

	if (!mp || !memfd_hook(PIN_FOLIOS))
		return 0;
	/* inode_lock() cannot be taken: udmabuf has it, shared. */
	err = memfd_state_verdict(mp, &writer, true);
	if (err == -EAGAIN) {
		memfd_waiters_report(&mp->waiters, &writer);
		err = -EFAULT;
	}
	return err;
}

bool __memfd_protect_pin_end(struct file *file, struct folio **folios,
			     unsigned int nr, loff_t start, loff_t end)
{
	struct memfd_protect *mp = memfd_protect_of(file->f_mapping->host);
	pgoff_t first = start >> PAGE_SHIFT, last = end >> PAGE_SHIFT;
	bool protected;
	unsigned int i;

	if (!mp || !memfd_hook(PIN_FOLIOS))
		return true;
	/* The pins are there; memfd_protect() stores modes before it looks. */
	for (i = 0; i < nr; i++) {
		mark_pinned(mp, folios[i]);
		/* Where it looks, unless they have just been reclaimed. */
		if (READ_ONCE(folios[i]->mapping) != file->f_mapping)
			return false;
	}
	mutex_lock(&mp->lock);
	protected = memfd_ranges_find(&mp->modes, GENMASK(3, 1), &first, &last);
	mutex_unlock(&mp->lock);
	return !protected;
}
