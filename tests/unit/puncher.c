/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that punches its memory as it is told, for the tests of the shim, which is loaded into
 * it: it has two memfds of PAGES pages, "ram", which it maps, and "other".
 *
 * It first writes "PID RAM-FD OTHER-FD ADDRESS\n". Then each line
 *
 *   ID fallocate|fallocate64|madvise|child RAM|OTHER OFFSET LEN
 *
 * is done by a thread of its own and answered by "ID RESULT ERRNO\n"; "child": by a forked child.
 * SIGUSR1 interrupts their system calls.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#undef fallocate64

#define PAGES 64

/* The C library's other name for fallocate(), which programs with large files get. */
int fallocate64(int fd, int mode, off_t offset, off_t len);

struct job {
	int id;
	char how[16], file[8];
	long offset, len;
};

static int ram, other;
static char *mapped;

static int punch(const struct job *j)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int fd = strcmp(j->file, "ram") == 0 ? ram : other, status;
	pid_t child;

	if (strcmp(j->how, "madvise") == 0)
		return madvise(mapped + j->offset, (size_t)j->len, MADV_REMOVE);
	if (strcmp(j->how, "fallocate64") == 0)
		return fallocate64(fd, mode, j->offset, j->len);
	if (strcmp(j->how, "child") != 0)
		return fallocate(fd, mode, j->offset, j->len);
	child = fork();
	if (child == 0)
		_exit(fallocate(fd, mode, j->offset, j->len) < 0 ? errno : 0);
	if (child < 0 || waitpid(child, &status, 0) < 0)
		return -1;
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
	return errno ? -1 : 0;
}

static void *run(void *arg)
{
	struct job *j = arg;
	sigset_t usr1;
	int r, why;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
	errno = 0;
	r = punch(j);
	why = r < 0 ? errno : 0;
	dprintf(STDOUT_FILENO, "%d %d %d\n", j->id, r, why);
	free(j);
	return NULL;
}

static void interrupt(int sig)
{
	(void)sig;
}

static int make(const char *name)
{
	int fd = memfd_create(name, 0);

	if (fd < 0 || ftruncate(fd, PAGES * 4096) < 0)
		exit(1);
	for (int i = 0; i < PAGES; i++)
		if (pwrite(fd, name, strlen(name), i * 4096l) < 0)
			exit(1);
	return fd;
}

int main(void)
{
	struct sigaction action = {.sa_handler = interrupt};
	sigset_t usr1;
	char line[200];

	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	ram = make("ram");
	other = make("other");
	mapped = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ram, 0);
	if (mapped == MAP_FAILED)
		return 1;
	dprintf(STDOUT_FILENO, "%d %d %d %lu\n", (int)getpid(), ram, other,
		(unsigned long)(uintptr_t)mapped);
	while (fgets(line, sizeof(line), stdin)) {
		struct job *j = calloc(1, sizeof(*j));
		pthread_t thread;

		if (!j || sscanf(line, "%d %15s %7s %ld %ld", &j->id, j->how, j->file, &j->offset,
				  &j->len) != 5)
			return 1;
		if (pthread_create(&thread, NULL, run, j) != 0)
			return 1;
		pthread_detach(thread);
	}
	return 0;
}
