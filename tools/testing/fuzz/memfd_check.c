// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel says of the file is compared with the model.
 */
#include "memfd_fuzz.h"

#include <poll.h>
#include <sys/stat.h>
#include <time.h>

static long field(const char *info, const char *name)
{
	const char *at = strstr(info, name);

	return at ? strtol(at + strlen(name), NULL, 10) : -1;
}

static void read_fdinfo(char *buf, size_t size)
{
	char path[64];
	ssize_t len;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	len = read(info, buf, size - 1);
	if (len < 0)
		err(3, "%s", path);
	buf[len] = 0;
	close(info);
}

struct figure {
	const char *name;
	long want;
};

/* True if all are so; the first that is not is left in *@wrong */
static bool figures_agree(const struct figure *figures, unsigned int nr,
			  const struct figure **wrong, long *got)
{
	char info[2048];

	read_fdinfo(info, sizeof(info));
	for (unsigned int i = 0; i < nr; i++) {
		*got = field(info, figures[i].name);
		*wrong = &figures[i];
		if (*got != figures[i].want)
			return false;
	}
	return true;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/* The page because of which memfd_protect() failed last */
void check_busy(void)
{
	char info[2048];
	long busy;

	read_fdinfo(info, sizeof(info));
	busy = field(info, "\nprotect_busy:\t");
	if (busy < 0 || busy % PAGE || busy / PAGE >= m->pages || !model_pinned(m, busy / PAGE))
		fail("figure", "protect_busy is %ld, which nobody has pinned", busy);
	counted(COUNT_BUSY);
}

void check_figures(void)
{
	unsigned int waiters, pending, unread;
	const struct figure *wrong;
	uint64_t end = now_ms() + LONG_MS;
	long got;

	if (!m->protectable)
		return;
	model_counts(m, &waiters, &pending, &unread);

	const struct figure figures[] = {
		/* Who was woken, or is to wait, may be on its way. */
		{ "\nevents:\t", m->nr_events },
		{ "\nwaits:\t", m->waits },
		{ "\nwaiters:\t", waiters },
		{ "\npending:\t", pending },
		{ "\nunread:\t", unread },
		{ "\nevent_fd:\t", m->open },
		{ "\nprotect_wait:\t", model_runs(m, m->mode, MODE_WAIT) },
		{ "\nprotect_async:\t", model_runs(m, m->mode, MODE_ASYNC) },
		{ "\nprotect_deny:\t", model_runs(m, m->mode, MODE_DENY) },
		{ "\nlog_ranges:\t", model_runs(m, m->log, 1) },
	};
	const unsigned int nr = sizeof(figures) / sizeof(*figures);

	while (!figures_agree(figures, nr, &wrong, &got)) {
		/* Nothing that goes on will change the others. */
		if (wrong - figures >= 5 || now_ms() > end)
			fail("figure", "%.*s is %ld, not %ld",
			     (int)strlen(wrong->name) - 3, wrong->name + 1, got, wrong->want);
		usleep(500);
	}
	if (m->open) {
		struct pollfd pfd = { .fd = event_fd, .events = POLLIN };

		poll(&pfd, 1, 0);
		if (pfd.revents != (unread ? POLLIN : 0))
			fail("poll", "poll() says %#x with %u unread events",
			     pfd.revents, unread);
	}
}

static void check_page(unsigned int page)
{
	static unsigned char got[PAGE];
	const unsigned char *want = m->data + page * PAGE;
	uint64_t len = m->size - page * PAGE;

	if (len > PAGE)
		len = PAGE;
	if (pread(fd_read, got, len, page * PAGE) != (ssize_t)len)
		fail("contents", "page %u cannot be read", page);
	for (unsigned int i = 0; i < len; i++)
		if (got[i] != want[i])
			fail("contents", "page %u, byte %u: %#x, not %#x", page, i,
			     got[i], want[i]);
}

void check_contents(bool all)
{
	struct stat st;

	if (fstat(fd, &st))
		err(3, "fstat");
	if (st.st_size != (off_t)m->size)
		fail("size", "%lld, not %llu", (long long)st.st_size,
		     (unsigned long long)m->size);
	for (unsigned int i = 0; i < (all ? m->pages : HOT); i++) {
		unsigned int page = all ? i : hot[i];

		if (page * PAGE < m->size)
			check_page(page);
	}
}

/* Who waits is not to have come to an end */
void check_waiters(void)
{
	struct answer answer;

	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && worker_answers(i, &answer, 0))
			fail("wait", "process %u does not wait: %s, signal %d", i,
			     name_of(answer.ret), answer.sig);
}

static void check_probe(unsigned int process, const struct probe *probe)
{
	const unsigned long at = probe->addr - BASE;
	const struct mapped *page = &m->process[process].window[at / PAGE];
	const unsigned char *data;
	uint64_t want = 0;
	int sig = 0;

	if (!page->mapped || page->prot == PROT_NONE) {
		sig = SIGSEGV;
	} else if (page->page >= (m->size + PAGE - 1) / PAGE) {
		sig = SIGBUS;
	} else {
		data = page->copy ? page->copy : m->data + page->page * PAGE;
		memcpy(&want, data + at % PAGE, sizeof(want));
	}
	if (probe->sig != sig)
		fail("signal", "process %u, load at %#lx: signal %d, not %d", process, at,
		     probe->sig, sig);
	if (!sig && probe->value != want)
		fail("contents", "process %u, load at %#lx: %#llx, not %#llx", process, at,
		     (unsigned long long)probe->value, (unsigned long long)want);
}

/* All that a process can load, and that anybody has stored */
void check_window(unsigned int process)
{
	struct probe *probe = (struct probe *)workers[process].scratch;
	struct order order = { .what = WORK_PROBE };
	struct answer answer;
	unsigned int nr = 0;

	for (unsigned int i = 0; i < HOT; i++)
		for (unsigned int place = 3; place < 6; place++)
			for (unsigned int cell = 0; cell < PROCESSES; cell++)
				probe[nr++].addr = address(hot[i] + shift_of(place)) +
						   cell * CELL;
	order.arg[0] = nr;
	if (!worker_does(process, &order, &answer))
		fail("wait", "process %u waits for loads, or died", process);
	for (unsigned int i = 0; i < nr; i++)
		check_probe(process, &probe[i]);
}
