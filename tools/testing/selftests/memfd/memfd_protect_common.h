/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the memfd_protect selftests share: the system calls, bounded waits,
 * writers that run in a process or thread of their own, and events.
 *
 * No wait here is without an end. A wait for something that must happen is
 * long (LONG_MS), because guests without KVM are slow; a look whether
 * something wrongly happens is short (SHORT_MS) and comes after proof that the
 * writer has arrived: its event, or its sleeping state.
 */
#ifndef MEMFD_PROTECT_COMMON_H
#define MEMFD_PROTECT_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#endif
#ifndef __NR_memfd_notify
#define __NR_memfd_notify	549
#endif

#ifndef MADV_GUARD_INSTALL	/* in files since Linux 6.15 */
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

#define LONG_MS		20000
#define SHORT_MS	15

/* What a page holds, and what a writer writes */
#define OLD_BYTE	0x11
#define NEW_BYTE	0x22

/* Not a mode: the range is open for writing */
#define MODE_NONE	3U

/* Every wrapper returns -errno: a test compares one value */
static inline long neg_errno(long ret)
{
	return ret < 0 ? -errno : ret;
}

static inline long sys_memfd_protect(int fd, off_t offset, size_t length,
				     int prot, unsigned int flags)
{
	return neg_errno(syscall(__NR_memfd_protect, fd, offset, length, prot,
				 flags));
}

static inline int sys_memfd_notify(int fd, unsigned int flags)
{
	return neg_errno(syscall(__NR_memfd_notify, fd, flags));
}

static inline int sys_memfd_create(unsigned int flags)
{
	return neg_errno(syscall(__NR_memfd_create, "protect-test", flags));
}

/*
 * Ends a test program, as skipped, on a kernel without CONFIG_MEMFD_PROTECT. One
 * that has a part of it is no reason: the tests fail there.
 */
static inline void need_memfd_protect(void)
{
	int fd = sys_memfd_create(MFD_CLOEXEC | MFD_ALLOW_PROTECT);

	if (fd >= 0)
		close(fd);
	if (fd != -EINVAL || sys_memfd_notify(-1, 0) != -ENOSYS)
		return;
	printf("TAP version 13\n1..0 # SKIP no CONFIG_MEMFD_PROTECT\n");
	exit(4);
}

static inline size_t page_size(void)
{
	static size_t size;

	if (!size)
		size = sysconf(_SC_PAGESIZE);
	return size;
}

/* A file of pages full of OLD_BYTE */
static inline int create_filled(size_t nr_pages, unsigned int flags)
{
	size_t size = page_size();
	char buf[size];
	int fd;

	fd = sys_memfd_create(MFD_CLOEXEC | flags);
	memset(buf, OLD_BYTE, size);
	for (size_t i = 0; i < nr_pages; i++)
		if (pwrite(fd, buf, size, i * size) != (ssize_t)size)
			return -1;
	return fd;
}

/*
 * The fixture of tests that have one file of NR_PAGES pages, mapped, and its event
 * fd. Use it where kselftest_harness.h is included, which must come after this.
 */
#define FIXTURE_MAPPED_FILE(_flags) \
FIXTURE(file) { \
	int fd; \
	int nfd; \
	char *map; \
	size_t page; \
	size_t size; \
}; \
\
FIXTURE_SETUP(file) \
{ \
	self->page = page_size(); \
	self->size = NR_PAGES * self->page; \
	self->fd = create_filled(NR_PAGES, MFD_ALLOW_PROTECT | (_flags)); \
	ASSERT_LE(0, self->fd); \
	self->map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, \
			 MAP_SHARED, self->fd, 0); \
	ASSERT_NE(MAP_FAILED, self->map); \
	self->nfd = sys_memfd_notify(self->fd, 0); \
	ASSERT_LE(0, self->nfd); \
} \
\
FIXTURE_TEARDOWN(file) \
{ \
	close(self->nfd); \
	munmap(self->map, self->size); \
	close(self->fd); \
}

/* Page numbers instead of bytes: most tests think in pages */
static inline long protect_pages(int fd, size_t page, size_t nr,
				 unsigned int mode)
{
	return sys_memfd_protect(fd, page * page_size(), nr * page_size(),
				 PROT_READ, mode);
}

static inline long unprotect_pages(int fd, size_t page, size_t nr)
{
	return sys_memfd_protect(fd, page * page_size(), nr * page_size(),
				 PROT_READ | PROT_WRITE, 0);
}

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/*
 * Page faults of this process so far. What the caller has counted are not those of the
 * program's own text, nor of the stack below him: they depend on what has been put where.
 */
static inline long faults(void)
{
	extern char __executable_start[], etext[];
	char *text = (char *)((uintptr_t)__executable_start & -page_size());
	struct rusage usage = { 0 };

	madvise(text, etext - text, MADV_POPULATE_READ);
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

/* When a file was last changed; -1 if that cannot be found out */
static inline long long modified_ns(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? -1 : st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec;
}

static inline void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000L };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* An address that no access succeeds at, and that the compiler knows not */
static inline void *bad_pointer(void)
{
	return mmap(NULL, page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
}

/* Events */

static inline bool readable(int nfd, int timeout_ms)
{
	struct pollfd pfd = { .fd = nfd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1 && (pfd.revents & POLLIN);
}

/* Reads one record; false if none came in time or it is malformed */
static inline bool read_event_in(int nfd, struct memfd_event *ev,
				 int timeout_ms)
{
	memset(ev, 0, sizeof(*ev));
	if (!readable(nfd, timeout_ms))
		return false;
	return read(nfd, ev, sizeof(*ev)) == (ssize_t)sizeof(*ev) &&
	       ev->len == sizeof(*ev);
}

static inline bool read_event(int nfd, struct memfd_event *ev)
{
	return read_event_in(nfd, ev, LONG_MS);
}

static inline bool no_event(int nfd)
{
	return !readable(nfd, SHORT_MS);
}

/* Takes everything that is there now and returns the number of records */
static inline unsigned int drain_events(int nfd)
{
	struct memfd_event ev;
	unsigned int nr = 0;

	while (readable(nfd, 0) && read(nfd, &ev, sizeof(ev)) > 0)
		nr++;
	return nr;
}

static inline int resolve(int nfd, uint64_t cookie, uint32_t action)
{
	struct memfd_resolve arg = { .cookie = cookie, .action = action };

	return neg_errno(ioctl(nfd, MEMFD_NOTIFY_RESOLVE, &arg));
}

static inline int scan_range(int nfd, uint64_t start, uint64_t end,
			     struct memfd_range *ranges, uint64_t nr_ranges,
			     uint64_t flags, uint64_t *walk_end)
{
	struct memfd_scan arg = {
		.start = start, .end = end,
		.ranges = (uintptr_t)ranges, .nr_ranges = nr_ranges,
		.flags = flags,
	};
	int ret = neg_errno(ioctl(nfd, MEMFD_NOTIFY_SCAN, &arg));

	if (walk_end)
		*walk_end = arg.walk_end;
	return ret;
}

static inline uint64_t features(int nfd)
{
	uint64_t bits = 0;

	if (ioctl(nfd, MEMFD_NOTIFY_FEATURES, &bits))
		return 0;
	return bits;
}

/*
 * The outcome of an operation that may be caught: what it returned, or the
 * signal that it got.
 */
struct outcome {
	volatile int started;
	volatile int done;
	pid_t pid;
	pid_t tid;
	long ret;	/* -errno on failure */
	int sig;	/* 0: none */
	int code;
	void *addr;
};

/* An operation returns a value or -errno */
typedef long (*operation_fn)(void *arg);

static __thread sigjmp_buf guard_env;
static __thread volatile int guard_armed;
static __thread struct outcome *guard_outcome;

static inline void guard_handler(int sig, siginfo_t *info, void *context)
{
	if (!guard_armed) {
		signal(sig, SIG_DFL);
		raise(sig);
		return;
	}
	guard_armed = 0;
	guard_outcome->sig = sig;
	guard_outcome->code = info->si_code;
	guard_outcome->addr = info->si_addr;
	siglongjmp(guard_env, 1);
}

/* Runs fn(arg) and notes a SIGBUS or SIGSEGV instead of dying of it */
static inline void run_guarded(operation_fn fn, void *arg,
			       struct outcome *out)
{
	struct sigaction act = {
		.sa_sigaction = guard_handler, .sa_flags = SA_SIGINFO,
	};

	sigaction(SIGBUS, &act, NULL);
	sigaction(SIGSEGV, &act, NULL);
	guard_outcome = out;
	out->pid = getpid();
	out->tid = gettid();
	out->sig = 0;
	out->ret = 0;
	guard_armed = 1;
	if (!sigsetjmp(guard_env, 1)) {
		__atomic_store_n(&out->started, 1, __ATOMIC_SEQ_CST);
		out->ret = fn(arg);
	}
	guard_armed = 0;
	__atomic_store_n(&out->done, 1, __ATOMIC_SEQ_CST);
}

/*
 * A writer: a process that runs one operation. It closes the event fd first,
 * so that the test alone holds it, and it dies with the test.
 */
struct writer {
	pid_t pid;
	int status;
	bool reaped;
	struct outcome *out;
};

static inline bool writer_start(struct writer *w, int close_nfd,
				operation_fn fn, void *arg)
{
	w->reaped = false;
	w->out = mmap(NULL, sizeof(*w->out), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (w->out == MAP_FAILED)
		return false;
	w->pid = fork();
	if (w->pid)
		return w->pid > 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (close_nfd >= 0)
		close(close_nfd);
	run_guarded(fn, arg, w->out);
	_exit(0);
}

static inline bool writer_reap(struct writer *w, unsigned int timeout_ms)
{
	uint64_t end = now_ns() + timeout_ms * 1000000ULL;

	while (!w->reaped) {
		w->reaped = waitpid(w->pid, &w->status, WNOHANG) == w->pid;
		if (w->reaped)
			break;
		if (now_ns() > end)
			return false;
		usleep(500);
	}
	return true;
}

/* It stops itself. What it does next comes after kill(SIGCONT). */
static inline bool writer_stops(struct writer *w)
{
	return waitpid(w->pid, &w->status, WUNTRACED) == w->pid &&
	       WIFSTOPPED(w->status);
}

/* The operation came to its end, by return or by signal */
static inline bool writer_finishes(struct writer *w)
{
	return writer_reap(w, LONG_MS) && w->out->done;
}

/* The operation has begun and is not over after a short time */
static inline bool writer_blocks(struct writer *w)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (!w->out->started && now_ns() < end)
		usleep(500);
	if (!w->out->started)
		return false;
	sleep_ms(SHORT_MS);
	return !w->out->done && !writer_reap(w, 0);
}

static inline void writer_kill(struct writer *w)
{
	kill(w->pid, SIGKILL);
	writer_reap(w, LONG_MS);
}

static inline void writer_free(struct writer *w)
{
	if (!w->reaped)
		writer_kill(w);
	munmap(w->out, sizeof(*w->out));
}

/* Robust mutexes: the kernel gives back what their owner has when it ends */

static inline void make_robust(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(mutex, &attr);
}

static inline long die_with_mutex(void *arg)
{
	pthread_mutex_lock(arg);
	/* The page is protected meanwhile */
	raise(SIGSTOP);
	syscall(SYS_exit_group, 0);
	return 0;
}

/*
 * Makes a mutex and a process that owns it, and is stopped. The mutex is at the start of
 * the page, which is in mode WAIT then. When the process goes on it ends.
 */
static inline bool owner_stops(struct writer *w, int fd, int nfd, size_t page,
			       pthread_mutex_t *mutex)
{
	make_robust(mutex);
	return writer_start(w, nfd, die_with_mutex, mutex) && writer_stops(w) &&
	       !protect_pages(fd, page, 1, MEMFD_PROTECT_WAIT);
}

static inline bool owner_ends(struct writer *w, int fd, int nfd, size_t page,
			      pthread_mutex_t *mutex)
{
	return owner_stops(w, fd, nfd, page, mutex) && !kill(w->pid, SIGCONT);
}

/* The state letter in /proc/PID/stat; 0 if there is no such thread */
static inline char task_state(pid_t pid, pid_t tid)
{
	char path[64], buf[512], *end;
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	len = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (len <= 0)
		return 0;
	buf[len] = 0;
	end = strrchr(buf, ')');
	return end && end[1] ? end[2] : 0;
}

/*
 * The thread sleeps. Proof of arrival for waits without an event of their
 * own, such as a second writer that joins the first one's event.
 */
static inline bool task_sleeps(pid_t pid, pid_t tid)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;
	unsigned int seen = 0;

	while (now_ns() < end && seen < 3) {
		char state = task_state(pid, tid);

		seen = state == 'S' || state == 'D' ? seen + 1 : 0;
		usleep(1000);
	}
	return seen == 3;
}

static inline bool writer_sleeps(struct writer *w)
{
	uint64_t end = now_ns() + LONG_MS * 1000000ULL;

	while (!w->out->started && now_ns() < end)
		usleep(500);
	return w->out->started && task_sleeps(w->pid, w->pid) && !w->out->done;
}

/* Reads a small file such as those in /proc; false if that is impossible */
static inline bool read_file(const char *path, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t ret;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	while (len < size - 1) {
		ret = read(fd, buf + len, size - 1 - len);
		if (ret <= 0)
			break;
		len += ret;
	}
	close(fd);
	buf[len] = 0;
	return true;
}

static inline bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t ret;

	if (fd < 0)
		return false;
	ret = write(fd, text, strlen(text));
	close(fd);
	return ret == (ssize_t)strlen(text);
}

/*
 * From now on khugepaged collapses nothing by itself. It unmaps pages for that, and who
 * counts what is mapped would find some missing.
 */
static inline void khugepaged_stop(void)
{
	write_file("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
		   "4294967295");
}

#define SHMEM_HUGE	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/*
 * Huge pages of shared memory as @mode says. What was the mode before goes to @before, unless
 * that is NULL. False if it cannot be done. khugepaged has stopped afterwards.
 */
static inline bool set_shmem_huge(const char *mode, char *before, size_t size)
{
	char text[128], *from, *to;

	if (!read_file(SHMEM_HUGE, text, sizeof(text)))
		return false;
	from = strchr(text, '[');
	to = strchr(text, ']');
	if (!from || !to)
		return false;
	*to = 0;
	if (before)
		snprintf(before, size, "%s", from + 1);
	khugepaged_stop();
	return write_file(SHMEM_HUGE, mode);
}

/* Switches and delays of CONFIG_MEMFD_PROTECT_DEBUG */
#define MEMFD_DEBUG_DIR	"/sys/kernel/debug/memfd_protect"

static inline bool debug_set(const char *dir, const char *name,
			     unsigned int value)
{
	char path[320], text[16];

	snprintf(path, sizeof(path), MEMFD_DEBUG_DIR "/%s/%s", dir, name);
	snprintf(text, sizeof(text), "%u", value);
	return write_file(path, text);
}

/* All bytes of [p, p + len) have this value */
static inline bool filled_with(const void *p, size_t len,
			       unsigned char byte)
{
	const volatile unsigned char *c = p;

	while (len--)
		if (*c++ != byte)
			return false;
	return true;
}

/*
 * The file, whole pages of it, has this byte everywhere. read(2) is used:
 * it needs no mapping and never blocks.
 */
static inline bool file_filled_with(int fd, size_t page, size_t nr,
				    unsigned char byte)
{
	size_t size = page_size();
	unsigned char buf[size];

	for (; nr; nr--, page++) {
		if (pread(fd, buf, size, page * size) != (ssize_t)size)
			return false;
		if (!filled_with(buf, size, byte))
			return false;
	}
	return true;
}

/* How much is swapped out of the file's part that is mapped there: what smaps says */
static inline long swap_kb_of(const char *map)
{
	char line[256], start[32];
	bool here = false;
	long kb = 0;
	FILE *smaps;

	snprintf(start, sizeof(start), "%lx-", (unsigned long)map);
	smaps = fopen("/proc/self/smaps", "re");
	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (!strncmp(line, start, strlen(start)))
			here = true;
		else if (here && sscanf(line, "Swap: %ld kB", &kb) == 1)
			break;
	}
	if (smaps)
		fclose(smaps);
	return kb;
}

/* The same of whole pages, mapped anywhere or not */
static inline long swapped_kb(int fd, size_t first, size_t nr)
{
	const size_t page = page_size();
	char *map = mmap(NULL, nr * page, PROT_READ, MAP_SHARED, fd,
			 first * page);
	long kb = swap_kb_of(map);

	munmap(map, nr * page);
	return kb;
}

/* Passes a descriptor over a unix socket */
static inline bool send_fd(int sock, int fd)
{
	char data = 'f', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &data, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(sock, &msg, 0) == 1;
}

static inline int recv_fd(int sock)
{
	char data, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &data, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, 0) != 1)
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

/* userfaultfd. Without O_NONBLOCK it could not be polled. */

#ifndef UFFD_FEATURE_RWP	/* since Linux 7.3 */
#define UFFD_FEATURE_RWP		(1 << 17)
#define UFFD_FEATURE_RWP_ASYNC		(1 << 18)
#define UFFDIO_REGISTER_MODE_RWP	((__u64)1 << 3)
#define UFFD_PAGEFAULT_FLAG_RWP		(1 << 3)
struct uffdio_rwprotect {
	struct uffdio_range range;
	__u64 mode;
};

#define UFFDIO_RWPROTECT		_IOWR(UFFDIO, 0x09, struct uffdio_rwprotect)
#define UFFDIO_RWPROTECT_MODE_RWP	((__u64)1 << 0)
#endif

static inline int uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int err, uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0 || !ioctl(uffd, UFFDIO_API, &api))
		return uffd;
	err = errno;
	close(uffd);
	errno = err;
	return -1;
}

static inline int uffd_register(int uffd, void *addr, size_t len,
				uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)addr, len }, .mode = mode,
	};

	return neg_errno(ioctl(uffd, UFFDIO_REGISTER, &reg));
}

static inline int uffd_rwprotect(int uffd, void *addr, size_t len,
				 uint64_t mode)
{
	struct uffdio_rwprotect arg = {
		.range = { (uintptr_t)addr, len }, .mode = mode,
	};

	return neg_errno(ioctl(uffd, UFFDIO_RWPROTECT, &arg));
}

static inline int uffd_copy(int uffd, void *to, void *from)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to, .src = (uintptr_t)from,
		.len = page_size(),
	};

	return neg_errno(ioctl(uffd, UFFDIO_COPY, &copy));
}

static inline int uffd_continue(int uffd, void *to)
{
	struct uffdio_continue arg = {
		.range = { (uintptr_t)to, page_size() },
	};

	return neg_errno(ioctl(uffd, UFFDIO_CONTINUE, &arg));
}

#endif /* MEMFD_PROTECT_COMMON_H */
