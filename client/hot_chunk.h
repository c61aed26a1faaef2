/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How hot pages travel from the source to the main host. The pager registers a ring of chunks; the
 * source writes one chunk, then notifies its index; the pager puts the pages in place and notifies
 * the index back, which frees the chunk: the chunks are the source's credits. An index with
 * SMV_HOT_REFUSED set says that the chunk was refused; the migration cannot go on.
 *
 * All integers are little-endian; so are all hosts this is built for.
 */
#ifndef SMV_CLIENT_HOT_CHUNK_H
#define SMV_CLIENT_HOT_CHUNK_H

#include <stdint.h>

#define SMV_HOT_CHUNK_PAGES 64u
#define SMV_HOT_RING_CHUNKS 16u
#define SMV_HOT_MAGIC 0x31544f48u /* "HOT1" */
#define SMV_HOT_REFUSED 0x80000000u

struct smv_hot_chunk {
	uint32_t magic;
	uint32_t nr_pages;
	uint64_t reserved;
	struct {
		uint64_t page;
		uint32_t checksum;
		uint32_t reserved;
	} entries[SMV_HOT_CHUNK_PAGES];
	uint8_t pad[4096 - 16 - 16 * SMV_HOT_CHUNK_PAGES];
	uint8_t data[SMV_HOT_CHUNK_PAGES][4096];
};
_Static_assert(sizeof(struct smv_hot_chunk) == 4096 * (1 + SMV_HOT_CHUNK_PAGES), "wire format");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

#endif
