#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The checks would catch a mistake: runs of the same guest, each with one step left out by a
# fault point, must be seen to fail; verify.sh is the same run without a fault.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
SEED=20181

# memory_is_wrong: verify.sh's check (whole sweeps without a mismatch) fails. Mostly the workload counts
# mismatches; but the guest's kernel and the workload's own locks are paged too, so it may also crash
# or stand still. Two clean sweeps take some 10 s: they mean that nothing was caught.
memory_is_wrong() {
	local end=$((SECONDS + 60)) mismatches
	while ((SECONDS < end)); do
		mismatches=$(last_heartbeat main mismatches) || :
		if ((${mismatches:-0} > 0)); then
			echo "seen: $mismatches mismatches"
			return 0
		elif grep -aq -E 'SMEMV FATAL|BUG: |Oops|Kernel panic|Kernel Offset' "$LAB_DIR/main.console"; then
			echo "seen: the guest's kernel crashed"
			return 0
		elif ! kill -0 "${SCENARIO_PID[main-vm]}" 2>/dev/null; then
			echo "seen: the guest was reset"
			return 0
		elif has_sweeps main 2; then
			return 1
		fi
		sleep 0.2
	done
	echo "seen: the guest stands still"
}

# Eviction without freezing the page: what the guest writes meanwhile is lost.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=evict-skip-zap"
up
migrate
check "evict-skip-zap: the migration itself completes" is '.status == "completed"'
check "evict-skip-zap: the guest sees wrong memory" memory_is_wrong
once_more

# A resent hot page whose older version stays.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=install-ignore-eexist"
up
migrate --max-downtime 1 --max-rounds 3 --on-no-converge stop
check "install-ignore-eexist: the migration itself completes" is '.status == "completed"'
check "install-ignore-eexist: the guest sees wrong memory" memory_is_wrong
once_more

# The source's last writes come late, when the main host serves the VM already: they find their
# connections fenced.
SCENARIO_ENV[migrate]="SMEMV_FAULT=late-write"
up
migrate
check "late-write: the migration completes" is '.status == "completed"'
check "late-write: the writes were tried" grep -q 'late writes: ' "$LAB_DIR/migrate.log"
scenario_wait 120 "two sweeps" has_sweeps main 2
check "late-write: fenced, they change nothing" test "$(last_heartbeat main mismatches)" -eq 0
check "late-write: fenced, no page is lost" jq -e '.pages_lost == 0' <(scenario_stats)
once_more

# The same without the fence. What comes in has a wrong checksum: the page is lost, and said to be.
SCENARIO_ENV[sub1]="SMEMV_FAULT=old-writers-stay" SCENARIO_ENV[sub2]="SMEMV_FAULT=old-writers-stay"
SCENARIO_ENV[migrate]="SMEMV_FAULT=late-write"
up
migrate
check "old-writers-stay: the migration itself completes" is '.status == "completed"'
check "old-writers-stay: the late writes got through" grep -q 'late writes: all done' "$LAB_DIR/migrate.log"
pages_are_wrong() {
	jq -e '.pages_lost > 0' <(scenario_stats)
}
check "old-writers-stay: the corrupted pages are seen" scenario_wait 60 "lost pages" pages_are_wrong
once_more

# One batch of the map that the pager forgets.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=report-drop-batch:skip:2"
up
migrate
check "report-drop-batch: the switch-over is refused" test "$RC" -eq 1
check "report-drop-batch: because the maps differ" is '.status == "failed" and .error.code == "map-differs"'
source_untouched
down
