/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of shared page tables share. Core kernel code includes
 * <linux/ptshare.h> instead.
 */
#ifndef _MM_PTSHARE_H
#define _MM_PTSHARE_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/ptshare.h>
#include <linux/rbtree.h>
#include <linux/sizes.h>
#include <linux/workqueue.h>

/* Offsets from here on are mapped by ordinary VMAs only. */
#define PTSHARE_SPAN		(24UL * SZ_1T)
/* Where the host VMA of a class begins: offset 0 of the file. */
#define PTSHARE_BASE(class)	(((class) + 1UL) * PTSHARE_SPAN)

/**
 * enum ptshare_class - one set of tables each
 * @PTSHARE_RO: For VMAs without VM_WRITE. GUP-fast and the CPU look at nothing but
 *		page-table entries, so a reader must not link to writable ones.
 * @PTSHARE_RW: For VMAs with VM_WRITE.
 * @PTSHARE_LOCKED: Added to these for VMAs with VM_LOCKED. What is mapped by such a
 *		    table is locked once, because the VMA of the host has that flag.
 * @PTSHARE_CLASSES: Their number.
 */
enum ptshare_class {
	PTSHARE_RO,
	PTSHARE_RW,
	PTSHARE_LOCKED,
	PTSHARE_CLASSES = 2 * PTSHARE_LOCKED,
};

/**
 * struct ptshare - shared page tables of one file
 * @mapping: The file's. It goes when the file does.
 * @guests: Interval tree of VMAs that link to the tables (ptshare_vma.blocks), in
 *	    place of the reverse mapping. Guarded by i_mmap_rwsem of @mapping, as
 *	    are @by_mm and @mms.
 * @by_mm: The first guest of each address space, by its mm_struct.
 * @mms: The same as a list.
 * @nr_guests: The number of guests. Written under i_mmap_rwsem.
 * @mm: The host, an address space in which nobody runs. NULL until the first fault;
 *	read with READ_ONCE() by whoever does not know that a guest has links.
 * @making: Held by whoever makes the host, or a VMA of it.
 * @registering: Held by whoever registers @notifier. No fault waits for it.
 * @notifier: Of @mm. Tells guests that have notifiers. Without operations until there
 *	      are some.
 * @vma: Its VMAs, one for each class. Each comes with the first fault of a guest of
 *	 that class, maps the file from its first byte to PTSHARE_SPAN, and is in the
 *	 file's reverse mapping. Read with READ_ONCE() by whoever is not such a guest.
 * @file: What they map. No open file description: see mm/ptshare_host.c.
 * @pending_file: Set while somebody has tables to free, and what keeps the file
 *		  for him. This and the following under i_mmap_rwsem for writing.
 * @pending_first: First page offset that may have lost its last guest.
 * @pending_last: The last one.
 * @pending_classes: The classes of these guests, one bit each.
 * @task_work: Who frees them, if it is a task,
 * @work: or a worker.
 * @nr_tables: Tables that there are.
 * @nr_links: Links to them.
 */
struct ptshare {
	struct address_space *mapping;
	struct rb_root_cached guests;
	struct rb_root by_mm;
	struct list_head mms;
	unsigned long nr_guests;
	struct mm_struct *mm;
	struct mutex making; /* see above */
	struct mutex registering; /* see above */
	struct mmu_notifier notifier;
	struct vm_area_struct *vma[PTSHARE_CLASSES];
	struct file file;
	struct file *pending_file;
	pgoff_t pending_first;
	pgoff_t pending_last;
	unsigned int pending_classes;
	union {
		struct callback_head task_work;
		struct work_struct work;
	};
	atomic_long_t nr_tables;
	atomic_long_t nr_links;
};

/**
 * enum ptshare_reason - why links are cleared, or a mapping does not share any more
 * @PTSHARE_BY_UNMAP: munmap(), MADV_DONTNEED, mremap(), or the process has ended.
 * @PTSHARE_BY_CLASS: mprotect() between reading and writing, mlock(), munlock(): it
 *		      links to tables of another class from now on.
 * @PTSHARE_BY_ACCESS: mprotect() or pkey_mprotect() to other access than reading, or
 *		       reading and writing.
 * @PTSHARE_BY_HUGEPAGE: MADV_HUGEPAGE.
 * @PTSHARE_BY_USERFAULTFD: It was registered with a userfaultfd.
 * @PTSHARE_BY_SOFT_DIRTY: Its soft-dirty bits were cleared.
 * @PTSHARE_BY_GUARD: It has got guard regions.
 * @PTSHARE_BY_SPLIT: The mapping was split within a block, or a GiB.
 * @PTSHARE_BY_MERGE: It was merged: with one that cannot share, or to a whole GiB.
 * @PTSHARE_BY_MOVE: It was moved to where offsets and addresses do not fit.
 */
enum ptshare_reason {
	PTSHARE_BY_UNMAP,
	PTSHARE_BY_CLASS,
	PTSHARE_BY_ACCESS,
	PTSHARE_BY_HUGEPAGE,
	PTSHARE_BY_USERFAULTFD,
	PTSHARE_BY_SOFT_DIRTY,
	PTSHARE_BY_GUARD,
	PTSHARE_BY_SPLIT,
	PTSHARE_BY_MERGE,
	PTSHARE_BY_MOVE,
};

static inline enum ptshare_class ptshare_class_of(unsigned long vm_flags)
{
	return (vm_flags & VM_WRITE ? PTSHARE_RW : PTSHARE_RO) +
	       (vm_flags & VM_LOCKED ? PTSHARE_LOCKED : 0);
}

/* How many links an address space has. */
static inline unsigned long ptshare_mm_links(const struct mm_struct *mm)
{
	return atomic_long_read(&mm->ptshare_links);
}

/* The file offset that a guest maps at an address, in bytes. */
static inline unsigned long ptshare_offset(const struct vm_area_struct *guest,
					   unsigned long addr)
{
	return (guest->vm_pgoff << PAGE_SHIFT) + addr - guest->vm_start;
}

/* Whether there is a page table behind a PMD entry of the host, or of a guest. */
static inline bool ptshare_has_table(pmd_t entry)
{
	return pmd_present(entry) && !pmd_leaf(entry);
}

/* How many links there are to a table. */
static inline atomic_t *ptshare_links_of(pgtable_t table)
{
	return &page_ptdesc(table)->pt_share_count;
}

/* How many links there are to a PMD table, that of an entry. */
static inline atomic_t *ptshare_gib_links_of(pmd_t *pmd)
{
	return &virt_to_ptdesc(pmd)->pt_share_count;
}

/**
 * struct ptshare_place - where a guest links to what the host has at an address
 * @pud: Its PUD entry, which is the link if there is no @pmd.
 * @pmd: Its PMD entry, in a table of its own, or NULL.
 */
struct ptshare_place {
	pud_t *pud;
	pmd_t *pmd;
};

/* mm/ptshare.c */
bool ptshare_may_share(unsigned long flags);
void ptshare_blocks(const struct vm_area_struct *vma, unsigned long *start,
		    unsigned long *end);

/* mm/ptshare_table.c */
bool ptshare_drop_entries(struct vm_area_struct *vma, unsigned long start,
			  unsigned long end);

/* mm/ptshare_link.c */
bool ptshare_whole_gib(const struct vm_area_struct *vma, unsigned long addr);
bool ptshare_link_place(struct ptshare_place *place,
			const struct vm_area_struct *vma,
			unsigned long address, pmd_t *host_pmd);
bool ptshare_is_linked(const struct ptshare_place *place, pmd_t *host_pmd);
void ptshare_link(const struct ptshare_place *place, struct vm_area_struct *vma,
		  unsigned long address, struct vm_area_struct *host_vma,
		  pmd_t *host_pmd);
void ptshare_unlink_notify(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end, enum ptshare_reason reason);

/* mm/ptshare_account.c */
unsigned int ptshare_group_pages(pmd_t *pmd, unsigned long addr,
				 unsigned int flags);
void ptshare_count_fault(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
			 unsigned int flags, unsigned int before, bool linked);
int ptshare_count_huge(pmd_t *pmd);
void ptshare_count_links(struct mm_struct *mm, struct ptshare *ps,
			 unsigned long nr, unsigned long tables,
			 unsigned long pages);
void ptshare_count_unlinks(struct mm_struct *mm, struct ptshare *ps,
			   unsigned long nr, unsigned long tables);
void ptshare_count_unshare(const struct vm_area_struct *vma,
			   unsigned long start, unsigned long end,
			   enum ptshare_reason reason);

/* mm/ptshare_host.c */
void ptshare_enable(void);
void ptshare_share_file(struct inode *inode);
struct ptshare *ptshare_of_inode(struct inode *inode);
struct ptshare *ptshare_of(const struct vm_area_struct *vma);
struct ptshare *ptshare_make(struct inode *inode);
enum ptshare_class ptshare_link_class(const struct vm_area_struct *guest);
int ptshare_make_host(struct ptshare *ps, const struct vm_area_struct *guest);
int ptshare_complete_host(struct ptshare *ps,
			  const struct vm_area_struct *guest);
void ptshare_guest_came(struct ptshare *ps, struct vm_area_struct *guest);
void ptshare_guest_left(struct vm_area_struct *guest, pgoff_t first,
			pgoff_t last);
void ptshare_release_class(struct vm_area_struct *vma, enum ptshare_class class,
			   unsigned long start, unsigned long end);
void ptshare_class_left(struct vm_area_struct *vma, enum ptshare_class class,
			unsigned long start, unsigned long end);
pmd_t *ptshare_find_pmd(struct mm_struct *mm, unsigned long addr);
pmd_t *ptshare_next_pmd(struct mm_struct *mm, unsigned long *addr,
			unsigned long end);
pud_t *ptshare_next_pud(struct mm_struct *mm, unsigned long *addr,
			unsigned long end);
pud_t *ptshare_alloc_pud(struct mm_struct *mm, unsigned long addr);
pmd_t *ptshare_host_pmd(struct ptshare *ps, unsigned long addr);
void ptshare_uncount_table(struct ptshare *ps, pmd_t *pmd);

/* mm/ptshare_huge.c */
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
bool ptshare_huge_wanted(struct vm_area_struct *host_vma, pmd_t *pmd,
			 unsigned long addr);
bool ptshare_huge_split(struct vm_area_struct *host_vma, pmd_t *pmd,
			unsigned long addr);
void ptshare_huge_push_down(struct vm_area_struct *host_vma, pmd_t *pmd,
			    unsigned long addr);
void ptshare_huge_again(struct vm_area_struct *host_vma, pmd_t *pmd,
			unsigned long addr);
#else
static inline bool ptshare_huge_wanted(struct vm_area_struct *host_vma,
				       pmd_t *pmd, unsigned long addr)
{
	return false;
}

static inline bool ptshare_huge_split(struct vm_area_struct *host_vma,
				      pmd_t *pmd, unsigned long addr)
{
	return true;
}

static inline void ptshare_huge_push_down(struct vm_area_struct *host_vma,
					  pmd_t *pmd, unsigned long addr) { }
static inline void ptshare_huge_again(struct vm_area_struct *host_vma,
				      pmd_t *pmd, unsigned long addr) { }
#endif

/* mm/ptshare_lock.c */
void ptshare_dropped(const struct vm_area_struct *vma, unsigned long start,
		     unsigned long end);
void ptshare_cut(struct vm_area_struct *vma, unsigned long start,
		 unsigned long end);

/* mm/ptshare_mount.c */
bool ptshare_wanted(const struct file *file);

/* mm/ptshare_notify.c */
int ptshare_forward(const struct vm_area_struct *vma);

/* mm/ptshare_protect.c */
void ptshare_push_down(struct vm_area_struct *host_vma, pmd_t *pmd,
		       unsigned long addr);
pgtable_t ptshare_count_link(struct vm_area_struct *host_vma, pmd_t *pmd,
			     unsigned long addr);

/* mm/ptshare_tlb.c */
void ptshare_host_range(unsigned long start, unsigned long end, pgoff_t *first,
			pgoff_t *last);
void ptshare_guest_range(const struct ptshare_vma *guest, pgoff_t first,
			 pgoff_t last, unsigned long *start,
			 unsigned long *end);

#endif /* _MM_PTSHARE_H */
