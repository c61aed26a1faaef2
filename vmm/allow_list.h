/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which VMs may be split: every device and back end of the VM must be known to reach guest RAM only
 * through QEMU's page tables. What is not on the list is refused by name, also what is merely
 * unknown: DMA that bypasses the page tables loses writes silently.
 */
#ifndef SMV_VMM_ALLOW_LIST_H
#define SMV_VMM_ALLOW_LIST_H

#include "common/error.h"
#include "vmm/qmp.h"
#include "vmm/refusals.h"

#include <sys/types.h>

/** smv_allow_list_check - SMV_REFUSED with the first offender's QOM type and id and the remedy:
 * reasons "device-not-allowed", "backend-not-allowed", "cache-direct", "ram-backend". Takes the
 * process that listens at the QMP socket for QEMU. */
int smv_allow_list_check(struct smv_qmp *qmp, struct smv_error *err);

/** smv_allow_list_check_pid - the same where QEMU is known to be process @pid; <= 0: not known. */
int smv_allow_list_check_pid(struct smv_qmp *qmp, pid_t pid, struct smv_error *err);

/** smv_allow_list_collect - all offenders, with the same reasons, into @refusals. 0 also when there
 * are some; -errno with @err when QEMU does not answer. */
int smv_allow_list_collect(
	struct smv_qmp *qmp, pid_t pid, struct smv_refusals *refusals, struct smv_error *err);

/** smv_allow_list_check_blocks - block nodes only: what hot-plug and snapshots change most often,
 * and cheap, one command (1 ms). */
int smv_allow_list_check_blocks(struct smv_qmp *qmp, struct smv_error *err);

#endif
