#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The checks would catch a mistake: three runs of the same guest, each with one step left out by a
# fault point, must be seen to fail; verify.sh is the same run without a fault.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
SEED=20181

# The workload counts a mismatch, or the guest's kernel, whose memory is paged too, falls over.
wrong_memory_seen() {
	local mismatches
	mismatches=$(last_heartbeat main mismatches) || :
	((${mismatches:-0} > 0)) || grep -aq -E 'SMEMV FATAL|BUG: |Oops|Kernel panic' "$LAB_DIR/main.console"
}

# Eviction without freezing the page: what the guest writes meanwhile is lost.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=evict-skip-zap"
up
migrate
check "evict-skip-zap: the migration itself completes" is '.status == "completed"'
check "evict-skip-zap: the guest sees wrong memory" scenario_wait 120 "a mismatch" wrong_memory_seen
once_more

# A resent hot page whose older version stays.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=install-ignore-eexist"
up
migrate --max-downtime 1 --max-rounds 3 --on-no-converge stop
check "install-ignore-eexist: the migration itself completes" is '.status == "completed"'
check "install-ignore-eexist: the guest sees wrong memory" scenario_wait 120 "a mismatch" wrong_memory_seen
once_more

# One batch of the map that the pager forgets.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=report-drop-batch:skip:2"
up
migrate
check "report-drop-batch: the switch-over is refused" test "$RC" -eq 1
check "report-drop-batch: because the maps differ" is '.status == "failed" and .error.code == "map-differs"'
source_untouched
down
