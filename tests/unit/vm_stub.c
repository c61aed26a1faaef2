/* SPDX-License-Identifier: Apache-2.0 */
#include "vm_stub.h"

#include "client/discard.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "vmm/shim_proto.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILE_OFFSET (16 * (uint64_t)SMV_PAGE_SIZE)
#define DEADLINE_S 60

/* splitmix64 (S. Vigna): a good 64-bit value out of any counter. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t next_random(uint64_t *state)
{
	return mix((*state)++);
}

/* --- sub-hosts ---------------------------------------------------------------------------- */

static int on_connect(void *ctx, struct smv_conn *conn, const void *private_data,
	size_t private_len, struct smv_domain **domain, unsigned int *access, void **conn_ctx)
{
	struct stub_host *host = ctx;
	struct smv_ticket ticket;

	(void)conn;
	if (smv_ticket_parse(private_data, private_len, &ticket) < 0)
		return -EACCES;
	*domain = host->domain;
	*access = SMV_ACCESS_REMOTE_READ |
		  (ticket.role == SMV_ROLE_WRITER ? SMV_ACCESS_REMOTE_WRITE : 0);
	*conn_ctx = host;
	return 0;
}

void stub_host_create(
	struct stub_host *host, const char *transport, unsigned int index, uint64_t nr_extents)
{
	char text[64];

	memset(host, 0, sizeof(*host));
	host->transport = smv_transport_find(transport);
	must(host->transport);
	host->bytes = nr_extents * SMV_EXTENT_BYTES;
	host->memory = mmap(NULL, host->bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(host->memory != MAP_FAILED);
	must(smv_domain_create(host->transport, &host->domain) == 0);
	must(smv_region_register(host->domain, host->memory, host->bytes,
		     SMV_ACCESS_REMOTE_READ | SMV_ACCESS_REMOTE_WRITE, &host->region) == 0);
	smv_region_info(host->region, &host->info);
	if (strcmp(transport, "tcp") == 0)
		snprintf(text, sizeof(text), "tcp:127.0.0.1:0");
	else
		snprintf(text, sizeof(text), "%s:stub%u", transport, index);
	must(smv_addr_parse(text, true, &host->addr, NULL) == 0);
	stub_host_up(host);
}

void stub_host_up(struct stub_host *host)
{
	const struct smv_listener_handler handler = {.ctx = host, .connect = on_connect};
	struct smv_addr bound;

	must(smv_listen(host->transport, &host->addr, &handler, &host->listener, &bound, NULL) ==
		0);
	host->addr = bound;
}

void stub_host_down(struct stub_host *host)
{
	smv_listener_close(host->listener);
	host->listener = NULL;
}

static void spoil(struct stub_host *host)
{
	uint64_t *words = (uint64_t *)(void *)host->memory;

	for (size_t i = 0; i < host->bytes / sizeof(*words); i++)
		words[i] = ~words[i];
}

void stub_host_lose(struct stub_host *host)
{
	stub_host_down(host);
	spoil(host);
	atomic_store(&host->lost, true);
}

void stub_host_regain(struct stub_host *host)
{
	spoil(host);
	atomic_store(&host->lost, false);
	stub_host_up(host);
}

void stub_host_destroy(struct stub_host *host)
{
	if (host->listener)
		stub_host_down(host);
	smv_region_deregister(host->region);
	smv_domain_destroy(host->domain);
	munmap(host->memory, host->bytes);
}

static int make_ticket(
	void *ctx, unsigned int sub_host, enum smv_role role, struct smv_ticket *ticket)
{
	static const uint8_t key[SMV_TICKET_KEY_SIZE];
	static _Atomic uint64_t nonce;

	(void)ctx;
	smv_ticket_make(key, sub_host, 1, role, ++nonce, ticket);
	return 0;
}

static int find_door(void *ctx, unsigned int sub_host, enum smv_role role, struct smv_door *door,
	struct smv_error *err)
{
	struct stub_host *host = (struct stub_host *)ctx + sub_host;

	if (atomic_load(&host->lost))
		return smv_fail(err, SMV_DATA_LOSS, "data-lost", NULL,
			"sub-host-%u has lost the data", sub_host);
	door->data_addr = host->addr;
	door->segments = calloc(1, sizeof(*door->segments));
	must(door->segments);
	*door->segments =
		(struct smv_segment){host->info.rkey, host->info.remote_addr, host->bytes};
	return make_ticket(ctx, sub_host, role, &door->ticket);
}

void stub_backing_create(
	struct smv_backing *backing, struct stub_host *hosts, unsigned int nr_hosts)
{
	*backing = (struct smv_backing){.transport = hosts[0].transport,
		.sub_hosts = calloc(nr_hosts, sizeof(struct smv_sub_host)),
		.nr_sub_hosts = nr_hosts,
		.ticket = make_ticket,
		.find_door = find_door,
		.ticket_ctx = hosts};
	must(backing->sub_hosts);
	for (unsigned int h = 0; h < nr_hosts; h++) {
		struct smv_sub_host *s = &backing->sub_hosts[h];

		snprintf(s->address, sizeof(s->address), "sub-host-%u", h);
		s->data_addr = hosts[h].addr;
		s->segments = calloc(1, sizeof(*s->segments));
		must(s->segments);
		s->segments[0] = (struct smv_segment){hosts[h].info.rkey, hosts[h].info.remote_addr,
			hosts[h].bytes - hosts[h].spare_bytes};
		s->nr_segments = 1;
	}
}

unsigned char *stub_slot(
	const struct stub_host *hosts, const struct smv_backing *backing, uint64_t slot)
{
	struct smv_slot_place place = smv_backing_locate(backing, slot);
	/* Leases that were added later are on the last one. */
	const struct stub_host *host =
		&hosts[place.sub_host < STUB_HOSTS ? place.sub_host : STUB_HOSTS - 1];

	return host->memory + (place.remote_addr - host->info.remote_addr);
}

/* --- a page of a slot --------------------------------------------------------------------- */

void stub_way_open(struct stub_lab *lab)
{
	struct smv_error err = {0};

	if (smv_remote_open(&lab->backing, SMV_ROLE_WRITER, SMV_PAGE_SIZE, 5000, &lab->way, &err) <
		0)
		fprintf(stderr, "%s\n", err.message);
	must(lab->way);
}

void stub_way_close(struct stub_lab *lab)
{
	smv_remote_close(lab->way);
	lab->way = NULL;
}

static int transfer(struct smv_remote *way, enum smv_op op, uint64_t slot)
{
	struct smv_remote_completion c;
	int r = smv_remote_post(way, op, slot, 1, smv_remote_staging(way), 0);

	while (r == 0 && smv_remote_poll(way, &c, 1) == 0) {
		struct pollfd fds[SMV_SUB_HOSTS_MAX];
		int timeout = 100, n = smv_remote_pollfds(way, fds, &timeout);

		if (n >= 0)
			poll(fds, (nfds_t)n, timeout);
	}
	return r == 0 ? c.status : r;
}

int stub_slot_move(const struct stub_lab *lab, enum smv_op op, uint64_t slot, void *data)
{
	void *there = lab->way ? smv_remote_staging(lab->way)
			       : stub_slot(lab->hosts, &lab->backing, slot);
	int r = 0;

	if (op == SMV_OP_WRITE)
		memcpy(there, data, SMV_PAGE_SIZE);
	if (lab->way)
		r = transfer(lab->way, op, slot);
	if (op == SMV_OP_READ && r == 0)
		memcpy(data, there, SMV_PAGE_SIZE);
	return r;
}

/* --- the VM ------------------------------------------------------------------------------- */

/* Every fourth huge page that lies in the file as a whole becomes one; a pipe holds a part of it
 * until the test's process ends. */
static void make_huge_pages(int fd, uint64_t bytes)
{
	const uint64_t huge = SMV_EXTENT_BYTES;

	for (uint64_t at = 0; at + huge <= bytes; at += 4 * huge) {
		char *room = mmap(NULL, 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		char *addr = room + (huge - (uintptr_t)room % huge) % huge;
		struct iovec part = {addr + huge - SMV_PAGE_SIZE, SMV_PAGE_SIZE};
		int pin[2];

		must(room != MAP_FAILED && pipe2(pin, O_CLOEXEC) == 0);
		must(mmap(addr, huge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
			     (off_t)at) == addr);
		must(madvise(addr, huge, MADV_POPULATE_WRITE) == 0);
		must(vmsplice(pin[1], &part, 1, 0) == SMV_PAGE_SIZE);
		munmap(room, 2 * huge);
	}
}

static int create_file(const char *huge_dir, uint64_t bytes)
{
	int fd = huge_dir ? open(huge_dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600)
			  : memfd_create("stub-ram", MFD_CLOEXEC);

	must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	if (huge_dir)
		make_huge_pages(fd, bytes);
	return fd;
}

static void add_block(struct stub_vm *vm, const char *huge_dir, uint64_t nr_pages,
	uint64_t file_offset, uint64_t mode)
{
	struct smv_ram_block *b = &vm->ram.blocks[vm->ram.nr_blocks];
	void *addr;

	*b = (struct smv_ram_block){.size_bytes = nr_pages * SMV_PAGE_SIZE,
		.page_size = SMV_PAGE_SIZE,
		.first_page = vm->ram.nr_pages,
		.nr_pages = nr_pages,
		.fd = create_file(huge_dir, file_offset + nr_pages * SMV_PAGE_SIZE),
		.file_offset = file_offset};
	snprintf(b->id, sizeof(b->id), "ram%u", vm->ram.nr_blocks);
	addr = mmap(
		NULL, b->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, (off_t)file_offset);
	must(addr != MAP_FAILED);
	b->host_addr = (uint64_t)(uintptr_t)addr;
	must(!mode || smv_uffd_register(vm->uffd, b->host_addr, b->size_bytes, mode) == 0);
	vm->ram.nr_blocks++;
	vm->ram.nr_pages += nr_pages;
	vm->ram.bytes += b->size_bytes;
}

/* Only threads of this process touch the RAM: that needs no privilege. */
static int open_uffd(void)
{
	return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
}

/* On a userfaultfd that becomes the VM's. */
static void create_on(struct stub_vm *vm, int uffd, const char *huge_dir, unsigned int nr_blocks,
	uint64_t nr_pages, uint64_t features, uint64_t mode)
{
	uint64_t first = nr_blocks == 1 ? nr_pages : nr_pages / 2 + 100;

	memset(vm, 0, sizeof(*vm));
	vm->uffd = uffd;
	must(vm->uffd >= 0 && smv_uffd_api(vm->uffd, features) == 0);
	vm->pagemap_fd = smv_pagemap_open(getpid());
	must(vm->pagemap_fd >= 0);
	add_block(vm, huge_dir, first, 0, mode);
	if (nr_blocks == 2)
		add_block(vm, huge_dir, nr_pages - first, FILE_OFFSET, mode);
}

void stub_vm_create(struct stub_vm *vm, unsigned int nr_blocks, uint64_t nr_pages,
	uint64_t features, uint64_t mode)
{
	create_on(vm, open_uffd(), NULL, nr_blocks, nr_pages, features, mode);
}

void stub_vm_destroy(struct stub_vm *vm)
{
	for (unsigned int i = 0; i < vm->ram.nr_blocks; i++) {
		munmap((void *)(uintptr_t)vm->ram.blocks[i].host_addr,
			vm->ram.blocks[i].size_bytes);
		close(vm->ram.blocks[i].fd);
	}
	close(vm->uffd);
	close(vm->pagemap_fd);
}

unsigned char *stub_vm_page(const struct stub_vm *vm, uint64_t page)
{
	const struct smv_ram_block *b = smv_guest_ram_block_of(&vm->ram, page);

	return (unsigned char *)(uintptr_t)b->host_addr + (page - b->first_page) * SMV_PAGE_SIZE;
}

uint64_t stub_vm_resident(const struct stub_vm *vm)
{
	uint64_t blocks = 0;
	struct stat st;

	for (unsigned int i = 0; i < vm->ram.nr_blocks; i++) {
		must(fstat(vm->ram.blocks[i].fd, &st) == 0);
		blocks += (uint64_t)st.st_blocks;
	}
	return blocks * 512 / SMV_PAGE_SIZE;
}

int stub_vm_zap(void *ctx, uint64_t addr, uint64_t len)
{
	(void)ctx;
	return madvise((void *)(uintptr_t)addr, len, MADV_DONTNEED) < 0 ? -errno : 0;
}

/* --- contents ----------------------------------------------------------------------------- */

void stub_page_fill(const struct stub_lab *lab, void *data, uint64_t page, uint32_t version)
{
	uint64_t *words = data, x = mix(lab->o.seed ^ mix(page << 32 | version)) | 1;

	if (lab->o.fill && version) {
		lab->o.fill(lab, data, page, version);
		return;
	}
	for (unsigned int i = 0; i < SMV_PAGE_SIZE / sizeof(*words); i++)
		words[i] = version ? x * (i + 1) ^ x >> 7 : 0;
}

static pthread_rwlock_t *lock_of(struct stub_lab *lab, uint64_t page)
{
	return &lab->locks[page % lab->nr_locks];
}

static bool holds(const struct stub_lab *lab, const void *data, uint64_t page)
{
	uint64_t want[SMV_PAGE_SIZE / sizeof(uint64_t)];

	stub_page_fill(lab, want, page, lab->versions[page]);
	return memcmp(data, want, SMV_PAGE_SIZE) == 0;
}

static void check_locked(struct stub_lab *lab, uint64_t page)
{
	if (!holds(lab, stub_vm_page(&lab->vm, page), page))
		lab->mismatches++;
	lab->checks++;
}

static void write_locked(struct stub_lab *lab, uint64_t page, uint32_t version)
{
	lab->versions[page] = version;
	stub_page_fill(lab, stub_vm_page(&lab->vm, page), page, version);
}

void stub_read(struct stub_lab *lab, uint64_t page)
{
	pthread_rwlock_rdlock(lock_of(lab, page));
	check_locked(lab, page);
	pthread_rwlock_unlock(lock_of(lab, page));
}

void stub_write(struct stub_lab *lab, uint64_t page, uint32_t version)
{
	pthread_rwlock_wrlock(lock_of(lab, page));
	write_locked(lab, page, version);
	pthread_rwlock_unlock(lock_of(lab, page));
}

/* --- discards ----------------------------------------------------------------------------- */

void stub_discards_to(struct stub_lab *lab, int fd)
{
	int old = atomic_exchange(&lab->discards_fd, fd);

	if (old < 0)
		return;
	/* Who waits for an answer there closes it. */
	shutdown(old, SHUT_RDWR);
	if (pthread_mutex_trylock(&lab->discards_lock) != 0)
		return;
	close(old);
	pthread_mutex_unlock(&lab->discards_lock);
}

/* False: the pager died before it answered. */
static bool ask(int fd, const struct smv_shim_discard *d, struct smv_shim_reply *reply)
{
	return send(fd, d, sizeof(*d), MSG_NOSIGNAL) == sizeof(*d) &&
	       recv(fd, reply, sizeof(*reply), 0) == sizeof(*reply);
}

int stub_ask_discard(struct stub_lab *lab, unsigned int block, uint64_t offset, uint64_t len)
{
	const struct smv_shim_discard d = {.file = block, .offset = offset, .len = len};
	struct smv_shim_reply reply;
	bool done = false;

	pthread_mutex_lock(&lab->discards_lock);
	while (!done) {
		int fd = lab->discards_fd, same = fd;

		done = fd >= 0 && ask(fd, &d, &reply);
		if (fd >= 0 && !done)
			atomic_compare_exchange_strong(&lab->discards_fd, &same, -1);
		if (fd >= 0 && fd != lab->discards_fd)
			close(fd);
		if (!done)
			smv_sleep_ms(1);
	}
	pthread_mutex_unlock(&lab->discards_lock);
	return reply.status;
}

static void discard_locked(struct stub_lab *lab, uint64_t first, uint64_t end)
{
	while (first < end) {
		const struct smv_ram_block *b = smv_guest_ram_block_of(&lab->vm.ram, first);
		uint64_t stop = b->first_page + b->nr_pages;

		stop = stop < end ? stop : end;
		must(stub_ask_discard(lab, (unsigned int)(b - lab->vm.ram.blocks),
			     b->file_offset + (first - b->first_page) * SMV_PAGE_SIZE,
			     (stop - first) * SMV_PAGE_SIZE) == 0);
		for (; first < stop; first++)
			lab->versions[first] = 0;
	}
}

void stub_discard(struct stub_lab *lab, uint64_t first, uint64_t nr_pages)
{
	for (uint64_t i = 0; i < nr_pages; i++)
		pthread_rwlock_wrlock(lock_of(lab, first + i));
	discard_locked(lab, first, first + nr_pages);
	for (uint64_t i = 0; i < nr_pages; i++)
		pthread_rwlock_unlock(lock_of(lab, first + i));
}

/* --- the lab ------------------------------------------------------------------------------ */

static void start_hot(struct stub_lab *lab, uint64_t page)
{
	char data[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE)));
	uint32_t versions = 1 + page % 2;

	for (uint32_t v = 1; v <= versions; v++) {
		stub_page_fill(lab, data, page, v);
		must(smv_pager_install(lab->pager, page, data, smv_page_checksum(data)) == 0);
		lab->versions[page] = v;
	}
}

static void start_cold(struct stub_lab *lab, uint64_t page, uint64_t slot)
{
	char data[SMV_PAGE_SIZE] __attribute__((aligned(8)));

	must(smv_slots_take(&lab->slots, slot) == 0);
	lab->versions[page] = 1;
	stub_page_fill(lab, data, page, 1);
	must(stub_slot_move(lab, SMV_OP_WRITE, slot, data) == 0);
	smv_pagemap_place(&lab->map, page, smv_word(SMV_PAGE_COLD, slot, smv_page_checksum(data)));
}

static void place_pages(struct stub_lab *lab)
{
	const struct stub_options *o = &lab->o;
	uint64_t credit = smv_pager_hot_credit(o->budget_pages), slot = 0;

	for (uint64_t page = 0; page < o->nr_pages; page++) {
		uint64_t dice = mix(o->seed ^ page << 1) % 100;

		if (dice < o->zero_percent) {
			smv_pagemap_place(
				&lab->map, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
		} else if (dice < o->zero_percent + o->hot_percent && credit) {
			start_hot(lab, page);
			credit--;
		} else {
			start_cold(lab, page, slot++);
		}
	}
}

static void place_untouched(struct stub_lab *lab)
{
	static const char zeros[SMV_PAGE_SIZE] __attribute__((aligned(8)));
	uint32_t checksum = smv_page_checksum(zeros);
	uint64_t slot = 0;

	smv_pagemap_fill(&lab->map, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	for (uint64_t page = 0; page < lab->o.nr_pages; page++) {
		if (page / SMV_EXTENT_PAGES % 8 == 0)
			continue;
		must(smv_slots_take(&lab->slots, slot) == 0);
		smv_pagemap_set(&lab->map, page, smv_word(SMV_PAGE_COLD, slot++, checksum));
	}
}

static void make_pager(struct stub_lab *lab)
{
	struct smv_pager_config config = {.name = "stub",
		.ram = &lab->vm.ram,
		.map = &lab->map,
		.slots = &lab->slots,
		.backing = &lab->backing,
		.uffd = lab->vm.uffd,
		.pagemap_fd = lab->vm.pagemap_fd,
		.zap = stub_vm_zap,
		.budget_pages = lab->o.budget_pages,
		.timeout_ms = 2000,
		.loss_policy = lab->o.loss_policy,
		.loss_confirm_ms = lab->o.loss_confirm_ms,
		.skip_checksums = lab->o.skip_checksums};

	must(smv_pager_create(&config, &lab->pager, NULL) == 0);
}

static void make_backing(struct stub_lab *lab)
{
	const struct stub_options *o = &lab->o;

	if (!o->transport) {
		lab->backing = *o->backing;
		return;
	}
	/* Sub-hosts of different sizes: a third and the rest. */
	stub_host_create(&lab->hosts[0], o->transport, 0, o->nr_extents / 3);
	stub_host_create(&lab->hosts[1], o->transport, 1,
		o->nr_extents - o->nr_extents / 3 + o->spare_extents);
	lab->hosts[1].spare_bytes = o->spare_extents * SMV_EXTENT_BYTES;
	stub_backing_create(&lab->backing, lab->hosts, STUB_HOSTS);
	must(smv_backing_spread(&lab->backing, 2) == 0);
}

void stub_lab_create(struct stub_lab *lab, const struct stub_options *o)
{
	memset(lab, 0, sizeof(*lab));
	lab->o = *o;
	lab->discards_fd = -1;
	pthread_mutex_init(&lab->discards_lock, NULL);
	make_backing(lab);
	must(lab->backing.nr_extents == o->nr_extents);
	must(smv_slots_create(o->nr_extents, &lab->slots) == 0);
	must(smv_pagemap_create(o->map_path, "stub", o->nr_pages, &lab->map, NULL) == 0);
	create_on(&lab->vm, o->kernel_faults ? smv_uffd_open() : open_uffd(), o->huge_dir,
		o->nr_blocks, o->nr_pages, SMV_UFFD_PAGE,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
			UFFDIO_REGISTER_MODE_WP);
	lab->versions = calloc(o->nr_pages, sizeof(*lab->versions));
	lab->nr_locks = o->nr_pages < STUB_LOCKS_MAX ? o->nr_pages : STUB_LOCKS_MAX;
	lab->locks = calloc(lab->nr_locks, sizeof(*lab->locks));
	must(lab->versions && lab->locks);
	for (uint64_t i = 0; i < lab->nr_locks; i++)
		pthread_rwlock_init(&lab->locks[i], NULL);
	make_pager(lab);
	if (!o->transport)
		stub_way_open(lab);
	if (o->untouched)
		place_untouched(lab);
	else
		place_pages(lab);
	stub_way_close(lab);
	lab->min_free_slots = lab->slots.nr_free;
}

void stub_lab_start(struct stub_lab *lab)
{
	struct smv_error err = {0};
	int ends[2];

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	must(smv_pager_serve_discards(lab->pager, ends[1], NULL) == 0);
	stub_discards_to(lab, ends[0]);
	if (smv_pager_start(lab->pager, &err) < 0)
		fprintf(stderr, "%s\n", err.message);
	must(err.code == SMV_OK);
}

int stub_lab_take_over(struct stub_lab *lab, struct smv_taken_over *report, struct smv_error *err)
{
	if (lab->pager)
		stub_lab_stop(lab);
	smv_slots_destroy(&lab->slots);
	must(smv_slots_create(lab->backing.nr_extents, &lab->slots) == 0);
	make_pager(lab);
	return smv_pager_take_over(lab->pager, report, err);
}

/* The sub-host once more, with a segment that begins where the former ones end. */
static void add_lease(struct stub_lab *lab, uint64_t nr_extents)
{
	struct smv_backing *b = &lab->backing;
	struct stub_host *host = &lab->hosts[STUB_HOSTS - 1];
	struct smv_sub_host *s;

	must(nr_extents * SMV_EXTENT_BYTES <= host->spare_bytes);
	b->sub_hosts = reallocarray(b->sub_hosts, b->nr_sub_hosts + 1, sizeof(*b->sub_hosts));
	must(b->sub_hosts);
	s = &b->sub_hosts[b->nr_sub_hosts];
	*s = b->sub_hosts[STUB_HOSTS - 1];
	s->segments = calloc(1, sizeof(*s->segments));
	must(s->segments);
	s->segments[0] = (struct smv_segment){host->info.rkey,
		host->info.remote_addr + host->bytes - host->spare_bytes,
		nr_extents * SMV_EXTENT_BYTES};
	host->spare_bytes -= nr_extents * SMV_EXTENT_BYTES;
	must(smv_backing_add_extents(b, b->nr_sub_hosts++, 0, 0, nr_extents) == 0);
	/* Ours knows the first leases only; and the way in does not change here. */
	b->find_door = NULL;
}

void stub_lab_grow(struct stub_lab *lab, uint64_t nr_extents)
{
	struct smv_taken_over report;
	struct smv_error err = {0};

	smv_pager_stop(lab->pager);
	add_lease(lab, nr_extents);
	smv_slots_destroy(&lab->slots);
	must(smv_slots_create(lab->backing.nr_extents, &lab->slots) == 0);
	if (smv_pager_take_over(lab->pager, &report, &err) < 0)
		fprintf(stderr, "%s\n", err.message);
	must(err.code == SMV_OK && report.lost == 0);
	stub_lab_start(lab);
}

void stub_lab_stop(struct stub_lab *lab)
{
	smv_pager_stats(lab->pager, &lab->stats);
	smv_pager_destroy(lab->pager);
	lab->pager = NULL;
	stub_discards_to(lab, -1);
}

void stub_lab_destroy(struct stub_lab *lab)
{
	if (lab->pager)
		stub_lab_stop(lab);
	stub_discards_to(lab, -1);
	pthread_mutex_destroy(&lab->discards_lock);
	for (uint64_t i = 0; i < lab->nr_locks; i++)
		pthread_rwlock_destroy(&lab->locks[i]);
	free(lab->locks);
	free(lab->versions);
	stub_vm_destroy(&lab->vm);
	smv_pagemap_destroy(&lab->map);
	smv_slots_destroy(&lab->slots);
	smv_backing_free(&lab->backing);
	for (unsigned int h = 0; lab->o.transport && h < STUB_HOSTS; h++)
		stub_host_destroy(&lab->hosts[h]);
}

/* --- threads of the VM -------------------------------------------------------------------- */

static void join(struct stub_lab *lab, pthread_t thread)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE_S;
	if (pthread_timedjoin_np(thread, NULL, &until) == 0)
		return;
	if (lab->pager)
		smv_pager_stats(lab->pager, &lab->stats);
	fprintf(stderr, "a thread of the VM waits for ever: %s\n", lab->stats.trouble);
	abort();
}

void stub_run(struct stub_lab *lab, void *(*body)(void *lab))
{
	pthread_t thread;

	must(pthread_create(&thread, NULL, body, lab) == 0);
	join(lab, thread);
}

void *stub_read_all(void *arg)
{
	struct stub_lab *lab = arg;

	for (uint64_t page = 0; page < lab->o.nr_pages; page++)
		stub_read(lab, page);
	return NULL;
}

/* Mostly a window that moves slowly, so that there is something to keep; also everywhere, and all
 * threads together at one page after the other, so that they fault on it at the same time. */
static uint64_t pick(struct stub_lab *lab, uint64_t *random, uint64_t *step)
{
	uint64_t n = lab->o.nr_pages, r = next_random(random), dice = r % 10, where = r >> 8;

	++*step;
	if (dice < 5)
		return (*step / 16 + where % (lab->o.budget_pages / 3)) % n;
	return dice < 8 ? where % n : lab->convoy++ / STUB_THREADS * 7 % n;
}

static void note_time(struct stub_lab *lab, uint64_t ns)
{
	uint64_t slowest = lab->slowest_ns;

	while (ns > slowest && !atomic_compare_exchange_weak(&lab->slowest_ns, &slowest, ns))
		;
}

/* A look at a page that somebody may be discarding: what it sees does not count, but it puts pages
 * on their way. */
__attribute__((noinline, no_sanitize("thread"))) static void touch(
	const struct stub_lab *lab, uint64_t page)
{
	(void)*(volatile unsigned char *)stub_vm_page(&lab->vm, page);
}

/* A few pages, seldom many; ThreadSanitizer has room for 64 locks. */
static void discard_some(struct stub_lab *lab, uint64_t page, uint64_t dice)
{
	uint64_t nr = 1 + dice % (dice >> 10 & 7 ? 8 : 48);

	if (nr > lab->o.nr_pages - page)
		nr = lab->o.nr_pages - page;
	stub_discard(lab, page, nr);
	if (dice >> 16 & 1)
		stub_read(lab, page + nr / 2);
}

static void *stress(void *arg)
{
	struct stub_lab *lab = arg;
	static _Atomic uint64_t nr_started;
	uint64_t random = mix(lab->o.seed + nr_started++), step = next_random(&random);

	while (!lab->stop) {
		uint64_t page = pick(lab, &random, &step), dice = next_random(&random);
		bool write = dice % 100 < lab->o.write_percent;
		bool zero = (dice >> 8) % 100 < lab->o.zero_percent;
		uint64_t start = smv_now_ns();

		if ((dice >> 24) % 100 < lab->o.discard_percent) {
			discard_some(lab, page, dice >> 32);
			continue;
		}
		if (lab->o.discard_percent && (dice >> 32) % 4 == 0)
			touch(lab, page);
		if (write)
			pthread_rwlock_wrlock(lock_of(lab, page));
		else
			pthread_rwlock_rdlock(lock_of(lab, page));
		/* Some rewrites come without a look: a page that is not here, written first. */
		if (!write || dice >> 16 & 1)
			check_locked(lab, page);
		if (write)
			write_locked(lab, page, zero ? 0 : (uint32_t)next_random(&random) | 1);
		pthread_rwlock_unlock(lock_of(lab, page));
		note_time(lab, smv_now_ns() - start);
	}
	return NULL;
}

void stub_stress_start(struct stub_lab *lab)
{
	lab->stop = false;
	for (lab->nr_threads = 0; lab->nr_threads < STUB_THREADS; lab->nr_threads++)
		must(pthread_create(&lab->threads[lab->nr_threads], NULL, stress, lab) == 0);
}

void stub_stress_stop(struct stub_lab *lab)
{
	lab->stop = true;
	while (lab->nr_threads)
		join(lab, lab->threads[--lab->nr_threads]);
}

void stub_watch(struct stub_lab *lab, unsigned int ms)
{
	uint64_t end = smv_now_ns() + ms * SMV_NS_PER_MS;

	do {
		uint64_t resident = stub_vm_resident(&lab->vm), nr_free = lab->slots.nr_free;

		if (resident > lab->max_resident)
			lab->max_resident = resident;
		if (nr_free < lab->min_free_slots)
			lab->min_free_slots = nr_free;
		smv_pager_stats(lab->pager, &lab->stats);
		if (lab->stats.trouble[0])
			memcpy(lab->trouble, lab->stats.trouble, sizeof(lab->trouble));
		smv_sleep_ms(1);
	} while (smv_now_ns() < end);
}

unsigned int stub_flap(struct stub_lab *lab, uint64_t min, uint64_t max, unsigned int ms)
{
	uint64_t end = smv_now_ns() + ms * SMV_NS_PER_MS, random = mix(lab->o.seed);
	unsigned int n = 0;

	while (smv_now_ns() < end) {
		uint64_t r = next_random(&random);

		smv_pager_set_budget(lab->pager, min + r % (max - min + 1));
		/* Also changed again long before the evictor is done with it. */
		stub_watch(lab, r >> 32 & 1 ? 0 : (unsigned int)(r >> 33) % 100);
		n++;
	}
	smv_pager_set_budget(lab->pager, max);
	return n;
}

/* --- the audit ---------------------------------------------------------------------------- */

static void found(unsigned int *faults, uint64_t page, smv_page_word word, const char *what)
{
	if ((*faults)++ < 10)
		fprintf(stderr, "page %lu (%s, slot %lu): %s\n", page,
			smv_page_state_name(smv_word_state(word)), smv_word_slot(word), what);
}

static void audit_page(
	const struct stub_lab *lab, uint64_t page, smv_page_word word, unsigned int *faults)
{
	const struct smv_ram_block *b = smv_guest_ram_block_of(&lab->vm.ram, page);
	char data[SMV_PAGE_SIZE] __attribute__((aligned(8)));
	off_t at = (off_t)(b->file_offset + (page - b->first_page) * SMV_PAGE_SIZE);
	bool here = lseek(b->fd, at, SEEK_DATA) == at;

	switch (smv_word_state(word)) {
	case SMV_PAGE_ZERO:
		if (here || lab->versions[page] || smv_word_slot(word) != SMV_SLOT_NONE)
			found(faults, page, word, "has data");
		break;
	case SMV_PAGE_LOCAL:
		if (!here || pread(b->fd, data, sizeof(data), at) != sizeof(data) ||
			!holds(lab, data, page))
			found(faults, page, word, "is not what was written last");
		break;
	case SMV_PAGE_COLD:
		if (stub_slot_move(lab, SMV_OP_READ, smv_word_slot(word), data) < 0)
			found(faults, page, word, "cannot be read");
		else if (here || !holds(lab, data, page) ||
			 smv_page_checksum(data) != smv_word_checksum(word))
			found(faults, page, word, "is here, or not what was written last");
		break;
	default:
		found(faults, page, word, "is in a state that ought to pass");
	}
}

unsigned int stub_audit(struct stub_lab *lab)
{
	uint64_t counts[SMV_PAGE_NR_STATES] = {0}, in_use = 0;
	unsigned int faults = 0;
	struct smv_slots used;

	must(smv_slots_create(lab->slots.nr_extents, &used) == 0);
	if (!lab->o.transport)
		stub_way_open(lab);
	for (uint64_t page = 0; page < lab->o.nr_pages; page++) {
		smv_page_word word = smv_pagemap_get(&lab->map, page);
		uint64_t slot = smv_word_slot(word);

		counts[smv_word_state(word)]++;
		if (slot != SMV_SLOT_NONE) {
			in_use++;
			if (smv_slots_take(&used, slot) < 0)
				found(&faults, page, word, "its slot has another owner");
			else if (!(lab->slots.taken[slot / 64] >> slot % 64 & 1))
				found(&faults, page, word, "its slot counts as free");
		}
		audit_page(lab, page, word, &faults);
	}
	stub_way_close(lab);
	smv_slots_destroy(&used);
	if (lab->slots.nr_free + in_use != lab->slots.nr_extents * SMV_EXTENT_PAGES)
		found(&faults, 0, 0, "slots are taken that no page has");
	for (unsigned int s = 0; s < SMV_PAGE_NR_STATES; s++)
		if (counts[s] != smv_pagemap_count(&lab->map, s))
			found(&faults, 0, s, "the map's count of this state is wrong");
	if (counts[SMV_PAGE_LOCAL] != stub_vm_resident(&lab->vm))
		found(&faults, 0, SMV_PAGE_LOCAL, "the RAM files hold another number of pages");
	return faults;
}
