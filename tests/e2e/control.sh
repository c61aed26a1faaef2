#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What an operator has in hand: a plan beforehand, the status from another terminal, and what happens
# when the VM dirties its memory faster than the link carries it away.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
GUEST_MIB=160 TEST_MIB=88 HOT_MIB=16 HOT_PERIOD_MS=200 BUDGET_KIB=$((48 * 1024))
# The hot pages are rewritten at 80 MiB/s, the link carries 40.
SLOW=(--bandwidth 40M)
# The operator's own monitor; the pager keeps the one that smemv-run made.
SCENARIO_QEMU=(-qmp "unix:/tmp/operator.sock,server=on,wait=off" -device virtio-serial-pci)
up

smemv_migrate() {
	host_run source "$SMEMV_BIN/migrator/smemv-migrate" "$@"
}
target=(--vm guest --to "$MAIN_IP:7000" --to-vm guest --sub-host "$SUB1_IP:7000" --sub-host "$SUB2_IP:7000"
	--budget "${BUDGET_KIB}K" --insecure)

# ---- plan ----

PLAN=$LAB_DIR/plan.json
plan() {
	RC=0
	smemv_migrate plan "${target[@]}" --json "$@" >"$PLAN" 2>>"$LAB_DIR/migrate.log" || RC=$?
}
plan_is() {
	jq -es "length == 1 and (.[0] | $1)" "$PLAN" >/dev/null || {
		jq -c . "$PLAN" >&2
		return 1
	}
}
plan
jq -c '{pages, expected, rate}' "$PLAN"
check "plan: exit code 0" test "$RC" -eq 0
check "plan: nothing stands in the way" plan_is '.feasible and .refusals == []'
check "plan: the sub-hosts' shares add up to the room" \
	plan_is '([.sub_hosts[].share_bytes] | add) == .room_bytes and .room_bytes > 0'
check "plan: hot, cold and zero pages add up to the RAM" \
	plan_is ".pages.hot + .pages.cold + .pages.zero == $((GUEST_MIB * 256))"
check "plan: time, downtime, dirty rate and faults are told" \
	plan_is '.expected | .total_time_ms > 0 and .downtime_ms > 0 and .dirty_bytes_per_s > 0 and .faults_per_s >= 0'
check "plan: it names the sub-hosts whose loss would hurt" \
	plan_is ".failures[0] | test(\"$SUB1_IP\") and test(\"$SUB2_IP\") and test(\"stalls\")"
check "plan: nothing is leased" scenario_no_leases
source_untouched
smemv_migrate plan "${target[@]}" --budget 1M --sub-host 10.77.0.9:7000 >"$LAB_DIR/plan.text" || :
cat "$LAB_DIR/plan.text"
plan --budget 1M --sub-host 10.77.0.9:7000 --to-vm guest
check "plan: refused, exit code 4" test "$RC" -eq 4
check "plan: all refusals at once, each with a remedy" \
	plan_is '([.refusals[].code] | index("budget") != null) and
		([.refusals[].where] | index("10.77.0.9:7000") != null) and all(.refusals[]; .hint != "")'
check "plan: for people, too" grep -q 'at least 16 MiB' "$LAB_DIR/plan.text"

# ---- status ----

host_exec source "$SMEMV_BIN/migrator/smemv-migrate" run "${target[@]}" "${SLOW[@]}" --json \
	>"$LAB_DIR/result.json" 2>>"$LAB_DIR/migrate.log" &
migration=$!
status_is() {
	smemv_migrate status --json >"$LAB_DIR/status.json" &&
		jq -e ".migrations | length == 1 and (.[0] | $1)" "$LAB_DIR/status.json" >/dev/null
}
check "status: the phase, what is left and the rate" scenario_wait 30 "rounds" status_is \
	'.state == "running" and .vm == "guest" and .progress.phase == "rounds" and .progress.remaining_bytes > 0 and .progress.bytes_per_s > 0'
smemv_migrate status
RC=0
smemv_migrate run "${target[@]}" --json >"$LAB_DIR/second.json" 2>>"$LAB_DIR/migrate.log" || RC=$?
check "a second migration of the same VM is refused" test "$RC" -eq 4
check "and says why" jq -e '.error.code == "migration-active"' "$LAB_DIR/second.json"
wait "$migration" || RC=$?

# ---- convergence ----

check "no convergence: the migration fails, long before the last round" \
	is '.status == "failed" and .error.code == "no-converge" and (.rounds | length < 15)'
check "no convergence: each round tells the expected downtime" \
	is '.rounds[1:] | length > 2 and all(.[]; .expected_downtime_ms > 300)'
source_untouched
check "no convergence: no lease is left" scenario_wait 15 "no leases" scenario_no_leases
check "no convergence: no journal is left" test -z "$(smemv_migrate status --json | jq -r '.migrations[].migration_id')"
check "the log has a line for each round" \
	test "$(grep -c 'info smemv-migrate: round [0-9]*: [0-9]* pages, .*/s$' "$LAB_DIR/migrate.log")" -ge 4

# ---- on a terminal ----

host_exec source script -qec \
	"$SMEMV_BIN/migrator/smemv-migrate run ${target[*]} ${SLOW[*]}" /dev/null >"$LAB_DIR/terminal" </dev/null &
terminal=$!
check "terminal: the second one begins" scenario_wait 30 "rounds" status_is '.progress.bytes_per_s > 0'
sleep 1
RC2=0
smemv_migrate cancel --vm guest >"$LAB_DIR/cancel.text" || RC2=$?
check "terminal: cancel says that it is cancelled" grep -q 'cancelled; the source is .running' "$LAB_DIR/cancel.text"
check "terminal: its exit status, too" test "$RC2" -eq 0
wait "$terminal" || :
check "terminal: there is a bar with round, what is left and the rate" \
	grep -aqE 'rounds round 0 \[#+\.*\] [0-9.]+ [KMG]iB left, [0-9.]+ [KMG]iB/s' "$LAB_DIR/terminal"

host_exec source python3 "$E2E_DIR/stopped_terminal.py" \
	"$SMEMV_BIN/migrator/smemv-migrate" run "${target[@]}" "${SLOW[@]}" </dev/null &
terminal=$!
check "stopped terminal: the migration begins" scenario_wait 30 "rounds" status_is '.progress.bytes_per_s > 0'
beat=$(jq '.migrations[0].progress.beat' "$LAB_DIR/status.json")
sleep 1
check "stopped terminal: it goes on" status_is ".progress.beat > $beat"
check "stopped terminal: it can be cancelled" smemv_migrate cancel --vm guest
kill -USR1 "$terminal"
RC2=0
wait "$terminal" || RC2=$?
check "stopped terminal: it ends when it can say so" test "$RC2" -eq 3

# Slowed down enough, the VM dirties less than the link carries.
migrate "${SLOW[@]}" --max-throttle 99 --max-downtime 350
check "throttled: the migration completes" is '.status == "completed"'
check "throttled: the VM was slowed down, step by step" \
	is '[.rounds[].throttle_percent] | .[0] == 0 and max >= 20 and . == sort'
check "throttled: the VM runs on the main host" runs_on main
once_more

up
# ---- what must not happen to a VM that is about to be stopped ----

operator() {
	host_run "$1" python3 "$E2E_DIR/qmp.py" /tmp/operator.sock "${@:2}"
}
is_paused() {
	operator source query-status | jq -e '.status == "paused"' >/dev/null
}
host_exec source "$SMEMV_BIN/migrator/smemv-migrate" run "${target[@]}" "${SLOW[@]}" --on-no-converge stop --json \
	>"$LAB_DIR/result.json" 2>>"$LAB_DIR/migrate.log" &
migration=$!
check "stopped by its operator: the rounds have begun" scenario_wait 30 "rounds" status_is '.progress.bytes_per_s > 0'
operator source stop >/dev/null
wait "$migration" || :
check "stopped by its operator: it is not migrated" is '.status == "failed" and .error.code == "not-running"'
check "stopped by its operator: it stays stopped" is_paused
operator source cont >/dev/null
source_untouched
# An incoming migration that fails ends its QEMU.
another_destination() {
	scenario_wait 20 "the end of the destination" vm_is_gone
	rm -f "$(host_path main /dev/shm/main.ram)"
	scenario_start_destination
	scenario_wait 20 "another destination" scenario_registered
}
vm_is_gone() {
	! scenario_registered
}
another_destination

# By fault point, as a virtio-serial device would when a client of its sends something.
SCENARIO_ENV[migrate]="SMEMV_FAULT=write-when-stopped"
migrate "${SLOW[@]}" --on-no-converge stop
SCENARIO_ENV[migrate]=
check "written to while it stood still: the migration fails" \
	is '.status == "failed" and .error.code == "written-when-stopped" and (.committed | not)'
source_untouched
another_destination

migrate "${SLOW[@]}" --on-no-converge stop
check "no convergence, stop: the migration completes" is '.status == "completed" and .downtime_ms > 300'
check "no convergence, stop: the VM runs on the main host" runs_on main
check "no convergence, stop: memory is verified" scenario_wait 120 "a sweep" has_sweeps main 1
check "no convergence, stop: no mismatch" test "$(last_heartbeat main mismatches)" -eq 0

# ---- a VM that is split is no source ----

PLAN=$LAB_DIR/plan.json RC=0
host_run main "$SMEMV_BIN/migrator/smemv-migrate" plan --pid "$(qemu_in main)" --qmp /tmp/operator.sock \
	"${target[@]:2}" --json >"$PLAN" 2>>"$LAB_DIR/migrate.log" || RC=$?
check "a VM that is split: the plan refuses it" test "$RC" -eq 4
check "a VM that is split: and says so" plan_is '[.refusals[].code] | index("vm-is-split") != null'
check "a VM that is split: it runs on" runs_on main
check "a VM that is split: no mismatch" test "$(last_heartbeat main mismatches)" -eq 0

# ---- a device that is plugged while the VM is split ----

in_trouble() {
	scenario_ctl vms --json |
		jq -e '.vms[0].trouble | test("a edu ")' >/dev/null
}
host_run main python3 "$E2E_DIR/qmp.py" /tmp/operator.sock device_add \
	'{"driver": "edu", "id": "lesson0"}' >/dev/null
check "a device that is plugged in and not allowed is an alarm" scenario_wait 60 "the alarm" in_trouble
check "the log says what is at risk" grep -q 'memory is at risk: .* a edu ' "$LAB_DIR/pagerd.log"
down
