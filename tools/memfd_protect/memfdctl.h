/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * memfdctl: what its commands share. Each takes its own options and returns the exit
 * status: 0, FAILED if the kernel or the other process refused, USAGE if what was typed
 * is wrong, and then nothing was changed.
 */
#ifndef MEMFDCTL_H
#define MEMFDCTL_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <memfdprotect.h>

#define FAILED	1
#define USAGE	2

extern bool json;		/* --json */

int cmd_create(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_protect(int argc, char **argv);
int cmd_watch(int argc, char **argv);
int cmd_scan(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_run(int argc, char **argv);

/* memfdctl.c */
int usage_of(const char *command);
__attribute__((format(printf, 1, 2)))
int bad_usage(const char *fmt, ...);
bool parse_size(const char *text, const char *what, uint64_t *size);
bool parse_number(const char *text, const char *what, double least, double *number);
void stop_on_signals(void);
bool stopped(void);
double now(void);

/**
 * struct target - a memfd that was named on the command line
 * @name: What was typed.
 * @fd: The memfd.
 * @size: Bytes when it was opened.
 */
struct target {
	const char *name;
	int fd;
	uint64_t size;
};

/* target.c */
int target_open(struct target *target, const char *name, bool writes);
int target_notify(const struct target *target, bool waits);
int target_protect(const struct target *target, int notify_fd, uint64_t offset,
		   uint64_t length, int mode);
bool parse_range(const char *offset_text, const char *length_text, uint64_t *offset,
		 uint64_t *length);

#define MODE_NONE	(-1)

/* output.c */
void json_open(FILE *to);
void json_close(FILE *to);
void json_string(FILE *to, const char *key, const char *value);
void json_number(FILE *to, const char *key, long long value);
void json_real(FILE *to, const char *key, double value);
const char *human_size(uint64_t bytes, char text[16]);
const char *comm_of(pid_t pid, char text[64]);

#endif /* MEMFDCTL_H */
