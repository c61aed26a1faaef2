/* SPDX-License-Identifier: Apache-2.0 */
#include "common/histogram.h"

#define SUB (1u << SMV_HIST_SUB_BITS)

static unsigned int bucket_of(uint64_t v)
{
	unsigned int shift;

	if (v < SUB)
		return (unsigned int)v;
	shift = 63u - (unsigned int)__builtin_clzll(v) - SMV_HIST_SUB_BITS;
	return ((shift + 1) << SMV_HIST_SUB_BITS) + (unsigned int)((v >> shift) & (SUB - 1));
}

uint64_t smv_histogram_bucket_top(unsigned int b)
{
	unsigned int shift;

	if (b < SUB)
		return b;
	shift = (b >> SMV_HIST_SUB_BITS) - 1;
	return ((((uint64_t)SUB | (b & (SUB - 1))) + 1) << shift) - 1;
}

void smv_histogram_record(struct smv_histogram *h, uint64_t value)
{
	_Atomic uint64_t *b = &h->buckets[bucket_of(value)];

	/* One writer: load and store are enough and cheaper than a locked add. */
	atomic_store_explicit(
		b, atomic_load_explicit(b, memory_order_relaxed) + 1, memory_order_relaxed);
	if (value > atomic_load_explicit(&h->max, memory_order_relaxed))
		atomic_store_explicit(&h->max, value, memory_order_relaxed);
	atomic_store_explicit(&h->sum, atomic_load_explicit(&h->sum, memory_order_relaxed) + value,
		memory_order_relaxed);
	atomic_store_explicit(&h->count, atomic_load_explicit(&h->count, memory_order_relaxed) + 1,
		memory_order_relaxed);
}

uint64_t smv_histogram_quantile(const struct smv_histogram *h, double q)
{
	uint64_t total = 0, seen = 0, want, max = atomic_load(&h->max);

	for (unsigned int b = 0; b < SMV_HIST_BUCKETS; b++)
		total += atomic_load_explicit(&h->buckets[b], memory_order_relaxed);
	if (total == 0)
		return 0;
	want = (uint64_t)(q * (double)total);
	if ((double)want < q * (double)total)
		want++;
	if (want == 0)
		want = 1;
	for (unsigned int b = 0; b < SMV_HIST_BUCKETS; b++) {
		seen += atomic_load_explicit(&h->buckets[b], memory_order_relaxed);
		if (seen >= want) {
			uint64_t top = smv_histogram_bucket_top(b);

			return top < max ? top : max;
		}
	}
	return max;
}

void smv_histogram_add(struct smv_histogram *h, const struct smv_histogram *from)
{
	uint64_t max = atomic_load(&from->max);

	for (unsigned int b = 0; b < SMV_HIST_BUCKETS; b++)
		h->buckets[b] += atomic_load_explicit(&from->buckets[b], memory_order_relaxed);
	h->count += atomic_load(&from->count);
	h->sum += atomic_load(&from->sum);
	if (max > h->max)
		h->max = max;
}
