// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memfdctl run preloads into a program: its shared memory becomes memfds.
 *
 *   mmap(MAP_SHARED | MAP_ANONYMOUS)	a memfd of this process, kept open so that it can
 *					be found; closed when nothing of it is mapped
 *   memfd_create()			with more flags
 *   shm_open()				the file is opened, and its memory got from the
 *					keeper (run.h)
 *   shmat()				the segment is attached, and from its second page on
 *					covered by memory from the keeper. The first one stays
 *					the kernel's, for all that is found or counted by it
 *
 * What is less than RUN_LEAST bytes, what the kernel refuses, and what the keeper
 * does not answer is done as the program wanted it. It is all done by system calls: no
 * function that is replaced here is looked up, or called.
 *
 * Mappings are known by address, under a lock that is held while they change, with all
 * signals blocked: handlers may map memory, too. It is taken only where there are
 * such mappings. No point of cancellation is within.
 */
#define _GNU_SOURCE
/* It would rename what is defined here. On 64 bits there is but one off_t. */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
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
static int keeper_pid;

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

static void take_lock(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, before);
	pthread_mutex_lock(&lock);
}

static void give_lock(const sigset_t *before)
{
	int error = errno;

	pthread_mutex_unlock(&lock);
	pthread_sigmask(SIG_SETMASK, before, NULL);
	errno = error;
}

/* Whether there is anything to be known of mappings */
static bool any(void)
{
	return __atomic_load_n(&nr_mappings, __ATOMIC_ACQUIRE);
}

static void *raw_mmap(void *addr, size_t len, int prot, int how, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, how, fd, offset);
}

static size_t page_round(size_t len)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return (len + page - 1) & ~(page - 1);
}

/*
 * High enough to be in nobody's way: programs count on low numbers. If there is no room
 * it is not kept: the mapping can be found as well.
 */
static int move_up(int fd)
{
	struct rlimit limit;
	rlim_t most = 4096;
	int high;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < most)
		most = limit.rlim_cur;
	high = fcntl(fd, F_DUPFD_CLOEXEC, (int)(most - most / 4));
	syscall(SYS_close, fd);
	if (high < (int)most)
		return high;
	syscall(SYS_close, high);
	return -1;
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

/* These are called with the lock held. */
static void remember(char *start, size_t len, int fd, int id)
{
	struct mapping m = { .start = start, .end = start + len, .left = len, .fd = fd, .id = id };
	struct stat st;

	if (fd >= 0 && !fstat(fd, &st)) {
		m.dev = st.st_dev;
		m.ino = st.st_ino;
	}
	if (has_room())
		mappings[nr_mappings++] = m;
}

static void close_if_ours(const struct mapping *m)
{
	struct stat st;

	if (m->fd >= 0 && !fstat(m->fd, &st) && st.st_dev == m->dev && st.st_ino == m->ino)
		syscall(SYS_close, m->fd);
}

/* Addresses have been unmapped, or have got something else. */
static void forget(char *start, size_t len)
{
	char *end = start + page_round(len);

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
}

/* A mapping has been moved, or has another length. */
static void moved(char *old, size_t old_len, char *new, size_t new_len)
{
	for (size_t i = 0; i < nr_mappings; i++) {
		struct mapping *m = &mappings[i];

		if (old < m->start || old >= m->end)
			continue;
		if (old == m->start && old + old_len == m->end) {
			m->start = new;
			m->end = new + new_len;
			m->left = new_len;
		} else if (old != new) {
			/* A part of it: both count as one, by their bytes. */
			m->left += new_len;
			m->left -= old_len < m->left ? old_len : 0;
		}
		return;
	}
}

/*
 * Anonymous memory
 */

static bool wanted(size_t len, int how)
{
	int type = how & MAP_TYPE;
	struct rlimit limit;

	if (!flags || !(how & MAP_ANONYMOUS) || len < RUN_LEAST || (how & MAP_HUGETLB) ||
	    (type != MAP_SHARED && type != MAP_SHARED_VALIDATE))
		return false;
	/* It would be a file too large. */
	return getrlimit(RLIMIT_FSIZE, &limit) || len <= limit.rlim_cur;
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
		syscall(SYS_close, fd);
		return MAP_FAILED;
	}
	*memfd = move_up(fd);
	return start;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int how, int fd, off_t offset)
{
	bool ours = wanted(len, how);
	void *start = MAP_FAILED;
	int error = errno, memfd = -1;
	sigset_t before;

	if (!ours && (!(how & MAP_FIXED) || !any()))
		return raw_mmap(addr, len, prot, how, fd, offset);
	take_lock(&before);
	if (ours)
		start = map_memfd(addr, len, prot, how, &memfd);
	if (IS_ERROR(start)) {
		ours = false;
		errno = error;
		start = raw_mmap(addr, len, prot, how, fd, offset);
	}
	if (!IS_ERROR(start) && (how & MAP_FIXED))
		forget(start, len);
	if (ours)
		remember(start, page_round(len), memfd, -1);
	give_lock(&before);
	return start;
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int how, int fd, off_t offset)
	__attribute__((alias("mmap")));

EXPORT int munmap(void *addr, size_t len)
{
	sigset_t before;
	int ret;

	if (!any())
		return syscall(SYS_munmap, addr, len);
	take_lock(&before);
	ret = syscall(SYS_munmap, addr, len);
	if (!ret)
		forget(addr, len);
	give_lock(&before);
	return ret;
}

EXPORT void *mremap(void *old, size_t old_len, size_t len, int how, ...)
{
	void *to = NULL, *new;
	sigset_t before;
	va_list args;

	va_start(args, how);
	if (how & MREMAP_FIXED)
		to = va_arg(args, void *);
	va_end(args);
	if (!any())
		return (void *)syscall(SYS_mremap, old, old_len, len, how, to);
	take_lock(&before);
	new = (void *)syscall(SYS_mremap, old, old_len, len, how, to);
	if (!IS_ERROR(new)) {
		if (how & MREMAP_FIXED)
			forget(to, len);
		moved(old, page_round(old_len), new, page_round(len));
	}
	give_lock(&before);
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

/* Others could listen under its name when it has gone. */
static bool is_keeper(int sock)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	return !getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &who, &len) && who.pid == keeper_pid;
}

/*
 * Returns 0 and a descriptor, or what the keeper says is wrong, or ENOENT if it does not
 * answer. EMFILE: there is no room for the descriptor.
 */
static int ask(struct run_request *q, int send, struct run_reply *reply, int *fd)
{
	int sock, state, error = errno, ret = ENOENT;

	*fd = -1;
	if (!flags)
		return ENOENT;
	/* None of what this is for is a point of cancellation. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	memcpy(q->token, token, RUN_TOKEN);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0 && errno == EMFILE)
		ret = EMFILE;
	if (sock >= 0 && !connect(sock, (struct sockaddr *)&keeper, keeper_len) &&
	    is_keeper(sock) && !message_send(sock, q, sizeof(*q), send)) {
		if (message_receive(sock, reply, sizeof(*reply), fd, 0) > 0)
			ret = reply->error;
		else if (errno == EMFILE)
			ret = EMFILE;
	}
	if (sock >= 0)
		close(sock);
	pthread_setcancelstate(state, NULL);
	errno = error;
	return ret;
}

static int fail(int error)
{
	errno = error;
	return -1;
}

/* "/name" without more slashes, and where the kernel has it */
static bool shm_path(const char *name, char path[300])
{
	size_t len;

	name += strspn(name, "/");
	len = strlen(name);
	if (!len || len > NAME_MAX || strchr(name, '/'))
		return false;
	snprintf(path, 300, "/dev/shm/%s", name);
	return true;
}

EXPORT int shm_open(const char *name, int how, mode_t mode)
{
	struct run_request q = { .op = RUN_FILE, .flags = how };
	struct run_reply reply;
	char path[300];
	int file, fd, error;

	if (!shm_path(name, path))
		return fail(EINVAL);
	file = open(path, how | O_NOFOLLOW | O_CLOEXEC, mode);
	if (file < 0)
		return -1;
	error = ask(&q, file, &reply, &fd);
	if (error == ENOENT)
		return file;
	if (!error) {
		/* The lowest number that was free is the file's. */
		if (dup3(fd, file, O_CLOEXEC) < 0)
			error = errno;
		close(fd);
	}
	if (!error)
		return file;
	close(file);
	return fail(error);
}

/* Covers a segment from its second page on. */
static bool cover(char *start, size_t size, int prot, int fd)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return !IS_ERROR(raw_mmap(start + page, size - page, prot, MAP_SHARED | MAP_FIXED, fd,
				  page));
}

/* With the lock held; @fd is its memory. */
static void *attach(int id, void *addr, int how, size_t size, int fd)
{
	int prot = PROT_READ;
	void *hint = MAP_FAILED, *start;

	if (!(how & SHM_RDONLY))
		prot |= PROT_WRITE;
	if (how & SHM_EXEC)
		prot |= PROT_EXEC;
	/* An address at which it can share page tables */
	if (!addr && !(how & SHM_REMAP)) {
		hint = raw_mmap(NULL, size, prot, MAP_SHARED, fd, 0);
		if (IS_ERROR(hint))
			return hint;
		start = (void *)syscall(SYS_shmat, id, hint, how | SHM_REMAP);
	} else {
		start = (void *)syscall(SYS_shmat, id, addr, how);
	}
	if (!IS_ERROR(start) && !cover(start, size, prot, fd)) {
		int error = errno;

		syscall(SYS_shmdt, start);
		errno = error;
		start = MAP_FAILED;
	}
	if (IS_ERROR(start)) {
		int error = errno;

		if (!IS_ERROR(hint))
			syscall(SYS_munmap, hint, size);
		errno = error;
		return start;
	}
	if (how & SHM_REMAP)
		forget(start, size);
	remember(start, size, -1, id);
	return start;
}

EXPORT void *shmat(int id, const void *addr, int how)
{
	struct run_request q = { .op = RUN_SEGMENT, .id = id, .flags = how };
	struct run_reply reply;
	struct shmid_ds ds;
	int fd, error = errno;
	sigset_t before;
	void *start;

	/* Small, or not there, or not to be read: the kernel says what is wrong. */
	if (!flags || syscall(SYS_shmctl, id, IPC_STAT, &ds) || ds.shm_segsz < RUN_LEAST) {
		errno = error;
		return (void *)syscall(SYS_shmat, id, addr, how);
	}
	error = ask(&q, -1, &reply, &fd);
	if (error == ENOENT)
		return (void *)syscall(SYS_shmat, id, addr, how);
	if (error)
		return (void *)(intptr_t)fail(error == EMFILE ? ENOMEM : error);
	take_lock(&before);
	start = attach(id, (void *)addr, how, page_round(reply.size), fd);
	give_lock(&before);
	syscall(SYS_close, fd);
	return start;
}

EXPORT int shmdt(const void *addr)
{
	size_t page = sysconf(_SC_PAGESIZE);
	sigset_t before;
	int ret;

	if (!any())
		return syscall(SYS_shmdt, addr);
	take_lock(&before);
	ret = syscall(SYS_shmdt, addr);
	for (size_t i = 0; !ret && i < nr_mappings; i++) {
		struct mapping m = mappings[i];

		if (m.start != addr || m.id < 0)
			continue;
		syscall(SYS_munmap, m.start + page, m.end - m.start - page);
		forget(m.start, m.end - m.start);
		break;
	}
	give_lock(&before);
	return ret;
}

/*
 * Set-up
 */

/*
 * A library of the program may have a lock that it takes before fork(), and have it
 * where it comes here: do not insist. In the child there is nobody who could have ours.
 */
static bool have_lock;

static void before_fork(void)
{
	have_lock = false;
	for (int i = 0; i < 1000 && !have_lock; i++) {
		have_lock = !pthread_mutex_trylock(&lock);
		if (!have_lock)
			sched_yield();
	}
}

static void in_parent(void)
{
	if (have_lock)
		pthread_mutex_unlock(&lock);
}

static void in_child(void)
{
	pthread_mutex_init(&lock, NULL);
}

__attribute__((constructor)) static void set_up(void)
{
	const char *env = getenv(RUN_ENV);
	char name[64], secret[RUN_TOKEN + 1];
	unsigned int wanted_flags;

	if (!env || sscanf(env, "%x %d %63s %32s", &wanted_flags, &keeper_pid, name, secret) != 4)
		return;
	memcpy(token, secret, RUN_TOKEN);
	keeper.sun_family = AF_UNIX;
	strcpy(keeper.sun_path + 1, name);
	keeper_len = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
	pthread_atfork(before_fork, in_parent, in_child);
	flags = wanted_flags & (MFD_ALLOW_PROTECT | MFD_SHARE_PGTABLES);
}
