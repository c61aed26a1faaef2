/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parsers of the tcp transport against arbitrary bytes: no access outside of the input, and
 * whatever is accepted keeps the promises of tcp_wire.h and survives being written again. By hand:
 * clang -I. -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_tcp_wire.c
 * transport/tcp_wire.c
 */
#include "transport/tcp_wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
	if (!ok)
		abort();
}

static void check_hello(const uint8_t *in)
{
	struct smv_tcp_hello hello, again;
	uint8_t out[SMV_TCP_HELLO_SIZE];

	if (smv_tcp_parse_hello(in, &hello) < 0)
		return;
	require(hello.private_len <= SMV_PRIVATE_DATA_MAX);
	smv_tcp_put_hello(out, &hello);
	require(smv_tcp_parse_hello(out, &again) == 0 && again.version == hello.version &&
		again.private_len == hello.private_len);
}

static void check_request(const uint8_t *in)
{
	struct smv_tcp_request request;
	uint8_t out[SMV_TCP_REQUEST_SIZE];

	if (smv_tcp_parse_request(in, &request) < 0)
		return;
	require(request.op == SMV_TCP_NOTIFY || (request.len && request.len <= SMV_REQUEST_MAX));
	smv_tcp_put_request(out, &request);
	require(memcmp(in, out, sizeof(out)) == 0);
}

static void check_answer(const uint8_t *in)
{
	struct smv_tcp_answer answer;
	uint8_t out[SMV_TCP_ANSWER_SIZE];

	if (smv_tcp_parse_answer(in, &answer) < 0)
		return;
	require(answer.op == SMV_TCP_NOTIFY || (answer.len && answer.len <= SMV_REQUEST_MAX));
	smv_tcp_put_answer(out, &answer);
	require(memcmp(in, out, sizeof(out)) == 0);
}

static void check_welcome(const uint8_t *in)
{
	struct smv_tcp_welcome welcome;

	smv_tcp_parse_welcome(in, &welcome);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct {
		void (*check)(const uint8_t *in);
		size_t size;
	} parsers[] = {{check_hello, SMV_TCP_HELLO_SIZE}, {check_welcome, SMV_TCP_WELCOME_SIZE},
		{check_request, SMV_TCP_REQUEST_SIZE}, {check_answer, SMV_TCP_ANSWER_SIZE}};

	/* An exact copy, so that the sanitizer sees a read past the end of a message. */
	for (size_t i = 0; i < sizeof(parsers) / sizeof(parsers[0]); i++) {
		uint8_t *copy;

		if (size < parsers[i].size || !(copy = malloc(parsers[i].size)))
			continue;
		memcpy(copy, data, parsers[i].size);
		parsers[i].check(copy);
		free(copy);
	}
	return 0;
}
