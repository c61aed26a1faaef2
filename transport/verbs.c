/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/verbs.h"

#include "common/host_check.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

/* The least that is of use: the staging memory of a pager. */
#define MEMLOCK_MIN (64ull << 20)

static const uint8_t magic[4] = {'S', 'M', 'V', 'V'};

void smv_verbs_put_hello(uint8_t *out, const struct smv_verbs_hello *hello)
{
	memcpy(out, magic, sizeof(magic));
	out[4] = hello->version;
	out[5] = hello->value;
	out[6] = hello->access;
	out[7] = hello->slot;
}

int smv_verbs_parse_hello(const void *in, size_t len, struct smv_verbs_hello *hello)
{
	const uint8_t *p = in;

	if (len < SMV_VERBS_HELLO_SIZE || memcmp(p, magic, sizeof(magic)) != 0)
		return -EPROTO;
	*hello = (struct smv_verbs_hello){p[4], p[5], p[6], p[7]};
	return 0;
}

/* --- whether this host can use it ----------------------------------------------------------- */

static bool has_device(char *why, size_t why_len)
{
	int n = 0;
	struct ibv_device **list = ibv_get_device_list(&n);

	if (list)
		ibv_free_device_list(list);
	if (n > 0)
		return true;
	snprintf(why, why_len, "no RDMA device on this host");
	return false;
}

static bool has_rdma_cm(char *why, size_t why_len)
{
	struct rdma_event_channel *cm = rdma_create_event_channel();

	if (cm) {
		rdma_destroy_event_channel(cm);
		return true;
	}
	snprintf(why, why_len, "/dev/infiniband/rdma_cm: %s (modprobe rdma_ucm)", strerror(errno));
	return false;
}

static bool has_active_port(char *why, size_t why_len)
{
	if (smv_verbs_any_active())
		return true;
	snprintf(why, why_len, "no InfiniBand or RoCE device has an active port");
	return false;
}

/* The kernel does not bound who has CAP_IPC_LOCK. */
static bool may_lock_anything(void)
{
	return smv_host_capabilities("") >> CAP_IPC_LOCK & 1;
}

static bool can_lock(char *why, size_t why_len)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ||
		limit.rlim_cur >= MEMLOCK_MIN || may_lock_anything())
		return true;
	snprintf(why, why_len,
		"RLIMIT_MEMLOCK is %llu KiB, registered memory needs at least %llu: ulimit -l "
		"unlimited, or LimitMEMLOCK=infinity in the unit",
		(unsigned long long)limit.rlim_cur / 1024, MEMLOCK_MIN / 1024);
	return false;
}

static bool verbs_available(char *why, size_t why_len)
{
	return has_device(why, why_len) && has_rdma_cm(why, why_len) &&
	       has_active_port(why, why_len) && can_lock(why, why_len);
}

SMV_TRANSPORT_REGISTER(verbs) = {
	.name = "verbs",
	.pins = true,
	.available = verbs_available,
	.reachable = smv_verbs_reachable,
	.domain_create = smv_verbs_domain_create,
	.domain_destroy = smv_verbs_domain_destroy,
	.domain_stats = smv_verbs_domain_stats,
	.region_max = smv_verbs_region_max,
	.region_register = smv_verbs_region_register,
	.region_deregister = smv_verbs_region_deregister,
	.region_info = smv_verbs_region_info,
	.prepare = smv_verbs_prepare,
	.listen = smv_verbs_listen,
	.listener_close = smv_verbs_listener_close,
	.connect = smv_verbs_connect,
};
