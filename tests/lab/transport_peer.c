/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two hosts and a transport between them that fails in all ways that can be arranged:
 *
 *   transport_peer server ADDRESS            in a loop: it is killed on the way
 *   transport_peer client ADDRESS [IPV6]     of the server; does and judges everything
 *
 * ADDRESS is a data address such as verbs:192.168.77.1:7000. The server does what notifications
 * tell it; the client exits with 1 at the first thing that is not as it should be.
 */
#include "common/clock.h"
#include "common/log.h"
#include "transport/transport.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE (4u << 20)
#define PAGE 4096u
#define TIMEOUT_MS 3000u
#define OUTAGE "8" /* seconds */
#define OUTAGE_MS 8000
/* Soft-RoCE destroys a queue pair only when its last packet is gone, which without a link waits for
 * the neighbour's address, 3 s. */
#define LINGER_MS 3500

/* What the client may tell the server; from ASK on: send a word of struct facts. */
enum command { STOP = 1, UNPLUG, DIE, ASK = 0x100 };

struct facts {
	uint64_t rkey, addr, foreign_rkey, foreign_addr, counter_addr;
};

static struct smv_addr address, address6;

static void check_at(bool ok, const char *what, int line)
{
	if (ok)
		return;
	printf("FAILED in line %d: %s (%s)\n", line, what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

#define check(cond) check_at(cond, #cond, __LINE__)

static void step(const char *text)
{
	printf("%s\n", text);
	fflush(stdout);
}

static uint64_t now_ms(void)
{
	return smv_now_ns() / SMV_NS_PER_MS;
}

/* --- server --------------------------------------------------------------------------------- */

static struct smv_domain *own;
static struct facts facts;

static int on_connect(void *ctx, struct smv_conn *conn, const void *data, size_t len,
	struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	(void)ctx;
	(void)conn;
	(void)conn_ctx;
	*domain = own;
	*access = SMV_ACCESS_REMOTE_READ;
	if (len == 6 && memcmp(data, "writer", 6) == 0)
		*access |= SMV_ACCESS_REMOTE_WRITE;
	else if (len != 6 || memcmp(data, "reader", 6) != 0)
		return -EACCES;
	return 0;
}

static void run(const char *command)
{
	check(system(command) == 0);
}

/* The cable of this host is out for a while. */
static void unplug(void)
{
	run("cable out " OUTAGE " &");
}

static void on_notify(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t imm)
{
	char command[100];
	uint32_t word;

	(void)ctx;
	(void)conn_ctx;
	switch (imm) {
	case STOP:
		snprintf(command, sizeof(command), "(sleep " OUTAGE "; kill -CONT %d) &", getpid());
		run(command);
		kill(getpid(), SIGSTOP);
		break;
	case UNPLUG:
		unplug();
		break;
	case DIE:
		kill(getpid(), SIGKILL);
		break;
	default:
		check(imm >= ASK && imm < ASK + sizeof(facts) / 4);
		memcpy(&word, (char *)&facts + (imm - ASK) * 4, 4);
		check(smv_conn_notify(conn, word) == 0);
	}
}

static void on_disconnected(void *ctx, void *conn_ctx, struct smv_conn *conn)
{
	(void)ctx;
	(void)conn_ctx;
	(void)conn;
}

static _Noreturn void serve(void)
{
	const struct smv_transport *t = smv_transport_find(address.transport);
	const struct smv_listener_handler handler = {NULL, on_connect, on_notify, on_disconnected};
	const unsigned int access = SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE;
	_Atomic uint64_t *counter = aligned_alloc(PAGE, SIZE);
	struct smv_listener *listener;
	struct smv_region *region, *foreign_region;
	struct smv_domain *foreign;
	struct smv_region_info info;
	struct smv_error err = {0};
	struct smv_addr any = {0};

	check(t && counter && smv_domain_create(t, &own) == 0);
	check(smv_domain_create(t, &foreign) == 0);
	memset(counter, 0, SIZE);
	check(smv_region_register(own, counter, SIZE, access, &region) == 0);
	check(smv_region_register(foreign, counter, PAGE, access, &foreign_region) == 0);
	smv_region_info(region, &info);
	facts.rkey = info.rkey;
	facts.addr = info.remote_addr;
	facts.counter_addr = info.remote_addr;
	smv_region_info(foreign_region, &info);
	facts.foreign_rkey = info.rkey;
	facts.foreign_addr = info.remote_addr;
	if (smv_listen(t, &address, &handler, &listener, NULL, &err) < 0)
		smv_error_print(&err);
	check(!err.reason[0]);
	if (address6.host[0]) {
		any = address6;
		check(smv_listen(t, &any, &handler, &listener, NULL, &err) == 0);
	}
	for (;; smv_sleep_ms(10))
		atomic_fetch_add(counter, 1); /* shows that the server runs */
}

/* --- client --------------------------------------------------------------------------------- */

struct client {
	struct smv_domain *domain;
	struct smv_region *region;
	unsigned char *mem;
	struct smv_conn *conn;
	struct facts facts;
};

static int try_connect(struct client *c, const struct smv_addr *to, const char *ticket)
{
	const struct smv_conn_options options = {.timeout_ms = TIMEOUT_MS};
	static char last[sizeof(((struct smv_error *)0)->message)]; /* said once is enough */
	struct smv_error err = {0};
	int ret = smv_connect(c->domain, to, ticket, strlen(ticket), &options, &c->conn, &err);

	if (ret < 0) {
		if (strcmp(err.message, last) != 0)
			printf("  %s\n", err.message);
		memcpy(last, err.message, sizeof(last));
		c->conn = NULL;
	}
	return ret;
}

static uint32_t ask(struct client *c, uint32_t word)
{
	uint64_t until = now_ms() + 2 * TIMEOUT_MS;
	uint32_t imm;

	check(smv_conn_notify(c->conn, ASK + word) == 0);
	while (!smv_conn_next_notification(c->conn, &imm)) {
		check(now_ms() < until);
		check(smv_conn_poll(c->conn, NULL, 0) == 0);
		smv_conn_wait(c->conn, 100);
	}
	return imm;
}

static void open_client(struct client *c, const char *transport)
{
	const struct smv_transport *t = smv_transport_find(transport);

	memset(c, 0, sizeof(*c));
	c->mem = aligned_alloc(PAGE, SIZE);
	check(t && c->mem && smv_domain_create(t, &c->domain) == 0);
	check(smv_region_register(c->domain, c->mem, SIZE, 0, &c->region) == 0);
}

static void hang_up(struct client *c)
{
	if (c->conn)
		smv_conn_close(c->conn);
	c->conn = NULL;
}

/* As long as the server or the way to it is away. */
static void connect_patiently(struct client *c, const struct smv_addr *to, const char *ticket)
{
	uint64_t until = now_ms() + 30000;

	hang_up(c);
	while (try_connect(c, to, ticket) < 0) {
		check(now_ms() < until);
		smv_sleep_ms(100);
	}
}

static void connect_again(struct client *c, const char *ticket)
{
	connect_patiently(c, &address, ticket);
	for (uint32_t i = 0; i < sizeof(c->facts) / 4; i++) {
		uint32_t word = ask(c, i);

		memcpy((char *)&c->facts + 4 * i, &word, 4);
	}
}

static int transfer(
	struct client *c, enum smv_op op, uint64_t rkey, uint64_t addr, size_t at, uint32_t len)
{
	const struct smv_sge sge = {c->mem + at, len, c->region};
	const struct smv_request r = {op, 1, rkey, addr, &sge, 1};
	struct smv_completion done;
	int n = smv_conn_post(c->conn, &r, 1);

	if (n < 0)
		return n;
	while ((n = smv_conn_poll(c->conn, &done, 1)) == 0)
		smv_conn_wait(c->conn, -1);
	check(n == 1);
	return done.status;
}

static int read_at(struct client *c, uint64_t offset, size_t at, uint32_t len)
{
	return transfer(c, SMV_OP_READ, c->facts.rkey, c->facts.addr + offset, at, len);
}

static int write_at(struct client *c, uint64_t offset, size_t at, uint32_t len)
{
	return transfer(c, SMV_OP_WRITE, c->facts.rkey, c->facts.addr + offset, at, len);
}

static void verify(struct client *c)
{
	unsigned int seed = 1;

	for (int round = 0; round < 20; round++) {
		uint32_t len = 1 + (uint32_t)rand_r(&seed) % (SIZE / 64);
		uint64_t offset = PAGE + (uint64_t)rand_r(&seed) % (SIZE - PAGE - len);

		for (uint32_t i = 0; i < len; i++)
			c->mem[i] = (unsigned char)rand_r(&seed);
		memset(c->mem + SIZE / 2, 0, len);
		check(write_at(c, offset, 0, len) == 0);
		check(read_at(c, offset, SIZE / 2, len) == 0);
		check(memcmp(c->mem, c->mem + SIZE / 2, len) == 0);
	}
}

static void offend(struct client *offender, struct client *other, enum smv_op op, uint64_t rkey,
	uint64_t addr, const char *ticket)
{
	connect_again(offender, ticket);
	check(transfer(offender, op, rkey, addr, 0, PAGE) == -EACCES);
	check(smv_conn_poll(offender->conn, &(struct smv_completion){0}, 1) == -ENOTCONN);
	check(read_at(other, 0, 0, PAGE) == 0);
}

static void isolation(struct client *c)
{
	struct client o;

	open_client(&o, address.transport);
	check(try_connect(&o, &address, "forged") == -EACCES);
	offend(&o, c, SMV_OP_READ, c->facts.foreign_rkey, c->facts.foreign_addr, "writer");
	offend(&o, c, SMV_OP_READ, c->facts.rkey, c->facts.addr + SIZE - PAGE + 1, "writer");
	offend(&o, c, SMV_OP_WRITE, c->facts.rkey, c->facts.addr + SIZE, "writer");
	offend(&o, c, SMV_OP_WRITE, c->facts.rkey, c->facts.addr, "reader");
	hang_up(&o);
	smv_region_deregister(o.region);
	smv_domain_destroy(o.domain);
	free(o.mem);
}

static uint64_t read_counter(struct client *c)
{
	uint64_t value;

	check(read_at(c, 0, 0, sizeof(value)) == 0);
	memcpy(&value, c->mem, sizeof(value));
	return value;
}

static void server_stops(struct client *c)
{
	uint64_t before, until;
	unsigned int reads = 0;

	check(smv_conn_notify(c->conn, STOP) == 0);
	smv_sleep_ms(1000);
	before = read_counter(c);
	for (until = now_ms() + 2 * TIMEOUT_MS; now_ms() < until; reads++)
		check(read_counter(c) == before);
	printf("  %u reads of a stopped server\n", reads);
	smv_sleep_ms(4000);
	check(read_counter(c) > before);
}

static int wait_for_failure(struct client *c)
{
	struct smv_completion done;
	int n, status = 0;

	while ((n = smv_conn_poll(c->conn, &done, 1)) != -ENOTCONN) {
		if (n == 1 && !status)
			status = done.status;
		else if (n == 0)
			smv_conn_wait(c->conn, -1);
	}
	return status;
}

/* Reads one after the other until the connection fails. */
static int read_until_failure(struct client *c)
{
	int ret = 0;

	while (ret == 0)
		ret = read_at(c, 0, 0, PAGE);
	check(smv_conn_poll(c->conn, &(struct smv_completion){0}, 1) == -ENOTCONN);
	return ret;
}

/* Something happens to the server: how long until the client knows, busy and idle? */
static void lose(struct client *c, enum command how, bool idle)
{
	uint64_t start;
	int status;

	connect_again(c, "writer");
	check(read_at(c, 0, 0, PAGE) == 0);
	start = now_ms();
	check(smv_conn_notify(c->conn, how) == 0);
	status = idle ? wait_for_failure(c) : read_until_failure(c);
	printf("  noticed after %u ms: %s\n", (unsigned int)(now_ms() - start), strerror(-status));
	check(now_ms() - start < 2 * TIMEOUT_MS + 500);
	/* -ENOTCONN: it was known before the next read was posted. */
	check(idle || status == -ETIMEDOUT || status == -ECONNRESET || status == -ENOTCONN);
}

/* Its own cable: the device says so, busy or idle. When it is back, so are connections. */
static void lose_own_link(struct client *c, bool idle)
{
	uint64_t start;

	connect_again(c, "writer");
	check(read_at(c, 0, 0, PAGE) == 0);
	start = now_ms();
	unplug();
	if (idle)
		wait_for_failure(c);
	else
		read_until_failure(c);
	printf("  noticed after %u ms\n", (unsigned int)(now_ms() - start));
	check(now_ms() - start < TIMEOUT_MS + LINGER_MS);
	/* Soft-RoCE's QP 1 does not always survive a message of the connection manager that it is to
	 * send while the link is down: then the device connects to nobody any more. */
	while (now_ms() - start < OUTAGE_MS + LINGER_MS)
		smv_sleep_ms(100);
	connect_again(c, "writer");
	verify(c);
}

static int judge(void)
{
	struct client c;
	struct smv_addr nobody = address;

	open_client(&c, address.transport);
	step("connects and moves data");
	connect_again(&c, "writer");
	verify(&c);
	if (address6.host[0]) {
		struct client six;

		step("over IPv6");
		open_client(&six, address.transport);
		connect_patiently(&six, &address6, "writer");
		six.facts = c.facts;
		verify(&six);
		hang_up(&six);
		smv_region_deregister(six.region);
		smv_domain_destroy(six.domain);
		free(six.mem);
	}
	step("keeps peers apart");
	isolation(&c);
	step("says when nobody listens");
	nobody.port += 10;
	check(try_connect(&(struct client){.domain = c.domain}, &nobody, "writer") < 0);
	if (strcmp(address.transport, "verbs") == 0) {
		step("reads while the server is stopped");
		server_stops(&c);
	}
	step("the server's cable is out, busy");
	lose(&c, UNPLUG, false);
	connect_again(&c, "writer");
	verify(&c);
	step("the server's cable is out, idle");
	lose(&c, UNPLUG, true);
	connect_again(&c, "writer");
	verify(&c);
	step("the server is killed, busy");
	lose(&c, DIE, false);
	step("the server is killed, idle");
	lose(&c, DIE, true);
	step("and is as good as new afterwards");
	connect_again(&c, "writer");
	verify(&c);
	step("the own cable is out, busy");
	lose_own_link(&c, false);
	step("the own cable is out, idle");
	lose_own_link(&c, true);
	hang_up(&c);
	smv_region_deregister(c.region);
	smv_domain_destroy(c.domain);
	free(c.mem);
	step("all is well");
	return 0;
}

int main(int argc, char **argv)
{
	struct smv_error err;

	if (argc < 3 || argc > 4)
		return 2;
	smv_log_set_level(SMV_LOG_WARNING);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (smv_addr_parse(argv[2], true, &address, &err) < 0 ||
		(argc == 4 && smv_addr_parse(argv[3], true, &address6, &err) < 0)) {
		smv_error_print(&err);
		return 2;
	}
	if (strcmp(argv[1], "server") == 0)
		serve();
	return judge();
}
