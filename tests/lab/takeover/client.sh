#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main host of tests/lab/takeover.sh.
BARRIERS=(ready killed over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

# kill_pagers NAME SUB-HOSTS ARGUMENT...: what pager_kill printed, and its exit status, as facts.
kill_pagers() {
	local status=0
	SMEMV_TEST_TRANSPORT=verbs SMEMV_TEST_SUB_HOSTS=$2 "$SMEMV_BIN/tests/unit/pager_kill" \
		"${@:3}" >"$LOGS/$1" 2>&1 || status=$?
	fact "$1" "$(jq -Rsc --argjson status "$status" '{status: $status, text: .}' "$LOGS/$1")"
	step "$1: $status"
}

meet ready
kill_pagers killed lab1:7000,lab1:7010 1 12
kill_pagers unfenced lab1:7020,lab1:7030 2 1 unfenced
meet killed
# Their memserverd is in this guest, and so is their RDMA.
echo "== leases"
SMEMV_TEST_VERBS=$LAB_IP criterion test_leases 'leases/*'
echo "== end"
step "the leases are tested"
barrier over
