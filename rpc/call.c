/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One call at the server:
 *
 *   accepted -> received -> waiting -> handler -> finished
 *
 * with "closed" posted at once beside it: it completes when the call is over for whatever reason,
 * which is how a handler learns that nobody waits for its answer. All but the handler runs in the
 * I/O thread. Batches of one call are never started by two threads at once: the handler's side
 * starts one only after the I/O thread has handed the call over.
 */
#include "rpc/server.h"

#include "common/log.h"
#include "rpc/message.h"
#include "rpc/status.h"
#include "rpc/text.h"

#include <errno.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

static void call_put(struct smv_rpc_call *call)
{
	if (atomic_fetch_sub(&call->refs, 1) > 1)
		return;
	if (call->call)
		grpc_call_unref(call->call);
	grpc_call_details_destroy(&call->details);
	grpc_metadata_array_destroy(&call->metadata);
	grpc_byte_buffer_destroy(call->request);
	grpc_byte_buffer_destroy(call->response);
	free(call);
}

/* Start a batch that holds a reference until @tag is done. */
static void call_post(
	struct smv_rpc_call *call, const grpc_op *ops, size_t nr_ops, struct smv_rpc_tag *tag)
{
	grpc_call_error error;

	atomic_fetch_add(&call->refs, 1);
	SMV_RPC_TAG_POSTED(tag);
	error = grpc_call_start_batch(call->call, ops, nr_ops, tag, NULL);
	if (error == GRPC_CALL_OK)
		return;
	smv_log_error("gRPC refused an operation: %s", grpc_call_error_to_string(error));
	grpc_call_cancel(call->call, NULL);
	call_put(call);
}

/* End the call. call->response, if there is one, goes before the status. */
static void call_send(struct smv_rpc_call *call, const struct smv_rpc_status *status)
{
	grpc_op ops[3] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}};
	size_t n = 1;

	if (status->code == GRPC_STATUS_OK) {
		ops[n].op = GRPC_OP_SEND_MESSAGE;
		ops[n++].data.send_message.send_message = call->response;
	}
	ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
	ops[n].data.send_status_from_server.status = status->code;
	ops[n].data.send_status_from_server.status_details = (grpc_slice *)&status->details;
	ops[n].data.send_status_from_server.trailing_metadata = (grpc_metadata *)status->metadata;
	ops[n++].data.send_status_from_server.trailing_metadata_count = status->nr_metadata;
	call_post(call, ops, n, &call->finished);
}

/* @err: NULL for success */
static void call_finish(struct smv_rpc_call *call, const struct smv_error *err)
{
	struct smv_rpc_status status;

	smv_rpc_status_from_error(&status, err);
	call_send(call, &status);
	smv_rpc_status_release(&status);
}

/*
 * Our clock may run ahead of the caller's by a moment: whatever the handler returned because the
 * deadline passed, the caller must hear of a time-out. Without a reason it reads like its own.
 */
static void call_expire(struct smv_rpc_call *call)
{
	const struct smv_rpc_status status = {.code = GRPC_STATUS_DEADLINE_EXCEEDED,
		.details = grpc_slice_from_static_string("Deadline Exceeded")};

	call_send(call, &status);
}

static void call_refuse(struct smv_rpc_call *call, enum smv_code code, const char *reason,
	const char *hint, const char *why)
{
	struct smv_error err;
	char path[200];

	smv_text_scrub(path, sizeof(path), (const char *)GRPC_SLICE_START_PTR(call->details.method),
		GRPC_SLICE_LENGTH(call->details.method));
	smv_fail(&err, code, reason, hint, "%s: %s", path, why);
	call_finish(call, &err);
}

static void on_accepted(void *owner, bool ok)
{
	struct smv_rpc_call *call = owner;
	grpc_op close_op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
	grpc_op message_op = {.op = GRPC_OP_RECV_MESSAGE};

	if (!ok) { /* the server shuts down */
		call_put(call);
		return;
	}
	if (smv_rpc_call_accept(call->server) < 0)
		smv_log_error("no further calls can be accepted: out of memory");
	close_op.data.recv_close_on_server.cancelled = &call->closed_early;
	call_post(call, &close_op, 1, &call->closed);
	call->entry = smv_rpc_server_find(call->server, call->details.method);
	if (call->entry) {
		message_op.data.recv_message.recv_message = &call->request;
		call_post(call, &message_op, 1, &call->received);
	} else {
		call_refuse(call, SMV_UNIMPLEMENTED, "unknown-method",
			"Do both sides run the same version?", "this server has no such method");
	}
	call_put(call);
}

static void on_closed(void *owner, bool ok)
{
	struct smv_rpc_call *call = owner;

	(void)ok; /* this operation always succeeds */
	if (call->closed_early)
		atomic_store(&call->cancelled, true);
	call_put(call);
}

static void on_received(void *owner, bool ok)
{
	struct smv_rpc_call *call = owner;

	/* Not ok: cancelled, or a message over the limit, which gRPC has answered itself. */
	if (ok && !call->request) {
		call_refuse(call, SMV_INVALID, "bad-message", NULL, "the request has no message");
	} else if (ok) {
		atomic_fetch_add(&call->refs, 1);
		if (!smv_rpc_server_enqueue(call->server, call)) {
			call_refuse(call, SMV_NO_ROOM, "server-busy", "Try again later.",
				"too many calls are waiting");
			call_put(call);
		}
	}
	call_put(call);
}

static void on_finished(void *owner, bool ok)
{
	(void)ok; /* a caller that is gone needs no answer */
	call_put(owner);
}

int smv_rpc_call_accept(struct smv_rpc_server *server)
{
	struct smv_rpc_call *call = calloc(1, sizeof(*call));

	if (!call)
		return -ENOMEM;
	call->server = server;
	call->accepted = (struct smv_rpc_tag){on_accepted, call};
	call->closed = (struct smv_rpc_tag){on_closed, call};
	call->received = (struct smv_rpc_tag){on_received, call};
	call->finished = (struct smv_rpc_tag){on_finished, call};
	atomic_init(&call->refs, 1);
	grpc_call_details_init(&call->details);
	grpc_metadata_array_init(&call->metadata);
	SMV_RPC_TAG_POSTED(&call->accepted);
	if (grpc_server_request_call(server->grpc, &call->call, &call->details, &call->metadata,
		    server->cq, server->cq, &call->accepted) != GRPC_CALL_OK) {
		call_put(call);
		return -ESHUTDOWN;
	}
	return 0;
}

/* A handler that failed must have said why; make sure that the caller hears something. */
static void complete_error(const struct smv_rpc_call *call, int ret, struct smv_error *err)
{
	if (err->code != SMV_OK)
		return;
	smv_fail(err, smv_code_from_errno(ret), "handler-failed", NULL, "%s failed: %s",
		call->entry->method->name, strerror(ret < 0 ? -ret : ret));
}

static int call_handle(struct smv_rpc_call *call, struct smv_error *err)
{
	const ProtobufCMethodDescriptor *method = call->entry->method;
	ProtobufCMessage *request, *response;
	int ret;

	ret = smv_rpc_message_from_buffer(method->input, call->request, &request, err);
	if (ret < 0)
		return ret;
	response = smv_rpc_message_new(method->output);
	if (response)
		ret = call->entry->handler(call->entry->ctx, call, request, response, err);
	else
		ret = -ENOMEM;
	if (ret != 0)
		complete_error(call, ret, err);
	else
		ret = smv_rpc_message_to_buffer(response, &call->response, err);
	smv_rpc_message_free(response);
	smv_rpc_message_free(request);
	return ret;
}

static bool is_expired(const struct smv_rpc_call *call)
{
	gpr_timespec deadline = call->details.deadline;

	return gpr_time_cmp(gpr_now(deadline.clock_type), deadline) >= 0;
}

void smv_rpc_call_run(struct smv_rpc_call *call)
{
	struct smv_error err = {0};
	int ret = 0;

	/* Nobody waits for the answer of a call that was cancelled in the queue. */
	if (!smv_rpc_call_is_cancelled(call))
		ret = call_handle(call, &err);
	if (is_expired(call))
		call_expire(call);
	else if (ret != 0)
		call_finish(call, &err);
	else if (call->response)
		call_finish(call, NULL);
	else
		call_refuse(call, SMV_CANCELLED, "cancelled", NULL, "cancelled before it began");
	call_put(call);
}

bool smv_rpc_call_is_local(const struct smv_rpc_call *call)
{
	char *peer = grpc_call_get_peer(call->call);
	bool local = peer && strncmp(peer, "unix:", 5) == 0;

	gpr_free(peer);
	return local;
}

bool smv_rpc_call_is_cancelled(const struct smv_rpc_call *call)
{
	return atomic_load(&call->cancelled) || is_expired(call);
}
