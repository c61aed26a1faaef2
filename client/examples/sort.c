/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smemv-sort: fill a data set of 64-bit keys that is larger than the local memory it may use, sort
 * it in place, and check the result. An example of libsmemv, and a test of it:
 *
 *   cc sort.c $(pkg-config --cflags --libs smemv) -pthread -o smemv-sort
 *   smemv-sort --server HOST:7000 --size 4G --budget 1G
 *
 * Quicksort suits far memory: a partition is two sequential passes that meet, and a part that fits
 * into the budget is sorted locally from then on.
 */
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <smemv.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SERVERS_MAX 64
#define THREADS_MAX 256
#define INSERTION_MAX 24

struct settings {
	const char *servers[SERVERS_MAX];
	struct smemv_options open;
	size_t size, budget;
	uint64_t seed;
	unsigned int threads;
};

/* What does not depend on the order of the keys. */
struct checksum {
	uint64_t sum, xor, hash;
};

/* A part of the keys, and what a thread found out about it. */
struct part {
	uint64_t *first, *end;
	uint64_t index, seed; /* of the first key; of the generator */
	unsigned int threads;
	struct checksum checksum;
	bool sorted;
	pthread_t thread;
	bool started;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* splitmix64 (S. Vigna): a bijection, so counting through it gives distinct keys. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void checksum_add(struct checksum *c, uint64_t key)
{
	c->sum += key;
	c->xor ^= key;
	c->hash += mix(key);
}

/* --- sort --------------------------------------------------------------------------------- */

static void swap(uint64_t *a, uint64_t *b)
{
	uint64_t t = *a;

	*a = *b;
	*b = t;
}

static void insertion_sort(uint64_t *first, uint64_t *end)
{
	for (uint64_t *p = first + 1; p < end; p++) {
		uint64_t key = *p, *q = p;

		for (; q > first && q[-1] > key; q--)
			*q = q[-1];
		*q = key;
	}
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c)
{
	if (a > b)
		swap(&a, &b);
	return c < a ? a : c > b ? b : c;
}

/* Hoare's partition around a median of three keys at random places, which no input can foresee and
 * which bounds the expected depth. Both sides are not empty. */
static uint64_t *partition(uint64_t *first, uint64_t *end, uint64_t *random)
{
	size_t n = (size_t)(end - first);
	uint64_t r = *random = mix(*random);
	uint64_t pivot = median(first[r % n], first[mix(r + 1) % n], first[mix(r + 2) % n]);
	uint64_t *low = first, *high = end - 1;

	for (;;) {
		while (*low < pivot)
			low++;
		while (*high > pivot)
			high--;
		if (low >= high)
			break;
		swap(low++, high--);
	}
	/* A pivot that is the smallest key meets at the first place. */
	return low == first ? first + 1 : low;
}

static void quicksort(uint64_t *first, uint64_t *end, uint64_t *random)
{
	while (end - first > INSERTION_MAX) {
		uint64_t *middle = partition(first, end, random);

		/* The smaller side by recursion: the stack stays logarithmic. */
		if (middle - first < end - middle) {
			quicksort(first, middle, random);
			first = middle;
		} else {
			quicksort(middle, end, random);
			end = middle;
		}
	}
	insertion_sort(first, end);
}

static void *sort_part(void *arg)
{
	struct part *p = arg, left = *p, right = *p;
	uint64_t random = mix(p->seed ^ (uint64_t)(p->end - p->first));

	if (p->threads < 2 || p->end - p->first <= INSERTION_MAX) {
		quicksort(p->first, p->end, &random);
		return NULL;
	}
	left.end = right.first = partition(p->first, p->end, &random);
	left.threads = p->threads / 2;
	right.threads = p->threads - left.threads;
	left.started = pthread_create(&left.thread, NULL, sort_part, &left) == 0;
	sort_part(&right);
	if (left.started)
		pthread_join(left.thread, NULL);
	else
		sort_part(&left);
	return NULL;
}

/* --- fill and check ----------------------------------------------------------------------- */

static void *fill_part(void *arg)
{
	struct part *p = arg;
	uint64_t counter = p->seed + p->index;

	for (uint64_t *k = p->first; k < p->end; k++) {
		*k = mix(counter++);
		checksum_add(&p->checksum, *k);
	}
	return NULL;
}

static void *check_part(void *arg)
{
	struct part *p = arg;
	uint64_t before = *p->first;

	for (const uint64_t *k = p->first; k < p->end; k++) {
		p->sorted &= before <= *k;
		before = *k;
		checksum_add(&p->checksum, before);
	}
	return NULL;
}

/* Run @body over all keys by all threads; *sorted also says that the borders are in order. */
static struct checksum run(
	const struct settings *s, uint64_t *keys, size_t n, void *(*body)(void *), bool *sorted)
{
	struct part parts[THREADS_MAX];
	struct checksum total = {0};

	for (unsigned int t = 0; t < s->threads; t++) {
		size_t first = n / s->threads * t;
		size_t end = t + 1 == s->threads ? n : first + n / s->threads;

		parts[t] = (struct part){.first = keys + first,
			.end = keys + end,
			.index = first,
			.seed = s->seed,
			.sorted = true};
		parts[t].started = pthread_create(&parts[t].thread, NULL, body, &parts[t]) == 0;
		if (!parts[t].started)
			body(&parts[t]);
	}
	*sorted = true;
	for (unsigned int t = 0; t < s->threads; t++) {
		if (parts[t].started)
			pthread_join(parts[t].thread, NULL);
		total.sum += parts[t].checksum.sum;
		total.xor ^= parts[t].checksum.xor ;
		total.hash += parts[t].checksum.hash;
		*sorted &= parts[t].sorted && (t == 0 || parts[t].first[-1] <= parts[t].first[0]);
	}
	return total;
}

/* --- program ------------------------------------------------------------------------------ */

static void print_stats(struct smemv_region *region, const double *seconds)
{
	struct smemv_stats st;

	smemv_stats(region, &st);
	printf("fill %.2f s, sort %.2f s, check %.2f s over %s\n", seconds[0], seconds[1],
		seconds[2], st.transport);
	printf("page-ins %" PRIu64 ", evictions %" PRIu64 " (%" PRIu64 " clean), faults %" PRIu64
	       ", waited for room %" PRIu64 "\n",
		st.page_ins, st.evictions, st.evictions_clean, st.faults,
		st.faults_waited_for_room);
	printf("read %" PRIu64 " MiB, written %" PRIu64 " MiB, resident %" PRIu64 " of %" PRIu64
	       " MiB, page-in p50 %" PRIu64 " us, p99 %" PRIu64 " us\n",
		st.bytes_read >> 20, st.bytes_written >> 20, st.resident_bytes >> 20,
		st.size_bytes >> 20, st.latency_ns_p50 / 1000, st.latency_ns_p99 / 1000);
	if (st.trouble[0])
		printf("trouble: %s\n", st.trouble);
}

static bool sort_and_check(const struct settings *s, struct smemv_region *region)
{
	struct part all = {.first = smemv_addr(region), .seed = s->seed, .threads = s->threads};
	size_t n = smemv_size(region) / sizeof(uint64_t);
	struct checksum in, out;
	double seconds[3], start = now();
	bool sorted, same;

	in = run(s, all.first, n, fill_part, &sorted);
	seconds[0] = now() - start;
	start = now();
	all.end = all.first + n;
	sort_part(&all);
	seconds[1] = now() - start;
	start = now();
	out = run(s, all.first, n, check_part, &sorted);
	seconds[2] = now() - start;
	same = memcmp(&in, &out, sizeof(in)) == 0;
	printf("%zu keys: %s, checksum %016" PRIx64 "%s\n", n, sorted ? "sorted" : "NOT SORTED",
		out.hash, same ? "" : " IS NOT THE INPUT'S");
	print_stats(region, seconds);
	return sorted && same;
}

static int fail(const struct smemv_error *err)
{
	fprintf(stderr, "smemv-sort: %s\n", err->message);
	if (err->hint[0])
		fprintf(stderr, "  %s\n", err->hint);
	return 1;
}

static void usage(void)
{
	fputs("usage: smemv-sort --server ADDR... --size SIZE --budget SIZE [--transport NAME]\n"
	      "                  [--insecure] [--seed N] [--threads N] [--timeout MS]\n",
		stderr);
	exit(2);
}

static size_t parse_size(const char *text)
{
	static const char suffixes[] = "KMGT";
	char *end;
	unsigned long long n = strtoull(text, &end, 10);
	const char *suffix = *end ? strchr(suffixes, *end) : NULL;
	unsigned int shift = suffix ? 10 * (unsigned int)(suffix - suffixes + 1) : 0;

	if (end == text || *text == '-' || (*end && (!suffix || end[1])) || n > SIZE_MAX >> shift) {
		fprintf(stderr, "smemv-sort: '%s' is no size; write 512M or 4G\n", text);
		exit(2);
	}
	return (size_t)n << shift;
}

static void parse(int argc, char **argv, struct settings *s)
{
	static const struct option options[] = {{"server", required_argument, NULL, 's'},
		{"size", required_argument, NULL, 'n'}, {"budget", required_argument, NULL, 'b'},
		{"transport", required_argument, NULL, 't'}, {"insecure", no_argument, NULL, 'i'},
		{"seed", required_argument, NULL, 'r'}, {"threads", required_argument, NULL, 'j'},
		{"timeout", required_argument, NULL, 'd'}, {0}};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 's' && s->open.nr_servers < SERVERS_MAX)
			s->servers[s->open.nr_servers++] = optarg;
		else if (c == 'n')
			s->size = parse_size(optarg);
		else if (c == 'b')
			s->budget = parse_size(optarg);
		else if (c == 't')
			s->open.transport = optarg;
		else if (c == 'i')
			s->open.insecure = 1;
		else if (c == 'r')
			s->seed = strtoull(optarg, NULL, 0);
		else if (c == 'j')
			s->threads = (unsigned int)strtoul(optarg, NULL, 0);
		else if (c == 'd')
			s->open.timeout_ms = (unsigned int)strtoul(optarg, NULL, 0);
		else
			usage();
	}
	if (optind != argc || !s->open.nr_servers || !s->size || !s->budget || !s->threads ||
		s->threads > THREADS_MAX || s->size / sizeof(uint64_t) < s->threads)
		usage();
}

int main(int argc, char **argv)
{
	struct settings s = {.seed = 1, .threads = 1};
	struct smemv_region *region;
	struct smemv_error err;
	struct smemv *ctx;
	bool good;

	parse(argc, argv, &s);
	s.open.servers = s.servers;
	if (smemv_open(&s.open, &ctx, &err) < 0)
		return fail(&err);
	if (smemv_map(ctx, s.size, s.budget, &region, &err) < 0) {
		smemv_close(ctx);
		return fail(&err);
	}
	good = sort_and_check(&s, region);
	smemv_close(ctx);
	return good ? 0 : 1;
}
