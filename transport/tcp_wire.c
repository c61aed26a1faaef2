/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tcp_wire.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static const uint8_t magic[8] = {'S', 'M', 'E', 'M', 'V', 'T', 'C', 'P'};

static void put16(uint8_t *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

/* An operation and its length (for a notification any 32 bits). */
static bool is_sound(uint32_t op, uint32_t len)
{
	switch (op) {
	case SMV_TCP_READ:
	case SMV_TCP_WRITE:
		return len > 0 && len <= SMV_REQUEST_MAX;
	case SMV_TCP_NOTIFY:
		return true;
	}
	return false;
}

void smv_tcp_put_hello(uint8_t *out, const struct smv_tcp_hello *hello)
{
	memset(out, 0, SMV_TCP_HELLO_SIZE);
	memcpy(out, magic, sizeof(magic));
	put16(out + 8, hello->version);
	put16(out + 10, hello->private_len);
	memcpy(out + 16, hello->private_data, hello->private_len);
}

/* The version is not judged here: the server answers another one with its own. */
int smv_tcp_parse_hello(const uint8_t *in, struct smv_tcp_hello *hello)
{
	if (memcmp(in, magic, sizeof(magic)) != 0)
		return -EPROTO;
	hello->version = get16(in + 8);
	hello->private_len = get16(in + 10);
	if (hello->private_len > SMV_PRIVATE_DATA_MAX)
		return -EPROTO;
	memcpy(hello->private_data, in + 16, SMV_PRIVATE_DATA_MAX);
	return 0;
}

void smv_tcp_put_welcome(uint8_t *out, const struct smv_tcp_welcome *welcome)
{
	memset(out, 0, SMV_TCP_WELCOME_SIZE);
	memcpy(out, magic, sizeof(magic));
	put16(out + 8, welcome->version);
	put32(out + 12, welcome->status);
}

int smv_tcp_parse_welcome(const uint8_t *in, struct smv_tcp_welcome *welcome)
{
	if (memcmp(in, magic, sizeof(magic)) != 0)
		return -EPROTO;
	welcome->version = get16(in + 8);
	welcome->status = get32(in + 12);
	return 0;
}

void smv_tcp_put_request(uint8_t *out, const struct smv_tcp_request *request)
{
	put32(out, request->op);
	put32(out + 4, request->len);
	put64(out + 8, request->rkey);
	put64(out + 16, request->addr);
	put32(out + 24, request->seq);
	put32(out + 28, 0);
}

int smv_tcp_parse_request(const uint8_t *in, struct smv_tcp_request *request)
{
	request->op = get32(in);
	request->len = get32(in + 4);
	request->rkey = get64(in + 8);
	request->addr = get64(in + 16);
	request->seq = get32(in + 24);
	return is_sound(request->op, request->len) && get32(in + 28) == 0 ? 0 : -EPROTO;
}

void smv_tcp_put_answer(uint8_t *out, const struct smv_tcp_answer *answer)
{
	put32(out, answer->op);
	put32(out + 4, answer->len);
	put32(out + 8, answer->seq);
	put32(out + 12, answer->status);
}

int smv_tcp_parse_answer(const uint8_t *in, struct smv_tcp_answer *answer)
{
	answer->op = get32(in);
	answer->len = get32(in + 4);
	answer->seq = get32(in + 8);
	answer->status = get32(in + 12);
	return is_sound(answer->op, answer->len) && answer->status <= SMV_TCP_ACCESS ? 0 : -EPROTO;
}
