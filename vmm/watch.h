/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does a VM that is split still consist of what the allow-list lets through? Somebody may plug a
 * device, add a disk or take a snapshot, whose new node has cache.direct=on again.
 *
 * QEMU (7.2) sends no event when a device or a block node is added; DEVICE_DELETED tells of the end
 * only. So it is looked at again: block nodes, one command of 1 ms, every second; all devices, some
 * hundred short commands (0.1 to 0.3 s in sum on two busy cores), every 30 seconds and after each
 * event that hints at a change. What is found has happened already: it is an alarm, no refusal. Until
 * the device or the disk is gone its writes may be lost.
 */
#ifndef SMV_VMM_WATCH_H
#define SMV_VMM_WATCH_H

#include "common/error.h"
#include "vmm/qmp.h"

#include <stdint.h>

/* One for each VM; start with {0}. */
struct smv_watch {
	uint64_t blocks_ns, all_ns; /* when they were looked at last */
	bool hinted;                /* by an event: look at all */
	bool alarm;                 /* what was found last, and still holds: */
	struct smv_error error;
};

/** smv_watch_event - tell of an event of this VM, e.g. each one that was read anyway. */
void smv_watch_event(struct smv_watch *watch, const json_t *event);

/**
 * smv_watch_check - look again, if it is time to; to be called each second or so. It blocks for as
 * long as QEMU takes to answer; not from a thread that serves faults, for which QEMU may wait.
 *
 * Returns 1 when the VM has just ceased to conform, with @error saying by what (code SMV_REFUSED,
 * as smv_allow_list_check() has it); 2 when it has just begun to conform again; 0 when nothing has
 * changed, -errno when QEMU does not answer (nothing is known then). watch->alarm and watch->error
 * tell the standing state.
 */
int smv_watch_check(
	struct smv_watch *watch, struct smv_qmp *qmp, pid_t pid, struct smv_error *error);

#endif
