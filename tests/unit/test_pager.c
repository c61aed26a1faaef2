/* SPDX-License-Identifier: Apache-2.0 */
#include "client/health.h"
#include "client/pager_internal.h"
#include "client/remote.h"
#include "client/settle.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/log.h"
#include "vm_stub.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define NR_PAGES 12288u
#define BUDGET 4096u /* a third */
#define NR_RANGES (NR_PAGES / SMV_EXTENT_PAGES)

static uint64_t random_state;

static uint64_t rnd(uint64_t below)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (random_state >> 33) % below;
}

/* --- page map ----------------------------------------------------------------------------- */

Test(pagemap, fields_of_a_word_do_not_touch_each_other)
{
	const uint64_t slots[] = {0, 1, 0x123456789, SMV_SLOT_NONE - 1, SMV_SLOT_NONE};
	const uint32_t sums[] = {0, 1, 0x54321, (1u << SMV_CHECKSUM_BITS) - 1};

	for (unsigned int st = 0; st < SMV_PAGE_NR_STATES; st++)
		for (unsigned int i = 0; i < 5; i++)
			for (unsigned int k = 0; k < 4; k++) {
				smv_page_word w = smv_word(st, slots[i], sums[k]), v;

				cr_assert_eq(smv_word_state(w), st);
				cr_assert_eq(smv_word_slot(w), slots[i]);
				cr_assert_eq(smv_word_checksum(w), sums[k]);
				cr_assert_eq(smv_word_activity(w), SMV_PAGE_ACTIVE);
				cr_assert_not(w & (SMV_WORD_REMOTE_VALID | SMV_WORD_WAITER));
				w |= SMV_WORD_REMOTE_VALID | SMV_WORD_WAITER;
				v = smv_word_with_activity(w, SMV_PAGE_INACTIVE);
				cr_assert_eq(smv_word_activity(v), SMV_PAGE_INACTIVE);
				cr_assert_eq(smv_word_with_activity(v, SMV_PAGE_ACTIVE), w);
				v = smv_word_with_state(w, SMV_PAGE_LOST);
				cr_assert_eq(smv_word_state(v), SMV_PAGE_LOST);
				cr_assert_eq(smv_word_with_state(v, st), w);
				v = smv_word_with_slot(w, 77);
				cr_assert_eq(smv_word_slot(v), 77);
				cr_assert_eq(smv_word_with_slot(v, slots[i]), w);
				v = smv_word_with_checksum(w, 0xabcde);
				cr_assert_eq(smv_word_checksum(v), 0xabcde);
				cr_assert_eq(smv_word_with_checksum(v, sums[k]), w);
			}
}

Test(pagemap, counts_follow_the_words)
{
	struct smv_pagemap map;
	uint64_t want[SMV_PAGE_NR_STATES] = {300};
	enum smv_page_state at[300] = {0};

	cr_assert_eq(smv_pagemap_create(NULL, "vm", 300, &map, NULL), 0);
	for (int i = 0; i < 5000; i++) {
		uint64_t page = rnd(300);
		enum smv_page_state to = (enum smv_page_state)rnd(SMV_PAGE_NR_STATES);

		want[at[page]]--;
		want[at[page] = to]++;
		smv_pagemap_set(&map, page, smv_word(to, rnd(1000), 0));
	}
	for (unsigned int s = 0; s < SMV_PAGE_NR_STATES; s++)
		cr_assert_eq(smv_pagemap_count(&map, s), want[s], "%s", smv_page_state_name(s));
	smv_pagemap_destroy(&map);
	smv_pagemap_destroy(&map); /* fine on a zeroed struct */
}

/* Page @i of a made-up map. */
static smv_page_word made_up(uint64_t i)
{
	return i % 3 == 0 ? smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0)
			  : smv_word(i % 3 == 1 ? SMV_PAGE_COLD : SMV_PAGE_LOCAL, i,
				    (uint32_t)i * 7 & 0xfffff);
}

Test(pagemap, the_digest_depends_on_the_pages_and_not_on_the_order)
{
	struct smv_pagemap a, b;
	uint64_t same;

	cr_assert_eq(smv_pagemap_create(NULL, "a", 1000, &a, NULL), 0);
	cr_assert_eq(smv_pagemap_create(NULL, "b", 1000, &b, NULL), 0);
	for (uint64_t i = 0; i < 1000; i++) {
		smv_pagemap_place(&a, i, made_up(i));
		/* The other way round, and each page in an older version first. */
		smv_pagemap_place(&b, 999 - i, smv_word(SMV_PAGE_COLD, 5000 + i, 1));
		smv_pagemap_place(&b, 999 - i, made_up(999 - i));
	}
	cr_assert_eq(a.digest, b.digest);
	same = a.digest;
	for (uint64_t i = 0; i < 1000; i += 37) {
		const smv_page_word w = made_up(i),
				    others[] = {smv_word_with_state(w, SMV_PAGE_UNKNOWN),
					    smv_word_with_state(w, SMV_PAGE_LOST),
					    smv_word_with_slot(w, smv_word_slot(w) ^ 1),
					    smv_word_with_checksum(w, smv_word_checksum(w) ^ 1)};

		for (size_t k = 0; k < 4; k++) {
			smv_pagemap_place(&b, i, others[k]);
			cr_assert_neq(b.digest, same, "page %lu, change %zu", i, k);
			smv_pagemap_place(&b, i, w);
			cr_assert_eq(b.digest, same);
		}
	}
	/* Two pages that swap their words. */
	smv_pagemap_place(&b, 1, made_up(4));
	smv_pagemap_place(&b, 4, made_up(1));
	cr_assert_neq(b.digest, same);
	smv_pagemap_destroy(&a);
	smv_pagemap_destroy(&b);
}

Test(pagemap, the_file_has_the_header_and_the_words)
{
	char dir[] = "/tmp/smemv-pagemap-XXXXXX", path[100];
	struct smv_pagemap_header header;
	smv_page_word word;
	struct smv_pagemap map;
	struct smv_error err = {0};
	struct stat st;
	FILE *f;

	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/map", dir);
	/* An old file of that name is replaced, not taken over. */
	f = fopen(path, "w");
	fputs("old", f);
	fclose(f);
	cr_assert_eq(smv_pagemap_create(path, "my-vm", 513, &map, &err), 0, "%s", err.message);
	smv_pagemap_set(&map, 512, smv_word(SMV_PAGE_COLD, 42, 0x12345));
	smv_pagemap_destroy(&map);
	f = fopen(path, "r");
	cr_assert(f);
	cr_assert_eq(fstat(fileno(f), &st), 0);
	cr_assert_eq(st.st_size, SMV_PAGEMAP_HEADER_BYTES + 513 * 8);
	cr_assert_eq(st.st_mode & 0777, 0600);
	cr_assert_eq(fread(&header, sizeof(header), 1, f), 1);
	cr_assert_eq(header.magic, SMV_PAGEMAP_MAGIC);
	cr_assert_eq(header.version, SMV_PAGEMAP_VERSION);
	cr_assert_eq(header.page_size, SMV_PAGE_SIZE);
	cr_assert_eq(header.nr_pages, 513);
	cr_assert_str_eq(header.vm, "my-vm");
	fseek(f, SMV_PAGEMAP_HEADER_BYTES + 512 * 8, SEEK_SET);
	cr_assert_eq(fread(&word, sizeof(word), 1, f), 1);
	cr_assert_eq(word, smv_word(SMV_PAGE_COLD, 42, 0x12345));
	fclose(f);
	unlink(path);
	rmdir(dir);
	cr_assert_lt(smv_pagemap_create(path, "my-vm", 513, &map, &err), 0);
	cr_assert(strstr(err.message, path));
}

Test(pagemap, a_page_is_zero_when_all_of_its_bytes_are)
{
	static unsigned char page[SMV_PAGE_SIZE] __attribute__((aligned(8)));

	cr_assert(smv_page_is_zero(page));
	for (unsigned int i = 0; i < SMV_PAGE_SIZE; i++) {
		page[i] = 1u << i % 8;
		cr_assert_not(smv_page_is_zero(page), "byte %u", i);
		page[i] = 0;
	}
}

Test(pagemap, the_checksum_fits_its_field_and_sees_single_bits)
{
	static unsigned char page[SMV_PAGE_SIZE] __attribute__((aligned(8)));
	unsigned int same = 0;
	uint32_t sum;

	for (unsigned int i = 0; i < SMV_PAGE_SIZE; i++)
		page[i] = (unsigned char)rnd(256);
	sum = smv_page_checksum(page);
	for (unsigned int bit = 0; bit < 8 * SMV_PAGE_SIZE; bit += 7) {
		page[bit / 8] ^= 1u << bit % 8;
		cr_assert_lt(smv_page_checksum(page), 1u << SMV_CHECKSUM_BITS);
		same += smv_page_checksum(page) == sum;
		page[bit / 8] ^= 1u << bit % 8;
	}
	cr_assert_leq(same, 1, "%u of 4682 changes unnoticed", same);
	cr_assert_eq(smv_page_checksum(page), sum);
}

struct map_file {
	char dir[40], path[60];
	uint64_t id;
};

/* 513 pages of "my-vm", each in a slot of its own. */
static void map_file_create(struct map_file *f)
{
	struct smv_pagemap map;

	strcpy(f->dir, "/tmp/smemv-pagemap-XXXXXX");
	cr_assert(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/map", f->dir);
	cr_assert_eq(smv_pagemap_create(f->path, "my-vm", 513, &map, NULL), 0);
	for (uint64_t page = 0; page < 513; page++)
		smv_pagemap_set(
			&map, page, smv_word(page % 2 ? SMV_PAGE_COLD : SMV_PAGE_LOCAL, page, 7));
	f->id = smv_pagemap_id(&map);
	smv_pagemap_destroy(&map);
}

static void map_file_remove(struct map_file *f)
{
	unlink(f->path);
	rmdir(f->dir);
}

Test(pagemap, a_map_is_loaded_as_it_was_left)
{
	struct map_file f;
	struct smv_pagemap map;
	struct smv_error err = {0};

	map_file_create(&f);
	cr_assert_eq(
		smv_pagemap_load(f.path, "my-vm", 513, f.id, &map, &err), 0, "%s", err.message);
	cr_assert_eq(smv_pagemap_count(&map, SMV_PAGE_COLD), 256);
	cr_assert_eq(smv_pagemap_count(&map, SMV_PAGE_LOCAL), 257);
	cr_assert_eq(smv_pagemap_count(&map, SMV_PAGE_UNKNOWN), 0);
	cr_assert_eq(smv_pagemap_get(&map, 511), smv_word(SMV_PAGE_COLD, 511, 7));
	/* What is changed is in the file. */
	smv_pagemap_set(&map, 511, smv_word(SMV_PAGE_LOST, 511, 7));
	smv_pagemap_destroy(&map);
	cr_assert_eq(smv_pagemap_load(f.path, "my-vm", 513, f.id, &map, &err), 0);
	cr_assert_eq(smv_pagemap_count(&map, SMV_PAGE_LOST), 1);
	smv_pagemap_destroy(&map);
	map_file_remove(&f);
}

/* What an upgrade finds. */
Test(pagemap, a_map_of_the_former_version_is_loaded_and_becomes_one_of_this)
{
	struct map_file f;
	struct smv_pagemap map;
	struct smv_error err = {0};
	uint32_t version = SMV_PAGEMAP_OLDEST;
	FILE *file;

	map_file_create(&f);
	file = fopen(f.path, "r+");
	cr_assert_eq(fseek(file, offsetof(struct smv_pagemap_header, version), SEEK_SET), 0);
	cr_assert_eq(fwrite(&version, sizeof(version), 1, file), 1);
	fclose(file);
	for (uint32_t want = SMV_PAGEMAP_OLDEST; want <= SMV_PAGEMAP_VERSION; want++) {
		cr_assert_eq(smv_pagemap_load(f.path, "my-vm", 513, f.id, &map, &err), 0, "%s",
			err.message);
		cr_assert_eq(((struct smv_pagemap_header *)map.mapping)->version, want);
		smv_pagemap_upgrade(&map);
		smv_pagemap_destroy(&map);
	}
	map_file_remove(&f);
}

static void refused(
	const struct map_file *f, const char *vm, uint64_t nr_pages, uint64_t id, const char *why)
{
	struct smv_pagemap map;
	struct smv_error err = {0};

	cr_assert_lt(smv_pagemap_load(f->path, vm, nr_pages, id, &map, &err), 0, "%s", why);
	cr_assert_eq(err.code, SMV_DATA_LOSS, "%s", err.message);
	cr_assert(strstr(err.message, why), "%s", err.message);
	cr_assert(strstr(err.message, f->path));
	cr_assert(strstr(err.hint, "end the VM"));
	cr_assert_null(map.mapping);
}

static void poke(const struct map_file *f, size_t offset, unsigned char change)
{
	FILE *file = fopen(f->path, "r+");
	int byte;

	fseek(file, (long)offset, SEEK_SET);
	byte = fgetc(file);
	fseek(file, (long)offset, SEEK_SET);
	fputc(byte ^ change, file);
	fclose(file);
}

Test(pagemap, a_truncated_or_foreign_map_is_refused)
{
	struct map_file f;
	const size_t whole = SMV_PAGEMAP_HEADER_BYTES + 513 * 8;
	const size_t sizes[] = {0, 8, SMV_PAGEMAP_HEADER_BYTES, whole - 1, whole - 8, whole + 1};
	const struct {
		size_t offset;
		const char *why;
	} fields[] = {{0, "no page map"}, {8, "another version"}, {12, "another size"},
		{16, "another size"}, {24, "another name"}};

	map_file_create(&f);
	refused(&f, "my-vm", 514, f.id, "bytes instead of");
	refused(&f, "my-vm2", 513, f.id, "another name");
	refused(&f, "my-v", 513, f.id, "another name");
	refused(&f, "my-vm", 513, f.id ^ 1, "another migration");
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		poke(&f, fields[i].offset, 4);
		refused(&f, "my-vm", 513, f.id, fields[i].why);
		poke(&f, fields[i].offset, 4);
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		cr_assert_eq(truncate(f.path, (off_t)sizes[i]), 0);
		refused(&f, "my-vm", 513, f.id, "bytes instead of");
	}
	unlink(f.path);
	refused(&f, "my-vm", 513, f.id, "No such file");
	map_file_remove(&f);
}

/* --- settling ----------------------------------------------------------------------------- */

Test(settle, every_row_of_the_table)
{
	enum { NONE = 1, VALID = 2 };
	static const struct {
		enum smv_page_state from;
		bool data;
		int flags; /* of the word before: NONE: no slot */
		enum smv_page_state to;
		int to_flags;
	} rows[] = {
		{SMV_PAGE_ZERO, false, NONE, SMV_PAGE_ZERO, NONE},
		{SMV_PAGE_ZERO, true, NONE, SMV_PAGE_LOCAL, NONE | VALID},
		{SMV_PAGE_LOCAL, true, 0, SMV_PAGE_LOCAL, 0},
		{SMV_PAGE_LOCAL, true, VALID, SMV_PAGE_LOCAL, VALID},
		{SMV_PAGE_LOCAL, true, NONE, SMV_PAGE_LOCAL, NONE},
		{SMV_PAGE_LOCAL, true, NONE | VALID, SMV_PAGE_LOCAL, NONE | VALID},
		{SMV_PAGE_LOCAL, false, 0, SMV_PAGE_LOST, 0},
		{SMV_PAGE_LOCAL, false, VALID, SMV_PAGE_LOST, 0},
		{SMV_PAGE_LOCAL, false, NONE | VALID, SMV_PAGE_LOST, NONE},
		{SMV_PAGE_FETCHING, false, 0, SMV_PAGE_COLD, 0},
		{SMV_PAGE_FETCHING, true, 0, SMV_PAGE_LOCAL, VALID},
		{SMV_PAGE_OUT, true, 0, SMV_PAGE_LOCAL, 0},
		{SMV_PAGE_OUT, true, VALID, SMV_PAGE_LOCAL, 0},
		{SMV_PAGE_OUT, true, NONE | VALID, SMV_PAGE_LOCAL, NONE},
		{SMV_PAGE_OUT, false, 0, SMV_PAGE_LOST, 0},
		{SMV_PAGE_OUT, false, VALID, SMV_PAGE_LOST, 0},
		{SMV_PAGE_OUT, false, NONE, SMV_PAGE_LOST, NONE},
		{SMV_PAGE_SAVED, true, VALID, SMV_PAGE_LOCAL, VALID},
		{SMV_PAGE_SAVED, true, NONE | VALID, SMV_PAGE_LOCAL, NONE | VALID},
		{SMV_PAGE_SAVED, false, VALID, SMV_PAGE_COLD, 0},
		{SMV_PAGE_SAVED, false, NONE | VALID, SMV_PAGE_ZERO, NONE},
		{SMV_PAGE_COLD, false, 0, SMV_PAGE_COLD, 0},
		{SMV_PAGE_COLD, true, 0, SMV_PAGE_COLD, 0},
		{SMV_PAGE_LOST, false, 0, SMV_PAGE_LOST, 0},
		{SMV_PAGE_LOST, true, NONE, SMV_PAGE_LOST, NONE},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint64_t slot = rows[i].flags & NONE ? SMV_SLOT_NONE : 42;
		smv_page_word from =
			smv_word(rows[i].from, slot, rows[i].from == SMV_PAGE_ZERO ? 0 : 5);

		from |= rows[i].flags & VALID ? SMV_WORD_REMOTE_VALID : 0;
		cr_assert_null(smv_settle_check(from), "row %zu", i);
		for (int activity = 0; activity < 3; activity++) {
			smv_page_word word = smv_word_with_activity(
					      from, rows[i].from == SMV_PAGE_LOCAL
							    ? (enum smv_page_activity)activity
							    : SMV_PAGE_ACTIVE),
				      to = smv_settle_word(word | SMV_WORD_WAITER, rows[i].data);

			cr_assert_eq(smv_word_state(to), rows[i].to, "row %zu: %s", i,
				smv_page_state_name(smv_word_state(to)));
			cr_assert_eq(smv_word_slot(to),
				rows[i].to_flags & NONE ? SMV_SLOT_NONE : 42, "row %zu", i);
			cr_assert_eq(!!(to & SMV_WORD_REMOTE_VALID), !!(rows[i].to_flags & VALID),
				"row %zu", i);
			cr_assert_not(to & SMV_WORD_WAITER);
			cr_assert_eq(smv_word_activity(to), SMV_PAGE_ACTIVE);
			if (rows[i].to == SMV_PAGE_COLD)
				cr_assert_eq(smv_word_checksum(to), 5);
			/* Twice is once. COLD with data is punched in between. */
			cr_assert_eq(smv_settle_word(to,
					     rows[i].to == SMV_PAGE_COLD ? false : rows[i].data),
				to, "row %zu", i);
		}
	}
	cr_assert_eq(smv_settle_word(0, false), 0);
	cr_assert_eq(smv_settle_word(0, true), 0);
}

Test(settle, words_that_no_pager_leaves_are_seen)
{
	cr_assert(smv_settle_check(smv_word(SMV_PAGE_NR_STATES, 1, 0)));
	cr_assert(smv_settle_check(smv_word(15, 1, 0)));
	cr_assert(smv_settle_check(smv_word(SMV_PAGE_COLD, SMV_SLOT_NONE, 0)));
	cr_assert(smv_settle_check(smv_word(SMV_PAGE_FETCHING, SMV_SLOT_NONE, 0)));
	cr_assert(smv_settle_check(smv_word(SMV_PAGE_ZERO, 3, 0)));
	cr_assert(smv_settle_check(smv_word(SMV_PAGE_SAVED, 3, 0)));
	cr_assert(smv_settle_check(smv_word(SMV_PAGE_UNKNOWN, 3, 0)));
	cr_assert(smv_settle_check(smv_word_with_activity(smv_word(SMV_PAGE_LOCAL, 3, 0), 3)));
	cr_assert_null(smv_settle_check(0));
}

/* --- slots -------------------------------------------------------------------------------- */

Test(slots, random_use_agrees_with_a_model)
{
	enum { EXTENTS = 5, N = EXTENTS * SMV_EXTENT_PAGES };
	static bool taken[N];
	struct smv_slots slots;
	uint64_t nr_taken = 0, first;

	cr_assert_eq(smv_slots_create(EXTENTS, &slots), 0);
	for (int i = 0; i < 20000; i++) {
		/* Grows and shrinks in turn, so that full and empty are both met. */
		bool grow = rnd(10) < (i / 2000 % 2 ? 3u : 8u);
		unsigned int want = 1 + (unsigned int)rnd(100), n;

		if (grow) {
			n = smv_slots_alloc(&slots, want, &first);
			cr_assert_leq(n, want);
			cr_assert_eq(n == 0, nr_taken == N);
			cr_assert(n == 0 || first / SMV_EXTENT_PAGES ==
						    (first + n - 1) / SMV_EXTENT_PAGES,
				"a run crosses its extent");
			for (uint64_t s = first; s < first + n; s++) {
				cr_assert_not(taken[s]);
				taken[s] = true;
			}
			nr_taken += n;
		} else {
			for (uint64_t s = rnd(N); want && nr_taken; s = (s + 1) % N, want--)
				if (taken[s]) {
					smv_slots_free(&slots, s);
					taken[s] = false;
					nr_taken--;
				}
		}
		cr_assert_eq(slots.nr_free, N - nr_taken);
	}
	for (uint64_t s = 0; s < N; s++)
		if (taken[s])
			smv_slots_free(&slots, s);
	/* All come back: each can be had once more, in runs as long as an extent. */
	memset(taken, 0, sizeof(taken));
	for (int e = 0; e < EXTENTS; e++) {
		cr_assert_eq(smv_slots_alloc(&slots, 10000, &first), SMV_EXTENT_PAGES);
		cr_assert_not(taken[first]);
		taken[first] = true;
	}
	cr_assert_eq(smv_slots_alloc(&slots, 1, &first), 0);
	smv_slots_destroy(&slots);
}

Test(slots, a_closed_extent_gives_none_out)
{
	struct smv_slots slots;
	uint64_t first;

	cr_assert_eq(smv_slots_create(3, &slots), 0);
	cr_assert_eq(smv_slots_take(&slots, 600), 0);
	smv_slots_close(&slots, 1, true);
	cr_assert(smv_slots_is_closed(&slots, 600));
	cr_assert_not(smv_slots_is_closed(&slots, 511));
	smv_slots_free(&slots, 600);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(smv_slots_alloc(&slots, 1000, &first), SMV_EXTENT_PAGES);
		cr_assert_neq(first / SMV_EXTENT_PAGES, 1);
	}
	cr_assert_eq(smv_slots_alloc(&slots, 1, &first), 0);
	smv_slots_close(&slots, 1, false);
	cr_assert_eq(smv_slots_alloc(&slots, 1, &first), 1);
	cr_assert_eq(first, 512);
	smv_slots_destroy(&slots);
}

Test(slots, taking_a_slot_twice_or_one_that_is_not_there_is_an_error)
{
	struct smv_slots slots;
	uint64_t first;

	cr_assert_eq(smv_slots_create(2, &slots), 0);
	cr_assert_eq(smv_slots_take(&slots, 3), 0);
	cr_assert_eq(smv_slots_take(&slots, 3), -EEXIST);
	cr_assert_eq(smv_slots_take(&slots, 1023), 0);
	cr_assert_eq(smv_slots_take(&slots, 1024), -ERANGE);
	cr_assert_eq(smv_slots_take(&slots, SMV_SLOT_NONE), -ERANGE);
	cr_assert_eq(slots.nr_free, 1022);
	/* What was taken so is not given out, and ends a run. */
	cr_assert_eq(smv_slots_alloc(&slots, 10, &first), 3);
	cr_assert_eq(first, 0);
	smv_slots_free(&slots, 3);
	cr_assert_eq(smv_slots_take(&slots, 3), 0);
	smv_slots_destroy(&slots);
	cr_assert_eq(smv_slots_create(0, &slots), 0);
	cr_assert_eq(smv_slots_alloc(&slots, 1, &first), 0);
	cr_assert_eq(smv_slots_take(&slots, 0), -ERANGE);
	smv_slots_destroy(&slots);
}

/* --- backing ------------------------------------------------------------------------------ */

/* Leases whose segments have these sizes in bytes, a host per row, 0: no more. */
static void made_up_leases(struct smv_backing *b, const uint64_t sizes[][4], unsigned int nr_hosts)
{
	memset(b, 0, sizeof(*b));
	b->nr_sub_hosts = nr_hosts;
	b->sub_hosts = calloc(nr_hosts, sizeof(*b->sub_hosts));
	for (unsigned int h = 0; h < nr_hosts; h++) {
		b->sub_hosts[h].segments = calloc(4, sizeof(struct smv_segment));
		for (unsigned int s = 0; s < 4 && sizes[h][s]; s++)
			b->sub_hosts[h].segments[b->sub_hosts[h].nr_segments++] =
				(struct smv_segment){
					100 * h + s, (h + 1ull) << 40 | s << 30, sizes[h][s]};
	}
}

Test(backing, spreading_covers_every_extent_once)
{
	const uint64_t E = SMV_EXTENT_BYTES;
	const uint64_t sizes[][4] = {
		{3 * E, 5 * E}, {}, {E / 2, 20 * E + 4096, E - 1, E}, {E}, {4096, 8192}};
	static const uint64_t room[5][4] = {{3, 5}, {}, {0, 20, 0, 1}, {1}, {}};
	const uint64_t runs[] = {1, 2, 4, 1000};

	for (int i = 0; i < 4; i++) {
		unsigned char seen[5][4][20] = {0};
		struct smv_backing b;

		made_up_leases(&b, sizes, 5);
		cr_assert_eq(smv_backing_spread(&b, runs[i]), 0);
		cr_assert_eq(b.nr_extents, 30);
		for (uint64_t e = 0; e < b.nr_extents; e++) {
			const struct smv_extent *x = &b.extents[e];

			cr_assert_lt(x->offset_bytes / E, room[x->sub_host][x->segment]);
			cr_assert_eq(x->offset_bytes % E, 0);
			cr_assert_eq(seen[x->sub_host][x->segment][x->offset_bytes / E]++, 0);
		}
		smv_backing_free(&b);
	}
}

Test(backing, large_transfers_use_all_sub_hosts)
{
	const uint64_t sizes[][4] = {{8ull * SMV_EXTENT_BYTES}, {8ull * SMV_EXTENT_BYTES}};
	struct smv_backing b;

	made_up_leases(&b, sizes, 2);
	cr_assert_eq(smv_backing_spread(&b, 2), 0);
	for (uint64_t e = 0; e < 16; e++)
		cr_assert_eq(b.extents[e].sub_host, e / 2 % 2);
	smv_backing_free(&b);
}

Test(backing, a_slot_is_where_the_table_says)
{
	const uint64_t sizes[][4] = {
		{4ull * SMV_EXTENT_BYTES, 4ull * SMV_EXTENT_BYTES}, {4ull * SMV_EXTENT_BYTES}};
	struct smv_slot_place place;
	struct smv_backing b;

	made_up_leases(&b, sizes, 2);
	cr_assert_eq(smv_backing_add_extents(&b, 1, 0, 2ull * SMV_EXTENT_BYTES, 2), 0);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 1, SMV_EXTENT_BYTES, 1), 0);
	cr_assert_eq(b.nr_extents, 3);
	place = smv_backing_locate(&b, 512 + 7);
	cr_assert_eq(place.sub_host, 1);
	cr_assert_eq(place.rkey, 100);
	cr_assert_eq(place.remote_addr, (2ull << 40) + 3ull * SMV_EXTENT_BYTES + 7 * 4096);
	place = smv_backing_locate(&b, 2 * 512 + 511);
	cr_assert_eq(place.sub_host, 0);
	cr_assert_eq(place.rkey, 1);
	cr_assert_eq(place.remote_addr, (1ull << 40 | 1ull << 30) + SMV_EXTENT_BYTES + 511 * 4096);
	smv_backing_free(&b);
}

Test(backing, extents_outside_a_segment_are_refused)
{
	const uint64_t E = SMV_EXTENT_BYTES, sizes[][4] = {{4 * E + 4096}, {}};
	struct smv_backing b;

	made_up_leases(&b, sizes, 2);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 0, 0, 5), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 0, 4 * E, 1), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 0, E, UINT64_MAX), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 0, 1ull << 63, 1), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 0, 4096, 1), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 1, 0, 1), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 1, 0, 0, 1), -EINVAL);
	cr_assert_eq(smv_backing_add_extents(&b, 2, 0, 0, 1), -EINVAL);
	cr_assert_eq(b.nr_extents, 0);
	/* None at all is fine, as often as one likes. */
	for (int i = 0; i < 3; i++)
		cr_assert_eq(smv_backing_add_extents(&b, 0, 0, 4 * E, 0), 0);
	cr_assert_eq(smv_backing_add_extents(&b, 0, 0, 0, 4), 0);
	cr_assert_eq(b.nr_extents, 4);
	smv_backing_free(&b);
}

/* --- remote ------------------------------------------------------------------------------- */

struct remote_lab {
	struct stub_host hosts[2];
	struct smv_backing backing;
	struct smv_remote *remote;
};

static void remote_lab_create(struct remote_lab *lab, const char *transport)
{
	struct smv_error err = {0};

	smv_log_set_level(SMV_LOG_ERROR); /* lost connections are on purpose here */
	stub_host_create(&lab->hosts[0], transport, 0, 4);
	stub_host_create(&lab->hosts[1], transport, 1, 2);
	stub_backing_create(&lab->backing, lab->hosts, 2);
	cr_assert_eq(smv_backing_spread(&lab->backing, 1), 0);
	cr_assert_eq(smv_remote_open(&lab->backing, SMV_ROLE_WRITER, 128 * SMV_PAGE_SIZE, 2000,
			     &lab->remote, &err),
		0, "%s", err.message);
}

static void remote_lab_destroy(struct remote_lab *lab)
{
	smv_remote_close(lab->remote);
	smv_backing_free(&lab->backing);
	stub_host_destroy(&lab->hosts[0]);
	stub_host_destroy(&lab->hosts[1]);
}

/* Wait for the completions of @n requests; returns how many failed. */
static unsigned int finish(struct smv_remote *remote, unsigned int n)
{
	uint64_t deadline = smv_now_ns() + 10 * SMV_NS_PER_S;
	unsigned int failed = 0;

	while (n) {
		struct smv_remote_completion c[8];
		struct pollfd fds[SMV_SUB_HOSTS_MAX];
		unsigned int got = smv_remote_poll(remote, c, 8);
		int timeout = 1000, nr;

		for (unsigned int i = 0; i < got; i++)
			failed += c[i].status < 0;
		n -= got;
		if (!got && (nr = smv_remote_pollfds(remote, fds, &timeout)) >= 0)
			poll(fds, (nfds_t)nr, timeout);
		cr_assert_lt(smv_now_ns(), deadline, "%u requests never complete", n);
	}
	return failed;
}

static void round_trip(const char *transport)
{
	struct remote_lab lab;
	unsigned char *staging;
	uint64_t total = 0;

	remote_lab_create(&lab, transport);
	staging = smv_remote_staging(lab.remote);
	/* The last 32 slots of each extent at once, then the first 64 pages of staging anew. */
	for (uint64_t e = 0; e < lab.backing.nr_extents; e++) {
		for (unsigned int i = 0; i < 32 * SMV_PAGE_SIZE; i++)
			staging[i] = (unsigned char)((e + 1) * (i / 7 + i % 4096));
		cr_assert_eq(
			smv_remote_post(lab.remote, SMV_OP_WRITE, e * 512 + 480, 32, staging, e),
			0);
		cr_assert_eq(finish(lab.remote, 1), 0);
		cr_assert_arr_eq(stub_slot(lab.hosts, &lab.backing, e * 512 + 480), staging,
			32 * SMV_PAGE_SIZE);
	}
	for (uint64_t e = 0; e < lab.backing.nr_extents; e++)
		cr_assert_eq(smv_remote_post(lab.remote, SMV_OP_READ, e * 512 + 500, 1,
				     staging + e * SMV_PAGE_SIZE, e),
			0);
	cr_assert_eq(finish(lab.remote, (unsigned int)lab.backing.nr_extents), 0);
	cr_assert_eq(smv_remote_in_flight(lab.remote), 0);
	for (uint64_t e = 0; e < lab.backing.nr_extents; e++)
		cr_assert_arr_eq(stub_slot(lab.hosts, &lab.backing, e * 512 + 500),
			staging + e * SMV_PAGE_SIZE, SMV_PAGE_SIZE);
	for (unsigned int h = 0; h < 2; h++) {
		cr_assert_eq(smv_remote_bytes_of(lab.remote, h).written,
			(h ? 2 : 4) * 32 * SMV_PAGE_SIZE);
		total += smv_remote_bytes_of(lab.remote, h).read;
	}
	cr_assert_eq(total, 6 * SMV_PAGE_SIZE);
	remote_lab_destroy(&lab);
}

Test(remote, pages_come_back_as_they_went_tcp)
{
	round_trip("tcp");
}

Test(remote, pages_come_back_as_they_went_mem)
{
	round_trip("mem");
}

static void mending(const char *transport)
{
	struct remote_lab lab;
	struct smv_error err = {0};
	unsigned char *staging;
	uint64_t slot = 0, other = 0, start;

	remote_lab_create(&lab, transport);
	while (smv_backing_locate(&lab.backing, slot).sub_host != 1)
		slot += 512;
	while (smv_backing_locate(&lab.backing, other).sub_host != 0)
		other += 512;
	staging = smv_remote_staging(lab.remote);
	memset(staging, 0x5a, SMV_PAGE_SIZE);
	cr_assert_eq(smv_remote_post(lab.remote, SMV_OP_WRITE, slot, 1, staging, 1), 0);
	cr_assert_eq(finish(lab.remote, 1), 0);
	cr_assert_eq(smv_remote_mend(lab.remote, &err), 0);

	stub_host_down(&lab.hosts[1]);
	start = smv_now_ns();
	while (smv_remote_post(lab.remote, SMV_OP_READ, slot, 1, staging, 2) == 0)
		cr_assert_eq(finish(lab.remote, 1), 1, "a dead sub-host answered");
	/* The transport knows before the wrapper does; polling tells it. */
	while (smv_remote_mend(lab.remote, &err) == 0) {
		struct smv_remote_completion c;

		cr_assert_eq(smv_remote_poll(lab.remote, &c, 1), 0);
		cr_assert_lt(smv_now_ns() - start, 5 * SMV_NS_PER_S);
	}
	cr_assert_eq(smv_remote_post(lab.remote, SMV_OP_READ, slot, 1, staging, 2), -ENOTCONN);
	cr_assert(strstr(err.message, "sub-host-1"), "%s", err.message);
	/* The other sub-host does not suffer. */
	cr_assert_eq(smv_remote_post(lab.remote, SMV_OP_WRITE, other, 1, staging, 3), 0);
	cr_assert_eq(finish(lab.remote, 1), 0);
	smv_sleep_ms(150);
	cr_assert_eq(smv_remote_mend(lab.remote, &err), 1, "nobody listens there");

	stub_host_up(&lab.hosts[1]);
	start = smv_now_ns();
	while (smv_remote_mend(lab.remote, &err)) {
		cr_assert_lt(smv_now_ns() - start, 5 * SMV_NS_PER_S, "%s", err.message);
		smv_sleep_ms(5);
	}
	memset(staging, 0, SMV_PAGE_SIZE);
	cr_assert_eq(smv_remote_post(lab.remote, SMV_OP_READ, slot, 1, staging, 4), 0);
	cr_assert_eq(finish(lab.remote, 1), 0);
	cr_assert_eq(staging[SMV_PAGE_SIZE - 1], 0x5a);
	/* The bytes of the lost connection stay counted. */
	cr_assert_eq(smv_remote_bytes_of(lab.remote, 1).written, SMV_PAGE_SIZE);
	cr_assert_eq(smv_remote_bytes_of(lab.remote, 1).read, SMV_PAGE_SIZE);
	remote_lab_destroy(&lab);
}

Test(remote, a_dead_sub_host_gives_errors_until_it_is_back_tcp)
{
	mending("tcp");
}

Test(remote, a_dead_sub_host_gives_errors_until_it_is_back_mem)
{
	mending("mem");
}

/* Mend until sub-host 1 is known to be lost for @ms; returns how long that took. */
static uint64_t mend_until_lost(struct remote_lab *lab, unsigned int ms)
{
	uint64_t start = smv_now_ns();

	while (!smv_remote_lost(lab->remote, 1, ms)) {
		smv_remote_mend(lab->remote, NULL);
		cr_assert_lt(smv_now_ns() - start, 20 * SMV_NS_PER_S);
		smv_sleep_ms(2);
	}
	return smv_now_ns() - start;
}

Test(remote, a_loss_is_confirmed_only_without_a_break)
{
	struct smv_remote_completion c;
	struct remote_lab lab;
	struct smv_error err = {0};
	uint64_t slot = 0;

	remote_lab_create(&lab, "mem");
	while (smv_backing_locate(&lab.backing, slot).sub_host != 1)
		slot += 512;
	cr_assert_not(smv_remote_lost(lab.remote, 1, 0));
	stub_host_lose(&lab.hosts[1]);
	smv_remote_poll(lab.remote, &c, 1);
	mend_until_lost(&lab, 0);
	cr_assert_not(smv_remote_lost(lab.remote, 0, 0));
	cr_assert_eq(smv_remote_post(
			     lab.remote, SMV_OP_READ, slot, 1, smv_remote_staging(lab.remote), 1),
		-ENODATA);
	/* It is away: still lost as far as is known, but what was said before counts no more. */
	atomic_store(&lab.hosts[1].lost, false);
	while (smv_remote_mend(lab.remote, &err) && err.code == SMV_DATA_LOSS)
		smv_sleep_ms(2);
	cr_assert_eq(err.code, SMV_UNAVAILABLE, "%s", err.message);
	cr_assert(smv_remote_lost(lab.remote, 1, 0));
	smv_sleep_ms(1000);
	cr_assert_not(smv_remote_lost(lab.remote, 1, 900));
	atomic_store(&lab.hosts[1].lost, true);
	cr_assert_geq(mend_until_lost(&lab, 900), 900 * SMV_NS_PER_MS);
	/* Only a connection shows that it was not so. */
	stub_host_regain(&lab.hosts[1]);
	while (smv_remote_mend(lab.remote, &err))
		smv_sleep_ms(2);
	cr_assert_not(smv_remote_lost(lab.remote, 1, 0));
	remote_lab_destroy(&lab);
}

/* --- the pager ---------------------------------------------------------------------------- */

static struct stub_lab lab;

static const struct stub_options usual = {.transport = "mem",
	.seed = 1,
	.nr_blocks = 1,
	.nr_pages = NR_PAGES,
	.budget_pages = BUDGET,
	.nr_extents = NR_RANGES,
	.hot_percent = 30,
	.zero_percent = 10,
	.write_percent = 30};

static void lab_open(struct stub_options options)
{
	struct smv_error err = {0};

	if (smv_kernel_check(&err) < 0)
		cr_skip_test("%s", err.message);
	smv_log_set_level(SMV_LOG_ERROR);
	stub_lab_create(&lab, &options);
}

static void lab_close(void)
{
	stub_lab_stop(&lab);
	cr_assert_eq(stub_audit(&lab), 0);
	stub_lab_destroy(&lab);
}

static bool trouble_has(const char *text)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return strstr(lab.stats.trouble, text);
}

static void wait_for(bool (*what)(void), unsigned int seconds)
{
	uint64_t end = smv_now_ns() + seconds * SMV_NS_PER_S;

	while (!what()) {
		cr_assert_lt(smv_now_ns(), end, "trouble: '%s'", lab.stats.trouble);
		stub_watch(&lab, 5);
	}
}

static uint64_t checks_before;

static bool threads_go_on(void)
{
	return lab.checks > checks_before + 2000;
}

/* The last page is counted a moment after its thread goes on. */
static bool every_read_is_a_page_in(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return lab.stats.bytes_read == lab.stats.page_ins * SMV_PAGE_SIZE;
}

static void stress(struct stub_options options, unsigned int ms)
{
	lab_open(options);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, ms);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0, "%lu of %lu", lab.mismatches, lab.checks);
	/* Two files cannot be looked at in one moment: a page that left one while another came
	 * into the second may be counted twice. */
	cr_assert_leq(lab.max_resident, BUDGET + (options.nr_blocks == 1 ? 0 : SMV_EVICT_BATCH),
		"%lu", lab.max_resident);
	wait_for(every_read_is_a_page_in, 5);
	cr_assert_gt(lab.stats.page_ins, NR_PAGES - BUDGET);
	cr_assert_gt(lab.stats.evictions, NR_PAGES - BUDGET);
	cr_assert_gt(lab.stats.evictions_clean, 0);
	cr_assert_lt(lab.stats.evictions_clean, lab.stats.evictions);
	cr_assert_geq(lab.stats.faults, lab.stats.page_ins + lab.stats.zero_fills);
	cr_assert_leq(lab.stats.latency_ns_p50, lab.stats.latency_ns_max);
	cr_assert_str_empty(lab.trouble);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 0);
	lab_close();
}

Test(pager, memory_stays_right_within_the_budget_tcp)
{
	struct stub_options o = usual;

	o.transport = "tcp";
	o.seed = 2;
	stress(o, 2000);
}

Test(pager, memory_stays_right_in_two_ram_blocks)
{
	struct stub_options o = usual;

	o.nr_blocks = 2;
	o.seed = 3;
	stress(o, 1500);
}

Test(pager, memory_stays_right_when_it_is_mostly_written)
{
	struct stub_options o = usual;

	o.write_percent = 80;
	o.zero_percent = 30;
	o.seed = 4;
	stress(o, 1000);
}

Test(pager, slots_are_given_up_when_room_is_short)
{
	struct stub_options o = usual;

	/* What the main host does not hold, and a few extents. */
	o.nr_extents = (NR_PAGES - BUDGET) / SMV_EXTENT_PAGES + 2;
	o.hot_percent = 100;
	o.zero_percent = 0;
	o.seed = 5;
	stress(o, 1500);
	cr_assert_lt(lab.min_free_slots, SMV_EVICT_BATCH, "room was never short");
}

Test(pager, installing_again_overwrites)
{
	struct stub_options o = usual;
	char data[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE))) = {0};
	uint64_t hot;

	o.hot_percent = 100;
	o.zero_percent = 0;
	lab_open(o);
	hot = smv_pagemap_count(&lab.map, SMV_PAGE_LOCAL);
	cr_assert_eq(hot, smv_pager_hot_credit(BUDGET));
	/* The credit is used up; a newer version needs none. */
	cr_assert_eq(smv_pager_install(lab.pager, NR_PAGES - 1, data, 0), -ENOSPC);
	stub_page_fill(&lab, data, 5, 33);
	lab.versions[5] = 33;
	cr_assert_eq(smv_pager_install(lab.pager, 5, data, smv_page_checksum(data)), 0);
	cr_assert_eq(stub_vm_resident(&lab.vm), hot);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

static void *write_zeros(void *arg)
{
	for (uint64_t page = 0; page < NR_PAGES; page++)
		stub_write(arg, page, 0);
	return NULL;
}

static void *write_all(void *arg)
{
	for (uint64_t page = 0; page < NR_PAGES; page++)
		stub_write(arg, page, (uint32_t)page + 1);
	return NULL;
}

Test(pager, pages_of_zeros_need_no_slot)
{
	struct stub_options o = usual;
	uint64_t zero_fills;

	o.hot_percent = o.zero_percent = 0;
	lab_open(o);
	cr_assert_eq(lab.slots.nr_free, 0);
	stub_lab_start(&lab);
	stub_run(&lab, write_zeros);
	smv_pager_stats(lab.pager, &lab.stats);
	zero_fills = lab.stats.zero_fills;
	/* Everything but what is here is ZERO, and only what is here may have a slot. */
	stub_run(&lab, stub_read_all);
	smv_pager_stats(lab.pager, &lab.stats);
	cr_assert_gt(lab.stats.zero_fills, zero_fills + NR_PAGES - 2 * BUDGET);
	cr_assert_geq(smv_pagemap_count(&lab.map, SMV_PAGE_ZERO), NR_PAGES - BUDGET);
	cr_assert_geq(lab.slots.nr_free, NR_PAGES - BUDGET);
	/* Zeros that were only read are given up without a look at them. */
	cr_assert_gt(lab.stats.evictions_clean, NR_PAGES - 2 * BUDGET);
	cr_assert_eq(lab.stats.bytes_written, 0);
	stub_run(&lab, write_all);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

static uint64_t victim;

static void *touch_victim(void *arg)
{
	stub_read(arg, victim);
	return NULL;
}

static void find_victim(enum smv_page_state state)
{
	while (smv_word_state(smv_pagemap_get(&lab.map, victim)) != state)
		victim++;
}

static bool is_stalled(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return lab.stats.stalls.present_ns > 0;
}

static bool is_not_stalled(void)
{
	return !is_stalled();
}

static bool victim_is_lost(void)
{
	return smv_word_state(smv_pagemap_get(&lab.map, victim)) == SMV_PAGE_LOST;
}

/* A thread touches the victim: it must become LOST and the thread wait, until the test itself puts
 * the right page in place. */
static void lose_victim(void)
{
	char data[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE)));
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, touch_victim, &lab), 0);
	wait_for(victim_is_lost, 10);
	cr_assert(trouble_has("lost"), "%s", lab.stats.trouble);
	smv_sleep_ms(50);
	cr_assert_eq(lab.checks, 0, "the thread went on with a lost page");
	wait_for(is_stalled, 10);
	cr_assert_eq(smv_events_count(SMV_EVENT_PAGE_LOST), 1);
	stub_page_fill(&lab, data, victim, lab.versions[victim]);
	cr_assert_eq(smv_uffd_copy(lab.vm.uffd, (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, victim),
			     data, false),
		0);
	pthread_join(thread, NULL);
	cr_assert_eq(lab.checks, 1);
	cr_assert_eq(lab.mismatches, 0);
	/* The others are served as before. */
	victim = victim ? 0 : 1;
	stub_run(&lab, touch_victim);
	cr_assert_eq(lab.checks, 2);
	cr_assert_eq(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

/* --- takeover ----------------------------------------------------------------------------- */

/* The n-th page after @from that is in this state. */
static uint64_t page_in(enum smv_page_state state, uint64_t from)
{
	while (smv_word_state(smv_pagemap_get(&lab.map, from)) != state)
		from++;
	return from;
}

static void put_in_file(uint64_t page, uint32_t version, bool wp)
{
	char data[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE)));

	stub_page_fill(&lab, data, page, version);
	cr_assert_eq(smv_uffd_copy(lab.vm.uffd, (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, page),
			     data, wp),
		0);
}

static uint64_t fresh_slot(void)
{
	uint64_t slot;

	cr_assert_eq(smv_slots_alloc(&lab.slots, 1, &slot), 1);
	return slot;
}

/* What an acknowledged write leaves behind. */
static smv_page_word saved_copy(uint64_t page, uint64_t slot)
{
	unsigned char *data = stub_slot(lab.hosts, &lab.backing, slot);

	stub_page_fill(&lab, data, page, lab.versions[page]);
	return smv_word(SMV_PAGE_SAVED, slot, smv_page_checksum(data)) | SMV_WORD_REMOTE_VALID;
}

static void punch_page(uint64_t page)
{
	cr_assert_eq(madvise(stub_vm_page(&lab.vm, page), SMV_PAGE_SIZE, MADV_REMOVE), 0);
}

static void zap_page(uint64_t page)
{
	cr_assert_eq(
		stub_vm_zap(NULL, (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, page), SMV_PAGE_SIZE),
		0);
}

static uint64_t left_page;

static void *touch_left_page(void *arg)
{
	stub_read(arg, left_page);
	return NULL;
}

/* A thread faults, and the pager dies with its message. */
static void fault_and_forget(uint64_t page, pthread_t *thread)
{
	struct pollfd fd = {.fd = lab.vm.uffd, .events = POLLIN};
	struct uffd_msg msg;

	left_page = page;
	cr_assert_eq(pthread_create(thread, NULL, touch_left_page, &lab), 0);
	cr_assert_eq(poll(&fd, 1, 5000), 1);
	cr_assert_eq(read(lab.vm.uffd, &msg, sizeof(msg)), sizeof(msg));
}

Test(takeover, every_state_on_the_way_is_settled_and_served)
{
	struct stub_options o = usual;
	struct smv_taken_over report;
	struct smv_error err = {0};
	uint64_t p[12], cold = 0, hot = 0, zero = 0, n;
	pthread_t waiter;
	smv_page_word w;

	o.nr_blocks = 2;
	o.nr_extents = NR_RANGES + 2;
	lab_open(o);
	for (int i = 0; i < 4; i++) {
		p[i] = cold = page_in(SMV_PAGE_COLD, cold + 1);
		p[4 + i] = hot = page_in(SMV_PAGE_LOCAL, hot + 1);
		p[8 + i] = zero = page_in(SMV_PAGE_ZERO, zero + 1);
	}
	/* FETCHING: not done; with a waiter whose message is lost; done; done and written since. */
	for (int i = 0; i < 4; i++) {
		w = smv_pagemap_get(&lab.map, p[i]);
		smv_pagemap_set(&lab.map, p[i], smv_word_with_state(w, SMV_PAGE_FETCHING));
	}
	fault_and_forget(p[1], &waiter);
	w = smv_pagemap_get(&lab.map, p[1]);
	smv_pagemap_set(&lab.map, p[1], w | SMV_WORD_WAITER);
	put_in_file(p[2], 1, true);
	put_in_file(p[3], 1, true);
	stub_write(&lab, p[3], 77);
	/* OUT, its slot half written; SAVED; SAVED and punched; ZAPPING. */
	for (int i = 4; i < 8; i++)
		zap_page(p[i]);
	n = fresh_slot();
	memset(stub_slot(lab.hosts, &lab.backing, n), 0x66, 100);
	smv_pagemap_set(&lab.map, p[4], smv_word(SMV_PAGE_OUT, n, 1) | SMV_WORD_REMOTE_VALID);
	smv_pagemap_set(&lab.map, p[5], saved_copy(p[5], fresh_slot()));
	smv_pagemap_set(&lab.map, p[6], saved_copy(p[6], fresh_slot()));
	punch_page(p[6]);
	w = smv_pagemap_get(&lab.map, p[7]);
	smv_pagemap_set(&lab.map, p[7], smv_word_with_activity(w, SMV_PAGE_ZAPPING));
	/* ZERO: placed; placed and written; SAVED as zeros and punched; COLD, and data is there. */
	put_in_file(p[8], 0, true);
	put_in_file(p[9], 0, false);
	stub_write(&lab, p[9], 78);
	smv_pagemap_set(&lab.map, p[10],
		smv_word(SMV_PAGE_SAVED, SMV_SLOT_NONE, 0) | SMV_WORD_REMOTE_VALID);
	p[11] = page_in(SMV_PAGE_COLD, cold + 1);
	put_in_file(p[11], 1234, false);
	zap_page(p[11]);

	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	cr_assert_eq(report.fetching, 4);
	cr_assert_eq(report.out, 1);
	cr_assert_eq(report.saved, 3);
	cr_assert_eq(report.placed, 2);
	cr_assert_eq(report.punched, 1);
	cr_assert_eq(report.lost, 0);
	cr_assert_eq(stub_audit(&lab), 0);
	stub_lab_start(&lab);
	pthread_join(waiter, NULL);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	stub_stress_start(&lab);
	stub_watch(&lab, 500);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	cr_assert_leq(lab.max_resident, BUDGET + SMV_EVICT_BATCH);
	lab_close();
}

static void out_and_gone(struct smv_taken_over *report)
{
	struct smv_error err = {0};

	lab_open(usual);
	smv_log_set_level(-1);
	victim = page_in(SMV_PAGE_LOCAL, 0);
	zap_page(victim);
	punch_page(victim);
	smv_pagemap_set(&lab.map, victim,
		smv_word_with_state(smv_pagemap_get(&lab.map, victim), SMV_PAGE_OUT));
	cr_assert_eq(stub_lab_take_over(&lab, report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
}

Test(takeover, an_evicted_page_that_is_gone_is_lost_and_never_zeros)
{
	struct smv_taken_over report;

	out_and_gone(&report);
	cr_assert_eq(report.lost, 1);
	cr_assert(victim_is_lost());
	lose_victim();
}

Test(takeover, a_broken_map_is_refused_and_left_as_it_is)
{
	struct stub_options o = usual;
	struct smv_taken_over report;
	struct smv_error err = {0};
	uint64_t a, b, sum = 0, after = 0;
	smv_page_word good;

	lab_open(o);
	smv_log_set_level(-1);
	a = page_in(SMV_PAGE_COLD, 0);
	b = page_in(SMV_PAGE_COLD, a + 1);
	/* One that a takeover would settle. */
	smv_pagemap_set(
		&lab.map, a, smv_word_with_state(smv_pagemap_get(&lab.map, a), SMV_PAGE_FETCHING));
	good = smv_pagemap_get(&lab.map, b);
	const smv_page_word bad[] = {
		smv_word_with_slot(good, smv_word_slot(smv_pagemap_get(&lab.map, a))),
		smv_word_with_slot(good, o.nr_extents * SMV_EXTENT_PAGES),
		smv_word_with_slot(good, SMV_SLOT_NONE), smv_word_with_state(good, 13)};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		atomic_store(&lab.map.words[b], bad[i]);
		sum = after = 0;
		for (uint64_t page = 0; page < NR_PAGES; page++)
			sum += smv_pagemap_get(&lab.map, page) * (page + 1);
		cr_assert_lt(stub_lab_take_over(&lab, &report, &err), 0, "case %zu", i);
		cr_assert_eq(err.code, SMV_DATA_LOSS);
		cr_assert(strstr(err.hint, "end the VM"));
		for (uint64_t page = 0; page < NR_PAGES; page++)
			after += smv_pagemap_get(&lab.map, page) * (page + 1);
		cr_assert_eq(sum, after);
	}
	atomic_store(&lab.map.words[b], good);
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

static bool victim_was_read(void)
{
	return lab.checks > 0;
}

Test(takeover, a_sub_host_that_is_away_holds_up_only_its_own_pages)
{
	struct smv_taken_over report;
	struct smv_error err = {0};
	struct stub_options o = usual;
	pthread_t thread;
	uint64_t away = 0;

	o.transport = "tcp";
	lab_open(o);
	smv_log_set_level(-1);
	do
		away = page_in(SMV_PAGE_COLD, away + 1);
	while (smv_backing_locate(&lab.backing, smv_word_slot(smv_pagemap_get(&lab.map, away)))
			.sub_host != 1);
	do
		victim = page_in(SMV_PAGE_COLD, victim + 1);
	while (smv_backing_locate(&lab.backing, smv_word_slot(smv_pagemap_get(&lab.map, victim)))
			.sub_host != 0);
	stub_host_down(&lab.hosts[1]);
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim);
	left_page = away;
	lab.checks = 0;
	cr_assert_eq(pthread_create(&thread, NULL, touch_left_page, &lab), 0);
	smv_sleep_ms(300);
	cr_assert_eq(lab.checks, 0);
	cr_assert(trouble_has("sub-host-1"), "%s", lab.stats.trouble);
	stub_host_up(&lab.hosts[1]);
	wait_for(victim_was_read, 10);
	pthread_join(thread, NULL);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

/* --- a budget that changes ---------------------------------------------------------------- */

#define SMALL (BUDGET / 3)

static uint64_t bound;

static bool resident_is_within_bound(void)
{
	return stub_vm_resident(&lab.vm) <= bound;
}

/* Shrink, and see that it is kept from when it is reached on. */
static void shrink_to(uint64_t budget)
{
	smv_pager_set_budget(lab.pager, budget);
	bound = budget;
	wait_for(resident_is_within_bound, 10);
	lab.max_resident = 0;
	stub_watch(&lab, 500);
	cr_assert_leq(lab.max_resident, budget, "%lu", lab.max_resident);
	cr_assert_leq(smv_pager_held(lab.pager), budget);
}

static bool memory_is_used(void)
{
	return stub_vm_resident(&lab.vm) > BUDGET - 2 * BUDGET / 16;
}

static void stress_ends_well(void)
{
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0, "%lu of %lu", lab.mismatches, lab.checks);
	cr_assert_gt(lab.checks, NR_PAGES);
	cr_assert_str_empty(lab.trouble);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 0);
	lab_close();
}

Test(budget, shrinks_and_grows_under_stress)
{
	struct stub_options o = usual;

	o.seed = 11;
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, 300);
	shrink_to(SMALL);
	/* A page-in that waited for a frame goes on when the budget grows. */
	smv_pager_set_budget(lab.pager, BUDGET);
	wait_for(memory_is_used, 10);
	shrink_to(BUDGET / 2);
	stress_ends_well();
}

Test(budget, flaps_at_random_under_stress)
{
	struct stub_options o = usual;

	o.seed = 12;
	o.transport = "tcp";
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	cr_assert_gt(stub_flap(&lab, SMALL, BUDGET, 2000), 20);
	cr_assert_leq(lab.max_resident, BUDGET);
	shrink_to(SMALL);
	stress_ends_well();
}

/* Room for the large budget only: what is leased for the small one makes it possible. */
static void lab_open_tight(void)
{
	struct stub_options o = usual;

	o.seed = 13;
	o.nr_extents = (NR_PAGES - BUDGET) / SMV_EXTENT_PAGES + 2;
	o.spare_extents = (BUDGET - SMALL) / SMV_EXTENT_PAGES + 1;
	o.hot_percent = 100;
	o.zero_percent = 0;
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, 300);
}

Test(budget, shrinks_into_room_that_was_added_while_the_vm_runs)
{
	uint64_t page_ins, bytes_written;

	lab_open_tight();
	smv_pager_stats(lab.pager, &lab.stats);
	page_ins = lab.stats.page_ins;
	bytes_written = lab.stats.bytes_written;
	stub_lab_grow(&lab, lab.o.spare_extents / 2);
	stub_lab_grow(&lab, lab.o.spare_extents - lab.o.spare_extents / 2);
	cr_assert_eq(lab.backing.nr_sub_hosts, STUB_HOSTS + 2);
	shrink_to(SMALL);
	smv_pager_stats(lab.pager, &lab.stats);
	cr_assert_gt(lab.stats.page_ins, page_ins, "what was counted is lost");
	cr_assert_gt(lab.stats.bytes_written, bytes_written);
	stress_ends_well();
}

static bool no_slot_is_free(void)
{
	return trouble_has("no slot is free");
}

static bool no_trouble_is_left(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return !lab.stats.trouble[0];
}

/* Why more room must be leased before a budget shrinks. */
Test(budget, without_room_it_is_not_reached_and_nothing_is_lost)
{
	lab_open_tight();
	smv_log_set_level(-1);
	smv_pager_set_budget(lab.pager, SMALL);
	wait_for(no_slot_is_free, 10);
	cr_assert_eq(smv_events_count(SMV_EVENT_EVICTION_BLOCKED), 1);
	cr_assert_gt(stub_vm_resident(&lab.vm), 2 * SMALL);
	/* Both ways out: the old budget, and the room. */
	smv_pager_set_budget(lab.pager, BUDGET);
	checks_before = lab.checks;
	wait_for(threads_go_on, 10);
	stub_lab_grow(&lab, lab.o.spare_extents);
	shrink_to(SMALL);
	wait_for(no_trouble_is_left, 10);
	cr_assert_geq(smv_events_count(SMV_EVENT_EVICTION_GOES_ON), 1);
	lab.trouble[0] = '\0';
	stress_ends_well();
}

/* --- discards ----------------------------------------------------------------------------- */

static bool books_are_right(void)
{
	uint64_t in_range[NR_RANGES] = {0};
	int64_t local = 0, inactive = 0;

	for (uint64_t page = 0; page < NR_PAGES; page++) {
		smv_page_word word = smv_pagemap_get(&lab.map, page);

		if (smv_word_state(word) != SMV_PAGE_LOCAL)
			continue;
		local++;
		inactive += smv_word_activity(word) == SMV_PAGE_INACTIVE;
		in_range[page / SMV_EXTENT_PAGES]++;
	}
	for (unsigned int r = 0; r < NR_RANGES; r++)
		if (lab.pager->range_local[r] != in_range[r])
			return false;
	return lab.pager->frames_free == (int64_t)BUDGET - local &&
	       lab.pager->nr_inactive == inactive;
}

static bool is_zero_and_gone(uint64_t page)
{
	const struct smv_ram_block *b = smv_guest_ram_block_of(&lab.vm.ram, page);
	off_t at = (off_t)(b->file_offset + (page - b->first_page) * SMV_PAGE_SIZE);

	return smv_pagemap_get(&lab.map, page) == smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0) &&
	       lseek(b->fd, at, SEEK_DATA) != at;
}

static void give_back_slot(uint64_t page)
{
	smv_slots_free(&lab.slots, smv_word_slot(smv_pagemap_get(&lab.map, page)));
}

/* LOCAL, in the version that it has; its slot is given back. */
static void make_local(uint64_t page)
{
	char data[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE)));

	give_back_slot(page);
	stub_page_fill(&lab, data, page, lab.versions[page]);
	cr_assert_eq(smv_pager_install(lab.pager, page, data, smv_page_checksum(data)), 0);
}

/* LOCAL and not written since it was written to its slot: it has a marker. */
static void make_clean(uint64_t page)
{
	uint64_t slot = fresh_slot();

	make_local(page);
	cr_assert_eq(smv_uffd_write_protect(lab.vm.uffd,
			     (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, page), SMV_PAGE_SIZE),
		0);
	smv_pagemap_set(
		&lab.map, page, smv_word_with_state(saved_copy(page, slot), SMV_PAGE_LOCAL));
}

static struct stub_options all_cold(void)
{
	struct stub_options o = usual;

	o.nr_blocks = 2;
	o.nr_extents = NR_RANGES + 2;
	o.hot_percent = o.zero_percent = 0;
	return o;
}

Test(discards, every_state_becomes_zero)
{
	const uint64_t p = NR_PAGES / 2 + 98; /* on both sides of the border of the blocks */
	uint64_t nr_free;

	lab_open(all_cold());
	make_local(p + 1);
	make_clean(p + 2);
	for (uint64_t i = 3; i <= 4; i++) {
		make_local(p + i);
		zap_page(p + i);
		smv_pagemap_set(&lab.map, p + i,
			smv_word_with_activity(smv_pagemap_get(&lab.map, p + i),
				i == 3 ? SMV_PAGE_INACTIVE : SMV_PAGE_ZAPPING));
	}
	lab.pager->nr_inactive++;
	for (uint64_t i = 5; i <= 6; i++) {
		give_back_slot(p + i);
		smv_pagemap_set(&lab.map, p + i, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	}
	put_in_file(p + 6, 1, false);
	smv_pagemap_set(&lab.map, p + 7,
		smv_word_with_state(smv_pagemap_get(&lab.map, p + 7), SMV_PAGE_LOST));
	give_back_slot(p + 8);
	smv_pagemap_set(&lab.map, p + 8, smv_word(SMV_PAGE_LOST, SMV_SLOT_NONE, 0));
	give_back_slot(p + 9);
	smv_pagemap_set(&lab.map, p + 9, 0);
	cr_assert(books_are_right());
	nr_free = lab.slots.nr_free;
	stub_lab_start(&lab);
	stub_discard(&lab, p, 10);
	for (uint64_t i = 0; i < 9; i++)
		cr_assert(is_zero_and_gone(p + i), "page %lu", i);
	cr_assert_eq(smv_pagemap_get(&lab.map, p + 9), 0, "never reported, and now it is?");
	cr_assert_eq(lab.slots.nr_free, nr_free + 3);
	cr_assert(books_are_right());
	smv_pager_stats(lab.pager, &lab.stats);
	cr_assert_eq(lab.stats.discards, 7);
	/* Again: nothing to do, nothing goes wrong. */
	stub_discard(&lab, p, 9);
	cr_assert_eq(lab.slots.nr_free, nr_free + 3);
	smv_pagemap_set(&lab.map, p + 9, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	/* What is written after a discard stays. */
	stub_write(&lab, p + 2, 5);
	stub_write(&lab, p + 3, 6);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	wait_for(books_are_right, 5);
	lab_close();
}

static _Atomic bool returned;

static void *discard_five(void *arg)
{
	stub_discard(arg, victim, 5);
	returned = true;
	return NULL;
}

static bool both_ends_are_zero(void)
{
	return is_zero_and_gone(victim) && is_zero_and_gone(victim + 4);
}

static void moved_to(uint64_t page, enum smv_page_state state)
{
	smv_pagemap_lock(&lab.map, page);
	smv_pagemap_set(
		&lab.map, page, smv_word_with_state(smv_pagemap_get(&lab.map, page), state));
	smv_pagemap_unlock(&lab.map, page);
}

Test(discards, a_page_on_its_way_holds_up_no_other_and_is_not_forgotten)
{
	pthread_t thread;

	lab_open(all_cold());
	victim = 100;
	make_clean(victim + 2);
	moved_to(victim + 1, SMV_PAGE_FETCHING);
	moved_to(victim + 2, SMV_PAGE_OUT);
	moved_to(victim + 3, SMV_PAGE_SAVED);
	stub_lab_start(&lab);
	cr_assert_eq(pthread_create(&thread, NULL, discard_five, &lab), 0);
	wait_for(both_ends_are_zero, 5);
	smv_sleep_ms(30);
	cr_assert_not(returned);
	moved_to(victim + 3, SMV_PAGE_COLD);
	moved_to(victim + 1, SMV_PAGE_COLD);
	smv_sleep_ms(30);
	cr_assert_not(returned);
	cr_assert_eq(smv_word_state(smv_pagemap_get(&lab.map, victim + 2)), SMV_PAGE_OUT);
	moved_to(victim + 2, SMV_PAGE_LOCAL);
	pthread_join(thread, NULL);
	for (uint64_t i = 0; i < 5; i++)
		cr_assert(is_zero_and_gone(victim + i));
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	wait_for(books_are_right, 5);
	lab_close();
}

Test(discards, wait_for_no_sub_host)
{
	lab_open(all_cold());
	smv_log_set_level(-1);
	stub_lab_start(&lab);
	stub_host_down(&lab.hosts[0]);
	stub_host_down(&lab.hosts[1]);
	stub_discard(&lab, 0, NR_PAGES);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_ZERO), NR_PAGES);
	stub_run(&lab, touch_victim);
	cr_assert_eq(lab.slots.nr_free, lab.slots.nr_extents * SMV_EXTENT_PAGES);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

static bool nobody_is_stalled(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return lab.stats.stalls.nr > 0 && lab.stats.stalls.present_ns == 0;
}

static bool somebody_is_stalled(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return lab.stats.stalls.present_ns > 0;
}

Test(discards, a_lost_page_is_nobodys_loss_any_more)
{
	pthread_t thread;

	lab_open(all_cold());
	smv_log_set_level(-1);
	victim = 7;
	stub_slot(lab.hosts, &lab.backing, smv_word_slot(smv_pagemap_get(&lab.map, victim)))[9] ^=
		1;
	lab.versions[victim] = 0;
	stub_lab_start(&lab);
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim, &lab), 0);
	wait_for(victim_is_lost, 10);
	cr_assert(trouble_has("lost"));
	wait_for(somebody_is_stalled, 10);
	cr_assert_eq(stub_ask_discard(&lab, 0, victim * SMV_PAGE_SIZE, SMV_PAGE_SIZE), 0);
	pthread_join(thread, NULL);
	cr_assert_eq(lab.mismatches, 0);
	cr_assert_not(trouble_has("lost"), "%s", lab.stats.trouble);
	wait_for(nobody_is_stalled, 10);
	lab_close();
}

Test(discards, bring_frames_and_slots_back)
{
	struct stub_options o = usual;

	lab_open(o);
	stub_lab_start(&lab);
	stub_run(&lab, write_all);
	stub_discard(&lab, 0, NR_PAGES);
	/* What the evictor had under way has come to its end, or the call had not returned. */
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_ZERO), NR_PAGES);
	cr_assert_eq(stub_vm_resident(&lab.vm), 0);
	cr_assert_eq(lab.slots.nr_free, lab.slots.nr_extents * SMV_EXTENT_PAGES);
	wait_for(books_are_right, 5);
	cr_assert_eq(lab.pager->frames_free, BUDGET);
	stub_run(&lab, write_all);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(discards, outside_the_ram_and_of_parts_of_pages_are_refused)
{
	const struct smv_ram_block *b;
	struct stub_options o = usual;

	o.nr_blocks = 2;
	lab_open(o);
	stub_lab_start(&lab);
	b = &lab.vm.ram.blocks[1];
	cr_assert_gt(b->file_offset, 0);
	const struct {
		unsigned int block;
		uint64_t offset, len;
	} bad[] = {{2, 0, 4096}, {UINT32_MAX, 0, 4096}, {0, 1, 4096}, {0, 0, 4095}, {1, 0, 4096},
		{1, b->file_offset - 4096, 8192}, {1, b->file_offset + b->size_bytes, 4096},
		{1, b->file_offset, b->size_bytes + 4096}, {0, 4096, UINT64_MAX - 4095},
		{0, UINT64_MAX - 4095, 4096}};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_eq(stub_ask_discard(&lab, bad[i].block, bad[i].offset, bad[i].len),
			-EINVAL, "case %zu", i);
	cr_assert_eq(stub_ask_discard(&lab, 1, b->file_offset, 0), 0);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

static void discarding(struct stub_options o)
{
	o.discard_percent = 5;
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, 1000);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0, "%lu of %lu", lab.mismatches, lab.checks);
	cr_assert_leq(lab.max_resident, BUDGET + SMV_EVICT_BATCH);
	cr_assert_gt(lab.stats.discards, 0);
	cr_assert_gt(lab.stats.page_ins, 0);
	cr_assert_gt(lab.stats.evictions, 0);
	cr_assert_str_empty(lab.trouble);
	wait_for(books_are_right, 5);
	lab_close();
}

Test(discards, memory_stays_right_while_pages_are_discarded)
{
	struct stub_options o = usual;

	o.transport = "tcp";
	o.nr_blocks = 2;
	o.write_percent = 50;
	o.seed = 11;
	discarding(o);
}

Test(discards, memory_stays_right_when_room_is_short_as_well)
{
	struct stub_options o = usual;

	o.nr_extents = (NR_PAGES - BUDGET) / SMV_EXTENT_PAGES + 2;
	o.hot_percent = 100;
	o.zero_percent = 0;
	o.seed = 12;
	discarding(o);
}

/* Died between record and hole: the page was clean, so it counts as zeros when it is evicted. */
Test(discards, that_were_not_finished_are_asked_for_again)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	lab_open(all_cold());
	victim = 50;
	for (uint64_t page = victim; page < victim + 5; page++) {
		make_clean(page);
		give_back_slot(page);
		smv_pagemap_set(&lab.map, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	}
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	cr_assert_eq(report.placed, 5);
	cr_assert_eq(smv_pagemap_get(&lab.map, victim),
		smv_word(SMV_PAGE_LOCAL, SMV_SLOT_NONE, 0) | SMV_WORD_REMOTE_VALID);
	stub_lab_start(&lab);
	discard_five(&lab);
	cr_assert(both_ends_are_zero());
	stub_write(&lab, victim + 1, 9);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	wait_for(books_are_right, 5);
	lab_close();
}

Test(discards, a_page_that_was_installed_can_be_taken_back)
{
	struct stub_options o = usual;
	uint64_t hot, cold;

	o.nr_blocks = 2;
	o.nr_extents = NR_RANGES + 2;
	lab_open(o);
	hot = page_in(SMV_PAGE_LOCAL, 0);
	cold = page_in(SMV_PAGE_COLD, 0);
	give_back_slot(cold);
	cr_assert_eq(smv_pager_uninstall(lab.pager, cold), 0);
	cr_assert_eq(smv_pager_uninstall(lab.pager, hot), 0);
	cr_assert_eq(smv_pager_uninstall(lab.pager, hot), 0, "ZERO stays ZERO");
	lab.versions[cold] = lab.versions[hot] = 0;
	cr_assert(is_zero_and_gone(cold));
	cr_assert(is_zero_and_gone(hot));
	cr_assert(books_are_right());
	cr_assert_eq(stub_audit(&lab), 0);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

/* --- losses and outages ------------------------------------------------------------------- */

Test(pager, a_page_with_a_wrong_checksum_is_lost_and_never_served)
{
	struct stub_options o = usual;

	o.zero_percent = 0;
	lab_open(o);
	smv_log_set_level(-1);
	find_victim(SMV_PAGE_COLD);
	stub_slot(lab.hosts, &lab.backing,
		smv_word_slot(smv_pagemap_get(&lab.map, victim)))[SMV_PAGE_SIZE - 1] ^= 1;
	stub_lab_start(&lab);
	lose_victim();
}

Test(pager, a_page_that_was_never_reported_is_not_taken_for_zeros)
{
	lab_open(usual);
	smv_log_set_level(-1);
	find_victim(SMV_PAGE_COLD);
	smv_pagemap_set(&lab.map, victim, 0);
	stub_lab_start(&lab);
	lose_victim();
}

Test(pager, a_hole_where_a_page_should_be_is_not_taken_for_zeros)
{
	lab_open(usual);
	smv_log_set_level(-1);
	find_victim(SMV_PAGE_LOCAL);
	cr_assert_eq(madvise(stub_vm_page(&lab.vm, victim), SMV_PAGE_SIZE, MADV_REMOVE), 0);
	stub_lab_start(&lab);
	/* A hole faults as missing, not as minor. */
	lose_victim();
}

static bool in_trouble(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return lab.stats.trouble[0];
}

static bool no_trouble(void)
{
	return !in_trouble();
}

static void outage(const char *transport)
{
	struct stub_options o = usual;

	o.transport = transport;
	o.seed = 6;
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, 300);
	stub_host_down(&lab.hosts[1]);
	wait_for(in_trouble, 10);
	/* Every thread comes to a page of that sub-host, and waits there. */
	do {
		checks_before = lab.checks;
		stub_watch(&lab, 150);
	} while (lab.checks != checks_before);
	cr_assert(in_trouble());
	stub_host_up(&lab.hosts[1]);
	wait_for(threads_go_on, 10);
	stub_watch(&lab, 500);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0, "%lu of %lu", lab.mismatches, lab.checks);
	cr_assert_leq(lab.max_resident, BUDGET);
	wait_for(no_trouble, 10);
	lab_close();
}

Test(pager, faults_wait_for_a_dead_sub_host_and_go_on_tcp)
{
	outage("tcp");
}

Test(pager, faults_wait_for_a_dead_sub_host_and_go_on_mem)
{
	outage("mem");
}

/* --- stalls ------------------------------------------------------------------------------- */

#define MS SMV_NS_PER_MS

static struct smv_sub_host made_up_hosts[2] = {{.address = "a"}, {.address = "b"}};
static const struct smv_backing made_up_backing = {.sub_hosts = made_up_hosts, .nr_sub_hosts = 2};
static struct smv_health health;
static struct smv_stalls stalls;

static void health_open(void)
{
	smv_log_set_level((enum smv_log_level) - 1);
	smv_events_reset();
	smv_health_init(&health, "vm", &made_up_backing);
}

static void health_close(void)
{
	smv_health_destroy(&health);
}

TestSuite(health, .init = health_open, .fini = health_close);

static void stalls_are(uint64_t nr, uint64_t ms, uint64_t max_ms)
{
	smv_health_stalls(&health, &stalls);
	cr_assert_eq(stalls.nr, nr, "%lu", stalls.nr);
	cr_assert_eq(stalls.ns / MS, ms, "%lu", stalls.ns);
	cr_assert_eq(stalls.max_ns / MS, max_ms, "%lu", stalls.max_ns);
	cr_assert_eq(stalls.present_ns, 0);
}

Test(health, a_stall_lasts_from_the_oldest_fault_to_the_last_that_waits_for_long)
{
	const uint64_t t = 1000 * MS;

	smv_health_waiting(&health, 0, t);
	smv_health_waiting(&health, t, t + 90 * MS);
	smv_health_waiting(&health, 0, t + 95 * MS);
	stalls_are(0, 0, 0);
	/* Two faults that overlap are one stall. */
	smv_health_waiting(&health, t, t + 110 * MS);
	smv_health_waiting(&health, t + 50 * MS, t + 200 * MS);
	smv_health_waiting(&health, t + 190 * MS, t + 250 * MS);
	stalls_are(1, 250, 250);
	/* The third one was waiting before that stall ended: no time counts twice. */
	smv_health_waiting(&health, t + 190 * MS, t + 300 * MS);
	smv_health_waiting(&health, 0, t + 400 * MS);
	stalls_are(2, 400, 250);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_STALLED), 0);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_SERVED_AGAIN), 0);
}

Test(health, a_long_stall_is_told_once_and_so_is_its_end)
{
	const uint64_t now = smv_now_ns(), since = now - 2000 * MS;

	smv_health_waiting(&health, since, now - 1000 * MS);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_STALLED), 0);
	smv_health_waiting(&health, since, now - 999 * MS);
	smv_health_waiting(&health, since, now - 500 * MS);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_STALLED), 1);
	smv_health_stalls(&health, &stalls);
	cr_assert_geq(stalls.present_ns, 2000 * MS);
	cr_assert_eq(stalls.nr, 1);
	cr_assert_eq(stalls.ns, stalls.present_ns);
	smv_health_waiting(&health, 0, now);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_SERVED_AGAIN), 1);
	stalls_are(1, 2000, 2000);
}

Test(health, time_without_a_pager_counts)
{
	smv_health_unserved(&health, 1000 * MS, 1050 * MS);
	stalls_are(0, 0, 0);
	smv_health_unserved(&health, 1000 * MS, 4000 * MS);
	stalls_are(1, 3000, 3000);
	/* What is read again afterwards began to wait before. */
	smv_health_waiting(&health, 3500 * MS, 4500 * MS);
	smv_health_waiting(&health, 0, 4600 * MS);
	stalls_are(2, 3600, 3000);
}

static void host_events(uint64_t down, uint64_t up, uint64_t lost)
{
	cr_assert_eq(smv_events_count(SMV_EVENT_SUB_HOST_DOWN), down);
	cr_assert_eq(smv_events_count(SMV_EVENT_SUB_HOST_UP), up);
	cr_assert_eq(smv_events_count(SMV_EVENT_SUB_HOST_LOST_DATA), lost);
}

Test(health, of_two_connections_the_worse_one_counts)
{
	cr_assert_eq(smv_health_host(&health, 1), SMV_HOST_UP);
	smv_health_sub_host(&health, SMV_ROLE_READER, 1, SMV_HOST_DOWN, "why");
	host_events(1, 0, 0);
	smv_health_sub_host(&health, SMV_ROLE_WRITER, 1, SMV_HOST_DOWN, "why");
	host_events(1, 0, 0);
	smv_health_sub_host(&health, SMV_ROLE_READER, 1, SMV_HOST_UP, NULL);
	host_events(1, 0, 0);
	cr_assert_eq(smv_health_host(&health, 1), SMV_HOST_DOWN);
	cr_assert_eq(smv_health_host(&health, 0), SMV_HOST_UP);
	smv_health_sub_host(&health, SMV_ROLE_WRITER, 1, SMV_HOST_LOST, "why");
	host_events(1, 0, 1);
	cr_assert_eq(smv_health_host(&health, 1), SMV_HOST_LOST);
	smv_health_sub_host(&health, SMV_ROLE_WRITER, 1, SMV_HOST_UP, NULL);
	host_events(1, 1, 1);
}

Test(health, eviction_is_told_when_it_changes)
{
	smv_health_eviction(&health, NULL);
	smv_health_eviction(&health, "no room");
	smv_health_eviction(&health, "another reason");
	cr_assert_eq(smv_events_count(SMV_EVENT_EVICTION_BLOCKED), 1);
	cr_assert_eq(smv_events_count(SMV_EVENT_EVICTION_GOES_ON), 0);
	smv_health_eviction(&health, NULL);
	smv_health_eviction(&health, NULL);
	cr_assert_eq(smv_events_count(SMV_EVENT_EVICTION_GOES_ON), 1);
}

/* A cold page of the second sub-host. */
static void find_away(void)
{
	do
		victim = page_in(SMV_PAGE_COLD, victim + 1);
	while (smv_backing_locate(&lab.backing, smv_word_slot(smv_pagemap_get(&lab.map, victim)))
			.sub_host != 1);
}

static enum smv_host_state host_state(unsigned int h)
{
	struct smv_sub_host_stats stats;

	smv_pager_sub_host_stats(lab.pager, h, &stats);
	return stats.state;
}

static bool host_1_is_up(void)
{
	return host_state(1) == SMV_HOST_UP;
}

static bool is_told(void)
{
	return smv_events_count(SMV_EVENT_VM_STALLED) > 0;
}

static void stall(const char *transport)
{
	struct stub_options o = usual;
	uint64_t start, ns;
	pthread_t thread;

	o.transport = transport;
	lab_open(o);
	smv_log_set_level((enum smv_log_level) - 1);
	smv_events_reset();
	find_away();
	stub_lab_start(&lab);
	cr_assert_eq(host_state(1), SMV_HOST_UP);
	stub_host_down(&lab.hosts[1]);
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim, &lab), 0);
	wait_for(is_stalled, 10);
	start = smv_now_ns();
	cr_assert_geq(lab.stats.stalls.present_ns, SMV_STALL_NS);
	cr_assert_eq(lab.stats.stalls.nr, 1);
	cr_assert_eq(host_state(1), SMV_HOST_DOWN);
	cr_assert_eq(host_state(0), SMV_HOST_UP);
	wait_for(is_told, 10);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_SERVED_AGAIN), 0);
	cr_assert_eq(lab.checks, 0);
	ns = smv_now_ns() - start;
	stub_host_up(&lab.hosts[1]);
	pthread_join(thread, NULL);
	wait_for(is_not_stalled, 10);
	cr_assert_geq(lab.stats.stalls.ns, SMV_STALL_NS + ns);
	cr_assert_eq(lab.stats.stalls.nr, 1);
	cr_assert_eq(lab.stats.stalls.max_ns, lab.stats.stalls.ns);
	wait_for(host_1_is_up, 10);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_STALLED), 1);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_SERVED_AGAIN), 1);
	cr_assert_geq(smv_events_count(SMV_EVENT_SUB_HOST_DOWN), 1);
	cr_assert_eq(
		smv_events_count(SMV_EVENT_SUB_HOST_DOWN), smv_events_count(SMV_EVENT_SUB_HOST_UP));
	/* Over, it does not grow. */
	ns = lab.stats.stalls.ns;
	smv_sleep_ms(200);
	cr_assert(is_not_stalled());
	cr_assert_eq(lab.stats.stalls.ns, ns);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(stalls, a_dead_sub_host_stalls_the_vm_tcp)
{
	stall("tcp");
}

Test(stalls, a_dead_sub_host_stalls_the_vm_mem)
{
	stall("mem");
}

/* The last one is counted a moment after its thread goes on. */
static bool all_are_page_ins(void)
{
	smv_pager_stats(lab.pager, &lab.stats);
	return lab.stats.page_ins >= 200;
}

/* On a busy machine a page may take longer than a stall by itself. */
Test(stalls, reading_pages_is_none)
{
	uint64_t slowest = 0;

	lab_open(usual);
	stub_lab_start(&lab);
	for (int i = 0; i < 200; i++) {
		uint64_t start = smv_now_ns();

		victim = page_in(SMV_PAGE_COLD, victim + 1);
		stub_run(&lab, touch_victim);
		if (smv_now_ns() - start > slowest)
			slowest = smv_now_ns() - start;
	}
	wait_for(all_are_page_ins, 20);
	if (slowest < SMV_STALL_NS) {
		cr_assert_eq(lab.stats.stalls.nr, 0);
		cr_assert_eq(lab.stats.stalls.ns, 0);
	}
	lab_close();
}

Test(stalls, so_is_a_vm_that_nobody_serves)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	lab_open(usual);
	find_victim(SMV_PAGE_COLD);
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim);
	stub_lab_stop(&lab);
	smv_sleep_ms(300);
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
	smv_pager_stats(lab.pager, &lab.stats);
	cr_assert_geq(lab.stats.stalls.ns, 300 * MS, "%lu", lab.stats.stalls.ns);
	cr_assert_eq(lab.stats.stalls.nr, 1);
	cr_assert_eq(lab.stats.stalls.present_ns, 0);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

#ifdef SMEMV_FAULT_POINTS
static char fault_dir[40], fault_file[80];
static const char *fault_name;

static const char *fault_path(const char *suffix)
{
	snprintf(fault_file, sizeof(fault_file), "%s/%s.%s", fault_dir, fault_name, suffix);
	return fault_file;
}

/* Whoever comes to the point waits there; @others: what else SMEMV_FAULT is to have. */
static void stop_at(const char *name, const char *others)
{
	char env[100];

	fault_name = name;
	strcpy(fault_dir, "/tmp/smemv-pager-XXXXXX");
	cr_assert(mkdtemp(fault_dir));
	snprintf(env, sizeof(env), "%s:wait:1%s", name, others);
	setenv("SMEMV_FAULT", env, 1);
	setenv("SMEMV_FAULT_DIR", fault_dir, 1);
}

static bool is_stopped_there(void)
{
	return access(fault_path("reached"), F_OK) == 0;
}

static void go_on(void)
{
	FILE *go = fopen(fault_path("go"), "w");

	cr_assert(go);
	fclose(go);
}

static void remove_stop(void)
{
	unlink(fault_path("go"));
	unlink(fault_path("reached"));
	rmdir(fault_dir);
}

/* Until the evictor holds pages in its hands. */
static void *read_until_evicting(void *arg)
{
	for (uint64_t page = 0; !is_stopped_there(); page++)
		stub_read(arg, page % NR_PAGES);
	return NULL;
}

Test(stalls, so_is_a_vm_that_waits_for_the_evictor)
{
	pthread_t thread;

	stop_at("evict-written", "");
	lab_open(usual);
	stub_lab_start(&lab);
	stub_run(&lab, read_until_evicting);
	victim = page_in(SMV_PAGE_OUT, 0);
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim, &lab), 0);
	wait_for(is_stalled, 10);
	smv_sleep_ms(200);
	go_on();
	pthread_join(thread, NULL);
	wait_for(is_not_stalled, 10);
	cr_assert_geq(lab.stats.stalls.ns, SMV_STALL_NS + 200 * MS);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
	remove_stop();
}

static uint64_t gate;

static void *touch_gate(void *arg)
{
	stub_read(arg, gate);
	return NULL;
}

/* Do so many threads wait in the VM's faults, and so many of their messages are unread? */
static bool faults_are(unsigned int unread, unsigned int all)
{
	unsigned int pending = 0, total = 0;
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", lab.vm.uffd);
	f = fopen(path, "r");
	cr_assert(f);
	for (char line[100]; fgets(line, sizeof(line), f);) {
		sscanf(line, "pending: %u", &pending);
		sscanf(line, "total: %u", &total);
	}
	fclose(f);
	return pending == unread && total == all;
}

static bool gate_is_read(void)
{
	return faults_are(0, 1);
}

static bool two_more_are_unread(void)
{
	return faults_are(2, 3);
}

/* Two threads read a page that is in the file and protected, and both messages are there when the
 * first is answered, which maps it. Before the second is answered the page is written and, as by a
 * sweep, unmapped. Then everything is read, more than once round. */
static void answer_out_of_date(const char *others)
{
	pthread_t first, readers[2];
	uint64_t addr;

	stop_at("map-mapped-page", others);
	lab_open(usual);
	stub_lab_start(&lab);
	find_victim(SMV_PAGE_COLD);
	addr = (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, victim);
	stub_run(&lab, touch_victim);
	cr_assert_eq(stub_vm_zap(NULL, addr, SMV_PAGE_SIZE), 0);
	/* The pager cannot answer this one, so the next messages come together. */
	gate = page_in(SMV_PAGE_COLD, victim + 1);
	smv_pagemap_lock(&lab.map, gate);
	cr_assert_eq(pthread_create(&first, NULL, touch_gate, &lab), 0);
	wait_for(gate_is_read, 20);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, touch_victim, &lab), 0);
	wait_for(two_more_are_unread, 20);
	smv_pagemap_unlock(&lab.map, gate);
	wait_for(is_stopped_there, 20);
	for (int i = 0; i < 2; i++)
		pthread_join(readers[i], NULL);
	stub_write(&lab, victim, lab.versions[victim] + 1);
	cr_assert_eq(stub_vm_zap(NULL, addr, SMV_PAGE_SIZE), 0);
	go_on();
	pthread_join(first, NULL);
	for (int i = 0; i < 3; i++)
		stub_run(&lab, stub_read_all);
	remove_stop();
}

Test(pager_faults, a_message_that_is_out_of_date_hides_no_write)
{
	answer_out_of_date("");
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(pager_faults, a_write_that_it_hides_is_noticed)
{
	answer_out_of_date(",map-mapped-protected");
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

Test(pager_faults, a_discard_without_a_record_is_a_loss_and_never_zeros)
{
	setenv("SMEMV_FAULT", "discard-not-recorded", 1);
	lab_open(usual);
	smv_log_set_level(-1);
	find_victim(SMV_PAGE_LOCAL);
	stub_lab_start(&lab);
	cr_assert_eq(stub_ask_discard(&lab, 0, victim * SMV_PAGE_SIZE, SMV_PAGE_SIZE), 0);
	lose_victim();
}

Test(pager_faults, a_slot_that_a_discard_keeps_is_noticed)
{
	setenv("SMEMV_FAULT", "discard-keep-slot", 1);
	lab_open(usual);
	smv_log_set_level(-1);
	find_victim(SMV_PAGE_COLD);
	stub_lab_start(&lab);
	stub_discard(&lab, victim, 1);
	stub_lab_stop(&lab);
	cr_assert_eq(stub_audit(&lab), 1);
	stub_lab_destroy(&lab);
}
#endif

/* --- loss policies ------------------------------------------------------------------------ */

static __thread sigjmp_buf bus_jump;
static _Atomic int bus_code;       /* of the last SIGBUS */
static void *_Atomic bus_addr;     /* likewise */
static _Atomic unsigned int buses; /* threads that got one */

static void on_bus(int sig, siginfo_t *info, void *context)
{
	bus_code = info->si_code;
	bus_addr = info->si_addr;
	siglongjmp(bus_jump, 1);
}

static void *touch_victim_or_bus(void *arg)
{
	struct stub_lab *l = arg;

	if (sigsetjmp(bus_jump, 1)) {
		buses++;
		return NULL;
	}
	if (*(volatile uint64_t *)(void *)stub_vm_page(&l->vm, victim) != 1)
		l->checks++;
	return NULL;
}

static void expect_bus(void)
{
	const struct sigaction act = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};

	cr_assert_eq(sigaction(SIGBUS, &act, NULL), 0);
}

static void check_bus(unsigned int nr)
{
	cr_assert_eq(buses, nr, "%u threads got SIGBUS, not %u", buses, nr);
	cr_assert_eq(lab.checks, 0, "a thread went on with a lost page");
	/* Without CONFIG_MEMORY_FAILURE it is a plain one. */
	cr_assert(bus_code == BUS_MCEERR_AR || bus_code == BUS_ADRERR, "%d", bus_code);
	cr_assert_eq((uintptr_t)bus_addr & ~(uintptr_t)(SMV_PAGE_SIZE - 1),
		(uintptr_t)stub_vm_page(&lab.vm, victim));
	cr_assert(victim_is_lost());
}

/* A lab whose victim, a COLD page, is not what was written there. */
static void open_with_a_spoilt_page(enum smv_loss_policy policy)
{
	struct stub_options o = usual;

	o.loss_policy = policy;
	lab_open(o);
	smv_log_set_level(-1);
	find_victim(SMV_PAGE_COLD);
	stub_slot(lab.hosts, &lab.backing, smv_word_slot(smv_pagemap_get(&lab.map, victim)))[77] ^=
		1;
	expect_bus();
}

Test(loss, policies_have_names)
{
	enum smv_loss_policy policy = SMV_LOSS_KILL;
	struct smv_error err = {0};

	cr_assert_eq(smv_loss_policy_parse("", &policy, &err), 0);
	cr_assert_eq(policy, SMV_LOSS_STALL);
	for (int i = SMV_LOSS_STALL; i <= SMV_LOSS_KILL; i++) {
		const char *name = smv_loss_policy_name((enum smv_loss_policy)i);

		cr_assert_eq(smv_loss_policy_parse(name, &policy, &err), 0, "%s", name);
		cr_assert_eq((int)policy, i);
	}
	cr_assert_eq(smv_loss_policy_parse("killl", &policy, &err), -EINVAL);
	cr_assert(strstr(err.message, "'killl'"), "%s", err.message);
	cr_assert(strstr(err.hint, "poison"));
	cr_assert_eq(smv_loss_policy_check(SMV_LOSS_STALL, &err), 0);
	cr_assert_eq(smv_loss_policy_check(SMV_LOSS_KILL, &err), 0);
}

Test(loss, poison_is_sigbus_for_every_thread_and_again)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	open_with_a_spoilt_page(SMV_LOSS_POISON);
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim_or_bus);
	check_bus(1);
	cr_assert(trouble_has("SIGBUS"), "%s", lab.stats.trouble);
	stub_run(&lab, touch_victim_or_bus);
	check_bus(2);
	/* A sweep takes the poison away. */
	zap_page(victim);
	stub_run(&lab, touch_victim_or_bus);
	check_bus(3);
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	zap_page(victim);
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim_or_bus);
	check_bus(4);
	/* The others are served as before. */
	victim = victim ? 0 : 1;
	stub_run(&lab, touch_victim);
	cr_assert_eq(lab.checks, 1);
	cr_assert_eq(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

Test(loss, poison_replaces_the_marker_of_a_protected_page)
{
	struct stub_options o = usual;
	uint64_t pte = 0;

	o.loss_policy = SMV_LOSS_POISON;
	lab_open(o);
	smv_log_set_level(-1);
	expect_bus();
	find_victim(SMV_PAGE_LOCAL);
	cr_assert_eq(smv_uffd_write_protect(lab.vm.uffd,
			     (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, victim), SMV_PAGE_SIZE),
		0);
	zap_page(victim);
	punch_page(victim);
	smv_pagemap_read(
		lab.vm.pagemap_fd, (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, victim), &pte, 1);
	cr_assert(pte & SMV_PAGEMAP_UFFD_WP);
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim_or_bus);
	check_bus(1);
	stub_lab_destroy(&lab);
}

static char fatal[400];

static bool is_fatal(void)
{
	return smv_pager_is_fatal(lab.pager, fatal, sizeof(fatal));
}

/* The thread, which waits for the victim, gets it from the test. */
static void end_waiting(pthread_t thread)
{
	char data[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE))) = {0};

	cr_assert_eq(lab.checks, 0, "a thread went on with a lost page");
	cr_assert_eq(smv_uffd_copy(lab.vm.uffd, (uint64_t)(uintptr_t)stub_vm_page(&lab.vm, victim),
			     data, false),
		0);
	pthread_join(thread, NULL);
}

Test(loss, kill_is_told_once_with_page_slot_and_server)
{
	struct smv_taken_over report;
	struct smv_error err = {0};
	pthread_t thread;
	char want[100];
	uint64_t slot;

	open_with_a_spoilt_page(SMV_LOSS_KILL);
	slot = smv_word_slot(smv_pagemap_get(&lab.map, victim));
	stub_lab_start(&lab);
	cr_assert_not(is_fatal());
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim_or_bus, &lab), 0);
	wait_for(is_fatal, 10);
	snprintf(want, sizeof(want), "page %lu, slot %lu at sub-host sub-host-%u: ", victim, slot,
		smv_backing_locate(&lab.backing, slot).sub_host);
	cr_assert(strstr(fatal, want), "%s", fatal);
	cr_assert(strstr(fatal, "checksum"), "%s", fatal);
	cr_assert(victim_is_lost());
	/* If nobody ended the VM, the next pager tells it again: when the page is touched. */
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	cr_assert_not(is_fatal());
	stub_lab_start(&lab);
	wait_for(is_fatal, 10);
	cr_assert(strstr(fatal, want), "%s", fatal);
	end_waiting(thread);
	cr_assert_eq(buses, 0);
	stub_lab_destroy(&lab);
}

static unsigned int host_of(uint64_t page)
{
	smv_page_word word = smv_pagemap_get(&lab.map, page);

	return smv_word_slot(word) == SMV_SLOT_NONE
		       ? STUB_HOSTS
		       : smv_backing_locate(&lab.backing, smv_word_slot(word)).sub_host;
}

static bool is_cold_at(uint64_t page, unsigned int host)
{
	return smv_word_state(smv_pagemap_get(&lab.map, page)) == SMV_PAGE_COLD &&
	       host_of(page) == host;
}

static uint64_t cold_at(unsigned int host)
{
	uint64_t n = 0;

	for (uint64_t page = 0; page < NR_PAGES; page++)
		n += is_cold_at(page, host);
	return n;
}

/* A page that is only at sub-host 1 becomes the victim; then that loses its memory, and the evictor
 * says so. */
static void lose_a_sub_host(struct stub_options o)
{
	lab_open(o);
	smv_log_set_level(-1);
	expect_bus();
	while (!is_cold_at(victim, 1))
		victim++;
	stub_lab_start(&lab);
	stub_host_lose(&lab.hosts[1]);
}

static bool loss_is_told(void)
{
	return trouble_has("sub-host-1 has lost its memory");
}

static bool two_got_bus(void)
{
	return buses == 2;
}

Test(loss, a_lost_sub_host_poisons_what_is_touched_once_it_is_confirmed)
{
	struct stub_options o = usual;
	pthread_t threads[2];
	uint64_t start, only_there;
	char want[100];

	o.loss_policy = SMV_LOSS_POISON;
	o.loss_confirm_ms = 600;
	lose_a_sub_host(o);
	start = smv_now_ns();
	only_there = cold_at(1);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, touch_victim_or_bus, &lab), 0);
	wait_for(two_got_bus, 20);
	cr_assert_geq(smv_now_ns() - start, 600 * SMV_NS_PER_MS, "it was not waited for");
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	check_bus(2);
	/* Only what was touched, and it is told what else is gone. */
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 1);
	cr_assert_eq(cold_at(1), only_there - 1);
	wait_for(loss_is_told, 10);
	snprintf(want, sizeof(want), ": %lu pages (", only_there);
	cr_assert(strstr(lab.stats.trouble, want), "%s", lab.stats.trouble);
	cr_assert(strstr(lab.stats.trouble, "SIGBUS"), "%s", lab.stats.trouble);
	stub_lab_destroy(&lab);
}

Test(loss, a_lost_sub_host_is_fatal_when_a_page_is_touched)
{
	struct stub_options o = usual;
	pthread_t thread;

	o.loss_policy = SMV_LOSS_KILL;
	o.loss_confirm_ms = 200;
	lose_a_sub_host(o);
	wait_for(loss_is_told, 10);
	stub_watch(&lab, 600);
	cr_assert_not(is_fatal(), "nobody touched a page: %s", fatal);
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim_or_bus, &lab), 0);
	wait_for(is_fatal, 10);
	cr_assert(strstr(fatal, "sub-host-1: its sub-host has lost its memory"), "%s", fatal);
	end_waiting(thread);
	stub_lab_destroy(&lab);
}

static bool no_loss_is_told(void)
{
	return !trouble_has("lost");
}

static void comes_back(enum smv_loss_policy policy, unsigned int confirm_ms)
{
	struct stub_options o = usual;
	pthread_t thread;

	o.loss_policy = policy;
	o.loss_confirm_ms = confirm_ms;
	lose_a_sub_host(o);
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim, &lab), 0);
	wait_for(loss_is_told, 10);
	stub_watch(&lab, 700);
	cr_assert_eq(lab.checks, 0);
	stub_host_regain(&lab.hosts[1]);
	wait_for(no_loss_is_told, 20);
	pthread_join(thread, NULL);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 0);
	cr_assert_not(is_fatal());
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(loss, a_server_that_comes_back_in_time_loses_nothing)
{
	comes_back(SMV_LOSS_POISON, 60000);
}

Test(loss, a_server_that_comes_back_loses_nothing_with_stall)
{
	comes_back(SMV_LOSS_STALL, 0);
}

/* --- eviction past a loss ------------------------------------------------------------------ */

static bool was_clean_there[NR_PAGES];

static void *read_from_1(void *arg)
{
	unsigned int n = 0;

	for (uint64_t page = 0; page < NR_PAGES && n < BUDGET * 3 / 4; page++)
		if (is_cold_at(page, 1)) {
			stub_read(arg, page);
			n++;
		}
	return NULL;
}

/* Whatever needs nothing of sub-host 1, written and read. */
static void *use_the_rest(void *arg)
{
	for (uint64_t page = 0; page < NR_PAGES; page++)
		if (!was_clean_there[page] && !is_cold_at(page, 1)) {
			if (page % 2)
				stub_write(arg, page, (uint32_t)page + 1);
			else
				stub_read(arg, page);
		}
	return NULL;
}

static void *read_what_was_clean(void *arg)
{
	for (uint64_t page = 0; page < NR_PAGES; page++)
		if (was_clean_there[page])
			stub_read(arg, page);
	return NULL;
}

/* Pages are here, clean, with a copy at sub-host 1; that loses it. */
static uint64_t lose_copies(uint64_t nr_extents)
{
	struct stub_options o = usual;
	uint64_t n = 0;

	o.hot_percent = 0;
	o.zero_percent = 20;
	o.nr_extents = nr_extents;
	lab_open(o);
	smv_log_set_level(-1);
	stub_lab_start(&lab);
	stub_run(&lab, read_from_1);
	for (uint64_t page = 0; page < NR_PAGES; page++) {
		smv_page_word word = smv_pagemap_get(&lab.map, page);

		was_clean_there[page] = smv_word_state(word) == SMV_PAGE_LOCAL &&
					(word & SMV_WORD_REMOTE_VALID) && host_of(page) == 1;
		n += was_clean_there[page];
	}
	stub_host_lose(&lab.hosts[1]);
	wait_for(loss_is_told, 10);
	return n;
}

/* How many of them are then given up for a copy that is not there. */
static uint64_t evict_past_the_loss(void)
{
	uint64_t n = 0;

	cr_assert_gt(lose_copies(3 * NR_RANGES), BUDGET / 4);
	stub_run(&lab, use_the_rest);
	for (uint64_t page = 0; page < NR_PAGES; page++)
		n += was_clean_there[page] && is_cold_at(page, 1);
	return n;
}

static bool there_is_room(void)
{
	return !trouble_has("no slot is free");
}

Test(loss, eviction_goes_on_elsewhere_and_trusts_no_lost_copy)
{
	uint64_t moved = 0;

	cr_assert_eq(evict_past_the_loss(), 0);
	for (uint64_t page = 0; page < NR_PAGES; page++)
		moved += was_clean_there[page] && is_cold_at(page, 0);
	cr_assert_gt(moved, BUDGET / 8);
	cr_assert(there_is_room());
	stub_run(&lab, read_what_was_clean);
	cr_assert_eq(lab.mismatches, 0);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 0);
	/* No slot was forgotten or given out twice, as the audit sees. */
	stub_host_regain(&lab.hosts[1]);
	wait_for(no_loss_is_told, 20);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

static bool no_room_is_told(void)
{
	return trouble_has("no slot is free on the sub-hosts that have their memory");
}

Test(loss, eviction_without_room_elsewhere_says_so_and_goes_on_later)
{
	pthread_t thread;

	/* What is not at sub-host 1 fills the other one. */
	lose_copies(NR_RANGES);
	cr_assert_eq(pthread_create(&thread, NULL, use_the_rest, &lab), 0);
	wait_for(no_room_is_told, 20);
	stub_host_regain(&lab.hosts[1]);
	pthread_join(thread, NULL);
	wait_for(there_is_room, 10);
	wait_for(no_loss_is_told, 20);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(loss, a_pager_takes_over_words_of_a_lost_sub_host)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	cr_assert_gt(lose_copies(3 * NR_RANGES), BUDGET / 4);
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
	wait_for(loss_is_told, 10);
	stub_run(&lab, use_the_rest);
	cr_assert_eq(lab.mismatches, 0);
	stub_host_regain(&lab.hosts[1]);
	wait_for(no_loss_is_told, 20);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(loss, checksums_can_be_switched_off)
{
	struct stub_options o = usual;
	struct smv_taken_over report;
	struct smv_error err = {0};

	o.skip_checksums = true;
	lab_open(o);
	find_victim(SMV_PAGE_COLD);
	stub_slot(lab.hosts, &lab.backing, smv_word_slot(smv_pagemap_get(&lab.map, victim)))[77] ^=
		1;
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim);
	cr_assert_eq(lab.mismatches, 1);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 0);
	lab.mismatches = 0;
	stub_run(&lab, write_all);
	/* They are kept all the same: the next pager looks again. */
	lab.o.skip_checksums = false;
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(smv_pagemap_count(&lab.map, SMV_PAGE_LOST), 0);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

/* --- huge pages --------------------------------------------------------------------------- */

static char huge_dir[] = "/tmp/smemv-huge-XXXXXX";

/* A tmpfs of this process alone, which ends with it. */
static void mount_huge(void)
{
	cr_assert(mkdtemp(huge_dir));
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		mount("smemv", huge_dir, "tmpfs", 0, "huge=always") < 0) {
		rmdir(huge_dir);
		cr_skip_test("cannot mount a tmpfs with huge pages: %s", strerror(errno));
	}
}

static void umount_huge(void)
{
	umount2(huge_dir, MNT_DETACH);
	rmdir(huge_dir);
}

/* A quarter of the RAM lies in huge pages that cannot be split: what is punched there is zeroed. */
static void stress_huge(void)
{
	struct stub_options o = usual;

	mount_huge();
	o.seed = 21;
	o.huge_dir = huge_dir;
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, 1500);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	stub_lab_stop(&lab);
}

Test(pager, what_is_zeroed_instead_of_punched_is_not_the_page)
{
	stress_huge();
	cr_assert_gt(lab.stats.evictions, NR_PAGES);
	cr_assert_eq(lab.mismatches, 0, "%lu of %lu", lab.mismatches, lab.checks);
	stub_lab_destroy(&lab);
	umount_huge();
}

/* As if the pager had died between such a punch and putting the page back; or when it had fetched a
 * page for which the file had such zeros. @word: what the word of the page has then. */
static void zeroed_and_gone(enum smv_page_state state, smv_page_word flags)
{
	static const char zeros[SMV_PAGE_SIZE];
	struct smv_taken_over report;
	struct smv_error err = {0};
	struct smv_page_at at;
	smv_page_word word;

	lab_open(usual);
	find_victim(SMV_PAGE_COLD);
	word = smv_word_with_state(smv_pagemap_get(&lab.map, victim), state);
	smv_pagemap_set(&lab.map, victim, word | flags);
	at = smv_page_at(lab.pager, victim);
	cr_assert_eq(pwrite(at.fd, zeros, sizeof(zeros), at.offset), SMV_PAGE_SIZE);
	cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
}

Test(pager, what_was_zeroed_instead_of_punched_is_not_taken_for_what_was_saved)
{
	zeroed_and_gone(SMV_PAGE_SAVED, SMV_WORD_REMOTE_VALID);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

Test(pager, data_that_a_fetched_page_was_to_replace_is_not_taken_for_it)
{
	zeroed_and_gone(SMV_PAGE_FETCHING, SMV_WORD_OVER_DATA);
	cr_assert_eq(lab.mismatches, 0);
	lab_close();
}

/* Takeovers under load, with pages that the file has zeros for. */
static void take_over_huge(unsigned int times)
{
	struct stub_options o = usual;
	struct smv_taken_over report;
	struct smv_error err = {0};

	mount_huge();
	o.seed = 22;
	o.huge_dir = huge_dir;
	lab_open(o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	while (times--) {
		stub_watch(&lab, 40);
		cr_assert_eq(stub_lab_take_over(&lab, &report, &err), 0, "%s", err.message);
		cr_assert_eq(report.lost, 0);
		stub_lab_start(&lab);
	}
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	stub_lab_stop(&lab);
}

Test(pager, takeovers_with_huge_pages_lose_nothing)
{
	take_over_huge(30);
	cr_assert_eq(lab.mismatches, 0, "%lu of %lu", lab.mismatches, lab.checks);
	stub_lab_destroy(&lab);
	umount_huge();
}

/* --- what the tests above must be able to see --------------------------------------------- */

#ifdef SMEMV_FAULT_POINTS
static bool mismatches_found(void)
{
	return lab.mismatches > 0;
}

Test(pager_faults, pages_that_stay_mapped_while_they_are_evicted_are_noticed)
{
	setenv("SMEMV_FAULT", "evict-skip-zap", 1);
	lab_open(usual);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	wait_for(mismatches_found, 10);
	stub_stress_stop(&lab);
	stub_lab_destroy(&lab);
}

Test(pager_faults, a_lost_page_that_is_settled_as_zeros_is_noticed)
{
	struct smv_taken_over report;

	setenv("SMEMV_FAULT", "settle-hole-is-zero", 1);
	out_and_gone(&report);
	stub_run(&lab, touch_victim);
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

Test(pager_faults, zeros_that_are_kept_after_a_punch_are_noticed)
{
	setenv("SMEMV_FAULT", "evict-keep-zeroed", 1);
	stress_huge();
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
	umount_huge();
}

Test(pager_faults, zeros_that_are_taken_for_what_was_saved_are_noticed)
{
	setenv("SMEMV_FAULT", "settle-trust-file", 1);
	zeroed_and_gone(SMV_PAGE_SAVED, SMV_WORD_REMOTE_VALID);
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

/* Its word says so from the moment at which it is asked for. */
Test(pager_faults, a_page_that_is_fetched_over_zeros_is_marked)
{
	struct stub_options o = usual;
	smv_page_word word;
	pthread_t thread;

	mount_huge();
	stop_at("fetched", "");
	o.huge_dir = huge_dir;
	lab_open(o);
	stub_lab_start(&lab);
	do
		victim = page_in(SMV_PAGE_COLD, victim + 1);
	while (!smv_pager_has_data(lab.pager, victim));
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim, &lab), 0);
	wait_for(is_stopped_there, 20);
	word = smv_pagemap_get(&lab.map, victim);
	cr_assert_eq(smv_word_state(word), SMV_PAGE_FETCHING);
	cr_assert(word & SMV_WORD_OVER_DATA);
	go_on();
	pthread_join(thread, NULL);
	stub_run(&lab, stub_read_all);
	cr_assert_eq(lab.mismatches, 0);
	stub_lab_stop(&lab);
	stub_lab_destroy(&lab);
	remove_stop();
	umount_huge();
}

Test(pager_faults, zeros_that_are_taken_for_a_fetched_page_are_noticed)
{
	zeroed_and_gone(SMV_PAGE_FETCHING, 0);
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

Test(pager_faults, an_older_version_that_stays_in_place_is_noticed)
{
	setenv("SMEMV_FAULT", "install-ignore-eexist", 1);
	lab_open(usual);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}

Test(pager_faults, a_page_whose_checksum_is_not_looked_at_is_noticed)
{
	setenv("SMEMV_FAULT", "checksum-not-verified", 1);
	open_with_a_spoilt_page(SMV_LOSS_STALL);
	stub_lab_start(&lab);
	stub_run(&lab, touch_victim);
	cr_assert_eq(lab.mismatches, 1);
	stub_lab_destroy(&lab);
}

Test(pager_faults, pages_that_are_given_up_for_a_lost_copy_are_noticed)
{
	setenv("SMEMV_FAULT", "evict-keep-lost-slot", 1);
	cr_assert_gt(evict_past_the_loss(), 0);
	stub_lab_destroy(&lab);
}

static bool one_got_bus(void)
{
	return buses == 1;
}

Test(pager_faults, a_loss_that_is_not_confirmed_is_noticed)
{
	struct stub_options o = usual;
	pthread_t thread;

	setenv("SMEMV_FAULT", "loss-unconfirmed", 1);
	o.loss_policy = SMV_LOSS_POISON;
	o.loss_confirm_ms = 60000;
	lose_a_sub_host(o);
	cr_assert_eq(pthread_create(&thread, NULL, touch_victim_or_bus, &lab), 0);
	wait_for(one_got_bus, 20);
	pthread_join(thread, NULL);
	stub_lab_destroy(&lab);
}

Test(pager_faults, a_kernel_without_poison_is_refused)
{
	struct smv_error err = {0};

	setenv("SMEMV_FAULT", "kernel-no-poison", 1);
	cr_assert_lt(smv_loss_policy_check(SMV_LOSS_POISON, &err), 0);
	cr_assert_eq(err.code, SMV_REFUSED);
	cr_assert(strstr(err.message, "Linux 6.6"), "%s", err.message);
}
#endif
