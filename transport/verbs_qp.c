/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/verbs.h"

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Six: seven means for ever on some devices. */
#define RETRIES 6

/* How long a peer without a posted receive makes us wait before a retry: code 28 is 164 ms. */
#define MIN_RNR_TIMER 28

/* The room in send queue entries to try for, the largest first: devices bound gather lists, inline
 * data and the number of entries together, and only creation tells. */
static const struct room {
	uint32_t sge, inline_bytes;
} rooms[] = {{32, 256}, {32, 64}, {16, 64}, {16, 0}, {4, 0}, {1, 0}};

static uint32_t at_most(uint32_t v, int limit)
{
	return limit > 0 && v > (uint32_t)limit ? (uint32_t)limit : v;
}

static bool try_qp(struct smv_verbs_qp *q, struct ibv_pd *pd, const struct room *room)
{
	const struct ibv_device_attr *attr = &q->dev->attr;
	struct ibv_qp_init_attr init = {
		.send_cq = q->cq,
		.recv_cq = q->cq,
		.cap = {.max_send_wr = q->send_wrs,
			.max_recv_wr = q->recv_wrs,
			.max_send_sge = at_most(room->sge, attr->max_sge),
			.max_recv_sge = 1,
			.max_inline_data = room->inline_bytes},
		.qp_type = IBV_QPT_RC,
	};

	q->qp = ibv_create_qp(pd, &init);
	if (!q->qp)
		return false;
	q->max_sge = init.cap.max_send_sge < SMV_SGE_MAX ? init.cap.max_send_sge : SMV_SGE_MAX;
	q->max_sge_read = at_most(q->max_sge, attr->max_sge_rd);
	q->max_inline = init.cap.max_inline_data;
	return true;
}

static int create_qp(struct smv_verbs_qp *q, struct ibv_pd *pd)
{
	for (;;) {
		for (size_t i = 0; i < sizeof(rooms) / sizeof(rooms[0]); i++)
			if (try_qp(q, pd, &rooms[i]))
				return 0;
		/* A send queue shorter than the longest request would never take it. */
		if (q->send_wrs / 2 <= SMV_SGE_MAX)
			return -(errno ? errno : ENOMEM);
		q->send_wrs /= 2;
	}
}

static int create_queues(struct smv_verbs_qp *q, struct ibv_pd *pd)
{
	int flags;

	q->channel = ibv_create_comp_channel(q->dev->ctx);
	if (!q->channel)
		return -errno;
	flags = fcntl(q->channel->fd, F_GETFL);
	if (flags < 0 || fcntl(q->channel->fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	q->cq = ibv_create_cq(q->dev->ctx, (int)(q->send_wrs + q->recv_wrs), NULL, q->channel, 0);
	if (!q->cq)
		return -(errno ? errno : ENOMEM);
	return create_qp(q, pd);
}

static void enlist(struct smv_verbs_qp *q)
{
	struct smv_verbs_device *d = q->dev;

	pthread_mutex_lock(&d->lock);
	q->next = d->qps;
	q->pprev = &d->qps;
	if (q->next)
		q->next->pprev = &q->next;
	d->qps = q;
	pthread_mutex_unlock(&d->lock);
}

int smv_verbs_qp_create(struct smv_verbs_qp *q, struct smv_verbs_device *dev, struct ibv_pd *pd,
	const struct rdma_cm_id *id, unsigned int send_wrs, unsigned int recv_wrs)
{
	struct ibv_port_attr port;
	int ret;

	memset(q, 0, sizeof(*q));
	q->dev = dev;
	q->port = id->port_num;
	if (ibv_query_port(dev->ctx, q->port, &port) != 0)
		return -EIO;
	if (port.max_msg_sz < SMV_REQUEST_MAX)
		return -EMSGSIZE;
	q->recv_wrs = at_most(recv_wrs, dev->attr.max_qp_wr);
	q->send_wrs = at_most(send_wrs, dev->attr.max_qp_wr);
	if (dev->attr.max_cqe > (int)q->recv_wrs)
		q->send_wrs = at_most(q->send_wrs, dev->attr.max_cqe - (int)q->recv_wrs);
	ret = create_queues(q, pd);
	if (ret < 0) {
		smv_verbs_qp_destroy(q);
		return ret;
	}
	enlist(q);
	return 0;
}

/* --- states --------------------------------------------------------------------------------- */

static unsigned int qp_access(unsigned int access)
{
	unsigned int flags = 0;

	if (access & SMV_ACCESS_REMOTE_READ)
		flags |= IBV_ACCESS_REMOTE_READ;
	if (access & SMV_ACCESS_REMOTE_WRITE)
		flags |= IBV_ACCESS_REMOTE_WRITE;
	return flags;
}

/* What rdma_cm knows about the way to @state. It calls it invalid to ask when the peer has given up
 * meanwhile: -ECONNABORTED. */
static int ask_cm(
	struct rdma_cm_id *id, enum ibv_qp_state state, struct ibv_qp_attr *attr, int *mask)
{
	memset(attr, 0, sizeof(*attr));
	attr->qp_state = state;
	if (rdma_init_qp_attr(id, attr, mask) == 0)
		return 0;
	return errno == EINVAL ? -ECONNABORTED : -errno;
}

int smv_verbs_qp_post_recv(struct smv_verbs_qp *q, unsigned int n)
{
	struct ibv_recv_wr wr = {.wr_id = SMV_VERBS_RECV_WR}, *bad;

	for (; n; n--) {
		int ret = ibv_post_recv(q->qp, &wr, &bad);

		if (ret)
			return -ret;
	}
	return 0;
}

int smv_verbs_qp_init(struct smv_verbs_qp *q, struct rdma_cm_id *id, unsigned int access)
{
	struct ibv_qp_attr attr;
	int mask, ret = ask_cm(id, IBV_QPS_INIT, &attr, &mask);

	if (ret < 0)
		return ret;
	attr.qp_access_flags = qp_access(access);
	ret = ibv_modify_qp(q->qp, &attr, mask | IBV_QP_ACCESS_FLAGS);
	return ret ? -ret : smv_verbs_qp_post_recv(q, q->recv_wrs);
}

/*
 * The exponent of the time that the device waits for an acknowledgement, 4.096 us * 2^n, so that
 * all tries end within @timeout_ms. Devices may wait up to four times as long, so the deadline of a
 * request is looked at by ourselves too. Not shorter than need be: Soft-RoCE begins a long read
 * anew when its answer takes longer than this.
 */
static uint8_t ack_timeout(unsigned int timeout_ms)
{
	uint64_t ns = (uint64_t)timeout_ms * 1000000 / (RETRIES + 1);
	uint8_t n = 8;

	while (n < 21 && (4096ull << (n + 1)) <= ns)
		n++;
	return n;
}

int smv_verbs_qp_connect(struct smv_verbs_qp *q, struct rdma_cm_id *id, unsigned int access,
	const uint8_t read_depth[2], unsigned int timeout_ms)
{
	struct ibv_qp_attr attr;
	int mask, ret = ask_cm(id, IBV_QPS_RTR, &attr, &mask);

	if (ret < 0)
		return ret;
	attr.qp_access_flags = qp_access(access);
	attr.max_dest_rd_atomic = read_depth[0];
	attr.min_rnr_timer = MIN_RNR_TIMER;
	ret = ibv_modify_qp(q->qp, &attr,
		mask | IBV_QP_ACCESS_FLAGS | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	if (ret)
		return -ret;
	ret = ask_cm(id, IBV_QPS_RTS, &attr, &mask);
	if (ret < 0)
		return ret;
	attr.max_rd_atomic = read_depth[1];
	attr.timeout = ack_timeout(timeout_ms);
	attr.retry_cnt = RETRIES;
	/* 7 waits for as long as it takes: a peer that has no receive posted is slow, not dead;
	 * whether it is dead the transport's own retries tell. */
	attr.rnr_retry = 7;
	return -ibv_modify_qp(q->qp, &attr,
		mask | IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
			IBV_QP_RNR_RETRY);
}

void smv_verbs_qp_flush(struct smv_verbs_qp *q)
{
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

	if (q->qp)
		ibv_modify_qp(q->qp, &attr, IBV_QP_STATE);
}

void smv_verbs_qp_stop(struct smv_verbs_qp *q)
{
	struct ibv_qp *qp = q->qp;
	int ret;

	if (!qp)
		return;
	if (q->pprev) {
		pthread_mutex_lock(&q->dev->lock);
		*q->pprev = q->next;
		if (q->next)
			q->next->pprev = q->pprev;
		pthread_mutex_unlock(&q->dev->lock);
	}
	q->qp = NULL;
	ret = ibv_destroy_qp(qp);
	if (ret)
		smv_log_error("verbs: cannot destroy a queue pair: %s", strerror(ret));
}

void smv_verbs_qp_destroy(struct smv_verbs_qp *q)
{
	smv_verbs_qp_stop(q);
	if (q->cq)
		ibv_destroy_cq(q->cq);
	if (q->channel)
		ibv_destroy_comp_channel(q->channel);
	q->cq = NULL;
	q->channel = NULL;
}

bool smv_verbs_qp_arm(struct smv_verbs_qp *q)
{
	struct ibv_cq *cq;
	void *ctx;

	if (q->armed && ibv_get_cq_event(q->channel, &cq, &ctx) == 0) {
		ibv_ack_cq_events(cq, 1);
		q->armed = false;
	}
	if (q->armed)
		return false;
	q->armed = ibv_req_notify_cq(q->cq, 0) == 0;
	return true;
}
