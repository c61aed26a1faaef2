/* SPDX-License-Identifier: Apache-2.0 */
/* fallocate() and fallocate64() are two names here, and both are ours. */
#undef _FILE_OFFSET_BITS

#include "vmm/shim_discards.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define PAGE_MASK 4095u
#define RETRY_MS 10

/* find() */
#define NOT_OURS 1

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
/* Guarded by the lock. Without it nr_files and owner are only looked at to be quick about what does
 * not concern us. */
static struct smv_shim_file files[SMV_SHIM_MAX_FILES];
static _Atomic uint32_t nr_files; /* 0: NOBODY */
static _Atomic pid_t owner;       /* the process that took them: a forked child is another one */
static int channel = -1;          /* -1: NOBODY or ORPHANED */
static int in_use = -1;           /* the socket on which a thread waits for an answer */

/* What a thread of QEMU wants to have punched. */
struct punch {
	bool mapped; /* addr, of QEMU's address space; else dev, ino and offset */
	uint64_t addr;
	uint64_t dev, ino, offset;
	uint64_t len;
};

void shim_discards_take(int fd, const struct smv_shim_file *new_files, uint32_t nr)
{
	pthread_mutex_lock(&lock);
	/* The thread that is in recv() closes it: its number must not become another file's. */
	if (channel >= 0 && channel == in_use)
		shutdown(channel, SHUT_RDWR);
	else if (channel >= 0)
		close(channel);
	channel = fd;
	if (nr)
		memcpy(files, new_files, nr * sizeof(*files));
	owner = getpid();
	nr_files = nr;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static bool overlaps(uint64_t start, uint64_t len, uint64_t area, uint64_t area_len)
{
	return start < area + area_len && area < start + len;
}

/* 0 with @out for the pager, NOT_OURS, or -EINVAL for what we can neither hand over nor let pass:
 * parts of pages, and ranges that are ours in part. */
static int find(const struct punch *p, struct smv_shim_discard *out)
{
	int r = NOT_OURS;

	for (uint32_t i = 0; i < nr_files; i++) {
		const struct smv_shim_file *f = &files[i];
		uint64_t area = p->mapped ? f->addr : f->offset,
			 start = p->mapped ? p->addr : p->offset;

		if (!p->mapped && (p->dev != f->dev || p->ino != f->ino))
			continue;
		if (!overlaps(start, p->len, area, f->len))
			continue;
		r = -EINVAL;
		if (start < area || p->len > f->len || start - area > f->len - p->len ||
			(start | p->len) & PAGE_MASK)
			continue;
		*out = (struct smv_shim_discard){
			.file = i, .offset = start - area + f->offset, .len = p->len};
		return 0;
	}
	return r;
}

static bool try_again(void)
{
	/* A signal handler ran, or the kernel is short of memory for a while. */
	if (errno == ENOBUFS || errno == ENOMEM)
		poll(NULL, 0, RETRY_MS);
	return errno == EINTR || errno == ENOBUFS || errno == ENOMEM;
}

/* False: the pager has not answered and will not. */
static bool ask(int fd, const struct smv_shim_discard *request, struct smv_shim_reply *reply)
{
	ssize_t n;

	do
		n = send(fd, request, sizeof(*request), MSG_NOSIGNAL);
	while (n < 0 && try_again());
	if (n != sizeof(*request))
		return false;
	do
		n = recv(fd, reply, sizeof(*reply), 0);
	while (n < 0 && try_again());
	return n == sizeof(*reply);
}

/* The same with the lock held, which is free while we wait. */
static bool ask_unlocked(const struct smv_shim_discard *request, struct smv_shim_reply *reply)
{
	int fd = channel;
	bool answered;

	in_use = fd;
	pthread_mutex_unlock(&lock);
	answered = ask(fd, request, reply);
	pthread_mutex_lock(&lock);
	in_use = -1;
	if (fd != channel) {
		close(fd); /* another one has come meanwhile, see shim_discards_take() */
	} else if (!answered) {
		close(fd);
		channel = -1;
	}
	pthread_cond_broadcast(&changed);
	return answered;
}

/* NOT_OURS, or 0 or -errno: the pager's answer. */
static int hand_over(const struct punch *p)
{
	struct smv_shim_discard request;
	struct smv_shim_reply reply;
	int r, cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_mutex_lock(&lock);
	while ((r = find(p, &request)) == 0) {
		if (channel < 0 || in_use >= 0) {
			pthread_cond_wait(&changed, &lock);
		} else if (ask_unlocked(&request, &reply)) {
			r = reply.status <= 0 ? reply.status : -EIO;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
	pthread_setcancelstate(cancel, NULL);
	return r;
}

/* A forked child shares neither our lock nor the pager's view: it is on its way to exec(). */
static bool concerns_us(void)
{
	return nr_files && owner == getpid();
}

static int as_libc(int r)
{
	if (r < 0)
		errno = -r;
	return r < 0 ? -1 : 0;
}

EXPORTED int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
	struct stat st;
	int r;

	if (mode & FALLOC_FL_PUNCH_HOLE && offset >= 0 && len > 0 && concerns_us() &&
		fstat(fd, &st) == 0) {
		r = hand_over(&(struct punch){.dev = st.st_dev,
			.ino = st.st_ino,
			.offset = (uint64_t)offset,
			.len = (uint64_t)len});
		if (r != NOT_OURS)
			return as_libc(r);
	}
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

EXPORTED int fallocate(int fd, int mode, off_t offset, off_t len)
{
	return fallocate64(fd, mode, offset, len);
}

EXPORTED int madvise(void *addr, size_t len, int advice)
{
	uint64_t start = (uintptr_t)addr;
	uint64_t whole = ((uint64_t)len + PAGE_MASK) & ~(uint64_t)PAGE_MASK;
	int r;

	if (advice == MADV_REMOVE && whole && start + whole > start && concerns_us()) {
		r = hand_over(&(struct punch){.mapped = true, .addr = start, .len = whole});
		if (r != NOT_OURS)
			return as_libc(r);
	}
	return (int)syscall(SYS_madvise, addr, len, advice);
}
