// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every safety rule of shared page tables has a scenario here that goes wrong
 * without it. A kernel with CONFIG_PTSHARE_DEBUG can switch a rule off, and make
 * windows wider in which something else may happen: those have scenarios too.
 *
 *   ptshare_rules_test			with all rules: no scenario may see a
 *					violation
 *   ptshare_rules_test --off NAME	the scenario without its rule, until it has
 *					seen a violation, or for a while. Status 0:
 *					it has; 1: it has not; 4: not to be played
 *   ptshare_rules_test --list		the names, and which of them may take the
 *					kernel down without their rule
 *
 * A scenario that sees nothing without its rule proves nothing. The script
 * tests/ptshare_controls plays them all.
 */
#include "ptshare_common.h"

#include <linux/mempolicy.h>
#include <sys/mount.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "kselftest.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

#define DEBUG_DIR	"/sys/kernel/debug/ptshare"
#define NUMA_DIR	"/sys/kernel/debug/sched/numa_balancing"
#define NUMA_SWITCH	"/proc/sys/kernel/numa_balancing"
#define CGROUP_DIR	"/sys/fs/cgroup"

/* A table one level up maps so many */
#define GIB_TABLES	512UL

#define SEED		5
#define THE_PAGE	5
#define THE_OFFSET	(THE_PAGE * page_size())

/* How long a scenario plays without its rule, and when it is taken for stuck */
#define OFF_MS		25000
#define OFF_STUCK_MS	40000
#define ON_STUCK_MS	90000

/* A process that does not answer for so long will not */
#define NO_ANSWER_MS	10000

/* What a scenario works with, and what it has seen; shared with its parent */
struct scene {
	int fd;
	size_t len;
	bool off;		/* its rule is */
	uint64_t end_ns;	/* goes on until then, not for @rounds */
	unsigned int rounds;
	unsigned int violations;
	unsigned int tries;	/* times at which it could have gone wrong */
	const char *skip;	/* why it cannot be played here */
	char note[160];		/* what was seen, for humans */
};

#define scene_note(s, ...)	snprintf((s)->note, sizeof((s)->note), __VA_ARGS__)

static bool goes_on(const struct scene *s, unsigned int round)
{
	if (s->violations || s->skip)
		return false;
	return s->off ? now_ns() < s->end_ns : round < s->rounds;
}

static bool skip(struct scene *s, const char *why)
{
	s->skip = why;
	return false;
}

static bool stage(struct scene *s, size_t tables, unsigned int flags)
{
	s->len = tables * TABLE_SIZE;
	s->fd = share_file(tables, flags);
	return s->fd >= 0 || skip(s, "no such memfd");
}

/* The whole file, shared by this process too */
static char *stage_map(struct scene *s)
{
	char *map = map_file(s->fd, 0, s->len, PROT_RW);

	if (map != MAP_FAILED)
		return map;
	skip(s, "no memory");
	return NULL;
}

/* The same, with all of its pages there */
static char *stage_resident(struct scene *s, size_t tables)
{
	if (!stage(s, tables, 0) || fallocate(s->fd, 0, 0, s->len))
		return NULL;
	return stage_map(s);
}

static bool stage_peer(struct scene *s, struct peer *p, int prot)
{
	if (!peer_start_mapped(p, s->fd, 0, s->len, prot))
		return skip(s, "no peer");
	p->arg->seed = SEED;
	return true;
}

static bool two_cpus(struct scene *s)
{
	return sysconf(_SC_NPROCESSORS_ONLN) >= 2 || skip(s, "one CPU only");
}

static bool have_swap(struct scene *s)
{
	return field_of("/proc/meminfo", "SwapFree") > 100000 ||
	       skip(s, "no swap");
}

/* It does what it is told, within reason */
static bool answers(struct peer *p, operation_fn fn, long *answer)
{
	if (!peer_tell(p, fn) || !readable(p->sock, NO_ANSWER_MS))
		return false;
	*answer = peer_answer(p);
	return true;
}

/* A peer has the contents that it should have, and can store there */
static bool is_right(struct scene *s, struct peer *p, const char *who)
{
	long wrong = -1;

	if (!answers(p, peer_check, &wrong)) {
		scene_note(s, "%s does not get on", who);
		return false;
	}
	if (wrong) {
		scene_note(s, "%s: %ld pages are wrong", who, wrong);
		return false;
	}
	if (!answers(p, peer_fill, &wrong)) {
		scene_note(s, "%s cannot store", who);
		return false;
	}
	wrong = wrong_file_pages(s->fd, 0, s->len / page_size(), SEED);
	if (wrong)
		scene_note(s, "%s: %ld stores are lost", who, wrong);
	return !wrong;
}

/* Freed pages become something else */
static void use_memory(void)
{
	const size_t len = 8UL << 20;

	for (int i = 0; i < 8; i++) {
		pid_t pid = fork();
		char *mem;

		if (pid) {
			waitpid(pid, NULL, 0);
			continue;
		}
		mem = mmap(NULL, len, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			   0);
		if (mem != MAP_FAILED)
			memset(mem, 0x5a, len);
		_exit(0);
	}
}

static void delay_set(const char *delay, unsigned int us)
{
	char path[128], text[16];

	if (!delay)
		return;
	snprintf(path, sizeof(path), DEBUG_DIR "/delay_us/%s", delay);
	snprintf(text, sizeof(text), "%u", us);
	write_file(path, text);
}

/* Memory cgroups */

struct group {
	char path[64];
};

static bool group_write(const struct group *g, const char *name,
			const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", g->path, name);
	return write_file(path, text);
}

static long long group_current(const struct group *g)
{
	char path[128], text[32];

	snprintf(path, sizeof(path), "%s/memory.current", g->path);
	return read_file(path, text, sizeof(text)) ? strtoll(text, NULL, 10) :
	       -1;
}

/* A cgroup with one peer in it; they go when the test does */
static bool group_start(struct scene *s, struct group *g, struct peer *p)
{
	char pid[16];

	write_file(CGROUP_DIR "/cgroup.subtree_control", "+memory");
	snprintf(g->path, sizeof(g->path), CGROUP_DIR "/ptshare_rules_%d",
		 getpid());
	snprintf(pid, sizeof(pid), "%d", p->pid);
	if (mkdir(g->path, 0755) || !group_write(g, "cgroup.procs", pid) ||
	    group_current(g) < 0)
		return skip(s, "no memory cgroups");
	return true;
}

static void group_end(const struct group *g, struct peer *p)
{
	peer_kill(p);
	for (int i = 0; i < 200 && rmdir(g->path) && errno == EBUSY; i++)
		usleep(5000);
}

/* flush: who changes shared entries flushes all that link to them */

/*
 * The spinner's stores reach the file. The one that it is about to count may be
 * older than what was done to the page before; the one after that is not.
 */
static void check_stores(struct scene *s, struct spinner *spinner)
{
	uint64_t stores = spinner->state->stores, value;

	if (!spinner_runs(spinner, 2) || spinner->peer.arg->out.done) {
		scene_note(s, "the spinner does not get on");
		s->violations++;
		return;
	}
	s->tries++;
	value = file64(s->fd, THE_OFFSET);
	if (value >= stores + 2)
		return;
	scene_note(s, "store %llu, but the file has %llu",
		   (unsigned long long)spinner->state->stores,
		   (unsigned long long)value);
	s->violations++;
}

/* The old page stays in the pipe, so that stale stores damage nothing else */
static bool punch_the_page(struct scene *s, int pipe_end)
{
	loff_t offset = THE_OFFSET;

	return splice(s->fd, &offset, pipe_end, NULL, page_size(), 0) ==
		       (ssize_t)page_size() &&
	       !fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  THE_OFFSET, page_size());
}

/* Guests are flushed in the order in which they came: it comes after @map */
static bool late_spinner(struct scene *s, struct spinner *spinner,
			 struct peer *peer, char **map)
{
	struct spin_state *state = spin_state_alloc();

	if (!peer_start(peer, s->fd))
		return skip(s, "no peer");
	*map = stage_map(s);
	if (!*map)
		return false;
	load64(*map + THE_OFFSET);
	peer->arg->len = s->len;
	peer->arg->prot = PROT_RW;
	return (!peer_call(peer, peer_map) &&
		spinner_start(spinner, peer, state, THE_OFFSET)) ||
	       skip(s, "no spinner");
}

/* At first there are two guests, and the spinner is not the first; then it is */
static void scenario_flush(struct scene *s)
{
	struct spinner spinner;
	struct peer peer = { 0 };
	int pipes[2];
	char *map;

	/* The pipe has 256 places */
	if (!two_cpus(s) || !stage(s, 1, 0) || pipe2(pipes, O_CLOEXEC) ||
	    fcntl(pipes[1], F_SETPIPE_SZ, 1 << 20) < 0)
		return;
	pin_to_cpu(0, 0);
	if (!late_spinner(s, &spinner, &peer, &map))
		return;
	for (unsigned int i = 0; goes_on(s, i) && i < 200; i++) {
		spinner_runs(&spinner, 100);
		if (i < 20)
			load64(map + THE_OFFSET);
		else if (i == 20)
			munmap(map, s->len);
		if (punch_the_page(s, pipes[1]))
			check_stores(s, &spinner);
	}
	peer_kill(&peer);
}

/* Protection of some pages takes write access away, and the spinner has to notice */
static void play_flush_protect(struct scene *s, size_t tables, size_t first, size_t nr)
{
	struct spin_state *state = spin_state_alloc();
	struct spinner spinner;
	struct peer peer = { 0 };
	uint64_t stores;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return;
	}
	if (!two_cpus(s) || !stage(s, tables, MFD_ALLOW_PROTECT) ||
	    !stage_peer(s, &peer, PROT_RW))
		return;
	pin_to_cpu(0, 0);
	for (unsigned int i = 0; goes_on(s, i); i++) {
		if (!spinner_start(&spinner, &peer, state, THE_OFFSET)) {
			skip(s, "no spinner");
			break;
		}
		if (protect_pages(s->fd, first, nr, MEMFD_PROTECT_DENY)) {
			skip(s, "no protection");
			break;
		}
		stores = state->stores;
		usleep(5000);
		s->tries++;
		/* One may have been made before, and not been counted yet */
		s->violations += state->stores > stores + 1;
		spinner_stop(&spinner);
		unprotect_pages(s->fd, first, nr);
	}
	peer_kill(&peer);
}

static void scenario_flush_protect(struct scene *s)
{
	play_flush_protect(s, 1, THE_PAGE, 1);
}

/* One level up: a table as a whole */
static void scenario_flush_table(struct scene *s)
{
	play_flush_protect(s, GIB_TABLES, 0, 0);
}

/*
 * batch: reclaim takes the entry away, flushes later for many pages, and writes
 * the page to swap. What a stale TLB entry stores in between is lost.
 */
static long long faults_of(pid_t pid)
{
	long long minor = 0, major = 0;
	char path[64], text[512], *end;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (!read_file(path, text, sizeof(text)))
		return 0;
	end = strrchr(text, ')');
	if (end)
		sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %*u %lld %*u %lld",
		       &minor, &major);
	return minor + major;
}

/* No matter how often the page is accessed; then what has been written is freed */
static void page_out(struct peer *p, const struct group *g)
{
	struct iovec page = { p->arg->map + THE_OFFSET, page_size() };
	int pidfd = syscall(__NR_pidfd_open, p->pid, 0);

	syscall(__NR_process_madvise, pidfd, &page, 1UL, MADV_PAGEOUT, 0);
	close(pidfd);
	for (int i = 0; i < 3; i++) {
		usleep(5000);
		group_write(g, "memory.reclaim", "64M");
	}
}

/*
 * The page that has just been freed is the first to be given out again. If the
 * file got it back, stores through a stale entry would reach the file.
 */
static void *take_freed_pages(void *before)
{
	const size_t len = 1UL << 20;
	void *now = mmap(NULL, len, PROT_RW,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (before != MAP_FAILED)
		munmap(before, len);
	return now;
}

static void scenario_batch(struct scene *s)
{
	void *taken = MAP_FAILED;
	struct spin_state *state = spin_state_alloc();
	struct spinner spinner;
	struct peer peer = { 0 };
	struct group group;
	long long faults;
	long answer;

	if (!two_cpus(s) || !have_swap(s) || !stage(s, 2, 0) ||
	    !stage_peer(s, &peer, PROT_RW) || !group_start(s, &group, &peer))
		return;
	pin_to_cpu(0, 0);
	if (!answers(&peer, peer_fill, &answer) ||
	    !spinner_start(&spinner, &peer, state, THE_OFFSET)) {
		skip(s, "no spinner");
		return;
	}
	for (unsigned int i = 0; goes_on(s, i); i++) {
		unsigned int tries = s->tries;

		faults = faults_of(peer.pid);
		page_out(&peer, &group);
		taken = take_freed_pages(taken);
		check_stores(s, &spinner);
		/* It has not been taken away from the spinner at all */
		if (!s->off && faults_of(peer.pid) == faults)
			s->tries = tries;
	}
	group_end(&group, &peer);
}

/* unlink_flush: who unlinks flushes */

static void *spin_thread(void *arg)
{
	struct spin_state *state = arg;

	pin_to_cpu(0, 1);
	run_guarded((operation_fn)spin_stores, state, &state->out);
	return NULL;
}

/* Unmaps while a thread stores: it must stop */
static void unmap_and_look(struct scene *s, char *map, size_t len)
{
	struct spin_state state = {
		.word = (volatile uint64_t *)(map + THE_OFFSET),
	};
	uint64_t stores, end = now_ns() + LONG_MS * 1000000ULL;
	pthread_t thread;

	if (pthread_create(&thread, NULL, spin_thread, &state))
		return;
	while (state.stores < 1000 && now_ns() < end)
		usleep(100);
	if (munmap(map, len))
		skip(s, "munmap");
	stores = state.stores;
	s->tries++;
	/* One may have been made before. No system call here flushes. */
	while (!state.out.done && state.stores <= stores + 1 && now_ns() < end)
		usleep(1000);
	s->violations += state.stores > stores + 1;
	state.stop = 1;
	pthread_join(thread, NULL);
	s->violations += state.out.sig != SIGSEGV;
}

/* @align: the number of tables that a link is for */
static void play_unlink_flush(struct scene *s, size_t tables, size_t align)
{
	size_t len = tables * TABLE_SIZE;
	char *area, *map;

	if (!two_cpus(s) || !stage(s, tables, 0))
		return;
	pin_to_cpu(0, 0);
	for (unsigned int i = 0; goes_on(s, i); i++) {
		/* With neighbours, so that no upper level is freed too */
		area = reserve(len + 2 * align * TABLE_SIZE);
		if (area == MAP_FAILED)
			break;
		map = (char *)(((uintptr_t)area / (align * TABLE_SIZE) + 1) *
			       align * TABLE_SIZE);
		map = map_at(map, s->fd, 0, len, PROT_RW);
		if (map == MAP_FAILED)
			break;
		store64(map + THE_OFFSET, 1);
		unmap_and_look(s, map, len);
		munmap(area, len + 2 * align * TABLE_SIZE);
	}
}

static void scenario_unlink_flush(struct scene *s)
{
	play_unlink_flush(s, 1, 1);
}

static void scenario_unlink_flush_gib(struct scene *s)
{
	play_unlink_flush(s, GIB_TABLES, GIB_TABLES);
}

/* unlink: tables are freed only when no mapping is left */

static long peer_unmap_a_table(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(munmap(arg->map + TABLE_SIZE, TABLE_SIZE));
}

static void scenario_unlink(struct scene *s)
{
	struct peer stays = { 0 }, leaves = { 0 };
	long answer;

	if (!stage(s, 4, 0) || !stage_peer(s, &stays, PROT_RW) ||
	    !answers(&stays, peer_fill, &answer))
		return;
	for (unsigned int i = 0; goes_on(s, i); i++) {
		if (!stage_peer(s, &leaves, PROT_RW))
			return;
		answers(&leaves, peer_check, &answer);
		answers(&leaves, i % 2 ? peer_unmap : peer_unmap_a_table,
			&answer);
		/* A worker frees */
		usleep(50000);
		use_memory();
		s->tries++;
		s->violations += !is_right(s, &stays, "who stays");
		peer_kill(&leaves);
	}
}

/* class: read-only mappings link to read-only tables */

static long peer_try_store(void *data)
{
	struct peer_arg *arg = data;

	return try_store(arg->map + arg->value, 1);
}

static long peer_read_zero(void *data)
{
	struct peer_arg *arg = data;
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	long ret;

	ret = neg_errno(read(fd, arg->map + arg->value, 8));
	close(fd);
	return ret;
}

static long peer_protect(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(mprotect(arg->map, arg->len, arg->prot));
}

/* A peer has no right to write at THE_OFFSET, and reads it */
static void check_reader(struct scene *s, struct peer *p)
{
	uint64_t before = file64(s->fd, THE_OFFSET);
	long ret;

	/* Only where there is a link there may be a wrong one */
	s->violations += !answers(p, peer_check, &ret) || ret;
	p->arg->value = THE_OFFSET;
	s->tries++;
	if (!answers(p, peer_try_store, &ret) || ret != SIGSEGV) {
		scene_note(s, "a store went through");
		s->violations++;
	}
	if (!answers(p, peer_read_zero, &ret) || ret != -EFAULT) {
		scene_note(s, "read() went through");
		s->violations++;
	}
	s->violations += file64(s->fd, THE_OFFSET) != before;
}

static void scenario_class(struct scene *s)
{
	struct peer peer = { 0 };
	char *map;

	if (!stage(s, 1, 0) || !stage_peer(s, &peer, PROT_READ))
		return;
	map = stage_map(s);
	if (!map)
		return;
	fill_pages(map, 0, TABLE_PAGES, SEED);
	check_reader(s, &peer);
}

/* The same for who gives its right away */
static void scenario_class_mprotect(struct scene *s)
{
	struct peer peer = { 0 };
	char *map;

	if (!stage(s, 1, 0) || !stage_peer(s, &peer, PROT_RW))
		return;
	map = stage_map(s);
	if (!map)
		return;
	fill_pages(map, 0, TABLE_PAGES, SEED);
	peer_call(&peer, peer_fill);
	peer.arg->prot = PROT_READ;
	if (peer_call(&peer, peer_protect)) {
		skip(s, "mprotect");
		return;
	}
	check_reader(s, &peer);
}

/*
 * retract: after a collapse in the page cache khugepaged frees the small tables
 * of all mappings that could have a huge entry
 */
static long peer_map_private(void *data)
{
	struct peer_arg *arg = data;
	char *area = reserve(arg->len);

	if (area == MAP_FAILED)
		return -ENOMEM;
	arg->map = mmap(area, arg->len, PROT_READ, MAP_PRIVATE | MAP_FIXED,
			arg->fd, 0);
	return arg->map == MAP_FAILED ? -errno : 0;
}

static long peer_collapse(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(madvise(arg->map, arg->len, MADV_COLLAPSE));
}

/* @other collapses what @one has filled, and neither may suffer */
static void collapse_and_look(struct scene *s, struct peer *one,
			      struct peer *other)
{
	long ret = -1;

	for (unsigned int i = 0; goes_on(s, i); i++) {
		if (!is_right(s, one, "who was there first")) {
			s->violations++;
			return;
		}
		if (!answers(other, peer_collapse, &ret))
			scene_note(s, "madvise() does not return");
		else if (ret)
			scene_note(s, "MADV_COLLAPSE: %ld", ret);
		s->tries += !ret;
		/* Tables are freed after a grace period */
		usleep(100000);
		use_memory();
		s->violations += !is_right(s, one, "who was there first");
		s->violations += !answers(other, peer_check, &ret) || ret;
		/* Small again */
		fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			  s->len);
		answers(one, peer_fill, &ret);
	}
	if (!s->tries)
		skip(s, "no huge page to be had");
}

static void scenario_retract(struct scene *s)
{
	struct peer guest = { 0 }, other = { 0 };
	long ret;

	if (!stage(s, 2, 0) || !stage_peer(s, &guest, PROT_RW) ||
	    !answers(&guest, peer_fill, &ret) || !peer_start(&other, s->fd))
		return;
	other.arg->len = s->len;
	other.arg->seed = SEED;
	if (peer_call(&other, peer_map_private)) {
		skip(s, "no private mapping");
		return;
	}
	collapse_and_look(s, &guest, &other);
}

/* collapse: ... and of the mapping that it was asked to collapse */
static void scenario_collapse(struct scene *s)
{
	struct peer guest = { 0 }, other = { 0 };
	long ret;

	if (!stage(s, 2, 0) || !stage_peer(s, &guest, PROT_RW) ||
	    !answers(&guest, peer_fill, &ret) ||
	    !stage_peer(s, &other, PROT_RW) ||
	    !answers(&other, peer_check, &ret))
		return;
	collapse_and_look(s, &guest, &other);
}

/* numa: NUMA balancing makes entries inaccessible, for hints */

static void numa_scan_fast(bool fast)
{
	write_file(NUMA_SWITCH, fast ? "1" : "0");
	write_file(NUMA_DIR "/scan_delay_ms", fast ? "1" : "1000");
	write_file(NUMA_DIR "/scan_period_min_ms", fast ? "2" : "1000");
	write_file(NUMA_DIR "/scan_period_max_ms", fast ? "4" : "60000");
}

static void *wait_thread(void *arg)
{
	pause();
	return NULL;
}

/* Reads all the time. With one thread, near pages would be left alone. */
static long peer_read_on(void *data)
{
	struct peer_arg *arg = data;
	pthread_t thread;
	char *own;

	pthread_create(&thread, NULL, wait_thread, NULL);
	own = mmap(NULL, arg->len, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		   0);
	if (own == MAP_FAILED)
		return -ENOMEM;
	while (!arg->stop) {
		for (size_t i = 0; i < arg->len; i += page_size()) {
			store64(own + i, load64(arg->map + i));
			arg->value++;
		}
	}
	return 0;
}

static void scenario_numa(struct scene *s)
{
	uint64_t last = 0, moved_ns, end_ns;
	struct peer peer = { 0 };
	long long updates;
	char *map;

	if (access("/sys/devices/system/node/node1", F_OK) ||
	    access(NUMA_DIR, F_OK) || access(NUMA_SWITCH, F_OK)) {
		skip(s, "no NUMA balancing");
		return;
	}
	if (!stage(s, 2, 0))
		return;
	map = stage_map(s);
	if (!map)
		return;
	fill_pages(map, 0, s->len / page_size(), SEED);
	numa_scan_fast(true);
	updates = vmstat("numa_pte_updates");
	if (!stage_peer(s, &peer, PROT_RW) || !peer_tell(&peer, peer_read_on))
		return;
	moved_ns = now_ns();
	end_ns = s->off ? s->end_ns : moved_ns + s->rounds * 1000000000ULL;
	while (now_ns() < end_ns && !s->violations) {
		usleep(50000);
		if (peer.arg->value != last)
			moved_ns = now_ns();
		last = peer.arg->value;
		s->violations += now_ns() - moved_ns > 4000000000ULL;
	}
	/* Some of it was memory of its own */
	s->tries += vmstat("numa_pte_updates") > updates;
	scene_note(s, "%llu pages read, %lld entries changed",
		   (unsigned long long)last,
		   vmstat("numa_pte_updates") - updates);
	peer_kill(&peer);
	numa_scan_fast(false);
}

/* split: splits off a table's boundary end sharing */

static void scenario_split(struct scene *s)
{
	const size_t keep = TABLE_SIZE + 100 * 4096;
	struct peer peer = { 0 };
	char *area, *map;
	long ret;

	/* The peer keeps all tables in use */
	if (!stage(s, 2, 0) || !stage_peer(s, &peer, PROT_RW) ||
	    !answers(&peer, peer_fill, &ret))
		return;
	area = reserve(4 * TABLE_SIZE);
	if (area == MAP_FAILED) {
		skip(s, "no memory");
		return;
	}
	map = map_at(area + TABLE_SIZE, s->fd, 0, s->len, PROT_RW);
	wrong_pages(map, 0, s->len / page_size(), SEED);
	if (munmap(map + keep, s->len - keep)) {
		skip(s, "munmap");
		return;
	}
	s->violations += !!wrong_pages(map, 0, keep / page_size(), SEED);
	for (size_t i = keep; i < s->len; i += page_size()) {
		s->tries++;
		s->violations += try_load(map + i) != SIGSEGV;
	}
	scene_note(s, "%u of %u pages could be read after munmap()",
		   s->violations, s->tries);
}

/* modify: flags that a shared table cannot express end sharing */

static long run_code(void *arg)
{
	((void (*)(void))arg)();
	return 0;
}

static void scenario_modify(struct scene *s)
{
	struct outcome out = { 0 };
	char *map = stage_resident(s, 4);

	if (!map)
		return;
	map[0] = 0xc3;	/* ret */
	if (mprotect(map, s->len, PROT_READ | PROT_EXEC)) {
		skip(s, "mprotect");
		return;
	}
	run_guarded(run_code, map, &out);
	s->tries++;
	s->violations += !!out.sig;
	scene_note(s, "code in it ends with signal %d", out.sig);
	munmap(map, s->len);
}

/* lock: mappings in locked memory link to tables of their own */

static void scenario_lock(struct scene *s)
{
	long long before, grown;
	char *map = stage_resident(s, 4);

	if (!map)
		return;
	before = meminfo_kb("Mlocked");
	if (mlock(map, s->len)) {
		skip(s, "mlock");
		return;
	}
	grown = meminfo_kb("Mlocked") - before;
	s->tries++;
	/* Each CPU may keep some pages to itself for a while */
	s->violations += grown < (long long)(s->len >> 10) - 512;
	scene_note(s, "%lld of %zu kB are locked", grown, s->len >> 10);
	munmap(map, s->len);
}

/* soft_dirty: soft-dirty tracking ends sharing */

static long peer_store(void *data)
{
	struct peer_arg *arg = data;

	store64(arg->map + arg->value, arg->seed);
	return 0;
}

static void scenario_soft_dirty(struct scene *s)
{
	struct peer peer = { 0 };
	char *map, *page;

	if (!stage(s, 2, 0) || !stage_peer(s, &peer, PROT_RW))
		return;
	map = stage_map(s);
	if (!map)
		return;
	fill_pages(map, 0, s->len / page_size(), SEED);
	for (unsigned int i = 0; goes_on(s, i) && i < 500; i++) {
		page = map + i * page_size();
		if (!write_file("/proc/self/clear_refs", "4")) {
			skip(s, "no soft-dirty bits");
			return;
		}
		load64(page);
		if (soft_dirty(page))
			scene_note(s, "dirty when only read");
		s->violations += soft_dirty(page);
		peer.arg->value = page - map;
		peer_call(&peer, peer_store);
		s->tries++;
		if (soft_dirty(page))
			scene_note(s, "dirty by the store of another");
		s->violations += soft_dirty(page);
		store64(page, 78);
		if (!soft_dirty(page))
			scene_note(s, "not dirty by an own store");
		s->violations += !soft_dirty(page);
	}
}

/* notifier: MMU notifiers end sharing */

static long long notified(int fd)
{
	char text[32] = "";

	return read(fd, text, sizeof(text) - 1) > 0 ?
	       strtoll(text, NULL, 10) : -1;
}

static long peer_nothing(void *data)
{
	return 0;
}

static long peer_punch(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(fallocate(arg->fd, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, arg->value,
				   page_size()));
}

/*
 * How often this process is notified while a peer does something. Our own
 * memory, such as the stack, adds to that until all of it has been copied
 * after the last fork().
 */
static long long notified_by(int fd, struct peer *p, operation_fn fn,
			     size_t offset)
{
	long long before;

	p->arg->value = offset;
	before = notified(fd);
	peer_call(p, fn);
	return notified(fd) - before;
}

static void punch_and_look(struct scene *s, struct peer *p, int fd, char *map)
{
	size_t offset;
	int quiet = 0;

	for (int i = 0; i < 100 && quiet < 5; i++)
		quiet = notified_by(fd, p, peer_nothing, 0) ? 0 : quiet + 1;
	if (quiet < 5) {
		skip(s, "always notified");
		return;
	}
	for (unsigned int i = 0; goes_on(s, i) && i < 500; i++) {
		offset = i * page_size();
		load64(map + offset);
		s->tries++;
		s->violations += !notified_by(fd, p, peer_punch, offset);
	}
}

static void play_notifier(struct scene *s, size_t tables, bool map_first)
{
	struct peer peer = { 0 };
	char *map;
	int fd;

	if (!stage(s, tables, 0) || !stage_peer(s, &peer, PROT_RW))
		return;
	peer.arg->len = TABLE_SIZE;
	peer_call(&peer, peer_fill);
	peer.arg->len = s->len;
	map = map_first ? stage_map(s) : NULL;
	if (map)
		wrong_pages(map, 0, TABLE_PAGES, SEED);
	fd = open(DEBUG_DIR "/mmu_notifier", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		skip(s, "no MMU notifier");
		return;
	}
	if (!map_first)
		map = stage_map(s);
	if (map)
		punch_and_look(s, &peer, fd, map);
	close(fd);
}

static void scenario_notifier(struct scene *s)
{
	play_notifier(s, 1, true);
}

static void scenario_notifier_gib(struct scene *s)
{
	play_notifier(s, GIB_TABLES, true);
}

static void scenario_notifier_mmap(struct scene *s)
{
	play_notifier(s, 1, false);
}

/* charge: pages are charged to who faults them in */

static void scenario_charge(struct scene *s)
{
	struct peer peer = { 0 };
	long long before, grown;
	struct group group;
	long ret;

	if (!stage(s, 4, 0) || !stage_peer(s, &peer, PROT_RW) ||
	    !group_start(s, &group, &peer))
		return;
	before = group_current(&group);
	answers(&peer, peer_fill, &ret);
	grown = group_current(&group) - before;
	s->tries++;
	s->violations += grown < (long long)s->len * 9 / 10 ||
			 grown > (long long)s->len * 2;
	scene_note(s, "%lld of %zu kB are charged", grown >> 10, s->len >> 10);
	group_end(&group, &peer);
}

/*
 * recency: reclaim of any cgroup looks at the accessed bits. Pages that were used
 * since it last looked stay, others go, however it keeps them in order.
 */
static long peer_use_odd_pages(void *data)
{
	struct peer_arg *arg = data;

	for (size_t i = page_size(); i < arg->len; i += 2 * page_size())
		load64(arg->map + i);
	return 0;
}

/* Of the even pages, and of the odd ones */
static bool pages_gone(const struct scene *s, size_t gone[2])
{
	size_t nr = s->len / page_size();
	unsigned char *in_core = malloc(nr);
	char *map = map_file(s->fd, 0, s->len, PROT_READ);
	bool known;

	gone[0] = 0;
	gone[1] = 0;
	known = in_core && map != MAP_FAILED && !mincore(map, s->len, in_core);
	for (size_t i = 0; known && i < nr; i++)
		gone[i % 2] += !(in_core[i] & 1);
	munmap(map, s->len);
	free(in_core);
	return known;
}

static void group_reclaim(const struct group *g, size_t bytes)
{
	char text[24];

	snprintf(text, sizeof(text), "%zu", bytes);
	group_write(g, "memory.reclaim", text);
}

static void scenario_recency(struct scene *s)
{
	struct peer peer = { 0 };
	size_t before[2], gone[2];
	struct group group;
	long ret;

	if (!have_swap(s) || !stage(s, 16, 0) ||
	    !stage_peer(s, &peer, PROT_RW) || !group_start(s, &group, &peer))
		return;
	answers(&peer, peer_fill, &ret);
	/* All have been used: it has to look at all, before any can go */
	group_reclaim(&group, s->len / 64);
	peer.arg->len = s->len;
	answers(&peer, peer_use_odd_pages, &ret);
	pages_gone(s, before);
	group_reclaim(&group, s->len / 4);
	if (!pages_gone(s, gone))
		skip(s, "no mincore()");
	gone[0] -= before[0];
	gone[1] -= before[1];
	scene_note(s, "%zu used and %zu unused pages are gone", gone[1],
		   gone[0]);
	if (gone[0] + gone[1] < 256)
		skip(s, "nothing reclaimed");
	s->tries++;
	s->violations += gone[1] * 4 > gone[0];
	group_end(&group, &peer);
}

/* What a secondary MMU of a guest uses stays as well, although no accessed bit says so */
static void scenario_notifier_young(struct scene *s)
{
	struct peer peer = { 0 };
	size_t before[2], gone[2];
	struct group group;
	char *map;
	long ret;
	int fd;

	if (!have_swap(s) || !stage(s, 16, 0) ||
	    !stage_peer(s, &peer, PROT_RW) || !group_start(s, &group, &peer))
		return;
	map = stage_map(s);
	fd = open(DEBUG_DIR "/mmu_notifier", O_RDWR | O_CLOEXEC);
	if (!map || fd < 0 || write(fd, "1", 1) != 1) {
		skip(s, "no MMU notifier");
		group_end(&group, &peer);
		return;
	}
	answers(&peer, peer_fill, &ret);
	wrong_pages(map, 0, s->len / page_size(), SEED);
	/* All have been used: it has to look at all, before any can go */
	group_reclaim(&group, s->len / 64);
	pages_gone(s, before);
	group_reclaim(&group, s->len / 4);
	if (!pages_gone(s, gone))
		skip(s, "no mincore()");
	gone[0] += gone[1] - before[0] - before[1];
	scene_note(s, "%zu pages are gone", gone[0]);
	s->tries++;
	s->violations += gone[0] > s->len / page_size() / 16;
	close(fd);
	group_end(&group, &peer);
}

/* mapcount: folios count as shared with several mappings */

static void scenario_mapcount(struct scene *s)
{
	struct peer peer = { 0 };
	char *map;
	long ret;

	if (!have_swap(s) || !stage(s, 1, 0) ||
	    !stage_peer(s, &peer, PROT_RW) ||
	    !answers(&peer, peer_fill, &ret))
		return;
	map = stage_map(s);
	if (!map)
		return;
	wrong_pages(map, 0, TABLE_PAGES, SEED);
	if (madvise(map, s->len, MADV_PAGEOUT)) {
		skip(s, "no MADV_PAGEOUT");
		return;
	}
	for (size_t i = 0; i < s->len; i += page_size()) {
		s->tries++;
		s->violations += !page_has(map + i, PM_PRESENT);
	}
	scene_note(s, "%u of %u pages are gone", s->violations, s->tries);
}

/* ask: write faults ask memfd_protect() in their own name */

static long store_the_page(void *arg)
{
	store64(arg, 1);
	return 0;
}

/* It is over within five seconds, one way or another */
static bool writer_ends(struct writer *w)
{
	return writer_reap(w, 5000) && w->out->done;
}

/* @offset: of a page that has been written, and of one that has not */
static void store_denied(struct scene *s, char *map, size_t offset)
{
	struct writer w;

	if (protect_pages(s->fd, offset / page_size(), 1, MEMFD_PROTECT_DENY) ||
	    !writer_start(&w, -1, store_the_page, map + offset)) {
		skip(s, "no protection");
		return;
	}
	s->tries++;
	if (!writer_ends(&w) || w.out->sig != SIGBUS) {
		s->violations++;
		scene_note(s, "the writer %s, signal %d",
			   w.out->done ? "was let through" : "is not told",
			   w.out->sig);
	}
	writer_free(&w);
}

static void scenario_ask(struct scene *s)
{
	char *map;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return;
	}
	if (!stage(s, 1, MFD_ALLOW_PROTECT))
		return;
	map = stage_map(s);
	if (!map)
		return;
	store64(map + THE_OFFSET, 1);
	store_denied(s, map, THE_OFFSET);
	store_denied(s, map, 2 * THE_OFFSET);
}

static void scenario_ask_wait(struct scene *s)
{
	struct memfd_event event;
	struct writer w;
	char *map;
	int nfd;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return;
	}
	if (!stage(s, 1, MFD_ALLOW_PROTECT))
		return;
	map = stage_map(s);
	nfd = sys_memfd_notify(s->fd, 0);
	if (!map || nfd < 0)
		return;
	store64(map + THE_OFFSET, 1);
	if (protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT) ||
	    !writer_start(&w, nfd, store_the_page, map + THE_OFFSET)) {
		skip(s, "no protection");
		return;
	}
	s->tries++;
	s->violations += !read_event_in(nfd, &event, 5000);
	s->violations += w.out->done;
	unprotect_pages(s->fd, THE_PAGE, 1);
	s->violations += !writer_ends(&w) || w.out->sig;
	writer_free(&w);
	close(nfd);
}

/*
 * What memfd_protect() has to do in a shared table: a page that is read while it
 * is protected is not mapped writable.
 */
static void scenario_set_ptes(struct scene *s)
{
	struct peer peer = { 0 };
	long answer;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return;
	}
	if (!stage(s, 1, MFD_ALLOW_PROTECT) ||
	    !stage_peer(s, &peer, PROT_RW))
		return;
	fallocate(s->fd, 0, 0, s->len);
	if (protect_pages(s->fd, 0, TABLE_PAGES, MEMFD_PROTECT_DENY)) {
		skip(s, "no protection");
		return;
	}
	answers(&peer, peer_check, &answer);
	peer.arg->value = THE_OFFSET;
	s->tries++;
	if (!answers(&peer, peer_store, &answer) ||
	    answer != PEER_SIGNAL(SIGBUS) || file64(s->fd, THE_OFFSET))
		s->violations++;
}

/*
 * Windows. There is nothing to switch off, but something to be done between two
 * steps of the kernel.
 */

/* A store of @p is going to ask: there is no page, or a read-only entry */
static bool store_soon(struct scene *s, struct peer *p, unsigned int round)
{
	unprotect_pages(s->fd, 0, 0);
	if (round % 2)
		protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
	else
		fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  THE_OFFSET, page_size());
	unprotect_pages(s->fd, 0, 0);
	p->arg->value = THE_OFFSET;
	p->arg->seed = round + 1;
	if (!peer_tell(p, peer_store))
		return false;
	usleep(round % 5 * 10000);
	return true;
}

/* ask: protection comes when the fault has asked, and has no page yet */
static void scenario_ask_window(struct scene *s)
{
	struct peer peer = { 0 };
	uint64_t before;
	long answer;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return;
	}
	if (!stage(s, 1, MFD_ALLOW_PROTECT) ||
	    !stage_peer(s, &peer, PROT_RW))
		return;
	for (unsigned int i = 0; goes_on(s, i); i++) {
		if (!store_soon(s, &peer, i))
			return;
		protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_DENY);
		before = file64(s->fd, THE_OFFSET);
		answer = peer_answer(&peer);
		/* Either it was there before, or it failed */
		s->tries += answer == PEER_SIGNAL(SIGBUS);
		if (answer && answer != PEER_SIGNAL(SIGBUS))
			s->violations++;
		s->violations += (before == i + 1) != (answer == 0);
		s->violations += file64(s->fd, THE_OFFSET) != before;
	}
}

/* The same with a handler: the writer waits, and nobody dies */
static void scenario_ask_wait_window(struct scene *s)
{
	struct memfd_event event;
	struct peer peer = { 0 };
	int nfd;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return;
	}
	if (!stage(s, 1, MFD_ALLOW_PROTECT) ||
	    !stage_peer(s, &peer, PROT_RW))
		return;
	nfd = sys_memfd_notify(s->fd, 0);
	for (unsigned int i = 0; goes_on(s, i); i++) {
		if (!store_soon(s, &peer, i))
			return;
		protect_pages(s->fd, THE_PAGE, 1, MEMFD_PROTECT_WAIT);
		while (!peer.arg->out.done && !readable(nfd, 0))
			usleep(1000);
		if (!peer.arg->out.done) {
			s->tries++;
			s->violations += !read_event(nfd, &event);
			s->violations += file64(s->fd, THE_OFFSET) == i + 1;
		}
		unprotect_pages(s->fd, 0, 0);
		s->violations += peer_answer(&peer) != 0;
		s->violations += file64(s->fd, THE_OFFSET) != i + 1;
	}
	close(nfd);
}

/*
 * link: a fault has its page, and before it links, the page goes, or another
 * guest. Returns whether that was in time.
 */
static bool link_late(struct scene *s, struct peer *p, struct peer *other,
		      unsigned int round)
{
	bool in_time;

	p->arg->value = THE_OFFSET;
	delay_set("link", 30000);
	if (!peer_tell(p, peer_store))
		return false;
	usleep(round % 4 * 10000);
	if (round % 2)
		fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			  s->len);
	else
		peer_call(other, peer_unmap);
	in_time = !p->arg->out.done;
	s->violations += !!peer_answer(p);
	delay_set("link", 0);
	return in_time;
}

static void scenario_link_window(struct scene *s)
{
	struct peer peer = { 0 }, other = { 0 };
	uint64_t value;
	long answer;

	if (!stage(s, 2, 0) || !stage_peer(s, &peer, PROT_RW) ||
	    !stage_peer(s, &other, PROT_RW))
		return;
	for (unsigned int i = 0; goes_on(s, i); i++) {
		answers(&other, peer_fill, &answer);
		peer_call(&peer, peer_unmap);
		fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  THE_OFFSET, page_size());
		if (peer_call(&peer, peer_map)) {
			skip(s, "no memory");
			return;
		}
		s->tries += link_late(s, &peer, &other, i);
		/* It may have been there before the hole */
		value = file64(s->fd, THE_OFFSET);
		s->violations += value != SEED && (i % 2 == 0 || value);
		answers(&peer, peer_fill, &answer);
		s->violations += !is_right(s, &peer, "who linked");
		if (i % 2 == 0)
			peer_call(&other, peer_map);
	}
}

/* teardown: all have gone, and somebody comes before the tables are freed */
static void scenario_teardown_window(struct scene *s)
{
	size_t pages;
	char *map;

	if (!stage(s, 2, 0))
		return;
	pages = s->len / page_size();
	for (unsigned int i = 0; goes_on(s, i); i++) {
		map = stage_map(s);
		if (!map)
			return;
		fill_pages(map, 0, pages, i);
		munmap(map, s->len);
		usleep(i % 6 * 10000);
		map = stage_map(s);
		if (!map)
			return;
		s->tries++;
		s->violations += !!wrong_pages(map, 0, pages / 2, i);
		usleep(60000);
		s->violations += !!wrong_pages(map, 0, pages, i);
		fill_pages(map, 0, pages, i + 100);
		s->violations += !!wrong_file_pages(s->fd, 0, pages, i + 100);
		munmap(map, s->len);
	}
}

/*
 * guards: a mapping gets a guard region while mprotect() gives it rights with which it
 * would share. The region is in front of the first whole table, where nothing that
 * sharing does would find it.
 */
struct guard_race {
	char *guard;
	pthread_barrier_t barrier;
	bool over;
};

static void *install_guard(void *arg)
{
	struct guard_race *race = arg;

	for (;;) {
		pthread_barrier_wait(&race->barrier);
		if (race->over)
			return NULL;
		usleep(1000);
		madvise(race->guard, page_size(), MADV_GUARD_INSTALL);
		pthread_barrier_wait(&race->barrier);
	}
}

static void scenario_guards(struct scene *s)
{
	struct guard_race race = { 0 };
	pthread_t thread;
	size_t len;
	char *map;

	if (!stage(s, 2, 0) || !two_cpus(s))
		return;
	map = reserve(s->len);
	len = s->len - page_size();
	race.guard = map + page_size();
	map_at(race.guard, s->fd, page_size(), len, PROT_NONE);
	if (madvise(race.guard, page_size(), MADV_GUARD_INSTALL)) {
		skip(s, "no guard regions in files");
		return;
	}
	pthread_barrier_init(&race.barrier, NULL, 2);
	if (pthread_create(&thread, NULL, install_guard, &race)) {
		skip(s, "no thread");
		return;
	}
	for (unsigned int i = 0; goes_on(s, i); i++) {
		map_at(race.guard, s->fd, page_size(), len, PROT_NONE);
		pthread_barrier_wait(&race.barrier);
		mprotect(race.guard, len, PROT_RW);
		pthread_barrier_wait(&race.barrier);
		load64(map + TABLE_SIZE);
		s->tries += try_load(race.guard) == SIGSEGV;
		s->violations += shared_kb(race.guard, len) > 0;
	}
	race.over = true;
	pthread_barrier_wait(&race.barrier);
	pthread_join(thread, NULL);
}

/* The list */

#define RULE(name)	DEBUG_DIR "/disable/" name

/*
 * alone, join, push_down, link, gup, gup_fast: memfd_protect() of a table as a whole. All of
 * the file is denied; its page has an entry that could be written.
 */
static char *stage_denied(struct scene *s)
{
	char *map;

	if (!have_protect()) {
		skip(s, "no CONFIG_MEMFD_PROTECT");
		return NULL;
	}
	if (!stage(s, GIB_TABLES, MFD_ALLOW_PROTECT))
		return NULL;
	map = stage_map(s);
	if (!map)
		return NULL;
	store64(map + THE_OFFSET, SEED);
	if (protect_pages(s->fd, 0, 0, MEMFD_PROTECT_DENY)) {
		skip(s, "no protection");
		return NULL;
	}
	return map;
}

/* At an address at which no GiB can be linked as a whole */
static char *map_aslant(struct scene *s)
{
	char *area = reserve(s->len + TABLE_SIZE);

	if (!((uintptr_t)area % (GIB_TABLES * TABLE_SIZE)))
		area += TABLE_SIZE;
	return map_at(area, s->fd, 0, s->len, PROT_RW);
}

static void expect_denied(struct scene *s, char *page)
{
	s->tries++;
	s->violations += try_store(page, 1) != SIGBUS;
}

static void scenario_alone(struct scene *s)
{
	char *map = stage_denied(s), *aslant;

	if (!map)
		return;
	aslant = map_aslant(s);
	unprotect_pages(s->fd, 0, 0);
	store64(aslant + THE_OFFSET, SEED);
	protect_pages(s->fd, 0, 0, MEMFD_PROTECT_DENY);
	expect_denied(s, map + THE_OFFSET);
	expect_denied(s, aslant + THE_OFFSET);
}

static void scenario_join(struct scene *s)
{
	char *map = stage_denied(s), *aslant;

	if (!map)
		return;
	aslant = map_aslant(s);
	load64(aslant + THE_OFFSET);
	expect_denied(s, aslant + THE_OFFSET);
	expect_denied(s, map + THE_OFFSET);
}

/*
 * link: the table denies, its entry does not. A fault that only looks at the latter has
 * nothing to do, again and again.
 */
static void scenario_link(struct scene *s)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	char *map = stage_denied(s);
	int status = -1;
	pid_t pid;

	if (!map)
		return;
	pid = fork();
	if (!pid)
		_exit(try_store(map + THE_OFFSET, 1) != SIGBUS);
	while (waitpid(pid, &status, WNOHANG) == 0 && now_ns() < end)
		usleep(1000);
	kill(pid, SIGKILL);
	s->tries++;
	s->violations += status != 0;
}

/* possible: on Xen's paravirtual machines nothing shares, and who asks is told */
static void scenario_possible(struct scene *s)
{
	static const char enabled[] = "/sys/kernel/mm/ptshare/shmem_enabled";
	static const char dir[] = "/tmp/ptshare_possible";

	s->tries++;
	s->violations += share_memfd(0) == -EINVAL;
	mkdir(dir, 0755);
	if (mount("none", dir, "tmpfs", 0, "ptshare=always"))
		s->violations += errno == EINVAL;
	else
		umount(dir);
	rmdir(dir);
	if (write_file(enabled, "always"))
		write_file(enabled, "never");
	else
		s->violations += errno == EINVAL;
	scene_note(s, "%u of 3 refused", s->violations);
}

static void scenario_push_down(struct scene *s)
{
	char *map = stage_denied(s);

	if (!map)
		return;
	unprotect_pages(s->fd, 0, 1);
	store64(map, 1);
	expect_denied(s, map + THE_OFFSET);
}

static void scenario_gup(struct scene *s)
{
	char *map = stage_denied(s);
	uint64_t value = 0;
	struct iovec here = { &value, 8 }, there = { map + THE_OFFSET, 8 };

	if (!map)
		return;
	s->tries++;
	s->violations += process_vm_writev(getpid(), &here, 1, &there, 1, 0) >= 0;
	s->violations += load64(map + THE_OFFSET) != SEED;
}

/* O_DIRECT takes the pages of its buffer without locks */
static void scenario_gup_fast(struct scene *s)
{
	char *map = stage_denied(s);
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC | O_DIRECT);

	if (!map)
		return;
	if (fd < 0) {
		skip(s, "no O_DIRECT");
		return;
	}
	s->tries++;
	s->violations += read(fd, map + THE_OFFSET, page_size()) > 0;
	s->violations += load64(map + THE_OFFSET) != SEED;
	close(fd);
}

/* The same with a huge page; if that is not to be had, the scenario is skipped */
static char *stage_denied_huge(struct scene *s)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	long long huge;
	char *map;

	if (!write_file(path, "always")) {
		skip(s, "no huge pages of shmem");
		return NULL;
	}
	map = stage_denied(s);
	write_file(path, "never");
	huge = map ? smaps_sum(getpid(), map, s->len, "ShmemPmdMapped", NULL) : 0;
	if (map && huge != (long long)TABLE_KB) {
		skip(s, "no huge page");
		return NULL;
	}
	return map;
}

static void scenario_huge(struct scene *s)
{
	char *map = stage_denied_huge(s);

	if (map)
		expect_denied(s, map + THE_OFFSET);
}

/* It moves to another node, and comes back with an entry that is made anew */
static void scenario_huge_migration(struct scene *s)
{
	char *map = stage_denied_huge(s);
	void *addr = map + THE_OFFSET;
	int node = 1, status = -1;

	if (!map)
		return;
	if (syscall(__NR_move_pages, 0, 1, &addr, &node, &status, MPOL_MF_MOVE_ALL) ||
	    status != node) {
		skip(s, "no second node");
		return;
	}
	expect_denied(s, map + THE_OFFSET);
}

static const struct scenario {
	const char *name;
	const char *rule;	/* its switch; NULL: it has none */
	void (*play)(struct scene *s);
	unsigned int rounds;	/* with the rule */
	bool dangerous;		/* without it */
	const char *delay;	/* the window that it needs */
	unsigned int delay_us;
} scenarios[] = {
	{ "flush", RULE("flush"), scenario_flush, 40 },
	{ "flush_protect", RULE("flush"), scenario_flush_protect, 40 },
	{ "flush_table", RULE("flush"), scenario_flush_table, 40 },
	{ "batch", RULE("batch"), scenario_batch, 15, true },
	{ "unlink_flush", RULE("unlink_flush"), scenario_unlink_flush, 20 },
	{ "unlink_flush_gib", RULE("unlink_flush"), scenario_unlink_flush_gib, 20 },
	{ "unlink", RULE("unlink"), scenario_unlink, 8, true },
	{ "class", RULE("class"), scenario_class },
	{ "class_mprotect", RULE("class"), scenario_class_mprotect },
	{ "retract", RULE("retract"), scenario_retract, 3, true },
	{ "collapse", RULE("collapse"), scenario_collapse, 3, true },
	{ "numa", RULE("numa"), scenario_numa, 5 },
	{ "split", RULE("split"), scenario_split },
	{ "modify", RULE("modify"), scenario_modify },
	{ "lock", RULE("lock"), scenario_lock },
	{ "soft_dirty", RULE("soft_dirty"), scenario_soft_dirty, 20 },
	{ "notifier", RULE("notifier"), scenario_notifier, 20 },
	{ "notifier_gib", RULE("notifier"), scenario_notifier_gib, 20 },
	{ "notifier_mmap", RULE("notifier"), scenario_notifier_mmap, 20 },
	{ "notifier_young", RULE("notifier"), scenario_notifier_young },
	{ "charge", RULE("charge"), scenario_charge },
	{ "recency", RULE("recency"), scenario_recency },
	{ "mapcount", RULE("mapcount"), scenario_mapcount },
	{ "ask", RULE("ask"), scenario_ask },
	{ "ask_wait", RULE("ask"), scenario_ask_wait },
	{ "set_ptes", MEMFD_DEBUG_DIR "/disable/set_ptes", scenario_set_ptes },
	{ "guards", RULE("guards"), scenario_guards, 20, .delay = "share",
	  .delay_us = 10000 },
	{ "alone", RULE("alone"), scenario_alone },
	{ "join", RULE("join"), scenario_join },
	{ "push_down", RULE("push_down"), scenario_push_down },
	{ "link", RULE("link"), scenario_link },
	{ "gup", RULE("gup"), scenario_gup },
	{ "gup_fast", RULE("gup_fast"), scenario_gup_fast },
	{ "huge", MEMFD_DEBUG_DIR "/disable/huge", scenario_huge },
	{ "huge_migration", MEMFD_DEBUG_DIR "/disable/pmd", scenario_huge_migration },
	{ "possible", RULE("possible"), scenario_possible },
	{ "ask_window", NULL, scenario_ask_window, 20, .delay = "ask",
	  .delay_us = 30000 },
	{ "ask_wait_window", NULL, scenario_ask_wait_window, 20,
	  .delay = "ask", .delay_us = 30000 },
	{ "link_window", NULL, scenario_link_window, 16, .delay = "link" },
	{ "teardown_window", NULL, scenario_teardown_window, 12,
	  .delay = "teardown", .delay_us = 30000 },
};

static bool rule_set(const char *rule, bool off)
{
	return rule && write_file(rule, off ? "1" : "0");
}

static void rules_reset(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++) {
		rule_set(scenarios[i].rule, false);
		delay_set(scenarios[i].delay, 0);
	}
}

static const char *rule_name(const struct scenario *scenario)
{
	return strrchr(scenario->rule, '/') + 1;
}

enum ending {
	ENDED,
	DIED,		/* of a signal */
	STUCK,
};

/* In a process of its own, which takes all that it has started with it */
static enum ending play(const struct scenario *scenario, struct scene *s)
{
	uint64_t limit_ms = s->off ? OFF_STUCK_MS : ON_STUCK_MS;
	enum ending ending = STUCK;
	uint64_t end_ns;
	int status = 0;
	pid_t pid;

	s->rounds = scenario->rounds;
	s->end_ns = now_ns() + OFF_MS * 1000000ULL;
	end_ns = now_ns() + limit_ms * 1000000ULL;
	fflush(stdout);
	delay_set(scenario->delay, scenario->delay_us);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		scenario->play(s);
		_exit(0);
	}
	while (pid > 0 && ending == STUCK && now_ns() < end_ns) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			ending = WIFEXITED(status) ? ENDED : DIED;
		else
			usleep(1000);
	}
	kill(-pid, SIGKILL);
	delay_set(scenario->delay, 0);
	return ending;
}

static struct scene *scene_alloc(void)
{
	struct scene *s = mmap(NULL, sizeof(*s), PROT_RW,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (s == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	return s;
}

static void scene_print(const char *name, const struct scene *s)
{
	ksft_print_msg("%s: %u violations, %u tries%s%s\n", name,
		       s->violations, s->tries, s->note[0] ? ": " : "",
		       s->note);
}

static void play_on(const struct scenario *scenario)
{
	struct scene *s = scene_alloc();
	enum ending ending = play(scenario, s);

	if (ending == ENDED && s->skip && !s->violations) {
		ksft_test_result_skip("%s: %s\n", scenario->name, s->skip);
		return;
	}
	scene_print(scenario->name, s);
	if (ending != ENDED)
		ksft_print_msg("%s: %s\n", scenario->name,
			       ending == DIED ? "it died" : "it is stuck");
	ksft_test_result(ending == ENDED && !s->violations && s->tries,
			 "%s\n", scenario->name);
}

static int play_off(const char *name)
{
	const struct scenario *scenario = scenarios;
	struct scene *s = scene_alloc();
	enum ending ending;

	while (!scenario->rule || strcmp(scenario->name, name))
		if (++scenario == scenarios + ARRAY_SIZE(scenarios))
			return 2;
	if (!rule_set(scenario->rule, true))
		return KSFT_SKIP;
	/* If nothing comes after this, it was the kernel's last word */
	ksft_print_msg("%s: rule %s is off\n", name, rule_name(scenario));
	s->off = true;
	ending = play(scenario, s);
	rule_set(scenario->rule, false);
	numa_scan_fast(false);
	scene_print(name, s);
	if (s->violations)
		return 0;
	if (ending != ENDED && scenario->dangerous) {
		ksft_print_msg("%s: it died, or is stuck\n", name);
		return 0;
	}
	return s->skip ? KSFT_SKIP : 1;
}

static int usage(void)
{
	fprintf(stderr, "Usage: ptshare_rules_test [--list | --off NAME]\n");
	return 2;
}

static int list(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++) {
		const struct scenario *scenario = &scenarios[i];

		if (!scenario->rule)
			continue;
		printf("%s %s %s\n", scenario->name, rule_name(scenario),
		       scenario->dangerous ? "dangerous" : "harmless");
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--list"))
		return list();
	if (argc != 1 && (argc != 3 || strcmp(argv[1], "--off")))
		return usage();
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!have_ptshare() || access(DEBUG_DIR, F_OK)) {
		if (argc == 1)
			ksft_print_header();
		ksft_exit_skip("no CONFIG_PTSHARE_DEBUG\n");
	}
	rules_reset();
	if (argc == 3)
		return play_off(argv[2]);
	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(scenarios));
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++)
		play_on(&scenarios[i]);
	numa_scan_fast(false);
	ksft_finished();
}
