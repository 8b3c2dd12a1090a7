// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfdctl ls, stat.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* What the kernel says of a memfd in /proc/PID/fdinfo, -1 where it does not. */
enum figure { WAIT, ASYNC, DENY, EVENT_FD, WAITERS, GUESTS, TABLES, LINKS, NR_FIGURES };

static const char * const figure_names[NR_FIGURES] = {
	[WAIT] = "protect_wait", [ASYNC] = "protect_async", [DENY] = "protect_deny",
	[EVENT_FD] = "event_fd", [WAITERS] = "waiters", [GUESTS] = "ptshare_guests",
	[TABLES] = "ptshare_tables", [LINKS] = "ptshare_links",
};

static long long field(const char *text, const char *name)
{
	size_t len = strlen(name);

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, name, len) && text[len] == ':')
			return atoll(text + len + 1);
	}
	return -1;
}

/* False if it has gone, or may not be read. */
static bool read_fdinfo(const char *pid, const char *fd, char *text, size_t size)
{
	char path[64];
	size_t got;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%.20s", pid, fd);
	f = fopen(path, "re");
	if (!f)
		return false;
	got = fread(text, 1, size - 1, f);
	fclose(f);
	text[got] = '\0';
	return got;
}

/**
 * struct entry - one memfd
 * @dev: With @ino, what it is known by.
 * @ino: Likewise.
 * @pid: A process that has it open.
 * @fd: By this descriptor, or -1: none has been found that has it open, but
 * @start: a mapping of @pid, from here
 * @end: to here.
 * @users: Processes that have it open, or mapped.
 * @last_user: The one of them that was seen last.
 * @size: Bytes.
 * @resident: Bytes that have memory or swap.
 * @name: Its name.
 * @figures: What the kernel says.
 */
struct entry {
	dev_t dev;
	ino_t ino;
	int pid;
	int fd;
	unsigned long start;
	unsigned long end;
	int users;
	int last_user;
	uint64_t size;
	uint64_t resident;
	char name[256];
	long long figures[NR_FIGURES];
};

static struct entry *entries;
static size_t nr_entries, max_entries;

static struct entry *find_entry(dev_t dev, ino_t ino)
{
	for (size_t i = 0; i < nr_entries; i++)
		if (entries[i].dev == dev && entries[i].ino == ino)
			return &entries[i];
	return NULL;
}

static struct entry *add_entry(void)
{
	if (nr_entries == max_entries) {
		max_entries = max_entries ? 2 * max_entries : 64;
		entries = reallocarray(entries, max_entries, sizeof(*entries));
		if (!entries) {
			perror("memfdctl");
			exit(FAILED);
		}
	}
	return memset(&entries[nr_entries++], 0, sizeof(*entries));
}

/* "/memfd:NAME (deleted)"; what moves the cursor becomes a question mark */
static bool name_of(const char *link, char name[256])
{
	static const char before[] = "/memfd:", behind[] = " (deleted)";
	size_t len = strlen(link);

	if (strncmp(link, before, sizeof(before) - 1))
		return false;
	link += sizeof(before) - 1;
	len -= sizeof(before) - 1;
	if (len >= sizeof(behind) - 1 && !strcmp(link + len - (sizeof(behind) - 1), behind))
		len -= sizeof(behind) - 1;
	snprintf(name, 256, "%.*s", (int)len, link);
	for (; *name; name++)
		if ((unsigned char)*name < ' ' || *name == 0x7f)
			*name = '?';
	return true;
}

static void set_figures(struct entry *e, const struct stat *st, const char *fdinfo)
{
	e->size = st->st_size;
	e->resident = st->st_blocks * 512ULL;
	for (int i = 0; i < NR_FIGURES; i++)
		e->figures[i] = field(fdinfo, figure_names[i]);
}

static void used_by(struct entry *e, int pid)
{
	if (e->last_user != pid)
		e->users++;
	e->last_user = pid;
}

static void look_at(const char *pid, const char *fd)
{
	char path[64], link[512], text[4096], name[256];
	struct entry *e;
	struct stat st;
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/%.20s/fd/%.20s", pid, fd);
	len = readlink(path, link, sizeof(link) - 1);
	if (len <= 0)
		return;
	link[len] = '\0';
	if (!name_of(link, name) || stat(path, &st))
		return;
	e = find_entry(st.st_dev, st.st_ino);
	if (!e || e->fd < 0) {
		if (!read_fdinfo(pid, fd, text, sizeof(text)))
			return;
		if (!e)
			e = add_entry();
		e->dev = st.st_dev;
		e->ino = st.st_ino;
		e->pid = atoi(pid);
		e->fd = atoi(fd);
		memcpy(e->name, name, sizeof(name));
		set_figures(e, &st, text);
	}
	used_by(e, atoi(pid));
}

/* A line of /proc/PID/maps */
static void look_at_mapping(int pid, const char *line)
{
	unsigned int major, minor;
	unsigned long start, end;
	char name[256], link[512];
	struct entry *e;
	uint64_t ino;

	if (sscanf(line, "%lx-%lx %*s %*x %x:%x %ju %511[^\n]", &start, &end, &major, &minor,
		   &ino, link) != 6 || !name_of(link, name))
		return;
	e = find_entry(makedev(major, minor), ino);
	if (!e) {
		e = add_entry();
		e->dev = makedev(major, minor);
		e->ino = ino;
		e->pid = pid;
		e->fd = -1;
		e->start = start;
		e->end = end;
		memcpy(e->name, name, sizeof(name));
	}
	used_by(e, pid);
}

static void look_at_mappings(const char *pid)
{
	char path[64], line[1024];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
	f = fopen(path, "re");
	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		look_at_mapping(atoi(pid), line);
	fclose(f);
}

/* How it can be named to the other commands */
static const char *target_of(const struct entry *e, char text[64])
{
	if (e->fd >= 0)
		snprintf(text, 64, "%d:%d", e->pid, e->fd);
	else
		snprintf(text, 64, "/proc/%d/map_files/%lx-%lx", e->pid, e->start, e->end);
	return text;
}

/* What nobody has open can be looked at by the superuser: false for others. */
static bool complete(struct entry *e)
{
	char path[64], fd_text[16], text[4096];
	struct stat st;
	bool done;
	int fd;

	if (e->fd >= 0)
		return true;
	fd = open(target_of(e, path), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	snprintf(fd_text, sizeof(fd_text), "%d", fd);
	done = !fstat(fd, &st) && read_fdinfo("self", fd_text, text, sizeof(text));
	if (done)
		set_figures(e, &st, text);
	close(fd);
	return done;
}

static bool number(const struct dirent *d)
{
	return isdigit((unsigned char)d->d_name[0]);
}

static void look_at_process(const char *pid)
{
	char path[64];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return;
	while ((d = readdir(dir)))
		if (number(d))
			look_at(pid, d->d_name);
	closedir(dir);
	look_at_mappings(pid);
}

static void json_entry(const struct entry *e)
{
	char target[64];

	json_open(stdout);
	json_string(stdout, "target", target_of(e, target));
	json_string(stdout, "name", e->name);
	json_number(stdout, "size", e->size);
	json_number(stdout, "resident", e->resident);
	json_number(stdout, "processes", e->users);
	for (int i = 0; i < NR_FIGURES; i++)
		if (e->figures[i] >= 0)
			json_number(stdout, figure_names[i], e->figures[i]);
	json_close(stdout);
}

/* Ranges of each mode, and whether there is a handler: "2 wait 1 deny, handler" */
static void describe_protection(const long long figures[NR_FIGURES], char text[64])
{
	int at = 0;

	if (figures[DENY] < 0) {
		strcpy(text, "-");
		return;
	}
	if (figures[WAIT])
		at += snprintf(text + at, 64 - at, "%lld wait ", figures[WAIT]);
	if (figures[ASYNC])
		at += snprintf(text + at, 64 - at, "%lld async ", figures[ASYNC]);
	if (figures[DENY])
		at += snprintf(text + at, 64 - at, "%lld deny ", figures[DENY]);
	if (!at)
		at += snprintf(text, 64, "none ");
	at += snprintf(text + at, 64 - at, "%s", figures[EVENT_FD] > 0 ? "(handler)" : "");
	if (at && text[at - 1] == ' ')
		text[at - 1] = '\0';
}

static void print_entry(const struct entry *e)
{
	char target[64], size[16], resident[16], protection[64], tables[24] = "-";

	describe_protection(e->figures, protection);
	if (e->figures[TABLES] >= 0)
		snprintf(tables, sizeof(tables), "%lld", e->figures[TABLES]);
	printf("%-12s %-20s %8s %8s %5d %6s  %s\n", target_of(e, target), e->name,
	       human_size(e->size, size),
	       human_size(e->resident, resident), e->users, tables, protection);
}

int cmd_list(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	struct dirent *d;
	int option;
	DIR *proc;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		return option == 'h' ? usage_of(argv[0]) : USAGE;
	if (optind != argc)
		return bad_usage("ls: takes no arguments, not '%s' either", argv[optind]);
	proc = opendir("/proc");
	if (!proc) {
		perror("memfdctl: /proc");
		return FAILED;
	}
	while ((d = readdir(proc)))
		if (number(d))
			look_at_process(d->d_name);
	closedir(proc);
	if (!json)
		printf("%-12s %-20s %8s %8s %5s %6s  %s\n", "TARGET", "NAME", "SIZE", "RESIDENT",
		       "USERS", "TABLES", "PROTECTED");
	for (size_t i = 0; i < nr_entries; i++)
		if (complete(&entries[i]))
			(json ? json_entry : print_entry)(&entries[i]);
	return 0;
}

/* Flags are octal, and stay as the kernel writes them. */
static void json_field(const char *key, const char *value)
{
	char *end;
	long long number = strtoll(value, &end, 10);

	if (end == value || *end || (*value == '0' && value[1]))
		json_string(stdout, key, value);
	else
		json_number(stdout, key, number);
}

static void print_fdinfo(char *text)
{
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		char *value = strchr(line, ':');

		if (!value)
			continue;
		*value++ = '\0';
		value += strspn(value, " \t");
		if (json)
			json_field(line, value);
		else
			printf("%-16s %s\n", line, value);
	}
}

int cmd_stat(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	char link[512] = "", name[256] = "?", path[64], fd[16], text[4096];
	struct target target;
	struct stat st;
	int option, status;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		return option == 'h' ? usage_of(argv[0]) : USAGE;
	if (optind + 1 != argc)
		return bad_usage("stat: one TARGET, please");
	status = target_open(&target, argv[optind], false);
	if (status)
		return status;
	snprintf(fd, sizeof(fd), "%d", target.fd);
	snprintf(path, sizeof(path), "/proc/self/fd/%s", fd);
	if (readlink(path, link, sizeof(link) - 1) > 0)
		name_of(link, name);
	if (fstat(target.fd, &st) || !read_fdinfo("self", fd, text, sizeof(text))) {
		perror("memfdctl: /proc/self/fdinfo");
		return FAILED;
	}
	if (json) {
		json_open(stdout);
		json_string(stdout, "name", name);
		json_number(stdout, "size", st.st_size);
		json_number(stdout, "resident", st.st_blocks * 512LL);
		json_number(stdout, "seals", fcntl(target.fd, F_GET_SEALS));
	} else {
		printf("%-16s %s\n%-16s %lld\n%-16s %lld\n%-16s %#x\n", "name", name, "size",
		       (long long)st.st_size, "resident", st.st_blocks * 512LL, "seals",
		       fcntl(target.fd, F_GET_SEALS));
	}
	print_fdinfo(text);
	if (json)
		json_close(stdout);
	close(target.fd);
	return 0;
}
