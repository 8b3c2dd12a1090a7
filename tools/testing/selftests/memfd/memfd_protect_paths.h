/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The paths by which the contents of a memfd can be changed, one function
 * each. A path works on a job: one page of one file.
 *
 * What can be set up without touching the page is done by prepare(), before
 * the page is protected; run() does the change and returns a value or -errno.
 * Both run in the same thread.
 */
#ifndef MEMFD_PROTECT_PATHS_H
#define MEMFD_PROTECT_PATHS_H

#include "memfd_protect_common.h"

#include <liburing.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/loop.h>
#include <linux/udmabuf.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>

/* Not in the headers of every C library or liburing that this builds with */
#define URING_OP_FTRUNCATE	55
#define GUP_FOLL_WRITE		1
#define PIN_FLAG_WRITE		1
#define PIN_FLAG_FAST		2

struct gup_longterm {
	__u64 addr;
	__u64 size;
	__u32 flags;
};

#define GUP_LONGTERM_START	_IOW('g', 7, struct gup_longterm)
#define GUP_LONGTERM_STOP	_IO('g', 8)

enum path_kind {
	PATH_STORE,	/* a store by user code */
	PATH_CALL,	/* a system call that writes the file */
	PATH_MAPPING,	/* the kernel writes the mapping */
	PATH_PUNCH,
	PATH_TRUNCATE,
	PATH_PIN,	/* pins the file's page without a mapping */
	PATH_KTHREAD,	/* a kernel thread writes the file */
};

/* path.flags */
#define PATH_SILENT	1	/* does not tell that the access failed */
#define PATH_NO_CHANGE	2	/* leaves the contents as they are */
#define PATH_NO_WAIT	4	/* may fail also with MEMFD_NOTIFY_KERNEL */
#define PATH_ROOT	8	/* not for everybody */
#define PATH_SLOW	16	/* too slow or too rare for the stress test */
#define PATH_OWN_WORD	32	/* prepare() changes the page */
#define PATH_ZERO	64	/* writes zeros */
#define PATH_EXIT	128	/* of an exiting task: goes through WAIT pages */
#define PATH_PINS	256	/* pins the page, for a moment longer than it writes */

struct job;

struct path {
	const char *name;
	enum path_kind kind;
	unsigned int flags;
	int error;		/* of PATH_MAPPING, beside EFAULT */
	long (*prepare)(struct job *job);
	long (*run)(struct job *job);
	void (*cleanup)(struct job *job);
};

struct job {
	const struct path *path;
	int fd;			/* the memfd */
	int nfd;		/* its event fd, which no child may keep */
	char *map;		/* of the whole file */
	size_t offset;		/* of the page, in bytes */
	size_t len;		/* one page; more where the path can do that */
	unsigned char byte;	/* what is written */
	bool touch;		/* make PTEs writable before protection */

	int out;		/* the memfd, opened again */
	int fds[2];
	int src;		/* a file full of @byte */
	char *buf;		/* @len bytes of @byte, page-aligned */
	pid_t child;
	char *stack;
	aio_context_t aio;
	struct io_uring ring;
	bool ring_up;
	volatile int *word;	/* shared with @child */
};

static inline int reopen_fd(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return neg_errno(open(path, flags | O_CLOEXEC));
}

static inline bool job_init(struct job *job, const struct path *path)
{
	job->path = path;
	job->out = -1;
	job->src = -1;
	job->fds[0] = -1;
	job->fds[1] = -1;
	job->child = 0;
	job->stack = NULL;
	job->ring_up = false;
	job->aio = 0;
	job->word = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	job->buf = mmap(NULL, job->len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (job->buf == MAP_FAILED || job->word == MAP_FAILED)
		return false;
	memset(job->buf, job->byte, job->len);
	return true;
}

static inline void close_if_open(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static inline void job_exit(struct job *job)
{
	if (job->path->cleanup)
		job->path->cleanup(job);
	if (job->child > 0) {
		kill(job->child, SIGKILL);
		waitpid(job->child, NULL, __WALL);
	}
	if (job->ring_up)
		io_uring_queue_exit(&job->ring);
	if (job->aio)
		syscall(__NR_io_destroy, job->aio);
	close_if_open(&job->out);
	close_if_open(&job->src);
	close_if_open(&job->fds[0]);
	close_if_open(&job->fds[1]);
	if (job->stack)
		munmap(job->stack, 65536);
	munmap(job->buf, job->len);
	munmap((void *)job->word, page_size());
}

static inline void *job_addr(const struct job *job)
{
	return job->map + job->offset;
}

static inline struct iovec job_iov(const struct job *job)
{
	return (struct iovec) { job_addr(job), job->len };
}

/* Makes the PTE of the page writable without a change of contents */
static inline void job_touch(const struct job *job)
{
	volatile char *p = job_addr(job);

	if (job->touch)
		*p = *p;
}

/* Stores */

static inline long run_store(struct job *job)
{
	memset(job_addr(job), job->byte, job->len);
	return job->len;
}

static inline long run_store_atomic(struct job *job)
{
	__atomic_fetch_add((int *)job_addr(job), job->byte, __ATOMIC_SEQ_CST);
	return sizeof(int);
}

/* System calls that write the file */

static inline long prepare_out(struct job *job)
{
	job->out = reopen_fd(job->fd, O_RDWR);
	if (job->out < 0)
		return job->out;
	if (lseek(job->out, job->offset, SEEK_SET) < 0)
		return -errno;
	return 0;
}

static inline long run_write(struct job *job)
{
	return neg_errno(write(job->out, job->buf, job->len));
}

static inline long run_pwrite(struct job *job)
{
	return neg_errno(pwrite(job->fd, job->buf, job->len, job->offset));
}

static inline long run_pwritev2(struct job *job)
{
	struct iovec iov[2] = {
		{ job->buf, job->len / 2 }, { job->buf, job->len / 2 },
	};

	return neg_errno(pwritev2(job->fd, iov, 2, job->offset, 0));
}

static inline long prepare_direct(struct job *job)
{
	job->out = reopen_fd(job->fd, O_RDWR | O_DIRECT);
	return job->out < 0 ? job->out : 0;
}

static inline long run_direct(struct job *job)
{
	return neg_errno(pwrite(job->out, job->buf, job->len, job->offset));
}

static inline long prepare_src(struct job *job)
{
	job->src = neg_errno(syscall(__NR_memfd_create, "src", MFD_CLOEXEC));
	if (job->src < 0)
		return job->src;
	if (pwrite(job->src, job->buf, job->len, 0) != (ssize_t)job->len)
		return -EIO;
	return prepare_out(job);
}

static inline long run_sendfile(struct job *job)
{
	off_t from = 0;

	return neg_errno(sendfile(job->out, job->src, &from, job->len));
}

static inline long run_copy_file_range(struct job *job)
{
	off_t from = 0, to = job->offset;

	return neg_errno(copy_file_range(job->src, &from, job->fd, &to,
					 job->len, 0));
}

static inline long prepare_pipe(struct job *job)
{
	if (pipe2(job->fds, O_CLOEXEC))
		return -errno;
	if (fcntl(job->fds[1], F_SETPIPE_SZ, job->len) < 0)
		return -errno;
	if (write(job->fds[1], job->buf, job->len) != (ssize_t)job->len)
		return -EIO;
	return 0;
}

static inline long run_splice(struct job *job)
{
	off_t to = job->offset;

	return neg_errno(splice(job->fds[0], NULL, job->fd, &to, job->len, 0));
}

static inline long prepare_aio(struct job *job)
{
	return neg_errno(syscall(__NR_io_setup, 4, &job->aio));
}

static inline long aio_do(struct job *job, struct iocb *iocb)
{
	struct io_event ev;
	long ret;

	ret = neg_errno(syscall(__NR_io_submit, job->aio, 1, &iocb));
	if (ret != 1)
		return ret;
	ret = neg_errno(syscall(__NR_io_getevents, job->aio, 1, 1, &ev, NULL));
	return ret == 1 ? ev.res : ret;
}

static inline long run_aio_write(struct job *job)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = job->fd,
		.aio_buf = (uintptr_t)job->buf, .aio_nbytes = job->len,
		.aio_offset = job->offset,
	};

	return aio_do(job, &iocb);
}

static inline long uring_up(struct job *job, unsigned int flags)
{
	int ret = io_uring_queue_init(4, &job->ring, flags);

	job->ring_up = ret >= 0;
	return ret;
}

static inline long prepare_uring(struct job *job)
{
	return uring_up(job, 0);
}

static inline long prepare_uring_sqpoll(struct job *job)
{
	return uring_up(job, IORING_SETUP_SQPOLL);
}

/* A write(2) from a buffer that the ring keeps pinned */
static inline long prepare_uring_fixed_src(struct job *job)
{
	struct iovec iov = { job->buf, job->len };
	long ret = uring_up(job, 0);

	return ret < 0 ? ret : io_uring_register_buffers(&job->ring, &iov, 1);
}

static inline long uring_do(struct job *job)
{
	struct io_uring_cqe *cqe;
	long ret = io_uring_submit(&job->ring);

	if (ret < 0)
		return ret;
	do {
		ret = io_uring_wait_cqe(&job->ring, &cqe);
	} while (ret == -EINTR);
	if (ret < 0)
		return ret;
	ret = cqe->res;
	io_uring_cqe_seen(&job->ring, cqe);
	return ret;
}

static inline long run_uring_write(struct job *job)
{
	io_uring_prep_write(io_uring_get_sqe(&job->ring), job->fd, job->buf,
			    job->len, job->offset);
	return uring_do(job);
}

static inline long run_uring_write_fixed(struct job *job)
{
	io_uring_prep_write_fixed(io_uring_get_sqe(&job->ring), job->fd,
				  job->buf, job->len, job->offset, 0);
	return uring_do(job);
}

static inline long prepare_uring_splice(struct job *job)
{
	long ret = prepare_pipe(job);

	return ret < 0 ? ret : uring_up(job, 0);
}

static inline long run_uring_splice(struct job *job)
{
	io_uring_prep_splice(io_uring_get_sqe(&job->ring), job->fds[0], -1,
			     job->fd, job->offset, job->len, 0);
	return uring_do(job);
}

/* The kernel writes the mapping: system calls that return data */

static inline long run_read_pipe(struct job *job)
{
	return neg_errno(read(job->fds[0], job_addr(job), job->len));
}

static inline long run_readv_pipe(struct job *job)
{
	struct iovec iov[2] = {
		{ job->buf, 16 }, { job_addr(job), job->len - 16 },
	};
	long ret = neg_errno(readv(job->fds[0], iov, 2));

	/* What came before the protected page is not lost */
	return ret == 16 ? -EFAULT : ret;
}

static inline long run_read_file(struct job *job)
{
	return neg_errno(pread(job->src, job_addr(job), job->len, 0));
}

static inline long prepare_socket(struct job *job)
{
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, job->fds))
		return -errno;
	return send(job->fds[1], job->buf, job->len, 0) < 0 ? -errno : 0;
}

static inline long run_recv(struct job *job)
{
	return neg_errno(recv(job->fds[0], job_addr(job), job->len, 0));
}

static inline long run_getrandom(struct job *job)
{
	return neg_errno(syscall(__NR_getrandom, job_addr(job), 64, 0));
}

static inline long run_put_user(struct job *job)
{
	return neg_errno(syscall(__NR_gettimeofday, job_addr(job), NULL));
}

static inline long run_vmsplice(struct job *job)
{
	struct iovec iov = job_iov(job);

	return neg_errno(vmsplice(job->fds[0], &iov, 1, 0));
}

static inline long run_aio_read(struct job *job)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = job->src,
		.aio_buf = (uintptr_t)job_addr(job), .aio_nbytes = job->len,
	};

	return aio_do(job, &iocb);
}

static inline long prepare_aio_read(struct job *job)
{
	long ret = prepare_src(job);

	return ret < 0 ? ret : prepare_aio(job);
}

static inline long prepare_uring_read(struct job *job)
{
	long ret = prepare_src(job);

	return ret < 0 ? ret : uring_up(job, 0);
}

static inline long run_uring_read(struct job *job)
{
	io_uring_prep_read(io_uring_get_sqe(&job->ring), job->src,
			   job_addr(job), job->len, 0);
	return uring_do(job);
}

static inline long prepare_uring_sqpoll_read(struct job *job)
{
	long ret = prepare_src(job);

	return ret < 0 ? ret : uring_up(job, IORING_SETUP_SQPOLL);
}

/* Registering pins the page for writing: that is what is caught */
static inline long run_uring_read_fixed(struct job *job)
{
	struct iovec iov = job_iov(job);
	long ret = io_uring_register_buffers(&job->ring, &iov, 1);

	if (ret < 0)
		return ret;
	io_uring_prep_read_fixed(io_uring_get_sqe(&job->ring), job->src,
				 job_addr(job), job->len, 0, 0);
	ret = uring_do(job);
	io_uring_unregister_buffers(&job->ring);
	return ret;
}

/* O_DIRECT from wherever it is to be had: it pins the page of the mapping */

static inline long prepare_direct_read(struct job *job, const char *file)
{
	job->src = neg_errno(open(file, O_RDONLY | O_DIRECT | O_CLOEXEC));
	if (job->src == -EINVAL || job->src == -ENOENT || job->src == -ENXIO)
		return -EOPNOTSUPP;
	return job->src < 0 ? job->src : 0;
}

static inline long prepare_direct_block(struct job *job)
{
	return prepare_direct_read(job, "/dev/vda");
}

/* This program itself: in the guest it is on 9p */
static inline long prepare_direct_file(struct job *job)
{
	return prepare_direct_read(job, "/proc/self/exe");
}

static inline long prepare_direct_shmem(struct job *job)
{
	long ret = prepare_src(job), fd;

	if (ret < 0)
		return ret;
	fd = reopen_fd(job->src, O_RDONLY | O_DIRECT);
	if (fd < 0)
		return -EOPNOTSUPP;
	close(job->src);
	job->src = fd;
	return 0;
}

/* Other people's memory, and one's own by the same means */

static inline long run_process_vm_writev(struct job *job)
{
	struct iovec local = { job->buf, job->len }, remote = job_iov(job);

	return neg_errno(process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
}

static inline long prepare_proc_mem(struct job *job)
{
	job->out = neg_errno(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
	return job->out < 0 ? job->out : 0;
}

static inline long run_proc_mem(struct job *job)
{
	return neg_errno(pwrite(job->out, job->buf, job->len,
				(off_t)(uintptr_t)job_addr(job)));
}

static inline long prepare_ptrace(struct job *job)
{
	int status;

	job->child = fork();
	if (!job->child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close_if_open(&job->nfd);
		job_touch(job);
		*job->word = 1;
		for (;;)
			pause();
	}
	while (!*job->word)
		usleep(200);
	if (ptrace(PTRACE_SEIZE, job->child, 0, 0) ||
	    ptrace(PTRACE_INTERRUPT, job->child, 0, 0))
		return -errno;
	return neg_errno(waitpid(job->child, &status, __WALL));
}

static inline long run_ptrace(struct job *job)
{
	long data;

	memset(&data, job->byte, sizeof(data));
	return neg_errno(ptrace(PTRACE_POKEDATA, job->child, job_addr(job),
				data));
}

/* The child writes to its parent, over another mapping of the same file */
static inline long run_process_vm_writev_child(struct job *job)
{
	struct iovec local = { job->buf, job->len }, remote = job_iov(job);

	return neg_errno(process_vm_writev(job->child, &local, 1, &remote, 1,
					   0));
}

/* Writes of the kernel that are part of something else */

static inline long run_futex(struct job *job)
{
	uint32_t own = 0;

	return neg_errno(syscall(__NR_futex, &own, FUTEX_WAKE_OP, 0, NULL,
				 job_addr(job),
				 FUTEX_OP(FUTEX_OP_XOR, job->byte,
					  FUTEX_OP_CMP_EQ, 0)));
}

#ifndef FUTEX_ROBUST_UNLOCK
#define FUTEX_ROBUST_UNLOCK	512
#endif

/* The kernel unlocks, and takes the lock off the list (Linux 7.3) */
static inline long run_futex_unlock(struct job *job)
{
	unsigned long pending = (unsigned long)job_addr(job);

	if (syscall(__NR_futex, job_addr(job), FUTEX_WAKE | FUTEX_ROBUST_UNLOCK, 1, NULL,
		    &pending, 0) < 0)
		return -errno;
	return pending ? -EINVAL : 1;
}

static int exit_at_once(void *arg)
{
	return 0;
}

static inline long run_clone(struct job *job, int flags)
{
	int status;
	pid_t pid;

	pid = clone(exit_at_once, job->stack + 65536,
		    CLONE_VM | CLONE_FILES | SIGCHLD | flags, NULL, job_addr(job), NULL,
		    job_addr(job));
	if (pid < 0)
		return -errno;
	while (waitpid(pid, &status, __WALL) < 0 && errno == EINTR)
		;
	return 1;
}

static inline long prepare_clone(struct job *job)
{
	job->stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return job->stack == MAP_FAILED ? -ENOMEM : 0;
}

static inline long run_clone_parent_settid(struct job *job)
{
	return run_clone(job, CLONE_PARENT_SETTID);
}

static inline long run_clone_child_settid(struct job *job)
{
	return run_clone(job, CLONE_CHILD_SETTID);
}

static inline long run_clone_child_cleartid(struct job *job)
{
	return run_clone(job, CLONE_CHILD_CLEARTID);
}

/* A robust list whose pending entry is a futex in the page */
struct robust {
	struct robust_list_head head;
	char *word;
};

static void robust_child(struct job *job)
{
	struct robust robust = { .head.list.next = &robust.head.list };
	int tid = gettid();

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close_if_open(&job->nfd);
	memcpy(job_addr(job), &tid, sizeof(tid));
	robust.head.futex_offset = 0;
	robust.head.list_op_pending = job_addr(job);
	syscall(__NR_set_robust_list, &robust.head, sizeof(robust.head));
	*job->word = 1;
	while (*job->word != 2)
		usleep(200);
	_exit(0);
}

static inline long prepare_robust(struct job *job)
{
	job->child = fork();
	if (!job->child)
		robust_child(job);
	while (!*job->word)
		usleep(200);
	return job->child < 0 ? -errno : 0;
}

static inline long run_robust(struct job *job)
{
	int status;

	*job->word = 2;
	while (waitpid(job->child, &status, 0) < 0 && errno == EINTR)
		;
	job->child = 0;
	return WIFEXITED(status) ? 1 : -ECHILD;
}

static void exit_handler(int sig)
{
	_exit(0);
}

/* The frame of a signal handler, on an alternate stack in the page */
static void sigframe_child(struct job *job)
{
	struct sigaction act = {
		.sa_handler = exit_handler, .sa_flags = SA_ONSTACK,
	};
	stack_t stack = {
		.ss_sp = (char *)job_addr(job) - 3 * job->len,
		.ss_size = 4 * job->len,
	};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 0);
	close_if_open(&job->nfd);
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	if (sigaltstack(&stack, NULL))
		_exit(1);
	sigaction(SIGUSR1, &act, NULL);
	raise(SIGUSR1);
	_exit(2);
}

static inline long run_sigframe(struct job *job)
{
	int status;

	job->child = fork();
	if (!job->child)
		sigframe_child(job);
	while (waitpid(job->child, &status, 0) < 0 && errno == EINTR)
		;
	job->child = 0;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV)
		return -EFAULT;
	return WIFEXITED(status) && !WEXITSTATUS(status) ? 1 : -ECHILD;
}

/* What makes pages writable, or pins them, without a write */

static inline long run_populate_write(struct job *job)
{
	return neg_errno(madvise(job_addr(job), job->len,
				 MADV_POPULATE_WRITE));
}

static inline long prepare_gup(struct job *job)
{
	job->src = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);
	return job->src < 0 ? -EOPNOTSUPP : 0;
}

static inline long gup_pin(struct job *job, unsigned int flags)
{
	struct gup_longterm arg = {
		.addr = (uintptr_t)job_addr(job), .size = job->len,
		.flags = flags,
	};

	return neg_errno(ioctl(job->src, GUP_LONGTERM_START, &arg));
}

static inline long run_gup_pin(struct job *job)
{
	return gup_pin(job, PIN_FLAG_WRITE);
}

static inline long run_gup_pin_fast(struct job *job)
{
	return gup_pin(job, PIN_FLAG_WRITE | PIN_FLAG_FAST);
}

static inline void cleanup_gup(struct job *job)
{
	if (job->src >= 0)
		ioctl(job->src, GUP_LONGTERM_STOP, 0);
}

static inline long prepare_udmabuf(struct job *job)
{
	job->src = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (job->src < 0)
		return -EOPNOTSUPP;
	return neg_errno(fcntl(job->fd, F_ADD_SEALS, F_SEAL_SHRINK));
}

static inline long run_udmabuf(struct job *job)
{
	struct udmabuf_create arg = {
		.memfd = job->fd, .flags = UDMABUF_FLAGS_CLOEXEC,
		.offset = job->offset, .size = job->len,
	};

	job->out = neg_errno(ioctl(job->src, UDMABUF_CREATE, &arg));
	return job->out;
}

/* Holes and ends */

static inline long run_punch(struct job *job)
{
	return neg_errno(fallocate(job->fd, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, job->offset,
				   job->len));
}

/* Less than a page: its bytes become zero, the page stays */
static inline long run_punch_part(struct job *job)
{
	return neg_errno(fallocate(job->fd, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, job->offset + 100,
				   10));
}

static inline long run_madv_remove(struct job *job)
{
	return neg_errno(madvise(job_addr(job), job->len, MADV_REMOVE));
}

static inline long run_uring_punch(struct job *job)
{
	io_uring_prep_fallocate(io_uring_get_sqe(&job->ring), job->fd,
				FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				job->offset, job->len);
	return uring_do(job);
}

static inline long run_ftruncate(struct job *job)
{
	return neg_errno(ftruncate(job->fd, job->offset));
}

/* Into the middle of the page: its tail becomes zero */
static inline long run_ftruncate_part(struct job *job)
{
	return neg_errno(ftruncate(job->fd, job->offset + job->len / 2));
}

static inline long run_truncate_path(struct job *job)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", job->fd);
	return neg_errno(truncate(path, job->offset));
}

static inline long run_open_trunc(struct job *job)
{
	job->out = reopen_fd(job->fd, O_RDWR | O_TRUNC);
	return job->out;
}

static inline long run_uring_ftruncate(struct job *job)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&job->ring);

	io_uring_prep_rw(URING_OP_FTRUNCATE, sqe, job->fd, NULL, 0,
			 job->offset);
	return uring_do(job);
}

/* A kernel thread: the loop device's worker writes its backing file */

static inline long prepare_loop(struct job *job)
{
	int nr, ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	char path[32];

	if (ctl < 0)
		return -EOPNOTSUPP;
	nr = ioctl(ctl, LOOP_CTL_GET_FREE);
	close(ctl);
	if (nr < 0)
		return -EOPNOTSUPP;
	snprintf(path, sizeof(path), "/dev/loop%d", nr);
	job->src = neg_errno(open(path, O_RDWR | O_DIRECT | O_CLOEXEC));
	if (job->src < 0)
		return job->src;
	return neg_errno(ioctl(job->src, LOOP_SET_FD, job->fd));
}

static inline long run_loop(struct job *job)
{
	return neg_errno(pwrite(job->src, job->buf, job->len, job->offset));
}

static inline void cleanup_loop(struct job *job)
{
	if (job->src >= 0)
		ioctl(job->src, LOOP_CLR_FD, 0);
}

#define PATH(_name, _kind, ...) \
	{ .name = #_name, .kind = PATH_##_kind, .run = run_##_name, __VA_ARGS__ }
#define NEEDS(what)	.prepare = prepare_##what
#define ENDS(what)	.cleanup = cleanup_##what
#define FLAGS(what)	.flags = what

/* Every path has a name: the tests' variants are called after it */
enum path_nr {
	P_store, P_store_atomic,
	P_write, P_pwrite, P_pwritev2, P_direct, P_sendfile,
	P_copy_file_range, P_splice, P_aio_write, P_uring_write,
	P_uring_write_fixed, P_uring_write_sqpoll, P_uring_splice,
	P_read_pipe, P_readv_pipe, P_read_file, P_recv, P_getrandom,
	P_put_user, P_vmsplice, P_aio_read, P_uring_read,
	P_uring_read_sqpoll, P_uring_read_fixed, P_direct_read_block,
	P_direct_read_file, P_direct_read_shmem, P_process_vm_writev,
	P_process_vm_writev_child, P_proc_mem, P_ptrace, P_futex,
	P_futex_unlock,
	P_clone_parent_settid, P_clone_child_settid, P_clone_child_cleartid,
	P_robust, P_sigframe, P_populate_write, P_gup_pin, P_gup_pin_fast,
	P_udmabuf,
	P_punch, P_punch_part, P_madv_remove, P_uring_punch,
	P_ftruncate, P_ftruncate_part, P_truncate_path, P_open_trunc,
	P_uring_ftruncate, P_loop,
	NR_PATHS
};

static const struct path paths[NR_PATHS] = {
	[P_store] = PATH(store, STORE),
	[P_store_atomic] = PATH(store_atomic, STORE),

	[P_write] = PATH(write, CALL, NEEDS(out)),
	[P_pwrite] = PATH(pwrite, CALL),
	[P_pwritev2] = PATH(pwritev2, CALL),
	[P_direct] = PATH(direct, CALL, NEEDS(direct)),
	[P_sendfile] = PATH(sendfile, CALL, NEEDS(src)),
	[P_copy_file_range] = PATH(copy_file_range, CALL, NEEDS(src)),
	[P_splice] = PATH(splice, CALL, NEEDS(pipe)),
	[P_aio_write] = PATH(aio_write, CALL, NEEDS(aio)),
	[P_uring_write] = PATH(uring_write, CALL, NEEDS(uring)),
	[P_uring_write_fixed] = PATH(uring_write_fixed, CALL,
				     NEEDS(uring_fixed_src)),
	[P_uring_write_sqpoll] = {
		.name = "uring_write_sqpoll", .kind = PATH_CALL,
		.prepare = prepare_uring_sqpoll, .run = run_uring_write,
		.flags = PATH_SLOW,
	},
	[P_uring_splice] = PATH(uring_splice, CALL, NEEDS(uring_splice)),

	[P_read_pipe] = PATH(read_pipe, MAPPING, NEEDS(pipe)),
	[P_readv_pipe] = PATH(readv_pipe, MAPPING, NEEDS(pipe)),
	[P_read_file] = PATH(read_file, MAPPING, NEEDS(src)),
	[P_recv] = PATH(recv, MAPPING, NEEDS(socket)),
	[P_getrandom] = PATH(getrandom, MAPPING),
	[P_put_user] = PATH(put_user, MAPPING),
	[P_vmsplice] = PATH(vmsplice, MAPPING, NEEDS(pipe)),
	[P_aio_read] = PATH(aio_read, MAPPING, NEEDS(aio_read)),
	[P_uring_read] = PATH(uring_read, MAPPING, NEEDS(uring_read)),
	[P_uring_read_sqpoll] = {
		.name = "uring_read_sqpoll", .kind = PATH_MAPPING,
		.prepare = prepare_uring_sqpoll_read, .run = run_uring_read,
		.flags = PATH_SLOW,
	},
	[P_uring_read_fixed] = PATH(uring_read_fixed, MAPPING,
				    NEEDS(uring_read)),
	[P_direct_read_block] = {
		.name = "direct_read_block", .kind = PATH_MAPPING,
		.flags = PATH_PINS,
		.prepare = prepare_direct_block, .run = run_read_file,
	},
	[P_direct_read_file] = {
		.name = "direct_read_file", .kind = PATH_MAPPING,
		.flags = PATH_PINS,
		.prepare = prepare_direct_file, .run = run_read_file,
	},
	[P_direct_read_shmem] = {
		.name = "direct_read_shmem", .kind = PATH_MAPPING,
		.flags = PATH_PINS,
		.prepare = prepare_direct_shmem, .run = run_read_file,
	},
	[P_process_vm_writev] = PATH(process_vm_writev, MAPPING),
	[P_process_vm_writev_child] = PATH(process_vm_writev_child, MAPPING,
					   NEEDS(ptrace), FLAGS(PATH_SLOW)),
	[P_proc_mem] = PATH(proc_mem, MAPPING, NEEDS(proc_mem), .error = -EIO,
			    FLAGS(PATH_NO_WAIT)),
	[P_ptrace] = PATH(ptrace, MAPPING, NEEDS(ptrace), .error = -EIO,
			  FLAGS(PATH_NO_WAIT | PATH_SLOW)),
	[P_futex] = PATH(futex, MAPPING),
	[P_futex_unlock] = PATH(futex_unlock, MAPPING, FLAGS(PATH_ZERO)),
	[P_clone_parent_settid] = PATH(clone_parent_settid, MAPPING,
				       NEEDS(clone), FLAGS(PATH_SILENT)),
	[P_clone_child_settid] = PATH(clone_child_settid, MAPPING,
				      NEEDS(clone), FLAGS(PATH_SILENT)),
	[P_clone_child_cleartid] = PATH(clone_child_cleartid, MAPPING,
					NEEDS(clone),
					FLAGS(PATH_SILENT | PATH_EXIT |
					      PATH_ZERO)),
	[P_robust] = PATH(robust, MAPPING, NEEDS(robust),
			  FLAGS(PATH_SILENT | PATH_EXIT | PATH_OWN_WORD |
				PATH_SLOW)),
	[P_sigframe] = PATH(sigframe, MAPPING, FLAGS(PATH_SLOW)),
	[P_populate_write] = PATH(populate_write, MAPPING,
				  FLAGS(PATH_NO_CHANGE)),
	[P_gup_pin] = PATH(gup_pin, MAPPING, NEEDS(gup), ENDS(gup),
			   FLAGS(PATH_NO_CHANGE | PATH_NO_WAIT | PATH_SLOW)),
	[P_gup_pin_fast] = PATH(gup_pin_fast, MAPPING, NEEDS(gup), ENDS(gup),
				FLAGS(PATH_NO_CHANGE | PATH_SLOW)),
	[P_udmabuf] = PATH(udmabuf, PIN, NEEDS(udmabuf),
			   FLAGS(PATH_NO_CHANGE | PATH_NO_WAIT | PATH_SLOW)),

	[P_punch] = PATH(punch, PUNCH),
	[P_punch_part] = PATH(punch_part, PUNCH),
	[P_madv_remove] = PATH(madv_remove, PUNCH),
	[P_uring_punch] = PATH(uring_punch, PUNCH, NEEDS(uring)),
	[P_ftruncate] = PATH(ftruncate, TRUNCATE),
	/*
	 * Not under stress: what mappings store behind the end of file becomes
	 * visible when the file grows, without a write that could be caught.
	 */
	[P_ftruncate_part] = PATH(ftruncate_part, TRUNCATE, FLAGS(PATH_SLOW)),
	[P_truncate_path] = PATH(truncate_path, TRUNCATE),
	[P_open_trunc] = PATH(open_trunc, TRUNCATE),
	[P_uring_ftruncate] = PATH(uring_ftruncate, TRUNCATE, NEEDS(uring)),
	[P_loop] = PATH(loop, KTHREAD, NEEDS(loop), ENDS(loop),
			FLAGS(PATH_NO_WAIT | PATH_SLOW)),
};

/* -errno of a path that this kernel or machine does not have */
static inline bool path_missing(long ret)
{
	return ret == -EOPNOTSUPP || ret == -ENOSYS;
}

#endif /* MEMFD_PROTECT_PATHS_H */
