// SPDX-License-Identifier: GPL-2.0-only
/*
 * What page faults ask before they change a memfd: go on, wait, or fail. System calls
 * ask in mm/memfd_write.c, kernel code that holds pages in mm/memfd_pin.c.
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
 * page_mode(), after the store of the table's entry, pairs with the one in
 * memfd_walk_protect(). The default of a page-table entry stays writable, as for
 * any memfd, so an unprotected page costs nothing but this look.
 *
 * In shared page tables of a file an entry is writable only if the PMD entry that leads
 * to it has the write bit as well: U in mm/ptshare_protect.c.
 *
 * Invariant C. A system call that changes contents looks at the modes under
 * inode_lock(), and memfd_protect() stores them under it.
 *
 * Invariant S. Who waits holds no lock. A fault drops its mmap or VMA lock and
 * returns VM_FAULT_RETRY, a system call drops inode_lock() and checks anew.
 *
 * A memfd_protect() whose outcome is open is not acted upon, see "the flight" in
 * mm/memfd_state.c. A fault that meets one lets go of its locks and comes back; the
 * second time, or if it cannot come back, it keeps them: the wait is for one walk
 * and memfd_pin_settle(), and takes no lock that a fault may hold. System calls
 * are kept out by inode_lock().
 *
 * Locks: mmap or VMA lock -> memfd_protect.flight.settled -> memfd_protect.lock ->
 * memfd_waiters.lock. Under a page table lock only RCU, and memfd_protect.lock if that
 * is free: a store that is logged, and no more, keeps the page table locked.
 */

#include <linux/freezer.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"
#include "memfd_around.h"
#include "memfd_debug.h"
#include "memfd_protect.h"
#include "memfd_split.h"

#include <trace/events/memfd_protect.h>

/*
 * The question under the page table lock. What came before that lock was taken,
 * a new page table made visible above all, comes before the look at the mode.
 */
static enum memfd_mode page_mode(struct memfd_protect *mp, pgoff_t index)
{
	/* Pairs with smp_mb() in memfd_walk_protect(). */
	smp_mb__after_spinlock();
	return memfd_mode_at(mp, index);
}

static bool page_protected(struct memfd_protect *mp, pgoff_t index)
{
	return page_mode(mp, index) != MEMFD_MODE_NONE;
}

/* What a fault is told. */
enum fault_answer {
	FAULT_GO_ON,
	FAULT_DENIED,
	FAULT_WAITS,		/* for its event */
	FAULT_IN_FLIGHT,	/* comes back when that is settled */
};

/**
 * struct fault_question - a fault on a page that is, or just was, protected
 * @writer: Who asks.
 * @exits: Whether a WAIT page is not to stop it, see exit_goes_through().
 * @reported: Whether it went through one, and that is to be told.
 * @answer: What it is told.
 */
struct fault_question {
	struct memfd_writer writer;
	bool exits;
	bool reported;
	enum fault_answer answer;
};

/*
 * An exiting task writes to user memory once more: robust futexes, and the word
 * that pthread_join() waits for. A lost robust mutex is worse than a changed lock
 * word, so unless that may wait, it goes through and is reported.
 */
static bool exit_goes_through(struct memfd_protect *mp)
{
	if (!(current->flags & PF_EXITING))
		return false;
	return !READ_ONCE(mp->kernel) || (current->flags & PF_SIGNALED) ||
	       fatal_signal_pending(current);
}

static struct memfd_writer fault_writer(const struct vm_fault *vmf)
{
	return (struct memfd_writer) {
		.first = vmf->pgoff,
		.last = vmf->pgoff,
		.type = MEMFD_EVENT_FAULT,
		.flags = vmf->flags & FAULT_FLAG_USER ?
			 0 : MEMFD_EVENT_F_KERNEL,
	};
}

/* Called with mp->lock held, with nothing of the page in flight. */
static int fault_answer(struct memfd_protect *mp, void *arg,
			struct memfd_ranges_pool *pool)
{
	struct fault_question *question = arg;
	struct memfd_writer *writer = &question->writer;
	struct memfd_span span = { writer->first, writer->last };

	question->answer = FAULT_GO_ON;
	switch (memfd_ranges_get(&mp->modes, writer->first)) {
	case MEMFD_MODE_ASYNC:
		return memfd_state_log(mp, writer, pool);
	case MEMFD_MODE_DENY:
		memfd_state_trace_caught(mp, writer, MEMFD_MODE_DENY);
		question->answer = FAULT_DENIED;
		return 0;
	case MEMFD_MODE_WAIT:
		break;
	default:
		return 0;
	}

	memfd_state_trace_caught(mp, writer, MEMFD_MODE_WAIT);
	if (!question->exits) {
		question->answer = FAULT_WAITS;
		return 0;
	}
	if (memfd_state_unprotect(mp, &span, BIT(MEMFD_MODE_WAIT), pool))
		return -ENOMEM;
	memfd_waiters_recheck(mp, span.first, span.last, false);
	question->reported = true;
	return 0;
}

static int fault_put_question(struct memfd_protect *mp,
			      struct fault_question *question)
{
	pgoff_t index = question->writer.first;

	/* No signal keeps an exiting task from going through. */
	return memfd_state_change(mp, index, index, question->exits ?
				  TASK_UNINTERRUPTIBLE : TASK_KILLABLE,
				  fault_answer, question);
}

static void fault_report(struct memfd_protect *mp,
			 const struct fault_question *question)
{
	if (question->reported)
		memfd_waiters_report(&mp->waiters, &question->writer);
}

/* The same, unless something is in flight: -EINPROGRESS. */
static int fault_try_question(struct memfd_protect *mp,
			      struct fault_question *question)
{
	pgoff_t index = question->writer.first;
	struct memfd_ranges_pool none = {};
	int err;

	if (!memfd_flight_trylock(mp, index, index))
		return -EINPROGRESS;
	err = fault_answer(mp, question, &none);
	mutex_unlock(&mp->lock);
	return err;
}

/*
 * Asks, with the mmap or VMA lock held. A fault that can come back does not wait
 * for a flight here, but only once: the semaphore is fair, and who lets go of its
 * place each time would lose its turn each time.
 */
static vm_fault_t fault_ask(struct vm_fault *vmf, struct memfd_protect *mp,
			    struct fault_question *question)
{
	bool comes_back = (vmf->flags & FAULT_FLAG_RETRY_NOWAIT) ||
			  fault_flag_allow_retry_first(vmf->flags);
	int err = -ENOMEM;

	*question = (struct fault_question) {
		.writer = fault_writer(vmf),
		.exits = exit_goes_through(mp),
		.answer = FAULT_IN_FLIGHT,
	};
	if (comes_back)
		err = fault_try_question(mp, question);
	if (err == -EINPROGRESS)
		return 0;
	/* There is a flight perhaps, or memory has to be waited for. */
	if (err == -ENOMEM)
		err = fault_put_question(mp, question);
	fault_report(mp, question);
	if (err)
		return err == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
	return 0;
}

static bool fault_may_wait(struct memfd_protect *mp, unsigned int flags)
{
	if (current->flags & (PF_KTHREAD | PF_DUMPCORE))
		return false;
	if (!(flags & FAULT_FLAG_USER) && !READ_ONCE(mp->kernel))
		return false;
	return flags & FAULT_FLAG_ALLOW_RETRY;
}

/* How often who sleeps with a signal pending looks whether its caller obeys it. */
#define SIGNAL_WAIT	(HZ / 5)

/*
 * Accesses of the kernel that return when a signal comes: those of GUP if it may be
 * interrupted (KVM). A fault in copy_to_user() looks the same, but is tried again at
 * once, with the signal still pending.
 */
static bool fault_interruptible(unsigned int flags)
{
	return (flags & FAULT_FLAG_INTERRUPTIBLE) &&
	       !(flags & FAULT_FLAG_USER) && !(current->flags & PF_EXITING);
}

/*
 * User mode comes back to signals by itself. What else may be interrupted comes
 * back now and then while one is pending: GUP returns, copy_to_user() goes on. It may
 * hold locks of the system call that it is in, and sleeps with them anyway.
 */
static void fault_sleep_state(struct memfd_writer *writer, unsigned int flags)
{
	if (flags & FAULT_FLAG_USER) {
		writer->state = TASK_INTERRUPTIBLE | TASK_FREEZABLE;
		return;
	}
	writer->state = TASK_KILLABLE | TASK_FREEZABLE_UNSAFE;
	writer->resumes = fault_interruptible(flags);
	if (!writer->resumes)
		return;
	if (signal_pending(current))
		writer->limit = SIGNAL_WAIT;
	else
		writer->state = TASK_INTERRUPTIBLE | TASK_FREEZABLE_UNSAFE;
}

/*
 * Sleeps on the event of the page. An error cannot be returned once the mmap lock
 * is released: who is denied in kernel mode finds a note when it comes back.
 */
static vm_fault_t fault_wait(struct vm_fault *vmf, struct memfd_protect *mp,
			     struct fault_question *question)
{
	struct memfd_writer *writer = &question->writer;
	bool tried = vmf->flags & FAULT_FLAG_TRIED;
	int err;

	/* KVM looks first, and comes back for the answer if that fails. */
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	if (memfd_waiters_was_denied(&mp->waiters, writer, tried))
		return VM_FAULT_SIGBUS;
	if (!fault_may_wait(mp, vmf->flags)) {
		memfd_waiters_report(&mp->waiters, writer);
		return VM_FAULT_SIGBUS;
	}
	if (!tried && fault_interruptible(vmf->flags) &&
	    signal_pending(current)) {
		release_fault_lock(vmf);
		return VM_FAULT_RETRY;
	}

	/* Without the lock nothing but this reference keeps @mp. */
	kref_get(&mp->ref);
	fault_sleep_state(writer, vmf->flags);
	release_fault_lock(vmf);
	memfd_delay(ENQUEUE);
	err = memfd_waiters_wait(mp, writer);
	if (err == -EPERM && (vmf->flags & FAULT_FLAG_USER))
		force_sig_fault(SIGBUS, BUS_ADRERR,
				(void __user *)vmf->real_address);
	else if (err == -ENOMEM)
		/* The caller comes back; let others free memory. */
		schedule_timeout_killable(1);
	if (err == -ERESTARTSYS && (current->flags & PF_EXITING)) {
		/* It has waited for long enough. */
		question->exits = true;
		fault_put_question(mp, question);
		fault_report(mp, question);
	}
	memfd_state_put(mp);
	return VM_FAULT_RETRY;
}

static vm_fault_t fault_settle(struct vm_fault *vmf, struct memfd_protect *mp)
{
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	kref_get(&mp->ref);
	release_fault_lock(vmf);
	memfd_flight_wait(mp);
	memfd_state_put(mp);
	return VM_FAULT_RETRY;
}

/* Does what the fault was told. Nothing but the mmap or VMA lock is held. */
static vm_fault_t fault_obey(struct vm_fault *vmf, struct memfd_protect *mp,
			     struct fault_question *question)
{
	switch (question->answer) {
	case FAULT_DENIED:
		return VM_FAULT_SIGBUS;
	case FAULT_WAITS:
		return fault_wait(vmf, mp, question);
	case FAULT_IN_FLIGHT:
		return fault_settle(vmf, mp);
	case FAULT_GO_ON:
		break;
	}
	memfd_delay(FAULT);
	return 0;
}

static vm_fault_t fault_on_protected(struct vm_fault *vmf,
				     struct memfd_protect *mp)
{
	struct fault_question question;

	return fault_ask(vmf, mp, &question) ?: fault_obey(vmf, mp, &question);
}

/* Whether somebody else wants to be told of the first write to each page. */
static bool others_told(const struct vm_area_struct *vma)
{
	return !pte_write(pfn_pte(0, vma->vm_page_prot));
}

/* A fault that may write maps its neighbours too, if it is more than a question. */
static void fault_map_around(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;

	if (vmf->pmd && !(vma->vm_flags & VM_LOCKED) && !userfaultfd_armed(vma) &&
	    !others_told(vma) && memfd_has_neighbours(vma, vmf->pmd, vmf->address))
		memfd_map_neighbours(vma, vmf->pmd, vmf->address);
}

vm_fault_t __memfd_protect_fault(struct vm_fault *vmf)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vmf->vma);
	/* What is in flight does not matter where nothing is protected. */
	bool may_write = memfd_mode_at(mp, vmf->pgoff) == MEMFD_MODE_NONE;

	/* The fault of a guest, which has asked in its own name, or will. */
	if (ptshare_host(vmf->vma))
		return may_write ? 0 : VM_FAULT_NOPAGE;
	if (!may_write)
		return fault_on_protected(vmf, mp);
	fault_map_around(vmf);
	memfd_delay(FAULT);
	return 0;
}

bool __memfd_protect_logs(struct vm_area_struct *vma, unsigned long addr)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vma);

	return memfd_hook(AT_ONCE) && READ_ONCE(mp->waiters.told) &&
	       memfd_mode_at(mp, linear_page_index(vma, addr)) == MEMFD_MODE_ASYNC;
}

void memfd_protect_entries(struct vm_area_struct *vma, unsigned long addr,
			   pte_t *pte)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vma);
	pgoff_t index = linear_page_index(vma, addr);
	pgoff_t end = index + PTRS_PER_PTE, last;
	pte_t *behind, *start = pte;
	enum memfd_mode mode;

	rcu_read_lock();
	for (; index < end; index = last + 1) {
		mode = memfd_ranges_get_run(&mp->modes, index, &last);
		last = min(last, end - 1);
		behind = pte + (last + 1 - index);
		if (mode == MEMFD_MODE_NONE)
			pte = behind;
		for (; pte < behind; pte++) {
			pte_t entry = ptep_get(pte);

			if (pte_present(entry) && pte_write(entry))
				ptep_set_wrprotect(vma->vm_mm, addr +
						   (pte - start) * PAGE_SIZE,
						   pte);
		}
	}
	rcu_read_unlock();
}

bool __memfd_protect_may_wait(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	return vma && vma_memfd_protect(vma) && memfd_hook(FUTEX) &&
	       !fatal_signal_pending(current);
}

bool __memfd_protect_at(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	bool is_protected;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, addr);
	is_protected = vma && vma_memfd_protect(vma) &&
		       memfd_mode_at(memfd_protect_of_vma(vma),
				     linear_page_index(vma, addr)) !=
		       MEMFD_MODE_NONE;
	mmap_read_unlock(mm);
	return is_protected && memfd_hook(ASYNC_PF);
}
EXPORT_SYMBOL_GPL(__memfd_protect_at);

/* Makes entries of unprotected pages writable, but for that of the fault. */
static void wp_entries(struct vm_fault *vmf, pte_t *pte, unsigned int nr)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address + (pte - vmf->pte) * PAGE_SIZE;

	for (; nr--; pte++, addr += PAGE_SIZE) {
		pte_t old = ptep_get(pte);

		if (pte == vmf->pte || !pte_present(old) || pte_write(old) ||
		    pte_protnone(old) || memfd_pte_uffd(old))
			continue;
		old = ptep_modify_prot_start(vma, addr, pte);
		ptep_modify_prot_commit(vma, addr, pte, old,
					pte_mkwrite(old, vma));
	}
}

/*
 * The page at vmf->address is about to become writable. So are its neighbours
 * that may be, as fault-around does it for pages that are not mapped yet: lifting
 * the protection of a range should not cost one fault a page.
 */
static void wp_fault_around(struct vm_fault *vmf, struct memfd_protect *mp)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long start, end;
	pgoff_t index, behind, last;
	pte_t *pte;

	start = ALIGN_DOWN(vmf->address, MEMFD_AROUND_BYTES);
	end = min(start + MEMFD_AROUND_BYTES, vma->vm_end);
	start = max(start, vma->vm_start);
	pte = vmf->pte - ((vmf->address - start) >> PAGE_SHIFT);
	index = linear_page_index(vma, start);
	behind = index + ((end - start) >> PAGE_SHIFT);

	rcu_read_lock();
	for (; index < behind; index = last + 1) {
		unsigned int mode = memfd_ranges_get_run(&mp->modes, index, &last);
		unsigned int nr = min(last + 1, behind) - index;

		if (mode == MEMFD_MODE_NONE)
			wp_entries(vmf, pte, nr);
		pte += nr;
	}
	rcu_read_unlock();
}

/*
 * The page table, locked again, if the entry is still what the fault was about. No
 * reference kept the page meanwhile, which could not be migrated then. An entry
 * that is the same maps the same page, if perhaps in another folio.
 */
static bool wp_relock(struct vm_fault *vmf, struct memfd_protect *mp,
		      struct folio *folio)
{
	vmf->pte = pte_offset_map_lock(vmf->vma->vm_mm, vmf->pmd, vmf->address,
				       &vmf->ptl);
	if (!vmf->pte)
		return false;
	if (pte_same(ptep_get(vmf->pte), vmf->orig_pte) &&
	    page_folio(vmf->page) == folio &&
	    (!page_protected(mp, vmf->pgoff) || !memfd_hook(WP_RECHECK)))
		return true;
	pte_unmap_unlock(vmf->pte, vmf->ptl);
	return false;
}

static vm_fault_t wp_unprotected(struct vm_fault *vmf, struct memfd_protect *mp,
				 struct folio *folio)
{
	vm_fault_t ret;

	if (others_told(vmf->vma))
		return 0;
	if (memfd_huge_wanted(vmf)) {
		pte_unmap_unlock(vmf->pte, vmf->ptl);
		ret = memfd_huge_again(vmf);
		if (ret)
			return ret;
		if (!wp_relock(vmf, mp, folio))
			return VM_FAULT_NOPAGE;
	}
	wp_fault_around(vmf, mp);
	return 0;
}

static bool wp_logged(const struct vm_fault *vmf, struct memfd_protect *mp)
{
	struct memfd_writer writer = fault_writer(vmf);

	return memfd_hook(AT_ONCE) && memfd_state_log_at_once(mp, &writer);
}

vm_fault_t __memfd_protect_wp_fault(struct vm_fault *vmf)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vmf->vma);
	enum memfd_mode mode = page_mode(mp, vmf->pgoff);
	struct folio *folio = page_folio(vmf->page);
	vm_fault_t ret;

	if (mode == MEMFD_MODE_NONE)
		return wp_unprotected(vmf, mp, folio);
	if (mode == MEMFD_MODE_ASYNC && wp_logged(vmf, mp))
		return 0;

	/* The fault of a guest, which will ask again in its own name. */
	if (ptshare_host(vmf->vma)) {
		pte_unmap_unlock(vmf->pte, vmf->ptl);
		return VM_FAULT_NOPAGE;
	}

	pte_unmap_unlock(vmf->pte, vmf->ptl);
	ret = fault_on_protected(vmf, mp);
	if (!ret && !wp_relock(vmf, mp, folio))
		ret = VM_FAULT_NOPAGE;
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

/**
 * memfd_beyond_end() - whether a page is not one of a file, and not to be mapped
 * @vma: A VMA that maps the file.
 * @index: Page offset in the file.
 *
 * What is stored behind the end would be another's to see, and nobody would have been asked
 * for it. Who truncates stores the size first, and then unmaps.
 *
 * Context: Any in which @vma may be looked at.
 * Return: True if it is behind the page in which the file ends.
 */
bool memfd_beyond_end(const struct vm_area_struct *vma, pgoff_t index)
{
	loff_t size = i_size_read(file_inode(vma->vm_file));

	return index >= DIV_ROUND_UP(size, PAGE_SIZE) && memfd_hook(END);
}

bool __memfd_protect_end(const struct vm_area_struct *vma, struct folio *folio)
{
	return memfd_beyond_end(vma, folio_next_index(folio) - 1);
}

bool __memfd_protect_no_batch(void)
{
	return memfd_hook(FORK);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
vm_fault_t __memfd_protect_wp_pmd(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address & HPAGE_PMD_MASK;
	vm_fault_t ret;

	if (others_told(vma) || memfd_pmd_uffd(vmf->orig_pmd))
		return VM_FAULT_FALLBACK;
	ret = memfd_protect_fault(vmf);
	if (ret || memfd_huge_allow(vma, vmf->pmd, addr))
		return ret;
	/* The fault of a guest, which will do it in its own name. */
	if (ptshare_host(vma))
		return VM_FAULT_NOPAGE;
	memfd_huge_split(vma, vmf->pmd, addr);
	return VM_FAULT_FALLBACK;
}
#endif
