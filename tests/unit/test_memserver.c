/* SPDX-License-Identifier: Apache-2.0 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/log.h"
#include "memserver/extents.h"
#include "memserver/hugepages.h"
#include "memserver/metrics.h"
#include "memserver/registration.h"
#include "memserver/service.h"
#include "prometheus.h"
#include "transport/provider.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <smemv/v1/memserver.pb-c.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define EXTENT SMV_EXTENT_SIZE
#define ARENA_EXTENTS 8
#define BUFFER_SIZE 65536

/* --- extents ------------------------------------------------------------------------------ */

#define NR 200
#define MAX_RUN 16

struct grant {
	struct smv_extent_run *runs;
	size_t nr_runs;
};

/* The model: which grant owns each extent, 0 for none. Returns how many it marked. */
static size_t mark_model(int *owner, const struct grant *g, int from, int to)
{
	size_t total = 0;

	for (size_t i = 0; i < g->nr_runs; i++) {
		cr_assert(g->runs[i].nr >= 1 && g->runs[i].nr <= MAX_RUN);
		cr_assert_leq(g->runs[i].first + g->runs[i].nr, NR);
		for (size_t k = 0; k < g->runs[i].nr; k++) {
			cr_assert_eq(owner[g->runs[i].first + k], from);
			owner[g->runs[i].first + k] = to;
		}
		total += g->runs[i].nr;
	}
	return total;
}

Test(extents, random_sequence_agrees_with_a_model)
{
	struct smv_extents *e = smv_extents_create(NR);
	struct grant grants[40] = {0};
	int owner[NR] = {0};
	size_t nr_free = NR;

	srandom(12345);
	for (int step = 0; step < 20000; step++) {
		int slot = (int)(random() % 40);
		struct grant *g = &grants[slot];
		size_t want = 1 + (size_t)(random() % 30);

		if (g->runs) {
			nr_free += mark_model(owner, g, slot + 1, 0);
			smv_extents_free(e, g->runs, g->nr_runs);
			free(smv_take(g->runs));
		} else if (want > nr_free) {
			cr_assert_eq(smv_extents_alloc(e, want, MAX_RUN, &g->runs, &g->nr_runs),
				-ENOSPC);
		} else {
			/* However scattered the free extents are. */
			cr_assert_eq(smv_extents_alloc(e, want, MAX_RUN, &g->runs, &g->nr_runs), 0);
			cr_assert_eq(mark_model(owner, g, 0, slot + 1), want);
			nr_free -= want;
		}
		cr_assert_eq(smv_extents_nr_free(e), nr_free);
	}
	for (int slot = 0; slot < 40; slot++) {
		if (grants[slot].runs)
			smv_extents_free(e, grants[slot].runs, grants[slot].nr_runs);
		free(grants[slot].runs);
	}
	cr_assert_eq(smv_extents_nr_free(e), NR);
	smv_extents_destroy(e);
}

Test(extents, uses_few_runs_and_keeps_large_ones_whole)
{
	struct smv_extents *e = smv_extents_create(20);
	struct grant all, part;

	cr_assert_eq(smv_extents_alloc(e, 20, 64, &all.runs, &all.nr_runs), 0);
	cr_assert_eq(all.nr_runs, 1);
	/* Free: 3 at 2, 8 at 6, 2 at 18. */
	smv_extents_free(e, (struct smv_extent_run[]){{2, 3}, {6, 8}, {18, 2}}, 3);
	cr_assert_eq(smv_extents_alloc(e, 2, 64, &part.runs, &part.nr_runs), 0);
	cr_assert_eq(part.nr_runs, 1);
	cr_assert_eq(part.runs[0].first, 18);
	free(part.runs);
	cr_assert_eq(smv_extents_alloc(e, 9, 64, &part.runs, &part.nr_runs), 0);
	cr_assert_eq(part.nr_runs, 2);
	cr_assert_eq(part.runs[0].nr + part.runs[1].nr, 9);
	free(part.runs);
	free(all.runs);
	smv_extents_destroy(e);
}

Test(extents, splits_runs_at_the_largest_segment)
{
	struct smv_extents *e = smv_extents_create(20);
	struct grant g;

	cr_assert_eq(smv_extents_alloc(e, 20, 8, &g.runs, &g.nr_runs), 0);
	cr_assert_eq(g.nr_runs, 3);
	free(g.runs);
	smv_extents_destroy(e);
}

/* --- arena -------------------------------------------------------------------------------- */

static char dir[] = "/dev/shm/smemv-test-XXXXXX";

static void make_dir(void)
{
	smv_log_set_level(SMV_LOG_ERROR);
	cr_assert(mkdtemp(dir));
}

static void remove_dir(void)
{
	char command[200];

	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(arena, .init = make_dir, .fini = remove_dir);

static const char *in_dir(const char *name)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static bool is_zero(const void *mem, size_t len)
{
	const char *p = mem;

	return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

Test(arena, checks_size_and_name)
{
	static const char *const bad_names[] = {"", "a/b", "a b", "\xc3\xa4",
		"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};
	struct smv_error err;

	cr_assert_eq(smv_arena_check_size(EXTENT, &err), 0);
	cr_assert_eq(smv_arena_check_size(0, &err), -EINVAL);
	cr_assert_eq(smv_arena_check_size(3 * SMV_MIB, &err), -EINVAL);
	cr_assert(strstr(err.message, "3145728") && strstr(err.hint, "2M or 4M"), "%s %s",
		err.message, err.hint);
	cr_assert_eq(smv_arena_check_name("A-z.0_9", &err), 0);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(bad_names); i++)
		cr_assert_eq(smv_arena_check_name(bad_names[i], &err), -EINVAL, "%s", bad_names[i]);
}

Test(arena, is_zero_allocated_and_removed_at_the_end)
{
	struct smv_arena *a;
	struct stat st;

	cr_assert_eq(smv_arena_create("a", in_dir("s"), 2 * EXTENT, 0, &a, NULL), 0);
	cr_assert_eq(smv_arena_size(a), 2 * EXTENT);
	cr_assert_eq(strlen(smv_arena_incarnation(a)), 32);
	cr_assert_eq(stat(in_dir("s/arena"), &st), 0);
	cr_assert_eq((uint64_t)st.st_blocks * 512, 2 * EXTENT);
	cr_assert_eq(st.st_mode & 0777, 0600);
	cr_assert(is_zero(smv_arena_base(a), 2 * EXTENT));
	smv_arena_destroy(a);
	cr_assert_neq(access(in_dir("s"), F_OK), 0);
}

Test(arena, keeps_a_directory_that_it_did_not_make)
{
	struct smv_arena *a;

	cr_assert_eq(smv_arena_create("a", dir, EXTENT, 0, &a, NULL), 0);
	smv_arena_destroy(a);
	cr_assert_eq(rmdir(dir), 0, "the directory is gone or not empty");
	cr_assert_eq(mkdir(dir, 0700), 0);
}

Test(arena, refuses_more_than_there_is_with_numbers)
{
	struct smv_arena *a;
	struct smv_error err = {0};

	cr_assert_eq(smv_arena_create("a", in_dir("s"), 1ull << 50, 0, &a, &err), -ENOSPC);
	cr_assert_str_eq(err.reason, "no-room");
	cr_assert(strstr(err.message, "1125899906842624") && strstr(err.message, "available"), "%s",
		err.message);
	cr_assert_neq(access(in_dir("s"), F_OK), 0, "something was left behind");
}

Test(arena, refuses_a_second_daemon_with_the_pid_of_the_first)
{
	struct smv_arena *a, *b;
	struct smv_error err = {0};
	char pid[32];

	snprintf(pid, sizeof(pid), "pid %ld", (long)getpid());
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, NULL), 0);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &b, &err), -EBUSY);
	cr_assert(strstr(err.message, pid), "%s", err.message);
	cr_assert_eq(access(in_dir("s/arena"), F_OK), 0, "the loser removed the winner's arena");
	smv_arena_destroy(a);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, NULL), 0);
	smv_arena_destroy(a);
}

Test(arena, refuses_a_directory_on_a_disk)
{
	char path[] = "/var/tmp/smemv-test-XXXXXX";
	struct smv_arena *a;
	struct smv_error err = {0};
	int rc;

	cr_assert(mkdtemp(path));
	rc = smv_arena_create("a", path, EXTENT, 0, &a, &err);
	cr_assert_eq(rmdir(path), 0);
	if (rc == 0)
		cr_skip_test("/var/tmp lies in memory here");
	cr_assert_eq(rc, -EBUSY);
	cr_assert_str_eq(err.reason, "not-in-memory");
	cr_assert(strstr(err.message, path) && strstr(err.hint, "tmpfs"));
}

static void write_file(const char *name, const void *data, size_t len)
{
	CLEANUP_CLOSE int fd = open(in_dir(name), O_RDWR | O_CREAT | O_TRUNC, 0600);

	cr_assert_eq(write(fd, data, len), (ssize_t)len);
}

/* What was being made holds nothing. */
Test(arena, replaces_what_a_daemon_left_that_was_killed_while_making_it)
{
	struct smv_arena *a;
	char dirt[4096];

	memset(dirt, 0xa5, sizeof(dirt));
	cr_assert_eq(mkdir(in_dir("s"), 0700), 0);
	write_file("s/arena.new", dirt, sizeof(dirt));
	write_file("s/leases.new", "{\"ver", 5);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, NULL), 0);
	cr_assert(is_zero(smv_arena_base(a), EXTENT));
	cr_assert_neq(access(in_dir("s/arena.new"), F_OK), 0);
	cr_assert_neq(access(in_dir("s/leases.new"), F_OK), 0);
	smv_arena_destroy(a);
	cr_assert_eq(rmdir(in_dir("s")), 0, "something was left behind");
}

Test(arena, without_a_list_of_leases_is_refused_until_it_is_discarded)
{
	struct smv_arena *a;
	struct smv_error err = {0};

	cr_assert_eq(mkdir(in_dir("s"), 0700), 0);
	write_file("s/arena", "data", 4);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, &err), -EBUSY);
	cr_assert_str_eq(err.reason, "bad-state");
	cr_assert(strstr(err.message, in_dir("s")) && strstr(err.hint, "--discard"), "%s\n%s",
		err.message, err.hint);
	cr_assert_eq(access(in_dir("s/arena"), F_OK), 0);
	cr_assert_eq(smv_arena_discard("a", in_dir("s"), &err), 0);
	cr_assert_neq(access(in_dir("s/arena"), F_OK), 0);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, &err), 0);
	cr_assert_eq(smv_arena_discard("a", in_dir("s"), &err), -EBUSY, "it is in use");
	smv_arena_destroy(a);
}

Test(arena, incarnations_differ)
{
	struct smv_arena *a;
	char first[40];

	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, NULL), 0);
	snprintf(first, sizeof(first), "%s", smv_arena_incarnation(a));
	smv_arena_destroy(a);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, 0, &a, NULL), 0);
	cr_assert_str_neq(smv_arena_incarnation(a), first);
	smv_arena_destroy(a);
}

/* --- leases ------------------------------------------------------------------------------- */

/* A server with a data listener, and a client's side with a buffer. */
static struct {
	struct smv_arena *arena;
	struct smv_lease_table *table;
	struct smv_data_plane *data;
	const struct smv_transport *transport;
	struct smv_addr addr;
	struct smv_domain *domain;
	struct smv_region *region;
	char *buffer;
	uint64_t nonce;
	uint64_t hugepage_bytes; /* of the arena, 0: ordinary ones */
	uint32_t orphan_after_ms;
} w;

struct client_lease {
	struct smv_lease_info info;
	uint8_t key[SMV_TICKET_KEY_SIZE];
};

/* Verbs only where there is a device: SMEMV_TEST_VERBS is an address of it. */
static void listen_address(const char *transport, struct smv_addr *addr)
{
	const char *verbs = getenv("SMEMV_TEST_VERBS");
	char text[SMV_ADDR_MAX] = "mem:test";

	if (strcmp(transport, "tcp") == 0)
		strcpy(text, "tcp:127.0.0.1:0");
	else if (strcmp(transport, "verbs") == 0)
		snprintf(text, sizeof(text), strchr(verbs, ':') ? "verbs:[%s]:0" : "verbs:%s:0",
			verbs);
	cr_assert_eq(smv_addr_parse(text, true, addr, NULL), 0);
}

/* The directory is there. */
static void start_world_in(const char *transport)
{
	struct smv_error err = {0};
	struct smv_addr any;
	size_t nr;

	listen_address(transport, &any);
	cr_assert_eq(smv_arena_create("t", in_dir("s"), ARENA_EXTENTS * EXTENT, w.hugepage_bytes,
			     &w.arena, &err),
		0, "%s", err.message);
	cr_assert_eq(smv_lease_table_create(w.arena, w.orphan_after_ms, &w.table, &err), 0);
	cr_assert_eq(smv_data_create(w.table, &w.data, &err), 0);
	cr_assert_eq(smv_data_listen(w.data, &any, &err), 0, "%s", err.message);
	cr_assert_eq(smv_addr_parse(smv_data_addresses(w.data, &nr)[0], true, &w.addr, &err), 0);
	cr_assert_eq(smv_data_find_transport(w.data, transport, &w.transport, &err), 0);
	cr_assert_eq(smv_domain_create(w.transport, &w.domain), 0);
	w.buffer = calloc(1, BUFFER_SIZE);
	cr_assert_eq(smv_region_register(w.domain, w.buffer, BUFFER_SIZE, 0, &w.region), 0);
	w.nonce = 1;
}

static void start_world(const char *transport)
{
	make_dir();
	start_world_in(transport);
}

static void end_world(void)
{
	smv_region_deregister(w.region);
	smv_domain_destroy(w.domain);
	free(w.buffer);
	smv_lease_table_stop(w.table);
	smv_data_destroy(w.data);
	smv_lease_table_destroy(w.table);
	smv_arena_destroy(w.arena);
}

static void stop_world(void)
{
	end_world();
	remove_dir();
}

/* The emulated device of tests/lab is slow. */
TestSuite(lease, .fini = remove_dir, .timeout = 120);

static char transports[3][8] = {"tcp", "mem", "verbs"};

static size_t nr_transports(void)
{
	return getenv("SMEMV_TEST_VERBS") ? 3 : 2;
}

/* Before the first fault point is passed. */
static void set_fault(const char *fault)
{
	if (fault)
		setenv("SMEMV_FAULT", fault, 1);
}

/* A test in a world of each transport, with or without faults from the start on. */
#define EACH(name) EACH_FAULTY(name, NULL)
#define EACH_FAULTY(name, fault)                                                                   \
	static void name(const char *transport);                                                   \
	ParameterizedTestParameters(lease, name)                                                   \
	{                                                                                          \
		return cr_make_param_array(char[8], transports, nr_transports());                  \
	}                                                                                          \
	ParameterizedTest(char transport[8], lease, name)                                          \
	{                                                                                          \
		set_fault(fault);                                                                  \
		start_world(transport);                                                            \
		name(transport);                                                                   \
		stop_world();                                                                      \
	}                                                                                          \
	static void name(const char *transport)

static int create(struct client_lease *l, size_t nr_extents, uint32_t ttl_ms, struct smv_error *err)
{
	struct smv_lease_request r = {.owner = "host/vm",
		.size_bytes = nr_extents * EXTENT,
		.epoch = 1,
		.ttl_ms = ttl_ms,
		.transport = w.transport};

	return smv_lease_create(w.table, &r, &l->info, l->key, err);
}

static void must_create(struct client_lease *l, size_t nr_extents)
{
	struct smv_error err = {0};

	cr_assert_eq(create(l, nr_extents, 0, &err), 0, "%s", err.message);
}

static void must_release(struct client_lease *l)
{
	cr_assert_eq(smv_lease_release(w.table, l->info.id, NULL), 0);
	smv_lease_info_clear(&l->info);
}

static uint64_t free_extents(void)
{
	struct smv_lease_totals totals;

	smv_lease_table_totals(w.table, &totals);
	return totals.free_bytes / EXTENT;
}

static void wait_all_free(void)
{
	for (int i = 0; i < 1000 && free_extents() != ARENA_EXTENTS; i++)
		smv_sleep_ms(5);
	cr_assert_eq(free_extents(), ARENA_EXTENTS);
}

static int connect_with(const void *data, size_t len, struct smv_conn **conn)
{
	const struct smv_conn_options options = {.timeout_ms = 5000};

	return smv_connect(w.domain, &w.addr, data, len, &options, conn, NULL);
}

static int connect_as(
	const struct client_lease *l, uint32_t epoch, enum smv_role role, struct smv_conn **conn)
{
	struct smv_ticket ticket;

	smv_ticket_make(l->key, l->info.id, epoch, role,
		smv_nonce_make(smv_arena_generation(w.arena), w.nonce++), &ticket);
	return connect_with(&ticket, sizeof(ticket), conn);
}

/* One request from start to end; 0 or why it failed. */
static int transfer(struct smv_conn *conn, enum smv_op op, const struct smv_lease_segment *s,
	uint64_t offset, uint32_t len)
{
	struct smv_sge sge = {w.buffer, len, w.region};
	struct smv_request r = {.op = op,
		.rkey = s->rkey,
		.remote_addr = s->remote_addr + offset,
		.sge = &sge,
		.nr_sge = 1};
	struct smv_completion done;
	int n = smv_conn_post(conn, &r, 1);

	if (n < 0)
		return n;
	while ((n = smv_conn_poll(conn, &done, 1)) == 0)
		smv_conn_wait(conn, 1000);
	return n < 0 ? n : done.status;
}

static char *memory_of(const struct smv_lease_segment *s)
{
	return (char *)smv_arena_base(w.arena) + s->arena_offset;
}

static void fill_remotely(const struct client_lease *l)
{
	struct smv_conn *conn;

	cr_assert_eq(connect_as(l, 1, SMV_ROLE_WRITER, &conn), 0);
	memset(w.buffer, 0x5a, BUFFER_SIZE);
	for (size_t i = 0; i < l->info.nr_segments; i++)
		for (uint64_t at = 0; at < l->info.segments[i].size_bytes; at += BUFFER_SIZE)
			cr_assert_eq(
				transfer(conn, SMV_OP_WRITE, &l->info.segments[i], at, BUFFER_SIZE),
				0);
	smv_conn_close(conn);
	cr_assert_eq(*memory_of(&l->info.segments[0]), 0x5a);
}

/* Lease the whole arena and look. */
static bool next_lease_is_zero(void)
{
	struct client_lease l;
	bool zero = true;

	wait_all_free();
	must_create(&l, ARENA_EXTENTS);
	for (size_t i = 0; i < l.info.nr_segments; i++)
		zero = zero &&
		       is_zero(memory_of(&l.info.segments[i]), l.info.segments[i].size_bytes);
	must_release(&l);
	return zero;
}

EACH(lives_from_provisional_to_held_to_gone)
{
	struct client_lease l;
	struct smv_lease_info info;
	struct smv_error err;

	must_create(&l, 3);
	cr_assert_eq(l.info.state, SMV_LEASE_PROVISIONAL);
	cr_assert(l.info.expires_in_ms > 50000 && l.info.expires_in_ms <= 60000);
	cr_assert_eq(l.info.size_bytes, 3 * EXTENT);
	cr_assert_eq(l.info.nr_segments, 1);
	cr_assert_eq(free_extents(), ARENA_EXTENTS - 3);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(smv_lease_hold(w.table, l.info.id, &info, &err), 0);
		cr_assert_eq(info.state, SMV_LEASE_HELD);
		cr_assert_eq(info.expires_in_ms, 0);
		smv_lease_info_clear(&info);
	}
	must_release(&l);
	wait_all_free();
	cr_assert_eq(smv_lease_get(w.table, l.info.id, &info, &err), -ENOENT);
	cr_assert_eq(smv_lease_release(w.table, l.info.id, &err), -ENOENT);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, &err), -ENOENT);
}

EACH(expires_and_is_zeroed_unless_held_or_renewed)
{
	const uint32_t ttl_ms = getenv("SMEMV_TEST_VERBS") ? 3000 : 1000;
	struct client_lease dies, held, renewed;

	cr_assert_eq(create(&dies, 2, ttl_ms, NULL), 0);
	cr_assert_eq(create(&held, 1, ttl_ms, NULL), 0);
	cr_assert_eq(create(&renewed, 1, ttl_ms, NULL), 0);
	cr_assert_eq(smv_lease_hold(w.table, held.info.id, NULL, NULL), 0);
	fill_remotely(&dies);
	for (int i = 0; i < 6; i++) {
		smv_sleep_ms(ttl_ms / 3);
		cr_assert_eq(smv_lease_renew(w.table, renewed.info.id, NULL, NULL), 0);
	}
	for (int i = 0; i < 400 && free_extents() != ARENA_EXTENTS - 2; i++)
		smv_sleep_ms(5);
	cr_assert_eq(free_extents(), ARENA_EXTENTS - 2);
	cr_assert(is_zero(memory_of(&dies.info.segments[0]), 2 * EXTENT));
	cr_assert_eq(smv_lease_get(w.table, dies.info.id, NULL, NULL), -ENOENT);
	smv_lease_info_clear(&dies.info);
	must_release(&held);
	must_release(&renewed);
}

EACH(memory_is_zero_when_leased_again)
{
	struct client_lease l;

	must_create(&l, ARENA_EXTENTS);
	fill_remotely(&l);
	must_release(&l);
	cr_assert(next_lease_is_zero());
}

#ifdef SMEMV_FAULT_POINTS
/* That the test above can fail. */
EACH_FAULTY(a_skipped_zeroing_is_noticed, "memserver-zero:skip")
{
	struct client_lease l;

	must_create(&l, ARENA_EXTENTS);
	fill_remotely(&l);
	must_release(&l);
	cr_assert_not(next_lease_is_zero());
}

EACH_FAULTY(memory_counts_as_free_only_when_zeroed, "memserver-zero:wait:1")
{
	struct client_lease l, next;
	struct smv_lease_totals totals;
	struct smv_lease_info info;
	struct smv_error err = {0};

	setenv("SMEMV_FAULT_DIR", dir, 1);
	must_create(&l, 5);
	must_release(&l);
	cr_assert_eq(smv_lease_get(w.table, l.info.id, &info, NULL), 0);
	cr_assert_eq(info.state, SMV_LEASE_RELEASING);
	smv_lease_info_clear(&info);
	smv_lease_table_totals(w.table, &totals);
	cr_assert_eq(totals.free_bytes, (ARENA_EXTENTS - 5) * EXTENT);
	cr_assert_eq(totals.zeroing_bytes, 5 * EXTENT);
	cr_assert_eq(create(&next, 4, 0, &err), -ENOSPC);
	cr_assert(strstr(err.hint, "10485760 bytes are being zeroed"), "%s", err.hint);
	/* Releasing again is no error, holding is. */
	cr_assert_eq(smv_lease_release(w.table, l.info.id, NULL), 0);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, NULL), -EBUSY);
	close(open(in_dir("memserver-zero.go"), O_CREAT | O_WRONLY, 0600));
	wait_all_free();
}
#endif

EACH(says_how_much_room_there_is)
{
	struct client_lease a, b;
	struct smv_error err = {0};

	must_create(&a, 5);
	cr_assert_eq(create(&b, 4, 0, &err), -ENOSPC);
	cr_assert_eq(err.code, SMV_NO_ROOM);
	cr_assert_str_eq(err.reason, "no-room");
	cr_assert(strstr(err.message, "8388608") && strstr(err.message, "6291456") &&
			  strstr(err.message, "16777216"),
		"%s", err.message);
	cr_assert_eq(create(&b, 3, 0, &err), 0);
	must_release(&a);
	must_release(&b);
}

/* Every other extent is free afterwards. */
static void fragment(struct client_lease l[ARENA_EXTENTS])
{
	for (int i = 0; i < ARENA_EXTENTS; i++)
		must_create(&l[i], 1);
	for (int i = 0; i < ARENA_EXTENTS; i += 2)
		must_release(&l[i]);
	for (int i = 0; i < 1000 && free_extents() != ARENA_EXTENTS / 2; i++)
		smv_sleep_ms(5);
	cr_assert_eq(free_extents(), ARENA_EXTENTS / 2);
}

EACH(fragmentation_costs_segments_but_no_room)
{
	struct client_lease l[ARENA_EXTENTS], big;

	fragment(l);
	must_create(&big, ARENA_EXTENTS / 2);
	cr_assert_eq(big.info.nr_segments, ARENA_EXTENTS / 2);
	fill_remotely(&big);
	must_release(&big);
	for (int i = 1; i < ARENA_EXTENTS; i += 2) {
		cr_assert(is_zero(memory_of(&l[i].info.segments[0]), EXTENT));
		must_release(&l[i]);
	}
	wait_all_free();
}

EACH(refuses_requests_that_make_no_sense)
{
	static char long_owner[SMV_LEASE_OWNER_MAX + 2];
	struct smv_lease_request good = {
		.owner = "", .size_bytes = EXTENT, .epoch = 1, .transport = w.transport};
	struct smv_lease_request bad[5] = {good, good, good, good, good};
	uint8_t key[SMV_TICKET_KEY_SIZE];

	memset(long_owner, 'x', sizeof(long_owner) - 1);
	bad[0].size_bytes = 0;
	bad[1].size_bytes = EXTENT + 4096;
	bad[2].epoch = 0;
	bad[3].owner = long_owner;
	bad[4].owner = "two\nlines";
	for (size_t i = 0; i < SMV_ARRAY_SIZE(bad); i++)
		cr_assert_eq(
			smv_lease_create(w.table, &bad[i], NULL, key, NULL), -EINVAL, "%zu", i);
	cr_assert_eq(free_extents(), ARENA_EXTENTS);
}

EACH(refuses_bad_tickets)
{
	struct client_lease a, b, mixed;
	struct smv_ticket t, tampered;
	struct smv_conn *conn;
	uint8_t key[SMV_TICKET_KEY_SIZE] = {0};

	must_create(&a, 1);
	must_create(&b, 1);
	cr_assert_eq(connect_with(NULL, 0, &conn), -EACCES);
	cr_assert_eq(connect_with("short", 5, &conn), -EACCES);

	smv_ticket_make(key, a.info.id, 1, SMV_ROLE_WRITER, 1, &t);
	cr_assert_eq(connect_with(&t, sizeof(t), &conn), -EACCES, "wrong key");

	mixed = b;
	mixed.info.id = a.info.id;
	cr_assert_eq(connect_as(&mixed, 1, SMV_ROLE_WRITER, &conn), -EACCES, "another lease's key");
	mixed.info.id = ~a.info.id;
	cr_assert_eq(connect_as(&mixed, 1, SMV_ROLE_WRITER, &conn), -EACCES, "unknown lease");

	smv_ticket_make(a.key, a.info.id, 1, SMV_ROLE_READER, 7, &t);
	for (size_t i = 0; i < sizeof(t); i++) {
		tampered = t;
		((uint8_t *)&tampered)[i] ^= 1;
		cr_assert_eq(
			connect_with(&tampered, sizeof(t), &conn), -EACCES, "byte %zu changed", i);
	}
	/* None of those used up the real one's nonce. */
	cr_assert_eq(connect_with(&t, sizeof(t), &conn), 0);
	smv_conn_close(conn);
	cr_assert_eq(connect_with(&t, sizeof(t), &conn), -EACCES, "replayed");

	cr_assert_eq(connect_as(&a, 2, SMV_ROLE_WRITER, &conn), -EACCES, "epoch of the future");
	must_release(&a);
	cr_assert_eq(connect_as(&a, 1, SMV_ROLE_WRITER, &conn), -EACCES, "released");
	must_release(&b);
}

EACH(a_connection_reaches_only_its_lease_and_as_its_role_may)
{
	struct client_lease a, b;
	struct smv_conn *conn;

	must_create(&a, 1);
	must_create(&b, 1);
	cr_assert_eq(connect_as(&a, 1, SMV_ROLE_WRITER, &conn), 0);
	memset(w.buffer, 1, 4096);
	cr_assert_eq(transfer(conn, SMV_OP_WRITE, &a.info.segments[0], 0, 4096), 0);
	cr_assert_neq(transfer(conn, SMV_OP_WRITE, &b.info.segments[0], 0, 4096), 0);
	smv_conn_close(conn);
	cr_assert_eq(connect_as(&a, 1, SMV_ROLE_READER, &conn), 0);
	memset(w.buffer, 2, 4096);
	cr_assert_eq(transfer(conn, SMV_OP_READ, &a.info.segments[0], 0, 4096), 0);
	cr_assert_eq(w.buffer[0], 1);
	cr_assert_neq(transfer(conn, SMV_OP_WRITE, &a.info.segments[0], 0, 4096), 0);
	smv_conn_close(conn);
	cr_assert_eq(*memory_of(&b.info.segments[0]), 0);
	cr_assert_eq(*memory_of(&a.info.segments[0]), 1);
	must_release(&a);
	must_release(&b);
}

struct writer {
	pthread_t thread;
	struct smv_conn *conn;
	const struct smv_lease_segment *segment;
	atomic_int nr_written;
};

static void *write_until_cut_off(void *arg)
{
	struct writer *wr = arg;
	int rc = 0;

	for (int i = 1; rc == 0; i++) {
		memset(w.buffer, i, BUFFER_SIZE);
		rc = transfer(wr->conn, SMV_OP_WRITE, wr->segment, 0, BUFFER_SIZE);
		if (rc == 0)
			atomic_fetch_add(&wr->nr_written, 1);
	}
	return NULL;
}

static void start_writer(struct writer *wr, const struct client_lease *l)
{
	cr_assert_eq(connect_as(l, 1, SMV_ROLE_WRITER, &wr->conn), 0);
	wr->segment = &l->info.segments[0];
	cr_assert_eq(pthread_create(&wr->thread, NULL, write_until_cut_off, wr), 0);
	while (atomic_load(&wr->nr_written) < 50)
		smv_sleep_ms(1);
}

static void join_writer(struct writer *wr)
{
	pthread_join(wr->thread, NULL);
	smv_conn_close(wr->conn);
}

EACH(fenced_writers_cannot_write_any_more)
{
	struct client_lease l;
	struct writer wr = {0};
	struct smv_lease_info info;
	struct smv_error err = {0};
	struct smv_conn *conn;
	char *memory, *marked = malloc(BUFFER_SIZE);

	must_create(&l, 1);
	memory = memory_of(&l.info.segments[0]);
	start_writer(&wr, &l);
	cr_assert_eq(smv_lease_fence(w.table, l.info.id, 2, &info, &err), 0, "%s", err.message);
	/* Whatever the writer still has under way must not change this. */
	memset(memory, 0xee, BUFFER_SIZE);
	memset(marked, 0xee, BUFFER_SIZE);
	join_writer(&wr);
	smv_sleep_ms(20);
	cr_assert_eq(memcmp(memory, marked, BUFFER_SIZE), 0, "an old writer wrote");
	cr_assert_eq(info.epoch, 2);
	cr_assert_eq(info.nr_connections, 0);
	smv_lease_info_clear(&info);
	free(marked);

	cr_assert_eq(connect_as(&l, 1, SMV_ROLE_WRITER, &conn), -EACCES);
	cr_assert_eq(smv_lease_fence(w.table, l.info.id, 1, NULL, &err), -EBUSY);
	/* The one who took over does not know the nonces that were used. */
	w.nonce = 1;
	cr_assert_eq(connect_as(&l, 2, SMV_ROLE_WRITER, &conn), 0);
	cr_assert_eq(smv_lease_fence(w.table, l.info.id, 2, &info, &err), 0);
	cr_assert_eq(info.nr_connections, 1, "fencing again ends no connection of the new epoch");
	smv_lease_info_clear(&info);
	cr_assert_eq(transfer(conn, SMV_OP_READ, &l.info.segments[0], 0, 4096), 0);
	smv_conn_close(conn);
	must_release(&l);
}

EACH(release_cuts_off_writers_before_zeroing)
{
	struct client_lease l;
	struct writer wr = {0};
	struct smv_conn *idle;

	must_create(&l, 4);
	cr_assert_eq(connect_as(&l, 1, SMV_ROLE_READER, &idle), 0);
	start_writer(&wr, &l);
	cr_assert_eq(smv_lease_release(w.table, l.info.id, NULL), 0);
	join_writer(&wr);
	cr_assert(next_lease_is_zero(), "or the idle connection has not ended");
	smv_conn_close(idle);
	smv_lease_info_clear(&l.info);
}

EACH(counts_bytes_beyond_the_end_of_a_lease)
{
	struct client_lease l;
	struct smv_lease_totals totals;
	struct smv_conn *conn;

	must_create(&l, 1);
	cr_assert_eq(connect_as(&l, 1, SMV_ROLE_WRITER, &conn), 0);
	cr_assert_eq(transfer(conn, SMV_OP_WRITE, &l.info.segments[0], 0, 8192), 0);
	cr_assert_eq(transfer(conn, SMV_OP_READ, &l.info.segments[0], 0, 4096), 0);
	smv_conn_close(conn);
	must_release(&l);
	wait_all_free();
	smv_lease_table_totals(w.table, &totals);
	/* With verbs no CPU sees them. */
	cr_assert_eq(totals.bytes_counted, strcmp(transport, "verbs") != 0);
	cr_assert_eq(totals.bytes_received, totals.bytes_counted ? 8192 : 0);
	cr_assert_eq(totals.bytes_sent, totals.bytes_counted ? 4096 : 0);
	cr_assert_eq(totals.nr_leases, 0);
}

EACH(tables_end_with_leases_and_connections_open)
{
	struct client_lease l;
	struct smv_conn *conn;

	must_create(&l, 2);
	cr_assert_eq(connect_as(&l, 1, SMV_ROLE_WRITER, &conn), 0);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, NULL), 0);
	smv_lease_info_clear(&l.info);
	smv_lease_table_stop(w.table);
	smv_data_destroy(smv_take(w.data));
	cr_assert_neq(transfer(conn, SMV_OP_WRITE, &(struct smv_lease_segment){0}, 0, 4096), 0);
	smv_conn_close(conn);
}

EACH(data_address_must_name_a_host)
{
	static const char *const bad[] = {"tcp:0.0.0.0:0", "[::]:0", "0:0", "[0::0]:0"};
	struct smv_error err = {0};
	struct smv_addr addr;

	for (size_t i = 0; i < SMV_ARRAY_SIZE(bad); i++) {
		cr_assert_eq(smv_addr_parse(bad[i], true, &addr, NULL), 0);
		cr_assert_eq(smv_data_listen(w.data, &addr, &err), -EINVAL, "%s", bad[i]);
		cr_assert_str_eq(err.reason, "wildcard-address");
	}
}

/* --- restarts ----------------------------------------------------------------------------- */

/* As after an upgrade. */
static void restart_world(const char *transport)
{
	end_world();
	start_world_in(transport);
}

static void write_pattern(const struct client_lease *l, uint32_t epoch, char value)
{
	struct smv_conn *conn;

	cr_assert_eq(connect_as(l, epoch, SMV_ROLE_WRITER, &conn), 0);
	for (size_t i = 0; i < l->info.nr_segments; i++) {
		memset(w.buffer, value + (char)i, BUFFER_SIZE);
		cr_assert_eq(transfer(conn, SMV_OP_WRITE, &l->info.segments[i],
				     l->info.segments[i].size_bytes - BUFFER_SIZE, BUFFER_SIZE),
			0);
	}
	smv_conn_close(conn);
}

static bool reads_pattern(const struct client_lease *l, uint32_t epoch, char value)
{
	struct smv_conn *conn;
	bool same = true;

	cr_assert_eq(connect_as(l, epoch, SMV_ROLE_READER, &conn), 0);
	for (size_t i = 0; i < l->info.nr_segments; i++) {
		char expected[BUFFER_SIZE];

		memset(expected, value + (char)i, BUFFER_SIZE);
		memset(w.buffer, 0, BUFFER_SIZE);
		cr_assert_eq(transfer(conn, SMV_OP_READ, &l->info.segments[i],
				     l->info.segments[i].size_bytes - BUFFER_SIZE, BUFFER_SIZE),
			0);
		same = same && memcmp(w.buffer, expected, BUFFER_SIZE) == 0;
	}
	smv_conn_close(conn);
	return same;
}

/* Ask for the lease as it is now. */
static void look_again(struct client_lease *l)
{
	struct smv_error err = {0};

	smv_lease_info_clear(&l->info);
	cr_assert_eq(smv_lease_get(w.table, l->info.id, &l->info, &err), 0, "%s", err.message);
}

EACH(restarts_keep_leases_and_data)
{
	struct client_lease held, provisional, released;
	struct smv_lease_info before;
	struct smv_ticket used, unused;
	struct smv_conn *conn;
	char incarnation[40];

	snprintf(incarnation, sizeof(incarnation), "%s", smv_arena_incarnation(w.arena));
	must_create(&released, 1);
	must_create(&held, 3);
	must_create(&provisional, 1);
	must_release(&released);
	cr_assert_eq(smv_lease_hold(w.table, held.info.id, NULL, NULL), 0);
	cr_assert_eq(smv_lease_fence(w.table, held.info.id, 7, NULL, NULL), 0);
	write_pattern(&held, 7, 0x31);
	write_pattern(&provisional, 1, 0x41);
	smv_ticket_make(held.key, held.info.id, 7, SMV_ROLE_READER, 40, &used);
	smv_ticket_make(held.key, held.info.id, 7, SMV_ROLE_READER, 41, &unused);
	cr_assert_eq(connect_with(&used, sizeof(used), &conn), 0);
	smv_conn_close(conn);

	for (int i = 1; i <= 3; i++) {
		restart_world(transport);
		cr_assert_str_eq(smv_arena_incarnation(w.arena), incarnation);
		cr_assert_eq(smv_arena_generation(w.arena), i);
		before = held.info;
		held.info.segments = NULL;
		look_again(&held);
		look_again(&provisional);
		cr_assert_eq(held.info.state, SMV_LEASE_HELD);
		cr_assert_eq(provisional.info.state, SMV_LEASE_PROVISIONAL);
		cr_assert_gt(provisional.info.expires_in_ms, 50000, "its time counts anew");
		cr_assert_eq(held.info.epoch, 7);
		cr_assert_eq(held.info.generation, i);
		cr_assert_str_eq(held.info.owner, "host/vm");
		cr_assert_eq(held.info.nr_segments, before.nr_segments);
		for (size_t k = 0; k < before.nr_segments; k++) {
			cr_assert_eq(held.info.segments[k].arena_offset,
				before.segments[k].arena_offset);
			cr_assert_eq(
				held.info.segments[k].size_bytes, before.segments[k].size_bytes);
		}
		smv_lease_info_clear(&before);
		cr_assert_eq(connect_with(&used, sizeof(used), &conn), -EACCES, "played again");
		cr_assert_eq(connect_with(&unused, sizeof(unused), &conn), -EACCES, "too old");
		cr_assert(reads_pattern(&held, 7, 0x31));
		cr_assert(reads_pattern(&provisional, 1, 0x41));
		for (int k = 0; k < 1000 && free_extents() != ARENA_EXTENTS - 4; k++)
			smv_sleep_ms(5);
		cr_assert_eq(free_extents(), ARENA_EXTENTS - 4);
	}
	must_release(&held);
	must_release(&provisional);
	cr_assert(next_lease_is_zero());
}

#ifdef SMEMV_FAULT_POINTS
/* That a daemon that forgot would be noticed, and that the generation is what keeps tickets out. */
EACH_FAULTY(a_restart_that_forgets_is_noticed, "arena-forget,lease-any-generation")
{
	struct client_lease l;
	struct smv_ticket used;
	struct smv_conn *conn;

	must_create(&l, 2);
	write_pattern(&l, 1, 0x31);
	smv_ticket_make(l.key, l.info.id, 1, SMV_ROLE_READER, 40, &used);
	cr_assert_eq(connect_with(&used, sizeof(used), &conn), 0);
	smv_conn_close(conn);
	restart_world(transport);
	look_again(&l);
	cr_assert_eq(connect_with(&used, sizeof(used), &conn), 0);
	smv_conn_close(conn);
	cr_assert_not(reads_pattern(&l, 1, 0x31));
	must_release(&l);
}
#endif

#ifdef SMEMV_FAULT_POINTS
/* The second, fourth, eighth, tenth and twelfth time that the list is written, not counting those
 * that an earlier one of these points has taken. */
EACH_FAULTY(what_cannot_be_recorded_does_not_happen,
	"lease-file-written:skip:2,lease-file-written:skip:3,lease-file-written:skip:6,"
	"lease-file-written:skip:7,lease-file-written:skip:8")
{
	struct client_lease l;
	struct smv_error err = {0};

	for (int i = 0; i < 2; i++) {
		cr_assert_eq(create(&l, 2, 0, &err), -ENOSPC);
		cr_assert(strstr(err.message, "cannot record") && strstr(err.message, in_dir("s")),
			"%s", err.message);
		cr_assert_eq(free_extents(), ARENA_EXTENTS);
	}
	must_create(&l, 2);
	write_pattern(&l, 1, 0x61);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, &err), -ENOSPC);
	look_again(&l);
	cr_assert_eq(l.info.state, SMV_LEASE_PROVISIONAL);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, &err), 0);
	cr_assert_eq(smv_lease_fence(w.table, l.info.id, 2, NULL, &err), -ENOSPC);
	look_again(&l);
	cr_assert_eq(l.info.epoch, 1);
	cr_assert_eq(smv_lease_fence(w.table, l.info.id, 2, NULL, &err), 0);
	cr_assert_eq(smv_lease_release(w.table, l.info.id, &err), -ENOSPC);
	look_again(&l);
	cr_assert_eq(l.info.state, SMV_LEASE_HELD);
	cr_assert(reads_pattern(&l, 2, 0x61));
	must_release(&l);
	cr_assert(next_lease_is_zero());
}
#endif

EACH(orphans_are_told_and_come_back)
{
	struct client_lease l;
	struct smv_error err = {0};

	end_world();
	w.orphan_after_ms = 300;
	start_world_in(transport);
	must_create(&l, 2);
	write_pattern(&l, 1, 0x21);
	for (int round = 0; round < 4; round++) {
		int rc = round == 0   ? smv_lease_hold(w.table, l.info.id, NULL, &err)
			 : round == 1 ? smv_lease_renew(w.table, l.info.id, NULL, &err)
			 : round == 2 ? smv_lease_fence(w.table, l.info.id, 1, NULL, &err)
				      : smv_lease_hold(w.table, l.info.id, NULL, &err);

		cr_assert_eq(rc, 0, "%s", err.message);
		look_again(&l);
		cr_assert_eq(l.info.state, SMV_LEASE_HELD);
		for (int i = 0; i < 3; i++) {
			smv_sleep_ms(150);
			cr_assert_eq(smv_lease_renew(w.table, l.info.id, NULL, NULL), 0);
			look_again(&l);
			cr_assert_eq(l.info.state, SMV_LEASE_HELD);
		}
		for (int i = 0; i < 400 && l.info.state == SMV_LEASE_HELD; i++) {
			smv_sleep_ms(5);
			look_again(&l);
		}
		cr_assert_eq(l.info.state, SMV_LEASE_ORPHANED);
		cr_assert_geq(l.info.since_renewal_ms, 300);
		cr_assert_eq(l.info.expires_in_ms, 0);
	}
	cr_assert_eq(smv_events_count(SMV_EVENT_LEASE_ORPHANED), 4);
	cr_assert_eq(smv_events_count(SMV_EVENT_LEASE_RENEWED_AGAIN), 3);
	/* It is served like before, and survives as what it is. */
	cr_assert(reads_pattern(&l, 1, 0x21));
	restart_world(transport);
	look_again(&l);
	cr_assert_eq(l.info.state, SMV_LEASE_ORPHANED);
	cr_assert(reads_pattern(&l, 1, 0x21));
	must_release(&l);
	cr_assert(next_lease_is_zero());
}

EACH(held_leases_are_not_released_by_others_unasked)
{
	struct client_lease l, provisional;
	struct smv_error err = {0};

	must_create(&l, 1);
	must_create(&provisional, 1);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, NULL), 0);
	cr_assert_eq(smv_lease_release_unheld(w.table, l.info.id, &err), -EBUSY);
	cr_assert_str_eq(err.reason, "lease-held");
	cr_assert(strstr(err.message, "host/vm") && strstr(err.message, "held") &&
			  strstr(err.hint, "--force"),
		"%s\n%s", err.message, err.hint);
	cr_assert_eq(smv_lease_release_unheld(w.table, provisional.info.id, &err), 0);
	smv_lease_info_clear(&provisional.info);
	must_release(&l);
}

/* --- what cannot be taken over ------------------------------------------------------------ */

static void start_kept(void)
{
	struct client_lease l;

	start_world("tcp");
	must_create(&l, 2);
	cr_assert_eq(smv_lease_hold(w.table, l.info.id, NULL, NULL), 0);
	smv_lease_info_clear(&l.info);
	end_world();
	cr_assert_eq(access(in_dir("s/arena"), F_OK), 0);
	cr_assert_eq(mkdir(in_dir("kept"), 0700), 0);
}

TestSuite(kept, .init = start_kept, .fini = remove_dir, .timeout = 30);

static int try_arena(uint64_t size, struct smv_error *err)
{
	struct smv_arena *a;
	int rc = smv_arena_create("t", in_dir("s"), size, 0, &a, err);

	if (rc == 0)
		smv_arena_destroy(a);
	return rc;
}

static void expect_refused(const char *why)
{
	struct smv_error err = {0};

	for (int i = 0; i < 2; i++) {
		cr_assert_eq(try_arena(ARENA_EXTENTS * EXTENT, &err), -EBUSY, "%s", why);
		cr_assert(strstr(err.message, why), "%s, not: %s", err.message, why);
		cr_assert(strstr(err.hint, "--discard"), "%s", err.hint);
	}
}

static void shell(const char *command)
{
	char all[2000];

	snprintf(all, sizeof(all), "cd '%s' && %s", dir, command);
	cr_assert_eq(system(all), 0, "%s", all);
}

Test(kept, a_damaged_list_is_refused_and_kept)
{
	static const struct {
		const char *edit, *why;
	} cases[] = {
		{"head -c 100 keep > s/leases", "leases"},
		{": > s/leases", "leases"},
		{"echo '[]' > s/leases", "version"},
		{"sed 's/\"version\":1/\"version\":2/' keep > s/leases", "another version"},
		{"sed 's/\"state\":\"held\"/\"state\":\"mine\"/' keep > s/leases", "no sense"},
		{"sed 's/\"extents\":.*]]/\"extents\":[[7,2]]/' keep > s/leases", "inside"},
		{"sed 's/\"extents\":.*]]/\"extents\":[[0,1],[0,1]]/' keep > s/leases",
			"two leases"},
		{"sed 's/\"extents\":.*]]/\"extents\":[]/' keep > s/leases", "segments"},
		{"sed 's/\"epoch\":1/\"epoch\":-1/' keep > s/leases", "no sense"},
		{"sed 's/\"epoch\":1,//' keep > s/leases", "malformed"},
		{"sed 's/\"generation\":0/\"generation\":99999999/' keep > s/leases", "no sense"},
		{"(cat keep; echo x) > s/leases", "leases"},
	};
	struct smv_error err = {0};

	shell("cp s/leases keep");
	for (size_t i = 0; i < SMV_ARRAY_SIZE(cases); i++) {
		shell(cases[i].edit);
		expect_refused(cases[i].why);
	}
	shell("rm s/leases && ln -s ../keep s/leases");
	expect_refused("leases");
	shell("rm s/leases && cp keep s/leases");
	cr_assert_eq(try_arena(ARENA_EXTENTS * EXTENT, &err), 0, "%s", err.message);
}

Test(kept, an_arena_that_is_another_one_is_refused_and_kept)
{
	struct smv_error err = {0};

	shell("mv s/arena kept/arena");
	expect_refused("its file is gone");
	shell("cp kept/arena s/arena");
	expect_refused("not the one");
	shell("rm s/arena && mkfifo s/arena");
	expect_refused("file");
	shell("rm s/arena && ln -s /etc/passwd s/arena");
	expect_refused("file");
	shell("rm s/arena && mv kept/arena s/arena && mv s/leases kept/leases");
	expect_refused("no list of leases");
	shell("mv kept/leases s/leases");
	cr_assert_eq(try_arena(ARENA_EXTENTS * EXTENT, &err), 0, "%s", err.message);
	shell("truncate -s +4096 s/arena");
	expect_refused("another size");
	shell("truncate -s -4096 s/arena");
	cr_assert_eq(try_arena(ARENA_EXTENTS * EXTENT, &err), 0, "%s", err.message);
	shell("fallocate --punch-hole --offset 4096 --length 4096 s/arena");
	expect_refused("parts of its file are gone");
	cr_assert_eq(smv_arena_discard("t", in_dir("s"), &err), 0);
	cr_assert_eq(try_arena(ARENA_EXTENTS * EXTENT, &err), 0, "%s", err.message);
}

Test(kept, other_parameters_are_refused_as_long_as_it_has_leases)
{
	struct smv_lease_info *infos;
	struct smv_error err = {0};
	char incarnation[40];
	size_t nr;

	cr_assert_eq(try_arena(2 * ARENA_EXTENTS * EXTENT, &err), -EBUSY);
	cr_assert_str_eq(err.reason, "other-parameters");
	cr_assert(
		strstr(err.hint, "--memory 16M") && strstr(err.hint, "--discard"), "%s", err.hint);
	start_world_in("tcp");
	snprintf(incarnation, sizeof(incarnation), "%s", smv_arena_incarnation(w.arena));
	cr_assert_eq(smv_lease_list(w.table, &infos, &nr), 0);
	cr_assert_eq(nr, 1);
	cr_assert_eq(smv_lease_release(w.table, infos[0].id, NULL), 0);
	smv_lease_info_clear(&infos[0]);
	free(infos);
	wait_all_free();
	end_world();
	cr_assert_neq(access(in_dir("s/arena"), F_OK), 0, "nothing is kept without leases");
	cr_assert_neq(access(in_dir("s/leases"), F_OK), 0);
}

/* --- kill -9 at any moment ---------------------------------------------------------------- */

#ifdef SMEMV_FAULT_POINTS

/* What a daemon that was killed had answered. */
struct answered {
	struct client_lease kept, given_back;
	bool created, written, held, fenced, created_2, released, renewed;
};

static void live_a_life(struct answered *a)
{
	start_world_in("tcp");
	must_create(&a->kept, 2);
	/* Nothing but ids and keys is of use to another process. */
	a->created = true;
	write_pattern(&a->kept, 1, 0x11);
	a->written = true;
	cr_assert_eq(smv_lease_hold(w.table, a->kept.info.id, NULL, NULL), 0);
	a->held = true;
	must_create(&a->given_back, 3);
	write_pattern(&a->given_back, 1, 0x22);
	a->created_2 = true;
	cr_assert_eq(smv_lease_fence(w.table, a->kept.info.id, 2, NULL, NULL), 0);
	a->fenced = true;
	must_release(&a->given_back);
	a->released = true;
	for (int i = 0; i < 1000 && free_extents() != ARENA_EXTENTS - 2; i++)
		smv_sleep_ms(5);
}

/* Returns whether the fault point was reached. */
static bool die_at(const char *fault, struct answered *a)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		setenv("SMEMV_FAULT", fault, 1);
		live_a_life(a);
		_exit(0);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
	return WIFSIGNALED(status);
}

/* What was answered holds; what was not is whole or not there; the rest is free and zero. */
static void check_after(struct answered *a, const char *fault)
{
	struct smv_lease_info *infos;
	size_t nr, nr_usable = 0;
	uint32_t epoch = 1;

	start_world_in("tcp");
	if (a->created) {
		a->kept.info.segments = NULL;
		look_again(&a->kept);
		epoch = a->kept.info.epoch;
		cr_assert(epoch == 2 || (epoch == 1 && !a->fenced), "%s", fault);
		cr_assert(a->kept.info.state == SMV_LEASE_HELD ||
				  (!a->held && a->kept.info.state == SMV_LEASE_PROVISIONAL),
			"%s", fault);
		cr_assert(!a->written || reads_pattern(&a->kept, epoch, 0x11), "%s", fault);
		smv_lease_info_clear(&a->kept.info);
	}
	if (a->created_2 && smv_lease_get(w.table, a->given_back.info.id, NULL, NULL) == 0) {
		a->given_back.info.segments = NULL;
		look_again(&a->given_back);
		if (a->given_back.info.state != SMV_LEASE_RELEASING) {
			cr_assert_not(a->released, "%s", fault);
			cr_assert(reads_pattern(&a->given_back, 1, 0x22), "%s", fault);
		}
		smv_lease_info_clear(&a->given_back.info);
	}
	cr_assert_eq(smv_lease_list(w.table, &infos, &nr), 0);
	for (size_t i = 0; i < nr; i++) {
		cr_assert_neq(infos[i].state, SMV_LEASE_PREPARING, "%s", fault);
		nr_usable += smv_lease_is_live(infos[i].state);
		if (smv_lease_is_live(infos[i].state))
			cr_assert_eq(smv_lease_release(w.table, infos[i].id, NULL), 0);
		smv_lease_info_clear(&infos[i]);
	}
	free(infos);
	cr_assert_leq(nr_usable, 2, "%s", fault);
	cr_assert(next_lease_is_zero(), "%s", fault);
	wait_all_free();
	end_world();
	rmdir(in_dir("s")); /* the killed one had made it */
	cr_assert_neq(access(in_dir("s"), F_OK), 0, "%s: something is left", fault);
}

TestSuite(killed, .init = make_dir, .fini = remove_dir, .timeout = 120);

static void kill_at(const char *point, int nth, bool *reached)
{
	struct answered *a =
		mmap(NULL, sizeof(*a), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char fault[80];

	snprintf(fault, sizeof(fault), "%s:kill:%d", point, nth);
	*reached = die_at(fault, a);
	/* Without a kill the child has just left with its leases. */
	check_after(a, fault);
	munmap(a, sizeof(*a));
}

Test(killed, at_each_step_nothing_that_was_answered_is_lost)
{
	static const struct {
		const char *point;
		int times; /* that it is passed at least */
	} points[] = {{"arena-listed", 1}, {"lease-created", 2}, {"lease-held", 1},
		{"lease-fenced", 1}, {"lease-released", 1}, {"memserver-zero", 1},
		/* Before each change of the list counts. */
		{"lease-file-written", 9}};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(points); i++) {
		bool reached = true;
		int n = 0;

		while (reached)
			kill_at(points[i].point, ++n, &reached);
		cr_assert_gt(n, points[i].times, "%s is passed %d times", points[i].point, n - 1);
	}
}

#endif

/* --- registering ------------------------------------------------------------------------- */

/* The mem transport with an eye on registering. */
static struct {
	struct smv_transport transport;
	int fails_at;          /* this call of register, from 1 */
	unsigned int wait_for; /* until so many are registering at once */
	atomic_bool blocked;
	atomic_uint nr_calls, nr_inside, max_inside, nr_registered, nr_deregistered;
} spy;

static int spy_register(struct smv_domain *domain, void *addr, size_t len, unsigned int access,
	struct smv_region **region)
{
	unsigned int call = ++spy.nr_calls, inside = ++spy.nr_inside;
	int rc = -ENOMEM;

	if (inside > spy.max_inside)
		spy.max_inside = inside;
	for (int i = 0; i < 5000 && spy.max_inside < spy.wait_for; i++)
		smv_sleep_ms(1);
	while (spy.blocked)
		smv_sleep_ms(1);
	smv_sleep_ms(5);
	if ((int)call != spy.fails_at)
		rc = smv_transport_find("mem")->region_register(domain, addr, len, access, region);
	if (rc == 0)
		spy.nr_registered++;
	spy.nr_inside--;
	return rc;
}

static void spy_deregister(struct smv_region *region)
{
	spy.nr_deregistered++;
	smv_transport_find("mem")->region_deregister(region);
}

static struct client_lease fragments[ARENA_EXTENTS];

static void start_spying(void)
{
	start_world("mem");
	fragment(fragments);
	spy.transport = *w.transport;
	spy.transport.region_register = spy_register;
	spy.transport.region_deregister = spy_deregister;
	w.transport = &spy.transport;
}

static void stop_spying(void)
{
	for (int i = 1; i < ARENA_EXTENTS; i += 2)
		must_release(&fragments[i]);
	cr_assert_eq(spy.nr_registered, spy.nr_deregistered);
	stop_world();
}

TestSuite(registering, .init = start_spying, .fini = stop_spying, .timeout = 30);

static void expect_nothing_left(void)
{
	struct smv_lease_totals totals;

	smv_lease_table_totals(w.table, &totals);
	cr_assert_eq(totals.nr_leases, ARENA_EXTENTS / 2);
	cr_assert_eq(totals.zeroing_bytes, 0);
	cr_assert_eq(free_extents(), ARENA_EXTENTS / 2, "what nobody reached needs no zeroing");
	cr_assert_eq(spy.nr_registered, spy.nr_deregistered);
}

Test(registering, several_threads_share_the_segments)
{
	struct client_lease l;
	struct smv_lease_info info;

	spy.wait_for = 2;
	must_create(&l, ARENA_EXTENTS / 2);
	cr_assert_eq(l.info.nr_segments, ARENA_EXTENTS / 2);
	cr_assert_geq(spy.max_inside, 2);
	cr_assert_eq(spy.nr_registered, ARENA_EXTENTS / 2);
	cr_assert_geq(l.info.prepare_ms, 5);
	cr_assert_eq(smv_lease_get(w.table, l.info.id, &info, NULL), 0);
	cr_assert_eq(info.prepare_ms, l.info.prepare_ms);
	smv_lease_info_clear(&info);
	/* Each segment is its own, wherever threads put it. */
	for (size_t i = 0; i < l.info.nr_segments; i++)
		for (size_t k = 0; k < i; k++)
			cr_assert(
				l.info.segments[i].rkey != l.info.segments[k].rkey &&
				l.info.segments[i].arena_offset != l.info.segments[k].arena_offset);
	must_release(&l);
	cr_assert_eq(spy.nr_deregistered, ARENA_EXTENTS / 2);
}

Test(registering, where_nothing_is_pinned_no_thread_is_started)
{
	struct client_lease l;

	spy.transport.pins = false;
	must_create(&l, ARENA_EXTENTS / 2);
	cr_assert_eq(spy.max_inside, 1);
	must_release(&l);
}

Test(registering, a_segment_that_fails_undoes_the_others)
{
	for (spy.fails_at = 1; spy.fails_at <= ARENA_EXTENTS / 2; spy.fails_at++) {
		struct client_lease l;
		struct smv_error err = {0};

		spy.nr_calls = 0;
		cr_assert_eq(create(&l, ARENA_EXTENTS / 2, 0, &err), -ENOSPC);
		cr_assert_str_eq(err.reason, "register");
		cr_assert(strstr(err.message, "8388608 bytes") && strstr(err.message, "memory"),
			"%s", err.message);
		expect_nothing_left();
	}
}

static void *create_whole(void *rc)
{
	struct client_lease l;

	*(int *)rc = create(&l, ARENA_EXTENTS / 2, 0, NULL);
	return NULL;
}

Test(registering, ends_when_the_daemon_does)
{
	struct smv_lease_info *infos;
	pthread_t thread;
	size_t nr, nr_preparing = 0;
	int rc = 1;

	spy.blocked = true;
	cr_assert_eq(pthread_create(&thread, NULL, create_whole, &rc), 0);
	while (spy.nr_inside == 0)
		smv_sleep_ms(1);
	cr_assert_eq(smv_lease_list(w.table, &infos, &nr), 0);
	for (size_t i = 0; i < nr; i++) {
		nr_preparing += infos[i].state == SMV_LEASE_PREPARING;
		smv_lease_info_clear(&infos[i]);
	}
	free(infos);
	cr_assert_eq(nr_preparing, 1);
	smv_lease_table_stop(w.table);
	spy.blocked = false;
	pthread_join(thread, NULL);
	cr_assert_eq(rc, -ECANCELED);
	expect_nothing_left();
}

Test(registering, segments_are_as_many_as_threads_but_not_small)
{
	const size_t gib = SMV_GIB / EXTENT;

	cr_assert_eq(smv_registration_segment_extents(&spy.transport, 4 * EXTENT), gib / 16);
	cr_assert_eq(smv_registration_segment_extents(&spy.transport, 4 * SMV_GIB), gib / 2);
	cr_assert_eq(smv_registration_segment_extents(&spy.transport, 64 * SMV_GIB), gib);
	spy.transport.pins = false;
	cr_assert_eq(smv_registration_segment_extents(&spy.transport, 4 * EXTENT), gib);
}

static uint64_t odd_region_max(void)
{
	return 3 * EXTENT - 1;
}

Test(registering, segments_are_no_larger_than_the_transport_takes)
{
	struct client_lease l;

	for (int i = 1; i < ARENA_EXTENTS; i += 2)
		must_release(&fragments[i]);
	wait_all_free();
	spy.transport.region_max = odd_region_max;
	must_create(&l, ARENA_EXTENTS);
	cr_assert_eq(l.info.nr_segments, ARENA_EXTENTS / 2);
	must_release(&l);
	wait_all_free();
	fragment(fragments);
}

/* --- huge pages --------------------------------------------------------------------------- */

#define HUGE_SIZE SMV_HUGEPAGE_DEFAULT
#define NR_HUGE_PATH "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

/* The number of huge pages is the machine's: one test at a time changes it. */
static int huge_lock = -1;
static unsigned long nr_huge_before;

static unsigned long read_huge(const char *what)
{
	unsigned long n = 0;
	char path[200];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-2048kB/%s", what);
	f = fopen(path, "r");
	cr_assert(f && fscanf(f, "%lu", &n) == 1, "%s", path);
	fclose(f);
	return n;
}

static void write_nr_huge(unsigned long n)
{
	FILE *f = fopen(NR_HUGE_PATH, "w");

	if (f) {
		fprintf(f, "%lu", n);
		fclose(f);
	}
}

/* In a namespace of our own, where no other hugetlbfs is mounted. */
static void mount_hugetlbfs(void)
{
	cr_assert_eq(unshare(CLONE_NEWNS), 0);
	cr_assert_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	cr_assert_eq(system("for m in $(awk '$3 == \"hugetlbfs\" { print $2 }' /proc/mounts); do "
			    "umount -l $m; done"),
		0);
	cr_assert_eq(mkdir(in_dir("huge"), 0755), 0);
	cr_assert_eq(mount("none", in_dir("huge"), "hugetlbfs", 0, "pagesize=2M"), 0);
}

static void start_hugepages(void)
{
	make_dir();
	if (geteuid() != 0 || access(NR_HUGE_PATH, W_OK) < 0)
		cr_skip_test("only root can set huge pages of 2 MiB aside");
	huge_lock = open("/sys/kernel/mm/hugepages", O_RDONLY | O_CLOEXEC);
	cr_assert_eq(flock(huge_lock, LOCK_EX), 0);
	nr_huge_before = read_huge("nr_hugepages");
	write_nr_huge(nr_huge_before + ARENA_EXTENTS);
	if (read_huge("nr_hugepages") < nr_huge_before + ARENA_EXTENTS)
		cr_skip_test("this machine has no room for %d huge pages", ARENA_EXTENTS);
	mount_hugetlbfs();
}

static void stop_hugepages(void)
{
	if (huge_lock >= 0) {
		umount2(in_dir("huge"), MNT_DETACH);
		write_nr_huge(nr_huge_before);
		close(huge_lock);
	}
	remove_dir();
}

TestSuite(hugepages, .init = start_hugepages, .fini = stop_hugepages, .timeout = 60);

static bool is_mount_empty(void)
{
	char command[300];

	snprintf(command, sizeof(command), "[ -z \"$(ls -A '%s')\" ]", in_dir("huge"));
	return system(command) == 0;
}

Test(hugepages, hold_the_arena_and_are_given_back)
{
	unsigned long nr_free = read_huge("free_hugepages");
	char target[PATH_MAX] = "";
	struct smv_arena *a;
	struct smv_error err = {0};
	struct stat st;

	cr_assert_eq(smv_arena_create("a", in_dir("s"), 2 * EXTENT, HUGE_SIZE, &a, &err), 0, "%s",
		err.message);
	cr_assert_eq(smv_arena_hugepage_bytes(a), HUGE_SIZE);
	cr_assert_eq(read_huge("free_hugepages"), nr_free - 2);
	cr_assert_gt(readlink(in_dir("s/arena"), target, sizeof(target) - 1), 0);
	cr_assert_eq(strncmp(target, in_dir("huge/smemv-a-"), strlen(in_dir("huge/smemv-a-"))), 0);
	cr_assert_eq(stat(target, &st), 0);
	cr_assert_eq((uint64_t)st.st_size, 2 * EXTENT);
	cr_assert_eq(st.st_mode & 0777, 0600);
	cr_assert(is_zero(smv_arena_base(a), 2 * EXTENT));
	smv_arena_destroy(a);
	cr_assert(is_mount_empty());
	cr_assert_neq(access(in_dir("s"), F_OK), 0);
	cr_assert_eq(read_huge("free_hugepages"), nr_free);
}

Test(hugepages, too_few_are_refused_with_numbers_and_the_command)
{
	unsigned long available = read_huge("free_hugepages") - read_huge("resv_hugepages");
	struct smv_arena *a;
	struct smv_error err = {0};
	char text[100];

	if (read_huge("nr_overcommit_hugepages") > 0)
		cr_skip_test("this machine makes more huge pages by itself");
	cr_assert_eq(
		smv_arena_create("a", in_dir("s"), (available + 3) * EXTENT, HUGE_SIZE, &a, &err),
		-ENOSPC);
	cr_assert_str_eq(err.reason, "no-room");
	snprintf(text, sizeof(text), "needs %lu huge pages of 2.0 MiB, and %lu are available",
		available + 3, available);
	cr_assert(strstr(err.message, text), "%s", err.message);
	snprintf(text, sizeof(text), "nr_hugepages=%lu", read_huge("nr_hugepages") + 3);
	cr_assert(strstr(err.hint, text), "%s", err.hint);
	cr_assert(is_mount_empty());
	cr_assert_neq(access(in_dir("s"), F_OK), 0);
}

Test(hugepages, a_full_hugetlbfs_is_refused)
{
	struct smv_arena *a;
	struct smv_error err = {0};

	umount2(in_dir("huge"), MNT_DETACH);
	cr_assert_eq(mount("none", in_dir("huge"), "hugetlbfs", 0, "pagesize=2M,size=4M"), 0);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), 3 * EXTENT, HUGE_SIZE, &a, &err), -ENOSPC);
	cr_assert(strstr(err.message, in_dir("huge")) && strstr(err.message, "4194304"), "%s",
		err.message);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), 2 * EXTENT, HUGE_SIZE, &a, &err), 0);
	smv_arena_destroy(a);
}

Test(hugepages, no_hugetlbfs_is_refused_with_the_command)
{
	struct smv_arena *a;
	struct smv_error err = {0};

	umount2(in_dir("huge"), MNT_DETACH);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, HUGE_SIZE, &a, &err), -EBUSY);
	cr_assert_str_eq(err.reason, "no-hugetlbfs");
	cr_assert(strstr(err.hint, "mount -t hugetlbfs -o pagesize=2M"), "%s", err.hint);
	cr_assert_neq(access(in_dir("s"), F_OK), 0);
}

Test(hugepages, sizes_are_checked)
{
	struct smv_error err = {0};

	cr_assert_eq(smv_arena_check_hugepages(2 * EXTENT, HUGE_SIZE, &err), 0);
	cr_assert_eq(smv_arena_check_hugepages(3 * SMV_MIB, HUGE_SIZE, &err), -EINVAL);
	cr_assert(strstr(err.hint, "2M or 4M"), "%s", err.hint);
	cr_assert_eq(smv_arena_check_hugepages(6 * SMV_MIB, 3 * SMV_MIB, &err), -EINVAL);
	cr_assert_str_eq(err.reason, "no-such-hugepages");
	cr_assert(strstr(err.hint, "2.0 MiB"), "%s", err.hint);
}

Test(hugepages, a_state_directory_cannot_be_on_hugetlbfs)
{
	struct smv_arena *a;
	struct smv_error err = {0};

	cr_assert_eq(smv_arena_create("a", in_dir("huge"), EXTENT, 0, &a, &err), -EBUSY);
	cr_assert(strstr(err.hint, "--hugepages"), "%s", err.hint);
}

/* Make an arena and die. */
static void leave_behind(const char *state_dir)
{
	struct smv_arena *a;
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(smv_arena_create("a", state_dir, 2 * EXTENT, HUGE_SIZE, &a, NULL) != 0);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0);
}

Test(hugepages, of_a_killed_daemon_are_found_by_the_next_one)
{
	unsigned long nr_free = read_huge("free_hugepages");
	struct smv_arena *a;

	for (int huge = 0; huge < 2; huge++) {
		leave_behind(in_dir("s"));
		cr_assert_eq(read_huge("free_hugepages"), nr_free - 2);
		cr_assert_eq(
			smv_arena_create("a", in_dir("s"), EXTENT, huge ? HUGE_SIZE : 0, &a, NULL),
			0);
		cr_assert_eq(read_huge("free_hugepages"), nr_free - (huge ? 1 : 0));
		smv_arena_destroy(a);
		cr_assert(is_mount_empty());
	}
}

/* They go before the link to them, which takes a while. */
Test(hugepages, of_a_daemon_that_was_killed_as_it_removed_them_are_made_anew)
{
	struct smv_error err = {0};
	struct smv_arena *a;

	leave_behind(in_dir("s"));
	shell("rm huge/*");
	cr_assert_eq(smv_arena_create("a", in_dir("s"), 2 * EXTENT, HUGE_SIZE, &a, &err), 0, "%s",
		err.message);
	smv_arena_destroy(a);
	cr_assert(is_mount_empty());
}

Test(hugepages, a_planted_link_removes_nothing)
{
	struct smv_arena *a;

	close(open(in_dir("precious"), O_CREAT | O_WRONLY, 0600));
	cr_assert_eq(mkdir(in_dir("s"), 0700), 0);
	cr_assert_eq(symlink("../precious", in_dir("s/arena")), 0);
	cr_assert_eq(smv_arena_create("a", in_dir("s"), EXTENT, HUGE_SIZE, &a, NULL), -EBUSY);
	cr_assert_eq(smv_arena_discard("a", in_dir("s"), NULL), 0);
	cr_assert_neq(faccessat(AT_FDCWD, in_dir("s/arena"), F_OK, AT_SYMLINK_NOFOLLOW), 0);
	cr_assert_eq(access(in_dir("precious"), F_OK), 0);
}

Test(hugepages, are_leased_like_others)
{
	for (size_t i = 0; i < nr_transports(); i++) {
		struct client_lease l;

		w.hugepage_bytes = HUGE_SIZE;
		start_world_in(transports[i]);
		must_create(&l, ARENA_EXTENTS);
		fill_remotely(&l);
		must_release(&l);
		cr_assert(next_lease_is_zero());
		end_world();
		cr_assert(is_mount_empty());
	}
}

Test(hugepages, with_leases_are_taken_over)
{
	for (size_t i = 0; i < nr_transports(); i++) {
		struct client_lease l;

		w.hugepage_bytes = HUGE_SIZE;
		start_world_in(transports[i]);
		must_create(&l, 3);
		write_pattern(&l, 1, 0x51);
		restart_world(transports[i]);
		look_again(&l);
		cr_assert(reads_pattern(&l, 1, 0x51));
		must_release(&l);
		cr_assert(next_lease_is_zero());
		end_world();
		cr_assert(is_mount_empty());
	}
}

Test(hugepages, without_their_file_are_refused)
{
	struct client_lease l;
	struct smv_arena *a;
	struct smv_error err = {0};

	w.hugepage_bytes = HUGE_SIZE;
	start_world_in("tcp");
	must_create(&l, 1);
	smv_lease_info_clear(&l.info);
	end_world();
	cr_assert_not(is_mount_empty());
	shell("rm huge/*");
	cr_assert_eq(
		smv_arena_create("t", in_dir("s"), ARENA_EXTENTS * EXTENT, HUGE_SIZE, &a, &err),
		-EBUSY);
	cr_assert(strstr(err.message, "cannot be opened"), "%s", err.message);
	cr_assert_eq(
		smv_arena_create("t", in_dir("s"), ARENA_EXTENTS * EXTENT, 0, &a, &err), -EBUSY);
	cr_assert(strstr(err.hint, "--hugepages=2M"), "%s", err.hint);
}

/* --- service ------------------------------------------------------------------------------ */

static struct smv_rpc_server *server;
static struct smv_rpc_client *client;
static struct smv_mem_server mem_server;

static void start_service(void)
{
	struct smv_addr addr = {.is_unix = true}, bound;
	struct smv_error err = {0};

	start_world("tcp");
	smv_rpc_init();
	snprintf(addr.host, sizeof(addr.host), "%s", in_dir("control.sock"));
	mem_server = (struct smv_mem_server){.name = "t",
		.arena = w.arena,
		.table = w.table,
		.data = w.data,
		.started_ns = smv_now_ns()};
	cr_assert_eq(smv_rpc_server_create(2, &server), 0);
	cr_assert_eq(smv_mem_server_add(server, &mem_server), 0);
	cr_assert_eq(smv_rpc_server_listen(server, &addr, &bound, &err), 0, "%s", err.message);
	cr_assert_eq(smv_rpc_server_start(server), 0);
	cr_assert_eq(smv_rpc_client_create(&addr, &client), 0);
}

static void stop_service(void)
{
	smv_rpc_client_destroy(client);
	smv_rpc_server_destroy(server, 1000);
	smv_rpc_shutdown();
	stop_world();
}

static const char *hex_id(uint64_t id)
{
	static char text[20];

	snprintf(text, sizeof(text), "%016lx", id);
	return text;
}

TestSuite(service, .init = start_service, .fini = stop_service, .timeout = 30);

static int call(const char *method, const void *request, void *response, struct smv_error *err)
{
	return smv_rpc_client_call(client, &smemv__v1__mem_server__descriptor, method, request,
		response, 5000, false, err);
}

Test(service, a_lease_by_rpc_opens_the_data_plane)
{
	Smemv__V1__CreateLeaseRequest create_request = SMEMV__V1__CREATE_LEASE_REQUEST__INIT;
	Smemv__V1__HoldLeaseRequest hold = SMEMV__V1__HOLD_LEASE_REQUEST__INIT;
	Smemv__V1__FenceLeaseRequest fence = SMEMV__V1__FENCE_LEASE_REQUEST__INIT;
	Smemv__V1__ReleaseLeaseRequest release = SMEMV__V1__RELEASE_LEASE_REQUEST__INIT;
	Smemv__V1__ListLeasesRequest list_request = SMEMV__V1__LIST_LEASES_REQUEST__INIT;
	Smemv__V1__CreateLeaseResponse *created;
	Smemv__V1__ListLeasesResponse *list;
	Smemv__V1__Lease *lease;
	ProtobufCMessage *answer;
	struct client_lease l = {0};
	struct smv_lease_segment segment;
	struct smv_error err = {0};
	struct smv_conn *conn;

	create_request.owner = "main1/vm1";
	create_request.size_bytes = 3 * EXTENT;
	create_request.epoch = 4;
	create_request.transport = "tcp";
	cr_assert_eq(call("CreateLease", &create_request, &created, &err), 0, "%s", err.message);
	cr_assert_eq(created->ticket_key.len, SMV_TICKET_KEY_SIZE);
	cr_assert_str_eq(created->incarnation, smv_arena_incarnation(w.arena));
	cr_assert_eq(created->lease->state, SMEMV__V1__LEASE_STATE__LEASE_STATE_PROVISIONAL);
	cr_assert_str_eq(created->lease->owner, "main1/vm1");
	cr_assert_eq(created->lease->n_segments, 1);
	l.info.id = strtoull(created->lease->id, NULL, 16);
	memcpy(l.key, created->ticket_key.data, SMV_TICKET_KEY_SIZE);
	segment.rkey = created->lease->segments[0]->rkey;
	segment.remote_addr = created->lease->segments[0]->remote_addr;
	cr_assert_eq(connect_as(&l, 4, SMV_ROLE_WRITER, &conn), 0);
	cr_assert_eq(transfer(conn, SMV_OP_WRITE, &segment, 3 * EXTENT - 4096, 4096), 0);

	cr_assert_eq(call("ListLeases", &list_request, &list, &err), 0);
	cr_assert_eq(list->n_leases, 1);
	cr_assert_eq(list->leases[0]->nr_connections, 1);
	cr_assert_eq(list->leases[0]->n_segments, 1);
	smv_rpc_message_free(&list->base);

	hold.id = fence.id = release.id = created->lease->id;
	cr_assert_eq(call("HoldLease", &hold, &lease, &err), 0);
	cr_assert_eq(lease->state, SMEMV__V1__LEASE_STATE__LEASE_STATE_HELD);
	smv_rpc_message_free(&lease->base);
	release.unless_held = true;
	cr_assert_eq(call("ReleaseLease", &release, &answer, &err), -EBUSY);
	cr_assert(strstr(err.message, "main1/vm1"), "%s", err.message);
	release.unless_held = false;
	fence.epoch = 5;
	cr_assert_eq(call("FenceLease", &fence, &lease, &err), 0);
	cr_assert_lt(lease->since_renewal_ms, 5000);
	cr_assert_eq(lease->generation, 0);
	cr_assert_eq(lease->epoch, 5);
	smv_rpc_message_free(&lease->base);
	cr_assert_neq(transfer(conn, SMV_OP_WRITE, &segment, 0, 4096), 0);
	smv_conn_close(conn);

	cr_assert_eq(call("ReleaseLease", &release, &answer, &err), 0);
	smv_rpc_message_free(answer);
	wait_all_free();
	cr_assert_eq(call("ReleaseLease", &release, &answer, &err), -ENOENT);
	cr_assert_eq(err.code, SMV_NOT_FOUND);
	smv_rpc_message_free(&created->base);
}

Test(service, tells_what_it_is)
{
	Smemv__V1__GetServerInfoRequest request = SMEMV__V1__GET_SERVER_INFO_REQUEST__INIT;
	Smemv__V1__ServerInfo *info;
	struct smv_error err = {0};
	char text[SMV_ADDR_MAX];

	cr_assert_eq(call("GetServerInfo", &request, &info, &err), 0, "%s", err.message);
	cr_assert_str_eq(info->name, "t");
	cr_assert_eq(info->capacity_bytes, ARENA_EXTENTS * EXTENT);
	cr_assert_eq(info->free_bytes, ARENA_EXTENTS * EXTENT);
	cr_assert_eq(info->extent_bytes, EXTENT);
	cr_assert_eq(info->hugepage_bytes, 0);
	cr_assert_eq(info->n_data_addresses, 1);
	cr_assert_str_eq(info->data_addresses[0], smv_addr_format(&w.addr, text, sizeof(text)));
	cr_assert_neq(w.addr.port, 0);
	smv_rpc_message_free(&info->base);
}

static struct prom prom;

static double metric(const char *name, const char *label, const char *value)
{
	const struct prom_sample *s =
		label ? prom_find(&prom, name, label, value, NULL) : prom_find(&prom, name, NULL);

	cr_assert(s, "%s", name);
	return s->value;
}

static void collect(void)
{
	struct smv_metrics *m = smv_metrics_create();
	size_t len;
	char *text;

	smv_mem_server_collect(&mem_server, m);
	text = smv_metrics_text(m, &len);
	cr_assert_eq(prom_parse(&prom, text), 0, "%s", prom.error);
	free(text);
	smv_metrics_destroy(m);
}

Test(service, tells_prometheus_of_arena_and_leases)
{
	struct client_lease held, provisional;

	collect();
	cr_assert_eq(metric("smemv_arena_free_bytes", NULL, NULL), ARENA_EXTENTS * EXTENT);
	cr_assert_eq(metric("smemv_leases", "state", "held"), 0);
	must_create(&held, 2);
	must_create(&provisional, 1);
	cr_assert_eq(smv_lease_hold(w.table, held.info.id, NULL, NULL), 0);
	collect();
	cr_assert_eq(metric("smemv_server_info", "incarnation", smv_arena_incarnation(w.arena)), 1);
	cr_assert_eq(metric("smemv_arena_bytes", NULL, NULL), ARENA_EXTENTS * EXTENT);
	cr_assert_eq(metric("smemv_arena_leased_bytes", NULL, NULL), 3 * EXTENT);
	cr_assert_eq(metric("smemv_arena_free_bytes", NULL, NULL), (ARENA_EXTENTS - 3) * EXTENT);
	cr_assert_eq(metric("smemv_leases", "state", "held"), 1);
	cr_assert_eq(metric("smemv_leases", "state", "provisional"), 1);
	cr_assert_eq(metric("smemv_leases", "state", "orphaned"), 0);
	cr_assert_eq(metric("smemv_data_received_bytes_total", NULL, NULL), 0);
	cr_assert_lt(metric("smemv_lease_renewal_age_seconds", "lease", hex_id(held.info.id)), 20);
	cr_assert_eq(metric("smemv_lease_bytes", "lease", hex_id(held.info.id)), 2 * EXTENT);
	must_release(&held);
	must_release(&provisional);
}

Test(service, tells_what_has_happened)
{
	Smemv__V1__ListEventsRequest request = SMEMV__V1__LIST_EVENTS_REQUEST__INIT;
	Smemv__V1__ListEventsResponse *list;
	struct client_lease l;
	struct smv_error err = {0};

	must_create(&l, 1);
	must_release(&l);
	request.vm = "host/vm";
	cr_assert_eq(call("ListEvents", &request, &list, &err), 0, "%s", err.message);
	cr_assert_eq(list->n_events, 1);
	cr_assert_str_eq(list->events[0]->name, "lease.ended");
	cr_assert_str_eq(list->events[0]->subject, hex_id(l.info.id));
	smv_rpc_message_free(&list->base);
	request.vm = "";
	cr_assert_eq(call("ListEvents", &request, &list, &err), 0, "%s", err.message);
	cr_assert_str_eq(list->events[0]->name, "arena.new");
	smv_rpc_message_free(&list->base);
}

Test(service, refuses_bad_fields)
{
	static const char *const bad_ids[] = {"", "1", "00000000000000000", "000000000000000g",
		"0x00000000000000", "ABCDEF0000000000"};
	Smemv__V1__CreateLeaseRequest request = SMEMV__V1__CREATE_LEASE_REQUEST__INIT;
	Smemv__V1__GetLeaseRequest get = SMEMV__V1__GET_LEASE_REQUEST__INIT;
	ProtobufCMessage *answer;
	struct smv_error err = {0};

	request.owner = "o";
	request.size_bytes = EXTENT;
	request.epoch = 1;
	request.transport = "pigeon";
	cr_assert_eq(call("CreateLease", &request, &answer, &err), -EINVAL);
	cr_assert(strstr(err.message, "pigeon") && strstr(err.hint, "tcp:127.0.0.1:"), "%s",
		err.hint);
	request.transport = "tcp";
	request.size_bytes = 1;
	cr_assert_eq(call("CreateLease", &request, &answer, &err), -EINVAL);
	cr_assert_str_eq(err.reason, "bad-size");
	request.size_bytes = 1ull << 62;
	cr_assert_eq(call("CreateLease", &request, &answer, &err), -ENOSPC);
	cr_assert_str_eq(err.reason, "no-room");
	for (size_t i = 0; i < SMV_ARRAY_SIZE(bad_ids); i++) {
		get.id = (char *)bad_ids[i];
		cr_assert_eq(call("GetLease", &get, &answer, &err), -EINVAL, "%s", bad_ids[i]);
	}
	get.id = "0123456789abcdef";
	cr_assert_eq(call("GetLease", &get, &answer, &err), -ENOENT);
}
