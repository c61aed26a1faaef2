#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The client's guest of tests/lab/transport.sh: a part after each mark.
BARRIERS=(ready over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

meet ready
transport_tests() {
	SMEMV_TEST_SERVER=lab1:7777 SMEMV_TEST_VERBS=192.168.77.1 criterion test_transport 'transport/*'
}

echo "== transport"
send_errors=$(<"$COUNTERS/send_err")
transport_tests >/tmp/transport
# A packet that the kernel could not send is not always sent again by Soft-RoCE: the request of a test then
# hangs until its deadline, which is nothing of ours. All is run once more.
if grep -q '^\[FAIL\]' /tmp/transport && (($(<"$COUNTERS/send_err") > send_errors)); then
	echo "Soft-RoCE could not send a packet; once more, after this:"
	sed 's/^/was: /' /tmp/transport
	transport_tests >/tmp/transport
fi
cat /tmp/transport
# Before the cable is pulled: a message of the connection manager that meets a device that is down breaks
# Soft-RoCE for good.
echo "== leases"
SMEMV_TEST_VERBS=$LAB_IP criterion test_memserver 'lease/*'
echo "== peer"
"$SMEMV_BIN/tests/lab/transport_peer" client verbs:192.168.77.1:7000 "verbs:[fd77::1]:7001" || :
echo "== end"
packets end
barrier over
