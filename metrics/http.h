/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /metrics over HTTP, for Prometheus. One thread answers one request after the other; what
 * takes long there delays nobody else.
 */
#ifndef SMV_METRICS_HTTP_H
#define SMV_METRICS_HTTP_H

#include "common/addr.h"
#include "common/error.h"
#include "metrics/metrics.h"

/** Adds the samples of one answer; the server's thread. */
typedef void (*smv_metrics_collect)(void *ctx, struct smv_metrics *metrics);

struct smv_metrics_server;

/** smv_metrics_addr_parse - HOST:PORT; a unix socket is refused. */
int smv_metrics_addr_parse(const char *text, struct smv_addr *addr, struct smv_error *err);

/** smv_metrics_serve - listen and answer; smv_metrics_add_program() comes before @collect.
 * @addr: its port 0 takes a free one. A name that stands for several addresses: the first that can
 * be had
 * @bound: gets the real address */
int smv_metrics_serve(const struct smv_addr *addr, smv_metrics_collect collect, void *ctx,
	struct smv_metrics_server **server, struct smv_addr *bound, struct smv_error *err);

/** smv_metrics_server_destroy - ends connections, waits for @collect to return. NULL is fine. */
void smv_metrics_server_destroy(struct smv_metrics_server *server);

#endif
