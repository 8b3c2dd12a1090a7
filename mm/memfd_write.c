// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that change a memfd ask here first: write(2) and its kin, hole
 * punching, truncation. Those by which it grows bring nothing into it but zeros, and what
 * they write.
 *
 * What a seal refuses is not asked for, and not logged. Seals are added under
 * inode_lock(), which the caller holds from the question to the end of its
 * writing, and they are looked at anew whenever it was dropped to wait. The answer
 * is then 0, and the caller, who knows about seals, refuses.
 *
 * Who waits here holds no lock that others need: inode_lock() is dropped, and that
 * of a pipe is not held. splice() writes with IOCB_MEMFD_NOWAIT while it has that one,
 * and waits without it (memfd_protect_splice_wait()).
 */

#include <linux/fs.h>
#include <linux/pagemap.h>
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

/*
 * Where a write of @len bytes ends that seals let through. Under F_SEAL_GROW
 * shmem_write_begin() refuses each folio's worth that would end behind EOF; what goes before
 * it is written.
 */
static loff_t write_end(struct inode *inode, loff_t pos, loff_t len)
{
	loff_t size = i_size_read(inode);
	loff_t end = pos + min(len, LLONG_MAX - pos);

	if ((SHMEM_I(inode)->seals & F_SEAL_GROW) && end > size)
		end = round_down(size,
				 mapping_max_folio_size(inode->i_mapping));
	return end;
}

/* The pages of a write that ends there; false if seals let through none. */
static bool write_pages(struct memfd_writer *writer, struct inode *inode,
			loff_t pos, loff_t end)
{
	if (SHMEM_I(inode)->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return false;
	if (end <= pos)
		return false;
	*writer = (struct memfd_writer) {
		.first = pos >> PAGE_SHIFT,
		.last = (end - 1) >> PAGE_SHIFT,
		.type = MEMFD_EVENT_WRITE,
	};
	return true;
}

/*
 * No more is written than is asked for: when its source is not there, a write goes on by less
 * than a folio's worth, which may end before EOF. False if nothing is left.
 */
static bool clip_to_seals(struct inode *inode, loff_t pos, struct iov_iter *from)
{
	loff_t end = write_end(inode, pos, iov_iter_count(from));

	if (end > pos)
		iov_iter_truncate(from, end - pos);
	return end > pos;
}

static int write_check(struct memfd_protect *mp, struct kiocb *iocb,
		       struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct memfd_writer writer;
	ssize_t ret;

	if (!memfd_hook(WRITE))
		return 0;
	do {
		if (!clip_to_seals(inode, iocb->ki_pos, from))
			return -EPERM;
		if (!write_pages(&writer, inode, iocb->ki_pos,
				 iocb->ki_pos + iov_iter_count(from)))
			return 0;
		if (iocb->ki_flags & (IOCB_NOWAIT | IOCB_MEMFD_NOWAIT))
			return memfd_state_verdict(mp, &writer, true);
		ret = call_check(mp, inode, &writer, true);
		if (ret != -EAGAIN)
			return ret;
		/* The file may have another size now; where to append, too. */
		ret = generic_write_checks(iocb, from);
	} while (ret > 0);
	return ret;
}

int __memfd_protect_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct memfd_protect *mp = memfd_protect_of(inode);
	int err = mp ? write_check(mp, iocb, from) : 0;

	return err ?: __memfd_protect_grow(inode, iocb->ki_pos + iov_iter_count(from));
}

/*
 * The pages that lose contents if the bytes from @start to @last do; false if there
 * are none. What is in the file's last page behind EOF can be seen in a mapping,
 * so it counts. There is nothing behind that page.
 */
static bool change_pages(struct memfd_writer *writer, struct inode *inode,
			 loff_t start, loff_t last, u16 type)
{
	loff_t size = i_size_read(inode);

	if (!size || start >> PAGE_SHIFT > (size - 1) >> PAGE_SHIFT)
		return false;
	*writer = (struct memfd_writer) {
		.first = start >> PAGE_SHIFT,
		.last = min(last, size - 1) >> PAGE_SHIFT,
		.type = type,
	};
	return true;
}

int __memfd_protect_punch(struct inode *inode, loff_t offset, loff_t len)
{
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	int err;

	if (!mp || !memfd_hook(PUNCH))
		return 0;
	do {
		if (SHMEM_I(inode)->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
			return 0;
		if (!change_pages(&writer, inode, offset, offset + len - 1,
				  MEMFD_EVENT_PUNCH))
			return 0;
		err = call_check(mp, inode, &writer, true);
	} while (err == -EAGAIN);
	return err;
}

int __memfd_protect_truncate(struct inode *inode, loff_t size)
{
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	int err;

	if (!mp || !memfd_hook(TRUNCATE))
		return 0;
	do {
		loff_t old = i_size_read(inode);

		if (size > old)
			return 0;
		if (size < old && (SHMEM_I(inode)->seals & F_SEAL_SHRINK))
			return 0;
		/* The old size again clears the last page behind it. */
		if (!change_pages(&writer, inode, size, LLONG_MAX,
				  MEMFD_EVENT_TRUNCATE))
			return 0;
		err = call_check(mp, inode, &writer, true);
	} while (err == -EAGAIN);
	return err;
}

/* Clears pages from *@index to before @behind that are in one folio; moves *@index on. */
static int clear_behind(struct inode *inode, pgoff_t *index, pgoff_t behind)
{
	struct folio *folio;
	pgoff_t first = *index;
	int err = shmem_get_folio(inode, first, 0, &folio, SGP_WRITE);

	if (err)
		return err;
	*index = min(folio_next_index(folio), behind);
	/* Otherwise fallocate() has put it there, and there is nothing in it yet. */
	if (folio_test_uptodate(folio)) {
		folio_zero_range(folio, offset_in_folio(folio, memfd_offset(first)),
				 memfd_offset(*index - first));
		folio_mark_dirty(folio);
	}
	folio_unlock(folio);
	folio_put(folio);
	return 0;
}

/*
 * A folio in which the file was cut off, and that could not be split, is there as a whole.
 * Behind the end it may have what was written after that: by who held it pinned, or by a
 * fault that had looked at the size before. Nobody was asked for that, so it is not to be in
 * the file when this has grown. The page in which the file ends is one of its pages, for
 * which everybody is asked.
 */
int __memfd_protect_grow(struct inode *inode, loff_t size)
{
	struct address_space *mapping = inode->i_mapping;
	pgoff_t max = mapping_max_folio_size(mapping) >> PAGE_SHIFT;
	loff_t old = i_size_read(inode);
	pgoff_t index = DIV_ROUND_UP(old, PAGE_SIZE);
	pgoff_t behind = min(round_up(index, max), DIV_ROUND_UP(size, PAGE_SIZE));
	int err = 0;

	if (!memfd_protect_of(inode) || size <= old ||
	    (SHMEM_I(inode)->seals & F_SEAL_GROW) || !memfd_hook(GROW))
		return 0;
	while (!err && index < behind &&
	       xa_find(&mapping->i_pages, &index, behind - 1, XA_PRESENT))
		err = clear_behind(inode, &index, behind);
	return err;
}

/*
 * Where they end of a write in pieces, at most: under F_SEAL_GROW each that is in the file is
 * written, however large it is.
 */
static loff_t pieces_end(struct inode *inode, loff_t pos, loff_t len)
{
	loff_t end = pos + min(len, LLONG_MAX - pos);

	if (SHMEM_I(inode)->seals & F_SEAL_GROW)
		end = min(end, i_size_read(inode));
	return end;
}

/*
 * splice and its kin write in pieces. Each piece asks by itself, but all of it is
 * to wait, or fail, before the first is written.
 */
static int call_check_pieces(struct inode *inode, loff_t pos, loff_t len)
{
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	int err = 0;

	if (down_write_killable(&inode->i_rwsem))
		return -EINTR;
	do {
		if (!write_pages(&writer, inode, pos, pieces_end(inode, pos, len)))
			break;
		err = call_check(mp, inode, &writer, false);
	} while (err == -EAGAIN);
	inode_unlock(inode);
	return err;
}

/*
 * Nobody knows how much a source without a size has: the whole cannot be asked for
 * before. So the count is made to end before the first page that is protected. If
 * that is the very first, its piece will wait or fail, if there is any data for it,
 * and the count ends before the next one.
 */
static void clip_to_unprotected(struct inode *inode, loff_t pos, size_t *len)
{
	const unsigned int modes = BIT(MEMFD_MODE_WAIT) | BIT(MEMFD_MODE_DENY);
	struct memfd_protect *mp = memfd_protect_of(inode);
	struct memfd_writer writer;
	pgoff_t first, last;
	bool found;

	/* What is in flight may not stay. */
	if (down_read_killable(&inode->i_rwsem))
		return;
	if (!write_pages(&writer, inode, pos, pieces_end(inode, pos, *len)))
		goto unlock;
	first = writer.first;
	last = writer.last;
	mutex_lock(&mp->lock);
	found = memfd_ranges_find(&mp->modes, modes, &first, &last);
	if (found && first == writer.first) {
		first = last + 1;
		last = writer.last;
		found = memfd_ranges_find(&mp->modes, modes, &first, &last);
	}
	mutex_unlock(&mp->lock);
	if (found)
		*len = min_t(loff_t, *len, memfd_offset(first) - pos);
unlock:
	inode_unlock_shared(inode);
}

int __memfd_protect_splice_file(struct file *in, loff_t in_pos,
				struct file *out, loff_t out_pos, size_t *len)
{
	loff_t there = i_size_read(in->f_mapping->host) - in_pos;
	struct inode *inode = file_inode(out);

	if (!memfd_protect_of(inode) || out_pos < 0 || !memfd_hook(SPLICE))
		return 0;
	if (there > 0)
		return call_check_pieces(inode, out_pos,
					 min_t(loff_t, *len, there));
	clip_to_unprotected(inode, out_pos, len);
	return 0;
}

static size_t pipe_bytes(struct pipe_inode_info *pipe)
{
	size_t bytes = 0;
	unsigned int i;

	pipe_lock(pipe);
	for (i = pipe->tail; i != pipe->head; i++)
		bytes += pipe->bufs[i & (pipe->ring_size - 1)].len;
	pipe_unlock(pipe);
	return bytes;
}

int __memfd_protect_splice_pipe(struct pipe_inode_info *pipe, struct file *out,
				loff_t pos, size_t *len)
{
	struct inode *inode = file_inode(out);
	size_t there;
	int err = 0;

	if (!memfd_protect_of(inode) || pos < 0 || !memfd_hook(SPLICE))
		return 0;
	there = pipe_bytes(pipe);
	if (there)
		err = call_check_pieces(inode, pos, min(*len, there));
	if (!err && there < *len)
		clip_to_unprotected(inode, pos, len);
	return err;
}

bool __memfd_protect_no_userfault(void)
{
	return memfd_hook(USERFAULT);
}

bool __memfd_protect_no_fill(void)
{
	return memfd_hook(USERFAULT) && memfd_hook(FILL);
}

void __memfd_protect_splice_nowait(struct kiocb *iocb, bool waited)
{
	if (!memfd_protect_of(file_inode(iocb->ki_filp)) ||
	    !memfd_hook(SPLICE_LOCK))
		return;
	iocb->ki_flags |= IOCB_MEMFD_NOWAIT;
	if (!waited)
		iocb->ki_flags |= IOCB_NOWAIT;
}

/**
 * memfd_protect_splice_wait() - wait until a piece of a splice can be written
 * @out: A file for which memfd_protect_splice_nowait() set IOCB_MEMFD_NOWAIT.
 * @pos: Where to, in bytes.
 * @len: Bytes in the piece.
 *
 * After -EAGAIN, be it for a protected page or for inode_lock(): this function takes
 * that. Pages that are protected anew before they are written have the caller come back.
 *
 * Context: May sleep; no locks.
 * Return: 0 to try again, or a negative error.
 */
int memfd_protect_splice_wait(struct file *out, loff_t pos, size_t len)
{
	return call_check_pieces(file_inode(out), pos, len);
}

int __memfd_protect_read(struct kiocb *iocb, pgoff_t index)
{
	struct folio *folio = filemap_get_entry(iocb->ki_filp->f_mapping, index);
	bool busy;

	if (!folio)
		return 0;
	/* In the swap. */
	if (xa_is_value(folio))
		return -EAGAIN;
	busy = folio_test_locked(folio);
	folio_put(folio);
	return busy ? -EAGAIN : 0;
}
