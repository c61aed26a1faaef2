/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of the transport tests: one region of SERVER_SIZE bytes behind a listener that lets
 * "ticket" in, and what its callbacks saw. It is in the test's own process or, when
 * SMEMV_TEST_SERVER is HOST:PORT, in a transport_server program there; the tests do not notice.
 *
 * What goes wrong here is no matter of the transport's and ends the test.
 */
#ifndef SMV_TESTS_TRANSPORT_SERVER_H
#define SMV_TESTS_TRANSPORT_SERVER_H

#include "transport/transport.h"

#define SERVER_SIZE (8u << 20)

enum server_order_kind {
	SERVER_START,       /* @text: address to listen at; answers info, addr */
	SERVER_STOP,        /* answers 0 when every connection got its disconnected() */
	SERVER_PEEK,        /* @a: offset, @len: length */
	SERVER_POKE,        /* @a: offset, @len: length */
	SERVER_FILL,        /* @a: byte */
	SERVER_FIRST_OTHER, /* @a: byte, @b: of so many; answers the first that differs or -1 */
	SERVER_COUNTERS,    /* answers counters */
	SERVER_ALLOW,       /* @a: access of the next connections, 0: they are refused */
	SERVER_REGISTER,    /* @a: access, @b: 0 own, 1 foreign domain; answers an index, info */
	SERVER_DEREGISTER,  /* @a: index; 0 is the region of the start */
	SERVER_DEREGISTER_LATER, /* the region of the start, in 30 ms, then all its bytes are 0xaa
				  */
	SERVER_WAIT_LATER,       /* until that is done */
	SERVER_CLOSE_LISTENER,
	SERVER_DESTROY_DOMAIN,
	SERVER_CLOSE_CONN, /* the newest connection, from outside */
	SERVER_NOTIFY,     /* @a: what; answers smv_conn_notify()'s return */
	SERVER_FLOOD,      /* @a: pause in us; the newest connection gets 0, 1, 2... */
	SERVER_FLOOD_SENT, /* answers how many were sent so far */
	SERVER_FLOOD_STOP, /* answers how many were sent */
	SERVER_STATS,      /* answers stats */
};

struct server_counters {
	int nr_connected, nr_disconnected, nr_notified;
	unsigned char seen; /* the first byte when the last notification came */
};

struct server_order {
	enum server_order_kind kind;
	uint32_t len;
	uint64_t a, b;
	char text[80];
};

struct server_answer {
	int64_t value;
	struct smv_region_info info;
	struct smv_addr addr;
	struct server_counters counters;
	struct smv_domain_stats stats;
};

struct own_server;

struct server {
	const struct smv_transport *t;
	struct smv_region_info info;
	struct smv_addr addr;
	struct own_server *own; /* NULL: elsewhere */
	int fd;                 /* the way there */
};

/** server_start - @transport at an address of its own host; server_start_here() in this process. */
void server_start(struct server *s, const char *transport);
void server_start_here(struct server *s, const char *transport);
void server_stop(struct server *s);

/** server_is_elsewhere - server_start() starts it in a transport_server program. */
bool server_is_elsewhere(void);

/** server_call - an order without data. */
struct server_answer server_call(
	const struct server *s, enum server_order_kind kind, uint64_t a, uint64_t b);
void server_peek(const struct server *s, uint64_t offset, void *data, uint32_t len);
void server_poke(const struct server *s, uint64_t offset, const void *data, uint32_t len);

static inline struct server_counters server_counters(const struct server *s)
{
	return server_call(s, SERVER_COUNTERS, 0, 0).counters;
}

/** server_serve - be the server of whoever is at the other end of @fd, until it hangs up. */
void server_serve(int fd);

#endif
