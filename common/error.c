/* SPDX-License-Identifier: Apache-2.0 */
#include "common/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
	enum smv_code code;
	int errnum;
} code_errno[] = {
	{SMV_CANCELLED, ECANCELED},
	{SMV_INVALID, EINVAL},
	{SMV_TIMEOUT, ETIMEDOUT},
	{SMV_NOT_FOUND, ENOENT},
	{SMV_EXISTS, EEXIST},
	{SMV_PERMISSION, EACCES},
	{SMV_PERMISSION, EPERM},
	{SMV_NO_ROOM, ENOSPC},
	{SMV_NO_ROOM, ENOMEM},
	{SMV_REFUSED, EBUSY},
	{SMV_ABORTED, EALREADY},
	{SMV_UNIMPLEMENTED, EOPNOTSUPP},
	{SMV_UNAVAILABLE, ECONNREFUSED},
	{SMV_UNAVAILABLE, ECONNRESET},
	{SMV_UNAVAILABLE, EHOSTUNREACH},
	{SMV_UNAVAILABLE, ENETUNREACH},
	{SMV_UNAVAILABLE, EPIPE},
	{SMV_DATA_LOSS, ENODATA},
	{SMV_DATA_LOSS, EIO},
};

enum smv_code smv_code_from_errno(int errnum)
{
	if (errnum == 0)
		return SMV_OK;
	if (errnum < 0)
		errnum = -errnum;
	for (size_t i = 0; i < sizeof(code_errno) / sizeof(code_errno[0]); i++)
		if (code_errno[i].errnum == errnum)
			return code_errno[i].code;
	return SMV_INTERNAL;
}

int smv_code_to_errno(enum smv_code code)
{
	if (code == SMV_OK)
		return 0;
	for (size_t i = 0; i < sizeof(code_errno) / sizeof(code_errno[0]); i++)
		if (code_errno[i].code == code)
			return -code_errno[i].errnum;
	return -EPROTO;
}

int smv_fail(struct smv_error *err, enum smv_code code, const char *reason, const char *hint,
	const char *fmt, ...)
{
	if (err) {
		va_list ap;

		err->code = code;
		snprintf(err->reason, sizeof(err->reason), "%s", reason);
		snprintf(err->hint, sizeof(err->hint), "%s", hint ? hint : "");
		va_start(ap, fmt);
		vsnprintf(err->message, sizeof(err->message), fmt, ap);
		va_end(ap);
	}
	return smv_code_to_errno(code == SMV_OK ? SMV_INTERNAL : code);
}

void smv_error_print(const struct smv_error *err)
{
	extern char *program_invocation_short_name;

	fprintf(stderr, "%s: %s\n", program_invocation_short_name, err->message);
	if (err->hint[0])
		fprintf(stderr, "  %s\n", err->hint);
}
