/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors for people. Inside the code an error is an int, 0 or -errno. Where the cause is known and
 * a person must hear of it, it is put once into a struct smv_error: what was tried, on what, why it
 * failed, and in the hint what to do. The control channel carries the same four fields.
 */
#ifndef SMV_COMMON_ERROR_H
#define SMV_COMMON_ERROR_H

#include <stdbool.h>

/* The numbers are gRPC's status codes, so that an error crosses the control channel unchanged. */
enum smv_code {
	SMV_OK = 0,
	SMV_CANCELLED = 1,
	SMV_UNKNOWN = 2,
	SMV_INVALID = 3,      /* the request makes no sense, whatever the state */
	SMV_TIMEOUT = 4,      /* no answer within the deadline */
	SMV_NOT_FOUND = 5,
	SMV_EXISTS = 6,
	SMV_PERMISSION = 7,
	SMV_NO_ROOM = 8,      /* memory, slots, disk */
	SMV_REFUSED = 9,      /* the request is fine, the state forbids it */
	SMV_ABORTED = 10,     /* lost a race, e.g. commit against abort */
	SMV_UNIMPLEMENTED = 12,
	SMV_INTERNAL = 13,
	SMV_UNAVAILABLE = 14, /* the peer cannot be reached */
	SMV_DATA_LOSS = 15,
};

struct smv_error {
	enum smv_code code;
	char reason[40];   /* a stable slug for machines: "ram-not-shared" */
	char message[600]; /* for people: what, on what, why */
	char hint[600];    /* for people: what to do; may be empty */
};

/**
 * smv_fail - fill an error and return its -errno.
 * @err: may be NULL, then only the return value remains
 * @hint: what to do, or NULL
 *
 * Returns a negative errno that fits @code, never 0, so callers write "return smv_fail(...)".
 */
int smv_fail(struct smv_error *err, enum smv_code code, const char *reason, const char *hint,
	const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/** smv_code_from_errno - the code that fits a positive or negative errno. */
enum smv_code smv_code_from_errno(int errnum);

/** smv_code_to_errno - the negative errno that fits a code; 0 for SMV_OK. */
int smv_code_to_errno(enum smv_code code);

/** smv_error_print - "PROGRAM: message" and, if there is one, "  hint" on standard error. */
void smv_error_print(const struct smv_error *err);

#endif
