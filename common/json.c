/* SPDX-License-Identifier: Apache-2.0 */
#include "common/json.h"

#include "common/hex.h"

#include <inttypes.h>
#include <stdlib.h>

const char *smv_json_field(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key)) ?: "";
}

json_t *smv_json_hex(uint64_t value)
{
	return json_sprintf("%016" PRIx64, value);
}

bool smv_json_to_hex(const json_t *json, uint64_t *value)
{
	const char *text = json_string_value(json);

	if (!text || !smv_is_hex(text, 16))
		return false;
	*value = strtoull(text, NULL, 16);
	return true;
}
