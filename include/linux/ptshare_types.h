/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shared page tables: what headers need that <linux/ptshare.h> includes itself.
 */
#ifndef _LINUX_PTSHARE_TYPES_H
#define _LINUX_PTSHARE_TYPES_H

#include <linux/jump_label.h>
#include <linux/mm_types.h>

struct arch_tlbflush_unmap_batch;

#ifdef CONFIG_PTSHARE

DECLARE_STATIC_KEY_FALSE(ptshare_used);

void ptshare_flush_tlb(struct mm_struct *host, unsigned long start,
		       unsigned long end, bool freed_tables);
void ptshare_tlbbatch_add(struct arch_tlbflush_unmap_batch *batch,
			  struct mm_struct *host, unsigned long start,
			  unsigned long end);

/**
 * ptshare_host_mm() - whether an mm_struct owns page tables that others link to
 * @mm: The mm_struct.
 *
 * No CPU ever runs on such an mm_struct: TLB entries are those of its guests.
 *
 * Return: True if so.
 */
static inline bool ptshare_host_mm(const struct mm_struct *mm)
{
	return static_branch_unlikely(&ptshare_used) && READ_ONCE(mm->ptshare);
}

#else /* !CONFIG_PTSHARE */

static inline bool ptshare_host_mm(const struct mm_struct *mm)
{
	return false;
}

static inline void ptshare_flush_tlb(struct mm_struct *host,
				     unsigned long start, unsigned long end,
				     bool freed_tables) { }
static inline void ptshare_tlbbatch_add(struct arch_tlbflush_unmap_batch *batch,
					struct mm_struct *host,
					unsigned long start,
					unsigned long end) { }

#endif /* CONFIG_PTSHARE */

#endif /* _LINUX_PTSHARE_TYPES_H */
