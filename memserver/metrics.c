/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/metrics.h"

#include "common/cleanup.h"
#include "memserver/service.h"

#include <inttypes.h>
#include <stdio.h>

SMV_GAUGE(server, "smemv_server_info",
	"Always 1; another incarnation: what was lent before is lost.");
SMV_GAUGE(generation, "smemv_arena_generation", "How often the arena was taken over.");
SMV_GAUGE(capacity, "smemv_arena_bytes", "Memory that is lent in all.");
SMV_GAUGE(leased, "smemv_arena_leased_bytes", "Memory of leases.");
SMV_GAUGE(zeroing, "smemv_arena_zeroing_bytes", "Memory of leases that ended, not free yet.");
SMV_GAUGE(free_bytes, "smemv_arena_free_bytes", "Memory that can be lent now.");
SMV_COUNTER(received, "smemv_data_received_bytes_total",
	"Page data that peers wrote; only where a CPU sees it.");
SMV_COUNTER(sent, "smemv_data_sent_bytes_total",
	"Page data that peers read; only where a CPU sees it.");
SMV_GAUGE(connections, "smemv_data_connections", "Data connections of all leases.");
SMV_GAUGE(leases, "smemv_leases", "Leases in each state.");
SMV_GAUGE(lease_bytes, "smemv_lease_bytes", "Size of a lease.");
SMV_GAUGE(lease_age, "smemv_lease_age_seconds", "Since a lease was made.");
SMV_GAUGE(renewal_age, "smemv_lease_renewal_age_seconds", "Since the owner was last heard of.");

static void add_totals(struct smv_metrics *m, const struct smv_mem_server *s)
{
	struct smv_lease_totals totals;

	smv_lease_table_totals(s->table, &totals);
	smv_metrics_add(m, &server, 1, "name", s->name, "incarnation",
		smv_arena_incarnation(s->arena), NULL);
	smv_metrics_add(m, &generation, (double)smv_arena_generation(s->arena), NULL);
	smv_metrics_add(m, &capacity, (double)totals.capacity_bytes, NULL);
	smv_metrics_add(m, &leased,
		(double)(totals.capacity_bytes - totals.free_bytes - totals.zeroing_bytes), NULL);
	smv_metrics_add(m, &zeroing, (double)totals.zeroing_bytes, NULL);
	smv_metrics_add(m, &free_bytes, (double)totals.free_bytes, NULL);
	if (!totals.bytes_counted)
		return;
	smv_metrics_add(m, &received, (double)totals.bytes_received, NULL);
	smv_metrics_add(m, &sent, (double)totals.bytes_sent, NULL);
}

static void add_lease(struct smv_metrics *m, const struct smv_lease_info *info)
{
	char id[20];

	snprintf(id, sizeof(id), "%016" PRIx64, info->id);
	smv_metrics_add(
		m, &lease_bytes, (double)info->size_bytes, "lease", id, "owner", info->owner, NULL);
	smv_metrics_add(m, &lease_age, (double)info->age_ms / 1000, "lease", id, "owner",
		info->owner, NULL);
	smv_metrics_add(m, &renewal_age, (double)info->since_renewal_ms / 1000, "lease", id,
		"owner", info->owner, NULL);
}

void smv_mem_server_collect(void *ctx, struct smv_metrics *metrics)
{
	static const enum smv_lease_state states[] = {SMV_LEASE_PREPARING, SMV_LEASE_PROVISIONAL,
		SMV_LEASE_HELD, SMV_LEASE_ORPHANED, SMV_LEASE_RELEASING};
	const struct smv_mem_server *s = ctx;
	CLEANUP_FREE struct smv_lease_info *infos = NULL;
	size_t nr = 0, counts[SMV_ARRAY_SIZE(states)] = {0}, nr_connections = 0;

	add_totals(metrics, s);
	if (smv_lease_list(s->table, &infos, &nr) < 0) {
		infos = NULL;
		return;
	}
	for (size_t i = 0; i < nr; i++) {
		for (size_t k = 0; k < SMV_ARRAY_SIZE(states); k++)
			counts[k] += infos[i].state == states[k];
		nr_connections += infos[i].nr_connections;
		add_lease(metrics, &infos[i]);
		smv_lease_info_clear(&infos[i]);
	}
	for (size_t k = 0; k < SMV_ARRAY_SIZE(states); k++)
		smv_metrics_add(metrics, &leases, (double)counts[k], "state",
			smv_lease_state_name(states[k]), NULL);
	smv_metrics_add(metrics, &connections, (double)nr_connections, NULL);
}
