/* SPDX-License-Identifier: Apache-2.0 */
/* What jansson lacks for our files. */
#ifndef SMV_COMMON_JSON_H
#define SMV_COMMON_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/** smv_json_field - a text of an object; "" when there is none. */
const char *smv_json_field(const json_t *object, const char *key);

/** smv_json_hex - all 64 bits of a number, as 16 hexadecimal digits: integers of JSON have fewer.
 */
json_t *smv_json_hex(uint64_t value);
/** smv_json_to_hex - false: @json is no such text. */
bool smv_json_to_hex(const json_t *json, uint64_t *value);

#endif
