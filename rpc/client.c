/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/rpc.h"

#include "common/cleanup.h"
#include "rpc/message.h"
#include "rpc/runtime.h"
#include "rpc/status.h"

#include <assert.h>
#include <errno.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#define RECONNECT_FIRST_MS 100
#define RECONNECT_MAX_MS 1000
#define CONNECT_TIMEOUT_MS 5000
#define KEEPALIVE_MS 10000
#define KEEPALIVE_TIMEOUT_MS 5000

#define UNREACHABLE_HINT "Check the address and that the daemon runs there."

/* A call under way, on the stack of the thread that waits for it. */
struct pending {
	LIST_ENTRY(pending) link;
	grpc_call *call;
	atomic_bool cancelled;
};

struct smv_rpc_client {
	grpc_channel *channel;
	char address[SMV_ADDR_MAX]; /* for people */
	pthread_mutex_t lock;       /* protects what follows */
	pthread_cond_t idle;
	LIST_HEAD(, pending) calls;
};

/* What gRPC hands out for one call. */
struct answer {
	grpc_status_code code;
	grpc_slice details;
	grpc_metadata_array initial, trailing;
	grpc_byte_buffer *message;
	bool cancelled; /* by smv_rpc_client_cancel_all() */
};

/* The one place that decides how the server is authenticated. */
static grpc_channel_credentials *create_credentials(void)
{
	return grpc_insecure_credentials_create();
}

static grpc_channel *create_channel(const struct smv_addr *addr)
{
	grpc_arg args[] = {
		smv_rpc_int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, SMV_RPC_MESSAGE_MAX),
		smv_rpc_int_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, SMV_RPC_MESSAGE_MAX),
		smv_rpc_int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
		smv_rpc_int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
		smv_rpc_int_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
		/* Another client's failures must not delay this one's first attempt. */
		smv_rpc_int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
		smv_rpc_int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RECONNECT_FIRST_MS),
		smv_rpc_int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RECONNECT_MAX_MS),
		/* Despite its name this is the time one attempt may take. */
		smv_rpc_int_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_TIMEOUT_MS),
		smv_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS),
		smv_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
		smv_rpc_int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
	};
	grpc_channel_args list = {SMV_ARRAY_SIZE(args), args};
	grpc_channel_credentials *credentials = create_credentials();
	char target[SMV_RPC_TARGET_MAX];
	grpc_channel *channel;

	channel = grpc_channel_create(
		smv_rpc_target(addr, target, sizeof(target)), credentials, &list);
	grpc_channel_credentials_release(credentials);
	return channel;
}

int smv_rpc_client_create(const struct smv_addr *addr, struct smv_rpc_client **out)
{
	struct smv_rpc_client *client = calloc(1, sizeof(*client));

	*out = client;
	if (!client)
		return -ENOMEM;
	pthread_mutex_init(&client->lock, NULL);
	pthread_cond_init(&client->idle, NULL);
	LIST_INIT(&client->calls);
	smv_addr_format(addr, client->address, sizeof(client->address));
	client->channel = create_channel(addr);
	return 0;
}

static void cancel_all_locked(struct smv_rpc_client *client)
{
	struct pending *pending;

	LIST_FOREACH(pending, &client->calls, link)
	{
		atomic_store(&pending->cancelled, true);
		grpc_call_cancel(pending->call, NULL);
	}
}

void smv_rpc_client_cancel_all(struct smv_rpc_client *client)
{
	pthread_mutex_lock(&client->lock);
	cancel_all_locked(client);
	pthread_mutex_unlock(&client->lock);
}

void smv_rpc_client_destroy(struct smv_rpc_client *client)
{
	if (!client)
		return;
	pthread_mutex_lock(&client->lock);
	cancel_all_locked(client);
	while (!LIST_EMPTY(&client->calls))
		pthread_cond_wait(&client->idle, &client->lock);
	pthread_mutex_unlock(&client->lock);
	grpc_channel_destroy(client->channel);
	pthread_cond_destroy(&client->idle);
	pthread_mutex_destroy(&client->lock);
	free(client);
}

static void pending_add(struct smv_rpc_client *client, struct pending *pending)
{
	pthread_mutex_lock(&client->lock);
	LIST_INSERT_HEAD(&client->calls, pending, link);
	pthread_mutex_unlock(&client->lock);
}

static void pending_remove(struct smv_rpc_client *client, struct pending *pending)
{
	pthread_mutex_lock(&client->lock);
	LIST_REMOVE(pending, link);
	if (LIST_EMPTY(&client->calls))
		pthread_cond_broadcast(&client->idle);
	pthread_mutex_unlock(&client->lock);
}

/* One batch holds the whole call; gRPC completes it by the call's deadline at the latest. */
static void exchange(grpc_call *call, grpc_completion_queue *cq, grpc_byte_buffer *request,
	uint32_t flags, struct answer *answer)
{
	grpc_op ops[] = {
		{.op = GRPC_OP_SEND_INITIAL_METADATA, .flags = flags},
		{.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = request},
		{.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
		{.op = GRPC_OP_RECV_INITIAL_METADATA,
			.data.recv_initial_metadata.recv_initial_metadata = &answer->initial},
		{.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &answer->message},
		{.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
			.data.recv_status_on_client = {.trailing_metadata = &answer->trailing,
				.status = &answer->code,
				.status_details = &answer->details}},
	};
	grpc_call_error error;

	SMV_RPC_TAG_POSTED(answer);
	error = grpc_call_start_batch(call, ops, SMV_ARRAY_SIZE(ops), answer, NULL);
	if (error != GRPC_CALL_OK) {
		answer->code = GRPC_STATUS_INTERNAL;
		answer->details = grpc_slice_from_static_string(grpc_call_error_to_string(error));
		return;
	}
	grpc_completion_queue_pluck(cq, answer, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
	SMV_RPC_TAG_TAKEN(answer);
}

static void answer_init(struct answer *answer)
{
	memset(answer, 0, sizeof(*answer));
	answer->details = grpc_empty_slice();
	grpc_metadata_array_init(&answer->initial);
	grpc_metadata_array_init(&answer->trailing);
}

static void answer_release(struct answer *answer)
{
	grpc_slice_unref(answer->details);
	grpc_metadata_array_destroy(&answer->initial);
	grpc_metadata_array_destroy(&answer->trailing);
	grpc_byte_buffer_destroy(answer->message);
}

/* What @text says behind the first @mark, NULL without one. */
static const char *behind(const char *text, const char *mark)
{
	const char *found = text ? strstr(text, mark) : NULL;

	return found ? found + strlen(mark) : NULL;
}

/* Why a connection could not be made, NULL if it was not that. In the words of gRPC 1.51:
 * "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.2:7000: Failed to connect
 * to remote host: Connection refused", "…last error: UNKNOWN: unix:/s: No such file or directory",
 * "DNS resolution failed for …". */
static const char *connect_failure(const char *details)
{
	const char *last = behind(details, "failed to connect to all addresses; last error: ");
	const char *reason = behind(last, "Failed to connect to remote host: ");

	if (reason)
		return reason;
	while ((reason = behind(last, ": ")))
		last = reason;
	if (!last && strncmp(details, "DNS resolution failed", 21) == 0)
		last = details;
	return last;
}

/* gRPC itself ended the call: say what that means, with the address. */
static int transport_error(struct smv_rpc_client *client, const char *method,
	unsigned int timeout_ms, const struct answer *answer, const struct smv_error *raw,
	struct smv_error *err)
{
	const char *at = client->address, *why = connect_failure(raw->message);
	grpc_connectivity_state state;

	if (answer->cancelled)
		return smv_fail(err, SMV_CANCELLED, "cancelled", NULL, "%s at %s was cancelled",
			method, at);
	switch (raw->code) {
	case SMV_UNAVAILABLE:
		if (why)
			return smv_fail(err, raw->code, "no-connection", UNREACHABLE_HINT,
				"no connection to %s: %s", at, why);
		return smv_fail(err, raw->code, "connection-lost", UNREACHABLE_HINT,
			"%s at %s: the connection was lost: %s", method, at, raw->message);
	case SMV_TIMEOUT:
		state = grpc_channel_check_connectivity_state(client->channel, 0);
		if (state != GRPC_CHANNEL_READY)
			return smv_fail(err, raw->code, "no-connection", UNREACHABLE_HINT,
				"no connection to %s within %u ms", at, timeout_ms);
		return smv_fail(err, raw->code, "no-answer",
			"The daemon there may be busy or stopped; try again, or allow more time.",
			"%s at %s: no answer within %u ms", method, at, timeout_ms);
	case SMV_NO_ROOM:
		return smv_fail(err, raw->code, "message-too-large", "Ask for less at a time.",
			"%s at %s: %s", method, at, raw->message);
	default:
		return smv_fail(err, raw->code, "rpc-failed", "Do both sides run the same version?",
			"%s at %s: %s", method, at, raw->message);
	}
}

static int evaluate(struct smv_rpc_client *client, const ProtobufCMethodDescriptor *method,
	unsigned int timeout_ms, const struct answer *answer, ProtobufCMessage **response,
	struct smv_error *err)
{
	struct smv_error raw = {0};

	if (answer->code != GRPC_STATUS_OK) {
		if (!smv_rpc_status_to_error(
			    answer->code, answer->details, &answer->trailing, &raw))
			return transport_error(client, method->name, timeout_ms, answer, &raw, err);
		if (err)
			*err = raw;
		return smv_code_to_errno(raw.code);
	}
	if (!answer->message)
		snprintf(raw.message, sizeof(raw.message), "there is no message in it");
	else if (smv_rpc_message_from_buffer(method->output, answer->message, response, &raw) == 0)
		return 0;
	return smv_fail(err, SMV_INTERNAL, "bad-answer", "Do both sides run the same version?",
		"%s at %s: bad answer: %.400s", method->name, client->address, raw.message);
}

static grpc_call *create_call(struct smv_rpc_client *client,
	const ProtobufCServiceDescriptor *service, const char *method, unsigned int timeout_ms,
	grpc_completion_queue *cq)
{
	gpr_timespec deadline = gpr_time_add(
		gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
	char path[256];
	grpc_slice slice;
	grpc_call *call;

	snprintf(path, sizeof(path), "/%s/%s", service->name, method);
	slice = grpc_slice_from_copied_string(path);
	call = grpc_channel_create_call(
		client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq, slice, NULL, deadline, NULL);
	grpc_slice_unref(slice);
	return call;
}

int smv_rpc_client_call(struct smv_rpc_client *client, const ProtobufCServiceDescriptor *service,
	const char *name, const ProtobufCMessage *request, ProtobufCMessage **response,
	unsigned int timeout_ms, bool wait_for_ready, struct smv_error *err)
{
	const ProtobufCMethodDescriptor *method =
		protobuf_c_service_descriptor_get_method_by_name(service, name);
	uint32_t flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET |
			 (wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0);
	struct pending pending = {0};
	grpc_completion_queue *cq;
	grpc_byte_buffer *buffer;
	struct answer answer;
	int ret;

	assert(method && request->descriptor == method->input);
	*response = NULL;
	ret = smv_rpc_message_to_buffer(request, &buffer, err);
	if (ret < 0)
		return ret;
	/* A queue of its own: the calling thread does the call's input and output itself. */
	cq = grpc_completion_queue_create_for_pluck(NULL);
	answer_init(&answer);
	pending.call = create_call(client, service, name, timeout_ms, cq);
	pending_add(client, &pending);
	exchange(pending.call, cq, buffer, flags, &answer);
	answer.cancelled = atomic_load(&pending.cancelled);
	ret = evaluate(client, method, timeout_ms, &answer, response, err);
	/* Last of all: from here on the client may be destroyed. */
	pending_remove(client, &pending);
	grpc_call_unref(pending.call);
	answer_release(&answer);
	grpc_byte_buffer_destroy(buffer);
	grpc_completion_queue_shutdown(cq);
	grpc_completion_queue_destroy(cq);
	return ret;
}
