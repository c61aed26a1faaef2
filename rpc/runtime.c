/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/runtime.h"

#include "common/log.h"
#include "rpc/rpc.h"
#include "rpc/text.h"

#include <arpa/inet.h>
#include <grpc/support/log.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What matters of it reaches people as a struct smv_error. */
static void forward_log(gpr_log_func_args *args)
{
	smv_log_debug("gRPC: %s", args->message);
}

void smv_rpc_init(void)
{
	gpr_set_log_function(forward_log);
	/* getaddrinfo() knows all that the host is configured for; c-ares knows DNS, and leaks. */
	setenv("GRPC_DNS_RESOLVER", "native", 0);
	grpc_init();
}

void smv_rpc_shutdown(void)
{
	grpc_shutdown();
}

grpc_arg smv_rpc_int_arg(const char *key, int value)
{
	grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key};

	arg.value.integer = value;
	return arg;
}

char *smv_rpc_uri_text(const struct smv_addr *addr, char *buf, size_t size)
{
	char plain[SMV_ADDR_MAX];

	return smv_percent_encode(smv_addr_format(addr, plain, sizeof(plain)), buf, size);
}

char *smv_rpc_target(const struct smv_addr *addr, char *buf, size_t size)
{
	char text[SMV_RPC_TARGET_MAX];
	unsigned char binary[sizeof(struct in6_addr)];
	const char *scheme = "dns:///";

	if (addr->is_unix)
		scheme = "";
	else if (inet_pton(AF_INET, addr->host, binary) == 1)
		scheme = "ipv4:";
	else if (inet_pton(AF_INET6, addr->host, binary) == 1)
		scheme = "ipv6:";
	snprintf(buf, size, "%s%s", scheme, smv_rpc_uri_text(addr, text, sizeof(text)));
	return buf;
}
