// SPDX-License-Identifier: GPL-2.0-only
/*
 * The demonstration, samples/memfd_protect/sga: how long its gate is closed, with four
 * clients that change a cache of 32 MiB all the time. That is what a database would feel
 * of a snapshot that begins: nobody may begin a change while the cache is protected.
 */
#include "bench.h"

#include <limits.h>

#define CLIENTS	"4"

static char sga[PATH_MAX];

/* Of the program that lies beside this one; it was checked what it has copied */
static double gate_us(const char *mode)
{
	static const char name[] = "\"gate_held_ns\":";
	char command[PATH_MAX + 128], line[8192], *at = NULL;
	double ns = 0;
	FILE *out;
	int status;

	snprintf(command, sizeof(command),
		 "%s --mode %s --clients " CLIENTS " --seconds 1 --output /tmp/gate --json -",
		 sga, mode);
	out = popen(command, "re");
	if (!out)
		err(1, "%s", command);
	while (fgets(line, sizeof(line), out)) {
		at = strstr(line, name);
		if (at)
			ns = atof(at + strlen(name));
	}
	status = pclose(out);
	unlink("/tmp/gate");
	if (status || !ns)
		errx(1, "%s: status %d, %s", command, status, ns ? "a time" : "no time");
	return ns / 1e3;
}

int main(int argc, char **argv)
{
	static const char what[] = "gate of the demonstration closed, 32 MiB";
	struct row *ours, *uffd;
	char *slash;
	ssize_t len;

	open_results(argc, argv);
	len = readlink("/proc/self/exe", sga, sizeof(sga) - 1);
	if (len < 0)
		err(1, "/proc/self/exe");
	slash = strrchr(sga, '/');
	snprintf(slash + 1, sizeof(sga) - (slash + 1 - sga), "sga");
	ours = with_goal(row("", atoi(CLIENTS), "us", "mprotect", what), OURS_AT_MOST, 300);
	uffd = beside(ours, "userfaultfd");
	for (int i = 0; i < (quick ? 1 : 5); i++) {
		add(ours->ours, gate_us("memfd"));
		add(&ours->theirs, gate_us("mprotect"));
		add(&uffd->theirs, gate_us("uffd"));
	}
	return report("The gate of the demonstration",
		      "What processes feel of the beginning of a snapshot. The others do not catch write(2).");
}
