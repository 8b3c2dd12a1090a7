/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of shared page tables share. Core kernel code includes
 * <linux/ptshare.h> instead.
 */
#ifndef _MM_PTSHARE_H
#define _MM_PTSHARE_H

#include <linux/kref.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/ptshare.h>
#include <linux/rbtree.h>
#include <linux/sizes.h>
#include <linux/workqueue.h>

/* Offsets from here on are mapped by ordinary VMAs only. */
#define PTSHARE_SPAN		(32UL * SZ_1T)
/* Where the host VMA of a class begins: offset 0 of the file. */
#define PTSHARE_BASE(class)	(((class) + 1UL) * PTSHARE_SPAN)

/**
 * enum ptshare_class - one set of tables each
 * @PTSHARE_RO: For VMAs without VM_WRITE. GUP-fast and the CPU look at nothing but
 *		page-table entries, so a reader must not link to writable ones.
 * @PTSHARE_RW: For VMAs with VM_WRITE.
 * @PTSHARE_CLASSES: Their number.
 */
enum ptshare_class {
	PTSHARE_RO,
	PTSHARE_RW,
	PTSHARE_CLASSES,
};

/**
 * struct ptshare_host - who owns the tables while the file is mapped
 * @mm: An address space in which nobody runs.
 * @vma: Its VMAs, one for each class. Each maps the file from its first byte to
 *	 PTSHARE_SPAN, and is in the file's reverse mapping.
 */
struct ptshare_host {
	struct mm_struct *mm;
	struct vm_area_struct *vma[PTSHARE_CLASSES];
};

/**
 * struct ptshare - shared page tables of one file
 * @ref: The inode has one, and @work while it is queued.
 * @mapping: The file's; only valid for those who keep the file by other means.
 * @lock: Taken to make and to end the host.
 * @guests: Interval tree of VMAs that link to the tables, in place of the reverse
 *	    mapping. Guarded by i_mmap_rwsem of @mapping.
 * @nr_guests: Their number. Written under i_mmap_rwsem.
 * @host: The host, NULL while there is none. Made under @lock, ended under @lock
 *	   and i_mmap_rwsem for writing. Who locks a guest keeps it.
 * @free_first: First page offset that may have lost its last guest, under
 *		i_mmap_rwsem.
 * @free_last: The last one.
 * @work: Frees tables that nobody maps, and the host.
 * @nr_tables: Tables that there are.
 * @nr_links: Links to them.
 * @rcu: For those who find it through a page.
 */
struct ptshare {
	struct kref ref;
	struct address_space *mapping;
	struct mutex lock; /* see above */
	struct rb_root_cached guests;
	unsigned long nr_guests;
	struct ptshare_host *host;
	pgoff_t free_first;
	pgoff_t free_last;
	struct work_struct work;
	atomic_long_t nr_tables;
	atomic_long_t nr_links;
	struct rcu_head rcu;
};

static inline enum ptshare_class ptshare_class_of(unsigned long vm_flags)
{
	return vm_flags & VM_WRITE ? PTSHARE_RW : PTSHARE_RO;
}

/* The file offset that a guest maps at an address, in bytes. */
static inline unsigned long ptshare_offset(const struct vm_area_struct *guest,
					   unsigned long addr)
{
	return (guest->vm_pgoff << PAGE_SHIFT) + addr - guest->vm_start;
}

/* How many links there are to a table. */
static inline atomic_t *ptshare_links_of(pgtable_t table)
{
	return &page_ptdesc(table)->pt_share_count;
}

/* mm/ptshare.c */
bool ptshare_may_share(struct vm_area_struct *vma, unsigned long flags);

/* mm/ptshare_table.c */
bool ptshare_tables_empty(struct vm_area_struct *vma);

/* mm/ptshare_host.c */
struct ptshare *ptshare_of_inode(struct inode *inode);
struct ptshare *ptshare_of(const struct vm_area_struct *vma);
struct ptshare_host *ptshare_get_host(struct vm_area_struct *guest);
void ptshare_put_host(struct ptshare *ps, pgoff_t first, pgoff_t last);
pmd_t *ptshare_find_pmd(struct mm_struct *mm, unsigned long addr);
pmd_t *ptshare_next_pmd(struct mm_struct *mm, unsigned long *addr,
			unsigned long end);
pmd_t *ptshare_alloc_pmd(struct mm_struct *mm, unsigned long addr);
pmd_t *ptshare_host_table(struct ptshare *ps, struct mm_struct *mm,
			  unsigned long addr);

/* mm/ptshare_tlb.c */
void ptshare_host_range(unsigned long start, unsigned long end, pgoff_t *first,
			pgoff_t *last);
void ptshare_guest_range(struct vm_area_struct *guest, pgoff_t first,
			 pgoff_t last, unsigned long *start,
			 unsigned long *end);

#endif /* _MM_PTSHARE_H */
