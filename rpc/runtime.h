/* SPDX-License-Identifier: Apache-2.0 */
/* What server and client share of gRPC: its tags, and how it spells an address. */
#ifndef SMV_RPC_RUNTIME_H
#define SMV_RPC_RUNTIME_H

#include "common/addr.h"

#include <grpc/grpc.h>
#include <stdbool.h>
#include <stddef.h>

/* What a completion queue hands back: whom to tell that an operation is done. */
struct smv_rpc_tag {
	void (*done)(void *owner, bool ok);
	void *owner;
};

/* ThreadSanitizer cannot see into Debian's libgrpc: the queue's ordering must be told to it. */
#ifdef __has_feature
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#define SMV_RPC_TAG_POSTED(tag) __tsan_release(tag)
#define SMV_RPC_TAG_TAKEN(tag) __tsan_acquire(tag)
#else
#define SMV_RPC_TAG_POSTED(tag) ((void)(tag))
#define SMV_RPC_TAG_TAKEN(tag) ((void)(tag))
#endif

/* The longest address: every byte of a host percent-encoded, scheme, brackets, port. */
#define SMV_RPC_TARGET_MAX (3 * SMV_ADDR_MAX + 32)

/** smv_rpc_uri_text - "HOST:PORT", "[V6]:PORT" or "unix:PATH" as a server listens on, with what a
 * URI cannot hold percent-encoded. */
char *smv_rpc_uri_text(const struct smv_addr *addr, char *buf, size_t size);

/** smv_rpc_target - the URI that a client connects to; no host is ever taken for a scheme. */
char *smv_rpc_target(const struct smv_addr *addr, char *buf, size_t size);

/** smv_rpc_int_arg - one channel argument. */
grpc_arg smv_rpc_int_arg(const char *key, int value);

#endif
