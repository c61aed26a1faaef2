/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: who may use which part of the arena. Each lease has a transport domain of its own with
 * one region per segment, so what opens one lease opens no other.
 *
 * Memory is zero whenever a lease gets it: the arena starts as zeros, and a lease that ended, in
 * whatever way, keeps its extents until a background thread has zeroed them.
 *
 * Every change is in the list of leases (lease_file.h) before it is answered, and before it can
 * have an effect that the next daemon must know of. A table that is made over an arena with leases
 * offers these again, registered anew; those that were just being made or released are zeroed.
 *
 * Every function may be called from any thread. Those that change a lease fill a
 * struct smv_lease_info with its state afterwards (@info may be NULL).
 */
#ifndef SMV_MEMSERVER_LEASE_H
#define SMV_MEMSERVER_LEASE_H

#include "common/error.h"
#include "memserver/arena.h"
#include "memserver/lease_file.h"
#include "transport/ticket.h"
#include "transport/transport.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_LEASE_TTL_DEFAULT_MS 60000
#define SMV_LEASE_ORPHAN_DEFAULT_MS 60000
#define SMV_SEGMENT_MAX SMV_GIB /* registration.h says when they are smaller */

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
	uint64_t expires_in_ms;    /* 0 unless PROVISIONAL */
	uint64_t since_renewal_ms; /* since it was made, renewed, held, fenced, or taken over */
	uint64_t generation;       /* of the server: for the nonces of tickets */
	const struct smv_transport *transport; /* NULL: of a former daemon, being zeroed */
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

/** smv_lease_table_create - @arena stays the caller's and must outlive the table. Takes over the
 * leases that a former daemon left in it, which takes as long as registering them. Starts a thread
 * that ends leases whose time is over and one that zeroes memory.
 * @orphan_after_ms: when a HELD lease that nobody renews becomes ORPHANED; 0: after 60 s */
int smv_lease_table_create(struct smv_arena *arena, uint32_t orphan_after_ms,
	struct smv_lease_table **table, struct smv_error *err);

/** smv_lease_table_stop - stop both threads; afterwards no lease ends by itself, and none is made:
 * smv_lease_create() that is preparing one gives up with SMV_CANCELLED after the segments that are
 * just being registered. To be called before the listeners close. */
void smv_lease_table_stop(struct smv_lease_table *table);

/** smv_lease_table_destroy - free everything; what is in use stays in the arena's list. No
 * connection may be left: close the listeners before. NULL is fine. */
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

/** smv_lease_renew - its owner is alive: a PROVISIONAL lease has its full time again, a HELD one is
 * no orphan, and an ORPHANED one becomes HELD. */
int smv_lease_renew(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err);

/** smv_lease_hold - from now on the lease does not expire. Counts as a renewal. */
int smv_lease_hold(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err);

/**
 * smv_lease_fence - end every connection of an epoch below @epoch and let no new one in.
 *
 * After the return none of their writes can take effect any more. The nonces of tickets of the new
 * epoch start at 1 again. Counts as a renewal. SMV_TIMEOUT: a connection has not ended yet; call
 * again.
 */
int smv_lease_fence(struct smv_lease_table *table, uint64_t id, uint32_t epoch,
	struct smv_lease_info *info, struct smv_error *err);

/** smv_lease_release - after the return nobody can reach the lease's memory; it counts as free
 * later, when it is zeroed. */
int smv_lease_release(struct smv_lease_table *table, uint64_t id, struct smv_error *err);

/** smv_lease_release_unheld - the same, but SMV_REFUSED, with the owner's name, for a lease that is
 * HELD or ORPHANED: somebody's memory goes with it. */
int smv_lease_release_unheld(struct smv_lease_table *table, uint64_t id, struct smv_error *err);

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
