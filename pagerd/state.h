/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What outlives the pager of a VM, in its state directory:
 *
 *   NAME.vm.json       the process, its sockets and RAM, the leases, how far its migration is
 *   NAME.extents.json  where the slots are; written again only when there are more of them
 *   NAME.map           the page map, changed word by word
 *
 * The JSON files are replaced as a whole (common/files.h), each time before what they say can
 * have an effect that a successor must know of: before the RAM is registered, before
 * `migrate-incoming`, before a new epoch is used, before the commit.
 *
 * Leases that are added to a running VM's (pagerd/budget.h) are in NAME.vm.json before they are
 * held, and held before NAME.extents.json names them. So a lease with extents is always known, and
 * one without was never used: it is given back by whoever finds it.
 */
#ifndef SMV_PAGERD_STATE_H
#define SMV_PAGERD_STATE_H

#include "pagerd/vm.h"

#include <jansson.h>

/** smv_vm_save - write NAME.vm.json; the VM's lock is held. */
int smv_vm_save(struct smv_vm *vm, struct smv_error *err);
int smv_vm_save_extents(const struct smv_vm *vm, struct smv_error *err);

/** smv_vm_load_extents - the extent table into @vm->backing, whose sub-hosts are there already. */
int smv_vm_load_extents(struct smv_vm *vm, struct smv_error *err);

/** smv_vm_open_ram - the RAM blocks of NAME.vm.json, each file found in the process and looked at:
 * it must be the one of then, mapped where it was. */
int smv_vm_open_ram(struct smv_vm *vm, const json_t *state, struct smv_error *err);

/** smv_vms_take_over - go on with the VMs of a pager that ended, all at once; before any call is
 * served. One that cannot be taken over waits, and its `trouble` says why. */
void smv_vms_take_over(void);
/** smv_vms_take_over_rest - call every second or so: try again, by a thread of its own, those that
 * run here and could not be taken over. */
void smv_vms_take_over_rest(void);
/** smv_vms_take_over_end - wait for that thread. */
void smv_vms_take_over_end(void);

#endif
