/* SPDX-License-Identifier: Apache-2.0 */
#include "client/pager_internal.h"

#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
	if (kind == SMV_TROUBLE_EVICTION || kind == SMV_TROUBLE_ROOM)
		smv_health_eviction(&p->health, text[0] ? text : NULL);
	pthread_mutex_lock(&p->trouble_lock);
	snprintf(p->trouble[kind], sizeof(p->trouble[kind]), "%s", text);
	pthread_mutex_unlock(&p->trouble_lock);
}

static void set_watermarks(struct smv_pager *p, uint64_t budget_pages)
{
	int64_t low = low_watermark(budget_pages);

	atomic_store(&p->budget_pages, budget_pages);
	atomic_store(&p->frames_low, low);
	atomic_store(&p->frames_high, 2 * low);
}

int smv_pager_create(
	const struct smv_pager_config *config, struct smv_pager **out, struct smv_error *err)
{
	struct smv_pager *p = calloc(1, sizeof(*p));

	if (!p)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	p->c = *config;
	p->kick_fault = p->kick_evictor = p->discards_fd = -1;
	pthread_mutex_init(&p->trouble_lock, NULL);
	smv_health_init(&p->health, p->c.name, config->backing);
	p->nr_ranges = (config->ram->nr_pages + SMV_EXTENT_PAGES - 1) / SMV_EXTENT_PAGES;
	p->range_local = calloc(p->nr_ranges, sizeof(*p->range_local));
	set_watermarks(p, config->budget_pages);
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

static void reader_changed(
	void *pager, unsigned int sub_host, enum smv_host_state state, const char *why)
{
	struct smv_pager *p = pager;

	smv_health_sub_host(&p->health, SMV_ROLE_READER, sub_host, state, why);
}

static void writer_changed(
	void *pager, unsigned int sub_host, enum smv_host_state state, const char *why)
{
	struct smv_pager *p = pager;

	smv_health_sub_host(&p->health, SMV_ROLE_WRITER, sub_host, state, why);
}

int smv_pager_uninstall(struct smv_pager *p, uint64_t page)
{
	bool here = smv_word_state(smv_pagemap_get(p->c.map, page)) == SMV_PAGE_LOCAL;

	if (here && smv_pager_punch(p, page, 1) < 0)
		return -EIO;
	if (here) {
		atomic_fetch_add(&p->frames_free, 1);
		atomic_fetch_sub(&p->range_local[page / SMV_EXTENT_PAGES], 1);
	}
	smv_pagemap_place(p->c.map, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	return 0;
}

static uint64_t pages_in_files(const struct smv_pager *p)
{
	uint64_t blocks = 0;

	for (unsigned int i = 0; i < p->c.ram->nr_blocks; i++) {
		struct stat st;

		if (fstat(p->c.ram->blocks[i].fd, &st) == 0)
			blocks += (uint64_t)st.st_blocks;
	}
	return blocks * 512 / SMV_PAGE_SIZE;
}

int smv_pager_start(struct smv_pager *p, struct smv_error *err)
{
	int (*open_remote)(const struct smv_backing *, enum smv_role, size_t, unsigned int,
		struct smv_remote **, struct smv_error *) =
		p->taken_over ? smv_remote_open_any : smv_remote_open;
	uint64_t in_files;
	int r;

	if ((r = open_remote(p->c.backing, SMV_ROLE_READER, SMV_MAX_FETCHES * SMV_PAGE_SIZE,
		     p->c.timeout_ms, &p->fault_remote, err)) < 0 ||
		(r = open_remote(p->c.backing, SMV_ROLE_WRITER, SMV_EVICT_BATCH * SMV_PAGE_SIZE,
			 p->c.timeout_ms, &p->evict_remote, err)) < 0)
		return r;
	/* In this order: a discard in between must not hide that there is more data than pages. */
	in_files = pages_in_files(p);
	if (in_files > smv_pagemap_count(p->c.map, SMV_PAGE_LOCAL))
		atomic_store(&p->has_huge, true);
	smv_remote_watch(p->fault_remote, reader_changed, p);
	smv_remote_watch(p->evict_remote, writer_changed, p);
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
	if (p->taken_over) {
		smv_pager_wake_all(p);
		smv_health_unserved(&p->health, p->unserved_since_ns, smv_now_ns());
	}
	return 0;
}

void smv_pager_set_budget(struct smv_pager *p, uint64_t budget_pages)
{
	int64_t more = (int64_t)budget_pages - (int64_t)atomic_load(&p->budget_pages);

	set_watermarks(p, budget_pages);
	atomic_fetch_add(&p->frames_free, more);
	smv_kick(p->kick_evictor);
	smv_kick(p->kick_fault);
}

uint64_t smv_pager_held(const struct smv_pager *p)
{
	int64_t held = (int64_t)atomic_load(&p->budget_pages) - atomic_load(&p->frames_free);

	/* A set_budget() between the two loads. */
	return held > 0 ? (uint64_t)held : 0;
}

/* To and from one entry of the backing. */
static struct smv_remote_bytes bytes_moved(const struct smv_pager *p, unsigned int h)
{
	struct smv_remote_bytes bytes = p->before[h];

	if (p->started) {
		bytes.read += smv_remote_bytes_of(p->fault_remote, h).read;
		bytes.written += smv_remote_bytes_of(p->evict_remote, h).written;
	}
	return bytes;
}

void smv_pager_stop(struct smv_pager *p)
{
	smv_discards_stop(p);
	if (p->started) {
		atomic_store(&p->stop, true);
		smv_kick(p->kick_fault);
		smv_kick(p->kick_evictor);
		pthread_join(p->fault_thread, NULL);
		pthread_join(p->evict_thread, NULL);
	}
	for (unsigned int h = 0; h < p->c.backing->nr_sub_hosts; h++)
		p->before[h] = bytes_moved(p, h);
	smv_remote_close(smv_take(p->fault_remote));
	smv_remote_close(smv_take(p->evict_remote));
	p->started = false;
	atomic_store(&p->stop, false);
	/* What the threads have told is theirs to tell again; but a lost page stays lost. */
	for (enum smv_trouble kind = 0; kind < SMV_NR_TROUBLES; kind++)
		if (kind != SMV_TROUBLE_LOST)
			smv_pager_set_trouble(p, kind, "");
}

void smv_pager_destroy(struct smv_pager *p)
{
	if (!p)
		return;
	smv_pager_stop(p);
	if (p->kick_fault >= 0)
		close(p->kick_fault);
	if (p->kick_evictor >= 0)
		close(p->kick_evictor);
	pthread_mutex_destroy(&p->trouble_lock);
	smv_health_destroy(&p->health);
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
	s->discards = p->discards;
	s->latency_ns_p50 = smv_histogram_quantile(&p->latency_ns, 0.5);
	s->latency_ns_p99 = smv_histogram_quantile(&p->latency_ns, 0.99);
	s->latency_ns_p999 = smv_histogram_quantile(&p->latency_ns, 0.999);
	s->latency_ns_max = smv_histogram_quantile(&p->latency_ns, 1);
	s->latency_ns_sum = p->latency_ns.sum;
	smv_health_stalls(&p->health, &s->stalls);
	for (unsigned int h = 0; h < p->c.backing->nr_sub_hosts; h++) {
		struct smv_remote_bytes bytes = bytes_moved(p, h);

		s->bytes_read += bytes.read;
		s->bytes_written += bytes.written;
	}
	pthread_mutex_lock(&p->trouble_lock);
	for (int kind = SMV_NR_TROUBLES - 1; kind >= 0; kind--)
		if (p->trouble[kind][0])
			memcpy(s->trouble, p->trouble[kind], sizeof(s->trouble));
	pthread_mutex_unlock(&p->trouble_lock);
}

void smv_pager_sub_host_stats(
	struct smv_pager *p, unsigned int sub_host, struct smv_sub_host_stats *s)
{
	*s = (struct smv_sub_host_stats){.state = SMV_HOST_UP};
	for (unsigned int h = sub_host; h < p->c.backing->nr_sub_hosts; h++) {
		enum smv_host_state state = smv_health_host(&p->health, h);
		struct smv_remote_bytes bytes = bytes_moved(p, h);

		if (smv_backing_first_of(p->c.backing, h) != sub_host)
			continue;
		s->state = state > s->state ? state : s->state;
		s->bytes_read += bytes.read;
		s->bytes_written += bytes.written;
	}
}
