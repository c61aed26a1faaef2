/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the server. One I/O thread takes all events from one completion queue and never blocks;
 * handlers run in worker threads. server.c owns the threads, listen.c the listening sockets, call.c
 * a single call.
 */
#ifndef SMV_RPC_SERVER_H
#define SMV_RPC_SERVER_H

#include "rpc/rpc.h"
#include "rpc/runtime.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

/* A method that has a handler. */
struct smv_rpc_entry {
	SLIST_ENTRY(smv_rpc_entry) link;
	char *path; /* "/smemv.v1.MemServer/CreateLease" */
	const ProtobufCMethodDescriptor *method;
	smv_rpc_handler handler;
	void *ctx;
};

STAILQ_HEAD(smv_rpc_call_queue, smv_rpc_call);

struct smv_rpc_server {
	grpc_server *grpc;
	grpc_completion_queue *cq;
	SLIST_HEAD(, smv_rpc_entry) entries; /* fixed once started */
	struct smv_rpc_tag shutdown_tag;

	pthread_mutex_t lock; /* protects what follows */
	pthread_cond_t work;  /* calls are waiting, or stopping */
	pthread_cond_t drained;
	struct smv_rpc_call_queue waiting;
	size_t nr_waiting;
	bool stopping;   /* workers leave when nothing waits */
	bool is_drained; /* gRPC has no call and no listener left */

	pthread_t io;
	bool io_runs;
	unsigned int nr_workers;
	pthread_t workers[];
};

/* server.c */

/** smv_rpc_server_find - NULL for a method without a handler. */
const struct smv_rpc_entry *smv_rpc_server_find(
	const struct smv_rpc_server *server, grpc_slice path);

/** smv_rpc_server_enqueue - have a worker call smv_rpc_call_run(); false when too many wait. */
bool smv_rpc_server_enqueue(struct smv_rpc_server *server, struct smv_rpc_call *call);

/* call.c */

struct smv_rpc_call {
	STAILQ_ENTRY(smv_rpc_call) link; /* while it waits for a worker */
	struct smv_rpc_server *server;
	const struct smv_rpc_entry *entry;
	atomic_int refs; /* one for each operation under way, one for queue or worker */
	atomic_bool cancelled;
	int closed_early; /* written by gRPC until the closed tag is done */
	grpc_call *call;
	grpc_call_details details;
	grpc_metadata_array metadata;
	grpc_byte_buffer *request, *response;
	struct smv_rpc_tag accepted, closed, received, finished;
};

/** smv_rpc_call_accept - wait for the next call; it re-arms itself. */
int smv_rpc_call_accept(struct smv_rpc_server *server);

/** smv_rpc_call_run - run the handler and answer; takes over the queue's reference. */
void smv_rpc_call_run(struct smv_rpc_call *call);

#endif
