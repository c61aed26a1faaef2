/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM for tests of the pager and the migrator, made of threads of the test's own process: its RAM
 * is one or two memfds mapped shared and registered with a userfaultfd of this process; its
 * sub-hosts are plain memory behind listeners of this process, or leased elsewhere. What cannot be
 * set up ends the test.
 *
 * What a page must hold is a function of (seed, page, version), version 0 being zeros; versions are
 * kept per page under a lock that readers share, so every reader knows what it has to find, and
 * several threads may wait for one page. Of more than STUB_LOCKS_MAX pages some share a lock.
 */
#ifndef SMV_TESTS_VM_STUB_H
#define SMV_TESTS_VM_STUB_H

#include "client/pager.h"
#include "client/remote.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STUB_HOSTS 2
#define STUB_THREADS 4
#define STUB_LOCKS_MAX 65536u

/* Ends the test; for what is not its subject. */
#define must(cond)                                                                                 \
	((cond) ? (void)0                                                                          \
		: (fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #cond), abort()))

struct stub_host {
	const struct smv_transport *transport;
	struct smv_addr addr;
	struct smv_domain *domain;
	struct smv_region *region;
	struct smv_region_info info;
	struct smv_listener *listener; /* NULL: it is down */
	unsigned char *memory;
	size_t bytes;
	size_t spare_bytes; /* at its end, in no lease yet */
	_Atomic bool lost; /* whoever asks for the way in is told that the data is lost */
};

void stub_host_create(
	struct stub_host *host, const char *transport, unsigned int index, uint64_t nr_extents);
/** stub_host_down / up - the listener and its connections go; it comes back at the same address
 * with the same memory. */
void stub_host_down(struct stub_host *host);
void stub_host_up(struct stub_host *host);
/** stub_host_lose / regain - it is down, another server has its address, and what is in its memory
 * is not what was written; the right one is there again. */
void stub_host_lose(struct stub_host *host);
void stub_host_regain(struct stub_host *host);
void stub_host_destroy(struct stub_host *host);

/** stub_backing_create - leases of all of @hosts, which outlive it, without extents. */
void stub_backing_create(
	struct smv_backing *backing, struct stub_host *hosts, unsigned int nr_hosts);
/** stub_slot - where a slot's data is in the memory of its sub-host. */
unsigned char *stub_slot(
	const struct stub_host *hosts, const struct smv_backing *backing, uint64_t slot);

struct stub_vm {
	struct smv_guest_ram ram;
	int uffd;
	int pagemap_fd;
};

/** stub_vm_create - the border of two blocks lies inside a 2 MiB range, and the second block does
 * not start where its file does. @mode: 0: the userfaultfd is left unregistered. */
void stub_vm_create(struct stub_vm *vm, unsigned int nr_blocks, uint64_t nr_pages,
	uint64_t features, uint64_t mode);
void stub_vm_destroy(struct stub_vm *vm);
unsigned char *stub_vm_page(const struct stub_vm *vm, uint64_t page);
uint64_t stub_vm_resident(const struct stub_vm *vm);
int stub_vm_zap(void *ctx, uint64_t addr, uint64_t len);

struct stub_lab;

struct stub_options {
	const char *transport; /* of sub-hosts in this process; NULL: they are elsewhere */
	/* Leases elsewhere, of nr_extents in all. The lab gets what hangs in it. */
	const struct smv_backing *backing;
	uint64_t seed;
	unsigned int nr_blocks;
	uint64_t nr_pages, budget_pages, nr_extents;
	uint64_t spare_extents; /* on the last sub-host, for stub_lab_grow() */
	unsigned int
		hot_percent; /* of the pages, within the pager's credit; some in two versions */
	unsigned int zero_percent; /* of the pages, and of the rewrites */
	unsigned int write_percent;
	unsigned int discard_percent; /* of the accesses, each of 1 to 48 pages */
	const char *map_path; /* NULL: the page map is in no file */
	enum smv_loss_policy loss_policy;
	unsigned int loss_confirm_ms;
	bool skip_checksums;
	/* The kernel touches the RAM, too: needs privilege. */
	bool kernel_faults;
	/* A tmpfs that was mounted with huge=always, for the RAM files; NULL: they are memfds.
	 * Every fourth 2 MiB of them is a huge page that the kernel cannot split. */
	const char *huge_dir;
	/* Nothing is hot, and all that is cold holds zeros, in memory of the sub-hosts that nobody
	 * has touched yet: for a VM that is larger than the memory of this machine. Every eighth
	 * range of SMV_EXTENT_PAGES pages is ZERO, not cold. */
	bool untouched;
	/* What a page of a version other than 0 holds; NULL: the usual. */
	void (*fill)(const struct stub_lab *lab, void *data, uint64_t page, uint32_t version);
};

struct stub_lab {
	struct stub_options o;
	struct stub_host hosts[STUB_HOSTS]; /* unless they are elsewhere */
	struct smv_remote *way;             /* open while the test itself moves pages by it */
	struct stub_vm vm;
	struct smv_backing backing;
	struct smv_slots slots;
	struct smv_pagemap map;
	struct smv_pager *pager;

	uint32_t *versions; /* what each page must hold; under its lock */
	pthread_rwlock_t *locks;
	pthread_mutex_t discards_lock; /* one at a time, as the shim does */
	_Atomic int discards_fd;       /* to the pager; -1: it is dead */
	uint64_t nr_locks;
	pthread_t threads[STUB_THREADS];
	unsigned int nr_threads;
	_Atomic bool stop;
	_Atomic uint64_t checks, mismatches;
	_Atomic uint64_t convoy;     /* accesses by all threads one behind the other */
	_Atomic uint64_t slowest_ns; /* the longest that a thread of the stress waited for a page */
	uint64_t max_resident, min_free_slots;
	char trouble[200];            /* the last one seen by stub_watch() */
	struct smv_pager_stats stats; /* from stub_lab_stop() */
};

/** stub_lab_create - sub-hosts, VM, and a pager with its pages installed; it does not serve yet. */
void stub_lab_create(struct stub_lab *lab, const struct stub_options *options);
void stub_lab_start(struct stub_lab *lab);
/** stub_lab_take_over - a new pager goes on with the map, as after the end of the one before; then
 * stub_lab_start(). 0 or why it is refused, in @err. */
int stub_lab_take_over(struct stub_lab *lab, struct smv_taken_over *report, struct smv_error *err);
/** stub_lab_grow - under a VM that runs: @nr_extents more of the spare ones, as in a lease of their
 * own; the pager stops for that and goes on. */
void stub_lab_grow(struct stub_lab *lab, uint64_t nr_extents);
/** stub_lab_stop - ends the pager and keeps its last statistics. */
void stub_lab_stop(struct stub_lab *lab);
void stub_lab_destroy(struct stub_lab *lab);

/** stub_page_fill - what a page of a version holds. */
void stub_page_fill(const struct stub_lab *lab, void *data, uint64_t page, uint32_t version);
/** stub_read / stub_write - as a thread of the VM does; the read counts a mismatch. */
void stub_read(struct stub_lab *lab, uint64_t page);
void stub_write(struct stub_lab *lab, uint64_t page, uint32_t version);

/** stub_discards_to - from now on the pager that serves discards is at @fd. */
void stub_discards_to(struct stub_lab *lab, int fd);
/** stub_ask_discard - what the shim in QEMU does: ask, and again when the pager dies before it has
 * answered. @offset: in the file of the RAM block. The pager's answer. */
int stub_ask_discard(struct stub_lab *lab, unsigned int block, uint64_t offset, uint64_t len);
/** stub_discard - as the VM's guest does: from now on these pages must be zeros. */
void stub_discard(struct stub_lab *lab, uint64_t first, uint64_t nr_pages);

/** stub_run - run @body as a thread of the VM; a fault that is not served within a minute ends the
 * test. */
void stub_run(struct stub_lab *lab, void *(*body)(void *lab));
/** stub_read_all - as a thread of the VM, every page. */
void *stub_read_all(void *lab);

/** stub_stress_start / stop - threads that read, verify and rewrite pages. */
void stub_stress_start(struct stub_lab *lab);
void stub_stress_stop(struct stub_lab *lab);
/** stub_flap - change the budget at random between @min and @max pages until @ms have passed, then
 * leave it at @max; samples as stub_watch() does. Returns how often. */
unsigned int stub_flap(struct stub_lab *lab, uint64_t min, uint64_t max, unsigned int ms);
/** stub_watch - sample resident memory, free slots and trouble every millisecond. */
void stub_watch(struct stub_lab *lab, unsigned int ms);

/** stub_slot_move - @data, of one page, to or from a slot, by lab->way if that is open: 0 or
 * -errno.
 */
int stub_slot_move(const struct stub_lab *lab, enum smv_op op, uint64_t slot, void *data);
/** stub_way_open / close - the test's own connections to the sub-hosts, as a writer. */
void stub_way_open(struct stub_lab *lab);
void stub_way_close(struct stub_lab *lab);

/** stub_audit - with the pager stopped: read every page where the map says that it is, without the
 * pager's code; compare slots, counts and resident memory with the map. Returns the number of
 * faults found, the first ones are printed. */
unsigned int stub_audit(struct stub_lab *lab);

#endif
