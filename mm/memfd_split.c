// SPDX-License-Identifier: GPL-2.0-only
/*
 * A page table in the place of a huge entry, with the same pages in it.
 *
 * __split_huge_pmd() clears huge entries of files, and each page is faulted in anew.
 * Here those who use other pages than what the split is for do not fault, what
 * is locked stays so, and the folio stays whole. If there is no memory for a table the entry
 * is cleared, as it is when a file is truncated.
 */

#include <linux/memcontrol.h>
#include <linux/memfd_compat.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/ptshare.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/vmstat.h>
#include <asm/pgalloc.h>
#include <asm/tlb.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_split.h"

/* There is something to fall back to: nothing that is reserved for others. */
#define TABLE_GFP	(GFP_NOWAIT | __GFP_ZERO | __GFP_NOWARN | __GFP_NOMEMALLOC)

static bool is_huge(pmd_t pmd)
{
	return pmd_trans_huge(pmd) || memfd_pmd_is_migration(pmd);
}

/* What each page of a huge entry has instead, with nothing changed but its size. */
static pte_t small_entry(struct vm_area_struct *vma, pmd_t old)
{
	pte_t entry = mk_pte(pmd_page(old), READ_ONCE(vma->vm_page_prot));

	entry = pmd_write(old) ? pte_mkwrite(entry, vma) : pte_wrprotect(entry);
	entry = pmd_young(old) ? pte_mkyoung(entry) : pte_mkold(entry);
	entry = pmd_dirty(old) ? pte_mkdirty(entry) : pte_mkclean(entry);
	if (memfd_pmd_uffd(old))
		entry = memfd_pte_mkuffd(entry);
	return pmd_soft_dirty(old) ? pte_mksoft_dirty(entry) :
				     pte_clear_soft_dirty(entry);
}

/*
 * Small entries of the folio are counted before the huge one is not any more, and each
 * reference before the mapping that has it: there never seem to be fewer references than
 * there are, of which one may be that of who writes the page by other means.
 */
static void fill_present(struct vm_area_struct *vma, pmd_t old,
			 unsigned long addr, pte_t *pte)
{
	struct page *page = pmd_page(old);
	struct folio *folio = page_folio(page);

	folio_ref_add(folio, HPAGE_PMD_NR);
	folio_add_file_rmap_ptes(folio, page, HPAGE_PMD_NR, vma);
	set_ptes(vma->vm_mm, addr, pte, small_entry(vma, old), HPAGE_PMD_NR);
	/* It is unlocked with the huge entry, and not yet locked with small ones. */
	if ((vma->vm_flags & VM_LOCKED) && MEMFD_SMALL_NO_MLOCK)
		mlock_folio(folio);
	folio_remove_rmap_pmd(folio, page, vma);
	folio_put(folio);
}

/* Who is told that the page has come asks whether it is protected. */
static void fill_migrating(struct vm_area_struct *vma, pmd_t old,
			   unsigned long addr, pte_t *pte)
{
	unsigned long pfn = memfd_pmd_pfn(old);
	unsigned int i;

	for (i = 0; i < HPAGE_PMD_NR; i++) {
		swp_entry_t migration = make_readable_migration_entry(pfn + i);
		pte_t entry;

		if (memfd_pmd_migration_young(old))
			migration = make_migration_entry_young(migration);
		entry = swp_entry_to_pte(migration);
		if (pmd_swp_soft_dirty(old))
			entry = pte_swp_mksoft_dirty(entry);
		if (memfd_pmd_swp_uffd(old))
			entry = memfd_pte_swp_mkuffd(entry);
		set_pte_at(vma->vm_mm, addr + i * PAGE_SIZE, pte + i, entry);
	}
}

/*
 * Some processors do not like huge and small TLB entries of the same address at the
 * same time: the huge entry is made invalid, and flushed, first. It still looks like a
 * huge entry then, to those who look without the lock.
 */
static void split_locked(struct vm_area_struct *vma, pmd_t *pmd,
			 unsigned long addr, pgtable_t table)
{
	struct mm_struct *mm = vma->vm_mm;
	pmd_t filled, old = *pmd;
	bool present = pmd_trans_huge(old);
	pte_t *pte;

	if (present)
		old = pmdp_invalidate(vma, addr, pmd);
	pmd_populate(mm, &filled, table);
	pte = pte_offset_map(&filled, addr);
	if (present)
		fill_present(vma, old, addr, pte);
	else
		fill_migrating(vma, old, addr, pte);
	pte_unmap(pte);
	mm_inc_nr_ptes(mm);
	ptshare_new_table(mm, table, present ? HPAGE_PMD_NR : 0);
	/* Entries are there before the table is. */
	smp_wmb();
	pmd_populate(mm, pmd, table);
	count_vm_event(THP_SPLIT_PMD);
}

/*
 * Reclaim would want i_mmap_rwsem, too; and the table's lock may need memory. Whoever must
 * not reclaim is charged beyond all limits, so that comes afterwards.
 */
static pgtable_t alloc_table(struct mm_struct *mm)
{
	unsigned int flags;
	pgtable_t table;

	if (!memfd_hook(SPLIT))
		return NULL;
	flags = memalloc_noreclaim_save();
	table = __pte_alloc_one(mm, TABLE_GFP);
	memalloc_noreclaim_restore(flags);
	if (table && memcg_kmem_charge_page(table, GFP_NOWAIT, 0)) {
		pte_free(mm, table);
		table = NULL;
	}
	return table;
}

/**
 * memfd_huge_split() - have a page table where there may be a huge entry
 * @vma: A VMA of a shmem file.
 * @pmd: The PMD entry.
 * @addr: An address that it maps.
 *
 * A secondary MMU that maps a page by an entry as large as that of the process relies on
 * being told of all of it when that is no more so large (KVM).
 *
 * Context: May sleep. i_mmap_rwsem.
 * Return: False if there is no table, and what was there is flushed.
 */
bool memfd_huge_split(struct vm_area_struct *vma, pmd_t *pmd,
		      unsigned long addr)
{
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	pgtable_t table = NULL;
	bool has_table, told = false;
	spinlock_t *ptl; /* of the PMD table */

	addr &= HPAGE_PMD_MASK;
	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, addr,
				addr + HPAGE_PMD_SIZE);
	for (;;) {
		ptl = pmd_lock(mm, pmd);
		has_table = !pmd_none(*pmd) && !is_huge(*pmd);
		/* Who freed a table that reclaim has emptied has not flushed that. */
		if (!has_table && memfd_hook(BATCHED_FLUSH))
			flush_tlb_batched_pending(mm);
		if (!is_huge(*pmd))
			break;
		if (table) {
			split_locked(vma, pmd, addr, table);
			has_table = true;
			table = NULL;
			break;
		}
		spin_unlock(ptl);
		memfd_delay(SPLIT);
		if (!told && memfd_hook(TOLD)) {
			mmu_notifier_invalidate_range_start(&range);
			told = true;
		}
		table = alloc_table(mm);
		if (!table)
			memfd_clear_huge_pmd(vma, pmd, addr);
	}
	spin_unlock(ptl);
	if (told)
		mmu_notifier_invalidate_range_end(&range);
	if (table)
		pte_free(mm, table);
	return has_table;
}
