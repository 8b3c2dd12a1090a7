// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: locked memory that must not lose its pages.
 *
 * Mappings change tables by dropping what they have: the next access makes entries
 * anew, or links. What is locked in memory has to be there without an access. So
 * whoever drops it faults it in again, before he returns to user mode: no lock is held
 * then. And a table whose pages are locked is emptied when the last one goes for whom
 * they are, even if that one keeps the pages in a table of his own.
 */

#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/task_work.h>

#include "ptshare.h"

/**
 * struct populate - a range to be faulted in
 * @work: By the task that has dropped it.
 * @start: First address.
 * @len: Bytes.
 * @last: All that the task had to do before is done.
 */
struct populate {
	struct callback_head work;
	unsigned long start;
	unsigned long len;
	bool last;
};

static void populate_work(struct callback_head *work)
{
	struct populate *populate = container_of(work, struct populate, work);

	/* Tables that the task is to free go before it waits for memory. */
	if (!populate->last) {
		populate->last = true;
		if (!task_work_add(current, work, TWA_RESUME))
			return;
	}
	if (current->mm)
		mm_populate(populate->start, populate->len);
	kfree(populate);
}

/**
 * ptshare_dropped() - entries of a VMA are gone, or links to them
 * @vma: The VMA. If it is locked they come back before user mode sees it.
 * @start: First address.
 * @end: End of the range.
 *
 * Context: May sleep. mmap lock for writing.
 */
void ptshare_dropped(const struct vm_area_struct *vma, unsigned long start,
		     unsigned long end)
{
	struct populate *populate;

	if ((vma->vm_flags & (VM_LOCKED | VM_LOCKONFAULT)) != VM_LOCKED ||
	    vma->vm_mm != current->mm || start >= end)
		return;
	/* So small that it does not fail unless this task is being killed. */
	populate = kmalloc(sizeof(*populate), GFP_KERNEL);
	if (!populate)
		return;
	populate->start = start;
	populate->len = end - start;
	populate->last = false;
	init_task_work(&populate->work, populate_work);
	if (task_work_add(current, &populate->work, TWA_RESUME))
		kfree(populate);
}

/**
 * ptshare_cut() - a guest is about to lose blocks, and to map them by itself
 * @vma: The guest, unlinked.
 * @start: An address in the first block.
 * @end: End of the last one, or in it.
 *
 * Context: May sleep. mmap lock for writing.
 */
void ptshare_cut(struct vm_area_struct *vma, unsigned long start,
		 unsigned long end)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	start = max(ALIGN_DOWN(start, PMD_SIZE), pv->start);
	end = min(ALIGN(end, PMD_SIZE), pv->end);
	if (!(vma->vm_flags & VM_LOCKED) || start >= end)
		return;
	ptshare_release_class(vma, ptshare_class_of(vma->vm_flags), start, end);
	ptshare_dropped(vma, start, end);
}
