/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side of a migration.
 *
 *   PREPARING -> RECEIVING   leases, map and ring are there
 *   RECEIVING -> CONFIRMED   the maps agree, the source is fenced, faults are served
 *   CONFIRMED -> COMMITTED   the destination has loaded the device state: it owns the VM, for good
 *   PREPARING, RECEIVING, CONFIRMED -> ABORTED   the source owns the VM, for good
 *
 * Commit and abort are one compare-and-swap of this state: exactly one of them wins.
 */
#ifndef SMV_PAGERD_MIGRATION_H
#define SMV_PAGERD_MIGRATION_H

#include "common/error.h"
#include "rpc/rpc.h"
#include "smemv/v1/pager.pb-c.h"
#include "transport/transport.h"

#include <stdbool.h>

struct smv_vm;
struct smv_migration;

/* Where this pager takes hot pages: its data listeners' addresses, and the host that peers know. */
struct smv_data_endpoint {
	const struct smv_transport *transport;
	struct smv_listener *listener;
	struct smv_addr advertised;
};

/** smv_migration_listen - open a data listener for hot pages; before any migration. */
int smv_migration_listen(const struct smv_addr *addr, const char *advertise, struct smv_error *err);
void smv_migration_unlisten(void);
/** smv_migration_data_address - the advertised address of the i-th listener, or NULL. */
const struct smv_addr *smv_migration_data_address(size_t i);

/** smv_migration_is - whether @m has this id. */
bool smv_migration_is(struct smv_migration *m, const char *id);
/** smv_migration_remember - the VM goes, its migration's outcome stays known; smv_migration_recall
 * - 0 and the outcome, or -ENOENT. */
void smv_migration_remember(struct smv_migration *m);
int smv_migration_recall(const char *id, Smemv__V1__MigrationVerdict *verdict);
void smv_migration_free(struct smv_migration *m);

int smv_migration_prepare(struct smv_vm *vm, const Smemv__V1__PrepareMigrationRequest *request,
	Smemv__V1__PrepareMigrationResponse *response, struct smv_error *err);
/** smv_migration_plan - what smv_migration_prepare() would do, and all that it would refuse. */
void smv_migration_plan(struct smv_vm *vm, const Smemv__V1__PrepareMigrationRequest *request,
	Smemv__V1__PlanMigrationResponse *response);
int smv_migration_report(struct smv_vm *vm, const Smemv__V1__ReportPagesRequest *request,
	uint64_t *applied, struct smv_error *err);
int smv_migration_start_incoming(struct smv_vm *vm, char **uri, struct smv_error *err);
int smv_migration_confirm(
	struct smv_vm *vm, const Smemv__V1__ConfirmMapRequest *request, struct smv_error *err);
/** smv_migration_commit - wait up to @timeout_ms for the destination to load the device state, then
 * commit. Ends early when @call's caller has gone. */
int smv_migration_commit(struct smv_vm *vm, const struct smv_rpc_call *call,
	unsigned int timeout_ms, Smemv__V1__MigrationVerdict *verdict, struct smv_error *err);

/** smv_migration_abort - @verdict may be NULL. Takes the VM's lock. */
void smv_migration_abort(struct smv_vm *vm, const char *why, Smemv__V1__MigrationVerdict *verdict);
void smv_migration_verdict(struct smv_vm *vm, Smemv__V1__MigrationVerdict *verdict);

/** smv_migration_tick - abort when the source has not been heard of for too long; let a committed
 * VM run that does not yet. */
void smv_migration_tick(struct smv_vm *vm);

#endif
