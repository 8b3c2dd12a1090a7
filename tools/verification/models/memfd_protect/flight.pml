/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flight: nobody acts on the modes of a memfd_protect() that may yet fail, and
 * nobody is kept by one after the other: mm/memfd_state.c.
 *
 * One page.  Processes stand for
 *
 *   protect	memfd_protect(PROT_READ), two of them, over and over again:
 *		memfd_flight_begin(), the walk, memfd_flight_end(); any of them may fail
 *   fault	a write fault: fault_ask() by fault_try_question(), and fault_settle();
 *		the second time by fault_put_question(), which is memfd_flight_lock()
 *   lifter	memfd_protect(PROT_READ | PROT_WRITE), RESOLVE, close: memfd_flight_lock()
 *   clip	a system call that asks without waiting for flights: clip_to_unprotected()
 *
 * Properties:
 *
 *   L		who acts on a mode has memfd_protect.lock, and no flight is open (Invariant L)
 *   Undone	a call that fails changes nothing, and undoes nothing of others
 *   progress	a fault gets its answer, however many flights there are
 *
 * flight.settled and memfd_protect.lock are queues: an rw_semaphore lets writers wait
 * behind readers that came before, and so do readers behind writers; a mutex is handed
 * over to who has waited for long.  Left out: pages beside the range, for which nobody
 * waits; signals; what is done with the answer (walk.pml, wait.pml).
 *
 * Variants:
 *   NO_FLIGHT_LOCK	L	who acts on a mode waits for the flight
 *   NO_LOCK_FIRST	L	he takes the lock before he gives the semaphore back
 *   NO_INODE_LOCK	L	a flight has inode_lock()
 *   NO_UNDO	Undone	a flight that fails restores what it found
 *   NO_FAIR	progress	the semaphore is fair
 *   NO_SECOND_WAIT	progress	a fault that came back keeps its turn
 */

#include "sync.pmh"

mtype = { none, deny };

#define PROTECTORS	2

/* Who waits for a lock, in order */
chan settled_queue = [5] of { pid };
chan state_queue = [5] of { pid };

bool inode_lock, state_locked;
rwsem settled;
bool open;			/* flight.open */
mtype mode = none;
mtype final = none;		/* what was decided last */
bool L = true, Undone = true;

#define state_lock()	state_queue!_pid;				\
			atomic { !state_locked && state_queue?[eval(_pid)] ->	\
				 state_queue?eval(_pid); state_locked = true }
#define state_unlock()	state_locked = false

#ifdef NO_FAIR
#define settled_down_read()	down_read(settled)
#define settled_down_write()	down_write(settled)
#else
#define settled_down_read()	settled_queue!_pid;			\
			atomic { !settled.writer && settled_queue?[eval(_pid)] ->	\
				 settled_queue?eval(_pid); settled.readers++ }
#define settled_down_write()	settled_queue!_pid;			\
			atomic { !settled.writer && settled.readers == 0 &&	\
				 settled_queue?[eval(_pid)] ->		\
				 settled_queue?eval(_pid); settled.writer = true }
#endif

/* With the lock, and with a mode that is acted on */
#define acts()		holds(L, !open)

inline flight_lock()
{
	state_lock();
#ifndef NO_FLIGHT_LOCK
	if
	:: open ->
		state_unlock();
		settled_down_read();
#ifdef NO_LOCK_FIRST
		up_read(settled);
		state_lock()
#else
		state_lock();
		up_read(settled)
#endif
	:: else
	fi
#endif
}

active [PROTECTORS] proctype protect()
{
	mtype before;

end:
	do
	::
#ifndef NO_INODE_LOCK
		lock(inode_lock);
#endif
		settled_down_write();
		state_lock();
		before = mode;
		mode = deny;
		open = true;
		state_unlock();
		/* The walk; is there a pin that stays? */
		state_lock();
		if
		:: true ->
			final = deny
		:: true ->
#ifndef NO_UNDO
			mode = before
#endif
		fi;
		open = false;
		before = 0;
		holds(Undone, mode == final);
		state_unlock();
		up_write(settled);
#ifndef NO_INODE_LOCK
		unlock(inode_lock)
#endif
	od
}

active proctype fault()
{
	do
	::
#ifdef NO_SECOND_WAIT
again:
#endif
		/* It comes back if it must. */
		state_lock();
		if
		:: open ->
			state_unlock();
			settled_down_read();
			up_read(settled);
#ifdef NO_SECOND_WAIT
			goto again
#else
			flight_lock()
#endif
		:: else
		fi;
		acts();
		state_unlock();
progress:	skip
	od
}

active proctype lifter()
{
end:
	do
	:: flight_lock();
		acts();
		mode = none;
		final = none;
		state_unlock()
	od
}

active proctype clip()
{
end:
	do
	:: lock(inode_lock);
		state_lock();
		acts();
		state_unlock();
		unlock(inode_lock)
	od
}
