/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/inject.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "vmm/inject_arch.h"
#include "vmm/tracing.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

#define STOP_TIMEOUT_MS 500   /* for one thread; one that sleeps stops at once */
#define CALL_TIMEOUT_MS 20000 /* dropping the page tables of a large range takes a while */
#define THREADS_MAX 512
#define TRIES 4
#define CHUNK (64u << 10) /* of code, searched at a time */
#define CODE_MAX 16       /* bytes of a pattern, at most */

struct smv_inject {
	pid_t pid;
	pid_t wish; /* the thread to take; 0: any */
	int pidfd;  /* tells whether @pid is still the same process */
	int mem_fd;
	struct smv_arch_code code;
	uint64_t pause_ns;
};

/* --- looking for code ---------------------------------------------------------------------- */

static uint64_t find_in(const unsigned char *bytes, size_t len, uint64_t addr,
	const struct smv_arch_pattern *codes, size_t nr_codes)
{
	for (size_t i = 0; i < nr_codes; i++) {
		const unsigned char *hit = memmem(bytes, len, codes[i].bytes, codes[i].len);

		if (hit)
			return addr + (uint64_t)(hit - bytes);
	}
	return 0;
}

/* Chunks overlap, so that no pattern is cut in two. */
static void search(struct smv_inject *inject, uint64_t start, uint64_t end)
{
	static _Thread_local unsigned char bytes[CHUNK + CODE_MAX];
	struct smv_arch_code *code = &inject->code;

	for (uint64_t at = start; at < end && !(code->call && code->sigreturn); at += CHUNK) {
		size_t want = end - at < sizeof(bytes) ? end - at : sizeof(bytes);
		ssize_t n = pread(inject->mem_fd, bytes, want, (off_t)at);

		if (n <= 0)
			return;
		if (!code->call)
			code->call = find_in(
				bytes, (size_t)n, at, smv_arch_call_code, smv_arch_nr_call_codes);
		if (!code->sigreturn)
			code->sigreturn = find_in(bytes, (size_t)n, at, smv_arch_return_code,
				smv_arch_nr_return_codes);
	}
}

/* The C library and the vdso have it; a program that is linked statically has it in itself. */
static bool is_likely(const char *name)
{
	return strstr(name, "/libc") || strstr(name, "/ld-musl") || strstr(name, "[vdso]");
}

static int find_code(struct smv_inject *inject, bool likely)
{
	char path[64];
	CLEANUP_FREE char *line = NULL;
	CLEANUP_FILE FILE *maps = NULL;
	size_t len = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)inject->pid);
	maps = fopen(path, "re");
	if (!maps)
		return -errno;
	while (getline(&line, &len, maps) > 0) {
		uint64_t start, end;
		char perms[5];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) == 3 &&
			perms[0] == 'r' && perms[2] == 'x' && !strstr(line, "[vsyscall]") &&
			is_likely(line) == likely)
			search(inject, start, end);
	}
	return inject->code.call && inject->code.sigreturn ? 0 : -ENOENT;
}

/* --- errors -------------------------------------------------------------------------------- */

static int fail(
	const struct smv_inject *inject, pid_t tid, int r, const char *what, struct smv_error *err)
{
	if (r == -EPERM || r == -EACCES)
		return smv_tracing_not_permitted(inject->pid, tid, err);
	if (r == -ESRCH || r == -ENOENT)
		return smv_fail(err, SMV_NOT_FOUND, "process", "Is it the process id of QEMU?",
			"there is no process %d any more (%s)", (int)inject->pid, what);
	if (r == -ENOTSUP)
		return smv_fail(err, SMV_REFUSED, "ptrace-unsupported",
			"Start the VM by smemv-run instead.",
			"threads of process %d have a state that cannot be kept (%s): a program of "
			"another architecture?",
			(int)inject->pid, what);
	return smv_fail(err, smv_code_from_errno(r), "ptrace",
		"The VM was left as it was. Try again, or start it by smemv-run.",
		"process %d, thread %d: %s: %s", (int)inject->pid, (int)tid, what, strerror(-r));
}

/* --- one attempt in one thread ------------------------------------------------------------- */

struct attempt {
	struct smv_inject *inject;
	pid_t tid;
	struct smv_inject_call *calls;
	size_t nr_calls;
	const char *text;
	struct smv_error *err;
	bool suspend_seccomp;
	struct user_regs_struct regs; /* as they were */
	uint64_t mask;
	struct smv_arch_frame frame;
	int result; /* -EAGAIN: nothing was done, try another thread */
};

/* Until it stops because we asked for it, outside of system calls; signals are passed on. Any other
 * stop takes back what we asked for, hence again and again. */
static int wait_interrupted(pid_t tid, unsigned int timeout_ms)
{
	int status, r;

	for (;;) {
		if ((r = smv_tracing_wait(tid, timeout_ms, &status)) < 0)
			return r;
		if (smv_tracing_is_event(status))
			return 0;
		if ((r = smv_tracing_request(PTRACE_INTERRUPT, tid, 0)) < 0 ||
			(r = smv_tracing_request(PTRACE_CONT, tid, smv_tracing_signal(status))) < 0)
			return r;
	}
}

/* A thread that the throttle of this process holds just now is free again a moment later. */
static int try_seize(const struct attempt *a, long options)
{
	int r = -EPERM;

	for (int i = 0; i < 3 && r == -EPERM; i++) {
		r = smv_tracing_request(PTRACE_SEIZE, a->tid, options);
		if (r == -EPERM && smv_tracing_is_ours(a->inject->pid, a->tid))
			return -EAGAIN;
		/* It was let go between the two: once more. */
	}
	return r;
}

static int seize(struct attempt *a)
{
	long options = PTRACE_O_TRACESYSGOOD;
	char seccomp[8];
	int r;

	/* A filter may kill the process for a call that it does not expect. */
	smv_tracing_status(a->inject->pid, a->tid, "Seccomp", seccomp, sizeof(seccomp));
	a->suspend_seccomp = seccomp[0] && strcmp(seccomp, "0") != 0;
	if (a->suspend_seccomp)
		options |= PTRACE_O_SUSPEND_SECCOMP;
	r = try_seize(a, options);
	if (!r || !a->suspend_seccomp)
		return r;
	if (smv_tracing_request(PTRACE_SEIZE, a->tid, PTRACE_O_TRACESYSGOOD) < 0)
		return -errno;
	/* It is not the process that is closed to us but its filter. The thread's end detaches. */
	return smv_fail(a->err, SMV_PERMISSION, "ptrace-seccomp",
		"Run as root (CAP_SYS_ADMIN, outside of any sandbox), or start the VM by "
		"smemv-run.",
		"process %d has a seccomp filter, and suspending it for our system calls is not "
		"allowed to us",
		(int)a->inject->pid);
}

static int write_frame(const struct attempt *a)
{
	ssize_t n = pwrite(a->inject->mem_fd, a->frame.bytes, a->frame.len, (off_t)a->frame.addr);

	if (n < 0)
		return -errno;
	return (size_t)n == a->frame.len ? 0 : -EFAULT;
}

/* A fault that our own calls cause would be a signal to the VM: it never gets it. */
static bool is_fault(int sig)
{
	return sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGFPE ||
	       sig == SIGTRAP || sig == SIGSYS;
}

/* Go on to the end of the call. All signals are blocked but those that cannot be. */
static int wait_call(struct attempt *a, long *result)
{
	struct __ptrace_syscall_info info;
	int status, sig = 0, r;

	for (;;) {
		if ((r = smv_tracing_request(PTRACE_SYSCALL, a->tid, sig)) < 0 ||
			(r = smv_tracing_wait(a->tid, CALL_TIMEOUT_MS, &status)) < 0)
			return r;
		sig = smv_tracing_signal(status);
		if (is_fault(sig))
			return -EFAULT;
		if (sig || smv_tracing_is_event(status))
			continue;
		if (ptrace(PTRACE_GET_SYSCALL_INFO, a->tid, sizeof(info), &info) < 0)
			return -errno;
		if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
			*result = (long)info.exit.rval;
			return 0;
		}
		if (smv_fault_point("inject-entered"))
			return -EIO;
	}
}

/* -ENOTSUP: the thread of a 32-bit program, or one in 32-bit code. */
static int get_regs(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = {regs, sizeof(*regs)};

	if (ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov) < 0)
		return -errno;
	return iov.iov_len == sizeof(*regs) && smv_arch_is_native(regs) ? 0 : -ENOTSUP;
}

static int set_regs(pid_t tid, const struct user_regs_struct *regs)
{
	struct iovec iov = {(void *)regs, sizeof(*regs)};

	return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov) < 0 ? -errno : 0;
}

static int set_call(const struct attempt *a, const struct smv_inject_call *call)
{
	uint64_t args[6];
	struct user_regs_struct regs;

	for (size_t i = 0; i < SMV_ARRAY_SIZE(args); i++)
		args[i] = call->args[i] == SMV_INJECT_TEXT ? a->frame.text_addr : call->args[i];
	regs = smv_arch_call_regs(&a->regs, &a->inject->code, &a->frame, call->nr, args);
	return set_regs(a->tid, &regs);
}

static int do_calls(struct attempt *a)
{
	const uint64_t all = UINT64_MAX;
	int r;

	for (size_t i = 0; i < a->nr_calls; i++) {
		if ((r = set_call(a, &a->calls[i])) < 0)
			return r;
		if (smv_fault_point("inject-registers"))
			return -EIO;
		/* Only now: whoever finds its way back finds its mask in the frame. */
		if (i == 0 && ptrace(PTRACE_SETSIGMASK, a->tid, sizeof(all), &all) < 0)
			return -errno;
		if (smv_fault_point("inject-masked"))
			return -EIO;
		r = wait_call(a, &a->calls[i].result);
		if (r < 0 || a->calls[i].result < 0)
			return r;
		if (smv_fault_point("inject-called"))
			return -EIO;
	}
	return 0;
}

/*
 * As it was. The thread is taken to a stop in the kernel's signal code, where it was at first:
 * there the kernel looks again at signals, and at the system call that was interrupted, as the
 * registers tell of it.
 */
static int put_back(struct attempt *a)
{
	int r;

	if ((r = smv_tracing_request(PTRACE_INTERRUPT, a->tid, 0)) < 0 ||
		(r = smv_tracing_request(PTRACE_CONT, a->tid, 0)) < 0 ||
		(r = wait_interrupted(a->tid, CALL_TIMEOUT_MS)) < 0)
		return r;
	if (ptrace(PTRACE_SETSIGMASK, a->tid, sizeof(a->mask), &a->mask) < 0)
		return -errno;
	if (smv_fault_point("inject-unmasked"))
		return -EIO;
	if ((r = set_regs(a->tid, &a->regs)) < 0)
		return r;
	if (smv_fault_point("inject-restored"))
		return -EIO;
	return smv_tracing_request(PTRACE_DETACH, a->tid, 0);
}

/* Stopped: all that can be refused before anything is changed. */
static int prepare(struct attempt *a)
{
	int r;

	if ((r = get_regs(a->tid, &a->regs)) < 0)
		return r;
	if (ptrace(PTRACE_GETSIGMASK, a->tid, sizeof(a->mask), &a->mask) < 0)
		return -errno;
	if ((r = smv_arch_make_frame(
		     a->tid, &a->regs, a->mask, &a->inject->code, a->text, &a->frame)) < 0)
		return r;
	return write_frame(a);
}

static int attempt_in(struct attempt *a)
{
	const struct smv_inject *inject = a->inject;
	uint64_t start;
	int r = seize(a), back;

	if (r == -ESRCH || r == -EAGAIN)
		return -EAGAIN;
	if (r < 0)
		return a->err && a->err->code != SMV_OK
			       ? r
			       : fail(inject, a->tid, r, "PTRACE_SEIZE", a->err);
	if (smv_tracing_request(PTRACE_INTERRUPT, a->tid, 0) < 0 ||
		wait_interrupted(a->tid, STOP_TIMEOUT_MS) < 0)
		return -EAGAIN; /* it has ended, or cannot stop now; our end detaches it */
	start = smv_now_ns();
	r = prepare(a);
	if (r < 0) {
		smv_tracing_request(PTRACE_DETACH, a->tid, 0);
		return r == -ENOTSUP ? -EAGAIN : fail(inject, a->tid, r, "stopped", a->err);
	}
	r = do_calls(a);
	back = put_back(a);
	a->inject->pause_ns = smv_now_ns() - start;
	if (r < 0 || back < 0)
		return fail(inject, a->tid, r < 0 ? r : back, "system call in it", a->err);
	return 0;
}

/*
 * A thread of ours that ends with the attempt: a tracer is a thread, and its end lets go of what it
 * traces, in whatever state that is.
 */
static void *attempt_thread(void *arg)
{
	struct attempt *a = arg;

	a->result = attempt_in(a);
	return NULL;
}

static int attempt_start(struct attempt *a)
{
	pthread_t thread;
	int r = smv_tracing_start(&thread, attempt_thread, a);

	if (r)
		return smv_fail(a->err, SMV_NO_ROOM, "thread", NULL, "cannot start a thread: %s",
			strerror(-r));
	pthread_join(thread, NULL);
	return a->result;
}

/* --- choosing the thread ------------------------------------------------------------------- */

struct candidate {
	pid_t tid;
	int cost;
};

/* What an interruption costs a thread: nothing, if it sleeps in a system call that the kernel can
 * restart; epoll_wait() and others end with EINTR. */
static int cost_of(const struct smv_inject *inject, pid_t tid)
{
	char path[80], text[64] = "", state[8];
	CLEANUP_FILE FILE *file = NULL;
	long nr;

	smv_tracing_status(inject->pid, tid, "State", state, sizeof(state));
	if ((state[0] && strchr("DTtZX", state[0])) || smv_tracing_is_ours(inject->pid, tid))
		return 9;
	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", (int)inject->pid, (int)tid);
	file = fopen(path, "re");
	if (!file || !fgets(text, sizeof(text), file) || sscanf(text, "%ld", &nr) != 1 || nr < 0)
		return 3; /* it runs */
	switch (nr) {
	case SYS_futex:
		return 0;
	case SYS_ppoll:
	case SYS_pselect6:
	case SYS_clock_nanosleep:
	case SYS_read:
#ifdef SYS_poll
	case SYS_poll:
	case SYS_select:
#endif
		return 1;
	case SYS_epoll_pwait:
	case SYS_rt_sigtimedwait:
#ifdef SYS_epoll_wait
	case SYS_epoll_wait:
#endif
		return 5;
	default:
		return 4;
	}
}

static int by_cost(const void *a, const void *b)
{
	return ((const struct candidate *)a)->cost - ((const struct candidate *)b)->cost;
}

static size_t list_threads(const struct smv_inject *inject, struct candidate *list, size_t max)
{
	struct dirent *entry;
	char path[40];
	size_t n = 0;
	DIR *dir;

	if (inject->wish) {
		list[0] = (struct candidate){inject->wish, 0};
		return 1;
	}
	snprintf(path, sizeof(path), "/proc/%d/task", (int)inject->pid);
	dir = opendir(path);
	while (dir && n < max && (entry = readdir(dir))) {
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (tid > 0)
			list[n++] = (struct candidate){tid, cost_of(inject, tid)};
	}
	if (dir)
		closedir(dir);
	qsort(list, n, sizeof(*list), by_cost);
	return n;
}

int smv_inject_run(struct smv_inject *inject, struct smv_inject_call *calls, size_t nr_calls,
	const char *text, struct smv_error *err)
{
	struct candidate threads[THREADS_MAX];
	struct smv_error own;
	struct attempt a = {.inject = inject,
		.calls = calls,
		.nr_calls = nr_calls,
		.text = text,
		.err = err ? err : &own};
	size_t n;

	if (text && strlen(text) >= SMV_INJECT_TEXT_MAX)
		return smv_fail(err, SMV_INVALID, "ptrace", NULL, "a text is too long");
	for (size_t i = 0; i < nr_calls; i++)
		calls[i].result = -ECANCELED;
	if (pidfd_send_signal(inject->pidfd, 0, NULL, 0) < 0 && errno == ESRCH)
		return fail(inject, inject->pid, -ESRCH, "it has ended", err);
	a.err->code = SMV_OK;
	n = list_threads(inject, threads, SMV_ARRAY_SIZE(threads));
	for (size_t i = 0; i < n && i < TRIES; i++) {
		int r;

		a.tid = threads[i].tid;
		r = attempt_start(&a);
		if (r != -EAGAIN)
			return r;
	}
	return smv_fail(err, SMV_TIMEOUT, "ptrace-threads",
		"Is it stopped by a debugger, frozen by its cgroup, or waiting for a dead file "
		"server?",
		"no thread of process %d could be interrupted within %d ms", (int)inject->pid,
		STOP_TIMEOUT_MS);
}

void smv_inject_use_thread(struct smv_inject *inject, pid_t tid)
{
	inject->wish = tid;
}

uint64_t smv_inject_pause_ns(const struct smv_inject *inject)
{
	return inject->pause_ns;
}

static int check_process(struct smv_inject *inject, struct smv_error *err)
{
	char path[40], features[64];
	int r;

	inject->pidfd = pidfd_open(inject->pid, 0);
	if (inject->pidfd < 0)
		return smv_fail(err, errno == ESRCH ? SMV_NOT_FOUND : SMV_INVALID, "process",
			"Name the process id of QEMU, as in: pgrep -a qemu",
			"there is no process %d: %s", (int)inject->pid, strerror(errno));
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)inject->pid);
	inject->mem_fd = open(path, O_RDWR | O_CLOEXEC);
	if (inject->mem_fd < 0)
		return fail(inject, inject->pid, -errno, path, err);
	smv_tracing_status(
		inject->pid, inject->pid, "x86_Thread_features", features, sizeof(features));
	if (strstr(features, "shstk"))
		return smv_fail(err, SMV_REFUSED, "ptrace-unsupported",
			"Start the VM by smemv-run instead.",
			"process %d runs with shadow stacks, which allow no way back that its own "
			"code does not know",
			(int)inject->pid);
	r = find_code(inject, true);
	if (r == -ENOENT)
		r = find_code(inject, false);
	if (r == -ENOENT)
		return smv_fail(err, SMV_REFUSED, "ptrace-unsupported",
			"Start the VM by smemv-run instead.",
			"process %d holds no code that makes a system call and returns: a program "
			"of "
			"another architecture?",
			(int)inject->pid);
	return r < 0 ? fail(inject, inject->pid, r, "maps", err) : 0;
}

int smv_inject_open(pid_t pid, struct smv_inject **result, struct smv_error *err)
{
	struct smv_inject *inject = calloc(1, sizeof(*inject));
	int r;

	if (!inject)
		return smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	*inject = (struct smv_inject){.pid = pid, .pidfd = -1, .mem_fd = -1};
	r = check_process(inject, err);
	if (r < 0) {
		smv_inject_close(inject);
		return r;
	}
	*result = inject;
	return 0;
}

void smv_inject_close(struct smv_inject *inject)
{
	if (!inject)
		return;
	if (inject->pidfd >= 0)
		close(inject->pidfd);
	if (inject->mem_fd >= 0)
		close(inject->mem_fd);
	free(inject);
}
