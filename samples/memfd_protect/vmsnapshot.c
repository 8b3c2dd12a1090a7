// SPDX-License-Identifier: BSD-3-Clause
/*
 * vmsnapshot - a snapshot of a virtual machine of QEMU that runs on.
 *
 * Usage: vmsnapshot [--copy-stopped] save QMP PID STATE MEMORY
 *        vmsnapshot resume QMP STATE
 *
 * QMP is the socket of the machine's monitor; PID its process, whose memory is the
 * largest memfd that it has open, and was made with MFD_ALLOW_PROTECT (memfdctl run
 * --protect does so). The machine is stopped for as long as it takes to write its
 * devices to STATE, which is not much because of x-ignore-shared, and to protect its
 * memory. Then it goes on, and the memory is copied to MEMORY: in order, but pages that
 * it wants to write first. With --copy-stopped it stands still meanwhile, as it would
 * without memfd_protect(2).
 *
 * resume: a second QEMU that was started with -incoming defer, and MEMORY as its memory,
 * goes on from that moment.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/memfd.h>

#ifndef __NR_memfd_protect
#define __NR_memfd_protect	548
#endif
#ifndef __NR_memfd_notify
#define __NR_memfd_notify	549
#endif

#define CHUNK	(64 * 4096UL)

/* What is said to the monitor */
#define IGNORE_SHARED \
	"{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":" \
	"[{\"capability\":\"x-ignore-shared\",\"state\":true}]}}"
#define SAVE_TO \
	"{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"unix:%s\"}}"
#define LOAD_FROM \
	"{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"exec:cat %.200s\"}}"

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

/*
 * The monitor
 */

static int unix_socket(const char *path, struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(addr->sun_path))
		errx(2, "%s: too long for a socket", path);
	strcpy(addr->sun_path, path);
	if (fd < 0)
		err(1, "socket");
	return fd;
}

/* Sends a command and returns the line that answers it: "return" or "error". */
static const char *try_command(FILE *qmp, const char *command)
{
	static char line[65536];

	fprintf(qmp, "%s\n", command);
	fflush(qmp);
	while (fgets(line, sizeof(line), qmp))
		if (!strncmp(line, "{\"return\"", 9) || !strncmp(line, "{\"error\"", 8))
			return line;
	errx(1, "the monitor has gone");
}

static const char *command(FILE *qmp, const char *command)
{
	const char *answer = try_command(qmp, command);

	if (strncmp(answer, "{\"return\"", 9))
		errx(1, "%s: %s", command, answer);
	return answer;
}

static FILE *open_monitor(const char *path)
{
	struct sockaddr_un addr;
	int fd = unix_socket(path, &addr);
	char greeting[4096];
	FILE *qmp;

	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		err(2, "%s", path);
	qmp = fdopen(fd, "r+");
	if (!qmp || !fgets(greeting, sizeof(greeting), qmp) || !strstr(greeting, "QMP"))
		errx(2, "%s: this is no monitor of QEMU", path);
	command(qmp, "{\"execute\":\"qmp_capabilities\"}");
	command(qmp, IGNORE_SHARED);
	return qmp;
}

static void wait_for_migration(FILE *qmp)
{
	const char *answer;

	do {
		answer = command(qmp, "{\"execute\":\"query-migrate\"}");
		if (strstr(answer, "\"failed\""))
			errx(1, "migration: %s", answer);
	} while (!strstr(answer, "\"completed\""));
}

/**
 * struct receiver - where the machine sends the state of its devices
 * @path: A socket.
 * @fd: It.
 * @out: The file.
 * @bytes: How much came.
 * @thread: Who receives.
 */
struct receiver {
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	int fd;
	int out;
	size_t bytes;
	pthread_t thread;
};

static void *receive(void *arg)
{
	struct receiver *r = arg;
	int client = accept(r->fd, NULL, NULL);
	char buf[65536];
	ssize_t got;

	while ((got = read(client, buf, sizeof(buf))) > 0) {
		if (write(r->out, buf, got) != got)
			err(1, "state");
		r->bytes += got;
	}
	close(client);
	return NULL;
}

static void start_receiver(struct receiver *r, const char *state)
{
	struct sockaddr_un addr;

	snprintf(r->path, sizeof(r->path), "%s.socket", state);
	unlink(r->path);
	r->fd = unix_socket(r->path, &addr);
	r->bytes = 0;
	r->out = open(state, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (r->out < 0)
		err(2, "%s", state);
	if (bind(r->fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(r->fd, 1))
		err(1, "%s", r->path);
	errno = pthread_create(&r->thread, NULL, receive, r);
	if (errno)
		err(1, "thread");
}

static void save_devices(FILE *qmp, struct receiver *r)
{
	char text[256];

	snprintf(text, sizeof(text), SAVE_TO, r->path);
	command(qmp, text);
	wait_for_migration(qmp);
	pthread_join(r->thread, NULL);
	unlink(r->path);
	close(r->fd);
	close(r->out);
}

/*
 * The memory
 */

/**
 * struct memory - the memory of a machine, and its copy
 * @fd: The memfd.
 * @notify: Its event fd.
 * @data: Where it is mapped here.
 * @size: Bytes.
 * @page: Bytes of a page.
 * @out: The copy.
 * @copied: A byte for each page.
 * @on_demand: Pages that the machine wanted to write.
 */
struct memory {
	int fd;
	int notify;
	const char *data;
	size_t size;
	size_t page;
	int out;
	char *copied;
	size_t on_demand;
};

/* The largest memfd among the descriptors of a process */
static int largest_memfd(const char *pid)
{
	char path[64], best_path[64] = "", link[64];
	struct dirent *d;
	off_t best = 0;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	if (!dir)
		err(2, "process %s", pid);
	while ((d = readdir(dir))) {
		ssize_t len;

		snprintf(path, sizeof(path), "/proc/%.20s/fd/%.20s", pid, d->d_name);
		len = readlink(path, link, sizeof(link) - 1);
		link[len < 0 ? 0 : len] = '\0';
		if (strncmp(link, "/memfd:", 7) || stat(path, &st) || st.st_size <= best)
			continue;
		best = st.st_size;
		strcpy(best_path, path);
	}
	closedir(dir);
	if (!best)
		errx(2, "process %s has no memfd", pid);
	return open(best_path, O_RDWR | O_CLOEXEC);
}

static void open_memory(struct memory *m, const char *pid, const char *copy)
{
	struct stat st;

	m->fd = largest_memfd(pid);
	if (m->fd < 0 || fstat(m->fd, &st))
		err(2, "memory of process %s", pid);
	m->size = st.st_size;
	m->page = sysconf(_SC_PAGESIZE);
	m->data = mmap(NULL, m->size, PROT_READ, MAP_SHARED, m->fd, 0);
	m->copied = calloc(m->size / m->page, 1);
	if (m->data == MAP_FAILED || !m->copied)
		err(1, "memory");
	m->out = open(copy, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (m->out < 0 || ftruncate(m->out, m->size))
		err(2, "%s", copy);
	/* What the kernel writes there, such as for a disk, is to wait as well. */
	m->notify = syscall(__NR_memfd_notify, m->fd, MEMFD_NOTIFY_NONBLOCK | MEMFD_NOTIFY_KERNEL);
	if (m->notify < 0)
		err(2, "memory of process %s: event fd", pid);
}

static void protect(struct memory *m)
{
	if (syscall(__NR_memfd_protect, m->fd, 0, m->size, PROT_READ, MEMFD_PROTECT_WAIT))
		err(1, "memfd_protect");
}

static bool is_zero(const char *data, size_t len)
{
	return !*data && !memcmp(data, data + 1, len - 1);
}

/* Copies pages that have not been, and leaves holes where they are zero. */
static void copy_pages(struct memory *m, size_t first, size_t nr)
{
	for (size_t page = first; page < first + nr; page++) {
		const char *data = m->data + page * m->page;

		if (m->copied[page])
			continue;
		m->copied[page] = 1;
		if (!is_zero(data, m->page) &&
		    pwrite(m->out, data, m->page, page * m->page) != (ssize_t)m->page)
			err(1, "the copy");
	}
}

static void answer(struct memory *m)
{
	struct memfd_event event;

	while (read(m->notify, &event, sizeof(event)) == sizeof(event)) {
		struct memfd_resolve allow = {
			.cookie = event.cookie,
			.action = MEMFD_RESOLVE_ALLOW,
		};
		size_t first = event.offset / m->page, nr = event.length / m->page;

		if (!event.cookie)
			continue;
		m->on_demand += nr;
		copy_pages(m, first, nr);
		if (ioctl(m->notify, MEMFD_NOTIFY_RESOLVE, &allow) && errno != ENOENT)
			err(1, "MEMFD_NOTIFY_RESOLVE");
	}
}

static void copy_all(struct memory *m, bool running)
{
	for (size_t at = 0; at < m->size; at += CHUNK) {
		size_t len = m->size - at < CHUNK ? m->size - at : CHUNK;

		if (running)
			answer(m);
		copy_pages(m, at / m->page, len / m->page);
		if (running &&
		    syscall(__NR_memfd_protect, m->fd, at, len, PROT_READ | PROT_WRITE, 0))
			err(1, "memfd_protect");
	}
}

/* What is wrong ends the program, but the machine is to go on. */
static FILE *stopped_machine;

static void let_go_on(void)
{
	if (!stopped_machine)
		return;
	fputs("{\"execute\":\"cont\"}\n", stopped_machine);
	fflush(stopped_machine);
}

static void *copier(void *arg)
{
	copy_all(arg, true);
	return NULL;
}

static void save(const char *monitor, const char *pid, const char *state, const char *copy_path,
		 bool copy_stopped)
{
	double start, stopped, saved, protected, went_on, end;
	struct receiver receiver;
	struct memory m = { 0 };
	pthread_t thread;
	FILE *qmp = open_monitor(monitor);

	open_memory(&m, pid, copy_path);
	start_receiver(&receiver, state);
	atexit(let_go_on);
	start = now_ms();
	stopped_machine = qmp;
	command(qmp, "{\"execute\":\"stop\"}");
	stopped = now_ms();
	save_devices(qmp, &receiver);
	saved = now_ms();
	if (copy_stopped)
		copy_all(&m, false);
	else
		protect(&m);
	protected = now_ms();
	/* The monitor may have to wait for a page before it answers. */
	errno = copy_stopped ? 0 : pthread_create(&thread, NULL, copier, &m);
	if (errno)
		err(1, "thread");
	command(qmp, "{\"execute\":\"cont\"}");
	went_on = now_ms();
	stopped_machine = NULL;
	if (!copy_stopped)
		pthread_join(thread, NULL);
	close(m.notify);
	end = now_ms();
	printf("%4zu MiB: stood still for %7.1f ms: ", m.size >> 20, went_on - start);
	printf("stop %.1f, devices %.1f (%zu kB), %s %.1f, cont %.1f; ", stopped - start,
	       saved - stopped, receiver.bytes / 1024, copy_stopped ? "copy" : "protect",
	       protected - saved, went_on - protected);
	printf("copied after %.1f ms, %zu pages on demand\n", end - start, m.on_demand);
}

static void resume(const char *monitor, const char *state)
{
	FILE *qmp = open_monitor(monitor);
	char text[512];

	snprintf(text, sizeof(text), LOAD_FROM, state);
	command(qmp, text);
	wait_for_migration(qmp);
	/* It may go on by itself. */
	try_command(qmp, "{\"execute\":\"cont\"}");
}

int main(int argc, char **argv)
{
	bool copy_stopped = argc > 1 && !strcmp(argv[1], "--copy-stopped");

	argv += copy_stopped;
	argc -= copy_stopped;
	if (argc == 6 && !strcmp(argv[1], "save"))
		save(argv[2], argv[3], argv[4], argv[5], copy_stopped);
	else if (argc == 4 && !strcmp(argv[1], "resume"))
		resume(argv[2], argv[3]);
	else
		errx(2, "usage: vmsnapshot [--copy-stopped] save QMP PID STATE MEMORY, or\n"
		     "       vmsnapshot resume QMP STATE");
	return 0;
}
