/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pager of one VM: it keeps the VM's memory within its budget by evicting pages to the
 * sub-hosts and answers the faults on those that are not here.
 *
 * The scheme: pages are found inactive by removing their page-table entries (the data stays in the
 * RAM file) and seeing which are touched again; an inactive page is written to its slot unless it
 * is clean, and only when the sub-host has acknowledged is the local copy punched out. Which pages
 * are dirty is told by asynchronous userfaultfd write-protection. docs/architecture.md has the
 * reasons.
 *
 * Two threads per VM: the fault thread and the evictor, each with connections of its own. Where the
 * VM's process hands over what its guest discards, a third one does that (client/discard.h).
 */
#ifndef SMV_CLIENT_PAGER_H
#define SMV_CLIENT_PAGER_H

#include "client/backing.h"
#include "client/health.h"
#include "client/loss.h"
#include "client/pagemap.h"
#include "client/slots.h"
#include "common/histogram.h"
#include "vmm/guest_ram.h"

/* Pages evicted together; resident memory may exceed the budget by no more than this. */
#define SMV_EVICT_BATCH 64u

/* The smallest budget: below it the free room that eviction keeps would be most of it. */
#define SMV_BUDGET_MIN (16ull << 20)

/** Remove the page-table entries of a range of the VM's address space; evictor thread only. */
typedef int (*smv_zap)(void *ctx, uint64_t addr, uint64_t len);

/** When (smv_now_ns()) a page-in went through the fault thread: its message was read, the read at
 * the sub-host was posted, completed, and the page was in place. */
struct smv_fault_times {
	uint64_t read_ns, posted_ns, completed_ns, placed_ns;
};

/** Told of every page-in, for measurements; fault thread, under the page's lock. */
typedef void (*smv_fault_trace)(void *ctx, uint64_t page, const struct smv_fault_times *times);

struct smv_pager_config {
	char name[72];
	const struct smv_guest_ram *ram; /* all pointers: not owned, outlive the pager */
	struct smv_pagemap *map;
	struct smv_slots *slots;
	const struct smv_backing *backing;
	int uffd; /* registered for MISSING | MINOR | WP, features SMV_UFFD_PAGE; non-blocking */
	int pagemap_fd; /* /proc/PID/pagemap of the VM's process */
	smv_zap zap;
	void *zap_ctx;
	uint64_t budget_pages;   /* to begin with, see smv_pager_set_budget() */
	unsigned int timeout_ms; /* deadline of a read or write at a sub-host */
	enum smv_loss_policy loss_policy;
	unsigned int loss_confirm_ms; /* see client/loss.h; not used with SMV_LOSS_STALL */
	/* Place what a sub-host returns without a look at its checksum. Checksums are kept all the
	 * same, so that a later pager can look. */
	bool skip_checksums;
	smv_fault_trace trace; /* NULL: nobody measures */
	void *trace_ctx;
};

struct smv_pager_stats {
	uint64_t faults, page_ins, zero_fills;
	uint64_t evictions, evictions_clean, evictions_aborted;
	uint64_t faults_waited_for_room;
	uint64_t discards; /* pages that were given up because the guest did */
	uint64_t bytes_read, bytes_written;
	uint64_t latency_ns_p50, latency_ns_p99, latency_ns_p999, latency_ns_max, latency_ns_sum;
	struct smv_stalls stalls;
	char trouble[200]; /* empty, or what keeps faults waiting */
};

struct smv_pager;

/** smv_pager_create - connect to the sub-hosts; no thread runs yet. */
int smv_pager_create(
	const struct smv_pager_config *config, struct smv_pager **pager, struct smv_error *err);

/** smv_pager_hot_credit - how many pages smv_pager_install() takes: the budget less the free room
 * that eviction keeps. */
uint64_t smv_pager_hot_credit(uint64_t budget_pages);

/**
 * smv_pager_install - put a page in place before the VM runs here; again for a newer version.
 *
 * One thread at a time, before smv_pager_start(). -ENOSPC beyond the credit.
 */
int smv_pager_install(struct smv_pager *pager, uint64_t page, const void *data, uint32_t checksum);

/** smv_pager_uninstall - a page that was installed has no content any more: it becomes ZERO. As for
 * smv_pager_install(); also for a page that is on a sub-host, whose slot the caller frees. */
int smv_pager_uninstall(struct smv_pager *pager, uint64_t page);

/* What smv_pager_take_over() met: pages by the state in which the dead pager left them, where that
 * is not where they stay. */
struct smv_taken_over {
	uint64_t fetching, out, saved;
	uint64_t placed;  /* zeros that were placed, but not yet noted */
	uint64_t punched; /* data that the map does not know */
	uint64_t lost;    /* found lost now */
};

/**
 * smv_pager_take_over - instead of smv_pager_install(): go on with the map of a pager that died.
 *
 * The map comes from smv_pagemap_load(), the slots are fresh; the dead pager's connections are
 * fenced already where smv_pager_start() shall connect. Settles every page (client/settle.h), takes
 * the slots, counts the frames. SMV_DATA_LOSS: the map is broken; nothing was changed then.
 *
 * Also after smv_pager_stop(), again with fresh slots; more of them if the backing has grown.
 */
int smv_pager_take_over(
	struct smv_pager *pager, struct smv_taken_over *report, struct smv_error *err);

/** smv_pager_start - connect to the sub-hosts, serve faults and evict. After smv_pager_take_over()
 * sub-hosts may be away: their pages wait; and all threads of the VM that wait for the dead pager
 * are woken, so that they fault again. */
int smv_pager_start(struct smv_pager *pager, struct smv_error *err);

/**
 * smv_pager_set_budget - change the budget, also while the pager serves; one thread at a time.
 *
 * Returns at once. What a smaller budget does not allow any more is evicted from then on, and until
 * that is done new page-ins wait. The slots must suffice for it (smv_leases_room()).
 */
void smv_pager_set_budget(struct smv_pager *pager, uint64_t budget_pages);

/** smv_pager_held - pages that are here or for which a frame is taken: more than the budget while
 * one that shrank is worked off. Any thread. */
uint64_t smv_pager_held(const struct smv_pager *pager);

/** smv_pager_stop - end both threads and close the connections: faults wait, the map stays. What
 * was counted is kept. Then smv_pager_take_over() and smv_pager_start(), or smv_pager_destroy(). */
void smv_pager_stop(struct smv_pager *pager);

/** smv_pager_destroy - stop and free. */
void smv_pager_destroy(struct smv_pager *pager);

void smv_pager_stats(struct smv_pager *pager, struct smv_pager_stats *stats);

struct smv_sub_host_stats {
	enum smv_host_state state;
	uint64_t bytes_read, bytes_written;
};
/** smv_pager_sub_host_stats - of all leases on a sub-host; @sub_host: its first one, see
 * smv_backing_first_of(). The state is the worst of theirs. */
void smv_pager_sub_host_stats(
	struct smv_pager *pager, unsigned int sub_host, struct smv_sub_host_stats *stats);
/** smv_pager_is_fatal - with SMV_LOSS_KILL: the VM has touched a lost page and is to be ended.
 * @why: gets which page that is, and why it is lost; else it becomes empty */
bool smv_pager_is_fatal(struct smv_pager *pager, char *why, size_t len);

#endif
