/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takeover: a pager goes on with the VMs of one that ended, however it ended. It holds the lock of
 * the state directory, so no thread of the old one lives any more. Per VM:
 *
 *   1. Is the process alive, and the same? Else its leases are released, its files removed.
 *   2. The shim's userfaultfd (QEMU has kept it open, so faults have waited), the RAM files.
 *   3. By the log of verdicts: a migration that was open is aborted. A VM that waits, waits on. For
 *      one that is committed:
 *   4. A new epoch, written down, then fencing: from then on no write of the old pager can arrive.
 * A sub-host that is away is fenced later, and till then refuses our tickets.
 *   5. The page map is checked, then settled (client/settle.h).
 *   6. Serve; wake all waiters, whose messages the old pager may have read.
 *   7. Only now QMP, and with patience: a thread that waited for a page may have held QEMU's lock.
 *
 * A VM that runs here and could not be taken over (its process was stopped, say) is tried again
 * every ten seconds, from its files, by a thread of its own; the VM that was found first stays in
 * the list until another is served in its place.
 */
#include "client/leases_state.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/json.h"
#include "common/log.h"
#include "pagerd/migration.h"
#include "pagerd/state.h"
#include "pagerd/verdicts.h"

#include <dirent.h>
#include <stdatomic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOT_TAKEN_OVER "not taken over"
#define LEASE_TIMEOUT_MS 5000
#define FENCE_TIMEOUT_MS 2000
#define RELEASE_TIMEOUT_MS 2000
#define AGAIN_NS (10 * SMV_NS_PER_S)

/* 0; -ESRCH only on proof that it has ended, because then its memory is given back. */
static int find_process(struct smv_vm *vm)
{
	int fd = smv_process_open(&vm->process);

	vm->pidfd = fd < 0 ? -1 : fd;
	return fd < 0 ? fd : 0;
}

static int read_identity(struct smv_vm *vm, json_t *state, struct smv_error *err)
{
	const char *name, *qmp, *shim;
	int version, pid;

	if (json_unpack(state, "{s:i, s:s, s:i, s:s, s:s}", "version", &version, "name", &name,
		    "pid", &pid, "qmp_path", &qmp, "shim_path", &shim) < 0 ||
		version != 1 || pid <= 0 || strcmp(name, vm->name) != 0 ||
		!smv_json_to_hex(json_object_get(state, "start_time"), &vm->process.start_time) ||
		strlen(qmp) >= sizeof(vm->qmp_path) || strlen(shim) >= sizeof(vm->shim_path))
		return smv_fail(
			err, SMV_DATA_LOSS, "vm-state", NULL, "it is broken or of another version");
	vm->process.pid = pid;
	strcpy(vm->qmp_path, qmp);
	strcpy(vm->shim_path, shim);
	return 0;
}

static int read_leases(struct smv_vm *vm, const json_t *state, struct smv_error *err)
{
	const json_t *leases = json_object_get(state, "leases");
	const char *name = json_string_value(json_object_get(state, "transport"));
	const char *reason = json_string_value(json_object_get(state, "transport_reason"));
	const struct smv_transport *transport = name ? smv_transport_find(name) : NULL;
	int r;

	if (!leases)
		return 0;
	if (!transport)
		return smv_fail(err, SMV_REFUSED, "no-transport",
			"Start an smemv-pagerd that has it.",
			"VM '%s' uses the transport '%.20s', which this build has not", vm->name,
			name ? name : "");
	r = smv_leases_from_json(
		leases, transport, LEASE_TIMEOUT_MS, &vm->leases, &vm->backing, err);
	if (r < 0)
		return r;
	vm->backed = true;
	vm->leases.vm = vm->name;
	smv_json_to_hex(json_object_get(state, "map_id"), &vm->map_id);
	vm->budget_bytes = (uint64_t)json_integer_value(json_object_get(state, "budget_bytes"));
	vm->budget.granted =
		(uint64_t)json_integer_value(json_object_get(state, "effective_budget_bytes")) /
		SMV_PAGE_SIZE;
	snprintf(vm->transport_reason, sizeof(vm->transport_reason), "%s", reason ? reason : "");
	return smv_loss_policy_parse(smv_json_field(state, "loss_policy"), &vm->loss_policy, err);
}

/* Its process ended while nobody looked. */
static void bury(struct smv_vm *vm)
{
	char path[400];

	smv_event(SMV_EVENT_VM_ENDED, vm->name, NULL,
		"VM '%s': QEMU's process has ended while no smemv-pagerd ran", vm->name);
	vm->leases.timeout_ms = RELEASE_TIMEOUT_MS;
	smv_vm_back_out(vm);
	unlink(smv_vm_path(vm, "vm.json", path, sizeof(path)));
}

static int fence(struct smv_vm *vm, struct smv_error *err)
{
	struct smv_error why = {0};
	int r;

	vm->leases.epoch++;
	/* A third pager must know of this epoch before the second one uses it. */
	if ((r = smv_vm_save(vm, err)) < 0)
		return r;
	vm->nr_unfenced = smv_leases_fence_each(
		&vm->leases, &vm->backing, vm->fenced, true, FENCE_TIMEOUT_MS, &why);
	if (vm->nr_unfenced)
		smv_log_warning("VM '%s': %s", vm->name, why.message);
	return 0;
}

/* Serve a VM that runs here. */
static int resume(struct smv_vm *vm, struct smv_error *err)
{
	struct smv_taken_over report;
	struct smv_pager_stats stats;
	uint64_t start = smv_now_ns();
	char path[400];
	int r;

	if (!vm->backed || !vm->budget_bytes)
		return smv_fail(err, SMV_DATA_LOSS, "leases", NULL,
			"VM '%s' runs here, but nothing is written of its leases", vm->name);
	if ((r = smv_vm_load_extents(vm, err)) < 0 || (r = smv_vm_attach_uffd(vm, true, err)) < 0 ||
		(r = fence(vm, err)) < 0 ||
		(r = smv_pagemap_load(smv_vm_path(vm, "map", path, sizeof(path)), vm->name,
			 vm->ram.nr_pages, vm->map_id, &vm->map, err)) < 0)
		return r;
	if (smv_slots_create(vm->backing.nr_extents, &vm->slots) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	smv_budget_restore(vm);
	if ((r = smv_vm_make_pager(vm, err)) < 0 ||
		(r = smv_pager_take_over(vm->pager, &report, err)) < 0 ||
		(r = smv_vm_take_discards(vm, err)) < 0 ||
		(r = smv_pager_start(vm->pager, err)) < 0)
		return r;
	vm->renewed_ns = 0;
	smv_pager_stats(vm->pager, &stats);
	smv_event(SMV_EVENT_VM_TAKEN_OVER, vm->name, NULL,
		"VM '%s': taken over in %lu ms, after %lu ms without a pager; pages on their way: "
		"%lu fetched, %lu evicted, %lu saved, %lu placed; %lu punched, %lu lost; epoch %u",
		vm->name, (unsigned long)((smv_now_ns() - start) / SMV_NS_PER_MS),
		(unsigned long)(stats.stalls.ns / SMV_NS_PER_MS), report.fetching, report.out,
		report.saved, report.placed, report.punched, report.lost, vm->leases.epoch);
	return 0;
}

static bool is_committed(const struct smv_vm *vm, const json_t *state)
{
	switch (smv_migration_verdict_of(vm->migration)) {
	case SMV_VERDICT_COMMITTED:
	case SMV_VERDICT_TOLD:
		return true;
	case SMV_VERDICT_NONE: /* long ago, or the log was lost: then the VM's own file counts */
		return strcmp(smv_json_field(state, "state"), "running") == 0;
	case SMV_VERDICT_OPEN:
	case SMV_VERDICT_ABORTED:
		break;
	}
	return false;
}

/* 0, or it is stalled. @r: what was read of its leases; if they are not known, nothing is written
 * of a VM that runs here, because that would be without them. */
static int go_on(struct smv_vm *vm, const json_t *state, int r, struct smv_error *err)
{
	const char *was = smv_json_field(state, "state");

	if (r == 0)
		r = smv_vm_attach_process(vm, err);
	if (r == 0)
		r = smv_vm_open_ram(vm, state, err);
	if (vm->migration && is_committed(vm, state)) {
		vm->state = SMV_VM_RUNNING;
		/* Whatever becomes of the log: it runs here. */
		if (r == 0 && smv_migration_verdict_of(vm->migration) == SMV_VERDICT_TOLD)
			smv_vm_save(vm, NULL);
		if (r == 0)
			r = resume(vm, err);
		if (r < 0)
			smv_vm_stall(vm, NOT_TAKEN_OVER, err);
		/* Nothing has run here: the source may still have it. */
		if (r < 0 && smv_migration_verdict_of(vm->migration) == SMV_VERDICT_COMMITTED)
			smv_migration_abort_restored(vm, err->message);
		else
			smv_migration_restored(vm);
		return r;
	}
	if (strcmp(was, "receiving") == 0 || strcmp(was, "running") == 0) {
		vm->state = SMV_VM_RECEIVING;
		if (r == 0 && vm->backed)
			r = smv_vm_attach_uffd(vm, false, err);
		smv_migration_abort_restored(vm, "smemv-pagerd was restarted before the commit");
		if (r < 0)
			smv_vm_stall(vm, NOT_TAKEN_OVER, err);
		return r;
	}
	vm->state = strcmp(was, "failed") == 0 ? SMV_VM_FAILED : SMV_VM_WAITING;
	if (r < 0)
		smv_vm_stall(vm, NOT_TAKEN_OVER, err);
	else
		smv_log_info("VM '%s': found again, it waits", vm->name);
	return r;
}

static void take_over(struct smv_vm *vm, json_t *state)
{
	struct smv_error err = {0};
	int r = find_process(vm), known;

	smv_migration_from_json(vm, json_object_get(state, "migration"));
	known = read_leases(vm, state, &err);
	if (r == -ESRCH && known < 0) {
		smv_event(SMV_EVENT_VM_NOT_TAKEN_OVER, vm->name, NULL,
			"VM '%s': QEMU's process has ended, but its leases cannot be given back: "
			"%s. Start an smemv-pagerd that can, or remove the VM's file and release "
			"them at the sub-hosts (smemvctl release)",
			vm->name, err.message);
		if (vm->backed)
			smv_leases_forget(&vm->leases, &vm->backing);
		return;
	}
	if (r == -ESRCH) {
		if (vm->migration)
			smv_migration_abort_restored(vm, "QEMU's process has ended");
		bury(vm);
		return;
	}
	if (r < 0) {
		smv_event(SMV_EVENT_VM_NOT_TAKEN_OVER, vm->name, NULL,
			"VM '%s': cannot see whether process %d lives: %s. Nobody serves it; all "
			"is left as it is. Start smemv-pagerd again",
			vm->name, (int)vm->process.pid, strerror(-r));
		if (vm->backed)
			smv_leases_forget(&vm->leases, &vm->backing);
		return;
	}
	go_on(vm, state, known, &err);
	if (smv_vms_add(vm, &err) < 0)
		smv_log_error("VM '%s': %s", vm->name, err.message);
}

struct job {
	char name[SMV_VM_NAME_MAX + 1];
	pthread_t thread;
	bool running;
};

static void *job_main(void *arg)
{
	const struct job *job = arg;
	struct smv_vm *vm = smv_vm_new(job->name);
	CLEANUP_JSON json_t *state = NULL;
	struct smv_error err = {0};
	char path[400];

	if (!vm)
		return NULL;
	state = json_load_file(smv_vm_path(vm, "vm.json", path, sizeof(path)), 0, NULL);
	if (read_identity(vm, state, &err) == 0)
		take_over(vm, state);
	else
		smv_event(SMV_EVENT_VM_NOT_TAKEN_OVER, job->name, NULL,
			"%s: %s: nobody serves VM '%s'. If a good copy exists, put it in place "
			"and start smemv-pagerd again; else end the VM and remove the file",
			path, err.message, job->name);
	smv_vm_put(vm);
	return NULL;
}

static size_t find_jobs(struct job **jobs)
{
	static const char suffix[] = ".vm.json";
	DIR *dir = opendir(smv_vms_state_dir());
	struct dirent *entry;
	size_t n = 0;

	*jobs = NULL;
	while (dir && (entry = readdir(dir))) {
		size_t len = strlen(entry->d_name);
		struct job *grown;

		if (len <= strlen(suffix) || len - strlen(suffix) > SMV_VM_NAME_MAX ||
			strcmp(entry->d_name + len - strlen(suffix), suffix) != 0 ||
			!(grown = reallocarray(*jobs, n + 1, sizeof(*grown))))
			continue;
		*jobs = grown;
		grown[n] = (struct job){0};
		memcpy(grown[n++].name, entry->d_name, len - strlen(suffix));
	}
	if (dir)
		closedir(dir);
	return n;
}

static bool is_here(const char *id)
{
	struct smv_vm *vm = smv_vms_get_by_migration(id);

	smv_vm_put(vm);
	return vm;
}

void smv_vms_take_over(void)
{
	CLEANUP_FREE struct job *jobs = NULL;
	size_t n = find_jobs(&jobs);

	/* Each by a thread of its own: one whose sub-host is away must not hold up the others. */
	for (size_t i = 0; i < n; i++) {
		jobs[i].running = pthread_create(&jobs[i].thread, NULL, job_main, &jobs[i]) == 0;
		if (!jobs[i].running)
			job_main(&jobs[i]);
	}
	for (size_t i = 0; i < n; i++)
		if (jobs[i].running)
			pthread_join(jobs[i].thread, NULL);
	smv_verdicts_abort_rest(is_here);
}

/* --- again -------------------------------------------------------------------------------- */

static struct {
	pthread_t thread;
	bool running; /* until it is joined */
	atomic_bool done;
	uint64_t next_ns;
} again;

static void try_again(struct smv_vm *old)
{
	struct smv_vm *vm = smv_vm_new(old->name);
	CLEANUP_JSON json_t *state = NULL;
	struct smv_error err = {0};
	char path[400];
	int r;

	if (!vm)
		return;
	/* The same reason is not said twice. */
	memcpy(vm->trouble, old->trouble, sizeof(vm->trouble));
	state = json_load_file(smv_vm_path(vm, "vm.json", path, sizeof(path)), 0, NULL);
	if ((r = read_identity(vm, state, &err)) == 0 && (r = find_process(vm)) == 0) {
		smv_migration_from_json(vm, json_object_get(state, "migration"));
		r = read_leases(vm, state, &err);
	}
	if (r == 0)
		r = go_on(vm, state, 0, &err);
	if (r == 0)
		vm->trouble[0] = '\0';
	/* What could not be served is in no list: nothing of it is given back. */
	if (r == 0)
		r = smv_vms_replace(old, vm);
	if (r == 0) {
		pthread_mutex_lock(&vm->lock);
		smv_budget_restore(vm); /* again, as it is in the list now */
		pthread_mutex_unlock(&vm->lock);
	} else {
		smv_vm_leave(vm);
	}
	smv_vm_put(vm);
}

static bool is_stalled(struct smv_vm *vm, const void *unused)
{
	bool stalled = false;

	(void)unused;
	if (pthread_mutex_trylock(&vm->lock) == 0) {
		stalled = vm->state == SMV_VM_RUNNING && vm->trouble[0] && !vm->gone &&
			  smv_vm_is_alive(vm);
		pthread_mutex_unlock(&vm->lock);
	}
	return stalled;
}

static void *again_main(void *unused)
{
	struct smv_vm **list;
	size_t n = smv_vms_list(&list);

	for (size_t i = 0; i < n; i++) {
		if (is_stalled(list[i], NULL))
			try_again(list[i]);
		smv_vm_put(list[i]);
	}
	free(list);
	atomic_store(&again.done, true);
	return unused;
}

void smv_vms_take_over_rest(void)
{
	struct smv_vm *stalled;

	if (again.running && !atomic_load(&again.done))
		return;
	smv_vms_take_over_end();
	if (smv_now_ns() < again.next_ns)
		return;
	again.next_ns = smv_now_ns() + AGAIN_NS;
	stalled = smv_vms_get_where(is_stalled, NULL);
	if (stalled) {
		atomic_store(&again.done, false);
		again.running = pthread_create(&again.thread, NULL, again_main, NULL) == 0;
	}
	smv_vm_put(stalled);
}

void smv_vms_take_over_end(void)
{
	if (again.running)
		pthread_join(again.thread, NULL);
	again.running = false;
}
