/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leases of one VM on its sub-hosts: asked for, renewed, held, fenced and released over the
 * control channel. Not thread-safe: the VM's lock guards it, but for smv_leases_ticket() and
 * smv_leases_find_door().
 */
#ifndef SMV_CLIENT_LEASES_H
#define SMV_CLIENT_LEASES_H

#include "client/backing.h"
#include "common/error.h"
#include "rpc/rpc.h"

#include <pthread.h>
#include <stdbool.h>

struct smv_lease {
	struct smv_rpc_client *client;
	char id[20];
	uint8_t key[SMV_TICKET_KEY_SIZE];
	char incarnation[40]; /* of the server's memory when the lease was made */
	uint64_t generation;  /* of the server, as the backing's segments are */
	bool created;
	bool held;
	bool failing; /* its last renewal or release failed; said so once */
	uint64_t renewed_ns; /* when its server last knew it, or it was loaded */
};

struct smv_leases {
	struct smv_lease *leases; /* one per sub-host of the backing, same index */
	unsigned int nr;
	uint32_t epoch;
	unsigned int timeout_ms; /* of each call to a sub-host */
	pthread_mutex_t nonce_lock;
	uint64_t nonce;                    /* counts tickets, without the generation */
	const struct smv_backing *backing; /* that it is bound to */
	const char *vm;                    /* for events; NULL: nobody's */
};

/** smv_leases_room - what the main host does not hold, plus slack: the free room that eviction
 * keeps, and slots that pages keep when they come back, so that they can leave again without a
 * write. A multiple of the extent size. */
uint64_t smv_leases_room(uint64_t ram_bytes, uint64_t budget_bytes);
/** smv_leases_least_budget - the smallest budget for which @room_bytes suffice, whatever else a
 * budget must be; @ram_bytes when none does. */
uint64_t smv_leases_least_budget(uint64_t ram_bytes, uint64_t room_bytes);

/** smv_leases_probe - ask every sub-host whether it is there and fits; nothing is leased. */
int smv_leases_probe(const char *const *addresses, unsigned int nr,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	struct smv_error *err);

/* What smv_leases_create() would do. An error with code SMV_OK is none. */
struct smv_leases_plan {
	struct {
		char name[64];
		uint64_t free_bytes;
		uint64_t share_bytes; /* 0 while anything is wrong */
		struct smv_error error;
	} hosts[SMV_SUB_HOSTS_MAX];
	const struct smv_transport *transport; /* NULL: none fits */
	char reason[200];
	struct smv_error transport_error;
	struct smv_error room_error;
};

/** smv_leases_plan - ask every sub-host, lease nothing. The arguments are those of
 * smv_leases_create(); @plan is zeroed by the caller. */
void smv_leases_plan(const char *const *addresses, unsigned int nr, uint64_t bytes,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	struct smv_leases_plan *plan);

/**
 * smv_leases_create - find room for @bytes (a multiple of the extent size) and lease it.
 * @backing: gets the sub-hosts with their segments, the chosen transport and the extent table
 * @timeout_ms: of each call, now and later
 * @reason: gets why this transport was chosen
 *
 * Too little room is SMV_NO_ROOM with the numbers of every sub-host. On failure nothing stays
 * leased.
 */
int smv_leases_create(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, unsigned int nr, const char *owner, uint64_t bytes,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	char *reason, size_t reason_len, struct smv_error *err);

/**
 * smv_leases_create_more - the same for a VM that has leases: @bytes more from the same sub-hosts,
 * over the same transport, in the same epoch.
 * @of: may be in use by any thread; neither it nor its backing is changed
 * @leases, @backing: get the new ones alone
 *
 * SMV_REFUSED when there would be more than SMV_SUB_HOSTS_MAX leases.
 */
int smv_leases_create_more(const struct smv_leases *of, const char *owner, uint64_t bytes,
	struct smv_leases *leases, struct smv_backing *backing, struct smv_error *err);

/** smv_leases_bind - make @backing's connections ask @leases for tickets and the way in. For leases
 * and backing that were not made by smv_leases_create(), but loaded. */
void smv_leases_bind(struct smv_leases *leases, struct smv_backing *backing);

/** smv_leases_renew - keep provisional leases, and tell the sub-hosts that the owner of held ones
 * is alive: every 15 s, as long as the leases are used. Failures are logged once. */
void smv_leases_renew(struct smv_leases *leases, const struct smv_backing *backing);
/** smv_leases_hold - provisional -> held where not done yet; true when all are. */
bool smv_leases_hold(struct smv_leases *leases, const struct smv_backing *backing);

/**
 * smv_leases_fence - raise the epoch everywhere: what connected before cannot write any more.
 * @backing: gets the segments as they are now
 *
 * No connection of ours may be open. -ENODATA (SMV_DATA_LOSS): a sub-host does not know its lease
 * any more. On failure all of it is to be repeated.
 */
int smv_leases_fence(struct smv_leases *leases, struct smv_backing *backing, struct smv_error *err);

/**
 * smv_leases_fence_each - fence all sub-hosts at once, each for itself, at the present epoch.
 *
 * @fenced: one per sub-host; those that are true already are left alone, those that answer become
 * true. One that is not fenced refuses data connections, because the tickets are of an epoch that
 * it has not: it is never used unfenced.
 * @refresh: also take over the registrations of the segments as the server tells them; only while
 * no thread uses the backing
 * @timeout_ms: for all of them together
 *
 * Returns how many are not fenced yet, and in @err why one of them is not.
 */
unsigned int smv_leases_fence_each(struct smv_leases *leases, struct smv_backing *backing,
	bool *fenced, bool refresh, unsigned int timeout_ms, struct smv_error *err);

/**
 * smv_leases_release_try - give back what is not given back yet.
 *
 * Returns how many *held* leases are left because their sub-host could not be told: nothing else
 * frees them, so call again later. Provisional ones that could not be told expire by themselves and
 * are not counted. Failures are logged once. @leases stays usable for the next try and for
 * smv_leases_release().
 */
unsigned int smv_leases_release_try(struct smv_leases *leases, const struct smv_backing *backing);
/** smv_leases_release - try once, then free what hangs in @leases. Returns how many held leases are
 * left at their sub-hosts, for good. */
unsigned int smv_leases_release(struct smv_leases *leases, const struct smv_backing *backing);

/** smv_leases_ticket - an smv_ticket_source for the present epoch and the servers' generations that
 * the backing's segments are of; ctx is the struct smv_leases. */
int smv_leases_ticket(
	void *ctx, unsigned int sub_host, enum smv_role role, struct smv_ticket *ticket);

/** smv_leases_find_door - an smv_door_finder; ctx is the struct smv_leases, which was bound to its
 * backing. Data is lost when the server has another incarnation or does not know the lease. */
int smv_leases_find_door(void *ctx, unsigned int sub_host, enum smv_role role,
	struct smv_door *door, struct smv_error *err);

#endif
