/* SPDX-License-Identifier: Apache-2.0 */
/* "smemv-migrate plan": what a migration with these options would do, and what stands in its way.
 */
#ifndef SMV_MIGRATOR_PLAN_H
#define SMV_MIGRATOR_PLAN_H

#include "migrator/run.h"

/** smv_plan - look at the source, ask the main host, watch the VM for two seconds, and print.
 * Nothing is leased, stopped or kept. Returns the exit status: 0 it would be tried, 4 it would be
 * refused, 1 it cannot be told. */
int smv_plan(const struct smv_run_options *options, bool json);

#endif
