/* SPDX-License-Identifier: Apache-2.0 */
#include "client/leases.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "common/program.h"
#include "common/units.h"
#include "smemv/v1/memserver.pb-c.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TTL_MS 60000
/* Of each question for the way in: whoever asks also ends with the connection that is mended. */
#define DOOR_TIMEOUT_MS 1000u
/* How long a call waits for a connection that was lost. */
#define RECONNECT_MS 1000u
#define FAILING_TIMEOUT_MS 500
#define ZEROING_PATIENCE_NS (10 * SMV_NS_PER_S)
#define SLACK_MIN (64 * SMV_MIB)

typedef Smemv__V1__ServerInfo ServerInfo;
typedef Smemv__V1__Lease Lease;
typedef Smemv__V1__CreateLeaseResponse CreateLeaseResponse;

static uint64_t slack_of(uint64_t ram_bytes)
{
	return ram_bytes / 20 > SLACK_MIN ? ram_bytes / 20 : SLACK_MIN;
}

uint64_t smv_leases_room(uint64_t ram_bytes, uint64_t budget_bytes)
{
	uint64_t need =
		(ram_bytes > budget_bytes ? ram_bytes - budget_bytes : 0) + slack_of(ram_bytes);

	return (need + SMV_EXTENT_BYTES - 1) / SMV_EXTENT_BYTES * SMV_EXTENT_BYTES;
}

uint64_t smv_leases_least_budget(uint64_t ram_bytes, uint64_t room_bytes)
{
	/* The room is whole extents: what it is rounded up to needs no more of them. */
	uint64_t need = ram_bytes + slack_of(ram_bytes);
	uint64_t room = room_bytes / SMV_EXTENT_BYTES * SMV_EXTENT_BYTES;
	uint64_t least = need > room ? need - room : 0;

	return least < ram_bytes ? least : ram_bytes;
}

static int call_for(unsigned int timeout_ms, const struct smv_lease *lease, const char *method,
	const void *request, void **response, struct smv_error *err)
{
	return smv_rpc_client_call(lease->client, &smemv__v1__mem_server__descriptor, method,
		request, (ProtobufCMessage **)response, timeout_ms, false, err);
}

/*
 * For methods that may be called twice, and that are worth a wait. The first call after the server
 * was started again may find no more than that the connection to the former one has died, or that
 * it was refused some time ago: gRPC connects again only while a call waits for it.
 */
static int call_patiently(unsigned int timeout_ms, const struct smv_lease *lease,
	const char *method, const void *request, void **response, struct smv_error *err)
{
	int r = call_for(timeout_ms, lease, method, request, response, err);
	unsigned int wait_ms = timeout_ms < RECONNECT_MS ? timeout_ms : RECONNECT_MS;
	struct smv_error again;

	if (r == 0 || err->code != SMV_UNAVAILABLE)
		return r;
	r = smv_rpc_client_call(lease->client, &smemv__v1__mem_server__descriptor, method, request,
		(ProtobufCMessage **)response, wait_ms, true, &again);
	/* That nobody came while it waited says less than why. */
	if (r < 0 && again.code != SMV_TIMEOUT)
		*err = again;
	return r;
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
	const char *owner, uint64_t bytes, uint32_t ttl_ms, struct smv_error *err)
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
	request.ttl_ms = ttl_ms;
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
		snprintf(lease->incarnation, sizeof(lease->incarnation), "%.39s",
			response->incarnation);
		lease->generation = response->lease->generation;
		lease->created = true;
		lease->renewed_ns = smv_now_ns();
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

/* Whoever migrates again right after an abort finds the memory of its former leases being zeroed.
 */
static bool will_suffice(ServerInfo *const *infos, unsigned int nr, uint64_t bytes)
{
	uint64_t now = 0, soon = 0;

	for (unsigned int h = 0; h < nr; h++) {
		now += infos[h]->free_bytes / SMV_EXTENT_BYTES;
		soon += (infos[h]->free_bytes + infos[h]->zeroing_bytes) / SMV_EXTENT_BYTES;
	}
	return now < bytes / SMV_EXTENT_BYTES && soon >= bytes / SMV_EXTENT_BYTES;
}

static int wait_for_zeroing(struct smv_leases *leases, const char *const *addresses,
	ServerInfo **infos, uint64_t bytes, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + ZEROING_PATIENCE_NS;
	int r = 0;

	while (r == 0 && will_suffice(infos, leases->nr, bytes) && smv_now_ns() < end) {
		smv_sleep_ms(50);
		for (unsigned int h = 0; h < leases->nr && r == 0; h++) {
			smv_rpc_message_free((ProtobufCMessage *)infos[h]);
			infos[h] = NULL;
			r = ask_info(leases, h, addresses[h], &infos[h], err);
		}
	}
	return r;
}

static int lease_all(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, ServerInfo *const *infos, const char *owner, uint64_t bytes,
	struct smv_error *err)
{
	uint64_t shares[SMV_SUB_HOSTS_MAX], run = bytes / SMV_EXTENT_BYTES / 2048 + 1;
	/* The first must last until the last is there. */
	uint32_t ttl_ms =
		TTL_MS +
		(smv_transport_pins(backing->transport) ? smv_region_register_ms(bytes) : 0);
	int r = share_out(infos, addresses, leases->nr, bytes, shares, err);

	for (unsigned int h = 0; h < leases->nr && r == 0; h++)
		if (shares[h])
			r = create_one(leases, backing, h, owner, shares[h], ttl_ms, err);
	if (r == 0 && (r = smv_backing_spread(backing, run)) < 0)
		smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory for the extent table");
	return r;
}

void smv_leases_bind(struct smv_leases *leases, struct smv_backing *backing)
{
	leases->backing = backing;
	backing->ticket = smv_leases_ticket;
	backing->find_door = smv_leases_find_door;
	backing->ticket_ctx = leases;
}

static int init(struct smv_leases *leases, struct smv_backing *backing, unsigned int nr,
	uint32_t epoch, unsigned int timeout_ms, struct smv_error *err)
{
	memset(leases, 0, sizeof(*leases));
	memset(backing, 0, sizeof(*backing));
	pthread_mutex_init(&leases->nonce_lock, NULL);
	leases->epoch = epoch;
	leases->timeout_ms = timeout_ms;
	leases->leases = calloc(nr, sizeof(*leases->leases));
	backing->sub_hosts = calloc(nr, sizeof(*backing->sub_hosts));
	if (!leases->leases || !backing->sub_hosts)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	leases->nr = backing->nr_sub_hosts = nr;
	smv_leases_bind(leases, backing);
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
	int r = init(&leases, &backing, nr, 1, timeout_ms, err);

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
	bool all = init(&leases, &backing, nr, 1, timeout_ms, &plan->room_error) == 0;

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

static int create(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, unsigned int nr, const char *owner, uint64_t bytes,
	const struct smv_transport_wish *transport, bool insecure, uint32_t epoch,
	unsigned int timeout_ms, char *reason, size_t reason_len, struct smv_error *err)
{
	ServerInfo *infos[SMV_SUB_HOSTS_MAX] = {0};
	int r = init(leases, backing, nr, epoch, timeout_ms, err);

	if (r == 0)
		r = meet_all(leases, backing, addresses, infos, transport, insecure, reason,
			reason_len, err);
	if (r == 0)
		r = wait_for_zeroing(leases, addresses, infos, bytes, err);
	if (r == 0)
		r = lease_all(leases, backing, addresses, infos, owner, bytes, err);
	free_infos(infos, nr);
	if (r < 0) {
		smv_leases_release(leases, backing);
		smv_backing_free(backing);
	}
	return r;
}

int smv_leases_create(struct smv_leases *leases, struct smv_backing *backing,
	const char *const *addresses, unsigned int nr, const char *owner, uint64_t bytes,
	const struct smv_transport_wish *transport, bool insecure, unsigned int timeout_ms,
	char *reason, size_t reason_len, struct smv_error *err)
{
	return create(leases, backing, addresses, nr, owner, bytes, transport, insecure, 1,
		timeout_ms, reason, reason_len, err);
}

/* Each once, however many leases there are on it. */
static unsigned int addresses_of(
	const struct smv_backing *backing, const char *addresses[SMV_SUB_HOSTS_MAX])
{
	unsigned int nr = 0;

	for (unsigned int h = 0; h < backing->nr_sub_hosts; h++)
		if (smv_backing_first_of(backing, h) == h)
			addresses[nr++] = backing->sub_hosts[h].address;
	return nr;
}

int smv_leases_create_more(const struct smv_leases *of, const char *owner, uint64_t bytes,
	struct smv_leases *leases, struct smv_backing *backing, struct smv_error *err)
{
	const char *addresses[SMV_SUB_HOSTS_MAX];
	unsigned int nr = addresses_of(of->backing, addresses);
	struct smv_transport_wish wish = {0};
	char reason[200];

	if (of->nr + nr > SMV_SUB_HOSTS_MAX)
		return smv_fail(err, SMV_REFUSED, "too-many-leases",
			"Shrink in fewer and larger steps: the next migration begins anew.",
			"the VM has %u leases, and %u more would exceed the limit of %d", of->nr,
			nr, SMV_SUB_HOSTS_MAX);
	snprintf(wish.names, sizeof(wish.names), "%s", smv_transport_name(of->backing->transport));
	/* Whether plaintext is allowed was asked when the first ones were made. */
	return create(leases, backing, addresses, nr, owner, bytes, &wish, true, of->epoch,
		of->timeout_ms, reason, sizeof(reason), err);
}

/* Say that a lease cannot be renewed, or can be again, when that is new. */
static void tell_renewal(struct smv_leases *leases, struct smv_lease *lease, const char *address,
	bool ok, const struct smv_error *err)
{
	if (ok)
		lease->renewed_ns = smv_now_ns();
	if (!ok && !lease->failing)
		smv_event(SMV_EVENT_LEASE_NOT_RENEWED, leases->vm, address,
			"sub-host %s: cannot renew lease %s: %s", address, lease->id, err->message);
	if (ok && lease->failing)
		smv_event(SMV_EVENT_LEASE_RENEWED_AGAIN, leases->vm, address,
			"sub-host %s knows lease %s again", address, lease->id);
	lease->failing = !ok;
}

/* Time for the sub-host of lease @h: not much, if it did not answer the last time. */
static unsigned int patience(
	const struct smv_leases *leases, const struct smv_backing *backing, unsigned int h)
{
	for (unsigned int i = 0; i < leases->nr; i++)
		if (leases->leases[i].failing &&
			strcmp(backing->sub_hosts[i].address, backing->sub_hosts[h].address) == 0)
			return FAILING_TIMEOUT_MS;
	return leases->timeout_ms;
}

void smv_leases_renew(struct smv_leases *leases, const struct smv_backing *backing)
{
	for (unsigned int h = 0; h < leases->nr; h++) {
		Smemv__V1__RenewLeaseRequest request = SMEMV__V1__RENEW_LEASE_REQUEST__INIT;
		struct smv_lease *lease = &leases->leases[h];
		struct smv_error err;
		Lease *response = NULL;
		bool ok;

		if (!lease->created)
			continue;
		request.id = lease->id;
		/* One that does not answer must not use up the time of the others. */
		ok = call_for(patience(leases, backing, h), lease, "RenewLease", &request,
			     (void **)&response, &err) == 0;
		tell_renewal(leases, lease, backing->sub_hosts[h].address, ok, &err);
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

/* What a server says of a lease that it does not have (any more). Ids are never used twice. */
static int fail_lost(
	const struct smv_leases *leases, unsigned int h, const char *why, struct smv_error *err)
{
	return smv_fail(err, SMV_DATA_LOSS, "data-lost",
		"If another memserverd took its address, start the right one; otherwise the pages "
		"that were there are gone.",
		"sub-host %.80s has lost the data of lease %s: %s",
		leases->backing->sub_hosts[h].address, leases->leases[h].id, why);
}

#define WHY_UNKNOWN "it does not know the lease any more"

/* The segments that a server names now; their sizes and order never change. */
static int copy_segments(const struct smv_sub_host *host, const Lease *lease,
	struct smv_segment *segments, struct smv_error *err)
{
	bool same = lease->n_segments == host->nr_segments;

	for (size_t i = 0; same && i < lease->n_segments; i++) {
		const Smemv__V1__Segment *s = lease->segments[i];

		same = s->size_bytes == host->segments[i].size_bytes;
		segments[i] = (struct smv_segment){s->rkey, s->remote_addr, s->size_bytes};
	}
	return same ? 0
		    : smv_fail(err, SMV_INTERNAL, "bad-lease", NULL,
			      "sub-host %s names other segments than it granted", host->address);
}

/* @patient: see call_patiently(). @segments: also take over what the server calls them now. */
static int fence_one(struct smv_leases *leases, struct smv_backing *backing, unsigned int h,
	unsigned int timeout_ms, bool patient, bool segments, struct smv_error *err)
{
	Smemv__V1__FenceLeaseRequest request = SMEMV__V1__FENCE_LEASE_REQUEST__INIT;
	struct smv_lease *lease = &leases->leases[h];
	struct smv_sub_host *host = &backing->sub_hosts[h];
	Lease *response = NULL;
	int r;

	request.id = lease->id;
	request.epoch = leases->epoch;
	r = (patient ? call_patiently : call_for)(
		timeout_ms, lease, "FenceLease", &request, (void **)&response, err);
	if (r == 0 && segments) {
		r = copy_segments(host, response, host->segments, err);
		lease->generation = response->generation;
		lease->renewed_ns = smv_now_ns();
	} else if (r < 0 && err->code == SMV_NOT_FOUND) {
		r = fail_lost(leases, h, WHY_UNKNOWN, err);
	} else if (r < 0) {
		name_host(err, host->address);
	}
	smv_rpc_message_free((ProtobufCMessage *)response);
	return r;
}

int smv_leases_fence(struct smv_leases *leases, struct smv_backing *backing, struct smv_error *err)
{
	int r = 0;

	leases->epoch++;
	for (unsigned int h = 0; h < leases->nr && r == 0; h++)
		if (leases->leases[h].created)
			r = fence_one(leases, backing, h, leases->timeout_ms, true, true, err);
	return r;
}

struct fencing {
	struct smv_leases *leases;
	struct smv_backing *backing;
	unsigned int h;
	unsigned int timeout_ms;
	bool segments;
	pthread_t thread;
	bool running;
	int r;
	struct smv_error err;
};

static void *fence_in_thread(void *arg)
{
	struct fencing *f = arg;

	f->r = fence_one(f->leases, f->backing, f->h, f->timeout_ms, false, f->segments, &f->err);
	return NULL;
}

unsigned int smv_leases_fence_each(struct smv_leases *leases, struct smv_backing *backing,
	bool *fenced, bool refresh, unsigned int timeout_ms, struct smv_error *err)
{
	CLEANUP_FREE struct fencing *all = NULL;
	unsigned int left = 0;

	if (smv_fault_point("takeover-skip-fence"))
		return 0;
	all = calloc(leases->nr, sizeof(*all));
	if (!all) {
		smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
		return leases->nr;
	}
	for (unsigned int h = 0; h < leases->nr; h++) {
		struct fencing *f = &all[h];

		fenced[h] |= !leases->leases[h].created;
		*f = (struct fencing){.leases = leases,
			.backing = backing,
			.h = h,
			.timeout_ms = timeout_ms,
			.segments = refresh};
		if (fenced[h])
			continue;
		f->running = pthread_create(&f->thread, NULL, fence_in_thread, f) == 0;
		if (!f->running)
			fence_in_thread(f);
	}
	for (unsigned int h = 0; h < leases->nr; h++) {
		struct fencing *f = &all[h];

		if (fenced[h])
			continue;
		if (f->running)
			pthread_join(f->thread, NULL);
		fenced[h] = f->r == 0;
		if (fenced[h])
			continue;
		left++;
		smv_fail(err, f->err.code, f->err.reason, f->err.hint,
			"not fenced, its pages wait: %.500s", f->err.message);
	}
	return left;
}

unsigned int smv_leases_release_try(struct smv_leases *leases, const struct smv_backing *backing)
{
	unsigned int left = 0;

	for (unsigned int h = 0; h < leases->nr; h++) {
		Smemv__V1__ReleaseLeaseRequest request = SMEMV__V1__RELEASE_LEASE_REQUEST__INIT;
		Smemv__V1__ReleaseLeaseResponse *response = NULL;
		struct smv_lease *lease = &leases->leases[h];
		struct smv_error err = {0};
		bool ok;

		if (!lease->created)
			continue;
		request.id = lease->id;
		ok = call_patiently(patience(leases, backing, h), lease, "ReleaseLease", &request,
			     (void **)&response, &err) == 0 ||
		     err.code == SMV_NOT_FOUND;
		if (!ok && !lease->failing)
			smv_log_warning("sub-host %s: cannot release lease %s: %s",
				backing->sub_hosts[h].address, lease->id, err.message);
		lease->failing = !ok;
		smv_rpc_message_free((ProtobufCMessage *)response);
		if (ok)
			lease->created = lease->held = false;
		left += lease->held;
	}
	return left;
}

unsigned int smv_leases_release(struct smv_leases *leases, const struct smv_backing *backing)
{
	unsigned int left = smv_leases_release_try(leases, backing);

	for (unsigned int h = 0; h < leases->nr; h++)
		if (leases->leases[h].client)
			smv_rpc_client_destroy(leases->leases[h].client);
	if (leases->leases)
		pthread_mutex_destroy(&leases->nonce_lock);
	free(leases->leases);
	memset(leases, 0, sizeof(*leases));
	return left;
}

static void make_ticket(struct smv_leases *leases, const struct smv_lease *lease,
	uint64_t generation, enum smv_role role, struct smv_ticket *ticket)
{
	uint64_t count;

	pthread_mutex_lock(&leases->nonce_lock);
	count = ++leases->nonce;
	pthread_mutex_unlock(&leases->nonce_lock);
	smv_ticket_make(lease->key, strtoull(lease->id, NULL, 16), leases->epoch, role,
		smv_nonce_make(generation, count), ticket);
}

int smv_leases_ticket(
	void *ctx, unsigned int sub_host, enum smv_role role, struct smv_ticket *ticket)
{
	struct smv_leases *leases = ctx;
	const struct smv_lease *lease = &leases->leases[sub_host];

	if (!lease->created)
		return -ENOENT;
	make_ticket(leases, lease, lease->generation, role, ticket);
	return 0;
}

/* --- the way in, again -------------------------------------------------------------------- */

static unsigned int door_timeout_ms(const struct smv_leases *leases)
{
	return leases->timeout_ms < DOOR_TIMEOUT_MS ? leases->timeout_ms : DOOR_TIMEOUT_MS;
}

/* The data address of the transport that the lease was made for. */
static int pick_address(
	const struct smv_leases *leases, const ServerInfo *info, struct smv_addr *addr)
{
	const char *transport = smv_transport_name(leases->backing->transport);

	for (size_t i = 0; i < info->n_data_addresses; i++)
		if (smv_addr_parse(info->data_addresses[i], true, addr, NULL) == 0 &&
			strcmp(addr->transport, transport) == 0)
			return 0;
	return -ENOENT;
}

/* Where the server's data is now, if it is still the server that we know. */
static int ask_server(
	struct smv_leases *leases, unsigned int h, struct smv_addr *addr, struct smv_error *err)
{
	Smemv__V1__GetServerInfoRequest request = SMEMV__V1__GET_SERVER_INFO_REQUEST__INIT;
	const struct smv_lease *lease = &leases->leases[h];
	ServerInfo *info = NULL;
	int r = call_patiently(
		door_timeout_ms(leases), lease, "GetServerInfo", &request, (void **)&info, err);

	if (r == 0 && strcmp(info->incarnation, lease->incarnation) != 0 &&
		!smv_fault_point("leases-any-incarnation"))
		r = fail_lost(
			leases, h, "its memory is another one since it was started again", err);
	else if (r == 0 && pick_address(leases, info, addr) < 0)
		r = smv_fail(err, SMV_UNAVAILABLE, "no-transport",
			"Start its memserverd with the same --data addresses as before.",
			"it has no data address of transport '%s' any more",
			smv_transport_name(leases->backing->transport));
	smv_rpc_message_free((ProtobufCMessage *)info);
	return r;
}

static int ask_lease(struct smv_leases *leases, unsigned int h, enum smv_role role,
	struct smv_door *door, struct smv_error *err)
{
	Smemv__V1__GetLeaseRequest request = SMEMV__V1__GET_LEASE_REQUEST__INIT;
	const struct smv_sub_host *host = &leases->backing->sub_hosts[h];
	struct smv_lease *lease = &leases->leases[h];
	Lease *response = NULL;
	int r;

	request.id = lease->id;
	r = call_for(door_timeout_ms(leases), lease, "GetLease", &request, (void **)&response, err);
	if (r < 0)
		return err->code == SMV_NOT_FOUND ? fail_lost(leases, h, WHY_UNKNOWN, err) : r;
	if (response->state == SMEMV__V1__LEASE_STATE__LEASE_STATE_RELEASING)
		r = fail_lost(leases, h, "the lease was released", err);
	else if (!(door->segments = calloc(host->nr_segments, sizeof(*door->segments))))
		r = smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	else
		r = copy_segments(host, response, door->segments, err);
	if (r == 0)
		make_ticket(leases, lease, response->generation, role, &door->ticket);
	smv_rpc_message_free((ProtobufCMessage *)response);
	return r;
}

/* The address may be of one start of the server and the rest of the next: the ticket decides, which
 * is for the generation that named the segments. */
int smv_leases_find_door(void *ctx, unsigned int sub_host, enum smv_role role,
	struct smv_door *door, struct smv_error *err)
{
	struct smv_leases *leases = ctx;
	int r;

	door->segments = NULL;
	if (!leases->leases[sub_host].created)
		return smv_fail(err, SMV_NOT_FOUND, "no-lease", NULL, "there is no lease");
	r = ask_server(leases, sub_host, &door->data_addr, err);
	if (r == 0)
		r = ask_lease(leases, sub_host, role, door, err);
	if (r < 0)
		free(smv_take(door->segments));
	return r;
}
