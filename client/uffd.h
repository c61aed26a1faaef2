/* SPDX-License-Identifier: Apache-2.0 */
/*
 * userfaultfd and PAGEMAP_SCAN, for kernels newer than the installed headers. All functions return
 * 0 or -errno; -EAGAIN (the address space is changing) is retried inside.
 */
#ifndef SMV_CLIENT_UFFD_H
#define SMV_CLIENT_UFFD_H

#include "common/error.h"

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* Linux 6.4 */
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15) /* Linux 6.7 */
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14) /* Linux 6.6 */
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1) /* Linux 6.4 */
#endif

/* What the source needs: which pages were written, without a message for each. */
#define SMV_UFFD_TRACK                                                                             \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |   \
		UFFD_FEATURE_PAGEFAULT_FLAG_WP)
/* What the main host needs on top: faults on pages that are missing or unmapped. */
#define SMV_UFFD_PAGE (SMV_UFFD_TRACK | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)

/* /proc/PID/pagemap: the page (or the marker in its place) is write-protected by userfaultfd. */
#define SMV_PAGEMAP_UFFD_WP (1ull << 57)
/* The page is mapped: what bit 57 says may change at any write. */
#define SMV_PAGEMAP_PRESENT (1ull << 63)

/* linux/fs.h of Linux 6.7 */
struct smv_page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};
#define SMV_PAGE_IS_WRITTEN (1u << 1)
#define SMV_PAGE_IS_PRESENT (1u << 3)

/** smv_kernel_check - this kernel has all that paging and tracking need, and tracks soundly: write,
 * zap and scan a page of our own and see that it counts as written. Names the version needed. */
int smv_kernel_check(struct smv_error *err);

/** smv_uffd_open - a userfaultfd of this process, non-blocking, with kernel-mode faults. */
int smv_uffd_open(void);
/** smv_uffd_api - negotiate; done once on a userfaultfd. */
int smv_uffd_api(int uffd, uint64_t features);
/** smv_uffd_features - all features of userfaultfd that this kernel has. */
int smv_uffd_features(uint64_t *features);
int smv_uffd_register(int uffd, uint64_t addr, uint64_t len, uint64_t mode);
int smv_uffd_unregister(int uffd, uint64_t addr, uint64_t len);

/** smv_uffd_copy - put one page in place, write-protected if @wp, and wake its waiters. */
int smv_uffd_copy(int uffd, uint64_t addr, const void *page, bool wp);
/** smv_uffd_continue - map the page that the file holds. -EFAULT: the file has a hole there. */
int smv_uffd_continue(int uffd, uint64_t addr, uint64_t len, bool wp);
int smv_uffd_wake(int uffd, uint64_t addr, uint64_t len);
int smv_uffd_write_protect(int uffd, uint64_t addr, uint64_t len);
/** smv_uffd_poison - whoever touches this page from now on gets SIGBUS, until its mapping is
 * removed; wakes its waiters. -EEXIST: it is mapped, or poisoned already; nobody was woken. */
int smv_uffd_poison(int uffd, uint64_t addr);

/**
 * smv_pagemap_scan - pages of [start, end) in any of @categories, as ranges.
 * @write_protect: protect them again in the same step (category SMV_PAGE_IS_WRITTEN only)
 * @walk_end: gets where the scan stopped: @end, or earlier when @regions is full
 *
 * Returns the number of regions or -errno.
 */
int smv_pagemap_scan(int pagemap_fd, uint64_t start, uint64_t end, uint64_t categories,
	bool write_protect, struct smv_page_region *regions, size_t max_regions,
	uint64_t *walk_end);

/** smv_pagemap_open - /proc/PID/pagemap. */
int smv_pagemap_open(pid_t pid);
/** smv_pagemap_read - the 64-bit words of @nr_pages pages from @addr. */
int smv_pagemap_read(int pagemap_fd, uint64_t addr, uint64_t *words, size_t nr_pages);

#endif
