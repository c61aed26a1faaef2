/* SPDX-License-Identifier: Apache-2.0 */
/* register: what it costs to make memory reachable for peers. */
#include "bench/bench.h"
#include "bench/output.h"

#include "common/clock.h"
#include "common/units.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_CHUNKS 65536

struct job {
	const struct smv_bench_options *o;
	struct smv_domain *domain;
	char *memory;
	uint64_t nr_chunks;
	_Atomic uint64_t next;
	_Atomic int status;
	struct smv_region **regions; /* by chunk */
	uint64_t *took_ns;           /* by chunk */
	struct smv_bench_stats stats;
	uint64_t elapsed_ns;
};

static uint64_t chunk_bytes(const struct job *job, uint64_t chunk)
{
	uint64_t rest = job->o->size_bytes - chunk * job->o->chunk_bytes;

	return rest < job->o->chunk_bytes ? rest : job->o->chunk_bytes;
}

static void *register_chunks(void *arg)
{
	struct job *job = arg;
	uint64_t i;

	while (job->status == 0 && (i = atomic_fetch_add(&job->next, 1)) < job->nr_chunks) {
		uint64_t since = smv_now_ns();
		int r = smv_region_register(job->domain, job->memory + i * job->o->chunk_bytes,
			chunk_bytes(job, i), SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE,
			&job->regions[i]);

		job->took_ns[i] = smv_now_ns() - since;
		if (r < 0)
			job->status = r;
	}
	return NULL;
}

static int run_threads(struct job *job, struct smv_error *err)
{
	pthread_t threads[256];
	uint64_t since = smv_now_ns();
	unsigned int n = 0;
	char size[32];
	int r = 0;

	while (n < job->o->threads && r == 0) {
		r = pthread_create(&threads[n], NULL, register_chunks, job);
		n += r == 0;
	}
	for (unsigned int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	job->elapsed_ns = smv_now_ns() - since;
	if (r)
		return smv_fail(err, SMV_NO_ROOM, "no-threads", NULL, "cannot start %u threads: %s",
			job->o->threads, strerror(r));
	if (job->status < 0)
		return smv_fail(err, smv_code_from_errno(job->status), "register",
			job->status == -ENOMEM ? "Raise the limit of locked memory (ulimit -l)."
					       : NULL,
			"cannot register a chunk of %s with transport %s: %s",
			smv_format_size(job->o->chunk_bytes, size, sizeof(size)),
			smv_transport_name(job->o->transport), strerror(-job->status));
	for (uint64_t i = 0; i < job->nr_chunks; i++)
		smv_bench_stats_record(&job->stats, job->took_ns[i]);
	return 0;
}

/* Populated: what is measured is registering, not the kernel's zeroing of new pages. */
static int map_memory(struct job *job, struct smv_error *err)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
	char size[32];

	if (job->o->hugepages)
		flags |= MAP_HUGETLB;
	job->memory = mmap(NULL, job->o->size_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (job->memory != MAP_FAILED)
		return 0;
	job->memory = NULL;
	return smv_fail(err, SMV_NO_ROOM, "no-memory",
		job->o->hugepages ? "Write the number of huge pages needed to "
				    "/proc/sys/vm/nr_hugepages."
				  : "Give a smaller --size.",
		"cannot map %s of %s: %s", smv_format_size(job->o->size_bytes, size, sizeof(size)),
		job->o->hugepages ? "huge pages" : "memory", strerror(errno));
}

static int job_open(struct job *job, struct smv_error *err)
{
	char why[200];
	int r;

	if (job->nr_chunks > MAX_CHUNKS)
		return smv_fail(err, SMV_INVALID, "too-many-chunks", "Give a larger --chunk.",
			"%lu chunks are more than the %u that can be measured", job->nr_chunks,
			MAX_CHUNKS);
	if (!smv_transport_available(job->o->transport, why, sizeof(why)))
		return smv_fail(err, SMV_UNAVAILABLE, "no-transport", NULL,
			"transport %s cannot be used here: %s",
			smv_transport_name(job->o->transport), why);
	job->regions = calloc(job->nr_chunks, sizeof(struct smv_region *));
	job->took_ns = calloc(job->nr_chunks, sizeof(*job->took_ns));
	if (!job->regions || !job->took_ns || smv_bench_stats_init(&job->stats, job->nr_chunks) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	r = smv_domain_create(job->o->transport, &job->domain);
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "domain", NULL,
			"cannot create a domain of transport %s: %s",
			smv_transport_name(job->o->transport), strerror(-r));
	return map_memory(job, err);
}

static void job_close(struct job *job)
{
	for (uint64_t i = 0; job->regions && i < job->nr_chunks; i++)
		if (job->regions[i])
			smv_region_deregister(job->regions[i]);
	if (job->domain)
		smv_domain_destroy(job->domain);
	if (job->memory)
		munmap(job->memory, job->o->size_bytes);
	smv_bench_stats_free(&job->stats);
	free(job->regions);
	free(job->took_ns);
}

static double us_per_mib(const struct job *job)
{
	return (double)job->elapsed_ns / 1e3 / ((double)job->o->size_bytes / (double)SMV_MIB);
}

static void print(struct job *job)
{
	const struct smv_bench_options *o = job->o;
	char size[32];

	printf(" register, transport %s, %s, %lu chunks, %u thread%s%s\n",
		smv_transport_name(o->transport),
		smv_format_size(o->size_bytes, size, sizeof(size)), job->nr_chunks, o->threads,
		o->threads == 1 ? "" : "s", o->hugepages ? ", huge pages" : "");
	printf(" total[msec]    per MiB[usec]\n %-14.3f %.3f\n", (double)job->elapsed_ns / 1e6,
		us_per_mib(job));
	smv_bench_print_times_header("");
	smv_bench_print_times("", o->chunk_bytes, &job->stats);
	if (o->histogram)
		smv_bench_print_histogram("time of a chunk", &job->stats);
}

static void put_json(struct job *job, json_t *out)
{
	const struct smv_bench_options *o = job->o;

	json_object_set_new(out, "parameters",
		json_pack("{s:s, s:I, s:I, s:I, s:b}", "transport",
			smv_transport_name(o->transport), "bytes", (json_int_t)o->size_bytes,
			"chunk_bytes", (json_int_t)o->chunk_bytes, "threads",
			(json_int_t)o->threads, "hugepages", o->hugepages));
	json_object_set_new(out, "results",
		json_pack("{s:I, s:f, s:f, s:o}", "chunks", (json_int_t)job->nr_chunks, "total_ms",
			(double)job->elapsed_ns / 1e6, "us_per_mib", us_per_mib(job), "chunk",
			smv_bench_times_json(&job->stats, o->histogram)));
}

int smv_bench_register(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	struct job job = {
		.o = o, .nr_chunks = (o->size_bytes + o->chunk_bytes - 1) / o->chunk_bytes};
	int r = job_open(&job, err);

	if (r == 0)
		r = run_threads(&job, err);
	if (r == 0)
		put_json(&job, out);
	if (r == 0 && !o->json)
		print(&job);
	job_close(&job);
	return r;
}
