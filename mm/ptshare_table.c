// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: faults.
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
 * by then, the host's part does nothing, and the fault happens again. A store that is
 * only logged is logged there, if that needs no waiting.
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
#include "memfd_around.h"
#include "ptshare.h"
#include "ptshare_debug.h"

/* What the host's part of a fault is told. */
#define HOST_FAULT_FLAGS	(FAULT_FLAG_WRITE | FAULT_FLAG_USER | \
				 FAULT_FLAG_REMOTE)

/*
 * Faults
 */

/* Whether an access needs no more than a link. */
static bool host_allows(pmd_t *pmd, unsigned long addr, unsigned int flags)
{
	bool write = flags & FAULT_FLAG_WRITE;
	pte_t *pte, entry;

	/* Both levels have a say, and this one comes first (U). */
	if (write && ptshare_rule(LINK) && ptshare_denies_lockless(pmd))
		return false;
	if (pmd_trans_huge(pmdp_get_lockless(pmd)))
		return true;
	pte = pte_offset_map(pmd, addr);
	if (!pte)
		return false;
	entry = ptep_get_lockless(pte);
	pte_unmap(pte);
	return pte_present(entry) && (!write || pte_write(entry));
}

/* Whether some table for writers has a page of the file. */
static bool writers_have(struct ptshare *ps, unsigned long offset)
{
	enum ptshare_class class;

	for (class = PTSHARE_RW; class < PTSHARE_CLASSES; class += PTSHARE_LOCKED) {
		unsigned long addr = PTSHARE_BASE(class) + offset;
		pmd_t *pmd = ptshare_find_pmd(ps->mm, addr);

		if (pmd && host_allows(pmd, addr, 0))
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
	unsigned long start = ALIGN_DOWN(addr, PMD_SIZE);

	if (writers_have(ps, addr - vma->vm_start))
		memfd_map_resident(vma, pmd, start, start + PMD_SIZE);
}

/* Whether a store is to a page that is not mapped, and maps its neighbours. */
static bool maps_around(struct vm_area_struct *vma, struct vm_area_struct *host_vma,
			pmd_t *pmd, unsigned long addr, unsigned int flags)
{
	return (flags & FAULT_FLAG_WRITE) && !(vma->vm_flags & VM_LOCKONFAULT) &&
	       !host_allows(pmd, addr, 0) && memfd_has_neighbours(host_vma, pmd, addr);
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

/*
 * Whether the host's part of a fault, which finds the page, is likely to log the store. If it
 * does not, the guest asks afterwards.
 */
static bool host_logs(struct vm_area_struct *vma, unsigned long address,
		      unsigned int flags, pmd_t *host_pmd, unsigned long host_addr)
{
	return (flags & FAULT_FLAG_WRITE) && memfd_protect_logs(vma, address) &&
	       host_allows(host_pmd, host_addr, 0);
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

/* False if there is no memory. */
static bool have_table(struct vm_area_struct *host_vma, pmd_t *pmd,
		       unsigned long addr)
{
	for (;;) {
		pmd_t entry = pmdp_get_lockless(pmd);

		if (ptshare_has_table(entry))
			return true;
		if (!pmd_none(entry))
			ptshare_huge_split(host_vma, pmd, addr);
		else if (pte_alloc(host_vma->vm_mm, pmd))
			return false;
	}
}

/*
 * Makes what a guest needs in the host: a page table if it is to link to that. Otherwise
 * the fault makes a huge entry if it can, and finds one that could be made before.
 */
static bool host_entry(const struct ptshare_place *place,
		       struct vm_area_struct *host_vma, pmd_t *pmd,
		       unsigned long addr)
{
	pmd_t entry = pmdp_get_lockless(pmd);

	if (place->pmd)
		return have_table(host_vma, pmd, addr);
	if (pmd_none(entry) && !ptshare_huge_wanted(host_vma, pmd, addr))
		return have_table(host_vma, pmd, addr);
	return true;
}

static vm_fault_t guest_fault(struct vm_area_struct *vma, unsigned long address,
			      unsigned int flags, ptshare_fault_fn *fault)
{
	struct ptshare *ps = ptshare_of(vma);
	struct vm_area_struct *host_vma;
	struct ptshare_place place;
	unsigned long host_addr;
	unsigned int before, adds;
	vm_fault_t ret = 0;
	bool linked, allowed, asks, around;
	pmd_t *host_pmd;

	if (ptshare_make_host(ps, vma))
		return VM_FAULT_OOM;
	host_vma = ps->vma[ptshare_link_class(vma)];
	host_addr = host_vma->vm_start + ptshare_offset(vma, address);
	/* Beyond would be the tables of another class. */
	if (WARN_ON_ONCE(host_addr >= host_vma->vm_end))
		return VM_FAULT_SIGBUS;

	host_pmd = ptshare_host_pmd(ps, host_addr);
	if (!host_pmd || !ptshare_link_place(&place, vma, address, host_pmd) ||
	    !host_entry(&place, host_vma, host_pmd, host_addr))
		return VM_FAULT_OOM;

	linked = ptshare_is_linked(&place, host_pmd);
	allowed = host_allows(host_pmd, host_addr, flags);
	/* MLOCK_ONFAULT does not mean a whole block. */
	if (!allowed && !(host_vma->vm_flags & VM_WRITE) &&
	    !(vma->vm_flags & VM_LOCKONFAULT)) {
		before = ptshare_group_pages(host_pmd, host_addr, flags);
		map_what_writers_have(ps, host_vma, host_pmd, host_addr);
		ptshare_count_fault(vma->vm_mm, host_pmd, host_addr, flags,
				    before, linked);
		allowed = host_allows(host_pmd, host_addr, flags);
	}
	asks = allowed || !host_logs(vma, address, flags, host_pmd, host_addr);
	while (!allowed) {
		if (asks)
			ret = guest_ask(vma, address, flags);
		if (ret)
			return ret;
		ptshare_delay(ASK);
		if (flags & FAULT_FLAG_WRITE)
			ptshare_push_down(host_vma, host_pmd, host_addr);
		if (!place.pmd)
			ptshare_huge_again(host_vma, host_pmd, host_addr);
		around = asks && maps_around(vma, host_vma, host_pmd, host_addr, flags);
		adds = around ? flags & ~FAULT_FLAG_WRITE : flags;
		before = ptshare_group_pages(host_pmd, host_addr, adds);
		if (around)
			memfd_map_neighbours(host_vma, host_pmd, host_addr);
		ret = host_fault(host_vma, host_addr, flags, fault);
		if (ret & VM_FAULT_ERROR)
			return ret;
		ptshare_count_fault(vma->vm_mm, host_pmd, host_addr, adds,
				    before, linked);
		ptshare_delay(LINK);
		/* What has become of it by now is for the next fault, but to ask. */
		allowed = asks || host_allows(host_pmd, host_addr, flags);
		asks = true;
	}
	if (!linked)
		ptshare_link(&place, vma, address, host_vma, host_pmd);
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

bool __ptshare_no_retract(void)
{
	return ptshare_rule(RETRACT);
}

bool __ptshare_no_collapse(void)
{
	return ptshare_rule(COLLAPSE);
}

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
 * here and by table_empty(), those of MADV_DONTNEED (in 7.3 it needs the VMA lock only) under the
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

	/* Of tables that are gone (PT_RECLAIM). */
	flush_tlb_batched_pending(vma->vm_mm);
	if (tables_empty(vma->vm_mm, start, end))
		return true;
	memfd_zap_range(vma, start, end - start, &details);
	return tables_empty(vma->vm_mm, start, end);
}
