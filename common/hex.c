/* SPDX-License-Identifier: Apache-2.0 */
#include "common/hex.h"

#include <stdlib.h>
#include <string.h>

static const char digit[] = "0123456789abcdef";

bool smv_is_hex(const char *text, size_t digits)
{
	return strlen(text) == digits && strspn(text, digit) == digits;
}

char *smv_hex_format(const uint8_t *bytes, size_t n, char *text)
{
	for (size_t i = 0; i < n; i++) {
		text[2 * i] = digit[bytes[i] >> 4];
		text[2 * i + 1] = digit[bytes[i] & 15];
	}
	text[2 * n] = '\0';
	return text;
}

bool smv_hex_parse(const char *text, uint8_t *bytes, size_t n)
{
	if (!smv_is_hex(text, 2 * n))
		return false;
	for (size_t i = 0; i < n; i++) {
		const char pair[3] = {text[2 * i], text[2 * i + 1], '\0'};

		bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
	}
	return true;
}
