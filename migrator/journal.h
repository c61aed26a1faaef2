/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must survive smemv-migrate: one directory per migration, on tmpfs, with
 *
 *   lock          whoever works on the migration holds its lock: smemv-migrate while it lives, then
 *                 its supervisor or "recover". A lock that is free means that nobody does.
 *   journal.json  what was changed and how far it got, written before each such step
 *   status.json   how it goes, for people; worth nothing after a crash
 *   result.json   the result, for those who have it open already when the directory goes
 *
 * The directory goes when the outcome is known and was told.
 */
#ifndef SMV_MIGRATOR_JOURNAL_H
#define SMV_MIGRATOR_JOURNAL_H

#include "common/error.h"
#include "common/process.h"

#include <jansson.h>
#include <stdbool.h>

#define SMV_MIGRATION_ID_MAX 33

struct smv_journal {
	char id[SMV_MIGRATION_ID_MAX];
	int dir_fd;
	int lock_fd;
	int result_fd;
	json_t *root; /* what journal.json holds */
};

/** smv_journal_default_dir - /run/smemv/migrations for root, else below $XDG_RUNTIME_DIR. @dir
 * holds SMV_RUNTIME_PATH_MAX bytes. */
int smv_journal_default_dir(char *dir, struct smv_error *err);

/** smv_journal_create - a new directory, locked. */
int smv_journal_create(
	const char *state_dir, const char *id, struct smv_journal *journal, struct smv_error *err);

/** smv_journal_open - of a migration that somebody else began. SMV_EXISTS when its lock is taken
 * and @wait is not set; SMV_NOT_FOUND when it is gone, also while waiting. */
int smv_journal_open(const char *state_dir, const char *id, bool wait, struct smv_journal *journal,
	struct smv_error *err);

/** smv_journal_set - change members (the reference to @changes is taken over) and write, durably,
 * before returning. */
int smv_journal_set(struct smv_journal *journal, json_t *changes, struct smv_error *err);

/** smv_journal_publish - replace a file of the directory that need not survive: "status.json". */
void smv_journal_publish(const struct smv_journal *journal, const char *file, json_t *content);
/** smv_journal_tell - the result, for who has result.json open. */
void smv_journal_tell(const struct smv_journal *journal, const json_t *result);

/** smv_journal_close - let go of the lock; the directory stays. Fine on a zeroed struct. */
void smv_journal_close(struct smv_journal *journal);
/** smv_journal_remove - the outcome was told: the directory goes, then as smv_journal_close(). */
void smv_journal_remove(struct smv_journal *journal);

/* A migration as others see it, without its lock. */
struct smv_journal_view {
	char id[SMV_MIGRATION_ID_MAX];
	bool busy;       /* somebody holds the lock */
	json_t *journal; /* NULL: not written yet, or unreadable */
	json_t *status;  /* NULL: none */
	int result_fd;   /* result.json, see smv_journal_tell() */
};

/** smv_journal_look - at one migration; free with smv_journal_view_clear(). False: it is not there.
 */
bool smv_journal_look(const char *state_dir, const char *id, struct smv_journal_view *view);
void smv_journal_view_clear(struct smv_journal_view *view);

/** smv_journal_list - all migrations of @state_dir; free with smv_journal_list_free(). */
int smv_journal_list(
	const char *state_dir, struct smv_journal_view **views, size_t *nr, struct smv_error *err);
void smv_journal_list_free(struct smv_journal_view *views, size_t nr);

/** smv_json_process / smv_json_to_process - a process in a journal. */
json_t *smv_json_process(const struct smv_process *process);
bool smv_json_to_process(const json_t *json, struct smv_process *process);

/** smv_journal_signal - smv_process_signal() to the smemv-migrate that works on it; -ESRCH also
 * when it has said that it will change nothing any more. */
int smv_journal_signal(const struct smv_journal_view *view, int sig);

#endif
