// SPDX-License-Identifier: GPL-2.0-only
/*
 * Huge pages of shared memory: what it costs to touch them first, and to protect them,
 * beside a plain memfd, and mprotect() of one.
 */
#include "bench.h"

#include <linux/memfd_protect.h>

#define SHMEM_HUGE	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define ROUNDS		5
#define NR_HUGE		(GIB / TABLE)

static unsigned int rounds = ROUNDS;

static void huge_pages(const char *mode)
{
	int fd = open(SHMEM_HUGE, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, mode, strlen(mode)) < 0)
		err(1, SHMEM_HUGE);
	close(fd);
}

static void add_since(struct series *s, uint64_t start, double nr)
{
	add(s, (now_ns() - start) / 1e3 / nr);
}

/* us for each 2 MiB of 1 GiB: memory that is there already is mapped by stores */
static void touch(unsigned int flags, struct series *s)
{
	int fd = memfd(flags, GIB);
	char *map = map_shared(fd, GIB);
	uint64_t start;

	write_pages(map, GIB, PAGE);
	for (unsigned int i = 0; i < rounds; i++) {
		munmap(map, GIB);
		map = map_shared(fd, GIB);
		*(volatile char *)map = 1;
		start = now_ns();
		write_pages(map + TABLE, GIB - TABLE, TABLE);
		add_since(s, start, NR_HUGE - 1);
	}
	munmap(map, GIB);
	close(fd);
}

struct protection {
	struct series protect;
	struct series part;	/* a page of each 2 MiB */
	struct series first;	/* store to 2 MiB after it */
};

static void protect_all(unsigned int flags, struct protection *p)
{
	int fd = memfd(flags | MFD_ALLOW_PROTECT, GIB), nfd = notify(fd);
	char *map = map_shared(fd, GIB);
	uint64_t start;

	memset(p, 0, sizeof(*p));
	write_pages(map, GIB, PAGE);
	for (unsigned int i = 0; i < rounds; i++) {
		start = now_ns();
		protect(fd, 0, 0, MEMFD_PROTECT_ASYNC);
		add_since(&p->protect, start, 1);
		start = now_ns();
		*(volatile char *)(map + GIB / 2) = 1;
		add_since(&p->first, start, 1);
		unprotect(fd, 0, 0);
		write_pages(map, GIB, TABLE);
		start = now_ns();
		for (size_t at = 0; at < GIB; at += TABLE)
			protect(fd, at, PAGE, MEMFD_PROTECT_ASYNC);
		add_since(&p->part, start, NR_HUGE);
		unprotect(fd, 0, 0);
		write_pages(map, GIB, TABLE);
	}
	munmap(map, GIB);
	close(nfd);
	close(fd);
}

static void change_rights(struct series *all, struct series *part)
{
	int fd = memfd(0, GIB);
	char *map = map_shared(fd, GIB);
	uint64_t start;

	write_pages(map, GIB, PAGE);
	for (unsigned int i = 0; i < rounds; i++) {
		start = now_ns();
		if (mprotect(map, GIB, PROT_READ))
			err(1, "mprotect");
		add_since(all, start, 1);
		if (mprotect(map, GIB, PROT_READ | PROT_WRITE))
			err(1, "mprotect");
		start = now_ns();
		for (size_t at = 0; at < GIB; at += TABLE)
			if (mprotect(map + at, PAGE, PROT_READ))
				err(1, "mprotect");
		add_since(part, start, NR_HUGE);
		munmap(map, GIB);
		map = map_shared(fd, GIB);
		write_pages(map, GIB, PAGE);
	}
	munmap(map, GIB);
	close(fd);
}

static void put(const char *what, const char *variant, const struct series *ours,
		    const char *whom, const struct series *theirs, double goal)
{
	struct row *r = row(variant, 1, "us", whom, "%s", what);

	*r->ours = *ours;
	r->theirs = *theirs;
	if (goal)
		with_goal(r, RATIO_AT_MOST, goal);
}

int main(int argc, char **argv)
{
	struct series plain = { .nr = 0 }, protectable = { .nr = 0 },
		      shared = { .nr = 0 }, both = { .nr = 0 },
		      rights = { .nr = 0 }, part = { .nr = 0 };
	struct protection ordinary, sharing;

	open_results(argc, argv);
	if (quick)
		rounds = 1;
	huge_pages("always");
	touch(0, &plain);
	touch(MFD_ALLOW_PROTECT, &protectable);
	touch(MFD_SHARE_PGTABLES, &shared);
	touch(MFD_SHARE_PGTABLES | MFD_ALLOW_PROTECT, &both);
	protect_all(0, &ordinary);
	protect_all(MFD_SHARE_PGTABLES, &sharing);
	change_rights(&rights, &part);
	huge_pages("never");

	put("first store to 2 MiB, nothing protected", "ordinary tables",
		&protectable, "plain memfd", &plain, 1.03);
	put("first store to 2 MiB, not to be protected", "sharing", &shared,
		"plain memfd", &plain, 1.05);
	put("first store to 2 MiB, nothing protected", "sharing", &both,
		"plain memfd", &plain, 1.05);
	put("protect 1 GiB", "ordinary tables", &ordinary.protect, "mprotect",
		&rights, 1);
	put("protect 1 GiB", "sharing", &sharing.protect, "mprotect", &rights, 1);
	put("protect a page of 2 MiB", "ordinary tables", &ordinary.part,
		"mprotect", &part, 0);
	put("protect a page of 2 MiB", "sharing", &sharing.part, "mprotect",
		&part, 0);
	row("ordinary tables", 1, "us", NULL, "first store after it to 2 MiB")->own =
		ordinary.first;
	row("sharing", 1, "us", NULL, "first store after it to 2 MiB")->own =
		sharing.first;
	return report("Huge pages of shared memory",
		      "1 GiB of a memfd with shmem_enabled=always, all of it resident. mprotect() of a page of a huge one splits the mapping as well.");
}
