/* SPDX-License-Identifier: Apache-2.0 */
/* memserverd: lends memory of this host to pagers. */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/host_check.h"
#include "common/log.h"
#include "common/program.h"
#include "memserver/hugepages.h"
#include "memserver/metrics.h"
#include "memserver/service.h"
#include "metrics/http.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>

#define LISTEN_MAX 16
/* To register a large lease or to fence takes a call seconds, and leases must be renewed meanwhile.
 */
#define RPC_WORKERS 16
#define SHUTDOWN_GRACE_MS 2000
#define ORPHAN_AFTER_MAX_S 86400

struct options {
	const char *name;
	const char *state_dir;
	uint64_t memory_bytes;
	uint64_t hugepage_bytes; /* 0: ordinary pages */
	struct smv_addr listen[LISTEN_MAX];
	size_t nr_listen;
	struct smv_addr data[SMV_DATA_LISTENERS_MAX];
	size_t nr_data;
	struct smv_addr metrics;
	bool has_metrics;
	uint32_t orphan_after_ms;
	bool discard;
	bool insecure;
};

struct daemon {
	struct smv_arena *arena;
	struct smv_lease_table *table;
	struct smv_data_plane *data;
	struct smv_rpc_server *rpc;
	struct smv_mem_server service;
	struct smv_metrics_server *metrics;
	struct smv_addr metrics_addr; /* the real one */
	char control[1000];           /* real control addresses, for the ready line */
};

enum {
	OPT_NAME = 256,
	OPT_MEMORY,
	OPT_HUGEPAGES,
	OPT_LISTEN,
	OPT_DATA,
	OPT_STATE_DIR,
	OPT_ORPHAN_AFTER,
	OPT_DISCARD,
	OPT_METRICS,
	OPT_INSECURE
};

static const struct argp_option option_table[] = {
	{"name", OPT_NAME, "NAME", 0, "name of this server: letters, digits, '.', '_', '-'", 0},
	{"memory", OPT_MEMORY, "SIZE", 0, "memory to lend, a multiple of 2M; suffixes K M G T", 0},
	{"hugepages", OPT_HUGEPAGES, "SIZE", OPTION_ARG_OPTIONAL,
		"lend huge pages of SIZE, 2M (default) or 1G", 0},
	{"listen", OPT_LISTEN, "ADDR", 0, "control address HOST:PORT or unix:PATH; repeatable", 0},
	{"data", OPT_DATA, "ADDR", 0,
		"data address [tcp:|verbs:]HOST:PORT as peers reach it; repeatable", 0},
	{"state-dir", OPT_STATE_DIR, "DIR", 0,
		"directory on tmpfs (default: /dev/shm/smemv/memserverd-NAME)", 0},
	{"orphan-after", OPT_ORPHAN_AFTER, "S", 0,
		"seconds without a renewal until a held lease is called orphaned (default 60)", 0},
	{"discard", OPT_DISCARD, NULL, 0,
		"first throw away leases of a former memserverd, with the data of their VMs", 0},
	{"metrics", OPT_METRICS, "HOST:PORT", 0,
		"answer GET /metrics there, for Prometheus (default: nowhere)", 0},
	{"insecure", OPT_INSECURE, NULL, 0, "allow plaintext outside loopback and unix sockets", 0},
	{0},
};

static void usage_error(struct argp_state *state, const struct smv_error *err)
{
	argp_error(state, "%s%s%s", err->message, err->hint[0] ? "\n  " : "", err->hint);
}

static void parse_size(const char *text, struct options *o, struct argp_state *state)
{
	struct smv_error err;

	if (smv_parse_size(text, &o->memory_bytes) < 0)
		argp_error(state, "--memory '%s' is no size; write 512M or 64G", text);
	if (smv_arena_check_size(o->memory_bytes, &err) < 0)
		usage_error(state, &err);
}

static void parse_hugepages(const char *text, struct options *o, struct argp_state *state)
{
	o->hugepage_bytes = SMV_HUGEPAGE_DEFAULT;
	if (text && (smv_parse_size(text, &o->hugepage_bytes) < 0 || o->hugepage_bytes == 0))
		argp_error(state, "--hugepages '%s' is no size; write 2M or 1G", text);
}

static void parse_orphan_after(const char *text, struct options *o, struct argp_state *state)
{
	char *end;
	unsigned long s = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || s < 1 || s > ORPHAN_AFTER_MAX_S)
		argp_error(state, "--orphan-after '%s': give whole seconds from 1 to %d", text,
			ORPHAN_AFTER_MAX_S);
	o->orphan_after_ms = (uint32_t)s * 1000;
}

static void parse_addr(const char *text, bool data, struct smv_addr *list, size_t max, size_t *nr,
	struct argp_state *state)
{
	struct smv_error err;

	if (*nr == max)
		argp_error(state, "more than %zu addresses of a kind", max);
	if (smv_addr_parse(text, data, &list[*nr], &err) < 0)
		usage_error(state, &err);
	if (strcmp(list[*nr].transport, "mem") == 0)
		argp_error(state, "--data '%s': 'mem' stays within one process; use tcp:HOST:PORT",
			text);
	(*nr)++;
}

static void check_complete(const struct options *o, struct argp_state *state)
{
	struct smv_error err;

	if (!o->name || !o->memory_bytes || !o->nr_listen || !o->nr_data)
		argp_error(state, "%s is missing",
			!o->name           ? "--name NAME"
			: !o->memory_bytes ? "--memory SIZE"
			: !o->nr_listen    ? "--listen ADDR"
					   : "--data ADDR");
	if (o->hugepage_bytes &&
		smv_arena_check_hugepages(o->memory_bytes, o->hugepage_bytes, &err) < 0)
		usage_error(state, &err);
	for (size_t i = 0; i < o->nr_listen; i++)
		if (smv_insecure_check(&o->listen[i], o->insecure, &err) < 0)
			usage_error(state, &err);
	for (size_t i = 0; i < o->nr_data; i++)
		if (smv_insecure_check(&o->data[i], o->insecure, &err) < 0)
			usage_error(state, &err);
	if (o->has_metrics && smv_insecure_check(&o->metrics, o->insecure, &err) < 0)
		usage_error(state, &err);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	struct smv_error err;

	switch (key) {
	case OPT_NAME:
		if (smv_arena_check_name(arg, &err) < 0)
			usage_error(state, &err);
		o->name = arg;
		return 0;
	case OPT_MEMORY:
		parse_size(arg, o, state);
		return 0;
	case OPT_HUGEPAGES:
		parse_hugepages(arg, o, state);
		return 0;
	case OPT_LISTEN:
		parse_addr(arg, false, o->listen, LISTEN_MAX, &o->nr_listen, state);
		return 0;
	case OPT_DATA:
		parse_addr(arg, true, o->data, SMV_DATA_LISTENERS_MAX, &o->nr_data, state);
		return 0;
	case OPT_STATE_DIR:
		o->state_dir = arg;
		return 0;
	case OPT_ORPHAN_AFTER:
		parse_orphan_after(arg, o, state);
		return 0;
	case OPT_DISCARD:
		o->discard = true;
		return 0;
	case OPT_METRICS:
		if (smv_metrics_addr_parse(arg, &o->metrics, &err) < 0)
			usage_error(state, &err);
		o->has_metrics = true;
		return 0;
	case OPT_INSECURE:
		o->insecure = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected argument '%s'", arg);
		return EINVAL;
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
	.args_doc = "--name NAME --memory SIZE --listen ADDR --data ADDR",
	.doc = "Lend memory of this host to the pagers of other hosts.",
	.children = children};

static int start_data(struct daemon *d, const struct options *o, struct smv_error *err)
{
	int rc = smv_data_create(d->table, &d->data, err);

	for (size_t i = 0; i < o->nr_data && rc == 0; i++)
		rc = smv_data_listen(d->data, &o->data[i], err);
	return rc;
}

static int listen_control(struct daemon *d, const struct smv_addr *addr, struct smv_error *err)
{
	struct smv_addr bound, named = *addr;
	size_t len = strlen(d->control);
	char text[SMV_ADDR_MAX];
	int rc = smv_rpc_server_listen(d->rpc, addr, &bound, err);

	if (rc < 0)
		return rc;
	named.port = bound.port;
	snprintf(d->control + len, sizeof(d->control) - len, " %s",
		smv_addr_format(&named, text, sizeof(text)));
	return 0;
}

static int start_rpc(struct daemon *d, const struct options *o, struct smv_error *err)
{
	int rc = smv_rpc_server_create(RPC_WORKERS, &d->rpc);

	d->service = (struct smv_mem_server){.name = o->name,
		.arena = d->arena,
		.table = d->table,
		.data = d->data,
		.started_ns = smv_now_ns()};
	if (rc == 0)
		rc = smv_mem_server_add(d->rpc, &d->service);
	if (rc < 0)
		return smv_fail(err, SMV_INTERNAL, "rpc", NULL, "cannot set up the RPC server: %s",
			strerror(-rc));
	for (size_t i = 0; i < o->nr_listen && rc == 0; i++)
		rc = listen_control(d, &o->listen[i], err);
	if (rc < 0)
		return rc;
	rc = smv_rpc_server_start(d->rpc);
	return rc == 0 ? 0
		       : smv_fail(err, SMV_INTERNAL, "rpc", NULL, "cannot start the RPC server: %s",
				 strerror(-rc));
}

/* Beside the control server, of whose service it tells. */
static int start_metrics(struct daemon *d, const struct options *o, struct smv_error *err)
{
	return o->has_metrics ? smv_metrics_serve(&o->metrics, smv_mem_server_collect, &d->service,
					&d->metrics, &d->metrics_addr, err)
			      : 0;
}

static void log_ready(const struct daemon *d, const struct options *o)
{
	char size[32], page[32], huge[64] = "", data[1000] = "";
	char metrics[SMV_ADDR_MAX + 20] = "", text[SMV_ADDR_MAX];
	size_t nr, len = 0;
	const char *const *addresses = smv_data_addresses(d->data, &nr);

	for (size_t i = 0; i < nr && len < sizeof(data); i++)
		len += (size_t)snprintf(data + len, sizeof(data) - len, " %s", addresses[i]);
	if (o->hugepage_bytes)
		snprintf(huge, sizeof(huge), " of %s pages",
			smv_format_size(o->hugepage_bytes, page, sizeof(page)));
	else
		smv_host_warn_of_swap(); /* huge pages are never swapped */
	if (o->has_metrics)
		snprintf(metrics, sizeof(metrics), ", metrics %s",
			smv_addr_format(&d->metrics_addr, text, sizeof(text)));
	smv_log_info("ready: %s lends %s%s; control%s, data%s%s", o->name,
		smv_format_size(o->memory_bytes, size, sizeof(size)), huge, d->control, data,
		metrics);
}

/* A lease that was taken over must be reached by its transport. */
static int check_leases(struct daemon *d, struct smv_error *err)
{
	const struct smv_transport *transport;
	CLEANUP_FREE struct smv_lease_info *infos = NULL;
	size_t nr = 0;
	int rc = smv_lease_list(d->table, &infos, &nr);

	if (rc < 0) {
		infos = NULL;
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	}
	for (size_t i = 0; i < nr; i++) {
		if (rc == 0 && smv_lease_is_live(infos[i].state) &&
			smv_data_find_transport(d->data, smv_transport_name(infos[i].transport),
				&transport, err) < 0)
			rc = smv_fail(err, SMV_REFUSED, "take-over",
				"Start it with the same --data addresses as before.",
				"lease %016" PRIx64
				" of '%s' is reached by '%s', of which there is no --data address",
				infos[i].id, infos[i].owner,
				smv_transport_name(infos[i].transport));
		smv_lease_info_clear(&infos[i]);
	}
	return rc;
}

static int start(struct daemon *d, const struct options *o, struct smv_error *err)
{
	int rc = o->discard ? smv_arena_discard(o->name, o->state_dir, err) : 0;

	if (rc == 0)
		rc = smv_arena_create(
			o->name, o->state_dir, o->memory_bytes, o->hugepage_bytes, &d->arena, err);
	for (size_t i = 0; i < o->nr_data && rc == 0; i++)
		smv_data_prepare(&o->data[i]);
	if (rc == 0)
		rc = smv_lease_table_create(d->arena, o->orphan_after_ms, &d->table, err);
	if (rc == 0)
		rc = start_data(d, o, err);
	if (rc == 0)
		rc = check_leases(d, err);
	if (rc == 0)
		rc = start_rpc(d, o, err);
	return rc == 0 ? start_metrics(d, o, err) : rc;
}

/* No lease is made any more, nor ends by itself: first, because the RPC server waits for calls that
 * are preparing one. Then from the top down: nobody asks, no peer can reach the memory, it goes
 * unless it is leased. */
static void stop(struct daemon *d)
{
	if (d->table)
		smv_lease_table_stop(d->table);
	if (d->rpc)
		smv_rpc_server_destroy(d->rpc, SHUTDOWN_GRACE_MS);
	smv_metrics_server_destroy(d->metrics);
	smv_data_destroy(d->data);
	smv_lease_table_destroy(d->table);
	smv_arena_destroy(d->arena);
}

static void wait_for_signal(const sigset_t *set)
{
	int sig = 0;

	while (sigwait(set, &sig) != 0)
		;
	smv_log_info("ending: %s", strsignal(sig));
}

int main(int argc, char **argv)
{
	struct options options = {0};
	struct daemon daemon = {0};
	struct smv_error err = {0};
	sigset_t set;
	int rc;

	smv_program_init();
	argp_parse(&argp, argc, argv, 0, NULL, &options);
	/* Blocked before any thread starts, so that all inherit it and sigwait() gets them. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	smv_rpc_init();
	rc = start(&daemon, &options, &err);
	if (rc == 0) {
		log_ready(&daemon, &options);
		wait_for_signal(&set);
	} else {
		smv_error_print(&err);
	}
	stop(&daemon);
	smv_rpc_shutdown();
	if (rc == 0)
		return EXIT_SUCCESS;
	return err.code == SMV_INVALID ? SMV_EXIT_USAGE : EXIT_FAILURE;
}
