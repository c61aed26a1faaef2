/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/report.h"

#include "common/cleanup.h"
#include "common/units.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const char *smv_outcome_name(enum smv_outcome outcome)
{
	switch (outcome) {
	case SMV_COMPLETED:
		return "completed";
	case SMV_STOPPED:
		return "cancelled";
	case SMV_NOT_BEGUN:
		return "refused";
	case SMV_DOUBTFUL:
		return "unknown";
	case SMV_FAILED:
		break;
	}
	return "failed";
}

int smv_outcome_parse(const char *name, enum smv_outcome *outcome)
{
	static const enum smv_outcome all[] = {
		SMV_COMPLETED, SMV_FAILED, SMV_STOPPED, SMV_NOT_BEGUN, SMV_DOUBTFUL};

	for (size_t i = 0; i < SMV_ARRAY_SIZE(all); i++) {
		if (strcmp(smv_outcome_name(all[i]), name) == 0) {
			*outcome = all[i];
			return 0;
		}
	}
	return -EINVAL;
}

static json_t *ms(double v)
{
	/* Microseconds are all that the clock is good for. */
	return v < 0 ? json_null() : json_real((double)(int64_t)(v * 1000) / 1000);
}

static json_t *integer(uint64_t v)
{
	return json_integer((json_int_t)v);
}

/* Texts from other programs may hold anything; JSON is UTF-8. */
json_t *smv_json_text(const char *s)
{
	json_t *string = json_string(s);
	char copy[700];
	size_t n;

	if (string)
		return string;
	for (n = 0; s[n] && n < sizeof(copy) - 1; n++)
		copy[n] = s[n] & 0x80 ? '?' : s[n];
	copy[n] = '\0';
	return json_string(copy);
}

json_t *smv_error_json(const struct smv_error *err)
{
	if (err->code == SMV_OK)
		return json_null();
	return json_pack("{s:o, s:o, s:o}", "code", smv_json_text(err->reason), "message",
		smv_json_text(err->message), "hint", smv_json_text(err->hint));
}

json_t *smv_result_json(const struct smv_result *r)
{
	json_t *root = json_object();
	json_t *rounds = json_array(), *hosts = json_array();

	for (size_t i = 0; i < r->nr_rounds; i++)
		json_array_append_new(rounds,
			json_pack("{s:o, s:o, s:o, s:o, s:i}", "pages", integer(r->rounds[i].pages),
				"bytes", integer(r->rounds[i].bytes), "ms", ms(r->rounds[i].ms),
				"expected_downtime_ms", ms(r->rounds[i].expected_downtime_ms),
				"throttle_percent", (int)r->rounds[i].throttle_percent));
	for (unsigned int h = 0; h < r->nr_sub_hosts; h++)
		json_array_append_new(hosts, json_pack("{s:o, s:o, s:o}", "address",
						     smv_json_text(r->sub_hosts[h].address),
						     "bytes", integer(r->sub_hosts[h].bytes),
						     "extents", integer(r->sub_hosts[h].extents)));
	json_object_set_new(root, "schema_version", json_integer(1));
	json_object_set_new(root, "migration_id", smv_json_text(r->migration_id));
	json_object_set_new(root, "status", json_string(smv_outcome_name(r->outcome)));
	json_object_set_new(root, "committed", json_boolean(r->committed));
	json_object_set_new(root, "error", smv_error_json(&r->error));
	json_object_set_new(root, "source_state", smv_json_text(r->source_state));
	json_object_set_new(root, "destination_state", smv_json_text(r->destination_state));
	json_object_set_new(root, "total_time_ms", ms(r->total_ms));
	json_object_set_new(root, "setup_time_ms", ms(r->setup_ms));
	json_object_set_new(root, "downtime_ms", ms(r->downtime_ms));
	json_object_set_new(root, "rounds", rounds);
	json_object_set_new(root, "pages",
		json_pack("{s:o, s:o, s:o, s:o, s:o}", "total", integer(r->pages_total), "hot",
			integer(r->pages_hot), "cold", integer(r->pages_cold), "zero",
			integer(r->pages_zero), "resent", integer(r->pages_resent)));
	json_object_set_new(root, "bytes",
		json_pack("{s:o, s:o}", "to_main", integer(r->bytes_to_main), "to_sub_hosts",
			integer(r->bytes_to_sub_hosts)));
	json_object_set_new(root, "sub_hosts", hosts);
	json_object_set_new(root, "transport", smv_json_text(r->transport));
	json_object_set_new(root, "transport_reason", smv_json_text(r->transport_reason));
	return root;
}

void smv_result_print_json(const struct smv_result *r)
{
	CLEANUP_JSON json_t *root = smv_result_json(r);

	json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
	putchar('\n');
	fflush(stdout);
}

static void print_page_line(const char *what, uint64_t pages, uint64_t total)
{
	char size[32];

	printf("  %-10s %10lu  %10s  %5.1f %%\n", what, pages,
		smv_format_size(pages * 4096, size, sizeof(size)),
		total ? 100.0 * (double)pages / (double)total : 0);
}

static void print_success(const struct smv_result *r)
{
	char a[32], b[32];

	printf("Migration %s completed: the VM runs on the main host.\n", r->migration_id);
	printf("  total %.1f s, downtime %.0f ms, %zu rounds; %s\n", r->total_ms / 1000,
		r->downtime_ms, r->nr_rounds, r->transport_reason);
	printf("  %-10s %10s  %10s  %7s\n", "pages", "number", "size", "share");
	print_page_line("hot", r->pages_hot, r->pages_total);
	print_page_line("cold", r->pages_cold, r->pages_total);
	print_page_line("zero", r->pages_zero, r->pages_total);
	print_page_line("resent", r->pages_resent, r->pages_total);
	printf("  %s to the main host, %s to the sub-hosts:\n",
		smv_format_size(r->bytes_to_main, a, sizeof(a)),
		smv_format_size(r->bytes_to_sub_hosts, b, sizeof(b)));
	for (unsigned int h = 0; h < r->nr_sub_hosts; h++)
		printf("    %-40s %10s in %lu extents\n", r->sub_hosts[h].address,
			smv_format_size(r->sub_hosts[h].bytes, a, sizeof(a)),
			r->sub_hosts[h].extents);
	printf("  The source's QEMU is stopped (%s): end it when you no longer need it.\n",
		r->source_state);
}

void smv_result_print(const struct smv_result *r)
{
	if (r->outcome == SMV_COMPLETED) {
		print_success(r);
		return;
	}
	smv_error_print(&r->error);
	fprintf(stderr, "  migration %s; the source is '%s', the destination '%s'\n",
		smv_outcome_name(r->outcome), r->source_state, r->destination_state);
	if (r->outcome == SMV_DOUBTFUL)
		fprintf(stderr,
			"  DO NOT START THE SOURCE: the VM may be running on the main host.\n"
			"  Its supervisor goes on asking; so does: smemv-migrate recover %s\n",
			r->migration_id);
}

int smv_result_add_round(struct smv_result *result, struct smv_round round)
{
	struct smv_round *grown =
		reallocarray(result->rounds, result->nr_rounds + 1, sizeof(*result->rounds));

	if (!grown)
		return -1;
	result->rounds = grown;
	result->rounds[result->nr_rounds++] = round;
	return 0;
}
