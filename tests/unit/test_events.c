/* SPDX-License-Identifier: Apache-2.0 */
#include "common/events.h"
#include "common/log.h"
#include "rpc/events.h"
#include "smemv/v1/event.pb-c.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct smv_event list[SMV_EVENTS_MAX + 1];
static uint64_t dropped, last;

static void set_up(void)
{
	smv_log_set_level((enum smv_log_level) - 1);
	smv_events_reset();
}

TestSuite(events, .init = set_up);

static size_t get(uint64_t after, const char *vm)
{
	return smv_events_list(after, vm, list, SMV_EVENTS_MAX + 1, &dropped, &last);
}

static bool is_name(const char *name)
{
	const char *dot = strchr(name, '.');

	return dot && dot > name && dot[1] &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyz_.") == strlen(name) &&
	       !strchr(dot + 1, '.');
}

Test(events, every_kind_has_a_name_of_its_own_and_is_in_the_documentation)
{
	static char doc[100000];
	FILE *file = fopen(SMEMV_TEST_OPERATIONS, "r");

	cr_assert(file, "%s", SMEMV_TEST_OPERATIONS);
	cr_assert_gt(fread(doc, 1, sizeof(doc) - 1, file), 0);
	fclose(file);
	for (enum smv_event_kind kind = 0; kind < SMV_NR_EVENT_KINDS; kind++) {
		char cell[60];

		cr_assert(smv_event_name(kind), "kind %d", (int)kind);
		cr_assert(is_name(smv_event_name(kind)), "%s", smv_event_name(kind));
		for (enum smv_event_kind other = 0; other < kind; other++)
			cr_assert_str_neq(smv_event_name(kind), smv_event_name(other));
		snprintf(cell, sizeof(cell), "| `%s` |", smv_event_name(kind));
		cr_assert(strstr(doc, cell), "not in the table: %s", cell);
	}
}

Test(events, are_listed_in_order_and_after_a_number)
{
	cr_assert_eq(get(0, NULL), 0);
	cr_assert_eq(last, 0);
	smv_event(SMV_EVENT_VM_REGISTERED, "a", NULL, "text %d", 1);
	smv_event(SMV_EVENT_SUB_HOST_DOWN, "a", "10.0.0.3:7000", "text %d", 2);
	smv_event(SMV_EVENT_VM_REGISTERED, "b", NULL, "text %d", 3);
	smv_event(SMV_EVENT_LEASE_ORPHANED, "a on host", "0123456789abcdef", "text %d", 4);
	cr_assert_eq(get(0, NULL), 4);
	cr_assert_eq(last, 4);
	cr_assert_eq(dropped, 0);
	for (uint64_t i = 0; i < 4; i++) {
		cr_assert_eq(list[i].sequence, i + 1);
		cr_assert_eq(list[i].count, 1);
		cr_assert_eq(list[i].text[5], '1' + (char)i);
		cr_assert_gt(list[i].time_ms, 1600000000000);
		cr_assert_eq(list[i].time_ms, list[i].first_ms);
	}
	cr_assert_str_eq(list[1].subject, "10.0.0.3:7000");
	cr_assert_eq(get(2, NULL), 2);
	cr_assert_eq(list[0].sequence, 3);
	cr_assert_eq(get(4, NULL), 0);
	/* Of a VM, also as the owner of a lease; not of one whose name begins alike. */
	cr_assert_eq(get(0, "a"), 3);
	cr_assert_eq(list[2].kind, SMV_EVENT_LEASE_ORPHANED);
	cr_assert_eq(get(0, "b"), 1);
	smv_event(SMV_EVENT_VM_ENDED, "ab", NULL, "text");
	cr_assert_eq(get(0, "a"), 3);
	cr_assert_eq(smv_events_count(SMV_EVENT_VM_REGISTERED), 2);
}

/* A flood of one kind beside a few others. */
static size_t flood(void)
{
	smv_event(SMV_EVENT_VM_TAKEN_OVER, "a", NULL, "before");
	for (int i = 0; i < 3 * SMV_EVENTS_MAX; i++)
		smv_event(SMV_EVENT_PAGE_LOST, "a", NULL, "page %d", i);
	smv_event(SMV_EVENT_VM_ENDED, "a", NULL, "after");
	return get(0, NULL);
}

Test(events, a_flood_is_one_event_with_a_count)
{
	uint64_t seen;

	cr_assert_eq(flood(), 3);
	cr_assert_eq(dropped, 0);
	cr_assert_eq(list[0].kind, SMV_EVENT_VM_TAKEN_OVER);
	cr_assert_eq(list[1].count, 3 * SMV_EVENTS_MAX);
	cr_assert_str_eq(list[1].text, "page 2999");
	cr_assert_eq(smv_events_count(SMV_EVENT_PAGE_LOST), 3 * SMV_EVENTS_MAX);
	/* Whoever has seen it hears of it again when it goes on, and it is the last one then. */
	seen = last;
	smv_event(SMV_EVENT_PAGE_LOST, "a", NULL, "page x");
	cr_assert_eq(get(seen, NULL), 1);
	cr_assert_str_eq(list[0].text, "page x");
	cr_assert_geq(list[0].time_ms, list[0].first_ms);
	/* Another subject is another event. */
	smv_event(SMV_EVENT_PAGE_LOST, "b", NULL, "page y");
	cr_assert_eq(get(0, NULL), 4);
}

Test(events, what_comes_and_goes_takes_two_places)
{
	for (int i = 0; i < SMV_EVENTS_MAX; i++) {
		smv_event(SMV_EVENT_SUB_HOST_DOWN, "a", "h", "down %d", i);
		smv_event(SMV_EVENT_SUB_HOST_UP, "a", "h", "up %d", i);
	}
	smv_event(SMV_EVENT_SUB_HOST_DOWN, "a", "h", "down at last");
	cr_assert_eq(get(0, NULL), 2);
	/* The last word is how it is now. */
	cr_assert_eq(list[0].kind, SMV_EVENT_SUB_HOST_UP);
	cr_assert_eq(list[1].kind, SMV_EVENT_SUB_HOST_DOWN);
	cr_assert_eq(list[1].count, SMV_EVENTS_MAX + 1);
}

Test(events, the_oldest_are_pushed_out_and_counted)
{
	char subject[20];

	for (int i = 1; i <= SMV_EVENTS_MAX + 500; i++) {
		snprintf(subject, sizeof(subject), "lease %d", i);
		smv_event(SMV_EVENT_LEASE_ENDED, "o", subject, "%d", i);
	}
	cr_assert_eq(get(0, NULL), SMV_EVENTS_MAX);
	cr_assert_eq(last, SMV_EVENTS_MAX + 500);
	cr_assert_eq(dropped, 500);
	for (uint64_t i = 0; i < SMV_EVENTS_MAX; i++)
		cr_assert_eq(list[i].sequence, 501 + i);
	cr_assert_eq(get(400, NULL), SMV_EVENTS_MAX);
	cr_assert_eq(dropped, 100);
	cr_assert_eq(get(1490, NULL), 10);
	cr_assert_eq(dropped, 0);
	cr_assert_str_eq(list[9].text, "1500");
}

static void *emit(void *arg)
{
	for (int i = 0; i < 2000; i++)
		smv_event(i % 2 ? SMV_EVENT_VM_STALLED : SMV_EVENT_VM_SERVED_AGAIN, arg, NULL, "%d",
			i);
	return NULL;
}

Test(events, none_is_missed_from_many_threads)
{
	static char names[4][2] = {"a", "b", "c", "d"};
	pthread_t threads[4];
	uint64_t sum = 0, before = 0;
	size_t n;

	for (int i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, emit, names[i]), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	n = get(0, NULL);
	for (size_t i = 0; i < n; i++) {
		cr_assert_gt(list[i].sequence, before);
		before = list[i].sequence;
		sum += list[i].count;
	}
	cr_assert_eq(sum, 4 * 2000);
	cr_assert_eq(last, 4 * 2000);
}

/* --- as it is asked for ------------------------------------------------------------------- */

static ProtobufCMessage *ask(uint64_t after, const char *vm)
{
	Smemv__V1__ListEventsRequest q = SMEMV__V1__LIST_EVENTS_REQUEST__INIT;
	Smemv__V1__ListEventsResponse *p = malloc(sizeof(*p));

	smemv__v1__list_events_response__init(p);
	q.after_sequence = after;
	q.vm = (char *)vm;
	cr_assert_eq(smv_rpc_list_events(NULL, NULL, &q.base, &p->base, NULL), 0);
	return &p->base;
}

Test(events, are_answered_in_pieces_that_fit_a_message)
{
	static char text[2000];
	uint64_t after = 0;
	size_t n, all = 0;

	memset(text, 'x', sizeof(text) - 1);
	for (int i = 0; i < SMV_EVENTS_MAX; i++) {
		char subject[20];

		snprintf(subject, sizeof(subject), "%d", i);
		smv_event(SMV_EVENT_VM_AT_RISK, "a", subject, "%s", text);
	}
	do {
		ProtobufCMessage *message = ask(after, "");
		const Smemv__V1__ListEventsResponse *p = (void *)message;

		cr_assert_leq(protobuf_c_message_get_packed_size(message), SMV_RPC_MESSAGE_MAX);
		n = p->n_events;
		all += n;
		if (n)
			after = p->events[n - 1]->sequence;
		cr_assert_eq(p->last_sequence, SMV_EVENTS_MAX);
		smv_rpc_message_free(message);
	} while (n);
	cr_assert_eq(all, SMV_EVENTS_MAX);
}

Test(events, a_text_that_was_cut_is_still_text)
{
	char text[1000];
	ProtobufCMessage *message;
	const Smemv__V1__ListEventsResponse *p;

	memset(text, 'x', sizeof(text));
	/* The last byte that is kept is the first of two. */
	memcpy(text + sizeof(list[0].text) - 2, "\xc3\xa4", 3);
	smv_event(SMV_EVENT_VM_AT_RISK, "a", "s", "%s", text);
	message = ask(0, "a");
	p = (void *)message;
	cr_assert_eq(p->n_events, 1);
	cr_assert_str_eq(p->events[0]->name, "vm.at_risk");
	cr_assert_eq(p->events[0]->severity, SMEMV__V1__EVENT_SEVERITY__EVENT_SEVERITY_ERROR);
	cr_assert_eq(strlen(p->events[0]->text), sizeof(list[0].text) - 1);
	cr_assert_eq(p->events[0]->text[sizeof(list[0].text) - 2], '?');
	smv_rpc_message_free(message);
}

Test(events, a_text_is_one_line)
{
	smv_event(SMV_EVENT_VM_AT_RISK, "a", "s", "it says: %s", "x\n\tvm.ended: y");
	cr_assert_eq(get(0, "a"), 1);
	cr_assert_str_eq(list[0].text, "it says: x  vm.ended: y");
}

/* --- what the tests above must be able to see --------------------------------------------- */

#ifdef SMEMV_FAULT_POINTS
Test(events, a_flood_that_is_not_collapsed_is_noticed)
{
	setenv("SMEMV_FAULT", "events-never-same", 1);
	cr_assert_eq(flood(), SMV_EVENTS_MAX);
	cr_assert_neq(list[0].kind, SMV_EVENT_VM_TAKEN_OVER);
	cr_assert_gt(dropped, 0);
}
#endif
