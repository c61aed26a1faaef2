/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a page is whose pager died, told from its word in the page map and from whether the RAM file
 * holds data there. Both stand still then: the threads of the dead pager are gone (its file lock
 * shows it), so no system call of theirs is under way; its connections are fenced; and nobody
 * resolves a fault, so no page appears in the file or goes from it.
 *
 *   word      file   becomes   why
 *   ZERO      hole   ZERO      nothing was under way
 *   ZERO      data   LOCAL     zeros were placed, and perhaps written to, before the word was set.
 *                              REMOTE_VALID without a slot ("was zeros when it was mapped
 *                              protected") is true: mapped for a write it has no marker.
 *                              Or it was being discarded: then it may have a marker, and count as
 *                              zeros, and that is what it must become, because QEMU waits for the
 *                              answer, and asks again before the guest may use the page.
 *                              Or zeros were left of a huge page that could not be split
 *   LOCAL     data   LOCAL     slot and REMOTE_VALID speak of the last protected mapping, which is
 *                              as it was; the marker is in the page table, not here
 *   LOCAL     hole   LOST      only SAVED pages are punched: somebody else took it
 *   FETCHING  hole   COLD      the read was not done, its frame is free again. Data counts as a hole,
 *                              and is punched out, if the word says OVER_DATA
 *   FETCHING  data   LOCAL     UFFDIO_COPY puts a page in place whole or not at all, after the
 *                              checksum was compared. It may have been written since: then its
 *                              marker is gone, so REMOTE_VALID is true
 *   OUT       data   LOCAL     its write may have been done, in part or not at all: the slot is
 *                              kept as room, but REMOTE_VALID is not, so it will be written again
 *   OUT       hole   LOST      a page is not punched before it is SAVED
 *   SAVED     data   LOCAL     acknowledged, not punched: the slot holds what the page held when it
 *                              was frozen, and nobody has it mapped. If it has a slot,
 *                              zeros or another checksum count as a hole, and are punched out:
 *                              see punch_and_finish() in client/evict.c
 *   SAVED     hole   COLD      punched, after the acknowledgement. Without a slot: ZERO
 *   COLD      hole   COLD      nothing was under way
 *   COLD      data   COLD      the map is right, as in the fault thread: the data is punched out
 *   UNKNOWN   any    UNKNOWN   no VM runs before every page was reported: a touch makes it LOST
 *   LOST      any    LOST
 *
 * Everywhere: WAITER goes, because all waiters are woken and fault again; a LOCAL page is ACTIVE,
 * because a sweep makes it INACTIVE again, and one that has no PTE is mapped at its next fault.
 * That a slot's sub-host has lost its memory makes no difference here: it is not known yet, and
 * client/loss.h says what becomes of these states then.
 * Settling twice is settling once: a pager that dies while it takes over does no harm.
 */
#ifndef SMV_CLIENT_SETTLE_H
#define SMV_CLIENT_SETTLE_H

#include "client/pagemap.h"

/** smv_settle_word - the table above. @data: the RAM file has data there, which must be punched out
 * when the result is COLD. */
smv_page_word smv_settle_word(smv_page_word word, bool data);

/** smv_settle_check - NULL, or why no pager of ours can have left @word. */
const char *smv_settle_check(smv_page_word word);

#endif
