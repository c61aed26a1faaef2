/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages of the source exist, were touched, were written. */
#ifndef SMV_MIGRATOR_TRACKER_H
#define SMV_MIGRATOR_TRACKER_H

#include "migrator/pageset.h"
#include "migrator/source.h"

/** smv_tracker_arm - write-protect all pages: from now on a write is recorded. */
int smv_tracker_arm(struct smv_source *source, struct smv_error *err);

/** smv_tracker_collect - add the pages written since they were last armed to @set and arm them
 * again in the same step. Read a page only after it was collected, and never zap in between: some
 * kernels then take a written page for clean. */
int smv_tracker_collect(struct smv_source *source, struct smv_pageset *set, struct smv_error *err);

/** smv_tracker_present - count one more touch, up to 255, for each page with a page-table entry. */
int smv_tracker_present(struct smv_source *source, uint8_t *touches, struct smv_error *err);

/** smv_tracker_populated - add the pages for which the RAM files hold data. */
int smv_tracker_populated(
	const struct smv_source *source, struct smv_pageset *set, struct smv_error *err);

#endif
