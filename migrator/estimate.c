/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/estimate.h"

#include "client/pagemap.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "migrator/hotness.h"
#include "migrator/tracker.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define DIRTY_MS 1000
#define READ_PAGES 4096u
/* Looking at the VM, preparing, and the sampling that a migration does itself. */
#define SETUP_MS 1500.0

static int no_memory(struct smv_error *err)
{
	return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

/* Two samples like a migration's, the second one to judge the choice made by the first. */
static int sample_touches(struct smv_source *s, uint64_t credit,
	const struct smv_pageset *populated, struct smv_sample *out, struct smv_error *err)
{
	CLEANUP_FREE uint8_t *before = calloc(s->ram.nr_pages, 1);
	CLEANUP_FREE uint8_t *after = calloc(s->ram.nr_pages, 1);
	struct smv_pageset hot = {0};
	double seconds;
	int r;

	if (!before || !after || smv_pageset_create(s->ram.nr_pages, &hot) < 0)
		return no_memory(err);
	r = smv_hotness_look(s, SMV_HOTNESS_SAMPLES - 1, before, err);
	smv_hotness_choose(before, populated, credit, &hot);
	if (r == 0)
		r = smv_hotness_look(s, 1, after, err);
	seconds = SMV_HOTNESS_SAMPLE_MS / 1000.0;
	for (uint64_t p = 0; p < s->ram.nr_pages && r == 0; p++) {
		out->pages_touched += before[p] || after[p];
		if (after[p] && !smv_pageset_has(&hot, p))
			out->cold_touches_per_s += 1 / seconds;
	}
	smv_pageset_destroy(&hot);
	return r;
}

static int sample_writes(struct smv_source *s, struct smv_sample *out, struct smv_error *err)
{
	struct smv_pageset dirty = {0};
	uint64_t start, scan;
	int r;

	if (smv_pageset_create(s->ram.nr_pages, &dirty) < 0)
		return no_memory(err);
	if ((r = smv_tracker_arm(s, err)) == 0) {
		start = smv_now_ns();
		smv_sleep_ms(DIRTY_MS);
		scan = smv_now_ns();
		r = smv_tracker_collect(s, &dirty, err);
		out->dirty_pages_per_s =
			(double)smv_pageset_count(&dirty) / (smv_ms_since(start) / 1000);
		out->scan_ms += smv_ms_since(scan);
	}
	smv_pageset_destroy(&dirty);
	return r;
}

/* Pages at random, in the way of smv_push_pages(). */
static int sample_contents(struct smv_source *s, const struct smv_pageset *populated,
	struct smv_sample *out, struct smv_error *err)
{
	uint64_t start = smv_now_ns(), zero = 0, read = 0;
	volatile uint32_t sum = 0;
	char page[SMV_PAGE_SIZE];

	while (read < READ_PAGES && out->pages_populated) {
		const struct smv_ram_block *b;
		uint64_t p;

		if (getrandom(&p, sizeof(p), 0) != sizeof(p))
			return smv_fail(err, SMV_INTERNAL, "random", NULL, "getrandom failed");
		p = smv_pageset_next(populated, p % s->ram.nr_pages);
		if (p >= s->ram.nr_pages)
			continue;
		b = smv_guest_ram_block_of(&s->ram, p);
		if (pread(b->fd, page, sizeof(page),
			    (off_t)(b->file_offset + (p - b->first_page) * SMV_PAGE_SIZE)) !=
			(ssize_t)sizeof(page))
			return smv_fail(err, SMV_INTERNAL, "ram-file", NULL,
				"cannot read page %lu of the source's RAM", p);
		zero += smv_page_is_zero(page);
		sum += smv_page_checksum(page);
		read++;
	}
	if (!read)
		return 0;
	out->zero_share = (double)zero / (double)read;
	out->read_bytes_per_s =
		(double)(read * SMV_PAGE_SIZE) / ((double)(smv_now_ns() - start) / 1e9);
	return 0;
}

int smv_sample_take(
	struct smv_source *s, uint64_t credit, struct smv_sample *out, struct smv_error *err)
{
	struct smv_pageset populated = {0};
	uint64_t start;
	int r;

	*out = (struct smv_sample){.pages_total = s->ram.nr_pages};
	if (smv_pageset_create(s->ram.nr_pages, &populated) < 0)
		return no_memory(err);
	r = smv_source_attach(s, err);
	start = smv_now_ns();
	if (r == 0 && (r = smv_tracker_populated(s, &populated, err)) == 0) {
		out->pages_populated = smv_pageset_count(&populated);
		out->scan_ms = smv_ms_since(start);
		if ((r = sample_touches(s, credit, &populated, out, err)) == 0 &&
			(r = sample_writes(s, out, err)) == 0)
			r = sample_contents(s, &populated, out, err);
	}
	smv_source_detach(s);
	smv_pageset_destroy(&populated);
	return r;
}

/* Distinct pages written within @ms: as fast as in the sample at first; never more than there are.
 */
static double dirtied(const struct smv_sample *s, double ms)
{
	double pages = s->dirty_pages_per_s * ms / 1000;

	return pages < (double)s->pages_populated ? pages : (double)s->pages_populated;
}

void smv_estimate(const struct smv_sample *s, uint64_t credit, double link_bytes_per_s,
	struct smv_converge *c, struct smv_estimate *out)
{
	uint64_t full = (uint64_t)((double)s->pages_populated * (1 - s->zero_share));
	double rate = s->read_bytes_per_s > 0 && s->read_bytes_per_s < link_bytes_per_s
			      ? s->read_bytes_per_s
			      : link_bytes_per_s;
	double sent = 0, pages = (double)full, hot_share, throttle;
	enum smv_converge_step step = SMV_CONVERGE_SEND;

	/* A migration believes two looks, and here there is one. */
	smv_converge_scanned(c, s->scan_ms);
	smv_converge_scanned(c, s->scan_ms);
	*out = (struct smv_estimate){.total_ms = SETUP_MS, .faults_per_s = s->cold_touches_per_s};
	out->pages_hot = full < credit ? full : credit;
	out->pages_cold = full - out->pages_hot;
	out->pages_zero = s->pages_total - full;
	while (step == SMV_CONVERGE_SEND) {
		double ms = pages * SMV_PAGE_SIZE / rate * 1000;

		sent += pages;
		out->rounds++;
		out->total_ms += ms;
		smv_converge_sent(c, (uint64_t)(pages * SMV_PAGE_SIZE), ms);
		throttle = 1 - c->throttle_percent / 100.0;
		pages = dirtied(s, ms) * throttle;
		step = smv_converge_next(c, (uint64_t)pages * SMV_PAGE_SIZE);
	}
	out->converges = step == SMV_CONVERGE_SWITCH_OVER;
	out->downtime_ms = smv_converge_expected_ms(c, (uint64_t)pages * SMV_PAGE_SIZE);
	out->total_ms += out->downtime_ms;
	sent += pages;
	/* What is written is what is touched: resends go mostly to where the hot pages are. */
	hot_share = full ? (double)out->pages_hot / (double)full : 0;
	if (s->pages_touched && s->pages_touched <= credit)
		hot_share = 1;
	out->bytes_to_main =
		(uint64_t)((double)out->pages_hot + hot_share * (sent - (double)full)) *
		SMV_PAGE_SIZE;
	out->bytes_to_sub_hosts = (uint64_t)(sent * SMV_PAGE_SIZE) - out->bytes_to_main;
}
