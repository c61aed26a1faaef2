/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls made by a thread of another process, by ptrace(2), for a program that was not
 * started with our shim in it. One thread stops for the time of the calls, all others run on.
 *
 *   interrupt a thread -> registers and signal mask of the calls -> calls -> the former ones ->
 * detach
 *
 * The stopped thread gets a signal frame on its stack, as the kernel lays one out, and registers
 * that make it do the call and then return from that "signal". So whenever we die, by SIGKILL too,
 * the kernel lets go of the thread and it finds its way back by itself, floating point registers
 * included; at worst the call has been made once, and a system call that was interrupted reports
 * EINTR. While we live the frame is not used: registers and mask are put back, and the kernel
 * restarts an interrupted system call, or delivers signals that came meanwhile, as if nothing had
 * been there. (compel of CRIU injects likewise, but without such a way back.)
 */
#ifndef SMV_VMM_INJECT_H
#define SMV_VMM_INJECT_H

#include "common/error.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct smv_inject;

/* An argument of this value stands for the address of the text. */
#define SMV_INJECT_TEXT UINT64_MAX
#define SMV_INJECT_TEXT_MAX 256

struct smv_inject_call {
	long nr; /* __NR_... of the machine that we both run on */
	uint64_t args[6];
	long result; /* as from the kernel: -errno on failure */
};

/**
 * smv_inject_open - find what is needed in process @pid, by reading: nothing stops, nothing
 * changes. Refused with what to do: no permission (another user, Yama, a process that is not
 * dumpable), a debugger that is there already, a program of another machine, shadow stacks.
 */
int smv_inject_open(pid_t pid, struct smv_inject **inject, struct smv_error *err);
void smv_inject_close(struct smv_inject *inject);

/**
 * smv_inject_run - do the calls one after the other in one thread, up to the first that fails.
 * @text: a string that is there, at SMV_INJECT_TEXT, as long as the calls run; NULL for none
 *
 * 0 when all calls were made, or all up to one whose result is negative; the results of the others
 * are -ECANCELED. Otherwise -errno with @err: then none was made, or whether one was is unknown.
 * One thread at a time; no other thread of the caller may wait for any child (waitpid(-1)).
 */
int smv_inject_run(struct smv_inject *inject, struct smv_inject_call *calls, size_t nr_calls,
	const char *text, struct smv_error *err);

/** smv_inject_use_thread - choose the thread, for tests; 0 lets us choose: one that sleeps. */
void smv_inject_use_thread(struct smv_inject *inject, pid_t tid);

/** smv_inject_pause_ns - how long the thread of the last run was stopped. */
uint64_t smv_inject_pause_ns(const struct smv_inject *inject);

#endif
