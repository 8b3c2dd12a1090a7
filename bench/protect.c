// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memfd_protect() costs, and what it costs to do the same with what there
 * is today: mprotect() or userfaultfd in every process that has the memory
 * mapped, each of which must be woken to do it. Exit status 1 if a ratio is above
 * its goal.
 */
#include "bench.h"

#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <math.h>
#include <pthread.h>
#include <sys/prctl.h>

#define SIZE		(64UL << 20)
#define MAX_PROCESSES	16
#define ROUNDS		7
#define SINGLE		1000	/* pages of the log, and of round trips */
#define EMPTY		(64UL << 30)

/* What a process of the pool is told to do */
enum todo {
	WRITE_ALL, WRITE_SINGLE, WRITE_ONE,
	MPROTECT, MPROTECT_ONE, MPROTECT_OFF,
	UFFD, UFFD_ONE, UFFD_OFF, UFFD_SCAN,
};

struct pool {
	unsigned int nr;
	size_t size;
	int fd;
	bool uffd;
	int to[MAX_PROCESSES];
	int from;
	pid_t pid[MAX_PROCESSES];
};

static int uffd_open(char *map, size_t size, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { (uintptr_t)map, size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		err(1, "userfaultfd");
	return uffd;
}

static void uffd_protect(int uffd, char *map, size_t size, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)map, size },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		err(1, "UFFDIO_WRITEPROTECT");
}

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

static void do_it(enum todo todo, char *map, size_t size, int uffd)
{
	switch (todo) {
	case WRITE_ALL:
		write_pages(map, size, PAGE);
		break;
	case WRITE_SINGLE:
		single_pages(map);
		break;
	case WRITE_ONE:
		*(volatile char *)map = 1;
		break;
	case MPROTECT:
		set_rights(map, size, PROT_READ);
		break;
	case MPROTECT_ONE:
		set_rights(map, PAGE, PROT_READ);
		break;
	case MPROTECT_OFF:
		set_rights(map, size, PROT_READ | PROT_WRITE);
		break;
	case UFFD:
		uffd_protect(uffd, map, size, true);
		break;
	case UFFD_ONE:
		uffd_protect(uffd, map, PAGE, true);
		break;
	case UFFD_OFF:
		uffd_protect(uffd, map, size, false);
		break;
	case UFFD_SCAN:
		uffd_scan(map, size);
		break;
	}
}

static void process(struct pool *p, unsigned int i, int in, int out)
{
	char *map, todo;
	int uffd = -1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	run_on(i);
	map = map_shared(p->fd, p->size);
	if (p->uffd)
		uffd = uffd_open(map, p->size, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				 UFFD_FEATURE_WP_UNPOPULATED |
				 UFFD_FEATURE_WP_ASYNC);
	while (read(in, &todo, 1) == 1) {
		do_it(todo, map, p->size, uffd);
		if (write(out, &todo, 1) != 1)
			break;
	}
	_exit(0);
}

/* Every process of the pool does it, at once */
static void all(struct pool *p, enum todo todo)
{
	char c = todo;

	for (unsigned int i = 0; i < p->nr; i++)
		if (write(p->to[i], &c, 1) != 1)
			err(1, "write to a process");
	for (unsigned int i = 0; i < p->nr; i++)
		if (read(p->from, &c, 1) != 1)
			err(1, "read from a process");
}

static void one(struct pool *p, enum todo todo)
{
	struct pool first = *p;

	first.nr = 1;
	all(&first, todo);
}

static void pool_start(struct pool *p, unsigned int nr, unsigned int flags,
		       bool uffd)
{
	int in[2], out[2];

	p->nr = nr;
	p->size = SIZE;
	p->uffd = uffd;
	p->fd = memfd(flags, SIZE);
	if (pipe2(out, O_CLOEXEC))
		err(1, "pipe");
	for (unsigned int i = 0; i < nr; i++) {
		if (pipe2(in, O_CLOEXEC))
			err(1, "pipe");
		p->pid[i] = fork();
		if (p->pid[i] < 0)
			err(1, "fork");
		if (!p->pid[i]) {
			close(in[1]);
			process(p, i, in[0], out[1]);
		}
		close(in[0]);
		p->to[i] = in[1];
	}
	close(out[1]);
	p->from = out[0];
	all(p, WRITE_ALL);
}

static void pool_stop(struct pool *p)
{
	for (unsigned int i = 0; i < p->nr; i++) {
		kill(p->pid[i], SIGKILL);
		waitpid(p->pid[i], NULL, 0);
		close(p->to[i]);
	}
	close(p->from);
	close(p->fd);
}

/* The table: a row for what is done, a column for how */
enum how { MEMFD_PROTECT, WITH_MPROTECT, WITH_UFFD, HOWS };

static struct row {
	const char *what;
	double goal;		/* of both ratios, 0 for none */
	struct series us[HOWS];
} rows[24];
static unsigned int nr_rows;

static struct row *row(const char *what)
{
	rows[nr_rows].what = what;
	return &rows[nr_rows++];
}

static struct row *with_goal(struct row *r, double goal)
{
	r->goal = goal;
	return r;
}

static uint64_t start;

static void begin(void)
{
	start = now_ns();
}

static void end(struct series *s, double times)
{
	add(s, (now_ns() - start) / 1000.0 / times);
}

struct resident {
	struct row *on, *off, *page, *clean, *scan;
};

static void resident_memfd(unsigned int nr, struct resident *r)
{
	static struct memfd_range ranges[SINGLE + 24];
	struct memfd_scan scan = {
		.end = SIZE, .ranges = (uintptr_t)ranges,
		.nr_ranges = SINGLE + 24, .flags = MEMFD_SCAN_REPROTECT,
	};
	struct pool p;
	int nfd;

	pool_start(&p, nr, MFD_ALLOW_PROTECT, false);
	nfd = notify(p.fd);
	for (int i = 0; i < ROUNDS; i++) {
		begin();
		protect(p.fd, 0, SIZE, MEMFD_PROTECT_WAIT);
		end(&r->on->us[MEMFD_PROTECT], 1);
		begin();
		unprotect(p.fd, 0, SIZE);
		end(&r->off->us[MEMFD_PROTECT], 1);
		all(&p, WRITE_ALL);

		begin();
		protect(p.fd, 0, PAGE, MEMFD_PROTECT_WAIT);
		end(&r->page->us[MEMFD_PROTECT], 1);
		begin();
		protect(p.fd, 0, PAGE, MEMFD_PROTECT_WAIT);
		end(&r->clean->us[MEMFD_PROTECT], 1);
		unprotect(p.fd, 0, PAGE);

		protect(p.fd, 0, SIZE, MEMFD_PROTECT_ASYNC);
		one(&p, WRITE_SINGLE);
		begin();
		if (ioctl(nfd, MEMFD_NOTIFY_SCAN, &scan) != SINGLE)
			err(1, "MEMFD_NOTIFY_SCAN");
		end(&r->scan->us[MEMFD_PROTECT], 1);
		unprotect(p.fd, 0, SIZE);
		all(&p, WRITE_ALL);
	}
	close(nfd);
	pool_stop(&p);
}

static void resident_mprotect(unsigned int nr, struct resident *r)
{
	struct pool p;

	pool_start(&p, nr, 0, false);
	for (int i = 0; i < ROUNDS; i++) {
		begin();
		all(&p, MPROTECT);
		end(&r->on->us[WITH_MPROTECT], 1);
		begin();
		all(&p, MPROTECT_OFF);
		end(&r->off->us[WITH_MPROTECT], 1);
		all(&p, WRITE_ALL);

		begin();
		all(&p, MPROTECT_ONE);
		end(&r->page->us[WITH_MPROTECT], 1);
		begin();
		all(&p, MPROTECT_ONE);
		end(&r->clean->us[WITH_MPROTECT], 1);
		all(&p, MPROTECT_OFF);
		all(&p, WRITE_ALL);
	}
	pool_stop(&p);
}

static void resident_uffd(unsigned int nr, struct resident *r)
{
	struct pool p;

	pool_start(&p, nr, 0, true);
	for (int i = 0; i < ROUNDS; i++) {
		begin();
		all(&p, UFFD);
		end(&r->on->us[WITH_UFFD], 1);
		begin();
		all(&p, UFFD_OFF);
		end(&r->off->us[WITH_UFFD], 1);
		all(&p, WRITE_ALL);

		begin();
		all(&p, UFFD_ONE);
		end(&r->page->us[WITH_UFFD], 1);
		begin();
		all(&p, UFFD_ONE);
		end(&r->clean->us[WITH_UFFD], 1);

		all(&p, UFFD);
		one(&p, WRITE_SINGLE);
		begin();
		all(&p, UFFD_SCAN);
		end(&r->scan->us[WITH_UFFD], 1);
		all(&p, UFFD_OFF);
		all(&p, WRITE_ALL);
	}
	pool_stop(&p);
}

static void resident(unsigned int nr)
{
	struct resident r;

	if (nr == 1) {
		r.on = with_goal(row("64 MiB, 1 process"), 0.7);
		r.off = row("  the same, protection removed");
		r.page = row("1 page, 1 process");
		r.clean = row("  the same again, not written since");
		r.scan = with_goal(row("log of 1000 single pages taken, 1 process"), 1);
	} else {
		r.on = row("64 MiB, 16 processes");
		r.off = row("  the same, protection removed");
		r.page = row("1 page, 16 processes");
		r.clean = row("  the same again, not written since");
		r.scan = with_goal(row("log of 1000 single pages taken, 16 processes"),
				   0.15);
	}
	resident_memfd(nr, &r);
	resident_mprotect(nr, &r);
	resident_uffd(nr, &r);
}

/* Nothing is there but offsets, and a mapping without page tables */
static void empty_offsets(void)
{
	struct row *large = row("64 GiB of empty offsets");
	struct row *large_off = row("  the same, protection removed");
	struct row *small = row("4 KiB of empty offsets");
	struct row *small_off = row("  the same, protection removed");
	int fd = memfd(MFD_ALLOW_PROTECT, EMPTY);
	char *map = map_shared(fd, EMPTY);

	for (int i = 0; i < ROUNDS; i++) {
		begin();
		protect(fd, 0, EMPTY, MEMFD_PROTECT_DENY);
		end(&large->us[MEMFD_PROTECT], 1);
		begin();
		unprotect(fd, 0, EMPTY);
		end(&large_off->us[MEMFD_PROTECT], 1);
		begin();
		protect(fd, 0, PAGE, MEMFD_PROTECT_DENY);
		end(&small->us[MEMFD_PROTECT], 1);
		begin();
		unprotect(fd, 0, PAGE);
		end(&small_off->us[MEMFD_PROTECT], 1);
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
	for (int i = 0; i < ROUNDS; i++) {
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
	int uffd = uffd_open(map, SIZE, UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	struct uffd_msg msg;
	pthread_t writer;

	write_pages(map, SIZE, PAGE);
	for (int i = 0; i < ROUNDS; i++) {
		uffd_protect(uffd, map, SIZE, true);
		begin();
		pthread_create(&writer, NULL, round_trip_writer, map);
		for (int n = 0; n < SINGLE; n++) {
			if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
				err(1, "read a message");
			uffd_protect(uffd, (char *)(uintptr_t)
				     (msg.arg.pagefault.address & -PAGE), PAGE,
				     false);
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

static void say_series(struct series *s)
{
	if (s->nr)
		say(" %9.1f (%8.1f to %8.1f)", median(s), lowest(s), highest(s));
	else
		say(" %32s", "");
}

/* Returns the ratio, 0 if there is none */
static double say_ratio(struct series *ours, struct series *theirs)
{
	if (!ours->nr || !theirs->nr) {
		say(" %7s", "");
		return 0;
	}
	say(" %7.3f", median(ours) / median(theirs));
	return median(ours) / median(theirs);
}

int main(int argc, char **argv)
{
	struct row *trip;

	open_results(argc, argv);
	run_on(0);
	say_machine("memfd_protect(), and mprotect() or userfaultfd in every process",
		    "bench/protect");
	say("%lu MiB memfd, all of it resident and mapped by each process, %d rounds.\n"
	    "us: median (lowest to highest). Each process is woken by a pipe to call\n"
	    "mprotect() or UFFDIO_WRITEPROTECT (WP_ASYNC); the log there is PAGEMAP_SCAN.\n\n",
	    SIZE >> 20, ROUNDS);

	resident(1);
	resident(MAX_PROCESSES);
	empty_offsets();
	trip = with_goal(row("WAIT: a store caught, read, allowed"), 1);
	round_trip_memfd(&trip->us[MEMFD_PROTECT]);
	round_trip_uffd(&trip->us[WITH_UFFD]);

	say("%-45s %32s %32s %32s %15s %8s\n", "", "memfd_protect", "mprotect",
	    "userfaultfd", "ratio to each", "at most");
	for (unsigned int i = 0; i < nr_rows; i++) {
		struct series *us = rows[i].us;
		double ratio;

		say("%-45s", rows[i].what);
		for (int how = 0; how < HOWS; how++)
			say_series(&us[how]);
		ratio = say_ratio(&us[MEMFD_PROTECT], &us[WITH_MPROTECT]);
		ratio = fmax(ratio, say_ratio(&us[MEMFD_PROTECT], &us[WITH_UFFD]));
		say_goal(ratio, rows[i].goal);
		say("\n");
	}
	return missed;
}
