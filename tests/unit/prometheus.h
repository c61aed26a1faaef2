/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A strict reader of Prometheus' text format, written from its description and not from our writer:
 * lines, names, escapes, HELP and TYPE before the samples, the samples of one metric behind each
 * other, none twice; and our conventions: the prefix, "_total" for counters and only for them.
 */
#ifndef SMV_TESTS_PROMETHEUS_H
#define SMV_TESTS_PROMETHEUS_H

#include <stddef.h>

#define PROM_SAMPLES_MAX 4000
#define PROM_LABELS_MAX 8

struct prom_sample {
	char name[100];
	char type[20];
	struct {
		char name[60], value[300];
	} labels[PROM_LABELS_MAX];
	size_t nr_labels;
	double value;
};

struct prom {
	struct prom_sample samples[PROM_SAMPLES_MAX];
	size_t nr;
	char error[300]; /* the first thing that is wrong; "": nothing */
};

/** prom_parse - 0, or -1 and what is wrong in prom->error. */
int prom_parse(struct prom *prom, const char *text);

/** prom_find - the sample of that name with all of these labels (a name and a value each, then
 * NULL), whatever others it has; NULL: there is none, or more than one. */
const struct prom_sample *prom_find(const struct prom *prom, const char *name, ...)
	__attribute__((sentinel));

#endif
