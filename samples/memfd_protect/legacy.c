// SPDX-License-Identifier: BSD-3-Clause
/*
 * The same snapshot with what there is today. Both ways protect mappings, not
 * the file: every process has to take part, and write(2) is not seen.
 *
 * --mode mprotect: at T0 each client protects its own mapping, because nobody
 * else can. A thread in each client waits for the order to do so, since the
 * client itself may be asleep at the gate. A store then raises SIGSEGV, whose
 * handler asks the snapshotter for the page over a pipe and sleeps on a futex.
 *
 * --mode uffd: each client makes a userfaultfd for its own mapping and hands it
 * over. The snapshotter protects through all of them in turn, gets the faults
 * from all of them, and has to lift the protection of a page in all of them.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sga.h"

static int plain_create(struct sga *sga)
{
	(void)sga;
	return memfd_create("sga", MFD_CLOEXEC);
}

/* ---- mprotect ---- */

/* What a client's handler and thread need; one client per process. */
static struct {
	struct sga *sga;
	int index;
	char *base;
	size_t bytes;
} self;

struct request {
	__u32 page;
	__u32 index;
};

static int request_pipe[2];

static long futex(atomic_uint *word, int op, unsigned int value)
{
	return syscall(__NR_futex, word, op, value, NULL, NULL, 0);
}

static int mprotect_create(struct sga *sga)
{
	if (pipe2(request_pipe, O_CLOEXEC))
		err(1, "pipe");
	return plain_create(sga);
}

/*
 * Only functions that are safe in a signal handler. mprotect() is a plain
 * system call; POSIX does not list it, Linux keeps it so.
 */
static void on_segv(int signal_number, siginfo_t *info, void *context)
{
	size_t offset = (char *)info->si_addr - self.base;
	struct request request = { .index = self.index };
	struct page_slot *slot;
	int saved = errno;

	(void)context;
	if (offset >= self.bytes) {
		signal(signal_number, SIG_DFL);
		return;
	}
	request.page = offset / SGA_PAGE_SIZE;
	slot = &self.sga->control->slot[request.page];
	if (!atomic_load(&slot->copied)) {
		atomic_fetch_add(&self.sga->control->client[self.index].waits, 1);
		if (write(request_pipe[1], &request, sizeof(request)) != sizeof(request))
			_exit(1);
		while (!atomic_load(&slot->copied))
			futex(&slot->copied, FUTEX_WAIT, 0);
	}
	if (mprotect(self.base + request.page * SGA_PAGE_SIZE, SGA_PAGE_SIZE,
		     PROT_READ | PROT_WRITE))
		_exit(1);
	errno = saved;
}

/* Orders are a protection each, and are answered when it is in place. */
static void *obey(void *argument)
{
	int sock = self.sga->client[self.index].sock;
	int prot;

	while (recv(sock, &prot, sizeof(prot), 0) == sizeof(prot)) {
		if (mprotect(self.base, self.bytes, prot))
			err(1, "client %d: mprotect", self.index);
		if (send(sock, &prot, sizeof(prot), 0) != sizeof(prot))
			break;
	}
	return argument;
}

static int mprotect_attach(struct sga *sga, int index, void *base)
{
	struct sigaction action = {
		.sa_sigaction = on_segv,
		.sa_flags = SA_SIGINFO,
	};
	pthread_t thread;

	self.sga = sga;
	self.index = index;
	self.base = base;
	self.bytes = sga->nr_pages * SGA_PAGE_SIZE;
	if (sigaction(SIGSEGV, &action, NULL))
		err(1, "sigaction");
	errno = pthread_create(&thread, NULL, obey, NULL);
	if (errno)
		err(1, "pthread_create");
	return -1;
}

static void mprotect_open(struct sga *sga)
{
	sga->poll_fd[0] = request_pipe[0];
	sga->nr_poll = 1;
}

static void order(struct sga *sga, int prot)
{
	int i, answer;

	for (i = 0; i < sga->nr_clients; i++)
		if (send(sga->client[i].sock, &prot, sizeof(prot), 0) != sizeof(prot))
			err(1, "ordering client %d to mprotect", i);
	for (i = 0; i < sga->nr_clients; i++)
		if (recv(sga->client[i].sock, &answer, sizeof(answer), 0) !=
		    sizeof(answer))
			errx(1, "client %d did not mprotect", i);
}

static void mprotect_protect(struct sga *sga)
{
	order(sga, PROT_READ);
}

/* Each client lifts its own protection, page by page, when it runs into it. */
static void mprotect_unprotect(struct sga *sga, size_t first, size_t count)
{
	size_t page;

	for (page = first; page < first + count; page++) {
		atomic_store(&sga->control->slot[page].copied, 1);
		futex(&sga->control->slot[page].copied, FUTEX_WAKE, 1);
	}
}

static void mprotect_wanted(struct sga *sga, int which)
{
	struct request request[64];
	ssize_t got = read(sga->poll_fd[which], request, sizeof(request));
	size_t i;

	if (got < 0)
		err(1, "reading requests");
	for (i = 0; i < got / sizeof(request[0]); i++) {
		sga->client[request[i].index].wanted++;
		if (snapshot_want(sga, request[i].page))
			mprotect_unprotect(sga, request[i].page, 1);
	}
}

static void mprotect_finish(struct sga *sga)
{
	order(sga, PROT_READ | PROT_WRITE);
}

static unsigned long long mprotect_waits(struct sga *sga)
{
	unsigned long long sum = 0;
	int i;

	for (i = 0; i < sga->nr_clients; i++)
		sum += atomic_load(&sga->control->client[i].waits);
	return sum;
}

const struct backend backend_mprotect = {
	.name = "mprotect",
	.cannot = "write(2) is not seen; every process needs a handler and a thread",
	.create = mprotect_create,
	.attach = mprotect_attach,
	.open = mprotect_open,
	.protect = mprotect_protect,
	.unprotect = mprotect_unprotect,
	.wanted = mprotect_wanted,
	.finish = mprotect_finish,
	.waits = mprotect_waits,
};

/* ---- userfaultfd ---- */

static int uffd_attach(struct sga *sga, int index, void *base)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	struct uffdio_register area = {
		.range = {
			.start = (uintptr_t)base,
			.len = sga->nr_pages * SGA_PAGE_SIZE,
		},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int fd = syscall(__NR_userfaultfd,
			 O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		err(1, "client %d: userfaultfd", index);
	if (ioctl(fd, UFFDIO_API, &api))
		err(1, "client %d: UFFDIO_API: write protection of shared memory", index);
	if (ioctl(fd, UFFDIO_REGISTER, &area))
		err(1, "client %d: UFFDIO_REGISTER", index);
	return fd;
}

static void uffd_open(struct sga *sga)
{
	int i;

	for (i = 0; i < sga->nr_clients; i++)
		sga->poll_fd[i] = sga->client[i].uffd;
	sga->nr_poll = sga->nr_clients;
}

static void uffd_writeprotect(struct sga *sga, size_t first, size_t count,
			      unsigned long mode)
{
	int i;

	for (i = 0; i < sga->nr_clients; i++) {
		struct uffdio_writeprotect arg = {
			.range = {
				.start = sga->client[i].base + first * SGA_PAGE_SIZE,
				.len = count * SGA_PAGE_SIZE,
			},
			.mode = mode,
		};

		while (ioctl(sga->client[i].uffd, UFFDIO_WRITEPROTECT, &arg))
			if (errno != EAGAIN)
				err(1, "UFFDIO_WRITEPROTECT");
	}
}

static void uffd_protect(struct sga *sga)
{
	uffd_writeprotect(sga, 0, sga->nr_pages, UFFDIO_WRITEPROTECT_MODE_WP);
}

static void uffd_unprotect(struct sga *sga, size_t first, size_t count)
{
	uffd_writeprotect(sga, first, count, 0);
}

static void uffd_wanted(struct sga *sga, int which)
{
	struct client *client = &sga->client[which];
	struct uffd_msg message;
	size_t page;

	while (read(client->uffd, &message, sizeof(message)) == sizeof(message)) {
		if (message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		client->wanted++;
		page = (message.arg.pagefault.address - client->base) / SGA_PAGE_SIZE;
		snapshot_want(sga, page);
		uffd_unprotect(sga, page, 1);
	}
}

static unsigned long long uffd_waits(struct sga *sga)
{
	unsigned long long sum = 0;
	int i;

	for (i = 0; i < sga->nr_clients; i++)
		sum += sga->client[i].wanted;
	return sum;
}

const struct backend backend_uffd = {
	.name = "uffd",
	.cannot = "write(2) is not seen; every process has a userfaultfd, each with its own calls",
	.create = plain_create,
	.attach = uffd_attach,
	.open = uffd_open,
	.protect = uffd_protect,
	.unprotect = uffd_unprotect,
	.wanted = uffd_wanted,
	.waits = uffd_waits,
};

const struct backend *const backends[3] = {
	&backend_memfd, &backend_mprotect, &backend_uffd,
};
