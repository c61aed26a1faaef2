/* SPDX-License-Identifier: Apache-2.0 */
/* struct smv_error as a gRPC status: code and message, and two keys of trailing metadata. */
#ifndef SMV_RPC_STATUS_H
#define SMV_RPC_STATUS_H

#include "common/error.h"

#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <stdbool.h>

struct smv_rpc_status {
	grpc_status_code code;
	grpc_slice details;
	grpc_metadata metadata[2];
	size_t nr_metadata;
};

/** smv_rpc_status_from_error - NULL is success. Release it when the batch has been started. */
void smv_rpc_status_from_error(struct smv_rpc_status *status, const struct smv_error *err);
void smv_rpc_status_release(struct smv_rpc_status *status);

/** smv_rpc_status_to_error - false when it did not come from a smv_rpc_server but from gRPC itself,
 * here or at the peer; then only the code and the message are filled. */
bool smv_rpc_status_to_error(grpc_status_code code, grpc_slice details,
	const grpc_metadata_array *trailing, struct smv_error *err);

#endif
