// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it costs to reclaim 64 MiB of a memfd that 64 processes map, of which some run
 * meanwhile: work of the process that reclaims, flushes of TLBs, and interrupts for
 * them; with shared page tables and with ordinary ones.
 *
 * The memory belongs to a memory cgroup of its own, which is told to give it back. Time
 * is that of the processor which does it: waiting for the disk is not counted.
 */
#include "pool.h"

#include <linux/perf_event.h>
#include <pthread.h>
#include <sys/stat.h>

#define SIZE		(64 * MIB)
#define PROCESSES	64
#define ROUNDS		1
#define GROUP		"/sys/fs/cgroup/bench"
#define MAX_CPUS	64

enum side { OFF, ON, SIDES };
enum todo { NOTHING, MAP, WRITE_ALL, SPIN };

static int file;
static volatile bool *stop;

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(1, "%s", path);
	close(fd);
}

static void *run_in_user_mode(void *unused)
{
	while (!*stop)
		asm volatile("pause");
	return unused;
}

/*
 * Runs on its processor, without touching the memory. It is a thread of one that has
 * touched it: a child would have links to shared tables, but no entries in its own.
 */
static void spin(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, run_in_user_mode, NULL))
		errx(1, "pthread_create");
}

static void act(unsigned int member __attribute__((unused)), char todo)
{
	static char *map;

	switch (todo) {
	case MAP:
		map = map_shared(file, SIZE);
		break;
	case WRITE_ALL:
		write_pages(map, SIZE, PAGE);
		break;
	case SPIN:
		spin();
		break;
	}
}

/* Of all processors */
static long tlb_interrupts(void)
{
	FILE *f = fopen("/proc/interrupts", "re");
	char line[1024];
	long sum = 0;

	if (!f)
		err(1, "/proc/interrupts");
	while (fgets(line, sizeof(line), f)) {
		char *at = strstr(line, "TLB:"), *end;

		if (!at)
			continue;
		for (at += 4; ; at = end) {
			long n = strtol(at, &end, 10);

			if (end == at)
				break;
			sum += n;
		}
	}
	fclose(f);
	return sum;
}

/* Counts the tracepoint tlb_flush, on each processor */
static struct {
	int fd[MAX_CPUS];
	long nr;
} flushes;

static void count_flushes(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr),
	};
	FILE *f = fopen("/sys/kernel/tracing/events/tlb/tlb_flush/id", "re");
	unsigned long long id;

	if (!f || fscanf(f, "%llu", &id) != 1)
		err(1, "tlb_flush");
	fclose(f);
	attr.config = id;
	flushes.nr = sysconf(_SC_NPROCESSORS_ONLN);
	for (long i = 0; i < flushes.nr && i < MAX_CPUS; i++) {
		flushes.fd[i] = syscall(__NR_perf_event_open, &attr, -1, i, -1,
					PERF_FLAG_FD_CLOEXEC);
		if (flushes.fd[i] < 0)
			err(1, "perf_event_open");
	}
}

static long tlb_flushes(void)
{
	uint64_t count;
	long sum = 0;

	for (long i = 0; i < flushes.nr; i++) {
		if (read(flushes.fd[i], &count, sizeof(count)) != sizeof(count))
			err(1, "tlb_flush");
		sum += count;
	}
	return sum;
}

static void stop_counting(void)
{
	for (long i = 0; i < flushes.nr; i++)
		close(flushes.fd[i]);
}

static double cpu_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * 1e6 + ts.tv_nsec / 1e3;
}

static long resident_kb(void)
{
	return figure(GROUP "/memory.stat", "shmem ") / 1024;
}

/* Until all is gone; the first calls may find that it was used just now */
static void reclaim(void)
{
	int fd = open(GROUP "/memory.reclaim", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "memory.reclaim");
	for (int i = 0; i < 20 && resident_kb() > 0; i++)
		if (pwrite(fd, "64M", 3, 0) < 0 && errno != EAGAIN)
			err(1, "memory.reclaim");
	close(fd);
	if (resident_kb() > 0)
		errx(1, "%ld kB are still there", resident_kb());
}

struct rows {
	struct row *us, *flushes, *interrupts;
};

static struct series *series_of(struct row *r, enum side side)
{
	return side == ON ? r->ours : &r->theirs;
}

static void measure(enum side side, unsigned int running, bool count, struct rows *r)
{
	long interrupts, flushed = 0;
	struct pool p;
	double us;

	*stop = false;
	file = memfd(side == ON ? MFD_SHARE_PGTABLES : 0, SIZE);
	pool_start(&p, PROCESSES, act);
	tell_all(&p, MAP);
	tell_all(&p, WRITE_ALL);
	/* Members 1, 2 and so on, each on the processor of that number */
	p.to++;
	tell(&p, running, SPIN);
	p.to--;
	usleep(10000);
	if (count) {
		count_flushes();
		flushed = tlb_flushes();
	}
	interrupts = tlb_interrupts();
	us = cpu_us();
	reclaim();
	us = cpu_us() - us;
	interrupts = tlb_interrupts() - interrupts;
	if (count) {
		add(series_of(r->flushes, side), tlb_flushes() - flushed);
		stop_counting();
	} else {
		add(series_of(r->us, side), us);
		add(series_of(r->interrupts, side), interrupts);
	}
	*stop = true;
	pool_stop(&p);
	close(file);
}

static struct row *rows_of(const char *variant, const char *unit)
{
	return with_goal(row(variant, PROCESSES, unit, "without sharing",
			     "reclaim of 64 MiB that N processes map"),
			 RATIO_AT_MOST, 0.1);
}

int main(int argc, char **argv)
{
	unsigned int others = sysconf(_SC_NPROCESSORS_ONLN) - 1;
	static const char * const names[] = { "all asleep", "one runs on the other processor" };

	open_results(argc, argv);
	run_on(0);
	/* There before the cgroup is, and not charged to it */
	stop = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (stop == MAP_FAILED)
		err(1, "mmap");
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(GROUP, 0755))
		err(1, GROUP);
	write_text(GROUP "/cgroup.procs", "0");
	for (int i = 0; i < 2; i++) {
		unsigned int running = i ? others : 0;
		struct rows r;

		r.us = rows_of(names[i], "us");
		r.flushes = rows_of(names[i], "flushes");
		r.interrupts = rows_of(names[i], "interrupts");
		if (!running)	/* nobody is to be interrupted */
			r.interrupts->rule = NO_GOAL;
		for (int side = 0; side < SIDES; side++) {
			for (int n = 0; n < (quick ? 1 : ROUNDS); n++)
				measure(side, running, false, &r);
			measure(side, running, true, &r);
		}
	}
	return report("Reclaim of shared memory",
		      "64 MiB of a memfd, mapped and written by 64 processes, written to swap at the request of its memory cgroup. us: time of the processor that does it. Flushes are those that the tracepoint tlb_flush tells, in a round of their own; interrupts are TLB of /proc/interrupts.");
}
