// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: which mappings share what.
 *
 * The unit is the block, what one page table maps. A VMA that maps such a file shares
 * the blocks that it maps as a whole: their PMD entries point to (link to) page
 * tables of the host, an address space in which nobody runs and which belongs to
 * the file. It is a guest then. The host has a VMA for each class of them.
 * They are in the file's reverse mapping and stand for all guests: whoever changes
 * page-table entries of the file finds each once.
 *
 *        process 1            process 2           the host of the file
 *     mm_struct, guest     mm_struct, guest     mm_struct, VMA for writers
 *           |                    |                        |
 *       PMD table            PMD table                PMD table
 *           |  link              |  link                  |
 *           +-----------------> page table <--------------+
 *                               512 entries
 *
 * What is not whole, at the ends of a VMA, it maps by page tables of its own, as if
 * the file did not share. So does, everywhere, a VMA that asks for something that
 * a shared table cannot express. That makes a block's state a function of the VMA: of
 * its range, and of ptshare_vma.shares, which follows its flags. A change of a part
 * splits a VMA, cuts the blocks at the ends of that part, and no others; merging makes
 * them whole.
 *
 * Invariant B. In blocks that a VMA shares (ptshare_vma.start and end) its PMD entry
 * is empty, or a link, or points to a table of its own that is empty and that the
 * next fault takes away. Outside it is no link. Whoever changes what a VMA shares has
 * emptied the blocks before, and keeps page faults out meanwhile: mmap lock and VMA
 * lock for writing. Those are __ptshare_split(), __ptshare_merge(), set_shares().
 *
 * In the reverse mapping a VMA has the interval in which it has, or may get, tables
 * of its own (ptshare_own_first(), ptshare_own_last()), if any; blocks that it
 * shares are in ptshare.guests. Where the first interval includes some of the second,
 * because both ends are cut, walkers of the reverse mapping pass over them
 * (ptshare_shares()): they must not change an entry on behalf of one guest.
 *
 * Invariant L. A link exists only in a block of a guest that is in ptshare.guests.
 * Whoever takes the block from there has cleared its link and flushed before (B).
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
 *     i_mmap_rwsem of the file	ptshare.guests, and what VMAs share: written
 *				under this and both locks of the guest
 *       page table lock	links: the guest's PMD lock; entries: the
 *				table's own lock, the same for all
 */

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/interval_tree.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rbtree.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <asm/tlb.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

/* What a shared table cannot express; bits of protection are compared. */
#define PTSHARE_NEVER	(VM_HUGEPAGE | VM_HUGETLB | VM_IO | VM_PFNMAP | \
			 VM_MIXEDMAP | VM_GROWSDOWN | VM_UFFD_MISSING | \
			 VM_UFFD_WP | VM_UFFD_MINOR | MEMFD_VM_UFFD_RWP | \
			 MEMFD_VM_MAYBE_GUARD)

/* How many VMAs commit_merge() knows of. */
#define MERGED		4

static struct kmem_cache *ptshare_vma_cache;

/*
 * What shares
 */

/**
 * ptshare_may_share() - whether a shared table can express what is asked for
 * @flags: The flags that a mapping of a file with shared tables has, or is going to
 *	   have.
 *
 * Context: Any.
 * Return: True if so.
 */
bool ptshare_may_share(unsigned long flags)
{
	unsigned long class_flags = VM_READ | VM_SHARED | (flags & VM_WRITE);

	if (!(flags & VM_MAYSHARE) || !(flags & VM_READ) ||
	    (flags & PTSHARE_NEVER))
		return false;
	/* Entries have one set of bits: no execution, no protection keys. */
	return pgprot_val(vm_get_page_prot(flags)) ==
	       pgprot_val(vm_get_page_prot(class_flags));
}

/* Whether addresses and offsets in the file are on table boundaries together. */
static bool is_congruent(const struct vm_area_struct *vma)
{
	return !(((vma->vm_pgoff << PAGE_SHIFT) ^ vma->vm_start) & ~PMD_MASK);
}

/**
 * ptshare_blocks() - the blocks that a VMA maps as a whole
 * @vma: The VMA.
 * @start: Is set to the first address.
 * @end: Is set to the end, the same as @start if there are none.
 */
void ptshare_blocks(const struct vm_area_struct *vma, unsigned long *start,
		    unsigned long *end)
{
	pgoff_t limit = PTSHARE_SPAN >> PAGE_SHIFT;
	unsigned long first, last;

	*start = 0;
	*end = 0;
	if (vma->vm_pgoff >= limit || !is_congruent(vma))
		return;
	limit = (limit - vma->vm_pgoff) << PAGE_SHIFT;
	first = vma->vm_start;
	last = first + min(limit, vma->vm_end - first);
	if (!ptshare_rule(SPLIT)) {
		first = ALIGN_DOWN(first, PMD_SIZE);
		last = ALIGN(last, PMD_SIZE);
	}
	first = ALIGN(first, PMD_SIZE);
	last = ALIGN_DOWN(last, PMD_SIZE);
	if (first >= last)
		return;
	*start = first;
	*end = last;
}

/* A VMA with soft-dirty tracking has entries of its own. */
static bool soft_dirty_tracked(unsigned long flags)
{
	return IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) && !(flags & VM_SOFTDIRTY);
}

int __ptshare_mmap(struct vm_area_struct *vma,
		   const struct vm_operations_struct **ops, void **data)
{
	struct ptshare_vma *pv;

	if (!(vma->vm_flags & VM_MAYSHARE) || !ptshare_wanted(vma->vm_file))
		return 0;
	if (!ptshare_make(file_inode(vma->vm_file)))
		return -ENOMEM;
	pv = kmem_cache_zalloc(ptshare_vma_cache, GFP_KERNEL);
	if (!pv)
		return -ENOMEM;
	pv->vma = vma;
	pv->vm_ops = *ops;
	pv->shares = ptshare_may_share(vma->vm_flags);
	vma->vm_private_data = *data = pv;
	vma->vm_ops = *ops = &ptshare_guest_vm_ops[0];
	/* A signal is no reason for mmap() to fail, nor is memory for the notifier. */
	if (mm_has_notifiers(vma->vm_mm) && ptshare_rule(NOTIFIER) &&
	    ptshare_forward(vma)) {
		pv->never = true;
		pv->shares = false;
	}
	return 0;
}

const struct vm_operations_struct *
__ptshare_wrap(struct vm_area_struct *vma, const struct vm_operations_struct *ops)
{
	ptshare_vma(vma)->vm_ops = ops;
	return &ptshare_guest_vm_ops[1];
}

/**
 * ptshare_leave() - a shmem file is mapped for somebody who copies its operations
 * @vma: The new VMA, for which ptshare_mmap() was called. Not in the file's trees yet.
 *
 * It shares nothing, as if its file did not: it would be known by its operations. It gets
 * an open file description of its own, and so is merged with none that may share.
 *
 * Context: Sleeps. mmap lock for writing.
 * Return: 0 or -ENOMEM, -ENFILE. The VMA is ordinary in any case.
 */
int ptshare_leave(struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	struct file *file;

	if (!pv)
		return 0;
	vma->vm_ops = pv->vm_ops;
	vma->vm_private_data = NULL;
	kmem_cache_free(ptshare_vma_cache, pv);
	file = alloc_file_clone(vma->vm_file, vma->vm_file->f_flags,
				vma->vm_file->f_op);
	if (IS_ERR(file))
		return PTR_ERR(file);
	vma_set_file(vma, file);
	fput(file);
	return 0;
}
EXPORT_SYMBOL_GPL(ptshare_leave);	/* for Coda */

/**
 * ptshare_wrapped_open() - a VMA with operations around those of shmem is copied
 * @vma: The copy.
 *
 * Context: mmap lock for writing.
 */
void ptshare_wrapped_open(struct vm_area_struct *vma)
{
	ptshare_vma(vma)->vm_ops->open(vma);
}

/**
 * ptshare_wrapped_close() - a VMA with operations around those of shmem goes
 * @vma: The VMA, in no tree.
 *
 * What is known of it goes now: the caller takes away its operations.
 *
 * Context: mmap lock for writing, unless its address space has ended.
 */
void ptshare_wrapped_close(struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	vma->vm_ops = pv->vm_ops;
	kmem_cache_free(ptshare_vma_cache, pv);
	vma->vm_private_data = NULL;
	vma->vm_ops->close(vma);
}

int __ptshare_dup_vma(struct vm_area_struct *vma)
{
	struct ptshare_vma *old = ptshare_vma(vma);
	struct ptshare_vma *pv = kmem_cache_zalloc(ptshare_vma_cache,
						   GFP_KERNEL);

	if (!pv)
		return -ENOMEM;
	pv->vma = vma;
	pv->vm_ops = old->vm_ops;
	pv->shares = old->shares;
	pv->never = old->never;
	vma->vm_private_data = pv;
	return 0;
}

void __ptshare_free_vma(struct vm_area_struct *vma)
{
	kmem_cache_free(ptshare_vma_cache, ptshare_vma(vma));
}

/*
 * An address that has the same place in units of @size as the offset, so that at
 * least one of them is mapped as a whole; 0 if there is none.
 */
static unsigned long congruent_area(unsigned long hint, unsigned long offset,
				    unsigned long len, unsigned long flags,
				    unsigned long size)
{
	unsigned long wide;

	if (ALIGN(offset, size) - offset + size > len || len + size < len)
		return 0;
	wide = memfd_get_unmapped_area(hint, len + size - PAGE_SIZE, flags);
	if (IS_ERR_VALUE(wide))
		return 0;
	return wide + ((offset - wide) & (size - 1));
}

unsigned long __ptshare_unmapped_area(struct file *file, unsigned long addr,
				      unsigned long hint, unsigned long len,
				      unsigned long pgoff, unsigned long flags)
{
	unsigned long wide, offset = pgoff << PAGE_SHIFT;

	if (IS_ERR_VALUE(addr) || !ptshare_wanted(file))
		return addr;
	if ((flags & MAP_FIXED) || (flags & MAP_TYPE) == MAP_PRIVATE)
		return addr;
	/* Wishes are granted. */
	if (addr == hint || !((addr ^ offset) & ~PUD_MASK))
		return addr;
	wide = congruent_area(hint, offset, len, flags, PUD_SIZE);
	if (!wide && (addr ^ offset) & ~PMD_MASK)
		wide = congruent_area(hint, offset, len, flags, PMD_SIZE);
	return wide ?: addr;
}

/*
 * Trees
 */

/* Whether it has, or may get, page tables of its own. */
static bool has_own_tables(const struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	return pv->start != vma->vm_start || pv->end != vma->vm_end;
}

/* Adds a guest to those of its address space, as the first one or behind it. */
static void add_to_mm(struct ptshare *ps, struct ptshare_vma *pv)
{
	struct rb_node **link = &ps->by_mm.rb_node, *parent = NULL;

	INIT_LIST_HEAD(&pv->same_mm);
	RB_CLEAR_NODE(&pv->by_mm);
	while (*link) {
		struct ptshare_vma *first = rb_entry(*link, struct ptshare_vma,
						     by_mm);

		if (first->mm == pv->mm) {
			list_add(&pv->same_mm, &first->same_mm);
			return;
		}
		parent = *link;
		link = pv->mm < first->mm ? &parent->rb_left :
					    &parent->rb_right;
	}
	rb_link_node(&pv->by_mm, parent, link);
	rb_insert_color(&pv->by_mm, &ps->by_mm);
	list_add(&pv->mms, &ps->mms);
}

static void remove_from_mm(struct ptshare *ps, struct ptshare_vma *pv)
{
	struct ptshare_vma *next;

	if (!RB_EMPTY_NODE(&pv->by_mm)) {
		if (list_empty(&pv->same_mm)) {
			rb_erase(&pv->by_mm, &ps->by_mm);
			list_del(&pv->mms);
			return;
		}
		next = list_first_entry(&pv->same_mm, struct ptshare_vma,
					same_mm);
		rb_replace_node(&pv->by_mm, &next->by_mm, &ps->by_mm);
		list_replace(&pv->mms, &next->mms);
	}
	list_del(&pv->same_mm);
}

/*
 * A VMA has gone, or what it shared. Tables of its range are not needed any more if
 * it was the last one; nor are those of blocks that had been cut at its ends. A cut
 * alone does not give a table away: it may be undone before long.
 */
static void put_blocks(struct vm_area_struct *vma)
{
	pgoff_t first = ALIGN_DOWN(vma->vm_pgoff, PTRS_PER_PTE);
	pgoff_t last = ALIGN(vma->vm_pgoff + vma_pages(vma), PTRS_PER_PTE) - 1;

	last = min(last, (PTSHARE_SPAN >> PAGE_SHIFT) - 1);
	if (first < last)
		ptshare_guest_left(vma, first, last);
}

void __ptshare_insert(struct vm_area_struct *vma, struct address_space *mapping)
{
	struct ptshare *ps = ptshare_of(vma);
	struct ptshare_vma *pv = ptshare_vma(vma);

	i_mmap_assert_write_locked(mapping);
	pv->mm = vma->vm_mm;
	pv->start = 0;
	pv->end = 0;
	if (pv->shares)
		ptshare_blocks(vma, &pv->start, &pv->end);
	if (pv->start != pv->end) {
		pv->blocks.start = ptshare_offset(vma, pv->start) >> PAGE_SHIFT;
		pv->blocks.last = (ptshare_offset(vma, pv->end) >> PAGE_SHIFT) - 1;
		interval_tree_insert(&pv->blocks, &ps->guests);
		add_to_mm(ps, pv);
		WRITE_ONCE(ps->nr_guests, ps->nr_guests + 1);
		ptshare_guest_came(ps, vma);
	}
	if (has_own_tables(vma))
		memfd_rmap_insert(vma, mapping);
}

void __ptshare_remove(struct vm_area_struct *vma, struct address_space *mapping)
{
	struct ptshare *ps = ptshare_of(vma);
	struct ptshare_vma *pv = ptshare_vma(vma);

	i_mmap_assert_write_locked(mapping);
	if (has_own_tables(vma))
		memfd_rmap_remove(vma, mapping);
	if (pv->start == pv->end)
		return;
	interval_tree_remove(&pv->blocks, &ps->guests);
	remove_from_mm(ps, pv);
	WRITE_ONCE(ps->nr_guests, ps->nr_guests - 1);
}

void __ptshare_unlinked(struct vm_area_struct *vma)
{
	put_blocks(vma);
}

void __ptshare_dup(struct vm_area_struct *vma, struct address_space *mapping)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	bool shared = pv->shares;

	pv->never = soft_dirty_tracked(vma->vm_flags);
	pv->shares = !pv->never &&
		     ptshare_may_share(vma->vm_flags);
	__ptshare_insert(vma, mapping);
	if (!shared && pv->start != pv->end)
		count_vm_event(PTSHARE_SHARE);
}

struct vm_area_struct *__ptshare_first_guest(struct address_space *mapping,
					     pgoff_t first, pgoff_t last)
{
	struct ptshare *ps = ptshare_of_inode(mapping->host);
	struct interval_tree_node *node;

	if (!ps)
		return NULL;
	node = interval_tree_iter_first(&ps->guests, first, last);
	return node ? container_of(node, struct ptshare_vma, blocks)->vma : NULL;
}

/**
 * ptshare_next_guest() - the next guest that maps a range of a file
 * @guest: The guest before.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: i_mmap_rwsem.
 * Return: A guest, or NULL if there is no other.
 */
struct vm_area_struct *ptshare_next_guest(struct vm_area_struct *guest,
					  pgoff_t first, pgoff_t last)
{
	struct interval_tree_node *node;

	node = interval_tree_iter_next(&ptshare_vma(guest)->blocks, first, last);
	return node ? container_of(node, struct ptshare_vma, blocks)->vma : NULL;
}

/*
 * Changes
 */

/*
 * Frees what is left of a VMA's own tables in blocks that it shares from now on.
 * i_mmap_rwsem is held for writing, and keeps away those who walk them because the
 * VMA is cut at both ends, and so is in the reverse mapping with all between.
 */
static void free_own_tables(struct mm_struct *mm, unsigned long start,
			    unsigned long end)
{
	struct mmu_gather tlb;

	if (start == end)
		return;
	tlb_gather_mmu(&tlb, mm);
	free_pgd_range(&tlb, start, end, start, end);
	tlb_finish_mmu(&tlb);
}

/*
 * Lets an ordinary VMA share, or makes one that shares ordinary. Either way it has
 * no entries then where it changed; the next access makes them, or links. It has
 * none meanwhile, and nobody can make any: no fault, because its lock is held, and
 * no walk of the reverse mapping, because none is left to be changed. If entries are
 * left that say that the memory is poisoned it stays ordinary, so that they are
 * not lost.
 */
static void set_shares(struct vm_area_struct *vma, bool shares,
		       enum ptshare_reason reason)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	struct ptshare_vma *pv = ptshare_vma(vma);
	unsigned long start, end;

	if (shares)
		ptshare_delay(SHARE);
	vma_start_write(vma);
	/* MADV_GUARD_INSTALL sets the flag with the VMA lock alone. */
	if (shares && (vma->vm_flags & MEMFD_VM_MAYBE_GUARD) &&
	    ptshare_rule(GUARDS)) {
		pv->never = true;
		return;
	}
	ptshare_blocks(vma, &start, &end);
	if (!shares) {
		ptshare_unlink_notify(vma, start, end, reason);
	} else if (!ptshare_drop_entries(vma, start, end)) {
		pv->never = true;
		return;
	}
	i_mmap_lock_write(mapping);
	__ptshare_remove(vma, mapping);
	if (shares)
		free_own_tables(vma->vm_mm, start, end);
	pv->shares = shares;
	__ptshare_insert(vma, mapping);
	if (!shares)
		put_blocks(vma);
	i_mmap_unlock_write(mapping);
	ptshare_dropped(vma, start, end);
	if (!shares)
		ptshare_count_unshare(vma, start, end, reason);
	else if (start != end)
		count_vm_event(PTSHARE_SHARE);
}

/* Why a mapping that has shared does not any more if it gets these flags. */
static enum ptshare_reason reason_of(const struct ptshare_vma *pv,
				     unsigned long flags)
{
	if (flags & (VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR |
		     MEMFD_VM_UFFD_RWP))
		return PTSHARE_BY_USERFAULTFD;
	if (flags & VM_HUGEPAGE)
		return PTSHARE_BY_HUGEPAGE;
	if (flags & MEMFD_VM_MAYBE_GUARD)
		return PTSHARE_BY_GUARD;
	return pv->never ? PTSHARE_BY_SOFT_DIRTY : PTSHARE_BY_ACCESS;
}

/*
 * The caller takes the VMA's flags from one set to the other next. For a guest
 * that stays one it calls ptshare_change_protection() if bits of entries change.
 */
void __ptshare_modify(struct vm_area_struct *vma, unsigned long flags)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	bool may;

	/* It was merged with one that is tracked. */
	if (soft_dirty_tracked(flags) && ptshare_rule(SOFT_DIRTY))
		pv->never = true;
	may = !pv->never && ptshare_may_share(flags);
	if (may == pv->shares || (!may && !ptshare_rule(MODIFY)))
		return;
	set_shares(vma, may, reason_of(pv, flags));
}

void __ptshare_unshare_soft_dirty(struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	if (!ptshare_rule(SOFT_DIRTY))
		return;
	pv->never = true;
	if (pv->shares)
		set_shares(vma, false, PTSHARE_BY_SOFT_DIRTY);
}

/**
 * ptshare_unshare_range() - VMAs are about to get entries that are a process's own
 * @mm: The address space.
 * @start: First address.
 * @end: End.
 *
 * They get page tables of their own, and never share again.
 *
 * Context: Sleeps. No locks.
 * Return: 0 or -EINTR.
 */
int ptshare_unshare_range(struct mm_struct *mm, unsigned long start,
			  unsigned long end)
{
	VMA_ITERATOR(vmi, mm, start);
	struct vm_area_struct *vma;

	if (mmap_write_lock_killable(mm))
		return -EINTR;
	for_each_vma_range(vmi, vma, end) {
		if (!ptshare_may_link(vma))
			continue;
		ptshare_vma(vma)->never = true;
		set_shares(vma, false, PTSHARE_BY_GUARD);
	}
	mmap_write_unlock(mm);
	return 0;
}

void __ptshare_split(struct vm_area_struct *vma, unsigned long addr)
{
	bool cuts_block = !IS_ALIGNED(addr, PMD_SIZE);
	bool cuts_gib = !IS_ALIGNED(addr, PUD_SIZE) &&
			ptshare_whole_gib(vma, addr);

	if (!ptshare_shares(vma, addr) || !ptshare_rule(SPLIT) ||
	    (!cuts_block && !cuts_gib))
		return;
	vma_start_write(vma);
	ptshare_unlink_notify(vma, addr, addr + 1, PTSHARE_BY_SPLIT);
	if (!cuts_block)
		return;
	ptshare_cut(vma, addr, addr + 1);
	ptshare_count_unshare(vma, ALIGN_DOWN(addr, PMD_SIZE),
			      ALIGN(addr, PMD_SIZE), PTSHARE_BY_SPLIT);
}

/*
 * A part of a VMA becomes another one's. If one of them shares, and the other does
 * not, nothing is left in it that the other could not have.
 */
static bool hand_over(struct vm_area_struct *from, struct vm_area_struct *to,
		      unsigned long start, unsigned long end)
{
	bool shares = ptshare_vma(to)->shares;

	if (ptshare_vma(from)->shares == shares)
		return true;
	if (shares) {
		ptshare_dropped(from, start, end);
		return ptshare_drop_entries(from, start, end);
	}
	ptshare_unlink_notify(from, start, end, PTSHARE_BY_MERGE);
	ptshare_cut(from, start, end);
	ptshare_count_unshare(from, start, end, PTSHARE_BY_MERGE);
	return true;
}

/*
 * VMAs that are merged met in a block. If it is going to be shared then it must be
 * empty. A table that is left is replaced by the next fault.
 */
static bool join_block(struct vm_area_struct **vmas, unsigned long block)
{
	unsigned long end = block + PMD_SIZE;
	bool empty = true;

	for (int i = 0; i < MERGED; i++) {
		unsigned long first, last;

		if (!vmas[i])
			continue;
		first = max(block, vmas[i]->vm_start);
		last = min(end, vmas[i]->vm_end);
		if (first >= last)
			continue;
		empty &= ptshare_drop_entries(vmas[i], first, last);
		ptshare_dropped(vmas[i], first, last);
	}
	if (empty)
		count_vm_event(PTSHARE_SHARE);
	return empty;
}

/*
 * VMAs become one with the range from @start to @end. At most three do, so where they
 * met, or one of them met a hole, are two blocks at most.
 */
static bool join_blocks(struct vm_area_struct **vmas, unsigned long start,
			unsigned long end)
{
	unsigned long joined[2] = { ULONG_MAX, ULONG_MAX };
	unsigned int nr = 0;
	bool empty = true;

	for (int i = 0; i < 2 * MERGED; i++) {
		struct vm_area_struct *vma = vmas[i / 2];
		unsigned long addr, block;

		if (!vma)
			continue;
		addr = i % 2 ? vma->vm_end : vma->vm_start;
		block = ALIGN_DOWN(addr, PMD_SIZE);
		if (addr == block || block < start || block + PMD_SIZE > end ||
		    block == joined[0] || block == joined[1])
			continue;
		empty &= join_block(vmas, block);
		joined[nr++ % 2] = block;
	}
	return empty;
}

/*
 * Where VMAs met, or one of them met a hole, a GiB may be whole now, and links to it by
 * a PUD entry from now on: PMD tables that they have there are given up. Nothing is in
 * them but links, and tables without entries.
 */
static void join_gib(struct vm_area_struct **vmas, struct vm_area_struct *to,
		     unsigned long gib)
{
	struct address_space *mapping = to->vm_file->f_mapping;
	unsigned long addr = gib;

	if (!ptshare_next_pud(to->vm_mm, &addr, gib + 1))
		return;
	for (int i = 0; i < MERGED; i++)
		if (vmas[i])
			ptshare_unlink_notify(vmas[i], gib, gib + PUD_SIZE,
					      PTSHARE_BY_MERGE);
	i_mmap_lock_write(mapping);
	free_own_tables(to->vm_mm, gib, gib + PUD_SIZE);
	i_mmap_unlock_write(mapping);
}

static void join_gibs(struct vm_area_struct **vmas, struct vm_area_struct *to,
		      unsigned long start, unsigned long end)
{
	/* Offsets have the same place in GiBs as addresses. */
	if (((to->vm_pgoff << PAGE_SHIFT) ^ to->vm_start) & ~PUD_MASK)
		return;
	for (int i = 0; i < 2 * MERGED; i++) {
		struct vm_area_struct *vma = vmas[i / 2];
		unsigned long addr, gib;

		if (!vma)
			continue;
		addr = i % 2 ? vma->vm_end : vma->vm_start;
		gib = ALIGN_DOWN(addr, PUD_SIZE);
		if (addr != gib && gib >= start && gib + PUD_SIZE <= end)
			join_gib(vmas, to, gib);
	}
}

/*
 * VMAs with guard regions are merged with others, and what comes of it may have
 * them. Their markers are entries that must not be lost.
 */
static bool may_have_guards(struct vm_area_struct **vmas, unsigned long flags)
{
	for (int i = 0; i < MERGED; i++)
		if (vmas[i])
			flags |= vmas[i]->vm_flags;
	return flags & MEMFD_VM_MAYBE_GUARD;
}

/* VMAs that are merged have page tables of their own only from now on. */
static void merge_ordinary(struct vm_area_struct **vmas,
			   struct vm_area_struct *to)
{
	for (int i = 0; i < MERGED; i++) {
		struct vm_area_struct *vma = vmas[i];

		if (!vma)
			continue;
		ptshare_unlink_notify(vma, vma->vm_start, vma->vm_end,
				      PTSHARE_BY_MERGE);
		if (ptshare_vma(vma)->shares)
			ptshare_count_unshare(vma, vma->vm_start, vma->vm_end,
					      PTSHARE_BY_MERGE);
		ptshare_cut(vma, vma->vm_start, vma->vm_end);
	}
	ptshare_vma(to)->shares = false;
	ptshare_vma(to)->never = true;
}

void __ptshare_merge(struct vm_area_struct *vma, struct vm_area_struct *adjust,
		     struct vm_area_struct *remove,
		     struct vm_area_struct *remove2, unsigned long start,
		     unsigned long end, unsigned long flags)
{
	struct vm_area_struct *vmas[MERGED] = { vma, adjust, remove, remove2 };
	struct vm_area_struct *to = vma;
	bool grows = adjust && end < adjust->vm_start;
	bool empty = true;

	if (may_have_guards(vmas, flags)) {
		merge_ordinary(vmas, grows ? adjust : vma);
		return;
	}
	if (grows) {
		to = adjust;
		start = end;
		end = adjust->vm_end;
		empty &= hand_over(vma, to, start, vma->vm_end);
		ptshare_split(vma, start);
	} else if (adjust) {
		empty &= hand_over(adjust, to, adjust->vm_start, end);
		ptshare_split(adjust, end);
	}
	if (remove)
		empty &= hand_over(remove, to, remove->vm_start, remove->vm_end);
	if (remove2)
		empty &= hand_over(remove2, to, remove2->vm_start,
				   remove2->vm_end);
	if (!ptshare_vma(to)->shares || !is_congruent(to))
		return;
	empty &= join_blocks(vmas, start, end);
	if (empty) {
		join_gibs(vmas, to, start, end);
		return;
	}
	/* Something is left that no table of the file can have. */
	merge_ordinary(vmas, to);
}

bool __ptshare_move(struct vm_area_struct *vma, unsigned long addr,
		    struct vm_area_struct *new_vma, unsigned long len)
{
	if (!ptshare_vma(vma)->shares && !ptshare_vma(new_vma)->shares)
		return false;
	if (ptshare_guest(vma))
		ptshare_unlink(vma, addr, addr + len, true);
	memfd_zap_range(vma, addr, len, NULL);
	ptshare_dropped(new_vma, new_vma->vm_start, new_vma->vm_end);
	if (ptshare_guest(vma) && !ptshare_guest(new_vma))
		ptshare_count_unshare(vma, addr, addr + len, PTSHARE_BY_MOVE);
	else if (!ptshare_guest(vma) && ptshare_guest(new_vma))
		count_vm_event(PTSHARE_SHARE);
	return true;
}

static int __init ptshare_vma_init(void)
{
	ptshare_vma_cache = KMEM_CACHE(ptshare_vma, SLAB_PANIC | SLAB_ACCOUNT);
	return 0;
}
subsys_initcall(ptshare_vma_init);
