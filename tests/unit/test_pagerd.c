/* SPDX-License-Identifier: Apache-2.0 */
#include "client/leases_state.h"
#include "common/files.h"
#include "pagerd/verdicts.h"

#include "common/log.h"
#include "rpc/rpc.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[40], path[60];

static void dir_create(void)
{
	strcpy(dir, "/tmp/pagerd-test-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/verdicts.json", dir);
	smv_log_set_level(-1);
}

static void dir_remove(void)
{
	static const char *const names[] = {"verdicts.json", "verdicts.json.new",
		"verdicts.json.broken", "x.json", "x.json.new"};
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
