/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving pages: cold ones straight to the sub-hosts by one-sided writes, hot ones through the
 * pager's ring to the main host. A page keeps its class and its slot for the whole migration,
 * unless it is a hole in the end; a page that was never sent and is zero stays ZERO. One thread.
 */
#ifndef SMV_MIGRATOR_PUSH_H
#define SMV_MIGRATOR_PUSH_H

#include "client/pagemap.h"
#include "migrator/dest.h"
#include "migrator/pageset.h"
#include "migrator/source.h"

struct smv_push;

struct smv_push_counts {
	uint64_t pages; /* sent, resent included */
	uint64_t resent;
	uint64_t bytes_to_main; /* payload */
	uint64_t bytes_to_sub_hosts;
};

/**
 * smv_push_open - connect to the sub-hosts and to the pager's ring.
 * @hot: pages meant for the main host
 * @bandwidth: bytes per second at most, 0: no limit
 * @interrupted: asked now and then
 */
int smv_push_open(struct smv_source *source, struct smv_dest *dest, const struct smv_pageset *hot,
	uint64_t bandwidth, smv_interrupted interrupted, struct smv_push **push, struct smv_error *err);
void smv_push_close(struct smv_push *push);

/** smv_push_pages - read and send the pages of @set; returns when every write is acknowledged and
 * every hot page in place. @progress (may be NULL) hears of the pages done of this set. */
int smv_push_pages(struct smv_push *push, const struct smv_pageset *set,
	void (*progress)(void *ctx, uint64_t done), void *ctx, struct smv_error *err);

/** smv_push_declare_zero - pages that are not in @populated are ZERO until they are sent. */
int smv_push_declare_zero(
	struct smv_push *push, const struct smv_pageset *populated, struct smv_error *err);

/** smv_push_drop_holes - pages that were sent, but are not in @populated any more, become ZERO: the
 * guest has discarded them (balloon, free-page reporting), which is no write. For a VM that stands
 * still, after the last smv_push_pages(). */
int smv_push_drop_holes(
	struct smv_push *push, const struct smv_pageset *populated, struct smv_error *err);

/** smv_push_read_back - a read on each writer connection behind all of its writes: when it returns
 * they are visible at the sub-hosts, whatever a NIC or a bus still buffered. */
int smv_push_read_back(struct smv_push *push, struct smv_error *err);

#ifdef SMEMV_FAULT_POINTS
/** smv_push_late_write - for a negative test: write rubbish over the slots of cold pages, as a write
 * would that was delayed until after the switch-over. Whether it gets through is for the fence. */
void smv_push_late_write(struct smv_push *push);
#endif

const struct smv_pagemap *smv_push_map(const struct smv_push *push);
void smv_push_counts(const struct smv_push *push, struct smv_push_counts *counts);
/** smv_push_bytes_to - payload written to one sub-host. */
uint64_t smv_push_bytes_to(const struct smv_push *push, unsigned int sub_host);
/** smv_push_extents_of - extents of one sub-host in which slots are taken. */
uint64_t smv_push_extents_of(const struct smv_push *push, unsigned int sub_host);

#endif
