#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# smemv-pagerd dies, or is ended, under a running guest and around the commit, and is started again.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest

pagerd_environment() {
	# shellcheck disable=SC2034,SC2154 # for scenario.sh
	SCENARIO_ENV[pagerd]=$1
}

# trouble_has PATTERN: of the VM, as the pager tells it.
trouble_has() {
	scenario_ctl vms --json |
		jq -e --arg pattern "$1" '.vms[] | select(.name == "guest") | .trouble | test($pattern)' >/dev/null
}
no_mismatch() {
	[[ $(last_heartbeat main mismatches) == 0 ]]
}
verdict_of() {
	jq -r '.[-1] | .state + " " + (.run | tostring)' "$(host_path main /run/smemv/pagerd/verdicts.json)"
}
# migration_dies_at POINT: the pager is killed there, while smemv-migrate runs on by itself.
migration_dies_at() {
	migrate --timeout 20 &
	migration=$!
	wait_at main "$1"
}

# If smemv-migrate gave up before the next pager was there, the verdict is still to be had.
settle_source() {
	host_run source "$SMEMV_BIN/migrator/smemv-migrate" recover --json >"$LAB_DIR/recover.json" \
		2>>"$LAB_DIR/migrate.log" || :
}

# vm_is NAME STATE
vm_is() {
	scenario_ctl vms --json |
		jq -e --arg name "$1" --arg state "$2" \
			'.vms[] | select(.name == $name) | .state == $state' >/dev/null
}

# ---- in the rounds ----
SCENARIO_ENV[migrate]="SMEMV_FAULT=round-n:wait:1 SMEMV_FAULT_DIR=$FAULT_DIR"
up
# A VM that only waits, all the time.
scenario_start second-vm main "$LAB_DIR/second.log" "$SMEMV_BIN/vmm/smemv-run" --vm second \
	--pager "unix:$PAGERD_SOCKET" -- qemu-system-x86_64 -accel tcg -M pc,memory-backend=ram0 -m 64M \
	-object memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/second.ram,size=64M \
	-nodefaults -no-user-config -display none
scenario_wait 20 "the second VM" vm_is second waiting
migrate --max-downtime 1 --on-no-converge stop &
migration=$!
wait_at source round-n
check "killed in the rounds: the next pager starts" restart_pagerd KILL
check "killed in the rounds: the verdict is aborted" test "$(verdict_of)" = "aborted false"
check "killed in the rounds: no lease is left" scenario_wait 15 "no leases" scenario_no_leases
check "killed in the rounds: the VM waits for another migration" vm_is guest waiting
check "killed in the rounds: the second VM waits too" vm_is second waiting
go_on source round-n
wait "$migration" || :
check "killed in the rounds: the migration failed" is '.status == "failed" and (.committed | not)'
source_untouched
SCENARIO_ENV[migrate]=

# ---- under a running guest ----
migrate
check "the migration completes" is '.status == "completed" and .committed'
check "the verdict is written down" test "$(verdict_of)" = "committed true"
check "the guest runs at the main host" runs_on main
# Some load between the restarts, so that pages are on their way.
stalls=''
for round in 1 2 3 4 5; do
	sleep "0.$((RANDOM % 9))"
	check "kill -9 number $round: the next pager serves" restart_pagerd KILL
	stalls+=" $STALL_MS"
	check "kill -9 number $round: pages come in again" scenario_wait 20 "page-ins" page_ins_beyond 200
	check "kill -9 number $round: the guest runs on" runs_on main
done
pager_ended_with() {
	local pid=${SCENARIO_PID[pagerd]} status=0
	kill -TERM "$pid"
	scenario_wait 10 "the pager's end" scenario_gone "$pid" || return
	wait "$pid" || status=$?
	unset "SCENARIO_PID[pagerd]"
	[[ $status == "$1" ]]
}
check "SIGTERM under a running guest: ends at once, with 0" pager_ended_with 0
check "SIGTERM: the log says that the guest waits" grep -q "waits for the next smemv-pagerd" "$LAB_DIR/pagerd.log"
# Nobody serves; the guest's next page from afar makes it wait.
check "SIGTERM: the next pager serves" restart_pagerd TERM
check "SIGTERM: the guest runs on" runs_on main
echo "stall in ms, kill -9 to ready:$stalls"
check "no VM is in trouble" trouble_has '^$'
check "no page is lost" stat_is '.pages_lost == 0'
check "every takeover is in another epoch" test "$(grep -o 'epoch [0-9]*$' "$LAB_DIR/pagerd.log" | sort -u | wc -l)" -ge 6
scenario_wait 240 "a sweep after the restarts" has_sweeps main $(($(whole_sweeps main) + 2))
check "a whole sweep after all that finds no mismatch" no_mismatch

# A takeover that does not fence gets nothing from the sub-hosts, and nothing is made up.
pagerd_environment "SMEMV_FAULT=takeover-skip-fence"
check "without fencing: the pager starts" restart_pagerd KILL
pagerd_environment ""
check "without fencing: no sub-host lets it in, and it says so" \
	scenario_wait 10 "trouble" trouble_has "sub-host"
check "without fencing: no page came in" stat_is '.page_ins == 0'
check "with fencing again: the next pager serves" restart_pagerd KILL
check "with fencing again: the guest runs on" runs_on main

# A page map that is not whole: nothing is served from it.
map=$(host_path main /run/smemv/pagerd/guest.map)
end_pagerd KILL
cp "$map" "$LAB_DIR/map"
truncate -s -8 "$map"
check "truncated map: the pager starts" restart_pagerd KILL
check "truncated map: the guest waits, and trouble says why" trouble_has "page map"
check "truncated map: no page was served" stat_is '.page_ins == 0 and .faults == 0'
cp "$LAB_DIR/map" "$map"
check "the map put back: the VM is served without another start" scenario_wait 30 "the takeover" trouble_has '^$'
check "the map put back: the guest runs on" runs_on main

# Its file names a transport that this pager does not have, as after a downgrade.
vm_file=$(host_path main /run/smemv/pagerd/guest.vm.json)
end_pagerd KILL
cp "$vm_file" "$LAB_DIR/vm.json"
jq '.transport = "pigeon"' "$LAB_DIR/vm.json" >"$vm_file"
check "unknown transport: the pager starts" restart_pagerd KILL
check "unknown transport: the guest waits, and trouble says why" trouble_has "pigeon"
same_leases() {
	cmp <(jq '.leases, .map_id' "$vm_file") <(jq '.leases, .map_id' "$LAB_DIR/vm.json")
}
check "unknown transport: what is written of its leases stays" same_leases
cp "$LAB_DIR/vm.json" "$vm_file"
check "the file put back: the VM is served without another start" scenario_wait 30 "the takeover" trouble_has '^$'
check "the file put back: the guest runs on" runs_on main

# Its process is stopped when the pager starts: nobody answers, later somebody does.
qemu=$(qemu_in main)
kill -STOP "$qemu"
check "QEMU stopped: the pager starts" restart_pagerd KILL
check "QEMU stopped: the VM waits, and trouble says so" trouble_has "not taken over"
kill -CONT "$qemu"
check "QEMU goes on: the VM is served without another start" scenario_wait 30 "the takeover" trouble_has '^$'
check "QEMU goes on: the guest runs on" runs_on main
check "no mismatch in all of this" no_mismatch
check "the second VM has waited through all of it" vm_is second waiting
scenario_end second-vm TERM
down

# ---- around the commit ----
once_more
small_guest
pagerd_environment "SMEMV_FAULT=after-commit:wait SMEMV_FAULT_DIR=$FAULT_DIR"
up
pagerd_environment ""
migration_dies_at after-commit
check "after-commit: nothing runs yet at the main host" test "$(last_heartbeat main n)" = ''
check "after-commit: the record is there, nobody was told" test "$(verdict_of)" = "committed false"
check "killed at after-commit: the next pager serves" restart_pagerd KILL
check "killed at after-commit: the guest runs at the main host" runs_on main
check "killed at after-commit: the verdict stays" test "$(verdict_of)" = "committed true"
check "killed at after-commit: the source is silent" silent_on source
wait "$migration" || :
echo "smemv-migrate says: $(field '.status + ", " + .source_state')"
settle_source
# QMP has one client at a time, the pager: ask while there is none.
end_pagerd KILL
capability_is_off() {
	qmp main query-migrate-capabilities |
		jq -e '[.[] | select(.capability == "x-ignore-shared" and .state)] | length == 0' >/dev/null
}
check "killed at after-commit: x-ignore-shared was put back" capability_is_off
check "and again: the next pager serves" restart_pagerd KILL
check "and again: the guest runs on" runs_on main
down

once_more
small_guest
pagerd_environment "SMEMV_FAULT=before-commit:wait SMEMV_FAULT_DIR=$FAULT_DIR"
up
pagerd_environment ""
migration_dies_at before-commit
check "before-commit: the record is open" test "$(verdict_of)" = "open false"
check "killed at before-commit: the next pager starts" restart_pagerd KILL
check "killed at before-commit: the verdict is aborted" test "$(verdict_of)" = "aborted false"
check "killed at before-commit: no lease is left" scenario_wait 15 "no leases" scenario_no_leases
check "killed at before-commit: nothing has run at the main host" test "$(last_heartbeat main n)" = ''
wait "$migration" || :
echo "smemv-migrate says: $(field '.status + ", " + .source_state')"
settle_source
check "killed at before-commit: the source runs on and verifies its memory" runs_on source
down

# ---- QEMU ends between the record and its first instruction ----
once_more
small_guest
pagerd_environment "SMEMV_FAULT=after-commit:wait SMEMV_FAULT_DIR=$FAULT_DIR"
up
migration_dies_at after-commit
kill -KILL "$(qemu_in main)"
wait "${SCENARIO_PID[main-vm]}" 2>/dev/null || :
unset "SCENARIO_PID[main-vm]"
go_on main after-commit
wait "$migration" || :
check "QEMU killed before cont: the migration is aborted" \
	is '.status == "failed" and (.committed | not) and .source_state == "running"'
check "QEMU killed before cont: the verdict is aborted" test "$(verdict_of)" = "aborted false"
source_untouched
check "QEMU killed before cont: the pager has noticed its end" scenario_wait 10 "no leases" scenario_no_leases
down
