/* SPDX-License-Identifier: Apache-2.0 */
/* What the fault thread, the evictor and the discards share. */
#ifndef SMV_CLIENT_PAGER_INTERNAL_H
#define SMV_CLIENT_PAGER_INTERNAL_H

#include "client/pager.h"
#include "client/remote.h"

/* Reads under way at most. */
#define SMV_MAX_FETCHES 128

/* What can be wrong at the same time, and passes at different times; the first is shown. */
enum smv_trouble {
	SMV_TROUBLE_ROOM,
	SMV_TROUBLE_SUB_HOST,
	SMV_TROUBLE_LOST,
	SMV_TROUBLE_FAULTS,
	SMV_TROUBLE_EVICTION,
	SMV_NR_TROUBLES,
};

enum smv_pager_thread { SMV_FAULT_THREAD, SMV_EVICTOR, SMV_NR_PAGER_THREADS };

struct smv_pager {
	struct smv_pager_config c;
	uint64_t nr_ranges;            /* of SMV_EXTENT_PAGES pages: the unit of sweeps */
	_Atomic uint16_t *range_local; /* LOCAL pages of each range */

	_Atomic uint64_t budget_pages;
	_Atomic int64_t frames_free; /* budget less resident pages; negative while it shrinks */
	_Atomic int64_t frames_low, frames_high;
	_Atomic int64_t nr_inactive;

	int kick_fault; /* eventfds */
	int kick_evictor;
	_Atomic bool evictor_idle; /* it sleeps and wants a kick below the low watermark */
	_Atomic bool stop;
	bool started;
	bool taken_over; /* from a pager that died */
	/* The RAM files have, or had, data where no page is: they have huge pages. What is punched
	 * may then be zeroed and stay, and a page that is fetched may meet other data. */
	_Atomic bool has_huge;
	_Atomic bool told_huge; /* by a punch; that there is more data than pages may have other
				 * reasons */
	pthread_t fault_thread, evict_thread;
	struct smv_remote *fault_remote, *evict_remote;
	struct smv_health health;
	uint64_t unserved_since_ns; /* taken over: when the other one last looked for faults */
	/* Moved by connections before a smv_pager_stop(). */
	struct smv_remote_bytes before[SMV_SUB_HOSTS_MAX];
	/* Which sub-hosts have lost their memory, as each thread knows by its own connections. */
	_Atomic bool lost_by[SMV_NR_PAGER_THREADS][SMV_SUB_HOSTS_MAX];
	int discards_fd; /* -1: nobody discards */
	pthread_t discard_thread;

	struct smv_histogram latency_ns;
	_Atomic uint64_t faults, page_ins, zero_fills;
	_Atomic uint64_t evictions, evictions_clean, evictions_aborted, waited_for_room;
	_Atomic uint64_t discards;
	pthread_mutex_t trouble_lock;
	char trouble[SMV_NR_TROUBLES][200];
	char fatal[400]; /* see smv_pager_is_fatal(); under trouble_lock too */
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
/* End the thread of smv_pager_serve_discards(), if there is one. */
void smv_discards_stop(struct smv_pager *p);

/* Give up the local copies of pages of one RAM block. 0; 1: not everywhere a hole came, the rest is
 * zeroed in the file, and stays: a part of a huge page that somebody holds, so that the kernel
 * cannot split it; -errno: anything may be left. */
int smv_pager_punch(struct smv_pager *p, uint64_t page, uint64_t nr_pages);
/* Whether the RAM file has data there. */
bool smv_pager_has_data(const struct smv_pager *p, uint64_t page);
/* Whether the RAM file has data with this checksum there, and not zeros. */
bool smv_pager_file_has(const struct smv_pager *p, uint64_t page, uint32_t checksum);

/* Whoever waits for a fault that was read by a pager that died faults again. */
void smv_pager_wake_all(struct smv_pager *p);

void smv_kick(int eventfd);
void smv_drain(int eventfd);
/* An empty @text: it has passed. The log has it by the event that comes with it. */
void smv_pager_set_trouble(struct smv_pager *p, enum smv_trouble kind, const char *text);

/* What a thread's connections say of lost memory; true: they do of some sub-host. */
bool smv_pager_note_losses(
	struct smv_pager *p, const struct smv_remote *remote, enum smv_pager_thread who);
/* Reads the whole map. */
void smv_pager_tell_losses(struct smv_pager *p);
void smv_pager_tell_lost_page(struct smv_pager *p);

static inline bool smv_pager_has_lost(const struct smv_pager *p, unsigned int sub_host)
{
	return atomic_load(&p->lost_by[SMV_FAULT_THREAD][sub_host]) ||
	       atomic_load(&p->lost_by[SMV_EVICTOR][sub_host]);
}

static inline void smv_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

#endif
