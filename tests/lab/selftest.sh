#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Does the lab keep its promises? One line per check; exit status 1 if any failed. About a minute.
# SMEMV_RESULTS: a file that gets a line "pass NAME" or "fail NAME" per check.
set -euo pipefail

lab=$(dirname "$(readlink -f "$0")")/lab.sh
: "${SMEMV_RESULTS:=/dev/null}"
work=$(mktemp -d)
log=$work/log
trap 'rm -rf "$work"' EXIT
failed=0

# run LAB-ARGUMENT...: sets status, and log.
run() {
	status=0
	"$lab" "$@" >"$log" 2>&1 || status=$?
}

# expect WHAT STATUS PATTERN: of the last run.
expect() {
	if [[ $status -eq $2 ]] && grep -qE -e "$3" "$log"; then
		verdict pass "$1"
	else
		verdict fail "$1"
		echo "status $status instead of $2, or no /$3/ in this:"
		tail -n 40 "$log"
	fi
}

verdict() {
	echo "$1 lab: $2" | tee -a "$SMEMV_RESULTS"
	[[ $1 == pass ]] || failed=1
}

one_guest() {
	local word=fail
	echo before >"$work/file"
	run -- "ibv_devinfo -d rxe0; echo pin \$(ulimit -l); cd '$work'; cat file; echo after >file; cat file
		cd - >/dev/null; pwd; exit 7"
	expect "the exit status is that of the command" 7 .
	expect "a guest has an RDMA device that is up" 7 'state:.*PORT_ACTIVE'
	expect "and may pin all its memory" 7 '^pin unlimited$'
	expect "it runs in the current directory" 7 "^$PWD$"
	expect "it sees the host's files" 7 '^before$'
	expect "and can write to them" 7 '^after$'
	[[ $(<"$work/file") != before ]] || word=pass
	verdict "$word" "but only for itself"
}

two_guests() {
	run \
		--cmd 1 'ibv_rc_pingpong -d rxe0 -g 1 -n 50
			rping -s -a fd77::1 -C 3
			ib_read_lat -d rxe0 -F -s 4096 -n 100
			exit 4' \
		--cmd 2 'again() { until "$@"; do sleep 0.5; done; }
			again ibv_rc_pingpong -d rxe0 -g 1 -n 50 lab1
			again rping -c -v -a fd77::1 -C 3
			again ib_read_lat -d rxe0 -F -s 4096 -n 100 lab1
			hostname; barrier end 1; echo "barrier: $?"; exit 3'
	expect "of several statuses, the highest counts" 4 '^\[2\] lab2$'
	expect "guests reach each other over an RC queue pair" 4 '^\[2\] 50 iters in .* usec/iter'
	expect "and by the RDMA connection manager and IPv6" 4 '^\[2\] ping data: rdma-ping-2'
	expect "and by one-sided READ" 4 '^\[2\] +4096 +100 '
	expect "a barrier is not passed alone" 4 '^\[2\] barrier: 1$'
	# shellcheck disable=SC2016 # expands in the guest
	run --guests 3 --output "$work/output" -- '[[ $LAB_ID -ne 2 ]] || sleep 5
		SECONDS=0; barrier meet && ((LAB_ID == 2 || SECONDS >= 2)) && echo met'
	cat "$work"/output/[123].log >>"$log"
	expect "three guests meet at a barrier, and --output keeps what they print" 0 '^met$'
}

failures() {
	run --timeout 2 -- 'trap "" TERM; echo begun; while :; do sleep 1; done'
	expect "a command that hangs is ended" 124 '^begun$'
	run --memory 8 -- true
	expect "a guest that cannot boot is the lab's failure, with the console" 125 '^---- guest 1'
	run -- 'echo c >/proc/sysrq-trigger; sleep 60'
	expect "so is one that crashes" 125 'sysrq triggered crash'
}

# Even if the script has no chance to clean up.
killed() {
	local pid guest i word=fail
	"$lab" -- 'echo begun; sleep 60' >"$log" 2>&1 &
	pid=$!
	for ((i = 0; i < 900; i++)); do
		! grep -q begun "$log" || break
		sleep 0.1
	done
	guest=$(pgrep -P "$pid" qemu) || :
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null || :
	rm -rf "/tmp/smemv-lab.$pid".*
	for ((i = 0; i < 50; i++)); do
		# A zombie until somebody has waited for it.
		grep -qs '^State:.[^ZX]' "/proc/$guest/status" || break
		sleep 0.1
	done
	[[ -z $guest || $i -eq 50 ]] || word=pass
	verdict "$word" "no guest outlives a script that is killed"
}

one_guest
two_guests
failures
killed
exit "$failed"
