/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread's connections to the sub-hosts of a VM, with a registered staging buffer. Page data
 * goes through staging because registering guest RAM would pin it (see docs/architecture.md).
 */
#ifndef SMV_CLIENT_REMOTE_H
#define SMV_CLIENT_REMOTE_H

#include "client/backing.h"
#include "client/health.h"

#include <poll.h>

struct smv_remote;

struct smv_remote_completion {
	uint64_t cookie;
	int status; /* 0 or -errno */
};

/**
 * smv_remote_open - connect to every sub-host.
 * @staging_bytes: size of the staging buffer, a multiple of the page size
 * @timeout_ms: deadline of each request
 */
int smv_remote_open(const struct smv_backing *backing, enum smv_role role, size_t staging_bytes,
	unsigned int timeout_ms, struct smv_remote **remote, struct smv_error *err);
/** smv_remote_open_any - the same, but sub-hosts may be away: after a short while the rest is left
 * to smv_remote_mend(). */
int smv_remote_open_any(const struct smv_backing *backing, enum smv_role role, size_t staging_bytes,
	unsigned int timeout_ms, struct smv_remote **remote, struct smv_error *err);
void smv_remote_close(struct smv_remote *remote);

/** Told of a sub-host whose connection is lost or made again; the thread that uses the remote. @why
 * names the sub-host; NULL when it is up. */
typedef void (*smv_remote_watcher)(
	void *ctx, unsigned int sub_host, enum smv_host_state state, const char *why);

/** smv_remote_watch - from now on @watcher is told instead of the log; at once of those sub-hosts
 * that are down already. */
void smv_remote_watch(struct smv_remote *remote, smv_remote_watcher watcher, void *ctx);

/** smv_remote_staging - the staging buffer, page-aligned. */
void *smv_remote_staging(struct smv_remote *remote);

/**
 * smv_remote_post - read or write @nr_pages slots from @first_slot, all of one extent.
 * @staging: @nr_pages contiguous pages inside the staging buffer
 *
 * 0; -EAGAIN: the connection is full, poll first; -ENOTCONN: the sub-host is down, see
 * smv_remote_mend(); -ENODATA: it lost the data, see smv_remote_lost().
 */
int smv_remote_post(struct smv_remote *remote, enum smv_op op, uint64_t first_slot,
	unsigned int nr_pages, void *staging, uint64_t cookie);

/** smv_remote_poll - collect completions of all connections; never blocks. Failed connections are
 * closed after their last completion. Returns how many. */
unsigned int smv_remote_poll(
	struct smv_remote *remote, struct smv_remote_completion *completions, unsigned int max);

/** smv_remote_pollfds - what to wait for. Returns the number of entries filled, or -1 when there is
 * something to poll already. *timeout_ms is lowered to the next deadline (-1: none). @fds needs
 * SMV_SUB_HOSTS_MAX entries. */
int smv_remote_pollfds(struct smv_remote *remote, struct pollfd *fds, int *timeout_ms);

/**
 * smv_remote_mend - connect again to sub-hosts that are down, at most once per back-off time (100
 * ms doubling to 5 s, with jitter).
 *
 * The sub-host is asked for the way in first (smv_backing.find_door), as its memserverd may have
 * been started again; requests only ever go out with the rkeys of the generation that the
 * connection leads to. Never blocks: a thread asks and connects, a later call finds the result.
 *
 * Returns the number that are still down, and names one of them in @err: one whose data is lost
 * (SMV_DATA_LOSS) before one that is not reached. A lost one is asked again like the others, in
 * case another server had taken its address for a while.
 */
unsigned int smv_remote_mend(struct smv_remote *remote, struct smv_error *err);

/** smv_remote_lost - a sub-host has answered that it lost the data, and no connection to it was
 * possible since.
 * @for_ms: it has, moreover, said so again after this time, and was not away in between */
bool smv_remote_lost(const struct smv_remote *remote, unsigned int sub_host, unsigned int for_ms);

/** smv_remote_in_flight - requests without a completion yet. */
unsigned int smv_remote_in_flight(const struct smv_remote *remote);

struct smv_remote_bytes {
	uint64_t read;
	uint64_t written;
};
/** smv_remote_bytes_of - payload moved to and from one sub-host; any thread may ask. */
struct smv_remote_bytes smv_remote_bytes_of(const struct smv_remote *remote, unsigned int sub_host);

#endif
