/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where smemv-run puts the sockets of a VM, so that smemv-migrate on the same host finds them by
 * the VM's name: RUNTIME-DIR/NAME/qmp.sock and RUNTIME-DIR/NAME/shim.sock.
 */
#ifndef SMV_VMM_RUNTIME_H
#define SMV_VMM_RUNTIME_H

#include "common/error.h"

#include <stddef.h>

/* The room of sockaddr_un.sun_path: no path here may be longer, its NUL included. */
#define SMV_RUNTIME_PATH_MAX 108

/** smv_vm_name_check - 1 to 64 letters, digits, '.', '_' and '-', not "." or "..". */
int smv_vm_name_check(const char *name, struct smv_error *err);

/** smv_runtime_dir_default - /run/smemv/vms for root, else $XDG_RUNTIME_DIR/smemv/vms. @dir holds
 * SMV_RUNTIME_PATH_MAX bytes. */
int smv_runtime_dir_default(char *dir, struct smv_error *err);

/**
 * smv_runtime_paths - the socket paths of a VM; nothing is created.
 * @dir: the runtime directory, NULL for the default
 * @qmp_path, @shim_path: SMV_RUNTIME_PATH_MAX bytes each; NULL when not wanted
 *
 * Fails when the name is not valid or a path does not fit a socket address.
 */
int smv_runtime_paths(
	const char *dir, const char *vm, char *qmp_path, char *shim_path, struct smv_error *err);

#endif
