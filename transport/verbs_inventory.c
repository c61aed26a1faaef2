/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/verbs_inventory.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <string.h>

static struct smv_verbs_port *add_port(
	struct smv_verbs_inventory *inv, const struct ibv_device *device)
{
	struct smv_verbs_port *port;

	if (inv->nr_ports == SMV_VERBS_INVENTORY_PORTS)
		return NULL;
	port = &inv->ports[inv->nr_ports++];
	snprintf(port->device, sizeof(port->device), "%s", device->name);
	port->rdma_cm_ib = device->transport_type == IBV_TRANSPORT_IB;
	return port;
}

static const char *link_layer_name(uint8_t link_layer)
{
	switch (link_layer) {
	case IBV_LINK_LAYER_ETHERNET:
		return "Ethernet";
	case IBV_LINK_LAYER_INFINIBAND:
		return "InfiniBand";
	default:
		return "unspecified";
	}
}

static void look_at_port(struct smv_verbs_port *port, struct ibv_context *ctx, uint8_t number)
{
	struct ibv_port_attr attr;
	int error = ibv_query_port(ctx, number, &attr);

	port->number = number;
	if (error) {
		port->error = -error;
		return;
	}
	port->active = attr.state == IBV_PORT_ACTIVE;
	/* "PORT_ACTIVE" */
	snprintf(port->state, sizeof(port->state), "%s", ibv_port_state_str(attr.state));
	snprintf(
		port->link_layer, sizeof(port->link_layer), "%s", link_layer_name(attr.link_layer));
}

static void list_gids(
	struct smv_verbs_inventory *inv, struct ibv_context *ctx, unsigned int first_port)
{
	struct ibv_gid_entry entries[SMV_VERBS_INVENTORY_GIDS];
	ssize_t n = ibv_query_gid_table(ctx, entries, SMV_VERBS_INVENTORY_GIDS, 0);

	for (ssize_t i = 0; i < n && inv->nr_gids < SMV_VERBS_INVENTORY_GIDS; i++) {
		const unsigned int port = first_port + entries[i].port_num - 1;
		struct smv_verbs_gid *gid = &inv->gids[inv->nr_gids];

		if (port >= inv->nr_ports)
			continue;
		gid->port = port;
		gid->index = entries[i].gid_index;
		memcpy(gid->raw, entries[i].gid.raw, sizeof(gid->raw));
		if (entries[i].ndev_ifindex && !inv->ports[port].netdev[0])
			if_indextoname(entries[i].ndev_ifindex, inv->ports[port].netdev);
		inv->nr_gids++;
	}
}

static void look_at_device(struct smv_verbs_inventory *inv, struct ibv_device *device)
{
	const unsigned int first_port = inv->nr_ports;
	struct ibv_context *ctx = ibv_open_device(device);
	struct ibv_device_attr attr;
	struct smv_verbs_port *port;

	if (!ctx || ibv_query_device(ctx, &attr) != 0) {
		port = add_port(inv, device);
		if (port)
			port->error = errno ? -errno : -EIO;
		if (ctx)
			ibv_close_device(ctx);
		return;
	}
	for (uint8_t i = 1; i <= attr.phys_port_cnt; i++)
		if ((port = add_port(inv, device)))
			look_at_port(port, ctx, i);
	list_gids(inv, ctx, first_port);
	ibv_close_device(ctx);
}

static int try_rdma_cm(void)
{
	struct rdma_event_channel *cm = rdma_create_event_channel();

	if (!cm)
		return errno ? -errno : -ENODEV;
	rdma_destroy_event_channel(cm);
	return 0;
}

void smv_verbs_inventory_take(struct smv_verbs_inventory *inventory)
{
	int n = 0;
	struct ibv_device **list = ibv_get_device_list(&n);

	memset(inventory, 0, sizeof(*inventory));
	for (int i = 0; list && i < n; i++)
		look_at_device(inventory, list[i]);
	if (list)
		ibv_free_device_list(list);
	inventory->nr_devices = n > 0 ? (unsigned int)n : 0;
	inventory->cm_error = try_rdma_cm();
}
