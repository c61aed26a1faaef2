/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of leases in the state directory, by which a daemon that is started again knows what the
 * one before has lent. JSON, because people look at it when something is wrong; mode 0600, because
 * it has the keys of the leases.
 *
 * It is written anew beside the old one and takes its place by one rename(2): whenever the daemon
 * is killed, the directory has the list before the change or the one after it.
 */
#ifndef SMV_MEMSERVER_LEASE_FILE_H
#define SMV_MEMSERVER_LEASE_FILE_H

#include "common/error.h"
#include "memserver/extents.h"
#include "transport/ticket.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_LEASE_OWNER_MAX 200

/* A lease must fit into one message of the control channel, and all leases without their segments
 * into another one. */
#define SMV_LEASE_SEGMENTS_MAX 4096
#define SMV_LEASES_MAX 512

/* The numbers are those of smemv.v1.LeaseState. */
enum smv_lease_state {
	SMV_LEASE_PREPARING = 1,
	SMV_LEASE_PROVISIONAL,
	SMV_LEASE_HELD,
	SMV_LEASE_RELEASING,
	SMV_LEASE_ORPHANED,
	SMV_LEASE_GONE, /* in no list */
};

struct smv_lease_record {
	uint64_t id;
	char owner[SMV_LEASE_OWNER_MAX + 1];
	enum smv_lease_state state;
	uint32_t epoch;
	uint8_t key[SMV_TICKET_KEY_SIZE];
	char transport[16];
	uint64_t ttl_ms;
	uint64_t created_ns;         /* CLOCK_MONOTONIC: the list does not outlive the kernel */
	struct smv_extent_run *runs; /* its segments, in their order */
	size_t nr_runs;
};

struct smv_lease_file {
	char incarnation[33];
	uint64_t generation; /* how often a daemon was started over this arena, from 0 */
	uint64_t size_bytes; /* of the arena */
	uint64_t hugepage_bytes;
	uint64_t arena_inode;
	struct smv_lease_record *records;
	size_t nr_records;
};

/** smv_lease_is_live - whether somebody may have data in a lease of that state. */
static inline bool smv_lease_is_live(enum smv_lease_state state)
{
	return state == SMV_LEASE_PROVISIONAL || state == SMV_LEASE_HELD ||
	       state == SMV_LEASE_ORPHANED;
}

const char *smv_lease_state_name(enum smv_lease_state state);

/**
 * smv_lease_file_read - read and check the list in @dir_fd.
 * @dir: its name, for errors
 *
 * -ENOENT when there is none; SMV_REFUSED for one that is damaged, makes no sense (extents beyond
 * the arena or lent twice) or is somebody else's. Afterwards smv_lease_file_clear().
 */
int smv_lease_file_read(
	int dir_fd, const char *dir, struct smv_lease_file *file, struct smv_error *err);

/** smv_lease_file_write - replace the list; on failure the former one stays. */
int smv_lease_file_write(
	int dir_fd, const char *dir, const struct smv_lease_file *file, struct smv_error *err);

/** smv_lease_file_remove - false when there was none. */
bool smv_lease_file_remove(int dir_fd);

/** smv_lease_file_clear - free what smv_lease_file_read() hung into it. */
void smv_lease_file_clear(struct smv_lease_file *file);

#endif
