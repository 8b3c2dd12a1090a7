// SPDX-License-Identifier: BSD-3-Clause
/*
 * The clients: processes that keep changing random pages of the cache, and do
 * not know that snapshots exist.
 */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "sga.h"

/* Far apart, and no two offsets from the start of the address space alike. */
#define CLIENT_BASE(index)	(0x100000000000UL + (index) * 0x4040000000UL)

struct hello {
	__u64 base;
};

static __u64 next_random(__u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* What a change does to a page, wherever the page is. */
static void edit_page(struct sga_page *page, int index, __u64 *random)
{
	size_t room = sizeof(page->payload) / sizeof(__u64);
	__u64 *payload = (__u64 *)page->payload;
	unsigned int i;

	page->version++;
	page->writer = index + 1;
	for (i = 0; i < 8; i++) {
		size_t at = next_random(random) % room;

		payload[at] = next_random(random);
	}
	page->checksum = page_checksum(page);
}

/* The same change through write(2): one call, of one whole page. */
static void pwrite_page(struct sga *sga, int index, size_t number,
			const struct sga_page *page, struct page_record *record,
			__u64 *random)
{
	struct sga_page copy = *page;

	edit_page(&copy, index, random);
	if (pwrite(sga->memfd, &copy, sizeof(copy), number * SGA_PAGE_SIZE) !=
	    (ssize_t)sizeof(copy))
		err(1, "client %d: pwrite of page %zu", index, number);
	record->version = copy.version;
	record->checksum = copy.checksum;
}

/* One change, from "I want to" to "done": what a client sees as its latency. */
static void change_page(struct sga *sga, int index, struct sga_page *cache,
			size_t number, __u64 *random)
{
	struct page_slot *slot = &sga->control->slot[number];
	struct client_stats *stats = &sga->control->client[index];
	struct sga_page *page = &cache[number];

	pthread_rwlock_rdlock(&sga->control->gate);
	pthread_mutex_lock(&slot->lock);
	if (next_random(random) % 100 < sga->pwrite_percent) {
		pwrite_page(sga, index, number, page, &slot->record, random);
		atomic_fetch_add(&stats->pwrites, 1);
	} else {
		edit_page(page, index, random);
		slot->record.version = page->version;
		slot->record.checksum = page->checksum;
	}
	pthread_mutex_unlock(&slot->lock);
	pthread_rwlock_unlock(&sga->control->gate);
	atomic_fetch_add(&stats->changes, 1);
}

static void client_loop(struct sga *sga, int index, struct sga_page *cache)
{
	struct client_stats *stats = &sga->control->client[index];
	struct timespec think = { .tv_nsec = sga->think_us * 1000UL };
	__u64 random = 0x2545f4914f6cdd1dULL * (index + 1);

	while (!atomic_load(&sga->control->stop)) {
		size_t number = next_random(&random) % sga->nr_pages;
		int phase = atomic_load(&sga->control->phase);
		__u64 start = now_ns();

		change_page(sga, index, cache, number, &random);

		/* A change that overlaps the snapshot belongs to it. */
		if (phase == PHASE_BEFORE &&
		    atomic_load(&sga->control->phase) != PHASE_BEFORE)
			phase = PHASE_DURING;
		latency_add(&stats->latency[phase], now_ns() - start);
		if (sga->think_us)
			nanosleep(&think, NULL);
	}
}

static void send_hello(int sock, void *base, int fd)
{
	struct hello hello = { .base = (uintptr_t)base };
	struct iovec iov = { .iov_base = &hello, .iov_len = sizeof(hello) };
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	if (sendmsg(sock, &msg, 0) < 0)
		err(1, "client: hello");
}

static void receive_hello(struct client *client)
{
	struct hello hello;
	struct iovec iov = { .iov_base = &hello, .iov_len = sizeof(hello) };
	char control[CMSG_SPACE(sizeof(int))];
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;

	if (recvmsg(client->sock, &msg, MSG_CMSG_CLOEXEC) != sizeof(hello))
		errx(1, "a client did not start");
	client->base = hello.base;
	client->uffd = -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&client->uffd, CMSG_DATA(cmsg), sizeof(int));
}

static void client_main(struct sga *sga, int index, pid_t parent)
{
	size_t bytes = sga->nr_pages * SGA_PAGE_SIZE;
	char name[16];
	void *base;
	int fd = -1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	snprintf(name, sizeof(name), "sga-client-%d", index);
	prctl(PR_SET_NAME, name);

	munmap((void *)sga->view, sga->map_bytes);
	base = mmap((void *)CLIENT_BASE(index), sga->map_bytes, PROT_READ | PROT_WRITE,
		    MAP_SHARED, sga->memfd, 0);
	if (base == MAP_FAILED || madvise(base, bytes, MADV_POPULATE_WRITE))
		err(1, "client %d: mmap", index);
	if (sga->backend->attach)
		fd = sga->backend->attach(sga, index, base);
	send_hello(sga->client[index].sock, base, fd);
	client_loop(sga, index, base);
	_exit(0);
}

/*
 * The clients are forked before the event fd exists: an event fd that a child
 * inherits stays open as long as the child lives, and a dead snapshotter could
 * no longer set its writers free.
 */
void clients_start(struct sga *sga)
{
	pid_t parent = getpid();
	int i, pair[2];

	for (i = 0; i < sga->nr_clients; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
			err(1, "socketpair");
		sga->client[i].pid = fork();
		if (sga->client[i].pid < 0)
			err(1, "fork");
		if (!sga->client[i].pid) {
			close(pair[0]);
			sga->client[i].sock = pair[1];
			client_main(sga, i, parent);
		}
		close(pair[1]);
		sga->client[i].sock = pair[0];
	}
	for (i = 0; i < sga->nr_clients; i++)
		receive_hello(&sga->client[i]);
}

__u64 clients_changes(const struct sga *sga)
{
	__u64 sum = 0;
	int i;

	for (i = 0; i < sga->nr_clients; i++)
		sum += atomic_load(&sga->control->client[i].changes);
	return sum;
}
