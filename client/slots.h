/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which slots (room for one page each on the sub-hosts) are taken. The source allocates and frees
 * while it migrates, the main host afterwards; there any thread may: the evictor allocates, and
 * it, the discards and the fault thread free.
 */
#ifndef SMV_CLIENT_SLOTS_H
#define SMV_CLIENT_SLOTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SMV_EXTENT_PAGES 512u
#define SMV_EXTENT_BYTES (SMV_EXTENT_PAGES * 4096u)

struct smv_slots {
	uint64_t nr_extents;
	/* Guards what follows; taken inside a page's lock. Reading nr_free needs no lock. */
	pthread_mutex_t lock;
	uint64_t *taken;      /* one bit per slot, 8 words per extent */
	uint16_t *nr_free_of; /* per extent */
	bool *closed;         /* per extent: none of its slots is given out */
	uint64_t hand;        /* extent to look in next */
	_Atomic uint64_t nr_free;
};

int smv_slots_create(uint64_t nr_extents, struct smv_slots *slots);
void smv_slots_destroy(struct smv_slots *slots);

/**
 * smv_slots_alloc - take up to @want slots that lie one behind the other in one extent.
 *
 * Goes round the extents, so neighbours stay neighbours. Returns how many were taken, from *@first;
 * 0 when all are taken or closed.
 */
unsigned int smv_slots_alloc(struct smv_slots *slots, unsigned int want, uint64_t *first);

/** smv_slots_take - mark one free slot as taken (a map that somebody else made). -EEXIST, -ERANGE.
 */
int smv_slots_take(struct smv_slots *slots, uint64_t slot);
void smv_slots_free(struct smv_slots *slots, uint64_t slot);

/** smv_slots_close - whether the slots of an extent are not to be given out; they can be taken and
 * freed as before. */
void smv_slots_close(struct smv_slots *slots, uint64_t extent, bool closed);

static inline bool smv_slots_is_closed(const struct smv_slots *slots, uint64_t slot)
{
	return slots->closed[slot / SMV_EXTENT_PAGES];
}

#endif
