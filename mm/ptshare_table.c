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

/* Points one PMD entry of a guest to the host's table, if it has one. */
static bool link_table(struct mm_struct *mm, pmd_t *pmd, pmd_t *host_pmd)
{
	pmd_t table = pmdp_get_lockless(host_pmd);
	bool linked = false;
	spinlock_t *ptl; /* of the guest's PMD table */

	if (pmd_none(table) || !pmd_none(pmdp_get_lockless(pmd)))
		return false;
	ptl = pmd_lock(mm, pmd);
	if (pmd_none(*pmd)) {
		atomic_inc(ptshare_links_of(pmd_pgtable(table)));
		pmd_populate(mm, pmd, pmd_pgtable(table));
		linked = true;
	}
	spin_unlock(ptl);
	return linked;
}

/*
 * Links the table at @address, whose PMD entry is @pmd, and its neighbours. A
 * table that is found stays: the guest is locked, and in the tree (F).
 */
static void link_around(struct vm_area_struct *vma, unsigned long address,
			pmd_t *pmd, struct vm_area_struct *host_vma)
{
	unsigned long start = max(ALIGN_DOWN(address, LINK_AROUND),
				  vma->vm_start);
	unsigned long end = min(ALIGN_DOWN(address, LINK_AROUND) + LINK_AROUND,
				vma->vm_end);
	unsigned long nr = 0, pages = 0, addr = start;

	pmd -= (ALIGN_DOWN(address, PMD_SIZE) - start) >> PMD_SHIFT;
	for (; addr < end; addr += PMD_SIZE, pmd++) {
		pmd_t *host_pmd = ptshare_find_pmd(host_vma->vm_mm,
						   host_vma->vm_start +
						   ptshare_offset(vma, addr));

		if (!host_pmd || !link_table(vma->vm_mm, pmd, host_pmd))
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
 * @end: End of the range.
 *
 * No CPU uses the tables through this guest when it returns. It is one flush,
 * for all tables, and it says that tables are freed: paging-structure caches go
 * too, and CPUs that run the address space lazily are interrupted as well. The
 * flush comes now and not with others at the end of an unmap, because the VMA
 * leaves the tree of guests before that (L).
 *
 * Context: May sleep. mmap lock or VMA lock of @vma.
 */
void ptshare_unlink(struct vm_area_struct *vma, unsigned long start,
		    unsigned long end)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long first = ULONG_MAX, last = 0, nr = 0;
	unsigned long addr = ALIGN_DOWN(start, PMD_SIZE);
	pmd_t *pmd;

	end = ALIGN(end, PMD_SIZE);
	for (; (pmd = ptshare_next_pmd(mm, &addr, end)); addr += PMD_SIZE) {
		spinlock_t *ptl = pmd_lock(mm, pmd);
		pmd_t table = *pmd;

		if (!pmd_none(table)) {
			pmd_clear(pmd);
			atomic_dec(ptshare_links_of(pmd_pgtable(table)));
			nr++;
		}
		spin_unlock(ptl);
		first = min(first, addr);
		last = addr + PMD_SIZE;
		cond_resched();
	}
	if (!nr)
		return;
	if (ptshare_rule(UNLINK_FLUSH))
		flush_tlb_mm_range(mm, first, last, PAGE_SHIFT, true);
	ptshare_count_unlinks(mm, ptshare_of(vma), nr);
}

bool __ptshare_change_protection(struct vm_area_struct *vma,
				 unsigned long start, unsigned long end,
				 bool numa)
{
	if (!numa) {
		ptshare_unlink(vma, start, end);
		ptshare_class_left(vma, start, end);
	} else if (!ptshare_rule(NUMA)) {
		return false;
	}
	return true;
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
	enum ptshare_class class = ptshare_class_of(vma->vm_flags);
	struct ptshare *ps = ptshare_of(vma);
	struct vm_area_struct *host_vma;
	unsigned long host_addr;
	pmd_t *pmd, *host_pmd;
	unsigned int before;
	vm_fault_t ret = 0;
	bool linked;

	if (!ptshare_rule(CLASS))
		class = PTSHARE_RW;
	host_vma = ps->vma[class];
	host_addr = host_vma->vm_start + ptshare_offset(vma, address);
	/* Beyond would be the tables of another class. */
	if (WARN_ON_ONCE(host_addr >= host_vma->vm_end))
		return VM_FAULT_SIGBUS;

	pmd = ptshare_alloc_pmd(vma->vm_mm, address);
	host_pmd = ptshare_host_table(ps, host_addr);
	if (!pmd || !host_pmd)
		return VM_FAULT_OOM;

	linked = !pmd_none(pmdp_get_lockless(pmd));
	if (!host_allows(ps->mm, host_pmd, host_addr, flags)) {
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

static bool table_empty(struct mm_struct *mm, pmd_t *pmd, unsigned long addr)
{
	spinlock_t *ptl; /* of the table */
	pte_t *pte, *start = pte_offset_map_lock(mm, pmd, addr, &ptl);
	unsigned int i = 0;

	if (!start)
		return true;
	for (pte = start; i < PTRS_PER_PTE && pte_none(ptep_get(pte)); pte++)
		i++;
	pte_unmap_unlock(start, ptl);
	return i == PTRS_PER_PTE;
}

/**
 * ptshare_tables_empty() - whether the own tables of a VMA have no entries
 * @vma: An ordinary VMA of whole tables.
 *
 * Context: mmap lock and VMA lock for writing.
 * Return: True if so.
 */
bool ptshare_tables_empty(struct vm_area_struct *vma)
{
	unsigned long addr = vma->vm_start;
	pmd_t *pmd;

	for (; (pmd = ptshare_next_pmd(vma->vm_mm, &addr, vma->vm_end));
	     addr += PMD_SIZE) {
		if (!table_empty(vma->vm_mm, pmd, addr))
			return false;
		cond_resched();
	}
	return true;
}
