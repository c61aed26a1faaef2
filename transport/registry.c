/* SPDX-License-Identifier: Apache-2.0 */
/* Which transports are built in, and which one to take for a peer. */
#include "transport/provider.h"

#include "common/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* One line per transport. */
#define SMV_TRANSPORTS(X)                                                                          \
	X(verbs)                                                                                   \
	X(tcp)                                                                                     \
	X(mem)

#define DECLARE(id) extern SMV_TRANSPORT_REGISTER(id);
SMV_TRANSPORTS(DECLARE)

#define ENTRY(id) &smv_transport_##id,
static const struct smv_transport *const built_in[] = {SMV_TRANSPORTS(ENTRY)};

/* What "auto" tries, the best first; includes what a build may lack, so that it can say so. */
static const char *const preference[] = {"verbs", "tcp", "mem"};

const struct smv_transport *smv_transport_find(const char *name)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(built_in); i++)
		if (strcmp(built_in[i]->name, name) == 0)
			return built_in[i];
	return NULL;
}

const char *smv_transport_name(const struct smv_transport *t)
{
	return t->name;
}

bool smv_transport_available(const struct smv_transport *t, char *why, size_t why_len)
{
	return t->available(why, why_len);
}

bool smv_transport_pins(const struct smv_transport *t)
{
	return t->pins;
}

uint64_t smv_transport_region_max(const struct smv_transport *t)
{
	return t->region_max ? t->region_max() : UINT64_MAX;
}

bool smv_transport_fits_here(void *ctx, const char *name, char *why, size_t why_len)
{
	const struct smv_transport *t = smv_transport_find(name);
	char detail[200];

	(void)ctx;
	if (t && smv_transport_available(t, detail, sizeof(detail)))
		return true;
	if (t)
		snprintf(why, why_len, "%s cannot be used on this host: %s", name, detail);
	else
		snprintf(why, why_len, "this build has no %s transport", name);
	return false;
}

/* The index of the first address of transport @name, -ENOENT if there is none. */
static int find_offer(const struct smv_transport_peer *peer, const char *name)
{
	for (size_t i = 0; i < peer->nr_addresses; i++) {
		struct smv_addr addr;

		if (smv_addr_parse(peer->addresses[i], true, &addr, NULL) == 0 &&
			strcmp(addr.transport, name) == 0)
			return (int)i;
	}
	return -ENOENT;
}

/* All that is offered, for a message. */
static const char *list_offer(const struct smv_transport_peer *peer, char *buf, size_t len)
{
	size_t n = 0;

	snprintf(buf, len, "nothing");
	for (size_t i = 0; i < peer->nr_addresses && n < len; i++)
		n += (size_t)snprintf(buf + n, len - n, "%s%s", i ? ", " : "", peer->addresses[i]);
	return buf;
}

static int choose_named(const char *name, struct smv_transport_peer *peers, size_t nr_peers,
	const struct smv_transport **t, char *reason, size_t reason_len, struct smv_error *err)
{
	char text[256];

	*t = smv_transport_find(name);
	if (!*t)
		return smv_fail(err, SMV_UNIMPLEMENTED, "transport-not-built-in",
			"Choose auto or tcp, or build with that transport.",
			"this build has no %s transport", name);
	if (!smv_transport_available(*t, text, sizeof(text)))
		return smv_fail(err, SMV_REFUSED, "transport-unavailable",
			"Choose auto or tcp, or make the transport usable on this host.",
			"transport %s cannot be used on this host: %s", name, text);
	for (size_t i = 0; i < nr_peers; i++) {
		int at = find_offer(&peers[i], name);

		if (at < 0)
			return smv_fail(err, SMV_NOT_FOUND, "transport-not-offered",
				"Choose auto, or start the peer with a data address of that "
				"transport.",
				"%s offers no %s data address; it offers %s", peers[i].name, name,
				list_offer(&peers[i], text, sizeof(text)));
		peers[i].index = (size_t)at;
	}
	snprintf(reason, reason_len, "%s: asked for", name);
	return 0;
}

static bool suits_peer(
	const struct smv_transport *t, struct smv_transport_peer *peer, char *why, size_t why_len)
{
	int at = find_offer(peer, t->name);
	struct smv_addr addr;
	char detail[256];

	if (at < 0) {
		snprintf(why, why_len, "%s offers no %s address", peer->name, t->name);
		return false;
	}
	peer->index = (size_t)at;
	if (!t->reachable || (smv_addr_parse(peer->addresses[at], true, &addr, NULL) == 0 &&
				     t->reachable(&addr, detail, sizeof(detail))))
		return true;
	snprintf(why, why_len, "%s does not lead to %s: %s", t->name, peer->name, detail);
	return false;
}

/* Whether @name suits this host and all peers; else @why is the reason why not. */
static bool suits_all(const char *name, struct smv_transport_peer *peers, size_t nr_peers,
	const struct smv_transport **t, char *why, size_t why_len)
{
	if (!smv_transport_fits_here(NULL, name, why, why_len))
		return false;
	*t = smv_transport_find(name);
	for (size_t i = 0; i < nr_peers; i++)
		if (!suits_peer(*t, &peers[i], why, why_len))
			return false;
	return true;
}

static bool is_listed(const char *list, const char *name)
{
	size_t len = strlen(name);

	for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
		if (strncmp(p, name, len) == 0 && (p[len] == ',' || !p[len]))
			return true;
	return false;
}

static bool is_automatic(const char *wish)
{
	return strcmp(wish, "auto") == 0 || strchr(wish, ',');
}

static bool is_wished(const struct smv_transport_wish *wish, const char *name)
{
	return strcmp(wish->names, "auto") == 0 || is_listed(wish->names, name);
}

static bool is_known(const char *name, size_t len)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(preference); i++)
		if (strlen(preference[i]) == len && strncmp(preference[i], name, len) == 0)
			return true;
	return false;
}

bool smv_transport_wish_is_valid(const char *names)
{
	if (strcmp(names, "auto") == 0)
		return true;
	for (const char *p = names; *p; p += strcspn(p, ","), p += *p == ',')
		if (!is_known(p, strcspn(p, ",")))
			return false;
	return names[0];
}

void smv_transport_narrow(struct smv_transport_wish *wish,
	bool (*fits)(void *ctx, const char *name, char *why, size_t why_len), void *ctx)
{
	char list[sizeof(wish->names)] = "", why[sizeof(wish->why)];
	size_t n = 0;

	if (!is_automatic(wish->names))
		return;
	for (size_t i = 0; i < SMV_ARRAY_SIZE(preference); i++) {
		const char *name = preference[i];

		if (!is_wished(wish, name))
			continue;
		if (fits(ctx, name, why, sizeof(why)))
			n += (size_t)snprintf(list + n, sizeof(list) - n, "%s,", name);
		else if (n == 0 && !wish->why[0])
			memcpy(wish->why, why, sizeof(why));
	}
	/* With a comma at its end even a single name stays a list: nobody asked for it. */
	memcpy(wish->names, list, sizeof(list));
}

int smv_transport_choose(const struct smv_transport_wish *wish, struct smv_transport_peer *peers,
	size_t nr_peers, const struct smv_transport **t, char *reason, size_t reason_len,
	struct smv_error *err)
{
	char first_why[sizeof(wish->why)], why[sizeof(wish->why)], list[256];

	if (!is_automatic(wish->names))
		return choose_named(wish->names, peers, nr_peers, t, reason, reason_len, err);
	memcpy(first_why, wish->why, sizeof(first_why));
	for (size_t i = 0; i < SMV_ARRAY_SIZE(preference); i++) {
		if (!is_wished(wish, preference[i]))
			continue;
		if (suits_all(preference[i], peers, nr_peers, t, why, sizeof(why))) {
			snprintf(reason, reason_len, "%s: %s", preference[i],
				i && first_why[0] ? first_why
						  : "all hosts can use it and it leads to them");
			return 0;
		}
		if (!first_why[0])
			memcpy(first_why, why, sizeof(why));
	}
	*t = NULL;
	return smv_fail(err, SMV_NOT_FOUND, "no-common-transport",
		"Start the peer with a data address that this host can reach, such as "
		"tcp:HOST:PORT.",
		"no transport suits all hosts: %s%s%s offers %s", first_why,
		first_why[0] ? "; " : "", nr_peers ? peers[0].name : "nobody",
		nr_peers ? list_offer(&peers[0], list, sizeof(list)) : "nothing");
}
