/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/registration.h"

#include "common/clock.h"
#include "common/units.h"
#include "memserver/arena.h"
#include "memserver/lease.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#define SEGMENT_MIN (64 * SMV_MIB)

struct work {
	struct smv_registration *r;
	atomic_size_t next;
	atomic_int status; /* of the first that failed */
};

static uint64_t at_most(uint64_t value, uint64_t limit)
{
	return value < limit ? value : limit;
}

size_t smv_registration_segment_extents(const struct smv_transport *transport, uint64_t size_bytes)
{
	uint64_t bytes = SMV_SEGMENT_MAX;

	if (smv_transport_pins(transport)) {
		uint64_t share = size_bytes / SMV_REGISTRATION_THREADS_MAX;

		bytes = at_most(bytes, share < SEGMENT_MIN ? SEGMENT_MIN : share);
	}
	bytes = at_most(bytes, smv_transport_region_max(transport));
	/* A device that cannot even register an extent says so itself. */
	return bytes < SMV_EXTENT_SIZE ? 1 : bytes / SMV_EXTENT_SIZE;
}

/* Two at least: one pins memory while the other waits for the device. */
static unsigned int nr_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return SMV_REGISTRATION_THREADS_MAX; /* more than the set has room for */
	return CPU_COUNT(&set) < 2 ? 2 : (unsigned int)CPU_COUNT(&set);
}

static unsigned int choose_nr_threads(const struct smv_transport *transport, size_t nr_runs)
{
	if (!smv_transport_pins(transport))
		return 1;
	return (unsigned int)at_most(at_most(nr_cpus(), SMV_REGISTRATION_THREADS_MAX), nr_runs);
}

static int register_run(const struct smv_registration *r, size_t i)
{
	if (atomic_load(r->stopping))
		return -ECANCELED;
	return smv_region_register(r->domain, r->base + r->runs[i].first * SMV_EXTENT_SIZE,
		r->runs[i].nr * SMV_EXTENT_SIZE, SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE,
		&r->regions[i]);
}

static void *worker_main(void *arg)
{
	struct work *w = arg;
	size_t i;

	while (atomic_load(&w->status) == 0 &&
		(i = atomic_fetch_add(&w->next, 1)) < w->r->nr_runs) {
		int ok = 0, rc = register_run(w->r, i);

		if (rc < 0)
			atomic_compare_exchange_strong(&w->status, &ok, rc);
	}
	return NULL;
}

int smv_registration_run(
	const struct smv_transport *transport, struct smv_registration *registration)
{
	pthread_t threads[SMV_REGISTRATION_THREADS_MAX];
	struct work work = {.r = registration};
	unsigned int wanted = choose_nr_threads(transport, registration->nr_runs), n = 1;
	uint64_t since = smv_now_ns();

	/* The caller works too, so that it goes on, slower, where no thread can be made. */
	while (n < wanted && pthread_create(&threads[n], NULL, worker_main, &work) == 0)
		n++;
	worker_main(&work);
	for (unsigned int i = 1; i < n; i++)
		pthread_join(threads[i], NULL);
	registration->nr_threads = n;
	registration->took_ns = smv_now_ns() - since;
	if (atomic_load(&work.status) == 0 && atomic_load(registration->stopping))
		return -ECANCELED; /* though every segment was under way already */
	return atomic_load(&work.status);
}
