/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What smemvctl doctor knows of a host. Gathering judges nothing; ctl/finding.c judges, and looks
 * at nothing but this.
 */
#ifndef SMV_CTL_HOST_FACTS_H
#define SMV_CTL_HOST_FACTS_H

#include "transport/verbs_inventory.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define SMV_HOST_ADDRESSES 64

struct smv_host_address {
	char netdev[IF_NAMESIZE];
	struct in6_addr addr; /* IPv4: mapped */
	bool is_ipoib;
	uint8_t ipoib_gid[16]; /* of the port that an IP over InfiniBand interface is on */
};

struct smv_host_facts {
	/* --- from files below the root --- */
	char kernel_release[65];
	unsigned int kernel_major, kernel_minor; /* 0.0: not understood */

	uint64_t mem_total_bytes, mem_available_bytes;
	uint64_t huge_total, huge_free; /* pages of 2 MiB */
	char huge_mount[128];           /* of a hugetlbfs; "" for none */

	bool shm_is_tmpfs; /* /dev/shm */
	bool shm_noswap;
	uint64_t shm_size_bytes, shm_free_bytes; /* size 0: without a limit */

	bool has_swap;
	char swap_device[128];
	char swap_max[32]; /* the least memory.swap.max from our cgroup up; "" when there is none */
	bool shmem_is_huge;
	char shmem_enabled[32]; /* "" when the kernel has no such setting */

	bool has_uffd_device;
	int unprivileged_userfaultfd; /* the sysctl; -1 when there is none */
	uint64_t capabilities;        /* effective, one bit for each CAP_... */

	char sysfs_rdma_device[64]; /* the first that the kernel has; "" for none */

	/* --- asked of the running kernel and of programs; errors are 0 or -errno --- */
	unsigned int uid;
	int uffd_error;
	uint64_t uffd_features;
	int pagemap_scan_error;
	int tracking_error;       /* of smv_kernel_check() as a whole */
	char tracking_text[600];  /* its message */
	int process_access_error; /* of looking into another process of this user */
	uint64_t memlock_bytes;   /* UINT64_MAX: unlimited */

	char qemu_path[256];                 /* "" when it is not in PATH */
	int qemu_error;                      /* of running it */
	unsigned int qemu_major, qemu_minor; /* 0.0: not understood */

	struct smv_verbs_inventory rdma;
	unsigned int nr_addresses;
	struct smv_host_address addresses[SMV_HOST_ADDRESSES]; /* global ones, without loopback */
};

/** smv_host_facts_read - fill in what files tell; @root stands in front of /proc, /sys and /dev: ""
 * for this host. */
void smv_host_facts_read(struct smv_host_facts *facts, const char *root);

/** smv_host_facts_ask - fill in the rest: tries the system calls and runs QEMU. Starts child
 * processes, so not in a process that uses gRPC. */
void smv_host_facts_ask(struct smv_host_facts *facts);

#endif
