/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/stats.h"
#include "common/cleanup.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>

/* --- statistics --------------------------------------------------------------------------- */

static struct smv_bench_stats stats;

static void setup(void)
{
	cr_assert(smv_bench_stats_init(&stats, 2 * SMV_BENCH_EXACT_MAX) == 0);
}

static void teardown(void)
{
	smv_bench_stats_free(&stats);
}

static bool close_to(double a, double b)
{
	return fabs(a - b) < 1e-9 * (1 + fabs(b));
}

TestSuite(stats, .init = setup, .fini = teardown);

Test(stats, none_is_all_zero)
{
	struct smv_bench_summary s;

	smv_bench_stats_summary(&stats, &s);
	cr_assert(s.nr == 0 && s.min_us == 0 && s.typical_us == 0 && s.p999_us == 0);
	cr_assert(smv_bench_stats_quantile(&stats, 0.5) == 0);
}

/* A textbook sample: average 5, standard deviation 2, unsorted here. */
Test(stats, known_sample)
{
	static const uint64_t ns[] = {9000, 4000, 2000, 5000, 4000, 7000, 5000, 4000};
	struct smv_bench_summary s;

	for (size_t i = 0; i < SMV_ARRAY_SIZE(ns); i++)
		smv_bench_stats_record(&stats, ns[i]);
	smv_bench_stats_summary(&stats, &s);
	cr_assert(s.nr == 8);
	cr_assert(close_to(s.min_us, 2) && close_to(s.max_us, 9));
	cr_assert(close_to(s.avg_us, 5) && close_to(s.stdev_us, 2));
	cr_assert(close_to(s.typical_us, 4.5), "the middle of 4 and 5, not %f", s.typical_us);
	cr_assert(close_to(s.p99_us, 9) && close_to(s.p999_us, 9));
}

Test(stats, odd_number_has_its_middle_as_median)
{
	struct smv_bench_summary s;

	smv_bench_stats_record(&stats, 1001);
	smv_bench_stats_record(&stats, 1);
	smv_bench_stats_record(&stats, 501);
	smv_bench_stats_summary(&stats, &s);
	cr_assert(s.nr == 3 && close_to(s.typical_us, 0.501));
}

/* Nearest rank: of 1..1000 the 99 % quantile is 990, and that of 99.9 % is 999. */
Test(stats, quantiles_by_nearest_rank)
{
	for (uint64_t i = 0; i < 1000; i++)
		smv_bench_stats_record(&stats, 1 + i * 7 % 1000);
	cr_assert(smv_bench_stats_quantile(&stats, 0) == 1);
	cr_assert(smv_bench_stats_quantile(&stats, 0.5) == 500);
	cr_assert(smv_bench_stats_quantile(&stats, 0.99) == 990);
	cr_assert(smv_bench_stats_quantile(&stats, 0.999) == 999);
	cr_assert(smv_bench_stats_quantile(&stats, 1) == 1000);
}

Test(stats, beyond_the_exact_ones_the_histogram_answers)
{
	const uint64_t nr = SMV_BENCH_EXACT_MAX + 1000;
	struct smv_bench_summary s;

	for (uint64_t i = 1; i <= nr; i++)
		smv_bench_stats_record(&stats, i * 1000);
	smv_bench_stats_summary(&stats, &s);
	cr_assert(s.nr == nr && close_to(s.min_us, 1) && close_to(s.max_us, (double)nr));
	cr_assert(close_to(s.avg_us, (double)(nr + 1) / 2));
	cr_assert(s.p99_us >= 0.99 * (double)nr && s.p99_us <= 0.99 * (double)nr * (1 + 1.0 / 32));
	cr_assert(s.typical_us >= 0.5 * (double)nr &&
		  s.typical_us <= 0.5 * (double)nr * (1 + 1.0 / 32));
}

Test(stats, merging_is_as_if_one_had_recorded_all)
{
	struct smv_bench_stats all, part;
	struct smv_bench_summary a, m;

	cr_assert(smv_bench_stats_init(&all, 300) == 0);
	for (int p = 0; p < 3; p++) {
		cr_assert(smv_bench_stats_init(&part, 100) == 0);
		for (uint64_t i = 0; i < (p == 1 ? 0 : 100); i++) {
			uint64_t ns = 1000 * (uint64_t)p + i * i;

			smv_bench_stats_record(&all, ns);
			smv_bench_stats_record(&part, ns);
		}
		smv_bench_stats_merge(&stats, &part);
		smv_bench_stats_free(&part);
	}
	smv_bench_stats_summary(&all, &a);
	smv_bench_stats_summary(&stats, &m);
	cr_assert(a.nr == 200 && m.nr == 200 && m.min_us == a.min_us && m.max_us == a.max_us);
	cr_assert(close_to(m.avg_us, a.avg_us) && close_to(m.stdev_us, a.stdev_us));
	cr_assert(m.typical_us == a.typical_us && m.p99_us == a.p99_us);
	cr_assert(smv_histogram_quantile(&stats.histogram, 0.9) ==
		  smv_histogram_quantile(&all.histogram, 0.9));
	smv_bench_stats_free(&all);
}

/* --- the program -------------------------------------------------------------------------- */

/* Runs smemv-bench with arguments (for the shell); returns its exit status. */
static int run(char *output, size_t len, const char *fmt, ...)
{
	char args[500], command[1000];
	size_t n = 0;
	va_list ap;
	FILE *f;
	int status;

	va_start(ap, fmt);
	vsnprintf(args, sizeof(args), fmt, ap);
	va_end(ap);
	snprintf(command, sizeof(command), "exec timeout 50 %s %s", SMEMV_TEST_BENCH, args);
	f = popen(command, "r");
	cr_assert(f);
	while (n < len - 1 && (status = (int)fread(output + n, 1, len - 1 - n, f)) > 0)
		n += (size_t)status;
	output[n] = '\0';
	status = pclose(f);
	cr_assert(WIFEXITED(status), "%s: killed", args);
	return WEXITSTATUS(status);
}

/* The "results" of a run with --json that succeeds; *whole is what to release. */
#define RESULTS(whole, ...)                                                                        \
	({                                                                                         \
		static char out_[200000];                                                          \
		int rc_ = run(out_, sizeof(out_), __VA_ARGS__);                                    \
		cr_assert(rc_ == 0, "exit status %d: %s", rc_, out_);                              \
		*(whole) = json_loads(out_, 0, NULL);                                              \
		cr_assert(*(whole), "no JSON: %s", out_);                                          \
		cr_assert(json_integer_value(json_object_get(*(whole), "schema_version")) == 1);   \
		cr_assert(json_is_object(json_object_get(*(whole), "parameters")));                \
		json_object_get(*(whole), "results");                                              \
	})

static double real(const json_t *j, const char *key)
{
	const json_t *v = json_object_get(j, key);

	cr_assert(json_is_number(v), "no number '%s'", key);
	return json_number_value(v);
}

static void check_times(const json_t *j, double nr)
{
	cr_assert(real(j, "iterations") == nr, "%f iterations, not %f", real(j, "iterations"), nr);
	cr_assert(real(j, "t_min_us") >= 0);
	cr_assert(real(j, "t_min_us") <= real(j, "t_typical_us"));
	cr_assert(real(j, "t_min_us") <= real(j, "t_avg_us"));
	cr_assert(real(j, "t_typical_us") <= real(j, "p99_us"));
	cr_assert(real(j, "p99_us") <= real(j, "p999_us"));
	cr_assert(real(j, "p999_us") <= real(j, "t_max_us"));
	cr_assert(real(j, "t_avg_us") <= real(j, "t_max_us"));
	cr_assert(real(j, "t_stdev_us") >= 0);
}

static double histogram_sum(const json_t *j)
{
	double sum = 0, last = -1;
	size_t i;
	json_t *bucket;

	json_array_foreach (json_object_get(j, "histogram"), i, bucket) {
		cr_assert(real(bucket, "count") > 0 && real(bucket, "up_to_ns") > last);
		last = real(bucket, "up_to_ns");
		sum += real(bucket, "count");
	}
	return sum;
}

static const char *const transports[] = {"tcp", "mem"};

Test(bench, latency)
{
	static const char *const how[] = {"--op read --poll", "--op write --events --size 64K"};

	for (size_t i = 0; i < 4; i++) {
		CLEANUP_JSON json_t *whole = NULL;
		const json_t *r = RESULTS(&whole,
			"latency --transport %s --iterations 200 --histogram --json %s",
			transports[i / 2], how[i % 2]);

		check_times(r, 200);
		cr_assert(real(r, "bytes") == (i % 2 ? 65536 : 4096));
		cr_assert(histogram_sum(r) == 200);
	}
}

Test(bench, bandwidth)
{
	for (size_t i = 0; i < 4; i++) {
		CLEANUP_JSON json_t *whole = NULL;
		const json_t *r = RESULTS(&whole,
			"bandwidth --transport %s --iterations 300 --connections 2 --depth 16 "
			"--json --op %s",
			transports[i / 2], i % 2 ? "read" : "write");

		check_times(json_object_get(r, "latency"), 600);
		cr_assert(real(r, "seconds") > 0);
		/* MB are 2^20 bytes, Mpps are 10^6 requests per second. */
		cr_assert(fabs(real(r, "bw_avg_mb_s") * (1 << 20) /
					  (real(r, "msg_rate_mpps") * 1e6 * 4096) -
				  1) < 1e-6);
	}
}

Test(bench, iops_for_a_time)
{
	for (size_t i = 0; i < 2; i++) {
		CLEANUP_JSON json_t *whole = NULL;
		const json_t *r = RESULTS(&whole,
			"iops --transport %s --seconds 0.2 --depth 8 --events --json",
			transports[i]);

		cr_assert(real(r, "iterations") > 0 && real(r, "iops") > 0);
		cr_assert(real(r, "seconds") >= 0.19, "stopped after %f s", real(r, "seconds"));
		check_times(json_object_get(r, "latency"), real(r, "iterations"));
	}
}

Test(bench, register_in_chunks)
{
	for (size_t i = 0; i < 2; i++) {
		CLEANUP_JSON json_t *whole = NULL;
		/* The last chunk is smaller. */
		const json_t *r = RESULTS(&whole,
			"register --transport %s --size 20M --chunk 8M --threads 2 --json",
			transports[i]);

		cr_assert(real(r, "chunks") == 3);
		cr_assert(real(r, "total_ms") >= 0 && real(r, "us_per_mib") >= 0);
		check_times(json_object_get(r, "chunk"), 3);
	}
}

Test(bench, fault_and_where_its_time_goes)
{
	static const char *const stages[] = {"wake_up", "queue", "wire", "copy", "resume"};

	for (size_t i = 0; i < 2; i++) {
		CLEANUP_JSON json_t *whole = NULL;
		const json_t *r = RESULTS(&whole,
			"fault --transport %s --pages 700 --threads 2 --json", transports[i]);
		double sum = 0;

		check_times(json_object_get(r, "remote"), 700);
		check_times(json_object_get(r, "local"), 700);
		for (size_t s = 0; s < SMV_ARRAY_SIZE(stages); s++) {
			const json_t *stage =
				json_object_get(json_object_get(r, "stages"), stages[s]);

			check_times(stage, 700);
			sum += real(stage, "t_avg_us");
		}
		cr_assert(fabs(sum - real(json_object_get(r, "remote"), "t_avg_us")) < 0.001,
			"the stages do not add up");
	}
}

Test(bench, evict)
{
	for (size_t i = 0; i < 2; i++) {
		CLEANUP_JSON json_t *whole = NULL;
		const json_t *r = RESULTS(&whole,
			"evict --transport %s --size 20M --budget 16M --threads 2 --seconds 0.3 "
			"--json",
			transports[i]);

		cr_assert(real(r, "evictions") > 0 && real(r, "seconds") >= 0.3);
		cr_assert(real(r, "us_per_page") > 0 && real(r, "cpu_us_per_page") > 0);
		/* Every page is dirty when it goes. */
		cr_assert(real(r, "bytes_written") > 0);
	}
}

Test(bench, tables_have_the_columns_of_perftest)
{
	static char out[20000];

	cr_assert(
		run(out, sizeof(out), "latency --transport mem --iterations 50 --histogram") == 0);
	cr_assert(strstr(out, "#bytes") && strstr(out, "t_typical[usec]") &&
		  strstr(out, "99.9% percentile[usec]"));
	cr_assert(strstr(out, "up to[usec]") && strstr(out, "100.0000"));
	cr_assert(run(out, sizeof(out), "bandwidth --transport mem --iterations 50") == 0);
	cr_assert(strstr(out, "BW average[MB/sec]") && strstr(out, "MsgRate[Mpps]"));
}

/* --- a server of its own ------------------------------------------------------------------ */

struct served {
	FILE *out;
	pid_t pid;
	char address[100];
};

/* The shell tells its number and becomes the server. */
static void serve(struct served *s, const char *args)
{
	char command[500];

	snprintf(command, sizeof(command), "echo $$; exec %s serve --listen tcp:127.0.0.1:0 %s",
		SMEMV_TEST_BENCH, args);
	s->out = popen(command, "r");
	cr_assert(s->out);
	cr_assert(fscanf(s->out, "%d listening on %99s", &s->pid, s->address) == 2);
}

static int stop(struct served *s, int sig)
{
	kill(s->pid, sig);
	return pclose(s->out);
}

Test(bench, a_client_needs_only_the_address)
{
	CLEANUP_JSON json_t *times = NULL, *fault = NULL;
	struct served s;

	serve(&s, "--size 4M");
	check_times(RESULTS(&times, "latency --server %s --iterations 100 --json", s.address), 100);
	/* Without its transport, which an option names. */
	check_times(json_object_get(
			    RESULTS(&fault, "fault --transport tcp --server %s --pages 100 --json",
				    s.address + strlen("tcp:")),
			    "remote"),
		100);
	cr_assert(stop(&s, SIGTERM) == 0, "SIGTERM is how it ends");
}

Test(bench, a_server_that_is_too_small_is_named)
{
	static char out[2000];
	struct served s;

	serve(&s, "--size 1M");
	cr_assert(run(out, sizeof(out), "fault --server %s --pages 1000 2>&1", s.address) == 1);
	cr_assert(strstr(out, "the server offers 1.0 MiB, this needs 4.0 MiB"), "%s", out);
	stop(&s, SIGTERM);
}

Test(bench, no_server_there)
{
	static const char *const commands[] = {"latency", "bandwidth", "iops", "fault", "evict"};
	static char out[5000];
	struct served s;

	serve(&s, "");
	stop(&s, SIGTERM);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(commands); i++) {
		cr_assert(
			run(out, sizeof(out), "%s --server %s 2>&1", commands[i], s.address) == 1);
		cr_assert(strstr(out, s.address) && strstr(out, "cannot connect"), "%s: %s",
			commands[i], out);
	}
	cr_assert(run(out, sizeof(out), "latency --json --server %s 2>/dev/null", s.address) == 1);
	CLEANUP_JSON json_t *whole = json_loads(out, 0, NULL);
	cr_assert(json_is_string(json_object_get(json_object_get(whole, "error"), "message")), "%s",
		out);
}

Test(bench, a_server_that_dies_ends_the_measurement)
{
	static char out[5000];
	struct served s;
	pid_t killer;

	serve(&s, "");
	killer = fork();
	if (killer == 0) {
		usleep(1500000); /* a busy machine takes its time to connect */
		kill(s.pid, SIGKILL);
		_exit(0);
	}
	cr_assert(run(out, sizeof(out), "bandwidth --connections 2 --seconds 30 --server %s 2>&1",
			  s.address) == 1);
	cr_assert(strstr(out, "failed"), "%s", out);
	waitpid(killer, NULL, 0);
	pclose(s.out);
}

Test(bench, wrong_usage)
{
	static const char *const wrong[][2] = {{"", "which command?"},
		{"frob", "unknown command 'frob'"}, {"latency", "which transport?"},
		{"latency iops --transport mem", "unexpected argument 'iops'"},
		{"latency --transport nix", "'nix'"},
		{"latency --transport mem --depth 4", "'latency' has no option --depth"},
		{"serve --listen tcp:127.0.0.1:0 --op read", "'serve' has no option --op"},
		{"latency --transport mem --op fetch", "choose read or write"},
		{"latency --transport mem --size 5M", "the largest request"},
		{"latency --transport mem --size 0", "--size '0'"},
		{"latency --transport mem --size x", "--size 'x'"},
		{"latency --transport mem --iterations 0", "--iterations '0'"},
		{"latency --transport mem --iterations 1 --seconds 1", "exclude each other"},
		{"latency --transport mem --seconds nan", "--seconds 'nan'"},
		{"latency --transport mem --poll --events", "exclude each other"},
		{"latency --transport mem --server tcp:127.0.0.1:1", "--transport mem, but"},
		{"latency --server tcp:127.0.0.1:1 --listen tcp:127.0.0.1:0", "exclude each other"},
		{"latency --server 127.0.0.1:1", "which transport?"},
		{"latency --server tcp:127.0.0.1", "the port is missing"},
		{"latency --server tcp:192.0.2.1:1", "--insecure"},
		{"bandwidth --transport mem --depth 5000", "--depth '5000'"},
		{"bandwidth --transport mem --connections -1", "--connections '-1'"},
		{"register --transport mem --chunk 100", "--chunk"},
		{"register --transport mem --hugepages --chunk 4K", "--hugepages"},
		{"fault --transport mem --pages 0", "--pages '0'"},
		{"evict --transport mem --budget 1M", "the smallest is 16.0 MiB"},
		{"evict --transport mem --size 16M --budget 16M", "must be more than the budget"}};
	static char out[5000];

	for (size_t i = 0; i < SMV_ARRAY_SIZE(wrong); i++) {
		int rc = run(out, sizeof(out), "%s 2>&1", wrong[i][0]);

		cr_assert(rc == 2, "'%s': exit status %d: %s", wrong[i][0], rc, out);
		cr_assert(strstr(out, wrong[i][1]), "'%s' says: %s", wrong[i][0], out);
	}
}
