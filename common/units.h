/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SMV_COMMON_UNITS_H
#define SMV_COMMON_UNITS_H

#include <stddef.h>
#include <stdint.h>

#define SMV_KIB 1024ull
#define SMV_MIB (1024ull * 1024)
#define SMV_GIB (1024ull * 1024 * 1024)

/**
 * smv_parse_size - "512M", "1.5G", "4096": powers of 1024, suffix K M G T, optionally followed by
 * "iB" or "B". Returns 0, -EINVAL for text that is no size, -ERANGE for one over 2^63.
 */
int smv_parse_size(const char *text, uint64_t *bytes);

/** smv_format_size - "1.5 GiB" into @buf; returns @buf. */
char *smv_format_size(uint64_t bytes, char *buf, size_t len);

#endif
