// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memfdctl run preloads into a program: its shared memory becomes memfds.
 *
 *   mmap(MAP_SHARED | MAP_ANONYMOUS)	a memfd of this process, kept open so that it can
 *					be found; closed when nothing of it is mapped
 *   memfd_create()			with more flags
 *   shm_open(), shmget(), ...		a memfd that the keeper has: see run.h
 *
 * What is less than RUN_LEAST bytes, what the kernel refuses, and what the keeper
 * does not answer is done as the program wanted it. It is all done by system calls: no
 * function that is replaced here is looked up, or called.
 *
 * Mappings are known by address. The lock is held across fork(), and no call that may
 * come back here is made while it is held.
 */
#define _GNU_SOURCE
/* It would rename what is defined here. On 64 bits there is but one off_t. */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MFD_ALLOW_PROTECT
#include <linux/memfd_protect.h>
#endif

#define EXPORT		__attribute__((visibility("default")))
#define IS_ERROR(p)	((p) == MAP_FAILED)

static unsigned int flags;		/* for memfd_create(2); 0: do nothing */
static struct sockaddr_un keeper;
static socklen_t keeper_len;
static char token[RUN_TOKEN];

/**
 * struct mapping - a range of addresses that belongs to a memfd, or did
 * @start: First address.
 * @end: End. Holes that were unmapped are not known; @left is.
 * @left: Bytes that are mapped still.
 * @fd: The descriptor that is kept, or -1.
 * @id: Of the segment, or -1.
 * @dev: The file's, since a program may close all descriptors, and reuse @fd.
 * @ino: Likewise.
 */
struct mapping {
	char *start;
	char *end;
	size_t left;
	int fd;
	int id;
	dev_t dev;
	ino_t ino;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping *mappings;
static size_t nr_mappings, max_mappings;

static void *raw_mmap(void *addr, size_t len, int prot, int how, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, how, fd, offset);
}

static size_t page_round(size_t len)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return (len + page - 1) & ~(page - 1);
}

/* High enough to be in nobody's way: programs count on low numbers. */
static int move_up(int fd)
{
	struct rlimit limit;
	rlim_t most = 4096;
	int high;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < most)
		most = limit.rlim_cur;
	high = fcntl(fd, F_DUPFD_CLOEXEC, (int)(most - most / 4));
	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/* Makes room for one more. The array is not from malloc(), which may call mmap(). */
static bool has_room(void)
{
	size_t old = max_mappings * sizeof(*mappings), size = old ? 2 * old : 4096;
	struct mapping *bigger;

	if (nr_mappings < max_mappings)
		return true;
	bigger = raw_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (IS_ERROR(bigger))
		return false;
	if (old) {
		memcpy(bigger, mappings, old);
		syscall(SYS_munmap, mappings, old);
	}
	mappings = bigger;
	max_mappings = size / sizeof(*mappings);
	return true;
}

static void remember(char *start, size_t len, int fd, int id)
{
	struct mapping m = { .start = start, .end = start + len, .left = len, .fd = fd, .id = id };
	struct stat st;

	if (fd >= 0 && !fstat(fd, &st)) {
		m.dev = st.st_dev;
		m.ino = st.st_ino;
	}
	pthread_mutex_lock(&lock);
	if (has_room())
		mappings[nr_mappings++] = m;
	pthread_mutex_unlock(&lock);
}

static void close_if_ours(const struct mapping *m)
{
	struct stat st;

	if (m->fd >= 0 && !fstat(m->fd, &st) && st.st_dev == m->dev && st.st_ino == m->ino)
		close(m->fd);
}

/* Addresses are unmapped, or get something else. */
static void forget(char *start, size_t len)
{
	char *end = start + page_round(len);

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < nr_mappings; i++) {
		struct mapping *m = &mappings[i];
		char *first = start > m->start ? start : m->start;
		char *last = end < m->end ? end : m->end;
		size_t gone = first < last ? last - first : 0;

		if (!gone)
			continue;
		if (first == m->start)
			m->start = last;
		else if (last == m->end)
			m->end = first;
		m->left -= gone < m->left ? gone : m->left;
		if (m->left && m->start < m->end)
			continue;
		close_if_ours(m);
		*m = mappings[--nr_mappings];
		i--;
	}
	pthread_mutex_unlock(&lock);
}

/* A mapping has been moved, or has another length. */
static void moved(char *old, size_t old_len, char *new, size_t new_len)
{
	bool found = false;
	struct mapping m;

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < nr_mappings && !found; i++) {
		m = mappings[i];
		found = old >= m.start && old < m.end;
		if (found && old == m.start && old + old_len == m.end) {
			mappings[i].start = new;
			mappings[i].end = new + new_len;
			mappings[i].left = new_len;
		} else if (found && old != new) {
			/* A part of it: both count as one, by their bytes. */
			mappings[i].left += new_len;
			mappings[i].left -= old_len < mappings[i].left ? old_len : 0;
		}
	}
	pthread_mutex_unlock(&lock);
}

/*
 * Anonymous memory
 */

static bool wanted(size_t len, int how)
{
	int type = how & MAP_TYPE;

	return flags && (how & MAP_ANONYMOUS) && len >= RUN_LEAST && !(how & MAP_HUGETLB) &&
	       (type == MAP_SHARED || type == MAP_SHARED_VALIDATE);
}

static void *map_memfd(void *addr, size_t len, int prot, int how, int *memfd)
{
	int fd = syscall(SYS_memfd_create, "anonymous", flags | MFD_CLOEXEC);
	void *start = MAP_FAILED;

	if (fd < 0)
		return MAP_FAILED;
	len = page_round(len);
	if (!ftruncate(fd, len))
		start = raw_mmap(addr, len, prot, how & ~MAP_ANONYMOUS, fd, 0);
	if (IS_ERROR(start)) {
		close(fd);
		return MAP_FAILED;
	}
	*memfd = move_up(fd);
	return start;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int how, int fd, off_t offset)
{
	int error = errno, memfd = -1;
	void *start = MAP_FAILED;

	if (wanted(len, how))
		start = map_memfd(addr, len, prot, how, &memfd);
	if (IS_ERROR(start)) {
		errno = error;
		start = raw_mmap(addr, len, prot, how, fd, offset);
	}
	if (IS_ERROR(start))
		return start;
	if ((how & MAP_FIXED) && nr_mappings)
		forget(start, len);
	if (memfd >= 0)
		remember(start, page_round(len), memfd, -1);
	return start;
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int how, int fd, off_t offset)
	__attribute__((alias("mmap")));

EXPORT int munmap(void *addr, size_t len)
{
	int ret = syscall(SYS_munmap, addr, len);

	if (!ret && nr_mappings)
		forget(addr, len);
	return ret;
}

EXPORT void *mremap(void *old, size_t old_len, size_t len, int how, ...)
{
	void *to = NULL, *new;
	va_list args;

	va_start(args, how);
	if (how & MREMAP_FIXED)
		to = va_arg(args, void *);
	va_end(args);
	new = (void *)syscall(SYS_mremap, old, old_len, len, how, to);
	if (!IS_ERROR(new) && nr_mappings) {
		if (how & MREMAP_FIXED)
			forget(to, len);
		moved(old, page_round(old_len), new, page_round(len));
	}
	return new;
}

EXPORT int memfd_create(const char *name, unsigned int how)
{
	int error = errno, fd;

	if (flags && !(how & MFD_HUGETLB)) {
		fd = syscall(SYS_memfd_create, name, how | flags);
		if (fd >= 0)
			return fd;
		errno = error;
	}
	return syscall(SYS_memfd_create, name, how);
}

/*
 * What the keeper has
 */

static int receive(int sock, struct run_reply *reply, int *fd)
{
	struct iovec iov = { reply, sizeof(*reply) };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *cmsg;
	ssize_t got;

	do
		got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got != sizeof(*reply))
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(cmsg), sizeof(*fd));
	return 0;
}

/* Returns 0, or what the keeper says is wrong, or -1 if it does not answer. */
static int ask(struct run_request *q, struct run_reply *reply, int *fd)
{
	int sock, error = errno, ret = -1;

	*fd = -1;
	if (!flags)
		return -1;
	memcpy(q->token, token, RUN_TOKEN);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock >= 0 && !connect(sock, (struct sockaddr *)&keeper, keeper_len) &&
	    send(sock, q, sizeof(*q), MSG_NOSIGNAL) == sizeof(*q) && !receive(sock, reply, fd))
		ret = reply->error;
	if (sock >= 0)
		close(sock);
	errno = error;
	return ret;
}

static int fail(int error)
{
	errno = error;
	return -1;
}

static mode_t current_umask(void)
{
	char line[64];
	unsigned int mask = 022;
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "Umask: %o", &mask) != 1)
		;
	if (f)
		fclose(f);
	return mask;
}

/* "/name" without more slashes; where the kernel would have it goes to @path. */
static bool shm_name(const char *name, char path[300], struct run_request *q)
{
	size_t len;

	name += strspn(name, "/");
	len = strlen(name);
	if (!len || len >= sizeof(q->name) || strchr(name, '/'))
		return false;
	snprintf(path, 300, "/dev/shm/%s", name);
	memcpy(q->name, name, len + 1);
	return true;
}

EXPORT int shm_open(const char *name, int how, mode_t mode)
{
	struct run_request q = { .op = RUN_OPEN, .mode = mode & ~current_umask() };
	struct run_reply reply;
	char path[300];
	int fd, error;

	if (!shm_name(name, path, &q))
		return fail(EINVAL);
	/* Somebody else's, or one that was there before, is opened as it is. */
	q.flags = access(path, F_OK) ? how : how & ~O_CREAT;
	error = ask(&q, &reply, &fd);
	if (error < 0 || error == ENOENT)
		return open(path, how | O_NOFOLLOW | O_CLOEXEC, mode);
	return error ? fail(error) : fd;
}

EXPORT int shm_unlink(const char *name)
{
	struct run_request q = { .op = RUN_UNLINK };
	struct run_reply reply;
	char path[300];
	int fd, error;

	if (!shm_name(name, path, &q))
		return fail(EINVAL);
	error = ask(&q, &reply, &fd);
	if (error >= 0 && error != ENOENT)
		return error ? fail(error) : 0;
	if (!unlink(path))
		return 0;
	return fail(errno == EPERM ? EACCES : errno);
}

static bool is_ours(int id)
{
	return flags && id >= RUN_FIRST_ID && id <= RUN_LAST_ID;
}

EXPORT int shmget(key_t key, size_t size, int how)
{
	struct run_request q = { .op = RUN_GET, .key = key, .size = page_round(size) };
	struct run_reply reply;
	int fd, error = -1, id;

	if (key != IPC_PRIVATE) {
		q.flags = how & ~(IPC_CREAT | IPC_EXCL);
		error = ask(&q, &reply, &fd);
		if (!error && (how & IPC_CREAT) && (how & IPC_EXCL))
			error = EEXIST;
		if (error > 0 && error != ENOENT)
			return fail(error);
		if (!error)
			return reply.id;
	}
	if (!(how & IPC_CREAT) && key != IPC_PRIVATE)
		return syscall(SYS_shmget, key, size, how);
	if (size < RUN_LEAST || (how & SHM_HUGETLB))
		return syscall(SYS_shmget, key, size, how);
	/* The kernel may have one of that key. */
	if (key != IPC_PRIVATE) {
		int before = errno;

		id = syscall(SYS_shmget, key, 0, 0);
		if (id >= 0 || errno != ENOENT)
			return syscall(SYS_shmget, key, size, how);
		errno = before;
	}
	q.flags = how | IPC_CREAT;
	error = ask(&q, &reply, &fd);
	if (error)
		return syscall(SYS_shmget, key, size, how);
	return reply.id;
}

EXPORT void *shmat(int id, const void *addr, int how)
{
	struct run_request q = { .op = RUN_ATTACH, .id = id, .flags = how };
	int prot = PROT_READ | (how & SHM_RDONLY ? 0 : PROT_WRITE) | (how & SHM_EXEC ? PROT_EXEC : 0);
	uintptr_t at = (uintptr_t)addr, page = sysconf(_SC_PAGESIZE);
	struct run_reply reply;
	int fd, error, fixed = 0;
	void *start;

	if (!is_ours(id))
		return (void *)syscall(SYS_shmat, id, addr, how);
	if (how & SHM_RND)
		at &= ~(page - 1);
	if (at & (page - 1) || ((how & SHM_REMAP) && !at))
		return (void *)(intptr_t)fail(EINVAL);
	error = ask(&q, &reply, &fd);
	if (error)
		return (void *)(intptr_t)fail(error < 0 ? EIDRM : error);
	if (at)
		fixed = how & SHM_REMAP ? MAP_FIXED : MAP_FIXED_NOREPLACE;
	start = raw_mmap((void *)at, reply.size, prot, MAP_SHARED | fixed, fd, 0);
	close(fd);
	if (IS_ERROR(start))
		return (void *)(intptr_t)fail(errno == EEXIST ? EINVAL : errno);
	if (how & SHM_REMAP)
		forget(start, reply.size);
	remember(start, reply.size, -1, id);
	return start;
}

/* The segment that begins at an address, or -1 */
static int attached_at(const void *addr, size_t *len)
{
	int id = -1;

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < nr_mappings; i++) {
		if (mappings[i].start == addr && mappings[i].id >= 0) {
			id = mappings[i].id;
			*len = mappings[i].end - mappings[i].start;
		}
	}
	pthread_mutex_unlock(&lock);
	return id;
}

EXPORT int shmdt(const void *addr)
{
	struct run_request q = { .op = RUN_DETACHED };
	struct run_reply reply;
	size_t len = 0;
	int fd;

	q.id = attached_at(addr, &len);
	if (q.id < 0)
		return syscall(SYS_shmdt, addr);
	if (munmap((void *)addr, len))
		return -1;
	ask(&q, &reply, &fd);
	return 0;
}

static void fill(struct shmid_ds *ds, const struct run_reply *reply)
{
	*ds = (struct shmid_ds) {
		.shm_perm = {
			.__key = reply->key, .uid = reply->uid, .gid = reply->gid,
			.cuid = reply->cuid, .cgid = reply->cgid, .mode = reply->mode,
		},
		.shm_segsz = reply->size,
		.shm_atime = reply->atime,
		.shm_dtime = reply->dtime,
		.shm_ctime = reply->ctime,
		.shm_cpid = reply->cpid,
		.shm_lpid = reply->lpid,
		.shm_nattch = reply->attached,
	};
}

EXPORT int shmctl(int id, int command, struct shmid_ds *ds)
{
	struct run_request q = { .id = id };
	struct run_reply reply;
	int fd, error;

	if (!is_ours(id))
		return syscall(SYS_shmctl, id, command, ds);
	switch (command) {
	case IPC_STAT:
		q.op = RUN_STAT;
		break;
	case IPC_SET:
		q.op = RUN_SET;
		q.uid = ds->shm_perm.uid;
		q.gid = ds->shm_perm.gid;
		q.mode = ds->shm_perm.mode;
		break;
	case IPC_RMID:
		q.op = RUN_REMOVE;
		break;
	case SHM_LOCK:
		q.op = RUN_LOCK;
		break;
	case SHM_UNLOCK:
		q.op = RUN_UNLOCK;
		break;
	default:
		return syscall(SYS_shmctl, id, command, ds);
	}
	error = ask(&q, &reply, &fd);
	if (error)
		return fail(error < 0 ? EIDRM : error);
	if (command == IPC_STAT)
		fill(ds, &reply);
	return 0;
}

/*
 * Set-up
 */

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void set_up(void)
{
	const char *env = getenv(RUN_ENV);
	char name[64], secret[RUN_TOKEN + 1];
	unsigned int wanted_flags;

	if (!env || sscanf(env, "%x %63s %32s", &wanted_flags, name, secret) != 3)
		return;
	memcpy(token, secret, RUN_TOKEN);
	keeper.sun_family = AF_UNIX;
	strcpy(keeper.sun_path + 1, name);
	keeper_len = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
	pthread_atfork(before_fork, after_fork, after_fork);
	flags = wanted_flags & (MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES);
}
