/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/host_facts.h"

#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/host_check.h"
#include "common/units.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <limits.h>
#include <mntent.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#define QEMU "qemu-system-x86_64"
#define HUGE_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* --- files ---------------------------------------------------------------------------------- */

static const char *join(char path[PATH_MAX], const char *root, const char *rest)
{
	/* What is too long leads to no file, as it should. */
	if (snprintf(path, PATH_MAX, "%s%s", root, rest) >= PATH_MAX)
		path[0] = '\0';
	return path;
}

/* The first line of a file, without its end; "" when there is none. */
static const char *read_line(const char *root, const char *file, char *line, size_t len)
{
	char path[PATH_MAX];
	CLEANUP_FILE FILE *f = fopen(join(path, root, file), "re");

	if (!f || !fgets(line, (int)len, f))
		*line = '\0';
	line[strcspn(line, "\n")] = '\0';
	return line;
}

static uint64_t read_number(const char *root, const char *file)
{
	char line[32];

	return strtoull(read_line(root, file, line, sizeof(line)), NULL, 10);
}

static bool exists(const char *root, const char *file)
{
	char path[PATH_MAX];

	return access(join(path, root, file), F_OK) == 0;
}

static void read_kernel(struct smv_host_facts *facts, const char *root)
{
	char line[32];

	read_line(root, "/proc/sys/kernel/osrelease", facts->kernel_release,
		sizeof(facts->kernel_release));
	if (sscanf(facts->kernel_release, "%u.%u", &facts->kernel_major, &facts->kernel_minor) != 2)
		facts->kernel_major = facts->kernel_minor = 0;
	facts->has_uffd_device = exists(root, "/dev/userfaultfd");
	read_line(root, "/proc/sys/vm/unprivileged_userfaultfd", line, sizeof(line));
	facts->unprivileged_userfaultfd = *line ? atoi(line) : -1;
	facts->capabilities = smv_host_capabilities(root);
}

static void read_meminfo(struct smv_host_facts *facts, const char *root)
{
	char path[PATH_MAX], line[128];
	CLEANUP_FILE FILE *f = fopen(join(path, root, "/proc/meminfo"), "re");
	uint64_t kib;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "MemTotal: %" SCNu64 " kB", &kib) == 1)
			facts->mem_total_bytes = kib * SMV_KIB;
		if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
			facts->mem_available_bytes = kib * SMV_KIB;
	}
	facts->huge_total = read_number(root, HUGE_DIR "nr_hugepages");
	facts->huge_free = read_number(root, HUGE_DIR "free_hugepages");
}

/* The mount that counts is the last at its place. */
static void read_mounts(struct smv_host_facts *facts, const char *root)
{
	char path[PATH_MAX], buf[4096];
	FILE *mounts = setmntent(join(path, root, "/proc/self/mounts"), "re");
	struct mntent entry;

	while (mounts && getmntent_r(mounts, &entry, buf, sizeof(buf))) {
		if (strcmp(entry.mnt_dir, "/dev/shm") == 0) {
			facts->shm_is_tmpfs = strcmp(entry.mnt_type, "tmpfs") == 0;
			facts->shm_noswap = hasmntopt(&entry, "noswap") != NULL;
		}
		if (strcmp(entry.mnt_type, "hugetlbfs") == 0)
			snprintf(facts->huge_mount, sizeof(facts->huge_mount), "%s", entry.mnt_dir);
	}
	if (mounts)
		endmntent(mounts);
}

static void read_shm(struct smv_host_facts *facts, const char *root)
{
	char path[PATH_MAX];
	struct statvfs fs;

	if (!facts->shm_is_tmpfs || statvfs(join(path, root, "/dev/shm"), &fs) < 0)
		return;
	facts->shm_size_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
	facts->shm_free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
}

/* The path of our own group in the unified hierarchy (cgroup v2). */
static bool read_cgroup(const char *root, char *group, size_t len)
{
	char path[PATH_MAX], line[PATH_MAX];
	CLEANUP_FILE FILE *f = fopen(join(path, root, "/proc/self/cgroup"), "re");

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, "0::", 3) == 0) {
			line[strcspn(line, "\n")] = '\0';
			return snprintf(group, len, "%s", line + 3) < (int)len;
		}
	return false;
}

static void take_smaller(char *least, size_t len, const char *limit)
{
	/* "max" reads as 0 and is larger than any number. */
	const bool is_max = strcmp(limit, "max") == 0;

	if (!*limit)
		return;
	if (!*least || (!is_max && (strcmp(least, "max") == 0 ||
					   strtoull(limit, NULL, 10) < strtoull(least, NULL, 10))))
		snprintf(least, len, "%s", limit);
}

/* A limit holds for all groups below, so the least one from our group upwards counts. */
static void read_swap_max(struct smv_host_facts *facts, const char *root)
{
	char group[PATH_MAX - 64], file[PATH_MAX], limit[32], *slash;

	if (!read_cgroup(root, group, sizeof(group)))
		return;
	do {
		snprintf(file, sizeof(file), "/sys/fs/cgroup%s/memory.swap.max", group);
		take_smaller(facts->swap_max, sizeof(facts->swap_max),
			read_line(root, file, limit, sizeof(limit)));
		slash = strrchr(group, '/');
		if (slash)
			*slash = '\0';
	} while (slash);
}

static void read_sysfs_rdma(struct smv_host_facts *facts, const char *root)
{
	char path[PATH_MAX];
	DIR *dir = opendir(join(path, root, "/sys/class/infiniband"));
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			snprintf(facts->sysfs_rdma_device, sizeof(facts->sysfs_rdma_device),
				"%.63s", entry->d_name);
	if (dir)
		closedir(dir);
}

void smv_host_facts_read(struct smv_host_facts *facts, const char *root)
{
	read_kernel(facts, root);
	read_meminfo(facts, root);
	read_mounts(facts, root);
	read_shm(facts, root);
	facts->has_swap = smv_host_swap(root, facts->swap_device, sizeof(facts->swap_device));
	read_swap_max(facts, root);
	facts->shmem_is_huge =
		smv_host_huge_shmem(root, facts->shmem_enabled, sizeof(facts->shmem_enabled));
	read_sysfs_rdma(facts, root);
}

/* --- asking the kernel ---------------------------------------------------------------------- */

static int try_pagemap_scan(void)
{
	CLEANUP_CLOSE int fd = smv_pagemap_open(getpid());
	struct smv_page_region region;
	uint64_t start = (uint64_t)(uintptr_t)&region & ~4095ull, walk_end;
	int r;

	if (fd < 0)
		return fd;
	r = smv_pagemap_scan(
		fd, start, start + 4096, SMV_PAGE_IS_PRESENT, false, &region, 1, &walk_end);
	return r < 0 ? r : 0;
}

static void ask_memory_tracking(struct smv_host_facts *facts)
{
	struct smv_error err = {0};

	facts->uffd_error = smv_uffd_features(&facts->uffd_features);
	facts->pagemap_scan_error = try_pagemap_scan();
	facts->tracking_error = smv_kernel_check(&err);
	snprintf(facts->tracking_text, sizeof(facts->tracking_text), "%s", err.message);
}

/* What smemv-migrate does to QEMU: its page table, and where its files are. */
static int look_into(pid_t pid)
{
	CLEANUP_CLOSE int pagemap = smv_pagemap_open(pid);
	char path[64], target[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/0", (int)pid);
	if (pagemap < 0)
		return pagemap;
	return readlink(path, target, sizeof(target)) < 0 && errno != ENOENT ? -errno : 0;
}

static int try_process_access(void)
{
	pid_t child = fork();
	int r;

	if (child < 0)
		return -errno;
	if (child == 0)
		for (;;)
			pause();
	r = look_into(child);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return r;
}

static uint64_t ask_memlock(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	return limit.rlim_cur;
}

static bool find_in_path(const char *program, char *found, size_t len)
{
	const char *dir = getenv("PATH");

	while (dir && *dir) {
		const size_t n = strcspn(dir, ":");

		if (snprintf(found, len, "%.*s/%s", (int)n, dir, program) < (int)len &&
			access(found, X_OK) == 0)
			return true;
		dir += n + (dir[n] == ':');
	}
	*found = '\0';
	return false;
}

static void ask_qemu(struct smv_host_facts *facts)
{
	char line[256] = "";
	FILE *out;
	int status;

	if (!find_in_path(QEMU, facts->qemu_path, sizeof(facts->qemu_path)))
		return;
	out = popen("exec " QEMU " --version 2>/dev/null", "re");
	if (!out) {
		facts->qemu_error = -errno;
		return;
	}
	if (!fgets(line, sizeof(line), out) || sscanf(line, "QEMU emulator version %u.%u",
						       &facts->qemu_major, &facts->qemu_minor) != 2)
		facts->qemu_major = facts->qemu_minor = 0;
	/* Else a second line would end it by SIGPIPE. */
	while (fgets(line, sizeof(line), out))
		;
	status = pclose(out);
	if (status != 0)
		facts->qemu_error = -EIO;
}

/* Twenty bytes in hexadecimal, of which the last sixteen are a GID. */
static bool read_ipoib_gid(const char *netdev, uint8_t gid[16])
{
	char path[64], text[80];

	snprintf(path, sizeof(path), "/sys/class/net/%s/address", netdev);
	read_line("", path, text, sizeof(text));
	if (strlen(text) != 20 * 3 - 1)
		return false;
	for (size_t i = 0; i < 16; i++)
		gid[i] = (uint8_t)strtoul(text + (4 + i) * 3, NULL, 16);
	return true;
}

static bool to_ipv6(const struct sockaddr *from, struct in6_addr *to)
{
	if (from->sa_family == AF_INET6) {
		*to = ((const struct sockaddr_in6 *)(const void *)from)->sin6_addr;
		return !IN6_IS_ADDR_LOOPBACK(to) && !IN6_IS_ADDR_LINKLOCAL(to);
	}
	if (from->sa_family != AF_INET)
		return false;
	memset(to, 0, sizeof(*to));
	to->s6_addr[10] = to->s6_addr[11] = 0xff;
	memcpy(&to->s6_addr[12], &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
	return to->s6_addr[12] != 127;
}

static void ask_addresses(struct smv_host_facts *facts)
{
	struct ifaddrs *list;

	if (getifaddrs(&list) < 0)
		return;
	for (const struct ifaddrs *i = list; i && facts->nr_addresses < SMV_HOST_ADDRESSES;
		i = i->ifa_next) {
		struct smv_host_address *a = &facts->addresses[facts->nr_addresses];

		if (!i->ifa_addr || !to_ipv6(i->ifa_addr, &a->addr))
			continue;
		snprintf(a->netdev, sizeof(a->netdev), "%s", i->ifa_name);
		a->is_ipoib = read_ipoib_gid(a->netdev, a->ipoib_gid);
		facts->nr_addresses++;
	}
	freeifaddrs(list);
}

void smv_host_facts_ask(struct smv_host_facts *facts)
{
	facts->uid = geteuid();
	ask_memory_tracking(facts);
	facts->process_access_error = try_process_access();
	facts->memlock_bytes = ask_memlock();
	ask_qemu(facts);
	ask_addresses(facts);
	smv_verbs_inventory_take(&facts->rdma);
}
