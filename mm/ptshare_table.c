// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: faults and links.
 *
 * A fault of a guest first looks whether the host's table has what it needs. Then
 * it links and is done. Otherwise the fault is carried out once more in the
 * VMA of the host that its class has, as if that was where it happened, by
 * the same code that serves ordinary VMAs.
 *
 * What a fault may wait for, it waits for in its own name before that, with its
 * own VMA, address and lock: for memfd_protect(), for a hole punch. Neither the host's VMA nor
 * its mmap lock is locked, hence nothing may be dropped there to wait: the host's
 * part of the fault knows no retry. If the answer of memfd_protect() has changed
 * by then, the host's part does nothing, and the fault happens again.
 *
 * The invariants by their letters are those of mm/ptshare.c and mm/ptshare_host.c.
 */

#include <linux/memcontrol.h>
#include <linux/memfd_protect.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <asm/pgalloc.h>
#include <asm/tlb.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

/* How many tables one fault links, as many as there are in this range. */
#define LINK_AROUND		(64 * PMD_SIZE)

/* What the host's part of a fault is told. */
#define HOST_FAULT_FLAGS	(FAULT_FLAG_WRITE | FAULT_FLAG_USER | \
				 FAULT_FLAG_REMOTE)

/*
 * Links
 */

/* Whether two PMD entries point to the same page table. */
static bool same_table(pmd_t a, pmd_t b)
{
	return !pmd_none(a) && !pmd_none(b) && pmd_pgtable(a) == pmd_pgtable(b);
}

/* Whether a PMD entry of a guest points to a table of the host, of any class. */
static bool is_link(struct ptshare *ps, unsigned long offset, pmd_t entry)
{
	enum ptshare_class class;

	for (class = 0; class < PTSHARE_CLASSES; class++) {
		pmd_t *pmd = ptshare_find_pmd(ps->mm,
					      PTSHARE_BASE(class) + offset);

		if (pmd && same_table(pmdp_get_lockless(pmd), entry))
			return true;
	}
	return false;
}

static void free_table_rcu(struct rcu_head *head)
{
	struct ptdesc *table = container_of(head, struct ptdesc, pt_rcu_head);

	pte_free(&init_mm, ptdesc_page(table));
}

/*
 * Takes away the own table of a block that has become whole, under the PMD lock. It
 * has no entries (see ptshare_merge()), and nobody makes any. It may be looked at, by
 * those who only read: under RCU, or with interrupts off.
 */
static void drop_table(struct mm_struct *mm, pmd_t *pmd, unsigned long addr)
{
	pgtable_t table = pmd_pgtable(*pmd);

	pmd_clear(pmd);
	/* No TLB entry was made from it: as for pte_free_tlb(). */
	flush_tlb_mm_range(mm, addr, addr + PAGE_SIZE, PAGE_SHIFT, true);
	mm_dec_nr_ptes(mm);
	call_rcu(&page_ptdesc(table)->pt_rcu_head, free_table_rcu);
}

/* Points one PMD entry of a guest to the host's table, if it has one. */
static bool link_table(struct mm_struct *mm, unsigned long addr, pmd_t *pmd,
		       pmd_t *host_pmd)
{
	pmd_t table = pmdp_get_lockless(host_pmd);
	bool linked = false;
	spinlock_t *ptl; /* of the guest's PMD table */

	if (pmd_none(table) || same_table(pmdp_get_lockless(pmd), table))
		return false;
	ptl = pmd_lock(mm, pmd);
	if (!same_table(*pmd, table) && !WARN_ON_ONCE(pmd_leaf(*pmd))) {
		if (!pmd_none(*pmd))
			drop_table(mm, pmd, addr);
		atomic_inc(ptshare_links_of(pmd_pgtable(table)));
		pmd_populate(mm, pmd, pmd_pgtable(table));
		linked = true;
	}
	spin_unlock(ptl);
	return linked;
}

/* Whether the table behind or before the one at @addr is linked, or there is none. */
static bool neighbour_linked(struct ptshare_vma *pv, unsigned long addr,
			     pmd_t *pmd)
{
	unsigned long begin = ALIGN_DOWN(addr, LINK_AROUND);

	if (addr + PMD_SIZE < min(pv->end, begin + LINK_AROUND))
		return !pmd_none(pmdp_get_lockless(pmd + 1));
	return addr == max(pv->start, begin) ||
	       !pmd_none(pmdp_get_lockless(pmd - 1));
}

/*
 * Links the table at @address, whose PMD entry is @pmd, and its neighbours, unless
 * they are linked. A table that is found stays: the guest is locked, and in the
 * tree (F).
 */
static void link_around(struct vm_area_struct *vma, unsigned long address,
			pmd_t *pmd, struct vm_area_struct *host_vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	unsigned long addr = ALIGN_DOWN(address, PMD_SIZE), end = addr + PMD_SIZE;
	unsigned long nr = 0, pages = 0;

	if (!neighbour_linked(pv, addr, pmd)) {
		unsigned long first = max(ALIGN_DOWN(addr, LINK_AROUND),
					  pv->start);

		end = min(ALIGN_DOWN(addr, LINK_AROUND) + LINK_AROUND, pv->end);
		pmd -= (addr - first) >> PMD_SHIFT;
		addr = first;
	}
	for (; addr < end; addr += PMD_SIZE, pmd++) {
		pmd_t *host_pmd = ptshare_find_pmd(host_vma->vm_mm,
						   host_vma->vm_start +
						   ptshare_offset(vma, addr));

		if (!host_pmd || !link_table(vma->vm_mm, addr, pmd, host_pmd))
			continue;
		pages += page_ptdesc(pmd_pgtable(*host_pmd))->pt_share_pages;
		nr++;
	}
	ptshare_count_links(vma->vm_mm, ptshare_of(vma), nr, pages);
}

/**
 * ptshare_unlink() - clear the links of a guest in a range
 * @vma: The guest.
 * @start: First address. All links that reach into the range are cleared.
 * @end: End of the range. What it maps by tables of its own stays.
 *
 * No CPU uses the tables through this guest when it returns. It is one flush,
 * for all tables, and it says that tables are freed: paging-structure caches go
 * too, and CPUs that run the address space lazily are interrupted as well. The
 * flush comes now and not with others at the end of an unmap, because the VMA
 * leaves the tree of guests before that (L).
 *
 * Context: May sleep. mmap lock or VMA lock of @vma, or i_mmap_rwsem. MMU notifiers
 * are told by the caller.
 */
void ptshare_unlink(struct vm_area_struct *vma, unsigned long start,
		    unsigned long end)
{
	struct ptshare *ps = ptshare_of(vma);
	struct ptshare_vma *pv = ptshare_vma(vma);
	struct mm_struct *mm = vma->vm_mm;
	unsigned long first = ULONG_MAX, last = 0, nr = 0;
	unsigned long addr = max(ALIGN_DOWN(start, PMD_SIZE), pv->start);
	pmd_t *pmd;

	/* There is nothing to link to yet. */
	if (!READ_ONCE(ps->mm))
		return;
	end = min(ALIGN(end, PMD_SIZE), pv->end);
	for (; (pmd = ptshare_next_pmd(mm, &addr, end)); addr += PMD_SIZE) {
		spinlock_t *ptl = pmd_lock(mm, pmd);
		pmd_t table = *pmd;

		if (is_link(ps, ptshare_offset(vma, addr), table)) {
			pmd_clear(pmd);
			atomic_dec(ptshare_links_of(pmd_pgtable(table)));
			nr++;
			first = min(first, addr);
			last = addr + PMD_SIZE;
		}
		spin_unlock(ptl);
		cond_resched();
	}
	if (!nr)
		return;
	if (ptshare_rule(UNLINK_FLUSH))
		flush_tlb_mm_range(mm, first, last, PAGE_SHIFT, true);
	ptshare_count_unlinks(mm, ps, nr);
}

/* Takes away the links of a guest that has got flags of another class. */
static void change_class(struct vm_area_struct *vma, enum ptshare_class old,
			 unsigned long start, unsigned long end)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	ptshare_unlink_notify(vma, start, end);
	start = max(ALIGN_DOWN(start, PMD_SIZE), pv->start);
	end = min(ALIGN(end, PMD_SIZE), pv->end);
	if (start < end)
		ptshare_class_left(vma, old, start, end);
}

bool __ptshare_change_protection(struct vm_area_struct *vma,
				 unsigned long start, unsigned long end,
				 bool numa)
{
	if (numa)
		return ptshare_rule(NUMA);
	change_class(vma, ptshare_class_of(vma->vm_flags ^ VM_WRITE), start, end);
	return false;
}

void __ptshare_change_lock(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end)
{
	change_class(vma, ptshare_class_of(vma->vm_flags ^ VM_LOCKED), start, end);
}

bool __ptshare_no_retract(void)
{
	return ptshare_rule(RETRACT);
}

bool __ptshare_no_collapse(void)
{
	return ptshare_rule(COLLAPSE);
}

/*
 * Faults
 */

/* Whether an access needs no more than a link. */
static bool host_allows(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
			unsigned int flags)
{
	pte_t *pte = pte_offset_map(pmd, addr);
	pte_t entry;

	if (!pte)
		return false;
	entry = ptep_get_lockless(pte);
	pte_unmap(pte);
	return pte_present(entry) &&
	       (!(flags & FAULT_FLAG_WRITE) || pte_write(entry));
}

/* Whether some table for writers has a page of the file. */
static bool writers_have(struct ptshare *ps, unsigned long offset)
{
	enum ptshare_class class;

	for (class = PTSHARE_RW; class < PTSHARE_CLASSES; class += PTSHARE_LOCKED) {
		unsigned long addr = PTSHARE_BASE(class) + offset;
		pmd_t *pmd = ptshare_find_pmd(ps->mm, addr);

		if (pmd && host_allows(ps->mm, pmd, addr, 0))
			return true;
	}
	return false;
}

/*
 * Who reads what others have written need not fault in page by page what there is
 * already. If a table for writers has the page, all pages of the table for readers
 * that are in the page cache are mapped at once, without the write bit (R): what
 * memfd_protect() says does not matter.
 */
static void map_what_writers_have(struct ptshare *ps, struct vm_area_struct *vma,
				  pmd_t *pmd, unsigned long addr)
{
	pgoff_t pgoff = linear_page_index(vma, addr);
	pgoff_t first = ALIGN_DOWN(pgoff, PTRS_PER_PTE);
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr & PAGE_MASK,
		.real_address = addr,
		.pgoff = pgoff,
		.pmd = pmd,
	};

	if (!writers_have(ps, addr - vma->vm_start))
		return;
	rcu_read_lock();
	vma->vm_ops->map_pages(&vmf, first, first + PTRS_PER_PTE - 1);
	rcu_read_unlock();
}

/*
 * Waits in the guest's name for what a fault has to wait for, and returns RETRY
 * then: for the end of a hole punch, and for memfd_protect().
 */
static vm_fault_t guest_ask(struct vm_area_struct *vma, unsigned long address,
			    unsigned int flags)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = address & PAGE_MASK,
		.real_address = address,
		.flags = flags,
		.pgoff = linear_page_index(vma, address),
	};
	vm_fault_t ret = ptshare_falloc_wait(&vmf);

	if (ret || !(flags & FAULT_FLAG_WRITE) || !ptshare_rule(ASK))
		return ret;
	return memfd_protect_fault(&vmf);
}

/* The host's part of a fault. */
static vm_fault_t host_fault(struct vm_area_struct *host_vma,
			     unsigned long host_addr, unsigned int flags,
			     ptshare_fault_fn *fault)
{
	vm_fault_t ret = fault(host_vma, host_addr, flags & HOST_FAULT_FLAGS);

	VM_WARN_ON_ONCE(ret & (VM_FAULT_RETRY | VM_FAULT_COMPLETED));
	return ret;
}

static vm_fault_t guest_fault(struct vm_area_struct *vma, unsigned long address,
			      unsigned int flags, ptshare_fault_fn *fault)
{
	struct ptshare *ps = ptshare_of(vma);
	struct vm_area_struct *host_vma;
	unsigned long host_addr;
	pmd_t *pmd, *host_pmd;
	unsigned int before;
	vm_fault_t ret = 0;
	bool linked, allowed;

	if (ptshare_make_host(ps, vma))
		return VM_FAULT_OOM;
	host_vma = ps->vma[ptshare_link_class(vma)];
	host_addr = host_vma->vm_start + ptshare_offset(vma, address);
	/* Beyond would be the tables of another class. */
	if (WARN_ON_ONCE(host_addr >= host_vma->vm_end))
		return VM_FAULT_SIGBUS;

	pmd = ptshare_alloc_pmd(vma->vm_mm, address);
	host_pmd = ptshare_host_table(ps, host_addr);
	if (!pmd || !host_pmd)
		return VM_FAULT_OOM;

	linked = same_table(pmdp_get_lockless(pmd),
			    pmdp_get_lockless(host_pmd));
	allowed = host_allows(ps->mm, host_pmd, host_addr, flags);
	if (!allowed && !(host_vma->vm_flags & VM_WRITE)) {
		before = ptshare_group_pages(host_pmd, host_addr);
		map_what_writers_have(ps, host_vma, host_pmd, host_addr);
		ptshare_count_fault(vma->vm_mm, host_pmd, host_addr, before,
				    linked);
		allowed = host_allows(ps->mm, host_pmd, host_addr, flags);
	}
	if (!allowed) {
		ret = guest_ask(vma, address, flags);
		if (ret)
			return ret;
		ptshare_delay(ASK);
		before = ptshare_group_pages(host_pmd, host_addr);
		ret = host_fault(host_vma, host_addr, flags, fault);
		if (ret & VM_FAULT_ERROR)
			return ret;
		ptshare_count_fault(vma->vm_mm, host_pmd, host_addr, before,
				    linked);
		ptshare_delay(LINK);
	}
	if (!linked)
		link_around(vma, address, pmd, host_vma);
	return ret;
}

/**
 * ptshare_fault() - a page fault in a guest
 * @vma: The guest.
 * @address: Where it is.
 * @flags: FAULT_FLAG_*.
 * @fault: __handle_mm_fault().
 *
 * Whoever causes the fault, pages and tables are charged to the guest.
 *
 * Context: May sleep. mmap lock or VMA lock of @vma, released if the result has
 * VM_FAULT_RETRY.
 * Return: VM_FAULT_*.
 */
vm_fault_t ptshare_fault(struct vm_area_struct *vma, unsigned long address,
			 unsigned int flags, ptshare_fault_fn *fault)
{
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(vma->vm_mm);
	struct mem_cgroup *old = set_active_memcg(memcg);
	vm_fault_t ret = guest_fault(vma, address, flags, fault);

	set_active_memcg(old);
	mem_cgroup_put(memcg);
	return ret;
}

/*
 * Tables
 */

static bool table_empty(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
			unsigned long end)
{
	spinlock_t *ptl; /* of the table */
	pte_t *pte, *start = pte_offset_map_lock(mm, pmd, addr, &ptl);

	/* What is no table is a huge entry, unless it has just gone. */
	if (!start)
		return pmd_none(pmdp_get_lockless(pmd));
	/* Reclaim may have cleared entries, and not flushed yet. */
	flush_tlb_batched_pending(mm);
	for (pte = start; addr < end && pte_none(ptep_get(pte)); pte++)
		addr += PAGE_SIZE;
	pte_unmap_unlock(start, ptl);
	return addr == end;
}

static bool tables_empty(struct mm_struct *mm, unsigned long start,
			 unsigned long end)
{
	unsigned long addr = start, next;
	pmd_t *pmd;

	for (; (pmd = ptshare_next_pmd(mm, &addr, end)); addr = next) {
		next = pmd_addr_end(addr, end);
		if (!table_empty(mm, pmd, addr, next))
			return false;
		cond_resched();
	}
	return true;
}

/**
 * ptshare_drop_entries() - clear the entries of a VMA in tables of its own
 * @vma: The VMA.
 * @start: First address.
 * @end: End of the range. Nothing of it is shared.
 *
 * Markers of userfaultfd and of guard regions are entries that must not be lost.
 * Entries that somebody else has cleared are flushed if they could still be stored
 * through, since whoever finds the host in their place does not know of them: reclaim's
 * by table_empty(), those of MADV_DONTNEED (in 7.3 it needs the VMA lock only) under the
 * page table lock, because they are dirty. Through a clean one its process may read the
 * old page until MADV_DONTNEED flushes, which holds the page, as on any file.
 *
 * Context: May sleep. mmap lock and VMA lock for writing.
 * Return: False if entries are left that must not be lost.
 */
bool ptshare_drop_entries(struct vm_area_struct *vma, unsigned long start,
			  unsigned long end)
{
	struct zap_details details = { MEMFD_ZAP_KEEP_POISON };

	if (tables_empty(vma->vm_mm, start, end))
		return true;
	memfd_zap_range(vma, start, end - start, &details);
	return tables_empty(vma->vm_mm, start, end);
}
