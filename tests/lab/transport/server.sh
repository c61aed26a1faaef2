#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The server's guest of tests/lab/transport.sh.
BARRIERS=(ready over)
# shellcheck source=../guest.sh
. "$(dirname "$(readlink -f "$0")")/../guest.sh"

# It is killed on the way, and ends with this guest.
serve_peer() {
	while :; do
		"$SMEMV_BIN/tests/lab/transport_peer" server "verbs:$LAB_IP:7000" "verbs:[$LAB_IP6]:7001" || :
	done
}

begin transport_server "$SMEMV_BIN/tests/lab/transport_server" 7777
begin peer serve_peer
meet ready
barrier over 680
