/* SPDX-License-Identifier: Apache-2.0 */
#include "client/discard.h"

#include "client/pager_internal.h"
#include "client/uffd.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "vmm/shim_proto.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOK_AGAIN_MS 1

static void free_frame(struct smv_pager *p, uint64_t page, smv_page_word word)
{
	atomic_fetch_sub(&p->range_local[page / SMV_EXTENT_PAGES], 1);
	if (smv_word_activity(word) == SMV_PAGE_INACTIVE)
		atomic_fetch_sub(&p->nr_inactive, 1);
	atomic_fetch_add(&p->frames_free, 1);
}

/* It is nobody's loss any more. */
static void find_again(struct smv_pager *p, uint64_t page)
{
	int r = smv_uffd_wake(p->c.uffd, smv_page_at(p, page).addr, SMV_PAGE_SIZE);

	if (r < 0 && r != -ESRCH)
		smv_log_error("VM '%s': cannot wake the waiters of page %lu: %s", p->c.name, page,
			strerror(-r));
	if (smv_pagemap_count(p->c.map, SMV_PAGE_LOST) == 0)
		smv_pager_set_trouble(p, SMV_TROUBLE_LOST, "");
}

/* @word -> ZERO. The caller holds the page's lock. */
static int become_zero(struct smv_pager *p, uint64_t page, smv_page_word word)
{
	enum smv_page_state state = smv_word_state(word);

	/* The word first: a hole that it does not know of would be a loss. */
	if (!smv_fault_point("discard-not-recorded"))
		smv_pagemap_set(p->c.map, page, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	smv_fault_point("discard-recorded");
	if ((state == SMV_PAGE_LOCAL || smv_pager_has_data(p, page)) &&
		smv_pager_punch(p, page, 1) < 0) {
		smv_pagemap_set(p->c.map, page, word & ~SMV_WORD_REMOTE_VALID);
		return -EIO;
	}
	if (smv_word_slot(word) != SMV_SLOT_NONE && !smv_fault_point("discard-keep-slot"))
		smv_slots_free(p->c.slots, smv_word_slot(word));
	if (state == SMV_PAGE_LOCAL)
		free_frame(p, page, word);
	if (state == SMV_PAGE_LOST)
		find_again(p, page);
	if (state != SMV_PAGE_ZERO)
		smv_count(&p->discards, 1);
	return 0;
}

/* 0; -EAGAIN: the page is on its way; -EIO. */
static int discard_page(struct smv_pager *p, uint64_t page)
{
	smv_page_word word;
	int r = 0;

	smv_pagemap_lock(p->c.map, page);
	word = smv_pagemap_get(p->c.map, page);
	switch (smv_word_state(word)) {
	case SMV_PAGE_ZERO:
	case SMV_PAGE_COLD:
	case SMV_PAGE_LOCAL:
	case SMV_PAGE_LOST:
		r = become_zero(p, page, word);
		break;
	case SMV_PAGE_FETCHING:
	case SMV_PAGE_OUT:
	case SMV_PAGE_SAVED:
		r = -EAGAIN;
		break;
	case SMV_PAGE_UNKNOWN:
	case SMV_PAGE_NR_STATES:
		break;
	}
	smv_pagemap_unlock(p->c.map, page);
	return r;
}

/* Once over [*first, *end), which becomes what is to be looked at again. */
static int discard_once(struct smv_pager *p, uint64_t *first, uint64_t *end)
{
	uint64_t again = *end, again_end = *end, before = p->discards;
	int status = 0;

	for (uint64_t page = *first; page < *end && !atomic_load(&p->stop); page++) {
		int r = discard_page(p, page);

		if (r == -EAGAIN) {
			again = again < page ? again : page;
			again_end = page + 1;
		} else if (r < 0) {
			status = r;
		}
	}
	*first = again;
	*end = again_end;
	/* Somebody may wait for a frame. */
	if (p->discards != before)
		smv_kick(p->kick_fault);
	return status;
}

static int discard(struct smv_pager *p, const struct smv_shim_discard *d)
{
	const struct smv_ram_block *b = p->c.ram->blocks;
	uint64_t first, end;
	int status = 0;

	if (d->file >= p->c.ram->nr_blocks)
		return -EINVAL;
	b += d->file;
	if ((d->offset | d->len) % SMV_PAGE_SIZE || d->offset < b->file_offset ||
		d->len > b->size_bytes || d->offset - b->file_offset > b->size_bytes - d->len)
		return -EINVAL;
	first = b->first_page + (d->offset - b->file_offset) / SMV_PAGE_SIZE;
	end = first + d->len / SMV_PAGE_SIZE;
	while (first < end && !atomic_load(&p->stop)) {
		int r = discard_once(p, &first, &end);

		status = r < 0 ? r : status;
		if (first < end)
			smv_sleep_ms(LOOK_AGAIN_MS);
	}
	if (status < 0)
		smv_log_error("VM '%s': %lu pages at %lu of RAM block '%s' were not all "
			      "discarded: %s",
			p->c.name, d->len / SMV_PAGE_SIZE, d->offset, b->id, strerror(-status));
	return status;
}

/* False: nobody asks any more. */
static bool receive(int fd, struct smv_shim_discard *d)
{
	ssize_t n;

	do
		n = recv(fd, d, sizeof(*d), 0);
	while (n < 0 && errno == EINTR);
	return n == sizeof(*d);
}

/* QEMU's thread waits for it: without memory for the answer it is tried again. */
static bool answer(struct smv_pager *p, const struct smv_shim_reply *reply)
{
	while (send(p->discards_fd, reply, sizeof(*reply), MSG_NOSIGNAL) < 0) {
		if ((errno != EINTR && errno != ENOBUFS && errno != ENOMEM) ||
			atomic_load(&p->stop))
			return false;
		smv_sleep_ms(LOOK_AGAIN_MS);
	}
	return true;
}

static void *discard_thread(void *arg)
{
	struct smv_pager *p = arg;
	struct smv_shim_discard d;

	while (receive(p->discards_fd, &d)) {
		struct smv_shim_reply reply = {.status = discard(p, &d)};

		/* Not done as a whole: our successor is asked again. */
		if (atomic_load(&p->stop) || !answer(p, &reply))
			break;
	}
	return NULL;
}

int smv_pager_serve_discards(struct smv_pager *p, int fd, struct smv_error *err)
{
	int r;

	p->discards_fd = fd;
	r = pthread_create(&p->discard_thread, NULL, discard_thread, p);
	if (r == 0)
		return 0;
	close(fd);
	p->discards_fd = -1;
	return smv_fail(err, SMV_NO_ROOM, "no-threads", NULL,
		"cannot start a thread of the pager of VM '%s': %s", p->c.name, strerror(r));
}

void smv_discards_stop(struct smv_pager *p)
{
	if (p->discards_fd < 0)
		return;
	atomic_store(&p->stop, true);
	shutdown(p->discards_fd, SHUT_RDWR);
	pthread_join(p->discard_thread, NULL);
	close(p->discards_fd);
	p->discards_fd = -1;
}
