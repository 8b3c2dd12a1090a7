// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl run: a program that knows nothing of all this, with its shared memory in
 * memfds that can be protected, or share their page tables.
 *
 *   memfdctl run            waits for the program, and ends as it does
 *     keeper                what has a name (keeper.c); lives until the last has ended
 *       PROGRAM             with memfdctl-run.so preloaded (preload.c)
 *
 * The keeper is between the two because a program may go on in the background: then
 * memfdctl ends, and the keeper does not.
 */
#define _GNU_SOURCE
#include "memfdctl.h"
#include "run.h"

#include <elf.h>
#include <errno.h>
#include <limits.h>
#include <linux/memfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PRELOAD	"memfdctl-run.so"

/* What the keeper tells memfdctl, in this order */
struct progress {
	pid_t pid;	/* of the program */
	int status;	/* of waitpid() */
};

static pid_t program;
static int to_parent;

/* The library is where it was installed beside memfdctl, or built. */
static bool find_preload(char path[PATH_MAX])
{
	static const char * const places[] = { "../lib/memfd-protect/", "" };
	char self[PATH_MAX];
	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (len <= 0)
		return false;
	self[len] = '\0';
	*strrchr(self, '/') = '\0';
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
		if (snprintf(path, PATH_MAX, "%s/%s" PRELOAD, self, places[i]) < PATH_MAX &&
		    !access(path, R_OK))
			return true;
	return false;
}

/* As execvp() would: the first one of PATH that can be executed */
static bool find_program(const char *name, char path[PATH_MAX])
{
	const char *dirs = getenv("PATH");

	if (strchr(name, '/')) {
		snprintf(path, PATH_MAX, "%s", name);
		return !access(path, X_OK);
	}
	for (const char *dir = dirs ? dirs : "/usr/bin:/bin"; ; dir++) {
		size_t len = strcspn(dir, ":");

		if (snprintf(path, PATH_MAX, "%.*s%s%s", (int)len, dir, len ? "/" : "./", name) <
		    PATH_MAX && !access(path, X_OK))
			return true;
		dir += len;
		if (!*dir)
			return false;
	}
}

/* Whether the linker would ask for other programs to be loaded: static ones do not */
static bool has_interpreter(FILE *f, const Elf64_Ehdr *header)
{
	Elf64_Phdr segment;

	for (int i = 0; i < header->e_phnum; i++)
		if (!fseek(f, header->e_phoff + i * sizeof(segment), SEEK_SET) &&
		    fread(&segment, sizeof(segment), 1, f) == 1 && segment.p_type == PT_INTERP)
			return true;
	return false;
}

/* Says why a program cannot be run so, if that can be seen before. */
static int check_program(const char *name, const char *path)
{
	Elf64_Ehdr header;
	struct stat st;
	int status = 0;
	FILE *f;

	if (!stat(path, &st) && (((st.st_mode & S_ISUID) && st.st_uid != getuid()) ||
				 ((st.st_mode & S_ISGID) && st.st_gid != getgid()) ||
				 getxattr(path, "security.capability", NULL, 0) > 0))
		return bad_usage("%s: nothing can be preloaded, it gets other rights", name);
	f = fopen(path, "re");
	/* It may be executable all the same. */
	if (!f)
		return 0;
	if (fread(&header, sizeof(header), 1, f) == 1 &&
	    !memcmp(header.e_ident, ELFMAG, SELFMAG)) {
		if (header.e_ident[EI_CLASS] != ELFCLASS64)
			status = bad_usage("%s: it is no 64-bit program", name);
		else if (!has_interpreter(f, &header))
			status = bad_usage("%s: statically linked, see ptshare(7)", name);
	}
	fclose(f);
	return status;
}

/* A kernel that has them, and lets us */
static int check_kernel(unsigned int flags)
{
	int fd = memfd_create("memfdctl", flags | MFD_CLOEXEC);

	if (fd >= 0) {
		close(fd);
		return 0;
	}
	fprintf(stderr, "memfdctl: run: this kernel has no %s\n",
		flags == MFD_ALLOW_PROTECT ? "memfd_protect" :
		flags == MFD_SHARE_PGTABLES ? "shared page tables" :
		"memfd_protect, or no shared page tables");
	return FAILED;
}

/* In the keeper, whose process is in it */
static void set_environment(const char *preload, unsigned int flags, const char *name,
			    const char *token)
{
	const char *old = getenv("LD_PRELOAD");
	char *value;

	if (asprintf(&value, "%x %d %s %.*s", flags, getpid(), name, RUN_TOKEN, token) < 0)
		abort();
	setenv(RUN_ENV, value, 1);
	free(value);
	if (asprintf(&value, "%s%s%s", preload, old ? ":" : "", old ? old : "") < 0)
		abort();
	setenv("LD_PRELOAD", value, 1);
	free(value);
}

static bool make_token(char token[RUN_TOKEN])
{
	static const char digits[] = "0123456789abcdef";
	unsigned char random[RUN_TOKEN / 2];

	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return false;
	for (size_t i = 0; i < sizeof(random); i++) {
		token[2 * i] = digits[random[i] >> 4];
		token[2 * i + 1] = digits[random[i] & 15];
	}
	return true;
}

static void ended(pid_t pid, int status)
{
	struct progress p = { pid, status };

	if (pid == program)
		(void)!write(to_parent, &p, sizeof(p));
}

/**
 * struct before - what the program finds as memfdctl found it
 * @signals: Blocked signals.
 * @child: What is done about SIGCHLD.
 * @files: How many descriptors there may be.
 */
struct before {
	sigset_t signals;
	struct sigaction child;
	struct rlimit files;
};

/* In the child of the keeper; does not return */
static void exec_program(char **argv, const char *path, const struct before *before, int failed)
{
	int error;

	setrlimit(RLIMIT_NOFILE, &before->files);
	sigaction(SIGCHLD, &before->child, NULL);
	sigprocmask(SIG_SETMASK, &before->signals, NULL);
	execv(path, argv);
	/* A script without its first line */
	if (errno == ENOEXEC)
		execvp(argv[0], argv);
	error = errno;
	(void)!write(failed, &error, sizeof(error));
	_exit(127);
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Nobody waits for what the keeper could still write, or for a lock that it has. */
static void let_go_of_files(int one, int two, int three)
{
	int keep[] = { one, two, three }, null = open("/dev/null", O_RDWR);
	unsigned int first = 3;

	for (int fd = 0; fd <= 2 && null >= 0; fd++)
		dup2(null, fd);
	qsort(keep, 3, sizeof(*keep), by_number);
	for (int i = 0; i < 3; i++) {
		if (keep[i] > (int)first)
			close_range(first, keep[i] - 1, 0);
		first = keep[i] + 1;
	}
	close_range(first, ~0U, 0);
	(void)!chdir("/");
}

/* Two descriptors for a file; files may be as long as they are. */
static void raise_limits(struct before *before)
{
	struct rlimit files, length = { RLIM_INFINITY, RLIM_INFINITY };

	getrlimit(RLIMIT_NOFILE, &before->files);
	files = before->files;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	/* Not everybody may: then what is too long stays the kernel's. */
	if (setrlimit(RLIMIT_FSIZE, &length))
		errno = 0;
}

static void keep(int socket, char **argv, const char *path, int failed)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	struct progress p = { 0 };
	struct before before;
	sigset_t mask;
	int signals;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_NAME, "memfdctl-keeper");
	/* All of them: what is sent to the process group is not for the keeper. */
	sigfillset(&mask);
	sigprocmask(SIG_BLOCK, &mask, &before.signals);
	/* If they are ignored, nobody says when a child has ended. */
	sigaction(SIGCHLD, &standard, &before.child);
	getrlimit(RLIMIT_NOFILE, &before.files);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	program = fork();
	if (!program)
		exec_program(argv, path, &before, failed);
	close(failed);
	p.pid = program;
	if (signals < 0 || program < 0 || write(to_parent, &p, sizeof(p)) != sizeof(p))
		_exit(FAILED);
	setsid();
	raise_limits(&before);
	let_go_of_files(socket, signals, to_parent);
	keeper_run(socket, signals, ended);
	_exit(0);
}

/* What comes from the terminal, or from the program itself, it has as well. */
static void pass_on(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (program > 0 && info->si_code <= 0 && info->si_pid != program)
		kill(program, sig);
}

/* Ends as the program has, but for a core file, which is the program's. */
static int end_as(int status)
{
	struct rlimit none = { 0, 0 };

	if (WIFSIGNALED(status)) {
		setrlimit(RLIMIT_CORE, &none);
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}

static int wait_for(int from_keeper, int failed, const char *name)
{
	static const int signals[] = {
		SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM,
	};
	struct sigaction pass = { .sa_sigaction = pass_on, .sa_flags = SA_RESTART | SA_SIGINFO };
	struct progress p = { 0 };
	int error;

	if (read(from_keeper, &p, sizeof(p)) != sizeof(p)) {
		fprintf(stderr, "memfdctl: run: no process could be made\n");
		return FAILED;
	}
	program = p.pid;
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		sigaction(signals[i], &pass, NULL);
	if (read(failed, &error, sizeof(error)) == sizeof(error))
		return bad_usage("%s: %s", name, strerror(error));
	if (read(from_keeper, &p, sizeof(p)) != sizeof(p)) {
		fprintf(stderr, "memfdctl: run: the keeper was killed\n");
		return FAILED;
	}
	return end_as(p.status);
}

static int start(char **argv, const char *path, const char *preload, unsigned int flags)
{
	int progress[2], failed[2];
	char token[RUN_TOKEN], name[64];
	pid_t keeper;

	if (!make_token(token) || pipe2(progress, O_CLOEXEC) || pipe2(failed, O_CLOEXEC)) {
		perror("memfdctl: run");
		return FAILED;
	}
	snprintf(name, sizeof(name), "memfdctl-run-%d-%ld", getpid(), (long)(now() * 1e6));
	keeper = fork();
	if (!keeper) {
		/* Clients look who listens: it must not be memfdctl. */
		int socket = keeper_start(name, token, flags);

		if (socket < 0) {
			perror("memfdctl: run: socket");
			_exit(FAILED);
		}
		set_environment(preload, flags, name, token);
		close(progress[0]);
		close(failed[0]);
		to_parent = progress[1];
		keep(socket, argv, path, failed[1]);
	}
	close(progress[1]);
	close(failed[1]);
	if (keeper < 0) {
		perror("memfdctl: run");
		return FAILED;
	}
	return wait_for(progress[0], failed[0], argv[0]);
}

int cmd_run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "protect", no_argument, NULL, 'p' },
		{ "share", no_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	char preload[PATH_MAX], path[PATH_MAX];
	unsigned int flags = 0;
	int option, status;

	/* "+": what follows the program's name is the program's. */
	while ((option = getopt_long(argc, argv, "+hps", options, NULL)) != -1) {
		switch (option) {
		case 'p':
			flags |= MFD_ALLOW_PROTECT;
			break;
		case 's':
			flags |= MFD_SHARE_PGTABLES;
			break;
		default:
			return option == 'h' ? usage_of(argv[0]) : USAGE;
		}
	}
	if (optind == argc)
		return bad_usage("run: which PROGRAM?");
	if (!flags)
		return bad_usage("run: --protect, --share, or both, please");
	argv += optind;
	if (!find_program(argv[0], path))
		return bad_usage("%s: %s", argv[0], strerror(errno));
	status = check_program(argv[0], path);
	if (status)
		return status;
	if (!find_preload(preload)) {
		fprintf(stderr, "memfdctl: run: there is no " PRELOAD " where memfdctl is\n");
		return FAILED;
	}
	status = check_kernel(flags);
	return status ? status : start(argv, path, preload, flags);
}
