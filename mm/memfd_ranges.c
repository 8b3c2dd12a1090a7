// SPDX-License-Identifier: GPL-2.0-only
/*
 * A map from page offsets to small values, for memfd_protect().
 *
 * Structure: a radix tree. A slot either holds a value that all offsets below it
 * have, as a tagged word, or points to a node of 64 slots. The lowest level is
 * a leaf: 512 pages with two bits each. The tree is as high as the highest offset
 * at which a range begins or ends needs; all offsets above have one value, which
 * is kept in the word that points to the topmost node. So a range costs at most
 * one path of nodes for each of its two ends, whatever its length, and values
 * that alternate from page to page cost two bits a page. Nodes whose slots have
 * become equal are folded into their parent's slot.
 *
 * Locking: the owner serialises all changes with a lock under which it can
 * sleep. Readers need RCU only.
 *
 * Why readers are right: a reader goes down through words that change in one
 * store each. It sees the old word or the new one, and each leads to a complete
 * subtree: a new node is filled before it is published, a node that was taken
 * out is never changed again nor put back, except by undo, and is freed after a
 * grace period. For one page offset the value read is thus one that it had at
 * some moment during the call. Nothing is promised about several offsets read in
 * one call of memfd_ranges_get_run(), other than that each had the value at some
 * moment during it.
 *
 * Failure: everything that allocates comes first and changes no value (a slot is
 * split into 64 equal ones). So memfd_ranges_set() after a successful
 * memfd_ranges_prepare() cannot fail.
 *
 * Memory: nobody waits for memory with the owner's lock held, because others wait
 * for that lock who have memory enough. What can be had without waiting is taken
 * under the lock. If that fails, the owner drops the lock, fills a pool, and
 * tries again: so each memory cgroup is slow for itself only.
 */

#include <linux/bits.h>
#include <linux/bug.h>
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "memfd_ranges.h"

#define LEAF_PAGES	MEMFD_RANGES_LEAF_PAGES
#define LEAF_SHIFT	const_ilog2(LEAF_PAGES)
#define NODE_SHIFT	6
#define NODE_SLOTS	BIT(NODE_SHIFT)
#define MAX_SHIFT	(LEAF_SHIFT + 7 * NODE_SHIFT)

/*
 * Words of slots: bit 0 tells a value, which is in the bits above. Otherwise it
 * is a pointer, and the low bits that its alignment leaves are the level of what
 * it points to, 0 for a leaf, and, at the root, the value of all offsets above.
 */
#define LEVEL_BIT	1
#define LEVEL_MASK	7UL
#define TAIL_BIT	4
#define TAG_MASK	((VALUE_MASK << TAIL_BIT) | (LEVEL_MASK << LEVEL_BIT))

/* What a pool gets at a time: one end of a range in a tree of full height. */
#define POOL_REFILL	9

#define VALUE_BITS	MEMFD_RANGES_BITS
#define VALUE_MASK	(BIT(VALUE_BITS) - 1)
#define WORD_PAGES	MEMFD_RANGES_WORD_PAGES
#define WORD_ONES	MEMFD_RANGES_ONES

static_assert(MEMFD_RANGES_LAST >> MAX_SHIFT == 0);

/**
 * struct memfd_ranges_leaf - 512 page offsets
 * @words: Two bits a page, 32 pages a word, the lowest page in the lowest bits.
 *         One store changes a page.
 */
struct memfd_ranges_leaf {
	unsigned long words[MEMFD_RANGES_LEAF_WORDS];
};

/* What kmalloc() makes of a size that is a power of two has that alignment. */
static_assert(sizeof(struct memfd_ranges_leaf) > TAG_MASK);

/**
 * struct memfd_ranges_node - 64 slots
 * @slots: Tagged values or pointers, as &memfd_ranges.root.
 */
struct memfd_ranges_node {
	void __rcu *slots[NODE_SLOTS];
};

/**
 * struct memfd_ranges_undo - how to take back one change
 * @first: First page offset of the change.
 * @last: Last page offset of it.
 * @value: The new value.
 * @nr: Elements of @saved in use.
 * @nr_leaves: Elements of @leaf in use.
 * @tail_set: The value above the tree was replaced.
 * @tail: What it was.
 * @leaf: The leaves at the two ends, which are changed in place.
 * @saved: Slots that were replaced as a whole.
 */
struct memfd_ranges_undo {
	pgoff_t first;
	pgoff_t last;
	unsigned int value;
	unsigned int nr;
	unsigned int nr_leaves;
	bool tail_set;
	u8 tail;
	struct {
		struct memfd_ranges_leaf *leaf;
		struct memfd_ranges_leaf old;
		pgoff_t base;
	} leaf[2];
	struct {
		void __rcu **slot;
		void *old;
	} saved[];
};

static inline void *mk_value(unsigned int value)
{
	return (void *)((unsigned long)value << MEMFD_RANGES_VALUE_SHIFT |
			MEMFD_RANGES_IS_VALUE);
}

static inline bool is_value(const void *entry)
{
	return (unsigned long)entry & MEMFD_RANGES_IS_VALUE;
}

static inline unsigned int to_value(const void *entry)
{
	return (unsigned long)entry >> MEMFD_RANGES_VALUE_SHIFT;
}

static inline void *mk_pointer(void *to, unsigned int shift)
{
	unsigned long level = (shift - LEAF_SHIFT) / NODE_SHIFT;

	return (void *)((unsigned long)to | level << LEVEL_BIT);
}

static inline void *to_pointer(const void *entry)
{
	return (void *)((unsigned long)entry & ~TAG_MASK);
}

/* Of a pointer: what it points to spans 1 << shift pages. */
static inline unsigned int to_shift(const void *entry)
{
	return LEAF_SHIFT + NODE_SHIFT *
	       ((unsigned long)entry >> LEVEL_BIT & LEVEL_MASK);
}

/* Of the root, if it is a pointer. */
static inline unsigned int to_tail(const void *entry)
{
	return (unsigned long)entry >> TAIL_BIT & VALUE_MASK;
}

static inline void *with_tail(const void *entry, unsigned int value)
{
	return (void *)(((unsigned long)entry & ~(VALUE_MASK << TAIL_BIT)) |
			(unsigned long)value << TAIL_BIT);
}

/* For the owner, who holds its lock. */
static inline void *slot_read(void __rcu **slot)
{
	return rcu_dereference_protected(*slot, true);
}

static inline pgoff_t span_last(pgoff_t index, unsigned int shift)
{
	return index | ((1UL << shift) - 1);
}

static inline unsigned int slot_of(pgoff_t index, unsigned int shift)
{
	return (index >> shift) & (NODE_SLOTS - 1);
}

/* The length of the run of equal values that starts at @index in @leaf. */
static unsigned int leaf_get_run(const struct memfd_ranges_leaf *leaf,
				 pgoff_t index, pgoff_t *last)
{
	unsigned int page = index & (LEAF_PAGES - 1);
	unsigned int i = page / WORD_PAGES;
	unsigned int shift = page % WORD_PAGES * VALUE_BITS;
	unsigned long word = READ_ONCE(leaf->words[i]) >> shift;
	unsigned int value = word & VALUE_MASK;
	unsigned long differ;

	if (!last)
		return value;
	differ = (word ^ (value * WORD_ONES)) & (~0UL >> shift);
	page = page - page % WORD_PAGES;
	while (!differ && ++i < ARRAY_SIZE(leaf->words)) {
		page += WORD_PAGES;
		shift = 0;
		differ = READ_ONCE(leaf->words[i]) ^ (value * WORD_ONES);
	}
	if (differ)
		page += (__ffs(differ) + shift) / VALUE_BITS;
	else
		page = LEAF_PAGES;
	*last = (index & ~(LEAF_PAGES - 1)) + page - 1;
	return value;
}

/* @word with a value for the pages @first to @last, which both are in it. */
static unsigned long word_with(unsigned long word, pgoff_t first, pgoff_t last,
			       unsigned int value)
{
	unsigned long mask = memfd_ranges_mask(first, last);

	return (word & ~mask) | (value * WORD_ONES & mask);
}

static void leaf_set(struct memfd_ranges_leaf *leaf, pgoff_t first,
		     pgoff_t last, unsigned int value)
{
	pgoff_t end;

	for (; first <= last; first = end + 1) {
		unsigned long *word = &leaf->words[first % LEAF_PAGES / WORD_PAGES];

		end = min(last, first | (WORD_PAGES - 1));
		WRITE_ONCE(*word, word_with(*word, first, end, value));
	}
}

/* Frees what @entry points to. */
static void free_entry(struct memfd_ranges *ranges, void *entry)
{
	struct memfd_ranges_node *node = to_pointer(entry);
	unsigned int i;

	if (is_value(entry))
		return;
	if (to_shift(entry) == LEAF_SHIFT) {
		ranges->bytes -= sizeof(struct memfd_ranges_leaf);
	} else {
		for (i = 0; i < NODE_SLOTS; i++)
			free_entry(ranges, slot_read(&node->slots[i]));
		ranges->bytes -= sizeof(*node);
	}
	kvfree_rcu_mightsleep(node);
}

/* A node is larger than a leaf. */
#define CHUNK_SIZE	sizeof(struct memfd_ranges_node)

/**
 * struct memfd_ranges_chunk - memory in a pool, enough for a node or a leaf
 * @next: The next one.
 */
struct memfd_ranges_chunk {
	struct memfd_ranges_chunk *next;
};

/* Memory for a node or a leaf, without waiting for it if there is a pool. */
static void *get_chunk(struct memfd_ranges_pool *pool, size_t size)
{
	struct memfd_ranges_chunk *chunk;

	if (!pool)
		return kmalloc(size, GFP_KERNEL_ACCOUNT);
	chunk = pool->chunks;
	if (!chunk)
		return kmalloc(size, GFP_NOWAIT | __GFP_NOWARN | __GFP_ACCOUNT);
	pool->chunks = chunk->next;
	return chunk;
}

/**
 * memfd_ranges_refill() - get memory for a change that failed for lack of it
 * @pool: What memfd_ranges_prepare() or memfd_ranges_try_set() was given.
 * @gfp: 0, or __GFP_NOFAIL if the caller cannot do without.
 *
 * Each call adds to the pool, so that the change succeeds after a few at most.
 *
 * Context: May sleep; the owner's lock is not held.
 * Return: 0 or -ENOMEM.
 */
int memfd_ranges_refill(struct memfd_ranges_pool *pool, gfp_t gfp)
{
	unsigned int i;

	gfp |= GFP_KERNEL_ACCOUNT;
	if (pool->undo_slots && !pool->undo) {
		pool->undo = kvzalloc(struct_size(pool->undo, saved,
						  pool->undo_slots), gfp);
		if (!pool->undo)
			return -ENOMEM;
	}
	for (i = 0; i < POOL_REFILL; i++) {
		struct memfd_ranges_chunk *chunk;

		chunk = kmalloc(CHUNK_SIZE, gfp);
		if (!chunk)
			return -ENOMEM;
		chunk->next = pool->chunks;
		pool->chunks = chunk;
	}
	return 0;
}

/**
 * memfd_ranges_drain() - free what is left in a pool
 * @pool: The pool.
 *
 * Context: May sleep.
 */
void memfd_ranges_drain(struct memfd_ranges_pool *pool)
{
	struct memfd_ranges_chunk *chunk;

	while ((chunk = pool->chunks)) {
		pool->chunks = chunk->next;
		kfree(chunk);
	}
	if (pool->undo)
		kvfree(pool->undo);
	pool->undo = NULL;
}

/* A pointer to a new node or leaf in which everything has the value of @entry. */
static void *new_entry(struct memfd_ranges *ranges, void *entry,
		       unsigned int shift, struct memfd_ranges_pool *pool)
{
	struct memfd_ranges_node *node;
	struct memfd_ranges_leaf *leaf;
	unsigned int i;

	if (shift == LEAF_SHIFT) {
		leaf = get_chunk(pool, sizeof(*leaf));
		if (!leaf)
			return NULL;
		for (i = 0; i < ARRAY_SIZE(leaf->words); i++)
			leaf->words[i] = to_value(entry) * WORD_ONES;
		ranges->bytes += sizeof(*leaf);
		return mk_pointer(leaf, shift);
	}
	node = get_chunk(pool, sizeof(*node));
	if (!node)
		return NULL;
	for (i = 0; i < NODE_SLOTS; i++)
		RCU_INIT_POINTER(node->slots[i], entry);
	ranges->bytes += sizeof(*node);
	return mk_pointer(node, shift);
}

/**
 * memfd_ranges_init() - all page offsets have value 0
 * @ranges: The map.
 */
void memfd_ranges_init(struct memfd_ranges *ranges)
{
	RCU_INIT_POINTER(ranges->root, mk_value(0));
	ranges->bytes = 0;
	ranges->undo = NULL;
	ranges->holds = 0;
}

/**
 * memfd_ranges_destroy() - free all memory
 * @ranges: The map; all its values are 0 afterwards.
 *
 * Context: May sleep. Owner's lock, or no other user is left.
 */
void memfd_ranges_destroy(struct memfd_ranges *ranges)
{
	void *entry = slot_read(&ranges->root);

	WARN_ON_ONCE(ranges->undo);
	rcu_assign_pointer(ranges->root, mk_value(0));
	free_entry(ranges, entry);
}

/**
 * memfd_ranges_get_run() - value of a page offset, and how far it reaches
 * @ranges: The map.
 * @index: Page offset, up to MEMFD_RANGES_LAST.
 * @last: Out, optional: @index to *@last have the same value. The run may go on
 *        behind it.
 *
 * Context: Any; under rcu_read_lock() or the owner's lock.
 * Return: The value, 0 to 3.
 */
unsigned int memfd_ranges_get_run(struct memfd_ranges *ranges, pgoff_t index,
				  pgoff_t *last)
{
	void *entry = rcu_dereference_check(ranges->root, true);
	unsigned int shift = MAX_SHIFT;

	if (!is_value(entry)) {
		shift = to_shift(entry);
		if (index >> shift) {
			shift = MAX_SHIFT;
			entry = mk_value(to_tail(entry));
		}
	}
	while (!is_value(entry)) {
		struct memfd_ranges_node *node = to_pointer(entry);

		if (shift == LEAF_SHIFT)
			return leaf_get_run(to_pointer(entry), index, last);
		shift -= NODE_SHIFT;
		entry = rcu_dereference_check(node->slots[slot_of(index, shift)],
					      true);
	}
	if (last)
		*last = span_last(index, shift);
	return to_value(entry);
}

/**
 * memfd_ranges_find() - next whole run of pages that have one of some values
 * @ranges: The map.
 * @values: Bit set of values to look for: bit 0 for value 0 and so on.
 * @first: In: first page offset to look at. Out: first one of the run.
 * @last: In: last page offset to look at. Out: last one of the run.
 *
 * The run has one value; it is as long as possible within the limits given.
 *
 * Context: Owner's lock.
 * Return: True if there is one.
 */
bool memfd_ranges_find(struct memfd_ranges *ranges, unsigned int values,
		       pgoff_t *first, pgoff_t *last)
{
	pgoff_t limit = *last, index = *first, end;
	unsigned int value;

	if (index == limit)
		return values & BIT(memfd_ranges_get(ranges, index));
	for (;;) {
		if (index > limit)
			return false;
		value = memfd_ranges_get_run(ranges, index, &end);
		if (values & BIT(value))
			break;
		index = end + 1;
	}
	*first = index;
	while (end < limit) {
		pgoff_t next;

		if (memfd_ranges_get_run(ranges, end + 1, &next) != value)
			break;
		end = next;
	}
	*last = min(end, limit);
	return true;
}

/* The topmost level that a tree needs for a boundary in front of @index. */
static unsigned int shift_for(pgoff_t index)
{
	unsigned int shift = LEAF_SHIFT;

	while (index > 1UL << shift)
		shift += NODE_SHIFT;
	return shift;
}

/* Makes the tree higher until a boundary in front of @index fits in. */
static int grow(struct memfd_ranges *ranges, pgoff_t index,
		struct memfd_ranges_pool *pool)
{
	void *root = slot_read(&ranges->root), *entry;
	struct memfd_ranges_node *node;
	unsigned int tail;

	if (is_value(root)) {
		tail = to_value(root);
		entry = new_entry(ranges, root, shift_for(index), pool);
		if (!entry)
			return -ENOMEM;
		rcu_assign_pointer(ranges->root, with_tail(entry, tail));
		return 0;
	}
	tail = to_tail(root);
	while (index > 1UL << to_shift(root)) {
		entry = new_entry(ranges, mk_value(tail),
				  to_shift(root) + NODE_SHIFT, pool);
		if (!entry)
			return -ENOMEM;
		node = to_pointer(entry);
		RCU_INIT_POINTER(node->slots[0], with_tail(root, 0));
		root = with_tail(entry, tail);
		rcu_assign_pointer(ranges->root, root);
	}
	return 0;
}

/* Splits slots until page offset @index is the first one of a slot. */
static int split_at(struct memfd_ranges *ranges, pgoff_t index,
		    unsigned int value, struct memfd_ranges_pool *pool)
{
	void __rcu **slot = &ranges->root;
	unsigned int shift;
	void *entry;

	if (!index || index > MEMFD_RANGES_LAST)
		return 0;
	/* Nothing is split where the value is the new one already. */
	if (memfd_ranges_get(ranges, index) == value &&
	    memfd_ranges_get(ranges, index - 1) == value)
		return 0;
	if (grow(ranges, index, pool))
		return -ENOMEM;
	entry = slot_read(&ranges->root);
	shift = to_shift(entry);
	/* Between the tree and what is above it. */
	if (index == 1UL << shift)
		return 0;
	while (index & ((1UL << shift) - 1)) {
		struct memfd_ranges_node *node;

		entry = slot_read(slot);
		if (is_value(entry)) {
			entry = new_entry(ranges, entry, shift, pool);
			if (!entry)
				return -ENOMEM;
			rcu_assign_pointer(*slot, entry);
		}
		if (shift == LEAF_SHIFT)
			return 0;
		node = to_pointer(entry);
		shift -= NODE_SHIFT;
		slot = &node->slots[slot_of(index, shift)];
	}
	return 0;
}

/**
 * memfd_ranges_prepare() - allocate what memfd_ranges_set() needs
 * @ranges: The map.
 * @first: First page offset that will be set.
 * @last: Last page offset that will be set, up to MEMFD_RANGES_LAST.
 * @value: The value that it will get.
 * @pool: Memory that does for what cannot be had without waiting. NULL: wait.
 *
 * No value changes. What is allocated is part of the map, and goes with the
 * next change that makes it superfluous, or with memfd_ranges_unprepare().
 *
 * Context: Owner's lock, which must be held until after memfd_ranges_set(), unless
 * memfd_ranges_hold() keeps what was prepared.
 * Return: 0. -ENOMEM: memfd_ranges_refill(), and try again.
 */
int memfd_ranges_prepare(struct memfd_ranges *ranges, pgoff_t first,
			 pgoff_t last, unsigned int value,
			 struct memfd_ranges_pool *pool)
{
	int err = split_at(ranges, first, value, pool);

	return err ?: split_at(ranges, last + 1, value, pool);
}

/**
 * memfd_ranges_unprepare() - what memfd_ranges_prepare() has prepared is not needed
 * @ranges: The map.
 * @first: First page offset that was prepared.
 * @last: Last page offset that was prepared.
 *
 * Nor is what it had prepared before it failed. No value changes.
 *
 * Context: May sleep. Owner's lock.
 */
void memfd_ranges_unprepare(struct memfd_ranges *ranges, pgoff_t first,
			    pgoff_t last)
{
	memfd_ranges_fold(ranges, first);
	if (last < MEMFD_RANGES_LAST)
		memfd_ranges_fold(ranges, last + 1);
}

/**
 * memfd_ranges_hold() - what memfd_ranges_prepare() has prepared is to stay
 * @ranges: The map.
 *
 * Until memfd_ranges_release(), memfd_ranges_set() of the range that was prepared
 * cannot fail, although the owner's lock is dropped in between, if nobody else
 * changes values in it.
 *
 * Context: Owner's lock, held since memfd_ranges_prepare().
 */
void memfd_ranges_hold(struct memfd_ranges *ranges)
{
	ranges->holds++;
}

/**
 * memfd_ranges_release() - undo memfd_ranges_hold()
 * @ranges: The map.
 * @first: First page offset that was prepared.
 * @last: Last page offset that was prepared.
 *
 * Context: May sleep. Owner's lock.
 */
void memfd_ranges_release(struct memfd_ranges *ranges, pgoff_t first,
			  pgoff_t last)
{
	ranges->holds--;
	/* What had to be kept so far. */
	memfd_ranges_unprepare(ranges, first, last);
}

/* The value that all below @entry has, as a slot's word; or NULL. */
static void *uniform(void *entry)
{
	struct memfd_ranges_leaf *leaf = to_pointer(entry);
	struct memfd_ranges_node *node = to_pointer(entry);
	void *first;
	unsigned int i;

	if (to_shift(entry) == LEAF_SHIFT) {
		unsigned int value = leaf->words[0] & VALUE_MASK;

		for (i = 0; i < ARRAY_SIZE(leaf->words); i++)
			if (leaf->words[i] != value * WORD_ONES)
				return NULL;
		return mk_value(value);
	}
	first = slot_read(&node->slots[0]);
	if (!is_value(first))
		return NULL;
	for (i = 1; i < NODE_SLOTS; i++)
		if (slot_read(&node->slots[i]) != first)
			return NULL;
	return first;
}

/* Folds *@slot, which is not the root, into a value if it has but one. */
static void fold(struct memfd_ranges *ranges, void __rcu **slot)
{
	void *entry = slot_read(slot), *value;

	if (is_value(entry) || ranges->undo || ranges->holds)
		return;
	value = uniform(entry);
	if (!value)
		return;
	rcu_assign_pointer(*slot, value);
	free_entry(ranges, entry);
}

/* Makes the tree lower, if all but the first slot are as what is above it. */
static bool shrink(struct memfd_ranges *ranges)
{
	void *root = slot_read(&ranges->root), *first;
	struct memfd_ranges_node *node = to_pointer(root);
	unsigned int i, tail = to_tail(root);

	if (to_shift(root) == LEAF_SHIFT)
		return false;
	for (i = 1; i < NODE_SLOTS; i++)
		if (slot_read(&node->slots[i]) != mk_value(tail))
			return false;
	first = slot_read(&node->slots[0]);
	if (is_value(first))
		return false;
	rcu_assign_pointer(ranges->root, with_tail(first, tail));
	ranges->bytes -= sizeof(*node);
	kvfree_rcu_mightsleep(node);
	return true;
}

static void fold_root(struct memfd_ranges *ranges)
{
	void *root = slot_read(&ranges->root);

	if (is_value(root) || ranges->undo || ranges->holds)
		return;
	while (shrink(ranges))
		;
	root = slot_read(&ranges->root);
	if (uniform(root) != mk_value(to_tail(root)))
		return;
	rcu_assign_pointer(ranges->root, mk_value(to_tail(root)));
	free_entry(ranges, root);
}

/* Puts @entry into *@slot. What was there is recorded in @undo, or freed. */
static void replace(struct memfd_ranges *ranges, void __rcu **slot,
		    void *entry, struct memfd_ranges_undo *undo)
{
	void *old = slot_read(slot);

	rcu_assign_pointer(*slot, entry);
	if (undo) {
		undo->saved[undo->nr].slot = slot;
		undo->saved[undo->nr++].old = old;
	} else {
		free_entry(ranges, old);
	}
}

static void set_slot(struct memfd_ranges *ranges, void __rcu **slot,
		     pgoff_t base, unsigned int shift, pgoff_t first,
		     pgoff_t last, unsigned int value,
		     struct memfd_ranges_undo *undo);

/* Sets the part of [@first, @last] that @entry, a pointer, spans. */
static void set_below(struct memfd_ranges *ranges, void *entry, pgoff_t base,
		      pgoff_t first, pgoff_t last, unsigned int value,
		      struct memfd_ranges_undo *undo)
{
	struct memfd_ranges_leaf *leaf = to_pointer(entry);
	struct memfd_ranges_node *node = to_pointer(entry);
	unsigned int shift = to_shift(entry);
	unsigned int i;

	first = max(first, base);
	last = min(last, span_last(base, shift));
	if (shift == LEAF_SHIFT) {
		if (undo) {
			undo->leaf[undo->nr_leaves].leaf = leaf;
			undo->leaf[undo->nr_leaves].base = base;
			undo->leaf[undo->nr_leaves++].old = *leaf;
		}
		leaf_set(leaf, first, last, value);
		return;
	}
	shift -= NODE_SHIFT;
	for (i = slot_of(first, shift); i <= slot_of(last, shift); i++)
		set_slot(ranges, &node->slots[i], base + ((pgoff_t)i << shift),
			 shift, first, last, value, undo);
}

/* Sets the part of [@first, @last] that *@slot spans, from @base on. */
static void set_slot(struct memfd_ranges *ranges, void __rcu **slot,
		     pgoff_t base, unsigned int shift, pgoff_t first,
		     pgoff_t last, unsigned int value,
		     struct memfd_ranges_undo *undo)
{
	void *entry = slot_read(slot);

	if (entry == mk_value(value))
		return;
	if (first <= base && last >= span_last(base, shift)) {
		replace(ranges, slot, mk_value(value), undo);
		return;
	}
	/* memfd_ranges_prepare() split whatever is set in part. */
	if (WARN_ON_ONCE(is_value(entry)))
		return;
	set_below(ranges, entry, base, first, last, value, undo);
	fold(ranges, slot);
}

static void set_range(struct memfd_ranges *ranges, pgoff_t first, pgoff_t last,
		      unsigned int value, struct memfd_ranges_undo *undo)
{
	void *root = slot_read(&ranges->root);

	if (root == mk_value(value))
		return;
	if (!first && last == MEMFD_RANGES_LAST) {
		replace(ranges, &ranges->root, mk_value(value), undo);
		return;
	}
	if (WARN_ON_ONCE(is_value(root)))
		return;
	if (first < 1UL << to_shift(root))
		set_below(ranges, root, 0, first, last, value, undo);
	if (last == MEMFD_RANGES_LAST && to_tail(root) != value) {
		/* Its nodes stay, so nothing is to be freed or recorded. */
		if (undo) {
			undo->tail_set = true;
			undo->tail = to_tail(root);
		}
		rcu_assign_pointer(ranges->root, with_tail(root, value));
	}
	fold_root(ranges);
}

/**
 * memfd_ranges_set() - give a range a value
 * @ranges: The map.
 * @first: First page offset.
 * @last: Last page offset, up to MEMFD_RANGES_LAST.
 * @value: The value, 0 to 3.
 *
 * Context: May sleep. Owner's lock, held since memfd_ranges_prepare() for
 * the same range and value.
 */
void memfd_ranges_set(struct memfd_ranges *ranges, pgoff_t first, pgoff_t last,
		      unsigned int value)
{
	set_range(ranges, first, last, value, NULL);
}

/**
 * memfd_ranges_leaf() - the values of a leaf, to be changed in place
 * @ranges: The map.
 * @index: One of its page offsets, which begin at a multiple of
 *	   MEMFD_RANGES_LEAF_PAGES.
 *
 * Who changes words of it calls memfd_ranges_fold() then.
 *
 * Context: Owner's lock, no memfd_ranges_try_set() undecided for pages that are
 * changed.
 * Return: MEMFD_RANGES_LEAF_WORDS words. NULL if all of its page offsets have one
 * value and need no memory.
 */
unsigned long *memfd_ranges_leaf(struct memfd_ranges *ranges, pgoff_t index)
{
	void *entry = slot_read(&ranges->root);
	struct memfd_ranges_leaf *leaf;
	unsigned int shift;

	if (is_value(entry))
		return NULL;
	shift = to_shift(entry);
	if (index >> shift)
		return NULL;
	while (shift > LEAF_SHIFT) {
		struct memfd_ranges_node *node = to_pointer(entry);

		shift -= NODE_SHIFT;
		entry = slot_read(&node->slots[slot_of(index, shift)]);
		if (is_value(entry))
			return NULL;
	}
	leaf = to_pointer(entry);
	return leaf->words;
}

/**
 * memfd_ranges_fold() - free nodes and a leaf that are superfluous
 * @ranges: The map.
 * @index: A page offset whose value has changed in place.
 *
 * Context: May sleep. Owner's lock.
 */
void memfd_ranges_fold(struct memfd_ranges *ranges, pgoff_t index)
{
	/* Nothing changes, but folds on the way. */
	memfd_ranges_set(ranges, index, index, memfd_ranges_get(ranges, index));
}

/**
 * memfd_ranges_word() - find where a few pages get a value by one store
 * @ranges: The map.
 * @first: First page offset.
 * @last: Last page offset.
 * @value: The value, 0 to 3.
 * @word: Is set: WRITE_ONCE(*word->at, word->to) changes them.
 *
 * They are in a word of a leaf, which does not become uniform by that: most changes
 * are so. No memory is needed, and none becomes superfluous.
 *
 * Context: Any. Owner's lock, held until after the store.
 * Return: False if it is not so: memfd_ranges_change().
 */
bool memfd_ranges_word(struct memfd_ranges *ranges, pgoff_t first, pgoff_t last,
		       unsigned int value, struct memfd_ranges_word *word)
{
	unsigned long *words;

	if (first / WORD_PAGES != last / WORD_PAGES)
		return false;
	words = memfd_ranges_leaf(ranges, first);
	if (!words)
		return false;
	word->at = words + first % LEAF_PAGES / WORD_PAGES;
	word->to = word_with(*word->at, first, last, value);
	word->value = *word->at >> first % WORD_PAGES * VALUE_BITS & VALUE_MASK;
	return word->to != value * WORD_ONES;
}

/**
 * memfd_ranges_change() - give a range a value, if there is memory
 * @ranges: The map.
 * @first: First page offset.
 * @last: Last page offset, up to MEMFD_RANGES_LAST.
 * @value: The value, 0 to 3.
 * @pool: As for memfd_ranges_prepare().
 *
 * Context: May sleep. Owner's lock.
 * Return: 0, or -ENOMEM and nothing changed: memfd_ranges_refill(), and try again.
 */
int memfd_ranges_change(struct memfd_ranges *ranges, pgoff_t first,
			pgoff_t last, unsigned int value,
			struct memfd_ranges_pool *pool)
{
	struct memfd_ranges_word word;
	int err;

	if (memfd_ranges_word(ranges, first, last, value, &word)) {
		WRITE_ONCE(*word.at, word.to);
		return 0;
	}
	err = memfd_ranges_prepare(ranges, first, last, value, pool);
	if (!err)
		memfd_ranges_set(ranges, first, last, value);
	return err;
}

static unsigned int count_below(void *entry, pgoff_t base, pgoff_t first,
				pgoff_t last, unsigned int value);

/* The number of slots that set_slot() replaces as a whole. */
static unsigned int count_slot(void *entry, pgoff_t base, unsigned int shift,
			       pgoff_t first, pgoff_t last, unsigned int value)
{
	if (entry == mk_value(value))
		return 0;
	if (first <= base && last >= span_last(base, shift))
		return 1;
	return is_value(entry) ? 0 : count_below(entry, base, first, last,
						 value);
}

static unsigned int count_below(void *entry, pgoff_t base, pgoff_t first,
				pgoff_t last, unsigned int value)
{
	struct memfd_ranges_node *node = to_pointer(entry);
	unsigned int shift = to_shift(entry);
	unsigned int i, nr = 0;

	if (shift == LEAF_SHIFT)
		return 0;
	first = max(first, base);
	last = min(last, span_last(base, shift));
	shift -= NODE_SHIFT;
	for (i = slot_of(first, shift); i <= slot_of(last, shift); i++)
		nr += count_slot(slot_read(&node->slots[i]),
				 base + ((pgoff_t)i << shift), shift, first,
				 last, value);
	return nr;
}

static unsigned int count_range(struct memfd_ranges *ranges, pgoff_t first,
				pgoff_t last, unsigned int value)
{
	void *root = slot_read(&ranges->root);

	if (root == mk_value(value))
		return 0;
	if (!first && last == MEMFD_RANGES_LAST)
		return 1;
	if (is_value(root) || first >= 1UL << to_shift(root))
		return 0;
	return count_below(root, 0, first, last, value);
}

static struct memfd_ranges_undo *get_undo(struct memfd_ranges_pool *pool,
					  unsigned int nr)
{
	struct memfd_ranges_undo *undo;

	if (!pool)
		return kvzalloc(struct_size(undo, saved, nr),
				GFP_KERNEL_ACCOUNT);
	undo = pool->undo;
	pool->undo = NULL;
	if (undo && pool->undo_slots >= nr)
		return undo;
	kvfree(undo);
	pool->undo_slots = nr;
	return kzalloc(struct_size(undo, saved, nr),
		       GFP_NOWAIT | __GFP_NOWARN | __GFP_ACCOUNT);
}

/**
 * memfd_ranges_try_set() - give a range a value, so that it can be taken back
 * @ranges: The map.
 * @first: First page offset.
 * @last: Last page offset, up to MEMFD_RANGES_LAST.
 * @value: The value, 0 to 3.
 * @pool: As for memfd_ranges_prepare().
 *
 * memfd_ranges_try_end() must follow. In between nobody may change a value
 * in [@first, @last]; other values may be changed.
 *
 * Context: May sleep. Owner's lock, which may be dropped afterwards.
 * Return: 0. -ENOMEM: nothing changed; memfd_ranges_refill(), and try again.
 */
int memfd_ranges_try_set(struct memfd_ranges *ranges, pgoff_t first,
			 pgoff_t last, unsigned int value,
			 struct memfd_ranges_pool *pool)
{
	struct memfd_ranges_undo *undo;
	unsigned int nr;

	if (WARN_ON_ONCE(ranges->undo))
		return -ENOMEM;
	if (memfd_ranges_prepare(ranges, first, last, value, pool))
		return -ENOMEM;
	nr = count_range(ranges, first, last, value);
	undo = get_undo(pool, nr);
	if (!undo)
		return -ENOMEM;
	undo->first = first;
	undo->last = last;
	undo->value = value;
	ranges->undo = undo;
	set_range(ranges, first, last, value, undo);
	WARN_ON_ONCE(undo->nr != nr);
	return 0;
}

static void undo_restore(struct memfd_ranges *ranges,
			 struct memfd_ranges_undo *undo)
{
	unsigned int i;
	pgoff_t page;

	for (i = 0; i < undo->nr; i++)
		rcu_assign_pointer(*undo->saved[i].slot, undo->saved[i].old);
	if (undo->tail_set)
		rcu_assign_pointer(ranges->root,
				   with_tail(slot_read(&ranges->root),
					     undo->tail));
	for (i = 0; i < undo->nr_leaves; i++) {
		pgoff_t base = undo->leaf[i].base;
		pgoff_t last = min(undo->last, base + LEAF_PAGES - 1);

		/* Pages outside of the range may have got new values. */
		for (page = max(undo->first, base); page <= last; page++)
			leaf_set(undo->leaf[i].leaf, page, page,
				 leaf_get_run(&undo->leaf[i].old, page, NULL));
	}
}

/**
 * memfd_ranges_try_end() - keep or take back a memfd_ranges_try_set()
 * @ranges: The map.
 * @keep: Whether the new value stays.
 *
 * Context: May sleep. Owner's lock.
 */
void memfd_ranges_try_end(struct memfd_ranges *ranges, bool keep)
{
	struct memfd_ranges_undo *undo = ranges->undo;
	unsigned int i;

	ranges->undo = NULL;
	if (keep) {
		for (i = 0; i < undo->nr; i++)
			free_entry(ranges, undo->saved[i].old);
		/* Nothing changes, but folds what had to be kept so far. */
		memfd_ranges_set(ranges, undo->first, undo->last, undo->value);
	} else {
		undo_restore(ranges, undo);
		memfd_ranges_unprepare(ranges, undo->first, undo->last);
	}
	kvfree(undo);
}

static unsigned long translate_word(unsigned long word,
				    const u8 to[MEMFD_RANGES_VALUES])
{
	unsigned long result = 0;
	unsigned int i;

	for (i = 0; i < BITS_PER_LONG; i += VALUE_BITS)
		result |= (unsigned long)to[word >> i & VALUE_MASK] << i;
	return result;
}

static void translate_below(struct memfd_ranges *ranges, void *entry,
			    const u8 to[MEMFD_RANGES_VALUES])
{
	struct memfd_ranges_leaf *leaf = to_pointer(entry);
	struct memfd_ranges_node *node = to_pointer(entry);
	unsigned int i;

	if (to_shift(entry) == LEAF_SHIFT) {
		for (i = 0; i < ARRAY_SIZE(leaf->words); i++)
			WRITE_ONCE(leaf->words[i],
				   translate_word(leaf->words[i], to));
		return;
	}
	for (i = 0; i < NODE_SLOTS; i++) {
		void __rcu **slot = &node->slots[i];

		entry = slot_read(slot);
		if (is_value(entry)) {
			rcu_assign_pointer(*slot,
					   mk_value(to[to_value(entry)]));
		} else {
			translate_below(ranges, entry, to);
			fold(ranges, slot);
		}
	}
	cond_resched();
}

/**
 * memfd_ranges_translate() - replace values by others everywhere
 * @ranges: The map.
 * @to: @to[v] is the new value of every page offset that has value v.
 *
 * Never fails and never allocates, so that a file can always be closed.
 *
 * Context: May sleep. Owner's lock.
 */
void memfd_ranges_translate(struct memfd_ranges *ranges,
			    const u8 to[MEMFD_RANGES_VALUES])
{
	void *root = slot_read(&ranges->root);

	WARN_ON_ONCE(ranges->undo);
	if (is_value(root)) {
		rcu_assign_pointer(ranges->root, mk_value(to[to_value(root)]));
		return;
	}
	translate_below(ranges, root, to);
	rcu_assign_pointer(ranges->root, with_tail(root, to[to_tail(root)]));
	fold_root(ranges);
}

/**
 * memfd_ranges_empty() - whether every page offset has value 0
 * @ranges: The map.
 *
 * Context: Owner's lock, no memfd_ranges_try_set() undecided.
 * Return: True if so.
 */
bool memfd_ranges_empty(struct memfd_ranges *ranges)
{
	pgoff_t first = 0, last = MEMFD_RANGES_LAST;

	return !memfd_ranges_find(ranges, GENMASK(3, 1), &first, &last);
}
