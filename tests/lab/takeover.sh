#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Takeover and restart over verbs: a pager that is killed again and again under a VM and fenced by the
# memserverds of another guest, and one that they do not fence; then all tests of leases over a memserverd
# that dies and comes back. One line per check; exit status 1 if any failed. One or two minutes.
set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh" lab-takeover

# says RUN PATTERN: of pager_kill's output.
says() {
	fact 2 "$1" | jq -e --arg pattern "$2" '.text | test($pattern)' >/dev/null
}

# epochs MEMSERVERD: how many the lease on it was raised to.
epochs() {
	grep -c "^$1: .*: epoch [0-9]* -> [0-9]*$" "$work/1.log" || :
}

lab_status=0
guest="SMEMV_BIN='$SMEMV_BIN' '$lab_dir/takeover"
"$lab_dir/lab.sh" --timeout 700 --output "$work" \
	--cmd 1 "$guest/server.sh'" --cmd 2 "$guest/client.sh'" || lab_status=$?
fact 2 killed | jq -r '.text? // "pager_kill has printed nothing"' | sed 's/^/     /'
check "the guests come to their ends" test "$lab_status" -eq 0
check "a pager that is killed 12 times: all is well" holds "$(fact 2 killed).status == 0"
check "no access sees a wrong page, nor does an audit" says killed "checks, 0 mismatches, 0 faults"
check "every successor has fenced both sub-hosts" \
	test "$(epochs one)" -ge 13 -a "$(epochs two)" -ge 13
check "a connection of a former epoch cannot write" says killed "a late write: (Connection|Transport)"
check "it could if nobody fenced, and that would be seen" holds "$(fact 2 unfenced).status == 0"
check "the pages went by RDMA" rose 1 sent begin killed 4194304
check "no connection is left at the sub-hosts" test "$(fact 1 left)" = 0
check "the memserverds end" test "$(for name in one two unfenced-one unfenced-two; do
	fact 1 "status.$name"; done | tr '\n' ' ')" = "0 0 0 0 "
criterion "$(part leases end)" verbs
check "all lease tests have run" test "$(grep -c ' leases::' "$work/verdicts")" -eq \
	"$(grep -c '^Test(leases,' "$(dirname "$(readlink -f "$0")")/../unit/test_leases.c")"
check "no sanitizer complains" no_sanitizer_complains
no_verdict_fails
((failed == 0)) || tail -n 60 "$work"/[12].log
exit "$failed"
