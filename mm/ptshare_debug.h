/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Switches that break shared page tables on purpose, for their tests.
 *
 * Each safety rule can be switched off, and each window that it closes can be
 * made wider, through /sys/kernel/debug/ptshare/. A test that passes with its
 * rule switched off is no test. Without CONFIG_PTSHARE_DEBUG all of it compiles
 * to nothing.
 */
#ifndef _MM_PTSHARE_DEBUG_H
#define _MM_PTSHARE_DEBUG_H

#include <linux/types.h>

/**
 * enum ptshare_debug_rule - what can be switched off
 * @PTSHARE_RULE_FLUSH: Who changes shared entries flushes all that link to them.
 * @PTSHARE_RULE_BATCH: ... also if it collects flushes for later.
 * @PTSHARE_RULE_UNLINK_FLUSH: Who unlinks flushes.
 * @PTSHARE_RULE_UNLINK: Tables are freed only when no mapping is left.
 * @PTSHARE_RULE_CLASS: Read-only mappings link to read-only tables.
 * @PTSHARE_RULE_LOCK: Mappings in locked memory link to tables of their own.
 * @PTSHARE_RULE_RETRACT: khugepaged leaves the file's tables alone.
 * @PTSHARE_RULE_COLLAPSE: khugepaged leaves linked tables alone.
 * @PTSHARE_RULE_NUMA: NUMA balancing leaves linked tables alone.
 * @PTSHARE_RULE_SPLIT: Splits off a table's boundary end sharing.
 * @PTSHARE_RULE_MODIFY: Flags that a shared table cannot express end sharing.
 * @PTSHARE_RULE_SOFT_DIRTY: Soft-dirty tracking ends sharing.
 * @PTSHARE_RULE_NOTIFIER: MMU notifiers of guests are told.
 * @PTSHARE_RULE_CHARGE: Pages are charged to who faults them in.
 * @PTSHARE_RULE_RECENCY: Reclaim of any cgroup looks at the accessed bits.
 * @PTSHARE_RULE_MAPCOUNT: Pages count as shared if their table is.
 * @PTSHARE_RULE_ASK: Write faults ask memfd_protect() in their own name.
 * @PTSHARE_RULE_OOM: What is mapped through links counts for the OOM killer.
 * @PTSHARE_RULE_RELEASE: Who leaves last frees tables, and nobody else.
 * @PTSHARE_RULE_PRIVACY: Nobody learns from shared entries what others do.
 * @PTSHARE_RULE_GUARDS: Who gets guard regions while it begins to share does not.
 * @PTSHARE_RULE_ALONE: Only tables without links of PMD entries are protected as a whole.
 * @PTSHARE_RULE_JOIN: Who links by a PMD entry pushes that down before.
 * @PTSHARE_RULE_PUSH_DOWN: ... to all entries of protected pages.
 * @PTSHARE_RULE_GUP: GUP looks whether a table is protected as a whole.
 * @PTSHARE_RULE_GUP_FAST: ... without locks as well.
 * @PTSHARE_RULE_LINK: ... and so do faults that need no more than a link.
 * @PTSHARE_RULE_POSSIBLE: Nothing of this machine stands in the way.
 * @PTSHARE_RULE_NR: Their number.
 */
enum ptshare_debug_rule {
	PTSHARE_RULE_FLUSH,
	PTSHARE_RULE_BATCH,
	PTSHARE_RULE_UNLINK_FLUSH,
	PTSHARE_RULE_UNLINK,
	PTSHARE_RULE_CLASS,
	PTSHARE_RULE_LOCK,
	PTSHARE_RULE_RETRACT,
	PTSHARE_RULE_COLLAPSE,
	PTSHARE_RULE_NUMA,
	PTSHARE_RULE_SPLIT,
	PTSHARE_RULE_MODIFY,
	PTSHARE_RULE_SOFT_DIRTY,
	PTSHARE_RULE_NOTIFIER,
	PTSHARE_RULE_CHARGE,
	PTSHARE_RULE_RECENCY,
	PTSHARE_RULE_MAPCOUNT,
	PTSHARE_RULE_ASK,
	PTSHARE_RULE_OOM,
	PTSHARE_RULE_RELEASE,
	PTSHARE_RULE_PRIVACY,
	PTSHARE_RULE_GUARDS,
	PTSHARE_RULE_ALONE,
	PTSHARE_RULE_JOIN,
	PTSHARE_RULE_PUSH_DOWN,
	PTSHARE_RULE_GUP,
	PTSHARE_RULE_GUP_FAST,
	PTSHARE_RULE_LINK,
	PTSHARE_RULE_POSSIBLE,
	PTSHARE_RULE_NR,
};

/**
 * enum ptshare_debug_delay - windows that can be made wider
 * @PTSHARE_DELAY_ASK: Between a fault's question to memfd_protect() and its page.
 * @PTSHARE_DELAY_LINK: Between a fault's page and its link.
 * @PTSHARE_DELAY_TEARDOWN: Before the tables of a file are freed.
 * @PTSHARE_DELAY_SHARE: Between a look at a VMA's flags and its lock.
 * @PTSHARE_DELAY_NR: Their number.
 */
enum ptshare_debug_delay {
	PTSHARE_DELAY_ASK,
	PTSHARE_DELAY_LINK,
	PTSHARE_DELAY_TEARDOWN,
	PTSHARE_DELAY_SHARE,
	PTSHARE_DELAY_NR,
};

#ifdef CONFIG_PTSHARE_DEBUG
extern bool ptshare_debug_off[PTSHARE_RULE_NR];
void ptshare_debug_sleep(enum ptshare_debug_delay where);
#define ptshare_rule(name)	likely(!READ_ONCE(ptshare_debug_off[PTSHARE_RULE_##name]))
#define ptshare_delay(name)	ptshare_debug_sleep(PTSHARE_DELAY_##name)
#else
#define ptshare_rule(name)	((void)PTSHARE_RULE_##name, true)
#define ptshare_delay(name)	((void)PTSHARE_DELAY_##name)
#endif

#endif /* _MM_PTSHARE_DEBUG_H */
