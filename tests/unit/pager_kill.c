/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pager that is killed again and again under a VM that runs:
 *
 *   pager_kill [SEED [KILLS [wrong | dies | unfenced]]]
 *
 * This process is the VM (threads that read, verify and rewrite pages) and its sub-hosts; the pager
 * is a process of its own, which gets what it needs by inheritance and goes on from the page map's
 * file. It is killed at random moments, also while it takes over, and sometimes ended in order.
 * Before the next one starts, the sub-hosts end all connections: that is what fencing does. At the
 * end a connection that outlived its epoch tries to write, which must reach nothing.
 *
 * With SMEMV_TEST_SUB_HOSTS=HOST:PORT,HOST:PORT the sub-hosts are memserverds, which are fenced as
 * smemv-pagerd does it; they need 12 MiB together, as the VM is smaller then. SMEMV_TEST_TRANSPORT
 * is the way there, if not tcp.
 *
 * wrong: mismatches are expected (a fault point makes the pager settle by a wrong rule). dies: most
 * pagers die by themselves before they are killed (at a fault point). unfenced: the late write is
 * expected to get through (a fault point in the memserverds), and to be seen.
 */
#include "client/discard.h"
#include "client/leases.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "vm_stub.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NR_PAGES 12288u
#define BUDGET 4096u
#define NR_EXTENTS 24u
#define ELSEWHERE 4u /* of all these a quarter, when the sub-hosts are elsewhere */
#define KILLS_MAX 1000u
#define SEGMENTS_MAX 8
#define FENCE_TIMEOUT_MS 15000

/* The way into a sub-host, for the pagers of one epoch. */
struct way {
	struct smv_addr addr;
	struct smv_segment segments[SEGMENTS_MAX];
	unsigned int nr_segments;
	uint64_t lease_id, generation;
	uint32_t epoch;
	uint8_t key[SMV_TICKET_KEY_SIZE];
};

/* What a pager needs to know; in a memfd that it inherits, as are the descriptors. */
struct order {
	struct smv_guest_ram ram;
	char transport[16];
	struct way ways[STUB_HOSTS];
	struct smv_extent extents[NR_EXTENTS];
	uint64_t nr_extents, budget_pages;
	pid_t vm;
	int uffd, zap, ready, discards;
	char map_path[100];
	uint64_t map_id;
};

static uint64_t random_state;

static uint64_t rnd(uint64_t below)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (random_state >> 33) % below;
}

/* --- the pager ---------------------------------------------------------------------------- */

struct zap_request {
	uint64_t addr, len;
};

static int zap_by_vm(void *ctx, uint64_t addr, uint64_t len)
{
	const int *fd = ctx;
	struct zap_request request = {addr, len};
	int r;

	if (send(*fd, &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request) ||
		recv(*fd, &r, sizeof(r), 0) != sizeof(r))
		return -EPIPE;
	return r;
}

/* Each epoch has one pager, so nobody else counts the same nonces. */
static int make_ticket(void *ctx, unsigned int h, enum smv_role role, struct smv_ticket *ticket)
{
	static _Atomic uint64_t count;
	const struct way *way = &((const struct order *)ctx)->ways[h];

	smv_ticket_make(way->key, way->lease_id, way->epoch, role,
		smv_nonce_make(way->generation, ++count), ticket);
	return 0;
}

static void make_backing(struct order *o, struct smv_backing *b)
{
	*b = (struct smv_backing){.transport = smv_transport_find(o->transport),
		.sub_hosts = calloc(STUB_HOSTS, sizeof(*b->sub_hosts)),
		.nr_sub_hosts = STUB_HOSTS,
		.extents = malloc(sizeof(o->extents)),
		.nr_extents = o->nr_extents,
		.ticket = make_ticket,
		.ticket_ctx = o};
	must(b->transport && b->sub_hosts && b->extents);
	memcpy(b->extents, o->extents, sizeof(o->extents));
	for (unsigned int h = 0; h < STUB_HOSTS; h++) {
		struct smv_sub_host *host = &b->sub_hosts[h];

		snprintf(host->address, sizeof(host->address), "sub-host-%u", h);
		host->data_addr = o->ways[h].addr;
		host->nr_segments = o->ways[h].nr_segments;
		host->segments = malloc(sizeof(o->ways[h].segments));
		must(host->segments);
		memcpy(host->segments, o->ways[h].segments, sizeof(o->ways[h].segments));
	}
}

static int be_pager(int order_fd)
{
	struct order *o = mmap(NULL, sizeof(*o), PROT_READ, MAP_SHARED, order_fd, 0);
	struct smv_taken_over report;
	struct smv_backing backing;
	struct smv_error err = {0};
	struct smv_slots slots;
	struct smv_pagemap map;
	struct smv_pager *pager;
	struct smv_pager_config config = {.name = "stub",
		.map = &map,
		.slots = &slots,
		.backing = &backing,
		.zap = zap_by_vm,
		.timeout_ms = 2000};
	sigset_t term;
	int sig;

	must(o != MAP_FAILED);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	make_backing(o, &backing);
	must(smv_slots_create(o->nr_extents, &slots) == 0);
	config.ram = &o->ram;
	config.budget_pages = o->budget_pages;
	config.uffd = o->uffd;
	config.pagemap_fd = smv_pagemap_open(o->vm);
	config.zap_ctx = &o->zap;
	if (smv_pagemap_load(o->map_path, "stub", o->ram.nr_pages, o->map_id, &map, &err) < 0 ||
		smv_pager_create(&config, &pager, &err) < 0 ||
		smv_pager_take_over(pager, &report, &err) < 0 ||
		smv_pager_serve_discards(pager, o->discards, &err) < 0 ||
		smv_pager_start(pager, &err) < 0) {
		fprintf(stderr, "%s\n", err.message);
		return 1;
	}
	must(write(o->ready, &report, sizeof(report)) == sizeof(report));
	sigwait(&term, &sig);
	smv_pager_destroy(pager);
	smv_pagemap_destroy(&map);
	smv_slots_destroy(&slots);
	smv_backing_free(&backing);
	close(config.pagemap_fd);
	return 0;
}

/* --- the VM ------------------------------------------------------------------------------- */

struct child {
	pid_t pid;
	int zap, ready;
	pthread_t zapper;
};

static void *serve_zaps(void *arg)
{
	const int fd = *(const int *)arg;
	struct zap_request request;

	while (recv(fd, &request, sizeof(request), 0) == sizeof(request)) {
		int r = stub_vm_zap(NULL, request.addr, request.len);

		if (send(fd, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r))
			break;
	}
	return NULL;
}

static void keep_across_exec(int fd)
{
	must(fcntl(fd, F_SETFD, 0) == 0);
}

static void child_start(
	struct stub_lab *lab, struct child *c, struct order *o, int order_fd, char *self)
{
	int zap[2], ready[2], discards[2];
	char number[20];

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, zap) == 0);
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, discards) == 0);
	must(pipe2(ready, O_CLOEXEC) == 0);
	o->zap = zap[1];
	o->ready = ready[1];
	o->discards = discards[1];
	keep_across_exec(zap[1]);
	keep_across_exec(ready[1]);
	keep_across_exec(discards[1]);
	snprintf(number, sizeof(number), "%d", order_fd);
	c->zap = zap[0];
	c->ready = ready[0];
	c->pid = vfork();
	must(c->pid >= 0);
	if (c->pid == 0) {
		execl("/proc/self/exe", self, "--pager", number, (char *)NULL);
		_exit(127);
	}
	close(zap[1]);
	close(ready[1]);
	close(discards[1]);
	stub_discards_to(lab, discards[0]);
	must(pthread_create(&c->zapper, NULL, serve_zaps, &c->zap) == 0);
}

/* False: it ended before it served. */
static bool child_serves(const struct child *c, struct smv_taken_over *report)
{
	struct pollfd fd = {.fd = c->ready, .events = POLLIN};

	must(poll(&fd, 1, 60000) == 1);
	return read(c->ready, report, sizeof(*report)) == sizeof(*report);
}

static bool has_died(const struct child *c)
{
	siginfo_t info = {0};

	must(waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0);
	return info.si_pid == c->pid;
}

static int child_end(struct child *c, int sig)
{
	int status;

	must(kill(c->pid, sig) == 0 && waitpid(c->pid, &status, 0) == c->pid);
	pthread_join(c->zapper, NULL);
	close(c->zap);
	close(c->ready);
	return status;
}

/* --- its sub-hosts ------------------------------------------------------------------------ */

static struct smv_leases leases; /* when they are memserverds */

/* False: the sub-hosts are to be in this process. */
static bool lease_elsewhere(const char *transport, struct smv_backing *backing)
{
	static char list[200];
	const char *addresses[STUB_HOSTS], *value = getenv("SMEMV_TEST_SUB_HOSTS");
	struct smv_transport_wish wish = {0};
	struct smv_error err = {0};
	char reason[200], *save;

	if (!value)
		return false;
	snprintf(list, sizeof(list), "%s", value);
	snprintf(wish.names, sizeof(wish.names), "%s", transport);
	addresses[0] = strtok_r(list, ",", &save);
	addresses[1] = strtok_r(NULL, ",", &save);
	must(addresses[0] && addresses[1]);
	smv_rpc_init();
	if (smv_leases_create(&leases, backing, addresses, STUB_HOSTS, "pager_kill",
		    NR_EXTENTS / ELSEWHERE * (uint64_t)SMV_EXTENT_BYTES, &wish, true,
		    FENCE_TIMEOUT_MS, reason, sizeof(reason), &err) < 0)
		fprintf(stderr, "%s\n", err.message);
	must(err.code == SMV_OK && smv_leases_hold(&leases, backing));
	return true;
}

static void tell_ways(const struct stub_lab *lab, struct order *o)
{
	for (unsigned int h = 0; h < STUB_HOSTS; h++) {
		const struct smv_sub_host *host = &lab->backing.sub_hosts[h];
		struct way *way = &o->ways[h];

		*way = (struct way){.addr = host->data_addr,
			.nr_segments = host->nr_segments,
			.lease_id = host->lease_id,
			.epoch = 1};
		must(host->nr_segments <= SEGMENTS_MAX);
		memcpy(way->segments, host->segments, host->nr_segments * sizeof(way->segments[0]));
		if (lab->o.transport)
			continue;
		way->epoch = leases.epoch;
		way->generation = leases.leases[h].generation;
		memcpy(way->key, leases.leases[h].key, sizeof(way->key));
	}
}

/* No connection of the dead pager can write any more. */
static void fence(struct stub_lab *lab, struct order *o)
{
	struct smv_error err = {0};

	for (int h = 0; lab->o.transport && h < STUB_HOSTS; h++) {
		stub_host_down(&lab->hosts[h]);
		stub_host_up(&lab->hosts[h]);
	}
	if (!lab->o.transport && smv_leases_fence(&leases, &lab->backing, &err) < 0)
		fprintf(stderr, "%s\n", err.message);
	must(err.code == SMV_OK);
	tell_ways(lab, o);
}

static uint64_t any_cold_slot(const struct stub_lab *lab)
{
	for (uint64_t page = 0;; page++) {
		smv_page_word word = smv_pagemap_get(&lab->map, page);

		if (smv_word_state(word) == SMV_PAGE_COLD)
			return smv_word_slot(word);
	}
}

/* By a connection whose owner did not hear of the next epoch: 0 or why nothing was written. */
static int write_late(struct stub_lab *lab, struct order *o)
{
	uint64_t slot = any_cold_slot(lab);
	char data[SMV_PAGE_SIZE];
	int r;

	fence(lab, o); /* an epoch of our own, for the tickets */
	stub_way_open(lab);
	must(stub_slot_move(lab, SMV_OP_READ, slot, data) == 0);
	fence(lab, o);
	memset(data, 0x66, sizeof(data));
	r = stub_slot_move(lab, SMV_OP_WRITE, slot, data);
	stub_way_close(lab);
	return r;
}

/* --- the test ----------------------------------------------------------------------------- */

static void run_for(struct stub_lab *lab, uint64_t us)
{
	uint64_t end = smv_now_ns() + us * 1000;

	do {
		uint64_t resident = stub_vm_resident(&lab->vm);

		if (resident > lab->max_resident)
			lab->max_resident = resident;
		usleep(500);
	} while (smv_now_ns() < end);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Of the sorted @stalls. */
static double stall_ms(const uint64_t *stalls, unsigned int nr, unsigned int percent)
{
	return nr ? (double)stalls[(nr - 1) * percent / 100] / 1e6 : 0;
}

static void add(struct smv_taken_over *sum, const struct smv_taken_over *r)
{
	sum->fetching += r->fetching;
	sum->out += r->out;
	sum->saved += r->saved;
	sum->placed += r->placed;
	sum->punched += r->punched;
	sum->lost += r->lost;
}

/* With the map as the last pager left it, settled by one that never serves. @late: what came of
 * the write by a connection that was fenced. */
static unsigned int audit(struct stub_lab *lab, struct order *o, int *late)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	smv_pagemap_destroy(&lab->map);
	must(smv_pagemap_load(o->map_path, "stub", o->ram.nr_pages, o->map_id, &lab->map, &err) ==
		0);
	must(stub_lab_take_over(lab, &report, &err) == 0);
	*late = write_late(lab, o);
	return stub_audit(lab);
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	unsigned int kills = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 0) : 30;
	bool wrong = argc > 3 && strcmp(argv[3], "wrong") == 0;
	bool dies = argc > 3 && strcmp(argv[3], "dies") == 0, ok;
	bool unfenced = argc > 3 && strcmp(argv[3], "unfenced") == 0;
	const char *transport = getenv("SMEMV_TEST_TRANSPORT");
	struct smv_backing backing;
	struct stub_options options = {.seed = seed,
		.nr_blocks = seed & 1 ? 2 : 1,
		.nr_pages = NR_PAGES,
		.budget_pages = BUDGET,
		.nr_extents = NR_EXTENTS,
		.hot_percent = 30,
		.zero_percent = 10,
		.write_percent = 40,
		.discard_percent = dies ? 30 : 2};
	static uint64_t stalls[KILLS_MAX];
	static struct stub_lab lab;
	struct smv_taken_over sum = {0}, report;
	unsigned int nr_stalls = 0, early = 0, terms = 0, deaths = 0, faults = 0;
	char dir[] = "/dev/shm/smemv-kill-XXXXXX", path[64];
	uint64_t stall_start = 0, taking_over_us = 8000;
	struct smv_error err = {0};
	struct child child;
	struct order *o;
	int order_fd, late = 0;

	if (argc == 3 && strcmp(argv[1], "--pager") == 0)
		return be_pager(atoi(argv[2]));
	if (smv_kernel_check(&err) < 0) {
		fprintf(stderr, "skipped: %s\n", err.message);
		return 77;
	}
	must(kills <= KILLS_MAX && mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/map", dir);
	options.map_path = path;
	random_state = seed;
	transport = transport ? transport : "tcp";
	if (lease_elsewhere(transport, &backing)) {
		options.backing = &backing;
		options.nr_pages /= ELSEWHERE;
		options.budget_pages /= ELSEWHERE;
		options.nr_extents /= ELSEWHERE;
	} else {
		options.transport = transport;
	}
	stub_lab_create(&lab, &options);
	if (options.backing)
		smv_leases_bind(&leases, &lab.backing);
	smv_pager_destroy(lab.pager);
	lab.pager = NULL;

	order_fd = memfd_create("order", 0);
	must(order_fd >= 0 && ftruncate(order_fd, sizeof(*o)) == 0);
	o = mmap(NULL, sizeof(*o), PROT_READ | PROT_WRITE, MAP_SHARED, order_fd, 0);
	must(o != MAP_FAILED);
	o->ram = lab.vm.ram;
	o->vm = getpid();
	o->uffd = lab.vm.uffd;
	o->map_id = smv_pagemap_id(&lab.map);
	snprintf(o->map_path, sizeof(o->map_path), "%s", path);
	keep_across_exec(o->uffd);
	for (unsigned int i = 0; i < o->ram.nr_blocks; i++)
		keep_across_exec(o->ram.blocks[i].fd);
	snprintf(o->transport, sizeof(o->transport), "%s", transport);
	o->nr_extents = options.nr_extents;
	o->budget_pages = options.budget_pages;
	memcpy(o->extents, lab.backing.extents, o->nr_extents * sizeof(o->extents[0]));

	fence(&lab, o);
	child_start(&lab, &child, o, order_fd, argv[0]);
	must(child_serves(&child, &report));
	stub_stress_start(&lab);
	for (unsigned int n = 0; n < kills && (!wrong || !lab.mismatches); n++) {
		bool in_takeover = n % 5 == 4, term = n % 7 == 6 && !in_takeover && !dies;
		bool serves = true;
		uint64_t started;

		if (in_takeover)
			run_for(&lab, rnd(taking_over_us));
		else
			run_for(&lab, 10000 + rnd(100000));
		if (!stall_start)
			stall_start = smv_now_ns();
		deaths += has_died(&child);
		/* The last one shall live. */
		if (n + 1 == kills)
			unsetenv("SMEMV_FAULT");
		if (term)
			must(child_end(&child, SIGTERM) == 0);
		else
			child_end(&child, SIGKILL);
		terms += term;
		fence(&lab, o);
		started = smv_now_ns();
		child_start(&lab, &child, o, order_fd, argv[0]);
		/* The next one is killed at an early moment: it is not waited for. */
		if ((n + 1) % 5 == 4 && n + 1 < kills) {
			early++;
			continue;
		}
		serves = child_serves(&child, &report);
		must(serves || dies);
		if (!serves)
			continue;
		taking_over_us = (smv_now_ns() - started) / 1000;
		stalls[nr_stalls++] = smv_now_ns() - stall_start;
		stall_start = 0;
		add(&sum, &report);
	}
	/* A pager that was not waited for. */
	if (stall_start)
		must(child_serves(&child, &report));
	run_for(&lab, 100000);
	stub_stress_stop(&lab);
	stub_run(&lab, stub_read_all);
	child_end(&child, SIGTERM);
	if (!wrong)
		faults = audit(&lab, o, &late);
	qsort(stalls, nr_stalls, sizeof(stalls[0]), compare);
	printf("seed %lu, %s: %u pagers ended (%u while they took over, %u by SIGTERM, %u by "
	       "themselves)\n",
		seed, transport, nr_stalls + early, early, terms, deaths);
	printf("%lu checks, %lu mismatches, %u faults in the audit; a late write: %s\n", lab.checks,
		lab.mismatches, faults,
		wrong       ? "not tried"
		: late == 0 ? "got through"
			    : strerror(-late));
	printf("pages on their way: %lu fetched, %lu evicted, %lu saved, %lu placed, %lu punched, "
	       "%lu lost\n",
		sum.fetching, sum.out, sum.saved, sum.placed, sum.punched, sum.lost);
	printf("stall in ms: min %.1f, p50 %.1f, p90 %.1f, max %.1f, slowest access %.1f\n",
		stall_ms(stalls, nr_stalls, 0), stall_ms(stalls, nr_stalls, 50),
		stall_ms(stalls, nr_stalls, 90), stall_ms(stalls, nr_stalls, 100),
		(double)lab.slowest_ns / 1e6);
	printf("resident at most %lu of %lu pages\n", lab.max_resident, options.budget_pages);
	ok = wrong ? lab.mismatches > 0
	     : unfenced
		     ? late == 0 && faults > 0
		     : late < 0 && lab.mismatches == 0 && faults == 0 && sum.lost == 0 &&
			       sum.fetching + sum.out + sum.saved > 0 && (deaths > 0) == dies &&
			       lab.max_resident <=
				       options.budget_pages +
					       SMV_EVICT_BATCH * (options.nr_blocks == 1 ? 1 : 2);
	if (options.backing) {
		must(smv_leases_release(&leases, &lab.backing) == 0);
		smv_rpc_shutdown();
	}
	stub_lab_destroy(&lab);
	munmap(o, sizeof(*o));
	close(order_fd);
	unlink(path);
	rmdir(dir);
	return ok ? 0 : 1;
}
