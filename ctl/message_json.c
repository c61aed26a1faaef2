/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/message_json.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static json_t *unsigned_to_json(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

/* A peer's text may be anything; JSON wants UTF-8. */
json_t *smv_text_to_json(const char *text)
{
	json_t *json = json_string(text ? text : "");

	return json ? json : json_string("(not UTF-8)");
}

/* The values of enum LeaseState are LEASE_STATE_...: what stands behind the name that they share
 * with the value 0, LEASE_STATE_UNSPECIFIED, is for people. */
static json_t *enum_to_json(const ProtobufCEnumDescriptor *desc, int value)
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(desc, value);
	const ProtobufCEnumValue *zero = protobuf_c_enum_descriptor_get_value(desc, 0);
	const char *suffix = zero ? strstr(zero->name, "UNSPECIFIED") : NULL;
	size_t prefix = suffix ? (size_t)(suffix - zero->name) : 0;
	char text[64];

	if (!v)
		return json_sprintf("%d", value);
	if (prefix && strncmp(v->name, zero->name, prefix) != 0)
		prefix = 0;
	snprintf(text, sizeof(text), "%s", v->name + prefix);
	for (char *c = text; *c; c++)
		*c = (char)tolower(*c);
	return json_string(text);
}

/* NULL for types that are not shown. */
static json_t *value_to_json(const ProtobufCFieldDescriptor *field, const void *at)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return json_integer(*(const int32_t *)at);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return json_integer(*(const int64_t *)at);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return json_integer(*(const uint32_t *)at);
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return unsigned_to_json(*(const uint64_t *)at);
	case PROTOBUF_C_TYPE_FLOAT:
		return json_real((double)*(const float *)at);
	case PROTOBUF_C_TYPE_DOUBLE:
		return json_real(*(const double *)at);
	case PROTOBUF_C_TYPE_BOOL:
		return json_boolean(*(const protobuf_c_boolean *)at);
	case PROTOBUF_C_TYPE_ENUM:
		return enum_to_json(field->descriptor, *(const int *)at);
	case PROTOBUF_C_TYPE_STRING:
		return smv_text_to_json(*(char *const *)at);
	case PROTOBUF_C_TYPE_MESSAGE:
		if (!*(ProtobufCMessage *const *)at)
			return json_null();
		return smv_message_to_json(*(ProtobufCMessage *const *)at);
	case PROTOBUF_C_TYPE_BYTES:
		break;
	}
	return NULL;
}

static size_t value_size(ProtobufCType type)
{
	switch (type) {
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static json_t *repeated_to_json(
	const ProtobufCFieldDescriptor *field, const char *elements, size_t nr)
{
	json_t *array = json_array();

	for (size_t i = 0; i < nr; i++)
		json_array_append_new(
			array, value_to_json(field, elements + i * value_size(field->type)));
	return array;
}

json_t *smv_message_to_json(const ProtobufCMessage *message)
{
	const ProtobufCMessageDescriptor *desc = message->descriptor;
	json_t *object = json_object(), *value;

	for (unsigned int i = 0; object && i < desc->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &desc->fields[i];
		const char *at = (const char *)message + f->offset;

		if (f->type == PROTOBUF_C_TYPE_BYTES)
			continue;
		if (f->label == PROTOBUF_C_LABEL_REPEATED)
			value = repeated_to_json(f, *(char *const *)at,
				*(const size_t *)((const char *)message + f->quantifier_offset));
		else
			value = value_to_json(f, at);
		json_object_set_new(object, f->name, value);
	}
	return object;
}
