#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The transport between two hosts: all its tests over verbs and tcp with the server in one guest and the
# client in another, then leases over verbs, then all that can happen to a host and its link. One line per
# check; exit status 1 if any failed. Three minutes, or five.
set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh" lab-transport

# steps LOG: a step of transport_peer is passed when it goes on to the next one.
steps() {
	awk -v test="$lab_test" '
		/^(  |FAILED|[0-9]|\[)/ { next }
		step != "" { printf "pass %s: %s\n", test, step }
		{ step = $0 }
		END { if (step != "all is well") printf "fail %s: %s\n", test, step }' "$1" |
		tee -a "$work/verdicts" "$SMEMV_RESULTS"
}

lab_status=0
guest="SMEMV_BIN='$SMEMV_BIN' '$lab_dir/transport"
"$lab_dir/lab.sh" --timeout 700 --output "$work" \
	--cmd 1 "$guest/server.sh'" --cmd 2 "$guest/client.sh'" || lab_status=$?
criterion "$(part transport leases)" tcp verbs
criterion "$(part leases peer)" tcp mem verbs
steps "$(part peer end)"
check "the guests come to their ends" test "$lab_status" -eq 0
check "all 34 transport tests have run" test "$(grep -c ' transport::' "$work/verdicts")" -eq 34
check "what was moved was moved by RDMA" holds "$(fact 2 packets.end).received > 10000"
check "no sanitizer complains" no_sanitizer_complains
no_verdict_fails
((failed == 0)) || tail -n 60 "$work/2.log"
exit "$failed"
