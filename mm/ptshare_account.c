// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables of memfds: what a process maps through links, and what it
 * is told of that.
 *
 * Each mm_struct counts the tables that it links to, 512 for a PMD table. It is an
 * atomic counter that nothing is freed by but where it is zero for good: see
 * mm/ptshare_host.c.
 *
 * How many pages that is, is estimated. A table knows how many entries it has
 * got by faults, and who links to it adds that number to his own, and those
 * that he faults in later. What others fault in later he does not count, and
 * who unlinks subtracts the average of his tables. Entries that are taken away
 * are not noticed before the table is counted again. The OOM killer needs no
 * more.
 *
 * The accessed, dirty and soft-dirty bits of shared entries are those of all
 * who link to the table. Nobody may learn from them what others do, or take
 * them away from others: for that processes would need the right to trace one
 * another.
 */

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/seq_file.h>

#include "memfd_around.h"
#include "ptshare.h"
#include "ptshare_debug.h"

#define CREATE_TRACE_POINTS
#include <trace/events/ptshare.h>

/*
 * What a fault makes, if not of a large folio: one entry for a store, an aligned group
 * by fault-around for a read, and for a store that maps as a read does. Looked at are as many
 * again beside them: if some of those appear, there may be more.
 */
static unsigned int most_entries(unsigned int flags)
{
	return flags & FAULT_FLAG_WRITE ? 1 : MEMFD_AROUND_PAGES;
}

/* How many entries are present of @size, around one of them. */
static unsigned int count_entries(pte_t *pte, unsigned int size)
{
	pte_t *start = PTR_ALIGN_DOWN(pte, size * sizeof(*pte));
	unsigned int i, nr = 0;

	for (i = 0; i < size; i++)
		nr += pte_present(ptep_get_lockless(start + i));
	return nr;
}

/**
 * ptshare_group_pages() - how many pages are mapped where a fault may add some
 * @pmd: The PMD entry of the host.
 * @addr: The address in the host.
 * @flags: FAULT_FLAG_*.
 *
 * Context: The lock of a guest.
 * Return: The number, for ptshare_count_fault().
 */
unsigned int ptshare_group_pages(pmd_t *pmd, unsigned long addr,
				 unsigned int flags)
{
	unsigned int nr = 0;
	pte_t *pte;

	if (pmd_leaf(pmdp_get_lockless(pmd)))
		return PTRS_PER_PTE;
	pte = pte_offset_map(pmd, addr);
	if (pte) {
		nr = count_entries(pte, 2 * most_entries(flags));
		pte_unmap(pte);
	}
	return nr;
}

/* Returns how many there are more in a table. */
static int count_table(pte_t *pte, unsigned int flags, unsigned int added)
{
	struct ptdesc *table = virt_to_ptdesc(pte);
	unsigned int old = READ_ONCE(table->pt_share_pages);
	unsigned int new = min(old + added, PTRS_PER_PTE);

	if (added > most_entries(flags))
		new = count_entries(pte, PTRS_PER_PTE);
	WRITE_ONCE(table->pt_share_pages, new);
	return new - old;
}

/* How many pages huge entries and page tables have, together. */
static unsigned int count_gib(pmd_t *pmd)
{
	unsigned int i, nr = 0;

	pmd = PTR_ALIGN_DOWN(pmd, PAGE_SIZE);
	for (i = 0; i < PTRS_PER_PMD; i++, pmd++) {
		pmd_t entry = pmdp_get_lockless(pmd);

		if (ptshare_has_table(entry))
			nr += READ_ONCE(page_ptdesc(pmd_pgtable(entry))->pt_share_pages);
		else if (pmd_trans_huge(entry))
			nr += PTRS_PER_PTE;
	}
	return nr;
}

/* Huge entries that come back are not known from new ones: each time so many have come. */
#define RECOUNT_PAGES	(16 * PTRS_PER_PTE)

/**
 * ptshare_count_huge() - a huge entry has come
 * @pmd: The PMD entry of the host.
 *
 * Context: Anything that keeps the PMD table.
 * Return: How many pages there are more in that.
 */
int ptshare_count_huge(pmd_t *pmd)
{
	struct ptdesc *gib = virt_to_ptdesc(pmd);
	unsigned int old = READ_ONCE(gib->pt_share_pages);
	unsigned int new = old + PTRS_PER_PTE;

	if (old / RECOUNT_PAGES != new / RECOUNT_PAGES)
		new = count_gib(pmd);
	WRITE_ONCE(gib->pt_share_pages, new);
	return new - old;
}

/**
 * ptshare_count_fault() - a fault may have added pages to what the host maps
 * @mm: The address space of the guest.
 * @pmd: The PMD entry of the host.
 * @addr: The address in the host.
 * @flags: FAULT_FLAG_*.
 * @before: ptshare_group_pages() before the fault.
 * @linked: Whether the guest has linked to the table already.
 *
 * Context: The lock of the guest.
 */
void ptshare_count_fault(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
			 unsigned int flags, unsigned int before, bool linked)
{
	unsigned int after = ptshare_group_pages(pmd, addr, flags);
	struct ptdesc *gib = virt_to_ptdesc(pmd);
	pte_t *pte;
	int added;

	if (after <= before)
		return;
	pte = pte_offset_map(pmd, addr);
	if (pte) {
		added = count_table(pte, flags, after - before);
		WRITE_ONCE(gib->pt_share_pages, gib->pt_share_pages + added);
		pte_unmap(pte);
	} else {
		added = ptshare_count_huge(pmd);
	}
	if (linked)
		atomic_long_add(added, &mm->ptshare_pages);
}

/**
 * ptshare_count_links() - an address space has got links
 * @mm: The address space.
 * @ps: Shared page tables of the file.
 * @nr: How many.
 * @tables: How many tables they lead to, or may.
 * @pages: How many pages are behind them.
 *
 * Context: Any.
 */
void ptshare_count_links(struct mm_struct *mm, struct ptshare *ps,
			 unsigned long nr, unsigned long tables,
			 unsigned long pages)
{
	atomic_long_add(tables, &mm->ptshare_links);
	atomic_long_add(pages, &mm->ptshare_pages);
	atomic_long_add(nr, &ps->nr_links);
	count_vm_events(PTSHARE_LINK, nr);
}

/**
 * ptshare_count_unlinks() - links of an address space have been cleared
 * @mm: The address space, flushed.
 * @ps: Shared page tables of the file.
 * @nr: How many.
 * @tables: How many tables they led to, or might have.
 *
 * Context: Any.
 */
void ptshare_count_unlinks(struct mm_struct *mm, struct ptshare *ps,
			   unsigned long nr, unsigned long tables)
{
	unsigned long links = atomic_long_read(&mm->ptshare_links);
	unsigned long pages = atomic_long_read(&mm->ptshare_pages);

	if (tables < links)
		pages = mult_frac(pages, tables, links);
	atomic_long_sub(pages, &mm->ptshare_pages);
	/* Who sees that none is left relies on the flush. */
	smp_mb__before_atomic();
	atomic_long_sub(tables, &mm->ptshare_links);
	atomic_long_sub(nr, &ps->nr_links);
	count_vm_events(PTSHARE_UNLINK, nr);
}

/**
 * ptshare_count_unshare() - a part of a mapping does not share any more
 * @vma: The mapping.
 * @start: First address of what it shared.
 * @end: End. Nothing is counted if it shared nothing.
 * @reason: Why.
 *
 * Context: Any.
 */
void ptshare_count_unshare(const struct vm_area_struct *vma,
			   unsigned long start, unsigned long end,
			   enum ptshare_reason reason)
{
	if (start == end)
		return;
	count_vm_event(PTSHARE_UNSHARE);
	trace_ptshare_unshare(file_inode(vma->vm_file), start, end - start,
			      reason);
}

unsigned long __ptshare_mm_pages(struct mm_struct *mm)
{
	long pages = atomic_long_read(&mm->ptshare_pages);
	/* One that is already cleared may not be counted yet. */
	long links = max(atomic_long_read(&mm->ptshare_links), 0L);

	return ptshare_rule(OOM) ? clamp(pages, 0L, links * PTRS_PER_PTE) : 0;
}

unsigned int __ptshare_links(const struct vm_area_struct *vma,
			     unsigned long addr)
{
	unsigned long host_addr = PTSHARE_BASE(ptshare_link_class(vma)) +
				  ptshare_offset(vma, addr);
	struct mm_struct *host = READ_ONCE(ptshare_of(vma)->mm);
	pmd_t *pmd = host ? ptshare_find_pmd(host, host_addr) : NULL;
	unsigned int links;
	pte_t *pte;

	if (!pmd || pmd_none(pmdp_get_lockless(pmd)))
		return 1;
	links = atomic_read(ptshare_gib_links_of(pmd));
	/* It may become a huge entry, and its table be freed. */
	pte = pte_offset_map(pmd, host_addr);
	if (pte) {
		links += atomic_read(&virt_to_ptdesc(pte)->pt_share_count);
		pte_unmap(pte);
	}
	return links;
}

bool __ptshare_shared(struct vm_area_struct *vma, unsigned long addr)
{
	return __ptshare_links(vma, addr) > 1 && ptshare_rule(MAPCOUNT);
}

bool __ptshare_private(void)
{
	return ptshare_rule(PRIVACY);
}

pte_t __ptshare_shown_pte(pte_t pte)
{
	if (!ptshare_rule(PRIVACY) || pte_none(pte))
		return pte;
	/* Not tracked, so soft-dirty as a whole */
	if (!pte_present(pte))
		return pte_swp_mksoft_dirty(pte);
	return pte_mksoft_dirty(pte_mkclean(pte_mkold(pte)));
}

pmd_t __ptshare_shown_pmd(pmd_t pmd)
{
	if (!ptshare_rule(PRIVACY) || pmd_none(pmd))
		return pmd;
	if (!pmd_present(pmd))
		return pmd_swp_mksoft_dirty(pmd);
	return pmd_mksoft_dirty(pmd_mkclean(pmd_mkold(pmd)));
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

	if (!ptshare_wanted(file))
		return;
	seq_printf(m, "ptshare_guests:\t%lu\nptshare_tables:\t%ld\nptshare_links:\t%ld\n",
		   ps ? READ_ONCE(ps->nr_guests) : 0,
		   ps ? atomic_long_read(&ps->nr_tables) : 0,
		   ps ? max(atomic_long_read(&ps->nr_links), 0L) : 0);
}
