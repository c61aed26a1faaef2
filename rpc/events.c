/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/events.h"

#include "common/cleanup.h"
#include "common/events.h"
#include "rpc/text.h"
#include "smemv/v1/event.pb-c.h"

#include <string.h>

#define ANSWER_MAX 100 /* far below SMV_RPC_MESSAGE_MAX */

/* It may have been cut in the middle of a character. */
static char *text_of(const char *text)
{
	size_t len = strlen(text);
	char *copy = malloc(len + 1);

	if (copy)
		smv_text_scrub(copy, len + 1, text, len);
	return copy;
}

static Smemv__V1__EventSeverity severity_of(enum smv_event_kind kind)
{
	switch (smv_event_severity(kind)) {
	case SMV_LOG_ERROR:
		return SMEMV__V1__EVENT_SEVERITY__EVENT_SEVERITY_ERROR;
	case SMV_LOG_WARNING:
		return SMEMV__V1__EVENT_SEVERITY__EVENT_SEVERITY_WARNING;
	case SMV_LOG_INFO:
	case SMV_LOG_DEBUG:
		break;
	}
	return SMEMV__V1__EVENT_SEVERITY__EVENT_SEVERITY_INFO;
}

static int add(Smemv__V1__ListEventsResponse *p, const struct smv_event *event)
{
	Smemv__V1__Event *m = malloc(sizeof(*m));

	if (!m)
		return -1;
	smemv__v1__event__init(m);
	p->events[p->n_events++] = m;
	m->sequence = event->sequence;
	m->time_ms = event->time_ms;
	m->first_ms = event->first_ms;
	m->count = event->count;
	m->severity = severity_of(event->kind);
	m->name = text_of(smv_event_name(event->kind));
	m->vm = text_of(event->vm);
	m->subject = text_of(event->subject);
	m->text = text_of(event->text);
	return m->name && m->vm && m->subject && m->text ? 0 : -1;
}

int smv_rpc_list_events(void *ctx, struct smv_rpc_call *call, const ProtobufCMessage *request,
	ProtobufCMessage *response, struct smv_error *err)
{
	const Smemv__V1__ListEventsRequest *q = (const Smemv__V1__ListEventsRequest *)request;
	Smemv__V1__ListEventsResponse *p = (Smemv__V1__ListEventsResponse *)response;
	CLEANUP_FREE struct smv_event *events = calloc(ANSWER_MAX, sizeof(*events));
	size_t n = 0;
	int r = 0;

	(void)ctx;
	(void)call;
	p->events = calloc(ANSWER_MAX, sizeof(*p->events));
	if (events && p->events)
		n = smv_events_list(q->after_sequence, q->vm, events, ANSWER_MAX, &p->dropped,
			&p->last_sequence);
	for (size_t i = 0; i < n && r == 0; i++)
		r = add(p, &events[i]);
	return events && p->events && r == 0
		       ? 0
		       : smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}
