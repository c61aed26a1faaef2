/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/stats.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int smv_bench_stats_init(struct smv_bench_stats *s, uint64_t expected)
{
	memset(s, 0, sizeof(*s));
	s->max_samples = expected < SMV_BENCH_EXACT_MAX ? expected : SMV_BENCH_EXACT_MAX;
	s->samples = malloc((s->max_samples + 1) * sizeof(*s->samples));
	if (!s->samples)
		return -ENOMEM;
	/* Not calloc(): that would leave the pages to be faulted in by the first samples. */
	memset(s->samples, 0xff, (s->max_samples + 1) * sizeof(*s->samples));
	return 0;
}

void smv_bench_stats_free(struct smv_bench_stats *s)
{
	free(s->samples);
	s->samples = NULL;
}

void smv_bench_stats_record(struct smv_bench_stats *s, uint64_t ns)
{
	double distance = (double)ns - s->mean_ns;

	if (s->nr == 0 || ns < s->min_ns)
		s->min_ns = ns;
	if (ns > s->max_ns)
		s->max_ns = ns;
	/* B. P. Welford, "Note on a method for calculating corrected sums of squares", 1962 */
	s->mean_ns += distance / (double)++s->nr;
	s->m2 += distance * ((double)ns - s->mean_ns);
	if (s->nr_samples < s->max_samples)
		s->samples[s->nr_samples++] = ns;
	smv_histogram_record(&s->histogram, ns);
}

void smv_bench_stats_merge(struct smv_bench_stats *into, const struct smv_bench_stats *from)
{
	double n = (double)into->nr, m = (double)from->nr;
	double distance = from->mean_ns - into->mean_ns;
	size_t room = into->max_samples - into->nr_samples;
	size_t take = from->nr_samples < room ? from->nr_samples : room;

	if (from->nr == 0)
		return;
	if (into->nr == 0 || from->min_ns < into->min_ns)
		into->min_ns = from->min_ns;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	/* T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae", 1979 */
	into->mean_ns += distance * m / (n + m);
	into->m2 += from->m2 + distance * distance * n * m / (n + m);
	into->nr += from->nr;
	memcpy(into->samples + into->nr_samples, from->samples, take * sizeof(*from->samples));
	into->nr_samples += take;
	smv_histogram_add(&into->histogram, &from->histogram);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The nearest-rank quantile of the sorted samples. */
static uint64_t sorted_quantile(const struct smv_bench_stats *s, double q)
{
	double rank = ceil(q * (double)s->nr);

	return s->samples[rank < 1 ? 0 : rank >= (double)s->nr ? s->nr - 1 : (size_t)rank - 1];
}

static bool sort(struct smv_bench_stats *s)
{
	if (s->nr != s->nr_samples)
		return false;
	qsort(s->samples, s->nr_samples, sizeof(*s->samples), compare);
	return true;
}

uint64_t smv_bench_stats_quantile(struct smv_bench_stats *s, double q)
{
	if (s->nr == 0)
		return 0;
	return sort(s) ? sorted_quantile(s, q) : smv_histogram_quantile(&s->histogram, q);
}

/* Of an even number of samples it is the middle between the two in the middle. */
static double median_us(struct smv_bench_stats *s)
{
	if (s->nr % 2 == 0 && sort(s))
		return (double)(s->samples[s->nr / 2 - 1] + s->samples[s->nr / 2]) / 2e3;
	return (double)smv_bench_stats_quantile(s, 0.5) / 1e3;
}

void smv_bench_stats_summary(struct smv_bench_stats *s, struct smv_bench_summary *out)
{
	memset(out, 0, sizeof(*out));
	if (s->nr == 0)
		return;
	*out = (struct smv_bench_summary){.nr = s->nr,
		.min_us = (double)s->min_ns / 1e3,
		.max_us = (double)s->max_ns / 1e3,
		.typical_us = median_us(s),
		.avg_us = s->mean_ns / 1e3,
		.stdev_us = sqrt(s->m2 / (double)s->nr) / 1e3,
		.p99_us = (double)smv_bench_stats_quantile(s, 0.99) / 1e3,
		.p999_us = (double)smv_bench_stats_quantile(s, 0.999) / 1e3};
}
