/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/service.h"

#include "common/clock.h"
#include "pagerd/budget.h"
#include "pagerd/migration.h"
#include "pagerd/vm.h"
#include "rpc/events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Who lists VMs is not kept waiting by one of them for ever: smemvctl waits for 10 s. A look at all
 * its devices by a slow QMP may take seconds. */
#define PATIENCE_NS (8 * SMV_NS_PER_S)

#define HANDLER(name)                                                                              \
	static int name(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,     \
		ProtobufCMessage *response, struct smv_error *err)

typedef Smemv__V1__VmInfo VmInfo;
typedef Smemv__V1__VmStats VmStats;

static int no_vm(const char *name, struct smv_error *err)
{
	return smv_fail(err, SMV_NOT_FOUND, "no-vm",
		"Start it with smemv-run --vm NAME --pager ADDR; smemvctl vms lists what is here.",
		"no VM '%.80s' is registered here", name);
}

/* A reference to the VM that migration @id goes into, or NULL and the error. */
static struct smv_vm *vm_of_migration(const char *id, struct smv_error *err)
{
	struct smv_vm *vm = smv_vms_get_by_migration(id);

	if (!vm)
		smv_fail(err, SMV_NOT_FOUND, "no-migration", NULL,
			"no migration %.40s is known here", id);
	return vm;
}

/* The end of a handler: give back its reference, pass its result on. */
static int put(struct smv_vm *vm, int r)
{
	smv_vm_put(vm);
	return r;
}

HANDLER(register_vm)
{
	const Smemv__V1__RegisterVmRequest *q = (const void *)request;

	(void)ctx;
	(void)response;
	if (!smv_rpc_call_is_local(call))
		return smv_fail(err, SMV_PERMISSION, "not-local", "Use the pager's unix socket.",
			"a VM can be registered only from the pager's own host");
	return smv_vms_register(q->name, q->pid, q->qmp_path, q->shim_path, err);
}

/* Each once, however many leases there are on it. */
static void fill_sub_hosts(const struct smv_backing *backing, VmInfo *info)
{
	info->sub_hosts = calloc(backing->nr_sub_hosts + 1, sizeof(*info->sub_hosts));
	for (unsigned int h = 0; info->sub_hosts && h < backing->nr_sub_hosts; h++)
		if (smv_backing_first_of(backing, h) == h)
			info->sub_hosts[info->n_sub_hosts++] =
				strdup(backing->sub_hosts[h].address);
}

static void fill_info(struct smv_vm *vm, const struct smv_pager_stats *stats, VmInfo *info)
{
	info->stall_ms = stats->stalls.ns / SMV_NS_PER_MS;
	/* Even for less than that it is stalled. */
	info->stalled_for_ms = (stats->stalls.present_ns + SMV_NS_PER_MS - 1) / SMV_NS_PER_MS;
	info->name = strdup(vm->name);
	info->state = (Smemv__V1__VmState)vm->state;
	info->ram_bytes = vm->ram.bytes;
	info->budget_bytes = vm->budget_bytes;
	info->effective_budget_bytes = vm->budget.granted * SMV_PAGE_SIZE;
	info->resident_bytes = smv_guest_ram_resident(&vm->ram);
	info->trouble = strdup(vm->trouble[0]      ? vm->trouble
			       : stats->trouble[0] ? stats->trouble
			       : vm->watch.alarm   ? vm->watch.error.message
						   : "");
	if (!vm->backed)
		return;
	info->loss_policy = strdup(smv_loss_policy_name(vm->loss_policy));
	info->remote_bytes = smv_pagemap_count(&vm->map, SMV_PAGE_COLD) * SMV_PAGE_SIZE;
	fill_sub_hosts(&vm->backing, info);
}

/* What can be said of a VM whose lock does not come. */
static void fill_busy(const struct smv_vm *vm, VmInfo *info)
{
	info->name = strdup(vm->name);
	info->trouble =
		strdup("busy: something is being done with it, or its QEMU does not answer");
}

HANDLER(list_vms)
{
	uint64_t until = smv_now_ns() + PATIENCE_NS;
	Smemv__V1__ListVmsResponse *p = (void *)response;
	struct smv_vm **list;
	size_t n = smv_vms_list(&list);

	(void)ctx;
	(void)call;
	(void)request;
	(void)err;
	p->vms = calloc(n + 1, sizeof(*p->vms));
	for (size_t i = 0; i < n; i++) {
		struct smv_pager_stats stats;
		VmInfo *info = calloc(1, sizeof(*info));

		if (p->vms && info) {
			smemv__v1__vm_info__init(info);
			if (smv_vm_lock_until(list[i], until)) {
				smv_vm_stats(list[i], &stats);
				fill_info(list[i], &stats, info);
				pthread_mutex_unlock(&list[i]->lock);
			} else {
				fill_busy(list[i], info);
			}
			p->vms[p->n_vms++] = info;
		}
		smv_vm_put(list[i]);
	}
	free(list);
	return 0;
}

static double us(uint64_t ns)
{
	return (double)ns / 1000;
}

static void fill_stalls(const struct smv_stalls *stalls, VmStats *p)
{
	p->stalls = stalls->nr;
	p->stalled = stalls->present_ns > 0;
	p->stall_ms_p50 = us(stalls->p50_ns) / 1000;
	p->stall_ms_p99 = us(stalls->p99_ns) / 1000;
	p->stall_ms_max = us(stalls->max_ns) / 1000;
}

static void fill_stats(struct smv_vm *vm, VmStats *p)
{
	struct smv_pager_stats s;

	smv_vm_stats(vm, &s);
	fill_info(vm, &s, p->info);
	fill_stalls(&s.stalls, p);
	p->faults = s.faults;
	p->page_ins = s.page_ins;
	p->zero_fills = s.zero_fills;
	p->evictions = s.evictions;
	p->evictions_clean = s.evictions_clean;
	p->evictions_aborted = s.evictions_aborted;
	p->discards = s.discards;
	p->faults_waited_for_room = s.faults_waited_for_room;
	p->bytes_read = s.bytes_read;
	p->bytes_written = s.bytes_written;
	p->fault_latency_us->p50 = us(s.latency_ns_p50);
	p->fault_latency_us->p99 = us(s.latency_ns_p99);
	p->fault_latency_us->p999 = us(s.latency_ns_p999);
	p->fault_latency_us->max = us(s.latency_ns_max);
	p->slots_free = vm->slots.nr_free;
	p->slots = vm->slots.nr_extents * SMV_EXTENT_PAGES;
	if (!vm->backed)
		return;
	p->pages_zero = smv_pagemap_count(&vm->map, SMV_PAGE_ZERO);
	p->pages_local = smv_pagemap_count(&vm->map, SMV_PAGE_LOCAL);
	p->pages_remote = smv_pagemap_count(&vm->map, SMV_PAGE_COLD);
	p->pages_lost = smv_pagemap_count(&vm->map, SMV_PAGE_LOST);
	if (vm->backing.transport)
		p->transport = strdup(smv_transport_name(vm->backing.transport));
}

HANDLER(get_vm_stats)
{
	const Smemv__V1__GetVmStatsRequest *q = (const void *)request;
	VmStats *p = (void *)response;
	struct smv_vm *vm = smv_vms_get(q->name);

	(void)ctx;
	(void)call;
	if (!vm)
		return no_vm(q->name, err);
	p->info = calloc(1, sizeof(*p->info));
	p->fault_latency_us = calloc(1, sizeof(*p->fault_latency_us));
	if (!p->info || !p->fault_latency_us)
		abort();
	smemv__v1__vm_info__init(p->info);
	smemv__v1__latency_quantiles__init(p->fault_latency_us);
	if (!smv_vm_lock_until(vm, smv_now_ns() + PATIENCE_NS))
		return put(vm, smv_fail(err, SMV_UNAVAILABLE, "busy", "Try again.",
				       "VM '%s' is busy: something is being done with it, or its "
				       "QEMU does not "
				       "answer",
				       vm->name));
	fill_stats(vm, p);
	pthread_mutex_unlock(&vm->lock);
	smv_vm_put(vm);
	return 0;
}

HANDLER(set_budget)
{
	const Smemv__V1__SetBudgetRequest *q = (const void *)request;
	Smemv__V1__SetBudgetResponse *p = (void *)response;
	struct smv_vm *vm = smv_vms_get(q->name);
	int r;

	(void)ctx;
	(void)call;
	if (!vm)
		return no_vm(q->name, err);
	r = smv_vm_set_budget(vm, q->budget_bytes, &p->added_room_bytes, err);
	if (r == 0) {
		pthread_mutex_lock(&vm->lock);
		p->budget_bytes = vm->budget_bytes;
		p->effective_budget_bytes = vm->budget.granted * SMV_PAGE_SIZE;
		p->resident_bytes = smv_guest_ram_resident(&vm->ram);
		p->slots = vm->slots.nr_extents * SMV_EXTENT_PAGES;
		p->slots_free = vm->slots.nr_free;
		p->room_bytes = vm->backing.nr_extents * SMV_EXTENT_BYTES;
		pthread_mutex_unlock(&vm->lock);
	}
	return put(vm, r);
}

HANDLER(prepare_migration)
{
	const Smemv__V1__PrepareMigrationRequest *q = (const void *)request;
	struct smv_vm *vm = smv_vms_get(q->vm);

	(void)ctx;
	(void)call;
	if (!vm)
		return no_vm(q->vm, err);
	return put(vm, smv_migration_prepare(vm, q, (void *)response, err));
}

HANDLER(plan_migration)
{
	const Smemv__V1__PrepareMigrationRequest *q = (const void *)request;
	struct smv_vm *vm = smv_vms_get(q->vm);

	(void)ctx;
	(void)call;
	if (!vm)
		return no_vm(q->vm, err);
	smv_migration_plan(vm, q, (void *)response);
	return put(vm, 0);
}

HANDLER(report_pages)
{
	const Smemv__V1__ReportPagesRequest *q = (const void *)request;
	Smemv__V1__ReportPagesResponse *p = (void *)response;
	struct smv_vm *vm = vm_of_migration(q->migration_id, err);

	(void)ctx;
	(void)call;
	return vm ? put(vm, smv_migration_report(vm, q, &p->applied_sequence, err)) : -ENOENT;
}

HANDLER(start_incoming)
{
	const Smemv__V1__StartIncomingRequest *q = (const void *)request;
	Smemv__V1__StartIncomingResponse *p = (void *)response;
	struct smv_vm *vm = vm_of_migration(q->migration_id, err);

	(void)ctx;
	(void)call;
	return vm ? put(vm, smv_migration_start_incoming(vm, q->migration_id, &p->uri, err))
		  : -ENOENT;
}

HANDLER(confirm_map)
{
	const Smemv__V1__ConfirmMapRequest *q = (const void *)request;
	struct smv_vm *vm = vm_of_migration(q->migration_id, err);

	(void)ctx;
	(void)call;
	(void)response;
	return vm ? put(vm, smv_migration_confirm(vm, q, err)) : -ENOENT;
}

HANDLER(commit_migration)
{
	const Smemv__V1__CommitMigrationRequest *q = (const void *)request;
	struct smv_vm *vm = vm_of_migration(q->migration_id, err);

	(void)ctx;
	return vm ? put(vm, smv_migration_commit(vm, call, q->migration_id, q->timeout_ms,
				    (void *)response, err))
		  : -ENOENT;
}

/* For how a migration ended, its VM need not be there any more. */
static int recall(const char *id, Smemv__V1__MigrationVerdict *verdict, struct smv_error *err)
{
	if (smv_migration_recall(id, verdict) == 0)
		return 0;
	return smv_fail(
		err, SMV_NOT_FOUND, "no-migration", NULL, "no migration %.40s is known here", id);
}

HANDLER(abort_migration)
{
	const Smemv__V1__AbortMigrationRequest *q = (const void *)request;
	struct smv_vm *vm = smv_vms_get_by_migration(q->migration_id);
	int r = -ENOENT;

	(void)ctx;
	(void)call;
	if (vm)
		r = smv_migration_abort(vm, q->migration_id, q->why, (void *)response);
	smv_vm_put(vm);
	return r == 0 ? 0 : recall(q->migration_id, (void *)response, err);
}

HANDLER(get_migration)
{
	const Smemv__V1__GetMigrationRequest *q = (const void *)request;
	struct smv_vm *vm = smv_vms_get_by_migration(q->migration_id);
	int r = -ENOENT;

	(void)ctx;
	(void)call;
	if (vm)
		r = smv_migration_verdict(vm, q->migration_id, (void *)response);
	smv_vm_put(vm);
	return r == 0 ? 0 : recall(q->migration_id, (void *)response, err);
}

int smv_pager_service_add(struct smv_rpc_server *server)
{
	static const struct smv_rpc_method methods[] = {
		{"RegisterVm", register_vm},
		{"ListVms", list_vms},
		{"GetVmStats", get_vm_stats},
		{"SetBudget", set_budget},
		{"PrepareMigration", prepare_migration},
		{"PlanMigration", plan_migration},
		{"ReportPages", report_pages},
		{"StartIncoming", start_incoming},
		{"ConfirmMap", confirm_map},
		{"CommitMigration", commit_migration},
		{"AbortMigration", abort_migration},
		{"GetMigration", get_migration},
		{"ListEvents", smv_rpc_list_events},
		{NULL, NULL},
	};

	return smv_rpc_server_add_service(server, &smemv__v1__pager__descriptor, methods, NULL);
}
