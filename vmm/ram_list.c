/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/ram_list.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* "  ram0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000", newer QEMUs append
 * columns. The name may hold anything, so the line is read from the first number in hex. */
static int parse_line(
	const char *line, size_t len, const char *backend_id, struct smv_ram_block *block)
{
	char copy[512], unit[4], id[256], *hex;
	uint64_t used, total;
	unsigned int page;
	int name_end = 0, n;

	if (len >= sizeof(copy))
		return -ENOENT;
	memcpy(copy, line, len);
	copy[len] = 0;
	hex = strstr(copy, "  0x");
	if (!hex)
		return -ENOENT; /* the heading */
	if (sscanf(copy, " %255s%n", id, &name_end) != 1)
		return -ENOENT;
	n = strncmp(id, "/objects/", 9) == 0 ? 9 : 0;
	if (strcmp(id + n, backend_id) != 0)
		return -ENOENT;
	if (strlen(id) >= sizeof(block->id) ||
		sscanf(copy + name_end, " %u %3s 0x%*x 0x%" SCNx64 " 0x%" SCNx64, &page, unit,
			&used, &total) != 4 ||
		used != total || page == 0 || page >= 1024)
		return -EINVAL;
	if (strcmp(unit, "KiB") == 0)
		block->page_size = page << 10;
	else if (strcmp(unit, "MiB") == 0)
		block->page_size = page << 20;
	else if (strcmp(unit, "GiB") == 0 && page < 4)
		block->page_size = page << 30;
	else
		return -EINVAL;
	strcpy(block->id, id);
	block->size_bytes = total;
	return 0;
}

int smv_ram_list_find(const char *text, const char *backend_id, struct smv_ram_block *block)
{
	while (*text) {
		size_t len = strcspn(text, "\r\n");
		int r = parse_line(text, len, backend_id, block);

		if (r != -ENOENT)
			return r;
		text += len + strspn(text + len, "\r\n");
	}
	return -ENOENT;
}
