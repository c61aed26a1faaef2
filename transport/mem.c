/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections inside one process, for tests: "mem:NAME". A request is executed in the thread that
 * posts it, with the checks of domain.h; the callbacks of the server come from a thread of each
 * connection, as with the other transports.
 */
#include "transport/domain.h"

#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_NOTIFIES 64         /* to the server */
#define MAX_NOTIFICATIONS 1024u /* to the client */

/* A FIFO of notifications in free-running indices. */
struct fifo {
	uint32_t head, tail;
	uint32_t imm[MAX_NOTIFICATIONS];
};

/* Both ends of a connection. */
struct mem_conn {
	struct smv_conn client, server;
	struct smv_peer peer;
	struct mem_listener *listener;
	struct mem_conn *next, **pprev; /* under the listener's lock */
	struct smv_domain *domain;      /* the client's */
	void *ctx;                      /* of the handler */
	int event_fd;                   /* the client's */
	sem_t wake;                     /* the server's thread */
	atomic_bool stop;               /* the server's side ended it */

	pthread_mutex_t lock; /* of all that follows; taken before a domain's lock */
	unsigned int refs;    /* the client, the server's thread */
	bool client_gone;
	struct fifo to_server, to_client;
	struct smv_conn_stats stats;
	unsigned int depth, completed_head, nr_completed;
	struct smv_completion *completed; /* a ring of depth */
};

struct mem_listener {
	struct smv_listener base;
	struct smv_listener_handler handler;
	char name[sizeof(((struct smv_addr *)0)->host)];
	struct mem_listener *next; /* under registry_lock */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool closing;
	unsigned int nr_conns; /* also those that are just being made */
	struct mem_conn *conns;
};

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mem_listener *listeners;

static int fifo_push(struct fifo *f, uint32_t imm, uint32_t room)
{
	if (f->tail - f->head >= room)
		return -EAGAIN;
	f->imm[f->tail++ % MAX_NOTIFICATIONS] = imm;
	return 0;
}

static bool fifo_pop(struct fifo *f, uint32_t *imm)
{
	if (f->head == f->tail)
		return false;
	*imm = f->imm[f->head++ % MAX_NOTIFICATIONS];
	return true;
}

static struct mem_conn *from_client(const struct smv_conn *conn)
{
	return smv_container_of(conn, struct mem_conn, client);
}

static struct mem_conn *from_server(struct smv_conn *conn)
{
	return smv_container_of(conn, struct mem_conn, server);
}

static void wake_client(struct mem_conn *c)
{
	eventfd_write(c->event_fd, 1);
}

/* Takes no lock, see struct smv_peer. */
static void stop_conn(struct mem_conn *c)
{
	atomic_store(&c->stop, true);
	sem_post(&c->wake);
	wake_client(c);
}

static void abort_peer(struct smv_peer *peer)
{
	stop_conn(smv_container_of(peer, struct mem_conn, peer));
}

static void unref(struct mem_conn *c)
{
	bool last;

	pthread_mutex_lock(&c->lock);
	last = --c->refs == 0;
	pthread_mutex_unlock(&c->lock);
	if (!last)
		return;
	close(c->event_fd);
	sem_destroy(&c->wake);
	pthread_mutex_destroy(&c->lock);
	free(c->completed);
	free(c);
}

/* --- client --------------------------------------------------------------------------------- */

static void copy(const struct smv_request *r, char *mem)
{
	for (unsigned int i = 0; i < r->nr_sge; i++) {
		if (r->op == SMV_OP_READ)
			memcpy(r->sge[i].addr, mem, r->sge[i].len);
		else
			memcpy(mem, r->sge[i].addr, r->sge[i].len);
		mem += r->sge[i].len;
	}
}

static int execute(struct mem_conn *c, const struct smv_request *r, uint32_t len)
{
	void *mem;
	int ret = smv_peer_hold(&c->peer, r->op, r->rkey, r->remote_addr, len, &mem);

	if (ret < 0)
		return ret;
	copy(r, mem);
	smv_peer_release(&c->peer);
	if (r->op == SMV_OP_READ) {
		smv_peer_count(&c->peer, 0, len);
		c->stats.bytes_read += len;
	} else {
		smv_peer_count(&c->peer, len, 0);
		c->stats.bytes_written += len;
	}
	return 0;
}

static int post_locked(struct mem_conn *c, const struct smv_request *requests, unsigned int n)
{
	unsigned int i;

	if (atomic_load(&c->stop))
		return -ENOTCONN;
	for (i = 0; i < n && c->nr_completed < c->depth && !atomic_load(&c->stop); i++) {
		int ret = smv_request_bytes(c->domain, &requests[i]);

		if (ret < 0)
			return i ? (int)i : ret;
		ret = execute(c, &requests[i], (uint32_t)ret);
		c->completed[(c->completed_head + c->nr_completed++) % c->depth] =
			(struct smv_completion){requests[i].cookie, ret};
		if (ret < 0)
			stop_conn(c);
	}
	wake_client(c);
	return (int)i;
}

static int client_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n)
{
	struct mem_conn *c = from_client(conn);
	int ret;

	pthread_mutex_lock(&c->lock);
	ret = post_locked(c, requests, n);
	pthread_mutex_unlock(&c->lock);
	return ret;
}

static int client_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max)
{
	struct mem_conn *c = from_client(conn);
	unsigned int n;
	bool ended;

	pthread_mutex_lock(&c->lock);
	for (n = 0; n < max && c->nr_completed; n++, c->nr_completed--) {
		completions[n] = c->completed[c->completed_head];
		c->completed_head = (c->completed_head + 1) % c->depth;
	}
	ended = atomic_load(&c->stop) && c->nr_completed == 0;
	pthread_mutex_unlock(&c->lock);
	return n == 0 && ended ? -ENOTCONN : (int)n;
}

static int client_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	struct mem_conn *c = from_client(conn);
	eventfd_t ignored;
	int ready;

	*fd_events = POLLIN;
	*timeout_ms = -1;
	eventfd_read(c->event_fd, &ignored); /* before looking, so that no wake-up is lost */
	pthread_mutex_lock(&c->lock);
	ready = c->nr_completed || c->to_client.head != c->to_client.tail || atomic_load(&c->stop);
	pthread_mutex_unlock(&c->lock);
	return ready;
}

static int client_fd(const struct smv_conn *conn)
{
	return from_client(conn)->event_fd;
}

static int client_next_notification(struct smv_conn *conn, uint32_t *imm)
{
	struct mem_conn *c = from_client(conn);
	int ret;

	pthread_mutex_lock(&c->lock);
	ret = fifo_pop(&c->to_client, imm);
	pthread_mutex_unlock(&c->lock);
	return ret;
}

static unsigned int client_in_flight(const struct smv_conn *conn)
{
	return from_client(conn)->nr_completed;
}

static void client_stats(const struct smv_conn *conn, struct smv_conn_stats *stats)
{
	*stats = from_client(conn)->stats;
}

static int client_notify(struct smv_conn *conn, uint32_t imm)
{
	struct mem_conn *c = from_client(conn);
	int ret = -ENOTCONN;

	pthread_mutex_lock(&c->lock);
	if (!atomic_load(&c->stop))
		ret = fifo_push(&c->to_server, imm, MAX_NOTIFIES);
	pthread_mutex_unlock(&c->lock);
	sem_post(&c->wake);
	return ret;
}

static void client_close(struct smv_conn *conn)
{
	struct mem_conn *c = from_client(conn);

	pthread_mutex_lock(&c->lock);
	c->client_gone = true;
	pthread_mutex_unlock(&c->lock);
	sem_post(&c->wake);
	unref(c);
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

/* --- server --------------------------------------------------------------------------------- */

static int server_notify(struct smv_conn *conn, uint32_t imm)
{
	struct mem_conn *c = from_server(conn);
	int ret = -ENOTCONN;

	pthread_mutex_lock(&c->lock);
	if (!atomic_load(&c->stop) && !c->client_gone)
		ret = fifo_push(&c->to_client, imm, MAX_NOTIFICATIONS);
	pthread_mutex_unlock(&c->lock);
	wake_client(c);
	return ret;
}

static void server_close(struct smv_conn *conn)
{
	stop_conn(from_server(conn));
}

static const struct smv_conn_ops server_ops = {.notify = server_notify, .close = server_close};

/* Wait for the next notification; false when the connection has ended. */
static bool next_event(struct mem_conn *c, uint32_t *imm)
{
	for (;;) {
		bool found, gone;

		if (atomic_load(&c->stop))
			return false;
		pthread_mutex_lock(&c->lock);
		found = fifo_pop(&c->to_server, imm);
		gone = c->client_gone;
		pthread_mutex_unlock(&c->lock);
		if (found || gone)
			return found;
		while (sem_wait(&c->wake) < 0)
			;
	}
}

/* The last thing that the server's side does; the listener may be gone right after. */
static void leave_listener(struct mem_conn *c)
{
	struct mem_listener *l = c->listener;

	pthread_mutex_lock(&l->lock);
	*c->pprev = c->next;
	if (c->next)
		c->next->pprev = c->pprev;
	l->nr_conns--;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

static void *conn_main(void *arg)
{
	struct mem_conn *c = arg;
	const struct smv_listener_handler *h = &c->listener->handler;
	uint32_t imm;

	while (next_event(c, &imm))
		if (h->notify)
			h->notify(h->ctx, c->ctx, &c->server, imm);
	stop_conn(c);
	pthread_mutex_lock(&c->lock); /* lets a post under way end */
	smv_peer_detach(&c->peer);
	pthread_mutex_unlock(&c->lock);
	if (h->disconnected)
		h->disconnected(h->ctx, c->ctx, &c->server);
	leave_listener(c);
	unref(c);
	return NULL;
}

/* --- listening and connecting --------------------------------------------------------------- */

static struct mem_listener **find_listener(const char *name)
{
	struct mem_listener **l = &listeners;

	while (*l && strcmp((*l)->name, name) != 0)
		l = &(*l)->next;
	return l;
}

static int mem_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err)
{
	struct mem_listener *l = calloc(1, sizeof(*l)), **place;

	if (!l)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "no memory for a listener");
	l->base.transport = t;
	l->handler = *handler;
	memcpy(l->name, addr->host, sizeof(l->name));
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	pthread_mutex_lock(&registry_lock);
	place = find_listener(l->name);
	if (*place) {
		pthread_mutex_unlock(&registry_lock);
		free(l);
		return smv_fail(err, SMV_EXISTS, "listen-failed", "Choose another name.",
			"cannot listen on mem:%s: the name is taken", addr->host);
	}
	*place = l;
	pthread_mutex_unlock(&registry_lock);
	if (bound)
		*bound = *addr;
	*listener = &l->base;
	return 0;
}

static void mem_listener_close(struct smv_listener *listener)
{
	struct mem_listener *l = smv_container_of(listener, struct mem_listener, base);

	pthread_mutex_lock(&registry_lock);
	*find_listener(l->name) = l->next;
	pthread_mutex_unlock(&registry_lock);
	pthread_mutex_lock(&l->lock);
	l->closing = true;
	for (struct mem_conn *c = l->conns; c; c = c->next)
		stop_conn(c);
	while (l->nr_conns)
		pthread_cond_wait(&l->changed, &l->lock);
	pthread_mutex_unlock(&l->lock);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

/* Find a listener and keep it until put_listener(). */
static struct mem_listener *get_listener(const char *name)
{
	struct mem_listener *l;

	pthread_mutex_lock(&registry_lock);
	l = *find_listener(name);
	if (l) {
		pthread_mutex_lock(&l->lock);
		l->nr_conns++;
		pthread_mutex_unlock(&l->lock);
	}
	pthread_mutex_unlock(&registry_lock);
	return l;
}

static void put_listener(struct mem_listener *l)
{
	pthread_mutex_lock(&l->lock);
	l->nr_conns--;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

static struct mem_conn *conn_new(
	struct mem_listener *l, struct smv_domain *domain, unsigned int depth)
{
	struct mem_conn *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->completed = calloc(depth, sizeof(*c->completed));
	c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!c->completed || c->event_fd < 0) {
		if (c->event_fd >= 0)
			close(c->event_fd);
		free(c->completed);
		free(c);
		return NULL;
	}
	c->client.ops = &client_ops;
	c->server.ops = &server_ops;
	c->peer.abort = abort_peer;
	c->listener = l;
	c->domain = domain;
	c->depth = depth;
	c->refs = 1;
	sem_init(&c->wake, 0, 0);
	pthread_mutex_init(&c->lock, NULL);
	return c;
}

/* Put an admitted connection to work. */
static int start_conn(struct mem_listener *l, struct mem_conn *c)
{
	pthread_t thread;
	int ret;

	pthread_mutex_lock(&l->lock);
	if (l->closing)
		stop_conn(c);
	c->refs++;
	ret = smv_transport_thread(&thread, conn_main, c, "smv-mem-conn");
	if (ret == 0) {
		pthread_detach(thread);
		c->next = l->conns;
		c->pprev = &l->conns;
		if (c->next)
			c->next->pprev = &c->next;
		l->conns = c;
	} else {
		c->refs--;
	}
	pthread_mutex_unlock(&l->lock);
	if (ret < 0) {
		smv_peer_detach(&c->peer);
		if (l->handler.disconnected)
			l->handler.disconnected(l->handler.ctx, c->ctx, &c->server);
	}
	return ret;
}

static int mem_connect(struct smv_domain *domain, const struct smv_addr *addr,
	const void *private_data, size_t private_len, const struct smv_conn_options *options,
	struct smv_conn **conn, struct smv_error *err)
{
	struct mem_listener *l = get_listener(addr->host);
	struct mem_conn *c;
	int ret;

	if (!l)
		return smv_fail(err, SMV_UNAVAILABLE, "connect-failed", NULL,
			"cannot connect to mem:%s: nobody listens there", addr->host);
	c = conn_new(l, domain, options->depth);
	if (!c) {
		put_listener(l);
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL,
			"no memory for the connection to mem:%s", addr->host);
	}
	ret = smv_peer_admit(&c->peer, domain->transport, &l->handler, &c->server, private_data,
		private_len, &c->ctx);
	if (ret < 0)
		ret = smv_fail(err, SMV_PERMISSION, "connection-refused", NULL,
			"mem:%s refused the data connection", addr->host);
	else
		ret = start_conn(l, c);
	if (ret < 0) {
		put_listener(l);
		unref(c);
		return ret;
	}
	*conn = &c->client;
	return 0;
}

static bool mem_available(char *why, size_t why_len)
{
	(void)why;
	(void)why_len;
	return true;
}

SMV_TRANSPORT_REGISTER(mem) = {
	.name = "mem",
	.pins = true, /* it does not, but tests shall go that way */
	.available = mem_available,
	.domain_create = smv_soft_domain_create,
	.domain_destroy = smv_soft_domain_destroy,
	.domain_stats = smv_soft_domain_stats,
	.region_register = smv_soft_region_register,
	.region_deregister = smv_soft_region_deregister,
	.region_info = smv_soft_region_info,
	.listen = mem_listen,
	.listener_close = mem_listener_close,
	.connect = mem_connect,
};
