#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What an operator sees: a memserverd that hangs under a running VM, leases that nobody renews, a pager
# that dies. Each shows as an event, in the metrics and in smemvctl.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
# Pagers renew every 15 s: in between the leases are orphans for a while.
# shellcheck disable=SC2034 # for scenario.sh
SCENARIO_SUB_HOST=(--metrics 127.0.0.1:9102 --orphan-after 2)
# shellcheck disable=SC2034
SCENARIO_PAGERD=(--metrics 127.0.0.1:9101)
up

ctl_sub1() {
	host_run sub1 "$SMEMV_BIN/ctl/smemvctl" --server "$SUB1_IP:7000" --insecure "$@"
}
# metric NAME [LABEL=VALUE...]: of the pager; metric_sub1: of the memserverd there.
metric() {
	host_run main python3 "$E2E_DIR/metrics.py" 9101 "$@"
}
metric_sub1() {
	host_run sub1 python3 "$E2E_DIR/metrics.py" 9102 "$@"
}
# metric_is VALUE NAME [LABEL=VALUE...]
metric_is() {
	[[ $(metric "${@:2}") == "$1" ]]
}
metric_at_least() {
	jq -en "$(metric "${@:2}") >= $1" >/dev/null
}
# has_event NAME [JQ-CONDITION]
has_event() {
	scenario_ctl events guest --json | jq -e --arg name "$1" \
		"[.events[] | select(.name == \$name) | ${2:-.count > 0}] | any" >/dev/null
}
sub1_has_event() {
	ctl_sub1 events --json | jq -e --arg name "$1" 'any(.events[]; .name == $name)' >/dev/null
}
vm_is() {
	scenario_ctl vms --json | jq -e ".vms[0] | $1" >/dev/null
}
shows() {
	"${@:2}" >"$LAB_DIR/shown.text" || return
	grep -q -e "$1" "$LAB_DIR/shown.text" || {
		cat "$LAB_DIR/shown.text" >&2
		return 1
	}
}
refused_with() {
	local status=0
	"${@:3}" >"$LAB_DIR/shown.text" 2>&1 || status=$?
	[[ $status == "$1" ]] && grep -q -e "$2" "$LAB_DIR/shown.text"
}

# ---- before anything happens ----
check "the registration is an event" has_event vm.registered
check "so is a new arena" sub1_has_event arena.new
check "another path is not found" test "$(metric /)" = 404
check "metrics leave the host only with --insecure: smemv-pagerd" \
	refused_with 2 "leaves this host" host_run main "$SMEMV_BIN/pagerd/smemv-pagerd" \
	--listen unix:/tmp/x.sock --data tcp:127.0.0.1:0 --metrics "$MAIN_IP:9103"
check "metrics leave the host only with --insecure: memserverd" \
	refused_with 2 "leaves this host" host_run main "$SMEMV_BIN/memserver/memserverd" --name x \
	--memory 2M --listen unix:/tmp/x.sock --data tcp:127.0.0.1:0 --metrics "$MAIN_IP:9103"

migrate
check "the migration completes" is '.status == "completed"'
check "the guest runs at the main host" runs_on main
check "that it runs is an event" has_event vm.running
check "both sub-hosts are up" metric_is 2.000 smemv_sub_host_up vm=guest
check "it runs, say the metrics" metric_is 1.000 smemv_vm_state vm=guest state=running
check "no page is lost, say the metrics" metric_is 0.000 smemv_vm_pages vm=guest state=lost
check "faults are counted" metric_at_least 1 smemv_vm_fault_latency_seconds_count vm=guest
check "page data is counted" metric_at_least 4096 smemv_sub_host_read_bytes_total vm=guest

# ---- every metric is in the documentation, and Prometheus' own tool has no complaint ----
documented() {
	local name missing=''
	while read -r name; do
		grep -q "\`${name}[\`{]" "$SMEMV_SOURCE/docs/operations.md" || missing+=" $name"
	done < <(sed -n 's/^# TYPE \([^ ]*\) .*/\1/p' "$1")
	[[ -s $1 && -z $missing ]] || {
		echo "not in docs/operations.md:$missing" >&2
		return 1
	}
}
metric >"$LAB_DIR/pagerd.metrics"
metric_sub1 >"$LAB_DIR/sub1.metrics"
for daemon in pagerd sub1; do
	check "the metrics of $daemon are documented" documented "$LAB_DIR/$daemon.metrics"
	if command -v promtool >/dev/null; then
		promtool_is_content() {
			promtool check metrics <"$1"
		}
		check "promtool reads the metrics of $daemon" promtool_is_content "$LAB_DIR/$daemon.metrics"
	fi
done

# ---- leases that nobody renews ----
orphaned_is() {
	[[ $(metric_sub1 smemv_leases state=orphaned) == "$1" ]]
}
check "an orphaned lease shows in the metrics" scenario_wait 20 "an orphan" orphaned_is 1.000
check "in smemvctl" shows ' ORPHANED ' ctl_sub1 leases
check "and as an event" sub1_has_event lease.orphaned
check "the next renewal ends that" scenario_wait 20 "the renewal" sub1_has_event lease.renewed_again

# ---- a memserverd that hangs ----
host_exec main "$SMEMV_BIN/ctl/smemvctl" --pager "unix:$PAGERD_SOCKET" events guest --follow --json \
	>"$LAB_DIR/follow.json" 2>&1 &
follower=$!
kill -STOP "${SCENARIO_PID[sub1]}"
check "vms says that the VM is stalled" scenario_wait 20 "the stall" vm_is '.stalled_for_ms > 0'
check "for people, too" shows ' for [0-9.]* s ' scenario_ctl vms
check "the stall is an event" scenario_wait 20 "vm.stalled" has_event vm.stalled
check "so is the sub-host" scenario_wait 20 "sub_host.down" has_event sub_host.down ".subject == \"$SUB1_IP:7000\""
check "the metrics know the sub-host" scenario_wait 20 "down" metric_is 0.000 smemv_sub_host_up "sub_host=$SUB1_IP:7000"
check "and the other one" metric_is 1.000 smemv_sub_host_up "sub_host=$SUB2_IP:7000"
check "and the stall" scenario_wait 20 "the stall" metric_is 1.000 smemv_vm_stalled vm=guest
check "which has lasted for seconds" metric_at_least 3 smemv_vm_stall_seconds_total vm=guest
kill -CONT "${SCENARIO_PID[sub1]}"
check "the sub-host is up again" scenario_wait 30 "up" metric_is 1.000 smemv_sub_host_up "sub_host=$SUB1_IP:7000"
check "that is an event" has_event sub_host.up ".subject == \"$SUB1_IP:7000\""
check "the VM is served again" scenario_wait 20 "vm.served_again" has_event vm.served_again
check "vms says so" scenario_wait 20 "no stall" vm_is '.stalled_for_ms == 0 and .stall_ms >= 3000'
check "stats: number and maximum" stat_is '.stalls >= 1 and .stall_ms_max >= 3000 and (.stalled | type) == "boolean"'
check "the guest runs on" runs_on main
follow_has() {
	jq -es --arg name "$1" 'any(.[]; .name == $name)' "$LAB_DIR/follow.json" >/dev/null
}
check "who followed has seen the stall" scenario_wait 5 "vm.stalled" follow_has vm.stalled
check "and its end" scenario_wait 5 "vm.served_again" follow_has vm.served_again
kill "$follower"
wait "$follower" 2>/dev/null || :

# ---- a pager that dies ----
end_pagerd KILL
sleep 2
ready=$(grep -c ready: "$LAB_DIR/pagerd.log")
scenario_start_pagerd
check "the next pager serves" scenario_wait 20 "the new pager" ready_again $((ready + 1))
check "the takeover is an event" has_event vm.taken_over
check "the time without a pager counts as a stall" vm_is '.stall_ms >= 2000'
check "the guest runs on after it" runs_on main
scenario_ctl events
down
