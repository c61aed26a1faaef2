/* SPDX-License-Identifier: Apache-2.0 */
/* Naming a process so that a later one with the same number is not taken for it. */
#ifndef SMV_COMMON_PROCESS_H
#define SMV_COMMON_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

struct smv_process {
	pid_t pid;
	uint64_t start_time; /* in clock ticks since boot, as in /proc/PID/stat */
};

/** smv_process_identify - 0; -ESRCH when there is surely no such process (a zombie counts as none); or
 * another -errno when that cannot be told. */
int smv_process_identify(pid_t pid, struct smv_process *process);

/** smv_process_open - a pidfd of exactly this process; errors as above. The caller closes it. */
int smv_process_open(const struct smv_process *process);

/** smv_process_signal - send @sig to exactly this process; 0 only asks whether it lives. Errors as
 * above. */
int smv_process_signal(const struct smv_process *process, int sig);

#endif
