/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/supervisor.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"
#include "migrator/recover.h"
#include "rpc/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERDICT_MS 5000 /* of one attempt */
#define RETRY_MIN_MS 1000
#define RETRY_MAX_MS 10000
#define REMIND_NS (600 * SMV_NS_PER_S)
/* smemv-migrate writes its status several times a second. */
#define SILENCE_NS (30 * SMV_NS_PER_S)

extern char **environ;

int smv_supervisor_start(
	const char *state_dir, const char *id, pid_t *supervisor, struct smv_error *err)
{
	char *argv[] = {
		"smemv-migrate", "supervise", "--state-dir", (char *)state_dir, (char *)id, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, defaults;
	int r;

	/* Who reads our standard output must not wait for the supervisor's end. */
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	posix_spawnattr_init(&attr);
	sigemptyset(&none);
	sigfillset(&defaults);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &defaults);
	posix_spawnattr_setflags(
		&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	/* Not by its name: an upgrade may have replaced the file. */
	r = posix_spawn(supervisor, "/proc/self/exe", &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return r ? smv_fail(err, SMV_INTERNAL, "supervisor", NULL,
			   "cannot start the supervisor: %s", strerror(r))
		 : 0;
}

/* --- a smemv-migrate that hangs ----------------------------------------------------------- */

struct watch {
	const char *state_dir, *id;
};

/* It is stopped, or stuck, while the VM stands still: its death lets us go on. */
static void kill_if_stuck(const struct smv_journal_view *view, uint64_t silent_ns)
{
	const json_t *undo = json_object_get(view->journal, "undo");

	if (silent_ns < SILENCE_NS || !json_is_true(json_object_get(undo, "migrating")) ||
		smv_journal_signal(view, SIGKILL) < 0)
		return;
	smv_log_error(
		"migration %s: smemv-migrate has not moved for %llu s during the switch-over: "
		"it was killed",
		view->id, silent_ns / SMV_NS_PER_S);
}

static void *watch(void *arg)
{
	const struct watch *w = arg;
	json_int_t seen = -1;
	uint64_t moved_ns = smv_now_ns();

	for (;; smv_sleep_ms(1000)) {
		struct smv_journal_view view;
		bool there = smv_journal_look(w->state_dir, w->id, &view);
		json_int_t now = json_integer_value(json_object_get(view.status, "beat"));

		if (!there || !view.busy || now != seen)
			moved_ns = smv_now_ns();
		else
			kill_if_stuck(&view, smv_now_ns() - moved_ns);
		seen = now;
		smv_journal_view_clear(&view);
	}
	return NULL;
}

/* --- settling ----------------------------------------------------------------------------- */

static void say(const char *id, const struct smv_recovery *r)
{
	if (r->outcome == SMV_COMPLETED)
		smv_log_warning("migration %s: smemv-migrate has died, but the migration is "
				"completed: the VM runs on the main host",
			id);
	else if (!r->settled)
		smv_log_error("migration %s: not settled yet: %s %s", id, r->error.message,
			r->error.hint);
	else
		smv_log_warning("migration %s is aborted; the source is '%s': %s", id,
			r->source_state, r->error.message);
}

/* Nobody may read us any more: a pipe behind standard error must see its end. */
static void leave_stderr(void)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (null >= 0)
		dup2(null, STDERR_FILENO);
	if (null >= 0)
		close(null);
}

/* Only a journal that is gone is an end: what else goes wrong may pass. */
static int open_journal(const char *state_dir, const char *id, struct smv_journal *journal)
{
	struct smv_error err;

	while (smv_journal_open(state_dir, id, true, journal, &err) < 0) {
		if (err.code == SMV_NOT_FOUND)
			return -ENOENT;
		smv_log_warning("migration %s: %s", id, err.message);
		smv_sleep_ms(RETRY_MAX_MS);
	}
	return 0;
}

static void settle(const char *state_dir, const char *id)
{
	unsigned int pause_ms = RETRY_MIN_MS;
	uint64_t said_ns = 0;

	for (;;) {
		struct smv_recovery recovery;
		struct smv_journal journal;

		if (open_journal(state_dir, id, &journal) < 0)
			return; /* told and removed */
		smv_recover(&journal, VERDICT_MS, false, &recovery);
		smv_journal_close(&journal);
		if (recovery.settled || !said_ns || smv_now_ns() - said_ns > REMIND_NS) {
			say(id, &recovery);
			said_ns = smv_now_ns();
		}
		if (recovery.settled)
			return;
		leave_stderr();
		smv_sleep_ms(pause_ms);
		pause_ms = 2 * pause_ms < RETRY_MAX_MS ? 2 * pause_ms : RETRY_MAX_MS;
	}
}

int smv_supervise(const char *state_dir, const char *id)
{
	static struct watch w; /* the thread may outlive this function */
	struct smv_journal journal;
	pthread_t thread;
	bool resolved;
	int r;

	/* The terminal's Ctrl-C and hang-up are for smemv-migrate. */
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	w = (struct watch){state_dir, id};
	r = pthread_create(&thread, NULL, watch, &w);
	if (r)
		smv_log_warning("cannot watch for a smemv-migrate that hangs: %s", strerror(r));
	else
		pthread_detach(thread);
	if (open_journal(state_dir, id, &journal) < 0)
		return EXIT_SUCCESS; /* it ended as it should */
	resolved = json_is_object(json_object_get(journal.root, "outcome"));
	smv_journal_close(&journal);
	if (resolved)
		return EXIT_SUCCESS;
	smv_rpc_init();
	settle(state_dir, id);
	smv_rpc_shutdown();
	return EXIT_SUCCESS;
}
