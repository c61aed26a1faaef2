/* SPDX-License-Identifier: Apache-2.0 */
#include "common/host_check.h"

#include "common/cleanup.h"
#include "common/log.h"

#include <string.h>

void smv_host_warn_of_swap(void)
{
	CLEANUP_FILE FILE *swaps = fopen("/proc/swaps", "re");
	char line[256];

	/* The first line is the heading. */
	if (swaps && fgets(line, sizeof(line), swaps) && fgets(line, sizeof(line), swaps))
		smv_log_warning(
			"this host has swap (%.*s): memory of VMs may go to disk; set "
			"memory.swap.max=0 for this daemon's and QEMU's cgroups, or swapoff",
			(int)strcspn(line, " \t\n"), line);
}

void smv_host_warn_of_huge_shmem(void)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	CLEANUP_FILE FILE *file = fopen(path, "re");
	char line[256] = "";

	if (file && fgets(line, sizeof(line), file) &&
		(strstr(line, "[always]") || strstr(line, "[within_size]") ||
			strstr(line, "[force]")))
		smv_log_warning(
			"%s allows huge pages in RAM files, of which single pages cannot be "
			"given up: write 'never' or 'advise' to it",
			path);
}
