// SPDX-License-Identifier: GPL-2.0-only
/*
 * Snapshots of shared memory again and again, in a memory cgroup that is too small
 * for it, while somebody kills processes at random: writers, readers, and the
 * handler that takes the snapshots.
 *
 * Each word of a page has the page's version in it and a hash of both and of its
 * place. Writers change pages of their own, each to its next version, by stores or
 * by write(2), and note in a journal what they are about to do; who comes after a
 * writer that was killed does it again. Two kinds of copies are taken in turn:
 *
 * - a snapshot: at T0 no change is half done and all is protected to wait. A page
 *   is copied before its writer goes on, and must be of the version that it had
 *   at T0;
 * - an increment: pages whose version has changed between two such moments must be
 *   in the log.
 *
 * A round ends with everything let go: all processes end, every page of the file has
 * the version that was written last, nothing is protected, nobody waits, and the
 * memory and the page tables are given back. What was never done is a failure: the
 * test had no power then. With --unprotected it must find faults.
 */
#include "memfd_protect_common.h"
#include "../mm/ptshare_common.h"

#include "kselftest.h"

#define MAX_PAGES	8192
#define TABLE_NR	512	/* the file is of whole page tables */
#define PAGE		4096UL
#define FILE_SIZE	(nr_pages * PAGE)
/* Of the cgroup: not for all of the file, but for what the processes have themselves */
#define LIMIT		(FILE_SIZE * 3 / 4 + NR_CHILDREN * (192UL << 10))
#define STRIDE		256	/* a word every so many bytes */
#define WORDS		(PAGE / STRIDE)
#define NR_WRITERS	6
#define NR_READERS	2
#define HANDLER		(NR_WRITERS + NR_READERS)
#define NR_CHILDREN	(HANDLER + 1)
#define BATCH		32
#define SPARED		4	/* the handler is killed once in so many times */
#define CGROUP		"/sys/fs/cgroup/memfd_protect_soak"

enum count {
	C_STORES, C_WRITES, C_REMAPS, C_REPAIRS, C_READS, C_TORN, C_SNAPSHOTS, C_ON_DEMAND,
	C_INCREMENTS, C_LOGGED, C_BUSY, C_WRITERS, C_READERS, C_HANDLERS,
	C_AMID, NR_COUNTS
};

static const char * const count_names[NR_COUNTS] = {
	"changes by stores", "changes by write(2)", "mappings made anew",
	"changes done again", "pages read", "words amid write(2)", "snapshots", "pages on demand",
	"increments", "pages logged", "protect was EBUSY", "writers killed",
	"readers killed", "handlers killed", "amid a snapshot",
};

/* What a writer is about to do; set before, cleared afterwards */
struct journal {
	volatile bool open;
	volatile unsigned int page;
	volatile uint32_t version;
};

/* In memory that everybody shares and that is not protected */
struct control {
	volatile bool stop;
	volatile bool gate;	/* shut: no change begins */
	volatile bool amid;	/* the handler has protected */
	volatile bool busy[NR_WRITERS];	/* a change may be half done */
	struct journal journal[NR_WRITERS];
	volatile uint32_t version[MAX_PAGES];
	unsigned long counts[NR_COUNTS];
	unsigned long bad_words, bad_snapshot, bad_increment, bad_end;
	unsigned long errors;
	const char *first_error;	/* the same in all: nobody execs */
	uint64_t bad_word;	/* the last one, and where it was */
	unsigned int bad_page, bad_index;
};

static struct control *control;
static int memfd = -1;
static bool unprotected, share;
static unsigned int nr_pages = 4 * TABLE_NR;

static void count(enum count which, unsigned long nr)
{
	__atomic_fetch_add(&control->counts[which], nr, __ATOMIC_RELAXED);
}

static void error_once(const char *what)
{
	if (!__atomic_fetch_add(&control->errors, 1, __ATOMIC_SEQ_CST))
		control->first_error = what;
}

static unsigned int rnd(unsigned int *seed, unsigned int limit)
{
	*seed = *seed * 1103515245 + 12345;
	return (*seed >> 8) % limit;
}

/* Contents */

static uint64_t word_of(unsigned int page, uint32_t version, unsigned int i)
{
	uint64_t hash = ((uint64_t)page << 40 | (uint64_t)version << 8 | i) *
			0x9e3779b97f4a7c15ULL;

	return (hash & ~0xffffffffULL) | version;
}

/* A page that has this version in all its words */
static bool page_right(const char *addr, unsigned int page, uint32_t version)
{
	for (unsigned int i = 0; i < WORDS; i++)
		if (load64(addr + i * STRIDE) != word_of(page, version, i))
			return false;
	return true;
}

/*
 * A word that write(2) is amid: its first bytes are of the next version.  The kernel
 * copies with "rep movsb", which QEMU does byte by byte; no processor was seen to.
 */
static bool word_torn(uint64_t word, unsigned int page, uint32_t version, unsigned int i)
{
	uint64_t old = word_of(page, version, i), new = word_of(page, version + 1, i);

	for (uint64_t mask = 0xff; mask != ~0ULL; mask = mask << 8 | 0xff)
		if (word == ((new & mask) | (old & ~mask)))
			return true;
	return false;
}

/* Each word of a page is of a version, no matter which, though it may be changing */
static bool page_whole(const char *addr, unsigned int page)
{
	uint32_t version = control->version[page];

	for (unsigned int i = 0; i < WORDS; i++) {
		uint64_t word = load64(addr + i * STRIDE);

		if (word == word_of(page, word, i))
			continue;
		/* The version that is noted is the one before, while it changes */
		while (!word_torn(word, page, version, i)) {
			if (version++ != control->version[page])
				continue;
			control->bad_word = word;
			control->bad_page = page;
			control->bad_index = i;
			return false;
		}
		count(C_TORN, 1);
	}
	return true;
}

static void store_page(char *addr, unsigned int page, uint32_t version)
{
	for (unsigned int i = 0; i < WORDS; i++)
		store64(addr + i * STRIDE, word_of(page, version, i));
}

static bool write_page(unsigned int page, uint32_t version)
{
	char buf[PAGE] __attribute__((aligned(8))) = { };

	store_page(buf, page, version);
	return pwrite(memfd, buf, PAGE, page * PAGE) == (ssize_t)PAGE;
}

/* Whole tables, so that they can be shared */
static char *map_all(int prot)
{
	char *area = reserve(FILE_SIZE);

	return area == MAP_FAILED ? area : map_at(area, memfd, 0, FILE_SIZE, prot);
}

/* Writers */

static void change(unsigned int id, char *map, unsigned int page, uint32_t version,
		   bool by_write)
{
	struct journal *journal = &control->journal[id];

	journal->page = page;
	journal->version = version;
	__atomic_store_n(&journal->open, true, __ATOMIC_SEQ_CST);
	if (!by_write)
		store_page(map + page * PAGE, page, version);
	else if (!write_page(page, version))
		error_once("write");
	control->version[page] = version;
	__atomic_store_n(&journal->open, false, __ATOMIC_SEQ_CST);
	count(by_write ? C_WRITES : C_STORES, 1);
}

/* What a writer of this number that was killed may have left half done */
static void repair(unsigned int id, char *map)
{
	struct journal *journal = &control->journal[id];

	if (journal->open) {
		change(id, map, journal->page, journal->version, false);
		count(C_REPAIRS, 1);
	}
	__atomic_store_n(&control->busy[id], false, __ATOMIC_SEQ_CST);
}

/* Whether a change may begin: false while the gate is shut */
static bool enter(unsigned int id)
{
	__atomic_store_n(&control->busy[id], true, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&control->gate, __ATOMIC_SEQ_CST))
		return true;
	__atomic_store_n(&control->busy[id], false, __ATOMIC_SEQ_CST);
	usleep(200);
	return false;
}

static void writer(unsigned int id, unsigned int seed)
{
	char *map = map_all(PROT_RW);
	unsigned int page;

	if (map == MAP_FAILED)
		return error_once("mmap");
	repair(id, map);
	while (!control->stop) {
		if (!enter(id))
			continue;
		page = rnd(&seed, nr_pages / NR_WRITERS) * NR_WRITERS + id;
		change(id, map, page, control->version[page] + 1, !rnd(&seed, 4));
		__atomic_store_n(&control->busy[id], false, __ATOMIC_SEQ_CST);
		if (!rnd(&seed, 1000)) {
			munmap(map, FILE_SIZE);
			map = map_all(PROT_RW);
			count(C_REMAPS, 1);
		}
		usleep(rnd(&seed, 300));
	}
}

static void reader(unsigned int id, unsigned int seed)
{
	char *map = map_all(PROT_READ);
	unsigned int page;

	while (!control->stop && map != MAP_FAILED) {
		page = rnd(&seed, nr_pages);
		if (!page_whole(map + page * PAGE, page))
			__atomic_fetch_add(&control->bad_words, 1, __ATOMIC_RELAXED);
		count(C_READS, 1);
		usleep(rnd(&seed, 500));
	}
}

/* The handler */

/* Nobody is amid a change when it returns true; the gate is shut then */
static bool shut_gate(void)
{
	__atomic_store_n(&control->gate, true, __ATOMIC_SEQ_CST);
	for (unsigned int i = 0; i < NR_WRITERS; i++)
		while (__atomic_load_n(&control->busy[i], __ATOMIC_SEQ_CST)) {
			if (control->stop)
				return false;
			usleep(100);
		}
	return true;
}

static void open_gate(void)
{
	__atomic_store_n(&control->gate, false, __ATOMIC_SEQ_CST);
}

static bool protect_all(unsigned int mode)
{
	long ret = unprotected ? 0 : protect_pages(memfd, 0, 0, mode);

	if (ret == -EBUSY)
		count(C_BUSY, 1);
	else if (ret)
		error_once("memfd_protect");
	return !ret;
}

struct snapshot {
	int nfd;
	char *map;
	bool copied[MAX_PAGES];
	uint32_t t0[MAX_PAGES];
	char copy[BATCH * PAGE] __attribute__((aligned(8)));
};

/* Up to a batch of pages that are still as at T0; then their writers go on */
static void copy_pages(struct snapshot *s, unsigned int first, unsigned int nr)
{
	memcpy(s->copy, s->map + first * PAGE, nr * PAGE);
	if (!unprotected && unprotect_pages(memfd, first, nr))
		error_once("unprotect");
	for (unsigned int i = 0; i < nr; i++) {
		if (!s->copied[first + i] &&
		    !page_right(s->copy + i * PAGE, first + i, s->t0[first + i]))
			__atomic_fetch_add(&control->bad_snapshot, 1, __ATOMIC_RELAXED);
		s->copied[first + i] = true;
	}
}

static void copy_wanted(struct snapshot *s)
{
	struct memfd_event ev;
	unsigned int page, end;

	while (readable(s->nfd, 0) && read(s->nfd, &ev, sizeof(ev)) == sizeof(ev)) {
		page = ev.offset / PAGE;
		end = page + ev.length / PAGE;
		if (!(ev.flags & MEMFD_EVENT_F_WAITING) || end > nr_pages)
			continue;
		for (; page < end; page++) {
			if (s->copied[page])
				continue;
			copy_pages(s, page, 1);
			count(C_ON_DEMAND, 1);
		}
	}
}

static void take_snapshot(struct snapshot *s)
{
	unsigned int page = 0, nr;
	bool protected;

	memset(s->copied, 0, sizeof(s->copied));
	protected = shut_gate() && protect_all(MEMFD_PROTECT_WAIT);
	control->amid = protected;
	for (unsigned int i = 0; i < nr_pages; i++)
		s->t0[i] = control->version[i];
	open_gate();
	while (protected && page < nr_pages && !control->stop) {
		copy_wanted(s);
		for (nr = 0; nr < BATCH && page + nr < nr_pages; nr++)
			if (s->copied[page + nr])
				break;
		if (nr)
			copy_pages(s, page, nr);
		page += nr ?: 1;
		usleep(100);
	}
	if (page == nr_pages)
		count(C_SNAPSHOTS, 1);
	control->amid = false;
}

/* Marks what was logged; false if that is not possible */
static bool take_log(int nfd, bool *logged)
{
	static struct memfd_range ranges[MAX_PAGES / 2];
	int nr = scan_range(nfd, 0, 0, ranges, nr_pages / 2, MEMFD_SCAN_REPROTECT,
			    NULL);

	memset(logged, 0, nr_pages * sizeof(*logged));
	for (int i = 0; i < nr; i++) {
		unsigned int page = ranges[i].offset / PAGE;

		for (size_t n = ranges[i].length / PAGE; n; n--)
			logged[page++] = true;
		count(C_LOGGED, ranges[i].length / PAGE);
	}
	return nr >= 0;
}

static void take_increments(struct snapshot *s)
{
	static bool logged[MAX_PAGES];

	if (!shut_gate() || !protect_all(MEMFD_PROTECT_ASYNC))
		return open_gate();
	for (int turn = 0; turn < 4; turn++) {
		for (unsigned int i = 0; i < nr_pages; i++)
			s->t0[i] = control->version[i];
		open_gate();
		usleep(50000);
		if (!shut_gate())
			break;
		if (!take_log(s->nfd, logged))
			error_once("scan");
		for (unsigned int i = 0; i < nr_pages; i++)
			if (s->t0[i] != control->version[i] && !logged[i])
				control->bad_increment++;
		count(C_INCREMENTS, 1);
	}
	open_gate();
	if (!unprotected && unprotect_pages(memfd, 0, 0))
		error_once("unprotect");
}

/* The event fd of a handler that was killed goes a little after it */
static int open_nfd(void)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	int nfd;

	do {
		nfd = sys_memfd_notify(memfd, 0);
		if (nfd != -EBUSY)
			break;
		usleep(1000);
	} while (now_ns() < end);
	return nfd;
}

static void handler(unsigned int id, unsigned int seed)
{
	static struct snapshot s;

	s.nfd = open_nfd();
	s.map = map_all(PROT_READ);
	if (s.nfd < 0 || s.map == MAP_FAILED)
		return error_once("memfd_notify");
	while (!control->stop) {
		if (rnd(&seed, 3))
			take_snapshot(&s);
		else
			take_increments(&s);
		usleep(rnd(&seed, 20000));
	}
	open_gate();
}

/* Who starts them, kills them and starts them again */

static pid_t start(unsigned int id, unsigned int seed)
{
	char number[16];
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(number, sizeof(number), "%d", getpid());
	if (!write_file(CGROUP "/cgroup.procs", number))
		error_once("cgroup.procs");
	/* If memory ends, a writer is killed and not who takes the snapshot */
	if (id == HANDLER)
		write_file("/proc/self/oom_score_adj", "-999");
	if (id < NR_WRITERS)
		writer(id, seed);
	else if (id < HANDLER)
		reader(id, seed);
	else
		handler(id, seed);
	_exit(0);
}

static void killed(unsigned int id)
{
	count(id < NR_WRITERS ? C_WRITERS : id < HANDLER ? C_READERS : C_HANDLERS, 1);
	if (id != HANDLER)
		return;
	count(C_AMID, control->amid);
	control->amid = false;
	open_gate();
}

static void kill_for(unsigned int seconds, pid_t *pids, unsigned int *seed)
{
	uint64_t end = now_ns() + seconds * 1000000000ULL;
	uint64_t late = end + 2 * seconds * 1000000000ULL;
	unsigned int id;
	int status;

	/* A handler amid a snapshot is one of them, sooner or later */
	while (now_ns() < end || (!control->counts[C_AMID] && now_ns() < late)) {
		usleep(rnd(seed, 400000));
		id = rnd(seed, NR_CHILDREN);
		if (id != HANDLER || !rnd(seed, SPARED))
			kill(pids[id], SIGKILL);
		/* Those that the kernel has killed for want of memory, too */
		usleep(1000);
		for (id = 0; id < NR_CHILDREN; id++) {
			if (waitpid(pids[id], &status, WNOHANG) != pids[id])
				continue;
			if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
				error_once("a process ended of itself");
			killed(id);
			pids[id] = start(id, rnd(seed, 1 << 20));
		}
	}
}

/* False if somebody hangs. A writer waits for nobody when the handler is gone. */
static bool end_all(pid_t *pids)
{
	uint64_t end = now_ns() + 3 * LONG_MS * 1000000ULL;
	bool all = true;

	control->stop = true;
	for (int id = HANDLER; id >= 0; id--) {
		while (!waitpid(pids[id], NULL, WNOHANG) && now_ns() < end)
			usleep(1000);
		if (kill(pids[id], 0))
			continue;
		ksft_print_msg("process %d (%d) hangs\n", pids[id], id);
		kill(pids[id], SIGKILL);
		waitpid(pids[id], NULL, 0);
		all = false;
	}
	return all;
}

/* Rounds */

static bool load(void)
{
	pid_t pid = fork();
	char number[16];
	int status;

	if (!pid) {
		snprintf(number, sizeof(number), "%d", getpid());
		if (!write_file(CGROUP "/cgroup.procs", number))
			_exit(1);
		for (unsigned int page = 0; page < nr_pages; page++)
			if (!write_page(page, 0))
				_exit(1);
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && !status;
}

static bool round_begin(void)
{
	char limit[32];

	memset(control, 0, offsetof(struct control, counts));
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		return false;
	snprintf(limit, sizeof(limit), "%lu", LIMIT);
	if (!write_file(CGROUP "/memory.max", limit))
		return false;
	memfd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT |
				 (share ? MFD_SHARE_PGTABLES : 0));
	return memfd >= 0 && !ftruncate(memfd, FILE_SIZE) && load();
}

/* Every page is as it was written last */
static void check_contents(void)
{
	char *map = map_all(PROT_RW), buf[PAGE] __attribute__((aligned(8)));

	for (unsigned int id = 0; id < NR_WRITERS; id++)
		repair(id, map);
	munmap(map, FILE_SIZE);
	for (unsigned int page = 0; page < nr_pages; page++)
		if (pread(memfd, buf, PAGE, page * PAGE) != (ssize_t)PAGE ||
		    !page_right(buf, page, control->version[page]))
			control->bad_end++;
}

/* How many figures of the file are not zero though nobody is left */
static unsigned int figures_left(void)
{
	static const char * const names[] = {
		"event_fd", "protect_wait", "protect_async", "protect_deny",
		"log_ranges", "log_pages", "log_bytes", "waiters", "pending",
		"unread",
	};
	unsigned int left = 0;
	char path[64];

	snprintf(path, sizeof(path), PROC_FDINFO, memfd);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		long long value = field_of(path, names[i]);

		if (value) {
			ksft_print_msg("%s: %lld\n", names[i], value);
			left++;
		}
	}
	return left;
}

/* The cgroup has no shared memory any more and can be removed */
static bool cgroup_empty(void)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (field_of(CGROUP "/memory.stat", "shmem") || rmdir(CGROUP)) {
		if (now_ns() > end)
			return false;
		usleep(10000);
	}
	return true;
}

static bool play_round(unsigned int seconds, unsigned int *seed)
{
	long long tables = ptshare_tables();
	pid_t pids[NR_CHILDREN];
	bool ended, empty;

	if (!round_begin()) {
		error_once("no memory or cgroup");
		return false;
	}
	for (unsigned int id = 0; id < NR_CHILDREN; id++)
		pids[id] = start(id, rnd(seed, 1 << 20));
	kill_for(seconds, pids, seed);
	ended = end_all(pids);
	ended &= !figures_left();
	check_contents();
	close(memfd);
	empty = cgroup_empty();
	if (!empty)
		ksft_print_msg("memory is not given back\n");
	return ended && empty && (tables < 0 || tables_become(tables));
}

static bool report(long long swapped)
{
	bool all = swapped > 0;

	for (int i = 0; i < NR_COUNTS; i++) {
		ksft_print_msg("%-24s %10lu\n", count_names[i], control->counts[i]);
		if (i != C_BUSY && i != C_TORN && !control->counts[i])
			all = false;
	}
	ksft_print_msg("%-24s %10lld\n", "pages swapped out", swapped);
	return all;
}

static const char usage[] =
	"Usage: %s [--seconds N] [--round N] [--pages N] [--seed N] [--unprotected] [--share]\n";

int main(int argc, char **argv)
{
	unsigned int seconds = 60, round = 60, seed = time(NULL), rounds = 0, bad = 0;
	long long swapped = vmstat("pswpout");
	uint64_t end;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--unprotected"))
			unprotected = true;
		else if (!strcmp(argv[i], "--share"))
			share = true;
		else if (i + 1 < argc && !strcmp(argv[i], "--seconds"))
			seconds = atoi(argv[++i]);
		else if (i + 1 < argc && !strcmp(argv[i], "--round"))
			round = atoi(argv[++i]);
		else if (i + 1 < argc && !strcmp(argv[i], "--pages"))
			nr_pages = atoi(argv[++i]);
		else if (i + 1 < argc && !strcmp(argv[i], "--seed"))
			seed = atoi(argv[++i]);
		else
			seconds = 0;
	}
	if (!seconds || !round || !nr_pages || nr_pages % TABLE_NR || nr_pages > MAX_PAGES) {
		fprintf(stderr, usage, argv[0]);
		return KSFT_FAIL;
	}
	need_memfd_protect();
	ksft_print_header();
	if (share && !have_ptshare())
		ksft_exit_skip("no MFD_SHARE_PGTABLES\n");
	ksft_set_plan(6);
	control = mmap(NULL, sizeof(*control), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (control == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	ksft_print_msg("%u seconds, rounds of %u, %u pages, seed %u%s\n", seconds, round,
		       nr_pages, seed, share ? ", shared tables" : "");
	end = now_ns() + seconds * 1000000000ULL;
	do {
		rounds++;
		if (!play_round(round < seconds ? round : seconds, &seed))
			bad++;
	} while (now_ns() < end);

	if (control->bad_words)
		ksft_print_msg("word %u of page %u: %#lx\n", control->bad_index,
			       control->bad_page, control->bad_word);
	ksft_test_result(!control->bad_snapshot && !control->bad_words,
			 "pages of snapshots are as at T0 (%lu are not), words are whole (%lu are not)\n",
			 control->bad_snapshot, control->bad_words);
	ksft_test_result(!control->bad_increment,
			 "no change is missing in the log (%lu are)\n",
			 control->bad_increment);
	ksft_test_result(!control->bad_end,
			 "the file is right in the end (%lu pages are not)\n",
			 control->bad_end);
	ksft_test_result(!control->errors, "no unexpected error (%lu, first: %s)\n",
			 control->errors, control->first_error ?: "none");
	ksft_test_result(!bad, "all is given back in %u of %u rounds\n", rounds - bad,
			 rounds);
	ksft_test_result(report(vmstat("pswpout") - swapped), "everything was exercised\n");
	ksft_finished();
}
