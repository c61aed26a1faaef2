/* SPDX-License-Identifier: Apache-2.0 */
#include "client/leases_growth.h"

#include "client/leases_state.h"
#include "common/cleanup.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A new array: @nr_a elements of @a, then @nr_b of @b. */
static void *concat(const void *a, size_t nr_a, const void *b, size_t nr_b, size_t size)
{
	char *all = calloc(nr_a + nr_b + 1, size);

	if (!all)
		return NULL;
	if (nr_a)
		memcpy(all, a, nr_a * size);
	if (nr_b)
		memcpy(all + nr_a * size, b, nr_b * size);
	return all;
}

static void free_arrays(struct smv_leases *leases, struct smv_backing *backing)
{
	free(smv_take(leases->leases));
	free(smv_take(backing->sub_hosts));
	free(smv_take(backing->extents));
}

static int join(const struct smv_leases *old, struct smv_leases_growth *g)
{
	const struct smv_backing *old_backing = old->backing;

	g->all = (struct smv_leases){.nr = old->nr + g->more.nr,
		.epoch = old->epoch,
		.timeout_ms = old->timeout_ms,
		.leases = concat(
			old->leases, old->nr, g->more.leases, g->more.nr, sizeof(*old->leases))};
	g->all_backing = *old_backing;
	g->all_backing.nr_sub_hosts += g->more_backing.nr_sub_hosts;
	g->all_backing.sub_hosts =
		concat(old_backing->sub_hosts, old_backing->nr_sub_hosts, g->more_backing.sub_hosts,
			g->more_backing.nr_sub_hosts, sizeof(*old_backing->sub_hosts));
	g->all_backing.nr_extents += g->more_backing.nr_extents;
	g->all_backing.extents = concat(old_backing->extents, old_backing->nr_extents,
		g->more_backing.extents, g->more_backing.nr_extents, sizeof(*old_backing->extents));
	if (!g->all.leases || !g->all_backing.sub_hosts || !g->all_backing.extents)
		return -ENOMEM;
	for (uint64_t x = old_backing->nr_extents; x < g->all_backing.nr_extents; x++)
		g->all_backing.extents[x].sub_host += (uint16_t)old->nr;
	return 0;
}

int smv_leases_grow(const struct smv_leases *leases, const char *owner, uint64_t bytes,
	struct smv_leases_growth *g, struct smv_error *err)
{
	int r = smv_leases_create_more(leases, owner, bytes, &g->more, &g->more_backing, err);

	if (r < 0)
		return r;
	r = join(leases, g);
	if (r == 0)
		return 0;
	smv_leases_release_try(&g->more, &g->more_backing);
	smv_leases_growth_free(g);
	return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

void smv_leases_adopt(
	struct smv_leases *leases, struct smv_backing *backing, struct smv_leases_growth *g)
{
	free_arrays(leases, backing);
	leases->leases = g->all.leases;
	leases->nr = g->all.nr;
	*backing = g->all_backing;
	smv_leases_bind(leases, backing);
	/* What hung in the new ones hangs here now. */
	free_arrays(&g->more, &g->more_backing);
	pthread_mutex_destroy(&g->more.nonce_lock);
	memset(g, 0, sizeof(*g));
}

void smv_leases_growth_free(struct smv_leases_growth *g)
{
	free_arrays(&g->all, &g->all_backing);
	smv_leases_forget(&g->more, &g->more_backing);
	memset(g, 0, sizeof(*g));
}

int smv_leases_split(struct smv_leases *leases, struct smv_backing *backing, unsigned int nr,
	struct smv_leases *rest, struct smv_backing *rest_backing)
{
	unsigned int nr_rest = leases->nr - nr;

	assert(nr <= leases->nr);
	memset(rest, 0, sizeof(*rest));
	memset(rest_backing, 0, sizeof(*rest_backing));
	rest->leases = concat(leases->leases + nr, nr_rest, NULL, 0, sizeof(*rest->leases));
	rest_backing->sub_hosts =
		concat(backing->sub_hosts + nr, nr_rest, NULL, 0, sizeof(*rest_backing->sub_hosts));
	if (!rest->leases || !rest_backing->sub_hosts) {
		free_arrays(rest, rest_backing);
		return -ENOMEM;
	}
	pthread_mutex_init(&rest->nonce_lock, NULL);
	rest->nr = rest_backing->nr_sub_hosts = nr_rest;
	rest->epoch = leases->epoch;
	rest->timeout_ms = leases->timeout_ms;
	rest_backing->transport = backing->transport;
	smv_leases_bind(rest, rest_backing);
	leases->nr = backing->nr_sub_hosts = nr;
	return 0;
}
