/* SPDX-License-Identifier: Apache-2.0 */
#include "client/pager_internal.h"

#include "client/uffd.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Free room that eviction keeps: it starts below low and ends at high. 1/64 and 1/32 of the budget
 * absorb a burst of faults while a batch is written; the upper bound keeps the sum of both well
 * inside the slack that the sub-hosts are asked for. */
#define LOW_MIN_PAGES 128
#define LOW_MAX_PAGES 4096

static int64_t low_watermark(uint64_t budget_pages)
{
	int64_t low = (int64_t)(budget_pages / 64);

	return low < LOW_MIN_PAGES ? LOW_MIN_PAGES : low > LOW_MAX_PAGES ? LOW_MAX_PAGES : low;
}

uint64_t smv_pager_hot_credit(uint64_t budget_pages)
{
	return budget_pages - 2 * (uint64_t)low_watermark(budget_pages);
}

void smv_kick(int fd)
{
	uint64_t one = 1;

	/* A full counter is a kick too. */
	if (write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		smv_log_error("eventfd: %s", strerror(errno));
}

void smv_drain(int fd)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		smv_log_error("eventfd: %s", strerror(errno));
}

void smv_pager_set_trouble(struct smv_pager *p, enum smv_trouble kind, const char *text)
{
	pthread_mutex_lock(&p->trouble_lock);
	if (text[0] && strcmp(text, p->trouble[kind]) != 0)
		smv_log_warning("VM '%s': %s", p->c.name, text);
	snprintf(p->trouble[kind], sizeof(p->trouble[kind]), "%s", text);
	pthread_mutex_unlock(&p->trouble_lock);
}

int smv_pager_create(
	const struct smv_pager_config *config, struct smv_pager **out, struct smv_error *err)
{
	struct smv_pager *p = calloc(1, sizeof(*p));

	if (!p)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	p->c = *config;
	p->kick_fault = p->kick_evictor = -1;
	pthread_mutex_init(&p->trouble_lock, NULL);
	p->nr_ranges = (config->ram->nr_pages + SMV_EXTENT_PAGES - 1) / SMV_EXTENT_PAGES;
	p->range_local = calloc(p->nr_ranges, sizeof(*p->range_local));
	p->frames_low = low_watermark(config->budget_pages);
	p->frames_high = 2 * p->frames_low;
	atomic_store(&p->frames_free, (int64_t)config->budget_pages);
	p->kick_fault = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p->kick_evictor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!p->range_local || p->kick_fault < 0 || p->kick_evictor < 0) {
		smv_pager_destroy(p);
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL,
			"cannot set up the pager of VM '%s'", config->name);
	}
	*out = p;
	return 0;
}

/* Install over a page that is in place already: overwrite it, the older version must not stay. */
static int overwrite(struct smv_pager *p, uint64_t page, const void *data)
{
	struct smv_page_at at = smv_page_at(p, page);

	if (smv_fault_point("install-ignore-eexist"))
		return 0;
	return pwrite(at.fd, data, SMV_PAGE_SIZE, at.offset) == SMV_PAGE_SIZE ? 0 : -EIO;
}

int smv_pager_install(struct smv_pager *p, uint64_t page, const void *data, uint32_t checksum)
{
	bool again = smv_word_state(smv_pagemap_get(p->c.map, page)) == SMV_PAGE_LOCAL;
	int r;

	if (!again && atomic_load(&p->frames_free) <= p->frames_high)
		return -ENOSPC;
	r = smv_uffd_copy(p->c.uffd, smv_page_at(p, page).addr, data, false);
	if (r == -EEXIST)
		r = overwrite(p, page, data);
	if (r < 0)
		return r;
	if (!again) {
		atomic_fetch_sub(&p->frames_free, 1);
		atomic_fetch_add(&p->range_local[page / SMV_EXTENT_PAGES], 1);
	}
	smv_pagemap_place(p->c.map, page, smv_word(SMV_PAGE_LOCAL, SMV_SLOT_NONE, checksum));
	return 0;
}

int smv_pager_start(struct smv_pager *p, struct smv_error *err)
{
	int (*open_remote)(const struct smv_backing *, enum smv_role, size_t, unsigned int,
		struct smv_remote **, struct smv_error *) =
		p->taken_over ? smv_remote_open_any : smv_remote_open;
	int r;

	if ((r = open_remote(p->c.backing, SMV_ROLE_READER, SMV_MAX_FETCHES * SMV_PAGE_SIZE,
		     p->c.timeout_ms, &p->fault_remote, err)) < 0 ||
		(r = open_remote(p->c.backing, SMV_ROLE_WRITER, SMV_EVICT_BATCH * SMV_PAGE_SIZE,
			 p->c.timeout_ms, &p->evict_remote, err)) < 0)
		return r;
	r = pthread_create(&p->fault_thread, NULL, smv_fault_thread, p);
	if (r == 0) {
		r = pthread_create(&p->evict_thread, NULL, smv_evict_thread, p);
		if (r) {
			atomic_store(&p->stop, true);
			smv_kick(p->kick_fault);
			pthread_join(p->fault_thread, NULL);
		}
	}
	if (r)
		return smv_fail(err, SMV_NO_ROOM, "no-threads", NULL,
			"cannot start the threads of the pager of VM '%s': %s", p->c.name,
			strerror(r));
	p->started = true;
	if (p->taken_over)
		smv_pager_wake_all(p);
	return 0;
}

void smv_pager_destroy(struct smv_pager *p)
{
	if (!p)
		return;
	if (p->started) {
		atomic_store(&p->stop, true);
		smv_kick(p->kick_fault);
		smv_kick(p->kick_evictor);
		pthread_join(p->fault_thread, NULL);
		pthread_join(p->evict_thread, NULL);
	}
	smv_remote_close(p->fault_remote);
	smv_remote_close(p->evict_remote);
	if (p->kick_fault >= 0)
		close(p->kick_fault);
	if (p->kick_evictor >= 0)
		close(p->kick_evictor);
	pthread_mutex_destroy(&p->trouble_lock);
	free(p->range_local);
	free(p);
}

void smv_pager_stats(struct smv_pager *p, struct smv_pager_stats *s)
{
	memset(s, 0, sizeof(*s));
	s->faults = p->faults;
	s->page_ins = p->page_ins;
	s->zero_fills = p->zero_fills;
	s->evictions = p->evictions;
	s->evictions_clean = p->evictions_clean;
	s->evictions_aborted = p->evictions_aborted;
	s->faults_waited_for_room = p->waited_for_room;
	s->latency_ns_p50 = smv_histogram_quantile(&p->latency_ns, 0.5);
	s->latency_ns_p99 = smv_histogram_quantile(&p->latency_ns, 0.99);
	s->latency_ns_p999 = smv_histogram_quantile(&p->latency_ns, 0.999);
	s->latency_ns_max = smv_histogram_quantile(&p->latency_ns, 1);
	for (unsigned int h = 0; p->started && h < p->c.backing->nr_sub_hosts; h++) {
		s->bytes_read += smv_remote_bytes_of(p->fault_remote, h).read;
		s->bytes_written += smv_remote_bytes_of(p->evict_remote, h).written;
	}
	pthread_mutex_lock(&p->trouble_lock);
	for (int kind = SMV_NR_TROUBLES - 1; kind >= 0; kind--)
		if (p->trouble[kind][0])
			memcpy(s->trouble, p->trouble[kind], sizeof(s->trouble));
	pthread_mutex_unlock(&p->trouble_lock);
}
