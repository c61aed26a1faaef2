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

/** smv_allow_list_check - SMV_REFUSED with the first offender's QOM type and id and the remedy:
 * reasons "device-not-allowed", "backend-not-allowed", "cache-direct", "ram-backend". */
int smv_allow_list_check(struct smv_qmp *qmp, struct smv_error *err);

#endif
