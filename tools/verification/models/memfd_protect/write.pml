/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * System calls that change contents, memfd_protect(), and seals: mm/memfd_write.c,
 * mm/memfd_protect.c.
 *
 * One page, which is in a WAIT range or not.  Processes stand for
 *
 *   writer	write(2): __memfd_protect_write(), call_check(), and its writing
 *   protector	memfd_protect(PROT_READ) by who is bound by seals: try_protect()
 *   lifter	memfd_protect(PROT_READ | PROT_WRITE) likewise: unprotect_locked()
 *   handler	who has the event fd: asked by a writer he scans, which takes inode_lock(),
 *		and lifts the protection; and protects, by memfd_protect_by_handler()
 *   sealer	F_ADD_SEALS: memfd_protect_sealed()
 *
 * Properties:
 *
 *   C		nothing is written to the page from when memfd_protect() has returned until
 *		protection is lifted
 *   Seal	when F_ADD_SEALS has returned nobody who is bound by seals protects or lifts
 *   deadlock	a writer that waits has no lock that its handler needs (S)
 *
 * Left out: page tables (walk.pml), flights, which system calls do not meet
 * (flight.pml), and how a writer sleeps (wait.pml).  Hole punching and truncation have
 * the same order, and a lock for each file.  Protection by DENY differs in that nobody
 * waits.
 *
 * Variants:
 *   NO_LOOK_UNDER_LOCK	C	a writer asks under inode_lock()
 *   NO_LOCK_PROTECT	C	memfd_protect() stores its modes under inode_lock()
 *   NO_LOOK_AGAIN	C	who has waited asks again
 *   NO_UNLOCK_TO_WAIT	deadlock	who waits drops inode_lock()
 *   NO_ROUND	Seal	memfd_protect_sealed() takes memfd_protect.lock
 *   NO_SEALS_PROTECT	Seal	memfd_protect() looks at seals under inode_lock()
 *   NO_SEALS_LIFT	Seal	lifting looks at them under memfd_protect.lock
 */

#include "sync.pmh"

bool inode_lock, state_lock;	/* memfd_protect.lock */
bool protected;			/* the mode, WAIT or none */
bool promised;			/* memfd_protect() has decided to return 0 */
bool sealed;			/* the seals of the file */
bool sealed_for_all;		/* F_ADD_SEALS has returned */
bool C = true, Seal = true;

active proctype writer()
{
	bool wait;

end:
	do
	::
#ifdef NO_LOOK_UNDER_LOCK
		wait = protected;
		lock(inode_lock);
#else
		lock(inode_lock);
again:
		lock(state_lock);
		wait = protected;
		unlock(state_lock);
#endif
		if
		:: wait ->
#ifndef NO_UNLOCK_TO_WAIT
			unlock(inode_lock);
#endif
waiting:		!protected;
#ifndef NO_UNLOCK_TO_WAIT
			lock(inode_lock);
#endif
#if !defined(NO_LOOK_AGAIN) && !defined(NO_LOOK_UNDER_LOCK)
			goto again
#endif
		:: else
		fi;
		wait = false;
		/* It takes its time. */
		holds(C, !promised);
		holds(C, !promised);
		unlock(inode_lock)
	od
}

inline protect(handler)
{
#ifdef NO_SEALS_PROTECT
	refused = sealed && !handler;
	lock(inode_lock);
#else
#ifndef NO_LOCK_PROTECT
	lock(inode_lock);
#endif
	refused = sealed && !handler;
#endif
	if
	:: !refused ->
		lock(state_lock);
		holds(Seal, handler || !sealed_for_all);
		protected = true;
		unlock(state_lock);
		/* The walk; then the outcome is known. */
		lock(state_lock);
		if
		:: protected -> promised = true
		:: else
		fi;
		unlock(state_lock)
	:: else
	fi;
#ifndef NO_LOCK_PROTECT
	unlock(inode_lock)
#endif
}

inline lift(handler)
{
#ifdef NO_SEALS_LIFT
	refused = sealed && !handler;
	lock(state_lock);
#else
	lock(state_lock);
	refused = sealed && !handler;
#endif
	if
	:: !refused ->
		holds(Seal, handler || !sealed_for_all);
		promised = false;
		protected = false
	:: else
	fi;
	unlock(state_lock)
}

active proctype protector()
{
	bool refused;

end:
	do
	:: protect(false);
		if
		:: refused -> break
		:: else
		fi
	od
}

active proctype lifter()
{
	bool refused;

end:
	do
	:: lift(false);
		if
		:: refused -> break
		:: else
		fi
	od
}

active proctype handler()
{
	bool refused;

end:
	do
	:: writer@waiting && protected ->
		lock(inode_lock);
		unlock(inode_lock);
		lift(true)
	:: !writer@waiting ->
		protect(true)
	od
}

#ifndef NO_LOCK_PROTECT	/* which would break Seal first */
active proctype sealer()
{
	lock(inode_lock);
	sealed = true;
#ifndef NO_ROUND
	lock(state_lock);
	unlock(state_lock);
#endif
	sealed_for_all = true;
	unlock(inode_lock)
}
#endif
