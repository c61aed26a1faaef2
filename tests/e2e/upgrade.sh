#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A rolling upgrade under a running guest: each daemon is ended by SIGTERM and started again with the
# same command line, one after the other, twice around.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
up
migrate
check "the migration completes" is '.status == "completed" and .committed'
check "the guest runs at the main host" runs_on main

# lease_fields FIELDS: of the leases on both sub-hosts; FIELDS is for jq.
lease_fields() {
	local host
	for host in sub1 sub2; do
		scenario_sub_host "$host" leases | jq -c "[.leases[] | $1]"
	done
}
leases_held() {
	[[ $(lease_fields .state) == $'["held"]\n["held"]' ]]
}
# The lowest epoch of any lease.
epoch() {
	lease_fields .epoch | jq -s 'flatten | min'
}
# Each ends in order, and with 0: what it was asked to do it did.
ended_in_order() {
	local pid=${SCENARIO_PID[$1]} status=0
	kill -TERM "$pid"
	scenario_wait 20 "$1's end" scenario_gone "$pid" || return
	wait "$pid" || status=$?
	unset "SCENARIO_PID[$1]"
	[[ $status == 0 ]]
}
# after WHAT: the guest goes on, and nothing was given up.
after() {
	local before
	check "$1: the trouble passes" scenario_wait 20 "no trouble" stat_is '.trouble == ""'
	before=$(scenario_stats | jq .page_ins)
	check "$1: pages come in" scenario_wait 20 "page-ins" page_ins_beyond $((before + 200))
	check "$1: the guest goes on and finds no mismatch" runs_on main
	check "$1: no page is lost" stat_is '.pages_lost == 0'
	check "$1: the leases are the same" test "$(lease_fields .id)" = "$leases"
	check "$1: the leases are held" leases_held
}

check "the leases are held" leases_held
leases=$(lease_fields .id)
for round in 1 2; do
	for host in sub1 sub2; do
		incarnation=$(scenario_sub_host "$host" info | jq -r .incarnation)
		epoch_before=$(epoch)
		check "$round $host: ends in order" ended_in_order "$host"
		# The guest may be waiting for a page now, as it would while a package is installed.
		sleep "0.$((RANDOM % 10))"
		check "$round $host: the next one is ready" start_sub_host_again "$host"
		check "$round $host: it is the same memory" \
			test "$(scenario_sub_host "$host" info | jq -r .incarnation)" = "$incarnation"
		after "$round $host"
		check "$round $host: the epoch stays" test "$(epoch)" -eq "$epoch_before"
	done
	epoch_before=$(epoch)
	check "$round pagerd: ends in order" ended_in_order pagerd
	sleep "0.$((RANDOM % 10))"
	check "$round pagerd: the next one is ready" restart_pagerd TERM
	after "$round pagerd"
	check "$round pagerd: both sub-hosts have a later epoch" test "$(epoch)" -gt "$epoch_before"
done
scenario_wait 240 "a sweep after the upgrades" has_sweeps main $(($(whole_sweeps main) + 2))
check "a whole sweep after all that finds no mismatch" test "$(last_heartbeat main mismatches)" -eq 0
down
