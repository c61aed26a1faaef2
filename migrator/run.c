/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/run.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "common/units.h"
#include "migrator/dest.h"
#include "migrator/hotness.h"
#include "migrator/push.h"
#include "migrator/source.h"
#include "migrator/tracker.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

/* What a switch-over costs beside the last pages: stopping, QEMU's device state, the commit. */
#define SWITCH_OVER_MS 40.0
/* How long the VM may stand still while QEMU sends or loads the device state. */
#define STOPPED_TIMEOUT_MS 30000
/* How long to ask for the verdict of a commit; and for a mere abort, which the main host does by
 * itself when it hears nothing. */
#define VERDICT_TIMEOUT_MS 30000
#define ABORT_TIMEOUT_MS 3000

struct run {
	const struct smv_run_options *o;
	struct smv_result *result;
	struct smv_source source;
	struct smv_dest dest;
	struct smv_push *push;
	struct smv_pageset hot;
	struct smv_pageset dirty;
	uint64_t round_pages; /* of the round under way, for the progress bar */
	uint64_t start_ns;
	uint64_t stopped_ns; /* 0: the source was not seen to stop */
	bool refusable;      /* nothing was touched yet */
};

static volatile sig_atomic_t cancel_requested;

void smv_run_cancel(void)
{
	cancel_requested = 1;
}

static uint64_t deadline_ns; /* 0: none */

static int interrupted(struct smv_error *err)
{
	if (cancel_requested)
		return smv_fail(err, SMV_CANCELLED, "cancelled", NULL, "cancelled");
	if (deadline_ns && smv_now_ns() > deadline_ns)
		return smv_fail(err, SMV_TIMEOUT, "timeout", "Raise --timeout.",
			"the migration was not done within the allowed time");
	return 0;
}

static double ms_since(uint64_t ns)
{
	return (double)(smv_now_ns() - ns) / 1e6;
}

static int check(struct run *run, struct smv_error *err)
{
	const struct smv_run_options *o = run->o;
	int r;

	smv_progress_phase("checking the source");
	r = o->pid ? smv_source_open_pid(o->qmp_path, o->pid, &run->source, err)
		   : smv_source_open(o->qmp_path, o->shim_path, &run->source, err);
	if (r < 0)
		return r;
	run->result->pages_total = run->source.ram.nr_pages;
	return smv_dest_open(&o->to, &run->dest, err);
}

static int prepare(struct run *run, struct smv_error *err)
{
	const struct smv_run_options *o = run->o;
	struct smv_prepare prepare = {.vm = o->to_vm,
		.ram = &run->source.ram,
		.budget_bytes = o->budget_bytes,
		.sub_hosts = o->sub_hosts,
		.nr_sub_hosts = o->nr_sub_hosts,
		.transport = o->transport,
		.insecure = o->insecure};
	int r;

	snprintf(run->result->migration_id, sizeof(run->result->migration_id), "%s",
		run->dest.migration_id);
	smv_progress_phase("preparing the main host and %zu sub-hosts", o->nr_sub_hosts);
	r = smv_dest_prepare(&run->dest, &prepare, err);
	run->refusable = !run->dest.granted;
	if (r < 0)
		return r;
	snprintf(run->result->transport, sizeof(run->result->transport), "%s", run->dest.transport);
	snprintf(run->result->transport_reason, sizeof(run->result->transport_reason), "%s",
		run->dest.transport_reason);
	if (smv_pageset_create(run->source.ram.nr_pages, &run->hot) < 0 ||
		smv_pageset_create(run->source.ram.nr_pages, &run->dirty) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	return smv_push_open(
		&run->source, &run->dest, &run->hot, o->bandwidth, interrupted, &run->push, err);
}

static int sample(struct run *run, struct smv_error *err)
{
	int r = smv_source_attach(&run->source, err);

	if (r < 0)
		return r;
	smv_progress_phase("sampling which pages are hot");
	return smv_hotness_sample(&run->source, run->dest.hot_credit, &run->hot, interrupted, err);
}

static void show_progress(void *ctx, uint64_t done)
{
	struct run *run = ctx;

	smv_progress_bar(done, run->round_pages);
}

/* Send the dirty pages and leave the set empty. */
static int send_round(struct run *run, struct smv_error *err)
{
	struct smv_push_counts before, after;
	uint64_t start = smv_now_ns();
	struct smv_round round;
	char size[32];
	int r;

	run->round_pages = smv_pageset_count(&run->dirty);
	smv_push_counts(run->push, &before);
	r = smv_push_pages(run->push, &run->dirty, show_progress, run, err);
	if (r < 0)
		return r;
	smv_pageset_clear(&run->dirty);
	smv_push_counts(run->push, &after);
	round.pages = after.pages - before.pages;
	round.bytes = round.pages * SMV_PAGE_SIZE;
	round.ms = ms_since(start);
	smv_log_debug("round %zu: %lu pages, %s in %.0f ms", run->result->nr_rounds, round.pages,
		smv_format_size(round.bytes, size, sizeof(size)), round.ms);
	if (smv_result_add_round(run->result, round) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	return 0;
}

static int first_round(struct run *run, struct smv_error *err)
{
	int r;

	/* Protect first, look for holes second: a hole that is filled in between counts as written.
	 */
	if ((r = smv_tracker_arm(&run->source, err)) < 0 ||
		(r = smv_tracker_populated(&run->source, &run->dirty, err)) < 0)
		return r;
	run->result->setup_ms = ms_since(run->start_ns);
	smv_progress_phase("round 0: %lu populated pages", smv_pageset_count(&run->dirty));
	if ((r = smv_push_declare_zero(run->push, &run->dirty, err)) < 0)
		return r;
	return send_round(run, err);
}

/* The rate at which pages went out in the rounds that were long enough to tell, in bytes per ms. */
static double push_rate(const struct smv_result *result)
{
	double bytes = 0, ms = 0;

	for (size_t i = 0; i < result->nr_rounds; i++) {
		bytes += (double)result->rounds[i].bytes;
		ms += result->rounds[i].ms;
	}
	return ms > 0 && bytes > 0 ? bytes / ms : 1;
}

static int no_converge(const struct run *run, double expected_ms, struct smv_error *err)
{
	return smv_fail(err, SMV_ABORTED, "no-converge",
		"Raise --max-downtime, --max-rounds or --bandwidth, or let it stop the VM with "
		"--on-no-converge stop.",
		"after %zu rounds the VM still dirties pages too fast: switching over would stop "
		"it for "
		"about %.0f ms, --max-downtime is %u ms",
		run->result->nr_rounds, expected_ms, run->o->max_downtime_ms);
}

/* Resend what the VM dirtied until the rest can be sent within the allowed downtime. */
static int rounds(struct run *run, struct smv_error *err)
{
	for (;;) {
		double expected_ms;
		uint64_t left;
		int r;

		if ((r = interrupted(err)) < 0 ||
			(r = smv_tracker_collect(&run->source, &run->dirty, err)) < 0)
			return r;
		left = smv_pageset_count(&run->dirty);
		expected_ms =
			SWITCH_OVER_MS + (double)(left * SMV_PAGE_SIZE) / push_rate(run->result);
		if (expected_ms <= run->o->max_downtime_ms)
			return 0;
		if (run->result->nr_rounds >= run->o->max_rounds) {
			if (!run->o->stop_on_no_converge)
				return no_converge(run, expected_ms, err);
			smv_log_warning(
				"the rounds do not converge; stopping the VM for about %.0f ms",
				expected_ms);
			return 0;
		}
		smv_progress_phase("round %zu: %lu dirty pages, expected downtime %.0f ms",
			run->result->nr_rounds, left, expected_ms);
		smv_fault_point("round-n");
		if ((r = send_round(run, err)) < 0)
			return r;
	}
}

static int switch_over(struct run *run, struct smv_error *err)
{
	const unsigned int timeout_ms = STOPPED_TIMEOUT_MS;
	CLEANUP_FREE char *uri = NULL;
	int r;

	smv_progress_phase("switching over");
	if ((r = smv_dest_start_incoming(&run->dest, &uri, err)) < 0 ||
		(r = smv_source_start_migration(&run->source, uri, err)) < 0 ||
		(r = smv_source_wait_migration(&run->source, "pre-switchover", timeout_ms,
			 &run->stopped_ns, interrupted, err)) < 0)
		return r;
	/* The VM stands still: the last pages, then everything that the main host must know. */
	if ((r = smv_tracker_collect(&run->source, &run->dirty, err)) < 0 ||
		(r = send_round(run, err)) < 0 || (r = smv_push_read_back(run->push, err)) < 0 ||
		(r = smv_dest_flush(&run->dest, err)) < 0 ||
		(r = smv_dest_confirm(&run->dest, smv_push_map(run->push), err)) < 0)
		return r;
	smv_fault_point("map-confirmed");
	if ((r = smv_source_continue_migration(&run->source, err)) < 0)
		return r;
	return smv_source_wait_migration(
		&run->source, "completed", timeout_ms, NULL, interrupted, err);
}

static int migrate(struct run *run, struct smv_error *err)
{
	struct smv_result *result = run->result;
	int r;

	if ((r = check(run, err)) < 0 || (r = prepare(run, err)) < 0 ||
		(r = sample(run, err)) < 0 || (r = first_round(run, err)) < 0 ||
		(r = rounds(run, err)) < 0 || (r = switch_over(run, err)) < 0)
		return r;
	err->code = SMV_OK;
	if (smv_dest_commit(&run->dest, STOPPED_TIMEOUT_MS, result->destination_state,
		    sizeof(result->destination_state), err) != SMV_VERDICT_COMMITTED)
		return smv_code_to_errno(err->code);
	result->committed = true;
	result->downtime_ms = ms_since(run->stopped_ns);
	return err->code == SMV_OK ? 0 : -EINPROGRESS; /* committed, but not seen to run */
}

static void fill_counts(struct run *run)
{
	struct smv_result *result = run->result;
	const struct smv_pagemap *map;
	struct smv_push_counts counts;

	if (!run->push)
		return;
	map = smv_push_map(run->push);
	smv_push_counts(run->push, &counts);
	result->pages_hot = smv_pagemap_count(map, SMV_PAGE_LOCAL);
	result->pages_cold = smv_pagemap_count(map, SMV_PAGE_COLD);
	result->pages_zero = smv_pagemap_count(map, SMV_PAGE_ZERO);
	result->pages_resent = counts.resent;
	result->bytes_to_main = counts.bytes_to_main;
	for (unsigned int h = 0; h < run->dest.backing.nr_sub_hosts; h++) {
		snprintf(result->sub_hosts[h].address, sizeof(result->sub_hosts[h].address), "%s",
			run->dest.backing.sub_hosts[h].address);
		result->sub_hosts[h].bytes = smv_push_bytes_to(run->push, h);
		result->sub_hosts[h].extents = smv_push_extents_of(run->push, h);
		result->bytes_to_sub_hosts += result->sub_hosts[h].bytes;
	}
	result->nr_sub_hosts = run->dest.backing.nr_sub_hosts;
}

static bool is_refusal(enum smv_code code)
{
	return code == SMV_REFUSED || code == SMV_NO_ROOM || code == SMV_INVALID ||
	       code == SMV_NOT_FOUND || code == SMV_EXISTS || code == SMV_PERMISSION ||
	       code == SMV_UNIMPLEMENTED;
}

static void resume_source(struct run *run, struct smv_error *err)
{
	struct smv_error resume_err;

	if (smv_source_resume(&run->source, &resume_err) < 0)
		smv_fail(err, SMV_INTERNAL, "resume", "Resume it by hand (QMP: cont).",
			"the migration was aborted, but the source does not run again: %.400s",
			resume_err.message);
	if (run->stopped_ns)
		run->result->downtime_ms = ms_since(run->stopped_ns);
}

/* Put everything back, unless the main host owns the VM by now. */
static enum smv_outcome back_out(struct run *run, struct smv_error *err)
{
	struct smv_result *result = run->result;
	enum smv_outcome outcome = err->code == SMV_CANCELLED ? SMV_STOPPED : SMV_FAILED;
	enum smv_verdict verdict;

	if (result->committed)
		return SMV_DOUBTFUL;
	if (run->refusable && !run->dest.prepared)
		return is_refusal(err->code) ? SMV_NOT_BEGUN : outcome;
	if (!run->refusable)
		smv_progress_phase("aborting: %s", err->message);
	/* Only we can ask for the commit: before that the source need not wait for any answer. */
	if (!run->dest.commit_sent)
		resume_source(run, err);
	verdict = smv_dest_abort(&run->dest, err->message,
		run->dest.commit_sent ? VERDICT_TIMEOUT_MS : ABORT_TIMEOUT_MS,
		result->destination_state, sizeof(result->destination_state));
	if (run->refusable)
		return is_refusal(err->code) ? SMV_NOT_BEGUN : outcome;
	if (!run->dest.commit_sent)
		return outcome;
	if (verdict == SMV_VERDICT_COMMITTED) {
		/* The answer to the commit was lost, not the commit. */
		result->committed = true;
		result->downtime_ms = run->stopped_ns ? ms_since(run->stopped_ns) : -1;
		err->code = SMV_OK;
		return SMV_COMPLETED;
	}
	if (verdict != SMV_VERDICT_ABORTED)
		return SMV_DOUBTFUL;
	resume_source(run, err);
	return outcome;
}

void smv_run(const struct smv_run_options *options, struct smv_result *result)
{
	struct run run = {
		.o = options, .result = result, .start_ns = smv_now_ns(), .refusable = true};
	int r;

	run.source.uffd = run.source.pagemap_fd = -1;
	deadline_ns = options->timeout_s ? run.start_ns + options->timeout_s * SMV_NS_PER_S : 0;
	snprintf(result->destination_state, sizeof(result->destination_state), "unknown");
	result->downtime_ms = -1;
	r = migrate(&run, &result->error);
	result->outcome = r == 0 ? SMV_COMPLETED : back_out(&run, &result->error);
	if (r == 0)
		result->error.code = SMV_OK;
	fill_counts(&run);
	smv_push_close(run.push);
	if (run.source.qmp)
		smv_source_detach(&run.source);
	smv_source_state(&run.source, result->source_state, sizeof(result->source_state));
	smv_source_close(&run.source);
	smv_dest_close(&run.dest);
	smv_pageset_destroy(&run.hot);
	smv_pageset_destroy(&run.dirty);
	result->total_ms = ms_since(run.start_ns);
	smv_progress_end();
}
