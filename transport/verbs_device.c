/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices stay open for the life of the process, as in librdmacm. Asynchronous events come on
 * one descriptor for a device, so one thread of each device in use reads them. It turns what kills
 * a connection into a flushed queue pair, which its owner sees in the completion queue.
 */
#include "transport/verbs.h"

#include "common/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct smv_verbs_device *devices;
static unsigned int nr_devices;

/* Of the slots. */
static pthread_mutex_t export_lock = PTHREAD_MUTEX_INITIALIZER;
static struct smv_verbs_device *exported[SMV_VERBS_EXPORTS];

static void open_devices(void)
{
	int n = 0;
	/* Never freed: that would let librdmacm close the devices. */
	static struct ibv_context **list;

	list = rdma_get_devices(&n);
	if (!list || n <= 0)
		return;
	devices = calloc((size_t)n, sizeof(*devices));
	if (!devices)
		return;
	nr_devices = (unsigned int)n;
	for (unsigned int i = 0; i < nr_devices; i++) {
		struct smv_verbs_device *d = &devices[i];

		d->ctx = list[i];
		d->index = i;
		d->slot = -1;
		pthread_mutex_init(&d->lock, NULL);
		/* iWARP has no immediate data and needs remote write access for a read's memory. */
		d->usable = list[i]->device->transport_type == IBV_TRANSPORT_IB &&
			    ibv_query_device(list[i], &d->attr) == 0;
	}
}

unsigned int smv_verbs_nr_devices(void)
{
	pthread_once(&once, open_devices);
	return nr_devices;
}

static bool is_active(const struct smv_verbs_device *dev)
{
	struct ibv_port_attr port;

	for (uint8_t i = 1; i <= dev->attr.phys_port_cnt; i++)
		if (ibv_query_port(dev->ctx, i, &port) == 0 && port.state == IBV_PORT_ACTIVE)
			return true;
	return false;
}

bool smv_verbs_any_active(void)
{
	for (unsigned int i = 0; i < smv_verbs_nr_devices(); i++)
		if (devices[i].usable && is_active(&devices[i]))
			return true;
	return false;
}

/* --- asynchronous events -------------------------------------------------------------------- */

static void flush_matching(struct smv_verbs_device *d, const struct ibv_qp *qp, int port)
{
	pthread_mutex_lock(&d->lock);
	for (struct smv_verbs_qp *q = d->qps; q; q = q->next)
		if ((!qp || q->qp == qp) && (!port || q->port == port))
			smv_verbs_qp_flush(q);
	pthread_mutex_unlock(&d->lock);
}

static void handle_event(struct smv_verbs_device *d, const struct ibv_async_event *event)
{
	switch (event->event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		flush_matching(d, event->element.qp, 0);
		break;
	case IBV_EVENT_PORT_ERR:
		smv_log_warning("verbs: port %d of %s went down; its connections end",
			event->element.port_num, d->ctx->device->name);
		flush_matching(d, NULL, event->element.port_num);
		break;
	case IBV_EVENT_DEVICE_FATAL:
		smv_log_error("verbs: device %s failed; its connections end", d->ctx->device->name);
		flush_matching(d, NULL, 0);
		break;
	case IBV_EVENT_CQ_ERR:
		smv_log_error(
			"verbs: a completion queue of %s failed; connections of the device end",
			d->ctx->device->name);
		flush_matching(d, NULL, 0);
		break;
	default:
		break;
	}
}

static void *watch_main(void *arg)
{
	struct smv_verbs_device *d = arg;
	struct ibv_async_event event;

	while (ibv_get_async_event(d->ctx, &event) == 0 || errno == EINTR) {
		handle_event(d, &event);
		ibv_ack_async_event(&event);
	}
	return NULL;
}

/* The thread lives as long as the process. */
static void watch(struct smv_verbs_device *d)
{
	pthread_t thread;

	pthread_mutex_lock(&d->lock);
	if (!d->watched && smv_transport_thread(&thread, watch_main, d, "smv-verbs-watch") == 0) {
		pthread_detach(thread);
		d->watched = true;
	}
	pthread_mutex_unlock(&d->lock);
}

struct smv_verbs_device *smv_verbs_find_device(const struct ibv_context *ctx)
{
	for (unsigned int i = 0; i < smv_verbs_nr_devices(); i++) {
		struct smv_verbs_device *d = &devices[i];

		if (d->ctx != ctx || !d->usable)
			continue;
		watch(d);
		return d;
	}
	return NULL;
}

/* --- export slots --------------------------------------------------------------------------- */

static int export_locked(struct smv_verbs_device *dev)
{
	for (int i = 0; i < SMV_VERBS_EXPORTS && dev->slot < 0; i++) {
		if (exported[i])
			continue;
		exported[i] = dev;
		dev->slot = i;
	}
	return dev->slot >= 0 ? dev->slot : -ENOSPC;
}

int smv_verbs_export(struct smv_verbs_device *dev)
{
	int slot;

	pthread_mutex_lock(&export_lock);
	slot = export_locked(dev);
	pthread_mutex_unlock(&export_lock);
	return slot;
}

struct smv_verbs_device *smv_verbs_exported(int slot)
{
	struct smv_verbs_device *dev;
	unsigned int n = smv_verbs_nr_devices();
	bool none;

	pthread_mutex_lock(&export_lock);
	none = !exported[0];
	for (unsigned int i = 0; i < n && none; i++)
		if (devices[i].usable && is_active(&devices[i]))
			export_locked(&devices[i]);
	dev = exported[slot];
	pthread_mutex_unlock(&export_lock);
	return dev;
}
