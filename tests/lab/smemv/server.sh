#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The sub-host of tests/lab/smemv.sh.
BARRIERS=(ready stop continue restart restarted sorted lose lost over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

MEMORY_MIB=96

ticks() {
	awk '{ print $14 + $15 }' "/proc/${PID[memserverd]}/stat"
}

is_stopped() {
	grep -q "^State:.T" "/proc/${PID[memserverd]}/status"
}

rxe0_is_ready() {
	grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state &&
		grep -qs "ffff:c0a8:4d$(printf %02x "$LAB_ID")" /sys/class/infiniband/rxe0/ports/1/gids/*
}

# Two RDMA devices before the one that memserverd listens on, as in a host with several cards.
other_devices() {
	local i
	modprobe dummy numdummies=2
	rdma link delete rxe0
	for i in 1 2; do
		ip link set "dummy$((i - 1))" up
		rdma link add "rxe$i" type rxe netdev "dummy$((i - 1))"
	done
	rdma link add rxe0 type rxe netdev eth0
	wait_for 20 "rxe0 is there again" rxe0_is_ready
	fact devices "\"$(ibv_devices | awk 'NR > 2 { printf "%s ", $1 }')\""
}

# lend NAME: all of them are the same server, one after the other.
lend() {
	begin "$1" "$SMEMV_BIN/memserver/memserverd" --name sub --memory "${MEMORY_MIB}M" --hugepages \
		--listen "$LAB_IP:7000" --data "tcp:$LAB_IP:7001" --data "verbs:$LAB_IP:7002" --insecure
	wait_for 30 "$1 is ready" says "$1" ready:
}

# leased NAME NUMBER: so many times to smemv-sort.
leased() {
	(($(grep -c "segments for 'smemv-sort" "$LOGS/$1") >= $2))
}

doctor sub-host
other_devices
huge_pages "$MEMORY_MIB"
lend memserverd
begin tcp_only "$SMEMV_BIN/memserver/memserverd" --name tcp --memory 2M --listen "$LAB_IP:7010" \
	--data "tcp:$LAB_IP:7011" --insecure
wait_for 30 "the one without verbs, too" says tcp_only ready:
before=$(ticks)
sleep 3
fact idle_ticks $(($(ticks) - before))
meet ready

meet stop
kill -STOP "${PID[memserverd]}"
wait_for 10 "memserverd is stopped" is_stopped
packets stop
sleep 8
packets continue
fact stopped "$(is_stopped && echo true || echo false)"
kill -CONT "${PID[memserverd]}"
meet continue

# The same memory again, after a crash and for an upgrade.
meet restart
wait_for 60 "the third sort has its lease" leased memserverd 3
sleep 2
kill_now memserverd
lend second
packets second
sleep 6
packets upgrade
end second
lend third
packets third
meet restarted
meet sorted
packets sorted
fact taken_over "$(cat "$LOGS/second" "$LOGS/third" | grep -c ": taken over, held")"

# Other memory.
meet lose
wait_for 60 "the sort has its lease" leased third 2
sleep 4
kill_now third
rm -r /dev/shm/smemv/memserverd-sub /dev/hugepages/*sub*
lend fourth
meet lost
barrier over 240
end tcp_only
end fourth
fact left "$(find /dev/shm /dev/hugepages -name '*sm*' | wc -l)"
