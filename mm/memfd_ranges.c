// SPDX-License-Identifier: GPL-2.0-only
/*
 * A map from page offsets to small values, for memfd_protect().
 *
 * Structure: a radix tree of fixed height over all page offsets of the largest
 * file. A slot either holds a value that all offsets below it have, as a tagged
 * word, or points to a node of 64 slots. The lowest level is a leaf: 512 pages
 * with two bits each. So a range costs at most one path of nodes for each of
 * its two ends, whatever its length, and values that alternate from page to page
 * cost two bits a page. Nodes whose slots have become equal are folded into
 * their parent's slot.
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
 */

#include <linux/bits.h>
#include <linux/bug.h>
#include <linux/kernel.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "memfd_ranges.h"

#define LEAF_SHIFT	9
#define LEAF_PAGES	BIT(LEAF_SHIFT)
#define NODE_SHIFT	6
#define NODE_SLOTS	BIT(NODE_SHIFT)
#define ROOT_SHIFT	(LEAF_SHIFT + 7 * NODE_SHIFT)

#define VALUE_BITS	2
#define VALUE_MASK	3UL
#define WORD_PAGES	(BITS_PER_LONG / VALUE_BITS)
#define WORD_ONES	(~0UL / VALUE_MASK)	/* every page has value 1 */

static_assert(MEMFD_RANGES_LAST >> ROOT_SHIFT == 0);

/**
 * struct memfd_ranges_leaf - 512 page offsets
 * @words: Two bits a page, 32 pages a word, the lowest page in the lowest bits.
 *         One store changes a page.
 */
struct memfd_ranges_leaf {
	unsigned long words[LEAF_PAGES / WORD_PAGES];
};

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
 * @leaf: The leaves at the two ends, which are changed in place.
 * @saved: Slots that were replaced as a whole.
 */
struct memfd_ranges_undo {
	pgoff_t first;
	pgoff_t last;
	unsigned int value;
	unsigned int nr;
	unsigned int nr_leaves;
	struct {
		struct memfd_ranges_leaf *leaf;
		struct memfd_ranges_leaf old;
		pgoff_t base;
	} leaf[2];
	struct {
		void __rcu **slot;
		void *old;
		unsigned int shift;
	} saved[];
};

static inline void *mk_value(unsigned int value)
{
	return (void *)((unsigned long)value << 1 | 1);
}

static inline bool is_value(const void *entry)
{
	return (unsigned long)entry & 1;
}

static inline unsigned int to_value(const void *entry)
{
	return (unsigned long)entry >> 1;
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

static void leaf_set(struct memfd_ranges_leaf *leaf, pgoff_t first,
		     pgoff_t last, unsigned int value)
{
	unsigned int from = first & (LEAF_PAGES - 1);
	unsigned int to = last & (LEAF_PAGES - 1);
	unsigned int i;

	for (i = from / WORD_PAGES; i <= to / WORD_PAGES; i++) {
		unsigned int low = max(from, i * WORD_PAGES) % WORD_PAGES;
		unsigned int high = min(to, i * WORD_PAGES + WORD_PAGES - 1) %
				    WORD_PAGES;
		unsigned long mask = GENMASK(high * VALUE_BITS + 1,
					     low * VALUE_BITS);

		WRITE_ONCE(leaf->words[i], (leaf->words[i] & ~mask) |
					   (value * WORD_ONES & mask));
	}
}

/* Frees what @entry points to, below which a slot spans 1 << @shift pages. */
static void free_entry(struct memfd_ranges *ranges, void *entry,
		       unsigned int shift)
{
	struct memfd_ranges_node *node = entry;
	unsigned int i;

	if (is_value(entry))
		return;
	if (shift == LEAF_SHIFT) {
		ranges->bytes -= sizeof(struct memfd_ranges_leaf);
	} else {
		for (i = 0; i < NODE_SLOTS; i++)
			free_entry(ranges, slot_read(&node->slots[i]),
				   shift - NODE_SHIFT);
		ranges->bytes -= sizeof(*node);
	}
	kvfree_rcu_mightsleep(entry);
}

/* Makes a node or leaf in which everything has the value of @entry. */
static void *new_entry(struct memfd_ranges *ranges, void *entry,
		       unsigned int shift, gfp_t gfp)
{
	struct memfd_ranges_node *node;
	struct memfd_ranges_leaf *leaf;
	unsigned int i;

	if (shift == LEAF_SHIFT) {
		leaf = kmalloc(sizeof(*leaf), gfp);
		if (!leaf)
			return NULL;
		for (i = 0; i < ARRAY_SIZE(leaf->words); i++)
			leaf->words[i] = to_value(entry) * WORD_ONES;
		ranges->bytes += sizeof(*leaf);
		return leaf;
	}
	node = kmalloc(sizeof(*node), gfp);
	if (!node)
		return NULL;
	for (i = 0; i < NODE_SLOTS; i++)
		RCU_INIT_POINTER(node->slots[i], entry);
	ranges->bytes += sizeof(*node);
	return node;
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
	free_entry(ranges, entry, ROOT_SHIFT);
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
	unsigned int shift = ROOT_SHIFT;

	while (!is_value(entry)) {
		struct memfd_ranges_node *node = entry;

		if (shift == LEAF_SHIFT)
			return leaf_get_run(entry, index, last);
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

/* Splits slots until page offset @index is the first one of a slot. */
static int split_at(struct memfd_ranges *ranges, pgoff_t index,
		    unsigned int value, gfp_t gfp)
{
	void __rcu **slot = &ranges->root;
	unsigned int shift = ROOT_SHIFT;

	while (index & ((1UL << shift) - 1)) {
		struct memfd_ranges_node *node;
		void *entry = slot_read(slot);

		if (is_value(entry)) {
			if (to_value(entry) == value)
				return 0;
			entry = new_entry(ranges, entry, shift, gfp);
			if (!entry)
				return -ENOMEM;
			rcu_assign_pointer(*slot, entry);
		}
		if (shift == LEAF_SHIFT)
			return 0;
		node = entry;
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
 * @gfp: How to allocate.
 *
 * No value changes. What is allocated is part of the map, and goes with the
 * next change that makes it superfluous.
 *
 * Context: May sleep if @gfp says so. Owner's lock, which must be held until
 * after memfd_ranges_set().
 * Return: 0 or -ENOMEM.
 */
int memfd_ranges_prepare(struct memfd_ranges *ranges, pgoff_t first,
			 pgoff_t last, unsigned int value, gfp_t gfp)
{
	int err = split_at(ranges, first, value, gfp);

	return err ?: split_at(ranges, last + 1, value, gfp);
}

/* Folds *@slot into a value if all that is below it has one value. */
static void fold(struct memfd_ranges *ranges, void __rcu **slot,
		 unsigned int shift)
{
	void *entry = slot_read(slot), *first;
	unsigned int i;

	if (is_value(entry) || ranges->undo)
		return;
	if (shift == LEAF_SHIFT) {
		struct memfd_ranges_leaf *leaf = entry;
		unsigned int value = leaf->words[0] & VALUE_MASK;

		for (i = 0; i < ARRAY_SIZE(leaf->words); i++)
			if (leaf->words[i] != value * WORD_ONES)
				return;
		first = mk_value(value);
	} else {
		struct memfd_ranges_node *node = entry;

		first = slot_read(&node->slots[0]);
		if (!is_value(first))
			return;
		for (i = 1; i < NODE_SLOTS; i++)
			if (slot_read(&node->slots[i]) != first)
				return;
	}
	rcu_assign_pointer(*slot, first);
	free_entry(ranges, entry, shift);
}

/*
 * Sets the part of [@first, @last] that *@slot spans, from @base on. What was
 * there is recorded in @undo, if there is one.
 */
static void set_slot(struct memfd_ranges *ranges, void __rcu **slot,
		     pgoff_t base, unsigned int shift, pgoff_t first,
		     pgoff_t last, unsigned int value,
		     struct memfd_ranges_undo *undo)
{
	pgoff_t end = span_last(base, shift);
	void *entry = slot_read(slot);
	struct memfd_ranges_node *node = entry;
	unsigned int i;

	first = max(first, base);
	last = min(last, end);
	if (entry == mk_value(value))
		return;
	if (first == base && last == end) {
		rcu_assign_pointer(*slot, mk_value(value));
		if (undo) {
			undo->saved[undo->nr].slot = slot;
			undo->saved[undo->nr].shift = shift;
			undo->saved[undo->nr++].old = entry;
		} else {
			free_entry(ranges, entry, shift);
		}
		return;
	}
	/* memfd_ranges_prepare() split whatever is set in part. */
	if (WARN_ON_ONCE(is_value(entry)))
		return;
	if (shift == LEAF_SHIFT) {
		if (undo) {
			undo->leaf[undo->nr_leaves].leaf = entry;
			undo->leaf[undo->nr_leaves].base = base;
			undo->leaf[undo->nr_leaves++].old =
				*(struct memfd_ranges_leaf *)entry;
		}
		leaf_set(entry, first, last, value);
	} else {
		shift -= NODE_SHIFT;
		for (i = slot_of(first, shift); i <= slot_of(last, shift); i++)
			set_slot(ranges, &node->slots[i],
				 base + ((pgoff_t)i << shift), shift, first,
				 last, value, undo);
		shift += NODE_SHIFT;
	}
	fold(ranges, slot, shift);
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
	set_slot(ranges, &ranges->root, 0, ROOT_SHIFT, first, last, value,
		 NULL);
}

/* The number of slots that set_slot() replaces as a whole. */
static unsigned int count_slots(void *entry, pgoff_t base, unsigned int shift,
				pgoff_t first, pgoff_t last, unsigned int value)
{
	struct memfd_ranges_node *node = entry;
	pgoff_t end = span_last(base, shift);
	unsigned int i, nr = 0;

	first = max(first, base);
	last = min(last, end);
	if (entry == mk_value(value))
		return 0;
	if (first == base && last == end)
		return 1;
	if (is_value(entry) || shift == LEAF_SHIFT)
		return 0;
	shift -= NODE_SHIFT;
	for (i = slot_of(first, shift); i <= slot_of(last, shift); i++)
		nr += count_slots(slot_read(&node->slots[i]),
				  base + ((pgoff_t)i << shift), shift, first,
				  last, value);
	return nr;
}

/**
 * memfd_ranges_try_set() - give a range a value, so that it can be taken back
 * @ranges: The map.
 * @first: First page offset.
 * @last: Last page offset, up to MEMFD_RANGES_LAST.
 * @value: The value, 0 to 3.
 * @gfp: How to allocate.
 *
 * memfd_ranges_try_end() must follow. In between nobody may change a value
 * in [@first, @last]; other values may be changed.
 *
 * Context: May sleep. Owner's lock, which may be dropped afterwards.
 * Return: 0, or -ENOMEM and nothing changed.
 */
int memfd_ranges_try_set(struct memfd_ranges *ranges, pgoff_t first,
			 pgoff_t last, unsigned int value, gfp_t gfp)
{
	struct memfd_ranges_undo *undo;
	unsigned int nr;

	if (WARN_ON_ONCE(ranges->undo))
		return -ENOMEM;
	if (memfd_ranges_prepare(ranges, first, last, value, gfp))
		return -ENOMEM;
	nr = count_slots(slot_read(&ranges->root), 0, ROOT_SHIFT, first, last,
			 value);
	undo = kvzalloc(struct_size(undo, saved, nr), gfp);
	if (!undo)
		return -ENOMEM;
	undo->first = first;
	undo->last = last;
	undo->value = value;
	ranges->undo = undo;
	set_slot(ranges, &ranges->root, 0, ROOT_SHIFT, first, last, value,
		 undo);
	WARN_ON_ONCE(undo->nr != nr);
	return 0;
}

static void undo_restore(struct memfd_ranges_undo *undo)
{
	unsigned int i;
	pgoff_t page;

	for (i = 0; i < undo->nr; i++)
		rcu_assign_pointer(*undo->saved[i].slot, undo->saved[i].old);
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
			free_entry(ranges, undo->saved[i].old,
				   undo->saved[i].shift);
		/* Nothing changes, but folds what had to be kept so far. */
		memfd_ranges_set(ranges, undo->first, undo->last, undo->value);
	} else {
		undo_restore(undo);
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

static void translate_slot(struct memfd_ranges *ranges, void __rcu **slot,
			   unsigned int shift,
			   const u8 to[MEMFD_RANGES_VALUES])
{
	void *entry = slot_read(slot);
	unsigned int i;

	if (is_value(entry)) {
		rcu_assign_pointer(*slot, mk_value(to[to_value(entry)]));
	} else if (shift == LEAF_SHIFT) {
		struct memfd_ranges_leaf *leaf = entry;

		for (i = 0; i < ARRAY_SIZE(leaf->words); i++)
			WRITE_ONCE(leaf->words[i],
				   translate_word(leaf->words[i], to));
	} else {
		struct memfd_ranges_node *node = entry;

		for (i = 0; i < NODE_SLOTS; i++)
			translate_slot(ranges, &node->slots[i],
				       shift - NODE_SHIFT, to);
		cond_resched();
	}
	fold(ranges, slot, shift);
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
	WARN_ON_ONCE(ranges->undo);
	translate_slot(ranges, &ranges->root, ROOT_SHIFT, to);
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
