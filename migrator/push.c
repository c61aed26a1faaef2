/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/push.h"

#include "client/hot_chunk.h"
#include "client/remote.h"
#include "client/slots.h"
#include "common/clock.h"
#include "common/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BATCH_PAGES 64u
#define NR_BATCHES 16u
#define DATA_TIMEOUT_MS 10000u
#define READ_BACK_COOKIE UINT64_MAX

/* Pages on their way to the sub-hosts: a piece of the staging buffer. */
struct batch {
	struct {
		uint64_t page;
		uint64_t slot;
		uint32_t checksum;
		bool send;
	} entries[BATCH_PAGES];
	unsigned int nr;
	unsigned int in_flight; /* requests */
};

struct smv_push {
	struct smv_source *source;
	struct smv_dest *dest;
	const struct smv_pageset *hot;
	smv_interrupted interrupted;
	struct smv_pagemap map;
	struct smv_slots slots;
	uint64_t hot_credit;
	struct smv_push_counts counts;
	uint64_t bandwidth, window_start_ns, window_bytes;
	int error; /* of a completed request; sticks */

	struct smv_remote *remote;
	struct batch batches[NR_BATCHES];
	struct batch *filling;
	unsigned int read_backs; /* under way */

	struct smv_domain *hot_domain;
	struct smv_region *hot_region;
	struct smv_conn *hot_conn;
	struct smv_hot_chunk *ring; /* as long as the pager's, chunk by chunk */
	bool chunk_busy[SMV_HOT_RING_CHUNKS];
	unsigned int nr_busy;
	int hot_filling;   /* index, -1: none */
	uint64_t acked_ns; /* when the pager was last heard of */
};

static size_t ring_bytes(void)
{
	return SMV_HOT_RING_CHUNKS * sizeof(struct smv_hot_chunk);
}

static int open_hot(struct smv_push *p, struct smv_error *err)
{
	const struct smv_dest *d = p->dest;
	struct smv_conn_options options = {
		.depth = 2 * SMV_HOT_RING_CHUNKS, .timeout_ms = DATA_TIMEOUT_MS};
	int r;

	p->ring = mmap(NULL, ring_bytes(), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p->ring == MAP_FAILED) {
		p->ring = NULL;
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	}
	if ((r = smv_domain_create(d->backing.transport, &p->hot_domain)) < 0 ||
		(r = smv_region_register(p->hot_domain, p->ring, ring_bytes(), 0, &p->hot_region)) <
			0)
		return smv_fail(err, smv_code_from_errno(r), "register", NULL,
			"cannot register the ring for hot pages: %s", strerror(-r));
	return smv_connect(p->hot_domain, &d->hot_addr, &d->hot_ticket, sizeof(d->hot_ticket),
		&options, &p->hot_conn, err);
}

int smv_push_open(struct smv_source *source, struct smv_dest *dest, const struct smv_pageset *hot,
	uint64_t bandwidth, smv_interrupted interrupted, struct smv_push **out,
	struct smv_error *err)
{
	struct smv_push *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	p->source = source;
	p->dest = dest;
	p->hot = hot;
	p->bandwidth = bandwidth;
	p->interrupted = interrupted;
	p->hot_credit = dest->hot_credit;
	p->hot_filling = -1;
	p->window_start_ns = smv_now_ns();
	r = smv_slots_create(dest->backing.nr_extents, &p->slots);
	if (r < 0)
		smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	if (r == 0)
		r = smv_pagemap_create(NULL, "source", source->ram.nr_pages, &p->map, err);
	if (r == 0)
		r = smv_remote_open(&dest->backing, SMV_ROLE_WRITER,
			NR_BATCHES * BATCH_PAGES * SMV_PAGE_SIZE, DATA_TIMEOUT_MS, &p->remote, err);
	if (r == 0)
		r = open_hot(p, err);
	if (r < 0) {
		smv_push_close(p);
		return r;
	}
	*out = p;
	return 0;
}

void smv_push_close(struct smv_push *p)
{
	if (!p)
		return;
	smv_remote_close(p->remote);
	if (p->hot_conn)
		smv_conn_close(p->hot_conn);
	if (p->hot_region)
		smv_region_deregister(p->hot_region);
	if (p->hot_domain)
		smv_domain_destroy(p->hot_domain);
	if (p->ring)
		munmap(p->ring, ring_bytes());
	smv_pagemap_destroy(&p->map);
	smv_slots_destroy(&p->slots);
	free(p);
}

static char *batch_data(const struct smv_push *p, const struct batch *b, unsigned int i)
{
	return (char *)smv_remote_staging(p->remote) +
	       ((size_t)(b - p->batches) * BATCH_PAGES + i) * SMV_PAGE_SIZE;
}

/* --- progress ----------------------------------------------------------------------------- */

static void collect_remote(struct smv_push *p)
{
	struct smv_remote_completion c[64];
	unsigned int n = smv_remote_poll(p->remote, c, 64);

	for (unsigned int i = 0; i < n; i++) {
		if (c[i].cookie == READ_BACK_COOKIE)
			p->read_backs--;
		else
			p->batches[c[i].cookie].in_flight--;
		if (c[i].status < 0 && !p->error)
			p->error = c[i].status;
	}
}

static void collect_hot(struct smv_push *p)
{
	struct smv_completion c[32];
	int n = smv_conn_poll(p->hot_conn, c, 32);
	uint32_t imm;

	for (int i = 0; i < n; i++)
		if (c[i].status < 0 && !p->error)
			p->error = c[i].status;
	while (smv_conn_next_notification(p->hot_conn, &imm)) {
		if (imm >= SMV_HOT_RING_CHUNKS || !p->chunk_busy[imm]) {
			p->error = p->error ? p->error : -EPROTO;
			continue;
		}
		p->chunk_busy[imm] = false;
		p->nr_busy--;
		p->acked_ns = smv_now_ns();
	}
	if (n < 0 && !p->error)
		p->error = -ECONNRESET;
	/* The write completes by its own deadline; that the pages are in place has this one. */
	if (p->nr_busy && !p->error && smv_now_ns() - p->acked_ns > DATA_TIMEOUT_MS * SMV_NS_PER_MS)
		p->error = -ETIMEDOUT;
}

static int failed(const struct smv_push *p, struct smv_error *err)
{
	return smv_fail(err, p->error == -EPROTO ? SMV_INTERNAL : SMV_UNAVAILABLE, "data-path",
		"See the logs of memserverd and smemv-pagerd.",
		p->error == -EPROTO ? "the main host refused hot pages%s"
				    : "a data connection to the main host or a sub-host failed: %s",
		p->error == -EPROTO ? "" : strerror(-p->error));
}

static int check(struct smv_push *p, struct smv_error *err)
{
	int r;

	if (p->error)
		return failed(p, err);
	r = p->interrupted(err);
	if (r < 0)
		return r;
	return smv_dest_keep_alive(p->dest, err);
}

/* Sleep until some request may have completed, then collect. */
static int make_progress(struct smv_push *p, struct smv_error *err)
{
	struct pollfd fds[SMV_SUB_HOSTS_MAX + 1];
	int timeout = 100, hot_timeout, n;

	n = smv_remote_pollfds(p->remote, fds, &timeout);
	if (n >= 0 && smv_conn_arm(p->hot_conn, &fds[n].events, &hot_timeout) == 0) {
		fds[n].fd = smv_conn_fd(p->hot_conn);
		fds[n].revents = 0;
		if (hot_timeout >= 0 && hot_timeout < timeout)
			timeout = hot_timeout;
		poll(fds, (nfds_t)n + 1, timeout);
	}
	collect_remote(p);
	collect_hot(p);
	return check(p, err);
}

static void throttle(struct smv_push *p, uint64_t bytes)
{
	uint64_t now, due_ns;

	if (!p->bandwidth)
		return;
	p->window_bytes += bytes;
	now = smv_now_ns();
	due_ns = p->window_start_ns +
		 (uint64_t)((double)p->window_bytes / (double)p->bandwidth * 1e9);
	if (due_ns > now)
		smv_sleep_ms((unsigned int)((due_ns - now) / SMV_NS_PER_MS));
	if (now > p->window_start_ns + SMV_NS_PER_S) {
		/* Unused bandwidth is not saved up for a burst. */
		p->window_start_ns = due_ns > now ? due_ns : now;
		p->window_bytes = 0;
	}
}

static int wait_all(struct smv_push *p, struct smv_error *err)
{
	int r = 0;

	collect_remote(p);
	collect_hot(p);
	while (r == 0 && (smv_remote_in_flight(p->remote) || p->nr_busy || p->read_backs))
		r = make_progress(p, err);
	return r == 0 && p->error ? failed(p, err) : r;
}

static void count_sent(struct smv_push *p, uint64_t page)
{
	enum smv_page_state before = smv_word_state(smv_pagemap_get(&p->map, page));

	p->counts.pages++;
	if (before == SMV_PAGE_COLD || before == SMV_PAGE_LOCAL)
		p->counts.resent++;
}

static int place(struct smv_push *p, uint64_t page, smv_page_word word, struct smv_error *err)
{
	smv_pagemap_place(&p->map, page, word);
	return smv_word_state(word) == SMV_PAGE_LOCAL ? 0
						      : smv_dest_report(p->dest, page, word, err);
}

/* --- cold pages --------------------------------------------------------------------------- */

static int get_batch(struct smv_push *p, struct smv_error *err)
{
	while (!p->filling) {
		int r;

		for (unsigned int i = 0; i < NR_BATCHES && !p->filling; i++)
			if (p->batches[i].in_flight == 0)
				p->filling = &p->batches[i];
		if (p->filling)
			p->filling->nr = 0;
		else if ((r = make_progress(p, err)) < 0)
			return r;
	}
	return 0;
}

/* New pages get slots one behind the other, as long as there are such. */
static int allocate_slots(struct smv_push *p, struct batch *b, struct smv_error *err)
{
	for (unsigned int i = 0; i < b->nr;) {
		unsigned int want = 0, got;
		uint64_t first;

		while (i + want < b->nr && b->entries[i + want].send &&
			b->entries[i + want].slot == SMV_SLOT_NONE)
			want++;
		if (!want) {
			i++;
			continue;
		}
		got = smv_slots_alloc(&p->slots, want, &first);
		if (!got)
			return smv_fail(err, SMV_NO_ROOM, "no-slots", NULL,
				"the leased room on the sub-hosts is full");
		for (unsigned int k = 0; k < got; k++)
			b->entries[i + k].slot = first + k;
		i += got;
	}
	return 0;
}

static int post_run(
	struct smv_push *p, struct batch *b, unsigned int i, unsigned int n, struct smv_error *err)
{
	int r;

	while ((r = smv_remote_post(p->remote, SMV_OP_WRITE, b->entries[i].slot, n,
			batch_data(p, b, i), (uint64_t)(b - p->batches))) == -EAGAIN)
		if ((r = make_progress(p, err)) < 0)
			return r;
	if (r < 0) {
		p->error = r;
		return failed(p, err);
	}
	b->in_flight++;
	p->counts.bytes_to_sub_hosts += n * SMV_PAGE_SIZE;
	return 0;
}

static int flush_cold(struct smv_push *p, struct smv_error *err)
{
	struct batch *b = p->filling;
	int r;

	if (!b)
		return 0;
	p->filling = NULL;
	if ((r = allocate_slots(p, b, err)) < 0)
		return r;
	for (unsigned int i = 0, n; i < b->nr; i += n) {
		n = 1;
		if (!b->entries[i].send)
			continue;
		while (i + n < b->nr && b->entries[i + n].send &&
			b->entries[i + n].slot == b->entries[i].slot + n &&
			b->entries[i + n].slot % SMV_EXTENT_PAGES)
			n++;
		if ((r = post_run(p, b, i, n, err)) < 0)
			return r;
		for (unsigned int k = i; k < i + n; k++) {
			count_sent(p, b->entries[k].page);
			if ((r = place(p, b->entries[k].page,
				     smv_word(SMV_PAGE_COLD, b->entries[k].slot,
					     b->entries[k].checksum),
				     err)) < 0)
				return r;
		}
		throttle(p, n * SMV_PAGE_SIZE);
	}
	collect_remote(p);
	return 0;
}

static int read_pages(
	const struct smv_push *p, uint64_t first, unsigned int nr, void *to, struct smv_error *err)
{
	const struct smv_ram_block *b = smv_guest_ram_block_of(&p->source->ram, first);
	size_t want = nr * SMV_PAGE_SIZE;
	ssize_t got = pread(
		b->fd, to, want, (off_t)(b->file_offset + (first - b->first_page) * SMV_PAGE_SIZE));

	if (got != (ssize_t)want)
		return smv_fail(err, SMV_INTERNAL, "ram-file", NULL,
			"cannot read %u pages from page %lu of the source's RAM: %s", nr, first,
			got < 0 ? strerror(errno) : "short read");
	return 0;
}

/* A page that was never sent and is zero needs no sending. */
static bool stays_zero(const struct smv_push *p, uint64_t page, const void *data)
{
	enum smv_page_state state = smv_word_state(smv_pagemap_get(&p->map, page));

	return (state == SMV_PAGE_UNKNOWN || state == SMV_PAGE_ZERO) && smv_page_is_zero(data);
}

static int declare_zero(struct smv_push *p, uint64_t page, struct smv_error *err)
{
	if (smv_word_state(smv_pagemap_get(&p->map, page)) == SMV_PAGE_ZERO)
		return 0;
	return place(p, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0), err);
}

static int push_cold(struct smv_push *p, uint64_t first, unsigned int nr, struct smv_error *err)
{
	while (nr) {
		unsigned int n;
		struct batch *b;
		int r = get_batch(p, err);

		if (r < 0)
			return r;
		b = p->filling;
		n = nr < BATCH_PAGES - b->nr ? nr : BATCH_PAGES - b->nr;
		if ((r = read_pages(p, first, n, batch_data(p, b, b->nr), err)) < 0)
			return r;
		for (unsigned int i = 0; i < n; i++, b->nr++) {
			const char *data = batch_data(p, b, b->nr);
			uint64_t page = first + i;

			b->entries[b->nr].page = page;
			b->entries[b->nr].send = !stays_zero(p, page, data);
			if (!b->entries[b->nr].send) {
				if ((r = declare_zero(p, page, err)) < 0)
					return r;
				continue;
			}
			b->entries[b->nr].checksum = smv_page_checksum(data);
			b->entries[b->nr].slot = smv_word_slot(smv_pagemap_get(&p->map, page));
			if (smv_word_state(smv_pagemap_get(&p->map, page)) != SMV_PAGE_COLD)
				b->entries[b->nr].slot = SMV_SLOT_NONE;
		}
		first += n;
		nr -= n;
		if (b->nr == BATCH_PAGES && (r = flush_cold(p, err)) < 0)
			return r;
	}
	return 0;
}

/* --- hot pages ---------------------------------------------------------------------------- */

static int get_chunk(struct smv_push *p, struct smv_error *err)
{
	while (p->hot_filling < 0) {
		int r;

		for (int i = 0; i < (int)SMV_HOT_RING_CHUNKS && p->hot_filling < 0; i++)
			if (!p->chunk_busy[i])
				p->hot_filling = i;
		if (p->hot_filling >= 0)
			p->ring[p->hot_filling].nr_pages = 0;
		else if ((r = make_progress(p, err)) < 0)
			return r;
	}
	return 0;
}

static int flush_hot(struct smv_push *p, struct smv_error *err)
{
	struct smv_hot_chunk *chunk;
	struct smv_request request;
	struct smv_sge sge;
	int i = p->hot_filling, r;

	if (i < 0)
		return 0;
	p->hot_filling = -1;
	chunk = &p->ring[i];
	if (chunk->nr_pages == 0)
		return 0;
	chunk->magic = SMV_HOT_MAGIC;
	sge = (struct smv_sge){chunk, SMV_PAGE_SIZE * (1 + chunk->nr_pages), p->hot_region};
	request = (struct smv_request){.op = SMV_OP_WRITE,
		.rkey = p->dest->hot_rkey,
		.remote_addr = p->dest->hot_ring_addr + (uint64_t)i * sizeof(*chunk),
		.sge = &sge,
		.nr_sge = 1};
	/* A chunk in use is a request and a notification: the depth suffices for all of them. */
	r = smv_conn_post(p->hot_conn, &request, 1);
	if (r == 1)
		r = smv_conn_notify(p->hot_conn, (uint32_t)i);
	if (r < 0) {
		p->error = r;
		return failed(p, err);
	}
	if (p->nr_busy++ == 0)
		p->acked_ns = smv_now_ns();
	p->chunk_busy[i] = true;
	p->counts.bytes_to_main += (uint64_t)chunk->nr_pages * SMV_PAGE_SIZE;
	throttle(p, (uint64_t)chunk->nr_pages * SMV_PAGE_SIZE);
	collect_hot(p);
	return 0;
}

static int push_hot(struct smv_push *p, uint64_t page, struct smv_error *err)
{
	bool first_time = smv_word_state(smv_pagemap_get(&p->map, page)) != SMV_PAGE_LOCAL;
	struct smv_hot_chunk *chunk;
	uint32_t at, checksum;
	int r = get_chunk(p, err);

	if (r < 0)
		return r;
	chunk = &p->ring[p->hot_filling];
	at = chunk->nr_pages;
	if ((r = read_pages(p, page, 1, chunk->data[at], err)) < 0)
		return r;
	if (stays_zero(p, page, chunk->data[at]))
		return declare_zero(p, page, err);
	checksum = smv_page_checksum(chunk->data[at]);
	chunk->entries[at].page = page;
	chunk->entries[at].checksum = checksum;
	chunk->nr_pages++;
	count_sent(p, page);
	if (first_time)
		p->hot_credit--;
	if ((r = place(p, page, smv_word(SMV_PAGE_LOCAL, SMV_SLOT_NONE, checksum), err)) < 0)
		return r;
	return chunk->nr_pages == SMV_HOT_CHUNK_PAGES ? flush_hot(p, err) : 0;
}

/* --- both --------------------------------------------------------------------------------- */

/* A page's class is fixed once it was sent. A page that appears only now was just written, so it is
 * hot as long as there is credit. */
static bool is_hot(const struct smv_push *p, uint64_t page)
{
	switch (smv_word_state(smv_pagemap_get(&p->map, page))) {
	case SMV_PAGE_LOCAL:
		return true;
	case SMV_PAGE_COLD:
		return false;
	case SMV_PAGE_ZERO:
		return p->hot_credit > 0;
	default:
		return p->hot_credit > 0 && smv_pageset_has(p->hot, page);
	}
}

static int push_run(struct smv_push *p, uint64_t first, uint64_t end, struct smv_error *err)
{
	while (first < end) {
		uint64_t n = 1;
		int r;

		if (is_hot(p, first)) {
			r = push_hot(p, first, err);
		} else {
			const struct smv_ram_block *b =
				smv_guest_ram_block_of(&p->source->ram, first);
			uint64_t stop = b->first_page + b->nr_pages;

			while (n < BATCH_PAGES && first + n < end && first + n < stop &&
				!is_hot(p, first + n))
				n++;
			r = push_cold(p, first, (unsigned int)n, err);
		}
		if (r < 0)
			return r;
		first += n;
	}
	return 0;
}

int smv_push_pages(struct smv_push *p, const struct smv_pageset *set,
	void (*progress)(void *ctx, uint64_t done), void *ctx, struct smv_error *err)
{
	uint64_t page = smv_pageset_next(set, 0), nr_done = 0;
	int r;

	while (page < set->nr_pages) {
		uint64_t end = page + 1;

		while (end < set->nr_pages && end - page < BATCH_PAGES && smv_pageset_has(set, end))
			end++;
		if ((r = push_run(p, page, end, err)) < 0 || (r = check(p, err)) < 0)
			return r;
		nr_done += end - page;
		if (progress)
			progress(ctx, nr_done);
		page = smv_pageset_next(set, end);
	}
	if ((r = flush_cold(p, err)) < 0 || (r = flush_hot(p, err)) < 0 || (r = wait_all(p, err)) < 0)
		return r;
	/* A page that is ZERO may be sent by the ring in the next round, which overtakes reports. */
	return smv_dest_flush(p->dest, err);
}

int smv_push_declare_zero(
	struct smv_push *p, const struct smv_pageset *populated, struct smv_error *err)
{
	for (uint64_t page = 0; page < p->map.nr_pages; page++) {
		int r;

		if (!smv_pageset_has(populated, page) && (r = declare_zero(p, page, err)) < 0)
			return r;
	}
	return 0;
}

int smv_push_drop_holes(
	struct smv_push *p, const struct smv_pageset *populated, struct smv_error *err)
{
	for (uint64_t page = 0; page < p->map.nr_pages; page++) {
		smv_page_word word = smv_pagemap_get(&p->map, page);
		int r;

		if (smv_pageset_has(populated, page) || smv_word_state(word) == SMV_PAGE_ZERO)
			continue;
		if (smv_word_state(word) == SMV_PAGE_COLD)
			smv_slots_free(&p->slots, smv_word_slot(word));
		if (smv_word_state(word) == SMV_PAGE_LOCAL)
			p->hot_credit++;
		if ((r = declare_zero(p, page, err)) < 0)
			return r;
	}
	return smv_dest_flush(p->dest, err);
}

int smv_push_read_back(struct smv_push *p, struct smv_error *err)
{
	const struct smv_backing *backing = &p->dest->backing;
	bool asked[SMV_SUB_HOSTS_MAX] = {false};

	for (uint64_t e = 0; e < backing->nr_extents; e++) {
		int r;

		if (asked[backing->extents[e].sub_host])
			continue;
		asked[backing->extents[e].sub_host] = true;
		/* All batches are idle: the staging buffer is free, a page for each sub-host. */
		r = smv_remote_post(p->remote, SMV_OP_READ, e * SMV_EXTENT_PAGES, 1,
			(char *)smv_remote_staging(p->remote) +
				backing->extents[e].sub_host * SMV_PAGE_SIZE,
			READ_BACK_COOKIE);
		if (r < 0) {
			p->error = r;
			return failed(p, err);
		}
		p->read_backs++;
	}
	return wait_all(p, err);
}

#ifdef SMEMV_FAULT_POINTS
void smv_push_late_write(struct smv_push *p)
{
	uint64_t n = 0;

	p->error = 0; /* the pager has closed the ring for hot pages */
	memset(smv_remote_staging(p->remote), 0x5a, SMV_PAGE_SIZE);
	for (uint64_t page = 0; page < p->map.nr_pages && !p->error; page++) {
		smv_page_word word = smv_pagemap_get(&p->map, page);
		int r;

		if (smv_word_state(word) != SMV_PAGE_COLD)
			continue;
		while ((r = smv_remote_post(p->remote, SMV_OP_WRITE, smv_word_slot(word), 1,
				smv_remote_staging(p->remote), 0)) == -EAGAIN &&
			!p->error) {
			collect_remote(p);
			smv_sleep_ms(1);
		}
		if (r < 0 && !p->error)
			p->error = r;
		n++;
	}
	while (smv_remote_in_flight(p->remote)) {
		collect_remote(p);
		smv_sleep_ms(1);
	}
	smv_log_warning("%lu late writes: %s", n, p->error ? strerror(-p->error) : "all done");
}
#endif

const struct smv_pagemap *smv_push_map(const struct smv_push *p)
{
	return &p->map;
}

void smv_push_counts(const struct smv_push *p, struct smv_push_counts *counts)
{
	*counts = p->counts;
}

uint64_t smv_push_bytes_to(const struct smv_push *p, unsigned int sub_host)
{
	return smv_remote_bytes_of(p->remote, sub_host).written;
}

uint64_t smv_push_extents_of(const struct smv_push *p, unsigned int sub_host)
{
	uint64_t n = 0;

	for (uint64_t e = 0; e < p->slots.nr_extents; e++)
		n += p->dest->backing.extents[e].sub_host == sub_host &&
		     p->slots.nr_free_of[e] < SMV_EXTENT_PAGES;
	return n;
}
