/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/manage.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/program.h"
#include "common/units.h"
#include "migrator/recover.h"
#include "rpc/rpc.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define POLL_MS 50

static const char *text(const json_t *json, const char *key, const char *fallback)
{
	const char *s = json_string_value(json_object_get(json, key));

	return s ? s : fallback;
}

static double number(const json_t *json, const char *key)
{
	return json_number_value(json_object_get(json, key));
}

static bool is_meant(const struct smv_manage *m, const struct smv_journal_view *view)
{
	bool named = m->nr_ids == 0;

	for (size_t i = 0; i < m->nr_ids && !named; i++)
		named = strcmp(m->ids[i], view->id) == 0;
	return named && (!m->vm || strcmp(text(view->journal, "vm", ""), m->vm) == 0);
}

/* Those that are meant, in place. Prints the error. */
static int list(const struct smv_manage *m, struct smv_journal_view **views, size_t *nr)
{
	struct smv_error err;
	size_t kept = 0;

	if (smv_journal_list(m->state_dir, views, nr, &err) < 0) {
		smv_error_print(&err);
		return -1;
	}
	for (size_t i = 0; i < *nr; i++) {
		struct smv_journal_view view = (*views)[i];

		if (!is_meant(m, &view))
			continue;
		(*views)[i] = (*views)[kept];
		(*views)[kept++] = view;
	}
	/* The others are freed with the list. */
	return (int)kept;
}

static void print_json(const char *key, json_t *array)
{
	CLEANUP_JSON json_t *root = json_pack("{s:i, s:o}", "schema_version", 1, key, array);

	json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	putchar('\n');
	fflush(stdout);
}

/* --- status ------------------------------------------------------------------------------- */

static const char *state_of(const struct smv_journal_view *view)
{
	if (json_is_object(json_object_get(view->journal, "outcome")))
		return "ended";
	return view->busy ? "running" : "unresolved";
}

static json_t *view_json(const struct smv_journal_view *view)
{
	json_t *json = json_pack("{s:s, s:s}", "migration_id", view->id, "state", state_of(view));
	static const char *const keys[] = {"vm", "to", "to_vm", "started_at", "outcome"};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(keys); i++)
		if (json_object_get(view->journal, keys[i]))
			json_object_set(json, keys[i], json_object_get(view->journal, keys[i]));
	if (view->busy && view->status)
		json_object_set(json, "progress", view->status);
	return json;
}

static void print_view(const struct smv_journal_view *view)
{
	const json_t *s = view->status, *outcome = json_object_get(view->journal, "outcome");
	char left[32], rate[32], dirty[32];

	printf("%s  VM '%s' to '%s' at %s: ", view->id, text(view->journal, "vm", "?"),
		text(view->journal, "to_vm", "?"), text(view->journal, "to", "?"));
	if (outcome) {
		printf("%s (smemv-migrate died; smemv-migrate recover forgets it)\n",
			text(outcome, "status", "?"));
	} else if (!view->busy) {
		printf("unresolved: use smemv-migrate recover\n");
	} else if (!s) {
		printf("beginning\n");
	} else {
		printf("%s\n", text(s, "text", "?"));
		printf("    phase %s, round %.0f, %s left at %s/s; dirtied %s/s, expected downtime "
		       "%.0f ms; %.1f s so far\n",
			text(s, "phase", "?"), number(s, "round"),
			smv_format_size((uint64_t)number(s, "remaining_bytes"), left, sizeof(left)),
			smv_format_size((uint64_t)number(s, "bytes_per_s"), rate, sizeof(rate)),
			smv_format_size(
				(uint64_t)number(s, "dirty_bytes_per_s"), dirty, sizeof(dirty)),
			number(s, "expected_downtime_ms"), number(s, "elapsed_ms") / 1000);
	}
}

int smv_manage_status(const struct smv_manage *m)
{
	struct smv_journal_view *views;
	json_t *array = json_array();
	size_t nr;
	int kept = list(m, &views, &nr);

	for (int i = 0; i < kept; i++) {
		if (m->json)
			json_array_append_new(array, view_json(&views[i]));
		else
			print_view(&views[i]);
	}
	if (m->json && kept >= 0)
		print_json("migrations", json_incref(array));
	else if (kept == 0)
		printf("No migration is under way here, and none is unresolved.\n");
	json_decref(array);
	smv_journal_list_free(views, nr);
	return kept < 0;
}

/* --- outcomes ----------------------------------------------------------------------------- */

static void say(const char *id, const struct smv_recovery *r)
{
	if (r->outcome == SMV_COMPLETED) {
		printf("Migration %s is completed: the VM runs on the main host; the source stays "
		       "stopped (%s).\n",
			id, r->source_state);
		return;
	}
	printf("Migration %s: %s; the source is '%s', the destination '%s'.\n  %s\n", id,
		smv_outcome_name(r->outcome), r->source_state, r->destination_state,
		r->error.message);
	if (r->error.hint[0])
		printf("  %s\n", r->error.hint);
	if (r->outcome == SMV_DOUBTFUL)
		printf("  DO NOT START THE SOURCE: the VM may be running on the main host.\n");
}

static json_t *outcome_json(const char *id, const struct smv_recovery *r)
{
	json_t *json = smv_recovery_json(r);

	json_object_set_new(json, "migration_id", json_string(id));
	json_object_set_new(json, "settled", json_boolean(r->settled));
	return json;
}

/* --- cancel ------------------------------------------------------------------------------- */

/* The outcome as smemv-migrate told it, or as its supervisor has written it into the journal. */
static bool learn(const struct smv_manage *m, const struct smv_journal_view *view,
	struct smv_recovery *recovery)
{
	CLEANUP_JSON json_t *told = lseek(view->result_fd, 0, SEEK_SET) == 0
					    ? json_loadfd(view->result_fd, 0, NULL)
					    : NULL;
	struct smv_journal_view now;
	bool known = smv_recovery_parse(told, recovery);

	if (known)
		return true;
	smv_journal_look(m->state_dir, view->id, &now);
	known = smv_recovery_parse(json_object_get(now.journal, "outcome"), recovery);
	smv_journal_view_clear(&now);
	return known;
}

static int cancel(const struct smv_manage *m, const struct smv_journal_view *view)
{
	uint64_t end = smv_now_ns() + m->timeout_s * SMV_NS_PER_S;
	struct smv_recovery recovery = {.outcome = SMV_DOUBTFUL};

	smv_journal_signal(view, SIGTERM); /* dead already: then its supervisor does it */
	while (!learn(m, view, &recovery) && smv_now_ns() < end)
		smv_sleep_ms(POLL_MS);
	if (recovery.outcome == SMV_DOUBTFUL)
		smv_fail(&recovery.error, SMV_TIMEOUT, "not-ended",
			"See smemv-migrate status, and smemv-migrate recover.",
			"the migration has not come to an end within %u s", m->timeout_s);
	if (m->json)
		print_json("outcomes", json_pack("[o]", outcome_json(view->id, &recovery)));
	else
		say(view->id, &recovery);
	if (recovery.outcome == SMV_DOUBTFUL)
		return SMV_DOUBTFUL;
	return recovery.outcome == SMV_COMPLETED;
}

int smv_manage_cancel(const struct smv_manage *m)
{
	struct smv_journal_view *views;
	struct smv_error err;
	size_t nr;
	int kept = list(m, &views, &nr), status = 1;

	if (kept == 1) {
		status = cancel(m, &views[0]);
	} else if (kept == 0) {
		smv_fail(&err, SMV_NOT_FOUND, "no-migration", "smemv-migrate status lists them.",
			"no such migration is under way here");
		smv_error_print(&err);
	} else if (kept > 1) {
		smv_fail(&err, SMV_INVALID, "ambiguous", "Name one by its id or by --vm.",
			"%d migrations are under way here", kept);
		smv_error_print(&err);
		status = SMV_EXIT_USAGE;
	}
	smv_journal_list_free(views, nr);
	return status;
}

/* --- recover ------------------------------------------------------------------------------ */

/* Its supervisor holds the lock for an attempt at a time: then wait. */
static int open_left_behind(const struct smv_manage *m, const struct smv_journal_view *view,
	struct smv_journal *journal, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + m->timeout_s * SMV_NS_PER_S;
	int r;

	while ((r = smv_journal_open(m->state_dir, view->id, false, journal, err)) < 0 &&
		err->code == SMV_EXISTS && smv_journal_signal(view, 0) < 0 && smv_now_ns() < end)
		smv_sleep_ms(POLL_MS);
	return r;
}

/* 1: settled or tried; 0: gone meanwhile; negative: it is being worked on. */
static int recover(const struct smv_manage *m, const struct smv_journal_view *view,
	struct smv_recovery *recovery)
{
	struct smv_journal journal;
	struct smv_error err;

	if (open_left_behind(m, view, &journal, &err) < 0) {
		if (err.code == SMV_NOT_FOUND)
			return 0;
		smv_error_print(&err);
		return -1;
	}
	smv_recover(&journal, m->timeout_s * 1000, m->assume_aborted, recovery);
	if (recovery->settled)
		smv_journal_remove(&journal);
	else
		smv_journal_close(&journal);
	return 1;
}

static int worse(int status, const struct smv_recovery *r)
{
	if (r->outcome == SMV_DOUBTFUL || status == SMV_DOUBTFUL)
		return SMV_DOUBTFUL;
	return status || r->outcome != SMV_COMPLETED;
}

int smv_manage_recover(const struct smv_manage *m)
{
	json_t *array = json_array();
	struct smv_journal_view *views;
	struct smv_error err;
	size_t nr;
	int kept = list(m, &views, &nr), status = kept < 0;

	smv_rpc_init();
	for (int i = 0; i < kept; i++) {
		struct smv_recovery recovery;

		int r = recover(m, &views[i], &recovery);

		if (r < 0 && !status)
			status = 1;
		if (r <= 0)
			continue;
		status = worse(status, &recovery);
		if (!m->json)
			say(views[i].id, &recovery);
		json_array_append_new(array, outcome_json(views[i].id, &recovery));
	}
	smv_rpc_shutdown();
	if (kept == 0 && m->nr_ids) {
		smv_fail(&err, SMV_NOT_FOUND, "no-migration", "smemv-migrate status lists them.",
			"no such migration was left behind here");
		smv_error_print(&err);
		status = 1;
	}
	if (!m->json && kept == 0 && !m->nr_ids)
		printf("Nothing is left to be settled here.\n");
	if (m->json && kept >= 0)
		print_json("outcomes", json_incref(array));
	json_decref(array);
	smv_journal_list_free(views, nr);
	return status;
}
