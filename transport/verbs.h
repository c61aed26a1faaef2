/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA: reliable connections (RC queue pairs) of InfiniBand and RoCE, set up by rdma_cm. What the
 * parts of the transport share:
 *
 *   verbs.c         the table, whether a host can use it, the handshake
 *   verbs_device.c  devices and their asynchronous events
 *   verbs_domain.c  protection domains and memory registrations
 *   verbs_qp.c      a queue pair with its completion queue
 *   verbs_client.c, verbs_server.c  the two ends
 *
 * A region's rkey differs from device to device, but must be told to peers before they connect. So
 * a process gives an *export slot*, 0 or 1, to each device by which it lets peers in; the 64 bits
 * of smv_region_info.rkey are the two slots' rkeys, and the handshake tells the client its half.
 *
 * The queue pairs are not rdma_create_qp()'s, so that their access flags are right before the peer
 * can send and their time-outs are the connection's.
 */
#ifndef SMV_TRANSPORT_VERBS_H
#define SMV_TRANSPORT_VERBS_H

#include "transport/provider.h"

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#define SMV_VERBS_EXPORTS 2

/* --- the handshake -------------------------------------------------------------------------- */

/*
 * Eight bytes at the start of the private data of a connection request, reply and rejection:
 * 0 magic "SMVV"  4 u8 version  5 u8 private_len or status  6 u8 access  7 u8 export slot
 * The length is there because rdma_cm pads private data.
 */
#define SMV_VERBS_VERSION 1
#define SMV_VERBS_HELLO_SIZE 8

enum smv_verbs_status {
	SMV_VERBS_OK = 0,
	SMV_VERBS_REFUSED = 1,
	SMV_VERBS_VERSION_MISMATCH = 2,
	SMV_VERBS_NO_RESOURCES = 3,
};

struct smv_verbs_hello {
	uint8_t version;
	uint8_t value;  /* request: private_len; else enum smv_verbs_status */
	uint8_t access; /* what the peer allows, enum smv_access */
	uint8_t slot;
};

void smv_verbs_put_hello(uint8_t *out, const struct smv_verbs_hello *hello);
/** smv_verbs_parse_hello - 0, or -EPROTO: that is no smemv. Judges nothing but the magic. */
int smv_verbs_parse_hello(const void *in, size_t len, struct smv_verbs_hello *hello);

/* --- devices -------------------------------------------------------------------------------- */

struct smv_verbs_qp;

struct smv_verbs_device {
	struct ibv_context *ctx;
	struct ibv_device_attr attr;
	unsigned int index; /* below smv_verbs_nr_devices() */
	bool usable;        /* InfiniBand or RoCE */
	int slot;           /* its export slot or -1; under a lock of verbs_device.c */
	bool watched;
	pthread_mutex_t lock;
	struct smv_verbs_qp *qps; /* under lock */
};

/** smv_verbs_nr_devices - how many rdma_cm knows; opens them at the first call. */
unsigned int smv_verbs_nr_devices(void);

/** smv_verbs_find_device - by its context, e.g. rdma_cm_id->verbs; NULL when it cannot be used. */
struct smv_verbs_device *smv_verbs_find_device(const struct ibv_context *ctx);

/** smv_verbs_export - give @dev an export slot: returns it, or -ENOSPC. */
int smv_verbs_export(struct smv_verbs_device *dev);

/** smv_verbs_exported - the device with that export slot or NULL. When no device has one yet, the
 * first with an active port get them. */
struct smv_verbs_device *smv_verbs_exported(int slot);

/** smv_verbs_any_active - a usable device has a port that is up. */
bool smv_verbs_any_active(void);

/* --- domains -------------------------------------------------------------------------------- */

/* A server connection as its domain sees it. */
struct smv_verbs_peer {
	/* End the connection soon. Called with the domain locked: must not block or call back. */
	void (*abort)(struct smv_verbs_peer *peer);
	struct smv_domain *domain;
	unsigned int access;
	struct smv_verbs_peer *next, **pprev;
};

int smv_verbs_domain_create(const struct smv_transport *t, struct smv_domain **domain);
void smv_verbs_domain_destroy(struct smv_domain *domain);
void smv_verbs_domain_stats(struct smv_domain *domain, struct smv_domain_stats *stats);
uint64_t smv_verbs_region_max(void);
int smv_verbs_region_register(struct smv_domain *domain, void *addr, size_t len,
	unsigned int access, struct smv_region **region);
void smv_verbs_region_deregister(struct smv_region *region);
void smv_verbs_region_info(const struct smv_region *region, struct smv_region_info *info);

/** smv_verbs_domain_pd - the domain's protection domain on @dev, made and filled with the domain's
 * regions when it is new. NULL and errno. */
struct ibv_pd *smv_verbs_domain_pd(struct smv_domain *domain, struct smv_verbs_device *dev);

/** smv_verbs_admit - ask the handler's connect() and put @peer into the domain that it names, in
 * one step against smv_domain_destroy(). Returns what connect() returned; on 0
 * smv_verbs_peer_detach() must follow some time. */
int smv_verbs_admit(struct smv_verbs_peer *peer, const struct smv_listener_handler *handler,
	struct smv_conn *conn, const void *private_data, size_t private_len, void **conn_ctx);

/** smv_verbs_peer_detach - leave the domain, which may be gone right after. */
void smv_verbs_peer_detach(struct smv_verbs_peer *peer);

/** smv_verbs_request_bytes - the payload of a request (1..SMV_REQUEST_MAX), or -EINVAL when it
 * breaks a rule of transport.h or its local memory is not in regions of @domain. */
int smv_verbs_request_bytes(const struct smv_domain *domain, const struct smv_request *request);

/** smv_verbs_lkey - the local key of a region whose domain has a protection domain on @dev. */
uint32_t smv_verbs_lkey(const struct smv_region *region, const struct smv_verbs_device *dev);

/* --- queue pairs ---------------------------------------------------------------------------- */

#define SMV_VERBS_RECV_WR UINT64_MAX /* the wr_id of receives */

struct smv_verbs_qp {
	struct smv_verbs_device *dev;
	uint8_t port;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp; /* NULL once smv_verbs_qp_stop() was called */
	bool armed;        /* the channel will tell, or has told, of the next completion */
	unsigned int send_wrs, recv_wrs; /* room of its queues */
	unsigned int max_sge, max_sge_read, max_inline;
	struct smv_verbs_qp *next, **pprev; /* under dev->lock */
};

/** smv_verbs_qp_create - @send_wrs and @recv_wrs are wishes, the device's limits bound them. The
 * queue pair waits in state RESET. 0 or -errno; then nothing is left. */
int smv_verbs_qp_create(struct smv_verbs_qp *q, struct smv_verbs_device *dev, struct ibv_pd *pd,
	const struct rdma_cm_id *id, unsigned int send_wrs, unsigned int recv_wrs);

/** smv_verbs_qp_init - to state INIT, all receives posted. @access: of the peer. */
int smv_verbs_qp_init(struct smv_verbs_qp *q, struct rdma_cm_id *id, unsigned int access);

/** smv_verbs_qp_connect - to state RTS. @read_depth: reads that the peer may have under way here
 * and we there, in this order. @timeout_ms: a lost request fails within about that time. */
int smv_verbs_qp_connect(struct smv_verbs_qp *q, struct rdma_cm_id *id, unsigned int access,
	const uint8_t read_depth[2], unsigned int timeout_ms);

/** smv_verbs_qp_flush - to state ERR: what is queued completes with errors. */
void smv_verbs_qp_flush(struct smv_verbs_qp *q);

/** smv_verbs_qp_stop - destroy the queue pair: afterwards nothing touches the memory of its
 * requests, nor reaches our memory through it. Completions that came before are gone too. */
void smv_verbs_qp_stop(struct smv_verbs_qp *q);

/** smv_verbs_qp_destroy - stop and free the rest. Fine on zeros. */
void smv_verbs_qp_destroy(struct smv_verbs_qp *q);

int smv_verbs_qp_post_recv(struct smv_verbs_qp *q, unsigned int n);

/** smv_verbs_qp_arm - ask for an event at the next completion. True when it was not armed: look
 * once more for completions that came before. */
bool smv_verbs_qp_arm(struct smv_verbs_qp *q);

/* --- the ends ------------------------------------------------------------------------------- */

void smv_verbs_prepare(const struct smv_transport *t, const struct smv_addr *addr);
int smv_verbs_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err);
void smv_verbs_listener_close(struct smv_listener *listener);
int smv_verbs_connect(struct smv_domain *domain, const struct smv_addr *addr,
	const void *private_data, size_t private_len, const struct smv_conn_options *options,
	struct smv_conn **conn, struct smv_error *err);

/** smv_verbs_reachable - whether @addr resolves to a route over an RDMA device; if not, says why.
 * Takes a second at most. */
bool smv_verbs_reachable(const struct smv_addr *addr, char *why, size_t why_len);

#endif
