/* SPDX-License-Identifier: Apache-2.0 */
#include "client/health.h"

#include "common/events.h"

#include <stdio.h>
#include <string.h>

void smv_health_init(struct smv_health *h, const char *vm, const struct smv_backing *backing)
{
	memset(h, 0, sizeof(*h));
	h->vm = vm;
	h->backing = backing;
	pthread_mutex_init(&h->lock, NULL);
}

void smv_health_destroy(struct smv_health *h)
{
	pthread_mutex_destroy(&h->lock);
}

/* --- with the lock held ------------------------------------------------------------------- */

static enum smv_host_state worse(const struct smv_health *h, unsigned int sub_host)
{
	enum smv_host_state a = h->hosts[0][sub_host], b = h->hosts[1][sub_host];

	return a > b ? a : b;
}

/* What is likely to be the cause; "" if nothing is known. */
static void describe_cause(const struct smv_health *h, char *text, size_t len)
{
	text[0] = '\0';
	for (unsigned int i = 0; i < h->backing->nr_sub_hosts; i++) {
		if (worse(h, i) == SMV_HOST_UP)
			continue;
		snprintf(text, len, "; sub-host %s %s", h->backing->sub_hosts[i].address,
			worse(h, i) == SMV_HOST_LOST ? "has lost its data" : "is not reached");
		return;
	}
	if (h->eviction_blocked)
		snprintf(text, len, "; pages cannot be evicted");
}

static void tell_stall(struct smv_health *h)
{
	char cause[SMV_ADDR_MAX + 50];

	describe_cause(h, cause, sizeof(cause));
	h->stall_told = true;
	smv_event(SMV_EVENT_VM_STALLED, h->vm, NULL,
		"VM '%s' is stalled: a fault waits for longer than %llu ms%s", h->vm,
		SMV_STALL_TOLD_NS / SMV_NS_PER_MS, cause);
}

static void end_stall(struct smv_health *h, uint64_t now_ns)
{
	uint64_t ns = now_ns - h->stalled_since_ns;

	smv_histogram_record(&h->stalls_ns, ns);
	h->stalled_since_ns = 0;
	h->stall_end_ns = now_ns;
	if (h->stall_told)
		smv_event(SMV_EVENT_VM_SERVED_AGAIN, h->vm, NULL,
			"VM '%s' is served again, after %lu ms", h->vm,
			(unsigned long)(ns / SMV_NS_PER_MS));
	h->stall_told = false;
}

/* ------------------------------------------------------------------------------------------ */

void smv_health_waiting(struct smv_health *h, uint64_t since_ns, uint64_t now_ns)
{
	bool stalled = since_ns && now_ns > since_ns + SMV_STALL_NS;

	pthread_mutex_lock(&h->lock);
	if (stalled && !h->stalled_since_ns)
		/* It may have begun to wait while another one still did. */
		h->stalled_since_ns = since_ns > h->stall_end_ns ? since_ns : h->stall_end_ns;
	else if (!stalled && h->stalled_since_ns)
		end_stall(h, now_ns);
	if (h->stalled_since_ns && !h->stall_told &&
		now_ns > h->stalled_since_ns + SMV_STALL_TOLD_NS)
		tell_stall(h);
	pthread_mutex_unlock(&h->lock);
}

void smv_health_unserved(struct smv_health *h, uint64_t since_ns, uint64_t now_ns)
{
	pthread_mutex_lock(&h->lock);
	if (now_ns > since_ns + SMV_STALL_NS) {
		smv_histogram_record(&h->stalls_ns, now_ns - since_ns);
		h->stall_end_ns = now_ns;
	}
	pthread_mutex_unlock(&h->lock);
}

void smv_health_sub_host(struct smv_health *h, enum smv_role role, unsigned int sub_host,
	enum smv_host_state state, const char *why)
{
	const char *address = h->backing->sub_hosts[sub_host].address;
	enum smv_host_state before;

	pthread_mutex_lock(&h->lock);
	before = worse(h, sub_host);
	h->hosts[role == SMV_ROLE_WRITER][sub_host] = state;
	state = worse(h, sub_host);
	if (state != before && state == SMV_HOST_UP)
		smv_event(SMV_EVENT_SUB_HOST_UP, h->vm, address,
			"VM '%s': sub-host %s is there again", h->vm, address);
	else if (state != before)
		smv_event(state == SMV_HOST_LOST ? SMV_EVENT_SUB_HOST_LOST_DATA
						 : SMV_EVENT_SUB_HOST_DOWN,
			h->vm, address, "VM '%s': %s", h->vm,
			why ? why : "one of the pager's two connections is not made again yet");
	pthread_mutex_unlock(&h->lock);
}

void smv_health_eviction(struct smv_health *h, const char *why)
{
	pthread_mutex_lock(&h->lock);
	if (why && !h->eviction_blocked)
		smv_event(SMV_EVENT_EVICTION_BLOCKED, h->vm, NULL,
			"VM '%s': pages cannot be evicted: %s", h->vm, why);
	else if (!why && h->eviction_blocked)
		smv_event(SMV_EVENT_EVICTION_GOES_ON, h->vm, NULL,
			"VM '%s': pages are evicted again", h->vm);
	h->eviction_blocked = why;
	pthread_mutex_unlock(&h->lock);
}

void smv_health_stalls(struct smv_health *h, struct smv_stalls *s)
{
	uint64_t now;

	pthread_mutex_lock(&h->lock);
	now = smv_now_ns();
	*s = (struct smv_stalls){.ns = h->stalls_ns.sum,
		.nr = h->stalls_ns.count,
		.p50_ns = smv_histogram_quantile(&h->stalls_ns, 0.5),
		.p99_ns = smv_histogram_quantile(&h->stalls_ns, 0.99),
		.max_ns = smv_histogram_quantile(&h->stalls_ns, 1)};
	if (h->stalled_since_ns) {
		/* The fault thread's last look at the clock may be a moment old. */
		s->present_ns = now > h->stalled_since_ns ? now - h->stalled_since_ns : 1;
		s->ns += s->present_ns;
		s->nr++;
		s->max_ns = s->present_ns > s->max_ns ? s->present_ns : s->max_ns;
	}
	pthread_mutex_unlock(&h->lock);
}

enum smv_host_state smv_health_host(struct smv_health *h, unsigned int sub_host)
{
	enum smv_host_state state;

	pthread_mutex_lock(&h->lock);
	state = worse(h, sub_host);
	pthread_mutex_unlock(&h->lock);
	return state;
}
