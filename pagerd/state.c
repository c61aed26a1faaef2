/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/state.h"

#include "client/leases_state.h"
#include "common/cleanup.h"
#include "common/files.h"
#include "common/json.h"
#include "common/log.h"
#include "pagerd/debts.h"
#include "pagerd/migration.h"
#include "vmm/maps.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define VERSION 1

/* --- writing ------------------------------------------------------------------------------ */

static json_t *ram_to_json(const struct smv_guest_ram *ram)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < ram->nr_blocks; i++) {
		const struct smv_ram_block *b = &ram->blocks[i];
		struct stat st = {0};

		fstat(b->fd, &st);
		json_array_append_new(
			list, json_pack("{s:s, s:I, s:i, s:o, s:I, s:o, s:o}", "id", b->id,
				      "size_bytes", (json_int_t)b->size_bytes, "page_size",
				      (int)b->page_size, "host_addr", smv_json_hex(b->host_addr),
				      "file_offset", (json_int_t)b->file_offset, "dev",
				      smv_json_hex(st.st_dev), "ino", smv_json_hex(st.st_ino)));
	}
	return list;
}

static int save_failed(const struct smv_vm *vm, const char *path, int r, struct smv_error *err)
{
	return smv_fail(err, SMV_NO_ROOM, "state-dir",
		"Free memory of the file system of --state-dir.",
		"cannot write what a later smemv-pagerd must know of VM '%s' to %s: %s", vm->name,
		path, strerror(-r));
}

/* With those that are being added. */
static const struct smv_leases *leases_of(const struct smv_vm *vm)
{
	return vm->growth ? &vm->growth->all : &vm->leases;
}

static const struct smv_backing *backing_of(const struct smv_vm *vm)
{
	return vm->growth ? &vm->growth->all_backing : &vm->backing;
}

int smv_vm_save(struct smv_vm *vm, struct smv_error *err)
{
	CLEANUP_JSON json_t *root = json_pack("{s:i, s:s, s:i, s:o, s:s, s:s, s:s, s:o}", "version",
		VERSION, "name", vm->name, "pid", (int)vm->process.pid, "start_time",
		smv_json_hex(vm->process.start_time), "qmp_path", vm->qmp_path, "shim_path",
		vm->shim_path, "state", smv_vm_state_name(vm->state), "ram", ram_to_json(&vm->ram));
	char path[400];
	int r = 0;

	if (root && vm->backed) {
		json_object_set_new(
			root, "budget_bytes", json_integer((json_int_t)vm->budget_bytes));
		json_object_set_new(root, "effective_budget_bytes",
			json_integer((json_int_t)(vm->budget.granted * SMV_PAGE_SIZE)));
		json_object_set_new(
			root, "transport", json_string(smv_transport_name(vm->backing.transport)));
		json_object_set_new(root, "transport_reason", json_string(vm->transport_reason));
		json_object_set_new(
			root, "loss_policy", json_string(smv_loss_policy_name(vm->loss_policy)));
		r = json_object_set_new(
			root, "leases", smv_leases_to_json(leases_of(vm), backing_of(vm)));
	}
	if (root && vm->map_id)
		json_object_set_new(root, "map_id", smv_json_hex(vm->map_id));
	if (root && vm->migration)
		json_object_set_new(root, "migration", smv_migration_to_json(vm->migration));
	smv_vm_path(vm, "vm.json", path, sizeof(path));
	if (r == 0)
		r = smv_replace_json(AT_FDCWD, path, root, JSON_INDENT(1), true);
	vm->unsaved = r < 0;
	return r < 0 ? save_failed(vm, path, r < -1 ? r : -ENOMEM, err) : 0;
}

int smv_vm_save_extents(const struct smv_vm *vm, struct smv_error *err)
{
	CLEANUP_JSON json_t *root = json_object();
	const struct smv_leases *leases = leases_of(vm);
	const struct smv_backing *backing = backing_of(vm);
	json_t *hosts = json_array(), *extents = json_array();
	char path[400];
	int r;

	for (unsigned int h = 0; h < backing->nr_sub_hosts; h++)
		json_array_append_new(
			hosts, json_pack("{s:s, s:s}", "address", backing->sub_hosts[h].address,
				       "lease", leases->leases[h].id));
	for (uint64_t i = 0; i < backing->nr_extents; i++) {
		const struct smv_extent *x = &backing->extents[i];

		json_array_append_new(
			extents, json_pack("[i,i,I]", (int)x->sub_host, (int)x->segment,
					 (json_int_t)x->offset_bytes));
	}
	json_object_set_new(root, "sub_hosts", hosts);
	json_object_set_new(root, "extents", extents);
	smv_vm_path(vm, "extents.json", path, sizeof(path));
	r = smv_replace_json(AT_FDCWD, path, root, JSON_COMPACT, true);
	return r < 0 ? save_failed(vm, path, r, err) : 0;
}

/* --- reading ------------------------------------------------------------------------------ */

/* The first of the VM's, in the same order; those behind have no extents yet. */
static bool are_leases_of(const struct smv_vm *vm, const json_t *hosts)
{
	if (!json_array_size(hosts) || json_array_size(hosts) > vm->leases.nr)
		return false;
	for (unsigned int h = 0; h < json_array_size(hosts); h++) {
		const char *id =
			json_string_value(json_object_get(json_array_get(hosts, h), "lease"));

		if (!id || strcmp(id, vm->leases.leases[h].id) != 0)
			return false;
	}
	return true;
}

/* Somebody died while it added leases: nothing is in them. */
static int give_back_unused(struct smv_vm *vm, unsigned int nr_used, struct smv_error *err)
{
	struct smv_backing rest_backing;
	struct smv_leases rest;

	if (nr_used == vm->leases.nr)
		return 0;
	if (smv_leases_split(&vm->leases, &vm->backing, nr_used, &rest, &rest_backing) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	smv_log_info("VM '%s': %u leases without extents are given back", vm->name, rest.nr);
	smv_debts_add(&rest, &rest_backing);
	smv_leases_forget(&rest, &rest_backing);
	return 0;
}

int smv_vm_load_extents(struct smv_vm *vm, struct smv_error *err)
{
	char path[400];
	CLEANUP_JSON json_t *root =
		json_load_file(smv_vm_path(vm, "extents.json", path, sizeof(path)), 0, NULL);
	const json_t *extents = json_object_get(root, "extents");
	const json_t *hosts = json_object_get(root, "sub_hosts");
	bool good = json_array_size(extents) && are_leases_of(vm, hosts);
	size_t i;
	json_t *row;

	json_array_foreach (extents, i, row) {
		json_int_t host, segment, offset;

		good = good && json_unpack(row, "[I,I,I]", &host, &segment, &offset) == 0 &&
		       host >= 0 && host < SMV_SUB_HOSTS_MAX && segment >= 0 &&
		       segment <= UINT16_MAX && offset >= 0 &&
		       smv_backing_add_extents(&vm->backing, (unsigned int)host,
			       (unsigned int)segment, (uint64_t)offset, 1) == 0;
	}
	if (good)
		return give_back_unused(vm, (unsigned int)json_array_size(hosts), err);
	return smv_fail(err, SMV_DATA_LOSS, "extents",
		"The VM waits as it is. If the file was put elsewhere, put it back: it is "
		"looked for every ten seconds; without it the VM's memory cannot be found: end the "
		"VM.",
		"the extent table of VM '%s', %s, is missing, broken or of other leases", vm->name,
		path);
}

/* A descriptor of the process for this file, opened by us too. */
static int open_file_of(pid_t pid, dev_t dev, ino_t ino)
{
	char path[400];
	struct dirent *entry;
	int fd = -ENOENT;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (fd < 0 && (entry = readdir(dir))) {
		struct stat st;

		snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)pid, entry->d_name);
		if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_dev != dev ||
			st.st_ino != ino)
			continue;
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			fd = -errno;
	}
	closedir(dir);
	return fd;
}

static bool is_mapped_as(pid_t pid, const struct smv_ram_block *b, dev_t dev, ino_t ino)
{
	CLEANUP_FILE FILE *file = NULL;
	CLEANUP_FREE char *text = NULL;
	struct smv_mapping m;
	char path[64];
	size_t size = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	file = fopen(path, "re");
	return file && getdelim(&text, &size, '\0', file) > 0 &&
	       smv_maps_find(text, dev, ino, &m) == 1 && m.addr == b->host_addr &&
	       m.file_offset == b->file_offset && m.len >= b->size_bytes;
}

static int open_block(struct smv_vm *vm, json_t *json, struct smv_error *err)
{
	struct smv_ram_block *b = &vm->ram.blocks[vm->ram.nr_blocks];
	json_t *addr, *dev_text, *ino_text;
	const char *id;
	json_int_t size, offset;
	uint64_t dev, ino;
	int page_size, fd;

	memset(b, 0, sizeof(*b));
	if (vm->ram.nr_blocks == SMV_RAM_BLOCKS_MAX ||
		json_unpack(json, "{s:s, s:I, s:i, s:o, s:I, s:o, s:o}", "id", &id, "size_bytes",
			&size, "page_size", &page_size, "host_addr", &addr, "file_offset", &offset,
			"dev", &dev_text, "ino", &ino_text) < 0 ||
		!smv_json_to_hex(addr, &b->host_addr) || !smv_json_to_hex(dev_text, &dev) ||
		!smv_json_to_hex(ino_text, &ino) || size <= 0 || size % SMV_PAGE_SIZE || offset < 0)
		return smv_fail(err, SMV_DATA_LOSS, "ram", NULL,
			"what is written of the RAM of VM '%s' is broken", vm->name);
	snprintf(b->id, sizeof(b->id), "%s", id);
	b->size_bytes = (uint64_t)size;
	b->page_size = (uint32_t)page_size;
	b->nr_pages = b->size_bytes / SMV_PAGE_SIZE;
	b->first_page = vm->ram.nr_pages;
	b->file_offset = (uint64_t)offset;
	fd = open_file_of(vm->process.pid, (dev_t)dev, (ino_t)ino);
	if (fd < 0)
		return smv_fail(err, SMV_REFUSED, "ram", "Run as root or as the user of QEMU.",
			"cannot open the RAM file of block '%s' of VM '%s': %s", id, vm->name,
			strerror(-fd));
	b->fd = fd;
	vm->ram.nr_blocks++;
	vm->ram.nr_pages += b->nr_pages;
	vm->ram.bytes += b->size_bytes;
	if (is_mapped_as(vm->process.pid, b, (dev_t)dev, (ino_t)ino))
		return 0;
	return smv_fail(err, SMV_REFUSED, "ram", NULL,
		"QEMU of VM '%s' does not map the RAM file of block '%s' where it did", vm->name,
		id);
}

int smv_vm_open_ram(struct smv_vm *vm, const json_t *state, struct smv_error *err)
{
	const json_t *list = json_object_get(state, "ram");
	json_t *block;
	size_t i;
	int r = 0;

	json_array_foreach (list, i, block)
		if (r == 0)
			r = open_block(vm, block, err);
	if (r == 0 && !vm->ram.nr_blocks)
		r = smv_fail(err, SMV_DATA_LOSS, "ram", NULL,
			"what is written of the RAM of VM '%s' is broken", vm->name);
	return r;
}
