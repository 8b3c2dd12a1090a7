/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Write protection of a shared page table as a whole: mm/ptshare_protect.c.
 *
 * One page table of the host with one entry.  One process comes to it by the host's
 * PMD entry, since it links to the whole GiB; another one by a PMD entry of its own, if
 * it has a link.  Processes stand for
 *
 *   protect	memfd_protect() of the page: protect_table(), or walk_table() if there
 *		are links of PMD entries, and the flush
 *   lift	memfd_protect(PROT_READ | PROT_WRITE) of it
 *   fault	a write fault of the first process: ptshare_push_down(), and the entry by
 *		__memfd_protect_wp_fault() in the host
 *   linker	the other process: ptshare_count_link() and link_table(), then
 *		unlink_tables() and its flush
 *   gup	GUP-fast by the first process: gup_fast_pmd_range(), gup_fast_pte_range()
 *   cpu	the processor of either, which reads both levels, in order, and keeps what
 *		they say
 *
 * Properties, of a page from when memfd_protect() has returned until it is lifted:
 *
 *   U		no processor has a TLB entry to write it
 *   DMA	GUP-fast gets no pin for writing (what it had before is found: pin.pml)
 *
 * Left out: who frees the table (link.pml); i_mmap_rwsem, which memfd_protect() has all
 * the time; more pages: modes and entries of each are looked at in the same critical
 * sections.
 *
 * Variants:
 *   NO_ALONE	U	a table to which PMD entries link is not protected as a whole
 *   NO_LOOK_AGAIN	U	whether it is, is looked at again under the lock of the table
 *   NO_JOIN	U	who links by a PMD entry pushes down before
 *   NO_JOIN_LOCK	U	and counts under the lock of the table
 *   NO_PUSH_DOWN	U	entries of protected pages lose write access
 *   NO_ENTRIES_FIRST	U	before the PMD entry gets its bit
 *   NO_MODES_UNDER_LOCK	U	modes are read under the lock of the table
 *   NO_MODE_FIRST	U	modes are stored before the bit is cleared
 *   NO_FLUSH	U	who clears the bit flushes
 *   NO_GUP_FAST	DMA	GUP-fast looks at the PMD entry
 *   NO_GUP_LOOK_AGAIN	DMA	and again when it has the pin
 */

#include "../memfd_protect/sync.pmh"

bool table_lock;
bool protected;			/* the modes */
bool promised;
bool writable;			/* the entries */
bool host_write = true;		/* the write bit of the host's PMD entry */
bool link;			/* the PMD entry of the other process */
byte links;			/* as counted */
bool upper, tlb;		/* caches of the first process, with write access */
bool upper_linked, tlb_linked;	/* of the other one */
bool pin;			/* GUP-fast has a pin, or is about to give it back */
bool U = true, DMA = true;

inline push_down()
{
	if
	:: !host_write ->
#ifdef NO_ENTRIES_FIRST
		host_write = true;
#endif
#ifndef NO_PUSH_DOWN
#ifndef NO_MODES_UNDER_LOCK
		is_protected = protected;
#endif
		writable = writable && !is_protected;
#endif
		host_write = true
	:: else
	fi
}

inline flush_linked()
{
	d_step {
		upper_linked = false;
		tlb_linked = false
	}
}

inline flush()
{
	d_step {
		upper = false;
		tlb = false
	};
	flush_linked()
}

inline walk_table()
{
	lock(table_lock);
	writable = false;
	unlock(table_lock)
}

inline protect_table()
{
#ifdef NO_LOOK_AGAIN
	alone = links == 0;
#endif
	lock(table_lock);
#ifndef NO_LOOK_AGAIN
	alone = links == 0;
#endif
#ifdef NO_ALONE
	alone = true;
#endif
	host_write = host_write && !alone;
	unlock(table_lock);
	if
	:: !alone -> walk_table()
	:: else
	fi
}

active proctype protect()
{
	bool alone;

end:
	do
	::
#ifndef NO_MODE_FIRST
		protected = true;
#endif
		protect_table();
#ifdef NO_MODE_FIRST
		protected = true;
#endif
#ifndef NO_FLUSH
		flush();
#endif
		d_step {
			alone = false;
			/* Pins are looked for at last. */
			promised = protected && !pin
		};
		holds(U, !(promised && (tlb || tlb_linked)))
	od
}

active proctype lift()
{
end:
	do
	:: d_step { protected -> protected = false; promised = false }
	od
}

/* Reads the modes for push_down(), if they are not read under the lock. */
inline read_modes()
{
#ifdef NO_MODES_UNDER_LOCK
	is_protected = protected
#else
	skip
#endif
}

active proctype fault()
{
	bool is_protected;

end:
	do
	:: !host_write || !writable ->
		/* ptshare_push_down() */
		read_modes();
		lock(table_lock);
		push_down();
		unlock(table_lock);
		/* The host's part */
		lock(table_lock);
		writable = writable || !protected;
		unlock(table_lock)
	od
}

active proctype linker()
{
	bool is_protected;

end:
	do
	:: /* ptshare_count_link() */
		read_modes();
		lock(table_lock);
#ifndef NO_JOIN
		push_down();
#endif
#ifndef NO_JOIN_LOCK
		links++;
#endif
		unlock(table_lock);
#ifdef NO_JOIN_LOCK
		links++;
#endif
		link = true;
		/* unlink_tables() */
		link = false;
		links--;
		flush_linked()
	od
}

#ifdef NO_GUP_FAST
#define pmd_allows	true
#else
#define pmd_allows	host_write
#endif

active proctype gup()
{
end:
	do
	:: pmd_allows ->
end_entry:	writable;
		pin = true;
#ifdef NO_GUP_LOOK_AGAIN
		holds(DMA, !promised);
#else
		if
		:: pmd_allows ->
			if
			:: atomic { writable -> holds(DMA, !promised) }
			:: !writable
			fi
		:: !pmd_allows
		fi;
#endif
		pin = false
	od
}

active proctype cpu()
{
end:
	do
	:: atomic { host_write && !upper -> upper = true }
	:: atomic { upper && writable -> tlb = true }
	:: atomic { link && !upper_linked -> upper_linked = true }
	:: atomic { upper_linked && writable -> tlb_linked = true }
	:: atomic { tlb || tlb_linked -> holds(U, !promised) }
	od
}
