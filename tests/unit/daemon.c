/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include "smemv/v1/memserver.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void wait_ready(int fd)
{
	char log[8000];
	size_t n = 0;
	ssize_t got;

	while (n < sizeof(log) - 1 && (got = read(fd, log + n, sizeof(log) - 1 - n)) > 0) {
		n += (size_t)got;
		log[n] = '\0';
		if (strstr(log, "ready: "))
			return;
	}
	fprintf(stderr, "the daemon did not start: %.*s\n", (int)n, log);
	abort();
}

unsigned int leases_at(struct smv_rpc_client *memserverd)
{
	Smemv__V1__ListLeasesRequest request = SMEMV__V1__LIST_LEASES_REQUEST__INIT;
	Smemv__V1__ListLeasesResponse *list = NULL;
	struct smv_error err = {0};
	unsigned int nr = 0;

	if (smv_rpc_client_call(memserverd, &smemv__v1__mem_server__descriptor, "ListLeases",
		    &request.base, (ProtobufCMessage **)&list, 5000, true, &err) < 0) {
		fprintf(stderr, "%s\n", err.message);
		abort();
	}
	for (size_t i = 0; i < list->n_leases; i++)
		nr += list->leases[i]->state != SMEMV__V1__LEASE_STATE__LEASE_STATE_RELEASING;
	smv_rpc_message_free(&list->base);
	return nr;
}
