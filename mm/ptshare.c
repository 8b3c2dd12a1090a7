// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: which mappings share, and who owns the tables.
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
 * Invariant F. A table of the host is freed only under i_mmap_rwsem for writing,
 * when no guest in the tree maps anything of its range. By L nobody links to it
 * then. Nobody links to it anew: a fault that links holds the lock of a guest in
 * the tree. No CPU walks it: clearing a link flushed paging-structure caches, and
 * interrupted CPUs that are in GUP-fast, which runs with interrupts off. Where
 * a hypervisor flushes CPUs that do not run when they run next, tables are freed by
 * RCU (tlb_remove_table()), which waits for GUP-fast as well.
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
 *           page table lock		links: the guest's PMD lock; entries: the
 *					table's own lock, the same for all
 */

#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/init_task.h>
#include <linux/interval_tree.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/user_namespace.h>
#include <asm/tlb.h>

#include "internal.h"
#include "ptshare.h"
#include "ptshare_debug.h"

DEFINE_STATIC_KEY_FALSE(ptshare_used);

/* Memory of a process that was killed for it must not wait for a new thread. */
static struct workqueue_struct *ptshare_wq;

/* The host's mmap lock is taken with a guest's held. */
static struct lock_class_key host_mmap_lock_key;

/* What a shared table cannot express; bits of protection are compared. */
#define PTSHARE_NEVER	(VM_LOCKED | VM_LOCKONFAULT | VM_HUGEPAGE | VM_HUGETLB | \
			 VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_GROWSDOWN | \
			 VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR)

static struct ptshare *inode_ptshare(struct inode *inode)
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
 * Files
 */

static void ptshare_free(struct kref *ref)
{
	kfree_rcu(container_of(ref, struct ptshare, ref), rcu);
}

static void ptshare_work(struct work_struct *work);

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
	struct ptshare *ps = inode_ptshare(file_inode(file));

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
	first = ptshare_next_table(ps->host, first, last);
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
	ptshare_free_tables(ps, ps->host, first, end);
out:
	i_mmap_unlock_write(ps->mapping);
	return end + 1;
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
		ptshare_uncount_tables(ps, dead);
		mmput(dead->mm);
		kfree(dead);
	}
	kref_put(&ps->ref, ptshare_free);
}

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
}

void __ptshare_unlinked(struct vm_area_struct *vma)
{
	struct ptshare *ps = ptshare_of(vma);

	i_mmap_assert_write_locked(ps->mapping);
	WRITE_ONCE(ps->nr_guests, ps->nr_guests - 1);
	ps->free_first = min(ps->free_first, vma->vm_pgoff);
	ps->free_last = max(ps->free_last, vma->vm_pgoff + vma_pages(vma) - 1);
	/* A guest that never had a fault may leave before there is a host. */
	if (!ps->host)
		return;
	kref_get(&ps->ref);
	if (!queue_work(ptshare_wq, &ps->work))
		kref_put(&ps->ref, ptshare_free);
}

struct vm_area_struct *__ptshare_first_guest(struct address_space *mapping,
					     pgoff_t first, pgoff_t last)
{
	struct ptshare *ps = inode_ptshare(mapping->host);

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
	return vma->vm_file && inode_ptshare(file_inode(vma->vm_file)) &&
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

	if (!file || !inode_ptshare(file_inode(file)) || IS_ERR_VALUE(addr))
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
