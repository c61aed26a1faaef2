/* SPDX-License-Identifier: Apache-2.0 */
#include "common/addr.h"
#include "common/fault_point.h"
#include "common/histogram.h"
#include "common/units.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

Test(units, parses_sizes)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {{"0", 0}, {"4096", 4096}, {"1K", 1024}, {"1.5M", 1572864}, {"2GiB", 2ull << 30},
		{"3T", 3ull << 40}, {"7KB", 7168}};
	static const char *const bad[] = {
		"", "-1", " 1", "1x", "K", "0x10", "inf", "nan", "1KK", "1Ki", "1 G"};
	uint64_t bytes;

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		cr_assert_eq(smv_parse_size(good[i].text, &bytes), 0, "%s", good[i].text);
		cr_assert_eq(bytes, good[i].bytes, "%s", good[i].text);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_eq(smv_parse_size(bad[i], &bytes), -EINVAL, "%s", bad[i]);
	cr_assert_eq(smv_parse_size("9000000000T", &bytes), -ERANGE);
}

Test(addr, round_trips)
{
	static const struct {
		const char *text;
		bool data, local;
	} good[] = {{"127.0.0.1:80", false, true}, {"[::1]:80", false, true},
		{"unix:/run/x.sock", false, true}, {"localhost:1", false, true},
		{"10.0.0.1:7001", false, false}, {"tcp:10.0.0.1:7001", true, false},
		{"verbs:[fe80::1]:7001", true, false}, {"mem:a", true, true}};
	struct smv_addr addr;
	char text[SMV_ADDR_MAX];

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		cr_assert_eq(smv_addr_parse(good[i].text, good[i].data, &addr, NULL), 0, "%s",
			good[i].text);
		cr_assert_str_eq(smv_addr_format(&addr, text, sizeof(text)), good[i].text);
		cr_assert_eq(smv_addr_is_local(&addr), good[i].local, "%s", good[i].text);
	}
}

Test(addr, says_what_is_wrong)
{
	static const char *const bad[] = {"", "host", "host:", "host:x", "host:70000", ":1", "::1:1",
		"[::1]", "[::1]1", "[x]:1", "unix:", "tcp:host:1", "host:-1", "host:+1"};
	struct smv_addr addr;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct smv_error err = {0};

		cr_assert_eq(smv_addr_parse(bad[i], false, &addr, &err), -EINVAL, "%s", bad[i]);
		cr_assert(strstr(err.message, bad[i]) && err.hint[0], "%s", bad[i]);
	}
}

Test(histogram, quantiles_are_within_a_step)
{
	static struct smv_histogram h;

	cr_assert_eq(smv_histogram_quantile(&h, 0.5), 0);
	for (uint64_t v = 1; v <= 100000; v++)
		smv_histogram_record(&h, v);
	for (double q = 0.01; q < 1; q += 0.01) {
		double exact = q * 100000, got = (double)smv_histogram_quantile(&h, q);

		cr_assert(got >= exact - 1 && got <= exact * (1 + 1.0 / 32) + 1, "%f: %f", q, got);
	}
	cr_assert_eq(smv_histogram_quantile(&h, 1), 100000);
	smv_histogram_record(&h, UINT64_MAX);
	cr_assert_eq(smv_histogram_quantile(&h, 1), UINT64_MAX);
}

#ifdef SMEMV_FAULT_POINTS
/* Each Criterion test is a process of its own, so no fault point was passed before. */
Test(fault_point, acts_when_armed_and_leaves_a_trace)
{
	char dir[] = "/tmp/smemv-hits-XXXXXX", hit[64], unhit[64];

	cr_assert(mkdtemp(dir));
	snprintf(hit, sizeof(hit), "%s/test-second", dir);
	snprintf(unhit, sizeof(unhit), "%s/test-first", dir);
	setenv("SMEMV_FAULT_HITS", dir, 1);
	setenv("SMEMV_FAULT", "test-second:skip:2", 1);
	cr_expect_not(smv_fault_point("test-first"), "it is not armed");
	for (int i = 1; i <= 3; i++) {
		cr_expect_eq(smv_fault_point("test-second"), i == 2, "pass %d", i);
		cr_expect_eq(access(hit, F_OK) == 0, i >= 2, "a hit before it acted, or none");
	}
	cr_expect_neq(access(unhit, F_OK), 0, "a hit although it is not armed");
	unlink(hit);
	rmdir(dir);
}

Test(fault_point, are_listed_once_and_in_order)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	smv_fault_points_list(out);
	fclose(out);
	cr_expect(strstr(text, "test-first\ntest-second\n"), "%s", text);
	cr_expect_null(strstr(strstr(text, "test-second") + 1, "test-second"), "%s", text);
	free(text);
}
#endif
