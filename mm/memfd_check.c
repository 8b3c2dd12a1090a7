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
#include <linux/pipe_fs_i.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>
#include <linux/uio.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_protect.h"

#include <trace/events/memfd_protect.h>

/* The default of fault-around, which is read faults' counterpart. */
#define WP_AROUND_BYTES	max_t(unsigned long, SZ_64K, PAGE_SIZE)

static struct memfd_protect *vma_protect(const struct vm_area_struct *vma)
{
	return SHMEM_I(file_inode(vma->vm_file))->protect;
}

static struct memfd_protect *inode_protect(struct inode *inode)
{
	return shmem_mapping(inode->i_mapping) ? SHMEM_I(inode)->protect : NULL;
}

static enum memfd_mode mode_at(struct memfd_protect *mp, pgoff_t index)
{
	enum memfd_mode mode;

	rcu_read_lock();
	mode = memfd_ranges_get(&mp->modes, index);
	rcu_read_unlock();
	return mode;
}

/*
 * The question under the page table lock. What came before that lock was taken,
 * a new page table made visible above all, comes before the look at the mode.
 */
static bool page_protected(struct memfd_protect *mp, pgoff_t index)
{
	/* Pairs with smp_mb() in memfd_walk_protect(). */
	smp_mb__after_spinlock();
	return mode_at(mp, index) != MEMFD_MODE_NONE;
}

/*
 * The flight
 */

/**
 * memfd_flight_over() - whether the outcome for some pages is open
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * Context: &memfd_protect.lock.
 * Return: True if a memfd_protect() under way concerns any of them.
 */
bool memfd_flight_over(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	return (mp->flight.seq & 1) && first <= mp->flight.last &&
	       last >= mp->flight.first;
}

/**
 * memfd_flight_lock() - take the lock when the outcome for some pages is known
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 * @state: How to sleep, TASK_*.
 *
 * Context: May sleep. Who holds inode_lock(), shared even, does not wait, because
 * then nothing is in flight.
 * Return: 0 with &memfd_protect.lock held, or -EINTR.
 */
int memfd_flight_lock(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		      unsigned int state)
{
	unsigned int seq;
	int err;

	for (;;) {
		mutex_lock(&mp->lock);
		if (!memfd_flight_over(mp, first, last))
			return 0;
		seq = mp->flight.seq;
		mutex_unlock(&mp->lock);
		err = wait_event_state(mp->flight.settled,
				       READ_ONCE(mp->flight.seq) != seq, state);
		if (err)
			return -EINTR;
	}
}

/**
 * memfd_flight_begin() - the outcome for some pages is open from now on
 * @mp: Protection of the file.
 * @first: First page offset.
 * @last: Last page offset.
 *
 * mode_settled() is the reader.
 *
 * Context: inode_lock(), &memfd_protect.lock. Before the modes are stored.
 */
void memfd_flight_begin(struct memfd_protect *mp, pgoff_t first, pgoff_t last)
{
	WRITE_ONCE(mp->flight.first, first);
	WRITE_ONCE(mp->flight.last, last);
	/* The limits are visible before the flight is. */
	smp_store_release(&mp->flight.seq, mp->flight.seq + 1);
	/* The flight is visible before the modes are. */
	smp_wmb();
}

/**
 * memfd_flight_end() - the outcome is known
 * @mp: Protection of the file.
 *
 * Context: &memfd_protect.lock. After the final modes have been stored.
 */
void memfd_flight_end(struct memfd_protect *mp)
{
	/* The final modes are visible before the end of the flight is. */
	smp_store_release(&mp->flight.seq, mp->flight.seq + 1);
	wake_up_all(&mp->flight.settled);
}

static void trace_caught(struct memfd_protect *mp,
			 const struct memfd_writer *writer,
			 enum memfd_mode mode)
{
	static const u8 user_mode[] = {
		[MEMFD_MODE_WAIT] = MEMFD_PROTECT_WAIT,
		[MEMFD_MODE_ASYNC] = MEMFD_PROTECT_ASYNC,
		[MEMFD_MODE_DENY] = MEMFD_PROTECT_DENY,
	};

	trace_memfd_protect_caught(mp->dev, mp->ino,
				   memfd_offset(writer->first),
				   memfd_length(writer->first, writer->last),
				   writer->type, user_mode[mode],
				   writer->flags & MEMFD_EVENT_F_KERNEL);
}

/* Moves one run of pages from protected to logged. mp->lock is held. */
static int log_run(struct memfd_protect *mp, pgoff_t first, pgoff_t last,
		   gfp_t gfp)
{
	int err = memfd_ranges_prepare(&mp->log, first, last, 1, gfp);

	if (!err)
		err = memfd_ranges_prepare(&mp->modes, first, last,
					   MEMFD_MODE_NONE, gfp);
	if (err)
		return err;
	memfd_ranges_set(&mp->log, first, last, 1);
	memfd_ranges_set(&mp->modes, first, last, MEMFD_MODE_NONE);
	return 0;
}

/*
 * Moves the ASYNC pages of a range from protected to logged. Tells whether there
 * were any, also if memory runs out. mp->lock is held.
 */
static int log_range(struct memfd_protect *mp, pgoff_t first, pgoff_t end,
		     gfp_t gfp, bool *any)
{
	pgoff_t last = end;
	int err;

	*any = false;

	while (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_ASYNC), &first,
				 &last)) {
		err = log_run(mp, first, last, gfp);
		if (err)
			return err;
		*any = true;
		first = last + 1;
		last = end;
	}
	return 0;
}

/* Tells the event fd if the log was empty before. mp->lock is held. */
static void log_tell(struct memfd_protect *mp,
		     const struct memfd_writer *writer)
{
	struct memfd_pending *event = NULL;
	struct memfd_writer dirty = *writer;

	dirty.type = MEMFD_EVENT_DIRTY;
	dirty.flags = 0;
	if (!READ_ONCE(mp->waiters.logged))
		event = memfd_pending_alloc(&dirty, __GFP_NOFAIL);
	memfd_waiters_set_dirty(&mp->waiters, event);
}

/* Writes pages of ASYNC ranges into the log. mp->lock is held. */
static int log_locked(struct memfd_protect *mp,
		      const struct memfd_writer *writer)
{
	bool any;
	int err = log_range(mp, writer->first, writer->last,
			    GFP_KERNEL_ACCOUNT, &any);

	if (any) {
		trace_caught(mp, writer, MEMFD_MODE_ASYNC);
		log_tell(mp, writer);
	}
	return err;
}

/**
 * memfd_check_log() - a writer is about to write pages of ASYNC ranges
 * @mp: Protection of the file.
 * @writer: What it wants to write. Pages that are not in ASYNC ranges, or are in
 *	    the log already, are passed over.
 *
 * Context: May sleep.
 * Return: 0 or -ENOMEM. -EAGAIN if memfd_protect() is under way there.
 */
int memfd_check_log(struct memfd_protect *mp, const struct memfd_writer *writer)
{
	int err = -EAGAIN;

	mutex_lock(&mp->lock);
	if (!memfd_flight_over(mp, writer->first, writer->last))
		err = log_locked(mp, writer);
	mutex_unlock(&mp->lock);
	return err;
}

/**
 * memfd_check_unlog() - put pages that a scan took back into the log
 * @mp: Protection of the file.
 * @span: The pages. Those that have another mode by now are passed over.
 * @tell: Whether the event fd is to be told that the log is not empty.
 *
 * Context: May sleep. &memfd_protect.lock, nothing of @span in flight. Never
 * fails: nothing that was written may be forgotten.
 */
void memfd_check_unlog(struct memfd_protect *mp, const struct memfd_span *span,
		       bool tell)
{
	struct memfd_writer writer = {
		.first = span->first,
		.last = span->last,
	};

	bool any;

	log_range(mp, span->first, span->last,
		  GFP_KERNEL_ACCOUNT | __GFP_NOFAIL, &any);
	if (!any)
		return;
	if (tell)
		log_tell(mp, &writer);
	else
		memfd_waiters_set_dirty(&mp->waiters, NULL);
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

	trace_caught(mp, writer, MEMFD_MODE_WAIT);
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
	memfd_protect_put(mp);
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
	memfd_protect_put(mp);
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
		mode = mode_at(mp, index);
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
		trace_caught(mp, &writer, mode);
		return VM_FAULT_SIGBUS;
	case MEMFD_MODE_ASYNC:
		err = memfd_check_log(mp, &writer);
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
	struct memfd_protect *mp = vma_protect(vmf->vma);
	vm_fault_t ret = 0;

	/* The fault of a guest, which has asked in its own name. */
	if (ptshare_host(vmf->vma))
		return mode_at(mp, vmf->pgoff) == MEMFD_MODE_NONE ?
		       0 : VM_FAULT_NOPAGE;
	if (fault_was_denied(vmf))
		return VM_FAULT_SIGBUS;
	/* What is in flight does not matter where nothing is protected. */
	if (mode_at(mp, vmf->pgoff) != MEMFD_MODE_NONE)
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
	struct memfd_protect *mp = vma_protect(vmf->vma);
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
	struct memfd_protect *mp = vma_protect(vma);
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
	return page_protected(vma_protect(vma), linear_page_index(vma, addr));
}

bool __memfd_protect_no_pmd(void)
{
	return memfd_hook(PMD);
}

/*
 * System calls
 */

/*
 * What a system call that changes the pages of @writer is to do: 0 go on, -EPERM
 * fail, -EAGAIN wait for the pages to which @writer is narrowed. What may go on
 * is logged, unless @log says that there will be another question.
 */
static int call_verdict_locked(struct memfd_protect *mp,
			       struct memfd_writer *writer, bool log)
{
	pgoff_t first = writer->first, last = writer->last;
	int verdict = 0;

	if (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_DENY), &first, &last)) {
		verdict = -EPERM;
	} else {
		first = writer->first;
		last = writer->last;
		if (memfd_ranges_find(&mp->modes, BIT(MEMFD_MODE_WAIT), &first,
				      &last)) {
			writer->first = first;
			writer->last = last;
			verdict = -EAGAIN;
		} else if (log) {
			verdict = log_locked(mp, writer);
		}
	}
	if (verdict == -EPERM)
		trace_caught(mp, writer, MEMFD_MODE_DENY);
	else if (verdict == -EAGAIN)
		trace_caught(mp, writer, MEMFD_MODE_WAIT);
	return verdict;
}

static int call_verdict(struct memfd_protect *mp, struct memfd_writer *writer,
			bool log)
{
	int verdict;

	mutex_lock(&mp->lock);
	verdict = call_verdict_locked(mp, writer, log);
	mutex_unlock(&mp->lock);
	return verdict;
}

/* Kernel threads never sleep here: whom would they keep waiting? */
static int call_may_wait(struct memfd_protect *mp, struct memfd_writer *writer)
{
	if (!(current->flags & (PF_KTHREAD | PF_EXITING | PF_DUMPCORE)))
		return 0;
	writer->flags |= MEMFD_EVENT_F_KERNEL;
	memfd_waiters_report(&mp->waiters, writer);
	return -EPERM;
}

/*
 * Decides for a system call under inode_lock(), which it drops to wait. Returns
 * 0 to go on, -EAGAIN after it waited, or another error.
 */
static int call_check(struct memfd_protect *mp, struct inode *inode,
		      struct memfd_writer *writer, bool log)
{
	int err = call_verdict(mp, writer, log);

	if (err != -EAGAIN)
		return err;
	err = call_may_wait(mp, writer);
	if (err)
		return err;
	/*
	 * Interrupted by the freezer too, and then restarted: a lock of the
	 * caller's, such as sb_start_write(), is not held while frozen.
	 */
	writer->state = TASK_INTERRUPTIBLE;
	inode_unlock(inode);
	memfd_delay(ENQUEUE);
	err = memfd_waiters_wait(mp, writer);
	inode_lock(inode);
	/* io_uring does not know how to restart all of its operations. */
	if (err == -ERESTARTSYS && (current->flags & PF_IO_WORKER))
		err = -EINTR;
	return err ?: -EAGAIN;
}

int __memfd_protect_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct memfd_protect *mp = inode_protect(inode);
	struct memfd_writer writer;
	ssize_t ret;

	if (!mp || !memfd_hook(WRITE))
		return 0;
	for (;;) {
		loff_t end = iocb->ki_pos + iov_iter_count(from) - 1;

		writer = (struct memfd_writer) {
			.first = iocb->ki_pos >> PAGE_SHIFT,
			.last = end >> PAGE_SHIFT,
			.type = MEMFD_EVENT_WRITE,
		};
		if (iocb->ki_flags & IOCB_NOWAIT)
			return call_verdict(mp, &writer, true);
		ret = call_check(mp, inode, &writer, true);
		if (ret != -EAGAIN)
			return ret;
		/* The file may have another size now; where to append, too. */
		ret = generic_write_checks(iocb, from);
		if (ret <= 0)
			return ret;
	}
}

/* For changes of [first byte, end of file or before]; all in bytes. */
static int call_change(struct inode *inode, loff_t start, loff_t end, u16 type)
{
	struct memfd_protect *mp = inode_protect(inode);
	struct memfd_writer writer;
	int err;

	if (!mp)
		return 0;
	do {
		/* There are no contents behind the end of the file. */
		loff_t stop = min(end, i_size_read(inode));

		if (start >= stop)
			return 0;
		writer = (struct memfd_writer) {
			.first = start >> PAGE_SHIFT,
			.last = (stop - 1) >> PAGE_SHIFT,
			.type = type,
		};
		err = call_check(mp, inode, &writer, true);
	} while (err == -EAGAIN);
	return err;
}

int __memfd_protect_punch(struct inode *inode, loff_t offset, loff_t len)
{
	if (!memfd_hook(PUNCH))
		return 0;
	return call_change(inode, offset, offset + len, MEMFD_EVENT_PUNCH);
}

int __memfd_protect_truncate(struct inode *inode, loff_t size)
{
	if (!memfd_hook(TRUNCATE))
		return 0;
	return call_change(inode, size, LLONG_MAX, MEMFD_EVENT_TRUNCATE);
}

/*
 * splice and its kin write in pieces. Each piece asks by itself, but all of it is
 * to wait, or fail, before the first is written.
 */
static int call_check_pieces(struct inode *inode, loff_t pos, loff_t len)
{
	struct memfd_protect *mp = inode_protect(inode);
	struct memfd_writer writer;
	int err;

	if (!mp || len <= 0 || pos < 0 || !memfd_hook(SPLICE))
		return 0;
	inode_lock(inode);
	do {
		loff_t end = min(len, LLONG_MAX - pos) + pos;

		writer = (struct memfd_writer) {
			.first = pos >> PAGE_SHIFT,
			.last = (end - 1) >> PAGE_SHIFT,
			.type = MEMFD_EVENT_WRITE,
		};
		err = call_check(mp, inode, &writer, false);
	} while (err == -EAGAIN);
	inode_unlock(inode);
	return err;
}

int __memfd_protect_splice_file(struct file *in, loff_t in_pos,
				struct file *out, loff_t out_pos, size_t len)
{
	loff_t there = i_size_read(in->f_mapping->host) - in_pos;

	return call_check_pieces(file_inode(out), out_pos,
				 min_t(loff_t, len, there));
}

int __memfd_protect_splice_pipe(struct pipe_inode_info *pipe, struct file *out,
				loff_t pos, size_t len)
{
	unsigned int i;
	size_t there = 0;

	if (!inode_protect(file_inode(out)))
		return 0;
	pipe_lock(pipe);
	for (i = pipe->tail; i != pipe->head; i++)
		there += pipe->bufs[i & (pipe->ring_size - 1)].len;
	pipe_unlock(pipe);
	return call_check_pieces(file_inode(out), pos, min(len, there));
}

/*
 * Kernel code that gets hold of pages, and writes them later
 */

bool __memfd_protect_access_begin(struct vm_area_struct *vma,
				  unsigned long addr, struct page *page)
{
	struct memfd_protect *mp = vma_protect(vma);

	if (!memfd_hook(REMOTE)) {
		memfd_delay(REMOTE);
		return true;
	}
	if (try_grab_folio(page_folio(page), 1, FOLL_PIN))
		return false;
	/* memfd_protect() stores the mode before it looks for pins. */
	smp_mb__after_atomic();
	if (mode_at(mp, linear_page_index(vma, addr)) == MEMFD_MODE_NONE) {
		memfd_delay(REMOTE);
		return true;
	}
	unpin_user_page(page);
	return false;
}

void __memfd_protect_access_end(struct page *page)
{
	if (memfd_hook(REMOTE))
		unpin_user_page(page);
}

/* The protection of the memfd that a page belongs to, with a reference. */
static struct memfd_protect *page_protect(struct page *page, pgoff_t *index)
{
	struct folio *folio = page_folio(page);
	struct memfd_protect *mp = NULL;
	struct address_space *mapping;

	rcu_read_lock();
	mapping = READ_ONCE(folio->mapping);
	if (mapping && !((unsigned long)mapping & PAGE_MAPPING_FLAGS) &&
	    shmem_mapping(mapping)) {
		mp = READ_ONCE(SHMEM_I(mapping->host)->protect);
		if (mp && !kref_get_unless_zero(&mp->ref))
			mp = NULL;
		*index = folio->index + folio_page_idx(folio, page);
	}
	rcu_read_unlock();
	return mp;
}

/* Whether a page that was got for writing may still be written. */
static bool got_page(struct memfd_protect *mp, pgoff_t index)
{
	struct memfd_writer writer = {
		.first = index,
		.last = index,
		.type = MEMFD_EVENT_FAULT,
		.flags = MEMFD_EVENT_F_KERNEL,
	};

	WRITE_ONCE(mp->got_pages, true);
	/* memfd_protect() stores modes before it looks for references. */
	smp_mb();
	/* Taken by a scan since it was got? Then it goes into the next one. */
	if (mode_at(mp, index) == MEMFD_MODE_ASYNC)
		memfd_check_log(mp, &writer);
	return mode_at(mp, index) == MEMFD_MODE_NONE;
}

int __memfd_protect_got_pages(struct page **pages, int nr)
{
	bool ours = false;
	int i, j;

	for (i = 0; i < nr; i++) {
		struct memfd_protect *mp;
		bool may_write;
		pgoff_t index;

		mp = page_protect(pages[i], &index);
		if (!mp)
			continue;
		ours = true;
		may_write = !memfd_hook(GOT_PAGES) || got_page(mp, index);
		memfd_protect_put(mp);
		if (!may_write)
			break;
	}
	for (j = i; j < nr; j++)
		put_page(pages[j]);
	if (ours)
		memfd_delay(REMOTE);
	return i ?: -EFAULT;
}

int __memfd_protect_pin_begin(struct file *file, loff_t start, loff_t end)
{
	struct memfd_protect *mp = inode_protect(file_inode(file));
	struct memfd_writer writer = {
		.first = start >> PAGE_SHIFT,
		.last = end >> PAGE_SHIFT,
		.type = MEMFD_EVENT_FAULT,
		.flags = MEMFD_EVENT_F_KERNEL,
	};
	int err;

	if (!mp || !memfd_hook(PIN_FOLIOS))
		return 0;
	/* inode_lock() cannot be taken: udmabuf has it, shared. */
	err = memfd_flight_lock(mp, writer.first, writer.last, TASK_KILLABLE);
	if (err)
		return err;
	err = call_verdict_locked(mp, &writer, true);
	mutex_unlock(&mp->lock);
	if (err == -EAGAIN) {
		memfd_waiters_report(&mp->waiters, &writer);
		err = -EFAULT;
	}
	return err;
}

bool __memfd_protect_pin_end(struct file *file, loff_t start, loff_t end)
{
	struct memfd_protect *mp = inode_protect(file_inode(file));
	pgoff_t first = start >> PAGE_SHIFT, last = end >> PAGE_SHIFT;
	bool protected;

	if (!mp || !memfd_hook(PIN_FOLIOS))
		return true;
	/* The pins are there; memfd_protect() stores modes before it looks. */
	smp_mb();
	mutex_lock(&mp->lock);
	protected = memfd_ranges_find(&mp->modes, GENMASK(3, 1), &first, &last);
	mutex_unlock(&mp->lock);
	return !protected;
}
