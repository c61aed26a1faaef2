/* SPDX-License-Identifier: Apache-2.0 */
/* latency, bandwidth, iops: reads and writes, a fixed number in flight per connection. */
#include "bench/bench.h"
#include "bench/output.h"
#include "bench/peer.h"

#include "common/clock.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Requests before the measurement, per connection: caches, windows and clocks get ready. */
#define WARM_UP 100
#define BATCH 64

struct run {
	const struct smv_bench_options *o;
	unsigned int depth;
	struct smv_bench_peer peer;
	struct worker *workers;
	unsigned int nr_workers; /* that can be closed */
	bool yield;              /* more pollers than processors */
	pthread_barrier_t start;
	_Atomic bool failed;
	/* The sum of all workers: */
	struct smv_bench_stats stats;
	double elapsed_s;
};

/* One connection and its thread. */
struct worker {
	struct run *run;
	struct smv_bench_link link;
	unsigned int index;
	uint64_t *posted_at_ns; /* by place in the buffer */
	unsigned int *idle;     /* places without a request */
	unsigned int nr_idle;
	struct smv_bench_stats stats;
	uint64_t started_ns, ended_ns;
	struct smv_error err;
	pthread_t thread;
};

static uint64_t remote_addr_of(const struct worker *w, unsigned int place)
{
	const struct run *run = w->run;
	uint64_t size = run->o->size_bytes, nr = run->peer.size_bytes / size;

	return run->peer.info.remote_addr + (w->index * run->depth + place) % nr * size;
}

static int fail(struct worker *w, int errnum, const char *what)
{
	char text[SMV_ADDR_MAX];

	return smv_fail(&w->err, smv_code_from_errno(errnum), "request-failed", NULL,
		"%s %s failed: %s", what, smv_addr_format(&w->run->peer.addr, text, sizeof(text)),
		strerror(abs(errnum)));
}

/* Post up to @max requests; returns how many were taken, or -errno. */
static int post(struct worker *w, uint64_t max)
{
	const struct smv_bench_options *o = w->run->o;
	unsigned int n = w->nr_idle < max ? w->nr_idle : (unsigned int)max;
	struct smv_request requests[BATCH];
	struct smv_sge sge[BATCH];
	uint64_t now;
	int r;

	n = n < BATCH ? n : BATCH;
	if (n == 0)
		return 0;
	now = smv_now_ns();
	for (unsigned int i = 0; i < n; i++) {
		unsigned int place = w->idle[w->nr_idle - 1 - i];

		sge[i] = (struct smv_sge){(char *)w->link.buffer + place * o->size_bytes,
			(uint32_t)o->size_bytes, w->link.region};
		requests[i] = (struct smv_request){.op = o->op,
			.cookie = place,
			.rkey = w->run->peer.info.rkey,
			.remote_addr = remote_addr_of(w, place),
			.sge = &sge[i],
			.nr_sge = 1};
		w->posted_at_ns[place] = now;
	}
	r = smv_conn_post(w->link.conn, requests, n);
	if (r < 0)
		return fail(w, r, "posting a request to");
	w->nr_idle -= (unsigned int)r;
	return r;
}

/* Collect completions; returns how many there were, or -errno. */
static int reap(struct worker *w, bool measure)
{
	struct smv_completion c[BATCH];
	int n = smv_conn_poll(w->link.conn, c, BATCH);
	uint64_t now;

	if (n < 0)
		return fail(w, n, "the connection to");
	if (n == 0) {
		if (w->run->o->events)
			smv_conn_wait(w->link.conn, 1000);
		else if (w->run->yield)
			sched_yield();
		return 0;
	}
	now = smv_now_ns();
	for (int i = 0; i < n; i++) {
		if (c[i].status < 0)
			return fail(w, c[i].status, "a request to");
		if (measure)
			smv_bench_stats_record(&w->stats, now - w->posted_at_ns[c[i].cookie]);
		w->idle[w->nr_idle++] = (unsigned int)c[i].cookie;
	}
	return n;
}

/* @nr requests, or, when that is 0, as many as can be posted in @seconds. */
static int run_requests(struct worker *w, uint64_t nr, double seconds, bool measure)
{
	uint64_t until = smv_now_ns() + (uint64_t)(seconds * 1e9);
	uint64_t left = nr ? nr : UINT64_MAX;
	int r = 0;

	while (left || w->nr_idle < w->run->depth) {
		if (atomic_load_explicit(&w->run->failed, memory_order_relaxed))
			return -ECANCELED;
		if (!nr && left && smv_now_ns() >= until)
			left = 0;
		r = post(w, left);
		if (r < 0)
			return r;
		left -= (uint64_t)r;
		r = reap(w, measure);
		if (r < 0)
			return r;
	}
	return 0;
}

static void *worker_thread(void *arg)
{
	struct worker *w = arg;
	const struct smv_bench_options *o = w->run->o;

	int r = run_requests(w, WARM_UP, 0, false);

	if (r < 0)
		atomic_store(&w->run->failed, true);
	pthread_barrier_wait(&w->run->start);
	w->started_ns = smv_now_ns();
	if (r == 0 && run_requests(w, o->iterations, o->seconds, true) < 0)
		atomic_store(&w->run->failed, true);
	w->ended_ns = smv_now_ns();
	return NULL;
}

static int worker_open(struct run *run, struct smv_error *err)
{
	const struct smv_bench_options *o = run->o;
	struct worker *w = &run->workers[run->nr_workers];

	*w = (struct worker){.run = run, .index = run->nr_workers++};
	w->posted_at_ns = calloc(run->depth, sizeof(*w->posted_at_ns));
	w->idle = calloc(run->depth, sizeof(*w->idle));
	if (!w->posted_at_ns || !w->idle ||
		smv_bench_stats_init(&w->stats, o->iterations ? o->iterations : UINT64_MAX) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	for (unsigned int i = run->depth; i > 0; i--)
		w->idle[w->nr_idle++] = i - 1;
	return smv_bench_link_open(
		&w->link, &run->peer, run->depth * o->size_bytes, run->depth, err);
}

static void run_close(struct run *run)
{
	for (unsigned int i = 0; i < run->nr_workers; i++) {
		smv_bench_link_close(&run->workers[i].link);
		smv_bench_stats_free(&run->workers[i].stats);
		free(run->workers[i].posted_at_ns);
		free(run->workers[i].idle);
	}
	free(run->workers);
	smv_bench_stats_free(&run->stats);
	smv_bench_peer_close(&run->peer);
}

static int run_open(struct run *run, struct smv_error *err)
{
	const struct smv_bench_options *o = run->o;
	uint64_t total = o->iterations ? o->iterations * o->connections : UINT64_MAX;
	uint64_t own = run->depth * o->connections * o->size_bytes;
	int r;

	run->yield = (long)o->connections >= sysconf(_SC_NPROCESSORS_ONLN);
	run->workers = calloc(o->connections, sizeof(*run->workers));
	if (!run->workers || smv_bench_stats_init(&run->stats, total) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	/* Places of a given server's memory are shared where it has fewer than needed. */
	r = smv_bench_peer_open(&run->peer, o, o->own_server ? own : o->size_bytes, err);
	for (unsigned int i = 0; i < o->connections && r == 0; i++)
		r = worker_open(run, err);
	return r;
}

static void sum_up(struct run *run)
{
	uint64_t started = UINT64_MAX, ended = 0;

	for (unsigned int i = 0; i < run->nr_workers; i++) {
		const struct worker *w = &run->workers[i];

		smv_bench_stats_merge(&run->stats, &w->stats);
		started = w->started_ns < started ? w->started_ns : started;
		ended = w->ended_ns > ended ? w->ended_ns : ended;
	}
	run->elapsed_s = (double)(ended - started) / 1e9;
}

static int run_workers(struct run *run, struct smv_error *err)
{
	unsigned int n = run->nr_workers;

	if (pthread_barrier_init(&run->start, NULL, n) != 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	for (unsigned int i = 0; i < n; i++) {
		int r = pthread_create(
			&run->workers[i].thread, NULL, worker_thread, &run->workers[i]);

		/* The others wait at the barrier for one that will not come: no way back. */
		if (r) {
			fprintf(stderr, "smemv-bench: cannot start %u threads: %s\n", n,
				strerror(r));
			exit(EXIT_FAILURE);
		}
	}
	for (unsigned int i = 0; i < n; i++)
		pthread_join(run->workers[i].thread, NULL);
	pthread_barrier_destroy(&run->start);
	for (unsigned int i = 0; i < n; i++)
		if (run->workers[i].err.code != SMV_OK) {
			*err = run->workers[i].err;
			return smv_code_to_errno(err->code);
		}
	sum_up(run);
	return 0;
}

static json_t *parameters(const struct run *run)
{
	const struct smv_bench_options *o = run->o;
	char text[SMV_ADDR_MAX];

	return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s}", "transport",
		smv_transport_name(o->transport), "server",
		smv_addr_format(&run->peer.addr, text, sizeof(text)), "op",
		o->op == SMV_OP_READ ? "read" : "write", "bytes", (json_int_t)o->size_bytes,
		"depth", (json_int_t)run->depth, "connections", (json_int_t)o->connections,
		"completions", o->events ? "events" : "poll");
}

static void print_title(const struct run *run)
{
	const struct smv_bench_options *o = run->o;
	char text[SMV_ADDR_MAX];

	printf(" %s %s, %s, depth %u, %u connection%s, %s\n",
		o->op == SMV_OP_READ ? "read" : "write", o->command->name,
		smv_addr_format(&run->peer.addr, text, sizeof(text)), run->depth, o->connections,
		o->connections == 1 ? "" : "s", o->events ? "events" : "polling");
}

static void print_latency(struct run *run)
{
	smv_bench_print_times_header("");
	smv_bench_print_times("", run->o->size_bytes, &run->stats);
}

static json_t *latency_json(struct run *run)
{
	json_t *j = smv_bench_times_json(&run->stats, run->o->histogram);

	json_object_set_new(j, "bytes", json_integer((json_int_t)run->o->size_bytes));
	return j;
}

static double per_second(const struct run *run)
{
	return run->elapsed_s > 0 ? (double)run->stats.nr / run->elapsed_s : 0;
}

/* perftest's MB are 2^20 bytes, its Mpps 10^6 requests per second. */
static double mb_per_second(const struct run *run)
{
	return per_second(run) * (double)run->o->size_bytes / (1 << 20);
}

static void print_bandwidth(struct run *run)
{
	printf(" #bytes     #iterations    BW average[MB/sec]   MsgRate[Mpps]\n");
	printf(" %-10lu %-14lu %-20.2f %.6f\n", run->o->size_bytes, run->stats.nr,
		mb_per_second(run), per_second(run) / 1e6);
}

static json_t *bandwidth_json(struct run *run)
{
	return json_pack("{s:I, s:I, s:f, s:f, s:f, s:o}", "bytes", (json_int_t)run->o->size_bytes,
		"iterations", (json_int_t)run->stats.nr, "seconds", run->elapsed_s, "bw_avg_mb_s",
		mb_per_second(run), "msg_rate_mpps", per_second(run) / 1e6, "latency",
		smv_bench_times_json(&run->stats, run->o->histogram));
}

static void print_iops(struct run *run)
{
	struct smv_bench_summary t;

	smv_bench_stats_summary(&run->stats, &t);
	printf(" #bytes     #iterations    IOPS           t_typical[usec]  t_avg[usec]    "
	       "99%% percentile[usec]   99.9%% percentile[usec]\n");
	printf(" %-10lu %-14lu %-14.0f %-16.2f %-14.2f %-22.2f %.2f\n", run->o->size_bytes, t.nr,
		per_second(run), t.typical_us, t.avg_us, t.p99_us, t.p999_us);
}

static json_t *iops_json(struct run *run)
{
	return json_pack("{s:I, s:I, s:f, s:f, s:o}", "bytes", (json_int_t)run->o->size_bytes,
		"iterations", (json_int_t)run->stats.nr, "seconds", run->elapsed_s, "iops",
		per_second(run), "latency", smv_bench_times_json(&run->stats, run->o->histogram));
}

static int measure(const struct smv_bench_options *o, unsigned int depth,
	void (*print)(struct run *), json_t *(*results)(struct run *), json_t *out,
	struct smv_error *err)
{
	struct run run = {.o = o, .depth = depth};
	int r = run_open(&run, err);

	if (r == 0)
		r = run_workers(&run, err);
	if (r == 0) {
		json_object_set_new(out, "parameters", parameters(&run));
		json_object_set_new(out, "results", results(&run));
	}
	if (r == 0 && !o->json) {
		print_title(&run);
		print(&run);
		if (o->histogram)
			smv_bench_print_histogram("time of a request", &run.stats);
	}
	run_close(&run);
	return r;
}

int smv_bench_latency(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	return measure(o, 1, print_latency, latency_json, out, err);
}

int smv_bench_bandwidth(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	return measure(o, o->depth, print_bandwidth, bandwidth_json, out, err);
}

int smv_bench_iops(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	return measure(o, o->depth, print_iops, iops_json, out, err);
}
