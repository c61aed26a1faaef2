/* SPDX-License-Identifier: Apache-2.0 */
/* Commands for a smemv-pagerd. */
#include "common/cleanup.h"
#include "ctl/ctl.h"
#include "ctl/output.h"

#include <smemv/v1/pager.pb-c.h>

int smv_ctl_fetch_vms(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	Smemv__V1__ListVmsRequest request = SMEMV__V1__LIST_VMS_REQUEST__INIT;

	return smv_ctl_call(
		ctl, &smemv__v1__pager__descriptor, "ListVms", &request.base, result, err);
}

static void add_stalled(json_t *vm)
{
	json_int_t ms = json_integer_value(json_object_get(vm, "stalled_for_ms"));
	char text[40] = "";

	if (ms)
		snprintf(text, sizeof(text), "for %.1f s", (double)ms / 1000);
	json_object_set_new(vm, "stalled", json_string(text));
}

void smv_ctl_print_vms(json_t *result)
{
	static const struct smv_column columns[] = {{"NAME", "name"}, {"STATE", "state"},
		{"RAM", "ram_bytes"}, {"BUDGET", "budget_bytes"},
		{"EFFECTIVE", "effective_budget_bytes"}, {"RESIDENT", "resident_bytes"},
		{"REMOTE", "remote_bytes"}, {"SUB-HOSTS", "sub_hosts"}, {"STALLED", "stalled"},
		{"TROUBLE", "trouble"}};
	json_t *vm;
	size_t i;

	json_array_foreach (json_object_get(result, "vms"), i, vm)
		add_stalled(vm);
	smv_print_table(json_object_get(result, "vms"), columns, SMV_ARRAY_SIZE(columns), "no VMs");
}

int smv_ctl_fetch_budget(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	Smemv__V1__SetBudgetRequest request = SMEMV__V1__SET_BUDGET_REQUEST__INIT;

	request.name = (char *)ctl->arg;
	request.budget_bytes = ctl->size_bytes;
	return smv_ctl_call(
		ctl, &smemv__v1__pager__descriptor, "SetBudget", &request.base, result, err);
}

/* The VM's own fields come first and on the same level as the counters. */
int smv_ctl_fetch_stats(const struct smv_ctl *ctl, json_t **result, struct smv_error *err)
{
	Smemv__V1__GetVmStatsRequest request = SMEMV__V1__GET_VM_STATS_REQUEST__INIT;
	CLEANUP_JSON json_t *stats = NULL;
	CLEANUP_JSON json_t *flat = NULL;
	int rc;

	request.name = (char *)ctl->arg;
	rc = smv_ctl_call(
		ctl, &smemv__v1__pager__descriptor, "GetVmStats", &request.base, &stats, err);
	if (rc < 0)
		return rc;
	flat = json_object();
	if (json_is_object(json_object_get(stats, "info")))
		json_object_update(flat, json_object_get(stats, "info"));
	json_object_del(stats, "info");
	json_object_update(flat, stats);
	*result = smv_take(flat);
	return 0;
}
