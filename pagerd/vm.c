/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/vm.h"

#include "client/discard.h"
#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/files.h"
#include "common/log.h"
#include "client/leases_state.h"
#include "pagerd/debts.h"
#include "pagerd/migration.h"
#include "pagerd/state.h"
#include "pagerd/verdicts.h"
#include "vmm/allow_list.h"
#include "vmm/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QMP_TIMEOUT_MS 5000
#define QMP_AGAIN_TIMEOUT_MS 500
#define QMP_AGAIN_NS (3 * SMV_NS_PER_S)
#define DATA_TIMEOUT_MS 5000
#define LOSS_CONFIRM_MS 5000
#define FENCE_TIMEOUT_MS 1000
#define FENCE_AGAIN_NS (1 * SMV_NS_PER_S)
#define RENEW_NS (15 * SMV_NS_PER_S)
#define WATCH_AGAIN_NS (30 * SMV_NS_PER_S)
#define MAX_VMS 256

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct smv_vm *vms[MAX_VMS];
static size_t nr_vms;
static char state_dir[256];
static bool skip_checksums;

int smv_vms_init(const char *dir, bool no_checksums, struct smv_error *err)
{
	int r;

	skip_checksums = no_checksums;
	if (snprintf(state_dir, sizeof(state_dir), "%s", dir) >= (int)sizeof(state_dir))
		return smv_fail(
			err, SMV_INVALID, "state-dir", NULL, "--state-dir '%s' is too long", dir);
	r = smv_make_directories(state_dir, 0700);
	return r < 0 ? smv_fail(err, SMV_INVALID, "state-dir", "Choose another --state-dir.",
			       "cannot make the state directory %s: %s", state_dir, strerror(-r))
		     : 0;
}

const char *smv_vms_state_dir(void)
{
	return state_dir;
}

char *smv_vm_path(const struct smv_vm *vm, const char *suffix, char *buf, size_t len)
{
	snprintf(buf, len, "%s/%s.%s", state_dir, vm->name, suffix);
	return buf;
}

const char *smv_vm_state_name(enum smv_vm_state state)
{
	static const char *const names[] = {[SMV_VM_WAITING] = "waiting",
		[SMV_VM_RECEIVING] = "receiving",
		[SMV_VM_RUNNING] = "running",
		[SMV_VM_FAILED] = "failed"};

	return names[state];
}

struct smv_vm *smv_vm_ref(struct smv_vm *vm)
{
	atomic_fetch_add(&vm->refs, 1);
	return vm;
}

static void unregister_uffd(struct smv_vm *vm)
{
	/* Whether it was we who took them or a pager before us: nobody records them any more. */
	if (vm->uffd_registered)
		smv_shim_give_back_discards(vm->shim);
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
		smv_leases_release_try(&vm->leases, &vm->backing);
		smv_debts_add(&vm->leases, &vm->backing);
		smv_leases_forget(&vm->leases, &vm->backing);
	}
	vm->backed = false;
	smv_budget_leave(vm);
	smv_slots_destroy(&vm->slots);
	smv_pagemap_destroy(&vm->map);
	vm->map_id = 0;
	unlink(smv_vm_path(vm, "map", path, sizeof(path)));
	unlink(smv_vm_path(vm, "extents.json", path, sizeof(path)));
	unregister_uffd(vm);
}

bool smv_vm_is_alive(const struct smv_vm *vm)
{
	struct pollfd fd = {.fd = vm->pidfd, .events = POLLIN};

	return vm->pidfd >= 0 && poll(&fd, 1, 0) == 0;
}

int smv_vm_qmp(struct smv_vm *vm, int timeout_ms, struct smv_error *err)
{
	if (vm->qmp && smv_qmp_is_broken(vm->qmp)) {
		smv_qmp_close(vm->qmp);
		vm->qmp = NULL;
	}
	return vm->qmp ? 0 : smv_qmp_open(vm->qmp_path, timeout_ms, &vm->qmp, err);
}

static int get_uffd(struct smv_vm *vm, bool again, struct smv_error *err)
{
	bool fresh;
	int r;

	if (vm->uffd >= 0)
		return 0;
	if ((r = smv_shim_get_uffd(vm->shim, &vm->uffd, &fresh, err)) < 0)
		return r;
	if (fresh && again)
		return smv_fail(err, SMV_DATA_LOSS, "userfaultfd",
			"Its memory cannot be trusted any more: end the VM.",
			"QEMU of VM '%s' has closed its userfaultfd, so its threads may have read "
			"zeros",
			vm->name);
	return fresh ? smv_uffd_api(vm->uffd, SMV_UFFD_PAGE) : 0;
}

int smv_vm_attach_uffd(struct smv_vm *vm, bool again, struct smv_error *err)
{
	int r = get_uffd(vm, again, err);

	if (again && r < 0)
		return r;
	/* Of what is registered like this already nothing changes. */
	for (unsigned int i = 0; i < vm->ram.nr_blocks && r == 0; i++)
		r = smv_uffd_register(vm->uffd, vm->ram.blocks[i].host_addr,
			vm->ram.blocks[i].size_bytes,
			UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
				UFFDIO_REGISTER_MODE_WP);
	vm->uffd_registered = true;
	if (r < 0)
		return smv_fail(err, SMV_REFUSED, "userfaultfd", "Linux 6.7 or later is needed.",
			"cannot register the RAM of VM '%s' with userfaultfd: %s", vm->name,
			strerror(-r));
	return 0;
}

void smv_vm_stats(const struct smv_vm *vm, struct smv_pager_stats *stats)
{
	uint64_t ns;

	memset(stats, 0, sizeof(*stats));
	if (vm->pager) {
		smv_pager_stats(vm->pager, stats);
	} else if (vm->unserved_since_ns) {
		ns = smv_now_ns() - vm->unserved_since_ns;
		stats->stalls =
			(struct smv_stalls){.nr = 1, .ns = ns, .present_ns = ns, .max_ns = ns};
	}
}

static int zap_by_shim(void *ctx, uint64_t addr, uint64_t len)
{
	struct smv_vm *vm = ctx;
	struct smv_shim_range range = {addr, len};

	return smv_shim_zap(vm->shim, &range, 1);
}

int smv_vm_make_pager(struct smv_vm *vm, struct smv_error *err)
{
	struct smv_pager_config config = {.ram = &vm->ram,
		.map = &vm->map,
		.slots = &vm->slots,
		.backing = &vm->backing,
		.uffd = vm->uffd,
		.pagemap_fd = vm->pagemap_fd,
		.zap = zap_by_shim,
		.zap_ctx = vm,
		.budget_pages = vm->budget.granted,
		.timeout_ms = DATA_TIMEOUT_MS,
		.loss_policy = vm->loss_policy,
		.loss_confirm_ms = LOSS_CONFIRM_MS,
		.skip_checksums = skip_checksums};

	snprintf(config.name, sizeof(config.name), "%s", vm->name);
	return smv_pager_create(&config, &vm->pager, err);
}

int smv_vm_take_discards(struct smv_vm *vm, struct smv_error *err)
{
	struct smv_shim_file files[SMV_RAM_BLOCKS_MAX];
	int r, fd;

	if (!vm->shim)
		return 0;
	for (unsigned int i = 0; i < vm->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &vm->ram.blocks[i];
		struct stat st;

		if (fstat(b->fd, &st) < 0)
			return smv_fail(err, smv_code_from_errno(errno), "ram-file", NULL,
				"cannot tell which file RAM block '%s' of VM '%s' is: %s", b->id,
				vm->name, strerror(errno));
		files[i] = (struct smv_shim_file){
			st.st_dev, st.st_ino, b->host_addr, b->size_bytes, b->file_offset};
	}
	r = smv_shim_take_discards(vm->shim, files, vm->ram.nr_blocks, &fd, err);
	return r < 0 ? r : smv_pager_serve_discards(vm->pager, fd, err);
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

int smv_vm_attach_process(struct smv_vm *vm, struct smv_error *err)
{
	pid_t shim_pid;
	int r;

	if ((r = smv_shim_open(vm->shim_path, &vm->shim, &shim_pid, err)) < 0)
		return r;
	if (vm->process.pid && vm->process.pid != shim_pid)
		return smv_fail(err, SMV_INVALID, "wrong-pid", NULL,
			"the shim at %s is in process %d, not in %d", vm->shim_path, (int)shim_pid,
			(int)vm->process.pid);
	if (vm->pidfd < 0 && smv_process_identify(shim_pid, &vm->process) == 0)
		vm->pidfd = smv_process_open(&vm->process);
	vm->pagemap_fd = smv_pagemap_open(vm->process.pid);
	if (vm->pidfd < 0 || vm->pagemap_fd < 0)
		return smv_fail(err, SMV_PERMISSION, "process",
			"Run the pager as the same user or root.",
			"cannot open process %d of VM '%s'", (int)vm->process.pid, vm->name);
	return 0;
}

static int attach(struct smv_vm *vm, struct smv_error *err)
{
	int r;

	if ((r = smv_vm_attach_process(vm, err)) < 0 ||
		(r = smv_vm_qmp(vm, QMP_TIMEOUT_MS, err)) < 0 ||
		(r = smv_allow_list_check(vm->qmp, err)) < 0 ||
		(r = smv_guest_ram_find(vm->qmp, vm->process.pid, &vm->ram, err)) < 0)
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

	if (!has_dash_S(vm->process.pid))
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

struct smv_vm *smv_vm_new(const char *name)
{
	struct smv_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	vm->uffd = vm->pidfd = vm->pagemap_fd = -1;
	vm->state = SMV_VM_WAITING;
	atomic_store(&vm->refs, 1);
	pthread_mutex_init(&vm->lock, NULL);
	return vm;
}

int smv_vms_add(struct smv_vm *vm, struct smv_error *err)
{
	const struct smv_vm *other = NULL;
	int r = 0;

	pthread_mutex_lock(&registry_lock);
	for (size_t i = 0; i < nr_vms; i++)
		if (has_name(vms[i], vm->name))
			other = vms[i];
	if (other)
		r = smv_fail(err, SMV_EXISTS, "name-taken", "Choose another --vm NAME.",
			"a VM '%s' is registered here already (process %d)", vm->name,
			(int)other->process.pid);
	else if (nr_vms == MAX_VMS)
		r = smv_fail(
			err, SMV_NO_ROOM, "too-many-vms", NULL, "%d VMs are the limit", MAX_VMS);
	else
		vms[nr_vms++] = smv_vm_ref(vm);
	pthread_mutex_unlock(&registry_lock);
	return r;
}

static void forget(struct smv_vm *vm)
{
	bool found = false;

	pthread_mutex_lock(&registry_lock);
	for (size_t i = 0; i < nr_vms && !found; i++) {
		found = vms[i] == vm;
		if (found)
			vms[i] = vms[--nr_vms];
	}
	pthread_mutex_unlock(&registry_lock);
	if (found)
		smv_vm_put(vm);
}

bool smv_vm_lock_until(struct smv_vm *vm, uint64_t deadline_ns)
{
	struct timespec until = {.tv_sec = (time_t)(deadline_ns / SMV_NS_PER_S),
		.tv_nsec = (long)(deadline_ns % SMV_NS_PER_S)};

	return pthread_mutex_clocklock(&vm->lock, CLOCK_MONOTONIC, &until) == 0;
}

void smv_vm_stall(struct smv_vm *vm, const char *what, const struct smv_error *err)
{
	char text[sizeof(vm->trouble)];

	smv_pager_destroy(vm->pager);
	vm->pager = NULL;
	vm->nr_unfenced = 0;
	if (vm->backed)
		smv_budget_restore(vm); /* what it holds it holds */
	vm->unsaved = false;            /* whoever tries again writes a new epoch */
	if (vm->state == SMV_VM_RUNNING && !vm->unserved_since_ns)
		vm->unserved_since_ns = smv_now_ns();
	snprintf(text, sizeof(text), "%s: %.380s", what, err->message);
	if (strcmp(text, vm->trouble) != 0)
		smv_event(SMV_EVENT_VM_NOT_TAKEN_OVER, vm->name, NULL, "VM '%s' waits: %s %s",
			vm->name, text, err->hint);
	memcpy(vm->trouble, text, sizeof(text));
}

void smv_vm_leave(struct smv_vm *vm)
{
	smv_pager_destroy(vm->pager);
	vm->pager = NULL;
	if (vm->backed)
		smv_leases_forget(&vm->leases, &vm->backing);
	vm->backed = false;
	smv_slots_destroy(&vm->slots);
	smv_pagemap_destroy(&vm->map);
}

int smv_vms_replace(struct smv_vm *old, struct smv_vm *vm)
{
	int r = -ESRCH;

	pthread_mutex_lock(&old->lock);
	pthread_mutex_lock(&registry_lock);
	for (size_t i = 0; i < nr_vms && !old->gone && r < 0; i++) {
		if (vms[i] == old) {
			vms[i] = smv_vm_ref(vm);
			r = 0;
		}
	}
	pthread_mutex_unlock(&registry_lock);
	if (r == 0) {
		smv_vm_leave(old);
		old->gone = true;
	}
	pthread_mutex_unlock(&old->lock);
	if (r == 0)
		smv_vm_put(old);
	return r;
}

int smv_vms_register(const char *name, pid_t pid, const char *qmp_path, const char *shim_path,
	struct smv_error *err)
{
	struct smv_vm *vm;
	int r;

	if ((r = smv_vm_name_check(name, err)) < 0)
		return r;
	if (strlen(qmp_path) >= SMV_RUNTIME_PATH_MAX || strlen(shim_path) >= SMV_RUNTIME_PATH_MAX)
		return smv_fail(err, SMV_INVALID, "path-too-long", NULL,
			"a socket path of VM '%s' is too long", name);
	vm = smv_vm_new(name);
	if (!vm)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	vm->process.pid = pid;
	strcpy(vm->qmp_path, qmp_path);
	strcpy(vm->shim_path, shim_path);
	if ((r = attach(vm, err)) < 0 || (r = check_waiting(vm, err)) < 0) {
		smv_vm_put(vm);
		return r;
	}
	/* Once it is in the list a migration may come in: its own writing waits for ours. */
	pthread_mutex_lock(&vm->lock);
	r = smv_vms_add(vm, err);
	if (r == 0 && (r = smv_vm_save(vm, err)) < 0) {
		vm->gone = true;
		forget(vm);
	}
	pthread_mutex_unlock(&vm->lock);
	if (r == 0)
		smv_event(SMV_EVENT_VM_REGISTERED, name, NULL,
			"VM '%s': registered, process %d, %lu MiB in %u RAM blocks", name,
			(int)vm->process.pid, vm->ram.bytes >> 20, vm->ram.nr_blocks);
	smv_vm_put(vm);
	return r;
}

/* The lock is held. */
static void end_vm_locked(struct smv_vm *vm, const char *why)
{
	char path[400];

	smv_migration_abort_locked(vm, why);
	vm->gone = true;
	smv_vm_back_out(vm);
	unlink(smv_vm_path(vm, "vm.json", path, sizeof(path)));
	smv_event(SMV_EVENT_VM_ENDED, vm->name, NULL, "VM '%s': %s; its leases are released",
		vm->name, why);
}

/* Sub-hosts that were away at the takeover; the lock is held. */
static void fence_rest(struct smv_vm *vm)
{
	struct smv_error err = {0};

	if (!vm->nr_unfenced || smv_now_ns() < vm->fence_retry_ns)
		return;
	vm->nr_unfenced = smv_leases_fence_each(
		&vm->leases, &vm->backing, vm->fenced, false, FENCE_TIMEOUT_MS, &err);
	vm->fence_retry_ns = smv_now_ns() + FENCE_AGAIN_NS;
	if (!vm->nr_unfenced)
		smv_log_info("VM '%s': all its sub-hosts are fenced now", vm->name);
}

/* The lock is held. A monitor that is deaf is tried again: perhaps QEMU waits for a page. */
static void connect_qmp_again(struct smv_vm *vm)
{
	if (smv_now_ns() < vm->qmp_retry_ns)
		return;
	if (smv_vm_qmp(vm, QMP_AGAIN_TIMEOUT_MS, NULL) < 0)
		vm->qmp_retry_ns = smv_now_ns() + QMP_AGAIN_NS;
}

/* The lock is held. Somebody may plug a device or add a disk whose DMA bypasses the page tables. A
 * VM that waits for a sub-host is not asked: its monitor may be deaf. */
static void watch_locked(struct smv_vm *vm)
{
	struct smv_pager_stats stats = {0};
	struct smv_error err;
	json_t *event;

	if (!vm->qmp || !vm->pager || smv_now_ns() < vm->watch_retry_ns)
		return;
	smv_pager_stats(vm->pager, &stats);
	if (stats.trouble[0])
		return;
	while (smv_qmp_next_event(vm->qmp, 0, &event) == 0) {
		smv_watch_event(&vm->watch, event);
		json_decref(event);
	}
	switch (smv_watch_check(&vm->watch, vm->qmp, vm->process.pid, &err)) {
	case 1:
		smv_event(SMV_EVENT_VM_AT_RISK, vm->name, NULL,
			"VM '%s': its memory is at risk: %s %s", vm->name, err.message, err.hint);
		break;
	case 2:
		smv_event(SMV_EVENT_VM_RISK_ENDED, vm->name, NULL,
			"VM '%s': what put its memory at risk is gone", vm->name);
		break;
	case 0:
		break;
	default:
		vm->watch_retry_ns = smv_now_ns() + WATCH_AGAIN_NS;
	}
}

/* The lock is held. Its leases are released when it has ended, as those of any VM. */
static void kill_if_fatal(struct smv_vm *vm)
{
	char why[400];

	if (!vm->pager || vm->killed || !smv_pager_is_fatal(vm->pager, why, sizeof(why)))
		return;
	vm->killed = true;
	smv_event(SMV_EVENT_VM_KILLED, vm->name, NULL,
		"VM '%s' is killed, as is its loss policy: %s", vm->name, why);
	if (!smv_fault_point("loss-skip-kill") &&
		pidfd_send_signal(vm->pidfd, SIGKILL, NULL, 0) < 0)
		smv_log_error("VM '%s': cannot kill process %d, it waits: %s", vm->name,
			(int)vm->process.pid, strerror(errno));
}

/* The lock is held. */
static void tick_locked(struct smv_vm *vm)
{
	kill_if_fatal(vm);
	if (vm->backed && smv_now_ns() - vm->renewed_ns > RENEW_NS) {
		smv_leases_renew(&vm->leases, &vm->backing);
		vm->renewed_ns = smv_now_ns();
	}
	fence_rest(vm);
	smv_budget_tick_locked(vm);
	if (vm->unsaved)
		smv_vm_save(vm, NULL);
	if (vm->state == SMV_VM_RUNNING)
		connect_qmp_again(vm);
	smv_migration_run_locked(vm);
	if (vm->state == SMV_VM_RUNNING)
		watch_locked(vm);
}

void smv_vms_tick(void)
{
	struct smv_vm **list;
	size_t n = smv_vms_list(&list);

	for (size_t i = 0; i < n; i++) {
		struct smv_vm *vm = list[i];
		bool ended = false;

		/* Who is busy with the VM is not waited for: the others have their turn. */
		if (pthread_mutex_trylock(&vm->lock) == 0) {
			ended = !vm->gone && !smv_vm_is_alive(vm);
			if (vm->gone)
				;
			else if (ended)
				end_vm_locked(vm, "QEMU's process has ended");
			else
				tick_locked(vm);
			pthread_mutex_unlock(&vm->lock);
			if (ended)
				forget(vm);
			else
				smv_migration_check_silence(vm);
		}
		smv_vm_put(vm);
	}
	free(list);
	smv_debts_tick();
}

size_t smv_vms_shutdown(void)
{
	struct smv_vm **list;
	size_t n = smv_vms_list(&list), nr_running = 0;

	for (size_t i = 0; i < n; i++) {
		struct smv_vm *vm = list[i];

		smv_migration_abort(vm, NULL, "smemv-pagerd was ended", NULL);
		pthread_mutex_lock(&vm->lock);
		if (!smv_vm_is_alive(vm)) {
			end_vm_locked(vm, "QEMU's process has ended");
		} else {
			if (vm->state == SMV_VM_RUNNING) {
				nr_running++;
				smv_log_warning("VM '%s' runs here: from now on it waits for the "
						"next smemv-pagerd",
					vm->name);
			}
			smv_vm_leave(vm);
		}
		vm->gone = true;
		pthread_mutex_unlock(&vm->lock);
		forget(vm);
		smv_vm_put(vm);
	}
	if (nr_running)
		smv_log_warning(
			"%zu VMs wait: start smemv-pagerd again with the same options", nr_running);
	free(list);
	return nr_running;
}
