#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A guest larger than the main host's budget is split-migrated and sweeps all of its memory there.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

tested_pages=$((TEST_MIB * 256))
budget_bytes=$((BUDGET_KIB * 1024))
batch_bytes=$((64 * 4096)) # SMV_EVICT_BATCH

up
check "the guest would not fit into the budget" test "$((TEST_MIB * 1024))" -gt "$BUDGET_KIB"
python3 "$E2E_DIR/sample_resident.py" "$(host_path main /dev/shm/main.ram)" "$LAB_DIR/resident" &
sampler=$!

migrate
check "smemv-migrate exits with 0" test "$RC" -eq 0
if ((RC != 0)); then exit 1; fi
check "the result says completed and committed" is '.status == "completed" and .committed and .error == null'
check "hot + cold + zero = total = the RAM" \
	is ".pages.hot + .pages.cold + .pages.zero == .pages.total and .pages.total == $((GUEST_MIB * 256))"
check "the rounds add up to first sends and resends" \
	is '([.rounds[].pages] | add) == .pages.hot + .pages.cold + .pages.resent'
check "the rounds' bytes add up to what went to the main host and the sub-hosts" \
	is '([.rounds[].bytes] | add) == .bytes.to_main + .bytes.to_sub_hosts'
check "the sub-hosts' bytes add up" is '([.sub_hosts[].bytes] | add) == .bytes.to_sub_hosts'
check "the hot pages fit the budget" is ".pages.hot * 4096 <= $budget_bytes"
check "the source is stopped for good" is '.source_state == "postmigrate"'
check "the source's guest is silent" silent_on source
check "the guest runs at the main host" runs_on main

received() {
	local host sum=0
	for host in sub1 sub2; do
		sum=$((sum + $(scenario_sub_host "$host" info | jq .bytes_received)))
	done
	echo "$sum"
}
# The guest goes on paging: what the pager wrote is read before and after.
counters_agree() {
	local before after got
	before=$(scenario_stats | jq .bytes_written)
	got=$(($(received) - $(field .bytes.to_sub_hosts)))
	after=$(scenario_stats | jq .bytes_written)
	echo "the servers received $got bytes beyond the migration; the pager wrote $before to $after"
	((got >= before && got <= after + batch_bytes))
}
check "bytes.to_sub_hosts agrees with what the servers received" counters_agree

scenario_wait 240 "two sweeps of all tested memory" has_sweeps main 2
check "after two whole sweeps there is no mismatch" test "$(last_heartbeat main mismatches)" -eq 0
scenario_stats >"$LAB_DIR/stats.json"
cold_swept=$(($(field .pages.cold) - (GUEST_MIB * 256 - tested_pages)))
check "page_ins >= the $cold_swept cold pages that were swept at least" \
	jq -e ".page_ins >= $cold_swept and $cold_swept > 0" "$LAB_DIR/stats.json"
check "pages were evicted, clean ones without a write" \
	jq -e '.evictions > 0 and .evictions_clean > 0 and .pages_lost == 0' "$LAB_DIR/stats.json"
check "fault latencies were measured" \
	jq -e '.fault_latency_us | .p50 > 0 and .p50 <= .p99 and .p99 <= .p999 and .p999 <= .max' \
	"$LAB_DIR/stats.json"

read -r greatest samples <"$LAB_DIR/resident"
kill "$sampler"
echo "resident: at most $greatest bytes in $samples samples, budget $budget_bytes"
check "resident memory never exceeded the budget by more than a batch" \
	test "$greatest" -le $((budget_bytes + batch_bytes)) -a "$samples" -gt 50

gap=$(python3 "$E2E_DIR/gaps.py" "$LAB_DIR/source.console" "$LAB_DIR/main.console")
downtime=$(field .downtime_ms)
echo "downtime_ms $downtime, greatest gap between heartbeats $gap ms"
# The gap holds the downtime, a period of 20 ms, and waiting for the first pages.
check "the guest's greatest heartbeat gap confirms downtime_ms" \
	jq -ne "$gap >= $downtime * 0.8 - 25 and $gap <= $downtime * 2 + 1500"
jq -c '{p50: .fault_latency_us.p50, p99: .fault_latency_us.p99, page_ins, evictions}' "$LAB_DIR/stats.json"
down
