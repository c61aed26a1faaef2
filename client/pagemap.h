/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page map: for every page of a VM one 8-byte word that says where its data is, changed by one
 * atomic store. It lives in a file on tmpfs, so it outlives the process that keeps it.
 *
 * States and transitions (who does it):
 *
 *   UNKNOWN  -> ZERO, LOCAL, COLD    what the source reported (incoming migration)
 *   ZERO     -> LOCAL                first touch: filled with zeros (fault thread)
 *   COLD     -> FETCHING             touched: a frame is reserved, a read posted (fault thread)
 *   COLD     -> LOST                 touched, and its sub-host has lost its memory: client/loss.h
 *   FETCHING -> LOCAL                data in place (fault thread)
 *   FETCHING -> COLD                 the server did not answer; tried again (fault thread)
 *   FETCHING -> LOST                 the data's checksum is wrong (fault thread)
 *   LOCAL    -> OUT                  inactive, chosen for eviction: nobody can map it (evictor)
 *   OUT      -> SAVED                the remote copy is acknowledged, or was valid (evictor)
 *   OUT      -> LOCAL                touched meanwhile, or the write failed (evictor)
 *   SAVED    -> COLD, ZERO           the local copy is punched out, or zeroed in place (evictor)
 *   LOCAL    -> LOST                 the file has a hole where the page should be (fault thread)
 *   LOCAL, COLD, LOST -> ZERO        the guest has discarded it (client/discard.h)
 *   LOCAL, COLD -> ZERO              a hole at the source in the end (incoming migration)
 *   (what a pager that died left on the way: client/settle.h)
 *
 * A LOCAL page is ACTIVE, ZAPPING (its PTE is being removed) or INACTIVE (unmapped; a touch makes
 * it ACTIVE again, else it may be evicted). Nothing is taken for ZERO because it is missing: zero
 * is a state of its own, and a page that was never reported stays UNKNOWN.
 */
#ifndef SMV_CLIENT_PAGEMAP_H
#define SMV_CLIENT_PAGEMAP_H

#include "common/error.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum smv_page_state {
	SMV_PAGE_UNKNOWN,
	SMV_PAGE_ZERO,
	SMV_PAGE_LOCAL,
	SMV_PAGE_FETCHING,
	SMV_PAGE_OUT,
	SMV_PAGE_SAVED,
	SMV_PAGE_COLD,
	SMV_PAGE_LOST,
	SMV_PAGE_NR_STATES,
};

enum smv_page_activity { SMV_PAGE_ACTIVE, SMV_PAGE_ZAPPING, SMV_PAGE_INACTIVE };

/*
 * bits  0-3   state
 *       4-5   activity, LOCAL only; bit 4 of FETCHING: OVER_DATA, the RAM file has data there that
 *             could not be punched out and is not the page's
 *       6     REMOTE_VALID: slot (or, without a slot, a page of zeros) holds what the page held
 *             when it was last mapped write-protected
 *       7     WAITER: a fault message came while the page was in transit
 *       8-43  slot, all ones: none
 *      44-63  checksum of the remote copy
 */
typedef uint64_t smv_page_word;

#define SMV_WORD_OVER_DATA (1ull << 4)
#define SMV_WORD_REMOTE_VALID (1ull << 6)
#define SMV_WORD_WAITER (1ull << 7)
#define SMV_SLOT_NONE ((1ull << 36) - 1)
#define SMV_CHECKSUM_BITS 20

static inline smv_page_word smv_word(enum smv_page_state state, uint64_t slot, uint32_t checksum)
{
	return (uint64_t)state | slot << 8 | (uint64_t)checksum << 44;
}

static inline enum smv_page_state smv_word_state(smv_page_word w)
{
	return (enum smv_page_state)(w & 15);
}

static inline enum smv_page_activity smv_word_activity(smv_page_word w)
{
	return (enum smv_page_activity)(w >> 4 & 3);
}

static inline uint64_t smv_word_slot(smv_page_word w)
{
	return w >> 8 & SMV_SLOT_NONE;
}

static inline uint32_t smv_word_checksum(smv_page_word w)
{
	return (uint32_t)(w >> 44);
}

static inline smv_page_word smv_word_with_state(smv_page_word w, enum smv_page_state state)
{
	return (w & ~15ull) | (uint64_t)state;
}

static inline smv_page_word smv_word_with_activity(smv_page_word w, enum smv_page_activity activity)
{
	return (w & ~(3ull << 4)) | (uint64_t)activity << 4;
}

static inline smv_page_word smv_word_with_slot(smv_page_word w, uint64_t slot)
{
	return (w & ~(SMV_SLOT_NONE << 8)) | slot << 8;
}

static inline smv_page_word smv_word_with_checksum(smv_page_word w, uint32_t checksum)
{
	return (w & ((1ull << 44) - 1)) | (uint64_t)checksum << 44;
}

struct smv_pagemap {
	uint64_t nr_pages;
	_Atomic smv_page_word *words;
	_Atomic uint64_t counts[SMV_PAGE_NR_STATES];
	/* Sum of smv_pagemap_digest_term() over all pages; kept by smv_pagemap_place() only. */
	uint64_t digest;
	pthread_mutex_t *locks;
	void *mapping;
	size_t mapping_bytes;
};

/* The file: this header in one page, then the words. */
#define SMV_PAGEMAP_MAGIC 0x50414d4556534d53ull /* "SMSVEMAP" */
/* Since 2 a SAVED word names the slot that was written; since 3 there is OVER_DATA. */
#define SMV_PAGEMAP_VERSION 3
#define SMV_PAGEMAP_OLDEST 2
#define SMV_PAGEMAP_HEADER_BYTES 4096
struct smv_pagemap_header {
	uint64_t magic;
	uint32_t version;
	uint32_t page_size;
	uint64_t nr_pages;
	char vm[128];
	uint64_t id; /* random: tells this map from any other of that VM */
	/* When a pager last looked for faults, CLOCK_MONOTONIC; 0: none did. Nothing depends on it
	 * but what is said of the time in which nobody served. */
	_Atomic uint64_t served_ns;
};

/** smv_pagemap_create - all pages UNKNOWN. @path NULL: no file; else a new file, replacing any. */
int smv_pagemap_create(const char *path, const char *vm, uint64_t nr_pages, struct smv_pagemap *map,
	struct smv_error *err);
/** smv_pagemap_load - map a file that another process made, with the words as it left them (see
 * smv_pager_take_over()). SMV_DATA_LOSS when the file is not whole or is not the map @id of this
 * VM; nothing was changed then. */
int smv_pagemap_load(const char *path, const char *vm, uint64_t nr_pages, uint64_t id,
	struct smv_pagemap *map, struct smv_error *err);
/** smv_pagemap_upgrade - from now on words may be written that former versions do not know. */
void smv_pagemap_upgrade(struct smv_pagemap *map);
/** smv_pagemap_id - to be given to smv_pagemap_load() later. */
uint64_t smv_pagemap_id(const struct smv_pagemap *map);
/** smv_pagemap_set_served / served - see smv_pagemap_header.served_ns; any thread. */
void smv_pagemap_set_served(struct smv_pagemap *map, uint64_t now_ns);
uint64_t smv_pagemap_served(const struct smv_pagemap *map);
/** smv_pagemap_destroy - unmap; the file stays. Fine on a zeroed struct. */
void smv_pagemap_destroy(struct smv_pagemap *map);

/** smv_pagemap_lock / unlock - the lock under which a page's word is changed while the VM runs
 * here. It is shared with other pages: hold one at a time. */
void smv_pagemap_lock(struct smv_pagemap *map, uint64_t page);
void smv_pagemap_unlock(struct smv_pagemap *map, uint64_t page);

static inline smv_page_word smv_pagemap_get(const struct smv_pagemap *map, uint64_t page)
{
	return atomic_load_explicit(&map->words[page], memory_order_acquire);
}

/** smv_pagemap_set - store a word and keep the counts. The caller holds the page's lock or is the
 * only one who changes this page. */
void smv_pagemap_set(struct smv_pagemap *map, uint64_t page, smv_page_word word);

/** smv_pagemap_fill - store one word for every page. Before any thread uses the map. */
void smv_pagemap_fill(struct smv_pagemap *map, smv_page_word word);

/** smv_pagemap_place - smv_pagemap_set() that also keeps the digest; for both sides of a
 * migration. One thread at a time for the whole map. */
void smv_pagemap_place(struct smv_pagemap *map, uint64_t page, smv_page_word word);

uint64_t smv_pagemap_count(const struct smv_pagemap *map, enum smv_page_state state);

/** smv_page_checksum - SMV_CHECKSUM_BITS bits of XXH3-64 of one page. */
uint32_t smv_page_checksum(const void *page);

/** smv_page_is_zero - all SMV_PAGE_SIZE bytes are zero. */
bool smv_page_is_zero(const void *page);

const char *smv_page_state_name(enum smv_page_state state);

#endif
