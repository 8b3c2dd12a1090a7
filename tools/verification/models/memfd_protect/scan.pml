/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The log of an ASYNC range, and scans that take pages out of it: mm/memfd_scan.c,
 * memfd_state_log() in mm/memfd_state.c, DIRTY in mm/memfd_waiters.c.
 *
 * One page of an ASYNC range.  Processes stand for
 *
 *   thread	stores through a mapping: fault_answer(), and the second look of
 *		memfd_protect_wp_fault()
 *   writer	write(2): verdict_and_log(), under inode_lock()
 *   dma	GUP that pins the page for writing, and DMA
 *   handler	waits for DIRTY, then scans: memfd_protect_scan() with take_run(),
 *		log_shrunk(), keep_all_pinned(); what he cannot be told of is put back:
 *		memfd_protect_unscan()
 *   observer	looks at what is left when nobody goes on
 *
 * Properties:
 *
 *   Logged	what is written is in the log, or in the scan that is under way
 *   Told	the handler does not wait while something was stored or written of which
 *		he was not told
 *
 * Left out: memfd_state_log_at_once(), which does what thread does, in one piece, with the
 * lock of the page table held; TLBs and the order of page table and mode (walk.pml); how a pin is found
 * (pin.pml); pages that are in the log as well, but for one thing: the log may not be
 * empty when this page is taken.  What DMA wrote is in every scan as long as the pin is
 * there, and is not told of, so it does not count for Told.
 *
 * Variants:
 *   NO_LOG_FIRST	Logged	a fault logs before it makes the entry writable
 *   NO_LOOK_UNDER_LOCK	Logged	it looks at the mode under the page table lock
 *   NO_WALK	Logged	a scan takes write access away
 *   NO_WALK_LAST	Logged	when it has made the mode ASYNC
 *   NO_INODE_LOCK	Logged	a scan has inode_lock()
 *   NO_KEEP_PINNED	Logged	it leaves pages with pins in the log
 *   NO_TELL_ANEW	Told	what is written behind a scan is told of
 *   NO_SHRUNK_LOCK	Told	DIRTY is withdrawn with the lock held that the log has
 *   NO_UNSCAN	Told	what could not be told is put back into the log
 *   NO_UNSCAN_TELL	Told	and told of
 */

#include "sync.pmh"

bool inode_lock, state_lock, table_lock;
bool async = true;		/* the mode is ASYNC, or none */
bool log;
bool told;			/* waiters.told */
bool dirty;			/* DIRTY is in the queue */
bool writable;			/* the page-table entry */
bool pinned;
bool under_way;			/* a scan has taken the page, and has not returned */
bool news;			/* written since a scan that has returned */
bool Logged = true, Told = true;

#define write_page()	d_step { Logged = log || under_way; assert(Logged); news = true }

inline tell_dirty()
{
	if
	:: !told -> d_step { dirty = true; told = true }
	:: else
	fi
}

/* memfd_state_log(), with memfd_protect.lock */
inline log_page()
{
	if
	:: async ->
		log = true;
		async = false;
		tell_dirty()
	:: else
	fi
}

inline ask()
{
	lock(state_lock);
	log_page();
	unlock(state_lock)
}

inline make_writable()
{
	lock(table_lock);
	if
#ifndef NO_LOOK_UNDER_LOCK
	:: async
#endif
	:: else -> writable = true
	fi;
	unlock(table_lock)
}

active proctype thread()
{
	do
	:: atomic { writable -> write_page() }
	:: !writable ->
#ifdef NO_LOG_FIRST
		lock(table_lock);
		writable = true;
		unlock(table_lock);
		ask()
#else
		ask();
		make_writable()
#endif
	:: break
	od
}

active proctype writer()
{
	do
	:: lock(inode_lock);
		ask();
		write_page();
		unlock(inode_lock)
	:: break
	od
}

active proctype dma()
{
	do
	:: atomic { writable && !table_lock -> pinned = true };
		do
		:: atomic { Logged = log || under_way; assert(Logged) }
		:: break
		od;
		pinned = false
	:: break
	od
}

inline walk()
{
	lock(table_lock);
	writable = false;
	unlock(table_lock)
}

inline log_shrunk()
{
#ifdef NO_SHRUNK_LOCK
	if
	:: !log ->
		d_step { dirty = false; told = false }
	:: else
	fi
#else
	lock(state_lock);
	if
	:: !log -> d_step { dirty = false; told = false }
	:: else
	fi;
	unlock(state_lock)
#endif
}

inline scan()
{
#ifndef NO_INODE_LOCK
	lock(inode_lock);
#endif
#ifdef NO_WALK_LAST
	walk();
#endif
	lock(state_lock);
	if
	:: log ->
#ifndef NO_TELL_ANEW
		told = false;
#endif
		d_step { async = true; log = false; under_way = true }
	:: else
	fi;
	unlock(state_lock);
	if
	:: under_way ->
		if
		:: log_shrunk()
		:: true		/* other pages are in the log */
		fi;
#if !defined(NO_WALK) && !defined(NO_WALK_LAST)
		walk();
#endif
#ifndef NO_KEEP_PINNED
		if
		:: pinned ->
			/* memfd_state_unlog() */
			lock(state_lock);
			log = true;
			unlock(state_lock)
		:: else
		fi;
#endif
		d_step { taken = news; news = false; under_way = false }
	:: else
	fi;
#ifndef NO_INODE_LOCK
	unlock(inode_lock)
#endif
}

/* memfd_protect_unscan() */
inline unscan()
{
	news = news || taken;
#ifndef NO_UNSCAN
	lock(state_lock);
	log = true;
	unlock(state_lock);
#ifndef NO_UNSCAN_TELL
	lock(state_lock);
	tell_dirty();
	unlock(state_lock)
#endif
#endif
}

active proctype handler()
{
	bool taken;

end:
	do
	:: dirty ->
		dirty = false;
		scan();
		if
		:: true		/* copied to user space */
		:: taken -> unscan()
		fi;
		taken = false
	od
}

active proctype observer()
{
	timeout;
	holds(Told, !news)
}
