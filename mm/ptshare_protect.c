// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: write protection one level up.
 *
 * A processor writes a page if the entries of all levels let it. So memfd_protect()
 * need not change the 512 entries of a table of the host if all who use the table come
 * by the host's PMD entry: it takes the write bit away from that one. What the entries
 * below say of writing does not count then. The first write fault pushes it down: it
 * takes write access away from those that are protected, and then gives the PMD entry
 * its bit back.
 *
 *        process 1     process 2                  host
 *             |             |                       |
 *             +-------------+-----------------> PMD table
 *                                                   |  no write bit
 *                                              page table
 *                                              entries that may have it
 *
 * Invariant U. To a table whose PMD entry in the host has no write bit leads no other
 * PMD entry, and none comes to. Who gives it the write bit has taken write access away
 * before from all entries of pages that are protected (W in mm/memfd_fault.c says what
 * that is), and holds the table's lock from the first look at what is protected to the
 * end:
 *
 *   memfd_protect()			write fault, or a link by a PMD entry
 *
 *   store modes			lock table
 *   lock table				read modes
 *   clear write bit if it is set	change entries
 *   unlock				set write bit
 *					unlock
 *
 * If the fault has the lock first, the other clears the bit that it has set. If it is
 * the other way round it reads the new modes. Guests that come by PMD entries are
 * counted under that lock, too.
 *
 * TLBs: who clears the bit flushes before memfd_protect() returns, with INVLPG or more,
 * either of which drops what processors keep of upper levels. Entries that are changed
 * while it is clear need no flush of their own.
 *
 * Who looks at entries to see whether a page can be written looks at the PMD entry, too,
 * and before: ptshare_denies().
 */

#include <linux/memfd_protect.h>
#include <linux/mm.h>
#include <linux/vmstat.h>
#include <asm/tlb.h>

#include "internal.h"
#include "memfd_split.h"
#include "ptshare.h"
#include "ptshare_debug.h"

/* The processor may set the accessed bit of the entry meanwhile. */
static void clear_write(pmd_t *pmd)
{
	clear_bit(_PAGE_BIT_RW, (unsigned long *)pmd);
}

static void set_write(pmd_t *pmd)
{
	set_bit(_PAGE_BIT_RW, (unsigned long *)pmd);
}

bool __ptshare_denies(bool fast)
{
	return fast ? ptshare_rule(GUP_FAST) : ptshare_rule(GUP);
}

/*
 * Returns false if somebody links to the table by a PMD entry of his own. The PMD table
 * is locked, so the page table stays.
 */
static bool protect_table(struct mm_struct *mm, pmd_t *pmd, bool *changed)
{
	atomic_t *links = ptshare_links_of(pmd_pgtable(*pmd));
	spinlock_t *ptl = pte_lockptr(mm, pmd);
	bool alone;

	if (atomic_read(links) && ptshare_rule(ALONE))
		return false;
	spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
	alone = !atomic_read(links) || !ptshare_rule(ALONE);
	*changed = alone && pmd_write(*pmd);
	if (*changed)
		clear_write(pmd);
	spin_unlock(ptl);
	return alone;
}

/* What has gone for a migration asks when it comes back. */
static bool protect_entry(struct vm_area_struct *vma, pmd_t *pmd,
			  unsigned long addr, bool *changed)
{
	if (ptshare_has_table(*pmd))
		return protect_table(vma->vm_mm, pmd, changed);
	*changed = pmd_trans_huge(*pmd) && memfd_huge_protect(vma, pmd, addr);
	return true;
}

/*
 * The lock of the PMD table is not only for huge entries. Who makes one where there is
 * nothing has looked at what is protected before this lock was taken, or looks behind.
 */
unsigned long __ptshare_protect_tables(struct vm_area_struct *vma, pmd_t *pmd,
				       unsigned long addr, unsigned long end,
				       struct mmu_gather *tlb)
{
	unsigned long first = end, behind = addr, nr = 0;
	spinlock_t *ptl; /* of the PMD table */
	bool changed;

	if (!IS_ALIGNED(addr, PMD_SIZE) || end - addr < PMD_SIZE)
		return addr;
	ptl = pmd_lock(vma->vm_mm, pmd);
	for (; end - addr >= PMD_SIZE; addr += PMD_SIZE, pmd++) {
		if (!protect_entry(vma, pmd, addr, &changed))
			break;
		if (changed) {
			first = min(first, addr);
			behind = addr + PMD_SIZE;
			nr++;
		}
	}
	spin_unlock(ptl);
	if (nr) {
		tlb_flush_pte_range(tlb, first, behind - first);
		count_vm_events(PTSHARE_PROTECT, nr);
	}
	return addr;
}

/* Gives the table its write bit back, with its lock held. */
static void push_down(struct vm_area_struct *host_vma, pmd_t *pmd,
		      unsigned long addr, pte_t *pte)
{
	if (pmd_write(*pmd))
		return;
	if (ptshare_rule(PUSH_DOWN))
		memfd_protect_entries(host_vma, addr, pte);
	/* Pairs with ptshare_denies_lockless(). */
	smp_wmb();
	set_write(pmd);
	count_vm_event(PTSHARE_PUSH_DOWN);
}

/**
 * ptshare_push_down() - let entries decide for each page what can be written
 * @host_vma: The VMA of the host.
 * @pmd: Its PMD entry.
 * @addr: The address in the host.
 *
 * Context: The lock of a guest that maps it.
 */
void ptshare_push_down(struct vm_area_struct *host_vma, pmd_t *pmd,
		       unsigned long addr)
{
	spinlock_t *ptl; /* of the table */
	pmd_t entry = pmdp_get_lockless(pmd);
	pte_t *pte;

	if (pmd_none(entry) || pmd_write(entry))
		return;
	addr = ALIGN_DOWN(addr, PMD_SIZE);
	if (!ptshare_has_table(entry))
		ptshare_huge_push_down(host_vma, pmd, addr);
	pte = pte_offset_map_lock(host_vma->vm_mm, pmd, addr, &ptl);
	if (!pte)
		return;
	push_down(host_vma, pmd, addr, pte);
	pte_unmap_unlock(pte, ptl);
}

/**
 * ptshare_count_link() - a guest is about to link to a table by a PMD entry
 * @host_vma: The VMA of the host.
 * @pmd: Its PMD entry.
 * @addr: The first address of that in the host.
 *
 * Context: The lock of the guest.
 * Return: The table, which stays, or NULL if there is none.
 */
pgtable_t ptshare_count_link(struct vm_area_struct *host_vma, pmd_t *pmd,
			     unsigned long addr)
{
	pgtable_t table;
	spinlock_t *ptl; /* of the table */
	pte_t *pte;

	pte = pte_offset_map_lock(host_vma->vm_mm, pmd, addr, &ptl);
	/* It may have become a huge entry. */
	if (!pte)
		return NULL;
	/* Nobody writes through tables for readers. */
	if ((host_vma->vm_flags & VM_WRITE) && ptshare_rule(JOIN))
		push_down(host_vma, pmd, addr, pte);
	table = pmd_pgtable(*pmd);
	atomic_inc(ptshare_links_of(table));
	pte_unmap_unlock(pte, ptl);
	return table;
}
