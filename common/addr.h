/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses as people write them: "HOST:PORT", "[v6]:PORT", "unix:PATH"; a data address may name
 * its transport first: "tcp:HOST:PORT", "verbs:HOST:PORT", "mem:NAME".
 */
#ifndef SMV_COMMON_ADDR_H
#define SMV_COMMON_ADDR_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SMV_ADDR_MAX 256

struct smv_addr {
	char transport[16]; /* "tcp", "verbs", "mem"; empty when the text named none */
	bool is_unix;
	char host[200]; /* host or literal address without brackets; path when is_unix; mem's name */
	uint16_t port;  /* 0 when is_unix or mem */
};

/** smv_addr_parse - parse a control address (@data false) or a data address (@data true).
 * Fills @err with what is wrong with the text and the forms that are right. */
int smv_addr_parse(const char *text, bool data, struct smv_addr *addr, struct smv_error *err);

/** smv_addr_format - the canonical text, brackets included; returns @buf. */
char *smv_addr_format(const struct smv_addr *addr, char *buf, size_t len);

/** smv_addr_is_local - a unix socket, an in-process name, or a literal loopback address or
 * "localhost": what may be used in plaintext without --insecure. */
bool smv_addr_is_local(const struct smv_addr *addr);

#endif
