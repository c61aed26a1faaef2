/* SPDX-License-Identifier: Apache-2.0 */
/* For tests that start a daemon of ours. */
#ifndef SMV_TESTS_DAEMON_H
#define SMV_TESTS_DAEMON_H

/** wait_ready - read what a daemon logs to @fd, up to the line that says it is ready. Fails the test,
 * with the log, when the daemon ends first. */
void wait_ready(int fd);

#endif
