#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main host, for tests/lab/migrate.sh: the pager, and the VM that is migrated to it.
# shellcheck source=guest.sh
. "$(dirname "$(readlink -f "$0")")/guest.sh"

pager=unix:/run/smemv-pagerd.sock

stats() {
	smemvctl --pager "$pager" stats guest >/run/stats.json
	fact "stats.$1" "$(</run/stats.json)"
}

# The first sweep that ends here began at the source.
swept() {
	(($(grep -ac "SWEEP n=" "$LOGS/vm") >= 2))
}

payload_of_a_packet
packets begin
begin pagerd "$SMEMV_BIN/pagerd/smemv-pagerd" --listen "$pager" --listen "$LAB_IP:7000" \
	--data "tcp:$LAB_IP:7001" --data "verbs:$LAB_IP:7002" --insecure --log-level debug
wait_for 60 "the pager is ready" says pagerd ready:
start_vm --pager "$pager" --
wait_for 60 "the destination is registered" says vm "is registered"
meet ready
meet migrated

packets migrated
wait_for 60 "the VM runs here" heartbeat_beyond verified 0
wait_for 240 "the VM has swept all its memory" swept
fact sweeps "$(grep -a 'SWEEP n=' "$LOGS/vm" | jq -R . | jq -sc .)"
meet swept

# Now nobody runs at the sub-hosts, but their memory is there.
meet stopped
stats stopped
verified=$(vm_heartbeat "$LOGS/vm" verified)
sleep 5
wait_for 60 "the VM has gone on" heartbeat_beyond verified $((verified + 50))
fact verified "{\"before\": $verified, \"after\": $(vm_heartbeat "$LOGS/vm" verified)}"
stats observed
meet observed
meet continued
fact mismatches "$(vm_heartbeat "$LOGS/vm" mismatches)"
end vm
# The pager notices by itself that a VM is gone, and gives its leases back.
meet ended
meet returned
end pagerd
