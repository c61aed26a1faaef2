/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log-linear histogram of unsigned 64-bit values (nanoseconds, bytes): 32 linear steps per power
 * of two, so a quantile is at most 1/32 above the true value. The layout follows the idea of
 * HdrHistogram (G. Tene). One writer at a time; readers may look at any time and see counts that
 * are at most a few records old.
 */
#ifndef SMV_COMMON_HISTOGRAM_H
#define SMV_COMMON_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define SMV_HIST_SUB_BITS 5
#define SMV_HIST_BUCKETS ((64 - SMV_HIST_SUB_BITS + 1) << SMV_HIST_SUB_BITS)

struct smv_histogram {
	_Atomic uint64_t count;
	_Atomic uint64_t sum;
	_Atomic uint64_t max;
	_Atomic uint64_t buckets[SMV_HIST_BUCKETS];
};

/** smv_histogram_record - count one value. */
void smv_histogram_record(struct smv_histogram *h, uint64_t value);

/** smv_histogram_quantile - the smallest recorded step that @q (0..1) of the values do not exceed,
 * never above the maximum; 0 when nothing was recorded. */
uint64_t smv_histogram_quantile(const struct smv_histogram *h, double q);

/** smv_histogram_add - count what @from has counted, too; the caller is @h's writer. */
void smv_histogram_add(struct smv_histogram *h, const struct smv_histogram *from);

/** smv_histogram_bucket_top - the largest value that falls into bucket @b. */
uint64_t smv_histogram_bucket_top(unsigned int b);

#endif
