/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/arena.h"

#include "common/cleanup.h"
#include "common/log.h"
#include "memserver/hugepages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DEFAULT_PARENT "/dev/shm/smemv"
#define ALLOCATE_STEP SMV_GIB

struct smv_arena {
	char dir[PATH_MAX];
	int dir_fd; /* holds the lock */
	bool is_default_dir;
	bool made_dir;
	bool locked;
	void *base;
	uint64_t size;
	uint64_t hugepage_bytes; /* 0: ordinary pages */
	char *huge_path;         /* the file on hugetlbfs, or NULL */
	char incarnation[33];
};

int smv_arena_check_name(const char *name, struct smv_error *err)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				      "0123456789._-";
	size_t len = strlen(name);

	if (len >= 1 && len <= 64 && strspn(name, allowed) == len)
		return 0;
	return smv_fail(err, SMV_INVALID, "bad-name",
		"Use 1 to 64 letters, digits, dots, underscores or hyphens.",
		"'%.80s' cannot name a server", name);
}

int smv_arena_check_size(uint64_t size_bytes, struct smv_error *err)
{
	uint64_t below = size_bytes / SMV_EXTENT_SIZE * (SMV_EXTENT_SIZE / SMV_MIB);
	char hint[120];

	if (size_bytes > 0 && size_bytes % SMV_EXTENT_SIZE == 0)
		return 0;
	if (below > 0)
		snprintf(hint, sizeof(hint), "Use %" PRIu64 "M or %" PRIu64 "M.", below, below + 2);
	else
		snprintf(hint, sizeof(hint), "Use 2M at least.");
	return smv_fail(err, SMV_INVALID, "bad-size", hint,
		"memory of %" PRIu64 " bytes: it must be a positive multiple of 2 MiB, the size of "
		"an extent",
		size_bytes);
}

int smv_arena_check_hugepages(uint64_t size_bytes, uint64_t hugepage_bytes, struct smv_error *err)
{
	char page[32], hint[120];
	int rc = smv_hugepages_check(hugepage_bytes, err);
	uint64_t below;

	if (rc < 0)
		return rc;
	below = size_bytes / hugepage_bytes * hugepage_bytes;
	if (below == size_bytes)
		return 0;
	snprintf(hint, sizeof(hint), "Use %lluM.", (below + hugepage_bytes) / SMV_MIB);
	if (below > 0)
		snprintf(hint, sizeof(hint), "Use %lluM or %lluM.", below / SMV_MIB,
			(below + hugepage_bytes) / SMV_MIB);
	return smv_fail(err, SMV_INVALID, "bad-size", hint,
		"memory of %" PRIu64 " bytes is no multiple of the huge pages of %s", size_bytes,
		smv_format_size(hugepage_bytes, page, sizeof(page)));
}

static int fail_dir(const struct smv_arena *a, const char *what, int errnum, struct smv_error *err)
{
	return smv_fail(err, smv_code_from_errno(errnum), "state-dir",
		"Name a directory on tmpfs with --state-dir; its parent must exist.",
		"cannot %s state directory '%s': %s", what, a->dir, strerror(errnum));
}

static int make_dir(struct smv_arena *a, struct smv_error *err)
{
	/* Another daemon that ends may remove the parent under our hands. */
	for (int tries = 3; tries > 0; tries--) {
		if (a->is_default_dir && mkdir(DEFAULT_PARENT, 0755) < 0 && errno != EEXIST)
			return fail_dir(a, "make the parent of", errno, err);
		if (mkdir(a->dir, 0700) == 0)
			a->made_dir = true;
		if (a->made_dir || errno != ENOENT)
			break;
	}
	if (!a->made_dir && errno != EEXIST)
		return fail_dir(a, "make", errno, err);
	a->dir_fd = open(a->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return a->dir_fd < 0 ? fail_dir(a, "open", errno, err) : 0;
}

/* /dev/shm is everybody's: a directory that somebody else prepared is no place for our data. */
static int check_dir(const struct smv_arena *a, struct smv_error *err)
{
	struct statfs fs;
	struct stat st;

	if (fstat(a->dir_fd, &st) < 0 || fstatfs(a->dir_fd, &fs) < 0)
		return fail_dir(a, "look at", errno, err);
	if (st.st_uid != geteuid())
		return smv_fail(err, SMV_REFUSED, "state-dir",
			"Run the daemon as that user or choose another --state-dir.",
			"state directory '%s' belongs to user %u, not to user %u", a->dir,
			st.st_uid, geteuid());
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		return 0;
	/* Nothing can be written there but through a mapping, no pid for instance. */
	if (fs.f_type == HUGETLBFS_MAGIC)
		return smv_fail(err, SMV_REFUSED, "on-hugetlbfs",
			"For an arena on huge pages use --hugepages, with a --state-dir on tmpfs "
			"or without.",
			"state directory '%s' is on hugetlbfs, which takes no small files", a->dir);
	return smv_fail(err, SMV_REFUSED, "not-in-memory",
		"Leave --state-dir out (then it lies in /dev/shm) or name a directory on a tmpfs.",
		"state directory '%s' is on no file system that lies in memory (tmpfs, ramfs)",
		a->dir);
}

static long read_pid(const struct smv_arena *a)
{
	CLEANUP_CLOSE int fd = openat(a->dir_fd, "pid", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char text[32] = "";

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return 0;
	return strtol(text, NULL, 10);
}

/* The lock is on the directory, not on a file in it: whoever locks a directory that its last owner
 * has just removed can make no file in it, so two daemons never share one. */
static int lock_dir(struct smv_arena *a, struct smv_error *err)
{
	CLEANUP_CLOSE int fd = -1;

	if (flock(a->dir_fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
		return smv_fail(err, SMV_REFUSED, "in-use",
			"Stop that daemon, or use another --name or --state-dir.",
			"state directory '%s' is in use by the memserverd with pid %ld", a->dir,
			read_pid(a));
	a->locked = true;
	unlinkat(a->dir_fd, "pid", 0);
	fd = openat(a->dir_fd, "pid", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0 || dprintf(fd, "%ld\n", (long)getpid()) < 0)
		return fail_dir(a, "write the pid into", errno, err);
	return 0;
}

/* Whether the link is ours and leads to a file of ours on hugetlbfs: where others may write to the
 * state directory (/dev/shm itself), they could make us remove anything. */
static bool is_our_target(const struct smv_arena *a, const char *link, const char *target)
{
	CLEANUP_CLOSE int fd = open(target, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat link_st, st;
	struct statfs fs;

	return fd >= 0 && fstatat(a->dir_fd, link, &link_st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       link_st.st_uid == geteuid() && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
	       st.st_uid == geteuid() && fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
}

/* Remove an arena, wherever it lies. False when there was none. */
static bool remove_arena(const struct smv_arena *a, const char *name)
{
	char target[PATH_MAX];
	ssize_t len = readlinkat(a->dir_fd, name, target, sizeof(target) - 1);

	if (len > 0) {
		target[len] = 0;
		if (is_our_target(a, name, target))
			unlink(target);
	}
	return unlinkat(a->dir_fd, name, 0) == 0;
}

static void remove_leftover(const struct smv_arena *a)
{
	remove_arena(a, "arena.new");
	if (remove_arena(a, "arena"))
		smv_log_warning("'%s/arena' was left by a daemon that did not end cleanly: its "
				"leases and their data are lost",
			a->dir);
}

static uint64_t mem_available_bytes(void)
{
	CLEANUP_FILE FILE *f = fopen("/proc/meminfo", "re");
	char line[128];
	uint64_t kib;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
			return kib * SMV_KIB;
	return UINT64_MAX; /* no /proc: the allocation itself decides */
}

static int fail_room(const struct smv_arena *a, const char *where, uint64_t room, const char *hint,
	struct smv_error *err)
{
	char want_text[32], room_text[32];

	return smv_fail(err, SMV_NO_ROOM, "no-room", hint,
		"cannot allocate an arena of %s (%" PRIu64 " bytes): %s has %s (%" PRIu64
		" bytes) available",
		smv_format_size(a->size, want_text, sizeof(want_text)), a->size, where,
		smv_format_size(room, room_text, sizeof(room_text)), room);
}

static int check_file_system(const struct smv_arena *a, const char *path, struct smv_error *err)
{
	struct statfs fs;
	uint64_t room;

	if (statfs(path, &fs) < 0)
		return fail_dir(a, "look at the file system of", errno, err);
	/* A file system without a limit (ramfs, tmpfs with size=0) counts no blocks. */
	room = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
	if (fs.f_blocks == 0 || room >= a->size)
		return 0;
	return fail_room(a, path, room,
		"Lend less with --memory, or enlarge the file system: "
		"mount -o remount,size=SIZE.",
		err);
}

static int check_room(const struct smv_arena *a, struct smv_error *err)
{
	uint64_t available = mem_available_bytes();
	int rc = check_file_system(a, a->dir, err);

	if (rc == 0 && available < a->size)
		return fail_room(a, "this host (MemAvailable)", available,
			"Lend less with --memory, or free memory on this host.", err);
	return rc;
}

/* Huge pages are set aside already: MemAvailable does not count them. */
static int check_huge_room(const struct smv_arena *a, const char *mount, struct smv_error *err)
{
	int rc = smv_hugepages_check_room(a->hugepage_bytes, a->size, err);

	return rc < 0 ? rc : check_file_system(a, mount, err);
}

static bool asked_to_stop(void)
{
	sigset_t pending;

	return sigpending(&pending) == 0 &&
	       (sigismember(&pending, SIGTERM) || sigismember(&pending, SIGINT));
}

static int allocate_step(int fd, uint64_t offset, uint64_t len)
{
	int rc;

	do
		rc = fallocate(fd, 0, (off_t)offset, (off_t)len);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

/* ramfs has no fallocate: touching the pages through the mapping does it there. */
static int populate(struct smv_arena *a, int fd)
{
	if (ftruncate(fd, (off_t)a->size) < 0)
		return -errno;
	return madvise(a->base, a->size, MADV_POPULATE_WRITE) < 0 ? -errno : 0;
}

static int fail_allocate(const struct smv_arena *a, int rc, struct smv_error *err)
{
	/* Somebody else took them since they were counted. */
	if (a->huge_path && (rc == -ENOMEM || rc == -ENOSPC))
		return smv_hugepages_fail_room(a->hugepage_bytes, a->size, err);
	return smv_fail(err, smv_code_from_errno(rc), "no-room",
		"Lend less with --memory, or free memory on this host.",
		"cannot allocate an arena of %" PRIu64 " bytes in '%s': %s", a->size,
		a->huge_path ? a->huge_path : a->dir, strerror(-rc));
}

static int allocate(struct smv_arena *a, int fd, struct smv_error *err)
{
	uint64_t done = 0;
	int rc = 0;

	/* On hugetlbfs this reserves the pages. */
	a->base = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (a->base == MAP_FAILED) {
		a->base = NULL;
		return fail_allocate(a, -errno, err);
	}
	/* It is other people's memory and would make any core dump as large as the arena. */
	madvise(a->base, a->size, MADV_DONTDUMP);
	while (done < a->size && rc == 0) {
		uint64_t step = a->size - done < ALLOCATE_STEP ? a->size - done : ALLOCATE_STEP;

		if (asked_to_stop())
			return smv_fail(err, SMV_CANCELLED, "cancelled", NULL,
				"stopped while the arena was being allocated");
		rc = allocate_step(fd, done, step);
		if (rc == -EOPNOTSUPP) {
			rc = populate(a, fd);
			break;
		}
		done += step;
	}
	return rc == 0 ? 0 : fail_allocate(a, rc, err);
}

/* The link comes first, so that no file can be left that nobody finds. */
static int open_huge(const struct smv_arena *a)
{
	if (symlinkat(a->huge_path, a->dir_fd, "arena.new") < 0)
		return -1;
	return open(a->huge_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

static int open_ordinary(const struct smv_arena *a)
{
	return openat(a->dir_fd, "arena.new", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

static int make_file(struct smv_arena *a, struct smv_error *err)
{
	CLEANUP_CLOSE int fd = a->huge_path ? open_huge(a) : open_ordinary(a);
	int rc;

	if (fd < 0)
		rc = fail_dir(a, "make the arena in", errno, err);
	else
		rc = allocate(a, fd, err);
	if (rc == 0 && renameat(a->dir_fd, "arena.new", a->dir_fd, "arena") < 0)
		rc = fail_dir(a, "name the arena in", errno, err);
	if (rc < 0)
		remove_arena(a, "arena.new");
	return rc;
}

static int prepare_huge(struct smv_arena *a, const char *name, struct smv_error *err)
{
	CLEANUP_FREE char *mount = NULL;
	int rc = smv_hugepages_mount(a->hugepage_bytes, &mount, err);

	if (rc == 0)
		rc = check_huge_room(a, mount, err);
	if (rc < 0)
		return rc;
	if (asprintf(&a->huge_path, "%s/smemv-%s-%s", mount, name, a->incarnation) >= 0)
		return 0;
	a->huge_path = NULL;
	return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

static int choose_incarnation(struct smv_arena *a, struct smv_error *err)
{
	uint8_t random[16];

	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return smv_fail(
			err, SMV_INTERNAL, "no-random", NULL, "getrandom: %s", strerror(errno));
	for (size_t i = 0; i < sizeof(random); i++)
		snprintf(a->incarnation + 2 * i, 3, "%02x", random[i]);
	return 0;
}

static int set_up(struct smv_arena *a, const char *name, struct smv_error *err)
{
	int rc = choose_incarnation(a, err);

	if (rc == 0)
		rc = make_dir(a, err);
	if (rc == 0)
		rc = check_dir(a, err);
	if (rc == 0)
		rc = lock_dir(a, err);
	if (rc < 0)
		return rc;
	remove_leftover(a);
	rc = a->hugepage_bytes ? prepare_huge(a, name, err) : check_room(a, err);
	return rc < 0 ? rc : make_file(a, err);
}

int smv_arena_create(const char *name, const char *state_dir, uint64_t size_bytes,
	uint64_t hugepage_bytes, struct smv_arena **arena, struct smv_error *err)
{
	struct smv_arena *a;
	int rc;

	rc = smv_arena_check_name(name, err);
	if (rc == 0)
		rc = smv_arena_check_size(size_bytes, err);
	if (rc == 0 && hugepage_bytes)
		rc = smv_arena_check_hugepages(size_bytes, hugepage_bytes, err);
	if (rc < 0)
		return rc;
	a = calloc(1, sizeof(*a));
	if (!a)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	a->dir_fd = -1;
	a->size = size_bytes;
	a->hugepage_bytes = hugepage_bytes;
	a->is_default_dir = !state_dir;
	if (state_dir && strlen(state_dir) < sizeof(a->dir))
		memcpy(a->dir, state_dir, strlen(state_dir) + 1);
	else if (!state_dir)
		snprintf(a->dir, sizeof(a->dir), DEFAULT_PARENT "/memserverd-%s", name);
	rc = set_up(a, name, err);
	if (rc < 0) {
		smv_arena_destroy(a);
		return rc;
	}
	*arena = a;
	return 0;
}

void smv_arena_destroy(struct smv_arena *arena)
{
	if (!arena)
		return;
	if (arena->base)
		munmap(arena->base, arena->size);
	if (arena->locked) {
		remove_arena(arena, "arena");
		unlinkat(arena->dir_fd, "pid", 0);
	}
	/* The default directory is ours even if a killed predecessor made it. An rmdir of what
	 * others use fails, as it should. */
	if (arena->made_dir || (arena->is_default_dir && arena->locked))
		rmdir(arena->dir);
	if (arena->is_default_dir)
		rmdir(DEFAULT_PARENT);
	if (arena->dir_fd >= 0)
		close(arena->dir_fd);
	free(arena->huge_path);
	free(arena);
}

void *smv_arena_base(const struct smv_arena *arena)
{
	return arena->base;
}

uint64_t smv_arena_size(const struct smv_arena *arena)
{
	return arena->size;
}

uint64_t smv_arena_hugepage_bytes(const struct smv_arena *arena)
{
	return arena->hugepage_bytes;
}

const char *smv_arena_incarnation(const struct smv_arena *arena)
{
	return arena->incarnation;
}
