#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sub-host comes back with other memory under a split VM, once for each loss policy: with kill the
# VM ends and the other sub-host gets its memory back, with poison QEMU (under TCG) gets SIGBUS, with
# stall the VM waits. In none the guest sees a wrong page.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest

vms() {
	scenario_ctl vms --json
}
vm_says() {
	vms | jq -e ".vms[0] | $1" >/dev/null
}
no_vms() {
	vms | jq -e '.vms | length == 0' >/dev/null
}
log_says() {
	grep -qE -e "$1" "$LAB_DIR/pagerd.log"
}
process_gone() {
	scenario_gone "$1"
}

# split POLICY [OPTIONS...]: a VM of that policy runs at the main host.
split() {
	local policy=$1
	up
	check "$policy: the plan says what it means" plan_says "$policy"
	migrate "${@:2}"
	check "$policy: the migration completes" is '.status == "completed"'
	check "$policy: the guest runs at the main host" runs_on main
	check "$policy: smemvctl shows the policy" vm_says ".loss_policy == \"$policy\""
	QEMU_PID=$(qemu_in main)
}

declare -A MEANING=([stall]='stalls it until that host is back' [poison]='gets SIGBUS'
	[kill]='ends the VM when it touches a page')
plan_says() {
	host_run source "$SMEMV_BIN/migrator/smemv-migrate" plan "${SOURCE_VM[@]}" --to "$MAIN_IP:7000" \
		--to-vm guest --sub-host "$SUB1_IP:7000" --sub-host "$SUB2_IP:7000" \
		--budget "${BUDGET_KIB}K" --insecure --json --on-loss "$1" 2>>"$LAB_DIR/migrate.log" |
		jq -e --arg text "${MEANING[$1]}" '.feasible and (.failures[0] | contains($text))' >/dev/null
}

# lose_memory: sub1's memserverd ends, its memory goes, another one starts.
lose_memory() {
	local mib
	mib=$(($(scenario_sub_host sub1 info | jq .capacity_bytes) / 1048576))
	scenario_end sub1 KILL
	host_run sub1 rm -rf /dev/shm/smemv
	mv "$LAB_DIR/sub1.log" "$LAB_DIR/sub1.1.log"
	scenario_start_sub_host sub1 "$SUB1_IP" "$mib"
	scenario_ready sub1 "$LAB_DIR/sub1.log" ready:
}

# ended POLICY: QEMU is gone, and what belonged to it.
ended() {
	check "$1: QEMU ends" scenario_wait 60 "QEMU's end" process_gone "$QEMU_PID"
	check "$1: the pager has forgotten the VM" scenario_wait 20 "no VM" no_vms
	check "$1: the other sub-host has its memory back" scenario_wait 20 "no leases" scenario_no_leases
	check "$1: the guest has seen no wrong page" test "$(last_heartbeat main mismatches)" -eq 0
	check "$1: the log names page, slot and sub-host of what is lost" \
		log_says "LOST: page [0-9]+, slot [0-9]+ at sub-host $SUB1_IP:7000: .*loss policy: $1"
}

split kill --on-loss kill
lose_memory
ended kill
check "kill: the log says why it was killed" \
	log_says "VM 'guest' is killed, .*: page [0-9]+, slot [0-9]+ at sub-host $SUB1_IP:7000: "
told() {
	scenario_ctl events guest --json | jq -e "[.events[] | select(.name == \"$1\")] | length == 1" >/dev/null
}
check "kill: it is an event" told vm.killed
down

once_more
split poison --on-loss poison
lose_memory
ended poison
qemu_got_sigbus() {
	local status=0
	wait "${SCENARIO_PID[main-vm]}" || status=$?
	unset 'SCENARIO_PID[main-vm]'
	echo "smemv-run: $status"
	((status == 128 + 7))
}
check "poison: under TCG it was SIGBUS that ended QEMU" qemu_got_sigbus
down

once_more
# The default.
split stall
lose_memory
says_how_many() {
	vm_says "(.trouble | test(\"^sub-host $SUB1_IP:7000 has lost its memory: [1-9][0-9]* pages .* are gone\"))"
}
check "stall: smemvctl says what is gone" scenario_wait 30 "the trouble" says_how_many
# Longer than the other policies wait for a confirmation.
sleep 3
sweeps=$(whole_sweeps main)
sleep 8
check "stall: what needs a page that is gone waits" test "$(whole_sweeps main)" -eq "$sweeps"
check "stall: QEMU lives" kill -0 "$QEMU_PID"
check "stall: no page was given up" test "$(scenario_stats | jq .pages_lost)" -eq 0
check "stall: the guest has seen no wrong page" test "$(last_heartbeat main mismatches)" -eq 0
# It cannot be asked to power off.
kill -KILL "$QEMU_PID"
scenario_wait 20 "QEMU's end" process_gone "$QEMU_PID"
down
