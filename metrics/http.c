/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics/http.h"

#include "common/cleanup.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define CONNECTIONS_MAX 16
#define TIMEOUT_S 10
#define CONNECTION_MEMORY ((size_t)16 * 1024) /* for a request's line and headers */

struct smv_metrics_server {
	struct MHD_Daemon *daemon;
	smv_metrics_collect collect;
	void *ctx;
	time_t started;
};

int smv_metrics_addr_parse(const char *text, struct smv_addr *addr, struct smv_error *err)
{
	int r = smv_addr_parse(text, false, addr, err);

	if (r == 0 && addr->is_unix)
		return smv_fail(err, SMV_INVALID, "bad-address", "Write HOST:PORT.",
			"metrics address '%s' is a unix socket", text);
	return r;
}

/* --- answers ------------------------------------------------------------------------------ */

/* @text: malloc'ed; it is freed */
static enum MHD_Result answer_with(
	struct MHD_Connection *c, unsigned int status, const char *type, char *text, size_t len)
{
	struct MHD_Response *response =
		MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
	enum MHD_Result r;

	if (!response) {
		free(text);
		return MHD_NO;
	}
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	r = MHD_queue_response(c, status, response);
	MHD_destroy_response(response);
	return r;
}

static enum MHD_Result answer_error(struct MHD_Connection *c, unsigned int status, const char *text)
{
	char *copy = strdup(text);

	return copy ? answer_with(c, status, "text/plain; charset=utf-8", copy, strlen(copy))
		    : MHD_NO;
}

static enum MHD_Result answer_metrics(struct smv_metrics_server *s, struct MHD_Connection *c)
{
	struct smv_metrics *metrics = smv_metrics_create();
	char *text = NULL;
	size_t len = 0;

	if (metrics) {
		smv_metrics_add_program(metrics, s->started);
		s->collect(s->ctx, metrics);
		text = smv_metrics_text(metrics, &len);
	}
	smv_metrics_destroy(metrics);
	if (!text)
		return answer_error(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
	return answer_with(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text, len);
}

/* Answered as soon as the headers are there: a body is not waited for, its connection ends. */
static enum MHD_Result answer(void *server, struct MHD_Connection *c, const char *url,
	const char *method, const char *version, const char *upload_data, size_t *upload_data_size,
	void **request_ctx)
{
	(void)version;
	(void)upload_data;
	(void)upload_data_size;
	(void)request_ctx;
	if (strcmp(url, "/metrics") != 0)
		return answer_error(c, MHD_HTTP_NOT_FOUND, "there is only /metrics\n");
	if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
		return answer_error(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
	return answer_metrics(server, c);
}

/* --- listening ---------------------------------------------------------------------------- */

/* A socket, or -errno. */
static int listen_on(const struct addrinfo *ai)
{
	CLEANUP_CLOSE int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int one = 1;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, CONNECTIONS_MAX) < 0)
		return -errno;
	return smv_take_fd(&fd);
}

static int listen_failed(const struct smv_addr *addr, const char *why, struct smv_error *err)
{
	char text[SMV_ADDR_MAX];

	return smv_fail(err, SMV_UNAVAILABLE, "cannot-listen",
		"Choose a free address of this host for --metrics.",
		"cannot listen on %s for metrics: %s", smv_addr_format(addr, text, sizeof(text)),
		why);
}

static int listen_at(const struct smv_addr *addr, struct smv_error *err)
{
	const struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	struct addrinfo *all;
	char port[8];
	int fd = -EADDRNOTAVAIL, r;

	snprintf(port, sizeof(port), "%u", addr->port);
	r = getaddrinfo(addr->host, port, &hints, &all);
	if (r)
		return listen_failed(addr, gai_strerror(r), err);
	for (const struct addrinfo *ai = all; ai && fd < 0; ai = ai->ai_next)
		fd = listen_on(ai);
	freeaddrinfo(all);
	return fd < 0 ? listen_failed(addr, strerror(-fd), err) : fd;
}

static uint16_t port_of(int fd)
{
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);
	char port[8] = "0";

	if (getsockname(fd, (struct sockaddr *)&sa, &len) == 0)
		getnameinfo(
			(struct sockaddr *)&sa, len, NULL, 0, port, sizeof(port), NI_NUMERICSERV);
	return (uint16_t)strtoul(port, NULL, 10);
}

int smv_metrics_serve(const struct smv_addr *addr, smv_metrics_collect collect, void *ctx,
	struct smv_metrics_server **server, struct smv_addr *bound, struct smv_error *err)
{
	CLEANUP_CLOSE int fd = listen_at(addr, err);
	CLEANUP_FREE struct smv_metrics_server *s = calloc(1, sizeof(*s));

	if (fd < 0)
		return fd;
	if (!s)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	s->collect = collect;
	s->ctx = ctx;
	s->started = time(NULL);
	*bound = *addr;
	bound->port = port_of(fd);
	s->daemon = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD, 0, NULL, NULL, answer, s,
		MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX,
		MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
		CONNECTION_MEMORY, MHD_OPTION_END);
	if (!s->daemon)
		return listen_failed(addr, "the HTTP server does not start", err);
	smv_take_fd(&fd); /* the daemon's */
	*server = smv_take(s);
	return 0;
}

void smv_metrics_server_destroy(struct smv_metrics_server *server)
{
	if (!server)
		return;
	MHD_stop_daemon(server->daemon);
	free(server);
}
