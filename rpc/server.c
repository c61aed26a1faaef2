/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/server.h"

#include "common/cleanup.h"
#include "common/clock.h"

#include <errno.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Each holds up to SMV_RPC_MESSAGE_MAX bytes: this bounds what clients can make us keep. */
#define MAX_WAITING 256
#define MAX_STREAMS_PER_CONNECTION 128

#define KEEPALIVE_MS 20000
#define KEEPALIVE_TIMEOUT_MS 10000
#define MIN_PING_INTERVAL_MS 5000 /* below the clients' keepalive */

static void *io_main(void *arg)
{
	struct smv_rpc_server *server = arg;
	const gpr_timespec never = gpr_inf_future(GPR_CLOCK_MONOTONIC);

	for (;;) {
		grpc_event event = grpc_completion_queue_next(server->cq, never, NULL);
		struct smv_rpc_tag *tag = event.tag;

		if (event.type == GRPC_QUEUE_SHUTDOWN)
			return NULL;
		SMV_RPC_TAG_TAKEN(tag);
		tag->done(tag->owner, event.success);
	}
}

/* The next waiting call; NULL when the server stops. */
static struct smv_rpc_call *dequeue(struct smv_rpc_server *server)
{
	struct smv_rpc_call *call;

	pthread_mutex_lock(&server->lock);
	while (STAILQ_EMPTY(&server->waiting) && !server->stopping)
		pthread_cond_wait(&server->work, &server->lock);
	call = STAILQ_FIRST(&server->waiting);
	if (call) {
		STAILQ_REMOVE_HEAD(&server->waiting, link);
		server->nr_waiting--;
	}
	pthread_mutex_unlock(&server->lock);
	return call;
}

static void *worker_main(void *arg)
{
	struct smv_rpc_server *server = arg;
	struct smv_rpc_call *call;

	while ((call = dequeue(server)))
		smv_rpc_call_run(call);
	return NULL;
}

bool smv_rpc_server_enqueue(struct smv_rpc_server *server, struct smv_rpc_call *call)
{
	bool room;

	pthread_mutex_lock(&server->lock);
	room = server->nr_waiting < MAX_WAITING;
	if (room) {
		STAILQ_INSERT_TAIL(&server->waiting, call, link);
		server->nr_waiting++;
		pthread_cond_signal(&server->work);
	}
	pthread_mutex_unlock(&server->lock);
	return room;
}

static void on_drained(void *owner, bool ok)
{
	struct smv_rpc_server *server = owner;

	(void)ok;
	pthread_mutex_lock(&server->lock);
	server->is_drained = true;
	pthread_cond_signal(&server->drained);
	pthread_mutex_unlock(&server->lock);
}

static grpc_server *create_grpc_server(void)
{
	grpc_arg args[] = {
		smv_rpc_int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
		smv_rpc_int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, SMV_RPC_MESSAGE_MAX),
		smv_rpc_int_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, SMV_RPC_MESSAGE_MAX),
		/* A small compressed message must not grow past the limit. */
		smv_rpc_int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
		smv_rpc_int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, MAX_STREAMS_PER_CONNECTION),
		smv_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS),
		smv_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
		smv_rpc_int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
			MIN_PING_INTERVAL_MS),
	};
	grpc_channel_args list = {SMV_ARRAY_SIZE(args), args};

	return grpc_server_create(&list, NULL);
}

static void init_sync(struct smv_rpc_server *server)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&server->lock, NULL);
	pthread_cond_init(&server->work, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&server->drained, &attr);
	pthread_condattr_destroy(&attr);
}

int smv_rpc_server_create(unsigned int nr_workers, struct smv_rpc_server **out)
{
	struct smv_rpc_server *server;
	int ret;

	*out = NULL;
	if (nr_workers == 0)
		return -EINVAL;
	server = calloc(1, sizeof(*server) + nr_workers * sizeof(server->workers[0]));
	if (!server)
		return -ENOMEM;
	SLIST_INIT(&server->entries);
	STAILQ_INIT(&server->waiting);
	init_sync(server);
	server->shutdown_tag = (struct smv_rpc_tag){on_drained, server};
	server->grpc = create_grpc_server();
	server->cq = grpc_completion_queue_create_for_next(NULL);
	grpc_server_register_completion_queue(server->grpc, server->cq, NULL);

	ret = pthread_create(&server->io, NULL, io_main, server);
	server->io_runs = ret == 0;
	while (ret == 0 && server->nr_workers < nr_workers) {
		ret = pthread_create(
			&server->workers[server->nr_workers], NULL, worker_main, server);
		if (ret == 0)
			server->nr_workers++;
	}
	if (ret != 0) {
		smv_rpc_server_destroy(server, 0);
		return -ret;
	}
	*out = server;
	return 0;
}

static int add_method(struct smv_rpc_server *server, const ProtobufCServiceDescriptor *descriptor,
	const struct smv_rpc_method *method, void *ctx)
{
	const ProtobufCMethodDescriptor *found =
		protobuf_c_service_descriptor_get_method_by_name(descriptor, method->name);
	struct smv_rpc_entry *entry;

	if (!found)
		return -EINVAL;
	entry = calloc(1, sizeof(*entry));
	if (!entry)
		return -ENOMEM;
	if (asprintf(&entry->path, "/%s/%s", descriptor->name, method->name) < 0) {
		free(entry);
		return -ENOMEM;
	}
	entry->method = found;
	entry->handler = method->handler;
	entry->ctx = ctx;
	SLIST_INSERT_HEAD(&server->entries, entry, link);
	return 0;
}

int smv_rpc_server_add_service(struct smv_rpc_server *server,
	const ProtobufCServiceDescriptor *descriptor, const struct smv_rpc_method *methods,
	void *ctx)
{
	for (; methods->name; methods++) {
		int ret = add_method(server, descriptor, methods, ctx);

		if (ret < 0)
			return ret;
	}
	return 0;
}

const struct smv_rpc_entry *smv_rpc_server_find(
	const struct smv_rpc_server *server, grpc_slice path)
{
	const struct smv_rpc_entry *entry;

	SLIST_FOREACH(entry, &server->entries, link)
	if (grpc_slice_str_cmp(path, entry->path) == 0)
		return entry;
	return NULL;
}

int smv_rpc_server_start(struct smv_rpc_server *server)
{
	grpc_server_start(server->grpc);
	return smv_rpc_call_accept(server);
}

/* No new calls; those under way get @grace_ms, then they are cancelled. */
static void drain(struct smv_rpc_server *server, unsigned int grace_ms)
{
	uint64_t until_ns = smv_now_ns() + grace_ms * SMV_NS_PER_MS;
	struct timespec until = {
		(time_t)(until_ns / SMV_NS_PER_S), (long)(until_ns % SMV_NS_PER_S)};

	SMV_RPC_TAG_POSTED(&server->shutdown_tag);
	grpc_server_shutdown_and_notify(server->grpc, server->cq, &server->shutdown_tag);
	pthread_mutex_lock(&server->lock);
	while (!server->is_drained) {
		if (pthread_cond_timedwait(&server->drained, &server->lock, &until) == 0)
			continue;
		pthread_mutex_unlock(&server->lock);
		grpc_server_cancel_all_calls(server->grpc);
		pthread_mutex_lock(&server->lock);
		while (!server->is_drained)
			pthread_cond_wait(&server->drained, &server->lock);
	}
	pthread_mutex_unlock(&server->lock);
}

static void join_workers(struct smv_rpc_server *server)
{
	pthread_mutex_lock(&server->lock);
	server->stopping = true;
	pthread_cond_broadcast(&server->work);
	pthread_mutex_unlock(&server->lock);
	for (unsigned int i = 0; i < server->nr_workers; i++)
		pthread_join(server->workers[i], NULL);
}

static void free_server(struct smv_rpc_server *server)
{
	struct smv_rpc_entry *entry;

	while ((entry = SLIST_FIRST(&server->entries))) {
		SLIST_REMOVE_HEAD(&server->entries, link);
		free(entry->path);
		free(entry);
	}
	pthread_cond_destroy(&server->drained);
	pthread_cond_destroy(&server->work);
	pthread_mutex_destroy(&server->lock);
	free(server);
}

void smv_rpc_server_destroy(struct smv_rpc_server *server, unsigned int grace_ms)
{
	if (!server)
		return;
	/* Workers post their last answers, so the queue closes after them. */
	if (server->io_runs)
		drain(server, grace_ms);
	join_workers(server);
	grpc_completion_queue_shutdown(server->cq);
	if (server->io_runs)
		pthread_join(server->io, NULL);
	else
		io_main(server);
	grpc_server_destroy(server->grpc);
	grpc_completion_queue_destroy(server->cq);
	free_server(server);
}
