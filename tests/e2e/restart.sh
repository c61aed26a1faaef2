#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# memserverds are killed and started again under a running VM that pages: it waits and goes on, with
# the right memory. One that comes back with other memory is told, and never read.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
up
migrate
check "the migration completes" is '.status == "completed"'
check "the guest runs at the main host" runs_on main

for round in "sub1 KILL" "sub2 TERM" "sub2 KILL" "sub1 TERM"; do
	read -r host signal <<<"$round"
	incarnation=$(scenario_sub_host "$host" info | jq -r .incarnation)
	scenario_end "$host" "$signal"
	sleep 1
	start_sub_host_again "$host"
	before=$(scenario_stats | jq .page_ins)
	check "$round: it is the same memory" \
		test "$(scenario_sub_host "$host" info | jq -r .incarnation)" = "$incarnation"
	check "$round: the trouble passes" scenario_wait 20 "no trouble" stat_is '.trouble == ""'
	check "$round: pages come in again" scenario_wait 20 "page-ins" page_ins_beyond $((before + 500))
	check "$round: the guest runs on" runs_on main
done
scenario_wait 120 "a sweep" has_sweeps main 1
check "a whole sweep finds no mismatch" test "$(last_heartbeat main mismatches)" -eq 0
check "no page is lost" stat_is '.pages_lost == 0'

# Other memory.
scenario_end sub1 KILL
host_run sub1 rm -rf /dev/shm/smemv
start_sub_host_again sub1
check "other memory is told" scenario_wait 30 "the trouble" \
	stat_is ".trouble | contains(\"$SUB1_IP:7000 has lost its memory: \") and contains(\" are gone\")"
sleep 2
check "the guest has seen no wrong page" test "$(last_heartbeat main mismatches)" -eq 0

# Its threads wait: it cannot be asked to power off.
run_pid=${SCENARIO_PID[main-vm]}
SCENARIO_PID[main-vm]=$(qemu_in main)
# And just then a sub-host is away, that cannot be given its lease back.
scenario_end sub2 KILL
scenario_end main-vm KILL
wait "$run_pid" 2>/dev/null || :
debts_known() {
	[[ -n $(host_run main find /run /dev/shm -name debts.json) ]]
}
check "the pager remembers the lease that it could not give back" scenario_wait 20 "debts" debts_known
start_sub_host_again sub2
check "and gives it back when the sub-host is there again" scenario_wait 30 "no leases" scenario_no_leases
no_debts() {
	! debts_known
}
check "then it forgets it" scenario_wait 10 "no debts" no_debts
down
