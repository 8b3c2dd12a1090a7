// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memfd_protect() costs, and what it costs to do the same with what there
 * is today: mprotect() or userfaultfd in every process that has the memory
 * mapped, each of which must be woken to do it.
 */
#include "pool.h"
#include "uffd.h"

#include <linux/fs.h>
#include <pthread.h>

#define SIZE		(64UL << 20)
#define ROUNDS		7
#define SINGLE		1000	/* pages of the log, and of round trips */
#define EMPTY		(64UL << 30)

/* What a process of the pool is told to do */
enum todo {
	NOTHING, MAP, MAP_UFFD,
	WRITE_ALL, WRITE_SINGLE, WRITE_ONE,
	MPROTECT, MPROTECT_ONE, MPROTECT_OFF,
	UFFD, UFFD_ONE, UFFD_OFF, UFFD_SCAN,
};

/* Which pages were written, which then are protected again */
static void uffd_scan(char *map, size_t size)
{
	static struct page_region regions[SINGLE + 24];
	static int pagemap = -1;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)map, .end = (uintptr_t)map + size,
		.vec = (uintptr_t)regions, .vec_len = SINGLE + 24,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};

	if (pagemap < 0)
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (ioctl(pagemap, PAGEMAP_SCAN, &arg) < 0)
		err(1, "PAGEMAP_SCAN");
}

static void single_pages(char *map)
{
	for (size_t i = 0; i < SINGLE; i++)
		*(volatile char *)(map + 16 * i * PAGE) = 1;
}

static void set_rights(char *map, size_t size, int prot)
{
	if (mprotect(map, size, prot))
		err(1, "mprotect");
}

static int file;	/* that the processes map */

static void act(unsigned int member __attribute__((unused)), char todo)
{
	static char *map;
	static int uffd;

	switch (todo) {
	case MAP:
		map = map_shared(file, SIZE);
		break;
	case MAP_UFFD:
		map = map_shared(file, SIZE);
		uffd = uffd_open(map, SIZE, UFFD_ASYNC, 0);
		break;
	case WRITE_ALL:
		write_pages(map, SIZE, PAGE);
		break;
	case WRITE_SINGLE:
		single_pages(map);
		break;
	case MPROTECT:
		set_rights(map, SIZE, PROT_READ);
		break;
	case MPROTECT_ONE:
		set_rights(map, PAGE, PROT_READ);
		break;
	case MPROTECT_OFF:
		set_rights(map, SIZE, PROT_READ | PROT_WRITE);
		break;
	case UFFD:
		uffd_protect(uffd, map, SIZE, true);
		break;
	case UFFD_ONE:
		uffd_protect(uffd, map, PAGE, true);
		break;
	case UFFD_OFF:
		uffd_protect(uffd, map, SIZE, false);
		break;
	case UFFD_SCAN:
		uffd_scan(map, SIZE);
		break;
	}
}

static void start_processes(struct pool *p, unsigned int nr, unsigned int flags,
			    enum todo map)
{
	file = memfd(flags, SIZE);
	pool_start(p, nr, act);
	tell_all(p, map);
	tell_all(p, WRITE_ALL);
}

static void stop_processes(struct pool *p)
{
	pool_stop(p);
	close(file);
}

static int rounds = ROUNDS;
static uint64_t start;

static void begin(void)
{
	start = now_ns();
}

static void end(struct series *s, double times)
{
	add(s, (now_ns() - start) / 1000.0 / times);
}

/* A row for what is done, beside mprotect() and beside userfaultfd */
struct pair {
	struct row *mprotect, *uffd;
};

static struct pair pair(unsigned int nr, const char *what, double goal)
{
	struct pair p;

	p.mprotect = row("", nr, "us", "mprotect", "%s", what);
	p.uffd = beside(p.mprotect, "userfaultfd");
	if (goal) {
		with_goal(p.mprotect, RATIO_AT_MOST, goal);
		with_goal(p.uffd, RATIO_AT_MOST, goal);
	}
	return p;
}

struct resident {
	struct pair on, off, page, clean;
	struct row *scan, *scan_sharing;
};

/* All is unprotected before and after, and resident */
static void take_log(struct pool *p, int nfd, struct series *s)
{
	static struct memfd_range ranges[SINGLE + 24];
	struct memfd_scan scan = {
		.end = SIZE, .ranges = (uintptr_t)ranges,
		.nr_ranges = SINGLE + 24, .flags = MEMFD_SCAN_REPROTECT,
	};

	protect(file, 0, SIZE, MEMFD_PROTECT_ASYNC);
	tell(p, 1, WRITE_SINGLE);
	begin();
	if (ioctl(nfd, MEMFD_NOTIFY_SCAN, &scan) != SINGLE)
		err(1, "MEMFD_NOTIFY_SCAN");
	end(s, 1);
	unprotect(file, 0, SIZE);
	tell_all(p, WRITE_ALL);
}

static void resident_memfd(unsigned int nr, struct resident *r)
{
	struct pool p;
	int nfd;

	start_processes(&p, nr, MFD_ALLOW_PROTECT, MAP);
	nfd = notify(file);
	for (int i = 0; i < rounds; i++) {
		begin();
		protect(file, 0, SIZE, MEMFD_PROTECT_WAIT);
		end(r->on.mprotect->ours, 1);
		begin();
		unprotect(file, 0, SIZE);
		end(r->off.mprotect->ours, 1);
		tell_all(&p, WRITE_ALL);

		begin();
		protect(file, 0, PAGE, MEMFD_PROTECT_WAIT);
		end(r->page.mprotect->ours, 1);
		begin();
		protect(file, 0, PAGE, MEMFD_PROTECT_WAIT);
		end(r->clean.mprotect->ours, 1);
		unprotect(file, 0, PAGE);

		take_log(&p, nfd, r->scan->ours);
	}
	close(nfd);
	stop_processes(&p);
}

static void resident_sharing(unsigned int nr, struct resident *r)
{
	struct pool p;
	int nfd;

	start_processes(&p, nr, MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES, MAP);
	nfd = notify(file);
	for (int i = 0; i < rounds; i++)
		take_log(&p, nfd, r->scan_sharing->ours);
	close(nfd);
	stop_processes(&p);
}

static void resident_mprotect(unsigned int nr, struct resident *r)
{
	struct pool p;

	start_processes(&p, nr, 0, MAP);
	for (int i = 0; i < rounds; i++) {
		begin();
		tell_all(&p, MPROTECT);
		end(&r->on.mprotect->theirs, 1);
		begin();
		tell_all(&p, MPROTECT_OFF);
		end(&r->off.mprotect->theirs, 1);
		tell_all(&p, WRITE_ALL);

		begin();
		tell_all(&p, MPROTECT_ONE);
		end(&r->page.mprotect->theirs, 1);
		begin();
		tell_all(&p, MPROTECT_ONE);
		end(&r->clean.mprotect->theirs, 1);
		tell_all(&p, MPROTECT_OFF);
		tell_all(&p, WRITE_ALL);
	}
	stop_processes(&p);
}

static void resident_uffd(unsigned int nr, struct resident *r)
{
	struct pool p;

	start_processes(&p, nr, 0, MAP_UFFD);
	for (int i = 0; i < rounds; i++) {
		begin();
		tell_all(&p, UFFD);
		end(&r->on.uffd->theirs, 1);
		begin();
		tell_all(&p, UFFD_OFF);
		end(&r->off.uffd->theirs, 1);
		tell_all(&p, WRITE_ALL);

		begin();
		tell_all(&p, UFFD_ONE);
		end(&r->page.uffd->theirs, 1);
		begin();
		tell_all(&p, UFFD_ONE);
		end(&r->clean.uffd->theirs, 1);

		tell_all(&p, UFFD);
		tell(&p, 1, WRITE_SINGLE);
		begin();
		tell_all(&p, UFFD_SCAN);
		end(&r->scan->theirs, 1);
		add(&r->scan_sharing->theirs, r->scan->theirs.value[i]);
		tell_all(&p, UFFD_OFF);
		tell_all(&p, WRITE_ALL);
	}
	stop_processes(&p);
}

static void resident(unsigned int nr)
{
	struct resident r;

	r.on = pair(nr, "64 MiB", nr == 1 ? 0.7 : 0);
	r.off = pair(nr, "64 MiB, protection removed", 0);
	r.page = pair(nr, "1 page", 0);
	r.clean = pair(nr, "1 page again, not written since", 0);
	r.scan = with_goal(row("", nr, "us", "PAGEMAP_SCAN", "log of 1000 single pages taken"),
			   RATIO_AT_MOST, nr == 1 ? 1 : 0.15);
	r.scan_sharing = with_goal(row("sharing", nr, "us", "PAGEMAP_SCAN",
				       "log of 1000 single pages taken"),
				   RATIO_AT_MOST, nr == 1 ? 1 : 0.15);
	resident_memfd(nr, &r);
	resident_sharing(nr, &r);
	resident_mprotect(nr, &r);
	resident_uffd(nr, &r);
}

/* Nothing is there but offsets, and a mapping without page tables */
static void empty_offsets(void)
{
	struct row *large = row("", 1, "us", NULL, "64 GiB of empty offsets");
	struct row *large_off = row("", 1, "us", NULL, "64 GiB of empty offsets, protection removed");
	struct row *small = row("", 1, "us", NULL, "4 KiB of empty offsets");
	struct row *small_off = row("", 1, "us", NULL, "4 KiB of empty offsets, protection removed");
	int fd = memfd(MFD_ALLOW_PROTECT, EMPTY);
	char *map = map_shared(fd, EMPTY);

	for (int i = 0; i < rounds; i++) {
		begin();
		protect(fd, 0, EMPTY, MEMFD_PROTECT_DENY);
		end(large->ours, 1);
		begin();
		unprotect(fd, 0, EMPTY);
		end(large_off->ours, 1);
		begin();
		protect(fd, 0, PAGE, MEMFD_PROTECT_DENY);
		end(small->ours, 1);
		begin();
		unprotect(fd, 0, PAGE);
		end(small_off->ours, 1);
	}
	munmap(map, EMPTY);
	close(fd);
}

static void *round_trip_writer(void *map)
{
	run_on(1);
	single_pages(map);
	return NULL;
}

/* A store is caught, a handler reads of it and allows it, the store goes on */
static void round_trip_memfd(struct series *s)
{
	struct memfd_resolve resolve = { .action = MEMFD_RESOLVE_ALLOW };
	int fd = memfd(MFD_ALLOW_PROTECT, SIZE);
	char *map = map_shared(fd, SIZE);
	int nfd = notify(fd);
	struct memfd_event event;
	pthread_t writer;

	write_pages(map, SIZE, PAGE);
	for (int i = 0; i < rounds; i++) {
		protect(fd, 0, SIZE, MEMFD_PROTECT_WAIT);
		begin();
		pthread_create(&writer, NULL, round_trip_writer, map);
		for (int n = 0; n < SINGLE; n++) {
			if (read(nfd, &event, sizeof(event)) != sizeof(event))
				err(1, "read an event");
			resolve.cookie = event.cookie;
			if (ioctl(nfd, MEMFD_NOTIFY_RESOLVE, &resolve))
				err(1, "MEMFD_NOTIFY_RESOLVE");
		}
		pthread_join(writer, NULL);
		end(s, SINGLE);
		unprotect(fd, 0, SIZE);
		write_pages(map, SIZE, PAGE);
	}
	close(nfd);
	munmap(map, SIZE);
	close(fd);
}

static void round_trip_uffd(struct series *s)
{
	int fd = memfd(0, SIZE);
	char *map = map_shared(fd, SIZE);
	int uffd = uffd_open(map, SIZE, UFFD_WAIT, 0);
	struct uffd_msg msg;
	pthread_t writer;

	write_pages(map, SIZE, PAGE);
	for (int i = 0; i < rounds; i++) {
		uffd_protect(uffd, map, SIZE, true);
		begin();
		pthread_create(&writer, NULL, round_trip_writer, map);
		for (int n = 0; n < SINGLE; n++) {
			if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
				err(1, "read a message");
			uffd_allow(uffd, &msg);
		}
		pthread_join(writer, NULL);
		end(s, SINGLE);
		uffd_protect(uffd, map, SIZE, false);
		write_pages(map, SIZE, PAGE);
	}
	close(uffd);
	munmap(map, SIZE);
	close(fd);
}

int main(int argc, char **argv)
{
	struct row *trip;

	open_results(argc, argv);
	run_on(0);
	if (quick)
		rounds = 1;
	resident(1);
	if (!quick)
		resident(16);
	empty_offsets();
	trip = with_goal(row("", 1, "us", "userfaultfd", "WAIT: a store caught, read, allowed"),
			 RATIO_AT_MOST, 1);
	round_trip_memfd(trip->ours);
	round_trip_uffd(&trip->theirs);
	return report("memfd_protect(), and mprotect() or userfaultfd in every process",
		      "64 MiB memfd, all of it resident and mapped by each process. Each process is woken by a pipe to call mprotect() or UFFDIO_WRITEPROTECT (WP_ASYNC).");
}
