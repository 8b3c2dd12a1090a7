// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: the host, who owns the tables, and their life.
 *
 * The host is an address space in which nobody runs. It belongs to a file, comes
 * with the first fault of a guest and goes with the file, and has a VMA for each
 * class of mappings. Tables are made in it by faults of guests
 * (mm/ptshare_table.c), and freed here when their last guest has gone.
 *
 * The host has no reference to the file, which would be a cycle. What its VMAs
 * map is not an open file description: it has no dentry, keeps nothing, and
 * nobody but these VMAs refers to it. A guest does keep the file. When the file
 * goes there is none.
 *
 * Invariant F. A table of the host is freed only under i_mmap_rwsem for
 * writing, when no guest in the tree maps anything of its range, or it gives way to a
 * huge entry (P in mm/ptshare_huge.c). Nobody links
 * to it then: a guest clears its links before it leaves the tree (L in
 * mm/ptshare.c). Nobody links to it anew: a fault that links holds the lock of
 * a guest in the tree. No CPU walks it: clearing a link flushed
 * paging-structure caches, and interrupted CPUs that are in GUP-fast, which
 * runs with interrupts off. Where a hypervisor flushes CPUs that do not run
 * when they run next, tables are freed by RCU (tlb_remove_table()), which waits
 * for GUP-fast as well.
 *
 * A guest of a process that has ended (mm_users is 0) and has no links left
 * counts as gone: nobody faults there any more.
 *
 * Who leaves last frees the tables, and does that before it returns to user
 * mode, or has ended. So memory is there again when munmap() or wait() has
 * returned. It leaves with i_mmap_rwsem held, and with no more than a look at
 * the tree it sees that others stay. If not, it frees later, without locks, in
 * pieces: munmap() as a task work, as fput() does; an ending process in
 * exit_mmap(), before the OOM killer may go on to the next one. Kernel threads
 * leave it to a worker.
 *
 * Locks:
 *
 *   mmap lock, VMA lock of a guest
 *     ptshare.making			the host, until it is there
 *       mmap lock of the host		its VMAs; class of its own
 *     ptshare.registering		its notifier, when all VMAs are there
 *       mmap lock of the host
 *       i_mmap_rwsem of the file	ptshare.guests, and what is to be freed
 */

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/init_task.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/task_work.h>
#include <linux/user_namespace.h>
#include <linux/workqueue.h>
#include <trace/events/ptshare.h>
#include <asm/pgalloc.h>
#include <asm/tlb.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

DEFINE_STATIC_KEY_FALSE(ptshare_used);

/*
 * An ending process frees tables of the host with its own mmap lock held, and a fault
 * makes VMAs of the host with a VMA locked. Nobody locks those for reading.
 */
static struct lock_class_key host_mmap_lock_key;
static struct lock_class_key host_vma_lock_key;

#define TABLE_PAGES	(PMD_SIZE >> PAGE_SHIFT)

/* Classes, one bit each */
#define ALL_CLASSES	(BIT(PTSHARE_CLASSES) - 1)

/*
 * Walks
 */

/**
 * ptshare_find_pmd() - the PMD entry for an address
 * @mm: The host, or the address space of a guest.
 * @addr: The address.
 *
 * Context: Anything that keeps the PMD table.
 * Return: NULL if there is no PMD table.
 */
pmd_t *ptshare_find_pmd(struct mm_struct *mm, unsigned long addr)
{
	pud_t *pud = ptshare_next_pud(mm, &addr, addr + 1);

	return pud ? pmd_offset(pud, addr) : NULL;
}

/**
 * ptshare_next_pud() - the first PUD entry in a range that is not empty
 * @mm: The host, or the address space of a guest.
 * @addr: First address. Becomes that of the entry.
 * @end: End of the range.
 *
 * Context: Anything that keeps the tables.
 * Return: NULL if there is none.
 */
pud_t *ptshare_next_pud(struct mm_struct *mm, unsigned long *addr,
			unsigned long end)
{
	/* Levels that are folded are never empty, and end where the next one does. */
	while (*addr < end) {
		unsigned long pgd_end = pgd_addr_end(*addr, end);
		unsigned long p4d_end = p4d_addr_end(*addr, pgd_end);
		pgd_t *pgd = pgd_offset(mm, *addr);
		p4d_t *p4d;
		pud_t *pud;

		if (pgd_none(READ_ONCE(*pgd))) {
			*addr = pgd_end;
			continue;
		}
		p4d = p4d_offset(pgd, *addr);
		if (p4d_none(READ_ONCE(*p4d))) {
			*addr = p4d_end;
			continue;
		}
		pud = pud_offset(p4d, *addr);
		if (!pud_none(READ_ONCE(*pud)))
			return pud;
		*addr = pud_addr_end(*addr, p4d_end);
	}
	return NULL;
}

/**
 * ptshare_next_pmd() - the first PMD entry in a range that is not empty
 * @mm: The host, or the address space of a guest.
 * @addr: First address. Becomes that of the entry.
 * @end: End of the range.
 *
 * Context: Anything that keeps the PMD tables.
 * Return: NULL if there is none.
 */
pmd_t *ptshare_next_pmd(struct mm_struct *mm, unsigned long *addr,
			unsigned long end)
{
	pud_t *pud;

	while ((pud = ptshare_next_pud(mm, addr, end))) {
		unsigned long pud_end = pud_addr_end(*addr, end);
		pmd_t *pmd = pmd_offset(pud, *addr);

		for (; *addr < pud_end; pmd++, *addr = pmd_addr_end(*addr, pud_end))
			if (!pmd_none(pmdp_get_lockless(pmd)))
				return pmd;
	}
	return NULL;
}

/**
 * ptshare_alloc_pud() - the PUD entry for an address, made if need be
 * @mm: The host, or the address space of a guest.
 * @addr: The address.
 *
 * Context: May sleep. The lock of a guest.
 * Return: NULL if there is no memory.
 */
pud_t *ptshare_alloc_pud(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);

	return p4d ? pud_alloc(mm, p4d, addr) : NULL;
}

/*
 * Tables
 */

/**
 * ptshare_host_pmd() - a PMD entry of the host, made if need be
 * @ps: Shared page tables of a file.
 * @addr: The address in the host.
 *
 * Context: May sleep. The lock of a guest that maps what @addr does.
 * Return: The entry, in a table that counts the links to it. NULL if there is no memory.
 */
pmd_t *ptshare_host_pmd(struct ptshare *ps, unsigned long addr)
{
	struct mm_struct *mm = ps->mm;
	pud_t *pud = ptshare_alloc_pud(mm, addr);
	spinlock_t *ptl; /* of the PUD table */
	pmd_t *new;

	if (!pud || !pud_none(READ_ONCE(*pud)))
		return pud ? pmd_offset(pud, addr) : NULL;
	new = pmd_alloc_one(mm, addr);
	if (!new)
		return NULL;
	atomic_set(ptshare_gib_links_of(new), 0);
	virt_to_ptdesc(new)->pt_share_pages = 0;
	ptl = pud_lock(mm, pud);
	if (pud_none(*pud)) {
		mm_inc_nr_pmds(mm);
		/* As in __pmd_alloc(): contents before the entry. */
		smp_wmb();
		pud_populate(mm, pud, new);
		new = NULL;
	}
	spin_unlock(ptl);
	if (new)
		pmd_free(mm, new);
	return pmd_offset(pud, addr);
}

/* The lock of the PMD table is held. */
void __ptshare_new_table(struct ptshare *ps, pgtable_t table, unsigned int pages)
{
	atomic_set(ptshare_links_of(table), 0);
	page_ptdesc(table)->pt_share_pages = pages;
	atomic_long_inc(&ps->nr_tables);
	mod_node_page_state(page_pgdat(table), NR_PTSHARE_TABLES, 1);
}

/**
 * ptshare_uncount_table() - a table of the host is about to go
 * @ps: Shared page tables of a file.
 * @pmd: The PMD entry of the host, with the table behind it.
 *
 * Context: Nobody else makes tables of it go.
 */
void ptshare_uncount_table(struct ptshare *ps, pmd_t *pmd)
{
	struct ptdesc *gib = virt_to_ptdesc(pmd);
	pgtable_t table = pmd_pgtable(*pmd);
	unsigned int pages = page_ptdesc(table)->pt_share_pages;

	VM_WARN_ON_ONCE(ptshare_rule(UNLINK) &&
			atomic_read(ptshare_links_of(table)));
	WRITE_ONCE(gib->pt_share_pages,
		   gib->pt_share_pages - min(pages, gib->pt_share_pages));
	atomic_long_dec(&ps->nr_tables);
	mod_node_page_state(page_pgdat(table), NR_PTSHARE_TABLES, -1);
}

/* Of which no guest is left. */
static void uncount_unused(struct ptshare *ps, pmd_t *pmd)
{
	VM_WARN_ON_ONCE(ptshare_rule(UNLINK) &&
			atomic_read(ptshare_gib_links_of(pmd)));
	if (ptshare_has_table(*pmd))
		ptshare_uncount_table(ps, pmd);
}

static void free_class_tables(struct ptshare *ps, struct vm_area_struct *vma,
			      unsigned long start, unsigned long end)
{
	unsigned long addr = start;
	struct mmu_gather tlb;
	pmd_t *pmd;

	if (!ptshare_next_pmd(vma->vm_mm, &addr, end))
		return;
	memfd_zap_range(vma, start, end - start, NULL);
	for (; (pmd = ptshare_next_pmd(vma->vm_mm, &addr, end));
	     addr += PMD_SIZE) {
		trace_ptshare_free(ps->mapping->host, addr - vma->vm_start,
				   ptshare_class_of(vma->vm_flags));
		uncount_unused(ps, pmd);
	}
	tlb_gather_mmu(&tlb, vma->vm_mm);
	free_pgd_range(&tlb, start, end, start, end);
	tlb_finish_mmu(&tlb);
}

/* Page offset of the first table of some classes in a range, or @last + 1. */
static pgoff_t next_table(struct ptshare *ps, unsigned int classes,
			  pgoff_t first, pgoff_t last)
{
	struct mm_struct *mm = READ_ONCE(ps->mm);
	pgoff_t next = last + 1;
	enum ptshare_class class;

	for (class = 0; mm && class < PTSHARE_CLASSES; class++) {
		unsigned long base = PTSHARE_BASE(class);
		unsigned long addr = base + (first << PAGE_SHIFT);

		if ((classes & BIT(class)) && READ_ONCE(ps->vma[class]) &&
		    ptshare_next_pmd(mm, &addr, base + (next << PAGE_SHIFT)))
			next = min(next, (addr - base) >> PAGE_SHIFT);
	}
	return next;
}

/* Whether a guest in the tree can have links to tables of some classes. */
static bool may_link(const struct ptshare_vma *guest, unsigned int classes)
{
	if (!(classes & BIT(ptshare_class_of(guest->vma->vm_flags))))
		return false;
	/* See ptshare_count_unlinks(). */
	return atomic_read(&guest->mm->mm_users) || ptshare_mm_links(guest->mm);
}

/* The first guest that may link to tables of some classes in a range. */
static struct interval_tree_node *next_guest(struct ptshare *ps,
					     unsigned int classes,
					     pgoff_t first, pgoff_t last)
{
	struct interval_tree_node *node;

	if (!ptshare_rule(UNLINK))
		return NULL;
	for (node = interval_tree_iter_first(&ps->guests, first, last); node;
	     node = interval_tree_iter_next(node, first, last))
		if (may_link(container_of(node, struct ptshare_vma, blocks),
			     classes))
			return node;
	return NULL;
}

/*
 * Finds tables of some classes in a range of whole tables, for which there is
 * no guest of these. The range becomes that of the tables, or empty if there
 * are none. i_mmap_rwsem is held.
 */
static bool find_unused(struct ptshare *ps, unsigned int classes,
			pgoff_t *first, pgoff_t *last)
{
	struct interval_tree_node *guest;

	for (;;) {
		*first = next_table(ps, classes, *first, *last);
		if (*first > *last)
			return false;
		guest = next_guest(ps, classes, *first,
				   *first + TABLE_PAGES - 1);
		if (!guest)
			break;
		*first = guest->last + 1;
	}
	guest = next_guest(ps, classes, *first, *last);
	if (guest)
		*last = guest->start - 1;
	return true;
}

/*
 * Drops all entries of a class in a range, in which no guest of this class is
 * left, so that pages do not count as mapped by somebody. The tables stay:
 * guests of another class map the range, and may become guests of this one at
 * any time.
 */
static void zap_tables(struct ptshare *ps, enum ptshare_class class,
		       pgoff_t first, pgoff_t last)
{
	memfd_zap_range(ps->vma[class],
			PTSHARE_BASE(class) + (first << PAGE_SHIFT),
			(last + 1 - first) << PAGE_SHIFT, NULL);
}

/*
 * Frees all tables of a range of whole tables. i_mmap_rwsem is held for
 * writing, and no guest in the tree maps any of it (F).
 */
static void free_tables(struct ptshare *ps, pgoff_t first, pgoff_t last)
{
	enum ptshare_class class;

	i_mmap_assert_write_locked(ps->mapping);
	for (class = 0; class < PTSHARE_CLASSES; class++) {
		struct vm_area_struct *vma = READ_ONCE(ps->vma[class]);

		if (vma)
			free_class_tables(ps, vma,
					  vma->vm_start + (first << PAGE_SHIFT),
					  vma->vm_start +
					  ((last + 1) << PAGE_SHIFT));
	}
}

/* A piece at a time, to let others have the lock. */
#define FREE_BATCH	(SZ_128M >> PAGE_SHIFT)

static void free_unused(struct ptshare *ps, unsigned int classes, pgoff_t first,
			pgoff_t last)
{
	pgoff_t end;

	for (; first <= last; first = end + 1) {
		end = last;
		i_mmap_lock_write(ps->mapping);
		if (find_unused(ps, classes, &first, &end)) {
			end = min(end, first + FREE_BATCH - 1);
			if (classes == ALL_CLASSES)
				free_tables(ps, first, end);
			else
				zap_tables(ps, ilog2(classes), first, end);
		}
		i_mmap_unlock_write(ps->mapping);
		cond_resched();
	}
}

/*
 * Frees the tables of a range that have no guest, and drops the entries of
 * those of some classes that have guests of others only.
 */
static void release(struct ptshare *ps, unsigned int classes, pgoff_t first,
		    pgoff_t last)
{
	enum ptshare_class class;

	free_unused(ps, ALL_CLASSES, first, last);
	for (class = 0; class < PTSHARE_CLASSES; class++)
		if (classes & BIT(class))
			free_unused(ps, BIT(class), first, last);
}

/*
 * Guests that leave
 */

static void release_pending(struct ptshare *ps)
{
	unsigned int classes;
	pgoff_t first, last;
	struct file *file;

	ptshare_delay(TEARDOWN);
	i_mmap_lock_write(ps->mapping);
	file = ps->pending_file;
	ps->pending_file = NULL;
	classes = ps->pending_classes;
	ps->pending_classes = 0;
	first = ps->pending_first;
	last = ps->pending_last;
	i_mmap_unlock_write(ps->mapping);
	release(ps, classes, first, last);
	fput(file);
}

static void release_task_work(struct callback_head *work)
{
	release_pending(container_of(work, struct ptshare, task_work));
}

static void release_kthread_work(struct work_struct *work)
{
	release_pending(container_of(work, struct ptshare, work));
}

/*
 * Has tables freed as soon as no lock is held. Whoever is to do so already, and
 * has not begun, does it all.
 */
static void release_later(struct ptshare *ps, struct file *file,
			  unsigned int classes, pgoff_t first, pgoff_t last)
{
	i_mmap_assert_write_locked(ps->mapping);
	ps->pending_classes |= classes;
	if (ps->pending_file) {
		ps->pending_first = min(ps->pending_first, first);
		ps->pending_last = max(ps->pending_last, last);
		return;
	}
	ps->pending_first = first;
	ps->pending_last = last;
	ps->pending_file = get_file(file);
	if (!(current->flags & PF_KTHREAD) && ptshare_rule(RELEASE)) {
		init_task_work(&ps->task_work, release_task_work);
		if (!task_work_add(current, &ps->task_work, TWA_RESUME))
			return;
	}
	INIT_WORK(&ps->work, release_kthread_work);
	queue_work(memfd_unbound_wq, &ps->work);
}

static bool has_unused(struct ptshare *ps, unsigned int classes, pgoff_t first,
		       pgoff_t last)
{
	return find_unused(ps, classes, &first, &last);
}

/**
 * ptshare_guest_left() - a guest has left the tree
 * @guest: It.
 * @first: First page offset that it shared.
 * @last: The last one.
 *
 * Context: i_mmap_rwsem for writing. @guest still keeps its file.
 */
void ptshare_guest_left(struct vm_area_struct *guest, pgoff_t first,
			pgoff_t last)
{
	struct ptshare *ps = ptshare_of(guest);
	unsigned int class = BIT(ptshare_class_of(guest->vm_flags));

	if (has_unused(ps, class, first, last) ||
	    has_unused(ps, ALL_CLASSES, first, last))
		release_later(ps, guest->vm_file, class, first, last);
}

/* The tables that a range of a guest has as a whole; false if there are none. */
static bool whole_tables(const struct vm_area_struct *vma, unsigned long start,
			 unsigned long end, pgoff_t *first, pgoff_t *last)
{
	pgoff_t behind = ALIGN_DOWN(ptshare_offset(vma, end), PMD_SIZE) >> PAGE_SHIFT;

	*first = ALIGN(ptshare_offset(vma, start), PMD_SIZE) >> PAGE_SHIFT;
	*last = behind - 1;
	return *first < behind;
}

/**
 * ptshare_release_class() - a guest is about to leave tables of a class
 * @vma: The guest.
 * @class: The class.
 * @start: First address.
 * @end: End.
 *
 * Before the task returns to user mode they lose their entries if there is nobody
 * else.
 *
 * Context: May sleep. mmap lock for writing.
 */
void ptshare_release_class(struct vm_area_struct *vma, enum ptshare_class class,
			   unsigned long start, unsigned long end)
{
	struct ptshare *ps = ptshare_of(vma);
	pgoff_t first, last;

	if (!whole_tables(vma, start, end, &first, &last))
		return;
	i_mmap_lock_write(ps->mapping);
	release_later(ps, vma->vm_file, BIT(class), first, last);
	i_mmap_unlock_write(ps->mapping);
}

/**
 * ptshare_class_left() - a guest links to tables of another class from now on
 * @vma: The guest, unlinked and with new flags.
 * @class: The class it had.
 * @start: First address.
 * @end: End.
 *
 * Context: May sleep. mmap lock for writing.
 */
void ptshare_class_left(struct vm_area_struct *vma, enum ptshare_class class,
			unsigned long start, unsigned long end)
{
	struct ptshare *ps = ptshare_of(vma);
	pgoff_t first, last;
	bool unused;

	if (!whole_tables(vma, start, end, &first, &last))
		return;
	i_mmap_lock_read(ps->mapping);
	unused = has_unused(ps, BIT(class), first, last);
	i_mmap_unlock_read(ps->mapping);
	if (unused)
		ptshare_release_class(vma, class, start, end);
}

static void release_exiting(struct vm_area_struct *guest)
{
	struct ptshare *ps = ptshare_of(guest);
	unsigned int class = BIT(ptshare_class_of(guest->vm_flags));
	/* The blocks that are cut at its ends may be nobody's either. */
	pgoff_t first = ALIGN_DOWN(guest->vm_pgoff, TABLE_PAGES);
	pgoff_t last = ALIGN(guest->vm_pgoff + vma_pages(guest), TABLE_PAGES) - 1;
	bool unused;

	last = min(last, (PTSHARE_SPAN >> PAGE_SHIFT) - 1);
	i_mmap_lock_read(ps->mapping);
	unused = has_unused(ps, class, first, last) ||
		 has_unused(ps, ALL_CLASSES, first, last);
	i_mmap_unlock_read(ps->mapping);
	if (unused)
		release(ps, class, first, last);
}

/**
 * __ptshare_exit_mmap() - a process has ended, and unmapped all
 * @mm: Its address space. mm_users is 0, and all links are cleared.
 *
 * Frees what it used last, while the OOM killer waits for it still.
 *
 * Context: May sleep. mmap lock of @mm.
 */
void __ptshare_exit_mmap(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;

	if (!ptshare_rule(RELEASE))
		return;
	for_each_vma(vmi, vma) {
		/* fork() failed here: what follows are VMAs of the parent. */
		if (xa_is_zero(vma))
			break;
		if (ptshare_guest(vma))
			release_exiting(vma);
	}
}

/*
 * The host
 */

static int host_add_vma(struct ptshare *ps, struct mm_struct *mm,
			enum ptshare_class class,
			const struct vm_operations_struct *kind)
{
	struct vm_area_struct *vma = vm_area_alloc(mm);
	/* Without VM_MAYWRITE it does not count as a writer for file seals. */
	vm_flags_t flags = VM_READ | VM_SHARED | VM_MAYREAD | VM_MAYSHARE |
			   VM_SOFTDIRTY;
	int err;

	if (!vma)
		return -ENOMEM;
	memfd_vma_lock_class(vma, &host_vma_lock_key);
	if (class % PTSHARE_LOCKED == PTSHARE_RW)
		flags |= VM_WRITE;
	if (class >= PTSHARE_LOCKED)
		flags |= VM_LOCKED;
	vma->vm_start = PTSHARE_BASE(class);
	vma->vm_end = PTSHARE_BASE(class) + PTSHARE_SPAN;
	vm_flags_init(vma, flags);
	vma->vm_ops = &ptshare_host_vm_ops;
	vma->vm_private_data = (void *)kind;
	vma->vm_file = get_file(&ps->file);
	vma_set_page_prot(vma);
	err = insert_vm_struct(mm, vma);
	if (err) {
		fput(vma->vm_file);
		vm_area_free(vma);
		return err;
	}
	/* Pairs with ptshare_make_host(). */
	smp_store_release(&ps->vma[class], vma);
	return 0;
}

/*
 * What the VMAs of the host map. It ends with them, and has nothing to be closed.
 * Faults update the times of the file, for which they need a mount that is not
 * read-only. That through which a process has mapped it may go before the file
 * does; the kernel's own stays.
 */
static void host_init_file(struct ptshare *ps)
{
	struct inode *inode = ps->mapping->host;

	memfd_file_ref_init(&ps->file);
	ps->file.f_mode = FMODE_READ;
	ps->file.f_flags = O_RDONLY | O_NOATIME;
	ps->file.f_op = inode->i_fop;
	memfd_file_path(&ps->file)->mnt = ptshare_kernel_mount();
	ps->file.f_inode = inode;
	ps->file.f_mapping = ps->mapping;
	ps->file.f_cred = memfd_kernel_cred();
}

/*
 * Frees what is left above the first table of each class, if that is all there is, as
 * with most small files. It saves looking for more, through all of a VMA, and
 * several times.
 */
static void free_first_pmds(struct ptshare *ps, struct mm_struct *mm)
{
	unsigned long bytes = 0;
	enum ptshare_class class;
	struct mmu_gather tlb;

	/* Who looks for a page of the file still finds the VMAs. */
	i_mmap_assert_write_locked(ps->mapping);
	for (class = 0; class < PTSHARE_CLASSES; class++) {
		pmd_t *pmd = ptshare_find_pmd(mm, PTSHARE_BASE(class));

		if (!pmd)
			continue;
		/* Huge entries are no tables. */
		if (memchr_inv(pmd, 0, PTRS_PER_PMD * sizeof(*pmd)))
			return;
		bytes += PTRS_PER_PUD * sizeof(pud_t) + PTRS_PER_PMD * sizeof(*pmd);
	}
	if (mm_pgtables_bytes(mm) != bytes)
		return;
	tlb_gather_mmu(&tlb, mm);
	for (class = 0; class < PTSHARE_CLASSES; class++) {
		unsigned long base = PTSHARE_BASE(class);

		free_pgd_range(&tlb, base, base + PMD_SIZE, base,
			       base + PTSHARE_SPAN);
	}
	tlb_finish_mmu(&tlb);
}

static void host_end(struct ptshare *ps, struct mm_struct *mm)
{
	/* Nobody is left to be flushed; it is torn down without i_mmap_rwsem. */
	WRITE_ONCE(mm->ptshare, NULL);
	i_mmap_lock_write(ps->mapping);
	free_first_pmds(ps, mm);
	i_mmap_unlock_write(ps->mapping);
	mmput(mm);
	WARN_ON_ONCE(file_count(&ps->file) != 1);
}

static int host_init(struct ptshare *ps)
{
	struct mm_struct *mm = mm_alloc();

	if (!mm)
		return -ENOMEM;
	lockdep_set_class(&mm->mmap_lock, &host_mmap_lock_key);
#ifdef CONFIG_MEMCG
	/* It is nobody's, and outlives who makes it. */
	RCU_INIT_POINTER(mm->owner, NULL);
#endif
	/* Its maker's, such as whether it wants huge pages, are not for all. */
	memfd_mm_flags_clear(mm);
	memfd_mm_init_user_ns(mm);
	mm->ptshare = ps;
	host_init_file(ps);
	/* Whoever sees it sees all of it. */
	smp_store_release(&ps->mm, mm);
	return 0;
}

/**
 * ptshare_link_class() - to which tables a guest links
 * @guest: The guest.
 *
 * Context: Its lock.
 * Return: Its class, unless a test wants the wrong one.
 */
enum ptshare_class ptshare_link_class(const struct vm_area_struct *guest)
{
	enum ptshare_class class = ptshare_class_of(guest->vm_flags);

	if (!ptshare_rule(CLASS))
		class |= PTSHARE_RW;
	if (!ptshare_rule(LOCK))
		class &= ~PTSHARE_LOCKED;
	return class;
}

/*
 * Makes what is missing of the host, the VMA of a class above all. Its mmap lock is a
 * class of its own here, since nobody registers a notifier before all VMAs are there:
 * see ptshare_complete_host().
 */
static int make_class(struct ptshare *ps, const struct vm_area_struct *guest,
		      enum ptshare_class class)
{
	int err = 0;

	lockdep_assert_held(&ps->making);
	if (!ps->mm)
		err = host_init(ps);
	if (!err && !ps->vma[class]) {
		mmap_write_lock_nested(ps->mm, SINGLE_DEPTH_NESTING);
		err = host_add_vma(ps, ps->mm, class, ptshare_vm_ops(guest));
		mmap_write_unlock(ps->mm);
	}
	return err;
}

/**
 * ptshare_make_host() - make what a guest needs of the host, unless it is there
 * @ps: Shared page tables of the file.
 * @guest: One of its guests.
 *
 * Context: May sleep. The lock of @guest.
 * Return: 0 or -ENOMEM.
 */
int ptshare_make_host(struct ptshare *ps, const struct vm_area_struct *guest)
{
	enum ptshare_class class = ptshare_link_class(guest);
	int err;

	/* Pairs with host_add_vma(). */
	if (smp_load_acquire(&ps->vma[class]))
		return 0;
	mutex_lock(&ps->making);
	err = make_class(ps, guest, class);
	mutex_unlock(&ps->making);
	return err;
}

/**
 * ptshare_complete_host() - make all that there can be of the host
 * @ps: Shared page tables of the file.
 * @guest: A VMA of it.
 *
 * From then on faults need neither ptshare.making nor the mmap lock of the host. So
 * who registers a notifier may hold that, and wait for somebody who waits for faults.
 *
 * Context: May sleep. mmap lock of @guest.
 * Return: 0 or -ENOMEM.
 */
int ptshare_complete_host(struct ptshare *ps, const struct vm_area_struct *guest)
{
	enum ptshare_class class;
	int err = 0;

	mutex_lock(&ps->making);
	for (class = 0; !err && class < PTSHARE_CLASSES; class++)
		err = make_class(ps, guest, class);
	mutex_unlock(&ps->making);
	return err;
}

/* The tables of a host that has no guests are about to go with it. */
static void uncount_tables(struct ptshare *ps)
{
	unsigned long addr = PTSHARE_BASE(0);
	unsigned long end = PTSHARE_BASE(PTSHARE_CLASSES);
	pmd_t *pmd;

	for (; (pmd = ptshare_next_pmd(ps->mm, &addr, end)); addr += PMD_SIZE) {
		uncount_unused(ps, pmd);
		cond_resched();
	}
}

/**
 * ptshare_guest_came() - a guest has come into the tree
 * @ps: Shared page tables of its file.
 * @guest: It.
 *
 * Context: i_mmap_rwsem for writing.
 */
void ptshare_guest_came(struct ptshare *ps, struct vm_area_struct *guest)
{
	enum ptshare_class class;

	/* What kind of file it is, all of them agree on. */
	for (class = 0; class < PTSHARE_CLASSES; class++) {
		struct vm_area_struct *vma = READ_ONCE(ps->vma[class]);

		if (vma)
			WRITE_ONCE(vma->vm_private_data,
				   (void *)ptshare_vm_ops(guest));
	}
}

/*
 * Files
 */

/* What an inode has whose file is to share, and has not been mapped yet. */
#define UNMAPPED	((struct ptshare *)ERR_PTR(-ENOENT))

/**
 * ptshare_of_inode() - shared page tables of a file
 * @inode: Any inode.
 *
 * Return: NULL if it does not share, or has not been mapped yet.
 */
struct ptshare *ptshare_of_inode(struct inode *inode)
{
	struct ptshare *ps;

	if (!shmem_mapping(&inode->i_data))
		return NULL;
	ps = READ_ONCE(SHMEM_I(inode)->ptshare);
	return ps == UNMAPPED ? NULL : ps;
}

/**
 * ptshare_of() - shared page tables of the file that a VMA maps
 * @vma: The VMA, of a shmem file.
 *
 * Return: NULL if its file does not share.
 */
struct ptshare *ptshare_of(const struct vm_area_struct *vma)
{
	return SHMEM_I(file_inode(vma->vm_file))->ptshare;
}

/**
 * ptshare_enable() - somebody asks for shared page tables
 *
 * Context: May sleep. No locks.
 */
void ptshare_enable(void)
{
	/* Never off again: text patching costs more than the few branches. */
	static_branch_enable(&ptshare_used);
}

/**
 * ptshare_share_file() - processes that map a new file will share its page tables
 * @inode: The file's, of shmem, not yet visible to user space.
 *
 * Context: Any, but ptshare_enable() was called before.
 */
void ptshare_share_file(struct inode *inode)
{
	SHMEM_I(inode)->ptshare = UNMAPPED;
}

/**
 * ptshare_make() - the shared page tables of a file that is to have them
 * @inode: The file's.
 *
 * Context: May sleep.
 * Return: NULL if there is no memory.
 */
struct ptshare *ptshare_make(struct inode *inode)
{
	struct ptshare *ps, *there = READ_ONCE(SHMEM_I(inode)->ptshare);

	if (there != UNMAPPED)
		return there;
	ps = kzalloc(sizeof(*ps), GFP_KERNEL_ACCOUNT);
	if (!ps)
		return NULL;
	ps->mapping = inode->i_mapping;
	ps->guests = RB_ROOT_CACHED;
	ps->by_mm = RB_ROOT;
	INIT_LIST_HEAD(&ps->mms);
	mutex_init(&ps->making);
	mutex_init(&ps->registering);
	if (try_cmpxchg(&SHMEM_I(inode)->ptshare, &there, ps))
		return ps;
	kfree(ps);
	return there;
}

/**
 * ptshare_evict() - the file is going away
 * @inode: A shmem inode that nobody uses any more.
 *
 * Context: May sleep.
 */
void ptshare_evict(struct inode *inode)
{
	struct ptshare *ps = ptshare_of_inode(inode);

	if (!ps)
		return;
	/* A guest has a reference to the file, and who frees tables has one. */
	WARN_ON_ONCE(ps->nr_guests || ps->pending_file);
	if (atomic_long_read(&ps->nr_tables))
		uncount_tables(ps);
	if (ps->mm) {
		if (ps->notifier.ops)
			mmu_notifier_unregister(&ps->notifier, ps->mm);
		host_end(ps, ps->mm);
	}
	SHMEM_I(inode)->ptshare = NULL;
	kfree(ps);
}

/*
 * What others need to know of the host
 */

bool __ptshare_all_cgroups(void)
{
	return ptshare_rule(RECENCY);
}

struct mm_struct *__ptshare_fault_mm(struct vm_area_struct *vma)
{
	return current->mm ?: vma->vm_mm;
}

struct mm_struct *__ptshare_charge_mm(struct vm_area_struct *vma)
{
	return ptshare_rule(CHARGE) ? NULL : vma->vm_mm;
}
