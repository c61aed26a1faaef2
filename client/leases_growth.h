/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Further leases for a VM whose leases are in use: made and written down beside them, then taken
 * over in a moment in which nobody uses the backing. Slots keep their numbers and places; the new
 * extents stand behind the old ones, and a sub-host may stand in the backing twice.
 */
#ifndef SMV_CLIENT_LEASES_GROWTH_H
#define SMV_CLIENT_LEASES_GROWTH_H

#include "client/leases.h"

struct smv_leases_growth {
	struct smv_leases more; /* the new ones alone */
	struct smv_backing more_backing;
	/* Old and new, as they will be: to be held and written down. What hangs in single leases
	 * and sub-hosts is shared with the old ones and the above. */
	struct smv_leases all;
	struct smv_backing all_backing;
};

/** smv_leases_grow - see smv_leases_create_more(). On failure nothing is left to free, and nothing
 * stays leased. */
int smv_leases_grow(const struct smv_leases *leases, const char *owner, uint64_t bytes,
	struct smv_leases_growth *growth, struct smv_error *err);

/** smv_leases_adopt - make old and new ones the VM's. No connection over @backing may be open.
 * Cannot fail; @growth is empty then. */
void smv_leases_adopt(
	struct smv_leases *leases, struct smv_backing *backing, struct smv_leases_growth *growth);

/** smv_leases_growth_free - instead: drop it. Gives no lease back, see smv_leases_release_try(). */
void smv_leases_growth_free(struct smv_leases_growth *growth);

/** smv_leases_split - move what stands from index @nr on into @rest and @rest_backing. -ENOMEM:
 * nothing is changed. No extent may lie there. */
int smv_leases_split(struct smv_leases *leases, struct smv_backing *backing, unsigned int nr,
	struct smv_leases *rest, struct smv_backing *rest_backing);

#endif
