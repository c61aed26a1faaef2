/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU punches out of its RAM files while a pager serves them: the C library's fallocate()
 * and madvise() are ours, and hand such a punch over instead of making it. The pager records that
 * the page is zero, and only then makes the hole: a hole without a record is a loss.
 *
 * States, of all files together (who):
 *
 *   NOBODY   -> TAKEN      a pager takes the discards (helper thread)
 *   TAKEN    -> TAKEN      another one does; who waits for an answer of the former asks again
 *   TAKEN    -> ORPHANED   the socket is at its end: the pager died (a thread that discards)
 *   ORPHANED -> TAKEN      its successor takes them; who waited asks again
 *   TAKEN, ORPHANED -> NOBODY   given back in order: who waits punches by itself
 *
 * ORPHANED, threads of QEMU that discard wait, as they do that touch a page.
 */
#ifndef SMV_VMM_SHIM_DISCARDS_H
#define SMV_VMM_SHIM_DISCARDS_H

#include "vmm/shim_proto.h"

/** shim_discards_take - discards in @files go to the pager at @fd, which is ours from now on.
 * @nr_files: 0: QEMU punches by itself, @fd is -1. Helper thread only. */
void shim_discards_take(int fd, const struct smv_shim_file *files, uint32_t nr_files);

#endif
