/* SPDX-License-Identifier: Apache-2.0 */
/* fault, evict: the pager at work on threads of this process. */
#include "bench/bench.h"
#include "bench/output.h"
#include "bench/rig.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/units.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>

/* Nothing moved for so long: the server must be gone. Above the deadline of a request. */
#define STALL_MS 10000
#define WATCH_MS 10

static int no_memory(struct smv_error *err)
{
	return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

/* --- threads that touch memory ------------------------------------------------------------ */

struct crew {
	pthread_t *threads;
	unsigned int nr_threads;
	_Atomic unsigned int nr_done;
	_Atomic uint64_t progress; /* touches that came back */
	_Atomic bool stop;
};

static int crew_start(
	struct crew *crew, unsigned int nr, void *(*body)(void *), void *arg, struct smv_error *err)
{
	crew->threads = calloc(nr, sizeof(*crew->threads));
	if (!crew->threads)
		return no_memory(err);
	while (crew->nr_threads < nr) {
		int r = pthread_create(&crew->threads[crew->nr_threads], NULL, body, arg);

		if (r)
			return smv_fail(err, SMV_NO_ROOM, "no-threads", NULL,
				"cannot start %u threads: %s", nr, strerror(r));
		crew->nr_threads++;
	}
	return 0;
}

/* Until all are done or @until_ns; an error when nothing moves any more. */
static int crew_watch(
	struct crew *crew, struct smv_bench_rig *rig, uint64_t until_ns, struct smv_error *err)
{
	uint64_t seen = crew->progress, moved_ns = smv_now_ns();
	struct smv_pager_stats stats;

	while (crew->nr_done < crew->nr_threads && smv_now_ns() < until_ns) {
		smv_sleep_ms(WATCH_MS);
		if (crew->progress != seen) {
			seen = crew->progress;
			moved_ns = smv_now_ns();
		} else if (smv_now_ns() > moved_ns + STALL_MS * SMV_NS_PER_MS) {
			smv_pager_stats(rig->pager, &stats);
			return smv_fail(err, SMV_UNAVAILABLE, "stalled", NULL,
				"no page fault was answered for %d s: %s", STALL_MS / 1000,
				stats.trouble[0] ? stats.trouble : "the pager does not say why");
		}
	}
	return 0;
}

static void crew_join(struct crew *crew, struct smv_bench_rig *rig, bool stalled)
{
	crew->stop = true;
	if (stalled)
		smv_bench_rig_abandon(rig);
	for (unsigned int i = 0; i < crew->nr_threads; i++)
		pthread_join(crew->threads[i], NULL);
	free(crew->threads);
}

static const char *server_text(const struct smv_bench_rig *rig)
{
	return rig->backing.sub_hosts[0].address;
}

static uint64_t whole_extents(uint64_t nr_pages)
{
	return (nr_pages + SMV_EXTENT_PAGES - 1) / SMV_EXTENT_PAGES * SMV_EXTENT_PAGES;
}

/* --- fault -------------------------------------------------------------------------------- */

/* Where the time of a fault goes; the sum is what its thread waited. */
enum stage { WAKE_UP, QUEUE, WIRE, COPY, RESUME, NR_STAGES };
static const char *const stage_names[NR_STAGES] = {"wake-up", "queue", "wire", "copy", "resume"};
static const char *const stage_keys[NR_STAGES] = {"wake_up", "queue", "wire", "copy", "resume"};

/* One touch of one page. */
struct touch {
	uint64_t page;
	uint64_t from_ns, to_ns; /* as its thread saw it */
};

struct faults {
	const struct smv_bench_options *o;
	struct smv_bench_rig rig;
	struct crew crew;
	struct touch *touches;          /* in the order of touching */
	struct smv_fault_times *traces; /* by page */
	uint64_t nr_touches;
	_Atomic uint64_t next;
	_Atomic uint64_t wrong;
	struct smv_bench_stats remote, local, stages[NR_STAGES];
};

static void trace(void *ctx, uint64_t page, const struct smv_fault_times *times)
{
	struct faults *f = ctx;

	f->traces[page] = *times;
}

static bool is_remote(uint64_t page)
{
	return page % 2 == 0;
}

static void *touch_pages(void *arg)
{
	struct faults *f = arg;
	uint64_t i;

	while (!f->crew.stop && (i = atomic_fetch_add(&f->next, 1)) < f->nr_touches) {
		struct touch *t = &f->touches[i];
		const volatile uint64_t *word = smv_bench_rig_page(&f->rig, t->page);
		uint64_t value;

		t->from_ns = smv_now_ns();
		value = *word;
		t->to_ns = smv_now_ns();
		if (value != (is_remote(t->page) ? smv_bench_rig_stored(t->page) : 0))
			f->wrong++;
		f->crew.progress++;
	}
	f->crew.nr_done++;
	return NULL;
}

/* Pages at the server (even) and pages of zeros (odd, answered here) in one random order, so that
 * both meet the same machine. */
static void shuffle(struct faults *f)
{
	uint64_t random = 1;

	for (uint64_t i = 0; i < f->nr_touches; i++) {
		uint64_t k;

		/* D. Knuth's MMIX generator; the shuffle of R. Durstenfeld, inside out */
		random = random * 6364136223846793005u + 1442695040888963407u;
		k = (random >> 33) % (i + 1);
		f->touches[i] = f->touches[k];
		f->touches[k].page = i;
	}
}

static int faults_open(struct faults *f, struct smv_error *err)
{
	uint64_t n = f->o->nr_pages;
	/* So large that nothing is evicted. */
	uint64_t budget = 2 * n * 2 + SMV_BUDGET_MIN / SMV_PAGE_SIZE;
	int r;

	f->nr_touches = 2 * n;
	f->touches = calloc(f->nr_touches, sizeof(*f->touches));
	f->traces = calloc(f->nr_touches, sizeof(*f->traces));
	r = smv_bench_stats_init(&f->remote, n) | smv_bench_stats_init(&f->local, n);
	for (unsigned int s = 0; s < NR_STAGES; s++)
		r |= smv_bench_stats_init(&f->stages[s], n);
	if (!f->touches || !f->traces || r)
		return no_memory(err);
	shuffle(f);
	r = smv_bench_rig_create(
		&f->rig, f->o, f->nr_touches, whole_extents(n), budget, trace, f, err);
	if (r == 0)
		r = smv_bench_rig_store(&f->rig, n, err);
	return r;
}

static void faults_close(struct faults *f)
{
	smv_bench_rig_destroy(&f->rig);
	smv_bench_stats_free(&f->remote);
	smv_bench_stats_free(&f->local);
	for (unsigned int s = 0; s < NR_STAGES; s++)
		smv_bench_stats_free(&f->stages[s]);
	free(f->touches);
	free(f->traces);
}

static void evaluate_remote(struct faults *f, const struct touch *t)
{
	const struct smv_fault_times *at = &f->traces[t->page];
	/* A thread may run again before the pager's system call that woke it has returned. */
	uint64_t placed = at->placed_ns < t->to_ns ? at->placed_ns : t->to_ns;
	const uint64_t marks[NR_STAGES + 1] = {
		t->from_ns, at->read_ns, at->posted_ns, at->completed_ns, placed, t->to_ns};

	smv_bench_stats_record(&f->remote, t->to_ns - t->from_ns);
	for (unsigned int s = 0; s < NR_STAGES; s++)
		smv_bench_stats_record(&f->stages[s], marks[s + 1] - marks[s]);
}

static void evaluate(struct faults *f)
{
	for (uint64_t i = 0; i < f->nr_touches; i++) {
		const struct touch *t = &f->touches[i];

		if (is_remote(t->page))
			evaluate_remote(f, t);
		else
			smv_bench_stats_record(&f->local, t->to_ns - t->from_ns);
	}
}

static int faults_run(struct faults *f, struct smv_error *err)
{
	int r = smv_pager_start(f->rig.pager, err);

	if (r == 0)
		r = crew_start(&f->crew, f->o->threads, touch_pages, f, err);
	if (r == 0)
		r = crew_watch(&f->crew, &f->rig, UINT64_MAX, err);
	crew_join(&f->crew, &f->rig, r < 0);
	/* Ends the fault thread, so that its last trace is written. */
	smv_bench_rig_abandon(&f->rig);
	if (r == 0 && f->wrong)
		return smv_fail(err, SMV_DATA_LOSS, "wrong-data", NULL,
			"%lu of %lu pages were not what they should be", f->wrong, f->nr_touches);
	return r;
}

static void print_faults(struct faults *f)
{
	printf(" fault, %s, %lu pages there and %lu pages of zeros, %u thread%s\n",
		server_text(&f->rig), f->o->nr_pages, f->o->nr_pages, f->o->threads,
		f->o->threads == 1 ? "" : "s");
	smv_bench_print_times_header("fault");
	smv_bench_print_times("remote", SMV_PAGE_SIZE, &f->remote);
	for (unsigned int s = 0; s < NR_STAGES; s++)
		smv_bench_print_times(stage_names[s], SMV_PAGE_SIZE, &f->stages[s]);
	smv_bench_print_times("local", SMV_PAGE_SIZE, &f->local);
	if (!f->o->histogram)
		return;
	smv_bench_print_histogram("remote fault", &f->remote);
	smv_bench_print_histogram("local fault", &f->local);
}

static void put_faults(struct faults *f, json_t *out)
{
	json_t *stages = json_object();

	for (unsigned int s = 0; s < NR_STAGES; s++)
		json_object_set_new(stages, stage_keys[s],
			smv_bench_times_json(&f->stages[s], f->o->histogram));
	json_object_set_new(out, "parameters",
		json_pack("{s:s, s:s, s:I, s:I}", "transport", smv_transport_name(f->o->transport),
			"server", server_text(&f->rig), "pages", (json_int_t)f->o->nr_pages,
			"threads", (json_int_t)f->o->threads));
	json_object_set_new(out, "results",
		json_pack("{s:o, s:o, s:o}", "remote",
			smv_bench_times_json(&f->remote, f->o->histogram), "stages", stages,
			"local", smv_bench_times_json(&f->local, f->o->histogram)));
}

int smv_bench_fault(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	struct faults *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return no_memory(err);
	f->o = o;
	f->rig.uffd = f->rig.pagemap_fd = -1;
	r = faults_open(f, err);
	if (r == 0)
		r = faults_run(f, err);
	if (r == 0) {
		evaluate(f);
		put_faults(f, out);
	}
	if (r == 0 && !o->json)
		print_faults(f);
	faults_close(f);
	free(f);
	return r;
}

/* --- evict -------------------------------------------------------------------------------- */

struct pressure {
	const struct smv_bench_options *o;
	struct smv_bench_rig rig;
	struct crew crew;
	_Atomic uint64_t next;
	/* Of the measured time: */
	double seconds, cpu_seconds;
	uint64_t evictions, aborted, bytes_written;
};

/* Page after page, round and round: every page is dirty, and it is long gone when its turn comes
 * again. */
static void *write_pages(void *arg)
{
	struct pressure *p = arg;

	while (!p->crew.stop) {
		uint64_t i = atomic_fetch_add(&p->next, 1);
		volatile uint64_t *word = smv_bench_rig_page(&p->rig, i % p->rig.ram.nr_pages);

		*word = i + 1;
		p->crew.progress++;
	}
	p->crew.nr_done++;
	return NULL;
}

static double cpu_seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* From the time when every page was written once. */
static int measure_evictions(struct pressure *p, struct smv_error *err)
{
	struct smv_pager_stats before, after;
	uint64_t since;
	double cpu;
	int r = 0;

	while (r == 0 && p->crew.progress < p->rig.ram.nr_pages)
		r = crew_watch(&p->crew, &p->rig, smv_now_ns() + SMV_NS_PER_S, err);
	if (r < 0)
		return r;
	smv_pager_stats(p->rig.pager, &before);
	since = smv_now_ns();
	cpu = cpu_seconds();
	r = crew_watch(&p->crew, &p->rig, since + (uint64_t)(p->o->seconds * 1e9), err);
	smv_pager_stats(p->rig.pager, &after);
	p->seconds = (double)(smv_now_ns() - since) / 1e9;
	p->cpu_seconds = cpu_seconds() - cpu;
	p->evictions = after.evictions - before.evictions;
	p->aborted = after.evictions_aborted - before.evictions_aborted;
	p->bytes_written = after.bytes_written - before.bytes_written;
	return r;
}

static int run_pressure(struct pressure *p, struct smv_error *err)
{
	int r = smv_pager_start(p->rig.pager, err);

	if (r == 0)
		r = crew_start(&p->crew, p->o->threads, write_pages, p, err);
	if (r == 0)
		r = measure_evictions(p, err);
	crew_join(&p->crew, &p->rig, r < 0);
	if (r == 0 && p->evictions == 0)
		return smv_fail(err, SMV_REFUSED, "too-short", "Measure for more --seconds.",
			"nothing was evicted in %.2f s", p->seconds);
	return r;
}

static double pages_per_second(const struct pressure *p)
{
	return (double)p->evictions / p->seconds;
}

static double us_per_page(const struct pressure *p, double seconds)
{
	return seconds * 1e6 / (double)p->evictions;
}

static void print_pressure(const struct pressure *p)
{
	const struct smv_bench_options *o = p->o;
	char size[32], budget[32];

	printf(" evict, %s, %s with a budget of %s, %u writing thread%s\n", server_text(&p->rig),
		smv_format_size(o->size_bytes, size, sizeof(size)),
		smv_format_size(o->budget_bytes, budget, sizeof(budget)), o->threads,
		o->threads == 1 ? "" : "s");
	printf(" #pages     aborted    pages/s        per page[usec]   CPU per page[usec]   "
	       "written[MB/sec]\n");
	printf(" %-10lu %-10lu %-14.0f %-16.2f %-20.2f %.2f\n", p->evictions, p->aborted,
		pages_per_second(p), us_per_page(p, p->seconds), us_per_page(p, p->cpu_seconds),
		(double)p->bytes_written / (double)SMV_MIB / p->seconds);
}

static void put_pressure(const struct pressure *p, json_t *out)
{
	const struct smv_bench_options *o = p->o;

	json_object_set_new(out, "parameters",
		json_pack("{s:s, s:s, s:I, s:I, s:I}", "transport",
			smv_transport_name(o->transport), "server", server_text(&p->rig), "bytes",
			(json_int_t)o->size_bytes, "budget_bytes", (json_int_t)o->budget_bytes,
			"threads", (json_int_t)o->threads));
	json_object_set_new(out, "results",
		json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:I}", "evictions",
			(json_int_t)p->evictions, "evictions_aborted", (json_int_t)p->aborted,
			"seconds", p->seconds, "pages_per_s", pages_per_second(p), "us_per_page",
			us_per_page(p, p->seconds), "cpu_us_per_page",
			us_per_page(p, p->cpu_seconds), "bytes_written",
			(json_int_t)p->bytes_written));
}

int smv_bench_evict(const struct smv_bench_options *o, json_t *out, struct smv_error *err)
{
	uint64_t nr_pages = o->size_bytes / SMV_PAGE_SIZE;
	struct pressure p = {.o = o};
	/* Room for every page: how slots run short is not what is measured. */
	int r = smv_bench_rig_create(&p.rig, o, nr_pages, whole_extents(nr_pages),
		o->budget_bytes / SMV_PAGE_SIZE, NULL, NULL, err);

	if (r == 0)
		r = run_pressure(&p, err);
	if (r == 0)
		put_pressure(&p, out);
	if (r == 0 && !o->json)
		print_pressure(&p);
	smv_bench_rig_destroy(&p.rig);
	return r;
}
