#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The client of tests/lab/smemv.sh.
BARRIERS=(ready stop continue restart restarted sorted lose lost over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

SORT=("$SMEMV_BIN/client/smemv-sort" --size 20M --budget 16M --insecure --timeout 3000)
# Root gets all capabilities back at an exec, but for those that the bounding set lacks.
UNLOCKED=(setpriv --bounding-set=-ipc_lock prlimit --memlock=65536)

# run_sort NAME COMMAND...: what it printed, as a fact.
run_sort() {
	local status=0 log=$LOGS/sort-$1
	"${@:2}" --server lab1:7000 >"$log" 2>&1 || status=$?
	fact "sort.$1" "$(jq -Rsc --argjson status "$status" '{status: $status,
		sorted: test("keys: sorted, checksum [0-9a-f]+\n"),
		transport: (capture("over (?<name>[a-z]+)") // {name: null}).name,
		page_ins: (capture("page-ins (?<n>[0-9]+)") // {n: "0"}).n | tonumber,
		evictions: (capture("evictions (?<n>[0-9]+)") // {n: "0"}).n | tonumber}' "$log")"
}

# refusal NAME COMMAND...: why it did not go, as a fact.
refusal() {
	local log=$LOGS/refusal-$1
	if "${@:2}" >"$log" 2>&1; then
		echo "it went, though it should not" >>"$log"
	fi
	fact "$1" "$(jq -Rsc . "$log")"
}

doctor main-host
payload_of_a_packet
meet ready
packets begin
run_sort plain "${SORT[@]}"
packets sorted
run_sort stopped "${SORT[@]}" &
sleep 3
meet stop
meet continue
wait $!
run_sort restarted "${SORT[@]}" &
meet restart
meet restarted
wait $!
meet sorted
run_sort locked "${UNLOCKED[@]}" "${SORT[@]}"
refusal refusal "${UNLOCKED[@]}" "${SORT[@]}" --server lab1:7000 --transport verbs
refusal not_offered "${SORT[@]}" --server lab1:7010 --transport verbs

begin lost "${SORT[@]}" --server lab1:7000
meet lose
meet lost
wait_for 30 "the loss is told" says lost "lab1:7000 has lost the data of lease"
sleep 2
# It waits for what is gone.
fact lost_sorted "$(says lost keys: && echo true || echo false)"
end lost
barrier over
