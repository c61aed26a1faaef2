/* SPDX-License-Identifier: Apache-2.0 */
#include "common/fault_point.h"

#ifdef SMEMV_FAULT_POINTS

#include "common/clock.h"
#include "common/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_POINTS 16

static struct point {
	char name[64];
	char action[8];
	unsigned long nth, hits;
} points[MAX_POINTS];
static size_t nr_points;
static _Atomic pid_t parsed_by;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void parse(void)
{
	const char *env = getenv("SMEMV_FAULT");
	char *copy, *save = NULL;

	if (!env || !(copy = strdup(env)))
		return;
	for (char *t = strtok_r(copy, ",", &save); t && nr_points < MAX_POINTS;
		t = strtok_r(NULL, ",", &save)) {
		struct point *p = &points[nr_points++];

		memcpy(p->action, "skip", 5);
		if (sscanf(t, "%63[^:]:%7[^:]:%lu", p->name, p->action, &p->nth) < 1)
			nr_points--;
	}
	free(copy);
}

/* Once per process: a child of fork() has an environment of its own. */
static void parse_once(void)
{
	if (atomic_load(&parsed_by) == getpid())
		return;
	pthread_mutex_lock(&lock);
	if (atomic_load(&parsed_by) != getpid()) {
		nr_points = 0;
		memset(points, 0, sizeof(points));
		parse();
		atomic_store(&parsed_by, getpid());
	}
	pthread_mutex_unlock(&lock);
}

static void wait_for_go(const char *name)
{
	const char *dir = getenv("SMEMV_FAULT_DIR");
	char path[512];
	int fd;

	if (!dir)
		return;
	snprintf(path, sizeof(path), "%s/%s.reached", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
	snprintf(path, sizeof(path), "%s/%s.go", dir, name);
	for (int i = 0; i < 12000 && access(path, F_OK) < 0; i++)
		smv_sleep_ms(10);
}

/* What the file NAME.arm says, once; false: it is not there. */
static bool take_arms(const char *name, char action[8])
{
	const char *dir = getenv("SMEMV_FAULT_DIR");
	char path[512];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s.arm", dir ? dir : "", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, action, 7);
	close(fd);
	action[n > 0 ? n : 0] = '\0';
	action[strcspn(action, "\n")] = '\0';
	return unlink(path) == 0;
}

static void note_hit(const char *name)
{
	const char *dir = getenv("SMEMV_FAULT_HITS");
	char path[512];
	int fd;

	if (!dir)
		return;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
	if (fd >= 0)
		close(fd);
}

static bool act(const char *name, const char *action)
{
	note_hit(name);
	if (strcmp(action, "kill") == 0)
		kill(getpid(), SIGKILL);
	else if (strcmp(action, "stop") == 0)
		kill(getpid(), SIGSTOP);
	else if (strcmp(action, "wait") == 0)
		wait_for_go(name);
	else
		return true;
	return false;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The linker defines both when the section exists. */
extern const char *const __start_smemv_fault_points[] __attribute__((weak));
extern const char *const __stop_smemv_fault_points[] __attribute__((weak));

void smv_fault_points_list(FILE *out)
{
	size_t n = (size_t)(__stop_smemv_fault_points - __start_smemv_fault_points);
	const char **names = calloc(n + 1, sizeof(*names));

	for (size_t i = 0; names && i < n; i++)
		names[i] = __start_smemv_fault_points[i];
	if (names)
		qsort(names, n, sizeof(*names), compare_names);
	for (size_t i = 0; names && i < n; i++)
		if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
			fprintf(out, "%s\n", names[i]);
	free(names);
}

bool smv_fault_point_passed(const char *name)
{
	parse_once();
	for (size_t i = 0; i < nr_points; i++) {
		struct point *p = &points[i];
		char armed[8];
		unsigned long hit;

		if (strcmp(p->name, name) != 0)
			continue;
		pthread_mutex_lock(&lock);
		hit = ++p->hits;
		pthread_mutex_unlock(&lock);
		if (strcmp(p->action, "arm") == 0) {
			if (take_arms(name, armed)) {
				smv_log_warning("fault point %s: %s", name, armed);
				return act(name, armed);
			}
			continue;
		}
		if (p->nth && p->nth != hit)
			continue;
		if (hit == 1 || p->nth)
			smv_log_warning("fault point %s: %s", name, p->action);
		if (act(name, p->action))
			return true;
	}
	return false;
}

#else

/* ISO C wants at least one declaration in a translation unit. */
typedef int smv_fault_point_unused;

#endif
