/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Switches that break memfd_protect() on purpose, for its tests.
 *
 * Each safety hook can be switched off, and each window that it closes can be
 * made wider, through /sys/kernel/debug/memfd_protect/. A test that passes with
 * its hook switched off is no test. Without CONFIG_MEMFD_PROTECT_DEBUG all of
 * it compiles to nothing.
 */
#ifndef _MM_MEMFD_DEBUG_H
#define _MM_MEMFD_DEBUG_H

#include <linux/types.h>

/**
 * enum memfd_debug_hook - what can be switched off
 * @MEMFD_HOOK_SET_PTES: Page faults map protected pages read-only.
 * @MEMFD_HOOK_WP_RECHECK: A write fault asks again under the page table lock.
 * @MEMFD_HOOK_PTE: mprotect(), migration, NUMA hinting leave them read-only.
 * @MEMFD_HOOK_PMD: No huge entry comes to where something is protected.
 * @MEMFD_HOOK_END: ... or to where the file ends, nor small ones behind that.
 * @MEMFD_HOOK_HUGE: The walk does away with those that are there.
 * @MEMFD_HOOK_SPLIT: ... and what they map stays mapped.
 * @MEMFD_HOOK_TOLD: ... after secondary MMUs have been told of all of it.
 * @MEMFD_HOOK_ZAP: munmap() flushes huge entries under their lock.
 * @MEMFD_HOOK_FORK: fork() copies entries one by one.
 * @MEMFD_HOOK_FLUSH: The walk flushes TLBs.
 * @MEMFD_HOOK_NESTED_FLUSH: ... and for others that have not flushed yet.
 * @MEMFD_HOOK_BATCHED_FLUSH: ... and for reclaim that has not.
 * @MEMFD_HOOK_PINS: Pages that are pinned for writing are waited for.
 * @MEMFD_HOOK_MARK: ... and GUP marks them.
 * @MEMFD_HOOK_BLOCKS: ... and the 2 MiB that they are in.
 * @MEMFD_HOOK_FLIGHT: Faults wait for the outcome of memfd_protect().
 * @MEMFD_HOOK_WRITE: write() and its kin ask.
 * @MEMFD_HOOK_PUNCH: Hole punching asks.
 * @MEMFD_HOOK_TRUNCATE: Truncation asks.
 * @MEMFD_HOOK_GROW: What was behind the end is cleared when a file grows.
 * @MEMFD_HOOK_SPLICE: splice() and its kin ask for the whole range first.
 * @MEMFD_HOOK_SPLICE_LOCK: splice() does not wait with the pipe locked.
 * @MEMFD_HOOK_SEAL: Who is not the handler cannot protect a sealed file.
 * @MEMFD_HOOK_USERFAULT: userfaultfd does not fill pages.
 * @MEMFD_HOOK_FILL: ... where it is registered for WP_ASYNC.
 * @MEMFD_HOOK_REMOTE: A remote access pins the page that it writes.
 * @MEMFD_HOOK_PIN_FOLIOS: memfd_pin_folios() asks.
 * @MEMFD_HOOK_GOT_PAGES: References for writing are waited for.
 * @MEMFD_HOOK_FUTEX: Futex operations may wait.
 * @MEMFD_HOOK_ASYNC_PF: KVM does not let a kernel thread fault them in.
 * @MEMFD_HOOK_AT_ONCE: A fault logs with the page table locked, if it can.
 * @MEMFD_HOOK_NR: Their number.
 */
enum memfd_debug_hook {
	MEMFD_HOOK_SET_PTES,
	MEMFD_HOOK_WP_RECHECK,
	MEMFD_HOOK_PTE,
	MEMFD_HOOK_PMD,
	MEMFD_HOOK_END,
	MEMFD_HOOK_HUGE,
	MEMFD_HOOK_SPLIT,
	MEMFD_HOOK_TOLD,
	MEMFD_HOOK_ZAP,
	MEMFD_HOOK_FORK,
	MEMFD_HOOK_FLUSH,
	MEMFD_HOOK_NESTED_FLUSH,
	MEMFD_HOOK_BATCHED_FLUSH,
	MEMFD_HOOK_PINS,
	MEMFD_HOOK_MARK,
	MEMFD_HOOK_BLOCKS,
	MEMFD_HOOK_FLIGHT,
	MEMFD_HOOK_WRITE,
	MEMFD_HOOK_PUNCH,
	MEMFD_HOOK_TRUNCATE,
	MEMFD_HOOK_GROW,
	MEMFD_HOOK_SPLICE,
	MEMFD_HOOK_SPLICE_LOCK,
	MEMFD_HOOK_SEAL,
	MEMFD_HOOK_USERFAULT,
	MEMFD_HOOK_FILL,
	MEMFD_HOOK_REMOTE,
	MEMFD_HOOK_PIN_FOLIOS,
	MEMFD_HOOK_GOT_PAGES,
	MEMFD_HOOK_FUTEX,
	MEMFD_HOOK_ASYNC_PF,
	MEMFD_HOOK_AT_ONCE,
	MEMFD_HOOK_NR,
};

/**
 * enum memfd_debug_delay - windows that can be made wider
 * @MEMFD_DELAY_FAULT: Between a fault's question and its page table lock.
 * @MEMFD_DELAY_PINS: memfd_protect() between its look for pins and its flight.
 * @MEMFD_DELAY_FLIGHT: memfd_protect() between its walk and its decision.
 * @MEMFD_DELAY_REMOTE: Between a remote access's page and its copy.
 * @MEMFD_DELAY_ENQUEUE: Between a writer's question and its event.
 * @MEMFD_DELAY_SPLIT: Between the beginning of the walk and that of a huge entry's end.
 * @MEMFD_DELAY_WALK: Between what a scan takes and its walk.
 * @MEMFD_DELAY_NR: Their number.
 */
enum memfd_debug_delay {
	MEMFD_DELAY_FAULT,
	MEMFD_DELAY_PINS,
	MEMFD_DELAY_FLIGHT,
	MEMFD_DELAY_REMOTE,
	MEMFD_DELAY_ENQUEUE,
	MEMFD_DELAY_SPLIT,
	MEMFD_DELAY_WALK,
	MEMFD_DELAY_NR,
};

#ifdef CONFIG_MEMFD_PROTECT_DEBUG
extern bool memfd_debug_off[MEMFD_HOOK_NR];
void memfd_debug_sleep(enum memfd_debug_delay where);
#define memfd_hook(name)	likely(!READ_ONCE(memfd_debug_off[MEMFD_HOOK_##name]))
#define memfd_delay(name)	memfd_debug_sleep(MEMFD_DELAY_##name)
#else
#define memfd_hook(name)	((void)MEMFD_HOOK_##name, true)
#define memfd_delay(name)	((void)MEMFD_DELAY_##name)
#endif

#endif /* _MM_MEMFD_DEBUG_H */
