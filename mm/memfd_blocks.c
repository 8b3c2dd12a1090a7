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
 * The words are replaced when the file has outgrown them, under inode_lock(). The new ones
 * get the bits of the old ones when those who pin, with RCU or interrupts off, have
 * forgotten these.
 */

#include <linux/bitmap.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/sizes.h>

#include "memfd_debug.h"
#include "memfd_protect.h"

#define BLOCK_PAGES	(SZ_2M >> PAGE_SHIFT)

/* Files of more than 128 TiB have no bits: all of them is looked at. */
#define MAX_BLOCKS	(SZ_128M / 2)

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

/* Pages can be behind the end of the file, too, and pinned there. */
static unsigned long blocks_of(const struct memfd_protect *mp)
{
	unsigned long nr = DIV_ROUND_UP_ULL(i_size_read(mp->inode), SZ_2M);

	return max_t(unsigned long, nr, atomic_long_read(&mp->noted));
}

static void copy_bits(struct memfd_blocks *to, const struct memfd_blocks *from)
{
	unsigned long block;

	for_each_set_bit(block, from->bits, from->nr)
		set_bit(block, to->bits);
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
	const gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_RETRY_MAYFAIL;
	struct memfd_blocks *new, *old;
	unsigned long nr = blocks_of(mp);

	old = rcu_dereference_protected(mp->blocks,
					lockdep_is_held(&mp->inode->i_rwsem));
	if (!nr || nr > MAX_BLOCKS || (old && old->nr >= nr))
		return;
	/* A file that grows does so again. */
	if (old)
		nr = max(nr, old->nr + old->nr / 2);
	new = kvzalloc(struct_size(new, bits, BITS_TO_LONGS(nr)), gfp);
	if (!new)
		return;
	new->nr = nr;
	/* Who has pinned without old ones has set memfd_protect.pinned. */
	rcu_assign_pointer(mp->blocks, new);
	if (!old)
		return;
	synchronize_rcu();
	copy_bits(new, old);
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

static void note_without_bit(struct memfd_protect *mp, unsigned long block)
{
	long noted = atomic_long_read(&mp->noted);

	while (noted <= (long)block &&
	       !atomic_long_try_cmpxchg(&mp->noted, &noted, block + 1))
		;
	if (READ_ONCE(mp->pinned))
		return;
	/* Pairs with all_blocks(), which asks next how far the bits must reach. */
	smp_store_release(&mp->pinned, true);
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
	if (!blocks || block >= blocks->nr)
		note_without_bit(mp, block);
	else if (!test_bit(block, blocks->bits) && memfd_hook(BLOCKS))
		set_bit(block, blocks->bits);
	rcu_read_unlock();
}

/* Gives all blocks their bits in place of &memfd_protect.pinned, if it can. */
static bool all_blocks(struct memfd_protect *mp, struct memfd_blocks *blocks,
		       bool locked)
{
	/* Pairs with note_without_bit(). */
	if (!smp_load_acquire(&mp->pinned))
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
 * @part: In: the range. Out: a part of it.
 * @locked: The caller has inode_lock().
 *
 * Context: Any. A full barrier after what is looked for.
 * Return: False if there is none.
 */
bool memfd_blocks_next(struct memfd_protect *mp, struct memfd_span *part,
		       bool locked)
{
	struct memfd_blocks *blocks;
	unsigned long block, behind, end;
	bool found = true;

	rcu_read_lock();
	blocks = rcu_dereference(mp->blocks);
	if (all_blocks(mp, blocks, locked))
		goto unlock;
	block = part->first / BLOCK_PAGES;
	end = blocks ? min(blocks->nr, part->last / BLOCK_PAGES + 1) : 0;
	found = block < end;
	if (!found)
		goto unlock;
	block = find_next_bit(blocks->bits, end, block);
	behind = find_next_zero_bit(blocks->bits, end, block);
	found = block < end;
	if (found) {
		part->first = max(part->first, block * BLOCK_PAGES);
		part->last = min(part->last, behind * BLOCK_PAGES - 1);
	}
unlock:
	rcu_read_unlock();
	return found;
}

/* Clears the bits from @block to before @behind, whole words at once. */
static void clear_bits(unsigned long *bits, unsigned long block,
		       unsigned long behind)
{
	while (block < behind) {
		if (block % BITS_PER_LONG || behind - block < BITS_PER_LONG) {
			clear_bit(block++, bits);
			continue;
		}
		xchg(&bits[block / BITS_PER_LONG], 0);
		block += BITS_PER_LONG;
	}
}

/**
 * memfd_blocks_clear() - nothing of a part was pinned
 * @mp: Protection of the file.
 * @part: From memfd_blocks_next(). Blocks that it does not have as a whole keep their
 *	  bits.
 *
 * Context: inode_lock(). A full barrier behind it.
 * Return: False if there were none. Otherwise the caller looks once more, and calls
 * memfd_blocks_restore() if there are pins.
 */
bool memfd_blocks_clear(struct memfd_protect *mp, const struct memfd_span *part)
{
	unsigned long block = DIV_ROUND_UP(part->first, BLOCK_PAGES);
	unsigned long behind = (part->last + 1) / BLOCK_PAGES;
	struct memfd_blocks *blocks;

	rcu_read_lock();
	blocks = rcu_dereference(mp->blocks);
	behind = blocks ? min(behind, blocks->nr) : 0;
	if (block < behind)
		clear_bits(blocks->bits, block, behind);
	rcu_read_unlock();
	/* The bits are cleared before the caller looks once more (N). */
	smp_mb();
	return block < behind;
}

/**
 * memfd_blocks_restore() - there may be pins after all
 * @mp: Protection of the file.
 * @part: Where.
 *
 * Context: inode_lock().
 */
void memfd_blocks_restore(struct memfd_protect *mp, const struct memfd_span *part)
{
	unsigned long block = part->first / BLOCK_PAGES;
	struct memfd_blocks *blocks;

	rcu_read_lock();
	blocks = rcu_dereference(mp->blocks);
	for (; blocks && block < blocks->nr && block <= part->last / BLOCK_PAGES; block++)
		set_bit(block, blocks->bits);
	rcu_read_unlock();
}
