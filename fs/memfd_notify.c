// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfd_notify(2): the event fd of a memfd.
 *
 * Whoever handles the protection of a memfd (see memfd_protect(2)) reads here who
 * wants to write where, answers, and scans the log of written ranges. The state
 * is not here: it belongs to the file, in mm/, and this is a view of it that may
 * be passed around and read by several threads. When the last reference goes,
 * all writers go on.
 *
 * Locking: none of its own. Every function that is called below takes what it
 * needs, and none is held while user memory is accessed: that may be a mapping of
 * the very memfd.
 */

#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/memfd_notify.h>
#include <linux/memfd_protect.h>
#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/ptshare.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/syscalls.h>
#include <linux/sysctl.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <uapi/linux/memfd_protect.h>

/* Ranges that a scan takes at a time: 16 KiB of them. */
#define SCAN_BATCH	1024
/* The first byte that no file can have. */
#define SCAN_END	BIT_ULL(63)

#define FEATURES	(MEMFD_FEATURE_WAIT | MEMFD_FEATURE_ASYNC | \
			 MEMFD_FEATURE_DENY | MEMFD_FEATURE_RESOLVE | \
			 MEMFD_FEATURE_SCAN | MEMFD_FEATURE_PROTECT | \
			 MEMFD_FEATURE_SEAL_PROTECT)

static int sysctl_unprivileged_memfd_notify;

/* What this kernel can do, on this machine. */
static u64 features(void)
{
	u64 bits = FEATURES;

	if (ptshare_flags_valid(MFD_SHARE_PGTABLES))
		bits |= MEMFD_FEATURE_SHARE_PGTABLES;
	return bits;
}

static __poll_t memfd_notify_poll(struct file *file, poll_table *wait)
{
	struct memfd_protect *mp = file->private_data;

	poll_wait(file, memfd_protect_readers(mp), wait);
	return memfd_protect_readable(mp) ? EPOLLIN | EPOLLRDNORM : 0;
}

/* Delivers one record: 1 if it did, 0 if there is none, or an error. */
static int read_one(struct memfd_protect *mp, struct iov_iter *to)
{
	struct memfd_pending *event;
	struct memfd_event record;
	bool delivered;

	event = memfd_protect_next_event(mp, &record);
	if (!event)
		return 0;
	delivered = copy_to_iter_full(&record, sizeof(record), to);
	memfd_protect_end_event(mp, event, delivered);
	return delivered ? 1 : -EFAULT;
}

static ssize_t memfd_notify_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *file = iocb->ki_filp;
	struct memfd_protect *mp = file->private_data;
	bool nonblock = (file->f_flags & O_NONBLOCK) ||
			(iocb->ki_flags & IOCB_NOWAIT);
	ssize_t done = 0;
	int ret;

	if (iov_iter_count(to) < sizeof(struct memfd_event))
		return -EINVAL;
	while (iov_iter_count(to) >= sizeof(struct memfd_event)) {
		ret = read_one(mp, to);
		if (ret > 0) {
			done += sizeof(struct memfd_event);
			continue;
		}
		if (done)
			break;
		if (ret < 0)
			return ret;
		if (nonblock)
			return -EAGAIN;
		ret = wait_event_interruptible(*memfd_protect_readers(mp),
					       memfd_protect_readable(mp));
		if (ret)
			return ret;
	}
	return done;
}

static int notify_resolve(struct memfd_protect *mp, void __user *argp)
{
	struct memfd_resolve resolve;

	if (copy_from_user(&resolve, argp, sizeof(resolve)))
		return -EFAULT;
	if (resolve.action > MEMFD_RESOLVE_DENY || resolve.reserved)
		return -EINVAL;
	return memfd_protect_resolve(mp, resolve.cookie,
				     resolve.action == MEMFD_RESOLVE_ALLOW);
}

static int notify_protect(struct memfd_protect *mp, void __user *argp)
{
	struct memfd_protect_range range;

	if (copy_from_user(&range, argp, sizeof(range)))
		return -EFAULT;
	return memfd_protect_by_handler(mp, &range);
}

static int check_scan(struct memfd_scan *scan)
{
	if (!scan->end)
		scan->end = SCAN_END;
	if (!PAGE_ALIGNED(scan->start) || !PAGE_ALIGNED(scan->end) ||
	    scan->start > scan->end || scan->end > SCAN_END)
		return -EINVAL;
	if (scan->flags & ~(u64)MEMFD_SCAN_REPROTECT)
		return -EINVAL;
	if (!scan->nr_ranges)
		return -EINVAL;
	scan->nr_ranges = min_t(u64, scan->nr_ranges, INT_MAX);
	return 0;
}

/* Tells user space of @nr ranges, some at a time, and adds their pages up. */
static int put_ranges(struct memfd_range __user *to,
		      const struct memfd_span *spans, unsigned int nr,
		      u64 *pages)
{
	struct memfd_range ranges[16];
	unsigned int i, some;

	for (; nr; nr -= some, spans += some, to += some) {
		some = min_t(unsigned int, nr, ARRAY_SIZE(ranges));
		for (i = 0; i < some; i++) {
			u64 nr_pages = spans[i].last - spans[i].first + 1;

			ranges[i].offset = (u64)spans[i].first << PAGE_SHIFT;
			ranges[i].length = nr_pages << PAGE_SHIFT;
			*pages += nr_pages;
		}
		if (copy_to_user(to, ranges, some * sizeof(*ranges)))
			return -EFAULT;
	}
	return 0;
}

/*
 * One batch after the other, from scan->start on. Counts the ranges that user
 * space has in *@total, and their pages. A batch begins behind the page that follows
 * the last range, which was not in the log when the range was found: ranges stay
 * apart.
 */
static int scan_batches(struct memfd_protect *mp, struct memfd_scan *scan,
			struct memfd_span *spans, unsigned int size,
			unsigned int *total, u64 *pages)
{
	struct memfd_range __user *to = u64_to_user_ptr(scan->ranges);
	bool take = scan->flags & MEMFD_SCAN_REPROTECT;
	pgoff_t start = scan->start >> PAGE_SHIFT;
	pgoff_t end = scan->end >> PAGE_SHIFT;

	scan->walk_end = scan->start;
	while (start < end && *total < scan->nr_ranges) {
		unsigned int want = min_t(u64, size, scan->nr_ranges - *total);
		int nr = memfd_protect_scan(mp, &start, end - 1, spans, want,
					    take, *total);
		u64 told = 0;

		if (nr < 0)
			return nr;
		if (put_ranges(to + *total, spans, nr, &told)) {
			if (take)
				memfd_protect_unscan(mp, spans, nr);
			return -EFAULT;
		}
		if (!nr)
			break;
		*total += nr;
		*pages += told;
		scan->walk_end = (u64)(spans[nr - 1].last + 1) << PAGE_SHIFT;
	}
	/* What is left, if it is anything, is not in the log. */
	if (*total < scan->nr_ranges)
		scan->walk_end = scan->end;
	return 0;
}

static int notify_scan(struct memfd_protect *mp,
		       struct memfd_scan __user *argp)
{
	struct memfd_scan scan;
	struct memfd_span *spans;
	unsigned int size, total = 0;
	u64 pages = 0;
	int err;

	if (copy_from_user(&scan, argp, sizeof(scan)))
		return -EFAULT;
	err = check_scan(&scan);
	if (err)
		return err;
	/* Fail before anything is taken. */
	if (put_user(scan.start, &argp->walk_end))
		return -EFAULT;
	size = min_t(u64, scan.nr_ranges, SCAN_BATCH);
	spans = kvmalloc_array(size, sizeof(*spans), GFP_KERNEL_ACCOUNT);
	if (!spans)
		return -ENOMEM;
	err = scan_batches(mp, &scan, spans, size, &total, &pages);
	kvfree(spans);
	/* User space knows of ranges that have been taken: no error then. */
	if (err && !total)
		return err;
	memfd_protect_scanned(mp, &scan, total, pages);
	if (put_user(scan.walk_end, &argp->walk_end) && !total)
		return -EFAULT;
	return total;
}

static long memfd_notify_ioctl(struct file *file, unsigned int cmd,
			       unsigned long arg)
{
	struct memfd_protect *mp = file->private_data;
	void __user *argp = (void __user *)arg;

	switch (cmd) {
	case MEMFD_NOTIFY_RESOLVE:
		return notify_resolve(mp, argp);
	case MEMFD_NOTIFY_SCAN:
		return notify_scan(mp, argp);
	case MEMFD_NOTIFY_FEATURES:
		return put_user(features(), (u64 __user *)argp);
	case MEMFD_NOTIFY_PROTECT:
		return notify_protect(mp, argp);
	default:
		return -ENOTTY;
	}
}

static void memfd_notify_show_fdinfo(struct seq_file *m, struct file *file)
{
	memfd_protect_show(m, file->private_data);
}

static int memfd_notify_release(struct inode *inode, struct file *file)
{
	memfd_protect_release_notify(file->private_data);
	return 0;
}

static const struct file_operations memfd_notify_fops = {
	.owner = THIS_MODULE,
	.poll = memfd_notify_poll,
	.read_iter = memfd_notify_read_iter,
	.unlocked_ioctl = memfd_notify_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.show_fdinfo = memfd_notify_show_fdinfo,
	.release = memfd_notify_release,
};

static bool may_stop_kernel(void)
{
	return READ_ONCE(sysctl_unprivileged_memfd_notify) ||
	       capable(CAP_SYS_PTRACE);
}

static int notify_fd(struct file *memfd, unsigned int flags)
{
	struct memfd_protect *mp;
	struct file *file;
	int fd;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	mp = memfd_protect_open_notify(memfd, flags & MEMFD_NOTIFY_KERNEL);
	if (IS_ERR(mp)) {
		put_unused_fd(fd);
		return PTR_ERR(mp);
	}
	file = anon_inode_getfile("[memfd_notify]", &memfd_notify_fops, mp,
				  O_RDWR | (flags & O_NONBLOCK));
	if (IS_ERR(file)) {
		memfd_protect_release_notify(mp);
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	file->f_mode |= FMODE_NOWAIT;
	fd_install(fd, file);
	return fd;
}

/**
 * sys_memfd_notify - get the event fd of a memfd
 * @fd: A memfd made with MFD_ALLOW_PROTECT, open for writing.
 * @flags: Bit set of MEMFD_NOTIFY_*.
 *
 * With an @fd of -1 and MEMFD_NOTIFY_QUERY alone it returns the features of this
 * kernel as MEMFD_NOTIFY_FEATURES does, because there may be no event fd to ask.
 *
 * Errors, in the order in which they are checked:
 * - %EBADF: @fd is not open, or not for writing.
 * - %EINVAL: not a shmem or hugetlb file; unknown @flags.
 * - %EOPNOTSUPP: such a file without MFD_ALLOW_PROTECT.
 * - %EPERM: F_SEAL_PROTECT, F_SEAL_WRITE or F_SEAL_FUTURE_WRITE forbids it.
 * - %EPERM: MEMFD_NOTIFY_KERNEL without CAP_SYS_PTRACE while
 *   vm.unprivileged_memfd_notify is 0.
 * - %EMFILE: too many open files of the process.
 * - %EBUSY: there is an event fd of this memfd.
 * - %ENFILE, %ENOMEM: too many open files, no memory.
 *
 * Return: The event fd, always close-on-exec, or the features, or a negative error.
 */
SYSCALL_DEFINE2(memfd_notify, int, fd, unsigned int, flags)
{
	struct fd f = fdget(fd);
	int ret;

	BUILD_BUG_ON(sizeof(struct memfd_event) != 48);
	BUILD_BUG_ON(sizeof(struct memfd_resolve) != 16);
	BUILD_BUG_ON(sizeof(struct memfd_range) != 16);
	BUILD_BUG_ON(sizeof(struct memfd_scan) != 48);
	BUILD_BUG_ON(sizeof(struct memfd_protect_range) != 24);

	if (fd == -1 && flags == MEMFD_NOTIFY_QUERY)
		return (int)features();

	ret = memfd_protect_check_notify(fd_file(f));
	/* A file without protection is told from one that has bad flags. */
	if ((!ret || ret == -EOPNOTSUPP || ret == -EPERM) &&
	    (flags & ~(MEMFD_NOTIFY_NONBLOCK | MEMFD_NOTIFY_KERNEL)))
		ret = -EINVAL;
	if (!ret && (flags & MEMFD_NOTIFY_KERNEL) && !may_stop_kernel())
		ret = -EPERM;
	if (!ret)
		ret = notify_fd(fd_file(f), flags);
	fdput(f);
	return ret;
}

static struct ctl_table memfd_notify_sysctls[] = {
	{
		.procname	= "unprivileged_memfd_notify",
		.data		= &sysctl_unprivileged_memfd_notify,
		.maxlen		= sizeof(int),
		.mode		= 0644,
		.proc_handler	= proc_dointvec_minmax,
		.extra1		= SYSCTL_ZERO,
		.extra2		= SYSCTL_ONE,
	},
};

static int __init memfd_notify_init(void)
{
	register_sysctl_init("vm", memfd_notify_sysctls);
	return 0;
}
fs_initcall(memfd_notify_init);
