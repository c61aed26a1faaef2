/* SPDX-License-Identifier: Apache-2.0 */
#include "client/uffd.h"

#include "common/cleanup.h"
#include "common/fault_point.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define PAGE 4096u

struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};
#define IOCTL_PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define SCAN_WP_MATCHING (1u << 0)
#define SCAN_CHECK_WPASYNC (1u << 1)

/* linux/userfaultfd.h of Linux 6.6 */
struct poison_arg {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define IOCTL_POISON _IOWR(UFFDIO, 0x08, struct poison_arg)

int smv_uffd_api(int uffd, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

int smv_uffd_register(int uffd, uint64_t addr, uint64_t len, uint64_t mode)
{
	struct uffdio_register r = {.range = {addr, len}, .mode = mode};

	return ioctl(uffd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
}

int smv_uffd_unregister(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_range r = {addr, len};

	return ioctl(uffd, UFFDIO_UNREGISTER, &r) < 0 ? -errno : 0;
}

int smv_uffd_copy(int uffd, uint64_t addr, const void *page, bool wp)
{
	for (;;) {
		struct uffdio_copy c = {.dst = addr,
			.src = (uint64_t)(uintptr_t)page,
			.len = PAGE,
			.mode = wp ? UFFDIO_COPY_MODE_WP : 0};

		if (ioctl(uffd, UFFDIO_COPY, &c) == 0)
			return 0;
		if (errno != EAGAIN)
			return -errno;
	}
}

int smv_uffd_continue(int uffd, uint64_t addr, uint64_t len, bool wp)
{
	for (;;) {
		struct uffdio_continue c = {
			.range = {addr, len}, .mode = wp ? UFFDIO_CONTINUE_MODE_WP : 0};

		if (ioctl(uffd, UFFDIO_CONTINUE, &c) == 0)
			return 0;
		if (errno != EAGAIN)
			return -errno;
	}
}

int smv_uffd_wake(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_range r = {addr, len};

	return ioctl(uffd, UFFDIO_WAKE, &r) < 0 ? -errno : 0;
}

int smv_uffd_write_protect(int uffd, uint64_t addr, uint64_t len)
{
	for (;;) {
		struct uffdio_writeprotect wp = {
			.range = {addr, len}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};

		if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) == 0)
			return 0;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	}
}

static int poison_once(int uffd, uint64_t addr)
{
	for (;;) {
		struct poison_arg arg = {.range = {addr, PAGE}};

		if (ioctl(uffd, IOCTL_POISON, &arg) == 0)
			return 0;
		if (errno != EAGAIN)
			return -errno;
	}
}

int smv_uffd_poison(int uffd, uint64_t addr)
{
	struct uffdio_writeprotect unprotect = {
		.range = {addr, PAGE}, .mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
	int r = poison_once(uffd, addr);

	if (r != -EEXIST)
		return r;
	/* Nothing is overwritten, not even the marker of a page that was protected when it was
	 * unmapped; to unprotect it removes that. */
	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &unprotect) < 0)
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	return poison_once(uffd, addr);
}

int smv_pagemap_scan(int pagemap_fd, uint64_t start, uint64_t end, uint64_t categories,
	bool write_protect, struct smv_page_region *regions, size_t max_regions, uint64_t *walk_end)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = write_protect ? SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC : 0,
		.start = start,
		.end = end,
		.vec = (uint64_t)(uintptr_t)regions,
		.vec_len = max_regions,
		.category_anyof_mask = categories,
		.return_mask = categories,
	};
	int r;

	do
		r = ioctl(pagemap_fd, IOCTL_PAGEMAP_SCAN, &arg);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return -errno;
	*walk_end = arg.walk_end;
	return r;
}

int smv_pagemap_open(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int smv_pagemap_read(int pagemap_fd, uint64_t addr, uint64_t *words, size_t nr_pages)
{
	size_t want = nr_pages * sizeof(*words);
	ssize_t n = pread(pagemap_fd, words, want, (off_t)(addr / PAGE * sizeof(*words)));

	if (n < 0)
		return -errno;
	return (size_t)n == want ? 0 : -EIO;
}

int smv_uffd_open(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 && errno == EPERM) {
		/* Linux 6.1: where the system call is for root only, the device may be open to
		 * others. */
		CLEANUP_CLOSE int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (dev >= 0)
			fd = ioctl(dev, _IO(0xAA, 0x00), O_CLOEXEC | O_NONBLOCK);
	}
	return fd < 0 ? -errno : fd;
}

int smv_uffd_features(uint64_t *features)
{
	CLEANUP_CLOSE int uffd = smv_uffd_open();
	struct uffdio_api api = {.api = UFFD_API};

	if (uffd < 0)
		return uffd;
	if (ioctl(uffd, UFFDIO_API, &api) < 0)
		return -errno;
	*features = api.features;
	return 0;
}

/* Some kernels report a page that was written and then zapped as clean. */
static int tracks_soundly(int uffd, void *mem)
{
	CLEANUP_CLOSE int pagemap_fd = smv_pagemap_open(getpid());
	uint64_t start = (uint64_t)(uintptr_t)mem, end = start + 4 * PAGE, walk_end;
	struct smv_page_region regions[4];
	volatile char *page = mem;
	int r;

	if (pagemap_fd < 0)
		return pagemap_fd;
	page[0] = 1;
	if ((r = smv_uffd_register(uffd, start, 4 * PAGE, UFFDIO_REGISTER_MODE_WP)) < 0)
		return r;
	r = smv_pagemap_scan(
		pagemap_fd, start, end, SMV_PAGE_IS_WRITTEN, true, regions, 4, &walk_end);
	if (r < 0)
		return r;
	page[0] = 2;        /* was present when it was protected */
	page[2 * PAGE] = 3; /* was missing */
	if (madvise(mem, PAGE, MADV_DONTNEED) < 0)
		return -errno;
	r = smv_pagemap_scan(
		pagemap_fd, start, end, SMV_PAGE_IS_WRITTEN, true, regions, 4, &walk_end);
	if (r < 0)
		return r;
	return r == 2 && regions[0].start == start && regions[0].end == start + PAGE &&
			       regions[1].start == start + 2 * PAGE &&
			       regions[1].end == start + 3 * PAGE
		       ? 0
		       : -EILSEQ;
}

int smv_kernel_check(struct smv_error *err)
{
	static const char hint[] =
		"Run Linux 6.7 or later (Debian: linux-image-amd64 of bookworm-"
		"backports); without root also make /dev/userfaultfd accessible.";
	CLEANUP_CLOSE int uffd = smv_uffd_open();
	CLEANUP_CLOSE int memfd = memfd_create("smemv-kernel-check", MFD_CLOEXEC);
	struct utsname uts;
	void *mem;
	int r;

	uname(&uts);
	if (uffd < 0)
		return smv_fail(err, SMV_REFUSED, "kernel", hint,
			"this kernel (%s) gives no userfaultfd: %s", uts.release, strerror(-uffd));
	r = smv_fault_point("kernel-features") ? -EINVAL : smv_uffd_api(uffd, SMV_UFFD_PAGE);
	if (r < 0)
		return smv_fail(err, SMV_REFUSED, "kernel", hint,
			"this kernel (%s) lacks asynchronous write-protection and minor faults of "
			"shared memory in userfaultfd, which need Linux 6.7: %s",
			uts.release, strerror(-r));
	if (memfd < 0 || ftruncate(memfd, 4 * PAGE) < 0)
		return smv_fail(err, SMV_INTERNAL, "kernel", NULL, "cannot make a memfd: %s",
			strerror(errno));
	mem = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (mem == MAP_FAILED)
		return smv_fail(err, SMV_INTERNAL, "kernel", NULL, "cannot map a memfd: %s",
			strerror(errno));
	r = tracks_soundly(uffd, mem);
	munmap(mem, 4 * PAGE);
	if (r == -EILSEQ)
		return smv_fail(err, SMV_REFUSED, "kernel", hint,
			"this kernel (%s) reports a page that was written and unmapped as clean; "
			"migrating with it would lose writes",
			uts.release);
	if (r < 0)
		return smv_fail(err, SMV_REFUSED, "kernel", hint,
			"this kernel (%s) lacks PAGEMAP_SCAN, which needs Linux 6.7: %s",
			uts.release, strerror(-r));
	return 0;
}
