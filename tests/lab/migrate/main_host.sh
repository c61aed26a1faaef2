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

# start_pager NAME: all of them are the same pager, one after the other.
start_pager() {
	begin "$1" "$SMEMV_BIN/pagerd/smemv-pagerd" --listen "$pager" --listen "$LAB_IP:7000" \
		--data "tcp:$LAB_IP:7001" --data "verbs:$LAB_IP:7002" --insecure --log-level debug
	wait_for 120 "$1 is ready" says "$1" ready:
}

# goes_on NAME PAGES: the VM verifies so many more, as a fact.
goes_on() {
	local before
	before=$(vm_heartbeat "$LOGS/vm" verified)
	wait_for 200 "the VM goes on: $1" heartbeat_beyond verified $((before + $2))
	fact "$1" "{\"before\": $before, \"after\": $(vm_heartbeat "$LOGS/vm" verified)}"
}

payload_of_a_packet
packets begin
start_pager pagerd
start_vm --pager "$pager" --
wait_for 60 "the destination is registered" says vm "is registered"
meet ready
meet migrated

packets migrated
wait_for 60 "the VM runs here" heartbeat_beyond verified 0
wait_for 500 "the VM has swept all its memory" swept
fact sweeps "$(grep -a 'SWEEP n=' "$LOGS/vm" | jq -R . | jq -sc .)"
meet swept

# Now nobody runs at the sub-hosts, but their memory is there.
meet stopped
stats stopped
wait_for 120 "the pager's alarm" says pagerd "lease.not_renewed: .*lab3"
goes_on while_stopped 50
stats observed
meet observed
meet continued

# The pager is killed; then both memserverds are.
kill_now pagerd
start_pager second
goes_on taken_over 200
stats taken_over
fact vms "$(smemvctl --pager "$pager" vms)"
meet taken_over
meet restarted
goes_on restarted 200
stats restarted
fact mismatches "$(vm_heartbeat "$LOGS/vm" mismatches)"
end vm
# The pager notices by itself that a VM is gone, and gives its leases back.
meet ended
meet returned
end second
