/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Links to a shared page table, against those who clear them, change entries, and free
 * the table: mm/ptshare_link.c, mm/ptshare_tlb.c, mm/ptshare_host.c.
 *
 * One page table of the host with one entry, one process that maps the file, which may be
 * the last one.  Processes stand for
 *
 *   thread	a thread of it: its processor, which may fill caches at any time; faults,
 *		by guest_fault(), host_fault(), ptshare_link(); GUP-fast
 *   unmap	another thread of it: MADV_DONTNEED, munmap() with ptshare_unlink_notify()
 *		and __ptshare_remove(), the end of the process, which is in the tree still
 *		when it has cleared its links; and mmap() of another one
 *   reclaim	who changes an entry by the reverse mapping and frees the page, with
 *		ptshare_flush_tlb()
 *   release	who frees tables without guests, at any time: free_unused()
 *
 * Properties:
 *
 *   F		nobody walks a table that has been freed
 *   T		nobody uses a page by a TLB entry when it has been freed
 *
 * Left out: more guests, which have locks, links and caches of their own, and keep the table
 * for longer; links of whole GiBs, which are cleared and flushed in the same way; the PMD
 * lock, under which a link is one store; the generation of an address space
 * (shootdown.pml); RCU, which frees tables where flushes interrupt nobody.  The table
 * lives as long as the bit says, and comes anew by a fault: whoever would use an old
 * one can do that before.
 *
 * Variants:
 *   NO_UNLINK_FLUSH	F	who clears a link flushes
 *   NO_UPPER_FLUSH	F	paging-structure caches, too
 *   NO_INTERRUPT	F	and waits for GUP-fast
 *   NO_UNLINK_FIRST	F	a guest leaves the tree when its links are cleared (L)
 *   NO_GUEST_LOCK	F	who links has locked a guest in the tree
 *   NO_TREE		F	tables that guests map are not freed
 *   NO_WRITE_LOCK	F	tables are freed with i_mmap_rwsem for writing
 *   NO_COUNT_LAST	F	links of a process that has ended count until it has flushed
 *   NO_FLUSH		T	who changes an entry flushes the guests
 *   NO_FLUSH_UNLINKED	T	those that have no link, too
 */

#include "../memfd_protect/sync.pmh"

rwsem i_mmap, guest_lock;	/* mmap lock and VMA lock in one */
bool table_lock;
bool table;			/* there is one */
bool entry;			/* it maps the page */
bool page;			/* which has not been freed */
bool in_tree = true;
bool runs = true;		/* mm_users */
byte counted;			/* mm->ptshare_links */
bool link;			/* the PMD entry of the guest */
bool upper;			/* it is in the paging-structure cache */
bool tlb;
bool irqs_off;
bool F = true, T = true;

inline flush()
{
	atomic {
#ifndef NO_INTERRUPT
		!irqs_off;
#endif
		tlb = false;
#ifndef NO_UPPER_FLUSH
		upper = false
#endif
	}
}

inline unlink()
{
	if
	:: atomic { link -> link = false };
#ifdef NO_COUNT_LAST
		counted--;
#endif
#ifndef NO_UNLINK_FLUSH
		flush();
#endif
#ifndef NO_COUNT_LAST
		counted--
#endif
	:: !link
	fi
}

inline fault()
{
#ifndef NO_GUEST_LOCK
	down_read(guest_lock);
#endif
	if
	:: in_tree && runs ->
		/* have_table() */
		d_step {
			entry = entry && table;
			table = true
		};
		/* host_fault() */
		lock(table_lock);
		if
		:: table -> d_step { page = true; entry = true }
		:: else
		fi;
		unlock(table_lock);
		d_step {
			counted = (link -> counted : counted + 1);
			link = true
		}
	:: else
	fi;
#ifndef NO_GUEST_LOCK
	up_read(guest_lock)
#endif
}

active proctype thread()
{
end:
	do
	/* The processor may do that whatever the thread does. */
	:: atomic { link && !upper -> upper = true }
	:: atomic { upper && !tlb -> holds(F, table); tlb = entry }
	:: atomic { tlb -> holds(T, page) }
	:: fault()
	:: runs ->
		/* GUP-fast */
		irqs_off = true;
		if
		:: link -> holds(F, table)
		:: else
		fi;
		irqs_off = false
	od
}

active proctype unmap()
{
end:
	do
	:: /* MADV_DONTNEED */
		down_read(guest_lock);
		unlink();
		up_read(guest_lock)
	:: /* munmap(), or the process ends; then mmap() */
		down_write(guest_lock);
		if
		:: true
		:: runs = false
		fi;
#ifdef NO_UNLINK_FIRST
		down_write(i_mmap);
		in_tree = false;
		up_write(i_mmap);
		unlink();
#else
		unlink();
		down_write(i_mmap);
		in_tree = false;
		up_write(i_mmap);
#endif
		down_write(i_mmap);
		d_step { in_tree = true; runs = true };
		up_write(i_mmap);
		up_write(guest_lock)
	od
}

#ifdef NO_FLUSH_UNLINKED
#define concerned	(in_tree && link)
#else
#define concerned	(in_tree)
#endif

/* ptshare_flush_tlb() */
inline flush_guest()
{
	if
	:: concerned -> flush()
	:: !concerned
	fi
}

active proctype reclaim()
{
end:
	do
	:: down_read(i_mmap);
		if
		:: table ->
			lock(table_lock);
			holds(F, table);
			if
			:: entry ->
				entry = false;
#ifndef NO_FLUSH
				flush_guest();
#endif
				page = false
			:: else
			fi;
			unlock(table_lock)
		:: else
		fi;
		up_read(i_mmap)
	od
}

/* may_link of a guest in the tree */
#define may_link	(in_tree && (runs || counted > 0))

active proctype release()
{
end:
	do
	:: table ->
#ifdef NO_WRITE_LOCK
		down_read(i_mmap);
#else
		down_write(i_mmap);
#endif
		if
#ifdef NO_TREE
		:: table ->
#else
		:: table && !may_link ->
#endif
			lock(table_lock);
			entry = false;
			unlock(table_lock);
			d_step { page = false; table = false }
		:: else
		fi;
#ifdef NO_WRITE_LOCK
		up_read(i_mmap)
#else
		up_write(i_mmap)
#endif
	od
}
