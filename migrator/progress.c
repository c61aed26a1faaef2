/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/progress.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/units.h"
#include "migrator/report.h"
#include "vmm/guest_ram.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS 200
#define BAR_WIDTH 24

static struct {
	pthread_mutex_t lock;
	pthread_t thread;
	bool running, ending;
	const struct smv_journal *journal;
	char name[32], text[200];
	unsigned int round;
	uint64_t done, total; /* pages of this round */
	double dirty_pages_per_s, downtime_ms;
	uint64_t remaining_pages;
	double bytes_per_s; /* smoothed */
	uint64_t last_done, last_ns, start_ns, beat;
} p = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t left(void)
{
	return p.total > p.done ? p.total - p.done : 0;
}

static void measure(void)
{
	uint64_t now = smv_now_ns();
	double s = (double)(now - p.last_ns) / 1e9;

	if (s > 0 && p.done >= p.last_done && p.total) {
		double rate = (double)(p.done - p.last_done) * SMV_PAGE_SIZE / s;

		p.bytes_per_s = p.bytes_per_s > 0 ? 0.7 * p.bytes_per_s + 0.3 * rate : rate;
	}
	p.last_ns = now;
	p.last_done = p.done;
}

/* Also of what is said before smv_progress_begin(). */
static bool on_terminal(void)
{
	static int is = -1;

	if (is < 0)
		is = isatty(STDERR_FILENO);
	return is;
}

/* A person may have stopped the terminal (Ctrl-S). The VM does not wait for it: what cannot be
 * shown now is left out. */
static bool terminal_takes(void)
{
	struct pollfd fd = {.fd = STDERR_FILENO, .events = POLLOUT};

	return poll(&fd, 1, 0) == 1 && (fd.revents & POLLOUT);
}

static void draw(void)
{
	char bar[BAR_WIDTH + 1], rate[32], dirty[32], rest[32];
	int full = p.total ? (int)(p.done * BAR_WIDTH / p.total) : 0;

	if (!terminal_takes())
		return;
	if (!p.total) {
		fprintf(stderr, "\r\033[K%s", p.text);
		return;
	}
	full = full > BAR_WIDTH ? BAR_WIDTH : full;
	memset(bar, '#', BAR_WIDTH);
	memset(bar + full, '.', (size_t)(BAR_WIDTH - full));
	bar[BAR_WIDTH] = '\0';
	fprintf(stderr, "\r\033[K%s round %u [%s] %s left, %s/s", p.name, p.round, bar,
		smv_format_size(left() * SMV_PAGE_SIZE, rest, sizeof(rest)),
		smv_format_size((uint64_t)p.bytes_per_s, rate, sizeof(rate)));
	if (p.downtime_ms > 0)
		fprintf(stderr, ", dirtied %s/s, downtime ~%.0f ms",
			smv_format_size((uint64_t)p.dirty_pages_per_s * SMV_PAGE_SIZE, dirty,
				sizeof(dirty)),
			p.downtime_ms);
}

static json_t *status(void)
{
	return json_pack("{s:s, s:o, s:i, s:I, s:I, s:f, s:f, s:I, s:f, s:f, s:I}", "phase", p.name,
		"text", smv_json_text(p.text), "round", (int)p.round, "round_pages_done",
		(json_int_t)p.done, "round_pages", (json_int_t)p.total, "bytes_per_s",
		p.bytes_per_s, "dirty_bytes_per_s", p.dirty_pages_per_s * SMV_PAGE_SIZE,
		"remaining_bytes",
		(json_int_t)((p.total ? left() : p.remaining_pages) * SMV_PAGE_SIZE),
		"expected_downtime_ms", p.downtime_ms, "elapsed_ms",
		smv_ms_since(p.start_ns), "beat", (json_int_t)p.beat++);
}

static void *tick(void *unused)
{
	(void)unused;
	for (;;) {
		json_t *now;
		bool ending;

		pthread_mutex_lock(&p.lock);
		measure();
		if (on_terminal() && !p.ending)
			draw();
		now = status();
		ending = p.ending;
		pthread_mutex_unlock(&p.lock);
		if (p.journal)
			smv_journal_publish(p.journal, "status.json", now);
		else
			json_decref(now);
		if (ending)
			return NULL;
		smv_sleep_ms(TICK_MS);
	}
}

void smv_progress_begin(const struct smv_journal *journal)
{
	p.journal = journal;
	p.start_ns = p.last_ns = smv_now_ns();
	p.ending = false;
	p.running = pthread_create(&p.thread, NULL, tick, NULL) == 0;
}

void smv_progress_phase(const char *name, const char *fmt, ...)
{
	va_list ap;

	pthread_mutex_lock(&p.lock);
	snprintf(p.name, sizeof(p.name), "%s", name);
	va_start(ap, fmt);
	vsnprintf(p.text, sizeof(p.text), fmt, ap);
	va_end(ap);
	p.total = p.done = p.last_done = 0;
	if (on_terminal())
		draw();
	else
		smv_log_info("%s", p.text);
	pthread_mutex_unlock(&p.lock);
}

void smv_progress_round(unsigned int round, uint64_t pages)
{
	pthread_mutex_lock(&p.lock);
	p.round = round;
	p.total = pages;
	p.done = p.last_done = 0;
	p.last_ns = smv_now_ns();
	p.bytes_per_s = 0;
	pthread_mutex_unlock(&p.lock);
}

void smv_progress_done(uint64_t pages)
{
	pthread_mutex_lock(&p.lock);
	p.done = pages;
	pthread_mutex_unlock(&p.lock);
}

void smv_progress_estimate(double dirty_pages_per_s, uint64_t remaining_pages, double downtime_ms)
{
	pthread_mutex_lock(&p.lock);
	p.dirty_pages_per_s = dirty_pages_per_s;
	p.remaining_pages = remaining_pages;
	p.downtime_ms = downtime_ms;
	pthread_mutex_unlock(&p.lock);
}

void smv_progress_log(const char *fmt, ...)
{
	char line[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&p.lock);
	if (on_terminal() && terminal_takes())
		fprintf(stderr, "\r\033[K");
	if (!on_terminal() || terminal_takes())
		smv_log_info("%s", line);
	pthread_mutex_unlock(&p.lock);
}

void smv_progress_end(void)
{
	if (!p.running)
		return;
	pthread_mutex_lock(&p.lock);
	p.ending = true;
	pthread_mutex_unlock(&p.lock);
	pthread_join(p.thread, NULL);
	p.running = false;
	if (on_terminal() && terminal_takes())
		fprintf(stderr, "\r\033[K");
}
