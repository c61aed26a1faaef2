/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/metrics.h"

#include "common/clock.h"
#include "pagerd/debts.h"
#include "pagerd/vm.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

/* Waited for all VMs that are busy together: Prometheus gives up after 10 s. */
#define PATIENCE_S 5

SMV_GAUGE(vms_busy, "smemv_vms_busy", "VMs that are left out here because they were busy.");
SMV_GAUGE(debts, "smemv_debts", "Leases that could not be given back yet.");
SMV_GAUGE(vm_state, "smemv_vm_state", "1 for the state that the VM is in, 0 for the others.");
SMV_GAUGE(vm_ram, "smemv_vm_ram_bytes", "Size of the VM.");
SMV_GAUGE(vm_budget, "smemv_vm_budget_bytes", "Memory that its operator lets it hold here.");
SMV_GAUGE(vm_granted, "smemv_vm_effective_budget_bytes",
	"What it is granted of that, while the VMs together want more than this host lends.");
SMV_GAUGE(vm_resident, "smemv_vm_resident_bytes", "Memory that the VM holds on this host.");
SMV_GAUGE(
	vm_trouble, "smemv_vm_in_trouble", "1: smemvctl vms says something in its column TROUBLE.");
SMV_GAUGE(vm_at_risk, "smemv_vm_at_risk", "1: it has a device or a disk that may lose writes.");
SMV_GAUGE(vm_pages, "smemv_vm_pages", "Pages in each state.");
SMV_GAUGE(vm_slots, "smemv_vm_slots", "Pages for which there is room on the sub-hosts.");
SMV_GAUGE(vm_slots_free, "smemv_vm_slots_free", "Of these, free.");
SMV_COUNTER(vm_faults, "smemv_vm_faults_total", "Faults that the VM's threads raised.");
SMV_COUNTER(vm_page_ins, "smemv_vm_page_ins_total", "Pages read from a sub-host.");
SMV_COUNTER(vm_zero_fills, "smemv_vm_zero_fills_total", "Faults answered with a page of zeros.");
SMV_COUNTER(vm_evictions, "smemv_vm_evictions_total", "Pages given up on this host.");
SMV_COUNTER(vm_evictions_clean, "smemv_vm_evictions_clean_total",
	"Of these, those that needed no write.");
SMV_COUNTER(vm_evictions_aborted, "smemv_vm_evictions_aborted_total",
	"Evictions taken back because the page was touched.");
SMV_COUNTER(vm_discards, "smemv_vm_discards_total",
	"Pages that held a frame or a slot when the guest gave them up.");
SMV_COUNTER(vm_waited, "smemv_vm_faults_waited_for_room_total",
	"Faults that could not be answered at once.");
SMV_SUMMARY(vm_latency, "smemv_vm_fault_latency_seconds",
	"From a fault to its page being in place, for pages read; quantiles since the start.");
SMV_COUNTER(vm_stall_seconds, "smemv_vm_stall_seconds_total",
	"Time in which some fault had waited for more than 100 ms, or no pager served.");
SMV_COUNTER(vm_stalls, "smemv_vm_stalls_total", "How often that began.");
SMV_GAUGE(vm_stalled, "smemv_vm_stalled", "1: that is so now.");
SMV_GAUGE(vm_longest_stall, "smemv_vm_longest_stall_seconds", "The longest one since the start.");
SMV_GAUGE(host_up, "smemv_sub_host_up", "1: the pager's connections to the sub-host work.");
SMV_GAUGE(
	host_lost, "smemv_sub_host_data_lost", "1: the sub-host has lost what it held of this VM.");
SMV_COUNTER(host_read, "smemv_sub_host_read_bytes_total", "Page data read from a sub-host.");
SMV_COUNTER(host_written, "smemv_sub_host_written_bytes_total", "Page data written to a sub-host.");
SMV_GAUGE(renewal_age, "smemv_lease_renewal_age_seconds",
	"Since the sub-host last answered a renewal of the lease; 15 are usual.");

static double seconds(uint64_t ns)
{
	return (double)ns / (double)SMV_NS_PER_S;
}

static void add_state(struct smv_metrics *m, const struct smv_vm *vm)
{
	for (enum smv_vm_state state = SMV_VM_WAITING; state <= SMV_VM_FAILED; state++)
		smv_metrics_add(m, &vm_state, vm->state == state, "vm", vm->name, "state",
			smv_vm_state_name(state), NULL);
}

static void add_pages(struct smv_metrics *m, const struct smv_vm *vm)
{
	for (enum smv_page_state s = 0; s < SMV_PAGE_NR_STATES; s++) {
		char name[20];
		size_t i = 0;

		for (const char *c = smv_page_state_name(s); *c && i < sizeof(name) - 1; c++)
			name[i++] = (char)tolower((unsigned char)*c);
		name[i] = '\0';
		smv_metrics_add(m, &vm_pages, (double)smv_pagemap_count(&vm->map, s), "vm",
			vm->name, "state", name, NULL);
	}
	smv_metrics_add(m, &vm_slots, (double)(vm->slots.nr_extents * SMV_EXTENT_PAGES), "vm",
		vm->name, NULL);
	smv_metrics_add(m, &vm_slots_free, (double)vm->slots.nr_free, "vm", vm->name, NULL);
}

static void add_counters(
	struct smv_metrics *m, const struct smv_vm *vm, const struct smv_pager_stats *s)
{
	const struct smv_summary latency = {.p50 = seconds(s->latency_ns_p50),
		.p99 = seconds(s->latency_ns_p99),
		.p999 = seconds(s->latency_ns_p999),
		.sum = seconds(s->latency_ns_sum),
		.count = s->page_ins};
	const struct {
		const struct smv_metric *metric;
		uint64_t value;
	} counters[] = {{&vm_faults, s->faults}, {&vm_page_ins, s->page_ins},
		{&vm_zero_fills, s->zero_fills}, {&vm_evictions, s->evictions},
		{&vm_evictions_clean, s->evictions_clean},
		{&vm_evictions_aborted, s->evictions_aborted}, {&vm_discards, s->discards},
		{&vm_waited, s->faults_waited_for_room}};

	for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
		smv_metrics_add(
			m, counters[i].metric, (double)counters[i].value, "vm", vm->name, NULL);
	smv_metrics_add_summary(m, &vm_latency, &latency, "vm", vm->name, NULL);
}

static void add_stalls(
	struct smv_metrics *m, const struct smv_vm *vm, const struct smv_stalls *stalls)
{
	smv_metrics_add(m, &vm_stall_seconds, seconds(stalls->ns), "vm", vm->name, NULL);
	smv_metrics_add(m, &vm_stalls, (double)stalls->nr, "vm", vm->name, NULL);
	smv_metrics_add(m, &vm_stalled, stalls->present_ns > 0, "vm", vm->name, NULL);
	smv_metrics_add(m, &vm_longest_stall, seconds(stalls->max_ns), "vm", vm->name, NULL);
}

/* When the one of a sub-host's leases was renewed that waits longest for it; 0: it has none, as it
 * was full. */
static uint64_t renewed_ns(const struct smv_vm *vm, unsigned int first)
{
	uint64_t oldest = 0;

	for (unsigned int h = first; h < vm->leases.nr; h++) {
		const struct smv_lease *lease = &vm->leases.leases[h];

		if (lease->created && smv_backing_first_of(&vm->backing, h) == first &&
			(!oldest || lease->renewed_ns < oldest))
			oldest = lease->renewed_ns;
	}
	return oldest;
}

/* One sample for each, however many leases the VM has there. */
static void add_sub_host(struct smv_metrics *m, const struct smv_vm *vm, unsigned int h)
{
	const char *address = vm->backing.sub_hosts[h].address;
	struct smv_sub_host_stats s = {.state = SMV_HOST_DOWN};
	uint64_t renewed;

	if (smv_backing_first_of(&vm->backing, h) != h || !(renewed = renewed_ns(vm, h)))
		return;
	smv_metrics_add(m, &renewal_age, seconds(smv_now_ns() - renewed), "vm", vm->name,
		"sub_host", address, NULL);
	/* Before the switch-over, or when it could not be taken over, nobody is connected. */
	if (!vm->pager || vm->state != SMV_VM_RUNNING)
		return;
	smv_pager_sub_host_stats(vm->pager, h, &s);
	smv_metrics_add(
		m, &host_up, s.state == SMV_HOST_UP, "vm", vm->name, "sub_host", address, NULL);
	smv_metrics_add(
		m, &host_lost, s.state == SMV_HOST_LOST, "vm", vm->name, "sub_host", address, NULL);
	smv_metrics_add(
		m, &host_read, (double)s.bytes_read, "vm", vm->name, "sub_host", address, NULL);
	smv_metrics_add(m, &host_written, (double)s.bytes_written, "vm", vm->name, "sub_host",
		address, NULL);
}

/* The lock is held. */
static void add_vm(struct smv_metrics *m, struct smv_vm *vm)
{
	struct smv_pager_stats stats;

	smv_vm_stats(vm, &stats);
	add_state(m, vm);
	smv_metrics_add(m, &vm_ram, (double)vm->ram.bytes, "vm", vm->name, NULL);
	smv_metrics_add(m, &vm_budget, (double)vm->budget_bytes, "vm", vm->name, NULL);
	smv_metrics_add(
		m, &vm_granted, (double)(vm->budget.granted * SMV_PAGE_SIZE), "vm", vm->name, NULL);
	smv_metrics_add(
		m, &vm_resident, (double)smv_guest_ram_resident(&vm->ram), "vm", vm->name, NULL);
	smv_metrics_add(m, &vm_trouble, vm->trouble[0] || stats.trouble[0] || vm->watch.alarm, "vm",
		vm->name, NULL);
	smv_metrics_add(m, &vm_at_risk, vm->watch.alarm, "vm", vm->name, NULL);
	add_stalls(m, vm, &stats.stalls);
	if (!vm->backed)
		return;
	if (vm->map.words)
		add_pages(m, vm);
	add_counters(m, vm, &stats);
	for (unsigned int h = 0; h < vm->backing.nr_sub_hosts && h < vm->leases.nr; h++)
		add_sub_host(m, vm, h);
}

void smv_pagerd_collect(void *ctx, struct smv_metrics *metrics)
{
	struct smv_vm **list;
	size_t n = smv_vms_list(&list), busy = 0;
	uint64_t until = smv_now_ns() + PATIENCE_S * SMV_NS_PER_S;

	(void)ctx;
	for (size_t i = 0; i < n; i++) {
		if (smv_vm_lock_until(list[i], until)) {
			add_vm(metrics, list[i]);
			pthread_mutex_unlock(&list[i]->lock);
		} else {
			busy++;
		}
		smv_vm_put(list[i]);
	}
	free(list);
	smv_metrics_add(metrics, &vms_busy, (double)busy, NULL);
	smv_metrics_add(metrics, &debts, (double)smv_debts_count(), NULL);
}
