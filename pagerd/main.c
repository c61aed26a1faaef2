/* SPDX-License-Identifier: Apache-2.0 */
/* smemv-pagerd: the daemon of a main host. */
#include "client/uffd.h"
#include "common/host_check.h"
#include "common/log.h"
#include "common/program.h"
#include "common/units.h"
#include "metrics/http.h"
#include "pagerd/budget.h"
#include "pagerd/debts.h"
#include "pagerd/metrics.h"
#include "pagerd/migration.h"
#include "pagerd/service.h"
#include "pagerd/state.h"
#include "pagerd/verdicts.h"
#include "pagerd/vm.h"
#include "rpc/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#define MAX_ADDRESSES 8
#define NR_WORKERS 8
#define GRACE_MS 2000
#define DEFAULT_STATE_DIR "/run/smemv/pagerd"

static struct {
	struct smv_addr listen[MAX_ADDRESSES];
	struct smv_addr data[MAX_ADDRESSES];
	size_t nr_listen, nr_data;
	const char *advertise;
	const char *state_dir;
	uint64_t memory_bytes; /* 0: not limited */
	struct smv_addr metrics;
	bool has_metrics;
	bool insecure;
	bool no_checksums;
} opts = {.state_dir = DEFAULT_STATE_DIR};

enum { OPT_METRICS = 256, OPT_NO_CHECKSUMS };

static const struct argp_option options[] = {
	{"listen", 'l', "ADDR", 0,
		"control address: HOST:PORT or unix:PATH; may be given several times. smemv-run "
		"needs a "
		"unix socket",
		0},
	{"data", 'd', "ADDR", 0,
		"data address for hot pages: [tcp:|verbs:]HOST:PORT; may be given several times",
		0},
	{"advertise", 'a', "HOST", 0,
		"the host name or address under which other hosts reach this one (default: that of "
		"the "
		"data address)",
		0},
	{"state-dir", 's', "DIR", 0,
		"page maps, what else outlives this process, and verdicts; on tmpfs "
		"(default: " DEFAULT_STATE_DIR ")",
		0},
	{"memory", 'm', "SIZE", 0,
		"what all VMs together may hold; when their budgets exceed it, each has a fair "
		"share (default: no limit)",
		0},
	{"metrics", OPT_METRICS, "HOST:PORT", 0,
		"answer GET /metrics there, for Prometheus (default: nowhere)", 0},
	{"no-checksums", OPT_NO_CHECKSUMS, NULL, 0,
		"do not compare the checksum of a page that a sub-host returned: saves about 0.3 "
		"us per page, and what was spoilt in its memory or on the way gets into the VM unseen",
		0},
	{"insecure", 'i', NULL, 0, "allow plaintext on addresses that leave this host", 0},
	{0},
};

static void add_address(
	struct argp_state *state, const char *text, bool data, struct smv_addr *list, size_t *nr)
{
	struct smv_error err;

	if (*nr == MAX_ADDRESSES)
		argp_error(state, "more than %d addresses of one kind", MAX_ADDRESSES);
	if (smv_addr_parse(text, data, &list[*nr], &err) < 0)
		argp_error(state, "%s. %s", err.message, err.hint);
	(*nr)++;
}

static void set_metrics_address(struct argp_state *state, const char *text)
{
	struct smv_error err;

	if (smv_metrics_addr_parse(text, &opts.metrics, &err) < 0)
		argp_error(state, "%s. %s", err.message, err.hint);
	opts.has_metrics = true;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case 'l':
		add_address(state, arg, false, opts.listen, &opts.nr_listen);
		return 0;
	case 'd':
		add_address(state, arg, true, opts.data, &opts.nr_data);
		return 0;
	case 'a':
		opts.advertise = arg;
		return 0;
	case 's':
		opts.state_dir = arg;
		return 0;
	case 'm':
		if (smv_parse_size(arg, &opts.memory_bytes) < 0 ||
			opts.memory_bytes < SMV_BUDGET_MIN)
			argp_error(state, "--memory '%s': give a size of at least 16M, such as 22G",
				arg);
		return 0;
	case OPT_METRICS:
		set_metrics_address(state, arg);
		return 0;
	case 'i':
		opts.insecure = true;
		return 0;
	case OPT_NO_CHECKSUMS:
		opts.no_checksums = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected argument '%s'", arg);
		return 0;
	case ARGP_KEY_END: {
		struct smv_error err;

		if (opts.nr_listen == 0 || opts.nr_data == 0)
			argp_error(state, "--listen and --data are needed");
		for (size_t i = 0; i < opts.nr_listen; i++)
			if (smv_insecure_check(&opts.listen[i], opts.insecure, &err) < 0)
				argp_error(state, "%s. %s", err.message, err.hint);
		for (size_t i = 0; i < opts.nr_data; i++)
			if (smv_insecure_check(&opts.data[i], opts.insecure, &err) < 0)
				argp_error(state, "%s. %s", err.message, err.hint);
		if (opts.has_metrics && smv_insecure_check(&opts.metrics, opts.insecure, &err) < 0)
			argp_error(state, "%s. %s", err.message, err.hint);
		return 0;
	}
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static int lock_state_dir(struct smv_error *err)
{
	char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/lock", opts.state_dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
		return smv_fail(err, SMV_REFUSED, "state-dir",
			"Stop the other one, or give --state-dir.",
			errno == EWOULDBLOCK ? "another smemv-pagerd uses the state directory %s"
					     : "cannot lock the state directory %s",
			opts.state_dir);
	return 0; /* held until the process ends */
}

static void log_ready(void)
{
	char line[600] = "ready: control", text[SMV_ADDR_MAX];

	for (size_t i = 0; i < opts.nr_listen; i++) {
		strncat(line, i ? ", " : " ", sizeof(line) - strlen(line) - 1);
		strncat(line, smv_addr_format(&opts.listen[i], text, sizeof(text)),
			sizeof(line) - strlen(line) - 1);
	}
	strncat(line, ", data", sizeof(line) - strlen(line) - 1);
	for (size_t i = 0; i < opts.nr_data; i++) {
		strncat(line, i ? ", " : " ", sizeof(line) - strlen(line) - 1);
		strncat(line, smv_addr_format(smv_migration_data_address(i), text, sizeof(text)),
			sizeof(line) - strlen(line) - 1);
	}
	if (opts.has_metrics) {
		strncat(line, ", metrics ", sizeof(line) - strlen(line) - 1);
		strncat(line, smv_addr_format(&opts.metrics, text, sizeof(text)),
			sizeof(line) - strlen(line) - 1);
	}
	smv_log_info("%s", line);
}

static int start(
	struct smv_rpc_server **server, struct smv_metrics_server **metrics, struct smv_error *err)
{
	int r;

	smv_host_warn_of_swap();
	smv_host_warn_of_huge_shmem();
	if ((r = smv_kernel_check(err)) < 0 ||
		(r = smv_vms_init(opts.state_dir, opts.no_checksums, err)) < 0 ||
		(r = lock_state_dir(err)) < 0 || (r = smv_verdicts_init(opts.state_dir, err)) < 0)
		return r;
	smv_debts_init(opts.state_dir);
	smv_budget_init(opts.memory_bytes);
	for (size_t i = 0; i < opts.nr_data; i++)
		if ((r = smv_migration_listen(&opts.data[i], opts.advertise, err)) < 0)
			return r;
	if ((r = smv_rpc_server_create(NR_WORKERS, server)) < 0 ||
		(r = smv_pager_service_add(*server)) < 0)
		return smv_fail(err, SMV_INTERNAL, "rpc", NULL,
			"cannot make the control server: %s", strerror(-r));
	for (size_t i = 0; i < opts.nr_listen; i++)
		if ((r = smv_rpc_server_listen(*server, &opts.listen[i], &opts.listen[i], err)) < 0)
			return r;
	if (opts.has_metrics && (r = smv_metrics_serve(&opts.metrics, smv_pagerd_collect, NULL,
					 metrics, &opts.metrics, err)) < 0)
		return r;
	/* All that could be wrong with the options was found; nobody asks us yet. */
	smv_vms_take_over();
	if ((r = smv_rpc_server_start(*server)) < 0)
		return smv_fail(err, SMV_INTERNAL, "rpc", NULL,
			"cannot start the control server: %s", strerror(-r));
	log_ready();
	return 0;
}

/* Until told to end. */
static void run(const sigset_t *signals)
{
	struct timespec tick = {0, 200 * 1000 * 1000};

	while (sigtimedwait(signals, NULL, &tick) <= 0) {
		smv_vms_tick();
		smv_vms_take_over_rest();
	}
	smv_vms_take_over_end();
}

int main(int argc, char **argv)
{
	static const struct argp_child children[] = {{&smv_program_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {options, parse, NULL,
		"Owns the memory of the VMs on a main host: receives split migrations, keeps each "
		"VM "
		"within its budget, serves its faults from the sub-hosts.",
		children, NULL, NULL};
	struct smv_rpc_server *server = NULL;
	struct smv_metrics_server *metrics = NULL;
	size_t nr_left;
	struct smv_error err = {0};
	sigset_t signals;
	int r;

	smv_program_init();
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	smv_rpc_init();
	r = start(&server, &metrics, &err);
	if (r == 0)
		run(&signals);
	else
		smv_error_print(&err);
	if (server)
		smv_rpc_server_destroy(server, GRACE_MS);
	smv_metrics_server_destroy(metrics);
	nr_left = smv_vms_shutdown();
	if (r == 0)
		smv_verdicts_end(nr_left > 0);
	smv_debts_end();
	smv_migration_unlisten();
	smv_rpc_shutdown();
	return r == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
