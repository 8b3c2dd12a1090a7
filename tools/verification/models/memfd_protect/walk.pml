/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The write-protect walk against faults and TLB flushes of others: mm/memfd_walk.c,
 * mm/memfd_fault.c.
 *
 * One page of a file, mapped by one process.  Processes stand for
 *
 *   protect	memfd_protect() and its walk: flight_store(), memfd_walk_protect(),
 *		walk_table(), flush(); it is lifted, and begins anew
 *   fault	a write fault that installs the page table, or finds one:
 *		__memfd_protect_fault(), __memfd_protect_set_ptes(), wp_relock()
 *   others	who take write access away and flush later: mprotect() and zapping
 *		(mmu_gather), reclaim (a batch), who frees a table (PT_RECLAIM);
 *		and who gives it back: __memfd_protect_pte()
 *   cpu	a processor that runs the process: fills its TLB, and stores
 *
 * Properties, from when memfd_protect() has returned until protection is lifted:
 *
 *   W		no entry is writable, or becomes so
 *   R		no TLB has an entry that is
 *
 * Left out: who waits and who is refused (flight.pml, wait.pml), because W is
 * kept by the last look at the mode alone; more pages and mappings, because each entry
 * is walked under its own lock; entries that are clean, which counts as writable here.
 * i_mmap_rwsem keeps the tables, and the walk has it all the time.
 *
 * Variants:
 *   NO_BARRIER_WALK	W	smp_mb() of memfd_walk_protect()
 *   NO_BARRIER_FAULT	W	smp_mb__after_spinlock() of page_mode()
 *   NO_MODE_FIRST	W	the mode is stored before the walk
 *   NO_LOOK_UNDER_LOCK	W	a fault looks again under the page table lock
 *   NO_LOOK_PTE	W	so does mprotect()
 *   NO_TABLE_LOCK	W	the walk takes the page table lock
 *   NO_FLUSH		R	the walk flushes what it changed
 *   NO_NESTED_FLUSH	R	and what others have changed and not flushed
 *   NO_PENDING_LAST	R	who flushes later says so until he has
 *   NO_BATCHED_FLUSH	R	and what is in a batch of reclaim
 *   NO_BATCHED_FLUSH_TABLE	R	even if the table is gone by then (Linux 7.3)
 *   NO_PMD_LOCK	R	without a table the walk takes the PMD lock
 */

#define PROCESSORS	2
#define BUFFERED	2
#define WORDS		2
#include "sync.pmh"

/* Words of memory: whether the page is protected, whether there is a page table. */
#define MODE		0
#define TABLE		1

/* Whose buffer */
#define PROTECTOR	0
#define FAULTER		1

bool table_lock, pmd_lock;
bool writable;			/* the page-table entry */
bool in_tlb;			/* a TLB entry by which a CPU can write */
bool batched;			/* reclaim has not flushed its batch */
byte pending;			/* mm->tlb_flush_pending */
bool promised;			/* memfd_protect() has returned 0 */
bool W = true, R = true;

#define flush_tlb()	in_tlb = false

/* flush_tlb_batched_pending() */
inline flush_batched()
{
	if
	:: batched -> flush_tlb()
	:: else
	fi
}

inline walk_no_table()
{
#ifdef NO_PMD_LOCK
	skip
#else
	lock(pmd_lock);
#ifndef NO_BATCHED_FLUSH_TABLE
	flush_batched();
#endif
	unlock(pmd_lock)
#endif
}

inline walk_table()
{
#ifndef NO_TABLE_LOCK
	lock(table_lock);
#endif
	if
	:: load(TABLE) ->
#ifndef NO_BATCHED_FLUSH
		flush_batched();
#endif
		was_writable = writable;
		if
		:: was_writable ->
			writable = false;
			changed = true
		:: else
		fi;
#ifndef NO_TABLE_LOCK
		unlock(table_lock)
#endif
	:: else ->
		/* pte_offset_map_lock() fails. */
#ifndef NO_TABLE_LOCK
		unlock(table_lock);
#endif
		walk_no_table()
	fi
}

inline flush()
{
	if
#ifndef NO_FLUSH
	:: changed -> flush_tlb()
#endif
#ifdef NO_PMD_LOCK
	/* Without a lock in between loads need not be in order. */
	:: !changed && early && !nested
#endif
#ifndef NO_NESTED_FLUSH
	:: pending > 1 -> flush_tlb()
#endif
	:: else
	fi;
	pending--
}

inline walk()
{
	pending++;
#ifdef NO_PMD_LOCK
	nested = pending > 1;
	early = true;
#endif
	if
	:: !load(TABLE) -> walk_no_table()
	:: else ->
#ifdef NO_PMD_LOCK
		early = false;
#endif
		walk_table()
	fi;
	flush()
}

active proctype protect()
{
	bool changed, was_writable;
#ifdef NO_PMD_LOCK
	bool nested, early;
#endif

end:
	do
	:: 
#ifndef NO_MODE_FIRST
		store(PROTECTOR, MODE, true);
#ifndef NO_BARRIER_WALK
		smp_mb(PROTECTOR);
#endif
		walk();
#else
		walk();
		store(PROTECTOR, MODE, true);
#endif
		smp_mb(PROTECTOR);
		promised = true;
		changed = false;
		was_writable = false;
		holds(W, !(load(TABLE) && writable));
		holds(R, !in_tlb);
		/* PROT_READ | PROT_WRITE */
		promised = false;
		store(PROTECTOR, MODE, false);
		smp_mb(PROTECTOR)
	od
}

/* The entry is set under the page table lock, which is held. */
inline make_writable()
{
	writable = true;
	holds(W, !promised)
}

active proctype fault()
{
	bool protected;

end:
	do
	:: !writable ->
		/* There may be a table that its own processor has just installed. */
		if
		:: !load(TABLE) && len(buffer[FAULTER]) == 0 ->
			lock(pmd_lock);
			store(FAULTER, TABLE, true);
			unlock(pmd_lock)
		:: else
		fi;
		protected = load(MODE);
		lock(table_lock);
		if
		:: load(TABLE) || len(buffer[FAULTER]) > 0 ->
#ifndef NO_BARRIER_FAULT
			smp_mb(FAULTER);
#endif
#ifndef NO_LOOK_UNDER_LOCK
			protected = load(MODE);
#endif
			if
			:: !protected -> make_writable()
			:: else
			fi
		:: else
		fi;
		unlock(table_lock);
		protected = false
	od
}

inline flush_and_say_so()
{
#ifdef NO_PENDING_LAST
	pending--;
#endif
	if
	:: took -> flush_tlb()
	:: else
	fi;
#ifndef NO_PENDING_LAST
	pending--;
#endif
	took = false
}

/* change_pte_range(), zap_pte_range() */
inline take_write_access()
{
	pending++;
	lock(table_lock);
	flush_batched();
	took = writable;
	writable = false;
	unlock(table_lock)
}

active proctype others()
{
	bool protected, took;

end:
	do
	:: /* mprotect(PROT_READ) */
		take_write_access();
		flush_and_say_so()
	:: /* mprotect(PROT_WRITE) */
		lock(table_lock);
		if
		:: load(TABLE) ->
#ifndef NO_LOOK_PTE
			protected = load(MODE);
#endif
			if
			:: !protected -> make_writable()
			:: else
			fi
		:: else
		fi;
		unlock(table_lock);
		protected = false
	:: /* MADV_DONTNEED with PT_RECLAIM: zap_pte_table_if_empty() */
		take_write_access();
		lock(pmd_lock);
		lock(table_lock);
		if
		:: !writable && load(TABLE) -> memory[TABLE] = false
		:: else
		fi;
		unlock(table_lock);
		unlock(pmd_lock);
		flush_and_say_so()
	od
}

/* shrink_folio_list(), with the page unmapped in between */
active proctype reclaim()
{
end:
	do
	:: lock(table_lock);
		if
		:: load(TABLE) && writable ->
			writable = false;
			batched = true
		:: else
		fi;
		unlock(table_lock);
		atomic { flush_tlb(); batched = false }
	od
}

active proctype cpu()
{
end:
	do
	:: atomic { load(TABLE) && writable -> in_tlb = true }
	:: atomic { in_tlb -> holds(R, !promised) }
	od
}
