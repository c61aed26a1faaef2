/* SPDX-License-Identifier: Apache-2.0 */
/* What has happened lately, at a daemon of either kind. */
#include "common/cleanup.h"
#include "common/clock.h"
#include "ctl/ctl.h"
#include "ctl/output.h"

#include <inttypes.h>
#include <smemv/v1/memserver.pb-c.h>
#include <smemv/v1/pager.pb-c.h>
#include <time.h>

static const struct smv_column columns[] = {{"TIME", "time"}, {"SEVERITY", "severity"},
	{"EVENT", "name"}, {"COUNT", "count"}, {"VM", "vm"}, {"SUBJECT", "subject"},
	{"TEXT", "text"}};

static int ask(const struct smv_ctl *ctl, uint64_t after, json_t **answer, struct smv_error *err)
{
	Smemv__V1__ListEventsRequest request = SMEMV__V1__LIST_EVENTS_REQUEST__INIT;

	request.after_sequence = after;
	if (ctl->arg)
		request.vm = (char *)ctl->arg;
	return smv_ctl_call(ctl,
		ctl->is_pager ? &smemv__v1__pager__descriptor : &smemv__v1__mem_server__descriptor,
		"ListEvents", &request.base, answer, err);
}

static uint64_t number(const json_t *object, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(object, key));
}

/* All after *@after, which becomes the sequence number of the last one. */
static int ask_all(
	const struct smv_ctl *ctl, uint64_t *after, json_t **result, struct smv_error *err)
{
	CLEANUP_JSON json_t *all = json_array();
	uint64_t dropped = 0, last = 0;
	size_t n;
	int r;

	do {
		CLEANUP_JSON json_t *answer = NULL;
		const json_t *events;

		r = ask(ctl, *after, &answer, err);
		if (r < 0)
			return r;
		events = json_object_get(answer, "events");
		n = json_array_size(events);
		json_array_extend(all, (json_t *)events);
		dropped += number(answer, "dropped");
		last = number(answer, "last_sequence");
		if (n)
			*after = number(json_array_get(events, n - 1), "sequence");
	} while (n);
	*result = json_pack("{s:O, s:I, s:I}", "events", all, "dropped", (json_int_t)dropped,
		"last_sequence", (json_int_t)last);
	return *result ? 0 : smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

int smv_ctl_fetch_events(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	uint64_t after = 0;

	return ask_all(ctl, &after, result, err);
}

static void add_time(json_t *event)
{
	const time_t s = (time_t)(number(event, "time_ms") / 1000);
	char text[40];
	struct tm tm;

	gmtime_r(&s, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	json_object_set_new(event, "time", json_string(text));
}

void smv_ctl_print_events(json_t *result)
{
	json_t *events = json_object_get(result, "events"), *event;
	size_t i;

	json_array_foreach (events, i, event)
		add_time(event);
	if (number(result, "dropped"))
		printf("(up to %" PRIu64 " older events are not kept any more)\n",
			number(result, "dropped"));
	smv_print_table(events, columns, SMV_ARRAY_SIZE(columns), "no events");
}

static void print_new(const struct smv_ctl *ctl, json_t *result)
{
	json_t *events = json_object_get(result, "events"), *event;
	size_t i;

	json_array_foreach (events, i, event) {
		if (ctl->json) {
			json_dumpf(event, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
			putchar('\n');
		} else {
			add_time(event);
		}
	}
	if (!ctl->json)
		smv_print_rows(events, columns, SMV_ARRAY_SIZE(columns));
	fflush(stdout);
}

int smv_ctl_follow_events(const struct smv_ctl *ctl, struct smv_error *err)
{
	bool ever = false, lost = false;
	uint64_t after = 0;
	int r;

	for (;;) {
		CLEANUP_JSON json_t *result = NULL;

		r = ask_all(ctl, &after, &result, err);
		/* Whoever follows wants to see a daemon that ends and comes back, but not to wait
		 * for one that was never there. */
		if (r < 0 && !ever)
			return r;
		if (r < 0 && !lost)
			smv_error_print(err);
		lost = r < 0;
		ever = true;
		if (r == 0 && number(result, "last_sequence") < after) {
			after = 0; /* it was started again: its numbers begin anew */
			continue;
		}
		if (r == 0)
			print_new(ctl, result);
		smv_sleep_ms(1000);
	}
}
