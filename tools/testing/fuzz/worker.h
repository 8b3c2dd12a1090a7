/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Workers: processes that do one thing at a time, and tell what came of it. What
 * does not end at once is asked for later.
 */
#ifndef FUZZ_WORKER_H
#define FUZZ_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define MAX_WORKERS	8
#define SCRATCH		(64UL << 10)

enum work { WORK_SYSCALL, WORK_STORE, WORK_LOAD, WORK_PROBE, WORK_FORK };

/**
 * struct order - what a worker is to do
 * @what: One of enum work.
 * @nr: WORK_SYSCALL: its number. WORK_FORK: which worker the child becomes.
 * @arg: WORK_SYSCALL: its arguments. WORK_STORE: address and value. WORK_LOAD:
 *	 address. WORK_PROBE: how many struct probe there are in the worker's scratch
 *	 memory.
 */
struct order {
	enum work what;
	long nr;
	unsigned long arg[6];
};

/**
 * struct answer - what came of it
 * @ret: What the system call returned, or -errno; the process that was forked.
 * @value: What was loaded.
 * @sig: The signal that a load or store got, or 0.
 * @code: Its si_code.
 * @addr: Its si_addr.
 */
struct answer {
	long ret;
	uint64_t value;
	int sig;
	int code;
	unsigned long addr;
};

/* A place to load from, and what came of it */
struct probe {
	unsigned long addr;
	uint64_t value;
	int sig;
};

struct worker {
	pid_t pid;		/* 0: there is none */
	int pidfd;
	int sock, their_sock;
	unsigned char *scratch;	/* at the same address in all processes */
};

extern struct worker workers[MAX_WORKERS];

/* Sockets and memory for some workers, before the first is started */
void workers_prepare(unsigned int nr);
/* Forks a worker from this process */
void worker_start(unsigned int nr);
/* Has a worker fork another one. False if that was impossible */
bool worker_fork(unsigned int nr, unsigned int child);
void worker_kill(unsigned int nr);
void worker_send(unsigned int nr, const struct order *order);
/* True if the answer came within that time; false too if the worker died */
bool worker_answers(unsigned int nr, struct answer *answer, int timeout_ms);
/* Sends, and waits for the answer for as long as a slow guest needs */
bool worker_does(unsigned int nr, const struct order *order, struct answer *answer);
long worker_syscall(unsigned int nr, long call, unsigned long a, unsigned long b,
		    unsigned long c, unsigned long d, unsigned long e, unsigned long f);

#endif /* FUZZ_WORKER_H */
