/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/throttle.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "vmm/tracing.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>

#define PERIOD_MS 100u
#define QMP_TIMEOUT_MS 10000
#define STOP_WAIT_MS 5u /* for one that does not stop at once; it is looked after later */
#define TRY_TIMEOUT_MS 500u

/*
 * FREE -> ASKED (seized, interrupted) -> STILL (stopped) -> FREE
 *                                   `-> GONE (the thread has ended)
 * A thread that is deep in the kernel stays ASKED until it comes out.
 */
enum state { FREE, ASKED, STILL, GONE };

struct thread {
	pid_t tid;
	enum state state;
	int signal; /* that came instead of our stop, and is passed on when it is let go */
	uint64_t still_since_ns;
};

struct smv_throttle {
	pid_t pid;
	struct thread *threads;
	size_t nr_threads;
	atomic_uint percent;
	_Atomic uint64_t stopped_ns;
	pthread_t tracer;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool ending, tried; /* by lock */
	int result;
	struct smv_error *err;
};

static int ask(struct thread *t)
{
	int r = t->state == FREE ? smv_tracing_request(PTRACE_SEIZE, t->tid, 0) : 0;

	if (r == -ESRCH)
		t->state = GONE;
	if (r < 0 || t->state != FREE)
		return r;
	t->state = ASKED;
	return smv_tracing_request(PTRACE_INTERRUPT, t->tid, 0);
}

static void look(struct thread *t, unsigned int timeout_ms)
{
	int status, r = t->state == ASKED ? smv_tracing_wait(t->tid, timeout_ms, &status) : -EAGAIN;

	if (r == -ESRCH)
		t->state = GONE;
	if (r < 0)
		return;
	t->state = STILL;
	t->signal = smv_tracing_signal(status);
	t->still_since_ns = smv_now_ns();
}

static void let_go(struct smv_throttle *th, struct thread *t)
{
	if (t->state != STILL)
		return;
	th->stopped_ns += smv_now_ns() - t->still_since_ns;
	t->state = smv_tracing_request(PTRACE_DETACH, t->tid, t->signal) == 0 ? FREE : GONE;
}

/* Until @deadline_ns, or until we are to end: true. */
static bool wait_until(struct smv_throttle *th, uint64_t deadline_ns)
{
	struct timespec ts = {
		(time_t)(deadline_ns / SMV_NS_PER_S), (long)(deadline_ns % SMV_NS_PER_S)};
	bool ending;

	pthread_mutex_lock(&th->lock);
	while (!th->ending && smv_now_ns() < deadline_ns)
		pthread_cond_timedwait(&th->changed, &th->lock, &ts);
	ending = th->ending;
	pthread_mutex_unlock(&th->lock);
	return ending;
}

/* One that comes out of the kernel too late is let go at once. */
static void look_after_late(struct smv_throttle *th)
{
	for (size_t i = 0; i < th->nr_threads; i++) {
		if (th->threads[i].state != ASKED)
			continue;
		look(&th->threads[i], 0);
		let_go(th, &th->threads[i]);
	}
}

static bool run_phase(struct smv_throttle *th, uint64_t end_ns)
{
	bool late = true;

	while (late && smv_now_ns() < end_ns) {
		uint64_t next_ns = smv_now_ns() + 2 * SMV_NS_PER_MS;

		late = false;
		look_after_late(th);
		for (size_t i = 0; i < th->nr_threads; i++)
			late |= th->threads[i].state == ASKED;
		if (late && wait_until(th, next_ns < end_ns ? next_ns : end_ns))
			return true;
	}
	return wait_until(th, end_ns);
}

/* Counted from when they stand still: where we were late to stop them the period gets longer, and
 * the share stays. */
static bool stop_phase(struct smv_throttle *th, uint64_t still_ns)
{
	bool ending;

	for (size_t i = 0; i < th->nr_threads; i++)
		ask(&th->threads[i]);
	for (size_t i = 0; i < th->nr_threads; i++)
		look(&th->threads[i], STOP_WAIT_MS);
	ending = wait_until(th, smv_now_ns() + still_ns);
	for (size_t i = 0; i < th->nr_threads; i++)
		let_go(th, &th->threads[i]);
	return ending;
}

static void tell(struct smv_throttle *th, int result)
{
	pthread_mutex_lock(&th->lock);
	th->result = result;
	th->tried = true;
	pthread_cond_broadcast(&th->changed);
	pthread_mutex_unlock(&th->lock);
}

static int try_once(struct smv_throttle *th)
{
	struct thread *t = &th->threads[0];
	int r = ask(t);

	if (r == -EPERM || r == -EACCES)
		return smv_tracing_not_permitted(th->pid, t->tid, th->err);
	if (r < 0)
		return smv_fail(th->err, smv_code_from_errno(r), "throttle",
			"Has the VM just ended?", "cannot stop thread %d of process %d: %s",
			(int)t->tid, (int)th->pid, strerror(-r));
	look(t, TRY_TIMEOUT_MS);
	let_go(th, t);
	return 0;
}

/* Ends with all threads let go: by us, or, one that is still ASKED, by the kernel, since a tracer
 * is a thread and this one ends. */
static void *tracer_main(void *arg)
{
	struct smv_throttle *th = arg;
	int r = try_once(th);

	tell(th, r);
	if (r < 0)
		return NULL;
	for (;;) {
		unsigned int percent = th->percent;
		uint64_t still_ns = percent * (PERIOD_MS * SMV_NS_PER_MS / 100);

		if (run_phase(th, smv_now_ns() + PERIOD_MS * SMV_NS_PER_MS - still_ns) ||
			(percent && stop_phase(th, still_ns)))
			return NULL;
	}
}

static void destroy(struct smv_throttle *th)
{
	pthread_cond_destroy(&th->changed);
	pthread_mutex_destroy(&th->lock);
	free(th->threads);
	free(th);
}

static struct smv_throttle *create(pid_t pid, const pid_t *tids, size_t nr_tids)
{
	struct smv_throttle *th = calloc(1, sizeof(*th));
	struct thread *threads = calloc(nr_tids, sizeof(*threads));
	pthread_condattr_t attr;

	if (!th || !threads) {
		free(th);
		free(threads);
		return NULL;
	}
	th->pid = pid;
	th->threads = threads;
	th->nr_threads = nr_tids;
	for (size_t i = 0; i < nr_tids; i++)
		threads[i].tid = tids[i];
	pthread_mutex_init(&th->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&th->changed, &attr);
	pthread_condattr_destroy(&attr);
	return th;
}

int smv_throttle_start(pid_t pid, const pid_t *tids, size_t nr_tids, unsigned int percent,
	struct smv_throttle **throttle, struct smv_error *err)
{
	struct smv_throttle *th = nr_tids ? create(pid, tids, nr_tids) : NULL;
	int r;

	if (!th)
		return smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	smv_throttle_set(th, percent);
	th->err = err;
	r = smv_tracing_start(&th->tracer, tracer_main, th);
	if (r < 0) {
		destroy(th);
		return smv_fail(err, SMV_NO_ROOM, "thread", NULL, "cannot start a thread: %s",
			strerror(-r));
	}
	pthread_mutex_lock(&th->lock);
	while (!th->tried)
		pthread_cond_wait(&th->changed, &th->lock);
	r = th->result;
	th->err = NULL;
	pthread_mutex_unlock(&th->lock);
	if (r < 0) {
		pthread_join(th->tracer, NULL);
		destroy(th);
		return r;
	}
	*throttle = th;
	return 0;
}

/* QEMU names its threads as it sees them: in another pid namespace they are none of ours. */
static bool is_thread_of(pid_t pid, json_int_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%lld", (int)pid, (long long)tid);
	return access(path, F_OK) == 0;
}

int smv_throttle_start_vm(struct smv_qmp *qmp, pid_t pid, unsigned int percent,
	struct smv_throttle **throttle, struct smv_error *err)
{
	CLEANUP_JSON json_t *cpus = NULL;
	pid_t tids[SMV_THROTTLE_MAX_THREADS];
	size_t n = 0, i;
	json_t *cpu;
	int r = smv_qmp_execute(qmp, "query-cpus-fast", NULL, &cpus, QMP_TIMEOUT_MS, err);

	if (r < 0)
		return r;
	json_array_foreach (cpus, i, cpu) {
		json_int_t tid = json_integer_value(json_object_get(cpu, "thread-id"));

		if (tid <= 0 || n == SMV_ARRAY_SIZE(tids) || !is_thread_of(pid, tid))
			return smv_fail(err, SMV_REFUSED, "throttle",
				"Run outside of containers, in the pid namespace that QEMU runs "
				"in.",
				"vCPU thread %lld is not seen as a thread of process %d",
				(long long)tid, (int)pid);
		/* Without thread=multi, TCG runs all vCPUs in one. */
		if (n == 0 || tids[n - 1] != (pid_t)tid)
			tids[n++] = (pid_t)tid;
	}
	if (n == 0)
		return smv_fail(err, SMV_REFUSED, "throttle", "Leave out --max-throttle.",
			"QEMU (process %d) names no vCPU threads", (int)pid);
	return smv_throttle_start(pid, tids, n, percent, throttle, err);
}

void smv_throttle_set(struct smv_throttle *throttle, unsigned int percent)
{
	throttle->percent = percent < SMV_THROTTLE_MAX_PERCENT ? percent : SMV_THROTTLE_MAX_PERCENT;
}

uint64_t smv_throttle_stopped_ns(const struct smv_throttle *throttle)
{
	return throttle->stopped_ns;
}

void smv_throttle_stop(struct smv_throttle *throttle)
{
	if (!throttle)
		return;
	pthread_mutex_lock(&throttle->lock);
	throttle->ending = true;
	pthread_cond_broadcast(&throttle->changed);
	pthread_mutex_unlock(&throttle->lock);
	pthread_join(throttle->tracer, NULL);
	destroy(throttle);
}
