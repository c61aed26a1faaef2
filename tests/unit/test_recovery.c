/* SPDX-License-Identifier: Apache-2.0 */
/* When a migration switches over, and what is known of one whose smemv-migrate has died. */
#include "common/cleanup.h"
#include "migrator/converge.h"
#include "migrator/estimate.h"
#include "migrator/recover.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ull << 20)

/* --- convergence -------------------------------------------------------------------------- */

static struct smv_converge wishes(void)
{
	return (struct smv_converge){.max_downtime_ms = 300, .max_rounds = 30};
}

Test(converge, switches_over_when_the_rest_fits_the_downtime)
{
	struct smv_converge c = wishes();

	smv_converge_sent(&c, 1000 * MIB, 1000); /* 1 MiB per ms */
	cr_assert_float_eq(smv_converge_expected_ms(&c, 100 * MIB), 140, 1);
	cr_assert_eq(smv_converge_next(&c, 259 * MIB), SMV_CONVERGE_SWITCH_OVER);
	cr_assert_eq(smv_converge_next(&c, 262 * MIB), SMV_CONVERGE_SEND);
}

Test(converge, looking_at_all_pages_counts_as_downtime)
{
	struct smv_converge c = wishes();

	smv_converge_scanned(&c, 200);
	smv_converge_sent(&c, 1000 * MIB, 1000);
	cr_assert_float_eq(smv_converge_expected_ms(&c, 10 * MIB), 250, 1);
	cr_assert_eq(smv_converge_next(&c, 59 * MIB), SMV_CONVERGE_SWITCH_OVER);
	cr_assert_eq(smv_converge_next(&c, 62 * MIB), SMV_CONVERGE_SEND);
	/* A tenth less of the rest, which is not a tenth of all, is a gain. */
	c.best_ms = 0;
	for (uint64_t dirty = 400; dirty > 70; dirty -= dirty / 6)
		cr_assert_eq(smv_converge_next(&c, dirty * MIB), SMV_CONVERGE_SEND);
	cr_assert_not(smv_converge_stalled(&c));
	/* No round makes it shorter. */
	c.nr_scans = 0;
	smv_converge_scanned(&c, 270);
	cr_assert_eq(smv_converge_next(&c, 0), SMV_CONVERGE_SEND);
	smv_converge_scanned(&c, 280);
	cr_assert_eq(smv_converge_next(&c, 0), SMV_CONVERGE_FAIL);
	c.stop = true;
	cr_assert_eq(smv_converge_next(&c, 0), SMV_CONVERGE_SEND);
	/* One scan of a busy host is none that counts. */
	c.stop = false;
	smv_converge_scanned(&c, 200);
	smv_converge_scanned(&c, 270);
	cr_assert_eq(smv_converge_next(&c, 0), SMV_CONVERGE_SEND);
	c.scan_on_top = true;
	cr_assert_eq(smv_converge_next(&c, 259 * MIB), SMV_CONVERGE_SWITCH_OVER);
	cr_assert_eq(smv_converge_next(&c, 262 * MIB), SMV_CONVERGE_SEND);
}

Test(converge, goes_on_while_it_gets_better)
{
	struct smv_converge c = wishes();
	double dirty = 100000 * (double)MIB;

	smv_converge_sent(&c, 1000 * MIB, 1000);
	for (int i = 0; i < 25; i++, dirty *= 0.85) {
		cr_assert_eq(smv_converge_next(&c, (uint64_t)dirty), SMV_CONVERGE_SEND);
		smv_converge_sent(&c, 10 * MIB, 10);
		cr_assert_not(smv_converge_stalled(&c));
	}
}

static unsigned int rounds_until(struct smv_converge *c, enum smv_converge_step wanted)
{
	unsigned int n = 0;
	enum smv_converge_step step;

	smv_converge_sent(c, 1000 * MIB, 1000);
	while ((step = smv_converge_next(c, 1000 * MIB)) == SMV_CONVERGE_SEND) {
		smv_converge_sent(c, 1000 * MIB, 1000);
		cr_assert_lt(++n, 100);
	}
	cr_assert_eq(step, wanted);
	return n;
}

Test(converge, a_stall_ends_it_long_before_the_last_round)
{
	struct smv_converge c = wishes();

	cr_assert_leq(rounds_until(&c, SMV_CONVERGE_FAIL), 5);
	cr_assert(smv_converge_stalled(&c));
}

Test(converge, a_stall_stops_the_vm_if_its_operator_wants_that)
{
	struct smv_converge c = wishes();

	c.stop = true;
	cr_assert_leq(rounds_until(&c, SMV_CONVERGE_STOP), 5);
}

Test(converge, the_vm_is_throttled_step_by_step_up_to_the_limit)
{
	struct smv_converge c = wishes();
	unsigned int last = 0;

	c.max_throttle_percent = 45;
	smv_converge_sent(&c, 1000 * MIB, 1000);
	while (smv_converge_next(&c, 1000 * MIB) == SMV_CONVERGE_SEND) {
		cr_assert(c.throttle_percent == last || c.throttle_percent == 20 ||
			  c.throttle_percent == last + 10 || c.throttle_percent == 45);
		cr_assert_geq(c.throttle_percent, last);
		last = c.throttle_percent;
		smv_converge_sent(&c, 1000 * MIB, 1000);
	}
	cr_assert_eq(last, 45);
}

Test(converge, max_rounds_is_the_last_word)
{
	struct smv_converge c = wishes();

	c.max_rounds = 1;
	smv_converge_sent(&c, 1000 * MIB, 1000);
	cr_assert_eq(smv_converge_next(&c, 1000 * MIB), SMV_CONVERGE_FAIL);
	cr_assert_not(smv_converge_stalled(&c));
}

Test(converge, small_rounds_do_not_spoil_the_rate)
{
	struct smv_converge c = wishes();

	smv_converge_sent(&c, 1000 * MIB, 1000);
	smv_converge_sent(&c, 0, 0.01);
	smv_converge_sent(&c, 4096, 1); /* a round-trip for one page */
	cr_assert_float_eq(smv_converge_expected_ms(&c, 100 * MIB), 140, 1);
}

/* --- the estimate ------------------------------------------------------------------------- */

/* 1 GiB, a quarter of it untouched, of the rest half is zero; 100 MiB/s are written. */
static const struct smv_sample sample = {.pages_total = 262144,
	.pages_populated = 196608,
	.zero_share = 0.5,
	.pages_touched = 30000,
	.dirty_pages_per_s = 25600,
	.cold_touches_per_s = 123,
	.read_bytes_per_s = 2e9};

Test(estimate, pages_go_where_the_credit_says)
{
	struct smv_converge c = wishes();
	struct smv_estimate e;

	smv_estimate(&sample, 50000, 1e9, &c, &e);
	cr_assert_eq(e.pages_hot, 50000);
	cr_assert_eq(e.pages_hot + e.pages_cold, 98304);
	cr_assert_eq(e.pages_hot + e.pages_cold + e.pages_zero, sample.pages_total);
	cr_assert(e.converges);
	cr_assert_eq(e.faults_per_s, 123);
	/* 400 MB at 1 GB/s, and what is written meanwhile. */
	cr_assert_float_eq(
		(double)(e.bytes_to_main + e.bytes_to_sub_hosts), 98304 * 4096.0 * 1.1, 1e7);
	cr_assert(e.total_ms > 1800 && e.total_ms < 2500, "%.0f", e.total_ms);
}

Test(estimate, a_slow_link_is_foreseen_not_to_converge)
{
	struct smv_converge c = wishes();
	struct smv_estimate e;

	smv_estimate(&sample, 50000, 50e6, &c, &e);
	cr_assert_not(e.converges);
	cr_assert_gt(e.downtime_ms, 300);
	cr_assert_gt(e.rounds, 2);
}

Test(estimate, this_host_may_be_slower_than_the_link)
{
	struct smv_converge a = wishes(), b = wishes();
	struct smv_estimate fast, slow;
	struct smv_sample cpu = sample;

	smv_estimate(&cpu, 50000, 1e9, &a, &fast);
	cpu.read_bytes_per_s = 1e8;
	smv_estimate(&cpu, 50000, 1e9, &b, &slow);
	cr_assert_gt(slow.total_ms, fast.total_ms + 3000);
}

/* --- the journal -------------------------------------------------------------------------- */

static char dir[64];

static void setup(void)
{
	smv_rpc_init();
	strcpy(dir, "/tmp/smemv-journal.XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
	smv_rpc_shutdown();
	cr_assert_eq(rmdir(dir), 0, "the journals are gone, and so is everything in %s", dir);
}

TestSuite(journal, .init = setup, .fini = teardown);

static const char id[] = "0123456789abcdef0123456789abcdef";

static void begin(struct smv_journal *j)
{
	struct smv_error err;

	cr_assert_eq(smv_journal_create(dir, id, j, &err), 0, "%s", err.message);
	cr_assert_eq(smv_journal_set(j, json_pack("{s:s}", "vm", "guest"), &err), 0);
}

Test(journal, is_read_back_by_who_comes_later)
{
	struct smv_journal j, later;
	struct smv_error err;

	begin(&j);
	cr_assert_eq(smv_journal_set(&j, json_pack("{s:b}", "commit_sent", 1), &err), 0);
	smv_journal_close(&j);
	cr_assert_eq(smv_journal_open(dir, id, false, &later, &err), 0, "%s", err.message);
	cr_assert_str_eq(json_string_value(json_object_get(later.root, "vm")), "guest");
	cr_assert(json_is_true(json_object_get(later.root, "commit_sent")));
	smv_journal_remove(&later);
	cr_assert_eq(smv_journal_open(dir, id, false, &later, &err), -ENOENT);
}

Test(journal, has_one_owner_at_a_time)
{
	struct smv_journal_view *views;
	struct smv_journal j, other;
	struct smv_error err;
	size_t nr;

	begin(&j);
	cr_assert_lt(smv_journal_open(dir, id, false, &other, &err), 0);
	cr_assert_eq(err.code, SMV_EXISTS);
	cr_assert_eq(smv_journal_list(dir, &views, &nr, &err), 0);
	cr_assert(nr == 1 && views[0].busy);
	smv_journal_list_free(views, nr);
	cr_assert_lt(smv_journal_open(dir, id, false, &other, &err), 0,
		"looking at it must not free its lock");
	smv_journal_remove(&j);
}

Test(journal, the_death_of_its_owner_frees_it)
{
	struct smv_journal j;
	struct smv_error err;
	int ready[2];
	char c;
	pid_t pid;

	cr_assert_eq(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		begin(&j);
		if (write(ready[1], "r", 1) < 0)
			_exit(1);
		pause();
	}
	cr_assert_eq(read(ready[0], &c, 1), 1);
	cr_assert_lt(smv_journal_open(dir, id, false, &j, &err), 0);
	kill(pid, SIGKILL);
	/* Waits, if need be, for the kernel to let go of it. */
	cr_assert_eq(smv_journal_open(dir, id, true, &j, &err), 0, "%s", err.message);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	cr_assert_str_eq(json_string_value(json_object_get(j.root, "vm")), "guest");
	smv_journal_remove(&j);
}

Test(journal, who_waits_for_one_that_is_removed_learns_that)
{
	struct smv_journal j, waiting;
	struct smv_error err;
	int status;
	pid_t pid;

	begin(&j);
	pid = fork();
	if (pid == 0) {
		smv_journal_close(&j); /* a fork shares the lock */
		_exit(smv_journal_open(dir, id, true, &waiting, &err) == -ENOENT ? 0 : 1);
	}
	usleep(100000);
	smv_journal_remove(&j);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

Test(journal, a_result_can_be_read_after_it_is_gone)
{
	CLEANUP_JSON json_t *result = json_pack("{s:s}", "status", "cancelled"), *read = NULL;
	struct smv_journal_view *views;
	struct smv_journal j;
	struct smv_error err;
	size_t nr;

	begin(&j);
	cr_assert_eq(smv_journal_list(dir, &views, &nr, &err), 0);
	smv_journal_tell(&j, result);
	smv_journal_remove(&j);
	read = json_loadfd(views[0].result_fd, 0, NULL);
	cr_assert(json_equal(read, result));
	smv_journal_list_free(views, nr);
}

/* smemv-migrate died before it had touched anything: nobody is asked, and nothing is left. */
Test(journal, one_that_touched_nothing_is_settled_as_failed)
{
	struct smv_recovery recovery, again;
	struct smv_journal j;

	begin(&j);
	smv_recover(&j, 1000, false, &recovery);
	cr_assert_eq(recovery.outcome, SMV_FAILED);
	cr_assert(recovery.settled);
	smv_recover(&j, 1000, false, &again);
	cr_assert(again.settled && again.outcome == SMV_FAILED);
	cr_assert_str_eq(again.error.message, recovery.error.message);
	smv_journal_remove(&j);
}

/* The commit was asked for, the source's QEMU has ended, and the main host does not answer. */
Test(journal, without_a_verdict_it_is_unknown_until_a_person_vouches)
{
	struct smv_process gone = {1 << 22, 1};
	struct smv_recovery recovery;
	struct smv_journal j;
	struct smv_error err;

	begin(&j);
	cr_assert_eq(
		smv_journal_set(&j,
			json_pack("{s:s, s:s, s:s, s:b, s:b, s:o}", "to", "unix:/nonexistent/pager",
				"qmp_path", "/nonexistent/qmp", "shim_path", "/nonexistent/shim",
				"prepared", 1, "commit_sent", 1, "source", smv_json_process(&gone)),
			&err),
		0);
	smv_recover(&j, 300, false, &recovery);
	cr_assert_eq(recovery.outcome, SMV_DOUBTFUL);
	cr_assert_not(recovery.settled);
	cr_assert_str_eq(recovery.error.reason, "no-verdict");
	cr_assert_str_eq(recovery.source_state, "gone");
	cr_assert_null(json_object_get(j.root, "outcome"));
	smv_recover(&j, 300, true, &recovery);
	cr_assert_eq(recovery.outcome, SMV_FAILED);
	cr_assert(recovery.settled && !recovery.committed);
	smv_journal_remove(&j);
}
