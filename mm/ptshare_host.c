// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: the host, who owns the tables, and its life.
 *
 * The host is an address space in which nobody runs. It belongs to a file, and has
 * a VMA for each class of mappings. Tables are made in it by faults of guests
 * (mm/ptshare_table.c), and freed here when their last guest is gone.
 *
 * Invariant F. A table of the host is freed only under i_mmap_rwsem for writing,
 * when no guest in the tree maps anything of its range. Nobody links to it then: a
 * guest clears its links before it leaves the tree (L in mm/ptshare.c).
 * Nobody links to it anew: a fault that links holds the lock of a guest in
 * the tree. No CPU walks it: clearing a link flushed paging-structure caches, and
 * interrupted CPUs that are in GUP-fast, which runs with interrupts off. Where
 * a hypervisor flushes CPUs that do not run when they run next, tables are freed by
 * RCU (tlb_remove_table()), which waits for GUP-fast as well.
 *
 * The host lives while guests do: it is made by the first fault of a guest, and
 * ended when the tree is empty. So its reference to the file makes no cycle. A
 * fault holds the lock of a guest in the tree, and so keeps the host without
 * a reference.
 *
 * Locks:
 *
 *   mmap lock, VMA lock of a guest
 *     ptshare.lock			makes and ends the host
 *       mmap lock of the host		its VMAs, while it is made; class of its own
 *         i_mmap_rwsem of the file	ptshare.guests
 */

#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/init_task.h>
#include <linux/interval_tree.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/user_namespace.h>
#include <asm/pgalloc.h>
#include <asm/tlb.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

DEFINE_STATIC_KEY_FALSE(ptshare_used);

/* Memory of a process that was killed for it must not wait for a new thread. */
static struct workqueue_struct *ptshare_wq;

/* The host's mmap lock is taken with a guest's held. */
static struct lock_class_key host_mmap_lock_key;

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
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(READ_ONCE(*pgd)))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(READ_ONCE(*p4d)))
		return NULL;
	pud = pud_offset(p4d, addr);
	if (pud_none(READ_ONCE(*pud)))
		return NULL;
	return pmd_offset(pud, addr);
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
	/* Levels that are folded are never empty, and end where the next one does. */
	while (*addr < end) {
		unsigned long pgd_end = pgd_addr_end(*addr, end);
		unsigned long p4d_end = p4d_addr_end(*addr, pgd_end);
		unsigned long pud_end = pud_addr_end(*addr, p4d_end);
		pgd_t *pgd = pgd_offset(mm, *addr);
		p4d_t *p4d;
		pud_t *pud;
		pmd_t *pmd;

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
		if (pud_none(READ_ONCE(*pud))) {
			*addr = pud_end;
			continue;
		}
		pmd = pmd_offset(pud, *addr);
		if (!pmd_none(pmdp_get_lockless(pmd)))
			return pmd;
		*addr = pmd_addr_end(*addr, pud_end);
	}
	return NULL;
}

/**
 * ptshare_alloc_pmd() - the PMD entry for an address, made if need be
 * @mm: The host, or the address space of a guest.
 * @addr: The address.
 *
 * Context: May sleep. The lock of a guest.
 * Return: NULL if there is no memory.
 */
pmd_t *ptshare_alloc_pmd(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	pud_t *pud;

	if (!p4d)
		return NULL;
	pud = pud_alloc(mm, p4d, addr);
	return pud ? pmd_alloc(mm, pud, addr) : NULL;
}

/*
 * Tables
 */

/**
 * ptshare_host_table() - a table of the host, made if need be
 * @ps: Shared page tables of a file.
 * @mm: The mm_struct of its host.
 * @addr: The address in the host.
 *
 * Context: May sleep. The lock of a guest that maps what @addr does.
 * Return: The PMD entry with a table behind it, NULL if there is no memory.
 */
pmd_t *ptshare_host_table(struct ptshare *ps, struct mm_struct *mm,
			  unsigned long addr)
{
	pmd_t *pmd = ptshare_alloc_pmd(mm, addr);
	pgtable_t table, new;

	if (!pmd || !pmd_none(pmdp_get_lockless(pmd)))
		return pmd;
	table = pte_alloc_one(mm);
	if (!table)
		return NULL;
	new = table;
	atomic_set(ptshare_links_of(table), 0);
	pmd_install(mm, pmd, &new);
	if (new) {
		pte_free(mm, new);
		return pmd;
	}
	atomic_long_inc(&ps->nr_tables);
	mod_node_page_state(page_pgdat(table), NR_PTSHARE_TABLES, 1);
	return pmd;
}

static void uncount_table(struct ptshare *ps, pmd_t *pmd)
{
	pgtable_t table = pmd_pgtable(*pmd);

	VM_WARN_ON_ONCE(ptshare_rule(UNLINK) && atomic_read(ptshare_links_of(table)));
	atomic_long_dec(&ps->nr_tables);
	mod_node_page_state(page_pgdat(table), NR_PTSHARE_TABLES, -1);
}

static void free_class_tables(struct ptshare *ps, struct vm_area_struct *vma,
			      unsigned long start, unsigned long end)
{
	unsigned long addr = start;
	struct mmu_gather tlb;
	pmd_t *pmd;

	if (!ptshare_next_pmd(vma->vm_mm, &addr, end))
		return;
	zap_page_range_single(vma, start, end - start, NULL);
	for (; (pmd = ptshare_next_pmd(vma->vm_mm, &addr, end)); addr += PMD_SIZE)
		uncount_table(ps, pmd);
	tlb_gather_mmu(&tlb, vma->vm_mm);
	free_pgd_range(&tlb, start, end, start, end);
	tlb_finish_mmu(&tlb);
}

/* Page offset of the first table of any class in a range, or @last + 1. */
static pgoff_t next_table(struct ptshare_host *host, pgoff_t first,
			  pgoff_t last)
{
	pgoff_t next = last + 1;
	enum ptshare_class class;

	for (class = 0; class < PTSHARE_CLASSES; class++) {
		unsigned long base = PTSHARE_BASE(class);
		unsigned long addr = base + (first << PAGE_SHIFT);

		if (ptshare_next_pmd(host->mm, &addr, base + (next << PAGE_SHIFT)))
			next = min(next, (addr - base) >> PAGE_SHIFT);
	}
	return next;
}

/*
 * Frees all tables of a range of whole tables. i_mmap_rwsem is held for writing, and
 * no guest in the tree maps any of it (F).
 */
static void free_tables(struct ptshare *ps, struct ptshare_host *host,
			pgoff_t first, pgoff_t last)
{
	enum ptshare_class class;

	i_mmap_assert_write_locked(ps->mapping);
	for (class = 0; class < PTSHARE_CLASSES; class++)
		free_class_tables(ps, host->vma[class],
				  PTSHARE_BASE(class) + (first << PAGE_SHIFT),
				  PTSHARE_BASE(class) +
				  ((last + 1) << PAGE_SHIFT));
}

/* The tables of a host, of which nobody knows any more, are about to go with it. */
static void uncount_tables(struct ptshare *ps, struct ptshare_host *host)
{
	unsigned long addr = PTSHARE_BASE(0);
	unsigned long end = PTSHARE_BASE(PTSHARE_CLASSES);
	pmd_t *pmd;

	for (; (pmd = ptshare_next_pmd(host->mm, &addr, end)); addr += PMD_SIZE) {
		uncount_table(ps, pmd);
		cond_resched();
	}
}

/**
 * ptshare_of_inode() - shared page tables of a file
 * @inode: Any inode.
 *
 * Return: NULL if it does not share.
 */
struct ptshare *ptshare_of_inode(struct inode *inode)
{
	return shmem_mapping(inode->i_mapping) ? SHMEM_I(inode)->ptshare : NULL;
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

/*
 * The host
 */

/*
 * The file that the host maps. Not an open file description of a process: locks
 * and the like live as long as that does. Not one for writing: it would count as
 * a writer.
 */
static struct file *host_file(struct vm_area_struct *guest)
{
	/* Nobody's credentials either, and no limit that is somebody's. */
	const struct cred *old = override_creds(&init_cred);
	struct file *file = alloc_file_clone(guest->vm_file,
					     O_RDONLY | O_NOATIME,
					     guest->vm_file->f_op);

	revert_creds(old);
	return file;
}

static int host_add_vma(struct ptshare_host *host, struct vm_area_struct *guest,
			struct file *file, enum ptshare_class class)
{
	struct vm_area_struct *vma = vm_area_alloc(host->mm);
	/* Without VM_MAYWRITE it does not count as a writer for file seals. */
	vm_flags_t flags = VM_READ | VM_SHARED | VM_MAYREAD | VM_MAYSHARE |
			   VM_SOFTDIRTY;
	int err;

	if (!vma)
		return -ENOMEM;
	if (class == PTSHARE_RW)
		flags |= VM_WRITE;
	vma_set_range(vma, PTSHARE_BASE(class),
		      PTSHARE_BASE(class) + PTSHARE_SPAN, 0);
	vm_flags_init(vma, flags);
	vma->vm_ops = &ptshare_host_vm_ops;
	vma->vm_private_data = guest->vm_private_data;
	vma->vm_file = get_file(file);
	vma_set_page_prot(vma);
	err = insert_vm_struct(host->mm, vma);
	if (err) {
		fput(vma->vm_file);
		vm_area_free(vma);
		return err;
	}
	host->vma[class] = vma;
	return 0;
}

static struct ptshare_host *host_alloc(struct ptshare *ps,
				       struct vm_area_struct *guest)
{
	struct ptshare_host *host = kzalloc(sizeof(*host), GFP_KERNEL_ACCOUNT);
	enum ptshare_class class;
	struct file *file;
	int err = 0;

	if (!host)
		return NULL;
	host->mm = mm_alloc();
	if (!host->mm)
		goto err_free;
	lockdep_set_class(&host->mm->mmap_lock, &host_mmap_lock_key);
#ifdef CONFIG_MEMCG
	/* It is nobody's, and outlives who makes it. */
	RCU_INIT_POINTER(host->mm->owner, NULL);
#endif
	/* Its maker's, such as whether it wants huge pages, are not for all. */
	host->mm->flags = 0;
	put_user_ns(host->mm->user_ns);
	host->mm->user_ns = get_user_ns(&init_user_ns);
	host->mm->ptshare = ps;
	file = host_file(guest);
	if (IS_ERR(file))
		goto err_put;
	mmap_write_lock(host->mm);
	for (class = 0; !err && class < PTSHARE_CLASSES; class++)
		err = host_add_vma(host, guest, file, class);
	mmap_write_unlock(host->mm);
	fput(file);
	if (err)
		goto err_put;
	return host;

err_put:
	WRITE_ONCE(host->mm->ptshare, NULL);
	mmput(host->mm);
err_free:
	kfree(host);
	return NULL;
}

/**
 * ptshare_get_host() - the host of a file, made if need be
 * @guest: A VMA in the tree of guests.
 *
 * Context: May sleep. mmap lock of @guest.
 * Return: The host, kept by @guest, or NULL if there is no memory.
 */
struct ptshare_host *ptshare_get_host(struct vm_area_struct *guest)
{
	struct ptshare *ps = ptshare_of(guest);
	struct ptshare_host *host;

	mutex_lock(&ps->lock);
	host = ps->host;
	if (!host) {
		host = host_alloc(ps, guest);
		/* Its fields are visible before it is. */
		smp_store_release(&ps->host, host);
	}
	mutex_unlock(&ps->lock);
	return host;
}

/* Ends the host if there are no guests, or else its tables that have none. */
static struct ptshare_host *host_end(struct ptshare *ps)
{
	struct ptshare_host *host = ps->host;

	i_mmap_lock_write(ps->mapping);
	if (!RB_EMPTY_ROOT(&ps->guests.rb_root)) {
		i_mmap_unlock_write(ps->mapping);
		return NULL;
	}
	WRITE_ONCE(ps->host, NULL);
	/* Nobody is left to be flushed, and it is torn down without i_mmap_rwsem. */
	WRITE_ONCE(host->mm->ptshare, NULL);
	ps->free_first = ULONG_MAX;
	ps->free_last = 0;
	i_mmap_unlock_write(ps->mapping);
	return host;
}

/* A piece at a time, to let others have the lock. */
#define FREE_BATCH	(SZ_128M >> PAGE_SHIFT)

/*
 * Frees tables from @first on that have no guest. Returns where to go on, behind
 * @last at the end.
 */
static pgoff_t free_some(struct ptshare *ps, pgoff_t first, pgoff_t last)
{
	struct vm_area_struct *guest;
	pgoff_t end = last;

	i_mmap_lock_write(ps->mapping);
	first = next_table(ps->host, first, last);
	if (first > last)
		goto out;
	guest = vma_interval_tree_iter_first(&ps->guests, first, last);
	if (guest && !ptshare_rule(UNLINK))
		guest = NULL;
	if (guest && guest->vm_pgoff <= first) {
		end = guest->vm_pgoff + vma_pages(guest) - 1;
		goto out;
	}
	if (guest)
		end = guest->vm_pgoff - 1;
	end = min(end, first + FREE_BATCH - 1);
	free_tables(ps, ps->host, first, end);
out:
	i_mmap_unlock_write(ps->mapping);
	return end + 1;
}

static void ptshare_free(struct kref *ref)
{
	kfree_rcu(container_of(ref, struct ptshare, ref), rcu);
}

static void ptshare_work(struct work_struct *work)
{
	struct ptshare *ps = container_of(work, struct ptshare, work);
	struct ptshare_host *dead = NULL;
	pgoff_t first, last;

	ptshare_delay(TEARDOWN);
	mutex_lock(&ps->lock);
	if (!ps->host)
		goto out;
	/* The host keeps the file. */
	dead = host_end(ps);
	if (dead)
		goto out;
	i_mmap_lock_write(ps->mapping);
	first = ps->free_first;
	last = ps->free_last;
	ps->free_first = ULONG_MAX;
	ps->free_last = 0;
	i_mmap_unlock_write(ps->mapping);
	while (first <= last) {
		first = free_some(ps, first, last);
		cond_resched();
	}
out:
	mutex_unlock(&ps->lock);
	if (dead) {
		uncount_tables(ps, dead);
		mmput(dead->mm);
		kfree(dead);
	}
	kref_put(&ps->ref, ptshare_free);
}

/**
 * ptshare_put_host() - a guest has left the tree
 * @ps: Shared page tables of its file.
 * @first: First page offset that it mapped.
 * @last: The last one.
 *
 * Context: i_mmap_rwsem for writing.
 */
void ptshare_put_host(struct ptshare *ps, pgoff_t first, pgoff_t last)
{
	ps->free_first = min(ps->free_first, first);
	ps->free_last = max(ps->free_last, last);
	/* A guest that never had a fault may leave before there is a host. */
	if (!ps->host)
		return;
	kref_get(&ps->ref);
	if (!queue_work(ptshare_wq, &ps->work))
		kref_put(&ps->ref, ptshare_free);
}

/*
 * Files
 */

/**
 * ptshare_create() - processes that map a new memfd will share its page tables
 * @file: The shmem file, not yet visible to user space.
 *
 * Context: May sleep.
 * Return: 0 or -ENOMEM.
 */
int ptshare_create(struct file *file)
{
	struct ptshare *ps;

	if (!ptshare_wq)
		return -ENOMEM;
	ps = kzalloc(sizeof(*ps), GFP_KERNEL_ACCOUNT);
	if (!ps)
		return -ENOMEM;
	kref_init(&ps->ref);
	ps->mapping = file->f_mapping;
	mutex_init(&ps->lock);
	ps->guests = RB_ROOT_CACHED;
	ps->free_first = ULONG_MAX;
	INIT_WORK(&ps->work, ptshare_work);
	SHMEM_I(file_inode(file))->ptshare = ps;
	/* Never off again: text patching costs more than the few branches. */
	static_branch_enable(&ptshare_used);
	return 0;
}

/**
 * ptshare_evict() - the file is going away
 * @inode: A shmem inode that nobody uses any more.
 *
 * Context: May sleep.
 */
void ptshare_evict(struct inode *inode)
{
	struct ptshare *ps = SHMEM_I(inode)->ptshare;

	if (!ps)
		return;
	/* The host has a reference to the file. */
	WARN_ON_ONCE(ps->host);
	WRITE_ONCE(SHMEM_I(inode)->ptshare, NULL);
	kref_put(&ps->ref, ptshare_free);
}

/**
 * ptshare_show_fdinfo() - figures of a file for /proc/PID/fdinfo
 * @m: Where to write.
 * @file: A shmem file.
 *
 * Context: May sleep.
 */
void ptshare_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct ptshare *ps = ptshare_of_inode(file_inode(file));

	if (!ps)
		return;
	seq_printf(m, "ptshare_guests:\t%lu\nptshare_tables:\t%ld\nptshare_links:\t%ld\n",
		   READ_ONCE(ps->nr_guests), atomic_long_read(&ps->nr_tables),
		   atomic_long_read(&ps->nr_links));
}

bool __ptshare_folio_shared(const struct folio *folio)
{
	struct address_space *mapping;
	bool shared = false;

	/* The inode may be on its way out; its memory waits for RCU. */
	rcu_read_lock();
	mapping = READ_ONCE(folio->mapping);
	if (mapping && !((unsigned long)mapping & PAGE_MAPPING_FLAGS) &&
	    shmem_mapping(mapping)) {
		struct ptshare *ps = READ_ONCE(SHMEM_I(mapping->host)->ptshare);

		shared = ps && READ_ONCE(ps->nr_guests) > 1 &&
			 ptshare_rule(MAPCOUNT);
	}
	rcu_read_unlock();
	return shared;
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

static int __init ptshare_init(void)
{
	ptshare_wq = alloc_workqueue("ptshare", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return ptshare_wq ? 0 : -ENOMEM;
}
subsys_initcall(ptshare_init);
