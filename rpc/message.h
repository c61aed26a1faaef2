/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between their bytes and protobuf-c's structs, within the limits of the channel. */
#ifndef SMV_RPC_MESSAGE_H
#define SMV_RPC_MESSAGE_H

#include "rpc/rpc.h"

#include <grpc/byte_buffer.h>
#include <stdint.h>

/** smv_rpc_message_new - an initialised, empty message; NULL without memory. */
ProtobufCMessage *smv_rpc_message_new(const ProtobufCMessageDescriptor *descriptor);

/**
 * smv_rpc_message_unpack - parse bytes of a peer.
 *
 * Returns -EINVAL for bytes that are no such message or hold a string that is not UTF-8 (the error
 * names the field), -ENOSPC for more than SMV_RPC_MESSAGE_MAX of them.
 */
int smv_rpc_message_unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data,
	size_t len, ProtobufCMessage **message, struct smv_error *err);

/** smv_rpc_message_from_buffer - the same for what gRPC received; @buffer stays the caller's. */
int smv_rpc_message_from_buffer(const ProtobufCMessageDescriptor *descriptor,
	grpc_byte_buffer *buffer, ProtobufCMessage **message, struct smv_error *err);

/** smv_rpc_message_to_buffer - -ENOSPC when it is over SMV_RPC_MESSAGE_MAX. */
int smv_rpc_message_to_buffer(
	const ProtobufCMessage *message, grpc_byte_buffer **buffer, struct smv_error *err);

#endif
