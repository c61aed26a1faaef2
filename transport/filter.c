/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/filter.h"

#include "common/clock.h"
#include "transport/provider.h"

#include <errno.h>
#include <stdlib.h>

#define DELAY_QUEUE 1024

struct filter {
	struct smv_conn base;
	struct smv_conn *inner;

	/* error */
	uint64_t until_error; /* completions; 0: it has happened */
	int errnum;

	/* delay: completions that are not due yet, oldest first, in free-running indices */
	uint64_t delay_ns;
	uint32_t head, tail;
	struct delayed {
		struct smv_completion completion;
		uint64_t due_ns;
	} * queue;
};

static struct filter *to_filter(const struct smv_conn *conn)
{
	return smv_container_of(conn, struct filter, base);
}

/* --- what both pass through ----------------------------------------------------------------- */

static int pass_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n)
{
	return smv_conn_post(to_filter(conn)->inner, requests, n);
}

static int pass_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	return smv_conn_arm(to_filter(conn)->inner, fd_events, timeout_ms);
}

static int pass_fd(const struct smv_conn *conn)
{
	return smv_conn_fd(to_filter(conn)->inner);
}

static int pass_next_notification(struct smv_conn *conn, uint32_t *imm)
{
	return smv_conn_next_notification(to_filter(conn)->inner, imm);
}

static unsigned int pass_in_flight(const struct smv_conn *conn)
{
	return smv_conn_in_flight(to_filter(conn)->inner);
}

static void pass_stats(const struct smv_conn *conn, struct smv_conn_stats *stats)
{
	smv_conn_stats(to_filter(conn)->inner, stats);
}

static int pass_notify(struct smv_conn *conn, uint32_t imm)
{
	return smv_conn_notify(to_filter(conn)->inner, imm);
}

static void filter_close(struct smv_conn *conn)
{
	struct filter *f = to_filter(conn);

	smv_conn_close(f->inner);
	free(f->queue);
	free(f);
}

static struct filter *filter_new(struct smv_conn *inner, const struct smv_conn_ops *ops)
{
	struct filter *f = calloc(1, sizeof(*f));

	if (f) {
		f->base.ops = ops;
		f->inner = inner;
	}
	return f;
}

/* --- delay ---------------------------------------------------------------------------------- */

static struct delayed *delayed_at(struct filter *f, uint32_t i)
{
	return &f->queue[i % DELAY_QUEUE];
}

/* Take what has completed behind; 0 or -ENOTCONN. */
static int delay_pull(struct filter *f)
{
	uint64_t due = smv_now_ns() + f->delay_ns;

	for (;;) {
		struct smv_completion batch[64];
		uint32_t room = DELAY_QUEUE - (f->tail - f->head);
		int n = room ? smv_conn_poll(f->inner, batch, room < 64 ? room : 64) : 0;

		if (n <= 0)
			return n;
		for (int i = 0; i < n; i++)
			*delayed_at(f, f->tail++) = (struct delayed){batch[i], due};
	}
}

static int delay_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max)
{
	struct filter *f = to_filter(conn);
	int ret = delay_pull(f);
	uint64_t now = smv_now_ns();
	unsigned int n = 0;

	while (n < max && f->head != f->tail && delayed_at(f, f->head)->due_ns <= now)
		completions[n++] = delayed_at(f, f->head++)->completion;
	return n == 0 && f->head == f->tail ? ret : (int)n;
}

static int delay_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	struct filter *f = to_filter(conn);
	uint64_t now, due;
	int ret = delay_pull(f), ready, ms;

	ready = smv_conn_arm(f->inner, fd_events, timeout_ms);
	if (f->head == f->tail)
		return ready;
	now = smv_now_ns();
	due = delayed_at(f, f->head)->due_ns;
	if (due <= now)
		return 1;
	ms = (int)((due - now) / SMV_NS_PER_MS) + 1;
	if (*timeout_ms < 0 || ms < *timeout_ms)
		*timeout_ms = ms;
	if (ret == -ENOTCONN)
		*fd_events = 0; /* nothing comes from behind any more; only time passes */
	return ret == 0 && ready;
}

static unsigned int delay_in_flight(const struct smv_conn *conn)
{
	const struct filter *f = to_filter(conn);

	return smv_conn_in_flight(f->inner) + (f->tail - f->head);
}

static const struct smv_conn_ops delay_ops = {
	.post = pass_post,
	.poll = delay_poll,
	.arm = delay_arm,
	.fd = pass_fd,
	.next_notification = pass_next_notification,
	.in_flight = delay_in_flight,
	.stats = pass_stats,
	.notify = pass_notify,
	.close = filter_close,
};

int smv_conn_filter_delay(struct smv_conn *inner, uint64_t delay_ns, struct smv_conn **conn)
{
	struct filter *f = filter_new(inner, &delay_ops);

	if (!f)
		return -ENOMEM;
	f->delay_ns = delay_ns;
	f->queue = calloc(DELAY_QUEUE, sizeof(*f->queue));
	if (!f->queue) {
		free(f);
		return -ENOMEM;
	}
	*conn = &f->base;
	return 0;
}

/* --- error ---------------------------------------------------------------------------------- */

static bool has_failed(const struct filter *f)
{
	return f->until_error == 0;
}

static int error_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n)
{
	return has_failed(to_filter(conn)) ? -ENOTCONN : pass_post(conn, requests, n);
}

static int error_notify(struct smv_conn *conn, uint32_t imm)
{
	return has_failed(to_filter(conn)) ? -ENOTCONN : pass_notify(conn, imm);
}

static void inject(struct filter *f, struct smv_completion *completion)
{
	if (has_failed(f))
		completion->status = -ECANCELED;
	else if (--f->until_error == 0)
		completion->status = -f->errnum;
}

static int error_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max)
{
	struct filter *f = to_filter(conn);
	int n = smv_conn_poll(f->inner, completions, max);

	for (int i = 0; i < n; i++)
		inject(f, &completions[i]);
	return n == 0 && has_failed(f) && smv_conn_in_flight(f->inner) == 0 ? -ENOTCONN : n;
}

static int error_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	struct filter *f = to_filter(conn);
	int ready = pass_arm(conn, fd_events, timeout_ms);

	return ready || (has_failed(f) && smv_conn_in_flight(f->inner) == 0);
}

static const struct smv_conn_ops error_ops = {
	.post = error_post,
	.poll = error_poll,
	.arm = error_arm,
	.fd = pass_fd,
	.next_notification = pass_next_notification,
	.in_flight = pass_in_flight,
	.stats = pass_stats,
	.notify = error_notify,
	.close = filter_close,
};

int smv_conn_filter_error(struct smv_conn *inner, uint64_t nth, int errnum, struct smv_conn **conn)
{
	struct filter *f = filter_new(inner, &error_ops);

	if (!f)
		return -ENOMEM;
	f->until_error = nth;
	f->errnum = errnum;
	*conn = &f->base;
	return 0;
}
