/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Huge entries that give way to page tables: memfd_protect() and shared page tables
 * both have use for it.
 */
#ifndef _MM_MEMFD_SPLIT_H
#define _MM_MEMFD_SPLIT_H

#include <linux/mm.h>

#include "internal.h"

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
bool memfd_huge_split(struct vm_area_struct *vma, pmd_t *pmd,
		      unsigned long addr);
#else
static inline bool memfd_huge_split(struct vm_area_struct *vma, pmd_t *pmd,
				    unsigned long addr)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *ptl = pmd_lock(mm, pmd);
	bool has_table = !pmd_none(*pmd);

	if (!has_table)
		flush_tlb_batched_pending(mm);
	spin_unlock(ptl);
	return has_table;
}
#endif

#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && defined(CONFIG_MEMFD_PROTECT)
/* mm/memfd_huge.c */
bool memfd_huge_protect(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr);
bool memfd_huge_allow(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr);
#else
static inline bool memfd_huge_protect(struct vm_area_struct *vma, pmd_t *pmd,
				      unsigned long addr)
{
	return false;
}

static inline bool memfd_huge_allow(struct vm_area_struct *vma, pmd_t *pmd,
				    unsigned long addr)
{
	return true;
}
#endif

#endif /* _MM_MEMFD_SPLIT_H */
