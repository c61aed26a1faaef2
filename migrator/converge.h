/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to switch over, and what to do when the rounds do not get there.
 *
 * The expected downtime is what is dirty now, sent at the rate of the rounds so far, plus what a
 * switch-over costs beside that: a constant, and looking at all pages once more. No round makes
 * that shorter: if it is too long by itself the migration fails. When it is within
 * --max-downtime the VM is switched over. The rounds stall when in STALL_ROUNDS of them the
 * expected downtime has not become a tenth shorter than the best before; then the VM is throttled,
 * if that is allowed, and a step more in each further round without such a gain. When it cannot be
 * throttled any further, or after --max-rounds, the operator's wish (fail or stop) is done.
 */
#ifndef SMV_MIGRATOR_CONVERGE_H
#define SMV_MIGRATOR_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

struct smv_converge {
	/* The operator's wishes. */
	unsigned int max_downtime_ms;
	bool scan_on_top; /* max_downtime_ms is without scan_ms */
	unsigned int max_rounds;
	unsigned int max_throttle_percent; /* 0: the VM is not to be throttled */
	bool stop;                         /* instead of failing */
	/* What was seen. */
	unsigned int nr_rounds;
	double bytes_per_ms; /* of the link, see smv_converge_sent() */
	double bytes, ms;
	double scan_ms;       /* to look at all pages while the VM stands still, the last time */
	double least_scan_ms; /* and the shortest */
	unsigned int nr_scans;
	double best_ms;
	unsigned int rounds_without_gain;
	unsigned int throttle_percent; /* what the VM should be throttled to now */
};

enum smv_converge_step {
	SMV_CONVERGE_SEND,        /* another round; see throttle_percent */
	SMV_CONVERGE_SWITCH_OVER, /* within the allowed downtime */
	SMV_CONVERGE_STOP,        /* not within it, but the operator wants the VM to be stopped */
	SMV_CONVERGE_FAIL,
};

/** smv_converge_scanned - looking at all pages has taken @ms. */
void smv_converge_scanned(struct smv_converge *c, double ms);

/** smv_converge_sent - a round has sent @bytes in @ms. Rounds of a few pages tell latency, not
 * rate: they count by their bytes. */
void smv_converge_sent(struct smv_converge *c, uint64_t bytes, double ms);

/** smv_converge_expected_ms - how long the VM would stand still with @dirty_bytes to send. */
double smv_converge_expected_ms(const struct smv_converge *c, uint64_t dirty_bytes);

/** smv_converge_allowed_ms - how long it may. */
double smv_converge_allowed_ms(const struct smv_converge *c);

/** smv_converge_is_hopeless - whether it would be longer than that with nothing to send: by the
 * shortest of two scans or more, as a busy host makes one long. */
bool smv_converge_is_hopeless(const struct smv_converge *c);

/** smv_converge_next - what to do with @dirty_bytes dirty after the last round. */
enum smv_converge_step smv_converge_next(struct smv_converge *c, uint64_t dirty_bytes);

/** smv_converge_stalled - whether the rounds have stalled; for the message. */
bool smv_converge_stalled(const struct smv_converge *c);

#endif
