/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/tracker.h"

#include "client/uffd.h"

#include <unistd.h>

#define MAX_REGIONS 1024
/* Between chunks one may be interrupted: each takes some tens of milliseconds. */
#define CHUNK (1ull << 30)

int smv_tracker_arm(struct smv_source *s, struct smv_error *err)
{
	for (unsigned int i = 0; i < s->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &s->ram.blocks[i];

		for (uint64_t off = 0; off < b->size_bytes; off += CHUNK) {
			uint64_t left = b->size_bytes - off;
			int r = smv_source_interrupted(s, err);

			if (r < 0)
				return r;
			r = smv_uffd_write_protect(
				s->uffd, b->host_addr + off, left < CHUNK ? left : CHUNK);
			if (r < 0)
				return smv_fail(err, smv_code_from_errno(r), "track", NULL,
					"cannot write-protect RAM block '%s': %s", b->id,
					strerror(-r));
		}
	}
	return 0;
}

static int scan(struct smv_source *s, uint64_t categories, bool write_protect,
	void (*found)(void *ctx, uint64_t first_page, uint64_t nr_pages), void *ctx,
	struct smv_error *err)
{
	struct smv_page_region regions[MAX_REGIONS];

	for (unsigned int i = 0; i < s->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &s->ram.blocks[i];
		uint64_t at = b->host_addr, end = b->host_addr + b->size_bytes;

		while (at < end) {
			uint64_t walk_end, stop = end - at < CHUNK ? end : at + CHUNK;
			int n, r = smv_source_interrupted(s, err);

			if (r < 0)
				return r;
			n = smv_pagemap_scan(s->pagemap_fd, at, stop, categories, write_protect,
				regions, MAX_REGIONS, &walk_end);
			if (n < 0 || walk_end <= at)
				return smv_fail(err, SMV_INTERNAL, "track", NULL,
					"cannot scan the page table of RAM block '%s': %s", b->id,
					strerror(n < 0 ? -n : EIO));
			for (int k = 0; k < n; k++)
				found(ctx,
					b->first_page +
						(regions[k].start - b->host_addr) / SMV_PAGE_SIZE,
					(regions[k].end - regions[k].start) / SMV_PAGE_SIZE);
			at = walk_end;
		}
	}
	return 0;
}

static void add_range(void *set, uint64_t first_page, uint64_t nr_pages)
{
	for (uint64_t i = 0; i < nr_pages; i++)
		smv_pageset_add(set, first_page + i);
}

int smv_tracker_collect(struct smv_source *s, struct smv_pageset *set, struct smv_error *err)
{
	return scan(s, SMV_PAGE_IS_WRITTEN, true, add_range, set, err);
}

static void count_touch(void *touches, uint64_t first_page, uint64_t nr_pages)
{
	uint8_t *t = (uint8_t *)touches + first_page;

	for (uint64_t i = 0; i < nr_pages; i++)
		if (t[i] < UINT8_MAX)
			t[i]++;
}

int smv_tracker_present(struct smv_source *s, uint8_t *touches, struct smv_error *err)
{
	return scan(s, SMV_PAGE_IS_PRESENT, false, count_touch, touches, err);
}

int smv_tracker_populated(
	const struct smv_source *s, struct smv_pageset *set, struct smv_error *err)
{
	for (unsigned int i = 0; i < s->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &s->ram.blocks[i];
		off_t start = (off_t)b->file_offset, end = start + (off_t)b->size_bytes, data, hole;

		for (data = lseek(b->fd, start, SEEK_DATA); data >= 0 && data < end;
			data = lseek(b->fd, hole, SEEK_DATA)) {
			uint64_t first = b->first_page + (uint64_t)(data - start) / SMV_PAGE_SIZE;
			int r = smv_source_interrupted(s, err);

			if (r < 0)
				return r;
			hole = lseek(b->fd, data, SEEK_HOLE);
			if (hole < 0)
				return smv_fail(err, SMV_INTERNAL, "ram-file", NULL,
					"cannot find the holes of RAM block '%s': %s", b->id,
					strerror(errno));
			if (hole > end)
				hole = end;
			add_range(set, first,
				(uint64_t)(hole - data + SMV_PAGE_SIZE - 1) / SMV_PAGE_SIZE);
		}
		if (data < 0 && errno != ENXIO)
			return smv_fail(err, SMV_INTERNAL, "ram-file", NULL,
				"cannot find the data of RAM block '%s': %s", b->id,
				strerror(errno));
	}
	return 0;
}
