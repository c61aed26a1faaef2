/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libsmemv: far memory for any process. A region is larger than the local memory it may use (its
 * budget); what does not fit lives in the memory of other hosts, lent by memserverd. The program
 * uses plain loads and stores. See smemv(3).
 *
 * Functions return 0 or a negative errno unless they say otherwise, and fill a struct smemv_error
 * if one is given.
 *
 * Threads. Everything may be called from any thread, but not from a signal handler, and not on one
 * region while smemv_unmap() or smemv_close() works on it. The library's own threads touch no
 * region and have all signals blocked. A thread that touches a page that is not here sleeps until
 * it is; signal handlers interrupt that sleep, and may touch regions too.
 *
 * fork(). A region does not exist in a child, and nothing in this file may be called there.
 *
 * exit() gives the leases back; threads that touch a region from then on wait for the end. A
 * process that is killed leaves its leases behind.
 *
 * A server that is away: threads that need it wait, for ever if need be, and
 * smemv_stats().trouble says so. A memserverd that is started again still has its memory; a host
 * that was rebooted has lost it, and there is one copy only. What is lost is never shown as zeros.
 *
 * What a region must not be used for: O_DIRECT, RDMA registration, io_uring fixed buffers, vmsplice
 * and whatever else pins pages (writes would be lost), mlock() and mlockall(), madvise(), mremap(),
 * mprotect() and munmap() of it or of parts.
 *
 * Needs Linux 6.7 and the right to use userfaultfd: root, /dev/userfaultfd or the sysctl
 * vm.unprivileged_userfaultfd. Limits: 64 servers, 64 TiB per region, pages of 4 KiB.
 */
#ifndef SMEMV_H
#define SMEMV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The smallest budget of a region. */
#define SMEMV_BUDGET_MIN ((size_t)16 << 20)

/* A connection to a set of servers; holds regions. */
struct smemv;

/* A range of far memory. */
struct smemv_region;

struct smemv_error {
	char message[600]; /* what was tried, on what, why it failed */
	char hint[600];    /* what to do; may be empty */
};

struct smemv_options {
	const char *const *servers; /* control addresses of memserverds: "HOST:PORT", "unix:PATH" */
	unsigned int nr_servers;    /* 1 to 64 */
	const char *transport;      /* "auto" (also NULL), "tcp" or "verbs" */
	int insecure;            /* allow plaintext to servers outside loopback and unix sockets */
	unsigned int timeout_ms; /* of each request to a server; 0: 5000 */
	const char *log_level;   /* of lines to standard error, for the whole process: "error",
				    "warning" (also NULL), "info", "debug" */
};

struct smemv_stats {
	uint64_t size_bytes;
	uint64_t budget_bytes;
	uint64_t resident_bytes; /* local memory that the region's pages take now */
	/* Pages by where they are. */
	uint64_t pages_zero;   /* nowhere: never written, or all zeros when evicted */
	uint64_t pages_local;  /* here */
	uint64_t pages_remote; /* on a server */
	uint64_t pages_lost;   /* gone; threads that touch one wait for ever */
	/* Counted since smemv_map(). */
	uint64_t faults;                 /* answered by this library */
	uint64_t page_ins;               /* pages read from a server */
	uint64_t zero_fills;             /* first touches */
	uint64_t evictions;              /* pages given up locally */
	uint64_t evictions_clean;        /* those of them that needed no write */
	uint64_t faults_waited_for_room; /* met no free page, or a server that is down */
	uint64_t bytes_read;             /* from servers */
	uint64_t bytes_written;          /* to servers */
	/* From reading the fault to the page being in place, page-ins only. */
	uint64_t latency_ns_p50;
	uint64_t latency_ns_p99;
	uint64_t latency_ns_max;
	char transport[16]; /* in use: "tcp", "verbs" */
	char trouble[200];  /* empty, or what keeps threads waiting or pages from being evicted */
};

/**
 * smemv_open - check this kernel and ask the servers whether they are there.
 * @options: copied
 * @ctx: gets what smemv_map() needs; end it with smemv_close()
 *
 * Starts threads. -EINVAL: the options make no sense, or a plaintext connection would leave this
 * host; -EBUSY: the kernel lacks something; -ECONNREFUSED, -ETIMEDOUT: a server is not reached.
 */
int smemv_open(const struct smemv_options *options, struct smemv **ctx, struct smemv_error *err);

/** smemv_close - unmap all regions, give all leases back, free. NULL is fine. */
void smemv_close(struct smemv *ctx);

/**
 * smemv_map - make a region of zeros.
 * @size: in bytes, rounded up to pages of 4 KiB
 * @budget: local memory in bytes, at least SMEMV_BUDGET_MIN; may exceed @size
 *
 * Leases size - budget + slack (5 % of size, at least 64 MiB) from the servers, in proportion to
 * what each has free, and starts two threads. -ENOSPC: the servers have too little, with the
 * numbers in @err.
 */
int smemv_map(struct smemv *ctx, size_t size, size_t budget, struct smemv_region **region,
	struct smemv_error *err);

/** smemv_addr - where the region starts, page-aligned; it stays there until smemv_unmap(). */
void *smemv_addr(const struct smemv_region *region);

/** smemv_size - its size in bytes after rounding up. */
size_t smemv_size(const struct smemv_region *region);

/** smemv_unmap - drop the region with its contents and give its leases back. No thread may use it
 * any more. NULL is fine. */
void smemv_unmap(struct smemv_region *region);

/** smemv_stats - takes microseconds and waits for no server. */
void smemv_stats(struct smemv_region *region, struct smemv_stats *stats);

/** smemv_version - of the library: "0.1.0". */
const char *smemv_version(void);

#ifdef __cplusplus
}
#endif

#endif
