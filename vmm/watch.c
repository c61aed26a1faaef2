/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/watch.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "vmm/allow_list.h"

#include <errno.h>
#include <string.h>

#define BLOCKS_EVERY_NS (1 * SMV_NS_PER_S)
#define ALL_EVERY_NS (30 * SMV_NS_PER_S)

/* Events that come with changes of devices or block nodes; none comes for each of them. */
void smv_watch_event(struct smv_watch *watch, const json_t *event)
{
	static const char *const hints[] = {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR",
		"DEVICE_TRAY_MOVED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_READY", "JOB_STATUS_CHANGE",
		"ACPI_DEVICE_OST", "VSERPORT_CHANGE", "NIC_RX_FILTER_CHANGED",
		"MEMORY_DEVICE_SIZE_CHANGE", "MEM_UNPLUG_ERROR"};
	const char *name = json_string_value(json_object_get(event, "event"));

	for (size_t i = 0; name && i < SMV_ARRAY_SIZE(hints); i++)
		watch->hinted |= strcmp(name, hints[i]) == 0;
}

/* True: looked, and *r is what the allow-list says; false: it is not time yet. */
static bool look(struct smv_watch *w, struct smv_qmp *qmp, pid_t pid, int *r, struct smv_error *err)
{
	uint64_t now = smv_now_ns();

	/* A standing alarm may have ended anywhere. */
	if (w->hinted || w->alarm || !w->all_ns || now - w->all_ns >= ALL_EVERY_NS) {
		if (w->alarm && !w->hinted && now - w->blocks_ns < BLOCKS_EVERY_NS)
			return false;
		*r = smv_allow_list_check_pid(qmp, pid, err);
		w->hinted = false;
		w->all_ns = w->blocks_ns = smv_now_ns();
		return true;
	}
	if (now - w->blocks_ns < BLOCKS_EVERY_NS)
		return false;
	*r = smv_allow_list_check_blocks(qmp, err);
	w->blocks_ns = smv_now_ns();
	return true;
}

int smv_watch_check(
	struct smv_watch *watch, struct smv_qmp *qmp, pid_t pid, struct smv_error *error)
{
	struct smv_error found = {0};
	int r = 0;

	if (!look(watch, qmp, pid, &r, &found))
		return 0;
	/* Only a refusal of ours says something of the VM; QEMU's own may come from a device that
	 * went away under our eyes. */
	if (r < 0 && (found.code != SMV_REFUSED || strcmp(found.reason, "qmp") == 0)) {
		watch->hinted = true;
		if (error)
			*error = found;
		return r;
	}
	if (r == 0) {
		if (!watch->alarm)
			return 0;
		watch->alarm = false;
		return 2;
	}
	if (watch->alarm && strcmp(watch->error.message, found.message) == 0)
		return 0;
	watch->alarm = true;
	watch->error = found;
	if (error)
		*error = found;
	return 1;
}
