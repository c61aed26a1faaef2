/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-sided reads and writes over TCP, for hosts without an RDMA NIC. tcp_wire.h describes the
 * protocol, tcp_client.c and tcp_server.c its two ends.
 */
#include "transport/tcp.h"

#include "common/clock.h"
#include "transport/domain.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

int smv_tcp_resolve(
	const struct smv_addr *addr, int flags, struct addrinfo **list, struct smv_error *err)
{
	const struct addrinfo hints = {.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = flags | AI_NUMERICSERV};
	char port[8], text[SMV_ADDR_MAX];
	int ret;

	snprintf(port, sizeof(port), "%u", addr->port);
	ret = getaddrinfo(addr->host, port, &hints, list);
	if (ret != 0)
		return smv_fail(err, SMV_UNAVAILABLE, "unknown-host",
			"Check the name, or write a numeric address.", "cannot resolve %s: %s",
			smv_addr_format(addr, text, sizeof(text)), gai_strerror(ret));
	return 0;
}

/*
 * The sizes of the buffers are the kernel's to tune: setting them would turn its tuning off and cap
 * them at net.core.[rw]mem_max, far below net.ipv4.tcp_[rw]mem.
 */
void smv_tcp_tune(int fd)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{IPPROTO_TCP, TCP_NODELAY, 1},
		/* A host that vanished while nothing is in flight, and one that takes no data. */
		{SOL_SOCKET, SO_KEEPALIVE, 1},
		{IPPROTO_TCP, TCP_KEEPIDLE, 10},
		{IPPROTO_TCP, TCP_KEEPINTVL, 5},
		{IPPROTO_TCP, TCP_KEEPCNT, 4},
		{IPPROTO_TCP, TCP_USER_TIMEOUT, 30000},
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		setsockopt(fd, options[i].level, options[i].name, &options[i].value,
			sizeof(options[i].value));
}

int smv_tcp_wait(int fd, short events, uint64_t deadline_ns)
{
	for (;;) {
		struct pollfd pfd = {.fd = fd, .events = events};
		uint64_t now = smv_now_ns();
		int n;

		if (now >= deadline_ns)
			return -ETIMEDOUT;
		n = poll(&pfd, 1, (int)((deadline_ns - now) / SMV_NS_PER_MS) + 1);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

int smv_tcp_recv_exact(int fd, void *buf, size_t len, uint64_t deadline_ns)
{
	char *p = buf;

	while (len) {
		ssize_t n = recv(fd, p, len, MSG_DONTWAIT);
		int ret;

		if (n > 0) {
			p += n;
			len -= (size_t)n;
			continue;
		}
		if (n == 0)
			return -ECONNRESET;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		ret = smv_tcp_wait(fd, POLLIN, deadline_ns);
		if (ret < 0)
			return ret;
	}
	return 0;
}

size_t smv_tcp_skip(struct iovec **iov, size_t n, size_t bytes)
{
	while (n && bytes >= (*iov)->iov_len) {
		bytes -= (*iov)->iov_len;
		++*iov;
		n--;
	}
	if (n) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + bytes;
		(*iov)->iov_len -= bytes;
	}
	return n;
}

static bool tcp_available(char *why, size_t why_len)
{
	(void)why;
	(void)why_len;
	return true;
}

SMV_TRANSPORT_REGISTER(tcp) = {
	.name = "tcp",
	.available = tcp_available,
	.domain_create = smv_soft_domain_create,
	.domain_destroy = smv_soft_domain_destroy,
	.domain_stats = smv_soft_domain_stats,
	.region_register = smv_soft_region_register,
	.region_deregister = smv_soft_region_deregister,
	.region_info = smv_soft_region_info,
	.listen = smv_tcp_listen,
	.listener_close = smv_tcp_listener_close,
	.connect = smv_tcp_connect,
};
