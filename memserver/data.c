/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/data.h"

#include "common/cleanup.h"

#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

struct door {
	struct smv_data_plane *data;
	const struct smv_transport *transport;
	struct smv_listener *listener;
};

struct smv_data_plane {
	struct smv_lease_table *table;
	struct door doors[SMV_DATA_LISTENERS_MAX];
	char texts[SMV_DATA_LISTENERS_MAX][SMV_ADDR_MAX];
	const char *addresses[SMV_DATA_LISTENERS_MAX];
	size_t nr;
};

int smv_data_create(
	struct smv_lease_table *table, struct smv_data_plane **data, struct smv_error *err)
{
	*data = calloc(1, sizeof(**data));
	if (!*data)
		return smv_fail(err, SMV_INTERNAL, "no-memory", NULL, "out of memory");
	(*data)->table = table;
	return 0;
}

void smv_data_destroy(struct smv_data_plane *data)
{
	if (!data)
		return;
	for (size_t i = 0; i < data->nr; i++)
		smv_listener_close(data->doors[i].listener);
	free(data);
}

static int on_connect(void *ctx, struct smv_conn *conn, const void *private_data,
	size_t private_len, struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	const struct door *door = ctx;

	return smv_lease_admit(door->data->table, door->transport, conn, private_data, private_len,
		domain, access, conn_ctx);
}

/* Peers of a memory server have nothing to say but reads and writes. */
static void on_notify(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t imm)
{
	(void)ctx;
	(void)conn_ctx;
	(void)conn;
	(void)imm;
}

static void on_disconnected(void *ctx, void *conn_ctx, struct smv_conn *conn)
{
	const struct door *door = ctx;

	(void)conn;
	smv_lease_disconnected(door->data->table, conn_ctx);
}

/* "0", "0.0.0.0", "::", "[0::0]", ...: the C library knows all spellings. */
static bool is_wildcard(const char *host)
{
	const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST};
	struct addrinfo *ai;
	bool wildcard = false;

	if (getaddrinfo(host, NULL, &hints, &ai) != 0)
		return false;
	if (ai->ai_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)ai->ai_addr;

		wildcard = in->sin_addr.s_addr == htonl(INADDR_ANY);
	} else if (ai->ai_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)ai->ai_addr;

		wildcard = IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
	}
	freeaddrinfo(ai);
	return wildcard;
}

static int find_usable_transport(
	const struct smv_addr *addr, const struct smv_transport **transport, struct smv_error *err)
{
	char why[200] = "";

	*transport = smv_transport_find(addr->transport);
	if (!*transport)
		return smv_fail(err, SMV_INVALID, "no-transport", "Use tcp:HOST:PORT.",
			"this build has no transport '%s'", addr->transport);
	if (!smv_transport_available(*transport, why, sizeof(why)))
		return smv_fail(err, SMV_REFUSED, "no-transport", "Use tcp:HOST:PORT on this host.",
			"transport '%s' does not work here: %s", addr->transport, why);
	return 0;
}

void smv_data_prepare(const struct smv_addr *addr)
{
	const struct smv_transport *transport;
	struct smv_error err;

	if (find_usable_transport(addr, &transport, &err) == 0)
		smv_listen_prepare(transport, addr);
}

int smv_data_listen(struct smv_data_plane *data, const struct smv_addr *addr, struct smv_error *err)
{
	struct door *door = &data->doors[data->nr];
	struct smv_addr named = *addr, bound;
	struct smv_listener_handler handler = {.ctx = door,
		.connect = on_connect,
		.notify = on_notify,
		.disconnected = on_disconnected};
	int rc;

	if (data->nr == SMV_DATA_LISTENERS_MAX)
		return smv_fail(err, SMV_INVALID, "too-many-addresses", NULL,
			"more than %d data addresses", SMV_DATA_LISTENERS_MAX);
	if (!named.transport[0])
		snprintf(named.transport, sizeof(named.transport), "tcp");
	if (is_wildcard(named.host))
		return smv_fail(err, SMV_INVALID, "wildcard-address",
			"Name the address by which the other hosts reach this one.",
			"data address '%s' is told to peers, but names no host", named.host);
	door->data = data;
	rc = find_usable_transport(&named, &door->transport, err);
	if (rc == 0)
		rc = smv_listen(door->transport, &named, &handler, &door->listener, &bound, err);
	if (rc < 0)
		return rc;
	named.port = bound.port;
	data->addresses[data->nr] = smv_addr_format(&named, data->texts[data->nr], SMV_ADDR_MAX);
	data->nr++;
	return 0;
}

const char *const *smv_data_addresses(const struct smv_data_plane *data, size_t *nr)
{
	*nr = data->nr;
	return data->addresses;
}

int smv_data_find_transport(const struct smv_data_plane *data, const char *name,
	const struct smv_transport **transport, struct smv_error *err)
{
	char hint[200] = "It listens on";

	for (size_t i = 0; i < data->nr; i++) {
		size_t len = strlen(hint);

		*transport = data->doors[i].transport;
		if (strcmp(smv_transport_name(*transport), name) == 0)
			return 0;
		snprintf(hint + len, sizeof(hint) - len, "%s %s", i ? "," : "", data->addresses[i]);
	}
	return smv_fail(err, SMV_INVALID, "no-transport", hint,
		"this server has no data address of transport '%.20s'", name);
}
