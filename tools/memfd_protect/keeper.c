// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl run: the keeper of the memory of shm_open() files and SysV segments. See run.h.
 *
 * It is the parent of the program, and the reaper of all that the program leaves
 * behind, and so it knows when the last of them has ended. Then it ends, too.
 *
 * Who may have the memory is for the kernel to say. Of a file: who has opened it, which he
 * proves by sending the descriptor. Of a segment: whom its mode allows to.
 *
 * Only what has nothing in it yet gets a memfd. When the kernel's object is removed, the
 * keeper lets go of its memory within a second; those who have it mapped keep it.
 */
#define _GNU_SOURCE
#include "memfdctl.h"
#include "run.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Who has connected and not asked: others than ours may, for a second each. */
#define CLIENTS		64
#define PATIENCE	1.0

/**
 * struct object - a memfd, and whose memory it is
 * @next: The next one.
 * @file: The file, or -1 for a segment. It is kept open, so that it stays what it is.
 * @dev: Its device.
 * @ino: Its inode.
 * @id: The segment.
 * @memfd: The memory.
 */
struct object {
	struct object *next;
	int file;
	dev_t dev;
	ino_t ino;
	int id;
	int memfd;
};

static struct object *objects;
static unsigned int create_flags;
static const char *secret;

static struct client {
	int fd;
	double since;
} clients[CLIENTS];
static size_t nr_clients;

static struct object *find_file(const struct stat *st)
{
	struct object *o = objects;

	while (o && (o->file < 0 || o->dev != st->st_dev || o->ino != st->st_ino))
		o = o->next;
	return o;
}

static struct object *find_segment(int id)
{
	struct object *o = objects;

	while (o && (o->file >= 0 || o->id != id))
		o = o->next;
	return o;
}

static struct object *make(const char *label, uint64_t size)
{
	struct object *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->file = -1;
	o->memfd = memfd_create(label, create_flags);
	if (o->memfd >= 0 && !ftruncate(o->memfd, size)) {
		o->next = objects;
		objects = o;
		return o;
	}
	if (o->memfd >= 0)
		close(o->memfd);
	free(o);
	return NULL;
}

static void drop(struct object *gone)
{
	struct object **link = &objects;

	while (*link != gone)
		link = &(*link)->next;
	*link = gone->next;
	if (gone->file >= 0)
		close(gone->file);
	close(gone->memfd);
	free(gone);
}

/* A description of its own, with the rights that were asked for */
static int reopen(int memfd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	return open(path, flags | O_CLOEXEC);
}

/* "shm:NAME" */
static void label_of(int file, char label[64])
{
	char path[32], link[512];
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	len = readlink(path, link, sizeof(link) - 1);
	link[len < 0 ? 0 : len] = '\0';
	snprintf(label, 64, "shm:%.50s", strrchr(link, '/') ? strrchr(link, '/') + 1 : "");
}

/* The right to truncate is that to write; the kernel has truncated its file already. */
static int of_file(const struct run_request *q, int file, int *fd)
{
	int access = fcntl(file, F_GETFL) & O_ACCMODE;
	char label[64];
	struct object *o;
	struct stat st;
	bool made;

	if (file < 0 || fstat(file, &st) || !S_ISREG(st.st_mode))
		return EBADF;
	o = find_file(&st);
	made = !o;
	if (made && (st.st_size || !st.st_nlink))
		return ENOENT;
	if (made) {
		label_of(file, label);
		o = make(label, 0);
		/* Without, it is the kernel's. */
		if (!o)
			return ENOENT;
		o->dev = st.st_dev;
		o->ino = st.st_ino;
		o->file = fcntl(file, F_DUPFD_CLOEXEC, 0);
	}
	*fd = o->file < 0 ? -1 : reopen(o->memfd, access);
	if (*fd < 0) {
		if (!made)
			return errno;
		drop(o);
		return ENOENT;
	}
	/* For who looks at its owner; a keeper that is not root cannot give it away. */
	if (made && (fchown(o->memfd, st.st_uid, st.st_gid) || fchmod(o->memfd, st.st_mode & 0777)))
		errno = 0;
	if ((q->flags & O_TRUNC) && access != O_RDONLY && ftruncate(*fd, 0))
		return errno;
	return 0;
}

static bool in_group(int client, gid_t gid, gid_t other)
{
	gid_t groups[1024];
	socklen_t len = sizeof(groups);

	if (getsockopt(client, SOL_SOCKET, SO_PEERGROUPS, groups, &len))
		return false;
	for (size_t i = 0; i < len / sizeof(*groups); i++)
		if (groups[i] == gid || groups[i] == other)
			return true;
	return false;
}

/* As the kernel: the first of owner, group and others that fits decides. */
static bool may(int client, const struct ucred *who, const struct ipc_perm *perm, bool write)
{
	unsigned int want = write ? 6 : 4, bits = perm->mode & 7;

	if (!who->uid)
		return true;
	if (who->uid == perm->uid || who->uid == perm->cuid)
		bits = perm->mode >> 6 & 7;
	else if (who->gid == perm->gid || who->gid == perm->cgid ||
		 in_group(client, perm->gid, perm->cgid))
		bits = perm->mode >> 3 & 7;
	return (bits & want) == want;
}

static int of_segment(const struct run_request *q, int client, const struct ucred *who,
		      struct run_reply *reply, int *fd)
{
	bool write = !(q->flags & SHM_RDONLY);
	struct object *o = find_segment(q->id);
	struct shmid_ds ds;
	char label[64];
	bool made = !o;

	if (shmctl(q->id, IPC_STAT, &ds) || !may(client, who, &ds.shm_perm, write))
		return o ? EACCES : ENOENT;
	/* Whoever has attached it may have written. */
	if (made && (ds.shm_segsz < RUN_LEAST || ds.shm_atime || ds.shm_nattch))
		return ENOENT;
	if (made) {
		snprintf(label, sizeof(label), "sysv:0x%08x", (unsigned int)ds.shm_perm.__key);
		o = make(label, ds.shm_segsz);
		if (!o)
			return ENOENT;
		o->id = q->id;
	}
	reply->size = ds.shm_segsz;
	*fd = reopen(o->memfd, write ? O_RDWR : O_RDONLY);
	if (*fd >= 0)
		return 0;
	if (!made)
		return errno;
	drop(o);
	return ENOENT;
}

/* Whether what the kernel has of it is gone; nobody else may see a segment that is there. */
static bool is_gone(const struct object *o)
{
	struct shmid_ds ds;
	struct stat st;

	if (o->file >= 0)
		return !fstat(o->file, &st) && !st.st_nlink;
	return shmctl(o->id, IPC_STAT, &ds) && (errno == EINVAL || errno == EIDRM);
}

static void collect(void)
{
	struct object *o, *next;

	for (o = objects; o; o = next) {
		next = o->next;
		if (is_gone(o))
			drop(o);
	}
}

static void hang_up(size_t i)
{
	close(clients[i].fd);
	clients[i] = clients[--nr_clients];
}

/* A client has sent something. */
static void serve(size_t i)
{
	int client = clients[i].fd, sent, fd = -1;
	struct run_reply reply = { 0 };
	struct run_request q;
	struct ucred who;
	socklen_t len = sizeof(who);

	if (message_receive(client, &q, sizeof(q), &sent, MSG_DONTWAIT) == sizeof(q) &&
	    !memcmp(q.token, secret, RUN_TOKEN) &&
	    !getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &len)) {
		reply.error = q.op == RUN_FILE ? of_file(&q, sent, &fd) :
						 of_segment(&q, client, &who, &reply, &fd);
		message_send(client, &reply, sizeof(reply), reply.error ? -1 : fd);
	}
	if (sent >= 0)
		close(sent);
	if (fd >= 0)
		close(fd);
	hang_up(i);
}

static void welcome(int socket)
{
	int client = accept4(socket, NULL, NULL, SOCK_CLOEXEC);

	if (client < 0)
		return;
	/* The one that has said nothing for longest goes. */
	if (nr_clients == CLIENTS) {
		size_t oldest = 0;

		for (size_t i = 1; i < nr_clients; i++)
			if (clients[i].since < clients[oldest].since)
				oldest = i;
		hang_up(oldest);
	}
	clients[nr_clients++] = (struct client){ client, now() };
}

/**
 * keeper_start() - begin to listen
 * @name: Of the abstract socket.
 * @token: What clients have to know; stays the caller's.
 * @memfd_flags: For memfd_create(2).
 *
 * Return: The socket for keeper_run(), or -1.
 */
int keeper_start(const char *name, const char *token, unsigned int memfd_flags)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	secret = token;
	create_flags = memfd_flags | MFD_CLOEXEC;
	snprintf(addr.sun_path + 1, sizeof(addr.sun_path) - 1, "%s", name);
	if (!bind(fd, (struct sockaddr *)&addr,
		  offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) &&
	    !listen(fd, 128))
		return fd;
	close(fd);
	return -1;
}

/* Waits for something to do. Polls once a second if there is something to give up. */
static void wait_and_serve(int socket, int signals)
{
	struct pollfd fds[2 + CLIENTS] = { { socket, POLLIN, 0 }, { signals, POLLIN, 0 } };
	size_t nr = nr_clients;
	char ignored[1024];

	for (size_t i = 0; i < nr; i++)
		fds[2 + i] = (struct pollfd){ clients[i].fd, POLLIN, 0 };
	if (poll(fds, 2 + nr, objects || nr ? 1000 : -1) < 0)
		return;
	if (fds[1].revents)
		(void)!read(signals, ignored, sizeof(ignored));
	/* From the last one on, because others take the place of those that go. */
	for (size_t i = nr; i--;) {
		if (fds[2 + i].revents)
			serve(i);
		else if (now() - clients[i].since > PATIENCE)
			hang_up(i);
	}
	if (fds[0].revents)
		welcome(socket);
}

/**
 * keeper_run() - answer questions
 * @socket: From keeper_start().
 * @signals: A signalfd of SIGCHLD, which is blocked.
 * @ended: Called for each child that has ended, with what waitpid() says of it.
 *
 * Returns when there is no child left.
 */
void keeper_run(int socket, int signals, void (*ended)(pid_t pid, int status))
{
	double collected = 0;
	pid_t pid;
	int status;

	for (;;) {
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			ended(pid, status);
		if (pid < 0 && errno == ECHILD)
			return;
		wait_and_serve(socket, signals);
		if (now() - collected < 1)
			continue;
		collected = now();
		collect();
	}
}
