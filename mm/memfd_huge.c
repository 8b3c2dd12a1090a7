// SPDX-License-Identifier: GPL-2.0-only
/*
 * Huge entries of page tables that map files with protection.
 *
 * A huge entry has one write bit for all its pages, and pages are protected one by
 * one. Where a part of them is, there are small entries. Where all are, or were, there may
 * be a huge one that cannot be written through.
 *
 * Invariant H. No huge entry that has the write bit maps a page that is protected. Who
 * gives it the bit looks at the modes of all its pages under the lock of the PMD
 * table; who protects stores the modes first, and then takes that lock:
 *
 *   do_set_pmd(), change_huge_pmd(),		memfd_protect()
 *   remove_migration_pmd(), ...
 *
 *   lock PMD table				store modes
 *   read modes					lock PMD table
 *   set huge entry				take the bit away, or put a page table in
 *   unlock					  place of the entry
 *						unlock
 *						go on with that table
 *
 * The full barrier in __memfd_protect_no_pmd() pairs with the one in
 * memfd_walk_protect(), as for small entries (W in mm/memfd_fault.c). Entries that are
 * moved (mremap()) have been there, and are found as small ones are. What waits for the
 * end of a migration asks when it comes back.
 *
 * Who may write a page, but cannot because the entry has lost its write bit, gives it back
 * if nothing is protected any more. If something is he puts a page table in its place, in
 * which no entry has the bit, and goes on as if it had always been there.
 *
 * Shared page tables have an owner whose entries these are: mm/ptshare_huge.c.
 *
 * When nothing of a table is protected any more, the next fault that makes a page
 * writable has it replaced by a huge entry again. collapse_pte_mapped_thp() does that: it
 * clears the small entries under their lock, and flushes some time later. Who finds them
 * clear meanwhile must not take them for flushed: &mm_struct.tlb_flush_pending says so,
 * to tlb_finish_mmu() of the walk. munmap() says so, too, but its VMA is not to be found
 * any more when it flushes: memfd_protect_zapped_pmd() does it before.
 */

#include <linux/khugepaged.h>
#include <linux/memfd_compat.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <asm/tlb.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_protect.h"
#include "memfd_split.h"

bool __memfd_protect_no_pmd(struct vm_area_struct *vma, unsigned long addr)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vma);
	pgoff_t last, index = linear_page_index(vma, addr);
	enum memfd_mode mode;

	if (!memfd_vma_may_write(vma) || !memfd_hook(PMD))
		return false;
	/* Pairs with smp_mb() in memfd_walk_protect(). */
	smp_mb__after_spinlock();
	if (memfd_beyond_end(vma, index + HPAGE_PMD_NR - 1))
		return true;
	rcu_read_lock();
	mode = memfd_ranges_get_run(&mp->modes, index, &last);
	rcu_read_unlock();
	return mode != MEMFD_MODE_NONE || last - index < HPAGE_PMD_NR - 1;
}

/**
 * memfd_huge_protect() - take write access to a huge entry away
 * @vma: A VMA through which a file with protection can be written.
 * @pmd: Its huge entry, all pages of which are to be protected.
 * @addr: The address of the first one.
 *
 * Context: The lock of the PMD table. What is protected has been stored.
 * Return: True if it had write access. The caller flushes.
 */
bool memfd_huge_protect(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr)
{
	if (!pmd_write(*pmd) || !memfd_hook(HUGE))
		return false;
	pmdp_set_wrprotect(vma->vm_mm, addr, pmd);
	return true;
}

/**
 * memfd_huge_allow() - let somebody write through a huge entry
 * @vma: The VMA.
 * @pmd: Its PMD entry.
 * @addr: The address of the first page.
 *
 * Context: Any. What keeps the PMD table.
 * Return: False if a page table has to be there instead, because a page is protected.
 */
bool memfd_huge_allow(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr)
{
	spinlock_t *ptl = pmd_lock(vma->vm_mm, pmd);
	pmd_t entry = *pmd;
	bool allowed = true;

	if (pmd_trans_huge(entry) && !pmd_write(entry)) {
		allowed = !memfd_protect_no_pmd(vma, addr);
		if (allowed) {
			entry = pmd_mkwrite(pmd_mkdirty(pmd_mkyoung(entry)), vma);
			pmdp_set_access_flags(vma, addr, pmd, entry, 1);
			update_mmu_cache_pmd(vma, addr, pmd);
		}
	}
	spin_unlock(ptl);
	return allowed;
}

void __memfd_protect_zapped_pmd(struct mmu_gather *tlb)
{
	if (!tlb->fullmm && memfd_hook(ZAP))
		tlb_flush_mmu_tlbonly(tlb);
}

void __memfd_protect_collapse_begin(struct mm_struct *mm)
{
	inc_tlb_flush_pending(mm);
}

void __memfd_protect_collapse_end(struct mm_struct *mm)
{
	dec_tlb_flush_pending(mm);
}

/**
 * memfd_huge_wanted() - whether a write fault should make an entry huge again
 * @vmf: The fault, on a page that is not protected.
 *
 * Context: The page table lock.
 * Return: True if memfd_huge_again() may be able to.
 */
bool memfd_huge_wanted(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address & HPAGE_PMD_MASK;

	return folio_test_pmd_mappable(page_folio(vmf->page)) &&
	       thp_vma_suitable_order(vma, addr, PMD_ORDER) &&
	       memfd_thp_can_collapse(vma) && !(vma->vm_flags & VM_LOCKED) &&
	       !(vmf->flags & FAULT_FLAG_RETRY_NOWAIT) &&
	       !ptshare_host(vma) && !ptshare_no_collapse(vma) &&
	       !__memfd_protect_no_pmd(vma, addr);
}

/**
 * memfd_huge_again() - put a huge entry in place of a page table
 * @vmf: The fault.
 *
 * It may turn out that it cannot be done: then nothing has changed.
 *
 * Context: Sleeps. The mmap lock; with the VMA lock instead, it is released.
 * Return: 0, or VM_FAULT_RETRY to be called with the mmap lock.
 */
vm_fault_t memfd_huge_again(struct vm_fault *vmf)
{
	if (vmf->flags & FAULT_FLAG_VMA_LOCK) {
		vma_end_read(vmf->vma);
		return VM_FAULT_RETRY;
	}
	collapse_pte_mapped_thp(vmf->vma->vm_mm, vmf->address, true);
	return 0;
}
