/* SPDX-License-Identifier: Apache-2.0 */
/* smemvctl: look at memory servers, pagers and this host. */
#include "common/cleanup.h"
#include "common/program.h"
#include "common/units.h"
#include "ctl/ctl.h"
#include "ctl/finding.h"
#include "ctl/message_json.h"
#include "ctl/output.h"

#include <errno.h>
#include <string.h>

#define SCHEMA_VERSION 1
#define TIMEOUT_DEFAULT_S 10
#define TIMEOUT_MAX_S 3600

/* Whom a command asks: a daemon, or nobody but this host. */
enum peer { PEER_SERVER, PEER_PAGER, PEER_NONE, PEER_EITHER };
#define NR_PEERS 2 /* the first two */
static const char *const peer_options[] = {
	[PEER_SERVER] = "--server", [PEER_PAGER] = "--pager", [PEER_EITHER] = "--pager|--server"};

/* A new command is a function and a line here (and one in the help text below). */
static const struct command {
	const char *name;
	enum peer peer;
	const char *arg; /* NULL: it takes none */
	smv_ctl_fetch fetch;
	smv_ctl_print print;
	smv_ctl_is_bad is_bad; /* NULL: never */
	smv_ctl_follow follow; /* --follow; NULL: it is not taken */
	bool takes_role;       /* --role and --memory */
	bool takes_force;      /* --force */
	bool takes_size;       /* as its second argument */
	bool arg_is_optional;
} commands[] = {
	{.name = "info",
		.peer = PEER_SERVER,
		.fetch = smv_ctl_fetch_info,
		.print = smv_print_properties},
	{.name = "leases",
		.peer = PEER_SERVER,
		.fetch = smv_ctl_fetch_leases,
		.print = smv_ctl_print_leases},
	{.name = "release",
		.peer = PEER_SERVER,
		.arg = "LEASE",
		.fetch = smv_ctl_fetch_release,
		.print = smv_ctl_print_release,
		.takes_force = true},
	{.name = "vms", .peer = PEER_PAGER, .fetch = smv_ctl_fetch_vms, .print = smv_ctl_print_vms},
	{.name = "stats",
		.peer = PEER_PAGER,
		.arg = "VM",
		.fetch = smv_ctl_fetch_stats,
		.print = smv_print_properties},
	{.name = "budget",
		.peer = PEER_PAGER,
		.arg = "VM SIZE",
		.fetch = smv_ctl_fetch_budget,
		.print = smv_print_properties,
		.takes_size = true},
	{.name = "events",
		.peer = PEER_EITHER,
		.arg = "VM",
		.arg_is_optional = true,
		.fetch = smv_ctl_fetch_events,
		.print = smv_ctl_print_events,
		.follow = smv_ctl_follow_events},
	{.name = "doctor",
		.peer = PEER_NONE,
		.fetch = smv_ctl_fetch_doctor,
		.print = smv_ctl_print_doctor,
		.is_bad = smv_ctl_is_bad_doctor,
		.takes_role = true},
};
#define COMMAND_NAMES "info, leases, release, vms, stats, budget, events and doctor"

static const char doc[] =
	"Look at memory servers, pagers and this host.\v"
	"With --server, a memserverd:\n"
	"  info      what it is and how much it has\n"
	"  leases    who uses its memory\n"
	"  release LEASE  end a lease whose owner is gone\n"
	"With --pager, a smemv-pagerd:\n"
	"  vms       the VMs whose memory it manages\n"
	"  stats VM  what paging does for one of them\n"
	"  budget VM SIZE  change what one that runs may hold on that host\n"
	"With either:\n"
	"  events [VM]  what has happened lately\n"
	"Without an address:\n"
	"  doctor    what this host lacks for its role, what that costs and what\n"
	"            mends it; exit status 1 if the role would not work\n";

struct options {
	const char *peers[NR_PEERS]; /* by enum peer */
	const struct command *command;
	const char *arg;
	uint64_t size_bytes; /* 0: not given */
	struct smv_addr addr;
	unsigned int timeout_s;
	unsigned int roles;    /* 0: not given */
	uint64_t memory_bytes; /* 0: not given */
	bool force;
	bool follow;
	bool json;
	bool insecure;
};

enum {
	OPT_SERVER = 256,
	OPT_PAGER,
	OPT_JSON,
	OPT_TIMEOUT,
	OPT_INSECURE,
	OPT_ROLE,
	OPT_MEMORY,
	OPT_FORCE,
	OPT_FOLLOW
};

static const struct argp_option option_table[] = {
	{"server", OPT_SERVER, "ADDR", 0, "control address of a memserverd", 0},
	{"pager", OPT_PAGER, "ADDR", 0, "control address of a smemv-pagerd", 0},
	{"role", OPT_ROLE, "ROLE", 0,
		"doctor: what this host is to be: sub-host, main-host, source, or any, that is all "
		"of them (default)",
		0},
	{"memory", OPT_MEMORY, "SIZE", 0,
		"doctor: what a sub-host is to lend, the budget on a main host, the size of the "
		"VM at a source",
		0},
	{"force", OPT_FORCE, NULL, 0,
		"release: although the lease is held or orphaned; a VM that needs it loses memory",
		0},
	{"follow", OPT_FOLLOW, NULL, 0, "events: go on with new ones until interrupted", 0},
	{"json", OPT_JSON, NULL, 0, "print one JSON object", 0},
	{"timeout", OPT_TIMEOUT, "S", 0, "seconds to wait for the answer (default 10)", 0},
	{"insecure", OPT_INSECURE, NULL, 0, "allow plaintext outside loopback and unix sockets", 0},
	{0},
};

static unsigned int parse_timeout(const char *text, struct argp_state *state)
{
	char *end;
	unsigned long s = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || s < 1 || s > TIMEOUT_MAX_S)
		argp_error(state, "--timeout '%s': give whole seconds from 1 to %d", text,
			TIMEOUT_MAX_S);
	return (unsigned int)s;
}

static unsigned int parse_role(const char *text, struct argp_state *state)
{
	unsigned int roles = 0;

	if (smv_role_parse(text, &roles) < 0)
		argp_error(state, "--role '%s': choose sub-host, main-host, source or any", text);
	return roles;
}

static uint64_t parse_size(const char *what, const char *text, struct argp_state *state)
{
	uint64_t bytes = 0;

	if (smv_parse_size(text, &bytes) < 0 || bytes == 0)
		argp_error(state, "%s '%s': give a size such as 512M or 22G", what, text);
	return bytes;
}

static void parse_word(const char *word, struct options *o, struct argp_state *state)
{
	if (!o->command) {
		for (size_t i = 0; i < SMV_ARRAY_SIZE(commands); i++)
			if (strcmp(commands[i].name, word) == 0)
				o->command = &commands[i];
		if (!o->command)
			argp_error(state, "unknown command '%s'; there are " COMMAND_NAMES, word);
	} else if (o->command->arg && !o->arg) {
		o->arg = word;
	} else if (o->command->takes_size && !o->size_bytes) {
		o->size_bytes = parse_size("SIZE", word, state);
	} else {
		argp_error(state, "unexpected argument '%s' after '%s'", word, o->command->name);
	}
}

static void usage_error(const struct options *o, const char *what, struct argp_state *state)
{
	const struct command *c = o->command;
	const bool has_peer = c->peer != PEER_NONE;

	argp_error(state, "%s; write: smemvctl %s%s%s%s%s%s", what,
		has_peer ? peer_options[c->peer] : "", has_peer ? " ADDR " : "", c->name,
		!c->arg              ? ""
		: c->arg_is_optional ? " ["
				     : " ",
		c->arg ? c->arg : "", c->arg_is_optional ? "]" : "");
}

static void check_addresses(struct options *o, struct argp_state *state)
{
	enum peer peer = o->command->peer;
	struct smv_error err;

	if (peer == PEER_EITHER && o->peers[PEER_SERVER] && o->peers[PEER_PAGER])
		usage_error(o, "one address is enough", state);
	if (peer == PEER_EITHER)
		peer = o->peers[PEER_PAGER] ? PEER_PAGER : PEER_SERVER;
	for (size_t i = 0; i < NR_PEERS; i++)
		if (o->peers[i] && i != peer)
			usage_error(o,
				peer == PEER_NONE ? "an address is of no use for this command"
						  : "the address of the wrong kind of daemon",
				state);
	if (peer == PEER_NONE)
		return;
	if (!o->peers[peer])
		usage_error(o, "the address is missing", state);
	if (smv_addr_parse(o->peers[peer], false, &o->addr, &err) < 0 ||
		smv_insecure_check(&o->addr, o->insecure, &err) < 0)
		argp_error(state, "%s\n  %s", err.message, err.hint);
}

static void check_complete(struct options *o, struct argp_state *state)
{
	const struct command *c = o->command;

	if (!c)
		argp_error(state, "which command? There are " COMMAND_NAMES);
	if ((o->roles || o->memory_bytes) && !c->takes_role)
		usage_error(o, "--role and --memory are for doctor", state);
	if (o->force && !c->takes_force)
		usage_error(o, "--force is for release", state);
	if (o->follow && !c->follow)
		usage_error(o, "--follow is for events", state);
	if (c->arg && !o->arg && !c->arg_is_optional)
		usage_error(o, "the name is missing", state);
	if (c->takes_size && !o->size_bytes)
		usage_error(o, "the size is missing", state);
	check_addresses(o, state);
	if (!o->roles)
		o->roles = SMV_ROLE_ANY;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case OPT_SERVER:
		o->peers[PEER_SERVER] = arg;
		return 0;
	case OPT_PAGER:
		o->peers[PEER_PAGER] = arg;
		return 0;
	case OPT_JSON:
		o->json = true;
		return 0;
	case OPT_TIMEOUT:
		o->timeout_s = parse_timeout(arg, state);
		return 0;
	case OPT_INSECURE:
		o->insecure = true;
		return 0;
	case OPT_FORCE:
		o->force = true;
		return 0;
	case OPT_FOLLOW:
		o->follow = true;
		return 0;
	case OPT_ROLE:
		o->roles = parse_role(arg, state);
		return 0;
	case OPT_MEMORY:
		o->memory_bytes = parse_size("--memory", arg, state);
		return 0;
	case ARGP_KEY_ARG:
		parse_word(arg, o, state);
		return 0;
	case ARGP_KEY_END:
		check_complete(o, state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp_child children[] = {{&smv_program_argp, 0, NULL, 0}, {0}};
static const struct argp argp = {.options = option_table,
	.parser = parse,
	.args_doc =
		"info\nleases\nrelease LEASE\nvms\nstats VM\nbudget VM SIZE\nevents [VM]\ndoctor",
	.doc = doc,
	.children = children};

int smv_ctl_call(const struct smv_ctl *ctl, const ProtobufCServiceDescriptor *service,
	const char *method, const ProtobufCMessage *request, json_t **answer, struct smv_error *err)
{
	ProtobufCMessage *response = NULL;
	int rc = smv_rpc_client_call(
		ctl->client, service, method, request, &response, ctl->timeout_ms, false, err);

	if (rc < 0)
		return rc;
	*answer = smv_message_to_json(response);
	smv_rpc_message_free(response);
	return *answer ? 0 : smv_fail(err, SMV_INTERNAL, "no-memory", NULL, "out of memory");
}

static int ask_peer(
	const struct options *o, struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	int rc;

	smv_rpc_init();
	rc = smv_rpc_client_create(&o->addr, &ctl->client);
	if (rc < 0) {
		smv_fail(err, smv_code_from_errno(rc), "rpc", NULL,
			"cannot set up the RPC client: %s", strerror(-rc));
	} else {
		rc = o->follow ? o->command->follow(ctl, err) : o->command->fetch(ctl, result, err);
		smv_rpc_client_destroy(ctl->client);
	}
	smv_rpc_shutdown();
	return rc;
}

static int fetch(const struct options *o, json_t **result, struct smv_error *err)
{
	struct smv_ctl ctl = {.timeout_ms = o->timeout_s * 1000,
		.arg = o->arg,
		.size_bytes = o->size_bytes,
		.roles = o->roles,
		.memory_bytes = o->memory_bytes,
		.force = o->force,
		.is_pager = o->peers[PEER_PAGER],
		.json = o->json};

	return o->command->peer == PEER_NONE ? o->command->fetch(&ctl, result, err)
					     : ask_peer(o, &ctl, result, err);
}

static void print_json(json_t *result, const struct smv_error *err)
{
	CLEANUP_JSON json_t *out = json_pack("{s:i}", "schema_version", SCHEMA_VERSION);

	if (result)
		json_object_update(out, result);
	else
		json_object_set_new(out, "error",
			json_pack("{s:o, s:o, s:o}", "code", smv_text_to_json(err->reason),
				"message", smv_text_to_json(err->message), "hint",
				smv_text_to_json(err->hint)));
	json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	putchar('\n');
}

int main(int argc, char **argv)
{
	struct options options = {.timeout_s = TIMEOUT_DEFAULT_S};
	CLEANUP_JSON json_t *result = NULL;
	struct smv_error err = {0};
	int rc;

	smv_program_init();
	argp_parse(&argp, argc, argv, 0, NULL, &options);
	rc = fetch(&options, &result, &err);
	if (rc < 0)
		smv_error_print(&err);
	if (options.json)
		print_json(result, &err);
	else if (rc == 0)
		options.command->print(result);
	if (fflush(stdout) != 0 || rc < 0)
		return EXIT_FAILURE;
	return options.command->is_bad && options.command->is_bad(result) ? EXIT_FAILURE
									  : EXIT_SUCCESS;
}
