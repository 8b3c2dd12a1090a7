// SPDX-License-Identifier: GPL-2.0-only
/*
 * In which parts of a memfd pages may be pinned for writing: a bit for each 2 MiB.
 *
 * The look for pins (mm/memfd_pin.c) reads folio by folio, which takes long in a large
 * file, of which next to nothing is pinned as a rule. So it reads only the blocks that
 * have a bit.
 *
 * Invariant N. A block with a folio that is pinned for writing has its bit, or
 * memfd_protect.pinned is set, as seen by who holds inode_lock(). Who pins has the pin,
 * and the folio its mark (P in mm/memfd_pin.c), before he looks at the bit. Who clears a
 * bit, under inode_lock(), looks for pins once more afterwards:
 *
 *   pinner				look
 *
 *   pin, and mark folio		no pins in the block: clear bit
 *   full barrier			full barrier
 *   set bit unless it is set		pins in the block: set bit
 *
 * memfd_protect.pinned stands for all bits that there are no words for: at first, in
 * what a file has grown by, and when there was no memory for them. The next look gives
 * all blocks a bit in place of it.
 *
 * The words are replaced when the file has outgrown them, under inode_lock(). All bits
 * of the new ones are set, and nobody clears any before those who pin, with RCU or
 * interrupts off, have forgotten the old ones.
 */

#include <linux/bitmap.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/sizes.h>

#include "memfd_debug.h"
#include "memfd_protect.h"

#define BLOCK_PAGES	(SZ_2M >> PAGE_SHIFT)

/**
 * struct memfd_blocks - a bit for each block
 * @nr: Blocks.
 * @rcu: For those who know it still.
 * @bits: The bits.
 */
struct memfd_blocks {
	unsigned long nr;
	struct rcu_head rcu;
	unsigned long bits[];
};

static unsigned long blocks_of(const struct memfd_protect *mp)
{
	return DIV_ROUND_UP_ULL(i_size_read(mp->inode), SZ_2M);
}

/**
 * memfd_blocks_prepare() - there will be a bit for each block of the file
 * @mp: Protection of the file.
 *
 * If there is no memory for that, looks are slow, and nothing else.
 *
 * Context: May sleep. inode_lock().
 */
void memfd_blocks_prepare(struct memfd_protect *mp)
{
	struct memfd_blocks *new, *old;
	unsigned long nr = blocks_of(mp);

	old = rcu_dereference_protected(mp->blocks,
					lockdep_is_held(&mp->inode->i_rwsem));
	if (!nr || (old && old->nr >= nr))
		return;
	new = kvzalloc(struct_size(new, bits, BITS_TO_LONGS(nr)),
		       GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!new)
		return;
	new->nr = nr;
	/* Who has pinned without old ones has set memfd_protect.pinned. */
	if (old)
		bitmap_fill(new->bits, nr);
	rcu_assign_pointer(mp->blocks, new);
	if (!old)
		return;
	synchronize_rcu();
	kvfree(old);
}

/**
 * memfd_blocks_free() - the file is gone
 * @mp: Its protection, with the last reference.
 *
 * Context: Any.
 */
void memfd_blocks_free(struct memfd_protect *mp)
{
	struct memfd_blocks *blocks = rcu_dereference_raw(mp->blocks);

	if (blocks)
		kvfree_rcu(blocks, rcu);
}

/**
 * memfd_blocks_note() - a folio has been marked as pinned
 * @mp: Protection of its file.
 * @index: Its page offset.
 *
 * Context: Any. The folio has a reference. A full barrier before, and behind it.
 */
void memfd_blocks_note(struct memfd_protect *mp, pgoff_t index)
{
	unsigned long block = index / BLOCK_PAGES;
	struct memfd_blocks *blocks;

	rcu_read_lock();
	blocks = rcu_dereference(mp->blocks);
	if (!blocks || block >= blocks->nr) {
		if (!READ_ONCE(mp->pinned))
			WRITE_ONCE(mp->pinned, true);
	} else if (!test_bit(block, blocks->bits) && memfd_hook(BLOCKS)) {
		set_bit(block, blocks->bits);
	}
	rcu_read_unlock();
}

/* Gives all blocks their bits in place of &memfd_protect.pinned, if it can. */
static bool all_blocks(struct memfd_protect *mp, struct memfd_blocks *blocks,
		       bool locked)
{
	if (!READ_ONCE(mp->pinned))
		return false;
	if (!locked || !blocks || blocks->nr < blocks_of(mp))
		return true;
	WRITE_ONCE(mp->pinned, false);
	/* What was pinned before has its mark, and what comes sets it again. */
	smp_mb();
	for (unsigned long i = 0; i < BITS_TO_LONGS(blocks->nr); i++)
		WRITE_ONCE(blocks->bits[i], ~0UL);
	return false;
}

/**
 * memfd_blocks_next() - the next part of a range in which pages may be pinned
 * @mp: Protection of the file.
 * @part: In: the range. Out: a part of it, of one block, or all that is left.
 * @locked: The caller has inode_lock().
 *
 * Context: Any. A full barrier after what is looked for.
 * Return: False if there is none.
 */
bool memfd_blocks_next(struct memfd_protect *mp, struct memfd_span *part,
		       bool locked)
{
	struct memfd_blocks *blocks;
	unsigned long block = 0;
	bool found = true;

	rcu_read_lock();
	blocks = rcu_dereference(mp->blocks);
	if (all_blocks(mp, blocks, locked))
		goto unlock;
	if (blocks)
		block = find_next_bit(blocks->bits, blocks->nr,
				      min(part->first / BLOCK_PAGES, blocks->nr));
	found = blocks && block < blocks->nr && block <= part->last / BLOCK_PAGES;
	if (found) {
		part->first = max(part->first, block * BLOCK_PAGES);
		part->last = min(part->last, (block + 1) * BLOCK_PAGES - 1);
	}
unlock:
	rcu_read_unlock();
	return found;
}

/**
 * memfd_blocks_clear() - nothing of a block was pinned
 * @mp: Protection of the file.
 * @part: From memfd_blocks_next(). Nothing is done if it is not a whole block.
 *
 * Context: inode_lock(). A full barrier behind it.
 * Return: True if the bit was cleared. The caller looks once more, and calls
 * memfd_blocks_note() if there are pins.
 */
bool memfd_blocks_clear(struct memfd_protect *mp, const struct memfd_span *part)
{
	unsigned long block = part->first / BLOCK_PAGES;
	struct memfd_blocks *blocks;
	bool cleared = false;

	if (part->first % BLOCK_PAGES || part->last - part->first + 1 != BLOCK_PAGES)
		return false;
	rcu_read_lock();
	blocks = rcu_dereference(mp->blocks);
	if (blocks && block < blocks->nr) {
		clear_bit(block, blocks->bits);
		cleared = true;
	}
	smp_mb();
	rcu_read_unlock();
	return cleared;
}
