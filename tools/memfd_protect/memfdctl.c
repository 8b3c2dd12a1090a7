// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl: memfds that can be protected, from the command line.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define VERSION "1.0"

bool json;

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *arguments;
	const char *what;
} commands[] = {
	{ "ls", cmd_list, "", "memfds of all processes, and their figures" },
	{ "stat", cmd_stat, "TARGET", "all that the kernel says of one" },
	{ "create", cmd_create, "[-n NAME] [--share] [--plain] SIZE [-- COMMAND...]",
	  "make one, and keep it; for COMMAND, as descriptor 3" },
	{ "protect", cmd_protect, "[-m wait|async|deny] [-o OFFSET] [-l LENGTH] TARGET",
	  "protect a range (deny)" },
	{ "deny", cmd_protect, "[-o OFFSET] [-l LENGTH] TARGET", "the same as protect -m deny" },
	{ "unprotect", cmd_protect, "[-o OFFSET] [-l LENGTH] TARGET", "remove protection" },
	{ "watch", cmd_watch, "[-o OFFSET] [-l LENGTH] [-c COUNT] [--deny] TARGET",
	  "who wants to write, as it comes" },
	{ "scan", cmd_scan, "[-o OFFSET] [-l LENGTH] [-i SECONDS] [-c COUNT] TARGET",
	  "what was written, once an interval" },
	{ "snapshot", cmd_snapshot, "TARGET FILE",
	  "copy it as it is at this moment, while others write it" },
	{ "run", cmd_run, "[--protect] [--share] [--] PROGRAM [ARGUMENT...]",
	  "a program whose shared memory becomes such memfds" },
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < COMMANDS; i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static void print_usage(FILE *to)
{
	fprintf(to, "Usage: memfdctl [--json] COMMAND [OPTION...]\n\n");
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].what);
	fputs("\nTARGET is PID:FD, or a path like /proc/PID/fd/FD. OFFSET, LENGTH and SIZE are\n"
	      "in bytes, or in K, M, G, T. `memfdctl COMMAND --help` says more.\n"
	      "Exit status: 0; 1 it failed; 2 it was called wrong, and nothing was changed.\n",
	      to);
}

/**
 * usage_of() - print how a command is used
 * @command: Its name.
 *
 * Return: 0.
 */
int usage_of(const char *command)
{
	const struct command *c = find_command(command);

	printf("Usage: memfdctl [--json] %s %s\n\n%s\n", c->name, c->arguments, c->what);
	return 0;
}

/**
 * bad_usage() - say what is wrong with the command line
 * @fmt: As for printf().
 *
 * Return: USAGE.
 */
int bad_usage(const char *fmt, ...)
{
	va_list args;

	fputs("memfdctl: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	return USAGE;
}

/**
 * parse_size() - a number of bytes
 * @text: What was typed.
 * @what: What it is, for the message.
 * @size: Out: the number.
 *
 * Return: False if it is none; the message is printed.
 */
bool parse_size(const char *text, const char *what, uint64_t *size)
{
	static const char units[] = "KMGT";
	unsigned long long value;
	const char *unit;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
	if (errno || end == text || !isdigit((unsigned char)*text) ||
	    (*end && (!unit || end[1]))) {
		bad_usage("%s: '%s' is no size like 4096, 64K, 2M or 1G", what, text);
		return false;
	}
	if (unit) {
		unsigned int shift = 10 * (unit - units + 1);

		if (value > (uint64_t)INT64_MAX >> shift) {
			bad_usage("%s: '%s' is too large", what, text);
			return false;
		}
		value <<= shift;
	}
	if (value > INT64_MAX) {
		bad_usage("%s: '%s' is too large", what, text);
		return false;
	}
	*size = value;
	return true;
}

/**
 * parse_number() - a number that need not be whole
 * @text: What was typed.
 * @what: What it is, for the message.
 * @least: It must not be less.
 * @number: Out: the number.
 *
 * Return: False if it is none; the message is printed.
 */
bool parse_number(const char *text, const char *what, double least, double *number)
{
	char *end;

	*number = strtod(text, &end);
	if (end != text && !*end && isfinite(*number) && *number >= least)
		return true;
	bad_usage("%s: '%s' is no number of at least %g", what, text, least);
	return false;
}

static volatile sig_atomic_t was_stopped;

static void stop(int sig)
{
	(void)sig;
	was_stopped = 1;
}

/**
 * stop_on_signals() - SIGINT and SIGTERM end what goes on, and what was done is undone
 */
void stop_on_signals(void)
{
	struct sigaction action = { .sa_handler = stop };

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
}

bool stopped(void)
{
	return was_stopped;
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	const struct command *command;
	int i = 1, status;

	for (; i < argc && argv[i][0] == '-'; i++) {
		if (!strcmp(argv[i], "--json")) {
			json = true;
		} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			print_usage(stdout);
			return 0;
		} else if (!strcmp(argv[i], "--version")) {
			puts("memfdctl " VERSION);
			return 0;
		} else {
			return bad_usage("no option is called '%s'", argv[i]);
		}
	}
	if (i == argc) {
		print_usage(stderr);
		return USAGE;
	}
	command = find_command(argv[i]);
	if (!command)
		return bad_usage("no command is called '%s'; `memfdctl --help` lists them",
				 argv[i]);
	optind = 1;
	status = command->run(argc - i, argv + i);
	if (fflush(stdout) || ferror(stdout)) {
		perror("memfdctl: standard output");
		return FAILED;
	}
	return status;
}
