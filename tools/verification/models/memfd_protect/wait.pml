/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Writers that wait, the events that tell of them, and who answers: mm/memfd_waiters.c.
 *
 * One page, with mode WAIT or none.  Processes stand for
 *
 *   writer	two threads that write the page; one is called away by signals and comes
 *		back, or dies: memfd_waiters_wait() with join(), sleep_on(), leave()
 *   handler	who has the event fd: memfd_waiters_next(), _end(); memfd_protect_resolve()
 *		with allow_locked(), memfd_waiters_deny(); memfd_protect().  At last he lifts
 *		all, or closes: memfd_protect_release_notify()
 *   observer	looks at what is left when nobody goes on
 *
 * Properties:
 *
 *   deadlock	no wake-up is lost: of writers when protection is lifted, when they are
 *		denied, when the event fd is closed; of a reader when there is an event
 *   Answer	an answer to an event that was read reaches its writer, whatever signal
 *		came, and no other writer
 *   Alive	an event that is used has not been freed
 *   Freed	when the event fd is closed and the writers are done there is none left
 *
 * Left out: events of more pages, and who is woken if a part of them changes; notes for
 * accesses of the kernel; reports and DIRTY (scan.pml); flights (flight.pml).  There
 * is one page, so one event at most is pending, and in the queue.  An event is found by
 * its cookie, which is never used again: a cookie is an event and whether it was ended.
 *
 * Variants:
 *   NO_LOOK_AGAIN	deadlock	join() looks at the mode under the lock
 *   NO_MODE_FIRST	deadlock	who lifts stores the mode, then wakes
 *   NO_VERDICT_FIRST	deadlock	detach() stores the verdict, then wakes
 *   NO_CLOSE_WAKE	deadlock	close wakes
 *   NO_REQUEUE	deadlock	an event that could not be delivered is unread again
 *   NO_LEAVER	Answer	an event that was read stays when its last writer is called away
 *   NO_NOTE	Answer	and if it is denied then, until the writer comes back
 *   NO_COOKIE	Answer	a late answer finds nothing
 *   NO_READER_REF	Alive	who copies an event has a reference
 *   NO_LEAVER_REF	Alive	so has the writer who will come back
 *   NO_DETACH	Alive	an unread event that its last writer leaves is not found any more
 *   NO_CLOSE_LEAVERS	Freed	close drops events that nobody comes back to
 */

#include "sync.pmh"

#define WRITERS		2
#define EVENTS		3	/* one for each writer, one that a reader has still */
#define NOTHING		EVENTS
#define NOBODY		WRITERS

/* Verdicts; those of struct memfd_pending */
#define PENDING		0
#define RETRY		1
#define DENY		2

typedef pending {
	byte refs;
	byte waiters;
	byte verdict;
	byte leaver;
	bool told;		/* a handler has read it */
};

pending event[EVENTS];
byte by_offset = NOTHING;	/* the event that is pending */
byte unread = NOTHING;		/* the queue */
bool state_lock;		/* memfd_protect.lock */
bool wait_mode;			/* the mode is WAIT */
bool open = true;		/* waiters.open */
byte known = NOTHING;		/* the cookie that the handler has read */
bool known_ended;		/* that event has been answered, or is gone */
bool excused;			/* because of somebody else than a signal */
byte sleeps[WRITERS];		/* on which event */
bool died[WRITERS];
bool owed[WRITERS];		/* denied, and does not know it yet */
bool Answer = true, Alive = true, Freed = true;

/*
 * memfd_waiters.lock.  What is done with it is one step, since whoever has not got it looks
 * at the verdict only, which is stored before he is woken, and takes it next.
 */
#ifdef NO_VERDICT_FIRST
bool waiters_lock;
#define with_lock	lock(waiters_lock);
#define end_lock	unlock(waiters_lock)
#else
#define with_lock	atomic {
#define end_lock	}
#endif

/* Any use of an event */
#define use(e)		holds(Alive, event[e].refs > 0)

inline put(e)
{
	d_step {
		Alive = event[e].refs > 0;
		assert(Alive);
		event[e].refs--;
		if
		:: event[e].refs == 0 ->
			Alive = by_offset != e && unread != e && event[e].leaver == NOBODY;
			assert(Alive);
			event[e].verdict = PENDING;
			event[e].told = false
		:: else
		fi
	}
}

inline wake_all(e)
{
	d_step {
		if
		:: sleeps[0] == e -> sleeps[0] = NOTHING
		:: else
		fi;
		if
		:: sleeps[1] == e -> sleeps[1] = NOTHING
		:: else
		fi
	}
}

inline drop_leaver(e)
{
	event[e].leaver = NOBODY;
#ifndef NO_LEAVER_REF
	put(e)
#endif
}

/* detach(), but for the leaver */
inline end_event(e, outcome)
{
	use(e);
	by_offset = NOTHING;
	if
	:: unread == e -> unread = NOTHING
	:: unread != e
	fi;
#ifndef NO_COOKIE
	known_ended = known_ended || known == e;
#endif
#ifdef NO_VERDICT_FIRST
	wake_all(e);
	event[e].verdict = outcome
#else
	event[e].verdict = outcome;
	wake_all(e)
#endif
}

/* detach() because the page may be written, or the event fd is closed, or all died */
inline retry_event(e)
{
	end_event(e, RETRY);
	excused = excused || known == e;
	if
	:: event[e].leaver != NOBODY -> drop_leaver(e)
	:: else
	fi
}

/* memfd_waiters_recheck() */
inline recheck(e)
{
	with_lock
	e = by_offset;
	if
#ifdef NO_MODE_FIRST
	:: e != NOTHING ->
#else
	:: e != NOTHING && !wait_mode ->
#endif
		retry_event(e)
	:: else
	fi;
	e = NOTHING;
	end_lock
}

/* With memfd_protect.lock */
inline lift(e)
{
#ifdef NO_MODE_FIRST
	recheck(e);
	wait_mode = false
#else
	wait_mode = false;
	recheck(e)
#endif
}

/* The event that a writer has left, or NOTHING */
inline find_leaver(thread, e)
{
	d_step {
		e = 0;
		do
		:: e < EVENTS && !(event[e].refs > 0 && event[e].leaver == thread) -> e++
		:: else -> break
		od
	}
}

inline alloc(e)
{
	d_step {
		e = 0;
		do
		:: e < EVENTS && event[e].refs > 0 -> e++
		:: else -> break
		od;
		assert(e < EVENTS);
		event[e].refs = 1
	}
}

/* Sets e to the event to sleep on, or to NOTHING; and denied. */
inline join()
{
	with_lock
	if
#ifdef NO_LOOK_AGAIN
	:: open ->
#else
	:: wait_mode && open ->
#endif
		find_leaver(me, note);
		if
		:: note != NOTHING && event[note].verdict == DENY ->
			drop_leaver(note);
			denied = true
		:: else ->
			holds(Answer, !owed[me]);
			/* forget_leavers(): of who died, since his own is pending. */
			find_leaver(1 - me, note);
			if
			:: note != NOTHING && note != by_offset && died[1 - me] ->
				drop_leaver(note)
			:: else
			fi;
			if
			:: by_offset == NOTHING ->
				alloc(e);
				by_offset = e;
				unread = e
			:: else ->
				e = by_offset;
				use(e);
				event[e].refs++;
				if
				:: event[e].leaver != NOBODY -> drop_leaver(e)
				:: else
				fi
			fi;
			event[e].waiters++
		fi;
		note = NOTHING
	:: else
	fi;
	end_lock
}

/* wait_event_state(), which returns if there is a verdict, or a signal comes */
inline sleep_on()
{
	sleeps[me] = e;
	if
	:: event[e].verdict != PENDING
	:: event[e].verdict == PENDING ->
		if
		:: sleeps[me] == NOTHING	/* none comes */
		:: me == 0
		fi
	fi;
	sleeps[me] = NOTHING
}

/* An event that nobody waits for any more ends. */
inline leave_event(e)
{
#ifdef NO_DETACH
	known_ended = known_ended || known == e
#else
	end_event(e, RETRY)
#endif
}

/* Sets denied to whether it fails, killed to whether the signal has killed it. */
inline leave()
{
	with_lock
	use(e);
	denied = event[e].verdict == DENY;
	event[e].waiters--;
	if
	:: me == 0 && event[e].verdict == PENDING && event[e].waiters == 0 ->
		if
#ifdef NO_LEAVER
		:: true ->
			leave_event(e)
#else
		:: unread == e ->
			leave_event(e)
		:: unread != e ->
#ifndef NO_LEAVER_REF
			event[e].refs++;
#endif
			event[e].leaver = me
#endif
		:: true ->
			killed = true;
			excused = excused || known == e;
			leave_event(e)
		fi
	:: else
	fi;
	end_lock;
	put(e);
	e = NOTHING
}

proctype writer(byte me)
{
	byte e = NOTHING, note = NOTHING;
	bool denied, killed;

	do
	:: /* It asks under memfd_protect.lock, and writes, or waits. */
		if
		:: atomic { !state_lock && !wait_mode -> owed[me] = false }
		:: !state_lock && wait_mode ->
			join();
			if
			:: e != NOTHING ->
				sleep_on();
				leave()
			:: e == NOTHING
			fi;
			d_step { owed[me] = owed[me] && !denied; denied = false }
		fi;
		if
		:: killed -> break
		:: !killed
		fi
	:: break
	od;
	died[me] = true
}

inline read_event()
{
	with_lock
	e = unread;
	if
	:: e != NOTHING ->
		unread = NOTHING;
#ifndef NO_READER_REF
		event[e].refs++;
#endif
		known = e;
		known_ended = false;
		excused = false
	:: else
	fi;
	end_lock;
	if
	:: e != NOTHING ->
		/* Is it copied to user space? */
		if
		:: delivered = true
		:: delivered = false
		fi;
		with_lock
		use(e);
		if
		:: delivered ->
			event[e].told = true
		:: else ->
			known = NOTHING;
			known_ended = false;
			excused = false;
#ifndef NO_REQUEUE
			if
			:: event[e].verdict == PENDING -> unread = e
			:: else
			fi
#endif
		fi;
		end_lock;
#ifndef NO_READER_REF
		put(e)
#endif
	:: else
	fi;
	e = NOTHING
}

/* look_up(): the event of the cookie, under the lock */
inline look_up()
{
	e = (known_ended -> NOTHING : known);
	if
	:: e != NOTHING && event[e].leaver != NOBODY && died[event[e].leaver] ->
		retry_event(e);
		e = NOTHING
	:: else
	fi;
	holds(Answer, e != NOTHING || excused)
}

inline resolve_allow()
{
	lock(state_lock);
	with_lock
	look_up();
	end_lock;
	if
	:: e != NOTHING -> lift(e)
	:: e == NOTHING
	fi;
	unlock(state_lock)
}

inline resolve_deny()
{
	with_lock
	look_up();
	if
	:: e != NOTHING ->
		holds(Answer, event[e].told);
		if
		:: event[e].leaver != NOBODY -> owed[event[e].leaver] = true
		:: else
		fi;
		end_event(e, DENY)
#ifdef NO_NOTE
		;
		if
		:: event[e].leaver != NOBODY -> drop_leaver(e)
		:: else
		fi
#endif
	:: else
	fi;
	e = NOTHING;
	end_lock
}

inline close()
{
	lock(state_lock);
	wait_mode = false;
	with_lock
	open = false;
#ifndef NO_CLOSE_WAKE
	e = by_offset;
	if
	:: e != NOTHING -> retry_event(e)
	:: else
	fi;
#endif
#ifndef NO_CLOSE_LEAVERS
	find_leaver(0, e);
	if
	:: e != NOTHING -> drop_leaver(e)
	:: else
	fi;
#endif
	e = NOTHING;
	unread = NOTHING;
	owed[0] = false;
	owed[1] = false;
	end_lock;
	unlock(state_lock)
}

proctype handler()
{
	byte e = NOTHING;
	bool delivered;

	do
	:: known == NOTHING ->
		/* memfd_protect(PROT_READ) */
		atomic { !state_lock -> wait_mode = true }
	:: known == NOTHING ->
		/* He sleeps until there is an event. */
end_read:	unread != NOTHING;
		read_event();
		delivered = false
	:: known != NOTHING ->
		if
		:: resolve_allow()
		:: resolve_deny()
		fi;
		d_step { known = NOTHING; known_ended = false; excused = false }
	:: lock(state_lock);
		lift(e);
		unlock(state_lock);
		break
	:: close();
		break
	od
}

active proctype observer()
{
	timeout;
#ifndef NO_CLOSE_WAKE	/* which would be found so as well */
	holds(Freed, open || !(died[0] && died[1]) ||
		     (event[0].refs == 0 && event[1].refs == 0 && event[2].refs == 0))
#endif
}

init
{
	atomic {
		event[0].leaver = NOBODY;
		event[1].leaver = NOBODY;
		event[2].leaver = NOBODY;
		sleeps[0] = NOTHING;
		sleeps[1] = NOTHING;
		run writer(0);
		run writer(1);
		run handler()
	}
}
