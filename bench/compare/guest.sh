# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced in the guests: guest 1 serves, guest 2 measures.
: "${here:?}" "${bin:?}" "${LAB_ID:?}" "${LAB_TIMEOUT:?}"
work=$(mktemp -d)
# shellcheck source=run.sh
. "$here/run.sh"

address=verbs:192.168.77.1:7001
# -m and -u: what smemv-bench's connections get here, too. Longer than the default, as Soft-RoCE begins
# a long read anew when it is not answered in time.
PERFTEST=(-d rxe0 -F -m 4096 -u 19)

# serve_smemv SIZE
serve_smemv() {
	local i
	"$bin" serve --listen "$address" --size "$1" --insecure >"$work/serve" &
	for ((i = 0; i < 300; i++)); do
		! grep -q '^listening' "$work/serve" || return 0
		sleep 0.1
	done
	echo "compare: smemv-bench serve does not listen"
	return 1
}

# serve_perftest TOOL ARGUMENT...: again and again, as it serves only one client.
serve_perftest() {
	while :; do
		timeout "$LAB_TIMEOUT" "$@" "${PERFTEST[@]}" >/dev/null 2>&1 || sleep 0.2
	done &
}

# MEASURE PAIR COMMAND ARGUMENT...
smemv() {
	run "$1" "$2" smemv "$bin" "${@:3}" --server "$address" --insecure --json
}

# perftest MEASURE PAIR PROGRAM TOOL ARGUMENT...
perftest() {
	run "$1" "$2" "$3" "${@:4}" "${PERFTEST[@]}" 192.168.77.1
}

# The other guest must not wait for one that failed.
leave() {
	local status=$?
	trap - EXIT
	barrier end 20 || :
	# shellcheck disable=SC2046 # one word each
	kill $(jobs -p) 2>/dev/null || :
	exit "$status"
}

# guest SERVER CLIENT: functions, of which one is called.
guest() {
	trap leave EXIT
	if ((LAB_ID == 1)); then
		"$1"
		barrier ready
		barrier end "$LAB_TIMEOUT"
	else
		barrier ready
		"$2"
	fi
}
