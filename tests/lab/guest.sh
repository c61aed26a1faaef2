# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts that tests run in lab guests share. To be sourced; BARRIERS names the barriers that
# the guests meet at, in order, SMEMV_BIN is the build. What a guest finds out it prints as lines
# "fact NAME JSON"; the test outside judges.
set -euo pipefail

: "${SMEMV_BIN:?}" "${BARRIERS[0]:?}"
COUNTERS=/sys/class/infiniband/rxe0/ports/1/hw_counters
LOGS=/run/lab-logs
mkdir -p "$LOGS"
declare -A PID=()

# A guest that has failed lets the others pass, so that they end as well.
finish() {
	local status=$? name log
	if ((status != 0)); then
		fact failed "$status"
		for name in "${BARRIERS[@]}"; do
			: >"/run/lab/barrier/$name"
		done
	fi
	grep -H -v '^0$' "$COUNTERS"/* | sed "s|^.*/|rxe0: |"
	dmesg | grep -E 'rxe|infiniband|WARN|BUG|blocked' | tail -n 20 | sed 's/^/kernel: /' || :
	for log in "$LOGS"/*; do
		[[ -e $log ]] || continue
		sed "s/^/${log##*/}: /" "$log"
	done
	((${#PID[@]} == 0)) || kill -KILL "${PID[@]}" 2>/dev/null || :
}
trap finish EXIT

step() {
	echo "[$(cut -d ' ' -f 1 /proc/uptime) s] $*"
}

# fact NAME JSON
fact() {
	echo "fact $1 $2"
}

meet() {
	barrier "$1" 600
	step "all are at '$1'"
}

# begin NAME COMMAND...: in the background, with a log.
begin() {
	"${@:2}" </dev/null >"$LOGS/$1" 2>&1 &
	PID[$1]=$!
}

# end NAME: asks it to end, and tells its exit status.
end() {
	local status=0
	kill -TERM "${PID[$1]}"
	wait "${PID[$1]}" || status=$?
	unset "PID[$1]"
	fact "status.$1" "$status"
}

# kill_now NAME: without a warning.
kill_now() {
	kill -KILL "${PID[$1]}"
	wait "${PID[$1]}" 2>/dev/null || :
	unset "PID[$1]"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
	local end=$((SECONDS + $1)) what=$2
	until "${@:3}"; do
		((SECONDS < end)) || {
			echo "$what: not within $1 s"
			return 1
		}
		sleep 0.3
	done
	step "$what"
}

says() {
	grep -qa -e "$2" "$LOGS/$1"
}

# criterion PROGRAM FILTER: its tests; lib.sh reads the verdicts.
criterion() {
	"$SMEMV_BIN/tests/unit/$1" --filter "$2" --jobs 1 --verbose=1 2>&1 | grep -vE 'RUN|SKIP' || :
}

# huge_pages MIB: of 2 MiB, for memserverd --hugepages: Soft-RoCE registers them many times as fast.
huge_pages() {
	echo "$(($1 / 2))" >/proc/sys/vm/nr_hugepages
	mkdir -p /dev/hugepages
	mount -t hugetlbfs none /dev/hugepages
}

# packets NAME: the RDMA device's own counters, as a fact.
packets() {
	fact "packets.$1" "{\"received\": $(<"$COUNTERS/rcvd_pkts"), \"sent\": $(<"$COUNTERS/sent_pkts")}"
}

# payload_of_a_packet: as a fact, at most.
payload_of_a_packet() {
	fact mtu "$(ibv_devinfo -d rxe0 | awk '$1 == "active_mtu:" { print $2 }')"
}

# doctor ROLE: its exit status, as a fact.
doctor() {
	local status=0
	"$SMEMV_BIN/ctl/smemvctl" doctor --role "$1" >"$LOGS/doctor" || status=$?
	fact doctor "$status"
}
