/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SMV_COMMON_CLOCK_H
#define SMV_COMMON_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <time.h>

#define SMV_NS_PER_US 1000ull
#define SMV_NS_PER_MS 1000000ull
#define SMV_NS_PER_S 1000000000ull

/** smv_now_ns - CLOCK_MONOTONIC in nanoseconds. */
static inline uint64_t smv_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SMV_NS_PER_S + (uint64_t)ts.tv_nsec;
}

/** smv_ms_since - milliseconds since @ns, which is of smv_now_ns(). */
static inline double smv_ms_since(uint64_t ns)
{
	return (double)(smv_now_ns() - ns) / 1e6;
}

/** smv_sleep_ms - sleep, resumed over signals. */
static inline void smv_sleep_ms(unsigned int ms)
{
	struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000L};

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

#endif
