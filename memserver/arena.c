/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/arena.h"

#include "common/cleanup.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/hex.h"
#include "common/log.h"
#include "memserver/hugepages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DEFAULT_PARENT "/dev/shm/smemv"
#define ALLOCATE_STEP SMV_GIB

/* How long a killed daemon may take to be gone for good. */
#define PREDECESSOR_TIMEOUT_MS 10000

struct smv_arena {
	char dir[PATH_MAX];
	int dir_fd; /* holds the lock */
	bool is_default_dir;
	bool made_dir;
	bool locked;
	bool owned; /* the files in it are those of this arena */
	void *base;
	uint64_t size;
	uint64_t hugepage_bytes; /* 0: ordinary pages */
	char *huge_path;         /* the file on hugetlbfs, or NULL */
	struct smv_lease_file leases;
	size_t nr_live; /* leases in the list that somebody may have data in */
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

static bool is_same_program(pid_t pid)
{
	char ours[32] = "", theirs[32] = "", path[64];
	CLEANUP_FILE FILE *self = fopen("/proc/self/comm", "re");
	CLEANUP_FILE FILE *other = NULL;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	other = fopen(path, "re");
	return self && other && fgets(ours, sizeof(ours), self) &&
	       fgets(theirs, sizeof(theirs), other) && strcmp(ours, theirs) == 0;
}

/* A killed process gives up its lock before the last of its descriptors is closed: an RDMA
 * connection of it may still take writes. They must have ended before a fence is answered, so wait
 * until it is gone. */
static void wait_for_predecessor(const struct smv_arena *a)
{
	pid_t pid = (pid_t)read_pid(a);
	CLEANUP_CLOSE int fd = -1;
	struct pollfd gone = {.events = POLLIN};

	if (pid <= 0 || pid == getpid() || !is_same_program(pid))
		return;
	gone.fd = fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd >= 0 && poll(&gone, 1, PREDECESSOR_TIMEOUT_MS) == 0)
		smv_log_warning("process %d, which '%s/pid' names, runs on: taken for another one",
			(int)pid, a->dir);
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
	wait_for_predecessor(a);
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

/* The arena first: a list of no live leases without an arena is nothing, an arena without a list is
 * refused. */
static void remove_files(const struct smv_arena *a)
{
	remove_arena(a, "arena.new");
	remove_arena(a, "arena");
	smv_lease_file_remove(a->dir_fd);
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

static int map(struct smv_arena *a, int fd, struct smv_error *err)
{
	/* On hugetlbfs this reserves the pages. */
	a->base = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (a->base == MAP_FAILED) {
		a->base = NULL;
		return fail_allocate(a, -errno, err);
	}
	/* It is other people's memory and would make any core dump as large as the arena. */
	madvise(a->base, a->size, MADV_DONTDUMP);
	return 0;
}

static int allocate(struct smv_arena *a, int fd, struct smv_error *err)
{
	uint64_t done = 0;
	int rc = map(a, fd, err);

	if (rc < 0)
		return rc;
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

static size_t count_live(const struct smv_lease_record *records, size_t nr)
{
	size_t n = 0;

	for (size_t i = 0; i < nr; i++)
		n += smv_lease_is_live(records[i].state);
	return n;
}

int smv_arena_store(
	struct smv_arena *arena, struct smv_lease_record *records, size_t nr, struct smv_error *err)
{
	struct smv_lease_file file = arena->leases;
	int rc;

	file.records = records;
	file.nr_records = nr;
	rc = smv_lease_file_write(arena->dir_fd, arena->dir, &file, err);
	if (rc == 0)
		arena->nr_live = count_live(records, nr);
	return rc;
}

/* The list of leases is there before the arena has its name: without one an arena may hold
 * anything. */
static int make_list(struct smv_arena *a, int fd, struct smv_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return fail_dir(a, "look at the arena in", errno, err);
	a->leases.arena_inode = st.st_ino;
	return smv_arena_store(a, NULL, 0, err);
}

static int make_file(struct smv_arena *a, struct smv_error *err)
{
	CLEANUP_CLOSE int fd = a->huge_path ? open_huge(a) : open_ordinary(a);
	int rc;

	if (fd < 0)
		rc = fail_dir(a, "make the arena in", errno, err);
	else
		rc = allocate(a, fd, err);
	if (rc == 0)
		rc = make_list(a, fd, err);
	(void)smv_fault_point("arena-listed");
	if (rc == 0 && renameat(a->dir_fd, "arena.new", a->dir_fd, "arena") < 0)
		rc = fail_dir(a, "name the arena in", errno, err);
	if (rc < 0)
		remove_files(a);
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
	if (asprintf(&a->huge_path, "%s/smemv-%s-%s", mount, name, a->leases.incarnation) >= 0)
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
	smv_hex_format(random, sizeof(random), a->leases.incarnation);
	return 0;
}

static int make(struct smv_arena *a, const char *name, struct smv_error *err)
{
	int rc = choose_incarnation(a, err);

	if (rc == 0)
		rc = a->hugepage_bytes ? prepare_huge(a, name, err) : check_room(a, err);
	return rc < 0 ? rc : make_file(a, err);
}

/* --- taking over -------------------------------------------------------------------------- */

static int fail_state(const struct smv_arena *a, struct smv_error *err, const char *what)
{
	return smv_fail(err, SMV_REFUSED, "bad-state",
		"If no VM needs the memory any more, throw all of it away with --discard. "
		"Otherwise look what happened to the directory first.",
		"cannot take over the arena in '%s': %s", a->dir, what);
}

static int fail_parameters(
	const struct smv_arena *a, const struct smv_lease_file *found, struct smv_error *err)
{
	char hint[300], huge[40] = "", was[32], is[32];

	if (found->hugepage_bytes)
		snprintf(huge, sizeof(huge), " --hugepages=%lluM", found->hugepage_bytes / SMV_MIB);
	snprintf(hint, sizeof(hint),
		"Start it with --memory %lluM%s as before, or release the leases first; --discard "
		"throws them away with the data of their VMs.",
		found->size_bytes / SMV_MIB, huge);
	return smv_fail(err, SMV_REFUSED, "other-parameters", hint,
		"'%s' holds an arena of %s%s with leases of VMs, this one would have %s%s", a->dir,
		smv_format_size(found->size_bytes, was, sizeof(was)),
		found->hugepage_bytes ? " of huge pages" : "",
		smv_format_size(a->size, is, sizeof(is)),
		a->hugepage_bytes ? " of huge pages" : "");
}

/* The file behind `arena`; its inode number is in the list. */
static int open_former(struct smv_arena *a)
{
	char target[PATH_MAX];
	ssize_t len = readlinkat(a->dir_fd, "arena", target, sizeof(target) - 1);

	if (len <= 0)
		return openat(a->dir_fd, "arena", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	target[len] = 0;
	if (!is_our_target(a, "arena", target))
		return -1;
	a->huge_path = strdup(target);
	return open(target, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
}

static int check_former(const struct smv_arena *a, int fd, struct smv_error *err)
{
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return fail_state(a, err, "its file cannot be opened");
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_ino != a->leases.arena_inode)
		return fail_state(a, err, "its file is not the one that the leases are of");
	if ((uint64_t)st.st_size != a->size)
		return fail_state(a, err, "its file has another size than it had");
	/* A hole would be read as zeros, and filling it could meet a full file system. */
	if ((uint64_t)st.st_blocks * 512 < a->size)
		return fail_state(a, err, "parts of its file are gone");
	return 0;
}

static int take_over(struct smv_arena *a, struct smv_error *err)
{
	CLEANUP_CLOSE int fd = open_former(a);
	int rc = check_former(a, fd, err);

	if (rc == 0)
		rc = map(a, fd, err);
	if (rc < 0)
		return rc;
	if (smv_fault_point("arena-forget"))
		memset(a->base, 0, a->size);
	if (smv_fault_point("arena-other-incarnation"))
		choose_incarnation(a, NULL);
	/* Counted before anybody can connect. */
	a->leases.generation++;
	rc = smv_arena_store(a, a->leases.records, a->leases.nr_records, err);
	if (rc == 0)
		smv_event(SMV_EVENT_ARENA_TAKEN_OVER, NULL, NULL,
			"taking over the arena in '%s', generation %" PRIu64 ", leases: %zu",
			a->dir, a->leases.generation, a->nr_live);
	return rc;
}

/* One of huge pages is a link to them, which is removed after them. */
static bool is_removed_in_part(const struct smv_arena *a)
{
	return faccessat(a->dir_fd, "arena", F_OK, AT_SYMLINK_NOFOLLOW) == 0 &&
	       faccessat(a->dir_fd, "arena", F_OK, 0) < 0;
}

/* 1: there is an arena that fits, 0: nothing that is worth keeping, or why neither. */
static int find_former(struct smv_arena *a, struct smv_error *err)
{
	struct smv_lease_file found;
	bool has_arena = faccessat(a->dir_fd, "arena", F_OK, AT_SYMLINK_NOFOLLOW) == 0, fits;
	int rc = smv_lease_file_read(a->dir_fd, a->dir, &found, err);
	size_t nr_live;

	if (rc == -ENOENT)
		return has_arena ? fail_state(a, err, "it has no list of leases") : 0;
	if (rc < 0)
		return rc;
	nr_live = count_live(found.records, found.nr_records);
	fits = found.size_bytes == a->size && found.hugepage_bytes == a->hugepage_bytes &&
	       (nr_live > 0 || !is_removed_in_part(a));
	if (fits && has_arena) {
		a->leases = found;
		return 1;
	}
	if (nr_live > 0)
		rc = has_arena ? fail_parameters(a, &found, err)
			       : fail_state(a, err, "its file is gone, but it has leases");
	smv_lease_file_clear(&found);
	return rc;
}

static int open_dir(struct smv_arena *a, struct smv_error *err)
{
	int rc = make_dir(a, err);

	if (rc == 0)
		rc = check_dir(a, err);
	return rc < 0 ? rc : lock_dir(a, err);
}

static int set_up(struct smv_arena *a, const char *name, struct smv_error *err)
{
	int rc = open_dir(a, err);

	if (rc == 0)
		rc = find_former(a, err);
	if (rc < 0)
		return rc;
	if (rc > 0) {
		rc = take_over(a, err);
	} else {
		remove_files(a);
		rc = make(a, name, err);
		if (rc == 0)
			smv_event(SMV_EVENT_ARENA_NEW, NULL, NULL,
				"a new arena in '%s', incarnation %s", a->dir,
				a->leases.incarnation);
	}
	a->owned = rc == 0;
	return rc;
}

static struct smv_arena *new_arena(const char *name, const char *state_dir)
{
	struct smv_arena *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->dir_fd = -1;
	a->is_default_dir = !state_dir;
	if (state_dir && strlen(state_dir) < sizeof(a->dir))
		memcpy(a->dir, state_dir, strlen(state_dir) + 1);
	else if (!state_dir)
		snprintf(a->dir, sizeof(a->dir), DEFAULT_PARENT "/memserverd-%s", name);
	return a;
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
	a = new_arena(name, state_dir);
	if (!a)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	a->size = a->leases.size_bytes = size_bytes;
	a->hugepage_bytes = a->leases.hugepage_bytes = hugepage_bytes;
	rc = set_up(a, name, err);
	if (rc < 0) {
		smv_arena_destroy(a);
		return rc;
	}
	*arena = a;
	return 0;
}

int smv_arena_discard(const char *name, const char *state_dir, struct smv_error *err)
{
	struct smv_arena *a;
	int rc = smv_arena_check_name(name, err);

	if (rc < 0)
		return rc;
	a = new_arena(name, state_dir);
	if (!a)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	rc = open_dir(a, err);
	if (rc == 0) {
		if (faccessat(a->dir_fd, "arena", F_OK, AT_SYMLINK_NOFOLLOW) == 0)
			smv_event(SMV_EVENT_ARENA_DISCARDED, NULL, NULL,
				"discarding the arena in '%s', and what VMs kept there", a->dir);
		a->owned = true;
	}
	smv_arena_destroy(a);
	return rc;
}

static void close_dir(struct smv_arena *a)
{
	const bool keep = a->owned && a->nr_live > 0;

	if (keep)
		smv_log_warning("kept in '%s' for the next memserverd, with the data of their "
				"owners: %zu leases; --discard would throw them away",
			a->dir, a->nr_live);
	else if (a->owned)
		remove_files(a);
	if (a->locked)
		unlinkat(a->dir_fd, "pid", 0);
	/* The default directory is ours even if a killed predecessor made it. An rmdir of what
	 * others use fails, as it should. */
	if (!keep && (a->made_dir || (a->is_default_dir && a->locked)))
		rmdir(a->dir);
	if (a->is_default_dir)
		rmdir(DEFAULT_PARENT);
	if (a->dir_fd >= 0)
		close(a->dir_fd);
}

void smv_arena_destroy(struct smv_arena *arena)
{
	if (!arena)
		return;
	if (arena->base)
		munmap(arena->base, arena->size);
	close_dir(arena);
	smv_lease_file_clear(&arena->leases);
	free(arena->huge_path);
	free(arena);
}

const struct smv_lease_file *smv_arena_leases(const struct smv_arena *arena)
{
	return &arena->leases;
}

uint64_t smv_arena_generation(const struct smv_arena *arena)
{
	return arena->leases.generation;
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
	return arena->leases.incarnation;
}
