/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SMV_CTL_MESSAGE_JSON_H
#define SMV_CTL_MESSAGE_JSON_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

/**
 * smv_message_to_json - a protobuf message as a JSON object, by its descriptor, so that a new field
 * of a .proto needs no code. Names are those of the fields; 64-bit numbers are integers (above 2^63
 * - 1: that); an enum value LEASE_STATE_HELD of LeaseState is "held"; fields of type bytes are left
 * out. Returns a new reference, NULL without memory.
 */
json_t *smv_message_to_json(const ProtobufCMessage *message);

/** smv_text_to_json - a string from a peer, which may be NULL or no UTF-8. */
json_t *smv_text_to_json(const char *text);

#endif
