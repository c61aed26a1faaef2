/* SPDX-License-Identifier: Apache-2.0 */
/* The gRPC service smemv.v1.MemServer: checks what comes in, asks the lease table, answers. */
#ifndef SMV_MEMSERVER_SERVICE_H
#define SMV_MEMSERVER_SERVICE_H

#include "memserver/arena.h"
#include "memserver/data.h"
#include "memserver/lease.h"
#include "rpc/rpc.h"

/* Borrowed, all of it, until the RPC server is destroyed. */
struct smv_mem_server {
	const char *name;
	const struct smv_arena *arena;
	struct smv_lease_table *table;
	const struct smv_data_plane *data;
	uint64_t started_ns; /* smv_now_ns() */
};

/** smv_mem_server_add - offer @server's service on @rpc; before smv_rpc_server_start(). */
int smv_mem_server_add(struct smv_rpc_server *rpc, struct smv_mem_server *server);

#endif
