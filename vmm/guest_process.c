/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/guest_process.h"

#include "common/cleanup.h"
#include "vmm/inject.h"
#include "vmm/shim_client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>

#ifndef USERFAULTFD_IOC_NEW /* Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define DEVICE "/dev/userfaultfd"
/* One thread stands still for this long a list. */
#define ZAP_CALLS_MAX 16

struct smv_guest_process {
	pid_t pid;
	struct smv_shim *shim; /* or NULL, then: */
	struct smv_inject *inject;
	int uffd_number; /* in QEMU, when we made it; else -1 */
};

static int make(pid_t pid, struct smv_shim *shim, struct smv_inject *inject,
	struct smv_guest_process **process, struct smv_error *err)
{
	*process = malloc(sizeof(**process));
	if (!*process) {
		smv_shim_close(shim);
		smv_inject_close(inject);
		return smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	}
	**process = (struct smv_guest_process){pid, shim, inject, -1};
	return 0;
}

int smv_guest_process_open_shim(
	const char *path, struct smv_guest_process **process, struct smv_error *err)
{
	struct smv_shim *shim;
	pid_t pid;
	int r = smv_shim_open(path, &shim, &pid, err);

	return r < 0 ? r : make(pid, shim, NULL, process, err);
}

int smv_guest_process_open_pid(pid_t pid, struct smv_guest_process **process, struct smv_error *err)
{
	struct smv_inject *inject;
	int r = smv_inject_open(pid, &inject, err);

	return r < 0 ? r : make(pid, NULL, inject, process, err);
}

void smv_guest_process_close(struct smv_guest_process *process)
{
	if (!process)
		return;
	smv_shim_close(process->shim);
	smv_inject_close(process->inject);
	free(process);
}

pid_t smv_guest_process_pid(const struct smv_guest_process *process)
{
	return process->pid;
}

bool smv_guest_process_is_traced(const struct smv_guest_process *process)
{
	return process->inject;
}

int smv_guest_process_uffd_number(const struct smv_guest_process *process)
{
	return process->uffd_number;
}

/* --- by ptrace ----------------------------------------------------------------------------- */

static int call(struct smv_guest_process *p, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
	const char *text, long *result, struct smv_error *err)
{
	struct smv_inject_call c = {.nr = nr, .args = {a0, a1, a2}};
	int r = smv_inject_run(p->inject, &c, 1, text, err);

	*result = c.result;
	return r;
}

static int refused(
	const struct smv_guest_process *p, long result, const char *what, struct smv_error *err)
{
	if (result == -EMFILE)
		return smv_fail(err, SMV_NO_ROOM, "userfaultfd",
			"Raise its limit: prlimit --nofile=4096 --pid PID",
			"QEMU (process %d) has no file descriptor left", (int)p->pid);
	if (result == -EPERM || result == -EACCES || result == -ENOENT)
		return smv_fail(err, SMV_PERMISSION, "userfaultfd",
			"Let QEMU's user read and write " DEVICE
			" (Linux 6.1 or later), e.g.: setfacl -m u:USER:rw " DEVICE
			". To keep it over a reboot, use a udev rule.",
			"QEMU (process %d) may not make a userfaultfd that handles faults of the "
			"kernel: %s: %s",
			(int)p->pid, what, strerror((int)-result));
	return smv_fail(err, smv_code_from_errno((int)result), "userfaultfd", NULL,
		"no userfaultfd in QEMU (process %d): %s: %s", (int)p->pid, what,
		strerror((int)-result));
}

/* What the shim does, see there: the system call, or the device where it is not allowed. */
static int make_uffd(struct smv_guest_process *p, struct smv_error *err)
{
	const uint64_t flags = O_CLOEXEC | O_NONBLOCK;
	long result, dev, ignored;
	int r = call(p, SYS_userfaultfd, flags, 0, 0, NULL, &result, err);

	if (!r && result == -EPERM) {
		r = call(p, SYS_openat, (uint64_t)AT_FDCWD, SMV_INJECT_TEXT, O_RDWR | O_CLOEXEC,
			DEVICE, &dev, err);
		if (!r && dev < 0)
			return refused(p, dev, "opening " DEVICE, err);
		if (!r)
			r = call(p, SYS_ioctl, (uint64_t)dev, (uint64_t)USERFAULTFD_IOC_NEW, flags,
				NULL, &result, err);
		if (!r)
			r = call(p, SYS_close, (uint64_t)dev, 0, 0, NULL, &ignored, err);
	}
	if (r < 0)
		return r;
	if (result < 0)
		return refused(p, result, "userfaultfd", err);
	p->uffd_number = (int)result;
	return 0;
}

/* Our copy of QEMU's descriptor. */
static int fetch(const struct smv_guest_process *p, int *uffd, struct smv_error *err)
{
	CLEANUP_CLOSE int pidfd = pidfd_open(p->pid, 0);

	*uffd = pidfd < 0 ? -1 : pidfd_getfd(pidfd, p->uffd_number, 0);
	if (*uffd >= 0)
		return 0;
	return smv_fail(err, smv_code_from_errno(errno), "userfaultfd",
		"Run as root; pidfd_getfd(2) asks for the same permission as ptrace.",
		"cannot fetch the userfaultfd of process %d: %s", (int)p->pid, strerror(errno));
}

static int close_number(struct smv_guest_process *p, struct smv_error *err)
{
	long result;
	int r;

	if (p->uffd_number < 0)
		return 0;
	r = call(p, SYS_close, (uint64_t)p->uffd_number, 0, 0, NULL, &result, err);
	if (!r)
		p->uffd_number = -1;
	return r;
}

static int get_uffd_traced(
	struct smv_guest_process *p, int *uffd, bool *fresh, struct smv_error *err)
{
	bool made = p->uffd_number < 0;
	int r = made ? make_uffd(p, err) : 0;

	if (r < 0)
		return r;
	r = fetch(p, uffd, err);
	if (r < 0 && made)
		close_number(p, NULL);
	if (r < 0)
		return r;
	if (fresh)
		*fresh = made;
	return 0;
}

static int zap_traced(struct smv_guest_process *p, const struct smv_shim_range *ranges,
	size_t nr_ranges, struct smv_error *err)
{
	struct smv_inject_call calls[ZAP_CALLS_MAX];

	for (size_t done = 0, n; done < nr_ranges; done += n) {
		int r;

		n = nr_ranges - done < ZAP_CALLS_MAX ? nr_ranges - done : ZAP_CALLS_MAX;
		for (size_t i = 0; i < n; i++)
			calls[i] = (struct smv_inject_call){.nr = SYS_madvise,
				.args = {ranges[done + i].addr, ranges[done + i].len,
					MADV_DONTNEED}};
		r = smv_inject_run(p->inject, calls, n, NULL, err);
		if (r < 0)
			return r;
		for (size_t i = 0; i < n; i++)
			if (calls[i].result < 0)
				return smv_fail(err, smv_code_from_errno((int)calls[i].result),
					"zap", NULL, "process %d: dropping page-table entries: %s",
					(int)p->pid, strerror((int)-calls[i].result));
	}
	return 0;
}

int smv_guest_process_adopt_uffd(
	struct smv_guest_process *process, int number, struct smv_error *err)
{
	char path[48], link[64];
	ssize_t n;

	if (process->shim)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)process->pid, number);
	n = readlink(path, link, sizeof(link) - 1);
	link[n > 0 ? n : 0] = 0;
	if (strcmp(link, "anon_inode:[userfaultfd]") != 0)
		return smv_fail(err, SMV_NOT_FOUND, "userfaultfd",
			"There is nothing left to close there.",
			"descriptor %d of process %d is no userfaultfd", number, (int)process->pid);
	process->uffd_number = number;
	return 0;
}

/* --- either way ---------------------------------------------------------------------------- */

int smv_guest_process_get_uffd(
	struct smv_guest_process *process, int *uffd, bool *fresh, struct smv_error *err)
{
	return process->shim ? smv_shim_get_uffd(process->shim, uffd, fresh, err)
			     : get_uffd_traced(process, uffd, fresh, err);
}

int smv_guest_process_close_uffd(struct smv_guest_process *process)
{
	return process->shim ? smv_shim_close_uffd(process->shim) : close_number(process, NULL);
}

int smv_guest_process_zap(struct smv_guest_process *process, const struct smv_shim_range *ranges,
	size_t nr_ranges, struct smv_error *err)
{
	int r;

	if (process->inject)
		return zap_traced(process, ranges, nr_ranges, err);
	r = smv_shim_zap(process->shim, ranges, nr_ranges);
	if (r == 0)
		return 0;
	return smv_fail(err, SMV_UNAVAILABLE, "shim",
		"Is QEMU stopped (SIGSTOP, a debugger, a frozen cgroup)?",
		"the shim in QEMU (process %d) does not answer: %s", (int)process->pid,
		strerror(-r));
}

/* --- whose QMP socket is it? --------------------------------------------------------------- */

static bool has_socket(pid_t pid, unsigned long inode)
{
	char path[40], want[48], link[64];
	struct dirent *entry;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	snprintf(want, sizeof(want), "socket:[%lu]", inode);
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link) - 1);

		link[n > 0 ? n : 0] = 0;
		found = strcmp(link, want) == 0;
	}
	if (dir)
		closedir(dir);
	return found;
}

/* A line of /proc/PID/net/unix: "Num: RefCount Protocol Flags Type St Inode Path". */
static bool listens_at(pid_t pid, const char *path)
{
	char name[40], bound[256], real[PATH_MAX];
	CLEANUP_FREE char *line = NULL;
	CLEANUP_FILE FILE *file = NULL;
	size_t len = 0;
	unsigned long inode;

	if (!realpath(path, real))
		snprintf(real, sizeof(real), "%s", path);
	snprintf(name, sizeof(name), "/proc/%d/net/unix", (int)pid);
	file = fopen(name, "re");
	while (file && getline(&line, &len, file) > 0)
		if (sscanf(line, "%*s %*s %*s %*s %*s %*s %lu %255[^\n]", &inode, bound) == 2 &&
			(strcmp(bound, path) == 0 || strcmp(bound, real) == 0) &&
			has_socket(pid, inode))
			return true;
	return false;
}

int smv_guest_process_owns_qmp(const struct smv_guest_process *process, const char *path,
	pid_t peer, struct smv_error *err)
{
	/* Who called listen(); libvirt does, and hands the socket to QEMU. */
	if (peer == process->pid || listens_at(process->pid, path))
		return 0;
	return smv_fail(err, SMV_REFUSED, "qmp-other-process",
		"Name the process id and a QMP socket of the same QEMU; its command line shows "
		"both.",
		"the QMP socket '%s' does not belong to process %d (but to %d)", path,
		(int)process->pid, (int)peer);
}
