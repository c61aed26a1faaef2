/* SPDX-License-Identifier: Apache-2.0 */
#include "client/uffd.h"
#include "common/host_check.h"
#include "common/units.h"
#include "ctl/doctor.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- findings from made-up facts ------------------------------------------------------------ */

static struct smv_host_facts host;
static struct smv_finding findings[SMV_FINDINGS_MAX];

static void set_address(struct smv_host_address *a, const char *netdev, const char *addr)
{
	strcpy(a->netdev, netdev);
	cr_assert_eq(inet_pton(AF_INET6, addr, &a->addr), 1);
}

static void set_gid(unsigned int i, unsigned int port, const char *addr)
{
	host.rdma.gids[i].port = port;
	host.rdma.gids[i].index = i;
	cr_assert_eq(inet_pton(AF_INET6, addr, host.rdma.gids[i].raw), 1);
}

static void set_rdma(void)
{
	struct smv_verbs_inventory *rdma = &host.rdma;

	strcpy(host.sysfs_rdma_device, "mlx5_0");
	rdma->nr_devices = rdma->nr_ports = 1;
	rdma->ports[0] = (struct smv_verbs_port){.device = "mlx5_0",
		.number = 1,
		.rdma_cm_ib = true,
		.active = true,
		.state = "PORT_ACTIVE",
		.link_layer = "Ethernet",
		.netdev = "eth0"};
	rdma->nr_gids = 2;
	set_gid(0, 0, "fe80::1");
	set_gid(1, 0, "::ffff:10.0.0.3");
	host.nr_addresses = 2;
	set_address(&host.addresses[0], "eth1", "fd00::1");
	set_address(&host.addresses[1], "eth0", "::ffff:10.0.0.3");
}

/* A host that lacks nothing. */
static void set_up(void)
{
	memset(&host, 0, sizeof(host));
	strcpy(host.kernel_release, "6.12.9-amd64");
	host.kernel_major = 6;
	host.kernel_minor = 12;
	host.uffd_features = SMV_UFFD_PAGE;
	host.has_uffd_device = true;
	host.capabilities = 1ull << CAP_SYS_PTRACE;
	host.mem_total_bytes = 64 * SMV_GIB;
	host.mem_available_bytes = 60 * SMV_GIB;
	host.shm_is_tmpfs = true;
	host.shm_size_bytes = 32 * SMV_GIB;
	host.shm_free_bytes = 30 * SMV_GIB;
	strcpy(host.shmem_enabled, "never");
	host.memlock_bytes = UINT64_MAX;
	strcpy(host.qemu_path, "/usr/bin/qemu-system-x86_64");
	host.qemu_major = 7;
	host.qemu_minor = 2;
	set_rdma();
}

static const struct smv_finding *look(const char *name, unsigned int roles, uint64_t memory_bytes)
{
	size_t nr = smv_findings_make(&host, roles, memory_bytes, findings);

	for (size_t i = 0; i < nr; i++)
		if (strcmp(findings[i].name, name) == 0)
			return &findings[i];
	cr_assert_fail("no check is named %s", name);
	return NULL;
}

static void expect_given(const char *name, unsigned int roles, uint64_t memory_bytes,
	enum smv_finding_status status, const char *found, const char *remedy)
{
	const struct smv_finding *f = look(name, roles, memory_bytes);

	cr_expect_eq(f->status, status, "%s is %s: %s", name, smv_finding_status_name(f->status),
		f->found);
	cr_expect(strstr(f->found, found), "%s found '%s', not '%s'", name, f->found, found);
	if (remedy)
		cr_expect(strstr(f->remedy, remedy), "%s mends by '%s', not '%s'", name, f->remedy,
			remedy);
	cr_expect_eq(f->cost[0] != '\0', status > SMV_FINDING_OK, "%s costs '%s'", name, f->cost);
	cr_expect_eq(f->remedy[0] != '\0', status > SMV_FINDING_OK, "%s: '%s'", name, f->remedy);
}

#define OK SMV_FINDING_OK
#define WARNING SMV_FINDING_WARNING
#define PROBLEM SMV_FINDING_PROBLEM
#define NOT_NEEDED SMV_FINDING_NOT_NEEDED

static void expect(
	const char *name, enum smv_finding_status status, const char *found, const char *remedy)
{
	expect_given(name, SMV_ROLE_ANY, 0, status, found, remedy);
}

TestSuite(finding, .init = set_up);

Test(finding, nothing_is_lacking_on_a_good_host)
{
	static const unsigned int roles[] = {
		SMV_ROLE_SUB_HOST, SMV_ROLE_MAIN_HOST, SMV_ROLE_SOURCE, SMV_ROLE_ANY};

	for (size_t r = 0; r < sizeof(roles) / sizeof(roles[0]); r++) {
		size_t nr = smv_findings_make(&host, roles[r], 16 * SMV_GIB, findings);

		cr_expect_eq(smv_findings_verdict(findings, nr), OK);
		for (size_t i = 0; i < nr; i++) {
			cr_expect_leq(findings[i].status, OK, "%s: %s", findings[i].name,
				findings[i].found);
			cr_expect(findings[i].found[0] && !findings[i].cost[0] &&
					  !findings[i].remedy[0],
				"%s", findings[i].name);
		}
	}
}

Test(finding, the_verdict_is_the_worst_status)
{
	size_t nr;

	host.has_swap = true;
	nr = smv_findings_make(&host, SMV_ROLE_SOURCE, 0, findings);
	cr_expect_eq(smv_findings_verdict(findings, nr), WARNING);
	host.qemu_path[0] = '\0';
	nr = smv_findings_make(&host, SMV_ROLE_SOURCE, 0, findings);
	cr_expect_eq(smv_findings_verdict(findings, nr), PROBLEM);
	nr = smv_findings_make(&host, SMV_ROLE_SUB_HOST, 0, findings);
	cr_expect_eq(smv_findings_verdict(findings, nr), WARNING);
}

Test(finding, a_sub_host_needs_no_vm)
{
	static const char *const names[] = {"kernel", "userfaultfd", "userfaultfd-features",
		"pagemap-scan", "write-tracking", "process-access", "qemu", "shmem-huge"};

	host.kernel_major = 5;
	host.uffd_error = -ENOSYS;
	host.pagemap_scan_error = -ENOTTY;
	host.tracking_error = -EPERM;
	host.process_access_error = -EACCES;
	host.qemu_path[0] = '\0';
	host.shmem_is_huge = true;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		expect_given(names[i], SMV_ROLE_SUB_HOST, 0, NOT_NEEDED, "", NULL);
		cr_expect_gt(look(names[i], SMV_ROLE_MAIN_HOST, 0)->status, OK, "%s", names[i]);
		cr_expect_gt(look(names[i], SMV_ROLE_SOURCE, 0)->status, OK, "%s", names[i]);
	}
}

Test(finding, kernel)
{
	host.kernel_minor = 7;
	expect("kernel", OK, "6.12.9-amd64", NULL);
	host.kernel_major = 7;
	host.kernel_minor = 0;
	expect("kernel", OK, "Linux", NULL);
	host.kernel_major = 6;
	host.kernel_minor = 6;
	expect("kernel", OK, "with what is needed of 6.7", NULL);
	host.pagemap_scan_error = -ENOTTY;
	expect("kernel", PROBLEM, "older than 6.7", "linux-image-amd64");
	host.pagemap_scan_error = 0;
	host.uffd_features &= ~(uint64_t)UFFD_FEATURE_WP_ASYNC;
	expect("kernel", PROBLEM, "older than 6.7", "linux-image-amd64");
	host.kernel_major = host.kernel_minor = 0;
	host.kernel_release[0] = '\0';
	expect("kernel", PROBLEM, "unknown version", NULL);
}

Test(finding, userfaultfd)
{
	expect("userfaultfd", OK, "user 0", NULL);
	host.uid = 1000;
	host.uffd_error = -EPERM;
	expect("userfaultfd", PROBLEM, strerror(EPERM), "setfacl -m u:1000:rw /dev/userfaultfd");
	host.has_uffd_device = false;
	expect("userfaultfd", PROBLEM, "missing", "sysctl vm.unprivileged_userfaultfd=1");
	host.uffd_error = -ENOSYS;
	expect("userfaultfd", PROBLEM, strerror(ENOSYS), "apt install");
	expect("userfaultfd-features", WARNING, "not known", "smemvctl doctor");
}

Test(finding, userfaultfd_features)
{
	host.uffd_features |= 1ull << 40; /* of a newer kernel */
	expect("userfaultfd-features", OK, "WP_ASYNC", NULL);
	host.uffd_features &= ~(uint64_t)(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MINOR_SHMEM);
	expect("userfaultfd-features", PROBLEM,
		"missing: MINOR_SHMEM (Linux 5.14), WP_ASYNC (Linux 6.7)", "apt install");
}

Test(finding, pagemap_scan)
{
	expect("pagemap-scan", OK, "works", NULL);
	host.pagemap_scan_error = -ENOTTY;
	expect("pagemap-scan", PROBLEM, strerror(ENOTTY), "apt install");
}

Test(finding, write_tracking)
{
	expect("write-tracking", OK, "counts as written", NULL);
	host.tracking_error = -EPERM;
	strcpy(host.tracking_text, "reports a page as clean");
	expect("write-tracking", PROBLEM, "reports a page as clean", "apt install");
	host.uffd_error = -EPERM;
	expect("write-tracking", WARNING, "not known", "smemvctl doctor");
}

Test(finding, process_access)
{
	expect("process-access", OK, "all processes", NULL);
	host.capabilities = 0;
	host.uid = 1000;
	expect("process-access", OK, "user 1000 only", NULL);
	host.process_access_error = -EACCES;
	expect("process-access", PROBLEM, strerror(EACCES), "sudo");
}

Test(finding, qemu)
{
	expect("qemu", OK, "7.2", NULL);
	host.qemu_major = 10;
	host.qemu_minor = 0;
	expect("qemu", OK, "10.0", NULL);
	host.qemu_major = 7;
	host.qemu_minor = 1;
	expect("qemu", PROBLEM, "7.1", "apt install qemu-system-x86");
	host.qemu_major = 0;
	expect("qemu", WARNING, "version", "--version");
	host.qemu_error = -EIO;
	expect("qemu", PROBLEM, "fails", "apt install --reinstall");
	host.qemu_path[0] = '\0';
	expect("qemu", PROBLEM, "no qemu-system-x86_64", "apt install qemu-system-x86");
}

Test(finding, memory)
{
	const uint64_t size = 61 * SMV_GIB;

	expect("memory", OK, "60.0 GiB available of 64.0 GiB", NULL);
	expect_given("memory", SMV_ROLE_SUB_HOST, 60 * SMV_GIB, OK, "", NULL);
	expect_given("memory", SMV_ROLE_SUB_HOST, size, PROBLEM, "", "memserverd --memory 61440M");
	expect_given("memory", SMV_ROLE_MAIN_HOST, size, PROBLEM, "", "--budget 61440M");
	/* The VM is there already. */
	expect_given("memory", SMV_ROLE_SOURCE, size, OK, "", NULL);
	expect_given("memory", SMV_ROLE_SOURCE, 65 * SMV_GIB, PROBLEM, "", "-m 65536M");
	host.huge_free = 512;
	expect_given("memory", SMV_ROLE_SUB_HOST, size, PROBLEM, "", "vm.nr_hugepages=0");
	host.huge_free = 511;
	expect_given("memory", SMV_ROLE_SUB_HOST, size, PROBLEM, "", "memserverd");
}

Test(finding, shm)
{
	const uint64_t size = 31 * SMV_GIB;

	expect("shm", OK, "30.0 GiB free of 32.0 GiB", NULL);
	expect_given("shm", SMV_ROLE_SUB_HOST, 30 * SMV_GIB, OK, "", NULL);
	/* 2 GiB are taken by others: 33 GiB. */
	expect_given("shm", SMV_ROLE_SUB_HOST, size, PROBLEM, "", "remount,size=33793M /dev/shm");
	expect_given("shm", SMV_ROLE_MAIN_HOST, size, PROBLEM, "", "remount,size=");
	expect_given("shm", SMV_ROLE_SOURCE, size, OK, "", NULL);
	expect_given("shm", SMV_ROLE_SOURCE, 33 * SMV_GIB, PROBLEM, "", "size=33793M");
	/* A tmpfs that is larger than the host mends nothing. */
	expect_given("shm", SMV_ROLE_SUB_HOST, 70 * SMV_GIB, PROBLEM, "", "memserverd --memory");
	host.shm_free_bytes = 63 * SMV_MIB;
	expect_given("shm", SMV_ROLE_SUB_HOST, 0, WARNING, "63.0 MiB", "remount,size=");
	expect_given("shm", SMV_ROLE_SOURCE, 0, OK, "", NULL);
	host.shm_size_bytes = host.shm_free_bytes = 0;
	expect_given("shm", SMV_ROLE_SUB_HOST, size, OK, "without a limit", NULL);
	host.shm_is_tmpfs = false;
	expect("shm", PROBLEM, "no tmpfs", "mount -t tmpfs");
}

Test(finding, swap)
{
	expect("swap", OK, "none", NULL);
	host.has_swap = true;
	strcpy(host.swap_device, "/dev/sda2");
	expect("swap", WARNING, "/dev/sda2; memory.swap.max of this cgroup is not there",
		"swapoff -a");
	strcpy(host.swap_max, "max");
	expect("swap", WARNING, "is max", "swapoff -a");
	strcpy(host.swap_max, "0");
	expect("swap", OK, "is 0", NULL);
	host.swap_max[0] = '\0';
	host.shm_noswap = true;
	expect("swap", OK, "noswap", NULL);
}

Test(finding, shmem_huge)
{
	expect("shmem-huge", OK, "never", NULL);
	host.shmem_is_huge = true;
	strcpy(host.shmem_enabled, "within_size");
	expect("shmem-huge", WARNING, "within_size", "echo never >");
}

Test(finding, hugepages)
{
	expect("hugepages", OK, "0 pages of 2 MiB", NULL);
	host.huge_total = 100;
	expect("hugepages", OK, "100 pages of 2 MiB set aside, 0 free", NULL);
	host.huge_free = 60;
	expect("hugepages", WARNING, "60 free", "sysctl vm.nr_hugepages=40");
	cr_expect(strstr(look("hugepages", SMV_ROLE_ANY, 0)->cost, "120 MiB"));
	strcpy(host.huge_mount, "/dev/hugepages");
	expect("hugepages", WARNING, "hugetlbfs on /dev/hugepages", NULL);
	/* An arena may be there. */
	expect_given("hugepages", SMV_ROLE_SUB_HOST, 0, OK, "/dev/hugepages", NULL);
}

Test(finding, rdma_device)
{
	struct smv_verbs_port *port = &host.rdma.ports[0];

	expect("rdma-device", OK, "mlx5_0 port 1: active, Ethernet", NULL);
	port->active = false;
	strcpy(port->state, "PORT_DOWN");
	expect("rdma-device", WARNING, "PORT_DOWN", "ip link set eth0 up");
	port->netdev[0] = '\0';
	expect("rdma-device", WARNING, "PORT_DOWN", "rdma link show");
	port->active = true;
	port->rdma_cm_ib = false;
	expect("rdma-device", WARNING, "iWARP", "rdma link show");
	host.rdma.nr_ports = 2;
	host.rdma.ports[1] = (struct smv_verbs_port){.device = "mlx5_1",
		.number = 1,
		.rdma_cm_ib = true,
		.active = true,
		.link_layer = "InfiniBand"};
	expect("rdma-device", OK, "; mlx5_1 port 1: active, InfiniBand", NULL);
	host.rdma.nr_ports = 1;
	*port = (struct smv_verbs_port){.device = "mlx5_0", .rdma_cm_ib = true, .error = -EACCES};
	expect("rdma-device", WARNING, strerror(EACCES), "chmod a+rw /dev/infiniband/uverbs*");
	host.rdma.nr_devices = host.rdma.nr_ports = 0;
	expect("rdma-device", WARNING, "the kernel has mlx5_0", "ibverbs-providers");
	host.sysfs_rdma_device[0] = '\0';
	expect("rdma-device", WARNING, "none", "modprobe");
}

Test(finding, rdma_gid)
{
	expect("rdma-gid", OK, "GID 1 of mlx5_0 port 1 belongs to 10.0.0.3 on eth0", NULL);
	set_gid(1, 0, "fd00::1");
	expect("rdma-gid", OK, "fd00::1 on eth1", NULL);
	set_gid(1, 0, "fd00::2");
	expect("rdma-gid", WARNING, "no GID of 2", "ip addr add ADDRESS/PREFIX dev eth0");
	host.rdma.ports[0].active = false;
	expect("rdma-gid", NOT_NEEDED, "no active RDMA port", NULL);
}

Test(finding, rdma_gid_of_another_port_that_is_down)
{
	host.rdma.nr_ports = 2;
	host.rdma.ports[1] = host.rdma.ports[0];
	host.rdma.ports[1].active = false;
	host.rdma.gids[1].port = 1;
	expect("rdma-gid", WARNING, "no GID", "ip addr add");
}

Test(finding, rdma_gid_of_infiniband_is_that_of_the_interface)
{
	struct smv_host_address *a = &host.addresses[1];

	set_gid(1, 0, "fe80::f452:1403:1");
	a->is_ipoib = true;
	memcpy(a->ipoib_gid, host.rdma.gids[1].raw, 16);
	expect("rdma-gid", OK, "belongs to 10.0.0.3", NULL);
	a->ipoib_gid[15] ^= 1;
	expect("rdma-gid", WARNING, "no GID", "ip addr add");
}

Test(finding, rdma_cm)
{
	expect("rdma-cm", OK, "works", NULL);
	host.rdma.cm_error = -ENOENT;
	expect("rdma-cm", WARNING, strerror(ENOENT), "modprobe rdma_ucm");
	host.rdma.cm_error = -EACCES;
	expect("rdma-cm", WARNING, strerror(EACCES), "chmod a+rw /dev/infiniband/rdma_cm");
	host.rdma.nr_devices = 0;
	expect("rdma-cm", WARNING, strerror(EACCES), NULL);
	host.sysfs_rdma_device[0] = '\0';
	expect("rdma-cm", NOT_NEEDED, "no RDMA device", NULL);
}

Test(finding, memlock)
{
	expect("memlock", OK, "unlimited", NULL);
	host.memlock_bytes = 8 * SMV_MIB;
	expect("memlock", WARNING, "8.0 MiB", "ulimit -l unlimited");
	expect_given("memlock", SMV_ROLE_SOURCE, 0, WARNING, "8.0 MiB", "LimitMEMLOCK=infinity");
	host.capabilities |= 1ull << CAP_IPC_LOCK;
	expect("memlock", OK, "8.0 MiB, which CAP_IPC_LOCK lifts", NULL);
	host.capabilities = 0;
	host.rdma.nr_devices = 0;
	expect("memlock", NOT_NEEDED, "8.0 MiB", NULL);
}

Test(finding, memlock_holds_what_is_lent)
{
	host.memlock_bytes = SMV_GIB;
	expect_given("memlock", SMV_ROLE_SOURCE, 8 * SMV_GIB, OK, "1.0 GiB", NULL);
	expect_given("memlock", SMV_ROLE_SUB_HOST, SMV_GIB, OK, "1.0 GiB", NULL);
	expect_given("memlock", SMV_ROLE_SUB_HOST, 2 * SMV_GIB, WARNING, "1.0 GiB", "ulimit");
	expect_given("memlock", SMV_ROLE_SUB_HOST, 0, WARNING, "1.0 GiB", "ulimit");
}

Test(finding, roles_have_names)
{
	static const char *const names[] = {"sub-host", "main-host", "source", "any"};
	unsigned int roles;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		cr_assert_eq(smv_role_parse(names[i], &roles), 0);
		cr_assert_str_eq(smv_role_name(roles), names[i]);
	}
	cr_assert_eq(smv_role_parse("", &roles), -EINVAL);
	cr_assert_eq(smv_role_parse("subhost", &roles), -EINVAL);
}

/* --- facts from a made-up tree -------------------------------------------------------------- */

static char root[] = "/tmp/test_doctor.XXXXXX";
static char path_before[4096];

static void make_root(void)
{
	snprintf(path_before, sizeof(path_before), "%s", getenv("PATH"));
	cr_assert_not_null(mkdtemp(root));
	memset(&host, 0, sizeof(host));
}

static void remove_root(void)
{
	char command[64];

	setenv("PATH", path_before, 1);
	snprintf(command, sizeof(command), "rm -rf %s", root);
	cr_assert_eq(system(command), 0);
}

static void write_file(const char *name, const char *content)
{
	char path[300];
	FILE *f;

	snprintf(path, sizeof(path), "%s%s", root, name);
	for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(path, 0700);
		*slash = '/';
	}
	f = fopen(path, "w");
	cr_assert_not_null(f, "%s", path);
	fputs(content, f);
	fclose(f);
}

TestSuite(facts, .init = make_root, .fini = remove_root);

Test(facts, of_an_empty_tree_are_none)
{
	smv_host_facts_read(&host, root);
	cr_expect_eq(host.kernel_major, 0);
	cr_expect_eq(host.unprivileged_userfaultfd, -1);
	cr_expect(!host.has_uffd_device && !host.has_swap && !host.shm_is_tmpfs);
	cr_expect(!host.shmem_is_huge && !host.shmem_enabled[0] && !host.swap_max[0]);
	cr_expect(!host.sysfs_rdma_device[0] && host.capabilities == 0);
}

Test(facts, kernel)
{
	write_file("/proc/sys/kernel/osrelease", "6.1.0-37-amd64\n");
	write_file("/proc/sys/vm/unprivileged_userfaultfd", "0\n");
	write_file("/proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\n");
	write_file("/dev/userfaultfd", "");
	smv_host_facts_read(&host, root);
	cr_expect_str_eq(host.kernel_release, "6.1.0-37-amd64");
	cr_expect(host.kernel_major == 6 && host.kernel_minor == 1);
	cr_expect_eq(host.unprivileged_userfaultfd, 0);
	cr_expect_eq(host.capabilities, 1ull << CAP_IPC_LOCK);
	cr_expect(host.has_uffd_device);
}

Test(facts, memory)
{
	write_file("/proc/meminfo", "MemTotal:  1000 kB\nMemFree: 7 kB\nMemAvailable: 500 kB\n");
	write_file("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "12\n");
	write_file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "5\n");
	write_file("/proc/self/mounts", "tmpfs /dev/shm tmpfs rw,nosuid,noswap 0 0\n"
					"hugetlbfs /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n");
	write_file("/dev/shm/x", "");
	smv_host_facts_read(&host, root);
	cr_expect(host.mem_total_bytes == 1024000 && host.mem_available_bytes == 512000);
	cr_expect(host.huge_total == 12 && host.huge_free == 5);
	cr_expect_str_eq(host.huge_mount, "/dev/hugepages");
	cr_expect(host.shm_is_tmpfs && host.shm_noswap);
	cr_expect_gt(host.shm_size_bytes, 0);
}

Test(facts, the_last_mount_at_a_place_counts)
{
	write_file("/proc/self/mounts",
		"tmpfs /dev/shm tmpfs rw,noswap 0 0\n/dev/sda1 /dev/shm ext4 rw 0 0\n");
	smv_host_facts_read(&host, root);
	cr_expect(!host.shm_is_tmpfs && !host.shm_noswap);
}

Test(facts, swap)
{
	write_file("/proc/swaps", "Filename Type Size Used Priority\n");
	smv_host_facts_read(&host, root);
	cr_expect(!host.has_swap && !host.swap_device[0]);
	write_file("/proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
	smv_host_facts_read(&host, root);
	cr_expect(host.has_swap);
	cr_expect_str_eq(host.swap_device, "/dev/sda2");
}

static void expect_swap_max(const char *inner, const char *outer, const char *least)
{
	memset(&host, 0, sizeof(host));
	write_file("/sys/fs/cgroup/a/b/memory.swap.max", inner);
	write_file("/sys/fs/cgroup/a/memory.swap.max", outer);
	smv_host_facts_read(&host, root);
	cr_expect_str_eq(host.swap_max, least, "of %s and %s: %s", inner, outer, host.swap_max);
}

Test(facts, the_least_swap_limit_counts)
{
	write_file("/proc/self/cgroup", "1:name=systemd:/x\n0::/a/b\n");
	expect_swap_max("max\n", "max\n", "max");
	expect_swap_max("max\n", "0\n", "0");
	expect_swap_max("0\n", "max\n", "0");
	expect_swap_max("4096\n", "20000\n", "4096");
	expect_swap_max("20000\n", "4096\n", "4096");
}

Test(facts, huge_shmem)
{
	static const struct {
		const char *line, *word;
		bool huge;
	} cases[] = {{"always within_size advise [never] deny force\n", "never", false},
		{"always within_size [advise] never deny force\n", "advise", true},
		{"[always] within_size advise never deny force\n", "always", true},
		{"always [within_size] advise never deny force\n", "within_size", true},
		{"always within_size advise never deny [force]\n", "force", true}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		write_file("/sys/kernel/mm/transparent_hugepage/shmem_enabled", cases[i].line);
		smv_host_facts_read(&host, root);
		cr_expect_eq(host.shmem_is_huge, cases[i].huge, "%s", cases[i].line);
		cr_expect_str_eq(host.shmem_enabled, cases[i].word);
	}
}

Test(facts, rdma_devices_of_the_kernel)
{
	write_file("/sys/class/infiniband/mlx5_0/node_type", "1: CA\n");
	smv_host_facts_read(&host, root);
	cr_expect_str_eq(host.sysfs_rdma_device, "mlx5_0");
}

/* A program of QEMU's name that does as @script says. */
static void ask_with_qemu(const char *script)
{
	char path[100];

	write_file("/bin/qemu-system-x86_64", script);
	snprintf(path, sizeof(path), "%s/bin/qemu-system-x86_64", root);
	cr_assert_eq(chmod(path, 0755), 0);
	snprintf(path, sizeof(path), "/nowhere:%s/bin:/bin:/usr/bin", root);
	setenv("PATH", path, 1);
	memset(&host, 0, sizeof(host));
	smv_host_facts_ask(&host);
}

Test(facts, qemu)
{
	ask_with_qemu("#!/bin/sh\necho 'QEMU emulator version 8.1.3 (Debian)'\necho more\n");
	cr_expect(strncmp(host.qemu_path, root, strlen(root)) == 0, "%s", host.qemu_path);
	cr_expect(host.qemu_error == 0 && host.qemu_major == 8 && host.qemu_minor == 1);
	ask_with_qemu("#!/bin/sh\necho something else\n");
	cr_expect(host.qemu_error == 0 && host.qemu_major == 0);
	ask_with_qemu("#!/bin/sh\nexit 3\n");
	cr_expect_eq(host.qemu_error, -EIO);
	setenv("PATH", "/nowhere", 1);
	memset(&host, 0, sizeof(host));
	smv_host_facts_ask(&host);
	cr_expect_eq(host.qemu_path[0], '\0');
}

/* What is asked of the kernel agrees with what the daemons would find. */
Test(facts, kernel_answers_agree)
{
	struct smv_error err;

	smv_host_facts_ask(&host);
	cr_expect_eq(host.uid, geteuid());
	cr_expect_eq(host.tracking_error == 0, smv_kernel_check(&err) == 0);
	if (host.tracking_error == 0) {
		cr_expect_eq(host.uffd_error, 0);
		cr_expect_eq(host.uffd_features & SMV_UFFD_PAGE, SMV_UFFD_PAGE);
		cr_expect_eq(host.pagemap_scan_error, 0);
	}
	cr_expect_eq(host.process_access_error, 0);
}

/* --- the report ----------------------------------------------------------------------------- */

static const char *text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

TestSuite(report, .init = set_up);

Test(report, has_every_field)
{
	json_t *report, *check;
	size_t i;

	host.has_swap = true;
	report = smv_doctor_report(&host, SMV_ROLE_SUB_HOST, 0);
	cr_assert_str_eq(text_of(report, "role"), "sub-host");
	cr_assert_str_eq(text_of(report, "verdict"), "warning");
	cr_assert_gt(json_array_size(json_object_get(report, "checks")), 10);
	json_array_foreach (json_object_get(report, "checks"), i, check) {
		bool lacks = strcmp(text_of(check, "status"), "warning") == 0;

		cr_expect(text_of(check, "name") && text_of(check, "found"));
		cr_expect_eq(json_is_string(json_object_get(check, "cost")), lacks);
		cr_expect_eq(json_is_string(json_object_get(check, "remedy")), lacks);
		cr_expect_eq(lacks, strcmp(text_of(check, "name"), "swap") == 0);
	}
	json_decref(report);
}

static char *print(unsigned int roles, bool colour)
{
	json_t *report = smv_doctor_report(&host, roles, 0);
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	smv_doctor_print(report, out, colour);
	fclose(out);
	json_decref(report);
	return text;
}

Test(report, says_what_to_do_and_is_coloured_only_when_asked)
{
	char *text;

	host.has_swap = true;
	host.qemu_path[0] = '\0';
	text = print(SMV_ROLE_SOURCE, false);
	cr_expect(strstr(text, "\nwarning  swap  "), "%s", text);
	cr_expect(strstr(text, "\nPROBLEM  qemu  "), "%s", text);
	cr_expect(strstr(text, "cost: no VM can be started"), "%s", text);
	cr_expect(strstr(text, "mend: swapoff -a"), "%s", text);
	cr_expect(strstr(text, "\nNot ready as source: 1 problem, 1 warning.\n"), "%s", text);
	cr_expect_not(strchr(text, '\033'));
	free(text);
	text = print(SMV_ROLE_SUB_HOST, true);
	cr_expect(strstr(text, "\nReady as sub-host: 0 problems, 1 warning.\n"), "%s", text);
	cr_expect(strchr(text, '\033'));
	free(text);
}

/* --- the command ---------------------------------------------------------------------------- */

static int run(const char *args, char *output, size_t len)
{
	char command[600];
	size_t n;
	int status;
	FILE *pipe;

	snprintf(command, sizeof(command), "%s %s 2>&1", SMEMV_TEST_CTL, args);
	pipe = popen(command, "r");
	cr_assert_not_null(pipe);
	n = fread(output, 1, len - 1, pipe);
	output[n] = '\0';
	status = pclose(pipe);
	cr_assert(WIFEXITED(status));
	return WEXITSTATUS(status);
}

Test(command, refuses_bad_usage)
{
	static const struct {
		const char *args, *message;
	} cases[] = {
		{"doctor --role nonsense",
			"--role 'nonsense': choose sub-host, main-host, source or any"},
		{"doctor --memory lots", "--memory 'lots'"},
		{"doctor --memory 0", "--memory '0'"},
		{"doctor --server 127.0.0.1:1", "an address is of no use"},
		{"doctor x", "unexpected argument 'x'"},
		{"--role source --server 127.0.0.1:1 info", "--role and --memory are for doctor"},
		{"info", "the address is missing; write: smemvctl --server ADDR info"},
		{"--pager 127.0.0.1:1 info", "the wrong kind of daemon"},
		{"--pager 127.0.0.1:1 stats", "the name is missing"},
		{"--pager 127.0.0.1:1 budget vm1", "the size is missing"},
		{"--pager 127.0.0.1:1 budget vm1 much", "SIZE 'much': give a size"},
		{"--pager 127.0.0.1:1 stats vm1 1G", "unexpected argument '1G'"},
		{"--server 127.0.0.1:1 --force info", "--force is for release"},
		{"--server 127.0.0.1:1 release", "release LEASE"},
		{"--server 127.0.0.1:1 --follow leases", "--follow is for events"},
		{"events", "--pager|--server ADDR events [VM]"},
		{"--server 127.0.0.1:1 --pager 127.0.0.1:1 events", "one address is enough"},
		{"--server 127.0.0.1:1 events vm other", "unexpected argument 'other'"},
		{"healer", "there are info, leases, release, vms, stats, budget, events and doctor"},
	};
	char output[4000];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		cr_expect_eq(run(cases[i].args, output, sizeof(output)), 2, "%s", cases[i].args);
		cr_expect(strstr(output, cases[i].message), "%s: %s", cases[i].args, output);
	}
}

Test(command, exits_by_the_verdict)
{
	static const char *const args[] = {"doctor --json --role sub-host",
		"doctor --json --role sub-host --memory 900T", "doctor --json"};
	static char output[30000];

	for (size_t i = 0; i < sizeof(args) / sizeof(args[0]); i++) {
		int status = run(args[i], output, sizeof(output));
		json_t *report = json_loads(output, 0, NULL);

		cr_assert_not_null(report, "%s", output);
		cr_expect_eq(json_integer_value(json_object_get(report, "schema_version")), 1);
		cr_expect_eq(status == 1, strcmp(text_of(report, "verdict"), "problem") == 0);
		cr_expect_lt(status, 2);
		if (i == 1)
			cr_expect_eq(status, 1, "900 TiB fit");
		json_decref(report);
	}
}
