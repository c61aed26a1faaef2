#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of a memserverd, and of the destination's QEMU, in round 1: the source runs on, no lease is
# left. And a migration that a person interrupts.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest

SCENARIO_ENV[migrate]="SMEMV_FAULT=round-n:wait:1 SMEMV_FAULT_DIR=$FAULT_DIR"
up

# A person interrupts round 0, which a bandwidth limit makes long.
cancelled_migration() {
	host_exec source "$SMEMV_BIN/migrator/smemv-migrate" run --vm guest --to "$MAIN_IP:7000" \
		--to-vm guest --sub-host "$SUB1_IP:7000" --sub-host "$SUB2_IP:7000" \
		--budget "${BUDGET_KIB}K" --insecure --bandwidth 20M --json \
		>"$LAB_DIR/result.json" 2>>"$LAB_DIR/migrate.log" &
	local pid=$!
	scenario_wait 30 "round 0" grep -q 'round 0' "$LAB_DIR/migrate.log"
	sleep 0.5
	kill -INT "$pid"
	RC=0
	wait "$pid" || RC=$?
}
cancelled_migration
check "interrupted: exit code 3" test "$RC" -eq 3
check "interrupted: the result says cancelled" is '.status == "cancelled" and (.committed | not)'
source_untouched
check "interrupted: no lease is left" scenario_wait 10 "no leases" scenario_no_leases

# fail_in_round_1 WHAT: kills it while smemv-migrate waits at the beginning of round 1.
fail_in_round_1() {
	migrate --max-downtime 1 --on-no-converge stop &
	local migration=$! result
	wait_at source round-n
	kill -KILL "${SCENARIO_PID[$1]}"
	wait "${SCENARIO_PID[$1]}" 2>/dev/null || :
	unset "SCENARIO_PID[$1]"
	go_on source round-n
	wait "$migration" || :
	result=$(field .status)
	check "$1 killed: the migration failed" test "$result" = failed
	check "$1 killed: it was not committed" is '.committed == false and .source_state == "running"'
	source_untouched
	check "$1 killed: no lease is left" scenario_wait 15 "no leases" scenario_no_leases
	rm "$(host_path source "$FAULT_DIR/round-n.reached")" "$(host_path source "$FAULT_DIR/round-n.go")"
}
migrate_exit_code() {
	migrate "$@"
	return "$RC"
}

fail_in_round_1 sub2
rm -rf "$(host_path sub2 /dev/shm/smemv)"
scenario_start_sub_host sub2 "$SUB2_IP" 124
scenario_ready sub2 "$LAB_DIR/sub2.log" ready:

# The destination's QEMU is a child of smemv-run: kill the process itself. Hosts share their pids, so
# it is taken from the pager's file, not searched for.
scenario_registered
run_pid=${SCENARIO_PID[main-vm]}
SCENARIO_PID[main-vm]=$(qemu_in main)
fail_in_round_1 main-vm
wait "$run_pid" 2>/dev/null || :
vms_empty() {
	scenario_ctl vms --json |
		jq -e '.vms | length == 0' >/dev/null
}
check "the pager has forgotten the killed VM" scenario_wait 10 "vms" vms_empty
check "smemv-migrate exits with 4 when nothing waits there" test "$(migrate_exit_code; echo $?)" -eq 4

# Stopped during the switch-over, with the VM paused: its supervisor ends it.
scenario_end main-vm TERM
rm -f "$(host_path main /dev/shm/main.ram)"
scenario_start_destination
scenario_wait 30 "the destination's registration" scenario_registered
SCENARIO_ENV[migrate]="SMEMV_FAULT=pre-switchover:stop"
migrate
check "stopped at the switch-over: the supervisor kills it" test "$RC" -eq 137
source_untouched
check "stopped at the switch-over: no lease is left" scenario_wait 15 "no leases" scenario_no_leases
told_failed() {
	(host_run source "$SMEMV_BIN/migrator/smemv-migrate" recover --json 2>>"$LAB_DIR/migrate.log" || :) |
		jq -e '.outcomes[0] | .status == "failed" and .source_state == "running"' >/dev/null
}
check "stopped at the switch-over: recover tells what became of it" told_failed
down
