/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What RDMA hardware this host has, for people who want to know why verbs can or cannot be used.
 * The transport itself does not use it.
 */
#ifndef SMV_TRANSPORT_VERBS_INVENTORY_H
#define SMV_TRANSPORT_VERBS_INVENTORY_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#define SMV_VERBS_INVENTORY_PORTS 16
#define SMV_VERBS_INVENTORY_GIDS 256

struct smv_verbs_port {
	char device[64];     /* "mlx5_0" */
	unsigned int number; /* from 1; 0: the device cannot be opened, see error */
	int error;           /* why, -errno, or 0 */
	bool rdma_cm_ib;     /* InfiniBand or RoCE; not iWARP, which the transport cannot use */
	bool active;
	char state[24];           /* libibverbs' word for it */
	char link_layer[16];      /* "Ethernet", "InfiniBand" */
	char netdev[IF_NAMESIZE]; /* of its first GID; "" when it is not known */
};

struct smv_verbs_gid {
	unsigned int port;  /* index in smv_verbs_inventory.ports */
	unsigned int index; /* in the port's GID table */
	uint8_t raw[16];    /* RoCE: an IPv6 or mapped IPv4 address */
};

struct smv_verbs_inventory {
	unsigned int nr_devices; /* that libibverbs has a driver for */
	unsigned int nr_ports;   /* the first SMV_VERBS_INVENTORY_PORTS */
	unsigned int nr_gids;    /* the first SMV_VERBS_INVENTORY_GIDS */
	int cm_error;            /* of opening /dev/infiniband/rdma_cm: 0 or -errno */
	struct smv_verbs_port ports[SMV_VERBS_INVENTORY_PORTS];
	struct smv_verbs_gid gids[SMV_VERBS_INVENTORY_GIDS];
};

/** smv_verbs_inventory_take - look at the devices, their ports and GIDs as they are now. From any
 * thread; leaves nothing open. A host without RDMA has an empty one. */
void smv_verbs_inventory_take(struct smv_verbs_inventory *inventory);

#endif
