/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/refusals.h"

#include <stdlib.h>
#include <string.h>

void smv_refusals_add(struct smv_refusals *refusals, const struct smv_error *error)
{
	struct smv_error *list;

	for (size_t i = 0; i < refusals->nr; i++)
		if (strcmp(refusals->list[i].reason, error->reason) == 0 &&
			strcmp(refusals->list[i].message, error->message) == 0)
			return;
	list = realloc(refusals->list, (refusals->nr + 1) * sizeof(*list));
	if (!list) {
		refusals->incomplete = true;
		return;
	}
	list[refusals->nr++] = *error;
	refusals->list = list;
}

int smv_refusals_take(struct smv_refusals *refusals, const struct smv_error *error)
{
	if (error->code == SMV_UNAVAILABLE || error->code == SMV_TIMEOUT)
		return -1;
	smv_refusals_add(refusals, error);
	return 0;
}

bool smv_refusals_have(const struct smv_refusals *refusals, const char *reason)
{
	for (size_t i = 0; i < refusals->nr; i++)
		if (strcmp(refusals->list[i].reason, reason) == 0)
			return true;
	return false;
}

void smv_refusals_drop(struct smv_refusals *refusals, const char *reason)
{
	size_t kept = 0;

	for (size_t i = 0; i < refusals->nr; i++)
		if (strcmp(refusals->list[i].reason, reason) != 0)
			refusals->list[kept++] = refusals->list[i];
	refusals->nr = kept;
}

void smv_refusals_free(struct smv_refusals *refusals)
{
	free(refusals->list);
	*refusals = (struct smv_refusals){0};
}
