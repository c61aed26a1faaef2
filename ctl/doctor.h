/* SPDX-License-Identifier: Apache-2.0 */
/* The findings of a host as a JSON object, and that object for people. */
#ifndef SMV_CTL_DOCTOR_H
#define SMV_CTL_DOCTOR_H

#include "ctl/finding.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/** smv_doctor_report - role, verdict and checks: a new reference. See smv_findings_make(). */
json_t *smv_doctor_report(
	const struct smv_host_facts *facts, unsigned int roles, uint64_t memory_bytes);

/** smv_doctor_print - a line for each check, below it what to do. @colour: by terminal sequences.
 */
void smv_doctor_print(const json_t *report, FILE *out, bool colour);

#endif
