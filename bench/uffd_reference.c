/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smemv-bench-uffd PAGES: the time of a page fault that is answered from local memory, without
 * anything of smemv: what compare.sh adds to the time of a read by perftest. It is the example of
 * userfaultfd(2), without its poll() and with a clock around each touch, on shared memory as a VM's
 * is. Prints "local fault: N faults, p50 X us, p99 Y us".
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define MAX_PAGES (1u << 20)

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "smemv-bench-uffd: cannot %s: %s\n", what, strerror(errno));
	exit(EXIT_FAILURE);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *answer(void *arg)
{
	int uffd = *(const int *)arg;
	static char page[PAGE] __attribute__((aligned(PAGE)));
	struct uffd_msg msg;

	memset(page, 0x5a, sizeof(page));
	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		struct uffdio_copy copy = {.dst = msg.arg.pagefault.address & ~(uint64_t)(PAGE - 1),
			.src = (uintptr_t)page,
			.len = PAGE};

		if (ioctl(uffd, UFFDIO_COPY, &copy) < 0)
			die("answer a page fault");
	}
	die("read from the userfaultfd");
}

/* Memory whose page faults a thread answers. */
static char *watched_memory(size_t bytes)
{
	static int uffd;
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = memfd_create("smemv-bench-uffd", MFD_CLOEXEC);
	pthread_t thread;
	char *memory;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		die("create a memory file");
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		die("map a memory file");
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0)
		die("create a userfaultfd");
	range.range = (struct uffdio_range){(uintptr_t)memory, bytes};
	if (ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		die("register memory with userfaultfd");
	errno = pthread_create(&thread, NULL, answer, &uffd);
	if (errno)
		die("start a thread");
	return memory;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static uint64_t touch(const volatile char *page)
{
	uint64_t from = now_ns();

	if (*page != 0x5a) {
		fprintf(stderr, "smemv-bench-uffd: a page has the wrong content\n");
		exit(EXIT_FAILURE);
	}
	return now_ns() - from;
}

int main(int argc, char **argv)
{
	unsigned long n = argc == 2 ? strtoul(argv[1], NULL, 10) : 0;
	uint64_t *times;
	char *memory;

	if (n < 1 || n > MAX_PAGES) {
		fprintf(stderr, "usage: smemv-bench-uffd PAGES (1 to %u)\n", MAX_PAGES);
		return 2;
	}
	times = malloc(n * sizeof(*times));
	if (!times)
		die("allocate memory");
	memset(times, 0xff, n * sizeof(*times)); /* touched before anything is measured */
	memory = watched_memory(n * PAGE);
	/* A large prime visits all pages, none near the one before. */
	for (unsigned long i = 0; i < n; i++)
		times[i] = touch(memory + i * 15485863 % n * PAGE);
	qsort(times, n, sizeof(*times), compare);
	printf("local fault: %lu faults, p50 %.3f us, p99 %.3f us\n", n, (double)times[n / 2] / 1e3,
		(double)times[n * 99 / 100] / 1e3);
	return 0;
}
