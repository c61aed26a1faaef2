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

struct offer {
	const char *const *addresses;
	size_t nr;
};

/* The index of the first address of transport @name, -ENOENT if there is none. */
static int find_offer(const struct offer *offer, const char *name)
{
	for (size_t i = 0; i < offer->nr; i++) {
		struct smv_addr addr;

		if (smv_addr_parse(offer->addresses[i], true, &addr, NULL) == 0 &&
			strcmp(addr.transport, name) == 0)
			return (int)i;
	}
	return -ENOENT;
}

/* All that is offered, for a message. */
static const char *list_offer(const struct offer *offer, char *buf, size_t len)
{
	size_t n = 0;

	snprintf(buf, len, "nothing");
	for (size_t i = 0; i < offer->nr && n < len; i++)
		n += (size_t)snprintf(buf + n, len - n, "%s%s", i ? ", " : "", offer->addresses[i]);
	return buf;
}

static int choose_named(const char *name, const struct offer *offer, const struct smv_transport **t,
	size_t *index, char *reason, size_t reason_len, struct smv_error *err)
{
	char text[256];
	int i;

	*t = smv_transport_find(name);
	if (!*t)
		return smv_fail(err, SMV_UNIMPLEMENTED, "transport-not-built-in",
			"Choose auto or tcp, or build with that transport.",
			"this build has no %s transport", name);
	if (!smv_transport_available(*t, text, sizeof(text)))
		return smv_fail(err, SMV_REFUSED, "transport-unavailable",
			"Choose auto or tcp, or make the transport usable on this host.",
			"transport %s cannot be used on this host: %s", name, text);
	i = find_offer(offer, name);
	if (i < 0)
		return smv_fail(err, SMV_NOT_FOUND, "transport-not-offered",
			"Choose auto, or start the peer with a data address of that transport.",
			"the peer offers no %s data address; it offers %s", name,
			list_offer(offer, text, sizeof(text)));
	*index = (size_t)i;
	snprintf(reason, reason_len, "%s: asked for", name);
	return 0;
}

static bool is_reachable(
	const struct smv_transport *t, const char *address, char *why, size_t why_len)
{
	struct smv_addr addr;

	return !t->reachable || (smv_addr_parse(address, true, &addr, NULL) == 0 &&
					t->reachable(&addr, why, why_len));
}

/* Try @name for "auto": true when taken; else @why is the reason why not. */
static bool try_transport(const char *name, const struct offer *offer,
	const struct smv_transport **t, size_t *index, char *why, size_t why_len)
{
	char detail[256];
	int i;

	*t = smv_transport_find(name);
	i = find_offer(offer, name);
	if (!*t) {
		snprintf(why, why_len, "this build has no %s transport", name);
	} else if (!smv_transport_available(*t, detail, sizeof(detail))) {
		snprintf(why, why_len, "%s cannot be used on this host: %s", name, detail);
	} else if (i < 0) {
		snprintf(why, why_len, "the peer offers no %s address", name);
	} else if (!is_reachable(*t, offer->addresses[i], detail, sizeof(detail))) {
		snprintf(why, why_len, "%s does not lead to the peer: %s", name, detail);
	} else {
		*index = (size_t)i;
		return true;
	}
	return false;
}

int smv_transport_choose(const char *wish, const char *const *peer_addresses, size_t nr_addresses,
	const struct smv_transport **t, size_t *index, char *reason, size_t reason_len,
	struct smv_error *err)
{
	const struct offer offer = {peer_addresses, nr_addresses};
	char first_why[320] = "", why[320], list[256];

	if (strcmp(wish, "auto") != 0)
		return choose_named(wish, &offer, t, index, reason, reason_len, err);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(preference); i++) {
		if (try_transport(preference[i], &offer, t, index, why, sizeof(why))) {
			snprintf(reason, reason_len, "%s: %s", preference[i],
				i ? first_why : "this host can use it and the peer offers it");
			return 0;
		}
		if (i == 0)
			memcpy(first_why, why, sizeof(why));
	}
	*t = NULL;
	return smv_fail(err, SMV_NOT_FOUND, "no-common-transport",
		"Start the peer with a data address that this host can reach, such as "
		"tcp:HOST:PORT.",
		"no transport of this build fits the data addresses of the peer, which are: %s",
		list_offer(&offer, list, sizeof(list)));
}
