/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's end: a thread that accepts and a thread for each connection, which blocks in the
 * socket. Payload goes straight between socket and region, and a region is held (domain.h) while
 * the kernel may touch it. To end a connection from outside, shut its socket down: whatever its
 * thread blocks in returns.
 *
 * Answers are gathered and sent when nothing more can be done without waiting for the client.
 */
#include "transport/tcp.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "transport/domain.h"
#include "transport/tcp_wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define HELLO_TIMEOUT_NS (5 * SMV_NS_PER_S)
#define LINGER_NS (1 * SMV_NS_PER_S)
#define NOTIFY_WAIT_MS 100

/* Requests and small payloads are received together in this, and small payloads copied from it. */
#define INPUT_SIZE (16 * 1024)
/* Behind a payload of at least this, read only a few headers ahead: the next one is probably as
 * large and should not come through the buffer. */
#define LARGE_PAYLOAD (64 * 1024)
#define FEW_HEADERS (8 * SMV_TCP_REQUEST_SIZE)

#define MAX_ANSWERS SMV_PEER_HOLDS
#define ENOUGH_BYTES (1u << 20) /* of answers to gather */

struct server_conn {
	struct smv_conn base;
	struct smv_peer peer;
	struct tcp_listener *listener;
	struct server_conn *next, **pprev; /* under the listener's lock */
	int fd;
	void *ctx;        /* of the handler */
	atomic_bool stop; /* somebody ended the connection */

	pthread_mutex_t send_lock; /* of the socket's sending side */
	bool welcomed;             /* under send_lock: notifications may be sent */

	/* Received and not parsed yet: input[input_pos..input_end). */
	size_t input_pos, input_end;
	bool drained; /* the last receive emptied the socket */

	unsigned int nr_answers;
	size_t nr_iov, answer_bytes;
	uint64_t payload_bytes;
	struct iovec iov[2 * MAX_ANSWERS];
	uint8_t answers[MAX_ANSWERS][SMV_TCP_ANSWER_SIZE];
	uint8_t input[INPUT_SIZE];
};

struct tcp_listener {
	struct smv_listener base;
	struct smv_listener_handler handler;
	int fd;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool closing;
	struct server_conn *conns;
};

static struct server_conn *to_server(struct smv_conn *conn)
{
	return smv_container_of(conn, struct server_conn, base);
}

static void end_conn(struct server_conn *c)
{
	atomic_store(&c->stop, true);
	shutdown(c->fd, SHUT_RDWR);
}

static void abort_peer(struct smv_peer *peer)
{
	end_conn(smv_container_of(peer, struct server_conn, peer));
}

/* --- sending -------------------------------------------------------------------------------- */

/* With send_lock held. Blocks until all is in the socket. */
static int send_all(struct server_conn *c, struct iovec *iov, size_t n)
{
	while (n) {
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
		ssize_t ret;

		if (atomic_load_explicit(&c->stop, memory_order_relaxed))
			return -ECONNRESET;
		ret = sendmsg(c->fd, &msg, MSG_NOSIGNAL);
		if (ret < 0 && errno != EINTR)
			return -errno;
		if (ret > 0)
			n = smv_tcp_skip(&iov, n, (size_t)ret);
	}
	return 0;
}

static int flush_answers(struct server_conn *c)
{
	int ret;

	if (c->nr_answers == 0)
		return 0;
	pthread_mutex_lock(&c->send_lock);
	ret = send_all(c, c->iov, c->nr_iov);
	pthread_mutex_unlock(&c->send_lock);
	if (c->payload_bytes) { /* else the only hold may be that of a write under way */
		smv_peer_release(&c->peer);
		smv_peer_count(&c->peer, 0, ret == 0 ? c->payload_bytes : 0);
	}
	c->nr_answers = 0;
	c->nr_iov = 0;
	c->answer_bytes = 0;
	c->payload_bytes = 0;
	return ret;
}

/* @payload is the read's memory, held, or NULL. */
static int add_answer(struct server_conn *c, const struct smv_tcp_request *r,
	enum smv_tcp_status status, void *payload)
{
	uint8_t *out = c->answers[c->nr_answers++];

	smv_tcp_put_answer(out, &(struct smv_tcp_answer){r->op, r->len, r->seq, status});
	c->iov[c->nr_iov++] = (struct iovec){out, SMV_TCP_ANSWER_SIZE};
	c->answer_bytes += SMV_TCP_ANSWER_SIZE;
	if (payload) {
		c->iov[c->nr_iov++] = (struct iovec){payload, r->len};
		c->answer_bytes += r->len;
		c->payload_bytes += r->len;
	}
	if (c->nr_answers == MAX_ANSWERS || c->answer_bytes >= ENOUGH_BYTES)
		return flush_answers(c);
	return 0;
}

/* Not pthread_mutex_clocklock(): the ThreadSanitizer of gcc 12 does not know it. */
static int lock_for_notify(struct server_conn *c)
{
	for (unsigned int ms = 0; ms < NOTIFY_WAIT_MS; ms++) {
		if (pthread_mutex_trylock(&c->send_lock) == 0)
			return 0;
		smv_sleep_ms(1);
	}
	return -EAGAIN;
}

/* A notification that was begun must be finished, but a full socket takes none at all. */
static int send_notification(struct server_conn *c, uint32_t imm)
{
	uint8_t out[SMV_TCP_ANSWER_SIZE];
	struct iovec iov = {out, sizeof(out)}, *rest = &iov;
	ssize_t n;

	smv_tcp_put_answer(out, &(struct smv_tcp_answer){.op = SMV_TCP_NOTIFY, .len = imm});
	n = send(c->fd, out, sizeof(out), MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -ENOTCONN;
	return send_all(c, rest, smv_tcp_skip(&rest, 1, (size_t)n)) == 0 ? 0 : -ENOTCONN;
}

static int server_notify(struct smv_conn *conn, uint32_t imm)
{
	struct server_conn *c = to_server(conn);
	int ret = lock_for_notify(c);

	if (ret < 0)
		return ret;
	if (atomic_load(&c->stop))
		ret = -ENOTCONN;
	else
		ret = c->welcomed ? send_notification(c, imm) : -EAGAIN;
	pthread_mutex_unlock(&c->send_lock);
	return ret;
}

static void server_close(struct smv_conn *conn)
{
	end_conn(to_server(conn));
}

static const struct smv_conn_ops server_ops = {.notify = server_notify, .close = server_close};

/* --- receiving ------------------------------------------------------------------------------ */

/* Receive into @iov; the answers go out first if that may block. Returns the bytes or -errno. */
static ssize_t receive(struct server_conn *c, struct iovec *iov, size_t n)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	size_t wanted = 0;
	ssize_t got = -1;
	int ret;

	for (size_t i = 0; i < n; i++)
		wanted += iov[i].iov_len;
	if (!c->drained) {
		got = recvmsg(c->fd, &msg, MSG_DONTWAIT);
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
	}
	if (got < 0) {
		ret = flush_answers(c);
		if (ret < 0)
			return ret;
		do
			got = recvmsg(c->fd, &msg, 0);
		while (got < 0 && errno == EINTR);
		if (got < 0)
			return -errno;
	}
	if (got == 0 || atomic_load_explicit(&c->stop, memory_order_relaxed))
		return -ECONNRESET;
	c->drained = (size_t)got < wanted;
	return got;
}

/* Have @bytes (at most INPUT_SIZE) in the buffer. */
static int fill_input(struct server_conn *c, size_t bytes)
{
	if (c->input_end - c->input_pos >= bytes)
		return 0;
	memmove(c->input, c->input + c->input_pos, c->input_end - c->input_pos);
	c->input_end -= c->input_pos;
	c->input_pos = 0;
	while (c->input_end < bytes) {
		struct iovec iov = {c->input + c->input_end, INPUT_SIZE - c->input_end};
		ssize_t n = receive(c, &iov, 1);

		if (n < 0)
			return (int)n;
		c->input_end += (size_t)n;
	}
	return 0;
}

/* Move a write's payload into @mem: what the buffer has of it, then straight from the socket. */
static int receive_payload(struct server_conn *c, char *mem, size_t len)
{
	size_t ahead = len >= LARGE_PAYLOAD ? FEW_HEADERS : INPUT_SIZE;
	size_t buffered = c->input_end - c->input_pos;

	if (buffered > len)
		buffered = len;
	memcpy(mem, c->input + c->input_pos, buffered);
	c->input_pos += buffered;
	mem += buffered;
	len -= buffered;
	if (len == 0)
		return 0;
	c->input_pos = c->input_end = 0;
	while (len) {
		struct iovec iov[2] = {{mem, len}, {c->input, ahead}};
		ssize_t n = receive(c, iov, 2);

		if (n < 0)
			return (int)n;
		if ((size_t)n > len) {
			c->input_end = (size_t)n - len;
			return 0;
		}
		mem += n;
		len -= (size_t)n;
	}
	return 0;
}

/* --- requests ------------------------------------------------------------------------------- */

/* The last answer. */
static int refuse_access(struct server_conn *c, const struct smv_tcp_request *r)
{
	smv_log_warning("tcp: a peer's %s of %u bytes at offset %llu is outside of what it may "
			"access; ending its connection",
		r->op == SMV_TCP_READ ? "read" : "write", r->len, (unsigned long long)r->addr);
	add_answer(c, r, SMV_TCP_ACCESS, NULL);
	flush_answers(c);
	return -EACCES;
}

static int do_read(struct server_conn *c, const struct smv_tcp_request *r)
{
	void *mem;

	if (smv_peer_hold(&c->peer, SMV_OP_READ, r->rkey, r->addr, r->len, &mem) < 0)
		return refuse_access(c, r);
	return add_answer(c, r, SMV_TCP_OK, mem);
}

static int do_write(struct server_conn *c, const struct smv_tcp_request *r)
{
	void *mem;
	int ret;

	/* Reads before this write must not see it. */
	if (c->payload_bytes) {
		ret = flush_answers(c);
		if (ret < 0)
			return ret;
	}
	if (smv_peer_hold(&c->peer, SMV_OP_WRITE, r->rkey, r->addr, r->len, &mem) < 0)
		return refuse_access(c, r);
	ret = receive_payload(c, mem, r->len);
	smv_peer_release(&c->peer);
	if (ret < 0)
		return ret;
	smv_peer_count(&c->peer, r->len, 0);
	return add_answer(c, r, SMV_TCP_OK, NULL);
}

static int do_notify(struct server_conn *c, const struct smv_tcp_request *r)
{
	const struct smv_listener_handler *h = &c->listener->handler;
	int ret = flush_answers(c); /* the handler may take its time */

	if (ret == 0 && h->notify)
		h->notify(h->ctx, c->ctx, &c->base, r->len);
	return ret;
}

static int serve_one(struct server_conn *c)
{
	struct smv_tcp_request r;
	int ret = fill_input(c, SMV_TCP_REQUEST_SIZE);

	if (ret < 0)
		return ret;
	ret = smv_tcp_parse_request(c->input + c->input_pos, &r);
	if (ret < 0) {
		smv_log_warning(
			"tcp: a peer sent something that is no request; ending its connection");
		return ret;
	}
	c->input_pos += SMV_TCP_REQUEST_SIZE;
	switch ((enum smv_tcp_op)r.op) {
	case SMV_TCP_READ:
		return do_read(c, &r);
	case SMV_TCP_WRITE:
		return do_write(c, &r);
	case SMV_TCP_NOTIFY:
		return do_notify(c, &r);
	}
	return -EPROTO;
}

/* --- the life of a connection --------------------------------------------------------------- */

static int welcome(struct server_conn *c, enum smv_tcp_status status)
{
	uint8_t out[SMV_TCP_WELCOME_SIZE];
	struct iovec iov = {out, sizeof(out)};
	int ret;

	smv_tcp_put_welcome(out, &(struct smv_tcp_welcome){SMV_TCP_VERSION, status});
	pthread_mutex_lock(&c->send_lock);
	ret = send_all(c, &iov, 1);
	c->welcomed = ret == 0 && status == SMV_TCP_OK;
	pthread_mutex_unlock(&c->send_lock);
	return ret;
}

/* Returns 0 when the peer was let in, so that disconnected() must follow. */
static int greet(struct server_conn *c)
{
	uint8_t in[SMV_TCP_HELLO_SIZE];
	struct smv_tcp_hello hello;
	int ret = smv_tcp_recv_exact(c->fd, in, sizeof(in), smv_now_ns() + HELLO_TIMEOUT_NS);

	if (ret == 0)
		ret = smv_tcp_parse_hello(in, &hello);
	if (ret < 0)
		return ret;
	if (hello.version != SMV_TCP_VERSION) {
		welcome(c, SMV_TCP_VERSION_MISMATCH);
		return -EPROTO;
	}
	ret = smv_peer_admit(&c->peer, c->listener->base.transport, &c->listener->handler, &c->base,
		hello.private_data, hello.private_len, &c->ctx);
	if (ret < 0)
		welcome(c, SMV_TCP_ACCESS);
	return ret;
}

/* Closing a socket with unread input resets it, and the reset may overtake the last answer: say
 * that nothing more comes and read on for a moment. */
static void linger(struct server_conn *c)
{
	uint64_t deadline = smv_now_ns() + LINGER_NS;

	shutdown(c->fd, SHUT_WR);
	while (!atomic_load(&c->stop) && smv_now_ns() < deadline &&
		smv_tcp_recv_exact(c->fd, c->input, 1, deadline) == 0)
		if (recv(c->fd, c->input, INPUT_SIZE, MSG_DONTWAIT) == 0)
			break;
}

static void free_conn(struct server_conn *c)
{
	close(c->fd);
	pthread_mutex_destroy(&c->send_lock);
	free(c);
}

/* The last thing that a connection's thread does; the listener may be gone right after. */
static void leave_listener(struct server_conn *c)
{
	struct tcp_listener *l = c->listener;

	pthread_mutex_lock(&l->lock);
	*c->pprev = c->next;
	if (c->next)
		c->next->pprev = c->pprev;
	free_conn(c);
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

static void *conn_main(void *arg)
{
	struct server_conn *c = arg;
	const struct smv_listener_handler *h = &c->listener->handler;

	if (greet(c) == 0) {
		int ret = welcome(c, SMV_TCP_OK);

		while (ret == 0)
			ret = serve_one(c);
		smv_peer_detach(&c->peer);
		if (h->disconnected)
			h->disconnected(h->ctx, c->ctx, &c->base);
	}
	linger(c);
	leave_listener(c);
	return NULL;
}

/* --- the listener --------------------------------------------------------------------------- */

static struct server_conn *conn_new(struct tcp_listener *l, int fd)
{
	struct server_conn *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->base.ops = &server_ops;
	c->peer.abort = abort_peer;
	c->listener = l;
	c->fd = fd;
	pthread_mutex_init(&c->send_lock, NULL);
	smv_tcp_tune(fd);
	return c;
}

/* Takes @fd. */
static int start_conn(struct tcp_listener *l, int fd)
{
	struct server_conn *c = conn_new(l, fd);
	pthread_t thread;
	int ret;

	if (!c) {
		close(fd);
		return -ENOMEM;
	}
	pthread_mutex_lock(&l->lock);
	ret = l->closing ? -ESHUTDOWN : smv_transport_thread(&thread, conn_main, c, "smv-tcp-conn");
	if (ret == 0) {
		pthread_detach(thread);
		c->next = l->conns;
		c->pprev = &l->conns;
		if (c->next)
			c->next->pprev = &c->next;
		l->conns = c;
	} else {
		free_conn(c);
	}
	pthread_mutex_unlock(&l->lock);
	return ret;
}

static void *accept_main(void *arg)
{
	struct tcp_listener *l = arg;

	for (;;) {
		int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
		int ret = fd >= 0 ? start_conn(l, fd) : -errno;

		if (ret == -EINVAL || ret == -ESHUTDOWN)
			return NULL; /* smv_tcp_listener_close() */
		if (ret == 0 || ret == -EINTR || ret == -ECONNABORTED)
			continue;
		smv_log_warning("tcp: cannot accept a connection: %s", strerror(-ret));
		smv_sleep_ms(100); /* no descriptors, no memory: wait for better times */
	}
}

/* A listening socket, or -errno. */
static int bind_one(const struct addrinfo *ai)
{
	CLEANUP_CLOSE int fd =
		socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC, ai->ai_protocol);
	const int one = 1;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 128) < 0)
		return -errno;
	return smv_take_fd(&fd);
}

static int bind_any(const struct smv_addr *addr, struct smv_error *err)
{
	struct addrinfo *list;
	char text[SMV_ADDR_MAX];
	int fd = smv_tcp_resolve(addr, AI_PASSIVE, &list, err);

	if (fd < 0)
		return fd;
	fd = -EADDRNOTAVAIL;
	for (const struct addrinfo *ai = list; ai && fd < 0; ai = ai->ai_next)
		fd = bind_one(ai);
	freeaddrinfo(list);
	if (fd < 0)
		return smv_fail(err, SMV_UNAVAILABLE, "listen-failed",
			fd == -EADDRINUSE ? "Another program listens there; choose another port."
					  : "Listen on an address that this host has.",
			"cannot listen on %s: %s", smv_addr_format(addr, text, sizeof(text)),
			strerror(-fd));
	return fd;
}

static int get_bound(int fd, struct smv_addr *bound)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);
	char port[8];

	memset(bound, 0, sizeof(*bound));
	memcpy(bound->transport, "tcp", 4);
	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
		return -errno;
	if (getnameinfo((struct sockaddr *)&ss, len, bound->host, sizeof(bound->host), port,
		    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		return -EINVAL;
	bound->port = (uint16_t)strtoul(port, NULL, 10);
	return 0;
}

static void free_listener(struct tcp_listener *l)
{
	close(l->fd);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

int smv_tcp_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err)
{
	int fd = bind_any(addr, err), ret;
	struct smv_addr real;
	struct tcp_listener *l;

	if (fd < 0)
		return fd;
	l = calloc(1, sizeof(*l));
	if (!l) {
		close(fd);
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "no memory for a listener");
	}
	l->base.transport = t;
	l->handler = *handler;
	l->fd = fd;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	ret = get_bound(fd, &real);
	if (ret == 0)
		ret = smv_transport_thread(&l->thread, accept_main, l, "smv-tcp-accept");
	if (ret < 0) {
		free_listener(l);
		return smv_fail(err, smv_code_from_errno(ret), "listen-failed", NULL,
			"cannot start listening: %s", strerror(-ret));
	}
	if (bound)
		*bound = real;
	*listener = &l->base;
	return 0;
}

void smv_tcp_listener_close(struct smv_listener *listener)
{
	struct tcp_listener *l = smv_container_of(listener, struct tcp_listener, base);

	pthread_mutex_lock(&l->lock);
	l->closing = true;
	for (struct server_conn *c = l->conns; c; c = c->next)
		end_conn(c);
	pthread_mutex_unlock(&l->lock);
	shutdown(l->fd, SHUT_RDWR); /* wakes accept(2) with EINVAL */
	pthread_join(l->thread, NULL);
	pthread_mutex_lock(&l->lock);
	while (l->conns)
		pthread_cond_wait(&l->changed, &l->lock);
	pthread_mutex_unlock(&l->lock);
	free_listener(l);
}
