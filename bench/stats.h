/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics of measured times. Up to SMV_BENCH_EXACT_MAX samples are kept and sorted, so
 * quantiles are exact; beyond, they come from the histogram (at most 1/32 too high). Count,
 * minimum, maximum, average and standard deviation are always exact.
 */
#ifndef SMV_BENCH_STATS_H
#define SMV_BENCH_STATS_H

#include "common/histogram.h"

#include <stdbool.h>
#include <stddef.h>

#define SMV_BENCH_EXACT_MAX (1u << 17)

struct smv_bench_stats {
	uint64_t nr;
	uint64_t min_ns, max_ns;
	double mean_ns, m2; /* m2: sum of squared distances from the mean */
	uint64_t *samples;  /* the first nr_samples; all of them while nr == nr_samples */
	size_t nr_samples, max_samples;
	struct smv_histogram histogram;
};

/* What is reported, in microseconds, by the names that perftest made known. */
struct smv_bench_summary {
	uint64_t nr;
	double min_us, max_us;
	double typical_us; /* the median */
	double avg_us;
	double stdev_us; /* of the population */
	double p99_us, p999_us;
};

/** smv_bench_stats_init - @expected samples: room is made and touched now, so that recording meets
 * no page fault. -ENOMEM. Fine to free afterwards in any case. */
int smv_bench_stats_init(struct smv_bench_stats *s, uint64_t expected);
void smv_bench_stats_free(struct smv_bench_stats *s);

void smv_bench_stats_record(struct smv_bench_stats *s, uint64_t ns);

/** smv_bench_stats_merge - record in @into what @from has recorded. */
void smv_bench_stats_merge(struct smv_bench_stats *into, const struct smv_bench_stats *from);

/** smv_bench_stats_quantile - the smallest sample that @q (0..1) of the samples do not exceed;
 * 0 without samples. Sorts. */
uint64_t smv_bench_stats_quantile(struct smv_bench_stats *s, double q);

/** smv_bench_stats_summary - all zero without samples. Sorts. */
void smv_bench_stats_summary(struct smv_bench_stats *s, struct smv_bench_summary *summary);

#endif
