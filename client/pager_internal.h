/* SPDX-License-Identifier: Apache-2.0 */
/* What the fault thread and the evictor share. */
#ifndef SMV_CLIENT_PAGER_INTERNAL_H
#define SMV_CLIENT_PAGER_INTERNAL_H

#include "client/pager.h"
#include "client/remote.h"

/* Reads under way at most. */
#define SMV_MAX_FETCHES 128

/* What can be wrong at the same time, and passes at different times; the first is shown. */
enum smv_trouble { SMV_TROUBLE_LOST, SMV_TROUBLE_FAULTS, SMV_TROUBLE_EVICTION, SMV_NR_TROUBLES };

struct smv_pager {
	struct smv_pager_config c;
	uint64_t nr_ranges;            /* of SMV_EXTENT_PAGES pages: the unit of sweeps */
	_Atomic uint16_t *range_local; /* LOCAL pages of each range */

	_Atomic int64_t frames_free; /* budget less resident pages */
	int64_t frames_low, frames_high;
	_Atomic int64_t nr_inactive;

	int kick_fault; /* eventfds */
	int kick_evictor;
	_Atomic bool evictor_idle; /* it sleeps and wants a kick below the low watermark */
	_Atomic bool stop;
	bool started;
	bool taken_over; /* from a pager that died */
	pthread_t fault_thread, evict_thread;
	struct smv_remote *fault_remote, *evict_remote;

	struct smv_histogram latency_ns;
	_Atomic uint64_t faults, page_ins, zero_fills;
	_Atomic uint64_t evictions, evictions_clean, evictions_aborted, waited_for_room;
	pthread_mutex_t trouble_lock;
	char trouble[SMV_NR_TROUBLES][200];
};

/* A page's place in the VM. */
struct smv_page_at {
	uint64_t addr; /* in the VM's address space */
	int fd;        /* the RAM file and the offset in it */
	off_t offset;
};

static inline struct smv_page_at smv_page_at(const struct smv_pager *p, uint64_t page)
{
	const struct smv_ram_block *b = smv_guest_ram_block_of(p->c.ram, page);
	uint64_t off = (page - b->first_page) * SMV_PAGE_SIZE;

	return (struct smv_page_at){b->host_addr + off, b->fd, (off_t)(b->file_offset + off)};
}

void *smv_fault_thread(void *pager);
void *smv_evict_thread(void *pager);

/* Whoever waits for a fault that was read by a pager that died faults again. */
void smv_pager_wake_all(struct smv_pager *p);

void smv_kick(int eventfd);
void smv_drain(int eventfd);
/* An empty @text: it has passed. */
void smv_pager_set_trouble(struct smv_pager *p, enum smv_trouble kind, const char *text);

static inline void smv_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

#endif
