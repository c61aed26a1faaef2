/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control channel: gRPC C core with protobuf-c messages. The generated service structs of
 * protobuf-c's descriptors are the only description of a service: adding an RPC means editing the
 * .proto and writing its handler.
 */
#ifndef SMV_RPC_RPC_H
#define SMV_RPC_RPC_H

#include "common/addr.h"
#include "common/error.h"

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

/* Larger messages are refused in both directions (protobuf-c can amplify memory 28-fold). */
#define SMV_RPC_MESSAGE_MAX (256 * 1024)

/** smv_rpc_init / smv_rpc_shutdown - once per process, before and after everything else here.
 * Never fork without exec after smv_rpc_init(). */
void smv_rpc_init(void);
void smv_rpc_shutdown(void);

/* --- server ------------------------------------------------------------------------------- */

struct smv_rpc_server;

/* One call in its handler. */
struct smv_rpc_call;

/**
 * A handler of a unary method, run in a worker thread; it may block.
 * @request: the message of the method's input type, owned by the caller
 * @response: an initialised message of the output type; what the handler hangs into it must be
 *            malloc'ed as protobuf-c would, it is freed with protobuf_c_message_free_unpacked()
 *
 * Returns 0, or -errno with @err filled, which becomes the gRPC status: code and message, and the
 * trailing metadata "smemv-reason" and "smemv-hint".
 */
typedef int (*smv_rpc_handler)(void *ctx, struct smv_rpc_call *call,
	const ProtobufCMessage *request, ProtobufCMessage *response, struct smv_error *err);

/** smv_rpc_call_is_local - whether the caller came through a unix socket. */
bool smv_rpc_call_is_local(const struct smv_rpc_call *call);
/** smv_rpc_call_is_cancelled - the caller gave up or its deadline has passed. */
bool smv_rpc_call_is_cancelled(const struct smv_rpc_call *call);

struct smv_rpc_method {
	const char *name; /* as in the .proto: "CreateLease" */
	smv_rpc_handler handler;
};

/** smv_rpc_server_create - @nr_workers threads run handlers. */
int smv_rpc_server_create(unsigned int nr_workers, struct smv_rpc_server **server);

/** smv_rpc_server_add_service - @methods ends with a NULL name. Methods of @descriptor that it does
 * not name answer UNIMPLEMENTED; a name that @descriptor does not have is -EINVAL. */
int smv_rpc_server_add_service(struct smv_rpc_server *server,
	const ProtobufCServiceDescriptor *descriptor, const struct smv_rpc_method *methods,
	void *ctx);

/** smv_rpc_server_listen - before smv_rpc_server_start(); may be called for several addresses.
 * Port 0 takes a free one; @bound gets the real address. A stale unix socket that nobody listens on
 * is replaced; one in use is -EADDRINUSE. */
int smv_rpc_server_listen(struct smv_rpc_server *server, const struct smv_addr *addr,
	struct smv_addr *bound, struct smv_error *err);
int smv_rpc_server_start(struct smv_rpc_server *server);

/** smv_rpc_server_destroy - refuse new calls, give those under way @grace_ms, cancel the rest, wait
 * for all handlers, free. Unix sockets are unlinked. */
void smv_rpc_server_destroy(struct smv_rpc_server *server, unsigned int grace_ms);

/* --- client ------------------------------------------------------------------------------- */

struct smv_rpc_client;

/** smv_rpc_client_create - no connection is made yet. Any thread may call on a client. */
int smv_rpc_client_create(const struct smv_addr *addr, struct smv_rpc_client **client);
/** smv_rpc_client_destroy - cancels calls under way in other threads and waits for them. */
void smv_rpc_client_destroy(struct smv_rpc_client *client);

/**
 * smv_rpc_client_call - one unary call, blocking up to @timeout_ms.
 * @service, @method: e.g. &smemv__v1__mem_server__descriptor, "CreateLease"
 * @response: gets the answer; free it with smv_rpc_message_free()
 *
 * A peer that cannot be reached is retried until the deadline only with @wait_for_ready; otherwise
 * it fails at once with SMV_UNAVAILABLE. The error is the server's, or names the address and what
 * went wrong.
 */
int smv_rpc_client_call(struct smv_rpc_client *client, const ProtobufCServiceDescriptor *service,
	const char *method, const ProtobufCMessage *request, ProtobufCMessage **response,
	unsigned int timeout_ms, bool wait_for_ready, struct smv_error *err);

/** smv_rpc_client_cancel_all - calls under way on @client return SMV_CANCELLED; for a signal's
 * sake. Later calls work again. */
void smv_rpc_client_cancel_all(struct smv_rpc_client *client);

/** smv_rpc_message_free - NULL is fine. */
void smv_rpc_message_free(ProtobufCMessage *message);

#endif
