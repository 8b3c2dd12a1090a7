// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fuzzes memfd_protect(2) and memfd_notify(2): several processes map a memfd, change it in
 * every way there is, fork, and end, while it is protected and unprotected, events are
 * read and resolved, and pages are reclaimed and migrated. After each operation all is
 * compared with a model (memfd_model.h): what a call returned, which signal came, who
 * waits, what is in the log and in the queue, and what is in the file.
 *
 * Operations are carried out one after the other, by worker processes. One that the
 * model says waits is left alone until the model says that it goes on. This process has
 * the event fd and no mapping.
 */
#include "memfd_fuzz.h"

#include <sys/stat.h>

enum kind {
	OP_FILE, OP_MMAP, OP_MUNMAP, OP_MPROTECT, OP_MREMAP, OP_ADVISE, OP_STORE,
	OP_LOAD, OP_WRITE, OP_SPLICE, OP_COPY, OP_READ_INTO, OP_VM_WRITE, OP_POPULATE,
	OP_PIN, OP_UNPIN, OP_PUNCH, OP_REMOVE, OP_TRUNCATE, OP_ALLOCATE, OP_FORK,
	OP_KILL, OP_SIGNAL,
	OP_PROTECT, OP_UNPROTECT, OP_NOTIFY, OP_CLOSE, OP_EVENTS, OP_RESOLVE, OP_SCAN,
	OP_SEAL, OP_BAD, OP_RECLAIM, OP_MIGRATE, NR_KINDS
};

#define P	{ "process", PROCESSES }
#define AT	{ "at", HOT, true }
#define RANGE	{ "from", HOT, true }, { "nr", 9 }
#define PLACE	{ "place", 12 }		/* of a mapping: mostly where the page is in the file */

static const struct op_kind kinds[NR_KINDS] = {
	[OP_FILE] = { "file", 0, { { "tables", 2 }, { "share", 2 }, { "plain", 12 },
				   { "seals", 3 }, { "pages", 2 * HOT },
				   { "mapped", 8 }, { "notify", 8 },
				   { "all", 5 } } },
	[OP_MMAP] = { "mmap", 16, { P, RANGE, PLACE, { "prot", 6 }, { "private", 4 },
				    { "fd", 6 } } },
	[OP_MUNMAP] = { "munmap", 3, { P, RANGE, PLACE } },
	[OP_MPROTECT] = { "mprotect", 8, { P, RANGE, PLACE, { "prot", 8 } } },
	[OP_MREMAP] = { "mremap", 8, { P, RANGE, PLACE, { "to", 6 } } },
	[OP_ADVISE] = { "advise", 14, { P, RANGE, PLACE, { "advice", 8 } } },
	[OP_STORE] = { "store", 120, { P, AT, PLACE, { "value", VALUES } } },
	[OP_LOAD] = { "load", 30, { P, AT, PLACE, { "cell", PROCESSES } } },
	[OP_WRITE] = { "write", 30, { P, AT, { "in", 4 }, { "len", 9 },
				      { "value", VALUES }, { "nowait", 4 }, { "fd", 2 } } },
	[OP_SPLICE] = { "splice", 8, { P, AT, { "in", 4 }, { "len", 9 },
				       { "value", VALUES } } },
	[OP_COPY] = { "copy", 8, { P, AT, { "in", 4 }, { "len", 9 },
				   { "value", VALUES } } },
	[OP_READ_INTO] = { "read-into", 14, { P, AT, PLACE, { "in", 4 },
					      { "len", 9 }, { "value", VALUES } } },
	[OP_VM_WRITE] = { "vm-write", 14, { P, { "owner", PROCESSES }, AT,
					    { "in", 4 }, { "len", 9 },
					    { "value", VALUES } } },
	[OP_POPULATE] = { "populate", 8, { P, RANGE, PLACE } },
	[OP_PIN] = { "pin", 8, { P, AT, PLACE } },
	[OP_UNPIN] = { "unpin", 16, { P } },
	[OP_PUNCH] = { "punch", 10, { P, AT, { "in", 4 }, { "len", 9 } } },
	[OP_REMOVE] = { "remove", 6, { P, RANGE, PLACE } },
	[OP_TRUNCATE] = { "truncate", 10, { P, { "at", 2 * HOT }, { "in", 4 } } },
	[OP_ALLOCATE] = { "allocate", 5, { P, AT, { "len", 9 } } },
	[OP_FORK] = { "fork", 8, { P, { "child", PROCESSES } } },
	[OP_KILL] = { "kill", 5, { P } },
	[OP_SIGNAL] = { "signal", 12, { P } },
	[OP_PROTECT] = { "protect", 50, { RANGE, { "mode", 5 }, { "fd", 4 } } },
	[OP_UNPROTECT] = { "unprotect", 30, { RANGE, { "fd", 4 } } },
	[OP_NOTIFY] = { "notify", 8, { { "kernel", 3 } } },
	[OP_CLOSE] = { "close", 4, { { "unused", 1 } } },
	[OP_EVENTS] = { "events", 40, { { "nr", 5 }, { "bad", 12 } } },
	[OP_RESOLVE] = { "resolve", 50, { { "which", 5 }, { "deny", 2 }, { "unread", 3 } } },
	[OP_SCAN] = { "scan", 25, { RANGE, { "max", 5 }, { "take", 2 } } },
	[OP_SEAL] = { "seal", 2, { { "seal", 6 } } },
	[OP_BAD] = { "bad", 6, { { "which", 20 }, { "handler", 2 } } },
	[OP_RECLAIM] = { "reclaim", 5, { { "unused", 1 } } },
	[OP_MIGRATE] = { "migrate", 4, { P, { "node", 2 } } },
};

static const char * const counters[] = {
	[COUNT_WAITS] = "accesses waited",
	[COUNT_JOINED] = "of them joined the event of another",
	[COUNT_GOES_ON] = "went on",
	[COUNT_AGAIN] = "waited for the next range",
	[COUNT_REFUSED] = "were refused while they waited",
	[COUNT_REPORTS] = "events of accesses that failed",
	[COUNT_DIRTY] = "DIRTY events",
	[COUNT_KERNEL_WAITS] = "accesses of the kernel waited",
	[COUNT_LEFT] = "events that a signal left to be resolved",
	[COUNT_BUSY] = "calls of memfd_protect() failed because of a pin",
	NULL
};

struct model *m;
static const struct program *program;
unsigned int now;
unsigned int hot[HOT];
int fd, fd_again, fd_read, source, event_fd = -1;
int pipes[PROCESSES][2];
pid_t pid_of[MAX_EVENTS][PROCESSES];

static operation_fn * const operations[NR_KINDS] = {
	[OP_MMAP] = do_mmap, [OP_MUNMAP] = do_munmap, [OP_MPROTECT] = do_mprotect,
	[OP_MREMAP] = do_mremap, [OP_ADVISE] = do_advise, [OP_STORE] = do_store,
	[OP_LOAD] = do_load, [OP_WRITE] = do_write, [OP_SPLICE] = do_splice,
	[OP_COPY] = do_copy, [OP_READ_INTO] = do_read_into, [OP_VM_WRITE] = do_vm_write,
	[OP_POPULATE] = do_populate, [OP_PIN] = do_pin, [OP_UNPIN] = do_unpin,
	[OP_PUNCH] = do_punch, [OP_REMOVE] = do_remove,
	[OP_TRUNCATE] = do_truncate, [OP_ALLOCATE] = do_allocate, [OP_FORK] = do_fork,
	[OP_KILL] = do_kill, [OP_SIGNAL] = do_signal, [OP_PROTECT] = do_protect,
	[OP_UNPROTECT] = do_unprotect, [OP_NOTIFY] = do_notify, [OP_CLOSE] = do_close,
	[OP_EVENTS] = do_events, [OP_RESOLVE] = do_resolve, [OP_SCAN] = do_scan,
	[OP_SEAL] = do_seal, [OP_BAD] = do_bad, [OP_RECLAIM] = do_reclaim,
	[OP_MIGRATE] = do_migrate,
};

/*
 * A program
 */

static int open_again(int file, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	return open(path, flags | O_CLOEXEC);
}

static void make_source(void)
{
	unsigned char data[SOURCE];

	source = syscall(SYS_memfd_create, "source", MFD_CLOEXEC);
	for (unsigned int i = 0; i < VALUES; i++) {
		memset(data, byte_of(i), sizeof(data));
		if (pwrite(source, data, sizeof(data), i * SOURCE) != SOURCE)
			err(3, "source file");
	}
}

/*
 * The pages that operations are about. With page tables, those at the ends of the
 * first three, of which the last is not whole.
 */
static void choose_pages(bool tables)
{
	static const unsigned int begin[] = { 0, 508, 1022 }, nr[] = { 6, 8, 10 };
	unsigned int n = 0;

	for (unsigned int i = 0; i < HOT; i++)
		hot[i] = i;
	for (unsigned int i = 0; tables && i < 3; i++)
		for (unsigned int j = 0; j < nr[i]; j++)
			hot[n++] = begin[i] + j;
}

static void prepare(const unsigned int *arg)
{
	unsigned int flags = MFD_CLOEXEC;
	const bool tables = arg[0];

	flags |= arg[1] ? MFD_SHARE_PGTABLES : 0;
	flags |= arg[2] == 1 ? 0 : MFD_ALLOW_PROTECT;
	flags |= arg[3] == 1 ? MFD_ALLOW_SEALING : 0;
	choose_pages(tables);
	m = malloc(sizeof(*m));
	if (!m)
		err(3, "the model");
	model_init(m, hot[HOT - 1] + 1, hot[HOT - 1] + 1 + (tables ? 512 : 8));
	m->protectable = flags & MFD_ALLOW_PROTECT;
	m->seals = flags & MFD_ALLOW_SEALING ? 0 : F_SEAL_SEAL;
	fd = syscall(SYS_memfd_create, "fuzz", flags);
	if (fd < 0 && errno == EINVAL && (flags & MFD_SHARE_PGTABLES))
		fd = syscall(SYS_memfd_create, "fuzz", flags & ~MFD_SHARE_PGTABLES);
	if (fd < 0)
		err(3, "memfd_create");
	m->size = arg[4] >= HOT ? m->pages * PAGE : hot[arg[4]] * PAGE;
	if (ftruncate(fd, m->size))
		err(3, "ftruncate");
	fd_again = open_again(fd, O_RDWR);
	fd_read = open_again(fd, O_RDONLY);
	make_source();
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (pipe2(pipes[i], O_NONBLOCK | O_CLOEXEC))
			err(3, "pipe");
	workers_prepare(PROCESSES);
	for (unsigned int i = 0; i < PROCESSES - 1; i++) {
		const unsigned int all[] = { i, 0, 0, 0, 2, 1, 1 };

		worker_start(i);
		m->process[i].alive = true;
		if (arg[5])
			do_mmap(all);
	}
	if (arg[6])
		do_notify((unsigned int []){ arg[6] > 2 });
	/* All of it waits, or is logged, from the beginning. */
	if (m->open && arg[7] && arg[7] < 3)
		do_protect((unsigned int []){ 0, 0, arg[7] - 1, 0 });
}

/* Events of now tell who is a process now */
static void note_events(int from)
{
	for (; from < m->nr_events; from++) {
		if (m->events[from].type == MEMFD_EVENT_DIRTY)
			counted(COUNT_DIRTY);
		else if (!(m->events[from].flags & MEMFD_EVENT_F_WAITING))
			counted(COUNT_REPORTS);
		for (unsigned int i = 0; i < PROCESSES; i++)
			pid_of[from][i] = workers[i].pid;
	}
}

static void run(const struct program *what)
{
	program = what;
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir(CGROUP, 0755);
	write_text(CGROUP "/cgroup.procs", "0");
	prepare(program->ops[0].arg);
	for (now = 1; now < program->nr && m->nr_events < MAX_EVENTS - 64; now++) {
		const struct op *op = &program->ops[now];
		operation_fn *operation = operations[op->kind];
		int events = m->nr_events;

		if (verbose)
			printf("%u %s\n", now + 1, kinds[op->kind].name);
		if (!operation)
			continue;
		m->batch++;
		if (operation(op->arg))
			worked(op->kind);
		settle();
		note_events(events);
		check_figures();
		check_waiters();
		check_contents(false);
	}
	check_contents(true);
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (free_to_act(i))
			check_window(i);
	for (unsigned int i = 0; i < PROCESSES; i++)
		worker_kill(i);
}

static bool available(void)
{
	int file = syscall(SYS_memfd_create, "fuzz", MFD_ALLOW_PROTECT);

	close(file);
	return file >= 0;
}

static const struct fuzzer fuzzer = {
	.name = "memfd_fuzz",
	.about = "Compares memfd_protect(2) with a model of what it promises.",
	.kinds = kinds,
	.nr_kinds = NR_KINDS,
	.breaks = model_breaks,
	.counters = counters,
	.available = available,
	.run = run,
};

int main(int argc, char **argv)
{
	return fuzz_main(argc, argv, &fuzzer);
}
