/* SPDX-License-Identifier: Apache-2.0 */
#include "common/clock.h"
#include "common/log.h"
#include "transport/filter.h"
#include "transport/tcp_wire.h"
#include "transport/ticket.h"
#include "transport/transport.h"
#include "transport_server.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLIENT_SIZE (8u << 20)
#define PAGE 4096u
/* The deadline of requests that should succeed. Soft-RoCE sends anew what is not acknowledged
 * within a tenth of it, which an emulated peer may miss, and its responder then refuses some
 * (Linux 6.12). */
#define PATIENCE_MS 20000

struct client {
	struct smv_domain *domain;
	struct smv_region *region;
	unsigned char *mem;
	struct smv_conn *conn;
};

static int try_connect(struct client *c, const struct smv_transport *t, const struct smv_addr *addr,
	unsigned int depth, unsigned int timeout_ms, struct smv_error *err)
{
	const struct smv_conn_options options = {.depth = depth, .timeout_ms = timeout_ms};

	c->mem = calloc(1, CLIENT_SIZE);
	cr_assert_eq(smv_domain_create(t, &c->domain), 0);
	cr_assert_eq(smv_region_register(c->domain, c->mem, CLIENT_SIZE, 0, &c->region), 0);
	c->conn = NULL;
	return smv_connect(c->domain, addr, "ticket", 6, &options, &c->conn, err);
}

static void client_start(struct client *c, const struct server *s)
{
	struct smv_error err = {0};

	cr_assert_eq(try_connect(c, s->t, &s->addr, 0, PATIENCE_MS, &err), 0, "%s", err.message);
}

static void client_stop(struct client *c)
{
	if (c->conn)
		smv_conn_close(c->conn);
	smv_region_deregister(c->region);
	smv_domain_destroy(c->domain);
	free(c->mem);
}

/* Wait for @n completions; returns the status of the last. Statuses go to @all unless NULL. */
static int reap(struct smv_conn *conn, unsigned int n, int *all)
{
	uint64_t until = smv_now_ns() + 30 * SMV_NS_PER_S;
	struct smv_completion c[64];
	int status = 0;

	for (unsigned int done = 0; done < n;) {
		int got = smv_conn_poll(conn, c, n - done < 64 ? n - done : 64);

		cr_assert_geq(got, 0, "%u of %u", done, n);
		cr_assert_lt(smv_now_ns(), until, "%u of %u completions", done, n);
		for (int i = 0; i < got; i++) {
			status = c[i].status;
			if (all)
				all[done + i] = status;
		}
		done += got;
		if (!got)
			cr_assert_geq(smv_conn_wait(conn, 1000), 0);
	}
	return status;
}

static int one(
	struct client *c, enum smv_op op, uint64_t rkey, uint64_t addr, size_t off, uint32_t len)
{
	const struct smv_sge sge = {c->mem + off, len, c->region};
	const struct smv_request r = {op, 7, rkey, addr, &sge, 1};
	int n = smv_conn_post(c->conn, &r, 1);

	return n == 1 ? reap(c->conn, 1, NULL) : n;
}

#define wait_until(cond)                                                                           \
	do {                                                                                       \
		uint64_t until_ = smv_now_ns() + 10 * SMV_NS_PER_S;                                \
		while (!(cond)) {                                                                  \
			cr_assert_lt(smv_now_ns(), until_, "%s", #cond);                           \
			smv_sleep_ms(1);                                                           \
		}                                                                                  \
	} while (0)

static void fill_random(unsigned char *p, size_t len, unsigned int seed)
{
	for (size_t i = 0; i < len; i += sizeof(int)) {
		int v = rand_r(&seed);

		memcpy(p + i, &v, sizeof(v));
	}
}

static uint32_t next_notification(struct smv_conn *conn)
{
	uint64_t until = smv_now_ns() + 10 * SMV_NS_PER_S;
	uint32_t imm = 0;

	while (!smv_conn_next_notification(conn, &imm)) {
		cr_assert_lt(smv_now_ns(), until);
		cr_assert_eq(smv_conn_poll(conn, NULL, 0), 0);
		smv_conn_wait(conn, 1000);
	}
	return imm;
}

static char names[3][8] = {"mem", "tcp", "verbs"};

/* Verbs only where there is a device: SMEMV_TEST_VERBS is an address of it, at the server's host.
 * "mem" stays within a process. */
#define EACH(name)                                                                                 \
	ParameterizedTestParameters(transport, name)                                               \
	{                                                                                          \
		size_t first = server_is_elsewhere() ? 1 : 0;                                      \
		size_t end = getenv("SMEMV_TEST_VERBS") ? 3 : 2;                                   \
                                                                                                   \
		return cr_make_param_array(char[8], names + first, end - first);                   \
	}                                                                                          \
	ParameterizedTest(char name_[8], transport, name)

/* What the server's memory holds there. */
static void expect_at_server(
	const struct server *s, uint64_t offset, const void *data, uint32_t len, const char *what)
{
	unsigned char *there = malloc(len);

	server_peek(s, offset, there, len);
	cr_assert_eq(memcmp(there, data, len), 0, "%s, %u bytes", what, len);
	free(there);
}

static void expect_all_at_server(const struct server *s, unsigned char byte)
{
	int64_t other = server_call(s, SERVER_FIRST_OTHER, byte, SERVER_SIZE).value;

	cr_assert_eq(other, -1, "byte %ld was written", (long)other);
}

#define SETUP()                                                                                    \
	struct server s;                                                                           \
	struct client c;                                                                           \
	server_start(&s, name_);                                                                   \
	client_start(&c, &s)

#define TEARDOWN()                                                                                 \
	client_stop(&c);                                                                           \
	server_stop(&s)

EACH(moves_what_it_is_told)
{
	static const uint32_t sizes[] = {1, 31, 4096, 65536, 1000003, SMV_REQUEST_MAX};
	struct smv_conn_stats stats;
	uint64_t sum = 0;

	SETUP();
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t n = sizes[i];

		fill_random(c.mem, n, n);
		cr_assert_eq(one(&c, SMV_OP_WRITE, s.info.rkey, s.info.remote_addr + 5, 0, n), 0);
		expect_at_server(&s, 5, c.mem, n, "written");
		fill_random(c.mem, n, n + 1);
		server_poke(&s, 9, c.mem, n);
		memset(c.mem, 0, n + 3);
		cr_assert_eq(one(&c, SMV_OP_READ, s.info.rkey, s.info.remote_addr + 9, 3, n), 0);
		expect_at_server(&s, 9, c.mem + 3, n, "read");
		sum += n;
	}
	smv_conn_stats(c.conn, &stats);
	cr_assert_eq(stats.bytes_read, sum);
	cr_assert_eq(stats.bytes_written, sum);
	TEARDOWN();
}

EACH(scatters_and_gathers)
{
	struct smv_sge sge[2][SMV_SGE_MAX];
	struct smv_request r[2];
	int statuses[2];

	SETUP();
	fill_random(c.mem, CLIENT_SIZE / 2, 1);
	/* Pages of the first half in reverse order out, into the second half back. */
	for (unsigned int i = 0; i < SMV_SGE_MAX; i++) {
		sge[0][i] = (struct smv_sge){c.mem + (SMV_SGE_MAX - 1 - i) * PAGE, PAGE, c.region};
		sge[1][i] = (struct smv_sge){
			c.mem + CLIENT_SIZE / 2 + (SMV_SGE_MAX - 1 - i) * PAGE, PAGE, c.region};
	}
	r[0] = (struct smv_request){
		SMV_OP_WRITE, 1, s.info.rkey, s.info.remote_addr, sge[0], SMV_SGE_MAX};
	r[1] = (struct smv_request){
		SMV_OP_READ, 2, s.info.rkey, s.info.remote_addr, sge[1], SMV_SGE_MAX};
	cr_assert_eq(smv_conn_post(c.conn, r, 2), 2);
	reap(c.conn, 2, statuses);
	cr_assert(statuses[0] == 0 && statuses[1] == 0);
	expect_at_server(&s, 0, sge[0][0].addr, PAGE, "the first element");
	cr_assert_eq(memcmp(c.mem, c.mem + CLIENT_SIZE / 2, SMV_SGE_MAX * PAGE), 0);
	TEARDOWN();
}

/* A random mix on one connection behaves as if executed one by one. */
EACH(takes_effect_in_order)
{
	unsigned int seed = 3;
	unsigned char model[64];

	SETUP();
	memset(model, 0, sizeof(model));
	for (int round = 0; round < 200; round++) {
		struct smv_sge sge[32];
		struct smv_request r[32];
		unsigned char expected[32];

		for (unsigned int i = 0; i < 32; i++) {
			bool write = rand_r(&seed) % 2;
			unsigned int page = rand_r(&seed) % 4;
			unsigned char *mem = c.mem + i * 65536;
			uint32_t len = rand_r(&seed) % 2 ? PAGE : 65536;

			if (write) {
				memset(mem, rand_r(&seed), len);
				model[page] = *mem;
			}
			expected[i] = model[page];
			sge[i] = (struct smv_sge){mem, len, c.region};
			r[i] = (struct smv_request){write ? SMV_OP_WRITE : SMV_OP_READ, i,
				s.info.rkey, s.info.remote_addr + page * 65536, &sge[i], 1};
		}
		cr_assert_eq(smv_conn_post(c.conn, r, 32), 32);
		if (round % 8 == 0)
			smv_conn_notify(c.conn, round); /* its answer lands between others */
		cr_assert_eq(reap(c.conn, 32, NULL), 0);
		for (unsigned int i = 0; i < 32; i++)
			cr_assert_eq(c.mem[i * 65536], expected[i], "round %d, %u", round, i);
	}
	TEARDOWN();
}

EACH(gives_a_short_count_at_full_depth)
{
	struct smv_sge sge[20];
	struct smv_request r[20];
	struct smv_error err;
	struct server s;
	struct client c;

	server_start(&s, name_);
	cr_assert_eq(try_connect(&c, s.t, &s.addr, 8, 0, &err), 0);
	for (unsigned int i = 0; i < 20; i++) {
		sge[i] = (struct smv_sge){c.mem + i * PAGE, PAGE, c.region};
		r[i] = (struct smv_request){
			SMV_OP_READ, i, s.info.rkey, s.info.remote_addr, &sge[i], 1};
	}
	for (int round = 0; round < 100; round++) {
		cr_assert_eq(smv_conn_post(c.conn, r, 20), 8);
		cr_assert_eq(smv_conn_in_flight(c.conn), 8);
		cr_assert_eq(smv_conn_post(c.conn, r, 1), 0);
		cr_assert_eq(reap(c.conn, 3, NULL), 0);
		cr_assert_eq(smv_conn_post(c.conn, r, 20), 3);
		cr_assert_eq(reap(c.conn, 8, NULL), 0);
		cr_assert_eq(smv_conn_in_flight(c.conn), 0);
	}
	TEARDOWN();
}

EACH(refuses_malformed_requests)
{
	struct smv_sge sge[2];
	struct smv_request r = {.op = SMV_OP_READ, .sge = sge, .nr_sge = 1};
	struct client other;
	char elsewhere[8];

	SETUP();
	client_start(&other, &s);
	r.rkey = s.info.rkey;
	sge[0] = (struct smv_sge){elsewhere, sizeof(elsewhere), c.region};
	cr_assert_eq(smv_conn_post(c.conn, &r, 1), -EINVAL);
	sge[0] = (struct smv_sge){c.mem + CLIENT_SIZE - 1, 2, c.region};
	cr_assert_eq(smv_conn_post(c.conn, &r, 1), -EINVAL);
	sge[0] = (struct smv_sge){other.mem, 8, other.region}; /* of another domain */
	cr_assert_eq(smv_conn_post(c.conn, &r, 1), -EINVAL);
	sge[0] = (struct smv_sge){c.mem, SMV_REQUEST_MAX + 1, c.region};
	cr_assert_eq(smv_conn_post(c.conn, &r, 1), -EINVAL);
	r.nr_sge = 0;
	cr_assert_eq(smv_conn_post(c.conn, &r, 1), -EINVAL);
	client_stop(&other);
	cr_assert_eq(one(&c, SMV_OP_READ, s.info.rkey, s.info.remote_addr, 0, 8), 0);
	TEARDOWN();
}

EACH(notifies_behind_writes)
{
	SETUP();
	for (uint32_t i = 1; i <= 50; i++) {
		const struct smv_sge sge = {c.mem, 300000, c.region};
		const struct smv_request r = {
			SMV_OP_WRITE, i, s.info.rkey, s.info.remote_addr, &sge, 1};

		memset(c.mem, (int)i, 300000);
		cr_assert_eq(smv_conn_post(c.conn, &r, 1), 1);
		cr_assert_eq(smv_conn_notify(c.conn, i * 10), 0);
		cr_assert_eq(reap(c.conn, 1, NULL), 0);
		cr_assert_eq(next_notification(c.conn), i * 10 + 1);
		cr_assert_eq(server_counters(&s).seen, i);
	}
	cr_assert_eq(server_counters(&s).nr_notified, 50);
	TEARDOWN();
}

/* Take what has come; they must be the next ones. */
static void take_notifications(struct client *c, uint32_t *expected)
{
	uint32_t imm;

	while (smv_conn_next_notification(c->conn, &imm))
		cr_assert_eq(imm, (*expected)++);
}

static void read_and_take(struct client *c, unsigned int n, uint32_t *expected)
{
	uint64_t until = smv_now_ns() + 30 * SMV_NS_PER_S;
	struct smv_completion done[16];

	while (n > 0) {
		int got = smv_conn_poll(c->conn, done, 16);

		cr_assert_geq(got, 0);
		cr_assert_lt(smv_now_ns(), until, "%u reads are missing", n);
		for (int i = 0; i < got; i++)
			cr_assert_eq(done[i].status, 0);
		n -= (unsigned int)got;
		take_notifications(c, expected);
		if (!got)
			smv_conn_wait(c->conn, 1000);
	}
}

/* Notifications from another thread in the middle of reads spoil neither. */
EACH(mixes_notifications_into_reads)
{
	unsigned char *there = malloc(SERVER_SIZE);
	uint32_t expected = 0, sent;

	SETUP();
	fill_random(there, SERVER_SIZE, 5);
	server_poke(&s, 0, there, SERVER_SIZE);
	server_call(&s, SERVER_FLOOD, 50, 0);
	for (unsigned int round = 0; round < 300; round++) {
		struct smv_sge sge[16];
		struct smv_request r[16];

		for (unsigned int i = 0; i < 16; i++) {
			uint32_t len = 100 + (round * 37 + i * 4001) % 70000;

			sge[i] = (struct smv_sge){c.mem + i * 80000, len, c.region};
			r[i] = (struct smv_request){SMV_OP_READ, i, s.info.rkey,
				s.info.remote_addr + round * 13 + i * 80000, &sge[i], 1};
		}
		cr_assert_eq(smv_conn_post(c.conn, r, 16), 16);
		read_and_take(&c, 16, &expected);
		for (unsigned int i = 0; i < 16; i++)
			cr_assert_eq(
				memcmp(sge[i].addr, there + round * 13 + i * 80000, sge[i].len), 0,
				"round %u, %u", round, i);
	}
	wait_until(server_call(&s, SERVER_FLOOD_SENT, 0, 0).value > 10);
	sent = (uint32_t)server_call(&s, SERVER_FLOOD_STOP, 0, 0).value;
	while (expected < sent)
		cr_assert_eq(next_notification(c.conn), expected++);
	free(there);
	TEARDOWN();
}

/* Each offence ends the offender's connection, and only that. */
EACH(refuses_foreign_accesses)
{
	const unsigned int full = SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE;
	struct smv_region_info foreign_info, read_only_info, gone_info;
	struct server_answer gone;
	struct client other;

	SETUP();
	client_start(&other, &s);
	foreign_info = server_call(&s, SERVER_REGISTER, full, 1).info;
	read_only_info = server_call(&s, SERVER_REGISTER, SMV_ACCESS_REMOTE_READ, 0).info;
	gone = server_call(&s, SERVER_REGISTER, SMV_ACCESS_REMOTE_READ, 0);
	gone_info = gone.info;
	server_call(&s, SERVER_DEREGISTER, (uint64_t)gone.value, 0);
	const struct {
		enum smv_op op;
		uint64_t rkey, addr;
	} offences[] = {
		{SMV_OP_READ, s.info.rkey + 1, s.info.remote_addr},
		{SMV_OP_READ, 0, 0},
		{SMV_OP_READ, foreign_info.rkey, foreign_info.remote_addr},
		{SMV_OP_READ, gone_info.rkey, gone_info.remote_addr},
		{SMV_OP_WRITE, read_only_info.rkey, read_only_info.remote_addr},
		{SMV_OP_READ, s.info.rkey, s.info.remote_addr + SERVER_SIZE - PAGE + 1},
		{SMV_OP_WRITE, s.info.rkey, s.info.remote_addr + SERVER_SIZE},
		{SMV_OP_WRITE, s.info.rkey, s.info.remote_addr + UINT64_MAX - PAGE + 1},
		{SMV_OP_READ, s.info.rkey, s.info.remote_addr + UINT64_MAX},
	};
	memset(c.mem, 0xff, PAGE);
	for (size_t i = 0; i < sizeof(offences) / sizeof(offences[0]); i++) {
		int before = server_counters(&s).nr_disconnected;

		cr_assert_eq(one(&c, offences[i].op, offences[i].rkey, offences[i].addr, 0, PAGE),
			-EACCES, "%zu", i);
		cr_assert_eq(smv_conn_post(c.conn, &(struct smv_request){0}, 1), -ENOTCONN);
		cr_assert_eq(smv_conn_poll(c.conn, &(struct smv_completion){0}, 1), -ENOTCONN);
		wait_until(server_counters(&s).nr_disconnected == before + 1);
		cr_assert_eq(one(&other, SMV_OP_READ, s.info.rkey, s.info.remote_addr, 0, PAGE), 0);
		client_stop(&c);
		client_start(&c, &s);
		memset(c.mem, 0xff, PAGE);
	}
	expect_all_at_server(&s, 0);
	client_stop(&other);
	TEARDOWN();
}

EACH(refuses_writes_of_a_reader)
{
	struct server s;
	struct client c;

	server_start(&s, name_);
	server_call(&s, SERVER_ALLOW, SMV_ACCESS_REMOTE_READ, 0);
	client_start(&c, &s);
	c.mem[0] = 1;
	cr_assert_eq(one(&c, SMV_OP_READ, s.info.rkey, s.info.remote_addr, 1, 8), 0);
	/* Large, so that most of its payload is under way when the server refuses it. */
	cr_assert_eq(one(&c, SMV_OP_WRITE, s.info.rkey, s.info.remote_addr, 0, SMV_REQUEST_MAX),
		-EACCES);
	expect_all_at_server(&s, 0);
	TEARDOWN();
}

EACH(refuses_a_ticket)
{
	struct smv_error err = {0};
	struct server s;
	struct client c;

	server_start(&s, name_);
	server_call(&s, SERVER_ALLOW, 0, 0);
	cr_assert_eq(try_connect(&c, s.t, &s.addr, 0, 0, &err), -EACCES);
	cr_assert(strstr(err.message, "refused"), "%s", err.message);
	cr_assert_eq(server_counters(&s).nr_disconnected, 0);
	TEARDOWN();
}

EACH(counts_payload)
{
	struct smv_domain_stats stats;

	SETUP();
	cr_assert_eq(one(&c, SMV_OP_WRITE, s.info.rkey, s.info.remote_addr, 0, 10000), 0);
	cr_assert_eq(one(&c, SMV_OP_READ, s.info.rkey, s.info.remote_addr, 0, 300), 0);
	/* The last read is counted after it was sent: let the connection end. */
	smv_conn_close(c.conn);
	c.conn = NULL;
	wait_until(server_counters(&s).nr_disconnected == 1);
	stats = server_call(&s, SERVER_STATS, 0, 0).stats;
	cr_assert_eq(stats.counted, strcmp(name_, "verbs") != 0); /* there no CPU sees it */
	cr_assert_eq(stats.bytes_received, stats.counted ? 10000 : 0);
	cr_assert_eq(stats.bytes_sent, stats.counted ? 300 : 0);
	TEARDOWN();
}

EACH(deregisters_under_fire)
{
	struct smv_completion done[64];
	struct smv_request r[64];
	struct smv_sge sge[64];
	uint32_t next = 0;
	int bad = 0, n;

	SETUP();
	server_call(&s, SERVER_DEREGISTER_LATER, 0, 0);
	do {
		for (unsigned int i = 0; i < 64; i++) {
			uint32_t at = (next + i) % 128 * 65536; /* no two in flight share memory */

			sge[i] = (struct smv_sge){c.mem + at, 65536, c.region};
			r[i] = (struct smv_request){i % 2 ? SMV_OP_READ : SMV_OP_WRITE, i,
				s.info.rkey, s.info.remote_addr + at, &sge[i], 1};
		}
		n = smv_conn_post(c.conn, r, 64);
		next += n > 0 ? n : 0;
		n = smv_conn_poll(c.conn, done, 64);
		for (int i = 0; i < n; i++)
			bad += done[i].status == -EACCES;
	} while (n != -ENOTCONN);
	cr_assert_eq(bad, 1);
	server_call(&s, SERVER_WAIT_LATER, 0, 0);
	expect_all_at_server(&s, 0xaa); /* so nothing was written after the deregistration */
	TEARDOWN();
}

/* Every request completes exactly once when the server goes, whichever way it goes. */
static void expect_reset(struct client *c, unsigned int posted)
{
	unsigned int seen[64] = {0}, completed = 0;
	struct smv_completion done[64];
	int n;

	while ((n = smv_conn_poll(c->conn, done, 64)) != -ENOTCONN) {
		for (int i = 0; i < n; i++) {
			seen[done[i].cookie]++;
			completed++;
			cr_assert(done[i].status == 0 || done[i].status == -ECONNRESET ||
				  done[i].status == -ECANCELED);
		}
		if (n == 0)
			smv_conn_wait(c->conn, 1000);
	}
	cr_assert_eq(completed, posted);
	for (unsigned int i = 0; i < posted; i++)
		cr_assert_eq(seen[i], 1);
	cr_assert_eq(smv_conn_in_flight(c->conn), 0);
	cr_assert_eq(smv_conn_notify(c->conn, 1), -ENOTCONN);
}

static unsigned int post_many(struct client *c, const struct smv_region_info *info)
{
	struct smv_sge sge[40];
	struct smv_request r[40];

	for (unsigned int i = 0; i < 40; i++) {
		sge[i] = (struct smv_sge){c->mem + i * 131072, 131072, c->region};
		r[i] = (struct smv_request){i % 2 ? SMV_OP_READ : SMV_OP_WRITE, i, info->rkey,
			info->remote_addr, &sge[i], 1};
	}
	return (unsigned int)smv_conn_post(c->conn, r, 40);
}

EACH(closes_the_listener_with_requests_in_flight)
{
	unsigned int posted;

	SETUP();
	posted = post_many(&c, &s.info);
	server_call(&s, SERVER_CLOSE_LISTENER, 0, 0);
	cr_assert_eq(server_counters(&s).nr_disconnected, 1);
	expect_reset(&c, posted);
	TEARDOWN();
}

EACH(destroys_the_domain_with_requests_in_flight)
{
	unsigned int posted;

	SETUP();
	posted = post_many(&c, &s.info);
	server_call(&s, SERVER_DESTROY_DOMAIN, 0, 0);
	server_call(&s, SERVER_FILL, 0x55, 0);
	expect_reset(&c, posted);
	expect_all_at_server(&s, 0x55); /* so nothing was written after the destruction */
	TEARDOWN();
}

EACH(closes_a_server_connection_from_outside)
{
	unsigned int posted;

	SETUP();
	posted = post_many(&c, &s.info);
	server_call(&s, SERVER_CLOSE_CONN, 0, 0);
	wait_until(server_counters(&s).nr_disconnected == 1);
	expect_reset(&c, posted);
	TEARDOWN();
}

EACH(delays_by_a_filter)
{
	struct smv_conn *slow;
	uint64_t start;

	SETUP();
	cr_assert_eq(smv_conn_filter_delay(c.conn, 20 * SMV_NS_PER_MS, &slow), 0);
	c.conn = slow;
	for (int i = 0; i < 3; i++) {
		start = smv_now_ns();
		cr_assert_eq(one(&c, SMV_OP_READ, s.info.rkey, s.info.remote_addr, 0, PAGE), 0);
		cr_assert_geq(smv_now_ns() - start, 20 * SMV_NS_PER_MS);
		cr_assert_lt(smv_now_ns() - start, SMV_NS_PER_S);
	}
	cr_assert_eq(smv_conn_in_flight(c.conn), 0);
	TEARDOWN();
}

EACH(injects_errors_by_a_filter)
{
	int statuses[12];
	struct smv_request r[12];
	struct smv_sge sge[12];
	struct smv_conn *outer;

	SETUP();
	cr_assert_eq(smv_conn_filter_error(c.conn, 5, EIO, &outer), 0);
	c.conn = outer;
	cr_assert_eq(smv_conn_filter_delay(c.conn, SMV_NS_PER_MS, &outer), 0);
	c.conn = outer;
	for (unsigned int i = 0; i < 12; i++) {
		sge[i] = (struct smv_sge){c.mem + i * PAGE, PAGE, c.region};
		r[i] = (struct smv_request){
			SMV_OP_READ, i, s.info.rkey, s.info.remote_addr, &sge[i], 1};
	}
	cr_assert_eq(smv_conn_post(c.conn, r, 12), 12);
	reap(c.conn, 12, statuses);
	for (int i = 0; i < 12; i++)
		cr_assert_eq(statuses[i], i < 4 ? 0 : i == 4 ? -EIO : -ECANCELED, "%d", i);
	cr_assert_eq(smv_conn_poll(c.conn, &(struct smv_completion){0}, 1), -ENOTCONN);
	cr_assert_eq(smv_conn_post(c.conn, r, 1), -ENOTCONN);
	TEARDOWN();
}

/* --- tcp only: peers that misbehave on the wire --------------------------------------------- */

static int raw_connect(const struct smv_addr *addr)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(addr->port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, addr->host, &in.sin_addr);
	cr_assert_eq(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	/* Else a second small send waits for the delayed acknowledgement of the first, 40 ms. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	return fd;
}

static int raw_listen(struct smv_addr *addr)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(in);

	cr_assert_eq(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	cr_assert_eq(listen(fd, 8), 0);
	getsockname(fd, (struct sockaddr *)&in, &len);
	memset(addr, 0, sizeof(*addr));
	strcpy(addr->transport, "tcp");
	strcpy(addr->host, "127.0.0.1");
	addr->port = ntohs(in.sin_port);
	return fd;
}

static bool closed_within(int fd, int ms)
{
	struct pollfd pfd = {fd, POLLIN, 0};
	char buf[256];

	while (poll(&pfd, 1, ms) == 1)
		if (recv(fd, buf, sizeof(buf), 0) <= 0)
			return true;
	return false;
}

static int raw_login(const struct smv_addr *addr)
{
	struct smv_tcp_hello hello = {SMV_TCP_VERSION, 6, "ticket"};
	uint8_t out[SMV_TCP_HELLO_SIZE], in[SMV_TCP_WELCOME_SIZE];
	struct smv_tcp_welcome welcome;
	int fd = raw_connect(addr);

	smv_tcp_put_hello(out, &hello);
	cr_assert_eq(send(fd, out, sizeof(out), 0), sizeof(out));
	cr_assert_eq(recv(fd, in, sizeof(in), MSG_WAITALL), sizeof(in));
	cr_assert_eq(smv_tcp_parse_welcome(in, &welcome), 0);
	cr_assert_eq(welcome.status, SMV_TCP_OK);
	return fd;
}

static void raw_request(int fd, uint32_t op, uint32_t len, uint64_t rkey)
{
	const struct smv_tcp_request r = {op, len, rkey, 0, 0};
	uint8_t out[SMV_TCP_REQUEST_SIZE];

	smv_tcp_put_request(out, &r);
	cr_assert_eq(send(fd, out, sizeof(out), MSG_NOSIGNAL), sizeof(out));
}

Test(tcp, survives_garbage)
{
	static const struct {
		uint32_t op, len;
	} bad[] = {{0, 1}, {4, 1}, {UINT32_MAX, 1}, {SMV_TCP_READ, 0}, {SMV_TCP_WRITE, 0},
		{SMV_TCP_READ, SMV_REQUEST_MAX + 1}, {SMV_TCP_WRITE, UINT32_MAX}};
	unsigned char junk[200];
	struct server s;
	struct client c;
	int fd;

	server_start_here(&s, "tcp");
	client_start(&c, &s);
	for (unsigned int i = 0; i < 20; i++) {
		fill_random(junk, sizeof(junk), i);
		fd = raw_connect(&s.addr);
		send(fd, junk, sizeof(junk), MSG_NOSIGNAL);
		cr_assert(closed_within(fd, 2000));
		close(fd);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fd = raw_login(&s.addr);
		raw_request(fd, bad[i].op, bad[i].len, s.info.rkey);
		cr_assert(closed_within(fd, 2000), "%zu", i);
		close(fd);
	}
	cr_assert_eq(one(&c, SMV_OP_READ, s.info.rkey, s.info.remote_addr, 0, PAGE), 0);
	TEARDOWN();
}

Test(tcp, says_its_version)
{
	struct smv_tcp_hello hello = {SMV_TCP_VERSION + 1, 6, "ticket"};
	uint8_t out[SMV_TCP_HELLO_SIZE], in[SMV_TCP_WELCOME_SIZE];
	struct smv_tcp_welcome welcome;
	struct server s;
	int fd;

	server_start_here(&s, "tcp");
	fd = raw_connect(&s.addr);
	smv_tcp_put_hello(out, &hello);
	send(fd, out, sizeof(out), 0);
	cr_assert_eq(recv(fd, in, sizeof(in), MSG_WAITALL), sizeof(in));
	cr_assert_eq(smv_tcp_parse_welcome(in, &welcome), 0);
	cr_assert_eq(welcome.status, SMV_TCP_VERSION_MISMATCH);
	close(fd);
	server_stop(&s);
}

static void *answer_main(void *arg)
{
	static const char *const texts[] = {"HTTP/1.1 400 Bad Request\r\n", NULL};
	uint8_t out[SMV_TCP_WELCOME_SIZE];
	int listener = *(int *)arg;

	smv_tcp_put_welcome(out, &(struct smv_tcp_welcome){9, SMV_TCP_VERSION_MISMATCH});
	for (int i = 0; i < 2; i++) {
		int fd = accept(listener, NULL, NULL);
		char hello[SMV_TCP_HELLO_SIZE];

		recv(fd, hello, sizeof(hello), MSG_WAITALL);
		send(fd, texts[i] ? (const void *)texts[i] : out, sizeof(out), 0);
		close(fd);
	}
	return NULL;
}

Test(tcp, says_what_the_other_side_is)
{
	const struct smv_transport *t = smv_transport_find("tcp");
	struct smv_error err = {0};
	struct smv_addr addr;
	struct client c;
	pthread_t thread;
	int fd = raw_listen(&addr);

	pthread_create(&thread, NULL, answer_main, &fd);
	cr_assert_lt(try_connect(&c, t, &addr, 0, 0, &err), 0);
	cr_assert_str_eq(err.reason, "not-smemv");
	client_stop(&c);
	cr_assert_lt(try_connect(&c, t, &addr, 0, 0, &err), 0);
	cr_assert_str_eq(err.reason, "version-mismatch");
	client_stop(&c);
	pthread_join(thread, NULL);
	close(fd);
	cr_assert_lt(try_connect(&c, t, &addr, 0, 0, &err), 0);
	cr_assert_str_eq(err.reason, "connect-failed");
	client_stop(&c);
}

Test(tcp, gives_up_on_a_silent_listener)
{
	struct smv_error err = {0};
	struct smv_addr addr;
	struct client c;
	int fd = raw_listen(&addr);
	uint64_t start = smv_now_ns();

	cr_assert_eq(try_connect(&c, smv_transport_find("tcp"), &addr, 0, 200, &err), -ETIMEDOUT);
	cr_assert_lt(smv_now_ns() - start, SMV_NS_PER_S);
	client_stop(&c);
	close(fd);
}

/* A server in another process, so that it can be stopped and killed. */
static pid_t fork_server(struct smv_addr *addr, struct smv_region_info *info)
{
	int pipe_fd[2];
	pid_t pid;

	cr_assert_eq(pipe(pipe_fd), 0);
	pid = fork();
	if (pid == 0) {
		static struct server s;

		server_start_here(&s, "tcp");
		if (write(pipe_fd[1], &s.addr, sizeof(s.addr)) < 0 ||
			write(pipe_fd[1], &s.info, sizeof(s.info)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	cr_assert_eq(read(pipe_fd[0], addr, sizeof(*addr)), sizeof(*addr));
	cr_assert_eq(read(pipe_fd[0], info, sizeof(*info)), sizeof(*info));
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	return pid;
}

Test(tcp, ends_in_a_timeout_when_the_peer_hangs)
{
	struct smv_region_info info;
	struct smv_error err = {0};
	struct smv_addr addr;
	struct client c;
	pid_t pid = fork_server(&addr, &info);
	int statuses[40];
	uint64_t start;

	cr_assert_eq(try_connect(&c, smv_transport_find("tcp"), &addr, 0, 300, &err), 0);
	cr_assert_eq(one(&c, SMV_OP_READ, info.rkey, info.remote_addr, 0, PAGE), 0);
	kill(pid, SIGSTOP);
	waitpid(pid, NULL, WUNTRACED); /* else its threads may still answer */
	start = smv_now_ns();
	cr_assert_eq(post_many(&c, &info), 40);
	reap(c.conn, 40, statuses);
	cr_assert_geq(smv_now_ns() - start, 300 * SMV_NS_PER_MS);
	cr_assert_lt(smv_now_ns() - start, SMV_NS_PER_S);
	cr_assert_eq(statuses[0], -ETIMEDOUT);
	for (int i = 1; i < 40; i++)
		cr_assert_eq(statuses[i], -ECANCELED);
	client_stop(&c);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

Test(tcp, completes_all_when_the_peer_is_killed)
{
	struct smv_region_info info;
	struct smv_error err = {0};
	struct smv_addr addr;
	struct client c;
	pid_t pid = fork_server(&addr, &info);
	unsigned int posted;

	cr_assert_eq(try_connect(&c, smv_transport_find("tcp"), &addr, 0, 0, &err), 0);
	posted = post_many(&c, &info);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	expect_reset(&c, posted);
	client_stop(&c);
}

/* Clients that stop in the middle of a payload, of a header, or that take no answers. */
static int stall(const struct server *s, int kind)
{
	char some[1000] = {0};
	int fd = raw_login(&s->addr);

	if (kind == 0) {
		raw_request(fd, SMV_TCP_WRITE, 1u << 20, s->info.rkey);
		cr_assert_eq(send(fd, some, sizeof(some), 0), sizeof(some));
	} else if (kind == 1) {
		cr_assert_eq(send(fd, some, 7, 0), 7);
	} else {
		for (int i = 0; i < 20; i++)
			raw_request(fd, SMV_TCP_READ, SMV_REQUEST_MAX, s->info.rkey);
	}
	smv_sleep_ms(30); /* until the server is in the middle of it */
	return fd;
}

Test(tcp, does_not_wait_for_stalled_clients)
{
	static const char late[100000];

	for (int what = 0; what < 3; what++) {
		for (int kind = 0; kind < 3; kind++) {
			struct server s;
			uint64_t start;
			int fd;

			server_start_here(&s, "tcp");
			fd = stall(&s, kind);
			start = smv_now_ns();
			if (what == 0) {
				server_call(&s, SERVER_DEREGISTER, 0, 0);
			} else if (what == 1) {
				server_call(&s, SERVER_DESTROY_DOMAIN, 0, 0);
			}
			server_call(&s, SERVER_FILL, 1, 0);
			if (what < 2) {
				/* The rest of the payload comes too late. */
				send(fd, late, sizeof(late), MSG_NOSIGNAL);
				smv_sleep_ms(10);
				expect_all_at_server(&s, 1);
			}
			server_stop(&s);
			cr_assert_lt(smv_now_ns() - start, SMV_NS_PER_S, "%d %d", what, kind);
			close(fd);
		}
	}
}

Test(tcp, notify_does_not_wait_for_a_client_that_takes_nothing)
{
	struct server s;
	uint64_t start;
	int fd;

	server_start_here(&s, "tcp");
	fd = stall(&s, 2);
	start = smv_now_ns();
	cr_assert_eq(server_call(&s, SERVER_NOTIFY, 1, 0).value, -EAGAIN);
	cr_assert_lt(smv_now_ns() - start, SMV_NS_PER_S);
	server_stop(&s);
	close(fd);
}

Test(tcp, speaks_ipv6)
{
	const struct smv_listener_handler handler = {0};
	struct smv_listener *l;
	struct smv_error err = {0};
	struct smv_addr addr, bound;
	char text[SMV_ADDR_MAX];

	smv_addr_parse("tcp:[::1]:0", true, &addr, NULL);
	if (smv_listen(smv_transport_find("tcp"), &addr, &handler, &l, &bound, &err) < 0)
		cr_skip_test("no IPv6 here");
	cr_assert_neq(bound.port, 0);
	cr_assert_eq(strncmp(smv_addr_format(&bound, text, sizeof(text)), "tcp:[::1]:", 10), 0);
	cr_assert_lt(smv_listen(smv_transport_find("tcp"), &bound, &handler, &l, NULL, &err), 0);
	cr_assert(strstr(err.message, text), "%s", err.message);
	smv_listener_close(l);
}

/* --- choosing, tickets ---------------------------------------------------------------------- */

/* smv_transport_choose() of a peer with the first @nr of some addresses, and perhaps a second peer.
 */
static int choose(const char *names, const char *why, size_t nr, bool second,
	const struct smv_transport **t, char *reason, struct smv_error *err)
{
	static const char *const offers[] = {"verbs:h:1", "tcp:h:2", "nonsense"};
	static const char *const tcp_only[] = {"tcp:h:3"};
	struct smv_transport_peer peers[] = {
		{"peer one", offers, nr, 9}, {"peer two", tcp_only, 1, 9}};
	struct smv_transport_wish wish = {0};
	int ret;

	snprintf(wish.names, sizeof(wish.names), "%s", names);
	snprintf(wish.why, sizeof(wish.why), "%s", why);
	ret = smv_transport_choose(&wish, peers, second ? 2 : 1, t, reason, 200, err);
	if (ret == 0 && strcmp(smv_transport_name(*t), "tcp") == 0)
		cr_assert(peers[0].index == 1 && (!second || peers[1].index == 0));
	return ret;
}

Test(choose, says_which_and_why)
{
	const struct smv_transport *t;
	struct smv_error err = {0};
	char reason[200];

	/* No device here, or "h" is no host. */
	cr_assert_eq(choose("auto", "", 3, false, &t, reason, &err), 0);
	cr_assert_str_eq(smv_transport_name(t), "tcp");
	cr_assert_eq(strncmp(reason, "tcp: verbs ", 11), 0, "%s", reason);
	cr_assert_eq(choose("tcp", "", 3, false, &t, reason, &err), 0);
	cr_assert_str_eq(reason, "tcp: asked for");
	cr_assert_lt(choose("tcp", "", 1, false, &t, reason, &err), 0);
	cr_assert(strstr(err.message, "peer one offers no tcp data address; it offers verbs:h:1"),
		"%s", err.message);
	cr_assert_lt(choose("none", "", 3, false, &t, reason, &err), 0);
	cr_assert_str_eq(err.reason, "transport-not-built-in");
	/* By name it is taken where it can be used, whatever the address. */
	int ret = choose("verbs", "", 3, false, &t, reason, &err);
	if (smv_transport_available(smv_transport_find("verbs"), reason, sizeof(reason)))
		cr_assert_eq(ret, 0);
	else
		cr_assert_str_eq(err.reason, "transport-unavailable");
	cr_assert_lt(choose("auto", "", 0, false, &t, reason, &err), 0);
	cr_assert(strstr(err.message, "peer one"), "%s", err.message);
}

Test(choose, suits_all_peers)
{
	const struct smv_transport *t;
	struct smv_error err = {0};
	char reason[200];

	cr_assert_eq(choose("auto", "", 3, true, &t, reason, &err), 0);
	cr_assert_str_eq(smv_transport_name(t), "tcp");
	cr_assert_lt(choose("auto", "", 1, true, &t, reason, &err), 0);
	cr_assert_str_eq(err.reason, "no-common-transport");
	/* Whose reason comes first counts. */
	cr_assert_eq(choose("tcp,", "elsewhere it cannot", 3, true, &t, reason, &err), 0);
	cr_assert_str_eq(reason, "tcp: elsewhere it cannot");
}

static bool fits_tcp(void *ctx, const char *name, char *why, size_t why_len)
{
	(void)ctx;
	snprintf(why, why_len, "%s is not wanted", name);
	return strcmp(name, "tcp") == 0;
}

Test(choose, narrows_only_what_is_automatic)
{
	struct smv_transport_wish wish = {.names = "auto"}, named = {.names = "verbs"};

	smv_transport_narrow(&wish, fits_tcp, NULL);
	cr_assert_str_eq(wish.names, "tcp,");
	cr_assert_str_eq(wish.why, "verbs is not wanted"); /* and nothing of what would be worse */
	smv_transport_narrow(&wish, fits_tcp, NULL);
	cr_assert_str_eq(wish.names, "tcp,");
	smv_transport_narrow(&named, fits_tcp, NULL);
	cr_assert_str_eq(named.names, "verbs");
	cr_assert_str_eq(named.why, "");
	cr_assert(smv_transport_wish_is_valid("auto") && smv_transport_wish_is_valid("tcp,"));
	cr_assert(
		smv_transport_wish_is_valid("verbs,tcp,") && smv_transport_wish_is_valid("verbs"));
	cr_assert(!smv_transport_wish_is_valid("") && !smv_transport_wish_is_valid("udp") &&
		  !smv_transport_wish_is_valid("tcp,udp,"));
}

Test(ticket, opens_only_with_its_key)
{
	uint8_t key[SMV_TICKET_KEY_SIZE] = {1, 2, 3}, other[SMV_TICKET_KEY_SIZE] = {1, 2, 4};
	struct smv_ticket ticket, fields;

	cr_assert_leq(sizeof(ticket), SMV_PRIVATE_DATA_MAX);
	smv_ticket_make(key, 0x1122334455667788, 7, SMV_ROLE_WRITER, 9, &ticket);
	cr_assert_eq(smv_ticket_check(key, &ticket), 0);
	cr_assert_eq(smv_ticket_check(other, &ticket), -EACCES);
	cr_assert_eq(smv_ticket_parse(&ticket, sizeof(ticket), &fields), 0);
	cr_assert_eq(fields.lease_id, 0x1122334455667788);
	cr_assert(fields.epoch == 7 && fields.role == SMV_ROLE_WRITER && fields.nonce == 9);
	cr_assert_eq(smv_ticket_parse(&ticket, sizeof(ticket) - 1, &fields), -EINVAL);
	for (size_t i = 0; i < sizeof(ticket); i++) {
		((uint8_t *)&ticket)[i] ^= 1;
		cr_assert_eq(smv_ticket_check(key, &ticket), -EACCES, "byte %zu", i);
		((uint8_t *)&ticket)[i] ^= 1;
	}
	smv_ticket_make(key, 1, 1, (enum smv_role)3, 1, &ticket);
	cr_assert_eq(smv_ticket_parse(&ticket, sizeof(ticket), &fields), -EINVAL);
}

Test(ticket, is_used_once)
{
	struct smv_nonce_window w = {0};

	cr_assert_eq(smv_nonce_use(&w, 0), -EACCES);
	cr_assert_eq(smv_nonce_use(&w, 1), 0);
	cr_assert_eq(smv_nonce_use(&w, 1), -EACCES);
	cr_assert_eq(smv_nonce_use(&w, 64), 0);
	cr_assert_eq(smv_nonce_use(&w, 2), 0);
	cr_assert_eq(smv_nonce_use(&w, 2), -EACCES);
	cr_assert_eq(smv_nonce_use(&w, 1), -EACCES);
	cr_assert_eq(smv_nonce_use(&w, 1000), 0);
	cr_assert_eq(smv_nonce_use(&w, 64), -EACCES);
	cr_assert_eq(smv_nonce_use(&w, 936), -EACCES);
	cr_assert_eq(smv_nonce_use(&w, 937), 0);
	cr_assert_eq(smv_nonce_use(&w, UINT64_MAX), 0);
	cr_assert_eq(smv_nonce_use(&w, UINT64_MAX), -EACCES);
}
