/* SPDX-License-Identifier: Apache-2.0 */
/* The destination's pager over the control channel, and what it granted. One thread at a time. */
#ifndef SMV_MIGRATOR_DEST_H
#define SMV_MIGRATOR_DEST_H

#include "client/backing.h"
#include "client/loss.h"
#include "client/pagemap.h"
#include "migrator/source.h"
#include "rpc/rpc.h"

#include <stdbool.h>

struct smv_reporter;
struct Smemv__V1__PlanMigrationResponse;

struct smv_dest {
	struct smv_rpc_client *client;
	char migration_id[33];
	bool prepared;    /* PrepareMigration was sent: there may be something to abort */
	bool granted;     /* it was answered: there is */
	bool commit_sent; /* from here on only the pager knows who owns the VM */
	struct smv_backing backing;
	struct smv_ticket tickets[SMV_SUB_HOSTS_MAX];
	bool ticket_used[SMV_SUB_HOSTS_MAX];
	uint64_t hot_credit;
	struct smv_addr hot_addr;
	struct smv_ticket hot_ticket;
	uint64_t hot_rkey, hot_ring_addr;
	char transport[16];
	char transport_reason[200];
	uint64_t last_contact_ns;
	char not_running[200];        /* committed, but the VM does not run: why; else empty */
	struct smv_error abort_error; /* why the last smv_dest_abort() has no verdict */
	smv_interrupted interrupted;  /* asked before each call but that to abort; may be NULL */

	/* Reports on their way: see smv_dest_report(). */
	struct smv_reporter *reporter;
	uint64_t sequence;
};

struct smv_prepare {
	const char *vm;
	const struct smv_guest_ram *ram;
	uint64_t budget_bytes;
	uint64_t min_budget_bytes; /* 0: budget_bytes */
	char *const *sub_hosts;
	size_t nr_sub_hosts;
	const char *transport;
	bool insecure;
	enum smv_loss_policy loss_policy;
};

/** smv_dest_new_id - a random migration id. */
int smv_dest_new_id(char id[33], struct smv_error *err);
/** smv_dest_open - no connection is made yet. */
int smv_dest_open(
	const struct smv_addr *addr, const char *id, struct smv_dest *dest, struct smv_error *err);
void smv_dest_close(struct smv_dest *dest);

/** smv_dest_prepare - leases, extents, tickets; refuses before anything moves. */
int smv_dest_prepare(
	struct smv_dest *dest, const struct smv_prepare *prepare, struct smv_error *err);

/** smv_dest_plan - what smv_dest_prepare() would do, without doing it. Free the answer with
 * smv_rpc_message_free(). */
int smv_dest_plan(struct smv_dest *dest, const struct smv_prepare *prepare,
	struct Smemv__V1__PlanMigrationResponse **answer, struct smv_error *err);

/** smv_dest_report - tell where a page went (state ZERO or COLD); sent in batches. */
int smv_dest_report(
	struct smv_dest *dest, uint64_t page, smv_page_word word, struct smv_error *err);
/** smv_dest_flush - send what is not sent yet. */
int smv_dest_flush(struct smv_dest *dest, struct smv_error *err);
/** smv_dest_keep_alive - let the pager hear of us when it has not for some seconds. */
int smv_dest_keep_alive(struct smv_dest *dest, struct smv_error *err);

/** smv_dest_start_incoming - @uri gets a malloc'ed string for QEMU's "migrate". */
int smv_dest_start_incoming(struct smv_dest *dest, char **uri, struct smv_error *err);
int smv_dest_confirm(struct smv_dest *dest, const struct smv_pagemap *map, struct smv_error *err);

enum smv_verdict {
	SMV_VERDICT_UNKNOWN,
	SMV_VERDICT_OPEN,
	SMV_VERDICT_COMMITTED,
	SMV_VERDICT_ABORTED
};

/**
 * smv_dest_commit - ask for the commit and find out what became of it, up to @timeout_ms.
 * @state: gets the destination's run state
 *
 * COMMITTED: the destination owns the VM. Otherwise @err says why; the answer may have been lost,
 * so unless it is COMMITTED the caller goes on to smv_dest_abort().
 */
enum smv_verdict smv_dest_commit(struct smv_dest *dest, unsigned int timeout_ms, char *state,
	size_t state_len, struct smv_error *err);

/** smv_dest_not_running - the error for a VM that is committed, but does not run: "not-running".
 * Returns a negative errno. */
int smv_dest_not_running(const char *why, struct smv_error *err);

/** smv_dest_abort - abort unless it is committed, asking again for up to @timeout_ms. UNKNOWN: the
 * pager did not answer. OPEN: it is committing and has not come to an end. */
enum smv_verdict smv_dest_abort(struct smv_dest *dest, const char *why, unsigned int timeout_ms,
	char *state, size_t state_len);

#endif
