/* SPDX-License-Identifier: Apache-2.0 */
#include "common/units.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int smv_parse_size(const char *text, uint64_t *bytes)
{
	static const char suffixes[] = "KMGT";
	double unit = 1, value;
	const char *suffix;
	char *end;

	/* strtod alone would take "inf", "0x10", " 1" and "-1". */
	if (text[0] < '0' || text[0] > '9' || text[1] == 'x' || text[1] == 'X')
		return -EINVAL;
	value = strtod(text, &end);
	if (*end && (suffix = strchr(suffixes, *end))) {
		for (const char *s = suffixes; s <= suffix; s++)
			unit *= 1024;
		end++;
		if (strcmp(end, "iB") == 0)
			end += 2;
		else if (strcmp(end, "B") == 0)
			end++;
	}
	if (*end)
		return -EINVAL;
	value *= unit;
	if (value >= 9223372036854775808.0)
		return -ERANGE;
	*bytes = (uint64_t)value;
	return 0;
}

char *smv_format_size(uint64_t bytes, char *buf, size_t len)
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double v = (double)bytes;
	size_t i = 0;

	while (v >= 1024 && i < sizeof(names) / sizeof(names[0]) - 1) {
		v /= 1024;
		i++;
	}
	snprintf(buf, len, i == 0 || v >= 100 ? "%.0f %s" : "%.1f %s", v, names[i]);
	return buf;
}
