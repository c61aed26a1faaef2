/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks whose host files are open with O_DIRECT (cache.direct=on): their DMA goes past the page
 * tables, so while a VM is tracked or split they are opened again without, and afterwards as
 * before.
 *
 * QEMU drains a node's requests itself for that and exchanges its file descriptor; the guest
 * notices nothing. It is done by qemu-io's "reopen", by way of the human monitor, which changes the
 * one option and leaves all others as they are. QMP's blockdev-reopen resets all that is not given,
 * which nobody can tell from outside (discard, locking, auto-read-only), and it refuses the nodes
 * of -drive, whose generated names it takes for a change. aio=native cannot be changed by either;
 * it stays, and copies from then on, since the kernel does buffered requests in io_submit() itself.
 *
 * Works on a VM that runs, and on one that waits for a migration: its nodes are inactive, nobody
 * has taken their locks.
 */
#ifndef SMV_VMM_DISKS_H
#define SMV_VMM_DISKS_H

#include "common/error.h"
#include "vmm/qmp.h"

#include <jansson.h>

/** smv_disks_find - which block nodes must be reopened: @record gets a new array of {"node",
 * "driver", "file"}, empty when there is none. Nothing is changed; write it to a journal first. */
int smv_disks_find(struct smv_qmp *qmp, json_t **record, struct smv_error *err);

/** smv_disks_reopen - open those of @record without O_DIRECT. After a failure smv_disks_put_back()
 * restores what was changed. */
int smv_disks_reopen(struct smv_qmp *qmp, const json_t *record, struct smv_error *err);

/** smv_disks_put_back - with O_DIRECT again. Nodes that are so already, that are gone, or that have
 * another file by now, are left alone. Tries all; the first failure is the error. */
int smv_disks_put_back(struct smv_qmp *qmp, const json_t *record, struct smv_error *err);

#endif
