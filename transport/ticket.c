/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/ticket.h"

#include <endian.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

static void compute_mac(const uint8_t *key, const struct smv_ticket *t, uint8_t mac[16])
{
	uint8_t full[EVP_MAX_MD_SIZE];
	unsigned int len = 0;

	HMAC(EVP_sha256(), key, SMV_TICKET_KEY_SIZE, (const uint8_t *)t,
		offsetof(struct smv_ticket, mac), full, &len);
	memcpy(mac, full, 16);
}

void smv_ticket_make(const uint8_t *key, uint64_t lease_id, uint32_t epoch, enum smv_role role,
	uint64_t nonce, struct smv_ticket *ticket)
{
	ticket->lease_id = htole64(lease_id);
	ticket->nonce = htole64(nonce);
	ticket->epoch = htole32(epoch);
	ticket->role = htole32((uint32_t)role);
	compute_mac(key, ticket, ticket->mac);
}

int smv_ticket_parse(const void *data, size_t len, struct smv_ticket *fields)
{
	struct smv_ticket t;

	if (len < sizeof(t))
		return -EINVAL;
	memcpy(&t, data, sizeof(t));
	*fields = t;
	fields->lease_id = le64toh(t.lease_id);
	fields->nonce = le64toh(t.nonce);
	fields->epoch = le32toh(t.epoch);
	fields->role = le32toh(t.role);
	if (fields->role != SMV_ROLE_READER && fields->role != SMV_ROLE_WRITER)
		return -EINVAL;
	return 0;
}

int smv_ticket_check(const uint8_t *key, const void *data)
{
	struct smv_ticket t;
	uint8_t mac[16];

	memcpy(&t, data, sizeof(t));
	compute_mac(key, &t, mac);
	return CRYPTO_memcmp(mac, t.mac, sizeof(mac)) == 0 ? 0 : -EACCES;
}

int smv_nonce_use(struct smv_nonce_window *window, uint64_t nonce)
{
	uint64_t behind;

	if (nonce == 0)
		return -EACCES;
	if (nonce > window->highest) {
		uint64_t ahead = nonce - window->highest;

		window->seen = ahead < 64 ? window->seen << ahead : 0;
		window->seen |= 1;
		window->highest = nonce;
		return 0;
	}
	behind = window->highest - nonce;
	if (behind >= 64 || (window->seen >> behind & 1))
		return -EACCES;
	window->seen |= 1ull << behind;
	return 0;
}
