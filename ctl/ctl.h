/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smemvctl's commands. A command asks its peer, or looks at this host, and puts what it learnt into
 * a JSON object; main.c prints that, or the command's own print function shows it to people.
 */
#ifndef SMV_CTL_CTL_H
#define SMV_CTL_CTL_H

#include "common/error.h"
#include "rpc/rpc.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct smv_ctl {
	struct smv_rpc_client *client; /* NULL for commands without a peer */
	unsigned int timeout_ms;
	const char *arg;       /* the command's argument; NULL when it takes none */
	uint64_t size_bytes;   /* budget: the new one */
	unsigned int roles;    /* doctor: see enum smv_role */
	uint64_t memory_bytes; /* doctor: see smv_findings_make() */
	bool force;            /* release: although somebody may have data there */
	bool is_pager;         /* events: the peer is a pager, not a memory server */
	bool json;             /* events: how to print what is followed */
};

/** smv_ctl_call - one call, its answer as a JSON object (a new reference). */
int smv_ctl_call(const struct smv_ctl *ctl, const ProtobufCServiceDescriptor *service,
	const char *method, const ProtobufCMessage *request, json_t **answer,
	struct smv_error *err);

/* What a command fetches: a new reference to an object. */
typedef int (*smv_ctl_fetch)(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
/* Print what is new each second, until interrupted; an error: the daemon was never reached. */
typedef int (*smv_ctl_follow)(const struct smv_ctl *ctl, struct smv_error *err);
/* How it looks on a terminal; may change @result to that end. */
typedef void (*smv_ctl_print)(json_t *result);
/* Whether the exit status is 1 although the command could be done. */
typedef bool (*smv_ctl_is_bad)(const json_t *result);

int smv_ctl_fetch_info(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_leases(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_release(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_vms(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_budget(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_stats(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_events(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);
int smv_ctl_fetch_doctor(const struct smv_ctl *ctl, json_t **result, struct smv_error *err);

int smv_ctl_follow_events(const struct smv_ctl *ctl, struct smv_error *err);

void smv_ctl_print_leases(json_t *result);
void smv_ctl_print_release(json_t *result);
void smv_ctl_print_vms(json_t *result);
void smv_ctl_print_events(json_t *result);
void smv_ctl_print_doctor(json_t *result);

bool smv_ctl_is_bad_doctor(const json_t *result);

#endif
