#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# memserverds are killed and started again under a running VM that pages: it waits and goes on, with
# the right memory. One that comes back with other memory is told, and never read.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
up
declare -A MIB
for host in sub1 sub2; do
	MIB[$host]=$(($(scenario_sub_host "$host" info | jq .capacity_bytes) / 1048576))
done
migrate
check "the migration completes" is '.status == "completed"'
check "the guest runs at the main host" runs_on main

# start_again HOST
start_again() {
	local ip=$SUB1_IP
	[[ $1 == sub1 ]] || ip=$SUB2_IP
	mv "$LAB_DIR/$1.log" "$LAB_DIR/$1.$((++starts)).log"
	scenario_start_sub_host "$1" "$ip" "${MIB[$1]}"
	scenario_ready "$1" "$LAB_DIR/$1.log" ready:
}
starts=0

vm_stat() {
	scenario_stats | jq "$1"
}
pages_in_beyond() {
	(($(vm_stat .page_ins) > $1))
}
trouble_passes() {
	[[ $(vm_stat .trouble) == '""' ]]
}

for round in "sub1 KILL" "sub2 TERM" "sub2 KILL" "sub1 TERM"; do
	read -r host signal <<<"$round"
	incarnation=$(scenario_sub_host "$host" info | jq -r .incarnation)
	scenario_end "$host" "$signal"
	sleep 1
	start_again "$host"
	before=$(vm_stat .page_ins)
	check "$round: it is the same memory" \
		test "$(scenario_sub_host "$host" info | jq -r .incarnation)" = "$incarnation"
	check "$round: the trouble passes" scenario_wait 20 "no trouble" trouble_passes
	check "$round: pages come in again" scenario_wait 20 "page-ins" pages_in_beyond $((before + 500))
	check "$round: the guest runs on" runs_on main
done
scenario_wait 120 "a sweep" has_sweeps main 1
check "a whole sweep finds no mismatch" test "$(last_heartbeat main mismatches)" -eq 0
check "no page is lost" test "$(vm_stat .pages_lost)" -eq 0

# Other memory.
scenario_end sub1 KILL
host_run sub1 rm -rf /dev/shm/smemv
start_again sub1
says_lost() {
	[[ $(vm_stat .trouble) == *"$SUB1_IP:7000 has lost the data of lease"* ]]
}
check "other memory is told" scenario_wait 30 "the trouble" says_lost
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
start_again sub2
check "and gives it back when the sub-host is there again" scenario_wait 30 "no leases" scenario_no_leases
no_debts() {
	! debts_known
}
check "then it forgets it" scenario_wait 10 "no debts" no_debts
down
