/* SPDX-License-Identifier: Apache-2.0 */
#include "client/backing.h"

#include "common/cleanup.h"
#include "vmm/guest_ram.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

int smv_backing_add_extents(struct smv_backing *backing, unsigned int sub_host,
	unsigned int segment, uint64_t offset_bytes, uint64_t nr_extents)
{
	const struct smv_segment *seg;
	struct smv_extent *grown;

	if (sub_host >= backing->nr_sub_hosts ||
		segment >= backing->sub_hosts[sub_host].nr_segments)
		return -EINVAL;
	seg = &backing->sub_hosts[sub_host].segments[segment];
	if (offset_bytes % SMV_EXTENT_BYTES || offset_bytes > seg->size_bytes ||
		nr_extents > (seg->size_bytes - offset_bytes) / SMV_EXTENT_BYTES)
		return -EINVAL;
	if (nr_extents == 0)
		return 0; /* to reallocate to nothing would free the table */
	grown = reallocarray(backing->extents, backing->nr_extents + nr_extents, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	backing->extents = grown;
	for (uint64_t i = 0; i < nr_extents; i++)
		backing->extents[backing->nr_extents++] = (struct smv_extent){
			(uint16_t)sub_host, (uint16_t)segment, offset_bytes + i * SMV_EXTENT_BYTES};
	return 0;
}

int smv_backing_spread(struct smv_backing *backing, uint64_t run)
{
	struct cursor {
		unsigned int segment;
		uint64_t offset;
	};
	CLEANUP_FREE struct cursor *at = calloc(backing->nr_sub_hosts, sizeof(*at));
	bool any = true;
	int r;

	if (!at)
		return -ENOMEM;
	while (any) {
		any = false;
		for (unsigned int h = 0; h < backing->nr_sub_hosts; h++) {
			const struct smv_sub_host *host = &backing->sub_hosts[h];
			uint64_t left, n;

			if (at[h].segment == host->nr_segments)
				continue;
			left = (host->segments[at[h].segment].size_bytes - at[h].offset) /
			       SMV_EXTENT_BYTES;
			n = left < run ? left : run;
			r = smv_backing_add_extents(backing, h, at[h].segment, at[h].offset, n);
			if (r < 0)
				return r;
			any = true;
			at[h].offset += n * SMV_EXTENT_BYTES;
			if (n == left)
				at[h] = (struct cursor){at[h].segment + 1, 0};
		}
	}
	return 0;
}

unsigned int smv_backing_first_of(const struct smv_backing *backing, unsigned int h)
{
	unsigned int first = 0;

	while (strcmp(backing->sub_hosts[first].address, backing->sub_hosts[h].address) != 0)
		first++;
	return first;
}

void smv_backing_free(struct smv_backing *backing)
{
	for (unsigned int h = 0; h < backing->nr_sub_hosts; h++)
		free(backing->sub_hosts[h].segments);
	free(backing->sub_hosts);
	free(backing->extents);
	memset(backing, 0, sizeof(*backing));
}

struct smv_slot_place smv_backing_locate(const struct smv_backing *backing, uint64_t slot)
{
	const struct smv_extent *e;
	const struct smv_segment *seg;
	uint64_t offset;

	assert(slot < backing->nr_extents * SMV_EXTENT_PAGES);
	e = &backing->extents[slot / SMV_EXTENT_PAGES];
	seg = &backing->sub_hosts[e->sub_host].segments[e->segment];
	offset = e->offset_bytes + slot % SMV_EXTENT_PAGES * SMV_PAGE_SIZE;
	return (struct smv_slot_place){
		e->sub_host, e->segment, offset, seg->rkey, seg->remote_addr + offset};
}
