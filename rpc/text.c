/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/text.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Length of the well-formed sequence at @s, 0 if there is none. */
static size_t utf8_sequence(const unsigned char *s, size_t len)
{
	static const uint32_t lowest[] = {0, 0, 0x80, 0x800, 0x10000};
	uint32_t c;
	size_t n;

	if (s[0] < 0x80)
		return 1;
	n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	if (s[0] < 0xc2 || s[0] > 0xf4 || n > len)
		return 0;
	c = s[0] & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3fu);
	}
	if (c < lowest[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	return n;
}

bool smv_utf8_is_valid(const char *text, size_t len)
{
	for (size_t i = 0, n; i < len; i += n) {
		n = utf8_sequence((const unsigned char *)text + i, len - i);
		if (n == 0)
			return false;
	}
	return true;
}

void smv_text_scrub(char *dst, size_t size, const char *text, size_t len)
{
	size_t used = 0;

	for (size_t i = 0, n; i < len; i += n) {
		unsigned char c = (unsigned char)text[i];
		bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
		size_t valid = utf8_sequence((const unsigned char *)text + i, len - i);

		n = valid ? valid : 1;
		if (used + n >= size)
			break;
		if (!valid || control)
			dst[used] = '?';
		else
			memcpy(dst + used, text + i, n);
		used += n;
	}
	dst[used] = '\0';
}

static bool is_plain(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
	       (c && strchr("-._~/:", c));
}

char *smv_percent_encode(const char *text, char *buf, size_t size)
{
	size_t used = 0;

	for (; *text; text++) {
		size_t n = is_plain(*text) ? 1 : 3;

		if (used + n >= size)
			break;
		if (n == 1)
			buf[used] = *text;
		else
			snprintf(buf + used, 4, "%%%02X", (unsigned char)*text);
		used += n;
	}
	buf[used] = '\0';
	return buf;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

size_t smv_percent_decode(char *text, size_t len)
{
	size_t out = 0;

	for (size_t i = 0; i < len; out++) {
		int high = i + 2 < len && text[i] == '%' ? hex_digit(text[i + 1]) : -1;
		int low = high >= 0 ? hex_digit(text[i + 2]) : -1;

		if (low >= 0) {
			text[out] = (char)(high << 4 | low);
			i += 3;
		} else {
			text[out] = text[i++];
		}
	}
	return out;
}
