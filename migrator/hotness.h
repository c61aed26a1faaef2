/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages the VM is likely to touch soon. */
#ifndef SMV_MIGRATOR_HOTNESS_H
#define SMV_MIGRATOR_HOTNESS_H

#include "migrator/pageset.h"
#include "migrator/source.h"

#define SMV_HOTNESS_SAMPLES 5
#define SMV_HOTNESS_SAMPLE_MS 200

/** smv_hotness_look - @samples times: drop the page-table entries (the data stays in the file), let
 * the VM run for SMV_HOTNESS_SAMPLE_MS, count in @touches the pages that have one again. */
int smv_hotness_look(
	struct smv_source *source, unsigned int samples, uint8_t *touches, struct smv_error *err);

/**
 * smv_hotness_sample - choose the pages for the main host.
 * @credit: how many at most
 * @hot: gets them: the most often touched ones of a few samples, then other populated pages
 */
int smv_hotness_sample(
	struct smv_source *source, uint64_t credit, struct smv_pageset *hot, struct smv_error *err);

/** smv_hotness_choose - the choice alone: up to @credit of the @populated pages, by touches. */
void smv_hotness_choose(const uint8_t *touches, const struct smv_pageset *populated,
	uint64_t credit, struct smv_pageset *hot);

#endif
