/* SPDX-License-Identifier: Apache-2.0 */
#include "common/events.h"
#include "common/log.h"
#include "metrics/http.h"
#include "metrics/metrics.h"
#include "prometheus.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct smv_metric gauge = {"smemv_gauge", SMV_METRIC_GAUGE, "A \\ and\na newline."};
static const struct smv_metric counter = {
	"smemv_things_total", SMV_METRIC_COUNTER, "With \"quotes\"."};
static const struct smv_metric summary = {"smemv_time_seconds", SMV_METRIC_SUMMARY, "Times."};

static struct prom prom;

/* --- the text ----------------------------------------------------------------------------- */

static int parse(struct smv_metrics *m)
{
	size_t len;
	char *text = smv_metrics_text(m, &len);
	int r;

	cr_assert(text);
	cr_assert_eq(strlen(text), len);
	r = prom_parse(&prom, text);
	free(text);
	smv_metrics_destroy(m);
	return r;
}

static double value_of(double value)
{
	struct smv_metrics *m = smv_metrics_create();

	smv_metrics_add(m, &gauge, value, NULL);
	cr_assert_eq(parse(m), 0, "%s", prom.error);
	return prom.samples[0].value;
}

Test(metrics, values_are_as_they_were)
{
	static const double values[] = {
		0, 1, -1, 0.25, 1e-9, 123456789012345, 1ull << 53, 1e300, 0.123456789012345};

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
		cr_assert_float_eq(value_of(values[i]), values[i], fabs(values[i]) * 1e-14);
	cr_assert(isnan(value_of(NAN)));
	cr_assert(isinf(value_of(INFINITY)));
	cr_assert_lt(value_of(-INFINITY), 0);
}

Test(metrics, samples_of_one_metric_come_together)
{
	struct smv_metrics *m = smv_metrics_create();
	const struct smv_summary s = {
		.p50 = 0.001, .p99 = 0.5, .p999 = 1, .sum = 10, .count = 1000};

	for (int vm = 0; vm < 3; vm++) {
		char name[2] = {(char)('a' + vm), '\0'};

		smv_metrics_add(m, &gauge, vm, "vm", name, NULL);
		smv_metrics_add(m, &counter, 10 * vm, "vm", name, "state", "lost", NULL);
		smv_metrics_add(m, &counter, 20 * vm, "vm", name, "state", "cold", NULL);
		smv_metrics_add_summary(m, &summary, &s, "vm", name, NULL);
	}
	cr_assert_eq(parse(m), 0, "%s", prom.error);
	cr_assert_eq(prom.nr, 3 * (1 + 2 + 5));
	cr_assert_eq(
		prom_find(&prom, "smemv_things_total", "state", "cold", "vm", "c", NULL)->value,
		40);
	cr_assert_eq(
		prom_find(&prom, "smemv_time_seconds", "vm", "b", "quantile", "0.99", NULL)->value,
		0.5);
	cr_assert_eq(prom_find(&prom, "smemv_time_seconds_count", "vm", "b", NULL)->value, 1000);
	cr_assert_eq(prom_find(&prom, "smemv_time_seconds_sum", "vm", "b", NULL)->value, 10);
	cr_assert_str_eq(prom_find(&prom, "smemv_gauge", "vm", "a", NULL)->type, "gauge");
}

Test(metrics, a_summary_of_nothing_has_no_quantiles)
{
	struct smv_metrics *m = smv_metrics_create();
	const struct smv_summary none = {0};

	smv_metrics_add_summary(m, &summary, &none, NULL);
	cr_assert_eq(parse(m), 0, "%s", prom.error);
	cr_assert(isnan(prom_find(&prom, "smemv_time_seconds", "quantile", "0.5", NULL)->value));
	cr_assert_eq(prom_find(&prom, "smemv_time_seconds_count", NULL)->value, 0);
}

static const char *const nasty[] = {"\"", "\\", "\n", "a\\nb", "\"}\nsmemv_gauge 1\n", "", "{}=,",
	"\xc3\xa4 on \xe2\x82\xac", "\\\\\"\"\n\n"};

static int parse_nasty(void)
{
	struct smv_metrics *m = smv_metrics_create();

	for (size_t i = 0; i < sizeof(nasty) / sizeof(nasty[0]); i++)
		smv_metrics_add(m, &gauge, (double)i, "vm", nasty[i], "other", "x", NULL);
	return parse(m);
}

Test(metrics, any_text_may_be_a_label)
{
	cr_assert_eq(parse_nasty(), 0, "%s", prom.error);
	for (size_t i = 0; i < sizeof(nasty) / sizeof(nasty[0]); i++)
		cr_assert_eq(
			prom_find(&prom, "smemv_gauge", "vm", nasty[i], "other", "x", NULL)->value,
			(double)i);
}

Test(metrics, the_program_tells_version_start_and_events)
{
	struct smv_metrics *m = smv_metrics_create();

	smv_log_set_level((enum smv_log_level) - 1);
	smv_events_reset();
	smv_event(SMV_EVENT_VM_ENDED, "a", NULL, "text");
	smv_event(SMV_EVENT_VM_ENDED, "a", NULL, "text");
	smv_metrics_add_program(m, 1700000000);
	cr_assert_eq(parse(m), 0, "%s", prom.error);
	cr_assert_eq(prom_find(&prom, "smemv_events_total", "event", "vm.ended", NULL)->value, 2);
	cr_assert_eq(prom_find(&prom, "smemv_events_total", "event", "page.lost", NULL)->value, 0);
	cr_assert_eq(prom_find(&prom, "smemv_start_time_seconds", NULL)->value, 1700000000);
	cr_assert(prom_find(&prom, "smemv_build_info", "version", SMEMV_VERSION, NULL));
}

/* The reader must see what is wrong, or the tests above say nothing. */
Test(metrics, the_reader_of_these_tests_is_strict)
{
	static const char *const bad[] = {
		"smemv_a 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_b 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a 1",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a x\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a 1 2 3\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a 1\nsmemv_a 2\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a{vm=\"a\"b\"} 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a{vm=\"a\\q\"} 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a{vm=a} 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a{} 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a counter\nsmemv_a 1\n",
		"# HELP smemv_a_total h\n# TYPE smemv_a_total gauge\nsmemv_a_total 1\n",
		"# HELP smemv_a_total h\n# TYPE smemv_a_total counter\nsmemv_a_total -1\n",
		"# HELP a h\n# TYPE a gauge\na 1\n",
		"# HELP smemv_a h\n# TYPE smemv_a gauge\nsmemv_a 1\n# HELP smemv_b h\n"
		"# TYPE smemv_b gauge\nsmemv_b 1\n# HELP smemv_a h\n# TYPE smemv_a gauge\n"
		"smemv_a{vm=\"a\"} 1\n",
		"\n",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_lt(prom_parse(&prom, bad[i]), 0, "%s", bad[i]);
}

#ifdef SMEMV_FAULT_POINTS
Test(metrics, labels_that_are_not_escaped_are_noticed)
{
	setenv("SMEMV_FAULT", "metrics-no-escape", 1);
	cr_assert_lt(parse_nasty(), 0);
}
#endif

/* --- HTTP --------------------------------------------------------------------------------- */

static struct smv_metrics_server *server;
static struct smv_addr bound;
static char reply[200000];

static void collect(void *ctx, struct smv_metrics *m)
{
	smv_metrics_add(m, &gauge, *(const int *)ctx, "vm", "a", NULL);
}

static int collected = 42;

static void serve(void)
{
	struct smv_error err = {0};
	struct smv_addr addr;

	cr_assert_eq(smv_metrics_addr_parse("127.0.0.1:0", &addr, &err), 0, "%s", err.message);
	cr_assert_eq(smv_metrics_serve(&addr, collect, &collected, &server, &bound, &err), 0, "%s",
		err.message);
	cr_assert_neq(bound.port, 0);
}

static void stop(void)
{
	smv_metrics_server_destroy(server);
}

TestSuite(http, .init = serve, .fini = stop);

static int dial(void)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(bound.port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, "127.0.0.1", &sa.sin_addr);
	cr_assert_eq(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

/* The status of the answer, which is in reply; 0: the server closed without one. */
static int ask(const char *request)
{
	int fd = dial(), status = 0;
	size_t n = 0;
	ssize_t got;

	cr_assert_eq(send(fd, request, strlen(request), MSG_NOSIGNAL), (ssize_t)strlen(request));
	while (n < sizeof(reply) - 1 && (got = read(fd, reply + n, sizeof(reply) - 1 - n)) > 0)
		n += (size_t)got;
	close(fd);
	reply[n] = '\0';
	sscanf(reply, "HTTP/1.1 %d", &status);
	return status;
}

#define CLOSE "Host: x\r\nConnection: close\r\n\r\n"

static const char *body(void)
{
	const char *end = strstr(reply, "\r\n\r\n");

	return end ? end + 4 : "";
}

Test(http, metrics_are_there)
{
	cr_assert_eq(ask("GET /metrics HTTP/1.1\r\n" CLOSE), 200, "%s", reply);
	cr_assert(strstr(reply, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
	cr_assert_eq(prom_parse(&prom, body()), 0, "%s", prom.error);
	cr_assert_eq(prom_find(&prom, "smemv_gauge", "vm", "a", NULL)->value, 42);
	cr_assert(prom_find(&prom, "smemv_build_info", NULL));
	/* As it is now, not as it was. */
	collected = 43;
	cr_assert_eq(ask("GET /metrics?x=y HTTP/1.1\r\n" CLOSE), 200);
	cr_assert_eq(prom_parse(&prom, body()), 0, "%s", prom.error);
	cr_assert_eq(prom_find(&prom, "smemv_gauge", "vm", "a", NULL)->value, 43);
}

Test(http, nothing_else_is_there)
{
	cr_assert_eq(ask("GET / HTTP/1.1\r\n" CLOSE), 404);
	cr_assert_eq(ask("GET /metrics/ HTTP/1.1\r\n" CLOSE), 404);
	cr_assert_eq(ask("GET /../metrics HTTP/1.1\r\n" CLOSE), 404);
	cr_assert_eq(ask("GET //metrics HTTP/1.1\r\n" CLOSE), 404);
	cr_assert_eq(ask("HEAD /metrics HTTP/1.1\r\n" CLOSE), 200);
	cr_assert_str_empty(body());
}

Test(http, other_methods_are_refused)
{
	cr_assert_eq(ask("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n" CLOSE "abc"), 405);
	cr_assert(strstr(reply, "Allow: GET, HEAD\r\n"));
	cr_assert_eq(ask("DELETE /metrics HTTP/1.1\r\n" CLOSE), 405);
	cr_assert_eq(ask("PUT /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n" CLOSE), 405);
}

Test(http, nonsense_does_no_harm)
{
	static char huge[40000];
	int idle = dial();

	cr_assert_neq(ask("nonsense\r\n\r\n"), 200);
	cr_assert_neq(ask("GET /metrics HTTP/9.9\r\n" CLOSE), 200);
	cr_assert_neq(ask("\r\n\r\n\r\n\x01\x02\x03 \x80 x\r\n\r\n"), 200);
	strcpy(huge, "GET /metrics HTTP/1.1\r\nX: ");
	memset(huge + strlen(huge), 'x', sizeof(huge) - strlen(huge) - 1);
	strcpy(huge + sizeof(huge) - 5, "\r\n\r\n");
	cr_assert_neq(ask(huge), 200);
	/* Neither that nor somebody who says nothing keeps others away. */
	cr_assert_eq(ask("GET /metrics HTTP/1.1\r\n" CLOSE), 200);
	close(idle);
}

Test(http, a_unix_socket_is_refused)
{
	struct smv_error err = {0};
	struct smv_addr addr;

	cr_assert_lt(smv_metrics_addr_parse("unix:/tmp/x", &addr, &err), 0);
	cr_assert(strstr(err.message, "unix:/tmp/x") && err.hint[0]);
	cr_assert_lt(smv_metrics_addr_parse("nonsense", &addr, &err), 0);
}

Test(http, an_address_in_use_is_said)
{
	struct smv_metrics_server *other = NULL;
	struct smv_error err = {0};
	struct smv_addr addr;

	cr_assert_lt(smv_metrics_serve(&bound, collect, NULL, &other, &addr, &err), 0);
	cr_assert_null(other);
	cr_assert(strstr(err.message, "in use"), "%s", err.message);
}
