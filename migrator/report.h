/* SPDX-License-Identifier: Apache-2.0 */
/* What a migration tells people and machines: progress while it runs, one result at its end. */
#ifndef SMV_MIGRATOR_REPORT_H
#define SMV_MIGRATOR_REPORT_H

#include "client/backing.h"
#include "common/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Exit codes; 2 is bad usage. */
enum smv_outcome {
	SMV_COMPLETED = 0,
	SMV_FAILED = 1,    /* the source runs */
	SMV_STOPPED = 3,   /* cancelled; the source runs */
	SMV_NOT_BEGUN = 4, /* refused; nothing was touched */
	SMV_DOUBTFUL = 5,  /* do not start the source */
};

/* The error's reason when the source owns the VM but could not be made to run. */
#define SMV_REASON_RESUME "resume"

struct smv_round {
	uint64_t pages;
	uint64_t bytes;
	double ms;
	double expected_downtime_ms; /* before it */
	unsigned int throttle_percent;
};

struct smv_result {
	enum smv_outcome outcome;
	bool settled; /* who owns the VM is known, and it runs or is left stopped on purpose */
	char migration_id[33]; /* empty: none was begun */
	bool committed;
	struct smv_error error; /* code SMV_OK: none */
	char source_state[64];
	char destination_state[64];
	double total_ms;
	double setup_ms;
	double downtime_ms; /* negative: the source never stopped */
	struct smv_round *rounds;
	size_t nr_rounds;
	uint64_t pages_total, pages_hot, pages_cold, pages_zero, pages_resent;
	uint64_t bytes_to_main, bytes_to_sub_hosts;
	struct {
		char address[SMV_ADDR_MAX];
		uint64_t bytes;
		uint64_t extents;
	} sub_hosts[SMV_SUB_HOSTS_MAX];
	unsigned int nr_sub_hosts;
	char transport[16];
	char transport_reason[200];
};

/** smv_result_json - the object; new reference. */
json_t *smv_result_json(const struct smv_result *result);
/** smv_result_print_json - exactly one object on standard output. */
void smv_result_print_json(const struct smv_result *result);
/** smv_result_print - for people: a failure on standard error, a success on standard output. */
void smv_result_print(const struct smv_result *result);
int smv_result_add_round(struct smv_result *result, struct smv_round round);

/** smv_outcome_name - "completed", "failed", "cancelled", "refused", "unknown"; smv_outcome_parse -
 * 0, or -EINVAL. */
const char *smv_outcome_name(enum smv_outcome outcome);
int smv_outcome_parse(const char *name, enum smv_outcome *outcome);

/** smv_json_text - a string of any bytes as JSON, which is UTF-8. */
json_t *smv_json_text(const char *s);

/** smv_error_json - {"code", "message", "hint"}, or null for no error. */
json_t *smv_error_json(const struct smv_error *err);

#endif
