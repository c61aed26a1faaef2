#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# guest-verbs.sh BIN PAIRS: in both guests: smemv-bench and perftest in turns.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck disable=SC2034 # for guest.sh
bin=$1 pairs=$2
# shellcheck source=guest.sh
. "$here/guest.sh"

# Few enough that a read's answers fit the emulated network card's queue: with more, packets get lost,
# and how Soft-RoCE recovers would be all that is measured.
READ_DEPTH=4

# By measure: both ends of perftest take the same arguments. ib_write_bw has no mode with events.
# -Q 1: with events, a small depth would otherwise be drained before it is filled again.
declare -A perftest_of=(
	[read-latency-poll]="ib_read_lat -p 20001 -s 4096 -n 1000"
	[read-latency-events]="ib_read_lat -p 20002 -s 4096 -n 1000 -e"
	[write-poll]="ib_write_bw -p 20003 -s 4096 -n 5000 -t 128"
	[read-poll]="ib_read_bw -p 20004 -s 65536 -n 500 -t $READ_DEPTH -o $READ_DEPTH -Q 1"
	[read-events]="ib_read_bw -p 20005 -s 65536 -n 500 -t $READ_DEPTH -o $READ_DEPTH -Q 1 -e"
)
declare -A smemv_of=(
	[read-latency-poll]="latency --size 4K --iterations 1000 --poll"
	[read-latency-events]="latency --size 4K --iterations 1000 --events"
	[write-poll]="bandwidth --op write --size 4K --iterations 5000 --depth 128 --poll"
	[read-poll]="bandwidth --op read --size 64K --iterations 500 --depth $READ_DEPTH --poll"
	[read-events]="bandwidth --op read --size 64K --iterations 500 --depth $READ_DEPTH --events"
)
measures=(read-latency-poll read-latency-events write-poll read-poll read-events)

# shellcheck disable=SC2086 # split into words
serve() {
	local measure
	serve_smemv 16M
	for measure in "${measures[@]}"; do
		serve_perftest ${perftest_of[$measure]}
	done
}

# one PAIR MEASURE PROGRAM
# shellcheck disable=SC2086 # split into words
one() {
	if [[ $3 == smemv ]]; then
		smemv "verbs-$2" "$1" ${smemv_of[$2]}
	else
		perftest "verbs-$2" "$1" perftest ${perftest_of[$2]}
	fi
}

# Who is first changes from pair to pair.
measure() {
	local pair measure order
	for ((pair = 1; pair <= pairs; pair++)); do
		order=(smemv perftest smemv)
		for measure in "${measures[@]}"; do
			one "$pair" "$measure" "${order[pair % 2]}"
			one "$pair" "$measure" "${order[pair % 2 + 1]}"
		done
	done
}

guest serve measure
