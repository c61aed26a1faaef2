/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/maps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

/* One line: "7f99-7f9a rw-s 00000000 00:1b 14   /dev/shm/ram0". */
struct entry {
	uint64_t start, end, offset, ino;
	char perms[5];
	unsigned int major, minor;
};

static int parse_line(const char *line, struct entry *e)
{
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &e->start,
		    &e->end, e->perms, &e->offset, &e->major, &e->minor, &e->ino) != 7 ||
		strlen(e->perms) != 4 || e->start >= e->end)
		return -EINVAL;
	return 0;
}

int smv_maps_find(const char *text, dev_t dev, ino_t ino, struct smv_mapping *mapping)
{
	struct smv_mapping last = {0};
	int count = 0;

	while (*text) {
		const char *newline = strchr(text, '\n');
		struct entry e;

		if (parse_line(text, &e) < 0)
			return -EINVAL;
		text = newline ? newline + 1 : text + strlen(text);
		if (makedev(e.major, e.minor) != dev || e.ino != ino)
			continue;
		if (memcmp(e.perms, "rw", 2) != 0 || e.perms[3] != 's')
			return -EPERM;
		if (count && last.addr + last.len == e.start &&
			last.file_offset + last.len == e.offset) {
			last.len += e.end - e.start;
		} else {
			last = (struct smv_mapping){e.start, e.end - e.start, e.offset};
			count++;
		}
		if (count == 1)
			*mapping = last;
	}
	return count;
}
