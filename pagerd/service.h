/* SPDX-License-Identifier: Apache-2.0 */
/* The handlers of smemv.v1.Pager: from messages to smv_vms_*() and smv_migration_*() and back. */
#ifndef SMV_PAGERD_SERVICE_H
#define SMV_PAGERD_SERVICE_H

#include "rpc/rpc.h"

int smv_pager_service_add(struct smv_rpc_server *server);

#endif
