/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening sockets. gRPC binds them, but tells only its log why it could not, takes half of a
 * host's addresses for success and unlinks any unix socket in its way: so names are resolved, unix
 * sockets probed and failures looked into here.
 */
#include "rpc/server.h"

#include "common/cleanup.h"

#include <errno.h>
#include <grpc/grpc_security.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* The one place that decides how clients are authenticated. */
static grpc_server_credentials *create_credentials(void)
{
	return grpc_insecure_server_credentials_create();
}

/* Returns the port, 1 for a unix socket, 0 for failure. */
static int add_port(struct smv_rpc_server *server, const struct smv_addr *addr)
{
	grpc_server_credentials *credentials = create_credentials();
	char target[SMV_RPC_TARGET_MAX];
	int port = grpc_server_add_http2_port(
		server->grpc, smv_rpc_uri_text(addr, target, sizeof(target)), credentials);

	grpc_server_credentials_release(credentials);
	return port;
}

/* Why could that address not be bound? 0 if now it can. */
static int bind_errno(const struct sockaddr *sa, socklen_t len)
{
	CLEANUP_CLOSE int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const int one = 1;

	if (fd < 0)
		return errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	return bind(fd, sa, len) < 0 ? errno : 0;
}

static int listen_failed(const struct smv_addr *addr, int errnum, struct smv_error *err)
{
	char text[SMV_ADDR_MAX];

	smv_addr_format(addr, text, sizeof(text));
	if (errnum == EADDRINUSE) {
		smv_fail(err, SMV_EXISTS, "address-in-use",
			"Stop what listens there, or choose another address.",
			"cannot listen on %s: it is in use", text);
		return -EADDRINUSE;
	}
	smv_fail(err, smv_code_from_errno(errnum), "cannot-listen",
		"Choose an address of this host and a port that this user may bind.",
		"cannot listen on %s: %s", text,
		errnum ? strerror(errnum) : "gRPC gives no reason");
	return errnum ? -errnum : -EIO;
}

/* Returns 0 or a positive errno; port 0 becomes the real one. */
static int listen_on(struct smv_rpc_server *server, const struct addrinfo *ai, int *port)
{
	struct smv_addr literal = {.port = (uint16_t)*port};
	int bound, errnum;

	if (getnameinfo(ai->ai_addr, ai->ai_addrlen, literal.host, sizeof(literal.host), NULL, 0,
		    NI_NUMERICHOST) != 0)
		return EADDRNOTAVAIL;
	bound = add_port(server, &literal);
	if (bound > 0) {
		*port = bound;
		return 0;
	}
	errnum = bind_errno(ai->ai_addr, ai->ai_addrlen);
	return errnum ? errnum : EIO;
}

/* A name such as "localhost" may stand for several addresses; those of a protocol that this host
 * does not run are left out. */
static int listen_tcp(struct smv_rpc_server *server, const struct smv_addr *addr, uint16_t *port,
	struct smv_error *err)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct addrinfo *list;
	char service[8];
	int bound = addr->port, nr_bound = 0, errnum = 0, skipped = EADDRNOTAVAIL, gai;

	snprintf(service, sizeof(service), "%u", addr->port);
	gai = getaddrinfo(addr->host, service, &hints, &list);
	if (gai != 0)
		return smv_fail(err, SMV_INVALID, "bad-address",
			"Give an address or a name of this host.", "cannot listen on '%s': %s",
			addr->host, gai_strerror(gai));
	for (const struct addrinfo *ai = list; ai && errnum == 0; ai = ai->ai_next) {
		int e = listen_on(server, ai, &bound);

		if (e == EADDRNOTAVAIL || e == EAFNOSUPPORT)
			skipped = e;
		else if (e == 0)
			nr_bound++;
		else
			errnum = e;
	}
	freeaddrinfo(list);
	if (errnum == 0 && nr_bound == 0)
		errnum = skipped;
	if (errnum != 0)
		return listen_failed(addr, errnum, err);
	*port = (uint16_t)bound;
	return 0;
}

/* Remove a socket that nobody listens on. Returns 0 when the path is free. */
static int clear_stale(const struct smv_addr *addr, const struct sockaddr_un *sun)
{
	CLEANUP_CLOSE int fd = -1;
	struct stat st;

	if (lstat(addr->host, &st) < 0)
		return errno == ENOENT ? 0 : errno;
	if (!S_ISSOCK(st.st_mode))
		return EEXIST;
	/* Non-blocking: a listener whose backlog is full is alive and answers EAGAIN. */
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return errno;
	if (connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) == 0 || errno == EAGAIN)
		return EADDRINUSE;
	if (errno != ECONNREFUSED)
		return errno;
	return unlink(addr->host) < 0 && errno != ENOENT ? errno : 0;
}

static int listen_unix(
	struct smv_rpc_server *server, const struct smv_addr *addr, struct smv_error *err)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	mode_t mask;
	int errnum, port;

	if (strlen(addr->host) >= sizeof(sun.sun_path))
		return listen_failed(addr, ENAMETOOLONG, err);
	memcpy(sun.sun_path, addr->host, strlen(addr->host) + 1);
	errnum = clear_stale(addr, &sun);
	if (errnum != 0)
		return listen_failed(addr, errnum, err);
	/* Nobody else may connect, not even before a chmod could come. */
	mask = umask(0177);
	port = add_port(server, addr);
	umask(mask);
	if (port > 0)
		return 0;
	errnum = bind_errno((const struct sockaddr *)&sun, sizeof(sun));
	if (errnum == 0)
		unlink(addr->host);
	return listen_failed(addr, errnum, err);
}

int smv_rpc_server_listen(struct smv_rpc_server *server, const struct smv_addr *addr,
	struct smv_addr *bound, struct smv_error *err)
{
	uint16_t port = addr->port;
	int ret = addr->is_unix ? listen_unix(server, addr, err)
				: listen_tcp(server, addr, &port, err);

	if (ret == 0 && bound) {
		*bound = *addr;
		bound->port = port;
	}
	return ret;
}
