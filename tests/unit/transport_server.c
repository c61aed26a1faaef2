/* SPDX-License-Identifier: Apache-2.0 */
#include "transport_server.h"

#include "common/clock.h"
#include "common/log.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REGIONS_MAX 8
#define ANSWER_TIMEOUT_S 60
#define FULL_ACCESS (SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE)

#define must(cond)                                                                                 \
	((cond) ? (void)0                                                                          \
		: (fprintf(stderr, "%s:%d: failed: %s (%s)\n", __FILE__, __LINE__, #cond,          \
			   strerror(errno)),                                                       \
			  abort()))

struct own_server {
	const struct smv_transport *t;
	struct smv_domain *domain, *foreign;
	struct smv_region *regions[REGIONS_MAX];
	unsigned int nr_regions;
	struct smv_listener *listener;
	unsigned char *mem;
	atomic_uint access;
	atomic_int nr_connected, nr_disconnected, nr_notified;
	_Atomic(struct smv_conn *) conn;
	_Atomic unsigned char seen;
	pthread_t later, flood;
	useconds_t flood_pause_us;
	atomic_bool flood_stop;
	atomic_uint flood_sent;
};

/* --- its callbacks -------------------------------------------------------------------------- */

static int on_connect(void *ctx, struct smv_conn *conn, const void *data, size_t len,
	struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	struct own_server *s = ctx;

	if (!s->access || len != 6 || memcmp(data, "ticket", 6) != 0)
		return -EACCES;
	*domain = s->domain;
	*access = s->access;
	*conn_ctx = s;
	s->conn = conn;
	s->nr_connected++;
	return 0;
}

static void on_notify(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t imm)
{
	struct own_server *s = conn_ctx;

	(void)ctx;
	s->seen = s->mem[0];
	s->nr_notified++;
	smv_conn_notify(conn, imm + 1);
}

static void on_disconnected(void *ctx, void *conn_ctx, struct smv_conn *conn)
{
	struct own_server *s = conn_ctx;

	(void)ctx;
	(void)conn;
	s->nr_disconnected++;
}

/* --- orders --------------------------------------------------------------------------------- */

static int64_t add_region(struct own_server *s, struct smv_domain *domain, unsigned int access,
	struct smv_region_info *info)
{
	unsigned int i = s->nr_regions++;

	must(i < REGIONS_MAX);
	must(smv_region_register(domain, s->mem, SERVER_SIZE, access, &s->regions[i]) == 0);
	smv_region_info(s->regions[i], info);
	return i;
}

static void drop_region(struct own_server *s, uint64_t i)
{
	must(i < s->nr_regions);
	if (s->regions[i])
		smv_region_deregister(s->regions[i]);
	s->regions[i] = NULL;
}

static void start(struct own_server *s, const char *text, struct server_answer *answer)
{
	const struct smv_listener_handler handler = {s, on_connect, on_notify, on_disconnected};
	struct smv_error err = {0};
	struct smv_addr addr;

	must(smv_addr_parse(text, true, &addr, NULL) == 0);
	s->t = smv_transport_find(addr.transport);
	s->access = FULL_ACCESS;
	s->mem = calloc(1, SERVER_SIZE);
	must(s->t && s->mem && smv_domain_create(s->t, &s->domain) == 0);
	add_region(s, s->domain, FULL_ACCESS, &answer->info);
	if (smv_listen(s->t, &addr, &handler, &s->listener, &answer->addr, &err) < 0)
		smv_error_print(&err);
	must(s->listener);
}

static void destroy_domain(struct own_server *s)
{
	smv_domain_destroy(s->domain);
	s->domain = NULL;
	s->regions[0] = NULL; /* it went with its domain */
}

static int64_t stop(struct own_server *s)
{
	if (s->listener)
		smv_listener_close(s->listener);
	s->listener = NULL;
	for (unsigned int i = 0; i < s->nr_regions; i++)
		drop_region(s, i);
	if (s->foreign)
		smv_domain_destroy(s->foreign);
	if (s->domain)
		smv_domain_destroy(s->domain);
	free(s->mem);
	return s->nr_connected - s->nr_disconnected;
}

static int64_t register_more(struct own_server *s, unsigned int access, bool in_foreign_domain,
	struct smv_region_info *info)
{
	if (in_foreign_domain && !s->foreign)
		must(smv_domain_create(s->t, &s->foreign) == 0);
	return add_region(s, in_foreign_domain ? s->foreign : s->domain, access, info);
}

static void *deregister_later(void *arg)
{
	struct own_server *s = arg;

	smv_sleep_ms(30);
	drop_region(s, 0);
	memset(s->mem, 0xaa, SERVER_SIZE); /* nobody else may touch it now */
	return NULL;
}

static void *flood_main(void *arg)
{
	struct own_server *s = arg;

	while (!s->flood_stop) {
		if (smv_conn_notify(s->conn, s->flood_sent) == 0)
			s->flood_sent++;
		usleep(s->flood_pause_us);
	}
	return NULL;
}

static int64_t stop_flood(struct own_server *s)
{
	s->flood_stop = true;
	pthread_join(s->flood, NULL);
	return s->flood_sent;
}

static int64_t first_other(const struct own_server *s, unsigned char byte, uint64_t len)
{
	for (uint64_t i = 0; i < len && i < SERVER_SIZE; i++)
		if (s->mem[i] != byte)
			return (int64_t)i;
	return -1;
}

static void count(const struct own_server *s, struct server_counters *counters)
{
	*counters = (struct server_counters){
		s->nr_connected, s->nr_disconnected, s->nr_notified, s->seen};
}

static void perform(struct own_server *s, const struct server_order *o, void *data,
	struct server_answer *answer)
{
	int64_t *value = &answer->value;

	memset(answer, 0, sizeof(*answer));
	must(o->kind != SERVER_PEEK && o->kind != SERVER_POKE
			? o->len == 0
			: o->len <= SERVER_SIZE && o->a <= SERVER_SIZE - o->len);
	switch (o->kind) {
	case SERVER_START:
		start(s, o->text, answer);
		break;
	case SERVER_STOP:
		*value = stop(s);
		break;
	case SERVER_PEEK:
		memcpy(data, s->mem + o->a, o->len);
		break;
	case SERVER_POKE:
		memcpy(s->mem + o->a, data, o->len);
		break;
	case SERVER_FILL:
		memset(s->mem, (int)o->a, SERVER_SIZE);
		break;
	case SERVER_FIRST_OTHER:
		*value = first_other(s, (unsigned char)o->a, o->b);
		break;
	case SERVER_COUNTERS:
		count(s, &answer->counters);
		break;
	case SERVER_ALLOW:
		s->access = (unsigned int)o->a;
		break;
	case SERVER_REGISTER:
		*value = register_more(s, (unsigned int)o->a, o->b != 0, &answer->info);
		break;
	case SERVER_DEREGISTER:
		drop_region(s, o->a);
		break;
	case SERVER_DEREGISTER_LATER:
		must(pthread_create(&s->later, NULL, deregister_later, s) == 0);
		break;
	case SERVER_WAIT_LATER:
		must(pthread_join(s->later, NULL) == 0);
		break;
	case SERVER_CLOSE_LISTENER:
		smv_listener_close(s->listener);
		s->listener = NULL;
		break;
	case SERVER_DESTROY_DOMAIN:
		destroy_domain(s);
		break;
	case SERVER_CLOSE_CONN:
		smv_conn_close(s->conn);
		break;
	case SERVER_NOTIFY:
		*value = smv_conn_notify(s->conn, (uint32_t)o->a);
		break;
	case SERVER_FLOOD:
		s->flood_pause_us = (useconds_t)o->a;
		must(pthread_create(&s->flood, NULL, flood_main, s) == 0);
		break;
	case SERVER_FLOOD_SENT:
		*value = s->flood_sent;
		break;
	case SERVER_FLOOD_STOP:
		*value = stop_flood(s);
		break;
	case SERVER_STATS:
		smv_domain_stats(s->domain, &answer->stats);
		break;
	}
}

/* --- elsewhere ------------------------------------------------------------------------------ */

static void send_all(int fd, const void *data, size_t len)
{
	must(len == 0 || send(fd, data, len, MSG_NOSIGNAL) == (ssize_t)len);
}

/* False: the other end has hung up. */
static bool recv_all(int fd, void *data, size_t len)
{
	ssize_t n = len ? recv(fd, data, len, MSG_WAITALL) : 0;

	must(n == 0 || n == (ssize_t)len);
	return n == (ssize_t)len;
}

void server_serve(int fd)
{
	struct own_server s = {0};
	unsigned char *data = malloc(SERVER_SIZE);
	struct server_answer answer;
	struct server_order o;

	must(data);
	while (recv_all(fd, &o, sizeof(o))) {
		must(o.len <= SERVER_SIZE);
		if (o.kind == SERVER_POKE)
			must(recv_all(fd, data, o.len));
		perform(&s, &o, data, &answer);
		send_all(fd, &answer, sizeof(answer));
		if (o.kind == SERVER_PEEK)
			send_all(fd, data, o.len);
	}
	free(data);
}

static struct server_answer ask(const struct server *s, const struct server_order *o, void *data)
{
	struct server_answer answer;

	if (s->own) {
		perform(s->own, o, data, &answer);
		return answer;
	}
	send_all(s->fd, o, sizeof(*o));
	if (o->kind == SERVER_POKE)
		send_all(s->fd, data, o->len);
	must(recv_all(s->fd, &answer, sizeof(answer)));
	if (o->kind == SERVER_PEEK)
		must(recv_all(s->fd, data, o->len));
	return answer;
}

/* It may just be starting. */
static int connect_patiently(const struct addrinfo *ai)
{
	for (int tries = 0;; tries++) {
		int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		must(fd >= 0);
		if (connect(fd, ai->ai_addr, ai->ai_addrlen) == 0)
			return fd;
		must(errno == ECONNREFUSED && tries < 200);
		close(fd);
		smv_sleep_ms(100);
	}
}

static int reach(const char *where)
{
	const struct timeval timeout = {.tv_sec = ANSWER_TIMEOUT_S};
	const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
	struct addrinfo *ai;
	char host[64];
	int port, fd;

	must(sscanf(where, "%63[^:]:%d", host, &port) == 2);
	must(getaddrinfo(host, strchr(where, ':') + 1, &hints, &ai) == 0);
	fd = connect_patiently(ai);
	must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) == 0);
	freeaddrinfo(ai);
	return fd;
}

/* --- what tests call ------------------------------------------------------------------------ */

struct server_answer server_call(
	const struct server *s, enum server_order_kind kind, uint64_t a, uint64_t b)
{
	const struct server_order o = {.kind = kind, .a = a, .b = b};

	return ask(s, &o, NULL);
}

void server_peek(const struct server *s, uint64_t offset, void *data, uint32_t len)
{
	const struct server_order o = {.kind = SERVER_PEEK, .a = offset, .len = len};

	ask(s, &o, data);
}

void server_poke(const struct server *s, uint64_t offset, const void *data, uint32_t len)
{
	const struct server_order o = {.kind = SERVER_POKE, .a = offset, .len = len};

	ask(s, &o, (void *)data);
}

bool server_is_elsewhere(void)
{
	return getenv("SMEMV_TEST_SERVER") != NULL;
}

/* Where it listens. The address of an RDMA device comes from outside, as does that of another host.
 */
static void say_where(const char *transport, bool here, char *text, size_t len)
{
	const char *host = getenv("SMEMV_TEST_VERBS");

	if (strcmp(transport, "mem") == 0)
		snprintf(text, len, "mem:test");
	else if (strcmp(transport, "tcp") == 0 && (here || !host))
		snprintf(text, len, "tcp:127.0.0.1:0");
	else
		snprintf(text, len, strchr(host, ':') ? "%s:[%s]:0" : "%s:%s:0", transport, host);
}

static void begin(struct server *s, const char *transport, bool here)
{
	struct server_order o = {.kind = SERVER_START};
	struct server_answer answer;

	smv_log_set_level(SMV_LOG_ERROR); /* refused accesses are on purpose here */
	memset(s, 0, sizeof(*s));
	s->t = smv_transport_find(transport);
	s->fd = -1;
	if (here)
		must(s->own = calloc(1, sizeof(*s->own)));
	else
		s->fd = reach(getenv("SMEMV_TEST_SERVER"));
	say_where(transport, here, o.text, sizeof(o.text));
	answer = ask(s, &o, NULL);
	s->info = answer.info;
	s->addr = answer.addr;
}

void server_start(struct server *s, const char *transport)
{
	begin(s, transport, !server_is_elsewhere());
}

void server_start_here(struct server *s, const char *transport)
{
	begin(s, transport, true);
}

void server_stop(struct server *s)
{
	must(server_call(s, SERVER_STOP, 0, 0).value == 0);
	free(s->own);
	if (s->fd >= 0)
		close(s->fd);
}
