/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libsmemv: the pager of client/ over memory of the process that it runs in.
 *
 * A region is a memfd without data, mapped shared and registered with a userfaultfd of this
 * process; all of its pages start as ZERO. Nothing here, and no thread of the library, touches a
 * region by loads and stores: who serves faults must not raise one. For the same reason all threads
 * are started with every signal blocked: the program's handlers, which may touch a region, never
 * run in them.
 */
#include "client/smemv.h"

#include "client/leases.h"
#include "client/pager.h"
#include "client/uffd.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault_point.h"
#include "common/log.h"
#include "common/units.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/stat.h>

_Static_assert(SMEMV_BUDGET_MIN == SMV_BUDGET_MIN, "the header promises it");

#define TIMEOUT_DEFAULT_MS 5000
#define RENEW_S 15
#define HOLD_RETRY_S 1
/* Slots are numbered in 36 bits and an address space has 47: this is far inside both. */
#define SIZE_MAX_BYTES (1ull << 46)

struct smemv_region {
	LIST_ENTRY(smemv_region) link;
	struct smemv *ctx;
	void *addr;
	uint64_t budget_bytes;
	int memfd, uffd, pagemap_fd;
	struct smv_guest_ram ram; /* one block */
	struct smv_pagemap map;
	struct smv_slots slots;
	struct smv_leases leases;
	struct smv_backing backing;
	bool leased;
	bool held; /* all leases are, ctx->lock guards it */
	uint64_t renewed_ns;
	pthread_mutex_t pager_lock; /* the pointer, against smemv_stats() while the process exits */
	struct smv_pager *pager;
};

struct smemv {
	LIST_ENTRY(smemv) link;
	pid_t pid; /* of the process that opened it; a child of fork() must leave it alone */
	char **servers;
	unsigned int nr_servers;
	struct smv_transport_wish transport;
	bool insecure;
	unsigned int timeout_ms;

	pthread_mutex_t lock; /* guards the list of regions and their leases once they are in it */
	pthread_cond_t wake;
	LIST_HEAD(, smemv_region) regions;
	bool stop;
	bool keeper_runs;
	pthread_t keeper;
};

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD(, smemv) open_contexts = LIST_HEAD_INITIALIZER(open_contexts);
static pid_t opener; /* the process whose contexts these are, and not a child of it */

/* --- signals ------------------------------------------------------------------------------ */

static sigset_t signals_block(void)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	return old;
}

static void signals_restore(const sigset_t *old)
{
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

/* To the end of the scope, for this thread and all that are started in it. */
#define WITH_SIGNALS_BLOCKED                                                                       \
	const sigset_t old_signals __attribute__((cleanup(signals_restore), unused)) =             \
		signals_block()

/* --- errors ------------------------------------------------------------------------------- */

/* The hints inside are for operators of the programs; these are for users of the library. */
static const char *hint_for(const struct smv_error *e)
{
	if (strcmp(e->reason, "no-room") == 0)
		return "Add a server, raise --memory of a memserverd, or raise the budget.";
	if (strcmp(e->reason, "insecure") == 0)
		return "On a network that you trust set insecure; otherwise use loopback or "
		       "unix:PATH.";
	return e->hint;
}

/* Hand @e to the caller, if it wants it; returns @r. */
static int tell(struct smemv_error *err, const struct smv_error *e, int r)
{
	if (err && r < 0) {
		snprintf(err->message, sizeof(err->message), "%s", e->message);
		snprintf(err->hint, sizeof(err->hint), "%s", hint_for(e));
	}
	return r;
}

static int no_memory(struct smv_error *e)
{
	return smv_fail(e, SMV_NO_ROOM, "no-memory", NULL, "out of memory");
}

/* --- regions ------------------------------------------------------------------------------ */

static int zap(void *ctx, uint64_t addr, uint64_t len)
{
	(void)ctx;
	return madvise((void *)(uintptr_t)addr, len, MADV_DONTNEED) < 0 ? -errno : 0;
}

static int check_sizes(size_t size, size_t budget, struct smv_error *e)
{
	char text[32];

	if (size == 0 || size > SIZE_MAX_BYTES)
		return smv_fail(e, SMV_INVALID, "size", "Ask for 1 byte to 64 TiB.",
			"a region cannot have %zu bytes", size);
	if (budget < SMV_BUDGET_MIN || budget > SIZE_MAX_BYTES)
		return smv_fail(e, SMV_INVALID, "budget", "Give the region at least 16 MiB.",
			"a budget of %s is too small or too large to page with",
			smv_format_size(budget, text, sizeof(text)));
	return 0;
}

/* The range of addresses, and the file behind it that the pager reads and punches. */
static int make_memory(struct smemv_region *r, size_t size, struct smv_error *e)
{
	char text[32];

	r->memfd = memfd_create("smemv", MFD_CLOEXEC);
	if (r->memfd < 0 || ftruncate(r->memfd, (off_t)size) < 0)
		return smv_fail(e, smv_code_from_errno(errno), "memfd", NULL,
			"cannot make a memfd of %s: %s", smv_format_size(size, text, sizeof(text)),
			strerror(errno));
	r->addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r->memfd, 0);
	if (r->addr == MAP_FAILED)
		return smv_fail(e, smv_code_from_errno(errno), "mmap",
			"Look at ulimit -v and the limits of the address space.",
			"cannot map %s: %s", smv_format_size(size, text, sizeof(text)),
			strerror(errno));
	r->ram.blocks[0] = (struct smv_ram_block){.id = "region",
		.size_bytes = size,
		.page_size = SMV_PAGE_SIZE,
		.nr_pages = size / SMV_PAGE_SIZE,
		.host_addr = (uint64_t)(uintptr_t)r->addr,
		.fd = r->memfd};
	r->ram.nr_blocks = 1;
	r->ram.nr_pages = size / SMV_PAGE_SIZE;
	r->ram.bytes = size;
	/* A child of fork() has no pager; a core file of the region would be all of its size; a
	 * page cannot be punched out of a huge one (refused by kernels without huge pages). */
	if (madvise(r->addr, size, MADV_DONTFORK) < 0 || madvise(r->addr, size, MADV_DONTDUMP) < 0)
		return smv_fail(e, SMV_INTERNAL, "madvise", NULL, "cannot set up the region: %s",
			strerror(errno));
	madvise(r->addr, size, MADV_NOHUGEPAGE);
	return 0;
}

static int register_memory(struct smemv_region *r, struct smv_error *e)
{
	int rc;

	r->uffd = smv_uffd_open();
	rc = r->uffd < 0 ? r->uffd : smv_uffd_api(r->uffd, SMV_UFFD_PAGE);
	if (rc == 0)
		rc = smv_uffd_register(r->uffd, r->ram.blocks[0].host_addr, r->ram.bytes,
			UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
				UFFDIO_REGISTER_MODE_WP);
	if (rc < 0)
		return smv_fail(e, smv_code_from_errno(rc), "userfaultfd", NULL,
			"cannot register the region with userfaultfd: %s", strerror(-rc));
	r->pagemap_fd = smv_pagemap_open(getpid());
	if (r->pagemap_fd < 0)
		return smv_fail(e, smv_code_from_errno(r->pagemap_fd), "pagemap", NULL,
			"cannot open /proc/self/pagemap: %s", strerror(-r->pagemap_fd));
	/* A page that is in the file already never faults as a missing one. */
	if (lseek(r->memfd, 0, SEEK_DATA) >= 0 || errno != ENXIO)
		return smv_fail(e, SMV_REFUSED, "populated", "Do not use mlockall(MCL_FUTURE).",
			"the new region is populated already: the process locks its memory");
	return 0;
}

static int lease_memory(struct smemv_region *r, struct smv_error *e)
{
	extern char *program_invocation_short_name;
	const struct smemv *ctx = r->ctx;
	char hostname[65] = "", owner[200], reason[200];
	int rc;

	gethostname(hostname, sizeof(hostname) - 1);
	snprintf(owner, sizeof(owner), "%.80s[%d] on %s", program_invocation_short_name,
		(int)ctx->pid, hostname);
	/* Servers take printable ASCII. */
	for (char *c = owner; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	rc = smv_leases_create(&r->leases, &r->backing, (const char *const *)ctx->servers,
		ctx->nr_servers, owner, smv_leases_room(r->ram.bytes, r->budget_bytes),
		&ctx->transport, ctx->insecure, ctx->timeout_ms, reason, sizeof(reason), e);
	if (rc < 0)
		return rc;
	r->leased = true;
	r->renewed_ns = smv_now_ns();
	smv_log_info("region of %lu MiB: transport %s", r->ram.bytes >> 20, reason);
	return smv_slots_create(r->backing.nr_extents, &r->slots) < 0 ? no_memory(e) : 0;
}

static int start_pager(struct smemv_region *r, struct smv_error *e)
{
	uint64_t budget_pages = r->budget_bytes / SMV_PAGE_SIZE;
	struct smv_pager_config config = {.ram = &r->ram,
		.map = &r->map,
		.slots = &r->slots,
		.backing = &r->backing,
		.uffd = r->uffd,
		.pagemap_fd = r->pagemap_fd,
		.zap = zap,
		.budget_pages = budget_pages,
		.timeout_ms = r->ctx->timeout_ms};
	int rc;

	/* All of it fits: the free room that eviction keeps is then of no use. */
	if (budget_pages >= r->ram.nr_pages)
		config.budget_pages = 2 * budget_pages;
	snprintf(config.name, sizeof(config.name), "far memory at %p", r->addr);
	rc = smv_pagemap_create(NULL, config.name, r->ram.nr_pages, &r->map, e);
	if (rc < 0)
		return rc;
	smv_pagemap_fill(&r->map, smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0));
	if ((rc = smv_pager_create(&config, &r->pager, e)) < 0)
		return rc;
	return smv_pager_start(r->pager, e);
}

/* What costs others: threads, connections, leases. */
static void stop_region(struct smemv_region *r)
{
	pthread_mutex_lock(&r->pager_lock);
	smv_pager_destroy(r->pager);
	r->pager = NULL;
	pthread_mutex_unlock(&r->pager_lock);
	if (r->leased)
		smv_leases_release(&r->leases, &r->backing);
	r->leased = false;
}

static void free_region(struct smemv_region *r)
{
	stop_region(r);
	if (r->addr != MAP_FAILED)
		munmap(r->addr, r->ram.bytes);
	smv_backing_free(&r->backing);
	smv_slots_destroy(&r->slots);
	smv_pagemap_destroy(&r->map);
	/* Only now: a thread that touches a registered page without a userfaultfd reads zeros. */
	if (r->uffd >= 0)
		close(r->uffd);
	if (r->pagemap_fd >= 0)
		close(r->pagemap_fd);
	if (r->memfd >= 0)
		close(r->memfd);
	pthread_mutex_destroy(&r->pager_lock);
	free(r);
}

int smemv_map(struct smemv *ctx, size_t size, size_t budget, struct smemv_region **region,
	struct smemv_error *err)
{
	WITH_SIGNALS_BLOCKED;
	struct smv_error e = {0};
	struct smemv_region *r;
	int rc;

	*region = NULL;
	if ((rc = check_sizes(size, budget, &e)) < 0)
		return tell(err, &e, rc);
	r = calloc(1, sizeof(*r));
	if (!r)
		return tell(err, &e, no_memory(&e));
	pthread_mutex_init(&r->pager_lock, NULL);
	r->ctx = ctx;
	r->addr = MAP_FAILED;
	r->budget_bytes = budget;
	r->memfd = r->uffd = r->pagemap_fd = -1;
	size = (size + SMV_PAGE_SIZE - 1) / SMV_PAGE_SIZE * SMV_PAGE_SIZE;
	if ((rc = make_memory(r, size, &e)) < 0 || (rc = register_memory(r, &e)) < 0 ||
		(rc = lease_memory(r, &e)) < 0 || (rc = start_pager(r, &e)) < 0) {
		free_region(r);
		return tell(err, &e, rc);
	}
	if (!smv_fault_point("smemv-skip-hold"))
		r->held = smv_leases_hold(&r->leases, &r->backing);
	pthread_mutex_lock(&ctx->lock);
	LIST_INSERT_HEAD(&ctx->regions, r, link);
	if (!r->held)
		pthread_cond_signal(&ctx->wake);
	pthread_mutex_unlock(&ctx->lock);
	*region = r;
	return 0;
}

/* A child of fork() shares nothing of its parent's regions and must not end its leases. */
static bool is_foreign(const struct smemv *ctx)
{
	return ctx->pid != getpid();
}

void smemv_unmap(struct smemv_region *r)
{
	WITH_SIGNALS_BLOCKED;

	if (!r || is_foreign(r->ctx))
		return;
	pthread_mutex_lock(&r->ctx->lock);
	LIST_REMOVE(r, link);
	pthread_mutex_unlock(&r->ctx->lock);
	free_region(r);
}

void *smemv_addr(const struct smemv_region *region)
{
	return region->addr;
}

size_t smemv_size(const struct smemv_region *region)
{
	return region->ram.bytes;
}

void smemv_stats(struct smemv_region *r, struct smemv_stats *s)
{
	struct smv_pager_stats p = {0};
	struct stat st = {0};

	memset(s, 0, sizeof(*s));
	pthread_mutex_lock(&r->pager_lock);
	if (r->pager)
		smv_pager_stats(r->pager, &p);
	pthread_mutex_unlock(&r->pager_lock);
	fstat(r->memfd, &st);
	s->size_bytes = r->ram.bytes;
	s->budget_bytes = r->budget_bytes;
	s->resident_bytes = (uint64_t)st.st_blocks * 512;
	s->pages_zero = smv_pagemap_count(&r->map, SMV_PAGE_ZERO);
	s->pages_local = smv_pagemap_count(&r->map, SMV_PAGE_LOCAL) +
			 smv_pagemap_count(&r->map, SMV_PAGE_OUT) +
			 smv_pagemap_count(&r->map, SMV_PAGE_SAVED);
	s->pages_remote = smv_pagemap_count(&r->map, SMV_PAGE_COLD) +
			  smv_pagemap_count(&r->map, SMV_PAGE_FETCHING);
	s->pages_lost = smv_pagemap_count(&r->map, SMV_PAGE_LOST);
	s->faults = p.faults;
	s->page_ins = p.page_ins;
	s->zero_fills = p.zero_fills;
	s->evictions = p.evictions;
	s->evictions_clean = p.evictions_clean;
	s->faults_waited_for_room = p.faults_waited_for_room;
	s->bytes_read = p.bytes_read;
	s->bytes_written = p.bytes_written;
	s->latency_ns_p50 = p.latency_ns_p50;
	s->latency_ns_p99 = p.latency_ns_p99;
	s->latency_ns_max = p.latency_ns_max;
	snprintf(
		s->transport, sizeof(s->transport), "%s", smv_transport_name(r->backing.transport));
	snprintf(s->trouble, sizeof(s->trouble), "%s", p.trouble);
}

/* --- contexts ----------------------------------------------------------------------------- */

/* Hold the leases of one region that could not be held at once, and renew them all: the servers are
 * to know that their owner is alive. */
static bool keep_region(struct smemv_region *r)
{
	if (!r->held)
		r->held = smv_leases_hold(&r->leases, &r->backing);
	if (smv_now_ns() - r->renewed_ns >= RENEW_S * SMV_NS_PER_S) {
		smv_leases_renew(&r->leases, &r->backing);
		r->renewed_ns = smv_now_ns();
	}
	return r->held;
}

/* The keeper of the leases. */
static void *keep_leases(void *arg)
{
	struct smemv *ctx = arg;

	pthread_mutex_lock(&ctx->lock);
	while (!ctx->stop) {
		struct smemv_region *r;
		struct timespec until;
		bool all = true;

		LIST_FOREACH(r, &ctx->regions, link)
		{
			all &= keep_region(r);
		}
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += all ? RENEW_S : HOLD_RETRY_S;
		pthread_cond_clockwait(&ctx->wake, &ctx->lock, CLOCK_MONOTONIC, &until);
	}
	pthread_mutex_unlock(&ctx->lock);
	return NULL;
}

static void stop_keeper(struct smemv *ctx)
{
	pthread_mutex_lock(&ctx->lock);
	ctx->stop = true;
	pthread_cond_signal(&ctx->wake);
	pthread_mutex_unlock(&ctx->lock);
	if (ctx->keeper_runs)
		pthread_join(ctx->keeper, NULL);
	ctx->keeper_runs = false;
}

/* exit(): the leases go back, the mappings stay, because other threads may still run: those that
 * touch a region wait until the process is gone. */
static void at_exit(void)
{
	WITH_SIGNALS_BLOCKED;
	struct smemv_region *r;
	struct smemv *ctx;

	if (opener != getpid())
		return;
	pthread_mutex_lock(&open_lock);
	LIST_FOREACH(ctx, &open_contexts, link)
	{
		stop_keeper(ctx);
		pthread_mutex_lock(&ctx->lock);
		LIST_FOREACH(r, &ctx->regions, link)
		{
			stop_region(r);
		}
		pthread_mutex_unlock(&ctx->lock);
	}
	pthread_mutex_unlock(&open_lock);
}

static void register_at_exit(void)
{
	opener = getpid();
	atexit(at_exit);
}

static int check_options(const struct smemv_options *o, struct smv_error *e)
{
	enum smv_log_level level;

	if (o->nr_servers < 1 || o->nr_servers > SMV_SUB_HOSTS_MAX)
		return smv_fail(e, SMV_INVALID, "servers", "Name 1 to 64 memserverds.",
			"%u servers were given", o->nr_servers);
	if (smv_log_level_parse(o->log_level ? o->log_level : "warning", &level) < 0)
		return smv_fail(e, SMV_INVALID, "log-level",
			"Choose error, warning, info or debug.", "there is no log level '%s'",
			o->log_level);
	smv_log_set_level(level);
	return 0;
}

static int copy_options(struct smemv *ctx, const struct smemv_options *o, struct smv_error *e)
{
	snprintf(ctx->transport.names, sizeof(ctx->transport.names), "%s",
		o->transport ? o->transport : "auto");
	ctx->insecure = o->insecure;
	ctx->timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_DEFAULT_MS;
	ctx->servers = calloc(o->nr_servers, sizeof(*ctx->servers));
	for (; ctx->servers && ctx->nr_servers < o->nr_servers; ctx->nr_servers++)
		if (!(ctx->servers[ctx->nr_servers] = strdup(o->servers[ctx->nr_servers])))
			break;
	return ctx->nr_servers == o->nr_servers ? 0 : no_memory(e);
}

static void free_context(struct smemv *ctx)
{
	stop_keeper(ctx);
	for (unsigned int i = 0; i < ctx->nr_servers; i++)
		free(ctx->servers[i]);
	free(ctx->servers);
	pthread_cond_destroy(&ctx->wake);
	pthread_mutex_destroy(&ctx->lock);
	free(ctx);
	smv_rpc_shutdown();
}

static int start_keeper(struct smemv *ctx, struct smv_error *e)
{
	int rc = pthread_create(&ctx->keeper, NULL, keep_leases, ctx);

	ctx->keeper_runs = rc == 0;
	return rc ? smv_fail(e, SMV_NO_ROOM, "no-threads", NULL, "cannot start a thread: %s",
			    strerror(rc))
		  : 0;
}

int smemv_open(const struct smemv_options *options, struct smemv **out, struct smemv_error *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	WITH_SIGNALS_BLOCKED;
	struct smv_error e = {0};
	struct smemv *ctx;
	int rc;

	*out = NULL;
	if ((rc = check_options(options, &e)) < 0 || (rc = smv_kernel_check(&e)) < 0)
		return tell(err, &e, rc);
	ctx = calloc(1, sizeof(*ctx));
	if (!ctx)
		return tell(err, &e, no_memory(&e));
	ctx->pid = getpid();
	pthread_mutex_init(&ctx->lock, NULL);
	pthread_cond_init(&ctx->wake, NULL);
	LIST_INIT(&ctx->regions);
	smv_rpc_init();
	if ((rc = copy_options(ctx, options, &e)) < 0 ||
		(rc = smv_leases_probe((const char *const *)ctx->servers, ctx->nr_servers,
			 &ctx->transport, ctx->insecure, ctx->timeout_ms, &e)) < 0 ||
		(rc = start_keeper(ctx, &e)) < 0) {
		free_context(ctx);
		return tell(err, &e, rc);
	}
	/* After the first call: what gRPC makes then is destroyed after at_exit(). */
	pthread_once(&once, register_at_exit);
	pthread_mutex_lock(&open_lock);
	LIST_INSERT_HEAD(&open_contexts, ctx, link);
	pthread_mutex_unlock(&open_lock);
	*out = ctx;
	return 0;
}

void smemv_close(struct smemv *ctx)
{
	WITH_SIGNALS_BLOCKED;
	struct smemv_region *r;

	if (!ctx || is_foreign(ctx))
		return;
	pthread_mutex_lock(&open_lock);
	LIST_REMOVE(ctx, link);
	pthread_mutex_unlock(&open_lock);
	stop_keeper(ctx);
	while ((r = LIST_FIRST(&ctx->regions))) {
		LIST_REMOVE(r, link);
		free_region(r);
	}
	free_context(ctx);
}

const char *smemv_version(void)
{
	return SMEMV_VERSION;
}
