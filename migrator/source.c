/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/source.h"

#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "vmm/allow_list.h"
#include "vmm/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Long enough for a busy QEMU to answer, short enough for a wrong name. */
#define CONNECT_TIMEOUT_MS 3000
#define ZAP_CHUNK (256ull << 20)

static const char *const capabilities[] = {"events", "x-ignore-shared", "pause-before-switchover"};

int smv_source_interrupted(const struct smv_source *s, struct smv_error *err)
{
	return s->interrupted ? s->interrupted(s->interrupted_ctx, err) : 0;
}

static int migration_status(struct smv_source *s, char *status, size_t len, struct smv_error *err)
{
	CLEANUP_JSON json_t *info = NULL;
	const char *text;
	int r = smv_qmp_execute(s->qmp, "query-migrate", NULL, &info, SMV_QMP_TIMEOUT_MS, err);

	if (r < 0)
		return r;
	text = json_string_value(json_object_get(info, "status"));
	snprintf(status, len, "%s", text ? text : "none");
	return 0;
}

static bool is_idle(const char *status)
{
	return strcmp(status, "none") == 0 || strcmp(status, "completed") == 0 ||
	       strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0;
}

static int check_running(struct smv_source *s, struct smv_error *err)
{
	char state[64], status[64];
	int r;

	if ((r = smv_qmp_run_state(s->qmp, state, sizeof(state), err)) < 0 ||
		(r = migration_status(s, status, sizeof(status), err)) < 0)
		return r;
	if (strcmp(state, "postmigrate") == 0)
		return smv_fail(err, SMV_REFUSED, "migrated-already",
			"Never resume it while the VM runs elsewhere; end this QEMU.",
			"the source VM was migrated already: its state is 'postmigrate'");
	if (strcmp(state, "running") != 0)
		return smv_fail(err, SMV_REFUSED, "not-running",
			"Let it run (QMP: cont) and try again.",
			"the source VM does not run: its state is '%s'", state);
	if (!is_idle(status))
		return smv_fail(err, SMV_REFUSED, "migration-active",
			"Wait for it or cancel it (QMP: migrate_cancel).",
			"another migration of the source VM is under way: its status is '%s'",
			status);
	return 0;
}

static int open_process(struct smv_source *s, const char *qmp_path, const char *shim_path,
	pid_t pid, struct smv_error *err)
{
	int r;

	if (shim_path && shim_path[0]) {
		r = smv_guest_process_open_shim(shim_path, &s->guest, err);
	} else {
		r = smv_guest_process_open_pid(pid, &s->guest, err);
		if (!r)
			r = smv_guest_process_owns_qmp(
				s->guest, qmp_path, smv_qmp_peer_pid(s->qmp), err);
	}
	if (r < 0)
		return r;
	if (smv_process_identify(smv_guest_process_pid(s->guest), &s->process) < 0)
		return smv_fail(err, SMV_UNAVAILABLE, "qmp-gone",
			"Is this the process that you mean?",
			"the source's QEMU (process %d) has ended",
			(int)smv_guest_process_pid(s->guest));
	return 0;
}

static int open_pagemap(struct smv_source *s, struct smv_error *err)
{
	s->pagemap_fd = smv_pagemap_open(s->process.pid);
	if (s->pagemap_fd >= 0)
		return 0;
	return smv_fail(err, SMV_PERMISSION, "process", "Run as the same user as QEMU, or root.",
		"cannot open /proc/%d/pagemap: %s", (int)s->process.pid, strerror(-s->pagemap_fd));
}

static void init(struct smv_source *s)
{
	memset(s, 0, sizeof(*s));
	s->uffd = s->pagemap_fd = -1;
}

/* All that the VM consists of. @pid: -1: not known. */
static int collect(struct smv_source *s, pid_t pid, bool reopen_disks, struct smv_refusals *list,
	struct smv_error *err)
{
	int r = smv_allow_list_collect(s->qmp, pid, list, err);

	if (reopen_disks)
		smv_refusals_drop(list, "cache-direct");
	return r;
}

static int check_but_disks(struct smv_source *s, struct smv_error *err)
{
	struct smv_refusals list = {0};
	int r = collect(s, s->process.pid, true, &list, err);

	if (r == 0 && list.nr) {
		if (err)
			*err = list.list[0];
		r = smv_code_to_errno(list.list[0].code);
	} else if (r == 0 && list.incomplete) {
		r = smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	}
	smv_refusals_free(&list);
	return r < 0 ? r : smv_disks_find(s->qmp, &s->disks, err);
}

int smv_source_open(const struct smv_source_spec *spec, struct smv_source *s, struct smv_error *err)
{
	int r;

	init(s);
	if ((r = smv_kernel_check(err)) < 0 ||
		(r = smv_qmp_open(spec->qmp_path, CONNECT_TIMEOUT_MS, &s->qmp, err)) < 0 ||
		(r = open_process(s, spec->qmp_path, spec->shim_path, spec->pid, err)) < 0 ||
		(r = check_running(s, err)) < 0)
		return r;
	r = spec->reopen_disks ? check_but_disks(s, err)
			       : smv_allow_list_check_pid(s->qmp, s->process.pid, err);
	if (r < 0 || (r = smv_guest_ram_find(s->qmp, s->process.pid, &s->ram, err)) < 0 ||
		(r = smv_guest_ram_check_whole(&s->ram, s->process.pid, err)) < 0)
		return r;
	return open_pagemap(s, err);
}

/* Each step by itself, as far as the ones before allow it. */
static int find_refusals(struct smv_source *s, const struct smv_source_spec *spec,
	struct smv_refusals *list, struct smv_error *err)
{
	bool have_process;
	int r;

	if (smv_kernel_check(err) < 0)
		smv_refusals_add(list, err);
	if ((r = smv_qmp_open(spec->qmp_path, CONNECT_TIMEOUT_MS, &s->qmp, err)) < 0)
		return r;
	have_process = open_process(s, spec->qmp_path, spec->shim_path, spec->pid, err) == 0;
	if (!have_process)
		smv_refusals_add(list, err);
	if (check_running(s, err) < 0 && smv_refusals_take(list, err) < 0)
		return smv_code_to_errno(err->code);
	r = collect(s, have_process ? s->process.pid : -1, spec->reopen_disks, list, err);
	if (r < 0 || !have_process)
		return r;
	/* A VM without shared RAM is told so once. */
	if (smv_guest_ram_find(s->qmp, s->process.pid, &s->ram, err) < 0 &&
		!(strcmp(err->reason, "ram-not-shared") == 0 &&
			smv_refusals_have(list, "ram-backend")) &&
		smv_refusals_take(list, err) < 0)
		return smv_code_to_errno(err->code);
	if (s->ram.nr_blocks && smv_guest_ram_check_whole(&s->ram, s->process.pid, err) < 0)
		smv_refusals_add(list, err);
	if (open_pagemap(s, err) < 0)
		smv_refusals_add(list, err);
	return 0;
}

int smv_source_refusals(const struct smv_source_spec *spec, struct smv_source *s,
	struct smv_refusals *refusals, struct smv_error *err)
{
	struct smv_error own;

	init(s);
	return find_refusals(s, spec, refusals, err ? err : &own);
}

json_t *smv_source_undo(const struct smv_source *s)
{
	json_t *caps = s->caps_saved ? json_object() : json_null();

	for (size_t i = 0; s->caps_saved && i < SMV_ARRAY_SIZE(capabilities); i++)
		json_object_set_new(caps, capabilities[i], json_boolean(s->caps[i]));
	return json_pack("{s:b, s:b, s:i, s:O?, s:o}", "tracked", s->registered, "migrating",
		s->migrating, "uffd", s->guest ? smv_guest_process_uffd_number(s->guest) : -1,
		"disks", s->disks, "capabilities", caps);
}

static void load_undo(struct smv_source *s, const json_t *undo)
{
	const json_t *caps = json_object_get(undo, "capabilities");

	s->registered = json_is_true(json_object_get(undo, "tracked"));
	s->migrating = json_is_true(json_object_get(undo, "migrating"));
	s->caps_saved = json_is_object(caps);
	s->disks = json_incref(json_object_get(undo, "disks"));
	for (size_t i = 0; i < SMV_ARRAY_SIZE(capabilities); i++)
		s->caps[i] = json_is_true(json_object_get(caps, capabilities[i]));
}

/* The userfaultfd that the former smemv-migrate had. By ptrace there may be none yet: it died
 * before anything was registered. */
static int get_former_uffd(struct smv_source *s, const json_t *undo, struct smv_error *err)
{
	json_int_t number = -1;
	bool fresh;
	int r;

	json_unpack((json_t *)undo, "{s:I}", "uffd", &number);
	if (!smv_guest_process_is_traced(s->guest))
		return smv_guest_process_get_uffd(s->guest, &s->uffd, &fresh, err);
	if (number < 0)
		return 0;
	r = smv_guest_process_adopt_uffd(s->guest, (int)number, err);
	return r < 0 ? r : smv_guest_process_get_uffd(s->guest, &s->uffd, &fresh, err);
}

int smv_source_reopen(const char *qmp_path, const char *shim_path,
	const struct smv_process *process, const json_t *undo, struct smv_source *s,
	struct smv_error *err)
{
	CLEANUP_CLOSE int pidfd = smv_process_open(process);
	int r;

	init(s);
	if (pidfd == -ESRCH)
		return smv_fail(err, SMV_NOT_FOUND, "source-gone", NULL,
			"the source's QEMU (process %d) has ended", (int)process->pid);
	if (pidfd < 0)
		return smv_fail(err, SMV_UNAVAILABLE, "process", NULL,
			"cannot tell whether the source's QEMU (process %d) lives: %s",
			(int)process->pid, strerror(-pidfd));
	if ((r = smv_qmp_open(qmp_path, CONNECT_TIMEOUT_MS, &s->qmp, err)) < 0 ||
		(r = open_process(s, qmp_path, shim_path, process->pid, err)) < 0)
		return r;
	if (s->process.pid != process->pid || s->process.start_time != process->start_time)
		return smv_fail(err, SMV_REFUSED, "other-vm", NULL,
			"at %s there is another QEMU (process %d) than the source (process %d)",
			qmp_path, (int)s->process.pid, (int)process->pid);
	load_undo(s, undo);
	if (!s->registered)
		return 0;
	/* Tracking that goes on costs the VM little: never let it keep the VM from running. */
	if (get_former_uffd(s, undo, err) < 0 ||
		smv_guest_ram_find(s->qmp, s->process.pid, &s->ram, err) < 0) {
		smv_log_warning("the source's RAM stays tracked: %s", err->message);
		s->out_of_reach = err->code == SMV_TIMEOUT || err->code == SMV_UNAVAILABLE;
		s->registered = s->out_of_reach;
	} else {
		s->nr_registered = s->ram.nr_blocks;
	}
	return 0;
}

static int record(struct smv_source *s, struct smv_error *err)
{
	return s->record ? s->record(s->record_ctx, err) : 0;
}

int smv_source_attach(struct smv_source *s, struct smv_error *err)
{
	bool fresh;
	int r;

	s->registered = true;
	if ((r = record(s, err)) < 0 || (r = smv_disks_reopen(s->qmp, s->disks, err)) < 0 ||
		(s->disks && (r = smv_allow_list_check_blocks(s->qmp, err)) < 0) ||
		(r = smv_guest_process_get_uffd(s->guest, &s->uffd, &fresh, err)) < 0)
		return r;
	/* By ptrace: which descriptor to close in it, should we die. */
	if (smv_guest_process_is_traced(s->guest) && (r = record(s, err)) < 0)
		return r;
	if (fresh)
		r = smv_uffd_api(s->uffd, SMV_UFFD_TRACK);
	for (unsigned int i = 0; i < s->ram.nr_blocks && r == 0; i++) {
		r = smv_uffd_register(s->uffd, s->ram.blocks[i].host_addr,
			s->ram.blocks[i].size_bytes, UFFDIO_REGISTER_MODE_WP);
		s->nr_registered += r == 0;
	}
	if (r < 0)
		return smv_fail(err, SMV_REFUSED, "userfaultfd",
			"Linux 6.7 or later is needed; no other program may use userfaultfd on it.",
			"cannot track writes to the source's RAM: %s", strerror(-r));
	return 0;
}

int smv_source_zap(struct smv_source *s, struct smv_error *err)
{
	for (unsigned int i = 0; i < s->ram.nr_blocks; i++) {
		const struct smv_ram_block *b = &s->ram.blocks[i];

		for (uint64_t off = 0; off < b->size_bytes; off += ZAP_CHUNK) {
			uint64_t left = b->size_bytes - off;
			struct smv_shim_range range = {
				b->host_addr + off, left < ZAP_CHUNK ? left : ZAP_CHUNK};
			int r = smv_source_interrupted(s, err);

			if (r < 0 || (r = smv_guest_process_zap(s->guest, &range, 1, err)) < 0)
				return r;
		}
	}
	return 0;
}

int smv_source_start_migration(struct smv_source *s, const char *uri, struct smv_error *err)
{
	json_t *event;
	char state[64];
	int r = smv_qmp_run_state(s->qmp, state, sizeof(state), err);

	if (r < 0)
		return r;
	/* Whoever stopped it meanwhile does not want it to be run at the main host. */
	if (strcmp(state, "running") != 0)
		return smv_fail(err, SMV_ABORTED, "not-running",
			"Let it run (QMP: cont) and try again.",
			"the source VM was stopped during the migration: its state is '%s'", state);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(capabilities); i++)
		if ((r = smv_qmp_get_capability(s->qmp, capabilities[i], &s->caps[i], err)) < 0)
			return r;
	s->caps_saved = true;
	s->migrating = true;
	if ((r = record(s, err)) < 0)
		return r;
	for (size_t i = 0; i < SMV_ARRAY_SIZE(capabilities); i++)
		if ((r = smv_qmp_set_capability(s->qmp, capabilities[i], true, err)) < 0)
			return r;
	while (smv_qmp_next_event(s->qmp, 0, &event) == 0)
		json_decref(event); /* of an earlier time */
	return smv_qmp_execute(
		s->qmp, "migrate", json_pack("{s:s}", "uri", uri), NULL, SMV_QMP_TIMEOUT_MS, err);
}

static int check_status(struct smv_source *s, const char *wanted, struct smv_error *err)
{
	CLEANUP_JSON json_t *info = NULL;
	const char *status, *why;
	int r = smv_qmp_execute(s->qmp, "query-migrate", NULL, &info, SMV_QMP_TIMEOUT_MS, err);

	if (r < 0)
		return r;
	status = json_string_value(json_object_get(info, "status"));
	if (!status)
		return 0;
	if (strcmp(status, wanted) == 0)
		return 1;
	if (is_idle(status) && strcmp(status, "none") != 0) {
		why = json_string_value(json_object_get(info, "error-desc"));
		return smv_fail(err, SMV_ABORTED, "qemu-migration", NULL,
			"QEMU's transfer of the device state is '%s'%s%s", status, why ? ": " : "",
			why ? why : "");
	}
	return 0;
}

int smv_source_wait_migration(struct smv_source *s, const char *wanted, unsigned int timeout_ms,
	uint64_t *stopped_ns, smv_interrupted interrupted, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + timeout_ms * SMV_NS_PER_MS;
	int without_event = 0;

	for (;;) {
		CLEANUP_JSON json_t *event = NULL;
		const char *name;
		int r = check_status(s, wanted, err);

		if (r < 0 || (r > 0 && (!stopped_ns || *stopped_ns)))
			return r < 0 ? r : 0;
		/* The event comes before the status; if it does not, the VM was paused before. */
		if (r > 0 && ++without_event > 10) {
			*stopped_ns = smv_now_ns();
			return 0;
		}
		if ((r = interrupted(err)) < 0)
			return r;
		if (smv_now_ns() > end)
			return smv_fail(err, SMV_TIMEOUT, "qemu-slow",
				"Is this host overloaded, or a disk of the VM slow?",
				"the source's QEMU did not reach '%s' within %u ms", wanted,
				timeout_ms);
		if (smv_qmp_next_event(s->qmp, 20, &event) < 0)
			continue; /* check_status() tells when QEMU is gone */
		name = json_string_value(json_object_get(event, "event"));
		if (name && stopped_ns && strcmp(name, "STOP") == 0 && !*stopped_ns)
			*stopped_ns = smv_now_ns();
	}
}

int smv_source_continue_migration(struct smv_source *s, struct smv_error *err)
{
	return smv_qmp_execute(s->qmp, "migrate-continue",
		json_pack("{s:s}", "state", "pre-switchover"), NULL, SMV_QMP_TIMEOUT_MS, err);
}

#ifdef SMEMV_FAULT_POINTS
void smv_source_touch(struct smv_source *s)
{
	off_t addr = (off_t)s->ram.blocks[0].host_addr;
	CLEANUP_CLOSE int fd = -1;
	char path[64], byte;

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)s->process.pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || pread(fd, &byte, 1, addr) != 1 || pwrite(fd, &byte, 1, addr) != 1)
		smv_log_warning("cannot write to %s: %s", path, strerror(errno));
}
#endif

/* The guest has ended meanwhile: nothing that could run on. */
static bool is_final(const char *state)
{
	return strcmp(state, "shutdown") == 0 || strcmp(state, "guest-panicked") == 0 ||
	       strcmp(state, "internal-error") == 0;
}

int smv_source_resume(struct smv_source *s, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + SMV_QMP_TIMEOUT_MS * SMV_NS_PER_MS;
	char state[64], status[64];
	int r;

	/* QEMU was never told to stop: if the VM is paused, that is its operator's wish. */
	if (!s->migrating)
		return 0;
	if ((r = migration_status(s, status, sizeof(status), err)) < 0)
		return r;
	if (!is_idle(status))
		smv_qmp_execute(s->qmp, "migrate_cancel", NULL, NULL, SMV_QMP_TIMEOUT_MS, NULL);
	while (!is_idle(status)) {
		if (smv_now_ns() > end)
			return smv_fail(err, SMV_TIMEOUT, "cancel", NULL,
				"the source's QEMU does not end its migration: '%s'", status);
		smv_sleep_ms(2);
		if ((r = migration_status(s, status, sizeof(status), err)) < 0)
			return r;
	}
	/* QEMU lets the VM run again by itself after a cancel, but not after a completed transfer.
	 */
	for (;;) {
		if ((r = smv_qmp_run_state(s->qmp, state, sizeof(state), err)) < 0)
			return r;
		if (strcmp(state, "running") == 0 || is_final(state)) {
			s->migrating = false;
			return 0;
		}
		if (smv_now_ns() > end)
			return smv_fail(err, SMV_TIMEOUT, "resume",
				"Resume it by hand (QMP: cont).",
				"the source VM does not run again: its state is '%s'", state);
		if (strcmp(state, "finish-migrate") != 0)
			smv_qmp_execute(s->qmp, "cont", NULL, NULL, SMV_QMP_TIMEOUT_MS, NULL);
		smv_sleep_ms(2);
	}
}

/* Did a command fail in a way that may pass? What QEMU refuses it will refuse again. */
static bool may_pass(const struct smv_error *err)
{
	return err->code != SMV_REFUSED && err->code != SMV_UNIMPLEMENTED;
}

static bool restore_capabilities(struct smv_source *s)
{
	bool again = false, all = true;
	struct smv_error err;

	for (size_t i = 0; s->caps_saved && i < SMV_ARRAY_SIZE(capabilities); i++) {
		if (smv_qmp_set_capability(s->qmp, capabilities[i], s->caps[i], &err) == 0)
			continue;
		smv_log_warning("cannot restore QEMU's migration capability %s: %s",
			capabilities[i], err.message);
		/* While its migration is active QEMU refuses; that passes, too. */
		again |= may_pass(&err) || s->migrating;
		all = false;
	}
	if (all)
		s->caps_saved = false;
	return !again;
}

static bool stop_tracking(struct smv_source *s)
{
	int r = 0;

	/* What is another's stays: kernels before 6.17 do not ask whose it is. */
	for (unsigned int i = 0; s->uffd >= 0 && i < s->nr_registered; i++)
		smv_uffd_unregister(
			s->uffd, s->ram.blocks[i].host_addr, s->ram.blocks[i].size_bytes);
	if (s->uffd >= 0) {
		close(s->uffd);
		r = smv_guest_process_close_uffd(s->guest);
	}
	s->uffd = -1;
	if (r == 0)
		s->registered = false;
	return r == 0;
}

int smv_source_detach(struct smv_source *s)
{
	bool done = restore_capabilities(s);
	struct smv_error err;

	if (s->out_of_reach)
		done = false;
	else if (!stop_tracking(s))
		smv_log_warning("QEMU keeps a userfaultfd of ours open");
	/* Last: while writes are tracked none may go past the page tables. */
	if (smv_disks_put_back(s->qmp, s->disks, &err) < 0) {
		smv_log_warning(
			"a disk of the source stays with cache.direct=off: %s", err.message);
		return may_pass(&err) || !done ? -EAGAIN : 0;
	}
	json_decref(s->disks);
	s->disks = NULL;
	return done ? 0 : -EAGAIN;
}

void smv_source_close(struct smv_source *s)
{
	json_decref(s->disks);
	smv_guest_ram_release(&s->ram);
	if (s->pagemap_fd >= 0)
		close(s->pagemap_fd);
	if (s->uffd >= 0)
		close(s->uffd);
	smv_guest_process_close(s->guest);
	if (s->qmp)
		smv_qmp_close(s->qmp);
}

const char *smv_source_state(struct smv_source *s, char *buf, size_t len)
{
	if (!s->qmp || smv_qmp_run_state(s->qmp, buf, len, NULL) < 0)
		snprintf(buf, len, "%s", s->qmp ? "gone" : "unknown");
	return buf;
}
