/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pins for writing against looks for them: mm/memfd_pin.c, mm/memfd_blocks.c.
 *
 * One folio, one block.  Processes stand for
 *
 *   pinner	GUP-fast: a look at the page-table entry, try_grab_folio_fast() with
 *		mark_pinned() and memfd_blocks_note(), a second look at the entry; then
 *		DMA, until it unpins
 *   protect	memfd_protect(): its walk, and memfd_pin_settle(); if there are pins, or
 *		when protection is lifted, a fault makes the entry writable again
 *   scan	memfd_protect_scan(): its walk, and keep_all_pinned(), with a fault behind it
 *
 * Both of the latter look by find_pin(): folio_is_held(), find_late().
 *
 * Properties:
 *
 *   P		a pin that is there when inode_lock() is taken is found (Invariants P, N)
 *   DMA	from when memfd_protect() has returned until protection is lifted nobody
 *		has a pin for writing
 *
 * Left out: memfd_protect.pinned, which stands for bits that there are no words for
 * (the bit of the model is either); looks without inode_lock(), which change nothing;
 * GUP under the page table lock, which orders it behind the walk or before; references
 * (got_pages), which are looked for in the same way.
 *
 * Variants:
 *   NO_INODE_LOCK	P	who takes marks away is alone
 *   NO_LOOK_UNMARKED	P	pins are looked at once more when the mark is taken away
 *   NO_BARRIER_UNMARK	P	after a full barrier
 *   NO_LOOK_CLEARED	P	and when the bit is cleared
 *   NO_BARRIER_CLEAR	P	after a full barrier
 *   NO_BARRIER_PIN	P	the pin is there before the mark is looked at
 *   NO_BARRIER_MARK	P	the mark before the bit
 *   NO_BARRIER_BIT	P	both before the entry is looked at again
 *   NO_SECOND_LOOK	DMA	which it is
 *   NO_BARRIER_LOOK	DMA	entries are changed before bits and marks are read
 */

#define PINNERS		2
#define PROCESSORS	4
#define BUFFERED	3
#define WORDS		5
#include "sync.pmh"

/* Words of memory: the pins of either, the entry, the mark, the bit */
#define PIN(i)		(i)
#define WRITABLE	2
#define MARK		3
#define BIT		4

/* Whose buffer, beside the pinners' */
#define PROTECTOR	2
#define SCANNER		3

bool inode_lock, pages_lock;	/* i_pages */
bool has_pin[PINNERS];		/* whose DMA may write */
bool promised;			/* memfd_protect() has returned 0 */
bool P = true, DMA = true;

#define pinned()	(load(PIN(0)) || load(PIN(1)))
#define anybody()	(has_pin[0] || has_pin[1])

proctype pinner(byte i)
{
end:
	do
	:: load(WRITABLE) ->
		store(i, PIN(i), true);
#ifndef NO_BARRIER_PIN
		smp_mb(i);
#endif
		if
		:: !load(MARK) -> store(i, MARK, true)
		:: else
		fi;
#ifndef NO_BARRIER_MARK
		smp_mb(i);
#endif
		if
		:: !load(BIT) -> store(i, BIT, true)
		:: else
		fi;
#ifndef NO_BARRIER_BIT
		smp_mb(i);
#endif
		if
#ifdef NO_SECOND_LOOK
		:: true ->
#else
		:: load(WRITABLE) ->
#endif
			has_pin[i] = true;
			holds(DMA, !promised);
			has_pin[i] = false
		:: else
		fi;
		store(i, PIN(i), false);
		smp_mb(i)
	od
}

inline folio_is_held(me)
{
	if
	:: load(MARK) ->
		lock(pages_lock);
		if
		:: load(MARK) && pinned() ->
			held = true
		:: load(MARK) && !pinned() ->
			store(me, MARK, false);
#ifndef NO_BARRIER_UNMARK
			smp_mb(me);
#endif
#ifndef NO_LOOK_UNMARKED
			if
			:: pinned() ->
				held = true;
				store(me, MARK, true)
			:: else
			fi;
#endif
			smp_mb(me)	/* before the lock is seen to be free */
		:: else
		fi;
		unlock(pages_lock)
	:: else
	fi
}

inline find_late(me)
{
	store(me, BIT, false);
#ifndef NO_BARRIER_CLEAR
	smp_mb(me);
#endif
#ifndef NO_LOOK_CLEARED
	if
	:: load(MARK) && pinned() ->
		held = true;
		store(me, BIT, true)
	:: else
	fi;
#endif
	smp_mb(me)
}

/* Says in held whether there are pins. */
inline find_pin(me)
{
	held = false;
	if
	:: load(BIT) ->
		folio_is_held(me);
		if
		:: !held -> find_late(me)
		:: else
		fi
	:: else
	fi
}

/* The walk, and what follows it */
inline look(me)
{
	lock(inode_lock);
	/* Those that are there now: some of them may go. */
	before[0] = has_pin[0];
	before[1] = has_pin[1];
	store(me, WRITABLE, false);
#ifndef NO_BARRIER_LOOK
	smp_mb(me);
#endif
	find_pin(me);
	smp_mb(me);
	holds(P, held || !((before[0] && has_pin[0]) || (before[1] && has_pin[1])));
	before[0] = false;
	before[1] = false
}

inline looked(me)
{
	store(me, WRITABLE, true);
	smp_mb(me);
	held = false;
	unlock(inode_lock)
}

proctype protect()
{
	bool held, before[PINNERS];

end:
	do
	:: look(PROTECTOR);
		if
		:: !held ->
			promised = true;
			holds(DMA, !anybody());
			promised = false
		:: else
		fi;
		looked(PROTECTOR)
	od
}

proctype scan()
{
	bool held, before[PINNERS];

end:
	do
	::
#ifdef NO_INODE_LOCK
		find_pin(SCANNER);
		held = false
#else
		look(SCANNER);
		looked(SCANNER)
#endif
	od
}

init
{
	atomic {
		memory[WRITABLE] = true;
		run pinner(0);
		run pinner(1);
		run protect();
		run scan()
	}
}
