/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Domains and regions of the transports whose accesses are made by software ("tcp", "mem"): the
 * table of regions, and the checks that a NIC makes in hardware.
 */
#ifndef SMV_TRANSPORT_DOMAIN_H
#define SMV_TRANSPORT_DOMAIN_H

#include "transport/provider.h"

/* Regions that one peer may be using at a time. */
#define SMV_PEER_HOLDS 64

/* A server connection as its domain sees it. All but abort is domain.c's. */
struct smv_peer {
	/* End the connection soon. Called with the domain locked: must not block or call back. */
	void (*abort)(struct smv_peer *peer);
	struct smv_soft_domain *domain;
	unsigned int access;
	unsigned int nr_held;
	struct smv_soft_region *held[SMV_PEER_HOLDS];
	struct smv_peer *next, **pprev;
};

/* The entries of the ops table. */
int smv_soft_domain_create(const struct smv_transport *t, struct smv_domain **domain);
void smv_soft_domain_destroy(struct smv_domain *domain);
void smv_soft_domain_stats(struct smv_domain *domain, struct smv_domain_stats *stats);
int smv_soft_region_register(struct smv_domain *domain, void *addr, size_t len, unsigned int access,
	struct smv_region **region);
void smv_soft_region_deregister(struct smv_region *region);
void smv_soft_region_info(const struct smv_region *region, struct smv_region_info *info);

/** smv_peer_admit - ask the handler's connect() and put @peer into the domain that it names, in one
 * step against smv_domain_destroy(). Returns what connect() returned; on 0 smv_peer_detach() must
 * follow some time. @transport is the connection's. */
int smv_peer_admit(struct smv_peer *peer, const struct smv_transport *transport,
	const struct smv_listener_handler *handler, struct smv_conn *conn, const void *private_data,
	size_t private_len, void **conn_ctx);

/** smv_peer_hold - check an access and keep its region from being deregistered.
 * Returns 0 and *mem, or -EACCES. At most SMV_PEER_HOLDS until smv_peer_release(). */
int smv_peer_hold(struct smv_peer *peer, enum smv_op op, uint64_t rkey, uint64_t remote_addr,
	uint32_t len, void **mem);

/** smv_peer_release - the memory of all holds is not touched any more. */
void smv_peer_release(struct smv_peer *peer);

/** smv_peer_count - payload moved, for smv_domain_stats(). */
void smv_peer_count(struct smv_peer *peer, uint64_t received, uint64_t sent);

/** smv_peer_detach - release and leave the domain, which may be gone right after. */
void smv_peer_detach(struct smv_peer *peer);

/** smv_request_bytes - the payload of a request (1..SMV_REQUEST_MAX), or -EINVAL when it breaks a
 * rule of transport.h or its local memory is not in regions of @domain. */
int smv_request_bytes(const struct smv_domain *domain, const struct smv_request *request);

#endif
