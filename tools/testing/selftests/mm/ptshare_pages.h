/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the pages of the stress test's files must contain.
 *
 * Each word of a page says of which file, page and write it is, so that a page
 * of another place, of an older write, or a mixture of two is seen at once.
 * What a page has to contain is noted beside the file, in memory that all
 * processes share:
 *
 * - Who writes a page has locked it. A complete write is @seq, which every
 *   later reader must find, by whatever road. A write that was refused or
 *   killed in the middle leaves @next > @seq: words of both are right, and
 *   those of others in between that had the same fate, from @first on.
 * - Pages are dropped (holes are punched, the file is cut) with the page
 *   locked or without. @drop_begun and @drop_ended go up around each drop,
 *   which only one process per file does. A page may be zero if a drop ended
 *   after the last write had begun or has not ended; it must be zero if a drop
 *   began after that write was complete and has ended: data that comes back
 *   is found as well as data that is lost.
 * - While an access may be refused (SIGBUS, EPERM), @refuse_begun and
 *   @refuse_ended differ; a refusal at another time is an error.
 *
 * A reader without the lock counts only if nobody locked the page meanwhile,
 * which @version tells. The figures are 32 bits and do not overflow in a test.
 */
#ifndef PTSHARE_PAGES_H
#define PTSHARE_PAGES_H

#include "ptshare_common.h"

#define WORDS		(4096 / sizeof(uint64_t))

struct page_state {
	uint32_t lock;		/* process that may write it; 0: nobody */
	uint32_t version;	/* goes up with each lock */
	uint32_t last;		/* highest number of a write, ever */
	uint32_t seq;		/* last complete write; 0: the page is zero */
	uint32_t next;		/* the write that was begun last */
	uint32_t first;		/* the first one that was begun after @seq */
	uint32_t before;	/* drops that had ended before it began */
	uint32_t after;		/* drops that had begun when it was complete */
	uint32_t drop_begun;
	uint32_t drop_ended;
	uint32_t refuse_begun;
	uint32_t refuse_ended;
	uint32_t unused[4];
};

/* The part of it that a check needs, and when */
struct page_view {
	uint32_t version, lock, last, seq, next, first, before, after;
	uint32_t ended;		/* before the page was read */
	uint32_t begun;		/* after it was read */
};

enum finding {
	FOUND_GOOD,
	FOUND_FOREIGN,		/* not written by us for this place */
	FOUND_OLD,		/* an older write than the last */
	FOUND_BACK,		/* data that was dropped */
	FOUND_LOST,		/* zero where data should be */
};

static const char * const finding_names[] = {
	"good", "foreign data", "a lost write", "data that was dropped",
	"zeros for data",
};

#define get(field)	__atomic_load_n(&(field), __ATOMIC_SEQ_CST)
#define set(field, to)	__atomic_store_n(&(field), to, __ATOMIC_SEQ_CST)
#define more(field)	__atomic_fetch_add(&(field), 1, __ATOMIC_SEQ_CST)

static inline uint64_t page_word(unsigned int file, size_t page, size_t i,
				 uint32_t seq)
{
	return seq ? (uint64_t)seq << 32 | file << 28 | page << 9 | i : 0;
}

static inline bool page_trylock(struct page_state *s)
{
	uint32_t nobody = 0;

	if (!__atomic_compare_exchange_n(&s->lock, &nobody, getpid(), false,
					 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	more(s->version);
	return true;
}

static inline void page_unlock(struct page_state *s)
{
	set(s->lock, 0);
}

/* Of a process that is dead: what it was writing is not complete */
static inline void pages_unlock_dead(struct page_state *s, size_t nr,
				     pid_t pid)
{
	for (; nr; nr--, s++)
		if (get(s->lock) == (uint32_t)pid)
			page_unlock(s);
}

static inline void view_begin(struct page_state *s, struct page_view *v)
{
	v->version = get(s->version);
	v->lock = get(s->lock);
	v->last = get(s->last);
	v->seq = get(s->seq);
	v->next = get(s->next);
	v->first = get(s->first);
	v->before = get(s->before);
	v->after = get(s->after);
	v->ended = get(s->drop_ended);
}

/* False if the page was not as quiet as that */
static inline bool view_end(struct page_state *s, struct page_view *v)
{
	v->begun = get(s->drop_begun);
	return get(s->lock) == v->lock && get(s->version) == v->version;
}

static inline bool view_may_be_zero(const struct page_view *v)
{
	return !v->seq || v->next != v->seq || v->begun != v->before;
}

static inline bool view_may_be_data(const struct page_view *v)
{
	return v->next != v->seq || v->ended <= v->after;
}

/* The last complete write, or one that was begun after it */
static inline bool view_may_be_write(const struct page_view *v, uint32_t seq)
{
	return seq == v->seq ||
	       (v->next != v->seq && seq >= v->first && seq <= v->next);
}

static inline enum finding check_value(unsigned int file, size_t page,
				       size_t i, const struct page_view *v,
				       uint64_t word)
{
	if (!word)
		return view_may_be_zero(v) ? FOUND_GOOD : FOUND_LOST;
	if ((uint32_t)word != (uint32_t)page_word(file, page, i, 1) ||
	    !(word >> 32) || word >> 32 > v->last)
		return FOUND_FOREIGN;
	if (view_may_be_write(v, word >> 32))
		return view_may_be_data(v) ? FOUND_GOOD : FOUND_BACK;
	return v->seq ? FOUND_OLD : FOUND_BACK;
}

/*
 * The kernel copies bytes. Where the page was dropped under such a copy, or the copy
 * ended, a word can be of two values that are right: the lower bytes are as if the
 * copy had got to the word, the others as if it had not, or the other way round.
 */
static inline bool is_torn(unsigned int file, size_t page, size_t i,
			   const struct page_view *v, uint64_t word)
{
	uint32_t begun = v->next == v->seq ? 0 : v->next - v->first + 1;
	unsigned int lower = 0, upper = 0;

	/* Bits of @lower: so many bytes from below are those of a right value */
	for (uint32_t n = 0; n < begun + 2; n++) {
		uint32_t seq = n == 0 ? 0 : n == 1 ? v->seq : v->first + n - 2;
		uint64_t right = page_word(file, page, i, seq);

		if (check_value(file, page, i, v, right) != FOUND_GOOD)
			continue;
		for (unsigned int bytes = 1; bytes < 8; bytes++) {
			if (!((word ^ right) << (64 - 8 * bytes)))
				lower |= 1 << bytes;
			if (!((word ^ right) >> 8 * bytes))
				upper |= 1 << bytes;
		}
	}
	return lower & upper;
}

static inline enum finding check_word(unsigned int file, size_t page, size_t i,
				      const struct page_view *v, uint64_t word)
{
	enum finding found = check_value(file, page, i, v, word);

	if (found != FOUND_GOOD && is_torn(file, page, i, v, word))
		found = FOUND_GOOD;
	return found;
}

/* @at is the first word that is wrong */
static inline enum finding check_page(unsigned int file, size_t page,
				      const struct page_view *v,
				      const uint64_t *words, size_t *at)
{
	enum finding found = FOUND_GOOD;

	for (*at = 0; *at < WORDS; ++*at) {
		found = check_word(file, page, *at, v, words[*at]);
		if (found != FOUND_GOOD)
			break;
	}
	return found;
}

/* The next write of a locked page begins, and @words are what it writes */
static inline void write_begin(struct page_state *s, unsigned int file,
			       size_t page, uint64_t *words)
{
	uint32_t seq = s->last + 1;

	set(s->last, seq);
	if (get(s->next) == get(s->seq))
		set(s->first, seq);
	set(s->next, seq);
	set(s->before, get(s->drop_ended));
	for (size_t i = 0; i < WORDS; i++)
		words[i] = page_word(file, page, i, seq);
}

static inline void write_complete(struct page_state *s)
{
	set(s->after, get(s->drop_begun));
	set(s->seq, get(s->next));
}

/* A locked page is zero now, and everybody must find that from now on */
static inline void page_is_zero(struct page_state *s)
{
	set(s->seq, 0);
	set(s->next, 0);
}

static inline bool all_zero(const uint64_t *words)
{
	for (size_t i = 0; i < WORDS; i++)
		if (words[i])
			return false;
	return true;
}

#endif /* PTSHARE_PAGES_H */
