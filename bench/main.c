/* SPDX-License-Identifier: Apache-2.0 */
/* smemv-bench: measure the data plane and the pager. */
#include "bench/bench.h"

#include "common/cleanup.h"
#include "common/program.h"
#include "common/units.h"

#include <string.h>

#define SCHEMA_VERSION 1

#define REQUESTS                                                                                   \
	(SMV_BENCH_PEER | SMV_BENCH_OP | SMV_BENCH_SIZE | SMV_BENCH_ITERATIONS |                   \
		SMV_BENCH_SECONDS | SMV_BENCH_POLL | SMV_BENCH_EVENTS | SMV_BENCH_JSON |           \
		SMV_BENCH_HISTOGRAM)
#define PARALLEL (SMV_BENCH_DEPTH | SMV_BENCH_CONNECTIONS)

/* A new command is a function and a line here. */
static const struct smv_bench_command commands[] = {
	{"serve", "offer memory for the measurements of others",
		SMV_BENCH_LISTEN | SMV_BENCH_TRANSPORT | SMV_BENCH_SIZE | SMV_BENCH_INSECURE,
		64 * SMV_MIB, 0, smv_bench_serve},
	{"latency", "time of one request at a time", REQUESTS, 4096, 1000, smv_bench_latency},
	{"bandwidth", "bytes per second with many requests in flight", REQUESTS | PARALLEL, 4096,
		5000, smv_bench_bandwidth},
	{"iops", "requests per second, and their times under that load", REQUESTS | PARALLEL, 4096,
		5000, smv_bench_iops},
	{"register", "time to register memory",
		SMV_BENCH_TRANSPORT | SMV_BENCH_SIZE | SMV_BENCH_CHUNK | SMV_BENCH_THREADS |
			SMV_BENCH_HUGEPAGES | SMV_BENCH_JSON | SMV_BENCH_HISTOGRAM,
		SMV_GIB, 0, smv_bench_register},
	{"fault", "time of a page fault that a server's memory answers",
		SMV_BENCH_PEER | SMV_BENCH_PAGES | SMV_BENCH_THREADS | SMV_BENCH_JSON |
			SMV_BENCH_HISTOGRAM,
		0, 0, smv_bench_fault},
	{"evict", "pages per second that the pager evicts while threads write",
		SMV_BENCH_PEER | SMV_BENCH_SIZE | SMV_BENCH_BUDGET | SMV_BENCH_THREADS |
			SMV_BENCH_SECONDS | SMV_BENCH_JSON,
		128 * SMV_MIB, 0, smv_bench_evict},
	{0},
};

int main(int argc, char **argv)
{
	struct smv_bench_options options;
	CLEANUP_JSON json_t *out = NULL;
	struct smv_error err = {0};
	int rc;

	smv_program_init();
	smv_bench_parse(argc, argv, commands, &options);
	out = json_pack(
		"{s:i, s:s}", "schema_version", SCHEMA_VERSION, "command", options.command->name);
	rc = options.command->run(&options, out, &err);
	if (rc < 0) {
		smv_error_print(&err);
		json_object_set_new(out, "error",
			json_pack("{s:s, s:s%, s:s%}", "code", err.reason, "message", err.message,
				strlen(err.message), "hint", err.hint, strlen(err.hint)));
	}
	if (options.json) {
		json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
		putchar('\n');
	}
	return rc < 0 || fflush(stdout) != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
