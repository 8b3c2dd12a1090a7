// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: links, of which there are two kinds.
 *
 * A guest links to a page table of the host, 2 MiB, by an entry in a PMD table of its
 * own. Where it shares a whole GiB, which has the same place in the GiBs of its address
 * space and of the file, it links to the host's PMD table instead, by one PUD entry:
 * then it has a page table for what any process has faulted in there.
 *
 *        process 1                process 2                   host
 *        PUD table                PUD table                 PUD table
 *            |                        |                         |
 *       PMD table                     +-------------------> PMD table
 *            |                                                  |
 *            +--------------------------> page table <----------+
 *
 * Invariant G. In a GiB that a VMA shares as a whole its PUD entry is empty, or a link,
 * or points to a PMD table of its own that was there before the GiB was whole. Faults
 * link at the level that they find. Elsewhere no PUD entry is a link. Who makes a GiB
 * whole may free the PMD table (ptshare_merge()); who cuts one clears the link before
 * (ptshare_split()), both with the locks that keep out faults, see B in mm/ptshare.c.
 *
 * A table of the host has as many links as PMD entries and, by way of its PMD table,
 * PUD entries lead to it. Both are counted where they lead to. A table to which a PMD
 * entry leads stays; others may give way to huge entries (P in mm/ptshare_huge.c).
 */

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rcupdate.h>
#include <asm/pgalloc.h>
#include <trace/events/ptshare.h>
#include <asm/tlb.h>
#include <asm/tlbflush.h>

#include "ptshare.h"
#include "ptshare_debug.h"

/* How many tables one fault links, as many as there are in this range. */
#define LINK_AROUND		(64 * PMD_SIZE)

/* Whether two PMD entries point to the same page table. */
static bool same_table(pmd_t a, pmd_t b)
{
	return ptshare_has_table(a) && ptshare_has_table(b) &&
	       pmd_pgtable(a) == pmd_pgtable(b);
}

/* The PMD table that an entry is in. */
static pmd_t *gib_of(pmd_t *pmd)
{
	return PTR_ALIGN_DOWN(pmd, PAGE_SIZE);
}

static bool points_to(pud_t entry, pmd_t *gib)
{
	return !pud_none(entry) && pud_pgtable(entry) == gib;
}

/* The PMD entry of the host in the tables of a class, if there is one. */
static pmd_t *host_pmd_of(struct ptshare *ps, enum ptshare_class class,
			  unsigned long offset)
{
	if (!READ_ONCE(ps->vma[class]))
		return NULL;
	return ptshare_find_pmd(ps->mm, PTSHARE_BASE(class) + offset);
}

/* The PMD table of the host that a PUD entry of a guest points to, if it does. */
static pmd_t *linked_gib(struct ptshare *ps, unsigned long offset, pud_t entry)
{
	enum ptshare_class class;

	for (class = 0; class < PTSHARE_CLASSES; class++) {
		pmd_t *pmd = host_pmd_of(ps, class, offset);

		if (pmd && points_to(entry, gib_of(pmd)))
			return gib_of(pmd);
	}
	return NULL;
}

/* Whether a PMD entry of a guest points to a table of the host, of any class. */
static bool is_link(struct ptshare *ps, unsigned long offset, pmd_t entry)
{
	enum ptshare_class class;

	for (class = 0; class < PTSHARE_CLASSES; class++) {
		pmd_t *pmd = host_pmd_of(ps, class, offset);

		if (pmd && same_table(pmdp_get_lockless(pmd), entry))
			return true;
	}
	return false;
}

/**
 * ptshare_whole_gib() - whether a VMA shares the GiB around an address as a whole
 * @vma: The VMA.
 * @addr: The address.
 *
 * Context: The lock of @vma, or i_mmap_rwsem of its file.
 * Return: True if it may have a link of one PUD entry there.
 */
bool ptshare_whole_gib(const struct vm_area_struct *vma, unsigned long addr)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	unsigned long gib = ALIGN_DOWN(addr, PUD_SIZE);

	return gib >= pv->start && gib + PUD_SIZE <= pv->end &&
	       IS_ALIGNED(ptshare_offset(vma, gib), PUD_SIZE);
}

/*
 * Links are made
 */

/**
 * ptshare_link_place() - where a guest links to what the host has at an address
 * @place: Is set.
 * @vma: The guest.
 * @address: The address.
 * @host_pmd: The PMD entry of the host.
 *
 * Context: May sleep. The lock of @vma.
 * Return: False if there is no memory.
 */
bool ptshare_link_place(struct ptshare_place *place,
			const struct vm_area_struct *vma,
			unsigned long address, pmd_t *host_pmd)
{
	place->pud = ptshare_alloc_pud(vma->vm_mm, address);
	place->pmd = NULL;
	if (!place->pud)
		return false;
	if (ptshare_whole_gib(vma, address)) {
		pud_t entry = READ_ONCE(*place->pud);

		if (pud_none(entry) || points_to(entry, gib_of(host_pmd)))
			return true;
	}
	place->pmd = pmd_alloc(vma->vm_mm, place->pud, address);
	return place->pmd;
}

/**
 * ptshare_is_linked() - whether a guest has a link
 * @place: Where.
 * @host_pmd: The PMD entry of the host.
 *
 * Context: The lock of the guest.
 * Return: True if it links to the table that this is in, or to the one behind it.
 */
bool ptshare_is_linked(const struct ptshare_place *place, pmd_t *host_pmd)
{
	if (!place->pmd)
		return points_to(READ_ONCE(*place->pud), gib_of(host_pmd));
	return same_table(pmdp_get_lockless(place->pmd),
			  pmdp_get_lockless(host_pmd));
}

static void free_table_rcu(struct rcu_head *head)
{
	struct ptdesc *table = container_of(head, struct ptdesc, pt_rcu_head);

	pte_free(&init_mm, ptdesc_page(table));
}

/*
 * Takes away the own table of a block that has become whole, under the PMD lock. It
 * has no entries (see ptshare_merge()), and nobody makes any. It may be looked at, by
 * those who only read: under RCU, or with interrupts off.
 */
static void drop_table(struct mm_struct *mm, pmd_t *pmd, unsigned long addr)
{
	pgtable_t table = pmd_pgtable(*pmd);

	pmd_clear(pmd);
	/* No TLB entry was made from it: as for pte_free_tlb(). */
	flush_tlb_mm_range(mm, addr, addr + PAGE_SIZE, PAGE_SHIFT, true);
	mm_dec_nr_ptes(mm);
	call_rcu(&page_ptdesc(table)->pt_rcu_head, free_table_rcu);
}

/* Points one PMD entry of a guest to the host's table, if it has one. */
static bool link_table(struct vm_area_struct *vma, unsigned long addr, pmd_t *pmd,
		       struct vm_area_struct *host_vma)
{
	unsigned long host_addr = host_vma->vm_start + ptshare_offset(vma, addr);
	pmd_t *host_pmd = ptshare_find_pmd(host_vma->vm_mm, host_addr);
	struct mm_struct *mm = vma->vm_mm;
	bool linked = false;
	pgtable_t table;
	spinlock_t *ptl; /* of the guest's PMD table */

	if (!host_pmd || same_table(pmdp_get_lockless(pmd),
				    pmdp_get_lockless(host_pmd)))
		return false;
	table = ptshare_count_link(host_vma, host_pmd, host_addr);
	if (!table)
		return false;
	ptl = pmd_lock(mm, pmd);
	if (!same_table(*pmd, *host_pmd) && !WARN_ON_ONCE(pmd_leaf(*pmd))) {
		if (!pmd_none(*pmd))
			drop_table(mm, pmd, addr);
		pmd_populate(mm, pmd, table);
		linked = true;
	}
	spin_unlock(ptl);
	if (!linked)
		atomic_dec(ptshare_links_of(table));
	return linked;
}

/* Whether the table behind or before the one at @addr is linked, or there is none. */
static bool neighbour_linked(struct ptshare_vma *pv, unsigned long addr,
			     pmd_t *pmd)
{
	unsigned long begin = ALIGN_DOWN(addr, LINK_AROUND);

	if (addr + PMD_SIZE < min(pv->end, begin + LINK_AROUND))
		return !pmd_none(pmdp_get_lockless(pmd + 1));
	return addr == max(pv->start, begin) ||
	       !pmd_none(pmdp_get_lockless(pmd - 1));
}

/*
 * Links the table at @address, whose PMD entry is @pmd, and its neighbours, unless
 * they are linked. A table that is found stays: the guest is locked, and in the
 * tree (F).
 */
static void link_around(struct vm_area_struct *vma, unsigned long address,
			pmd_t *pmd, struct vm_area_struct *host_vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	unsigned long addr = ALIGN_DOWN(address, PMD_SIZE), end = addr + PMD_SIZE;
	unsigned long start, nr = 0, pages = 0;

	if (!neighbour_linked(pv, addr, pmd)) {
		unsigned long first = max(ALIGN_DOWN(addr, LINK_AROUND),
					  pv->start);

		end = min(ALIGN_DOWN(addr, LINK_AROUND) + LINK_AROUND, pv->end);
		pmd -= (addr - first) >> PMD_SHIFT;
		addr = first;
	}
	for (start = addr; addr < end; addr += PMD_SIZE, pmd++) {
		if (!link_table(vma, addr, pmd, host_vma))
			continue;
		pages += page_ptdesc(pmd_pgtable(*pmd))->pt_share_pages;
		nr++;
	}
	if (!nr)
		return;
	ptshare_count_links(vma->vm_mm, ptshare_of(vma), nr, nr, pages);
	trace_ptshare_link(file_inode(vma->vm_file), start, end - start, nr, nr);
}

/* Points a PUD entry of a guest to the host's PMD table. */
static void link_gib(struct vm_area_struct *vma, unsigned long address,
		     pud_t *pud, pmd_t *gib)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *ptl = pud_lock(mm, pud);
	bool linked = pud_none(*pud);

	if (linked) {
		atomic_inc(ptshare_gib_links_of(gib));
		pud_populate(mm, pud, gib);
	}
	spin_unlock(ptl);
	if (!linked)
		return;
	ptshare_count_links(mm, ptshare_of(vma), 1, PTRS_PER_PMD,
			    READ_ONCE(virt_to_ptdesc(gib)->pt_share_pages));
	trace_ptshare_link(file_inode(vma->vm_file), ALIGN_DOWN(address, PUD_SIZE),
			   PUD_SIZE, 1, PTRS_PER_PMD);
}

/**
 * ptshare_link() - make a guest link to a table, and to others around it
 * @place: Where.
 * @vma: The guest.
 * @address: The address.
 * @host_vma: The VMA of the host.
 * @host_pmd: Its PMD entry. If no table is behind it, links by PMD entries are not made.
 *
 * Context: The lock of @vma.
 */
void ptshare_link(const struct ptshare_place *place, struct vm_area_struct *vma,
		  unsigned long address, struct vm_area_struct *host_vma,
		  pmd_t *host_pmd)
{
	if (place->pmd)
		link_around(vma, address, place->pmd, host_vma);
	else
		link_gib(vma, address, place->pud, gib_of(host_pmd));
}

/*
 * Links are cleared
 */

/**
 * struct unlinked - what is to be flushed
 * @first: Lowest address.
 * @last: End.
 * @nr: Links that were cleared.
 * @tables: Tables that these led to, or could have led to.
 */
struct unlinked {
	unsigned long first;
	unsigned long last;
	unsigned long nr;
	unsigned long tables;
};

static void was_unlinked(struct unlinked *un, unsigned long addr,
			 unsigned long size)
{
	un->first = min(un->first, addr);
	un->last = max(un->last, addr + size);
	un->nr++;
	un->tables += size / PMD_SIZE;
}

/*
 * Returns false if there is a table of the guest's own, to be looked at for links. None
 * comes to be one if there is none now: that needs the mmap lock for writing.
 */
static bool unlink_gib(struct vm_area_struct *vma, unsigned long addr,
		       pud_t *pud, bool clear, struct unlinked *un)
{
	unsigned long start = ALIGN_DOWN(addr, PUD_SIZE);
	spinlock_t *ptl; /* of the guest's PUD table */
	bool empty;
	pmd_t *gib;

	if (!ptshare_whole_gib(vma, addr))
		return false;
	ptl = pud_lock(vma->vm_mm, pud);
	empty = pud_none(*pud);
	gib = linked_gib(ptshare_of(vma), ptshare_offset(vma, start), *pud);
	if (gib && clear) {
		pud_clear(pud);
		atomic_dec(ptshare_gib_links_of(gib));
		was_unlinked(un, start, PUD_SIZE);
	}
	spin_unlock(ptl);
	return gib || empty;
}

static void unlink_tables(struct vm_area_struct *vma, unsigned long addr,
			  unsigned long end, struct unlinked *un)
{
	struct ptshare *ps = ptshare_of(vma);
	struct mm_struct *mm = vma->vm_mm;
	pmd_t *pmd;

	for (; (pmd = ptshare_next_pmd(mm, &addr, end)); addr += PMD_SIZE) {
		spinlock_t *ptl = pmd_lock(mm, pmd);
		pmd_t table = *pmd;

		if (is_link(ps, ptshare_offset(vma, addr), table)) {
			pmd_clear(pmd);
			atomic_dec(ptshare_links_of(pmd_pgtable(table)));
			was_unlinked(un, addr, PMD_SIZE);
		}
		spin_unlock(ptl);
		cond_resched();
	}
}

/*
 * No CPU uses the tables through this guest when it returns. It is one flush,
 * for all tables, and it says that tables are freed: paging-structure caches go
 * too, and CPUs that run the address space lazily are interrupted as well. The
 * flush comes now and not with others at the end of an unmap, because the VMA
 * leaves the tree of guests before that (L).
 */
static void unlink(struct vm_area_struct *vma, unsigned long start,
		   unsigned long end, bool gibs, enum ptshare_reason reason)
{
	struct ptshare *ps = ptshare_of(vma);
	struct ptshare_vma *pv = ptshare_vma(vma);
	struct mm_struct *mm = vma->vm_mm;
	struct unlinked un = { .first = ULONG_MAX };
	unsigned long addr = max(ALIGN_DOWN(start, PMD_SIZE), pv->start);
	unsigned long next;
	pud_t *pud;

	/* There is nothing to link to yet. */
	if (!READ_ONCE(ps->mm))
		return;
	end = min(ALIGN(end, PMD_SIZE), pv->end);
	for (; (pud = ptshare_next_pud(mm, &addr, end)); addr = next) {
		next = pud_addr_end(addr, end);
		if (!unlink_gib(vma, addr, pud, gibs, &un))
			unlink_tables(vma, addr, next, &un);
	}
	if (!un.nr)
		return;
	if (ptshare_rule(UNLINK_FLUSH))
		flush_tlb_mm_range(mm, un.first, un.last, PAGE_SHIFT, true);
	ptshare_count_unlinks(mm, ps, un.nr, un.tables);
	trace_ptshare_unlink(file_inode(vma->vm_file), un.first,
			     un.last - un.first, un.nr, un.tables, reason);
}

/**
 * ptshare_unlink_notify() - clear links, and tell the MMU notifiers of the guest
 * @vma: The guest.
 * @start: First address. All links that reach into the range are cleared.
 * @end: End of the range. What it maps by tables of its own stays.
 * @reason: Why, for who traces it.
 *
 * Context: May sleep. mmap lock of @vma for writing, or nobody else knows of it any
 * more, or its process has ended.
 */
void ptshare_unlink_notify(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end, enum ptshare_reason reason)
{
	struct ptshare_vma *pv = ptshare_vma(vma);
	struct mmu_notifier_range range;

	start = max(ALIGN_DOWN(start, PMD_SIZE), pv->start);
	end = min(ALIGN(end, PMD_SIZE), pv->end);
	if (start >= end)
		return;
	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, vma->vm_mm, start,
				end);
	mmu_notifier_invalidate_range_start(&range);
	unlink(vma, start, end, true, reason);
	mmu_notifier_invalidate_range_end(&range);
}

/*
 * MADV_DONTNEED does not go to the trouble of the mmap lock for writing. Who walks page
 * tables beside it relies on PMD tables to stay, so links to them stay. That is no loss:
 * the pages of a file are not dropped with their entries.
 */
void ptshare_unlink(struct vm_area_struct *vma, unsigned long start,
		    unsigned long end, bool unmap)
{
	unlink(vma, start, end, unmap, PTSHARE_BY_UNMAP);
}

/* Takes away the links of a guest that has got flags of another class. */
static void change_class(struct vm_area_struct *vma, enum ptshare_class old,
			 unsigned long start, unsigned long end)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	ptshare_unlink_notify(vma, start, end, PTSHARE_BY_CLASS);
	start = max(ALIGN_DOWN(start, PMD_SIZE), pv->start);
	end = min(ALIGN(end, PMD_SIZE), pv->end);
	if (start >= end)
		return;
	ptshare_class_left(vma, old, start, end);
	ptshare_dropped(vma, start, end);
}

bool __ptshare_change_protection(struct vm_area_struct *vma,
				 unsigned long start, unsigned long end,
				 bool numa)
{
	if (numa)
		return ptshare_rule(NUMA);
	change_class(vma, ptshare_class_of(vma->vm_flags ^ VM_WRITE), start, end);
	return false;
}

void __ptshare_unlock(struct vm_area_struct *vma)
{
	struct ptshare_vma *pv = ptshare_vma(vma);

	vma_start_write(vma);
	ptshare_unlink_notify(vma, pv->start, pv->end, PTSHARE_BY_CLASS);
	ptshare_release_class(vma, ptshare_class_of(vma->vm_flags), pv->start,
			      pv->end);
}

void __ptshare_change_lock(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end)
{
	change_class(vma, ptshare_class_of(vma->vm_flags ^ VM_LOCKED), start, end);
}
