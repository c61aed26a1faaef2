/* SPDX-License-Identifier: Apache-2.0 */
#include "common/process.h"

#include "common/cleanup.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>

int smv_process_identify(pid_t pid, struct smv_process *process)
{
	CLEANUP_FILE FILE *file = NULL;
	char path[64], line[1024], state;
	unsigned long start;
	const char *rest;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return errno == ENOENT ? -ESRCH : -errno;
	errno = ESRCH;
	if (!fgets(line, sizeof(line), file))
		return -errno;
	/* The second field is the program's name in parentheses, and may hold any character. */
	rest = strrchr(line, ')');
	if (!rest || sscanf(rest + 1,
			     " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
			     "%*d %*d %lu",
			     &state, &start) != 2)
		return -EPROTO;
	if (state == 'Z' || state == 'X')
		return -ESRCH;
	*process = (struct smv_process){pid, start};
	return 0;
}

int smv_process_open(const struct smv_process *process)
{
	CLEANUP_CLOSE int fd = pidfd_open(process->pid, 0);
	struct smv_process now;
	int r;

	if (fd < 0)
		return -errno;
	/* Looked at behind the pidfd: if it is the right one now, the pidfd is of the right one. */
	r = smv_process_identify(process->pid, &now);
	/* The first thread can have ended before the others. */
	if (r == -ESRCH && poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 0)
		return -EIO;
	if (r == 0 && now.start_time != process->start_time)
		r = -ESRCH;
	return r < 0 ? r : smv_take_fd(&fd);
}

int smv_process_signal(const struct smv_process *process, int sig)
{
	CLEANUP_CLOSE int fd = smv_process_open(process);

	if (fd < 0)
		return fd;
	return pidfd_send_signal(fd, sig, NULL, 0) < 0 ? -errno : 0;
}
