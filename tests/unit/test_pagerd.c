/* SPDX-License-Identifier: Apache-2.0 */
#include "client/leases_state.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "common/files.h"
#include "pagerd/budget.h"
#include "pagerd/debts.h"
#include "pagerd/metrics.h"
#include "pagerd/migration.h"
#include "pagerd/state.h"
#include "pagerd/verdicts.h"
#include "pagerd/vm.h"
#include "prometheus.h"

#include "common/log.h"
#include "rpc/rpc.h"
#include "daemon.h"
#include "vm_stub.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[40], path[60];

static void dir_create(void)
{
	strcpy(dir, "/dev/shm/pagerd-test-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/verdicts.json", dir);
	smv_log_set_level(-1);
}

static void dir_remove(void)
{
	static const char *const names[] = {"verdicts.json", "verdicts.json.new",
		"verdicts.json.broken", "x.json", "x.json.new", "vm.vm.json", "debts.json"};
	char file[100];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(file, sizeof(file), "%s/%s", dir, names[i]);
		unlink(file);
	}
	cr_assert_eq(rmdir(dir), 0, "%s", strerror(errno));
}

static void open_log(void)
{
	struct smv_error err = {0};

	cr_assert_eq(smv_verdicts_init(dir, &err), 0, "%s", err.message);
}

TestSuite(verdicts, .init = dir_create, .fini = dir_remove);

/* --- the log of verdicts ------------------------------------------------------------------ */

/* An entry in that state, made by the allowed ways only. */
static void bring_to(const char *id, enum smv_verdict_state state)
{
	if (state == SMV_VERDICT_NONE)
		return;
	cr_assert_eq(smv_verdicts_put(id, "vm", SMV_VERDICT_OPEN, ""), 0);
	if (state == SMV_VERDICT_ABORTED)
		cr_assert_eq(smv_verdicts_put(id, NULL, SMV_VERDICT_ABORTED, "because"), 0);
	if (state == SMV_VERDICT_COMMITTED || state == SMV_VERDICT_TOLD)
		cr_assert_eq(smv_verdicts_put(id, NULL, SMV_VERDICT_COMMITTED, ""), 0);
	if (state == SMV_VERDICT_TOLD)
		cr_assert_eq(smv_verdicts_put(id, NULL, SMV_VERDICT_TOLD, ""), 0);
}

Test(verdicts, only_these_transitions)
{
	/* [from][to] */
	static const bool allowed[5][5] = {
		[SMV_VERDICT_NONE] = {[SMV_VERDICT_OPEN] = true, [SMV_VERDICT_ABORTED] = true},
		[SMV_VERDICT_OPEN] = {[SMV_VERDICT_COMMITTED] = true, [SMV_VERDICT_ABORTED] = true},
		[SMV_VERDICT_COMMITTED] = {[SMV_VERDICT_COMMITTED] = true,
			[SMV_VERDICT_TOLD] = true,
			[SMV_VERDICT_ABORTED] = true},
		[SMV_VERDICT_TOLD] = {[SMV_VERDICT_TOLD] = true},
		[SMV_VERDICT_ABORTED] = {[SMV_VERDICT_ABORTED] = true},
	};
	char id[40];

	open_log();
	for (int from = SMV_VERDICT_NONE; from <= SMV_VERDICT_ABORTED; from++) {
		for (int to = SMV_VERDICT_OPEN; to <= SMV_VERDICT_ABORTED; to++) {
			enum smv_verdict_state want =
				(enum smv_verdict_state)(allowed[from][to] ? to : from);

			snprintf(id, sizeof(id), "%032d", from * 10 + to);
			bring_to(id, (enum smv_verdict_state)from);
			cr_assert_eq(smv_verdicts_put(id, "vm", (enum smv_verdict_state)to, "x"),
				allowed[from][to] ? 0 : -EPERM, "%d -> %d", from, to);
			cr_assert_eq(smv_verdicts_get(id, NULL), want);
			/* The next pager reads the same. */
			open_log();
			cr_assert_eq(smv_verdicts_get(id, NULL), want, "%d -> %d", from, to);
		}
	}
	cr_assert_eq(smv_verdicts_get("ffffffffffffffffffffffffffffffff", NULL), SMV_VERDICT_NONE);
}

Test(verdicts, why_and_mode_are_kept)
{
	char why[200];
	struct stat st;

	open_log();
	cr_assert_eq(smv_verdicts_put("a", "vm", SMV_VERDICT_OPEN, ""), 0);
	cr_assert_eq(smv_verdicts_put("a", NULL, SMV_VERDICT_ABORTED, "the \"source\"\n died"), 0);
	open_log();
	cr_assert_eq(smv_verdicts_get("a", why), SMV_VERDICT_ABORTED);
	cr_assert_str_eq(why, "the \"source\"\n died");
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0600);
}

#ifdef SMEMV_FAULT_POINTS
/* A pager that goes through a whole migration and dies at the @nth hit of @point. */
static void die_at(const char *point, int nth, bool commit)
{
	char fault[64];
	int status;
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		snprintf(fault, sizeof(fault), "%s:kill:%d", point, nth);
		setenv("SMEMV_FAULT", fault, 1);
		smv_verdicts_init(dir, NULL);
		smv_verdicts_put("m", "vm", SMV_VERDICT_OPEN, "");
		if (commit) {
			smv_verdicts_put("m", NULL, SMV_VERDICT_COMMITTED, "");
			smv_verdicts_put("m", NULL, SMV_VERDICT_TOLD, "");
		} else {
			smv_verdicts_put("m", NULL, SMV_VERDICT_ABORTED, "x");
		}
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s %d", point, nth);
}

Test(verdicts, a_crash_between_any_two_steps_leaves_the_old_or_the_new)
{
	static const enum smv_verdict_state ways[2][4] = {
		{SMV_VERDICT_NONE, SMV_VERDICT_OPEN, SMV_VERDICT_ABORTED},
		{SMV_VERDICT_NONE, SMV_VERDICT_OPEN, SMV_VERDICT_COMMITTED, SMV_VERDICT_TOLD}};

	for (int commit = 0; commit < 2; commit++) {
		for (int step = 1; step <= 2 + commit; step++) {
			unlink(path);
			die_at("durable-written", step, commit);
			open_log();
			cr_assert_eq(smv_verdicts_get("m", NULL), ways[commit][step - 1]);
			unlink(path);
			die_at("durable-renamed", step, commit);
			open_log();
			cr_assert_eq(smv_verdicts_get("m", NULL), ways[commit][step]);
		}
	}
}

Test(verdicts, what_cannot_be_written_has_not_happened)
{
	setenv("SMEMV_FAULT", "durable-fails:skip:2", 1);
	open_log();
	cr_assert_eq(smv_verdicts_put("m", "vm", SMV_VERDICT_OPEN, ""), 0);
	cr_assert_lt(smv_verdicts_put("m", NULL, SMV_VERDICT_COMMITTED, ""), 0);
	cr_assert_eq(smv_verdicts_get("m", NULL), SMV_VERDICT_OPEN);
	/* So it can still be aborted. */
	cr_assert_eq(smv_verdicts_put("m", NULL, SMV_VERDICT_ABORTED, ""), 0);
	open_log();
	cr_assert_eq(smv_verdicts_get("m", NULL), SMV_VERDICT_ABORTED);
}
#endif

Test(verdicts, the_newest_are_kept_and_open_ones_always)
{
	char id[40];

	open_log();
	cr_assert_eq(smv_verdicts_put("open", "vm", SMV_VERDICT_OPEN, ""), 0);
	bring_to("decided", SMV_VERDICT_COMMITTED);
	for (int i = 0; i < 100; i++) {
		snprintf(id, sizeof(id), "%d", i);
		bring_to(id, i % 2 ? SMV_VERDICT_TOLD : SMV_VERDICT_ABORTED);
	}
	open_log();
	cr_assert_eq(smv_verdicts_get("open", NULL), SMV_VERDICT_OPEN);
	cr_assert_eq(smv_verdicts_get("decided", NULL), SMV_VERDICT_COMMITTED);
	for (int i = 0; i < 100; i++) {
		snprintf(id, sizeof(id), "%d", i);
		cr_assert_eq(smv_verdicts_get(id, NULL),
			i < 100 - SMV_VERDICTS_KEPT ? SMV_VERDICT_NONE
			: i % 2                     ? SMV_VERDICT_TOLD
						    : SMV_VERDICT_ABORTED,
			"%d", i);
	}
}

static bool only_here(const char *id)
{
	return strcmp(id, "here") == 0;
}

Test(verdicts, after_a_restart_the_rest_is_aborted)
{
	open_log();
	bring_to("here", SMV_VERDICT_COMMITTED);
	bring_to("gone", SMV_VERDICT_COMMITTED);
	bring_to("open", SMV_VERDICT_OPEN);
	bring_to("told", SMV_VERDICT_TOLD);
	open_log();
	smv_verdicts_abort_rest(only_here);
	open_log();
	cr_assert_eq(smv_verdicts_get("here", NULL), SMV_VERDICT_COMMITTED);
	cr_assert_eq(smv_verdicts_get("gone", NULL), SMV_VERDICT_ABORTED);
	cr_assert_eq(smv_verdicts_get("open", NULL), SMV_VERDICT_ABORTED);
	cr_assert_eq(smv_verdicts_get("told", NULL), SMV_VERDICT_TOLD);
}

Test(verdicts, a_broken_log_is_put_aside)
{
	static const char *const texts[] = {
		"", "[", "{}", "[{}]", "[{\"id\": \"x\", \"state\": \"perhaps\"}]"};
	char aside[80];

	snprintf(aside, sizeof(aside), "%s.broken", path);
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		FILE *f = fopen(path, "w");

		fputs(texts[i], f);
		fclose(f);
		unlink(aside);
		open_log();
		cr_assert_eq(access(aside, F_OK), 0, "%s", texts[i]);
		cr_assert_eq(smv_verdicts_get("x", NULL), SMV_VERDICT_NONE);
		cr_assert_eq(smv_verdicts_put("x", "vm", SMV_VERDICT_OPEN, ""), 0);
	}
}

Test(verdicts, the_file_goes_when_nobody_can_ask_any_more)
{
	json_t *log;

	open_log();
	bring_to("m", SMV_VERDICT_TOLD);
	smv_verdicts_end(false);
	cr_assert_eq(access(path, F_OK), 0);
	/* An hour later. */
	log = json_load_file(path, 0, NULL);
	json_object_set_new(json_array_get(log, 0), "when", json_integer(1));
	cr_assert_eq(smv_replace_json(AT_FDCWD, path, log, 0, true), 0);
	json_decref(log);
	open_log();
	smv_verdicts_end(false);
	cr_assert_lt(access(path, F_OK), 0);
}

/* --- leases on paper ---------------------------------------------------------------------- */

static void leases_make(struct smv_leases *leases, struct smv_backing *backing)
{
	static struct smv_lease two[2];
	static struct smv_sub_host hosts[2];
	static struct smv_segment segments[2] = {
		{0xfedcba9876543210, 0x8000000000000001, 4ull << 21}, {7, 8, 1ull << 30}};

	*leases = (struct smv_leases){.leases = two, .nr = 2, .epoch = 7};
	*backing = (struct smv_backing){.sub_hosts = hosts, .nr_sub_hosts = 2};
	strcpy(hosts[0].address, "127.0.0.1:7000");
	strcpy(hosts[0].name, "one");
	cr_assert_eq(smv_addr_parse("tcp:127.0.0.1:7001", true, &hosts[0].data_addr, NULL), 0);
	hosts[0].segments = segments;
	hosts[0].nr_segments = 2;
	strcpy(two[0].id, "8123456789abcdef");
	two[0].created = two[0].held = true;
	for (int i = 0; i < SMV_TICKET_KEY_SIZE; i++)
		two[0].key[i] = (uint8_t)(i * 37 + 200);
	/* One without a share. */
	strcpy(hosts[1].address, "127.0.0.1:7002");
	strcpy(hosts[1].name, "two");
}

Test(leases_state, what_was_written_is_read)
{
	const struct smv_transport *tcp = smv_transport_find("tcp");
	struct smv_leases before, after;
	struct smv_backing old, new;
	struct smv_error err = {0};
	struct smv_ticket ticket;
	char text[SMV_ADDR_MAX];
	json_t *json;

	smv_rpc_init();
	leases_make(&before, &old);
	json = smv_leases_to_json(&before, &old);
	cr_assert(json);
	cr_assert_eq(
		smv_leases_from_json(json, tcp, 1000, &after, &new, &err), 0, "%s", err.message);
	cr_assert_eq(after.nr, 2);
	cr_assert_eq(after.epoch, 7);
	cr_assert_str_eq(after.leases[0].id, "8123456789abcdef");
	cr_assert_arr_eq(after.leases[0].key, before.leases[0].key, SMV_TICKET_KEY_SIZE);
	cr_assert(after.leases[0].created && after.leases[0].held);
	cr_assert_not(after.leases[1].created || after.leases[1].held);
	cr_assert_eq(new.transport, tcp);
	cr_assert_eq(new.nr_sub_hosts, 2);
	cr_assert_str_eq(new.sub_hosts[0].address, "127.0.0.1:7000");
	cr_assert_str_eq(new.sub_hosts[0].name, "one");
	cr_assert_str_eq(smv_addr_format(&new.sub_hosts[0].data_addr, text, sizeof(text)),
		"tcp:127.0.0.1:7001");
	cr_assert_eq(new.sub_hosts[0].lease_id, 0x8123456789abcdef);
	cr_assert_eq(new.sub_hosts[0].nr_segments, 2);
	cr_assert_arr_eq(new.sub_hosts[0].segments, old.sub_hosts[0].segments,
		2 * sizeof(struct smv_segment));
	cr_assert_eq(new.sub_hosts[1].nr_segments, 0);
	cr_assert_eq(new.ticket(new.ticket_ctx, 0, SMV_ROLE_READER, &ticket), 0);
	cr_assert_lt(new.ticket(new.ticket_ctx, 1, SMV_ROLE_READER, &ticket), 0);
	smv_leases_forget(&after, &new);
	json_decref(json);
	smv_rpc_shutdown();
}

Test(leases_state, what_is_broken_is_refused)
{
	static const char *const fields[] = {
		"address", "name", "data_address", "lease", "key", "held", "segments"};
	struct smv_leases leases, out;
	struct smv_backing backing, new;
	struct smv_error err;
	json_t *json, *copy, *host;

	smv_rpc_init();
	leases_make(&leases, &backing);
	json = smv_leases_to_json(&leases, &backing);
	for (size_t i = 0; i <= 7 + 4; i++) {
		copy = json_deep_copy(json);
		host = json_array_get(json_object_get(copy, "sub_hosts"), 0);
		if (i < 7)
			json_object_del(host, fields[i]);
		else if (i == 7)
			json_object_set_new(host, "key", json_string("zz"));
		else if (i == 8)
			json_object_set_new(copy, "epoch", json_integer(0));
		else if (i == 9)
			json_array_clear(json_object_get(copy, "sub_hosts"));
		else if (i == 10)
			json_object_set_new(host, "segments", json_pack("[[i]]", 3));
		else
			json_object_set_new(host, "address", json_string("nowhere"));
		memset(&err, 0, sizeof(err));
		cr_assert_lt(smv_leases_from_json(copy, NULL, 1000, &out, &new, &err), 0, "%zu", i);
		cr_assert_eq(err.code, SMV_DATA_LOSS);
		json_decref(copy);
	}
	json_decref(json);
	smv_rpc_shutdown();
}

Test(leases_state, a_sub_host_that_is_away_stays_unfenced)
{
	struct smv_leases leases, out;
	struct smv_backing backing, new;
	struct smv_error err = {0};
	bool fenced[2] = {false, false};
	json_t *json;

	smv_rpc_init();
	leases_make(&leases, &backing);
	strcpy(backing.sub_hosts[0].address, "127.0.0.1:1");
	json = smv_leases_to_json(&leases, &backing);
	cr_assert_eq(
		smv_leases_from_json(json, smv_transport_find("tcp"), 1000, &out, &new, &err), 0);
	cr_assert_eq(smv_leases_fence_each(&out, &new, fenced, true, 2000, &err), 1);
	cr_assert(strstr(err.message, "127.0.0.1:1"), "%s", err.message);
	cr_assert_not(fenced[0]);
	cr_assert(fenced[1], "there is nothing to fence");
	smv_leases_forget(&out, &new);
	json_decref(json);
	smv_rpc_shutdown();
}

/* --- metrics ------------------------------------------------------------------------------ */

static struct prom prom;

static void collect(void)
{
	struct smv_metrics *m = smv_metrics_create();
	size_t len;
	char *text;

	smv_pagerd_collect(NULL, m);
	text = smv_metrics_text(m, &len);
	cr_assert(text);
	cr_assert_eq(prom_parse(&prom, text), 0, "%s", prom.error);
	free(text);
	smv_metrics_destroy(m);
}

static double metric(const char *name, const char *vm)
{
	const struct prom_sample *s =
		vm ? prom_find(&prom, name, "vm", vm, NULL) : prom_find(&prom, name, NULL);

	cr_assert(s, "%s", name);
	return s->value;
}

Test(metrics, without_vms_there_are_the_totals)
{
	collect();
	cr_assert_eq(metric("smemv_vms_busy", NULL), 0);
	cr_assert_eq(metric("smemv_debts", NULL), 0);
	cr_assert_eq(prom.nr, 2);
}

Test(metrics, a_vm_that_could_not_be_taken_over_is_stalled)
{
	struct smv_vm *vm = smv_vm_new("vm \"1\"");

	vm->state = SMV_VM_RUNNING;
	vm->unserved_since_ns = smv_now_ns() - 3 * SMV_NS_PER_S;
	strcpy(vm->trouble, "not taken over: because");
	cr_assert_eq(smv_vms_add(vm, NULL), 0);
	collect();
	cr_assert_eq(metric("smemv_vm_stalled", "vm \"1\""), 1);
	cr_assert_geq(metric("smemv_vm_stall_seconds_total", "vm \"1\""), 3);
	cr_assert_geq(metric("smemv_vm_longest_stall_seconds", "vm \"1\""), 3);
	cr_assert_eq(metric("smemv_vm_in_trouble", "vm \"1\""), 1);
	cr_assert_eq(prom_find(&prom, "smemv_vm_state", "vm", "vm \"1\"", "state", "running", NULL)
			     ->value,
		1);
	cr_assert_eq(prom_find(&prom, "smemv_vm_state", "vm", "vm \"1\"", "state", "waiting", NULL)
			     ->value,
		0);
	smv_vm_put(vm);
}

Test(metrics, a_vm_that_is_busy_is_left_out_and_counted)
{
	struct smv_vm *busy = smv_vm_new("busy"), *idle = smv_vm_new("idle");

	cr_assert_eq(smv_vms_add(busy, NULL), 0);
	cr_assert_eq(smv_vms_add(idle, NULL), 0);
	pthread_mutex_lock(&busy->lock);
	collect();
	cr_assert_eq(metric("smemv_vms_busy", NULL), 1);
	cr_assert_eq(metric("smemv_vm_stalled", "idle"), 0);
	cr_assert_null(prom_find(&prom, "smemv_vm_stalled", "vm", "busy", NULL));
	pthread_mutex_unlock(&busy->lock);
	collect();
	cr_assert_eq(metric("smemv_vms_busy", NULL), 0);
	cr_assert_eq(metric("smemv_vm_stalled", "busy"), 0);
	smv_vm_put(busy);
	smv_vm_put(idle);
}

/* --- fair shares -------------------------------------------------------------------------- */

static void expect_shares(const struct smv_claim *wants, size_t nr, uint64_t total)
{
	struct smv_claim claims[8], *pointers[8] = {NULL};

	for (size_t i = 0; i < nr; i++) {
		claims[i] = wants[i];
		claims[i].share = 12345;
		pointers[i] = &claims[i];
	}
	smv_fair_shares(pointers, nr, total);
	for (size_t i = 0; i < nr; i++)
		cr_assert_eq(claims[i].share, wants[i].share, "%zu of %zu, total %lu: %lu", i, nr,
			total, claims[i].share);
}

#define SHARES(total, ...)                                                                         \
	expect_shares((struct smv_claim[]){__VA_ARGS__},                                           \
		sizeof((struct smv_claim[]){__VA_ARGS__}) / sizeof(struct smv_claim), total)

Test(shares, are_max_min_fair)
{
	/* {wish, floor, share} */
	SHARES(1000, {600, 0, 600});
	SHARES(500, {600, 0, 500});
	SHARES(1000, {600, 0, 600}, {400, 0, 400});
	SHARES(1000, {600, 0, 500}, {800, 0, 500});
	SHARES(1000, {100, 0, 100}, {800, 0, 450}, {900, 0, 450});
	SHARES(1000, {100, 0, 100}, {300, 0, 300}, {700, 0, 600});
	/* A floor above the level goes off what the others share. */
	SHARES(1000, {800, 700, 700}, {800, 0, 300});
	SHARES(1000, {800, 700, 700}, {800, 0, 150}, {900, 100, 150});
	SHARES(1000, {700, 700, 700}, {900, 200, 200}, {900, 50, 100});
	/* One below it changes nothing. */
	SHARES(1000, {800, 300, 500}, {800, 499, 500});
	/* Too much of them. */
	SHARES(1000, {800, 700, 700}, {800, 700, 700});
	SHARES(0, {5, 1, 1}, {5, 0, 0});
	/* What does not go round. */
	SHARES(1000, {900, 0, 333}, {900, 0, 333}, {900, 0, 333});
	SHARES(UINT64_MAX, {900, 1, 900}, {1ull << 40, 1, 1ull << 40});
	smv_fair_shares(NULL, 0, 1000);
}

static uint64_t sum_of_shares(const struct smv_claim *c, size_t nr)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < nr; i++)
		sum += c[i].share;
	return sum;
}

/* Nobody could have more without taking it from one who has no more than that. */
Test(shares, whatever_the_claims_nobody_can_be_given_more)
{
	struct smv_claim c[8], *p[8];
	unsigned int seed = 1;

	for (int round = 0; round < 20000; round++) {
		size_t nr = 1 + (size_t)rand_r(&seed) % 8;
		uint64_t total = (uint64_t)rand_r(&seed) % 3000, floors = 0, top = 0;

		for (size_t i = 0; i < nr; i++) {
			c[i].wish = (uint64_t)rand_r(&seed) % 1000;
			c[i].floor =
				rand_r(&seed) % 2 ? (uint64_t)rand_r(&seed) % (c[i].wish + 1) : 0;
			floors += c[i].floor;
			p[i] = &c[i];
		}
		smv_fair_shares(p, nr, total);
		for (size_t i = 0; i < nr; i++) {
			cr_assert_leq(c[i].share, c[i].wish);
			cr_assert_geq(c[i].share, c[i].floor);
			if (c[i].share > c[i].floor && c[i].share > top)
				top = c[i].share;
		}
		if (floors > total)
			cr_assert_eq(sum_of_shares(c, nr), floors);
		else
			cr_assert_leq(sum_of_shares(c, nr), total);
		for (size_t i = 0; i < nr && floors <= total; i++) {
			if (c[i].share == c[i].wish)
				continue;
			/* It has as much as anybody who could give some, and nothing is left. */
			cr_assert_geq(c[i].share, top);
			cr_assert_gt(sum_of_shares(c, nr) + nr, total);
		}
	}
}

/* --- a running VM's budget ---------------------------------------------------------------- */

#define MIB (1ull << 20)
#define RAM (96 * MIB)
#define BUDGET (92 * MIB)
#define SMALL (20 * MIB)
#define NR_READERS 4

/* A VM of threads of this process, on a memserverd of its own. */
static struct stub_vm stub;
static struct smv_vm *vm;
static pid_t memserverd;
static char server_address[80];

static void start_memserverd(const char *memory)
{
	char state[80];
	int fds[2];

	snprintf(server_address, sizeof(server_address), "unix:%s/sock", dir);
	snprintf(state, sizeof(state), "%s/server", dir);
	cr_assert_eq(pipe(fds), 0);
	memserverd = fork();
	if (memserverd == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		unsetenv("SMEMV_FAULT");
		dup2(fds[1], STDERR_FILENO);
		execl(SMEMV_TEST_MEMSERVERD, "memserverd", "--name", "t", "--memory", memory,
			"--state-dir", state, "--listen", server_address, "--data",
			"tcp:127.0.0.1:0", (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	wait_ready(fds[0]);
	/* Stays open: the server must be able to log. */
}

static void fill_page(uint64_t *words, uint64_t page)
{
	for (size_t i = 0; i < SMV_PAGE_SIZE / sizeof(*words); i++)
		words[i] = (page + 1) * 0x9e3779b97f4a7c15 ^ i;
}

static _Atomic unsigned int wrong;
static uint64_t read_every;

static void *write_pages(void *arg)
{
	(void)arg;
	for (uint64_t page = 0; page < stub.ram.nr_pages; page++)
		fill_page((uint64_t *)(void *)stub_vm_page(&stub, page), page);
	return NULL;
}

/* @arg: a reader's number: each has a part of the RAM. */
static void *read_pages(void *arg)
{
	uint64_t want[SMV_PAGE_SIZE / sizeof(uint64_t)];
	uint64_t part = stub.ram.nr_pages / NR_READERS, first = (uintptr_t)arg * part;

	for (uint64_t page = first; page < first + part; page += read_every) {
		fill_page(want, page);
		wrong += memcmp(stub_vm_page(&stub, page), want, SMV_PAGE_SIZE) != 0;
	}
	return NULL;
}

/* As a thread of the VM, which waits when it is not served. */
static void run_in_vm(void *(*body)(void *), unsigned int nr)
{
	struct timespec until;
	pthread_t threads[NR_READERS];

	for (uintptr_t i = 0; i < nr; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, body, (void *)i), 0);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 60;
	for (unsigned int i = 0; i < nr; i++)
		cr_assert_eq(pthread_timedjoin_np(threads[i], NULL, &until), 0,
			"a thread waits for ever");
}

static void pages_are_right(uint64_t every)
{
	wrong = 0;
	read_every = every;
	run_in_vm(read_pages, NR_READERS);
	cr_assert_eq(wrong, 0);
	cr_assert_eq(smv_pagemap_count(&vm->map, SMV_PAGE_LOST), 0);
}

static void memory_is_right(void)
{
	pages_are_right(1);
}

static void make_pager(void)
{
	struct smv_pager_config config = {.name = "vm",
		.ram = &vm->ram,
		.map = &vm->map,
		.slots = &vm->slots,
		.backing = &vm->backing,
		.uffd = stub.uffd,
		.pagemap_fd = stub.pagemap_fd,
		.zap = stub_vm_zap,
		.budget_pages = vm->budget.granted,
		.timeout_ms = 2000};

	cr_assert_eq(smv_pager_create(&config, &vm->pager, NULL), 0);
}

static void vm_open(const char *server_memory)
{
	const char *addresses[] = {server_address};
	const struct smv_transport_wish wish = {.names = "tcp"};
	char reason[200], map[100];
	struct smv_error err = {0};

	if (smv_kernel_check(&err) < 0)
		cr_skip_test("%s", err.message);
	start_memserverd(server_memory);
	smv_rpc_init();
	cr_assert_eq(smv_vms_init(dir, false, &err), 0);
	smv_debts_init(dir);
	stub_vm_create(&stub, 1, RAM / SMV_PAGE_SIZE, SMV_UFFD_PAGE,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
			UFFDIO_REGISTER_MODE_WP);
	vm = smv_vm_new("vm");
	vm->ram = stub.ram;
	vm->state = SMV_VM_RUNNING;
	vm->process.pid = getpid();
	vm->budget_bytes = BUDGET;
	cr_assert_eq(smv_leases_create(&vm->leases, &vm->backing, addresses, 1, "vm",
			     smv_leases_room(RAM, BUDGET), &wish, false, 5000, reason,
			     sizeof(reason), &err),
		0, "%s", err.message);
	vm->backed = true;
	cr_assert(smv_leases_hold(&vm->leases, &vm->backing));
	cr_assert_eq(smv_slots_create(vm->backing.nr_extents, &vm->slots), 0);
	snprintf(map, sizeof(map), "%s/vm.map", dir);
	cr_assert_eq(smv_pagemap_create(map, "vm", vm->ram.nr_pages, &vm->map, &err), 0);
	smv_pagemap_fill(&vm->map, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	vm->map_id = smv_pagemap_id(&vm->map);
	smv_budget_restore(vm);
	cr_assert_eq(smv_vms_add(vm, &err), 0);
	cr_assert_eq(smv_vm_save(vm, &err), 0);
	cr_assert_eq(smv_vm_save_extents(vm, &err), 0);
	make_pager();
	cr_assert_eq(smv_pager_start(vm->pager, &err), 0, "%s", err.message);
	run_in_vm(write_pages, 1);
}

static void vm_close(void)
{
	char command[100];

	if (!vm)
		return;
	smv_pager_destroy(vm->pager);
	smv_leases_release(&vm->leases, &vm->backing);
	smv_backing_free(&vm->backing);
	smv_slots_destroy(&vm->slots);
	smv_pagemap_destroy(&vm->map);
	stub_vm_destroy(&stub);
	smv_debts_end();
	smv_rpc_shutdown();
	kill(memserverd, SIGKILL);
	waitpid(memserverd, NULL, 0);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(set_budget, .init = dir_create, .fini = vm_close, .timeout = 120);

static int set_budget(uint64_t bytes, struct smv_error *err)
{
	uint64_t added;

	memset(err, 0, sizeof(*err));
	return smv_vm_set_budget(vm, bytes, &added, err);
}

static bool is_reached(uint64_t bytes)
{
	for (int i = 0; i < 2000 && smv_guest_ram_resident(&vm->ram) > bytes; i++)
		smv_sleep_ms(5);
	return smv_guest_ram_resident(&vm->ram) <= bytes;
}

/* A successor with nothing but the files; the memory must be the same to it. */
static void succeed_from_files(uint64_t budget, unsigned int nr_leases_then)
{
	const struct smv_transport *transport = vm->backing.transport;
	char file[100];
	struct smv_taken_over report;
	struct smv_error err = {0};
	json_t *state;

	smv_pager_destroy(vm->pager);
	smv_leases_forget(&vm->leases, &vm->backing);
	smv_slots_destroy(&vm->slots);
	snprintf(file, sizeof(file), "%s/vm.vm.json", dir);
	state = json_load_file(file, 0, NULL);
	cr_assert_eq(json_integer_value(json_object_get(state, "budget_bytes")), budget);
	cr_assert_eq(smv_leases_from_json(json_object_get(state, "leases"), transport, 5000,
			     &vm->leases, &vm->backing, &err),
		0, "%s", err.message);
	json_decref(state);
	cr_assert_eq(smv_vm_load_extents(vm, &err), 0, "%s", err.message);
	cr_assert_eq(vm->leases.nr, nr_leases_then);
	cr_assert_eq(smv_leases_fence(&vm->leases, &vm->backing, &err), 0, "%s", err.message);
	cr_assert_eq(smv_slots_create(vm->backing.nr_extents, &vm->slots), 0);
	make_pager();
	cr_assert_eq(smv_pager_take_over(vm->pager, &report, &err), 0, "%s", err.message);
	cr_assert_eq(report.lost, 0);
	cr_assert_eq(smv_pager_start(vm->pager, &err), 0, "%s", err.message);
	memory_is_right();
}

Test(set_budget, shrinks_into_room_that_is_leased_for_it)
{
	struct smv_error err;

	vm_open("160M");
	cr_assert_eq(vm->backing.nr_extents * SMV_EXTENT_BYTES, 68 * MIB);
	cr_assert_eq(set_budget(SMALL, &err), 0, "%s", err.message);
	cr_assert_eq(vm->leases.nr, 2);
	cr_assert_eq(vm->slots.nr_extents * SMV_EXTENT_BYTES, smv_leases_room(RAM, SMALL));
	cr_assert(is_reached(SMALL));
	memory_is_right();
	cr_assert_leq(smv_guest_ram_resident(&vm->ram), SMALL);
	/* Up, and down again: the room is there. */
	cr_assert_eq(set_budget(RAM, &err), 0, "%s", err.message);
	pages_are_right(1);
	cr_assert_gt(smv_guest_ram_resident(&vm->ram), 2 * SMALL);
	cr_assert_eq(set_budget(SMALL, &err), 0, "%s", err.message);
	cr_assert_eq(vm->leases.nr, 2);
	/* In smaller steps, each with a lease of its own. */
	cr_assert_eq(set_budget(SMALL - 2 * MIB, &err), 0, "%s", err.message);
	cr_assert_eq(set_budget(SMALL - 4 * MIB, &err), 0, "%s", err.message);
	cr_assert_eq(vm->leases.nr, 4);
	cr_assert(is_reached(SMALL - 4 * MIB));
	/* The text is not valid when the sub-host is there once for each lease. */
	collect();
	cr_assert_eq(metric("smemv_sub_host_up", "vm"), 1);
	cr_assert_eq(metric("smemv_vm_effective_budget_bytes", "vm"), SMALL - 4 * MIB);
	cr_assert_gt(metric("smemv_sub_host_written_bytes_total", "vm"), 0);
	succeed_from_files(SMALL - 4 * MIB, 4);
	cr_assert_eq(leases_at(vm->leases.leases[0].client), 4);
}

Test(set_budget, is_refused_without_room_and_out_of_its_limits)
{
	struct smv_error err;

	vm_open("84M");
	cr_assert_lt(set_budget(SMALL, &err), 0);
	cr_assert_eq(err.code, SMV_NO_ROOM);
	cr_assert(strstr(err.message, "needs 140 MiB") && strstr(err.message, "has 68.0 MiB") &&
			  strstr(err.message, "needed 72.0 MiB") &&
			  strstr(err.message, "free 16.0 MiB"),
		"%s", err.message);
	cr_assert_lt(set_budget(SMV_BUDGET_MIN - 1, &err), 0);
	cr_assert_eq(err.code, SMV_INVALID);
	cr_assert_lt(set_budget(RAM + 1, &err), 0);
	cr_assert(strstr(err.message, "at most 96.0 MiB"), "%s", err.message);
	vm->state = SMV_VM_RECEIVING;
	cr_assert_lt(set_budget(BUDGET, &err), 0);
	cr_assert_eq(err.code, SMV_REFUSED);
	vm->state = SMV_VM_RUNNING;
	cr_assert_eq(vm->budget_bytes, BUDGET);
	cr_assert_eq(leases_at(vm->leases.leases[0].client), 1);
	pages_are_right(64);
	/* What there is room for works. */
	cr_assert_eq(set_budget(BUDGET - 16 * MIB, &err), 0, "%s", err.message);
	cr_assert(is_reached(BUDGET - 16 * MIB));
	memory_is_right();
}

/* --- several VMs and a cap ---------------------------------------------------------------- */

static _Atomic bool stop_ticks;

static void *tick(void *arg)
{
	(void)arg;
	while (!stop_ticks) {
		pthread_mutex_lock(&vm->lock);
		smv_budget_tick_locked(vm);
		pthread_mutex_unlock(&vm->lock);
		smv_sleep_ms(10);
	}
	return NULL;
}

/* One that waits for its migration. */
static struct smv_vm *other_vm(const char *name)
{
	struct smv_vm *other = smv_vm_new(name);
	struct smv_error err = {0};

	other->ram.bytes = RAM;
	cr_assert_eq(smv_vms_add(other, &err), 0);
	return other;
}

static bool is_granted(uint64_t bytes)
{
	for (int i = 0; i < 1000 && vm->budget.granted * SMV_PAGE_SIZE != bytes; i++)
		smv_sleep_ms(5);
	return vm->budget.granted * SMV_PAGE_SIZE == bytes;
}

/* The cap is 100 MiB; vm wants 92 of it and can do with 20. */
static void open_capped(void)
{
	struct smv_error err;

	smv_budget_init(100 * MIB);
	vm_open("160M");
	cr_assert_eq(set_budget(SMALL, &err), 0, "%s", err.message);
	cr_assert_eq(set_budget(BUDGET, &err), 0, "%s", err.message);
	cr_assert_eq(vm->budget.granted * SMV_PAGE_SIZE, BUDGET);
	memory_is_right();
}

Test(set_budget, is_shared_with_a_vm_that_comes_and_never_exceeds_the_cap)
{
	struct smv_vm *other;
	struct smv_error err = {0};
	pthread_t ticker;
	uint64_t share;

	open_capped();
	other = other_vm("other");
	/* What cannot be refuses, and says so before. */
	cr_assert_lt(smv_budget_check(other, 90 * MIB, 81 * MIB, NULL, &err), 0);
	cr_assert_eq(err.code, SMV_NO_ROOM);
	cr_assert(strstr(err.message, "100 MiB") && strstr(err.message, "20.0 MiB") &&
			  strstr(err.message, "81.0 MiB"),
		"%s", err.message);
	cr_assert_lt(smv_budget_join(other, 90 * MIB, 81 * MIB, &err), 0);
	cr_assert_eq(smv_budget_check(other, 80 * MIB, 30 * MIB, &share, &err), 0);
	cr_assert_eq(share, 50 * MIB);
	cr_assert_not(other->budget.counts);
	cr_assert_eq(vm->budget.claim.share * SMV_PAGE_SIZE, BUDGET);

	/* As long as vm gives nothing up, nobody can come. */
	cr_assert_lt(smv_budget_join(other, 80 * MIB, 30 * MIB, &err), 0);
	cr_assert(strstr(err.message, "not given up"), "%s", err.message);
	cr_assert_eq(other->budget.granted, 0);

	cr_assert_eq(pthread_create(&ticker, NULL, tick, NULL), 0);
	cr_assert(is_granted(BUDGET));
	cr_assert_eq(smv_budget_join(other, 80 * MIB, 30 * MIB, &err), 0, "%s", err.message);
	cr_assert_eq(other->budget.granted * SMV_PAGE_SIZE, 50 * MIB);
	cr_assert_leq(smv_guest_ram_resident(&vm->ram), 50 * MIB);
	cr_assert_leq(vm->budget.held + other->budget.held, 100 * MIB / SMV_PAGE_SIZE);
	cr_assert(is_granted(50 * MIB));
	memory_is_right();
	cr_assert_leq(smv_guest_ram_resident(&vm->ram), 50 * MIB);
	/* It goes on at what the source was told, whatever vm wants. */
	cr_assert_eq(set_budget(30 * MIB, &err), 0, "%s", err.message);
	cr_assert_eq(other->budget.granted * SMV_PAGE_SIZE, 50 * MIB);
	cr_assert_eq(set_budget(RAM, &err), 0, "%s", err.message);
	cr_assert(is_granted(50 * MIB));
	smv_budget_leave(other);
	cr_assert(is_granted(RAM));
	memory_is_right();
	stop_ticks = true;
	pthread_join(ticker, NULL);
	smv_vm_put(other);
}

#ifdef SMEMV_FAULT_POINTS
static bool says_no_slot(void)
{
	struct smv_pager_stats stats;

	smv_pager_stats(vm->pager, &stats);
	return strstr(stats.trouble, "no slot is free");
}

/* What the look at the room is for. */
Test(set_budget, without_the_lease_it_would_not_be_reached)
{
	struct smv_error err;

	setenv("SMEMV_FAULT", "budget-skip-lease", 1);
	vm_open("160M");
	cr_assert_eq(set_budget(SMALL, &err), 0, "%s", err.message);
	for (int i = 0; i < 4000 && !says_no_slot(); i++)
		smv_sleep_ms(5);
	cr_assert(says_no_slot());
	cr_assert_gt(smv_guest_ram_resident(&vm->ram), SMALL + 4 * MIB);
	cr_assert_eq(set_budget(BUDGET, &err), 0);
	memory_is_right();
}

/* The writes of smv_vm_set_budget(), counted behind the two of vm_open(): the leases, that they are
 * held, the extents, the budget. */
static void fails_at_write(int nth)
{
	struct smv_error err;
	char fault[40];

	snprintf(fault, sizeof(fault), "durable-fails:skip:%d", 2 + nth);
	setenv("SMEMV_FAULT", fault, 1);
	vm_open("160M");
	cr_assert_lt(set_budget(SMALL, &err), 0);
	cr_assert(strstr(err.message, "cannot write"), "%s", err.message);
	cr_assert_eq(vm->budget_bytes, BUDGET);
	cr_assert_eq(leases_at(vm->leases.leases[0].client), nth < 4 ? 1 : 2);
	pages_are_right(64);
	succeed_from_files(BUDGET, nth < 4 ? 1 : 2);
	/* Nothing stands in the way of another try. */
	cr_assert_eq(set_budget(SMALL, &err), 0, "%s", err.message);
	cr_assert(is_reached(SMALL));
	memory_is_right();
}

Test(set_budget, leases_that_cannot_be_written_down_are_given_back)
{
	fails_at_write(1);
}

Test(set_budget, leases_of_which_it_cannot_be_written_that_they_are_held_are_given_back)
{
	fails_at_write(2);
}

Test(set_budget, leases_whose_extents_cannot_be_written_are_given_back)
{
	fails_at_write(3);
}

Test(set_budget, that_cannot_be_written_is_refused_and_the_room_kept)
{
	fails_at_write(4);
}
#endif

/* --- loss policies ------------------------------------------------------------------------ */

TestSuite(loss, .init = dir_create, .fini = dir_remove);

/* A VM of that name whose QEMU is a process that only waits. */
static struct smv_vm *vm_make(pid_t *pid)
{
	struct smv_error err = {0};
	struct smv_vm *vm;

	cr_assert_eq(smv_vms_init(dir, false, &err), 0, "%s", err.message);
	*pid = fork();
	cr_assert_geq(*pid, 0);
	if (*pid == 0)
		for (;;)
			pause();
	vm = smv_vm_new("vm");
	cr_assert(vm);
	cr_assert_eq(smv_process_identify(*pid, &vm->process), 0);
	vm->pidfd = pidfd_open(*pid, 0);
	cr_assert_geq(vm->pidfd, 0);
	return vm;
}

static uint64_t spoilt_page;
static struct stub_lab lab;

static void *touch_spoilt_page(void *arg)
{
	stub_read(arg, spoilt_page);
	return NULL;
}

/* Its pager is the stub's, and one of its pages is spoilt at a sub-host and touched. */
static pid_t touch_a_lost_page(enum smv_loss_policy policy)
{
	const struct stub_options o = {.transport = "mem",
		.seed = 1,
		.nr_blocks = 1,
		.nr_pages = 4096,
		.budget_pages = 1024,
		.nr_extents = 9,
		.loss_policy = policy};
	struct smv_error err = {0};
	struct smv_vm *vm;
	pthread_t thread;
	pid_t pid;

	if (smv_kernel_check(&err) < 0)
		cr_skip_test("%s", err.message);
	vm = vm_make(&pid);
	stub_lab_create(&lab, &o);
	while (smv_word_state(smv_pagemap_get(&lab.map, spoilt_page)) != SMV_PAGE_COLD)
		spoilt_page++;
	stub_slot(lab.hosts, &lab.backing,
		smv_word_slot(smv_pagemap_get(&lab.map, spoilt_page)))[9] ^= 1;
	stub_lab_start(&lab);
	vm->pager = lab.pager;
	cr_assert_eq(smv_vms_add(vm, &err), 0);
	smv_vms_tick();
	smv_sleep_ms(100);
	cr_assert(smv_vm_is_alive(vm), "nobody has touched it");
	smv_vm_put(vm);
	cr_assert_eq(pthread_create(&thread, NULL, touch_spoilt_page, &lab), 0);
	while (smv_pagemap_count(&lab.map, SMV_PAGE_LOST) == 0)
		smv_sleep_ms(1);
	return pid;
}

static bool is_here(void)
{
	struct smv_vm *vm = smv_vms_get("vm");

	smv_vm_put(vm);
	return vm;
}

/* Whether the VM is gone after its pager had time enough. */
static bool it_was_ended(pid_t pid)
{
	for (int i = 0; i < 10 && is_here(); i++) {
		smv_vms_tick();
		smv_sleep_ms(50);
	}
	if (is_here())
		return false;
	return waitpid(pid, NULL, WNOHANG) == pid;
}

Test(loss, kill_ends_the_vm_that_touched_a_lost_page)
{
	cr_assert(it_was_ended(touch_a_lost_page(SMV_LOSS_KILL)));
}

static void lives_on(enum smv_loss_policy policy)
{
	pid_t pid = touch_a_lost_page(policy);

	cr_assert_not(it_was_ended(pid));
	cr_assert_eq(waitpid(pid, NULL, WNOHANG), 0);
	kill(pid, SIGKILL);
}

Test(loss, stall_ends_no_vm)
{
	lives_on(SMV_LOSS_STALL);
}

#ifdef SMEMV_FAULT_POINTS
Test(loss, a_vm_that_is_not_killed_is_noticed)
{
	setenv("SMEMV_FAULT", "loss-skip-kill", 1);
	lives_on(SMV_LOSS_KILL);
}
#endif

Test(loss, the_policy_outlives_the_pager)
{
	static const char *const names[] = {"stall", "poison", "kill"};
	char file[100];

	smv_rpc_init();
	snprintf(file, sizeof(file), "%s/vm.vm.json", dir);
	for (int i = 0; i < 4; i++) {
		struct smv_error err = {0};
		pid_t pid;
		struct smv_vm *vm = vm_make(&pid), *next;
		json_t *state;

		vm->loss_policy = (enum smv_loss_policy)(i % 3);
		leases_make(&vm->leases, &vm->backing);
		vm->backing.transport = smv_transport_find("tcp");
		vm->backed = true;
		cr_assert_eq(smv_vm_save(vm, &err), 0, "%s", err.message);
		smv_vm_put(vm);
		state = json_load_file(file, 0, NULL);
		cr_assert_str_eq(
			json_string_value(json_object_get(state, "loss_policy")), names[i % 3]);
		/* As an older pager wrote it. */
		if (i == 3) {
			json_object_del(state, "loss_policy");
			smv_replace_json(AT_FDCWD, file, state, 0, false);
		}
		json_decref(state);
		smv_vms_take_over();
		next = smv_vms_get("vm");
		cr_assert(next);
		cr_assert_eq(next->loss_policy, i % 3);
		/* Its leases are no server's: there is nothing to give back. */
		smv_leases_forget(&next->leases, &next->backing);
		next->backed = false;
		smv_vm_put(next);
		kill(pid, SIGKILL);
		cr_assert_eq(waitpid(pid, NULL, 0), pid);
		while (is_here()) {
			smv_vms_tick();
			smv_sleep_ms(1);
		}
	}
	smv_rpc_shutdown();
}

static bool refuses(const char *policy, const char *code)
{
	Smemv__V1__PrepareMigrationRequest q = SMEMV__V1__PREPARE_MIGRATION_REQUEST__INIT;
	Smemv__V1__PlanMigrationResponse *p = calloc(1, sizeof(*p));
	struct smv_vm *vm = smv_vm_new("vm");
	bool found = false;

	smemv__v1__plan_migration_response__init(p);
	/* Refused, too, but without a look at QEMU, which is none. */
	vm->state = SMV_VM_RUNNING;
	q.transport = (char *)"auto";
	q.loss_policy = (char *)policy;
	smv_migration_plan(vm, &q, p);
	for (size_t i = 0; i < p->n_refusals; i++)
		found |= strcmp(p->refusals[i]->code, code) == 0;
	smv_rpc_message_free((ProtobufCMessage *)p);
	smv_vm_put(vm);
	return found;
}

Test(loss, unknown_policies_are_refused)
{
	cr_assert(refuses("panic", "loss-policy"));
	cr_assert_not(refuses("", "loss-policy"));
	cr_assert_not(refuses("stall", "loss-policy"));
	cr_assert_not(refuses("kill", "loss-policy"));
	cr_assert_not(refuses("poison", "loss-policy"));
}

#ifdef SMEMV_FAULT_POINTS
Test(loss, poison_is_refused_where_the_kernel_lacks_it)
{
	setenv("SMEMV_FAULT", "kernel-no-poison", 1);
	cr_assert(refuses("poison", "kernel"));
	cr_assert_not(refuses("kill", "kernel"));
}
#endif
