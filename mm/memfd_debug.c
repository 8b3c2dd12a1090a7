// SPDX-License-Identifier: GPL-2.0-only
/*
 * Switches that break memfd_protect() on purpose, for its tests:
 *
 *   /sys/kernel/debug/memfd_protect/disable/HOOK	1 switches a hook off
 *   /sys/kernel/debug/memfd_protect/delay_us/WINDOW	sleep so long there
 *
 * No locking: a switch is a word that takes effect when it is read next.
 */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/init.h>

#include "memfd_debug.h"

bool memfd_debug_off[MEMFD_HOOK_NR];
static u32 delay_us[MEMFD_DELAY_NR];

static const char * const hook_names[MEMFD_HOOK_NR] = {
	[MEMFD_HOOK_SET_PTES] = "set_ptes",
	[MEMFD_HOOK_WP_RECHECK] = "wp_recheck",
	[MEMFD_HOOK_PTE] = "pte",
	[MEMFD_HOOK_PMD] = "pmd",
	[MEMFD_HOOK_END] = "end",
	[MEMFD_HOOK_HUGE] = "huge",
	[MEMFD_HOOK_SPLIT] = "split",
	[MEMFD_HOOK_TOLD] = "told",
	[MEMFD_HOOK_ZAP] = "zap",
	[MEMFD_HOOK_FORK] = "fork",
	[MEMFD_HOOK_FLUSH] = "flush",
	[MEMFD_HOOK_NESTED_FLUSH] = "nested_flush",
	[MEMFD_HOOK_BATCHED_FLUSH] = "batched_flush",
	[MEMFD_HOOK_PINS] = "pins",
	[MEMFD_HOOK_MARK] = "mark",
	[MEMFD_HOOK_BLOCKS] = "blocks",
	[MEMFD_HOOK_FLIGHT] = "flight",
	[MEMFD_HOOK_WRITE] = "write",
	[MEMFD_HOOK_PUNCH] = "punch",
	[MEMFD_HOOK_TRUNCATE] = "truncate",
	[MEMFD_HOOK_GROW] = "grow",
	[MEMFD_HOOK_SPLICE] = "splice",
	[MEMFD_HOOK_SPLICE_LOCK] = "splice_lock",
	[MEMFD_HOOK_SEAL] = "seal",
	[MEMFD_HOOK_USERFAULT] = "userfault",
	[MEMFD_HOOK_FILL] = "fill",
	[MEMFD_HOOK_REMOTE] = "remote",
	[MEMFD_HOOK_PIN_FOLIOS] = "pin_folios",
	[MEMFD_HOOK_GOT_PAGES] = "got_pages",
	[MEMFD_HOOK_FUTEX] = "futex",
	[MEMFD_HOOK_ASYNC_PF] = "async_pf",
	[MEMFD_HOOK_AT_ONCE] = "at_once",
};

static const char * const delay_names[MEMFD_DELAY_NR] = {
	[MEMFD_DELAY_FAULT] = "fault",
	[MEMFD_DELAY_PINS] = "pins",
	[MEMFD_DELAY_FLIGHT] = "flight",
	[MEMFD_DELAY_REMOTE] = "remote",
	[MEMFD_DELAY_ENQUEUE] = "enqueue",
	[MEMFD_DELAY_SPLIT] = "split",
	[MEMFD_DELAY_WALK] = "walk",
};

/**
 * memfd_debug_sleep() - make a race window wider
 * @where: Which one.
 *
 * Context: May sleep.
 */
void memfd_debug_sleep(enum memfd_debug_delay where)
{
	u32 us = READ_ONCE(delay_us[where]);

	if (us)
		fsleep(us);
}

static int __init memfd_debug_init(void)
{
	struct dentry *top = debugfs_create_dir("memfd_protect", NULL);
	struct dentry *dir = debugfs_create_dir("disable", top);
	unsigned int i;

	for (i = 0; i < MEMFD_HOOK_NR; i++)
		debugfs_create_bool(hook_names[i], 0644, dir,
				    &memfd_debug_off[i]);
	dir = debugfs_create_dir("delay_us", top);
	for (i = 0; i < MEMFD_DELAY_NR; i++)
		debugfs_create_u32(delay_names[i], 0644, dir, &delay_us[i]);
	return 0;
}
late_initcall(memfd_debug_init);
