/* SPDX-License-Identifier: Apache-2.0 */
#include "client/hot_chunk.h"
#include "client/slots.h"
#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "migrator/hotness.h"
#include "migrator/push.h"
#include "migrator/report.h"
#include "migrator/tracker.h"
#include "smemv/v1/pager.pb-c.h"
#include "vm_stub.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- page sets ---------------------------------------------------------------------------- */

Test(pageset, iteration_meets_every_page_once_and_in_order)
{
	const uint64_t sizes[] = {1, 63, 64, 65, 128, 1000};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(sizes); i++) {
		uint64_t n = sizes[i], nr = 0, last = 0;
		struct smv_pageset set;

		cr_assert_eq(smv_pageset_create(n, &set), 0);
		cr_assert_eq(smv_pageset_next(&set, 0), n, "an empty set has a page");
		/* The first, the last, and the borders of words. */
		for (uint64_t p = 0; p < n; p++)
			if (p == 0 || p == n - 1 || p % 64 == 63 || p % 64 == 0 || p % 97 == 5) {
				smv_pageset_add(&set, p);
				nr++;
			}
		cr_assert_eq(smv_pageset_count(&set), nr);
		for (uint64_t p = smv_pageset_next(&set, 0); p < n;
			p = smv_pageset_next(&set, p + 1)) {
			cr_assert(smv_pageset_has(&set, p));
			cr_assert(p == 0 || p > last);
			last = p;
			nr--;
		}
		cr_assert_eq(nr, 0);
		cr_assert_eq(smv_pageset_next(&set, n), n);
		cr_assert_eq(smv_pageset_next(&set, n + 1000), n);
		smv_pageset_clear(&set);
		cr_assert_eq(smv_pageset_count(&set), 0);
		smv_pageset_destroy(&set);
	}
}

/* --- hotness ------------------------------------------------------------------------------ */

enum { HOT_PAGES = 1000 };

struct choice {
	uint8_t touches[HOT_PAGES];
	struct smv_pageset populated, hot;
};

static void choice_create(struct choice *c)
{
	memset(c->touches, 0, sizeof(c->touches));
	cr_assert_eq(smv_pageset_create(HOT_PAGES, &c->populated), 0);
	cr_assert_eq(smv_pageset_create(HOT_PAGES, &c->hot), 0);
}

static void choice_destroy(struct choice *c)
{
	smv_pageset_destroy(&c->populated);
	smv_pageset_destroy(&c->hot);
}

Test(hotness, the_most_touched_pages_are_chosen)
{
	struct choice c;

	choice_create(&c);
	for (uint64_t p = 0; p < HOT_PAGES; p++) {
		smv_pageset_add(&c.populated, p);
		c.touches[p] = (uint8_t)(p * 7 % 6); /* 0..5, about 167 pages of each */
	}
	smv_hotness_choose(c.touches, &c.populated, 250, &c.hot);
	cr_assert_eq(smv_pageset_count(&c.hot), 250);
	for (uint64_t p = 0; p < HOT_PAGES; p++) {
		cr_assert(c.touches[p] < 5 || smv_pageset_has(&c.hot, p), "page %lu", p);
		cr_assert(c.touches[p] >= 4 || !smv_pageset_has(&c.hot, p), "page %lu", p);
	}
	choice_destroy(&c);
}

Test(hotness, room_that_is_left_takes_pages_that_were_not_touched)
{
	struct choice c;

	choice_create(&c);
	for (uint64_t p = 0; p < 100; p++)
		smv_pageset_add(&c.populated, p * 10);
	c.touches[500] = 1;
	/* Touched, but there is no data to send: read as zeros. */
	c.touches[501] = 5;
	smv_hotness_choose(c.touches, &c.populated, 40, &c.hot);
	cr_assert_eq(smv_pageset_count(&c.hot), 40);
	cr_assert(smv_pageset_has(&c.hot, 500));
	for (uint64_t p = 0; p < HOT_PAGES; p++)
		cr_assert(!smv_pageset_has(&c.hot, p) || smv_pageset_has(&c.populated, p));
	choice_destroy(&c);
}

Test(hotness, the_credit_bounds_the_choice)
{
	struct choice c;

	choice_create(&c);
	for (uint64_t p = 0; p < 10; p++)
		smv_pageset_add(&c.populated, p);
	smv_hotness_choose(c.touches, &c.populated, 0, &c.hot);
	cr_assert_eq(smv_pageset_count(&c.hot), 0);
	smv_hotness_choose(c.touches, &c.populated, 1000, &c.hot);
	cr_assert_eq(smv_pageset_count(&c.hot), 10);
	choice_destroy(&c);
}

/* --- tracker ------------------------------------------------------------------------------ */

enum { RAM_PAGES = 3000 };

struct track {
	struct stub_vm vm;
	struct smv_source source;
	struct smv_pageset set;
};

/* Two RAM blocks, pages 0, 2, 4... of the first 1000 and all from 2000 on hold data. */
static bool has_data(uint64_t page)
{
	return page < 1000 ? page % 2 == 0 : page >= 2000;
}

static void track_create(struct track *t)
{
	struct smv_error err = {0};

	if (smv_kernel_check(&err) < 0)
		cr_skip_test("%s", err.message);
	memset(t, 0, sizeof(*t));
	stub_vm_create(&t->vm, 2, RAM_PAGES, SMV_UFFD_TRACK, UFFDIO_REGISTER_MODE_WP);
	t->source = (struct smv_source){
		.ram = t->vm.ram, .uffd = t->vm.uffd, .pagemap_fd = t->vm.pagemap_fd};
	cr_assert_eq(smv_pageset_create(RAM_PAGES, &t->set), 0);
	for (uint64_t p = 0; p < RAM_PAGES; p++)
		if (has_data(p))
			*stub_vm_page(&t->vm, p) = 1;
}

static void track_destroy(struct track *t)
{
	smv_pageset_destroy(&t->set);
	stub_vm_destroy(&t->vm);
}

static void collect(struct track *t)
{
	struct smv_error err = {0};

	smv_pageset_clear(&t->set);
	cr_assert_eq(smv_tracker_collect(&t->source, &t->set, &err), 0, "%s", err.message);
}

static void arm(struct track *t)
{
	struct smv_error err = {0};

	cr_assert_eq(smv_tracker_arm(&t->source, &err), 0, "%s", err.message);
}

static void expect_exactly(const struct track *t, const uint64_t *pages, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		cr_assert(smv_pageset_has(&t->set, pages[i]), "page %lu is missing", pages[i]);
	cr_assert_eq(smv_pageset_count(&t->set), nr);
}

Test(tracker, exactly_what_was_written_is_collected_and_only_once)
{
	/* The ends of both blocks (their border is at 1600), neighbours, holes and data. */
	static const uint64_t written[] = {0, 1, 2, 998, 1599, 1600, 1601, 2500, 2501, 2999};
	static const uint64_t again[] = {2, 1700, 2999};
	struct track t;

	track_create(&t);
	arm(&t);
	collect(&t);
	expect_exactly(&t, NULL, 0);
	/* Reading is not writing, of a hole neither. */
	for (uint64_t p = 0; p < RAM_PAGES; p += 3)
		(void)*(volatile unsigned char *)stub_vm_page(&t.vm, p);
	collect(&t);
	expect_exactly(&t, NULL, 0);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(written); i++)
		stub_vm_page(&t.vm, written[i])[4095] = 2;
	collect(&t);
	expect_exactly(&t, written, SMV_ARRAY_SIZE(written));
	collect(&t);
	expect_exactly(&t, NULL, 0);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(again); i++)
		stub_vm_page(&t.vm, again[i])[0] = 3;
	collect(&t);
	expect_exactly(&t, again, SMV_ARRAY_SIZE(again));
	for (size_t i = 0; i < SMV_ARRAY_SIZE(written); i++)
		cr_assert_eq(stub_vm_page(&t.vm, written[i])[4095], 2);
	track_destroy(&t);
}

Test(tracker, a_page_that_was_written_and_then_unmapped_is_collected)
{
	static const uint64_t written[] = {1001, 2345}; /* a hole, data */
	struct track t;

	track_create(&t);
	arm(&t);
	for (size_t i = 0; i < 2; i++) {
		*stub_vm_page(&t.vm, written[i]) = 7;
		cr_assert_eq(stub_vm_zap(NULL, (uint64_t)(uintptr_t)stub_vm_page(&t.vm, written[i]),
				     4096),
			0);
	}
	collect(&t);
	expect_exactly(&t, written, 2);
	track_destroy(&t);
}

/* More separate ranges than one scan returns. */
Test(tracker, many_ranges_are_collected_in_several_scans)
{
	struct track t;

	track_create(&t);
	arm(&t);
	for (uint64_t p = 0; p < RAM_PAGES; p += 2)
		*stub_vm_page(&t.vm, p) = 9;
	collect(&t);
	cr_assert_eq(smv_pageset_count(&t.set), RAM_PAGES / 2);
	for (uint64_t p = 0; p < RAM_PAGES; p++)
		cr_assert_eq(smv_pageset_has(&t.set, p), p % 2 == 0);
	collect(&t);
	expect_exactly(&t, NULL, 0);
	track_destroy(&t);
}

static _Atomic bool stop_writing;

/* Counts in the first word of its pages, one after the other. */
static void *keep_writing(void *arg)
{
	struct track *t = arg;

	while (!stop_writing)
		for (uint64_t p = 0; p < RAM_PAGES; p += 5)
			++*(volatile uint64_t *)stub_vm_page(&t->vm, p);
	return NULL;
}

/* What rounds of collecting and then reading copy is in the end what the memory holds. */
Test(tracker, no_write_is_missed_while_the_vm_runs)
{
	static uint64_t copy[RAM_PAGES];
	struct smv_error err = {0};
	pthread_t thread;
	struct track t;

	track_create(&t);
	arm(&t);
	cr_assert_eq(smv_tracker_populated(&t.source, &t.set, &err), 0);
	cr_assert_eq(pthread_create(&thread, NULL, keep_writing, &t), 0);
	for (int round = 0; round < 300; round++) {
		for (uint64_t p = smv_pageset_next(&t.set, 0); p < RAM_PAGES;
			p = smv_pageset_next(&t.set, p + 1)) {
			const struct smv_ram_block *b = smv_guest_ram_block_of(&t.vm.ram, p);

			cr_assert_eq(pread(b->fd, &copy[p], 8,
					     (off_t)(b->file_offset +
						     (p - b->first_page) * SMV_PAGE_SIZE)),
				8);
		}
		if (round == 298) {
			stop_writing = true;
			pthread_join(thread, NULL);
		}
		collect(&t);
	}
	cr_assert_eq(smv_pageset_count(&t.set), 0);
	for (uint64_t p = 0; p < RAM_PAGES; p++)
		cr_assert_eq(copy[p], *(uint64_t *)stub_vm_page(&t.vm, p), "page %lu", p);
	track_destroy(&t);
}

Test(tracker, touched_pages_are_counted_up_to_255)
{
	static uint8_t touches[RAM_PAGES];
	struct smv_error err = {0};
	struct track t;

	track_create(&t);
	for (unsigned int i = 0; i < t.vm.ram.nr_blocks; i++)
		cr_assert_eq(stub_vm_zap(NULL, t.vm.ram.blocks[i].host_addr,
				     t.vm.ram.blocks[i].size_bytes),
			0);
	/* Registered for write-protection, the file's pages are mapped one by one. */
	for (uint64_t p = 2000; p < RAM_PAGES; p += 20)
		(void)*(volatile unsigned char *)stub_vm_page(&t.vm, p);
	touches[2020] = 254;
	for (int i = 0; i < 2; i++)
		cr_assert_eq(smv_tracker_present(&t.source, touches, &err), 0, "%s", err.message);
	for (uint64_t p = 0; p < RAM_PAGES; p++)
		cr_assert_eq(touches[p],
			p < 2000 || p % 20 ? 0
			: p == 2020        ? 255
					   : 2,
			"page %lu: %u", p, touches[p]);
	track_destroy(&t);
}

Test(tracker, data_and_holes_are_told_apart)
{
	struct smv_error err = {0};
	struct track t;

	track_create(&t);
	cr_assert_eq(smv_tracker_populated(&t.source, &t.set, &err), 0, "%s", err.message);
	for (uint64_t p = 0; p < RAM_PAGES; p++)
		cr_assert_eq(smv_pageset_has(&t.set, p), has_data(p), "page %lu", p);
	/* Populated is what the file has, not what is mapped. */
	cr_assert_eq(madvise(stub_vm_page(&t.vm, 2500), 4096, MADV_REMOVE), 0);
	cr_assert_eq(madvise(stub_vm_page(&t.vm, 2501), 4096, MADV_DONTNEED), 0);
	smv_pageset_clear(&t.set);
	cr_assert_eq(smv_tracker_populated(&t.source, &t.set, &err), 0);
	cr_assert_not(smv_pageset_has(&t.set, 2500));
	cr_assert(smv_pageset_has(&t.set, 2501));
	track_destroy(&t);
}

/* Not even that it is tracked may be forgotten: whoever settles the migration tries again. */
Test(tracker, what_cannot_be_ended_now_is_tried_again)
{
	struct smv_source s = {
		.uffd = -1, .pagemap_fd = -1, .registered = true, .out_of_reach = true};
	json_t *undo;

	for (int i = 0; i < 2; i++) {
		cr_assert_eq(smv_source_detach(&s), i == 0 ? -EAGAIN : 0);
		undo = smv_source_undo(&s);
		cr_assert_eq(json_is_true(json_object_get(undo, "tracked")), i == 0);
		json_decref(undo);
		s.out_of_reach = false;
	}
}

static int asked, asked_until;

static int ask(void *ctx, struct smv_error *err)
{
	cr_assert_eq(ctx, &asked);
	return ++asked < asked_until ? 0
				     : smv_fail(err, SMV_CANCELLED, "cancelled", NULL, "cancelled");
}

/* Each scan asks at least once per RAM block, and ends when told to. */
Test(tracker, scans_can_be_interrupted)
{
	static uint8_t touches[RAM_PAGES];
	struct smv_error err = {0};
	struct track t;

	track_create(&t);
	t.source.interrupted = ask;
	t.source.interrupted_ctx = &asked;
	for (asked_until = 1; asked_until <= 3; asked_until++) {
		const bool ends = asked_until <= 2;

		asked = 0;
		cr_assert_eq(smv_tracker_arm(&t.source, &err) < 0, ends);
		asked = 0;
		cr_assert_eq(smv_tracker_collect(&t.source, &t.set, &err) < 0, ends);
		asked = 0;
		cr_assert_eq(smv_tracker_present(&t.source, touches, &err) < 0, ends);
		asked = 0;
		cr_assert_eq(smv_tracker_populated(&t.source, &t.set, &err) < 0, true);
		cr_assert_eq(err.code, SMV_CANCELLED);
	}
	track_destroy(&t);
}

Test(tracker, errors_name_the_ram_block)
{
	struct smv_error err = {0};
	struct track t;

	track_create(&t);
	t.source.uffd = t.source.pagemap_fd = t.source.ram.blocks[1].fd = -1;
	cr_assert_lt(smv_tracker_arm(&t.source, &err), 0);
	cr_assert(strstr(err.message, "'ram0'"), "%s", err.message);
	cr_assert_lt(smv_tracker_collect(&t.source, &t.set, &err), 0);
	cr_assert(strstr(err.message, "'ram0'"), "%s", err.message);
	cr_assert_lt(smv_tracker_populated(&t.source, &t.set, &err), 0);
	cr_assert(strstr(err.message, "'ram1'"), "%s", err.message);
	track_destroy(&t);
}

/* --- pushing ------------------------------------------------------------------------------ */

/* A main host that keeps what it is sent, by the rules of smemv-pagerd. */
struct main_host {
	struct stub_host hosts[STUB_HOSTS];
	struct smv_domain *domain;
	struct smv_region *region;
	struct smv_listener *listener;
	struct smv_hot_chunk *ring;
	struct smv_rpc_server *server;
	char socket[64];
	pthread_mutex_t lock;
	struct smv_pagemap map;
	struct smv_slots slots;
	unsigned char (*hot)[SMV_PAGE_SIZE];
};

static int ring_connect(void *ctx, struct smv_conn *conn, const void *private_data,
	size_t private_len, struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	struct main_host *m = ctx;

	*domain = m->domain;
	*access = SMV_ACCESS_REMOTE_WRITE;
	*conn_ctx = m;
	return 0;
}

static void ring_notify(void *ctx, void *conn_ctx, struct smv_conn *conn, uint32_t index)
{
	struct main_host *m = ctx;
	const struct smv_hot_chunk *chunk = &m->ring[index];

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < chunk->nr_pages; i++) {
		uint64_t page = chunk->entries[i].page;

		must(smv_word_state(smv_pagemap_get(&m->map, page)) != SMV_PAGE_COLD);
		memcpy(m->hot[page], chunk->data[i], SMV_PAGE_SIZE);
		smv_pagemap_place(&m->map, page,
			smv_word(SMV_PAGE_LOCAL, SMV_SLOT_NONE, chunk->entries[i].checksum));
	}
	pthread_mutex_unlock(&m->lock);
	smv_conn_notify(conn, index);
}

static void take_report(
	struct main_host *m, uint64_t page, bool cold, uint64_t slot, uint32_t checksum)
{
	smv_page_word old = smv_pagemap_get(&m->map, page);

	if (!cold) {
		if (smv_word_state(old) == SMV_PAGE_COLD)
			smv_slots_free(&m->slots, smv_word_slot(old));
		smv_pagemap_place(&m->map, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
		return;
	}
	must(smv_word_state(old) != SMV_PAGE_LOCAL);
	if (smv_word_state(old) == SMV_PAGE_COLD)
		must(smv_word_slot(old) == slot);
	else
		must(smv_slots_take(&m->slots, slot) == 0);
	smv_pagemap_place(&m->map, page, smv_word(SMV_PAGE_COLD, slot, checksum));
}

static int report_pages(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const Smemv__V1__ReportPagesRequest *q = (const void *)request;
	struct main_host *m = ctx;

	pthread_mutex_lock(&m->lock);
	for (size_t i = 0; i < q->n_ranges; i++) {
		const Smemv__V1__PageRange *r = q->ranges[i];
		bool cold = r->state == SMEMV__V1__PAGE_STATE__PAGE_STATE_COLD;

		for (uint64_t k = 0; k < r->nr_pages; k++) {
			uint32_t checksum = 0;

			if (cold)
				memcpy(&checksum, r->checksums.data + 4 * k, 4);
			take_report(m, r->first_page + k, cold, r->first_slot + k, checksum);
		}
	}
	pthread_mutex_unlock(&m->lock);
	((Smemv__V1__ReportPagesResponse *)response)->applied_sequence = q->sequence;
	return 0;
}

static void main_host_create(struct main_host *m, uint64_t nr_extents, struct smv_dest *dest)
{
	static const struct smv_rpc_method methods[] = {
		{"ReportPages", report_pages}, {NULL, NULL}};
	const size_t ring_bytes = SMV_HOT_RING_CHUNKS * sizeof(struct smv_hot_chunk);
	const struct smv_listener_handler handler = {
		.ctx = m, .connect = ring_connect, .notify = ring_notify};
	struct smv_addr addr, bound;
	struct smv_region_info info;

	memset(m, 0, sizeof(*m));
	pthread_mutex_init(&m->lock, NULL);
	m->ring = aligned_alloc(SMV_PAGE_SIZE, ring_bytes);
	m->hot = calloc(RAM_PAGES, SMV_PAGE_SIZE);
	must(m->ring && m->hot && smv_slots_create(nr_extents, &m->slots) == 0 &&
		smv_pagemap_create(NULL, "main", RAM_PAGES, &m->map, NULL) == 0);
	for (unsigned int h = 0; h < STUB_HOSTS; h++)
		stub_host_create(&m->hosts[h], "mem", h, nr_extents / STUB_HOSTS);
	must(smv_domain_create(m->hosts[0].transport, &m->domain) == 0);
	must(smv_region_register(
		     m->domain, m->ring, ring_bytes, SMV_ACCESS_REMOTE_WRITE, &m->region) == 0);
	smv_region_info(m->region, &info);
	must(smv_addr_parse("mem:ring", true, &addr, NULL) == 0);
	must(smv_listen(m->hosts[0].transport, &addr, &handler, &m->listener, &bound, NULL) == 0);
	smv_rpc_init();
	snprintf(m->socket, sizeof(m->socket), "unix:/tmp/smemv-test-push.%d", (int)getpid());
	must(smv_addr_parse(m->socket, false, &addr, NULL) == 0);
	must(smv_rpc_server_create(1, &m->server) == 0 &&
		smv_rpc_server_add_service(m->server, &smemv__v1__pager__descriptor, methods, m) ==
			0 &&
		smv_rpc_server_listen(m->server, &addr, NULL, NULL) == 0 &&
		smv_rpc_server_start(m->server) == 0);

	must(smv_dest_open(&addr, "0123456789abcdef0123456789abcdef", dest, NULL) == 0);
	stub_backing_create(&dest->backing, m->hosts, STUB_HOSTS);
	must(smv_backing_spread(&dest->backing, 1) == 0);
	dest->last_contact_ns = smv_now_ns();
	dest->hot_addr = bound;
	dest->hot_rkey = info.rkey;
	dest->hot_ring_addr = info.remote_addr;
}

static void main_host_destroy(struct main_host *m, struct smv_dest *dest)
{
	smv_dest_close(dest);
	smv_rpc_server_destroy(m->server, 1000);
	smv_rpc_shutdown();
	smv_listener_close(m->listener);
	smv_region_deregister(m->region);
	smv_domain_destroy(m->domain);
	for (unsigned int h = 0; h < STUB_HOSTS; h++)
		stub_host_destroy(&m->hosts[h]);
	smv_pagemap_destroy(&m->map);
	smv_slots_destroy(&m->slots);
	free(m->hot);
	free(m->ring);
}

static int never(struct smv_error *err)
{
	return 0;
}

/* How many pages the main host would show otherwise than the source's files hold them. */
static unsigned int differences(
	const struct main_host *m, const struct track *t, const struct smv_dest *dest)
{
	static const unsigned char zeros[SMV_PAGE_SIZE];
	unsigned int nr = 0;

	for (uint64_t page = 0; page < RAM_PAGES; page++) {
		const struct smv_ram_block *b = smv_guest_ram_block_of(&t->vm.ram, page);
		smv_page_word word = smv_pagemap_get(&m->map, page);
		unsigned char want[SMV_PAGE_SIZE];
		const void *got = smv_word_state(word) == SMV_PAGE_ZERO ? zeros : m->hot[page];

		must(pread(b->fd, want, sizeof(want),
			     (off_t)(b->file_offset + (page - b->first_page) * SMV_PAGE_SIZE)) ==
			sizeof(want));
		if (smv_word_state(word) == SMV_PAGE_COLD)
			got = stub_slot(m->hosts, &dest->backing, smv_word_slot(word));
		nr += memcmp(want, got, sizeof(want)) != 0;
	}
	return nr;
}

static void punch_page(struct track *t, uint64_t page)
{
	cr_assert_eq(madvise(stub_vm_page(&t->vm, page), SMV_PAGE_SIZE, MADV_REMOVE), 0);
}

static void find_populated(struct track *t)
{
	struct smv_error err = {0};

	smv_pageset_clear(&t->set);
	cr_assert_eq(smv_tracker_populated(&t->source, &t->set, &err), 0, "%s", err.message);
}

Test(push, pages_that_were_discarded_after_they_were_sent_are_zero_in_the_end)
{
	/* Hot and cold ones, on both sides of the border of the blocks and at the ends; one of them
	 * was zero from the beginning. */
	static const uint64_t discarded[] = {0, 100, 998, 1500, 2000, 2001, 2099, 2500, 2999};
	struct smv_push *push = NULL;
	struct smv_error err = {0};
	struct smv_pageset hot;
	struct smv_dest dest;
	struct main_host m;
	struct track t;
	uint64_t nr_free;

	track_create(&t);
	main_host_create(&m, 8, &dest);
	dest.hot_credit = 100;
	cr_assert_eq(smv_pageset_create(RAM_PAGES, &hot), 0);
	for (uint64_t page = 2000; page < 2100; page++)
		smv_pageset_add(&hot, page);
	cr_assert_eq(
		smv_push_open(&t.source, &dest, &hot, 0, never, &push, &err), 0, "%s", err.message);
	find_populated(&t);
	cr_assert_eq(smv_push_declare_zero(push, &t.set, &err), 0, "%s", err.message);
	cr_assert_eq(smv_push_pages(push, &t.set, NULL, NULL, &err), 0, "%s", err.message);
	cr_assert_eq(differences(&m, &t, &dest), 0);
	cr_assert_eq(smv_pagemap_count(&m.map, SMV_PAGE_LOCAL), 100);
	cr_assert_eq(smv_pagemap_count(&m.map, SMV_PAGE_COLD), 1400);

	nr_free = m.slots.nr_free;
	for (size_t i = 0; i < SMV_ARRAY_SIZE(discarded); i++)
		punch_page(&t, discarded[i]);
	cr_assert_eq(differences(&m, &t, &dest), 8, "this test sees nothing");
	find_populated(&t);
	cr_assert_eq(smv_push_drop_holes(push, &t.set, &err), 0, "%s", err.message);
	cr_assert_eq(differences(&m, &t, &dest), 0);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(discarded); i++)
		cr_assert_eq(smv_word_state(smv_pagemap_get(&m.map, discarded[i])), SMV_PAGE_ZERO,
			"page %lu", discarded[i]);
	cr_assert_eq(smv_pagemap_count(&m.map, SMV_PAGE_LOCAL), 97);
	cr_assert_eq(smv_pagemap_count(&m.map, SMV_PAGE_COLD), 1395);
	cr_assert_eq(m.slots.nr_free, nr_free + 5);
	cr_assert_eq(m.map.digest, smv_push_map(push)->digest, "the maps must agree");

	/* If the VM goes on after all: a page that is written again is like a new one. */
	smv_pageset_clear(&t.set);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(discarded); i++) {
		*stub_vm_page(&t.vm, discarded[i]) = (unsigned char)(i + 5);
		smv_pageset_add(&t.set, discarded[i]);
	}
	cr_assert_eq(smv_push_pages(push, &t.set, NULL, NULL, &err), 0, "%s", err.message);
	cr_assert_eq(differences(&m, &t, &dest), 0);
	cr_assert_eq(m.map.digest, smv_push_map(push)->digest);
	cr_assert_eq(smv_pagemap_count(&m.map, SMV_PAGE_LOCAL), 100, "the credit came back");
	smv_push_close(push);
	smv_pageset_destroy(&hot);
	main_host_destroy(&m, &dest);
	track_destroy(&t);
}

/* --- the result --------------------------------------------------------------------------- */

/* What smv_result_print_json() writes to standard output: one object and nothing else. */
static json_t *printed(const struct smv_result *result)
{
	FILE *file = tmpfile();
	int saved = dup(STDOUT_FILENO);
	json_error_t why;
	json_t *root;
	char rest[2];

	fflush(stdout);
	cr_assert(file && dup2(fileno(file), STDOUT_FILENO) >= 0);
	smv_result_print_json(result);
	fflush(stdout);
	dup2(saved, STDOUT_FILENO);
	close(saved);
	rewind(file);
	root = json_loadf(file, JSON_DISABLE_EOF_CHECK | JSON_REJECT_DUPLICATES, &why);
	cr_assert(root, "%s", why.text);
	cr_assert_eq(fread(rest, 1, 2, file), 1);
	cr_assert_eq(rest[0], '\n');
	fclose(file);
	return root;
}

/* Exactly the fields of @format (jansson's, without "!"). */
#define expect_fields(json, ...)                                                                   \
	do {                                                                                       \
		json_error_t why_;                                                                 \
		cr_assert_eq(json_unpack_ex(json, &why_, JSON_STRICT, __VA_ARGS__), 0, "%s",       \
			why_.text);                                                                \
	} while (0)

static struct smv_result completed(void)
{
	struct smv_result r = {.outcome = SMV_COMPLETED,
		.migration_id = "0123456789abcdef0123456789abcdef",
		.committed = true,
		.source_state = "postmigrate",
		.destination_state = "running",
		.total_ms = 2345.6789,
		.setup_ms = 100,
		.downtime_ms = 31.25,
		.pages_total = 100,
		.pages_hot = 30,
		.pages_cold = 60,
		.pages_zero = 10,
		.pages_resent = 7,
		.bytes_to_main = 30 * 4096,
		.bytes_to_sub_hosts = 1ull << 40,
		.nr_sub_hosts = 2,
		.transport = "tcp",
		.transport_reason = "verbs: no RDMA device on this host"};

	snprintf(r.sub_hosts[0].address, SMV_ADDR_MAX, "a:1");
	snprintf(r.sub_hosts[1].address, SMV_ADDR_MAX, "b:2");
	r.sub_hosts[1].bytes = 1ull << 40;
	r.sub_hosts[1].extents = 5;
	return r;
}

Test(report, a_completed_migration_has_exactly_the_documented_fields)
{
	struct smv_result r = completed();
	const char *id, *status, *source, *destination, *transport, *reason, *address;
	json_int_t version, total, hot, cold, zero, resent, to_main, to_sub, bytes, extents, pages;
	double total_ms, setup_ms, downtime_ms, ms, expected_ms;
	json_t *root, *error, *rounds, *hosts;
	json_int_t throttle;
	int committed;

	cr_assert_eq(smv_result_add_round(&r, (struct smv_round){100, 409600, 12.5, 60, 0}), 0);
	cr_assert_eq(smv_result_add_round(&r, (struct smv_round){7, 28672, 0.5, 60, 0}), 0);
	root = printed(&r);
	expect_fields(root,
		"{s:I, s:s, s:s, s:b, s:o, s:s, s:s, s:F, s:F, s:F, s:o, s:{s:I, s:I, s:I, s:I, "
		"s:I}, s:{s:I, s:I}, s:o, s:s, s:s}",
		"schema_version", &version, "migration_id", &id, "status", &status, "committed",
		&committed, "error", &error, "source_state", &source, "destination_state",
		&destination, "total_time_ms", &total_ms, "setup_time_ms", &setup_ms, "downtime_ms",
		&downtime_ms, "rounds", &rounds, "pages", "total", &total, "hot", &hot, "cold",
		&cold, "zero", &zero, "resent", &resent, "bytes", "to_main", &to_main,
		"to_sub_hosts", &to_sub, "sub_hosts", &hosts, "transport", &transport,
		"transport_reason", &reason);
	cr_assert_eq(version, 1);
	cr_assert_str_eq(id, r.migration_id);
	cr_assert_str_eq(status, "completed");
	cr_assert(committed);
	cr_assert(json_is_null(error));
	cr_assert_str_eq(source, "postmigrate");
	cr_assert_str_eq(destination, "running");
	cr_assert_float_eq(total_ms, 2345.678, 0.0011);
	cr_assert_float_eq(setup_ms, 100, 1e-9);
	cr_assert_float_eq(downtime_ms, 31.25, 1e-9);
	cr_assert(total == 100 && hot == 30 && cold == 60 && zero == 10 && resent == 7);
	cr_assert(to_main == 30 * 4096 && to_sub == 1ll << 40);
	cr_assert_str_eq(transport, "tcp");
	cr_assert_str_eq(reason, r.transport_reason);
	cr_assert_eq(json_array_size(rounds), 2);
	expect_fields(json_array_get(rounds, 1), "{s:I, s:I, s:F, s:F, s:I}", "pages", &pages,
		"bytes", &bytes, "ms", &ms, "expected_downtime_ms", &expected_ms,
		"throttle_percent", &throttle);
	cr_assert(pages == 7 && bytes == 28672 && ms == 0.5);
	cr_assert(expected_ms == 60 && throttle == 0);
	cr_assert_eq(json_array_size(hosts), 2);
	expect_fields(json_array_get(hosts, 1), "{s:s, s:I, s:I}", "address", &address, "bytes",
		&bytes, "extents", &extents);
	cr_assert_str_eq(address, "b:2");
	cr_assert(bytes == 1ll << 40 && extents == 5);
	json_decref(root);
	free(r.rounds);
}

Test(report, a_refusal_is_an_object_of_the_same_fields_with_the_error)
{
	struct smv_result done = completed(), r = {.outcome = SMV_NOT_BEGUN, .downtime_ms = -1};
	json_t *full = printed(&done), *root, *value;
	const char *code, *message, *hint, *key;

	smv_fail(&r.error, SMV_REFUSED, "ram-not-shared", "Use share=on.", "RAM \"%s\" is private",
		"pc.ram");
	root = printed(&r);
	cr_assert_eq(json_object_size(root), json_object_size(full));
	json_object_foreach (full, key, value)
		cr_assert(json_object_get(root, key), "%s is missing", key);
	expect_fields(json_object_get(root, "error"), "{s:s, s:s, s:s}", "code", &code, "message",
		&message, "hint", &hint);
	cr_assert_str_eq(code, "ram-not-shared");
	cr_assert_str_eq(message, "RAM \"pc.ram\" is private");
	cr_assert_str_eq(hint, "Use share=on.");
	cr_assert_str_eq(json_string_value(json_object_get(root, "status")), "refused");
	cr_assert(json_is_false(json_object_get(root, "committed")));
	cr_assert(json_is_null(json_object_get(root, "downtime_ms")), "the VM never stopped");
	cr_assert_eq(json_array_size(json_object_get(root, "rounds")), 0);
	cr_assert_eq(json_array_size(json_object_get(root, "sub_hosts")), 0);
	json_decref(full);
	json_decref(root);
}

Test(report, every_outcome_has_its_name)
{
	static const struct {
		enum smv_outcome outcome;
		int exit_code;
		const char *name;
	} cases[] = {{SMV_COMPLETED, 0, "completed"}, {SMV_FAILED, 1, "failed"},
		{SMV_STOPPED, 3, "cancelled"}, {SMV_NOT_BEGUN, 4, "refused"},
		{SMV_DOUBTFUL, 5, "unknown"}};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(cases); i++) {
		struct smv_result r = {.outcome = cases[i].outcome};
		json_t *root = printed(&r);

		cr_assert_str_eq(json_string_value(json_object_get(root, "status")), cases[i].name);
		cr_assert_eq((int)r.outcome, cases[i].exit_code);
		json_decref(root);
	}
}
