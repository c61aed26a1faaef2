/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/status.h"

#include "rpc/text.h"

#include <string.h>

#define REASON_KEY "smemv-reason"
#define HINT_KEY "smemv-hint"

static void add_metadata(struct smv_rpc_status *status, const char *key, const char *text)
{
	char encoded[3 * sizeof(((struct smv_error *)0)->hint)];
	grpc_metadata *md = &status->metadata[status->nr_metadata++];

	md->key = grpc_slice_from_static_string(key);
	md->value =
		grpc_slice_from_copied_string(smv_percent_encode(text, encoded, sizeof(encoded)));
}

void smv_rpc_status_from_error(struct smv_rpc_status *status, const struct smv_error *err)
{
	memset(status, 0, sizeof(*status));
	status->details = grpc_empty_slice();
	if (!err)
		return;
	status->code = (grpc_status_code)err->code;
	status->details = grpc_slice_from_copied_string(err->message);
	/* The reason is sent even when it is empty: it tells our errors from gRPC's own. */
	add_metadata(status, REASON_KEY, err->reason);
	if (err->hint[0])
		add_metadata(status, HINT_KEY, err->hint);
}

void smv_rpc_status_release(struct smv_rpc_status *status)
{
	grpc_slice_unref(status->details);
	for (size_t i = 0; i < status->nr_metadata; i++)
		grpc_slice_unref(status->metadata[i].value);
}

static enum smv_code code_of(grpc_status_code code)
{
	switch (code) {
	case GRPC_STATUS_OUT_OF_RANGE:
		return SMV_INVALID;
	case GRPC_STATUS_UNAUTHENTICATED:
		return SMV_PERMISSION;
	default:
		return code > GRPC_STATUS_OK && code <= GRPC_STATUS_DATA_LOSS ? (enum smv_code)code
									      : SMV_UNKNOWN;
	}
}

/* Fill @dst with the value of @key; false if it is not there. */
static bool find_metadata(
	const grpc_metadata_array *trailing, const char *key, char *dst, size_t size)
{
	char text[3 * sizeof(((struct smv_error *)0)->hint)];

	for (size_t i = 0; i < trailing->count; i++) {
		const grpc_metadata *md = &trailing->metadata[i];
		size_t len = GRPC_SLICE_LENGTH(md->value);

		if (grpc_slice_str_cmp(md->key, key) != 0)
			continue;
		if (len > sizeof(text))
			len = sizeof(text);
		memcpy(text, GRPC_SLICE_START_PTR(md->value), len);
		smv_text_scrub(dst, size, text, smv_percent_decode(text, len));
		return true;
	}
	return false;
}

bool smv_rpc_status_to_error(grpc_status_code code, grpc_slice details,
	const grpc_metadata_array *trailing, struct smv_error *err)
{
	memset(err, 0, sizeof(*err));
	err->code = code_of(code);
	smv_text_scrub(err->message, sizeof(err->message),
		(const char *)GRPC_SLICE_START_PTR(details), GRPC_SLICE_LENGTH(details));
	find_metadata(trailing, HINT_KEY, err->hint, sizeof(err->hint));
	return find_metadata(trailing, REASON_KEY, err->reason, sizeof(err->reason));
}
