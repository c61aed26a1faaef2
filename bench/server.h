/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plain data server: one domain, one region of zeros that everybody who connects may read and
 * write. A client needs its address only: it notifies SMV_BENCH_HELLO and the server answers with
 * SMV_BENCH_NR_ANSWERS notifications: SMV_BENCH_HELLO, then rkey, address and size of the region,
 * each as its lower and its upper 32 bits. A client that hears nothing asks again.
 */
#ifndef SMV_BENCH_SERVER_H
#define SMV_BENCH_SERVER_H

#include "transport/transport.h"

#define SMV_BENCH_HELLO 0x31484253u /* "SBH1" */
#define SMV_BENCH_NR_ANSWERS 7

struct smv_bench_server {
	struct smv_domain *domain;
	struct smv_region *region;
	struct smv_listener *listener;
	struct smv_addr addr; /* where it listens */
	void *memory;
	size_t bytes;
};

/** smv_bench_server_start - @server stays where it is until smv_bench_server_stop(), which is fine
 * after a failure, too. */
int smv_bench_server_start(struct smv_bench_server *server, const struct smv_transport *t,
	const struct smv_addr *addr, size_t bytes, struct smv_error *err);
void smv_bench_server_stop(struct smv_bench_server *server);

#endif
