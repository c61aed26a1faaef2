/* SPDX-License-Identifier: Apache-2.0 */
/* For tests that start a daemon of ours. */
#ifndef SMV_TESTS_DAEMON_H
#define SMV_TESTS_DAEMON_H

#include "rpc/rpc.h"

/** wait_ready - read what a daemon logs to @fd, up to the line that says it is ready. Ends the
 * test, with the log, when the daemon ends first. */
void wait_ready(int fd);

/** leases_at - how many leases a memserverd has that do not end yet. */
unsigned int leases_at(struct smv_rpc_client *memserverd);

#endif
