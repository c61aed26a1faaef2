/* SPDX-License-Identifier: Apache-2.0 */
/* Talking to the shim inside QEMU. A client belongs to one thread at a time. */
#ifndef SMV_VMM_SHIM_CLIENT_H
#define SMV_VMM_SHIM_CLIENT_H

#include "common/error.h"
#include "vmm/shim_proto.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct smv_shim;

/** smv_shim_open - connect to the shim's socket and compare versions; @pid gets QEMU's pid. */
int smv_shim_open(const char *path, struct smv_shim **shim, pid_t *pid, struct smv_error *err);
void smv_shim_close(struct smv_shim *shim);

/** smv_shim_get_uffd - a userfaultfd of QEMU's mm; the caller closes it. @fresh: made by this call,
 * UFFDIO_API not done yet. */
int smv_shim_get_uffd(struct smv_shim *shim, int *uffd, bool *fresh, struct smv_error *err);
int smv_shim_close_uffd(struct smv_shim *shim);

/** smv_shim_zap - drop the page-table entries of ranges of QEMU's address space. */
int smv_shim_zap(struct smv_shim *shim, const struct smv_shim_range *ranges, size_t nr_ranges);

/**
 * smv_shim_take_discards - what QEMU punches out of these files is asked for at @fd, as struct
 * smv_shim_discard; its threads wait for the answers. The caller closes @fd.
 *
 * When @fd is closed, also by the end of the process, they wait until somebody else takes the
 * discards or gives them back.
 */
int smv_shim_take_discards(struct smv_shim *shim, const struct smv_shim_file *files,
	size_t nr_files, int *fd, struct smv_error *err);
/** smv_shim_give_back_discards - QEMU punches by itself again; threads of it that wait do, too. */
int smv_shim_give_back_discards(struct smv_shim *shim);

#endif
