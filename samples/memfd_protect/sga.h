/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sga - a buffer cache in shared memory, and a snapshot of it.
 *
 * Who owns what:
 *
 *   the cache     a memfd of 8 KiB pages. The snapshotter maps it read-only,
 *                 each client maps it read-write at an address of its own.
 *   the control   ordinary shared memory (struct control). Never protected.
 *     gate        Held shared by a client for the length of one page change,
 *                 held exclusively by the snapshotter around T0. It is what a
 *                 database calls a latch: when it is held exclusively no
 *                 change is half done.
 *     slot.lock   One per page: a page has one writer at a time. A client that
 *                 the kernel stops in mid-change keeps it, and the gate.
 *     slot.record What the page holds, written by its writer under slot.lock
 *                 after each change. This is the record of T0 that the
 *                 snapshot is checked against; no protection is involved.
 *
 * Lock order: gate, slot.lock.
 */
#ifndef SGA_H
#define SGA_H

#include <assert.h>
#include <linux/types.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define SGA_PAGE_SIZE	8192UL
#define SGA_MAGIC	0x6b63614265676153ULL
#define SGA_MAX_CLIENTS	64

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

/* A page of the cache. The checksum covers all that follows it. */
struct sga_page {
	__u64 checksum;
	__u64 magic;
	__u64 version;
	__u32 number;
	__u32 writer;
	__u8 payload[SGA_PAGE_SIZE - 32];
};

static_assert(sizeof(struct sga_page) == SGA_PAGE_SIZE, "a page is 8 KiB");

/* What a page is known to hold, kept apart from the page itself. */
struct page_record {
	__u64 version;
	__u64 checksum;
};

struct page_slot {
	pthread_mutex_t lock;
	struct page_record record;
	atomic_uint copied;	/* --mode mprotect: its clients sleep on this */
};

/* Latencies: 16 linear buckets in each power of two of nanoseconds. */
#define HIST_SUB	16
#define HIST_BUCKETS	(64 * HIST_SUB)

enum phase { PHASE_BEFORE, PHASE_DURING, PHASE_AFTER, NR_PHASES };

struct latency {
	__u64 max_ns;
	__u64 count[HIST_BUCKETS];
};

/* Written by one client, read by the snapshotter. */
struct client_stats {
	atomic_ullong changes;
	atomic_ullong pwrites;
	atomic_ullong waits;	/* --mode mprotect: waits in the SIGSEGV handler */
	struct latency latency[NR_PHASES];
};

struct control {
	pthread_rwlock_t gate;
	atomic_int phase;
	atomic_int stop;
	struct client_stats client[SGA_MAX_CLIENTS];
	struct page_slot slot[];
};

/* One client as the snapshotter knows it. */
struct client {
	pid_t pid;
	int sock;
	uintptr_t base;			/* where it mapped the cache */
	int uffd;			/* --mode uffd */
	unsigned long long wanted;	/* times that it was seen waiting */
};

struct sga;

/**
 * struct backend - how writers are caught
 * @name: what --mode calls it.
 * @cannot: what it cannot do, in one line.
 * @sees_write: it catches write(2) too.
 * @create: make the memfd.
 * @attach: in a client, which has just mapped the cache. Returns a descriptor
 *	    to pass to the snapshotter, or -1 for none.
 * @open: in the snapshotter, once all clients have attached. Fills sga->poll_fd.
 * @protect: write-protect the whole cache. The gate is held.
 * @unprotect: pages were copied, let their writers go on.
 * @wanted: a descriptor of sga->poll_fd is readable. Have the pages that the
 *	    clients wait for copied, then let their writers go on.
 * @finish: all pages were copied.
 * @waits: how often a client slept, once all have ended.
 */
struct backend {
	const char *name;
	const char *cannot;
	bool sees_write;
	int (*create)(struct sga *sga);
	int (*attach)(struct sga *sga, int index, void *base);
	void (*open)(struct sga *sga);
	void (*protect)(struct sga *sga);
	void (*unprotect)(struct sga *sga, size_t first, size_t count);
	void (*wanted)(struct sga *sga, int which);
	void (*finish)(struct sga *sga);
	unsigned long long (*waits)(struct sga *sga);
};

struct snapshot_result {
	size_t on_demand;
	__u64 protect_ns;	/* the call, or calls, that protect the cache */
	__u64 gate_wait_ns;	/* until no change was half done */
	__u64 gate_held_ns;	/* the gate was shut for this long */
	__u64 copy_ns;	/* T0 until the file was complete */
	size_t peak_buffers;	/* bytes of copies not yet in the file */
	size_t moved_on;	/* pages that had changed when all was copied */
	__u64 start_ns[NR_PHASES + 1];
	__u64 changes[NR_PHASES + 1];
};

struct sga {
	/* what the user asked for */
	const struct backend *backend;
	const char *source;
	const char *snapshot_path;
	const char *json_path;
	bool dry_run;			/* check the options only */
	int nr_clients;
	double seconds;
	unsigned int think_us;
	unsigned int pwrite_percent;
	size_t max_bytes;
	size_t rate;		/* bytes per second, 0: no limit */

	/* the cache */
	int memfd;
	size_t nr_pages;
	size_t map_unit;		/* mappings are a multiple of this */
	size_t map_bytes;		/* at least all pages */
	const struct sga_page *view;	/* read-only */
	struct control *control;

	/* the snapshotter */
	struct client client[SGA_MAX_CLIENTS];
	int poll_fd[SGA_MAX_CLIENTS];
	int nr_poll;
	unsigned long long waits;
	struct page_record *t0;
	struct snapshot_result result;
};

struct verdict {
	size_t pages;
	size_t bad_checksum;
	size_t bad_version;
	size_t bad_cache;	/* pages of the live cache that differ from their record */
};

/* cache.c */
__u64 now_ns(void);
__u64 page_checksum(const struct sga_page *page);
void cache_pick_source(struct sga *sga);
void cache_load(struct sga *sga);
void latency_add(struct latency *latency, __u64 ns);
__u64 latency_percentile(const struct latency *latency, double percent);

/* clients.c */
void clients_start(struct sga *sga);
__u64 clients_changes(const struct sga *sga);

/* snapshot.c */
void snapshot_run(struct sga *sga);
bool snapshot_want(struct sga *sga, size_t page);

/* protect.c, legacy.c */
extern const struct backend backend_memfd;
extern const struct backend backend_mprotect;
extern const struct backend backend_uffd;
extern const struct backend *const backends[3];

/* verify.c */
void verify(const struct sga *sga, struct verdict *verdict);

/* report.c */
void report(const struct sga *sga, const struct verdict *verdict);
void report_json(const struct sga *sga, const struct verdict *verdict);

#endif /* SGA_H */
