/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VM_NAME_MAX 64

int smv_vm_name_check(const char *name, struct smv_error *err)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t len = strlen(name);

	if (len && len <= VM_NAME_MAX && strspn(name, allowed) == len && strcmp(name, ".") != 0 &&
		strcmp(name, "..") != 0)
		return 0;
	return smv_fail(err, SMV_INVALID, "vm-name",
		"A name has 1 to 64 letters, digits, dots, underscores and dashes.",
		"'%.80s' is no name for a VM", name);
}

static int join(
	char *path, const char *dir, const char *vm, const char *file, struct smv_error *err)
{
	int n = snprintf(
		path, SMV_RUNTIME_PATH_MAX, "%s/%s%s%s", dir, vm, file[0] ? "/" : "", file);

	if (n < SMV_RUNTIME_PATH_MAX)
		return 0;
	return smv_fail(err, SMV_INVALID, "path-too-long",
		"Choose a shorter --runtime-dir or a shorter name.",
		"socket path '%.200s/%s/%s' has %d bytes, a socket address takes %d", dir, vm, file,
		n, SMV_RUNTIME_PATH_MAX - 1);
}

int smv_runtime_dir_default(char *dir, struct smv_error *err)
{
	const char *base = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");

	if (!base || base[0] != '/')
		return smv_fail(err, SMV_INVALID, "runtime-dir",
			"Pass --runtime-dir, or set XDG_RUNTIME_DIR to a directory of your own.",
			"there is no default runtime directory: XDG_RUNTIME_DIR is not set");
	return join(dir, base, "smemv/vms", "", err);
}

int smv_runtime_paths(
	const char *dir, const char *vm, char *qmp_path, char *shim_path, struct smv_error *err)
{
	char fallback[SMV_RUNTIME_PATH_MAX];
	int r = smv_vm_name_check(vm, err);

	if (!r && !dir) {
		r = smv_runtime_dir_default(fallback, err);
		dir = fallback;
	}
	if (!r && qmp_path)
		r = join(qmp_path, dir, vm, "qmp.sock", err);
	if (!r && shim_path)
		r = join(shim_path, dir, vm, "shim.sock", err);
	return r;
}
