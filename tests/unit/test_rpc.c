/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/rpc.h"

#include "common/clock.h"
#include "rpc/message.h"
#include "rpc/runtime.h"
#include "rpc/text.h"
#include "smemv/v1/memserver.pb-c.h"
#include "smemv/v1/pager.pb-c.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SERVICE (&smemv__v1__mem_server__descriptor)
#define TIMEOUT_MS 10000
#define NR_LEASES 40
#define NR_SEGMENTS 3

/* --- a server with handlers that behave as their request asks ----------------------------------
 */

struct state {
	atomic_int calls, running, cancelled;
	atomic_bool was_local;
};

static char *text_of(const char *fmt, unsigned int n)
{
	char *text;

	cr_assert_gt(asprintf(&text, fmt, n), 0);
	return text;
}

static Smemv__V1__Lease *make_lease(unsigned int n)
{
	Smemv__V1__Lease *lease = (void *)smv_rpc_message_new(&smemv__v1__lease__descriptor);

	lease->id = text_of("%016x", n);
	lease->owner = text_of("höst/vm%u", n);
	lease->state = SMEMV__V1__LEASE_STATE__LEASE_STATE_HELD;
	lease->n_segments = NR_SEGMENTS;
	lease->segments = calloc(NR_SEGMENTS, sizeof(*lease->segments));
	for (unsigned int i = 0; i < NR_SEGMENTS; i++) {
		lease->segments[i] = (void *)smv_rpc_message_new(&smemv__v1__segment__descriptor);
		lease->segments[i]->rkey = UINT64_MAX - i;
		lease->segments[i]->size_bytes = n;
	}
	return lease;
}

static int list_leases(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	Smemv__V1__ListLeasesResponse *out = (void *)response;
	struct state *state = ctx;

	atomic_store(&state->was_local, smv_rpc_call_is_local(call));
	out->n_leases = NR_LEASES;
	out->leases = calloc(NR_LEASES, sizeof(*out->leases));
	for (unsigned int i = 0; i < NR_LEASES; i++)
		out->leases[i] = make_lease(i);
	return 0;
}

/* Answers with as many bytes of key as the request's size_bytes, each telling its place. */
static int create_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const Smemv__V1__CreateLeaseRequest *in = (const void *)request;
	Smemv__V1__CreateLeaseResponse *out = (void *)response;
	struct state *state = ctx;

	atomic_fetch_add(&state->calls, 1);
	out->lease = make_lease(in->epoch);
	out->ticket_key.len = in->size_bytes;
	out->ticket_key.data = malloc(in->size_bytes + 1);
	for (size_t i = 0; i < in->size_bytes; i++)
		out->ticket_key.data[i] = (uint8_t)i;
	return 0;
}

#define NASTY_MESSAGE "lease 'ä€𐍈' is\nbusy: 100 %"
#define NASTY_REASON "lease busy%"
#define NASTY_HINT " release it first:\n\tßmemvctl – 50 % done "

static int get_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const Smemv__V1__GetLeaseRequest *in = (const void *)request;

	if (strcmp(in->id, "silent") == 0)
		return -ENOENT;
	if (strcmp(in->id, "long") == 0) {
		smv_fail(err, SMV_NO_ROOM, "x", "", "%0599d", 0);
		memset(err->message, '\xc3', sizeof(err->message) - 1);
		memset(err->hint, '\n', sizeof(err->hint) - 1);
		return -ENOSPC;
	}
	return smv_fail(err, SMV_REFUSED, NASTY_REASON, NASTY_HINT, "%s", NASTY_MESSAGE);
}

/* Blocks until nobody waits for the answer. */
static int hold_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	struct state *state = ctx;

	atomic_fetch_add(&state->running, 1);
	for (int i = 0; i < 10000 && !smv_rpc_call_is_cancelled(call); i++)
		smv_sleep_ms(1);
	if (smv_rpc_call_is_cancelled(call))
		atomic_fetch_add(&state->cancelled, 1);
	return 0;
}

/* Takes a while, whatever the caller does. */
static int fence_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	struct state *state = ctx;

	atomic_fetch_add(&state->running, 1);
	smv_sleep_ms(150);
	return 0;
}

/* A string that no peer may accept. */
static int renew_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	Smemv__V1__Lease *lease = (void *)response;

	lease->id = strdup("\xff");
	return 0;
}

static const struct smv_rpc_method methods[] = {
	{"ListLeases", list_leases},
	{"CreateLease", create_lease},
	{"GetLease", get_lease},
	{"HoldLease", hold_lease},
	{"FenceLease", fence_lease},
	{"RenewLease", renew_lease},
	{NULL, NULL},
};

static struct smv_rpc_server *make_server(struct state *state)
{
	struct smv_rpc_server *server;

	cr_assert_eq(smv_rpc_server_create(4, &server), 0);
	cr_assert_eq(smv_rpc_server_add_service(server, SERVICE, methods, state), 0);
	return server;
}

static struct smv_addr parse(const char *text)
{
	struct smv_error err;
	struct smv_addr addr;

	cr_assert_eq(smv_addr_parse(text, false, &addr, &err), 0, "%s", err.message);
	return addr;
}

static struct smv_rpc_server *serve(
	const char *address, struct state *state, struct smv_addr *bound)
{
	struct smv_addr addr = parse(address);
	struct smv_rpc_server *server;
	struct smv_error err;

	server = make_server(state);
	cr_assert_eq(smv_rpc_server_listen(server, &addr, bound, &err), 0, "%s", err.message);
	cr_assert_eq(smv_rpc_server_start(server), 0);
	return server;
}

static struct smv_rpc_client *connect_to(const struct smv_addr *addr)
{
	struct smv_rpc_client *client;

	cr_assert_eq(smv_rpc_client_create(addr, &client), 0);
	return client;
}

struct fixture {
	struct state state;
	struct smv_rpc_server *server;
	struct smv_rpc_client *client;
	struct smv_addr addr;
};

static struct fixture *setup(const char *address)
{
	struct fixture *f = calloc(1, sizeof(*f));

	smv_rpc_init();
	f->server = serve(address, &f->state, &f->addr);
	f->client = connect_to(&f->addr);
	return f;
}

static void teardown(struct fixture *f)
{
	smv_rpc_client_destroy(f->client);
	smv_rpc_server_destroy(f->server, 1000);
	smv_rpc_shutdown();
	free(f);
}

static char dir[64];

static const char *socket_address(const char *name)
{
	static char address[128];

	if (!dir[0]) {
		strcpy(dir, "/tmp/smemv-rpc-XXXXXX");
		cr_assert(mkdtemp(dir));
	}
	snprintf(address, sizeof(address), "unix:%s/%s", dir, name);
	return address;
}

/* Nothing may be left in the directory of sockets. */
static void remove_dir(void)
{
	cr_assert_eq(rmdir(dir), 0, "%s: %s", dir, strerror(errno));
}

/* --- calls -------------------------------------------------------------------------------------
 */

static int call_by_id(struct smv_rpc_client *client, const char *method, const char *id,
	unsigned int timeout_ms, struct smv_error *err)
{
	const ProtobufCMethodDescriptor *m =
		protobuf_c_service_descriptor_get_method_by_name(SERVICE, method);
	ProtobufCMessage *request = smv_rpc_message_new(m->input), *response;
	int ret;

	((Smemv__V1__GetLeaseRequest *)(void *)request)->id = strdup(id);
	ret = smv_rpc_client_call(
		client, SERVICE, method, request, &response, timeout_ms, false, err);
	smv_rpc_message_free(response);
	smv_rpc_message_free(request);
	return ret;
}

static int list(
	struct smv_rpc_client *client, unsigned int timeout_ms, bool wait, struct smv_error *err)
{
	Smemv__V1__ListLeasesRequest request = SMEMV__V1__LIST_LEASES_REQUEST__INIT;
	ProtobufCMessage *response;
	int ret;

	ret = smv_rpc_client_call(
		client, SERVICE, "ListLeases", &request.base, &response, timeout_ms, wait, err);
	smv_rpc_message_free(response);
	return ret;
}

/* A key of @size bytes is asked for and checked. */
static int create_sized(
	struct smv_rpc_client *client, uint64_t size, const char *owner, struct smv_error *err)
{
	Smemv__V1__CreateLeaseRequest request = SMEMV__V1__CREATE_LEASE_REQUEST__INIT;
	Smemv__V1__CreateLeaseResponse *out;
	ProtobufCMessage *response;
	int ret;

	request.owner = (char *)(uintptr_t)owner;
	request.size_bytes = size;
	request.epoch = (uint32_t)size;
	ret = smv_rpc_client_call(
		client, SERVICE, "CreateLease", &request.base, &response, TIMEOUT_MS, false, err);
	if (ret < 0)
		return ret;
	out = (void *)response;
	cr_assert_eq(out->ticket_key.len, size);
	for (size_t i = 0; i < size; i++)
		cr_assert_eq(out->ticket_key.data[i], (uint8_t)i);
	cr_assert_eq(out->lease->segments[0]->size_bytes, size);
	smv_rpc_message_free(response);
	return 0;
}

static void check_leases(const ProtobufCMessage *response)
{
	const Smemv__V1__ListLeasesResponse *out = (const void *)response;

	cr_assert_eq(out->n_leases, NR_LEASES);
	for (unsigned int i = 0; i < NR_LEASES; i++) {
		const Smemv__V1__Lease *lease = out->leases[i];
		char owner[32];

		snprintf(owner, sizeof(owner), "höst/vm%u", i);
		cr_assert_str_eq(lease->owner, owner);
		cr_assert_eq(lease->state, SMEMV__V1__LEASE_STATE__LEASE_STATE_HELD);
		cr_assert_eq(lease->n_segments, NR_SEGMENTS);
		cr_assert_eq(lease->segments[2]->rkey, UINT64_MAX - 2);
		cr_assert_eq(lease->segments[2]->size_bytes, i);
	}
}

static void check_round_trip(const char *address, bool local)
{
	Smemv__V1__ListLeasesRequest request = SMEMV__V1__LIST_LEASES_REQUEST__INIT;
	struct fixture *f = setup(address);
	ProtobufCMessage *response;
	struct smv_error err;
	int ret;

	ret = smv_rpc_client_call(f->client, SERVICE, "ListLeases", &request.base, &response,
		TIMEOUT_MS, false, &err);
	cr_assert_eq(ret, 0, "%s", err.message);
	check_leases(response);
	smv_rpc_message_free(response);
	cr_assert_eq(create_sized(f->client, 1000, "", &err), 0);
	cr_assert_eq(create_sized(f->client, 0, "x", &err), 0);
	cr_assert_eq(atomic_load(&f->state.was_local), local);
	teardown(f);
}

Test(rpc, round_trip_tcp)
{
	check_round_trip("127.0.0.1:0", false);
}

Test(rpc, round_trip_host_name)
{
	check_round_trip("localhost:0", false);
}

Test(rpc, round_trip_unix)
{
	check_round_trip(socket_address("s"), true);
	remove_dir();
}

/* gRPC takes addresses for URIs. */
Test(rpc, unix_path_with_special_characters)
{
	check_round_trip(socket_address("a b%20c?d#e[ü]"), true);
	remove_dir();
}

Test(rpc, ipv6)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 sin6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

	if (fd < 0 || bind(fd, (struct sockaddr *)&sin6, sizeof(sin6)) < 0)
		cr_skip_test("no IPv6 here");
	close(fd);
	check_round_trip("[::1]:0", false);
}

Test(rpc, two_addresses_at_once)
{
	struct smv_addr unix_addr, tcp_addr, wanted;
	struct smv_rpc_client *a, *b;
	struct smv_rpc_server *server;
	struct state state = {0};
	struct smv_error err;

	smv_rpc_init();
	server = make_server(&state);
	wanted = parse(socket_address("s"));
	cr_assert_eq(smv_rpc_server_listen(server, &wanted, &unix_addr, &err), 0);
	wanted = parse("127.0.0.1:0");
	cr_assert_eq(smv_rpc_server_listen(server, &wanted, &tcp_addr, &err), 0);
	cr_assert_neq(tcp_addr.port, 0);
	cr_assert_eq(smv_rpc_server_start(server), 0);
	a = connect_to(&unix_addr);
	b = connect_to(&tcp_addr);
	cr_assert_eq(list(a, TIMEOUT_MS, false, &err), 0);
	cr_assert(atomic_load(&state.was_local));
	cr_assert_eq(list(b, TIMEOUT_MS, false, &err), 0);
	cr_assert_not(atomic_load(&state.was_local));
	smv_rpc_client_destroy(a);
	smv_rpc_client_destroy(b);
	smv_rpc_server_destroy(server, 1000);
	smv_rpc_shutdown();
	remove_dir();
}

/* --- errors ------------------------------------------------------------------------------------
 */

Test(rpc, error_crosses_unchanged)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	cr_assert_lt(call_by_id(f->client, "GetLease", "1", TIMEOUT_MS, &err), 0);
	cr_assert_eq(err.code, SMV_REFUSED);
	cr_assert_str_eq(err.message, NASTY_MESSAGE);
	cr_assert_str_eq(err.reason, NASTY_REASON);
	cr_assert_str_eq(err.hint, NASTY_HINT);
	teardown(f);
}

Test(rpc, longest_error_crosses)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	cr_assert_lt(call_by_id(f->client, "GetLease", "long", TIMEOUT_MS, &err), 0);
	cr_assert_eq(err.code, SMV_NO_ROOM);
	cr_assert_eq(strlen(err.message), sizeof(err.message) - 1);
	cr_assert_eq(err.message[0], '?', "no bytes that are not UTF-8 reach the caller");
	cr_assert_eq(strlen(err.hint), sizeof(err.hint) - 1);
	teardown(f);
}

Test(rpc, handler_that_says_nothing)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	cr_assert_eq(call_by_id(f->client, "GetLease", "silent", TIMEOUT_MS, &err), -ENOENT);
	cr_assert_eq(err.code, SMV_NOT_FOUND);
	cr_assert(strstr(err.message, "GetLease failed"), "%s", err.message);
	teardown(f);
}

Test(rpc, method_without_handler)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	cr_assert_lt(call_by_id(f->client, "ReleaseLease", "1", TIMEOUT_MS, &err), 0);
	cr_assert_eq(err.code, SMV_UNIMPLEMENTED);
	cr_assert(strstr(err.message, "ReleaseLease"), "%s", err.message);
	teardown(f);
}

Test(rpc, unknown_method_name_is_refused)
{
	static const struct smv_rpc_method bad[] = {{"Nonsense", list_leases}, {NULL, NULL}};
	struct smv_rpc_server *server;

	smv_rpc_init();
	cr_assert_eq(smv_rpc_server_create(1, &server), 0);
	cr_assert_eq(smv_rpc_server_add_service(server, SERVICE, bad, NULL), -EINVAL);
	smv_rpc_server_destroy(server, 0);
	smv_rpc_shutdown();
}

Test(rpc, deadline_ends_call_and_handler)
{
	struct fixture *f = setup("127.0.0.1:0");
	uint64_t start = smv_now_ns();
	struct smv_error err;

	cr_assert_lt(call_by_id(f->client, "HoldLease", "1", 200, &err), 0);
	cr_assert_eq(err.code, SMV_TIMEOUT);
	cr_assert_str_eq(err.reason, "no-answer");
	cr_assert(strstr(err.message, "127.0.0.1:"), "%s", err.message);
	cr_assert_lt(smv_now_ns() - start, 2000 * SMV_NS_PER_MS);
	for (int i = 0; i < 2000 && !atomic_load(&f->state.cancelled); i++)
		smv_sleep_ms(1);
	cr_assert_eq(atomic_load(&f->state.cancelled), 1);
	teardown(f);
}

struct call_thread {
	struct fixture *f;
	const char *method;
	struct smv_error err;
	int ret;
};

static void *call_main(void *arg)
{
	struct call_thread *t = arg;

	t->ret = call_by_id(t->f->client, t->method, "1", TIMEOUT_MS, &t->err);
	return NULL;
}

static pthread_t call_in_thread(struct call_thread *t)
{
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, call_main, t), 0);
	for (int i = 0; i < 5000 && !atomic_load(&t->f->state.running); i++)
		smv_sleep_ms(1);
	cr_assert_eq(atomic_load(&t->f->state.running), 1);
	return thread;
}

Test(rpc, cancel_all)
{
	struct call_thread t = {.f = setup("127.0.0.1:0"), .method = "HoldLease"};
	pthread_t thread = call_in_thread(&t);
	struct smv_error err;

	smv_rpc_client_cancel_all(t.f->client);
	pthread_join(thread, NULL);
	cr_assert_eq(t.ret, -ECANCELED);
	cr_assert_eq(t.err.code, SMV_CANCELLED);
	/* The deadline is far away: only the cancellation can have told the handler. */
	for (int i = 0; i < 2000 && !atomic_load(&t.f->state.cancelled); i++)
		smv_sleep_ms(1);
	cr_assert_eq(atomic_load(&t.f->state.cancelled), 1);
	cr_assert_eq(list(t.f->client, TIMEOUT_MS, false, &err), 0, "later calls work");
	teardown(t.f);
}

Test(rpc, destroy_server_cancels_after_grace)
{
	struct call_thread t = {.f = setup("127.0.0.1:0"), .method = "HoldLease"};
	pthread_t thread = call_in_thread(&t);
	uint64_t start = smv_now_ns();

	smv_rpc_server_destroy(t.f->server, 50);
	cr_assert_geq(smv_now_ns() - start, 50 * SMV_NS_PER_MS);
	cr_assert_lt(smv_now_ns() - start, 3000 * SMV_NS_PER_MS);
	pthread_join(thread, NULL);
	cr_assert_eq(t.err.code, SMV_UNAVAILABLE, "%d %s", t.err.code, t.err.message);
	cr_assert_eq(atomic_load(&t.f->state.cancelled), 1);
	t.f->server = NULL;
	teardown(t.f);
}

Test(rpc, destroy_server_lets_calls_finish)
{
	struct call_thread t = {.f = setup("127.0.0.1:0"), .method = "FenceLease"};
	pthread_t thread = call_in_thread(&t);

	smv_rpc_server_destroy(t.f->server, 5000);
	pthread_join(thread, NULL);
	cr_assert_eq(t.ret, 0, "%s", t.err.message);
	t.f->server = NULL;
	teardown(t.f);
}

/* The call is over, its handler is not: it must not outlive the server. */
Test(rpc, destroy_server_waits_for_handlers)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;
	uint64_t start = smv_now_ns();

	cr_assert_lt(call_by_id(f->client, "FenceLease", "1", 50, &err), 0);
	smv_rpc_server_destroy(f->server, 0);
	cr_assert_geq(smv_now_ns() - start, 140 * SMV_NS_PER_MS);
	f->server = NULL;
	teardown(f);
}

Test(rpc, destroy_client_with_call_under_way)
{
	struct call_thread t = {.f = setup("127.0.0.1:0"), .method = "HoldLease"};
	pthread_t thread = call_in_thread(&t);

	smv_rpc_client_destroy(t.f->client);
	pthread_join(thread, NULL);
	cr_assert_eq(t.err.code, SMV_CANCELLED);
	t.f->client = NULL;
	teardown(t.f);
}

/* --- connecting --------------------------------------------------------------------------------
 */

static struct smv_addr unused_port(void)
{
	struct smv_addr bound;
	struct state state = {0};

	smv_rpc_server_destroy(serve("127.0.0.1:0", &state, &bound), 0);
	return bound;
}

Test(rpc, unreachable_peer_fails_at_once)
{
	struct smv_rpc_client *client;
	struct smv_addr addr;
	struct smv_error err;
	char expected[100];
	uint64_t start;

	smv_rpc_init();
	addr = unused_port();
	client = connect_to(&addr);
	start = smv_now_ns();
	cr_assert_lt(list(client, TIMEOUT_MS, false, &err), 0);
	cr_assert_lt(smv_now_ns() - start, 2000 * SMV_NS_PER_MS);
	cr_assert_eq(err.code, SMV_UNAVAILABLE);
	snprintf(expected, sizeof(expected), "no connection to 127.0.0.1:%u: Connection refused",
		addr.port);
	cr_assert_str_eq(err.message, expected);
	cr_assert_gt(strlen(err.hint), 0);

	cr_assert_lt(list(client, 300, true, &err), 0);
	cr_assert_eq(err.code, SMV_TIMEOUT);
	cr_assert(strstr(err.message, "no connection to 127.0.0.1:"), "%s", err.message);
	smv_rpc_client_destroy(client);

	addr = parse("unix:/nonexistent/socket");
	client = connect_to(&addr);
	cr_assert_lt(list(client, TIMEOUT_MS, false, &err), 0);
	cr_assert_str_eq(err.message,
		"no connection to unix:/nonexistent/socket: No such file or directory");
	smv_rpc_client_destroy(client);
	smv_rpc_shutdown();
}

struct late_server {
	struct smv_addr addr;
	struct state state;
	struct smv_rpc_server *server;
};

static void *late_main(void *arg)
{
	struct late_server *late = arg;
	char text[SMV_ADDR_MAX];

	smv_sleep_ms(300);
	late->server = serve(smv_addr_format(&late->addr, text, sizeof(text)), &late->state, NULL);
	return NULL;
}

Test(rpc, waits_for_server_to_come_up)
{
	struct late_server late = {0};
	struct smv_rpc_client *client;
	struct smv_error err;
	pthread_t thread;

	smv_rpc_init();
	late.addr = parse(socket_address("late"));
	client = connect_to(&late.addr);
	cr_assert_lt(list(client, TIMEOUT_MS, false, &err), 0);
	cr_assert_eq(pthread_create(&thread, NULL, late_main, &late), 0);
	cr_assert_eq(list(client, TIMEOUT_MS, true, &err), 0, "%s", err.message);
	pthread_join(thread, NULL);
	smv_rpc_client_destroy(client);
	smv_rpc_server_destroy(late.server, 0);
	smv_rpc_shutdown();
	remove_dir();
}

/* A client of a daemon that was restarted meanwhile. */
Test(rpc, server_restarts)
{
	const char *address = socket_address("s");
	struct fixture *f = setup(address);
	struct smv_error err;

	for (int i = 0; i < 3; i++) {
		cr_assert_eq(list(f->client, TIMEOUT_MS, true, &err), 0, "%s", err.message);
		smv_rpc_server_destroy(f->server, 0);
		f->server = serve(address, &f->state, NULL);
	}
	teardown(f);
	remove_dir();
}

/* --- listening ---------------------------------------------------------------------------------
 */

Test(rpc, port_in_use)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct state state = {0};
	struct smv_rpc_server *second = make_server(&state);
	struct smv_addr bound;
	struct smv_error err;

	cr_assert_eq(smv_rpc_server_listen(second, &f->addr, &bound, &err), -EADDRINUSE);
	cr_assert(strstr(err.message, "in use"), "%s", err.message);
	/* Not even for a part of what the name stands for. */
	strcpy(f->addr.host, "localhost");
	cr_assert_eq(smv_rpc_server_listen(second, &f->addr, &bound, &err), -EADDRINUSE);
	smv_rpc_server_destroy(second, 0);
	teardown(f);
}

Test(rpc, address_of_another_host)
{
	struct state state = {0};
	struct smv_addr addr = parse("192.0.2.1:7000"), bound;
	struct smv_rpc_server *server;
	struct smv_error err;

	smv_rpc_init();
	server = make_server(&state);
	cr_assert_eq(smv_rpc_server_listen(server, &addr, &bound, &err), -EADDRNOTAVAIL);
	cr_assert(strstr(err.message, "192.0.2.1:7000"), "%s", err.message);
	smv_rpc_server_destroy(server, 0);
	smv_rpc_shutdown();
}

Test(rpc, stale_socket_is_replaced)
{
	struct smv_addr addr = parse(socket_address("s"));
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct fixture *f;
	struct smv_error err;
	struct stat st;

	strcpy(sun.sun_path, addr.host);
	cr_assert_eq(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	cr_assert_eq(listen(fd, 1), 0);
	close(fd);
	f = setup(socket_address("s"));
	cr_assert_eq(list(f->client, TIMEOUT_MS, false, &err), 0, "%s", err.message);
	cr_assert_eq(stat(addr.host, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	teardown(f);
	remove_dir();
}

Test(rpc, live_socket_is_refused)
{
	struct fixture *f = setup(socket_address("s"));
	struct state state = {0};
	struct smv_rpc_server *second = make_server(&state);
	struct smv_addr bound;
	struct smv_error err;

	cr_assert_eq(smv_rpc_server_listen(second, &f->addr, &bound, &err), -EADDRINUSE);
	cr_assert_eq(err.code, SMV_EXISTS);
	cr_assert(strstr(err.message, f->addr.host), "%s", err.message);
	smv_rpc_server_destroy(second, 0);
	cr_assert_eq(list(f->client, TIMEOUT_MS, false, &err), 0, "the first one still serves");
	teardown(f);
	remove_dir();
}

Test(rpc, ordinary_file_is_not_replaced)
{
	struct smv_addr addr = parse(socket_address("file")), bound;
	struct state state = {0};
	struct smv_rpc_server *server;
	struct smv_error err;
	FILE *file = fopen(addr.host, "w");

	fclose(file);
	smv_rpc_init();
	server = make_server(&state);
	cr_assert_lt(smv_rpc_server_listen(server, &addr, &bound, &err), 0);
	smv_rpc_server_destroy(server, 0);
	smv_rpc_shutdown();
	cr_assert_eq(unlink(addr.host), 0, "it is still there");
	remove_dir();
}

Test(rpc, socket_is_unlinked_without_start)
{
	struct smv_addr addr = parse(socket_address("s")), bound;
	struct state state = {0};
	struct smv_rpc_server *server;
	struct smv_error err;

	smv_rpc_init();
	server = make_server(&state);
	cr_assert_eq(smv_rpc_server_listen(server, &addr, &bound, &err), 0);
	smv_rpc_server_destroy(server, 0);
	smv_rpc_shutdown();
	remove_dir();
}

/* --- limits and hostile input ------------------------------------------------------------------
 */

Test(rpc, message_over_the_limit)
{
	struct fixture *f = setup("127.0.0.1:0");
	char *owner = malloc(SMV_RPC_MESSAGE_MAX + 1);
	struct smv_error err;

	cr_assert_eq(create_sized(f->client, SMV_RPC_MESSAGE_MAX - 500, "", &err), 0);
	cr_assert_lt(create_sized(f->client, SMV_RPC_MESSAGE_MAX, "", &err), 0);
	cr_assert_eq(err.code, SMV_NO_ROOM);
	cr_assert_str_eq(err.reason, "message-too-large");

	memset(owner, 'x', SMV_RPC_MESSAGE_MAX);
	owner[SMV_RPC_MESSAGE_MAX] = '\0';
	atomic_store(&f->state.calls, 0);
	cr_assert_lt(create_sized(f->client, 1, owner, &err), 0);
	cr_assert_eq(err.code, SMV_NO_ROOM);
	cr_assert_eq(atomic_load(&f->state.calls), 0, "the handler never sees it");
	owner[SMV_RPC_MESSAGE_MAX - 100] = '\0';
	cr_assert_eq(create_sized(f->client, 1, owner, &err), 0);
	free(owner);
	teardown(f);
}

Test(rpc, invalid_utf8_in_request)
{
	static const char *const bad[] = {
		"\xff", "a\x80", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "ok\xe2\x82"};
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cr_assert_lt(create_sized(f->client, 1, bad[i], &err), 0);
		cr_assert_eq(err.code, SMV_INVALID);
		cr_assert(strstr(err.message, "CreateLeaseRequest.owner"), "%s", err.message);
	}
	cr_assert_eq(atomic_load(&f->state.calls), 0);
	teardown(f);
}

Test(rpc, invalid_utf8_in_response)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	cr_assert_lt(call_by_id(f->client, "RenewLease", "1", TIMEOUT_MS, &err), 0);
	cr_assert_eq(err.code, SMV_INTERNAL);
	cr_assert(strstr(err.message, "Lease.id"), "%s", err.message);
	teardown(f);
}

/* Strings inside repeated messages, and repeated strings. */
Test(rpc, invalid_utf8_deep_inside)
{
	Smemv__V1__RamBlock good = SMEMV__V1__RAM_BLOCK__INIT, bad = SMEMV__V1__RAM_BLOCK__INIT;
	Smemv__V1__RamBlock *blocks[] = {&good, &bad};
	char fine[] = "10.0.0.2:7000", broken[] = "10.0.0.3:\xfe";
	char *hosts[] = {fine, broken};
	Smemv__V1__PrepareMigrationRequest request = SMEMV__V1__PREPARE_MIGRATION_REQUEST__INIT;
	ProtobufCMessage *message;
	struct smv_error err;
	uint8_t buf[256];

	bad.id = broken;
	request.n_ram_blocks = 2;
	request.ram_blocks = blocks;
	smv_rpc_message_unpack(request.base.descriptor, buf,
		protobuf_c_message_pack(&request.base, buf), &message, &err);
	cr_assert_null(message);
	cr_assert(strstr(err.message, "RamBlock.id"), "%s", err.message);

	bad.id = fine;
	request.n_sub_hosts = 2;
	request.sub_hosts = hosts;
	smv_rpc_message_unpack(request.base.descriptor, buf,
		protobuf_c_message_pack(&request.base, buf), &message, &err);
	cr_assert_null(message);
	cr_assert(strstr(err.message, "PrepareMigrationRequest.sub_hosts"), "%s", err.message);

	hosts[1] = fine;
	cr_assert_eq(smv_rpc_message_unpack(request.base.descriptor, buf,
			     protobuf_c_message_pack(&request.base, buf), &message, &err),
		0);
	smv_rpc_message_free(message);
}

/* What a peer that is no smv_rpc_client may send; returns the status. */
static grpc_status_code raw_call(
	const struct smv_addr *addr, const char *path, size_t len, int fill, bool with_message)
{
	gpr_timespec deadline = gpr_time_add(
		gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(TIMEOUT_MS, GPR_TIMESPAN));
	char target[SMV_RPC_TARGET_MAX];
	grpc_channel_credentials *creds = grpc_insecure_credentials_create();
	grpc_channel *channel =
		grpc_channel_create(smv_rpc_target(addr, target, sizeof(target)), creds, NULL);
	grpc_completion_queue *cq = grpc_completion_queue_create_for_pluck(NULL);
	grpc_slice payload = grpc_slice_malloc(len), details = grpc_empty_slice();
	grpc_call *call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq,
		grpc_slice_from_static_string(path), NULL, deadline, NULL);
	grpc_metadata_array initial, trailing;
	grpc_status_code code = GRPC_STATUS_OK;
	grpc_byte_buffer *buffer;
	grpc_op ops[5] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
		{.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_STATUS_ON_CLIENT},
		{.op = GRPC_OP_RECV_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE}};

	memset(GRPC_SLICE_START_PTR(payload), fill, len);
	buffer = grpc_raw_byte_buffer_create(&payload, 1);
	grpc_metadata_array_init(&initial);
	grpc_metadata_array_init(&trailing);
	ops[2].data.recv_status_on_client.trailing_metadata = &trailing;
	ops[2].data.recv_status_on_client.status = &code;
	ops[2].data.recv_status_on_client.status_details = &details;
	ops[3].data.recv_initial_metadata.recv_initial_metadata = &initial;
	ops[4].data.send_message.send_message = buffer;
	cr_assert_eq(
		grpc_call_start_batch(call, ops, with_message ? 5 : 4, ops, NULL), GRPC_CALL_OK);
	grpc_completion_queue_pluck(cq, ops, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
	grpc_slice_unref(details);
	grpc_slice_unref(payload);
	grpc_byte_buffer_destroy(buffer);
	grpc_metadata_array_destroy(&initial);
	grpc_metadata_array_destroy(&trailing);
	grpc_call_unref(call);
	grpc_completion_queue_shutdown(cq);
	grpc_completion_queue_destroy(cq);
	grpc_channel_destroy(channel);
	grpc_channel_credentials_release(creds);
	return code;
}

Test(rpc, hostile_peer)
{
	static const char path[] = "/smemv.v1.MemServer/CreateLease";
	struct fixture *f = setup("127.0.0.1:0");
	struct smv_error err;

	cr_assert_eq(raw_call(&f->addr, path, 100, 0xff, true), GRPC_STATUS_INVALID_ARGUMENT);
	cr_assert_eq(raw_call(&f->addr, path, 1, 0x0a, true), GRPC_STATUS_INVALID_ARGUMENT);
	cr_assert_eq(raw_call(&f->addr, path, 0, 0, false), GRPC_STATUS_INVALID_ARGUMENT);
	cr_assert_eq(raw_call(&f->addr, path, SMV_RPC_MESSAGE_MAX + 1, 0, true),
		GRPC_STATUS_RESOURCE_EXHAUSTED);
	cr_assert_eq(raw_call(&f->addr, "/x", 3, 0, true), GRPC_STATUS_UNIMPLEMENTED);
	cr_assert_eq(
		raw_call(&f->addr, "/smemv.v1.MemServer/", 0, 0, true), GRPC_STATUS_UNIMPLEMENTED);
	cr_assert_eq(atomic_load(&f->state.calls), 0);
	cr_assert_eq(list(f->client, TIMEOUT_MS, false, &err), 0, "it serves on");
	teardown(f);
}

Test(rpc, percent_encoding)
{
	char encoded[64], text[] = "%41%4%zz%%";

	cr_assert_str_eq(smv_percent_encode("a b%\n\xc3\xa4", encoded, sizeof(encoded)),
		"a%20b%25%0A%C3%A4");
	cr_assert_str_eq(smv_percent_encode("a b", encoded, 4), "a", "no half of a sequence");
	cr_assert_eq(smv_percent_decode(text, strlen(text)), 8);
	cr_assert_eq(memcmp(text, "A%4%zz%%", 8), 0);
}

Test(rpc, text_of_a_peer_is_scrubbed)
{
	char out[16];

	smv_text_scrub(out, sizeof(out),
		"a\x1b[1m\n\xff"
		"\0b",
		9);
	cr_assert_str_eq(out, "a?[1m\n??b");
	smv_text_scrub(out, 4, "aa€", 5);
	cr_assert_str_eq(out, "aa", "no half of a character");
}

/* --- many at once ------------------------------------------------------------------------------
 */

#define NR_THREADS 8
#define CALLS_PER_THREAD 200

struct hammer {
	struct smv_rpc_client *client;
	int failures;
	struct smv_error err;
};

static void *hammer_main(void *arg)
{
	struct hammer *h = arg;

	for (unsigned int i = 0; i < CALLS_PER_THREAD; i++)
		if (create_sized(h->client, i * 7, "hammer", &h->err) < 0)
			h->failures++;
	return NULL;
}

Test(rpc, many_threads_on_one_client)
{
	struct fixture *f = setup("127.0.0.1:0");
	struct hammer hammers[NR_THREADS] = {0};
	pthread_t threads[NR_THREADS];

	for (int i = 0; i < NR_THREADS; i++) {
		hammers[i].client = f->client;
		pthread_create(&threads[i], NULL, hammer_main, &hammers[i]);
	}
	for (int i = 0; i < NR_THREADS; i++) {
		pthread_join(threads[i], NULL);
		cr_assert_eq(hammers[i].failures, 0, "%s", hammers[i].err.message);
	}
	cr_assert_eq(atomic_load(&f->state.calls), NR_THREADS * CALLS_PER_THREAD);
	teardown(f);
}
