/* SPDX-License-Identifier: Apache-2.0 */
/* Where a process maps a file, read from the text of /proc/PID/maps. */
#ifndef SMV_VMM_MAPS_H
#define SMV_VMM_MAPS_H

#include <stdint.h>
#include <sys/types.h>

struct smv_mapping {
	uint64_t addr;
	uint64_t len;
	uint64_t file_offset;
};

/**
 * smv_maps_find - the mapping of the file (@dev, @ino) in @text, which is in the format of
 * /proc/PID/maps. Neighbouring entries of one mapping (the kernel splits it, e.g. at a range that
 * is registered with a userfaultfd) are joined.
 *
 * Returns the number of separate mappings, of which the first is in *mapping; -EPERM when one of
 * them is private or read-only; -EINVAL when the text is malformed.
 */
int smv_maps_find(const char *text, dev_t dev, ino_t ino, struct smv_mapping *mapping);

#endif
