/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QEMU process whose memory can be tracked from outside. There are two ways in: the shim that
 * smemv-run loaded into it, and ptrace for one that was started by anybody else. A handle belongs
 * to one thread at a time.
 */
#ifndef SMV_VMM_GUEST_PROCESS_H
#define SMV_VMM_GUEST_PROCESS_H

#include "common/error.h"
#include "vmm/shim_proto.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct smv_guest_process;

/** smv_guest_process_open_shim - by the shim's socket, see vmm/shim_client.h. */
int smv_guest_process_open_shim(
	const char *path, struct smv_guest_process **process, struct smv_error *err);

/** smv_guest_process_open_pid - by its process id, see vmm/inject.h. Nothing is changed in it yet.
 */
int smv_guest_process_open_pid(
	pid_t pid, struct smv_guest_process **process, struct smv_error *err);

void smv_guest_process_close(struct smv_guest_process *process);

pid_t smv_guest_process_pid(const struct smv_guest_process *process);

/** smv_guest_process_is_traced - true when the way in is ptrace: each operation below stops one
 * thread of QEMU for a moment. */
bool smv_guest_process_is_traced(const struct smv_guest_process *process);

/**
 * smv_guest_process_get_uffd - a userfaultfd of QEMU's mm with kernel-mode faults; the caller
 * closes @uffd. QEMU keeps a copy open until smv_guest_process_close_uffd(), so that faults wait when we
 * die. @fresh: made by this call, UFFDIO_API not done yet.
 *
 * By ptrace it is always fresh, but for further calls on the same handle.
 */
int smv_guest_process_get_uffd(
	struct smv_guest_process *process, int *uffd, bool *fresh, struct smv_error *err);

/** smv_guest_process_close_uffd - close QEMU's copy. 0 too when there is none. */
int smv_guest_process_close_uffd(struct smv_guest_process *process);

/** smv_guest_process_uffd_number - which descriptor QEMU's copy is, for a journal; -1: none, or it
 * is the shim's, who knows by itself. */
int smv_guest_process_uffd_number(const struct smv_guest_process *process);

/** smv_guest_process_adopt_uffd - take over the copy that a dead tracer left at @number, so that
 * close_uffd() closes it. Refused when it is no userfaultfd. Nothing to do for the shim. */
int smv_guest_process_adopt_uffd(
	struct smv_guest_process *process, int number, struct smv_error *err);

/** smv_guest_process_zap - drop the page-table entries of ranges of QEMU's address space; the data
 * stays in the file. 0 or -errno. */
int smv_guest_process_zap(struct smv_guest_process *process, const struct smv_shim_range *ranges,
	size_t nr_ranges, struct smv_error *err);

/** smv_guest_process_owns_qmp - does the QMP socket at @path belong to this process? SMV_REFUSED
 * when it belongs to another one, or that cannot be seen. */
int smv_guest_process_owns_qmp(const struct smv_guest_process *process, const char *path,
	pid_t peer, struct smv_error *err);

#endif
