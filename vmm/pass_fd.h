/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages over a unix socket that may carry a descriptor (SCM_RIGHTS, unix(7)). In a header
 * because the shim, a guest in a foreign process, uses it as well as its clients: libc only.
 */
#ifndef SMV_VMM_PASS_FD_H
#define SMV_VMM_PASS_FD_H

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union smv_fd_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int))];
};

/** smv_send_fd - sendmsg(2) of one buffer, with @passed_fd unless that is -1. */
static inline ssize_t smv_send_fd(
	int socket, const void *data, size_t len, int passed_fd, int flags)
{
	struct iovec iov = {(void *)data, len};
	union smv_fd_control control = {0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (passed_fd >= 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &passed_fd, sizeof(int));
	}
	return sendmsg(socket, &msg, flags);
}

/** smv_receive_fd - recvmsg(2) into one buffer. Returns the length of the message, also if that is
 * more than @len. *passed_fd is for the caller to close, or -1; of more than one the message counts
 * as broken (EPROTO). */
static inline ssize_t smv_receive_fd(int socket, void *data, size_t len, int *passed_fd, int flags)
{
	struct iovec iov = {data, len};
	union smv_fd_control control;
	struct msghdr msg = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes)};
	ssize_t n = recvmsg(socket, &msg, flags | MSG_TRUNC | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *cmsg = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);

	*passed_fd = -1;
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS &&
		cmsg->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(passed_fd, CMSG_DATA(cmsg), sizeof(int));
	if (n < 0 || !(msg.msg_flags & MSG_CTRUNC))
		return n;
	if (*passed_fd >= 0)
		close(*passed_fd);
	*passed_fd = -1;
	errno = EPROTO;
	return -1;
}

#endif
