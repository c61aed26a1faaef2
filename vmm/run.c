/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smemv-run: start QEMU with the shim and a QMP socket of our own, register it with the pager, pass
 * on its exit status.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/files.h"
#include "common/log.h"
#include "common/program.h"
#include "rpc/rpc.h"
#include "smemv/v1/pager.pb-c.h"
#include "vmm/disks.h"
#include "vmm/qemu_args.h"
#include "vmm/qmp.h"
#include "vmm/runtime.h"
#include "vmm/shim_client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define START_TIMEOUT_MS 60000u
#define REGISTER_TIMEOUT_MS 30000
#define QUIT_TIMEOUT_MS 5000

struct run {
	const char *vm;
	const char *pager; /* NULL: none */
	const char *runtime_dir;
	bool reopen_disks;
	char **user_argv;
	struct smv_addr pager_addr;
	char dir[PATH_MAX]; /* RUNTIME-DIR, absolute */
	char vm_dir[PATH_MAX + 80];
	char qmp_path[SMV_RUNTIME_PATH_MAX];
	char shim_path[SMV_RUNTIME_PATH_MAX];
	char shim_file[PATH_MAX];
	int lock_fd;
	struct smv_qemu_args qemu;
	pid_t child;
	_Atomic int pidfd; /* whom signals are for */
};

/* --- runtime directory --------------------------------------------------------------------- */

static int find_runtime_dir(struct run *run, struct smv_error *err)
{
	char wish[PATH_MAX];
	int r = 0;

	if (!run->runtime_dir)
		r = smv_runtime_dir_default(wish, err);
	else if (snprintf(wish, sizeof(wish), "%s", run->runtime_dir) >= (int)sizeof(wish) ||
		 !wish[0])
		r = smv_fail(err, SMV_INVALID, "runtime-dir", NULL, "'%.200s' is no directory name",
			run->runtime_dir);
	if (r < 0)
		return r;
	r = smv_make_directories(wish, 0755);
	/* QEMU may change its directory (-daemonize does), so all paths are absolute. */
	if (!r && !realpath(wish, run->dir))
		r = -errno;
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "runtime-dir",
			"Pass a directory that you may write to with --runtime-dir.",
			"cannot make directory '%s': %s", wish, strerror(-r));
	snprintf(run->vm_dir, sizeof(run->vm_dir), "%s/%s", run->dir, run->vm);
	return smv_runtime_paths(run->dir, run->vm, run->qmp_path, run->shim_path, err);
}

static void lock_path(const struct run *run, char *path, size_t len)
{
	snprintf(path, len, "%s/lock", run->vm_dir);
}

static void record_path(const struct run *run, char *path, size_t len)
{
	snprintf(path, len, "%s/disks.json", run->vm_dir);
}

/* Is the locked file still the one in the directory? Its last owner removes it. */
static bool lock_is_current(int fd, const char *path)
{
	struct stat ours, named;

	return fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_dev == named.st_dev &&
	       ours.st_ino == named.st_ino;
}

/* The lock is handed down to QEMU: it is held as long as the VM lives, whatever becomes of us. */
static int lock_vm_dir(struct run *run, struct smv_error *err)
{
	char path[sizeof(run->vm_dir) + 8];

	lock_path(run, path, sizeof(path));
	for (;;) {
		CLEANUP_CLOSE int fd = -1;

		if (mkdir(run->vm_dir, 0700) < 0 && errno != EEXIST)
			break;
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0 && errno == ENOENT)
			continue; /* its last owner is just removing it */
		if (fd < 0)
			break;
		if (flock(fd, LOCK_EX | LOCK_NB) < 0)
			return smv_fail(err, SMV_EXISTS, "vm-exists",
				"Choose another --vm, or stop the VM that runs.",
				"a VM named '%s' runs already (%s is locked)", run->vm, path);
		if (lock_is_current(fd, path)) {
			run->lock_fd = smv_take_fd(&fd);
			return 0;
		}
	}
	return smv_fail(err, smv_code_from_errno(errno), "runtime-dir",
		"Pass a directory that you may write to with --runtime-dir.",
		"cannot make '%s': %s", path, strerror(errno));
}

static void remove_sockets(const struct run *run)
{
	unlink(run->qmp_path);
	unlink(run->shim_path);
}

static void remove_vm_dir(const struct run *run)
{
	char path[sizeof(run->vm_dir) + 16];

	record_path(run, path, sizeof(path));
	unlink(path);
	lock_path(run, path, sizeof(path));
	remove_sockets(run);
	unlink(path);
	rmdir(run->vm_dir);
}

/* --- the shim's file ----------------------------------------------------------------------- */

/* $SMEMV_SHIM, or beside the program (build tree), or where it is installed. */
static int find_shim(struct run *run, struct smv_error *err)
{
	static const char *const places[] = {
		"smemv-shim.so", "../" SMEMV_LIBDIR "/smemv/smemv-shim.so"};
	const char *wish = getenv("SMEMV_SHIM");
	char self[PATH_MAX / 2], path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	bool found = wish && realpath(wish, run->shim_file);
	char *slash;

	self[n > 0 ? n : 0] = 0;
	slash = strrchr(self, '/');
	for (size_t i = 0; !wish && !found && slash && i < SMV_ARRAY_SIZE(places); i++) {
		snprintf(path, sizeof(path), "%.*s/%s", (int)(slash - self), self, places[i]);
		found = realpath(path, run->shim_file);
	}
	if (!found)
		return smv_fail(err, SMV_NOT_FOUND, "shim",
			"Install smemv completely, or name the file in the environment variable "
			"SMEMV_SHIM.",
			"cannot find smemv-shim.so%s%s", wish ? " at " : "", wish ? wish : "");
	if (strpbrk(run->shim_file, ": "))
		return smv_fail(err, SMV_INVALID, "shim",
			"Put it into a directory without spaces and colons in its name.",
			"LD_PRELOAD cannot name '%s'", run->shim_file);
	return 0;
}

/* --- the child ----------------------------------------------------------------------------- */

static int preload_shim(const struct run *run)
{
	const char *others = getenv("LD_PRELOAD");
	CLEANUP_FREE char *list = NULL;

	if (asprintf(&list, "%s%s%s", run->shim_file, others ? ":" : "", others ? others : "") < 0)
		return -1;
	return setenv("LD_PRELOAD", list, 1) | setenv(SMV_SHIM_SOCKET_ENV, run->shim_path, 1);
}

static void exec_qemu(const struct run *run, int report_fd, const sigset_t *old_mask)
{
	int error;

	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, old_mask, NULL);
	if (fcntl(run->lock_fd, F_SETFD, 0) == 0 && preload_shim(run) == 0)
		execvp(run->qemu.argv[0], run->qemu.argv);
	error = errno;
	if (write(report_fd, &error, sizeof(error)) < 0)
		_exit(126);
	_exit(127);
}

static void signals_we_forward(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGHUP);
}

/* fork() and exec() before there is any thread, of gRPC or ours. */
static int start_qemu(struct run *run, struct smv_error *err)
{
	CLEANUP_CLOSE int ours = -1;
	sigset_t set, old;
	int report[2], error;

	signals_we_forward(&set);
	sigprocmask(SIG_BLOCK, &set, &old);
	if (pipe2(report, O_CLOEXEC) < 0 || (run->child = fork()) < 0)
		return smv_fail(err, SMV_INTERNAL, "fork", NULL, "cannot start a process: %s",
			strerror(errno));
	if (run->child == 0)
		exec_qemu(run, report[1], &old);
	ours = report[0];
	close(report[1]);
	run->pidfd = pidfd_open(run->child, 0);
	if (run->pidfd < 0) {
		kill(run->child, SIGKILL);
		return smv_fail(
			err, SMV_INTERNAL, "pidfd", NULL, "pidfd_open: %s", strerror(errno));
	}
	/* exec() closes the pipe: nothing to read is success. */
	if (read(ours, &error, sizeof(error)) != (ssize_t)sizeof(error))
		return 0;
	waitpid(run->child, NULL, 0);
	return smv_fail(err, smv_code_from_errno(error), "exec",
		"Name QEMU's binary after --, as in: -- qemu-system-x86_64 ARGS...",
		"cannot run '%s': %s", run->qemu.argv[0], strerror(error));
}

static void *forward_signals(void *arg)
{
	struct run *run = arg;
	sigset_t set;
	int sig;

	signals_we_forward(&set);
	while (sigwait(&set, &sig) == 0)
		pidfd_send_signal(run->pidfd, sig, NULL, 0);
	return NULL;
}

static int start_forwarding(struct run *run, struct smv_error *err)
{
	pthread_t thread;
	int r = pthread_create(&thread, NULL, forward_signals, run);

	if (r)
		return smv_fail(err, SMV_INTERNAL, "thread", NULL, "cannot start a thread: %s",
			strerror(r));
	pthread_detach(thread);
	return 0;
}

/* Did the process behind the pidfd end, within @timeout_ms? */
static bool has_ended(const struct run *run, int timeout_ms)
{
	struct pollfd p = {.fd = run->pidfd, .events = POLLIN};

	/* The signals that we take are blocked, so nothing but a debugger interrupts this. */
	return poll(&p, 1, timeout_ms) > 0;
}

static int exit_status(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* SIGTERM is what QMP's "quit" is to QEMU, and needs no monitor that still answers. */
static void stop_qemu(const struct run *run)
{
	pidfd_send_signal(run->pidfd, SIGTERM, NULL, 0);
	if (!has_ended(run, QUIT_TIMEOUT_MS))
		pidfd_send_signal(run->pidfd, SIGKILL, NULL, 0);
	has_ended(run, QUIT_TIMEOUT_MS);
}

/* --- ready and registered ------------------------------------------------------------------ */

/* Wait until QEMU answers on QMP. 0; -ECHILD when it ended first; else an error. */
static int wait_for_qmp(const struct run *run, struct smv_error *err)
{
	uint64_t deadline = smv_now_ns() + START_TIMEOUT_MS * SMV_NS_PER_MS;
	struct smv_qmp *qmp;
	int r;

	do {
		if (!run->qemu.daemonize && has_ended(run, 10))
			return -ECHILD;
		if (access(run->qmp_path, F_OK) < 0)
			r = smv_fail(err, SMV_TIMEOUT, "qemu-start", NULL,
				"QEMU has made no QMP socket in %u s", START_TIMEOUT_MS / 1000);
		else
			r = smv_qmp_open(run->qmp_path, 1000, &qmp, err);
		if (!r)
			smv_qmp_close(qmp); /* it serves one client at a time, next the pager */
	} while (r < 0 && smv_now_ns() < deadline);
	return r;
}

static int find_qemu(const struct run *run, pid_t *pid, struct smv_error *err)
{
	struct smv_shim *shim;
	int r = smv_shim_open(run->shim_path, &shim, pid, err);

	if (r < 0)
		return smv_fail(err, SMV_UNAVAILABLE, "shim",
			"The program after -- must be QEMU itself, dynamically linked and not "
			"setuid; put "
			"wrappers such as numactl in front of smemv-run.",
			"the shim is not in QEMU: nothing answers at %s", run->shim_path);
	smv_shim_close(shim);
	return 0;
}

static int call_register(const struct run *run, pid_t pid, struct smv_error *err)
{
	Smemv__V1__RegisterVmRequest request = SMEMV__V1__REGISTER_VM_REQUEST__INIT;
	ProtobufCMessage *response = NULL;
	struct smv_rpc_client *client;
	int r;

	request.name = (char *)run->vm;
	request.pid = pid;
	request.qmp_path = (char *)run->qmp_path;
	request.shim_path = (char *)run->shim_path;
	r = smv_rpc_client_create(&run->pager_addr, &client);
	if (r < 0)
		return smv_fail(err, SMV_INTERNAL, "rpc", NULL, "cannot call the pager at %s: %s",
			run->pager, strerror(-r));
	r = smv_rpc_client_call(client, &smemv__v1__pager__descriptor, "RegisterVm", &request.base,
		&response, REGISTER_TIMEOUT_MS, false, err);
	smv_rpc_message_free(response);
	smv_rpc_client_destroy(client);
	return r;
}

static int register_vm(const struct run *run, pid_t pid, struct smv_error *err)
{
	int r;

	smv_rpc_init();
	r = call_register(run, pid, err);
	smv_rpc_shutdown();
	if (!r)
		smv_log_info("VM '%s' (process %d) is registered with the pager at %s", run->vm,
			pid, run->pager);
	return r;
}

/* Before the pager looks. What was changed is kept beside the sockets, for who wants it back. */
static int reopen_disks(const struct run *run, struct smv_error *err)
{
	char path[sizeof(run->vm_dir) + 16];
	CLEANUP_JSON json_t *record = NULL;
	struct smv_qmp *qmp;
	int r = smv_qmp_open(run->qmp_path, 1000, &qmp, err);

	if (r < 0)
		return r;
	r = smv_disks_find(qmp, &record, err);
	record_path(run, path, sizeof(path));
	if (!r && json_array_size(record) && json_dump_file(record, path, JSON_INDENT(2)) < 0)
		r = smv_fail(err, SMV_INTERNAL, "runtime-dir", "Is the file system full?",
			"cannot write '%s'", path);
	if (!r)
		r = smv_disks_reopen(qmp, record, err);
	smv_qmp_close(qmp);
	if (!r)
		smv_log_info("VM '%s': %zu disks were opened without O_DIRECT", run->vm,
			json_array_size(record));
	return r;
}

/* 0, -ECHILD when QEMU ended by itself, or an error: with a pager QEMU must not go on then. */
static int make_ready(struct run *run, struct smv_error *err)
{
	pid_t pid;
	int r = wait_for_qmp(run, err), fd;

	if (!r)
		r = find_qemu(run, &pid, err);
	if (r < 0)
		return r;
	if (run->qemu.daemonize) {
		fd = pidfd_open(pid, 0);
		if (fd < 0)
			return smv_fail(err, SMV_UNAVAILABLE, "qemu-gone", NULL,
				"QEMU (process %d) ended right after its start", pid);
		run->pidfd = fd;
	}
	if (run->reopen_disks && (r = reopen_disks(run, err)) < 0)
		return r;
	if (run->pager)
		return register_vm(run, pid, err);
	smv_log_info("VM '%s' (process %d) is started, QMP at %s", run->vm, pid, run->qmp_path);
	return 0;
}

/* --- the program --------------------------------------------------------------------------- */

/* Started. Returns the exit status; *lives_on: the VM outlives us. */
static int supervise(struct run *run, bool *lives_on)
{
	struct smv_error err;
	int status, r = start_forwarding(run, &err);

	if (!r && run->qemu.daemonize) {
		status = exit_status(run->child);
		if (status != 0)
			return status;
		*lives_on = true;
		run->pidfd = -1; /* until make_ready() has found the daemon */
	}
	if (!r)
		r = make_ready(run, &err);
	if (r < 0 && r != -ECHILD && run->pager) {
		smv_error_print(&err);
		stop_qemu(run);
		*lives_on = *lives_on && !has_ended(run, 0);
		return 1;
	}
	/* Without a pager it does its work all the same; it just cannot be split-migrated. */
	if (r < 0 && r != -ECHILD && !has_ended(run, 0))
		smv_log_warning("%s", err.message);
	return *lives_on ? 0 : exit_status(run->child);
}

static int prepare(struct run *run, struct smv_error *err)
{
	int r = find_shim(run, err);

	if (!r)
		r = find_runtime_dir(run, err);
	if (!r)
		r = smv_qemu_args_make(run->user_argv, run->qmp_path, run->pager, &run->qemu, err);
	return r < 0 ? r : lock_vm_dir(run, err);
}

static int run_vm(struct run *run)
{
	struct smv_error err;
	bool lives_on = false;
	int status = 1, r = prepare(run, &err);

	if (r < 0) {
		smv_error_print(&err);
		smv_qemu_args_release(&run->qemu);
		return err.code == SMV_INVALID ? SMV_EXIT_USAGE : 1;
	}
	remove_sockets(run); /* of a run that was killed */
	if (start_qemu(run, &err) < 0)
		smv_error_print(&err);
	else
		status = supervise(run, &lives_on);
	if (!lives_on)
		remove_vm_dir(run);
	smv_qemu_args_release(&run->qemu);
	return status;
}

static const struct argp_option options[] = {
	{"vm", 'n', "NAME", 0, "name of the VM: letters, digits, '.', '_', '-'", 0},
	{"pager", 'p', "unix:PATH", 0,
		"register the VM with the smemv-pagerd that listens there; QEMU then waits for a "
		"migration into it",
		0},
	{"reopen-disks", 'd', NULL, 0,
		"open cache.direct=on disks without O_DIRECT right after the start: a VM that is "
		"split must not have them",
		0},
	{"runtime-dir", 'r', "DIR", 0,
		"where DIR/NAME with the sockets is made (/run/smemv/vms, or "
		"$XDG_RUNTIME_DIR/smemv/vms)",
		0},
	{0},
};

static void parse_pager(struct run *run, const char *text, struct argp_state *state)
{
	struct smv_error err;

	if (smv_addr_parse(text, false, &run->pager_addr, &err) < 0)
		argp_error(state, "%s. %s", err.message, err.hint);
	if (!run->pager_addr.is_unix)
		argp_error(
			state, "--pager %s: the pager of this host is reached by unix:PATH", text);
	run->pager = text;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct run *run = state->input;
	struct smv_error err;

	switch (key) {
	case 'n':
		if (smv_vm_name_check(arg, &err) < 0)
			argp_error(state, "%s. %s", err.message, err.hint);
		run->vm = arg;
		return 0;
	case 'd':
		run->reopen_disks = true;
		return 0;
	case 'p':
		parse_pager(run, arg, state);
		return 0;
	case 'r':
		run->runtime_dir = arg;
		return 0;
	case ARGP_KEY_ARG:
		/* All that follows is QEMU's. */
		run->user_argv = state->argv + state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_END:
		if (!run->vm)
			argp_error(state, "--vm is missing");
		if (!run->user_argv)
			argp_error(state, "QEMU's command line is missing; write it after --");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int main(int argc, char **argv)
{
	static const struct argp_child children[] = {{&smv_program_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {.options = options,
		.parser = parse,
		.args_doc = "-- qemu-system-x86_64 ARGS...",
		.doc = "Start a VM whose memory can be split over hosts.",
		.children = children};
	struct run run = {.lock_fd = -1, .pidfd = -1};

	smv_program_init();
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &run);
	return run_vm(&run);
}
