/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slowing a VM down from outside: its vCPU threads stand still for a share of each 100 ms, all
 * other threads of QEMU run on. (QEMU's own auto-converge works only in migrations in which QEMU
 * itself sends the RAM.)
 *
 *   running (1 - share) -> PTRACE_SEIZE, PTRACE_INTERRUPT -> stopped (share) -> PTRACE_DETACH
 *
 * Threads are traced only while they stand still. If we die the kernel lets go of them, and the VM
 * runs on by itself. A vCPU that stands still may hold QEMU's lock: commands to QEMU may then wait
 * for the rest of the share.
 */
#ifndef SMV_VMM_THROTTLE_H
#define SMV_VMM_THROTTLE_H

#include "common/error.h"
#include "vmm/qmp.h"

#include <stdint.h>
#include <sys/types.h>

#define SMV_THROTTLE_MAX_PERCENT 99
#define SMV_THROTTLE_MAX_THREADS 1024

struct smv_throttle;

/** smv_throttle_start - throttle threads @tids of process @pid. 0 percent: not yet. Tries once
 * whether it is permitted; the errors are those of vmm/inject.h. */
int smv_throttle_start(pid_t pid, const pid_t *tids, size_t nr_tids, unsigned int percent,
	struct smv_throttle **throttle, struct smv_error *err);

/** smv_throttle_start_vm - the same for the vCPUs of QEMU process @pid. */
int smv_throttle_start_vm(struct smv_qmp *qmp, pid_t pid, unsigned int percent,
	struct smv_throttle **throttle, struct smv_error *err);

/** smv_throttle_set - from the next period on; any thread may call it. */
void smv_throttle_set(struct smv_throttle *throttle, unsigned int percent);

/** smv_throttle_stopped_ns - for how long threads stood still until now, summed over all of them.
 */
uint64_t smv_throttle_stopped_ns(const struct smv_throttle *throttle);

/** smv_throttle_stop - let them run; on return none of them is traced. NULL is fine. */
void smv_throttle_stop(struct smv_throttle *throttle);

#endif
