// SPDX-License-Identifier: BSD-3-Clause
/*
 * What happened, for people and for programs.
 */
#include <err.h>
#include <stdlib.h>
#include <string.h>

#include "sga.h"

static const char *const phase_names[NR_PHASES] = { "before", "during", "after" };

static double rate(const struct snapshot_result *result, int phase)
{
	__u64 ns = result->start_ns[phase + 1] - result->start_ns[phase];

	return ns ? (result->changes[phase + 1] - result->changes[phase]) * 1e9 / ns : 0;
}

/* All clients' latencies of one phase together. */
static void sum_latency(const struct sga *sga, int phase, struct latency *sum)
{
	int i, j;

	memset(sum, 0, sizeof(*sum));
	for (i = 0; i < sga->nr_clients; i++) {
		const struct latency *one = &sga->control->client[i].latency[phase];

		for (j = 0; j < HIST_BUCKETS; j++)
			sum->count[j] += one->count[j];
		if (one->max_ns > sum->max_ns)
			sum->max_ns = one->max_ns;
	}
}

static void report_phases(const struct sga *sga)
{
	static struct latency sum;
	int phase;

	printf("  %-8s %10s %10s %10s %10s %10s %14s\n", "", "seconds", "changes/s",
	       "p50 us", "p99 us", "p99.9 us", "longest us");
	for (phase = 0; phase < NR_PHASES; phase++) {
		const struct snapshot_result *r = &sga->result;

		sum_latency(sga, phase, &sum);
		printf("  %-8s %10.3f %10.0f %10.1f %10.1f %10.1f %14.1f\n",
		       phase_names[phase],
		       (r->start_ns[phase + 1] - r->start_ns[phase]) / 1e9,
		       rate(r, phase), latency_percentile(&sum, 50) / 1e3,
		       latency_percentile(&sum, 99) / 1e3,
		       latency_percentile(&sum, 99.9) / 1e3, sum.max_ns / 1e3);
	}
}

static __u64 longest_stall(const struct sga *sga)
{
	__u64 longest = 0;
	int i;

	for (i = 0; i < sga->nr_clients; i++) {
		__u64 ns = sga->control->client[i].latency[PHASE_DURING].max_ns;

		if (ns > longest)
			longest = ns;
	}
	return longest;
}

static void report_proof(const struct sga *sga, const struct verdict *v)
{
	size_t right = v->pages - v->bad_checksum;

	printf("proof\n");
	printf("  %zu of %zu checksums right, %zu of %zu pages as recorded at T0\n",
	       right, sga->nr_pages, right - v->bad_version, sga->nr_pages);
	printf("  %zu pages had changed again by the time the last one was copied\n",
	       sga->result.moved_on);
	if (v->bad_cache)
		printf("  THE LIVE CACHE IS DAMAGED: %zu pages\n", v->bad_cache);
	if (v->bad_checksum || v->bad_version || v->pages != sga->nr_pages)
		printf("  THIS IS NOT A SNAPSHOT OF T0%s\n",
		       sga->pwrite_percent && !sga->backend->sees_write ?
		       ": the clients used write(2), which this mode does not see" : "");
}

static void report_modes(const struct sga *sga)
{
	size_t i;

	printf("what each mode leaves out (this was --mode %s)\n", sga->backend->name);
	for (i = 0; i < ARRAY_SIZE(backends); i++)
		printf("  %-8s  %s\n", backends[i]->name, backends[i]->cannot);
}

void report(const struct sga *sga, const struct verdict *verdict)
{
	const struct snapshot_result *r = &sga->result;
	unsigned long long pwrites = 0;
	int i;

	for (i = 0; i < sga->nr_clients; i++)
		pwrites += atomic_load(&sga->control->client[i].pwrites);

	printf("clients: %d, %llu changes, of these %llu by write(2)\n",
	       sga->nr_clients, clients_changes(sga), pwrites);
	report_phases(sga);
	printf("snapshot of T0: %zu pages, %.1f MiB, in %.3f s\n", sga->nr_pages,
	       sga->nr_pages * SGA_PAGE_SIZE / 1048576.0, r->copy_ns / 1e9);
	printf("  %.1f us to protect the cache (gate: %.1f us to close, closed for %.1f us)\n",
	       r->protect_ns / 1e3, r->gate_wait_ns / 1e3, r->gate_held_ns / 1e3);
	printf("  %zu pages copied on demand, %llu waits\n", r->on_demand, sga->waits);
	printf("  longest stall of a client: %.1f us\n", longest_stall(sga) / 1e3);
	printf("  memory for copies on their way to the file: at most %zu KiB\n",
	       r->peak_buffers >> 10);
	report_proof(sga, verdict);
	report_modes(sga);
}

/* Counts only, and what a test needs: see tests/demo_counts. */
void report_json(const struct sga *sga, const struct verdict *v)
{
	const struct snapshot_result *r = &sga->result;
	static struct latency sum;
	FILE *out;
	int i;

	out = strcmp(sga->json_path, "-") ? fopen(sga->json_path, "we") : stdout;
	if (!out)
		err(1, "%s", sga->json_path);
	fprintf(out, "{\"mode\":\"%s\",\"pages\":%zu,\"waits\":%llu,\"on_demand\":%zu,",
		sga->backend->name, sga->nr_pages, sga->waits, r->on_demand);
	fprintf(out, "\"moved_on\":%zu,\"bad_checksum\":%zu,\"bad_version\":%zu,\"bad_cache\":%zu,",
		r->moved_on, v->bad_checksum, v->bad_version, v->bad_cache);
	fprintf(out, "\"protect_ns\":%llu,\"gate_wait_ns\":%llu,\"gate_held_ns\":%llu,",
		r->protect_ns, r->gate_wait_ns, r->gate_held_ns);
	fprintf(out, "\"copy_ns\":%llu,\"longest_stall_ns\":%llu,", r->copy_ns,
		longest_stall(sga));
	fprintf(out, "\"phases\":[");
	for (i = 0; i < NR_PHASES; i++) {
		sum_latency(sga, i, &sum);
		fprintf(out, "%s{\"name\":\"%s\",\"changes_per_s\":%.1f,\"max_ns\":%llu}",
			i ? "," : "", phase_names[i], rate(r, i),
			sum.max_ns);
	}
	fprintf(out, "],\"clients\":[");
	for (i = 0; i < sga->nr_clients; i++)
		fprintf(out, "%s{\"pid\":%d,\"events\":%llu,\"changes\":%llu}", i ? "," : "",
			sga->client[i].pid, sga->client[i].wanted,
			atomic_load(&sga->control->client[i].changes));
	fprintf(out, "]}\n");
	if (out != stdout && fclose(out))
		err(1, "%s", sga->json_path);
}
