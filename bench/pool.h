/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Processes that are told by a letter what to do, and say when it is done.
 */
#ifndef BENCH_POOL_H
#define BENCH_POOL_H

#include "bench.h"

#include <signal.h>
#include <sys/prctl.h>

struct pool {
	unsigned int nr;
	int from;
	int *to;
	pid_t *pid;
	/* In the process with that number */
	void (*act)(unsigned int member, char todo);
};

/* The first @nr of them do it, at once */
static inline void tell(struct pool *p, unsigned int nr, char todo)
{
	char c = todo;

	for (unsigned int i = 0; i < nr; i++)
		if (write(p->to[i], &c, 1) != 1)
			err(1, "write to a process");
	for (unsigned int i = 0; i < nr; i++)
		if (read(p->from, &c, 1) != 1)
			err(1, "read from a process");
}

static inline void tell_all(struct pool *p, char todo)
{
	tell(p, p->nr, todo);
}

static inline void pool_member(struct pool *p, unsigned int i, int in, int out)
{
	char todo;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	run_on(i);
	while (read(in, &todo, 1) == 1) {
		if (todo)
			p->act(i, todo);
		if (write(out, &todo, 1) != 1)
			break;
	}
	_exit(0);
}

static inline void pool_start(struct pool *p, unsigned int nr,
			      void (*act)(unsigned int member, char todo))
{
	struct rlimit files = { 8192, 8192 };
	int in[2], out[2];

	p->nr = nr;
	p->act = act;
	p->to = calloc(nr, sizeof(*p->to));
	p->pid = calloc(nr, sizeof(*p->pid));
	if (!p->to || !p->pid || setrlimit(RLIMIT_NOFILE, &files) ||
	    pipe2(out, O_CLOEXEC))
		err(1, "pool");
	for (unsigned int i = 0; i < nr; i++) {
		if (pipe2(in, O_CLOEXEC))
			err(1, "pipe");
		p->pid[i] = fork();
		if (p->pid[i] < 0)
			err(1, "fork");
		if (!p->pid[i]) {
			/* Or the last one would keep those before it alive */
			for (unsigned int j = 0; j < i; j++)
				close(p->to[j]);
			close(in[1]);
			close(out[0]);
			pool_member(p, i, in[0], out[1]);
		}
		close(in[0]);
		p->to[i] = in[1];
	}
	close(out[1]);
	p->from = out[0];
	tell_all(p, 0);
}

static inline void pool_stop(struct pool *p)
{
	for (unsigned int i = 0; i < p->nr; i++) {
		kill(p->pid[i], SIGKILL);
		waitpid(p->pid[i], NULL, 0);
		close(p->to[i]);
	}
	close(p->from);
	free(p->to);
	free(p->pid);
}

#endif /* BENCH_POOL_H */
