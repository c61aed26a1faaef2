/* SPDX-License-Identifier: Apache-2.0 */
#include "client/remote.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "vmm/guest_ram.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define DEPTH 128
#define MEND_CONNECT_MS 2000
#define ANY_CONNECT_NS (300 * SMV_NS_PER_MS)
#define BACKOFF_MIN_NS (100 * SMV_NS_PER_MS)
#define BACKOFF_MAX_NS (5 * SMV_NS_PER_S)

/* A connection that is made again, by a thread of its own: whoever serves faults must not wait for
 * a sub-host that does not answer. */
struct attempt {
	struct smv_remote *remote;
	unsigned int sub_host;
	pthread_t thread;
	bool running; /* until it is joined */
	atomic_bool done;
	/* What came of it: */
	struct smv_conn *conn;
	struct smv_segment *segments;
	struct smv_error err;
};

struct link {
	struct smv_conn *conn;        /* NULL: down */
	struct smv_segment *segments; /* what the peer of this connection calls them */
	struct attempt attempt;
	uint64_t backoff_ns;
	uint64_t retry_at_ns;
	struct smv_error why;      /* why it is down */
	enum smv_host_state state; /* as it was told last */
	bool lost; /* it answered that the data is lost; until there is a connection again */
	uint64_t lost_since_ns; /* it has said nothing else since then; 0: it was away */
	uint64_t lost_for_ns;   /* the longest time for which it did so */
	/* Moved by earlier connections; and the sum with the present one, for any thread to read.
	 */
	struct smv_conn_stats before;
	_Atomic uint64_t bytes_read;
	_Atomic uint64_t bytes_written;
};

struct smv_remote {
	const struct smv_backing *backing;
	enum smv_role role;
	unsigned int timeout_ms;
	struct smv_domain *domain;
	struct smv_region *region;
	void *staging;
	size_t staging_bytes;
	struct link *links;
	unsigned int next; /* where the next poll starts, so that no sub-host starves another */
	smv_remote_watcher watcher;
	void *watcher_ctx;
};

/* The way in as it was when the backing was made. */
static int known_door(const struct smv_backing *b, unsigned int h, enum smv_role role,
	struct smv_door *door, struct smv_error *err)
{
	const struct smv_sub_host *host = &b->sub_hosts[h];

	if (b->ticket(b->ticket_ctx, h, role, &door->ticket) < 0)
		return smv_fail(err, SMV_PERMISSION, "no-ticket", NULL,
			"no ticket is left for a data connection to sub-host %s", host->address);
	door->data_addr = host->data_addr;
	door->segments = calloc(host->nr_segments, sizeof(*door->segments));
	if (!door->segments)
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	memcpy(door->segments, host->segments, host->nr_segments * sizeof(*door->segments));
	return 0;
}

/* Any thread. @segments gets an array to free(), on success only. */
static int connect_to(struct smv_remote *remote, unsigned int h, unsigned int connect_timeout_ms,
	bool ask, struct smv_conn **conn, struct smv_segment **segments, struct smv_error *err)
{
	const struct smv_backing *b = remote->backing;
	struct smv_conn_options options = {.depth = DEPTH,
		.timeout_ms = remote->timeout_ms,
		.connect_timeout_ms = connect_timeout_ms};
	struct smv_door door = {.segments = NULL};
	int r = ask && b->find_door ? b->find_door(b->ticket_ctx, h, remote->role, &door, err)
				    : known_door(b, h, remote->role, &door, err);

	if (r == 0)
		r = smv_connect(remote->domain, &door.data_addr, &door.ticket, sizeof(door.ticket),
			&options, conn, err);
	if (r == 0)
		*segments = smv_take(door.segments);
	free(door.segments);
	return r;
}

/* The first connection to a sub-host; one that was started again meanwhile is asked. */
static int connect_first(struct smv_remote *remote, unsigned int h, struct smv_error *err)
{
	struct link *l = &remote->links[h];
	int r = connect_to(remote, h, 0, false, &l->conn, &l->segments, err);

	if (r < 0 && remote->backing->find_door)
		r = connect_to(remote, h, 0, true, &l->conn, &l->segments, err);
	return r;
}

static int connect_all(struct smv_remote *remote, struct smv_error *err)
{
	int r = 0;

	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts && r == 0; h++)
		if (remote->backing->sub_hosts[h].nr_segments)
			r = connect_first(remote, h, err);
	return r;
}

static int connect_any(struct smv_remote *remote, struct smv_error *err);

static int open_with(int (*connect_hosts)(struct smv_remote *, struct smv_error *),
	const struct smv_backing *backing, enum smv_role role, size_t staging_bytes,
	unsigned int timeout_ms, struct smv_remote **out, struct smv_error *err)
{
	struct smv_remote *remote = calloc(1, sizeof(*remote));
	int r;

	if (!remote || !(remote->links = calloc(backing->nr_sub_hosts, sizeof(*remote->links)))) {
		free(remote);
		return smv_fail(err, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
	}
	remote->backing = backing;
	remote->role = role;
	remote->timeout_ms = timeout_ms;
	remote->staging_bytes = staging_bytes;
	remote->staging = mmap(NULL, staging_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (remote->staging == MAP_FAILED) {
		remote->staging = NULL;
		r = smv_fail(err, SMV_NO_ROOM, "no-memory", NULL,
			"cannot map a staging buffer of %zu bytes", staging_bytes);
		goto fail;
	}
	if ((r = smv_domain_create(backing->transport, &remote->domain)) < 0 ||
		(r = smv_region_register(
			 remote->domain, remote->staging, staging_bytes, 0, &remote->region)) < 0) {
		smv_fail(err, smv_code_from_errno(r), "register", NULL,
			"cannot register a staging buffer of %zu bytes with transport %s: %s",
			staging_bytes, smv_transport_name(backing->transport), strerror(-r));
		goto fail;
	}
	if ((r = connect_hosts(remote, err)) < 0)
		goto fail;
	*out = remote;
	return 0;
fail:
	smv_remote_close(remote);
	return r;
}

int smv_remote_open(const struct smv_backing *backing, enum smv_role role, size_t staging_bytes,
	unsigned int timeout_ms, struct smv_remote **out, struct smv_error *err)
{
	return open_with(connect_all, backing, role, staging_bytes, timeout_ms, out, err);
}

int smv_remote_open_any(const struct smv_backing *backing, enum smv_role role, size_t staging_bytes,
	unsigned int timeout_ms, struct smv_remote **out, struct smv_error *err)
{
	return open_with(connect_any, backing, role, staging_bytes, timeout_ms, out, err);
}

static void *attempt_main(void *arg)
{
	struct attempt *a = arg;

	if (connect_to(a->remote, a->sub_host, MEND_CONNECT_MS, true, &a->conn, &a->segments,
		    &a->err) < 0)
		a->conn = NULL;
	atomic_store(&a->done, true);
	return NULL;
}

static void attempt_begin(struct smv_remote *remote, unsigned int h)
{
	struct attempt *a = &remote->links[h].attempt;
	int r;

	*a = (struct attempt){.remote = remote, .sub_host = h};
	r = pthread_create(&a->thread, NULL, attempt_main, a);
	a->running = r == 0;
	if (r)
		smv_fail(&remote->links[h].why, SMV_NO_ROOM, "no-thread", NULL,
			"no thread to connect to sub-host %s: %s",
			remote->backing->sub_hosts[h].address, strerror(r));
}

/* What came of an attempt, as to the data. */
static void note_loss(struct link *l)
{
	uint64_t now = smv_now_ns();

	if (l->conn) {
		l->lost = false;
		l->lost_since_ns = l->lost_for_ns = 0;
	} else if (l->why.code != SMV_DATA_LOSS) {
		l->lost_since_ns = 0;
	} else {
		if (!l->lost_since_ns)
			l->lost_since_ns = now;
		if (now - l->lost_since_ns > l->lost_for_ns)
			l->lost_for_ns = now - l->lost_since_ns;
		l->lost = true;
	}
}

/* Waits for it; true: the link is up again. */
static bool attempt_end(struct link *l)
{
	struct attempt *a = &l->attempt;

	if (!a->running)
		return false;
	pthread_join(a->thread, NULL);
	a->running = false;
	l->conn = a->conn;
	if (!l->conn)
		l->why = a->err;
	note_loss(l);
	if (!l->conn)
		return false;
	if (smv_fault_point("remote-stale-rkeys")) {
		free(smv_take(a->segments));
		return true;
	}
	free(l->segments);
	l->segments = smv_take(a->segments);
	return true;
}

void smv_remote_close(struct smv_remote *remote)
{
	if (!remote)
		return;
	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++) {
		attempt_end(&remote->links[h]);
		if (remote->links[h].conn)
			smv_conn_close(remote->links[h].conn);
		free(remote->links[h].segments);
	}
	if (remote->region)
		smv_region_deregister(remote->region);
	if (remote->domain)
		smv_domain_destroy(remote->domain);
	if (remote->staging)
		munmap(remote->staging, remote->staging_bytes);
	free(remote->links);
	free(remote);
}

void *smv_remote_staging(struct smv_remote *remote)
{
	return remote->staging;
}

/* Why a sub-host is down. */
static void describe(const struct smv_remote *remote, unsigned int h, struct smv_error *err)
{
	const struct smv_error *why = &remote->links[h].why;

	if (!err)
		return;
	*err = *why;
	if (why->code != SMV_DATA_LOSS)
		smv_fail(err, why->code, why->reason, why->hint,
			"sub-host %s is not reached: %.300s", remote->backing->sub_hosts[h].address,
			why->message);
}

static void tell(struct smv_remote *remote, unsigned int h)
{
	struct link *l = &remote->links[h];
	enum smv_host_state state = l->conn                        ? SMV_HOST_UP
				    : l->why.code == SMV_DATA_LOSS ? SMV_HOST_LOST
								   : SMV_HOST_DOWN;
	struct smv_error why = {0};

	if (state == l->state)
		return;
	l->state = state;
	if (state != SMV_HOST_UP)
		describe(remote, h, &why);
	if (remote->watcher)
		remote->watcher(
			remote->watcher_ctx, h, state, state == SMV_HOST_UP ? NULL : why.message);
	else if (state == SMV_HOST_UP)
		smv_log_info("the data connection to sub-host %s is back",
			remote->backing->sub_hosts[h].address);
	else
		smv_log_warning("%s", why.message);
}

void smv_remote_watch(struct smv_remote *remote, smv_remote_watcher watcher, void *ctx)
{
	remote->watcher = watcher;
	remote->watcher_ctx = ctx;
	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++)
		if (remote->backing->sub_hosts[h].nr_segments) {
			/* What a former remote told of it may be over. */
			if (remote->links[h].conn)
				watcher(ctx, h, SMV_HOST_UP, NULL);
			tell(remote, h);
		}
}

static void link_down(struct smv_remote *remote, unsigned int h)
{
	struct link *l = &remote->links[h];

	smv_conn_close(l->conn);
	l->conn = NULL;
	l->before = (struct smv_conn_stats){l->bytes_read, l->bytes_written};
	l->backoff_ns = BACKOFF_MIN_NS;
	l->retry_at_ns = smv_now_ns() + l->backoff_ns;
	smv_fail(&l->why, SMV_UNAVAILABLE, "sub-host-down", NULL,
		"the data connection to sub-host %s was lost",
		remote->backing->sub_hosts[h].address);
	tell(remote, h);
}

int smv_remote_post(struct smv_remote *remote, enum smv_op op, uint64_t first_slot,
	unsigned int nr_pages, void *staging, uint64_t cookie)
{
	struct smv_slot_place place = smv_backing_locate(remote->backing, first_slot);
	struct link *l = &remote->links[place.sub_host];
	struct smv_sge sge = {staging, nr_pages * SMV_PAGE_SIZE, remote->region};
	struct smv_request request = {.op = op, .cookie = cookie, .sge = &sge, .nr_sge = 1};
	int r;

	assert(first_slot % SMV_EXTENT_PAGES + nr_pages <= SMV_EXTENT_PAGES);
	if (!l->conn)
		return l->lost ? -ENODATA : -ENOTCONN;
	request.rkey = l->segments[place.segment].rkey;
	request.remote_addr = l->segments[place.segment].remote_addr + place.offset_bytes;
	r = smv_conn_post(l->conn, &request, 1);
	/* A connection that failed while nothing was under way has no completion to tell of it. */
	if (r == -ENOTCONN && smv_conn_in_flight(l->conn) == 0)
		link_down(remote, place.sub_host);
	return r < 0 ? r : r == 0 ? -EAGAIN : 0;
}

unsigned int smv_remote_poll(
	struct smv_remote *remote, struct smv_remote_completion *completions, unsigned int max)
{
	unsigned int n = 0, nr = remote->backing->nr_sub_hosts;
	struct smv_completion c[64];

	for (unsigned int i = 0; i < nr && n < max; i++) {
		unsigned int h = (remote->next + i) % nr;
		struct link *l = &remote->links[h];
		struct smv_conn_stats stats;
		int got;

		if (!l->conn)
			continue;
		got = smv_conn_poll(l->conn, c, max - n < 64 ? max - n : 64);
		smv_conn_stats(l->conn, &stats);
		atomic_store_explicit(&l->bytes_read, l->before.bytes_read + stats.bytes_read,
			memory_order_relaxed);
		atomic_store_explicit(&l->bytes_written,
			l->before.bytes_written + stats.bytes_written, memory_order_relaxed);
		if (got < 0) {
			link_down(remote, h);
			continue;
		}
		for (int k = 0; k < got; k++)
			completions[n++] = (struct smv_remote_completion){c[k].cookie, c[k].status};
	}
	remote->next = (remote->next + 1) % nr;
	return n;
}

int smv_remote_pollfds(struct smv_remote *remote, struct pollfd *fds, int *timeout_ms)
{
	int n = 0;

	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++) {
		struct smv_conn *conn = remote->links[h].conn;
		int t;

		if (!conn)
			continue;
		fds[n].fd = smv_conn_fd(conn);
		fds[n].revents = 0;
		if (smv_conn_arm(conn, &fds[n].events, &t))
			return -1;
		if (t >= 0 && (*timeout_ms < 0 || t < *timeout_ms))
			*timeout_ms = t;
		n++;
	}
	return n;
}

static void back_off(struct link *l)
{
	l->backoff_ns = l->backoff_ns * 2 < BACKOFF_MAX_NS ? l->backoff_ns * 2 : BACKOFF_MAX_NS;
	/* Jitter of up to a quarter, so that many clients do not come back together. */
	l->retry_at_ns =
		smv_now_ns() + l->backoff_ns - smv_now_ns() / 1000 * 7919 % (l->backoff_ns / 4);
}

/* True: the link is up again. */
static bool link_mend(struct smv_remote *remote, unsigned int h)
{
	struct link *l = &remote->links[h];

	if (l->attempt.running && atomic_load(&l->attempt.done)) {
		if (attempt_end(l))
			return true;
		back_off(l);
	}
	if (!l->attempt.running && smv_now_ns() >= l->retry_at_ns) {
		attempt_begin(remote, h);
		if (!l->attempt.running)
			back_off(l);
	}
	return false;
}

/* All at once, and none is waited for long: the others' pages are needed now. */
static int connect_any(struct smv_remote *remote, struct smv_error *err)
{
	uint64_t end = smv_now_ns() + ANY_CONNECT_NS;
	bool busy = true;

	(void)err;
	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++) {
		remote->links[h].backoff_ns = BACKOFF_MIN_NS;
		smv_fail(&remote->links[h].why, SMV_UNAVAILABLE, "sub-host-down", NULL,
			"it has not answered yet");
		if (remote->backing->sub_hosts[h].nr_segments)
			attempt_begin(remote, h);
	}
	while (busy && smv_now_ns() < end) {
		busy = false;
		for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++) {
			struct link *l = &remote->links[h];

			if (l->attempt.running && atomic_load(&l->attempt.done) && !attempt_end(l))
				back_off(l);
			busy |= l->attempt.running;
		}
		if (busy)
			smv_sleep_ms(1);
	}
	return 0;
}

unsigned int smv_remote_mend(struct smv_remote *remote, struct smv_error *err)
{
	unsigned int down = 0;
	bool lost = false, up;

	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++) {
		struct link *l = &remote->links[h];

		if (l->conn || !remote->backing->sub_hosts[h].nr_segments)
			continue;
		up = link_mend(remote, h);
		tell(remote, h);
		if (up)
			continue;
		down++;
		if (!lost)
			describe(remote, h, err);
		lost = lost || l->why.code == SMV_DATA_LOSS;
	}
	return down;
}

bool smv_remote_lost(const struct smv_remote *remote, unsigned int sub_host, unsigned int for_ms)
{
	const struct link *l = &remote->links[sub_host];

	return l->lost && l->lost_for_ns >= for_ms * SMV_NS_PER_MS;
}

unsigned int smv_remote_in_flight(const struct smv_remote *remote)
{
	unsigned int n = 0;

	for (unsigned int h = 0; h < remote->backing->nr_sub_hosts; h++)
		if (remote->links[h].conn)
			n += smv_conn_in_flight(remote->links[h].conn);
	return n;
}

struct smv_remote_bytes smv_remote_bytes_of(const struct smv_remote *remote, unsigned int sub_host)
{
	const struct link *l = &remote->links[sub_host];

	return (struct smv_remote_bytes){atomic_load_explicit(&l->bytes_read, memory_order_relaxed),
		atomic_load_explicit(&l->bytes_written, memory_order_relaxed)};
}
