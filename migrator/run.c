/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/run.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "common/units.h"
#include "migrator/converge.h"
#include "migrator/hotness.h"
#include "migrator/progress.h"
#include "migrator/push.h"
#include "migrator/recover.h"
#include "migrator/supervisor.h"
#include "migrator/tracker.h"
#include "vmm/allow_list.h"
#include "vmm/throttle.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* By default. */
#define MAX_DOWNTIME_MS 300
/* How long the VM may stand still while QEMU sends or loads the device state. */
#define STOPPED_TIMEOUT_MS 30000

struct run {
	const struct smv_run_options *o;
	struct smv_result *result;
	struct smv_journal *journal;
	pid_t supervisor;
	struct smv_source source;
	struct smv_dest dest;
	struct smv_push *push;
	struct smv_pageset hot;
	struct smv_pageset dirty;
	struct smv_converge converge;
	struct smv_throttle *throttle; /* NULL: not needed yet */
	uint64_t start_ns;
	uint64_t collected_ns; /* when the dirty pages were last collected */
	uint64_t stopped_ns;   /* 0: the source was not seen to stop */
	double populated_ms;   /* how long it took to look for holes */
	double told_ms;        /* of the scans: telling the main host that we live */
	bool refusable;        /* nothing was touched yet */
};

static atomic_bool cancel_requested;
/* Whose calls a cancellation ends; the lock keeps it there meanwhile. */
static pthread_mutex_t cancel_lock = PTHREAD_MUTEX_INITIALIZER;
static struct smv_rpc_client *cancel_client;

void smv_run_cancel(void)
{
	atomic_store(&cancel_requested, true);
	pthread_mutex_lock(&cancel_lock);
	if (cancel_client)
		smv_rpc_client_cancel_all(cancel_client);
	pthread_mutex_unlock(&cancel_lock);
}

static void set_cancel_client(struct smv_rpc_client *client)
{
	pthread_mutex_lock(&cancel_lock);
	cancel_client = client;
	pthread_mutex_unlock(&cancel_lock);
}

static uint64_t deadline_ns; /* 0: none */

int smv_run_interrupted(struct smv_error *err)
{
	if (atomic_load(&cancel_requested))
		return smv_fail(err, SMV_CANCELLED, "cancelled", NULL, "cancelled");
	if (deadline_ns && smv_now_ns() > deadline_ns)
		return smv_fail(err, SMV_TIMEOUT, "timeout", "Raise --timeout.",
			"the migration was not done within the allowed time");
	return 0;
}

struct smv_converge smv_run_wishes(const struct smv_run_options *o)
{
	return (struct smv_converge){
		.max_downtime_ms = o->max_downtime_ms ? o->max_downtime_ms : MAX_DOWNTIME_MS,
		.scan_on_top = !o->max_downtime_ms,
		.max_rounds = o->max_rounds,
		.max_throttle_percent = o->max_throttle_percent,
		.stop = o->stop_on_no_converge};
}

/* --- the journal -------------------------------------------------------------------------- */

static int write_down(struct run *run, const char *phase, struct smv_error *err)
{
	return smv_journal_set(run->journal,
		json_pack("{s:s, s:o}", "phase", phase, "undo", smv_source_undo(&run->source)),
		err);
}

/* An smv_source's record(). */
static int record_undo(void *ctx, struct smv_error *err)
{
	struct run *run = ctx;

	return smv_journal_set(
		run->journal, json_pack("{s:o}", "undo", smv_source_undo(&run->source)), err);
}

/* The source's interrupted(): with much RAM its scans take long, and the main host must hear of us.
 */
static int go_on(void *ctx, struct smv_error *err)
{
	struct run *run = ctx;
	uint64_t start = smv_now_ns();
	int r = smv_run_interrupted(err);

	if (r == 0)
		r = smv_dest_keep_alive(&run->dest, err);
	run->told_ms += smv_ms_since(start);
	return r;
}

static bool is_about(const struct run *run, const json_t *journal, const struct smv_process *source)
{
	const char *path = json_string_value(json_object_get(journal, "qmp_path"));

	if (source->pid == run->source.process.pid &&
		source->start_time == run->source.process.start_time)
		return true;
	if (!path || strcmp(path, run->o->source.qmp_path) != 0)
		return false;
	/* If its QEMU has ended it was a namesake of ours. */
	return smv_process_signal(source, 0) != -ESRCH;
}

/* One migration at a time, and none while nobody knows how the last one ended. By the name of the
 * socket before QMP is tried, which serves one client at a time; then by the process. */
static int check_others(const struct run *run, struct smv_error *err)
{
	struct smv_journal_view *views;
	size_t nr;
	int r = smv_journal_list(run->o->state_dir, &views, &nr, err);

	for (size_t i = 0; i < nr && r == 0; i++) {
		struct smv_process source;

		if (!smv_json_to_process(json_object_get(views[i].journal, "source"), &source) ||
			!is_about(run, views[i].journal, &source))
			continue;
		if (views[i].busy)
			r = smv_fail(err, SMV_REFUSED, "migration-active",
				"Wait for it, or use smemv-migrate cancel.",
				"migration %s of this VM is under way", views[i].id);
		else if (!json_object_get(views[i].journal, "outcome"))
			r = smv_fail(err, SMV_REFUSED, "unresolved",
				"Settle it by smemv-migrate recover.",
				"how migration %s of this VM ended is not known", views[i].id);
	}
	smv_journal_list_free(views, nr);
	return r;
}

static int begin_journal(struct run *run, struct smv_error *err)
{
	const struct smv_run_options *o = run->o;
	char id[SMV_MIGRATION_ID_MAX], to[SMV_ADDR_MAX];
	struct smv_process self;
	json_t *begin;
	int r;

	if ((r = smv_dest_new_id(id, err)) < 0 ||
		(r = smv_journal_create(o->state_dir, id, run->journal, err)) < 0)
		return r;
	if (smv_process_identify(getpid(), &self) < 0)
		return smv_fail(
			err, SMV_INTERNAL, "proc", "Mount /proc.", "cannot read /proc/self/stat");
	snprintf(run->result->migration_id, sizeof(run->result->migration_id), "%s", id);
	smv_addr_format(&o->to, to, sizeof(to));
	begin = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:b, s:b}", "vm", o->vm, "to", to,
		"to_vm", o->to_vm, "qmp_path", o->source.qmp_path, "shim_path", o->source.shim_path,
		"source", smv_json_process(&run->source.process), "worker", smv_json_process(&self),
		"prepared", 0, "commit_sent", 0);
	json_object_set_new(begin, "started_at", json_integer((json_int_t)time(NULL)));
	r = smv_journal_set(run->journal, begin, err);
	if (r == 0)
		r = smv_supervisor_start(o->state_dir, id, &run->supervisor, err);
	run->source.record = record_undo;
	run->source.record_ctx = run;
	run->source.interrupted = go_on;
	run->source.interrupted_ctx = run;
	return r;
}

/* Somebody killed it: what it is for is still to come. */
static void keep_supervised(struct run *run)
{
	struct smv_error err;

	if (run->supervisor > 0 && waitpid(run->supervisor, NULL, WNOHANG) != run->supervisor)
		return;
	smv_log_warning("the supervisor has ended; starting another one");
	if (smv_supervisor_start(run->o->state_dir, run->journal->id, &run->supervisor, &err) < 0) {
		smv_log_warning("%s", err.message);
		run->supervisor = -1;
	}
}

/* --- the phases --------------------------------------------------------------------------- */

static int check(struct run *run, struct smv_error *err)
{
	const struct smv_run_options *o = run->o;
	int r;

	smv_progress_phase("check", "checking the source");
	if ((r = check_others(run, err)) < 0)
		return r;
	if ((r = smv_source_open(&o->source, &run->source, err)) < 0)
		return r;
	run->result->pages_total = run->source.ram.nr_pages;
	if ((r = check_others(run, err)) < 0 || (r = begin_journal(run, err)) < 0)
		return r;
	smv_progress_begin(run->journal);
	r = smv_dest_open(&o->to, run->journal->id, &run->dest, err);
	run->dest.interrupted = smv_run_interrupted;
	set_cancel_client(run->dest.client);
	return r;
}

static int prepare(struct run *run, struct smv_error *err)
{
	const struct smv_run_options *o = run->o;
	struct smv_prepare prepare = {.vm = o->to_vm,
		.ram = &run->source.ram,
		.budget_bytes = o->budget_bytes,
		.min_budget_bytes = o->min_budget_bytes,
		.sub_hosts = o->sub_hosts,
		.nr_sub_hosts = o->nr_sub_hosts,
		.transport = o->transport,
		.insecure = o->insecure,
		.loss_policy = o->loss_policy};
	int r;

	smv_progress_phase("prepare", "preparing the main host and %zu sub-hosts", o->nr_sub_hosts);
	r = smv_journal_set(
		run->journal, json_pack("{s:s, s:b}", "phase", "prepare", "prepared", 1), err);
	if (r < 0)
		return r;
	r = smv_dest_prepare(&run->dest, &prepare, err);
	run->refusable = !run->dest.granted;
	if (r < 0)
		return r;
	smv_fault_point("prepare");
	snprintf(run->result->transport, sizeof(run->result->transport), "%s", run->dest.transport);
	snprintf(run->result->transport_reason, sizeof(run->result->transport_reason), "%s",
		run->dest.transport_reason);
	if (smv_pageset_create(run->source.ram.nr_pages, &run->hot) < 0 ||
		smv_pageset_create(run->source.ram.nr_pages, &run->dirty) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	return smv_push_open(&run->source, &run->dest, &run->hot, o->bandwidth, smv_run_interrupted,
		&run->push, err);
}

static int sample(struct run *run, struct smv_error *err)
{
	int r;

	smv_progress_phase("sample", "sampling which pages are hot");
	if ((r = write_down(run, "sample", err)) < 0 ||
		(r = smv_source_attach(&run->source, err)) < 0)
		return r;
	smv_fault_point("sampling");
	return smv_hotness_sample(&run->source, run->dest.hot_credit, &run->hot, err);
}

static void show_progress(void *ctx, uint64_t done)
{
	(void)ctx;
	smv_progress_done(done);
}

/* Find what was written since the last time; the pages stay protected against being missed. */
static int collect(struct run *run, struct smv_error *err)
{
	uint64_t now = smv_now_ns(), dirty;
	double s = (double)(now - run->collected_ns) / 1e9, told_ms = run->told_ms;
	int r = smv_tracker_collect(&run->source, &run->dirty, err);

	smv_converge_scanned(
		&run->converge, smv_ms_since(now) - (run->told_ms - told_ms) + run->populated_ms);
	dirty = smv_pageset_count(&run->dirty);
	if (run->collected_ns && s > 0)
		smv_progress_estimate((double)dirty / s, dirty,
			smv_converge_expected_ms(&run->converge, dirty * SMV_PAGE_SIZE));
	run->collected_ns = now;
	return r;
}

static int finish_round(struct run *run, struct smv_round *round, struct smv_error *err)
{
	char size[32], rate[32];

	smv_progress_log("round %zu: %lu pages, %s in %.0f ms, %s/s", run->result->nr_rounds,
		round->pages, smv_format_size(round->bytes, size, sizeof(size)), round->ms,
		smv_format_size((uint64_t)((double)round->bytes / (round->ms + 1e-3) * 1e3), rate,
			sizeof(rate)));
	smv_converge_sent(&run->converge, round->bytes, round->ms);
	return smv_result_add_round(run->result, *round) < 0
		       ? smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory")
		       : 0;
}

/* Send the dirty pages and leave the set empty. */
static int send_round(struct run *run, struct smv_error *err)
{
	uint64_t start = smv_now_ns(), dirty = smv_pageset_count(&run->dirty);
	struct smv_round round = {.throttle_percent = run->converge.throttle_percent,
		.expected_downtime_ms =
			smv_converge_expected_ms(&run->converge, dirty * SMV_PAGE_SIZE)};
	struct smv_push_counts before, after;
	int r;

	keep_supervised(run);
	smv_progress_round((unsigned int)run->result->nr_rounds, dirty);
	smv_push_counts(run->push, &before);
	r = smv_push_pages(run->push, &run->dirty, show_progress, NULL, err);
	if (r < 0)
		return r;
	smv_pageset_clear(&run->dirty);
	smv_push_counts(run->push, &after);
	round.pages = after.pages - before.pages;
	round.bytes = round.pages * SMV_PAGE_SIZE;
	round.ms = smv_ms_since(start);
	if (run->result->nr_rounds == 0)
		round.expected_downtime_ms = -1; /* no rate is known yet */
	return finish_round(run, &round, err);
}

static int first_round(struct run *run, struct smv_error *err)
{
	double told_ms;
	uint64_t start;
	int r;

	/* Protect first, look for holes second: a hole that is filled in between counts as written.
	 */
	if ((r = write_down(run, "rounds", err)) < 0 ||
		(r = smv_tracker_arm(&run->source, err)) < 0)
		return r;
	start = smv_now_ns();
	told_ms = run->told_ms;
	if ((r = smv_tracker_populated(&run->source, &run->dirty, err)) < 0)
		return r;
	run->populated_ms = smv_ms_since(start) - (run->told_ms - told_ms);
	run->collected_ns = smv_now_ns();
	run->result->setup_ms = smv_ms_since(run->start_ns);
	smv_progress_phase(
		"rounds", "round 0: %lu populated pages", smv_pageset_count(&run->dirty));
	smv_fault_point("round-0");
	if ((r = smv_push_declare_zero(run->push, &run->dirty, err)) < 0)
		return r;
	return send_round(run, err);
}

static int no_converge(const struct run *run, double expected_ms, struct smv_error *err)
{
	const struct smv_converge *c = &run->converge;

	if (smv_converge_is_hopeless(c))
		return smv_fail(err, SMV_ABORTED, "no-converge",
			"Raise --max-downtime, or leave it out.",
			"this VM would stand still for %.0f ms at least, of these %.0f ms to look "
			"at all its pages: --max-downtime is %u ms",
			smv_converge_expected_ms(c, 0) - c->scan_ms + c->least_scan_ms,
			c->least_scan_ms, c->max_downtime_ms);
	return smv_fail(err, SMV_ABORTED, "no-converge",
		"Raise --max-downtime or --bandwidth, slow the VM down with --max-throttle, or let "
		"it be stopped all the same with --on-no-converge stop.",
		"the VM dirties pages faster than they can be sent (%u rounds%s, throttled to %u "
		"%%): switching over would stop it for about %.0f ms, allowed are %.0f ms",
		c->nr_rounds, smv_converge_stalled(c) ? ", the last without progress" : "",
		c->throttle_percent, expected_ms, smv_converge_allowed_ms(c));
}

/* The wish of the convergence. What forbids it ends nothing: the rounds go on without. */
static void throttle_vm(struct run *run)
{
	unsigned int percent = run->converge.throttle_percent;
	struct smv_error err;

	if (!percent)
		return;
	if (run->throttle) {
		smv_throttle_set(run->throttle, percent);
	} else if (smv_throttle_start_vm(run->source.qmp, run->source.process.pid, percent,
			   &run->throttle, &err) < 0) {
		smv_log_warning("the VM cannot be throttled: %s %s", err.message, err.hint);
		run->converge.max_throttle_percent = run->converge.throttle_percent = 0;
	}
}

static void unthrottle_vm(struct run *run)
{
	smv_throttle_stop(run->throttle);
	run->throttle = NULL;
}

/* Resend what the VM dirtied until the rest can be sent within the allowed downtime. */
static int rounds(struct run *run, struct smv_error *err)
{
	for (;;) {
		double expected_ms;
		uint64_t left;
		int r;

		if ((r = smv_run_interrupted(err)) < 0 || (r = collect(run, err)) < 0)
			return r;
		left = smv_pageset_count(&run->dirty);
		expected_ms = smv_converge_expected_ms(&run->converge, left * SMV_PAGE_SIZE);
		switch (smv_converge_next(&run->converge, left * SMV_PAGE_SIZE)) {
		case SMV_CONVERGE_SWITCH_OVER:
			return 0;
		case SMV_CONVERGE_FAIL:
			return no_converge(run, expected_ms, err);
		case SMV_CONVERGE_STOP:
			smv_progress_log("the rounds do not converge; stopping the VM for about "
					 "%.0f ms",
				expected_ms);
			return 0;
		case SMV_CONVERGE_SEND:
			throttle_vm(run);
			break;
		}
		smv_progress_phase("rounds",
			"round %zu: %lu dirty pages, expected downtime %.0f ms",
			run->result->nr_rounds, left, expected_ms);
		smv_fault_point("round-n");
		if ((r = send_round(run, err)) < 0)
			return r;
	}
}

/* What the guest has discarded since it was sent. Tracking of writes does not tell of it. */
static int drop_holes(struct run *run, struct smv_error *err)
{
	int r = smv_tracker_populated(&run->source, &run->dirty, err);

	if (r == 0)
		r = smv_push_drop_holes(run->push, &run->dirty, err);
	smv_pageset_clear(&run->dirty);
	return r;
}

/* A virtio-serial device takes what its clients send, or that they come and go, into guest RAM also
 * while the VM is stopped: QEMU's own migration would send those pages last. */
static bool may_write_when_stopped(struct run *run)
{
	CLEANUP_JSON json_t *tree = NULL;

	return smv_qmp_execute(run->source.qmp, "human-monitor-command",
		       json_pack("{s:s}", "command-line", "info qtree"), &tree, SMV_QMP_TIMEOUT_MS,
		       NULL) < 0 ||
	       strstr(json_string_value(tree) ?: "", "virtio-serial-bus");
}

/* The state of the devices is gone; were their pages the last that we had seen? */
static int check_unwritten(struct run *run, struct smv_error *err)
{
	int r;

#ifdef SMEMV_FAULT_POINTS
	if (smv_fault_point("write-when-stopped"))
		smv_source_touch(&run->source);
#endif
	r = collect(run, err);
	if (r < 0 || smv_pageset_count(&run->dirty) == 0)
		return r;
	return smv_fail(err, SMV_ABORTED, "written-when-stopped",
		"Try again; if it happens each time, end the clients of virtio-serial ports.",
		"a device wrote to %lu pages of guest RAM while the VM stood still",
		smv_pageset_count(&run->dirty));
}

static int switch_over(struct run *run, struct smv_error *err)
{
	const unsigned int timeout_ms = STOPPED_TIMEOUT_MS;
	CLEANUP_FREE char *uri = NULL;
	bool look_again;
	int r;

	smv_progress_phase("switch-over", "switching over");
	/* Somebody may have plugged a device or changed a disk since the start. */
	if ((r = smv_allow_list_check_pid(run->source.qmp, run->source.process.pid, err)) < 0)
		return r;
	look_again = may_write_when_stopped(run);
	if ((r = write_down(run, "switch-over", err)) < 0 ||
		(r = smv_dest_start_incoming(&run->dest, &uri, err)) < 0)
		return r;
	/* A processor that stands still may hold the lock that QEMU needs to stop the VM. */
	unthrottle_vm(run);
	if ((r = smv_source_start_migration(&run->source, uri, err)) < 0 ||
		(r = smv_source_wait_migration(&run->source, "pre-switchover", timeout_ms,
			 &run->stopped_ns, smv_run_interrupted, err)) < 0)
		return r;
	smv_fault_point("pre-switchover");
	/* The VM stands still: the last pages, then everything that the main host must know. */
	if ((r = collect(run, err)) < 0 || (r = send_round(run, err)) < 0 ||
		(r = drop_holes(run, err)) < 0 || (r = smv_push_read_back(run->push, err)) < 0 ||
		(r = smv_dest_flush(&run->dest, err)) < 0 ||
		(r = smv_dest_confirm(&run->dest, smv_push_map(run->push), err)) < 0)
		return r;
	smv_fault_point("map-confirmed");
	if ((r = smv_source_continue_migration(&run->source, err)) < 0)
		return r;
	r = smv_source_wait_migration(
		&run->source, "completed", timeout_ms, NULL, smv_run_interrupted, err);
	return r == 0 && look_again ? check_unwritten(run, err) : r;
}

/* Written down before it is asked for: whoever takes over must know that the main host may own the
 * VM. */
static int ask_for_commit(struct run *run, struct smv_error *err)
{
	struct smv_result *result = run->result;
	int r;

	if ((r = smv_run_interrupted(err)) < 0 ||
		(r = smv_journal_set(run->journal,
			 json_pack("{s:s, s:b}", "phase", "commit", "commit_sent", 1), err)) < 0)
		return r;
	err->code = SMV_OK;
	if (smv_dest_commit(&run->dest, STOPPED_TIMEOUT_MS, result->destination_state,
		    sizeof(result->destination_state), err) != SMV_VERDICT_COMMITTED)
		return smv_code_to_errno(err->code);
	result->committed = true;
	result->downtime_ms = smv_ms_since(run->stopped_ns);
#ifdef SMEMV_FAULT_POINTS
	if (smv_fault_point("late-write"))
		smv_push_late_write(run->push);
#endif
	return err->code == SMV_OK ? 0 : -EINPROGRESS; /* committed, but not seen to run */
}

static int migrate(struct run *run, struct smv_error *err)
{
	int r;

	if ((r = check(run, err)) < 0 || (r = prepare(run, err)) < 0 ||
		(r = sample(run, err)) < 0 || (r = first_round(run, err)) < 0 ||
		(r = rounds(run, err)) < 0 || (r = switch_over(run, err)) < 0)
		return r;
	return ask_for_commit(run, err);
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

/* Put everything back, unless the main host owns the VM by now. */
static enum smv_outcome back_out(struct run *run, struct smv_error *err)
{
	struct smv_result *result = run->result;
	enum smv_outcome outcome = atomic_load(&cancel_requested) && err->code == SMV_CANCELLED
					   ? SMV_STOPPED
					   : SMV_FAILED;
	enum smv_verdict verdict;

	set_cancel_client(NULL);
	unthrottle_vm(run);
	if (result->committed)
		return SMV_DOUBTFUL;
	if (run->refusable && is_refusal(err->code))
		outcome = SMV_NOT_BEGUN;
	if (!run->dest.prepared) {
		smv_source_resume(&run->source, NULL);
		return outcome;
	}
	if (!run->refusable)
		smv_progress_phase("abort", "aborting: %s", err->message);
	verdict = smv_back_out(&run->source, &run->dest, run->o->verdict_s * 1000,
		result->destination_state, sizeof(result->destination_state), err);
	if (run->stopped_ns)
		result->downtime_ms = smv_ms_since(run->stopped_ns);
	if (verdict == SMV_VERDICT_ABORTED)
		return outcome;
	if (verdict != SMV_VERDICT_COMMITTED)
		return SMV_DOUBTFUL;
	/* The answer to the commit was lost, not the commit. */
	result->committed = true;
	if (run->dest.not_running[0]) {
		smv_dest_not_running(run->dest.not_running, err);
		return SMV_DOUBTFUL;
	}
	err->code = SMV_OK;
	return SMV_COMPLETED;
}

/* From here on the journal says how it ended, should nobody get to hear it from us. */
static void write_outcome(struct run *run, bool unrestored)
{
	struct smv_result *result = run->result;
	json_t *changes;
	struct smv_error err;

	if (!run->journal->id[0] || !run->journal->root)
		return;
	/* We change nothing any more, so nobody has to watch whether we move. */
	changes = json_pack("{s:o, s:n}", "undo", smv_source_undo(&run->source), "worker");
	/* A source that could not be resumed or restored is left to the supervisor, which tries
	 * again. */
	result->settled = result->outcome != SMV_DOUBTFUL && !unrestored &&
			  strcmp(result->error.reason, SMV_REASON_RESUME) != 0;
	if (result->settled) {
		json_t *outcome = smv_result_json(result);

		smv_journal_tell(run->journal, outcome);
		json_object_set_new(changes, "outcome", outcome);
	}
	if (smv_journal_set(run->journal, changes, &err) < 0)
		smv_log_warning("%s", err.message);
	if (!result->settled)
		keep_supervised(run);
}

void smv_run(const struct smv_run_options *options, struct smv_journal *journal,
	struct smv_result *result)
{
	struct run run = {.o = options,
		.result = result,
		.journal = journal,
		.start_ns = smv_now_ns(),
		.refusable = true,
		.converge = smv_run_wishes(options)};
	bool unrestored = false;
	int r;

	run.source.uffd = run.source.pagemap_fd = -1;
	deadline_ns = options->timeout_s ? run.start_ns + options->timeout_s * SMV_NS_PER_S : 0;
	snprintf(result->destination_state, sizeof(result->destination_state), "unknown");
	result->downtime_ms = -1;
	r = migrate(&run, &result->error);
	result->outcome = r == 0 ? SMV_COMPLETED : back_out(&run, &result->error);
	set_cancel_client(NULL);
	if (r == 0)
		result->error.code = SMV_OK;
	fill_counts(&run);
	smv_push_close(run.push);
	if (run.source.qmp && smv_source_detach(&run.source) < 0)
		unrestored = true;
	smv_source_state(&run.source, result->source_state, sizeof(result->source_state));
	result->total_ms = smv_ms_since(run.start_ns);
	smv_progress_end();
	write_outcome(&run, unrestored);
	smv_source_close(&run.source);
	smv_dest_close(&run.dest);
	smv_pageset_destroy(&run.hot);
	smv_pageset_destroy(&run.dirty);
}
