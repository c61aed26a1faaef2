/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/lease.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "memserver/extents.h"
#include "memserver/registration.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

/* How long a connection may take to end before a call that waits for it gives up. */
#define DISCONNECT_TIMEOUT_NS (10 * SMV_NS_PER_S)

/* When what a thread does by itself could not be recorded, it tries again. */
#define STORE_RETRY_NS (1 * SMV_NS_PER_S)

/* Zeroing looks this often whether the daemon wants to end. */
#define ZERO_STEP (16 * SMV_MIB)

struct data_conn {
	struct data_conn *next;
	struct lease *lease;
	struct smv_conn *conn; /* valid as long as it is in the lease's list */
	uint32_t epoch;
	bool writer;
	bool closing;
};

struct lease {
	struct lease *next;
	uint64_t id;
	char owner[SMV_LEASE_OWNER_MAX + 1];
	enum smv_lease_state state;
	uint32_t epoch;
	uint8_t key[SMV_TICKET_KEY_SIZE];
	struct smv_nonce_window nonces;
	const struct smv_transport *transport;
	struct smv_domain *domain;
	struct smv_extent_run *runs;
	struct smv_region **regions; /* one per run, as are the segments */
	struct smv_lease_segment *segments;
	size_t nr_segments;
	uint64_t size_bytes;
	uint64_t created_ns;
	uint64_t prepare_ns;
	uint64_t ttl_ns;
	uint64_t expires_ns;
	uint64_t renewed_ns; /* when its owner was last heard of */
	struct data_conn *conns;
	uint32_t nr_conns;
	bool unreachable; /* RELEASING: the regions are gone */
};

/*
 * One lock for all. It is never held over a call that waits for a transport's thread, because that
 * may be in smv_lease_admit() or smv_lease_disconnected(). A lease's runs and regions belong to the
 * threads that prepare it, then nobody changes them, then to the thread that made it
 * RELEASING, and from `unreachable` on to the zeroing thread.
 */
struct smv_lease_table {
	struct smv_arena *arena;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* anything below, broadcast */
	struct smv_extents *extents;
	struct lease *leases;
	uint32_t nr_leases;
	uint64_t orphan_after_ns;
	struct smv_domain_stats ended; /* sums over the leases that are gone */
	atomic_bool stopping;
	bool threads_run;
	pthread_t reaper;
	pthread_t zeroer;
};

/*
 * PREPARING   -> PROVISIONAL  its memory is registered
 * PREPARING   -> GONE         registering failed; nobody has ever reached its memory
 * PROVISIONAL -> HELD         the owner has committed to it
 * PROVISIONAL -> RELEASING    its time is over, or the owner gives it back
 * HELD        -> ORPHANED     the owner has not been heard of for long
 * ORPHANED    -> HELD         the owner renews, holds or fences it
 * HELD        -> RELEASING    the owner gives it back, or an operator takes it away
 * ORPHANED    -> RELEASING    the same
 * RELEASING   -> GONE         its memory is zeroed
 *
 * A daemon that is started again makes PREPARING leases RELEASING: their owners never heard of
 * them. All others stay what they were.
 */
static bool may_become(enum smv_lease_state from, enum smv_lease_state to)
{
	switch (from) {
	case SMV_LEASE_PREPARING:
		return to == SMV_LEASE_PROVISIONAL || to == SMV_LEASE_GONE;
	case SMV_LEASE_PROVISIONAL:
		return to == SMV_LEASE_HELD || to == SMV_LEASE_RELEASING;
	case SMV_LEASE_HELD:
		return to == SMV_LEASE_ORPHANED || to == SMV_LEASE_RELEASING;
	case SMV_LEASE_ORPHANED:
		return to == SMV_LEASE_HELD || to == SMV_LEASE_RELEASING;
	case SMV_LEASE_RELEASING:
		return to == SMV_LEASE_GONE;
	case SMV_LEASE_GONE:
		break;
	}
	return false;
}

static void set_state(struct lease *l, enum smv_lease_state to)
{
	assert(may_become(l->state, to));
	l->state = to;
}

static bool is_usable(const struct lease *l)
{
	return smv_lease_is_live(l->state);
}

static struct lease *find(const struct smv_lease_table *t, uint64_t id)
{
	struct lease *l = t->leases;

	while (l && l->id != id)
		l = l->next;
	return l;
}

static int fail_not_found(uint64_t id, struct smv_error *err)
{
	return smv_fail(err, SMV_NOT_FOUND, "no-such-lease",
		"It was released, it expired, or the server lost its memory.",
		"there is no lease %016" PRIx64, id);
}

static int find_usable(
	struct smv_lease_table *t, uint64_t id, struct lease **lease, struct smv_error *err)
{
	*lease = find(t, id);
	if (!*lease)
		return fail_not_found(id, err);
	if (is_usable(*lease))
		return 0;
	return smv_fail(err, SMV_REFUSED, "lease-not-usable", NULL,
		"lease %016" PRIx64 " is being %s", id,
		(*lease)->state == SMV_LEASE_PREPARING ? "prepared" : "released");
}

static int fail_memory(struct smv_error *err)
{
	return smv_fail(err, SMV_INTERNAL, "no-memory", NULL, "the server is out of memory");
}

/* @what: the rest of the sentence */
static void tell(enum smv_event_kind kind, const struct lease *l, const char *what)
{
	char id[20];

	snprintf(id, sizeof(id), "%016" PRIx64, l->id);
	smv_event(kind, l->owner, id, "lease %s of '%s' %s", id, l->owner, what);
}

/* --- the list of leases ------------------------------------------------------------------- */

static void fill_record(const struct lease *l, struct smv_lease_record *r)
{
	*r = (struct smv_lease_record){.id = l->id,
		.state = l->state,
		.epoch = l->epoch,
		.ttl_ms = l->ttl_ns / SMV_NS_PER_MS,
		.created_ns = l->created_ns,
		.runs = l->runs,
		.nr_runs = l->nr_segments};
	memcpy(r->owner, l->owner, sizeof(r->owner));
	memcpy(r->key, l->key, sizeof(r->key));
	if (l->transport)
		snprintf(
			r->transport, sizeof(r->transport), "%s", smv_transport_name(l->transport));
}

/* With the lock held. */
static int store(struct smv_lease_table *t, struct smv_error *err)
{
	struct smv_lease_record *records = calloc(t->nr_leases + 1, sizeof(*records));
	size_t nr = 0;
	int rc;

	if (!records)
		return fail_memory(err);
	for (const struct lease *l = t->leases; l; l = l->next)
		fill_record(l, &records[nr++]);
	rc = smv_arena_store(t->arena, records, nr, err);
	OPENSSL_cleanse(records, nr * sizeof(*records));
	free(records);
	return rc;
}

/* With the lock held. On failure the lease stays what it was. */
static int change_state(
	struct smv_lease_table *t, struct lease *l, enum smv_lease_state to, struct smv_error *err)
{
	enum smv_lease_state from = l->state;
	int rc;

	set_state(l, to);
	rc = store(t, err);
	if (rc < 0)
		l->state = from;
	return rc;
}

/* 0 or ETIMEDOUT; @deadline_ns 0: none. */
static int wait_changed(struct smv_lease_table *t, uint64_t deadline_ns)
{
	struct timespec ts = {
		(time_t)(deadline_ns / SMV_NS_PER_S), (long)(deadline_ns % SMV_NS_PER_S)};

	if (deadline_ns == 0)
		return pthread_cond_wait(&t->changed, &t->lock);
	return pthread_cond_timedwait(&t->changed, &t->lock, &ts);
}

/* --- what people may see ------------------------------------------------------------------ */

static int fill_info(const struct smv_lease_table *t, const struct lease *l,
	struct smv_lease_info *info, struct smv_error *err)
{
	uint64_t now = smv_now_ns();

	if (!info)
		return 0;
	*info = (struct smv_lease_info){.id = l->id,
		.state = l->state,
		.epoch = l->epoch,
		.size_bytes = l->size_bytes,
		.age_ms = (now - l->created_ns) / SMV_NS_PER_MS,
		.since_renewal_ms = (now - l->renewed_ns) / SMV_NS_PER_MS,
		.generation = smv_arena_generation(t->arena),
		.transport = l->transport,
		.nr_connections = l->nr_conns,
		.prepare_ms = l->prepare_ns / SMV_NS_PER_MS};
	memcpy(info->owner, l->owner, sizeof(info->owner));
	if (l->state == SMV_LEASE_PROVISIONAL && l->expires_ns > now)
		info->expires_in_ms = (l->expires_ns - now) / SMV_NS_PER_MS;
	info->segments = calloc(l->nr_segments, sizeof(*info->segments));
	if (!info->segments)
		return fail_memory(err);
	memcpy(info->segments, l->segments, l->nr_segments * sizeof(*info->segments));
	info->nr_segments = l->nr_segments;
	return 0;
}

void smv_lease_info_clear(struct smv_lease_info *info)
{
	free(info->segments);
	info->segments = NULL;
	info->nr_segments = 0;
}

int smv_lease_get(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err)
{
	struct lease *l;
	int rc;

	pthread_mutex_lock(&table->lock);
	l = find(table, id);
	rc = l ? fill_info(table, l, info, err) : fail_not_found(id, err);
	pthread_mutex_unlock(&table->lock);
	return rc;
}

int smv_lease_list(struct smv_lease_table *table, struct smv_lease_info **infos, size_t *nr)
{
	int rc = 0;

	pthread_mutex_lock(&table->lock);
	*nr = 0;
	*infos = calloc(table->nr_leases + 1, sizeof(**infos));
	for (struct lease *l = table->leases; l && *infos && rc == 0; l = l->next)
		rc = fill_info(table, l, &(*infos)[(*nr)++], NULL);
	pthread_mutex_unlock(&table->lock);
	if (*infos && rc == 0)
		return 0;
	for (size_t i = 0; i < *nr; i++)
		smv_lease_info_clear(&(*infos)[i]);
	free(*infos);
	return -ENOMEM;
}

static void add_stats(struct smv_domain_stats *sum, struct smv_domain *domain)
{
	struct smv_domain_stats one;

	smv_domain_stats(domain, &one);
	sum->counted = sum->counted && one.counted;
	sum->bytes_received += one.bytes_received;
	sum->bytes_sent += one.bytes_sent;
}

void smv_lease_table_totals(struct smv_lease_table *table, struct smv_lease_totals *totals)
{
	struct smv_domain_stats sum;

	*totals = (struct smv_lease_totals){.capacity_bytes = smv_arena_size(table->arena)};
	pthread_mutex_lock(&table->lock);
	sum = table->ended;
	for (struct lease *l = table->leases; l; l = l->next) {
		if (l->state == SMV_LEASE_RELEASING)
			totals->zeroing_bytes += l->size_bytes;
		if (l->domain)
			add_stats(&sum, l->domain);
	}
	totals->free_bytes = smv_extents_nr_free(table->extents) * SMV_EXTENT_SIZE;
	totals->nr_leases = table->nr_leases;
	pthread_mutex_unlock(&table->lock);
	totals->bytes_received = sum.bytes_received;
	totals->bytes_sent = sum.bytes_sent;
	totals->bytes_counted = sum.counted;
}

/* --- creation ----------------------------------------------------------------------------- */

static void free_lease(struct lease *l)
{
	assert(!l->conns && !l->domain);
	OPENSSL_cleanse(l->key, sizeof(l->key));
	free(l->runs);
	free(l->regions);
	free(l->segments);
	free(l);
}

/* The end of a lease whose memory is zero and out of reach. */
static void forget(struct smv_lease_table *t, struct lease *lease)
{
	struct lease **l = &t->leases;
	struct smv_error err;

	set_state(lease, SMV_LEASE_GONE);
	while (*l != lease)
		l = &(*l)->next;
	*l = lease->next;
	t->nr_leases--;
	smv_extents_free(t->extents, lease->runs, lease->nr_segments);
	pthread_cond_broadcast(&t->changed);
	/* If it cannot be recorded now: before the memory is lent again, all of the list is. Until
	 * then the next daemon would only zero it once more. */
	if (store(t, &err) < 0)
		smv_log_warning("%s", err.message);
}

static int check_request(const struct smv_lease_request *r, struct smv_error *err)
{
	size_t len = strlen(r->owner);

	if (r->size_bytes == 0 || r->size_bytes % SMV_EXTENT_SIZE)
		return smv_fail(err, SMV_INVALID, "bad-size", "Round up to extents.",
			"a lease of %" PRIu64 " bytes: it must be a positive multiple of %llu",
			r->size_bytes, SMV_EXTENT_SIZE);
	if (r->epoch == 0)
		return smv_fail(err, SMV_INVALID, "bad-epoch", NULL, "epochs start at 1, not 0");
	if (len > SMV_LEASE_OWNER_MAX)
		return smv_fail(err, SMV_INVALID, "bad-owner", NULL,
			"the owner has %zu bytes, more than %d", len, SMV_LEASE_OWNER_MAX);
	for (size_t i = 0; i < len; i++)
		if (r->owner[i] < ' ' || r->owner[i] > '~')
			return smv_fail(err, SMV_INVALID, "bad-owner", NULL,
				"byte %zu of the owner is no printable ASCII character", i);
	return 0;
}

static int fail_no_room(const struct smv_lease_table *t, uint64_t asked, struct smv_error *err)
{
	uint64_t zeroing = 0, free_bytes = smv_extents_nr_free(t->extents) * SMV_EXTENT_SIZE;
	char hint[200], asked_text[32], free_text[32], capacity_text[32];

	for (const struct lease *l = t->leases; l; l = l->next)
		zeroing += l->state == SMV_LEASE_RELEASING ? l->size_bytes : 0;
	snprintf(hint, sizeof(hint),
		zeroing ? "Another %" PRIu64 " bytes are being zeroed and will be free soon."
			: "Release leases, ask for less, or use more sub-hosts.",
		zeroing);
	return smv_fail(err, SMV_NO_ROOM, "no-room", hint,
		"asked for %" PRIu64 " bytes (%s), but only %" PRIu64 " (%s) are free of %" PRIu64
		" (%s)",
		asked, smv_format_size(asked, asked_text, sizeof(asked_text)), free_bytes,
		smv_format_size(free_bytes, free_text, sizeof(free_text)), smv_arena_size(t->arena),
		smv_format_size(smv_arena_size(t->arena), capacity_text, sizeof(capacity_text)));
}

static int allocate(struct smv_lease_table *t, struct lease *l, struct smv_error *err)
{
	int rc;

	if (t->nr_leases >= SMV_LEASES_MAX)
		return smv_fail(err, SMV_NO_ROOM, "too-many-leases", "Release leases.",
			"this server keeps %d leases at most", SMV_LEASES_MAX);
	rc = smv_extents_alloc(t->extents, l->size_bytes / SMV_EXTENT_SIZE,
		smv_registration_segment_extents(l->transport, l->size_bytes), &l->runs,
		&l->nr_segments);
	if (rc < 0)
		return rc == -ENOSPC ? fail_no_room(t, l->size_bytes, err) : fail_memory(err);
	l->regions = calloc(l->nr_segments, sizeof(struct smv_region *));
	l->segments = calloc(l->nr_segments, sizeof(*l->segments));
	if (l->regions && l->segments && l->nr_segments <= SMV_LEASE_SEGMENTS_MAX)
		return 0;
	smv_extents_free(t->extents, l->runs, l->nr_segments);
	if (!l->regions || !l->segments)
		return fail_memory(err);
	return smv_fail(err, SMV_NO_ROOM, "fragmented", "Ask for several smaller leases.",
		"free memory is so scattered that the lease would need %zu segments, more than %d",
		l->nr_segments, SMV_LEASE_SEGMENTS_MAX);
}

static int make_lease(
	const struct smv_lease_request *r, struct lease **lease, struct smv_error *err)
{
	struct lease *l = calloc(1, sizeof(*l));

	if (!l)
		return fail_memory(err);
	l->state = SMV_LEASE_PREPARING;
	l->epoch = r->epoch;
	l->size_bytes = r->size_bytes;
	l->transport = r->transport;
	l->ttl_ns = (r->ttl_ms ? r->ttl_ms : SMV_LEASE_TTL_DEFAULT_MS) * SMV_NS_PER_MS;
	l->created_ns = l->renewed_ns = smv_now_ns();
	memcpy(l->owner, r->owner, strlen(r->owner) + 1);
	/* Up to 256 bytes getrandom() delivers all or fails, see getrandom(2). */
	if (getrandom(l->key, sizeof(l->key), 0) != (ssize_t)sizeof(l->key) ||
		getrandom(&l->id, sizeof(l->id), 0) != (ssize_t)sizeof(l->id)) {
		free_lease(l);
		return smv_fail(
			err, SMV_INTERNAL, "no-random", NULL, "getrandom: %s", strerror(errno));
	}
	*lease = l;
	return 0;
}

/* With the lock held. The memory was reached by nobody and never told of. */
static void remove_first(struct smv_lease_table *t, struct lease *l)
{
	assert(t->leases == l);
	t->leases = l->next;
	t->nr_leases--;
	smv_extents_free(t->extents, l->runs, l->nr_segments);
}

/* Reserve the memory and make the lease visible, in state PREPARING. */
static int insert(struct smv_lease_table *t, struct lease *l, struct smv_error *err)
{
	int rc;

	pthread_mutex_lock(&t->lock);
	if (find(t, l->id))
		rc = smv_fail(err, SMV_INTERNAL, "id-taken", "Try again.",
			"the random id of the new lease is taken");
	else
		rc = allocate(t, l, err);
	if (rc == 0) {
		l->next = t->leases;
		t->leases = l;
		t->nr_leases++;
		rc = store(t, err);
		if (rc < 0)
			remove_first(t, l);
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

/* With the lock held: people may look at a lease that is being prepared. What is taken over only
 * to be zeroed has no regions. */
static void fill_segments(struct lease *l)
{
	for (size_t i = 0; i < l->nr_segments; i++) {
		struct smv_region_info region = {0};

		if (l->regions[i])
			smv_region_info(l->regions[i], &region);
		l->segments[i] = (struct smv_lease_segment){.rkey = region.rkey,
			.remote_addr = region.remote_addr,
			.size_bytes = l->runs[i].nr * SMV_EXTENT_SIZE,
			.arena_offset = l->runs[i].first * SMV_EXTENT_SIZE};
	}
}

static void deregister(struct lease *l)
{
	for (size_t i = 0; i < l->nr_segments; i++) {
		if (l->regions[i])
			smv_region_deregister(l->regions[i]);
		l->regions[i] = NULL;
	}
}

static void log_registered(const struct lease *l, const struct smv_registration *r)
{
	const double seconds = (double)r->took_ns / (double)SMV_NS_PER_S;
	const double mib = (double)l->size_bytes / (double)SMV_MIB;

	smv_log_info("lease %016" PRIx64 ": registered %" PRIu64 " bytes in %zu segments with %u "
		     "threads in %.1f ms (%.0f MiB/s)",
		l->id, l->size_bytes, l->nr_segments, r->nr_threads, seconds * 1e3, mib / seconds);
}

static int make_domain(struct smv_lease_table *t, struct lease *l)
{
	struct smv_domain *domain;
	int rc = smv_domain_create(l->transport, &domain);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&t->lock);
	l->domain = domain;
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int fail_register(const struct lease *l, int rc, struct smv_error *err)
{
	if (rc == -ECANCELED)
		return smv_fail(err, SMV_CANCELLED, "ending", "Ask again when it has restarted.",
			"the server is ending; the lease was not made");
	return smv_fail(err, smv_code_from_errno(rc), "register", NULL,
		"cannot register %" PRIu64 " bytes with transport '%s': %s", l->size_bytes,
		smv_transport_name(l->transport), strerror(-rc));
}

static int register_memory(struct smv_lease_table *t, struct lease *l, struct smv_error *err)
{
	struct smv_registration r = {.base = smv_arena_base(t->arena),
		.runs = l->runs,
		.nr_runs = l->nr_segments,
		.regions = l->regions,
		.stopping = &t->stopping};
	int rc = make_domain(t, l);

	r.domain = l->domain;
	if (rc == 0)
		rc = smv_registration_run(l->transport, &r);
	if (rc < 0)
		return fail_register(l, rc, err);
	pthread_mutex_lock(&t->lock);
	l->prepare_ns = r.took_ns;
	fill_segments(l);
	pthread_mutex_unlock(&t->lock);
	log_registered(l, &r);
	return 0;
}

static void abandon(struct smv_lease_table *t, struct lease *l)
{
	struct smv_domain *domain;

	deregister(l);
	pthread_mutex_lock(&t->lock);
	domain = smv_take(l->domain);
	forget(t, l);
	pthread_mutex_unlock(&t->lock);
	if (domain)
		smv_domain_destroy(domain);
	free_lease(l);
}

static void log_created(const struct lease *l)
{
	char size[32];

	smv_log_info("lease %016" PRIx64 ": %s in %zu segments for '%s', epoch %u", l->id,
		smv_format_size(l->size_bytes, size, sizeof(size)), l->nr_segments, l->owner,
		l->epoch);
}

/* With the lock held: its owner was heard of. */
static void renew(struct lease *l)
{
	l->renewed_ns = smv_now_ns();
	l->expires_ns = l->renewed_ns + l->ttl_ns;
}

int smv_lease_create(struct smv_lease_table *table, const struct smv_lease_request *request,
	struct smv_lease_info *info, uint8_t *key, struct smv_error *err)
{
	struct lease *l = NULL;
	int rc = check_request(request, err);

	if (rc == 0)
		rc = make_lease(request, &l, err);
	if (rc < 0)
		return rc;
	rc = insert(table, l, err);
	if (rc < 0) {
		free_lease(l);
		return rc;
	}
	rc = register_memory(table, l, err);
	if (rc < 0) {
		abandon(table, l);
		return rc;
	}
	memcpy(key, l->key, sizeof(l->key));
	log_created(l);
	pthread_mutex_lock(&table->lock);
	rc = change_state(table, l, SMV_LEASE_PROVISIONAL, err);
	if (rc == 0) {
		renew(l);
		rc = fill_info(table, l, info, err);
		pthread_cond_broadcast(&table->changed);
		l = NULL;
	}
	pthread_mutex_unlock(&table->lock);
	if (l)
		abandon(table, l);
	else
		(void)smv_fault_point("lease-created");
	return rc;
}

/* --- life --------------------------------------------------------------------------------- */

/* With the lock held. */
static int revive(struct smv_lease_table *t, struct lease *l, struct smv_error *err)
{
	int rc = 0;

	if (l->state == SMV_LEASE_ORPHANED) {
		rc = change_state(t, l, SMV_LEASE_HELD, err);
		if (rc == 0)
			tell(SMV_EVENT_LEASE_RENEWED_AGAIN, l, "is no orphan any more");
	}
	if (rc == 0)
		renew(l);
	/* The reaper slept for another time, or not at all for this lease. */
	pthread_cond_broadcast(&t->changed);
	return rc;
}

int smv_lease_renew(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err)
{
	struct lease *l;
	int rc;

	pthread_mutex_lock(&table->lock);
	rc = find_usable(table, id, &l, err);
	if (rc == 0)
		rc = revive(table, l, err);
	if (rc == 0)
		rc = fill_info(table, l, info, err);
	pthread_mutex_unlock(&table->lock);
	return rc;
}

int smv_lease_hold(struct smv_lease_table *table, uint64_t id, struct smv_lease_info *info,
	struct smv_error *err)
{
	struct lease *l;
	int rc;

	pthread_mutex_lock(&table->lock);
	rc = find_usable(table, id, &l, err);
	if (rc == 0 && l->state == SMV_LEASE_PROVISIONAL)
		rc = change_state(table, l, SMV_LEASE_HELD, err);
	if (rc == 0)
		rc = revive(table, l, err);
	if (rc == 0)
		rc = fill_info(table, l, info, err);
	pthread_mutex_unlock(&table->lock);
	if (rc == 0)
		(void)smv_fault_point("lease-held");
	return rc;
}

/* With the lock held: disconnected() runs in another thread and removes the connection under the
 * lock, so those in the list are safe to close. */
static void close_older(struct lease *l, uint64_t epoch)
{
	for (struct data_conn *c = l->conns; c; c = c->next) {
		if (c->epoch < epoch && !c->closing) {
			c->closing = true;
			smv_conn_close(c->conn);
		}
	}
}

static bool has_older(const struct lease *l, uint32_t epoch)
{
	for (const struct data_conn *c = l->conns; c; c = c->next)
		if (c->epoch < epoch)
			return true;
	return false;
}

static int raise_epoch(
	struct smv_lease_table *t, struct lease *l, uint32_t epoch, struct smv_error *err)
{
	uint32_t before = l->epoch;
	int rc;

	if (epoch < l->epoch)
		return smv_fail(err, SMV_REFUSED, "old-epoch",
			"Somebody else has taken over: stop using the lease.",
			"lease %016" PRIx64 " is in epoch %u already, not %u", l->id, l->epoch,
			epoch);
	if (epoch == l->epoch)
		return 0;
	l->epoch = epoch;
	rc = store(t, err);
	if (rc < 0) {
		l->epoch = before;
		return rc;
	}
	smv_log_info("lease %016" PRIx64 ": epoch %u -> %u", l->id, before, epoch);
	/* Whoever takes over does not know which nonces were used. Tickets of the old epoch are
	 * refused by their epoch, so none can be played again. */
	l->nonces = (struct smv_nonce_window){0};
	return 0;
}

static int wait_older_gone(struct smv_lease_table *t, uint64_t id, uint32_t epoch,
	struct lease **lease, struct smv_error *err)
{
	uint64_t deadline = smv_now_ns() + DISCONNECT_TIMEOUT_NS;

	/* Looked up again each time: it may be released meanwhile. */
	while ((*lease = find(t, id)) && has_older(*lease, epoch))
		if (wait_changed(t, deadline) == ETIMEDOUT)
			return smv_fail(err, SMV_TIMEOUT, "still-connected",
				"Fence again before using the lease.",
				"connections of lease %016" PRIx64 " have not ended yet", id);
	return *lease ? 0 : fail_not_found(id, err);
}

int smv_lease_fence(struct smv_lease_table *table, uint64_t id, uint32_t epoch,
	struct smv_lease_info *info, struct smv_error *err)
{
	struct lease *l;
	int rc;

	pthread_mutex_lock(&table->lock);
	rc = find_usable(table, id, &l, err);
	if (rc == 0)
		rc = raise_epoch(table, l, epoch, err);
	if (rc == 0)
		rc = revive(table, l, err);
	if (rc == 0 && !smv_fault_point("old-writers-stay")) {
		close_older(l, epoch);
		rc = wait_older_gone(table, id, epoch, &l, err);
	}
	if (rc == 0)
		rc = fill_info(table, l, info, err);
	pthread_mutex_unlock(&table->lock);
	if (rc == 0)
		(void)smv_fault_point("lease-fenced");
	return rc;
}

/* --- the end ------------------------------------------------------------------------------ */

/* Called and returns with the lock held; drops it meanwhile. */
static int end_lease(
	struct smv_lease_table *t, struct lease *l, const char *why, struct smv_error *err)
{
	/* Recorded first: from here on its memory may change. */
	int rc = change_state(t, l, SMV_LEASE_RELEASING, err);

	if (rc < 0)
		return rc;
	tell(SMV_EVENT_LEASE_ENDED, l, why);
	close_older(l, UINT64_MAX);
	pthread_mutex_unlock(&t->lock);
	deregister(l);
	pthread_mutex_lock(&t->lock);
	l->unreachable = true;
	pthread_cond_broadcast(&t->changed);
	return 0;
}

static int fail_held(const struct lease *l, struct smv_error *err)
{
	return smv_fail(err, SMV_REFUSED, "lease-held",
		"It ends when its owner releases it. If that is gone for good: smemvctl release ID "
		"--force; a VM that still needs the memory loses it.",
		"lease %016" PRIx64 " of '%s' is %s, last renewed %llu s ago", l->id, l->owner,
		smv_lease_state_name(l->state), (smv_now_ns() - l->renewed_ns) / SMV_NS_PER_S);
}

static int release(
	struct smv_lease_table *table, uint64_t id, bool even_held, struct smv_error *err)
{
	struct lease *l;
	int rc = 0;

	pthread_mutex_lock(&table->lock);
	l = find(table, id);
	if (!l || l->state != SMV_LEASE_RELEASING)
		rc = find_usable(table, id, &l, err);
	if (rc == 0 && !even_held && (l->state == SMV_LEASE_HELD || l->state == SMV_LEASE_ORPHANED))
		rc = fail_held(l, err);
	if (rc == 0 && l->state != SMV_LEASE_RELEASING)
		rc = end_lease(table, l, "is released", err);
	/* Somebody else ends it: the promise that its memory is out of reach holds for us too. */
	while (rc == 0 && (l = find(table, id)) && !l->unreachable)
		wait_changed(table, 0);
	pthread_mutex_unlock(&table->lock);
	if (rc == 0)
		(void)smv_fault_point("lease-released");
	return rc;
}

int smv_lease_release(struct smv_lease_table *table, uint64_t id, struct smv_error *err)
{
	return release(table, id, true, err);
}

int smv_lease_release_unheld(struct smv_lease_table *table, uint64_t id, struct smv_error *err)
{
	return release(table, id, false, err);
}

static bool zero(struct smv_lease_table *t, const struct lease *l)
{
	for (size_t i = 0; i < l->nr_segments; i++) {
		char *at = (char *)smv_arena_base(t->arena) + l->segments[i].arena_offset;
		uint64_t left = l->segments[i].size_bytes;

		while (left > 0) {
			size_t step = left < ZERO_STEP ? left : ZERO_STEP;

			if (atomic_load(&t->stopping))
				return false;
			memset(at, 0, step);
			at += step;
			left -= step;
		}
	}
	return true;
}

static struct lease *find_unreachable(const struct smv_lease_table *t)
{
	struct lease *l = t->leases;

	while (l && !l->unreachable)
		l = l->next;
	return l;
}

/* With the lock held, which is dropped meanwhile. False when the daemon ends. */
static bool recycle(struct smv_lease_table *t, struct lease *l)
{
	struct smv_domain *domain;
	bool zeroed;

	while (l->conns && !atomic_load(&t->stopping))
		wait_changed(t, 0);
	if (atomic_load(&t->stopping))
		return false;
	if (l->domain)
		add_stats(&t->ended, l->domain);
	domain = smv_take(l->domain);
	pthread_mutex_unlock(&t->lock);
	if (domain)
		smv_domain_destroy(domain);
	zeroed = smv_fault_point("memserver-zero") || zero(t, l);
	pthread_mutex_lock(&t->lock);
	if (!zeroed)
		return false;
	forget(t, l);
	free_lease(l);
	return true;
}

static void *zeroer_main(void *arg)
{
	struct smv_lease_table *t = arg;
	struct lease *l;

	pthread_mutex_lock(&t->lock);
	while (!atomic_load(&t->stopping)) {
		l = find_unreachable(t);
		if (!l)
			wait_changed(t, 0);
		else if (!recycle(t, l))
			break;
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* When something happens to a lease by itself; UINT64_MAX: never. */
static uint64_t due_ns(const struct smv_lease_table *t, const struct lease *l)
{
	if (l->state == SMV_LEASE_PROVISIONAL)
		return l->expires_ns;
	return l->state == SMV_LEASE_HELD ? l->renewed_ns + t->orphan_after_ns : UINT64_MAX;
}

static struct lease *next_due(const struct smv_lease_table *t)
{
	struct lease *next = NULL;

	for (struct lease *l = t->leases; l; l = l->next)
		if (due_ns(t, l) != UINT64_MAX && (!next || due_ns(t, l) < due_ns(t, next)))
			next = l;
	return next;
}

static void expire(struct smv_lease_table *t, struct lease *l)
{
	struct smv_error err;

	if (end_lease(t, l, "has expired", &err) == 0)
		return;
	smv_log_error("lease %016" PRIx64 " cannot expire: %s", l->id, err.message);
	l->expires_ns = smv_now_ns() + STORE_RETRY_NS;
}

/* The one alarm about it. If it cannot be recorded the next daemon takes it for held, and finds out
 * by itself. */
static void orphan(struct smv_lease_table *t, struct lease *l)
{
	char what[200];
	struct smv_error err;

	snprintf(what, sizeof(what),
		"is orphaned: nobody has renewed it for %llu s. It is kept until its owner comes "
		"back or releases it, or smemvctl release --force ends it",
		(smv_now_ns() - l->renewed_ns) / SMV_NS_PER_S);
	tell(SMV_EVENT_LEASE_ORPHANED, l, what);
	set_state(l, SMV_LEASE_ORPHANED);
	if (store(t, &err) < 0)
		smv_log_warning("%s", err.message);
}

static void *reaper_main(void *arg)
{
	struct smv_lease_table *t = arg;
	struct lease *l;

	pthread_mutex_lock(&t->lock);
	while (!atomic_load(&t->stopping)) {
		l = next_due(t);
		if (!l || due_ns(t, l) > smv_now_ns())
			wait_changed(t, l ? due_ns(t, l) : 0);
		else if (l->state == SMV_LEASE_HELD)
			orphan(t, l);
		else
			expire(t, l);
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* --- the listeners' side ------------------------------------------------------------------ */

/* NULL, or why the ticket is not good. The nonce comes last: a forged ticket uses up none. */
static const char *refusal(const struct smv_lease_table *t, struct lease *l,
	const struct smv_transport *transport, const void *private_data,
	const struct smv_ticket *ticket)
{
	if (!l)
		return "there is no such lease";
	if (smv_ticket_check(l->key, private_data) < 0)
		return "the ticket was not made with its key";
	if (!is_usable(l))
		return "it is not usable";
	if (transport != l->transport)
		return "it belongs to another transport";
	if (ticket->epoch != l->epoch)
		return "the ticket is of another epoch";
	if (ticket->nonce >> SMV_NONCE_COUNT_BITS != smv_arena_generation(t->arena) &&
		!smv_fault_point("lease-any-generation"))
		return "the ticket is not for the server since its last start";
	if (smv_nonce_use(&l->nonces, ticket->nonce) < 0)
		return "the ticket was used before";
	return NULL;
}

static unsigned int role_access(uint32_t role)
{
	return role == SMV_ROLE_WRITER ? SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE
				       : SMV_ACCESS_REMOTE_READ;
}

static void add_conn(struct lease *l, struct data_conn *c)
{
	c->lease = l;
	c->epoch = l->epoch;
	c->next = l->conns;
	l->conns = c;
	l->nr_conns++;
}

/*
 * A lease has one writer at a time: the newest. A writer that comes back after a time-out may have
 * left requests behind that its old connection's thread has not read yet; they must take effect
 * before the new connection's, or not at all. Returns NULL, or why the newcomer is refused.
 */
static const char *displace_writers(
	struct smv_lease_table *t, uint64_t id, uint32_t epoch, struct lease **lease)
{
	uint64_t deadline = smv_now_ns() + DISCONNECT_TIMEOUT_NS;

	for (;;) {
		bool any = false;

		*lease = find(t, id);
		if (!*lease || !is_usable(*lease) || (*lease)->epoch != epoch)
			return "it was released or fenced meanwhile";
		if (smv_fault_point("old-writers-stay"))
			return NULL;
		for (struct data_conn *c = (*lease)->conns; c; c = c->next) {
			any = any || c->writer;
			if (c->writer && !c->closing) {
				c->closing = true;
				smv_conn_close(c->conn);
			}
		}
		if (!any)
			return NULL;
		if (wait_changed(t, deadline) == ETIMEDOUT)
			return "its former writer has not ended yet";
	}
}

int smv_lease_admit(struct smv_lease_table *table, const struct smv_transport *transport,
	struct smv_conn *conn, const void *private_data, size_t private_len,
	struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	CLEANUP_FREE struct data_conn *c = calloc(1, sizeof(*c));
	struct smv_ticket ticket;
	const char *why;
	struct lease *l;

	if (!c)
		return -ENOMEM;
	if (smv_ticket_parse(private_data, private_len, &ticket) < 0) {
		smv_log_info("refused a data connection: it shows no ticket");
		return -EACCES;
	}
	c->conn = conn;
	pthread_mutex_lock(&table->lock);
	l = find(table, ticket.lease_id);
	why = refusal(table, l, transport, private_data, &ticket);
	c->writer = ticket.role == SMV_ROLE_WRITER;
	if (!why && c->writer)
		why = displace_writers(table, ticket.lease_id, ticket.epoch, &l);
	if (!why) {
		*domain = l->domain;
		*access = role_access(ticket.role);
		*conn_ctx = c;
		add_conn(l, smv_take(c));
	}
	pthread_mutex_unlock(&table->lock);
	if (!why)
		return 0;
	smv_log_info("refused a data connection to lease %016" PRIx64 ": %s", ticket.lease_id, why);
	return -EACCES;
}

void smv_lease_disconnected(struct smv_lease_table *table, void *conn_ctx)
{
	CLEANUP_FREE struct data_conn *conn = conn_ctx;
	struct data_conn **c;

	pthread_mutex_lock(&table->lock);
	c = &conn->lease->conns;
	while (*c != conn)
		c = &(*c)->next;
	*c = conn->next;
	conn->lease->nr_conns--;
	pthread_cond_broadcast(&table->changed);
	pthread_mutex_unlock(&table->lock);
}

/* --- the table ---------------------------------------------------------------------------- */

static void init_cond(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

static int start_threads(struct smv_lease_table *t)
{
	if (pthread_create(&t->reaper, NULL, reaper_main, t) != 0)
		return -EAGAIN;
	if (pthread_create(&t->zeroer, NULL, zeroer_main, t) == 0) {
		t->threads_run = true;
		return 0;
	}
	pthread_mutex_lock(&t->lock);
	atomic_store(&t->stopping, true);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	pthread_join(t->reaper, NULL);
	return -EAGAIN;
}

/* --- taking over -------------------------------------------------------------------------- */

static int fail_take_over(
	const struct smv_lease_record *r, const char *why, const char *hint, struct smv_error *err)
{
	return smv_fail(err, SMV_REFUSED, "take-over", hint,
		"cannot take over lease %016" PRIx64 " of '%s': %s", r->id, r->owner, why);
}

static int find_transport(const struct smv_lease_record *r, const struct smv_transport **transport,
	struct smv_error *err)
{
	char why[200] = "", text[300];

	*transport = smv_transport_find(r->transport);
	if (*transport && smv_transport_available(*transport, why, sizeof(why)))
		return 0;
	snprintf(text, sizeof(text), "transport '%s' does not work here%s%s", r->transport,
		why[0] ? ": " : "", why);
	return fail_take_over(r, text, "Mend it: the data of a VM depends on it.", err);
}

/* Neither time nor nonces go on: the owner has all of its time again, and tickets are counted anew
 * in this generation. */
static struct lease *lease_of(const struct smv_lease_record *r)
{
	struct lease *l = calloc(1, sizeof(*l));
	uint64_t now = smv_now_ns();

	if (!l)
		return NULL;
	l->id = r->id;
	l->state = r->state;
	l->epoch = r->epoch;
	l->created_ns = r->created_ns < now ? r->created_ns : now;
	l->ttl_ns = r->ttl_ms * SMV_NS_PER_MS;
	l->nr_segments = r->nr_runs;
	memcpy(l->owner, r->owner, sizeof(l->owner));
	memcpy(l->key, r->key, sizeof(l->key));
	l->runs = calloc(r->nr_runs, sizeof(*l->runs));
	l->regions = calloc(r->nr_runs, sizeof(struct smv_region *));
	l->segments = calloc(r->nr_runs, sizeof(*l->segments));
	if (!l->runs || !l->regions || !l->segments) {
		free_lease(l);
		return NULL;
	}
	for (size_t i = 0; i < r->nr_runs; i++) {
		l->runs[i] = r->runs[i];
		l->size_bytes += r->runs[i].nr * SMV_EXTENT_SIZE;
	}
	renew(l);
	return l;
}

/* No thread runs yet. */
static int take_over_lease(
	struct smv_lease_table *t, const struct smv_lease_record *r, struct smv_error *err)
{
	struct lease *l = lease_of(r);
	int rc;

	if (!l)
		return fail_memory(err);
	smv_extents_take(t->extents, l->runs, l->nr_segments);
	l->next = t->leases;
	t->leases = l;
	t->nr_leases++;
	if (!is_usable(l)) {
		l->state = SMV_LEASE_RELEASING;
		l->unreachable = true;
		fill_segments(l);
		return 0;
	}
	rc = find_transport(r, &l->transport, err);
	if (rc == 0)
		rc = register_memory(t, l, err);
	if (rc == 0)
		smv_log_info("lease %016" PRIx64 " of '%s': taken over, %s, epoch %u", l->id,
			l->owner, smv_lease_state_name(l->state), l->epoch);
	return rc;
}

static int take_over(struct smv_lease_table *t, struct smv_error *err)
{
	const struct smv_lease_file *former = smv_arena_leases(t->arena);
	int rc = 0;

	for (size_t i = 0; i < former->nr_records && rc == 0; i++)
		rc = take_over_lease(t, &former->records[i], err);
	/* To register them all may have taken longer than a lease lasts. */
	for (struct lease *l = t->leases; l; l = l->next)
		renew(l);
	return rc == 0 && former->nr_records ? store(t, err) : rc;
}

int smv_lease_table_create(struct smv_arena *arena, uint32_t orphan_after_ms,
	struct smv_lease_table **table, struct smv_error *err)
{
	struct smv_lease_table *t = calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return fail_memory(err);
	t->arena = arena;
	t->orphan_after_ns =
		(orphan_after_ms ? orphan_after_ms : SMV_LEASE_ORPHAN_DEFAULT_MS) * SMV_NS_PER_MS;
	t->ended.counted = true;
	pthread_mutex_init(&t->lock, NULL);
	init_cond(&t->changed);
	t->extents = smv_extents_create(smv_arena_size(arena) / SMV_EXTENT_SIZE);
	rc = t->extents ? take_over(t, err) : fail_memory(err);
	if (rc == 0 && start_threads(t) < 0)
		rc = fail_memory(err);
	if (rc < 0) {
		smv_lease_table_destroy(t);
		return rc;
	}
	*table = t;
	return 0;
}

void smv_lease_table_stop(struct smv_lease_table *table)
{
	if (!table->threads_run)
		return;
	pthread_mutex_lock(&table->lock);
	atomic_store(&table->stopping, true);
	pthread_cond_broadcast(&table->changed);
	pthread_mutex_unlock(&table->lock);
	pthread_join(table->reaper, NULL);
	pthread_join(table->zeroer, NULL);
	table->threads_run = false;
}

void smv_lease_table_destroy(struct smv_lease_table *table)
{
	struct lease *l;

	if (!table)
		return;
	smv_lease_table_stop(table);
	while ((l = table->leases)) {
		table->leases = l->next;
		if (is_usable(l))
			smv_log_info("lease %016" PRIx64 " of '%s' is still %s", l->id, l->owner,
				smv_lease_state_name(l->state));
		deregister(l);
		if (l->domain)
			smv_domain_destroy(smv_take(l->domain));
		free_lease(l);
	}
	smv_extents_destroy(table->extents);
	pthread_cond_destroy(&table->changed);
	pthread_mutex_destroy(&table->lock);
	free(table);
}
