/* SPDX-License-Identifier: Apache-2.0 */
#include "client/leases.h"

#include "common/cleanup.h"
#include "common/log.h"
#include "common/program.h"
#include "common/units.h"
#include "smemv/v1/memserver.pb-c.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TTL_MS 60000
#define SLACK_MIN (64 * SMV_MIB)

typedef Smemv__V1__ServerInfo ServerInfo;
typedef Smemv__V1__Lease Lease;
typedef Smemv__V1__CreateLeaseResponse CreateLeaseResponse;

uint64_t smv_leases_room(uint64_t ram_bytes, uint64_t budget_bytes)
{
	uint64_t slack = ram_bytes / 20 > SLACK_MIN ? ram_bytes / 20 : SLACK_MIN;
	uint64_t need = (ram_bytes > budget_bytes ? ram_bytes - budget_bytes : 0) + slack;

	return (need + SMV_EXTENT_BYTES - 1) / SMV_EXTENT_BYTES * SMV_EXTENT_BYTES;
}

static int call_for(unsigned int timeout_ms, const struct smv_lease *lease, const char *method,
	const void *request, void **response, struct smv_error *err)
{
	return smv_rpc_client_call(lease->client, &smemv__v1__mem_server__descriptor, method,
		request, (ProtobufCMessage **)response, timeout_ms, false, err);
}

static int call(const struct smv_leases *leases, const struct smv_lease *lease, const char *method,
	const void *request, void **response, struct smv_error *err)
{
	return call_for(leases->timeout_ms, lease, method, request, response, err);
}

/* Put the sub-host into an error that does not name it yet. */
static void name_host(struct smv_error *err, const char *address)
{
	char text[sizeof(err->message)];

	snprintf(text, sizeof(text), "sub-host %.200s: %.380s", address, err->message);
	memcpy(err->message, text, sizeof(text));
}

static int open_client(
	const char *address, bool insecure, struct smv_rpc_client **client, struct smv_error *err)
{
	struct smv_addr addr;
	int r;

	if ((r = smv_addr_parse(address, false, &addr, err)) < 0 ||
		(r = smv_insecure_check(&addr, insecure, err)) < 0)
		return r;
	r = smv_rpc_client_create(&addr, client);
	return r < 0 ? smv_fail(err, SMV_INTERNAL, "rpc", NULL, "cannot make a client for %s: %s",
			       address, strerror(-r))
		     : 0;
}

static int ask_info(const struct smv_leases *leases, unsigned int h, const char *address,
	ServerInfo **info, struct smv_error *err)
{
	Smemv__V1__GetServerInfoRequest request = SMEMV__V1__GET_SERVER_INFO_REQUEST__INIT;
	int r = call(leases, &leases->leases[h], "GetServerInfo", &request, (void **)info, err);

	if (r < 0) {
		name_host(err, address);
		return r;
	}
	if ((*info)->extent_bytes != SMV_EXTENT_BYTES)
		return smv_fail(err, SMV_REFUSED, "extent-size", "Run the same version everywhere.",
			"sub-host %s lends extents of %lu bytes, this pager uses %u", address,
			(*info)->extent_bytes, SMV_EXTENT_BYTES);
	return 0;
}

/* Every sub-host gives in proportion to what it has free, so that all of them fill alike. */
static int share_out(ServerInfo *const *infos, const char *const *addresses, unsigned int nr,
	uint64_t bytes, uint64_t *shares, struct smv_error *err)
{
	uint64_t total = 0, left = bytes / SMV_EXTENT_BYTES, need = left;
	char numbers[400] = "", need_text[32], total_text[32], buf[32];
	size_t n = 0;

	for (unsigned int h = 0; h < nr; h++) {
		total += infos[h]->free_bytes / SMV_EXTENT_BYTES;
		n += (size_t)snprintf(numbers + n, n < sizeof(numbers) ? sizeof(numbers) - n : 0,
			"%s%.80s %s", h ? ", " : "", addresses[h],
			smv_format_size(infos[h]->free_bytes, buf, sizeof(buf)));
		if (n > sizeof(numbers))
			n = sizeof(numbers);
	}
	if (total < need)
		return smv_fail(err, SMV_NO_ROOM, "no-room",
			"Add a --sub-host, raise --memory of a memserverd, or raise --budget.",
			"the sub-hosts have too little room: needed %s (%lu bytes), free %s (%s)",
			smv_format_size(bytes, need_text, sizeof(need_text)), bytes,
			smv_format_size(total * SMV_EXTENT_BYTES, total_text, sizeof(total_text)),
			numbers);
	for (unsigned int h = 0; h < nr; h++) {
		uint64_t has = infos[h]->free_bytes / SMV_EXTENT_BYTES;

		shares[h] = (uint64_t)((unsigned __int128)need * has / total);
		left -= shares[h];
	}
	for (unsigned int h = 0; left; h = (h + 1) % nr) {
		if (shares[h] < infos[h]->free_bytes / SMV_EXTENT_BYTES) {
			shares[h]++;
			left--;
		}
	}
	for (unsigned int h = 0; h < nr; h++)
		shares[h] *= SMV_EXTENT_BYTES;
	return 0;
}

static int take_segments(
	struct smv_sub_host *host, const Lease *lease, uint64_t bytes, struct smv_error *err)
{
	uint64_t sum = 0;

	host->segments = calloc(lease->n_segments ? lease->n_segments : 1, sizeof(*host->segments));
	if (!host->segments)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	for (size_t i = 0; i < lease->n_segments; i++) {
		const Smemv__V1__Segment *s = lease->segments[i];

		if (s->size_bytes % SMV_EXTENT_BYTES || s->size_bytes > bytes - sum)
			break;
		host->segments[host->nr_segments++] =
			(struct smv_segment){s->rkey, s->remote_addr, s->size_bytes};
		sum += s->size_bytes;
	}
	if (sum != bytes)
		return smv_fail(err, SMV_INTERNAL, "bad-lease", NULL,
			"sub-host %s granted segments that are not what was asked for",
			host->address);
	return 0;
}

static int create_one(struct smv_leases *leases, struct smv_backing *backing, unsigned int h,
	const char *owner, uint64_t bytes, struct smv_error *err)
{
	Smemv__V1__CreateLeaseRequest request = SMEMV__V1__CREATE_LEASE_REQUEST__INIT;
	struct smv_lease *lease = &leases->leases[h];
	struct smv_sub_host *host = &backing->sub_hosts[h];
	CreateLeaseResponse *response = NULL;
	char *end;
	int r;

	request.owner = (char *)owner;
	request.size_bytes = bytes;
	request.epoch = leases->epoch;
	request.ttl_ms = TTL_MS;
	request.transport = (char *)smv_transport_name(backing->transport);
	r = call_for(leases->timeout_ms + smv_region_register_ms(bytes), lease, "CreateLease",
		&request, (void **)&response, err);
	if (r < 0) {
		name_host(err, host->address);
		return r;
	}
	if (!response->lease || response->ticket_key.len != SMV_TICKET_KEY_SIZE ||
		strlen(response->lease->id) != 16) {
		r = smv_fail(err, SMV_INTERNAL, "bad-lease", NULL,
			"sub-host %s answered CreateLease with a malformed lease", host->address);
	} else {
		snprintf(lease->id, sizeof(lease->id), "%.16s", response->lease->id);
		memcpy(lease->key, response->ticket_key.data, sizeof(lease->key));
		lease->created = true;
		host->lease_id = strtoull(lease->id, &end, 16);
		r = take_segments(host, response->lease, bytes, err);
	}
	smv_rpc_message_free((ProtobufCMessage *)response);
	return r;
}

static int choose_transport(struct smv_backing *backing, ServerInfo *const *infos,
	const struct smv_transport_wish *wish, char *reason, size_t reason_len,
	struct smv_error *err)
{
	struct smv_transport_peer peers[SMV_SUB_HOSTS_MAX];
	char names[SMV_SUB_HOSTS_MAX][SMV_ADDR_MAX + 16];
	int r;

	for (unsigned int h = 0; h < backing->nr_sub_hosts; h++) {
		snprintf(names[h], sizeof(names[h]), "sub-host %s", backing->sub_hosts[h].address);
		peers[h] = (struct smv_transport_peer){.name = names[h],
			.addresses = (const char *const *)infos[h]->data_addresses,
			.nr_addresses = infos[h]->n_data_addresses};
	}
	r = smv_transport_choose(
		wish, peers, backing->nr_sub_hosts, &backing->transport, reason, reason_len, err);
	for (unsigned int h = 0; h < backing->nr_sub_hosts && r == 0; h++)
		r = smv_addr_parse(peers[h].addresses[peers[h].index], true,
			&backing->sub_hosts[h].data_addr, err);
	return r;
}

/* Get to know all sub-hosts. */
static int meet_all(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, ServerInfo **infos,
	const struct smv_transport_wish *transport, bool insecure, char *reason, size_t reason_len,
	struct smv_error *err)
{
	int r = 0;

	for (unsigned int h = 0; h < leases->nr && r == 0; h++) {
		struct smv_sub_host *host = &backing->sub_hosts[h];

		snprintf(host->address, sizeof(host->address), "%s", addresses[h]);
		r = open_client(addresses[h], insecure, &leases->leases[h].client, err);
		if (r == 0)
			r = ask_info(leases, h, addresses[h], &infos[h], err);
		if (r == 0)
			snprintf(host->name, sizeof(host->name), "%s", infos[h]->name);
	}
	if (r == 0)
		r = choose_transport(backing, infos, transport, reason, reason_len, err);
	return r;
}

static int lease_all(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, ServerInfo *const *infos, const char *owner, uint64_t bytes,
	struct smv_error *err)
{
	uint64_t shares[SMV_SUB_HOSTS_MAX], run = bytes / SMV_EXTENT_BYTES / 2048 + 1;
	int r = share_out(infos, addresses, leases->nr, bytes, shares, err);

	for (unsigned int h = 0; h < leases->nr && r == 0; h++)
		if (shares[h])
			r = create_one(leases, backing, h, owner, shares[h], err);
	if (r == 0 && (r = smv_backing_spread(backing, run)) < 0)
		smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory for the extent table");
	return r;
}

static int init(struct smv_leases *leases, struct smv_backing *backing, unsigned int nr,
	unsigned int timeout_ms, struct smv_error *err)
{
	memset(leases, 0, sizeof(*leases));
	memset(backing, 0, sizeof(*backing));
	pthread_mutex_init(&leases->nonce_lock, NULL);
	leases->epoch = 1;
	leases->timeout_ms = timeout_ms;
	leases->leases = calloc(nr, sizeof(*leases->leases));
	backing->sub_hosts = calloc(nr, sizeof(*backing->sub_hosts));
	if (!leases->leases || !backing->sub_hosts)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	leases->nr = backing->nr_sub_hosts = nr;
	backing->ticket = smv_leases_ticket;
	backing->ticket_ctx = leases;
	return 0;
}

static void free_infos(ServerInfo *const *infos, unsigned int nr)
{
	for (unsigned int h = 0; h < nr; h++)
		smv_rpc_message_free((ProtobufCMessage *)infos[h]);
}

int smv_leases_probe(const char *const *addresses, unsigned int nr,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	struct smv_error *err)
{
	ServerInfo *infos[SMV_SUB_HOSTS_MAX] = {0};
	struct smv_backing backing;
	struct smv_leases leases;
	char reason[200];
	int r = init(&leases, &backing, nr, timeout_ms, err);

	if (r == 0)
		r = meet_all(&leases, &backing, addresses, infos, transport, insecure, reason,
			sizeof(reason), err);
	free_infos(infos, nr);
	smv_leases_release(&leases, &backing);
	smv_backing_free(&backing);
	return r;
}

void smv_leases_plan(const char *const *addresses, unsigned int nr, uint64_t bytes,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	struct smv_leases_plan *plan)
{
	ServerInfo *infos[SMV_SUB_HOSTS_MAX] = {0};
	uint64_t shares[SMV_SUB_HOSTS_MAX];
	struct smv_backing backing;
	struct smv_leases leases;
	bool all = init(&leases, &backing, nr, timeout_ms, &plan->room_error) == 0;

	for (unsigned int h = 0; h < leases.nr; h++) {
		struct smv_error *err = &plan->hosts[h].error;

		snprintf(backing.sub_hosts[h].address, sizeof(backing.sub_hosts[h].address), "%s",
			addresses[h]);
		if (open_client(addresses[h], insecure, &leases.leases[h].client, err) < 0 ||
			ask_info(&leases, h, addresses[h], &infos[h], err) < 0) {
			all = false;
			continue;
		}
		snprintf(plan->hosts[h].name, sizeof(plan->hosts[h].name), "%s", infos[h]->name);
		plan->hosts[h].free_bytes = infos[h]->free_bytes;
	}
	if (all && choose_transport(&backing, infos, transport, plan->reason, sizeof(plan->reason),
			   &plan->transport_error) == 0)
		plan->transport = backing.transport;
	if (all && share_out(infos, addresses, nr, bytes, shares, &plan->room_error) == 0)
		for (unsigned int h = 0; h < nr; h++)
			plan->hosts[h].share_bytes = shares[h];
	free_infos(infos, nr);
	smv_leases_release(&leases, &backing);
	smv_backing_free(&backing);
}

int smv_leases_create(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, unsigned int nr, const char *owner, uint64_t bytes,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	char *reason, size_t reason_len, struct smv_error *err)
{
	ServerInfo *infos[SMV_SUB_HOSTS_MAX] = {0};
	int r = init(leases, backing, nr, timeout_ms, err);

	if (r == 0)
		r = meet_all(leases, backing, addresses, infos, transport, insecure, reason,
			reason_len, err);
	if (r == 0)
		r = lease_all(leases, backing, addresses, infos, owner, bytes, err);
	free_infos(infos, nr);
	if (r < 0) {
		smv_leases_release(leases, backing);
		smv_backing_free(backing);
	}
	return r;
}

void smv_leases_renew(struct smv_leases *leases, const struct smv_backing *backing)
{
	for (unsigned int h = 0; h < leases->nr; h++) {
		Smemv__V1__RenewLeaseRequest request = SMEMV__V1__RENEW_LEASE_REQUEST__INIT;
		struct smv_lease *lease = &leases->leases[h];
		struct smv_error err;
		Lease *response = NULL;

		if (!lease->created || lease->held)
			continue;
		request.id = lease->id;
		if (call(leases, lease, "RenewLease", &request, (void **)&response, &err) < 0)
			smv_log_warning("sub-host %s: cannot renew lease %s: %s",
				backing->sub_hosts[h].address, lease->id, err.message);
		smv_rpc_message_free((ProtobufCMessage *)response);
	}
}

bool smv_leases_hold(struct smv_leases *leases, const struct smv_backing *backing)
{
	bool all = true;

	for (unsigned int h = 0; h < leases->nr; h++) {
		Smemv__V1__HoldLeaseRequest request = SMEMV__V1__HOLD_LEASE_REQUEST__INIT;
		struct smv_lease *lease = &leases->leases[h];
		struct smv_error err;
		Lease *response = NULL;

		if (!lease->created || lease->held)
			continue;
		request.id = lease->id;
		if (call(leases, lease, "HoldLease", &request, (void **)&response, &err) < 0) {
			smv_log_warning("sub-host %s: cannot hold lease %s, will try again: %s",
				backing->sub_hosts[h].address, lease->id, err.message);
			all = false;
		} else {
			lease->held = true;
		}
		smv_rpc_message_free((ProtobufCMessage *)response);
	}
	return all;
}

int smv_leases_fence(
	struct smv_leases *leases, const struct smv_backing *backing, struct smv_error *err)
{
	leases->epoch++;
	for (unsigned int h = 0; h < leases->nr; h++) {
		Smemv__V1__FenceLeaseRequest request = SMEMV__V1__FENCE_LEASE_REQUEST__INIT;
		struct smv_lease *lease = &leases->leases[h];
		Lease *response = NULL;
		int r;

		if (!lease->created)
			continue;
		request.id = lease->id;
		request.epoch = leases->epoch;
		r = call(leases, lease, "FenceLease", &request, (void **)&response, err);
		smv_rpc_message_free((ProtobufCMessage *)response);
		if (r < 0) {
			name_host(err, backing->sub_hosts[h].address);
			return r;
		}
	}
	return 0;
}

void smv_leases_release(struct smv_leases *leases, const struct smv_backing *backing)
{
	for (unsigned int h = 0; h < leases->nr; h++) {
		Smemv__V1__ReleaseLeaseRequest request = SMEMV__V1__RELEASE_LEASE_REQUEST__INIT;
		Smemv__V1__ReleaseLeaseResponse *response = NULL;
		struct smv_lease *lease = &leases->leases[h];
		struct smv_error err = {0};

		request.id = lease->id;
		if (lease->created &&
			call(leases, lease, "ReleaseLease", &request, (void **)&response, &err) <
				0 &&
			err.code != SMV_NOT_FOUND)
			smv_log_warning("sub-host %s: cannot release lease %s: %s",
				backing->sub_hosts[h].address, lease->id, err.message);
		smv_rpc_message_free((ProtobufCMessage *)response);
		if (lease->client)
			smv_rpc_client_destroy(lease->client);
	}
	if (leases->leases)
		pthread_mutex_destroy(&leases->nonce_lock);
	free(leases->leases);
	memset(leases, 0, sizeof(*leases));
}

int smv_leases_ticket(
	void *ctx, unsigned int sub_host, enum smv_role role, struct smv_ticket *ticket)
{
	struct smv_leases *leases = ctx;
	const struct smv_lease *lease = &leases->leases[sub_host];
	uint64_t nonce;

	if (!lease->created)
		return -ENOENT;
	pthread_mutex_lock(&leases->nonce_lock);
	nonce = ++leases->nonce;
	pthread_mutex_unlock(&leases->nonce_lock);
	smv_ticket_make(
		lease->key, strtoull(lease->id, NULL, 16), leases->epoch, role, nonce, ticket);
	return 0;
}
