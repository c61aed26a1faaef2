/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are whole or not there, whatever dies while they are written. */
#ifndef SMV_PAGERD_DURABLE_H
#define SMV_PAGERD_DURABLE_H

#include <jansson.h>

/** smv_durable_write_json - replace the file @path (mode 0600) by @json: a new file beside it,
 * fsync, rename, fsync of the directory. After the return the new content survives this process,
 * and, as far as the file system does, the host. 0 or -errno: then the old content is still there.
 */
int smv_durable_write_json(const char *path, const json_t *json, size_t flags);

#endif
