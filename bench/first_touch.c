// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the first write to an unprotected page costs, in a memfd with
 * MFD_ALLOW_PROTECT and in a plain one.
 *
 * Both kinds take turns, in files and mappings made anew for each round. Only
 * the stores are timed, one to each page.
 */
#include "bench.h"

#define SIZE	(64UL << 20)
#define PAGES	(SIZE / PAGE)
#define ROUNDS	7
#define GOAL	1.03	/* of the ratio of the two */

enum kind { PLAIN, PROTECTABLE, KINDS };

struct file {
	enum kind kind;
	int fd;
	int nfd;		/* event fd, or -1 */
	char *map;		/* where the stores go */
};

/* Every page is there, and no page table knows of it */
static void populate(struct file *f)
{
	static char page[16 * PAGE];

	for (size_t at = 0; at < SIZE; at += sizeof(page))
		if (pwrite(f->fd, page, sizeof(page), at) != sizeof(page))
			err(1, "pwrite");
}

static void populate_and_read(struct file *f)
{
	populate(f);
	for (size_t at = 0; at < SIZE; at += PAGE)
		(void)*(volatile char *)(f->map + at);
}

static void nothing(struct file *f)
{
	(void)f;
}

/* Mapped and written to, then protected and unprotected */
static void lift(struct file *f, unsigned int mode)
{
	populate(f);
	write_pages(f->map, SIZE, PAGE);
	/* What there is for one process. It finds its entries again when they may be written. */
	if (f->kind == PLAIN) {
		if (mprotect(f->map, SIZE, PROT_READ) ||
		    mprotect(f->map, SIZE, PROT_READ | PROT_WRITE))
			err(1, "mprotect");
		return;
	}
	protect(f->fd, 0, SIZE, mode);
	unprotect(f->fd, 0, SIZE);
}

static void lift_deny(struct file *f)
{
	lift(f, MEMFD_PROTECT_DENY);
}

static void lift_wait(struct file *f)
{
	if (f->kind == PROTECTABLE)
		f->nfd = notify(f->fd);
	lift(f, MEMFD_PROTECT_WAIT);
}

/* The same, and the mapping is a new one */
static void lift_and_map(struct file *f)
{
	lift_deny(f);
	munmap(f->map, SIZE);
	f->map = map_shared(f->fd, SIZE);
}

/* Something else of the file is protected: answers are no longer at the root */
static void other_half(struct file *f)
{
	populate(f);
	if (f->kind == PROTECTABLE)
		protect(f->fd, SIZE, SIZE, MEMFD_PROTECT_DENY);
}

/* Every other page is protected, so every answer is at the lowest level */
static void fragment(struct file *f)
{
	populate(f);
	if (f->kind == PLAIN)
		return;
	for (size_t at = PAGE; at < SIZE; at += 2 * PAGE)
		protect(f->fd, at, PAGE, MEMFD_PROTECT_DENY);
}

static const struct variant {
	const char *name;
	void (*prepare)(struct file *f);
	size_t step;		/* from store to store */
	bool other;		/* not the same work, and no goal */
} variants[] = {
	{ "untouched, holes", nothing, PAGE, false },
	{ "populated by write(2), mapped anew", populate, PAGE, false },
	{ "populated, read through the mapping first", populate_and_read, PAGE, false },
	{ "written, DENY, unprotected (plain: mprotect)", lift_deny, PAGE, true },
	{ "written, WAIT, unprotected (plain: mprotect)", lift_wait, PAGE, true },
	{ "the same with DENY, mapped anew", lift_and_map, PAGE, false },
	{ "populated, a later range protected", other_half, PAGE, false },
	{ "between protected pages (every other one)", fragment, 2 * PAGE, false },
};

#define VARIANTS (sizeof(variants) / sizeof(variants[0]))

static struct measured {
	struct row *ns;		/* a page */
	struct row *faults;	/* a page */
} measured[VARIANTS];

static struct series *series_of(struct row *r, enum kind kind)
{
	return kind == PROTECTABLE ? r->ours : &r->theirs;
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

static void measure(const struct variant *v, int kind, struct measured *to,
		    bool count)
{
	struct file f = { .kind = kind, .nfd = -1 };
	size_t pages = SIZE / v->step;
	uint64_t start, ns;
	long before;

	f.fd = memfd(kind == PROTECTABLE ? MFD_ALLOW_PROTECT : 0, SIZE);
	f.map = map_shared(f.fd, SIZE);
	v->prepare(&f);

	before = faults();
	start = now_ns();
	write_pages(f.map, SIZE, v->step);
	ns = now_ns() - start;
	if (count) {
		add(series_of(to->ns, kind), (double)ns / pages);
		add(series_of(to->faults, kind), (double)(faults() - before) / pages);
	}

	munmap(f.map, SIZE);
	if (f.nfd >= 0)
		close(f.nfd);
	close(f.fd);
}

/* A kernel without the feature has plain memfds only */
static int nr_kinds(void)
{
	int fd = syscall(__NR_memfd_create, "bench", MFD_ALLOW_PROTECT);

	if (fd < 0)
		return PROTECTABLE;
	close(fd);
	return KINDS;
}

int main(int argc, char **argv)
{
	int rounds = ROUNDS, kinds;

	open_results(argc, argv);
	kinds = nr_kinds();
	run_on(0);
	if (quick)
		rounds = 1;
	for (size_t i = 0; i < VARIANTS; i++) {
		measured[i].ns = row("", 1, "ns a page", "plain memfd", "%s",
				     variants[i].name);
		if (kinds == KINDS && !variants[i].other)
			with_goal(measured[i].ns, RATIO_AT_MOST, GOAL);
		measured[i].faults = row("", 1, "faults a page", "plain memfd",
					 "%s", variants[i].name);
	}
	/* The first round of all warms up, and is not counted. */
	for (int round = -1; round < rounds; round++)
		for (size_t i = 0; i < VARIANTS; i++)
			for (int kind = 0; kind < kinds; kind++)
				measure(&variants[i], kind, &measured[i],
					round >= 0);
	return report("First write to unprotected pages: MFD_ALLOW_PROTECT and a plain memfd",
		      "1 process, 64 MiB, one store a page, the two kinds in turn.");
}
