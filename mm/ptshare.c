// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: which mappings share.
 *
 * A VMA that maps such a file in whole page tables is a guest. Its PMD entries
 * point to (link to) page tables of the host, an address space in which nobody
 * runs and which belongs to the file. The host has two VMAs, for readers and for
 * writers. They are in the file's reverse mapping, guests are not: whoever
 * changes page-table entries of the file finds each once. Which VMA is what
 * is told by its operations: they differ in nothing but their address. In the
 * place of vm_private_data are those that it would have if it did not share.
 *
 *        process 1            process 2           the host of the file
 *     mm_struct, guest     mm_struct, guest     mm_struct, VMA for writers
 *           |                    |                        |
 *       PMD table            PMD table                PMD table
 *           |  link              |  link                  |
 *           +-----------------> page table <--------------+
 *                               512 entries
 *
 * What a shared table cannot express makes a mapping ordinary: it has tables of
 * its own then, on the same pages, as if the file did not share.
 *
 * Invariant L. A link exists only in a guest that is in ptshare.guests, whole in
 * a table's range, and congruent to the file. Whoever takes a VMA from the tree,
 * or changes what it maps, has cleared its links and flushed before, and keeps
 * page faults out meanwhile: mmap lock and VMA lock for writing.
 *
 * Invariant T (TLB). Entries of shared tables are changed under the page table
 * lock by those who found the host in the reverse mapping, hence with i_mmap_rwsem
 * held. While they hold it they flush all guests that map what they changed
 * (mm/ptshare_tlb.c). A guest that links meanwhile links to the changed table. One
 * that is not in the tree any more has been flushed by L.
 *
 * Invariant R. An entry in a table for readers never has the write bit: the
 * VMA of the host from which it is made lacks VM_WRITE.
 *
 * The host, and the invariant F of its tables, are in mm/ptshare_host.c.
 *
 * Locks:
 *
 *   mmap lock, VMA lock of a guest
 *     i_mmap_rwsem of the file	ptshare.guests
 *       page table lock		links: the guest's PMD lock; entries: the
 *					table's own lock, the same for all
 */

#include <linux/fs.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <asm/tlb.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

/* What a shared table cannot express; bits of protection are compared. */
#define PTSHARE_NEVER	(VM_LOCKED | VM_LOCKONFAULT | VM_HUGEPAGE | VM_HUGETLB | \
			 VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_GROWSDOWN | \
			 VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR)

/*
 * Guests
 */

struct rb_root_cached *__ptshare_i_mmap(struct vm_area_struct *vma)
{
	return &ptshare_of(vma)->guests;
}

void __ptshare_linked(struct vm_area_struct *vma)
{
	struct ptshare *ps = ptshare_of(vma);

	i_mmap_assert_write_locked(ps->mapping);
	WRITE_ONCE(ps->nr_guests, ps->nr_guests + 1);
	ptshare_guest_came(ps, vma);
}

void __ptshare_unlinked(struct vm_area_struct *vma)
{
	struct ptshare *ps = ptshare_of(vma);

	i_mmap_assert_write_locked(ps->mapping);
	WRITE_ONCE(ps->nr_guests, ps->nr_guests - 1);
	ptshare_guest_left(vma, vma->vm_pgoff,
			   vma->vm_pgoff + vma_pages(vma) - 1);
}

struct vm_area_struct *__ptshare_first_guest(struct address_space *mapping,
					     pgoff_t first, pgoff_t last)
{
	struct ptshare *ps = ptshare_of_inode(mapping->host);

	return ps ? vma_interval_tree_iter_first(&ps->guests, first, last) :
		    NULL;
}

/**
 * ptshare_may_share() - whether a shared table can express what a VMA asks for
 * @vma: The VMA, of a file with shared tables.
 * @flags: The flags that it has, or is going to have.
 *
 * Context: mmap lock.
 * Return: True if so.
 */
bool ptshare_may_share(struct vm_area_struct *vma, unsigned long flags)
{
	unsigned long class_flags = VM_READ | VM_SHARED | (flags & VM_WRITE);
	unsigned long start = vma->vm_pgoff << PAGE_SHIFT;

	if (!(flags & VM_MAYSHARE) || !(flags & VM_READ) ||
	    (flags & PTSHARE_NEVER))
		return false;
	/* Entries have one set of bits: no execution, no protection keys. */
	if (pgprot_val(vm_get_page_prot(flags)) !=
	    pgprot_val(vm_get_page_prot(class_flags)))
		return false;
	if ((start | vma->vm_start | vma->vm_end) & ~PMD_MASK)
		return false;
	if (vma->vm_pgoff + vma_pages(vma) > PTSHARE_SPAN >> PAGE_SHIFT)
		return false;
	return !mm_has_notifiers(vma->vm_mm) || !ptshare_rule(NOTIFIER);
}

/* A VMA with soft-dirty tracking has entries of its own. */
static bool soft_dirty_tracked(unsigned long flags)
{
	return IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) && !(flags & VM_SOFTDIRTY);
}

static bool is_ordinary(const struct vm_area_struct *vma)
{
	return vma->vm_file && ptshare_of_inode(file_inode(vma->vm_file)) &&
	       !ptshare_guest(vma) && !ptshare_host(vma);
}

static void make_guest(struct vm_area_struct *vma)
{
	vma->vm_private_data = (void *)vma->vm_ops;
	vma->vm_ops = &ptshare_guest_vm_ops;
}

static void make_ordinary(struct vm_area_struct *vma)
{
	vma->vm_ops = vma->vm_private_data;
	vma->vm_private_data = NULL;
}

void __ptshare_mmap(struct vm_area_struct *vma)
{
	if (is_ordinary(vma) && ptshare_may_share(vma, vma->vm_flags))
		make_guest(vma);
}

/* Takes the page tables of a VMA away that is in no tree. */
static void free_own_tables(struct vm_area_struct *vma)
{
	struct mmu_gather tlb;

	tlb_gather_mmu(&tlb, vma->vm_mm);
	free_pgd_range(&tlb, vma->vm_start, vma->vm_end, vma->vm_start,
		       vma->vm_end);
	tlb_finish_mmu(&tlb);
}

/*
 * Makes an ordinary VMA a guest. It has no entries meanwhile, and nobody can make
 * any: no fault, because its lock is held, and no walk of the reverse mapping,
 * because none is left to be changed. Once it is out of the reverse mapping
 * nobody looks at its tables. If entries are left that say that the memory is
 * poisoned, it stays ordinary, so that they are not lost.
 */
static void share(struct vm_area_struct *vma)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	struct ptshare *ps = ptshare_of(vma);
	struct zap_details details = { .zap_flags = ZAP_FLAG_DROP_MARKER };

	vma_start_write(vma);
	zap_page_range_single(vma, vma->vm_start, vma->vm_end - vma->vm_start,
			      &details);
	if (!ptshare_tables_empty(vma))
		return;
	i_mmap_lock_write(mapping);
	vma_interval_tree_remove(vma, &mapping->i_mmap);
	i_mmap_unlock_write(mapping);
	free_own_tables(vma);
	make_guest(vma);
	i_mmap_lock_write(mapping);
	vma_interval_tree_insert(vma, &ps->guests);
	__ptshare_linked(vma);
	i_mmap_unlock_write(mapping);
	count_vm_event(PTSHARE_SHARE);
}

/**
 * __ptshare_unshare() - make a guest an ordinary VMA
 * @vma: The guest.
 *
 * It has no entries then; the next access faults them in one by one. It never
 * fails.
 *
 * Context: May sleep. mmap lock for writing.
 */
void __ptshare_unshare(struct vm_area_struct *vma)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	struct ptshare *ps = ptshare_of(vma);

	vma_start_write(vma);
	ptshare_unlink(vma, vma->vm_start, vma->vm_end);
	i_mmap_lock_write(mapping);
	vma_interval_tree_remove(vma, &ps->guests);
	__ptshare_unlinked(vma);
	make_ordinary(vma);
	vma_interval_tree_insert(vma, &mapping->i_mmap);
	i_mmap_unlock_write(mapping);
	count_vm_event(PTSHARE_UNSHARE);
}

void __ptshare_unshare_soft_dirty(struct vm_area_struct *vma)
{
	if (ptshare_rule(SOFT_DIRTY))
		__ptshare_unshare(vma);
}

void __ptshare_unshare_mm(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;

	if (!ptshare_rule(NOTIFIER))
		return;
	for_each_vma(vmi, vma)
		ptshare_unshare(vma);
}

bool __ptshare_dup(struct vm_area_struct *vma)
{
	/* Page tables are not copied for it: see vma_needs_copy(). */
	if (is_ordinary(vma) && ptshare_may_share(vma, vma->vm_flags) &&
	    !soft_dirty_tracked(vma->vm_flags)) {
		make_guest(vma);
		count_vm_event(PTSHARE_SHARE);
	}
	if (!ptshare_guest(vma))
		return false;
	vma_interval_tree_insert(vma, &ptshare_of(vma)->guests);
	__ptshare_linked(vma);
	return true;
}

bool __ptshare_mergeable(struct vm_area_struct *vma,
			 struct vm_area_struct *modified, unsigned long start,
			 unsigned long end)
{
	if (modified && ptshare_guest(vma) != ptshare_guest(modified))
		return false;
	if (!ptshare_guest(vma))
		return true;
	return IS_ALIGNED(start, PMD_SIZE) && IS_ALIGNED(end, PMD_SIZE) &&
	       (end <= vma->vm_end || ptshare_offset(vma, end) <= PTSHARE_SPAN);
}

void __ptshare_split(struct vm_area_struct *vma, unsigned long addr)
{
	if (!IS_ALIGNED(addr, PMD_SIZE) && ptshare_rule(SPLIT))
		__ptshare_unshare(vma);
}

/*
 * The caller takes the VMA's flags from one set to the other next. For a guest
 * that stays one it calls ptshare_change_protection() if bits of entries change.
 */
void __ptshare_modify(struct vm_area_struct *vma, unsigned long flags)
{
	bool may = ptshare_may_share(vma, flags) && !soft_dirty_tracked(flags);

	if (ptshare_guest(vma)) {
		if (!may && ptshare_rule(MODIFY))
			__ptshare_unshare(vma);
	} else if (may && is_ordinary(vma)) {
		share(vma);
	}
}

static void reshare(struct vm_area_struct *vma)
{
	if (is_ordinary(vma))
		__ptshare_modify(vma, vma->vm_flags);
}

void __ptshare_reshare(struct mm_struct *mm, unsigned long start,
		       unsigned long end)
{
	struct vm_area_struct *prev, *vma = find_vma_prev(mm, start, &prev);

	if (prev && prev->vm_end == start)
		reshare(prev);
	if (vma && vma->vm_start <= start)
		reshare(vma);
	vma = find_vma(mm, end);
	if (vma && vma->vm_start == end)
		reshare(vma);
}

unsigned long __ptshare_unmapped_area(struct file *file, unsigned long addr,
				      unsigned long hint, unsigned long len,
				      unsigned long pgoff, unsigned long flags)
{
	unsigned long wide, offset = pgoff << PAGE_SHIFT;

	if (!file || !ptshare_of_inode(file_inode(file)) || IS_ERR_VALUE(addr))
		return addr;
	if ((flags & MAP_FIXED) || (flags & MAP_TYPE) == MAP_PRIVATE ||
	    !len || !IS_ALIGNED(len, PMD_SIZE) || !IS_ALIGNED(offset, PMD_SIZE))
		return addr;
	/* Wishes are granted. */
	if (addr == hint || IS_ALIGNED(addr, PMD_SIZE))
		return addr;
	if (len + PMD_SIZE < len)
		return addr;
	wide = mm_get_unmapped_area(current->mm, NULL, hint,
				    len + PMD_SIZE - PAGE_SIZE, 0, flags);
	return IS_ERR_VALUE(wide) ? addr : ALIGN(wide, PMD_SIZE);
}
