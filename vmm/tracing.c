/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/tracing.h"

#include "common/cleanup.h"
#include "common/clock.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int smv_tracing_request(int what, pid_t tid, long data)
{
	return ptrace(what, tid, NULL, (void *)data) < 0 ? -errno : 0;
}

int smv_tracing_start(pthread_t *thread, void *(*run)(void *), void *arg)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

/* waitpid() knows no time-out, and most stops come within microseconds. */
int smv_tracing_wait(pid_t tid, unsigned int timeout_ms, int *status)
{
	uint64_t start = smv_now_ns();

	for (;;) {
		pid_t got = waitpid(tid, status, __WALL | __WNOTHREAD | WNOHANG);
		uint64_t waited = smv_now_ns() - start;

		if (got == tid)
			return WIFSTOPPED(*status) ? 0 : -ESRCH;
		if (got < 0 && errno != EINTR)
			return -ESRCH;
		if (waited >= timeout_ms * SMV_NS_PER_MS)
			return -ETIMEDOUT;
		if (waited < 200 * SMV_NS_PER_US) {
			sched_yield();
		} else {
			struct timespec ts = {
				0, waited < 20 * SMV_NS_PER_MS ? 50 * 1000 : 1000 * 1000};

			nanosleep(&ts, NULL);
		}
	}
}

bool smv_tracing_is_event(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

int smv_tracing_signal(int status)
{
	int sig = WSTOPSIG(status);

	return smv_tracing_is_event(status) || sig == (SIGTRAP | 0x80) ? 0 : sig;
}

void smv_tracing_status(pid_t pid, pid_t tid, const char *key, char *value, size_t len)
{
	char path[80];
	CLEANUP_FREE char *line = NULL;
	CLEANUP_FILE FILE *file = NULL;
	size_t size = 0, n = strlen(key);

	value[0] = 0;
	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)pid, (int)tid);
	file = fopen(path, "re");
	while (file && getline(&line, &size, file) > 0)
		if (strncmp(line, key, n) == 0 && line[n] == ':') {
			const char *v = line + n + 1 + strspn(line + n + 1, " \t");

			snprintf(value, len, "%.*s", (int)strcspn(v, "\n"), v);
			return;
		}
}

static long yama_scope(void)
{
	CLEANUP_FILE FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
	long scope = 0;

	return file && fscanf(file, "%ld", &scope) == 1 ? scope : 0;
}

int smv_tracing_not_permitted(pid_t pid, pid_t tid, struct smv_error *err)
{
	char tracer[32];
	long scope = yama_scope();

	smv_tracing_status(pid, tid, "TracerPid", tracer, sizeof(tracer));
	if (tracer[0] && strcmp(tracer, "0") != 0)
		return smv_fail(err, SMV_REFUSED, "ptrace-busy",
			"End the debugger or tracer; a process has one at a time.",
			"process %d is traced already, by thread %s", (int)pid, tracer);
	if (scope >= 3)
		return smv_fail(err, SMV_PERMISSION, "ptrace-yama",
			"Start the VM by smemv-run, which needs no ptrace. (A value of 3 stays "
			"until "
			"the next boot.)",
			"process %d cannot be traced: kernel.yama.ptrace_scope is %ld", (int)pid,
			scope);
	if (scope >= 1)
		return smv_fail(err, SMV_PERMISSION, "ptrace-yama",
			"Run as root (CAP_SYS_PTRACE), or: sysctl kernel.yama.ptrace_scope=0",
			"process %d cannot be traced: kernel.yama.ptrace_scope is %ld and we lack "
			"CAP_SYS_PTRACE",
			(int)pid, scope);
	return smv_fail(err, SMV_PERMISSION, "ptrace",
		"Run as root. In a container it needs CAP_SYS_PTRACE, and a security module "
		"(SELinux, AppArmor) must allow ptrace.",
		"process %d cannot be traced: permission denied", (int)pid);
}

/* TracerPid names the thread that traces. */
bool smv_tracing_is_ours(pid_t pid, pid_t tid)
{
	char tracer[32], path[64];

	smv_tracing_status(pid, tid, "TracerPid", tracer, sizeof(tracer));
	snprintf(path, sizeof(path), "/proc/self/task/%s", tracer);
	return tracer[0] && strcmp(tracer, "0") != 0 && access(path, F_OK) == 0;
}
