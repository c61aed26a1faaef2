/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls injected into a busy process of ours. Each of its threads does one thing that a
 * careless tracer would disturb, and counts what goes wrong.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "vmm/guest_process.h"
#include "vmm/inject.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { SPIN, SLEEP, FUTEX, PIPE, SIGNALS, SENDER, NR_THREADS };
static const char *const names[] = {"spin", "sleep", "futex", "pipe", "signals", "sender"};

/* Shared with the process. */
static struct busy {
	_Atomic pid_t tids[NR_THREADS];
	_Atomic uint64_t progress[NR_THREADS];
	_Atomic uint64_t errors[NR_THREADS];
	_Atomic uint64_t interrupted[NR_THREADS]; /* EINTR that no signal of ours caused */
	_Atomic uint64_t sent, handled;
	_Atomic int word;
	sem_t ping, pong;
	int pipe[2];
	char zapped[4096 * 4] __attribute__((aligned(4096)));
} * busy;

static sigset_t usual_mask;

static void begin(int thread)
{
	busy->tids[thread] = gettid();
}

/* One more round; the mask must be the one that we were started with. */
static void round_done(int thread, bool good)
{
	sigset_t mask;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (int sig = 1; sig < 32; sig++)
		good &= sigismember(&mask, sig) == sigismember(&usual_mask, sig);
	if (!good)
		busy->errors[thread]++;
	busy->progress[thread]++;
}

#ifdef __x86_64__
/* All registers that hold something across a loop: of 256 bits where the processor has them. */
__attribute__((target("avx"))) static bool spin_avx(const uint64_t in[4])
{
	uint64_t out[4] = {0}, n = 20000;

	asm volatile("vmovdqu (%1), %%ymm13\n vmovdqu (%1), %%ymm2\n"
		     "1: dec %0\n jnz 1b\n"
		     "vpxor %%xmm2, %%xmm13, %%xmm3\n vptest %%xmm3, %%xmm3\n jnz 2f\n"
		     "vmovdqu %%ymm13, (%2)\n 2:"
		     : "+r"(n)
		     : "r"(in), "r"(out)
		     : "memory", "cc", "xmm2", "xmm3", "xmm13");
	return n == 0 && memcmp(in, out, sizeof(out)) == 0;
}
#endif

static void *spin(void *arg)
{
	(void)arg;
	begin(SPIN);
	for (uint64_t i = 1;; i++) {
		uint64_t in[4] = {i, ~i, i << 32, i * 0x9e3779b97f4a7c15};
		bool good = true;

#ifdef __x86_64__
		if (__builtin_cpu_supports("avx"))
			good = spin_avx(in);
#endif
		for (volatile int k = 0; k < 1000; k = k + 1)
			in[0] = in[0] * 3 + 1;
		round_done(SPIN, good);
	}
	return NULL;
}

/* The raw call: libc's wrapper is none, but this shows what the kernel returned. */
static void *sleeper(void *arg)
{
	(void)arg;
	begin(SLEEP);
	for (;;) {
		struct timespec ts = {0, 1500000};
		uint64_t start = smv_now_ns();
		long r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, &ts);

		if (r < 0)
			busy->interrupted[SLEEP]++;
		round_done(SLEEP, r < 0 ? errno == EINTR : smv_now_ns() - start >= 1500000);
	}
	return NULL;
}

static void *futex(void *arg)
{
	(void)arg;
	begin(FUTEX);
	for (;;) {
		struct timespec ts = {0, 300000};
		/* Nobody wakes us: it must end by time-out, never by EINTR. */
		long r = syscall(SYS_futex, &busy->word, FUTEX_WAIT, 0, &ts, NULL, 0);

		if (r < 0 && errno == EINTR)
			busy->interrupted[FUTEX]++;
		round_done(FUTEX, r < 0 && (errno == ETIMEDOUT || errno == EINTR));
	}
	return NULL;
}

static void *pipe_reader(void *arg)
{
	char byte;

	(void)arg;
	begin(PIPE);
	for (uint8_t want = 0;; want++) {
		ssize_t n = read(busy->pipe[0], &byte, 1);

		round_done(PIPE, n == 1 && (uint8_t)byte == want);
	}
	return NULL;
}

static void on_usr1(int sig)
{
	(void)sig;
	busy->handled++;
}

/* SIGUSR1 is let in by ppoll() alone: a lost one, or an EINTR without one, is a fault. */
static void *signals(void *arg)
{
	sigset_t open = usual_mask;

	(void)arg;
	sigdelset(&open, SIGUSR1);
	begin(SIGNALS);
	for (;;) {
		uint64_t before = busy->handled;
		struct timespec ts = {20, 0};
		int r = ppoll(NULL, 0, &ts, &open);

		round_done(SIGNALS, r < 0 && errno == EINTR && busy->handled > before);
	}
	return NULL;
}

static void *sender(void *arg)
{
	(void)arg;
	begin(SENDER);
	for (uint8_t byte = 0;; byte++) {
		ssize_t n = write(busy->pipe[1], &byte, 1);

		if (busy->tids[SIGNALS] && busy->sent == busy->handled) {
			busy->sent++;
			tgkill(getpid(), busy->tids[SIGNALS], SIGUSR1);
		}
		for (volatile int k = 0; k < 30000; k = k + 1)
			;
		round_done(SENDER, n == 1);
	}
	return NULL;
}

static pid_t start_busy(void)
{
	static void *(*const bodies[])(void *) = {
		spin, sleeper, futex, pipe_reader, signals, sender};
	struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
	uint64_t deadline = smv_now_ns() + 10 * SMV_NS_PER_S;
	pid_t pid;

	busy = mmap(NULL, sizeof(*busy), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(busy != MAP_FAILED);
	cr_assert_eq(pipe2(busy->pipe, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		pthread_t thread;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigaction(SIGUSR1, &action, NULL);
		sigemptyset(&usual_mask);
		sigaddset(&usual_mask, SIGUSR1);
		sigaddset(&usual_mask, SIGWINCH);
		pthread_sigmask(SIG_SETMASK, &usual_mask, NULL);
		for (int i = 0; i < NR_THREADS; i++)
			if (pthread_create(&thread, NULL, bodies[i], NULL))
				_exit(1);
		for (;;)
			pause();
	}
	for (int i = 0; i < NR_THREADS; i++)
		while (!busy->progress[i] && smv_now_ns() < deadline)
			smv_sleep_ms(1);
	return pid;
}

/* Every thread goes on from here. */
static void check_progress(const char *when)
{
	for (int i = 0; i < NR_THREADS; i++) {
		uint64_t before = busy->progress[i], deadline = smv_now_ns() + 5 * SMV_NS_PER_S;

		while (busy->progress[i] < before + 3 && smv_now_ns() < deadline)
			smv_sleep_ms(1);
		cr_assert_geq(busy->progress[i], before + 3, "%s: thread '%s' stands still", when,
			names[i]);
		cr_expect_eq(busy->errors[i], 0, "%s: thread '%s' went wrong %lu times", when,
			names[i], busy->errors[i]);
	}
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void end(pid_t pid)
{
	cr_assert_eq(kill(pid, SIGKILL), 0);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
}

static bool is_forbidden(int r, const struct smv_error *err)
{
	return r < 0 && (err->code == SMV_PERMISSION && geteuid() != 0);
}

/* Four system calls in one stop: a number, a text, a file, a mapping. */
static int inject_some(struct smv_inject *inject, pid_t pid, struct smv_error *err)
{
	struct smv_inject_call calls[] = {{.nr = SYS_getpid},
		{.nr = SYS_openat,
			.args = {(uint64_t)AT_FDCWD, SMV_INJECT_TEXT, O_RDONLY | O_CLOEXEC}},
		{.nr = SYS_madvise, .args = {(uintptr_t)busy->zapped, 4096 * 2, MADV_DONTNEED}}};
	struct smv_inject_call last = {.nr = SYS_close};
	int r = smv_inject_run(inject, calls, 3, "/proc/self/status", err);

	if (r < 0)
		return r;
	cr_expect_eq(calls[0].result, pid);
	cr_expect_geq(calls[1].result, 3);
	cr_expect_eq(calls[2].result, 0);
	last.args[0] = (uint64_t)calls[1].result;
	r = smv_inject_run(inject, &last, 1, NULL, err);
	cr_expect(r < 0 || last.result == 0);
	return r;
}

Test(inject, two_hundred_times_into_a_busy_process)
{
	enum { TIMES = 200 };
	uint64_t pauses_ns[TIMES];
	struct smv_inject *inject;
	struct smv_error err;
	pid_t pid = start_busy();
	unsigned int done = 0;
	int r = smv_inject_open(pid, &inject, &err);

	if (is_forbidden(r, &err))
		cr_skip_test("ptrace is not allowed here");
	cr_assert_eq(r, 0, "%s", err.message);
	for (unsigned int i = 0; i < TIMES; i++) {
		/* Each kind of thread, and whichever is chosen. */
		unsigned int which = i % (NR_THREADS + 1);

		smv_inject_use_thread(inject, which < NR_THREADS ? busy->tids[which] : 0);
		r = inject_some(inject, pid, &err);
		cr_expect_eq(r, 0, "%u: %s", i, err.message);
		done += r == 0;
		pauses_ns[i] = smv_inject_pause_ns(inject);
	}
	check_progress("after the injections");
	for (int i = 0; i < NR_THREADS; i++)
		cr_expect_eq(busy->interrupted[i], 0, "thread '%s' saw %lu EINTR", names[i],
			busy->interrupted[i]);
	qsort(pauses_ns, TIMES, sizeof(pauses_ns[0]), compare);
	fprintf(stderr, "%u of %d, paused p50 %lu us, max %lu us; %lu signals\n", done, TIMES,
		pauses_ns[TIMES / 2] / 1000, pauses_ns[TIMES - 1] / 1000, busy->handled);
	cr_assert_eq(done, TIMES);
	smv_inject_close(inject);
	end(pid);
}

Test(inject, stops_at_the_first_failure)
{
	struct smv_inject_call calls[] = {
		{.nr = SYS_getpid}, {.nr = SYS_close, .args = {100000}}, {.nr = SYS_getpid}};
	struct smv_inject *inject;
	struct smv_error err;
	pid_t pid = start_busy();
	int r = smv_inject_open(pid, &inject, &err);

	if (is_forbidden(r, &err))
		cr_skip_test("ptrace is not allowed here");
	cr_assert_eq(r, 0, "%s", err.message);
	cr_assert_eq(smv_inject_run(inject, calls, 3, NULL, &err), 0, "%s", err.message);
	cr_expect(calls[0].result == pid && calls[1].result == -EBADF &&
		  calls[2].result == -ECANCELED);
	check_progress("after a failed call");
	end(pid);
	cr_expect_lt(smv_inject_run(inject, calls, 1, NULL, &err), 0);
	cr_expect_eq(err.code, SMV_NOT_FOUND, "%s", err.message);
	smv_inject_close(inject);
}

#ifdef SMEMV_FAULT_POINTS
/* A tracer that is killed at @point, while it has @thread stopped. Says whether it got there. */
static bool die_at(const char *point, pid_t pid, int thread)
{
	char fault[64];
	int status;
	pid_t tracer = fork();

	if (tracer == 0) {
		struct smv_inject *inject;
		struct smv_error err;

		snprintf(fault, sizeof(fault), "%s:kill", point);
		setenv("SMEMV_FAULT", fault, 1);
		if (smv_inject_open(pid, &inject, &err) < 0)
			_exit(err.code == SMV_PERMISSION && geteuid() != 0 ? 77 : 1);
		smv_inject_use_thread(inject, busy->tids[thread]);
		smv_inject_run(
			inject, (struct smv_inject_call[]){{.nr = SYS_getppid}}, 1, NULL, &err);
		_exit(0);
	}
	cr_assert_eq(waitpid(tracer, &status, 0), tracer);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		cr_skip_test("ptrace is not allowed here");
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/* Whenever the tracer dies: every thread finds its way back, with its registers and its mask. */
Test(inject, tracer_may_be_killed_at_any_step)
{
	static const char *const points[] = {"inject-registers", "inject-masked", "inject-entered",
		"inject-called", "inject-unmasked", "inject-restored"};
	pid_t pid = start_busy();

	for (size_t p = 0; p < SMV_ARRAY_SIZE(points); p++)
		for (int thread = 0; thread < NR_THREADS; thread++)
			for (int again = 0; again < 3; again++) {
				uint64_t before = busy->progress[thread];
				uint64_t deadline = smv_now_ns() + 5 * SMV_NS_PER_S;

				cr_assert(die_at(points[p], pid, thread), "not reached: %s",
					points[p]);
				while (busy->progress[thread] < before + 2 &&
					smv_now_ns() < deadline)
					smv_sleep_ms(1);
				cr_expect_geq(busy->progress[thread], before + 2,
					"killed at %s: thread '%s' stands still", points[p],
					names[thread]);
			}
	cr_assert_eq(waitpid(pid, NULL, WNOHANG), 0, "the process has died");
	check_progress("after six kinds of death");
	end(pid);
}
#endif

Test(guest_process, tracks_memory_without_a_shim)
{
	struct smv_guest_process *process;
	struct smv_error err;
	struct smv_shim_range range;
	pid_t pid = start_busy();
	int uffd, again, number, r = smv_guest_process_open_pid(pid, &process, &err);
	bool fresh;
	char link[64], path[48];

	if (is_forbidden(r, &err))
		cr_skip_test("ptrace is not allowed here");
	cr_assert_eq(r, 0, "%s", err.message);
	cr_assert(smv_guest_process_is_traced(process));
	cr_assert_eq(
		smv_guest_process_get_uffd(process, &uffd, &fresh, &err), 0, "%s", err.message);
	cr_assert(fresh);
	cr_assert_eq(smv_guest_process_get_uffd(process, &again, &fresh, &err), 0);
	cr_assert_not(fresh);
	close(again);
	close(uffd);
	number = smv_guest_process_uffd_number(process);
	cr_assert_geq(number, 3);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, number);
	cr_assert_gt(readlink(path, link, sizeof(link)), 0, "QEMU keeps its copy");
	memset(busy->zapped, 'x', sizeof(busy->zapped));
	range = (struct smv_shim_range){(uintptr_t)busy->zapped, sizeof(busy->zapped)};
	cr_assert_eq(smv_guest_process_zap(process, &range, 1, &err), 0, "%s", err.message);
	cr_assert_eq(busy->zapped[5000], 'x', "the data stays");
	range.addr++;
	cr_expect_lt(smv_guest_process_zap(process, &range, 1, &err), 0);
	/* Another tracer takes over what a dead one left. */
	smv_guest_process_close(process);
	cr_assert_eq(smv_guest_process_open_pid(pid, &process, &err), 0);
	cr_expect_lt(smv_guest_process_adopt_uffd(process, 0, &err), 0);
	cr_assert_eq(smv_guest_process_adopt_uffd(process, number, &err), 0, "%s", err.message);
	cr_assert_eq(smv_guest_process_close_uffd(process), 0);
	cr_assert_lt(readlink(path, link, sizeof(link)), 0, "nothing is left");
	check_progress("after tracking");
	smv_guest_process_close(process);
	end(pid);
}

Test(guest_process, says_why_not)
{
	struct smv_guest_process *process;
	struct smv_error err;
	pid_t pid = start_busy(), tracer;
	struct smv_inject *inject;
	struct smv_inject_call call = {.nr = SYS_getpid};
	int pipes[2];
	char byte;

	cr_assert_lt(smv_guest_process_open_pid(0x3fffff, &process, &err), 0);
	cr_expect_eq(err.code, SMV_NOT_FOUND);
	cr_expect(err.hint[0]);
	if (geteuid() != 0)
		cr_skip_test("needs root");
	/* Another tracer has all threads. */
	cr_assert_eq(pipe(pipes), 0);
	tracer = fork();
	if (tracer == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < NR_THREADS; i++)
			ptrace(PTRACE_SEIZE, busy->tids[i], NULL, NULL);
		ptrace(PTRACE_SEIZE, pid, NULL, NULL);
		if (write(pipes[1], "x", 1) < 0)
			_exit(1);
		pause();
	}
	cr_assert_eq(read(pipes[0], &byte, 1), 1);
	cr_assert_eq(smv_inject_open(pid, &inject, &err), 0, "%s", err.message);
	cr_assert_lt(smv_inject_run(inject, &call, 1, NULL, &err), 0);
	cr_expect_str_eq(err.reason, "ptrace-busy", "%s", err.message);
	cr_expect(err.hint[0]);
	end(tracer);
	cr_expect_eq(smv_inject_run(inject, &call, 1, NULL, &err), 0, "%s", err.message);
	smv_inject_close(inject);
	end(pid);
}
