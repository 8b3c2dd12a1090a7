// SPDX-License-Identifier: GPL-2.0-only
/*
 * The case that page-table sharing is for: 1500 clients of a database, each of
 * which has the whole buffer cache mapped and needs all of its page tables.
 *
 * In one guest, one after the other: with ordinary page tables, and with shared
 * ones. Exit status 0 only if the out-of-memory killer strikes in the first run,
 * and in the second all clients live at the same time and answer.
 */
#include "bench.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>

#define CLIENTS		1500
#define SGA		(256UL << 20)
#define LIMIT_NS	200000000000ULL	/* of a run */

struct outcome {
	unsigned int started;
	unsigned int alive;
	unsigned int answered;
	long killed;		/* by the out-of-memory killer */
	long page_tables;	/* kB more than before, at most */
	long available;		/* kB, at least */
};

static pid_t clients[CLIENTS];
static volatile unsigned int *answers;

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(1, "%s", path);
	close(fd);
}

static long page_tables(void)
{
	stat_refresh();
	return figure("/proc/meminfo", "PageTables:");
}

static void touch_tables(const char *sga)
{
	for (size_t at = 0; at < SGA; at += TABLE)
		(void)*(const volatile char *)(sga + at);
}

/* Says when it is ready, answers when it is asked to, and then sleeps */
static void client(int fd, int ready, int ask)
{
	const char *sga;
	char byte = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	write_text("/proc/self/oom_score_adj", "500");
	sga = map_shared(fd, SGA);
	touch_tables(sga);
	if (write(ready, &byte, 1) == 1 && read(ask, &byte, 1) == 1) {
		touch_tables(sga);
		__atomic_fetch_add(answers, 1, __ATOMIC_SEQ_CST);
	}
	for (;;)
		pause();
}

static void look(struct outcome *out, long before, long killed_before)
{
	long more = page_tables() - before;
	long available = figure("/proc/meminfo", "MemAvailable:");

	if (more > out->page_tables)
		out->page_tables = more;
	if (!out->available || available < out->available)
		out->available = available;
	out->killed = figure("/proc/vmstat", "oom_kill ") - killed_before;
}

/* True when the last one is ready, or somebody was killed */
static bool next_ready(int ready, long killed_before, uint64_t end)
{
	struct pollfd pfd = { .fd = ready, .events = POLLIN };
	char byte;

	while (now_ns() < end) {
		if (poll(&pfd, 1, 100) == 1)
			return read(ready, &byte, 1) == 1;
		if (figure("/proc/vmstat", "oom_kill ") > killed_before)
			return true;
	}
	return false;
}

static unsigned int count_alive(unsigned int started)
{
	unsigned int alive = 0;

	for (unsigned int i = 0; i < started; i++)
		alive += !waitpid(clients[i], NULL, WNOHANG);
	return alive;
}

static void ask_all(int ask, struct outcome *out, uint64_t end)
{
	static char bytes[CLIENTS];

	if (write(ask, bytes, out->started) != out->started)
		err(1, "write to the clients");
	while (*answers < out->started && now_ns() < end)
		usleep(10000);
	out->answered = *answers;
}

static void end_all(unsigned int started)
{
	for (unsigned int i = 0; i < started; i++)
		kill(clients[i], SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
}

static void run(unsigned int flags, struct outcome *out)
{
	long killed = figure("/proc/vmstat", "oom_kill ");
	long before = page_tables();
	uint64_t end = now_ns() + LIMIT_NS;
	int fd = memfd(flags, SGA);
	char *sga = map_shared(fd, SGA);
	int ready[2], ask[2];

	if (pipe2(ready, O_CLOEXEC) || pipe2(ask, O_CLOEXEC))
		err(1, "pipe");
	write_pages(sga, SGA, PAGE);
	munmap(sga, SGA);
	*answers = 0;
	while (out->started < CLIENTS && !out->killed) {
		pid_t pid = fork();

		if (pid < 0)
			break;
		if (!pid)
			client(fd, ready[1], ask[0]);
		clients[out->started++] = pid;
		if (!next_ready(ready[0], killed, end))
			break;
		if (out->started % 50 == 0 || out->started == CLIENTS)
			look(out, before, killed);
		out->killed = figure("/proc/vmstat", "oom_kill ") - killed;
	}
	look(out, before, killed);
	out->alive = count_alive(out->started);
	if (!out->killed)
		ask_all(ask[1], out, end);
	end_all(out->started);
	close(ready[0]);
	close(ready[1]);
	close(ask[0]);
	close(ask[1]);
	close(fd);
}

static struct row *outcome_row(const char *what, const char *unit, double shared,
			       double ordinary)
{
	struct row *r = row("", CLIENTS, unit, "without sharing", "%s", what);

	add(r->ours, shared);
	add(&r->theirs, ordinary);
	return r;
}

static void report_outcome(const struct outcome *shared,
			   const struct outcome *ordinary)
{
	outcome_row("started", "clients", shared->started, ordinary->started);
	with_goal(outcome_row("alive", "clients", shared->alive, ordinary->alive),
		  OURS_AT_LEAST, CLIENTS);
	with_goal(outcome_row("answered", "clients", shared->answered, ordinary->answered),
		  OURS_AT_LEAST, CLIENTS);
	with_goal(outcome_row("killed by the out-of-memory killer", "clients",
			      shared->killed, ordinary->killed), OURS_AT_MOST, 0);
	outcome_row("page tables", "kB", shared->page_tables, ordinary->page_tables);
	outcome_row("available memory", "kB", shared->available, ordinary->available);
}

/* What the first run has left must not be missing in the second */
static bool memory_is_back(long available)
{
	uint64_t end = now_ns() + 30000000000ULL;

	while (figure("/proc/meminfo", "MemAvailable:") < available / 10 * 9) {
		if (now_ns() > end)
			return false;
		usleep(100000);
	}
	return true;
}

int main(int argc, char **argv)
{
	struct outcome ordinary = { 0 }, shared = { 0 };
	long available;
	bool struck, lived;
	int fd;

	open_results(argc, argv);
	fd = syscall(__NR_memfd_create, "clients", MFD_SHARE_PGTABLES);
	if (fd < 0) {
		printf("no MFD_SHARE_PGTABLES\n");
		return 4;
	}
	close(fd);
	/*
	 * Memory is to run out because of page tables. If the code of the clients were
	 * reclaimed before, they would read it again, and again, for minutes.
	 */
	if (mlockall(MCL_CURRENT))
		err(1, "mlockall");
	write_text("/proc/self/oom_score_adj", "-1000");
	write_text("/proc/sys/vm/oom_dump_tasks", "0");
	answers = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (answers == MAP_FAILED)
		err(1, "mmap");
	available = figure("/proc/meminfo", "MemAvailable:");
	run(0, &ordinary);
	if (!memory_is_back(available))
		errx(1, "the memory of the first run does not come back");
	run(MFD_SHARE_PGTABLES, &shared);
	report_outcome(&shared, &ordinary);
	lived = !report("Clients of one buffer cache",
			"Each has the same memfd of 256 MiB mapped, all of it resident, and reads one byte in every 2 MiB, so that it needs all page tables; and again when all are there (answered).");
	struck = ordinary.killed > 0 && ordinary.alive < CLIENTS;
	if (!struck)
		warnx("without sharing all clients lived as well");
	return struck && lived ? 0 : 1;
}
