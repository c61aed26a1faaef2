/* SPDX-License-Identifier: Apache-2.0 */
#include "migrator/journal.h"

#include "common/cleanup.h"
#include "common/files.h"
#include "common/hex.h"
#include "common/log.h"
#include "vmm/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the order of their removal: without its lock a journal is taken for gone. */
static const char *const files[] = {"lock", "journal.json", "journal.json.new", "status.json",
	"status.json.new", "result.json"};

int smv_journal_default_dir(char *dir, struct smv_error *err)
{
	char *vms;
	int r = smv_runtime_dir_default(dir, err);

	if (r < 0)
		return r;
	vms = strrchr(dir, '/');
	if (snprintf(vms, SMV_RUNTIME_PATH_MAX - (size_t)(vms - dir), "/migrations") >=
		(int)(SMV_RUNTIME_PATH_MAX - (size_t)(vms - dir)))
		return smv_fail(err, SMV_INVALID, "path-too-long", "Give --state-dir.",
			"the default state directory has too long a name");
	return 0;
}

/* Locks of open file descriptions: they end with their holder, however it ends, and can be looked
 * at without being taken. */
static int lock(int fd, int command)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int r;

	do
		r = fcntl(fd, command, &whole);
	while (r < 0 && errno == EINTR && command == F_OFD_SETLKW);
	if (r < 0)
		return -errno;
	return command == F_OFD_GETLK && whole.l_type != F_UNLCK ? -EAGAIN : 0;
}

static bool is_removed(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 || st.st_nlink == 0;
}

static json_t *read_json(int dir_fd, const char *file)
{
	CLEANUP_CLOSE int fd = openat(dir_fd, file, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? NULL : json_loadfd(fd, 0, NULL);
}

static int open_files(struct smv_journal *j, int dir_fd, int flags)
{
	j->dir_fd = openat(dir_fd, j->id, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (j->dir_fd < 0)
		return -errno;
	j->lock_fd = openat(j->dir_fd, "lock", O_RDWR | flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->lock_fd < 0)
		return -errno;
	j->result_fd =
		openat(j->dir_fd, "result.json", O_RDWR | flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	return j->result_fd < 0 ? -errno : 0;
}

static int init(struct smv_journal *j, const char *state_dir, const char *id, int *dir_fd,
	struct smv_error *err)
{
	*j = (struct smv_journal){.dir_fd = -1, .lock_fd = -1, .result_fd = -1};
	snprintf(j->id, sizeof(j->id), "%s", id);
	*dir_fd = open(state_dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	return *dir_fd < 0 ? smv_fail(err, smv_code_from_errno(errno), "state-dir",
				     "Give --state-dir.", "cannot open the state directory %s: %s",
				     state_dir, strerror(errno))
			   : 0;
}

int smv_journal_create(
	const char *state_dir, const char *id, struct smv_journal *j, struct smv_error *err)
{
	CLEANUP_CLOSE int dir_fd = -1;
	int r = smv_make_directories(state_dir, 0755);

	*j = (struct smv_journal){.dir_fd = -1, .lock_fd = -1, .result_fd = -1};
	if (r == 0 && (r = init(j, state_dir, id, &dir_fd, err)) < 0)
		return r;
	if (r == 0 && mkdirat(dir_fd, id, 0700) < 0)
		r = -errno;
	if (r == 0)
		r = open_files(j, dir_fd, O_CREAT);
	if (r == 0)
		r = lock(j->lock_fd, F_OFD_SETLK);
	j->root = json_pack("{s:i, s:s}", "schema_version", 1, "migration_id", id);
	if (r < 0)
		return smv_fail(err, smv_code_from_errno(r), "state-dir",
			"Give --state-dir with a directory that you may write to.",
			"cannot keep a journal in %s: %s", state_dir, strerror(-r));
	return 0;
}

static int gone(const char *id, struct smv_error *err)
{
	return smv_fail(err, SMV_NOT_FOUND, "no-migration",
		"smemv-migrate status lists what there is.",
		"there is no migration %s here any more", id);
}

int smv_journal_open(const char *state_dir, const char *id, bool wait, struct smv_journal *j,
	struct smv_error *err)
{
	CLEANUP_CLOSE int dir_fd = -1;
	int r = init(j, state_dir, id, &dir_fd, err);

	if (r < 0)
		return r;
	r = open_files(j, dir_fd, 0);
	if (r == 0)
		r = lock(j->lock_fd, wait ? F_OFD_SETLKW : F_OFD_SETLK);
	if (r == -ENOENT || (r == 0 && is_removed(j->lock_fd))) {
		smv_journal_close(j);
		return gone(id, err);
	}
	if (r == 0 && !(j->root = read_json(j->dir_fd, "journal.json"))) {
		/* Not written yet: its owner died before it had changed anything. */
		if (faccessat(j->dir_fd, "journal.json", F_OK, 0) < 0 && errno == ENOENT)
			j->root = json_object();
		else
			r = -EIO;
	}
	if (r == 0)
		return 0;
	smv_journal_close(j);
	if (r == -EAGAIN || r == -EACCES)
		return smv_fail(err, SMV_EXISTS, "migration-active",
			"Wait for its end, or use smemv-migrate cancel.",
			"migration %s is being worked on", id);
	return smv_fail(err, smv_code_from_errno(r), "state-dir", NULL,
		"cannot open the journal of migration %s: %s", id, strerror(-r));
}

int smv_journal_set(struct smv_journal *j, json_t *changes, struct smv_error *err)
{
	int r = json_object_update(j->root, changes);

	json_decref(changes);
	r = r < 0 ? -ENOMEM
		  : smv_replace_json(j->dir_fd, "journal.json", j->root, JSON_INDENT(1), true);
	return r < 0 ? smv_fail(err, smv_code_from_errno(r), "journal",
			       "Make room in the state directory.",
			       "cannot write the journal of migration %s: %s", j->id, strerror(-r))
		     : 0;
}

void smv_journal_publish(const struct smv_journal *j, const char *file, json_t *content)
{
	if (j->dir_fd >= 0)
		smv_replace_json(j->dir_fd, file, content, JSON_INDENT(1), false);
	json_decref(content);
}

void smv_journal_tell(const struct smv_journal *j, const json_t *result)
{
	CLEANUP_FREE char *text = json_dumps(result, JSON_COMPACT);

	if (j->result_fd >= 0 && text && ftruncate(j->result_fd, 0) == 0 &&
		pwrite(j->result_fd, text, strlen(text), 0) < 0)
		smv_log_warning(
			"cannot write the result of migration %s: %s", j->id, strerror(errno));
}

void smv_journal_close(struct smv_journal *j)
{
	if (j->id[0] && j->lock_fd >= 0)
		close(j->lock_fd);
	if (j->id[0] && j->result_fd >= 0)
		close(j->result_fd);
	if (j->id[0] && j->dir_fd >= 0)
		close(j->dir_fd);
	json_decref(j->root);
	*j = (struct smv_journal){.dir_fd = -1, .lock_fd = -1, .result_fd = -1};
}

void smv_journal_remove(struct smv_journal *j)
{
	char path[64];

	if (!j->id[0] || j->dir_fd < 0)
		return;
	for (size_t i = 0; i < SMV_ARRAY_SIZE(files); i++)
		unlinkat(j->dir_fd, files[i], 0);
	snprintf(path, sizeof(path), "../%s", j->id);
	if (unlinkat(j->dir_fd, path, AT_REMOVEDIR) < 0)
		smv_log_warning(
			"cannot remove the journal of migration %s: %s", j->id, strerror(errno));
	smv_journal_close(j);
}

/* --- looking at them ---------------------------------------------------------------------- */

static bool look(int state_fd, const char *id, struct smv_journal_view *view)
{
	struct smv_journal j = {.dir_fd = -1, .lock_fd = -1, .result_fd = -1};
	bool there;

	snprintf(j.id, sizeof(j.id), "%.32s", id);
	snprintf(view->id, sizeof(view->id), "%.32s", id);
	there = open_files(&j, state_fd, 0) == 0;
	view->result_fd = -1;
	if (there) {
		view->busy = lock(j.lock_fd, F_OFD_GETLK) == -EAGAIN;
		view->journal = read_json(j.dir_fd, "journal.json");
		view->status = read_json(j.dir_fd, "status.json");
		view->result_fd = smv_take_fd(&j.result_fd);
	}
	smv_journal_close(&j);
	return there;
}

bool smv_journal_look(const char *state_dir, const char *id, struct smv_journal_view *view)
{
	CLEANUP_CLOSE int state_fd = open(state_dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);

	*view = (struct smv_journal_view){.result_fd = -1};
	return state_fd >= 0 && look(state_fd, id, view);
}

void smv_journal_view_clear(struct smv_journal_view *view)
{
	json_decref(view->journal);
	json_decref(view->status);
	if (view->result_fd >= 0)
		close(view->result_fd);
}

int smv_journal_list(
	const char *state_dir, struct smv_journal_view **views, size_t *nr, struct smv_error *err)
{
	DIR *dir = opendir(state_dir);
	struct dirent *entry;

	*views = NULL;
	*nr = 0;
	if (!dir)
		return errno == ENOENT ? 0
				       : smv_fail(err, smv_code_from_errno(errno), "state-dir",
						 NULL, "cannot read the state directory %s: %s",
						 state_dir, strerror(errno));
	while ((entry = readdir(dir))) {
		struct smv_journal_view *grown;

		if (!smv_is_hex(entry->d_name, SMV_MIGRATION_ID_MAX - 1))
			continue;
		grown = reallocarray(*views, *nr + 1, sizeof(**views));
		if (!grown)
			break;
		*views = grown;
		grown[*nr] = (struct smv_journal_view){0};
		*nr += look(dirfd(dir), entry->d_name, &grown[*nr]);
	}
	closedir(dir);
	return 0;
}

void smv_journal_list_free(struct smv_journal_view *views, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		smv_journal_view_clear(&views[i]);
	free(views);
}

int smv_journal_signal(const struct smv_journal_view *view, int sig)
{
	struct smv_process worker;

	if (!smv_json_to_process(json_object_get(view->journal, "worker"), &worker))
		return -ESRCH;
	return smv_process_signal(&worker, sig);
}

json_t *smv_json_process(const struct smv_process *process)
{
	return json_pack("{s:i, s:I}", "pid", (int)process->pid, "start_time",
		(json_int_t)process->start_time);
}

bool smv_json_to_process(const json_t *json, struct smv_process *process)
{
	json_int_t start;
	int pid;

	if (json_unpack((json_t *)json, "{s:i, s:I}", "pid", &pid, "start_time", &start) < 0 ||
		pid <= 0)
		return false;
	*process = (struct smv_process){pid, (uint64_t)start};
	return true;
}
