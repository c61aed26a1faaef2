/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

void wait_ready(int fd)
{
	char log[8000];
	size_t n = 0;
	ssize_t got;

	while (n < sizeof(log) - 1 && (got = read(fd, log + n, sizeof(log) - 1 - n)) > 0) {
		n += (size_t)got;
		log[n] = '\0';
		if (strstr(log, "ready: "))
			return;
	}
	cr_assert_fail("the daemon did not start: %.*s", (int)n, log);
}
