/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A domain has a protection domain (PD) on each device that its connections use, and a region a
 * memory registration (MR) in each of them. Both are made when a connection first needs them;
 * regions with remote access earlier, on the exported devices, because their rkeys are told to
 * peers that are not connected yet.
 *
 * The checks of peers' accesses are the device's: an MR belongs to a PD, has access flags and
 * bounds. One MR for each region, no memory windows: not every device enforces their bounds.
 *
 * Making an MR pins its memory and takes long, removing it unpins. Both happen without the domain's
 * lock, so that several threads can do it for one domain. Meanwhile the region is *busy*: whoever
 * else wants to change its MRs waits.
 */
#include "transport/verbs.h"

#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REMOTE_ACCESS (SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE)

struct verbs_region {
	struct smv_region base;
	char *addr;
	size_t len;
	unsigned int access;
	bool busy;                          /* under the domain's lock, as the rest */
	struct verbs_region *next, **pprev; /* in the domain's list from before it has any MR */
	struct ibv_mr *mr[]; /* by device; each is set once, by whom it is busy for */
};

struct verbs_domain {
	struct smv_domain base;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a region is no longer busy; a peer has left */
	struct verbs_region *regions;
	struct smv_verbs_peer *peers;
	struct ibv_pd *pd[]; /* by device */
};

/* Read-held from the call of connect() until the peer is in the domain, so that a destroyer who
 * passes it finds every peer that was ever let in. */
static pthread_rwlock_t admission = PTHREAD_RWLOCK_INITIALIZER;

static struct verbs_domain *to_verbs(struct smv_domain *domain)
{
	return smv_container_of(domain, struct verbs_domain, base);
}

static const struct verbs_region *to_region(const struct smv_region *region)
{
	return smv_container_of(region, const struct verbs_region, base);
}

int smv_verbs_domain_create(const struct smv_transport *t, struct smv_domain **domain)
{
	struct verbs_domain *d =
		calloc(1, sizeof(*d) + smv_verbs_nr_devices() * sizeof(struct ibv_pd *));

	if (!d)
		return -ENOMEM;
	d->base.transport = t;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->changed, NULL);
	*domain = &d->base;
	return 0;
}

/* No CPU sees the accesses. */
void smv_verbs_domain_stats(struct smv_domain *domain, struct smv_domain_stats *stats)
{
	(void)domain;
	*stats = (struct smv_domain_stats){.counted = false};
}

/* Of all devices by which peers may come: a region with remote access is registered on each. */
uint64_t smv_verbs_region_max(void)
{
	uint64_t max = UINT64_MAX;

	for (int i = 0; i < SMV_VERBS_EXPORTS; i++) {
		const struct smv_verbs_device *dev = smv_verbs_exported(i);

		if (dev && dev->attr.max_mr_size < max)
			max = dev->attr.max_mr_size;
	}
	return max;
}

/* --- registering ---------------------------------------------------------------------------- */

static unsigned int mr_flags(unsigned int access)
{
	unsigned int flags = IBV_ACCESS_LOCAL_WRITE;

	if (access & SMV_ACCESS_REMOTE_READ)
		flags |= IBV_ACCESS_REMOTE_READ;
	if (access & SMV_ACCESS_REMOTE_WRITE)
		flags |= IBV_ACCESS_REMOTE_WRITE;
	return flags;
}

static void warn_of_failure(
	const struct smv_verbs_device *dev, const struct verbs_region *r, int errnum)
{
	char hint[160] = "";

	if (errnum == ENOMEM)
		snprintf(hint, sizeof(hint),
			" (raise RLIMIT_MEMLOCK: ulimit -l unlimited, or LimitMEMLOCK=infinity in "
			"the unit; the device takes %d registrations in all)",
			dev->attr.max_mr);
	smv_log_warning("verbs: cannot register %zu bytes on %s: %s%s", r->len,
		dev->ctx->device->name, strerror(errnum), hint);
}

static int make_mr(struct ibv_pd *pd, const struct smv_verbs_device *dev,
	const struct verbs_region *r, struct ibv_mr **mr)
{
	int errnum;

	if (r->len > dev->attr.max_mr_size) {
		smv_log_warning("verbs: %s registers at most %llu bytes at a time, not %zu",
			dev->ctx->device->name, (unsigned long long)dev->attr.max_mr_size, r->len);
		return -EFBIG;
	}
	*mr = ibv_reg_mr(pd, r->addr, r->len, mr_flags(r->access));
	if (*mr)
		return 0;
	errnum = errno ? errno : EIO;
	warn_of_failure(dev, r, errnum);
	return -errnum;
}

/* With the lock held, which is dropped meanwhile; the region is the caller's, by `busy`. */
static int register_on(
	struct verbs_domain *d, struct verbs_region *r, const struct smv_verbs_device *dev)
{
	struct ibv_pd *pd = d->pd[dev->index];
	struct ibv_mr *mr = NULL;
	int ret;

	pthread_mutex_unlock(&d->lock);
	ret = make_mr(pd, dev, r, &mr);
	pthread_mutex_lock(&d->lock);
	r->mr[dev->index] = mr;
	return ret;
}

/* The region is in no list. */
static int deregister(struct verbs_region *r)
{
	int ret = 0;

	for (unsigned int i = 0; i < smv_verbs_nr_devices(); i++) {
		int one = r->mr[i] ? ibv_dereg_mr(r->mr[i]) : 0;

		if (one == 0)
			r->mr[i] = NULL;
		else
			ret = -one;
	}
	return ret;
}

static int open_pd(struct verbs_domain *d, const struct smv_verbs_device *dev)
{
	if (!d->pd[dev->index])
		d->pd[dev->index] = ibv_alloc_pd(dev->ctx);
	return d->pd[dev->index] ? 0 : -(errno ? errno : ENOMEM);
}

static void set_idle(struct verbs_domain *d, struct verbs_region *r)
{
	r->busy = false;
	pthread_cond_broadcast(&d->changed);
}

static struct verbs_region *find_missing(const struct verbs_domain *d, unsigned int index)
{
	struct verbs_region *r = d->regions;

	while (r && r->mr[index])
		r = r->next;
	return r;
}

/* With the lock held. The list may change whenever the lock is dropped: each turn starts anew. */
static int register_all_on(struct verbs_domain *d, const struct smv_verbs_device *dev)
{
	struct verbs_region *r;
	int ret = 0;

	while (ret == 0 && (r = find_missing(d, dev->index))) {
		if (r->busy) {
			pthread_cond_wait(&d->changed, &d->lock);
			continue;
		}
		r->busy = true;
		ret = register_on(d, r, dev);
		set_idle(d, r);
	}
	return ret;
}

struct ibv_pd *smv_verbs_domain_pd(struct smv_domain *domain, struct smv_verbs_device *dev)
{
	struct verbs_domain *d = to_verbs(domain);
	struct ibv_pd *pd;
	int ret;

	pthread_mutex_lock(&d->lock);
	ret = open_pd(d, dev);
	if (ret == 0)
		ret = register_all_on(d, dev);
	pd = d->pd[dev->index];
	pthread_mutex_unlock(&d->lock);
	errno = -ret;
	return ret == 0 ? pd : NULL;
}

/* With the lock held. Where the domain's connections are, and where peers may come from. NULL when
 * the region is registered there, or when *ret says why it cannot be. */
static const struct smv_verbs_device *next_device(
	struct verbs_domain *d, const struct verbs_region *r, int *ret)
{
	for (int i = 0; i < SMV_VERBS_EXPORTS && (r->access & REMOTE_ACCESS); i++) {
		const struct smv_verbs_device *dev = smv_verbs_exported(i);

		if (!dev || r->mr[dev->index])
			continue;
		*ret = open_pd(d, dev);
		return *ret == 0 ? dev : NULL;
	}
	for (unsigned int i = 0; i < smv_verbs_nr_devices(); i++)
		if (d->pd[i] && !r->mr[i])
			return smv_verbs_find_device(d->pd[i]->context);
	return NULL;
}

/* With the lock held. A connection on a device that is new to the domain may come at any time: it
 * finds the region busy and waits, and here its device is found in the next turn. */
static int register_where_needed(struct verbs_domain *d, struct verbs_region *r)
{
	const struct smv_verbs_device *dev;
	int ret = 0;

	while (ret == 0 && (dev = next_device(d, r, &ret)))
		ret = register_on(d, r, dev);
	return ret;
}

/* With the lock held. */
static void link_region(struct verbs_domain *d, struct verbs_region *r)
{
	r->next = d->regions;
	r->pprev = &d->regions;
	if (r->next)
		r->next->pprev = &r->next;
	d->regions = r;
}

/* With the lock held. */
static void unlink_region(struct verbs_region *r)
{
	*r->pprev = r->next;
	if (r->next)
		r->next->pprev = r->pprev;
}

int smv_verbs_region_register(struct smv_domain *domain, void *addr, size_t len,
	unsigned int access, struct smv_region **region)
{
	struct verbs_domain *d = to_verbs(domain);
	struct verbs_region *r;
	int ret;

	if (!addr || !len || (uintptr_t)addr > UINTPTR_MAX - len)
		return -EINVAL;
	r = calloc(1, sizeof(*r) + smv_verbs_nr_devices() * sizeof(struct ibv_mr *));
	if (!r)
		return -ENOMEM;
	r->base.domain = domain;
	r->addr = addr;
	r->len = len;
	r->access = access;
	r->busy = true;
	pthread_mutex_lock(&d->lock);
	link_region(d, r);
	ret = register_where_needed(d, r);
	if (ret < 0)
		unlink_region(r);
	set_idle(d, r);
	pthread_mutex_unlock(&d->lock);
	if (ret < 0) {
		deregister(r);
		free(r);
		return ret;
	}
	*region = &r->base;
	return 0;
}

/* With the lock held. */
static void end_peers(struct verbs_domain *d)
{
	for (struct smv_verbs_peer *p = d->peers; p; p = p->next)
		p->abort(p);
	while (d->peers)
		pthread_cond_wait(&d->changed, &d->lock);
}

/* A device takes the rights of an MR away at once or says that the MR is in use. */
void smv_verbs_region_deregister(struct smv_region *region)
{
	struct verbs_region *r = smv_container_of(region, struct verbs_region, base);
	struct verbs_domain *d = to_verbs(region->domain);
	int ret;

	pthread_mutex_lock(&d->lock);
	while (r->busy)
		pthread_cond_wait(&d->changed, &d->lock);
	unlink_region(r);
	pthread_mutex_unlock(&d->lock);
	ret = deregister(r);
	if (ret < 0) {
		pthread_mutex_lock(&d->lock);
		end_peers(d);
		pthread_mutex_unlock(&d->lock);
		ret = deregister(r);
	}
	if (ret < 0)
		smv_log_error("verbs: cannot deregister memory: %s", strerror(-ret));
	free(r);
}

void smv_verbs_region_info(const struct smv_region *region, struct smv_region_info *info)
{
	const struct verbs_region *r = to_region(region);
	struct verbs_domain *d = to_verbs(region->domain);

	*info = (struct smv_region_info){.remote_addr = (uintptr_t)r->addr};
	pthread_mutex_lock(&d->lock);
	for (int i = 0; i < SMV_VERBS_EXPORTS && (r->access & REMOTE_ACCESS); i++) {
		const struct smv_verbs_device *dev = smv_verbs_exported(i);

		if (dev && r->mr[dev->index])
			info->rkey |= (uint64_t)r->mr[dev->index]->rkey << (32 * i);
	}
	pthread_mutex_unlock(&d->lock);
}

void smv_verbs_domain_destroy(struct smv_domain *domain)
{
	struct verbs_domain *d = to_verbs(domain);

	pthread_rwlock_wrlock(&admission);
	pthread_rwlock_unlock(&admission);
	pthread_mutex_lock(&d->lock);
	end_peers(d);
	pthread_mutex_unlock(&d->lock);
	while (d->regions)
		smv_verbs_region_deregister(&d->regions->base);
	for (unsigned int i = 0; i < smv_verbs_nr_devices(); i++) {
		int ret = d->pd[i] ? ibv_dealloc_pd(d->pd[i]) : 0;

		if (ret)
			smv_log_error("verbs: cannot free a protection domain: %s", strerror(ret));
	}
	pthread_cond_destroy(&d->changed);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

/* --- peers ---------------------------------------------------------------------------------- */

int smv_verbs_admit(struct smv_verbs_peer *peer, const struct smv_listener_handler *handler,
	struct smv_conn *conn, const void *private_data, size_t private_len, void **conn_ctx)
{
	struct smv_domain *domain = NULL;
	struct verbs_domain *d;
	int ret;

	pthread_rwlock_rdlock(&admission);
	ret = handler->connect(
		handler->ctx, conn, private_data, private_len, &domain, &peer->access, conn_ctx);
	if (ret == 0) {
		d = to_verbs(domain);
		peer->domain = domain;
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

void smv_verbs_peer_detach(struct smv_verbs_peer *peer)
{
	struct verbs_domain *d = to_verbs(peer->domain);

	pthread_mutex_lock(&d->lock);
	*peer->pprev = peer->next;
	if (peer->next)
		peer->next->pprev = peer->pprev;
	pthread_cond_broadcast(&d->changed);
	pthread_mutex_unlock(&d->lock);
	peer->domain = NULL;
}

/* --- local memory --------------------------------------------------------------------------- */

static bool is_local(const struct smv_domain *domain, const struct smv_sge *sge)
{
	const struct verbs_region *r;
	uintptr_t start;

	if (!sge->region || sge->region->domain != domain)
		return false;
	r = to_region(sge->region);
	start = (uintptr_t)sge->addr - (uintptr_t)r->addr; /* wraps when below: then too large */
	return sge->len <= r->len && start <= r->len - sge->len;
}

int smv_verbs_request_bytes(const struct smv_domain *domain, const struct smv_request *request)
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

uint32_t smv_verbs_lkey(const struct smv_region *region, const struct smv_verbs_device *dev)
{
	return to_region(region)->mr[dev->index]->lkey;
}
