/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the facts of a host mean for a role: a finding for each check, always all of them and in the
 * same order. A new check is a function and a line in finding.c.
 */
#ifndef SMV_CTL_FINDING_H
#define SMV_CTL_FINDING_H

#include "ctl/host_facts.h"

#include <stddef.h>

enum smv_role {
	SMV_ROLE_SUB_HOST = 1,  /* memserverd */
	SMV_ROLE_MAIN_HOST = 2, /* smemv-pagerd and QEMU */
	SMV_ROLE_SOURCE = 4,    /* smemv-migrate and QEMU */
	SMV_ROLE_ANY = 7,       /* all of them */
};

/* Larger is worse. */
enum smv_finding_status {
	SMV_FINDING_NOT_NEEDED, /* the role does without */
	SMV_FINDING_OK,
	SMV_FINDING_WARNING, /* the role works, but not as well as it could */
	SMV_FINDING_PROBLEM, /* it does not work */
};

struct smv_finding {
	const char *name; /* a stable slug for machines: "rdma-device" */
	enum smv_finding_status status;
	char found[256];
	/* Of warnings and problems; else empty. */
	char cost[256];   /* what the lack costs */
	char remedy[256]; /* a command */
};

#define SMV_FINDINGS_MAX 32

/** smv_role_parse - 0, or -EINVAL for what is no role's name. */
int smv_role_parse(const char *text, unsigned int *roles);
/** smv_role_name - of one of enum smv_role. */
const char *smv_role_name(unsigned int roles);
/** smv_finding_status_name - "ok", "warning", "problem", "not-needed". */
const char *smv_finding_status_name(enum smv_finding_status status);

/**
 * smv_findings_make - judge.
 * @roles: enum smv_role, or several of them: what the strictest needs
 * @memory_bytes: what this host is to give: lend (sub-host), hold of a VM (main host), the size of
 *	the VM (source). 0: not known
 *
 * Returns the number of findings.
 */
size_t smv_findings_make(const struct smv_host_facts *facts, unsigned int roles,
	uint64_t memory_bytes, struct smv_finding findings[SMV_FINDINGS_MAX]);

/** smv_findings_verdict - the worst status; SMV_FINDING_OK at least. */
enum smv_finding_status smv_findings_verdict(const struct smv_finding *findings, size_t nr);

#endif
