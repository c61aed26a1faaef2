/* SPDX-License-Identifier: Apache-2.0 */
#include "common/addr.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

static int bad(const char *text, bool data, const char *why, struct smv_error *err)
{
	return smv_fail(err, SMV_INVALID, "bad-address",
		data ? "Write HOST:PORT, [IPV6]:PORT, tcp:HOST:PORT or verbs:HOST:PORT."
		     : "Write HOST:PORT, [IPV6]:PORT or unix:PATH.",
		"address '%s': %s", text, why);
}

static int parse_port(const char *text, uint16_t *port)
{
	char *end;
	unsigned long v;

	if (*text < '0' || *text > '9')
		return -1;
	v = strtoul(text, &end, 10);
	if (*end || v > 65535)
		return -1;
	*port = (uint16_t)v;
	return 0;
}

int smv_addr_parse(const char *text, bool data, struct smv_addr *addr, struct smv_error *err)
{
	static const char *const transports[] = {"tcp", "verbs", "mem"};
	const char *rest = text, *colon, *host;
	size_t host_len;

	memset(addr, 0, sizeof(*addr));
	if (data) {
		for (size_t i = 0; i < sizeof(transports) / sizeof(transports[0]); i++) {
			size_t n = strlen(transports[i]);

			if (strncmp(text, transports[i], n) == 0 && text[n] == ':') {
				memcpy(addr->transport, transports[i], n);
				rest = text + n + 1;
				break;
			}
		}
		if (strcmp(addr->transport, "mem") == 0) {
			if (!*rest || strlen(rest) >= sizeof(addr->host))
				return bad(text, data, "the name is empty or too long", err);
			memcpy(addr->host, rest, strlen(rest) + 1);
			return 0;
		}
	} else if (strncmp(text, "unix:", 5) == 0) {
		const size_t max = sizeof(((struct sockaddr_un *)0)->sun_path);

		rest = text + 5;
		if (!*rest)
			return bad(text, data, "the path is empty", err);
		if (strlen(rest) >= max)
			return bad(text, data, "the path is longer than a unix socket allows (107 bytes)",
				err);
		addr->is_unix = true;
		memcpy(addr->host, rest, strlen(rest) + 1);
		return 0;
	}
	if (*rest == '[') {
		struct in6_addr in6;
		const char *close = strchr(rest, ']');

		host = rest + 1;
		if (!close || close[1] != ':')
			return bad(text, data, "'[' needs a ']:PORT'", err);
		host_len = (size_t)(close - host);
		colon = close + 1;
		if (host_len >= sizeof(addr->host))
			return bad(text, data, "the host is too long", err);
		memcpy(addr->host, host, host_len);
		if (inet_pton(AF_INET6, addr->host, &in6) != 1)
			return bad(text, data, "what stands in brackets is no IPv6 address", err);
	} else {
		colon = strrchr(rest, ':');
		if (!colon)
			return bad(text, data, "the port is missing", err);
		if (memchr(rest, ':', (size_t)(colon - rest)))
			return bad(text, data, "an IPv6 address needs brackets", err);
		host_len = (size_t)(colon - rest);
		if (host_len >= sizeof(addr->host))
			return bad(text, data, "the host is too long", err);
		memcpy(addr->host, rest, host_len);
	}
	if (host_len == 0)
		return bad(text, data, "the host is empty", err);
	if (parse_port(colon + 1, &addr->port) < 0)
		return bad(text, data, "the port is no number from 0 to 65535", err);
	return 0;
}

char *smv_addr_format(const struct smv_addr *addr, char *buf, size_t len)
{
	const char *t = addr->transport, *sep = *t ? ":" : "";

	if (addr->is_unix)
		snprintf(buf, len, "unix:%s", addr->host);
	else if (strcmp(t, "mem") == 0)
		snprintf(buf, len, "mem:%s", addr->host);
	else if (strchr(addr->host, ':'))
		snprintf(buf, len, "%s%s[%s]:%u", t, sep, addr->host, addr->port);
	else
		snprintf(buf, len, "%s%s%s:%u", t, sep, addr->host, addr->port);
	return buf;
}

bool smv_addr_is_local(const struct smv_addr *addr)
{
	struct in_addr in;

	if (addr->is_unix || strcmp(addr->transport, "mem") == 0)
		return true;
	if (inet_pton(AF_INET, addr->host, &in) == 1)
		return (ntohl(in.s_addr) >> 24) == 127;
	return strcmp(addr->host, "::1") == 0 || strcmp(addr->host, "localhost") == 0;
}
