/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/output.h"

#include "common/cleanup.h"
#include "common/units.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define CELL_MAX 1000

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && strcmp(text + n - m, end) == 0;
}

static void format_ms(json_int_t ms, char *cell)
{
	const json_int_t s = ms / 1000;

	if (ms < 1000)
		snprintf(cell, CELL_MAX, "%lld ms", (long long)ms);
	else if (s < 120)
		snprintf(cell, CELL_MAX, "%.1f s", (double)ms / 1000);
	else if (s < 7200)
		snprintf(cell, CELL_MAX, "%lld min", (long long)(s / 60));
	else
		snprintf(cell, CELL_MAX, "%lld h %lld min", (long long)(s / 3600),
			(long long)(s / 60 % 60));
}

static void format_integer(const char *key, json_int_t value, char *cell)
{
	if (ends_with(key, "_bytes") || strncmp(key, "bytes_", 6) == 0)
		smv_format_size((uint64_t)value, cell, CELL_MAX);
	else if (ends_with(key, "_ms"))
		format_ms(value, cell);
	else
		snprintf(cell, CELL_MAX, "%lld", (long long)value);
}

/* A peer's text must not steer the terminal. */
static void format_text(const char *text, char *cell)
{
	snprintf(cell, CELL_MAX, "%s", *text ? text : "-");
	for (char *c = cell; *c; c++)
		if (iscntrl((unsigned char)*c))
			*c = '?';
}

static void format_array(const json_t *array, char *cell)
{
	size_t i, len = 0;
	const json_t *v;

	if (json_array_size(array) == 0 || !json_is_string(json_array_get(array, 0))) {
		snprintf(cell, CELL_MAX, "%zu", json_array_size(array));
		return;
	}
	json_array_foreach (array, i, v) {
		char text[CELL_MAX];

		format_text(json_string_value(v), text);
		if (len < CELL_MAX)
			len += (size_t)snprintf(
				cell + len, CELL_MAX - len, "%s%s", i ? " " : "", text);
	}
}

static void format_value(const char *key, const json_t *value, char *cell)
{
	if (json_is_integer(value))
		format_integer(key, json_integer_value(value), cell);
	else if (json_is_real(value))
		snprintf(cell, CELL_MAX, "%.1f", json_real_value(value));
	else if (json_is_boolean(value))
		snprintf(cell, CELL_MAX, "%s", json_is_true(value) ? "yes" : "no");
	else if (json_is_string(value))
		format_text(json_string_value(value), cell);
	else if (json_is_array(value))
		format_array(value, cell);
	else
		snprintf(cell, CELL_MAX, "-");
}

static int key_width(const json_t *object, const char *prefix)
{
	const char *key;
	json_t *value;
	int width = 0, one;

	json_object_foreach ((json_t *)object, key, value) {
		one = (int)(strlen(prefix) + strlen(key));
		if (json_is_object(value))
			one += 1 + key_width(value, "");
		width = one > width ? one : width;
	}
	return width;
}

static void print_properties(const json_t *object, const char *prefix, int width)
{
	char cell[CELL_MAX], name[200];
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *)object, key, value) {
		if (json_is_object(value)) {
			snprintf(name, sizeof(name), "%s.", key);
			print_properties(value, name, width);
			continue;
		}
		format_value(key, value, cell);
		snprintf(name, sizeof(name), "%s%s", prefix, key);
		printf("%-*s  %s\n", width, name, cell);
	}
}

void smv_print_properties(json_t *object)
{
	print_properties(object, "", key_width(object, ""));
}

static void print_row(
	const struct smv_column *columns, size_t nr, const size_t *widths, const json_t *row)
{
	char cell[CELL_MAX];

	for (size_t c = 0; c < nr; c++) {
		if (row)
			format_value(columns[c].key, json_object_get(row, columns[c].key), cell);
		else
			snprintf(cell, sizeof(cell), "%s", columns[c].heading);
		printf("%-*s%s", c + 1 < nr ? (int)widths[c] : 0, cell, c + 1 < nr ? "  " : "\n");
	}
}

static void print_rows(
	const json_t *rows, const struct smv_column *columns, size_t nr_columns, bool headings)
{
	CLEANUP_FREE size_t *widths = calloc(nr_columns, sizeof(*widths));
	char cell[CELL_MAX];
	const json_t *row;
	size_t i;

	if (!widths)
		return;
	for (size_t c = 0; c < nr_columns; c++) {
		widths[c] = headings ? strlen(columns[c].heading) : 0;
		json_array_foreach (rows, i, row) {
			format_value(columns[c].key, json_object_get(row, columns[c].key), cell);
			if (strlen(cell) > widths[c])
				widths[c] = strlen(cell);
		}
	}
	if (headings)
		print_row(columns, nr_columns, widths, NULL);
	json_array_foreach (rows, i, row)
		print_row(columns, nr_columns, widths, row);
}

void smv_print_table(
	const json_t *rows, const struct smv_column *columns, size_t nr_columns, const char *none)
{
	if (json_array_size(rows) == 0)
		puts(none);
	else
		print_rows(rows, columns, nr_columns, true);
}

void smv_print_rows(const json_t *rows, const struct smv_column *columns, size_t nr_columns)
{
	print_rows(rows, columns, nr_columns, false);
}
