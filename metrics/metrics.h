/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers for Prometheus: its text format 0.0.4
 * (prometheus.io/docs/instrumenting/exposition_formats). A collector adds samples in any order; the
 * text has those of one metric behind each other, as the format asks for.
 *
 * Names follow Prometheus' conventions: "smemv_", base units (seconds, bytes), "_total" for
 * counters. They never change; a new metric needs a line in docs/operations.md.
 */
#ifndef SMV_METRICS_METRICS_H
#define SMV_METRICS_METRICS_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum smv_metric_type { SMV_METRIC_COUNTER, SMV_METRIC_GAUGE, SMV_METRIC_SUMMARY };

/* Usually a static constant; must outlive the metrics that it is added to. */
struct smv_metric {
	const char *name;
	enum smv_metric_type type;
	const char *help; /* for people, one line */
};

#define SMV_GAUGE(id, name, help) static const struct smv_metric id = {name, SMV_METRIC_GAUGE, help}
#define SMV_COUNTER(id, name, help)                                                                \
	static const struct smv_metric id = {name, SMV_METRIC_COUNTER, help}
#define SMV_SUMMARY(id, name, help)                                                                \
	static const struct smv_metric id = {name, SMV_METRIC_SUMMARY, help}

/* What a summary tells. */
struct smv_summary {
	double p50, p99, p999;
	double sum;
	uint64_t count;
};

struct smv_metrics;

/** smv_metrics_create - none yet; NULL: out of memory. */
struct smv_metrics *smv_metrics_create(void);
/** smv_metrics_destroy - NULL is fine. */
void smv_metrics_destroy(struct smv_metrics *metrics);

/** smv_metrics_add - one sample of a counter or a gauge. Then its labels, a name and a value each,
 * and NULL: "vm", name, "state", "lost", NULL. Values may be any text; names are literals. */
void smv_metrics_add(struct smv_metrics *metrics, const struct smv_metric *metric, double value,
	...) __attribute__((sentinel));

/** smv_metrics_add_summary - the samples of a summary, with labels as above. */
void smv_metrics_add_summary(struct smv_metrics *metrics, const struct smv_metric *metric,
	const struct smv_summary *summary, ...) __attribute__((sentinel));

/** smv_metrics_add_program - what every daemon tells: its version, since when it runs
 * (@started), how often each event happened. */
void smv_metrics_add_program(struct smv_metrics *metrics, time_t started);

/** smv_metrics_text - all of it, to be freed by the caller; NULL: something was out of memory.
 * Nothing can be added afterwards. */
char *smv_metrics_text(struct smv_metrics *metrics, size_t *len);

#endif
