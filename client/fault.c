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
#include "common/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RETRY_MS 50

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
	uint64_t retry_at_ns;
	bool server_down;
	bool server_lost;
	uint64_t nr_lost_logged;
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

static void lose(struct worker *w, uint64_t page, smv_page_word word, const char *why)
{
	if (smv_word_state(word) == SMV_PAGE_LOCAL) {
		atomic_fetch_sub(&w->p->range_local[page / SMV_EXTENT_PAGES], 1);
		if (smv_word_activity(word) == SMV_PAGE_INACTIVE)
			atomic_fetch_sub(&w->p->nr_inactive, 1);
		frame_return(w->p);
	}
	smv_pagemap_set(w->p->c.map, page, smv_word_with_state(word, SMV_PAGE_LOST));
	if (w->nr_lost_logged++ < 100)
		smv_log_error(
			"VM '%s': page %lu is LOST: %s; its threads wait", w->p->c.name, page, why);
	smv_pager_set_trouble(
		w->p, SMV_TROUBLE_LOST, "a page is lost; threads that touch it wait for ever");
}

/* The page is in the file and has no PTE: map it. The caller holds its lock. */
static enum outcome map_local(struct worker *w, const struct fault *f, smv_page_word word)
{
	struct smv_pager *p = w->p;
	struct smv_page_at at = smv_page_at(p, f->page);
	uint64_t pte = 0;
	int r;

	/* Only a page whose marker says write-protected may be mapped so: without the marker it was
	 * written since it was last saved, and protecting it now would make it look clean. */
	if (!f->write)
		smv_pagemap_read(p->c.pagemap_fd, at.addr, &pte, 1);
	r = smv_uffd_continue(p->c.uffd, at.addr, SMV_PAGE_SIZE, pte & SMV_PAGEMAP_UFFD_WP);
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
	smv_pagemap_set(p->c.map, f->page, smv_word_with_state(word, SMV_PAGE_FETCHING));
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
	case SMV_PAGE_FETCHING:
	case SMV_PAGE_OUT:
	case SMV_PAGE_SAVED:
		/* Whoever moves the page looks at this when it is done. */
		smv_pagemap_set(map, f->page, word | SMV_WORD_WAITER);
		break;
	case SMV_PAGE_UNKNOWN:
	case SMV_PAGE_NR_STATES:
		lose(w, f->page, smv_word_with_slot(word, SMV_SLOT_NONE),
			"the source never reported it");
		break;
	case SMV_PAGE_LOST:
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
	uint64_t now = smv_now_ns();

	for (unsigned int i = 0; i < nr; i++) {
		struct fault f = {.since_ns = now};

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

/* @completed_ns: 0: nobody measures */
static void finish_fetch(struct worker *w, unsigned int i, int status, uint64_t completed_ns)
{
	struct smv_pager *p = w->p;
	struct smv_pagemap *map = p->c.map;
	struct fault f = w->fetches[i];
	char *data = (char *)smv_remote_staging(p->fault_remote) + i * SMV_PAGE_SIZE;
	smv_page_word word;
	bool waiter;
	int r = status;

	w->idle[w->nr_idle++] = (uint16_t)i;
	smv_pagemap_lock(map, f.page);
	word = smv_pagemap_get(map, f.page);
	assert(smv_word_state(word) == SMV_PAGE_FETCHING);
	waiter = word & SMV_WORD_WAITER;
	word &= ~SMV_WORD_WAITER;
	if (status == 0 && smv_page_checksum(data) != smv_word_checksum(word)) {
		frame_return(p);
		lose(w, f.page, word, "what its sub-host returned has another checksum");
		smv_pagemap_unlock(map, f.page);
		return;
	}
	if (status == 0)
		r = place(p, f.page, data, !f.write);
	if (r == 0) {
		uint64_t now = smv_now_ns();

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
}

static void sleep_until_work(struct worker *w)
{
	struct pollfd fds[SMV_SUB_HOSTS_MAX + 2] = {
		{.fd = w->p->c.uffd, .events = POLLIN}, {.fd = w->p->kick_fault, .events = POLLIN}};
	int timeout = w->nr_deferred || w->server_down ? RETRY_MS : 1000;
	int n = smv_remote_pollfds(w->p->fault_remote, fds + 2, &timeout);

	if (n >= 0)
		poll(fds, (nfds_t)n + 2, timeout);
}

void *smv_fault_thread(void *arg)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w) {
		smv_pager_set_trouble(arg, SMV_TROUBLE_FAULTS, "out of memory: no fault is served");
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
		if (progress)
			continue;
		mend(w);
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
