/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of smemv-bench. */
#include "bench/bench.h"

#include "client/pager.h"
#include "common/cleanup.h"
#include "common/program.h"
#include "common/units.h"

#include <string.h>

#define DEFAULT_SECONDS 5
#define DEFAULT_DEPTH 128
#define MAX_DEPTH 4096
#define MAX_THREADS 256
#define HUGE_PAGE (2 * SMV_MIB)
#define MAX_PAGES (1u << 24)

/* argp's keys: above all characters, bit i of enum smv_bench_opt is KEY(i). */
#define KEY(bit) (256 + __builtin_ctz(bit))

struct parsing {
	const struct smv_bench_command *commands;
	struct smv_bench_options *o;
	const char *listen, *server, *transport;
	unsigned int given; /* bits of enum smv_bench_opt */
};

static const struct argp_option option_table[] = {
	{"server", KEY(SMV_BENCH_SERVER), "ADDR", 0,
		"data address of a 'smemv-bench serve', [TRANSPORT:]HOST:PORT", 1},
	{"listen", KEY(SMV_BENCH_LISTEN), "ADDR", 0,
		"data address to serve at; a measurement serves itself there", 1},
	{"transport", KEY(SMV_BENCH_TRANSPORT), "NAME", 0,
		"transport; without an address it is served on loopback in this process", 1},
	{"insecure", KEY(SMV_BENCH_INSECURE), NULL, 0, "allow plaintext outside loopback", 1},
	{"op", KEY(SMV_BENCH_OP), "read|write", 0, "operation (default read)", 2},
	{"size", KEY(SMV_BENCH_SIZE), "SIZE", 0,
		"bytes of one request (default 4K); serve, register, evict: of the memory", 2},
	{"depth", KEY(SMV_BENCH_DEPTH), "N", 0, "requests in flight per connection (default 128)",
		2},
	{"connections", KEY(SMV_BENCH_CONNECTIONS), "N", 0,
		"connections, each with a thread (default 1)", 2},
	{"iterations", KEY(SMV_BENCH_ITERATIONS), "N", 0,
		"requests per connection (default 1000; bandwidth, iops: 5000)", 2},
	{"seconds", KEY(SMV_BENCH_SECONDS), "S", 0, "measure for S seconds", 2},
	{"poll", KEY(SMV_BENCH_POLL), NULL, 0, "poll for completions (default)", 2},
	{"events", KEY(SMV_BENCH_EVENTS), NULL, 0, "sleep for completions", 2},
	{"chunk", KEY(SMV_BENCH_CHUNK), "SIZE", 0, "memory registered at once (default 64M)", 3},
	{"hugepages", KEY(SMV_BENCH_HUGEPAGES), NULL, 0, "use huge pages", 3},
	{"pages", KEY(SMV_BENCH_PAGES), "N", 0, "pages to fault in (default 10000)", 3},
	{"budget", KEY(SMV_BENCH_BUDGET), "SIZE", 0, "local memory (default 64M)", 3},
	{"threads", KEY(SMV_BENCH_THREADS), "N", 0, "threads (default 1)", 3},
	{"json", KEY(SMV_BENCH_JSON), NULL, 0, "print one JSON object", 4},
	{"histogram", KEY(SMV_BENCH_HISTOGRAM), NULL, 0, "print the histogram, too", 4},
	{0},
};

static const char *option_name(unsigned int bit)
{
	for (const struct argp_option *opt = option_table; opt->name; opt++)
		if (opt->key == KEY(bit))
			return opt->name;
	return "?";
}

static uint64_t parse_number(
	const char *name, const char *text, uint64_t max, struct argp_state *state)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n < 1 || n > max)
		argp_error(state, "--%s '%s': give a whole number from 1 to %llu", name, text,
			(unsigned long long)max);
	return n;
}

static double parse_seconds(const char *text, struct argp_state *state)
{
	char *end;
	double s = strtod(text, &end);

	if (*text < '0' || *text > '9' || *end || !(s >= 0.01 && s <= 86400))
		argp_error(state, "--seconds '%s': give a number from 0.01 to 86400", text);
	return s;
}

static uint64_t parse_bytes(const char *name, const char *text, struct argp_state *state)
{
	uint64_t bytes = 0;

	if (smv_parse_size(text, &bytes) < 0 || bytes == 0 || bytes > 1ull << 46)
		argp_error(state, "--%s '%s': give a size such as 4K, 64M or 1G", name, text);
	return bytes;
}

static void list_commands(const struct smv_bench_command *commands, char *text, size_t len)
{
	size_t used = 0;

	text[0] = '\0';
	for (const struct smv_bench_command *c = commands; c->name && used < len; c++)
		used += (size_t)snprintf(text + used, len - used, "%s%s",
			c == commands ? ""
			: c[1].name   ? ", "
				      : " and ",
			c->name);
}

static void parse_command(struct parsing *p, const char *word, struct argp_state *state)
{
	const struct smv_bench_command *c = p->commands;
	char known[200];

	if (p->o->command)
		argp_error(state, "unexpected argument '%s'", word);
	while (c->name && strcmp(c->name, word) != 0)
		c++;
	if (!c->name) {
		list_commands(p->commands, known, sizeof(known));
		argp_error(state, "unknown command '%s'; there are %s", word, known);
	}
	p->o->command = c;
}

/* Which data address is meant; --transport stands for a prefix that the text does not have. */
static void resolve_address(struct parsing *p, struct argp_state *state)
{
	struct smv_bench_options *o = p->o;
	const char *text = p->server ? p->server : p->listen ? p->listen : "127.0.0.1:0";
	char named[SMV_ADDR_MAX + 20];
	struct smv_error err;

	if (p->server && p->listen)
		argp_error(state, "--server and --listen exclude each other");
	if (p->transport && !smv_transport_find(p->transport))
		argp_error(state, "--transport '%s': not built in", p->transport);
	o->own_server = !p->server;
	if (smv_addr_parse(text, true, &o->addr, &err) < 0)
		argp_error(state, "%s\n  %s", err.message, err.hint);
	if (!o->addr.transport[0]) {
		if (!p->transport)
			argp_error(state, "which transport? Write TRANSPORT:HOST:PORT or add "
					  "--transport NAME");
		snprintf(named, sizeof(named), "%s:%s", p->transport, text);
		if (smv_addr_parse(named, true, &o->addr, &err) < 0)
			argp_error(state, "%s\n  %s", err.message, err.hint);
	}
	if (p->transport && strcmp(p->transport, o->addr.transport) != 0)
		argp_error(state, "--transport %s, but the address is one of transport %s",
			p->transport, o->addr.transport);
	if (smv_insecure_check(&o->addr, o->insecure, &err) < 0)
		argp_error(state, "%s\n  %s", err.message, err.hint);
	o->transport = smv_transport_find(o->addr.transport);
	if (!o->transport)
		argp_error(state, "transport '%s' is not built in", o->addr.transport);
}

static void check_sizes(const struct smv_bench_options *o, struct argp_state *state)
{
	unsigned int accepts = o->command->accepts;
	char a[32], b[32];

	if (accepts & SMV_BENCH_OP && o->size_bytes > SMV_REQUEST_MAX)
		argp_error(state, "--size: the largest request has %s",
			smv_format_size(SMV_REQUEST_MAX, a, sizeof(a)));
	if (accepts & SMV_BENCH_CHUNK && o->size_bytes % SMV_PAGE_SIZE)
		argp_error(state, "--size: give a multiple of %u bytes", SMV_PAGE_SIZE);
	if (accepts & SMV_BENCH_CHUNK && o->chunk_bytes % SMV_PAGE_SIZE)
		argp_error(state, "--chunk: give a multiple of %u bytes", SMV_PAGE_SIZE);
	if (o->hugepages && (o->size_bytes | o->chunk_bytes) % HUGE_PAGE)
		argp_error(state, "--hugepages: give --size and --chunk in multiples of %s",
			smv_format_size(HUGE_PAGE, a, sizeof(a)));
	if (!(accepts & SMV_BENCH_BUDGET))
		return;
	if (o->budget_bytes < SMV_BUDGET_MIN)
		argp_error(state, "--budget: the smallest is %s",
			smv_format_size(SMV_BUDGET_MIN, a, sizeof(a)));
	if (o->size_bytes <= o->budget_bytes)
		argp_error(state,
			"--size %s must be more than the budget of %s, else nothing is "
			"evicted",
			smv_format_size(o->size_bytes, a, sizeof(a)),
			smv_format_size(o->budget_bytes, b, sizeof(b)));
}

static void check_complete(struct parsing *p, struct argp_state *state)
{
	struct smv_bench_options *o = p->o;
	char known[200];

	if (!o->command) {
		list_commands(p->commands, known, sizeof(known));
		argp_error(state, "which command? There are %s", known);
		return;
	}
	for (unsigned int rest = p->given & ~o->command->accepts; rest; rest &= rest - 1)
		argp_error(state, "'%s' has no option --%s", o->command->name,
			option_name(rest & -rest));
	if (p->given & SMV_BENCH_ITERATIONS && p->given & SMV_BENCH_SECONDS)
		argp_error(state, "--iterations and --seconds exclude each other");
	if (p->given & SMV_BENCH_POLL && p->given & SMV_BENCH_EVENTS)
		argp_error(state, "--poll and --events exclude each other");
	if (!(p->given & SMV_BENCH_SIZE))
		o->size_bytes = o->command->default_bytes;
	if (!(p->given & (SMV_BENCH_ITERATIONS | SMV_BENCH_SECONDS))) {
		o->iterations = o->command->default_iterations;
		o->seconds = DEFAULT_SECONDS;
	}
	check_sizes(o, state);
	resolve_address(p, state);
}

static void parse_value(
	struct parsing *p, unsigned int bit, const char *arg, struct argp_state *state)
{
	struct smv_bench_options *o = p->o;
	const char *name = option_name(bit);

	switch ((enum smv_bench_opt)bit) {
	case SMV_BENCH_LISTEN:
		p->listen = arg;
		break;
	case SMV_BENCH_SERVER:
		p->server = arg;
		break;
	case SMV_BENCH_TRANSPORT:
		p->transport = arg;
		break;
	case SMV_BENCH_OP:
		if (strcmp(arg, "read") != 0 && strcmp(arg, "write") != 0)
			argp_error(state, "--op '%s': choose read or write", arg);
		o->op = strcmp(arg, "read") == 0 ? SMV_OP_READ : SMV_OP_WRITE;
		break;
	case SMV_BENCH_SIZE:
		o->size_bytes = parse_bytes(name, arg, state);
		break;
	case SMV_BENCH_CHUNK:
		o->chunk_bytes = parse_bytes(name, arg, state);
		break;
	case SMV_BENCH_BUDGET:
		o->budget_bytes = parse_bytes(name, arg, state);
		break;
	case SMV_BENCH_DEPTH:
		o->depth = (unsigned int)parse_number(name, arg, MAX_DEPTH, state);
		break;
	case SMV_BENCH_CONNECTIONS:
		o->connections = (unsigned int)parse_number(name, arg, MAX_THREADS, state);
		break;
	case SMV_BENCH_THREADS:
		o->threads = (unsigned int)parse_number(name, arg, MAX_THREADS, state);
		break;
	case SMV_BENCH_ITERATIONS:
		o->iterations = parse_number(name, arg, 1ull << 40, state);
		break;
	case SMV_BENCH_PAGES:
		o->nr_pages = parse_number(name, arg, MAX_PAGES, state);
		break;
	case SMV_BENCH_SECONDS:
		o->seconds = parse_seconds(arg, state);
		break;
	case SMV_BENCH_POLL:
		break;
	case SMV_BENCH_EVENTS:
		o->events = true;
		break;
	case SMV_BENCH_HUGEPAGES:
		o->hugepages = true;
		break;
	case SMV_BENCH_JSON:
		o->json = true;
		break;
	case SMV_BENCH_HISTOGRAM:
		o->histogram = true;
		break;
	case SMV_BENCH_INSECURE:
		o->insecure = true;
		break;
	}
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct parsing *p = state->input;

	if (key >= KEY(SMV_BENCH_LISTEN) && key <= KEY(SMV_BENCH_INSECURE)) {
		p->given |= 1u << (key - 256);
		parse_value(p, 1u << (key - 256), arg, state);
		return 0;
	}
	switch (key) {
	case ARGP_KEY_ARG:
		parse_command(p, arg, state);
		return 0;
	case ARGP_KEY_END:
		check_complete(p, state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* The text of --help names the commands of the table. */
static char *add_commands(int key, const char *text, void *input)
{
	const struct parsing *p = input;
	char *help = NULL;
	size_t len;
	FILE *f;

	if (key != ARGP_KEY_HELP_POST_DOC || !p || !(f = open_memstream(&help, &len)))
		return (char *)text;
	fputs("Commands:\n", f);
	for (const struct smv_bench_command *c = p->commands; c->name; c++)
		fprintf(f, "  %-10s %s\n", c->name, c->help);
	fclose(f);
	return help;
}

void smv_bench_parse(int argc, char **argv, const struct smv_bench_command *commands,
	struct smv_bench_options *o)
{
	static const struct argp_child children[] = {{&smv_program_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {.options = option_table,
		.parser = parse,
		.args_doc = "COMMAND",
		.doc = "Measure the data plane and the pager.\v ",
		.children = children,
		.help_filter = add_commands};
	struct parsing p = {.commands = commands, .o = o};

	*o = (struct smv_bench_options){.chunk_bytes = 64 * SMV_MIB,
		.budget_bytes = 64 * SMV_MIB,
		.depth = DEFAULT_DEPTH,
		.connections = 1,
		.threads = 1,
		.nr_pages = 10000};
	argp_parse(&argp, argc, argv, 0, NULL, &p);
}
