/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/recover.h"

#include "common/cleanup.h"
#include "common/json.h"
#include "common/log.h"

#include <stdio.h>
#include <string.h>

/* A mere abort: the main host does it by itself when it hears nothing. */
#define ABORT_TIMEOUT_MS 3000

static bool resume(struct smv_source *source, struct smv_error *err)
{
	struct smv_error resume_err;
	bool failed = source && smv_source_resume(source, &resume_err) < 0;

	if (failed)
		smv_fail(err, SMV_INTERNAL, SMV_REASON_RESUME, "Resume it by hand (QMP: cont).",
			"the migration was aborted, but the source does not run again: %.400s",
			resume_err.message);
	return !failed;
}

enum smv_verdict smv_back_out(struct smv_source *source, struct smv_dest *dest,
	unsigned int verdict_ms, char *destination_state, size_t len, struct smv_error *err)
{
	const struct smv_error why = *err;
	enum smv_verdict verdict;
	bool resumed = true;

	if (!dest->commit_sent)
		resumed = resume(source, err);
	verdict = smv_dest_abort(dest, why.message,
		dest->commit_sent || verdict_ms < ABORT_TIMEOUT_MS ? verdict_ms : ABORT_TIMEOUT_MS,
		destination_state, len);
	/* A destination that had loaded everything held the locks of the disks. */
	if (!resumed) {
		*err = why;
		resume(source, err);
	}
	if (!dest->commit_sent)
		return SMV_VERDICT_ABORTED;
	if (verdict == SMV_VERDICT_ABORTED)
		resume(source, err);
	return verdict;
}

/* --- from a journal ----------------------------------------------------------------------- */

static const char *string(const struct smv_journal *j, const char *key)
{
	return json_string_value(json_object_get(j->root, key));
}

static bool flag(const struct smv_journal *j, const char *key)
{
	return json_is_true(json_object_get(j->root, key));
}

static int open_dest(const struct smv_journal *j, struct smv_dest *dest, struct smv_error *err)
{
	const char *to = string(j, "to");
	struct smv_addr addr;
	int r;

	if (!to)
		return smv_fail(err, SMV_INTERNAL, "journal", NULL,
			"the journal of migration %s does not name the main host", j->id);
	if ((r = smv_addr_parse(to, false, &addr, err)) < 0 ||
		(r = smv_dest_open(&addr, j->id, dest, err)) < 0)
		return r;
	dest->prepared = dest->granted = true;
	dest->commit_sent = flag(j, "commit_sent");
	return 0;
}

/* 0 with the source, or with *gone set; else it is there but cannot be reached. */
static int open_source(
	const struct smv_journal *j, struct smv_source *source, bool *gone, struct smv_error *err)
{
	const char *qmp = string(j, "qmp_path"), *shim = string(j, "shim_path");
	struct smv_process process;
	int r;

	if (!qmp || !shim || !smv_json_to_process(json_object_get(j->root, "source"), &process))
		return smv_fail(err, SMV_INTERNAL, "journal", NULL,
			"the journal of migration %s does not name the source", j->id);
	r = smv_source_reopen(qmp, shim, &process, json_object_get(j->root, "undo"), source, err);
	*gone = r < 0 && err->code == SMV_NOT_FOUND;
	return *gone ? 0 : r;
}

static int no_verdict(const char *id, const struct smv_dest *dest, struct smv_error *err)
{
	bool forgotten = dest->abort_error.code == SMV_NOT_FOUND;
	char hint[sizeof(err->hint)];

	snprintf(hint, sizeof(hint),
		forgotten ? "If that host was rebooted, the VM does not run there: smemv-migrate "
			    "recover %s --assume-aborted."
			  : "When it answers again: smemv-migrate recover %s. If it never will "
			    "(powered off, destroyed): the same with --assume-aborted.",
		id);
	return smv_fail(err, SMV_UNKNOWN, "no-verdict", hint, "the commit was asked for, and %s",
		forgotten ? "the main host does not know this migration any more: the state of its "
			    "smemv-pagerd is lost"
			  : "the main host does not say what became of it");
}

static void settle(struct smv_journal *j, struct smv_source *source, struct smv_dest *dest,
	unsigned int verdict_ms, bool assume_aborted, struct smv_recovery *out)
{
	enum smv_verdict verdict = SMV_VERDICT_ABORTED;

	if (flag(j, "prepared"))
		verdict = smv_back_out(source, dest, verdict_ms, out->destination_state,
			sizeof(out->destination_state), &out->error);
	/* OPEN is an answer: the main host may be about to let the VM run. */
	if (verdict == SMV_VERDICT_UNKNOWN && assume_aborted) {
		smv_log_warning("migration %s: taken for aborted, as told", j->id);
		resume(source, &out->error);
		verdict = SMV_VERDICT_ABORTED;
	}
	out->committed = verdict == SMV_VERDICT_COMMITTED;
	if (verdict == SMV_VERDICT_ABORTED)
		return;
	if (out->committed && !dest->not_running[0]) {
		out->outcome = SMV_COMPLETED;
		out->error = (struct smv_error){0};
		return;
	}
	out->outcome = SMV_DOUBTFUL;
	if (out->committed)
		smv_dest_not_running(dest->not_running, &out->error);
	else
		no_verdict(j->id, dest, &out->error);
}

static void write_outcome(
	struct smv_journal *j, const struct smv_source *source, const struct smv_recovery *out)
{
	json_t *changes = json_object();
	struct smv_error err;

	if (source)
		json_object_set_new(changes, "undo", smv_source_undo(source));
	if (out->settled) {
		json_t *outcome = smv_recovery_json(out);

		smv_journal_tell(j, outcome);
		json_object_set_new(changes, "outcome", outcome);
	}
	if (smv_journal_set(j, changes, &err) < 0)
		smv_log_warning("%s", err.message);
}

void smv_recover(struct smv_journal *j, unsigned int verdict_ms, bool assume_aborted,
	struct smv_recovery *out)
{
	struct smv_source source = {.uffd = -1, .pagemap_fd = -1};
	struct smv_dest dest = {0};
	bool touched = flag(j, "prepared") || json_is_object(json_object_get(j->root, "undo"));
	bool gone = false, opened = false;
	struct smv_error err;
	int r = 0;

	*out = (struct smv_recovery){.outcome = SMV_FAILED, .settled = true};
	if (smv_recovery_parse(json_object_get(j->root, "outcome"), out))
		return;
	snprintf(out->source_state, sizeof(out->source_state), "unknown");
	smv_fail(&out->error, SMV_ABORTED, "migrator-died", "Try again.",
		"smemv-migrate ended in phase '%s' before the migration was done",
		string(j, "phase") ?: "start");
	if (touched) {
		r = open_source(j, &source, &gone, &err);
		opened = r == 0 && !gone;
		if (r == 0)
			r = open_dest(j, &dest, &err);
	}
	if (r < 0) {
		/* Its QEMU is there and may stand still: that is not settled. */
		out->outcome = flag(j, "commit_sent") ? SMV_DOUBTFUL : SMV_FAILED;
		out->settled = false;
		out->error = err;
	} else if (touched) {
		settle(j, gone ? NULL : &source, &dest, verdict_ms, assume_aborted, out);
	}
	if (out->outcome == SMV_DOUBTFUL || strcmp(out->error.reason, SMV_REASON_RESUME) == 0)
		out->settled = false;
	if (opened) {
		/* What cannot be put back now is tried again; not in a QEMU whose VM has gone. */
		if (smv_source_detach(&source) < 0 && !out->committed)
			out->settled = false;
		smv_source_state(&source, out->source_state, sizeof(out->source_state));
	} else if (gone) {
		snprintf(out->source_state, sizeof(out->source_state), "gone");
	}
	write_outcome(j, opened ? &source : NULL, out);
	smv_source_close(&source);
	smv_dest_close(&dest);
}

json_t *smv_recovery_json(const struct smv_recovery *r)
{
	return json_pack("{s:s, s:b, s:o, s:s, s:s}", "status", smv_outcome_name(r->outcome),
		"committed", r->committed, "error", smv_error_json(&r->error), "source_state",
		r->source_state, "destination_state", r->destination_state);
}

static void copy(const json_t *json, const char *key, char *to, size_t len)
{
	snprintf(to, len, "%s", smv_json_field(json, key));
}

bool smv_recovery_parse(const json_t *json, struct smv_recovery *r)
{
	const json_t *error = json_object_get(json, "error");
	const char *status = json_string_value(json_object_get(json, "status"));

	if (!status || smv_outcome_parse(status, &r->outcome) < 0)
		return false;
	r->settled = r->outcome != SMV_DOUBTFUL;
	r->committed = json_is_true(json_object_get(json, "committed"));
	r->error = (struct smv_error){.code = json_is_object(error) ? SMV_ABORTED : SMV_OK};
	copy(error, "code", r->error.reason, sizeof(r->error.reason));
	copy(error, "message", r->error.message, sizeof(r->error.message));
	copy(error, "hint", r->error.hint, sizeof(r->error.hint));
	copy(json, "source_state", r->source_state, sizeof(r->source_state));
	copy(json, "destination_state", r->destination_state, sizeof(r->destination_state));
	return true;
}
