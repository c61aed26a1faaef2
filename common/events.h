/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operator must know of a daemon: changes of state with a name that never changes, a
 * severity, whom they are about, a text and a time. Each goes to the log, and into a ring of the
 * latest ones that can be asked for. A program has one ring, as it has one log.
 *
 * Floods: what happens again to the same subject within 10 s is no new entry. The old one moves to
 * the end, with a new sequence number, the latest text and a count; the log gets the first ten and
 * then every doubling. So a thousand lost pages, or a link that comes and goes, push nothing else
 * out.
 *
 * A new kind is a line here, one in the table in events.c, and one in docs/operations.md.
 */
#ifndef SMV_COMMON_EVENTS_H
#define SMV_COMMON_EVENTS_H

#include "common/log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_EVENTS_MAX 1000 /* kept */

enum smv_event_kind {
	SMV_EVENT_VM_REGISTERED,
	SMV_EVENT_VM_RUNNING,
	SMV_EVENT_VM_MIGRATION_ABORTED,
	SMV_EVENT_VM_STALLED,
	SMV_EVENT_VM_SERVED_AGAIN,
	SMV_EVENT_VM_TAKEN_OVER,
	SMV_EVENT_VM_NOT_TAKEN_OVER,
	SMV_EVENT_VM_AT_RISK,
	SMV_EVENT_VM_RISK_ENDED,
	SMV_EVENT_VM_KILLED,
	SMV_EVENT_VM_ENDED,
	SMV_EVENT_PAGE_LOST,
	SMV_EVENT_SUB_HOST_DOWN,
	SMV_EVENT_SUB_HOST_UP,
	SMV_EVENT_SUB_HOST_LOST_DATA,
	SMV_EVENT_EVICTION_BLOCKED,
	SMV_EVENT_EVICTION_GOES_ON,
	SMV_EVENT_LEASE_NOT_RENEWED,
	SMV_EVENT_LEASE_RENEWED_AGAIN,
	SMV_EVENT_LEASE_ORPHANED,
	SMV_EVENT_LEASE_ENDED,
	SMV_EVENT_ARENA_NEW,
	SMV_EVENT_ARENA_TAKEN_OVER,
	SMV_EVENT_ARENA_DISCARDED,
	SMV_NR_EVENT_KINDS
};

struct smv_event {
	uint64_t sequence; /* from 1; rises with each event, and within a list */
	uint64_t count;    /* how often it happened, see above */
	uint64_t first_ms; /* Unix time of the first */
	uint64_t time_ms;  /* and of the latest, whose text it is */
	enum smv_event_kind kind;
	char vm[168];      /* the VM, at a memserverd the lease's owner; "": none */
	char subject[128]; /* the lease, the sub-host; "": the VM or the daemon itself */
	char text[800];
};

/** smv_event - it has happened; any thread. @vm, @subject: NULL is "". The text is for people and
 * says of itself whom it is about. */
void smv_event(enum smv_event_kind kind, const char *vm, const char *subject, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/** smv_event_name - "sub_host.down". */
const char *smv_event_name(enum smv_event_kind kind);
enum smv_log_level smv_event_severity(enum smv_event_kind kind);

/** smv_events_count - how often a kind has happened since the start. */
uint64_t smv_events_count(enum smv_event_kind kind);

/**
 * smv_events_list - copy the oldest events with a sequence number above @after, @max at most.
 * @vm: only those of this VM, or of leases whose owner it is; NULL or "": all
 * @dropped: how many above @after newer ones have pushed out, at most
 * @last: the newest sequence number of all. Smaller than @after: the program was started again
 *
 * Returns how many; 0: there are no more.
 */
size_t smv_events_list(uint64_t after, const char *vm, struct smv_event *events, size_t max,
	uint64_t *dropped, uint64_t *last);

/** smv_events_reset - forget everything; for tests. */
void smv_events_reset(void);

#endif
