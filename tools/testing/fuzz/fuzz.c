// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs: how they are made, written, read, run and made smaller. See fuzz.h.
 */
#include "fuzz.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUN_SECONDS	120	/* for one program, on a slow guest */
#define SKIPPED		4	/* exit status */

int broken = -1;
bool verbose;
bool impatient;

static const struct fuzzer *fuzzer;

/* A finding, as the process that runs a program tells it */
struct finding {
	unsigned int op;
	char what[24];
	char text[1000];
};

static int finding_fd;

/* How often each kind of operation was run, and had an effect: all runs count here */
static struct tally {
	unsigned long run, worked;
} *tally;

void found(unsigned int op, const char *what, const char *format, ...)
{
	struct finding finding = { .op = op };
	va_list ap;

	snprintf(finding.what, sizeof(finding.what), "%s", what);
	va_start(ap, format);
	vsnprintf(finding.text, sizeof(finding.text), format, ap);
	va_end(ap);
	if (write(finding_fd, &finding, sizeof(finding)) != sizeof(finding))
		_exit(3);
	_exit(1);
}

void worked(unsigned int kind)
{
	__atomic_fetch_add(&tally[kind].worked, 1, __ATOMIC_RELAXED);
}

void counted(unsigned int counter)
{
	__atomic_fetch_add(&tally[fuzzer->nr_kinds + counter].run, 1,
			   __ATOMIC_RELAXED);
}

const char *name_of(long ret)
{
	static char text[2][32];
	static unsigned int which;
	char *to = text[which++ % 2];

	if (ret < 0)
		snprintf(to, sizeof(text[0]), "%s", strerrorname_np(-ret));
	else
		snprintf(to, sizeof(text[0]), ret < 1 << 20 ? "%ld" : "%#lx", ret);
	return to;
}

bool write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = file >= 0 && write(file, text, strlen(text)) > 0;

	close(file);
	return ok;
}

/*
 * Random numbers: splitmix64
 */

static uint64_t rng_state;

static uint64_t rng(void)
{
	uint64_t z = rng_state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static unsigned int rng_below(unsigned int below)
{
	return below ? rng() % below : 0;
}

/*
 * Programs
 */

static unsigned int nr_args(const struct op_kind *kind)
{
	unsigned int nr = 0;

	while (nr < OP_ARGS && kind->args[nr].name)
		nr++;
	return nr;
}

static void make_op(struct op *op, unsigned int kind)
{
	const struct op_kind *k = &fuzzer->kinds[kind];

	*op = (struct op){ .kind = kind };
	for (unsigned int i = 0; i < nr_args(k); i++) {
		unsigned int below = k->args[i].below;

		/* Operations are to meet: half of the time at the first places. */
		if (k->args[i].place && rng_below(2))
			below = (below + 3) / 4;
		op->arg[i] = rng_below(below);
	}
}

/*
 * Each program leaves some operations out and has others more often: what they hide
 * from each other comes to light that way.
 */
static void make_program(struct program *program, uint64_t seed,
			 unsigned int nr)
{
	static const unsigned int often[] = { 0, 1, 1, 1, 4 };
	unsigned int weight[fuzzer->nr_kinds], sum = 0;

	rng_state = seed;
	for (unsigned int i = 0; i < fuzzer->nr_kinds; i++) {
		weight[i] = fuzzer->kinds[i].weight *
			    often[rng_below(sizeof(often) / sizeof(*often))];
		sum += weight[i];
	}
	make_op(&program->ops[0], 0);
	program->nr = 1;
	while (sum && program->nr < nr) {
		unsigned int kind = 0, n = rng_below(sum);

		while (n >= weight[kind])
			n -= weight[kind++];
		make_op(&program->ops[program->nr++], kind);
	}
}

static void print_op(FILE *to, const struct op *op)
{
	const struct op_kind *kind = &fuzzer->kinds[op->kind];

	fputs(kind->name, to);
	for (unsigned int i = 0; i < nr_args(kind); i++)
		fprintf(to, " %s=%u", kind->args[i].name, op->arg[i]);
	fputc('\n', to);
}

static void print_program(FILE *to, const struct program *program)
{
	for (unsigned int i = 0; i < program->nr; i++)
		print_op(to, &program->ops[i]);
}

static bool parse_arg(struct op *op, const char *word)
{
	const struct op_kind *kind = &fuzzer->kinds[op->kind];
	const char *is = strchr(word, '=');

	for (unsigned int i = 0; is && i < nr_args(kind); i++) {
		const char *name = kind->args[i].name;

		if (strlen(name) == (size_t)(is - word) &&
		    !strncmp(name, word, is - word)) {
			char *end;

			op->arg[i] = strtoul(is + 1, &end, 10);
			return end > is + 1 && !*end &&
			       op->arg[i] < kind->args[i].below;
		}
	}
	return false;
}

static bool parse_op(struct op *op, char *line)
{
	char *save, *word = strtok_r(line, " \t\n", &save);

	*op = (struct op){ 0 };
	while (op->kind < fuzzer->nr_kinds &&
	       strcmp(fuzzer->kinds[op->kind].name, word))
		op->kind++;
	if (op->kind == fuzzer->nr_kinds)
		return false;
	while ((word = strtok_r(NULL, " \t\n", &save)))
		if (!parse_arg(op, word))
			return false;
	return true;
}

static void read_program(struct program *program, const char *path)
{
	FILE *from = fopen(path, "re");
	unsigned int nr = 0;
	char line[256];

	if (!from)
		err(2, "%s", path);
	program->nr = 0;
	while (fgets(line, sizeof(line), from)) {
		nr++;
		if (line[0] == '#' || line[strspn(line, " \t\n")] == 0)
			continue;
		if (program->nr == MAX_OPS ||
		    !parse_op(&program->ops[program->nr++], line))
			errx(2, "%s:%u: this is no operation", path, nr);
	}
	fclose(from);
	if (!program->nr || program->ops[0].kind)
		errx(2, "%s: the first operation is not '%s'", path,
		     fuzzer->kinds[0].name);
}

/*
 * Running them
 */

static void run_in_child(const struct program *program, int fd)
{
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	finding_fd = fd;
	fuzzer->run(program);
	_exit(0);
}

static void fill_finding(struct finding *finding, const char *what,
			 const char *text)
{
	finding->op = UINT_MAX;
	snprintf(finding->what, sizeof(finding->what), "%s", what);
	snprintf(finding->text, sizeof(finding->text), "%s", text);
}

/* What everybody of a run that does not end is doing */
static void show_group(pid_t group)
{
	char command[160];

	snprintf(command, sizeof(command),
		 "for p in $(pgrep -g %d); do grep ^State /proc/$p/status; cat /proc/$p/stack; done >&2",
		 group);
	if (system(command))
		fprintf(stderr, "nobody is left\n");
}

/* Runs a program; true if all was as it should be */
static bool run_program(const struct program *program, struct finding *finding)
{
	struct pollfd pfd = { .events = POLLIN };
	int pipe_fd[2], status;
	bool told = false;
	siginfo_t info;
	pid_t pid;

	for (unsigned int i = 0; i < program->nr; i++)
		tally[program->ops[i].kind].run++;
	if (pipe2(pipe_fd, O_CLOEXEC))
		err(2, "pipe");
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		err(2, "fork");
	if (!pid) {
		close(pipe_fd[0]);
		run_in_child(program, pipe_fd[1]);
	}
	setpgid(pid, pid);
	close(pipe_fd[1]);
	pfd.fd = pipe_fd[0];
	/* Its workers have the pipe too, so its end is not waited for by that. */
	for (int left = RUN_SECONDS * 10; left; left--) {
		if (poll(&pfd, 1, 100) > 0) {
			told = read(pipe_fd[0], finding, sizeof(*finding)) ==
			       sizeof(*finding);
			break;
		}
		info.si_pid = 0;
		if (!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) &&
		    info.si_pid == pid)
			break;
		if (left == 1) {
			show_group(pid);
			fill_finding(finding, "hang", "it does not come to its end");
			told = true;
		}
	}
	kill(-pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		err(2, "waitpid");
	/* It may have told in the very last moment. */
	if (!told && poll(&pfd, 1, 0) > 0)
		told = read(pipe_fd[0], finding, sizeof(*finding)) ==
		       sizeof(*finding);
	close(pipe_fd[0]);
	if (!told && WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
		fill_finding(finding, "crash", strsignal(WTERMSIG(status)));
		told = true;
	} else if (!told && (!WIFEXITED(status) || WEXITSTATUS(status))) {
		fill_finding(finding, "crash", "exit status");
		told = true;
	}
	return !told;
}

static void print_finding(const struct program *program,
			  const struct finding *finding)
{
	printf("%s: %s\n", finding->what, finding->text);
	if (finding->op < program->nr) {
		printf("at operation %u: ", finding->op + 1);
		print_op(stdout, &program->ops[finding->op]);
	}
	fflush(stdout);
}

/*
 * Making them smaller
 */

/* Whether @program fails as it did: what is found must be of the same kind */
static bool still_fails(const struct program *program, struct finding *finding)
{
	struct finding now;

	if (run_program(program, &now) || strcmp(now.what, finding->what))
		return false;
	*finding = now;
	return true;
}

static bool without(struct program *program, unsigned int first,
		    unsigned int nr, struct finding *finding)
{
	static struct program less;

	less = *program;
	memmove(&less.ops[first], &less.ops[first + nr],
		(less.nr - first - nr) * sizeof(less.ops[0]));
	less.nr -= nr;
	if (!still_fails(&less, finding))
		return false;
	*program = less;
	return true;
}

static bool drop_operations(struct program *program, struct finding *finding)
{
	bool any = false;

	if (finding->op + 1 < program->nr)
		any = without(program, finding->op + 1,
			      program->nr - finding->op - 1, finding);
	for (unsigned int size = program->nr / 2; size; size /= 2)
		for (unsigned int at = 1; at + size <= program->nr; )
			if (without(program, at, size, finding))
				any = true;
			else
				at += size;
	return any;
}

static bool lower_arguments(struct program *program, struct finding *finding)
{
	bool any = false;

	for (unsigned int i = 0; i < program->nr; i++)
		for (unsigned int j = 0; j < OP_ARGS; j++) {
			unsigned int *arg = &program->ops[i].arg[j];
			const unsigned int was = *arg;

			for (*arg = 0; *arg < was; *arg += (was - *arg + 1) / 2)
				if (still_fails(program, finding)) {
					any = true;
					break;
				}
		}
	return any;
}

static void minimise(struct program *program, struct finding *finding)
{
	/* What takes minutes to be found each time is not worth the time. */
	if (!strcmp(finding->what, "hang"))
		return;
	impatient = true;
	while (drop_operations(program, finding) ||
	       lower_arguments(program, finding))
		;
	impatient = false;
}

/*
 * What to type
 */

static struct options {
	unsigned long seconds, runs, length, failures;
	uint64_t seed;
	bool have_seed, minimise;
	const char *keep;
} options = { .length = 100, .failures = 5 };

static void print_usage(FILE *to)
{
	fprintf(to,
		"Usage: %s [options] [PROGRAM...]\n\n%s\n\n"
		"Without PROGRAMs, files with an operation a line, it makes them itself.\n\n"
		"  --seconds N    for so long (default 10)\n"
		"  --runs N       so many programs, however long it takes\n"
		"  --seed N       of the first program; the next one has N + 1\n"
		"  --length N     operations of a program (default 100, at most %u)\n"
		"  --failures N   end when so many have failed (default 5)\n"
		"  --minimise     make the PROGRAMs that fail smaller, and print them\n"
		"  --keep DIR     where to put programs that fail, as they are and minimised\n"
		"  --break NAME   expect something wrong, which is to be found:\n"
		"                ", fuzzer->name, fuzzer->about, MAX_OPS);
	for (const char * const *name = fuzzer->breaks; *name; name++)
		fprintf(to, " %s", *name);
	fprintf(to,
		"\n  --print        print the program of --seed, and do not run it\n"
		"  --verbose      print each operation and its outcome\n\n"
		"Exit status: 0 if all was as expected, 1 if not, 2 for wrong usage, 4 if the\n"
		"kernel has nothing to be fuzzed.\n");
}

static void __attribute__((noreturn)) bad_usage(const char *what, const char *word)
{
	fprintf(stderr, "%s: %s '%s'; see --help\n", fuzzer->name, what, word);
	exit(2);
}

static unsigned long parse_number(const char *word)
{
	char *end;
	unsigned long n = strtoul(word, &end, 10);

	if (*word < '0' || *word > '9' || *end)
		bad_usage("not a number:", word);
	return n;
}

static int break_of(const char *word)
{
	for (int i = 0; fuzzer->breaks[i]; i++)
		if (!strcmp(fuzzer->breaks[i], word))
			return i;
	bad_usage("nothing to break is called", word);
}

static void keep_program(const struct program *program,
			 const struct finding *finding, uint64_t seed,
			 const char *suffix)
{
	char path[PATH_MAX];
	FILE *to;

	if (!options.keep)
		return;
	snprintf(path, sizeof(path), "%s/%s-%llu%s.txt", options.keep,
		 fuzzer->name, (unsigned long long)seed, suffix);
	to = fopen(path, "we");
	if (!to)
		err(2, "%s", path);
	fprintf(to, "# %s: %s\n", finding->what, finding->text);
	print_program(to, program);
	fclose(to);
	printf("kept in %s\n", path);
}

static int run_files(char **paths, int nr)
{
	static struct program program;
	struct finding finding;
	int status = 0;

	printf("TAP version 13\n1..%d\n", nr);
	for (int i = 0; i < nr; i++) {
		read_program(&program, paths[i]);
		if (run_program(&program, &finding)) {
			printf("ok %d %s\n", i + 1, paths[i]);
			continue;
		}
		status = 1;
		printf("not ok %d %s\n", i + 1, paths[i]);
		print_finding(&program, &finding);
		if (options.minimise) {
			minimise(&program, &finding);
			print_finding(&program, &finding);
			print_program(stdout, &program);
		}
	}
	return status;
}

/* What the programs did, and whether some operation never had an effect */
static bool print_tally(unsigned long programs)
{
	unsigned long run = 0;
	bool all = true;

	for (unsigned int i = 0; i < fuzzer->nr_kinds; i++) {
		const struct tally *t = &tally[i];

		run += t->run;
		printf("# %-12s %8lu run %8lu worked\n", fuzzer->kinds[i].name,
		       t->run, t->worked);
		/* Of few nothing can be said. */
		if (fuzzer->kinds[i].weight && t->run >= 1000 && !t->worked) {
			printf("# %s never worked\n", fuzzer->kinds[i].name);
			all = false;
		}
	}
	for (unsigned int i = 0; fuzzer->counters[i]; i++) {
		unsigned long n = tally[fuzzer->nr_kinds + i].run;

		printf("# %8lu %s\n", n, fuzzer->counters[i]);
		if (run >= 100000 && !n)
			all = false;
	}
	printf("# %lu programs, %lu operations\n", programs, run);
	return all;
}

static bool one_seed(uint64_t seed)
{
	static struct program program;
	struct finding finding;

	make_program(&program, seed, options.length);
	if (run_program(&program, &finding))
		return true;
	printf("seed %llu\n", (unsigned long long)seed);
	print_finding(&program, &finding);
	keep_program(&program, &finding, seed, "");
	minimise(&program, &finding);
	printf("minimised to %u operations:\n", program.nr);
	print_program(stdout, &program);
	print_finding(&program, &finding);
	keep_program(&program, &finding, seed, "-minimised");
	return false;
}

static int run_seeds(void)
{
	unsigned long programs = 0, failed = 0;
	uint64_t seed = options.seed;
	time_t end;

	if (!options.have_seed &&
	    getrandom(&seed, sizeof(seed), 0) == sizeof(seed))
		seed >>= 16;
	printf("TAP version 13\n1..1\n# --seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	end = time(NULL) + options.seconds;
	while (options.runs ? programs < options.runs : time(NULL) < end) {
		if (!one_seed(seed++) && ++failed == options.failures)
			break;
		programs++;
	}
	if (!print_tally(programs))
		failed++;
	printf("%s 1 %s\n", failed ? "not ok" : "ok", fuzzer->name);
	return failed ? 1 : 0;
}

int fuzz_main(int argc, char **argv, const struct fuzzer *what)
{
	static const struct option known[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "runs", required_argument, NULL, 'r' },
		{ "seed", required_argument, NULL, 'S' },
		{ "length", required_argument, NULL, 'l' },
		{ "failures", required_argument, NULL, 'f' },
		{ "minimise", no_argument, NULL, 'm' },
		{ "keep", required_argument, NULL, 'k' },
		{ "break", required_argument, NULL, 'b' },
		{ "print", no_argument, NULL, 'p' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	static struct program program;
	unsigned int nr_counters = 0;
	bool print = false;
	int c;

	fuzzer = what;
	options.seconds = 10;
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", known, NULL)) != -1) {
		switch (c) {
		case 's':
			options.seconds = parse_number(optarg);
			break;
		case 'r':
			options.runs = parse_number(optarg);
			break;
		case 'S':
			options.seed = parse_number(optarg);
			options.have_seed = true;
			break;
		case 'l':
			options.length = parse_number(optarg);
			break;
		case 'f':
			options.failures = parse_number(optarg);
			break;
		case 'm':
			options.minimise = true;
			break;
		case 'k':
			options.keep = optarg;
			break;
		case 'b':
			broken = break_of(optarg);
			break;
		case 'p':
			print = true;
			break;
		case 'v':
			verbose = true;
			setvbuf(stdout, NULL, _IOLBF, 0);
			break;
		case 'h':
			print_usage(stdout);
			return 0;
		case ':':
			bad_usage("no value for", argv[optind - 1]);
		default:
			bad_usage("no option is called", argv[optind - 1]);
		}
	}
	if (!options.length || options.length > MAX_OPS)
		bad_usage("--length is", options.length ? "too large" : "0");
	if (print) {
		make_program(&program, options.seed, options.length);
		print_program(stdout, &program);
		return 0;
	}
	if (!fuzzer->available()) {
		printf("TAP version 13\n1..0 # SKIP the kernel does not have it\n");
		return SKIPPED;
	}
	while (fuzzer->counters[nr_counters])
		nr_counters++;
	tally = mmap(NULL, (fuzzer->nr_kinds + nr_counters) * sizeof(*tally),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tally == MAP_FAILED)
		err(2, "mmap");
	return optind < argc ? run_files(argv + optind, argc - optind) : run_seeds();
}
