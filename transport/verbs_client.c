/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's end. Whatever is posted has a slot in a ring, oldest first:
 *
 *     head            done             tail
 *      | completed,    | posted         | free
 *      | to be told    |                |
 *
 * A slot is one or more work requests, whose wr_id is the slot's index. Only some are signalled:
 * because a send queue completes in order, a completion speaks for all slots before it too.
 *
 * A connection fails in one place, fail(): the queue pair is flushed and destroyed, so that the
 * device is done with the memory of the requests when they are told to have failed.
 */
#include "transport/verbs.h"

#include "common/clock.h"
#include "common/log.h"
#include "transport/tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define MAX_NOTIFIES_QUEUED 64 /* to the server */
#define MAX_NOTIFICATIONS 1024 /* from the server, not taken yet */
#define RECV_WRS 512
#define CHAIN_WRS 128 /* posted by one call */
#define CHAIN_SGES 256
/* When the server has ended the connection, the reason may still be on its way. */
#define REASON_NS (20 * SMV_NS_PER_MS)
#define LOOK_NS SMV_NS_PER_MS /* how often polling looks at the clock and at rdma_cm */
/* The longest usual time that is polled for. A wake-up costs microseconds on a CPU, and 170 us on
 * an emulated one in tests/lab; what takes longer than this gains little, and who sleeps burns
 * nothing. */
#define POLL_MAX_NS SMV_NS_PER_MS

enum slot_kind { SLOT_READ, SLOT_WRITE, SLOT_NOTIFY, SLOT_HEARTBEAT };

struct slot {
	uint64_t cookie;
	uint64_t posted_ns;
	uint32_t len;
	enum slot_kind kind;
	unsigned int nr_wrs;
	int status;
};

struct verbs_client {
	struct smv_conn base;
	struct smv_domain *domain;
	struct smv_verbs_qp q;
	struct rdma_event_channel *cm;
	struct rdma_cm_id *id;
	int epoll_fd; /* completions and events of rdma_cm */
	unsigned int rkey_shift;
	unsigned int depth;
	unsigned int access; /* what the server lets us do */
	uint64_t timeout_ns;

	bool failed;
	int error;           /* why the connection is to fail */
	bool error_is_flush; /* ... is not known better: flushed */
	bool saw_send_error;

	struct slot *ring; /* free-running indices into it */
	uint32_t ring_size;
	uint64_t head, done, tail;
	unsigned int nr_requests;  /* head..tail, reads and writes only */
	unsigned int nr_completed; /* head..done, reads and writes only */
	unsigned int nr_reads;     /* done..tail */
	unsigned int nr_notifies;
	unsigned int wrs_used;    /* entries of the send queue */
	unsigned int unsignalled; /* ... since the last signalled one */
	unsigned int signal_every;
	bool may_poll;     /* instead of sleeping, see polls_on() */
	uint64_t usual_ns; /* from post to completion, about the median */
	uint64_t heard_ns; /* last sign of life */
	uint64_t left_ns;  /* when the server ended the connection, or 0 */
	uint64_t looked_ns;

	/* Work requests to be posted together. */
	unsigned int chain_wrs, chain_sges;
	struct ibv_send_wr wr[CHAIN_WRS];
	struct ibv_sge sge[CHAIN_SGES];

	uint32_t notifications[MAX_NOTIFICATIONS];
	uint32_t notifications_head, notifications_tail;
	struct smv_conn_stats stats;
};

static struct verbs_client *to_client(const struct smv_conn *conn)
{
	return smv_container_of(conn, struct verbs_client, base);
}

static struct slot *slot_at(const struct verbs_client *c, uint64_t i)
{
	return &c->ring[i & (c->ring_size - 1)];
}

static bool is_request(const struct slot *s)
{
	return s->kind == SLOT_READ || s->kind == SLOT_WRITE;
}

/* --- completions ---------------------------------------------------------------------------- */

static void finish_slot(struct verbs_client *c, int status)
{
	struct slot *s = slot_at(c, c->done++);

	c->wrs_used -= s->nr_wrs;
	if (!is_request(s))
		return;
	s->status = status;
	c->nr_completed++;
	if (s->kind == SLOT_READ)
		c->nr_reads--;
	if (status == 0)
		*(s->kind == SLOT_READ ? &c->stats.bytes_read : &c->stats.bytes_written) += s->len;
}

static void succeed_before(struct verbs_client *c, uint64_t end)
{
	while (c->done < end && c->done != c->tail)
		finish_slot(c, 0);
}

/* The newest of what has completed tells how long requests take now. A median and no average, so
 * that a few slow ones do not count: Q. Ma, S. Muthukrishnan, M. Sandler, "Frugal Streaming for
 * Estimating Quantiles", 2013, with steps in proportion. */
static void learn_usual_time(struct verbs_client *c, uint64_t now)
{
	uint64_t ns = now - slot_at(c, c->done - 1)->posted_ns, step = c->usual_ns / 16 + 1;

	if (c->usual_ns == 0)
		c->usual_ns = ns;
	else if (ns > c->usual_ns)
		c->usual_ns += step;
	else
		c->usual_ns -= step;
}

static int status_of(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_REM_ACCESS_ERR:
	case IBV_WC_REM_INV_REQ_ERR: /* the operation is not allowed on the connection at all */
		return -EACCES;
	case IBV_WC_RETRY_EXC_ERR:
	case IBV_WC_RNR_RETRY_EXC_ERR:
	case IBV_WC_RESP_TIMEOUT_ERR:
		return -ETIMEDOUT;
	case IBV_WC_WR_FLUSH_ERR:
		return -ECONNRESET;
	default:
		smv_log_warning("verbs: a request failed: %s", ibv_wc_status_str(status));
		return -ECONNRESET;
	}
}

/* The first failure counts; that something was flushed is only a consequence. */
static void note_error(struct verbs_client *c, const struct ibv_wc *wc)
{
	bool flushed = wc->status == IBV_WC_WR_FLUSH_ERR;

	if (wc->wr_id != SMV_VERBS_RECV_WR && !c->saw_send_error) {
		c->saw_send_error = true;
		succeed_before(c, wc->wr_id);
	}
	if (c->error && (flushed || !c->error_is_flush))
		return;
	c->error = status_of(wc->status);
	c->error_is_flush = flushed;
}

static void keep_notification(struct verbs_client *c, uint32_t imm)
{
	if (c->notifications_tail - c->notifications_head < MAX_NOTIFICATIONS) {
		c->notifications[c->notifications_tail++ % MAX_NOTIFICATIONS] = imm;
		return;
	}
	smv_log_warning("verbs: %u notifications were never taken; ending the connection",
		MAX_NOTIFICATIONS);
	c->error = -ECONNRESET;
	c->error_is_flush = false;
}

/* Take what the completion queue has. */
static void collect(struct verbs_client *c)
{
	const uint64_t done = c->done;
	unsigned int received = 0;
	struct ibv_wc wc[32];
	bool heard = false;
	int n;

	do {
		n = ibv_poll_cq(c->q.cq, 32, wc);
		for (int i = 0; i < n; i++) {
			if (wc[i].status != IBV_WC_SUCCESS) {
				note_error(c, &wc[i]);
				continue;
			}
			heard = true;
			if (wc[i].wr_id != SMV_VERBS_RECV_WR) {
				succeed_before(c, wc[i].wr_id + 1);
				continue;
			}
			received++;
			if (wc[i].wc_flags & IBV_WC_WITH_IMM)
				keep_notification(c, ntohl(wc[i].imm_data));
		}
	} while (n == 32);
	if (n < 0 && !c->error)
		c->error = -ECONNRESET;
	if (heard)
		c->heard_ns = smv_now_ns();
	if (heard && c->done != done)
		learn_usual_time(c, c->heard_ns);
	if (received && !c->error && smv_verbs_qp_post_recv(&c->q, received) < 0)
		c->error = -ECONNRESET;
}

/* The oldest request gets the error's status, those behind it were flushed. */
static void fail(struct verbs_client *c)
{
	int status;

	c->failed = true;
	rdma_disconnect(c->id); /* tells the server */
	smv_verbs_qp_flush(&c->q);
	collect(c); /* what was done before, and perhaps a better reason */
	smv_verbs_qp_stop(&c->q);
	status = c->error;
	while (c->done != c->tail) {
		bool request = is_request(slot_at(c, c->done));

		finish_slot(c, status);
		if (request)
			status = -ECANCELED;
	}
}

/* A reason that only stands when the completion queue does not tell a better one. */
static void give_up(struct verbs_client *c, int status)
{
	if (!c->error) {
		c->error = status;
		c->error_is_flush = true;
	}
}

/* --- posting -------------------------------------------------------------------------------- */

static void flush_chain(struct verbs_client *c)
{
	struct ibv_send_wr *bad, *last;
	int ret;

	if (c->chain_wrs == 0)
		return;
	last = &c->wr[c->chain_wrs - 1];
	last->next = NULL;
	last->send_flags |= IBV_SEND_SIGNALED;
	c->unsignalled = 0;
	ret = ibv_post_send(c->q.qp, c->wr, &bad);
	c->chain_wrs = c->chain_sges = 0;
	if (ret) {
		smv_log_warning("verbs: cannot post requests: %s", strerror(ret));
		give_up(c, -ECONNRESET);
	}
}

static struct slot *take_slot(struct verbs_client *c, enum slot_kind kind, uint64_t now)
{
	struct slot *s = slot_at(c, c->tail);

	*s = (struct slot){.kind = kind, .posted_ns = now};
	return s;
}

static struct ibv_send_wr *add_wr(struct verbs_client *c, enum ibv_wr_opcode opcode)
{
	struct ibv_send_wr *wr = &c->wr[c->chain_wrs++];

	*wr = (struct ibv_send_wr){.wr_id = c->tail,
		.next = wr + 1,
		.sg_list = &c->sge[c->chain_sges],
		.opcode = opcode};
	return wr;
}

/* The slot at the tail is complete: @last is its last work request. */
static void add_slot(struct verbs_client *c, struct slot *s, struct ibv_send_wr *last)
{
	c->tail++;
	c->wrs_used += s->nr_wrs;
	c->unsignalled += s->nr_wrs;
	if (c->unsignalled >= c->signal_every) {
		last->send_flags |= IBV_SEND_SIGNALED;
		c->unsignalled = 0;
	}
}

static unsigned int sges_of_one_wr(const struct verbs_client *c, const struct smv_request *r)
{
	return r->op == SMV_OP_READ ? c->q.max_sge_read : c->q.max_sge;
}

/* How many work requests; an upper bound, since empty elements are left out. */
static unsigned int wrs_needed(const struct verbs_client *c, const struct smv_request *r)
{
	unsigned int max = sges_of_one_wr(c, r);

	return (r->nr_sge + max - 1) / max;
}

/* What follows a read must wait for it: the responder may execute it before it has fetched what
 * was read (InfiniBand specification, "Work Request Operation Ordering"). */
static unsigned int fence(const struct verbs_client *c)
{
	return c->nr_reads ? IBV_SEND_FENCE : 0;
}

static void add_request(
	struct verbs_client *c, const struct smv_request *r, uint32_t len, uint64_t now)
{
	bool read = r->op == SMV_OP_READ;
	struct slot *s = take_slot(c, read ? SLOT_READ : SLOT_WRITE, now);
	int max = (int)sges_of_one_wr(c, r);
	uint64_t remote = r->remote_addr;
	struct ibv_send_wr *wr = NULL;

	for (unsigned int i = 0; i < r->nr_sge; i++) {
		const struct smv_sge *sge = &r->sge[i];

		if (!sge->len)
			continue;
		if (!wr || wr->num_sge == max) {
			wr = add_wr(c, read ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE);
			wr->wr.rdma.remote_addr = remote;
			wr->wr.rdma.rkey = (uint32_t)(r->rkey >> c->rkey_shift);
			if (s->nr_wrs++ == 0 && !read)
				wr->send_flags = fence(c);
		}
		wr->num_sge++;
		c->sge[c->chain_sges++] = (struct ibv_sge){
			(uintptr_t)sge->addr, sge->len, smv_verbs_lkey(sge->region, c->q.dev)};
		remote += sge->len;
	}
	if (!read && s->nr_wrs == 1 && len <= c->q.max_inline)
		wr->send_flags |= IBV_SEND_INLINE;
	s->cookie = r->cookie;
	s->len = len;
	c->nr_requests++;
	c->nr_reads += read;
	add_slot(c, s, wr);
}

static int client_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n)
{
	struct verbs_client *c = to_client(conn);
	uint64_t now = smv_now_ns();
	unsigned int i;

	if (c->failed)
		return -ENOTCONN;
	for (i = 0; i < n && c->nr_requests < c->depth; i++) {
		const struct smv_request *r = &requests[i];
		int len = smv_verbs_request_bytes(c->domain, r);

		if (len < 0 && i == 0)
			return len;
		if (len < 0 || c->wrs_used + wrs_needed(c, r) > c->q.send_wrs)
			break;
		if (c->chain_wrs + wrs_needed(c, r) > CHAIN_WRS ||
			c->chain_sges + r->nr_sge > CHAIN_SGES)
			flush_chain(c);
		add_request(c, r, (uint32_t)len, now);
	}
	flush_chain(c);
	return (int)i;
}

static void pass_told(struct verbs_client *c)
{
	for (; c->head != c->done && !is_request(slot_at(c, c->head)); c->head++)
		c->nr_notifies -= slot_at(c, c->head)->kind == SLOT_NOTIFY;
}

static int client_notify(struct smv_conn *conn, uint32_t imm)
{
	struct verbs_client *c = to_client(conn);
	struct ibv_send_wr *wr;
	struct slot *s;

	if (c->failed)
		return -ENOTCONN;
	pass_told(c);
	if (c->nr_notifies == MAX_NOTIFIES_QUEUED || c->wrs_used == c->q.send_wrs)
		return -EAGAIN;
	s = take_slot(c, SLOT_NOTIFY, smv_now_ns());
	s->nr_wrs = 1;
	wr = add_wr(c, IBV_WR_SEND_WITH_IMM);
	wr->imm_data = htonl(imm);
	wr->send_flags = fence(c);
	c->nr_notifies++;
	add_slot(c, s, wr);
	flush_chain(c);
	return 0;
}

/* --- time ----------------------------------------------------------------------------------- */

/* When something must be done if nothing happens. */
static uint64_t next_time(struct verbs_client *c)
{
	uint64_t deadline;

	if (c->done != c->tail) {
		deadline = slot_at(c, c->done)->posted_ns + c->timeout_ns;
		return c->left_ns && c->left_ns + REASON_NS < deadline ? c->left_ns + REASON_NS
								       : deadline;
	}
	if (c->left_ns)
		return c->left_ns;
	return c->access ? c->heard_ns + c->timeout_ns / 2 : UINT64_MAX;
}

/*
 * A dead peer answers nothing, so ask it something while idle: an access of no bytes needs no
 * memory, no code of the peer runs for it, and it is allowed where the peer allows its kind.
 */
static void post_heartbeat(struct verbs_client *c, uint64_t now)
{
	bool write = c->access & SMV_ACCESS_REMOTE_WRITE;
	struct slot *s;

	pass_told(c);
	s = take_slot(c, SLOT_HEARTBEAT, now);
	s->nr_wrs = 1;
	add_slot(c, s, add_wr(c, write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ));
	flush_chain(c);
}

static void look_at_clock(struct verbs_client *c, uint64_t now)
{
	if (c->error || now < next_time(c))
		return;
	if (c->left_ns)
		give_up(c, -ECONNRESET);
	else if (c->done != c->tail)
		give_up(c, -ETIMEDOUT);
	else
		post_heartbeat(c, now);
}

static void look_at_cm(struct verbs_client *c)
{
	struct rdma_cm_event *event;

	while (rdma_get_cm_event(c->cm, &event) == 0) {
		bool over = event->event == RDMA_CM_EVENT_DISCONNECTED ||
			    event->event == RDMA_CM_EVENT_DEVICE_REMOVAL;

		rdma_ack_cm_event(event);
		if (over && !c->left_ns)
			c->left_ns = smv_now_ns();
	}
}

static void look_around(struct verbs_client *c)
{
	uint64_t now = smv_now_ns();

	if (now - c->looked_ns < LOOK_NS)
		return;
	c->looked_ns = now;
	look_at_cm(c);
	look_at_clock(c, now);
}

/* --- the other operations ------------------------------------------------------------------- */

static unsigned int deliver(
	struct verbs_client *c, struct smv_completion *completions, unsigned int max)
{
	unsigned int n = 0;

	for (;;) {
		const struct slot *s;

		pass_told(c);
		if (c->head == c->done || n == max)
			return n;
		s = slot_at(c, c->head++);
		completions[n++] = (struct smv_completion){s->cookie, s->status};
		c->nr_requests--;
		c->nr_completed--;
	}
}

/* An empty look gives the processor away: Soft-RoCE needs it, and other threads may. */
static int client_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max)
{
	struct verbs_client *c = to_client(conn);
	unsigned int n;

	if (!c->failed) {
		collect(c);
		if (c->nr_completed == 0 && !c->error) {
			look_around(c);
			sched_yield();
		}
		if (c->error)
			fail(c);
	}
	n = deliver(c, completions, max);
	return n == 0 && c->failed && c->nr_completed == 0 ? -ENOTCONN : (int)n;
}

static bool has_news(const struct verbs_client *c)
{
	return c->failed || c->nr_completed || c->notifications_head != c->notifications_tail;
}

/* Adaptive polling: a request that is expected soon is polled for, up to twice the usual time. If
 * it takes longer, or requests usually take long, an event will tell. Idle connections sleep. */
static bool polls_on(const struct verbs_client *c)
{
	return c->may_poll && c->done != c->tail && c->usual_ns < POLL_MAX_NS &&
	       smv_now_ns() - slot_at(c, c->done)->posted_ns < 2 * c->usual_ns;
}

static int client_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	struct verbs_client *c = to_client(conn);
	uint64_t now, next;

	*fd_events = POLLIN;
	*timeout_ms = -1;
	if (has_news(c) || polls_on(c))
		return 1;
	smv_verbs_qp_arm(&c->q);
	collect(c);
	now = smv_now_ns(); /* events of rdma_cm wake by themselves, and client_poll() takes them */
	look_at_clock(c, now);
	if (c->error)
		fail(c);
	if (has_news(c))
		return 1;
	next = next_time(c);
	if (next != UINT64_MAX)
		*timeout_ms = next > now ? (int)((next - now) / SMV_NS_PER_MS) + 1 : 0;
	return 0;
}

static int client_fd(const struct smv_conn *conn)
{
	return to_client(conn)->epoll_fd;
}

static int client_next_notification(struct smv_conn *conn, uint32_t *imm)
{
	struct verbs_client *c = to_client(conn);

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

/* Fine on a connection that was made in part. */
static void free_client(struct verbs_client *c)
{
	smv_verbs_qp_destroy(&c->q);
	if (c->id)
		rdma_destroy_id(c->id);
	if (c->cm)
		rdma_destroy_event_channel(c->cm);
	if (c->epoll_fd >= 0)
		close(c->epoll_fd);
	free(c->ring);
	free(c);
}

static void client_close(struct smv_conn *conn)
{
	struct verbs_client *c = to_client(conn);

	if (!c->failed) {
		smv_verbs_qp_flush(&c->q);
		rdma_disconnect(c->id);
	}
	free_client(c);
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

/* An event of rdma_cm, copied. */
struct cm_event {
	enum rdma_cm_event_type type;
	int status;
	uint8_t responder_resources, initiator_depth;
	struct smv_verbs_hello hello;
	bool has_hello;
};

static void copy_event(const struct rdma_cm_event *from, struct cm_event *to)
{
	const struct rdma_conn_param *p = &from->param.conn;

	*to = (struct cm_event){.type = from->event, .status = from->status};
	if (from->event != RDMA_CM_EVENT_CONNECT_RESPONSE && from->event != RDMA_CM_EVENT_REJECTED)
		return;
	to->responder_resources = p->responder_resources;
	to->initiator_depth = p->initiator_depth;
	to->has_hello = p->private_data && smv_verbs_parse_hello(p->private_data,
						   p->private_data_len, &to->hello) == 0;
}

static int next_event(struct rdma_event_channel *cm, uint64_t deadline, struct cm_event *copy)
{
	struct rdma_cm_event *event;

	while (rdma_get_cm_event(cm, &event) < 0) {
		int ret = errno == EAGAIN ? smv_tcp_wait(cm->fd, POLLIN, deadline) : -errno;

		if (ret < 0)
			return ret;
	}
	copy_event(event, copy);
	rdma_ack_cm_event(event);
	return 0;
}

static int expect_event(
	struct rdma_event_channel *cm, enum rdma_cm_event_type wanted, uint64_t deadline)
{
	struct cm_event event;
	int ret = next_event(cm, deadline, &event);

	if (ret < 0)
		return ret;
	if (event.type == wanted)
		return 0;
	return event.status < 0 ? event.status : -EHOSTUNREACH;
}

static int open_cm(struct rdma_event_channel **cm, struct rdma_cm_id **id)
{
	int flags;

	*cm = rdma_create_event_channel();
	if (!*cm)
		return -errno;
	flags = fcntl((*cm)->fd, F_GETFL);
	if (flags < 0 || fcntl((*cm)->fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
		fcntl((*cm)->fd, F_SETFD, FD_CLOEXEC) < 0)
		return -errno;
	return rdma_create_id(*cm, id, NULL, RDMA_PS_TCP) < 0 ? -errno : 0;
}

/* Find the device and the route. */
static int resolve(struct rdma_event_channel *cm, struct rdma_cm_id *id, struct sockaddr *to,
	uint64_t deadline, const char **what)
{
	uint64_t now = smv_now_ns();
	int ms = now < deadline ? (int)((deadline - now) / SMV_NS_PER_MS) + 1 : 1;
	int ret;

	*what = "no RDMA device leads there";
	ret = rdma_resolve_addr(id, NULL, to, ms) < 0 ? -errno : 0;
	if (ret == 0)
		ret = expect_event(cm, RDMA_CM_EVENT_ADDR_RESOLVED, deadline);
	if (ret == 0 && !smv_verbs_find_device(id->verbs))
		ret = -EOPNOTSUPP;
	if (ret < 0)
		return ret;
	*what = "no RDMA route leads there";
	ret = rdma_resolve_route(id, ms) < 0 ? -errno : 0;
	return ret < 0 ? ret : expect_event(cm, RDMA_CM_EVENT_ROUTE_RESOLVED, deadline);
}

static int reach(const struct addrinfo *ai, uint64_t deadline, const char **what)
{
	struct rdma_event_channel *cm = NULL;
	struct rdma_cm_id *id = NULL;
	int ret = open_cm(&cm, &id);

	*what = "rdma_cm cannot be used";
	if (ret == 0)
		ret = resolve(cm, id, ai->ai_addr, deadline, what);
	if (id)
		rdma_destroy_id(id);
	if (cm)
		rdma_destroy_event_channel(cm);
	return ret;
}

bool smv_verbs_reachable(const struct smv_addr *addr, char *why, size_t why_len)
{
	uint64_t deadline = smv_now_ns() + SMV_NS_PER_S;
	const char *what = "the name has no address";
	struct smv_error err = {0};
	struct addrinfo *list;
	int ret = -EHOSTUNREACH;

	if (smv_tcp_resolve(addr, 0, &list, &err) < 0) {
		snprintf(why, why_len, "%s", err.message);
		return false;
	}
	for (const struct addrinfo *ai = list; ai && ret < 0; ai = ai->ai_next)
		ret = reach(ai, deadline, &what);
	freeaddrinfo(list);
	if (ret < 0)
		snprintf(why, why_len, "%s: %s (%s)", addr->host, what, strerror(-ret));
	return ret == 0;
}

static struct verbs_client *client_new(
	struct smv_domain *domain, const struct smv_conn_options *options)
{
	struct verbs_client *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->base.ops = &client_ops;
	c->domain = domain;
	c->depth = options->depth;
	c->timeout_ns = options->timeout_ms * SMV_NS_PER_MS;
	c->may_poll = !options->events_only;
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	/* Requests, notifies, one heartbeat. */
	for (c->ring_size = 1; c->ring_size < c->depth + MAX_NOTIFIES_QUEUED + 1;)
		c->ring_size <<= 1;
	c->ring = calloc(c->ring_size, sizeof(*c->ring));
	if (c->epoll_fd >= 0 && c->ring)
		return c;
	free_client(c);
	return NULL;
}

static int watch_fd(struct verbs_client *c, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* Two work requests for a request of many elements, and the notifies. */
static unsigned int send_wrs_for(unsigned int depth)
{
	return 2 * depth + SMV_SGE_MAX + MAX_NOTIFIES_QUEUED + 1;
}

static int make_qp(struct verbs_client *c)
{
	struct smv_verbs_device *dev = smv_verbs_find_device(c->id->verbs);
	struct ibv_pd *pd = smv_verbs_domain_pd(c->domain, dev);
	int ret;

	if (!pd)
		return -errno;
	ret = smv_verbs_qp_create(&c->q, dev, pd, c->id, send_wrs_for(c->depth), RECV_WRS);
	if (ret < 0)
		return ret;
	c->signal_every = (c->depth < c->q.send_wrs ? c->depth : c->q.send_wrs) / 4;
	ret = smv_verbs_qp_init(&c->q, c->id, 0);
	if (ret == 0)
		ret = watch_fd(c, c->cm->fd);
	return ret < 0 ? ret : watch_fd(c, c->q.channel->fd);
}

static uint8_t to_u8(int v)
{
	return (uint8_t)(v < 0 ? 0 : v > UINT8_MAX - 1 ? UINT8_MAX - 1 : v);
}

static int request_connection(struct verbs_client *c, const void *private_data, size_t private_len)
{
	uint8_t data[SMV_VERBS_HELLO_SIZE + SMV_PRIVATE_DATA_MAX] = {0};
	struct rdma_conn_param param = {
		.private_data = data,
		.private_data_len = (uint8_t)(SMV_VERBS_HELLO_SIZE + private_len),
		.initiator_depth = to_u8(c->q.dev->attr.max_qp_init_rd_atom),
		.responder_resources = 1,
		.retry_count = 6,
		.rnr_retry_count = 7, /* as in the queue pair */
		.qp_num = c->q.qp->qp_num,
	};

	smv_verbs_put_hello(data, &(struct smv_verbs_hello){.version = SMV_VERBS_VERSION,
					  .value = (uint8_t)private_len});
	if (private_len)
		memcpy(data + SMV_VERBS_HELLO_SIZE, private_data, private_len);
	return rdma_connect(c->id, &param) < 0 ? -errno : 0;
}

static int judge_rejection(const struct cm_event *event, const char *peer, struct smv_error *err)
{
	if (!event->has_hello)
		return smv_fail(err, SMV_UNAVAILABLE, "connect-failed",
			"Check that the peer runs there, with a verbs data address.",
			"cannot connect to %s: its host rejects the connection (reason %d)", peer,
			event->status);
	if (event->hello.version != SMV_VERBS_VERSION ||
		event->hello.value == SMV_VERBS_VERSION_MISMATCH)
		return smv_fail(err, SMV_UNIMPLEMENTED, "version-mismatch",
			"Install the same version of smemv on both hosts.",
			"%s speaks version %u of the data protocol, this program version %u", peer,
			event->hello.version, SMV_VERBS_VERSION);
	if (event->hello.value == SMV_VERBS_NO_RESOURCES)
		return smv_fail(err, SMV_UNAVAILABLE, "connect-failed", "The peer's log says why.",
			"%s has no resources for the data connection", peer);
	return smv_fail(err, SMV_PERMISSION, "connection-refused",
		"The lease may be gone or its epoch raised; the peer's log says why.",
		"%s refused the data connection", peer);
}

static int judge_answer(const struct cm_event *event, const char *peer, struct smv_error *err)
{
	if (event->type == RDMA_CM_EVENT_REJECTED)
		return judge_rejection(event, peer, err);
	if (event->type != RDMA_CM_EVENT_CONNECT_RESPONSE)
		return smv_fail(err, event->status == -ETIMEDOUT ? SMV_TIMEOUT : SMV_UNAVAILABLE,
			"connect-failed", "Check that the peer runs there.",
			"cannot connect to %s: %s (%s)", peer, rdma_event_str(event->type),
			strerror(event->status < 0 ? -event->status : EHOSTUNREACH));
	if (!event->has_hello || event->hello.slot >= SMV_VERBS_EXPORTS)
		return smv_fail(err, SMV_INTERNAL, "not-smemv",
			"Check the port: it must be a data address.",
			"%s answers, but not in the data protocol of smemv", peer);
	return 0;
}

static int establish(struct verbs_client *c, const struct cm_event *event)
{
	/* The event speaks from the server's side about ours. */
	const uint8_t read_depth[2] = {1, event->initiator_depth};
	int ret = smv_verbs_qp_connect(
		&c->q, c->id, 0, read_depth, (unsigned int)(c->timeout_ns / SMV_NS_PER_MS));

	if (ret < 0)
		return ret;
	c->rkey_shift = 32u * event->hello.slot;
	c->access = event->hello.access;
	c->heard_ns = smv_now_ns();
	return rdma_establish(c->id) < 0 ? -errno : 0;
}

static int connect_one(struct verbs_client *c, const struct addrinfo *ai, const char *peer,
	const void *private_data, size_t private_len, uint64_t deadline, struct smv_error *err)
{
	const char *what = "rdma_cm cannot be used";
	struct cm_event event;
	int ret = open_cm(&c->cm, &c->id);

	if (ret == 0)
		ret = resolve(c->cm, c->id, ai->ai_addr, deadline, &what);
	if (ret == 0) {
		what = "the connection cannot be set up on the device";
		ret = make_qp(c);
	}
	if (ret == 0)
		ret = request_connection(c, private_data, private_len);
	if (ret == 0) {
		what = "no answer";
		ret = next_event(c->cm, deadline, &event);
	}
	if (ret == 0) {
		ret = judge_answer(&event, peer, err);
		if (ret < 0)
			return ret;
		what = "the connection cannot be established";
		ret = establish(c, &event);
	}
	if (ret < 0)
		return smv_fail(err,
			ret == -ETIMEDOUT ? SMV_TIMEOUT
			: ret == -ENOMEM  ? SMV_NO_ROOM
					  : SMV_UNAVAILABLE,
			"connect-failed",
			ret == -ENOMEM
				? "Raise RLIMIT_MEMLOCK: ulimit -l unlimited, or "
				  "LimitMEMLOCK=infinity in the unit."
				: "Check that the peer runs there, and the RDMA devices of both "
				  "hosts.",
			"cannot connect to %s: %s (%s)", peer, what, strerror(-ret));
	return 0;
}

int smv_verbs_connect(struct smv_domain *domain, const struct smv_addr *addr,
	const void *private_data, size_t private_len, const struct smv_conn_options *options,
	struct smv_conn **conn, struct smv_error *err)
{
	uint64_t deadline = smv_now_ns() + options->connect_timeout_ms * SMV_NS_PER_MS;
	char peer[SMV_ADDR_MAX];
	struct addrinfo *list;
	int ret = smv_tcp_resolve(addr, 0, &list, err);

	if (ret < 0)
		return ret;
	smv_addr_format(addr, peer, sizeof(peer));
	ret = -EHOSTUNREACH;
	for (const struct addrinfo *ai = list; ai && ret < 0 && ret != -EACCES; ai = ai->ai_next) {
		struct verbs_client *c = client_new(domain, options);

		if (!c) {
			ret = smv_fail(err, SMV_NO_ROOM, "no-memory", NULL,
				"no memory for the connection to %s", peer);
			break;
		}
		ret = connect_one(c, ai, peer, private_data, private_len, deadline, err);
		if (ret == 0)
			*conn = &c->base;
		else
			free_client(c);
	}
	freeaddrinfo(list);
	return ret;
}
