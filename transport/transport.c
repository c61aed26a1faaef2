/* SPDX-License-Identifier: Apache-2.0 */
/* From the interface to the transport behind it. */
#include "transport/provider.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>

#define DEFAULT_DEPTH 128
#define MAX_DEPTH 4096
#define DEFAULT_TIMEOUT_MS 5000

int smv_domain_create(const struct smv_transport *t, struct smv_domain **domain)
{
	return t->domain_create(t, domain);
}

void smv_domain_destroy(struct smv_domain *domain)
{
	domain->transport->domain_destroy(domain);
}

void smv_domain_stats(struct smv_domain *domain, struct smv_domain_stats *stats)
{
	domain->transport->domain_stats(domain, stats);
}

int smv_region_register(struct smv_domain *domain, void *addr, size_t len, unsigned int access,
	struct smv_region **region)
{
	return domain->transport->region_register(domain, addr, len, access, region);
}

unsigned int smv_region_register_ms(uint64_t bytes)
{
	uint64_t ms = (bytes >> 20) * 1000 / 256;

	return ms < INT_MAX / 4 ? (unsigned int)ms : INT_MAX / 4;
}

void smv_region_deregister(struct smv_region *region)
{
	region->domain->transport->region_deregister(region);
}

void smv_region_info(const struct smv_region *region, struct smv_region_info *info)
{
	region->domain->transport->region_info(region, info);
}

void smv_listen_prepare(const struct smv_transport *t, const struct smv_addr *addr)
{
	if (t->prepare)
		t->prepare(t, addr);
}

int smv_listen(const struct smv_transport *t, const struct smv_addr *addr,
	const struct smv_listener_handler *handler, struct smv_listener **listener,
	struct smv_addr *bound, struct smv_error *err)
{
	return t->listen(t, addr, handler, listener, bound, err);
}

void smv_listener_close(struct smv_listener *listener)
{
	listener->transport->listener_close(listener);
}

int smv_connect(struct smv_domain *domain, const struct smv_addr *addr, const void *private_data,
	size_t private_len, const struct smv_conn_options *options, struct smv_conn **conn,
	struct smv_error *err)
{
	struct smv_conn_options o = options ? *options : (struct smv_conn_options){0};

	if (private_len > SMV_PRIVATE_DATA_MAX)
		return smv_fail(err, SMV_INVALID, "private-data-too-long", NULL,
			"%zu bytes of private data do not fit a connection request (%d)",
			private_len, SMV_PRIVATE_DATA_MAX);
	if (!o.depth)
		o.depth = DEFAULT_DEPTH;
	if (o.depth > MAX_DEPTH)
		o.depth = MAX_DEPTH;
	if (!o.timeout_ms)
		o.timeout_ms = DEFAULT_TIMEOUT_MS;
	if (!o.connect_timeout_ms)
		o.connect_timeout_ms = o.timeout_ms;
	return domain->transport->connect(domain, addr, private_data, private_len, &o, conn, err);
}

int smv_conn_post(struct smv_conn *conn, const struct smv_request *requests, unsigned int n)
{
	assert(conn->ops->post); /* a server connection posts nothing */
	return conn->ops->post(conn, requests, n);
}

int smv_conn_poll(struct smv_conn *conn, struct smv_completion *completions, unsigned int max)
{
	return conn->ops->poll(conn, completions, max);
}

int smv_conn_arm(struct smv_conn *conn, short *fd_events, int *timeout_ms)
{
	return conn->ops->arm(conn, fd_events, timeout_ms);
}

int smv_conn_fd(const struct smv_conn *conn)
{
	return conn->ops->fd(conn);
}

int smv_conn_wait(struct smv_conn *conn, int timeout_ms)
{
	struct pollfd pfd = {.fd = smv_conn_fd(conn)};
	int deadline_ms, n;

	if (smv_conn_arm(conn, &pfd.events, &deadline_ms))
		return 1;
	if (deadline_ms >= 0 && (timeout_ms < 0 || deadline_ms < timeout_ms))
		timeout_ms = deadline_ms;
	else
		deadline_ms = -1;
	n = poll(&pfd, 1, timeout_ms);
	if (n < 0)
		return -errno;
	return n > 0 || deadline_ms >= 0;
}

int smv_conn_notify(struct smv_conn *conn, uint32_t imm)
{
	return conn->ops->notify(conn, imm);
}

int smv_conn_next_notification(struct smv_conn *conn, uint32_t *imm)
{
	return conn->ops->next_notification(conn, imm);
}

unsigned int smv_conn_in_flight(const struct smv_conn *conn)
{
	return conn->ops->in_flight(conn);
}

void smv_conn_stats(const struct smv_conn *conn, struct smv_conn_stats *stats)
{
	conn->ops->stats(conn, stats);
}

void smv_conn_close(struct smv_conn *conn)
{
	conn->ops->close(conn);
}

int smv_transport_thread(pthread_t *thread, void *(*run)(void *), void *arg, const char *name)
{
	sigset_t all, old;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret == 0)
		pthread_setname_np(*thread, name);
	return -ret;
}
