/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of a busy process of ours, made to stand still for a share of the time. */
#include "common/clock.h"
#include "vmm/inject.h"
#include "vmm/throttle.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define NR_THREADS 2

/* Shared with the process. */
static struct busy {
	_Atomic pid_t tids[NR_THREADS];
	_Atomic uint64_t progress[NR_THREADS];
	_Atomic uint64_t handled;
} * busy;

static void on_usr1(int sig)
{
	(void)sig;
	busy->handled++;
}

static void *spin(void *arg)
{
	int i = (int)(intptr_t)arg;

	busy->tids[i] = gettid();
	for (;;)
		busy->progress[i]++;
	return NULL;
}

static pid_t start_busy(void)
{
	pid_t pid;

	busy = mmap(NULL, sizeof(*busy), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(busy != MAP_FAILED);
	pid = fork();
	if (pid == 0) {
		pthread_t thread;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGUSR1, on_usr1);
		for (intptr_t i = 0; i < NR_THREADS; i++)
			pthread_create(&thread, NULL, spin, (void *)i);
		for (;;)
			pause();
	}
	for (int i = 0; i < NR_THREADS; i++)
		for (int k = 0; k < 5000 && !busy->progress[i]; k++)
			smv_sleep_ms(1);
	return pid;
}

static void end(pid_t pid)
{
	cr_assert_eq(kill(pid, SIGKILL), 0);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
}

/* A line of the thread's status file. */
static void read_status(pid_t pid, pid_t tid, const char *key, char *value)
{
	char path[64], line[128];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
	file = fopen(path, "r");
	cr_assert(file);
	value[0] = 0;
	while (fgets(line, sizeof(line), file))
		if (strncmp(line, key, strlen(key)) == 0)
			sscanf(line + strlen(key), " %15s", value);
	fclose(file);
}

/* Nanoseconds on a processor. */
static uint64_t run_time(pid_t pid, pid_t tid)
{
	char path[64];
	unsigned long ns = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", pid, tid);
	file = fopen(path, "r");
	cr_assert(file && fscanf(file, "%lu", &ns) == 1);
	fclose(file);
	return ns;
}

static void check_runs(pid_t pid)
{
	for (int i = 0; i < NR_THREADS; i++) {
		uint64_t before = busy->progress[i];
		char tracer[16];

		for (int k = 0; k < 5000 && busy->progress[i] == before; k++)
			smv_sleep_ms(1);
		cr_expect_gt(busy->progress[i], before, "thread %d stands still", i);
		read_status(pid, busy->tids[i], "TracerPid:", tracer);
		cr_expect_str_eq(tracer, "0", "thread %d is still traced", i);
	}
}

static int start(pid_t pid, unsigned int percent, struct smv_throttle **t, struct smv_error *err)
{
	pid_t tids[NR_THREADS] = {busy->tids[0], busy->tids[1]};
	int r = smv_throttle_start(pid, tids, NR_THREADS, percent, t, err);

	if (r < 0 && err->code == SMV_PERMISSION && geteuid() != 0)
		cr_skip_test("ptrace is not allowed here");
	return r;
}

/* How much of a second the threads ran, and stood still by our own account: a share of 1 each. */
static void measure(pid_t pid, struct smv_throttle *t, double *ran, double *stood)
{
	uint64_t start_ns = smv_now_ns(), stopped = smv_throttle_stopped_ns(t), before = 0,
		 after = 0;
	double elapsed;

	for (int i = 0; i < NR_THREADS; i++)
		before += run_time(pid, busy->tids[i]);
	smv_sleep_ms(1000);
	for (int i = 0; i < NR_THREADS; i++)
		after += run_time(pid, busy->tids[i]);
	elapsed = (double)(smv_now_ns() - start_ns) * NR_THREADS;
	*ran = (double)(after - before) / elapsed;
	*stood = (double)(smv_throttle_stopped_ns(t) - stopped) / elapsed;
}

/* Bounds that a loaded machine cannot break: it only takes more time away from the threads. */
Test(throttle, takes_the_share_of_time)
{
	struct smv_throttle *t;
	struct smv_error err;
	pid_t pid = start_busy();
	double ran, stood;

	cr_assert_eq(start(pid, 70, &t, &err), 0, "%s", err.message);
	smv_sleep_ms(200);
	measure(pid, t, &ran, &stood);
	fprintf(stderr, "70 %%: ran %.2f, stood still %.2f\n", ran, stood);
	cr_expect(ran > 0.01 && ran < 0.45, "%.2f", ran);
	cr_expect(stood > 0.3 && stood < 0.85, "%.2f", stood);
	smv_throttle_set(t, 95);
	smv_sleep_ms(200);
	measure(pid, t, &ran, &stood);
	fprintf(stderr, "95 %%: ran %.2f, stood still %.2f\n", ran, stood);
	cr_expect(ran < 0.2, "%.2f", ran);
	cr_expect(stood > 0.5, "%.2f", stood);
	smv_throttle_set(t, 0);
	smv_sleep_ms(200);
	measure(pid, t, &ran, &stood);
	cr_expect(stood < 0.01, "%.2f", stood);
	smv_throttle_stop(t);
	check_runs(pid);
	end(pid);
}

Test(throttle, loses_no_signal)
{
	struct smv_throttle *t;
	struct smv_error err;
	pid_t pid = start_busy();
	uint64_t sent = 0;

	cr_assert_eq(start(pid, 80, &t, &err), 0, "%s", err.message);
	for (uint64_t end_ns = smv_now_ns() + 2 * SMV_NS_PER_S; smv_now_ns() < end_ns;) {
		cr_assert_eq(tgkill(pid, busy->tids[sent % NR_THREADS], SIGUSR1), 0);
		sent++;
		for (int k = 0; k < 5000 && busy->handled < sent; k++)
			smv_sleep_ms(1);
		cr_assert_eq(busy->handled, sent, "signal %lu was lost or came twice", sent);
	}
	fprintf(stderr, "%lu signals\n", sent);
	smv_throttle_stop(t);
	check_runs(pid);
	cr_expect_eq(busy->handled, sent);
	end(pid);
}

Test(throttle, death_of_the_tracer_sets_free)
{
	pid_t pid = start_busy(), tracer;

	for (unsigned int i = 0; i < 5; i++) {
		tracer = fork();
		if (tracer == 0) {
			struct smv_throttle *t;
			struct smv_error err;
			pid_t tids[NR_THREADS] = {busy->tids[0], busy->tids[1]};

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (smv_throttle_start(pid, tids, NR_THREADS, 99, &t, &err) < 0)
				_exit(err.code == SMV_PERMISSION && geteuid() != 0 ? 77 : 1);
			pause();
		}
		smv_sleep_ms(230 + i * 7);
		kill(tracer, SIGKILL);
		waitpid(tracer, NULL, 0);
		check_runs(pid);
	}
	end(pid);
}

/* Two tracers that are one process: a call can be injected while the VM is throttled. */
Test(throttle, leaves_room_for_injections)
{
	struct smv_inject *inject;
	struct smv_throttle *t;
	struct smv_error err;
	pid_t pid = start_busy();

	cr_assert_eq(start(pid, 90, &t, &err), 0, "%s", err.message);
	cr_assert_eq(smv_inject_open(pid, &inject, &err), 0, "%s", err.message);
	for (int i = 0; i < 50; i++) {
		struct smv_inject_call call = {.nr = SYS_getpid};

		cr_expect_eq(smv_inject_run(inject, &call, 1, NULL, &err), 0, "%s", err.message);
		cr_expect_eq(call.result, pid);
		smv_sleep_ms(5);
	}
	smv_inject_close(inject);
	smv_throttle_stop(t);
	check_runs(pid);
	end(pid);
}

Test(throttle, notices_the_end_of_a_process)
{
	struct smv_throttle *t;
	struct smv_error err;
	pid_t pid = start_busy();

	cr_assert_eq(start(pid, 50, &t, &err), 0, "%s", err.message);
	end(pid);
	smv_sleep_ms(250);
	smv_throttle_stop(t);
	cr_expect_lt(start(pid, 50, &t, &err), 0);
	cr_expect(err.hint[0]);
}
