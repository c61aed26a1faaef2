/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side of a migration.
 *
 *   PREPARING  -> RECEIVING   leases, map and ring are there
 *   RECEIVING  -> CONFIRMED   the maps agree, the source is fenced, faults are served
 *   CONFIRMED  -> COMMITTING  the device state is loaded, the leases are held: deciding
 *   COMMITTING -> COMMITTED   decided, durably; `cont` was sent: the destination owns the VM
 *   COMMITTING -> ABORTING    QEMU ended before `cont`, or the decision could not be written
 *   PREPARING, RECEIVING, CONFIRMED -> ABORTING -> ABORTED   the source owns the VM, for good
 *
 * To leave CONFIRMED is one compare-and-swap: commit or abort wins, not both. COMMITTING and
 * ABORTING are nobody else's business: who asks is told that it is still open, and asks again. So
 * nobody learns a verdict before it is in the log (pagerd/verdicts.h), and what was learnt stays
 * true when this process dies:
 *
 *   died when the log says   its successor
 *   OPEN                     aborts: nobody else can commit it
 *   COMMITTED                nobody was told, nothing has run: commits if QEMU lives, else aborts
 *   TOLD                     commits: the VM may have run; sends `cont` unless it was seen to run
 *   ABORTED                  goes on undoing
 */
#ifndef SMV_PAGERD_MIGRATION_H
#define SMV_PAGERD_MIGRATION_H

#include "common/error.h"
#include "pagerd/verdicts.h"
#include "rpc/rpc.h"
#include "smemv/v1/pager.pb-c.h"
#include "transport/transport.h"

#include <jansson.h>
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
/** smv_migration_recall - the verdict from the log, for a migration that no VM has any more;
 * -ENOENT.
 */
int smv_migration_recall(const char *id, Smemv__V1__MigrationVerdict *verdict);
void smv_migration_free(struct smv_migration *m);

int smv_migration_prepare(struct smv_vm *vm, const Smemv__V1__PrepareMigrationRequest *request,
	Smemv__V1__PrepareMigrationResponse *response, struct smv_error *err);
/** smv_migration_plan - what smv_migration_prepare() would do, and all that it would refuse. */
void smv_migration_plan(struct smv_vm *vm, const Smemv__V1__PrepareMigrationRequest *request,
	Smemv__V1__PlanMigrationResponse *response);
int smv_migration_report(struct smv_vm *vm, const Smemv__V1__ReportPagesRequest *request,
	uint64_t *applied, struct smv_error *err);
/* The @id of a migration of this VM that has ended, and has a successor perhaps, is refused like
 * one that was aborted. */
int smv_migration_start_incoming(
	struct smv_vm *vm, const char *id, char **uri, struct smv_error *err);
int smv_migration_confirm(
	struct smv_vm *vm, const Smemv__V1__ConfirmMapRequest *request, struct smv_error *err);
/** smv_migration_commit - wait up to @timeout_ms for the destination to load the device state, then
 * commit. Ends early when @call's caller has gone. */
int smv_migration_commit(struct smv_vm *vm, const struct smv_rpc_call *call, const char *id,
	unsigned int timeout_ms, Smemv__V1__MigrationVerdict *verdict, struct smv_error *err);

/** smv_migration_abort - unless it has ended or is committed. Takes the VM's lock.
 * @id: NULL: whichever it is, then @verdict is NULL
 * @verdict: NULL, or gets what smv_migration_verdict() tells
 *
 * -ENOENT as there: the VM's migration has another id by now, and was left alone. */
int smv_migration_abort(
	struct smv_vm *vm, const char *id, const char *why, Smemv__V1__MigrationVerdict *verdict);
/** smv_migration_verdict - -ENOENT: @id is not the VM's migration any more, see
 * smv_migration_recall(). */
int smv_migration_verdict(struct smv_vm *vm, const char *id, Smemv__V1__MigrationVerdict *verdict);

/** smv_migration_abort_locked - the same with the VM's lock held, and also out of COMMITTING. */
void smv_migration_abort_locked(struct smv_vm *vm, const char *why);

/** smv_migration_check_silence - abort when the source has not been heard of for too long. */
void smv_migration_check_silence(struct smv_vm *vm);
/** smv_migration_run_locked - let a committed VM run that does not yet; the VM's lock is held. */
void smv_migration_run_locked(struct smv_vm *vm);

/* --- across pagers ------------------------------------------------------------------------ */

json_t *smv_migration_to_json(const struct smv_migration *m);
/** smv_migration_from_json - the VM's migration as an earlier pager left it; NULL: none. */
void smv_migration_from_json(struct smv_vm *vm, const json_t *json);
/** smv_migration_verdict_of - what the log says of it; NULL: SMV_VERDICT_NONE. */
enum smv_verdict_state smv_migration_verdict_of(struct smv_migration *m);
/** smv_migration_restored - it is committed; the next tick does what is left to do. */
void smv_migration_restored(struct smv_vm *vm);
/** smv_migration_abort_restored - abort it and undo what is left of it. */
void smv_migration_abort_restored(struct smv_vm *vm, const char *why);

#endif
