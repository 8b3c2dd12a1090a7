// SPDX-License-Identifier: GPL-2.0-only
/*
 * Many processes write a memfd through all paths while it is protected,
 * scanned, resolved, truncated, swapped and migrated, and while its event fd is
 * closed and opened again. Two invariants are checked against copies:
 *
 * - from the return of memfd_protect() until the range is lifted, a WAIT or
 *   DENY range does not change;
 * - a page of an ASYNC range that changed between two copies is in the scan
 *   between them or in the next one.
 *
 * And no writer may hang when everything is let go. Counts are printed, and a
 * path that was never seen to write is a failure: the test had no power then.
 *
 * The file has three regions: CHAOS, where ranges of all modes come and go
 * unchecked, HOLD for the first invariant, and LOG for the second. LOG is the
 * last: it never stands in the way of truncation.
 *
 * With --share the file's page tables are shared as well. Mappings are whole
 * tables then, larger than the file, and made anew from time to time, because
 * some paths leave an ordinary one behind; links must be seen to be made in all
 * parts of the run.
 *
 * With --huge the file has huge pages, and each region is in one of its own. Where
 * nothing is protected huge entries map it, HOLD above all: they come and go all the time.
 */
#include "memfd_protect_paths.h"
#include "../mm/ptshare_common.h"

#include <assert.h>
#include <dirent.h>
#include <sys/eventfd.h>

#include "kselftest.h"

#define HOLD_PAGES	96
#define LOG_PAGES	96
#define CHAOS_PAGES	64
#define USED_PAGES	(HOLD_PAGES + LOG_PAGES + CHAOS_PAGES)
#define HUGE_PAGES	512
#define HOLD_START	(huge ? HUGE_PAGES : CHAOS_PAGES)
#define HOLD_END	(HOLD_START + HOLD_PAGES)
#define LOG_START	(huge ? 2 * HUGE_PAGES : HOLD_END)	/* to the end */
#define NR_PAGES	(LOG_START + LOG_PAGES)

static_assert(USED_PAGES <= 512, "one leaf page table maps all of it");

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

#define MAX_WRITERS	64
#define PARTS		8	/* of the run, with links made in each */
#define DELAY_DIR	"/sys/kernel/debug/memfd_protect/delay_us"
#define CGROUP		"/sys/fs/cgroup/memfd_protect_stress"

enum count {
	C_HOLD_WAIT, C_HOLD_DENY, C_HOLD_BUSY, C_SCANS, C_LOGGED, C_CHAOS,
	C_EVENTS, C_ALLOW, C_DENY, C_GONE, C_CLOSES, C_FORKS, C_VM, C_RECLAIM,
	C_MOVES, C_STORES, C_PINS, NR_COUNTS
};

static const char * const count_names[NR_COUNTS] = {
	"holds in WAIT", "holds in DENY", "protect was EBUSY", "scans",
	"logged ranges", "chaos changes", "events", "resolved as allow",
	"resolved as deny", "resolved too late", "event fd closed", "forks",
	"mapping changes", "reclaims", "page moves",
	"hammer's stores", "writes of pinned pages",
};

/* In shared memory: everybody counts here */
struct shared {
	volatile int stop;
	unsigned long counts[NR_COUNTS];
	unsigned long tried[NR_PATHS];
	unsigned long done[NR_PATHS];
	unsigned long caught[NR_PATHS];
	int missing[NR_PATHS];
	unsigned long violations_hold;
	unsigned long violations_log;
	unsigned long errors;
	const char *first_error;	/* the same in all: nobody execs */
};

static struct shared *shared;
static int memfd = -1;
static int nfd = -1;
static size_t file_size;
static size_t map_size;
static bool unprotected;	/* --unprotected: show that we would see it */
static bool share;		/* --share: page tables are shared */
static bool huge;		/* --huge: with huge pages */

/* Held for reading by who uses nfd, for writing by who replaces it */
static pthread_rwlock_t nfd_lock = PTHREAD_RWLOCK_INITIALIZER;

static void count(enum count which, unsigned long nr)
{
	__atomic_fetch_add(&shared->counts[which], nr, __ATOMIC_RELAXED);
}

static unsigned int rnd(unsigned int *state, unsigned int below)
{
	*state = *state * 1103515245u + 12345u;
	return (*state >> 8) % below;
}

/* A page of one of the regions */
static size_t any_page(unsigned int *seed)
{
	size_t page = rnd(seed, USED_PAGES);

	if (page < CHAOS_PAGES)
		return page;
	page -= CHAOS_PAGES;
	return page < HOLD_PAGES ? HOLD_START + page : LOG_START + page - HOLD_PAGES;
}

/* All of the file, instead of an older mapping if there is one */
static char *map_all(char *old)
{
	if (old)
		munmap(old, map_size);
	return mmap(NULL, map_size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd,
		    0);
}

/* The calls that --unprotected leaves out */

static long stress_protect(size_t page, size_t nr, unsigned int mode)
{
	return unprotected ? 0 : protect_pages(memfd, page, nr, mode);
}

static long stress_unprotect(size_t page, size_t nr)
{
	return unprotected ? 0 : unprotect_pages(memfd, page, nr);
}

static int open_nfd(unsigned int *seed)
{
	unsigned int flags = MEMFD_NOTIFY_NONBLOCK;

	if (unprotected)
		return eventfd(0, EFD_NONBLOCK);
	if (!geteuid() && rnd(seed, 2))
		flags |= MEMFD_NOTIFY_KERNEL;
	return sys_memfd_notify(memfd, flags);
}

static void error_once(const char *what, long value)
{
	unsigned long before = __atomic_fetch_add(&shared->errors, 1,
						  __ATOMIC_RELAXED);

	if (!before)
		shared->first_error = what;
	if (before < 10)
		ksft_print_msg("unexpected: %s: %ld\n", what, value);
}

/* What lies behind the end of file is zero: growing is not a change */
static void copy_pages(char *to, size_t page, size_t nr)
{
	size_t size = page_size(), len = nr * size, at = 0;
	ssize_t ret;

	memset(to, 0, len);
	while (at < len) {
		ret = pread(memfd, to + at, len - at, page * size + at);
		if (ret <= 0)
			break;
		at += ret;
	}
}

/* Writers */

static long run_job(void *arg)
{
	struct job *job = arg;

	return job->path->run(job);
}

static bool may_use(const struct path *path, unsigned int nr,
		    unsigned int *seed)
{
	if (path->flags & (PATH_SLOW | PATH_EXIT) || shared->missing[nr])
		return false;
	/* A file that is cut off all the time is no test for the others */
	return path->kind != PATH_TRUNCATE || !rnd(seed, 5);
}

static void write_once(struct job *job, unsigned int nr, unsigned int *seed)
{
	struct outcome out = { 0 };
	long ret;

	job->byte = 1 + rnd(seed, 255);
	job->offset = any_page(seed) * page_size();
	if (job->offset < 4 * page_size())
		job->offset += 4 * page_size();
	if (!job_init(job, &paths[nr])) {
		error_once("job_init", -errno);
		return;
	}
	ret = job->path->prepare ? job->path->prepare(job) : 0;
	if (ret >= 0) {
		run_guarded(run_job, job, &out);
		ret = out.sig ? -EFAULT : out.ret;
	}
	job_exit(job);
	__atomic_fetch_add(&shared->tried[nr], 1, __ATOMIC_RELAXED);
	if (path_missing(ret))
		shared->missing[nr] = 1;
	else if (ret >= 0)
		__atomic_fetch_add(&shared->done[nr], 1, __ATOMIC_RELAXED);
	else
		__atomic_fetch_add(&shared->caught[nr], 1, __ATOMIC_RELAXED);
	if (job->path->kind == PATH_TRUNCATE && ret >= 0 &&
	    ftruncate(memfd, file_size))
		error_once("grow", -errno);
}

static void writer(unsigned int seed)
{
	struct job job = { .fd = memfd, .nfd = -1, .len = page_size() };
	unsigned int nr;

	job.map = map_all(NULL);
	while (!shared->stop && job.map != MAP_FAILED) {
		nr = rnd(&seed, NR_PATHS);
		if (may_use(&paths[nr], nr, &seed))
			write_once(&job, nr, &seed);
		if (share && !rnd(&seed, 6))
			job.map = map_all(job.map);
	}
	_exit(0);
}

/* Stores only, and no system call in between: a stale TLB entry lives long */
struct hammer {
	char *map;
	unsigned int seed;
	unsigned long stores;
};

static long hammer_some(void *arg)
{
	struct hammer *h = arg;
	char *page = NULL;

	for (int i = 0; i < 2000; i++) {
		if (i % 50 == 0)
			page = h->map + any_page(&h->seed) * page_size();
		(*(volatile char *)page)++;
		h->stores++;
	}
	return 0;
}

static void hammer(unsigned int seed)
{
	struct hammer h = { .seed = seed };
	struct outcome out;

	h.map = map_all(NULL);
	if (h.map == MAP_FAILED)
		_exit(1);
	while (!shared->stop) {
		memset(&out, 0, sizeof(out));
		h.stores = 0;
		run_guarded(hammer_some, &h, &out);
		count(C_STORES, h.stores);
	}
	_exit(0);
}

/* A page that a ring holds pinned, and writes while it does */
static void pin_once(struct job *job, unsigned int *seed)
{
	struct iovec iov;

	job->byte = 1 + rnd(seed, 255);
	job->offset = any_page(seed) * page_size();
	if (!job_init(job, &paths[P_uring_read_fixed]))
		return;
	iov = job_iov(job);
	if (job->path->prepare(job) >= 0 &&
	    io_uring_register_buffers(&job->ring, &iov, 1) >= 0) {
		for (unsigned int i = rnd(seed, 6); i; i--) {
			usleep(rnd(seed, 8000));
			io_uring_prep_read_fixed(io_uring_get_sqe(&job->ring),
						 job->src, job_addr(job),
						 job->len, 0, 0);
			if (uring_do(job) > 0)
				count(C_PINS, 1);
		}
		io_uring_unregister_buffers(&job->ring);
	}
	job_exit(job);
}

static void pinner(unsigned int seed)
{
	struct job job = { .fd = memfd, .nfd = -1, .len = page_size() };

	job.map = map_all(NULL);
	while (!shared->stop && job.map != MAP_FAILED)
		pin_once(&job, &seed);
	_exit(0);
}

/* Windows become wide, now this one, now that one */
static void set_delay(const char *name, unsigned int us)
{
	char path[320], text[16];

	snprintf(path, sizeof(path), DELAY_DIR "/%s", name);
	snprintf(text, sizeof(text), "%u", us);
	write_file(path, text);
}

static void set_delays(unsigned int *seed)
{
	struct dirent *entry;
	DIR *dir = opendir(DELAY_DIR);

	if (!dir)
		return;
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			set_delay(entry->d_name, !seed || rnd(seed, 4) ? 0 :
				  rnd(seed, 3000));
	closedir(dir);
}

static void delay_noise(unsigned int seed)
{
	while (!shared->stop) {
		set_delays(&seed);
		usleep(20000);
	}
	_exit(0);
}

/* Noise: what happens to mappings and pages meanwhile */

static char *change_mapping(char *map, unsigned int what)
{
	char *area, *to;

	switch (what) {
	case 0:
		mprotect(map, map_size, PROT_READ);
		mprotect(map, map_size, PROT_READ | PROT_WRITE);
		break;
	case 1:
		mprotect(map, map_size, PROT_NONE);
		mprotect(map, map_size, PROT_READ | PROT_WRITE);
		break;
	case 2:
		madvise(map, map_size, MADV_DONTNEED);
		break;
	case 3:
		/* Only an address that is aligned to a table stays shared */
		area = reserve(map_size);
		to = mremap(map, map_size, map_size,
			    MREMAP_MAYMOVE | MREMAP_FIXED, area);
		return to == MAP_FAILED ? map : to;
	case 4:
		return map_all(map);
	case 5:
		write_file("/proc/self/clear_refs", "4");
		break;
	case 6:
		madvise(map, file_size, MADV_POPULATE_READ);
		break;
	default:
		madvise(map, map_size, MADV_COLLAPSE);
	}
	return map;
}

static void mapping_noise(unsigned int seed)
{
	struct job job = {
		.path = &paths[P_store_atomic], .nfd = -1, .byte = 1,
	};
	struct outcome out;

	job.map = map_all(NULL);
	while (!shared->stop && job.map != MAP_FAILED) {
		job.map = change_mapping(job.map, rnd(&seed, huge ? 9 : 7));
		count(C_VM, 1);
		for (int i = 0; i < 8; i++) {
			job.offset = any_page(&seed) * page_size();
			memset(&out, 0, sizeof(out));
			run_guarded(run_job, &job, &out);
		}
	}
	_exit(0);
}

/* Children that store in what they inherited, and die in the middle of it */
static void fork_noise(unsigned int seed)
{
	char *map = map_all(NULL);
	pid_t pid;

	signal(SIGBUS, SIG_DFL);
	while (!shared->stop && map != MAP_FAILED) {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			prctl(PR_SET_DUMPABLE, 0);
			for (int i = 0; i < 32; i++)
				map[any_page(&seed) * page_size()]++;
			_exit(0);
		}
		usleep(rnd(&seed, 3000));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		count(C_FORKS, 1);
	}
	_exit(0);
}

static void reclaim_noise(unsigned int seed)
{
	bool cgroup = access(CGROUP "/memory.reclaim", W_OK) == 0;
	char *map = map_all(NULL);

	while (!shared->stop && map != MAP_FAILED) {
		/* EAGAIN when less was reclaimed: that is all right */
		if (cgroup)
			write_file(CGROUP "/memory.reclaim", "512K");
		else
			madvise(map, file_size, MADV_PAGEOUT);
		count(C_RECLAIM, 1);
		usleep(5000 + rnd(&seed, 50000));
	}
	_exit(0);
}

static void move_noise(unsigned int seed)
{
	bool nodes = !access("/sys/devices/system/node/node1", F_OK);
	char *map = map_all(NULL);
	void *pages[16];
	int to[16], status[16];

	while (!shared->stop && map != MAP_FAILED) {
		if (!nodes) {
			write_file("/proc/sys/vm/compact_memory", "1");
			count(C_MOVES, 1);
			usleep(500000);
			continue;
		}
		for (int i = 0; i < 16; i++) {
			pages[i] = map + any_page(&seed) * page_size();
			to[i] = rnd(&seed, 2);
		}
		madvise(map, file_size, MADV_POPULATE_READ);
		if (!syscall(__NR_move_pages, 0, 16, pages, to, status, 4))
			count(C_MOVES, 16);
		usleep(rnd(&seed, 2000));
	}
	_exit(0);
}

/* The controller: events */

struct held {
	unsigned int seed;
	bool holding;
	unsigned long rounds;
	uint64_t cookies[64];
	unsigned int nr_cookies;
};

static void resolve_one(uint64_t cookie, uint32_t action)
{
	int ret = resolve(nfd, cookie, action);

	if (ret == -ENOENT)
		count(C_GONE, 1);
	else if (ret)
		error_once("resolve", ret);
	else
		count(action == MEMFD_RESOLVE_ALLOW ? C_ALLOW : C_DENY, 1);
}

/* An event of more than one page may begin in CHAOS and reach into HOLD */
static bool touches_hold(const struct memfd_event *ev)
{
	uint64_t start = (uint64_t)HOLD_START * page_size();
	uint64_t end = (uint64_t)HOLD_END * page_size();

	if (huge)
		end = (uint64_t)LOG_START * page_size();
	return ev->offset < end && ev->offset + ev->length > start;
}

/*
 * While a range is held, an event that touches the region is denied or kept
 * for later; others are resolved one way or the other, or left alone.
 */
static void handle_event(struct held *h, const struct memfd_event *ev)
{
	count(C_EVENTS, 1);
	if (!ev->cookie)
		return;
	switch (rnd(&h->seed, 4)) {
	case 0:
		resolve_one(ev->cookie, MEMFD_RESOLVE_DENY);
		return;
	case 1:
		break;
	default:
		if (!touches_hold(ev) || !h->holding) {
			resolve_one(ev->cookie, MEMFD_RESOLVE_ALLOW);
			return;
		}
	}
	if (h->nr_cookies < ARRAY_SIZE(h->cookies))
		h->cookies[h->nr_cookies++] = ev->cookie;
}

static void handle_events(struct held *h, int timeout_ms)
{
	struct memfd_event ev[8];
	ssize_t got;

	if (unprotected || !readable(nfd, timeout_ms))
		return;
	got = read(nfd, ev, sizeof(ev));
	for (size_t i = 0; got > 0 && i < got / sizeof(ev[0]); i++)
		handle_event(h, &ev[i]);
}

static void resolve_kept(struct held *h)
{
	for (unsigned int i = 0; i < h->nr_cookies; i++)
		resolve_one(h->cookies[i], rnd(&h->seed, 4) ?
			    MEMFD_RESOLVE_ALLOW : MEMFD_RESOLVE_DENY);
	h->nr_cookies = 0;
}

/* The event fd is closed while writers sleep, and opened again */
static void replace_nfd(struct held *h)
{
	pthread_rwlock_wrlock(&nfd_lock);
	close(nfd);
	nfd = open_nfd(&h->seed);
	if (nfd < 0)
		error_once("memfd_notify", nfd);
	count(C_CLOSES, 1);
	pthread_rwlock_unlock(&nfd_lock);
	h->nr_cookies = 0;
}

/* The first invariant */

static void report_hold(struct held *h, const char *a, const char *b,
			size_t page, size_t nr, unsigned int mode)
{
	size_t size = page_size();

	for (size_t i = 0; i < nr; i++) {
		if (!memcmp(a + i * size, b + i * size, size))
			continue;
		if (shared->violations_hold++ < 10)
			ksft_print_msg("round %lu: page %zu of [%zu, %zu) in %s: %02x to %02x\n",
				       h->rounds, page + i, page, page + nr,
				       mode == MEMFD_PROTECT_WAIT ? "WAIT" :
				       "DENY", (unsigned char)a[i * size],
				       (unsigned char)b[i * size]);
	}
}

static void lift(struct held *h, size_t page, size_t nr, unsigned int mode)
{
	h->holding = false;
	if (rnd(&h->seed, 2))
		resolve_kept(h);
	if (mode == MEMFD_PROTECT_WAIT && !rnd(&h->seed, 8))
		return replace_nfd(h);
	if (rnd(&h->seed, 3) == 0 && nr > 1)
		stress_unprotect(page, nr / 2);
	stress_unprotect(page, nr);
}

static void hold_round(struct held *h)
{
	static char before[HUGE_PAGES * 4096], after[HUGE_PAGES * 4096];
	size_t page = HOLD_START + rnd(&h->seed, HOLD_PAGES);
	size_t nr = 1 + rnd(&h->seed, HOLD_END - page);
	unsigned int mode = rnd(&h->seed, 3) ? MEMFD_PROTECT_WAIT :
			    MEMFD_PROTECT_DENY;
	uint64_t end;
	long ret;

	/* A huge entry that maps nothing else stays one */
	if (huge && !rnd(&h->seed, 3)) {
		page = HOLD_START;
		nr = HUGE_PAGES;
	}
	h->rounds++;
	ret = stress_protect(page, nr, mode);
	if (ret) {
		if (ret != -EBUSY)
			error_once("memfd_protect", ret);
		count(C_HOLD_BUSY, 1);
		return;
	}
	h->holding = true;
	copy_pages(before, page, nr);
	end = now_ns() + rnd(&h->seed, 20000) * 1000ULL;
	do {
		handle_events(h, 1);
	} while (now_ns() < end);
	if (!rnd(&h->seed, 4) && !stress_protect(page, nr, MEMFD_PROTECT_DENY))
		mode = MEMFD_PROTECT_DENY;
	handle_events(h, 1);
	copy_pages(after, page, nr);
	if (memcmp(before, after, nr * page_size()))
		report_hold(h, before, after, page, nr, mode);
	count(mode == MEMFD_PROTECT_WAIT ? C_HOLD_WAIT : C_HOLD_DENY, 1);
	lift(h, page, nr, mode);
	handle_events(h, 0);
}

static void hold_loop(struct held *h, uint64_t end)
{
	while (now_ns() < end && !shared->stop)
		hold_round(h);
}

/* Cutting off everything is too rare to be asked for one by one */
static bool truncated(void)
{
	unsigned long done = 0;

	for (int i = 0; i < NR_PATHS; i++)
		if (paths[i].kind == PATH_TRUNCATE)
			done += shared->done[i];
	return done;
}

/* Whether all has been done that is to be done */
static bool exercised(void)
{
	bool all = truncated();

	for (int i = 0; i < NR_PATHS; i++)
		all &= shared->missing[i] || shared->done[i] ||
		       paths[i].kind == PATH_TRUNCATE ||
		       (paths[i].flags & (PATH_SLOW | PATH_EXIT));
	for (int i = 0; i < NR_COUNTS; i++)
		all &= i == C_HOLD_BUSY || i == C_GONE || shared->counts[i];
	return all;
}

/*
 * True if links were made in every part, or huge entries in half of them. On a slow machine a
 * part takes up to three times as long for that, and then all of it for what is rare.
 */
static bool hold_in_parts(struct held *h, unsigned int seconds)
{
	const char *event = share ? "ptshare_link" : huge ? "thp_file_mapped" : NULL;
	uint64_t part = seconds * 1000000000ULL / PARTS, end;
	unsigned int powerful = 0, needed = share ? PARTS : huge ? PARTS / 2 : 0;
	long long before = 0, made;

	for (unsigned int i = 0; i < PARTS; i++) {
		if (event)
			before = vmstat(event);
		hold_loop(h, now_ns() + part);
		if (!event)
			continue;
		for (end = now_ns() + 2 * part; vmstat(event) == before && now_ns() < end; )
			hold_round(h);
		made = vmstat(event) - before;
		ksft_print_msg("part %u: %lld %s\n", i + 1, made, event);
		powerful += made > 0;
	}
	for (end = now_ns() + 2 * PARTS * part; !exercised() && !unprotected && now_ns() < end; )
		hold_round(h);
	return powerful >= needed;
}

/* The second invariant */

#define HOW_LEN	80

struct log_state {
	char copies[2][LOG_PAGES * 4096];
	bool logged[2][LOG_PAGES];	/* in the last scan, in the one before */
	bool changed[LOG_PAGES];	/* and not yet in a scan */
	char how[LOG_PAGES][HOW_LEN];	/* it did */
	unsigned long rounds;
	unsigned int seed;
};

static int take_log(bool *logged, uint64_t flags)
{
	struct memfd_range ranges[16];
	uint64_t at = LOG_START * page_size(), end;
	int nr, all = 0;

	memset(logged, 0, LOG_PAGES * sizeof(*logged));
	do {
		nr = scan_range(nfd, at, NR_PAGES * page_size(), ranges,
				ARRAY_SIZE(ranges), flags, &end);
		if (nr < 0)
			return nr;
		for (int i = 0; i < nr; i++) {
			size_t page = ranges[i].offset / page_size();
			size_t last = page + ranges[i].length / page_size();

			for (; page < last; page++)
				logged[page - LOG_START] = true;
		}
		all += nr;
		at = end;
	} while (nr && end < NR_PAGES * page_size());
	return all;
}

/* Where two copies of a page differ first and last, and how */
static void describe(char *how, const char *before, const char *after)
{
	size_t first = 0, last = page_size() - 1;

	while (before[first] == after[first])
		first++;
	while (before[last] == after[last])
		last--;
	snprintf(how, HOW_LEN, "%02x to %02x at %zu, %02x to %02x at %zu",
		 (unsigned char)before[first], (unsigned char)after[first], first,
		 (unsigned char)before[last], (unsigned char)after[last], last);
}

/* Changed between two copies, and in neither of two scans */
static void check_log(struct log_state *l)
{
	size_t size = page_size();
	int now = l->rounds & 1;

	for (size_t i = 0; i < LOG_PAGES; i++) {
		if (l->changed[i] && !l->logged[now][i] &&
		    shared->violations_log++ < 10)
			ksft_print_msg("scan %lu: page %zu: %s, and it is in neither scan\n",
				       l->rounds, LOG_START + i, l->how[i]);
		l->changed[i] = false;
		if (memcmp(l->copies[0] + i * size, l->copies[1] + i * size,
			   size)) {
			l->changed[i] = !l->logged[now][i];
			describe(l->how[i], l->copies[now] + i * size,
				 l->copies[!now] + i * size);
		}
	}
}

/* Protects the region anew: whatever was before does not count */
static bool log_start(struct log_state *l)
{
	long ret;

	do {
		ret = stress_protect(LOG_START, LOG_PAGES,
				     MEMFD_PROTECT_ASYNC);
	} while (ret == -EBUSY && !shared->stop);
	if (ret && !shared->stop)
		error_once("memfd_protect ASYNC", ret);
	memset(l->changed, 0, sizeof(l->changed));
	l->rounds = 0;
	copy_pages(l->copies[0], LOG_START, LOG_PAGES);
	return !ret;
}

static int log_round(struct log_state *l)
{
	int now = l->rounds & 1, ret;

	/* copies[now] was taken before, the scan comes, then the other copy */
	ret = unprotected ? 0 : take_log(l->logged[now], MEMFD_SCAN_REPROTECT);
	if (ret < 0) {
		error_once("scan", ret);
		return ret;
	}
	count(C_SCANS, 1);
	count(C_LOGGED, ret);
	usleep(rnd(&l->seed, 3000));
	copy_pages(l->copies[!now], LOG_START, LOG_PAGES);
	check_log(l);
	l->rounds++;
	return 0;
}

static void *log_thread(void *arg)
{
	struct log_state *l = arg;
	int old_nfd = -1;

	while (!shared->stop) {
		pthread_rwlock_rdlock(&nfd_lock);
		/* A new event fd: its number may be the old one */
		if (old_nfd != (int)shared->counts[C_CLOSES]) {
			old_nfd = shared->counts[C_CLOSES];
			log_start(l);
		}
		log_round(l);
		pthread_rwlock_unlock(&nfd_lock);
		usleep(rnd(&l->seed, 2000));
	}
	return NULL;
}

/* Ranges of all kinds, anywhere in their region, at any time */
static void *chaos_thread(void *arg)
{
	unsigned int seed = *(unsigned int *)arg;
	size_t page, nr;
	long ret;

	while (!shared->stop) {
		page = rnd(&seed, CHAOS_PAGES);
		nr = 1 + rnd(&seed, CHAOS_PAGES - page);
		pthread_rwlock_rdlock(&nfd_lock);
		if (rnd(&seed, 2))
			ret = stress_unprotect(page, nr);
		else
			ret = stress_protect(page, nr, rnd(&seed, 3));
		pthread_rwlock_unlock(&nfd_lock);
		if (ret && ret != -EBUSY)
			error_once("chaos", ret);
		count(C_CHAOS, 1);
		usleep(rnd(&seed, 4000));
	}
	return NULL;
}

/* Start, end, report */

static pid_t start(void (*fn)(unsigned int seed), unsigned int seed)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(nfd);
	fn(seed);
	_exit(0);
}

static void enter_cgroup(void)
{
	char pid[16];

	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		return;
	snprintf(pid, sizeof(pid), "%d", getpid());
	write_file(CGROUP "/cgroup.procs", pid);
}

static void leave_cgroup(void)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	write_file("/sys/fs/cgroup/cgroup.procs", pid);
	rmdir(CGROUP);
}

static bool open_file(unsigned int *seed)
{
	size_t size = page_size();
	char buf[size];

	file_size = NR_PAGES * size;
	map_size = share || huge ?
		   (file_size + TABLE_SIZE - 1) / TABLE_SIZE * TABLE_SIZE : file_size;
	memfd = sys_memfd_create(MFD_CLOEXEC |
				 (share ? MFD_SHARE_PGTABLES : 0) |
				 (unprotected ? 0 : MFD_ALLOW_PROTECT));
	if (memfd < 0)
		return false;
	for (size_t i = 0; i < NR_PAGES; i++) {
		memset(buf, 1 + i, size);
		if (pwrite(memfd, buf, size, i * size) != (ssize_t)size)
			return false;
	}
	nfd = open_nfd(seed);
	return nfd >= 0;
}

/* Everything is let go; who does not end now hangs */
static unsigned int end_all(pid_t *pids, unsigned int nr)
{
	uint64_t end = now_ns() + 60000000000ULL;
	unsigned int hung = 0;

	stress_unprotect(0, 0);
	close(nfd);
	for (unsigned int i = 0; i < nr; i++) {
		while (!waitpid(pids[i], NULL, WNOHANG) && now_ns() < end)
			usleep(1000);
		if (kill(pids[i], 0))
			continue;
		ksft_print_msg("process %d (%u) hangs\n", pids[i], i);
		hung++;
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	return hung;
}

static unsigned long swapped_pages(void)
{
	static char text[16384];
	char *line;

	if (!read_file("/proc/vmstat", text, sizeof(text)))
		return 0;
	line = strstr(text, "\npswpout ");
	return line ? strtoul(line + 9, NULL, 10) : 0;
}

static bool report(unsigned long swapped)
{
	for (int i = 0; i < NR_COUNTS; i++)
		ksft_print_msg("%-24s %10lu\n", count_names[i],
			       shared->counts[i]);
	ksft_print_msg("%-24s %10lu\n", "pages swapped out", swapped);
	ksft_print_msg("%-22s %10s %10s %10s\n", "path", "tried", "done",
		       "failed");
	for (int i = 0; i < NR_PATHS; i++) {
		if (paths[i].flags & (PATH_SLOW | PATH_EXIT))
			continue;
		ksft_print_msg("%-22s %10lu %10lu %10lu%s\n", paths[i].name,
			       shared->tried[i], shared->done[i],
			       shared->caught[i],
			       shared->missing[i] ? " (not here)" : "");
	}
	return exercised() || unprotected;
}

struct options {
	unsigned int seconds, writers, seed;
};

static bool parse(int argc, char **argv, struct options *o)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--unprotected"))
			unprotected = true;
		else if (!strcmp(argv[i], "--share"))
			share = true;
		else if (!strcmp(argv[i], "--huge"))
			huge = true;
		else if (i + 1 == argc)
			return false;
		else if (!strcmp(argv[i], "--seconds"))
			o->seconds = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--seed"))
			o->seed = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--writers"))
			o->writers = atoi(argv[++i]);
		else
			return false;
	}
	return !(share && huge) && o->seconds && o->writers && o->writers < MAX_WRITERS - 16;
}

static unsigned int start_all(const struct options *o, pid_t *pids)
{
	static void (*const noise[])(unsigned int seed) = {
		hammer, hammer, pinner, mapping_noise, fork_noise,
		reclaim_noise, move_noise, delay_noise,
	};
	unsigned int nr = 0;

	for (unsigned int i = 0; i < o->writers; i++)
		pids[nr++] = start(writer, o->seed + 100 + i);
	for (size_t i = 0; i < ARRAY_SIZE(noise); i++)
		pids[nr++] = start(noise[i], o->seed + 200 + i);
	return nr;
}

static const char usage[] =
	"Usage: %s [--seconds N] [--writers N] [--seed N] [--unprotected] [--share|--huge]\n";

int main(int argc, char **argv)
{
	struct options o = { .seconds = 30, .writers = 6 };
	static struct log_state log;
	pid_t pids[MAX_WRITERS];
	struct held held = { 0 };
	unsigned long swapped = swapped_pages();
	long long tables = ptshare_tables();
	unsigned int nr, hung, chaos_seed;
	pthread_t threads[2];
	bool powerful, linked;
	char thp[128];

	o.seed = time(NULL);
	if (!parse(argc, argv, &o)) {
		fprintf(stderr, usage, argv[0]);
		return KSFT_FAIL;
	}
	need_memfd_protect();
	ksft_print_header();
	if (share && !have_ptshare())
		ksft_exit_skip("no MFD_SHARE_PGTABLES\n");
	if (huge && !set_shmem_huge("always", thp, sizeof(thp)))
		ksft_exit_skip("no huge pages of shmem\n");
	ksft_set_plan(share ? 6 : huge ? 5 : 4);
	ksft_print_msg("%u seconds, %u writers, seed %u%s\n", o.seconds,
		       o.writers, o.seed, share ? ", shared tables" :
		       huge ? ", huge pages" : "");
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	held.seed = o.seed;
	log.seed = o.seed + 1;
	chaos_seed = o.seed + 2;
	enter_cgroup();
	if (shared == MAP_FAILED || !open_file(&held.seed))
		ksft_exit_fail_msg("no memfd: %m\n");

	nr = start_all(&o, pids);
	pthread_create(&threads[0], NULL, log_thread, &log);
	pthread_create(&threads[1], NULL, chaos_thread, &chaos_seed);
	linked = hold_in_parts(&held, o.seconds);
	shared->stop = 1;
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	set_delays(NULL);
	hung = end_all(pids, nr);
	leave_cgroup();
	if (huge) {
		set_shmem_huge(thp, NULL, 0);
		ksft_test_result(linked, "huge entries were made all along\n");
	}
	powerful = report(swapped_pages() - swapped);

	ksft_test_result(!shared->violations_hold,
			 "WAIT and DENY ranges do not change (%lu violations)\n",
			 shared->violations_hold);
	ksft_test_result(!shared->violations_log,
			 "no write is missed by the scans (%lu violations)\n",
			 shared->violations_log);
	ksft_test_result(!hung && !shared->errors,
			 "nobody hangs (%u), no unexpected error (%lu, first: %s)\n",
			 hung, shared->errors, shared->first_error ?: "none");
	ksft_test_result(powerful, "everything was exercised\n");
	if (share) {
		close(memfd);
		ksft_test_result(linked, "page tables were shared all along\n");
		ksft_test_result(tables_become(tables),
				 "all tables are freed in the end\n");
	}
	ksft_finished();
}
