#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The sub-hosts of tests/lab/takeover.sh: two memserverds, and two that do not fence.
BARRIERS=(ready killed over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

# lend NAME MIB PORT
lend() {
	begin "$1" "$SMEMV_BIN/memserver/memserverd" --name "$1" --memory "$2M" --hugepages \
		--listen "$LAB_IP:$3" --data "verbs:$LAB_IP:$(($3 + 1))" --insecure
	wait_for 60 "$1 is ready" says "$1" ready:
}

# Of the CM's own kind there is always one.
no_connections() {
	! rdma resource show qp | grep -q "type RC"
}

huge_pages 24
lend one 4 7000
lend two 8 7010
SMEMV_FAULT=old-writers-stay lend unfenced-one 4 7020
SMEMV_FAULT=old-writers-stay lend unfenced-two 8 7030
payload_of_a_packet
packets begin
meet ready
barrier killed 600
packets killed
wait_for 10 "all connections have ended" no_connections
fact left "$(rdma resource show qp | grep -c "type RC" || :)"
for name in one two unfenced-one unfenced-two; do
	end "$name"
done
barrier over 600
