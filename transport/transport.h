/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-sided data transports: one interface, several implementations ("verbs", "tcp", "mem").
 * Nothing above this header names a transport.
 *
 * The model is that of RDMA reliable connections. A *domain* (protection domain) holds the
 * *regions* (registered memory) that the peers of its connections may read and write. A
 * *connection* belongs to one domain; its peer names memory by (rkey, address) and no code of the
 * owner runs for a read or a write. Connections are ordered: requests posted on one connection take
 * effect in order, and a read posted after a write on the same connection sees it.
 *
 * Threads. A domain and its regions may be used from any thread; several may register at a time.
 * A client connection belongs to one thread at a time, and so does everything called on it. A
 * server connection lives in the transport's own threads and reaches its owner by the callbacks of
 * struct smv_listener_handler; only smv_conn_notify() and smv_conn_close() may be called on it from
 * anywhere.
 *
 * Errors are 0 or -errno. A connection that failed once stays failed: every request in flight
 * completes with an error, later posts return -ENOTCONN; close it and connect anew.
 */
#ifndef SMV_TRANSPORT_TRANSPORT_H
#define SMV_TRANSPORT_TRANSPORT_H

#include "common/addr.h"
#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What rdma_cm carries in a connection request, 56 bytes, without the verbs transport's own eight:
 * the ticket must fit. */
#define SMV_PRIVATE_DATA_MAX 48

/* Scatter/gather elements of one request that every transport takes. A transport that can do
 * fewer in one work request splits it. */
#define SMV_SGE_MAX 64

/* The largest request: SMV_SGE_MAX pages of 64 KiB, or one element of this size. */
#define SMV_REQUEST_MAX (4u << 20)

enum smv_access {
	SMV_ACCESS_REMOTE_READ = 1,
	SMV_ACCESS_REMOTE_WRITE = 2,
};

struct smv_transport;
struct smv_domain;
struct smv_region;
struct smv_listener;
struct smv_conn;

struct smv_region_info {
	uint64_t rkey; /* names the region to peers of the domain's connections */
	uint64_t
		remote_addr; /* what a peer adds its offset to (verbs: a virtual address; tcp: 0) */
};

struct smv_sge {
	void *addr;
	uint32_t len;
	struct smv_region *region; /* the local region that @addr lies in; same domain */
};

enum smv_op { SMV_OP_READ, SMV_OP_WRITE };

/* The local side is scattered, the remote side is one contiguous range. The struct and the sge
 * array may go when smv_conn_post() has returned; the memory may not until the completion. Until
 * then what a read's memory holds is undefined, and no other request in flight may use it. */
struct smv_request {
	enum smv_op op;
	uint64_t cookie; /* comes back in the completion */
	uint64_t rkey;
	uint64_t remote_addr;
	const struct smv_sge *sge;
	unsigned int nr_sge;
};

struct smv_completion {
	uint64_t cookie;
	int status; /* 0; -EACCES remote access error (the connection ends); -ETIMEDOUT deadline
		       passed; -ECONNRESET peer gone; -ECANCELED flushed after another request's
		       failure */
};

/* Called in a transport's thread (connect() of "mem": in the thread that connects). Callbacks must
 * not call smv_listener_close() nor smv_domain_destroy(). NULL for notify and disconnected is fine.
 */
struct smv_listener_handler {
	void *ctx;
	/*
	 * A peer asks to connect. Look at its private data and name the domain it may reach and
	 * how. Return 0, or -errno to refuse politely: the peer's smv_connect() then returns
	 * -EACCES. *conn_ctx comes back in the other callbacks. @conn may be kept until
	 * disconnected() and be given to smv_conn_notify() and smv_conn_close() from any thread.
	 * The domain may be destroyed as soon as this has returned, but a destroyer that runs at
	 * the same time waits for it: so hold no lock in smv_domain_destroy() that this callback
	 * takes.
	 */
	int (*connect)(void *ctx, struct smv_conn *conn, const void *private_data,
		size_t private_len, struct smv_domain **domain, unsigned int *access,
		void **conn_ctx);
	/* The peer sent a notification. Everything it wrote before on this connection is visible.
	 */
	void (*notify)(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t imm);
	/* The connection ended, whoever ended it: the peer's requests touch no memory any more.
	 * @conn must not be used after the return. Not called for a connection that was refused. */
	void (*disconnected)(void *ctx, void *conn_ctx, struct smv_conn *conn);
};

struct smv_conn_options {
	unsigned int depth;              /* requests in flight at most; 0: 128 */
	unsigned int timeout_ms;         /* deadline of each request; 0: 5000 */
	unsigned int connect_timeout_ms; /* of the connecting; 0: as timeout_ms */
	bool events_only; /* smv_conn_arm() never says "poll on" for what is only expected */
};

struct smv_conn_stats {
	uint64_t bytes_read;    /* payload of completed reads */
	uint64_t bytes_written; /* payload of completed writes */
};

/* Payload that peers moved in and out of a domain. Where no CPU sees the operations (verbs), the
 * counters are 0 and *counted is false. */
struct smv_domain_stats {
	bool counted;
	uint64_t bytes_received;
	uint64_t bytes_sent;
};

/**
 * smv_transport_find - the transport of that name ("tcp", "mem", "verbs"), NULL if not built in.
 */
const struct smv_transport *smv_transport_find(const char *name);
const char *smv_transport_name(const struct smv_transport *t);

/* Which transport somebody wants: "auto", the name of one, or, what is left of "auto" on its way
 * from host to host, a list of names that each end with a comma. */
struct smv_transport_wish {
	char names[32];
	char why[320]; /* why a better one is not in the list any more, or empty */
};

/* Somebody to connect to, and the data addresses that it offers, each naming its transport. */
struct smv_transport_peer {
	const char *name; /* for people, e.g. "sub-host 10.0.0.3:7000" */
	const char *const *addresses;
	size_t nr_addresses;
	size_t index; /* gets which of them to connect to */
};

/** smv_transport_wish_is_valid - whether @names can be the names of a wish. */
bool smv_transport_wish_is_valid(const char *names);

/** smv_transport_narrow - take what does not fit out of "auto"; a name stays what it is. @fits says
 * why it does not. smv_transport_fits_here(): whether this host can use it. */
void smv_transport_narrow(struct smv_transport_wish *wish,
	bool (*fits)(void *ctx, const char *name, char *why, size_t why_len), void *ctx);
bool smv_transport_fits_here(void *ctx, const char *name, char *why, size_t why_len);

/**
 * smv_transport_choose - pick the transport that leads to all of @peers.
 * @reason: a sentence for people why this one was chosen, e.g. "tcp: verbs cannot be used on this
 *          host: no RDMA device on this host"
 *
 * Asks the network whether an RDMA route leads there, so it takes up to a second for each peer.
 */
int smv_transport_choose(const struct smv_transport_wish *wish, struct smv_transport_peer *peers,
	size_t nr_peers, const struct smv_transport **t, char *reason, size_t reason_len,
	struct smv_error *err);

/** smv_transport_available - whether this host can use @t; if not, says why. */
bool smv_transport_available(const struct smv_transport *t, char *why, size_t why_len);

/** smv_transport_pins - whether registering memory pins it, which takes long: worth doing in
 * several threads, a region each. */
bool smv_transport_pins(const struct smv_transport *t);

/** smv_transport_region_max - the most bytes that one region can have on this host. */
uint64_t smv_transport_region_max(const struct smv_transport *t);

/** smv_domain_create / smv_domain_destroy - a domain is destroyed after its regions and
 * connections. Destroying a domain that still has connections ends them first and waits until no
 * transport thread touches its memory any more. Regions that are left go with it. */
int smv_domain_create(const struct smv_transport *t, struct smv_domain **domain);
void smv_domain_destroy(struct smv_domain *domain);
void smv_domain_stats(struct smv_domain *domain, struct smv_domain_stats *stats);

/** smv_region_register - make @len bytes at @addr reachable with @access (0: local use only).
 * The memory stays the caller's and must outlive the region. Pins it on verbs. */
int smv_region_register(struct smv_domain *domain, void *addr, size_t len, unsigned int access,
	struct smv_region **region);
/** smv_region_register_ms - how long registering @bytes may take at most, for deadlines of those
 * who wait for another host's registering: at 256 MiB a second. It is quicker but for small pages
 * on a slow CPU. */
unsigned int smv_region_register_ms(uint64_t bytes);
/** smv_region_deregister - afterwards no peer can reach the memory, also not with requests that
 * are under way: waits for those, and ends connections that do not finish them soon. */
void smv_region_deregister(struct smv_region *region);
void smv_region_info(const struct smv_region *region, struct smv_region_info *info);

/** smv_listen_prepare - connections will be accepted at @addr. To be said before the first region
 * is registered that these shall reach, if there are regions before there are listeners: so
 * what has several devices knows by which of them peers come. Whatever is wrong with @addr, the
 * listener will say. */
void smv_listen_prepare(const struct smv_transport *t, const struct smv_addr *addr);
/** smv_listen - accept connections at @addr. Port 0 takes a free one; @bound gets the real address.
 */
int smv_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err);
/** smv_listener_close - end the listener and all connections it accepted; no callback runs after
 * the return. */
void smv_listener_close(struct smv_listener *listener);

/** smv_connect - connect; blocks up to the time-out of @options. -EACCES: the peer refused. */
int smv_connect(struct smv_domain *domain, const struct smv_addr *addr, const void *private_data,
	size_t private_len, const struct smv_conn_options *options, struct smv_conn **conn,
	struct smv_error *err);

/**
 * smv_conn_post - queue requests; never blocks.
 *
 * Returns how many were taken (less than @n when the connection has its full depth in flight), or
 * -ENOTCONN, or -EINVAL when the first of them breaks a rule (payload 1..SMV_REQUEST_MAX, at most
 * SMV_SGE_MAX elements, each inside its region, of this domain). Each request taken completes
 * exactly once through smv_conn_poll().
 */
int smv_conn_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n);

/**
 * smv_conn_poll - make progress and collect completions; never blocks.
 *
 * Returns the number of completions filled in (0: none yet), or -ENOTCONN when the connection has
 * failed and every completion has been delivered.
 */
int smv_conn_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max);

/**
 * smv_conn_arm - prepare for sleeping on smv_conn_fd().
 * @fd_events: gets the poll(2) events to wait for
 * @timeout_ms: gets the time until the next request's deadline, -1 for none: poll again by then
 *
 * Returns 1 when there is something to poll already or, where polling is cheap and quicker than a
 * wake-up (verbs), when there soon will be: poll on, do not sleep. 0 otherwise.
 */
int smv_conn_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms);
int smv_conn_fd(const struct smv_conn *conn);

/** smv_conn_wait - sleep until smv_conn_poll() may have something, at most @timeout_ms (-1: no
 * limit). Returns 1, 0 when the time is over, or -EINTR. */
int smv_conn_wait(struct smv_conn *conn, int timeout_ms);

/**
 * smv_conn_notify - send 32 bits to the peer, ordered behind everything posted before.
 *
 * On a client connection it is queued like a request and flushed by smv_conn_poll(); it has no
 * completion. On a server connection it is sent at once, or not at all: it may wait 100 ms for
 * another thread's sending. Returns 0, -ENOTCONN, or -EAGAIN when the queue (64 at a client) or the
 * socket is full or the connection is not established yet.
 */
int smv_conn_notify(struct smv_conn *conn, uint32_t imm);

/** smv_conn_next_notification - take a notification from the peer of a client connection that
 * smv_conn_poll() has received. Returns 1 and *imm, or 0. A peer that sends more than 1024 which
 * nobody takes loses the connection. */
int smv_conn_next_notification(struct smv_conn *conn, uint32_t *imm);

unsigned int smv_conn_in_flight(const struct smv_conn *conn);
void smv_conn_stats(const struct smv_conn *conn, struct smv_conn_stats *stats);

/** smv_conn_close - on a client connection: end it and free it; requests in flight never complete,
 * and the transport does not touch their memory any more. On a server connection, from any thread:
 * end it; disconnected() follows. */
void smv_conn_close(struct smv_conn *conn);

#endif
