# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the tests in the lab share, on the outside. To be sourced with the test's name as argument: makes
# $work, and sets SMEMV_BIN (default build/debug). SMEMV_RESULTS is a file that gets a line "pass NAME" or
# "fail NAME" per check; SMEMV_E2E_LOGS is where the logs are kept if anything fails.

lab_test=$1
lab_dir=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
lab_source=$(dirname "$(dirname "$lab_dir")")
: "${SMEMV_BIN:=$lab_source/build/debug}" "${SMEMV_RESULTS:=/dev/null}" "${SMEMV_E2E_LOGS:=}"
SMEMV_BIN=$(realpath "$SMEMV_BIN")
work=$(mktemp -d "/tmp/smemv-$lab_test.XXXXXX")
failed=0
# What a test has to end before its directory goes.
lab_cleanup=:

# shellcheck disable=SC2317 # called by a trap
lab_finish() {
	local status=$?
	"$lab_cleanup" || :
	if ((status != 0)) && [[ -n $SMEMV_E2E_LOGS ]]; then
		mkdir -p "$SMEMV_E2E_LOGS/$lab_test"
		cp "$work"/*.log "$work"/*.console "$SMEMV_E2E_LOGS/$lab_test/" 2>/dev/null || :
	fi
	rm -rf "$work"
}
trap lab_finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# check WHAT COMMAND...
check() {
	local word=pass
	"${@:2}" || word=fail
	echo "$word $lab_test: $1" | tee -a "$SMEMV_RESULTS"
	[[ $word == pass ]] || failed=1
}

# part FIRST LAST: the lines of guest 2 between two marks.
part() {
	sed -n "/^== $1$/,/^== $2$/{/^== /d;p}" "$work/2.log" >"$work/$1.log"
	echo "$work/$1.log"
}

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

# no_verdict_fails: none of those in $work/verdicts; if one does, so does the test.
no_verdict_fails() {
	! grep -q '^fail ' "$work/verdicts" || failed=1
}

# fact GUEST NAME: what the guest printed as "fact NAME JSON", the last one; null without any.
fact() {
	local value
	value=$(sed -n "s/^fact $2 //p" "$work/$1.log" | tail -n 1)
	echo "${value:-null}"
}

# holds EXPRESSION: jq says that it is true.
holds() {
	jq -ne "$1" >/dev/null
}

# rose GUEST COUNTER FROM TO BYTES: that many packets at least as the bytes need at the path's MTU.
rose() {
	local packets need mtu
	mtu=$(fact "$1" mtu)
	packets=$(jq -n "($(fact "$1" "packets.$4").$2 // 0) - ($(fact "$1" "packets.$3").$2 // 0)")
	need=$((($5 + mtu - 1) / mtu))
	echo "     guest $1 $2 $packets packets from '$3' to '$4'; $5 bytes need $need"
	((need > 0 && packets >= need))
}

no_sanitizer_complains() {
	! grep -E '(Address|Leak|Thread)Sanitizer|runtime error:' "$work"/*.log
}
