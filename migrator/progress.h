/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a migration goes, while it goes: a bar on a terminal, lines in a log elsewhere, and
 * status.json for "smemv-migrate status". A thread draws and writes it, a few times a second, so it
 * also tells that the process lives. One migration per process; all functions may be called by one
 * thread.
 */
#ifndef SMV_MIGRATOR_PROGRESS_H
#define SMV_MIGRATOR_PROGRESS_H

#include "migrator/journal.h"

#include <stdint.h>

/** smv_progress_begin - @journal: gets status.json; NULL: none. It must outlive smv_progress_end().
 */
void smv_progress_begin(const struct smv_journal *journal);
/** smv_progress_phase - a new phase begins: @name for machines, the rest for people. */
void smv_progress_phase(const char *name, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/** smv_progress_round - round @round with @pages to send begins. */
void smv_progress_round(unsigned int round, uint64_t pages);
/** smv_progress_done - of this round @pages are sent. */
void smv_progress_done(uint64_t pages);
/** smv_progress_estimate - what the VM dirties per second, what is dirty now, and how long it would
 * stand still if it were stopped now. */
void smv_progress_estimate(double dirty_pages_per_s, uint64_t remaining_pages, double downtime_ms);
/** smv_progress_log - a line for the log that does not mix with the bar. */
void smv_progress_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/** smv_progress_end - stop drawing; the terminal's line is free again. */
void smv_progress_end(void);

#endif
