/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stores that map more than their page: memfd_protect() and shared page tables both
 * have use for it.
 *
 * A read of a file maps what else of it is in the page cache around its page. Here the first
 * store to a page does so too, and then goes on as ever. Entries of its neighbours are made
 * as for that read: writable if the VMA's are and memfd_protect() has nothing against it (W
 * in mm/memfd_fault.c). So it saves faults, and nothing is told of these pages but what a
 * read would tell.
 */
#ifndef _MM_MEMFD_AROUND_H
#define _MM_MEMFD_AROUND_H

#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sizes.h>

/* The default of fault-around, which is read faults' counterpart. */
#define MEMFD_AROUND_BYTES	max_t(unsigned long, SZ_64K, PAGE_SIZE)
#define MEMFD_AROUND_PAGES	(MEMFD_AROUND_BYTES / PAGE_SIZE)

/*
 * Whether a store to a page that is not mapped should map its neighbours. Who writes into
 * holes has no use for them, and would look at what he has written before each time. A large
 * folio is mapped as a whole by its own fault.
 */
static inline bool memfd_has_neighbours(struct vm_area_struct *vma, pmd_t *pmd,
					unsigned long addr)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	pgoff_t index = linear_page_index(vma, addr);
	pmd_t table = pmdp_get_lockless(pmd);
	struct folio *folio;
	bool small;

	if (!pmd_present(table) || pmd_leaf(table))
		return false;
	/* Most often there is a hole: without looking for what else it could be. */
	if (!xa_load(&mapping->i_pages, index))
		return false;
	folio = filemap_get_folio(mapping, index);
	if (IS_ERR(folio))
		return false;
	small = !folio_test_large(folio);
	folio_put(folio);
	return small;
}

/* Maps, of [@start, @end) in one page table, what is in the page cache. */
static inline void memfd_map_resident(struct vm_area_struct *vma, pmd_t *pmd,
				      unsigned long start, unsigned long end)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = start,
		.real_address = start,
		.pgoff = linear_page_index(vma, start),
		.pmd = pmd,
	};

	if (start >= end)
		return;
	rcu_read_lock();
	vma->vm_ops->map_pages(&vmf, vmf.pgoff, linear_page_index(vma, end - 1));
	rcu_read_unlock();
}

/* The same around the page at @addr, which is left to its own fault. */
static inline void memfd_map_neighbours(struct vm_area_struct *vma, pmd_t *pmd,
					unsigned long addr)
{
	unsigned long start = ALIGN_DOWN(addr, MEMFD_AROUND_BYTES);
	unsigned long end = min(start + MEMFD_AROUND_BYTES, vma->vm_end);

	addr &= PAGE_MASK;
	memfd_map_resident(vma, pmd, max(start, vma->vm_start), addr);
	memfd_map_resident(vma, pmd, addr + PAGE_SIZE, end);
}

#endif /* _MM_MEMFD_AROUND_H */
