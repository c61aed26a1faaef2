/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's end. Requests live in a ring, oldest first:
 *
 *     head           recv              send            tail
 *      | completed,   | sent, waiting   | not or partly | free
 *      | to be told   | for the answer  | sent          |
 *
 * Both directions go straight between socket and scatter lists, many requests per system call. For
 * receiving that works because the server answers in order: the coming bytes are known to be, for
 * each request, a header and a read's payload. Only notifications come unannounced; when one is
 * found in the place of a header, what follows it is moved up (shift_layout()).
 */
#include "transport/tcp.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "transport/domain.h"
#include "transport/tcp_wire.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_NOTIFIES_QUEUED 64  /* to the server */
#define MAX_NOTIFICATIONS 1024  /* from the server, not taken yet */
#define MAX_IOV 256             /* of one system call */
#define ENOUGH_BYTES (1u << 20) /* to send or receive in one system call */
#define STRAY_SIZE (32 * SMV_TCP_ANSWER_SIZE)

struct slot {
	uint64_t cookie;
	uint64_t posted_ns;
	uint32_t op;  /* enum smv_tcp_op */
	uint32_t len; /* of the payload */
	int status;
	unsigned int nr_iov;
	uint8_t request[SMV_TCP_REQUEST_SIZE];
	uint8_t answer[SMV_TCP_ANSWER_SIZE];
	struct iovec iov[SMV_SGE_MAX];
};

struct tcp_client {
	struct smv_conn base;
	struct smv_domain *domain;
	int fd;
	bool failed;
	bool send_broken; /* the socket takes nothing more; its last answers tell why */
	unsigned int depth;
	uint64_t timeout_ns;

	/* Free-running indices into ring. */
	struct slot *ring;
	uint32_t ring_size; /* a power of two */
	uint32_t head, recv, send, tail;
	size_t sent;              /* bytes of the slot at send */
	size_t received;          /* bytes at the start of the receive layout */
	bool received_is_stray;   /* ... which lie in stray */
	unsigned int nr_requests; /* head..tail without notifies */
	unsigned int nr_notifies;
	unsigned int nr_completed; /* head..recv without notifies */
	uint8_t stray[STRAY_SIZE]; /* behind the last answer there can only be notifications */

	uint32_t notifications[MAX_NOTIFICATIONS];
	uint32_t notifications_head, notifications_tail;
	struct smv_conn_stats stats;
};

static struct tcp_client *to_client(const struct smv_conn *conn)
{
	return smv_container_of(conn, struct tcp_client, base);
}

static struct slot *slot_at(struct tcp_client *c, uint32_t i)
{
	return &c->ring[i & (c->ring_size - 1)];
}

/* The oldest request without an answer gets @status, those behind it were flushed. The socket is
 * reset, so that writes still in its buffer do not take effect after they were reported failed. */
static void fail(struct tcp_client *c, int status)
{
	const struct sockaddr unspec = {.sa_family = AF_UNSPEC};

	if (c->failed)
		return;
	c->failed = true;
	connect(c->fd, &unspec, sizeof(unspec));
	for (; c->recv != c->tail; c->recv++) {
		struct slot *s = slot_at(c, c->recv);

		if (s->op == SMV_TCP_NOTIFY)
			continue;
		s->status = status;
		status = -ECANCELED;
		c->nr_completed++;
	}
	c->send = c->tail;
}

/* --- sending -------------------------------------------------------------------------------- */

static size_t add_iov(struct iovec *iov, size_t n, void *base, size_t len)
{
	iov[n] = (struct iovec){base, len};
	return n + 1;
}

static size_t add_payload(struct iovec *iov, size_t n, const struct slot *s)
{
	memcpy(&iov[n], s->iov, s->nr_iov * sizeof(*iov));
	return n + s->nr_iov;
}

static size_t slot_send_bytes(const struct slot *s)
{
	return SMV_TCP_REQUEST_SIZE + (s->op == SMV_TCP_WRITE ? s->len : 0);
}

/* Returns the number of elements; *bytes is their sum without what was sent of the first slot. */
static size_t send_layout(struct tcp_client *c, struct iovec *iov, size_t *bytes)
{
	size_t n = 0, total = 0;

	for (uint32_t i = c->send; i != c->tail && total < ENOUGH_BYTES; i++) {
		struct slot *s = slot_at(c, i);

		if (n + 1 + s->nr_iov > MAX_IOV)
			break;
		n = add_iov(iov, n, s->request, sizeof(s->request));
		if (s->op == SMV_TCP_WRITE)
			n = add_payload(iov, n, s);
		total += slot_send_bytes(s);
	}
	*bytes = total - c->sent;
	return n;
}

static void count_sent(struct tcp_client *c, size_t n)
{
	c->sent += n;
	while (c->send != c->tail && c->sent >= slot_send_bytes(slot_at(c, c->send))) {
		c->sent -= slot_send_bytes(slot_at(c, c->send));
		c->send++;
	}
}

static void progress_send(struct tcp_client *c)
{
	while (c->send != c->tail && !c->send_broken) {
		struct iovec array[MAX_IOV], *iov = array;
		size_t bytes, n = send_layout(c, array, &bytes);
		struct msghdr msg = {.msg_iovlen = smv_tcp_skip(&iov, n, c->sent)};
		ssize_t ret;

		msg.msg_iov = iov;
		ret = sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (ret < 0) {
			if (errno == EINTR)
				continue;
			c->send_broken = errno != EAGAIN;
			return;
		}
		count_sent(c, (size_t)ret);
		if ((size_t)ret < bytes)
			return;
	}
}

/* --- receiving ------------------------------------------------------------------------------ */

/* The next request that waits for an answer, or NULL. Notifies are done once they are sent. */
static struct slot *next_expected(struct tcp_client *c)
{
	while (c->recv != c->send && slot_at(c, c->recv)->op == SMV_TCP_NOTIFY)
		c->recv++;
	for (uint32_t i = c->recv; i != c->tail; i++)
		if (slot_at(c, i)->op != SMV_TCP_NOTIFY)
			return slot_at(c, i);
	return NULL;
}

/* Where the coming bytes belong, from the start of the next answer on. The list always has the
 * first answer in full and may end before the last. */
static size_t receive_layout(struct tcp_client *c, struct iovec *iov, size_t *bytes)
{
	size_t n = 0, total = 0;
	uint32_t i;

	for (i = c->recv; i != c->tail; i++) {
		struct slot *s = slot_at(c, i);

		if (s->op == SMV_TCP_NOTIFY)
			continue;
		if (total >= ENOUGH_BYTES + c->received || n + 1 + s->nr_iov > MAX_IOV - 1)
			break;
		n = add_iov(iov, n, s->answer, sizeof(s->answer));
		total += sizeof(s->answer);
		if (s->op == SMV_TCP_READ) {
			n = add_payload(iov, n, s);
			total += s->len;
		}
	}
	if (i == c->tail) {
		n = add_iov(iov, n, c->stray, sizeof(c->stray));
		total += sizeof(c->stray);
	}
	*bytes = total;
	return n;
}

/* Drop the first SMV_TCP_ANSWER_SIZE of the @received bytes in the receive layout. Some of the
 * destinations get bytes that are not theirs for a moment: they are undefined until completion. */
static void shift_layout(struct tcp_client *c, size_t received)
{
	struct iovec to_array[MAX_IOV], from_array[MAX_IOV], *to = to_array, *from = from_array;
	size_t bytes, n = receive_layout(c, to_array, &bytes);
	size_t left = received - SMV_TCP_ANSWER_SIZE, from_n;

	memcpy(from_array, to_array, n * sizeof(*to));
	from_n = smv_tcp_skip(&from, n, SMV_TCP_ANSWER_SIZE);
	while (left) {
		size_t chunk = to->iov_len < from->iov_len ? to->iov_len : from->iov_len;

		if (chunk > left)
			chunk = left;
		memmove(to->iov_base, from->iov_base, chunk);
		left -= chunk;
		n = smv_tcp_skip(&to, n, chunk);
		from_n = smv_tcp_skip(&from, from_n, chunk);
	}
}

static int keep_notification(struct tcp_client *c, uint32_t imm)
{
	if (c->notifications_tail - c->notifications_head == MAX_NOTIFICATIONS) {
		smv_log_warning("tcp: %u notifications were never taken; ending the connection",
			MAX_NOTIFICATIONS);
		return -ENOBUFS;
	}
	c->notifications[c->notifications_tail++ % MAX_NOTIFICATIONS] = imm;
	return 0;
}

static void complete(struct tcp_client *c, struct slot *s)
{
	s->status = 0;
	if (s->op == SMV_TCP_READ)
		c->stats.bytes_read += s->len;
	else
		c->stats.bytes_written += s->len;
	while (slot_at(c, c->recv) != s)
		c->recv++;
	c->recv++;
	c->nr_completed++;
}

static bool is_sent(struct tcp_client *c, const struct slot *s)
{
	for (uint32_t i = c->recv; i != c->send; i++)
		if (slot_at(c, i) == s)
			return true;
	return false;
}

/* Judge an answer to @s (NULL: none is expected): 0, or what the connection fails with. */
static int check_answer(
	struct tcp_client *c, const struct slot *s, const struct smv_tcp_answer *answer)
{
	struct smv_tcp_request request;

	if (!s)
		return -EPROTO;
	smv_tcp_parse_request(s->request, &request);
	if (answer->op != request.op || answer->len != request.len || answer->seq != request.seq)
		return -EPROTO;
	if (answer->status != SMV_TCP_OK)
		return -EACCES;
	/* Done it cannot be: its memory is read yet. */
	return is_sent(c, s) ? 0 : -EPROTO;
}

/* Go through the received bytes: 0, or what the connection fails with. */
static int parse_received(struct tcp_client *c)
{
	while (c->received >= SMV_TCP_ANSWER_SIZE) {
		struct slot *s = next_expected(c);
		struct smv_tcp_answer answer;
		size_t need;
		int ret;

		ret = smv_tcp_parse_answer(s ? s->answer : c->stray, &answer);
		if (ret < 0)
			return ret;
		if (answer.op == SMV_TCP_NOTIFY) {
			ret = keep_notification(c, answer.len);
			if (ret < 0)
				return ret;
			shift_layout(c, c->received);
			c->received -= SMV_TCP_ANSWER_SIZE;
			continue;
		}
		ret = check_answer(c, s, &answer);
		if (ret < 0)
			return ret;
		need = SMV_TCP_ANSWER_SIZE + (s->op == SMV_TCP_READ ? s->len : 0);
		if (c->received < need)
			return 0;
		complete(c, s);
		c->received -= need;
	}
	return 0;
}

/* The first bytes of a header that came while nothing was expected move to where it is now. */
static void adopt_stray(struct tcp_client *c)
{
	struct slot *s = next_expected(c);

	if (s && c->received_is_stray)
		memcpy(s->answer, c->stray, c->received);
	c->received_is_stray = !s;
}

static void progress_receive(struct tcp_client *c)
{
	while (!c->failed) {
		struct iovec array[MAX_IOV], *iov = array;
		struct msghdr msg = {0};
		size_t bytes, n;
		ssize_t got;
		int ret;

		adopt_stray(c);
		n = receive_layout(c, array, &bytes);
		bytes -= c->received;
		msg.msg_iovlen = smv_tcp_skip(&iov, n, c->received);
		msg.msg_iov = iov;
		got = recvmsg(c->fd, &msg, MSG_DONTWAIT);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN && !c->send_broken)
			return;
		if (got <= 0) {
			fail(c, -ECONNRESET);
			return;
		}
		c->received += (size_t)got;
		ret = parse_received(c);
		c->received_is_stray = !next_expected(c);
		if (ret < 0)
			fail(c, ret);
		if ((size_t)got < bytes)
			return; /* the socket is empty */
	}
}

/* --- the operations ------------------------------------------------------------------------- */

static struct slot *take_slot(struct tcp_client *c, enum smv_tcp_op op, uint32_t len, uint64_t now)
{
	struct slot *s = slot_at(c, c->tail);

	s->op = op;
	s->len = len;
	s->posted_ns = now;
	s->nr_iov = 0;
	return s;
}

static void queue_request(
	struct tcp_client *c, const struct smv_request *r, uint32_t len, uint64_t now)
{
	enum smv_tcp_op op = r->op == SMV_OP_READ ? SMV_TCP_READ : SMV_TCP_WRITE;
	struct slot *s = take_slot(c, op, len, now);

	s->cookie = r->cookie;
	for (unsigned int i = 0; i < r->nr_sge; i++)
		if (r->sge[i].len)
			s->iov[s->nr_iov++] = (struct iovec){r->sge[i].addr, r->sge[i].len};
	smv_tcp_put_request(s->request, &(struct smv_tcp_request){.op = op,
						.len = len,
						.rkey = r->rkey,
						.addr = r->remote_addr,
						.seq = c->tail});
	c->tail++;
	c->nr_requests++;
}

static int client_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n)
{
	struct tcp_client *c = to_client(conn);
	uint64_t now = smv_now_ns();
	unsigned int i;

	if (c->failed)
		return -ENOTCONN;
	for (i = 0; i < n && c->nr_requests < c->depth; i++) {
		int len = smv_request_bytes(c->domain, &requests[i]);

		if (len < 0 && i == 0)
			return len;
		if (len < 0)
			break;
		queue_request(c, &requests[i], (uint32_t)len, now);
	}
	progress_send(c);
	return (int)i;
}

/* The deadline of the oldest request or unsent notify; false when nothing waits. */
static bool next_deadline(struct tcp_client *c, uint64_t *deadline_ns)
{
	next_expected(c);
	if (c->recv == c->tail)
		return false;
	*deadline_ns = slot_at(c, c->recv)->posted_ns + c->timeout_ns;
	return true;
}

static void check_deadline(struct tcp_client *c)
{
	uint64_t deadline;

	if (next_deadline(c, &deadline) && smv_now_ns() >= deadline)
		fail(c, -ETIMEDOUT);
}

static unsigned int deliver(
	struct tcp_client *c, struct smv_completion *completions, unsigned int max)
{
	unsigned int n = 0;

	while (c->head != c->recv && n < max) {
		const struct slot *s = slot_at(c, c->head++);

		if (s->op == SMV_TCP_NOTIFY) {
			c->nr_notifies--;
			continue;
		}
		completions[n++] = (struct smv_completion){s->cookie, s->status};
		c->nr_requests--;
		c->nr_completed--;
	}
	return n;
}

static int client_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max)
{
	struct tcp_client *c = to_client(conn);
	unsigned int n;

	if (!c->failed) {
		progress_send(c);
		if (c->nr_completed == 0 || c->nr_completed < max)
			progress_receive(c);
		if (c->nr_completed == 0 && !c->failed)
			check_deadline(c);
	}
	n = deliver(c, completions, max);
	return n == 0 && c->failed && c->nr_completed == 0 ? -ENOTCONN : (int)n;
}

static int client_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	struct tcp_client *c = to_client(conn);
	uint64_t deadline, now;

	*fd_events = (short)(POLLIN | (c->send != c->tail ? POLLOUT : 0));
	*timeout_ms = -1;
	if (c->failed || c->send_broken || c->nr_completed ||
		c->notifications_head != c->notifications_tail)
		return 1;
	if (next_deadline(c, &deadline)) {
		now = smv_now_ns();
		if (now >= deadline)
			return 1;
		*timeout_ms = (int)((deadline - now) / SMV_NS_PER_MS) + 1;
	}
	return 0;
}

static int client_fd(const struct smv_conn *conn)
{
	return to_client(conn)->fd;
}

static void free_sent_notifies(struct tcp_client *c)
{
	next_expected(c);
	for (; c->head != c->recv && slot_at(c, c->head)->op == SMV_TCP_NOTIFY; c->head++)
		c->nr_notifies--;
}

static int client_notify(struct smv_conn *conn, uint32_t imm)
{
	struct tcp_client *c = to_client(conn);
	struct slot *s;

	if (c->failed)
		return -ENOTCONN;
	if (c->nr_notifies == MAX_NOTIFIES_QUEUED)
		free_sent_notifies(c);
	if (c->nr_notifies == MAX_NOTIFIES_QUEUED)
		return -EAGAIN;
	s = take_slot(c, SMV_TCP_NOTIFY, imm, smv_now_ns());
	smv_tcp_put_request(
		s->request, &(struct smv_tcp_request){.op = SMV_TCP_NOTIFY, .len = imm});
	c->tail++;
	c->nr_notifies++;
	return 0;
}

static int client_next_notification(struct smv_conn *conn, uint32_t *imm)
{
	struct tcp_client *c = to_client(conn);

	if (c->notifications_head == c->notifications_tail)
		return 0;
	*imm = c->notifications[c->notifications_head++ % MAX_NOTIFICATIONS];
	return 1;
}

static unsigned int client_in_flight(const struct smv_conn *conn)
{
	return to_client(conn)->nr_requests;
}

static void client_stats(const struct smv_conn *conn, struct smv_conn_stats *stats)
{
	*stats = to_client(conn)->stats;
}

static void client_close(struct smv_conn *conn)
{
	struct tcp_client *c = to_client(conn);

	close(c->fd);
	free(c->ring);
	free(c);
}

static const struct smv_conn_ops client_ops = {
	.post = client_post,
	.poll = client_poll,
	.arm = client_arm,
	.fd = client_fd,
	.next_notification = client_next_notification,
	.in_flight = client_in_flight,
	.stats = client_stats,
	.notify = client_notify,
	.close = client_close,
};

/* --- connecting ----------------------------------------------------------------------------- */

/* A connected socket, or -errno. */
static int connect_one(const struct addrinfo *ai, uint64_t deadline)
{
	CLEANUP_CLOSE int fd = socket(
		ai->ai_family, ai->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, ai->ai_protocol);
	int ret, so_error = 0;
	socklen_t len = sizeof(so_error);

	if (fd < 0)
		return -errno;
	smv_tcp_tune(fd);
	if (connect(fd, ai->ai_addr, ai->ai_addrlen) == 0)
		return smv_take_fd(&fd);
	if (errno != EINPROGRESS)
		return -errno;
	ret = smv_tcp_wait(fd, POLLOUT, deadline);
	if (ret < 0)
		return ret;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &so_error, &len) < 0 || so_error)
		return so_error ? -so_error : -errno;
	return smv_take_fd(&fd);
}

static int connect_any(const struct smv_addr *addr, uint64_t deadline, struct smv_error *err)
{
	struct addrinfo *list;
	char text[SMV_ADDR_MAX];
	int fd;

	fd = smv_tcp_resolve(addr, 0, &list, err);
	if (fd < 0)
		return fd;
	fd = -EHOSTUNREACH;
	for (const struct addrinfo *ai = list; ai && fd < 0; ai = ai->ai_next)
		fd = connect_one(ai, deadline);
	freeaddrinfo(list);
	if (fd < 0)
		return smv_fail(err, fd == -ETIMEDOUT ? SMV_TIMEOUT : SMV_UNAVAILABLE,
			"connect-failed",
			"Check that the peer runs there and that no firewall is between.",
			"cannot connect to %s: %s", smv_addr_format(addr, text, sizeof(text)),
			strerror(-fd));
	return fd;
}

static int judge_welcome(const uint8_t *in, const char *peer, struct smv_error *err)
{
	struct smv_tcp_welcome welcome;

	if (smv_tcp_parse_welcome(in, &welcome) < 0)
		return smv_fail(err, SMV_INTERNAL, "not-smemv",
			"Check the port: it must be a data address.",
			"%s answers, but not in the data protocol of smemv", peer);
	if (welcome.version != SMV_TCP_VERSION || welcome.status == SMV_TCP_VERSION_MISMATCH)
		return smv_fail(err, SMV_UNIMPLEMENTED, "version-mismatch",
			"Install the same version of smemv on both hosts.",
			"%s speaks version %u of the data protocol, this program version %u", peer,
			welcome.version, SMV_TCP_VERSION);
	if (welcome.status != SMV_TCP_OK)
		return smv_fail(err, SMV_PERMISSION, "connection-refused",
			"The lease may be gone or its epoch raised; the peer's log says why.",
			"%s refused the data connection", peer);
	return 0;
}

static int shake_hands(int fd, const char *peer, const void *private_data, size_t private_len,
	uint64_t deadline, struct smv_error *err)
{
	struct smv_tcp_hello hello = {
		.version = SMV_TCP_VERSION, .private_len = (uint16_t)private_len};
	uint8_t out[SMV_TCP_HELLO_SIZE], in[SMV_TCP_WELCOME_SIZE];
	int ret;

	if (private_len)
		memcpy(hello.private_data, private_data, private_len);
	smv_tcp_put_hello(out, &hello);
	/* The buffer of a new socket has room for 64 bytes. */
	if (send(fd, out, sizeof(out), MSG_NOSIGNAL) != (ssize_t)sizeof(out))
		ret = -ECONNRESET;
	else
		ret = smv_tcp_recv_exact(fd, in, sizeof(in), deadline);
	if (ret < 0)
		return smv_fail(err, ret == -ETIMEDOUT ? SMV_TIMEOUT : SMV_UNAVAILABLE,
			"handshake-failed", "Check that the address is a data address of smemv.",
			"%s took the connection but did not answer the greeting: %s", peer,
			strerror(-ret));
	return judge_welcome(in, peer, err);
}

static struct tcp_client *client_new(struct smv_domain *domain, unsigned int depth)
{
	struct tcp_client *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->base.ops = &client_ops;
	c->domain = domain;
	c->depth = depth;
	c->received_is_stray = true;
	for (c->ring_size = 1; c->ring_size < depth + MAX_NOTIFIES_QUEUED;)
		c->ring_size <<= 1;
	c->ring = calloc(c->ring_size, sizeof(*c->ring));
	if (!c->ring) {
		free(c);
		return NULL;
	}
	return c;
}

int smv_tcp_connect(struct smv_domain *domain, const struct smv_addr *addr,
	const void *private_data, size_t private_len, const struct smv_conn_options *options,
	struct smv_conn **conn, struct smv_error *err)
{
	uint64_t deadline = smv_now_ns() + options->connect_timeout_ms * SMV_NS_PER_MS;
	CLEANUP_CLOSE int fd = connect_any(addr, deadline, err);
	char peer[SMV_ADDR_MAX];
	struct tcp_client *c;
	int ret;

	if (fd < 0)
		return fd;
	smv_addr_format(addr, peer, sizeof(peer));
	ret = shake_hands(fd, peer, private_data, private_len, deadline, err);
	if (ret < 0)
		return ret;
	c = client_new(domain, options->depth);
	if (!c)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL,
			"no memory for the connection to %s", peer);
	c->fd = smv_take_fd(&fd);
	c->timeout_ns = options->timeout_ms * SMV_NS_PER_MS;
	*conn = &c->base;
	return 0;
}
