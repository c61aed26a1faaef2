/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a transport implements; transport.h is what its users see. A new transport is a file that
 * ends with SMV_TRANSPORT_REGISTER(id) = {...} and a line in SMV_TRANSPORTS of registry.c. (The
 * list is what links it in: a linker drops an object of a static library that nobody names.)
 *
 * The objects that users hold begin with the structs below; a transport embeds them.
 */
#ifndef SMV_TRANSPORT_PROVIDER_H
#define SMV_TRANSPORT_PROVIDER_H

#include "transport/transport.h"

#include <pthread.h>

#define SMV_TRANSPORT_REGISTER(id) const struct smv_transport smv_transport_##id

#define smv_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

struct smv_domain {
	const struct smv_transport *transport;
};

struct smv_region {
	struct smv_domain *domain;
};

struct smv_listener {
	const struct smv_transport *transport;
};

struct smv_conn {
	const struct smv_conn_ops *ops;
};

struct smv_transport {
	const char *name;

	/* Registering pins memory and takes long: worth several threads. */
	bool pins;

	/* Whether this host can use it; if not, @why says so. Does not block. */
	bool (*available)(char *why, size_t why_len);
	/* Whether this host has what leads to @addr over it, asked by "auto"; if not, @why says so.
	 * May block for a second. NULL: always. */
	bool (*reachable)(const struct smv_addr *addr, char *why, size_t why_len);

	/* The transport allocates, the user owns. */
	int (*domain_create)(const struct smv_transport *t, struct smv_domain **domain);
	/* Blocks until no thread of the transport touches the domain's memory; must end connections
	 * whose peers hang rather than wait for them. */
	void (*domain_destroy)(struct smv_domain *domain);
	/* Does not block. */
	void (*domain_stats)(struct smv_domain *domain, struct smv_domain_stats *stats);

	/* The largest region in bytes; NULL: no limit. */
	uint64_t (*region_max)(void);
	/* May take long (pinning). The memory stays the user's. */
	int (*region_register)(struct smv_domain *domain, void *addr, size_t len,
		unsigned int access, struct smv_region **region);
	/* Blocks for requests under way, but not for a hung peer. Frees @region. */
	void (*region_deregister)(struct smv_region *region);
	void (*region_info)(const struct smv_region *region, struct smv_region_info *info);

	/* See smv_listen_prepare(). NULL: there is nothing to prepare. */
	void (*prepare)(const struct smv_transport *t, const struct smv_addr *addr);
	/* *handler is copied. Name resolution may block. */
	int (*listen)(const struct smv_transport *t, const struct smv_addr *addr,
		const struct smv_listener_handler *handler, struct smv_listener **listener,
		struct smv_addr *bound, struct smv_error *err);
	/* Blocks until the last callback has returned; frees @listener and its connections. */
	void (*listener_close)(struct smv_listener *listener);

	/* Blocks up to @options->timeout_ms. @options has no zeros any more. */
	int (*connect)(struct smv_domain *domain, const struct smv_addr *addr,
		const void *private_data, size_t private_len,
		const struct smv_conn_options *options, struct smv_conn **conn,
		struct smv_error *err);
};

/*
 * What can be done with a connection. Nothing here may block, except that close() of a client may
 * wait for its own memory accesses. A filter (filter.h) is another table in front of a connection.
 * Server connections have only notify and close.
 */
struct smv_conn_ops {
	int (*post)(struct smv_conn *conn, const struct smv_request *requests, unsigned int n);
	int (*poll)(struct smv_conn *conn, struct smv_completion *completions, unsigned int max);
	int (*arm)(struct smv_conn *conn, short *fd_events, int *timeout_ms);
	int (*fd)(const struct smv_conn *conn);
	int (*next_notification)(struct smv_conn *conn, uint32_t *imm);
	unsigned int (*in_flight)(const struct smv_conn *conn);
	void (*stats)(const struct smv_conn *conn, struct smv_conn_stats *stats);
	int (*notify)(struct smv_conn *conn, uint32_t imm);
	/* Client: frees it. Server: only ends it; the transport frees it after disconnected(). */
	void (*close)(struct smv_conn *conn);
};

/** smv_transport_thread - start a thread of a transport: all signals blocked, they are for the
 * program's own threads. @name has at most 15 characters. 0 or -errno. */
int smv_transport_thread(pthread_t *thread, void *(*run)(void *), void *arg, const char *name);

#endif
