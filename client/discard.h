/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Discards: the guest has given up pages (balloon, free-page reporting), and the shim in QEMU hands
 * that over instead of punching them out of the RAM file (vmm/shim_discards.h). The pages read as
 * zeros from then on, and their room comes back, here and at the sub-hosts.
 *
 * Under the page's lock:
 *
 *   word               becomes
 *   ZERO               ZERO; should the file have data there, it goes
 *   COLD               ZERO, its slot is freed
 *   LOCAL              ZERO, then punched, its slot and its frame are freed
 *   LOST               ZERO, its slot is freed, its threads are woken: nothing is missing any more
 *   FETCHING, OUT, SAVED   left to who moves it and looked at again when the others are done. Each
 *                      of these ends with the deadline of a request, in COLD, ZERO, LOCAL or LOST
 *   UNKNOWN            left alone
 *
 * The guest does not write a page before the discard of it has returned, and no word of the map
 * becomes zero but by such a request. What else may look at the page meanwhile:
 *
 * - The fault thread holds the page's lock from its look at the word until the page is in place,
 *   and so do we from the word to the hole: it sees the page as it was, or ZERO and a hole. A
 *   fault that was deferred meets the new word.
 * - The evictor: its FIFO names ranges, and it looks at the words under the lock; a page in its
 *   batch is OUT or SAVED. A page that it zaps is ZAPPING: it is not counted as inactive yet.
 * - Markers of write-protection may be left in the page table, or not. They say nothing of a page
 *   that is ZERO: it becomes LOCAL by UFFDIO_COPY or UFFDIO_CONTINUE, which say how it is mapped.
 * - Who dies between word and hole leaves ZERO with data. What the successor makes of it may be the
 *   old content or zeros, see client/settle.h: the guest has not been told that the page is
 *   discarded, and must not look at it; the shim asks the successor for the same again.
 * - If no hole comes, the word is what it was, but counts as dirty, and the guest's device is told
 *   that it failed.
 */
#ifndef SMV_CLIENT_DISCARD_H
#define SMV_CLIENT_DISCARD_H

#include "client/pager.h"

/**
 * smv_pager_serve_discards - answer each struct smv_shim_discard (vmm/shim_proto.h; file i is RAM
 * block i) that comes over @fd, a SOCK_SEQPACKET socket, until smv_pager_destroy().
 *
 * After the last smv_pager_install(), or smv_pager_take_over(). @fd is the pager's, also when this
 * fails.
 */
int smv_pager_serve_discards(struct smv_pager *pager, int fd, struct smv_error *err);

#endif
