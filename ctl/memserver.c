/* SPDX-License-Identifier: Apache-2.0 */
/* Commands for a memserverd. */
#include "common/cleanup.h"
#include "ctl/ctl.h"
#include "ctl/output.h"

#include <smemv/v1/memserver.pb-c.h>
#include <string.h>

int smv_ctl_fetch_info(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	Smemv__V1__GetServerInfoRequest request = SMEMV__V1__GET_SERVER_INFO_REQUEST__INIT;

	return smv_ctl_call(ctl, &smemv__v1__mem_server__descriptor, "GetServerInfo", &request.base,
		result, err);
}

/* rkeys open memory to whoever reads them on a screen, and help nobody there. */
static void drop_keys(json_t *lease)
{
	json_t *segment;
	size_t i;

	json_array_foreach (json_object_get(lease, "segments"), i, segment) {
		json_object_del(segment, "rkey");
		json_object_del(segment, "remote_addr");
	}
}

/* The list leaves segments out when there are very many; a lease of its own has them. */
static int fetch_segments(const struct smv_ctl *ctl, json_t *lease, struct smv_error *err)
{
	Smemv__V1__GetLeaseRequest request = SMEMV__V1__GET_LEASE_REQUEST__INIT;
	CLEANUP_JSON json_t *full = NULL;
	int rc;

	if (json_array_size(json_object_get(lease, "segments")) > 0)
		return 0;
	request.id = (char *)json_string_value(json_object_get(lease, "id"));
	rc = smv_ctl_call(
		ctl, &smemv__v1__mem_server__descriptor, "GetLease", &request.base, &full, err);
	if (rc == 0)
		json_object_set(lease, "segments", json_object_get(full, "segments"));
	else if (err->code == SMV_NOT_FOUND)
		rc = 0; /* it ended meanwhile */
	return rc;
}

int smv_ctl_fetch_leases(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	Smemv__V1__ListLeasesRequest request = SMEMV__V1__LIST_LEASES_REQUEST__INIT;
	CLEANUP_JSON json_t *list = NULL;
	json_t *lease;
	size_t i;
	int rc = smv_ctl_call(
		ctl, &smemv__v1__mem_server__descriptor, "ListLeases", &request.base, &list, err);

	json_array_foreach (json_object_get(list, "leases"), i, lease) {
		if (rc == 0)
			rc = fetch_segments(ctl, lease, err);
		drop_keys(lease);
	}
	if (rc == 0)
		*result = smv_take(list);
	return rc;
}

void smv_ctl_print_leases(json_t *result)
{
	static const struct smv_column columns[] = {{"ID", "id"}, {"STATE", "state"},
		{"SIZE", "size_bytes"}, {"SEGMENTS", "segments"}, {"EPOCH", "epoch"},
		{"CONNECTIONS", "nr_connections"}, {"PREPARED IN", "prepare_ms"}, {"AGE", "age_ms"},
		{"SINCE RENEWAL", "since_renewal_ms"}, {"EXPIRES IN", "expires_in_ms"},
		{"OWNER", "owner"}};
	json_t *lease;
	size_t i;

	json_array_foreach (json_object_get(result, "leases"), i, lease) {
		if (json_integer_value(json_object_get(lease, "expires_in_ms")) == 0)
			json_object_set_new(lease, "expires_in_ms", json_null());
		/* Somebody ought to look after it. */
		if (strcmp(json_string_value(json_object_get(lease, "state")), "orphaned") == 0)
			json_object_set_new(lease, "state", json_string("ORPHANED"));
	}
	smv_print_table(
		json_object_get(result, "leases"), columns, SMV_ARRAY_SIZE(columns), "no leases");
}

int smv_ctl_fetch_release(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	Smemv__V1__ReleaseLeaseRequest request = SMEMV__V1__RELEASE_LEASE_REQUEST__INIT;
	int rc;

	request.id = (char *)ctl->arg;
	request.unless_held = !ctl->force;
	rc = smv_ctl_call(ctl, &smemv__v1__mem_server__descriptor, "ReleaseLease", &request.base,
		result, err);
	if (rc == 0)
		json_object_set_new(*result, "released", json_string(ctl->arg));
	return rc;
}

void smv_ctl_print_release(json_t *result)
{
	printf("lease %s is released\n", json_string_value(json_object_get(result, "released")));
}
