// SPDX-License-Identifier: BSD-3-Clause
/*
 * The cache: its pages, and how they are filled from a file.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sga.h"

#define SOURCE_MIN	(16UL << 20)

/* Any of them will do; a machine that built the kernel has the first. */
static const char *const source_candidates[] = {
	"/usr/lib/gcc/x86_64-linux-gnu/*/cc1",
	"/usr/lib/x86_64-linux-gnu/libLLVM*.so*",
	"/usr/bin/qemu-system-x86_64",
	"/usr/lib/x86_64-linux-gnu/libicudata.so.*",
	"/var/lib/apt/lists/*_Packages",
	"/var/cache/apt/pkgcache.bin",
};

__u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* Each step is a bijection of the sum, so no single changed word goes unseen. */
__u64 page_checksum(const struct sga_page *page)
{
	const __u64 *word = (const __u64 *)page;
	__u64 sum = 0x9e3779b97f4a7c15ULL;
	size_t i;

	for (i = 1; i < SGA_PAGE_SIZE / sizeof(*word); i++)
		sum = ((sum ^ word[i]) * 0xff51afd7ed558ccdULL) ^ (sum >> 29);
	return sum;
}

static bool big_enough(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode) &&
	       (size_t)st.st_size >= SOURCE_MIN && !access(path, R_OK);
}

void cache_pick_source(struct sga *sga)
{
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(source_candidates); i++) {
		glob_t found;

		if (glob(source_candidates[i], 0, NULL, &found))
			continue;
		for (j = 0; j < found.gl_pathc; j++) {
			if (!big_enough(found.gl_pathv[j]))
				continue;
			sga->source = strdup(found.gl_pathv[j]);
			globfree(&found);
			return;
		}
		globfree(&found);
	}
	errx(1, "found no file of 16 MiB or more to load: name one");
}

static void fill_page(int source, struct sga_page *page, size_t number)
{
	size_t done = 0;

	memset(page, 0, sizeof(*page));
	page->magic = SGA_MAGIC;
	page->version = 1;
	page->number = number;
	while (done < sizeof(page->payload)) {
		off_t from = number * sizeof(page->payload) + done;
		ssize_t got = pread(source, page->payload + done,
				    sizeof(page->payload) - done, from);

		if (got < 0)
			err(1, "reading the source");
		if (!got)
			break;
		done += got;
	}
	page->checksum = page_checksum(page);
}

static void create_control(struct sga *sga)
{
	size_t bytes = sizeof(struct control) +
		       sga->nr_pages * sizeof(struct page_slot);
	pthread_rwlockattr_t gate_attr;
	pthread_mutexattr_t lock_attr;
	size_t i;

	sga->control = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sga->control == MAP_FAILED)
		err(1, "mapping the control area");

	/* The snapshotter asks for the gate once: it must not starve. */
	pthread_rwlockattr_init(&gate_attr);
	pthread_rwlockattr_setpshared(&gate_attr, PTHREAD_PROCESS_SHARED);
	pthread_rwlockattr_setkind_np(&gate_attr,
				      PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&sga->control->gate, &gate_attr);

	pthread_mutexattr_init(&lock_attr);
	pthread_mutexattr_setpshared(&lock_attr, PTHREAD_PROCESS_SHARED);
	for (i = 0; i < sga->nr_pages; i++)
		pthread_mutex_init(&sga->control->slot[i].lock, &lock_attr);
}

void cache_load(struct sga *sga)
{
	struct sga_page page;
	struct stat st;
	size_t bytes, i;
	int source;

	source = open(sga->source, O_RDONLY | O_CLOEXEC);
	if (source < 0 || fstat(source, &st))
		err(1, "%s", sga->source);
	if (!S_ISREG(st.st_mode) || !st.st_size)
		errx(1, "%s: not a regular file, or empty", sga->source);

	bytes = st.st_size;
	if (bytes > sga->max_bytes)
		bytes = sga->max_bytes;
	sga->nr_pages = (bytes + sizeof(page.payload) - 1) / sizeof(page.payload);
	create_control(sga);

	/* What is behind the pages stays a hole. */
	bytes = sga->nr_pages * SGA_PAGE_SIZE;
	sga->map_bytes = (bytes + sga->map_unit - 1) / sga->map_unit * sga->map_unit;
	if (ftruncate(sga->memfd, sga->map_bytes))
		err(1, "ftruncate");
	for (i = 0; i < sga->nr_pages; i++) {
		fill_page(source, &page, i);
		sga->control->slot[i].record.version = page.version;
		sga->control->slot[i].record.checksum = page.checksum;
		if (pwrite(sga->memfd, &page, sizeof(page), i * SGA_PAGE_SIZE) !=
		    (ssize_t)sizeof(page))
			err(1, "filling the cache");
	}
	close(source);

	sga->view = mmap(NULL, sga->map_bytes, PROT_READ, MAP_SHARED, sga->memfd, 0);
	if (sga->view == MAP_FAILED || madvise((void *)sga->view, bytes, MADV_POPULATE_READ))
		err(1, "mapping the cache");
}

static unsigned int latency_bucket(__u64 ns)
{
	unsigned int power;

	if (ns < HIST_SUB)
		return ns;
	power = 63 - __builtin_clzll(ns);
	return (power - 3) * HIST_SUB + ((ns >> (power - 4)) & (HIST_SUB - 1));
}

void latency_add(struct latency *latency, __u64 ns)
{
	latency->count[latency_bucket(ns)]++;
	if (ns > latency->max_ns)
		latency->max_ns = ns;
}

/* The upper end of the bucket that holds the percentile: at most 1/16 too high. */
__u64 latency_percentile(const struct latency *latency, double percent)
{
	__u64 total = 0, seen = 0;
	__u64 upper;
	unsigned int i;

	for (i = 0; i < HIST_BUCKETS; i++)
		total += latency->count[i];
	if (!total)
		return 0;
	for (i = 0; i < HIST_BUCKETS; i++) {
		seen += latency->count[i];
		if (seen && seen >= total * percent / 100)
			break;
	}
	if (i < HIST_SUB)
		return i;
	upper = ((i % HIST_SUB + HIST_SUB + 1ULL) << (i / HIST_SUB - 1)) - 1;
	return upper < latency->max_ns ? upper : latency->max_ns;
}
