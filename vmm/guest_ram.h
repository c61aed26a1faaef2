/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's RAM as this project sees it: the RAM blocks that live in shared files, ordered by
 * QEMU's idstr, their pages numbered one behind the other from 0.
 */
#ifndef SMV_VMM_GUEST_RAM_H
#define SMV_VMM_GUEST_RAM_H

#include "common/error.h"
#include "vmm/qmp.h"

#include <stdint.h>
#include <sys/types.h>

#define SMV_PAGE_SIZE 4096u
#define SMV_RAM_BLOCKS_MAX 16

struct smv_ram_block {
	char id[128]; /* idstr */
	uint64_t size_bytes;
	uint32_t page_size;
	uint64_t first_page; /* VM-wide number of its first page */
	uint64_t nr_pages;
	uint64_t host_addr;   /* where QEMU maps it, in QEMU's address space */
	int fd;               /* the file, opened by us for reading and writing */
	uint64_t file_offset; /* of the block in the file */
};

struct smv_guest_ram {
	struct smv_ram_block blocks[SMV_RAM_BLOCKS_MAX];
	unsigned int nr_blocks;
	uint64_t nr_pages;
	uint64_t bytes;
};

/**
 * smv_guest_ram_find - ask QEMU for its RAM and find it in the process.
 *
 * Refused (SMV_REFUSED, with what to change): RAM that is not a shared file (memory-backend-file or
 * -memfd with share=on), hugetlb pages, a block that is mapped more than once, RAM beside the file
 * blocks (base memory and plugged memory must be covered by them), locked memory. Opens the files
 * through /proc/PID/fd, so their paths need not exist here.
 */
int smv_guest_ram_find(
	struct smv_qmp *qmp, pid_t pid, struct smv_guest_ram *ram, struct smv_error *err);
void smv_guest_ram_release(struct smv_guest_ram *ram);

/** smv_guest_ram_check_whole - that somebody serves faults on this RAM by userfaultfd, as
 * smemv-pagerd does for a VM that is split, is refused (SMV_REFUSED, "vm-is-split"): its holes are
 * no zeros. Walks the page tables of process @pid. */
int smv_guest_ram_check_whole(const struct smv_guest_ram *ram, pid_t pid, struct smv_error *err);

/** smv_guest_ram_block_of - the block that holds VM page @page (which must exist). */
static inline const struct smv_ram_block *smv_guest_ram_block_of(
	const struct smv_guest_ram *ram, uint64_t page)
{
	unsigned int i = 0;

	while (page >= ram->blocks[i].first_page + ram->blocks[i].nr_pages)
		i++;
	return &ram->blocks[i];
}

/** smv_guest_ram_resident - bytes that the files hold now. */
uint64_t smv_guest_ram_resident(const struct smv_guest_ram *ram);

#endif
