#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The checks would catch a mistake: three runs of the same guest, each with one step left out by a
# fault point, must be seen to fail; verify.sh is the same run without a fault.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
SEED=20181

wrong_memory_seen() {
	(($(last_heartbeat main mismatches) > 0)) || grep -aq -E 'FATAL|panic' "$LAB_DIR/main.console"
}
end_lab() {
	kill "${E2E_STAMPS[@]}" 2>/dev/null || :
	wait "${E2E_STAMPS[@]}" 2>/dev/null || :
	E2E_STAMPS=()
	lab_destroy
	SOURCE_CONSOLE='' MAIN_CONSOLE='' SCENARIO_PID=() SCENARIO_ENV=()
}

# Eviction without freezing the page: what the guest writes meanwhile is lost.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=evict-skip-zap"
up
migrate
check "evict-skip-zap: the migration itself completes" is '.status == "completed"'
check "evict-skip-zap: the guest sees wrong memory" scenario_wait 120 "a mismatch" wrong_memory_seen
end_lab

# A resent hot page whose older version stays.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=install-ignore-eexist"
up
migrate --max-downtime 1 --max-rounds 3 --on-no-converge stop
check "install-ignore-eexist: the migration itself completes" is '.status == "completed"'
check "install-ignore-eexist: the guest sees wrong memory" scenario_wait 120 "a mismatch" wrong_memory_seen
end_lab

# One batch of the map that the pager forgets.
SCENARIO_ENV[pagerd]="SMEMV_FAULT=report-drop-batch:skip:2"
up
migrate
check "report-drop-batch: the switch-over is refused" test "$RC" -eq 1
check "report-drop-batch: because the maps differ" is '.status == "failed" and .error.code == "map-differs"'
source_untouched
down
