/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pager that is killed again and again under a VM that runs: pager_kill [SEED [KILLS [wrong]]].
 *
 * This process is the VM (threads that read, verify and rewrite pages) and its sub-hosts; the pager
 * is a process of its own, which gets what it needs by inheritance and goes on from the page map's
 * file. It is killed at random moments, also while it takes over, and sometimes ended in order.
 * Before the next one starts, the sub-hosts end all connections: that is what fencing does.
 *
 * wrong: mismatches are expected (a fault point makes the pager settle by a wrong rule).
 */
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
#define KILLS_MAX 1000u

/* What a pager needs to know; in a memfd that it inherits, as are the descriptors. */
struct order {
	struct smv_guest_ram ram;
	struct smv_addr addrs[STUB_HOSTS];
	struct smv_region_info infos[STUB_HOSTS];
	size_t bytes[STUB_HOSTS];
	pid_t vm;
	int uffd, zap, ready;
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

static int be_pager(int order_fd)
{
	struct order *o = mmap(NULL, sizeof(*o), PROT_READ, MAP_SHARED, order_fd, 0);
	struct stub_host hosts[STUB_HOSTS] = {0};
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
		.budget_pages = BUDGET,
		.timeout_ms = 2000};
	sigset_t term;
	int sig;

	must(o != MAP_FAILED);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	for (int h = 0; h < STUB_HOSTS; h++) {
		hosts[h].transport = smv_transport_find("tcp");
		hosts[h].addr = o->addrs[h];
		hosts[h].info = o->infos[h];
		hosts[h].bytes = o->bytes[h];
	}
	stub_backing_create(&backing, hosts, STUB_HOSTS);
	must(smv_backing_spread(&backing, 2) == 0);
	must(smv_slots_create(NR_EXTENTS, &slots) == 0);
	config.ram = &o->ram;
	config.uffd = o->uffd;
	config.pagemap_fd = smv_pagemap_open(o->vm);
	config.zap_ctx = &o->zap;
	if (smv_pagemap_load(o->map_path, "stub", NR_PAGES, o->map_id, &map, &err) < 0 ||
		smv_pager_create(&config, &pager, &err) < 0 ||
		smv_pager_take_over(pager, &report, &err) < 0 || smv_pager_start(pager, &err) < 0) {
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

static void child_start(struct child *c, struct order *o, int order_fd, char *self)
{
	int zap[2], ready[2];
	char number[20];

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, zap) == 0);
	must(pipe2(ready, O_CLOEXEC) == 0);
	o->zap = zap[1];
	o->ready = ready[1];
	keep_across_exec(zap[1]);
	keep_across_exec(ready[1]);
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
	must(pthread_create(&c->zapper, NULL, serve_zaps, &c->zap) == 0);
}

/* False: it ended before it served. */
static bool child_serves(const struct child *c, struct smv_taken_over *report)
{
	struct pollfd fd = {.fd = c->ready, .events = POLLIN};

	must(poll(&fd, 1, 60000) == 1);
	return read(c->ready, report, sizeof(*report)) == sizeof(*report);
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

/* No connection of the dead pager can write any more. */
static void fence(struct stub_lab *lab)
{
	for (int h = 0; h < STUB_HOSTS; h++) {
		stub_host_down(&lab->hosts[h]);
		stub_host_up(&lab->hosts[h]);
	}
}

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

static void add(struct smv_taken_over *sum, const struct smv_taken_over *r)
{
	sum->fetching += r->fetching;
	sum->out += r->out;
	sum->saved += r->saved;
	sum->placed += r->placed;
	sum->punched += r->punched;
	sum->lost += r->lost;
}

/* With the map as the last pager left it, settled by one that never serves. */
static unsigned int audit(struct stub_lab *lab, const struct order *o)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	smv_pagemap_destroy(&lab->map);
	must(smv_pagemap_load(o->map_path, "stub", NR_PAGES, o->map_id, &lab->map, &err) == 0);
	must(stub_lab_take_over(lab, &report, &err) == 0);
	return stub_audit(lab);
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	unsigned int kills = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 0) : 30;
	bool wrong = argc > 3 && strcmp(argv[3], "wrong") == 0, ok;
	struct stub_options options = {.transport = "tcp",
		.seed = seed,
		.nr_blocks = seed & 1 ? 2 : 1,
		.nr_pages = NR_PAGES,
		.budget_pages = BUDGET,
		.nr_extents = NR_EXTENTS,
		.hot_percent = 30,
		.zero_percent = 10,
		.write_percent = 40};
	static uint64_t stalls[KILLS_MAX];
	static struct stub_lab lab;
	struct smv_taken_over sum = {0}, report;
	unsigned int nr_stalls = 0, early = 0, terms = 0, faults = 0;
	char dir[] = "/dev/shm/smemv-kill-XXXXXX", path[64];
	uint64_t stall_start = 0;
	struct smv_error err = {0};
	struct child child;
	struct order *o;
	int order_fd;

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
	stub_lab_create(&lab, &options);
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
	for (int h = 0; h < STUB_HOSTS; h++) {
		o->addrs[h] = lab.hosts[h].addr;
		o->infos[h] = lab.hosts[h].info;
		o->bytes[h] = lab.hosts[h].bytes;
	}

	child_start(&child, o, order_fd, argv[0]);
	must(child_serves(&child, &report));
	stub_stress_start(&lab);
	for (unsigned int n = 0; n < kills && (!wrong || !lab.mismatches); n++) {
		bool in_takeover = n % 5 == 4, term = n % 7 == 6 && !in_takeover;
		bool serves = true;

		if (in_takeover)
			run_for(&lab, rnd(8000));
		else
			run_for(&lab, 10000 + rnd(100000));
		if (!stall_start)
			stall_start = smv_now_ns();
		if (term)
			must(child_end(&child, SIGTERM) == 0);
		else
			child_end(&child, SIGKILL);
		terms += term;
		fence(&lab);
		child_start(&child, o, order_fd, argv[0]);
		/* The next one is killed at an early moment: it is not waited for. */
		if ((n + 1) % 5 == 4 && n + 1 < kills) {
			early++;
			continue;
		}
		serves = child_serves(&child, &report);
		must(serves);
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
		faults = audit(&lab, o);
	qsort(stalls, nr_stalls, sizeof(stalls[0]), compare);
	printf("seed %lu: %u pagers ended (%u while they took over, %u by SIGTERM), %lu checks, "
	       "%lu "
	       "mismatches, %u faults in the audit; pages on their way: %lu fetched, %lu evicted, "
	       "%lu "
	       "saved, %lu placed, %lu punched, %lu lost; stall in ms: p50 %.1f, max %.1f, slowest "
	       "access %.1f; resident at most %lu of %u pages\n",
		seed, nr_stalls + early, early, terms, lab.checks, lab.mismatches, faults,
		sum.fetching, sum.out, sum.saved, sum.placed, sum.punched, sum.lost,
		nr_stalls ? (double)stalls[nr_stalls / 2] / 1e6 : 0,
		nr_stalls ? (double)stalls[nr_stalls - 1] / 1e6 : 0, (double)lab.slowest_ns / 1e6,
		lab.max_resident, BUDGET);
	ok = wrong ? lab.mismatches > 0
		   : lab.mismatches == 0 && faults == 0 && sum.lost == 0 &&
			     sum.fetching + sum.out + sum.saved > 0 &&
			     lab.max_resident <=
				     BUDGET + SMV_EVICT_BATCH * (options.nr_blocks == 1 ? 1 : 2);
	stub_lab_destroy(&lab);
	munmap(o, sizeof(*o));
	close(order_fd);
	unlink(path);
	rmdir(dir);
	return ok ? 0 : 1;
}
