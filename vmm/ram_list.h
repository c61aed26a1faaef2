/* SPDX-License-Identifier: Apache-2.0 */
/* The text of QEMU's "info ramblock", the one place where it tells idstr and page size. */
#ifndef SMV_VMM_RAM_LIST_H
#define SMV_VMM_RAM_LIST_H

#include "vmm/guest_ram.h"

/**
 * smv_ram_list_find - look up the block of memory back end @backend_id: its idstr is the id or, on
 * machine types before 4.0, "/objects/ID". Fills id, size_bytes and page_size of @block. Returns 0,
 * -ENOENT, or -EINVAL for a line of that block that makes no sense.
 */
int smv_ram_list_find(const char *text, const char *backend_id, struct smv_ram_block *block);

#endif
