// SPDX-License-Identifier: GPL-2.0-only
/*
 * What page faults and system calls ask before they change a memfd: go on, wait,
 * or fail. All writers come through here, and nowhere else is it decided.
 *
 * Invariant W. While memfd_protect.modes says that a page is protected, no
 * page-table entry that maps it is writable or becomes so. Who protects stores
 * the mode first and then walks the entries, taking each page table lock. Who
 * makes an entry writable looks at the mode under that lock:
 *
 *   fault				memfd_protect()
 *
 *   lock page table			store mode
 *   read mode				lock page table
 *   set entry				take write access away
 *   unlock				unlock
 *
 * If the fault has the lock first, the walk undoes what it set. If the walk has
 * it first, the fault reads the new mode. If the walk does not see the page table
 * because the fault is just installing it, the full barrier in
 * page_protected(), after the store of the table's entry, pairs with the one in
 * memfd_walk_protect(). The default of a page-table entry stays writable, as for
 * any memfd, so an unprotected page costs nothing but this look.
 *
 * Invariant C. A system call that changes contents looks at the modes under
 * inode_lock(), and memfd_protect() stores them under it.
 *
 * Invariant S. Who waits holds no lock. A fault drops its mmap or VMA lock and
 * returns VM_FAULT_RETRY, a system call drops inode_lock() and checks anew.
 *
 * A fault that meets a memfd_protect() under way, whose outcome is open, sleeps
 * until it is settled, so that a memfd_protect() that fails has not been noticed
 * by anyone. System calls are kept out by inode_lock().
 *
 * Locks: mmap or VMA lock, or inode_lock() -> memfd_protect.lock ->
 * memfd_waiters.lock. Under a page table lock only RCU.
 */

#include <linux/freezer.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_protect.h"

#include <trace/events/memfd_protect.h>

/* The default of fault-around, which is read faults' counterpart. */
#define WP_AROUND_BYTES	max_t(unsigned long, SZ_64K, PAGE_SIZE)

/*
 * The question under the page table lock. What came before that lock was taken,
 * a new page table made visible above all, comes before the look at the mode.
 */
static bool page_protected(struct memfd_protect *mp, pgoff_t index)
{
	/* Pairs with smp_mb() in memfd_walk_protect(). */
	smp_mb__after_spinlock();
	return memfd_mode_at(mp, index) != MEMFD_MODE_NONE;
}

/*
 * Faults
 */

/*
 * A denied writer in the kernel gets its error when the fault is tried again,
 * because an error cannot be returned once the mmap lock is released. A first
 * try has nothing to do with what was denied before.
 */
static bool fault_was_denied(struct vm_fault *vmf)
{
	unsigned long denied = current->memfd_denied;

	if (likely(!denied))
		return false;
	current->memfd_denied = 0;
	return (vmf->flags & FAULT_FLAG_TRIED) && denied == (vmf->address | 1);
}

static void fault_deny(struct vm_fault *vmf)
{
	if (vmf->flags & FAULT_FLAG_USER)
		force_sig_fault(SIGBUS, BUS_ADRERR,
				(void __user *)vmf->real_address);
	else
		current->memfd_denied = vmf->address | 1;
}

/*
 * User mode comes back to signals by itself. A fault in kernel mode would be
 * tried again at once with the signal still pending, so it only dies of one. It
 * may hold locks of the system call that it is in, and sleeps with them anyway.
 */
static unsigned int fault_sleep_state(unsigned int flags)
{
	if (flags & FAULT_FLAG_USER)
		return TASK_INTERRUPTIBLE | TASK_FREEZABLE;
	return TASK_KILLABLE | TASK_FREEZABLE_UNSAFE;
}

static bool fault_may_wait(struct memfd_protect *mp, unsigned int flags)
{
	if (current->flags & (PF_KTHREAD | PF_EXITING | PF_DUMPCORE))
		return false;
	if (!(flags & FAULT_FLAG_USER) && !READ_ONCE(mp->kernel))
		return false;
	return flags & FAULT_FLAG_ALLOW_RETRY;
}

static vm_fault_t fault_wait(struct vm_fault *vmf, struct memfd_protect *mp,
			     struct memfd_writer *writer)
{
	int err;

	memfd_state_trace_caught(mp, writer, MEMFD_MODE_WAIT);
	if (!fault_may_wait(mp, vmf->flags)) {
		memfd_waiters_report(&mp->waiters, writer);
		return VM_FAULT_SIGBUS;
	}
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;

	/* Without the lock nothing but this reference keeps @mp. */
	kref_get(&mp->ref);
	writer->state = fault_sleep_state(vmf->flags);
	release_fault_lock(vmf);
	memfd_delay(ENQUEUE);
	err = memfd_waiters_wait(mp, writer);
	if (err == -EPERM)
		fault_deny(vmf);
	else if (err == -ENOMEM)
		/* The caller comes back; let others free memory. */
		schedule_timeout_killable(1);
	memfd_state_put(mp);
	return VM_FAULT_RETRY;
}

/*
 * Sleeps until the memfd_protect() that was under way at @seq is settled. A fault
 * that cannot drop its lock keeps it: memfd_protect() does not need it, and takes
 * a bounded time. Returns 0 to ask again.
 */
static vm_fault_t fault_settle(struct vm_fault *vmf, struct memfd_protect *mp,
			       unsigned int seq)
{
	unsigned int state = fault_sleep_state(vmf->flags);

	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	if (!(vmf->flags & FAULT_FLAG_ALLOW_RETRY))
		return wait_event_state(mp->flight.settled,
					READ_ONCE(mp->flight.seq) != seq,
					TASK_KILLABLE) ? VM_FAULT_SIGBUS : 0;
	kref_get(&mp->ref);
	release_fault_lock(vmf);
	wait_event_state(mp->flight.settled,
			 READ_ONCE(mp->flight.seq) != seq, state);
	memfd_state_put(mp);
	return VM_FAULT_RETRY;
}

/*
 * Reads the mode of a page, and whether it is settled. memfd_protect() makes
 * flight.seq odd before it stores modes, and even when it has stored the final
 * ones; so a mode that was read with the same @seq before and after is
 * final if @seq is even, and open only within the range if it is odd.
 */
static enum memfd_mode mode_settled(struct memfd_protect *mp, pgoff_t index,
				    unsigned int *seq, bool *open)
{
	enum memfd_mode mode;

	do {
		/* flight.seq is read before the limits and the mode are. */
		*seq = smp_load_acquire(&mp->flight.seq);
		mode = memfd_mode_at(mp, index);
		*open = (*seq & 1) && mode != MEMFD_MODE_NONE &&
			index >= READ_ONCE(mp->flight.first) &&
			index <= READ_ONCE(mp->flight.last);
		/* The mode and the limits are read before flight.seq is again. */
		smp_rmb();
	} while (READ_ONCE(mp->flight.seq) != *seq);
	return mode;
}

/* A fault on a page that is, or just was, protected. */
static noinline vm_fault_t fault_caught(struct vm_fault *vmf,
					struct memfd_protect *mp)
{
	struct memfd_writer writer = {
		.first = vmf->pgoff,
		.last = vmf->pgoff,
		.type = MEMFD_EVENT_FAULT,
		.flags = vmf->flags & FAULT_FLAG_USER ? 0 : MEMFD_EVENT_F_KERNEL,
	};
	enum memfd_mode mode;
	unsigned int seq;
	vm_fault_t ret;
	bool open;
	int err;

again:
	mode = mode_settled(mp, vmf->pgoff, &seq, &open);
	if (open && memfd_hook(FLIGHT)) {
		ret = fault_settle(vmf, mp, seq);
		if (ret)
			return ret;
		goto again;
	}

	switch (mode) {
	case MEMFD_MODE_WAIT:
		return fault_wait(vmf, mp, &writer);
	case MEMFD_MODE_DENY:
		memfd_state_trace_caught(mp, &writer, mode);
		return VM_FAULT_SIGBUS;
	case MEMFD_MODE_ASYNC:
		err = memfd_state_log(mp, &writer);
		if (err == -EAGAIN)
			goto again;
		if (err)
			return VM_FAULT_OOM;
		break;
	case MEMFD_MODE_NONE:
		break;
	}
	return 0;
}

vm_fault_t __memfd_protect_fault(struct vm_fault *vmf)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vmf->vma);
	vm_fault_t ret = 0;

	/* The fault of a guest, which has asked in its own name. */
	if (ptshare_host(vmf->vma))
		return memfd_mode_at(mp, vmf->pgoff) == MEMFD_MODE_NONE ?
		       0 : VM_FAULT_NOPAGE;
	if (fault_was_denied(vmf))
		return VM_FAULT_SIGBUS;
	/* What is in flight does not matter where nothing is protected. */
	if (memfd_mode_at(mp, vmf->pgoff) != MEMFD_MODE_NONE)
		ret = fault_caught(vmf, mp);
	if (!ret)
		memfd_delay(FAULT);
	return ret;
}

/*
 * The page at vmf->address is about to become writable. So are its neighbours
 * that may be, as fault-around does it for pages that are not mapped yet: lifting
 * the protection of a range should not cost one fault a page.
 */
static void wp_fault_around(struct vm_fault *vmf, struct memfd_protect *mp)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned int mode = MEMFD_MODE_NONE;
	unsigned long addr, start, end;
	pgoff_t index, last;
	pte_t *pte;

	/* Whoever else wants to be told of writes is to be told. */
	if (!pte_write(pfn_pte(0, vma->vm_page_prot)))
		return;
	start = ALIGN_DOWN(vmf->address, WP_AROUND_BYTES);
	end = min(start + WP_AROUND_BYTES, vma->vm_end);
	start = max(start, vma->vm_start);
	pte = vmf->pte - ((vmf->address - start) >> PAGE_SHIFT);
	index = linear_page_index(vma, start);
	last = index - 1;

	rcu_read_lock();
	for (addr = start; addr < end; addr += PAGE_SIZE, pte++, index++) {
		pte_t old = ptep_get(pte);

		if (last == index - 1)
			mode = memfd_ranges_get_run(&mp->modes, index, &last);
		if (addr == vmf->address || mode != MEMFD_MODE_NONE ||
		    !pte_present(old) || pte_write(old) ||
		    pte_protnone(old) || pte_uffd_wp(old))
			continue;
		old = ptep_modify_prot_start(vma, addr, pte);
		ptep_modify_prot_commit(vma, addr, pte, old,
					pte_mkwrite(old, vma));
	}
	rcu_read_unlock();
}

vm_fault_t __memfd_protect_wp_fault(struct vm_fault *vmf)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vmf->vma);
	struct folio *folio = page_folio(vmf->page);
	vm_fault_t ret;

	if (!page_protected(mp, vmf->pgoff)) {
		wp_fault_around(vmf, mp);
		return 0;
	}

	/* The entry must still mean the same page when it is compared below. */
	folio_get(folio);
	pte_unmap_unlock(vmf->pte, vmf->ptl);
	ret = __memfd_protect_fault(vmf);
	if (ret)
		goto out;
	vmf->pte = pte_offset_map_lock(vmf->vma->vm_mm, vmf->pmd, vmf->address,
				       &vmf->ptl);
	if (vmf->pte) {
		if (pte_same(ptep_get(vmf->pte), vmf->orig_pte) &&
		    (!page_protected(mp, vmf->pgoff) ||
		     !memfd_hook(WP_RECHECK)))
			goto out;
		pte_unmap_unlock(vmf->pte, vmf->ptl);
	}
	ret = VM_FAULT_NOPAGE;
out:
	folio_put(folio);
	return ret;
}

void __memfd_protect_set_ptes(struct vm_area_struct *vma, unsigned long addr,
			      pte_t *ptep, pte_t pte, unsigned int nr)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vma);
	pgoff_t index = linear_page_index(vma, addr);

	if (!pte_write(pte) || !(vma->vm_flags & VM_SHARED) ||
	    !memfd_hook(SET_PTES)) {
		set_ptes(vma->vm_mm, addr, ptep, pte, nr);
		return;
	}
	if (nr == 1) {
		if (page_protected(mp, index))
			pte = pte_wrprotect(pte);
		set_pte_at(vma->vm_mm, addr, ptep, pte);
		return;
	}

	/* Pairs with smp_mb() in memfd_walk_protect(). */
	smp_mb__after_spinlock();
	rcu_read_lock();
	while (nr) {
		enum memfd_mode mode;
		unsigned int run;
		pgoff_t last;

		mode = memfd_ranges_get_run(&mp->modes, index, &last);
		run = min_t(pgoff_t, last - index + 1, nr);
		set_ptes(vma->vm_mm, addr, ptep,
			 mode == MEMFD_MODE_NONE ? pte : pte_wrprotect(pte),
			 run);
		pte = pte_advance_pfn(pte, run);
		ptep += run;
		addr += (unsigned long)run << PAGE_SHIFT;
		index += run;
		nr -= run;
	}
	rcu_read_unlock();
}

bool __memfd_protect_pte(struct vm_area_struct *vma, unsigned long addr)
{
	if (!(vma->vm_flags & VM_SHARED) || !memfd_hook(PTE))
		return false;
	return page_protected(memfd_protect_of_vma(vma), linear_page_index(vma, addr));
}

bool __memfd_protect_no_pmd(void)
{
	return memfd_hook(PMD);
}
