/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the ptshare selftests have in common: shared memfds and their mappings,
 * the figures that tell whether sharing is in effect, peers (processes that
 * run one function at a time for the test) and spinners (processes that store
 * all the time, pinned to a CPU, and never enter the kernel).
 *
 * As in memfd_protect_common.h, no wait is without an end, and every wrapper
 * returns -errno.
 */
#ifndef PTSHARE_COMMON_H
#define PTSHARE_COMMON_H

#include "../memfd/memfd_protect_common.h"

#include <sched.h>

#ifndef MFD_SHARE_PGTABLES
#define MFD_SHARE_PGTABLES	0x00200000U
#endif

#define TABLE_SIZE	(2UL << 20)	/* what one leaf page table maps */
#define TABLE_KB	(TABLE_SIZE >> 10)
#define TABLE_PAGES	(TABLE_SIZE / page_size())

#define PROT_RW		(PROT_READ | PROT_WRITE)

/* Files and mappings */

static inline int share_memfd(unsigned int flags)
{
	return neg_errno(syscall(__NR_memfd_create, "ptshare-test",
				 MFD_CLOEXEC | MFD_SHARE_PGTABLES | flags));
}

/* A file of so many tables without any page in it */
static inline int share_file(size_t tables, unsigned int flags)
{
	int fd = share_memfd(flags);

	if (fd >= 0 && ftruncate(fd, tables * TABLE_SIZE)) {
		close(fd);
		return -ENOSPC;
	}
	return fd;
}

static inline bool have_ptshare(void)
{
	int fd = share_memfd(0);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static inline bool have_protect(void)
{
	int fd = share_memfd(MFD_ALLOW_PROTECT);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static inline int open_again(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return neg_errno(open(path, flags | O_CLOEXEC));
}

static inline char *map_file(int fd, size_t offset, size_t len, int prot)
{
	return mmap(NULL, len, prot, MAP_SHARED, fd, offset);
}

/* Address space that nothing is in, aligned to a table */
static inline char *reserve(size_t len)
{
	char *area, *start;

	area = mmap(NULL, len + TABLE_SIZE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return area;
	start = (char *)(((uintptr_t)area + TABLE_SIZE - 1) & -TABLE_SIZE);
	if (start > area)
		munmap(area, start - area);
	munmap(start + len, area + TABLE_SIZE - start);
	return start;
}

static inline char *map_at(char *addr, int fd, size_t offset, size_t len,
			   int prot)
{
	return mmap(addr, len, prot, MAP_SHARED | MAP_FIXED, fd, offset);
}

static inline uint64_t load64(const void *addr)
{
	return *(const volatile uint64_t *)addr;
}

static inline void store64(void *addr, uint64_t value)
{
	*(volatile uint64_t *)addr = value;
}

/* Each page begins with a number of its own */
static inline uint64_t page_mark(uint64_t seed, size_t page)
{
	return seed * 0x100000001ULL + page * 0x9e3779b97f4a7c15ULL + 1;
}

static inline void fill_pages(char *map, size_t first, size_t nr,
			      uint64_t seed)
{
	for (size_t i = 0; i < nr; i++)
		store64(map + i * page_size(), page_mark(seed, first + i));
}

/* How many pages do not begin with what fill_pages() stored */
static inline size_t wrong_pages(const char *map, size_t first, size_t nr,
				 uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = 0; i < nr; i++)
		wrong += load64(map + i * page_size()) !=
			 page_mark(seed, first + i);
	return wrong;
}

/* The same by read(2): it needs no mapping */
static inline uint64_t file64(int fd, size_t offset)
{
	uint64_t value = ~0ULL;

	if (pread(fd, &value, sizeof(value), offset) != sizeof(value))
		return ~0ULL;
	return value;
}

static inline size_t wrong_file_pages(int fd, size_t first, size_t nr,
				      uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = first; i < first + nr; i++)
		wrong += file64(fd, i * page_size()) != page_mark(seed, i);
	return wrong;
}

/* Figures */

/* The number after "key" at the start of a line; -1 if there is none */
static inline long long field_of(const char *path, const char *key)
{
	size_t len = strlen(key);
	long long value = -1;
	char line[512];
	FILE *file;

	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, len) || !strchr(" :\t", line[len]))
			continue;
		value = strtoll(line + len + 1, NULL, 10);
		break;
	}
	fclose(file);
	return value;
}

/* Counters that CPUs keep to themselves for a while are added up first */
static inline void refresh_vmstat(void)
{
	write_file("/proc/sys/vm/stat_refresh", "1");
}

#define PROC_VMSTAT	"/proc/vmstat"
#define PROC_FDINFO	"/proc/self/fdinfo/%d"

static inline long long vmstat(const char *name)
{
	return field_of(PROC_VMSTAT, name);
}

static inline long long meminfo_kb(const char *name)
{
	refresh_vmstat();
	return field_of("/proc/meminfo", name);
}

static inline long long pid_field(pid_t pid, const char *file,
				  const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	return field_of(path, name);
}

static inline long long fdinfo(int fd, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), PROC_FDINFO, fd);
	return field_of(path, name);
}

struct ptshare_counts {
	long long link;
	long long unlink;
	long long unshare;
	long long share;
};

static inline struct ptshare_counts ptshare_counts(void)
{
	return (struct ptshare_counts) {
		.link = vmstat("ptshare_link"),
		.unlink = vmstat("ptshare_unlink"),
		.unshare = vmstat("ptshare_unshare"),
		.share = vmstat("ptshare_share"),
	};
}

static inline long long ptshare_tables(void)
{
	refresh_vmstat();
	return vmstat("nr_ptshare_tables");
}

/* Tables are freed some time after the last mapping has gone */
static inline bool tables_become(long long nr)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (ptshare_tables() != nr) {
		if (now_ns() > end)
			return false;
		usleep(5000);
	}
	return true;
}

/*
 * The sum of a line of smaps over the mappings that begin in [addr, addr +
 * len), in the line's unit, and their number.
 */
static inline long long smaps_sum(pid_t pid, const void *addr, size_t len,
				  const char *key, unsigned int *mappings)
{
	unsigned long start, end, first = (unsigned long)addr;
	size_t key_len = strlen(key);
	char path[64], line[512];
	bool inside = false;
	long long sum = 0;
	FILE *file;

	if (mappings)
		*mappings = 0;
	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
			inside = start >= first && start < first + len;
			if (inside && mappings)
				(*mappings)++;
		} else if (inside && !strncmp(line, key, key_len) &&
			   line[key_len] == ':') {
			sum += strtoll(line + key_len + 1, NULL, 10);
		}
	}
	fclose(file);
	return sum;
}

/* kB of [addr, addr + len) that are mapped through shared tables */
static inline long long shared_kb_of(pid_t pid, const void *addr, size_t len)
{
	return smaps_sum(pid, addr, len, "Ptshare", NULL);
}

static inline long long shared_kb(const void *addr, size_t len)
{
	return shared_kb_of(getpid(), addr, len);
}

/* What /proc/PID/pagemap says of a page */
#define PM_PRESENT	0x8000000000000000ULL
#define PM_SWAP		0x4000000000000000ULL
#define PM_FILE		0x2000000000000000ULL
#define PM_EXCLUSIVE	0x0100000000000000ULL
#define PM_SOFT_DIRTY	0x0080000000000000ULL

static inline bool read_pagemap(const char *map, size_t nr, uint64_t *entries)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ssize_t ret;

	ret = pread(fd, entries, nr * 8, (uintptr_t)map / page_size() * 8);
	close(fd);
	return ret == (ssize_t)(nr * 8);
}

static inline bool page_has(const char *addr, uint64_t bits)
{
	uint64_t entry;

	return read_pagemap(addr, 1, &entry) && (entry & bits) == bits;
}

static inline bool soft_dirty(const char *addr)
{
	return page_has(addr, PM_SOFT_DIRTY);
}

/* An access that may fail: 0, the signal, or -1 for a wrong si_addr */

struct access {
	volatile unsigned char *addr;
	unsigned char value;
};

static inline long access_store(void *arg)
{
	struct access *a = arg;

	*a->addr = a->value;
	return 0;
}

static inline long access_load(void *arg)
{
	struct access *a = arg;

	a->value = *a->addr;
	return 0;
}

static inline int access_outcome(const struct access *a,
				 const struct outcome *out)
{
	if (out->sig && out->addr != a->addr)
		return -1;
	return out->sig;
}

static inline int try_store(void *addr, unsigned char value)
{
	struct access a = { .addr = addr, .value = value };
	struct outcome out = { 0 };

	run_guarded(access_store, &a, &out);
	return access_outcome(&a, &out);
}

static inline int try_load(const void *addr)
{
	struct access a = { .addr = (unsigned char *)addr };
	struct outcome out = { 0 };

	run_guarded(access_load, &a, &out);
	return access_outcome(&a, &out);
}

/*
 * A peer: a process that waits, and runs a function when it is told to. The
 * function works on @arg, which both see, and keeps there what it needs later.
 * A peer dies with the test.
 */
struct peer_arg {
	operation_fn fn;
	int fd;
	char *map;
	char *other;		/* another mapping */
	size_t offset;		/* in the file or the mapping */
	size_t len;
	int prot;
	int flags;
	pid_t pid;
	uint64_t seed;
	uint64_t value;
	volatile int stop;
	char text[256];
	struct outcome out;
};

struct peer {
	pid_t pid;
	int sock;
	int status;
	bool reaped;
	struct peer_arg *arg;
};

#define PEER_SIGNAL(sig)	(-1000L - (sig))
#define PEER_GONE		(-2000L)

static inline void peer_loop(struct peer_arg *arg, int sock)
{
	char byte;

	while (read(sock, &byte, 1) == 1 && arg->fn) {
		run_guarded(arg->fn, arg, &arg->out);
		if (write(sock, &byte, 1) != 1)
			break;
	}
	_exit(0);
}

static inline bool peer_start(struct peer *p, int fd)
{
	int socks[2];

	memset(p, 0, sizeof(*p));
	p->arg = mmap(NULL, sizeof(*p->arg), PROT_RW,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p->arg == MAP_FAILED ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		return false;
	p->arg->fd = fd;
	p->sock = socks[0];
	p->pid = fork();
	if (!p->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(socks[0]);
		peer_loop(p->arg, socks[1]);
	}
	close(socks[1]);
	return p->pid > 0;
}

static inline bool peer_tell(struct peer *p, operation_fn fn)
{
	if (!p->arg)
		return false;
	p->arg->fn = fn;
	p->arg->out.done = 0;
	p->arg->out.started = 0;
	return send(p->sock, "", 1, MSG_NOSIGNAL) == 1;
}

/* What the function returned, PEER_SIGNAL(sig) or PEER_GONE */
static inline long peer_answer(struct peer *p)
{
	char byte;

	if (!readable(p->sock, LONG_MS) || read(p->sock, &byte, 1) != 1)
		return PEER_GONE;
	if (p->arg->out.sig)
		return PEER_SIGNAL(p->arg->out.sig);
	return p->arg->out.ret;
}

static inline long peer_call(struct peer *p, operation_fn fn)
{
	if (!peer_tell(p, fn))
		return PEER_GONE;
	return peer_answer(p);
}

static inline bool peer_reap(struct peer *p)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (!p->reaped && now_ns() < end) {
		p->reaped = waitpid(p->pid, &p->status, WNOHANG) == p->pid;
		if (!p->reaped)
			usleep(500);
	}
	return p->reaped;
}

/*
 * Ends it in the ordinary way. That its socket is closed would not do: later
 * peers have a copy.
 */
static inline bool peer_exit(struct peer *p)
{
	bool ok;

	if (!p->arg)
		return false;
	peer_tell(p, NULL);
	close(p->sock);
	p->sock = -1;
	ok = peer_reap(p);
	if (!ok) {
		kill(p->pid, SIGKILL);
		peer_reap(p);
	}
	munmap(p->arg, sizeof(*p->arg));
	p->arg = NULL;
	return ok && WIFEXITED(p->status);
}

static inline void peer_kill(struct peer *p)
{
	if (p->pid > 0 && !p->reaped)
		kill(p->pid, SIGKILL);
	peer_exit(p);
}

/* What peers do most */

/* Maps @len at @offset of the file with @prot */
static inline long peer_map(void *data)
{
	struct peer_arg *arg = data;

	arg->map = map_file(arg->fd, arg->offset, arg->len, arg->prot);
	return arg->map == MAP_FAILED ? -errno : 0;
}

static inline long peer_unmap(void *data)
{
	struct peer_arg *arg = data;

	return neg_errno(munmap(arg->map, arg->len));
}

static inline long peer_fill(void *data)
{
	struct peer_arg *arg = data;

	fill_pages(arg->map, arg->offset / page_size(),
		   arg->len / page_size(), arg->seed);
	return 0;
}

static inline long peer_faults_of_fill(void *data)
{
	long before = faults();

	peer_fill(data);
	return faults() - before;
}

static inline long peer_check(void *data)
{
	struct peer_arg *arg = data;

	return wrong_pages(arg->map, arg->offset / page_size(),
			   arg->len / page_size(), arg->seed);
}

static inline long peer_shared_kb(void *data)
{
	struct peer_arg *arg = data;

	return shared_kb(arg->map, arg->len);
}

/* Starts a peer with a mapping of its own, made after the fork */
static inline bool peer_start_mapped(struct peer *p, int fd, size_t offset,
				     size_t len, int prot)
{
	if (!peer_start(p, fd))
		return false;
	p->arg->offset = offset;
	p->arg->len = len;
	p->arg->prot = prot;
	return peer_call(p, peer_map) == 0;
}

static inline bool pin_to_cpu(pid_t pid, unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return !sched_setaffinity(pid, sizeof(set), &set);
}

/*
 * A spinner: a process that stores ascending numbers to one word of a mapping,
 * pinned to CPU 1, and never enters the kernel by itself, so that it goes on
 * with whatever its TLB holds. @stores is the last number that it has stored.
 */
struct spin_state {
	volatile uint64_t stores;
	volatile int stop;
	volatile uint64_t *word;
	struct outcome out;
};

struct spinner {
	struct peer peer;
	struct spin_state *state;
};

static inline long spin_stores(void *data)
{
	struct spin_state *s = data;

	while (!s->stop) {
		*s->word = s->stores + 1;
		s->stores = s->stores + 1;
	}
	return 0;
}

/* Returns when it has ended: 0, or what signal ended it */
static inline long peer_spin(void *data)
{
	struct peer_arg *arg = data;
	struct spin_state *s = (struct spin_state *)arg->other;

	pin_to_cpu(0, 1);
	s->word = (volatile uint64_t *)(arg->map + arg->value);
	return spin_stores(s);
}

/* Lets @p, which has a mapping, spin on the word at @offset of that mapping */
static inline bool spinner_start(struct spinner *s, struct peer *p,
				 struct spin_state *state, size_t offset)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	s->peer = *p;
	s->state = state;
	state->stop = 0;
	state->stores = 0;
	p->arg->other = (char *)state;
	p->arg->value = offset;
	if (!peer_tell(p, peer_spin))
		return false;
	while (state->stores < 100 && now_ns() < end)
		usleep(100);
	return state->stores >= 100;
}

/* It goes on for so many stores, or has ended; false if it does not move */
static inline bool spinner_runs(struct spinner *s, uint64_t nr)
{
	uint64_t until = s->state->stores + nr;
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (s->state->stores < until && !s->peer.arg->out.done) {
		if (now_ns() > end)
			return false;
		usleep(50);
	}
	return true;
}

static inline long spinner_stop(struct spinner *s)
{
	s->state->stop = 1;
	return peer_answer(&s->peer);
}

/* To be made before the peer is forked */
static inline struct spin_state *spin_state_alloc(void)
{
	void *state = mmap(NULL, sizeof(struct spin_state), PROT_RW,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return state == MAP_FAILED ? NULL : state;
}

#endif /* PTSHARE_COMMON_H */
