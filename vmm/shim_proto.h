/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the shim inside QEMU and its users say to each other: one request, one reply, over a
 * SOCK_SEQPACKET unix socket. Both sides are of one build, so the structs are the format; HELLO
 * compares the version.
 */
#ifndef SMV_VMM_SHIM_PROTO_H
#define SMV_VMM_SHIM_PROTO_H

#include <stdint.h>

#define SMV_SHIM_VERSION 1
#define SMV_SHIM_MAX_RANGES 256

/* smv-run tells the shim where to listen by this variable; the shim unsets it, and LD_PRELOAD. */
#define SMV_SHIM_SOCKET_ENV "SMEMV_SHIM_SOCKET"

enum smv_shim_op {
	SMV_SHIM_HELLO = 1,   /* reply: value = pid of QEMU */
	SMV_SHIM_GET_UFFD,    /* reply: a userfaultfd of QEMU's mm by SCM_RIGHTS; made at the first call
				 and kept open by QEMU until SMV_SHIM_CLOSE_UFFD, so that faults wait
				 when its user dies. UFFDIO_API is left to the user; value = 1 when
				 the fd was made by this call, 0 when it existed */
	SMV_SHIM_CLOSE_UFFD,  /* QEMU's own copy is closed */
	SMV_SHIM_ZAP,         /* MADV_DONTNEED on the ranges: PTEs go, data stays in the file */
};

struct smv_shim_range {
	uint64_t addr;
	uint64_t len;
};

struct smv_shim_request {
	uint32_t version;
	uint32_t op;
	uint32_t nr_ranges;
	uint32_t reserved;
	struct smv_shim_range ranges[SMV_SHIM_MAX_RANGES]; /* only nr_ranges of them are sent */
};

struct smv_shim_reply {
	int32_t status; /* 0 or -errno */
	uint32_t reserved;
	int64_t value;
};

#endif
