// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that change a memfd ask here first: write(2) and its kin, hole
 * punching, truncation.
 */

#include <linux/fs.h>
#include <linux/pipe_fs_i.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/uio.h>

#include "memfd_debug.h"
#include "memfd_protect.h"

#include <trace/events/memfd_protect.h>

/* Kernel threads never sleep here: whom would they keep waiting? */
static int call_may_wait(struct memfd_protect *mp, struct memfd_writer *writer)
{
	if (!(current->flags & (PF_KTHREAD | PF_EXITING | PF_DUMPCORE)))
		return 0;
	writer->flags |= MEMFD_EVENT_F_KERNEL;
	memfd_waiters_report(&mp->waiters, writer);
	return -EPERM;
}

/*
 * Decides for a system call under inode_lock(), which it drops to wait. Returns
 * 0 to go on, -EAGAIN after it waited, or another error.
 */
static int call_check(struct memfd_protect *mp, struct inode *inode,
		      struct memfd_writer *writer, bool log)
{
	int err = memfd_state_verdict(mp, writer, log);

	if (err != -EAGAIN)
		return err;
	err = call_may_wait(mp, writer);
	if (err)
		return err;
	/*
	 * Interrupted by the freezer too, and then restarted: a lock of the
	 * caller's, such as sb_start_write(), is not held while frozen.
	 */
	writer->state = TASK_INTERRUPTIBLE;
	inode_unlock(inode);
	memfd_delay(ENQUEUE);
	err = memfd_waiters_wait(mp, writer);
	inode_lock(inode);
	/* io_uring does not know how to restart all of its operations. */
	if (err == -ERESTARTSYS && (current->flags & PF_IO_WORKER))
		err = -EINTR;
	return err ?: -EAGAIN;
}

int __memfd_protect_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	ssize_t ret;

	if (!mp || !memfd_hook(WRITE))
		return 0;
	for (;;) {
		loff_t end = iocb->ki_pos + iov_iter_count(from) - 1;

		writer = (struct memfd_writer) {
			.first = iocb->ki_pos >> PAGE_SHIFT,
			.last = end >> PAGE_SHIFT,
			.type = MEMFD_EVENT_WRITE,
		};
		if (iocb->ki_flags & IOCB_NOWAIT)
			return memfd_state_verdict(mp, &writer, true);
		ret = call_check(mp, inode, &writer, true);
		if (ret != -EAGAIN)
			return ret;
		/* The file may have another size now; where to append, too. */
		ret = generic_write_checks(iocb, from);
		if (ret <= 0)
			return ret;
	}
}

/* For changes of [first byte, end of file or before]; all in bytes. */
static int call_change(struct inode *inode, loff_t start, loff_t end, u16 type)
{
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	int err;

	if (!mp)
		return 0;
	do {
		/* There are no contents behind the end of the file. */
		loff_t stop = min(end, i_size_read(inode));

		if (start >= stop)
			return 0;
		writer = (struct memfd_writer) {
			.first = start >> PAGE_SHIFT,
			.last = (stop - 1) >> PAGE_SHIFT,
			.type = type,
		};
		err = call_check(mp, inode, &writer, true);
	} while (err == -EAGAIN);
	return err;
}

int __memfd_protect_punch(struct inode *inode, loff_t offset, loff_t len)
{
	if (!memfd_hook(PUNCH))
		return 0;
	return call_change(inode, offset, offset + len, MEMFD_EVENT_PUNCH);
}

int __memfd_protect_truncate(struct inode *inode, loff_t size)
{
	if (!memfd_hook(TRUNCATE))
		return 0;
	return call_change(inode, size, LLONG_MAX, MEMFD_EVENT_TRUNCATE);
}

/*
 * splice and its kin write in pieces. Each piece asks by itself, but all of it is
 * to wait, or fail, before the first is written.
 */
static int call_check_pieces(struct inode *inode, loff_t pos, loff_t len)
{
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	int err;

	if (!mp || len <= 0 || pos < 0 || !memfd_hook(SPLICE))
		return 0;
	inode_lock(inode);
	do {
		loff_t end = min(len, LLONG_MAX - pos) + pos;

		writer = (struct memfd_writer) {
			.first = pos >> PAGE_SHIFT,
			.last = (end - 1) >> PAGE_SHIFT,
			.type = MEMFD_EVENT_WRITE,
		};
		err = call_check(mp, inode, &writer, false);
	} while (err == -EAGAIN);
	inode_unlock(inode);
	return err;
}

int __memfd_protect_splice_file(struct file *in, loff_t in_pos,
				struct file *out, loff_t out_pos, size_t len)
{
	loff_t there = i_size_read(in->f_mapping->host) - in_pos;

	return call_check_pieces(file_inode(out), out_pos,
				 min_t(loff_t, len, there));
}

int __memfd_protect_splice_pipe(struct pipe_inode_info *pipe, struct file *out,
				loff_t pos, size_t len)
{
	unsigned int i;
	size_t there = 0;

	if (!memfd_protect_of(file_inode(out)))
		return 0;
	pipe_lock(pipe);
	for (i = pipe->tail; i != pipe->head; i++)
		there += pipe->bufs[i & (pipe->ring_size - 1)].len;
	pipe_unlock(pipe);
	return call_check_pieces(file_inode(out), pos, min(len, there));
}
