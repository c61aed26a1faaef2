/* SPDX-License-Identifier: Apache-2.0 */
/* What memserverd tells Prometheus: its arena and its leases. */
#ifndef SMV_MEMSERVER_METRICS_H
#define SMV_MEMSERVER_METRICS_H

#include "metrics/metrics.h"

/** smv_mem_server_collect - an smv_metrics_collect; @server: a struct smv_mem_server. */
void smv_mem_server_collect(void *server, struct smv_metrics *metrics);

#endif
