// SPDX-License-Identifier: GPL-2.0-only
/*
 * See worker.h. A worker uses nothing of the C library that maps memory or takes
 * locks, so that its address space is what it was told to make of it.
 */
#include "fuzz.h"
#include "worker.h"

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LONG_MS	(impatient ? 3000 : 60000)

struct worker workers[MAX_WORKERS];

static sigjmp_buf caught_env;
static struct answer * volatile caught;	/* read by the handler */

static void on_fault(int sig, siginfo_t *info, void *context)
{
	if (!caught)
		_exit(9);
	caught->sig = sig;
	caught->code = info->si_code;
	caught->addr = (unsigned long)info->si_addr;
	siglongjmp(caught_env, 1);
}

static void on_signal(int sig)
{
}

static void access_memory(const struct order *order, struct answer *answer)
{
	volatile uint64_t *at = (uint64_t *)order->arg[0];

	caught = answer;
	if (!sigsetjmp(caught_env, 0)) {
		if (order->what == WORK_STORE)
			*at = order->arg[1];
		else
			answer->value = *at;
	}
	caught = NULL;
}

static void probe_memory(struct probe *probe, unsigned long nr)
{
	for (; nr--; probe++) {
		struct order order = { .what = WORK_LOAD, .arg = { probe->addr } };
		struct answer answer = { 0 };

		access_memory(&order, &answer);
		probe->value = answer.value;
		probe->sig = answer.sig;
	}
}

static void work(unsigned int nr);

static long fork_worker(unsigned int nr)
{
	long pid = fork();

	if (!pid)
		work(nr);
	return pid;
}

static void work(unsigned int nr)
{
	int sock = workers[nr].their_sock;
	struct order order;

	while (recv(sock, &order, sizeof(order), 0) == sizeof(order)) {
		struct answer answer = { 0 };
		const unsigned long *a = order.arg;

		switch (order.what) {
		case WORK_SYSCALL:
			answer.ret = syscall(order.nr, a[0], a[1], a[2], a[3],
					     a[4], a[5]);
			break;
		case WORK_PROBE:
			probe_memory((struct probe *)workers[nr].scratch, a[0]);
			break;
		case WORK_FORK:
			answer.ret = fork_worker(order.nr);
			break;
		default:
			access_memory(&order, &answer);
		}
		if (answer.ret == -1)
			answer.ret = -errno;
		if (send(sock, &answer, sizeof(answer), 0) != sizeof(answer))
			break;
	}
	_exit(0);
}

void workers_prepare(unsigned int nr)
{
	struct sigaction fault = {
		.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER,
	};
	struct sigaction sig = { .sa_handler = on_signal };	/* no SA_RESTART */
	unsigned char *scratch;

	signal(SIGCHLD, SIG_IGN);
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	sigaction(SIGUSR1, &sig, NULL);
	scratch = mmap(NULL, nr * SCRATCH, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (scratch == MAP_FAILED)
		err(2, "scratch memory");
	for (unsigned int i = 0; i < nr; i++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
			err(2, "socketpair");
		workers[i].sock = pair[0];
		workers[i].their_sock = pair[1];
		workers[i].scratch = scratch + i * SCRATCH;
		workers[i].pidfd = -1;
	}
}

static void worker_born(unsigned int nr, pid_t pid)
{
	workers[nr].pid = pid;
	workers[nr].pidfd = syscall(SYS_pidfd_open, pid, 0);
}

void worker_start(unsigned int nr)
{
	pid_t pid = fork();

	if (pid < 0)
		err(2, "fork");
	if (!pid)
		work(nr);
	worker_born(nr, pid);
}

bool worker_fork(unsigned int nr, unsigned int child)
{
	struct order order = { .what = WORK_FORK, .nr = child };
	struct answer answer;

	if (!worker_does(nr, &order, &answer) || answer.ret <= 0)
		return false;
	worker_born(child, answer.ret);
	return true;
}

/* What it was told and what it answered, but nobody has read */
static void drain(int sock)
{
	char data[sizeof(struct order) + sizeof(struct answer)];

	while (recv(sock, data, sizeof(data), MSG_DONTWAIT) > 0)
		;
}

void worker_kill(unsigned int nr)
{
	struct worker *w = &workers[nr];
	struct pollfd pfd = { .fd = w->pidfd, .events = POLLIN };

	if (!w->pid)
		return;
	kill(w->pid, SIGKILL);
	if (w->pidfd < 0 || poll(&pfd, 1, LONG_MS) != 1)
		errx(3, "worker %u cannot be killed", nr);
	close(w->pidfd);
	w->pid = 0;
	w->pidfd = -1;
	drain(w->sock);
	drain(w->their_sock);
}

void worker_send(unsigned int nr, const struct order *order)
{
	if (send(workers[nr].sock, order, sizeof(*order), 0) != sizeof(*order))
		err(3, "worker %u", nr);
}

bool worker_answers(unsigned int nr, struct answer *answer, int timeout_ms)
{
	struct worker *w = &workers[nr];
	struct pollfd pfd[2] = {
		{ .fd = w->sock, .events = POLLIN },
		{ .fd = w->pidfd, .events = POLLIN },
	};

	if (poll(pfd, 2, timeout_ms) <= 0 || !(pfd[0].revents & POLLIN))
		return false;
	return recv(w->sock, answer, sizeof(*answer), 0) == sizeof(*answer);
}

bool worker_does(unsigned int nr, const struct order *order, struct answer *answer)
{
	worker_send(nr, order);
	return worker_answers(nr, answer, LONG_MS);
}

long worker_syscall(unsigned int nr, long call, unsigned long a, unsigned long b,
		    unsigned long c, unsigned long d, unsigned long e, unsigned long f)
{
	struct order order = { WORK_SYSCALL, call, { a, b, c, d, e, f } };
	struct answer answer;

	return worker_does(nr, &order, &answer) ? answer.ret : -ECHILD;
}
