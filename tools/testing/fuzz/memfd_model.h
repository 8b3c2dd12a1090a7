/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a memfd with MFD_ALLOW_PROTECT is to do, by its contract (memfd_protect(2),
 * memfd_notify(2), Documentation/userspace-api/memfd_protect.rst): contents, modes,
 * the log, events, and the mappings of some processes. It makes no system call.
 */
#ifndef FUZZ_MEMFD_MODEL_H
#define FUZZ_MEMFD_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE		4096UL
#define MAX_PAGES	1032
#define MAX_WINDOW	1560	/* pages of a process's part of the address space */
#define PROCESSES	5
#define MAX_EVENTS	1024
#define CELL		8	/* what a store writes */

enum mode { MODE_NONE, MODE_WAIT, MODE_ASYNC, MODE_DENY };

/* Events are counted from 0 in the order in which they were made; NO_EVENT is none */
#define NO_EVENT	(-1)
#define NO_PAGE		(-1)

/**
 * struct event - what the event fd tells, or has told
 * @type: MEMFD_EVENT_*.
 * @flags: MEMFD_EVENT_F_*.
 * @first: First page.
 * @last: Last page.
 * @writers: Bit set of processes of which one is the first writer.
 * @waiters: How many wait for it.
 * @alive: It can be resolved.
 * @unread: It can be read.
 * @denied: It was resolved by MEMFD_RESOLVE_DENY.
 * @batch: Events of one batch come in any order.
 * @cookie: When it was read.
 */
struct event {
	unsigned int type;
	unsigned int flags;
	unsigned int first, last;
	unsigned int writers;
	unsigned int waiters;
	bool alive;
	bool unread;
	bool denied;
	unsigned int batch;
	uint64_t cookie;
};

/* A page of a process's window */
struct mapped {
	bool mapped;
	bool shared;
	bool may_write;		/* mprotect() may make it writable */
	int prot;
	unsigned int page;	/* of the file */
	unsigned char *copy;	/* private: after the first store */
};

enum change {
	CHANGE_STORE,		/* a store of CELL bytes */
	CHANGE_WRITE,		/* write(2) and its kin */
	CHANGE_PUNCH,
	CHANGE_TRUNCATE,
	CHANGE_COPY,		/* the kernel copies to a mapping, byte by byte */
	CHANGE_PINNED,		/* the same to pages that it gets before */
	CHANGE_POPULATE,	/* MADV_POPULATE_WRITE: contents stay */
	CHANGE_PIN,		/* a buffer is registered with io_uring, one page */
};

/**
 * struct access - something that changes the file, perhaps
 * @change: How.
 * @at: Bytes from the start of the window, for what goes through a mapping.
 * @owner: Whose window that is.
 * @pos: Bytes from the start of the file, for what does not. Of CHANGE_TRUNCATE: the size.
 * @len: Bytes.
 * @value: What is written, byte for byte.
 * @nowait: RWF_NOWAIT.
 * @done: CHANGE_COPY: bytes that are copied already.
 */
struct access {
	enum change change;
	uint64_t at;
	unsigned int owner;
	uint64_t pos;
	uint64_t len;
	unsigned char value;
	bool nowait;
	uint64_t done;
};

/**
 * struct outcome - what comes of an access
 * @waits: It waits for the process's event.
 * @ret: What the system call returns.
 * @sig: The signal that a store gets, or 0.
 * @code: Its si_code.
 */
struct outcome {
	bool waits;
	long ret;
	int sig;
	int code;
};

struct process {
	bool alive;
	struct mapped window[MAX_WINDOW];
	bool waits;
	bool woken;
	bool denied;		/* woken by MEMFD_RESOLVE_DENY */
	int event;		/* that it waits for */
	int left;		/* that it left because of a signal */
	int pin;		/* page of the file that it keeps pinned, or NO_PAGE */
	struct access access;
};

struct model {
	/* The file */
	unsigned int pages;	/* looked at one by one; [pages] is for all behind */
	unsigned int window;	/* pages */
	uint64_t size;
	unsigned char *data;
	unsigned int seals;
	bool protectable;

	/* Its protection */
	uint8_t mode[MAX_PAGES + 1];
	uint8_t async[MAX_PAGES + 1];
	uint8_t log[MAX_PAGES + 1];
	unsigned int logged_in[MAX_PAGES + 1];	/* that batch, if it is in the log */
	uint8_t pinned[MAX_PAGES + 1];	/* how many pin it */
	bool open;		/* there is an event fd */
	bool kernel;		/* MEMFD_NOTIFY_KERNEL */
	bool told;		/* DIRTY was told since the last scan that took */
	int dirty;		/* the last DIRTY event */

	struct event events[MAX_EVENTS];
	int nr_events;
	unsigned int waits;	/* that have ended */
	unsigned int batch;

	struct process process[PROCESSES];
};

/*
 * What the model is to get wrong on purpose, so that what compares it with the kernel
 * can be seen to work. The order is that of model_breaks[].
 */
enum {
	BREAK_CONTENTS, BREAK_DENY, BREAK_ERRNO, BREAK_EVENT, BREAK_LOG, BREAK_WAKE,
	BREAK_PRIVATE, BREAK_FORK, BREAK_PIN
};

extern const char * const model_breaks[];

/* What the model has no answer to: the number of events is exhausted */
extern bool model_full;

void model_init(struct model *m, unsigned int pages, unsigned int window);

/**
 * struct model_range - what a scan tells
 * @first: First page.
 * @nr: Pages.
 */
struct model_range {
	unsigned int first, nr;
};

/* Page range of memfd_protect(); last is m->pages if it has no end */
long model_protect(struct model *m, unsigned int first, unsigned int last,
		   enum mode mode, bool handler);
long model_notify(struct model *m, unsigned int flags);
void model_close(struct model *m);
long model_resolve(struct model *m, int event, bool allow);
unsigned int model_scan(struct model *m, unsigned int first, unsigned int last,
			unsigned int max, bool take, struct model_range *ranges);
long model_seal(struct model *m, unsigned int seals);

/* Begins an access of a process, or goes on with that it waits for */
void model_access(struct model *m, unsigned int process,
		  const struct access *access, struct outcome *outcome);
void model_resume(struct model *m, unsigned int process, struct outcome *outcome);
/* Whether an access could not be told from those that wait, once all go on at once */
bool model_conflicts(struct model *m, unsigned int process,
		     const struct access *access);
/* A signal handler ran: true if the call ends with EINTR, or else it waits again */
bool model_signal(struct model *m, unsigned int process);
/* Whether somebody may write to a page who need not ask any more */
bool model_pinned(const struct model *m, unsigned int page);
void model_unpin(struct model *m, unsigned int process);
void model_kill(struct model *m, unsigned int process);
void model_fork(struct model *m, unsigned int process, unsigned int child);
void model_grow(struct model *m, uint64_t size);

/* Runs of pages with a value: [i] for i > 0 */
unsigned int model_runs(const struct model *m, const uint8_t *map, uint8_t value);
void model_counts(const struct model *m, unsigned int *waiters,
		  unsigned int *pending, unsigned int *unread);

void model_drop_copy(struct mapped *page);

#endif /* FUZZ_MEMFD_MODEL_H */
