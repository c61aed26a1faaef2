/* SPDX-License-Identifier: Apache-2.0 */
/* Text that crosses the control channel: UTF-8 and percent-encoding. */
#ifndef SMV_RPC_TEXT_H
#define SMV_RPC_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/** smv_utf8_is_valid - well-formed UTF-8 by RFC 3629: no overlong forms, no surrogates. */
bool smv_utf8_is_valid(const char *text, size_t len);

/** smv_text_scrub - copy at most @size - 1 of @len bytes and terminate; what is not UTF-8, and
 * control characters other than newline and tab, become '?': the text is a peer's and goes to a
 * terminal and into JSON. */
void smv_text_scrub(char *dst, size_t size, const char *text, size_t len);

/** smv_percent_encode - all but letters, digits and "-._~/:" as %XX, which suits HTTP/2 metadata
 * and URIs alike. @buf needs 3 * strlen(text) + 1 bytes to hold any text; returns @buf. */
char *smv_percent_encode(const char *text, char *buf, size_t size);

/** smv_percent_decode - in place; a '%' that starts no %XX stays. Returns the new length. */
size_t smv_percent_decode(char *text, size_t len);

#endif
