/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /init of the demo's and the tests' guest. It fills most of the guest's RAM with contents that are
 * a function of (seed, page, version), then verifies and rewrites them for ever, while the VM is
 * moved and paged beneath it. The expected version of each page is kept in guest RAM as well, so
 * a page that comes back zero, old, or from elsewhere is told from a right one.
 *
 * Parameters come from the kernel's command line, each an unsigned number:
 *   smemv.seed=         seed of all contents
 *   smemv.test_mib=     RAM under test; 0 takes what is free but for 40 MiB
 *   smemv.hot_mib=      contiguous part of it that is rewritten every period
 *   smemv.hot_period_ms=
 *   smemv.sweep_pps=    pages per second of the sweep over all pages, 0 = no limit
 *   smemv.heartbeat_ms=
 *   smemv.disk=         1: also write and verify the first disk, past the guest's cache
 *   smemv.churn_mib=    with a balloon: RAM that is taken, verified and freed again, over and over;
 *                       before that all free RAM is written to once, so that none of it is a hole
 *   smemv.churn_ms=     how long it is held, and then free
 *
 * Output on ttyS0, one write per line, so that lines of different threads never mix:
 *   SMEMV READY pages=N seed=S hot=N
 *   HB n=N verified=N mismatches=N sweeps=N [disk=N | churns=N]
 *                          blocks of the disk read back; times that RAM was taken and freed
 *   SWEEP n=N pages=N mismatches=N ms=N        pages verified and mismatches of this sweep alone
 *   MISMATCH page=N want_version=N got=X want=X word=N bad_words=N like=zero|version-N|unknown
 *   DISKMISMATCH block=N got=X want=X          counted with the other mismatches
 *   CHURNMISMATCH page=N churn=N got=X want=X  as well
 *   SMEMV FATAL why
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE_SIZE 4096u
#define PAGE_WORDS (PAGE_SIZE / sizeof(uint64_t))
#define MIB_PAGES ((uint64_t)(1 << 20) / PAGE_SIZE)
#define LANES 4u
#define CHUNK_PAGES 64u    /* a sweep is sequential within a chunk and jumps between chunks */
#define RESERVE_MIB 40u    /* left to the guest's kernel with test_mib=0 */
#define MISMATCH_LINES 20u /* printed in full; after that they are only counted */
#define OLD_VERSIONS 8u    /* how far back a mismatch is compared with earlier contents */

struct parameters {
	uint64_t seed;
	uint64_t test_mib;
	uint64_t hot_mib;
	uint64_t hot_period_ms;
	uint64_t sweep_pps;
	uint64_t heartbeat_ms;
	uint64_t disk;
	uint64_t churn_mib;
	uint64_t churn_ms;
};

static struct parameters par = {
	.seed = 1, .hot_mib = 32, .hot_period_ms = 200, .heartbeat_ms = 20, .churn_ms = 2000};

static uint64_t *ram;      /* nr_pages pages under test */
static uint32_t *versions; /* what each page holds; written only with the page's lock held */
static atomic_flag *locks; /* one per page: either thread may verify and rewrite it, never both */
static uint64_t nr_pages;
static uint64_t nr_hot;
static uint64_t hot_first;

static atomic_uint_fast64_t verified;
static atomic_uint_fast64_t mismatches;
static atomic_uint_fast64_t sweeps;
static atomic_uint_fast64_t disk_blocks;
static atomic_uint_fast64_t churns;

/* ---- console ---- */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[256];
	va_list args;

	va_start(args, format);
	int n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	size_t length = (size_t)n < sizeof(line) - 1 ? (size_t)n : sizeof(line) - 2;
	line[length++] = '\n';
	/* A short write can only lose log text; there is nobody to tell. */
	if (write(STDOUT_FILENO, line, length) < 0)
		return;
}

__attribute__((noreturn)) static void power_off(void)
{
	tcdrain(STDOUT_FILENO);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* PID 1 must not return: that would be a kernel panic, and the reason would be lost. */
#define fatal(...)                                                                                 \
	do {                                                                                       \
		say("SMEMV FATAL " __VA_ARGS__);                                                   \
		power_off();                                                                       \
	} while (0)

static void on_fault(int signal_number)
{
	static const char text[] = "SMEMV FATAL the workload was killed by a signal\n";

	(void)signal_number;
	if (write(STDOUT_FILENO, text, sizeof(text) - 1) > 0)
		tcdrain(STDOUT_FILENO);
	reboot(RB_POWER_OFF);
	_exit(1);
}

/* ---- time ---- */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = {
		.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* ---- contents ---- */

static uint64_t splitmix64(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/*
 * Word i of a page comes from lane i % 4; a lane is a xorshift64 (Marsaglia 2003, shifts 13, 7,
 * 17). Only shifts and exclusive ors, and lanes that do not wait for each other: under emulation
 * this is several times cheaper than a generator with multiplications.
 */
struct stream {
	uint64_t lane[LANES];
};

static struct stream stream_open(uint64_t page, uint32_t version)
{
	struct stream s;
	uint64_t key = splitmix64(par.seed ^ splitmix64(page ^ splitmix64(version)));

	for (unsigned int i = 0; i < LANES; i++) {
		key = splitmix64(key);
		s.lane[i] = key | 1; /* a xorshift must not start at 0 */
	}
	return s;
}

static inline uint64_t lane_next(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static void page_fill(uint64_t *words, uint64_t page, uint32_t version)
{
	struct stream s = stream_open(page, version);
	uint64_t a = s.lane[0], b = s.lane[1], c = s.lane[2], d = s.lane[3];

	for (unsigned int i = 0; i < PAGE_WORDS; i += LANES) {
		words[i] = a = lane_next(a);
		words[i + 1] = b = lane_next(b);
		words[i + 2] = c = lane_next(c);
		words[i + 3] = d = lane_next(d);
	}
}

static bool page_holds(const uint64_t *words, uint64_t page, uint32_t version)
{
	struct stream s = stream_open(page, version);
	uint64_t a = s.lane[0], b = s.lane[1], c = s.lane[2], d = s.lane[3];
	uint64_t difference = 0;

	for (unsigned int i = 0; i < PAGE_WORDS; i += LANES) {
		difference |= words[i] ^ (a = lane_next(a));
		difference |= words[i + 1] ^ (b = lane_next(b));
		difference |= words[i + 2] ^ (c = lane_next(c));
		difference |= words[i + 3] ^ (d = lane_next(d));
	}
	return difference == 0;
}

/* What a wrong page looks like: names the kind of bug that made it. */
static void resemblance(const uint64_t *words, uint64_t page, char *out, size_t size)
{
	uint64_t any = 0;

	for (unsigned int i = 0; i < PAGE_WORDS; i++)
		any |= words[i];
	if (any == 0) {
		snprintf(out, size, "zero");
		return;
	}
	for (uint32_t back = 1; back <= OLD_VERSIONS && back < versions[page]; back++)
		if (page_holds(words, page, versions[page] - back)) {
			snprintf(out, size, "version-%u", versions[page] - back);
			return;
		}
	snprintf(out, size, "unknown");
}

static void report_mismatch(const uint64_t *words, uint64_t page)
{
	uint64_t want[PAGE_WORDS];
	unsigned int first = PAGE_WORDS, bad = 0;
	char like[32];

	page_fill(want, page, versions[page]);
	for (unsigned int i = PAGE_WORDS; i-- > 0;)
		if (words[i] != want[i]) {
			first = i;
			bad++;
		}
	if (first == PAGE_WORDS) /* right by now: it was wrong only for the first reader */
		first = 0;
	resemblance(words, page, like, sizeof(like));
	say("MISMATCH page=%lu want_version=%u got=0x%016lx want=0x%016lx word=%u bad_words=%u "
	    "like=%s",
		page, versions[page], words[first], want[first], first, bad, like);
}

/* ---- the work ---- */

/* Verifies a page and, if asked or if it was wrong, moves it to its next version. */
static void page_visit(uint64_t page, bool rewrite)
{
	uint64_t *words = ram + page * PAGE_WORDS;

	/* The holder may wait for a page to come over the network, so do not spin. */
	while (atomic_flag_test_and_set_explicit(&locks[page], memory_order_acquire))
		sched_yield();
	bool good = page_holds(words, page, versions[page]);
	if (!good && atomic_fetch_add(&mismatches, 1) < MISMATCH_LINES)
		report_mismatch(words, page);
	if (rewrite || !good)
		page_fill(words, page, ++versions[page]);
	atomic_flag_clear_explicit(&locks[page], memory_order_release);
	atomic_fetch_add_explicit(&verified, 1, memory_order_relaxed);
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
	while (b != 0) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/*
 * Visits every page once. Chunks come in an order that differs from sweep to sweep. Every second
 * page is only read, so that clean pages exist; the next sweep rewrites just those.
 */
static void sweep(uint64_t number)
{
	uint64_t start_ns = now_ns();
	uint64_t mismatches_before = mismatches;
	uint64_t nr_chunks = (nr_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
	uint64_t random = splitmix64(par.seed + number);
	uint64_t chunk = random % nr_chunks;
	uint64_t stride = 1 + (random >> 32) % nr_chunks;
	uint64_t visited = 0;

	while (gcd(stride, nr_chunks) != 1)
		stride++;
	for (uint64_t i = 0; i < nr_chunks; i++) {
		uint64_t first = chunk * CHUNK_PAGES;

		for (uint64_t p = first; p < first + CHUNK_PAGES && p < nr_pages; p++, visited++)
			page_visit(p, ((p ^ number) & 1) != 0);
		chunk = (chunk + stride) % nr_chunks;
		if (par.sweep_pps != 0)
			sleep_until(start_ns + visited * 1000000000u / par.sweep_pps);
	}
	sweeps = number;
	say("SWEEP n=%lu pages=%lu mismatches=%lu ms=%lu", number, visited,
		mismatches - mismatches_before, (now_ns() - start_ns) / 1000000u);
}

static void *hot_main(void *unused)
{
	uint64_t period_ns = par.hot_period_ms * 1000000u;

	(void)unused;
	for (uint64_t next_ns = now_ns();; next_ns += period_ns) {
		/* After a pause of the VM go on at the usual rate, do not catch up. */
		if (next_ns + period_ns < now_ns())
			next_ns = now_ns();
		for (uint64_t i = 0; i < nr_hot; i++) {
			page_visit(hot_first + i, true);
			if (i % CHUNK_PAGES == CHUNK_PAGES - 1)
				sleep_until(next_ns + period_ns * i / nr_hot);
		}
		sleep_until(next_ns + period_ns);
	}
	return NULL;
}

/*
 * The disk. Blocks of DISK_PAGES pages are written from one place in RAM and read back into
 * another, with O_DIRECT, so that the VMM's requests have the guest's own pages. Places go round a
 * ring, much larger than what stays local: pages that the disk reads into and writes from have
 * often left.
 */
#define DISK_PAGES 8u
#define DISK_BYTES (DISK_PAGES * PAGE_SIZE)

static void disk_fill(uint64_t *words, uint64_t block, uint32_t version)
{
	for (unsigned int p = 0; p < DISK_PAGES; p++)
		page_fill(words + p * PAGE_WORDS, ~(block * DISK_PAGES + p), version);
}

static void disk_verify(const uint64_t *words, uint64_t block, uint32_t version)
{
	uint64_t want[PAGE_WORDS];

	for (unsigned int p = 0; p < DISK_PAGES; p++, words += PAGE_WORDS) {
		if (page_holds(words, ~(block * DISK_PAGES + p), version))
			continue;
		page_fill(want, ~(block * DISK_PAGES + p), version);
		if (atomic_fetch_add(&mismatches, 1) < MISMATCH_LINES)
			say("DISKMISMATCH block=%lu got=0x%016lx want=0x%016lx", block, words[0],
				want[0]);
	}
	atomic_fetch_add(&disk_blocks, 1);
}

static uint64_t *disk_place(uint64_t *ring, uint64_t nr_places, uint64_t *next)
{
	return ring + (*next)++ % nr_places * DISK_PAGES * PAGE_WORDS;
}

static void *map(uint64_t bytes, const char *what);

/* In the guest's kernel, or beside us: see build.sh. */
static void module_load(const char *path)
{
	int module = open(path, O_RDONLY | O_CLOEXEC);

	if (module >= 0 && syscall(SYS_finit_module, module, "", 0) < 0 && errno != EEXIST)
		fatal("%s: %s", path, strerror(errno));
	close(module);
}

/* The disk may take a moment to appear. */
static int disk_open(void)
{
	int fd = -1;

	module_load("/virtio_blk.ko");
	for (int i = 0; i < 100 && fd < 0; i++) {
		fd = open("/dev/vda", O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
		if (fd < 0)
			sleep_until(now_ns() + 50000000u);
	}
	if (fd < 0)
		fatal("/dev/vda: %s", strerror(errno));
	return fd;
}

static void *disk_main(void *unused)
{
	int fd = disk_open();
	off_t bytes = lseek(fd, 0, SEEK_END);
	uint64_t nr_blocks = bytes > 0 ? (uint64_t)bytes / DISK_BYTES : 0;
	uint64_t nr_places = nr_pages / 4 / DISK_PAGES, next = 0;
	uint64_t *ring = map(nr_places * DISK_BYTES, "the disk's buffers");
	uint32_t *on_disk = map((nr_blocks + 1) * sizeof(*on_disk), "the disk's versions");

	(void)unused;
	if (nr_blocks == 0 || nr_places < 2)
		fatal("smemv.disk: the disk or the RAM under test is too small");
	for (uint64_t n = 0;; n++) {
		uint64_t block = splitmix64(par.seed ^ n) % nr_blocks;
		uint64_t *from = disk_place(ring, nr_places, &next), *to;
		off_t at = (off_t)(block * DISK_BYTES);

		/* What lies there from earlier, perhaps written by another host. */
		if (on_disk[block]) {
			if (pread(fd, from, DISK_BYTES, at) != DISK_BYTES)
				fatal("reading the disk: %s", strerror(errno));
			disk_verify(from, block, on_disk[block]);
		}
		disk_fill(from, block, ++on_disk[block]);
		if (pwrite(fd, from, DISK_BYTES, at) != DISK_BYTES)
			fatal("writing the disk: %s", strerror(errno));
		to = disk_place(ring, nr_places, &next);
		if (pread(fd, to, DISK_BYTES, at) != DISK_BYTES)
			fatal("reading the disk: %s", strerror(errno));
		disk_verify(to, block, on_disk[block]);
	}
	return NULL;
}

/* RAM that the guest's kernel has in turn in use and free, when the balloon may take it and
 * free-page reporting give it up. Its pages count downwards, so that they are no others. */
static uint64_t *churn_take(uint64_t nr, uint32_t version)
{
	uint64_t *words = map(nr * PAGE_SIZE, "the RAM to be freed again");

	for (uint64_t p = 0; p < nr; p++)
		page_fill(words + p * PAGE_WORDS, ~p, version);
	return words;
}

static void churn_free(uint64_t *words, uint64_t nr, uint32_t version)
{
	uint64_t want[PAGE_WORDS];

	for (uint64_t p = 0; p < nr; p++) {
		const uint64_t *got = words + p * PAGE_WORDS;

		if (page_holds(got, ~p, version))
			continue;
		page_fill(want, ~p, version);
		if (atomic_fetch_add(&mismatches, 1) < MISMATCH_LINES)
			say("CHURNMISMATCH page=%lu churn=%u got=0x%016lx want=0x%016lx", p,
				version, got[0], want[0]);
	}
	munmap(words, nr * PAGE_SIZE);
}

static void churn_init(void)
{
	struct sysinfo info;
	uint64_t mib;

	module_load("/virtio_balloon.ko");
	if (sysinfo(&info) < 0)
		fatal("sysinfo: %s", strerror(errno));
	mib = info.freeram * info.mem_unit >> 20;
	if (mib < par.churn_mib + RESERVE_MIB)
		fatal("smemv.churn_mib=%lu: the guest has %lu MiB free", par.churn_mib, mib);
	mib -= RESERVE_MIB;
	munmap(churn_take(mib * MIB_PAGES, 1), mib * MIB_PAGES * PAGE_SIZE);
}

static void *churn_main(void *unused)
{
	uint64_t nr = par.churn_mib * MIB_PAGES;

	(void)unused;
	for (uint32_t version = 2;; version++) {
		uint64_t *words = churn_take(nr, version);

		sleep_until(now_ns() + par.churn_ms * 1000000u);
		churn_free(words, nr, version);
		churns++;
		sleep_until(now_ns() + par.churn_ms * 1000000u);
	}
	return NULL;
}

static void *heartbeat_main(void *unused)
{
	uint64_t period_ns = par.heartbeat_ms * 1000000u;
	uint64_t next_ns = now_ns();

	(void)unused;
	for (uint64_t n = 1;; n++) {
		if (par.disk)
			say("HB n=%lu verified=%lu mismatches=%lu sweeps=%lu disk=%lu", n, verified,
				mismatches, sweeps, disk_blocks);
		else if (par.churn_mib)
			say("HB n=%lu verified=%lu mismatches=%lu sweeps=%lu churns=%lu", n,
				verified, mismatches, sweeps, churns);
		else
			say("HB n=%lu verified=%lu mismatches=%lu sweeps=%lu", n, verified,
				mismatches, sweeps);
		next_ns += period_ns;
		if (next_ns < now_ns())
			next_ns = now_ns();
		sleep_until(next_ns);
	}
	return NULL;
}

/* ---- start ---- */

static void console_open(void)
{
	struct termios t;

	/* The kernel's own /dev/console may be absent, and it may already be mounted: both fine. */
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	int fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
	if (fd < 0)
		power_off();
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (tcgetattr(STDOUT_FILENO, &t) == 0) {
		cfmakeraw(&t); /* no echo, no \r before \n */
		tcsetattr(STDOUT_FILENO, TCSANOW, &t);
	}
}

static void signals_init(void)
{
	static const int fatal_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
	struct sigaction action = {.sa_handler = on_fault};

	for (size_t i = 0; i < sizeof(fatal_signals) / sizeof(fatal_signals[0]); i++)
		sigaction(fatal_signals[i], &action, NULL);
}

static void parameter_parse(const char *text)
{
	const struct {
		const char *name;
		uint64_t *value;
	} known[] = {
		{"seed", &par.seed},
		{"test_mib", &par.test_mib},
		{"hot_mib", &par.hot_mib},
		{"hot_period_ms", &par.hot_period_ms},
		{"sweep_pps", &par.sweep_pps},
		{"heartbeat_ms", &par.heartbeat_ms},
		{"disk", &par.disk},
		{"churn_mib", &par.churn_mib},
		{"churn_ms", &par.churn_ms},
	};
	const char *number = strchr(text, '=');

	for (size_t i = 0; number != NULL && i < sizeof(known) / sizeof(known[0]); i++) {
		char *end;

		if (strncmp(text, known[i].name, (size_t)(number - text)) != 0 ||
			known[i].name[number - text] != '\0')
			continue;
		errno = 0;
		*known[i].value = strtoull(number + 1, &end, 0);
		if (errno != 0 || number[1] < '0' || number[1] > '9' || *end != '\0')
			fatal("smemv.%s: not an unsigned number", text);
		return;
	}
	fatal("smemv.%s: unknown parameter", text);
}

static void parameters_read(void)
{
	static char line[4096];
	static const char prefix[] = "smemv.";

	if (mount("proc", "/proc", "proc", 0, NULL) < 0 && errno == ENOENT) {
		mkdir("/proc", 0755);
		mount("proc", "/proc", "proc", 0, NULL);
	}
	int fd = open("/proc/cmdline", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
	if (n < 0)
		fatal("/proc/cmdline: %s", strerror(errno));
	for (char *word = strtok(line, " \n"); word != NULL; word = strtok(NULL, " \n"))
		if (strncmp(word, prefix, sizeof(prefix) - 1) == 0)
			parameter_parse(word + sizeof(prefix) - 1);
	if (par.heartbeat_ms == 0 || par.hot_period_ms == 0)
		fatal("smemv.heartbeat_ms and smemv.hot_period_ms must not be 0");
}

static void *map(uint64_t bytes, const char *what)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fatal("%lu bytes for %s: %s", bytes, what, strerror(errno));
	return p;
}

static void ram_init(void)
{
	struct sysinfo info;

	if (sysinfo(&info) < 0)
		fatal("sysinfo: %s", strerror(errno));
	uint64_t free_mib = info.freeram * info.mem_unit >> 20;
	uint64_t test_mib = par.test_mib;
	/* 3 MiB in 1 GiB for versions, locks and page tables: within the reserve up to 8 GiB. */
	if (test_mib == 0)
		test_mib = free_mib > RESERVE_MIB ? free_mib - RESERVE_MIB : 0;
	if (test_mib == 0 || test_mib > free_mib)
		fatal("smemv.test_mib=%lu: the guest has %lu MiB free", par.test_mib, free_mib);
	if (par.hot_mib > test_mib)
		fatal("smemv.hot_mib=%lu: only %lu MiB are tested", par.hot_mib, test_mib);
	nr_pages = test_mib * MIB_PAGES;
	nr_hot = par.hot_mib * MIB_PAGES;
	hot_first = (nr_pages - nr_hot) / 3;

	ram = map(nr_pages * PAGE_SIZE, "the RAM under test");
	versions = map(nr_pages * sizeof(*versions), "the table of versions");
	locks = map(nr_pages * sizeof(*locks), "the locks of pages");
	for (uint64_t p = 0; p < nr_pages; p++)
		page_fill(ram + p * PAGE_WORDS, p, versions[p] = 1);
}

/* The heartbeat measures pauses of the VM, so it goes first; the others share what is left. */
static void thread_start(void *(*main_function)(void *), int priority)
{
	pthread_t thread;
	struct sched_param param = {.sched_priority = priority};
	int err = pthread_create(&thread, NULL, main_function, NULL);

	if (err == 0 && priority > 0)
		err = pthread_setschedparam(thread, SCHED_FIFO, &param);
	if (err != 0)
		fatal("thread: %s", strerror(err));
}

int main(void)
{
	console_open();
	signals_init();
	parameters_read();
	ram_init();
	if (par.churn_mib)
		churn_init();
	say("SMEMV READY pages=%lu seed=%lu hot=%lu", nr_pages, par.seed, nr_hot);
	thread_start(heartbeat_main, 1);
	if (nr_hot > 0)
		thread_start(hot_main, 0);
	if (par.disk)
		thread_start(disk_main, 0);
	if (par.churn_mib)
		thread_start(churn_main, 0);
	for (uint64_t n = 1;; n++)
		sweep(n);
}
