/* SPDX-License-Identifier: Apache-2.0 */
#include "common/events.h"

#include "common/clock.h"
#include "common/fault_point.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>

#define SAME_WITHIN_MS 10000
#define LOGGED_ALWAYS 10

static const struct {
	const char *name;
	enum smv_log_level severity;
} kinds[SMV_NR_EVENT_KINDS] = {
	[SMV_EVENT_VM_REGISTERED] = {"vm.registered", SMV_LOG_INFO},
	[SMV_EVENT_VM_RUNNING] = {"vm.running", SMV_LOG_INFO},
	[SMV_EVENT_VM_MIGRATION_ABORTED] = {"vm.migration_aborted", SMV_LOG_WARNING},
	[SMV_EVENT_VM_STALLED] = {"vm.stalled", SMV_LOG_WARNING},
	[SMV_EVENT_VM_SERVED_AGAIN] = {"vm.served_again", SMV_LOG_INFO},
	[SMV_EVENT_VM_TAKEN_OVER] = {"vm.taken_over", SMV_LOG_INFO},
	[SMV_EVENT_VM_NOT_TAKEN_OVER] = {"vm.not_taken_over", SMV_LOG_ERROR},
	[SMV_EVENT_VM_AT_RISK] = {"vm.at_risk", SMV_LOG_ERROR},
	[SMV_EVENT_VM_RISK_ENDED] = {"vm.risk_ended", SMV_LOG_INFO},
	[SMV_EVENT_VM_KILLED] = {"vm.killed", SMV_LOG_ERROR},
	[SMV_EVENT_VM_ENDED] = {"vm.ended", SMV_LOG_INFO},
	[SMV_EVENT_PAGE_LOST] = {"page.lost", SMV_LOG_ERROR},
	[SMV_EVENT_SUB_HOST_DOWN] = {"sub_host.down", SMV_LOG_WARNING},
	[SMV_EVENT_SUB_HOST_UP] = {"sub_host.up", SMV_LOG_INFO},
	[SMV_EVENT_SUB_HOST_LOST_DATA] = {"sub_host.lost_data", SMV_LOG_ERROR},
	[SMV_EVENT_EVICTION_BLOCKED] = {"eviction.blocked", SMV_LOG_WARNING},
	[SMV_EVENT_EVICTION_GOES_ON] = {"eviction.goes_on", SMV_LOG_INFO},
	[SMV_EVENT_LEASE_NOT_RENEWED] = {"lease.not_renewed", SMV_LOG_WARNING},
	[SMV_EVENT_LEASE_RENEWED_AGAIN] = {"lease.renewed_again", SMV_LOG_INFO},
	[SMV_EVENT_LEASE_ORPHANED] = {"lease.orphaned", SMV_LOG_WARNING},
	[SMV_EVENT_LEASE_ENDED] = {"lease.ended", SMV_LOG_INFO},
	[SMV_EVENT_ARENA_NEW] = {"arena.new", SMV_LOG_INFO},
	[SMV_EVENT_ARENA_TAKEN_OVER] = {"arena.taken_over", SMV_LOG_INFO},
	[SMV_EVENT_ARENA_DISCARDED] = {"arena.discarded", SMV_LOG_WARNING},
};

struct entry {
	struct smv_event event;
	uint64_t last_ms; /* of the monotonic clock */
	TAILQ_ENTRY(entry) link;
};
TAILQ_HEAD(entries, entry);

/* Sequence numbers and times rise along the list: what happens goes to its end, what is pushed out
 * is its beginning. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry pool[SMV_EVENTS_MAX];
static size_t nr_used; /* of the pool; they are all in the list */
static struct entries list = TAILQ_HEAD_INITIALIZER(list);
static uint64_t sequence;
static uint64_t nr_dropped, last_dropped;
static uint64_t counts[SMV_NR_EVENT_KINDS];

const char *smv_event_name(enum smv_event_kind kind)
{
	return kinds[kind].name;
}

enum smv_log_level smv_event_severity(enum smv_event_kind kind)
{
	return kinds[kind].severity;
}

static uint64_t unix_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / SMV_NS_PER_MS;
}

/* --- with the lock held ------------------------------------------------------------------- */

static struct entry *find_same(
	enum smv_event_kind kind, const char *vm, const char *subject, uint64_t now_ms)
{
	struct entry *e;

	if (smv_fault_point("events-never-same"))
		return NULL;
	TAILQ_FOREACH_REVERSE (e, &list, entries, link) {
		if (now_ms - e->last_ms > SAME_WITHIN_MS)
			return NULL;
		if (e->event.kind == kind && strcmp(e->event.vm, vm) == 0 &&
			strcmp(e->event.subject, subject) == 0)
			return e;
	}
	return NULL;
}

static struct entry *new_entry(enum smv_event_kind kind, const char *vm, const char *subject)
{
	struct entry *e;

	if (nr_used < SMV_EVENTS_MAX) {
		e = &pool[nr_used++];
	} else {
		e = TAILQ_FIRST(&list);
		TAILQ_REMOVE(&list, e, link);
		nr_dropped++;
		last_dropped = e->event.sequence;
	}
	e->event = (struct smv_event){.kind = kind};
	snprintf(e->event.vm, sizeof(e->event.vm), "%s", vm);
	snprintf(e->event.subject, sizeof(e->event.subject), "%s", subject);
	return e;
}

static uint64_t put(enum smv_event_kind kind, const char *vm, const char *subject, const char *text)
{
	uint64_t now_ms = smv_now_ns() / SMV_NS_PER_MS;
	struct entry *e = find_same(kind, vm, subject, now_ms);

	if (e)
		TAILQ_REMOVE(&list, e, link);
	else
		e = new_entry(kind, vm, subject);
	TAILQ_INSERT_TAIL(&list, e, link);
	e->last_ms = now_ms;
	e->event.sequence = ++sequence;
	e->event.time_ms = unix_ms();
	if (e->event.count++ == 0)
		e->event.first_ms = e->event.time_ms;
	snprintf(e->event.text, sizeof(e->event.text), "%s", text);
	counts[kind]++;
	return e->event.count;
}

static bool is_of(const struct smv_event *event, const char *vm)
{
	size_t len = vm ? strlen(vm) : 0;

	/* A lease's owner is "VM on HOST". */
	return len == 0 || (strncmp(event->vm, vm, len) == 0 &&
				   (!event->vm[len] || strncmp(event->vm + len, " on ", 4) == 0));
}

/* Texts of other hosts are a part of it: none may look like two. */
static void make_one_line(char *text)
{
	for (; *text; text++)
		if (*text == '\n' || *text == '\t')
			*text = ' ';
}

/* ------------------------------------------------------------------------------------------ */

void smv_event(enum smv_event_kind kind, const char *vm, const char *subject, const char *fmt, ...)
{
	struct smv_event cut; /* what is compared must be as it is kept */
	char text[sizeof(cut.text)];
	uint64_t count;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	make_one_line(text);
	snprintf(cut.vm, sizeof(cut.vm), "%s", vm ? vm : "");
	snprintf(cut.subject, sizeof(cut.subject), "%s", subject ? subject : "");
	pthread_mutex_lock(&lock);
	count = put(kind, cut.vm, cut.subject, text);
	pthread_mutex_unlock(&lock);
	if (count == 1)
		smv_log(kinds[kind].severity, "%s: %s", kinds[kind].name, text);
	else if (count <= LOGGED_ALWAYS || (count & (count - 1)) == 0)
		smv_log(kinds[kind].severity, "%s: %s (%lu times)", kinds[kind].name, text, count);
}

uint64_t smv_events_count(enum smv_event_kind kind)
{
	uint64_t n;

	pthread_mutex_lock(&lock);
	n = counts[kind];
	pthread_mutex_unlock(&lock);
	return n;
}

size_t smv_events_list(uint64_t after, const char *vm, struct smv_event *events, size_t max,
	uint64_t *dropped, uint64_t *last)
{
	const struct entry *e;
	size_t n = 0;

	pthread_mutex_lock(&lock);
	TAILQ_FOREACH (e, &list, link) {
		if (n == max)
			break;
		if (e->event.sequence > after && is_of(&e->event, vm))
			events[n++] = e->event;
	}
	*dropped = last_dropped > after ? last_dropped - after : 0;
	if (*dropped > nr_dropped)
		*dropped = nr_dropped;
	*last = sequence;
	pthread_mutex_unlock(&lock);
	return n;
}

void smv_events_reset(void)
{
	pthread_mutex_lock(&lock);
	TAILQ_INIT(&list);
	nr_used = 0;
	sequence = nr_dropped = last_dropped = 0;
	memset(counts, 0, sizeof(counts));
	pthread_mutex_unlock(&lock);
}
