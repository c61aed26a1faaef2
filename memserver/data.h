/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listeners of the data plane. Whoever connects must show a ticket of a lease; after that no
 * code of this server runs for a read or a write.
 */
#ifndef SMV_MEMSERVER_DATA_H
#define SMV_MEMSERVER_DATA_H

#include "memserver/lease.h"

#define SMV_DATA_LISTENERS_MAX 16

struct smv_data_plane;

/** smv_data_prepare - said of each data address before there are leases, see smv_listen_prepare().
 */
void smv_data_prepare(const struct smv_addr *addr);

/** smv_data_create - no listener yet. @table stays the caller's. */
int smv_data_create(
	struct smv_lease_table *table, struct smv_data_plane **data, struct smv_error *err);

/** smv_data_destroy - close all listeners and connections; smv_lease_table_stop() comes before.
 * NULL is fine. */
void smv_data_destroy(struct smv_data_plane *data);

/**
 * smv_data_listen - accept connections at @addr; without a transport it is tcp.
 *
 * Peers are told this address, so it must name a host: 0.0.0.0 and :: are refused. Not to be called
 * any more when other threads use @data.
 */
int smv_data_listen(
	struct smv_data_plane *data, const struct smv_addr *addr, struct smv_error *err);

/** smv_data_addresses - what peers may connect to, with transport and real port. */
const char *const *smv_data_addresses(const struct smv_data_plane *data, size_t *nr);

/** smv_data_find_transport - the transport of that name if there is a listener for it. */
int smv_data_find_transport(const struct smv_data_plane *data, const char *name,
	const struct smv_transport **transport, struct smv_error *err);

#endif
