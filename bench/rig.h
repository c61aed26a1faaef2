/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pager in this process over a piece of this process's own memory, which plays the VM's RAM: its
 * pages start as zeros or in the memory of a server (peer.h).
 */
#ifndef SMV_BENCH_RIG_H
#define SMV_BENCH_RIG_H

#include "bench/peer.h"
#include "client/pager.h"

struct smv_bench_rig {
	struct smv_bench_peer peer;
	struct smv_guest_ram ram;
	int uffd, pagemap_fd; /* -1: not open */
	struct smv_backing backing;
	struct smv_slots slots;
	struct smv_pagemap map;
	struct smv_pager *pager;
};

/** smv_bench_rig_create - a VM of @nr_pages pages of zeros, with room for @nr_slots pages at the
 * server, a multiple of SMV_EXTENT_PAGES. @trace: see smv_pager_config. smv_bench_rig_destroy() is
 * fine after a failure, too. */
int smv_bench_rig_create(struct smv_bench_rig *rig, const struct smv_bench_options *o,
	uint64_t nr_pages, uint64_t nr_slots, uint64_t budget_pages, smv_fault_trace trace,
	void *trace_ctx, struct smv_error *err);

/** smv_bench_rig_abandon - serve no more faults: threads that wait for one, and all later ones, see
 * zeros. For a way out when the server is gone; idempotent. */
void smv_bench_rig_abandon(struct smv_bench_rig *rig);

void smv_bench_rig_destroy(struct smv_bench_rig *rig);

/** smv_bench_rig_store - before the pager starts: page 2i is in slot i, for all i below @nr_pages,
 * and holds smv_bench_rig_stored() of its number. */
int smv_bench_rig_store(struct smv_bench_rig *rig, uint64_t nr_pages, struct smv_error *err);

/** smv_bench_rig_stored - what each 64-bit word of a stored page is. */
static inline uint64_t smv_bench_rig_stored(uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15;
}

static inline uint64_t *smv_bench_rig_page(const struct smv_bench_rig *rig, uint64_t page)
{
	return (uint64_t *)(uintptr_t)(rig->ram.blocks[0].host_addr + page * SMV_PAGE_SIZE);
}

#endif
