#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A guest that gives memory up while it is split: its balloon is inflated and let off again, also while
# smemv-pagerd is killed, and its free pages are reported. What it gave up costs nothing any more, what
# it did not is as it was.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
modules=$("$SMEMV_SOURCE/deploy/guest/kernel.sh" --modules)

# scenario_of OPTIONS: of the balloon.
scenario_of() {
	# shellcheck disable=SC2034 # for scenario.sh
	GUEST_MIB=416 TEST_MIB=96 HOT_MIB=12 BUDGET_KIB=$((64 * 1024))
	# shellcheck disable=SC2034 # for scenario.sh
	GUEST_KERNEL=$(echo "$modules"/vmlinuz-*) GUEST_WORDS="smemv.churn_mib=48 smemv.churn_ms=4000" \
		GUEST_MODULES=("$modules"/lib/modules/*/kernel/drivers/virtio/virtio_balloon.ko*) \
		SCENARIO_QEMU=(-qmp "unix:/tmp/operator.sock,server=on,wait=off"
			-device "virtio-balloon-pci$1")
	up
}

# balloon MIB: what the guest shall have.
balloon() {
	host_run main python3 "$E2E_DIR/qmp.py" /tmp/operator.sock balloon "{\"value\": $(($1 << 20))}" >/dev/null
}
balloon_is() {
	local actual
	# QEMU's monitor is deaf while a discard waits for a pager.
	actual=$(host_run main python3 "$E2E_DIR/qmp.py" /tmp/operator.sock query-balloon 2>/dev/null |
		jq .actual) || return
	[[ $actual == $(($1 << 20)) ]]
}
# vm_stat FIELD: of the VM, now.
vm_stat() {
	scenario_stats 2>/dev/null | jq "$1"
}
pages_with_data() {
	vm_stat '.pages_local + .pages_remote'
}
churns_on() {
	local before
	before=$(last_heartbeat main churns)
	scenario_wait 60 "memory that is taken and freed" heartbeat_beyond main churns $((before + $1))
}
whole_sweep_from_now() {
	scenario_wait 240 "a sweep" has_sweeps main $(($(whole_sweeps main) + 2))
}
nothing_wrong() {
	[[ $(last_heartbeat main mismatches) == 0 ]] && stat_is '.pages_lost == 0 and .trouble == ""'
}

# ---- the balloon ----
scenario_of ''
check "the guest's memory is verified at the source" runs_on source
migrate --on-no-converge stop
check "the migration completes" is '.status == "completed"'
check "the guest runs at the main host" runs_on main

# All of the guest's memory held data once, so what the balloon takes is here or on a sub-host.
data=$(pages_with_data) slots_free=$(vm_stat .slots_free)
balloon $((GUEST_MIB - 144))
check "inflating: discards arrive" scenario_wait 60 "discards" stat_is '.discards > 2000'
check "kill -9 of the pager in the middle of it: the next one serves" restart_pagerd KILL
check "inflating goes on to the end" scenario_wait 240 "the balloon" balloon_is $((GUEST_MIB - 144))
check "and a good deal of it came to the next one" stat_is '.discards > 2000'
data_after=$(pages_with_data) slots_free_after=$(vm_stat .slots_free)
echo "     of $((144 * 256)) pages $((data - data_after)) held data; $((slots_free_after - slots_free)) slots came back"
# Up to 40 MiB of the guest were never touched.
check "the memory is given up, here and on the sub-hosts" test $((data - data_after)) -gt 25000
check "and so are the slots" test $((slots_free_after - slots_free)) -gt 12000
check "the RAM file is within the budget" \
	test "$(du -k "$(host_path main /dev/shm/main.ram)" | cut -f1)" -le $((BUDGET_KIB + 256))
check "the guest runs on" runs_on main
balloon "$GUEST_MIB"
check "letting off" scenario_wait 240 "the balloon" balloon_is "$GUEST_MIB"
check "the guest uses what it got back" churns_on 2
balloon $((GUEST_MIB - 96))
check "inflating again" scenario_wait 240 "the balloon" balloon_is $((GUEST_MIB - 96))
balloon "$GUEST_MIB"
check "letting off again" scenario_wait 240 "the balloon" balloon_is "$GUEST_MIB"
check "a whole sweep after all that" whole_sweep_from_now
check "no mismatch, no page is lost, no trouble" nothing_wrong
down

# ---- free-page reporting ----
once_more
scenario_of ',free-page-reporting=on'
# It reports at the source, too, before, while and after its pages are sent.
migrate --on-no-converge stop
check "reporting: the migration completes" is '.status == "completed"'
check "reporting: the guest runs at the main host" runs_on main
check "reporting: freed pages are discarded" scenario_wait 120 "discards" stat_is '.discards > 5000'
check "reporting: the memory is used again, and given up again" churns_on 2
check "reporting: kill -9 of the pager: the next one serves" restart_pagerd KILL
check "reporting: freed pages are discarded again" scenario_wait 120 "discards" stat_is '.discards > 5000'
check "reporting: the guest runs on" runs_on main
check "reporting: a whole sweep" whole_sweep_from_now
check "reporting: no mismatch, no page is lost, no trouble" nothing_wrong
scenario_stats | jq -c '{discards, pages_zero, pages_local, pages_remote, evictions, page_ins}'
down
