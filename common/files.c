/* SPDX-License-Identifier: Apache-2.0 */
#include "common/files.h"

#include "common/cleanup.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

static int write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static int sync_directory_of(int dir_fd, const char *path)
{
	char dir[PATH_MAX];
	CLEANUP_CLOSE int fd = -1;
	const char *slash = strrchr(path, '/');

	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
	fd = openat(dir_fd, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int smv_make_directories(const char *path, mode_t mode)
{
	char part[PATH_MAX];

	if (!path[0] || snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
		return path[0] ? -ENAMETOOLONG : -ENOENT;
	for (char *p = part + 1;; p++) {
		char c = *p;

		if (c && c != '/')
			continue;
		*p = '\0';
		if (mkdir(part, mode) < 0 && errno != EEXIST)
			return -errno;
		*p = c;
		if (!c)
			return 0;
	}
}

int smv_replace_json(int dir_fd, const char *path, const json_t *json, size_t flags, bool durable)
{
	CLEANUP_FREE char *text = json ? json_dumps(json, flags) : NULL;
	char fresh[PATH_MAX];
	CLEANUP_CLOSE int fd = -1;
	int r;

	if (!text)
		return -ENOMEM;
	if (snprintf(fresh, sizeof(fresh), "%s.new", path) >= (int)sizeof(fresh))
		return -ENAMETOOLONG;
	if (smv_fault_point("durable-fails"))
		return -EIO;
	fd = openat(dir_fd, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = write_all(fd, text, strlen(text));
	if (r == 0 && durable && fsync(fd) < 0)
		r = -errno;
	smv_fault_point("durable-written");
	if (r == 0 && renameat(dir_fd, fresh, dir_fd, path) < 0)
		r = -errno;
	if (r < 0) {
		unlinkat(dir_fd, fresh, 0);
		return r;
	}
	smv_fault_point("durable-renamed");
	/* The new content is there for whoever looks; only a crash of the host could undo it, and
	 * that takes the VMs along. So this is no failure, after which callers would go by the old
	 * one. */
	if (durable && (r = sync_directory_of(dir_fd, path)) < 0)
		smv_log_warning("cannot sync the directory of %s: %s", path, strerror(-r));
	return 0;
}
