/* SPDX-License-Identifier: Apache-2.0 */
/* Settings of this host under which things work, but not as people expect: warned of once, at start. */
#ifndef SMV_COMMON_HOST_CHECK_H
#define SMV_COMMON_HOST_CHECK_H

/** smv_host_warn_of_swap - tmpfs pages, that is guest RAM and lent memory, may go to disk. */
void smv_host_warn_of_swap(void);

/** smv_host_warn_of_huge_shmem - huge pages in tmpfs files: a 4 KiB page cannot be given up alone. */
void smv_host_warn_of_huge_shmem(void);

#endif
