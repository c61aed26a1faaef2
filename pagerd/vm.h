/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMs of this host: registered by smemv-run, filled by a migration, served by a pager.
 *
 * States:
 *   WAITING   -> RECEIVING   prepare
 *   RECEIVING -> RUNNING     commit
 *   RECEIVING -> WAITING     abort, QEMU is untouched
 *   RECEIVING -> FAILED      abort, QEMU is of no use any more
 *   any       -> gone        QEMU's process ended
 *
 * What a successor of this process must know of a VM is in its files (pagerd/state.h): written when
 * it changes, read by smv_vms_take_over().
 */
#ifndef SMV_PAGERD_VM_H
#define SMV_PAGERD_VM_H

#include "client/leases_growth.h"
#include "client/pager.h"
#include "common/error.h"
#include "common/process.h"
#include "pagerd/budget.h"
#include "vmm/guest_ram.h"
#include "vmm/qmp.h"
#include "vmm/runtime.h"
#include "vmm/shim_client.h"
#include "vmm/watch.h"

#include <pthread.h>
#include <stdatomic.h>

#define SMV_VM_NAME_MAX 64

enum smv_vm_state { SMV_VM_WAITING = 1, SMV_VM_RECEIVING, SMV_VM_RUNNING, SMV_VM_FAILED };

/** smv_vm_state_name - "running". */
const char *smv_vm_state_name(enum smv_vm_state state);

struct smv_migration;

struct smv_vm {
	char name[SMV_VM_NAME_MAX + 1];
	struct smv_process process;
	int pidfd;
	char qmp_path[SMV_RUNTIME_PATH_MAX], shim_path[SMV_RUNTIME_PATH_MAX];
	atomic_int refs;

	/* Guards what follows; taken for whole operations (prepare, confirm, abort). */
	pthread_mutex_t lock;
	enum smv_vm_state state;
	bool gone;           /* the process ended; only dropping references is left to do */
	struct smv_qmp *qmp; /* NULL: not connected (yet), see smv_vm_qmp() */
	uint64_t qmp_retry_ns;
	struct smv_shim *shim;
	struct smv_guest_ram ram;
	int uffd;
	bool uffd_registered;
	int pagemap_fd;

	/* From prepare to abort or the end of the VM. */
	struct smv_migration *_Atomic migration;
	struct smv_leases leases;
	struct smv_backing backing;
	struct smv_pagemap map;
	uint64_t map_id; /* of its file; 0: there is none */
	struct smv_slots slots;
	struct smv_pager *pager;
	uint64_t budget_bytes;       /* what the operator asked for */
	struct smv_vm_budget budget; /* what it is granted of that */
	/* Leases that are being added, to be written down; else NULL. */
	const struct smv_leases_growth *growth;
	enum smv_loss_policy loss_policy;
	bool killed;         /* because of it */
	uint64_t renewed_ns; /* when the leases were */
	char transport_reason[200];
	bool backed; /* leases, backing, map, slots and pager are set up */

	/* After a takeover. */
	bool fenced[SMV_SUB_HOSTS_MAX];
	unsigned int nr_unfenced; /* sub-hosts that could not be fenced yet */
	uint64_t fence_retry_ns;
	bool unsaved;           /* its file could not be written; tried again */
	struct smv_watch watch; /* of a VM that runs here */
	uint64_t watch_retry_ns;
	char trouble[400]; /* why it could not be taken over: it waits; else empty */
	uint64_t unserved_since_ns; /* of a VM that runs here and could not be taken over; else 0 */
};

/** smv_vms_init - @state_dir: where page maps and commit records go. @skip_checksums: for all VMs,
 * see struct smv_pager_config. */
int smv_vms_init(const char *state_dir, bool skip_checksums, struct smv_error *err);

/** smv_vms_register - take over a QEMU started by smemv-run. */
int smv_vms_register(const char *name, pid_t pid, const char *qmp_path, const char *shim_path,
	struct smv_error *err);

/** smv_vms_get - a reference to the VM of that name, or NULL. */
struct smv_vm *smv_vms_get(const char *name);
/** smv_vms_get_by_migration - the VM into which a migration goes (or went), or NULL. */
struct smv_vm *smv_vms_get_by_migration(const char *migration_id);
/** smv_vms_get_where - a reference to the first VM that @fits says true of, or NULL. */
struct smv_vm *smv_vms_get_where(bool (*fits)(struct smv_vm *, const void *), const void *key);
struct smv_vm *smv_vm_ref(struct smv_vm *vm);
void smv_vm_put(struct smv_vm *vm);

/** smv_vm_lock_until - take its lock, or give up at @deadline_ns (smv_now_ns()): false. Who has it
 * may wait for a QEMU that does not answer. */
bool smv_vm_lock_until(struct smv_vm *vm, uint64_t deadline_ns);

/** smv_vms_list - references to all VMs; free the array and put each. */
size_t smv_vms_list(struct smv_vm ***vms);

/** smv_vms_tick - call every second or so: notice VMs that ended, renew and hold leases, abort
 * migrations whose source went silent. */
void smv_vms_tick(void);

/** smv_vms_shutdown - abort what is not committed; VMs that live on wait, with all that the next
 * pager needs in their files. Returns how many run here. */
size_t smv_vms_shutdown(void);

const char *smv_vms_state_dir(void);
/** smv_vm_new - with one reference, in no list; NULL: out of memory. */
struct smv_vm *smv_vm_new(const char *name);
/** smv_vms_add - into the list, which takes a reference of its own. */
int smv_vms_add(struct smv_vm *vm, struct smv_error *err);
/** smv_vms_replace - @vm takes @old's place in the list; @old is left as by smv_vm_leave(). -ESRCH:
 * @old is in the list no more. */
int smv_vms_replace(struct smv_vm *old, struct smv_vm *vm);
/** smv_vm_stall - it cannot be served: it waits, unharmed, says why, and is taken over from its
 * files in a while (pagerd/takeover.c). @what: what did not work, @err: why. Its lock is held, or
 * nobody else knows it. */
void smv_vm_stall(struct smv_vm *vm, const char *what, const struct smv_error *err);
/** smv_vm_leave - leave the VM to another pager, or another struct smv_vm: serving ends in order, an
 * eviction under way is finished or taken back; all else is in the VM's files. Its lock is held, or
 * nobody else knows it. */
void smv_vm_leave(struct smv_vm *vm);
/** smv_vm_attach_process - shim, pidfd, pagemap. @vm->process.pid 0: whatever process has the shim.
 */
int smv_vm_attach_process(struct smv_vm *vm, struct smv_error *err);
/** smv_vm_is_alive - its process has not ended. */
bool smv_vm_is_alive(const struct smv_vm *vm);
/** smv_vm_qmp - connect to QMP if that is not done yet, or the connection is of no use any more. */
int smv_vm_qmp(struct smv_vm *vm, int timeout_ms, struct smv_error *err);
/** smv_vm_attach_uffd - get QEMU's userfaultfd and register the RAM. @again: it must be the one
 * that an earlier pager used. */
int smv_vm_attach_uffd(struct smv_vm *vm, bool again, struct smv_error *err);
/** smv_vm_make_pager - with map, slots and backing as they are. */
int smv_vm_make_pager(struct smv_vm *vm, struct smv_error *err);
/** smv_vm_take_discards - from now on the pager does what QEMU would punch out of the RAM. To be
 * called before smv_pager_start(), because the evictor uses the shim as well. Without a shim, as in
 * unit tests, there is nothing to take. */
int smv_vm_take_discards(struct smv_vm *vm, struct smv_error *err);

/** smv_vm_stats - of its pager; also of one that runs here without: then all is 0 but the stall.
 * The lock is held. */
void smv_vm_stats(const struct smv_vm *vm, struct smv_pager_stats *stats);

/** smv_vm_path - a file of this VM in the state directory: "NAME.SUFFIX". */
char *smv_vm_path(const struct smv_vm *vm, const char *suffix, char *buf, size_t len);

/** smv_vm_back_out - give back leases, map and pager; the lock is held. */
void smv_vm_back_out(struct smv_vm *vm);

#endif
