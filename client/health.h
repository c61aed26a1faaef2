/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How one pager fares: is its VM stalled, which sub-hosts are there, can it evict. It is told by
 * the threads of the pager when something changes, makes the events of it, and keeps what
 * operators ask for. Any thread may ask.
 *
 * A VM is stalled while a fault of it waits for longer than SMV_STALL_NS: for a sub-host, for room,
 * for the evictor, or for a page that is lost. A stall begins when the first of these faults was
 * read and ends when none of those that wait is that old; stalls do not overlap. From
 * SMV_STALL_TOLD_NS on it is an event, too. Reading a page takes far less than that.
 *
 * States of a sub-host, as each of the pager's two connections sees it; the worse one counts:
 *   UP   -> DOWN   the connection is lost
 *   DOWN -> UP     it is made again
 *   DOWN -> LOST   the sub-host is there, but the data is not
 *   LOST -> UP     another server had its address for a while
 *   LOST -> DOWN   now it is not reached at all
 */
#ifndef SMV_CLIENT_HEALTH_H
#define SMV_CLIENT_HEALTH_H

#include "client/backing.h"
#include "common/clock.h"
#include "common/histogram.h"

#include <pthread.h>
#include <stdbool.h>

#define SMV_STALL_NS (100 * SMV_NS_PER_MS)
#define SMV_STALL_TOLD_NS (1 * SMV_NS_PER_S)

/* The worse, the greater. */
enum smv_host_state { SMV_HOST_UP, SMV_HOST_DOWN, SMV_HOST_LOST };

struct smv_health {
	const char *vm; /* not owned, nor is the backing */
	const struct smv_backing *backing;
	pthread_mutex_t lock;
	struct smv_histogram stalls_ns; /* those that ended */
	uint64_t stalled_since_ns;      /* 0: it is not */
	uint64_t stall_end_ns;          /* of the last one */
	bool stall_told;
	bool eviction_blocked;
	enum smv_host_state hosts[2][SMV_SUB_HOSTS_MAX]; /* by role and sub-host */
};

struct smv_stalls {
	uint64_t ns;         /* in sum, with the present one */
	uint64_t nr;         /* with the present one */
	uint64_t present_ns; /* how long it is stalled now; 0: it is not */
	uint64_t p50_ns, p99_ns, max_ns;
};

/** smv_health_init - @vm and @backing must outlive it. */
void smv_health_init(struct smv_health *h, const char *vm, const struct smv_backing *backing);
void smv_health_destroy(struct smv_health *h);

/** smv_health_waiting - the fault thread, now and then: its oldest fault waits since @since_ns; 0:
 * none waits. */
void smv_health_waiting(struct smv_health *h, uint64_t since_ns, uint64_t now_ns);
/** smv_health_unserved - nobody served the VM from @since_ns to @now_ns. Whether a thread of it
 * wanted a page meanwhile is not known: all of it counts as a stall, if it is long enough. */
void smv_health_unserved(struct smv_health *h, uint64_t since_ns, uint64_t now_ns);

/** smv_health_sub_host - what a connection of @role says of a sub-host; @why: unless it is UP. */
void smv_health_sub_host(struct smv_health *h, enum smv_role role, unsigned int sub_host,
	enum smv_host_state state, const char *why);
/** smv_health_eviction - pages cannot be evicted, @why; NULL: they can. */
void smv_health_eviction(struct smv_health *h, const char *why);

void smv_health_stalls(struct smv_health *h, struct smv_stalls *stalls);
enum smv_host_state smv_health_host(struct smv_health *h, unsigned int sub_host);

#endif
