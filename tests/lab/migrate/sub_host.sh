#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sub-host, for tests/lab/migrate.sh. For a while its memserverd is stopped: nobody needs it to run.
# shellcheck source=guest.sh
. "$(dirname "$(readlink -f "$0")")/guest.sh"

stopped() {
	grep -q "^State:.T" "/proc/${PID[memserverd]}/status"
}

payload_of_a_packet
packets begin
# Soft-RoCE registers huge pages many times as fast as small ones.
echo "$((SUB_HOST_MIB / 2))" >/proc/sys/vm/nr_hugepages
mkdir -p /dev/hugepages
mount -t hugetlbfs none /dev/hugepages
begin memserverd "$SMEMV_BIN/memserver/memserverd" --name "sub$LAB_ID" --memory "${SUB_HOST_MIB}M" \
	--listen "$LAB_IP:7000" --data "tcp:$LAB_IP:7001" --data "verbs:$LAB_IP:7002" --hugepages --insecure --log-level debug
wait_for 60 "memserverd is ready" says memserverd ready:
meet ready
meet migrated
packets migrated
meet swept
kill -STOP "${PID[memserverd]}"
wait_for 10 "memserverd is stopped" stopped
packets stopped
meet stopped
meet observed
packets observed
fact stopped "$(stopped && echo true || echo false)"
kill -CONT "${PID[memserverd]}"
meet continued
meet ended
wait_for 60 "the lease is returned" says memserverd "is released"
meet returned
end memserverd
