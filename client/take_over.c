/* SPDX-License-Identifier: Apache-2.0 */
/* Going on with the page map of a pager that died. */
#include "client/pager_internal.h"
#include "client/settle.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

static int broken(const struct smv_pager *p, uint64_t page, const char *why, struct smv_error *err)
{
	return smv_fail(err, SMV_DATA_LOSS, "page-map",
		"Nothing was changed, the VM waits as it is. If there is a good copy of its page "
		"map, put it in place: it is looked for every ten seconds; else end the VM.",
		"the page map of VM '%s' is broken: page %lu (word %016lx): %s", p->c.name, page,
		smv_pagemap_get(p->c.map, page), why);
}

/* Look at all words before any is changed, and take the slots that they name. */
static int check_words(struct smv_pager *p, struct smv_error *err)
{
	struct smv_pagemap *map = p->c.map;

	for (uint64_t page = 0; page < map->nr_pages; page++) {
		smv_page_word word = smv_pagemap_get(map, page);
		const char *why = smv_settle_check(word);
		int r = 0;

		if (!why && smv_word_state(word) != SMV_PAGE_UNKNOWN &&
			smv_word_slot(word) != SMV_SLOT_NONE)
			r = smv_slots_take(p->c.slots, smv_word_slot(word));
		if (why || r < 0)
			return broken(p, page,
				why            ? why
				: r == -EEXIST ? "its slot has another owner"
					       : "its slot does not exist",
				err);
	}
	return 0;
}

static void count(struct smv_taken_over *report, smv_page_word old, smv_page_word new, bool data)
{
	enum smv_page_state state = smv_word_state(old);

	report->fetching += state == SMV_PAGE_FETCHING;
	report->out += state == SMV_PAGE_OUT;
	report->saved += state == SMV_PAGE_SAVED;
	report->placed += state == SMV_PAGE_ZERO && data;
	report->lost += state != SMV_PAGE_LOST && smv_word_state(new) == SMV_PAGE_LOST;
}

/* Where the data of a saved page could not be punched out, the kernel has zeroed it instead
 * (client/evict.c). Nobody can have written to it since. What is fetched over such data is not
 * there before its word says LOCAL. */
static bool is_the_page(const struct smv_pager *p, uint64_t page, smv_page_word word)
{
	if (smv_fault_point("settle-trust-file"))
		return true;
	switch (smv_word_state(word)) {
	case SMV_PAGE_SAVED:
		return smv_word_slot(word) == SMV_SLOT_NONE ||
		       smv_pager_file_has(p, page, smv_word_checksum(word));
	case SMV_PAGE_FETCHING:
		return !(word & SMV_WORD_OVER_DATA);
	default:
		return true;
	}
}

static void settle_page(
	struct smv_pager *p, uint64_t page, bool data, struct smv_taken_over *report)
{
	smv_page_word old = smv_pagemap_get(p->c.map, page);
	smv_page_word new = smv_settle_word(old, data && is_the_page(p, page, old));

	/* Most of a large VM is not here. */
	if (new == old && !data && smv_word_state(old) != SMV_PAGE_LOCAL)
		return;
	count(report, old, new, data);
	if (data && smv_word_state(new) == SMV_PAGE_COLD)
		report->punched += smv_pager_punch(p, page, 1) == 0;
	if (smv_word_state(new) == SMV_PAGE_LOCAL) {
		atomic_fetch_add(&p->range_local[page / SMV_EXTENT_PAGES], 1);
		atomic_fetch_sub(&p->frames_free, 1);
	}
	if (new != old)
		smv_pagemap_set(p->c.map, page, new);
}

/* The end of the run of data or holes that begins at page @page of the block; *data says which. */
static int run_end(const struct smv_ram_block *b, uint64_t page, uint64_t *end, bool *data)
{
	off_t at = (off_t)(b->file_offset + page * SMV_PAGE_SIZE), next;

	*end = b->nr_pages;
	next = lseek(b->fd, at, SEEK_DATA);
	if (next < 0 && errno != ENXIO)
		return -errno;
	*data = next == at;
	if (*data)
		next = lseek(b->fd, at, SEEK_HOLE);
	if (*data && next < 0)
		return -errno;
	if (next >= 0 && (uint64_t)next < b->file_offset + b->size_bytes)
		*end = ((uint64_t)next - b->file_offset) / SMV_PAGE_SIZE;
	return 0;
}

static int settle_block(struct smv_pager *p, const struct smv_ram_block *b,
	struct smv_taken_over *report, struct smv_error *err)
{
	uint64_t page = 0, end;
	bool data = false;

	while (page < b->nr_pages) {
		if (run_end(b, page, &end, &data) < 0)
			return smv_fail(err, SMV_INTERNAL, "ram-file", NULL,
				"cannot see what the RAM file of block '%s' of VM '%s' holds: %s",
				b->id, p->c.name, strerror(errno));
		while (page < end)
			settle_page(p, b->first_page + page++, data, report);
	}
	return 0;
}

int smv_pager_take_over(struct smv_pager *p, struct smv_taken_over *report, struct smv_error *err)
{
	int r = check_words(p, err);

	memset(report, 0, sizeof(*report));
	memset(p->range_local, 0, p->nr_ranges * sizeof(*p->range_local));
	atomic_store(&p->frames_free, (int64_t)atomic_load(&p->budget_pages));
	atomic_store(&p->nr_inactive, 0);
	for (unsigned int i = 0; i < p->c.ram->nr_blocks && r == 0; i++)
		r = settle_block(p, &p->c.ram->blocks[i], report, err);
	if (r < 0)
		return r;
	smv_pagemap_upgrade(p->c.map);
	if (report->lost)
		smv_event(SMV_EVENT_PAGE_LOST, p->c.name, NULL,
			"VM '%s': %lu pages are LOST: nothing is in its RAM file where the page "
			"map says that they are; %s",
			p->c.name, report->lost, smv_loss_policy_effect(p->c.loss_policy));
	if (smv_pagemap_count(p->c.map, SMV_PAGE_LOST))
		smv_pager_tell_lost_page(p);
	p->taken_over = true;
	/* A value of the future is none of this boot. */
	p->unserved_since_ns = smv_pagemap_served(p->c.map);
	if (!p->unserved_since_ns || p->unserved_since_ns > smv_now_ns())
		p->unserved_since_ns = smv_now_ns();
	return 0;
}

void smv_pager_wake_all(struct smv_pager *p)
{
	for (unsigned int i = 0; i < p->c.ram->nr_blocks; i++) {
		const struct smv_ram_block *b = &p->c.ram->blocks[i];
		int r = smv_uffd_wake(p->c.uffd, b->host_addr, b->size_bytes);

		if (r < 0 && r != -ESRCH)
			smv_log_error("VM '%s': cannot wake the waiters of RAM block '%s': %s",
				p->c.name, b->id, strerror(-r));
	}
}
