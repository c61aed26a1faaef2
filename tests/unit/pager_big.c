/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM of 1 TiB under the pager: pager_big [SEED [SECONDS]].
 *
 * Nearly all of it is on the sub-hosts, as zeros that take no memory here, and nearly all slots are
 * taken; what the threads of the VM use is a set of pages all over it, larger than the budget. A
 * second pager takes over from the map's file in the middle. What the pager needs for each page of
 * the VM must stay below a share of the VM.
 */
#include "client/pager_internal.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "vm_stub.h"

#include <malloc.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define NR_PAGES (((uint64_t)1 << 40) / SMV_PAGE_SIZE)
#define NR_RANGES (NR_PAGES / SMV_EXTENT_PAGES)
#define BUDGET 16384u
/* Used pages: single ones, and whole ranges. Single ones cost four pages of this machine each (data
 * and page tables), so there are not more. */
#define NR_SINGLE 32768u
#define NR_DENSE (32 * SMV_EXTENT_PAGES)
#define NR_USED (NR_SINGLE + NR_DENSE)
/* Slots beyond those that the cold pages have; the used pages that were ZERO want more. */
#define SPARE_EXTENTS 1
#define MEMORY_NEEDED ((uint64_t)5 << 30)
#define MAP_ROOM_NEEDED ((uint64_t)5 << 29)
/* The pager's memory as a share of the VM: 0.35 %. */
#define SHARE_MAX 0.0035

static char dir[] = "/dev/shm/smemv-big-XXXXXX", map_path[64];

/* 2 GiB must not stay, whatever happens. */
static void remove_map(int sig)
{
	unlink(map_path);
	rmdir(dir);
	if (sig) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
}

static uint64_t allocated_bytes(void)
{
	struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
}

static bool memory_suffices(void)
{
	struct statvfs shm;
	struct sysinfo info;

	return sysinfo(&info) == 0 && statvfs("/dev/shm", &shm) == 0 &&
	       (uint64_t)info.freeram * info.mem_unit >= MEMORY_NEEDED &&
	       (uint64_t)shm.f_bavail * shm.f_frsize >= MAP_ROOM_NEEDED;
}

/* The @i-th page that is used. Both factors are odd, so that no two are the same. */
static uint64_t used_page(uint64_t i)
{
	uint64_t range = i < NR_SINGLE ? i : NR_SINGLE + (i - NR_SINGLE) / SMV_EXTENT_PAGES;
	uint64_t page = i < NR_SINGLE ? i * 2654435761u : i - NR_SINGLE;

	return range * 40503 % NR_RANGES * SMV_EXTENT_PAGES + page % SMV_EXTENT_PAGES;
}

static void *use(void *arg)
{
	static _Atomic uint64_t nr_started;
	struct stub_lab *lab = arg;
	uint64_t random = lab->o.seed * 4 + nr_started++;

	while (!lab->stop) {
		uint64_t start = smv_now_ns(), took, page, dice;

		random = random * 6364136223846793005u + 1442695040888963407u;
		page = used_page((random >> 33) % NR_USED);
		dice = random >> 20 & 7;
		if (dice < 3)
			stub_write(lab, page, dice ? (uint32_t)(random >> 32) | 1 : 0);
		else
			stub_read(lab, page);
		took = smv_now_ns() - start;
		if (took > lab->slowest_ns)
			lab->slowest_ns = took;
	}
	return NULL;
}

static void *read_used(void *arg)
{
	static _Atomic uint64_t next;
	uint64_t i;

	while ((i = next++) < NR_USED)
		stub_read(arg, used_page(i));
	return NULL;
}

static void start_threads(struct stub_lab *lab, void *(*body)(void *lab))
{
	lab->stop = false;
	for (lab->nr_threads = 0; lab->nr_threads < STUB_THREADS; lab->nr_threads++)
		must(pthread_create(&lab->threads[lab->nr_threads], NULL, body, lab) == 0);
}

struct takeover_times {
	uint64_t load_ns, settle_ns, start_ns;
};

/* As another process would: with nothing but the map's file. */
static void take_over(struct stub_lab *lab, struct takeover_times *times)
{
	uint64_t id = smv_pagemap_id(&lab->map), start;
	struct smv_taken_over report;
	struct smv_error err = {0};

	stub_lab_stop(lab);
	smv_pagemap_destroy(&lab->map);
	start = smv_now_ns();
	must(smv_pagemap_load(map_path, "stub", NR_PAGES, id, &lab->map, &err) == 0);
	times->load_ns = smv_now_ns() - start;
	start += times->load_ns;
	must(stub_lab_take_over(lab, &report, &err) == 0 && report.lost == 0);
	times->settle_ns = smv_now_ns() - start;
	start += times->settle_ns;
	stub_lab_start(lab);
	times->start_ns = smv_now_ns() - start;
}

static void count_evictions(const struct stub_lab *lab, struct smv_pager_stats *sum)
{
	sum->page_ins += lab->stats.page_ins;
	sum->zero_fills += lab->stats.zero_fills;
	sum->evictions += lab->stats.evictions;
	sum->evictions_clean += lab->stats.evictions_clean;
}

static bool counts_agree(const struct stub_lab *lab)
{
	uint64_t sum = 0;

	for (unsigned int s = 0; s < SMV_PAGE_NR_STATES; s++)
		sum += smv_pagemap_count(&lab->map, s);
	return sum == NR_PAGES && smv_pagemap_count(&lab->map, SMV_PAGE_LOST) == 0 &&
	       smv_pagemap_count(&lab->map, SMV_PAGE_LOCAL) == stub_vm_resident(&lab->vm);
}

static double seconds_of(uint64_t ns)
{
	return (double)ns / 1e9;
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	unsigned int seconds = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 0) : 6;
	struct stub_options o = {.transport = seed & 1 ? "tcp" : "mem",
		.seed = seed,
		.nr_blocks = 1,
		.nr_pages = NR_PAGES,
		.budget_pages = BUDGET,
		.nr_extents = NR_RANGES / 8 * 7 + SPARE_EXTENTS,
		.map_path = map_path,
		.untouched = true};
	uint64_t before = allocated_bytes(), pager_bytes, start = smv_now_ns(), created_ns;
	static struct stub_lab lab;
	struct smv_pager_stats sum = {0};
	struct takeover_times times;
	struct smv_error err = {0};
	struct stat map_file;
	bool agree, ok;
	double share;

	if (smv_kernel_check(&err) < 0 || !memory_suffices()) {
		fprintf(stderr, "skipped: %s\n",
			err.code ? err.message : "5 GiB of memory are not free here");
		return 77;
	}
	must(mkdtemp(dir));
	snprintf(map_path, sizeof(map_path), "%s/map", dir);
	signal(SIGABRT, remove_map);
	signal(SIGINT, remove_map);
	signal(SIGTERM, remove_map);

	stub_lab_create(&lab, &o);
	stub_lab_start(&lab);
	created_ns = smv_now_ns() - start;
	start_threads(&lab, use);
	stub_watch(&lab, seconds * 500);
	/* All of it, but for what is the VM's and not the pager's; staging is mapped. */
	pager_bytes = allocated_bytes() - before - NR_PAGES * sizeof(*lab.versions) -
		      lab.nr_locks * sizeof(*lab.locks) +
		      (SMV_MAX_FETCHES + SMV_EVICT_BATCH) * SMV_PAGE_SIZE;
	must(stat(map_path, &map_file) == 0);
	pager_bytes += (uint64_t)map_file.st_size;
	share = (double)pager_bytes / ((double)NR_PAGES * SMV_PAGE_SIZE);

	take_over(&lab, &times);
	count_evictions(&lab, &sum);
	stub_watch(&lab, seconds * 500);
	stub_stress_stop(&lab);
	start_threads(&lab, read_used);
	stub_stress_stop(&lab);
	stub_lab_stop(&lab);
	count_evictions(&lab, &sum);
	agree = counts_agree(&lab);
	printf("seed %lu, %s, 1 TiB: set up in %.1f s; %lu checks, %lu mismatches; %lu page-ins, "
	       "%lu zero fills, %lu evictions (%lu clean); resident at most %lu of %u pages, at "
	       "least %lu slots free; takeover %.2f s (load %.2f, settle %.2f, start %.2f), "
	       "slowest access %.2f s; the pager's memory: %.1f MiB, of which the map %.1f, "
	       "together %.4f %% of the VM; %s, %s\n",
		seed, o.transport, seconds_of(created_ns), lab.checks, lab.mismatches, sum.page_ins,
		sum.zero_fills, sum.evictions, sum.evictions_clean, lab.max_resident, BUDGET,
		lab.min_free_slots, seconds_of(times.load_ns + times.settle_ns + times.start_ns),
		seconds_of(times.load_ns), seconds_of(times.settle_ns), seconds_of(times.start_ns),
		seconds_of(lab.slowest_ns), (double)pager_bytes / (1 << 20),
		(double)map_file.st_size / (1 << 20), share * 100,
		agree ? "counts agree" : "counts DISAGREE",
		lab.trouble[0] ? lab.trouble : "no trouble");
	ok = lab.mismatches == 0 && agree && sum.page_ins + sum.zero_fills >= NR_USED &&
	     sum.evictions >= NR_USED - BUDGET && lab.max_resident <= BUDGET + SMV_EVICT_BATCH &&
	     !lab.trouble[0] && share <= SHARE_MAX;
	stub_lab_destroy(&lab);
	remove_map(0);
	return ok ? 0 : 1;
}
