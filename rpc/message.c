/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/message.h"

#include "rpc/text.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <stdlib.h>
#include <string.h>

ProtobufCMessage *smv_rpc_message_new(const ProtobufCMessageDescriptor *descriptor)
{
	ProtobufCMessage *message = malloc(descriptor->sizeof_message);

	if (message)
		protobuf_c_message_init(descriptor, message);
	return message;
}

void smv_rpc_message_free(ProtobufCMessage *message)
{
	protobuf_c_message_free_unpacked(message, NULL);
}

static int check_strings(const ProtobufCMessage *message, struct smv_error *err);

static int check_element(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field,
	const void *element, struct smv_error *err)
{
	if (!element)
		return 0;
	if (field->type == PROTOBUF_C_TYPE_MESSAGE)
		return check_strings(element, err);
	if (smv_utf8_is_valid(element, strlen(element)))
		return 0;
	return smv_fail(err, SMV_INVALID, "bad-utf8", "Send text as UTF-8.",
		"field %s.%s is not valid UTF-8", message->descriptor->name, field->name);
}

/* How many pointers the field holds, and where they begin. */
static size_t field_elements(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field,
	const void *const **elements)
{
	const char *base = (const char *)message;
	const void *member = base + field->offset, *quantifier = base + field->quantifier_offset;

	if (field->label == PROTOBUF_C_LABEL_REPEATED) {
		*elements = *(const void *const *const *)member;
		return *(const size_t *)quantifier;
	}
	*elements = member;
	if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		return *(const uint32_t *)quantifier == field->id;
	return 1;
}

/* protobuf-c takes any bytes for a string. The recursion ends: no message type contains itself. */
static int check_strings(const ProtobufCMessage *message, struct smv_error *err)
{
	for (unsigned int i = 0; i < message->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
		const void *const *elements;
		size_t n;

		if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		n = field_elements(message, field, &elements);
		for (size_t k = 0; k < n; k++) {
			int ret = check_element(message, field, elements[k], err);

			if (ret < 0)
				return ret;
		}
	}
	return 0;
}

static int too_large(
	const ProtobufCMessageDescriptor *descriptor, size_t len, struct smv_error *err)
{
	return smv_fail(err, SMV_NO_ROOM, "message-too-large", "Ask for less at a time.",
		"a message %s of %zu bytes is larger than the limit of %d bytes", descriptor->name,
		len, SMV_RPC_MESSAGE_MAX);
}

int smv_rpc_message_unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data,
	size_t len, ProtobufCMessage **message, struct smv_error *err)
{
	int ret;

	*message = NULL;
	if (len > SMV_RPC_MESSAGE_MAX)
		return too_large(descriptor, len, err);
	*message = protobuf_c_message_unpack(descriptor, NULL, len, data);
	if (!*message)
		return smv_fail(err, SMV_INVALID, "bad-message",
			"Do both sides run the same version?", "%zu bytes are no message %s", len,
			descriptor->name);
	ret = check_strings(*message, err);
	if (ret < 0) {
		smv_rpc_message_free(*message);
		*message = NULL;
	}
	return ret;
}

int smv_rpc_message_from_buffer(const ProtobufCMessageDescriptor *descriptor,
	grpc_byte_buffer *buffer, ProtobufCMessage **message, struct smv_error *err)
{
	grpc_byte_buffer_reader reader;
	grpc_slice slice;
	int ret;

	*message = NULL;
	if (!grpc_byte_buffer_reader_init(&reader, buffer))
		return smv_fail(err, SMV_INVALID, "bad-message", NULL,
			"a message %s cannot be read", descriptor->name);
	slice = grpc_byte_buffer_reader_readall(&reader);
	grpc_byte_buffer_reader_destroy(&reader);
	ret = smv_rpc_message_unpack(
		descriptor, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice), message, err);
	grpc_slice_unref(slice);
	return ret;
}

int smv_rpc_message_to_buffer(
	const ProtobufCMessage *message, grpc_byte_buffer **buffer, struct smv_error *err)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	grpc_slice slice;

	*buffer = NULL;
	if (len > SMV_RPC_MESSAGE_MAX)
		return too_large(message->descriptor, len, err);
	slice = grpc_slice_malloc(len);
	protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
	*buffer = grpc_raw_byte_buffer_create(&slice, 1);
	grpc_slice_unref(slice);
	return 0;
}
