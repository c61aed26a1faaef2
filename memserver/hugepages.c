/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/hugepages.h"

#include "common/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <mntent.h>
#include <stdbool.h>
#include <string.h>
#include <sys/vfs.h>

#define SYSFS "/sys/kernel/mm/hugepages/hugepages-"

struct counts {
	uint64_t total, free, reserved, overcommit, surplus;
	uint64_t available; /* to a new mapping */
};

static void sysfs_path(uint64_t page_bytes, const char *file, char *path, size_t len)
{
	snprintf(path, len, SYSFS "%llukB/%s", page_bytes / SMV_KIB, file);
}

/* 0 when it cannot be read. */
static uint64_t read_count(uint64_t page_bytes, const char *file)
{
	CLEANUP_FILE FILE *f = NULL;
	char path[200];
	uint64_t n;

	sysfs_path(page_bytes, file, path, sizeof(path));
	f = fopen(path, "re");
	return f && fscanf(f, "%" SCNu64, &n) == 1 ? n : 0;
}

static void read_counts(uint64_t page_bytes, struct counts *c)
{
	*c = (struct counts){.total = read_count(page_bytes, "nr_hugepages"),
		.free = read_count(page_bytes, "free_hugepages"),
		.reserved = read_count(page_bytes, "resv_hugepages"),
		.overcommit = read_count(page_bytes, "nr_overcommit_hugepages"),
		.surplus = read_count(page_bytes, "surplus_hugepages")};
	c->available = c->free > c->reserved ? c->free - c->reserved : 0;
	/* The kernel may take more from ordinary memory, up to its limit. */
	if (c->overcommit > c->surplus)
		c->available += c->overcommit - c->surplus;
}

static void list_sizes(char *buf, size_t len)
{
	char one[32];
	size_t n = 0;
	glob_t found;

	snprintf(buf, len, "This kernel has no huge pages.");
	if (glob(SYSFS "*kB", 0, NULL, &found) != 0)
		return;
	for (size_t i = 0; i < found.gl_pathc && n < len; i++) {
		uint64_t kib = strtoull(found.gl_pathv[i] + strlen(SYSFS), NULL, 10);

		n += (size_t)snprintf(buf + n, len - n, "%s%s",
			i ? ", " : "Choose one of those that it has: ",
			smv_format_size(kib * SMV_KIB, one, sizeof(one)));
	}
	globfree(&found);
}

int smv_hugepages_check(uint64_t page_bytes, struct smv_error *err)
{
	char path[200], size[32], sizes[200];

	sysfs_path(page_bytes, "nr_hugepages", path, sizeof(path));
	if (page_bytes > 0 && page_bytes % SMV_KIB == 0 && access(path, F_OK) == 0)
		return 0;
	list_sizes(sizes, sizeof(sizes));
	return smv_fail(err, SMV_INVALID, "no-such-hugepages", sizes,
		"this host has no huge pages of %s (there is no %s)",
		smv_format_size(page_bytes, size, sizeof(size)), path);
}

/* --- where hugetlbfs is mounted ----------------------------------------------------------- */

/* What is mounted there may be hidden below another mount: ask the directory itself. */
static bool has_pages_of(const char *dir, uint64_t page_bytes)
{
	struct statfs fs;

	return statfs(dir, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC &&
	       (uint64_t)fs.f_bsize == page_bytes;
}

static bool is_writable(const char *dir)
{
	return faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) == 0;
}

static int fail_mount(uint64_t page_bytes, const char *unwritable, struct smv_error *err)
{
	char size[32], hint[200];

	smv_format_size(page_bytes, size, sizeof(size));
	if (unwritable)
		return smv_fail(err, SMV_REFUSED, "no-hugetlbfs",
			"Mount it with uid=USER, change its owner, or run the daemon as root.",
			"user %u may not write to '%s', where the huge pages of %s are", geteuid(),
			unwritable, size);
	snprintf(hint, sizeof(hint),
		"mkdir -p /dev/hugepages-%lluM && mount -t hugetlbfs -o pagesize=%lluM none "
		"/dev/hugepages-%lluM",
		page_bytes / SMV_MIB, page_bytes / SMV_MIB, page_bytes / SMV_MIB);
	if (page_bytes == SMV_HUGEPAGE_DEFAULT)
		snprintf(hint, sizeof(hint),
			"mkdir -p /dev/hugepages && mount -t hugetlbfs -o pagesize=2M none "
			"/dev/hugepages");
	return smv_fail(err, SMV_REFUSED, "no-hugetlbfs", hint,
		"no hugetlbfs with pages of %s is mounted", size);
}

int smv_hugepages_mount(uint64_t page_bytes, char **path, struct smv_error *err)
{
	CLEANUP_FREE char *unwritable = NULL;
	FILE *mounts = setmntent("/proc/self/mounts", "re");
	char buf[8192];
	struct mntent m;

	*path = NULL;
	while (mounts && !*path && getmntent_r(mounts, &m, buf, sizeof(buf))) {
		if (strcmp(m.mnt_type, "hugetlbfs") != 0 || !has_pages_of(m.mnt_dir, page_bytes))
			continue;
		if (is_writable(m.mnt_dir))
			*path = strdup(m.mnt_dir);
		else if (!unwritable)
			unwritable = strdup(m.mnt_dir);
	}
	if (mounts)
		endmntent(mounts);
	return *path ? 0 : fail_mount(page_bytes, unwritable, err);
}

/* --- room --------------------------------------------------------------------------------- */

/* vm.nr_hugepages is of the default size only. */
static bool is_default_size(uint64_t page_bytes)
{
	CLEANUP_FILE FILE *f = fopen("/proc/meminfo", "re");
	char line[128];
	uint64_t kib;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Hugepagesize: %" SCNu64 " kB", &kib) == 1)
			return kib * SMV_KIB == page_bytes;
	return false;
}

static void suggest(uint64_t page_bytes, uint64_t nr, char *hint, size_t len)
{
	if (is_default_size(page_bytes))
		snprintf(hint, len, "sysctl vm.nr_hugepages=%" PRIu64, nr);
	else
		snprintf(hint, len, "echo %" PRIu64 " > " SYSFS "%llukB/nr_hugepages", nr,
			page_bytes / SMV_KIB);
	if (page_bytes >= SMV_GIB) {
		size_t n = strlen(hint);

		snprintf(hint + n, len - n,
			", or at boot, where memory is scattered: hugepagesz=%lluG "
			"hugepages=%" PRIu64,
			page_bytes / SMV_GIB, nr);
	}
}

int smv_hugepages_fail_room(uint64_t page_bytes, uint64_t bytes, struct smv_error *err)
{
	uint64_t need = bytes / page_bytes, missing;
	char size[32], page[32], hint[300];
	struct counts c;

	read_counts(page_bytes, &c);
	missing = need > c.available ? need - c.available : 0;
	suggest(page_bytes, c.total + missing, hint, sizeof(hint));
	return smv_fail(err, SMV_NO_ROOM, "no-room", hint,
		"cannot allocate an arena of %s (%" PRIu64 " bytes): it needs %" PRIu64
		" huge pages of %s, and %" PRIu64 " are available (of %" PRIu64 ": %" PRIu64
		" free, %" PRIu64 " of these reserved)",
		smv_format_size(bytes, size, sizeof(size)), bytes, need,
		smv_format_size(page_bytes, page, sizeof(page)), c.available, c.total, c.free,
		c.reserved);
}

int smv_hugepages_check_room(uint64_t page_bytes, uint64_t bytes, struct smv_error *err)
{
	struct counts c;

	read_counts(page_bytes, &c);
	return c.available >= bytes / page_bytes ? 0
						 : smv_hugepages_fail_room(page_bytes, bytes, err);
}
