#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares smemv-bench with outside references, in turns, on the same machine in the same minutes.
set -euo pipefail

usage() {
	cat <<-'EOF2'
		usage: bench/compare.sh [--pairs N] [--seconds S] [--bin FILE] [--output DIR] [--install]

		tcp on loopback against sockperf (round trips of 4 KiB) and iperf3 (bandwidth of one
		connection).
		Prints a table of medians with their spread and writes DIR/compare.svg; what the programs printed
		is kept in DIR/*.log.

		  --pairs N      alternating measurements of each kind, at least 7 (default: 7)
		  --seconds S    of each (default: 3)
		  --bin FILE     smemv-bench (default: the newest one below build/)
		  --output DIR   (default: build/compare)
		  --install      install the references
		  --help         this text

		Exit status: 0 measured, whatever came out, 1 a program failed, 2 bad usage.
	EOF2
}

here=$(dirname "$(readlink -f "$0")")
pairs=7 seconds=3 bin='' output=$here/../build/compare install=no
tools=(sockperf iperf3) # and their packages

bad_usage() {
	echo "compare: $*" >&2
	usage >&2
	exit 2
}

while (($#)); do
	case $1 in
	--install) install=yes ;;
	--help | -h) usage; exit 0 ;;
	--pairs | --seconds | --bin | --output)
		[[ -n ${2-} ]] || bad_usage "$1 needs a value"
		declare "${1#--}=$2"
		shift
		;;
	*) bad_usage "unknown argument '$1'" ;;
	esac
	shift
done
[[ $pairs =~ ^([7-9]|[1-9][0-9]{1,2})$ ]] || bad_usage "--pairs: a number from 7 to 999"
[[ $seconds =~ ^[1-9][0-9]{0,3}$ ]] || bad_usage "--seconds: a number from 1 to 9999"

die() {
	echo "compare: $*" >&2
	exit 1
}

if [[ $install == yes ]]; then
	# shellcheck source=../deploy/packages.sh
	. "$here/../deploy/packages.sh"
	packages_known "${tools[@]}" || packages_apt update
	packages_apt_install "${tools[@]}"
fi
for tool in "${tools[@]}" python3; do
	command -v "$tool" >/dev/null || die "$tool is missing: use --install"
done
if [[ -z $bin ]]; then
	# shellcheck disable=SC2012 # names of our own
	bin=$(ls -t "$here"/../build/*/bench/smemv-bench 2>/dev/null | head -n 1) || :
fi
[[ -x $bin ]] || die "no smemv-bench: build it, or say where it is with --bin"
mkdir -p "$output"
bin=$(readlink -f "$bin")
rm -f "$output"/*.log

log=$output/tcp.log
work=$(mktemp -d)
pids=()
cleanup() {
	[[ ${#pids[@]} -eq 0 ]] || kill "${pids[@]}" 2>/dev/null || :
	rm -rf "$work"
}
trap cleanup EXIT

free_port() {
	python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# wait_for PORT
wait_for() {
	local i
	for ((i = 0; i < 100; i++)); do
		! (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null || return 0
		sleep 0.05
	done
	die "no server came up at port $1"
}

start_servers() {
	"$bin" serve --listen tcp:127.0.0.1:0 >"$work/serve" &
	pids+=($!)
	iperf_port=$(free_port)
	iperf3 -s -B 127.0.0.1 -p "$iperf_port" >"$work/iperf3" 2>&1 &
	pids+=($!)
	wait_for "$iperf_port"
	sockperf_port=$(free_port)
	sockperf server --tcp -i 127.0.0.1 -p "$sockperf_port" >"$work/sockperf" 2>&1 &
	pids+=($!)
	wait_for "$sockperf_port"
	address=$(sed -n 's/^listening on //p' "$work/serve")
	[[ -n $address ]] || die "smemv-bench serve does not listen"
}

# run MEASURE PAIR WHO COMMAND...
run() {
	echo "== $1 $2 $3" >>"$log"
	shift 3
	"$@" >>"$log" 2>&1 || die "failed, see the end of $log: $*"
}

smemv() {
	run "$1" "$2" smemv "$bin" "${@:3}" --server "$address" --seconds "$seconds" --json
}

iperf() {
	run "$1" "$2" iperf3 iperf3 -c 127.0.0.1 -p "$iperf_port" -t "$seconds" -J "${@:3}"
}

sockperf_rtt() {
	run "$1" "$2" sockperf sockperf ping-pong --tcp -i 127.0.0.1 -p "$sockperf_port" -m 4096 \
		-t "$seconds" --full-rtt "${@:3}"
}

start_servers
for ((pair = 1; pair <= pairs; pair++)); do
	echo "compare: pair $pair of $pairs" >&2
	smemv latency-events "$pair" latency --events
	sockperf_rtt latency-events "$pair"
	smemv latency-poll "$pair" latency --poll
	sockperf_rtt latency-poll "$pair" --nonblocked
	smemv write-bandwidth "$pair" bandwidth --op write --size 64K --events
	iperf write-bandwidth "$pair"
	smemv read-bandwidth "$pair" bandwidth --op read --size 64K --events
	iperf read-bandwidth "$pair" -R
done
python3 "$here/compare.py" "$output"
