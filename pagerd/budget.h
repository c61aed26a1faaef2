/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of this host's memory each VM may hold.
 *
 * A VM has a budget, its operator's wish. Without --memory it is granted. With it all VMs together
 * hold no more than that: when they wish for more, each gets its max-min fair share. None gets less
 * than its floor: the least that its slots on the sub-hosts allow, because what it does not hold
 * here must have room there. A VM that is being received keeps what it was granted, as the source
 * goes by it.
 *
 * Shares follow at each change; what a VM is granted follows its share. It shrinks at once, its
 * evictor then gives pages up. It grows only into what the others have really given up, so that the
 * sum never exceeds --memory.
 *
 * A budget that becomes smaller may need more slots. Then further leases are made first, written
 * down and held (pagerd/state.h), and the VM's pager stops for some ms while they are added. Room
 * that a larger budget makes superfluous is kept: the budget may shrink again into it.
 */
#ifndef SMV_PAGERD_BUDGET_H
#define SMV_PAGERD_BUDGET_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct smv_vm;

/* In pages. */
struct smv_claim {
	uint64_t wish;
	uint64_t floor; /* not more than @wish */
	uint64_t share; /* what comes of it */
};

/**
 * smv_fair_shares - max-min fair shares of @total: whoever wishes for less than the others get has
 * its wish, the rest is shared alike; but nobody gets less than its floor.
 *
 * To a page: what does not go round is left over. Floors that exceed @total together are given all
 * the same. (Water-filling; D. Bertsekas and R. Gallager, Data Networks, 6.5.2.)
 */
void smv_fair_shares(struct smv_claim *const *claims, size_t nr, uint64_t total);

/* A VM's part of the sum; in pages. Guarded by a lock of budget.c; @granted also by the VM's: it
 * is changed under both. */
struct smv_vm_budget {
	bool counts;
	struct smv_claim claim;
	uint64_t granted; /* what its pager goes by */
	uint64_t held;    /* @granted, or more while it is shrinking */
};

/** smv_budget_init - @memory_bytes: what all VMs may hold together; 0: no limit. Before any VM. */
void smv_budget_init(uint64_t memory_bytes);

/** smv_budget_check - whether a VM with this budget can come; its lock is held. @share_bytes (may
 * be NULL) gets what it would be granted of it. SMV_NO_ROOM with the numbers. */
int smv_budget_check(struct smv_vm *vm, uint64_t budget_bytes, uint64_t floor_bytes,
	uint64_t *share_bytes, struct smv_error *err);

/** smv_budget_join - grant the VM, which is about to be received, its share; the VM's lock is held.
 * Waits some seconds for the others to give it up. */
int smv_budget_join(
	struct smv_vm *vm, uint64_t budget_bytes, uint64_t floor_bytes, struct smv_error *err);

/** smv_budget_restore - count a VM of an earlier pager, as it was; its slots are there already. */
void smv_budget_restore(struct smv_vm *vm);

/** smv_budget_leave - it holds nothing any more; its lock is held. Any number of times. */
void smv_budget_leave(struct smv_vm *vm);

/** smv_budget_tick_locked - let what it is granted follow its share; its lock is held. */
void smv_budget_tick_locked(struct smv_vm *vm);

/**
 * smv_vm_set_budget - change the wish of a VM that runs here.
 * @added_bytes: gets the room that was leased for it
 *
 * Written down when it returns 0. On failure the old budget stays; SMV_NO_ROOM when the sub-hosts
 * have not the room that it needs. Takes as long as leasing does.
 */
int smv_vm_set_budget(
	struct smv_vm *vm, uint64_t budget_bytes, uint64_t *added_bytes, struct smv_error *err);

#endif
