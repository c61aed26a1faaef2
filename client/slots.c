/* SPDX-License-Identifier: Apache-2.0 */
#include "client/slots.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORDS_PER_EXTENT (SMV_EXTENT_PAGES / 64)

int smv_slots_create(uint64_t nr_extents, struct smv_slots *slots)
{
	memset(slots, 0, sizeof(*slots));
	pthread_mutex_init(&slots->lock, NULL);
	slots->taken = calloc(nr_extents ? nr_extents : 1, WORDS_PER_EXTENT * sizeof(uint64_t));
	slots->nr_free_of = malloc((nr_extents ? nr_extents : 1) * sizeof(uint16_t));
	slots->closed = calloc(nr_extents ? nr_extents : 1, sizeof(bool));
	if (!slots->taken || !slots->nr_free_of || !slots->closed) {
		smv_slots_destroy(slots);
		return -ENOMEM;
	}
	for (uint64_t e = 0; e < nr_extents; e++)
		slots->nr_free_of[e] = SMV_EXTENT_PAGES;
	slots->nr_extents = nr_extents;
	atomic_store(&slots->nr_free, nr_extents * SMV_EXTENT_PAGES);
	return 0;
}

void smv_slots_destroy(struct smv_slots *slots)
{
	if (slots->taken)
		pthread_mutex_destroy(&slots->lock);
	free(slots->taken);
	free(slots->nr_free_of);
	free(slots->closed);
	memset(slots, 0, sizeof(*slots));
}

static bool is_taken(const struct smv_slots *slots, uint64_t slot)
{
	return slots->taken[slot / 64] >> (slot % 64) & 1;
}

static void mark_taken(struct smv_slots *slots, uint64_t slot)
{
	slots->taken[slot / 64] |= 1ull << (slot % 64);
	slots->nr_free_of[slot / SMV_EXTENT_PAGES]--;
	atomic_fetch_sub_explicit(&slots->nr_free, 1, memory_order_relaxed);
}

static uint64_t first_free_in(const struct smv_slots *slots, uint64_t extent)
{
	for (uint64_t w = extent * WORDS_PER_EXTENT;; w++) {
		assert(w < (extent + 1) * WORDS_PER_EXTENT);
		if (~slots->taken[w])
			return w * 64 + (uint64_t)__builtin_ctzll(~slots->taken[w]);
	}
}

static unsigned int alloc_locked(struct smv_slots *slots, unsigned int want, uint64_t *first)
{
	for (uint64_t tried = 0; tried < slots->nr_extents && want; tried++) {
		uint64_t extent = slots->hand, end = (extent + 1) * SMV_EXTENT_PAGES, slot;
		unsigned int n = 0;

		if (slots->nr_free_of[extent] == 0 || slots->closed[extent]) {
			slots->hand = (extent + 1) % slots->nr_extents;
			continue;
		}
		*first = slot = first_free_in(slots, extent);
		while (n < want && slot < end && !is_taken(slots, slot)) {
			mark_taken(slots, slot++);
			n++;
		}
		return n;
	}
	return 0;
}

unsigned int smv_slots_alloc(struct smv_slots *slots, unsigned int want, uint64_t *first)
{
	unsigned int n;

	pthread_mutex_lock(&slots->lock);
	n = alloc_locked(slots, want, first);
	pthread_mutex_unlock(&slots->lock);
	return n;
}

int smv_slots_take(struct smv_slots *slots, uint64_t slot)
{
	int r = 0;

	if (slot >= slots->nr_extents * SMV_EXTENT_PAGES)
		return -ERANGE;
	pthread_mutex_lock(&slots->lock);
	if (is_taken(slots, slot))
		r = -EEXIST;
	else
		mark_taken(slots, slot);
	pthread_mutex_unlock(&slots->lock);
	return r;
}

void smv_slots_free(struct smv_slots *slots, uint64_t slot)
{
	pthread_mutex_lock(&slots->lock);
	assert(slot < slots->nr_extents * SMV_EXTENT_PAGES && is_taken(slots, slot));
	slots->taken[slot / 64] &= ~(1ull << (slot % 64));
	slots->nr_free_of[slot / SMV_EXTENT_PAGES]++;
	atomic_fetch_add_explicit(&slots->nr_free, 1, memory_order_relaxed);
	pthread_mutex_unlock(&slots->lock);
}

void smv_slots_close(struct smv_slots *slots, uint64_t extent, bool closed)
{
	slots->closed[extent] = closed;
}
