// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of mm/memfd_ranges.c, against a plain array.
 */

#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/prandom.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "memfd_ranges.h"

/* Several leaves, and a second node of the lowest level. */
#define MODEL_PAGES	(64 * 512 + 3 * 512)

static void must_set(struct kunit *test, struct memfd_ranges *ranges,
		     pgoff_t first, pgoff_t last, unsigned int value)
{
	KUNIT_ASSERT_EQ(test, 0, memfd_ranges_change(ranges, first, last, value,
						     NULL));
}

static void expect_run(struct kunit *test, struct memfd_ranges *ranges,
		       unsigned int values, pgoff_t from, pgoff_t first,
		       pgoff_t last)
{
	pgoff_t end = MEMFD_RANGES_LAST;

	KUNIT_ASSERT_TRUE(test, memfd_ranges_find(ranges, values, &from, &end));
	KUNIT_EXPECT_EQ(test, first, from);
	KUNIT_EXPECT_EQ(test, last, end);
}

static void ranges_starts_empty(struct kunit *test)
{
	struct memfd_ranges ranges;
	pgoff_t last;

	memfd_ranges_init(&ranges);
	KUNIT_EXPECT_TRUE(test, memfd_ranges_empty(&ranges));
	KUNIT_EXPECT_EQ(test, 0U, memfd_ranges_get_run(&ranges, 0, &last));
	KUNIT_EXPECT_EQ(test, MEMFD_RANGES_LAST, last);
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	memfd_ranges_destroy(&ranges);
}

static void ranges_splits_and_merges(struct kunit *test)
{
	struct memfd_ranges ranges;

	memfd_ranges_init(&ranges);
	must_set(test, &ranges, 100, 1999, 1);
	expect_run(test, &ranges, BIT(1), 0, 100, 1999);
	must_set(test, &ranges, 700, 700, 0);
	expect_run(test, &ranges, BIT(1), 0, 100, 699);
	expect_run(test, &ranges, BIT(0), 101, 700, 700);
	expect_run(test, &ranges, BIT(1), 700, 701, 1999);
	must_set(test, &ranges, 700, 700, 1);
	expect_run(test, &ranges, BIT(1), 0, 100, 1999);
	/* A new value replaces the old one for that range only. */
	must_set(test, &ranges, 512, 1023, 3);
	expect_run(test, &ranges, BIT(1), 0, 100, 511);
	expect_run(test, &ranges, BIT(3), 0, 512, 1023);
	expect_run(test, &ranges, BIT(1), 600, 1024, 1999);
	must_set(test, &ranges, 0, MEMFD_RANGES_LAST, 0);
	KUNIT_EXPECT_TRUE(test, memfd_ranges_empty(&ranges));
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	memfd_ranges_destroy(&ranges);
}

static void ranges_whole_file(struct kunit *test)
{
	struct memfd_ranges ranges;
	pgoff_t last;

	memfd_ranges_init(&ranges);
	must_set(test, &ranges, 0, MEMFD_RANGES_LAST, 2);
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	KUNIT_EXPECT_EQ(test, 2U, memfd_ranges_get_run(&ranges, 12345, &last));
	KUNIT_EXPECT_EQ(test, MEMFD_RANGES_LAST, last);
	must_set(test, &ranges, 12345, MEMFD_RANGES_LAST, 1);
	KUNIT_EXPECT_EQ(test, 2U, memfd_ranges_get(&ranges, 12344));
	KUNIT_EXPECT_EQ(test, 1U, memfd_ranges_get(&ranges, 12345));
	KUNIT_EXPECT_EQ(test, 1U, memfd_ranges_get(&ranges, MEMFD_RANGES_LAST));
	expect_run(test, &ranges, BIT(1), 0, 12345, MEMFD_RANGES_LAST);
	/* One path of nodes for one end, whatever the length. */
	KUNIT_EXPECT_LT(test, ranges.bytes, (size_t)SZ_4K);
	memfd_ranges_destroy(&ranges);
}

static void ranges_highest_pages(struct kunit *test)
{
	struct memfd_ranges ranges;

	memfd_ranges_init(&ranges);
	must_set(test, &ranges, MEMFD_RANGES_LAST, MEMFD_RANGES_LAST, 3);
	KUNIT_EXPECT_EQ(test, 3U, memfd_ranges_get(&ranges, MEMFD_RANGES_LAST));
	KUNIT_EXPECT_EQ(test, 0U,
			memfd_ranges_get(&ranges, MEMFD_RANGES_LAST - 1));
	expect_run(test, &ranges, BIT(3), 0, MEMFD_RANGES_LAST,
		   MEMFD_RANGES_LAST);
	memfd_ranges_destroy(&ranges);
}

/* What is changed by one store, and what is not. */
static void ranges_by_one_store(struct kunit *test)
{
	struct memfd_ranges_word word;
	struct memfd_ranges ranges;
	size_t bytes;

	memfd_ranges_init(&ranges);
	KUNIT_EXPECT_FALSE(test, memfd_ranges_word(&ranges, 5, 5, 1, &word));
	must_set(test, &ranges, 32, 63, 2);
	must_set(test, &ranges, 64, 94, 1);
	bytes = ranges.bytes;
	KUNIT_ASSERT_TRUE(test, memfd_ranges_word(&ranges, 40, 41, 1, &word));
	KUNIT_EXPECT_EQ(test, 2U, word.value);
	KUNIT_EXPECT_EQ(test, 2U, memfd_ranges_get(&ranges, 40));
	WRITE_ONCE(*word.at, word.to);
	expect_run(test, &ranges, BIT(2), 0, 32, 39);
	expect_run(test, &ranges, BIT(1), 0, 40, 41);
	expect_run(test, &ranges, BIT(2), 40, 42, 63);
	/* Two words; no leaf; and what may make the leaf superfluous. */
	KUNIT_EXPECT_FALSE(test, memfd_ranges_word(&ranges, 63, 64, 3, &word));
	KUNIT_EXPECT_FALSE(test, memfd_ranges_word(&ranges, 512, 512, 3, &word));
	KUNIT_EXPECT_FALSE(test, memfd_ranges_word(&ranges, MEMFD_RANGES_LAST,
						   MEMFD_RANGES_LAST, 3, &word));
	KUNIT_EXPECT_FALSE(test, memfd_ranges_word(&ranges, 95, 95, 1, &word));
	KUNIT_EXPECT_TRUE(test, memfd_ranges_word(&ranges, 95, 95, 2, &word));
	KUNIT_EXPECT_EQ(test, bytes, ranges.bytes);
	memfd_ranges_destroy(&ranges);
}

/* Every other page of 200,000: two bits a page, and a little for the nodes. */
static void ranges_fragmentation_bound(struct kunit *test)
{
	const pgoff_t pages = 200000;
	struct memfd_ranges ranges;
	pgoff_t i;

	memfd_ranges_init(&ranges);
	for (i = 0; i < pages; i += 2)
		must_set(test, &ranges, i, i, 1);
	KUNIT_EXPECT_LE(test, ranges.bytes,
			(pages / 4) + pages / 4 / 8 + SZ_4K);
	for (i = 0; i < pages; i += 2)
		must_set(test, &ranges, i, i, 0);
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	memfd_ranges_destroy(&ranges);
}

static void expect_model(struct kunit *test, struct memfd_ranges *ranges,
			 const u8 *model)
{
	pgoff_t i, last;

	for (i = 0; i < MODEL_PAGES; i++) {
		unsigned int value = memfd_ranges_get_run(ranges, i, &last);

		if (value != model[i] || last < i) {
			KUNIT_FAIL(test, "page %lu: %u, want %u, run to %lu",
				   i, value, model[i], last);
			return;
		}
		while (i < last && i + 1 < MODEL_PAGES)
			if (model[++i] != value) {
				KUNIT_FAIL(test, "run too long at %lu", i);
				return;
			}
	}
}

static void random_range(struct rnd_state *rnd, pgoff_t *first, pgoff_t *last)
{
	pgoff_t len = prandom_u32_state(rnd) & 1 ?
		      prandom_u32_state(rnd) % 40 :
		      prandom_u32_state(rnd) % MODEL_PAGES;

	*first = prandom_u32_state(rnd) % MODEL_PAGES;
	if (prandom_u32_state(rnd) % 4 == 0)
		*first &= ~511UL;
	*last = min(*first + len, (pgoff_t)MODEL_PAGES - 1);
	if (prandom_u32_state(rnd) % 4 == 0)
		*last = min(*last | 511, (pgoff_t)MODEL_PAGES - 1);
}

static void ranges_against_model(struct kunit *test)
{
	u8 *model = vzalloc(MODEL_PAGES);
	struct memfd_ranges ranges;
	struct rnd_state rnd;
	pgoff_t first, last;
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, model);
	prandom_seed_state(&rnd, 4711);
	memfd_ranges_init(&ranges);
	for (i = 0; i < 400; i++) {
		unsigned int value = prandom_u32_state(&rnd) % 4;

		random_range(&rnd, &first, &last);
		must_set(test, &ranges, first, last, value);
		memset(model + first, value, last - first + 1);
		if (i % 8 == 0)
			expect_model(test, &ranges, model);
	}
	expect_model(test, &ranges, model);
	memfd_ranges_destroy(&ranges);
	vfree(model);
}

/* A change that is taken back, with other changes in between. */
static void ranges_undo_against_model(struct kunit *test)
{
	u8 *model = vzalloc(MODEL_PAGES);
	struct memfd_ranges ranges;
	struct rnd_state rnd;
	unsigned int i, j;

	KUNIT_ASSERT_NOT_NULL(test, model);
	prandom_seed_state(&rnd, 815);
	memfd_ranges_init(&ranges);
	for (i = 0; i < 300; i++) {
		unsigned int value = prandom_u32_state(&rnd) % 4;
		bool keep = prandom_u32_state(&rnd) & 1;
		pgoff_t first, last;

		random_range(&rnd, &first, &last);
		KUNIT_ASSERT_EQ(test, 0,
				memfd_ranges_try_set(&ranges, first, last,
						     value, NULL));
		KUNIT_EXPECT_EQ(test, value, memfd_ranges_get(&ranges, first));
		KUNIT_EXPECT_EQ(test, value, memfd_ranges_get(&ranges, last));
		for (j = 0; j < 4; j++) {
			unsigned int other = prandom_u32_state(&rnd) % 4;
			pgoff_t from, to;

			random_range(&rnd, &from, &to);
			if (from <= last && to >= first)
				continue;
			must_set(test, &ranges, from, to, other);
			memset(model + from, other, to - from + 1);
		}
		memfd_ranges_try_end(&ranges, keep);
		if (keep)
			memset(model + first, value, last - first + 1);
		if (i % 8 == 0)
			expect_model(test, &ranges, model);
	}
	expect_model(test, &ranges, model);
	must_set(test, &ranges, 0, MEMFD_RANGES_LAST, 0);
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	memfd_ranges_destroy(&ranges);
	vfree(model);
}

/* A word of a leaf is changed, by which the leaf becomes superfluous. */
static void ranges_leaf_in_place(struct kunit *test)
{
	struct memfd_ranges ranges;
	unsigned long *words;

	memfd_ranges_init(&ranges);
	KUNIT_EXPECT_NULL(test, memfd_ranges_leaf(&ranges, 600));
	must_set(test, &ranges, 70000, 70000, 1);
	must_set(test, &ranges, 600, 601, 2);
	KUNIT_EXPECT_NULL(test, memfd_ranges_leaf(&ranges, 0));
	KUNIT_EXPECT_NULL(test, memfd_ranges_leaf(&ranges, 1024));
	KUNIT_EXPECT_NULL(test, memfd_ranges_leaf(&ranges, MEMFD_RANGES_LAST));
	words = memfd_ranges_leaf(&ranges, 512);
	KUNIT_ASSERT_NOT_NULL(test, words);
	KUNIT_EXPECT_PTR_EQ(test, words, memfd_ranges_leaf(&ranges, 1023));
	words += (600 - 512) / MEMFD_RANGES_WORD_PAGES;
	KUNIT_EXPECT_EQ(test, 2 * MEMFD_RANGES_ONES & memfd_ranges_mask(600, 601),
			*words);
	*words = 0;
	memfd_ranges_fold(&ranges, 600);
	KUNIT_EXPECT_NULL(test, memfd_ranges_leaf(&ranges, 600));
	must_set(test, &ranges, 70000, 70000, 0);
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	memfd_ranges_destroy(&ranges);
}

static void ranges_translate(struct kunit *test)
{
	static const u8 to[MEMFD_RANGES_VALUES] = { 0, 0, 0, 3 };
	struct memfd_ranges ranges;

	memfd_ranges_init(&ranges);
	must_set(test, &ranges, 1000, MEMFD_RANGES_LAST, 1);
	must_set(test, &ranges, 5000, 5010, 3);
	must_set(test, &ranges, 7000, 700000, 2);
	memfd_ranges_translate(&ranges, to);
	expect_run(test, &ranges, GENMASK(3, 1), 0, 5000, 5010);
	must_set(test, &ranges, 5000, 5010, 0);
	KUNIT_EXPECT_EQ(test, 0UL, ranges.bytes);
	memfd_ranges_destroy(&ranges);
}

/**
 * struct reader - one thread that reads while the test writes
 * @ranges: What it reads.
 * @pages: It reads pages from 0 to this.
 * @wrong: Values read that cannot be.
 * @reads: Look-ups made.
 */
struct reader {
	struct memfd_ranges *ranges;
	pgoff_t pages;
	unsigned long wrong;
	unsigned long reads;
};

/*
 * Even pages are always 2 or 3, odd ones always 0 or 1, so every value read
 * tells whether it can be that page's.
 */
static int reader_thread(void *data)
{
	struct reader *reader = data;
	struct rnd_state rnd;

	prandom_seed_state(&rnd, (unsigned long)current);
	while (!kthread_should_stop()) {
		unsigned int i, value;
		pgoff_t page, last;

		rcu_read_lock();
		for (i = 0; i < 64; i++) {
			page = prandom_u32_state(&rnd) % reader->pages;
			value = memfd_ranges_get_run(reader->ranges, page,
						     &last);
			if (value >> 1 != !(page & 1) || last < page)
				reader->wrong++;
			reader->reads++;
		}
		rcu_read_unlock();
		cond_resched();
	}
	return 0;
}

/* Blocks in which all pages have the same value come and go in the same tree. */
static void flip(struct kunit *test, struct memfd_ranges *ranges,
		 struct rnd_state *rnd, pgoff_t pages)
{
	pgoff_t page = prandom_u32_state(rnd) % pages;
	unsigned int value = prandom_u32_state(rnd) & 1;
	pgoff_t above = pages + prandom_u32_state(rnd) % 4096;

	must_set(test, ranges, page, page, (page & 1 ? 0 : 2) + value);
	/* What is above makes nodes split and fold, up to the root. */
	must_set(test, ranges, above, MEMFD_RANGES_LAST, value * 3);
	must_set(test, ranges, pages, MEMFD_RANGES_LAST, 0);
}

static void readers_against_writer(struct kunit *test, pgoff_t pages)
{
	struct reader reader = { .pages = pages };
	struct task_struct *threads[2];
	struct memfd_ranges ranges;
	unsigned long stop;
	struct rnd_state rnd;
	unsigned int i;
	pgoff_t page;

	memfd_ranges_init(&ranges);
	reader.ranges = &ranges;
	for (page = 0; page < pages; page++)
		must_set(test, &ranges, page, page, page & 1 ? 0 : 2);
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		threads[i] = kthread_run(reader_thread, &reader, "ranges/%u", i);
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, threads[i]);
	}
	prandom_seed_state(&rnd, 42);
	stop = jiffies + 2 * HZ;
	while (time_before(jiffies, stop)) {
		flip(test, &ranges, &rnd, pages);
		cond_resched();
	}
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		kthread_stop(threads[i]);
	KUNIT_EXPECT_EQ(test, 0UL, reader.wrong);
	KUNIT_EXPECT_GT(test, reader.reads, 1000UL);
	memfd_ranges_destroy(&ranges);
}

static void ranges_readers_tiny_tree(struct kunit *test)
{
	readers_against_writer(test, 2);
}

static void ranges_readers_large_tree(struct kunit *test)
{
	readers_against_writer(test, 64 * 512 + 5);
}

static struct kunit_case memfd_ranges_cases[] = {
	KUNIT_CASE(ranges_starts_empty),
	KUNIT_CASE(ranges_splits_and_merges),
	KUNIT_CASE(ranges_whole_file),
	KUNIT_CASE(ranges_highest_pages),
	KUNIT_CASE(ranges_by_one_store),
	KUNIT_CASE(ranges_fragmentation_bound),
	KUNIT_CASE(ranges_against_model),
	KUNIT_CASE(ranges_undo_against_model),
	KUNIT_CASE(ranges_leaf_in_place),
	KUNIT_CASE(ranges_translate),
	KUNIT_CASE_SLOW(ranges_readers_tiny_tree),
	KUNIT_CASE_SLOW(ranges_readers_large_tree),
	{}
};

static struct kunit_suite memfd_ranges_suite = {
	.name = "memfd_ranges",
	.test_cases = memfd_ranges_cases,
};

kunit_test_suite(memfd_ranges_suite);
