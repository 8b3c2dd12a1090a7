// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: TLB flushes.
 *
 * Who changes an entry of a shared table flushes the host, the only address space
 * that it knows of. No CPU ever ran there. These functions take the place of that
 * flush: they flush the guests that map what was changed, each at its own addresses.
 *
 * Why that is enough (T). The entry was changed by somebody who found the host in
 * the reverse mapping of the file, and holds i_mmap_rwsem. So the tree of guests
 * stands still. A TLB entry made from the shared entry belongs to an address space
 * that had a link. It has one still, and then its guest is in the tree; or the
 * link was cleared, and that flushed before the guest left the tree, or will
 * flush yet, and meanwhile it is in the tree. Each guest is flushed no matter
 * whether it has a link, so nothing is to be said about links made meanwhile.
 *
 * In each address space the flush is counted before its CPUs are looked at, and a
 * CPU that starts to run it is seen there before it reads the count: see
 * inc_mm_tlb_gen() and switch_mm_irqs_off(). A CPU that runs it lazily reads the
 * count before it goes back to user mode.
 *
 * CPUs are interrupted if they run a guest, and no others. If it is one guest, it is
 * told the range. If there are more, their CPUs are interrupted at once, and flush
 * the whole address space that they run: each would need other addresses. That is not
 * for those that run one lazily; if a table goes they may have it in paging-structure
 * caches, so each guest is flushed by itself then. Processors
 * with INVLPGB need no interrupts, and may keep entries of an address space that they
 * do not run: arch_tlbbatch_flush() tells all of them to forget all.
 */

#include <linux/local_lock.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <trace/events/ptshare.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

/*
 * Too large for the stack on large machines. Not with preemption off: an IOMMU that is
 * told takes locks, which sleep with PREEMPT_RT.
 */
struct flush_cpu {
	local_lock_t lock;
	struct arch_tlbflush_unmap_batch batch;
};

static DEFINE_PER_CPU(struct flush_cpu, flush_cpu) = {
	.lock = INIT_LOCAL_LOCK(lock),
};

/**
 * ptshare_host_range() - the part of the file that addresses of the host map
 * @start: First address.
 * @end: End.
 * @first: Is set to the first page offset.
 * @last: Is set to the last one. All that the host maps, if the addresses are not
 *	  those of one class.
 */
void ptshare_host_range(unsigned long start, unsigned long end, pgoff_t *first,
			pgoff_t *last)
{
	enum ptshare_class class;

	for (class = 0; class < PTSHARE_CLASSES; class++) {
		unsigned long base = PTSHARE_BASE(class);

		if (start < base || start >= base + PTSHARE_SPAN ||
		    end > base + PTSHARE_SPAN)
			continue;
		*first = (start - base) >> PAGE_SHIFT;
		*last = (end - 1 - base) >> PAGE_SHIFT;
		return;
	}
	*first = 0;
	*last = (PTSHARE_SPAN >> PAGE_SHIFT) - 1;
}

/**
 * ptshare_guest_range() - where a guest maps what it shares of a part of the file
 * @guest: The guest.
 * @first: First page offset. The guest shares something of the range.
 * @last: Last page offset.
 * @start: Is set to the first address.
 * @end: Is set to the end.
 */
void ptshare_guest_range(const struct ptshare_vma *guest, pgoff_t first,
			 pgoff_t last, unsigned long *start,
			 unsigned long *end)
{
	pgoff_t begin = guest->blocks.start;

	first = max(first, begin);
	last = min(last, guest->blocks.last);
	*start = guest->start + ((first - begin) << PAGE_SHIFT);
	*end = guest->start + ((last + 1 - begin) << PAGE_SHIFT);
}

/*
 * Whether an address space, of which this is the first guest, may map something of
 * a range. If it has many, nobody wants to look at each of them.
 */
static bool may_map(const struct ptshare_vma *guest, pgoff_t first, pgoff_t last)
{
	return (guest->blocks.start <= last && guest->blocks.last >= first) ||
	       !list_empty(&guest->same_mm);
}

static bool runs(struct mm_struct *mm)
{
	return unlikely(memfd_mm_in_tlbs(mm));
}

/* Not often, and out of the way of those that do not run. */
static noinline void add_cpus(struct arch_tlbflush_unmap_batch *batch,
			      struct mm_struct *mm)
{
	cpumask_or(&batch->cpumask, &batch->cpumask, mm_cpumask(mm));
	memfd_tlbbatch_unmapped(batch);
}

/* The generation comes first, then the CPUs: the other way round than they do. */
static void add_mm(struct arch_tlbflush_unmap_batch *batch, struct mm_struct *mm)
{
	inc_mm_tlb_gen(mm);
	mmu_notifier_arch_invalidate_secondary_tlbs(mm, 0, -1UL);
	if (runs(mm))
		add_cpus(batch, mm);
}

/* For who watches: how many address spaces are concerned. */
static void trace_flush(struct ptshare *ps, pgoff_t first, pgoff_t last,
			bool later)
{
	struct ptshare_vma *guest;
	unsigned int mms = 0;

	list_for_each_entry(guest, &ps->mms, mms)
		mms += may_map(guest, first, last);
	trace_ptshare_flush(ps->mapping->host, (u64)first << PAGE_SHIFT,
			    (u64)(last - first + 1) << PAGE_SHIFT, mms, later);
}

static void flush_one(const struct ptshare_vma *guest, pgoff_t first,
		      pgoff_t last, bool freed_tables)
{
	unsigned long start = 0, end = TLB_FLUSH_ALL;

	if (list_empty(&guest->same_mm))
		ptshare_guest_range(guest, first, last, &start, &end);
	flush_tlb_mm_range(guest->mm, start, end, PAGE_SHIFT, freed_tables);
}

/**
 * ptshare_flush_tlb() - flush the guests of a host
 * @host: The host.
 * @start: First address in the host.
 * @end: End, or TLB_FLUSH_ALL.
 * @freed_tables: As for flush_tlb_mm_range().
 *
 * Context: i_mmap_rwsem of the file. May be called with page table locks held.
 */
void ptshare_flush_tlb(struct mm_struct *host, unsigned long start,
		       unsigned long end, bool freed_tables)
{
	struct ptshare *ps = READ_ONCE(host->ptshare);
	struct arch_tlbflush_unmap_batch *batch;
	struct ptshare_vma *guest, *one = NULL;
	pgoff_t first, last;

	/* It is being torn down, without guests. */
	if (!ps || !ptshare_rule(FLUSH))
		return;
	i_mmap_assert_locked(ps->mapping);
	ptshare_host_range(start, end, &first, &last);

	local_lock(&flush_cpu.lock);
	batch = this_cpu_ptr(&flush_cpu.batch);
	list_for_each_entry(guest, &ps->mms, mms) {
		if (!may_map(guest, first, last))
			continue;
		/* Those that run it lazily, too, are told of tables, one by one */
		if (freed_tables) {
			flush_one(guest, first, last, true);
			continue;
		}
		if (runs(guest->mm) && !one) {
			one = guest;
			continue;
		}
		add_mm(batch, guest->mm);
	}
	if (one)
		flush_one(one, first, last, false);
	if (memfd_tlbbatch_pending(batch))
		arch_tlbbatch_flush(batch);
	local_unlock(&flush_cpu.lock);
	if (trace_ptshare_flush_enabled())
		trace_flush(ps, first, last, false);
}

/**
 * ptshare_tlbbatch_add() - flush the guests of a host later
 * @batch: What is to be flushed.
 * @host: The host.
 * @start: First address in the host.
 * @end: End.
 *
 * Context: i_mmap_rwsem of the file, page table lock.
 */
void ptshare_tlbbatch_add(struct arch_tlbflush_unmap_batch *batch,
			  struct mm_struct *host, unsigned long start,
			  unsigned long end)
{
	struct ptshare *ps = READ_ONCE(host->ptshare);
	struct ptshare_vma *guest;
	pgoff_t first, last;

	if (!ps || !ptshare_rule(BATCH))
		return;
	i_mmap_assert_locked(ps->mapping);
	ptshare_host_range(start, end, &first, &last);
	list_for_each_entry(guest, &ps->mms, mms)
		if (may_map(guest, first, last))
			add_mm(batch, guest->mm);
	if (trace_ptshare_flush_enabled())
		trace_flush(ps, first, last, true);
}
