#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A split-migrated guest that verifies its memory lives through random kills, stops, cuts, changes of
# its budget and discards, one after another and sometimes two at once.
set -euo pipefail

usage() {
	cat <<-'EOF'
		usage: tests/soak/soak.sh [--minutes N] [--seed N]

		Needs a build with fault points in build/debug, or where SMEMV_BIN says; root; Linux 6.7 or later.

		  --minutes N   how long (default 4); hours are fine
		  --seed N      of the choices, which the first line prints (default: a random one)
		  --help        this text

		Exit status: 0 no page was wrong or lost and the guest runs on, 1 not so, 2 bad usage.
	EOF
}

minutes=4 seed=$RANDOM
while (($#)); do
	case $1 in
	--minutes | --seed)
		[[ ${2-} =~ ^[1-9][0-9]*$ ]] || { echo "soak: $1 needs a number above 0" >&2; exit 2; }
		declare "${1#--}=$2"
		shift
		;;
	--help | -h) usage; exit 0 ;;
	*) echo "soak: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
	esac
	shift
done
# shellcheck source=../e2e/lib.sh
. "$(dirname "$(dirname "$(readlink -f "$0")")")/e2e/lib.sh"
echo "     $minutes minutes, seed $seed"
RANDOM=$seed

# pick LOW HIGH: a random number into PICK. Not by $(...): a subshell's choices would not count.
pick() {
	PICK=$(($1 + RANDOM % ($2 - $1 + 1)))
}
pick_sub_host() {
	pick 1 2
	HOST=sub$PICK
}
# nap MILLISECONDS
nap() {
	sleep "$(($1 / 1000)).$(printf %03d $(($1 % 1000)))"
}

# ---- what happens ----

# A pager counts from its own start.
discarded=0
count_discards() {
	local more
	more=$(scenario_stats | jq .discards) || return
	discarded=$((discarded + more))
}
# Ends by SIGNAL, is away for PICK ms, comes back with the same command line.
pagerd_away() {
	local ready
	count_discards
	ready=$(grep -c ready: "$LAB_DIR/pagerd.log") || :
	end_pagerd "$1"
	nap "$PICK"
	scenario_start_pagerd
	scenario_wait 60 "the next smemv-pagerd" ready_again $((ready + 1))
}
restart_memserverd() {
	scenario_end "$HOST" "$1"
	nap "$PICK"
	start_sub_host_again "$HOST"
}
stop() {
	local pid=${SCENARIO_PID[$1]}
	kill -STOP "$pid"
	nap "$PICK"
	kill -CONT "$pid"
}
# Both directions, noticed by nobody but for the silence: the bridge's port goes.
cut_off() {
	nsenter -t "$LAB_BRIDGE" -n ip link set dev "$1" down
	nap "$PICK"
	nsenter -t "$LAB_BRIDGE" -n ip link set dev "$1" up
}

kill_pagerd() {
	pick 0 1000
	pagerd_away KILL
}
upgrade_pagerd() {
	pick 0 500
	pagerd_away TERM
}
stop_pagerd() {
	pick 100 3000
	stop pagerd
}
kill_memserverd() {
	pick_sub_host
	pick 0 1500
	restart_memserverd KILL
}
upgrade_memserverd() {
	pick_sub_host
	pick 0 1000
	restart_memserverd TERM
}
stop_memserverd() {
	pick_sub_host
	pick 100 7000
	stop "$HOST"
}
cut_briefly() {
	pick_sub_host
	pick 100 2000
	cut_off "$HOST"
}
# Longer than any deadline and any heartbeat.
cut_for_long() {
	pick_sub_host
	pick 8000 14000
	cut_off "$HOST"
}
cut_main_host() {
	pick 100 7000
	cut_off main
}
# From less than the sub-hosts have room for, which is refused, to half as much again.
change_budget() {
	pick 3 6
	scenario_ctl \
		budget guest "$((BUDGET_KIB * PICK / 4))K" >>"$LAB_DIR/ctl.log" 2>&1 || refused=$((refused + 1))
}
# QEMU's monitor is deaf while its main thread waits for a pager.
inflate_balloon() {
	pick 0 6
	timeout 20 nsenter -t "$(host_pid main)" -n -m python3 "$E2E_DIR/qmp.py" /tmp/operator.sock balloon \
		"{\"value\": $(((GUEST_MIB - 24 * PICK) << 20))}" >>"$LAB_DIR/ctl.log" 2>&1 || refused=$((refused + 1))
}

ACTIONS=(kill_pagerd kill_pagerd upgrade_pagerd stop_pagerd kill_memserverd kill_memserverd
	upgrade_memserverd stop_memserverd cut_briefly cut_for_long cut_main_host
	change_budget change_budget inflate_balloon inflate_balloon)

# ---- the run ----

goes_on() {
	local before
	before=$(last_heartbeat main n)
	scenario_wait 90 "the guest's heartbeat" heartbeat_beyond main n $((before + 20)) &&
		[[ $(last_heartbeat main mismatches) == 0 ]]
}
no_trouble() {
	[[ $(scenario_stats | jq -r .trouble) == "" ]]
}

# Free pages are reported all the time, as the guest takes and gives up memory.
modules=$("$SMEMV_SOURCE/deploy/guest/kernel.sh" --modules)
# shellcheck disable=SC2034 # for scenario.sh
GUEST_MIB=416 TEST_MIB=96 HOT_MIB=12 BUDGET_KIB=$((64 * 1024)) \
	GUEST_KERNEL=$(echo "$modules"/vmlinuz-*) GUEST_WORDS="smemv.churn_mib=48 smemv.churn_ms=4000" \
	GUEST_MODULES=("$modules"/lib/modules/*/kernel/drivers/virtio/virtio_balloon.ko*) \
	SCENARIO_QEMU=(-qmp "unix:/tmp/operator.sock,server=on,wait=off"
		-device "virtio-balloon-pci,free-page-reporting=on")
up
migrate
check "the migration completes" is '.status == "completed"'
check "the guest runs at the main host" runs_on main
declare -A done_of=()
end=$((SECONDS + minutes * 60)) ok=yes refused=0
while ((SECONDS < end)); do
	pick 0 $((${#ACTIONS[@]} - 1))
	action=${ACTIONS[PICK]}
	echo "$((end - SECONDS)) s left: $action" >>"$LAB_DIR/soak.log"
	"$action" || { ok="$action failed"; break; }
	done_of[$action]=$((${done_of[$action]:-0} + 1))
	# Every fourth time, at once the next.
	pick 0 3
	((PICK > 0)) || continue
	goes_on || { ok="after $action the guest does not go on"; break; }
	pick 0 1500
	nap "$PICK"
done
for action in "${!done_of[@]}"; do
	echo "     ${done_of[$action]} times $action"
done | sort -k2
echo "     $refused budgets and balloons were refused or came too late"
check "all of them happened, one way or another" test "${#done_of[@]}" -ge $((minutes < 3 ? 5 : 11))
count_discards
echo "     $discarded pages were discarded"
check "pages were discarded" test "$discarded" -gt 0
[[ $ok == yes ]] || tail -n 5 "$LAB_DIR/soak.log" >&2
check "the guest goes on after each of them (seed $seed)" test "$ok" = yes
check "the trouble passes" scenario_wait 60 "no trouble" no_trouble
swept=$(whole_sweeps main)
check "the guest sweeps all of its memory" scenario_wait 240 "a sweep" has_sweeps main $((swept + 2))
check "no mismatch" test "$(last_heartbeat main mismatches)" -eq 0
check "no page is lost" test "$(scenario_stats | jq .pages_lost)" -eq 0
python3 "$SMEMV_SOURCE/tests/soak/stalls.py" "$LAB_DIR/main.console"
down
