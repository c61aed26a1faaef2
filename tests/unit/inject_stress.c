/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inject_stress PID N: N / 2 times a userfaultfd made, fetched and closed in a process, and how
 * long one of its threads was stopped for each: "injections=200 failed=0 p50_us=... max_us=...".
 */
#include "vmm/inject.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* One system call: its result, or -1 with a message. */
static long call(struct smv_inject *inject, long nr, uint64_t argument, uint64_t *pause_ns)
{
	struct smv_inject_call c = {.nr = nr, .args = {argument}};
	struct smv_error err;

	if (smv_inject_run(inject, &c, 1, NULL, &err) < 0) {
		fprintf(stderr, "%s\n", err.message);
		return -1;
	}
	*pause_ns = smv_inject_pause_ns(inject);
	return c.result;
}

static int once(struct smv_inject *inject, int pidfd, uint64_t pauses_ns[2])
{
	long fd = call(inject, SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY, &pauses_ns[0]);
	int copy = fd < 0 ? -1 : pidfd_getfd(pidfd, (int)fd, 0);

	if (copy >= 0)
		close(copy);
	return copy < 0 || call(inject, SYS_close, (uint64_t)fd, &pauses_ns[1]) != 0;
}

int main(int argc, char **argv)
{
	pid_t pid = argc == 3 ? (pid_t)atoi(argv[1]) : 0;
	unsigned int n = argc == 3 ? (unsigned int)atoi(argv[2]) : 0, failed = 0, half = n / 2;
	uint64_t *pauses_ns = calloc(n + 2, sizeof(*pauses_ns));
	struct smv_inject *inject;
	struct smv_error err = {.message = "usage: inject_stress PID N"};
	int pidfd = pid ? pidfd_open(pid, 0) : -1;

	if (pidfd < 0 || !pauses_ns || !half || smv_inject_open(pid, &inject, &err) < 0) {
		fprintf(stderr, "%s\n", err.message);
		return 2;
	}
	for (unsigned int i = 0; i < half; i++)
		failed += (unsigned int)once(inject, pidfd, pauses_ns + i * 2);
	qsort(pauses_ns, half * 2, sizeof(*pauses_ns), compare);
	printf("injections=%u failed=%u p50_us=%lu max_us=%lu\n", half * 2, failed,
		pauses_ns[half] / 1000, pauses_ns[half * 2 - 1] / 1000);
	smv_inject_close(inject);
	close(pidfd);
	free(pauses_ns);
	return failed != 0;
}
