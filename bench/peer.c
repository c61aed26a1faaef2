/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/peer.h"

#include "common/clock.h"
#include "common/units.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define ANSWER_TIMEOUT_MS 5000
/* A deep queue of large requests on a slow link takes its time. */
#define REQUEST_TIMEOUT_MS 30000
#define ASK_AGAIN_MS 200

int smv_bench_link_open(struct smv_bench_link *link, const struct smv_bench_peer *peer,
	size_t buffer_bytes, unsigned int depth, struct smv_error *err)
{
	const struct smv_conn_options options = {.depth = depth,
		.timeout_ms = REQUEST_TIMEOUT_MS,
		.connect_timeout_ms = ANSWER_TIMEOUT_MS,
		.events_only = peer->events_only};
	int r;

	*link = (struct smv_bench_link){.bytes = buffer_bytes};
	link->buffer = mmap(NULL, buffer_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (link->buffer == MAP_FAILED) {
		link->buffer = NULL;
		return smv_fail(err, SMV_NO_ROOM, "no-memory", "Give a smaller --size or --depth.",
			"cannot map a buffer of %zu bytes", buffer_bytes);
	}
	r = smv_domain_create(peer->transport, &link->domain);
	if (r == 0)
		r = smv_region_register(link->domain, link->buffer, buffer_bytes, 0, &link->region);
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "register", NULL,
			"cannot register a buffer of %zu bytes with transport %s: %s", buffer_bytes,
			smv_transport_name(peer->transport), strerror(-r));
	/* Anybody is let in, but some transports do not carry empty private data. */
	return smv_connect(link->domain, &peer->addr, &(uint32_t){SMV_BENCH_HELLO},
		sizeof(uint32_t), &options, &link->conn, err);
}

void smv_bench_link_close(struct smv_bench_link *link)
{
	if (link->conn)
		smv_conn_close(link->conn);
	if (link->region)
		smv_region_deregister(link->region);
	if (link->domain)
		smv_domain_destroy(link->domain);
	if (link->buffer)
		munmap(link->buffer, link->bytes);
	*link = (struct smv_bench_link){0};
}

/* Returns the number of answers that came in time. */
static unsigned int collect_answers(struct smv_conn *conn, uint32_t *answers)
{
	uint64_t until = smv_now_ns() + ANSWER_TIMEOUT_MS * SMV_NS_PER_MS, ask_ns = 0;
	struct smv_completion c;
	unsigned int n = 0;

	while (smv_now_ns() < until) {
		int r;

		if (n == 0 && smv_now_ns() >= ask_ns) {
			smv_conn_notify(conn, SMV_BENCH_HELLO);
			ask_ns = smv_now_ns() + ASK_AGAIN_MS * SMV_NS_PER_MS;
		}
		r = smv_conn_poll(conn, &c, 1);
		while (n < SMV_BENCH_NR_ANSWERS && smv_conn_next_notification(conn, &answers[n]))
			n++;
		if (r < 0 || n == SMV_BENCH_NR_ANSWERS)
			break;
		smv_conn_wait(conn, ASK_AGAIN_MS);
	}
	return n;
}

static int ask(struct smv_bench_peer *peer, struct smv_error *err)
{
	uint32_t a[SMV_BENCH_NR_ANSWERS] = {0};
	struct smv_bench_link link;
	char text[SMV_ADDR_MAX];
	unsigned int n = 0;
	int r = smv_bench_link_open(&link, peer, 4096, 1, err);

	if (r == 0)
		n = collect_answers(link.conn, a);
	smv_bench_link_close(&link);
	if (r < 0)
		return r;
	if (n != SMV_BENCH_NR_ANSWERS || a[0] != SMV_BENCH_HELLO)
		return smv_fail(err, SMV_UNAVAILABLE, "no-bench-server",
			"Start 'smemv-bench serve' there; a memserverd is no server for this.",
			"%s does not say where its memory is",
			smv_addr_format(&peer->addr, text, sizeof(text)));
	peer->info.rkey = a[1] | (uint64_t)a[2] << 32;
	peer->info.remote_addr = a[3] | (uint64_t)a[4] << 32;
	peer->size_bytes = a[5] | (uint64_t)a[6] << 32;
	return 0;
}

int smv_bench_peer_open(struct smv_bench_peer *peer, const struct smv_bench_options *o,
	uint64_t min_bytes, struct smv_error *err)
{
	char why[200], have[32], need[32];
	int r = 0;

	*peer = (struct smv_bench_peer){
		.transport = o->transport, .addr = o->addr, .events_only = o->events};
	if (!smv_transport_available(o->transport, why, sizeof(why)))
		return smv_fail(err, SMV_UNAVAILABLE, "no-transport", NULL,
			"transport %s cannot be used here: %s", smv_transport_name(o->transport),
			why);
	if (o->own_server) {
		r = smv_bench_server_start(&peer->own, o->transport, &o->addr, min_bytes, err);
		peer->addr = peer->own.addr;
	}
	if (r == 0)
		r = ask(peer, err);
	if (r == 0 && peer->size_bytes < min_bytes)
		return smv_fail(err, SMV_NO_ROOM, "server-too-small",
			"Start the server with a larger --size.",
			"the server offers %s, this needs %s",
			smv_format_size(peer->size_bytes, have, sizeof(have)),
			smv_format_size(min_bytes, need, sizeof(need)));
	return r;
}

void smv_bench_peer_close(struct smv_bench_peer *peer)
{
	smv_bench_server_stop(&peer->own);
}
