/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shared page tables of memfds: what core kernel code calls.
 *
 * See Documentation/mm/ptshare.rst for the list of places and why each is one.
 */
#ifndef _LINUX_PTSHARE_H
#define _LINUX_PTSHARE_H

#include <linux/interval_tree.h>
#include <linux/list.h>
#include <linux/memfd_compat.h>
#include <linux/mm.h>
#include <linux/ptshare_types.h>
#include <linux/rbtree.h>
#include <linux/vmstat.h>

struct mmu_gather;
struct seq_file;

/**
 * typedef ptshare_fault_fn - __handle_mm_fault()
 * @vma: The VMA.
 * @address: Where the fault is.
 * @flags: FAULT_FLAG_*.
 */
typedef vm_fault_t (ptshare_fault_fn)(struct vm_area_struct *vma,
				      unsigned long address,
				      unsigned int flags);

#ifdef CONFIG_PTSHARE

/**
 * enum ptshare_mount - the option ptshare= of a tmpfs
 * @PTSHARE_MOUNT_UNSET: Nobody has said anything: as NEVER.
 * @PTSHARE_MOUNT_NEVER: Its files share only if they are memfds that ask for it.
 * @PTSHARE_MOUNT_ALWAYS: Files that are made from now on share.
 */
enum ptshare_mount {
	PTSHARE_MOUNT_UNSET,
	PTSHARE_MOUNT_NEVER,
	PTSHARE_MOUNT_ALWAYS,
};

/* The first for most VMAs, the second for those with operations around them. */
extern const struct vm_operations_struct ptshare_guest_vm_ops[2];
extern const struct vm_operations_struct ptshare_host_vm_ops;

/**
 * struct ptshare_vma - a shared mapping of a file with shared page tables
 * @mms: In ptshare.mms, if it is the first of @mm. It comes first because flushes
 *	 go over thousands.
 * @vm_ops: The operations that the VMA would have if its file did not share.
 * @vma: The VMA, whose vm_private_data points here. It has the same lifetime.
 * @mm: The address space of @vma, while it is in the trees.
 * @start: First address of the blocks that it shares. Like all that follows,
 *	   written with the VMA locked for writing and under i_mmap_rwsem, and read
 *	   with one of them.
 * @end: Their end. The same as @start if there are none.
 * @shares: What a shared table cannot express is not asked for.
 * @never: It must not share again.
 * @blocks: In ptshare.guests, at the page offsets from @start to @end.
 * @by_mm: In ptshare.by_mm, if it is the first of @mm.
 * @same_mm: All of @mm and its file, in a ring.
 */
struct ptshare_vma {
	struct list_head mms;
	const struct vm_operations_struct *vm_ops;
	struct vm_area_struct *vma;
	struct mm_struct *mm;
	unsigned long start;
	unsigned long end;
	bool shares;
	bool never;
	struct interval_tree_node blocks;
	struct rb_node by_mm;
	struct list_head same_mm;
};

/**
 * ptshare_vma() - what is known of a shared mapping of a file that shares
 * @vma: The VMA.
 *
 * Context: Any in which @vma may be looked at.
 * Return: NULL if it is none. Costs nothing until somebody asks for shared page
 * tables.
 */
static inline struct ptshare_vma *ptshare_vma(const struct vm_area_struct *vma)
{
	if (!static_branch_unlikely(&ptshare_used) ||
	    (unsigned long)vma->vm_ops - (unsigned long)ptshare_guest_vm_ops >=
	    sizeof(ptshare_guest_vm_ops))
		return NULL;
	return vma->vm_private_data;
}

/**
 * ptshare_guest() - whether a VMA links to page tables of its file
 * @vma: The VMA.
 *
 * Return: True if there are blocks that it shares.
 */
static inline bool ptshare_guest(const struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	return pv && pv->start != pv->end;
}

/**
 * ptshare_may_link() - whether a VMA would link to page tables of its file
 * @vma: The VMA.
 *
 * Return: True if so, for blocks that it has, or gets when it is merged.
 */
static inline bool ptshare_may_link(const struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	return pv && pv->shares;
}

/**
 * ptshare_shares() - whether an address is in a block that its VMA shares
 * @vma: The VMA.
 * @addr: The address.
 *
 * Context: The lock of @vma, or i_mmap_rwsem of its file.
 * Return: True if so. Its page table, if there is one, is not the VMA's own.
 */
static inline bool ptshare_shares(const struct vm_area_struct *vma,
				  unsigned long addr)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	return pv && addr >= pv->start && addr < pv->end;
}

/**
 * ptshare_host() - whether a VMA stands for all processes that link to its tables
 * @vma: The VMA.
 *
 * Return: True if so.
 */
static inline bool ptshare_host(const struct vm_area_struct *vma)
{
	return static_branch_unlikely(&ptshare_used) &&
	       vma->vm_ops == &ptshare_host_vm_ops;
}

/**
 * ptshare_vm_ops() - the operations that a VMA has, or had if its file did not share
 * @vma: The VMA.
 *
 * Return: The operations that tell what kind of file it maps.
 */
static inline const struct vm_operations_struct *
ptshare_vm_ops(const struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	if (pv)
		return pv->vm_ops;
	return ptshare_host(vma) ? vma->vm_private_data : vma->vm_ops;
}

/**
 * ptshare_own_first() - the first page that a VMA maps by page tables of its own
 * @vma: The VMA.
 *
 * In the reverse mapping a VMA is found where it has tables of its own. If those are
 * at both ends, also between them: see ptshare_shares().
 *
 * Return: A page offset in its file.
 */
static inline pgoff_t ptshare_own_first(const struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	if (pv && pv->start == vma->vm_start)
		return vma->vm_pgoff + ((pv->end - pv->start) >> PAGE_SHIFT);
	return vma->vm_pgoff;
}

/**
 * ptshare_own_last() - the last page that a VMA maps by page tables of its own
 * @vma: The VMA.
 *
 * Return: A page offset in its file.
 */
static inline pgoff_t ptshare_own_last(const struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	unsigned long end = vma->vm_end;

	if (pv && pv->start != pv->end && pv->end == end)
		end = pv->start;
	return vma->vm_pgoff + ((end - vma->vm_start) >> PAGE_SHIFT) - 1;
}

/* mm/ptshare.c */
int __ptshare_mmap(struct vm_area_struct *vma,
		   const struct vm_operations_struct **ops, void **data);
const struct vm_operations_struct *
__ptshare_wrap(struct vm_area_struct *vma,
	       const struct vm_operations_struct *ops);
void ptshare_wrapped_open(struct vm_area_struct *vma);
void ptshare_wrapped_close(struct vm_area_struct *vma);
int ptshare_leave(struct vm_area_struct *vma);
int __ptshare_dup_vma(struct vm_area_struct *vma);
void __ptshare_free_vma(struct vm_area_struct *vma);
unsigned long __ptshare_unmapped_area(struct file *file, unsigned long addr,
				      unsigned long hint, unsigned long len,
				      unsigned long pgoff, unsigned long flags);
void __ptshare_insert(struct vm_area_struct *vma, struct address_space *mapping);
void __ptshare_remove(struct vm_area_struct *vma, struct address_space *mapping);
void __ptshare_unlinked(struct vm_area_struct *vma);
void __ptshare_dup(struct vm_area_struct *vma, struct address_space *mapping);
void __ptshare_split(struct vm_area_struct *vma, unsigned long addr);
void __ptshare_merge(struct vm_area_struct *vma, struct vm_area_struct *adjust,
		     struct vm_area_struct *remove,
		     struct vm_area_struct *remove2, unsigned long start,
		     unsigned long end, unsigned long flags);
void __ptshare_modify(struct vm_area_struct *vma, unsigned long flags);
bool __ptshare_move(struct vm_area_struct *vma, unsigned long addr,
		    struct vm_area_struct *new_vma, unsigned long len);
void __ptshare_unshare_soft_dirty(struct vm_area_struct *vma);
int ptshare_unshare_range(struct mm_struct *mm, unsigned long start,
			  unsigned long end);
struct vm_area_struct *__ptshare_first_guest(struct address_space *mapping,
					     pgoff_t first, pgoff_t last);
struct vm_area_struct *ptshare_next_guest(struct vm_area_struct *guest,
					  pgoff_t first, pgoff_t last);

/* mm/shmem.c */
vm_fault_t ptshare_falloc_wait(struct vm_fault *vmf);
struct vfsmount *ptshare_kernel_mount(void);

/* mm/ptshare_link.c */
void ptshare_unlink(struct vm_area_struct *vma, unsigned long start,
		    unsigned long end, bool unmap);
bool __ptshare_change_protection(struct vm_area_struct *vma,
				 unsigned long start, unsigned long end,
				 bool numa);
void __ptshare_unlock(struct vm_area_struct *vma);
void __ptshare_change_lock(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end);

/* mm/ptshare_table.c */
vm_fault_t ptshare_fault(struct vm_area_struct *vma, unsigned long address,
			 unsigned int flags, ptshare_fault_fn *fault);
bool __ptshare_no_retract(void);
bool __ptshare_no_collapse(void);

/* mm/ptshare_protect.c */
unsigned long __ptshare_protect_tables(struct vm_area_struct *vma, pmd_t *pmd,
				       unsigned long addr, unsigned long end,
				       struct mmu_gather *tlb);
bool __ptshare_denies(bool fast);

/* mm/ptshare_mount.c */
bool ptshare_possible(void);
bool ptshare_param_valid(unsigned int value);
void ptshare_show_mount(struct seq_file *m, unsigned int value);
void __ptshare_new_file(struct inode *inode);
void __ptshare_new_kernel_file(struct inode *inode);
void ptshare_new_memfd(struct file *file, unsigned int flags);

/* mm/ptshare_notify.c */
int __ptshare_notifies(struct mm_struct *mm);

/* mm/ptshare_account.c */
unsigned long __ptshare_mm_pages(struct mm_struct *mm);
unsigned int __ptshare_links(const struct vm_area_struct *vma,
			     unsigned long addr);
bool __ptshare_shared(struct vm_area_struct *vma, unsigned long addr);
bool __ptshare_private(void);
pte_t __ptshare_shown_pte(pte_t pte);
pmd_t __ptshare_shown_pmd(pmd_t pmd);

/* mm/ptshare_host.c */
void __ptshare_exit_mmap(struct mm_struct *mm);
void __ptshare_new_table(struct ptshare *ps, pgtable_t table,
			 unsigned int pages);
void ptshare_evict(struct inode *inode);
void ptshare_show_fdinfo(struct seq_file *m, struct file *file);
bool __ptshare_all_cgroups(void);
struct mm_struct *__ptshare_fault_mm(struct vm_area_struct *vma);
struct mm_struct *__ptshare_charge_mm(struct vm_area_struct *vma);

/**
 * ptshare_new_table() - a page table is about to come into an address space
 * @mm: The address space.
 * @table: The table.
 * @pages: How many pages it maps.
 *
 * If it is one that processes will share it begins to be counted.
 *
 * Context: The lock of the PMD table.
 */
static inline void ptshare_new_table(struct mm_struct *mm, pgtable_t table,
				     unsigned int pages)
{
	if (static_branch_unlikely(&ptshare_used) && mm->ptshare)
		__ptshare_new_table(mm->ptshare, table, pages);
}

/**
 * ptshare_new_file() - a shmem file has been made
 * @inode: It, of which nobody knows yet.
 *
 * It shares page tables if its mount says so, and that is not the kernel's own.
 */
static inline void ptshare_new_file(struct inode *inode)
{
	if (static_branch_unlikely(&ptshare_used))
		__ptshare_new_file(inode);
}

/**
 * ptshare_new_kernel_file() - the kernel has made a shmem file for itself
 * @inode: It, of which nobody knows yet.
 *
 * If it is private, which SysV and anonymous shared memory is, and files of drivers are
 * not, it shares page tables if the kernel's mount says so.
 */
static inline void ptshare_new_kernel_file(struct inode *inode)
{
	if (static_branch_unlikely(&ptshare_used))
		__ptshare_new_kernel_file(inode);
}

/**
 * ptshare_mmap() - a file is mapped
 * @vma: The new VMA, its file set. Not in the file's trees yet.
 * @ops: The operations that it is to have.
 * @data: Its private data.
 *
 * It shares what it can if its file does. Then it gets operations and data of its
 * own, at once, and who is going to set them is told.
 *
 * Context: mmap lock for writing.
 * Return: 0 or -ENOMEM.
 */
static inline int ptshare_mmap(struct vm_area_struct *vma,
			       const struct vm_operations_struct **ops,
			       void **data)
{
	return static_branch_unlikely(&ptshare_used) ?
	       __ptshare_mmap(vma, ops, data) : 0;
}

/**
 * ptshare_wrap() - a shmem file is mapped for somebody who has operations of his own
 * @vma: The new VMA, for which ptshare_mmap() was called.
 * @ops: The operations that it would have, whose open() and close() are called.
 *
 * Context: mmap lock for writing.
 * Return: The operations that it is to have.
 */
static inline const struct vm_operations_struct *
ptshare_wrap(struct vm_area_struct *vma, const struct vm_operations_struct *ops)
{
	return ptshare_vma(vma) ? __ptshare_wrap(vma, ops) : ops;
}

/**
 * ptshare_dup_vma() - a VMA is a copy of another one
 * @vma: The copy.
 *
 * Context: May sleep. mmap lock for writing.
 * Return: 0 or -ENOMEM.
 */
static inline int ptshare_dup_vma(struct vm_area_struct *vma)
{
	return ptshare_vma(vma) ? __ptshare_dup_vma(vma) : 0;
}

/**
 * ptshare_free_vma() - a VMA is about to be freed
 * @vma: The VMA, in no tree.
 */
static inline void ptshare_free_vma(struct vm_area_struct *vma)
{
	if (ptshare_vma(vma))
		__ptshare_free_vma(vma);
}

/**
 * ptshare_unmapped_area() - choose an address at which tables can be shared
 * @file: The shmem file, or NULL.
 * @addr: The address that was chosen without regard to that, or an error.
 * @hint: The address that the caller asked for.
 * @len: Length in bytes.
 * @pgoff: Offset in the file, in pages.
 * @flags: MAP_*.
 *
 * Context: mmap lock.
 * Return: An address, @addr if there is none that is better, or an error.
 */
static inline unsigned long
ptshare_unmapped_area(struct file *file, unsigned long addr,
		      unsigned long hint, unsigned long len,
		      unsigned long pgoff, unsigned long flags)
{
	if (!static_branch_unlikely(&ptshare_used))
		return addr;
	return __ptshare_unmapped_area(file, addr, hint, len, pgoff, flags);
}

/**
 * ptshare_i_mmap_insert() - a VMA comes into the trees of its file
 * @vma: The VMA.
 * @mapping: Its file's.
 *
 * It is in the reverse mapping where it has page tables of its own, and in the
 * tree of guests where it shares: there the host stands for it.
 *
 * Context: i_mmap_rwsem of @mapping for writing.
 */
static inline void ptshare_i_mmap_insert(struct vm_area_struct *vma,
					 struct address_space *mapping)
{
	if (ptshare_vma(vma))
		__ptshare_insert(vma, mapping);
	else
		memfd_rmap_insert(vma, mapping);
}

/**
 * ptshare_i_mmap_remove() - a VMA leaves the trees of its file
 * @vma: The VMA. It has the range with which it came in.
 * @mapping: Its file's.
 *
 * Context: i_mmap_rwsem of @mapping for writing.
 */
static inline void ptshare_i_mmap_remove(struct vm_area_struct *vma,
					 struct address_space *mapping)
{
	if (ptshare_vma(vma))
		__ptshare_remove(vma, mapping);
	else
		memfd_rmap_remove(vma, mapping);
}

/**
 * ptshare_unlinked() - a VMA has left the trees of its file for good
 * @vma: The VMA. It links to no table any more.
 *
 * Context: i_mmap_rwsem for writing.
 */
static inline void ptshare_unlinked(struct vm_area_struct *vma)
{
	if (ptshare_vma(vma))
		__ptshare_unlinked(vma);
}

/**
 * ptshare_dup() - fork() copies a VMA
 * @vma: The child's VMA, in no tree yet.
 * @mapping: Its file's.
 *
 * What kept the parent from sharing may not concern the child.
 *
 * Context: i_mmap_rwsem for writing, mmap lock of @vma for writing.
 * Return: True if it is in its trees now.
 */
static inline bool ptshare_dup(struct vm_area_struct *vma,
			       struct address_space *mapping)
{
	if (!ptshare_vma(vma))
		return false;
	__ptshare_dup(vma, mapping);
	return true;
}

/**
 * ptshare_split() - a VMA is about to be split
 * @vma: The VMA.
 * @addr: Where.
 *
 * The block that is cut becomes an ordinary one.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_split(struct vm_area_struct *vma, unsigned long addr)
{
	if (ptshare_guest(vma))
		__ptshare_split(vma, addr);
}

/**
 * ptshare_merge() - VMAs are about to be merged, as commit_merge() is told
 * @vma: The VMA that is going to have the range.
 * @adjust: Its neighbour whose start is going to be @end.
 * @remove: The VMA that is merged into @vma.
 * @remove2: The one behind that.
 * @start: Begin of the range.
 * @end: End of the range.
 * @flags: The flags of what is merged, some of which last.
 *
 * Blocks that become whole lose the entries of their own, to be shared.
 *
 * Context: mmap lock, and lock of each VMA, for writing.
 */
static inline void ptshare_merge(struct vm_area_struct *vma,
				 struct vm_area_struct *adjust,
				 struct vm_area_struct *remove,
				 struct vm_area_struct *remove2,
				 unsigned long start, unsigned long end,
				 unsigned long flags)
{
	if (ptshare_vma(vma))
		__ptshare_merge(vma, adjust, remove, remove2, start, end,
				flags);
}

/**
 * ptshare_modify() - a VMA is about to get other flags
 * @vma: The VMA, split and merged as needed.
 * @flags: The flags that the caller is going to give it.
 *
 * It shares if a shared table can express them.
 *
 * Context: mmap lock for writing.
 * Return: @vma.
 */
static inline struct vm_area_struct *
ptshare_modify(struct vm_area_struct *vma, unsigned long flags)
{
	if (ptshare_vma(vma))
		__ptshare_modify(vma, flags);
	return vma;
}

/**
 * ptshare_move() - mremap() is about to move page-table entries
 * @vma: The VMA that has them.
 * @addr: First address.
 * @new_vma: The VMA that is going to have them.
 * @len: Length of the range.
 *
 * Where one of them shares they are dropped instead.
 *
 * Context: mmap lock for writing.
 * Return: True if none are left to be moved.
 */
static inline bool ptshare_move(struct vm_area_struct *vma, unsigned long addr,
				struct vm_area_struct *new_vma,
				unsigned long len)
{
	return ptshare_vma(vma) && __ptshare_move(vma, addr, new_vma, len);
}

/**
 * ptshare_unshare_soft_dirty() - a VMA is about to be tracked by soft-dirty bits
 * @vma: The VMA, VM_SOFTDIRTY still set.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_unshare_soft_dirty(struct vm_area_struct *vma)
{
	if (ptshare_vma(vma))
		__ptshare_unshare_soft_dirty(vma);
}

/**
 * ptshare_notifies() - a process is about to get an MMU notifier
 * @mm: Its address space.
 *
 * It will be told of changes of the shared tables that it links to.
 *
 * Context: mmap lock for writing.
 * Return: 0 or an error of mmu_notifier_register().
 */
static inline int ptshare_notifies(struct mm_struct *mm)
{
	return static_branch_unlikely(&ptshare_used) ?
	       __ptshare_notifies(mm) : 0;
}

/**
 * ptshare_change_protection() - a VMA's entries are to be changed
 * @vma: The VMA.
 * @start: First address.
 * @end: End.
 * @numa: For NUMA balancing, which has no business in shared tables.
 *
 * Its links are cleared: the next access links to the right table. What is left to
 * be changed is its own.
 *
 * Context: mmap lock, for writing if not @numa.
 * Return: True if there is nothing left to be done.
 */
static inline bool ptshare_change_protection(struct vm_area_struct *vma,
					     unsigned long start,
					     unsigned long end, bool numa)
{
	return ptshare_guest(vma) &&
	       __ptshare_change_protection(vma, start, end, numa);
}

/**
 * ptshare_change_lock() - a VMA has become locked in memory, or is not any more
 * @vma: The VMA, with its new flags.
 * @start: First address.
 * @end: End.
 *
 * Its links are cleared: the next access links to tables whose pages are locked,
 * or are not. What is left to be locked or unlocked is its own.
 *
 * Context: May sleep. mmap lock and VMA lock for writing.
 */
static inline void ptshare_change_lock(struct vm_area_struct *vma,
				       unsigned long start, unsigned long end)
{
	if (ptshare_guest(vma))
		__ptshare_change_lock(vma, start, end);
}

/**
 * ptshare_unlock() - a VMA is about to be locked in memory no more, its pages moved away
 * @vma: The VMA, with its old flags.
 *
 * Pages that nobody else locks are unlocked before the task returns to user mode.
 *
 * Context: May sleep. mmap lock for writing.
 */
static inline void ptshare_unlock(struct vm_area_struct *vma)
{
	if ((vma->vm_flags & VM_LOCKED) && ptshare_guest(vma))
		__ptshare_unlock(vma);
}

/**
 * ptshare_no_pmd() - whether a VMA must not have huge entries
 * @vma: The VMA.
 *
 * Tables of locked memory have small ones only.
 *
 * Return: True if so.
 */
static inline bool ptshare_no_pmd(const struct vm_area_struct *vma)
{
	return ptshare_host(vma) && (vma->vm_flags & VM_LOCKED);
}

/**
 * ptshare_no_retract() - whether khugepaged must leave the tables of a VMA alone
 * @vma: The VMA.
 *
 * Return: True if so: others link to them, or it links to others'.
 */
static inline bool ptshare_no_retract(const struct vm_area_struct *vma)
{
	return (ptshare_host(vma) || ptshare_guest(vma)) &&
	       __ptshare_no_retract();
}

/**
 * ptshare_no_collapse() - whether a VMA's tables must not give way to huge entries
 * @vma: The VMA.
 *
 * Return: True if so: they are not its own.
 */
static inline bool ptshare_no_collapse(const struct vm_area_struct *vma)
{
	return ptshare_guest(vma) && __ptshare_no_collapse();
}

/**
 * ptshare_all_cgroups() - whether accessed bits count for any memory cgroup
 * @vma: The VMA.
 *
 * Return: True if so: the host belongs to none.
 */
static inline bool ptshare_all_cgroups(const struct vm_area_struct *vma)
{
	return ptshare_host(vma) && __ptshare_all_cgroups();
}

/**
 * ptshare_fault_mm() - whose fault it is
 * @vma: The VMA that the fault is served in.
 *
 * Return: The address space for which it is counted.
 */
static inline struct mm_struct *ptshare_fault_mm(struct vm_area_struct *vma)
{
	return ptshare_host(vma) ? __ptshare_fault_mm(vma) : vma->vm_mm;
}

/**
 * ptshare_charge_mm() - whom to charge for the page of a fault
 * @vma: The VMA that the fault is served in.
 *
 * Return: The address space whose owner is charged. NULL for the memory cgroup that
 * set_active_memcg() has set: that of the guest.
 */
static inline struct mm_struct *ptshare_charge_mm(struct vm_area_struct *vma)
{
	return ptshare_host(vma) ? __ptshare_charge_mm(vma) : vma->vm_mm;
}

/**
 * ptshare_protect_tables() - take write access to whole tables away
 * @vma: A VMA.
 * @pmd: The PMD entry for @addr.
 * @addr: First address of what is to be protected.
 * @end: End. In the same PMD table.
 * @tlb: Where to add what is to be flushed.
 *
 * Context: i_mmap_rwsem of the file. What is protected has been stored.
 * Return: The end of what is done, @addr if the entries of its table are to be changed
 * instead.
 */
static inline unsigned long
ptshare_protect_tables(struct vm_area_struct *vma, pmd_t *pmd,
		       unsigned long addr, unsigned long end,
		       struct mmu_gather *tlb)
{
	return ptshare_host(vma) ?
	       __ptshare_protect_tables(vma, pmd, addr, end, tlb) : addr;
}

/**
 * ptshare_denies() - whether a page table is write-protected as a whole
 * @table: Its PMD entry.
 * @flags: FOLL_*.
 * @fast: Interrupts are disabled, in place of locks.
 *
 * Context: The table's lock, or as GUP-fast, who looks once more in the end.
 * Return: True if FOLL_WRITE must not go by the entries in it.
 */
static inline bool ptshare_denies(pmd_t table, unsigned int flags, bool fast)
{
	return static_branch_unlikely(&ptshare_used) && (flags & FOLL_WRITE) &&
	       !pmd_write(table) && __ptshare_denies(fast);
}

/**
 * ptshare_denies_lockless() - the same, for who holds no lock
 * @pmd: A PMD entry with a table behind it.
 *
 * He looks here before he looks at an entry of the table: write access that was taken
 * away from that, before the table got it back, is not overlooked then.
 *
 * Context: Anything that keeps the tables. Changes are found out by an MMU notifier.
 * Return: True if the entries must not be written through.
 */
static inline bool ptshare_denies_lockless(pmd_t *pmd)
{
	bool denied;

	if (!static_branch_unlikely(&ptshare_used))
		return false;
	denied = ptshare_denies(pmdp_get_lockless(pmd), FOLL_WRITE, false);
	/* Pairs with push_down(). */
	smp_rmb();
	return denied;
}

/**
 * ptshare_links() - how many share a page table
 * @vma: A VMA.
 * @addr: An address for which it has a page table.
 *
 * Context: mmap lock or VMA lock of @vma.
 * Return: The number of links to the table, 1 if it is the VMA's own.
 */
static inline unsigned int ptshare_links(const struct vm_area_struct *vma,
					 unsigned long addr)
{
	return ptshare_shares(vma, addr) ? __ptshare_links(vma, addr) : 1;
}

/**
 * ptshare_shared() - whether others map the page that a VMA has at an address
 * @vma: The VMA.
 * @addr: The address, at which there is a page.
 *
 * All who map a page through a shared table count once in its mapcount.
 *
 * Context: mmap lock.
 * Return: True if others link to the table.
 */
static inline bool ptshare_shared(struct vm_area_struct *vma,
				  unsigned long addr)
{
	return ptshare_shares(vma, addr) && __ptshare_shared(vma, addr);
}

/**
 * ptshare_private() - whether accessed bits are not to be touched for one process
 * @vma: A VMA of that process.
 * @addr: An address.
 *
 * Return: True if they are those of others too.
 */
static inline bool ptshare_private(const struct vm_area_struct *vma,
				   unsigned long addr)
{
	return ptshare_shares(vma, addr) && __ptshare_private();
}

/**
 * ptshare_shown_pte() - an entry as a process may see it
 * @vma: The VMA.
 * @addr: The address.
 * @pte: The entry.
 *
 * Return: @pte, without what it tells of other processes.
 */
static inline pte_t ptshare_shown_pte(const struct vm_area_struct *vma,
				      unsigned long addr, pte_t pte)
{
	return ptshare_shares(vma, addr) ? __ptshare_shown_pte(pte) : pte;
}

/**
 * ptshare_shown_pmd() - a huge entry as a process may see it
 * @vma: The VMA.
 * @addr: The address.
 * @pmd: The entry.
 *
 * Return: @pmd, without what it tells of other processes.
 */
static inline pmd_t ptshare_shown_pmd(const struct vm_area_struct *vma,
				      unsigned long addr, pmd_t pmd)
{
	return ptshare_shares(vma, addr) ? __ptshare_shown_pmd(pmd) : pmd;
}

/**
 * ptshare_mm_init() - a new address space
 * @mm: It.
 */
static inline void ptshare_mm_init(struct mm_struct *mm)
{
	mm->ptshare = NULL;
	atomic_long_set(&mm->ptshare_links, 0);
	atomic_long_set(&mm->ptshare_pages, 0);
}

/**
 * ptshare_mm_pages() - how much a process maps through shared page tables
 * @mm: Its address space.
 *
 * Context: Any.
 * Return: The number of pages, more or less.
 */
static inline unsigned long ptshare_mm_pages(struct mm_struct *mm)
{
	if (!static_branch_unlikely(&ptshare_used))
		return 0;
	return __ptshare_mm_pages(mm);
}

/**
 * ptshare_exit_mmap() - a process has ended, and unmapped all
 * @mm: Its address space.
 *
 * Frees shared page tables and the mappings of their pages, if it was the last one.
 *
 * Context: May sleep. mmap lock.
 */
static inline void ptshare_exit_mmap(struct mm_struct *mm)
{
	if (static_branch_unlikely(&ptshare_used))
		__ptshare_exit_mmap(mm);
}

/**
 * ptshare_first_guest() - the first guest that maps a range of a file
 * @mapping: Any file's.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: i_mmap_rwsem.
 * Return: A guest, ptshare_next_guest() has the next. NULL if none.
 */
static inline struct vm_area_struct *
ptshare_first_guest(struct address_space *mapping, pgoff_t first, pgoff_t last)
{
	if (!static_branch_unlikely(&ptshare_used))
		return NULL;
	return __ptshare_first_guest(mapping, first, last);
}

#else /* !CONFIG_PTSHARE */

static inline bool ptshare_possible(void)
{
	return false;
}

static inline bool ptshare_guest(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool ptshare_may_link(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool ptshare_shares(const struct vm_area_struct *vma,
				  unsigned long addr)
{
	return false;
}

static inline bool ptshare_host(const struct vm_area_struct *vma)
{
	return false;
}

static inline pgoff_t ptshare_own_first(const struct vm_area_struct *vma)
{
	return vma->vm_pgoff;
}

static inline pgoff_t ptshare_own_last(const struct vm_area_struct *vma)
{
	return vma->vm_pgoff +
	       ((vma->vm_end - vma->vm_start) >> PAGE_SHIFT) - 1;
}

static inline const struct vm_operations_struct *
ptshare_vm_ops(const struct vm_area_struct *vma)
{
	return vma->vm_ops;
}

static inline void ptshare_new_file(struct inode *inode) { }
static inline void ptshare_new_kernel_file(struct inode *inode) { }
static inline void ptshare_new_memfd(struct file *file, unsigned int flags) { }
static inline void ptshare_evict(struct inode *inode) { }

static inline int ptshare_mmap(struct vm_area_struct *vma,
			       const struct vm_operations_struct **ops,
			       void **data)
{
	return 0;
}

static inline const struct vm_operations_struct *
ptshare_wrap(struct vm_area_struct *vma, const struct vm_operations_struct *ops)
{
	return ops;
}

static inline int ptshare_leave(struct vm_area_struct *vma)
{
	return 0;
}

static inline int ptshare_dup_vma(struct vm_area_struct *vma)
{
	return 0;
}

static inline void ptshare_free_vma(struct vm_area_struct *vma) { }

static inline unsigned long
ptshare_unmapped_area(struct file *file, unsigned long addr,
		      unsigned long hint, unsigned long len,
		      unsigned long pgoff, unsigned long flags)
{
	return addr;
}

static inline void ptshare_show_fdinfo(struct seq_file *m, struct file *file) { }

static inline void ptshare_i_mmap_insert(struct vm_area_struct *vma,
					 struct address_space *mapping)
{
	memfd_rmap_insert(vma, mapping);
}

static inline void ptshare_i_mmap_remove(struct vm_area_struct *vma,
					 struct address_space *mapping)
{
	memfd_rmap_remove(vma, mapping);
}

static inline void ptshare_unlinked(struct vm_area_struct *vma) { }

static inline bool ptshare_dup(struct vm_area_struct *vma,
			       struct address_space *mapping)
{
	return false;
}

static inline void ptshare_split(struct vm_area_struct *vma,
				 unsigned long addr) { }
static inline void ptshare_merge(struct vm_area_struct *vma,
				 struct vm_area_struct *adjust,
				 struct vm_area_struct *remove,
				 struct vm_area_struct *remove2,
				 unsigned long start, unsigned long end,
				 unsigned long flags) { }

static inline struct vm_area_struct *
ptshare_modify(struct vm_area_struct *vma, unsigned long flags)
{
	return vma;
}

static inline bool ptshare_move(struct vm_area_struct *vma, unsigned long addr,
				struct vm_area_struct *new_vma,
				unsigned long len)
{
	return false;
}

static inline void ptshare_unshare_soft_dirty(struct vm_area_struct *vma) { }
static inline int ptshare_notifies(struct mm_struct *mm)
{
	return 0;
}

static inline int ptshare_unshare_range(struct mm_struct *mm,
					unsigned long start, unsigned long end)
{
	return 0;
}

static inline vm_fault_t ptshare_fault(struct vm_area_struct *vma,
				       unsigned long address,
				       unsigned int flags,
				       ptshare_fault_fn *fault)
{
	return VM_FAULT_SIGBUS;
}

static inline void ptshare_unlink(struct vm_area_struct *vma,
				  unsigned long start, unsigned long end,
				  bool unmap) { }

static inline bool ptshare_change_protection(struct vm_area_struct *vma,
					     unsigned long start,
					     unsigned long end, bool numa)
{
	return false;
}

static inline void ptshare_unlock(struct vm_area_struct *vma) { }

static inline void ptshare_change_lock(struct vm_area_struct *vma,
				       unsigned long start, unsigned long end)
{
}

static inline bool ptshare_no_pmd(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool ptshare_no_retract(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool ptshare_no_collapse(const struct vm_area_struct *vma)
{
	return false;
}

static inline bool ptshare_all_cgroups(const struct vm_area_struct *vma)
{
	return false;
}

static inline unsigned long
ptshare_protect_tables(struct vm_area_struct *vma, pmd_t *pmd,
		       unsigned long addr, unsigned long end,
		       struct mmu_gather *tlb)
{
	return addr;
}

static inline bool ptshare_denies(pmd_t table, unsigned int flags, bool fast)
{
	return false;
}

static inline bool ptshare_denies_lockless(pmd_t *pmd)
{
	return false;
}

static inline struct mm_struct *ptshare_fault_mm(struct vm_area_struct *vma)
{
	return vma->vm_mm;
}

static inline struct mm_struct *ptshare_charge_mm(struct vm_area_struct *vma)
{
	return vma->vm_mm;
}

static inline unsigned int ptshare_links(const struct vm_area_struct *vma,
					 unsigned long addr)
{
	return 1;
}

static inline bool ptshare_shared(struct vm_area_struct *vma,
				  unsigned long addr)
{
	return false;
}

static inline bool ptshare_private(const struct vm_area_struct *vma,
				   unsigned long addr)
{
	return false;
}

static inline pte_t ptshare_shown_pte(const struct vm_area_struct *vma,
				      unsigned long addr, pte_t pte)
{
	return pte;
}

static inline pmd_t ptshare_shown_pmd(const struct vm_area_struct *vma,
				      unsigned long addr, pmd_t pmd)
{
	return pmd;
}

static inline void ptshare_new_table(struct mm_struct *mm, pgtable_t table,
				     unsigned int pages) { }
static inline void ptshare_mm_init(struct mm_struct *mm) { }

static inline unsigned long ptshare_mm_pages(struct mm_struct *mm)
{
	return 0;
}

static inline void ptshare_exit_mmap(struct mm_struct *mm) { }

static inline struct vm_area_struct *
ptshare_first_guest(struct address_space *mapping, pgoff_t first, pgoff_t last)
{
	return NULL;
}

static inline struct vm_area_struct *
ptshare_next_guest(struct vm_area_struct *guest, pgoff_t first, pgoff_t last)
{
	return NULL;
}

#endif /* CONFIG_PTSHARE */

/* At the end, because it includes <linux/memfd_protect.h>, which needs the above */
#include <uapi/linux/memfd.h>
#include <uapi/linux/memfd_protect.h>

/**
 * ptshare_flags_valid() - whether memfd_create() can do it
 * @flags: MFD_*.
 *
 * Return: False if MFD_SHARE_PGTABLES is set and not possible.
 */
static inline bool ptshare_flags_valid(unsigned int flags)
{
	if (!(flags & MFD_SHARE_PGTABLES))
		return true;
	return ptshare_possible() && !(flags & MFD_HUGETLB);
}

#endif /* _LINUX_PTSHARE_H */
