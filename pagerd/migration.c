/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/migration.h"

#include "client/hot_chunk.h"
#include "client/leases_state.h"
#include "client/remote.h"
#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/hex.h"
#include "common/log.h"
#include "common/units.h"
#include "pagerd/state.h"
#include "pagerd/verdicts.h"
#include "pagerd/vm.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QMP_TIMEOUT_MS 5000
#define QMP_AGAIN_TIMEOUT_MS 1000
#define RUN_AGAIN_NS (1 * SMV_NS_PER_S)
#define SILENCE_NS (60 * SMV_NS_PER_S)
#define DATA_TIMEOUT_MS 5000
#define MAX_ENDPOINTS 8
#define SUB_HOST_TIMEOUT_MS 1500
#define UNFENCED_PATIENCE_NS (10 * SMV_NS_PER_S)
#define LEASE_TIMEOUT_MS 5000 /* besides the time to register */
/* The VM stands still while the destination loads the device state. */
#define COMMIT_TIMEOUT_MAX_MS 60000

typedef Smemv__V1__MigrationVerdict Verdict;
typedef Smemv__V1__PrepareMigrationRequest PrepareRequest;
typedef Smemv__V1__PrepareMigrationResponse PrepareResponse;

#define PREPARING SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_PREPARING
#define RECEIVING SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_RECEIVING
#define CONFIRMED SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_CONFIRMED
#define COMMITTED SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_COMMITTED
#define ABORTED SMEMV__V1__MIGRATION_STATE__MIGRATION_STATE_ABORTED
/* Ours alone: see smv_migration_verdict(). */
#define COMMITTING 100
#define ABORTING 101

/* One per VM, used again for its next migration, so that nobody can hold a stale one. */
struct smv_migration {
	/* Guards id, ring_id and why against look-ups; a new id and its state come together. */
	pthread_mutex_t id_lock;
	char id[33];
	uint64_t ring_id;

	_Atomic int state;
	_Atomic uint64_t last_contact_ns;
	bool incoming_started;
	bool ignored_shared; /* QEMU's capability as it was before */
	bool to_be_run;      /* committed, but the VM was not seen to run yet */
	uint64_t run_retry_ns, restored_ns;
	char why[200]; /* of the abort, or of the VM's not running */

	/* Held while pages are placed (reports and hot chunks), which only happens while the map is
	 * open: after closing it under the lock nobody touches map, slots and ring any more. */
	pthread_mutex_t map_lock;
	bool map_open;
	uint64_t applied; /* sequence of the last report */
	uint64_t hot_credit;

	struct smv_domain *ring_domain;
	struct smv_region *ring_region;
	struct smv_hot_chunk *ring;
	uint8_t ring_key[SMV_TICKET_KEY_SIZE];
	struct smv_nonce_window ring_nonces;
};

static struct smv_data_endpoint endpoints[MAX_ENDPOINTS];
static size_t nr_endpoints;

int smv_migration_recall(const char *id, Verdict *verdict)
{
	char why[200] = "";

	switch (smv_verdicts_get(id, why)) {
	case SMV_VERDICT_NONE:
		return -ENOENT;
	case SMV_VERDICT_OPEN:
	case SMV_VERDICT_COMMITTED:
		verdict->state = CONFIRMED;
		break;
	case SMV_VERDICT_TOLD:
		verdict->state = COMMITTED;
		break;
	case SMV_VERDICT_ABORTED:
		verdict->state = ABORTED;
		break;
	}
	verdict->destination_state = strdup("gone");
	verdict->why = strdup(why);
	return 0;
}

bool smv_migration_is(struct smv_migration *m, const char *id)
{
	bool same;

	pthread_mutex_lock(&m->id_lock);
	same = strcmp(m->id, id) == 0;
	pthread_mutex_unlock(&m->id_lock);
	return same;
}

/* Of the migration with this id. A VM's former ones are not under way any more. */
static int state_of(struct smv_migration *m, const char *id)
{
	int state = ABORTED;

	pthread_mutex_lock(&m->id_lock);
	if (strcmp(m->id, id) == 0)
		state = atomic_load(&m->state);
	pthread_mutex_unlock(&m->id_lock);
	return state;
}

static void set_why(struct smv_migration *m, const char *why)
{
	pthread_mutex_lock(&m->id_lock);
	snprintf(m->why, sizeof(m->why), "%.199s", why);
	pthread_mutex_unlock(&m->id_lock);
}

static bool has_ring(struct smv_migration *m, uint64_t ring_id)
{
	bool same;

	pthread_mutex_lock(&m->id_lock);
	same = m->ring && m->ring_id == ring_id;
	pthread_mutex_unlock(&m->id_lock);
	return same;
}

static bool vm_has_ring(struct smv_vm *vm, const void *ring_id)
{
	struct smv_migration *m = atomic_load(&vm->migration);

	return m && has_ring(m, *(const uint64_t *)ring_id);
}

static bool change_state(struct smv_migration *m, int from, int to)
{
	return atomic_compare_exchange_strong(&m->state, &from, to);
}

static void set_map_open(struct smv_migration *m, bool open)
{
	pthread_mutex_lock(&m->map_lock);
	m->map_open = open;
	pthread_mutex_unlock(&m->map_lock);
}

static void touch(struct smv_migration *m)
{
	atomic_store(&m->last_contact_ns, smv_now_ns());
}

/* --- the ring of hot pages ---------------------------------------------------------------- */

static int install_chunk(struct smv_vm *vm, struct smv_migration *m, uint32_t index)
{
	struct smv_hot_chunk *chunk;
	uint32_t nr;

	if (index >= SMV_HOT_RING_CHUNKS)
		return -EINVAL;
	chunk = &m->ring[index];
	nr = chunk->nr_pages;
	if (chunk->magic != SMV_HOT_MAGIC || nr > SMV_HOT_CHUNK_PAGES)
		return -EINVAL;
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t page = chunk->entries[i].page;
		uint32_t checksum = chunk->entries[i].checksum;
		enum smv_page_state state;
		int r;

		if (page >= vm->map.nr_pages || smv_page_checksum(chunk->data[i]) != checksum)
			return -EBADMSG;
		state = smv_word_state(smv_pagemap_get(&vm->map, page));
		if (state != SMV_PAGE_UNKNOWN && state != SMV_PAGE_ZERO && state != SMV_PAGE_LOCAL)
			return -EINVAL;
		r = smv_pager_install(vm->pager, page, chunk->data[i], checksum);
		if (r < 0)
			return r;
	}
	return 0;
}

static int on_connect(void *ctx, struct smv_conn *conn, const void *private_data,
	size_t private_len, struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	struct smv_migration *m;
	struct smv_ticket t;
	struct smv_vm *vm;
	int r = -EACCES;

	(void)ctx;
	(void)conn;
	if (smv_ticket_parse(private_data, private_len, &t) < 0)
		return -EACCES;
	vm = smv_vms_get_where(vm_has_ring, &t.lease_id);
	if (!vm)
		return -EACCES;
	m = vm->migration;
	pthread_mutex_lock(&m->id_lock);
	if (m->ring && m->ring_id == t.lease_id && t.role == SMV_ROLE_WRITER &&
		smv_ticket_check(m->ring_key, private_data) == 0 &&
		smv_nonce_use(&m->ring_nonces, t.nonce) == 0) {
		*domain = m->ring_domain;
		*access = SMV_ACCESS_REMOTE_WRITE;
		*conn_ctx = vm; /* the reference goes along */
		r = 0;
	}
	pthread_mutex_unlock(&m->id_lock);
	if (r < 0) {
		smv_log_info(
			"VM '%s': a connection for hot pages was refused: wrong ticket", vm->name);
		smv_vm_put(vm);
	}
	return r;
}

static void on_notify(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t index)
{
	struct smv_vm *vm = conn_ctx;
	struct smv_migration *m = vm->migration;
	int r = -EPERM;

	(void)ctx;
	pthread_mutex_lock(&m->map_lock);
	if (m->map_open)
		r = install_chunk(vm, m, index);
	pthread_mutex_unlock(&m->map_lock);
	touch(m);
	if (r < 0)
		smv_log_error(
			"VM '%s': a chunk of hot pages was refused: %s", vm->name, strerror(-r));
	smv_conn_notify(conn, r == 0 ? index : index | SMV_HOT_REFUSED);
}

static void on_disconnected(void *ctx, void *conn_ctx, struct smv_conn *conn)
{
	(void)ctx;
	(void)conn;
	smv_vm_put(conn_ctx);
}

int smv_migration_listen(const struct smv_addr *addr, const char *advertise, struct smv_error *err)
{
	static const struct smv_listener_handler handler = {
		.connect = on_connect, .notify = on_notify, .disconnected = on_disconnected};
	const char *name = addr->transport[0] ? addr->transport : "tcp";
	struct smv_data_endpoint *e = &endpoints[nr_endpoints];
	int r;

	if (nr_endpoints == MAX_ENDPOINTS)
		return smv_fail(err, SMV_INVALID, "too-many", NULL, "at most %d --data addresses",
			MAX_ENDPOINTS);
	e->transport = smv_transport_find(name);
	if (!e->transport)
		return smv_fail(err, SMV_INVALID, "no-transport", "Use tcp:HOST:PORT or verbs:HOST:PORT.",
			"this build has no transport '%s'", name);
	r = smv_listen(e->transport, addr, &handler, &e->listener, &e->advertised, err);
	if (r < 0)
		return r;
	snprintf(e->advertised.transport, sizeof(e->advertised.transport), "%s", name);
	if (advertise)
		snprintf(e->advertised.host, sizeof(e->advertised.host), "%s", advertise);
	nr_endpoints++;
	return 0;
}

void smv_migration_unlisten(void)
{
	while (nr_endpoints)
		smv_listener_close(endpoints[--nr_endpoints].listener);
}

const struct smv_addr *smv_migration_data_address(size_t i)
{
	return i < nr_endpoints ? &endpoints[i].advertised : NULL;
}

static const struct smv_data_endpoint *endpoint_for(const struct smv_transport *t)
{
	for (size_t i = 0; i < nr_endpoints; i++)
		if (endpoints[i].transport == t)
			return &endpoints[i];
	return NULL;
}

static size_t ring_bytes(void)
{
	return SMV_HOT_RING_CHUNKS * sizeof(struct smv_hot_chunk);
}

/* For "auto". */
static bool has_endpoint(void *ctx, const char *name, char *why, size_t why_len)
{
	if (!smv_transport_fits_here(ctx, name, why, why_len))
		return false;
	if (endpoint_for(smv_transport_find(name)))
		return true;
	snprintf(why, why_len, "smemv-pagerd has no %s data address", name);
	return false;
}

static int ring_open(struct smv_migration *m, const struct smv_transport *t, struct smv_error *err)
{
	struct smv_hot_chunk *ring = mmap(NULL, ring_bytes(), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int r = ring == MAP_FAILED ? -ENOMEM : smv_domain_create(t, &m->ring_domain);

	if (r == 0 && (r = smv_region_register(m->ring_domain, ring, ring_bytes(),
			       SMV_ACCESS_REMOTE_WRITE, &m->ring_region)) < 0) {
		smv_domain_destroy(m->ring_domain);
		munmap(ring, ring_bytes());
	} else if (r < 0 && ring != MAP_FAILED)
		munmap(ring, ring_bytes());
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "hot-ring", NULL,
			"cannot set up the ring for hot pages: %s", strerror(-r));
	pthread_mutex_lock(&m->id_lock);
	m->ring = ring;
	m->ring_nonces = (struct smv_nonce_window){0};
	r = getrandom(m->ring_key, sizeof(m->ring_key), 0) == sizeof(m->ring_key) &&
			    getrandom(&m->ring_id, sizeof(m->ring_id), 0) == sizeof(m->ring_id)
		    ? 0
		    : -EIO;
	pthread_mutex_unlock(&m->id_lock);
	return r < 0 ? smv_fail(err, SMV_INTERNAL, "random", NULL, "getrandom failed") : 0;
}

/* From the return on no hot page can arrive any more. */
static void ring_close(struct smv_migration *m)
{
	struct smv_hot_chunk *ring = m->ring;

	if (!ring)
		return;
	pthread_mutex_lock(&m->id_lock);
	m->ring = NULL; /* no new connection */
	pthread_mutex_unlock(&m->id_lock);
	smv_region_deregister(m->ring_region);
	smv_domain_destroy(m->ring_domain);
	munmap(ring, ring_bytes());
}

/* --- prepare ------------------------------------------------------------------------------ */

static int check_layout(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	static const char hint[] = "Start both QEMUs with the same -m, -machine and -object "
				   "memory-backend-file (id and size).";

	if (q->n_ram_blocks != vm->ram.nr_blocks)
		return smv_fail(err, SMV_REFUSED, "ram-layout", hint,
			"the RAM layouts differ: the source has %zu shared RAM blocks, VM '%s' has "
			"%u",
			q->n_ram_blocks, vm->name, vm->ram.nr_blocks);
	for (unsigned int i = 0; i < vm->ram.nr_blocks; i++) {
		const Smemv__V1__RamBlock *theirs = q->ram_blocks[i];
		const struct smv_ram_block *ours = &vm->ram.blocks[i];

		if (strcmp(theirs->id, ours->id) != 0 || theirs->size_bytes != ours->size_bytes ||
			theirs->page_size != ours->page_size)
			return smv_fail(err, SMV_REFUSED, "ram-layout", hint,
				"the RAM layouts differ: the source has block '%.100s' of %lu "
				"bytes "
				"(pages of %u), VM '%s' has '%s' of %lu bytes (pages of %u)",
				theirs->id, theirs->size_bytes, theirs->page_size, vm->name,
				ours->id, ours->size_bytes, ours->page_size);
	}
	return 0;
}

static int check_empty(const struct smv_vm *vm, struct smv_error *err)
{
	for (unsigned int i = 0; i < vm->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &vm->ram.blocks[i];
		off_t data = lseek(b->fd, (off_t)b->file_offset, SEEK_DATA);

		if (data >= 0 && (uint64_t)data < b->file_offset + b->size_bytes)
			return smv_fail(err, SMV_REFUSED, "ram-not-empty",
				"Stop that QEMU, remove the file, and start it again without "
				"prealloc, "
				"mem-lock or a fresh start of the guest.",
				"the RAM file of block '%s' of VM '%s' already holds data (at "
				"offset "
				"%ld); pages there would never be paged in",
				b->id, vm->name, (long)data);
	}
	return 0;
}

static int check_id(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	(void)vm;
	if (smv_is_hex(q->migration_id, 32))
		return 0;
	return smv_fail(err, SMV_INVALID, "bad-id", "Use smemv-migrate of this version.",
		"a migration id has 32 hexadecimal digits");
}

static int check_sub_hosts(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	(void)vm;
	if (q->n_sub_hosts > 0 && q->n_sub_hosts <= SMV_SUB_HOSTS_MAX)
		return 0;
	return smv_fail(err, SMV_INVALID, "sub-hosts", "Name the sub-hosts with --sub-host.",
		"%zu sub-hosts: 1 to %d are possible", q->n_sub_hosts, SMV_SUB_HOSTS_MAX);
}

/* Down to which there is to be room for it. */
static uint64_t least_budget(const PrepareRequest *q)
{
	return q->min_budget_bytes ? q->min_budget_bytes : q->budget_bytes;
}

static uint64_t budget_of(const struct smv_vm *vm, const PrepareRequest *q)
{
	return q->budget_bytes < vm->ram.bytes ? q->budget_bytes : vm->ram.bytes;
}

static uint64_t room_of(const struct smv_vm *vm, const PrepareRequest *q)
{
	return smv_leases_room(vm->ram.bytes, least_budget(q));
}

static uint64_t floor_of(const struct smv_vm *vm, const PrepareRequest *q)
{
	return smv_leases_least_budget(vm->ram.bytes, room_of(vm, q));
}

static int check_budget(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	char have[32];

	(void)vm;
	if (q->budget_bytes >= SMV_BUDGET_MIN && least_budget(q) >= SMV_BUDGET_MIN &&
		least_budget(q) <= q->budget_bytes)
		return 0;
	if (q->budget_bytes >= SMV_BUDGET_MIN)
		return smv_fail(err, SMV_INVALID, "min-budget", "Change --min-budget.",
			"a least budget of %s is not between %s and the budget",
			smv_format_size(q->min_budget_bytes, have, sizeof(have)), "16 MiB");
	return smv_fail(err, SMV_INVALID, "budget", "Raise --budget.",
		"a budget of %s is too small, at least %s is needed",
		smv_format_size(q->budget_bytes, have, sizeof(have)), "16 MiB");
}

static int check_memory(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	return smv_budget_check(vm, budget_of(vm, q), floor_of(vm, q), NULL, err);
}

static int check_transport(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	(void)vm;
	if (smv_transport_wish_is_valid(q->transport))
		return 0;
	return smv_fail(err, SMV_INVALID, "no-transport", "Choose auto, verbs or tcp.",
		"there is no transport '%.40s'", q->transport);
}

static int check_loss_policy(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	enum smv_loss_policy policy;
	int r = smv_loss_policy_parse(q->loss_policy, &policy, err);

	(void)vm;
	return r < 0 ? r : smv_loss_policy_check(policy, err);
}

/* The RAM file of a VM that runs here holds data, of course: one reason is enough. */
static int check_free(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	char state[64];
	int r;

	(void)q;
	if (vm->state != SMV_VM_WAITING)
		return smv_fail(err, SMV_REFUSED, "vm-busy",
			vm->state == SMV_VM_FAILED ? "Start it again with smemv-run."
			: vm->state == SMV_VM_RECEIVING
				? "A migration whose source has died is aborted after 60 s."
				: "Choose another --to-vm.",
			"VM '%s' is not waiting for a migration: it is %s", vm->name,
			vm->state == SMV_VM_RUNNING     ? "running"
			: vm->state == SMV_VM_RECEIVING ? "receiving one"
							: "left over from an aborted one");
	if (vm->trouble[0])
		return smv_fail(err, SMV_REFUSED, "vm-trouble",
			"Start it again with smemv-run, or start smemv-pagerd again.",
			"VM '%s' cannot receive a migration: %s", vm->name, vm->trouble);
	if ((r = check_empty(vm, err)) < 0 || (r = smv_vm_qmp(vm, QMP_TIMEOUT_MS, err)) < 0 ||
		(r = smv_qmp_run_state(vm->qmp, state, sizeof(state), err)) < 0)
		return r;
	if (strcmp(state, "inmigrate") != 0)
		return smv_fail(err, SMV_REFUSED, "not-waiting", "Start it again with smemv-run.",
			"QEMU of VM '%s' does not wait for a migration any more: its state is '%s'",
			vm->name, state);
	return 0;
}

/* Each looks at one thing, so that all that stands in the way can be told at once. */
static int (*const checks[])(struct smv_vm *, const PrepareRequest *, struct smv_error *) = {
	check_id, check_sub_hosts, check_budget, check_transport, check_loss_policy, check_layout,
	check_free, check_memory};

static int check_request(struct smv_vm *vm, const PrepareRequest *q, struct smv_error *err)
{
	int r = vm->gone ? smv_fail(err, SMV_NOT_FOUND, "no-vm", "Start it with smemv-run.",
				   "VM '%s' has ended", vm->name)
			 : 0;

	for (size_t i = 0; i < SMV_ARRAY_SIZE(checks) && r == 0; i++)
		r = checks[i](vm, q, err);
	return r;
}

static void make_wish(const PrepareRequest *q, struct smv_transport_wish *wish)
{
	*wish = (struct smv_transport_wish){0};
	snprintf(wish->names, sizeof(wish->names), "%s", q->transport);
	if (q->transport_why[0])
		snprintf(wish->why, sizeof(wish->why), "at the source, %.300s", q->transport_why);
	smv_transport_narrow(wish, has_endpoint, NULL);
}

static int set_up(
	struct smv_vm *vm, struct smv_migration *m, const PrepareRequest *q, struct smv_error *err)
{
	char owner[160], hostname[64] = "?", path[400];
	struct smv_transport_wish wish;
	struct smv_remote *trial;
	int r;

	if ((r = smv_budget_join(vm, budget_of(vm, q), floor_of(vm, q), err)) < 0)
		return r;
	make_wish(q, &wish);
	gethostname(hostname, sizeof(hostname) - 1);
	snprintf(owner, sizeof(owner), "%s on %s", vm->name, hostname);
	r = smv_leases_create(&vm->leases, &vm->backing, (const char *const *)q->sub_hosts,
		(unsigned int)q->n_sub_hosts, owner, room_of(vm, q), &wish, q->insecure,
		LEASE_TIMEOUT_MS, vm->transport_reason, sizeof(vm->transport_reason), err);
	if (r < 0)
		return r;
	vm->backed = true;
	vm->leases.vm = vm->name;
	vm->renewed_ns = 0;
	if (!endpoint_for(vm->backing.transport))
		return smv_fail(err, SMV_REFUSED, "no-data-address",
			"Start smemv-pagerd with a --data address of that transport.",
			"the sub-hosts use transport %s, but this pager has no such data address",
			smv_transport_name(vm->backing.transport));
	vm->budget_bytes = budget_of(vm, q);
	smv_loss_policy_parse(q->loss_policy, &vm->loss_policy, NULL);
	if ((r = smv_pagemap_create(smv_vm_path(vm, "map", path, sizeof(path)), vm->name,
		     vm->ram.nr_pages, &vm->map, err)) < 0)
		return r;
	vm->map_id = smv_pagemap_id(&vm->map);
	if (smv_slots_create(vm->backing.nr_extents, &vm->slots) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	if ((r = smv_vm_save_extents(vm, err)) < 0 || (r = smv_vm_save(vm, err)) < 0 ||
		(r = smv_vm_attach_uffd(vm, false, err)) < 0)
		return r;
	/* Better to learn now than at the switch-over that a sub-host cannot be reached. */
	if ((r = smv_remote_open(&vm->backing, SMV_ROLE_READER, SMV_PAGE_SIZE, DATA_TIMEOUT_MS,
		     &trial, err)) < 0)
		return r;
	smv_remote_close(trial);
	m->hot_credit = smv_pager_hot_credit(vm->budget.granted);
	if ((r = smv_vm_make_pager(vm, err)) < 0)
		return r;
	return ring_open(m, vm->backing.transport, err);
}

/* --- plan --------------------------------------------------------------------------------- */

static void *new_message(const ProtobufCMessageDescriptor *d);

static void add_refusal(
	Smemv__V1__PlanMigrationResponse *p, const char *where, const struct smv_error *err)
{
	Smemv__V1__Refusal **grown = reallocarray(p->refusals, p->n_refusals + 1, sizeof(*grown));
	Smemv__V1__Refusal *r = new_message(&smemv__v1__refusal__descriptor);

	if (!grown)
		abort();
	r->where = strdup(where);
	r->code = strdup(err->reason);
	r->message = strdup(err->message);
	r->hint = strdup(err->hint);
	p->refusals = grown;
	p->refusals[p->n_refusals++] = r;
}

static void plan_sub_hosts(const PrepareRequest *q, Smemv__V1__PlanMigrationResponse *p)
{
	struct smv_leases_plan *plan = calloc(1, sizeof(*plan));
	struct smv_transport_wish wish;

	if (!plan)
		abort();
	make_wish(q, &wish);
	smv_leases_plan((const char *const *)q->sub_hosts, (unsigned int)q->n_sub_hosts,
		p->room_bytes, &wish, q->insecure, LEASE_TIMEOUT_MS, plan);
	p->sub_hosts = calloc(q->n_sub_hosts + 1, sizeof(*p->sub_hosts));
	for (size_t h = 0; p->sub_hosts && h < q->n_sub_hosts; h++) {
		Smemv__V1__PlannedSubHost *out =
			new_message(&smemv__v1__planned_sub_host__descriptor);

		out->address = strdup(q->sub_hosts[h]);
		out->name = strdup(plan->hosts[h].name);
		out->free_bytes = plan->hosts[h].free_bytes;
		out->share_bytes = plan->hosts[h].share_bytes;
		p->sub_hosts[p->n_sub_hosts++] = out;
		if (plan->hosts[h].error.code != SMV_OK)
			add_refusal(p, q->sub_hosts[h], &plan->hosts[h].error);
	}
	if (plan->transport_error.code != SMV_OK)
		add_refusal(p, "sub-hosts", &plan->transport_error);
	if (plan->room_error.code != SMV_OK)
		add_refusal(p, "sub-hosts", &plan->room_error);
	p->transport = strdup(plan->transport ? smv_transport_name(plan->transport) : "");
	p->transport_reason = strdup(plan->reason);
	free(plan);
}

void smv_migration_plan(
	struct smv_vm *vm, const PrepareRequest *q, Smemv__V1__PlanMigrationResponse *p)
{
	uint64_t share = 0;
	bool sub_hosts_ok = true;
	struct smv_error err;

	pthread_mutex_lock(&vm->lock);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(checks); i++) {
		/* A source that is refused itself sends no layout. */
		if (checks[i] == check_layout && q->n_ram_blocks == 0)
			continue;
		if (checks[i](vm, q, &err) == 0)
			continue;
		add_refusal(p, "main host", &err);
		sub_hosts_ok &= checks[i] != check_sub_hosts && checks[i] != check_transport;
	}
	smv_budget_check(vm, budget_of(vm, q), floor_of(vm, q), &share, &err);
	pthread_mutex_unlock(&vm->lock);
	p->room_bytes = room_of(vm, q);
	p->hot_credit_pages =
		share >= SMV_BUDGET_MIN ? smv_pager_hot_credit(share / SMV_PAGE_SIZE) : 0;
	if (sub_hosts_ok)
		plan_sub_hosts(q, p);
}

static void *new_message(const ProtobufCMessageDescriptor *d)
{
	ProtobufCMessage *m = calloc(1, d->sizeof_message);

	if (!m)
		abort();
	protobuf_c_message_init(d, m);
	return m;
}

static ProtobufCBinaryData ticket_bytes(const struct smv_ticket *t)
{
	ProtobufCBinaryData b = {.len = sizeof(*t), .data = malloc(sizeof(*t))};

	if (!b.data)
		abort();
	memcpy(b.data, t, sizeof(*t));
	return b;
}

static Smemv__V1__SubHost *describe_sub_host(struct smv_vm *vm, unsigned int h)
{
	const struct smv_sub_host *host = &vm->backing.sub_hosts[h];
	Smemv__V1__SubHost *out = new_message(&smemv__v1__sub_host__descriptor);
	struct smv_ticket ticket;
	char text[SMV_ADDR_MAX];

	out->address = strdup(host->address);
	out->name = strdup(host->name);
	out->data_address = strdup(smv_addr_format(&host->data_addr, text, sizeof(text)));
	out->lease_id = strdup(vm->leases.leases[h].id);
	out->segments = calloc(host->nr_segments + 1, sizeof(*out->segments));
	for (unsigned int i = 0; i < host->nr_segments; i++) {
		Smemv__V1__MemSegment *s = new_message(&smemv__v1__mem_segment__descriptor);

		s->rkey = host->segments[i].rkey;
		s->remote_addr = host->segments[i].remote_addr;
		s->size_bytes = host->segments[i].size_bytes;
		out->segments[out->n_segments++] = s;
	}
	if (smv_leases_ticket(&vm->leases, h, SMV_ROLE_WRITER, &ticket) == 0)
		out->ticket = ticket_bytes(&ticket);
	return out;
}

static void describe_extents(const struct smv_backing *b, PrepareResponse *p)
{
	p->extents = calloc(b->nr_extents + 1, sizeof(*p->extents));
	for (uint64_t i = 0; i < b->nr_extents; i++) {
		const struct smv_extent *x = &b->extents[i];
		Smemv__V1__ExtentRun *last = p->n_extents ? p->extents[p->n_extents - 1] : NULL;

		if (!last || last->sub_host != x->sub_host || last->segment != x->segment ||
			last->offset_bytes + (uint64_t)last->nr_extents * SMV_EXTENT_BYTES !=
				x->offset_bytes) {
			last = new_message(&smemv__v1__extent_run__descriptor);
			last->sub_host = x->sub_host;
			last->segment = x->segment;
			last->offset_bytes = x->offset_bytes;
			p->extents[p->n_extents++] = last;
		}
		last->nr_extents++;
	}
}

static void describe(struct smv_vm *vm, const struct smv_migration *m, PrepareResponse *p)
{
	const struct smv_data_endpoint *e = endpoint_for(vm->backing.transport);
	struct smv_region_info info;
	struct smv_ticket ticket;
	char text[SMV_ADDR_MAX];

	p->sub_hosts = calloc(vm->backing.nr_sub_hosts + 1, sizeof(*p->sub_hosts));
	for (unsigned int h = 0; h < vm->backing.nr_sub_hosts; h++)
		p->sub_hosts[p->n_sub_hosts++] = describe_sub_host(vm, h);
	describe_extents(&vm->backing, p);
	p->extent_bytes = SMV_EXTENT_BYTES;
	p->hot_credit_pages = m->hot_credit;
	p->hot_data_address = strdup(smv_addr_format(&e->advertised, text, sizeof(text)));
	smv_ticket_make(m->ring_key, m->ring_id, 1, SMV_ROLE_WRITER, 1, &ticket);
	p->hot_ticket = ticket_bytes(&ticket);
	smv_region_info(m->ring_region, &info);
	p->hot_ring_rkey = info.rkey;
	p->hot_ring_addr = info.remote_addr;
	p->hot_ring_chunks = SMV_HOT_RING_CHUNKS;
	p->transport = strdup(smv_transport_name(vm->backing.transport));
	p->transport_reason = strdup(vm->transport_reason);
}

static struct smv_migration *migration_of(struct smv_vm *vm)
{
	struct smv_migration *m = vm->migration;

	if (!m && (m = calloc(1, sizeof(*m)))) {
		pthread_mutex_init(&m->id_lock, NULL);
		pthread_mutex_init(&m->map_lock, NULL);
		atomic_store(&m->state, ABORTED);
		atomic_store(&vm->migration, m);
	}
	return m;
}

void smv_migration_free(struct smv_migration *m)
{
	if (!m)
		return;
	pthread_mutex_destroy(&m->id_lock);
	pthread_mutex_destroy(&m->map_lock);
	free(m);
}

static void set_id(struct smv_migration *m, const char *id)
{
	pthread_mutex_lock(&m->id_lock);
	snprintf(m->id, sizeof(m->id), "%s", id);
	pthread_mutex_unlock(&m->id_lock);
}

/* Whoever finds the new id must not see how the former migration ended. */
static void begin(struct smv_migration *m, const char *id)
{
	pthread_mutex_lock(&m->id_lock);
	snprintf(m->id, sizeof(m->id), "%s", id);
	m->why[0] = '\0';
	atomic_store(&m->state, PREPARING);
	pthread_mutex_unlock(&m->id_lock);
}

static int not_recorded(struct smv_error *err)
{
	return smv_fail(err, SMV_NO_ROOM, "state-dir",
		"Free memory of the file system of --state-dir.",
		"smemv-pagerd cannot write to its state directory");
}

int smv_migration_prepare(struct smv_vm *vm, const PrepareRequest *q, PrepareResponse *response,
	struct smv_error *err)
{
	struct smv_migration *m = NULL;
	int r;

	pthread_mutex_lock(&vm->lock);
	r = check_request(vm, q, err);
	if (r == 0 && !(m = migration_of(vm)))
		r = smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	/* Known before anything is leased: whatever happens now, it can be asked for. */
	if (r == 0 && (r = smv_verdicts_put(q->migration_id, vm->name, SMV_VERDICT_OPEN, "")) < 0)
		r = r == -EPERM ? smv_fail(err, SMV_EXISTS, "id-taken", NULL,
					  "a migration %s was here already", q->migration_id)
				: not_recorded(err);
	if (r < 0) {
		pthread_mutex_unlock(&vm->lock);
		return r;
	}
	m->applied = 0;
	m->incoming_started = m->to_be_run = false;
	touch(m);
	begin(m, q->migration_id);
	vm->state = SMV_VM_RECEIVING;
	r = set_up(vm, m, q, err);
	if (r == 0)
		set_map_open(m, true);
	/* To lease much memory takes long; the source was waiting for the answer. */
	touch(m);
	if (r == 0 && !change_state(m, PREPARING, RECEIVING))
		r = smv_fail(err, SMV_ABORTED, "aborted", NULL, "the migration was aborted");
	if (r == 0)
		describe(vm, m, response);
	pthread_mutex_unlock(&vm->lock);
	if (r < 0) {
		smv_migration_abort(vm, q->migration_id, err->message, NULL);
	} else {
		char need[32];

		smv_log_info("VM '%s': receiving migration %s; %s on %u sub-hosts over %s",
			vm->name, m->id,
			smv_format_size(
				vm->backing.nr_extents * SMV_EXTENT_BYTES, need, sizeof(need)),
			vm->backing.nr_sub_hosts, response->transport);
	}
	return r;
}

/* --- while pages arrive ------------------------------------------------------------------- */

static int bad_range(struct smv_error *err, const Smemv__V1__PageRange *range, const char *why)
{
	return smv_fail(err, SMV_INVALID, "bad-report", NULL,
		"report of pages %lu+%lu at slot %lu: %s", range->first_page, range->nr_pages,
		range->first_slot, why);
}

static int place_cold(struct smv_vm *vm, uint64_t page, uint64_t slot, uint32_t checksum)
{
	smv_page_word old = smv_pagemap_get(&vm->map, page);
	int r = 0;

	switch (smv_word_state(old)) {
	case SMV_PAGE_UNKNOWN:
	case SMV_PAGE_ZERO:
		r = smv_slots_take(&vm->slots, slot);
		break;
	case SMV_PAGE_COLD:
		if (smv_word_slot(old) != slot)
			r = -EEXIST;
		break;
	default:
		r = -EEXIST;
	}
	if (r == 0)
		smv_pagemap_place(&vm->map, page, smv_word(SMV_PAGE_COLD, slot, checksum));
	return r;
}

/* Also a page that was sent before: meanwhile the guest has discarded it. */
static int place_zero(struct smv_vm *vm, uint64_t page)
{
	smv_page_word old = smv_pagemap_get(&vm->map, page);

	if (smv_word_state(old) == SMV_PAGE_COLD)
		smv_slots_free(&vm->slots, smv_word_slot(old));
	return smv_pager_uninstall(vm->pager, page);
}

static int apply_range(struct smv_vm *vm, const Smemv__V1__PageRange *range, struct smv_error *err)
{
	uint64_t nr = range->nr_pages;
	bool cold = range->state == SMEMV__V1__PAGE_STATE__PAGE_STATE_COLD;

	if (!cold && range->state != SMEMV__V1__PAGE_STATE__PAGE_STATE_ZERO)
		return bad_range(err, range, "unknown state");
	if (nr == 0 || nr > vm->map.nr_pages || range->first_page > vm->map.nr_pages - nr)
		return bad_range(err, range, "outside the VM");
	if (cold && range->checksums.len != nr * 4)
		return bad_range(err, range, "not one checksum per page");
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t page = range->first_page + i;
		uint32_t checksum;

		if (cold) {
			memcpy(&checksum, range->checksums.data + 4 * i, 4);
			if (place_cold(vm, page, range->first_slot + i,
				    le32toh(checksum) & ((1u << SMV_CHECKSUM_BITS) - 1)) < 0)
				return bad_range(err, range,
					"the slot is taken or outside, or the page is somewhere "
					"else");
			continue;
		}
		if (place_zero(vm, page) < 0)
			return bad_range(err, range, "a page cannot be made zero");
	}
	return 0;
}

static int not_receiving(struct smv_migration *m, const char *id, struct smv_error *err)
{
	int state = state_of(m, id);
	char why[sizeof(m->why)] = "";

	pthread_mutex_lock(&m->id_lock);
	if (strcmp(m->id, id) == 0)
		memcpy(why, m->why, sizeof(why));
	pthread_mutex_unlock(&m->id_lock);
	return smv_fail(err, SMV_ABORTED, "aborted", NULL, "the migration is %s%s%s",
		state == ABORTED || state == ABORTING ? "aborted" : "past this step",
		why[0] ? ": " : "", why);
}

int smv_migration_report(struct smv_vm *vm, const Smemv__V1__ReportPagesRequest *q,
	uint64_t *applied, struct smv_error *err)
{
	struct smv_migration *m = vm->migration;
	int r = 0;

	touch(m);
	pthread_mutex_lock(&m->map_lock);
	/* While the map is open the id stays. */
	if (!m->map_open || !smv_migration_is(m, q->migration_id))
		r = not_receiving(m, q->migration_id, err);
	else if (q->sequence > m->applied + 1)
		r = smv_fail(err, SMV_INVALID, "report-gap", NULL,
			"report %lu came after report %lu", q->sequence, m->applied);
	if (r == 0 && q->sequence == m->applied + 1) {
		if (!smv_fault_point("report-drop-batch"))
			for (size_t i = 0; i < q->n_ranges && r == 0; i++)
				r = apply_range(vm, q->ranges[i], err);
		if (r == 0)
			m->applied = q->sequence;
	}
	*applied = m->applied;
	pthread_mutex_unlock(&m->map_lock);
	return r;
}

/* --- switch-over -------------------------------------------------------------------------- */

static int ask_incoming(struct smv_vm *vm, char **uri, struct smv_error *err)
{
	const struct smv_data_endpoint *e = endpoint_for(vm->backing.transport);
	struct smv_addr addr = {.port = 0};
	CLEANUP_JSON json_t *info = NULL;
	const char *host, *port;
	char text[SMV_ADDR_MAX];
	json_t *sock;
	int r;

	snprintf(addr.host, sizeof(addr.host), "%s", e->advertised.host);
	snprintf(text, sizeof(text), strchr(addr.host, ':') ? "tcp:[%s]:0" : "tcp:%s:0", addr.host);
	if ((r = smv_qmp_set_capability(vm->qmp, "x-ignore-shared", true, err)) < 0 ||
		(r = smv_qmp_execute(vm->qmp, "migrate-incoming", json_pack("{s:s}", "uri", text),
			 NULL, QMP_TIMEOUT_MS, err)) < 0 ||
		(r = smv_qmp_execute(vm->qmp, "query-migrate", NULL, &info, QMP_TIMEOUT_MS, err)) <
			0)
		return r;
	sock = json_array_get(json_object_get(info, "socket-address"), 0);
	host = json_string_value(json_object_get(sock, "host"));
	port = json_string_value(json_object_get(sock, "port"));
	if (!host || !port)
		return smv_fail(err, SMV_INTERNAL, "qmp", NULL,
			"QEMU of VM '%s' does not say where it listens", vm->name);
	if (asprintf(uri, strchr(addr.host, ':') ? "tcp:[%s]:%s" : "tcp:%s:%s", addr.host, port) <
		0)
		return -ENOMEM;
	return 0;
}

int smv_migration_start_incoming(
	struct smv_vm *vm, const char *id, char **uri, struct smv_error *err)
{
	struct smv_migration *m = vm->migration;
	int r;

	pthread_mutex_lock(&vm->lock);
	touch(m);
	if (state_of(m, id) != RECEIVING) {
		r = not_receiving(m, id, err);
	} else {
		/* Written down before QEMU hears of it: from then on it cannot wait for another
		 * migration, and its capability is to be put back. */
		if ((r = smv_vm_qmp(vm, QMP_TIMEOUT_MS, err)) == 0 &&
			(r = smv_qmp_get_capability(
				 vm->qmp, "x-ignore-shared", &m->ignored_shared, err)) == 0) {
			m->incoming_started = true;
			r = smv_vm_save(vm, err);
		}
		if (r == 0)
			r = ask_incoming(vm, uri, err);
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static int compare_maps(const struct smv_vm *vm, const struct smv_migration *m,
	const Smemv__V1__ConfirmMapRequest *q, struct smv_error *err)
{
	uint64_t unknown = smv_pagemap_count(&vm->map, SMV_PAGE_UNKNOWN);
	uint64_t hot = smv_pagemap_count(&vm->map, SMV_PAGE_LOCAL);
	uint64_t cold = smv_pagemap_count(&vm->map, SMV_PAGE_COLD);
	uint64_t zero = smv_pagemap_count(&vm->map, SMV_PAGE_ZERO);

	if (q->sequence != m->applied)
		return smv_fail(err, SMV_REFUSED, "map-differs", NULL,
			"the source sent %lu reports, %lu arrived", q->sequence, m->applied);
	if (unknown)
		return smv_fail(err, SMV_REFUSED, "map-differs", NULL,
			"the place of %lu pages is unknown", unknown);
	if (q->pages_hot != hot || q->pages_cold != cold || q->pages_zero != zero)
		return smv_fail(err, SMV_REFUSED, "map-differs", NULL,
			"the source counts %lu hot, %lu cold, %lu zero pages, the main host %lu, "
			"%lu, %lu",
			q->pages_hot, q->pages_cold, q->pages_zero, hot, cold, zero);
	if (q->digest != vm->map.digest)
		return smv_fail(err, SMV_REFUSED, "map-differs", NULL,
			"source and main host have different digests of the page map");
	return 0;
}

int smv_migration_confirm(
	struct smv_vm *vm, const Smemv__V1__ConfirmMapRequest *q, struct smv_error *err)
{
	struct smv_migration *m = vm->migration;
	int r;

	pthread_mutex_lock(&vm->lock);
	touch(m);
	if (state_of(m, q->migration_id) != RECEIVING) {
		r = not_receiving(m, q->migration_id, err);
	} else {
		set_map_open(m, false);
		ring_close(m);
		if ((r = compare_maps(vm, m, q, err)) == 0 &&
			(r = smv_leases_fence(&vm->leases, &vm->backing, err)) == 0 &&
			(r = smv_vm_save(vm, err)) == 0 && /* the new epoch */
			(r = smv_vm_take_discards(vm, err)) == 0 &&
			(r = smv_pager_start(vm->pager, err)) == 0 &&
			!change_state(m, RECEIVING, CONFIRMED))
			r = not_receiving(m, q->migration_id, err);
	}
	pthread_mutex_unlock(&vm->lock);
	if (r < 0)
		return r;
	smv_log_info("VM '%s': map confirmed, the source is fenced, faults are served", vm->name);
	smv_fault_point("fenced");
	return 0;
}

/* 1: the device state is loaded; 0: not yet; negative: it never will be. */
static int destination_loaded(struct smv_vm *vm, struct smv_error *err)
{
	CLEANUP_JSON json_t *info = NULL;
	const char *status;
	char state[64];
	int r;

	if ((r = smv_qmp_execute(vm->qmp, "query-migrate", NULL, &info, QMP_TIMEOUT_MS, err)) < 0 ||
		(r = smv_qmp_run_state(vm->qmp, state, sizeof(state), err)) < 0)
		return r;
	status = json_string_value(json_object_get(info, "status"));
	if (status && strcmp(status, "failed") == 0)
		return smv_fail(err, SMV_ABORTED, "destination-failed",
			"See the destination QEMU's messages.",
			"the destination's QEMU could not load the device state");
	return status && strcmp(status, "completed") == 0 && strcmp(state, "inmigrate") != 0;
}

static int run_destination(struct smv_vm *vm, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + QMP_TIMEOUT_MS * SMV_NS_PER_MS;
	char state[64];
	int r = smv_vm_qmp(vm, QMP_AGAIN_TIMEOUT_MS, err);

	if (r == 0)
		r = smv_qmp_execute(vm->qmp, "cont", NULL, NULL, QMP_TIMEOUT_MS, err);
	while (r == 0) {
		r = smv_qmp_run_state(vm->qmp, state, sizeof(state), err);
		if (r < 0 || strcmp(state, "running") == 0)
			break;
		if (smv_now_ns() > end)
			r = smv_fail(err, SMV_TIMEOUT, "not-running", NULL,
				"QEMU of VM '%s' is '%s' after cont", vm->name, state);
		smv_sleep_ms(1);
	}
	return r;
}

/* After the commit: the VM must run, if not now then later (smv_migration_run_locked()). */
static void run_committed(struct smv_vm *vm, struct smv_migration *m)
{
	struct smv_error err;

	if (run_destination(vm, &err) < 0) {
		if (strcmp(m->why, err.message) != 0)
			smv_log_error("VM '%s' is committed, but does not run: %s", vm->name,
				err.message);
		set_why(m, err.message);
		/* The next try may need a new connection. */
		if (vm->qmp)
			smv_qmp_close(vm->qmp);
		vm->qmp = NULL;
		return;
	}
	set_why(m, "");
	/* It would make the operator's next ordinary migration send no RAM. */
	if (smv_qmp_set_capability(vm->qmp, "x-ignore-shared", m->ignored_shared, &err) < 0)
		smv_log_warning("VM '%s': cannot restore the capability x-ignore-shared: %s",
			vm->name, err.message);
	/* From now on nobody sends `cont` any more: an operator may stop the VM. */
	m->to_be_run = false;
	if (smv_vm_save(vm, &err) < 0)
		smv_log_error("%s", err.message);
}

/* COMMITTING: write the decision down. NULL, or why it must be an abort. */
static const char *decide(struct smv_vm *vm, struct smv_migration *m)
{
	bool there[SMV_SUB_HOSTS_MAX] = {false};

	smv_fault_point("before-commit");
	if (!smv_vm_is_alive(vm))
		return "QEMU's process has ended before the commit";
	/* Held leases do not expire, but a sub-host may have died with them since. Each still has
	 * its lease, in our epoch, if it agrees to fence once more. */
	if (smv_leases_fence_each(
		    &vm->leases, &vm->backing, there, false, SUB_HOST_TIMEOUT_MS, NULL))
		return "a sub-host did not answer just before the commit";
	m->to_be_run = true;
	if (smv_vm_save(vm, NULL) < 0 ||
		smv_verdicts_put(m->id, NULL, SMV_VERDICT_COMMITTED, "") < 0)
		return "the commit could not be recorded";
	smv_fault_point("after-commit");
	return NULL;
}

/* COMMITTING, and that is in the log: the last moment at which it may still be an abort, because
 * nobody was told and nothing has run here. */
static const char *tell(struct smv_vm *vm, struct smv_migration *m)
{
	if (!smv_vm_is_alive(vm))
		return "QEMU's process has ended before it ran";
	return smv_verdicts_put(m->id, NULL, SMV_VERDICT_TOLD, "") < 0
		       ? "the commit could not be recorded"
		       : NULL;
}

/* COMMITTING -> COMMITTED or, with @why, ABORTED. */
static int end_commit(
	struct smv_vm *vm, struct smv_migration *m, const char *why, struct smv_error *err)
{
	if (!why)
		why = tell(vm, m);
	if (why) {
		smv_migration_abort_locked(vm, why);
		return not_receiving(m, m->id, err);
	}
	vm->state = SMV_VM_RUNNING;
	smv_vm_save(vm, NULL); /* also without the log it runs here from now on */
	smv_event(SMV_EVENT_VM_RUNNING, vm->name, NULL, "VM '%s': migration %s is committed",
		vm->name, m->id);
	run_committed(vm, m);
	atomic_store(&m->state, COMMITTED);
	return 0;
}

/* -EAGAIN: not yet. */
static int commit_once_loaded(struct smv_vm *vm, struct smv_migration *m, struct smv_error *err)
{
	int r = destination_loaded(vm, err);

	if (r <= 0)
		return r == 0 ? -EAGAIN : r;
	/* From the commit on no lease may expire by time. */
	if (!smv_leases_hold(&vm->leases, &vm->backing))
		return smv_fail(err, SMV_UNAVAILABLE, "leases", "Check the sub-hosts.",
			"a sub-host does not confirm its lease");
	if (!change_state(m, CONFIRMED, COMMITTING))
		return not_receiving(m, m->id, err);
	return end_commit(vm, m, decide(vm, m), err);
}

int smv_migration_commit(struct smv_vm *vm, const struct smv_rpc_call *call, const char *id,
	unsigned int timeout_ms, Verdict *verdict, struct smv_error *err)
{
	struct smv_migration *m = vm->migration;
	bool now = false;
	uint64_t end;
	int state, r;

	if (timeout_ms > COMMIT_TIMEOUT_MAX_MS)
		timeout_ms = COMMIT_TIMEOUT_MAX_MS;
	end = smv_now_ns() + timeout_ms * SMV_NS_PER_MS;
	touch(m);
	for (;;) {
		pthread_mutex_lock(&vm->lock);
		state = state_of(m, id);
		if (state == COMMITTED)
			r = 0;
		else if (state != CONFIRMED)
			r = not_receiving(m, id, err);
		else
			now = (r = commit_once_loaded(vm, m, err)) == 0;
		pthread_mutex_unlock(&vm->lock);
		if (r != -EAGAIN)
			break;
		if (smv_rpc_call_is_cancelled(call))
			return smv_fail(
				err, SMV_CANCELLED, "cancelled", NULL, "the caller has gone");
		if (smv_now_ns() > end)
			return smv_fail(err, SMV_TIMEOUT, "destination-slow",
				"Is the main host overloaded, or a disk of the VM slow?",
				"the destination's QEMU has not loaded the device state after %u "
				"ms",
				timeout_ms);
		smv_sleep_ms(1);
	}
	if (now)
		smv_fault_point("after-cont");
	if (r == 0 && smv_migration_verdict(vm, id, verdict) < 0)
		r = not_receiving(m, id, err);
	return r;
}

/* Before the first byte of the device state QEMU can wait for another migration. */
static void reset_destination(struct smv_vm *vm, const struct smv_migration *m)
{
	if (m->incoming_started) {
		/* Whatever it has loaded, it must never run. A thread that waits for a page makes
		 * its monitor deaf. */
		if (smv_vm_is_alive(vm) &&
			(smv_vm_qmp(vm, QMP_AGAIN_TIMEOUT_MS, NULL) < 0 ||
				smv_qmp_execute(vm->qmp, "quit", NULL, NULL, QMP_TIMEOUT_MS, NULL) <
					0) &&
			syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0) == 0)
			smv_log_warning("VM '%s': QEMU did not quit and was killed", vm->name);
		vm->state = SMV_VM_FAILED;
		return;
	}
	for (unsigned int i = 0; i < vm->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &vm->ram.blocks[i];

		if (fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)b->file_offset, (off_t)b->size_bytes) < 0)
			smv_log_error("VM '%s': cannot empty RAM block '%s': %s", vm->name, b->id,
				strerror(errno));
	}
	vm->state = SMV_VM_WAITING;
}

/* ABORTING -> ABORTED; the lock is held. The record comes first: what it undoes, a successor would
 * undo as well. */
static void undo(struct smv_vm *vm, struct smv_migration *m, const char *why)
{
	struct smv_error err;

	set_why(m, why);
	smv_event(SMV_EVENT_VM_MIGRATION_ABORTED, vm->name, NULL,
		"VM '%s': migration %s is aborted: %s", vm->name, m->id, why);
	/* Without a record a successor finds it open, or committed but QEMU gone: it aborts as
	 * well. */
	smv_verdicts_put(m->id, NULL, SMV_VERDICT_ABORTED, m->why);
	set_map_open(m, false);
	ring_close(m);
	smv_vm_back_out(vm);
	m->to_be_run = false;
	reset_destination(vm, m);
	if (smv_vm_save(vm, &err) < 0)
		smv_log_error("%s", err.message);
	atomic_store(&m->state, ABORTED);
}

static bool begin_abort(struct smv_migration *m)
{
	return change_state(m, PREPARING, ABORTING) || change_state(m, RECEIVING, ABORTING) ||
	       change_state(m, CONFIRMED, ABORTING);
}

void smv_migration_abort_locked(struct smv_vm *vm, const char *why)
{
	struct smv_migration *m = vm->migration;

	/* What is COMMITTING while the lock is free for others was restored, and is not told yet.
	 */
	if (m && (begin_abort(m) || change_state(m, COMMITTING, ABORTING) ||
			 atomic_load(&m->state) == ABORTING)) /* by one who waits for the lock */
		undo(vm, m, why);
}

/* False: it has ended, or is of another id. */
static bool begin_abort_of(struct smv_migration *m, const char *id)
{
	bool begun;

	pthread_mutex_lock(&m->id_lock);
	begun = (!id || strcmp(m->id, id) == 0) &&
		(begin_abort(m) || atomic_load(&m->state) == ABORTING);
	pthread_mutex_unlock(&m->id_lock);
	return begun;
}

int smv_migration_abort(struct smv_vm *vm, const char *id, const char *why, Verdict *verdict)
{
	struct smv_migration *m = vm->migration;

	/* First the state, then the lock: who holds it sees that it has lost. */
	if (m && begin_abort_of(m, id)) {
		pthread_mutex_lock(&vm->lock);
		if (atomic_load(&m->state) == ABORTING)
			undo(vm, m, why);
		pthread_mutex_unlock(&vm->lock);
	}
	return verdict ? smv_migration_verdict(vm, id, verdict) : 0;
}

/* What is being decided is open to others. */
static int told_state(int state)
{
	return state == COMMITTING || state == ABORTING ? CONFIRMED : state;
}

int smv_migration_verdict(struct smv_vm *vm, const char *id, Verdict *verdict)
{
	struct smv_migration *m = vm->migration;
	char run_state[64] = "", why[sizeof(m->why)];
	int state;
	bool same;

	if (pthread_mutex_trylock(&vm->lock) == 0) {
		if (!vm->gone && vm->qmp)
			smv_qmp_run_state(vm->qmp, run_state, sizeof(run_state), NULL);
		pthread_mutex_unlock(&vm->lock);
	}
	pthread_mutex_lock(&m->id_lock);
	same = strcmp(m->id, id) == 0;
	state = atomic_load(&m->state);
	memcpy(why, m->why, sizeof(why));
	pthread_mutex_unlock(&m->id_lock);
	if (!same)
		return -ENOENT;
	touch(m);
	verdict->state = (Smemv__V1__MigrationState)told_state(state);
	verdict->destination_state = strdup(run_state);
	verdict->why = strdup(why);
	return 0;
}

void smv_migration_check_silence(struct smv_vm *vm)
{
	struct smv_migration *m = vm->migration;
	int state = m ? atomic_load(&m->state) : ABORTED;
	/* In this order: somebody may be heard of in between. */
	uint64_t last = m ? atomic_load(&m->last_contact_ns) : 0, now = smv_now_ns();

	if ((state == PREPARING || state == RECEIVING || state == CONFIRMED) && now > last &&
		now - last > SILENCE_NS)
		smv_migration_abort(vm, NULL, "the source has not been heard of for 60 s", NULL);
}

/* Restored by a new pager, and nobody was told: the source still has the VM as a whole. */
static const char *why_not(const struct smv_vm *vm)
{
	return smv_pagemap_count(&vm->map, SMV_PAGE_LOST) ? "pages were lost before it ran" : NULL;
}

void smv_migration_run_locked(struct smv_vm *vm)
{
	struct smv_migration *m = vm->migration;
	int state = m ? atomic_load(&m->state) : ABORTED;

	if (state == COMMITTING && !vm->nr_unfenced)
		end_commit(vm, m, why_not(vm), NULL);
	else if (state == COMMITTING && smv_now_ns() - m->restored_ns > UNFENCED_PATIENCE_NS)
		end_commit(vm, m, "a sub-host does not answer after the restart", NULL);
	else if (state == COMMITTED && m->to_be_run && vm->pager &&
		 smv_now_ns() >= m->run_retry_ns) {
		run_committed(vm, m);
		m->run_retry_ns = smv_now_ns() + RUN_AGAIN_NS;
	}
}

/* --- across pagers ------------------------------------------------------------------------ */

json_t *smv_migration_to_json(const struct smv_migration *m)
{
	return json_pack("{s:s, s:b, s:b, s:b}", "id", m->id, "incoming_started",
		m->incoming_started, "ignored_shared", m->ignored_shared, "to_be_run",
		m->to_be_run);
}

void smv_migration_from_json(struct smv_vm *vm, const json_t *json)
{
	const char *id = json_string_value(json_object_get(json, "id"));
	struct smv_migration *m = id && strlen(id) == 32 ? migration_of(vm) : NULL;

	if (!m)
		return;
	set_id(m, id);
	m->incoming_started = json_is_true(json_object_get(json, "incoming_started"));
	m->ignored_shared = json_is_true(json_object_get(json, "ignored_shared"));
	m->to_be_run = json_is_true(json_object_get(json, "to_be_run"));
	touch(m);
	if (smv_verdicts_get(id, m->why) != SMV_VERDICT_ABORTED)
		m->why[0] = '\0';
}

enum smv_verdict_state smv_migration_verdict_of(struct smv_migration *m)
{
	return m ? smv_verdicts_get(m->id, NULL) : SMV_VERDICT_NONE;
}

void smv_migration_restored(struct smv_vm *vm)
{
	struct smv_migration *m = vm->migration;

	m->restored_ns = smv_now_ns();
	atomic_store(&m->state,
		smv_migration_verdict_of(m) == SMV_VERDICT_COMMITTED ? COMMITTING : COMMITTED);
}

void smv_migration_abort_restored(struct smv_vm *vm, const char *why)
{
	struct smv_migration *m = vm->migration;
	enum smv_verdict_state verdict = smv_migration_verdict_of(m);

	if (verdict == SMV_VERDICT_TOLD || !smv_vm_is_alive(vm)) {
		if (verdict == SMV_VERDICT_OPEN || verdict == SMV_VERDICT_COMMITTED)
			smv_verdicts_put(m->id, NULL, SMV_VERDICT_ABORTED, why);
		return;
	}
	atomic_store(&m->state, ABORTING);
	smv_migration_abort(vm, NULL, m->why[0] ? m->why : why, NULL);
}
