/* SPDX-License-Identifier: Apache-2.0 */
/* What smemv-pagerd tells Prometheus: its VMs, their sub-hosts and leases. */
#ifndef SMV_PAGERD_METRICS_H
#define SMV_PAGERD_METRICS_H

#include "metrics/metrics.h"

/** smv_pagerd_collect - an smv_metrics_collect. A VM that is busy for seconds, for instance because
 * its migration is being prepared, is left out and counted. */
void smv_pagerd_collect(void *ctx, struct smv_metrics *metrics);

#endif
