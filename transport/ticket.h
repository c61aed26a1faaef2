/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tickets: what a data connection shows to be let in. Whoever holds a lease's key makes them,
 * without asking the server: HMAC-SHA-256 over the other fields, cut to 16 bytes. A ticket opens
 * one connection: the server remembers the nonces of a lease in a sliding window (as IPsec does
 * against replays, RFC 4303 section 3.4.3), so makers count nonces upwards from 1.
 */
#ifndef SMV_TRANSPORT_TICKET_H
#define SMV_TRANSPORT_TICKET_H

#include <stddef.h>
#include <stdint.h>

#define SMV_TICKET_KEY_SIZE 32

/* The upper 24 bits of a nonce are the generation of the server, which it counts up when it is
 * started again over the same memory: a ticket opens no connection to another generation. */
#define SMV_NONCE_COUNT_BITS 40
#define SMV_NONCE_GENERATIONS (1ull << (64 - SMV_NONCE_COUNT_BITS))

/** smv_nonce_make - the @count-th nonce, from 1, for a server of @generation. */
static inline uint64_t smv_nonce_make(uint64_t generation, uint64_t count)
{
	return generation << SMV_NONCE_COUNT_BITS | count;
}

enum smv_role { SMV_ROLE_READER = 1, SMV_ROLE_WRITER = 2 };

/* On the wire all integers are little-endian. It fits rdma_cm's 56 bytes of private data. */
struct smv_ticket {
	uint64_t lease_id;
	uint64_t nonce;
	uint32_t epoch;
	uint32_t role;
	uint8_t mac[16];
} __attribute__((packed));

/** smv_ticket_make - fill @ticket. @key has SMV_TICKET_KEY_SIZE bytes. */
void smv_ticket_make(const uint8_t *key, uint64_t lease_id, uint32_t epoch, enum smv_role role,
	uint64_t nonce, struct smv_ticket *ticket);

/** smv_ticket_check - 0, or -EACCES: the MAC does not fit the key. @data is the ticket as it came
 * over the wire, at least sizeof(struct smv_ticket) bytes. Constant time. */
int smv_ticket_check(const uint8_t *key, const void *data);

/** smv_ticket_parse - the fields of a ticket whose MAC is not checked yet; -EINVAL when @len does
 * not fit or the role is unknown. @fields gets host byte order, MAC included unchanged. */
int smv_ticket_parse(const void *data, size_t len, struct smv_ticket *fields);

/* The last 64 nonces of a lease; zero-initialised. Not thread-safe. */
struct smv_nonce_window {
	uint64_t highest;
	uint64_t seen; /* bit i: highest - i was used */
};

/** smv_nonce_use - 0 the first time, -EACCES for a nonce used before, too old, or 0. */
int smv_nonce_use(struct smv_nonce_window *window, uint64_t nonce);

#endif
