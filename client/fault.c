/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault thread: reads userfaultfd messages, posts reads to the sub-hosts, puts pages in place.
 * It never blocks on one page: what cannot go on (no frame free, sub-host down) is deferred.
 *
 * Rule: every message that was read is followed by a resolve or a wake-up issued after it was read.
 */
#include "client/pager_internal.h"

#include "client/uffd.h"
#include "common/clock.h"
#include "common/events.h"
#include "common/fault_point.h"
#include "common/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RETRY_MS 50
#define WATCH_NS (25 * SMV_NS_PER_MS) /* how often it looks whether a fault waits for long */
#define WATCH_MS 100                  /* the same while it has nothing else to do */
#define MAX_HELD 64

/* A fault that waits for a thread of the VM: one message, or a read that it caused. */
struct fault {
	uint64_t page;
	uint64_t since_ns;
	uint64_t posted_ns; /* of its read; 0: nobody measures */
	bool write;
	bool counted_wait;
};

struct worker {
	struct smv_pager *p;
	struct fault fetches[SMV_MAX_FETCHES]; /* index = page of the staging buffer = cookie */
	uint16_t idle[SMV_MAX_FETCHES];        /* indices of free fetches */
	unsigned int nr_idle;
	struct fault *deferred;
	size_t nr_deferred, max_deferred;
	struct fault held[MAX_HELD]; /* whose pages the evictor has; if there are more: the first */
	size_t nr_held;
	uint64_t lost_since_ns; /* when a thread began to wait for ever; 0: none does */
	uint64_t now_ns;        /* at the last look for messages */
	uint64_t watch_at_ns;
	bool stalled; /* some fault waits for long */
	uint64_t retry_at_ns, mend_at_ns;
	bool server_down;
	bool server_lost;
	bool some_lost; /* in the sense of smv_remote_lost() */
};

enum outcome { DONE, DEFER };

static void wake(struct worker *w, uint64_t page)
{
	int r = smv_uffd_wake(w->p->c.uffd, smv_page_at(w->p, page).addr, SMV_PAGE_SIZE);

	if (r < 0 && r != -ESRCH)
		smv_log_error("VM '%s': cannot wake the waiters of page %lu: %s", w->p->c.name,
			page, strerror(-r));
}

static bool frame_take(struct smv_pager *p)
{
	int64_t left = atomic_fetch_sub(&p->frames_free, 1) - 1;

	if (left < p->frames_low && atomic_exchange(&p->evictor_idle, false))
		smv_kick(p->kick_evictor);
	if (left >= 0)
		return true;
	atomic_fetch_add(&p->frames_free, 1);
	return false;
}

static void frame_return(struct smv_pager *p)
{
	atomic_fetch_add(&p->frames_free, 1);
}

static void waits_for_ever(struct worker *w)
{
	if (!w->lost_since_ns)
		w->lost_since_ns = smv_now_ns();
}

/* A fault on a page that the evictor has, whose answer is the evictor's. @word: as it was before.
 */
static void hold(struct worker *w, const struct fault *f, smv_page_word word)
{
	for (size_t i = 0; i < w->nr_held; i++) {
		if (w->held[i].page != f->page)
			continue;
		/* Without a waiter: what is noted was answered. */
		if (!(word & SMV_WORD_WAITER))
			w->held[i].since_ns = f->since_ns;
		return;
	}
	if (w->nr_held < MAX_HELD)
		w->held[w->nr_held++] = *f;
}

/* "page 7, slot 9 at sub-host 10.0.0.3:7000: WHY" */
static void describe_loss(const struct smv_pager *p, uint64_t page, smv_page_word word,
	const char *why, char *text, size_t len)
{
	const struct smv_backing *b = p->c.backing;
	uint64_t slot = smv_word_slot(word);
	size_t n = (size_t)snprintf(text, len, "page %lu", page);

	if (slot != SMV_SLOT_NONE)
		n += (size_t)snprintf(text + n, len - n, ", slot %lu at sub-host %.120s", slot,
			b->sub_hosts[smv_backing_locate(b, slot).sub_host].address);
	snprintf(text + n, len - n, ": %s", why);
}

/* A page that is LOST was touched. The caller holds its lock. */
static void touch_lost(struct worker *w, uint64_t page, smv_page_word word, const char *why)
{
	struct smv_pager *p = w->p;
	int r;

	switch (p->c.loss_policy) {
	case SMV_LOSS_STALL:
		waits_for_ever(w);
		break;
	case SMV_LOSS_POISON:
		r = smv_uffd_poison(p->c.uffd, smv_page_at(p, page).addr);
		if (r == -EEXIST)
			wake(w, page);
		else if (r < 0 && r != -ESRCH) {
			waits_for_ever(w);
			smv_log_error("VM '%s': cannot poison page %lu, its threads wait: %s",
				p->c.name, page, strerror(-r));
		}
		break;
	case SMV_LOSS_KILL:
		pthread_mutex_lock(&p->trouble_lock);
		if (!p->fatal[0])
			describe_loss(p, page, word, why, p->fatal, sizeof(p->fatal));
		pthread_mutex_unlock(&p->trouble_lock);
		break;
	}
}

static void lose(struct worker *w, uint64_t page, smv_page_word word, const char *why)
{
	char text[400];

	if (smv_word_state(word) == SMV_PAGE_LOCAL) {
		atomic_fetch_sub(&w->p->range_local[page / SMV_EXTENT_PAGES], 1);
		if (smv_word_activity(word) == SMV_PAGE_INACTIVE)
			atomic_fetch_sub(&w->p->nr_inactive, 1);
		frame_return(w->p);
	}
	smv_pagemap_set(w->p->c.map, page, smv_word_with_state(word, SMV_PAGE_LOST));
	describe_loss(w->p, page, word, why, text, sizeof(text));
	smv_event(SMV_EVENT_PAGE_LOST, w->p->c.name, NULL, "VM '%s': LOST: %s; loss policy: %s",
		w->p->c.name, text, smv_loss_policy_name(w->p->c.loss_policy));
	smv_pager_tell_lost_page(w->p);
	touch_lost(w, page, word, why);
}

/* The page's only copy is at a sub-host that lost it, for good as far as can be told. */
static bool is_gone(const struct worker *w, smv_page_word word)
{
	const struct smv_pager_config *c = &w->p->c;

	return w->some_lost && c->loss_policy != SMV_LOSS_STALL &&
	       smv_remote_lost(w->p->fault_remote,
		       smv_backing_locate(c->backing, smv_word_slot(word)).sub_host,
		       smv_fault_point("loss-unconfirmed") ? 0 : c->loss_confirm_ms);
}

/*
 * Whether a page that is mapped again is to be protected: only if its marker says so. Without one
 * it was written since it was last saved, and protecting it now would make it look clean.
 *
 * A marker stands still until we map the page. The bit of a page that is mapped does not: this
 * message is out of date, another thread's was for the same page, and before we answer the page
 * may be written and then unmapped by a sweep, without a trace.
 */
static bool was_protected(const struct smv_pager *p, uint64_t addr)
{
	uint64_t pte = 0;

	smv_pagemap_read(p->c.pagemap_fd, addr, &pte, 1);
	if (pte & SMV_PAGEMAP_PRESENT) {
		(void)smv_fault_point("map-mapped-page");
		return (pte & SMV_PAGEMAP_UFFD_WP) && smv_fault_point("map-mapped-protected");
	}
	return pte & SMV_PAGEMAP_UFFD_WP;
}

/* The page is in the file: map it. The caller holds its lock. */
static enum outcome map_local(struct worker *w, const struct fault *f, smv_page_word word)
{
	struct smv_pager *p = w->p;
	struct smv_page_at at = smv_page_at(p, f->page);
	bool protect = !f->write && was_protected(p, at.addr);
	int r = smv_uffd_continue(p->c.uffd, at.addr, SMV_PAGE_SIZE, protect);

	if (r == -EFAULT) {
		lose(w, f->page, word, "its RAM file has a hole there");
		return DONE;
	}
	if (smv_word_activity(word) == SMV_PAGE_INACTIVE)
		atomic_fetch_sub(&p->nr_inactive, 1);
	smv_pagemap_set(p->c.map, f->page, smv_word_with_activity(word, SMV_PAGE_ACTIVE));
	if (r == -EEXIST)
		wake(w, f->page);
	else if (r < 0 && r != -ESRCH)
		smv_log_error("VM '%s': UFFDIO_CONTINUE of page %lu: %s", p->c.name, f->page,
			strerror(-r));
	return r == 0 || r == -EEXIST || r == -ESRCH ? DONE : DEFER;
}

static void became_local(struct smv_pager *p, uint64_t page, smv_page_word word)
{
	atomic_fetch_add(&p->range_local[page / SMV_EXTENT_PAGES], 1);
	smv_pagemap_set(p->c.map, page,
		smv_word_with_activity(smv_word_with_state(word & ~SMV_WORD_WAITER, SMV_PAGE_LOCAL),
			SMV_PAGE_ACTIVE));
}

/* A page that was fetched, over other data in the file: before it is mapped it must be there and be
 * called LOCAL, because until then whoever takes over sees other data there. */
static int place_over_data(
	struct smv_pager *p, uint64_t page, const void *data, smv_page_word word, bool wp)
{
	struct smv_page_at at = smv_page_at(p, page);
	int r;

	if (pwrite(at.fd, data, SMV_PAGE_SIZE, at.offset) != SMV_PAGE_SIZE)
		return -EIO;
	became_local(p, page, word);
	r = smv_uffd_continue(p->c.uffd, at.addr, SMV_PAGE_SIZE, wp);
	if (r < 0 && r != -ESRCH)
		smv_uffd_wake(p->c.uffd, at.addr, SMV_PAGE_SIZE);
	return 0;
}

/* Place @data, which is in no file yet. */
static int place(struct smv_pager *p, uint64_t page, const void *data, bool wp)
{
	struct smv_page_at at = smv_page_at(p, page);
	int r = smv_uffd_copy(p->c.uffd, at.addr, data, wp);

	if (r != -EEXIST)
		return r;
	/* The file holds something there although the map says it does not. The map is right. */
	if (pwrite(at.fd, data, SMV_PAGE_SIZE, at.offset) != SMV_PAGE_SIZE)
		return -EIO;
	r = smv_uffd_continue(p->c.uffd, at.addr, SMV_PAGE_SIZE, false);
	return r == -EEXIST ? smv_uffd_wake(p->c.uffd, at.addr, SMV_PAGE_SIZE) : r;
}

/* First touch of a page of zeros. Write-protected when it is only read: then it needs no slot when
 * it is evicted untouched. The caller holds its lock. */
static enum outcome fill_zero(struct worker *w, const struct fault *f, smv_page_word word)
{
	static const char zeros[SMV_PAGE_SIZE] __attribute__((aligned(SMV_PAGE_SIZE)));
	int r;

	if (!frame_take(w->p))
		return DEFER;
	r = place(w->p, f->page, zeros, !f->write);
	if (r < 0) {
		frame_return(w->p);
		if (r != -ESRCH)
			smv_log_error("VM '%s': cannot place page %lu: %s", w->p->c.name, f->page,
				strerror(-r));
		return r == -ESRCH ? DONE : DEFER;
	}
	smv_count(&w->p->zero_fills, 1);
	became_local(
		w->p, f->page, smv_word_with_slot(word, SMV_SLOT_NONE) | SMV_WORD_REMOTE_VALID);
	return DONE;
}

/* The caller holds the page's lock. */
static enum outcome start_fetch(struct worker *w, const struct fault *f, smv_page_word word)
{
	struct smv_pager *p = w->p;
	uint64_t now = p->c.trace ? smv_now_ns() : 0;
	unsigned int i;

	if (is_gone(w, word)) {
		lose(w, f->page, word, "its sub-host has lost its memory");
		return DONE;
	}
	if (w->nr_idle == 0 || !frame_take(p))
		return DEFER;
	i = w->idle[w->nr_idle - 1];
	if (smv_remote_post(p->fault_remote, SMV_OP_READ, smv_word_slot(word), 1,
		    (char *)smv_remote_staging(p->fault_remote) + i * SMV_PAGE_SIZE, i) < 0) {
		frame_return(p);
		return DEFER;
	}
	w->nr_idle--;
	w->fetches[i] = *f;
	w->fetches[i].posted_ns = now;
	word = smv_word_with_state(word, SMV_PAGE_FETCHING);
	if (atomic_load(&p->has_huge) && smv_pager_has_data(p, f->page))
		word |= SMV_WORD_OVER_DATA;
	smv_pagemap_set(p->c.map, f->page, word);
	return DONE;
}

static enum outcome handle(struct worker *w, const struct fault *f)
{
	struct smv_pagemap *map = w->p->c.map;
	enum outcome outcome = DONE;
	smv_page_word word;

	smv_pagemap_lock(map, f->page);
	word = smv_pagemap_get(map, f->page);
	switch (smv_word_state(word)) {
	case SMV_PAGE_ZERO:
		outcome = fill_zero(w, f, word);
		break;
	case SMV_PAGE_COLD:
		outcome = start_fetch(w, f, word);
		break;
	case SMV_PAGE_LOCAL:
		outcome = map_local(w, f, word);
		break;
	case SMV_PAGE_OUT:
	case SMV_PAGE_SAVED:
		hold(w, f, word);
		/* fall through */
	case SMV_PAGE_FETCHING:
		/* Whoever moves the page looks at this when it is done. */
		smv_pagemap_set(map, f->page, word | SMV_WORD_WAITER);
		break;
	case SMV_PAGE_UNKNOWN:
	case SMV_PAGE_NR_STATES:
		lose(w, f->page, smv_word_with_slot(word, SMV_SLOT_NONE),
			"the source never reported it");
		break;
	case SMV_PAGE_LOST:
		touch_lost(w, f->page, word, "it was lost before");
		break;
	}
	smv_pagemap_unlock(map, f->page);
	return outcome;
}

static void defer(struct worker *w, struct fault f)
{
	if (w->nr_deferred == w->max_deferred) {
		size_t max = w->max_deferred ? 2 * w->max_deferred : 64;
		struct fault *grown = reallocarray(w->deferred, max, sizeof(*grown));

		if (!grown) {
			/* Its thread faults again after the wake-up and so keeps its place. */
			wake(w, f.page);
			return;
		}
		w->deferred = grown;
		w->max_deferred = max;
	}
	if (!f.counted_wait) {
		f.counted_wait = true;
		smv_count(&w->p->waited_for_room, 1);
	}
	w->deferred[w->nr_deferred++] = f;
}

static unsigned int retry_deferred(struct worker *w)
{
	size_t n = w->nr_deferred;
	size_t kept = 0;

	for (size_t i = 0; i < n; i++)
		if (handle(w, &w->deferred[i]) == DEFER)
			w->deferred[kept++] = w->deferred[i];
	w->nr_deferred = kept;
	return (unsigned int)(n - kept);
}

/* The VM-wide page of an address in the VM's process; false: none of ours. */
static bool page_of(const struct smv_guest_ram *ram, uint64_t addr, uint64_t *page)
{
	for (unsigned int i = 0; i < ram->nr_blocks; i++) {
		const struct smv_ram_block *b = &ram->blocks[i];

		if (addr >= b->host_addr && addr - b->host_addr < b->size_bytes) {
			*page = b->first_page + (addr - b->host_addr) / SMV_PAGE_SIZE;
			return true;
		}
	}
	return false;
}

static unsigned int read_messages(struct worker *w)
{
	struct uffd_msg msgs[64];
	ssize_t n = read(w->p->c.uffd, msgs, sizeof(msgs));
	unsigned int nr = n > 0 ? (unsigned int)((size_t)n / sizeof(msgs[0])) : 0;

	w->now_ns = smv_now_ns();
	for (unsigned int i = 0; i < nr; i++) {
		struct fault f = {.since_ns = w->now_ns};

		if (msgs[i].event != UFFD_EVENT_PAGEFAULT ||
			!page_of(w->p->c.ram, msgs[i].arg.pagefault.address, &f.page)) {
			smv_log_warning("VM '%s': unexpected userfaultfd event %u", w->p->c.name,
				msgs[i].event);
			continue;
		}
		f.write = msgs[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;
		smv_count(&w->p->faults, 1);
		if (handle(w, &f) == DEFER)
			defer(w, f);
	}
	return nr;
}

static void trace(struct smv_pager *p, const struct fault *f, uint64_t completed_ns, uint64_t now)
{
	struct smv_fault_times times = {f->since_ns, f->posted_ns, completed_ns, now};

	if (p->c.trace)
		p->c.trace(p->c.trace_ctx, f->page, &times);
}

static bool is_what_was_written(const struct smv_pager *p, const void *data, smv_page_word word)
{
	return p->c.skip_checksums || smv_fault_point("checksum-not-verified") ||
	       smv_page_checksum(data) == smv_word_checksum(word);
}

/* @completed_ns: 0: nobody measures */
static void finish_fetch(struct worker *w, unsigned int i, int status, uint64_t completed_ns)
{
	struct smv_pager *p = w->p;
	struct smv_pagemap *map = p->c.map;
	struct fault f = w->fetches[i];
	char *data = (char *)smv_remote_staging(p->fault_remote) + i * SMV_PAGE_SIZE;
	smv_page_word word;
	bool waiter, over_data;
	int r = status;

	(void)smv_fault_point("fetched");
	w->idle[w->nr_idle++] = (uint16_t)i;
	w->fetches[i].since_ns = 0;
	smv_pagemap_lock(map, f.page);
	word = smv_pagemap_get(map, f.page);
	assert(smv_word_state(word) == SMV_PAGE_FETCHING);
	waiter = word & SMV_WORD_WAITER;
	over_data = word & SMV_WORD_OVER_DATA;
	word &= ~(SMV_WORD_WAITER | SMV_WORD_OVER_DATA);
	if (status == 0 && !is_what_was_written(p, data, word)) {
		frame_return(p);
		lose(w, f.page, word, "what its sub-host returned has another checksum");
		smv_pagemap_unlock(map, f.page);
		return;
	}
	if (status == 0)
		r = over_data ? place_over_data(
					p, f.page, data, word | SMV_WORD_REMOTE_VALID, !f.write)
			      : place(p, f.page, data, !f.write);
	if (r == 0) {
		uint64_t now = smv_now_ns();

		if (!over_data)
			became_local(p, f.page, word | SMV_WORD_REMOTE_VALID);
		smv_count(&p->page_ins, 1);
		smv_histogram_record(&p->latency_ns, now - f.since_ns);
		trace(p, &f, completed_ns, now);
	} else {
		frame_return(p);
		smv_pagemap_set(map, f.page, smv_word_with_state(word, SMV_PAGE_COLD));
	}
	smv_pagemap_unlock(map, f.page);
	/* Messages that were read while the read was under way belong to threads that came after,
	 * and perhaps after the copy had woken the others. */
	if (waiter)
		wake(w, f.page);
	if (r < 0 && r != -ESRCH)
		defer(w, f);
}

static unsigned int reap(struct worker *w)
{
	struct smv_remote_completion c[64];
	unsigned int n = smv_remote_poll(w->p->fault_remote, c, 64);
	uint64_t now = n && w->p->c.trace ? smv_now_ns() : 0;

	for (unsigned int i = 0; i < n; i++)
		finish_fetch(w, (unsigned int)c[i].cookie, c[i].status, now);
	return n;
}

static void mend(struct worker *w)
{
	struct smv_error why = {0};
	bool down = smv_remote_mend(w->p->fault_remote, &why) > 0;
	bool lost = down && why.code == SMV_DATA_LOSS;

	/* Not at each new reason why it is not reached, but when its data turns out to be lost. */
	if (down != w->server_down || lost != w->server_lost)
		smv_pager_set_trouble(w->p, SMV_TROUBLE_FAULTS, down ? why.message : "");
	w->server_lost = lost;
	w->server_down = down;
	w->some_lost = smv_pager_note_losses(w->p, w->p->fault_remote, SMV_FAULT_THREAD);
	w->mend_at_ns = smv_now_ns() + RETRY_MS * SMV_NS_PER_MS;
}

static void forget_answered(struct worker *w)
{
	size_t kept = 0;

	for (size_t i = 0; i < w->nr_held; i++) {
		smv_page_word word = smv_pagemap_get(w->p->c.map, w->held[i].page);
		enum smv_page_state state = smv_word_state(word);

		if ((state == SMV_PAGE_OUT || state == SMV_PAGE_SAVED) && (word & SMV_WORD_WAITER))
			w->held[kept++] = w->held[i];
	}
	w->nr_held = kept;
}

static void earlier(uint64_t *since_ns, uint64_t other_ns)
{
	if (other_ns && (!*since_ns || other_ns < *since_ns))
		*since_ns = other_ns;
}

/* Since when the fault waits that waits longest; 0: none does. */
static uint64_t oldest_wait(struct worker *w)
{
	uint64_t since;

	forget_answered(w);
	/* A lost page may have been discarded, and with the last one those who waited for it. */
	if (smv_pagemap_count(w->p->c.map, SMV_PAGE_LOST) == 0)
		w->lost_since_ns = 0;
	since = w->lost_since_ns;
	for (size_t i = 0; i < w->nr_held; i++)
		earlier(&since, w->held[i].since_ns);
	for (size_t i = 0; i < w->nr_deferred; i++)
		earlier(&since, w->deferred[i].since_ns);
	for (size_t i = 0; w->nr_idle < SMV_MAX_FETCHES && i < SMV_MAX_FETCHES; i++)
		earlier(&since, w->fetches[i].since_ns);
	return since;
}

/* Now and then; always while a fault waits for long, so that the end is seen when it comes. */
static void keep_watch(struct worker *w)
{
	uint64_t since;
	bool stalled;

	if (w->now_ns < w->watch_at_ns && (!w->stalled || w->lost_since_ns))
		return;
	w->watch_at_ns = w->now_ns + WATCH_NS;
	smv_pagemap_set_served(w->p->c.map, w->now_ns);
	since = oldest_wait(w);
	stalled = since && w->now_ns > since + SMV_STALL_NS;
	if (stalled || w->stalled)
		smv_health_waiting(&w->p->health, since, w->now_ns);
	w->stalled = stalled;
}

static void sleep_until_work(struct worker *w)
{
	struct pollfd fds[SMV_SUB_HOSTS_MAX + 2] = {
		{.fd = w->p->c.uffd, .events = POLLIN}, {.fd = w->p->kick_fault, .events = POLLIN}};
	bool waiting = w->nr_held || w->nr_idle < SMV_MAX_FETCHES;
	int timeout = w->nr_deferred || w->server_down ? RETRY_MS : waiting ? WATCH_MS : 1000;
	int n = smv_remote_pollfds(w->p->fault_remote, fds + 2, &timeout);

	if (n >= 0)
		poll(fds, (nfds_t)n + 2, timeout);
}

void *smv_fault_thread(void *arg)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w) {
		smv_pager_set_trouble(arg, SMV_TROUBLE_FAULTS, "out of memory: no fault is served");
		smv_log_error("out of memory: no fault is served");
		return NULL;
	}
	w->p = arg;
	for (unsigned int i = 0; i < SMV_MAX_FETCHES; i++)
		w->idle[w->nr_idle++] = (uint16_t)(SMV_MAX_FETCHES - 1 - i);
	while (!atomic_load(&w->p->stop)) {
		unsigned int progress = read_messages(w);

		progress += reap(w);
		if (w->nr_deferred && atomic_load(&w->p->frames_free) > 0 && !w->server_down)
			progress += retry_deferred(w);
		keep_watch(w);
		/* While there is work as well: there may be work without end. */
		if (!progress || w->now_ns >= w->mend_at_ns)
			mend(w);
		if (progress)
			continue;
		if (w->nr_deferred && smv_now_ns() >= w->retry_at_ns) {
			w->retry_at_ns = smv_now_ns() + RETRY_MS * SMV_NS_PER_MS;
			retry_deferred(w);
		}
		sleep_until_work(w);
		smv_drain(w->p->kick_fault);
	}
	free(w->deferred);
	free(w);
	return NULL;
}
