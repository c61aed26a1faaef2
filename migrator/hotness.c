/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/hotness.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "migrator/tracker.h"

void smv_hotness_choose(const uint8_t *touches, const struct smv_pageset *populated,
	uint64_t credit, struct smv_pageset *hot)
{
	/* A page counts at most SMV_HOTNESS_SAMPLES touches, so a counting sort needs a pass per
	 * count. */
	for (int want = SMV_HOTNESS_SAMPLES; want >= 0 && credit; want--) {
		uint64_t p = smv_pageset_next(populated, 0);

		for (; p < populated->nr_pages && credit; p = smv_pageset_next(populated, p + 1)) {
			if (touches[p] == want) {
				smv_pageset_add(hot, p);
				credit--;
			}
		}
	}
}

int smv_hotness_look(
	struct smv_source *source, unsigned int samples, uint8_t *touches, struct smv_error *err)
{
	int r = 0;

	for (unsigned int i = 0; i < samples && r == 0; i++) {
		if ((r = smv_source_zap(source, err)) < 0)
			break;
		smv_sleep_ms(SMV_HOTNESS_SAMPLE_MS);
		r = smv_tracker_present(source, touches, err);
	}
	return r;
}

int smv_hotness_sample(
	struct smv_source *source, uint64_t credit, struct smv_pageset *hot, struct smv_error *err)
{
	CLEANUP_FREE uint8_t *touches = calloc(source->ram.nr_pages, 1);
	struct smv_pageset populated = {0};
	int r;

	if (!touches || smv_pageset_create(source->ram.nr_pages, &populated) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	r = smv_hotness_look(source, SMV_HOTNESS_SAMPLES, touches, err);
	if (r == 0)
		r = smv_tracker_populated(source, &populated, err);
	if (r == 0)
		smv_hotness_choose(touches, &populated, credit, hot);
	smv_pageset_destroy(&populated);
	return r;
}
