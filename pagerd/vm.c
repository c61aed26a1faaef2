/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/vm.h"

#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "pagerd/migration.h"
#include "vmm/allow_list.h"
#include "vmm/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QMP_TIMEOUT_MS 5000
#define RENEW_NS (15 * SMV_NS_PER_S)
#define MAX_VMS 256

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct smv_vm *vms[MAX_VMS];
static size_t nr_vms;
static char state_dir[256];

int smv_vms_init(const char *dir, struct smv_error *err)
{
	if (snprintf(state_dir, sizeof(state_dir), "%s", dir) >= (int)sizeof(state_dir))
		return smv_fail(
			err, SMV_INVALID, "state-dir", NULL, "--state-dir '%s' is too long", dir);
	for (char *slash = strchr(state_dir + 1, '/');; slash = strchr(slash + 1, '/')) {
		if (slash)
			*slash = '\0';
		if (mkdir(state_dir, 0700) < 0 && errno != EEXIST)
			return smv_fail(err, SMV_INVALID, "state-dir",
				"Choose another --state-dir.",
				"cannot make the state directory %s: %s", state_dir,
				strerror(errno));
		if (!slash)
			return 0;
		*slash = '/';
	}
}

char *smv_vm_path(const struct smv_vm *vm, const char *suffix, char *buf, size_t len)
{
	snprintf(buf, len, "%s/%s.%s", state_dir, vm->name, suffix);
	return buf;
}

struct smv_vm *smv_vm_ref(struct smv_vm *vm)
{
	atomic_fetch_add(&vm->refs, 1);
	return vm;
}

static void unregister_uffd(struct smv_vm *vm)
{
	for (unsigned int i = 0; vm->uffd_registered && i < vm->ram.nr_blocks; i++)
		smv_uffd_unregister(
			vm->uffd, vm->ram.blocks[i].host_addr, vm->ram.blocks[i].size_bytes);
	vm->uffd_registered = false;
}

void smv_vm_back_out(struct smv_vm *vm)
{
	char path[400];

	smv_pager_destroy(vm->pager);
	vm->pager = NULL;
	if (vm->backed) {
		smv_leases_release(&vm->leases, &vm->backing);
		smv_backing_free(&vm->backing);
	}
	vm->backed = false;
	smv_slots_destroy(&vm->slots);
	if (vm->map.mapping)
		unlink(smv_vm_path(vm, "map", path, sizeof(path)));
	smv_pagemap_destroy(&vm->map);
	unlink(smv_vm_path(vm, "extents.json", path, sizeof(path)));
	unlink(smv_vm_path(vm, "commit", path, sizeof(path)));
	unregister_uffd(vm);
}

static void vm_free(struct smv_vm *vm)
{
	smv_migration_free(vm->migration);
	smv_guest_ram_release(&vm->ram);
	if (vm->qmp)
		smv_qmp_close(vm->qmp);
	if (vm->shim)
		smv_shim_close(vm->shim);
	if (vm->uffd >= 0)
		close(vm->uffd);
	if (vm->pagemap_fd >= 0)
		close(vm->pagemap_fd);
	if (vm->pidfd >= 0)
		close(vm->pidfd);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}

void smv_vm_put(struct smv_vm *vm)
{
	if (vm && atomic_fetch_sub(&vm->refs, 1) == 1)
		vm_free(vm);
}

size_t smv_vms_list(struct smv_vm ***list)
{
	size_t n;

	pthread_mutex_lock(&registry_lock);
	n = nr_vms;
	*list = calloc(n ? n : 1, sizeof(**list));
	for (size_t i = 0; *list && i < n; i++)
		(*list)[i] = smv_vm_ref(vms[i]);
	pthread_mutex_unlock(&registry_lock);
	return *list ? n : 0;
}

struct smv_vm *smv_vms_get_where(bool (*fits)(struct smv_vm *, const void *), const void *key)
{
	struct smv_vm **list, *found = NULL;
	size_t n = smv_vms_list(&list);

	for (size_t i = 0; i < n; i++) {
		if (!found && fits(list[i], key))
			found = list[i];
		else
			smv_vm_put(list[i]);
	}
	free(list);
	return found;
}

static bool has_migration(struct smv_vm *vm, const void *id)
{
	struct smv_migration *m = atomic_load(&vm->migration);

	return m && smv_migration_is(m, id);
}

static bool has_name(struct smv_vm *vm, const void *name)
{
	return strcmp(vm->name, name) == 0;
}

struct smv_vm *smv_vms_get(const char *name)
{
	return smv_vms_get_where(has_name, name);
}

struct smv_vm *smv_vms_get_by_migration(const char *migration_id)
{
	return smv_vms_get_where(has_migration, migration_id);
}

static int attach(
	struct smv_vm *vm, const char *qmp_path, const char *shim_path, struct smv_error *err)
{
	pid_t shim_pid;
	int r;

	if ((r = smv_shim_open(shim_path, &vm->shim, &shim_pid, err)) < 0)
		return r;
	if (vm->pid && vm->pid != shim_pid)
		return smv_fail(err, SMV_INVALID, "wrong-pid", NULL,
			"the shim at %s is in process %d, not in %d", shim_path, (int)shim_pid,
			(int)vm->pid);
	vm->pid = shim_pid;
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	vm->pagemap_fd = smv_pagemap_open(vm->pid);
	if (vm->pidfd < 0 || vm->pagemap_fd < 0)
		return smv_fail(err, SMV_PERMISSION, "process",
			"Run the pager as the same user or root.",
			"cannot open process %d of VM '%s'", (int)vm->pid, vm->name);
	if ((r = smv_qmp_open(qmp_path, QMP_TIMEOUT_MS, &vm->qmp, err)) < 0 ||
		(r = smv_allow_list_check(vm->qmp, err)) < 0 ||
		(r = smv_guest_ram_find(vm->qmp, vm->pid, &vm->ram, err)) < 0)
		return r;
	return 0;
}

/* A destination that starts by itself would run before the commit. */
static bool has_dash_S(pid_t pid)
{
	CLEANUP_FREE char *arg = NULL;
	CLEANUP_FILE FILE *file = NULL;
	char path[64];
	size_t size = 0;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	file = fopen(path, "re");
	while (file && getdelim(&arg, &size, '\0', file) > 0)
		if (strcmp(arg, "-S") == 0 || strcmp(arg, "--S") == 0)
			return true;
	return false;
}

static int check_waiting(struct smv_vm *vm, struct smv_error *err)
{
	char state[64];
	int r;

	if (!has_dash_S(vm->pid))
		return smv_fail(err, SMV_REFUSED, "autostart",
			"Start it by smemv-run --pager, which adds -incoming defer and -S.",
			"QEMU of VM '%s' was started without -S: it would run before the migration "
			"is "
			"committed",
			vm->name);
	r = smv_qmp_run_state(vm->qmp, state, sizeof(state), err);

	if (r == 0 && strcmp(state, "inmigrate") != 0)
		return smv_fail(err, SMV_REFUSED, "not-waiting",
			"Start it by smemv-run --pager, which adds -incoming defer and -S.",
			"QEMU of VM '%s' does not wait for a migration: its state is '%s'",
			vm->name, state);
	return r;
}

int smv_vms_register(const char *name, pid_t pid, const char *qmp_path, const char *shim_path,
	struct smv_error *err)
{
	struct smv_vm *vm, *other;
	int r;

	if ((r = smv_vm_name_check(name, err)) < 0)
		return r;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	vm->pid = pid;
	vm->uffd = vm->pidfd = vm->pagemap_fd = -1;
	vm->state = SMV_VM_WAITING;
	atomic_store(&vm->refs, 1);
	pthread_mutex_init(&vm->lock, NULL);
	if ((r = attach(vm, qmp_path, shim_path, err)) < 0 || (r = check_waiting(vm, err)) < 0) {
		smv_vm_put(vm);
		return r;
	}
	pthread_mutex_lock(&registry_lock);
	other = NULL;
	for (size_t i = 0; i < nr_vms; i++)
		if (has_name(vms[i], name))
			other = vms[i];
	if (other)
		r = smv_fail(err, SMV_EXISTS, "name-taken", "Choose another --vm NAME.",
			"a VM '%s' is registered here already (process %d)", name, (int)other->pid);
	else if (nr_vms == MAX_VMS)
		r = smv_fail(
			err, SMV_NO_ROOM, "too-many-vms", NULL, "%d VMs are the limit", MAX_VMS);
	else
		vms[nr_vms++] = smv_vm_ref(vm);
	pthread_mutex_unlock(&registry_lock);
	if (r == 0)
		smv_log_info("VM '%s': registered, process %d, %lu MiB in %u RAM blocks", name,
			(int)vm->pid, vm->ram.bytes >> 20, vm->ram.nr_blocks);
	smv_vm_put(vm);
	return r;
}

static void forget(struct smv_vm *vm)
{
	pthread_mutex_lock(&registry_lock);
	for (size_t i = 0; i < nr_vms; i++) {
		if (vms[i] == vm) {
			vms[i] = vms[--nr_vms];
			break;
		}
	}
	pthread_mutex_unlock(&registry_lock);
	smv_vm_put(vm);
}

static void end_vm(struct smv_vm *vm, const char *why)
{
	if (vm->migration) {
		smv_migration_abort(vm, why, NULL);
		smv_migration_remember(vm->migration);
	}
	pthread_mutex_lock(&vm->lock);
	vm->gone = true;
	smv_vm_back_out(vm);
	pthread_mutex_unlock(&vm->lock);
	smv_log_info("VM '%s': %s; its leases are released", vm->name, why);
	forget(vm);
}

void smv_vms_tick(void)
{
	struct smv_vm **list;
	size_t n = smv_vms_list(&list);

	for (size_t i = 0; i < n; i++) {
		struct smv_vm *vm = list[i];
		struct pollfd fd = {.fd = vm->pidfd, .events = POLLIN};

		if (poll(&fd, 1, 0) > 0) {
			end_vm(vm, "QEMU's process has ended");
		} else if (pthread_mutex_trylock(&vm->lock) == 0) {
			if (vm->backed && vm->state == SMV_VM_RECEIVING &&
				smv_now_ns() - vm->renewed_ns > RENEW_NS) {
				smv_leases_renew(&vm->leases, &vm->backing);
				vm->renewed_ns = smv_now_ns();
			}
			pthread_mutex_unlock(&vm->lock);
			smv_migration_tick(vm);
		}
		smv_vm_put(vm);
	}
	free(list);
}

void smv_vms_shutdown(void)
{
	struct smv_vm **list;
	size_t n = smv_vms_list(&list);

	for (size_t i = 0; i < n; i++) {
		struct smv_vm *vm = list[i];

		if (vm->state == SMV_VM_RUNNING)
			smv_log_warning(
				"VM '%s' still runs here: its faults wait from now on", vm->name);
		else
			end_vm(vm, "the pager is shutting down");
		smv_vm_put(vm);
	}
	free(list);
}
