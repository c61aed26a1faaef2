/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of a VM a part of whose memory is lost.
 *
 * A page is LOST when its content is nowhere any more. A sub-host has lost its memory when it
 * answers, but as another incarnation, or without the VM's lease (smv_remote_lost()). Perhaps
 * another server has taken its address for a while: so a page is given up only when it is touched,
 * and when the sub-host has then said so for loss_confirm_ms without a break; with SMV_LOSS_STALL
 * never:
 *
 *   with a slot there     what is done
 *   COLD                  its only copy. A touch waits until the loss is confirmed, then the page
 *                         is LOST. Untouched it stays COLD, and is right if the server comes back
 *   FETCHING              the read fails with its connection: COLD, and tried again
 *   LOCAL, REMOTE_VALID   dirty: at its eviction it is written to a slot elsewhere and gives this
 *                         one up. Not before: the copy is good again if the server comes back
 *   LOCAL                 at its eviction it gives its slot up
 *   OUT                   only if the loss was found since it was chosen: its write fails, LOCAL
 *   SAVED                 its write was acknowledged before the loss was found: COLD
 *   LOST                  stays LOST, whoever comes back
 *   ZERO, UNKNOWN         have no slot
 *   (what a pager that died left on the way becomes one of these: client/settle.h)
 *
 * For new slots the sub-host is not used before a connection shows that it has the lease.
 */
#ifndef SMV_CLIENT_LOSS_H
#define SMV_CLIENT_LOSS_H

#include "common/error.h"

/* What happens to threads of a VM that touch a LOST page. */
enum smv_loss_policy {
	SMV_LOSS_STALL,  /* they wait for ever */
	SMV_LOSS_POISON, /* SIGBUS, with KVM a machine check in the guest; Linux 6.6 */
	SMV_LOSS_KILL,   /* the VM is to be ended, see smv_pager_is_fatal() */
};

const char *smv_loss_policy_name(enum smv_loss_policy policy);

/** smv_loss_policy_parse - "stall" (also ""), "poison" or "kill". -EINVAL: none of these. */
int smv_loss_policy_parse(const char *text, enum smv_loss_policy *policy, struct smv_error *err);

/** smv_loss_policy_check - this kernel can do it; SMV_REFUSED names the version needed. */
int smv_loss_policy_check(enum smv_loss_policy policy, struct smv_error *err);

/** smv_loss_policy_effect - "threads that touch them wait": what a policy does about lost pages. */
const char *smv_loss_policy_effect(enum smv_loss_policy policy);

#endif
