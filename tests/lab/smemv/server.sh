#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The sub-host of tests/lab/smemv.sh.
BARRIERS=(ready stop continue over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

MEMORY_MIB=96

ticks() {
	awk '{ print $14 + $15 }' "/proc/${PID[memserverd]}/stat"
}

is_stopped() {
	grep -q "^State:.T" "/proc/${PID[memserverd]}/status"
}

doctor sub-host
echo "$((MEMORY_MIB / 2))" >/proc/sys/vm/nr_hugepages
mkdir -p /dev/hugepages
mount -t hugetlbfs none /dev/hugepages
begin memserverd "$SMEMV_BIN/memserver/memserverd" --name sub --memory "${MEMORY_MIB}M" --hugepages \
	--listen "$LAB_IP:7000" --data "tcp:$LAB_IP:7001" --data "verbs:$LAB_IP:7002" --insecure
begin tcp_only "$SMEMV_BIN/memserver/memserverd" --name tcp --memory 2M --listen "$LAB_IP:7010" \
	--data "tcp:$LAB_IP:7011" --insecure
wait_for 30 "memserverd is ready" says memserverd ready:
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
barrier over 240
end tcp_only
end memserverd
fact left "$(find /dev/shm /dev/hugepages -name '*sm*' | wc -l)"
