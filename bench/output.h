/* SPDX-License-Identifier: Apache-2.0 */
/* Results as tables that perftest's users know, and as JSON. */
#ifndef SMV_BENCH_OUTPUT_H
#define SMV_BENCH_OUTPUT_H

#include "bench/stats.h"

#include <jansson.h>

/** smv_bench_print_times_header / _times - perftest's latency table; @label goes before it (an
 * empty one takes no room). */
void smv_bench_print_times_header(const char *label);
void smv_bench_print_times(const char *label, uint64_t bytes, struct smv_bench_stats *s);

/** smv_bench_print_histogram - the buckets that are not empty, on standard output. */
void smv_bench_print_histogram(const char *title, const struct smv_bench_stats *s);

/** smv_bench_times_json - iterations, t_min_us, ... p999_us; @histogram: and the buckets. */
json_t *smv_bench_times_json(struct smv_bench_stats *s, bool histogram);

#endif
