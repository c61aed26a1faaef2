#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two VMs on one main host, their budgets changed while they run and verify their memory: down, with
# room and without, up again; smemv-pagerd killed at each step of that; all of them under one cap.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
MIB=1048576
# 244 MiB for guest, 290 MiB for guest2, and 26 MiB to shrink into.
SUB_HOST_MIB=280
SCENARIO_ENV[pagerd]="SMEMV_FAULT_DIR=$FAULT_DIR SMEMV_FAULT="
for point in budget-leased budget-held budget-written budget-stopped; do
	SCENARIO_ENV[pagerd]+="$point:arm,"
done


vm_stat() {
	scenario_ctl stats "$1" --json | jq "$2"
}

# set_budget VM SIZE: sets RC; the answer is in $LAB_DIR/budget.json, the message in budget.log.
set_budget() {
	RC=0
	scenario_ctl budget "$1" "$2" --json >"$LAB_DIR/budget.json" 2>"$LAB_DIR/budget.log" || RC=$?
}

answers() {
	if [[ $RC != 0 ]] || ! jq -e "$1" "$LAB_DIR/budget.json" >/dev/null; then
		cat "$LAB_DIR/budget.json" "$LAB_DIR/budget.log" >&2
		return 1
	fi
}

says() {
	grep -q -e "$1" "$LAB_DIR/budget.log" || {
		cat "$LAB_DIR/budget.log" >&2
		return 1
	}
}

# Resident memory may exceed the budget by one batch of 64 pages.
resident_at_most() {
	(($(vm_stat "$1" .resident_bytes) <= $2 * MIB + 64 * 4096))
}

resident_at_least() {
	(($(vm_stat "$1" .resident_bytes) >= $2 * MIB))
}

# stays_at_most VM MIB: for two seconds.
stays_at_most() {
	local i
	for ((i = 0; i < 10; i++)); do
		resident_at_most "$1" "$2" || return
		sleep 0.2
	done
}

nr_leases() {
	local host n=0
	for host in sub1 sub2; do
		n=$((n + $(scenario_sub_host "$host" leases |
			jq '[.leases[] | select(.state != "releasing")] | length')))
	done
	echo "$n"
}

# Each lease at the sub-hosts is one that its VM knows, and the other way round.
no_lease_leaks() {
	local known
	known=$(host_run main cat /run/smemv/pagerd/guest.vm.json /run/smemv/pagerd/guest2.vm.json |
		jq -s '[.[].leases.sub_hosts // [] | .[] | select(.lease != "")] | length')
	[[ $(nr_leases) == "$known" ]]
}

both_run() {
	runs_on main && runs_on main2
}

start_pagerd_again() {
	mv "$LAB_DIR/pagerd.log" "$LAB_DIR/pagerd.$((++starts)).log"
	SCENARIO_PAGERD=("$@")
	scenario_start_pagerd
	scenario_ready pagerd "$LAB_DIR/pagerd.log" ready:
}
starts=0

# kill_pagerd_again OPTIONS...
kill_pagerd_again() {
	kill -KILL "${SCENARIO_PID[pagerd]}"
	wait "${SCENARIO_PID[pagerd]}" 2>/dev/null || :
	start_pagerd_again "$@"
}

# --- two VMs -------------------------------------------------------------------------------------
up
migrate
check "the first VM is migrated" is '.status == "completed"'
check "it runs at the main host" runs_on main

VM_SUFFIX=2 SOURCE_VM=(--vm guest2)
SOURCE_CONSOLE='' MAIN_CONSOLE=''
scenario_start_source
scenario_start_destination
scenario_wait 30 "the second VM's registration" scenario_registered
scenario_wait 60 "the second guest's READY" scenario_guest_ready
kill_pagerd_again --memory 100M
migrate
check "a VM for which the host's memory does not suffice is refused" is \
	'.status == "refused" and .error.code == "host-memory"'
check "with the numbers" is \
	'.error.message | contains("100 MiB") and contains("76.0 MiB") and contains("guest2")'
check "its source runs on" runs_on source2
kill_pagerd_again
migrate --min-budget 30M
check "the second VM is migrated" is '.status == "completed"'
check "both run and verify their memory" both_run
check "what has no cap is granted" test "$(vm_stat guest .effective_budget_bytes)" == \
	"$(vm_stat guest .budget_bytes)"

# --- down ----------------------------------------------------------------------------------------
check "there are two leases for each" test "$(nr_leases)" == 4
slots=$(vm_stat guest .slots)
set_budget guest 20M
check "a budget for which the sub-hosts have no room is refused" test "$RC" != 0
check "with the numbers" says "budget of 20.0 MiB .* needs 300 MiB .* has 244 MiB.*needed 56.0 MiB"
check "nothing was leased for it" test "$(nr_leases)" == 4
check "nothing was changed" test "$(vm_stat guest .budget_bytes)" == $((BUDGET_KIB * 1024))
for size in 15M 257M; do
	set_budget guest "$size"
	check "a budget of $size is refused" test "$RC" != 0
	check "with the limits" says "at least 16.0 MiB and at most 256 MiB"
done
set_budget nobody 20M
check "a VM that is not there is said" says "no VM 'nobody'"

set_budget guest 60M
check "the budget shrinks, and room is leased for it" answers \
	".budget_bytes == 60 * $MIB and .added_room_bytes == 16 * $MIB and .room_bytes == 260 * $MIB"
# At once: it must be written already.
kill_pagerd_again
check "a pager that is killed right after that keeps the budget" test \
	"$(vm_stat guest .budget_bytes)" == $((60 * MIB))
check "the slots are there" test "$(vm_stat guest .slots)" == $((slots + 16 * MIB / 4096))
check "resident memory follows" scenario_wait 20 "a smaller VM" resident_at_most guest 60
check "both run and verify their memory" both_run
check "the budget is kept" stays_at_most guest 60
check "each VM knows its leases" no_lease_leaks

# --- up ------------------------------------------------------------------------------------------
set_budget guest 120M
check "the budget grows" answers ".effective_budget_bytes == 120 * $MIB and .added_room_bytes == 0"
check "resident memory follows" scenario_wait 60 "a larger VM" resident_at_least guest 90
check "both run and verify their memory" both_run
set_budget guest 62M
check "it shrinks into the room that it has" answers ".added_room_bytes == 0"
check "resident memory follows again" scenario_wait 20 "a smaller VM" resident_at_most guest 62

# --- killed at each step -------------------------------------------------------------------------
size=60
for point in budget-leased budget-held budget-written budget-stopped; do
	before=$(vm_stat guest .budget_bytes)
	echo kill >"$(host_path main "$FAULT_DIR/$point.arm")"
	size=$((size - 2))
	set_budget guest "${size}M"
	check "smemv-pagerd is killed at $point" scenario_wait 10 "its end" scenario_gone \
		"${SCENARIO_PID[pagerd]}"
	start_pagerd_again
	check "both VMs go on after $point" both_run
	check "the budget is as it was" test "$(vm_stat guest .budget_bytes)" == "$before"
	check "no lease is left over" scenario_wait 60 "the return of leases" no_lease_leaks
	set_budget guest "${size}M"
	check "the same budget can be had then" answers ".budget_bytes == $size * $MIB"
done
check "it is reached" scenario_wait 20 "a smaller VM" resident_at_most guest "$size"
check "both run and verify their memory" both_run

# --- a cap for both ------------------------------------------------------------------------------
set_budget guest 100M
kill_pagerd_again --memory 110M
shares() {
	scenario_ctl vms --json | jq -e "[.vms | sort_by(.name)[].effective_budget_bytes] ==
		[$1 * $MIB, $2 * $MIB]" >/dev/null
}
check "two that want more than half get half" scenario_wait 20 "shares" shares 55 55
check "the table shows it" grep -q "EFFECTIVE" <(scenario_ctl vms)
both_within() {
	resident_at_most guest "$1" && resident_at_most guest2 "$2"
}
check "both keep to it" scenario_wait 20 "both smaller" both_within 55 55
set_budget guest 54M
check "what one does not want the other gets" scenario_wait 10 "shares" shares 54 56
check "both run and verify their memory" both_run
check "both keep to it" both_within 54 56

check "the second VM ends" scenario_end source-vm2 TERM
check "the second VM ends at the main host" scenario_end main-vm2 TERM
VM_SUFFIX=''
down
