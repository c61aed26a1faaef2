/* SPDX-License-Identifier: Apache-2.0 */
/* smemv-migrate: the program on the source. */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/program.h"
#include "common/units.h"
#include "migrator/manage.h"
#include "migrator/plan.h"
#include "migrator/run.h"
#include "migrator/supervisor.h"
#include "rpc/rpc.h"
#include "vmm/runtime.h"
#include "vmm/throttle.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

enum command { NONE, RUN, PLAN, STATUS, CANCEL, RECOVER, SUPERVISE };

static const struct {
	const char *name;
	bool takes_ids;
} commands[] = {
	[RUN] = {"run", false},
	[PLAN] = {"plan", false},
	[STATUS] = {"status", true},
	[CANCEL] = {"cancel", true},
	[RECOVER] = {"recover", true},
	/* Not for people: see migrator/supervisor.h. */
	[SUPERVISE] = {"supervise", true},
};

enum {
	OPT_MAX_ROUNDS = 256,
	OPT_MAX_DOWNTIME,
	OPT_NO_CONVERGE,
	OPT_RUNTIME_DIR,
	OPT_JSON,
	OPT_VM_QMP,
	OPT_PID,
	OPT_QMP,
	OPT_REOPEN_DISKS,
	OPT_MAX_THROTTLE,
	OPT_VERDICT_TIMEOUT,
	OPT_STATE_DIR,
	OPT_ASSUME_ABORTED,
	OPT_MIN_BUDGET,
	OPT_ON_LOSS,
};

#define MAX_IDS 64

static struct {
	struct smv_run_options run;
	const char *vm;
	const char *vm_qmp;
	const char *qmp;
	const char *runtime_dir;
	const char *state_dir;
	enum command command;
	char *ids[MAX_IDS];
	size_t nr_ids;
	bool json;
	bool assume_aborted;
	bool have_to, have_budget;
	char default_state_dir[SMV_RUNTIME_PATH_MAX];
	char *sub_hosts[SMV_SUB_HOSTS_MAX];
	char qmp_path[SMV_RUNTIME_PATH_MAX], shim_path[SMV_RUNTIME_PATH_MAX];
} opts = {.run = {.transport = "auto", .max_rounds = 30, .verdict_s = 30}};

static const struct argp_option options[] = {
	{NULL, 0, NULL, 0, "Which VM:", 1},
	{"vm", 'v', "NAME", 0, "the VM that smemv-run started under this name", 1},
	{"vm-qmp", OPT_VM_QMP, "PATH", 0,
		"or the QMP socket that smemv-run made for it (its shim.sock lies beside it)", 1},
	{"pid", OPT_PID, "PID", 0,
		"or the process id of a QEMU that was not started by smemv-run, with --qmp", 1},
	{"qmp", OPT_QMP, "PATH", 0, "a QMP socket of it that no other client holds", 1},
	{"runtime-dir", OPT_RUNTIME_DIR, "DIR", 0, "where smemv-run keeps its sockets", 1},
	{NULL, 0, NULL, 0, "Where to:", 2},
	{"to", 't', "ADDR", 0, "control address of smemv-pagerd on the main host", 2},
	{"to-vm", 'n', "NAME", 0, "the VM that waits there", 2},
	{"sub-host", 's', "ADDR", 0, "control address of a memserverd; once for each", 2},
	{"budget", 'b', "SIZE", 0, "memory that the VM may hold on the main host", 2},
	{"min-budget", OPT_MIN_BUDGET, "SIZE", 0,
		"lease room for a budget as small as this, so that the VM can be given less later, "
		"or share the host's memory with others (default: that of --budget)",
		2},
	{"transport", 'T', "NAME", 0, "auto (default), verbs or tcp", 2},
	{"insecure", 'i', NULL, 0, "allow plaintext on addresses that leave this host", 2},
	{"on-loss", OPT_ON_LOSS, "WHAT", 0,
		"when the VM touches a page there whose only copy was lost with a sub-host's "
		"memory: stall (default; it waits), poison (SIGBUS, with KVM a machine check in "
		"the guest) or kill (the VM is ended)",
		2},
	{NULL, 0, NULL, 0, "How:", 3},
	{"max-downtime", OPT_MAX_DOWNTIME, "MS", 0,
		"switch over when the VM would stop for no longer than this (default: 300 "
		"and the time for looking at all pages)",
		3},
	{"max-rounds", OPT_MAX_ROUNDS, "N", 0, "rounds before giving up on that (default 30)", 3},
	{"on-no-converge", OPT_NO_CONVERGE, "WHAT", 0,
		"then: fail (default; the source runs on) or stop (switch over all the same)", 3},
	{"max-throttle", OPT_MAX_THROTTLE, "PERCENT", 0,
		"slow the VM's processors down by up to this when the rounds do not get there "
		"(default 0: never)",
		3},
	{"reopen-disks", OPT_REOPEN_DISKS, NULL, 0,
		"open cache.direct=on disks without O_DIRECT for the time of the migration", 3},
	{"bandwidth", 'B', "RATE", 0, "bytes per second at most, e.g. 500M (default: no limit)", 3},
	{"timeout", 'W', "S", 0, "give up after this many seconds (default: never)", 3},
	{"verdict-timeout", OPT_VERDICT_TIMEOUT, "S", 0,
		"ask the main host for so long what became of a commit before the result is "
		"unknown (default 30)",
		3},
	{NULL, 0, NULL, 0, "All commands:", 4},
	{"state-dir", OPT_STATE_DIR, "DIR", 0,
		"where journals of migrations are kept (default /run/smemv/migrations)", 4},
	{"json", OPT_JSON, NULL, 0, "one JSON object on standard output", 4},
	{NULL, 0, NULL, 0, "recover:", 5},
	{"assume-aborted", OPT_ASSUME_ABORTED, NULL, 0,
		"the main host is gone for good and does not run the VM: let the source run even "
		"without its verdict",
		5},
	{0},
};

#define NUMBER_MAX 1000000ul
#define PID_LIMIT 4194304ul /* PID_MAX_LIMIT of 64-bit kernels */

static unsigned int number(struct argp_state *state, const char *option, const char *text,
	unsigned long min, unsigned long max)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || v < min || v > max)
		argp_error(state, "%s '%s': write a whole number from %lu to %lu", option, text,
			min, max);
	return (unsigned int)v;
}

static uint64_t size(struct argp_state *state, const char *option, const char *text)
{
	uint64_t bytes = 0;

	if (smv_parse_size(text, &bytes) < 0 || bytes == 0)
		argp_error(state, "%s '%s': write a size such as 4096, 512M or 1.5G", option, text);
	return bytes;
}

static void check_control(
	struct argp_state *state, const char *option, const char *text, struct smv_addr *addr)
{
	struct smv_error err;

	if (smv_addr_parse(text, false, addr, &err) < 0)
		argp_error(state, "%s: %s. %s", option, err.message, err.hint);
}

static void finish_run(struct argp_state *state)
{
	struct smv_error err;
	struct smv_addr addr;

	if (!opts.vm + !opts.vm_qmp + !opts.run.source.pid != 2)
		argp_error(state, "name the VM by either --vm, --vm-qmp, or --pid with --qmp");
	if (!opts.run.source.pid != !opts.qmp)
		argp_error(state, "--pid and --qmp belong together");
	if (!opts.have_to || !opts.run.to_vm || !opts.run.nr_sub_hosts || !opts.have_budget)
		argp_error(state, "--to, --to-vm, --sub-host and --budget are needed");
	if (opts.run.min_budget_bytes > opts.run.budget_bytes)
		argp_error(state, "--min-budget must not exceed --budget");
	if (smv_insecure_check(&opts.run.to, opts.run.insecure, &err) < 0)
		argp_error(state, "--to: %s. %s", err.message, err.hint);
	for (size_t i = 0; i < opts.run.nr_sub_hosts; i++) {
		check_control(state, "--sub-host", opts.sub_hosts[i], &addr);
		if (smv_insecure_check(&addr, opts.run.insecure, &err) < 0)
			argp_error(state, "--sub-host: %s. %s", err.message, err.hint);
		for (size_t k = 0; k < i; k++)
			if (strcmp(opts.sub_hosts[k], opts.sub_hosts[i]) == 0)
				argp_error(
					state, "--sub-host '%s' is given twice", opts.sub_hosts[i]);
	}
}

static void finish(struct argp_state *state)
{
	struct smv_error err;

	if (opts.command == NONE)
		argp_error(state, "a command is needed: smemv-migrate run ...");
	if (opts.command == RUN || opts.command == PLAN)
		finish_run(state);
	if (opts.command == SUPERVISE && opts.nr_ids != 1)
		argp_error(state, "supervise takes one id");
	if (opts.assume_aborted && opts.command != RECOVER)
		argp_error(state, "--assume-aborted is for recover");
	if (opts.assume_aborted && opts.nr_ids != 1)
		argp_error(state, "--assume-aborted takes the id of the one migration that you "
				  "vouch for");
	if (opts.state_dir)
		return;
	if (smv_journal_default_dir(opts.default_state_dir, &err) < 0)
		argp_error(state, "%s. %s", err.message, err.hint);
	opts.state_dir = opts.default_state_dir;
}

static void parse_word(struct argp_state *state, char *word)
{
	if (opts.command == NONE) {
		for (size_t i = RUN; i < SMV_ARRAY_SIZE(commands); i++)
			if (strcmp(word, commands[i].name) == 0)
				opts.command = (enum command)i;
		if (opts.command == NONE)
			argp_error(state,
				"unknown command '%s'; there are: run, plan, status, cancel, "
				"recover",
				word);
	} else if (!commands[opts.command].takes_ids) {
		argp_error(state, "unexpected argument '%s'", word);
	} else if (opts.nr_ids == MAX_IDS) {
		argp_error(state, "more than %d ids", MAX_IDS);
	} else {
		opts.ids[opts.nr_ids++] = word;
	}
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct smv_run_options *run = &opts.run;

	switch (key) {
	case 'v':
		opts.vm = arg;
		return 0;
	case OPT_VM_QMP:
		opts.vm_qmp = arg;
		return 0;
	case OPT_PID:
		run->source.pid = (pid_t)number(state, "--pid", arg, 1, PID_LIMIT);
		return 0;
	case OPT_REOPEN_DISKS:
		run->source.reopen_disks = true;
		return 0;
	case OPT_QMP:
		opts.qmp = arg;
		return 0;
	case OPT_RUNTIME_DIR:
		opts.runtime_dir = arg;
		return 0;
	case 't':
		check_control(state, "--to", arg, &run->to);
		opts.have_to = true;
		return 0;
	case 'n':
		run->to_vm = arg;
		return 0;
	case 's':
		if (run->nr_sub_hosts == SMV_SUB_HOSTS_MAX)
			argp_error(state, "more than %d sub-hosts", SMV_SUB_HOSTS_MAX);
		opts.sub_hosts[run->nr_sub_hosts++] = arg;
		return 0;
	case 'b':
		run->budget_bytes = size(state, "--budget", arg);
		opts.have_budget = true;
		return 0;
	case OPT_MIN_BUDGET:
		run->min_budget_bytes = size(state, "--min-budget", arg);
		return 0;
	case 'T':
		if (strcmp(arg, "auto") != 0 && strcmp(arg, "verbs") != 0 &&
			strcmp(arg, "tcp") != 0)
			argp_error(state, "--transport '%s': choose auto, verbs or tcp", arg);
		run->transport = arg;
		return 0;
	case 'i':
		run->insecure = true;
		return 0;
	case OPT_ON_LOSS:
		if (!*arg || smv_loss_policy_parse(arg, &run->loss_policy, NULL) < 0)
			argp_error(state, "--on-loss '%s': choose stall, poison or kill", arg);
		return 0;
	case OPT_MAX_DOWNTIME:
		run->max_downtime_ms = number(state, "--max-downtime", arg, 1, NUMBER_MAX);
		return 0;
	case OPT_MAX_ROUNDS:
		run->max_rounds = number(state, "--max-rounds", arg, 1, NUMBER_MAX);
		return 0;
	case OPT_NO_CONVERGE:
		if (strcmp(arg, "fail") != 0 && strcmp(arg, "stop") != 0)
			argp_error(state, "--on-no-converge '%s': choose fail or stop", arg);
		run->stop_on_no_converge = strcmp(arg, "stop") == 0;
		return 0;
	case 'B':
		run->bandwidth = size(state, "--bandwidth", arg);
		return 0;
	case 'W':
		run->timeout_s = number(state, "--timeout", arg, 1, NUMBER_MAX);
		return 0;
	case OPT_JSON:
		opts.json = true;
		return 0;
	case OPT_MAX_THROTTLE:
		run->max_throttle_percent =
			number(state, "--max-throttle", arg, 0, SMV_THROTTLE_MAX_PERCENT);
		return 0;
	case OPT_VERDICT_TIMEOUT:
		run->verdict_s = number(state, "--verdict-timeout", arg, 1, NUMBER_MAX);
		return 0;
	case OPT_STATE_DIR:
		opts.state_dir = arg;
		return 0;
	case OPT_ASSUME_ABORTED:
		opts.assume_aborted = true;
		return 0;
	case ARGP_KEY_ARG:
		parse_word(state, arg);
		return 0;
	case ARGP_KEY_SUCCESS:
		finish(state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static int path_too_long(const char *option, const char *path, struct smv_error *err)
{
	return smv_fail(err, SMV_INVALID, "path-too-long", "Name it by a shorter path.",
		"%s '%s' is longer than a unix socket's path may be", option, path);
}

/* Into opts.qmp_path and opts.shim_path. --vm-qmp DIR/qmp.sock: the shim's socket lies beside it;
 * with --qmp there is none. */
static int find_paths(struct smv_error *err)
{
	const char *option = opts.qmp ? "--qmp" : "--vm-qmp";
	const char *path = opts.qmp ? opts.qmp : opts.vm_qmp, *slash;

	if (opts.vm)
		return smv_runtime_paths(
			opts.runtime_dir, opts.vm, opts.qmp_path, opts.shim_path, err);
	if (snprintf(opts.qmp_path, sizeof(opts.qmp_path), "%s", path) >=
		(int)sizeof(opts.qmp_path))
		return path_too_long(option, path, err);
	if (opts.qmp)
		return 0;
	slash = strrchr(path, '/');
	if (snprintf(opts.shim_path, sizeof(opts.shim_path), "%.*s/shim.sock",
		    slash ? (int)(slash - path) : 1,
		    slash ? path : ".") >= (int)sizeof(opts.shim_path))
		return path_too_long(option, path, err);
	return 0;
}

/* As it is, if that cannot be done or would not fit a socket's address. */
static void make_absolute(char path[SMV_RUNTIME_PATH_MAX])
{
	CLEANUP_FREE char *absolute = path[0] ? realpath(path, NULL) : NULL;

	if (absolute && strlen(absolute) < SMV_RUNTIME_PATH_MAX)
		strcpy(path, absolute);
}

static void signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
}

/* Again and again: a call that begins just now must end, too. */
static void *wait_for_signal(void *unused)
{
	sigset_t set;
	int sig;

	(void)unused;
	signals(&set);
	sigwait(&set, &sig);
	for (;; smv_sleep_ms(100))
		smv_run_cancel();
	return NULL;
}

static int run(void)
{
	static struct smv_result result;
	static struct smv_journal journal;
	struct smv_error *err = &result.error;
	pthread_t thread;
	sigset_t set;
	int r;

	r = find_paths(err);
	if (r < 0) {
		smv_error_print(err);
		return SMV_EXIT_USAGE;
	}
	/* The journal is read by processes with other working directories. */
	make_absolute(opts.qmp_path);
	make_absolute(opts.shim_path);
	opts.run.sub_hosts = opts.sub_hosts;
	opts.run.source.qmp_path = opts.qmp_path;
	opts.run.source.shim_path = opts.shim_path; /* empty with --pid */
	opts.run.vm = opts.vm ? opts.vm : opts.vm_qmp ? opts.vm_qmp : opts.qmp;
	opts.run.state_dir = opts.state_dir;
	signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	r = pthread_create(&thread, NULL, wait_for_signal, NULL);
	if (r) {
		smv_log_error("cannot start a thread: %s", strerror(r));
		return EXIT_FAILURE;
	}
	pthread_detach(thread);
	if (opts.command == PLAN) {
		smv_rpc_init();
		r = smv_plan(&opts.run, opts.json);
		smv_rpc_shutdown();
		return r;
	}
	smv_rpc_init();
	smv_run(&opts.run, &journal, &result);
	smv_rpc_shutdown();
	if (opts.json)
		smv_result_print_json(&result);
	else
		smv_result_print(&result);
	if (result.settled)
		smv_journal_remove(&journal);
	else
		smv_journal_close(&journal);
	free(result.rounds);
	return (int)result.outcome;
}

int main(int argc, char **argv)
{
	static const struct argp_child children[] = {{&smv_program_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {options, parse,
		"run\nplan\nstatus [ID...]\ncancel [ID]\nrecover [ID...]",
		"Splits the memory of a running VM: what it is likely to touch goes to the main "
		"host, the rest straight to the sub-hosts; then the VM runs on at the main host."
		"\v"
		"  run      migrate a VM\n"
		"  plan     the same options: what would stand in the way, and what it would be "
		"like; "
		"nothing is changed\n"
		"  status   what is under way on this host, and what was left behind\n"
		"  cancel   abort a migration and wait for its end; --vm or ID when there are "
		"several\n"
		"  recover  settle what a killed smemv-migrate left behind, and forget it\n\n"
		"Exit status of run and plan: 0 completed, 1 failed (the source runs), 2 bad "
		"usage, 3 "
		"cancelled (the source runs), 4 refused (nothing was touched), 5 unknown (do not "
		"start the source).",
		children, NULL, NULL};
	struct smv_manage manage;

	smv_program_init();
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	manage = (struct smv_manage){.state_dir = opts.state_dir,
		.vm = opts.vm,
		.ids = opts.ids,
		.nr_ids = opts.nr_ids,
		.timeout_s = opts.run.timeout_s ? opts.run.timeout_s : opts.run.verdict_s,
		.assume_aborted = opts.assume_aborted,
		.json = opts.json};
	switch (opts.command) {
	case STATUS:
		return smv_manage_status(&manage);
	case CANCEL:
		/* It may have to wait for a verdict first. */
		manage.timeout_s += opts.run.timeout_s ? 0 : 60;
		return smv_manage_cancel(&manage);
	case RECOVER:
		return smv_manage_recover(&manage);
	case SUPERVISE:
		return smv_supervise(opts.state_dir, opts.ids[0]);
	default:
		return run();
	}
}
