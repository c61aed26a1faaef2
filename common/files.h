/* SPDX-License-Identifier: Apache-2.0 */
/* Directories, and files that are whole or not there, whatever dies while they are written. */
#ifndef SMV_COMMON_FILES_H
#define SMV_COMMON_FILES_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

/** smv_make_directories - @path with all of its parents, those that are missing with @mode. */
int smv_make_directories(const char *path, mode_t mode);

/**
 * smv_replace_json - replace the file @path (mode 0600) by @json: a new file beside it, rename.
 * @dir_fd: what @path is relative to; or AT_FDCWD
 * @flags: of json_dumps()
 * @durable: with fsync of file and directory. After the return the new content survives this
 * process in any case; so also, as far as the file system does, the host
 *
 * 0 or -errno: then the old content is still there.
 */
int smv_replace_json(int dir_fd, const char *path, const json_t *json, size_t flags, bool durable);

#endif
