/* SPDX-License-Identifier: Apache-2.0 */
/* libsmemv as its users have it: the shared library, and memserverds in processes of their own. */
#include "client/smemv.h"
#include "common/clock.h"
#include "rpc/rpc.h"
#include "smemv/v1/memserver.pb-c.h"
#include "daemon.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define PAGE 4096u
#define BUDGET SMEMV_BUDGET_MIN
#define BATCH_BYTES (64 * PAGE) /* what residency may exceed the budget by */
#define SERVERS 2

static char dir[] = "/tmp/smemv-lib-XXXXXX";
static pid_t servers[SERVERS];
static char addresses[SERVERS][80];
static const char *server_list[SERVERS];
static int server_log[SERVERS];

/* LeakSanitizer cannot judge a forked child, nor a process with threads that stand still. */
static bool ignore_leaks;
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
	return ignore_leaks;
}

/* --- servers ------------------------------------------------------------------------------ */

static char *state_dir(int i, char *path, size_t len)
{
	snprintf(path, len, "/dev/shm/smemv/memserverd-test-%d-%d", (int)getpid(), i);
	return path;
}

static void start_server(int i)
{
	char name[40];
	int fds[2];

	snprintf(name, sizeof(name), "test-%d-%d", (int)getpid(), i);
	cr_assert_eq(pipe(fds), 0);
	servers[i] = fork();
	if (servers[i] == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		dup2(fds[1], STDERR_FILENO);
		close(fds[0]);
		close(fds[1]);
		execl(SMEMV_TEST_MEMSERVERD, "memserverd", "--name", name, "--memory", "128M",
			"--listen", addresses[i], "--data", "tcp:127.0.0.1:0", (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	wait_ready(fds[0]);
	/* Stays open: the server must be able to log. */
	close(server_log[i]);
	server_log[i] = fds[0];
}

static void start_servers(void)
{
	cr_assert(mkdtemp(dir));
	for (int i = 0; i < SERVERS; i++) {
		server_log[i] = -1;
		snprintf(addresses[i], sizeof(addresses[i]), "unix:%s/%d", dir, i);
		server_list[i] = addresses[i];
		start_server(i);
	}
}

static void kill_server(int i)
{
	kill(servers[i], SIGKILL);
	waitpid(servers[i], NULL, 0);
}

/* It holds leases still where a test has lost its memory. */
static void remove_state(int i)
{
	char path[100], command[200];

	snprintf(command, sizeof(command), "rm -rf '%s'", state_dir(i, path, sizeof(path)));
	cr_assert_eq(system(command), 0);
	rmdir("/dev/shm/smemv");
}

static void stop_servers(void)
{
	for (int i = 0; i < SERVERS; i++) {
		kill(servers[i], SIGCONT);
		kill(servers[i], SIGTERM);
		waitpid(servers[i], NULL, 0);
		remove_state(i);
	}
	rmdir(dir);
}

/* Leases in use over all servers; those that are held, or all. */
static size_t count_leases(bool held)
{
	size_t n = 0;

	smv_rpc_init();
	for (int i = 0; i < SERVERS; i++) {
		Smemv__V1__ListLeasesRequest request = SMEMV__V1__LIST_LEASES_REQUEST__INIT;
		Smemv__V1__ListLeasesResponse *response;
		struct smv_rpc_client *client;
		struct smv_error err = {0};
		struct smv_addr addr;

		cr_assert_eq(smv_addr_parse(addresses[i], false, &addr, &err), 0);
		cr_assert_eq(smv_rpc_client_create(&addr, &client), 0);
		cr_assert_eq(smv_rpc_client_call(client, &smemv__v1__mem_server__descriptor,
				     "ListLeases", &request.base, (ProtobufCMessage **)&response,
				     5000, false, &err),
			0, "%s", err.message);
		for (size_t k = 0; k < response->n_leases; k++) {
			Smemv__V1__LeaseState state = response->leases[k]->state;

			if (held ? state == SMEMV__V1__LEASE_STATE__LEASE_STATE_HELD
				 : state != SMEMV__V1__LEASE_STATE__LEASE_STATE_RELEASING)
				n++;
		}
		smv_rpc_message_free(&response->base);
		smv_rpc_client_destroy(client);
	}
	smv_rpc_shutdown();
	return n;
}

/* --- memory ------------------------------------------------------------------------------- */

static struct smemv *open_all(unsigned int timeout_ms)
{
	struct smemv_options options = {
		.servers = server_list, .nr_servers = SERVERS, .timeout_ms = timeout_ms};
	struct smemv_error err = {{0}, {0}};
	struct smemv *ctx;

	cr_assert_eq(smemv_open(&options, &ctx, &err), 0, "%s", err.message);
	return ctx;
}

static struct smemv_region *map(struct smemv *ctx, size_t size, size_t budget)
{
	struct smemv_error err = {{0}, {0}};
	struct smemv_region *region;

	cr_assert_eq(smemv_map(ctx, size, budget, &region, &err), 0, "%s", err.message);
	cr_assert_eq((uintptr_t)smemv_addr(region) % PAGE, 0);
	return region;
}

static uint64_t *page_of(struct smemv_region *region, size_t page)
{
	return (uint64_t *)smemv_addr(region) + page * (PAGE / 8);
}

/* Every seventh page is never written. */
static uint64_t pattern(size_t page, uint64_t version)
{
	return page % 7 == 3 ? 0 : (page * 0x9e3779b97f4a7c15u) ^ version;
}

static void write_all(struct smemv_region *region, uint64_t version)
{
	for (size_t p = 0; p < smemv_size(region) / PAGE; p++)
		for (unsigned int w = 0; w < PAGE / 8 && pattern(p, version); w += 37)
			page_of(region, p)[w] = pattern(p, version);
}

/* Pages that do not hold what they should. */
static size_t wrong_pages(struct smemv_region *region, uint64_t version)
{
	size_t wrong = 0;

	for (size_t p = 0; p < smemv_size(region) / PAGE; p++) {
		uint64_t differ = 0;

		for (unsigned int w = 0; w < PAGE / 8; w++)
			differ |= page_of(region, p)[w] ^ (w % 37 ? 0 : pattern(p, version));
		wrong += differ != 0;
	}
	return wrong;
}

Test(smemv, holds_three_times_its_budget, .init = start_servers, .fini = stop_servers)
{
	struct smemv *ctx = open_all(0);
	struct smemv_region *region = map(ctx, 48 * MIB - 100, BUDGET);
	struct smemv_stats st;

	cr_assert_eq(smemv_size(region), 48 * MIB);
	cr_assert_eq(count_leases(true), SERVERS);
	write_all(region, 1);
	cr_assert_eq(wrong_pages(region, 1), 0);
	write_all(region, 2);
	cr_assert_eq(wrong_pages(region, 2), 0);
	smemv_stats(region, &st);
	cr_assert_eq(st.size_bytes, 48 * MIB);
	cr_assert_eq(st.budget_bytes, BUDGET);
	cr_assert_leq(st.resident_bytes, BUDGET + BATCH_BYTES);
	cr_assert_geq(st.resident_bytes, BUDGET / 2);
	cr_assert_eq(st.pages_zero + st.pages_local + st.pages_remote, 48 * MIB / PAGE);
	cr_assert_eq(st.pages_lost, 0);
	/* Three passes after the first met two thirds of the pages remote. */
	cr_assert_geq(st.page_ins, 3 * 16 * MIB / PAGE);
	cr_assert_geq(st.bytes_read, st.page_ins * PAGE);
	cr_assert_geq(st.evictions, st.page_ins);
	cr_assert_leq(st.evictions_clean, st.evictions);
	cr_assert_geq(st.bytes_written, 32 * MIB / 2);
	cr_assert_geq(st.faults, st.page_ins + st.zero_fills);
	cr_assert(st.latency_ns_p50 && st.latency_ns_p50 <= st.latency_ns_p99 &&
		  st.latency_ns_p99 <= st.latency_ns_max);
	cr_assert_str_eq(st.transport, "tcp");
	cr_assert_str_empty(st.trouble);
	smemv_unmap(region);
	cr_assert_eq(count_leases(false), 0);
	smemv_close(ctx);
}

Test(smemv, leases_that_could_not_be_held_at_once_are_later, .init = start_servers,
	.fini = stop_servers)
{
	struct smemv *ctx;

	setenv("SMEMV_FAULT", "smemv-skip-hold", 1); /* in test builds */
	ctx = open_all(0);
	map(ctx, 24 * MIB, BUDGET);
	for (int i = 0; i < 300 && count_leases(true) < SERVERS; i++)
		smv_sleep_ms(10);
	cr_assert_eq(count_leases(true), SERVERS);
	smemv_close(ctx);
	cr_assert_eq(count_leases(false), 0);
}

static void *work(void *region)
{
	write_all(region, (uintptr_t)region);
	return (void *)wrong_pages(region, (uintptr_t)region);
}

Test(smemv, two_regions_do_not_disturb_each_other, .init = start_servers, .fini = stop_servers)
{
	struct smemv *ctx = open_all(0);
	struct smemv_region *regions[2] = {map(ctx, 24 * MIB, BUDGET), map(ctx, 24 * MIB, BUDGET)};
	pthread_t threads[2];
	struct smemv_stats st;
	void *wrong;

	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, work, regions[i]), 0);
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], &wrong);
		cr_assert_null(wrong);
		smemv_stats(regions[i], &st);
		cr_assert(st.page_ins && st.evictions);
	}
	cr_assert_eq(count_leases(false), 2 * SERVERS);
	smemv_unmap(regions[0]);
	cr_assert_eq(count_leases(true), SERVERS);
	cr_assert_eq(wrong_pages(regions[1], (uintptr_t)regions[1]), 0);
	smemv_close(ctx);
	cr_assert_eq(count_leases(false), 0);
}

Test(smemv, a_budget_for_all_of_it_never_evicts, .init = start_servers, .fini = stop_servers)
{
	struct smemv *ctx = open_all(0);
	struct smemv_region *region = map(ctx, BUDGET, BUDGET);
	struct smemv_stats st;

	write_all(region, 1);
	cr_assert_eq(wrong_pages(region, 1), 0);
	smemv_stats(region, &st);
	cr_assert_eq(st.evictions, 0);
	cr_assert_eq(st.resident_bytes, BUDGET);
	smemv_close(ctx);
}

Test(smemv, a_large_region_is_mapped_at_once, .init = start_servers, .fini = stop_servers)
{
	struct smemv *ctx = open_all(0);
	uint64_t start = smv_now_ns();
	struct smemv_region *region = map(ctx, 1024 * MIB, 1024 * MIB - 32 * MIB);
	struct smemv_stats st;

	cr_assert_lt(smv_now_ns() - start, SMV_NS_PER_S);
	smemv_stats(region, &st);
	cr_assert_eq(st.pages_zero, 1024 * MIB / PAGE);
	cr_assert_eq(st.resident_bytes, 0);
	page_of(region, 1024 * MIB / PAGE - 1)[5] = 7;
	cr_assert_eq(page_of(region, 1024 * MIB / PAGE - 1)[5], 7);
	smemv_close(ctx);
}

/* --- errors ------------------------------------------------------------------------------- */

Test(smemv, too_little_room_is_refused_with_the_numbers, .init = start_servers,
	.fini = stop_servers)
{
	struct smemv *ctx = open_all(0);
	struct smemv_region *region = (void *)1;
	struct smemv_error err;

	cr_assert_eq(smemv_map(ctx, 1024 * MIB, 64 * MIB, &region, &err), -ENOSPC);
	cr_assert_null(region);
	/* 960 MiB + 64 MiB of slack, of two times 128. */
	cr_assert(strstr(err.message, "1.0 GiB") && strstr(err.message, "256 MiB"), "%s",
		err.message);
	cr_assert(strstr(err.message, addresses[1]), "%s", err.message);
	cr_assert(strstr(err.hint, "budget"), "%s", err.hint);
	cr_assert_eq(smemv_map(ctx, 64 * MIB, BUDGET - 1, &region, &err), -EINVAL);
	cr_assert(strstr(err.hint, "16 MiB"), "%s", err.hint);
	cr_assert_eq(smemv_map(ctx, 0, BUDGET, &region, NULL), -EINVAL);
	cr_assert_eq(count_leases(false), 0);
	smemv_close(ctx);
}

static int try_open(const char *server, const char *transport, struct smemv_error *err)
{
	struct smemv_options options = {
		.servers = &server, .nr_servers = 1, .transport = transport, .timeout_ms = 500};
	struct smemv *ctx = (void *)1;
	int r = smemv_open(&options, &ctx, err);

	cr_assert(r == 0 || !ctx);
	if (r == 0)
		smemv_close(ctx);
	return r;
}

Test(smemv, a_wrong_address_is_an_error_within_the_time_out)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(sin);
	struct smemv_error err;
	uint64_t start;
	char addr[40];
	int r;

	cr_assert(strlen(smemv_version()) > 0);
	cr_assert_eq(try_open("no address", NULL, &err), -EINVAL);
	cr_assert_eq(try_open("192.0.2.1:7000", NULL, &err), -EINVAL);
	cr_assert(strstr(err.hint, "insecure"), "%s", err.hint);
	/* Bound, but nobody listens yet. */
	cr_assert_eq(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&sin, &len), 0);
	snprintf(addr, sizeof(addr), "127.0.0.1:%u", ntohs(sin.sin_port));
	start = smv_now_ns();
	cr_assert_eq(try_open(addr, NULL, &err), -ECONNREFUSED, "%s", err.message);
	cr_assert(strstr(err.message, addr) && err.hint[0], "%s", err.message);
	/* Somebody who takes the connection and says nothing. */
	cr_assert_eq(listen(fd, 8), 0);
	r = try_open(addr, NULL, &err);
	cr_assert(r == -ETIMEDOUT || r == -ECONNREFUSED, "%d: %s", r, err.message);
	cr_assert_lt(smv_now_ns() - start, 2 * SMV_NS_PER_S);
	close(fd);
}

Test(smemv, an_unknown_transport_or_log_level_is_refused, .init = start_servers,
	.fini = stop_servers)
{
	struct smemv_options options = {
		.servers = server_list, .nr_servers = 1, .log_level = "loud"};
	struct smemv_error err;
	struct smemv *ctx;

	cr_assert_lt(try_open(addresses[0], "pigeon", &err), 0);
	cr_assert(strstr(err.message, "pigeon"), "%s", err.message);
	cr_assert_eq(try_open(addresses[0], "tcp", &err), 0, "%s", err.message);
	cr_assert_eq(smemv_open(&options, &ctx, &err), -EINVAL);
	options.nr_servers = 0;
	cr_assert_eq(smemv_open(&options, &ctx, &err), -EINVAL);
}

/* --- servers that stop, signals, processes ------------------------------------------------ */

static void *read_all(void *region)
{
	return (void *)wrong_pages(region, 9);
}

Test(smemv, threads_wait_for_a_server_that_is_away, .init = start_servers, .fini = stop_servers)
{
	struct smemv *ctx = open_all(2000);
	struct smemv_region *region = map(ctx, 24 * MIB, BUDGET);
	struct smemv_stats st = {0};
	pthread_t thread;
	void *wrong;

	write_all(region, 9);
	for (int i = 0; i < SERVERS; i++)
		kill(servers[i], SIGSTOP);
	cr_assert_eq(pthread_create(&thread, NULL, read_all, region), 0);
	for (int i = 0; i < 3000 && !st.trouble[0]; i++) {
		smv_sleep_ms(10);
		smemv_stats(region, &st);
	}
	cr_assert(strstr(st.trouble, dir), "trouble: '%s'", st.trouble);
	cr_assert_eq(st.pages_lost, 0);
	for (int i = 0; i < SERVERS; i++)
		kill(servers[i], SIGCONT);
	pthread_join(thread, &wrong);
	cr_assert_null(wrong);
	for (int i = 0; i < 3000 && st.trouble[0]; i++) {
		smv_sleep_ms(10);
		smemv_stats(region, &st);
	}
	cr_assert_str_empty(st.trouble);
	smemv_close(ctx);
	cr_assert_eq(count_leases(false), 0);
}

#define KILLS 20

static void sleep_a_while(unsigned int *seed)
{
	smv_sleep_ms(20 + (unsigned int)rand_r(seed) % 400);
}

/* Kill and start servers while the other thread works. */
static void kill_at_random(struct smemv_region *region, unsigned int seed)
{
	for (int n = 0; n < KILLS; n++) {
		int i = (int)((unsigned int)rand_r(&seed) % SERVERS);
		struct smemv_stats st;

		sleep_a_while(&seed);
		kill_server(i);
		if (rand_r(&seed) % 2)
			sleep_a_while(&seed);
		start_server(i);
		smemv_stats(region, &st);
		cr_assert_eq(st.pages_lost, 0, "after %d kills", n + 1);
	}
}

struct worker {
	struct smemv_region *region;
	atomic_bool stop;
	atomic_size_t passes, wrong;
};

static void *work_until_told(void *arg)
{
	struct worker *w = arg;

	for (uint64_t version = 1; !atomic_load(&w->stop); version++) {
		write_all(w->region, version);
		atomic_fetch_add(&w->wrong, wrong_pages(w->region, version));
		atomic_fetch_add(&w->passes, 1);
	}
	return NULL;
}

Test(smemv, nothing_is_lost_when_servers_are_killed_and_started_again, .init = start_servers,
	.fini = stop_servers, .timeout = 100)
{
	struct smemv *ctx = open_all(1000);
	struct worker w = {.region = map(ctx, 32 * MIB, BUDGET)};
	const char *given = getenv("SMEMV_TEST_SEED");
	unsigned int seed = given ? (unsigned int)atoi(given) : (unsigned int)smv_now_ns();
	struct smemv_stats st;
	pthread_t thread;

	printf("kills with SMEMV_TEST_SEED=%u\n", seed);
	cr_assert_eq(pthread_create(&thread, NULL, work_until_told, &w), 0);
	kill_at_random(w.region, seed);
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	smemv_stats(w.region, &st);
	printf("%zu passes, %zu wrong pages, %lu page-ins, %lu evictions\n", atomic_load(&w.passes),
		atomic_load(&w.wrong), (unsigned long)st.page_ins, (unsigned long)st.evictions);
	cr_assert_eq(atomic_load(&w.wrong), 0);
	cr_assert_eq(st.pages_lost, 0);
	cr_assert_geq(atomic_load(&w.passes), 1);
	cr_assert_geq(st.page_ins, 1000);
	smemv_close(ctx);
	cr_assert_eq(count_leases(false), 0);
}

static struct {
	struct smemv_region *region;
	atomic_size_t wrong;
	atomic_bool done;
} reader;

static void *read_what_is_lost(void *arg)
{
	(void)arg;
	for (size_t p = 0; p < smemv_size(reader.region) / PAGE; p++)
		if (page_of(reader.region, p)[0] != pattern(p, 9))
			atomic_fetch_add(&reader.wrong, 1);
	atomic_store(&reader.done, true);
	return NULL;
}

Test(smemv, what_a_server_has_lost_is_told_and_never_read, .init = start_servers,
	.fini = stop_servers, .timeout = 60)
{
	struct smemv *ctx = open_all(500);
	struct smemv_stats st = {0};
	pthread_t thread;

	reader.region = map(ctx, 32 * MIB, BUDGET);
	write_all(reader.region, 9);
	kill_server(0);
	remove_state(0);
	start_server(0);
	cr_assert_eq(pthread_create(&thread, NULL, read_what_is_lost, NULL), 0);
	for (int i = 0; i < 2000 && !strstr(st.trouble, "has lost"); i++) {
		smv_sleep_ms(10);
		smemv_stats(reader.region, &st);
	}
	cr_assert(strstr(st.trouble, addresses[0]), "trouble: '%s'", st.trouble);
	smv_sleep_ms(1000);
	cr_assert_not(atomic_load(&reader.done), "a thread that needs a lost page waits");
	cr_assert_eq(atomic_load(&reader.wrong), 0);
	/* The page as such is not spoilt: another server may have come in between. */
	smemv_stats(reader.region, &st);
	cr_assert_eq(st.pages_lost, 0);
	/* The thread waits until the process ends. */
	ignore_leaks = true;
}

static struct smemv_region *alarm_region;
static volatile sig_atomic_t alarms, alarms_elsewhere;
static pid_t alarm_tid;

static void touch_on_alarm(int sig)
{
	size_t pages = smemv_size(alarm_region) / PAGE;

	(void)sig;
	alarms++;
	alarms_elsewhere += (pid_t)syscall(SYS_gettid) != alarm_tid;
	/* A page that is never written. */
	(void)*(volatile uint64_t *)page_of(
		alarm_region, ((size_t)alarms * 7919 % (pages / 7)) * 7 + 3);
}

Test(smemv, handlers_of_signals_run_in_no_thread_of_the_library, .init = start_servers,
	.fini = stop_servers)
{
	struct itimerval every_ms = {{0, 1000}, {0, 1000}}, off = {{0, 0}, {0, 0}};
	struct smemv *ctx = open_all(0);
	sigset_t before, after;

	sigprocmask(SIG_SETMASK, NULL, &before);
	alarm_region = map(ctx, 24 * MIB, BUDGET);
	sigprocmask(SIG_SETMASK, NULL, &after);
	cr_assert_eq(sigismember(&after, SIGALRM), sigismember(&before, SIGALRM));
	alarm_tid = (pid_t)syscall(SYS_gettid);
	signal(SIGALRM, touch_on_alarm);
	setitimer(ITIMER_REAL, &every_ms, NULL);
	write_all(alarm_region, 1);
	cr_assert_eq(wrong_pages(alarm_region, 1), 0);
	/* While this thread takes none, nobody does. */
	sigaddset(&after, SIGALRM);
	sigprocmask(SIG_SETMASK, &after, NULL);
	cr_assert_eq(wrong_pages(alarm_region, 1), 0);
	setitimer(ITIMER_REAL, &off, NULL);
	sigprocmask(SIG_SETMASK, &before, NULL);
	cr_assert_geq(alarms, 10);
	cr_assert_eq(alarms_elsewhere, 0);
	smemv_close(ctx);
}

static int exit_code(pid_t child)
{
	int status = -1;

	for (int i = 0; i < 4000 && waitpid(child, &status, WNOHANG) == 0; i++)
		smv_sleep_ms(10);
	if (status == -1)
		kill(child, SIGKILL);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(smemv, a_child_that_leaves_the_region_alone_does_no_harm, .init = start_servers,
	.fini = stop_servers)
{
	struct smemv *ctx = open_all(0);
	struct smemv_region *region = map(ctx, 24 * MIB, BUDGET);
	pid_t child;

	write_all(region, 4);
	child = fork();
	if (child == 0) {
		unsigned char here;
		/* The region does not exist here. */
		bool gone = mincore(smemv_addr(region), PAGE, &here) < 0 && errno == ENOMEM;

		ignore_leaks = true;
		smemv_unmap(region); /* nothing happens */
		smemv_close(ctx);
		exit(gone ? 0 : 1);
	}
	cr_assert_eq(wrong_pages(region, 4), 0);
	cr_assert_eq(exit_code(child), 0);
	cr_assert_eq(count_leases(true), SERVERS);
	cr_assert_eq(wrong_pages(region, 4), 0);
	smemv_close(ctx);
}

_Noreturn static void *touch_for_ever(void *region)
{
	for (size_t p = 0;; p++)
		page_of(region, p % (smemv_size(region) / PAGE))[0]++;
}

Test(smemv, leases_go_when_the_process_exits, .init = start_servers, .fini = stop_servers)
{
	pid_t child = fork();

	if (child == 0) {
		struct smemv_region *region = map(open_all(0), 24 * MIB, BUDGET);
		pthread_t thread;

		ignore_leaks = true;
		write_all(region, 1);
		if (pthread_create(&thread, NULL, touch_for_ever, region) ||
			count_leases(false) == 0)
			_exit(3);
		exit(7);
	}
	cr_assert_eq(exit_code(child), 7);
	cr_assert_eq(count_leases(false), 0);
}

/* --- the example -------------------------------------------------------------------------- */

static int run_sort(const char *size, const char *transport)
{
	pid_t child = fork();

	if (child == 0) {
		execl(SMEMV_TEST_SORT, "smemv-sort", "--server", addresses[0], "--server",
			addresses[1], "--size", size, "--budget", "16M", "--transport", transport,
			"--threads", "2", "--seed", "77", (char *)NULL);
		_exit(127);
	}
	return exit_code(child);
}

Test(smemv, the_example_sorts_four_times_its_budget, .init = start_servers, .fini = stop_servers)
{
	cr_assert_eq(run_sort("64M", "tcp"), 0);
	cr_assert_eq(count_leases(false), 0);
	cr_assert_eq(run_sort("64G", "tcp"), 1);
	cr_assert_eq(run_sort("64X", "tcp"), 2);
}
