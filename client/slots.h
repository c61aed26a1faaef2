/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which slots (room for one page each on the sub-hosts) are taken. One owner at a time: the source
 * while it migrates, the evictor afterwards. Counting the free ones is allowed to anybody.
 */
#ifndef SMV_CLIENT_SLOTS_H
#define SMV_CLIENT_SLOTS_H

#include <stdatomic.h>
#include <stdint.h>

#define SMV_EXTENT_PAGES 512u
#define SMV_EXTENT_BYTES (SMV_EXTENT_PAGES * 4096u)

struct smv_slots {
	uint64_t nr_extents;
	uint64_t *taken;      /* one bit per slot, 8 words per extent */
	uint16_t *nr_free_of; /* per extent */
	uint64_t hand;        /* extent to look in next */
	_Atomic uint64_t nr_free;
};

int smv_slots_create(uint64_t nr_extents, struct smv_slots *slots);
void smv_slots_destroy(struct smv_slots *slots);

/**
 * smv_slots_alloc - take up to @want slots that lie one behind the other in one extent.
 *
 * Goes round the extents, so neighbours stay neighbours. Returns how many were taken, from *@first;
 * 0 when all are taken.
 */
unsigned int smv_slots_alloc(struct smv_slots *slots, unsigned int want, uint64_t *first);

/** smv_slots_take - mark one free slot as taken (a map that somebody else made). -EEXIST, -ERANGE.
 */
int smv_slots_take(struct smv_slots *slots, uint64_t slot);
void smv_slots_free(struct smv_slots *slots, uint64_t slot);

#endif
