/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/disks.h"

#include "common/cleanup.h"
#include "common/fault_point.h"
#include "common/json.h"

#include <stdio.h>
#include <string.h>

/* Draining waits for what the disk has under way. */
#define TIMEOUT_MS 30000

static int query_nodes(struct smv_qmp *qmp, json_t **nodes, struct smv_error *err)
{
	return smv_qmp_execute(qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), nodes,
		TIMEOUT_MS, err);
}

/* Only drivers that open a file of the host do direct I/O; for others the flag is inherited words.
 */
static bool is_host_file(const json_t *node)
{
	static const char *const drivers[] = {"file", "host_device", "host_cdrom"};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(drivers); i++)
		if (strcmp(smv_json_field(node, "drv"), drivers[i]) == 0)
			return true;
	return false;
}

static bool is_direct(const json_t *node)
{
	return json_is_true(json_object_get(json_object_get(node, "cache"), "direct"));
}

static const json_t *find_node(const json_t *nodes, const char *name)
{
	json_t *node;
	size_t i;

	json_array_foreach ((json_t *)nodes, i, node)
		if (strcmp(smv_json_field(node, "node-name"), name) == 0)
			return node;
	return NULL;
}

/* Letters that QEMU allows in a node's name; it makes "#block123" itself. */
static bool is_plain(const char *name)
{
	return *name && !name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					   "0123456789-._#")];
}

/* The monitor answers with text, empty for success; only another look tells. */
static int set_direct(struct smv_qmp *qmp, const char *name, bool on, struct smv_error *err)
{
	CLEANUP_JSON json_t *answer = NULL;
	CLEANUP_JSON json_t *nodes = NULL;
	const json_t *node;
	const char *text;
	char command[160];
	int r;

	if (!is_plain(name) ||
		snprintf(command, sizeof(command), "qemu-io %s \"reopen -o cache.direct=%s\"", name,
			on ? "on" : "off") >= (int)sizeof(command))
		return smv_fail(err, SMV_REFUSED, "disk-reopen",
			"Give the node another name, or start the VM with cache.direct=off.",
			"block node '%.100s' has a name that QEMU's monitor cannot take", name);
	r = smv_fault_point("disk-reopen") ? 0
					   : smv_qmp_execute(qmp, "human-monitor-command",
						     json_pack("{s:s}", "command-line", command),
						     &answer, TIMEOUT_MS, err);
	if (!r)
		r = query_nodes(qmp, &nodes, err);
	if (r < 0)
		return r;
	node = find_node(nodes, name);
	if (node && is_direct(node) == on)
		return 0;
	text = json_string_value(answer) ?: "";
	return smv_fail(err, SMV_REFUSED, "disk-reopen",
		on ? "Does its file system take O_DIRECT?"
		   : "Start the VM with cache=writeback (cache.direct=off) for this disk.",
		"QEMU does not open block node '%s' with cache.direct=%s: %.*s", name,
		on ? "on" : "off", *text ? (int)strcspn(text, "\r\n") : 9,
		*text ? text : "no reason");
}

int smv_disks_find(struct smv_qmp *qmp, json_t **record, struct smv_error *err)
{
	CLEANUP_JSON json_t *nodes = NULL;
	CLEANUP_JSON json_t *found = json_array();
	json_t *node;
	size_t i;
	int r = query_nodes(qmp, &nodes, err);

	if (r < 0)
		return r;
	if (!found)
		return smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	json_array_foreach (nodes, i, node)
		if (is_host_file(node) && is_direct(node))
			json_array_append_new(found, json_pack("{s:s, s:s, s:s}", "node",
							     smv_json_field(node, "node-name"),
							     "driver", smv_json_field(node, "drv"),
							     "file", smv_json_field(node, "file")));
	*record = smv_take(found);
	return 0;
}

int smv_disks_reopen(struct smv_qmp *qmp, const json_t *record, struct smv_error *err)
{
	json_t *entry;
	size_t i;

	json_array_foreach ((json_t *)record, i, entry) {
		int r = set_direct(qmp, smv_json_field(entry, "node"), false, err);

		if (r < 0)
			return r;
	}
	return 0;
}

int smv_disks_put_back(struct smv_qmp *qmp, const json_t *record, struct smv_error *err)
{
	CLEANUP_JSON json_t *nodes = NULL;
	json_t *entry;
	size_t i;
	int r = 0;

	if (!json_array_size(record))
		return 0;
	r = query_nodes(qmp, &nodes, err);
	if (r < 0)
		return r;
	json_array_foreach ((json_t *)record, i, entry) {
		const json_t *node = find_node(nodes, smv_json_field(entry, "node"));
		int one;

		if (!node || is_direct(node) ||
			strcmp(smv_json_field(node, "file"), smv_json_field(entry, "file")) != 0)
			continue;
		one = set_direct(qmp, smv_json_field(entry, "node"), true, r ? NULL : err);
		if (!r)
			r = one;
	}
	return r;
}
