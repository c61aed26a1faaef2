/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as any message of the control channel: the first byte chooses the type. */
#include "rpc/message.h"
#include "rpc/text.h"
#include "smemv/v1/memserver.pb-c.h"
#include "smemv/v1/pager.pb-c.h"

#include <stdlib.h>
#include <string.h>

/* What was accepted can be packed, into as many bytes as foretold, and parsed again. */
static void check_repack(const ProtobufCMessage *message)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	ProtobufCMessage *again;
	uint8_t *data = malloc(len + 1);

	if (!data)
		return;
	if (protobuf_c_message_pack(message, data) != len)
		abort();
	/* protobuf-c keeps an unknown field 0 but does not read it back, so failure is legitimate.
	 */
	if (smv_rpc_message_unpack(message->descriptor, data, len, &again, NULL) == 0)
		smv_rpc_message_free(again);
	free(data);
}

static void check_text(const uint8_t *data, size_t size)
{
	char out[64];

	smv_text_scrub(out, sizeof(out), (const char *)data, size);
	for (size_t i = 0; out[i]; i++)
		if (out[i] == '\x1b')
			abort();
	if (!smv_utf8_is_valid(out, strlen(out)))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const ProtobufCServiceDescriptor *const services[] = {
		&smemv__v1__mem_server__descriptor, &smemv__v1__pager__descriptor};
	const ProtobufCServiceDescriptor *service;
	const ProtobufCMethodDescriptor *method;
	struct smv_error err;
	ProtobufCMessage *message;

	if (size == 0)
		return 0;
	service = services[data[0] & 1];
	method = &service->methods[(data[0] >> 2) % service->n_methods];
	if (smv_rpc_message_unpack(data[0] & 2 ? method->input : method->output, data + 1, size - 1,
		    &message, &err) == 0) {
		check_repack(message);
		smv_rpc_message_free(message);
	}
	check_text(data + 1, size - 1);
	return 0;
}
