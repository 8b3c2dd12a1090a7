/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A map from page offsets to small values, for memfd_protect().
 *
 * Every page offset of a file has a value of two bits. Stretches with one value
 * cost nothing per page; where values alternate the cost is two bits a page.
 * See mm/memfd_ranges.c for structure and locking.
 */
#ifndef _MM_MEMFD_RANGES_H
#define _MM_MEMFD_RANGES_H

#include <linux/bits.h>
#include <linux/limits.h>
#include <linux/mm_types.h>
#include <linux/rcupdate.h>

/* The last page offset that a file of MAX_LFS_FILESIZE bytes can have. */
#define MEMFD_RANGES_LAST	((pgoff_t)(LLONG_MAX >> PAGE_SHIFT))
/* Values are 0 to 3. */
#define MEMFD_RANGES_BITS	2
#define MEMFD_RANGES_VALUES	BIT(MEMFD_RANGES_BITS)

/*
 * What memfd_ranges_leaf() returns: the lowest page in the lowest bits. The product
 * of a value and MEMFD_RANGES_ONES is a word of pages that all have that value.
 */
#define MEMFD_RANGES_LEAF_PAGES	512
#define MEMFD_RANGES_WORD_PAGES	(BITS_PER_LONG / MEMFD_RANGES_BITS)
#define MEMFD_RANGES_LEAF_WORDS	(MEMFD_RANGES_LEAF_PAGES / MEMFD_RANGES_WORD_PAGES)
#define MEMFD_RANGES_ONES	(~0UL / (MEMFD_RANGES_VALUES - 1))

/* A tagged value, in &memfd_ranges.root or a slot below it. */
#define MEMFD_RANGES_IS_VALUE	1UL
#define MEMFD_RANGES_VALUE_SHIFT 1

/**
 * struct memfd_ranges - values of all page offsets
 * @root: Tagged value, or pointer to the topmost node. Read under RCU or the
 *        owner's lock, written under the owner's lock.
 * @bytes: Memory of all nodes and leaves. Guarded by the owner's lock.
 * @undo: A change that may still be taken back; while it is set, nodes that
 *        have become uniform are kept. Guarded by the owner's lock.
 * @holds: Others for whom they are kept, see memfd_ranges_hold(). Likewise.
 */
struct memfd_ranges {
	void __rcu *root;
	size_t bytes;
	struct memfd_ranges_undo *undo;
	unsigned int holds;
};

struct memfd_ranges_chunk;
struct memfd_ranges_undo;

/**
 * struct memfd_ranges_pool - memory for changes, got without the owner's lock
 * @chunks: For nodes and leaves.
 * @undo: For memfd_ranges_try_set().
 * @undo_slots: Slots that it has, or needs. All zero at first.
 */
struct memfd_ranges_pool {
	struct memfd_ranges_chunk *chunks;
	struct memfd_ranges_undo *undo;
	unsigned int undo_slots;
};

/**
 * struct memfd_ranges_word - where the value of a few pages can be changed in place
 * @at: The word.
 * @to: What it becomes.
 * @value: What the first of them has now.
 */
struct memfd_ranges_word {
	unsigned long *at;
	unsigned long to;
	unsigned int value;
};

/**
 * memfd_ranges_mask() - the bits of pages in a word
 * @first: First page offset.
 * @last: Last page offset, in the same word.
 *
 * Return: The mask.
 */
static inline unsigned long memfd_ranges_mask(pgoff_t first, pgoff_t last)
{
	return GENMASK(last % MEMFD_RANGES_WORD_PAGES * MEMFD_RANGES_BITS +
		       MEMFD_RANGES_BITS - 1,
		       first % MEMFD_RANGES_WORD_PAGES * MEMFD_RANGES_BITS);
}

int memfd_ranges_refill(struct memfd_ranges_pool *pool, gfp_t gfp);
void memfd_ranges_drain(struct memfd_ranges_pool *pool);
void memfd_ranges_init(struct memfd_ranges *ranges);
void memfd_ranges_destroy(struct memfd_ranges *ranges);
unsigned int memfd_ranges_get_run(struct memfd_ranges *ranges, pgoff_t index,
				  pgoff_t *last);
bool memfd_ranges_find(struct memfd_ranges *ranges, unsigned int values,
		       pgoff_t *first, pgoff_t *last);
int memfd_ranges_prepare(struct memfd_ranges *ranges, pgoff_t first,
			 pgoff_t last, unsigned int value,
			 struct memfd_ranges_pool *pool);
void memfd_ranges_unprepare(struct memfd_ranges *ranges, pgoff_t first,
			    pgoff_t last);
void memfd_ranges_hold(struct memfd_ranges *ranges);
void memfd_ranges_release(struct memfd_ranges *ranges, pgoff_t first,
			  pgoff_t last);
void memfd_ranges_set(struct memfd_ranges *ranges, pgoff_t first, pgoff_t last,
		      unsigned int value);
unsigned long *memfd_ranges_leaf(struct memfd_ranges *ranges, pgoff_t index);
void memfd_ranges_fold(struct memfd_ranges *ranges, pgoff_t index);
bool memfd_ranges_word(struct memfd_ranges *ranges, pgoff_t first, pgoff_t last,
		       unsigned int value, struct memfd_ranges_word *word);
int memfd_ranges_change(struct memfd_ranges *ranges, pgoff_t first,
			pgoff_t last, unsigned int value,
			struct memfd_ranges_pool *pool);
int memfd_ranges_try_set(struct memfd_ranges *ranges, pgoff_t first,
			 pgoff_t last, unsigned int value,
			 struct memfd_ranges_pool *pool);
void memfd_ranges_try_end(struct memfd_ranges *ranges, bool keep);
void memfd_ranges_translate(struct memfd_ranges *ranges,
			    const u8 to[MEMFD_RANGES_VALUES]);
bool memfd_ranges_empty(struct memfd_ranges *ranges);

/**
 * memfd_ranges_get() - value of one page offset
 * @ranges: The map.
 * @index: Page offset, up to MEMFD_RANGES_LAST.
 *
 * Context: Any; under rcu_read_lock() or the owner's lock.
 * Return: The value, 0 to 3.
 */
static inline unsigned int memfd_ranges_get(struct memfd_ranges *ranges,
					    pgoff_t index)
{
	unsigned long root;

	/* A file that has nothing protected is to cost nothing. */
	root = (unsigned long)rcu_access_pointer(ranges->root);
	if (root & MEMFD_RANGES_IS_VALUE)
		return root >> MEMFD_RANGES_VALUE_SHIFT;
	return memfd_ranges_get_run(ranges, index, NULL);
}

#endif /* _MM_MEMFD_RANGES_H */
