/* SPDX-License-Identifier: Apache-2.0 */
/* What a migration would be like, from a short sample of the running VM. */
#ifndef SMV_MIGRATOR_ESTIMATE_H
#define SMV_MIGRATOR_ESTIMATE_H

#include "migrator/converge.h"
#include "migrator/source.h"

#include <stdbool.h>
#include <stdint.h>

struct smv_sample {
	uint64_t pages_total;
	uint64_t pages_populated;  /* the RAM files hold data for them */
	double zero_share;         /* of the populated ones, by a random sample */
	uint64_t pages_touched;    /* in the whole sample */
	double dirty_pages_per_s;  /* distinct pages written within a second */
	double cold_touches_per_s; /* pages touched that a choice by the sample before had left cold
				    */
	double read_bytes_per_s;   /* at which this host reads, compares and sums up pages */
	double scan_ms;            /* to look at all pages once more, as a switch-over does */
};

/**
 * smv_sample_take - watch the VM for two seconds, with what a migration uses too: its page-table
 * entries are dropped and its writes tracked meanwhile. Nothing of that is left afterwards.
 * @credit: pages that the main host takes
 */
int smv_sample_take(struct smv_source *source, uint64_t credit, struct smv_sample *sample,
	struct smv_error *err);

struct smv_estimate {
	uint64_t pages_zero, pages_hot, pages_cold;
	uint64_t bytes_to_main, bytes_to_sub_hosts; /* of first sends and resends */
	unsigned int rounds;
	double total_ms;
	double downtime_ms;
	bool converges; /* within the allowed downtime */
	double faults_per_s;
};

/** smv_estimate - play the rounds with the numbers of a sample. @link_bytes_per_s: what the link or
 * --bandwidth allows. @converge: the operator's wishes; used up. */
void smv_estimate(const struct smv_sample *sample, uint64_t credit, double link_bytes_per_s,
	struct smv_converge *converge, struct smv_estimate *estimate);

#endif
