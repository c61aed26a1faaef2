/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/extents.h"

#include "common/cleanup.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

struct smv_extents {
	size_t nr;
	size_t nr_free;
	bool taken[]; /* neighbours that become free merge by themselves */
};

struct smv_extents *smv_extents_create(size_t nr)
{
	struct smv_extents *e = calloc(1, sizeof(*e) + nr * sizeof(e->taken[0]));

	if (e)
		e->nr = e->nr_free = nr;
	return e;
}

void smv_extents_destroy(struct smv_extents *extents)
{
	free(extents);
}

size_t smv_extents_nr_free(const struct smv_extents *extents)
{
	return extents->nr_free;
}

static void mark(struct smv_extents *e, const struct smv_extent_run *run, bool taken)
{
	for (size_t i = run->first; i < run->first + run->nr; i++) {
		assert(e->taken[i] != taken);
		e->taken[i] = taken;
	}
	e->nr_free = taken ? e->nr_free - run->nr : e->nr_free + run->nr;
}

/* The next free run at or behind @from, of at most @max extents; nr is 0 at the end. */
static struct smv_extent_run next_free(const struct smv_extents *e, size_t from, size_t max)
{
	struct smv_extent_run run;

	while (from < e->nr && e->taken[from])
		from++;
	run = (struct smv_extent_run){.first = from};
	while (run.nr < max && from + run.nr < e->nr && !e->taken[from + run.nr])
		run.nr++;
	return run;
}

static size_t collect_free(const struct smv_extents *e, size_t max_run, struct smv_extent_run *runs)
{
	struct smv_extent_run run;
	size_t n = 0;

	for (size_t at = 0; (run = next_free(e, at, max_run)).nr; at = run.first + run.nr) {
		if (runs)
			runs[n] = run;
		n++;
	}
	return n;
}

static int by_position(const void *a, const void *b)
{
	const struct smv_extent_run *x = a, *y = b;

	return (x->first > y->first) - (x->first < y->first);
}

static int by_size_descending(const void *a, const void *b)
{
	const struct smv_extent_run *x = a, *y = b;

	return x->nr != y->nr ? (x->nr < y->nr) - (x->nr > y->nr) : by_position(a, b);
}

/* Largest runs first needs the fewest; the rest, which needs only a part of a run, is cut from the
 * smallest that holds it, so that large runs stay whole. Returns the number of runs used. */
static size_t choose(struct smv_extent_run *free_runs, size_t nr_runs, size_t want)
{
	size_t used = 0, best;

	while (want > 0 && free_runs[used].nr <= want)
		want -= free_runs[used++].nr;
	if (want == 0)
		return used;
	best = used;
	for (size_t i = used; i < nr_runs && free_runs[i].nr >= want; i++)
		if (free_runs[i].nr < free_runs[best].nr)
			best = i;
	free_runs[used] = (struct smv_extent_run){free_runs[best].first, want};
	return used + 1;
}

int smv_extents_alloc(struct smv_extents *extents, size_t nr, size_t max_run,
	struct smv_extent_run **runs, size_t *nr_runs)
{
	CLEANUP_FREE struct smv_extent_run *found = NULL;
	size_t nr_found, used;

	assert(nr > 0 && max_run > 0);
	if (nr > extents->nr_free)
		return -ENOSPC;
	nr_found = collect_free(extents, max_run, NULL);
	found = calloc(nr_found, sizeof(*found));
	if (!found)
		return -ENOMEM;
	collect_free(extents, max_run, found);
	qsort(found, nr_found, sizeof(*found), by_size_descending);
	used = choose(found, nr_found, nr);
	qsort(found, used, sizeof(*found), by_position);
	for (size_t i = 0; i < used; i++)
		mark(extents, &found[i], true);
	*nr_runs = used;
	*runs = smv_take(found);
	return 0;
}

void smv_extents_take(
	struct smv_extents *extents, const struct smv_extent_run *runs, size_t nr_runs)
{
	for (size_t i = 0; i < nr_runs; i++)
		mark(extents, &runs[i], true);
}

void smv_extents_free(
	struct smv_extents *extents, const struct smv_extent_run *runs, size_t nr_runs)
{
	for (size_t i = 0; i < nr_runs; i++)
		mark(extents, &runs[i], false);
}
