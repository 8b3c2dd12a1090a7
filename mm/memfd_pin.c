// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel code that gets hold of pages of a memfd, and writes them later, asks here.
 */

#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>

#include "internal.h"
#include "memfd_debug.h"
#include "memfd_protect.h"

/*
 * Kernel code that gets hold of pages, and writes them later
 */

bool __memfd_protect_access_begin(struct vm_area_struct *vma,
				  unsigned long addr, struct page *page)
{
	struct memfd_protect *mp = memfd_protect_of_vma(vma);

	if (!memfd_hook(REMOTE)) {
		memfd_delay(REMOTE);
		return true;
	}
	if (try_grab_folio(page_folio(page), 1, FOLL_PIN))
		return false;
	/* memfd_protect() stores the mode before it looks for pins. */
	smp_mb__after_atomic();
	if (memfd_mode_at(mp, linear_page_index(vma, addr)) == MEMFD_MODE_NONE) {
		memfd_delay(REMOTE);
		return true;
	}
	unpin_user_page(page);
	return false;
}

void __memfd_protect_access_end(struct page *page)
{
	if (memfd_hook(REMOTE))
		unpin_user_page(page);
}

/* The protection of the memfd that a page belongs to, with a reference. */
static struct memfd_protect *page_protect(struct page *page, pgoff_t *index)
{
	struct folio *folio = page_folio(page);
	struct memfd_protect *mp = NULL;
	struct address_space *mapping;

	rcu_read_lock();
	mapping = READ_ONCE(folio->mapping);
	if (mapping && !((unsigned long)mapping & PAGE_MAPPING_FLAGS) &&
	    shmem_mapping(mapping)) {
		mp = READ_ONCE(SHMEM_I(mapping->host)->protect);
		if (mp && !kref_get_unless_zero(&mp->ref))
			mp = NULL;
		*index = folio->index + folio_page_idx(folio, page);
	}
	rcu_read_unlock();
	return mp;
}

/* Whether a page that was got for writing may still be written. */
static bool got_page(struct memfd_protect *mp, pgoff_t index)
{
	struct memfd_writer writer = {
		.first = index,
		.last = index,
		.type = MEMFD_EVENT_FAULT,
		.flags = MEMFD_EVENT_F_KERNEL,
	};

	WRITE_ONCE(mp->got_pages, true);
	/* memfd_protect() stores modes before it looks for references. */
	smp_mb();
	/* Taken by a scan since it was got? Then it goes into the next one. */
	if (memfd_mode_at(mp, index) == MEMFD_MODE_ASYNC)
		memfd_state_log(mp, &writer);
	return memfd_mode_at(mp, index) == MEMFD_MODE_NONE;
}

int __memfd_protect_got_pages(struct page **pages, int nr)
{
	bool ours = false;
	int i, j;

	for (i = 0; i < nr; i++) {
		struct memfd_protect *mp;
		bool may_write;
		pgoff_t index;

		mp = page_protect(pages[i], &index);
		if (!mp)
			continue;
		ours = true;
		may_write = !memfd_hook(GOT_PAGES) || got_page(mp, index);
		memfd_state_put(mp);
		if (!may_write)
			break;
	}
	for (j = i; j < nr; j++)
		put_page(pages[j]);
	if (ours)
		memfd_delay(REMOTE);
	return i ?: -EFAULT;
}

int __memfd_protect_pin_begin(struct file *file, loff_t start, loff_t end)
{
	struct memfd_protect *mp = memfd_protect_of(file_inode(file));
	struct memfd_writer writer = {
		.first = start >> PAGE_SHIFT,
		.last = end >> PAGE_SHIFT,
		.type = MEMFD_EVENT_FAULT,
		.flags = MEMFD_EVENT_F_KERNEL,
	};
	int err;

	if (!mp || !memfd_hook(PIN_FOLIOS))
		return 0;
	/* inode_lock() cannot be taken: udmabuf has it, shared. */
	err = memfd_flight_lock(mp, writer.first, writer.last, TASK_KILLABLE);
	if (err)
		return err;
	err = memfd_state_verdict(mp, &writer, true);
	mutex_unlock(&mp->lock);
	if (err == -EAGAIN) {
		memfd_waiters_report(&mp->waiters, &writer);
		err = -EFAULT;
	}
	return err;
}

bool __memfd_protect_pin_end(struct file *file, loff_t start, loff_t end)
{
	struct memfd_protect *mp = memfd_protect_of(file_inode(file));
	pgoff_t first = start >> PAGE_SHIFT, last = end >> PAGE_SHIFT;
	bool protected;

	if (!mp || !memfd_hook(PIN_FOLIOS))
		return true;
	/* The pins are there; memfd_protect() stores modes before it looks. */
	smp_mb();
	mutex_lock(&mp->lock);
	protected = memfd_ranges_find(&mp->modes, GENMASK(3, 1), &first, &last);
	mutex_unlock(&mp->lock);
	return !protected;
}
