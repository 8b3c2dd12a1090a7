// SPDX-License-Identifier: GPL-2.0-only
/*
 * See memfd_model.h.
 */
#include "fuzz.h"
#include "memfd_model.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

bool model_full;

const char * const model_breaks[] = {
	[BREAK_CONTENTS] = "contents",
	[BREAK_DENY] = "deny",
	[BREAK_ERRNO] = "errno",
	[BREAK_EVENT] = "event",
	[BREAK_LOG] = "log",
	[BREAK_WAKE] = "wake",
	[BREAK_PRIVATE] = "private",
	[BREAK_FORK] = "fork",
	[BREAK_PIN] = "pin",
	NULL
};

static unsigned int min_(unsigned int a, unsigned int b)
{
	return a < b ? a : b;
}

/* Pages that the file has, a part of one at its end included */
static unsigned int file_pages(const struct model *m)
{
	return (m->size + PAGE - 1) / PAGE;
}

void model_init(struct model *m, unsigned int pages, unsigned int window)
{
	memset(m, 0, sizeof(*m));
	m->pages = pages;
	m->window = window;
	m->data = calloc(pages, PAGE);
	if (!m->data)
		err(3, "the model");
	m->dirty = NO_EVENT;
	for (unsigned int i = 0; i < PROCESSES; i++) {
		m->process[i].event = NO_EVENT;
		m->process[i].left = NO_EVENT;
		m->process[i].pin = NO_PAGE;
	}
}

/*
 * Events
 */

static int new_event(struct model *m, unsigned int type, unsigned int flags,
		     unsigned int first, unsigned int last, unsigned int process)
{
	struct event *e;

	if (m->nr_events == MAX_EVENTS) {
		model_full = true;
		m->nr_events--;
	}
	e = &m->events[m->nr_events];
	*e = (struct event){
		.type = type, .flags = flags, .first = first, .last = last,
		.writers = 1U << process, .unread = true, .batch = m->batch,
	};
	return m->nr_events++;
}

static bool writes(unsigned int type)
{
	return type == MEMFD_EVENT_FAULT || type == MEMFD_EVENT_WRITE;
}

/* Two writes of the same pages are one event, but data is not a hole */
static bool same_event(const struct event *e, unsigned int type,
		       unsigned int first, unsigned int last)
{
	return e->first == first && e->last == last &&
	       (e->type == type || (writes(e->type) && writes(type)));
}

static void end_event(struct model *m, int nr, bool denied)
{
	struct event *e = &m->events[nr];

	e->alive = false;
	e->unread = false;
	e->denied = denied;
	for (unsigned int i = 0; i < PROCESSES; i++) {
		struct process *p = &m->process[i];

		if (p->waits && p->event == nr && !p->woken) {
			p->woken = true;
			p->denied = denied;
		}
		if (p->left == nr && !denied)
			p->left = NO_EVENT;
	}
	e->waiters = 0;
}

/* Modes have changed: who waits for a page that is no WAIT page any more asks again */
static void recheck(struct model *m, unsigned int first, unsigned int last,
		    bool denied)
{
	for (int i = 0; i < m->nr_events; i++) {
		struct event *e = &m->events[i];

		if (broken == BREAK_WAKE && m->mode[first] == MODE_ASYNC)
			continue;
		if (e->alive && e->first <= last && e->last >= first &&
		    (denied || m->mode[e->first] != MODE_WAIT))
			end_event(m, i, false);
	}
}

/* An access of the kernel fails, or goes through, and that is told once a place */
static void report(struct model *m, unsigned int process, unsigned int page)
{
	for (int i = 0; i < m->nr_events; i++) {
		const struct event *e = &m->events[i];

		if (e->unread && !(e->flags & MEMFD_EVENT_F_WAITING) &&
		    e->type != MEMFD_EVENT_DIRTY &&
		    same_event(e, MEMFD_EVENT_FAULT, page, page))
			return;
	}
	new_event(m, MEMFD_EVENT_FAULT, MEMFD_EVENT_F_KERNEL, page, page, process);
}

/* A denial that was given while the process was away is for the same access only */
static bool was_denied(struct model *m, unsigned int process, unsigned int type,
		       unsigned int first, unsigned int last)
{
	struct process *p = &m->process[process];
	int left = p->left;

	if (left == NO_EVENT || !m->events[left].denied)
		return false;
	p->left = NO_EVENT;
	return same_event(&m->events[left], type, first, last);
}

static void wait_for(struct model *m, unsigned int process, unsigned int type,
		     unsigned int flags, unsigned int first, unsigned int last)
{
	struct process *p = &m->process[process];
	int nr = NO_EVENT;

	for (int i = 0; i < m->nr_events; i++)
		if (m->events[i].alive &&
		    same_event(&m->events[i], type, first, last))
			nr = i;
	if (p->left != NO_EVENT && p->left != nr) {
		if (m->events[p->left].alive)
			end_event(m, p->left, false);
		p->left = NO_EVENT;
	}
	flags |= MEMFD_EVENT_F_WAITING;
	if (nr == NO_EVENT) {
		nr = new_event(m, type, flags, first, last, process);
		m->events[nr].alive = true;
	} else if (m->events[nr].unread) {
		m->events[nr].flags |= flags;
	}
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].left == nr)
			m->process[i].left = NO_EVENT;
	m->events[nr].waiters++;
	p->event = nr;
	p->waits = true;
	p->woken = false;
	p->denied = false;
}

/*
 * The log
 */

static bool log_empty(const struct model *m)
{
	return !memchr(m->log, 1, m->pages + 1);
}

static void log_shrunk(struct model *m)
{
	if (!log_empty(m))
		return;
	if (m->dirty != NO_EVENT)
		m->events[m->dirty].unread = false;
	m->told = false;
}

static void tell_dirty(struct model *m, unsigned int process,
		       unsigned int first, unsigned int last)
{
	struct event *e = m->dirty == NO_EVENT ? NULL : &m->events[m->dirty];

	if (!m->told && !(e && e->unread)) {
		m->dirty = new_event(m, MEMFD_EVENT_DIRTY, 0, first, last, process);
	} else if (e && e->unread && e->batch == m->batch) {
		/* Who of those that go on at once is the first is not known. */
		e->first = min_(e->first, first);
		if (last > e->last)
			e->last = last;
		e->writers |= 1U << process;
	}
	m->told = true;
}

static void log_write(struct model *m, unsigned int process,
		      unsigned int first, unsigned int last)
{
	bool any = false;

	for (unsigned int i = first; i <= last; i++) {
		if (m->mode[i] == MODE_ASYNC) {
			m->mode[i] = MODE_NONE;
			m->log[i] = 1;
			m->logged_in[i] = m->batch;
		}
		/* It may have been this one that logged what others write at once. */
		any |= m->log[i] && m->logged_in[i] == m->batch;
	}
	if (any)
		tell_dirty(m, process, first, last);
}

/*
 * Calls of the handler
 */

#define SEALS_AGAINST	(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_PROTECT)

/* process_vm_writev() waits for one page, and has those before it */
static bool pinned_by_waiter(const struct model *m, unsigned int page)
{
	for (unsigned int i = 0; i < PROCESSES; i++) {
		const struct access *a = &m->process[i].access;
		const struct mapped *window = m->process[a->owner].window;

		if (!m->process[i].waits || a->change != CHANGE_PINNED || !a->done)
			continue;
		for (uint64_t at = a->at / PAGE; at <= (a->at + a->done - 1) / PAGE; at++)
			if (window[at].shared && window[at].page == page)
				return true;
	}
	return false;
}

bool model_pinned(const struct model *m, unsigned int page)
{
	return m->pinned[page] || pinned_by_waiter(m, page);
}

static bool any_pinned(const struct model *m, unsigned int first, unsigned int last)
{
	for (unsigned int i = first; i <= last; i++)
		if (model_pinned(m, i))
			return true;
	return false;
}

long model_protect(struct model *m, unsigned int first, unsigned int last,
		   enum mode mode, bool handler)
{
	if (!m->protectable)
		return -EOPNOTSUPP;
	if (!handler && (m->seals & SEALS_AGAINST))
		return -EPERM;
	if ((mode == MODE_WAIT || mode == MODE_ASYNC) && !m->open)
		return -ENXIO;
	if (broken != BREAK_PIN && mode != MODE_NONE && any_pinned(m, first, last))
		return -EBUSY;
	if (broken == BREAK_DENY && mode == MODE_DENY && last > first)
		last--;
	for (unsigned int i = first; i <= last; i++) {
		m->mode[i] = mode;
		m->async[i] = mode == MODE_ASYNC;
		if (mode == MODE_ASYNC)
			m->log[i] = 0;
	}
	if (mode == MODE_ASYNC)
		log_shrunk(m);
	recheck(m, first, last, mode == MODE_DENY);
	return 0;
}

long model_notify(struct model *m, unsigned int flags)
{
	if (!m->protectable)
		return -EOPNOTSUPP;
	if (m->seals & SEALS_AGAINST)
		return -EPERM;
	if (m->open)
		return -EBUSY;
	m->open = true;
	m->kernel = flags & MEMFD_NOTIFY_KERNEL;
	return 0;
}

void model_close(struct model *m)
{
	m->open = false;
	m->told = false;
	for (unsigned int i = 0; i <= m->pages; i++) {
		if (m->mode[i] != MODE_DENY)
			m->mode[i] = MODE_NONE;
		m->async[i] = 0;
		m->log[i] = 0;
	}
	for (int i = 0; i < m->nr_events; i++)
		if (m->events[i].alive || m->events[i].unread)
			end_event(m, i, false);
	for (unsigned int i = 0; i < PROCESSES; i++)
		m->process[i].left = NO_EVENT;
}

long model_resolve(struct model *m, int nr, bool allow)
{
	struct event *e = &m->events[nr];

	if (!e->alive)
		return -ENOENT;
	if (!allow) {
		end_event(m, nr, true);
		return 0;
	}
	for (unsigned int i = e->first; i <= e->last; i++)
		if (m->mode[i] == MODE_WAIT)
			m->mode[i] = MODE_NONE;
	recheck(m, e->first, e->last, false);
	return 0;
}

unsigned int model_scan(struct model *m, unsigned int first, unsigned int last,
			unsigned int max, bool take, struct model_range *ranges)
{
	unsigned int nr = 0;

	for (unsigned int i = first; i <= last && i < m->pages; i++) {
		if (!m->log[i])
			continue;
		if (nr && ranges[nr - 1].first + ranges[nr - 1].nr == i) {
			ranges[nr - 1].nr++;
		} else {
			if (nr == max)
				break;
			ranges[nr++] = (struct model_range){ i, 1 };
		}
		if (!take)
			continue;
		if (broken == BREAK_LOG && nr > 1)
			continue;
		m->log[i] = 0;
		if (m->async[i] && m->mode[i] == MODE_NONE)
			m->mode[i] = MODE_ASYNC;
	}
	if (take && nr) {
		m->told = false;
		log_shrunk(m);
	}
	/* What is pinned can be written at any time. */
	for (unsigned int i = 0; take && i < nr; i++)
		for (unsigned int j = 0; j < ranges[i].nr; j++)
			if (model_pinned(m, ranges[i].first + j) && broken != BREAK_PIN)
				m->log[ranges[i].first + j] = 1;
	return nr;
}

static bool mapped_for_writing(const struct model *m)
{
	for (unsigned int i = 0; i < PROCESSES; i++)
		for (unsigned int j = 0; j < m->window; j++) {
			const struct mapped *page = &m->process[i].window[j];

			if (m->process[i].alive && page->mapped &&
			    page->shared && page->may_write)
				return true;
		}
	return false;
}

long model_seal(struct model *m, unsigned int seals)
{
	if ((seals & F_SEAL_PROTECT) && !m->protectable)
		return -EINVAL;
	if (m->seals & F_SEAL_SEAL)
		return -EPERM;
	if ((seals & F_SEAL_WRITE) && !(m->seals & F_SEAL_WRITE) &&
	    (mapped_for_writing(m) || any_pinned(m, 0, m->pages)))
		return -EBUSY;
	m->seals |= seals;
	return 0;
}

/*
 * Contents
 */

void model_drop_copy(struct mapped *page)
{
	free(page->copy);
	page->copy = NULL;
}

void model_grow(struct model *m, uint64_t size)
{
	if (size > m->size)
		m->size = size;
}

/* Pages are no longer those of the file, whoever has them */
static void forget_pins(struct model *m, unsigned int first, unsigned int end)
{
	for (unsigned int i = first; i < end; i++)
		m->pinned[i] = 0;
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].pin >= (int)first && m->process[i].pin < (int)end)
			m->process[i].pin = NO_PAGE;
}

void model_unpin(struct model *m, unsigned int process)
{
	struct process *p = &m->process[process];

	if (p->pin != NO_PAGE)
		m->pinned[p->pin]--;
	p->pin = NO_PAGE;
}

static void shrink(struct model *m, uint64_t size)
{
	/* The rest of its last page too, which a mapping can write behind the end. */
	memset(m->data + size, 0, m->pages * PAGE - size);
	m->size = size;
	forget_pins(m, file_pages(m), m->pages);
	/* Private copies go with their pages; that of the last one stays. */
	for (unsigned int i = 0; i < PROCESSES; i++)
		for (unsigned int j = 0; j < m->window; j++) {
			struct mapped *page = &m->process[i].window[j];

			if (page->copy && page->page >= file_pages(m))
				model_drop_copy(page);
		}
}

/* Bytes of the window, as a process would load them; NULL: it cannot */
static unsigned char *private_byte(struct model *m, struct mapped *page)
{
	if (!page->copy) {
		page->copy = malloc(PAGE);
		if (!page->copy)
			err(3, "the model");
		memcpy(page->copy, m->data + page->page * PAGE, PAGE);
	}
	return page->copy;
}

/*
 * Accesses
 */

static void signalled(struct outcome *outcome, int sig, int code)
{
	outcome->sig = sig;
	outcome->code = code;
}

enum { GO_ON, WAITS, DENIED };

/* What a fault for writing meets at a page of the file, which need not exist */
static int ask_fault(struct model *m, unsigned int process, unsigned int page,
		     bool kernel)
{
	switch (m->mode[page]) {
	case MODE_DENY:
		return DENIED;
	case MODE_ASYNC:
	case MODE_NONE:
		log_write(m, process, page, page);
		return GO_ON;
	case MODE_WAIT:
		if (was_denied(m, process, MEMFD_EVENT_FAULT, page, page))
			return DENIED;
		if (kernel && !m->kernel) {
			report(m, process, page);
			return DENIED;
		}
		wait_for(m, process, MEMFD_EVENT_FAULT,
			 kernel ? MEMFD_EVENT_F_KERNEL : 0, page, page);
		return WAITS;
	}
	return GO_ON;
}

static void store(struct model *m, unsigned int process, struct access *a,
		  struct outcome *outcome)
{
	struct mapped *page = &m->process[a->owner].window[a->at / PAGE];
	unsigned char *to;

	if (!page->mapped) {
		signalled(outcome, SIGSEGV, SEGV_MAPERR);
		return;
	}
	if (!(page->prot & PROT_WRITE)) {
		signalled(outcome, SIGSEGV, SEGV_ACCERR);
		return;
	}
	if (page->shared) {
		switch (ask_fault(m, process, page->page, false)) {
		case WAITS:
			outcome->waits = true;
			return;
		case DENIED:
			signalled(outcome, SIGBUS, BUS_ADRERR);
			return;
		}
	}
	if (page->page >= file_pages(m)) {
		signalled(outcome, SIGBUS, BUS_ADRERR);
		return;
	}
	to = page->shared || broken == BREAK_PRIVATE ?
	     m->data + page->page * PAGE : private_byte(m, page);
	memset(to + a->at % PAGE, a->value, CELL);
}

/* What a system call meets that changes pages: all of them are looked at first */
static long ask_call(struct model *m, unsigned int process, unsigned int type,
		     unsigned int first, unsigned int last, bool nowait)
{
	unsigned int from, to;

	for (unsigned int i = first; i <= last; i++)
		if (m->mode[i] == MODE_DENY)
			return broken == BREAK_ERRNO ? -EACCES : -EPERM;
	for (from = first; from <= last; from++)
		if (m->mode[from] == MODE_WAIT)
			break;
	if (from > last) {
		log_write(m, process, first, last);
		return 0;
	}
	if (nowait)
		return -EAGAIN;
	for (to = from; to < last && m->mode[to + 1] == MODE_WAIT; )
		to++;
	if (broken == BREAK_EVENT)
		to = from;
	if (was_denied(m, process, type, from, to))
		return -EPERM;
	wait_for(m, process, type, 0, from, to);
	return WAITS;
}

/* Asks for a call. True if it may be carried out */
static bool may_change(struct model *m, unsigned int process, unsigned int type,
		       unsigned int first, unsigned int last, bool nowait,
		       struct outcome *outcome)
{
	long err = ask_call(m, process, type, first, last, nowait);

	outcome->waits = err == WAITS;
	outcome->ret = err;
	return !err;
}

static void write_file(struct model *m, unsigned int process, struct access *a,
		       struct outcome *outcome)
{
	outcome->ret = 0;
	if (!a->len)
		return;
	outcome->ret = -EPERM;
	if (m->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return;
	/* The caller sees to it that no write is cut by this. */
	if ((m->seals & F_SEAL_GROW) && a->pos + a->len > m->size)
		return;
	if (!may_change(m, process, MEMFD_EVENT_WRITE, a->pos / PAGE,
			(a->pos + a->len - 1) / PAGE, a->nowait, outcome))
		return;
	model_grow(m, a->pos + a->len);
	memset(m->data + a->pos, a->value,
	       a->len - (broken == BREAK_CONTENTS && a->len > PAGE));
	outcome->ret = a->len;
}

static void punch(struct model *m, unsigned int process, struct access *a,
		  struct outcome *outcome)
{
	uint64_t end = a->pos + a->len;

	outcome->ret = -EPERM;
	if (m->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return;
	outcome->ret = 0;
	if (a->pos / PAGE >= file_pages(m))
		return;
	if (!may_change(m, process, MEMFD_EVENT_PUNCH, a->pos / PAGE,
			((end < m->size ? end : m->size) - 1) / PAGE, false,
			outcome))
		return;
	memset(m->data + a->pos, 0, a->len);
	forget_pins(m, (a->pos + PAGE - 1) / PAGE, end / PAGE);
}

static void truncate_file(struct model *m, unsigned int process,
			  struct access *a, struct outcome *outcome)
{
	outcome->ret = -EPERM;
	if ((a->pos < m->size && (m->seals & F_SEAL_SHRINK)) ||
	    (a->pos > m->size && (m->seals & F_SEAL_GROW)))
		return;
	outcome->ret = 0;
	if (a->pos <= m->size && a->pos / PAGE < file_pages(m) &&
	    !may_change(m, process, MEMFD_EVENT_TRUNCATE, a->pos / PAGE,
			file_pages(m) - 1, false, outcome))
		return;
	if (a->pos > m->size)
		model_grow(m, a->pos);
	else
		shrink(m, a->pos);
}

/* The kernel gets a page of a mapping for writing: where to, or NULL */
static unsigned char *kernel_page(struct model *m, unsigned int process,
				  struct mapped *page, bool *waits)
{
	if (!page->mapped || !(page->prot & PROT_WRITE))
		return NULL;
	if (page->shared) {
		int answer = ask_fault(m, process, page->page, true);

		*waits = answer == WAITS;
		if (answer != GO_ON)
			return NULL;
	}
	if (page->page >= file_pages(m))
		return NULL;
	return page->shared ? m->data + page->page * PAGE : private_byte(m, page);
}

static void kernel_copies(struct model *m, unsigned int process,
			  struct access *a, struct outcome *outcome)
{
	struct mapped *window = m->process[a->owner].window;

	while (a->done < a->len) {
		uint64_t at = a->at + a->done, chunk = PAGE - at % PAGE;
		unsigned char *to = kernel_page(m, process, &window[at / PAGE],
						&outcome->waits);

		if (outcome->waits)
			return;
		if (!to)
			break;
		if (chunk > a->len - a->done)
			chunk = a->len - a->done;
		if (a->change == CHANGE_COPY)
			memset(to + at % PAGE, a->value, chunk);
		a->done += chunk;
	}
	if (a->change == CHANGE_PINNED)
		for (uint64_t i = 0; i < a->done; i++) {
			struct mapped *page = &window[(a->at + i) / PAGE];
			unsigned char *to = page->shared ?
				m->data + page->page * PAGE :
				private_byte(m, page);

			to[(a->at + i) % PAGE] = a->value;
		}
	if (a->change == CHANGE_PIN && a->done == a->len &&
	    window[a->at / PAGE].shared) {
		m->process[process].pin = window[a->at / PAGE].page;
		m->pinned[window[a->at / PAGE].page]++;
	}
	if (a->change == CHANGE_POPULATE || a->change == CHANGE_PIN)
		outcome->ret = a->done < a->len ? -EFAULT : 0;
	else
		outcome->ret = a->done ? (long)a->done : -EFAULT;
}

void model_resume(struct model *m, unsigned int process, struct outcome *outcome)
{
	struct process *p = &m->process[process];
	struct access *a = &p->access;
	bool denied = p->denied;

	*outcome = (struct outcome){ 0 };
	m->waits += p->waits;
	p->waits = false;
	p->woken = false;
	p->denied = false;
	p->event = NO_EVENT;
	if (denied && a->change == CHANGE_STORE) {
		signalled(outcome, SIGBUS, BUS_ADRERR);
		return;
	}
	if (denied) {
		outcome->ret = a->change >= CHANGE_COPY ?
			(a->done && a->change < CHANGE_POPULATE ?
			 (long)a->done : -EFAULT) : -EPERM;
		return;
	}
	switch (a->change) {
	case CHANGE_STORE:
		store(m, process, a, outcome);
		break;
	case CHANGE_WRITE:
		write_file(m, process, a, outcome);
		break;
	case CHANGE_PUNCH:
		punch(m, process, a, outcome);
		break;
	case CHANGE_TRUNCATE:
		truncate_file(m, process, a, outcome);
		break;
	default:
		kernel_copies(m, process, a, outcome);
	}
}

void model_access(struct model *m, unsigned int process,
		  const struct access *access, struct outcome *outcome)
{
	m->process[process].access = *access;
	model_resume(m, process, outcome);
}

/*
 * Pages of the file that an access changes, and whose state decides what comes of it.
 * Where it depends on the size of the file, everything behind that.
 */
static void pages_of(const struct model *m, const struct access *a,
		     unsigned int *first, unsigned int *last)
{
	const struct mapped *window = m->process[a->owner].window;

	switch (a->change) {
	case CHANGE_STORE:
		*first = window[a->at / PAGE].page;
		*last = *first;
		return;
	case CHANGE_WRITE:
	case CHANGE_PUNCH:
		*first = a->pos / PAGE;
		*last = a->len ? (a->pos + a->len - 1) / PAGE : *first;
		if (a->pos + a->len > m->size)
			*first = min_(*first, m->size / PAGE);
		return;
	case CHANGE_TRUNCATE:
		*first = min_(a->pos / PAGE, m->size / PAGE);
		*last = m->pages;
		return;
	default:
		*first = m->pages;
		*last = 0;
		for (uint64_t at = a->at; at < a->at + a->len; at++) {
			const struct mapped *page = &window[at / PAGE];

			if (!page->mapped)
				continue;
			*first = min_(*first, page->page);
			if (page->page > *last)
				*last = page->page;
		}
	}
}

/* Whether it would wait, by a look at the modes */
static bool would_wait(struct model *m, const struct access *a)
{
	unsigned int first, last;

	pages_of(m, a, &first, &last);
	if (last > file_pages(m) && a->change != CHANGE_WRITE)
		last = min_(last, m->pages);
	for (unsigned int i = first; i <= last; i++)
		if (m->mode[i] == MODE_WAIT)
			return true;
	return false;
}

bool model_conflicts(struct model *m, unsigned int process,
		     const struct access *a)
{
	unsigned int first, last;

	/* What is written to a page that the file has no more is lost. */
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (m->process[i].waits && m->process[i].access.change == CHANGE_PINNED &&
		    (a->change == CHANGE_PUNCH || a->change == CHANGE_TRUNCATE))
			return true;
	if (!would_wait(m, a))
		return false;
	pages_of(m, a, &first, &last);
	for (unsigned int i = 0; i < PROCESSES; i++) {
		const struct access *b = &m->process[i].access;
		unsigned int b_first, b_last;

		if (!m->process[i].waits)
			continue;
		/* Two stores are of different bytes: each process has its own. */
		if (a->change == CHANGE_STORE && b->change == CHANGE_STORE)
			continue;
		if (a->change != CHANGE_STORE && b->change != CHANGE_STORE)
			return true;
		pages_of(m, b, &b_first, &b_last);
		if (first <= b_last && last >= b_first)
			return true;
	}
	return false;
}

bool model_signal(struct model *m, unsigned int process)
{
	struct process *p = &m->process[process];
	int nr = p->event;
	struct event *e = &m->events[nr];

	if (!--e->waiters) {
		if (e->unread)
			end_event(m, nr, false);
		else
			p->left = nr;
	}
	m->waits++;
	p->waits = false;
	p->woken = false;
	p->event = NO_EVENT;
	return p->access.change != CHANGE_STORE;
}

void model_kill(struct model *m, unsigned int process)
{
	struct process *p = &m->process[process];

	m->waits += p->waits;
	if (p->waits && !--m->events[p->event].waiters)
		end_event(m, p->event, false);
	if (p->left != NO_EVENT && m->events[p->left].alive)
		end_event(m, p->left, false);
	for (unsigned int i = 0; i < m->window; i++)
		model_drop_copy(&p->window[i]);
	memset(p, 0, sizeof(*p));
	p->event = NO_EVENT;
	p->left = NO_EVENT;
	p->pin = NO_PAGE;
}

void model_fork(struct model *m, unsigned int process, unsigned int child)
{
	const struct process *p = &m->process[process];
	struct process *c = &m->process[child];

	memset(c, 0, sizeof(*c));
	c->alive = true;
	c->event = NO_EVENT;
	c->left = NO_EVENT;
	c->pin = NO_PAGE;
	for (unsigned int i = 0; i < m->window; i++) {
		c->window[i] = p->window[i];
		if (!c->window[i].copy)
			continue;
		c->window[i].copy = NULL;
		if (broken != BREAK_FORK)
			memcpy(private_byte(m, &c->window[i]), p->window[i].copy, PAGE);
	}
}

/*
 * Figures of fdinfo
 */

unsigned int model_runs(const struct model *m, const uint8_t *map, uint8_t value)
{
	unsigned int runs = 0;

	for (unsigned int i = 0; i <= m->pages; i++)
		if (map[i] == value && (!i || map[i - 1] != value))
			runs++;
	return runs;
}

void model_counts(const struct model *m, unsigned int *waiters,
		  unsigned int *pending, unsigned int *unread)
{
	*waiters = 0;
	*pending = 0;
	*unread = 0;
	for (unsigned int i = 0; i < PROCESSES; i++)
		*waiters += m->process[i].waits;
	for (int i = 0; i < m->nr_events; i++) {
		*pending += m->events[i].alive;
		*unread += m->events[i].unread;
	}
}
