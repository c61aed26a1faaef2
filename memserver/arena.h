/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena: all memory that a memserverd lends, a file on tmpfs, ramfs or hugetlbfs, allocated
 * when it is made, so that no write meets a full file system (SIGBUS) later.
 *
 * The state directory holds `arena` and `pid`; a lock on the directory itself keeps a second daemon
 * out. hugetlbfs takes no small files, so there `arena` is a symbolic link to
 * MOUNT/smemv-NAME-INCARNATION: from the directory the arena can be found in either case. An arena
 * does not outlive its daemon: what a killed one left behind is replaced by a fresh arena of
 * another incarnation.
 */
#ifndef SMV_MEMSERVER_ARENA_H
#define SMV_MEMSERVER_ARENA_H

#include "common/error.h"
#include "common/units.h"

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
 * smv_arena_create - make and map an arena of zeros.
 * @state_dir: NULL: /dev/shm/smemv/memserverd-NAME. Its last component is made if it is missing.
 * @hugepage_bytes: 0: ordinary pages
 *
 * Takes long for a large arena; gives up between two GiB with SMV_CANCELLED when a SIGTERM or
 * SIGINT is pending that the caller has blocked. Leaves nothing behind on failure.
 */
int smv_arena_create(const char *name, const char *state_dir, uint64_t size_bytes,
	uint64_t hugepage_bytes, struct smv_arena **arena, struct smv_error *err);

/** smv_arena_destroy - unmap it and remove what smv_arena_create() made. NULL is fine. */
void smv_arena_destroy(struct smv_arena *arena);

void *smv_arena_base(const struct smv_arena *arena);
uint64_t smv_arena_size(const struct smv_arena *arena);
uint64_t smv_arena_hugepage_bytes(const struct smv_arena *arena);

/** smv_arena_incarnation - 32 random hexadecimal digits, others for each arena. */
const char *smv_arena_incarnation(const struct smv_arena *arena);

#endif
