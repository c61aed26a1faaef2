/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena: all memory that a memserverd lends, a file on tmpfs, ramfs or hugetlbfs, allocated
 * when it is made, so that no write meets a full file system (SIGBUS) later.
 *
 * The state directory holds `arena`, `leases` (the list of leases, see lease_file.h) and `pid`; a
 * lock on the directory itself keeps a second daemon out. hugetlbfs takes no small files, so there
 * `arena` is a symbolic link to MOUNT/smemv-NAME-INCARNATION: from the directory the arena can be
 * found in either case.
 *
 * As long as the list has a lease that somebody may have data in, arena and list outlive the
 * daemon, however it ends, and the next one takes them over: the same incarnation, its next
 * generation. What cannot be taken over is never thrown away unasked, but refused.
 */
#ifndef SMV_MEMSERVER_ARENA_H
#define SMV_MEMSERVER_ARENA_H

#include "common/error.h"
#include "common/units.h"
#include "memserver/lease_file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_EXTENT_SIZE (2 * SMV_MIB)

struct smv_arena;

/** smv_arena_check_name - whether @name may name a server: [A-Za-z0-9._-]{1,64}. */
int smv_arena_check_name(const char *name, struct smv_error *err);

/** smv_arena_check_size - whether @size_bytes is a positive multiple of SMV_EXTENT_SIZE. */
int smv_arena_check_size(uint64_t size_bytes, struct smv_error *err);

/** smv_arena_check_hugepages - whether this host has huge pages of @hugepage_bytes, and @size_bytes
 * is a multiple of them. */
int smv_arena_check_hugepages(uint64_t size_bytes, uint64_t hugepage_bytes, struct smv_error *err);

/**
 * smv_arena_create - take over the arena that a daemon left, or make one of zeros, and map it.
 * @state_dir: NULL: /dev/shm/smemv/memserverd-NAME. Its last component is made if it is missing.
 * @hugepage_bytes: 0: ordinary pages
 *
 * Takes long for a large arena that is made; gives up between two GiB with SMV_CANCELLED when a
 * SIGTERM or SIGINT is pending that the caller has blocked. On failure nothing new stays, and
 * nothing goes that somebody may have data in.
 *
 * An arena of another size or on other pages is replaced if nobody has data in it; otherwise it is
 * SMV_REFUSED, as is whatever does not fit together.
 */
int smv_arena_create(const char *name, const char *state_dir, uint64_t size_bytes,
	uint64_t hugepage_bytes, struct smv_arena **arena, struct smv_error *err);

/** smv_arena_discard - remove what a daemon left in the directory, whatever it is. Refused while
 * one uses it. */
int smv_arena_discard(const char *name, const char *state_dir, struct smv_error *err);

/** smv_arena_destroy - unmap it. Its files go too, unless the list has a live lease: then they are
 * kept for the next daemon, which is logged. NULL is fine. */
void smv_arena_destroy(struct smv_arena *arena);

/** smv_arena_leases - what the former daemon had lent; nothing for a new arena. */
const struct smv_lease_file *smv_arena_leases(const struct smv_arena *arena);

/** smv_arena_store - replace the list of leases. On failure the former one stays. The caller keeps
 * out other threads. */
int smv_arena_store(struct smv_arena *arena, struct smv_lease_record *records, size_t nr,
	struct smv_error *err);

void *smv_arena_base(const struct smv_arena *arena);
uint64_t smv_arena_size(const struct smv_arena *arena);
uint64_t smv_arena_hugepage_bytes(const struct smv_arena *arena);

/** smv_arena_incarnation - 32 random hexadecimal digits, others for each arena. */
const char *smv_arena_incarnation(const struct smv_arena *arena);

/** smv_arena_generation - how often it was taken over. */
uint64_t smv_arena_generation(const struct smv_arena *arena);

#endif
