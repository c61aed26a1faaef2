/* SPDX-License-Identifier: Apache-2.0 */
/* The stress of test_pager.c as a plain program, for ThreadSanitizer and for longer runs:
 * pager_stress [SEED [SECONDS]]. The seed also chooses transport, RAM blocks and room. For a third
 * of the time the budget changes at random; with little room it needs more in the middle of it. */
#include "client/uffd.h"
#include "vm_stub.h"

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	unsigned int seconds = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 0) : 3, faults;
	unsigned int flaps;
	bool tight = seed & 4;
	struct stub_options o = {.transport = seed & 1 ? "tcp" : "mem",
		.seed = seed,
		.nr_blocks = seed & 2 ? 2 : 1,
		.nr_pages = 12288,
		.budget_pages = 4096,
		.nr_extents = tight ? 16 + 2 : 24,
		.spare_extents = 8,
		.hot_percent = tight ? 100 : 30,
		.zero_percent = tight ? 0 : 10,
		.write_percent = 30,
		.discard_percent = 2};
	static struct stub_lab lab;
	struct smv_error err = {0};
	bool ok;

	if (smv_kernel_check(&err) < 0) {
		fprintf(stderr, "skipped: %s\n", err.message);
		return 77;
	}
	stub_lab_create(&lab, &o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	stub_watch(&lab, seconds * 667);
	if (tight)
		stub_lab_grow(&lab, o.spare_extents);
	flaps = stub_flap(&lab, o.budget_pages / 3, o.budget_pages, seconds * 333);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	stub_lab_stop(&lab);
	faults = stub_audit(&lab);
	printf("seed %lu, %s, %u RAM blocks, %lu extents: %lu checks, %lu mismatches, %u faults in "
	       "the audit, %lu page-ins, %lu evictions (%lu clean, %lu aborted), %lu discards, "
	       "resident at most %lu of %lu pages, %u budgets, at least %lu slots free, %s\n",
		seed, o.transport, o.nr_blocks, o.nr_extents, lab.checks, lab.mismatches, faults,
		lab.stats.page_ins, lab.stats.evictions, lab.stats.evictions_clean,
		lab.stats.evictions_aborted, lab.stats.discards, lab.max_resident, o.budget_pages, flaps,
		lab.min_free_slots, lab.trouble[0] ? lab.trouble : "no trouble");
	ok = lab.mismatches == 0 && faults == 0 && lab.stats.page_ins && lab.stats.evictions &&
	     lab.stats.discards && lab.max_resident <= o.budget_pages + SMV_EVICT_BATCH &&
	     !lab.trouble[0];
	stub_lab_destroy(&lab);
	return ok ? 0 : 1;
}
