/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/service.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/hex.h"
#include "rpc/events.h"

#include <errno.h>
#include <inttypes.h>
#include <smemv/v1/memserver.pb-c.h>
#include <stdio.h>
#include <string.h>

/* ListLeases leaves the segments out when there are more in all, so that the answer stays below
 * SMV_RPC_MESSAGE_MAX; GetLease has them. */
#define LIST_SEGMENTS_MAX 2048

static int fail_memory(struct smv_error *err)
{
	return smv_fail(err, SMV_INTERNAL, "no-memory", NULL, "the server is out of memory");
}

static int parse_id(const char *text, uint64_t *id, struct smv_error *err)
{
	*id = strtoull(text, NULL, 16);
	if (smv_is_hex(text, 16))
		return 0;
	return smv_fail(err, SMV_INVALID, "bad-lease-id", "The id is what CreateLease answered.",
		"a lease id has 16 hexadecimal digits (0-9, a-f)");
}

/* --- answers ------------------------------------------------------------------------------ */

static int fill_segments(Smemv__V1__Lease *m, const struct smv_lease_info *info)
{
	m->segments = calloc(info->nr_segments, sizeof(Smemv__V1__Segment *));
	if (!m->segments)
		return -ENOMEM;
	for (size_t i = 0; i < info->nr_segments; i++) {
		const struct smv_lease_segment *from = &info->segments[i];
		Smemv__V1__Segment *s = malloc(sizeof(*s));

		if (!s)
			return -ENOMEM;
		smemv__v1__segment__init(s);
		s->rkey = from->rkey;
		s->remote_addr = from->remote_addr;
		s->size_bytes = from->size_bytes;
		s->arena_offset = from->arena_offset;
		m->segments[m->n_segments++] = s;
	}
	return 0;
}

/* Clears @info. */
static int fill_lease(
	Smemv__V1__Lease *m, struct smv_lease_info *info, bool with_segments, struct smv_error *err)
{
	int rc = 0;

	m->state = (Smemv__V1__LeaseState)info->state;
	m->epoch = info->epoch;
	m->size_bytes = info->size_bytes;
	m->age_ms = info->age_ms;
	m->expires_in_ms = info->expires_in_ms;
	m->nr_connections = info->nr_connections;
	m->prepare_ms = info->prepare_ms;
	m->since_renewal_ms = info->since_renewal_ms;
	m->generation = info->generation;
	m->owner = strdup(info->owner);
	if (asprintf(&m->id, "%016" PRIx64, info->id) < 0)
		m->id = NULL;
	if (with_segments)
		rc = fill_segments(m, info);
	smv_lease_info_clear(info);
	return rc < 0 || !m->owner || !m->id ? fail_memory(err) : 0;
}

static int fill_new_lease(Smemv__V1__Lease **m, struct smv_lease_info *info, bool with_segments,
	struct smv_error *err)
{
	*m = malloc(sizeof(**m));
	if (!*m) {
		smv_lease_info_clear(info);
		return fail_memory(err);
	}
	smemv__v1__lease__init(*m);
	return fill_lease(*m, info, with_segments, err);
}

/* --- methods ------------------------------------------------------------------------------ */

static int fill_addresses(Smemv__V1__ServerInfo *m, const struct smv_data_plane *data)
{
	size_t nr;
	const char *const *addresses = smv_data_addresses(data, &nr);

	m->data_addresses = calloc(nr + 1, sizeof(char *));
	if (!m->data_addresses)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++) {
		m->data_addresses[i] = strdup(addresses[i]);
		if (!m->data_addresses[i])
			return -ENOMEM;
		m->n_data_addresses++;
	}
	return 0;
}

static int get_server_info(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	Smemv__V1__ServerInfo *m = (Smemv__V1__ServerInfo *)response;
	struct smv_lease_totals totals;

	(void)call;
	(void)request;
	smv_lease_table_totals(s->table, &totals);
	m->name = strdup(s->name);
	m->version = strdup(SMEMV_VERSION);
	m->incarnation = strdup(smv_arena_incarnation(s->arena));
	m->extent_bytes = SMV_EXTENT_SIZE;
	m->capacity_bytes = totals.capacity_bytes;
	m->free_bytes = totals.free_bytes;
	m->zeroing_bytes = totals.zeroing_bytes;
	m->hugepage_bytes = smv_arena_hugepage_bytes(s->arena);
	m->nr_leases = totals.nr_leases;
	m->bytes_received = totals.bytes_received;
	m->bytes_sent = totals.bytes_sent;
	m->bytes_counted = totals.bytes_counted;
	m->uptime_ms = (smv_now_ns() - s->started_ns) / SMV_NS_PER_MS;
	if (!m->name || !m->version || !m->incarnation || fill_addresses(m, s->data) < 0)
		return fail_memory(err);
	return 0;
}

static int fill_created(const struct smv_mem_server *s, Smemv__V1__CreateLeaseResponse *m,
	struct smv_lease_info *info, const uint8_t *key, struct smv_error *err)
{
	int rc = fill_new_lease(&m->lease, info, true, err);

	m->incarnation = strdup(smv_arena_incarnation(s->arena));
	m->ticket_key.data = malloc(SMV_TICKET_KEY_SIZE);
	if (rc < 0 || !m->incarnation || !m->ticket_key.data)
		return fail_memory(err);
	m->ticket_key.len = SMV_TICKET_KEY_SIZE;
	memcpy(m->ticket_key.data, key, SMV_TICKET_KEY_SIZE);
	return 0;
}

static int create_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	const Smemv__V1__CreateLeaseRequest *q = (const Smemv__V1__CreateLeaseRequest *)request;
	struct smv_lease_request r = {.owner = q->owner,
		.size_bytes = q->size_bytes,
		.epoch = q->epoch,
		.ttl_ms = q->ttl_ms};
	uint8_t key[SMV_TICKET_KEY_SIZE];
	struct smv_lease_info info;
	int rc;

	(void)call;
	rc = smv_data_find_transport(s->data, q->transport, &r.transport, err);
	if (rc == 0)
		rc = smv_lease_create(s->table, &r, &info, key, err);
	if (rc < 0)
		return rc;
	rc = fill_created(s, (Smemv__V1__CreateLeaseResponse *)response, &info, key, err);
	explicit_bzero(key, sizeof(key));
	return rc;
}

static int get_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	struct smv_lease_info info;
	uint64_t id;
	int rc = parse_id(((const Smemv__V1__GetLeaseRequest *)request)->id, &id, err);

	(void)call;
	if (rc == 0)
		rc = smv_lease_get(s->table, id, &info, err);
	return rc < 0 ? rc : fill_lease((Smemv__V1__Lease *)response, &info, true, err);
}

static int fill_list(Smemv__V1__ListLeasesResponse *m, struct smv_lease_info *infos, size_t nr,
	struct smv_error *err)
{
	size_t nr_segments = 0;
	int rc = 0;

	for (size_t i = 0; i < nr; i++)
		nr_segments += infos[i].nr_segments;
	m->leases = calloc(nr + 1, sizeof(Smemv__V1__Lease *));
	for (size_t i = 0; i < nr; i++) {
		if (m->leases && rc == 0)
			rc = fill_new_lease(
				&m->leases[i], &infos[i], nr_segments <= LIST_SEGMENTS_MAX, err);
		if (m->leases && m->leases[i])
			m->n_leases = i + 1;
		smv_lease_info_clear(&infos[i]);
	}
	return m->leases ? rc : fail_memory(err);
}

static int list_leases(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	CLEANUP_FREE struct smv_lease_info *infos = NULL;
	size_t nr;

	(void)call;
	(void)request;
	if (smv_lease_list(s->table, &infos, &nr) < 0) {
		infos = NULL;
		return fail_memory(err);
	}
	return fill_list((Smemv__V1__ListLeasesResponse *)response, infos, nr, err);
}

static int renew_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	struct smv_lease_info info;
	uint64_t id;
	int rc = parse_id(((const Smemv__V1__RenewLeaseRequest *)request)->id, &id, err);

	(void)call;
	if (rc == 0)
		rc = smv_lease_renew(s->table, id, &info, err);
	return rc < 0 ? rc : fill_lease((Smemv__V1__Lease *)response, &info, true, err);
}

static int hold_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	struct smv_lease_info info;
	uint64_t id;
	int rc = parse_id(((const Smemv__V1__HoldLeaseRequest *)request)->id, &id, err);

	(void)call;
	if (rc == 0)
		rc = smv_lease_hold(s->table, id, &info, err);
	return rc < 0 ? rc : fill_lease((Smemv__V1__Lease *)response, &info, true, err);
}

static int fence_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	const Smemv__V1__FenceLeaseRequest *q = (const Smemv__V1__FenceLeaseRequest *)request;
	struct smv_lease_info info;
	uint64_t id;
	int rc = parse_id(q->id, &id, err);

	(void)call;
	if (rc == 0)
		rc = smv_lease_fence(s->table, id, q->epoch, &info, err);
	return rc < 0 ? rc : fill_lease((Smemv__V1__Lease *)response, &info, true, err);
}

static int release_lease(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const struct smv_mem_server *s = ctx;
	const Smemv__V1__ReleaseLeaseRequest *q = (const Smemv__V1__ReleaseLeaseRequest *)request;
	uint64_t id;
	int rc = parse_id(q->id, &id, err);

	(void)call;
	(void)response;
	if (rc < 0)
		return rc;
	return q->unless_held ? smv_lease_release_unheld(s->table, id, err)
			      : smv_lease_release(s->table, id, err);
}

static const struct smv_rpc_method methods[] = {
	{"GetServerInfo", get_server_info},
	{"CreateLease", create_lease},
	{"GetLease", get_lease},
	{"ListLeases", list_leases},
	{"RenewLease", renew_lease},
	{"HoldLease", hold_lease},
	{"FenceLease", fence_lease},
	{"ReleaseLease", release_lease},
	{"ListEvents", smv_rpc_list_events},
	{0},
};

int smv_mem_server_add(struct smv_rpc_server *rpc, struct smv_mem_server *server)
{
	return smv_rpc_server_add_service(rpc, &smemv__v1__mem_server__descriptor, methods, server);
}
