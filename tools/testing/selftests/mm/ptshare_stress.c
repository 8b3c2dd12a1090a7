// SPDX-License-Identifier: GPL-2.0-only
/*
 * Processes and threads map, unmap, fork, exit, protect, move, lock and advise
 * mappings of memfds with shared page tables, while pages are reclaimed,
 * swapped, migrated, collapsed, dropped, and write-protected by file offset.
 * Checked are:
 *
 * - every page of the files, by every road, on every visit: ptshare_pages.h. An
 *   ordinary memfd gets the same treatment: a finding there alone is the test's;
 * - read-only mappings, which nothing must be written through;
 * - ranges that memfd_protect() holds: they do not change;
 * - memory of a bystander, which a store through a stale TLB entry would hit;
 * - a process that only stores, pinned to a CPU: after each change to what it
 *   stores to, the next store must fault, or must be found in the file;
 * - that sharing went on: there are links in every part of the run, and that no
 *   table is left when everybody has gone.
 *
 * Most of the time everything runs at once; in between all others rest, so that
 * the spinner has its CPU, and its TLB, for itself. Counts are printed; what was
 * never seen to happen is a failure, because the test had no power then.
 */
#include "ptshare_pages.h"

#include <linux/userfaultfd.h>
#include <malloc.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>

#include "kselftest.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

#define FILES		3
#define TABLES		6
#define PAGES		(TABLES * 512)
#define GIB_TABLES	512
#define LARGE_TABLES	(2 * GIB_TABLES + 1)
#define CUT_TABLES	2	/* at the end: ftruncate() leaves the rest alone */
#define WORKERS		5
#define MAX_PIDS	32
#define SLICES		8	/* of the run, with links made in each */
#define MIN_LINKS	1
#define CGROUP		"/sys/fs/cgroup/ptshare_stress"
#define DELAY_DIR	"/sys/kernel/debug/ptshare/delay_us/"
#define THP_DIR		"/sys/kernel/mm/transparent_hugepage/"

enum count {
	C_VISITS, C_WRITES, C_PEEKS, C_NOT_MAPPED, C_REFUSED, C_TORN,
	C_READ_ONLY, C_FORKS, C_EXECS, C_KILLS, C_EXITS, C_PUNCHES,
	C_LOCKED_PUNCHES, C_REMOVES, C_CUTS, C_RECLAIMS, C_MOVED, C_COMPACTS,
	C_HOLDS, C_DENIALS, C_SCANS, C_BYSTANDER, NR_COUNTS
};

static const char * const count_names[NR_COUNTS] = {
	"pages read and checked", "pages written", "checked without lock",
	"page was not mapped", "access refused", "incomplete writes",
	"read-only stores tried", "forks", "execs", "kills", "exits",
	"holes punched", "holes punched, locked", "MADV_REMOVE", "file cut",
	"reclaims", "pages moved", "compactions", "held by WAIT",
	"held by DENY", "scans", "bystander's rounds",
};

enum spin_kind {
	SPIN_PUNCH, SPIN_CUT, SPIN_PAGEOUT, SPIN_MOVE, SPIN_DONTNEED,
	SPIN_UNMAP, SPIN_READ_ONLY, SPIN_MREMAP, SPIN_WAIT, SPIN_DENY,
	NR_SPIN
};

static const char * const spin_names[NR_SPIN] = {
	"punch", "ftruncate", "pageout", "move_pages", "dontneed", "munmap",
	"mprotect", "mremap", "WAIT", "DENY",
};

/* What the spinner and who changes its page tell each other */
struct spin {
	volatile uint64_t stores;	/* the last number stored */
	volatile uint64_t faults;	/* stores that were refused */
	volatile uint64_t page;
	volatile int order;		/* enum spin_kind for its helper */
	volatile int orders, done;
	volatile int ready, stop;
};

#define NR_OPS		21
#define NR_ADVICE	14

/* In shared memory: everybody counts here */
struct shared {
	volatile int stop;
	volatile int quiet;
	unsigned long turns[3];	/* what is rare has its turn */
	unsigned long counts[NR_COUNTS];
	unsigned long ops[NR_OPS];
	unsigned long advice[NR_ADVICE];
	unsigned long findings[FILES];
	unsigned long spins[NR_SPIN];
	unsigned long stale[NR_SPIN];
	unsigned long read_only_written;
	unsigned long hold_changed;
	unsigned long bystander_hit;
	unsigned long errors;
	const char *first_error;	/* the same in all: nobody execs */
	struct spin spin;
	struct page_state pages[FILES][PAGES];
};

static struct shared *shared;
static bool unshared;		/* --unshared: ordinary memfds only */
static bool protection;		/* the kernel has memfd_protect() */
static bool two_nodes;
static bool guards;		/* the kernel has guard regions in files */
static size_t cut_unit = 1;	/* pages; where ftruncate() is sure to end */
static int spin_fd = -1, spin_nfd = -1;

/*
 * Where the tables with pages are in a file. In a large one they are far apart, at both
 * ends of two whole GiBs and in a third, and between them is nothing.
 */
static size_t place[TABLES] = { 0, 1, 2, 3, 4, 5 };
static size_t file_size = TABLES * TABLE_SIZE;
static size_t window_size = TABLES * TABLE_SIZE; /* a file, and what aligns the next */
static bool large;		/* --large */
static bool huge;		/* --huge: large, with huge pages */

static struct file {
	int fd;
	int nfd;
	const char *name;
} files[FILES] = {
	{ .name = "shared, protected" },
	{ .name = "shared" },
	{ .name = "ordinary" },
};

static void make_large(void)
{
	static const size_t far[TABLES] = {
		0, 1, GIB_TABLES - 1, GIB_TABLES, 2 * GIB_TABLES - 1, 2 * GIB_TABLES,
	};

	memcpy(place, far, sizeof(place));
	file_size = LARGE_TABLES * TABLE_SIZE;
	window_size = 3 * GIB_TABLES * TABLE_SIZE;
	large = true;
}

/* The offset of a page */
static size_t at(size_t page)
{
	return place[page / 512] * TABLE_SIZE + page % 512 * 4096;
}

/* From the first to the last of some pages, with what is between them */
static size_t bytes_of(size_t page, size_t nr)
{
	return at(page + nr - 1) + 4096 - at(page);
}

/* How many of some pages have nothing between them */
static size_t next_to_each_other(size_t page, size_t nr)
{
	size_t i = 1;

	while (i < nr && at(page + i) == at(page + i - 1) + 4096)
		i++;
	return i;
}

static void count(enum count which, unsigned long nr)
{
	__atomic_fetch_add(&shared->counts[which], nr, __ATOMIC_RELAXED);
}

static unsigned int rnd(unsigned int *state, unsigned int below)
{
	*state = *state * 1103515245u + 12345u;
	return (*state >> 8) % below;
}

enum turn { TURN_OPS, TURN_ADVICE, TURN_CHILD };

/* Random numbers would leave something out in a slow guest */
static unsigned int take_turn(enum turn what, unsigned int below)
{
	return more(shared->turns[what]) % below;
}

static bool first_errors(const char *what)
{
	unsigned long before = more(shared->errors);

	if (!before)
		shared->first_error = what;
	return before < 10;
}

static void error_once(const char *what, long value)
{
	if (first_errors(what))
		ksft_print_msg("unexpected: %s: %ld\n", what, value);
}

/* Others than the spinner have a rest from time to time */
static bool go_on(void)
{
	while (shared->quiet && !shared->stop)
		usleep(4000);
	return !shared->stop;
}

static bool wait_for(volatile int *word, int value)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (*word != value) {
		if (now_ns() > end)
			return false;
		usleep(200);
	}
	return true;
}

/*
 * The windows of a process: for each file one that is for reading and writing,
 * one that is read-only, and room to move to. What is not mapped is reserved,
 * so that nothing else comes to lie there. A thread that changes windows holds
 * the lock; others access them at any time and may find them gone.
 */
static struct space {
	char *rw[FILES];
	char *ro[FILES];
	char *spare[FILES];
	bool holes[FILES][2];	/* something is not mapped */
	bool rights[FILES][2];	/* something is not accessible as usual */
	pthread_mutex_t lock;
	int source;		/* a memfd, to read(2) from into a window: a
				 * page for each thread
				 */
} space = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void reserve_at(char *addr, size_t len)
{
	if (mmap(addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		error_once("reserve", -errno);
}

static void map_window(unsigned int f, bool ro)
{
	char *addr = ro ? space.ro[f] : space.rw[f];

	if (map_at(addr, files[f].fd, 0, file_size,
		   ro ? PROT_READ : PROT_RW) == MAP_FAILED)
		error_once("mmap", -errno);
	space.holes[f][ro] = false;
	space.rights[f][ro] = false;
}

static bool space_init(void)
{
	/* An address has the same place in a GiB as the offset. */
	size_t unit = GIB_TABLES * TABLE_SIZE;
	char *area = reserve(3 * FILES * window_size + unit);

	if (area == MAP_FAILED)
		return false;
	area = (char *)(((uintptr_t)area + unit - 1) & -unit);
	for (unsigned int f = 0; f < FILES; f++, area += 3 * window_size) {
		space.rw[f] = area;
		space.ro[f] = area + window_size;
		space.spare[f] = area + 2 * window_size;
		map_window(f, false);
		map_window(f, true);
	}
	space.source = syscall(__NR_memfd_create, "source", MFD_CLOEXEC);
	return space.source >= 0;
}

/* Accesses: what comes back is 0, SIGSEGV for "not mapped", or SIGBUS */

enum road { ROAD_MAP, ROAD_READ_ONLY, ROAD_CALL, ROAD_VM, NR_ROADS };

static const char * const road_names[NR_ROADS] = {
	"mapping", "read-only mapping or copy_to_user", "system call",
	"process_vm",
};

struct copy {
	volatile uint64_t *to;
	const volatile uint64_t *from;
};

static long copy_words(void *arg)
{
	struct copy *copy = arg;

	for (size_t i = 0; i < WORDS; i++)
		copy->to[i] = copy->from[i];
	return 0;
}

static int guarded_copy(void *to, const void *from)
{
	struct copy copy = { to, from };
	struct outcome out = { 0 };

	run_guarded(copy_words, &copy, &out);
	return out.sig;
}

/*
 * What lies behind the end of the file is zero. A file that is being cut ends there
 * before its pages are taken out of mappings, so others may find data still.
 */
static int read_file_page(unsigned int f, size_t page, uint64_t *words,
			  bool *cut)
{
	ssize_t got = pread(files[f].fd, words, 4096, at(page));

	if (got < 0) {
		error_once("pread", -errno);
		got = 0;
	}
	memset((char *)words + got, 0, 4096 - got);
	*cut = got < 4096;
	return 0;
}

static int read_page(unsigned int f, char *map, size_t page, enum road road,
		     uint64_t *words, bool *cut)
{
	struct iovec here = { words, 4096 }, there = { map + at(page), 4096 };

	switch (road) {
	case ROAD_MAP:
		return guarded_copy(words, map + at(page));
	case ROAD_READ_ONLY:
		return guarded_copy(words, space.ro[f] + at(page));
	case ROAD_VM:
		return process_vm_readv(getpid(), &here, 1, &there, 1, 0) ==
		       4096 ? 0 : SIGSEGV;
	default:
		return read_file_page(f, page, words, cut);
	}
}

static int write_file_page(unsigned int f, size_t page, const uint64_t *words)
{
	ssize_t ret = pwrite(files[f].fd, words, 4096, at(page));

	if (ret < 0 && errno != EPERM)
		error_once("pwrite", -errno);
	return ret == 4096 ? 0 : SIGBUS;
}

static int write_page(unsigned int f, char *map, size_t page, enum road road,
		      uint64_t *words)
{
	struct iovec here = { words, 4096 }, there = { map + at(page), 4096 };
	off_t mine = (off_t)gettid() * 4096;

	switch (road) {
	case ROAD_MAP:
		return guarded_copy(map + at(page), words);
	case ROAD_READ_ONLY:
		if (pwrite(space.source, words, 4096, mine) != 4096)
			error_once("pwrite to the source", -errno);
		return pread(space.source, map + at(page), 4096, mine) ==
		       4096 ? 0 : SIGSEGV;
	case ROAD_VM:
		return process_vm_writev(getpid(), &here, 1, &there, 1, 0) ==
		       4096 ? 0 : SIGSEGV;
	default:
		return write_file_page(f, page, words);
	}
}

/* Visits: a page is locked, checked, and written */

struct visit {
	unsigned int f;
	size_t page;
	char *map;		/* the window to use */
	bool sure;		/* it is mapped: nobody changes it now */
	unsigned int *seed;
	struct page_state *s;
	enum road road;
	uint32_t refused;	/* refusals that had ended before */
	bool cut;		/* it was behind the end of the file */
	uint64_t words[WORDS];
};

static size_t pick_page(unsigned int *seed)
{
	size_t table = rnd(seed, TABLES);

	/* Mostly a few pages of each table, so that they meet */
	return table * 512 + (rnd(seed, 4) ? rnd(seed, 24) * 21 :
					     rnd(seed, 512));
}

/* A page in as few lines as there are pieces of other pages and writes in it */
static void report_words(const uint64_t *words)
{
	unsigned int pieces = 0;
	size_t from = 0;

	for (size_t i = 1; i <= WORDS && pieces < 12; i++) {
		if (i < WORDS && words[i] == words[i - 1] + !!words[i])
			continue;
		ksft_print_msg("    words %zu to %zu: %016llx to %016llx\n",
			       from, i - 1, (unsigned long long)words[from],
			       (unsigned long long)words[i - 1]);
		from = i;
		pieces++;
	}
}

static void report_finding(const struct visit *v, const struct page_view *view,
			   enum finding found, size_t at)
{
	if (more(shared->findings[v->f]) >= 10)
		return;
	ksft_print_msg("%s: file '%s' page %zu word %zu is %016llx by %s, pid %d\n",
		       finding_names[found], files[v->f].name, v->page, at,
		       (unsigned long long)v->words[at], road_names[v->road],
		       getpid());
	ksft_print_msg("    last %u seq %u next %u, drops %u to %u, now %u to %u\n",
		       view->last, view->seq, view->next, view->before,
		       view->after, view->ended, view->begun);
	report_words(v->words);
}

/* What this thread does to its mappings now */
static __thread const char *doing = "nothing";

static void not_accessible(const struct visit *v, const char *how)
{
	if (first_errors(doing))
		ksft_print_msg("%s: page %zu of '%s' is not %s at %p, pid %d\n",
			       doing, v->page, files[v->f].name, how,
			       v->map + at(v->page), getpid());
}

/* SIGBUS and EPERM come only while somebody gives cause for them */
static void check_refused(const struct visit *v, const char *what)
{
	count(C_REFUSED, 1);
	if (get(v->s->refuse_begun) == v->refused)
		error_once(what, v->page);
}

static bool get_words(struct visit *v)
{
	int ret;

	v->cut = false;
	ret = read_page(v->f, v->map, v->page, v->road, v->words, &v->cut);
	if (ret == SIGSEGV) {
		if (v->sure && v->road == ROAD_MAP)
			not_accessible(v, "readable");
		count(C_NOT_MAPPED, 1);
		v->road = ROAD_CALL;
		ret = read_page(v->f, v->map, v->page, v->road, v->words,
				&v->cut);
	}
	if (ret)
		check_refused(v, "a load was refused");
	return !ret;
}

/* The page is locked. True if it has to be written, to be right again */
static bool check_locked(struct visit *v)
{
	struct page_view view;
	enum finding found;
	size_t at;

	view_begin(v->s, &view);
	if (!get_words(v))
		return false;
	view_end(v->s, &view);
	count(C_VISITS, 1);
	found = check_page(v->f, v->page, &view, v->words, &at);
	if (found != FOUND_GOOD) {
		report_finding(v, &view, found, at);
		return true;
	}
	if (view.next != view.seq)
		return true;
	if (view.seq && !v->cut && all_zero(v->words))
		page_is_zero(v->s);
	return false;
}

static void write_locked(struct visit *v)
{
	int ret;

	v->road = rnd(v->seed, NR_ROADS);
	write_begin(v->s, v->f, v->page, v->words);
	ret = write_page(v->f, v->map, v->page, v->road, v->words);
	if (ret == SIGSEGV) {
		if (v->sure && v->road == ROAD_MAP)
			not_accessible(v, "writable");
		count(C_NOT_MAPPED, 1);
		ret = write_page(v->f, v->map, v->page, ROAD_CALL, v->words);
	}
	if (ret) {
		count(C_TORN, 1);
		check_refused(v, "a store was refused");
		return;
	}
	write_complete(v->s);
	count(C_WRITES, 1);
	if (!rnd(v->seed, 3)) {
		v->road = rnd(v->seed, NR_ROADS);
		check_locked(v);
	}
}

/* What maps the page read-only must not be the way to write it */
static void store_read_only(const struct visit *v)
{
	char *addr = space.ro[v->f] + at(v->page);
	struct iovec here = { (void *)v->words, 8 }, there = { addr, 8 };
	bool written;

	if (rnd(v->seed, 2))
		written = try_store(addr + 7, 0xff) != SIGSEGV;
	else
		written = process_vm_writev(getpid(), &here, 1, &there, 1,
					    0) >= 0;
	count(C_READ_ONLY, 1);
	if (written)
		more(shared->read_only_written);
}

static void visit(unsigned int *seed, unsigned int f, size_t page, char *map,
		  bool sure)
{
	struct visit v = {
		.f = f, .page = page, .map = map, .sure = sure, .seed = seed,
		.s = &shared->pages[f][page], .road = rnd(seed, NR_ROADS),
	};
	bool write;

	if (!page_trylock(v.s))
		return;
	if (sure)
		v.road = ROAD_MAP;
	v.refused = get(v.s->refuse_ended);
	write = check_locked(&v);
	if (!rnd(seed, 16))
		store_read_only(&v);
	if (write || rnd(seed, 2))
		write_locked(&v);
	page_unlock(v.s);
}

/* The same without the lock, by those who write nothing */
static void peek(unsigned int *seed, unsigned int f, size_t page)
{
	struct visit v = {
		.f = f, .page = page, .map = space.rw[f], .seed = seed,
		.s = &shared->pages[f][page], .road = rnd(seed, NR_ROADS),
	};
	struct page_view view;
	enum finding found;
	size_t at;

	v.refused = get(v.s->refuse_ended);
	view_begin(v.s, &view);
	if (view.lock || !get_words(&v) || !view_end(v.s, &view))
		return;
	count(C_PEEKS, 1);
	found = check_page(f, page, &view, v.words, &at);
	if (found != FOUND_GOOD)
		report_finding(&v, &view, found, at);
}

static void visit_some(unsigned int *seed, unsigned int nr)
{
	for (; nr && !shared->stop; nr--) {
		unsigned int f = rnd(seed, 5) / 2;
		size_t page = pick_page(seed);

		if (rnd(seed, 4))
			visit(seed, f, page, space.rw[f], false);
		else
			peek(seed, f, page);
	}
}

/* Changes to mappings: a piece of a window, of whole tables or of pages */

struct piece {
	unsigned int f;
	bool ro;
	size_t page;		/* the first of its pages */
	size_t nr;
	size_t offset;
	size_t len;
	char *window;
	char *addr;
};

static void pick_piece(unsigned int *seed, struct piece *p)
{
	size_t first, nr;

	p->f = rnd(seed, 5) / 2;
	p->ro = !rnd(seed, 4);
	p->window = p->ro ? space.ro[p->f] : space.rw[p->f];
	if (rnd(seed, 5) == 0) {
		first = 0;
		nr = PAGES;
	} else if (rnd(seed, 2)) {
		first = rnd(seed, TABLES);
		nr = (1 + rnd(seed, TABLES - first)) * 512;
		first *= 512;
	} else {
		first = rnd(seed, PAGES);
		nr = 1 + rnd(seed, PAGES - first < 1024 ? PAGES - first : 1024);
	}
	p->page = first;
	p->nr = nr;
	p->offset = at(first);
	p->len = bytes_of(first, nr);
	p->addr = p->window + p->offset;
}

/* A page of the piece is used: it must be mapped */
static void use_piece(unsigned int *seed, const struct piece *p, char *window)
{
	size_t page = p->page + rnd(seed, p->nr);

	if (!p->ro)
		visit(seed, p->f, page, window, !space.rights[p->f][0]);
}

static bool op_map_all(unsigned int *seed, struct piece *p)
{
	map_window(p->f, false);
	map_window(p->f, true);
	use_piece(seed, p, p->window);
	return true;
}

static bool op_map(unsigned int *seed, struct piece *p)
{
	if (map_at(p->addr, files[p->f].fd, p->offset, p->len,
		   p->ro ? PROT_READ : PROT_RW) == MAP_FAILED)
		return false;
	use_piece(seed, p, p->window);
	return true;
}

static bool op_unmap(unsigned int *seed, struct piece *p)
{
	bool ok = !munmap(p->addr, p->len);

	reserve_at(p->addr, p->len);
	space.holes[p->f][p->ro] = true;
	return ok;
}

static bool op_cover(unsigned int *seed, struct piece *p)
{
	reserve_at(p->addr, p->len);
	space.holes[p->f][p->ro] = true;
	return true;
}

/* Rights of what is reserved must not change */
static bool change_rights(const struct piece *p, int prot)
{
	if (space.holes[p->f][p->ro])
		map_window(p->f, p->ro);
	return !mprotect(p->addr, p->len, prot);
}

static bool op_protect_ro(unsigned int *seed, struct piece *p)
{
	size_t some = rnd(seed, p->len / 4096) * 4096;

	if (p->ro || !change_rights(p, PROT_READ))
		return false;
	if (try_store(p->addr + some + 7, 0xff) != SIGSEGV)
		more(shared->read_only_written);
	if (!rnd(seed, 3)) {
		space.rights[p->f][0] = true;
		return true;
	}
	if (!change_rights(p, PROT_RW))
		return false;
	use_piece(seed, p, p->window);
	return true;
}

static bool op_protect_none(unsigned int *seed, struct piece *p)
{
	if (!change_rights(p, PROT_NONE))
		return false;
	if (try_load(p->addr) != SIGSEGV)
		error_once("PROT_NONE can be read", p->offset);
	if (!rnd(seed, 3)) {
		space.rights[p->f][p->ro] = true;
		return true;
	}
	return change_rights(p, p->ro ? PROT_READ : PROT_RW);
}

/* Everything as it was: what was split becomes one again */
static bool op_protect_rw(unsigned int *seed, struct piece *p)
{
	if (space.holes[p->f][p->ro])
		map_window(p->f, p->ro);
	if (mprotect(p->window, file_size, p->ro ? PROT_READ : PROT_RW))
		return false;
	space.rights[p->f][p->ro] = false;
	use_piece(seed, p, p->window);
	return true;
}

/* To the other place and back, or to a place that is not congruent */
static bool op_move(unsigned int *seed, struct piece *p)
{
	size_t shift = p->len < file_size && !rnd(seed, 3) &&
		       p->offset + p->len < file_size ? 4096 : 0;
	char *to = space.spare[p->f] + p->offset + shift;
	bool keep = !rnd(seed, 4);

	if (space.holes[p->f][p->ro])
		map_window(p->f, p->ro);
	if (mremap(p->addr, p->len, p->len, MREMAP_MAYMOVE | MREMAP_FIXED |
		   (keep ? MREMAP_DONTUNMAP : 0), to) == MAP_FAILED) {
		reserve_at(to, p->len);
		return false;
	}
	if (!keep)
		reserve_at(p->addr, p->len);
	use_piece(seed, p, space.spare[p->f] + shift);
	if (keep) {
		use_piece(seed, p, p->window);
	} else if (mremap(to, p->len, p->len, MREMAP_MAYMOVE | MREMAP_FIXED,
			  p->addr) == MAP_FAILED) {
		reserve_at(p->addr, p->len);
		space.holes[p->f][p->ro] = true;
	}
	reserve_at(to, p->len);
	return true;
}

/* Of a shared mapping, an old size of 0 makes a second one */
static bool op_double(unsigned int *seed, struct piece *p)
{
	char *to = space.spare[p->f] + p->offset;
	bool ok;

	if (space.holes[p->f][p->ro])
		map_window(p->f, p->ro);
	ok = mremap(p->addr, 0, p->len, MREMAP_MAYMOVE | MREMAP_FIXED, to) !=
	     MAP_FAILED;
	if (ok)
		use_piece(seed, p, space.spare[p->f]);
	reserve_at(to, p->len);
	return ok;
}

static bool op_lock(unsigned int *seed, struct piece *p)
{
	return !mlock(p->addr, p->len < TABLE_SIZE ? p->len : TABLE_SIZE);
}

static bool op_unlock(unsigned int *seed, struct piece *p)
{
	return !munlock(p->window, file_size);
}

static const int advice[NR_ADVICE] = {
	MADV_DONTNEED, MADV_PAGEOUT, MADV_COLD, MADV_POPULATE_READ,
	MADV_POPULATE_WRITE, MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
	MADV_SEQUENTIAL, MADV_RANDOM, MADV_NORMAL, MADV_DONTFORK, MADV_DOFORK,
	MADV_WILLNEED,
};

static const char * const advice_names[NR_ADVICE] = {
	"DONTNEED", "PAGEOUT", "COLD", "POPULATE_READ", "POPULATE_WRITE",
	"COLLAPSE", "HUGEPAGE", "NOHUGEPAGE", "SEQUENTIAL", "RANDOM", "NORMAL",
	"DONTFORK", "DOFORK", "WILLNEED",
};

/* What makes pages is not for what is between the tables */
static bool makes_pages(int what)
{
	return what == MADV_POPULATE_READ || what == MADV_POPULATE_WRITE ||
	       what == MADV_COLLAPSE;
}

static bool advise_tables(struct piece *p, int what)
{
	size_t page = p->page, behind = p->page + p->nr, nr;

	for (; page < behind; page += nr) {
		nr = next_to_each_other(page, behind - page);
		if (madvise(p->window + at(page), nr * 4096, what))
			return false;
	}
	return true;
}

static bool advise(struct piece *p, unsigned int nr)
{
	if (makes_pages(advice[nr])) {
		if (!advise_tables(p, advice[nr]))
			return false;
	} else if (madvise(p->addr, p->len, advice[nr])) {
		return false;
	}
	__atomic_fetch_add(&shared->advice[nr], 1, __ATOMIC_RELAXED);
	return true;
}

static bool op_advise(unsigned int *seed, struct piece *p)
{
	bool any = false;

	for (unsigned int i = 6 + rnd(seed, 6); i; i--)
		any |= advise(p, take_turn(TURN_ADVICE, NR_ADVICE));
	return any;
}

static bool op_msync(unsigned int *seed, struct piece *p)
{
	return !msync(p->addr, p->len, MS_SYNC);
}

static bool op_mincore(unsigned int *seed, struct piece *p)
{
	static unsigned char resident[LARGE_TABLES * 512];

	return !mincore(p->addr, p->len, resident);
}

/* Registered and let go: pages are neither missing nor protected by it */
static bool op_uffd(unsigned int *seed, struct piece *p)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	struct uffdio_register reg = {
		.range = { (uintptr_t)p->addr, p->len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	bool ok;

	if (space.holes[p->f][p->ro])
		map_window(p->f, p->ro);
	ok = !ioctl(uffd, UFFDIO_API, &api) &&
	     !ioctl(uffd, UFFDIO_REGISTER, &reg);
	if (ok)
		use_piece(seed, p, p->window);
	close(uffd);
	return ok;
}

/* Guards of this process, which nobody else may meet */
static bool op_guard(unsigned int *seed, struct piece *p)
{
	size_t some;
	bool ok;

	/* Each page gets an entry of its own */
	if (large && p->len > 2 * TABLE_SIZE)
		return false;
	some = rnd(seed, p->len / 4096) * 4096;
	if (space.holes[p->f][p->ro])
		map_window(p->f, p->ro);
	/* Refused by a locked piece, it leaves guards in what lies before that */
	ok = !madvise(p->addr, p->len, MADV_GUARD_INSTALL);
	if (ok && try_load(p->addr + some) != SIGSEGV)
		error_once("a guard can be read", p->offset + some);
	if (guards && madvise(p->addr, p->len, MADV_GUARD_REMOVE))
		error_once("guards stay", -errno);
	if (!ok)
		return false;
	use_piece(seed, p, p->window);
	return true;
}

#define POLICY_DEFAULT	0
#define POLICY_PREFERRED 1
#define POLICY_MOVE	2	/* MPOL_MF_MOVE */

static bool op_mbind(unsigned int *seed, struct piece *p)
{
	unsigned long node = 1 + rnd(seed, two_nodes ? 2 : 1);
	int policy = rnd(seed, 2) ? POLICY_PREFERRED : POLICY_DEFAULT;

	return !syscall(__NR_mbind, p->addr, p->len, policy,
			policy ? &node : NULL, policy ? 64UL : 0, POLICY_MOVE);
}

static bool op_migrate(unsigned int *seed, struct piece *p)
{
	unsigned long from = 1 + rnd(seed, 2), to = 3 - from;

	return two_nodes &&
	       syscall(__NR_migrate_pages, 0, 64UL, &from, &to) >= 0;
}

static bool op_read_proc(unsigned int *seed, struct piece *p)
{
	static const char * const names[] = {
		"smaps", "smaps_rollup", "numa_maps", "maps", "status",
	};
	static char text[65536];
	static uint64_t entries[512];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s",
		 names[rnd(seed, ARRAY_SIZE(names))]);
	if (!read_file(path, text, sizeof(text)))
		return false;
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (pread(fd, entries, sizeof(entries),
		  (uintptr_t)p->addr / 4096 * sizeof(entries[0])) < 0)
		error_once("pagemap", -errno);
	close(fd);
	return true;
}

static bool op_clear_refs(unsigned int *seed, struct piece *p)
{
	return write_file("/proc/self/clear_refs", rnd(seed, 2) ? "4" : "1");
}

static bool op_fork(unsigned int *seed, struct piece *p);

static const struct op {
	const char *name;
	bool (*fn)(unsigned int *seed, struct piece *p);
} ops[NR_OPS] = {
	{ "map all", op_map_all }, { "map a piece", op_map },
	{ "munmap", op_unmap }, { "map over it", op_cover },
	{ "mprotect read-only", op_protect_ro },
	{ "mprotect none", op_protect_none },
	{ "mprotect back", op_protect_rw },
	{ "mremap", op_move }, { "mremap from size 0", op_double },
	{ "mlock", op_lock }, { "munlock", op_unlock },
	{ "madvise", op_advise }, { "msync", op_msync },
	{ "mincore", op_mincore }, { "userfaultfd", op_uffd },
	{ "mbind", op_mbind }, { "migrate_pages", op_migrate },
	{ "read /proc", op_read_proc }, { "clear_refs", op_clear_refs },
	{ "fork", op_fork }, { "guard regions", op_guard },
};

/* Sharing begins anew with each mapping of the whole: that is done most */
static void change_something(unsigned int *seed)
{
	unsigned int nr = rnd(seed, 3) ? take_turn(TURN_OPS, NR_OPS) : 0;
	struct piece p;

	pick_piece(seed, &p);
	doing = ops[nr].name;
	if (ops[nr].fn(seed, &p))
		__atomic_fetch_add(&shared->ops[nr], 1, __ATOMIC_RELAXED);
}

/* Children: they use what they inherited, and end in one of many ways */

static void forked_child(unsigned int seed)
{
	static char * const argv[] = { "ptshare_stress", "--exit", NULL };
	struct piece p;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	visit_some(&seed, 1 + rnd(&seed, 12));
	if (rnd(&seed, 2)) {
		pick_piece(&seed, &p);
		ops[1 + rnd(&seed, 8)].fn(&seed, &p);
		visit_some(&seed, rnd(&seed, 6));
	}
	if (!take_turn(TURN_CHILD, 4)) {
		count(C_EXECS, 1);
		execv("/proc/self/exe", argv);
		error_once("exec", -errno);
	}
	_exit(0);
}

/* Whoever is killed in here leaves the dead child to the main process: see reap() */
static void reap_child(pid_t pid, bool killed)
{
	siginfo_t info;
	int status = 0;

	if (waitid(P_PID, pid, &info, WEXITED | WNOWAIT))
		error_once("waitid", -errno);
	for (unsigned int f = 0; f < FILES; f++)
		pages_unlock_dead(shared->pages[f], PAGES, pid);
	if (waitpid(pid, &status, 0) != pid)
		error_once("waitpid", -errno);
	if (WIFSIGNALED(status) && !(killed && WTERMSIG(status) == SIGKILL))
		error_once("a child was killed by signal", WTERMSIG(status));
}

/* Orders to stop reach a child within its few visits */
static bool op_fork(unsigned int *seed, struct piece *p)
{
	bool killed = !rnd(seed, 4);
	unsigned int child_seed = *seed + getpid();
	pid_t pid = fork();

	if (!pid)
		forked_child(child_seed);
	if (pid < 0) {
		error_once("fork", -errno);
		return false;
	}
	count(C_FORKS, 1);
	visit_some(seed, 2);
	if (killed) {
		usleep(rnd(seed, 4000));
		kill(pid, SIGKILL);
		count(C_KILLS, 1);
	}
	reap_child(pid, killed);
	return true;
}

/* Workers: two threads each */

static void work(unsigned int seed, unsigned int rounds)
{
	for (; rounds && go_on(); rounds--) {
		visit_some(&seed, 1 + rnd(&seed, 12));
		if (pthread_mutex_trylock(&space.lock))
			continue;
		change_something(&seed);
		pthread_mutex_unlock(&space.lock);
	}
}

static void *work_thread(void *arg)
{
	work(*(unsigned int *)arg, 1000000);
	return NULL;
}

static void worker(unsigned int seed)
{
	unsigned int seed2 = seed ^ 0x5555;
	pthread_t thread;

	/* The heap is not to lie where a window has a hole for a moment */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 1 << 28);
	if (!space_init() ||
	    pthread_create(&thread, NULL, work_thread, &seed2)) {
		error_once("start of threads", -errno);
		_exit(1);
	}
	work(seed, 30 + rnd(&seed, 200));
	if (!rnd(&seed, 3)) {
		/* The other thread may rely on its windows */
		pthread_mutex_lock(&space.lock);
		munmap(space.rw[0], 3 * FILES * window_size);
	}
	count(C_EXITS, 1);
	_exit(0);
}

/* Who drops pages of a file: one process for each */

static void drop_begin(unsigned int f, size_t page, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		more(shared->pages[f][page + i].drop_begun);
}

/* A drop that failed changed nothing: it was none */
static void drop_end(unsigned int f, size_t page, size_t nr, bool done)
{
	for (size_t i = 0; i < nr; i++) {
		struct page_state *s = &shared->pages[f][page + i];

		if (done)
			more(s->drop_ended);
		else
			__atomic_fetch_sub(&s->drop_begun, 1, __ATOMIC_SEQ_CST);
	}
}

static void refuse(unsigned int f, size_t page, size_t nr, bool begin)
{
	for (size_t i = 0; i < nr; i++) {
		if (begin)
			more(shared->pages[f][page + i].refuse_begun);
		else
			more(shared->pages[f][page + i].refuse_ended);
	}
}

static bool punch(unsigned int f, char *map, size_t page, size_t nr)
{
	bool done;

	drop_begin(f, page, nr);
	if (map)
		done = !madvise(map + at(page), nr * 4096, MADV_REMOVE);
	else
		done = !fallocate(files[f].fd, FALLOC_FL_PUNCH_HOLE |
				  FALLOC_FL_KEEP_SIZE, at(page), nr * 4096);
	if (!done && errno != EPERM)
		error_once("punch", -errno);
	if (done)
		count(map ? C_REMOVES : C_PUNCHES, 1);
	drop_end(f, page, nr, done);
	return done;
}

/* Nobody writes these pages now: they must be zero, for everybody, at once */
static void punch_locked(unsigned int f, const char *map, size_t page,
			 size_t nr)
{
	struct page_state *s = &shared->pages[f][page];
	size_t locked = 0;
	bool done;

	while (locked < nr && page_trylock(&s[locked]))
		locked++;
	done = locked && punch(f, NULL, page, locked);
	if (done)
		count(C_LOCKED_PUNCHES, 1);
	for (size_t i = 0; done && i < locked; i++) {
		page_is_zero(&s[i]);
		if (load64(map + at(page + i) + 8 * (i % WORDS)) &&
		    more(shared->findings[f]) < 10)
			ksft_print_msg("file '%s' page %zu is not zero after a punch\n",
				       files[f].name, page + i);
	}
	for (size_t i = 0; i < locked; i++)
		page_unlock(&s[i]);
}

/* All from here on is cut off, and the file has its size again */
static void cut(unsigned int f, size_t page, unsigned int *seed)
{
	bool done;

	refuse(f, page, PAGES - page, true);
	drop_begin(f, page, PAGES - page);
	done = !ftruncate(files[f].fd, at(page));
	if (!done && errno != EPERM)
		error_once("cut", -errno);
	if (done) {
		count(C_CUTS, 1);
		usleep(rnd(seed, 1000));
		if (ftruncate(files[f].fd, file_size))
			error_once("grow", -errno);
	}
	drop_end(f, page, PAGES - page, done);
	refuse(f, page, PAGES - page, false);
}

static void puncher(unsigned int f, unsigned int seed)
{
	char *map = map_file(files[f].fd, 0, file_size, PROT_RW);
	size_t page, nr;

	while (map != MAP_FAILED && go_on()) {
		page = pick_page(&seed);
		nr = 1 + rnd(&seed, rnd(&seed, 3) ? 8 : 700);
		if (nr > PAGES - page)
			nr = PAGES - page;
		nr = next_to_each_other(page, nr);
		switch (rnd(&seed, 8)) {
		case 0:
			page = PAGES - 1 - rnd(&seed, CUT_TABLES * 512);
			cut(f, page / cut_unit * cut_unit, &seed);
			break;
		case 1:
		case 2:
			punch(f, map, page, nr);
			break;
		case 3:
		case 4:
		case 5:
			punch_locked(f, map, page, nr > 32 ? 32 : nr);
			break;
		default:
			punch(f, NULL, page, nr);
		}
		usleep(rnd(&seed, 15000));
	}
	_exit(0);
}

/* Who write-protects ranges by offset */

static void read_range(unsigned int f, size_t page, size_t nr, char *to)
{
	memset(to, 0, nr * 4096);
	if (pread(files[f].fd, to, nr * 4096, at(page)) < 0)
		error_once("pread of a range", -errno);
}

/* From the first to the last of some pages */
static long protect_span(unsigned int f, size_t page, size_t nr, unsigned int mode)
{
	return sys_memfd_protect(files[f].fd, at(page), bytes_of(page, nr), PROT_READ,
				 mode);
}

static void lift(unsigned int f, size_t page, size_t nr)
{
	long ret = sys_memfd_protect(files[f].fd, at(page), bytes_of(page, nr), PROT_RW,
				     0);

	if (ret)
		error_once("unprotect", ret);
}

/* Protects the pages, with all others perhaps, and looks at them */
static void hold(unsigned int f, size_t page, size_t nr, unsigned int mode, bool all,
		 unsigned int *seed)
{
	static char before[64 * 4096], after[64 * 4096];
	size_t first = all ? 0 : page, count_of = all ? PAGES : nr;
	long ret;

	if (mode == MEMFD_PROTECT_DENY)
		refuse(f, first, count_of, true);
	ret = protect_span(f, first, count_of, mode);
	if (!ret) {
		read_range(f, page, nr, before);
		usleep(rnd(seed, 6000));
		read_range(f, page, nr, after);
		if (memcmp(before, after, nr * 4096) &&
		    more(shared->hold_changed) < 10)
			ksft_print_msg("pages %zu to %zu of '%s' changed in mode %u\n",
				       page, page + nr - 1, files[f].name, mode);
		lift(f, first, count_of);
		count(mode == MEMFD_PROTECT_DENY ? C_DENIALS : C_HOLDS, 1);
	} else if (ret != -EBUSY) {
		error_once("memfd_protect", ret);
	}
	if (mode == MEMFD_PROTECT_DENY)
		refuse(f, first, count_of, false);
}

static void log_writes(unsigned int f, size_t page, size_t nr,
		       unsigned int *seed)
{
	static struct memfd_range ranges[512];
	uint64_t end;
	int got;

	if (protect_span(f, page, nr, MEMFD_PROTECT_ASYNC))
		return;
	for (unsigned int i = rnd(seed, 4); i; i--) {
		usleep(rnd(seed, 5000));
		got = scan_range(files[f].nfd, 0, 0, ranges, ARRAY_SIZE(ranges),
				 MEMFD_SCAN_REPROTECT, &end);
		if (got < 0)
			error_once("scan", got);
		count(C_SCANS, 1);
	}
	lift(f, page, nr);
}

static void protector(unsigned int f, unsigned int seed)
{
	size_t page, nr;
	bool all;

	while (go_on()) {
		page = pick_page(&seed);
		nr = 1 + rnd(&seed, PAGES - page < 64 ? PAGES - page : 64);
		nr = next_to_each_other(page, nr);
		all = !rnd(&seed, 4);
		switch (rnd(&seed, 3)) {
		case MEMFD_PROTECT_ASYNC:
			log_writes(f, page, 1 + rnd(&seed, PAGES - page), &seed);
			break;
		case MEMFD_PROTECT_WAIT:
			hold(f, page, nr, MEMFD_PROTECT_WAIT, all, &seed);
			break;
		default:
			hold(f, page, nr, MEMFD_PROTECT_DENY, all, &seed);
		}
		drain_events(files[f].nfd);
		usleep(rnd(&seed, 10000));
	}
	_exit(0);
}

/* What happens to pages meanwhile */

static void reclaimer(unsigned int f, unsigned int seed)
{
	bool cgroup = !access(CGROUP "/memory.reclaim", W_OK);
	char *map = map_file(files[f].fd, 0, file_size, PROT_RW);

	while (map != MAP_FAILED && go_on()) {
		/* EAGAIN when less was reclaimed: that is all right */
		if (cgroup && rnd(&seed, 3))
			write_file(CGROUP "/memory.reclaim", "4M");
		else
			madvise(map + at(pick_page(&seed) & -512UL), TABLE_SIZE,
				MADV_PAGEOUT);
		count(C_RECLAIMS, 1);
		usleep(20000 + rnd(&seed, 80000));
	}
	_exit(0);
}

static void mover(unsigned int f, unsigned int seed)
{
	char *map = map_file(files[f].fd, 0, file_size, PROT_RW);
	void *pages[16];
	int to[16], status[16];

	while (map != MAP_FAILED && go_on()) {
		for (int i = 0; i < 16; i++) {
			pages[i] = map + at(pick_page(&seed));
			to[i] = rnd(&seed, 2);
			try_load(pages[i]);
		}
		if (two_nodes && syscall(__NR_move_pages, 0, 16, pages, to,
					 status, 4) >= 0)
			count(C_MOVED, 16);
		if (!rnd(&seed, 20)) {
			write_file("/proc/sys/vm/compact_memory", "1");
			count(C_COMPACTS, 1);
		}
		usleep(rnd(&seed, 8000));
	}
	_exit(0);
}

/* Windows of the kernel's races become wide, now this one, now that one */
static void delayer(unsigned int f, unsigned int seed)
{
	static const char * const names[] = { "ask", "link", "teardown" };
	char path[128], text[16];

	while (go_on()) {
		snprintf(path, sizeof(path), DELAY_DIR "%s",
			 names[rnd(&seed, ARRAY_SIZE(names))]);
		snprintf(text, sizeof(text), "%u",
			 rnd(&seed, 3) ? 0 : rnd(&seed, 1500));
		write_file(path, text);
		usleep(30000);
	}
	_exit(0);
}

static void no_delays(void)
{
	write_file(DELAY_DIR "ask", "0");
	write_file(DELAY_DIR "link", "0");
	write_file(DELAY_DIR "teardown", "0");
}

/* Pages come and go here, and nobody else knows them */
static void bystander(unsigned int f, unsigned int seed)
{
	size_t words = (4UL << 20) / sizeof(uint64_t);
	uint64_t *mine = mmap(NULL, 4UL << 20, PROT_RW,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	while (mine != MAP_FAILED && go_on()) {
		for (size_t i = 0; i < words; i += 8)
			mine[i] = ~(uintptr_t)&mine[i];
		usleep(rnd(&seed, 20000));
		for (size_t i = 0; i < words; i++) {
			if (mine[i] == (i % 8 ? 0 : ~(uintptr_t)&mine[i]))
				continue;
			if (more(shared->bystander_hit) < 10)
				ksft_print_msg("anonymous memory has %016llx in word %zu\n",
					       (unsigned long long)mine[i], i);
			break;
		}
		madvise(mine, 4UL << 20, MADV_DONTNEED);
		count(C_BYSTANDER, 1);
	}
	_exit(0);
}

/*
 * The spinner stores ascending numbers to one word and enters the kernel only
 * when a store faults. A helper, another thread of the same process, changes
 * its mapping; who checks is another process, which changes the file.
 */

#define SPIN_TABLES	2
#define SPIN_SIZE	(SPIN_TABLES * TABLE_SIZE)

static char *spin_map, *spin_spare;

static long spin_loop(void *arg)
{
	struct spin *s = arg;

	while (!s->stop) {
		store64(spin_map + s->page * 4096, s->stores + 1);
		s->stores = s->stores + 1;
	}
	return 0;
}

static bool spin_order(enum spin_kind kind, bool undo)
{
	char *table = spin_map + shared->spin.page * 4096 / TABLE_SIZE *
		      TABLE_SIZE;
	char *from = undo ? spin_spare : spin_map;
	char *to = undo ? spin_map : spin_spare;

	switch (kind) {
	case SPIN_DONTNEED:
		return undo || !madvise(table, TABLE_SIZE, MADV_DONTNEED);
	case SPIN_UNMAP:
		if (!undo)
			return !munmap(table, TABLE_SIZE);
		return map_at(spin_map, spin_fd, 0, SPIN_SIZE, PROT_RW) !=
		       MAP_FAILED;
	case SPIN_READ_ONLY:
		return !mprotect(table, TABLE_SIZE, undo ? PROT_RW : PROT_READ);
	default:
		return mremap(from, SPIN_SIZE, SPIN_SIZE,
			      MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
	}
}

/* Odd numbers of orders are to do something, even ones to undo it */
static void *spin_helper(void *arg)
{
	struct spin *s = arg;

	pin_to_cpu(0, 0);
	while (!s->stop) {
		if (s->done == s->orders) {
			usleep(50);
			continue;
		}
		if (!spin_order(s->order, s->orders % 2 == 0))
			error_once("the spinner's helper", -errno);
		s->done = s->orders;
	}
	return NULL;
}

static void spinner(void)
{
	struct spin *s = &shared->spin;
	struct outcome out = { 0 };
	pthread_t helper;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	spin_map = reserve(2 * SPIN_SIZE);
	spin_spare = spin_map + SPIN_SIZE;
	if (spin_map == MAP_FAILED ||
	    pthread_create(&helper, NULL, spin_helper, s) ||
	    map_at(spin_map, spin_fd, 0, SPIN_SIZE, PROT_RW) == MAP_FAILED ||
	    !pin_to_cpu(0, sysconf(_SC_NPROCESSORS_ONLN) - 1))
		_exit(1);
	while (!s->stop) {
		run_guarded(spin_loop, s, &out);
		if (out.sig)
			more(s->faults);
	}
	_exit(0);
}

/* Waits until one of the counters is there; false is an error of the test */
static bool spin_wait(uint64_t stores, uint64_t faults, bool events)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	struct spin *s = &shared->spin;

	while (s->stores < stores && s->faults < faults &&
	       !(events && readable(spin_nfd, 0))) {
		if (shared->stop)
			return false;
		if (now_ns() > end) {
			error_once("the spinner stands still, stores", s->stores);
			return false;
		}
		if (!shared->quiet)
			usleep(100);
	}
	return true;
}

static bool spin_tell(enum spin_kind kind)
{
	struct spin *s = &shared->spin;

	s->order = kind;
	s->orders = s->orders + 1;
	return wait_for(&s->done, s->orders);
}

static long spin_change(enum spin_kind kind, char *map, size_t page, bool undo)
{
	void *addr = map + page * 4096;
	int node, status;

	switch (kind) {
	case SPIN_PUNCH:
		return undo ? 0 : fallocate(spin_fd, FALLOC_FL_PUNCH_HOLE |
					    FALLOC_FL_KEEP_SIZE, page * 4096,
					    4096);
	case SPIN_CUT:
		return ftruncate(spin_fd, undo ? SPIN_SIZE : 0);
	case SPIN_PAGEOUT:
		return undo ? 0 : madvise(addr, 4096, MADV_PAGEOUT);
	case SPIN_MOVE:
		node = shared->spins[SPIN_MOVE] & 1;
		/* More than 0: somebody has it in hand, and it stays */
		return undo ? 0 : syscall(__NR_move_pages, 0, 1, &addr, &node,
					  &status, 4) < 0;
	case SPIN_WAIT:
	case SPIN_DENY:
		if (undo)
			return unprotect_pages(spin_fd, page, 1);
		return protect_pages(spin_fd, page, 1, kind == SPIN_WAIT ?
				     MEMFD_PROTECT_WAIT : MEMFD_PROTECT_DENY);
	default:
		return spin_tell(kind) ? 0 : -ETIME;
	}
}

static void spin_stale(enum spin_kind kind, uint64_t before, uint64_t now)
{
	if (more(shared->stale[kind]) < 3)
		ksft_print_msg("%s: stores of a stale entry: %llu, then %llu\n",
			       spin_names[kind], (unsigned long long)before,
			       (unsigned long long)now);
}

/*
 * The store after the next begins after the change is complete: its number must
 * be in the file, or it must not have succeeded.
 */
static bool spin_check(enum spin_kind kind, size_t page, uint64_t faults)
{
	struct spin *s = &shared->spin;
	uint64_t before = s->stores, now;

	if (kind <= SPIN_DONTNEED && kind != SPIN_CUT) {
		if (!spin_wait(before + 2, ~0ULL, false))
			return false;
		now = file64(spin_fd, page * 4096);
		if (now < before + 2)
			spin_stale(kind, before, now);
		return true;
	}
	if (!spin_wait(before + 2, faults + 1, kind == SPIN_WAIT))
		return false;
	usleep(100);
	now = s->stores;
	if (now > before + 1)
		spin_stale(kind, before, now);
	return true;
}

static bool spin_round(enum spin_kind kind, char *map, size_t page)
{
	struct spin *s = &shared->spin;
	uint64_t faults;
	bool ok;

	s->page = page;
	if (!spin_wait(s->stores + 3, ~0ULL, false))
		return false;
	if (kind == SPIN_PAGEOUT || kind == SPIN_MOVE)
		try_load(map + page * 4096);
	faults = s->faults;
	if (spin_change(kind, map, page, false)) {
		if (kind == SPIN_WAIT || kind == SPIN_DENY)
			return errno == EBUSY;
		return false;
	}
	ok = spin_check(kind, page, faults);
	if (spin_change(kind, map, page, true))
		return false;
	if (spin_nfd >= 0)
		drain_events(spin_nfd);
	__atomic_fetch_add(&shared->spins[kind], 1, __ATOMIC_RELAXED);
	return ok;
}

static bool spin_possible(enum spin_kind kind)
{
	if (kind == SPIN_MOVE)
		return two_nodes;
	return protection || (kind != SPIN_WAIT && kind != SPIN_DENY);
}

static void spin_checker(unsigned int f, unsigned int seed)
{
	char *map = map_file(spin_fd, 0, SPIN_SIZE, PROT_RW);
	enum spin_kind kind;
	pid_t pid = fork();

	if (!pid)
		spinner();
	pin_to_cpu(0, 0);
	while (!shared->stop && pid > 0 && map != MAP_FAILED) {
		kind = rnd(&seed, NR_SPIN);
		if (!spin_possible(kind))
			continue;
		if (!spin_round(kind, map, rnd(&seed, SPIN_SIZE / 4096)) &&
		    !shared->stop)
			error_once("the spinner's round", kind);
		if (!shared->quiet)
			usleep(2000);
	}
	if (pid > 0)
		kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	_exit(0);
}

/* Start, run, end, report */

struct job {
	void (*fn)(unsigned int f, unsigned int seed);
	unsigned int f;
};

static void worker_job(unsigned int f, unsigned int seed)
{
	worker(seed);
}

static const struct job jobs[] = {
	{ worker_job }, { worker_job }, { worker_job }, { worker_job },
	{ worker_job },
	{ puncher, 0 }, { puncher, 1 }, { puncher, 2 },
	{ reclaimer, 0 }, { reclaimer, 1 }, { mover, 0 }, { mover, 1 },
	{ bystander }, { delayer }, { spin_checker },
	{ protector, 0 }, { protector, 2 },
};

static pid_t pids[ARRAY_SIZE(jobs)];

static void start(unsigned int nr, unsigned int seed)
{
	const struct job *job = &jobs[nr];

	if (job->fn == protector && !protection)
		return;
	pids[nr] = fork();
	if (pids[nr])
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	job->fn(job->f, seed);
	_exit(0);
}

/*
 * Takes one that has died; orphans of killed workers come here as well. errno
 * is ECHILD if there is nobody left.
 */
static bool reap(unsigned int *seed)
{
	int status, nr;
	pid_t pid;

	errno = 0;
	pid = waitpid(-1, &status, WNOHANG);
	if (pid <= 0)
		return false;
	for (unsigned int f = 0; f < FILES; f++)
		pages_unlock_dead(shared->pages[f], PAGES, pid);
	if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
		error_once("killed by signal", WTERMSIG(status));
	for (nr = 0; nr < ARRAY_SIZE(jobs); nr++) {
		if (pids[nr] != pid)
			continue;
		pids[nr] = 0;
		if (shared->stop)
			continue;
		if (jobs[nr].fn == worker_job)
			start(nr, rnd(seed, 1 << 20));
		else
			error_once("a process ended too early", nr);
	}
	return true;
}

static void run_for(uint64_t ns, unsigned int *seed)
{
	uint64_t end = now_ns() + ns;
	unsigned int nr;

	while (now_ns() < end) {
		while (reap(seed))
			;
		usleep(5000);
		nr = rnd(seed, 60 * WORKERS);
		if (nr < WORKERS && !shared->quiet && pids[nr] > 0) {
			kill(pids[nr], SIGKILL);
			count(C_KILLS, 1);
		}
	}
}

/* True if links were made in every part of the run */
static bool run(unsigned int seconds, unsigned int *seed)
{
	uint64_t slice = seconds * 1000000000ULL / SLICES;
	long long before, links;
	bool all = true;

	for (unsigned int i = 0; i < SLICES; i++) {
		before = ptshare_counts().link;
		run_for(slice / 4 * 3, seed);
		links = ptshare_counts().link - before;
		/* With other guests beside this one it takes longer */
		for (unsigned int j = 0; j < 8 && links < MIN_LINKS; j++) {
			run_for(slice / 4, seed);
			links = ptshare_counts().link - before;
		}
		if (!unshared)
			ksft_print_msg("part %u: %lld links\n", i + 1, links);
		if (links < MIN_LINKS)
			all = false;
		shared->quiet = 1;
		run_for(slice / 4, seed);
		shared->quiet = 0;
	}
	return all || unshared;
}

/* How many had to be killed */
static unsigned int end_all(unsigned int *seed)
{
	uint64_t end = now_ns() + 60000000000ULL;
	unsigned int hung = 0;

	shared->stop = 1;
	shared->spin.stop = 1;
	while (now_ns() < end) {
		if (reap(seed))
			continue;
		if (errno == ECHILD)
			return 0;
		for (unsigned int f = 0; protection && f < FILES; f += 2)
			unprotect_pages(files[f].fd, 0, 0);
		usleep(5000);
	}
	for (unsigned int nr = 0; nr < ARRAY_SIZE(jobs); nr++) {
		if (!pids[nr])
			continue;
		ksft_print_msg("process %d (job %u) hangs\n", pids[nr], nr);
		kill(pids[nr], SIGKILL);
		hung++;
	}
	return hung ? hung : 1;
}

/* Nobody is left: each page is what it was left as, through a new mapping */
static void final_check(unsigned int *seed)
{
	static const enum road roads[] = { ROAD_MAP, ROAD_READ_ONLY, ROAD_CALL };
	struct visit v = { .seed = seed, .sure = true };

	if (!space_init()) {
		error_once("the last mapping", -errno);
		return;
	}
	for (unsigned int r = 0; r < ARRAY_SIZE(roads); r++) {
		for (v.f = 0; v.f < FILES; v.f++) {
			v.map = space.rw[v.f];
			for (v.page = 0; v.page < PAGES; v.page++) {
				v.s = &shared->pages[v.f][v.page];
				v.road = roads[r];
				if (v.s->lock)
					error_once("still locked", v.page);
				else
					check_locked(&v);
			}
		}
	}
	munmap(space.rw[0], 3 * FILES * window_size);
}

static void enter_cgroup(bool enter)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	if (!enter) {
		write_file("/sys/fs/cgroup/cgroup.procs", pid);
		rmdir(CGROUP);
		return;
	}
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (!mkdir(CGROUP, 0755) || errno == EEXIST)
		write_file(CGROUP "/cgroup.procs", pid);
}

/* Large folios, so that several entries of a table belong together */
static const char * const thp_files[] = {
	THP_DIR "shmem_enabled", THP_DIR "hugepages-64kB/shmem_enabled",
};

static char thp_before[ARRAY_SIZE(thp_files)][32];

static void large_folios(bool on)
{
	char text[256], *from, *to;

	for (unsigned int i = 0; i < ARRAY_SIZE(thp_files); i++) {
		if (!on) {
			write_file(thp_files[i], thp_before[i]);
			continue;
		}
		if (!read_file(thp_files[i], text, sizeof(text)))
			continue;
		from = strchr(text, '[');
		to = from ? strchr(from, ']') : NULL;
		if (to && to - from <= (int)sizeof(thp_before[i])) {
			memcpy(thp_before[i], from + 1, to - from - 1);
			write_file(thp_files[i], i || huge ? "always" : "advise");
		}
	}
}

static int open_file(unsigned int flags, size_t size)
{
	int fd = neg_errno(syscall(__NR_memfd_create, "ptshare-stress",
				   MFD_CLOEXEC | flags));

	if (fd >= 0 && ftruncate(fd, size))
		return -errno;
	return fd;
}

static bool open_files(void)
{
	unsigned int share = unshared ? 0 : MFD_SHARE_PGTABLES;
	unsigned int protect = protection ? MFD_ALLOW_PROTECT : 0;

	files[0].fd = open_file(share | protect, file_size);
	files[1].fd = open_file(share, file_size);
	files[2].fd = open_file(protect, file_size);
	spin_fd = open_file(share | protect, SPIN_SIZE);
	if (files[0].fd < 0 || files[1].fd < 0 || files[2].fd < 0 ||
	    spin_fd < 0)
		return false;
	if (!protection)
		return true;
	files[0].nfd = sys_memfd_notify(files[0].fd, MEMFD_NOTIFY_NONBLOCK |
					MEMFD_NOTIFY_KERNEL);
	files[2].nfd = sys_memfd_notify(files[2].fd, MEMFD_NOTIFY_NONBLOCK |
					MEMFD_NOTIFY_KERNEL);
	spin_nfd = sys_memfd_notify(spin_fd, MEMFD_NOTIFY_NONBLOCK);
	return files[0].nfd >= 0 && files[2].nfd >= 0 && spin_nfd >= 0;
}

static void close_files(void)
{
	for (unsigned int f = 0; f < FILES; f++) {
		close(files[f].fd);
		if (protection && f != 1)
			close(files[f].nfd);
	}
	close(spin_fd);
	if (protection)
		close(spin_nfd);
}

/* Without a second node or memfd_protect() some things cannot happen */
static bool count_expected(enum count which)
{
	switch (which) {
	case C_HOLDS:
	case C_DENIALS:
	case C_SCANS:
		return protection;
	case C_MOVED:
		return two_nodes;
	case C_TORN:
		return false;
	default:
		return true;
	}
}

static bool print_count(const char *what, const char *name, unsigned long nr,
			bool expected)
{
	ksft_print_msg("%-10s %-24s %10lu%s\n", what, name, nr,
		       !nr && expected ? "  <- never" : "");
	return nr || !expected;
}

static bool op_expected(bool (*fn)(unsigned int *seed, struct piece *p))
{
	if (fn == op_migrate)
		return two_nodes;
	return fn != op_guard || guards;
}

static bool report_counts(void)
{
	bool all = true;

	for (int i = 0; i < NR_COUNTS; i++)
		all &= print_count("", count_names[i], shared->counts[i],
				   count_expected(i));
	for (int i = 0; i < NR_OPS; i++)
		all &= print_count("mapping:", ops[i].name, shared->ops[i],
				   op_expected(ops[i].fn));
	for (int i = 0; i < NR_ADVICE; i++)
		all &= print_count("madvise:", advice_names[i],
				   shared->advice[i],
				   advice[i] != MADV_COLLAPSE);
	for (int i = 0; i < NR_SPIN; i++)
		all &= print_count("spinner:", spin_names[i],
				   shared->spins[i], spin_possible(i));
	return all;
}

/* All ways in and out of sharing were taken */
static bool report_sharing(const struct ptshare_counts *before)
{
	struct ptshare_counts now = ptshare_counts();

	if (unshared)
		return true;
	ksft_print_msg("links set %lld, cleared %lld; pages swapped out %lld\n",
		       now.link - before->link, now.unlink - before->unlink,
		       vmstat("pswpout"));
	ksft_print_msg("mappings unshared %lld, shared again %lld\n",
		       now.unshare - before->unshare,
		       now.share - before->share);
	if (large) {
		ksft_print_msg("tables protected as a whole %lld, pushed down %lld\n",
			       vmstat("ptshare_protect"), vmstat("ptshare_push_down"));
		if (protection && (!vmstat("ptshare_protect") || !vmstat("ptshare_push_down")))
			return false;
	}
	if (huge) {
		ksft_print_msg("huge entries of files %lld, tables in place of them %lld\n",
			       vmstat("thp_file_mapped"), vmstat("thp_split_pmd"));
		if (!vmstat("thp_file_mapped") || !vmstat("thp_split_pmd"))
			return false;
	}
	return now.link > before->link && now.unlink > before->unlink &&
	       now.unshare > before->unshare && now.share > before->share;
}

static bool all_freed(long long tables)
{
	for (unsigned int i = 0; i < 4; i++) {
		if (tables_become(tables))
			return true;
		ksft_print_msg("there are %lld tables, %lld when it began\n",
			       ptshare_tables(), tables);
	}
	return false;
}

static void report_contents(unsigned int hung)
{
	unsigned long stale = 0;

	for (int i = 0; i < NR_SPIN; i++)
		stale += shared->stale[i];
	ksft_test_result(!shared->findings[0] && !shared->findings[1],
			 "shared files: every page is as written (%lu findings)\n",
			 shared->findings[0] + shared->findings[1]);
	ksft_test_result(!shared->findings[2],
			 "ordinary file: the same (%lu findings)\n",
			 shared->findings[2]);
	ksft_test_result(!stale, "no store through a stale entry (%lu rounds)\n",
			 stale);
	ksft_test_result(!shared->read_only_written,
			 "read-only mappings are not written (%lu times)\n",
			 shared->read_only_written);
	ksft_test_result(!shared->hold_changed,
			 "protected ranges do not change (%lu times)\n",
			 shared->hold_changed);
	ksft_test_result(!shared->bystander_hit,
			 "anonymous memory is not hit (%lu times)\n",
			 shared->bystander_hit);
	ksft_test_result(!hung && !shared->errors,
			 "nobody hangs (%u), no unexpected error (%lu, first: %s)\n",
			 hung, shared->errors, shared->first_error ?: "none");
}

static bool parse(int argc, char **argv, unsigned int *seconds,
		  unsigned int *seed)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--exit"))
			_exit(0);
		else if (!strcmp(argv[i], "--unshared"))
			unshared = true;
		else if (!strcmp(argv[i], "--large"))
			make_large();
		else if (!strcmp(argv[i], "--huge"))
			huge = true;
		else if (i + 1 == argc)
			return false;
		else if (!strcmp(argv[i], "--seconds"))
			*seconds = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--seed"))
			*seed = atoi(argv[++i]);
		else
			return false;
	}
	if (huge)
		make_large();
	return *seconds;
}

/*
 * Later kernels swap large folios of shared memory as a whole. Truncation in the
 * middle of one that is swapped out never ends in Linux 7.3: shmem_undo_range()
 * passes over it and begins again.
 */
static size_t safe_cut_unit(void)
{
	unsigned int major, minor;
	struct utsname name;

	if (uname(&name) || sscanf(name.release, "%u.%u", &major, &minor) != 2)
		return 1;
	return major > 6 || (major == 6 && minor > 12) ? TABLE_PAGES : 1;
}

static bool have_guards(void)
{
	int fd = open_file(0, 4096);
	char *map = map_file(fd, 0, 4096, PROT_RW);
	bool have = !madvise(map, 4096, MADV_GUARD_INSTALL);

	munmap(map, 4096);
	close(fd);
	return have;
}

static bool prepare(void)
{
	int fd = open_file(MFD_ALLOW_PROTECT, 0);

	protection = fd >= 0;
	if (protection)
		close(fd);
	guards = have_guards();
	cut_unit = safe_cut_unit();
	two_nodes = !access("/sys/devices/system/node/node1", F_OK);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	shared = mmap(NULL, sizeof(*shared), PROT_RW,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	enter_cgroup(true);
	large_folios(true);
	return shared != MAP_FAILED && open_files();
}

int main(int argc, char **argv)
{
	unsigned int seconds = 30, seed = time(NULL), hung;
	struct ptshare_counts before;
	bool all_along, ways, powerful;
	long long tables;

	if (!parse(argc, argv, &seconds, &seed)) {
		fprintf(stderr,
			"Usage: %s [--seconds N] [--seed N] [--unshared] [--large|--huge]\n",
			argv[0]);
		return KSFT_FAIL;
	}
	ksft_print_header();
	if (!unshared && !have_ptshare())
		ksft_exit_skip("no MFD_SHARE_PGTABLES\n");
	ksft_set_plan(10);
	ksft_print_msg("%u seconds, seed %u%s%s%s\n", seconds, seed,
		       unshared ? ", nothing shared" : "",
		       large ? ", files of several GiB" : "",
		       huge ? ", huge pages" : "");
	tables = ptshare_tables();
	before = ptshare_counts();
	if (!prepare())
		ksft_exit_fail_msg("no memfd: %m\n");

	for (unsigned int nr = 0; nr < ARRAY_SIZE(jobs); nr++)
		start(nr, seed + 100 * nr);
	all_along = run(seconds, &seed);
	hung = end_all(&seed);
	no_delays();
	final_check(&seed);
	close_files();
	large_folios(false);
	enter_cgroup(false);
	ways = report_sharing(&before);
	powerful = report_counts();

	report_contents(hung);
	ksft_test_result(all_along && ways, "page tables were shared all along\n");
	ksft_test_result(unshared || all_freed(tables),
			 "all tables are freed in the end\n");
	ksft_test_result(powerful, "everything was exercised\n");
	ksft_finished();
}
