/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/domain.h"

#include "common/clock.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/random.h>

#define NR_BUCKETS 256

/* How long a peer may take to finish its request in a region that goes, before it is cut off. */
#define DEREGISTER_GRACE_NS (100 * SMV_NS_PER_MS)

struct smv_soft_region {
	struct smv_region base;
	char *addr;
	size_t len;
	unsigned int access;
	unsigned int users; /* holds, under the domain's lock */
	uint64_t rkey;
	struct smv_soft_region *next;
};

struct smv_soft_domain {
	struct smv_domain base;
	pthread_mutex_t lock; /* of all that follows but the counters */
	pthread_cond_t changed;
	struct smv_soft_region *buckets[NR_BUCKETS];
	struct smv_peer *peers;
	_Atomic uint64_t bytes_received, bytes_sent;
};

/* Read-held from the call of connect() until the peer is in the domain, so that a destroyer who
 * passes it finds every peer that was ever let in. */
static pthread_rwlock_t admission = PTHREAD_RWLOCK_INITIALIZER;

static struct smv_soft_domain *to_soft(struct smv_domain *domain)
{
	return smv_container_of(domain, struct smv_soft_domain, base);
}

int smv_soft_domain_create(const struct smv_transport *t, struct smv_domain **domain)
{
	struct smv_soft_domain *d = calloc(1, sizeof(*d));
	pthread_condattr_t attr;

	if (!d)
		return -ENOMEM;
	d->base.transport = t;
	pthread_mutex_init(&d->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->changed, &attr);
	pthread_condattr_destroy(&attr);
	*domain = &d->base;
	return 0;
}

static void free_regions(struct smv_soft_domain *d)
{
	for (size_t i = 0; i < NR_BUCKETS; i++) {
		struct smv_soft_region *r = d->buckets[i], *next;

		for (; r; r = next) {
			next = r->next;
			free(r);
		}
	}
}

void smv_soft_domain_destroy(struct smv_domain *domain)
{
	struct smv_soft_domain *d = to_soft(domain);

	pthread_rwlock_wrlock(&admission);
	pthread_rwlock_unlock(&admission);
	pthread_mutex_lock(&d->lock);
	for (struct smv_peer *p = d->peers; p; p = p->next)
		p->abort(p);
	while (d->peers)
		pthread_cond_wait(&d->changed, &d->lock);
	pthread_mutex_unlock(&d->lock);
	free_regions(d);
	pthread_cond_destroy(&d->changed);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

void smv_soft_domain_stats(struct smv_domain *domain, struct smv_domain_stats *stats)
{
	struct smv_soft_domain *d = to_soft(domain);

	stats->counted = true;
	stats->bytes_received = atomic_load_explicit(&d->bytes_received, memory_order_relaxed);
	stats->bytes_sent = atomic_load_explicit(&d->bytes_sent, memory_order_relaxed);
}

static struct smv_soft_region **find_region(struct smv_soft_domain *d, uint64_t rkey)
{
	struct smv_soft_region **r = &d->buckets[rkey % NR_BUCKETS];

	while (*r && (*r)->rkey != rkey)
		r = &(*r)->next;
	return r;
}

/* 64 random bits: nobody guesses one, and none comes twice. */
static int draw_rkey(uint64_t *rkey)
{
	if (getrandom(rkey, sizeof(*rkey), 0) != (ssize_t)sizeof(*rkey))
		return -EIO;
	return 0;
}

int smv_soft_region_register(struct smv_domain *domain, void *addr, size_t len, unsigned int access,
	struct smv_region **region)
{
	struct smv_soft_domain *d = to_soft(domain);
	struct smv_soft_region *r, **place;

	if (!addr || !len || (uintptr_t)addr > UINTPTR_MAX - len)
		return -EINVAL;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	*r = (struct smv_soft_region){
		.base.domain = domain, .addr = addr, .len = len, .access = access};
	pthread_mutex_lock(&d->lock);
	do {
		if (draw_rkey(&r->rkey) < 0) {
			pthread_mutex_unlock(&d->lock);
			free(r);
			return -EIO;
		}
		place = find_region(d, r->rkey);
	} while (*place || !r->rkey);
	*place = r;
	pthread_mutex_unlock(&d->lock);
	*region = &r->base;
	return 0;
}

static bool is_held(const struct smv_peer *peer, const struct smv_soft_region *region)
{
	for (unsigned int i = 0; i < peer->nr_held; i++)
		if (peer->held[i] == region)
			return true;
	return false;
}

/* Wait for the holds of a region that cannot be found any more. */
static void wait_for_users(struct smv_soft_domain *d, struct smv_soft_region *r)
{
	while (r->users) {
		uint64_t until = smv_now_ns() + DEREGISTER_GRACE_NS;
		struct timespec ts = {(time_t)(until / SMV_NS_PER_S), (long)(until % SMV_NS_PER_S)};

		if (pthread_cond_timedwait(&d->changed, &d->lock, &ts) != ETIMEDOUT)
			continue;
		for (struct smv_peer *p = d->peers; p; p = p->next)
			if (is_held(p, r))
				p->abort(p);
	}
}

void smv_soft_region_deregister(struct smv_region *region)
{
	struct smv_soft_region *r = smv_container_of(region, struct smv_soft_region, base);
	struct smv_soft_domain *d = to_soft(region->domain);
	struct smv_soft_region **place;

	pthread_mutex_lock(&d->lock);
	place = find_region(d, r->rkey);
	assert(*place == r);
	*place = r->next;
	wait_for_users(d, r);
	pthread_mutex_unlock(&d->lock);
	free(r);
}

void smv_soft_region_info(const struct smv_region *region, struct smv_region_info *info)
{
	const struct smv_soft_region *r =
		smv_container_of(region, const struct smv_soft_region, base);

	info->rkey = r->rkey;
	info->remote_addr = 0;
}

int smv_peer_admit(struct smv_peer *peer, const struct smv_transport *transport,
	const struct smv_listener_handler *handler, struct smv_conn *conn, const void *private_data,
	size_t private_len, void **conn_ctx)
{
	struct smv_domain *domain = NULL;
	struct smv_soft_domain *d;
	int ret;

	pthread_rwlock_rdlock(&admission);
	ret = handler->connect(
		handler->ctx, conn, private_data, private_len, &domain, &peer->access, conn_ctx);
	if (ret == 0) {
		assert(domain && domain->transport == transport);
		d = peer->domain = to_soft(domain);
		pthread_mutex_lock(&d->lock);
		peer->next = d->peers;
		peer->pprev = &d->peers;
		if (d->peers)
			d->peers->pprev = &peer->next;
		d->peers = peer;
		pthread_mutex_unlock(&d->lock);
	}
	pthread_rwlock_unlock(&admission);
	return ret;
}

static bool may_access(const struct smv_peer *peer, const struct smv_soft_region *r, enum smv_op op,
	uint64_t remote_addr, uint32_t len)
{
	unsigned int needed = op == SMV_OP_READ ? SMV_ACCESS_REMOTE_READ : SMV_ACCESS_REMOTE_WRITE;

	return r && (peer->access & r->access & needed) && len <= r->len &&
	       remote_addr <= r->len - len;
}

int smv_peer_hold(struct smv_peer *peer, enum smv_op op, uint64_t rkey, uint64_t remote_addr,
	uint32_t len, void **mem)
{
	struct smv_soft_domain *d = peer->domain;
	struct smv_soft_region *r;
	int ret = -EACCES;

	assert(peer->nr_held < SMV_PEER_HOLDS);
	pthread_mutex_lock(&d->lock);
	r = *find_region(d, rkey);
	if (may_access(peer, r, op, remote_addr, len)) {
		r->users++;
		peer->held[peer->nr_held++] = r;
		*mem = r->addr + remote_addr;
		ret = 0;
	}
	pthread_mutex_unlock(&d->lock);
	return ret;
}

static void release_locked(struct smv_peer *peer)
{
	bool last = false;

	while (peer->nr_held)
		last |= --peer->held[--peer->nr_held]->users == 0;
	if (last)
		pthread_cond_broadcast(&peer->domain->changed);
}

void smv_peer_release(struct smv_peer *peer)
{
	pthread_mutex_lock(&peer->domain->lock);
	release_locked(peer);
	pthread_mutex_unlock(&peer->domain->lock);
}

void smv_peer_count(struct smv_peer *peer, uint64_t received, uint64_t sent)
{
	struct smv_soft_domain *d = peer->domain;

	if (received)
		atomic_fetch_add_explicit(&d->bytes_received, received, memory_order_relaxed);
	if (sent)
		atomic_fetch_add_explicit(&d->bytes_sent, sent, memory_order_relaxed);
}

void smv_peer_detach(struct smv_peer *peer)
{
	struct smv_soft_domain *d = peer->domain;

	pthread_mutex_lock(&d->lock);
	release_locked(peer);
	*peer->pprev = peer->next;
	if (peer->next)
		peer->next->pprev = peer->pprev;
	pthread_cond_broadcast(&d->changed);
	pthread_mutex_unlock(&d->lock);
	peer->domain = NULL;
}

static bool is_local(const struct smv_domain *domain, const struct smv_sge *sge)
{
	const struct smv_soft_region *r;
	uintptr_t start;

	if (!sge->region || sge->region->domain != domain)
		return false;
	r = smv_container_of(sge->region, const struct smv_soft_region, base);
	start = (uintptr_t)sge->addr - (uintptr_t)r->addr; /* wraps when below: then too large */
	return sge->len <= r->len && start <= r->len - sge->len;
}

int smv_request_bytes(const struct smv_domain *domain, const struct smv_request *request)
{
	uint64_t total = 0;

	if (request->op != SMV_OP_READ && request->op != SMV_OP_WRITE)
		return -EINVAL;
	if (request->nr_sge == 0 || request->nr_sge > SMV_SGE_MAX)
		return -EINVAL;
	for (unsigned int i = 0; i < request->nr_sge; i++) {
		if (!is_local(domain, &request->sge[i]))
			return -EINVAL;
		total += request->sge[i].len;
	}
	return total && total <= SMV_REQUEST_MAX ? (int)total : -EINVAL;
}
