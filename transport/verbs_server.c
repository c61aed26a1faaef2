/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's end: a thread that takes the events of rdma_cm and a thread for each connection,
 * which sleeps except for the handler's callbacks: reads and writes are the device's alone. It is
 * the connection's own because callbacks may wait for each other: a new writer's connect() for the
 * former one's disconnected().
 *
 * To end a connection from outside, wake its thread by its eventfd.
 */
#include "transport/verbs.h"

#include "common/log.h"
#include "transport/tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RECV_WRS 256
#define SEND_WRS 128 /* notifications under way */
#define SIGNAL_EVERY (SEND_WRS / 4)
#define TIMEOUT_MS 5000 /* of a notification */
#define HEARTBEAT_MS 10000
#define BACKLOG 128

struct server_conn {
	struct smv_conn base;
	struct smv_verbs_peer peer;
	struct verbs_listener *listener;
	struct server_conn *next, **pprev; /* under the listener's lock */
	struct rdma_cm_id *id;
	struct smv_verbs_device *dev;
	struct smv_verbs_qp q;
	int wake;         /* eventfd */
	void *ctx;        /* of the handler */
	atomic_bool stop; /* somebody ended the connection */

	/* The request to connect. */
	uint8_t read_depth; /* reads that the client wants to have under way */
	size_t private_len;
	uint8_t private_data[SMV_VERBS_HELLO_SIZE + SMV_PRIVATE_DATA_MAX];

	pthread_mutex_t send_lock; /* of what follows and of posting sends */
	bool may_send;
	uint64_t sent, completed; /* as far as is known */
	uint64_t heartbeat;       /* the number of the last one sent */
};

struct verbs_listener {
	struct smv_listener base;
	struct smv_listener_handler handler;
	struct rdma_event_channel *cm;
	struct rdma_cm_id *id;
	int wake; /* eventfd: close */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool closing;
	unsigned int nr_threads; /* of connections, until the last touch of the listener */
	struct server_conn *conns;
};

static struct server_conn *to_server(struct smv_conn *conn)
{
	return smv_container_of(conn, struct server_conn, base);
}

static void end_conn(struct server_conn *c)
{
	atomic_store(&c->stop, true);
	eventfd_write(c->wake, 1);
}

static void abort_peer(struct smv_verbs_peer *peer)
{
	end_conn(smv_container_of(peer, struct server_conn, peer));
}

/* --- notifications to the client ------------------------------------------------------------ */

/* With the send lock held. */
static int post_send(struct server_conn *c, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;

	wr->wr_id = c->sent + 1;
	if (c->sent - c->completed >= c->q.send_wrs)
		return -EAGAIN;
	if (wr->wr_id % SIGNAL_EVERY == 0)
		wr->send_flags = IBV_SEND_SIGNALED;
	if (ibv_post_send(c->q.qp, wr, &bad))
		return -ENOTCONN;
	c->sent++;
	return 0;
}

static int send_notification(struct server_conn *c, uint32_t imm)
{
	struct ibv_send_wr wr = {.opcode = IBV_WR_SEND_WITH_IMM, .imm_data = htonl(imm)};

	return post_send(c, &wr);
}

/* A message of nothing, which the client's device acknowledges: a client whose host is dead says no
 * goodbye. One at a time. */
static void send_heartbeat(struct server_conn *c)
{
	struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};

	pthread_mutex_lock(&c->send_lock);
	if (c->may_send && c->completed >= c->heartbeat && post_send(c, &wr) == 0)
		c->heartbeat = wr.wr_id;
	pthread_mutex_unlock(&c->send_lock);
}

static int server_notify(struct smv_conn *conn, uint32_t imm)
{
	struct server_conn *c = to_server(conn);
	int ret;

	pthread_mutex_lock(&c->send_lock);
	if (atomic_load(&c->stop))
		ret = -ENOTCONN;
	else
		ret = c->may_send ? send_notification(c, imm) : -EAGAIN;
	pthread_mutex_unlock(&c->send_lock);
	return ret;
}

static void set_may_send(struct server_conn *c, bool may_send)
{
	pthread_mutex_lock(&c->send_lock);
	c->may_send = may_send;
	pthread_mutex_unlock(&c->send_lock);
}

static void server_close(struct smv_conn *conn)
{
	end_conn(to_server(conn));
}

static const struct smv_conn_ops server_ops = {.notify = server_notify, .close = server_close};

/* --- what comes ----------------------------------------------------------------------------- */

static int handle_completion(struct server_conn *c, const struct ibv_wc *wc)
{
	const struct smv_listener_handler *h = &c->listener->handler;

	if (wc->status != IBV_WC_SUCCESS)
		return -ECONNRESET;
	if (wc->wr_id != SMV_VERBS_RECV_WR) {
		pthread_mutex_lock(&c->send_lock);
		c->completed = wc->wr_id;
		pthread_mutex_unlock(&c->send_lock);
		return 0;
	}
	set_may_send(c, true); /* the client may be faster than rdma_cm's event */
	if (smv_verbs_qp_post_recv(&c->q, 1) < 0)
		return -ECONNRESET;
	if (h->notify && wc->wc_flags & IBV_WC_WITH_IMM)
		h->notify(h->ctx, c->ctx, &c->base, ntohl(wc->imm_data));
	return 0;
}

static int handle_completions(struct server_conn *c)
{
	struct ibv_wc wc;
	int n, ret = 0;

	smv_verbs_qp_arm(&c->q);
	while (ret == 0 && !atomic_load(&c->stop) && (n = ibv_poll_cq(c->q.cq, 1, &wc)) != 0)
		ret = n < 0 ? -EIO : handle_completion(c, &wc);
	return ret;
}

/* Until somebody or something ends the connection. */
static void serve(struct server_conn *c)
{
	struct pollfd fds[] = {
		{.fd = c->wake, .events = POLLIN}, {.fd = c->q.channel->fd, .events = POLLIN}};

	while (!atomic_load(&c->stop) && handle_completions(c) == 0) {
		int n = poll(fds, 2, HEARTBEAT_MS);

		if (n < 0 && errno != EINTR)
			return;
		if (n == 0)
			send_heartbeat(c);
	}
}

/* --- the life of a connection --------------------------------------------------------------- */

static void reject(struct server_conn *c, enum smv_verbs_status status)
{
	uint8_t data[SMV_VERBS_HELLO_SIZE];

	smv_verbs_put_hello(data,
		&(struct smv_verbs_hello){.version = SMV_VERBS_VERSION, .value = (uint8_t)status});
	rdma_reject(c->id, data, sizeof(data));
}

/* Returns 0 when the peer was let in, so that disconnected() must follow. */
static int greet(struct server_conn *c)
{
	struct smv_verbs_hello hello;
	int ret = smv_verbs_parse_hello(c->private_data, c->private_len, &hello);

	if (ret < 0 || hello.version != SMV_VERBS_VERSION) {
		reject(c, SMV_VERBS_VERSION_MISMATCH);
		return -EPROTO;
	}
	if (hello.value > c->private_len - SMV_VERBS_HELLO_SIZE || smv_verbs_export(c->dev) < 0) {
		reject(c, SMV_VERBS_NO_RESOURCES);
		return -EPROTO;
	}
	ret = smv_verbs_admit(&c->peer, &c->listener->handler, &c->base,
		c->private_data + SMV_VERBS_HELLO_SIZE, hello.value, &c->ctx);
	if (ret < 0)
		reject(c, SMV_VERBS_REFUSED);
	return ret;
}

static int accept_conn(struct server_conn *c)
{
	uint8_t data[SMV_VERBS_HELLO_SIZE];
	int limit = c->dev->attr.max_qp_rd_atom;
	const uint8_t depth = limit < c->read_depth ? (uint8_t)limit : c->read_depth;
	struct rdma_conn_param param = {
		.private_data = data,
		.private_data_len = sizeof(data),
		.responder_resources = depth,
		.initiator_depth = 1,
		.rnr_retry_count = 7, /* as in the queue pair */
		.qp_num = c->q.qp->qp_num,
	};
	int ret = smv_verbs_qp_init(&c->q, c->id, c->peer.access);

	if (ret == 0)
		ret = smv_verbs_qp_connect(
			&c->q, c->id, c->peer.access, (uint8_t[]){depth, 1}, TIMEOUT_MS);
	if (ret < 0)
		return ret;
	smv_verbs_put_hello(data, &(struct smv_verbs_hello){.version = SMV_VERBS_VERSION,
					  .access = (uint8_t)c->peer.access,
					  .slot = (uint8_t)smv_verbs_export(c->dev)});
	return rdma_accept(c->id, &param) < 0 ? -errno : 0;
}

static int establish(struct server_conn *c)
{
	struct ibv_pd *pd = smv_verbs_domain_pd(c->peer.domain, c->dev);
	int ret = pd ? smv_verbs_qp_create(&c->q, c->dev, pd, c->id, SEND_WRS, RECV_WRS) : -errno;

	if (ret == 0)
		ret = accept_conn(c);
	if (ret == -ECONNABORTED) {
		smv_log_debug("verbs: a client left while its connection was set up");
	} else if (ret < 0) {
		smv_log_warning("verbs: cannot set up a connection: %s", strerror(-ret));
		reject(c, SMV_VERBS_NO_RESOURCES);
	}
	return ret;
}

/* Nothing of the peer reaches memory after this. */
static void finish(struct server_conn *c)
{
	atomic_store(&c->stop, true);
	set_may_send(c, false);
	smv_verbs_qp_flush(&c->q);
	rdma_disconnect(c->id);
	smv_verbs_qp_destroy(&c->q);
	smv_verbs_peer_detach(&c->peer);
}

static void free_conn(struct server_conn *c)
{
	rdma_destroy_id(c->id); /* waits for events of it that are being handled */
	close(c->wake);
	pthread_mutex_destroy(&c->send_lock);
	free(c);
}

/* The last thing that a connection's thread does; the listener may be gone right after. */
static void leave_listener(struct server_conn *c)
{
	struct verbs_listener *l = c->listener;

	pthread_mutex_lock(&l->lock);
	*c->pprev = c->next;
	if (c->next)
		c->next->pprev = c->pprev;
	pthread_mutex_unlock(&l->lock);
	free_conn(c);
	pthread_mutex_lock(&l->lock);
	l->nr_threads--;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

static void *conn_main(void *arg)
{
	struct server_conn *c = arg;
	const struct smv_listener_handler *h = &c->listener->handler;

	if (greet(c) == 0) {
		if (establish(c) == 0)
			serve(c);
		finish(c);
		if (h->disconnected)
			h->disconnected(h->ctx, c->ctx, &c->base);
	}
	leave_listener(c);
	return NULL;
}

/* --- the listener --------------------------------------------------------------------------- */

static struct server_conn *conn_new(struct verbs_listener *l, const struct rdma_cm_event *event)
{
	const struct rdma_conn_param *p = &event->param.conn;
	struct server_conn *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->dev = smv_verbs_find_device(event->id->verbs);
	if (c->wake < 0 || !c->dev) {
		if (c->wake >= 0)
			close(c->wake);
		free(c);
		return NULL;
	}
	c->base.ops = &server_ops;
	c->peer.abort = abort_peer;
	c->listener = l;
	c->id = event->id;
	c->id->context = c;
	c->read_depth = p->responder_resources;
	c->private_len = p->private_data_len < sizeof(c->private_data) ? p->private_data_len
								       : sizeof(c->private_data);
	if (p->private_data)
		memcpy(c->private_data, p->private_data, c->private_len);
	else
		c->private_len = 0;
	pthread_mutex_init(&c->send_lock, NULL);
	return c;
}

static int start_conn(struct verbs_listener *l, const struct rdma_cm_event *event)
{
	struct server_conn *c = conn_new(l, event);
	pthread_t thread;
	int ret;

	if (!c)
		return -ENOMEM;
	pthread_mutex_lock(&l->lock);
	ret = l->closing ? -ESHUTDOWN
			 : smv_transport_thread(&thread, conn_main, c, "smv-verbs-conn");
	if (ret == 0) {
		pthread_detach(thread);
		l->nr_threads++;
		c->next = l->conns;
		c->pprev = &l->conns;
		if (c->next)
			c->next->pprev = &c->next;
		l->conns = c;
	}
	pthread_mutex_unlock(&l->lock);
	if (ret < 0) {
		c->id->context = NULL;
		close(c->wake);
		pthread_mutex_destroy(&c->send_lock);
		free(c);
	}
	return ret;
}

/* A connection's id is destroyed, and the connection freed, only after the event's
 * acknowledgement. Returns an id to destroy then, or NULL. */
static struct rdma_cm_id *handle_event(struct verbs_listener *l, const struct rdma_cm_event *event)
{
	struct server_conn *c = event->id != l->id ? event->id->context : NULL;
	int ret;

	switch (event->event) {
	case RDMA_CM_EVENT_CONNECT_REQUEST:
		ret = start_conn(l, event);
		if (ret == 0)
			return NULL;
		smv_log_warning("verbs: cannot take a connection: %s", strerror(-ret));
		rdma_reject(event->id, NULL, 0);
		return event->id;
	case RDMA_CM_EVENT_ESTABLISHED:
		set_may_send(c, true);
		return NULL;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		if (!c)
			smv_log_error("verbs: the device of a listener was removed");
		/* fallthrough */
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
		if (c)
			end_conn(c);
		return NULL;
	default:
		return NULL;
	}
}

static void handle_events(struct verbs_listener *l)
{
	struct rdma_cm_event *event;

	while (rdma_get_cm_event(l->cm, &event) == 0) {
		struct rdma_cm_id *unwanted = handle_event(l, event);

		rdma_ack_cm_event(event);
		if (unwanted)
			rdma_destroy_id(unwanted);
	}
}

static void *listen_main(void *arg)
{
	struct verbs_listener *l = arg;
	struct pollfd fds[] = {
		{.fd = l->wake, .events = POLLIN}, {.fd = l->cm->fd, .events = POLLIN}};

	while (poll(fds, 2, -1) >= 0 || errno == EINTR) {
		if (fds[0].revents)
			break;
		handle_events(l);
	}
	return NULL;
}

static int get_bound(struct rdma_cm_id *id, struct smv_addr *bound)
{
	struct sockaddr *sa = rdma_get_local_addr(id);
	socklen_t len = sa->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						  : sizeof(struct sockaddr_in);

	memset(bound, 0, sizeof(*bound));
	memcpy(bound->transport, "verbs", 6);
	if (getnameinfo(sa, len, bound->host, sizeof(bound->host), NULL, 0, NI_NUMERICHOST) != 0)
		return -EINVAL;
	bound->port = ntohs(rdma_get_src_port(id));
	return 0;
}

/* A listener on one address tells its device; one on all may meet any. */
static int bind_one(struct verbs_listener *l, const struct addrinfo *ai)
{
	struct smv_verbs_device *dev;

	if (rdma_create_id(l->cm, &l->id, NULL, RDMA_PS_TCP) < 0) {
		l->id = NULL;
		return -errno;
	}
	if (rdma_bind_addr(l->id, ai->ai_addr) < 0)
		return -errno;
	if (l->id->verbs) {
		dev = smv_verbs_find_device(l->id->verbs);
		if (!dev)
			return -EOPNOTSUPP;
		if (smv_verbs_export(dev) < 0)
			return -ENOSPC;
	}
	return 0;
}

static const char *bind_hint(int ret)
{
	switch (ret) {
	case -EADDRINUSE:
		return "Another program listens there; choose another port.";
	case -ENODEV:
		return "Listen on an address of an RDMA device (rdma link, ip address).";
	case -EOPNOTSUPP:
		return "Listen on an address of an InfiniBand or RoCE device; iWARP lacks "
		       "immediate "
		       "data.";
	case -ENOSPC:
		return "One process serves at most two RDMA devices; start another for the others.";
	default:
		return "Listen on an address that this host has.";
	}
}

static int bind_any(
	struct verbs_listener *l, const struct smv_addr *addr, bool listens, struct smv_error *err)
{
	struct addrinfo *list;
	char text[SMV_ADDR_MAX];
	int ret = smv_tcp_resolve(addr, AI_PASSIVE, &list, err);

	if (ret < 0)
		return ret;
	ret = -EADDRNOTAVAIL;
	for (const struct addrinfo *ai = list; ai && ret < 0; ai = ai->ai_next) {
		ret = bind_one(l, ai);
		if (ret == 0 && listens && rdma_listen(l->id, BACKLOG) < 0)
			ret = -errno;
		if (ret < 0 && l->id) {
			rdma_destroy_id(l->id);
			l->id = NULL;
		}
	}
	freeaddrinfo(list);
	if (ret < 0)
		return smv_fail(err, SMV_UNAVAILABLE, "listen-failed", bind_hint(ret),
			"cannot listen on %s: %s", smv_addr_format(addr, text, sizeof(text)),
			strerror(-ret));
	return 0;
}

/* Fine on a listener that was made in part. */
static void free_listener(struct verbs_listener *l)
{
	if (l->id)
		rdma_destroy_id(l->id);
	if (l->cm)
		rdma_destroy_event_channel(l->cm);
	if (l->wake >= 0)
		close(l->wake);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static struct verbs_listener *listener_new(
	const struct smv_transport *t, const struct smv_listener_handler *handler)
{
	struct verbs_listener *l = calloc(1, sizeof(*l));
	int flags;

	if (!l)
		return NULL;
	l->base.transport = t;
	l->handler = *handler;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	l->wake = eventfd(0, EFD_CLOEXEC);
	l->cm = rdma_create_event_channel();
	flags = l->cm ? fcntl(l->cm->fd, F_GETFL) : -1;
	if (l->wake >= 0 && flags >= 0 && fcntl(l->cm->fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
		fcntl(l->cm->fd, F_SETFD, FD_CLOEXEC) == 0)
		return l;
	free_listener(l);
	return NULL;
}

/* The device of the address has its export slot from here on. */
void smv_verbs_prepare(const struct smv_transport *t, const struct smv_addr *addr)
{
	struct verbs_listener *l = listener_new(t, &(struct smv_listener_handler){0});
	struct smv_error err;

	if (!l)
		return;
	bind_any(l, addr, false, &err);
	free_listener(l);
}

int smv_verbs_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err)
{
	struct verbs_listener *l = listener_new(t, handler);
	struct smv_addr real;
	int ret;

	if (!l)
		return smv_fail(err, SMV_UNAVAILABLE, "listen-failed",
			"Load the kernel module rdma_ucm.", "cannot use rdma_cm: %s",
			strerror(errno));
	ret = bind_any(l, addr, true, err);
	if (ret < 0) {
		free_listener(l);
		return ret;
	}
	ret = get_bound(l->id, &real);
	if (ret == 0)
		ret = smv_transport_thread(&l->thread, listen_main, l, "smv-verbs-accept");
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

/* The thread of the events goes last: a connection's end may need its acknowledgements. */
void smv_verbs_listener_close(struct smv_listener *listener)
{
	struct verbs_listener *l = smv_container_of(listener, struct verbs_listener, base);

	pthread_mutex_lock(&l->lock);
	l->closing = true;
	for (struct server_conn *c = l->conns; c; c = c->next)
		end_conn(c);
	while (l->nr_threads)
		pthread_cond_wait(&l->changed, &l->lock);
	pthread_mutex_unlock(&l->lock);
	eventfd_write(l->wake, 1);
	pthread_join(l->thread, NULL);
	free_listener(l);
}
