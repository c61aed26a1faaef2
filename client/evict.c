/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The evictor: keeps free frames between the watermarks, so that a fault does not wait for one.
 *
 * Sweep: the next range of 512 pages with LOCAL pages loses its page-table entries; what is not
 * touched again before its turn comes (a FIFO of ranges, about a tenth of the budget) is evicted.
 * The FIFO holds ranges, each at most once, so no entry can be stale, and this one thread both
 * sweeps and evicts, so a page is INACTIVE only when its zap is complete.
 *
 * Eviction: INACTIVE -> OUT under the page's lock; from then on the fault thread maps it for
 * nobody, and nobody has it mapped: its content is frozen. Read the dirty markers, write what is
 * dirty, wait for the acknowledgements, and then only punch the local copies out.
 *
 * A sub-host that lost its memory (client/loss.h) gets nothing more: its extents are closed, and
 * what a page has there counts as nothing.
 */
#include "client/pager_internal.h"

#include "client/uffd.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WRITE_RETRY_MS 100

/* One page of a batch. */
struct victim {
	uint64_t page;
	smv_page_word word; /* as it was when it was frozen */
	bool clean;         /* the remote copy is valid: nothing to write */
	bool zero;          /* the page is zeros: becomes ZERO, needs no slot */
	uint64_t slot;      /* where it goes; a clean page's own */
	bool fresh_slot;    /* allocated for this eviction */
	uint32_t checksum;
	bool kept; /* back to LOCAL */
};

struct evictor {
	struct smv_pager *p;
	uint64_t *fifo; /* ring of ranges */
	uint64_t fifo_head, fifo_len;
	bool *queued;          /* per range: is in the FIFO */
	uint64_t sweep_hand;   /* range */
	uint64_t victim_hand;  /* page offset in the FIFO's first range */
	uint64_t reclaim_hand; /* page */
	struct victim batch[SMV_EVICT_BATCH];
	unsigned int nr_batch;
	bool in_trouble;              /* told so */
	bool lost[SMV_SUB_HOSTS_MAX]; /* sub-hosts whose extents are closed */
};

static uint64_t range_first(uint64_t range)
{
	return range * SMV_EXTENT_PAGES;
}

static uint64_t range_end(const struct smv_pager *p, uint64_t range)
{
	uint64_t end = range_first(range + 1);

	return end < p->c.ram->nr_pages ? end : p->c.ram->nr_pages;
}

static bool change_activity(
	struct smv_pager *p, uint64_t page, enum smv_page_activity from, enum smv_page_activity to)
{
	smv_page_word word;
	bool fits;

	smv_pagemap_lock(p->c.map, page);
	word = smv_pagemap_get(p->c.map, page);
	fits = smv_word_state(word) == SMV_PAGE_LOCAL && smv_word_activity(word) == from;
	if (fits)
		smv_pagemap_set(p->c.map, page, smv_word_with_activity(word, to));
	smv_pagemap_unlock(p->c.map, page);
	return fits;
}

static int zap_range(struct smv_pager *p, uint64_t first, uint64_t end)
{
	int r = 0;

	while (first < end && r == 0) {
		const struct smv_ram_block *b = smv_guest_ram_block_of(p->c.ram, first);
		uint64_t stop =
			b->first_page + b->nr_pages < end ? b->first_page + b->nr_pages : end;

		if (!smv_fault_point("evict-skip-zap"))
			r = p->c.zap(p->c.zap_ctx, smv_page_at(p, first).addr,
				(stop - first) * SMV_PAGE_SIZE);
		first = stop;
	}
	return r;
}

/* Make one more range inactive. False: there is none that is not queued already. */
static bool sweep(struct evictor *e)
{
	struct smv_pager *p = e->p;

	for (uint64_t tried = 0; tried < p->nr_ranges; tried++) {
		uint64_t range = e->sweep_hand, end = range_end(p, range);
		int64_t marked = 0, inactive = 0;
		enum smv_page_activity to = SMV_PAGE_INACTIVE;

		e->sweep_hand = (range + 1) % p->nr_ranges;
		if (e->queued[range] || p->range_local[range] == 0)
			continue;
		for (uint64_t page = range_first(range); page < end; page++)
			marked += change_activity(p, page, SMV_PAGE_ACTIVE, SMV_PAGE_ZAPPING);
		if (!marked)
			continue;
		/* A page that may still be mapped is not inactive. */
		if (zap_range(p, range_first(range), end) < 0) {
			to = SMV_PAGE_ACTIVE;
			e->in_trouble = true;
			smv_pager_set_trouble(p, SMV_TROUBLE_EVICTION,
				"the VM's process does not give up pages: nothing can be evicted");
		}
		/* Counted before they can be counted down again. */
		atomic_fetch_add(&p->nr_inactive, marked);
		for (uint64_t page = range_first(range); page < end; page++)
			inactive += change_activity(p, page, SMV_PAGE_ZAPPING, to);
		if (to == SMV_PAGE_ACTIVE)
			inactive = 0;
		atomic_fetch_sub(&p->nr_inactive, marked - inactive);
		if (to == SMV_PAGE_ACTIVE)
			return false;
		if (!inactive)
			continue;
		e->fifo[(e->fifo_head + e->fifo_len++) % p->nr_ranges] = range;
		e->queued[range] = true;
		return true;
	}
	return false;
}

/* Freeze up to a batch of inactive pages of the oldest range. */
static void choose_victims(struct evictor *e)
{
	struct smv_pager *p = e->p;

	e->nr_batch = 0;
	while (e->nr_batch == 0 && e->fifo_len) {
		uint64_t range = e->fifo[e->fifo_head], end = range_end(p, range);
		uint64_t page = range_first(range) + e->victim_hand;

		for (; page < end && e->nr_batch < SMV_EVICT_BATCH; page++) {
			smv_page_word word;

			smv_pagemap_lock(p->c.map, page);
			word = smv_pagemap_get(p->c.map, page);
			if (smv_word_state(word) == SMV_PAGE_LOCAL &&
				smv_word_activity(word) == SMV_PAGE_INACTIVE) {
				word = smv_word_with_activity(word, SMV_PAGE_ACTIVE);
				smv_pagemap_set(
					p->c.map, page, smv_word_with_state(word, SMV_PAGE_OUT));
				e->batch[e->nr_batch++] =
					(struct victim){.page = page, .word = word};
			}
			smv_pagemap_unlock(p->c.map, page);
		}
		e->victim_hand = page - range_first(range);
		if (page == end) {
			e->queued[range] = false;
			e->fifo_head = (e->fifo_head + 1) % p->nr_ranges;
			e->fifo_len--;
			e->victim_hand = 0;
		}
	}
	atomic_fetch_sub(&p->nr_inactive, e->nr_batch);
}

/* Slots that LOCAL pages keep for the sake of clean evictions are given up first. */
static bool reclaim_slots(struct evictor *e)
{
	struct smv_pagemap *map = e->p->c.map;
	unsigned int freed = 0;

	for (uint64_t i = 0; i < map->nr_pages && freed < SMV_EXTENT_PAGES; i++) {
		uint64_t page = e->reclaim_hand;
		smv_page_word word;

		/* A range of a large VM mostly has none that is here. */
		if (e->p->range_local[page / SMV_EXTENT_PAGES] == 0) {
			page = range_end(e->p, page / SMV_EXTENT_PAGES);
			i += page - e->reclaim_hand - 1;
			e->reclaim_hand = page % map->nr_pages;
			continue;
		}
		e->reclaim_hand = (page + 1) % map->nr_pages;
		if (smv_word_state(smv_pagemap_get(map, page)) != SMV_PAGE_LOCAL)
			continue;
		smv_pagemap_lock(map, page);
		word = smv_pagemap_get(map, page);
		if (smv_word_state(word) == SMV_PAGE_LOCAL &&
			smv_word_slot(word) != SMV_SLOT_NONE &&
			!smv_slots_is_closed(e->p->c.slots, smv_word_slot(word))) {
			smv_slots_free(e->p->c.slots, smv_word_slot(word));
			smv_pagemap_set(map, page,
				smv_word_with_slot(word & ~SMV_WORD_REMOTE_VALID, SMV_SLOT_NONE));
			freed++;
		}
		smv_pagemap_unlock(map, page);
	}
	return freed > 0;
}

/* Its sub-host lost what is in it. The fault thread may note a waiter meanwhile. */
static void give_up_slot(struct evictor *e, struct victim *v)
{
	struct smv_pagemap *map = e->p->c.map;
	uint64_t slot = smv_word_slot(v->word);
	smv_page_word now;

	v->word = smv_word_with_slot(v->word & ~SMV_WORD_REMOTE_VALID, SMV_SLOT_NONE);
	smv_pagemap_lock(map, v->page);
	now = smv_pagemap_get(map, v->page);
	smv_pagemap_set(
		map, v->page, smv_word_with_slot(now & ~SMV_WORD_REMOTE_VALID, SMV_SLOT_NONE));
	smv_pagemap_unlock(map, v->page);
	smv_slots_free(e->p->c.slots, slot);
}

static bool slot_is_lost(const struct evictor *e, const struct victim *v)
{
	uint64_t slot = smv_word_slot(v->word);

	return slot != SMV_SLOT_NONE && smv_slots_is_closed(e->p->c.slots, slot) &&
	       !smv_fault_point("evict-keep-lost-slot");
}

/* Which victims need a write. Their PTEs are gone and cannot come back while they are OUT, so the
 * markers stand still. */
static void find_dirty(struct evictor *e)
{
	struct smv_pager *p = e->p;
	uint64_t first = e->batch[0].page, n = e->batch[e->nr_batch - 1].page - first + 1;
	uint64_t ptes[SMV_EXTENT_PAGES];
	bool known;

	/* A batch lies in one range, which may span two RAM blocks only at their border. */
	known = smv_guest_ram_block_of(p->c.ram, first) ==
			smv_guest_ram_block_of(p->c.ram, first + n - 1) &&
		smv_pagemap_read(p->c.pagemap_fd, smv_page_at(p, first).addr, ptes, n) == 0;
	for (unsigned int i = 0; i < e->nr_batch; i++) {
		struct victim *v = &e->batch[i];

		if (slot_is_lost(e, v))
			give_up_slot(e, v);
		v->slot = smv_word_slot(v->word);
		v->checksum = smv_word_checksum(v->word);
		v->clean = known && (v->word & SMV_WORD_REMOTE_VALID) &&
			   (ptes[v->page - first] & SMV_PAGEMAP_UFFD_WP);
		v->zero = v->clean && v->slot == SMV_SLOT_NONE;
	}
}

static char *staging_of(const struct evictor *e, unsigned int i)
{
	return (char *)smv_remote_staging(e->p->evict_remote) + i * SMV_PAGE_SIZE;
}

/* Read the dirty victims' contents from the RAM file: reading through a mapping would leave PTEs
 * that the punch had to flush. */
static int read_dirty(struct evictor *e)
{
	for (unsigned int i = 0; i < e->nr_batch; i++) {
		struct victim *v = &e->batch[i];
		struct smv_page_at at = smv_page_at(e->p, v->page);

		if (v->clean)
			continue;
		if (pread(at.fd, staging_of(e, i), SMV_PAGE_SIZE, at.offset) != SMV_PAGE_SIZE)
			return -EIO;
		v->zero = smv_page_is_zero(staging_of(e, i));
		v->checksum = smv_page_checksum(staging_of(e, i));
	}
	return 0;
}

static bool needs_write(const struct victim *v)
{
	return !v->clean && !v->zero;
}

static int allocate_slots(struct evictor *e)
{
	unsigned int i = 0;

	while (i < e->nr_batch) {
		unsigned int want = 0, got;
		uint64_t first;

		/* Neighbours in the batch get neighbouring slots. */
		while (i + want < e->nr_batch && needs_write(&e->batch[i + want]) &&
			e->batch[i + want].slot == SMV_SLOT_NONE)
			want++;
		if (!want) {
			i++;
			continue;
		}
		got = smv_slots_alloc(e->p->c.slots, want, &first);
		if (!got && !reclaim_slots(e))
			return -ENOSPC;
		for (unsigned int k = 0; k < got; k++) {
			e->batch[i + k].slot = first + k;
			e->batch[i + k].fresh_slot = true;
		}
		i += got;
	}
	return 0;
}

static void wait_remote(struct smv_remote *remote)
{
	struct pollfd fds[SMV_SUB_HOSTS_MAX];
	int timeout = 1000, n = smv_remote_pollfds(remote, fds, &timeout);

	if (n >= 0)
		poll(fds, (nfds_t)n, timeout);
}

/* Collect completions until @left requests have answered; the first error stays. */
static int collect(struct evictor *e, unsigned int left, int status)
{
	while (left) {
		struct smv_remote_completion c[SMV_EVICT_BATCH];
		unsigned int n = smv_remote_poll(e->p->evict_remote, c, SMV_EVICT_BATCH);

		for (unsigned int i = 0; i < n; i++)
			if (c[i].status < 0 && status == 0)
				status = c[i].status;
		left -= n;
		if (!n)
			wait_remote(e->p->evict_remote);
	}
	return status;
}

/* Write the dirty victims and wait until the sub-hosts have acknowledged all of them. */
static int write_dirty(struct evictor *e)
{
	unsigned int i = 0, posted = 0;
	int r = 0;

	while (i < e->nr_batch && r == 0) {
		const struct victim *v = &e->batch[i];
		unsigned int n = 1;

		if (!needs_write(v)) {
			i++;
			continue;
		}
		while (i + n < e->nr_batch && needs_write(&v[n]) && v[n].slot == v->slot + n &&
			(v->slot + n) % SMV_EXTENT_PAGES != 0)
			n++;
		/* The connection is deeper than a batch: it cannot be full. */
		r = smv_remote_post(
			e->p->evict_remote, SMV_OP_WRITE, v->slot, n, staging_of(e, i), i);
		if (r == 0) {
			posted++;
			i += n;
		}
	}
	return collect(e, posted, r);
}

/* A victim goes back to LOCAL, with what waits for it. The caller holds its lock. */
static void keep(struct evictor *e, struct victim *v)
{
	struct smv_pager *p = e->p;
	smv_page_word now = smv_pagemap_get(p->c.map, v->page);
	uint64_t addr = smv_page_at(p, v->page).addr;
	/* Without the marker the page counts as dirty; what was valid before may be overwritten. */
	smv_page_word word = needs_write(v) ? v->word & ~SMV_WORD_REMOTE_VALID : v->word;

	if (v->fresh_slot)
		smv_slots_free(p->c.slots, v->slot);
	/* Before it is mapped: nobody writes to a page that a word calls SAVED. */
	smv_pagemap_set(p->c.map, v->page, word);
	/* Whatever keeps it from being mapped, its threads fault again and say so. */
	if ((now & SMV_WORD_WAITER) && smv_uffd_continue(p->c.uffd, addr, SMV_PAGE_SIZE, false) < 0)
		smv_uffd_wake(p->c.uffd, addr, SMV_PAGE_SIZE);
	v->kept = true;
}

static void lock_and_keep(struct evictor *e, struct victim *v)
{
	smv_pagemap_lock(e->p->c.map, v->page);
	keep(e, v);
	smv_pagemap_unlock(e->p->c.map, v->page);
}

static void keep_all(struct evictor *e)
{
	for (unsigned int i = 0; i < e->nr_batch; i++)
		lock_and_keep(e, &e->batch[i]);
}

/* The remote copies are there: OUT -> SAVED, unless somebody came meanwhile. The word names where
 * the copy is, because who takes over from a pager that died here has nothing else to go by. */
static void settle(struct evictor *e)
{
	for (unsigned int i = 0; i < e->nr_batch; i++) {
		struct victim *v = &e->batch[i];
		smv_page_word word;

		smv_pagemap_lock(e->p->c.map, v->page);
		word = smv_pagemap_get(e->p->c.map, v->page);
		if (word & SMV_WORD_WAITER) {
			keep(e, v);
			smv_count(&e->p->evictions_aborted, 1);
		} else {
			word = v->zero ? smv_word(SMV_PAGE_SAVED, SMV_SLOT_NONE, 0)
				       : smv_word(SMV_PAGE_SAVED, v->slot, v->checksum);
			smv_pagemap_set(e->p->c.map, v->page, word | SMV_WORD_REMOTE_VALID);
		}
		smv_pagemap_unlock(e->p->c.map, v->page);
	}
}

bool smv_pager_has_data(const struct smv_pager *p, uint64_t page)
{
	struct smv_page_at at = smv_page_at(p, page);

	return lseek(at.fd, at.offset, SEEK_DATA) == at.offset;
}

bool smv_pager_file_has(const struct smv_pager *p, uint64_t page, uint32_t checksum)
{
	uint64_t data[SMV_PAGE_SIZE / sizeof(uint64_t)];
	struct smv_page_at at = smv_page_at(p, page);

	return pread(at.fd, data, sizeof(data), at.offset) == sizeof(data) &&
	       !smv_page_is_zero(data) && smv_page_checksum(data) == checksum;
}

/* Note it, and tell so once. */
static void tell_huge(struct smv_pager *p)
{
	atomic_store(&p->has_huge, true);
	if (!atomic_exchange(&p->told_huge, true))
		smv_log_warning(
			"VM '%s': its RAM files have huge pages, of which single pages cannot "
			"always be given up. Write 'never' to "
			"/sys/kernel/mm/transparent_hugepage/shmem_enabled, and mount their "
			"tmpfs without huge=",
			p->c.name);
}

int smv_pager_punch(struct smv_pager *p, uint64_t page, uint64_t nr_pages)
{
	struct smv_page_at at = smv_page_at(p, page);
	off_t len = (off_t)(nr_pages * SMV_PAGE_SIZE), data;
	int r;

	if (fallocate(at.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at.offset, len) < 0) {
		r = -errno;
		atomic_store(&p->has_huge, true);
		smv_log_error("VM '%s': cannot punch %lu pages at %lu out of the RAM file: %s",
			p->c.name, nr_pages, page, strerror(-r));
		return r;
	}
	data = lseek(at.fd, at.offset, SEEK_DATA);
	if (data >= at.offset + len || (data < 0 && errno == ENXIO))
		return 0;
	tell_huge(p);
	return 1;
}

/* SAVED -> COLD or ZERO. */
static void finish(struct evictor *e, struct victim *v)
{
	struct smv_pager *p = e->p;
	smv_page_word word;
	bool waiter;

	smv_pagemap_lock(p->c.map, v->page);
	waiter = smv_pagemap_get(p->c.map, v->page) & SMV_WORD_WAITER;
	word = v->zero ? smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0)
		       : smv_word(SMV_PAGE_COLD, v->slot, v->checksum);
	smv_pagemap_set(p->c.map, v->page, word);
	smv_pagemap_unlock(p->c.map, v->page);
	if (v->zero && smv_word_slot(v->word) != SMV_SLOT_NONE)
		smv_slots_free(p->c.slots, smv_word_slot(v->word));
	if (waiter)
		smv_uffd_wake(p->c.uffd, smv_page_at(p, v->page).addr, SMV_PAGE_SIZE);
	atomic_fetch_sub(&p->range_local[v->page / SMV_EXTENT_PAGES], 1);
	smv_count(&p->evictions, 1);
	if (v->clean)
		smv_count(&p->evictions_clean, 1);
}

/* Give up the local copies, run by run. How many that were. What cannot be punched out is given up
 * as well: the remote copy is right, and what is left in the file is not the page any more. Its
 * memory is in use until the page is fetched and given up again, or discarded. */
static int punch_and_finish(struct evictor *e)
{
	struct smv_pager *p = e->p;
	int freed = 0;

	for (unsigned int i = 0, n; i < e->nr_batch; i += n) {
		struct victim *v = &e->batch[i];
		bool zeroed;

		n = 1;
		if (v->kept)
			continue;
		while (i + n < e->nr_batch && !v[n].kept && v[n].page == v->page + n &&
			smv_guest_ram_block_of(p->c.ram, v[n].page) ==
				smv_guest_ram_block_of(p->c.ram, v->page))
			n++;
		zeroed = smv_pager_punch(p, v->page, n) > 0;
		for (unsigned int k = 0; k < n; k++) {
			if (zeroed && smv_fault_point("evict-keep-zeroed")) {
				lock_and_keep(e, &v[k]);
				continue;
			}
			finish(e, &v[k]);
			freed++;
		}
	}
	atomic_fetch_add(&p->frames_free, freed);
	if (freed)
		smv_kick(p->kick_fault);
	return freed;
}

/* The number of frames that it has freed, or -errno. */
static int evict_batch(struct evictor *e)
{
	int r;

	find_dirty(e);
	if ((r = read_dirty(e)) == 0 && (r = allocate_slots(e)) == 0)
		r = write_dirty(e);
	if (r < 0) {
		keep_all(e);
		return r;
	}
	(void)smv_fault_point("evict-written");
	settle(e);
	return punch_and_finish(e);
}

static void complain(struct evictor *e, int r)
{
	enum smv_trouble kind = r == -ENOSPC ? SMV_TROUBLE_ROOM : SMV_TROUBLE_EVICTION;
	struct smv_error why = {0};
	char text[200];

	if (r == -ENOSPC)
		snprintf(text, sizeof(text), "no slot is free on the sub-hosts%s",
			memchr(e->lost, true, sizeof(e->lost)) ? " that have their memory" : "");
	else if (smv_remote_mend(e->p->evict_remote, &why))
		snprintf(text, sizeof(text), "%.190s", why.message);
	else
		return;
	smv_pager_set_trouble(e->p, kind, text);
	e->in_trouble = true;
}

/* Look before a page is given up for the sake of a copy: to evict clean pages needs no connection,
 * so it would not tell that one has died. */
static void heed_losses(struct evictor *e)
{
	struct smv_pager *p = e->p;
	struct smv_remote_completion none;
	bool changed = false;

	smv_remote_poll(p->evict_remote, &none, 1);
	smv_remote_mend(p->evict_remote, NULL);
	smv_pager_note_losses(p, p->evict_remote, SMV_EVICTOR);
	for (unsigned int h = 0; h < p->c.backing->nr_sub_hosts; h++) {
		bool lost = smv_pager_has_lost(p, h);

		changed |= lost != e->lost[h];
		e->lost[h] = lost;
	}
	if (!changed)
		return;
	for (uint64_t x = 0; x < p->c.backing->nr_extents; x++)
		smv_slots_close(p->c.slots, x, e->lost[p->c.backing->extents[x].sub_host]);
	smv_pager_tell_losses(p);
}

/* Bring the free frames up to the high watermark. */
static void make_room(struct evictor *e)
{
	struct smv_pager *p = e->p;

	while (!atomic_load(&p->stop) && atomic_load(&p->frames_free) < p->frames_high) {
		int64_t want_inactive = (int64_t)atomic_load(&p->budget_pages) / 10;
		int r;

		heed_losses(e);
		while (atomic_load(&p->nr_inactive) < want_inactive && sweep(e))
			;
		choose_victims(e);
		if (e->nr_batch == 0) {
			/* Everything inactive was touched again: start over a little later. */
			smv_sleep_ms(e->in_trouble ? WRITE_RETRY_MS : 1);
			return;
		}
		r = evict_batch(e);
		if (r < 0) {
			complain(e, r);
			smv_sleep_ms(WRITE_RETRY_MS);
			continue;
		}
		/* All of them were touched again. */
		if (r == 0)
			smv_sleep_ms(1);
		if (e->in_trouble) {
			e->in_trouble = false;
			smv_pager_set_trouble(p, SMV_TROUBLE_EVICTION, "");
			smv_pager_set_trouble(p, SMV_TROUBLE_ROOM, "");
		}
	}
}

static void sleep_until_low(struct evictor *e)
{
	struct smv_pager *p = e->p;
	struct pollfd fd = {.fd = p->kick_evictor, .events = POLLIN};

	atomic_store(&p->evictor_idle, true);
	if (atomic_load(&p->frames_free) >= p->frames_low && !atomic_load(&p->stop))
		poll(&fd, 1, 1000);
	atomic_store(&p->evictor_idle, false);
	smv_drain(p->kick_evictor);
}

void *smv_evict_thread(void *arg)
{
	struct evictor e = {.p = arg};
	struct smv_pager *p = arg;

	e.fifo = calloc(p->nr_ranges, sizeof(*e.fifo));
	e.queued = calloc(p->nr_ranges, sizeof(*e.queued));
	if (!e.fifo || !e.queued)
		smv_pager_set_trouble(p, SMV_TROUBLE_EVICTION, "out of memory: nothing is evicted");
	while (e.fifo && e.queued && !atomic_load(&p->stop)) {
		sleep_until_low(&e);
		heed_losses(&e);
		if (atomic_load(&p->frames_free) < p->frames_low)
			make_room(&e);
	}
	free(e.fifo);
	free(e.queued);
	return NULL;
}
