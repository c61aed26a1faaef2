/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings of a host under which things work, but not as people expect: daemons warn of them once,
 * at start. @root is put in front of /proc and /sys: "" for this host.
 */
#ifndef SMV_COMMON_HOST_CHECK_H
#define SMV_COMMON_HOST_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** smv_host_swap - whether there is swap; @device gets the name of the first, "" when there is
 * none. */
bool smv_host_swap(const char *root, char *device, size_t len);

/** smv_host_huge_shmem - whether files on tmpfs get huge pages, of which single pages cannot be
 * given up; @setting gets the kernel's word for it, "" when it has none. */
bool smv_host_huge_shmem(const char *root, char *setting, size_t len);

/** smv_host_capabilities - the effective capabilities of this process, one bit for each CAP_...; 0
 * when they cannot be read. */
uint64_t smv_host_capabilities(const char *root);

/** smv_host_warn_of_swap - tmpfs pages, that is guest RAM and lent memory, may go to disk. */
void smv_host_warn_of_swap(void);

/** smv_host_warn_of_huge_shmem - huge pages in tmpfs files: a 4 KiB page cannot be given up alone.
 */
void smv_host_warn_of_huge_shmem(void);

#endif
