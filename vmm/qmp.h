/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QMP client over a unix socket. One thread at a time calls smv_qmp_execute(); events that arrive
 * meanwhile are kept for smv_qmp_next_event().
 */
#ifndef SMV_VMM_QMP_H
#define SMV_VMM_QMP_H

#include "common/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct smv_qmp;

/** smv_qmp_open - connect and negotiate; waits up to @timeout_ms for the socket to appear. */
int smv_qmp_open(const char *path, int timeout_ms, struct smv_qmp **qmp, struct smv_error *err);
void smv_qmp_close(struct smv_qmp *qmp);
/** smv_qmp_is_broken - the stream has ended or is out of step: every further call fails. */
bool smv_qmp_is_broken(const struct smv_qmp *qmp);

/** smv_qmp_version - of QEMU, as major * 10000 + minor * 100 + micro, and as text. */
int smv_qmp_version(const struct smv_qmp *qmp, const char **text);

/** smv_qmp_peer_pid - the process that listens at the socket: QEMU, unless whoever started it made
 * the socket (libvirt does). -1 when it is in another pid namespace. */
pid_t smv_qmp_peer_pid(const struct smv_qmp *qmp);

/**
 * smv_qmp_execute - run one command.
 * @arguments: reference taken over; NULL for none
 * @result: gets a new reference to "return", or NULL to drop it
 *
 * QEMU's own refusal is SMV_REFUSED, reason "qmp", with QEMU's words. A QEMU that went away is
 * SMV_UNAVAILABLE; silence for @timeout_ms is SMV_TIMEOUT, and the command may still take effect
 * (its late answer is dropped).
 */
int smv_qmp_execute(struct smv_qmp *qmp, const char *command, json_t *arguments, json_t **result,
	int timeout_ms, struct smv_error *err);

/** smv_qmp_next_event - the next event, waiting up to @timeout_ms; new reference. 0, -ETIMEDOUT, or
 * -ECONNRESET when QEMU has gone. */
int smv_qmp_next_event(struct smv_qmp *qmp, int timeout_ms, json_t **event);

/** smv_qmp_run_state - "running", "paused", "postmigrate", ... into @state. */
int smv_qmp_run_state(struct smv_qmp *qmp, char *state, size_t len, struct smv_error *err);

/** smv_qmp_get_capability / smv_qmp_set_capability - a migration capability. */
int smv_qmp_get_capability(struct smv_qmp *qmp, const char *name, bool *on, struct smv_error *err);
int smv_qmp_set_capability(struct smv_qmp *qmp, const char *name, bool on, struct smv_error *err);

#endif
