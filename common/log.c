/* SPDX-License-Identifier: Apache-2.0 */
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int max_level = SMV_LOG_INFO;
static const char *const level_names[] = {"error", "warning", "info", "debug"};

void smv_log_set_level(enum smv_log_level level)
{
	atomic_store(&max_level, (int)level);
}

int smv_log_level_parse(const char *text, enum smv_log_level *level)
{
	for (int i = 0; i <= SMV_LOG_DEBUG; i++) {
		if (strcmp(text, level_names[i]) == 0) {
			*level = (enum smv_log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

void smv_log(enum smv_log_level level, const char *fmt, ...)
{
	extern char *program_invocation_short_name;
	char line[1400];
	struct timespec ts;
	struct tm tm;
	va_list ap;
	size_t n;
	int saved_errno = errno;

	if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
	n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ldZ %s %s: ",
		ts.tv_nsec / 1000000, level_names[level], program_invocation_short_name);
	va_start(ap, fmt);
	n += (size_t)vsnprintf(line + n, sizeof(line) - n, fmt, ap);
	va_end(ap);
	if (n > sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	/* One write per line, so lines of different threads never mix. */
	if (write(STDERR_FILENO, line, n) < 0)
		errno = saved_errno; /* nowhere left to complain to */
	errno = saved_errno;
}
