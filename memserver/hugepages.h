/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huge pages of this host: which sizes it has, how many are free, where hugetlbfs is mounted. See
 * Documentation/admin-guide/mm/hugetlbpage.rst of Linux.
 */
#ifndef SMV_MEMSERVER_HUGEPAGES_H
#define SMV_MEMSERVER_HUGEPAGES_H

#include "common/error.h"
#include "common/units.h"

#include <stdint.h>

#define SMV_HUGEPAGE_DEFAULT (2 * SMV_MIB)

/** smv_hugepages_check - whether this kernel has huge pages of @page_bytes; SMV_INVALID names the
 * sizes that it has. */
int smv_hugepages_check(uint64_t page_bytes, struct smv_error *err);

/**
 * smv_hugepages_mount - the first hugetlbfs with pages of @page_bytes that this user may write to.
 * @path: gets where it is mounted, to be freed by the caller
 *
 * SMV_REFUSED, with the mount command, when there is none.
 */
int smv_hugepages_mount(uint64_t page_bytes, char **path, struct smv_error *err);

/** smv_hugepages_check_room - SMV_NO_ROOM, with the numbers and the command that gives more, when
 * fewer huge pages are available than @bytes need. */
int smv_hugepages_check_room(uint64_t page_bytes, uint64_t bytes, struct smv_error *err);

/** smv_hugepages_fail_room - what smv_hugepages_check_room() answers then: for the kernel's word
 * that there are too few. */
int smv_hugepages_fail_room(uint64_t page_bytes, uint64_t bytes, struct smv_error *err);

#endif
