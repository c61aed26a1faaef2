/* SPDX-License-Identifier: Apache-2.0 */
/* All the reasons why something is refused, where a person wants to see them at once. */
#ifndef SMV_VMM_REFUSALS_H
#define SMV_VMM_REFUSALS_H

#include "common/error.h"

#include <stddef.h>

/* Start with {0}. */
struct smv_refusals {
	struct smv_error *list;
	size_t nr;
	bool incomplete; /* memory was short: there are more */
};

/** smv_refusals_add - a copy of @error; the same reason and message is kept once. */
void smv_refusals_add(struct smv_refusals *refusals, const struct smv_error *error);

/** smv_refusals_take - add @error if it says what is wrong with the VM or with us (SMV_REFUSED,
 * SMV_PERMISSION, ...): 0. -1 when it says that QEMU could not be asked (SMV_UNAVAILABLE,
 * SMV_TIMEOUT): then looking for more makes no sense. */
int smv_refusals_take(struct smv_refusals *refusals, const struct smv_error *error);

/** smv_refusals_have - is there one of this reason? */
bool smv_refusals_have(const struct smv_refusals *refusals, const char *reason);

/** smv_refusals_drop - those of this reason, which shall not count. */
void smv_refusals_drop(struct smv_refusals *refusals, const char *reason);

void smv_refusals_free(struct smv_refusals *refusals);

#endif
