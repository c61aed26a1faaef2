/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a VM's slots are: the leases on the sub-hosts and the extent table over them. Built once,
 * then only read, by any thread. Above it a slot is only a number.
 *
 * When a memserverd is started again over the same memory, its address, its rkeys and its
 * generation change, but neither leases nor extents: whoever connects again asks for the way in (a
 * struct smv_door) and keeps it for that connection.
 */
#ifndef SMV_CLIENT_BACKING_H
#define SMV_CLIENT_BACKING_H

#include "client/slots.h"
#include "common/addr.h"
#include "common/error.h"
#include "transport/ticket.h"
#include "transport/transport.h"

#define SMV_SUB_HOSTS_MAX 64

struct smv_segment {
	uint64_t rkey;
	uint64_t remote_addr;
	uint64_t size_bytes;
};

struct smv_sub_host {
	char address[SMV_ADDR_MAX]; /* control address as the operator wrote it */
	char name[72];
	struct smv_addr data_addr;
	uint64_t lease_id;
	struct smv_segment *segments;
	unsigned int nr_segments;
};

struct smv_extent {
	uint16_t sub_host;
	uint16_t segment;
	uint64_t offset_bytes;
};

/** Makes the ticket for one more connection to a sub-host; any thread. 0 or -errno. */
typedef int (*smv_ticket_source)(
	void *ctx, unsigned int sub_host, enum smv_role role, struct smv_ticket *ticket);

/* The way into one sub-host's part, good for one connection: all of it is of one generation of the
 * server, and the ticket opens no other one. */
struct smv_door {
	struct smv_addr data_addr;
	struct smv_segment *segments; /* as many as the sub-host has, for the caller to free() */
	struct smv_ticket ticket;
};

/**
 * Asks a sub-host for the way in as it is now; any thread; blocks.
 *
 * -ENODATA (SMV_DATA_LOSS): the sub-host answers, but what was there is lost.
 */
typedef int (*smv_door_finder)(void *ctx, unsigned int sub_host, enum smv_role role,
	struct smv_door *door, struct smv_error *err);

struct smv_backing {
	const struct smv_transport *transport;
	struct smv_sub_host *sub_hosts;
	unsigned int nr_sub_hosts;
	struct smv_extent *extents;
	uint64_t nr_extents;
	smv_ticket_source ticket;
	smv_door_finder find_door; /* NULL: the way in never changes */
	void *ticket_ctx;          /* of both */
};

/** smv_backing_spread - build the extent table: runs of @run extents in turn from every sub-host
 * that has room left, so that large transfers use all of them. */
int smv_backing_spread(struct smv_backing *backing, uint64_t run);

/** smv_backing_add_extents - append @nr_extents extents that lie one behind the other in a segment
 * (a table that somebody else made). -EINVAL when they do not fit the segment. */
int smv_backing_add_extents(struct smv_backing *backing, unsigned int sub_host,
	unsigned int segment, uint64_t offset_bytes, uint64_t nr_extents);

/** smv_backing_free - frees what hangs in it, not the struct. */
void smv_backing_free(struct smv_backing *backing);

/** smv_backing_first_of - a sub-host stands in the backing once for each lease on it: the first
 * index of the one that @h is. */
unsigned int smv_backing_first_of(const struct smv_backing *backing, unsigned int h);

struct smv_slot_place {
	unsigned int sub_host;
	unsigned int segment;
	uint64_t offset_bytes; /* in the segment */
	/* Of the segment as it was when the backing was made: */
	uint64_t rkey;
	uint64_t remote_addr;
};

/** smv_backing_locate - where a slot is. @slot must be below nr_extents * SMV_EXTENT_PAGES. */
struct smv_slot_place smv_backing_locate(const struct smv_backing *backing, uint64_t slot);

#endif
