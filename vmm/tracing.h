/* SPDX-License-Identifier: Apache-2.0 */
/* What inject.c and throttle.c share: waiting for threads that stop, and why ptrace is refused. */
#ifndef SMV_VMM_TRACING_H
#define SMV_VMM_TRACING_H

#include "common/error.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/** smv_tracing_request - ptrace(@what, @tid, NULL, @data), for requests with a result of 0. -errno. */
int smv_tracing_request(int what, pid_t tid, long data);

/** smv_tracing_start - a thread that traces, which no signal of this process interrupts. -errno. */
int smv_tracing_start(pthread_t *thread, void *(*run)(void *), void *arg);

/** smv_tracing_wait - the next stop of thread @tid, which the calling thread traces: 0, -ETIMEDOUT
 * (with @timeout_ms 0: not yet), or -ESRCH when it has ended. */
int smv_tracing_wait(pid_t tid, unsigned int timeout_ms, int *status);

/** smv_tracing_is_event - did it stop because it was asked to, outside of system calls? */
bool smv_tracing_is_event(int status);

/** smv_tracing_signal - the signal that it was about to get, to be passed on; 0: none. */
int smv_tracing_signal(int status);

/** smv_tracing_status - the value behind "@key:" in the thread's status file; empty when there is
 * none. */
void smv_tracing_status(pid_t pid, pid_t tid, const char *key, char *value, size_t len);

/** smv_tracing_is_ours - is a thread of this process its tracer? */
bool smv_tracing_is_ours(pid_t pid, pid_t tid);

/** smv_tracing_not_permitted - why the kernel said EPERM. It does not tell itself; these are its
 * rules: one tracer, Yama, capabilities. */
int smv_tracing_not_permitted(pid_t pid, pid_t tid, struct smv_error *err);

#endif
