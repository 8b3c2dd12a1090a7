/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A flush of a guest, against a processor that begins to run it: mm/ptshare_tlb.c.
 *
 * One address space, one processor, which keeps TLB entries of it while it runs others
 * (PCID).  Processes stand for
 *
 *   flush	who changed an entry: add_mm(), arch_tlbbatch_flush()
 *   cpu	switch_mm_irqs_off() to the address space and away from it, user mode,
 *		and the interrupt of a flush
 *
 * Property:
 *
 *   T		when the flush is over the processor has no entry that is older
 *
 * Left out: the range, which only says how much is flushed; lazy TLB mode, which reads the
 * generation as well before it goes back to user mode.
 *
 * Variants:
 *   NO_GENERATION_FIRST	T	the generation is raised before CPUs are looked at
 *   NO_BARRIER_FLUSH	T	with a full barrier in between
 *   NO_CPU_FIRST	T	the CPU is seen to run it before it reads the generation
 *   NO_BARRIER_SWITCH	T	with a full barrier in between
 *   NO_GENERATION_ALWAYS	T	the generation is raised even if no CPU runs it
 */

#define PROCESSORS	2
#define BUFFERED	2
#define WORDS		2
#include "../memfd_protect/sync.pmh"

/* Words of memory: mm->context.tlb_gen, here one bit; mm_cpumask() */
#define GENERATION	0
#define RUNS		1

/* Whose buffer */
#define FLUSHER		0
#define CPU		1

bool changed;			/* the entry that is looked at has been changed */
bool stale;			/* the TLB has it as it was */
bool seen;			/* the generation up to which the TLB is flushed */
bool interrupt;
bool over;			/* the flush has returned */
bool T = true;

inline raise()
{
	store(FLUSHER, GENERATION, true)
}

active proctype flush()
{
	bool runs;

	changed = true;
#ifdef NO_GENERATION_FIRST
	runs = load(RUNS);
	raise();
#else
#ifdef NO_GENERATION_ALWAYS
	runs = load(RUNS);
	if
	:: runs -> raise()
	:: else
	fi;
#else
	raise();
#endif
#ifndef NO_BARRIER_FLUSH
	smp_mb(FLUSHER);
#endif
	runs = load(RUNS);
#endif
	if
	:: runs ->
		interrupt = true;
		!interrupt
	:: else
	fi;
	smp_mb(FLUSHER);
	over = true
}

inline flush_if_older()
{
	atomic {
		if
		:: generation != seen -> stale = false; seen = generation
		:: else
		fi
	}
}

active proctype cpu()
{
	bool generation;

end:
	do
	:: /* switch_mm_irqs_off(), with interrupts off */
#ifdef NO_CPU_FIRST
		generation = load(GENERATION);
		store(CPU, RUNS, true);
#else
		store(CPU, RUNS, true);
#ifndef NO_BARRIER_SWITCH
		smp_mb(CPU);
#endif
		generation = load(GENERATION);
#endif
		flush_if_older();
		/* User mode */
		do
		:: atomic { !changed -> stale = true }
		:: atomic { stale -> holds(T, !over) }
		:: interrupt ->
			generation = load(GENERATION);
			flush_if_older();
			interrupt = false
		:: break
		od;
		/* Away: an interrupt that is on its way finds nothing to do. */
		store(CPU, RUNS, false);
		smp_mb(CPU);
end_away:
		do
		:: interrupt -> interrupt = false
		:: break
		od
	od
}
