/* SPDX-License-Identifier: Apache-2.0 */
#include "client/leases_state.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/hex.h"
#include "common/json.h"
#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- to JSON ------------------------------------------------------------------------------ */

/* 64 bits do not fit a JSON integer of everybody's. */
static json_t *segments_to_json(const struct smv_sub_host *host)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < host->nr_segments; i++) {
		const struct smv_segment *s = &host->segments[i];

		json_array_append_new(
			list, json_pack("[o,o,I]", smv_json_hex(s->rkey),
				      smv_json_hex(s->remote_addr), (json_int_t)s->size_bytes));
	}
	return list;
}

json_t *smv_leases_to_json(const struct smv_leases *leases, const struct smv_backing *backing)
{
	json_t *hosts = json_array();

	for (unsigned int h = 0; h < leases->nr; h++) {
		const struct smv_lease *lease = &leases->leases[h];
		const struct smv_sub_host *host = &backing->sub_hosts[h];
		char data[SMV_ADDR_MAX] = "", key[2 * SMV_TICKET_KEY_SIZE + 1];

		if (lease->created)
			smv_addr_format(&host->data_addr, data, sizeof(data));
		json_array_append_new(hosts,
			json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:o, s:s, s:I}", "address",
				host->address, "name", host->name, "data_address", data, "lease",
				lease->id, "key",
				smv_hex_format(lease->key, SMV_TICKET_KEY_SIZE, key), "held",
				lease->held, "segments", segments_to_json(host), "incarnation",
				lease->incarnation, "generation", (json_int_t)lease->generation));
	}
	return json_pack("{s:I, s:o}", "epoch", (json_int_t)leases->epoch, "sub_hosts", hosts);
}

/* --- from JSON ---------------------------------------------------------------------------- */

static bool segments_of(const json_t *list, struct smv_sub_host *host)
{
	size_t n = json_array_size(list);

	host->segments = calloc(n + 1, sizeof(*host->segments));
	for (size_t i = 0; host->segments && i < n; i++) {
		const json_t *row = json_array_get(list, i);
		struct smv_segment *s = &host->segments[host->nr_segments];
		json_int_t size = json_integer_value(json_array_get(row, 2));

		if (!smv_json_to_hex(json_array_get(row, 0), &s->rkey) ||
			!smv_json_to_hex(json_array_get(row, 1), &s->remote_addr) || size <= 0)
			return false;
		s->size_bytes = (uint64_t)size;
		host->nr_segments++;
	}
	return host->segments != NULL;
}

static bool sub_host_of(json_t *json, struct smv_sub_host *host, struct smv_lease *lease)
{
	const char *address, *name, *data, *id, *key, *incarnation;
	json_int_t generation;
	json_t *segments;
	int held;
	struct smv_addr addr;

	if (json_unpack(json, "{s:s, s:s, s:s, s:s, s:s, s:b, s:o, s:s, s:I}", "address", &address,
		    "name", &name, "data_address", &data, "lease", &id, "key", &key, "held", &held,
		    "segments", &segments, "incarnation", &incarnation, "generation",
		    &generation) < 0)
		return false;
	snprintf(host->address, sizeof(host->address), "%s", address);
	snprintf(host->name, sizeof(host->name), "%s", name);
	if (smv_addr_parse(address, false, &addr, NULL) < 0 ||
		smv_rpc_client_create(&addr, &lease->client) < 0)
		return false;
	if (!id[0]) /* a sub-host with no share */
		return segments_of(NULL, host);
	snprintf(lease->id, sizeof(lease->id), "%s", id);
	snprintf(lease->incarnation, sizeof(lease->incarnation), "%s", incarnation);
	lease->generation = (uint64_t)generation;
	lease->created = true;
	lease->held = held;
	lease->renewed_ns = smv_now_ns();
	host->lease_id = strtoull(id, NULL, 16);
	return smv_hex_parse(key, lease->key, SMV_TICKET_KEY_SIZE) &&
	       smv_addr_parse(data, true, &host->data_addr, NULL) == 0 &&
	       segments_of(segments, host);
}

void smv_leases_forget(struct smv_leases *leases, struct smv_backing *backing)
{
	for (unsigned int h = 0; h < leases->nr; h++)
		leases->leases[h].created = false;
	smv_leases_release(leases, backing);
	smv_backing_free(backing);
}

int smv_leases_from_json(const json_t *json, const struct smv_transport *transport,
	unsigned int timeout_ms, struct smv_leases *leases, struct smv_backing *backing,
	struct smv_error *err)
{
	json_t *hosts = json_object_get(json, "sub_hosts");
	size_t n = json_array_size(hosts);
	json_int_t epoch = json_integer_value(json_object_get(json, "epoch"));
	bool good = n > 0 && n <= SMV_SUB_HOSTS_MAX && epoch > 0 && epoch < UINT32_MAX;

	memset(leases, 0, sizeof(*leases));
	memset(backing, 0, sizeof(*backing));
	if (good) {
		pthread_mutex_init(&leases->nonce_lock, NULL);
		leases->epoch = (uint32_t)epoch;
		leases->timeout_ms = timeout_ms;
		leases->leases = calloc(n, sizeof(*leases->leases));
		backing->sub_hosts = calloc(n, sizeof(*backing->sub_hosts));
		backing->transport = transport;
		smv_leases_bind(leases, backing);
		good = leases->leases && backing->sub_hosts;
	}
	if (good)
		leases->nr = backing->nr_sub_hosts = (unsigned int)n;
	for (size_t h = 0; h < n && good; h++)
		good = sub_host_of(
			json_array_get(hosts, h), &backing->sub_hosts[h], &leases->leases[h]);
	if (good)
		return 0;
	smv_leases_forget(leases, backing);
	return smv_fail(
		err, SMV_DATA_LOSS, "leases", NULL, "what is written of the leases is broken");
}
