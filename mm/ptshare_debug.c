// SPDX-License-Identifier: GPL-2.0-only
/*
 * Switches that break shared page tables on purpose, for their tests:
 *
 *   /sys/kernel/debug/ptshare/disable/RULE	1 switches a rule off
 *   /sys/kernel/debug/ptshare/delay_us/WINDOW	sleep so long there
 *   /sys/kernel/debug/ptshare/mmu_notifier	open: this process has an MMU
 *						notifier until the file is closed;
 *						read: how often it was told
 *						and asked; write: what it
 *						answers
 *
 * No locking: a switch is a word that takes effect when it is read next.
 */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kstrtox.h>
#include <linux/memfd_compat.h>
#include <linux/mmu_notifier.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "ptshare_debug.h"

bool ptshare_debug_off[PTSHARE_RULE_NR];
static u32 delay_us[PTSHARE_DELAY_NR];

static const char * const rule_names[PTSHARE_RULE_NR] = {
	[PTSHARE_RULE_FLUSH] = "flush",
	[PTSHARE_RULE_BATCH] = "batch",
	[PTSHARE_RULE_UNLINK_FLUSH] = "unlink_flush",
	[PTSHARE_RULE_UNLINK] = "unlink",
	[PTSHARE_RULE_CLASS] = "class",
	[PTSHARE_RULE_LOCK] = "lock",
	[PTSHARE_RULE_RETRACT] = "retract",
	[PTSHARE_RULE_COLLAPSE] = "collapse",
	[PTSHARE_RULE_NUMA] = "numa",
	[PTSHARE_RULE_SPLIT] = "split",
	[PTSHARE_RULE_MODIFY] = "modify",
	[PTSHARE_RULE_SOFT_DIRTY] = "soft_dirty",
	[PTSHARE_RULE_NOTIFIER] = "notifier",
	[PTSHARE_RULE_CHARGE] = "charge",
	[PTSHARE_RULE_RECENCY] = "recency",
	[PTSHARE_RULE_MAPCOUNT] = "mapcount",
	[PTSHARE_RULE_ASK] = "ask",
	[PTSHARE_RULE_OOM] = "oom",
	[PTSHARE_RULE_RELEASE] = "release",
	[PTSHARE_RULE_PRIVACY] = "privacy",
	[PTSHARE_RULE_GUARDS] = "guards",
	[PTSHARE_RULE_ALONE] = "alone",
	[PTSHARE_RULE_JOIN] = "join",
	[PTSHARE_RULE_PUSH_DOWN] = "push_down",
	[PTSHARE_RULE_GUP] = "gup",
	[PTSHARE_RULE_GUP_FAST] = "gup_fast",
	[PTSHARE_RULE_LINK] = "link",
	[PTSHARE_RULE_POSSIBLE] = "possible",
};

static const char * const delay_names[PTSHARE_DELAY_NR] = {
	[PTSHARE_DELAY_ASK] = "ask",
	[PTSHARE_DELAY_LINK] = "link",
	[PTSHARE_DELAY_TEARDOWN] = "teardown",
	[PTSHARE_DELAY_SHARE] = "share",
};

/**
 * ptshare_debug_sleep() - make a race window wider
 * @where: Which one.
 *
 * Context: May sleep.
 */
void ptshare_debug_sleep(enum ptshare_debug_delay where)
{
	u32 us = READ_ONCE(delay_us[where]);

	if (us)
		fsleep(us);
}

/**
 * struct ptshare_notifier - an MMU notifier that counts
 * @mn: The notifier.
 * @invalidations: How often it was told of a change.
 * @looks: How often it was asked whether something was used.
 * @young: What it says.
 *
 * The file has the two numbers in one line. What is written to it is @young: 0 or 1.
 */
struct ptshare_notifier {
	struct mmu_notifier mn;
	atomic_long_t invalidations;
	atomic_long_t looks;
	bool young;
};

static int notifier_start(struct mmu_notifier *mn,
			  const struct mmu_notifier_range *range)
{
	atomic_long_inc(&container_of(mn, struct ptshare_notifier,
				      mn)->invalidations);
	return 0;
}

static memfd_young_t notifier_young(struct mmu_notifier *mn)
{
	struct ptshare_notifier *pn = container_of(mn, struct ptshare_notifier, mn);

	atomic_long_inc(&pn->looks);
	return READ_ONCE(pn->young);
}

static memfd_young_t notifier_clear_young(struct mmu_notifier *mn,
					  struct mm_struct *mm,
					  unsigned long start, unsigned long end)
{
	return notifier_young(mn);
}

static memfd_young_t notifier_test_young(struct mmu_notifier *mn,
					 struct mm_struct *mm, unsigned long addr)
{
	return notifier_young(mn);
}

static const struct mmu_notifier_ops notifier_ops = {
	.invalidate_range_start = notifier_start,
	.clear_flush_young = notifier_clear_young,
	.clear_young = notifier_clear_young,
	.test_young = notifier_test_young,
};

static int notifier_open(struct inode *inode, struct file *file)
{
	struct ptshare_notifier *pn = kzalloc(sizeof(*pn), GFP_KERNEL);
	int err;

	if (!pn)
		return -ENOMEM;
	pn->mn.ops = &notifier_ops;
	err = mmu_notifier_register(&pn->mn, current->mm);
	if (err) {
		kfree(pn);
		return err;
	}
	file->private_data = pn;
	return nonseekable_open(inode, file);
}

static ssize_t notifier_read(struct file *file, char __user *buf, size_t size,
			     loff_t *pos)
{
	struct ptshare_notifier *pn = file->private_data;
	char line[48];
	int len = scnprintf(line, sizeof(line), "%ld %ld\n",
			    atomic_long_read(&pn->invalidations),
			    atomic_long_read(&pn->looks));

	if (size < len)
		return -EINVAL;
	return copy_to_user(buf, line, len) ? -EFAULT : len;
}

static ssize_t notifier_write(struct file *file, const char __user *buf,
			      size_t size, loff_t *pos)
{
	struct ptshare_notifier *pn = file->private_data;
	bool young;
	int err = kstrtobool_from_user(buf, size, &young);

	if (err)
		return err;
	WRITE_ONCE(pn->young, young);
	return size;
}

static int notifier_release(struct inode *inode, struct file *file)
{
	struct ptshare_notifier *pn = file->private_data;

	mmu_notifier_unregister(&pn->mn, pn->mn.mm);
	kfree(pn);
	return 0;
}

static const struct file_operations notifier_fops = {
	.open = notifier_open,
	.read = notifier_read,
	.write = notifier_write,
	.release = notifier_release,
};

static int __init ptshare_debug_init(void)
{
	struct dentry *top = debugfs_create_dir("ptshare", NULL);
	struct dentry *dir = debugfs_create_dir("disable", top);
	unsigned int i;

	for (i = 0; i < PTSHARE_RULE_NR; i++)
		debugfs_create_bool(rule_names[i], 0644, dir,
				    &ptshare_debug_off[i]);
	dir = debugfs_create_dir("delay_us", top);
	for (i = 0; i < PTSHARE_DELAY_NR; i++)
		debugfs_create_u32(delay_names[i], 0644, dir, &delay_us[i]);
	debugfs_create_file_unsafe("mmu_notifier", 0600, top, NULL,
				   &notifier_fops);
	return 0;
}
late_initcall(ptshare_debug_init);
