/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases that could not be given back, because their sub-host did not answer: tried again until it
 * says that it has them no more. They stand in debts.json in the state directory, so that the next
 * smemv-pagerd goes on.
 */
#ifndef SMV_PAGERD_DEBTS_H
#define SMV_PAGERD_DEBTS_H

#include "client/leases.h"

/** smv_debts_init - read those of former pagers. A file that cannot be read is said and left alone. */
void smv_debts_init(const char *state_dir);
/** smv_debts_add - what @leases still holds after smv_leases_release_try(). */
void smv_debts_add(const struct smv_leases *leases, const struct smv_backing *backing);
/** smv_debts_tick - now and then try one of them; blocks for a second at most. */
void smv_debts_tick(void);
/** smv_debts_count - how many there are. */
size_t smv_debts_count(void);
void smv_debts_end(void);

#endif
