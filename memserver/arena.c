/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/arena.h"

#include "common/cleanup.h"
#include "common/log.h"

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
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC)
		return 0;
	return smv_fail(err, SMV_REFUSED, "not-in-memory",
		"Leave --state-dir out (then it lies in /dev/shm) or name a directory on a tmpfs.",
		"state directory '%s' is on no file system that lies in memory (tmpfs, ramfs, "
		"hugetlbfs)",
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

static void remove_leftover(const struct smv_arena *a)
{
	unlinkat(a->dir_fd, "arena.new", 0);
	if (unlinkat(a->dir_fd, "arena", 0) == 0)
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

static int check_room(const struct smv_arena *a, struct smv_error *err)
{
	uint64_t available = mem_available_bytes(), room;
	struct statfs fs;

	if (fstatfs(a->dir_fd, &fs) < 0)
		return fail_dir(a, "look at", errno, err);
	if (a->size % (uint64_t)fs.f_bsize)
		return smv_fail(err, SMV_INVALID, "bad-size", "Choose a multiple of the page size.",
			"memory of %" PRIu64 " bytes is no multiple of the %ld byte pages of '%s'",
			a->size, (long)fs.f_bsize, a->dir);
	/* A file system without a limit (ramfs, tmpfs with size=0) counts no blocks. */
	room = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
	if (fs.f_blocks > 0 && room < a->size)
		return fail_room(a, a->dir, room,
			"Lend less with --memory, or enlarge the file system: "
			"mount -o remount,size=SIZE.",
			err);
	/* Huge pages are set aside already, MemAvailable does not count them. */
	if (fs.f_type != HUGETLBFS_MAGIC && available < a->size)
		return fail_room(a, "this host (MemAvailable)", available,
			"Lend less with --memory, or free memory on this host.", err);
	return 0;
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

static int allocate(struct smv_arena *a, int fd, struct smv_error *err)
{
	uint64_t done = 0;
	int rc = 0;

	a->base = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (a->base == MAP_FAILED) {
		a->base = NULL;
		return fail_dir(a, "map the arena in", errno, err);
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
	if (rc == 0)
		return 0;
	return smv_fail(err, smv_code_from_errno(rc), "no-room",
		"Lend less with --memory, or free memory on this host.",
		"cannot allocate an arena of %" PRIu64 " bytes in '%s': %s", a->size, a->dir,
		strerror(-rc));
}

static int make_file(struct smv_arena *a, struct smv_error *err)
{
	CLEANUP_CLOSE int fd = -1;
	int rc;

	fd = openat(a->dir_fd, "arena.new", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_dir(a, "make the arena in", errno, err);
	rc = allocate(a, fd, err);
	if (rc == 0 && renameat(a->dir_fd, "arena.new", a->dir_fd, "arena") < 0)
		rc = fail_dir(a, "name the arena in", errno, err);
	if (rc < 0)
		unlinkat(a->dir_fd, "arena.new", 0);
	return rc;
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

static int set_up(struct smv_arena *a, struct smv_error *err)
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
	rc = check_room(a, err);
	return rc < 0 ? rc : make_file(a, err);
}

int smv_arena_create(const char *name, const char *state_dir, uint64_t size_bytes,
	struct smv_arena **arena, struct smv_error *err)
{
	struct smv_arena *a;
	int rc;

	rc = smv_arena_check_name(name, err);
	if (rc == 0)
		rc = smv_arena_check_size(size_bytes, err);
	if (rc < 0)
		return rc;
	a = calloc(1, sizeof(*a));
	if (!a)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	a->dir_fd = -1;
	a->size = size_bytes;
	a->is_default_dir = !state_dir;
	if (state_dir && strlen(state_dir) < sizeof(a->dir))
		memcpy(a->dir, state_dir, strlen(state_dir) + 1);
	else if (!state_dir)
		snprintf(a->dir, sizeof(a->dir), DEFAULT_PARENT "/memserverd-%s", name);
	rc = set_up(a, err);
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
		unlinkat(arena->dir_fd, "arena", 0);
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

const char *smv_arena_incarnation(const struct smv_arena *arena)
{
	return arena->incarnation;
}
