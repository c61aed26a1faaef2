/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics/metrics.h"

#include "common/cleanup.h"
#include "common/events.h"
#include "common/fault_point.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#define FAMILIES_MAX 128

/* All samples of one metric. */
struct family {
	const struct smv_metric *metric;
	FILE *file; /* writes text */
	char *text;
	size_t len;
};

struct smv_metrics {
	struct family families[FAMILIES_MAX]; /* in the order of the first sample */
	size_t nr_families;
	bool failed;
};

struct smv_metrics *smv_metrics_create(void)
{
	return calloc(1, sizeof(struct smv_metrics));
}

void smv_metrics_destroy(struct smv_metrics *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->nr_families; i++) {
		if (m->families[i].file)
			fclose(m->families[i].file);
		free(m->families[i].text);
	}
	free(m);
}

/* @also: the second character that needs a backslash; newlines always do. */
static void put_escaped(FILE *f, const char *text, char also)
{
	if (smv_fault_point("metrics-no-escape")) {
		fputs(text, f);
		return;
	}
	for (; *text; text++) {
		if (*text == '\n')
			fputs("\\n", f);
		else if (*text == '\\' || *text == also)
			fprintf(f, "\\%c", *text);
		else
			fputc(*text, f);
	}
}

static const char *type_name(enum smv_metric_type type)
{
	static const char *const names[] = {
		[SMV_METRIC_COUNTER] = "counter",
		[SMV_METRIC_GAUGE] = "gauge",
		[SMV_METRIC_SUMMARY] = "summary",
	};

	return names[type];
}

/* Where the samples of @metric go; NULL: out of memory. */
static FILE *family_file(struct smv_metrics *m, const struct smv_metric *metric)
{
	struct family *f = m->families;

	while (f < m->families + m->nr_families && f->metric != metric)
		f++;
	if (f < m->families + m->nr_families)
		return f->file;
	if (m->nr_families == FAMILIES_MAX || !(f->file = open_memstream(&f->text, &f->len))) {
		m->failed = true;
		return NULL;
	}
	f->metric = metric;
	m->nr_families++;
	fprintf(f->file, "# HELP %s ", metric->name);
	put_escaped(f->file, metric->help, '\0');
	fprintf(f->file, "\n# TYPE %s %s\n", metric->name, type_name(metric->type));
	return f->file;
}

static void put_value(FILE *f, double value)
{
	if (isnan(value))
		fputs(" NaN\n", f);
	else if (isinf(value))
		fprintf(f, " %cInf\n", value > 0 ? '+' : '-');
	else if (value == floor(value) && fabs(value) < 1e15)
		fprintf(f, " %.0f\n", value);
	else
		fprintf(f, " %.15g\n", value);
}

/* @quantile: NULL: none */
static void put_sample(FILE *f, const struct smv_metric *metric, const char *suffix,
	const char *quantile, double value, va_list labels)
{
	const char *name, *separator = "{";
	va_list ap;

	fprintf(f, "%s%s", metric->name, suffix);
	va_copy(ap, labels);
	while ((name = va_arg(ap, const char *))) {
		fprintf(f, "%s%s=\"", separator, name);
		put_escaped(f, va_arg(ap, const char *), '"');
		fputc('"', f);
		separator = ",";
	}
	va_end(ap);
	if (quantile) {
		fprintf(f, "%squantile=\"%s\"", separator, quantile);
		separator = ",";
	}
	if (*separator == ',')
		fputc('}', f);
	put_value(f, value);
}

void smv_metrics_add(struct smv_metrics *m, const struct smv_metric *metric, double value, ...)
{
	FILE *f = family_file(m, metric);
	va_list labels;

	if (!f)
		return;
	va_start(labels, value);
	put_sample(f, metric, "", NULL, value, labels);
	va_end(labels);
}

void smv_metrics_add_summary(
	struct smv_metrics *m, const struct smv_metric *metric, const struct smv_summary *s, ...)
{
	FILE *f = family_file(m, metric);
	va_list labels;

	if (!f)
		return;
	va_start(labels, s);
	/* Of nothing there are no quantiles. */
	put_sample(f, metric, "", "0.5", s->count ? s->p50 : NAN, labels);
	put_sample(f, metric, "", "0.99", s->count ? s->p99 : NAN, labels);
	put_sample(f, metric, "", "0.999", s->count ? s->p999 : NAN, labels);
	put_sample(f, metric, "_sum", NULL, s->sum, labels);
	put_sample(f, metric, "_count", NULL, (double)s->count, labels);
	va_end(labels);
}

void smv_metrics_add_program(struct smv_metrics *m, time_t started)
{
	static const struct smv_metric info = {
		"smemv_build_info", SMV_METRIC_GAUGE, "Always 1; the label is the version."};
	static const struct smv_metric start = {"smemv_start_time_seconds", SMV_METRIC_GAUGE,
		"Unix time at which the daemon started."};
	static const struct smv_metric events = {"smemv_events_total", SMV_METRIC_COUNTER,
		"How often each event happened; smemvctl events has them."};

	smv_metrics_add(m, &info, 1, "version", SMEMV_VERSION, NULL);
	smv_metrics_add(m, &start, (double)started, NULL);
	for (enum smv_event_kind kind = 0; kind < SMV_NR_EVENT_KINDS; kind++)
		smv_metrics_add(m, &events, (double)smv_events_count(kind), "event",
			smv_event_name(kind), NULL);
}

char *smv_metrics_text(struct smv_metrics *m, size_t *len)
{
	char *text = NULL;
	FILE *all = open_memstream(&text, len);

	for (size_t i = 0; i < m->nr_families; i++) {
		struct family *f = &m->families[i];

		/* What the buffer could not take shows when it is closed. */
		if (ferror(f->file) | fclose(f->file))
			m->failed = true;
		f->file = NULL;
		if (all && f->text)
			fwrite(f->text, 1, f->len, all);
	}
	if (!all || ferror(all) | fclose(all))
		m->failed = true;
	if (!m->failed)
		return text;
	free(text);
	return NULL;
}
