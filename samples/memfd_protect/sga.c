// SPDX-License-Identifier: BSD-3-Clause
/*
 * sga - a snapshot of shared memory, without stopping anyone.
 *
 * A file is loaded into a small buffer cache, several client processes keep
 * changing its pages, and a snapshot of the cache as it was at one moment is
 * written to a file while they go on. Then the snapshot is proved right.
 *
 * sga.h says who owns what; snapshot.c is the part to read first.
 */
#define _GNU_SOURCE
#include <err.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sga.h"

static const char help[] =
"usage: sga [options] [FILE]\n"
"\n"
"Loads FILE into shared memory as 8 KiB pages with checksums, lets client\n"
"processes change them, writes a snapshot of one moment (T0) meanwhile, and\n"
"checks that it is one. Without FILE: some large file that this system has.\n"
"\n"
"  -c, --clients N       client processes (default 4, at most 64)\n"
"  -s, --seconds S       how long to run before and after the snapshot (default 2)\n"
"  -m, --mode MODE       how writers are caught:\n"
"                          memfd     memfd_protect(2) (default)\n"
"                          mprotect  mprotect(2) and SIGSEGV in every client\n"
"                          uffd      a userfaultfd(2) of every client\n"
"  -w, --write PERCENT   share of the changes that are made by write(2) instead\n"
"                        of stores (default 25; 0 in modes that do not see them,\n"
"                        try 25 there to see pages go wrong)\n"
"  -t, --think US        each client sleeps this long between changes (default 100)\n"
"  -S, --size MIB        load at most this much of FILE (default 32)\n"
"  -r, --rate MIB        copy at most this much a second, like a slow disk\n"
"  -o, --output FILE     the snapshot (default /tmp/sga.snapshot)\n"
"  -j, --json FILE       write the counts to FILE too (-: standard output)\n"
"  -n, --dry-run         check these options, print the mode, and leave\n"
"  -h, --help            this text\n"
"\n"
"Example: eight clients, a copy at 16 MiB/s, so that many pages are wanted early\n"
"  sga --clients 8 --rate 16 /usr/bin/qemu-system-x86_64\n"
"\n"
"Exit status: 0 the snapshot is right, 1 it is wrong or something failed,\n"
"2 usage, or this kernel has no memfd_protect.\n";

static const struct option options[] = {
	{ "clients", required_argument, NULL, 'c' },
	{ "seconds", required_argument, NULL, 's' },
	{ "mode",    required_argument, NULL, 'm' },
	{ "write",   required_argument, NULL, 'w' },
	{ "think",   required_argument, NULL, 't' },
	{ "size",    required_argument, NULL, 'S' },
	{ "rate",    required_argument, NULL, 'r' },
	{ "output",  required_argument, NULL, 'o' },
	{ "json",    required_argument, NULL, 'j' },
	{ "dry-run", no_argument,       NULL, 'n' },
	{ "help",    no_argument,       NULL, 'h' },
	{ }
};

static double to_number(const char *text, double min, double max)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= min && value <= max))
		errx(2, "\"%s\": expected a number from %g to %g", text, min, max);
	return value;
}

static const struct backend *find_backend(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(backends); i++)
		if (!strcmp(backends[i]->name, name))
			return backends[i];
	errx(2, "--mode is memfd, mprotect or uffd, not \"%s\"", name);
}

static void set_option(struct sga *sga, int option, const char *value)
{
	switch (option) {
	case 'c':
		sga->nr_clients = to_number(value, 1, SGA_MAX_CLIENTS);
		break;
	case 's':
		sga->seconds = to_number(value, 0, 3600);
		break;
	case 'm':
		sga->backend = find_backend(value);
		break;
	case 'w':
		sga->pwrite_percent = to_number(value, 0, 100);
		break;
	case 't':
		sga->think_us = to_number(value, 0, 999999);
		break;
	case 'S':
		sga->max_bytes = to_number(value, 1, 1 << 20) * 1048576;
		break;
	case 'r':
		sga->rate = to_number(value, 1, 1 << 20) * 1048576;
		break;
	case 'o':
		sga->snapshot_path = value;
		break;
	case 'j':
		sga->json_path = value;
		break;
	case 'n':
		sga->dry_run = true;
		break;
	case 'h':
		fputs(help, stdout);
		exit(0);
	default:
		fputs("Try \"sga --help\".\n", stderr);
		exit(2);
	}
}

static void parse(struct sga *sga, int argc, char **argv)
{
	const unsigned int unset = 101;
	int option;

	sga->pwrite_percent = unset;
	while ((option = getopt_long(argc, argv, "c:s:m:w:t:S:r:o:j:nh", options, NULL)) != -1)
		set_option(sga, option, optarg);
	if (argc - optind > 1)
		errx(2, "one file, please; try \"sga --help\"");
	if (optind < argc)
		sga->source = argv[optind];
	else if (!sga->dry_run)
		cache_pick_source(sga);
	if (sga->pwrite_percent == unset)
		sga->pwrite_percent = sga->backend->sees_write ? 25 : 0;
}

int main(int argc, char **argv)
{
	static struct sga sga = {
		.backend = &backend_memfd,
		.snapshot_path = "/tmp/sga.snapshot",
		.nr_clients = 4,
		.seconds = 2,
		.think_us = 100,
		.max_bytes = 32UL << 20,
		.map_unit = SGA_PAGE_SIZE,
	};
	struct verdict verdict;

	parse(&sga, argc, argv);
	if (sga.dry_run) {
		puts(sga.backend->name);
		return 0;
	}
	sga.memfd = sga.backend->create(&sga);
	if (sga.memfd < 0)
		err(1, "memfd_create");
	cache_load(&sga);
	printf("loaded %s: %zu pages\n", sga.source, sga.nr_pages);
	fflush(stdout);

	clients_start(&sga);
	sga.backend->open(&sga);
	snapshot_run(&sga);
	verify(&sga, &verdict);
	report(&sga, &verdict);
	if (sga.json_path)
		report_json(&sga, &verdict);
	return verdict.pages != sga.nr_pages || verdict.bad_checksum ||
	       verdict.bad_version || verdict.bad_cache;
}
