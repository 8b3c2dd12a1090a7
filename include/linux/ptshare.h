/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shared page tables of memfds: what core kernel code calls.
 *
 * See Documentation/mm/ptshare.rst for the list of places and why each is one.
 */
#ifndef _LINUX_PTSHARE_H
#define _LINUX_PTSHARE_H

#include <linux/mm.h>
#include <linux/ptshare_types.h>
#include <linux/vmstat.h>
#ifdef CONFIG_PTSHARE
#include <asm/cpufeature.h>
#endif

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
 * ptshare_possible() - whether page tables can be shared on this machine
 *
 * Xen PV has its own idea of who uses a page table.
 *
 * Return: True if so.
 */
static inline bool ptshare_possible(void)
{
	return !cpu_feature_enabled(X86_FEATURE_XENPV);
}

extern const struct vm_operations_struct ptshare_guest_vm_ops;
extern const struct vm_operations_struct ptshare_host_vm_ops;

/**
 * ptshare_guest() - whether a VMA links to page tables of its file
 * @vma: The VMA.
 *
 * Context: Any in which @vma may be looked at.
 * Return: True if so. Costs nothing until the first memfd with
 * MFD_SHARE_PGTABLES is made.
 */
static inline bool ptshare_guest(const struct vm_area_struct *vma)
{
	return static_branch_unlikely(&ptshare_used) &&
	       vma->vm_ops == &ptshare_guest_vm_ops;
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
 * ptshare_vm_ops() - the operations that a VMA has, or had if it did not share
 * @vma: The VMA.
 *
 * Return: The operations that tell what kind of file it maps.
 */
static inline const struct vm_operations_struct *
ptshare_vm_ops(const struct vm_area_struct *vma)
{
	return ptshare_guest(vma) || ptshare_host(vma) ? vma->vm_private_data :
							 vma->vm_ops;
}

/* mm/ptshare.c */
void __ptshare_mmap(struct vm_area_struct *vma);
unsigned long __ptshare_unmapped_area(struct file *file, unsigned long addr,
				      unsigned long hint, unsigned long len,
				      unsigned long pgoff, unsigned long flags);
struct rb_root_cached *__ptshare_i_mmap(struct vm_area_struct *vma);
void __ptshare_linked(struct vm_area_struct *vma);
void __ptshare_unlinked(struct vm_area_struct *vma);
bool __ptshare_dup(struct vm_area_struct *vma);
bool __ptshare_mergeable(struct vm_area_struct *vma,
			 struct vm_area_struct *modified, unsigned long start,
			 unsigned long end);
void __ptshare_split(struct vm_area_struct *vma, unsigned long addr);
void __ptshare_modify(struct vm_area_struct *vma, unsigned long flags);
void __ptshare_unshare(struct vm_area_struct *vma);
void __ptshare_unshare_soft_dirty(struct vm_area_struct *vma);
void __ptshare_unshare_mm(struct mm_struct *mm);
void __ptshare_reshare(struct mm_struct *mm, unsigned long start,
		       unsigned long end);
struct vm_area_struct *__ptshare_first_guest(struct address_space *mapping,
					     pgoff_t first, pgoff_t last);

/* mm/shmem.c */
vm_fault_t ptshare_falloc_wait(struct vm_fault *vmf);

/* mm/ptshare_table.c */
vm_fault_t ptshare_fault(struct vm_area_struct *vma, unsigned long address,
			 unsigned int flags, ptshare_fault_fn *fault);
void ptshare_unlink(struct vm_area_struct *vma, unsigned long start,
		    unsigned long end);
bool __ptshare_change_protection(struct vm_area_struct *vma,
				 unsigned long start, unsigned long end,
				 bool numa);
bool __ptshare_no_retract(void);
bool __ptshare_no_collapse(void);

/* mm/ptshare_account.c */
unsigned long __ptshare_mm_pages(struct mm_struct *mm);
unsigned int __ptshare_links(pmd_t *pmd);
bool __ptshare_shared(struct vm_area_struct *vma, unsigned long addr);
bool __ptshare_private(void);
pte_t __ptshare_shown_pte(pte_t pte);

/* mm/ptshare_host.c */
void __ptshare_exit_mmap(struct mm_struct *mm);
int ptshare_create(struct file *file);
void ptshare_evict(struct inode *inode);
void ptshare_show_fdinfo(struct seq_file *m, struct file *file);
bool __ptshare_all_cgroups(void);
struct mm_struct *__ptshare_fault_mm(struct vm_area_struct *vma);
struct mm_struct *__ptshare_charge_mm(struct vm_area_struct *vma);

/**
 * ptshare_mmap() - a file is mapped
 * @vma: The new VMA, its operations set.
 *
 * Makes it a guest if its file has MFD_SHARE_PGTABLES and a shared table can
 * express what is asked for.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_mmap(struct vm_area_struct *vma)
{
	if (static_branch_unlikely(&ptshare_used))
		__ptshare_mmap(vma);
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
 * ptshare_i_mmap() - the tree of its file in which a VMA is
 * @vma: The VMA.
 * @mapping: Its file's.
 *
 * Guests are not in the reverse mapping: the host stands for them.
 *
 * Context: i_mmap_rwsem of @mapping.
 * Return: The root of an interval tree.
 */
static inline struct rb_root_cached *
ptshare_i_mmap(struct vm_area_struct *vma, struct address_space *mapping)
{
	return ptshare_guest(vma) ? __ptshare_i_mmap(vma) : &mapping->i_mmap;
}

/**
 * ptshare_linked() - a VMA has come into a tree of its file
 * @vma: The VMA.
 *
 * Context: i_mmap_rwsem for writing.
 */
static inline void ptshare_linked(struct vm_area_struct *vma)
{
	if (ptshare_guest(vma))
		__ptshare_linked(vma);
}

/**
 * ptshare_unlinked() - a VMA has left the tree of its file for good
 * @vma: The VMA. It links to no table any more.
 *
 * Context: i_mmap_rwsem for writing.
 */
static inline void ptshare_unlinked(struct vm_area_struct *vma)
{
	if (ptshare_guest(vma))
		__ptshare_unlinked(vma);
}

/**
 * ptshare_dup() - fork() copies a VMA
 * @vma: The child's VMA, in no tree yet.
 *
 * What kept the parent from sharing may not concern the child.
 *
 * Context: i_mmap_rwsem for writing, mmap lock of @vma for writing.
 * Return: True if it is a guest, and in its tree now.
 */
static inline bool ptshare_dup(struct vm_area_struct *vma)
{
	return static_branch_unlikely(&ptshare_used) && __ptshare_dup(vma);
}

/**
 * ptshare_mergeable() - whether a range may be merged into a VMA
 * @vma: The VMA that is to grow.
 * @modified: The VMA that has the range now, NULL if it is new.
 * @start: Begin of the range.
 * @end: End of the range.
 *
 * Guests merge with guests only, and only in whole tables.
 *
 * Context: mmap lock for writing.
 * Return: False if not.
 */
static inline bool ptshare_mergeable(struct vm_area_struct *vma,
				     struct vm_area_struct *modified,
				     unsigned long start, unsigned long end)
{
	return !static_branch_unlikely(&ptshare_used) ||
	       __ptshare_mergeable(vma, modified, start, end);
}

/**
 * ptshare_split() - a VMA is about to be split
 * @vma: The VMA.
 * @addr: Where.
 *
 * It becomes an ordinary one if the pieces cannot share.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_split(struct vm_area_struct *vma, unsigned long addr)
{
	if (ptshare_guest(vma))
		__ptshare_split(vma, addr);
}

/**
 * ptshare_modify() - a VMA is about to get other flags
 * @vma: The VMA, split and merged as needed.
 * @flags: The flags that the caller is going to give it.
 *
 * It becomes a guest or an ordinary one, whatever they say.
 *
 * Context: mmap lock for writing.
 * Return: @vma.
 */
static inline struct vm_area_struct *
ptshare_modify(struct vm_area_struct *vma, unsigned long flags)
{
	if (static_branch_unlikely(&ptshare_used))
		__ptshare_modify(vma, flags);
	return vma;
}

/**
 * ptshare_modify_whole() - a VMA is about to get other flags, before it is merged
 * @vma: The VMA.
 * @start: Begin of the range that gets them.
 * @end: End of the range.
 * @flags: The flags.
 *
 * As ptshare_modify(), if the range is the whole VMA, so that it can be merged with
 * neighbours of its kind.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_modify_whole(struct vm_area_struct *vma,
					unsigned long start, unsigned long end,
					unsigned long flags)
{
	if (start == vma->vm_start && end == vma->vm_end)
		ptshare_modify(vma, flags);
}

/**
 * ptshare_unshare() - a VMA must be an ordinary one from now on
 * @vma: The VMA.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_unshare(struct vm_area_struct *vma)
{
	if (ptshare_guest(vma))
		__ptshare_unshare(vma);
}

/**
 * ptshare_unshare_soft_dirty() - a VMA is about to be tracked by soft-dirty bits
 * @vma: The VMA, VM_SOFTDIRTY still set.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_unshare_soft_dirty(struct vm_area_struct *vma)
{
	if (ptshare_guest(vma))
		__ptshare_unshare_soft_dirty(vma);
}

/**
 * ptshare_unshare_mm() - a process is about to get its first MMU notifier
 * @mm: Its address space.
 *
 * Changes of shared entries are not told to secondary MMUs, so it has ordinary
 * VMAs only from now on.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_unshare_mm(struct mm_struct *mm)
{
	if (static_branch_unlikely(&ptshare_used))
		__ptshare_unshare_mm(mm);
}

/**
 * ptshare_reshare() - VMAs may have got a shape in which they can share
 * @mm: The address space.
 * @start: Begin of a range that was mapped or unmapped, or an error. The VMA that
 *	   has it, and the one that ends there.
 * @len: Length of the range. The VMA that begins behind it.
 *
 * Context: mmap lock for writing.
 */
static inline void ptshare_reshare(struct mm_struct *mm, unsigned long start,
				   unsigned long len)
{
	if (static_branch_unlikely(&ptshare_used) && !IS_ERR_VALUE(start))
		__ptshare_reshare(mm, start, start + len);
}

/**
 * ptshare_change_protection() - a VMA's entries are to be changed
 * @vma: The VMA.
 * @start: First address.
 * @end: End.
 * @numa: For NUMA balancing, which has no business in shared tables.
 *
 * Links are cleared instead: the next access links to the right table.
 *
 * Context: mmap lock.
 * Return: True if this was all that is to be done.
 */
static inline bool ptshare_change_protection(struct vm_area_struct *vma,
					     unsigned long start,
					     unsigned long end, bool numa)
{
	return ptshare_guest(vma) &&
	       __ptshare_change_protection(vma, start, end, numa);
}

/**
 * ptshare_no_pmd() - whether a VMA must not have huge entries
 * @vma: The VMA.
 *
 * Guests link to tables of small entries.
 *
 * Return: True if so.
 */
static inline bool ptshare_no_pmd(const struct vm_area_struct *vma)
{
	return ptshare_host(vma);
}

/**
 * ptshare_no_retract() - whether khugepaged must leave the tables of a VMA alone
 * @vma: The VMA.
 *
 * Return: True if so: others link to them.
 */
static inline bool ptshare_no_retract(const struct vm_area_struct *vma)
{
	return ptshare_host(vma) && __ptshare_no_retract();
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
 * ptshare_links() - how many share a page table
 * @vma: A VMA.
 * @pmd: An entry of its that points to a page table.
 *
 * Context: The page table lock, or anything that keeps the table.
 * Return: The number of links to the table, 1 if the VMA does not share.
 */
static inline unsigned int ptshare_links(const struct vm_area_struct *vma,
					 pmd_t *pmd)
{
	return ptshare_guest(vma) ? __ptshare_links(pmd) : 1;
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
	return ptshare_guest(vma) && __ptshare_shared(vma, addr);
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
	return ptshare_guest(vma) && __ptshare_private();
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
	return ptshare_guest(vma) ? __ptshare_shown_pte(pte) : pte;
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
 * Return: A guest, vma_interval_tree_iter_next() has the next. NULL if none.
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

static inline bool ptshare_host(const struct vm_area_struct *vma)
{
	return false;
}

static inline const struct vm_operations_struct *
ptshare_vm_ops(const struct vm_area_struct *vma)
{
	return vma->vm_ops;
}

static inline int ptshare_create(struct file *file)
{
	return -EINVAL;
}

static inline void ptshare_evict(struct inode *inode) { }
static inline void ptshare_mmap(struct vm_area_struct *vma) { }

static inline unsigned long
ptshare_unmapped_area(struct file *file, unsigned long addr,
		      unsigned long hint, unsigned long len,
		      unsigned long pgoff, unsigned long flags)
{
	return addr;
}

static inline void ptshare_show_fdinfo(struct seq_file *m, struct file *file) { }

static inline struct rb_root_cached *
ptshare_i_mmap(struct vm_area_struct *vma, struct address_space *mapping)
{
	return &mapping->i_mmap;
}

static inline void ptshare_linked(struct vm_area_struct *vma) { }
static inline void ptshare_unlinked(struct vm_area_struct *vma) { }

static inline bool ptshare_dup(struct vm_area_struct *vma)
{
	return false;
}

static inline bool ptshare_mergeable(struct vm_area_struct *vma,
				     struct vm_area_struct *modified,
				     unsigned long start, unsigned long end)
{
	return true;
}

static inline void ptshare_split(struct vm_area_struct *vma,
				 unsigned long addr) { }

static inline struct vm_area_struct *
ptshare_modify(struct vm_area_struct *vma, unsigned long flags)
{
	return vma;
}

static inline void ptshare_modify_whole(struct vm_area_struct *vma,
					unsigned long start, unsigned long end,
					unsigned long flags) { }
static inline void ptshare_unshare(struct vm_area_struct *vma) { }
static inline void ptshare_unshare_soft_dirty(struct vm_area_struct *vma) { }
static inline void ptshare_unshare_mm(struct mm_struct *mm) { }
static inline void ptshare_reshare(struct mm_struct *mm, unsigned long start,
				   unsigned long len) { }

static inline vm_fault_t ptshare_fault(struct vm_area_struct *vma,
				       unsigned long address,
				       unsigned int flags,
				       ptshare_fault_fn *fault)
{
	return VM_FAULT_SIGBUS;
}

static inline void ptshare_unlink(struct vm_area_struct *vma,
				  unsigned long start, unsigned long end) { }

static inline bool ptshare_change_protection(struct vm_area_struct *vma,
					     unsigned long start,
					     unsigned long end, bool numa)
{
	return false;
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

static inline struct mm_struct *ptshare_fault_mm(struct vm_area_struct *vma)
{
	return vma->vm_mm;
}

static inline struct mm_struct *ptshare_charge_mm(struct vm_area_struct *vma)
{
	return vma->vm_mm;
}

static inline unsigned int ptshare_links(const struct vm_area_struct *vma,
					 pmd_t *pmd)
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
