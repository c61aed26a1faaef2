/* SPDX-License-Identifier: Apache-2.0 */
#include "client/pagemap.h"

#include "common/cleanup.h"
#include "vmm/guest_ram.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define NR_LOCKS 1024 /* a power of two */

static int map_words(const char *path, size_t bytes, void **mapping)
{
	CLEANUP_CLOSE int fd = -1;
	void *p;

	if (path) {
		unlink(path);
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
			return -errno;
	}
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*mapping = p;
	return 0;
}

/* The mapping is there: the rest of @map, without counts. */
static int set_up(struct smv_pagemap *map, size_t bytes, uint64_t nr_pages)
{
	map->locks = calloc(NR_LOCKS, sizeof(*map->locks));
	if (!map->locks) {
		munmap(map->mapping, bytes);
		map->mapping = NULL;
		return -ENOMEM;
	}
	for (int i = 0; i < NR_LOCKS; i++)
		pthread_mutex_init(&map->locks[i], NULL);
	map->mapping_bytes = bytes;
	map->nr_pages = nr_pages;
	map->words = (_Atomic smv_page_word *)((char *)map->mapping + SMV_PAGEMAP_HEADER_BYTES);
	return 0;
}

int smv_pagemap_create(const char *path, const char *vm, uint64_t nr_pages, struct smv_pagemap *map,
	struct smv_error *err)
{
	size_t bytes = SMV_PAGEMAP_HEADER_BYTES + nr_pages * sizeof(smv_page_word);
	struct smv_pagemap_header *header;
	int r;

	memset(map, 0, sizeof(*map));
	r = map_words(path, bytes, &map->mapping);
	if (r == 0)
		r = set_up(map, bytes, nr_pages);
	if (r < 0)
		return smv_fail(err, SMV_NO_ROOM, "page-map",
			"Free memory or choose another --state-dir.",
			"cannot make the page map of VM '%s' (%zu bytes%s%s): %s", vm, bytes,
			path ? " in " : "", path ? path : "", strerror(-r));
	atomic_store(&map->counts[SMV_PAGE_UNKNOWN], nr_pages);
	header = map->mapping;
	header->magic = SMV_PAGEMAP_MAGIC;
	header->version = SMV_PAGEMAP_VERSION;
	header->page_size = SMV_PAGE_SIZE;
	header->nr_pages = nr_pages;
	snprintf(header->vm, sizeof(header->vm), "%s", vm);
	if (getrandom(&header->id, sizeof(header->id), 0) == sizeof(header->id))
		return 0;
	smv_pagemap_destroy(map);
	return smv_fail(err, SMV_INTERNAL, "random", NULL, "getrandom failed");
}

/* NULL, or what is wrong with the header. */
static const char *why_foreign(
	const struct smv_pagemap_header *h, const char *vm, uint64_t nr_pages, uint64_t id)
{
	if (h->magic != SMV_PAGEMAP_MAGIC)
		return "it is no page map";
	if (h->version < SMV_PAGEMAP_OLDEST || h->version > SMV_PAGEMAP_VERSION)
		return "it is of another version of smemv";
	if (h->page_size != SMV_PAGE_SIZE || h->nr_pages != nr_pages)
		return "it is of a VM with another size";
	if (strncmp(h->vm, vm, sizeof(h->vm)) != 0)
		return "it is of a VM with another name";
	return h->id != id ? "it is of another migration of this VM" : NULL;
}

int smv_pagemap_load(const char *path, const char *vm, uint64_t nr_pages, uint64_t id,
	struct smv_pagemap *map, struct smv_error *err)
{
	static const char hint[] =
		"The VM waits as it is. If its page map was put elsewhere, put it back: it is "
		"looked for every ten seconds; without it the VM's memory cannot be found: end the "
		"VM.";
	size_t bytes = SMV_PAGEMAP_HEADER_BYTES + nr_pages * sizeof(smv_page_word);
	/* Counted apart: an atomic addition for each page of a large VM takes seconds. */
	uint64_t counts[SMV_PAGE_NR_STATES] = {0};
	CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;
	const char *why;
	void *p;

	memset(map, 0, sizeof(*map));
	if (fd < 0 || fstat(fd, &st) < 0)
		return smv_fail(err, SMV_DATA_LOSS, "page-map", hint,
			"cannot open the page map of VM '%s', %s: %s", vm, path, strerror(errno));
	if ((uint64_t)st.st_size != bytes)
		return smv_fail(err, SMV_DATA_LOSS, "page-map", hint,
			"the page map of VM '%s', %s, has %ld bytes instead of %zu", vm, path,
			(long)st.st_size, bytes);
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return smv_fail(err, SMV_NO_ROOM, "page-map", "Free memory.",
			"cannot map the page map of VM '%s', %s: %s", vm, path, strerror(errno));
	if ((why = why_foreign(p, vm, nr_pages, id))) {
		munmap(p, bytes);
		return smv_fail(err, SMV_DATA_LOSS, "page-map", hint,
			"%s is not the page map of VM '%s': %s", path, vm, why);
	}
	map->mapping = p;
	if (set_up(map, bytes, nr_pages) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	for (uint64_t page = 0; page < nr_pages; page++) {
		enum smv_page_state state = smv_word_state(smv_pagemap_get(map, page));

		if (state < SMV_PAGE_NR_STATES)
			counts[state]++;
	}
	for (int state = 0; state < SMV_PAGE_NR_STATES; state++)
		atomic_store(&map->counts[state], counts[state]);
	return 0;
}

uint64_t smv_pagemap_id(const struct smv_pagemap *map)
{
	return ((const struct smv_pagemap_header *)map->mapping)->id;
}

void smv_pagemap_upgrade(struct smv_pagemap *map)
{
	((struct smv_pagemap_header *)map->mapping)->version = SMV_PAGEMAP_VERSION;
}

void smv_pagemap_set_served(struct smv_pagemap *map, uint64_t now_ns)
{
	struct smv_pagemap_header *header = map->mapping;

	atomic_store_explicit(&header->served_ns, now_ns, memory_order_relaxed);
}

uint64_t smv_pagemap_served(const struct smv_pagemap *map)
{
	const struct smv_pagemap_header *header = map->mapping;

	return atomic_load_explicit(&header->served_ns, memory_order_relaxed);
}

void smv_pagemap_destroy(struct smv_pagemap *map)
{
	if (!map->mapping)
		return;
	for (int i = 0; i < NR_LOCKS; i++)
		pthread_mutex_destroy(&map->locks[i]);
	free(map->locks);
	munmap(map->mapping, map->mapping_bytes);
	memset(map, 0, sizeof(*map));
}

void smv_pagemap_lock(struct smv_pagemap *map, uint64_t page)
{
	pthread_mutex_lock(&map->locks[page & (NR_LOCKS - 1)]);
}

void smv_pagemap_unlock(struct smv_pagemap *map, uint64_t page)
{
	pthread_mutex_unlock(&map->locks[page & (NR_LOCKS - 1)]);
}

void smv_pagemap_set(struct smv_pagemap *map, uint64_t page, smv_page_word word)
{
	enum smv_page_state old = smv_word_state(smv_pagemap_get(map, page));
	enum smv_page_state new = smv_word_state(word);

	atomic_store_explicit(&map->words[page], word, memory_order_release);
	if (old != new) {
		atomic_fetch_sub_explicit(&map->counts[old], 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&map->counts[new], 1, memory_order_relaxed);
	}
}

void smv_pagemap_fill(struct smv_pagemap *map, smv_page_word word)
{
	for (uint64_t page = 0; page < map->nr_pages; page++)
		atomic_store_explicit(&map->words[page], word, memory_order_relaxed);
	for (int state = 0; state < SMV_PAGE_NR_STATES; state++)
		atomic_store(&map->counts[state], 0);
	atomic_store(&map->counts[smv_word_state(word)], map->nr_pages);
}

/* What both sides of a migration must agree on for one page. A sum of these over all pages is a
 * digest of the map that can be kept up to date page by page. */
static uint64_t digest_term(uint64_t page, smv_page_word word)
{
	uint64_t key[4] = {
		page, smv_word_state(word), smv_word_slot(word), smv_word_checksum(word)};

	return smv_word_state(word) == SMV_PAGE_UNKNOWN ? 0 : XXH3_64bits(key, sizeof(key));
}

void smv_pagemap_place(struct smv_pagemap *map, uint64_t page, smv_page_word word)
{
	map->digest -= digest_term(page, smv_pagemap_get(map, page));
	map->digest += digest_term(page, word);
	smv_pagemap_set(map, page, word);
}

uint64_t smv_pagemap_count(const struct smv_pagemap *map, enum smv_page_state state)
{
	return atomic_load_explicit(&map->counts[state], memory_order_relaxed);
}

uint32_t smv_page_checksum(const void *page)
{
	return (uint32_t)(XXH3_64bits(page, SMV_PAGE_SIZE) >> (64 - SMV_CHECKSUM_BITS));
}

bool smv_page_is_zero(const void *page)
{
	const uint64_t *w = page;

	/* A page that is not zero mostly shows it in its first words. */
	if (w[0] | w[1] | w[2] | w[3])
		return false;
	return memcmp(page, (const char *)page + 32, SMV_PAGE_SIZE - 32) == 0;
}

const char *smv_page_state_name(enum smv_page_state state)
{
	static const char *const names[] = {
		"UNKNOWN", "ZERO", "LOCAL", "FETCHING", "OUT", "SAVED", "COLD", "LOST"};

	return state < SMV_PAGE_NR_STATES ? names[state] : "invalid";
}
