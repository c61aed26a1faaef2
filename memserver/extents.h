/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which extents of an arena are free. Extents are numbered from 0. Not thread-safe.
 */
#ifndef SMV_MEMSERVER_EXTENTS_H
#define SMV_MEMSERVER_EXTENTS_H

#include <stddef.h>
#include <stdint.h>

struct smv_extents;

/* Contiguous extents. */
struct smv_extent_run {
	size_t first;
	size_t nr;
};

/** smv_extents_create - @nr extents, all of them free; NULL without memory. */
struct smv_extents *smv_extents_create(size_t nr);
void smv_extents_destroy(struct smv_extents *extents);

size_t smv_extents_nr_free(const struct smv_extents *extents);

/**
 * smv_extents_alloc - take @nr extents in as few runs as possible.
 * @max_run: extents per run at most
 * @runs: gets an array for the caller to free(), ordered by position
 *
 * It succeeds whenever @nr extents are free, however scattered; -ENOSPC otherwise, -ENOMEM.
 */
int smv_extents_alloc(struct smv_extents *extents, size_t nr, size_t max_run,
	struct smv_extent_run **runs, size_t *nr_runs);

/** smv_extents_take - take just these runs, which must be free. */
void smv_extents_take(
	struct smv_extents *extents, const struct smv_extent_run *runs, size_t nr_runs);

/** smv_extents_free - give back runs that smv_extents_alloc() handed out. */
void smv_extents_free(
	struct smv_extents *extents, const struct smv_extent_run *runs, size_t nr_runs);

#endif
