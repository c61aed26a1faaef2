/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line: what the user wrote and what smemv-run adds. */
#ifndef SMV_VMM_QEMU_ARGS_H
#define SMV_VMM_QEMU_ARGS_H

#include "common/error.h"

#include <stdbool.h>

struct smv_qemu_args {
	char **argv; /* ends with NULL; smv_qemu_args_release() */
	bool daemonize;
};

/**
 * smv_qemu_args_make - add a QMP monitor of our own at @qmp_path; the user's monitors stay.
 * @user: the program and its arguments, ending with NULL
 * @wait_for_pager: also -S and -incoming defer, because the pager decides when the VM runs
 *
 * SMV_INVALID when the user's -incoming contradicts @wait_for_pager.
 */
int smv_qemu_args_make(char *const *user, const char *qmp_path, bool wait_for_pager,
	struct smv_qemu_args *args, struct smv_error *err);
void smv_qemu_args_release(struct smv_qemu_args *args);

#endif
