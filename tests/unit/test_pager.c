/* SPDX-License-Identifier: Apache-2.0 */
#include "client/remote.h"
#include "client/settle.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "common/log.h"
#include "vm_stub.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <sys/mman.h>
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
		poke(&f, fields[i].offset, 1);
		refused(&f, "my-vm", 513, f.id, fields[i].why);
		poke(&f, fields[i].offset, 1);
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

static uint64_t checks_before;

static bool threads_go_on(void)
{
	return lab.checks > checks_before + 2000;
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

Test(pager_faults, an_older_version_that_stays_in_place_is_noticed)
{
	setenv("SMEMV_FAULT", "install-ignore-eexist", 1);
	lab_open(usual);
	stub_lab_start(&lab);
	stub_run(&lab, stub_read_all);
	cr_assert_gt(lab.mismatches, 0);
	stub_lab_destroy(&lab);
}
#endif
