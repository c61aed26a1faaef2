/* SPDX-License-Identifier: Apache-2.0 */
/* The method ListEvents of both services: the ring of common/events.h as messages. */
#ifndef SMV_RPC_EVENTS_H
#define SMV_RPC_EVENTS_H

#include "rpc/rpc.h"

/** smv_rpc_list_events - an smv_rpc_handler, from ListEventsRequest to ListEventsResponse. */
int smv_rpc_list_events(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err);

#endif
