#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The transport between two hosts: all its tests over verbs and tcp with the server in one guest and the
# client in another, then leases over verbs, then all that can happen to a host and its link. One line per
# check; exit status 1 if any failed. Three minutes.
set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh" lab-transport

# criterion LOG NAME...: the verdicts of a Criterion program. A test that runs once for each NAME shows up
# as often, in that order.
criterion() {
	local log=$1
	shift
	awk -v names="$*" -v test="$lab_test" '
		BEGIN { nr = split(names, name, " ") }
		$1 ~ /^\[(PASS|FAIL)\]$/ {
			verdict = $1 == "[PASS]" ? "pass" : "fail"
			sub(/:$/, "", $2)
			printf "%s %s: %s, %s\n", verdict, test, $2, name[seen[$2]++ % nr + 1]
		}' "$log" | tee -a "$work/verdicts" "$SMEMV_RESULTS"
}

# steps LOG: a step of transport_peer is passed when it goes on to the next one.
steps() {
	awk -v test="$lab_test" '
		/^(  |FAILED|[0-9]|\[)/ { next }
		step != "" { printf "pass %s: %s\n", test, step }
		{ step = $0 }
		END { if (step != "all is well") printf "fail %s: %s\n", test, step }' "$1" |
		tee -a "$work/verdicts" "$SMEMV_RESULTS"
}

# part FIRST LAST: the lines of guest 2 between two marks.
part() {
	sed -n "/^== $1$/,/^== $2$/{/^== /d;p}" "$work/2.log" >"$work/$1.log"
	echo "$work/$1.log"
}

count() {
	grep -c "^$1 " "$work/verdicts" || :
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
[[ $(count fail) -eq 0 ]] || failed=1
((failed == 0)) || tail -n 60 "$work/2.log"
exit "$failed"
