/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/dest.h"

#include "common/clock.h"
#include "common/fault_point.h"
#include "common/hex.h"
#include "common/log.h"
#include "smemv/v1/pager.pb-c.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define RPC_TIMEOUT_MS 20000
#define COMMIT_GRACE_MS 5000
#define ABORT_CALL_TIMEOUT_MS 10000 /* undoing everything takes the main host a while */
#define KEEP_ALIVE_NS (5 * SMV_NS_PER_S)
/* A full report stays below the control channel's message limit of 256 KiB. */
#define REPORT_MAX_PAGES 16384
#define REPORT_MAX_RANGES 2048

struct range {
	enum smv_page_state state;
	uint64_t first_page, nr_pages, first_slot;
	uint32_t checksum_at; /* index into checksums */
};

struct smv_reporter {
	struct range ranges[REPORT_MAX_RANGES];
	uint32_t nr_ranges;
	uint32_t checksums[REPORT_MAX_PAGES]; /* little-endian */
	uint32_t nr_checksums;
	uint64_t nr_pages;
};

static int call(struct smv_dest *d, const char *method, const void *request, void **response,
	unsigned int timeout_ms, struct smv_error *err)
{
	int r = d->interrupted ? d->interrupted(err) : 0;

	if (r == 0)
		r = smv_rpc_client_call(d->client, &smemv__v1__pager__descriptor, method, request,
			(ProtobufCMessage **)response, timeout_ms, false, err);
	if (r == 0)
		d->last_contact_ns = smv_now_ns();
	return r;
}

static void done(void *response)
{
	smv_rpc_message_free(response);
}

int smv_dest_new_id(char id[33], struct smv_error *err)
{
	unsigned char bytes[16];

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return smv_fail(
			err, SMV_INTERNAL, "random", NULL, "getrandom: %s", strerror(errno));
	smv_hex_format(bytes, sizeof(bytes), id);
	return 0;
}

int smv_dest_open(
	const struct smv_addr *addr, const char *id, struct smv_dest *d, struct smv_error *err)
{
	int r;

	memset(d, 0, sizeof(*d));
	snprintf(d->migration_id, sizeof(d->migration_id), "%s", id);
	d->reporter = calloc(1, sizeof(*d->reporter));
	if (!d->reporter)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	r = smv_rpc_client_create(addr, &d->client);
	return r < 0 ? smv_fail(err, SMV_INTERNAL, "rpc", NULL, "cannot make a client: %s",
			       strerror(-r))
		     : 0;
}

void smv_dest_close(struct smv_dest *d)
{
	if (d->client)
		smv_rpc_client_destroy(d->client);
	smv_backing_free(&d->backing);
	free(d->reporter);
}

/* An smv_ticket_source: the one ticket per sub-host that the pager gave us. */
static int granted_ticket(
	void *ctx, unsigned int sub_host, enum smv_role role, struct smv_ticket *ticket)
{
	struct smv_dest *d = ctx;

	if (role != SMV_ROLE_WRITER || d->ticket_used[sub_host])
		return -EACCES;
	d->ticket_used[sub_host] = true;
	*ticket = d->tickets[sub_host];
	return 0;
}

static int take_sub_host(struct smv_dest *d, const Smemv__V1__SubHost *in, struct smv_error *err)
{
	unsigned int h = d->backing.nr_sub_hosts;
	struct smv_sub_host *out = &d->backing.sub_hosts[h];
	int r = smv_addr_parse(in->data_address, true, &out->data_addr, err);

	if (r < 0)
		return r;
	snprintf(out->address, sizeof(out->address), "%s", in->address);
	snprintf(out->name, sizeof(out->name), "%s", in->name);
	out->segments = calloc(in->n_segments + 1, sizeof(*out->segments));
	if (!out->segments)
		return -ENOMEM;
	for (size_t i = 0; i < in->n_segments; i++)
		out->segments[out->nr_segments++] = (struct smv_segment){in->segments[i]->rkey,
			in->segments[i]->remote_addr, in->segments[i]->size_bytes};
	d->backing.nr_sub_hosts++;
	if (!out->nr_segments)
		return 0;
	if (in->ticket.len != sizeof(d->tickets[h]))
		return -EPROTO;
	memcpy(&d->tickets[h], in->ticket.data, sizeof(d->tickets[h]));
	return 0;
}

static int take_grant(
	struct smv_dest *d, const Smemv__V1__PrepareMigrationResponse *p, struct smv_error *err)
{
	int r;

	if (p->n_sub_hosts > SMV_SUB_HOSTS_MAX || p->extent_bytes != SMV_EXTENT_BYTES ||
		p->hot_ticket.len != sizeof(d->hot_ticket))
		return -EPROTO;
	d->backing.transport = smv_transport_find(p->transport);
	if (!d->backing.transport)
		return smv_fail(err, SMV_REFUSED, "transport", "Give --transport tcp.",
			"the pager chose transport '%s', which this build lacks", p->transport);
	d->backing.ticket = granted_ticket;
	d->backing.ticket_ctx = d;
	d->backing.sub_hosts = calloc(p->n_sub_hosts + 1, sizeof(*d->backing.sub_hosts));
	if (!d->backing.sub_hosts)
		return -ENOMEM;
	for (size_t i = 0; i < p->n_sub_hosts; i++)
		if ((r = take_sub_host(d, p->sub_hosts[i], err)) < 0)
			return r;
	for (size_t i = 0; i < p->n_extents; i++) {
		const Smemv__V1__ExtentRun *x = p->extents[i];

		r = smv_backing_add_extents(
			&d->backing, x->sub_host, x->segment, x->offset_bytes, x->nr_extents);
		if (r < 0)
			return r;
	}
	if ((r = smv_addr_parse(p->hot_data_address, true, &d->hot_addr, err)) < 0)
		return r;
	d->hot_credit = p->hot_credit_pages;
	memcpy(&d->hot_ticket, p->hot_ticket.data, sizeof(d->hot_ticket));
	d->hot_rkey = p->hot_ring_rkey;
	d->hot_ring_addr = p->hot_ring_addr;
	snprintf(d->transport, sizeof(d->transport), "%s", p->transport);
	snprintf(d->transport_reason, sizeof(d->transport_reason), "%s", p->transport_reason);
	return 0;
}

/* What prepare and plan send. */
struct prepare_request {
	Smemv__V1__PrepareMigrationRequest q;
	Smemv__V1__RamBlock blocks[SMV_RAM_BLOCKS_MAX], *block_ptrs[SMV_RAM_BLOCKS_MAX];
	struct smv_transport_wish wish;
};

static void fill_prepare(
	const struct smv_dest *d, const struct smv_prepare *in, struct prepare_request *out)
{
	Smemv__V1__PrepareMigrationRequest *q = &out->q;

	smemv__v1__prepare_migration_request__init(q);
	for (unsigned int i = 0; i < in->ram->nr_blocks; i++) {
		smemv__v1__ram_block__init(&out->blocks[i]);
		out->blocks[i].id = (char *)in->ram->blocks[i].id;
		out->blocks[i].size_bytes = in->ram->blocks[i].size_bytes;
		out->blocks[i].page_size = in->ram->blocks[i].page_size;
		out->block_ptrs[i] = &out->blocks[i];
	}
	q->migration_id = (char *)d->migration_id;
	q->vm = (char *)in->vm;
	q->n_ram_blocks = in->ram->nr_blocks;
	q->ram_blocks = out->block_ptrs;
	q->budget_bytes = in->budget_bytes;
	q->min_budget_bytes = in->min_budget_bytes;
	q->n_sub_hosts = in->nr_sub_hosts;
	q->sub_hosts = (char **)in->sub_hosts;
	out->wish = (struct smv_transport_wish){0};
	snprintf(out->wish.names, sizeof(out->wish.names), "%s", in->transport);
	smv_transport_narrow(&out->wish, smv_transport_fits_here, NULL);
	q->transport = out->wish.names;
	q->transport_why = out->wish.why;
	q->insecure = in->insecure;
	q->loss_policy = (char *)smv_loss_policy_name(in->loss_policy);
}

int smv_dest_prepare(struct smv_dest *d, const struct smv_prepare *in, struct smv_error *err)
{
	Smemv__V1__PrepareMigrationResponse *p = NULL;
	struct prepare_request request;
	int r;

	fill_prepare(d, in, &request);
	d->prepared = true;
	r = call(d, "PrepareMigration", &request.q, (void **)&p,
		RPC_TIMEOUT_MS + smv_region_register_ms(in->ram->bytes), err);
	if (r < 0)
		return r;
	d->granted = true;
	r = take_grant(d, p, err);
	if (r == -EPROTO || r == -EINVAL || r == -ENOMEM)
		smv_fail(err, SMV_INTERNAL, "bad-grant", "Run the same version everywhere.",
			"the pager's grant makes no sense: %s", strerror(-r));
	done(p);
	return r;
}

int smv_dest_plan(struct smv_dest *d, const struct smv_prepare *in,
	Smemv__V1__PlanMigrationResponse **answer, struct smv_error *err)
{
	struct prepare_request request;

	fill_prepare(d, in, &request);
	return call(d, "PlanMigration", &request.q, (void **)answer, RPC_TIMEOUT_MS, err);
}

int smv_dest_flush(struct smv_dest *d, struct smv_error *err)
{
	struct smv_reporter *rep = d->reporter;
	Smemv__V1__ReportPagesRequest q = SMEMV__V1__REPORT_PAGES_REQUEST__INIT;
	static Smemv__V1__PageRange ranges[REPORT_MAX_RANGES];
	static Smemv__V1__PageRange *range_ptrs[REPORT_MAX_RANGES];
	Smemv__V1__ReportPagesResponse *p = NULL;
	int r;

	if (!rep->nr_ranges)
		return 0;
	for (uint32_t i = 0; i < rep->nr_ranges; i++) {
		const struct range *in = &rep->ranges[i];
		Smemv__V1__PageRange *out = range_ptrs[i] = &ranges[i];

		smemv__v1__page_range__init(out);
		out->first_page = in->first_page;
		out->nr_pages = in->nr_pages;
		if (in->state == SMV_PAGE_ZERO) {
			out->state = SMEMV__V1__PAGE_STATE__PAGE_STATE_ZERO;
			continue;
		}
		out->state = SMEMV__V1__PAGE_STATE__PAGE_STATE_COLD;
		out->first_slot = in->first_slot;
		out->checksums.data = (uint8_t *)&rep->checksums[in->checksum_at];
		out->checksums.len = in->nr_pages * sizeof(uint32_t);
	}
	q.migration_id = d->migration_id;
	q.sequence = ++d->sequence;
	q.n_ranges = rep->nr_ranges;
	q.ranges = range_ptrs;
	rep->nr_ranges = rep->nr_checksums = 0;
	rep->nr_pages = 0;
	r = call(d, "ReportPages", &q, (void **)&p, RPC_TIMEOUT_MS, err);
	done(p);
	return r;
}

int smv_dest_report(struct smv_dest *d, uint64_t page, smv_page_word word, struct smv_error *err)
{
	struct smv_reporter *rep = d->reporter;
	enum smv_page_state state = smv_word_state(word);
	uint64_t slot = smv_word_slot(word);
	struct range *last = rep->nr_ranges ? &rep->ranges[rep->nr_ranges - 1] : NULL;

	if (!last || last->state != state || last->first_page + last->nr_pages != page ||
		(state == SMV_PAGE_COLD && last->first_slot + last->nr_pages != slot)) {
		if (rep->nr_ranges == REPORT_MAX_RANGES) {
			int r = smv_dest_flush(d, err);

			if (r < 0)
				return r;
		}
		last = &rep->ranges[rep->nr_ranges++];
		*last = (struct range){state, page, 0, slot, rep->nr_checksums};
	}
	last->nr_pages++;
	if (state == SMV_PAGE_COLD)
		rep->checksums[rep->nr_checksums++] = htole32(smv_word_checksum(word));
	return rep->nr_checksums == REPORT_MAX_PAGES ? smv_dest_flush(d, err) : 0;
}

static enum smv_verdict verdict_of(
	const Smemv__V1__MigrationVerdict *v, char *state, size_t state_len, struct smv_error *err)
{
	if (state)
		snprintf(state, state_len, "%s", v->destination_state);
	switch (v->state) {
	case SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_COMMITTED:
		return SMV_VERDICT_COMMITTED;
	case SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_ABORTED:
		smv_fail(err, SMV_ABORTED, "aborted", NULL,
			"the main host aborted the migration%s%s", v->why[0] ? ": " : "", v->why);
		return SMV_VERDICT_ABORTED;
	default:
		return SMV_VERDICT_OPEN;
	}
}

static enum smv_verdict ask(struct smv_dest *d, unsigned int timeout_ms, char *state,
	size_t state_len, struct smv_error *err)
{
	Smemv__V1__GetMigrationRequest q = SMEMV__V1__GET_MIGRATION_REQUEST__INIT;
	Smemv__V1__MigrationVerdict *v = NULL;
	enum smv_verdict verdict;

	q.migration_id = d->migration_id;
	if (call(d, "GetMigration", &q, (void **)&v, timeout_ms, err) < 0)
		return SMV_VERDICT_UNKNOWN;
	verdict = verdict_of(v, state, state_len, err);
	done(v);
	return verdict;
}

int smv_dest_keep_alive(struct smv_dest *d, struct smv_error *err)
{
	if (smv_now_ns() - d->last_contact_ns < KEEP_ALIVE_NS)
		return 0;
	switch (ask(d, RPC_TIMEOUT_MS, NULL, 0, err)) {
	case SMV_VERDICT_OPEN:
		return 0;
	case SMV_VERDICT_COMMITTED:
		return smv_fail(err, SMV_INTERNAL, "early-commit", NULL,
			"the main host says that the migration is committed already");
	default:
		return smv_code_to_errno(err->code);
	}
}

int smv_dest_start_incoming(struct smv_dest *d, char **uri, struct smv_error *err)
{
	Smemv__V1__StartIncomingRequest q = SMEMV__V1__START_INCOMING_REQUEST__INIT;
	Smemv__V1__StartIncomingResponse *p = NULL;
	int r;

	q.migration_id = d->migration_id;
	r = call(d, "StartIncoming", &q, (void **)&p, RPC_TIMEOUT_MS, err);
	if (r == 0)
		*uri = strdup(p->uri);
	done(p);
	return r;
}

int smv_dest_confirm(struct smv_dest *d, const struct smv_pagemap *map, struct smv_error *err)
{
	Smemv__V1__ConfirmMapRequest q = SMEMV__V1__CONFIRM_MAP_REQUEST__INIT;
	Smemv__V1__ConfirmMapResponse *p = NULL;
	int r;

	q.migration_id = d->migration_id;
	q.sequence = d->sequence;
	q.pages_hot = smv_pagemap_count(map, SMV_PAGE_LOCAL);
	q.pages_cold = smv_pagemap_count(map, SMV_PAGE_COLD);
	q.pages_zero = smv_pagemap_count(map, SMV_PAGE_ZERO);
	q.digest = map->digest;
	r = call(d, "ConfirmMap", &q, (void **)&p, RPC_TIMEOUT_MS, err);
	done(p);
	return r;
}

int smv_dest_not_running(const char *why, struct smv_error *err)
{
	return smv_fail(err, SMV_UNKNOWN, "not-running",
		"Do not start the source; see smemvctl vms and the log of smemv-pagerd.",
		"the destination owns the VM, but does not run it yet: %.400s", why);
}

enum smv_verdict smv_dest_commit(struct smv_dest *d, unsigned int timeout_ms, char *state,
	size_t state_len, struct smv_error *err)
{
	Smemv__V1__CommitMigrationRequest q = SMEMV__V1__COMMIT_MIGRATION_REQUEST__INIT;
	Smemv__V1__MigrationVerdict *v = NULL;
	enum smv_verdict verdict = SMV_VERDICT_OPEN;

	q.migration_id = d->migration_id;
	q.timeout_ms = timeout_ms;
	d->commit_sent = true;
	d->interrupted = NULL; /* what is written down as sent is sent */
	/* The answer may take as long as the destination takes to load its state, and a bit. */
	if (call(d, "CommitMigration", &q, (void **)&v, timeout_ms + COMMIT_GRACE_MS, err) == 0) {
		verdict = verdict_of(v, state, state_len, err);
		if (verdict == SMV_VERDICT_OPEN)
			smv_fail(err, SMV_INTERNAL, "no-verdict", NULL,
				"the main host answered the commit with neither yes nor no");
		else if (verdict == SMV_VERDICT_COMMITTED && v->why[0])
			smv_dest_not_running(v->why, err);
		done(v);
	}
	return verdict;
}

enum smv_verdict smv_dest_abort(
	struct smv_dest *d, const char *why, unsigned int timeout_ms, char *state, size_t state_len)
{
	uint64_t end = smv_now_ns() + timeout_ms * SMV_NS_PER_MS;
	enum smv_verdict verdict = SMV_VERDICT_UNKNOWN;
	struct smv_error err;

	d->interrupted = NULL;
	for (;;) {
		Smemv__V1__AbortMigrationRequest q = SMEMV__V1__ABORT_MIGRATION_REQUEST__INIT;
		Smemv__V1__MigrationVerdict *v = NULL;

		q.migration_id = d->migration_id;
		q.why = (char *)why;
		if (call(d, "AbortMigration", &q, (void **)&v, ABORT_CALL_TIMEOUT_MS, &err) == 0) {
			verdict = verdict_of(v, state, state_len, &err);
			snprintf(d->not_running, sizeof(d->not_running), "%s",
				verdict == SMV_VERDICT_COMMITTED ? v->why : "");
			done(v);
			if (verdict != SMV_VERDICT_OPEN)
				return verdict;
			smv_fail(&err, SMV_UNKNOWN, "committing", NULL, "it is committing");
		}
		d->abort_error = err;
		/* Until the commit is asked for nobody but us can bring it about. */
		if (!d->commit_sent && err.code == SMV_NOT_FOUND)
			return SMV_VERDICT_ABORTED;
		/* Without a grant there is nothing to abort, unless its answer was lost. */
		if (!d->granted)
			return verdict;
		if (smv_now_ns() > end) {
			smv_log_warning(
				"the main host does not confirm the abort: %s", err.message);
			return verdict;
		}
		smv_sleep_ms(200);
	}
}
