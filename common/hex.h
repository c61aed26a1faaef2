/* SPDX-License-Identifier: Apache-2.0 */
/* Ids and keys as people and files see them: lower-case hexadecimal digits. */
#ifndef SMV_COMMON_HEX_H
#define SMV_COMMON_HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** smv_is_hex - exactly so many digits and nothing else. */
bool smv_is_hex(const char *text, size_t digits);

/** smv_hex_format - @text gets 2 @n digits and a NUL; returns it. */
char *smv_hex_format(const uint8_t *bytes, size_t n, char *text);
/** smv_hex_parse - false: @text is not 2 @n digits. */
bool smv_hex_parse(const char *text, uint8_t *bytes, size_t n);

#endif
