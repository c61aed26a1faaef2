/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/doctor.h"

#include "common/cleanup.h"
#include "ctl/ctl.h"
#include "ctl/message_json.h"

#include <string.h>
#include <unistd.h>

#define STATUS_WIDTH 7
#define NAME_WIDTH 20

/* --- the report ----------------------------------------------------------------------------- */

static json_t *text_or_null(const char *text)
{
	return *text ? smv_text_to_json(text) : json_null();
}

static json_t *finding_to_json(const struct smv_finding *f)
{
	return json_pack("{s:s, s:s, s:o, s:o, s:o}", "name", f->name, "status",
		smv_finding_status_name(f->status), "found", smv_text_to_json(f->found), "cost",
		text_or_null(f->cost), "remedy", text_or_null(f->remedy));
}

json_t *smv_doctor_report(
	const struct smv_host_facts *facts, unsigned int roles, uint64_t memory_bytes)
{
	struct smv_finding findings[SMV_FINDINGS_MAX];
	const size_t nr = smv_findings_make(facts, roles, memory_bytes, findings);
	json_t *checks = json_array();

	for (size_t i = 0; i < nr; i++)
		json_array_append_new(checks, finding_to_json(&findings[i]));
	return json_pack("{s:s, s:s, s:o}", "role", smv_role_name(roles), "verdict",
		smv_finding_status_name(smv_findings_verdict(findings, nr)), "checks", checks);
}

/* --- for people ----------------------------------------------------------------------------- */

static const struct look {
	const char *status;
	const char *word;
	const char *colour;
} looks[] = {
	{"ok", "ok", "\033[32m"},
	{"warning", "warning", "\033[33m"},
	{"problem", "PROBLEM", "\033[31m"},
	{"not-needed", "-", "\033[2m"},
};

static const struct look *find_look(const char *status)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(looks); i++)
		if (strcmp(looks[i].status, status) == 0)
			return &looks[i];
	return &looks[SMV_ARRAY_SIZE(looks) - 1];
}

static const char *get(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static void print_more(FILE *out, const char *what, const char *text)
{
	if (text)
		fprintf(out, "%*s  %s: %s\n", STATUS_WIDTH + 2 + NAME_WIDTH, "", what, text);
}

static void print_check(const json_t *check, FILE *out, bool colour)
{
	const struct look *look = find_look(get(check, "status"));

	fprintf(out, "%s%-*s%s  %-*s  %s\n", colour ? look->colour : "", STATUS_WIDTH, look->word,
		colour ? "\033[0m" : "", NAME_WIDTH, get(check, "name"), get(check, "found"));
	print_more(out, "cost", get(check, "cost"));
	print_more(out, "mend", get(check, "remedy"));
}

static unsigned int count(const json_t *checks, const char *status)
{
	unsigned int n = 0;
	const json_t *check;
	size_t i;

	json_array_foreach (checks, i, check)
		n += strcmp(get(check, "status"), status) == 0;
	return n;
}

void smv_doctor_print(const json_t *report, FILE *out, bool colour)
{
	const json_t *checks = json_object_get(report, "checks"), *check;
	const unsigned int problems = count(checks, "problem");
	const unsigned int warnings = count(checks, "warning");
	const char *role = get(report, "role");
	size_t i;

	json_array_foreach (checks, i, check)
		print_check(check, out, colour);
	fprintf(out, "\n%s %s%s: %u problem%s, %u warning%s.\n", problems ? "Not ready" : "Ready",
		strcmp(role, "any") == 0 ? "" : "as ",
		strcmp(role, "any") == 0 ? "for every role" : role, problems,
		problems == 1 ? "" : "s", warnings, warnings == 1 ? "" : "s");
}

/* --- the command ---------------------------------------------------------------------------- */

int smv_ctl_fetch_doctor(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	struct smv_host_facts facts = {0};

	smv_host_facts_read(&facts, "");
	smv_host_facts_ask(&facts);
	*result = smv_doctor_report(&facts, ctl->roles, ctl->memory_bytes);
	return *result ? 0 : smv_fail(err, SMV_INTERNAL, "no-memory", NULL, "out of memory");
}

/* https://no-color.org */
static bool wants_colour(void)
{
	const char *no = getenv("NO_COLOR");

	return isatty(STDOUT_FILENO) && !(no && *no);
}

void smv_ctl_print_doctor(json_t *result)
{
	smv_doctor_print(result, stdout, wants_colour());
}

bool smv_ctl_is_bad_doctor(const json_t *result)
{
	return strcmp(get(result, "verdict"), "problem") == 0;
}
