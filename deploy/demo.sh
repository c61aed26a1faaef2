#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real split migration on one machine, from nothing to a report.
set -euo pipefail

usage() {
	cat <<-'EOF'
		usage: deploy/demo.sh [--no-install] [--seed N]

		Installs what is missing, builds, and split-migrates a running QEMU guest of 512 MiB: from a source
		to a main host that may hold 30 % of its memory, and two sub-hosts that take the rest. Each host is a
		network and mount namespace of its own on this machine. The guest writes, verifies and rewrites most
		of its memory all the time; the report says what it found.
		Needs Debian 12 or newer, Linux 6.7 or later, and root. About two minutes after the packages.
		What stays behind: the build in build/release, and the guest's kernel in ~/.cache/smemv.

		  --no-install   do not install packages
		  --seed N       of the guest's memory contents (default: a random one)
		  --help         this text

		Exit status: 0 the guest runs on with every byte verified, 1 something failed, 2 bad usage.
	EOF
}

SMEMV_SOURCE=$(dirname "$(dirname "$(readlink -f "$0")")")
SMEMV_BIN=$SMEMV_SOURCE/build/release
install=yes
while (($#)); do
	case $1 in
	--no-install) install=no ;;
	--seed)
		[[ ${2-} =~ ^[0-9]+$ ]] || { echo "demo: --seed needs a number" >&2; exit 2; }
		SEED=$2
		shift
		;;
	--help | -h) usage; exit 0 ;;
	*) echo "demo: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
	esac
	shift
done

# shellcheck source=lib.sh
. "$SMEMV_SOURCE/deploy/lib.sh"
# shellcheck source=packages.sh
. "$SMEMV_SOURCE/deploy/packages.sh"
# shellcheck source=scenario.sh
. "$SMEMV_SOURCE/deploy/scenario.sh"

say() {
	printf '\n\033[1m%s\033[0m\n' "$*"
}
[[ -t 1 ]] || say() {
	printf '\n%s\n' "$*"
}

failed() {
	local status=$?
	if ((status != 0)) && [[ -n $LAB_DIR ]]; then
		echo "demo: failed; the last lines of the logs:" >&2
		tail -n 5 "$LAB_DIR"/*.log >&2 || :
	fi
	lab_destroy
	exit "$status"
}

kernel_check || exit 1
cd "$SMEMV_SOURCE"
if [[ $install == yes ]]; then
	say "1. Packages"
	packages_install demo
fi
say "2. Build"
{ cmake --preset release && cmake --build --preset release; } >build-release.log 2>&1 || {
	tail -n 40 build-release.log
	exit 1
}
rm -f build-release.log
echo "in $SMEMV_BIN"

trap failed EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
say "3. A source, a main host, two sub-hosts"
lab_create
scenario_up
cat <<EOF
source $SOURCE_IP: QEMU with $GUEST_MIB MiB, of which the guest keeps $TEST_MIB MiB under test (seed $SEED)
main   $MAIN_IP: smemv-pagerd, and a QEMU that waits; the VM may hold $((BUDGET_KIB / 1024)) MiB there
sub1   $SUB1_IP, sub2 $SUB2_IP: memserverd, together $(($(scenario_room_extents) * 2)) MiB
EOF

say "4. Split migration"
scenario_migrate --log-level warning --json >"$LAB_DIR/result.json" || {
	jq -r '.error | .message, .hint' "$LAB_DIR/result.json" >&2
	exit 1
}
jq -r '"completed in \(.total_time_ms / 1000 * 10 | round / 10) s; the guest stood still for \(.downtime_ms | round) ms"' \
	"$LAB_DIR/result.json"

say "5. The guest goes on at the main host and sweeps all of its memory twice"
heartbeat() {
	grep -ao "HB .*mismatches=.*" "$LAB_DIR/main.console" | tail -n 1 | grep -o "$1=[0-9]*" | cut -d= -f2
}
sweeps() {
	grep -ac 'SWEEP n=' "$LAB_DIR/main.console" || :
}
faults() {
	scenario_stats | jq .faults
}
start=$(date +%s%N)
faults_before=$(faults)
# The first sweep began at the source.
until (($(sweeps) >= 3)); do
	kill -0 "${SCENARIO_PID[main-vm]}" || exit 1
	(($(date +%s%N) - start < 240000000000)) || { echo "demo: the guest does not get on" >&2; exit 1; }
	[[ ! -t 1 ]] || printf '\r%s pages verified, %s mismatches, %s sweeps \033[K' \
		"$(heartbeat verified)" "$(heartbeat mismatches)" "$(sweeps)"
	sleep 1
done
[[ ! -t 1 ]] || printf '\r\033[K'
seconds=$((($(date +%s%N) - start) / 1000000000))
scenario_stats >"$LAB_DIR/stats.json"
mismatches=$(heartbeat mismatches)

say "Report"
jq -r --slurpfile stats "$LAB_DIR/stats.json" --arg seconds "$seconds" --arg before "$faults_before" \
	--arg verified "$(heartbeat verified)" --arg mismatches "$mismatches" '
	def mib: . * 4096 / 1048576 | round;
	def line(what; pages): "  \(what)\(pages) pages, \(pages | mib) MiB";
	$stats[0] as $s | .pages as $p |
	"Migration", line("hot:    "; $p.hot), line("cold:   "; $p.cold), line("zero:   "; $p.zero),
	line("resent: "; $p.resent),
	"  total time \(.total_time_ms | round) ms, downtime \(.downtime_ms | round) ms, \(.rounds | length) rounds",
	"  transport: \(.transport_reason)",
	"Remote paging, \($seconds) s",
	"  \(($s.faults - ($before | tonumber)) / ($seconds | tonumber) | round) faults/s, \($s.page_ins) page-ins, \($s.evictions) evictions (\($s.evictions_clean) without a write)",
	"  fault latency p50 \($s.fault_latency_us.p50 | round) us, p99 \($s.fault_latency_us.p99 | round) us, max \($s.fault_latency_us.max | round) us",
	"  resident \($s.resident_bytes / 1048576 | round) of \($s.budget_bytes / 1048576 | round) MiB",
	"Guest", "  \($verified) pages verified by itself, \($mismatches) mismatches"' "$LAB_DIR/result.json"

scenario_down
lab_destroy
lab_check_clean || { echo "demo: something was left behind" >&2; exit 1; }
echo
echo "No process, namespace or file of the demo is left."
[[ $mismatches -eq 0 ]]
