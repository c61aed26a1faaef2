/* SPDX-License-Identifier: Apache-2.0 */
#include "common/host_check.h"

#include "common/cleanup.h"
#include "common/log.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static FILE *open_file(const char *root, const char *path)
{
	char full[PATH_MAX];

	return snprintf(full, sizeof(full), "%s%s", root, path) < PATH_MAX ? fopen(full, "re")
									   : NULL;
}

bool smv_host_swap(const char *root, char *device, size_t len)
{
	CLEANUP_FILE FILE *swaps = open_file(root, "/proc/swaps");
	char line[256];
	bool any;

	/* The first line is the heading. */
	any = swaps && fgets(line, sizeof(line), swaps) && fgets(line, sizeof(line), swaps);
	snprintf(device, len, "%.*s", any ? (int)strcspn(line, " \t\n") : 0, any ? line : "");
	return any;
}

bool smv_host_huge_shmem(const char *root, char *setting, size_t len)
{
	CLEANUP_FILE FILE *file = open_file(root, SHMEM_ENABLED);
	char line[256] = "";
	const char *word;

	*setting = '\0';
	/* "always within_size advise [never] deny force" */
	if (!file || !fgets(line, sizeof(line), file) || !(word = strchr(line, '[')))
		return false;
	snprintf(setting, len, "%.*s", (int)strcspn(word + 1, "]\n"), word + 1);
	/* QEMU advises it for its RAM. */
	return strcmp(setting, "always") == 0 || strcmp(setting, "within_size") == 0 ||
	       strcmp(setting, "advise") == 0 || strcmp(setting, "force") == 0;
}

uint64_t smv_host_capabilities(const char *root)
{
	CLEANUP_FILE FILE *file = open_file(root, "/proc/self/status");
	uint64_t caps = 0;
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "CapEff: %" SCNx64, &caps) == 1)
			break;
	return caps;
}

void smv_host_warn_of_swap(void)
{
	char device[128];

	if (smv_host_swap("", device, sizeof(device)))
		smv_log_warning(
			"this host has swap (%s): memory of VMs may go to disk; set "
			"memory.swap.max=0 for this daemon's and QEMU's cgroups, or swapoff",
			device);
}

void smv_host_warn_of_huge_shmem(void)
{
	char setting[32];

	if (smv_host_huge_shmem("", setting, sizeof(setting)))
		smv_log_warning("%s allows huge pages in RAM files, of which single pages cannot "
				"be given up: write 'never' to it",
			SHMEM_ENABLED);
}
