/* SPDX-License-Identifier: Apache-2.0 */
#include "common/program.h"

#include "common/fault_point.h"
#include "common/log.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static void print_version(FILE *out, struct argp_state *state)
{
	(void)state;
	fprintf(out, "smemv %s\n", SMEMV_VERSION);
}

void smv_program_init(void)
{
	argp_err_exit_status = SMV_EXIT_USAGE;
	argp_program_version_hook = print_version;
	signal(SIGPIPE, SIG_IGN);
}

#ifdef SMEMV_FAULT_POINTS
#define OPT_LIST_FAULT_POINTS 0x1001
#endif

static error_t parse(int key, char *arg, struct argp_state *state)
{
	enum smv_log_level level;

#ifdef SMEMV_FAULT_POINTS
	if (key == OPT_LIST_FAULT_POINTS) {
		smv_fault_points_list(stdout);
		exit(EXIT_SUCCESS);
	}
#endif
	if (key != 'L')
		return ARGP_ERR_UNKNOWN;
	if (smv_log_level_parse(arg, &level) < 0)
		argp_error(state, "--log-level '%s': choose error, warning, info or debug", arg);
	smv_log_set_level(level);
	return 0;
}

static const struct argp_option options[] = {
	{"log-level", 'L', "LEVEL", 0, "error, warning, info (default) or debug", -1},
#ifdef SMEMV_FAULT_POINTS
	{"list-fault-points", OPT_LIST_FAULT_POINTS, NULL, 0,
		"the names that SMEMV_FAULT takes in this test build", -1},
#endif
	{0},
};

const struct argp smv_program_argp = {.options = options, .parser = parse};

int smv_insecure_check(const struct smv_addr *addr, bool insecure, struct smv_error *err)
{
	char text[SMV_ADDR_MAX];

	if (insecure || smv_addr_is_local(addr))
		return 0;
	return smv_fail(err, SMV_INVALID, "insecure",
		"On a network that you trust pass --insecure; otherwise use loopback or unix:PATH.",
		"address '%s' leaves this host and the connection would be plaintext",
		smv_addr_format(addr, text, sizeof(text)));
}
