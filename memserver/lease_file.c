/* SPDX-License-Identifier: Apache-2.0 */
#include "memserver/lease_file.h"

#include "common/cleanup.h"
#include "common/fault_point.h"
#include "common/hex.h"
#include "memserver/arena.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/stat.h>

#define NAME "leases"
#define NEW_NAME "leases.new"
#define VERSION 1

/* Far more than 512 leases can need. */
#define FILE_SIZE_MAX (64 * SMV_MIB)

#define DISCARD_HINT                                                                               \
	"If no VM needs the memory any more, throw all of it away with --discard. Otherwise look " \
	"what happened to the directory first."

static const char *const state_names[] = {[SMV_LEASE_PREPARING] = "preparing",
	[SMV_LEASE_PROVISIONAL] = "provisional",
	[SMV_LEASE_HELD] = "held",
	[SMV_LEASE_RELEASING] = "releasing",
	[SMV_LEASE_ORPHANED] = "orphaned"};

const char *smv_lease_state_name(enum smv_lease_state state)
{
	return (size_t)state < SMV_ARRAY_SIZE(state_names) && state_names[state]
		       ? state_names[state]
		       : "gone";
}

static bool parse_state(const char *name, enum smv_lease_state *state)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(state_names); i++) {
		if (state_names[i] && strcmp(state_names[i], name) == 0) {
			*state = (enum smv_lease_state)i;
			return true;
		}
	}
	return false;
}

/* --- reading ------------------------------------------------------------------------------ */

/* NULL, or what is wrong. @taken: by extent of the arena. */
static const char *parse_runs(
	json_t *array, struct smv_lease_record *r, bool *taken, size_t nr_extents)
{
	size_t nr = json_array_size(array), i;
	json_t *pair;

	if (nr == 0 || nr > SMV_LEASE_SEGMENTS_MAX)
		return "a lease has too few or too many segments";
	r->runs = calloc(nr, sizeof(*r->runs));
	if (!r->runs)
		return "out of memory";
	json_array_foreach (array, i, pair) {
		json_int_t first, n;

		if (json_unpack(pair, "[I,I!]", &first, &n) < 0)
			return "a segment is malformed";
		if (first < 0 || n <= 0 || (size_t)first > nr_extents ||
			(size_t)n > nr_extents - (size_t)first)
			return "a segment is not inside the arena";
		for (json_int_t e = first; e < first + n; e++) {
			if (taken[e])
				return "an extent belongs to two leases";
			taken[e] = true;
		}
		r->runs[r->nr_runs++] = (struct smv_extent_run){(size_t)first, (size_t)n};
	}
	return NULL;
}

static const char *parse_record(
	json_t *from, struct smv_lease_record *r, bool *taken, size_t nr_extents)
{
	const char *id, *owner, *state, *key, *transport;
	json_int_t epoch, ttl_ms, created_ns;
	json_t *runs;

	if (json_unpack(from, "{s:s, s:s, s:s, s:I, s:s, s:s, s:I, s:I, s:o!}", "id", &id, "owner",
		    &owner, "state", &state, "epoch", &epoch, "key", &key, "transport", &transport,
		    "ttl_ms", &ttl_ms, "created_ns", &created_ns, "extents", &runs) < 0)
		return "a lease is malformed";
	if (!smv_is_hex(id, 16) || !smv_hex_parse(key, r->key, SMV_TICKET_KEY_SIZE) ||
		!parse_state(state, &r->state) || strlen(owner) > SMV_LEASE_OWNER_MAX ||
		strlen(transport) >= sizeof(r->transport) || epoch < 1 || epoch > UINT32_MAX ||
		ttl_ms < 1 || ttl_ms > UINT32_MAX || created_ns < 0)
		return "a lease makes no sense";
	r->id = strtoull(id, NULL, 16);
	memcpy(r->owner, owner, strlen(owner) + 1);
	memcpy(r->transport, transport, strlen(transport) + 1);
	r->epoch = (uint32_t)epoch;
	r->ttl_ms = (uint64_t)ttl_ms;
	r->created_ns = (uint64_t)created_ns;
	return parse_runs(runs, r, taken, nr_extents);
}

static bool id_is_unique(const struct smv_lease_file *f, uint64_t id)
{
	for (size_t i = 0; i + 1 < f->nr_records; i++)
		if (f->records[i].id == id)
			return false;
	return true;
}

static const char *parse_records(json_t *array, struct smv_lease_file *f)
{
	size_t nr_extents = f->size_bytes / SMV_EXTENT_SIZE, i;
	CLEANUP_FREE bool *taken = calloc(nr_extents, sizeof(*taken));
	json_t *lease;

	if (!json_is_array(array) || json_array_size(array) > SMV_LEASES_MAX)
		return "it has no leases, or too many";
	f->records = calloc(json_array_size(array) + 1, sizeof(*f->records));
	if (!taken || !f->records)
		return "out of memory";
	json_array_foreach (array, i, lease) {
		struct smv_lease_record *r = &f->records[f->nr_records++];
		const char *why = parse_record(lease, r, taken, nr_extents);

		if (why)
			return why;
		if (!id_is_unique(f, r->id))
			return "two leases have the same id";
	}
	return NULL;
}

static const char *parse_file(json_t *root, struct smv_lease_file *f)
{
	json_int_t size, huge, inode, generation;
	const char *incarnation;
	json_t *leases;
	int version;

	if (json_unpack(root, "{s:i}", "version", &version) < 0)
		return "it has no version";
	if (version != VERSION)
		return "another version of memserverd wrote it";
	if (json_unpack(root, "{s:i, s:s, s:I, s:I, s:I, s:I, s:o!}", "version", &version,
		    "incarnation", &incarnation, "generation", &generation, "size_bytes", &size,
		    "hugepage_bytes", &huge, "arena_inode", &inode, "leases", &leases) < 0)
		return "a field is missing or not known";
	if (!smv_is_hex(incarnation, 32) || generation < 0 ||
		(uint64_t)generation >= SMV_NONCE_GENERATIONS - 1 || huge < 0 || size <= 0 ||
		(uint64_t)size % SMV_EXTENT_SIZE)
		return "a field makes no sense";
	memcpy(f->incarnation, incarnation, 33);
	f->generation = (uint64_t)generation;
	f->size_bytes = (uint64_t)size;
	f->hugepage_bytes = (uint64_t)huge;
	f->arena_inode = (uint64_t)inode;
	return parse_records(leases, f);
}

static int fail_bad(const char *dir, const char *why, struct smv_error *err)
{
	return smv_fail(err, SMV_REFUSED, "bad-state", DISCARD_HINT,
		"cannot take over the leases in '%s/" NAME "': %s", dir, why);
}

static int open_file(int dir_fd, const char *dir, int *fd, struct smv_error *err)
{
	struct stat st;

	*fd = openat(dir_fd, NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (*fd < 0)
		return errno == ENOENT ? -ENOENT : fail_bad(dir, strerror(errno), err);
	if (fstat(*fd, &st) < 0)
		return fail_bad(dir, strerror(errno), err);
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
		return fail_bad(dir, "it is no file of this user", err);
	if ((uint64_t)st.st_size > FILE_SIZE_MAX)
		return fail_bad(dir, "it is too large", err);
	return 0;
}

int smv_lease_file_read(
	int dir_fd, const char *dir, struct smv_lease_file *file, struct smv_error *err)
{
	CLEANUP_JSON json_t *root = NULL;
	CLEANUP_FILE FILE *in = NULL;
	CLEANUP_CLOSE int fd = -1;
	json_error_t broken;
	const char *why;
	int rc = open_file(dir_fd, dir, &fd, err);

	memset(file, 0, sizeof(*file));
	if (rc < 0)
		return rc;
	in = fdopen(fd, "r");
	if (!in)
		return fail_bad(dir, strerror(errno), err);
	smv_take_fd(&fd);
	root = json_loadf(in, JSON_REJECT_DUPLICATES, &broken);
	if (!root)
		return fail_bad(dir, broken.text, err);
	why = parse_file(root, file);
	if (!why)
		return 0;
	smv_lease_file_clear(file);
	return fail_bad(dir, why, err);
}

void smv_lease_file_clear(struct smv_lease_file *file)
{
	for (size_t i = 0; i < file->nr_records; i++) {
		OPENSSL_cleanse(file->records[i].key, sizeof(file->records[i].key));
		free(file->records[i].runs);
	}
	free(file->records);
	file->records = NULL;
	file->nr_records = 0;
}

/* --- writing ------------------------------------------------------------------------------ */

static json_t *record_to_json(const struct smv_lease_record *r)
{
	char key[2 * SMV_TICKET_KEY_SIZE + 1], id[17];
	json_t *runs = json_array();

	smv_hex_format(r->key, SMV_TICKET_KEY_SIZE, key);
	snprintf(id, sizeof(id), "%016" PRIx64, r->id);
	for (size_t i = 0; i < r->nr_runs; i++)
		json_array_append_new(runs, json_pack("[I,I]", (json_int_t)r->runs[i].first,
						    (json_int_t)r->runs[i].nr));
	if (json_array_size(runs) != r->nr_runs) {
		json_decref(runs);
		return NULL;
	}
	return json_pack("{s:s, s:s, s:s, s:I, s:s, s:s, s:I, s:I, s:o}", "id", id, "owner",
		r->owner, "state", smv_lease_state_name(r->state), "epoch", (json_int_t)r->epoch,
		"key", key, "transport", r->transport, "ttl_ms", (json_int_t)r->ttl_ms,
		"created_ns", (json_int_t)r->created_ns, "extents", runs);
}

static json_t *file_to_json(const struct smv_lease_file *f)
{
	json_t *leases = json_array();

	for (size_t i = 0; i < f->nr_records; i++)
		json_array_append_new(leases, record_to_json(&f->records[i]));
	if (json_array_size(leases) != f->nr_records) {
		json_decref(leases);
		return NULL;
	}
	return json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:o}", "version", VERSION, "incarnation",
		f->incarnation, "generation", (json_int_t)f->generation, "size_bytes",
		(json_int_t)f->size_bytes, "hugepage_bytes", (json_int_t)f->hugepage_bytes,
		"arena_inode", (json_int_t)f->arena_inode, "leases", leases);
}

static int write_new(int dir_fd, const json_t *root)
{
	CLEANUP_CLOSE int fd = -1;
	CLEANUP_FILE FILE *out = NULL;

	unlinkat(dir_fd, NEW_NAME, 0);
	fd = openat(dir_fd, NEW_NAME, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	out = fdopen(fd, "w");
	if (!out)
		return -errno;
	smv_take_fd(&fd);
	errno = 0;
	if (json_dumpf(root, out, JSON_COMPACT) < 0 || fputc('\n', out) == EOF)
		return errno ? -errno : -EIO;
	return fclose(smv_take(out)) == 0 ? 0 : -errno;
}

int smv_lease_file_write(
	int dir_fd, const char *dir, const struct smv_lease_file *file, struct smv_error *err)
{
	CLEANUP_JSON json_t *root = file_to_json(file);
	int rc = root ? write_new(dir_fd, root) : -ENOMEM;

	if (rc == 0 && smv_fault_point("lease-file-written"))
		rc = -ENOSPC;
	if (rc == 0 && renameat(dir_fd, NEW_NAME, dir_fd, NAME) < 0)
		rc = -errno;
	if (rc == 0)
		return 0;
	unlinkat(dir_fd, NEW_NAME, 0);
	return smv_fail(err, smv_code_from_errno(rc), "state-dir",
		"Make room in the file system of the state directory.",
		"cannot record the leases in '%s/" NAME "': %s", dir, strerror(-rc));
}

bool smv_lease_file_remove(int dir_fd)
{
	unlinkat(dir_fd, NEW_NAME, 0);
	return unlinkat(dir_fd, NAME, 0) == 0;
}
