/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a migration ends that does not complete: the rule of who owns the VM, for smemv-migrate
 * itself and for whoever takes over from its journal.
 *
 *   The commit was never asked for: nobody can bring it about, so the source runs on at once.
 *   It was asked for: only the main host's verdict counts. COMMITTED: the source stays stopped.
 *   ABORTED: it runs on. No verdict: it stays stopped, and the outcome is unknown.
 */
#ifndef SMV_MIGRATOR_RECOVER_H
#define SMV_MIGRATOR_RECOVER_H

#include "migrator/dest.h"
#include "migrator/journal.h"
#include "migrator/report.h"
#include "migrator/source.h"

/**
 * smv_back_out - abort, unless it is committed, and let the source run if it owns the VM.
 * @source: NULL when its QEMU has ended
 * @verdict_ms: how long to ask for the verdict; for a mere abort less
 * @err: the reason for the abort; replaced when the source cannot be resumed
 *
 * ABORTED is also returned when the main host did not answer and the commit was never asked for.
 */
enum smv_verdict smv_back_out(struct smv_source *source, struct smv_dest *dest,
	unsigned int verdict_ms, char *destination_state, size_t len, struct smv_error *err);

/* What became of a migration. */
struct smv_recovery {
	enum smv_outcome outcome;
	bool settled; /* else it is to be tried again */
	bool committed;
	struct smv_error error; /* why it did not complete */
	char source_state[64];
	char destination_state[64];
};

/**
 * smv_recover - settle a migration whose smemv-migrate has ended, from its journal (locked).
 * @verdict_ms: how long to ask the main host
 * @assume_aborted: a person vouches that the main host will never run the VM; then a verdict that
 * cannot be had counts as ABORTED
 *
 * Writes the outcome into the journal when it is settled; idempotent.
 */
void smv_recover(struct smv_journal *journal, unsigned int verdict_ms, bool assume_aborted,
	struct smv_recovery *recovery);

/** smv_recovery_json - {"status", "committed", "error", "source_state", "destination_state"}. */
json_t *smv_recovery_json(const struct smv_recovery *recovery);
/** smv_recovery_parse - the outcome as a journal or result.json has it; false: none there. */
bool smv_recovery_parse(const json_t *json, struct smv_recovery *recovery);

#endif
