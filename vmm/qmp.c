/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol: docs/interop/qmp-spec in QEMU's source. One JSON object per line both ways. */
#include "vmm/qmp.h"

#include "common/cleanup.h"
#include "common/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define LINE_MAX_BYTES (16u << 20)
#define EVENTS_MAX 4096
#define QUICK_MS 10000 /* commands that QEMU answers at once, unless its main loop is stuck */

struct smv_qmp {
	int fd;
	uint64_t last_id;
	int broken; /* -errno once the stream is of no use */
	char *buf;  /* received and not yet consumed: buf[0..used) */
	size_t used, size;
	size_t scanned; /* no newline before it */
	json_t *events;
	int version;
	char version_text[96];
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

/* Wait for @events until @deadline (ns). 0, -ETIMEDOUT or -errno. */
static int wait_for(int fd, short events, uint64_t deadline)
{
	struct pollfd p = {.fd = fd, .events = events};

	for (;;) {
		uint64_t now = smv_now_ns();
		int n, ms = now >= deadline ? 0 : (int)((deadline - now) / SMV_NS_PER_MS) + 1;

		n = poll(&p, 1, ms);
		if (n > 0)
			return 0;
		if (n == 0 && smv_now_ns() >= deadline)
			return -ETIMEDOUT;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

static uint64_t deadline_in(int timeout_ms)
{
	uint64_t wait_ms = timeout_ms > 0 ? (unsigned int)timeout_ms : 0;

	return smv_now_ns() + wait_ms * SMV_NS_PER_MS;
}

static int buffer_grow(struct smv_qmp *qmp)
{
	size_t size = qmp->size ? qmp->size * 2 : 16384;
	char *buf;

	if (qmp->used < qmp->size)
		return 0;
	if (size > LINE_MAX_BYTES)
		return -EMSGSIZE;
	buf = realloc(qmp->buf, size);
	if (!buf)
		return -ENOMEM;
	qmp->buf = buf;
	qmp->size = size;
	return 0;
}

/* Receive more bytes. Errors other than -ETIMEDOUT are final. */
static int fill(struct smv_qmp *qmp, uint64_t deadline)
{
	ssize_t n;
	int r = buffer_grow(qmp);

	if (r < 0)
		return qmp->broken = r;
	r = wait_for(qmp->fd, POLLIN, deadline);
	if (r < 0)
		return r;
	n = recv(qmp->fd, qmp->buf + qmp->used, qmp->size - qmp->used, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return qmp->broken = -ECONNRESET;
	qmp->used += (size_t)n;
	return 0;
}

/* The next JSON object. -EPROTO for a line that is none. */
static int read_object(struct smv_qmp *qmp, uint64_t deadline, json_t **object)
{
	char *end;
	size_t len;

	while (!(end = qmp->used == qmp->scanned
			       ? NULL
			       : memchr(qmp->buf + qmp->scanned, '\n', qmp->used - qmp->scanned))) {
		int r = qmp->broken;

		qmp->scanned = qmp->used;
		if (!r)
			r = fill(qmp, deadline);
		if (r < 0)
			return r;
	}
	len = (size_t)(end - qmp->buf);
	*object = json_loadb(qmp->buf, len, 0, NULL);
	/* Numbers from 2^63 on, as in the event of a Windows guest that crashed, are no integers of
	 * jansson's. */
	if (!*object)
		*object = json_loadb(qmp->buf, len, JSON_DECODE_INT_AS_REAL, NULL);
	qmp->used -= len + 1;
	qmp->scanned = 0;
	memmove(qmp->buf, end + 1, qmp->used);
	if (json_is_object(*object))
		return 0;
	json_decref(*object);
	*object = NULL;
	return qmp->broken = -EPROTO;
}

static void keep_event(struct smv_qmp *qmp, json_t *event)
{
	/* Nobody reads them: the latest matter. */
	if (json_array_size(qmp->events) >= EVENTS_MAX)
		json_array_remove(qmp->events, 0);
	json_array_append(qmp->events, event);
}

/* Our answer, or an error without an id (QEMU could not parse what we sent). Others are late. */
static bool is_answer(const json_t *object, uint64_t id)
{
	const json_t *got = json_object_get(object, "id");

	if (json_is_integer(got))
		return (uint64_t)json_integer_value(got) == id;
	return !got && json_object_get(object, "error");
}

static int read_answer(struct smv_qmp *qmp, uint64_t id, uint64_t deadline, json_t **answer)
{
	for (;;) {
		CLEANUP_JSON json_t *object = NULL;
		int r = read_object(qmp, deadline, &object);

		if (r < 0)
			return r;
		if (json_object_get(object, "event")) {
			keep_event(qmp, object);
		} else if (is_answer(object, id)) {
			*answer = smv_take(object);
			return 0;
		}
	}
}

static int send_line(struct smv_qmp *qmp, json_t *object, uint64_t deadline)
{
	CLEANUP_FREE char *text = json_dumps(object, JSON_COMPACT);
	size_t len, done = 0;

	if (!text)
		return -EINVAL; /* our own text was not UTF-8 */
	len = strlen(text);
	text[len++] = '\n'; /* the NUL is not sent */
	while (done < len) {
		ssize_t n = send(qmp->fd, text + done, len - done, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r = 0;

		if (n >= 0)
			done += (size_t)n;
		else if (errno == EAGAIN)
			r = wait_for(qmp->fd, POLLOUT, deadline);
		else if (errno != EINTR)
			r = -ECONNRESET;
		if (r < 0)
			return qmp->broken = r; /* half a line may be out */
	}
	return 0;
}

static int fail(const struct smv_qmp *qmp, int r, const char *command, struct smv_error *err)
{
	switch (r) {
	case -ETIMEDOUT:
		return smv_fail(err, SMV_TIMEOUT, "qmp-timeout",
			"Is QEMU stopped, or does another client hold this QMP socket? It serves "
			"one "
			"at a time.",
			"QEMU at '%s' did not answer '%s' in time", qmp->path, command);
	case -EPROTO:
	case -EMSGSIZE:
		return smv_fail(err, SMV_INTERNAL, "qmp-protocol", "Is it a QMP socket?",
			"'%s': what came in answer to '%s' is not QMP", qmp->path, command);
	case -ECONNRESET:
		return smv_fail(err, SMV_UNAVAILABLE, "qmp-gone", NULL,
			"QEMU at '%s' closed the connection at '%s'", qmp->path, command);
	default:
		return smv_fail(err, smv_code_from_errno(r), "qmp-io", NULL,
			"QMP command '%s' at '%s': %s", command, qmp->path, strerror(-r));
	}
}

static int refused(const json_t *error, const char *command, struct smv_error *err)
{
	const char *class = json_string_value(json_object_get(error, "class"));
	const char *desc = json_string_value(json_object_get(error, "desc"));

	return smv_fail(err, SMV_REFUSED, "qmp", NULL, "QEMU refused '%s': %s", command,
		desc    ? desc
		: class ? class
			: "no reason given");
}

int smv_qmp_execute(struct smv_qmp *qmp, const char *command, json_t *arguments, json_t **result,
	int timeout_ms, struct smv_error *err)
{
	uint64_t deadline = deadline_in(timeout_ms);
	CLEANUP_JSON json_t *answer = NULL;
	CLEANUP_JSON json_t *request =
		json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)++qmp->last_id);
	json_t *value;
	int r = qmp->broken;

	if (arguments)
		json_object_set_new(request, "arguments", arguments);
	if (!r)
		r = send_line(qmp, request, deadline);
	if (!r)
		r = read_answer(qmp, qmp->last_id, deadline, &answer);
	if (r < 0)
		return fail(qmp, r, command, err);
	value = json_object_get(answer, "error");
	if (value)
		return refused(value, command, err);
	value = json_object_get(answer, "return");
	if (!value)
		return fail(qmp, qmp->broken = -EPROTO, command, err);
	if (result)
		*result = json_incref(value);
	return 0;
}

int smv_qmp_next_event(struct smv_qmp *qmp, int timeout_ms, json_t **event)
{
	uint64_t deadline = deadline_in(timeout_ms);

	while (!json_array_size(qmp->events)) {
		CLEANUP_JSON json_t *object = NULL;
		int r = read_object(qmp, deadline, &object);

		if (r < 0)
			return r == -ETIMEDOUT ? r : -ECONNRESET;
		if (json_object_get(object, "event"))
			keep_event(qmp, object);
	}
	*event = json_incref(json_array_get(qmp->events, 0));
	json_array_remove(qmp->events, 0);
	return 0;
}

/* Connect, again and again while nobody listens there yet. */
static int dial(const char *path, uint64_t deadline)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	strcpy(addr.sun_path, path); /* smv_qmp_open() has checked the length */
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r;

		if (fd < 0)
			return -errno;
		if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
			return fd;
		r = -errno;
		close(fd);
		/* -EAGAIN: the queue of the socket is full. */
		if (r != -ENOENT && r != -ECONNREFUSED && r != -EAGAIN)
			return r;
		if (smv_now_ns() >= deadline)
			return r;
		smv_sleep_ms(10);
	}
}

static int read_greeting(struct smv_qmp *qmp, uint64_t deadline)
{
	CLEANUP_JSON json_t *greeting = NULL;
	const char *package = "";
	int r = read_object(qmp, deadline, &greeting), major, minor, micro;

	if (r < 0)
		return r;
	if (json_unpack(greeting, "{s:{s:{s:{s:i, s:i, s:i}, s?s}}}", "QMP", "version", "qemu",
		    "major", &major, "minor", &minor, "micro", &micro, "package", &package) < 0 ||
		major < 0 || major > 9999 || minor < 0 || minor > 99 || micro < 0 || micro > 99)
		return qmp->broken = -EPROTO;
	qmp->version = major * 10000 + minor * 100 + micro;
	snprintf(qmp->version_text, sizeof(qmp->version_text), "%d.%d.%d%s%s", major, minor, micro,
		package[0] ? " " : "", package);
	return 0;
}

int smv_qmp_open(const char *path, int timeout_ms, struct smv_qmp **result, struct smv_error *err)
{
	uint64_t deadline = deadline_in(timeout_ms), now;
	struct smv_qmp *qmp;
	int r;

	if (strlen(path) >= sizeof(qmp->path))
		return smv_fail(err, SMV_INVALID, "path-too-long", NULL,
			"QMP socket '%.200s': the path is too long for a socket address", path);
	qmp = calloc(1, sizeof(*qmp));
	if (!qmp)
		return smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	strcpy(qmp->path, path);
	qmp->events = json_array();
	qmp->fd = dial(path, deadline);
	if (qmp->fd < 0) {
		r = smv_fail(err, SMV_UNAVAILABLE, "qmp-connect",
			"Does the VM run? Start it with smemv-run, or name its QMP socket.",
			"cannot connect to QEMU at '%s': %s", path, strerror(-qmp->fd));
	} else {
		r = read_greeting(qmp, deadline);
		if (r < 0)
			r = fail(qmp, r, "connect", err);
	}
	if (!r) {
		now = smv_now_ns();
		r = smv_qmp_execute(qmp, "qmp_capabilities", NULL, NULL,
			now < deadline ? (int)((deadline - now) / SMV_NS_PER_MS) + 1 : 1, err);
	}
	if (r < 0) {
		smv_qmp_close(qmp);
		return r;
	}
	*result = qmp;
	return 0;
}

bool smv_qmp_is_broken(const struct smv_qmp *qmp)
{
	return qmp->broken;
}

void smv_qmp_close(struct smv_qmp *qmp)
{
	if (!qmp)
		return;
	if (qmp->fd >= 0)
		close(qmp->fd);
	json_decref(qmp->events);
	free(qmp->buf);
	free(qmp);
}

int smv_qmp_version(const struct smv_qmp *qmp, const char **text)
{
	if (text)
		*text = qmp->version_text;
	return qmp->version;
}

pid_t smv_qmp_peer_pid(const struct smv_qmp *qmp)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(qmp->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.pid <= 0)
		return -1;
	return cred.pid;
}

int smv_qmp_run_state(struct smv_qmp *qmp, char *state, size_t len, struct smv_error *err)
{
	CLEANUP_JSON json_t *result = NULL;
	const char *status;
	int r = smv_qmp_execute(qmp, "query-status", NULL, &result, QUICK_MS, err);

	if (r < 0)
		return r;
	status = json_string_value(json_object_get(result, "status"));
	if (!status)
		return fail(qmp, -EPROTO, "query-status", err);
	snprintf(state, len, "%s", status);
	return 0;
}

int smv_qmp_get_capability(struct smv_qmp *qmp, const char *name, bool *on, struct smv_error *err)
{
	CLEANUP_JSON json_t *result = NULL;
	size_t i;
	json_t *entry;
	int r = smv_qmp_execute(qmp, "query-migrate-capabilities", NULL, &result, QUICK_MS, err);

	if (r < 0)
		return r;
	json_array_foreach (result, i, entry) {
		const char *capability = json_string_value(json_object_get(entry, "capability"));

		if (!capability || strcmp(capability, name) != 0)
			continue;
		*on = json_is_true(json_object_get(entry, "state"));
		return 0;
	}
	return smv_fail(err, SMV_UNIMPLEMENTED, "qemu-capability", "Use QEMU 7.2 or newer.",
		"QEMU %s has no migration capability '%s'", qmp->version_text, name);
}

int smv_qmp_set_capability(struct smv_qmp *qmp, const char *name, bool on, struct smv_error *err)
{
	json_t *arguments =
		json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", name, "state", on);

	return smv_qmp_execute(qmp, "migrate-set-capabilities", arguments, NULL, QUICK_MS, err);
}
