/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/server.h"

#include "bench/bench.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

static int on_connect(void *ctx, struct smv_conn *conn, const void *private_data,
	size_t private_len, struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	struct smv_bench_server *s = ctx;

	(void)conn;
	(void)private_data;
	(void)private_len;
	*domain = s->domain;
	*access = SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE;
	*conn_ctx = s;
	return 0;
}

/* The client may be faster than the news that its connection is established. */
static void on_notify(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t imm)
{
	const struct smv_bench_server *s = ctx;
	struct smv_region_info info;
	int r = imm == SMV_BENCH_HELLO ? smv_conn_notify(conn, SMV_BENCH_HELLO) : -EPROTO;

	(void)conn_ctx;
	if (r == -EAGAIN)
		return; /* it asks again */
	smv_region_info(s->region, &info);
	const uint64_t values[] = {info.rkey, info.remote_addr, s->bytes};

	for (unsigned int i = 0; i < SMV_BENCH_NR_ANSWERS - 1 && r == 0; i++)
		r = smv_conn_notify(conn, (uint32_t)(values[i / 2] >> i % 2 * 32));
	if (r < 0)
		smv_conn_close(conn);
}

static int no_memory(size_t bytes, int errnum, const char *what, struct smv_error *err)
{
	return smv_fail(err, SMV_NO_ROOM, "no-memory", "Give a smaller --size.",
		"cannot %s %zu bytes of memory to serve: %s", what, bytes, strerror(errnum));
}

int smv_bench_server_start(struct smv_bench_server *s, const struct smv_transport *t,
	const struct smv_addr *addr, size_t bytes, struct smv_error *err)
{
	const struct smv_listener_handler handler = {
		.ctx = s, .connect = on_connect, .notify = on_notify};
	int r;

	*s = (struct smv_bench_server){.bytes = bytes};
	/* Populated, or the first requests would measure page faults of the server. */
	s->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (s->memory == MAP_FAILED) {
		s->memory = NULL;
		return no_memory(bytes, errno, "map", err);
	}
	r = smv_domain_create(t, &s->domain);
	if (r == 0)
		r = smv_region_register(s->domain, s->memory, bytes,
			SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE, &s->region);
	if (r < 0)
		return no_memory(bytes, -r, "register", err);
	return smv_listen(t, addr, &handler, &s->listener, &s->addr, err);
}

void smv_bench_server_stop(struct smv_bench_server *s)
{
	if (s->listener)
		smv_listener_close(s->listener);
	if (s->region)
		smv_region_deregister(s->region);
	if (s->domain)
		smv_domain_destroy(s->domain);
	if (s->memory)
		munmap(s->memory, s->bytes);
	*s = (struct smv_bench_server){0};
}

int smv_bench_serve(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	struct smv_bench_server server;
	char text[SMV_ADDR_MAX];
	sigset_t set;
	int sig, r;

	(void)out;
	/* Blocked before any thread starts, so that all inherit it and sigwait() gets them. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	r = smv_bench_server_start(&server, o->transport, &o->addr, o->size_bytes, err);
	if (r == 0) {
		printf("listening on %s\n", smv_addr_format(&server.addr, text, sizeof(text)));
		fflush(stdout);
		while (sigwait(&set, &sig) != 0)
			;
	}
	smv_bench_server_stop(&server);
	return r;
}
