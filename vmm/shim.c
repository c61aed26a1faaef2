/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim: loaded into QEMU by LD_PRELOAD, because the ioctls of a userfaultfd act on the mm that
 * created it, and because only the process itself can drop its page-table entries. A helper thread
 * serves the requests of shim_proto.h; QEMU does not know of it. shim_discards.c takes over what
 * QEMU punches out of its RAM.
 *
 * It is a guest in a foreign process: libc only, nothing on standard output, nothing allocated, no
 * exit, and when something fails QEMU goes on without it.
 */
#include "vmm/pass_fd.h"
#include "vmm/shim_discards.h"
#include "vmm/shim_proto.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW /* Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define CLIENTS_MAX 16
#define PAGE_MASK 4095u
/* QEMU's -daemonize forks twice (os_daemonize()), and only the grandchild is the VM. */
#define DAEMONIZE_FORKS 2

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static int forks_to_go;
/* Owned by the helper thread. Entry 0 of fds is the listening socket. */
static struct pollfd fds[1 + CLIENTS_MAX];
static nfds_t nr_fds;
static int uffd = -1;
static struct smv_shim_request request;

static void complain(const char *what)
{
	dprintf(STDERR_FILENO, "smemv-shim: %s: %s\n", what, strerror(errno));
}

static int uffd_create(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), dev, saved;

	/* Faults of the kernel count (virtio back ends read guest RAM by system calls), so an
	 * unprivileged QEMU needs the device, whose file mode grants just that. */
	if (fd >= 0 || errno != EPERM)
		return fd < 0 ? -errno : fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	saved = errno;
	close(dev);
	return fd < 0 ? -saved : fd;
}

static int reply_send(int client, int status, int64_t value, int passed_fd)
{
	struct smv_shim_reply reply = {.status = status, .value = value};
	ssize_t n =
		smv_send_fd(client, &reply, sizeof(reply), passed_fd, MSG_NOSIGNAL | MSG_DONTWAIT);

	return n < 0 ? -errno : 0;
}

static void uffd_drop(void)
{
	if (uffd >= 0)
		close(uffd);
	uffd = -1;
}

static int serve_get_uffd(int client)
{
	bool fresh = uffd < 0;
	int r;

	if (fresh) {
		r = uffd_create();
		if (r < 0)
			return reply_send(client, r, 0, -1);
		uffd = r;
	}
	r = reply_send(client, 0, fresh, uffd);
	/* Nobody learnt that it is fresh, so the next one must. */
	if (r < 0 && fresh)
		uffd_drop();
	return r;
}

static int zap(void)
{
	for (uint32_t i = 0; i < request.nr_ranges; i++) {
		uint64_t addr = request.ranges[i].addr, len = request.ranges[i].len;

		if ((addr | len) & PAGE_MASK || !len || addr + len < addr)
			return -EINVAL;
	}
	for (uint32_t i = 0; i < request.nr_ranges; i++)
		if (madvise((void *)(uintptr_t)request.ranges[i].addr, request.ranges[i].len,
			    MADV_DONTNEED) < 0)
			return -errno;
	return 0;
}

static int take_discards(int *passed_fd)
{
	if ((request.nr_files > 0) != (*passed_fd >= 0))
		return -EINVAL;
	shim_discards_take(*passed_fd, request.files, request.nr_files);
	*passed_fd = -1;
	return 0;
}

static bool is_whole(ssize_t n)
{
	const size_t header = offsetof(struct smv_shim_request, ranges);

	return n >= 0 && (size_t)n >= header && request.nr_ranges <= SMV_SHIM_MAX_RANGES &&
	       request.nr_files <= SMV_SHIM_MAX_FILES && !(request.nr_ranges && request.nr_files) &&
	       (size_t)n == header + request.nr_ranges * sizeof(request.ranges[0]) +
				    request.nr_files * sizeof(request.files[0]);
}

static int answer(int client, int *passed_fd)
{
	if (request.version != SMV_SHIM_VERSION)
		return reply_send(client, -EPROTONOSUPPORT, SMV_SHIM_VERSION, -1);
	switch (request.op) {
	case SMV_SHIM_HELLO:
		return reply_send(client, 0, getpid(), -1);
	case SMV_SHIM_GET_UFFD:
		return serve_get_uffd(client);
	case SMV_SHIM_CLOSE_UFFD:
		uffd_drop();
		shim_discards_take(-1, NULL, 0);
		return reply_send(client, 0, 0, -1);
	case SMV_SHIM_ZAP:
		return reply_send(client, zap(), 0, -1);
	case SMV_SHIM_TAKE_DISCARDS:
		return reply_send(client, take_discards(passed_fd), 0, -1);
	default:
		return reply_send(client, -EOPNOTSUPP, 0, -1);
	}
}

/* One request; a negative return drops the client. */
static int serve(int client)
{
	int passed_fd = -1, r;
	ssize_t n = smv_receive_fd(client, &request, sizeof(request), &passed_fd, MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	/* Also the end of the connection: n == 0. */
	r = is_whole(n) ? answer(client, &passed_fd) : -EPROTO;
	if (passed_fd >= 0)
		close(passed_fd);
	return r;
}

static bool may_use(int client)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return getsockopt(client, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	       (cred.uid == 0 || cred.uid == geteuid());
}

static void accept_client(void)
{
	int client = accept4(fds[0].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (client < 0) {
		/* Out of file descriptors: the request stays queued, and we must not spin on it. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			poll(NULL, 0, 100);
		return;
	}
	if (!may_use(client)) {
		close(client);
		return;
	}
	fds[nr_fds++] = (struct pollfd){.fd = client, .events = POLLIN};
}

static void *helper(void *arg)
{
	(void)arg;
	for (;;) {
		/* With all places taken, newcomers wait in the socket's queue. */
		fds[0].events = nr_fds <= CLIENTS_MAX ? POLLIN : 0;
		if (poll(fds, nr_fds, -1) < 0)
			continue; /* EINTR, or ENOMEM for a while */
		for (nfds_t i = nr_fds - 1; i > 0; i--) {
			if (!fds[i].revents || serve(fds[i].fd) == 0)
				continue;
			close(fds[i].fd);
			fds[i] = fds[--nr_fds];
		}
		if (fds[0].revents & POLLIN && nr_fds <= CLIENTS_MAX)
			accept_client();
	}
	return NULL;
}

static int listen_at_address(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		chmod(address.sun_path, 0600) < 0 || listen(fd, CLIENTS_MAX) < 0) {
		int saved = errno;

		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

static int thread_start(void)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	/* The frames here are small; the static TLS of QEMU's libraries lies in the stack too. */
	pthread_attr_setstacksize(&attr, 256 * 1024);
	/* QEMU's signals are for QEMU's threads: the new one inherits a full mask. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&thread, &attr, helper, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(thread, "smemv-shim");
	return r;
}

static void start(void)
{
	int fd = listen_at_address();

	if (fd < 0) {
		complain(address.sun_path);
		return;
	}
	fds[0] = (struct pollfd){.fd = fd, .events = POLLIN};
	nr_fds = 1;
	errno = thread_start();
	if (errno) {
		complain("cannot start a thread");
		close(fd);
	}
}

/*
 * Threads do not survive a fork. Before -daemonize has forked there is none, and no socket whose
 * peer would be the wrong process; after that, children are on their way to exec() and are left
 * alone. glibc has its allocator and stdio usable again when child handlers run.
 */
static void forked(void)
{
	if (forks_to_go > 0 && --forks_to_go == 0)
		start();
}

static bool daemonize_wanted(void)
{
	/* 128 KiB of arguments are plenty; not on the stack, and given back. */
	const size_t max = 128 * 1024;
	char *text = mmap(NULL, max, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	bool wanted = false;
	size_t len = 0;
	ssize_t n;

	if (text != MAP_FAILED && fd >= 0) {
		while (len < max - 1 && (n = read(fd, text + len, max - 1 - len)) > 0)
			len += (size_t)n;
		for (const char *s = text; s < text + len && !wanted; s += strlen(s) + 1)
			wanted = strcmp(s, "-daemonize") == 0 || strcmp(s, "--daemonize") == 0;
	}
	if (fd >= 0)
		close(fd);
	if (text != MAP_FAILED)
		munmap(text, max);
	return wanted;
}

/* Take ourselves out of LD_PRELOAD, so that QEMU's children start without us. */
static void preload_clean(void)
{
	char *list = getenv("LD_PRELOAD"), *out = list;
	Dl_info self = {0};

	if (!list || !dladdr(&address, &self) || !self.dli_fname)
		return;
	/* In place, since the environment is ours to edit and the result is never longer. */
	for (char *in = list; *in;) {
		size_t len = strcspn(in, ": "), sep = in[len] != 0;

		if (len != strlen(self.dli_fname) || strncmp(in, self.dli_fname, len) != 0) {
			memmove(out, in, len + sep);
			out += len + sep;
		}
		in += len + sep;
	}
	while (out > list && (out[-1] == ':' || out[-1] == ' '))
		out--;
	*out = 0;
	if (out == list)
		unsetenv("LD_PRELOAD");
}

__attribute__((constructor)) static void shim_init(void)
{
	const char *path = getenv(SMV_SHIM_SOCKET_ENV);
	bool fits;

	if (!path)
		return;
	fits = path[0] && strlen(path) < sizeof(address.sun_path);
	if (fits)
		strcpy(address.sun_path, path);
	unsetenv(SMV_SHIM_SOCKET_ENV);
	preload_clean();
	if (!fits) {
		errno = ENAMETOOLONG;
		complain(SMV_SHIM_SOCKET_ENV);
		return;
	}
	if (!daemonize_wanted()) {
		start();
		return;
	}
	forks_to_go = DAEMONIZE_FORKS;
	pthread_atfork(NULL, NULL, forked);
}
