// SPDX-License-Identifier: GPL-2.0-only
/*
 * Takes write access to pages of a file away from all page tables.
 *
 * The caller has already stored, where everyone who makes a page-table entry
 * writable looks (mm/memfd_fault.c), that the pages are protected. The walk takes
 * away what was writable before that. When it returns, no CPU can write the
 * pages through a mapping any more, stale TLB entries included.
 *
 * Locking:
 *
 *   i_mmap_rwsem (read)	keeps VMAs in the file's reverse mapping, and with
 *				them their page tables: free_pgtables() unlinks
 *				a VMA from there first
 *     page table lock		each table, see below
 *
 * A racing fault either takes the page table lock of its entry before the walk
 * does, and is undone by it; or later, and then sees the stored protection. For a
 * table that the walk does not see, because it is being installed, the two sides
 * are a store and a load each: protection and page table here, page table and
 * protection there. Both have a full barrier in between, here in
 * memfd_walk_protect(), there in front of the look at the protection.
 *
 * mremap() moves entries between tables. It either holds i_mmap_rwsem for that,
 * or the new VMA comes after the old one in the interval tree, so that the
 * entry is found at the one place or the other (see move_ptes()).
 *
 * TLB: others may have taken write access away, under the same page table lock,
 * and not have flushed yet. Reclaim's batches are flushed for each table
 * (flush_tlb_batched_pending()), everyone else's when tlb_finish_mmu() finds that
 * there is a second party. Whoever frees a table (PT_RECLAIM, khugepaged) empties its PMD
 * entry before he flushes: then it is the lock of the PMD table that orders the two.
 *
 * Huge entries of which a part is to be protected become page tables first: H in
 * mm/memfd_huge.c.
 *
 * A page table that processes share may lose write access as a whole, and gets it back
 * when memfd_protect_entries() has taken it from what is protected (invariant U in
 * mm/ptshare_protect.c).
 */

#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/memfd_compat.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <asm/tlb.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_protect.h"
#include "memfd_split.h"

/*
 * Secondary MMUs lose what lies between two spans that are so many pages apart, or
 * fewer, and fault it in again: that costs less than to be told twice.
 */
#define NOTIFY_GAP	16

/**
 * struct memfd_walk - the walk in one VMA
 * @vma: The VMA.
 * @span: The span that the walk is in.
 * @behind: Behind the last span of those that are walked at once.
 * @start: The address of @span.
 * @stop: The end address of @span.
 * @tlb: What lost write access, and is to be flushed.
 */
struct memfd_walk {
	struct vm_area_struct *vma;
	const struct memfd_span *span;
	const struct memfd_span *behind;
	unsigned long start;
	unsigned long stop;
	struct mmu_gather tlb;
};

/* The addresses at which @vma maps @span, false if it maps nothing of it. */
static bool span_in_vma(struct vm_area_struct *vma,
			const struct memfd_span *span, unsigned long *start,
			unsigned long *end)
{
	pgoff_t vma_last = vma->vm_pgoff + vma_pages(vma) - 1;
	pgoff_t first = max(span->first, vma->vm_pgoff);
	pgoff_t last = min(span->last, vma_last);

	if (first > last)
		return false;
	*start = vma->vm_start + ((first - vma->vm_pgoff) << PAGE_SHIFT);
	*end = *start + ((last - first + 1) << PAGE_SHIFT);
	return true;
}

static unsigned long walk_next_span(struct memfd_walk *walk, unsigned long addr,
				    unsigned long end)
{
	while (addr >= walk->stop) {
		if (++walk->span == walk->behind) {
			walk->start = ULONG_MAX;
			walk->stop = ULONG_MAX;
		} else {
			span_in_vma(walk->vma, walk->span, &walk->start,
				    &walk->stop);
		}
	}
	return clamp(walk->start, addr, end);
}

/* The next address from @addr on, up to @end, that is in a span, or @end. */
static inline unsigned long walk_next(struct memfd_walk *walk,
				      unsigned long addr, unsigned long end)
{
	if (likely(addr >= walk->start && addr < walk->stop))
		return addr;
	return walk_next_span(walk, addr, end);
}

/* What was writable is from *@first to before *@behind then. */
static void walk_entries(struct memfd_walk *walk, pte_t *pte,
			 unsigned long addr, unsigned long end,
			 unsigned long *first, unsigned long *behind)
{
	for (; addr != end; pte++, addr += PAGE_SIZE) {
		pte_t old = ptep_get(pte);

		if (!pte_present(old) || !pte_write(old))
			continue;
		old = ptep_modify_prot_start(walk->vma, addr, pte);
		ptep_modify_prot_commit(walk->vma, addr, pte, old,
					pte_wrprotect(old));
		*first = min(*first, addr);
		*behind = addr + PAGE_SIZE;
	}
}

/* Returns false if there is no table any more. */
static bool walk_table(struct memfd_walk *walk, pmd_t *pmd, unsigned long addr,
		       unsigned long end)
{
	struct mm_struct *mm = walk->vma->vm_mm;
	unsigned long first = end, behind = end, next, base = addr;
	pte_t *start;
	spinlock_t *ptl; /* of this table */

	start = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!start)
		return false;
	if (memfd_hook(BATCHED_FLUSH))
		flush_tlb_batched_pending(mm);
	memfd_lazy_mmu_enable();
	for (; addr != end; addr = walk_next(walk, next, end)) {
		next = min(walk->stop, end);
		walk_entries(walk, start + ((addr - base) >> PAGE_SHIFT), addr,
			     next, &first, &behind);
	}
	memfd_lazy_mmu_disable();
	if (first < end && memfd_hook(FLUSH))
		tlb_flush_pte_range(&walk->tlb, first, behind - first);
	pte_unmap_unlock(start, ptl);
	return true;
}

static bool has_table(pmd_t pmd)
{
	return pmd_present(pmd) && !pmd_trans_huge(pmd);
}

/* Returns false if it is no huge entry, or a part of one. */
static bool walk_huge(struct memfd_walk *walk, pmd_t *pmd, unsigned long addr,
		      unsigned long end)
{
	spinlock_t *ptl; /* of the PMD table */
	bool huge;

	if (end - addr != PMD_SIZE || end > walk->stop ||
	    !pmd_trans_huge(pmdp_get_lockless(pmd)))
		return false;
	ptl = pmd_lock(walk->vma->vm_mm, pmd);
	huge = pmd_trans_huge(*pmd);
	if (huge && memfd_huge_protect(walk->vma, pmd, addr))
		tlb_flush_pmd_range(&walk->tlb, addr, PMD_SIZE);
	spin_unlock(ptl);
	return huge;
}

static void walk_pmd(struct memfd_walk *walk, pmd_t *pmd, unsigned long addr,
		     unsigned long end)
{
	/* What it shares is walked where it is found, in the host. */
	if (ptshare_shares(walk->vma, addr) || walk_huge(walk, pmd, addr, end))
		return;
	do {
		if (!has_table(pmdp_get_lockless(pmd)) &&
		    (!memfd_hook(HUGE) || !memfd_huge_split(walk->vma, pmd, addr)))
			return;
	} while (!walk_table(walk, pmd, addr, end));
}

static int walk_pmds(struct memfd_walk *walk, pud_t *pud, unsigned long addr,
		     unsigned long end)
{
	pmd_t *table = pmd_offset(pud, addr) - pmd_index(addr);
	unsigned long next;

	for (; addr != end; addr = walk_next(walk, next, end)) {
		pmd_t *pmd = table + pmd_index(addr);

		next = ptshare_protect_tables(walk->vma, pmd, addr,
					      min(walk->stop, end), &walk->tlb);
		if (next == addr) {
			next = pmd_addr_end(addr, end);
			walk_pmd(walk, pmd, addr, next);
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

/* From an empty entry to the next one that is not: the host's VMAs are long. */
static unsigned long behind_empty(pud_t *pud, unsigned long next,
				  unsigned long end)
{
	while (next != end && pud_none(READ_ONCE(*++pud)))
		next = pud_addr_end(next, end);
	return next;
}

static int walk_puds(struct memfd_walk *walk, p4d_t *p4d, unsigned long addr,
		     unsigned long end)
{
	pud_t *table = pud_offset(p4d, addr) - pud_index(addr);
	unsigned long next;
	int err = 0;

	for (; !err && addr != end; addr = walk_next(walk, next, end)) {
		pud_t *pud = table + pud_index(addr);

		next = pud_addr_end(addr, end);
		if (!pud_none_or_clear_bad(pud))
			err = walk_pmds(walk, pud, addr, next);
		else
			next = behind_empty(pud, next, end);
	}
	return err;
}

static int walk_p4ds(struct memfd_walk *walk, pgd_t *pgd, unsigned long addr,
		     unsigned long end)
{
	unsigned long next;
	int err = 0;

	for (; !err && addr != end; addr = walk_next(walk, next, end)) {
		p4d_t *p4d = p4d_offset(pgd, addr);

		next = p4d_addr_end(addr, end);
		if (!p4d_none_or_clear_bad(p4d))
			err = walk_puds(walk, p4d, addr, next);
	}
	return err;
}

static int walk_range(struct memfd_walk *walk, unsigned long addr,
		      unsigned long end)
{
	unsigned long next;
	int err = 0;

	for (; !err && addr != end; addr = walk_next(walk, next, end)) {
		pgd_t *pgd = pgd_offset(walk->vma->vm_mm, addr);

		next = pgd_addr_end(addr, end);
		if (!pgd_none_or_clear_bad(pgd))
			err = walk_p4ds(walk, pgd, addr, next);
	}
	return err;
}

/*
 * Walks spans of which each has pages in the VMA. They are close to each other, so
 * secondary MMUs are told of all of them at once.
 */
static int walk_spans(struct memfd_walk *walk, const struct memfd_span *spans,
		      unsigned int nr)
{
	struct vm_area_struct *vma = walk->vma;
	struct mmu_notifier_range range;
	unsigned long from, end;
	int err;

	span_in_vma(vma, &spans[nr - 1], &from, &end);
	span_in_vma(vma, &spans[0], &walk->start, &walk->stop);
	walk->span = spans;
	walk->behind = spans + nr;
	mmu_notifier_range_init(&range, MMU_NOTIFY_PROTECTION_PAGE, 0,
				vma->vm_mm, walk->start, end);
	mmu_notifier_invalidate_range_start(&range);
	err = walk_range(walk, walk->start, end);
	mmu_notifier_invalidate_range_end(&range);
	return err;
}

/* How many of the first spans are close to each other. */
static unsigned int spans_together(const struct memfd_span *spans,
				   unsigned int nr)
{
	unsigned int i = 1;

	while (i < nr && spans[i].first - spans[i - 1].last <= NOTIFY_GAP)
		i++;
	return i;
}

/* The first span that does not end before a page. */
static unsigned int find_span(const struct memfd_span *spans, unsigned int nr,
			      pgoff_t index)
{
	unsigned int low = 0, high = nr;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (spans[middle].last < index)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Ends what tlb_gather_mmu() began, for others too who have not flushed yet. */
static void flush(struct mmu_gather *tlb)
{
	if (memfd_hook(NESTED_FLUSH)) {
		tlb_finish_mmu(tlb);
		return;
	}
	tlb_flush_mmu(tlb);
	dec_tlb_flush_pending(tlb->mm);
}

/*
 * TLBs are flushed once, behind all spans. What a secondary MMU finds when it faults
 * in before that is read-only. No table goes, so CPUs that run the address space
 * lazily need not be interrupted.
 */
static int walk_vma(struct vm_area_struct *vma, const struct memfd_span *spans,
		    unsigned int nr)
{
	struct memfd_walk walk = { .vma = vma };
	unsigned long from, to;
	unsigned int i, some;
	int err = 0;

	i = find_span(spans, nr, vma->vm_pgoff);
	spans += i;
	nr -= i;
	i = find_span(spans, nr, vma->vm_pgoff + vma_pages(vma) - 1);
	nr = min(nr, i + 1);
	if (nr && !span_in_vma(vma, &spans[nr - 1], &from, &to))
		nr--;
	if (!nr)
		return 0;

	tlb_gather_mmu(&walk.tlb, vma->vm_mm);
	for (i = 0; !err && i < nr; i += some) {
		some = spans_together(&spans[i], nr - i);
		err = walk_spans(&walk, &spans[i], some);
	}
	flush(&walk.tlb);
	return err;
}

/**
 * memfd_walk_protect() - take write access to ranges away from all mappings
 * @mapping: The file's.
 * @spans: The ranges, ascending and disjoint.
 * @nr: How many.
 *
 * Each VMA is flushed once, whatever the number of ranges, and is asked only about
 * those that it maps.
 *
 * Context: May sleep. inode_lock(), so that one walk goes on at a time.
 * Return: 0, or -EINTR if the caller was killed, with part of the work done.
 */
int memfd_walk_protect(struct address_space *mapping,
		       const struct memfd_span *spans, unsigned int nr)
{
	struct vm_area_struct *vma;
	int err = 0;

	/* Protection is stored before page tables are read; see above. */
	smp_mb();

	i_mmap_lock_read(mapping);
	memfd_rmap_foreach(vma, mapping, spans[0].first, spans[nr - 1].last) {
		if (!memfd_vma_may_write(vma))
			continue;
		err = walk_vma(vma, spans, nr);
		if (err)
			break;
		cond_resched();
	}
	i_mmap_unlock_read(mapping);
	return err;
}
