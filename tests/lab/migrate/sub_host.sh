#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sub-host, for tests/lab/migrate.sh. For a while its memserverd is stopped: nobody needs it to run.
# Later it is killed and started again.
# shellcheck source=guest.sh
. "$(dirname "$(readlink -f "$0")")/guest.sh"

stopped() {
	grep -q "^State:.T" "/proc/${PID[memserverd]}/status"
}

# lend NAME: all of them are the same server, one after the other.
lend() {
	begin "$1" "$SMEMV_BIN/memserver/memserverd" --name "sub$LAB_ID" --memory "${SUB_HOST_MIB}M" \
		--listen "$LAB_IP:7000" --data "tcp:$LAB_IP:7001" --data "verbs:$LAB_IP:7002" \
		--hugepages --insecure --log-level debug
	wait_for 60 "$1 is ready" says "$1" ready:
}

payload_of_a_packet
packets begin
huge_pages "$SUB_HOST_MIB"
lend memserverd
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
meet taken_over
kill_now memserverd
lend second
fact taken_over "$(grep -c ": taken over, held" "$LOGS/second" || :)"
meet restarted
meet ended
wait_for 60 "the lease is returned" says second "is released"
meet returned
end second
