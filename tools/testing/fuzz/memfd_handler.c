// SPDX-License-Identifier: GPL-2.0-only
/*
 * Operations of memfd_fuzz by which the file is protected and events are handled: calls
 * of this process, which has the event fd.
 */
#include "memfd_fuzz.h"

#include <poll.h>

static int read_events[MAX_EVENTS], nr_read;

static long call_protect(const unsigned int *from_nr, int prot, unsigned int flags,
			 bool handler)
{
	unsigned int first = hot[from_nr[0]];
	unsigned int last = hot[last_of(from_nr[0], from_nr[1])];
	struct memfd_protect_range range = {
		.offset = first * PAGE,
		.length = from_nr[1] ? (last - first + 1) * PAGE : 0,
		.prot = prot,
		.flags = flags,
	};

	if (handler)
		return result(ioctl(event_fd, MEMFD_NOTIFY_PROTECT, &range));
	return result(syscall(SYS_memfd_protect, fd, range.offset, range.length, prot,
			      flags));
}

static bool protect(const unsigned int *from_nr, enum mode mode, unsigned int how)
{
	static const unsigned int flags[] = {
		[MODE_WAIT] = MEMFD_PROTECT_WAIT, [MODE_ASYNC] = MEMFD_PROTECT_ASYNC,
		[MODE_DENY] = MEMFD_PROTECT_DENY,
	};
	unsigned int first = hot[from_nr[0]];
	unsigned int last = from_nr[1] ? hot[last_of(from_nr[0], from_nr[1])] : m->pages;
	bool handler = how && m->open;
	long ret = call_protect(from_nr, mode ? PROT_READ : PROT_READ | PROT_WRITE,
				flags[mode], handler);

	expect("memfd_protect", ret, model_protect(m, first, last, mode, handler));
	if (ret == -EBUSY)
		check_busy();
	return !ret;
}

bool do_protect(const unsigned int *arg)
{
		static const enum mode modes[] = {
		MODE_WAIT, MODE_ASYNC, MODE_DENY, MODE_WAIT, MODE_ASYNC,
	};

	return protect(arg, modes[arg[2]], arg[3] == 3);
}

bool do_unprotect(const unsigned int *arg)
{
	return protect(arg, MODE_NONE, arg[2] == 3);
}

bool do_notify(const unsigned int *arg)
{
	unsigned int flags = MEMFD_NOTIFY_NONBLOCK | (arg[0] ? 0 : MEMFD_NOTIFY_KERNEL);
	long ret = result(syscall(SYS_memfd_notify, fd, flags));
	long want = model_notify(m, flags);

	expect("memfd_notify", ret < 0 ? ret : 0, want);
	if (!want)
		event_fd = ret;
	return !want;
}

bool do_close(const unsigned int *arg)
{
	if (!m->open)
		return false;
	close(event_fd);
	event_fd = -1;
	model_close(m);
	nr_read = 0;
	return true;
}

static bool same_record(const struct memfd_event *got, int nr)
{
	const struct event *e = &m->events[nr];
	uint64_t offset = e->first * PAGE, end = (e->last + 1) * PAGE;
	bool pid = false;

	if (got->len != sizeof(*got) || got->type != e->type ||
	    got->flags != e->flags || got->pid != got->tid ||
	    !got->cookie != !(e->flags & MEMFD_EVENT_F_WAITING))
		return false;
	for (unsigned int i = 0; i < PROCESSES; i++)
		if ((e->writers & (1U << i)) && pid_of[nr][i] == got->pid)
			pid = true;
	if (!pid)
		return false;
	/* That of any write which was logged: it is told by the first. */
	if (e->type == MEMFD_EVENT_DIRTY)
		return got->offset >= offset && got->offset + got->length <= end;
	return got->offset == offset && got->offset + got->length == end;
}

/* Finds what a record tells among the oldest events */
static void check_record(const struct memfd_event *got)
{
	int oldest = NO_EVENT;

	for (int i = 0; i < m->nr_events; i++) {
		struct event *e = &m->events[i];

		if (!e->unread)
			continue;
		if (oldest == NO_EVENT)
			oldest = i;
		if (e->batch != m->events[oldest].batch)
			break;
		if (!same_record(got, i))
			continue;
		e->unread = false;
		e->cookie = got->cookie;
		if (got->cookie)
			read_events[nr_read++] = i;
		return;
	}
	fail("event", "type %u, flags %u, %llu+%llu, pid %d; not %u, %u, page %u to %u, by %#x",
	     got->type, got->flags, got->offset, got->length, got->pid,
	     m->events[oldest].type, m->events[oldest].flags, m->events[oldest].first,
	     m->events[oldest].last, m->events[oldest].writers);
}

bool do_events(const unsigned int *arg)
{
	struct memfd_event record[8];
	unsigned int waiters, pending, unread, nr = arg[0] + 1;
	long ret;

	if (!m->open)
		return false;
	model_counts(m, &waiters, &pending, &unread);
	if (arg[1] == 1) {
		expect("read with a small buffer",
		       result(read(event_fd, record, sizeof(record[0]) - 1)), -EINVAL);
		return true;
	}
	if (arg[1] == 2) {
		expect("read to nowhere", result(read(event_fd, (void *)BASE, sizeof(record))),
		       unread ? -EFAULT : -EAGAIN);
		return true;
	}
	if (nr > unread)
		nr = unread;
	ret = result(read(event_fd, record, (arg[0] + 1) * sizeof(record[0])));
	expect("read", ret, nr ? (long)(nr * sizeof(record[0])) : -EAGAIN);
	for (unsigned int i = 0; i < nr; i++)
		check_record(&record[i]);
	return nr;
}

static bool kernel_waits_for(int nr)
{
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && m->process[i].event == nr &&
		    m->process[i].access.change >= CHANGE_COPY)
			return true;
	return false;
}

int ioctl_resolve(uint64_t cookie, unsigned int action)
{
	struct memfd_resolve resolve = { .cookie = cookie, .action = action };

	return result(ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, &resolve));
}

/* One of those that can be resolved, if there are any, or one that was */
static int event_to_resolve(unsigned int which)
{
	for (int i = nr_read; i--; )
		if (m->events[read_events[i]].alive && !which--)
			return read_events[i];
	return which < (unsigned int)nr_read ? read_events[nr_read - 1 - which] : NO_EVENT;
}

bool do_resolve(const unsigned int *arg)
{
	unsigned int action = arg[1] ? MEMFD_RESOLVE_DENY : MEMFD_RESOLVE_ALLOW;
	int nr;

	if (!m->open)
		return false;
	if (!arg[2])
		do_events((unsigned int []){ 7, 0 });
	nr = event_to_resolve(arg[0]);
	if (nr == NO_EVENT) {
		expect("resolving nothing", ioctl_resolve(UINT64_MAX, action), -ENOENT);
		return false;
	}
	/* A copy that is denied may be tried again byte by byte. */
	if (kernel_waits_for(nr))
		action = MEMFD_RESOLVE_ALLOW;
	expect("MEMFD_NOTIFY_RESOLVE", ioctl_resolve(m->events[nr].cookie, action),
	       model_resolve(m, nr, action == MEMFD_RESOLVE_ALLOW));
	return true;
}

bool do_scan(const unsigned int *arg)
{
	static const unsigned int room[] = { 64, 1, 2, 3, 64 };
	struct model_range want[64];
	unsigned int nr, max = room[arg[2]];
	unsigned int first = hot[arg[0]];
	unsigned int last = arg[1] ? hot[last_of(arg[0], arg[1])] : m->pages;
	struct memfd_range got[64];
	struct memfd_scan scan = {
		.start = first * PAGE, .end = arg[1] ? (last + 1) * PAGE : 0,
		.ranges = (uintptr_t)got, .nr_ranges = max,
		.flags = arg[3] ? MEMFD_SCAN_REPROTECT : 0,
	};
	uint64_t end;

	if (!m->open)
		return false;
	nr = model_scan(m, first, last, max, arg[3], want);
	expect("MEMFD_NOTIFY_SCAN", result(ioctl(event_fd, MEMFD_NOTIFY_SCAN, &scan)), nr);
	for (unsigned int i = 0; i < nr; i++)
		if (got[i].offset != want[i].first * PAGE ||
		    got[i].length != want[i].nr * PAGE)
			fail("scan", "range %u: %llu bytes at %llu, not %u pages from %u on",
			     i, got[i].length, got[i].offset, want[i].nr, want[i].first);
	end = nr == max ? (want[nr - 1].first + want[nr - 1].nr) * PAGE :
	      arg[1] ? (last + 1) * PAGE : 1ULL << 63;
	if (scan.walk_end != end)
		fail("scan", "walk_end: %llu, not %llu", scan.walk_end,
		     (unsigned long long)end);
	return nr;
}

bool do_seal(const unsigned int *arg)
{
	static const unsigned int seals[] = {
		F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_PROTECT, F_SEAL_FUTURE_WRITE,
		F_SEAL_WRITE, F_SEAL_SEAL,
	};
	long want = model_seal(m, seals[arg[0]]);

	expect("F_ADD_SEALS", result(fcntl(fd, F_ADD_SEALS, seals[arg[0]])), want);
	expect("F_GET_SEALS", result(fcntl(fd, F_GET_SEALS)), m->seals);
	return !want;
}

/*
 * Calls that are wrong
 */

enum { ON_FILE, ON_READ_ONLY, ON_NOTHING, ON_PIPE };

static const struct {
	const char *name;
	int on;
	uint64_t offset, length;
	int prot;
	unsigned int flags;
	long want;
} bad_protects[] = {
	{ "offset 1", ON_FILE, 1, PAGE, PROT_READ, 2, -EINVAL },
	{ "length 1", ON_FILE, 0, 1, PROT_READ, 2, -EINVAL },
	{ "negative", ON_FILE, 1ULL << 63, PAGE, PROT_READ, 2, -EINVAL },
	{ "overflow", ON_FILE, (1ULL << 63) - PAGE, 2 * PAGE, PROT_READ, 2, -EINVAL },
	{ "PROT_NONE", ON_FILE, 0, 0, PROT_NONE, 0, -EINVAL },
	{ "PROT_WRITE", ON_FILE, 0, 0, PROT_WRITE, 0, -EINVAL },
	{ "mode 3", ON_FILE, 0, 0, PROT_READ, 3, -EINVAL },
	{ "flags to unprotect", ON_FILE, 0, 0, PROT_READ | PROT_WRITE, 1, -EINVAL },
	{ "read-only", ON_READ_ONLY, 1, 1, 0, 9, -EBADF },
	{ "not open", ON_NOTHING, 0, 0, PROT_READ, 2, -EBADF },
	{ "a pipe", ON_PIPE, 0, 0, PROT_READ, 2, -EINVAL },
};

static const struct {
	const char *name;
	uint64_t start, end, nr, flags;
	long want;
} bad_scans[] = {
	{ "no room", 0, 0, 0, 0, -EINVAL },
	{ "end before start", 8192, 4096, 1, 0, -EINVAL },
	{ "flags 2", 0, 0, 1, 2, -EINVAL },
	{ "unaligned", 1, 0, 1, 0, -EINVAL },
	{ "end too large", 0, (1ULL << 63) + 4096, 1, 0, -EINVAL },
	{ "nothing to scan", 4096, 4096, 1, MEMFD_SCAN_REPROTECT, 0 },
};

static const struct {
	const char *name;
	unsigned int action, reserved;
} bad_resolves[] = {
	{ "action 2", 2, 0 },
	{ "reserved 1", 0, 1 },
};

static void bad_protect(unsigned int i, bool handler)
{
	const int files[] = { fd, fd_read, -1, pipes[0][1] };
	struct memfd_protect_range range = {
		bad_protects[i].offset, bad_protects[i].length, bad_protects[i].prot,
		bad_protects[i].flags,
	};
	long ret;

	if (handler && bad_protects[i].on == ON_FILE)
		ret = ioctl(event_fd, MEMFD_NOTIFY_PROTECT, &range);
	else
		ret = syscall(SYS_memfd_protect, files[bad_protects[i].on], range.offset,
			      range.length, range.prot, range.flags);
	expect(bad_protects[i].name, result(ret), bad_protects[i].want);
}

static void bad_scan(unsigned int i)
{
	struct memfd_range range;
	struct memfd_scan scan = {
		.start = bad_scans[i].start, .end = bad_scans[i].end,
		.nr_ranges = bad_scans[i].nr, .flags = bad_scans[i].flags,
		.ranges = (uintptr_t)&range,
	};

	expect(bad_scans[i].name, result(ioctl(event_fd, MEMFD_NOTIFY_SCAN, &scan)),
	       bad_scans[i].want);
}

static void bad_resolve(unsigned int i)
{
	struct memfd_resolve resolve = {
		UINT64_MAX, bad_resolves[i].action, bad_resolves[i].reserved,
	};

	expect(bad_resolves[i].name,
	       result(ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, &resolve)), -EINVAL);
}

bool do_bad(const unsigned int *arg)
{
	unsigned int which = arg[0];

	if (which < NR(bad_protects)) {
		bad_protect(which, m->open && arg[1]);
		return true;
	}
	which -= NR(bad_protects);
	if (!m->open) {
		expect("notify with flags", result(syscall(SYS_memfd_notify, fd, 4)), -EINVAL);
		expect("notify read-only", result(syscall(SYS_memfd_notify, fd_read, 0)),
		       -EBADF);
		return true;
	}
	if (which < NR(bad_scans)) {
		bad_scan(which);
	} else if (which - NR(bad_scans) < NR(bad_resolves)) {
		bad_resolve(which - NR(bad_scans));
	} else {
		expect("no such ioctl", result(ioctl(event_fd, _IO('M', 99))), -ENOTTY);
		expect("lseek", result(lseek(event_fd, 0, SEEK_SET)), -ESPIPE);
		expect("ioctl to nowhere",
		       result(ioctl(event_fd, MEMFD_NOTIFY_RESOLVE, NULL)), -EFAULT);
	}
	return true;
}
