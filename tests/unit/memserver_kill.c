/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memserverds that are killed again and again under a VM that pages: memserver_kill [SEED [KILLS
 * [wrong]]].
 *
 * Two memserverds with their files on tmpfs, leases on both, and in this process the pager and the
 * VM (threads that read, verify and rewrite pages). They die by SIGKILL at random moments, also
 * both, and also while they start; among that they are ended by SIGTERM, as for an upgrade, and
 * stopped for a while. Each time the same command line starts them again.
 *
 * wrong: one comes back with other memory, which a fault point makes the pager take for the right
 * one: expected is that pages are found lost, and still no mismatch.
 */
#include "client/leases.h"
#include "client/remote.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "common/log.h"
#include "daemon.h"
#include "vm_stub.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NR_PAGES 12288u
#define BUDGET 4096u
#define NR_EXTENTS 24u
#define KILLS_MAX 1000u
#define RENEW_NS (10 * SMV_NS_PER_S)
#define TIMEOUT_MS 2000

struct server {
	char address[80], state_dir[80], name[16];
	pid_t pid;
	int log;           /* what it logs; open as long as it runs */
	const char *fault; /* SMEMV_FAULT of the next one */
};

static char dir[] = "/dev/shm/smemv-servers-XXXXXX";
static struct server servers[STUB_HOSTS];
static uint64_t random_state;

static uint64_t rnd(uint64_t below)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (random_state >> 33) % below;
}

/* --- the servers -------------------------------------------------------------------------- */

static void run_server(const struct server *s, int log_fd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	unsetenv("SMEMV_FAULT");
	if (s->fault)
		setenv("SMEMV_FAULT", s->fault, 1);
	dup2(log_fd, STDERR_FILENO);
	execl(SMEMV_TEST_MEMSERVERD, "memserverd", "--name", s->name, "--memory", "32M",
		"--state-dir", s->state_dir, "--listen", s->address, "--data", "tcp:127.0.0.1:0",
		(char *)NULL);
	_exit(127);
}

static void server_start(struct server *s)
{
	int fds[2];

	must(pipe(fds) == 0);
	s->pid = fork();
	must(s->pid >= 0);
	if (s->pid == 0) {
		close(fds[0]);
		run_server(s, fds[1]);
	}
	close(fds[1]);
	s->log = fds[0];
	s->fault = NULL;
}

static void server_end(struct server *s, int sig)
{
	int status;

	must(kill(s->pid, sig) == 0 && waitpid(s->pid, &status, 0) == s->pid);
	must(sig != SIGTERM || status == 0);
	close(s->log);
}

static void server_again(struct server *s, int sig)
{
	server_end(s, sig);
	/* A host that comes back at once, or after a while. */
	usleep((useconds_t)rnd(2) * (useconds_t)rnd(200000));
	server_start(s);
	wait_ready(s->log);
}

static void servers_create(void)
{
	must(mkdtemp(dir));
	for (int i = 0; i < STUB_HOSTS; i++) {
		struct server *s = &servers[i];

		snprintf(s->name, sizeof(s->name), "%d", i);
		snprintf(s->address, sizeof(s->address), "unix:%s/sock-%d", dir, i);
		snprintf(s->state_dir, sizeof(s->state_dir), "%s/%d", dir, i);
		server_start(s);
		wait_ready(s->log);
	}
}

static void servers_destroy(void)
{
	char command[100];

	for (int i = 0; i < STUB_HOSTS; i++)
		server_end(&servers[i], SIGTERM);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	must(system(command) == 0);
}

/* --- leases of them ------------------------------------------------------------------------ */

static void leases_create(struct smv_leases *leases, struct smv_backing *backing)
{
	const char *addresses[STUB_HOSTS] = {servers[0].address, servers[1].address};
	const struct smv_transport_wish wish = {.names = "tcp"};
	struct smv_error err = {0};
	char reason[200];

	if (smv_leases_create(leases, backing, addresses, STUB_HOSTS, "tests",
		    NR_EXTENTS * SMV_EXTENT_BYTES, &wish, false, TIMEOUT_MS, reason, sizeof(reason),
		    &err) < 0)
		fprintf(stderr, "%s\n", err.message);
	must(err.code == SMV_OK && smv_leases_hold(leases, backing));
}

/* --- the kills ---------------------------------------------------------------------------- */

struct tally {
	unsigned int kills, both, starting, terms, stops;
	uint64_t stalls[2 * KILLS_MAX]; /* for each event, the longest that a thread waited */
	unsigned int nr_stalls;
};

static void hurt(unsigned int n, struct tally *t)
{
	struct server *s = &servers[rnd(STUB_HOSTS)];

	if (n % 7 == 6) {
		server_again(s, SIGTERM);
		t->terms++;
	} else if (n % 7 == 5) {
		/* Now and then longer than a request may take. */
		must(kill(s->pid, SIGSTOP) == 0);
		smv_sleep_ms(t->stops++ % 3 == 2 ? TIMEOUT_MS + 500 : 50 + (unsigned int)rnd(500));
		must(kill(s->pid, SIGCONT) == 0);
	} else if (n % 7 == 4) {
		server_end(&servers[0], SIGKILL);
		server_again(&servers[1], SIGKILL);
		server_start(&servers[0]);
		wait_ready(servers[0].log);
		t->kills += 2;
		t->both++;
	} else if (n % 7 == 2) {
		server_end(s, SIGKILL);
		server_start(s);
		usleep((useconds_t)rnd(60000));
		server_again(s, SIGKILL);
		t->kills += 2;
		t->starting++;
	} else {
		server_again(s, SIGKILL);
		t->kills++;
	}
}

/* Mostly until the pager has all that it needs again. */
static void run_on(struct stub_lab *lab, bool wait)
{
	uint64_t end = smv_now_ns() + 10 * SMV_NS_PER_S;

	stub_watch(lab, 20 + (unsigned int)rnd(200));
	while (wait && lab->stats.trouble[0] && smv_now_ns() < end)
		stub_watch(lab, 20);
	if (wait)
		stub_watch(lab, 50 + (unsigned int)rnd(100));
}

static void kill_servers(struct stub_lab *lab, unsigned int kills, struct smv_leases *leases,
	struct smv_backing *backing, struct tally *t)
{
	uint64_t renewed = smv_now_ns();

	for (unsigned int n = 0; t->kills < kills; n++) {
		run_on(lab, rnd(4) > 0);
		if (n)
			t->stalls[t->nr_stalls++] = atomic_exchange(&lab->slowest_ns, 0);
		else
			lab->slowest_ns = 0;
		hurt(n, t);
		if (smv_now_ns() > renewed + RENEW_NS) {
			smv_leases_renew(leases, backing);
			renewed = smv_now_ns();
		}
	}
	run_on(lab, true);
	t->stalls[t->nr_stalls++] = lab->slowest_ns;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* The quantile of @percent in ms. */
static double stall(const struct tally *t, unsigned int percent)
{
	return (double)t->stalls[(t->nr_stalls - 1) * percent / 100] / 1e6;
}

/* One comes back with other memory. Threads that touch what was there never come back. */
static int expect_losses(struct stub_lab *lab)
{
	uint64_t end = smv_now_ns() + 20 * SMV_NS_PER_S;

	run_on(lab, true);
	servers[0].fault = "arena-forget,arena-other-incarnation";
	server_again(&servers[0], SIGKILL);
	while (smv_pagemap_count(&lab->map, SMV_PAGE_LOST) == 0 && smv_now_ns() < end)
		stub_watch(lab, 20);
	printf("%lu pages are lost, %lu mismatches; %s\n",
		smv_pagemap_count(&lab->map, SMV_PAGE_LOST), lab->mismatches, lab->trouble);
	fflush(stdout);
	servers_destroy();
	return smv_pagemap_count(&lab->map, SMV_PAGE_LOST) && !lab->mismatches ? 0 : 1;
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, lost;
	unsigned int kills = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 0) : 20, faults;
	bool wrong = argc > 3 && strcmp(argv[3], "wrong") == 0, ok;
	struct stub_options o = {.seed = seed,
		.nr_blocks = seed & 1 ? 2 : 1,
		.nr_pages = NR_PAGES,
		.budget_pages = BUDGET,
		.nr_extents = NR_EXTENTS,
		.hot_percent = 30,
		.zero_percent = 10,
		.write_percent = 40};
	static struct stub_lab lab;
	static struct tally t;
	struct smv_backing backing;
	struct smv_leases leases;
	struct smv_error err = {0};

	if (smv_kernel_check(&err) < 0) {
		fprintf(stderr, "skipped: %s\n", err.message);
		return 77;
	}
	must(kills <= KILLS_MAX);
	/* What the connections say of each kill. */
	smv_log_set_level(SMV_LOG_ERROR);
	random_state = seed;
	servers_create();
	smv_rpc_init();
	leases_create(&leases, &backing);
	o.backing = &backing;
	stub_lab_create(&lab, &o);
	stub_lab_start(&lab);
	stub_stress_start(&lab);
	if (wrong)
		_exit(expect_losses(&lab));
	kill_servers(&lab, kills, &leases, &backing, &t);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	stub_lab_stop(&lab);
	lost = smv_pagemap_count(&lab.map, SMV_PAGE_LOST);
	faults = stub_audit(&lab);
	qsort(t.stalls, t.nr_stalls, sizeof(t.stalls[0]), compare);
	printf("seed %lu: %u kills of 2 memserverds (%u times both, %u while one started), %u "
	       "ended "
	       "by SIGTERM, %u stopped for a while; %lu checks, %lu mismatches, %lu pages lost, %u "
	       "faults in the audit; %lu page-ins, %lu evictions; stall of the VM's threads in ms: "
	       "p50 %.0f, p99 %.0f, max %.0f; resident at most %lu of %u pages\n",
		seed, t.kills, t.both, t.starting, t.terms, t.stops, lab.checks, lab.mismatches,
		lost, faults, lab.stats.page_ins, lab.stats.evictions, stall(&t, 50), stall(&t, 99),
		stall(&t, 100), lab.max_resident, BUDGET);
	ok = lab.mismatches == 0 && lost == 0 && faults == 0 && lab.stats.page_ins &&
	     lab.stats.evictions && lab.max_resident <= BUDGET + SMV_EVICT_BATCH;
	ok = smv_leases_release(&leases, &backing) == 0 && ok;
	stub_lab_destroy(&lab);
	smv_rpc_shutdown();
	servers_destroy();
	return ok ? 0 : 1;
}
