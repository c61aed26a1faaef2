/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/budget.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "common/units.h"
#include "pagerd/debts.h"
#include "pagerd/migration.h"
#include "pagerd/state.h"
#include "pagerd/vm.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define JOIN_PATIENCE_NS (5 * SMV_NS_PER_S)
#define SERVE_TRIES 2

/* Of all VMs' struct smv_vm_budget. Taken with a VM's lock held or with none. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t memory_pages = UINT64_MAX;
static bool stale; /* somebody's claim has changed since the shares were made */

/* --- fair shares -------------------------------------------------------------------------- */

static uint64_t share_at(const struct smv_claim *c, uint64_t level)
{
	return level < c->floor ? c->floor : level < c->wish ? level : c->wish;
}

static bool fits(struct smv_claim *const *claims, size_t nr, uint64_t level, uint64_t total)
{
	for (size_t i = 0; i < nr; i++) {
		uint64_t share = share_at(claims[i], level);

		if (share > total)
			return false;
		total -= share;
	}
	return true;
}

void smv_fair_shares(struct smv_claim *const *claims, size_t nr, uint64_t total)
{
	uint64_t low = 0, high = 0;

	for (size_t i = 0; i < nr; i++)
		high = claims[i]->wish > high ? claims[i]->wish : high;
	/* The highest level at which all fit. */
	while (low < high) {
		uint64_t level = low + (high - low + 1) / 2;

		if (fits(claims, nr, level, total))
			low = level;
		else
			high = level - 1;
	}
	for (size_t i = 0; i < nr; i++)
		claims[i]->share = share_at(claims[i], low);
}

/* --- the sum ------------------------------------------------------------------------------ */

void smv_budget_init(uint64_t memory_bytes)
{
	memory_pages = memory_bytes ? memory_bytes / SMV_PAGE_SIZE : UINT64_MAX;
}

/* The lock is held, as in all that follows up to smv_budget_check(). */
static void share_out(void)
{
	struct smv_vm **vms;
	size_t n = smv_vms_list(&vms), nr = 0;
	CLEANUP_FREE struct smv_claim **claims = calloc(n + 1, sizeof(*claims));

	for (size_t i = 0; i < n; i++) {
		if (claims && vms[i]->budget.counts)
			claims[nr++] = &vms[i]->budget.claim;
		smv_vm_put(vms[i]);
	}
	free(vms);
	if (claims)
		smv_fair_shares(claims, nr, memory_pages);
	stale = !claims;
}

static uint64_t floor_of(const struct smv_vm *vm)
{
	return vm->budget.claim.floor;
}

static uint64_t held_of(const struct smv_vm *vm)
{
	return vm->budget.held;
}

/* Of all that count but @but. */
static uint64_t sum_of(uint64_t (*what)(const struct smv_vm *), const struct smv_vm *but)
{
	struct smv_vm **vms;
	size_t n = smv_vms_list(&vms);
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++) {
		if (vms[i] != but && vms[i]->budget.counts)
			sum += what(vms[i]);
		smv_vm_put(vms[i]);
	}
	free(vms);
	return sum;
}

static uint64_t room_for(const struct smv_vm *vm)
{
	uint64_t others = sum_of(held_of, vm);

	return memory_pages > others ? memory_pages - others : 0;
}

static int check_floors(const struct smv_vm *vm, uint64_t floor, struct smv_error *err)
{
	uint64_t others = sum_of(floor_of, vm);
	char memory[32], floors[32], need[32];

	if (others <= memory_pages && floor <= memory_pages - others)
		return 0;
	return smv_fail(err, SMV_NO_ROOM, "host-memory",
		"Give a smaller --budget, or a --min-budget; lower another VM's budget (smemvctl "
		"budget); or raise --memory of smemv-pagerd.",
		"this host lends its VMs %s together: those that are here cannot do with less than "
		"%s, and VM '%s' not with less than %s",
		smv_format_size(memory_pages * SMV_PAGE_SIZE, memory, sizeof(memory)),
		smv_format_size(others * SMV_PAGE_SIZE, floors, sizeof(floors)), vm->name,
		smv_format_size(floor * SMV_PAGE_SIZE, need, sizeof(need)));
}

/* Count it with this claim; its share is made if that is new. */
static void enter(struct smv_vm *vm, uint64_t budget_bytes, uint64_t floor_bytes)
{
	struct smv_claim *claim = &vm->budget.claim, before = *claim;

	claim->wish = budget_bytes / SMV_PAGE_SIZE;
	claim->floor = (floor_bytes + SMV_PAGE_SIZE - 1) / SMV_PAGE_SIZE;
	if (claim->floor < SMV_BUDGET_MIN / SMV_PAGE_SIZE)
		claim->floor = SMV_BUDGET_MIN / SMV_PAGE_SIZE;
	if (claim->floor > claim->wish)
		claim->floor = claim->wish;
	if (vm->budget.counts && !stale && claim->wish == before.wish &&
		claim->floor == before.floor)
		return;
	vm->budget.counts = true;
	share_out();
}

int smv_budget_check(struct smv_vm *vm, uint64_t budget_bytes, uint64_t floor_bytes,
	uint64_t *share_bytes, struct smv_error *err)
{
	struct smv_vm_budget before;
	int r;

	pthread_mutex_lock(&lock);
	before = vm->budget;
	enter(vm, budget_bytes, floor_bytes);
	r = check_floors(vm, vm->budget.claim.floor, err);
	if (share_bytes)
		*share_bytes = vm->budget.claim.share * SMV_PAGE_SIZE;
	vm->budget = before;
	share_out();
	pthread_mutex_unlock(&lock);
	return r;
}

/* The lock is given up in between. */
static int wait_for_share(struct smv_vm *vm, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + JOIN_PATIENCE_NS;
	char share[32], room[32];

	while (room_for(vm) < vm->budget.claim.share) {
		if (smv_now_ns() > end)
			return smv_fail(err, SMV_NO_ROOM, "host-memory",
				"Try again; smemvctl vms shows what keeps VMs from evicting.",
				"the other VMs of this host have not given up yet what VM '%s' "
				"needs: of %s only %s are there",
				vm->name,
				smv_format_size(vm->budget.claim.share * SMV_PAGE_SIZE, share,
					sizeof(share)),
				smv_format_size(room_for(vm) * SMV_PAGE_SIZE, room, sizeof(room)));
		pthread_mutex_unlock(&lock);
		smv_sleep_ms(10);
		pthread_mutex_lock(&lock);
	}
	return 0;
}

static void leave(struct smv_vm *vm)
{
	vm->budget = (struct smv_vm_budget){.counts = false};
	share_out();
}

int smv_budget_join(
	struct smv_vm *vm, uint64_t budget_bytes, uint64_t floor_bytes, struct smv_error *err)
{
	struct smv_vm_budget *b = &vm->budget;
	int r;

	pthread_mutex_lock(&lock);
	enter(vm, budget_bytes, floor_bytes);
	r = check_floors(vm, b->claim.floor, err);
	if (r == 0)
		r = wait_for_share(vm, err);
	if (r == 0)
		b->granted = b->held = b->claim.floor = b->claim.share;
	else
		leave(vm);
	pthread_mutex_unlock(&lock);
	return r;
}

static uint64_t floor_by_slots(const struct smv_vm *vm)
{
	return smv_leases_least_budget(vm->ram.bytes, vm->slots.nr_extents * SMV_EXTENT_BYTES);
}

void smv_budget_restore(struct smv_vm *vm)
{
	struct smv_vm_budget *b = &vm->budget;
	uint64_t resident = smv_guest_ram_resident(&vm->ram) / SMV_PAGE_SIZE;

	pthread_mutex_lock(&lock);
	/* If it could not even be told what room it has, it cannot hold more than it did. */
	enter(vm, vm->budget_bytes,
		vm->slots.nr_extents || !b->granted ? floor_by_slots(vm)
						    : b->granted * SMV_PAGE_SIZE);
	if (!b->granted || b->granted > b->claim.wish)
		b->granted = b->claim.wish;
	b->held = b->granted > resident ? b->granted : resident;
	/* It may be in no list yet: shares are made when it is. */
	b->claim.share = b->granted;
	stale = true;
	pthread_mutex_unlock(&lock);
}

void smv_budget_leave(struct smv_vm *vm)
{
	pthread_mutex_lock(&lock);
	leave(vm);
	pthread_mutex_unlock(&lock);
}

static void grant(struct smv_vm *vm)
{
	struct smv_vm_budget *b = &vm->budget;
	uint64_t pages = b->claim.share, held;

	if (pages > b->granted) {
		uint64_t room = room_for(vm);

		pages = pages < room ? pages : room > b->granted ? room : b->granted;
	}
	if (pages != b->granted) {
		b->granted = pages;
		smv_pager_set_budget(vm->pager, pages);
		vm->unsaved = true;
	}
	held = smv_pager_held(vm->pager);
	b->held = held > pages ? held : pages;
	/* Parts of huge pages that could not be given up are held, too. */
	held = smv_guest_ram_resident(&vm->ram) / SMV_PAGE_SIZE;
	b->held = held > b->held ? held : b->held;
}

void smv_budget_tick_locked(struct smv_vm *vm)
{
	pthread_mutex_lock(&lock);
	if (vm->budget.counts && vm->pager && vm->state == SMV_VM_RUNNING) {
		enter(vm, vm->budget_bytes, floor_by_slots(vm));
		grant(vm);
	}
	pthread_mutex_unlock(&lock);
}

/* --- a running VM's budget ---------------------------------------------------------------- */

static int check_runs_here(struct smv_vm *vm, struct smv_error *err)
{
	if (vm->gone)
		return smv_fail(err, SMV_NOT_FOUND, "no-vm", NULL, "VM '%s' has ended", vm->name);
	if (vm->trouble[0])
		return smv_fail(err, SMV_REFUSED, "vm-trouble",
			"It is tried again every ten seconds.", "VM '%s' is not served: %s",
			vm->name, vm->trouble);
	/* Whoever found it after a restart may still have to give it up. */
	if (vm->state != SMV_VM_RUNNING || !vm->pager ||
		smv_migration_verdict_of(vm->migration) == SMV_VERDICT_COMMITTED)
		return smv_fail(err, SMV_REFUSED, "not-running",
			"A migration into it has a --budget of its own.",
			"VM '%s' does not run here yet", vm->name);
	return 0;
}

static int check_size(const struct smv_vm *vm, uint64_t bytes, struct smv_error *err)
{
	char want[32], min[32], ram[32];

	if (bytes >= SMV_BUDGET_MIN && bytes <= vm->ram.bytes)
		return 0;
	return smv_fail(err, SMV_INVALID, "budget", NULL,
		"a budget of %s for VM '%s' is too %s: at least %s and at most %s, its RAM, are "
		"possible",
		smv_format_size(bytes, want, sizeof(want)), vm->name,
		bytes < SMV_BUDGET_MIN ? "small" : "large",
		smv_format_size(SMV_BUDGET_MIN, min, sizeof(min)),
		smv_format_size(vm->ram.bytes, ram, sizeof(ram)));
}

/* Serve with the backing as it is now. */
static int serve(struct smv_vm *vm, struct smv_error *err)
{
	struct smv_taken_over report;
	int r;

	smv_pager_stop(vm->pager);
	smv_slots_destroy(&vm->slots);
	if (smv_slots_create(vm->backing.nr_extents, &vm->slots) < 0)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	if ((r = smv_pager_take_over(vm->pager, &report, err)) < 0 ||
		(r = smv_vm_take_discards(vm, err)) < 0)
		return r;
	return smv_pager_start(vm->pager, err);
}

/* From the stop of the pager on there is no way back, and none is needed: all is written down, and
 * what can fail yet is for want of memory or threads. */
static int switch_backing(
	struct smv_vm *vm, struct smv_leases_growth *growth, struct smv_error *err)
{
	uint64_t start = smv_now_ns();
	unsigned int before = vm->leases.nr;
	int r = -1;

	smv_pager_stop(vm->pager);
	smv_fault_point("budget-stopped");
	smv_leases_adopt(&vm->leases, &vm->backing, growth);
	for (unsigned int h = before; h < vm->leases.nr; h++)
		vm->fenced[h] = true;
	for (int i = 0; i < SERVE_TRIES && r < 0; i++)
		r = serve(vm, err);
	if (r < 0) {
		vm->unserved_since_ns = start;
		smv_vm_stall(vm, "its pager does not start again", err);
		return r;
	}
	smv_log_info("VM '%s': %u leases more; it was not served for %lu us", vm->name,
		vm->leases.nr - before, (unsigned long)((smv_now_ns() - start) / 1000));
	return 0;
}

/* Written down before they are held: what is held expires never. */
static int hold_and_write(
	struct smv_vm *vm, struct smv_leases_growth *growth, struct smv_error *err)
{
	int r = smv_vm_save(vm, err);

	if (r < 0)
		return r;
	smv_fault_point("budget-leased");
	if (!smv_leases_hold(&growth->all, &growth->all_backing))
		return smv_fail(err, SMV_UNAVAILABLE, "leases", "Check the sub-hosts.",
			"a sub-host does not confirm its lease");
	smv_fault_point("budget-held");
	if ((r = smv_vm_save(vm, err)) == 0)
		r = smv_vm_save_extents(vm, err);
	smv_fault_point("budget-written");
	return r;
}

static int lease_more(struct smv_vm *vm, uint64_t bytes, struct smv_error *err)
{
	struct smv_leases_growth growth = {.all = {.nr = 0}};
	char hostname[64] = "?", owner[160];
	int r;

	gethostname(hostname, sizeof(hostname) - 1);
	snprintf(owner, sizeof(owner), "%s on %s", vm->name, hostname);
	if ((r = smv_leases_grow(&vm->leases, owner, bytes, &growth, err)) < 0)
		return r;
	vm->growth = &growth;
	r = hold_and_write(vm, &growth, err);
	vm->growth = NULL;
	if (r == 0)
		return switch_backing(vm, &growth, err);
	smv_leases_release_try(&growth.more, &growth.more_backing);
	smv_debts_add(&growth.more, &growth.more_backing);
	smv_leases_growth_free(&growth);
	smv_vm_save(vm, NULL);
	return r;
}

/* Room for the new budget, if there is too little. */
static int make_room(
	struct smv_vm *vm, uint64_t budget_bytes, uint64_t *added, struct smv_error *err)
{
	uint64_t need = smv_leases_room(vm->ram.bytes, budget_bytes);
	uint64_t has = vm->backing.nr_extents * SMV_EXTENT_BYTES;
	char budget[32], need_text[32], has_text[32];
	struct smv_error why = {0};
	int r;

	*added = 0;
	if (need <= has || smv_fault_point("budget-skip-lease"))
		return 0;
	r = lease_more(vm, need - has, &why);
	if (r == 0)
		*added = need - has;
	else
		smv_fail(err, why.code, why.reason,
			why.code == SMV_NO_ROOM
				? "Raise --memory of a memserverd, or choose a larger budget."
				: why.hint,
			"with a budget of %s VM '%s' needs %s on its sub-hosts and has %s: %.300s",
			smv_format_size(budget_bytes, budget, sizeof(budget)), vm->name,
			smv_format_size(need, need_text, sizeof(need_text)),
			smv_format_size(has, has_text, sizeof(has_text)), why.message);
	return r;
}

static int write_budget(struct smv_vm *vm, uint64_t budget_bytes, struct smv_error *err)
{
	uint64_t before = vm->budget_bytes;
	int r;

	vm->budget_bytes = budget_bytes;
	r = smv_vm_save(vm, err);
	if (r < 0)
		vm->budget_bytes = before;
	return r;
}

int smv_vm_set_budget(
	struct smv_vm *vm, uint64_t budget_bytes, uint64_t *added_bytes, struct smv_error *err)
{
	int r;

	pthread_mutex_lock(&vm->lock);
	if ((r = check_runs_here(vm, err)) == 0 && (r = check_size(vm, budget_bytes, err)) == 0 &&
		(r = make_room(vm, budget_bytes, added_bytes, err)) == 0 &&
		(r = write_budget(vm, budget_bytes, err)) == 0) {
		smv_budget_tick_locked(vm);
		smv_log_info("VM '%s': its budget is %lu MiB now", vm->name, budget_bytes >> 20);
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}
