/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases and the connections over them against a memserverd that dies and is started again; by tcp,
 * or by verbs when SMEMV_TEST_VERBS is an address of an RDMA device of this host.
 */
#include "client/leases_growth.h"
#include "client/leases_state.h"
#include "client/remote.h"
#include "common/clock.h"
#include "common/log.h"
#include "smemv/v1/memserver.pb-c.h"
#include "vmm/guest_ram.h"
#include "daemon.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define NR_PAGES 8

static char dir[] = "/dev/shm/smemv-leases-XXXXXX";
static char address[80];
static pid_t server;
static const char *server_fault; /* SMEMV_FAULT of the server */
static const char *orphan_after = "60";

static struct smv_leases leases;
static struct smv_backing backing;
static struct smv_remote *remote;

/* --- the server --------------------------------------------------------------------------- */

static void run_server(int log_fd, const char *state)
{
	const char *verbs = getenv("SMEMV_TEST_VERBS");
	char state_dir[100], data[100];

	snprintf(state_dir, sizeof(state_dir), "%s/%s", dir, state);
	snprintf(data, sizeof(data), "%s:%s:0", verbs ? "verbs" : "tcp",
		verbs ? verbs : "127.0.0.1");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	unsetenv("SMEMV_FAULT");
	if (server_fault)
		setenv("SMEMV_FAULT", server_fault, 1);
	dup2(log_fd, STDERR_FILENO);
	execl(SMEMV_TEST_MEMSERVERD, "memserverd", "--name", "t", "--memory", "64M", "--state-dir",
		state_dir, "--listen", address, "--data", data, "--orphan-after", orphan_after,
		"--insecure", (char *)NULL);
	_exit(127);
}

static void start_server_in(const char *state)
{
	int fds[2];

	cr_assert_eq(pipe(fds), 0);
	server = fork();
	if (server == 0)
		run_server(fds[1], state);
	close(fds[1]);
	wait_ready(fds[0]);
	/* Stays open: the server must be able to log. */
}

static void start_server(void)
{
	start_server_in("s");
}

static void end_server(int sig)
{
	kill(server, sig);
	waitpid(server, NULL, 0);
}

static void restart_server(void)
{
	end_server(SIGKILL);
	start_server();
}

static void shell(const char *command)
{
	char all[1000];

	snprintf(all, sizeof(all), "cd '%s' && %s", dir, command);
	cr_assert_eq(system(all), 0, "%s", all);
}

/* --- the client --------------------------------------------------------------------------- */

static void create_leases(void)
{
	const char *addresses[] = {address};
	struct smv_transport_wish wish = {.names = "tcp"};
	struct smv_error err = {0};
	char reason[200];

	if (getenv("SMEMV_TEST_VERBS"))
		snprintf(wish.names, sizeof(wish.names), "verbs");
	cr_assert_eq(smv_leases_create(&leases, &backing, addresses, 1, "tests", 16 * MIB, &wish,
			     false, 2000, reason, sizeof(reason), &err),
		0, "%s", err.message);
}

static void open_remote(void)
{
	struct smv_error err = {0};

	cr_assert_eq(smv_remote_open(&backing, SMV_ROLE_WRITER, NR_PAGES * SMV_PAGE_SIZE, 2000,
			     &remote, &err),
		0, "%s", err.message);
}

static void start(void)
{
	smv_log_set_level(SMV_LOG_ERROR);
	cr_assert(mkdtemp(dir));
	snprintf(address, sizeof(address), "unix:%s/sock", dir);
	start_server();
	smv_rpc_init();
	create_leases();
	open_remote();
}

static void stop(void)
{
	smv_remote_close(remote);
	smv_leases_release(&leases, &backing);
	smv_backing_free(&backing);
	smv_rpc_shutdown();
	end_server(SIGKILL);
	shell("rm -rf '../'$(basename \"$PWD\")");
}

TestSuite(leases, .init = start, .fini = stop, .timeout = 60);

#define NR_SLOTS (16 * MIB / SMV_PAGE_SIZE)
static uint64_t first_slot; /* of as many more, when there are more */

static uint64_t slot_of(unsigned int i)
{
	return first_slot + (uint64_t)i * 1000 % NR_SLOTS;
}

/* 0, or why it was not done. */
static int transfer(enum smv_op op, unsigned int i)
{
	char *page = (char *)smv_remote_staging(remote) + i * SMV_PAGE_SIZE;
	struct smv_remote_completion c;
	int r = smv_remote_post(remote, op, slot_of(i), 1, page, i);

	if (r < 0)
		return r;
	while (smv_remote_poll(remote, &c, 1) == 0) {
		struct pollfd fds[SMV_SUB_HOSTS_MAX];
		int timeout = 100, n = smv_remote_pollfds(remote, fds, &timeout);

		if (n >= 0)
			poll(fds, (nfds_t)n, timeout);
	}
	/* A connection that failed goes when all that it has to tell was taken. */
	if (c.status < 0)
		while (smv_remote_mend(remote, NULL) == 0)
			smv_remote_poll(remote, &c, 1);
	return c.status;
}

static void write_pages(int value)
{
	for (unsigned int i = 0; i < NR_PAGES; i++) {
		memset((char *)smv_remote_staging(remote) + i * SMV_PAGE_SIZE, value + (int)i,
			SMV_PAGE_SIZE);
		cr_assert_eq(transfer(SMV_OP_WRITE, i), 0);
	}
}

/* Pages that do not hold what was written; those that cannot be read count too. */
static unsigned int wrong_pages(int value)
{
	unsigned int wrong = 0;

	memset(smv_remote_staging(remote), 0xff, NR_PAGES * SMV_PAGE_SIZE);
	for (unsigned int i = 0; i < NR_PAGES; i++) {
		const unsigned char *page =
			(unsigned char *)smv_remote_staging(remote) + i * SMV_PAGE_SIZE;

		wrong += transfer(SMV_OP_READ, i) != 0 ||
			 page[0] != (unsigned char)(value + (int)i) ||
			 memcmp(page, page + 1, SMV_PAGE_SIZE - 1) != 0;
	}
	return wrong;
}

/* True when the sub-host is reached again within @ms. */
static bool mends(unsigned int ms, struct smv_error *err)
{
	uint64_t deadline = smv_now_ns() + ms * SMV_NS_PER_MS;
	struct smv_remote_completion c;

	/* Nothing is under way: find out that the connection is gone. */
	smv_remote_poll(remote, &c, 1);
	while (smv_remote_mend(remote, err) > 0) {
		if (smv_now_ns() > deadline)
			return false;
		smv_sleep_ms(5);
		smv_remote_poll(remote, &c, 1);
	}
	return true;
}

static void notice_deaths(unsigned int nr)
{
	struct smv_remote_completion c;

	for (int i = 0; i < 1000 && smv_remote_mend(remote, NULL) < nr; i++) {
		smv_remote_poll(remote, &c, 1);
		smv_sleep_ms(5);
	}
	cr_assert_eq(smv_remote_mend(remote, NULL), nr);
}

static void notice_death(void)
{
	notice_deaths(1);
}

static Smemv__V1__LeaseState state_of_lease(uint64_t *since_renewal_ms)
{
	Smemv__V1__GetLeaseRequest request = SMEMV__V1__GET_LEASE_REQUEST__INIT;
	Smemv__V1__Lease *lease = NULL;
	struct smv_error err = {0};
	Smemv__V1__LeaseState state;

	request.id = leases.leases[0].id;
	/* The connection may have died with the former server. */
	for (int tries = 3, r = -1; tries > 0 && r < 0; tries--)
		r = smv_rpc_client_call(leases.leases[0].client, &smemv__v1__mem_server__descriptor,
			"GetLease", &request.base, (ProtobufCMessage **)&lease, 5000, true, &err);
	cr_assert(lease, "%s", err.message);
	state = lease->state;
	*since_renewal_ms = lease->since_renewal_ms;
	smv_rpc_message_free(&lease->base);
	return state;
}

/* --- restarts ----------------------------------------------------------------------------- */

Test(leases, connections_go_on_after_restarts)
{
	struct smv_error err = {0};

	cr_assert(smv_leases_hold(&leases, &backing));
	write_pages(10);
	for (int i = 0; i < 3; i++) {
		if (i == 2) {
			end_server(SIGTERM); /* an upgrade */
			start_server();
		} else {
			restart_server();
		}
		notice_death();
		cr_assert(mends(8000, &err), "%s", err.message);
		cr_assert_eq(wrong_pages(10 + i), 0);
		write_pages(11 + i);
	}
}

Test(leases, a_first_connection_finds_a_server_that_was_started_again)
{
	write_pages(10);
	smv_remote_close(remote);
	restart_server();
	open_remote();
	cr_assert_eq(wrong_pages(10), 0);
}

/* As the tickets that a source gets: nobody asks again for it. */
Test(leases, made_by_a_server_that_was_started_again_open_at_once)
{
	smv_remote_close(remote);
	restart_server();
	smv_leases_release(&leases, &backing);
	smv_backing_free(&backing);
	create_leases();
	cr_assert_eq(leases.leases[0].generation, 1);
	backing.find_door = NULL;
	open_remote();
	write_pages(10);
	cr_assert_eq(wrong_pages(10), 0);
}

Test(leases, fencing_tells_the_segments_as_they_are_now)
{
	struct smv_error err = {0};
	uint64_t rkey = backing.sub_hosts[0].segments[0].rkey;

	write_pages(10);
	smv_remote_close(remote);
	restart_server();
	smv_sleep_ms(200);
	for (int i = 0; i < 100 && smv_leases_fence(&leases, &backing, &err) < 0; i++)
		smv_sleep_ms(20);
	cr_assert_neq(backing.sub_hosts[0].segments[0].rkey, rkey);
	cr_assert_eq(leases.leases[0].generation, 1);
	open_remote();
	cr_assert_eq(wrong_pages(10), 0);
}

#ifdef SMEMV_FAULT_POINTS
/* That it is the new rkeys that make the first test pass. */
Test(leases, stale_rkeys_reach_nothing)
{
	struct smv_error err = {0};

	setenv("SMEMV_FAULT", "remote-stale-rkeys", 1); /* no fault point was passed yet */
	write_pages(10);
	restart_server();
	notice_death();
	cr_assert(mends(8000, &err), "%s", err.message);
	cr_assert_eq(transfer(SMV_OP_READ, 0), -EACCES);
}
#endif

/* --- lost --------------------------------------------------------------------------------- */

static void expect_lost(const char *why)
{
	struct smv_error err = {0};

	notice_death();
	for (int i = 0; i < 10 && err.code != SMV_DATA_LOSS; i++)
		cr_assert_not(mends(1000, &err));
	cr_assert_eq(err.code, SMV_DATA_LOSS, "%s", err.message);
	cr_assert_eq(smv_code_to_errno(err.code), -ENODATA);
	cr_assert(strstr(err.message, address) && strstr(err.message, leases.leases[0].id) &&
			  strstr(err.message, why),
		"%s", err.message);
	cr_assert_eq(transfer(SMV_OP_READ, 0), -ENODATA);
	cr_assert_eq(transfer(SMV_OP_WRITE, 0), -ENODATA);
	cr_assert_eq(smv_leases_fence(&leases, &backing, &err), -ENODATA, "%s", err.message);
}

Test(leases, other_memory_is_told_from_no_answer)
{
	struct smv_error err = {0};

	write_pages(10);
	end_server(SIGKILL);
	notice_death();
	cr_assert_not(mends(500, &err));
	cr_assert_neq(err.code, SMV_DATA_LOSS);
	cr_assert(strstr(err.message, "is not reached"), "%s", err.message);
	cr_assert_eq(transfer(SMV_OP_READ, 0), -ENOTCONN);
	shell("rm -rf s");
	start_server();
	expect_lost("another one");
}

Test(leases, a_lease_that_was_released_is_lost)
{
	Smemv__V1__ReleaseLeaseRequest request = SMEMV__V1__RELEASE_LEASE_REQUEST__INIT;
	ProtobufCMessage *response;
	struct smv_error err = {0};

	write_pages(10);
	request.id = leases.leases[0].id;
	cr_assert_eq(
		smv_rpc_client_call(leases.leases[0].client, &smemv__v1__mem_server__descriptor,
			"ReleaseLease", &request.base, &response, 5000, true, &err),
		0, "%s", err.message);
	smv_rpc_message_free(response);
	smv_sleep_ms(300); /* until it is zeroed */
	expect_lost("does not know");
}

Test(leases, the_right_server_is_taken_back_after_a_wrong_one)
{
	struct smv_error err = {0};

	write_pages(10);
	end_server(SIGKILL);
	start_server_in("other");
	expect_lost("another one");
	end_server(SIGKILL);
	start_server();
	/* The failed fence has raised our epoch, and is to be repeated. */
	for (int i = 0; i < 200 && smv_leases_fence(&leases, &backing, &err) < 0; i++)
		smv_sleep_ms(20);
	cr_assert(mends(10000, &err), "%s", err.message);
	cr_assert_eq(wrong_pages(10), 0);
}

#ifdef SMEMV_FAULT_POINTS
/* A server that says that it has the lease, over memory of another incarnation... */
static void restart_with_other_memory(void)
{
	write_pages(10);
	end_server(SIGKILL);
	server_fault = "arena-forget,arena-other-incarnation";
	start_server();
	notice_death();
}

Test(leases, the_incarnation_counts_and_not_the_lease)
{
	struct smv_error err = {0};

	restart_with_other_memory();
	cr_assert_not(mends(1500, &err));
	cr_assert_eq(err.code, SMV_DATA_LOSS, "%s", err.message);
	cr_assert_eq(wrong_pages(10), NR_PAGES, "nothing may be read");
	cr_assert_eq(*(unsigned char *)smv_remote_staging(remote), 0xff, "something was read");
}

/* ...is read as zeros if nobody looks at the incarnation. */
Test(leases, without_the_check_wrong_pages_would_be_seen)
{
	struct smv_error err = {0};

	setenv("SMEMV_FAULT", "leases-any-incarnation", 1);
	restart_with_other_memory();
	cr_assert(mends(8000, &err), "%s", err.message);
	cr_assert_eq(wrong_pages(10), NR_PAGES);
	cr_assert_eq(*(unsigned char *)smv_remote_staging(remote), 0);
}
#endif

/* --- renewing and releasing --------------------------------------------------------------- */

static void stop_orphans(void)
{
	orphan_after = "1";
	start();
}

Test(orphans, held_leases_are_renewed_too, .init = stop_orphans, .fini = stop, .timeout = 60)
{
	uint64_t since_ms;

	cr_assert(smv_leases_hold(&leases, &backing));
	for (int i = 0; i < 8; i++) {
		smv_sleep_ms(300);
		smv_leases_renew(&leases, &backing);
		cr_assert_eq(state_of_lease(&since_ms), SMEMV__V1__LEASE_STATE__LEASE_STATE_HELD);
		cr_assert_lt(since_ms, 1000);
	}
	smv_sleep_ms(1500);
	cr_assert_eq(state_of_lease(&since_ms), SMEMV__V1__LEASE_STATE__LEASE_STATE_ORPHANED);
	cr_assert_geq(since_ms, 1000);
	restart_server();
	cr_assert_eq(state_of_lease(&since_ms), SMEMV__V1__LEASE_STATE__LEASE_STATE_ORPHANED);
	smv_leases_renew(&leases, &backing);
	cr_assert_eq(state_of_lease(&since_ms), SMEMV__V1__LEASE_STATE__LEASE_STATE_HELD);
}

Test(leases, what_cannot_be_released_is_told_and_released_later)
{
	unsigned int left = 1;

	end_server(SIGKILL);
	cr_assert_eq(smv_leases_release_try(&leases, &backing), 0, "it expires by itself");
	start_server();
	for (int i = 0; i < 100 && !smv_leases_hold(&leases, &backing); i++)
		smv_sleep_ms(50);
	cr_assert(leases.leases[0].held);
	end_server(SIGKILL);
	cr_assert_eq(smv_leases_release_try(&leases, &backing), 1);
	cr_assert_eq(smv_leases_release_try(&leases, &backing), 1);
	start_server();
	for (int i = 0; i < 300 && left; i++) {
		left = smv_leases_release_try(&leases, &backing);
		smv_sleep_ms(20);
	}
	cr_assert_eq(left, 0);
	cr_assert_not(leases.leases[0].created);
	cr_assert_eq(smv_leases_release_try(&leases, &backing), 0);
}

/* --- more room ---------------------------------------------------------------------------- */

Test(leases, the_least_budget_is_the_one_for_which_the_room_suffices)
{
	const uint64_t ram = 4096 * MIB, extent = SMV_EXTENT_BYTES;

	for (uint64_t budget = 0; budget <= ram; budget += 7 * MIB + 4096) {
		uint64_t room = smv_leases_room(ram, budget);
		uint64_t least = smv_leases_least_budget(ram, room);

		cr_assert_leq(least, budget);
		cr_assert_leq(smv_leases_room(ram, least), room);
		cr_assert(least == 0 || smv_leases_room(ram, least - 1) > room);
		/* With less room it is more. */
		cr_assert_leq(least, smv_leases_least_budget(ram, room - extent));
	}
	cr_assert_eq(smv_leases_least_budget(ram, 0), ram);
	cr_assert_eq(smv_leases_least_budget(ram, 2 * ram), 0);
}

static void grow(struct smv_leases_growth *growth, uint64_t bytes)
{
	struct smv_error err = {0};

	cr_assert_eq(smv_leases_grow(&leases, "tests", bytes, growth, &err), 0, "%s", err.message);
}

/* In the epoch that a takeover has raised. */
static void raise_epoch(void)
{
	struct smv_error err = {0};

	cr_assert(smv_leases_hold(&leases, &backing));
	write_pages(10);
	smv_remote_close(remote);
	cr_assert_eq(smv_leases_fence(&leases, &backing, &err), 0, "%s", err.message);
	cr_assert_eq(leases.epoch, 2);
	open_remote();
}

Test(leases, that_are_added_lie_behind_the_others)
{
	struct smv_leases_growth growth;
	struct smv_error err = {0};

	raise_epoch();
	grow(&growth, 16 * MIB);
	/* All the time the old ones are in use. */
	cr_assert_eq(wrong_pages(10), 0);
	cr_assert(smv_leases_hold(&growth.all, &growth.all_backing));
	smv_remote_close(remote);
	smv_leases_adopt(&leases, &backing, &growth);
	cr_assert_eq(leases.nr, 2);
	cr_assert(leases.leases[0].held && leases.leases[1].held);
	cr_assert_eq(backing.nr_extents * SMV_EXTENT_PAGES, 2 * NR_SLOTS);
	open_remote();
	cr_assert_eq(wrong_pages(10), 0);
	first_slot = NR_SLOTS;
	write_pages(50);
	first_slot = 0;
	cr_assert_eq(wrong_pages(10), 0);
	first_slot = NR_SLOTS;
	cr_assert_eq(wrong_pages(50), 0);
	restart_server();
	notice_deaths(2);
	cr_assert(mends(8000, &err), "%s", err.message);
	cr_assert_eq(wrong_pages(50), 0);
	first_slot = 0;
	cr_assert_eq(wrong_pages(10), 0);
}

Test(leases, that_are_added_are_read_back_with_the_others)
{
	struct smv_leases_growth growth;
	struct smv_leases read_leases;
	struct smv_backing read_backing;
	struct smv_error err = {0};
	json_t *json;

	raise_epoch();
	grow(&growth, 16 * MIB);
	json = smv_leases_to_json(&growth.all, &growth.all_backing);
	cr_assert_eq(smv_leases_from_json(
			     json, backing.transport, 2000, &read_leases, &read_backing, &err),
		0, "%s", err.message);
	cr_assert_eq(read_leases.nr, 2);
	cr_assert_str_eq(read_leases.leases[0].id, leases.leases[0].id);
	cr_assert_str_eq(read_leases.leases[1].id, growth.more.leases[0].id);
	cr_assert_not(read_leases.leases[1].held);
	json_decref(json);
	smv_leases_forget(&read_leases, &read_backing);
	smv_leases_release_try(&growth.more, &growth.more_backing);
	smv_leases_growth_free(&growth);
	cr_assert_eq(leases_at(leases.leases[0].client), 1);
	cr_assert_eq(wrong_pages(10), 0);
}

Test(leases, too_little_room_leaves_none_behind)
{
	struct smv_leases_growth growth;
	struct smv_error err = {0};

	write_pages(10);
	cr_assert_lt(smv_leases_grow(&leases, "tests", 50 * MIB, &growth, &err), 0);
	cr_assert_eq(err.code, SMV_NO_ROOM, "%s", err.message);
	cr_assert(strstr(err.message, "needed 50.0 MiB") && strstr(err.message, "free 48.0 MiB"),
		"%s", err.message);
	cr_assert_eq(leases_at(leases.leases[0].client), 1);
	cr_assert_eq(wrong_pages(10), 0);
}

Test(leases, more_than_a_vm_may_have_are_refused)
{
	struct smv_leases_growth growth;
	struct smv_error err = {0};

	smv_remote_close(remote);
	while (leases.nr < SMV_SUB_HOSTS_MAX && leases.nr < 20) {
		grow(&growth, SMV_EXTENT_BYTES);
		smv_leases_adopt(&leases, &backing, &growth);
	}
	leases.nr = SMV_SUB_HOSTS_MAX;
	cr_assert_lt(smv_leases_grow(&leases, "tests", SMV_EXTENT_BYTES, &growth, &err), 0);
	cr_assert_eq(err.code, SMV_REFUSED);
	cr_assert(strstr(err.message, "limit of 64"), "%s", err.message);
	leases.nr = 20;
	open_remote();
	write_pages(10);
	cr_assert_eq(wrong_pages(10), 0);
}

/* What a pager does that finds leases which its predecessor had not used yet. */
Test(leases, that_were_never_used_can_be_split_off)
{
	struct smv_leases_growth growth;
	struct smv_leases rest;
	struct smv_backing rest_backing;

	raise_epoch();
	grow(&growth, 16 * MIB);
	cr_assert(smv_leases_hold(&growth.all, &growth.all_backing));
	smv_remote_close(remote);
	smv_leases_adopt(&leases, &backing, &growth);
	backing.nr_extents = NR_SLOTS / SMV_EXTENT_PAGES;
	cr_assert_eq(smv_leases_split(&leases, &backing, 1, &rest, &rest_backing), 0);
	cr_assert_eq(leases.nr, 1);
	cr_assert_eq(rest.nr, 1);
	cr_assert_eq(leases_at(leases.leases[0].client), 2);
	cr_assert_eq(smv_leases_release(&rest, &rest_backing), 0);
	smv_backing_free(&rest_backing);
	cr_assert_eq(leases_at(leases.leases[0].client), 1);
	open_remote();
	cr_assert_eq(wrong_pages(10), 0);
}
