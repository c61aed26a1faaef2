# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced, here and in guests: how a measurement is run, and what it leaves for compare.py.

RUN_TIMEOUT=120
RUN_CONNECTS=40
: "${work:=}"

# shellcheck disable=SC2034 # the shell's own
TIMEFORMAT='-- cpu: %U user %S system %R elapsed'

# How often Soft-RoCE had to ask again for what was lost; nothing outside the lab.
resent() {
	local counters=/sys/class/infiniband/rxe0/ports/1/hw_counters
	[[ ! -e $counters/completer_retry_err ]] ||
		echo $(($(<"$counters/completer_retry_err") + $(<"$counters/rcvd_seq_err")))
}

# run_once COMMAND...: its output to $work/output, in a directory of the sourcing script's. A server of perftest serves one client; the next one
# may not listen yet.
run_once() {
	local i status before
	before=$(resent)
	for ((i = 0; i < RUN_CONNECTS; i++)); do
		status=0
		{ time timeout "$RUN_TIMEOUT" "$@"; } >"$work/output" 2>&1 || status=$?
		((status != 0)) || break
		grep -q "^Couldn't connect" "$work/output" || break
		sleep 0.25
	done
	[[ -z $before ]] || echo "-- resent: $(($(resent) - before))" >>"$work/output"
	return "$status"
}

# run MEASURE PAIR PROGRAM COMMAND...: prints what the command does. One that fails gets a second
# chance: an emulated network may lose too much once. compare.py takes the last of equal headings.
run() {
	local heading="== $1 $2 $3" try status
	shift 3
	for try in 1 2; do
		status=0
		run_once "$@" || status=$?
		echo "$heading"
		cat "$work/output"
		((status != 0)) || return 0
		echo "compare: failed with status $status (124: after $RUN_TIMEOUT s), try $try: $*"
	done
	return 1
}
