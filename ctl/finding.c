/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/finding.h"

#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/units.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Those that run a VM need the kernel's memory tracking. */
#define RUNS_VM (SMV_ROLE_MAIN_HOST | SMV_ROLE_SOURCE)
/* Those that need free memory: the source's VM has its own already. */
#define TAKES_MEMORY (SMV_ROLE_SUB_HOST | SMV_ROLE_MAIN_HOST)

#define HUGE_PAGE (2 * SMV_MIB)
/* The least that is of use, for a pager or a lease. */
#define SHM_MIN (64 * SMV_MIB)
/* Below it the verbs transport is refused: transport/verbs.c. */
#define MEMLOCK_MIN (64 * SMV_MIB)

#define REFUSAL "smemv-pagerd and smemv-migrate refuse to work"
#define NEW_KERNEL "apt install -t bookworm-backports linux-image-amd64"
#define RETRY "smemvctl doctor  # again, when userfaultfd works"
#define NO_VERBS "verbs cannot be used; tcp takes CPU time at both ends and has more latency"

struct question {
	const struct smv_host_facts *facts;
	unsigned int roles;
	uint64_t memory_bytes; /* 0: not known */
};

__attribute__((format(printf, 2, 3))) static void found(struct smv_finding *f, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(f->found, sizeof(f->found), fmt, args);
	va_end(args);
}

__attribute__((format(printf, 4, 5))) static void lacks(struct smv_finding *f,
	enum smv_finding_status status, const char *cost, const char *remedy, ...)
{
	va_list args;

	f->status = status;
	snprintf(f->cost, sizeof(f->cost), "%s", cost);
	va_start(args, remedy);
	vsnprintf(f->remedy, sizeof(f->remedy), remedy, args);
	va_end(args);
}

#define warn(f, ...) lacks(f, SMV_FINDING_WARNING, __VA_ARGS__)
#define fail(f, ...) lacks(f, SMV_FINDING_PROBLEM, __VA_ARGS__)

static bool has_capability(const struct smv_host_facts *facts, unsigned int cap)
{
	return facts->capabilities >> cap & 1;
}

/* --- kernel --------------------------------------------------------------------------------- */

static const struct {
	uint64_t bit;
	const char *name, *since; /* Linux version */
} features[] = {
	{UFFD_FEATURE_MISSING_SHMEM, "MISSING_SHMEM", "4.11"},
	{UFFD_FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP", "5.7"},
	{UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM", "5.14"},
	{UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM", "5.19"},
	{UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED", "6.4"},
	{UFFD_FEATURE_WP_ASYNC, "WP_ASYNC", "6.7"},
};

static bool has_all_features(const struct smv_host_facts *facts)
{
	return facts->uffd_error == 0 && (facts->uffd_features & SMV_UFFD_PAGE) == SMV_UFFD_PAGE;
}

/* A vendor's kernel may have taken over what its version does not promise. */
static void check_kernel(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	const bool is_new =
		facts->kernel_major > 6 || (facts->kernel_major == 6 && facts->kernel_minor >= 7);

	if (is_new) {
		found(f, "Linux %s", facts->kernel_release);
	} else if (has_all_features(facts) && facts->pagemap_scan_error == 0) {
		found(f, "Linux %s, with what is needed of 6.7", facts->kernel_release);
	} else {
		found(f, "Linux %s, older than 6.7",
			*facts->kernel_release ? facts->kernel_release : "of unknown version");
		fail(f, REFUSAL, NEW_KERNEL);
	}
}

static void check_userfaultfd(const struct question *q, struct smv_finding *f)
{
	static const char cost[] =
		"page faults of QEMU cannot be served, nor its writes tracked: " REFUSAL;
	const struct smv_host_facts *facts = q->facts;

	if (facts->uffd_error == 0) {
		found(f, "can be made by user %u", facts->uid);
		return;
	}
	found(f, "user %u gets none: %s; /dev/userfaultfd is %s, vm.unprivileged_userfaultfd=%d",
		facts->uid, strerror(-facts->uffd_error),
		facts->has_uffd_device ? "there" : "missing", facts->unprivileged_userfaultfd);
	if (facts->uffd_error == -ENOSYS)
		fail(f, cost, NEW_KERNEL);
	else if (facts->has_uffd_device && facts->uid != 0)
		fail(f, cost, "setfacl -m u:%u:rw /dev/userfaultfd  # as root", facts->uid);
	else
		fail(f, cost, "sysctl vm.unprivileged_userfaultfd=1");
}

static void list_missing_features(uint64_t have, char *text, size_t len)
{
	size_t n = 0;

	for (size_t i = 0; i < SMV_ARRAY_SIZE(features) && n < len; i++)
		if (!(have & features[i].bit))
			n += (size_t)snprintf(text + n, len - n, "%s%s (Linux %s)", n ? ", " : "",
				features[i].name, features[i].since);
}

static void unknown_without_userfaultfd(struct smv_finding *f)
{
	found(f, "not known: there is no userfaultfd to ask");
	warn(f, "more may be missing than is seen now", RETRY);
}

static void check_userfaultfd_features(const struct question *q, struct smv_finding *f)
{
	char missing[200];

	if (q->facts->uffd_error != 0) {
		unknown_without_userfaultfd(f);
	} else if (has_all_features(q->facts)) {
		found(f, "WP_ASYNC, WP_UNPOPULATED, MINOR_SHMEM and what else is needed");
	} else {
		list_missing_features(q->facts->uffd_features, missing, sizeof(missing));
		found(f, "missing: %s", missing);
		fail(f, "pages cannot be tracked or paged: " REFUSAL, NEW_KERNEL);
	}
}

static void check_pagemap_scan(const struct question *q, struct smv_finding *f)
{
	if (q->facts->pagemap_scan_error == 0) {
		found(f, "works");
		return;
	}
	found(f, "the ioctl PAGEMAP_SCAN (Linux 6.7) of /proc/PID/pagemap fails: %s",
		strerror(-q->facts->pagemap_scan_error));
	fail(f, "written pages cannot be found: " REFUSAL, NEW_KERNEL);
}

static void check_write_tracking(const struct question *q, struct smv_finding *f)
{
	if (q->facts->tracking_error == 0) {
		found(f, "a page that was written and unmapped counts as written");
	} else if (q->facts->uffd_error != 0) {
		unknown_without_userfaultfd(f);
	} else {
		found(f, "%.250s", q->facts->tracking_text);
		fail(f, "a migration could lose writes: " REFUSAL, NEW_KERNEL);
	}
}

static void check_process_access(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;

	if (facts->process_access_error == 0) {
		if (has_capability(facts, CAP_SYS_PTRACE))
			found(f, "page tables and files of all processes can be seen");
		else
			found(f, "of processes of user %u only: QEMU must run as that user",
				facts->uid);
		return;
	}
	found(f, "another process's page table and files cannot be seen: %s",
		strerror(-facts->process_access_error));
	fail(f, "QEMU's RAM can be neither found nor tracked: " REFUSAL, "sudo smemvctl doctor");
}

/* --- QEMU ----------------------------------------------------------------------------------- */

static void check_qemu(const struct question *q, struct smv_finding *f)
{
	static const char cost[] = "no VM can be started, moved or received";
	static const char install[] = "apt install qemu-system-x86";
	const struct smv_host_facts *facts = q->facts;

	if (!*facts->qemu_path) {
		found(f, "no qemu-system-x86_64 in PATH");
		fail(f, cost, install);
	} else if (facts->qemu_error != 0) {
		found(f, "%s --version fails", facts->qemu_path);
		fail(f, cost, "apt install --reinstall qemu-system-x86");
	} else if (facts->qemu_major == 0) {
		found(f, "%s does not tell its version", facts->qemu_path);
		warn(f, "a QEMU before 7.2 would be refused or not work", "%s --version",
			facts->qemu_path);
	} else {
		found(f, "%s %u.%u", facts->qemu_path, facts->qemu_major, facts->qemu_minor);
		if (facts->qemu_major < 7 || (facts->qemu_major == 7 && facts->qemu_minor < 2))
			fail(f, "before 7.2 QEMU cannot leave shared RAM to smemv", install);
	}
}

/* --- memory --------------------------------------------------------------------------------- */

/* Rounded down to MiB, for an option of ours. */
static uint64_t in_mib(uint64_t bytes)
{
	return bytes / SMV_MIB;
}

static uint64_t memory_room(const struct question *q)
{
	return q->roles & TAKES_MEMORY ? q->facts->mem_available_bytes : q->facts->mem_total_bytes;
}

static void lacks_memory(const struct question *q, struct smv_finding *f)
{
	const uint64_t room = memory_room(q);

	if (q->facts->huge_free * HUGE_PAGE >= q->memory_bytes - room)
		fail(f, "there is less memory than the role is to give",
			"sysctl vm.nr_hugepages=0");
	else if (q->roles & SMV_ROLE_SUB_HOST)
		fail(f, "memserverd refuses to start", "memserverd --memory %" PRIu64 "M ...",
			in_mib(room) / 2 * 2);
	else if (q->roles & SMV_ROLE_MAIN_HOST)
		fail(f, "the host runs out of memory before the VM has its budget",
			"smemv-migrate run --budget %" PRIu64 "M ...", in_mib(room));
	else
		fail(f, "the VM does not fit, even before it moves",
			"qemu-system-x86_64 -m %" PRIu64 "M ...", in_mib(room));
}

static void check_memory(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	char available[32], total[32];

	found(f, "%s available of %s",
		smv_format_size(facts->mem_available_bytes, available, sizeof(available)),
		smv_format_size(facts->mem_total_bytes, total, sizeof(total)));
	if (q->memory_bytes > memory_room(q))
		lacks_memory(q, f);
}

/* What is used by others stays used. */
static uint64_t shm_size_for(const struct smv_host_facts *facts, uint64_t room, uint64_t memory)
{
	return in_mib(facts->shm_size_bytes + memory - room) + 1;
}

static void check_shm_room(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	const bool takes = q->roles & TAKES_MEMORY;
	const uint64_t room = takes ? facts->shm_free_bytes : facts->shm_size_bytes;
	const char *cost = q->roles & SMV_ROLE_SUB_HOST
				   ? "memserverd refuses to start"
				   : "QEMU ends by SIGBUS when its RAM file finds no room";

	if (q->memory_bytes > room && q->memory_bytes > memory_room(q))
		lacks_memory(q, f); /* a larger tmpfs would not help */
	else if (q->memory_bytes > room)
		fail(f, cost, "mount -o remount,size=%" PRIu64 "M /dev/shm",
			shm_size_for(facts, room, q->memory_bytes));
	else if (takes && room < SHM_MIN)
		warn(f, cost, "mount -o remount,size=%" PRIu64 "M /dev/shm",
			shm_size_for(facts, room, SMV_GIB));
}

static void check_shm(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	char size[32], room[32];

	if (!facts->shm_is_tmpfs) {
		found(f, "/dev/shm is no tmpfs");
		fail(f, "lent memory and RAM files have no place by default",
			"mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm");
	} else if (facts->shm_size_bytes == 0) {
		found(f, "/dev/shm is a tmpfs without a limit");
	} else {
		found(f, "/dev/shm has %s free of %s",
			smv_format_size(facts->shm_free_bytes, room, sizeof(room)),
			smv_format_size(facts->shm_size_bytes, size, sizeof(size)));
		check_shm_room(q, f);
	}
}

static void check_swap(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;

	if (!facts->has_swap) {
		found(f, "none");
	} else if (facts->shm_noswap) {
		found(f, "%s, but /dev/shm is mounted with noswap", facts->swap_device);
	} else if (strcmp(facts->swap_max, "0") == 0) {
		found(f, "%s, but memory.swap.max of this cgroup is 0", facts->swap_device);
	} else {
		found(f, "%s; memory.swap.max of this cgroup is %s", facts->swap_device,
			*facts->swap_max ? facts->swap_max : "not there");
		warn(f, "memory of VMs may go to disk: an access then takes milliseconds",
			"swapoff -a  # or MemorySwapMax=0 in the units of QEMU and the daemons");
	}
}

static void check_shmem_huge(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;

	found(f, "shmem_enabled is %s", *facts->shmem_enabled ? facts->shmem_enabled : "not there");
	if (facts->shmem_is_huge)
		warn(f, "RAM files get huge pages, of which single pages cannot be given up",
			"echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

/* RAM files, and arenas unless somebody puts them there, have no use for pages set aside. */
static void check_hugepages(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	char cost[sizeof(f->cost)], idle[32];

	found(f, "%" PRIu64 " pages of 2 MiB set aside, %" PRIu64 " free; %s%s", facts->huge_total,
		facts->huge_free, *facts->huge_mount ? "hugetlbfs on " : "no hugetlbfs mounted",
		facts->huge_mount);
	if (facts->huge_free == 0 || (q->roles == SMV_ROLE_SUB_HOST && *facts->huge_mount))
		return;
	snprintf(cost, sizeof(cost), "%s lie idle: guest RAM and lent memory are of 4 KiB pages",
		smv_format_size(facts->huge_free * HUGE_PAGE, idle, sizeof(idle)));
	warn(f, cost, "sysctl vm.nr_hugepages=%" PRIu64, facts->huge_total - facts->huge_free);
}

/* --- RDMA: whoever lacks it takes tcp ------------------------------------------------------- */

static const struct smv_verbs_port *find_active_port(const struct smv_verbs_inventory *rdma)
{
	for (unsigned int i = 0; i < rdma->nr_ports; i++)
		if (rdma->ports[i].active && rdma->ports[i].rdma_cm_ib)
			return &rdma->ports[i];
	return NULL;
}

static void describe_port(const struct smv_verbs_port *p, char *text, size_t len)
{
	if (p->error)
		snprintf(text, len, "%s: %s", p->device, strerror(-p->error));
	else
		snprintf(text, len, "%s port %u: %s, %s%s", p->device, p->number,
			p->active ? "active" : p->state, p->link_layer,
			p->rdma_cm_ib ? "" : ", but iWARP");
}

static void describe_ports(const struct smv_verbs_inventory *rdma, struct smv_finding *f)
{
	char text[160];
	size_t n = 0;

	for (unsigned int i = 0; i < rdma->nr_ports && n < sizeof(f->found); i++) {
		describe_port(&rdma->ports[i], text, sizeof(text));
		n += (size_t)snprintf(
			f->found + n, sizeof(f->found) - n, "%s%s", i ? "; " : "", text);
	}
}

static void no_rdma_device(const struct smv_host_facts *facts, struct smv_finding *f)
{
	if (*facts->sysfs_rdma_device) {
		found(f, "the kernel has %s, but libibverbs has no driver for it",
			facts->sysfs_rdma_device);
		warn(f, NO_VERBS, "apt install ibverbs-providers && modprobe ib_uverbs");
	} else {
		found(f, "none");
		warn(f, NO_VERBS,
			"modprobe mlx5_ib  # or your card's driver; without a card stay with tcp");
	}
}

static void check_rdma_device(const struct question *q, struct smv_finding *f)
{
	const struct smv_verbs_inventory *rdma = &q->facts->rdma;
	const struct smv_verbs_port *first = &rdma->ports[0];

	if (rdma->nr_devices == 0) {
		no_rdma_device(q->facts, f);
		return;
	}
	describe_ports(rdma, f);
	if (find_active_port(rdma))
		return;
	if (first->error == -EACCES || first->error == -EPERM)
		warn(f, NO_VERBS, "chmod a+rw /dev/infiniband/uverbs* /dev/infiniband/rdma_cm");
	else if (*first->netdev)
		warn(f, NO_VERBS, "ip link set %s up", first->netdev);
	else
		warn(f, NO_VERBS,
			"rdma link show  # a port must be ACTIVE: cable, switch, link up");
}

/* RoCE: the GID is the address. InfiniBand: it is that of the port below the address's interface.
 */
static bool is_address_of(const struct smv_host_address *a, const uint8_t gid[16])
{
	return memcmp(a->is_ipoib ? a->ipoib_gid : a->addr.s6_addr, gid, 16) == 0;
}

static const struct smv_host_address *find_address(
	const struct smv_host_facts *facts, const uint8_t gid[16])
{
	for (unsigned int i = 0; i < facts->nr_addresses; i++)
		if (is_address_of(&facts->addresses[i], gid))
			return &facts->addresses[i];
	return NULL;
}

static void format_address(const struct in6_addr *addr, char text[INET6_ADDRSTRLEN])
{
	if (IN6_IS_ADDR_V4MAPPED(addr))
		inet_ntop(AF_INET, &addr->s6_addr[12], text, INET6_ADDRSTRLEN);
	else
		inet_ntop(AF_INET6, addr, text, INET6_ADDRSTRLEN);
}

/* The first that fits is told. */
static bool find_gid(const struct smv_host_facts *facts, struct smv_finding *f)
{
	char text[INET6_ADDRSTRLEN];

	for (unsigned int i = 0; i < facts->rdma.nr_gids; i++) {
		const struct smv_verbs_gid *gid = &facts->rdma.gids[i];
		const struct smv_verbs_port *port = &facts->rdma.ports[gid->port];
		const struct smv_host_address *a = find_address(facts, gid->raw);

		if (!a || !port->active || !port->rdma_cm_ib)
			continue;
		format_address(&a->addr, text);
		found(f, "GID %u of %s port %u belongs to %s on %s", gid->index, port->device,
			port->number, text, a->netdev);
		return true;
	}
	return false;
}

static void not_needed(struct smv_finding *f, const char *why)
{
	f->status = SMV_FINDING_NOT_NEEDED;
	found(f, "%s", why);
}

static void check_rdma_gid(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	const struct smv_verbs_port *port = find_active_port(&facts->rdma);

	if (!port) {
		not_needed(f, "no active RDMA port");
		return;
	}
	if (find_gid(facts, f))
		return;
	found(f, "no GID of %u belongs to an IP address of this host", facts->rdma.nr_gids);
	warn(f, "peers cannot reach its RDMA ports by an IP address: they take tcp",
		"ip addr add ADDRESS/PREFIX dev %s", *port->netdev ? port->netdev : "NETDEV");
}

static void check_rdma_cm(const struct question *q, struct smv_finding *f)
{
	const int error = q->facts->rdma.cm_error;

	if (q->facts->rdma.nr_devices == 0 && !*q->facts->sysfs_rdma_device) {
		not_needed(f, "no RDMA device");
		return;
	}
	if (error == 0) {
		found(f, "/dev/infiniband/rdma_cm works");
		return;
	}
	found(f, "/dev/infiniband/rdma_cm: %s", strerror(-error));
	if (error == -EACCES || error == -EPERM)
		warn(f, NO_VERBS, "chmod a+rw /dev/infiniband/rdma_cm");
	else
		warn(f, NO_VERBS, "modprobe rdma_ucm");
}

/* All that is lent is registered, that is locked. Others register staging buffers. */
static void check_memlock_limit(const struct question *q, struct smv_finding *f)
{
	static const char remedy[] = "ulimit -l unlimited  # or LimitMEMLOCK=infinity in the unit";
	const uint64_t limit = q->facts->memlock_bytes;

	if (limit < MEMLOCK_MIN)
		warn(f, NO_VERBS, remedy);
	else if (q->roles & SMV_ROLE_SUB_HOST && (!q->memory_bytes || q->memory_bytes > limit))
		warn(f, "memserverd cannot register more than that for verbs", remedy);
}

static void check_memlock(const struct question *q, struct smv_finding *f)
{
	const struct smv_host_facts *facts = q->facts;
	const bool unlimited = facts->memlock_bytes == UINT64_MAX;
	char limit[32] = "unlimited";

	if (!unlimited)
		smv_format_size(facts->memlock_bytes, limit, sizeof(limit));
	if (!unlimited && has_capability(facts, CAP_IPC_LOCK)) {
		found(f, "RLIMIT_MEMLOCK is %s, which CAP_IPC_LOCK lifts", limit);
		return;
	}
	found(f, "RLIMIT_MEMLOCK is %s", limit);
	if (facts->rdma.nr_devices == 0)
		f->status = SMV_FINDING_NOT_NEEDED;
	else if (!unlimited)
		check_memlock_limit(q, f);
}

/* --- all of them ---------------------------------------------------------------------------- */

static const struct check {
	const char *name;
	unsigned int roles;
	void (*look)(const struct question *question, struct smv_finding *finding);
} checks[] = {
	{"kernel", RUNS_VM, check_kernel},
	{"userfaultfd", RUNS_VM, check_userfaultfd},
	{"userfaultfd-features", RUNS_VM, check_userfaultfd_features},
	{"pagemap-scan", RUNS_VM, check_pagemap_scan},
	{"write-tracking", RUNS_VM, check_write_tracking},
	{"process-access", RUNS_VM, check_process_access},
	{"qemu", RUNS_VM, check_qemu},
	{"memory", SMV_ROLE_ANY, check_memory},
	{"shm", SMV_ROLE_ANY, check_shm},
	{"swap", SMV_ROLE_ANY, check_swap},
	{"shmem-huge", RUNS_VM, check_shmem_huge},
	{"hugepages", SMV_ROLE_ANY, check_hugepages},
	{"rdma-device", SMV_ROLE_ANY, check_rdma_device},
	{"rdma-gid", SMV_ROLE_ANY, check_rdma_gid},
	{"rdma-cm", SMV_ROLE_ANY, check_rdma_cm},
	{"memlock", SMV_ROLE_ANY, check_memlock},
};
_Static_assert(SMV_ARRAY_SIZE(checks) <= SMV_FINDINGS_MAX, "room for all findings");

size_t smv_findings_make(const struct smv_host_facts *facts, unsigned int roles,
	uint64_t memory_bytes, struct smv_finding findings[SMV_FINDINGS_MAX])
{
	const struct question question = {facts, roles, memory_bytes};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(checks); i++) {
		struct smv_finding *f = &findings[i];

		*f = (struct smv_finding){.name = checks[i].name, .status = SMV_FINDING_OK};
		checks[i].look(&question, f);
		if (checks[i].roles & roles)
			continue;
		/* What is there may still be of interest. */
		f->status = SMV_FINDING_NOT_NEEDED;
		f->cost[0] = f->remedy[0] = '\0';
	}
	return SMV_ARRAY_SIZE(checks);
}

enum smv_finding_status smv_findings_verdict(const struct smv_finding *findings, size_t nr)
{
	enum smv_finding_status worst = SMV_FINDING_OK;

	for (size_t i = 0; i < nr; i++)
		if (findings[i].status > worst)
			worst = findings[i].status;
	return worst;
}

/* --- names ---------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	unsigned int roles;
} role_names[] = {{"sub-host", SMV_ROLE_SUB_HOST}, {"main-host", SMV_ROLE_MAIN_HOST},
	{"source", SMV_ROLE_SOURCE}, {"any", SMV_ROLE_ANY}};

int smv_role_parse(const char *text, unsigned int *roles)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(role_names); i++)
		if (strcmp(role_names[i].name, text) == 0) {
			*roles = role_names[i].roles;
			return 0;
		}
	return -EINVAL;
}

const char *smv_role_name(unsigned int roles)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(role_names); i++)
		if (role_names[i].roles == roles)
			return role_names[i].name;
	return "several";
}

const char *smv_finding_status_name(enum smv_finding_status status)
{
	static const char *const names[] = {
		[SMV_FINDING_NOT_NEEDED] = "not-needed",
		[SMV_FINDING_OK] = "ok",
		[SMV_FINDING_WARNING] = "warning",
		[SMV_FINDING_PROBLEM] = "problem",
	};

	return names[status];
}
