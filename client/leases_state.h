/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases that outlive the process which asked for them: written down as JSON, read back by its
 * successor, who fences them before it uses them.
 */
#ifndef SMV_CLIENT_LEASES_STATE_H
#define SMV_CLIENT_LEASES_STATE_H

#include "client/leases.h"

#include <jansson.h>

/** smv_leases_to_json - all that smv_leases_from_json() needs; a new reference or NULL. It holds
 * the ticket keys: whoever reads it can read and write the memory. The extent table is not in it.
 */
json_t *smv_leases_to_json(const struct smv_leases *leases, const struct smv_backing *backing);

/**
 * smv_leases_from_json - nobody is asked. On failure nothing is left to free.
 * @transport: over which the data connections go
 * @timeout_ms: of each later call to a sub-host
 */
int smv_leases_from_json(const json_t *json, const struct smv_transport *transport,
	unsigned int timeout_ms, struct smv_leases *leases, struct smv_backing *backing,
	struct smv_error *err);

/** smv_leases_forget - free what hangs in both, but give no lease back: for a successor. */
void smv_leases_forget(struct smv_leases *leases, struct smv_backing *backing);

#endif
