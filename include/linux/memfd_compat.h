/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels that memfd_protect and ptshare are for.
 *
 * Our files are written for the newest one, and this makes older ones look like
 * it. All names are our own: core files include this header, and are to find
 * their own functions there.
 */
#ifndef _LINUX_MEMFD_COMPAT_H
#define _LINUX_MEMFD_COMPAT_H

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)

#define memfd_young_t			bool	/* of MMU notifiers */

#define memfd_lazy_mmu_enable()		lazy_mmu_mode_enable()
#define memfd_lazy_mmu_disable()	lazy_mmu_mode_disable()

#define MEMFD_MAPPING_FLAGS		FOLIO_MAPPING_FLAGS
#define memfd_pte_uffd(pte)		pte_uffd(pte)
#define memfd_pte_mkuffd(pte)		pte_mkuffd(pte)
#define memfd_pte_swp_mkuffd(pte)	pte_swp_mkuffd(pte)
#define memfd_pmd_uffd(pmd)		pmd_uffd(pmd)
#define memfd_pmd_swp_uffd(pmd)		pmd_swp_uffd(pmd)

/* With <linux/swapops.h> */
#define memfd_pmd_is_migration(pmd)	pmd_is_migration_entry(pmd)
#define memfd_pmd_pfn(pmd)		softleaf_to_pfn(softleaf_from_pmd(pmd))
#define memfd_pmd_migration_young(pmd)	\
	softleaf_is_migration_young(softleaf_from_pmd(pmd))
#define memfd_huge_pmd(folio, prot)	folio_mk_pmd(folio, prot)
/* With <linux/huge_mm.h>: of a file, it leaves none. */
#define memfd_clear_huge_pmd(vma, pmd, addr) \
	__split_huge_pmd(vma, pmd, addr, false)
#define memfd_thp_can_collapse(vma) \
	thp_vma_allowable_order(vma, (vma)->vm_flags, TVA_FORCED_COLLAPSE, PMD_ORDER)
/* Small entries of all of a folio lock it, as a huge one does. */
#define MEMFD_SMALL_NO_MLOCK		0

#define MEMFD_NO_VMA_FLAGS		EMPTY_VMA_FLAGS
#define MEMFD_VM_UFFD_RWP		VM_UFFD_RWP
#define MEMFD_VM_MAYBE_GUARD		VM_MAYBE_GUARD

#define memfd_rmap_insert(vma, mapping)	mapping_rmap_tree_insert(vma, mapping)
#define memfd_rmap_remove(vma, mapping)	mapping_rmap_tree_remove(vma, mapping)
#define memfd_rmap_foreach(vma, mapping, first, last) \
	mapping_rmap_tree_foreach(vma, mapping, first, last)

#define memfd_unbound_wq		system_dfl_wq

/* What keeps COWed pages keeps entries of poisoned memory. */
#define MEMFD_ZAP_KEEP_POISON		.skip_cows = true,

/* With mm/internal.h and <asm/tlb.h> */
#define memfd_zap_range(vma, addr, size, details)			\
do {									\
	struct mmu_gather __tlb;					\
									\
	tlb_gather_mmu(&__tlb, (vma)->vm_mm);				\
	zap_vma_range_batched(&__tlb, vma, addr, size, details);	\
	tlb_finish_mmu(&__tlb);						\
} while (0)

#define memfd_get_unmapped_area(addr, len, flags) \
	mm_get_unmapped_area(NULL, addr, len, 0, flags)
#define memfd_mm_flags_clear(mm)	mm_flags_clear_all(mm)
/* Its user namespace is with what exec() has made. */
#define memfd_mm_init_user_ns(mm)	do { } while (0)
#define memfd_kernel_cred()		kernel_cred()
#define memfd_file_ref_init(file)	file_ref_init(&(file)->f_ref, 1)
#define memfd_file_path(file)		(&(file)->__f_path)
/* With <linux/mmap_lock.h> */
#define memfd_vma_lock_class(vma, key) \
	lockdep_init_map(&(vma)->vmlock_dep_map, #key, key, 0)

/*
 * With <asm/tlbflush.h>. What has a global ASID may be in the TLB of a processor that
 * is not in mm_cpumask().
 */
#define memfd_mm_in_tlbs(mm) \
	(!cpumask_empty(mm_cpumask(mm)) || mm_global_asid(mm))
#define memfd_tlbbatch_unmapped(batch)	((batch)->unmapped_pages = true)
#define memfd_tlbbatch_pending(batch)					\
	(!cpumask_empty(&(batch)->cpumask) ||				\
	 (cpu_feature_enabled(X86_FEATURE_INVLPGB) && (batch)->unmapped_pages))

#else /* 6.12 */

#define memfd_young_t			int

#define memfd_lazy_mmu_enable()		arch_enter_lazy_mmu_mode()
#define memfd_lazy_mmu_disable()	arch_leave_lazy_mmu_mode()

#define MEMFD_MAPPING_FLAGS		PAGE_MAPPING_FLAGS
#define memfd_pte_uffd(pte)		pte_uffd_wp(pte)
#define memfd_pte_mkuffd(pte)		pte_mkuffd_wp(pte)
#define memfd_pte_swp_mkuffd(pte)	pte_swp_mkuffd_wp(pte)
#define memfd_pmd_uffd(pmd)		pmd_uffd_wp(pmd)
#define memfd_pmd_swp_uffd(pmd)		pmd_swp_uffd_wp(pmd)

/* With <linux/swapops.h> */
#define memfd_pmd_is_migration(pmd)	is_pmd_migration_entry(pmd)
#define memfd_pmd_pfn(pmd)		swp_offset_pfn(pmd_to_swp_entry(pmd))
#define memfd_pmd_migration_young(pmd)	\
	is_migration_entry_young(pmd_to_swp_entry(pmd))
/* With <linux/huge_mm.h>. A huge entry of a file gives way to nothing. */
#define memfd_huge_pmd(folio, prot)	mk_huge_pmd(&(folio)->page, prot)
#define memfd_clear_huge_pmd(vma, pmd, addr) \
	__split_huge_pmd(vma, pmd, addr, false, NULL)
#define memfd_thp_can_collapse(vma) \
	thp_vma_allowable_order(vma, (vma)->vm_flags, 0, PMD_ORDER)
#define MEMFD_SMALL_NO_MLOCK		1

#define MEMFD_NO_VMA_FLAGS		0
#define MEMFD_VM_UFFD_RWP		0
#define MEMFD_VM_MAYBE_GUARD		0

#define memfd_rmap_insert(vma, mapping) \
	vma_interval_tree_insert(vma, &(mapping)->i_mmap)
#define memfd_rmap_remove(vma, mapping) \
	vma_interval_tree_remove(vma, &(mapping)->i_mmap)
#define memfd_rmap_foreach(vma, mapping, first, last) \
	vma_interval_tree_foreach(vma, &(mapping)->i_mmap, first, last)

#define memfd_unbound_wq		system_unbound_wq

#define MEMFD_ZAP_KEEP_POISON		/* unless .even_cows */

#define memfd_zap_range(vma, addr, size, details) \
	zap_page_range_single(vma, addr, size, details)
#define memfd_get_unmapped_area(addr, len, flags) \
	mm_get_unmapped_area(current->mm, NULL, addr, len, 0, flags)
#define memfd_mm_flags_clear(mm)	((mm)->flags = 0)
/* With <linux/user_namespace.h> */
#define memfd_mm_init_user_ns(mm)			\
do {							\
	put_user_ns((mm)->user_ns);			\
	(mm)->user_ns = get_user_ns(&init_user_ns);	\
} while (0)
#define memfd_kernel_cred()		(&init_cred)
#define memfd_file_ref_init(file)	atomic_long_set(&(file)->f_count, 1)
#define memfd_file_path(file)		(&(file)->f_path)
#define memfd_vma_lock_class(vma, key) \
	lockdep_set_class(&(vma)->vm_lock->lock, key)

#define memfd_mm_in_tlbs(mm)		(!cpumask_empty(mm_cpumask(mm)))
#define memfd_tlbbatch_unmapped(batch)	do { } while (0)
#define memfd_tlbbatch_pending(batch)	(!cpumask_empty(&(batch)->cpumask))

#endif

#endif /* _LINUX_MEMFD_COMPAT_H */
