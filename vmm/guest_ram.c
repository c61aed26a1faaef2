/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP tells the names, sizes and kinds of the memory back ends, but not where they are. The file of
 * a back end is found among QEMU's open files, its address in /proc/PID/maps. QEMU's own small
 * blocks (video RAM, ROMs) travel in QEMU's migration stream and are none of our business.
 */
#include "vmm/guest_ram.h"

#include "common/cleanup.h"
#include "vmm/maps.h"
#include "vmm/ram_list.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define TIMEOUT_MS 10000
#define SHARED_FILE_HINT                                                                           \
	"Start QEMU with -object memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/NAME,"     \
	"size=SIZE -machine memory-backend=ram0 (or memory-backend-memfd,share=on)."

#define UNKNOWN_QEMU "This version of QEMU is not known to us; please report it with its version."

struct finder {
	struct smv_qmp *qmp;
	pid_t pid;
	char *maps;
	char *ram_list;
	struct smv_error *err;
};

/* What QMP says about a back end. */
struct backend {
	const char *id;
	char type[40];
	char mem_path[600]; /* empty for a memfd */
	uint64_t size_bytes;
};

static int get_string(struct finder *f, const char *id, const char *property, char *buf, size_t len)
{
	CLEANUP_JSON json_t *result = NULL;
	char path[160];
	int n, r;

	n = snprintf(path, sizeof(path), "/objects/%s", id);
	if (n >= (int)sizeof(path))
		return smv_fail(f->err, SMV_INVALID, "qmp-protocol", "Give it a shorter id.",
			"the id of memory back end '%.100s...' is too long", id);
	r = smv_qmp_execute(f->qmp, "qom-get",
		json_pack("{s:s, s:s}", "path", path, "property", property), &result, TIMEOUT_MS,
		f->err);
	if (r < 0)
		return r;
	n = snprintf(buf, len, "%s", json_string_value(result) ?: "");
	if (n < (int)len)
		return 0;
	return smv_fail(f->err, SMV_INVALID, "qmp-protocol", "Use a shorter path.",
		"property '%s' of memory back end '%s' is too long", property, id);
}

/* Fill @b from an entry of query-memdev and refuse what is no shared file. */
static int read_backend(struct finder *f, const json_t *memdev, struct backend *b)
{
	json_int_t size = json_integer_value(json_object_get(memdev, "size"));
	int r;

	b->id = json_string_value(json_object_get(memdev, "id"));
	if (!b->id || size <= 0)
		return smv_fail(f->err, SMV_INTERNAL, "qmp-protocol", UNKNOWN_QEMU,
			"QEMU describes a memory back end without id or size");
	b->size_bytes = (uint64_t)size;
	r = get_string(f, b->id, "type", b->type, sizeof(b->type));
	if (r < 0)
		return r;
	b->mem_path[0] = 0;
	if (strcmp(b->type, "memory-backend-file") == 0)
		r = get_string(f, b->id, "mem-path", b->mem_path, sizeof(b->mem_path));
	else if (strcmp(b->type, "memory-backend-memfd") != 0)
		return smv_fail(f->err, SMV_REFUSED, "ram-not-shared", SHARED_FILE_HINT,
			"guest RAM '%s' is a %s, not a shared file", b->id, b->type);
	if (r < 0)
		return r;
	if (!json_is_true(json_object_get(memdev, "share")))
		return smv_fail(f->err, SMV_REFUSED, "ram-not-shared",
			"Add share=on to this -object.",
			"guest RAM '%s' (%s) is private: share=off", b->id, b->type);
	return 0;
}

static int read_text(struct finder *f, const char *name, char **text)
{
	char path[64];
	CLEANUP_FILE FILE *file = NULL;
	size_t len = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", f->pid, name);
	file = fopen(path, "re");
	/* getdelim() up to a NUL, which is not there: the whole file. */
	if (file && getdelim(text, &len, 0, file) > 0)
		return 0;
	return smv_fail(f->err, SMV_PERMISSION, "proc",
		"Run as root or as the user of QEMU, on the host of QEMU.", "cannot read %s: %s",
		path, strerror(errno));
}

/* How QEMU's descriptor of the back end's file is called in /proc/PID/fd. QEMU unlinks a file that
 * it made in a directory: "DIR/qemu_back_mem.ID.Xyz123 (deleted)". */
static bool name_fits(const struct backend *b, const char *link)
{
	char made[sizeof(b->mem_path) + 200];
	size_t len = strlen(b->mem_path);

	if (!len)
		return strncmp(link, "/memfd:memory-backend-memfd", 27) == 0;
	if (strncmp(link, b->mem_path, len) == 0 &&
		(!link[len] || strcmp(link + len, " (deleted)") == 0))
		return true;
	while (len && b->mem_path[len - 1] == '/')
		len--;
	/* QEMU puts an underscore for every slash of the id; ids have none. */
	snprintf(made, sizeof(made), "%.*s/qemu_back_mem.%s.", (int)len, b->mem_path, b->id);
	return strncmp(link, made, strlen(made)) == 0;
}

/* Is descriptor @fd of QEMU the file of @b? Then *st describes it. */
static bool is_backend_fd(const struct finder *f, const struct backend *b, int fd, struct stat *st)
{
	char path[400], link[800];
	struct stat named;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", f->pid, fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n <= 0 || stat(path, st) < 0 || !S_ISREG(st->st_mode) ||
		(uint64_t)st->st_size < b->size_bytes)
		return false;
	link[n] = 0;
	if (name_fits(b, link))
		return true;
	/* A symbolic link or a relative path: look there with QEMU's eyes. */
	if (!b->mem_path[0])
		return false;
	n = snprintf(link, sizeof(link), "/proc/%d/%s%s", f->pid,
		b->mem_path[0] == '/' ? "root" : "cwd/", b->mem_path);
	return n < (int)sizeof(link) && stat(link, &named) == 0 && named.st_dev == st->st_dev &&
	       named.st_ino == st->st_ino;
}

/* How often the file is mapped; one mapping must have the back end's size, in which memfds differ.
 */
static int mapped_as(const struct finder *f, const struct backend *b, const struct stat *st,
	struct smv_mapping *m)
{
	int count = smv_maps_find(f->maps, st->st_dev, st->st_ino, m);

	if (count != 1)
		return count;
	/* QEMU may round the mapping up to the file system's block size. */
	return m->len >= b->size_bytes && m->len < b->size_bytes + (2u << 20);
}

static int refuse_mapping(struct finder *f, const struct backend *b, int count, int candidates)
{
	if (count == -EPERM)
		return smv_fail(f->err, SMV_REFUSED, "ram-not-shared", SHARED_FILE_HINT,
			"the file of guest RAM '%s' is mapped privately or read-only", b->id);
	if (count < 0)
		return smv_fail(f->err, SMV_INTERNAL, "proc",
			"Please report it with the kernel's version.",
			"cannot make sense of /proc/%d/maps", f->pid);
	if (count > 1)
		return smv_fail(f->err, SMV_REFUSED, "ram-mapped-twice",
			"Give every back end and device a file of its own.",
			"QEMU maps the file of guest RAM '%s' %d times", b->id, count);
	if (candidates > 1)
		return smv_fail(f->err, SMV_REFUSED, "ram-ambiguous",
			"Use memory-backend-file with a path each, or different sizes.",
			"guest RAM '%s': several files of QEMU look like it", b->id);
	return smv_fail(f->err, SMV_REFUSED, "ram-not-found", SHARED_FILE_HINT,
		"no open file of QEMU (process %d) is guest RAM '%s'", f->pid, b->id);
}

/* Search QEMU's descriptors for the file of @b: its number into @fd, its mapping into *m. */
static int find_fd(struct finder *f, const struct backend *b, int *fd, struct smv_mapping *m)
{
	char path[64];
	struct stat found = {0};
	struct dirent *entry;
	int candidates = 0, mappings = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", f->pid);
	dir = opendir(path);
	if (!dir)
		return smv_fail(f->err, SMV_PERMISSION, "proc",
			"Run as root or as the user of QEMU, on the host of QEMU.",
			"cannot read %s: %s", path, strerror(errno));
	while ((entry = readdir(dir))) {
		struct stat st;
		struct smv_mapping mapping = {0};
		int count, number;

		if (entry->d_name[0] == '.')
			continue;
		number = (int)strtol(entry->d_name, NULL, 10);
		if (!is_backend_fd(f, b, number, &st))
			continue;
		count = mapped_as(f, b, &st, &mapping);
		if (!count ||
			(candidates && st.st_dev == found.st_dev && st.st_ino == found.st_ino))
			continue;
		candidates++;
		found = st;
		mappings = count;
		*m = mapping;
		*fd = number;
	}
	closedir(dir);
	if (candidates == 1 && mappings == 1)
		return 0;
	return refuse_mapping(f, b, candidates ? mappings : 0, candidates);
}

static int open_file(struct finder *f, const struct backend *b, int number, int *file)
{
	char path[64];
	struct statfs fs;
	CLEANUP_CLOSE int fd = -1;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", f->pid, number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return smv_fail(f->err, SMV_PERMISSION, "proc",
			"Run as root or as the user of QEMU.",
			"cannot open the file of guest RAM '%s' (%s): %s", b->id, path,
			strerror(errno));
	if (fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
		return smv_fail(f->err, SMV_REFUSED,
			fs.f_type == HUGETLBFS_MAGIC ? "ram-hugetlb" : "ram-not-tmpfs",
			"Put the RAM file on a tmpfs without huge pages, such as /dev/shm.",
			"the file of guest RAM '%s' is %s", b->id,
			fs.f_type == HUGETLBFS_MAGIC ? "on hugetlbfs" : "not on a tmpfs");
	*file = smv_take_fd(&fd);
	return 0;
}

static int add_block(struct finder *f, const json_t *memdev, struct smv_guest_ram *ram)
{
	struct smv_ram_block *block = &ram->blocks[ram->nr_blocks];
	struct smv_mapping m = {0};
	struct backend b;
	int fd = -1;
	int r = read_backend(f, memdev, &b);

	if (r < 0)
		return r;
	if (ram->nr_blocks == SMV_RAM_BLOCKS_MAX)
		return smv_fail(f->err, SMV_REFUSED, "ram-blocks",
			"Start the VM with fewer, larger memory back ends.",
			"the VM has more than %d RAM blocks", SMV_RAM_BLOCKS_MAX);
	if (smv_ram_list_find(f->ram_list, b.id, block) < 0)
		return smv_fail(f->err, SMV_REFUSED, "ram-not-found",
			"Remove memory back ends that the machine does not use.",
			"memory back end '%s' is not among QEMU's RAM blocks", b.id);
	if (block->page_size != SMV_PAGE_SIZE)
		return smv_fail(f->err, SMV_REFUSED, "ram-hugetlb",
			"Put the RAM file on a tmpfs without huge pages, such as /dev/shm.",
			"guest RAM '%s' has pages of %u KiB; only 4 KiB pages can be paged "
			"remotely",
			b.id, block->page_size / 1024);
	if (block->size_bytes != b.size_bytes || block->size_bytes % SMV_PAGE_SIZE)
		return smv_fail(f->err, SMV_INTERNAL, "qmp-protocol", UNKNOWN_QEMU,
			"QEMU reports guest RAM '%s' with %" PRIu64 " and with %" PRIu64 " bytes",
			b.id, block->size_bytes, b.size_bytes);
	r = find_fd(f, &b, &fd, &m);
	if (!r)
		r = open_file(f, &b, fd, &block->fd);
	if (r < 0)
		return r;
	block->host_addr = m.addr;
	block->file_offset = m.file_offset;
	block->nr_pages = block->size_bytes / SMV_PAGE_SIZE;
	ram->nr_blocks++;
	return 0;
}

static int compare_blocks(const void *a, const void *b)
{
	return strcmp(((const struct smv_ram_block *)a)->id, ((const struct smv_ram_block *)b)->id);
}

static void number_pages(struct smv_guest_ram *ram)
{
	qsort(ram->blocks, ram->nr_blocks, sizeof(ram->blocks[0]), compare_blocks);
	for (unsigned int i = 0; i < ram->nr_blocks; i++) {
		ram->blocks[i].first_page = ram->nr_pages;
		ram->nr_pages += ram->blocks[i].nr_pages;
		ram->bytes += ram->blocks[i].size_bytes;
	}
}

/* Two back ends on one file would be numbered twice. */
static int check_distinct(struct finder *f, const struct smv_guest_ram *ram)
{
	for (unsigned int i = 0; i < ram->nr_blocks; i++)
		for (unsigned int j = 0; j < i; j++)
			if (ram->blocks[i].host_addr == ram->blocks[j].host_addr)
				return smv_fail(f->err, SMV_REFUSED, "ram-ambiguous",
					"Use memory-backend-file with a path each, or different "
					"sizes.",
					"guest RAM '%s' and '%s' look the same from outside",
					ram->blocks[j].id, ram->blocks[i].id);
	return 0;
}

static int check_covered(struct finder *f, const struct smv_guest_ram *ram)
{
	CLEANUP_JSON json_t *result = NULL;
	json_int_t base = 0, plugged = 0;
	int r = smv_qmp_execute(
		f->qmp, "query-memory-size-summary", NULL, &result, TIMEOUT_MS, f->err);

	if (r < 0)
		return r;
	json_unpack(result, "{s:I, s?I}", "base-memory", &base, "plugged-memory", &plugged);
	if (base > 0 && plugged >= 0 && (uint64_t)(base + plugged) == ram->bytes)
		return 0;
	return smv_fail(f->err, SMV_REFUSED, "ram-not-covered",
		"Let all RAM be memory back ends, and remove those that the machine does not use.",
		"the guest has %lld bytes of RAM, its shared files hold %" PRIu64,
		(long long)(base + plugged), ram->bytes);
}

/* Page-table entries of locked memory cannot be dropped: MADV_DONTNEED fails. */
static int check_unlocked(struct finder *f, const struct smv_guest_ram *ram)
{
	CLEANUP_FREE char *text = NULL;
	const char *line;
	uint64_t locked_kib = 0;
	int r = read_text(f, "status", &text);

	if (r < 0)
		return r;
	line = strstr(text, "\nVmLck:");
	if (!line || sscanf(line, "\nVmLck: %" SCNu64, &locked_kib) != 1 ||
		locked_kib * 1024 < ram->bytes)
		return 0;
	return smv_fail(f->err, SMV_REFUSED, "ram-locked",
		"Start QEMU without -overcommit mem-lock=on (libvirt: without <locked/>).",
		"QEMU (process %d) has locked its memory, which cannot be tracked then",
		(int)f->pid);
}

static bool overlaps(const struct smv_guest_ram *ram, uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < ram->nr_blocks; i++)
		if (start < ram->blocks[i].host_addr + ram->blocks[i].size_bytes &&
			end > ram->blocks[i].host_addr)
			return true;
	return false;
}

/* The flags of proc_pid_smaps(5) for userfaultfd: um missing pages, ui pages that are not mapped,
 * uw writes. The last alone is no more than tracking. */
int smv_guest_ram_check_whole(const struct smv_guest_ram *ram, pid_t pid, struct smv_error *err)
{
	CLEANUP_FREE char *line = NULL;
	CLEANUP_FILE FILE *file = NULL;
	bool inside = false, any = false;
	char path[64];
	size_t len = 0;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	file = fopen(path, "re");
	while (file && getline(&line, &len, file) > 0) {
		uint64_t start, end;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2) {
			inside = overlaps(ram, start, end);
			any |= inside;
		} else if (inside && strncmp(line, "VmFlags:", 8) == 0 &&
			   (strstr(line, " um") || strstr(line, " ui"))) {
			return smv_fail(err, SMV_REFUSED, "vm-is-split",
				"A VM that was split-migrated cannot be a source yet.",
				"faults on the RAM of QEMU (process %d) are served by userfaultfd: "
				"it is a VM that is split",
				(int)pid);
		}
	}
	if (file && any && !ferror(file))
		return 0;
	return smv_fail(err, SMV_PERMISSION, "proc",
		"Run as root or as the user of QEMU, on the host of QEMU.",
		"cannot find guest RAM in %s", path);
}

static int find(struct finder *f, struct smv_guest_ram *ram)
{
	CLEANUP_JSON json_t *list = NULL;
	CLEANUP_JSON json_t *text = NULL;
	json_t *memdev;
	size_t i;
	int r = smv_qmp_execute(f->qmp, "query-memdev", NULL, &list, TIMEOUT_MS, f->err);

	if (!r)
		r = smv_qmp_execute(f->qmp, "human-monitor-command",
			json_pack("{s:s}", "command-line", "info ramblock"), &text, TIMEOUT_MS,
			f->err);
	if (!r)
		r = read_text(f, "maps", &f->maps);
	if (r < 0)
		return r;
	f->ram_list = strdup(json_string_value(text) ?: "");
	if (!f->ram_list)
		return smv_fail(f->err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	if (!json_array_size(list))
		return smv_fail(f->err, SMV_REFUSED, "ram-not-shared", SHARED_FILE_HINT,
			"the RAM of this VM is in no memory back end");
	json_array_foreach (list, i, memdev) {
		r = add_block(f, memdev, ram);
		if (r < 0)
			return r;
	}
	number_pages(ram);
	r = check_distinct(f, ram);
	if (!r)
		r = check_covered(f, ram);
	return r < 0 ? r : check_unlocked(f, ram);
}

int smv_guest_ram_find(
	struct smv_qmp *qmp, pid_t pid, struct smv_guest_ram *ram, struct smv_error *err)
{
	struct finder f = {.qmp = qmp, .pid = pid, .err = err};
	int r;

	memset(ram, 0, sizeof(*ram));
	r = find(&f, ram);
	free(f.maps);
	free(f.ram_list);
	if (r < 0)
		smv_guest_ram_release(ram);
	return r;
}

void smv_guest_ram_release(struct smv_guest_ram *ram)
{
	for (unsigned int i = 0; i < ram->nr_blocks; i++)
		close(ram->blocks[i].fd);
	memset(ram, 0, sizeof(*ram));
}

uint64_t smv_guest_ram_resident(const struct smv_guest_ram *ram)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < ram->nr_blocks; i++) {
		struct stat st;

		if (fstat(ram->blocks[i].fd, &st) == 0)
			bytes += (uint64_t)st.st_blocks * 512;
	}
	return bytes;
}
