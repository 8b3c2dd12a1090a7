// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl protect, deny, unprotect; and create.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool parse_mode(const char *text, int *mode)
{
	static const char * const names[] = {
		[MEMFD_PROTECT_WAIT] = "wait",
		[MEMFD_PROTECT_ASYNC] = "async",
		[MEMFD_PROTECT_DENY] = "deny",
	};

	for (*mode = 0; *mode < 3; ++*mode)
		if (!strcmp(text, names[*mode]))
			return true;
	bad_usage("-m: '%s' is none of wait, async, deny", text);
	return false;
}

int cmd_protect(int argc, char **argv)
{
	static const struct option options[] = {
		{ "mode", required_argument, NULL, 'm' },
		{ "offset", required_argument, NULL, 'o' },
		{ "length", required_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	bool lifts = !strcmp(argv[0], "unprotect"), with_mode = !strcmp(argv[0], "protect");
	const char *offset_text = NULL, *length_text = NULL;
	int mode = lifts ? MODE_NONE : MEMFD_PROTECT_DENY;
	struct target target;
	uint64_t offset, length;
	int option, status;

	while ((option = getopt_long(argc, argv, "m:o:l:h", options, NULL)) != -1) {
		switch (option) {
		case 'm':
			if (!with_mode)
				return bad_usage("-m is for protect only");
			if (!parse_mode(optarg, &mode))
				return USAGE;
			break;
		case 'o':
			offset_text = optarg;
			break;
		case 'l':
			length_text = optarg;
			break;
		case 'h':
			return usage_of(argv[0]);
		default:
			return USAGE;
		}
	}
	if (optind + 1 != argc)
		return bad_usage("%s: one TARGET, please", argv[0]);
	if (!parse_range(offset_text, length_text, &offset, &length))
		return USAGE;
	status = target_open(&target, argv[optind], true);
	if (status)
		return status;
	status = target_protect(&target, -1, offset, length, mode);
	close(target.fd);
	return status;
}

/* For a command: descriptor 3, which MEMFD names. */
static int run_with(int fd, char **command)
{
	if (fd != 3 && dup3(fd, 3, 0) < 0) {
		perror("memfdctl: descriptor 3");
		return FAILED;
	}
	if (fd == 3 && fcntl(fd, F_SETFD, 0) < 0) {
		perror("memfdctl: descriptor 3");
		return FAILED;
	}
	setenv("MEMFD", "3", 1);
	execvp(command[0], command);
	fprintf(stderr, "memfdctl: %s: %s\n", command[0], strerror(errno));
	return USAGE;
}

static int keep(int fd, const char *name, uint64_t size)
{
	stop_on_signals();
	if (json) {
		char target[32];

		snprintf(target, sizeof(target), "%d:%d", getpid(), fd);
		json_open(stdout);
		json_string(stdout, "target", target);
		json_string(stdout, "name", name);
		json_number(stdout, "size", size);
		json_close(stdout);
	} else {
		printf("%d:%d\n", getpid(), fd);
		fflush(stdout);
	}
	while (!stopped())
		pause();
	return 0;
}

int cmd_create(int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", required_argument, NULL, 'n' },
		{ "share", no_argument, NULL, 's' },
		{ "plain", no_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	const char *name = "memfdctl";
	bool plain = false, share = false;
	uint64_t size;
	int option, fd;

	while ((option = getopt_long(argc, argv, "+n:h", options, NULL)) != -1) {
		switch (option) {
		case 'n':
			name = optarg;
			break;
		case 's':
			share = true;
			break;
		case 'p':
			plain = true;
			break;
		case 'h':
			return usage_of(argv[0]);
		default:
			return USAGE;
		}
	}
	if (optind == argc)
		return bad_usage("create: which SIZE?");
	if (!parse_size(argv[optind], "SIZE", &size))
		return USAGE;
	if (optind + 1 < argc && strcmp(argv[optind + 1], "--"))
		return bad_usage("create: COMMAND comes after --, not '%s'", argv[optind + 1]);
	if (plain) {
		fd = memfd_create(name, MFD_CLOEXEC | (share ? MFD_SHARE_PGTABLES : 0));
		if (fd >= 0 && ftruncate(fd, size)) {
			close(fd);
			fd = -1;
		}
	} else {
		fd = memfdp_create(name, size, share ? MFD_SHARE_PGTABLES : 0);
	}
	if (fd < 0) {
		fprintf(stderr, "memfdctl: create: %s\n", errno == ENOSYS ?
			"this kernel has no memfd_protect; --plain makes an ordinary memfd" :
			strerror(errno));
		return FAILED;
	}
	if (optind + 2 < argc)
		return run_with(fd, argv + optind + 2);
	return keep(fd, name, size);
}
