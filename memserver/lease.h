/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: who may use which part of the arena. Each lease has a transport domain of its own with
 * one region per segment, so what opens one lease opens no other.
 *
 * Memory is zero whenever a lease gets it: the arena starts as zeros, and a lease that ended, in
 * whatever way, keeps its extents until a background thread has zeroed them.
 *
 * Every function may be called from any thread. Those that change a lease fill a
 * struct smv_lease_info with its state afterwards (@info may be NULL).
 */
#ifndef SMV_MEMSERVER_LEASE_H
#define SMV_MEMSERVER_LEASE_H

#include "common/error.h"
#include "memserver/arena.h"
#include "transport/ticket.h"
#include "transport/transport.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_LEASE_OWNER_MAX 200
#define SMV_LEASE_TTL_DEFAULT_MS 60000
#define SMV_SEGMENT_MAX SMV_GIB /* registration.h says when they are smaller */

/* A lease must fit into one message of the control channel, and all leases without their segments
 * into another one. */
#define SMV_LEASE_SEGMENTS_MAX 4096
#define SMV_LEASES_MAX 512

/* The numbers are those of smemv.v1.LeaseState. */
enum smv_lease_state {
	SMV_LEASE_PREPARING = 1,
	SMV_LEASE_PROVISIONAL,
	SMV_LEASE_HELD,
	SMV_LEASE_RELEASING,
	SMV_LEASE_GONE,
};

struct smv_lease_table;

struct smv_lease_segment {
	uint64_t rkey;
	uint64_t remote_addr;
	uint64_t size_bytes;
	uint64_t arena_offset;
};

struct smv_lease_info {
	uint64_t id;
	char owner[SMV_LEASE_OWNER_MAX + 1];
	enum smv_lease_state state;
	uint32_t epoch;
	uint64_t size_bytes;
	struct smv_lease_segment *segments; /* freed by smv_lease_info_clear() */
	size_t nr_segments;
	uint64_t age_ms;
	uint64_t expires_in_ms; /* 0 unless PROVISIONAL */
	uint32_t nr_connections;
	uint64_t prepare_ms; /* what registering its memory took; 0 while PREPARING */
};

struct smv_lease_request {
	const char *owner; /* for people: printable ASCII */
	uint64_t size_bytes;
	uint32_t epoch;
	uint32_t ttl_ms; /* 0: SMV_LEASE_TTL_DEFAULT_MS */
	const struct smv_transport *transport;
};

struct smv_lease_totals {
	uint64_t capacity_bytes;
	uint64_t free_bytes;
	uint64_t zeroing_bytes; /* of leases that ended */
	uint32_t nr_leases;
	uint64_t bytes_received; /* by leases of now and before */
	uint64_t bytes_sent;
	bool bytes_counted; /* false: some transport cannot count */
};

/** smv_lease_table_create - @arena stays the caller's and must outlive the table. Starts a thread
 * that ends leases whose time is over and one that zeroes memory. */
int smv_lease_table_create(
	struct smv_arena *arena, struct smv_lease_table **table, struct smv_error *err);

/** smv_lease_table_stop - stop both threads; afterwards no lease ends by itself, and none is made:
 * smv_lease_create() that is preparing one gives up with SMV_CANCELLED after the segments that are
 * just being registered. To be called before the listeners close. */
void smv_lease_table_stop(struct smv_lease_table *table);

/** smv_lease_table_destroy - free everything, with a warning for each lease that is still in use.
 * No connection may be left: close the listeners before. NULL is fine. */
void smv_lease_table_destroy(struct smv_lease_table *table);

void smv_lease_table_totals(struct smv_lease_table *table, struct smv_lease_totals *totals);

/** smv_lease_create - a PROVISIONAL lease. @key gets SMV_TICKET_KEY_SIZE bytes, told only here.
 * SMV_NO_ROOM with the numbers when not enough memory is free. Takes as long as registering the
 * memory does. */
int smv_lease_create(struct smv_lease_table *table, const struct smv_lease_request *request,
	struct smv_lease_info *info, uint8_t *key, struct smv_error *err);

int smv_lease_get(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err);

/** smv_lease_list - all leases; the caller clears each and frees the array. */
int smv_lease_list(struct smv_lease_table *table, struct smv_lease_info **infos, size_t *nr);

/** smv_lease_renew - give a PROVISIONAL lease its full time again; a HELD one needs none. */
int smv_lease_renew(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err);

/** smv_lease_hold - from now on the lease does not expire. */
int smv_lease_hold(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err);

/**
 * smv_lease_fence - end every connection of an epoch below @epoch and let no new one in.
 *
 * After the return none of their writes can take effect any more. The nonces of tickets of the new
 * epoch start at 1 again. SMV_TIMEOUT: a connection has not ended yet; call again.
 */
int smv_lease_fence(struct smv_lease_table *table, uint64_t id, uint32_t epoch,
	struct smv_lease_info *info, struct smv_error *err);

/** smv_lease_release - after the return nobody can reach the lease's memory; it counts as free
 * later, when it is zeroed. */
int smv_lease_release(struct smv_lease_table *table, uint64_t id, struct smv_error *err);

void smv_lease_info_clear(struct smv_lease_info *info);

/* --- for the listeners -------------------------------------------------------------------- */

/**
 * smv_lease_admit - let in a connection that shows a ticket; -EACCES, with a line in the log, when
 * the ticket is not good for it. The arguments are those of smv_listener_handler.connect.
 */
int smv_lease_admit(struct smv_lease_table *table, const struct smv_transport *transport,
	struct smv_conn *conn, const void *private_data, size_t private_len,
	struct smv_domain **domain, unsigned int *access, void **conn_ctx);

/** smv_lease_disconnected - the connection that got @conn_ctx has ended. */
void smv_lease_disconnected(struct smv_lease_table *table, void *conn_ctx);

#endif
