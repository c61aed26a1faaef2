/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/verdicts.h"

#include "common/cleanup.h"
#include "common/json.h"
#include "common/log.h"
#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define KEEP_S 3600

/* The log is this array of objects, oldest first. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *entries;
static char path[PATH_MAX];

static enum smv_verdict_state state_of(const json_t *entry)
{
	const char *state = smv_json_field(entry, "state");

	if (strcmp(state, "open") == 0)
		return SMV_VERDICT_OPEN;
	if (strcmp(state, "aborted") == 0)
		return SMV_VERDICT_ABORTED;
	if (strcmp(state, "committed") == 0)
		return json_is_true(json_object_get(entry, "run")) ? SMV_VERDICT_TOLD
								   : SMV_VERDICT_COMMITTED;
	return SMV_VERDICT_NONE;
}

static bool is_final(enum smv_verdict_state state)
{
	return state == SMV_VERDICT_TOLD || state == SMV_VERDICT_ABORTED;
}

static bool may_become(enum smv_verdict_state from, enum smv_verdict_state to)
{
	switch (to) {
	case SMV_VERDICT_OPEN:
		return from == SMV_VERDICT_NONE;
	case SMV_VERDICT_COMMITTED:
		return from == SMV_VERDICT_OPEN;
	case SMV_VERDICT_TOLD:
		return from == SMV_VERDICT_COMMITTED;
	case SMV_VERDICT_ABORTED:
		return !is_final(from);
	case SMV_VERDICT_NONE:
		break;
	}
	return false;
}

static bool is_log(const json_t *log)
{
	size_t i;
	json_t *entry;

	if (!json_is_array(log))
		return false;
	json_array_foreach (log, i, entry)
		if (state_of(entry) == SMV_VERDICT_NONE || !smv_json_field(entry, "id")[0])
			return false;
	return true;
}

int smv_verdicts_init(const char *state_dir, struct smv_error *err)
{
	char aside[PATH_MAX + 8];
	json_error_t why;

	if (snprintf(path, sizeof(path), "%s/verdicts.json", state_dir) >= (int)sizeof(path))
		return smv_fail(err, SMV_INVALID, "state-dir", NULL, "the path is too long: %.200s",
			state_dir);
	json_decref(entries);
	entries = json_load_file(path, 0, &why);
	if (!is_log(entries)) {
		json_decref(entries);
		entries = json_array();
		snprintf(aside, sizeof(aside), "%s.broken", path);
		if (rename(path, aside) == 0)
			smv_log_error(
				"%s is broken (%s) and was put aside as %s: sources that ask how "
				"their migration ended will not be answered",
				path, why.text, aside);
	}
	return entries ? 0 : smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

static json_t *find(const char *id, size_t *index)
{
	json_t *entry;
	size_t i;

	json_array_foreach (entries, i, entry) {
		*index = i;
		if (strcmp(smv_json_field(entry, "id"), id) == 0)
			return entry;
	}
	return NULL;
}

/* The oldest that are for good go. */
static void trim(json_t *log)
{
	size_t nr_final = 0, i;
	json_t *entry;

	json_array_foreach (log, i, entry)
		nr_final += is_final(state_of(entry));
	for (i = 0; nr_final > SMV_VERDICTS_KEPT && i < json_array_size(log);) {
		if (!is_final(state_of(json_array_get(log, i)))) {
			i++;
			continue;
		}
		json_array_remove(log, i);
		nr_final--;
	}
}

static json_t *make(const char *id, const char *vm, enum smv_verdict_state state, const char *why)
{
	const char *word = state == SMV_VERDICT_OPEN      ? "open"
			   : state == SMV_VERDICT_ABORTED ? "aborted"
							  : "committed";

	return json_pack("{s:s, s:s, s:s, s:b, s:s, s:I}", "id", id, "vm", vm, "state", word, "run",
		state == SMV_VERDICT_TOLD, "why", why, "when", (json_int_t)time(NULL));
}

static int put_locked(const char *id, const char *vm, enum smv_verdict_state state, const char *why)
{
	CLEANUP_JSON json_t *log = json_copy(entries);
	size_t index;
	const json_t *old = find(id, &index);
	enum smv_verdict_state from = old ? state_of(old) : SMV_VERDICT_NONE;
	json_t *entry;
	int r;

	if (from == state && state != SMV_VERDICT_OPEN)
		return 0;
	if (!may_become(from, state))
		return -EPERM;
	entry = make(id, vm ? vm : smv_json_field(old, "vm"), state,
		why ? why : smv_json_field(old, "why"));
	if (!log || !entry || (old && json_array_remove(log, index) < 0) ||
		json_array_append_new(log, entry) < 0)
		return -ENOMEM;
	trim(log);
	/* First the file, then what we answer from. */
	r = smv_replace_json(AT_FDCWD, path, log, JSON_INDENT(1), true);
	if (r < 0)
		return r;
	json_decref(entries);
	entries = smv_take(log);
	return 0;
}

int smv_verdicts_put(const char *id, const char *vm, enum smv_verdict_state state, const char *why)
{
	int r;

	pthread_mutex_lock(&lock);
	r = put_locked(id, vm, state, why);
	pthread_mutex_unlock(&lock);
	if (r < 0)
		smv_log_error("migration %s: cannot record in %s how it stands: %s", id, path,
			strerror(-r));
	return r;
}

enum smv_verdict_state smv_verdicts_get(const char *id, char *why)
{
	enum smv_verdict_state state = SMV_VERDICT_NONE;
	const json_t *entry;
	size_t index;

	pthread_mutex_lock(&lock);
	if ((entry = find(id, &index))) {
		state = state_of(entry);
		if (why)
			snprintf(why, 200, "%s", smv_json_field(entry, "why"));
	}
	pthread_mutex_unlock(&lock);
	return state;
}

void smv_verdicts_abort_rest(bool (*is_here)(const char *id))
{
	CLEANUP_JSON json_t *log = NULL;
	json_t *entry;
	size_t i;

	pthread_mutex_lock(&lock);
	log = json_copy(entries);
	pthread_mutex_unlock(&lock);
	json_array_foreach (log, i, entry)
		if (!is_final(state_of(entry)) && !is_here(smv_json_field(entry, "id")))
			smv_verdicts_put(smv_json_field(entry, "id"), NULL, SMV_VERDICT_ABORTED,
				"smemv-pagerd was restarted before the commit");
}

void smv_verdicts_end(bool keep)
{
	json_t *entry;
	size_t i;

	pthread_mutex_lock(&lock);
	json_array_foreach (entries, i, entry)
		keep |= !is_final(state_of(entry)) ||
			time(NULL) - json_integer_value(json_object_get(entry, "when")) < KEEP_S;
	if (!keep && path[0])
		unlink(path);
	json_decref(entries);
	entries = NULL;
	pthread_mutex_unlock(&lock);
}
