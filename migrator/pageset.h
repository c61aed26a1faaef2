/* SPDX-License-Identifier: Apache-2.0 */
/* A set of a VM's pages: one bit each. */
#ifndef SMV_MIGRATOR_PAGESET_H
#define SMV_MIGRATOR_PAGESET_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct smv_pageset {
	uint64_t *bits;
	uint64_t nr_pages;
};

static inline int smv_pageset_create(uint64_t nr_pages, struct smv_pageset *set)
{
	set->nr_pages = nr_pages;
	set->bits = calloc(nr_pages / 64 + 1, sizeof(uint64_t));
	return set->bits ? 0 : -ENOMEM;
}

static inline void smv_pageset_destroy(struct smv_pageset *set)
{
	free(set->bits);
	set->bits = NULL;
}

static inline void smv_pageset_clear(struct smv_pageset *set)
{
	memset(set->bits, 0, (set->nr_pages / 64 + 1) * sizeof(uint64_t));
}

static inline bool smv_pageset_has(const struct smv_pageset *set, uint64_t page)
{
	return set->bits[page / 64] >> (page % 64) & 1;
}

static inline void smv_pageset_add(struct smv_pageset *set, uint64_t page)
{
	set->bits[page / 64] |= 1ull << (page % 64);
}

static inline uint64_t smv_pageset_count(const struct smv_pageset *set)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i <= set->nr_pages / 64; i++)
		n += (uint64_t)__builtin_popcountll(set->bits[i]);
	return n;
}

/** smv_pageset_next - the first page of the set that is not below @from; nr_pages when there is
 * none. */
static inline uint64_t smv_pageset_next(const struct smv_pageset *set, uint64_t from)
{
	uint64_t i = from / 64, word;

	if (from >= set->nr_pages)
		return set->nr_pages;
	word = set->bits[i] & ~0ull << (from % 64);
	while (!word) {
		if (++i > set->nr_pages / 64)
			return set->nr_pages;
		word = set->bits[i];
	}
	return i * 64 + (uint64_t)__builtin_ctzll(word);
}

#endif
