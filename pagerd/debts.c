/* SPDX-License-Identifier: Apache-2.0 */
#include "pagerd/debts.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/files.h"
#include "common/json.h"
#include "common/log.h"
#include "smemv/v1/memserver.pb-c.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#define AGAIN_NS (5 * SMV_NS_PER_S)
#define TIMEOUT_MS 1000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *debts; /* [{"address", "lease"}]; the first is the next to be tried */
static char path[400];
static uint64_t next_ns;

/* The lock is held. */
static void write_debts(void)
{
	int r = 0;

	if (!path[0])
		return;
	if (json_array_size(debts))
		r = smv_replace_json(AT_FDCWD, path, debts, JSON_INDENT(1), true);
	else
		unlink(path);
	if (r < 0)
		smv_log_warning("cannot write %s: %s", path, strerror(-r));
}

void smv_debts_init(const char *state_dir)
{
	snprintf(path, sizeof(path), "%s/debts.json", state_dir);
	debts = json_load_file(path, 0, NULL);
	if (json_is_array(debts))
		return;
	json_decref(debts);
	debts = json_array();
	if (access(path, F_OK) < 0)
		return;
	smv_log_error("%s cannot be read: leases that it names stay with their sub-hosts as "
		      "orphans (smemvctl leases)",
		path);
	path[0] = '\0';
}

void smv_debts_add(const struct smv_leases *leases, const struct smv_backing *backing)
{
	bool any = false;

	pthread_mutex_lock(&lock);
	for (unsigned int h = 0; h < leases->nr; h++) {
		if (!leases->leases[h].created)
			continue;
		json_array_append_new(
			debts, json_pack("{s:s, s:s}", "address", backing->sub_hosts[h].address,
				       "lease", leases->leases[h].id));
		any = true;
	}
	if (any)
		write_debts();
	pthread_mutex_unlock(&lock);
}

/* True: the sub-host has it no more. */
static bool release(const char *address, const char *id)
{
	Smemv__V1__ReleaseLeaseRequest request = SMEMV__V1__RELEASE_LEASE_REQUEST__INIT;
	ProtobufCMessage *response = NULL;
	struct smv_rpc_client *client;
	struct smv_error err = {0};
	struct smv_addr addr;
	int r;

	if (smv_addr_parse(address, false, &addr, NULL) < 0 ||
		smv_rpc_client_create(&addr, &client) < 0)
		return false;
	request.id = (char *)id;
	r = smv_rpc_client_call(client, &smemv__v1__mem_server__descriptor, "ReleaseLease",
		&request.base, &response, TIMEOUT_MS, false, &err);
	smv_rpc_message_free(response);
	smv_rpc_client_destroy(client);
	if (r == 0)
		smv_log_info("sub-host %s: lease %s is given back at last", address, id);
	return r == 0 || err.code == SMV_NOT_FOUND;
}

void smv_debts_tick(void)
{
	CLEANUP_JSON json_t *debt = NULL;
	bool paid;

	pthread_mutex_lock(&lock);
	if (smv_now_ns() >= next_ns)
		debt = json_incref(json_array_get(debts, 0));
	pthread_mutex_unlock(&lock);
	if (!debt)
		return;
	paid = release(smv_json_field(debt, "address"), smv_json_field(debt, "lease"));
	pthread_mutex_lock(&lock);
	/* Still the first: others have added to the end. */
	json_array_remove(debts, 0);
	if (paid)
		write_debts();
	else
		json_array_append(debts, debt);
	next_ns = smv_now_ns() + AGAIN_NS;
	pthread_mutex_unlock(&lock);
}

size_t smv_debts_count(void)
{
	size_t n;

	pthread_mutex_lock(&lock);
	n = json_array_size(debts);
	pthread_mutex_unlock(&lock);
	return n;
}

void smv_debts_end(void)
{
	pthread_mutex_lock(&lock);
	json_decref(debts);
	debts = NULL;
	pthread_mutex_unlock(&lock);
}
