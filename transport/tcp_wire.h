/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tcp transport says on the wire. All integers are little-endian.
 *
 * The client begins with a hello of 64 bytes, the server answers it with 16 bytes. Then the client
 * sends requests (a header of 32 bytes, a write's payload behind it) and the server answers each,
 * in order (a header of 16 bytes, a read's payload behind it). Both may send notifications in
 * between, which are headers only. A refused access is the last answer of its connection.
 *
 *   hello     0 magic "SMEMVTCP"   8 u16 version  10 u16 private_len  12 u32 0  16 private_data[48]
 *   welcome   0 magic "SMEMVTCP"   8 u16 version  10 u16 0            12 u32 status
 *   request   0 u32 op   4 u32 len or imm   8 u64 rkey   16 u64 addr   24 u32 seq   28 u32 0
 *   answer    0 u32 op   4 u32 len or imm   8 u32 seq   12 u32 status
 *
 * The parsers are pure functions of bytes that a stranger sent: they return 0, or -EPROTO.
 */
#ifndef SMV_TRANSPORT_TCP_WIRE_H
#define SMV_TRANSPORT_TCP_WIRE_H

#include "transport/transport.h"

#define SMV_TCP_VERSION 1
#define SMV_TCP_HELLO_SIZE (16 + SMV_PRIVATE_DATA_MAX)
#define SMV_TCP_WELCOME_SIZE 16
#define SMV_TCP_REQUEST_SIZE 32
#define SMV_TCP_ANSWER_SIZE 16

enum smv_tcp_op { SMV_TCP_READ = 1, SMV_TCP_WRITE = 2, SMV_TCP_NOTIFY = 3 };

enum smv_tcp_status {
	SMV_TCP_OK = 0,
	SMV_TCP_ACCESS = 1, /* connection or access refused */
	SMV_TCP_VERSION_MISMATCH = 2,
};

struct smv_tcp_hello {
	uint16_t version;
	uint16_t private_len; /* 0..SMV_PRIVATE_DATA_MAX */
	uint8_t private_data[SMV_PRIVATE_DATA_MAX];
};

struct smv_tcp_welcome {
	uint16_t version; /* the server's */
	uint32_t status;
};

struct smv_tcp_request {
	uint32_t op;
	uint32_t len; /* payload, 1..SMV_REQUEST_MAX; a notification's 32 bits */
	uint64_t rkey;
	uint64_t addr;
	uint32_t seq; /* comes back in the answer */
};

struct smv_tcp_answer {
	uint32_t op;
	uint32_t len; /* as in the request */
	uint32_t seq;
	uint32_t status;
};

void smv_tcp_put_hello(uint8_t *out, const struct smv_tcp_hello *hello);
int smv_tcp_parse_hello(const uint8_t *in, struct smv_tcp_hello *hello);

void smv_tcp_put_welcome(uint8_t *out, const struct smv_tcp_welcome *welcome);
int smv_tcp_parse_welcome(const uint8_t *in, struct smv_tcp_welcome *welcome);

void smv_tcp_put_request(uint8_t *out, const struct smv_tcp_request *request);
int smv_tcp_parse_request(const uint8_t *in, struct smv_tcp_request *request);

void smv_tcp_put_answer(uint8_t *out, const struct smv_tcp_answer *answer);
int smv_tcp_parse_answer(const uint8_t *in, struct smv_tcp_answer *answer);

#endif
