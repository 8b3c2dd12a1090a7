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
 * enum memfd_debug_hook - what can be switched off, see mm/memfd_debug.c
 */
enum memfd_debug_hook {
	MEMFD_HOOK_SET_PTES,
	MEMFD_HOOK_WP_RECHECK,
	MEMFD_HOOK_PTE,
	MEMFD_HOOK_PMD,
	MEMFD_HOOK_FLUSH,
	MEMFD_HOOK_NESTED_FLUSH,
	MEMFD_HOOK_BATCHED_FLUSH,
	MEMFD_HOOK_PINS,
	MEMFD_HOOK_FLIGHT,
	MEMFD_HOOK_WRITE,
	MEMFD_HOOK_PUNCH,
	MEMFD_HOOK_TRUNCATE,
	MEMFD_HOOK_SPLICE,
	MEMFD_HOOK_REMOTE,
	MEMFD_HOOK_PIN_FOLIOS,
	MEMFD_HOOK_GET_PAGES,
	MEMFD_HOOK_NR,
};

/**
 * enum memfd_debug_delay - windows that can be made wider
 * @MEMFD_DELAY_FAULT: Between a fault's question and its page table lock.
 * @MEMFD_DELAY_FLIGHT: memfd_protect() between its walk and its decision.
 * @MEMFD_DELAY_REMOTE: Between a remote access's page and its copy.
 * @MEMFD_DELAY_ENQUEUE: Between a writer's question and its event.
 */
enum memfd_debug_delay {
	MEMFD_DELAY_FAULT,
	MEMFD_DELAY_FLIGHT,
	MEMFD_DELAY_REMOTE,
	MEMFD_DELAY_ENQUEUE,
	MEMFD_DELAY_NR,
};

#ifdef CONFIG_MEMFD_PROTECT_DEBUG
extern bool memfd_debug_off[MEMFD_HOOK_NR];
void memfd_debug_sleep(enum memfd_debug_delay where);
#define memfd_hook(name)	likely(!READ_ONCE(memfd_debug_off[MEMFD_HOOK_##name]))
#define memfd_delay(name)	memfd_debug_sleep(MEMFD_DELAY_##name)
#else
#define memfd_hook(name)	true
#define memfd_delay(name)	do { } while (0)
#endif

#endif /* _MM_MEMFD_DEBUG_H */
