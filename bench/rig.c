/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/rig.h"

#include "client/remote.h"
#include "client/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TIMEOUT_MS 5000

/* The server lets everybody in; the role is all that a ticket must say. */
static int make_ticket(void *ctx, unsigned int host, enum smv_role role, struct smv_ticket *ticket)
{
	(void)ctx;
	(void)host;
	*ticket = (struct smv_ticket){.role = role};
	return 0;
}

static int zap(void *ctx, uint64_t addr, uint64_t len)
{
	(void)ctx;
	return madvise((void *)(uintptr_t)addr, len, MADV_DONTNEED) < 0 ? -errno : 0;
}

static int no_rig(const char *what, int errnum, struct smv_error *err)
{
	return smv_fail(err, smv_code_from_errno(errnum), "no-vm",
		"The pager needs Linux 6.7 or later with userfaultfd.", "cannot %s: %s", what,
		strerror(abs(errnum)));
}

/* The RAM: a shared file, so that pages can be unmapped and keep their data. */
static int create_ram(struct smv_bench_rig *rig, uint64_t nr_pages, struct smv_error *err)
{
	struct smv_ram_block *b = &rig->ram.blocks[0];
	void *addr;

	*b = (struct smv_ram_block){.id = "ram",
		.size_bytes = nr_pages * SMV_PAGE_SIZE,
		.page_size = SMV_PAGE_SIZE,
		.nr_pages = nr_pages,
		.fd = memfd_create("smemv-bench", MFD_CLOEXEC)};
	if (b->fd < 0)
		return no_rig("create a memory file", errno, err);
	rig->ram.nr_blocks = 1;
	rig->ram.nr_pages = nr_pages;
	rig->ram.bytes = b->size_bytes;
	if (ftruncate(b->fd, (off_t)b->size_bytes) < 0)
		return no_rig("size a memory file", errno, err);
	addr = mmap(NULL, b->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	if (addr == MAP_FAILED)
		return no_rig("map a memory file", errno, err);
	b->host_addr = (uint64_t)(uintptr_t)addr;
	return 0;
}

/* Only threads of this process touch the memory: that needs no privilege. */
static int watch_ram(struct smv_bench_rig *rig, struct smv_error *err)
{
	int r = smv_kernel_check(err);

	if (r < 0)
		return r;
	rig->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (rig->uffd < 0)
		return no_rig("create a userfaultfd", errno, err);
	rig->pagemap_fd = smv_pagemap_open(getpid());
	if (rig->pagemap_fd < 0)
		return no_rig("open /proc/self/pagemap", rig->pagemap_fd, err);
	r = smv_uffd_api(rig->uffd, SMV_UFFD_PAGE);
	if (r == 0)
		r = smv_uffd_register(rig->uffd, rig->ram.blocks[0].host_addr, rig->ram.bytes,
			UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
				UFFDIO_REGISTER_MODE_WP);
	return r < 0 ? no_rig("register memory with userfaultfd", r, err) : 0;
}

static int create_backing(struct smv_bench_rig *rig, uint64_t nr_slots, struct smv_error *err)
{
	struct smv_backing *b = &rig->backing;
	struct smv_sub_host *host = calloc(1, sizeof(*host));

	*b = (struct smv_backing){
		.transport = rig->peer.transport, .sub_hosts = host, .ticket = make_ticket};
	if (!host || !(host->segments = calloc(1, sizeof(*host->segments))))
		return no_rig("set up the pager", ENOMEM, err);
	b->nr_sub_hosts = 1;
	smv_addr_format(&rig->peer.addr, host->address, sizeof(host->address));
	host->data_addr = rig->peer.addr;
	host->nr_segments = 1;
	host->segments[0] = (struct smv_segment){
		rig->peer.info.rkey, rig->peer.info.remote_addr, nr_slots * SMV_PAGE_SIZE};
	if (smv_backing_spread(b, 2) < 0 || smv_slots_create(b->nr_extents, &rig->slots) < 0)
		return no_rig("set up the pager", ENOMEM, err);
	return 0;
}

int smv_bench_rig_create(struct smv_bench_rig *rig, const struct smv_bench_options *o,
	uint64_t nr_pages, uint64_t nr_slots, uint64_t budget_pages, smv_fault_trace trace,
	void *trace_ctx, struct smv_error *err)
{
	struct smv_pager_config config = {.name = "bench",
		.ram = &rig->ram,
		.map = &rig->map,
		.slots = &rig->slots,
		.backing = &rig->backing,
		.zap = zap,
		.budget_pages = budget_pages,
		.timeout_ms = TIMEOUT_MS,
		.trace = trace,
		.trace_ctx = trace_ctx};
	int r;

	*rig = (struct smv_bench_rig){.uffd = -1, .pagemap_fd = -1};
	if ((r = smv_bench_peer_open(&rig->peer, o, nr_slots * SMV_PAGE_SIZE, err)) < 0 ||
		(r = create_ram(rig, nr_pages, err)) < 0 || (r = watch_ram(rig, err)) < 0 ||
		(r = create_backing(rig, nr_slots, err)) < 0 ||
		(r = smv_pagemap_create(NULL, "bench", nr_pages, &rig->map, err)) < 0)
		return r;
	for (uint64_t page = 0; page < nr_pages; page++)
		smv_pagemap_place(&rig->map, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	config.uffd = rig->uffd;
	config.pagemap_fd = rig->pagemap_fd;
	return smv_pager_create(&config, &rig->pager, err);
}

void smv_bench_rig_abandon(struct smv_bench_rig *rig)
{
	if (rig->pager)
		smv_pager_destroy(rig->pager);
	rig->pager = NULL;
	/* The last copy: the kernel lets all waiters go. */
	if (rig->uffd >= 0)
		close(rig->uffd);
	rig->uffd = -1;
}

void smv_bench_rig_destroy(struct smv_bench_rig *rig)
{
	smv_bench_rig_abandon(rig);
	if (rig->pagemap_fd >= 0)
		close(rig->pagemap_fd);
	if (rig->ram.blocks[0].host_addr)
		munmap(smv_bench_rig_page(rig, 0), rig->ram.bytes);
	if (rig->ram.nr_blocks)
		close(rig->ram.blocks[0].fd);
	smv_pagemap_destroy(&rig->map);
	smv_slots_destroy(&rig->slots);
	smv_backing_free(&rig->backing);
	smv_bench_peer_close(&rig->peer);
}

/* Write one extent and wait for it. */
static int store_extent(struct smv_bench_rig *rig, struct smv_remote *remote, uint64_t first,
	unsigned int n, struct smv_error *err)
{
	uint64_t *data = smv_remote_staging(remote);
	const size_t words = SMV_PAGE_SIZE / sizeof(*data);
	struct smv_remote_completion c = {0};
	int r;

	for (unsigned int i = 0; i < n; i++) {
		uint64_t slot = first + i, page = 2 * slot;

		for (size_t k = 0; k < words; k++)
			data[i * words + k] = smv_bench_rig_stored(page);
		smv_slots_take(&rig->slots, slot);
		smv_pagemap_place(&rig->map, page,
			smv_word(SMV_PAGE_COLD, slot, smv_page_checksum(data + i * words)));
	}
	r = smv_remote_post(remote, SMV_OP_WRITE, first, n, data, 0);
	while (r == 0 && smv_remote_poll(remote, &c, 1) == 0)
		;
	if (r == 0)
		r = c.status;
	return r == 0 ? 0
		      : smv_fail(err, smv_code_from_errno(r), "request-failed", NULL,
				"cannot write pages to %s: %s", rig->backing.sub_hosts[0].address,
				strerror(-r));
}

int smv_bench_rig_store(struct smv_bench_rig *rig, uint64_t nr_pages, struct smv_error *err)
{
	struct smv_remote *remote = NULL;
	int r = smv_remote_open(
		&rig->backing, SMV_ROLE_WRITER, SMV_EXTENT_BYTES, TIMEOUT_MS, &remote, err);

	for (uint64_t first = 0; first < nr_pages && r == 0; first += SMV_EXTENT_PAGES) {
		uint64_t n = nr_pages - first;

		r = store_extent(rig, remote, first,
			n < SMV_EXTENT_PAGES ? (unsigned int)n : SMV_EXTENT_PAGES, err);
	}
	smv_remote_close(remote);
	return r;
}
