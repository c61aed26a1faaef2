/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the shim inside QEMU and its users say to each other: one request, one reply, over a
 * SOCK_SEQPACKET unix socket. Both sides are of one build, so the structs are the format; HELLO
 * compares the version.
 *
 * Discards go the other way, on a socket of their own that TAKE_DISCARDS brings: the shim asks, the
 * pager answers.
 */
#ifndef SMV_VMM_SHIM_PROTO_H
#define SMV_VMM_SHIM_PROTO_H

#include <stdint.h>

#define SMV_SHIM_VERSION 2
#define SMV_SHIM_MAX_RANGES 256
#define SMV_SHIM_MAX_FILES 16

/* smemv-run tells the shim where to listen by this variable; the shim unsets it, and LD_PRELOAD. */
#define SMV_SHIM_SOCKET_ENV "SMEMV_SHIM_SOCKET"

enum smv_shim_op {
	SMV_SHIM_HELLO = 1,   /* reply: value = pid of QEMU */
	SMV_SHIM_GET_UFFD,    /* reply: a userfaultfd of QEMU's mm by SCM_RIGHTS; made at the first call
				 and kept open by QEMU until SMV_SHIM_CLOSE_UFFD, so that faults wait
				 when its user dies. UFFDIO_API is left to the user; value = 1 when
				 the fd was made by this call, 0 when it existed */
	SMV_SHIM_CLOSE_UFFD,  /* QEMU's own copy is closed; also ends TAKE_DISCARDS */
	SMV_SHIM_ZAP,         /* MADV_DONTNEED on the ranges: PTEs go, data stays in the file */
	SMV_SHIM_TAKE_DISCARDS, /* what QEMU punches out of these files is from now on asked for on
				 the socket that comes by SCM_RIGHTS, see smv_shim_discard; it
				 replaces an earlier one. Without files (and socket) QEMU punches
				 by itself again */
};

struct smv_shim_range {
	uint64_t addr;
	uint64_t len;
};

/* A RAM file of which QEMU maps @len bytes from @offset at @addr. */
struct smv_shim_file {
	uint64_t dev; /* of fstat(), which is the same for everybody on this host */
	uint64_t ino;
	uint64_t addr;
	uint64_t len;
	uint64_t offset;
};

/* One of nr_ranges and nr_files is 0, and no more entries than the other says are sent. */
struct smv_shim_request {
	uint32_t version;
	uint32_t op;
	uint32_t nr_ranges;
	uint32_t nr_files;
	union {
		struct smv_shim_range ranges[SMV_SHIM_MAX_RANGES];
		struct smv_shim_file files[SMV_SHIM_MAX_FILES];
	};
};

struct smv_shim_reply {
	int32_t status; /* 0 or -errno */
	uint32_t reserved;
	int64_t value;
};

/*
 * A discard: these bytes shall read as zeros from now on. Whole pages, within what QEMU maps of the
 * file. Answered by a smv_shim_reply when it is done; asked again, perhaps by the successor of a
 * pager that died, when no answer came. One at a time.
 */
struct smv_shim_discard {
	uint32_t file; /* index in the TAKE_DISCARDS request */
	uint32_t reserved;
	uint64_t offset; /* in the file */
	uint64_t len;
};

#endif
