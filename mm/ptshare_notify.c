// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: secondary MMUs of the processes that link to them.
 *
 * Who changes an entry of a shared table tells the MMU notifiers of the host, the
 * only address space that he knows of. Once a process with notifiers of its own maps
 * the file the host has one too, which tells those of each guest, at the guest's
 * addresses.
 *
 * Why nothing is missed. Whoever changes entries of the host has found it in the
 * reverse mapping, and holds i_mmap_rwsem from invalidate_range_start() to
 * invalidate_range_end(). So the tree of guests is the same for both, and calls are
 * paired. A process gets its first notifier with the i_mmap_rwsem of all that it maps
 * held for writing, hence not between the two. The host's is registered before, or
 * before such a process has mapped the file.
 *
 * Links are cleared by the process itself, which tells about that as it does about
 * its own entries: ptshare_unlink_notify(), or who calls unmap_page_range().
 *
 * Locks: mmap lock of a guest, ptshare.registering, then as mmu_notifier_register() of
 * the host, which waits for who registers a notifier of any process, and he waits for
 * faults. So those wait for none of this: see ptshare_complete_host().
 */

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>

#include "ptshare.h"
#include "ptshare_debug.h"

/**
 * struct notified - what is told of a change of the host
 * @ps: The file's.
 * @first: First page offset.
 * @last: The last one.
 * @node: The next guest to be looked at.
 * @mm: The address space of the guest that was found.
 * @start: Where it maps the range.
 * @end: End of that.
 */
struct notified {
	struct ptshare *ps;
	pgoff_t first;
	pgoff_t last;
	struct interval_tree_node *node;
	struct mm_struct *mm;
	unsigned long start;
	unsigned long end;
};

static struct notified notified_begin(struct mmu_notifier *mn,
				      unsigned long start, unsigned long end)
{
	struct notified to = { .ps = container_of(mn, struct ptshare, notifier) };

	i_mmap_assert_locked(to.ps->mapping);
	ptshare_host_range(start, end, &to.first, &to.last);
	to.node = interval_tree_iter_first(&to.ps->guests, to.first, to.last);
	return to;
}

/* Goes on to the next guest that has notifiers. */
static bool notified_next(struct notified *to)
{
	while (to->node) {
		struct ptshare_vma *guest = container_of(to->node,
							 struct ptshare_vma,
							 blocks);

		to->node = interval_tree_iter_next(to->node, to->first, to->last);
		if (!mm_has_notifiers(guest->mm))
			continue;
		to->mm = guest->mm;
		ptshare_guest_range(guest, to->first, to->last, &to->start,
				    &to->end);
		return true;
	}
	return false;
}

static struct mmu_notifier_range
guest_range(const struct notified *to, const struct mmu_notifier_range *range)
{
	struct mmu_notifier_range guest = *range;

	guest.mm = to->mm;
	guest.start = to->start;
	guest.end = to->end;
	return guest;
}

static int forward_start(struct mmu_notifier *mn,
			 const struct mmu_notifier_range *range)
{
	struct notified to = notified_begin(mn, range->start, range->end);

	while (notified_next(&to)) {
		struct mmu_notifier_range guest = guest_range(&to, range);

		/* Whoever must not block does not change what others link to. */
		WARN_ON_ONCE(!mmu_notifier_range_blockable(range));
		__mmu_notifier_invalidate_range_start(&guest);
	}
	return 0;
}

static void forward_end(struct mmu_notifier *mn,
			const struct mmu_notifier_range *range)
{
	struct notified to = notified_begin(mn, range->start, range->end);

	/* Lockdep is told of each that is within a notifier, and does not nest. */
	lock_map_release(&__mmu_notifier_invalidate_range_start_map);
	while (notified_next(&to)) {
		struct mmu_notifier_range guest = guest_range(&to, range);

		__mmu_notifier_invalidate_range_end(&guest);
	}
	lock_map_acquire(&__mmu_notifier_invalidate_range_start_map);
}

static memfd_young_t forward_clear_flush_young(struct mmu_notifier *mn,
					       struct mm_struct *host,
					       unsigned long start,
					       unsigned long end)
{
	struct notified to = notified_begin(mn, start, end);
	memfd_young_t young = 0;

	while (notified_next(&to))
		young |= __mmu_notifier_clear_flush_young(to.mm, to.start,
							  to.end);
	return young;
}

static memfd_young_t forward_clear_young(struct mmu_notifier *mn,
					 struct mm_struct *host,
					 unsigned long start, unsigned long end)
{
	struct notified to = notified_begin(mn, start, end);
	memfd_young_t young = 0;

	while (notified_next(&to))
		young |= __mmu_notifier_clear_young(to.mm, to.start, to.end);
	return young;
}

static memfd_young_t forward_test_young(struct mmu_notifier *mn,
					struct mm_struct *host,
					unsigned long addr)
{
	struct notified to = notified_begin(mn, addr, addr + PAGE_SIZE);
	memfd_young_t young = 0;

	while (!young && notified_next(&to))
		young |= __mmu_notifier_test_young(to.mm, to.start);
	return young;
}

/* TLBs that follow the processor's own are told by those who flush these. */
static const struct mmu_notifier_ops forward_ops = {
	.invalidate_range_start	= forward_start,
	.invalidate_range_end	= forward_end,
	.clear_flush_young	= forward_clear_flush_young,
	.clear_young		= forward_clear_young,
	.test_young		= forward_test_young,
};

/**
 * ptshare_forward() - tell guests with MMU notifiers of changes from now on
 * @vma: A VMA of a file that shares, in an address space that has notifiers, or is
 *	 about to have some.
 *
 * Context: May sleep. mmap lock for writing.
 * Return: 0, -ENOMEM, or -EINTR.
 */
int ptshare_forward(const struct vm_area_struct *vma)
{
	struct ptshare *ps = ptshare_of(vma);
	int err = ptshare_complete_host(ps, vma);

	if (err)
		return err;
	mutex_lock(&ps->registering);
	if (!ps->notifier.ops) {
		ps->notifier.ops = &forward_ops;
		err = mmu_notifier_register(&ps->notifier, ps->mm);
		if (err)
			ps->notifier.ops = NULL;
	}
	mutex_unlock(&ps->registering);
	return err;
}

int __ptshare_notifies(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;
	int err;

	if (!ptshare_rule(NOTIFIER))
		return 0;
	for_each_vma(vmi, vma) {
		err = ptshare_vma(vma) ? ptshare_forward(vma) : 0;
		if (err)
			return err;
	}
	return 0;
}
