/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/plan.h"

#include "common/cleanup.h"
#include "common/units.h"
#include "migrator/dest.h"
#include "migrator/estimate.h"
#include "smemv/v1/pager.pb-c.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Of a link whose speed nobody tells: 10 Gbit/s. */
#define LINK_GUESS 1.25e9

struct plan {
	const struct smv_run_options *o;
	struct smv_source source;
	struct smv_dest dest;
	json_t *refusals;
	Smemv__V1__PlanMigrationResponse *answer; /* NULL: none */
	struct smv_sample sample;
	struct smv_estimate estimate;
	bool estimated;
	double link_bytes_per_s;
	char link_source[160];
};

static void add_refusal(
	struct plan *p, const char *where, const char *code, const char *message, const char *hint)
{
	json_array_append_new(p->refusals, json_pack("{s:s, s:s, s:s, s:s}", "where", where, "code",
						   code, "message", message, "hint", hint));
}

static void add_error(struct plan *p, const char *where, const struct smv_error *err)
{
	add_refusal(p, where, err->reason, err->message, err->hint);
}

static void look_at_source(struct plan *p)
{
	struct smv_refusals list = {0};
	struct smv_error err;

	if (smv_source_refusals(&p->o->source, &p->source, &list, &err) < 0)
		add_error(p, "source", &err);
	for (size_t i = 0; i < list.nr; i++)
		add_error(p, "source", &list.list[i]);
	smv_refusals_free(&list);
}

static void ask_main_host(struct plan *p)
{
	char id[33];
	struct smv_error err;
	struct smv_prepare prepare = {.vm = p->o->to_vm,
		.ram = &p->source.ram,
		.budget_bytes = p->o->budget_bytes,
		.min_budget_bytes = p->o->min_budget_bytes,
		.sub_hosts = p->o->sub_hosts,
		.nr_sub_hosts = p->o->nr_sub_hosts,
		.transport = p->o->transport,
		.insecure = p->o->insecure,
		.loss_policy = p->o->loss_policy};

	if (smv_dest_new_id(id, &err) < 0 || smv_dest_open(&p->o->to, id, &p->dest, &err) < 0 ||
		smv_dest_plan(&p->dest, &prepare, &p->answer, &err) < 0) {
		add_error(p, "main host", &err);
		return;
	}
	for (size_t i = 0; i < p->answer->n_refusals; i++) {
		const Smemv__V1__Refusal *r = p->answer->refusals[i];

		add_refusal(p, r->where, r->code, r->message, r->hint);
	}
}

/* --- the link ----------------------------------------------------------------------------- */

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
	if (!a || a->sa_family != b->sa_family)
		return false;
	if (a->sa_family == AF_INET)
		return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr ==
		       ((const struct sockaddr_in *)(const void *)b)->sin_addr.s_addr;
	return memcmp(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr,
		       &((const struct sockaddr_in6 *)(const void *)b)->sin6_addr,
		       sizeof(struct in6_addr)) == 0;
}

/* The interface that leads to a host: its name, or nothing. */
static void interface_to(const struct smv_addr *to, char *name, size_t len)
{
	struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *found = NULL;
	struct sockaddr_storage ours;
	socklen_t ours_len = sizeof(ours);
	struct ifaddrs *all = NULL;
	CLEANUP_CLOSE int fd = -1;
	char port[8];

	name[0] = '\0';
	snprintf(port, sizeof(port), "%u", to->port);
	if (to->is_unix || getaddrinfo(to->host, port, &hints, &found) != 0)
		return;
	fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
		getsockname(fd, (struct sockaddr *)&ours, &ours_len) == 0 && getifaddrs(&all) == 0)
		for (struct ifaddrs *i = all; i && !name[0]; i = i->ifa_next)
			if (same_address(i->ifa_addr, (struct sockaddr *)&ours))
				snprintf(name, len, "%s", i->ifa_name);
	if (all)
		freeifaddrs(all);
	freeaddrinfo(found);
}

static void find_link_speed(struct plan *p)
{
	CLEANUP_FILE FILE *file = NULL;
	char name[64], path[128];
	long mbit = 0;

	if (p->o->bandwidth) {
		p->link_bytes_per_s = (double)p->o->bandwidth;
		snprintf(p->link_source, sizeof(p->link_source), "--bandwidth");
		return;
	}
	interface_to(&p->o->to, name, sizeof(name));
	snprintf(path, sizeof(path), "/sys/class/net/%s/speed", name);
	file = name[0] ? fopen(path, "re") : NULL;
	if (file && fscanf(file, "%ld", &mbit) == 1 && mbit > 0) {
		p->link_bytes_per_s = (double)mbit * 1e6 / 8;
		snprintf(p->link_source, sizeof(p->link_source), "the speed of %s, %ld Mbit/s",
			name, mbit);
		return;
	}
	p->link_bytes_per_s = LINK_GUESS;
	snprintf(p->link_source, sizeof(p->link_source),
		"a guess, 10 Gbit/s: nothing tells the speed of the link");
}

/* --- the estimate ------------------------------------------------------------------------- */

/* The source's interrupted(). */
static int interrupted(void *unused, struct smv_error *err)
{
	(void)unused;
	return smv_run_interrupted(err);
}

static void estimate(struct plan *p)
{
	struct smv_converge wishes = smv_run_wishes(p->o);
	uint64_t credit = p->answer ? p->answer->hot_credit_pages : 0;
	struct smv_error err;

	if (json_array_size(p->refusals) || !p->answer)
		return;
	p->source.interrupted = interrupted;
	if (smv_sample_take(&p->source, credit, &p->sample, &err) < 0) {
		add_error(p, "source", &err);
		return;
	}
	find_link_speed(p);
	smv_estimate(&p->sample, credit, p->link_bytes_per_s, &wishes, &p->estimate);
	p->estimated = true;
}

/* What becomes of the VM, by its loss policy, when one sub-host loses its memory. */
static const char *loss_effect(enum smv_loss_policy policy)
{
	switch (policy) {
	case SMV_LOSS_STALL:
		break;
	case SMV_LOSS_POISON:
		return " poisons the pages that were there: who touches one gets SIGBUS, which "
		       "KVM makes a machine check of the guest and which otherwise ends QEMU; "
		       "while the host is only away they wait";
	case SMV_LOSS_KILL:
		return " ends the VM when it touches a page that was there; while the host is only "
		       "away it waits";
	}
	return " stalls it until that host is back with its data";
}

/* Which failures would hurt the VM afterwards, one sentence each. */
static json_t *failures(const struct plan *p)
{
	char text[1200] = "with redundancy none, losing ";
	json_t *list = json_array();
	size_t n = strlen(text), several = 0;

	for (size_t i = 0; p->answer && i < p->answer->n_sub_hosts; i++) {
		const Smemv__V1__PlannedSubHost *h = p->answer->sub_hosts[i];

		if (!h->share_bytes || n >= sizeof(text) - 300)
			continue;
		n += (size_t)snprintf(
			text + n, sizeof(text) - n, "%s%.200s", several++ ? ", " : "", h->address);
	}
	if (several == 0)
		return list;
	/* "any of A, B" reads right for several only. */
	if (several > 1) {
		memmove(text + 36, text + 29, n - 28);
		memcpy(text + 29, "any of ", 7);
		n += 7;
	}
	snprintf(text + n, sizeof(text) - n, "%s", loss_effect(p->o->loss_policy));
	json_array_append_new(list, json_string(text));
	json_array_append_new(
		list, json_string("losing the main host loses the VM, as with any VM on one host"));
	return list;
}

/* --- telling ------------------------------------------------------------------------------ */

static json_t *integer(uint64_t v)
{
	return json_integer((json_int_t)v);
}

static json_t *sub_hosts(const struct plan *p)
{
	json_t *list = json_array();

	for (size_t i = 0; p->answer && i < p->answer->n_sub_hosts; i++) {
		const Smemv__V1__PlannedSubHost *h = p->answer->sub_hosts[i];

		json_array_append_new(
			list, json_pack("{s:s, s:s, s:o, s:o}", "address", h->address, "name",
				      h->name, "free_bytes", integer(h->free_bytes), "share_bytes",
				      integer(h->share_bytes)));
	}
	return list;
}

static json_t *plan_json(const struct plan *p)
{
	const struct smv_estimate *e = &p->estimate;
	json_t *root = json_pack("{s:i, s:s, s:s, s:b, s:O, s:o, s:o}", "schema_version", 1, "vm",
		p->o->vm, "to_vm", p->o->to_vm, "feasible", json_array_size(p->refusals) == 0,
		"refusals", p->refusals, "sub_hosts", sub_hosts(p), "failures", failures(p));

	if (p->answer) {
		json_object_set_new(root, "room_bytes", integer(p->answer->room_bytes));
		json_object_set_new(root, "transport", json_string(p->answer->transport));
		json_object_set_new(
			root, "transport_reason", json_string(p->answer->transport_reason));
	}
	if (!p->estimated)
		return root;
	json_object_set_new(root, "pages",
		json_pack("{s:o, s:o, s:o, s:o, s:o}", "total", integer(p->sample.pages_total),
			"populated", integer(p->sample.pages_populated), "hot",
			integer(e->pages_hot), "cold", integer(e->pages_cold), "zero",
			integer(e->pages_zero)));
	json_object_set_new(root, "expected",
		json_pack("{s:o, s:o, s:f, s:f, s:i, s:b, s:f, s:f}", "bytes_to_main",
			integer(e->bytes_to_main), "bytes_to_sub_hosts",
			integer(e->bytes_to_sub_hosts), "total_time_ms", e->total_ms, "downtime_ms",
			e->downtime_ms, "rounds", (int)e->rounds, "converges", e->converges,
			"dirty_bytes_per_s", p->sample.dirty_pages_per_s * SMV_PAGE_SIZE,
			"faults_per_s", e->faults_per_s));
	json_object_set_new(root, "rate",
		json_pack("{s:f, s:s}", "bytes_per_s", p->link_bytes_per_s, "source",
			p->link_source));
	return root;
}

static void print_refusals(const json_t *refusals)
{
	const json_t *r;
	size_t i;

	json_array_foreach (refusals, i, r) {
		const char *hint = json_string_value(json_object_get(r, "hint"));

		printf("  %s: %s\n", json_string_value(json_object_get(r, "where")),
			json_string_value(json_object_get(r, "message")));
		if (hint && hint[0])
			printf("      %s\n", hint);
	}
}

static void print_pages(const char *what, uint64_t pages)
{
	char size[32];

	printf("  %-28s %10lu pages  %10s\n", what, pages,
		smv_format_size(pages * SMV_PAGE_SIZE, size, sizeof(size)));
}

static void print_estimate(const struct plan *p)
{
	const struct smv_estimate *e = &p->estimate;
	char a[32], b[32];

	printf("Expected, from watching the VM for two seconds:\n");
	print_pages("hot, to the main host", e->pages_hot);
	print_pages("cold, to the sub-hosts", e->pages_cold);
	print_pages("zero, to nobody", e->pages_zero);
	printf("  %s to the main host, %s to the sub-hosts\n",
		smv_format_size(e->bytes_to_main, a, sizeof(a)),
		smv_format_size(e->bytes_to_sub_hosts, b, sizeof(b)));
	printf("  %.1f s in %u rounds, downtime %.0f ms%s\n", e->total_ms / 1000, e->rounds,
		e->downtime_ms,
		e->converges                ? ""
		: p->o->stop_on_no_converge ? ": more than --max-downtime, which is let pass"
					    : ": more than --max-downtime, so it would fail");
	printf("  the VM dirties %s/s; at first about %.0f faults/s need a page from a sub-host\n",
		smv_format_size(
			(uint64_t)(p->sample.dirty_pages_per_s * SMV_PAGE_SIZE), a, sizeof(a)),
		e->faults_per_s);
	printf("  at %s/s: %s\n", smv_format_size((uint64_t)p->link_bytes_per_s, a, sizeof(a)),
		p->link_source);
}

static void print_sub_hosts(const struct plan *p)
{
	char a[32], b[32];

	if (!p->answer)
		return;
	printf("Sub-hosts, %s in all%s%s:\n", smv_format_size(p->answer->room_bytes, a, sizeof(a)),
		p->answer->transport[0] ? " over " : "", p->answer->transport);
	for (size_t i = 0; i < p->answer->n_sub_hosts; i++) {
		const Smemv__V1__PlannedSubHost *h = p->answer->sub_hosts[i];

		printf("  %-36s %10s of %s free\n", h->address,
			smv_format_size(h->share_bytes, a, sizeof(a)),
			smv_format_size(h->free_bytes, b, sizeof(b)));
	}
}

static void print(const struct plan *p)
{
	CLEANUP_JSON json_t *hurt = failures(p);
	const json_t *sentence;
	size_t i;

	if (json_array_size(p->refusals)) {
		printf("VM '%s' would not be migrated to '%s':\n", p->o->vm, p->o->to_vm);
		print_refusals(p->refusals);
	} else {
		printf("VM '%s' can be migrated to '%s'.\n", p->o->vm, p->o->to_vm);
	}
	print_sub_hosts(p);
	if (p->estimated)
		print_estimate(p);
	if (json_array_size(hurt))
		printf("Afterwards:\n");
	json_array_foreach (hurt, i, sentence)
		printf("  %s\n", json_string_value(sentence));
}

int smv_plan(const struct smv_run_options *options, bool json)
{
	struct plan p = {.o = options, .refusals = json_array()};
	bool refused;

	p.source.uffd = p.source.pagemap_fd = -1;
	look_at_source(&p);
	ask_main_host(&p);
	estimate(&p);
	refused = json_array_size(p.refusals) > 0;
	if (json) {
		CLEANUP_JSON json_t *root = plan_json(&p);

		json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
		putchar('\n');
	} else {
		print(&p);
	}
	smv_rpc_message_free((ProtobufCMessage *)p.answer);
	smv_source_close(&p.source);
	smv_dest_close(&p.dest);
	json_decref(p.refusals);
	return refused ? SMV_NOT_BEGUN : SMV_COMPLETED;
}
