/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/shim_client.h"

#include "common/cleanup.h"
#include "vmm/pass_fd.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

/* A zap of 256 ranges takes milliseconds; a QEMU that does not answer for so long is stopped. */
#define ANSWER_TIMEOUT_S 10

struct smv_shim {
	int fd;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static int send_all(int fd, const void *data, size_t len, int pass_fd)
{
	ssize_t n;

	do
		n = smv_send_fd(fd, data, len, pass_fd, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	return (size_t)n == len ? 0 : -EPROTO;
}

static int receive(int fd, struct smv_shim_reply *reply, int *passed_fd)
{
	CLEANUP_CLOSE int passed = -1;
	ssize_t n;

	do
		n = smv_receive_fd(fd, reply, sizeof(*reply), &passed, 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (n == 0)
		return -ECONNRESET;
	if ((size_t)n != sizeof(*reply))
		return -EPROTO;
	if (passed_fd)
		*passed_fd = smv_take_fd(&passed);
	return 0;
}

static int dial(const char *path, struct smv_error *err);

/* One request and its reply; 0, the shim's -errno, or that of the connection. After a failure the
 * next call connects anew: a QEMU that was stopped for a while is not lost for good. */
static int call(struct smv_shim *shim, const struct smv_shim_request *request, int pass_fd,
	struct smv_shim_reply *reply, int *passed_fd)
{
	size_t len = offsetof(struct smv_shim_request, ranges) +
		     request->nr_ranges * sizeof(request->ranges[0]) +
		     request->nr_files * sizeof(request->files[0]);
	int r;

	if (shim->fd < 0)
		shim->fd = dial(shim->path, NULL);
	if (shim->fd < 0)
		return shim->fd;
	r = send_all(shim->fd, request, len, pass_fd);
	if (!r)
		r = receive(shim->fd, reply, passed_fd);
	if (r < 0) {
		/* A late reply must not pass for the next one's. */
		close(shim->fd);
		shim->fd = -1;
		return r;
	}
	return reply->status <= 0 ? reply->status : -EPROTO;
}

static int simple_call(
	struct smv_shim *shim, uint32_t op, struct smv_shim_reply *reply, int *passed_fd)
{
	struct smv_shim_request request = {.version = SMV_SHIM_VERSION, .op = op};

	return call(shim, &request, -1, reply, passed_fd);
}

static int dial(const char *path, struct smv_error *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval timeout = {.tv_sec = ANSWER_TIMEOUT_S};
	CLEANUP_CLOSE int fd = -1;

	if (strlen(path) >= sizeof(addr.sun_path))
		return smv_fail(err, SMV_INVALID, "path-too-long", NULL,
			"shim socket '%.200s': the path is too long for a socket address", path);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0 ||
		connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return smv_fail(err, SMV_UNAVAILABLE, "shim",
			"Start the VM with smemv-run, so that QEMU has the shim loaded.",
			"cannot connect to the shim of QEMU at '%s': %s", path, strerror(errno));
	return smv_take_fd(&fd);
}

int smv_shim_open(const char *path, struct smv_shim **shim, pid_t *pid, struct smv_error *err)
{
	struct smv_shim_reply reply;
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);
	struct smv_shim s = {.fd = dial(path, err)};
	int r;

	if (s.fd < 0)
		return s.fd;
	strcpy(s.path, path); /* dial() has checked the length */
	r = simple_call(&s, SMV_SHIM_HELLO, &reply, NULL);
	if (r == -EPROTONOSUPPORT)
		r = smv_fail(err, SMV_REFUSED, "shim-version",
			"Restart the VM with the smemv-run of this version.",
			"the shim in QEMU speaks version %lld, this program version %d",
			(long long)reply.value, SMV_SHIM_VERSION);
	else if (r < 0)
		r = smv_fail(err, SMV_UNAVAILABLE, "shim",
			"Is QEMU stopped, or does it run as another user?",
			"the shim of QEMU at '%s' does not answer: %s", path, strerror(-r));
	else if (!(*shim = malloc(sizeof(s))))
		r = smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	if (r < 0) {
		if (s.fd >= 0)
			close(s.fd);
		return r;
	}
	**shim = s;
	/* The kernel's word first: it names the process in our own pid namespace. */
	if (pid && getsockopt(s.fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid > 0)
		*pid = cred.pid;
	else if (pid)
		*pid = (pid_t)reply.value;
	return 0;
}

void smv_shim_close(struct smv_shim *shim)
{
	if (!shim)
		return;
	if (shim->fd >= 0)
		close(shim->fd);
	free(shim);
}

int smv_shim_get_uffd(struct smv_shim *shim, int *uffd, bool *fresh, struct smv_error *err)
{
	struct smv_shim_reply reply;
	int fd = -1, r = simple_call(shim, SMV_SHIM_GET_UFFD, &reply, &fd);

	if (!r && fd < 0)
		r = -EPROTO;
	if (r == -EPERM)
		return smv_fail(err, SMV_PERMISSION, "userfaultfd",
			"Give QEMU's user access to /dev/userfaultfd (read and write), or set "
			"vm.unprivileged_userfaultfd=1.",
			"QEMU may not create a userfaultfd that handles faults of the kernel");
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "userfaultfd", NULL,
			"no userfaultfd from the shim at '%s': %s", shim->path, strerror(-r));
	*uffd = fd;
	if (fresh)
		*fresh = reply.value == 1;
	return 0;
}

int smv_shim_close_uffd(struct smv_shim *shim)
{
	struct smv_shim_reply reply;

	return simple_call(shim, SMV_SHIM_CLOSE_UFFD, &reply, NULL);
}

int smv_shim_zap(struct smv_shim *shim, const struct smv_shim_range *ranges, size_t nr_ranges)
{
	struct smv_shim_request request = {.version = SMV_SHIM_VERSION, .op = SMV_SHIM_ZAP};
	struct smv_shim_reply reply;

	while (nr_ranges) {
		size_t n = nr_ranges < SMV_SHIM_MAX_RANGES ? nr_ranges : SMV_SHIM_MAX_RANGES;
		int r;

		request.nr_ranges = (uint32_t)n;
		memcpy(request.ranges, ranges, n * sizeof(*ranges));
		r = call(shim, &request, -1, &reply, NULL);
		if (r < 0)
			return r;
		ranges += n;
		nr_ranges -= n;
	}
	return 0;
}

int smv_shim_take_discards(struct smv_shim *shim, const struct smv_shim_file *files,
	size_t nr_files, int *fd, struct smv_error *err)
{
	struct smv_shim_request request = {
		.version = SMV_SHIM_VERSION, .op = SMV_SHIM_TAKE_DISCARDS};
	CLEANUP_CLOSE int ours = -1;
	CLEANUP_CLOSE int theirs = -1;
	struct smv_shim_reply reply;
	int ends[2], r = 0;

	assert(nr_files > 0 && nr_files <= SMV_SHIM_MAX_FILES);
	request.nr_files = (uint32_t)nr_files;
	memcpy(request.files, files, nr_files * sizeof(*files));
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		r = -errno;
	else
		ours = ends[0], theirs = ends[1];
	if (r == 0)
		r = call(shim, &request, theirs, &reply, NULL);
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "discards", NULL,
			"the shim at '%s' does not hand over what QEMU discards: %s", shim->path,
			strerror(-r));
	*fd = smv_take_fd(&ours);
	return 0;
}

int smv_shim_give_back_discards(struct smv_shim *shim)
{
	struct smv_shim_reply reply;

	return simple_call(shim, SMV_SHIM_TAKE_DISCARDS, &reply, NULL);
}
