/* SPDX-License-Identifier: Apache-2.0 */
/* One split migration, from the checks to the verdict. */
#ifndef SMV_MIGRATOR_RUN_H
#define SMV_MIGRATOR_RUN_H

#include "client/loss.h"
#include "common/addr.h"
#include "migrator/journal.h"
#include "migrator/report.h"
#include "migrator/source.h"

#include <stdbool.h>
#include <sys/types.h>

struct smv_run_options {
	struct smv_source_spec source;
	struct smv_addr to;
	const char *to_vm;
	char **sub_hosts;
	size_t nr_sub_hosts;
	uint64_t budget_bytes;
	uint64_t min_budget_bytes; /* down to which room is leased; 0: budget_bytes */
	const char *transport;
	enum smv_loss_policy loss_policy;
	unsigned int max_rounds;
	unsigned int max_downtime_ms; /* 0: the default */
	bool stop_on_no_converge;
	unsigned int max_throttle_percent; /* 0: the VM is not slowed down */
	unsigned int verdict_s;            /* how long to ask for the verdict of a commit */
	const char *vm;                    /* how people call the source VM */
	const char *state_dir;             /* where the journal goes */
	uint64_t bandwidth;                /* bytes/s, 0: no limit */
	unsigned int timeout_s;
	bool insecure;
};

/**
 * smv_run - migrate. Always fills @result; its outcome is the exit code.
 *
 * Phases: CHECK -> PREPARE -> SAMPLE -> ROUND 0 -> ROUND n -> SWITCH-OVER -> COMMIT. Up to the
 * commit every error leads to the abort: the main host gives back what it leased, the source runs
 * on as it was. From the request to commit on only the main host's verdict counts. What must be
 * known when this process dies is in the journal before it is done.
 *
 * @journal: the caller's; after the result was told it is to be removed if it is settled, else
 * closed and left to the supervisor. Its id is empty when nothing was begun.
 */
void smv_run(const struct smv_run_options *options, struct smv_journal *journal,
	struct smv_result *result);

/** smv_run_wishes - what the options say of convergence. */
struct smv_converge smv_run_wishes(const struct smv_run_options *options);

/** smv_run_interrupted - an smv_interrupted: has smv_run_cancel() been called, is the time over? */
int smv_run_interrupted(struct smv_error *err);

/** smv_run_cancel - make smv_run() abort, also a control call that is under way. From another
 * thread; may be called again and again. */
void smv_run_cancel(void);

#endif
