// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl run: the keeper of shm_open() objects and SysV segments. See run.h.
 *
 * It is the parent of the program, and the reaper of all that the program leaves
 * behind, and so it knows when the last of them has ended. Then it ends, and what it
 * kept is gone: unlike the kernel's objects, these do not outlive their users.
 */
#define _GNU_SOURCE
#include "memfdctl.h"
#include "run.h"

#include <dirent.h>
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
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>


#ifndef SHM_DEST
#define SHM_DEST	01000
#endif

/* A removed segment goes if nobody has attached it for so long, and nobody has it. */
#define REMOVED_SECONDS	2

/**
 * struct object - a memfd that has a name
 * @next: The next one.
 * @name: Of shm_open(), or empty for a segment.
 * @fd: The memfd.
 * @locked: Where it is mapped to be locked in memory, or NULL.
 * @state: What RUN_STAT tells.
 */
struct object {
	struct object *next;
	char name[256];
	int fd;
	void *locked;
	struct run_reply state;
};

static struct object *objects;
static unsigned int create_flags;
static const char *secret;
static int last_id = RUN_FIRST_ID - 1;

static struct object *find_name(const char *name)
{
	struct object *o = objects;

	while (o && (!*o->name || strcmp(o->name, name)))
		o = o->next;
	return o;
}

static struct object *find_id(int id)
{
	struct object *o = objects;

	while (o && (*o->name || o->state.id != id))
		o = o->next;
	return o;
}

static struct object *find_key(int key)
{
	struct object *o = objects;

	while (o && (*o->name || o->state.key != key || key == IPC_PRIVATE))
		o = o->next;
	return o;
}

static void drop(struct object *gone)
{
	struct object **link = &objects;

	while (*link != gone)
		link = &(*link)->next;
	*link = gone->next;
	if (gone->locked)
		munmap(gone->locked, gone->state.size);
	close(gone->fd);
	free(gone);
}

static struct object *make(const char *label, uint64_t size, const struct ucred *who,
			   unsigned int mode)
{
	struct object *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->fd = memfd_create(label, create_flags);
	if (o->fd < 0 || ftruncate(o->fd, size)) {
		int error = errno;

		if (o->fd >= 0)
			close(o->fd);
		free(o);
		errno = error;
		return NULL;
	}
	/* For who looks at its owner; a keeper that is not root cannot give it away. */
	if (fchown(o->fd, who->uid, who->gid) || fchmod(o->fd, mode))
		errno = 0;
	o->state = (struct run_reply) {
		.uid = who->uid, .gid = who->gid, .cuid = who->uid, .cgid = who->gid,
		.mode = mode, .cpid = who->pid, .size = size, .ctime = time(NULL),
	};
	o->next = objects;
	objects = o;
	return o;
}

/* As the kernel: the first of owner, group and others that fits decides. */
static bool may(const struct object *o, const struct ucred *who, bool write)
{
	const struct run_reply *s = &o->state;
	unsigned int want = write ? 6 : 4;
	unsigned int bits = s->mode & 7;

	if (!who->uid)
		return true;
	if (who->uid == s->uid || who->uid == s->cuid)
		bits = s->mode >> 6 & 7;
	else if (who->gid == s->gid || who->gid == s->cgid)
		bits = s->mode >> 3 & 7;
	return (bits & want) == want;
}

static bool owns(const struct object *o, const struct ucred *who)
{
	return !who->uid || who->uid == o->state.uid || who->uid == o->state.cuid;
}

static bool is_number(const char *name)
{
	return name[strspn(name, "0123456789")] == '\0';
}

/* Mappings of the file in /proc/PID/maps: its device and inode, whatever its offset. */
static uint64_t mappings_of(const char *pid, const struct stat *st)
{
	char path[64], line[512];
	uint64_t nr = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		unsigned int major, minor;
		unsigned long offset;
		uint64_t ino;

		if (sscanf(line, "%*s %*s %lx %x:%x %ju", &offset, &major, &minor, &ino) == 4 &&
		    ino == st->st_ino && makedev(major, minor) == st->st_dev && !offset)
			nr++;
	}
	fclose(f);
	return nr;
}

/* How many have it attached: they may have forked, or been killed. */
static uint64_t attached(const struct object *o)
{
	uint64_t nr = o->locked ? -1ULL : 0;
	struct dirent *d;
	struct stat st;
	DIR *proc;

	if (fstat(o->fd, &st))
		return 0;
	proc = opendir("/proc");
	if (!proc)
		return 0;
	while ((d = readdir(proc)))
		if (is_number(d->d_name))
			nr += mappings_of(d->d_name, &st);
	closedir(proc);
	return nr;
}

/* A description of its own, with the rights that were asked for */
static int reopen(const struct object *o, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", o->fd);
	return open(path, flags | O_CLOEXEC);
}

static int do_open(const struct run_request *q, const struct ucred *who, int *fd)
{
	struct object *o = find_name(q->name);
	bool write = (q->flags & O_ACCMODE) != O_RDONLY;
	char label[256];

	if (o && (q->flags & O_CREAT) && (q->flags & O_EXCL))
		return EEXIST;
	if (o && !may(o, who, write))
		return EACCES;
	if (!o) {
		if (!(q->flags & O_CREAT))
			return ENOENT;
		snprintf(label, sizeof(label), "shm:%.200s", q->name);
		o = make(label, 0, who, q->mode & 0777);
		if (!o)
			return errno;
		memcpy(o->name, q->name, sizeof(o->name));
	}
	*fd = reopen(o, q->flags & (O_ACCMODE | O_TRUNC));
	return *fd < 0 ? errno : 0;
}

static int do_unlink(const struct run_request *q, const struct ucred *who)
{
	struct object *o = find_name(q->name);

	if (!o)
		return ENOENT;
	if (!owns(o, who))
		return EACCES;
	drop(o);
	return 0;
}

static int new_id(void)
{
	for (int i = 0; i <= RUN_LAST_ID - RUN_FIRST_ID; i++) {
		if (last_id == RUN_LAST_ID)
			last_id = RUN_FIRST_ID - 1;
		last_id++;
		if (!find_id(last_id))
			return last_id;
	}
	return -1;
}

static int do_get(const struct run_request *q, const struct ucred *who,
		  struct run_reply *reply)
{
	struct object *o = find_key(q->key);
	char label[32];
	int id;

	if (o) {
		if ((q->flags & IPC_CREAT) && (q->flags & IPC_EXCL))
			return EEXIST;
		if (q->size > o->state.size)
			return EINVAL;
		if ((q->flags & 0600) && !may(o, who, q->flags & 0200))
			return EACCES;
		*reply = o->state;
		return 0;
	}
	if (!(q->flags & IPC_CREAT))
		return ENOENT;
	id = new_id();
	if (id < 0)
		return ENOSPC;
	snprintf(label, sizeof(label), "sysv:0x%08x", (unsigned int)q->key);
	o = make(label, q->size, who, q->flags & 0777);
	if (!o)
		return errno;
	o->state.id = id;
	o->state.key = q->key;
	*reply = o->state;
	return 0;
}

static int do_attach(struct object *o, const struct run_request *q, const struct ucred *who,
		     int *fd)
{
	bool write = !(q->flags & SHM_RDONLY);

	if (!may(o, who, write))
		return EACCES;
	*fd = reopen(o, write ? O_RDWR : O_RDONLY);
	if (*fd < 0)
		return errno;
	o->state.lpid = who->pid;
	o->state.atime = time(NULL);
	return 0;
}

static int do_set(struct object *o, const struct run_request *q)
{
	o->state.uid = q->uid;
	o->state.gid = q->gid;
	o->state.mode = (o->state.mode & ~0777U) | (q->mode & 0777);
	o->state.ctime = time(NULL);
	return 0;
}

/* Its pages stay in memory for as long as they are locked by somebody: by us. */
static int do_lock(struct object *o)
{
	if (o->locked)
		return 0;
	o->locked = mmap(NULL, o->state.size, PROT_READ, MAP_SHARED, o->fd, 0);
	if (o->locked != MAP_FAILED && !mlock(o->locked, o->state.size))
		return 0;
	if (o->locked != MAP_FAILED)
		munmap(o->locked, o->state.size);
	o->locked = NULL;
	return errno == ENOMEM ? EPERM : errno;
}

static int do_unlock(struct object *o)
{
	if (o->locked)
		munmap(o->locked, o->state.size);
	o->locked = NULL;
	return 0;
}

/* It has no key any more, and goes when nobody has it attached. */
static int do_remove(struct object *o)
{
	o->state.key = IPC_PRIVATE;
	o->state.mode |= SHM_DEST;
	o->state.ctime = time(NULL);
	return 0;
}

static int of_segment(const struct run_request *q, const struct ucred *who,
		      struct run_reply *reply, int *fd)
{
	struct object *o = find_id(q->id);

	if (!o)
		return EINVAL;
	*reply = o->state;
	switch (q->op) {
	case RUN_ATTACH:
		return do_attach(o, q, who, fd);
	case RUN_DETACHED:
		o->state.lpid = who->pid;
		o->state.dtime = time(NULL);
		return 0;
	case RUN_STAT:
		if (!may(o, who, false))
			return EACCES;
		reply->attached = attached(o);
		return 0;
	}
	if (!owns(o, who))
		return EPERM;
	switch (q->op) {
	case RUN_SET:
		return do_set(o, q);
	case RUN_REMOVE:
		return do_remove(o);
	case RUN_LOCK:
		return do_lock(o);
	case RUN_UNLOCK:
		return do_unlock(o);
	}
	return EINVAL;
}

static int answer(const struct run_request *q, const struct ucred *who,
		  struct run_reply *reply, int *fd)
{
	switch (q->op) {
	case RUN_OPEN:
		return do_open(q, who, fd);
	case RUN_UNLINK:
		return do_unlink(q, who);
	case RUN_GET:
		return do_get(q, who, reply);
	default:
		return of_segment(q, who, reply, fd);
	}
}

static void send_reply(int client, const struct run_reply *reply, int fd)
{
	struct iovec iov = { (void *)reply, sizeof(*reply) };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.space;
		msg.msg_controllen = sizeof(control.space);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	/* Who does not wait for it any more does not need it. */
	(void)!sendmsg(client, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* A client has a second: it sends at once, unless somebody plays with the socket. */
static void serve(int client)
{
	struct timeval patience = { .tv_sec = 1 };
	struct run_reply reply = { 0 };
	struct run_request q;
	struct ucred who;
	socklen_t len = sizeof(who);
	int fd = -1;

	if (setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) ||
	    getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &len) ||
	    recv(client, &q, sizeof(q), 0) != sizeof(q) ||
	    memcmp(q.token, secret, RUN_TOKEN))
		return;
	q.name[sizeof(q.name) - 1] = '\0';
	reply.error = answer(&q, &who, &reply, &fd);
	send_reply(client, &reply, reply.error ? -1 : fd);
	if (fd >= 0)
		close(fd);
}

/* Removed segments that nobody has attached. Returns whether others are left. */
static bool collect(void)
{
	struct object *o, *next;
	bool left = false;

	for (o = objects; o; o = next) {
		next = o->next;
		if (*o->name || !(o->state.mode & SHM_DEST))
			continue;
		if (time(NULL) - o->state.atime > REMOVED_SECONDS && !attached(o))
			drop(o);
		else
			left = true;
	}
	return left;
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
	struct pollfd fds[] = { { socket, POLLIN, 0 }, { signals, POLLIN, 0 } };
	bool left = false;
	char ignored[1024];
	pid_t pid;
	int status;

	for (;;) {
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			ended(pid, status);
		if (pid < 0 && errno == ECHILD)
			return;
		if (poll(fds, 2, left ? 1000 : -1) < 0)
			continue;
		if (fds[1].revents)
			(void)!read(signals, ignored, sizeof(ignored));
		if (fds[0].revents) {
			int client = accept4(socket, NULL, NULL, SOCK_CLOEXEC);

			if (client >= 0) {
				serve(client);
				close(client);
			}
		}
		left = collect();
	}
}
