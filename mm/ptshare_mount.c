// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shared page tables for programs that do not ask for them.
 *
 * Files share if their tmpfs is mounted with ptshare=always when they are made. The
 * kernel has a mount of its own for files that no path leads to: SysV shared memory,
 * shared anonymous memory, memfds. /sys/kernel/mm/ptshare/shmem_enabled is the same for
 * that one. Drivers have files there as well. These never share: drivers map them in
 * ways of their own, with other bits of protection, or by other operations.
 */

#include <linux/fs_parser.h>
#include <linux/kobject.h>
#include <linux/memfd.h>
#include <linux/mount.h>
#include <linux/ptshare.h>
#include <linux/shmem_fs.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <asm/cpufeature.h>

#include "ptshare.h"
#include "ptshare_debug.h"

const struct constant_table ptshare_param_enums[] = {
	{ "never",	PTSHARE_MOUNT_NEVER },
	{ "always",	PTSHARE_MOUNT_ALWAYS },
	{ }
};

/**
 * ptshare_possible() - whether page tables can be shared on this machine
 *
 * Xen PV has its own idea of who uses a page table.
 *
 * Return: True if so.
 */
bool ptshare_possible(void)
{
	return !cpu_feature_enabled(X86_FEATURE_XENPV) && ptshare_rule(POSSIBLE);
}

/**
 * ptshare_param_valid() - whether a tmpfs can be mounted with an option
 * @value: PTSHARE_MOUNT_*.
 *
 * Context: May sleep. No locks.
 * Return: True if so.
 */
bool ptshare_param_valid(unsigned int value)
{
	if (value != PTSHARE_MOUNT_ALWAYS)
		return true;
	if (!ptshare_possible())
		return false;
	ptshare_enable();
	return true;
}

/**
 * ptshare_show_mount() - the option in /proc/mounts
 * @m: Where to write.
 * @value: PTSHARE_MOUNT_*. Only what somebody has asked for is shown.
 */
void ptshare_show_mount(struct seq_file *m, unsigned int value)
{
	if (value != PTSHARE_MOUNT_UNSET)
		seq_printf(m, ",ptshare=%s",
			   value == PTSHARE_MOUNT_ALWAYS ? "always" : "never");
}

static bool mount_shares(const struct super_block *sb)
{
	const struct shmem_sb_info *sbinfo = sb->s_fs_info;

	return READ_ONCE(sbinfo->ptshare) == PTSHARE_MOUNT_ALWAYS;
}

/* Whether files on the kernel's own mount share that are made now. */
static bool kernel_shares(void)
{
	struct vfsmount *mnt = ptshare_kernel_mount();

	return !IS_ERR(mnt) && mount_shares(mnt->mnt_sb);
}

/**
 * ptshare_wanted() - whether processes that map a file share its page tables
 * @file: Any file, or NULL for shared memory that is about to be made.
 *
 * Return: True if so.
 */
bool ptshare_wanted(const struct file *file)
{
	struct inode *inode;

	if (!file)
		return kernel_shares();
	inode = file_inode(file);
	return shmem_mapping(&inode->i_data) &&
	       READ_ONCE(SHMEM_I(inode)->ptshare);
}

void __ptshare_new_file(struct inode *inode)
{
	struct vfsmount *mnt = ptshare_kernel_mount();

	if (mount_shares(inode->i_sb) &&
	    (IS_ERR(mnt) || inode->i_sb != mnt->mnt_sb))
		ptshare_share_file(inode);
}

void __ptshare_new_kernel_file(struct inode *inode)
{
	if (IS_PRIVATE(inode) && mount_shares(inode->i_sb))
		ptshare_share_file(inode);
}

/**
 * ptshare_new_memfd() - a memfd has been made
 * @file: It, of which nobody knows yet.
 * @flags: Those of memfd_create().
 *
 * It shares page tables if somebody asks for that, or if the kernel's mount says so.
 *
 * Context: May sleep.
 */
void ptshare_new_memfd(struct file *file, unsigned int flags)
{
	if (flags & MFD_SHARE_PGTABLES)
		ptshare_enable();
	else if ((flags & MFD_HUGETLB) || !kernel_shares())
		return;
	ptshare_share_file(file_inode(file));
}

#ifdef CONFIG_SYSFS
static ssize_t kernel_mount_show(struct kobject *kobj,
				 struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", kernel_shares() ?
			  "[always] never" : "always [never]");
}

static ssize_t kernel_mount_store(struct kobject *kobj,
				  struct kobj_attribute *attr, const char *buf,
				  size_t count)
{
	struct vfsmount *mnt = ptshare_kernel_mount();
	struct shmem_sb_info *sbinfo;
	unsigned int value;

	if (sysfs_streq(buf, "always"))
		value = PTSHARE_MOUNT_ALWAYS;
	else if (sysfs_streq(buf, "never"))
		value = PTSHARE_MOUNT_NEVER;
	else
		return -EINVAL;
	if (IS_ERR(mnt) || !ptshare_param_valid(value))
		return -EINVAL;
	sbinfo = mnt->mnt_sb->s_fs_info;
	WRITE_ONCE(sbinfo->ptshare, value);
	return count;
}

static struct kobj_attribute kernel_mount_attr =
	__ATTR(shmem_enabled, 0644, kernel_mount_show, kernel_mount_store);

static struct attribute *ptshare_attrs[] = {
	&kernel_mount_attr.attr,
	NULL,
};

static const struct attribute_group ptshare_group = {
	.name = "ptshare",
	.attrs = ptshare_attrs,
};

static int __init ptshare_mount_init(void)
{
	return sysfs_create_group(mm_kobj, &ptshare_group);
}
subsys_initcall(ptshare_mount_init);
#endif
