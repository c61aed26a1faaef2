/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/converge.h"

/* What a switch-over costs beside looking at pages and sending the last: stopping, QEMU's device
 * state, the commit. */
#define SWITCH_OVER_MS 40.0
#define STALL_ROUNDS 4
#define GAIN 0.9
/* QEMU's own auto-converge begins and goes on like this. */
#define THROTTLE_FIRST 20
#define THROTTLE_STEP 10

void smv_converge_sent(struct smv_converge *c, uint64_t bytes, double ms)
{
	c->nr_rounds++;
	c->bytes += (double)bytes;
	c->ms += ms;
	if (c->bytes > 0 && c->ms > 0)
		c->bytes_per_ms = c->bytes / c->ms;
}

void smv_converge_scanned(struct smv_converge *c, double ms)
{
	c->nr_scans++;
	c->scan_ms = ms;
	if (c->nr_scans == 1 || ms < c->least_scan_ms)
		c->least_scan_ms = ms;
}

double smv_converge_expected_ms(const struct smv_converge *c, uint64_t dirty_bytes)
{
	return SWITCH_OVER_MS + c->scan_ms +
	       (double)dirty_bytes / (c->bytes_per_ms > 0 ? c->bytes_per_ms : 1);
}

double smv_converge_allowed_ms(const struct smv_converge *c)
{
	return c->max_downtime_ms + (c->scan_on_top ? c->scan_ms : 0);
}

bool smv_converge_is_hopeless(const struct smv_converge *c)
{
	return !c->scan_on_top && c->nr_scans > 1 &&
	       SWITCH_OVER_MS + c->least_scan_ms > c->max_downtime_ms;
}

bool smv_converge_stalled(const struct smv_converge *c)
{
	return c->rounds_without_gain >= STALL_ROUNDS;
}

static bool throttle_more(struct smv_converge *c)
{
	unsigned int wish =
		c->throttle_percent ? c->throttle_percent + THROTTLE_STEP : THROTTLE_FIRST;

	if (wish > c->max_throttle_percent)
		wish = c->max_throttle_percent;
	if (wish <= c->throttle_percent)
		return false;
	c->throttle_percent = wish;
	return true;
}

enum smv_converge_step smv_converge_next(struct smv_converge *c, uint64_t dirty_bytes)
{
	double expected_ms = smv_converge_expected_ms(c, dirty_bytes);
	double ms = expected_ms - c->scan_ms; /* what rounds can make shorter, and little else */
	bool stalled;

	if (expected_ms <= smv_converge_allowed_ms(c))
		return SMV_CONVERGE_SWITCH_OVER;
	if (smv_converge_is_hopeless(c) && !c->stop)
		return SMV_CONVERGE_FAIL;
	if (c->best_ms == 0 || ms < GAIN * c->best_ms) {
		c->best_ms = ms;
		c->rounds_without_gain = 0;
	} else {
		c->rounds_without_gain++;
	}
	stalled = smv_converge_stalled(c) || (c->throttle_percent && c->rounds_without_gain);
	if (c->nr_rounds >= c->max_rounds ||
		(stalled && !throttle_more(c) && smv_converge_stalled(c)))
		return c->stop ? SMV_CONVERGE_STOP : SMV_CONVERGE_FAIL;
	return SMV_CONVERGE_SEND;
}
