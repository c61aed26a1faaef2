/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How migrations into this host ended: a log in the state directory, verdicts.json, that outlives
 * the pager and the VMs. A source that asks after a crash gets the same answer as before it.
 *
 *   (none)    -> OPEN       before anything is leased
 *   OPEN      -> COMMITTED  the COMMIT record: the pager has decided, nobody was told
 *   COMMITTED -> TOLD       just before `cont` is sent: from here on the VM may have run here
 *   OPEN, COMMITTED, (none) -> ABORTED
 *
 * TOLD and ABORTED are for good; any other change is refused (-EPERM). In the file OPEN, COMMITTED
 * and ABORTED are "state", TOLD is "committed" with "run": true.
 */
#ifndef SMV_PAGERD_VERDICTS_H
#define SMV_PAGERD_VERDICTS_H

#include "common/error.h"

#include <stdbool.h>

enum smv_verdict_state {
	SMV_VERDICT_NONE,
	SMV_VERDICT_OPEN,
	SMV_VERDICT_COMMITTED,
	SMV_VERDICT_TOLD,
	SMV_VERDICT_ABORTED,
};

/* Of those that are for good the newest so many are kept; others always. */
#define SMV_VERDICTS_KEPT 64

/** smv_verdicts_init - read the log of an earlier pager. One that is broken (which no crash of a
 * pager leaves) is put aside as verdicts.json.broken. */
int smv_verdicts_init(const char *state_dir, struct smv_error *err);

/** smv_verdicts_put - durable when it returns 0. @vm and @why may be NULL: as before. -EPERM: not a
 * transition of the above. Other errors: the log is as it was. Any thread. */
int smv_verdicts_put(const char *id, const char *vm, enum smv_verdict_state state, const char *why);

/** smv_verdicts_get - SMV_VERDICT_NONE when it is not known. @why: 200 bytes, may be NULL. */
enum smv_verdict_state smv_verdicts_get(const char *id, char *why);

/** smv_verdicts_abort_rest - after a restart: those that are not for good and that @is_here does
 * not say true of. Nobody can commit them any more. */
void smv_verdicts_abort_rest(bool (*is_here)(const char *id));

/** smv_verdicts_end - remove the file unless somebody may still ask: nothing in it is younger than
 * an hour or open. @keep: keep it in any case, for VMs that live on. */
void smv_verdicts_end(bool keep);

#endif
