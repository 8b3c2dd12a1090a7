// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: huge entries.
 *
 * Where the file has a huge page, the host's PMD entry maps it as a whole, for all who
 * link to the PMD table. A guest that links to page tables by PMD entries of its own
 * needs a page table there, and has one made in place of the huge entry; it
 * stays as long as such a guest does. Tables of locked memory have small entries only.
 *
 *        process 1     process 2                  host
 *             |             |                       |
 *             +-------------+-----------------> PMD table
 *                                               |       |
 *                                       huge page     page table
 *
 * A huge entry of all of whose pages write access is to be taken away loses its write bit,
 * by 1 store, as a page table does (U in mm/ptshare_protect.c). What it needs to get
 * it back is H in mm/memfd_huge.c.
 *
 * Invariant P. A page table gives way to a huge entry, if it could be one, at the next
 * fault that is not served by it, if nothing of it is protected and no PMD entry of a guest
 * leads to it. The latter is counted under the table's lock (ptshare_count_link()). So
 * tables of the host may go while it has guests, other than F in mm/ptshare_host.c says of
 * all others: by RCU, after a flush, and with the locks of the PMD table and its own.
 * Who has no lock of the two looks at one with pte_offset_map() therefore.
 *
 * Locks:
 *
 *   lock of a guest
 *     lock of the folio
 *       i_mmap_rwsem		TLBs and secondary MMUs of guests, T in mm/ptshare_tlb.c
 *         PMD table of the host
 *           page table of the host
 */

#include <linux/memfd_compat.h>
#include <linux/memfd_protect.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/vmstat.h>
#include <asm/pgalloc.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "memfd_split.h"
#include "ptshare.h"
#include "ptshare_debug.h"

static bool folio_is_huge(struct folio *folio)
{
	return folio_order(folio) == HPAGE_PMD_ORDER &&
	       !folio_test_has_hwpoisoned(folio);
}

/* Whether a fault would map it. What fallocate() has made is cleared by that. */
static bool folio_is_mappable(struct folio *folio, struct inode *inode, pgoff_t index)
{
	return folio_is_huge(folio) && folio_test_uptodate(folio) &&
	       index < DIV_ROUND_UP(i_size_read(inode), PAGE_SIZE);
}

/**
 * ptshare_huge_wanted() - whether a fault should not be served by a page table
 * @host_vma: The VMA of the host.
 * @pmd: Its PMD entry.
 * @addr: The address in the host.
 *
 * Context: The lock of a guest that links to the PMD table, or will.
 * Return: True if there is, or may come, a huge page of the file.
 */
bool ptshare_huge_wanted(struct vm_area_struct *host_vma, pmd_t *pmd,
			 unsigned long addr)
{
	struct folio *folio;
	bool wanted;

	if (ptshare_no_pmd(host_vma) ||
	    !thp_vma_suitable_order(host_vma, ALIGN_DOWN(addr, PMD_SIZE),
				    PMD_ORDER))
		return false;
	folio = filemap_get_folio(host_vma->vm_file->f_mapping,
				  linear_page_index(host_vma, addr));
	/* What is to come is not known, and may be huge where nothing is yet. */
	if (IS_ERR(folio))
		return pmd_none(pmdp_get_lockless(pmd));
	wanted = folio_is_huge(folio);
	folio_put(folio);
	return wanted;
}

/**
 * ptshare_huge_split() - have a page table where there may be a huge entry
 * @host_vma: The VMA of the host.
 * @pmd: Its PMD entry.
 * @addr: The address in the host.
 *
 * Context: May sleep. The lock of a guest that maps what @addr does.
 * Return: False if there is neither.
 */
bool ptshare_huge_split(struct vm_area_struct *host_vma, pmd_t *pmd,
			unsigned long addr)
{
	struct address_space *mapping = host_vma->vm_file->f_mapping;
	bool has_table;

	i_mmap_lock_read(mapping);
	has_table = memfd_huge_split(host_vma, pmd, addr);
	i_mmap_unlock_read(mapping);
	return has_table;
}

/**
 * ptshare_huge_push_down() - let somebody write through a huge entry, or its pages
 * @host_vma: The VMA of the host.
 * @pmd: Its PMD entry.
 * @addr: The address in the host, of the first page.
 *
 * Context: May sleep. The lock of a guest that maps what @addr does.
 */
void ptshare_huge_push_down(struct vm_area_struct *host_vma, pmd_t *pmd,
			    unsigned long addr)
{
	count_vm_event(PTSHARE_PUSH_DOWN);
	if (!memfd_huge_allow(host_vma, pmd, addr))
		ptshare_huge_split(host_vma, pmd, addr);
}

/* Whether all entries that there are map the folio, each its page. */
static bool maps_folio(struct folio *folio, pte_t *pte)
{
	unsigned int i;

	for (i = 0; i < HPAGE_PMD_NR; i++) {
		pte_t entry = ptep_get(pte + i);

		if (!pte_none(entry) &&
		    (!pte_present(entry) ||
		     pte_pfn(entry) != folio_pfn(folio) + i))
			return false;
	}
	return true;
}

/* Returns how many there were. */
static unsigned int clear_entries(struct vm_area_struct *vma, unsigned long addr,
				  struct folio *folio, pte_t *pte)
{
	unsigned int i, nr = 0;

	for (i = 0; i < HPAGE_PMD_NR; i++, addr += PAGE_SIZE) {
		pte_t old = ptep_get_and_clear(vma->vm_mm, addr, pte + i);

		if (pte_none(old))
			continue;
		if (pte_dirty(old))
			folio_mark_dirty(folio);
		if (pte_young(old))
			folio_mark_accessed(folio);
		folio_remove_rmap_pte(folio, folio_page(folio, i), vma);
		nr++;
	}
	return nr;
}

/* No look at the page table tells that it could give way: for who holds no lock of it. */
static bool table_in_the_way(pmd_t *pmd, unsigned long addr, struct folio *folio)
{
	pte_t *pte = pte_offset_map(pmd, addr);
	bool in_the_way;

	if (!pte)
		return true;
	in_the_way = atomic_read(&virt_to_ptdesc(pte)->pt_share_count) ||
		     !maps_folio(folio, pte);
	pte_unmap(pte);
	return in_the_way;
}

/*
 * Both tables are locked. While the entry is empty nobody uses the folio by it: what the
 * TLBs have is flushed in between, for all guests.
 */
static void set_huge(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr,
		     struct folio *folio, pte_t *pte)
{
	struct mm_struct *mm = vma->vm_mm;
	pgtable_t table = pmd_pgtable(*pmd);
	unsigned int nr;

	/* It is mapped all the time. */
	folio_add_file_rmap_pmd(folio, &folio->page, vma);
	nr = clear_entries(vma, addr, folio, pte);
	ptshare_uncount_table(mm->ptshare, pmd);
	pmd_clear(pmd);
	flush_tlb_mm_range(mm, addr, addr + PMD_SIZE, PAGE_SHIFT, true);
	if (nr)
		folio_ref_sub(folio, nr - 1);
	else
		folio_get(folio);
	add_mm_counter(mm, mm_counter_file(folio), HPAGE_PMD_NR - nr);
	set_pmd_at(mm, addr, pmd, memfd_huge_pmd(folio, vma->vm_page_prot));
	mm_dec_nr_ptes(mm);
	ptshare_count_huge(pmd);
	pte_free_defer(mm, table);
	count_vm_event(THP_FILE_MAPPED);
}

/*
 * What is protected is looked at with both locks: who protects a part takes that of the
 * page table only, and if he had it before, he has stored the modes before.
 */
static void set_huge_locked(struct vm_area_struct *vma, pmd_t *pmd,
			    unsigned long addr, struct folio *folio)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *pml = pmd_lock(mm, pmd), *ptl;
	pmd_t entry = *pmd;
	pte_t *pte;

	if (ptshare_has_table(entry)) {
		pte = pte_offset_kernel(pmd, addr);
		ptl = pte_lockptr(mm, pmd);
		spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
		if (!atomic_read(ptshare_links_of(pmd_pgtable(entry))) &&
		    !memfd_protect_no_pmd(vma, addr) && maps_folio(folio, pte))
			set_huge(vma, pmd, addr, folio, pte);
		spin_unlock(ptl);
	}
	spin_unlock(pml);
}

/**
 * ptshare_huge_again() - put a huge entry in place of a page table
 * @host_vma: The VMA of the host.
 * @pmd: Its PMD entry.
 * @addr: The address in the host.
 *
 * It may turn out that it cannot be done: then nothing has changed.
 *
 * Context: Sleeps. The lock of a guest that links to the PMD table, or will.
 */
void ptshare_huge_again(struct vm_area_struct *host_vma, pmd_t *pmd,
			unsigned long addr)
{
	struct address_space *mapping = host_vma->vm_file->f_mapping;
	pgoff_t index = linear_page_index(host_vma, addr);
	struct mmu_notifier_range range;
	struct folio *folio;

	addr = ALIGN_DOWN(addr, PMD_SIZE);
	if (!ptshare_has_table(pmdp_get_lockless(pmd)) ||
	    !ptshare_huge_wanted(host_vma, pmd, addr) ||
	    memfd_protect_no_pmd(host_vma, addr))
		return;
	folio = filemap_lock_folio(mapping, index);
	if (IS_ERR(folio))
		return;
	if (folio_is_mappable(folio, mapping->host, index) &&
	    !table_in_the_way(pmd, addr, folio)) {
		mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0,
					host_vma->vm_mm, addr, addr + PMD_SIZE);
		i_mmap_lock_read(mapping);
		mmu_notifier_invalidate_range_start(&range);
		set_huge_locked(host_vma, pmd, addr, folio);
		mmu_notifier_invalidate_range_end(&range);
		i_mmap_unlock_read(mapping);
	}
	folio_unlock(folio);
	folio_put(folio);
}
