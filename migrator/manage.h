/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about migrations that another process runs, or left behind: each prints and returns its
 * exit status. */
#ifndef SMV_MIGRATOR_MANAGE_H
#define SMV_MIGRATOR_MANAGE_H

#include <stdbool.h>
#include <stddef.h>

struct smv_manage {
	const char *state_dir;
	const char *vm;   /* only of this VM; NULL: any */
	char *const *ids; /* only these; none: all */
	size_t nr_ids;
	unsigned int timeout_s; /* of cancel, and of each question for a verdict */
	bool assume_aborted;
	bool json;
};

/** smv_manage_status - what is under way, and what was left behind. Always 0 but for errors. */
int smv_manage_status(const struct smv_manage *m);

/** smv_manage_cancel - tell smv-migrate to abort and wait for the outcome. 0: cancelled or failed,
 * the source runs; 1: too late, it is completed, or there is none; 5: unknown. */
int smv_manage_cancel(const struct smv_manage *m);

/** smv_manage_recover - settle what was left behind, and forget what is settled. The worst outcome:
 * 5 unknown, 1 failed (the source runs), 0 completed or nothing to settle. */
int smv_manage_recover(const struct smv_manage *m);

#endif
