# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by compare.sh, whose variables these are: tcp on loopback.
: "${here:?}" "${bin:?}" "${pairs:?}" "${seconds:?}" "${output:?}" "${work:?}"
# shellcheck source=run.sh
. "$here/compare/run.sh"

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
	local i
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
	for ((i = 0; i < 100; i++)); do
		address=$(sed -n 's/^listening on //p' "$work/serve")
		[[ -z $address ]] || return 0
		sleep 0.05
	done
	die "smemv-bench serve does not listen"
}

# MEASURE PAIR ARGUMENT...
smemv() {
	run "$1" "$2" smemv "$bin" "${@:3}" --server "$address" --seconds "$seconds" --json
}

iperf() {
	run "$1" "$2" iperf3 iperf3 -c 127.0.0.1 -p "$iperf_port" -t "$seconds" -J "${@:3}"
}

sockperf_rtt() {
	run "$1" "$2" sockperf sockperf ping-pong --tcp -i 127.0.0.1 -p "$sockperf_port" \
		-t "$seconds" --full-rtt "${@:3}"
}

tcp_pair() {
	smemv tcp-latency-events "$1" latency --events &&
		sockperf_rtt tcp-latency-events "$1" -m 4096 &&
		smemv tcp-latency-poll "$1" latency --poll &&
		sockperf_rtt tcp-latency-poll "$1" -m 4096 --nonblocked &&
		smemv tcp-latency-bytes "$1" latency --events &&
		sockperf_rtt tcp-latency-bytes "$1" -m 2048 &&
		smemv tcp-write "$1" bandwidth --op write --size 64K --events &&
		iperf tcp-write "$1" &&
		smemv tcp-read "$1" bandwidth --op read --size 64K --events &&
		iperf tcp-read "$1" -R
}

need sockperf iperf3
# shellcheck disable=SC2034 # for run
RUN_TIMEOUT=$((seconds + 30))
start_servers
: >"$output/tcp.log"
for ((pair = 1; pair <= pairs; pair++)); do
	echo "compare: tcp: pair $pair of $pairs" >&2
	tcp_pair "$pair" >>"$output/tcp.log" || {
		tail -n 20 "$output/tcp.log" >&2
		die "tcp: a program failed, see the end of $output/tcp.log"
	}
done
