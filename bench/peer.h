/* SPDX-License-Identifier: Apache-2.0 */
/* The server that a measurement runs against, and connections to it. */
#ifndef SMV_BENCH_PEER_H
#define SMV_BENCH_PEER_H

#include "bench/bench.h"
#include "bench/server.h"

struct smv_bench_peer {
	const struct smv_transport *transport;
	struct smv_addr addr;
	struct smv_region_info info; /* of its memory */
	uint64_t size_bytes;
	bool events_only; /* of links that are opened from now on: they sleep, and never poll on */
	struct smv_bench_server own; /* where the server is in this process */
};

/** smv_bench_peer_open - start a server here if the options say so; learn where its memory is.
 * @min_bytes: so much of it is needed. smv_bench_peer_close() is fine after a failure, too. */
int smv_bench_peer_open(struct smv_bench_peer *peer, const struct smv_bench_options *o,
	uint64_t min_bytes, struct smv_error *err);
void smv_bench_peer_close(struct smv_bench_peer *peer);

/* A connection with a registered buffer. */
struct smv_bench_link {
	struct smv_domain *domain;
	struct smv_region *region;
	struct smv_conn *conn;
	void *buffer; /* page-aligned */
	size_t bytes;
};

/** smv_bench_link_open - smv_bench_link_close() is fine after a failure, too. */
int smv_bench_link_open(struct smv_bench_link *link, const struct smv_bench_peer *peer,
	size_t buffer_bytes, unsigned int depth, struct smv_error *err);
void smv_bench_link_close(struct smv_bench_link *link);

#endif
