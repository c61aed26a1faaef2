/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/output.h"

#define LABEL_WIDTH 10

static void print_label(const char *label)
{
	if (label[0])
		printf(" %-*s", LABEL_WIDTH, label);
}

void smv_bench_print_times_header(const char *label)
{
	print_label(label);
	printf(" #bytes    #iterations    t_min[usec]    t_max[usec]  t_typical[usec]"
	       "    t_avg[usec]    t_stdev[usec]   99%% percentile[usec]   99.9%% "
	       "percentile[usec]\n");
}

void smv_bench_print_times(const char *label, uint64_t bytes, struct smv_bench_stats *s)
{
	struct smv_bench_summary t;

	smv_bench_stats_summary(s, &t);
	print_label(label);
	printf(" %-9lu %-14lu %-14.2f %-12.2f %-16.2f %-14.2f %-16.2f %-22.2f %-.2f\n", bytes, t.nr,
		t.min_us, t.max_us, t.typical_us, t.avg_us, t.stdev_us, t.p99_us, t.p999_us);
}

static uint64_t bucket_count(const struct smv_bench_stats *s, unsigned int b)
{
	return atomic_load_explicit(&s->histogram.buckets[b], memory_order_relaxed);
}

void smv_bench_print_histogram(const char *title, const struct smv_bench_stats *s)
{
	uint64_t seen = 0;

	printf("\n %s\n up to[usec]    count          percentile\n", title);
	for (unsigned int b = 0; b < SMV_HIST_BUCKETS; b++) {
		uint64_t n = bucket_count(s, b);

		if (!n)
			continue;
		seen += n;
		printf(" %-14.3f %-14lu %.4f\n", (double)smv_histogram_bucket_top(b) / 1e3, n,
			100.0 * (double)seen / (double)s->nr);
	}
}

static json_t *histogram_json(const struct smv_bench_stats *s)
{
	json_t *list = json_array();

	for (unsigned int b = 0; b < SMV_HIST_BUCKETS; b++)
		if (bucket_count(s, b))
			json_array_append_new(
				list, json_pack("{s:I, s:I}", "up_to_ns",
					      (json_int_t)smv_histogram_bucket_top(b), "count",
					      (json_int_t)bucket_count(s, b)));
	return list;
}

json_t *smv_bench_times_json(struct smv_bench_stats *s, bool histogram)
{
	struct smv_bench_summary t;
	json_t *j;

	smv_bench_stats_summary(s, &t);
	j = json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "iterations", (json_int_t)t.nr,
		"t_min_us", t.min_us, "t_max_us", t.max_us, "t_typical_us", t.typical_us,
		"t_avg_us", t.avg_us, "t_stdev_us", t.stdev_us, "p99_us", t.p99_us, "p999_us",
		t.p999_us);
	if (histogram)
		json_object_set_new(j, "histogram", histogram_json(s));
	return j;
}
