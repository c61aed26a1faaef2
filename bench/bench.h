/* SPDX-License-Identifier: Apache-2.0 */
/* smemv-bench: what its commands share. */
#ifndef SMV_BENCH_BENCH_H
#define SMV_BENCH_BENCH_H

#include "common/error.h"
#include "transport/transport.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct smv_bench_options;

struct smv_bench_command {
	const char *name;
	const char *help;
	unsigned int accepts;        /* bits of enum smv_bench_opt */
	uint64_t default_bytes;      /* of --size; 0: it takes none */
	uint64_t default_iterations; /* 0: DEFAULT_SECONDS instead */
	/* Measures, prints a table unless o->json, and puts "parameters" and "results" into @out.
	 */
	int (*run)(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
};

struct smv_bench_options {
	const struct smv_bench_command *command;
	const struct smv_transport *transport;
	bool own_server; /* @addr is where a server in this process listens; false: where one is */
	struct smv_addr addr;
	enum smv_op op;
	uint64_t size_bytes, chunk_bytes, budget_bytes;
	unsigned int depth, connections, threads;
	uint64_t iterations; /* 0: until @seconds have passed */
	double seconds;
	uint64_t nr_pages;
	bool events; /* sleep for completions; false: poll for them */
	bool hugepages;
	bool json;
	bool histogram;
	bool insecure;
};

/** smv_bench_parse - the command line; ends the program on bad usage. */
void smv_bench_parse(int argc, char **argv, const struct smv_bench_command *commands,
	struct smv_bench_options *o);

int smv_bench_serve(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
int smv_bench_latency(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
int smv_bench_bandwidth(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
int smv_bench_iops(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
int smv_bench_register(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
int smv_bench_fault(const struct smv_bench_options *o, json_t *out, struct smv_error *err);
int smv_bench_evict(const struct smv_bench_options *o, json_t *out, struct smv_error *err);

/* Which options a command accepts. */
enum smv_bench_opt {
	SMV_BENCH_LISTEN = 1 << 0,
	SMV_BENCH_SERVER = 1 << 1,
	SMV_BENCH_TRANSPORT = 1 << 2,
	SMV_BENCH_OP = 1 << 3,
	SMV_BENCH_SIZE = 1 << 4,
	SMV_BENCH_DEPTH = 1 << 5,
	SMV_BENCH_CONNECTIONS = 1 << 6,
	SMV_BENCH_ITERATIONS = 1 << 7,
	SMV_BENCH_SECONDS = 1 << 8,
	SMV_BENCH_POLL = 1 << 9,
	SMV_BENCH_EVENTS = 1 << 10,
	SMV_BENCH_CHUNK = 1 << 11,
	SMV_BENCH_THREADS = 1 << 12,
	SMV_BENCH_HUGEPAGES = 1 << 13,
	SMV_BENCH_PAGES = 1 << 14,
	SMV_BENCH_BUDGET = 1 << 15,
	SMV_BENCH_JSON = 1 << 16,
	SMV_BENCH_HISTOGRAM = 1 << 17,
	SMV_BENCH_INSECURE = 1 << 18,
};
#define SMV_BENCH_PEER                                                                             \
	(SMV_BENCH_LISTEN | SMV_BENCH_SERVER | SMV_BENCH_TRANSPORT | SMV_BENCH_INSECURE)

#endif
