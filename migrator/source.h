/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source: a running QEMU whose memory is tracked from outside, by the shim that smemv-run put
 * into it, or by ptrace. Whatever is changed in it is changed back by smv_source_detach().
 */
#ifndef SMV_MIGRATOR_SOURCE_H
#define SMV_MIGRATOR_SOURCE_H

#include "common/error.h"
#include "common/process.h"
#include "vmm/guest_process.h"
#include "vmm/guest_ram.h"
#include "vmm/qmp.h"
#include "vmm/refusals.h"

#include <stdbool.h>

#define SMV_QMP_TIMEOUT_MS 10000

/** Asked now and then by what takes long: 0 to go on, or -errno with @err filled when a person
 * cancelled or the time is over. */
typedef int (*smv_interrupted)(struct smv_error *err);

struct smv_source {
	struct smv_qmp *qmp;
	struct smv_guest_process *guest;
	struct smv_process process;
	struct smv_guest_ram ram;
	int uffd;
	int pagemap_fd;
	bool registered;
	unsigned int nr_registered; /* RAM blocks, from the first on */
	bool out_of_reach;          /* registered, but its tracking cannot be ended now */
	bool migrating;             /* QEMU's "migrate" was issued */
	json_t *disks; /* that are to be open without O_DIRECT, see vmm/disks.h; NULL: not asked for
			*/
	/* Capabilities as they were. */
	bool caps_saved;
	bool caps[3];
	/* Asked before each change of QEMU to write down what smv_source_undo() says; may be NULL.
	 */
	int (*record)(void *ctx, struct smv_error *err);
	void *record_ctx;
	/* Asked between the parts of what takes long with much RAM, like an smv_interrupted; may be
	 * NULL. */
	int (*interrupted)(void *ctx, struct smv_error *err);
	void *interrupted_ctx;
};

/** smv_source_interrupted - ask @source's interrupted(). */
int smv_source_interrupted(const struct smv_source *source, struct smv_error *err);

/* Which VM, and how. */
struct smv_source_spec {
	const char *qmp_path;
	const char *shim_path; /* of smemv-run; NULL or empty: then @pid, by ptrace, and a QMP
				  socket of it that no other client holds */
	pid_t pid;
	/* Disks with cache.direct are no reason to refuse: smv_source_attach() switches them,
	 * smv_source_detach() puts them back. */
	bool reopen_disks;
};

/** smv_source_open - connect, and refuse what cannot be migrated; changes nothing in QEMU. */
int smv_source_open(
	const struct smv_source_spec *spec, struct smv_source *source, struct smv_error *err);

/**
 * smv_source_refusals - everything that keeps this VM from being migrated, not only the first:
 * kernel, way in, run state, devices and back ends, RAM. Changes nothing in QEMU.
 * @source: open as far as that went, for estimates; to be closed in any case
 *
 * 0, also when there are refusals; -errno with @err when QEMU could not be asked.
 */
int smv_source_refusals(const struct smv_source_spec *spec, struct smv_source *source,
	struct smv_refusals *refusals, struct smv_error *err);

/** smv_source_reopen - of a migration whose smemv-migrate is gone: as after smv_source_open() and
 * the changes that @undo tells of, so that smv_source_resume() and smv_source_detach() put them
 * back.
 * @shim_path: empty for one that was opened by its pid
 * @process: the source's QEMU; SMV_NOT_FOUND when it has ended. */
int smv_source_reopen(const char *qmp_path, const char *shim_path,
	const struct smv_process *process, const json_t *undo, struct smv_source *source,
	struct smv_error *err);
/** smv_source_undo - what must be put back in QEMU; for a journal. */
json_t *smv_source_undo(const struct smv_source *source);

/** smv_source_attach - reopen disks, if that was asked for; get QEMU's userfaultfd and register its
 * RAM for write tracking. */
int smv_source_attach(struct smv_source *source, struct smv_error *err);

/** smv_source_zap - drop all page-table entries of the RAM; the data stays. */
int smv_source_zap(struct smv_source *source, struct smv_error *err);

/** smv_source_start_migration - set the capabilities and let QEMU send its device state to @uri,
 * stopping at pre-switchover. */
int smv_source_start_migration(struct smv_source *source, const char *uri, struct smv_error *err);

/** smv_source_wait_migration - wait until QEMU's migration reaches @status ("pre-switchover",
 * "completed"). @stopped_ns gets when the VM was seen to stop, if it did.
 * @interrupted: asked between waits; not the source's: the main host's QEMU, which is loading, is
 * left alone. */
int smv_source_wait_migration(struct smv_source *source, const char *status,
	unsigned int timeout_ms, uint64_t *stopped_ns, smv_interrupted interrupted,
	struct smv_error *err);

/** smv_source_continue_migration - go on from pre-switchover. */
int smv_source_continue_migration(struct smv_source *source, struct smv_error *err);

#ifdef SMEMV_FAULT_POINTS
/** smv_source_touch - write to guest RAM, as a device would, what is there already. */
void smv_source_touch(struct smv_source *source);
#endif

/** smv_source_resume - cancel QEMU's migration, if any, and let the VM run again. */
int smv_source_resume(struct smv_source *source, struct smv_error *err);

/** smv_source_detach - restore the capabilities, stop tracking. Fine at any time after open. What
 * could not be put back stays in smv_source_undo(); -errno when it is worth trying again. */
int smv_source_detach(struct smv_source *source);
void smv_source_close(struct smv_source *source);

/** smv_source_state - QEMU's run state; "gone" when it does not answer. */
const char *smv_source_state(struct smv_source *source, char *buf, size_t len);

#endif
