/* SPDX-License-Identifier: Apache-2.0 */
/* What the two sides of the tcp transport share. */
#ifndef SMV_TRANSPORT_TCP_H
#define SMV_TRANSPORT_TCP_H

#include "transport/provider.h"

#include <netdb.h>
#include <sys/uio.h>

int smv_tcp_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err);
void smv_tcp_listener_close(struct smv_listener *listener);
int smv_tcp_connect(struct smv_domain *domain, const struct smv_addr *addr,
	const void *private_data, size_t private_len, const struct smv_conn_options *options,
	struct smv_conn **conn, struct smv_error *err);

/** smv_tcp_resolve - getaddrinfo(3); free *list with freeaddrinfo(). */
int smv_tcp_resolve(
	const struct smv_addr *addr, int flags, struct addrinfo **list, struct smv_error *err);

/** smv_tcp_tune - socket options of a data connection. */
void smv_tcp_tune(int fd);

/** smv_tcp_recv_exact - receive exactly @len bytes until @deadline_ns (CLOCK_MONOTONIC), on a
 * blocking or non-blocking socket; -ETIMEDOUT, -ECONNRESET at the end of the stream. */
int smv_tcp_recv_exact(int fd, void *buf, size_t len, uint64_t deadline_ns);

/** smv_tcp_wait - poll(2) for @events until @deadline_ns; 0 or -ETIMEDOUT. */
int smv_tcp_wait(int fd, short events, uint64_t deadline_ns);

/** smv_tcp_skip - drop the first @bytes of an iovec array in place; returns what is left of @n,
 * the rest begins at *iov. */
size_t smv_tcp_skip(struct iovec **iov, size_t n, size_t bytes);

#endif
