/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the fuzzers have in common: programs, which are lists of operations with
 * small numbers as arguments, and what is done with them. They are made from a
 * seed, printed, read back, run in a process of their own, and made smaller.
 *
 * Numbers mean nothing by themselves: the fuzzer takes them modulo what there is
 * when the operation is carried out, and passes over an operation that makes no
 * sense then. So every part of a program is a program, which is all that the
 * minimiser needs to know.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OP_ARGS		8
#define MAX_OPS		1024

/**
 * struct op_kind - an operation that programs can have
 * @name: In the text of a program.
 * @weight: How often it is chosen. 0: never, as what a program begins with.
 * @args: Names of its arguments, of how many values each has one, and whether that
 *	  is a place, of which the first are chosen more often.
 */
struct op_kind {
	const char *name;
	unsigned int weight;
	struct {
		const char *name;
		unsigned int below;
		bool place;
	} args[OP_ARGS];
};

struct op {
	unsigned int kind;
	unsigned int arg[OP_ARGS];
};

struct program {
	unsigned int nr;
	struct op ops[MAX_OPS];
};

/**
 * struct fuzzer - what fuzz_main() is to run
 * @name: Of the program.
 * @about: What it does, for --help.
 * @kinds: Its operations. A program begins with one of the first kind.
 * @nr_kinds: How many there are.
 * @breaks: Names for --break, NULL at the end.
 * @counters: What counted() counts, NULL at the end.
 * @available: Says whether the kernel has what is fuzzed.
 * @run: Carries out a program, in a process and a process group of its own. It
 *	 returns if all was as it should be, and calls found() otherwise.
 */
struct fuzzer {
	const char *name;
	const char *about;
	const struct op_kind *kinds;
	unsigned int nr_kinds;
	const char * const *breaks;
	const char * const *counters;
	bool (*available)(void);
	void (*run)(const struct program *program);
};

/* Reports a finding at an operation of the program, and ends the run */
void found(unsigned int op, const char *what, const char *format, ...)
	__attribute__((noreturn, format(printf, 3, 4)));

/* Counts that an operation of this kind had its effect; what never has is told */
void worked(unsigned int kind);

/* Counts something else that is to happen now and then */
void counted(unsigned int counter);

/* What a system call returned, for people; two at a time. Errors are negative. */
const char *name_of(long ret);

/* Writes to a file such as those in /proc and /sys */
bool write_text(const char *path, const char *text);

/* What --break said: a place in fuzzer.breaks, or -1 */
extern int broken;

/* What does not happen soon will not happen: that was found out before */
extern bool impatient;

/* --verbose: print each operation and its outcome */
extern bool verbose;

int fuzz_main(int argc, char **argv, const struct fuzzer *fuzzer);

#endif /* FUZZ_H */
