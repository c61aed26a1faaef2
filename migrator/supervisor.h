/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor: a process of its own that outlives a killed smemv-migrate, asks the main host who
 * owns the VM, lets the source run if it is the source, and puts back what was changed in QEMU.
 *
 *   WAITING   smemv-migrate lives: it holds the journal's lock
 *   SETTLING  the lock is ours; smv_recover(), again and again, with the lock free in between,
 * until the outcome is known
 *
 * In WAITING it also kills a smemv-migrate that neither moves nor ends while the VM stands still.
 */
#ifndef SMV_MIGRATOR_SUPERVISOR_H
#define SMV_MIGRATOR_SUPERVISOR_H

#include "common/error.h"

#include <sys/types.h>

/** smv_supervisor_start - for a journal that this process has locked. It is a program of its own
 * ("smemv-migrate supervise"), so threads and gRPC do not matter. */
int smv_supervisor_start(
	const char *state_dir, const char *id, pid_t *supervisor, struct smv_error *err);

/** smv_supervise - what that program does; returns its exit status. */
int smv_supervise(const char *state_dir, const char *id);

#endif
