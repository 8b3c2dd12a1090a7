// SPDX-License-Identifier: GPL-2.0-only
/*
 * Output for programs, an object a line, and for people.
 */
#define _GNU_SOURCE
#include "memfdctl.h"

#include <string.h>

static bool first;

void json_open(FILE *to)
{
	fputc('{', to);
	first = true;
}

void json_close(FILE *to)
{
	fputs("}\n", to);
	fflush(to);
}

static void quoted(FILE *to, const char *text)
{
	fputc('"', to);
	for (; *text; text++) {
		unsigned char c = *text;

		if (c == '"' || c == '\\')
			fprintf(to, "\\%c", c);
		else if (c < ' ' || c == 0x7f)
			fprintf(to, "\\u%04x", c);
		else
			fputc(c, to);
	}
	fputc('"', to);
}

static void key_of(FILE *to, const char *key)
{
	if (!first)
		fputs(", ", to);
	first = false;
	quoted(to, key);
	fputs(": ", to);
}

void json_string(FILE *to, const char *key, const char *value)
{
	key_of(to, key);
	quoted(to, value);
}

void json_number(FILE *to, const char *key, long long value)
{
	key_of(to, key);
	fprintf(to, "%lld", value);
}

void json_real(FILE *to, const char *key, double value)
{
	key_of(to, key);
	fprintf(to, "%.6f", value);
}

const char *human_size(uint64_t bytes, char text[16])
{
	static const char units[] = "KMGTPE";
	double value = bytes / 1024.0;
	int unit = 0;

	if (bytes < 1024) {
		snprintf(text, 16, "%u", (unsigned int)bytes);
		return text;
	}
	while (value >= 1024 && units[unit + 1]) {
		value /= 1024;
		unit++;
	}
	snprintf(text, 16, value < 10 && value != (int)value ? "%.1f%c" : "%.0f%c", value,
		 units[unit]);
	return text;
}

/* A name can have anything in it, but what moves the cursor. */
const char *comm_of(pid_t pid, char text[64])
{
	char path[32];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	f = fopen(path, "re");
	if (!f || !fgets(text, 64, f))
		strcpy(text, "?");
	if (f)
		fclose(f);
	text[strcspn(text, "\n")] = '\0';
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return text;
}
