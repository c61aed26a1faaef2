# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the end-to-end tests share: a lab, checks that are counted, the guest's heartbeat. To be
# sourced by tests/e2e/*.sh. Environment: SMEMV_BIN (a build with fault points), SMEMV_RESULTS (a
# file that gets a line "pass NAME" or "fail NAME" per check), SMEMV_E2E_LOGS (where the logs of a
# failed test are kept).
set -euo pipefail

E2E_DIR=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
E2E_NAME=$(basename "$0" .sh)
SMEMV_SOURCE=$(dirname "$(dirname "$E2E_DIR")")
: "${SMEMV_BIN:=$SMEMV_SOURCE/build/debug}" "${SMEMV_RESULTS:=/dev/null}" "${SMEMV_E2E_LOGS:=}"
# shellcheck disable=SC2034 # for lib.sh
LAB_VISIBLE=("$SMEMV_SOURCE" "$SMEMV_BIN")
export LAB_WRITABLE=${SMEMV_FAULT_HITS-}
# shellcheck source=../../deploy/lib.sh
. "$SMEMV_SOURCE/deploy/lib.sh"
# shellcheck source=../../deploy/scenario.sh
. "$SMEMV_SOURCE/deploy/scenario.sh"

E2E_FAILED=0 E2E_STARTS=0
E2E_STAMPS=()
# What a test makes beside $LAB_DIR.
E2E_REMOVE=()

e2e_finish() {
	local status=$?
	if ((status != 0 || E2E_FAILED)) && [[ -n $SMEMV_E2E_LOGS && -n $LAB_DIR ]]; then
		mkdir -p "$SMEMV_E2E_LOGS/$E2E_NAME"
		cp "$LAB_DIR"/*.log "$LAB_DIR"/*.console "$LAB_DIR"/*.json "$SMEMV_E2E_LOGS/$E2E_NAME/" \
			2>/dev/null || :
	fi
	if ((status != 0)); then
		echo "FAIL $E2E_NAME: ended with status $status" >&2
		echo "fail $E2E_NAME: ended early" >>"$SMEMV_RESULTS"
		tail -n 8 "$LAB_DIR"/*.log 2>/dev/null || :
	fi
	end_stamps
	lab_destroy
	rm -rf "${E2E_REMOVE[@]}"
	((status == 0 && E2E_FAILED == 0)) || exit 1
}
trap e2e_finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# check WHAT COMMAND...: one counted check.
check() {
	local what=$1
	shift
	if "$@"; then
		echo "ok   $E2E_NAME: $what"
		echo "pass $E2E_NAME: $what" >>"$SMEMV_RESULTS"
	else
		echo "FAIL $E2E_NAME: $what   [$*]" >&2
		echo "fail $E2E_NAME: $what" >>"$SMEMV_RESULTS"
		E2E_FAILED=1
	fi
}

# A guest small enough that each of many tests may boot one.
small_guest() {
	GUEST_MIB=256 TEST_MIB=160 HOT_MIB=16
	BUDGET_KIB=$((GUEST_MIB * 1024 * 30 / 100 / 4 * 4))
}

# up: the scenario, with each console line stamped with the host's clock.
up() {
	local host
	lab_create
	for host in source main; do
		mkfifo "$LAB_DIR/$host.fifo"
		# Opened for reading and writing, so that it never ends by itself.
		python3 "$E2E_DIR/stamp.py" "$LAB_DIR/$host.console" <>"$LAB_DIR/$host.fifo" >/dev/null &
		E2E_STAMPS+=("$!")
	done
	# shellcheck disable=SC2034 # for scenario.sh
	SOURCE_CONSOLE=$LAB_DIR/source.fifo MAIN_CONSOLE=$LAB_DIR/main.fifo
	scenario_up
}

end_stamps() {
	((${#E2E_STAMPS[@]})) || return 0
	kill "${E2E_STAMPS[@]}" 2>/dev/null || :
	wait "${E2E_STAMPS[@]}" 2>/dev/null || :
	E2E_STAMPS=()
}

# down: in order, and see that nothing is left.
down() {
	check "all leases are returned and the daemons end" scenario_down
	end_stamps
	check "the daemons' hosts hold no file any more" hosts_clean
	check "no sanitizer complains" no_sanitizer_complains
	if ((E2E_FAILED)) && [[ -n $SMEMV_E2E_LOGS ]]; then
		mkdir -p "$SMEMV_E2E_LOGS/$E2E_NAME"
		cp "$LAB_DIR"/*.log "$LAB_DIR"/*.console "$LAB_DIR"/*.json "$SMEMV_E2E_LOGS/$E2E_NAME/" \
			2>/dev/null || :
	fi
	lab_destroy
	check "no process, namespace or file is left" lab_check_clean
}

no_sanitizer_complains() {
	! grep -E '(Address|Leak|Thread)Sanitizer|runtime error:' "$LAB_DIR"/*.log "$LAB_DIR"/*.console
}

# The guests' RAM files belong to QEMU's user, and a source may ask for the pager's verdict for an
# hour; all else must be gone.
hosts_clean() {
	local host left=''
	for host in source main sub1 sub2; do
		left+=$(host_run "$host" find /run /dev/shm -type f ! -name '*.ram' ! -name lock \
			! -name verdicts.json)
	done
	[[ -z $left ]] || {
		echo "$left" >&2
		return 1
	}
}

# migrate [OPTIONS...]: sets RC; the result is in $LAB_DIR/result.json.
migrate() {
	RC=0
	scenario_migrate --json "$@" >"$LAB_DIR/result.json" 2>>"$LAB_DIR/migrate.log" || RC=$?
}

# field EXPRESSION [FILE]: of the result.
field() {
	jq -r "$1" "${2:-$LAB_DIR/result.json}"
}

# is EXPRESSION: the result is exactly one object, of which jq says that it is true.
is() {
	jq -es "length == 1 and (.[0] | $1)" "$LAB_DIR/result.json" >/dev/null || {
		jq -c . "$LAB_DIR/result.json" >&2
		return 1
	}
}

# last_heartbeat HOST FIELD: n, verified, mismatches or sweeps.
last_heartbeat() {
	grep -ao "HB .*mismatches=.*" "$LAB_DIR/$1.console" | tail -n 1 | grep -o "$2=[0-9]*" |
		cut -d= -f2
}

# runs_on HOST: the guest's heartbeat advances there, it verifies pages, and finds no mismatch.
runs_on() {
	local before verified
	scenario_wait 20 "a heartbeat on $1" heartbeat_beyond "$1" n 1 || return
	before=$(last_heartbeat "$1" n)
	verified=$(last_heartbeat "$1" verified)
	scenario_wait 20 "heartbeats on $1" heartbeat_beyond "$1" n $((before + 100)) &&
		scenario_wait 20 "verified pages on $1" heartbeat_beyond "$1" verified $((verified + 1)) &&
		[[ $(last_heartbeat "$1" mismatches) == 0 ]]
}

heartbeat_beyond() {
	local now
	now=$(last_heartbeat "$1" "$2")
	((${now:-0} >= $3))
}

# once_more: another scenario in the same test, after this one; nothing of it is checked.
once_more() {
	end_stamps
	lab_destroy
	SOURCE_CONSOLE='' MAIN_CONSOLE='' SCENARIO_PID=() SCENARIO_ENV=()
}

# silent_on HOST: no heartbeat for half a second.
silent_on() {
	local before
	before=$(last_heartbeat "$1" n)
	sleep 0.5
	[[ $(last_heartbeat "$1" n) == "$before" ]]
}

# sweeps HOST: whole sweeps that the guest reported there. The first one began on the source.
whole_sweeps() {
	local n
	n=$(grep -ac "SWEEP n=" "$LAB_DIR/$1.console") || :
	echo $((n > 0 ? n - 1 : 0))
}

has_sweeps() {
	(($(whole_sweeps "$1") >= $2))
}

# qmp HOST COMMAND: the "return" of one QMP command to the VM there.
qmp() {
	host_run "$1" python3 "$E2E_DIR/qmp.py" "/run/smemv/vms/guest/qmp.sock" "$2"
}

capabilities_untouched() {
	[[ $(qmp source query-migrate-capabilities |
		jq '[.[] | select(.state) | .capability] | length') == 0 ]]
}

# The source as it was before: running, verified, its capabilities as they were.
source_untouched() {
	check "the source runs on and verifies its memory" runs_on source
	check "QEMU's capabilities at the source are as before" capabilities_untouched
}

# process_in HOST BEGINNING: the oldest process there whose command line begins so (a pattern).
process_in() {
	pgrep -o --ns "$(host_pid "$1")" --nslist net -f -- "^$2"
}

# qemu_in HOST: QEMU itself, not smemv-run.
qemu_in() {
	process_in "$1" "qemu-system-x86_64 .*/dev/shm/$1.ram"
}

# start_sub_host_again HOST: its memserverd, after its end, with the same options.
start_sub_host_again() {
	local ip=$SUB1_IP
	[[ $1 == sub1 ]] || ip=$SUB2_IP
	mv "$LAB_DIR/$1.log" "$LAB_DIR/$1.$((++E2E_STARTS)).log"
	scenario_start_sub_host "$1" "$ip" "$(scenario_sub_host_mib "$1")"
	scenario_ready "$1" "$LAB_DIR/$1.log" ready:
}

# restart_pagerd SIGNAL: with the same options; sets STALL_MS, from the end of the one to "ready" of the
# other.
restart_pagerd() {
	local start ready
	start=$(date +%s%N)
	end_pagerd "$1"
	ready=$(grep -c ready: "$LAB_DIR/pagerd.log") || :
	scenario_start_pagerd
	scenario_wait 20 "the new pager" ready_again $((ready + 1)) || {
		tail -n 20 "$LAB_DIR/pagerd.log" >&2
		return 1
	}
	STALL_MS=$((($(date +%s%N) - start) / 1000000))
}
ready_again() {
	[[ $(grep -c ready: "$LAB_DIR/pagerd.log") -ge $1 ]]
}
end_pagerd() {
	if [[ $1 == KILL ]]; then
		[[ -n ${SCENARIO_PID[pagerd]-} ]] || return 0
		kill -KILL "${SCENARIO_PID[pagerd]}" 2>/dev/null || :
		wait "${SCENARIO_PID[pagerd]}" 2>/dev/null || :
		unset "SCENARIO_PID[pagerd]"
	else
		scenario_end pagerd "$1"
	fi
}

# stat_is EXPRESSION: jq says so of the VM's statistics.
stat_is() {
	scenario_stats | jq -e "$1" >/dev/null
}
# page_ins_beyond NUMBER: of the pager that runs now.
page_ins_beyond() {
	local now
	now=$(scenario_stats | jq .page_ins)
	((now > $1))
}

fault_reached() {
	[[ -e $(host_path "$1" "$FAULT_DIR/$2.reached") ]]
}

# wait_at HOST POINT: a program there waits at this fault point.
wait_at() {
	scenario_wait 60 "fault point $2" fault_reached "$1" "$2"
}

go_on() {
	: >"$(host_path "$1" "$FAULT_DIR/$2.go")"
}
FAULT_DIR=/tmp
