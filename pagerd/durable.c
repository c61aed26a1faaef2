/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/durable.h"

#include "common/cleanup.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

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
	return fsync(fd) < 0 ? -errno : 0;
}

static int sync_directory_of(const char *path)
{
	char dir[PATH_MAX];
	CLEANUP_CLOSE int fd = -1;
	const char *slash = strrchr(path, '/');

	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int smv_durable_write_json(const char *path, const json_t *json, size_t flags)
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
	fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = write_all(fd, text, strlen(text));
	smv_fault_point("durable-written");
	if (r == 0 && rename(fresh, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(fresh);
		return r;
	}
	smv_fault_point("durable-renamed");
	/* The new content is there for whoever looks; only a crash of the host could undo it, and
	 * that takes the VMs along. So this is no failure, after which callers would go by the old
	 * one. */
	if ((r = sync_directory_of(path)) < 0)
		smv_log_warning("cannot sync the directory of %s: %s", path, strerror(-r));
	return 0;
}
