/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registering the memory of a lease. Where that pins it, it takes long: tenths of a second for a
 * GiB on a NIC, on ordinary pages and in one thread. So the segments, each a registration of its
 * own, are shared out among several threads.
 */
#ifndef SMV_MEMSERVER_REGISTRATION_H
#define SMV_MEMSERVER_REGISTRATION_H

#include "memserver/extents.h"
#include "transport/transport.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_REGISTRATION_THREADS_MAX 8

struct smv_registration {
	struct smv_domain *domain;
	char *base;                        /* of the arena */
	const struct smv_extent_run *runs; /* the segments */
	size_t nr_runs;
	struct smv_region **regions; /* by run; NULL before */
	const atomic_bool *stopping; /* looked at before each segment */

	unsigned int nr_threads; /* result: how many worked */
	uint64_t took_ns;        /* result */
};

/**
 * smv_registration_segment_extents - how long a segment of a lease of @size_bytes should be at
 * most.
 *
 * One GiB, or what the transport can register in one piece; a lease that fewer segments would hold
 * than threads can register is cut finer, but not below 64 MiB: NICs look up small registrations no
 * slower than large ones, but hold a limited number of them in their cache.
 */
size_t smv_registration_segment_extents(const struct smv_transport *transport, uint64_t size_bytes);

/**
 * smv_registration_run - register every run with remote access; blocks.
 *
 * Returns 0, the first error, or -ECANCELED. Regions that were registered before an error stay in
 * @regions: the caller deregisters what is not NULL.
 */
int smv_registration_run(
	const struct smv_transport *transport, struct smv_registration *registration);

#endif
