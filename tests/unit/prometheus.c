/* SPDX-License-Identifier: Apache-2.0 */
#include "prometheus.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The metric that the lines are of at the moment, and those before. */
struct reader {
	struct prom *prom;
	char families[200][100];
	size_t nr_families;
	char type[20];
	bool has_samples;
};

static int wrong(struct prom *prom, const char *what, const char *line)
{
	if (!prom->error[0])
		snprintf(prom->error, sizeof(prom->error), "%s: %.200s", what, line);
	return -1;
}

static size_t name_len(const char *text, bool colon)
{
	size_t n = 0;

	if (!isalpha((unsigned char)text[0]) && text[0] != '_' && !(colon && text[0] == ':'))
		return 0;
	while (isalnum((unsigned char)text[n]) || text[n] == '_' || (colon && text[n] == ':'))
		n++;
	return n;
}

static bool ends_with(const char *text, const char *end)
{
	return strlen(text) > strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

static int read_comment(struct reader *r, const char *line)
{
	const char *name = line + 7;
	size_t len = name_len(name, true);
	bool help = strncmp(line, "# HELP ", 7) == 0;

	if ((!help && strncmp(line, "# TYPE ", 7) != 0) || !len || name[len] != ' ')
		return wrong(r->prom, "no HELP and no TYPE", line);
	if (help) {
		for (size_t i = 0; i < r->nr_families; i++)
			if (strlen(r->families[i]) == len &&
				strncmp(r->families[i], name, len) == 0)
				return wrong(r->prom, "its samples are not together", line);
		snprintf(r->families[r->nr_families++], 100, "%.*s", (int)len, name);
		r->type[0] = '\0';
		r->has_samples = false;
		return name[len + 1] ? 0 : wrong(r->prom, "an empty HELP", line);
	}
	if (!r->nr_families || strlen(r->families[r->nr_families - 1]) != len ||
		strncmp(r->families[r->nr_families - 1], name, len) != 0 || r->type[0] ||
		r->has_samples)
		return wrong(r->prom, "a TYPE in the wrong place", line);
	snprintf(r->type, sizeof(r->type), "%s", name + len + 1);
	if (strncmp(name, "smemv_", 6) != 0)
		return wrong(r->prom, "a foreign name", line);
	if (ends_with(r->families[r->nr_families - 1], "_total") !=
		(strcmp(r->type, "counter") == 0))
		return wrong(r->prom, "_total is for counters", line);
	return strcmp(r->type, "counter") == 0 || strcmp(r->type, "gauge") == 0 ||
			       strcmp(r->type, "summary") == 0
		       ? 0
		       : wrong(r->prom, "an unknown type", line);
}

/* Behind the opening quote; returns what follows the closing one, or NULL. */
static const char *read_label_value(const char *p, char *value, size_t size)
{
	size_t n = 0;

	for (; *p != '"'; p++) {
		char c = *p;

		if (!c || n == size - 1)
			return NULL;
		if (c == '\\') {
			c = *++p;
			if (c == 'n')
				c = '\n';
			else if (c != '\\' && c != '"')
				return NULL;
		}
		value[n++] = c;
	}
	value[n] = '\0';
	return p + 1;
}

static const char *read_labels(const char *p, struct prom_sample *s)
{
	for (;;) {
		size_t len = name_len(p, false);

		if (!len || p[len] != '=' || p[len + 1] != '"' || s->nr_labels == PROM_LABELS_MAX)
			return NULL;
		snprintf(s->labels[s->nr_labels].name, sizeof(s->labels[0].name), "%.*s", (int)len,
			p);
		p = read_label_value(
			p + len + 2, s->labels[s->nr_labels++].value, sizeof(s->labels[0].value));
		if (!p || *p == '}')
			return p ? p + 1 : NULL;
		if (*p++ != ',')
			return NULL;
	}
}

static bool same(const struct prom_sample *a, const struct prom_sample *b)
{
	bool equal = strcmp(a->name, b->name) == 0 && a->nr_labels == b->nr_labels;

	for (size_t i = 0; equal && i < a->nr_labels; i++)
		equal = strcmp(a->labels[i].name, b->labels[i].name) == 0 &&
			strcmp(a->labels[i].value, b->labels[i].value) == 0;
	return equal;
}

/* The sample's name is the metric's, but for a summary's sum and count. */
static bool belongs(const struct reader *r, const struct prom_sample *s)
{
	const char *family = r->nr_families ? r->families[r->nr_families - 1] : "";
	size_t len = strlen(family);
	const char *suffix = s->name + len;

	if (!len || strncmp(s->name, family, len) != 0)
		return false;
	return !*suffix || (strcmp(r->type, "summary") == 0 &&
				   (strcmp(suffix, "_sum") == 0 || strcmp(suffix, "_count") == 0));
}

static int read_sample(struct reader *r, const char *line)
{
	struct prom *prom = r->prom;
	struct prom_sample *s = &prom->samples[prom->nr];
	size_t len = name_len(line, true);
	const char *p = line + len;
	char *end;

	if (prom->nr == PROM_SAMPLES_MAX || !len)
		return wrong(prom, "no sample", line);
	*s = (struct prom_sample){0};
	snprintf(s->name, sizeof(s->name), "%.*s", (int)len, line);
	snprintf(s->type, sizeof(s->type), "%s", r->type);
	if (*p == '{' && !(p = read_labels(p + 1, s)))
		return wrong(prom, "bad labels", line);
	if (*p != ' ' || !r->type[0] || !belongs(r, s))
		return wrong(prom, "not below its TYPE", line);
	s->value = strtod(p + 1, &end);
	if (end == p + 1 || *end || isspace((unsigned char)p[1]))
		return wrong(prom, "no value", line);
	if (strcmp(s->type, "counter") == 0 && !(s->value >= 0))
		return wrong(prom, "a negative counter", line);
	for (size_t i = 0; i < prom->nr; i++)
		if (same(&prom->samples[i], s))
			return wrong(prom, "it is there twice", line);
	prom->nr++;
	r->has_samples = true;
	return 0;
}

int prom_parse(struct prom *prom, const char *text)
{
	static struct reader reader;
	int r = 0;

	prom->nr = 0;
	prom->error[0] = '\0';
	reader = (struct reader){.prom = prom};
	while (*text && r == 0) {
		size_t len = strcspn(text, "\n");
		char line[2000];

		if (text[len] != '\n' || len >= sizeof(line))
			return wrong(prom, "no end of line", text);
		memcpy(line, text, len);
		line[len] = '\0';
		text += len + 1;
		r = line[0] == '#' ? read_comment(&reader, line) : read_sample(&reader, line);
	}
	return r;
}

const struct prom_sample *prom_find(const struct prom *prom, const char *name, ...)
{
	const struct prom_sample *found = NULL;

	for (size_t i = 0; i < prom->nr; i++) {
		const struct prom_sample *s = &prom->samples[i];
		bool fits = strcmp(s->name, name) == 0;
		const char *label;
		va_list ap;

		va_start(ap, name);
		while (fits && (label = va_arg(ap, const char *))) {
			const char *value = va_arg(ap, const char *);

			fits = false;
			for (size_t k = 0; k < s->nr_labels; k++)
				fits |= strcmp(s->labels[k].name, label) == 0 &&
					strcmp(s->labels[k].value, value) == 0;
		}
		va_end(ap);
		if (fits && found)
			return NULL;
		if (fits)
			found = s;
	}
	return found;
}
