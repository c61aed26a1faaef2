#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# libsmemv over verbs: its example sorts more than its budget against a memserverd in another guest, also
# while that is stopped, killed and upgraded; and which transport is taken where verbs cannot be used. One
# line per check; exit status 1 if any failed. Two minutes.
set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh" lab-smemv

# sorted NAME TRANSPORT: sort NAME ended well, over that transport, with paging.
sorted() {
	fact 2 "sort.$1" | jq -e --arg transport "$2" '.status == 0 and .transport == $transport
		and .sorted and .page_ins > 0 and .evictions > 0' >/dev/null || {
		echo "sort $1: $(fact 2 "sort.$1")"
		return 1
	}
}

# by_rdma: a packet carries 4096 bytes at most.
by_rdma() {
	jq -ne --argjson sort "$(fact 2 sort.plain)" --argjson before "$(fact 2 packets.begin)" \
		--argjson after "$(fact 2 packets.sorted)" --argjson mtu "$(fact 2 mtu)" '
		$sort.page_ins * 4096 / $mtu <= $after.received - $before.received
		and $after.sent > $before.sent' >/dev/null
}

# sent FROM TO: packets by the sub-host, as a number for holds.
sent() {
	echo "$(fact 1 "packets.$2").sent - $(fact 1 "packets.$1").sent"
}

lab_status=0
guest="SMEMV_BIN='$SMEMV_BIN' '$lab_dir/smemv"
"$lab_dir/lab.sh" --timeout 300 --output "$work" \
	--cmd 1 "$guest/server.sh'" --cmd 2 "$guest/client.sh'" || lab_status=$?
check "the guests come to their ends" test "$lab_status" -eq 0
check "the example sorts over verbs, which auto takes" sorted plain verbs
check "its page-ins came by RDMA" by_rdma
check "it sorts on while memserverd is stopped for longer than a deadline" sorted stopped verbs
check "page-ins complete meanwhile: the device answers alone" holds \
	"$(fact 1 stopped) and $(fact 1 packets.continue).sent - $(fact 1 packets.stop).sent > 100"
check "it sorts on while memserverd is killed, started again and upgraded" sorted restarted verbs
check "it listens on the last of three devices all the time" holds "$(fact 1 devices) == \"rxe1 rxe2 rxe0 \""
check "each new one takes the lease over" test "$(fact 1 taken_over) $(fact 1 status.second)" = "2 0"
check "and pages go by RDMA after each" holds "$(sent second upgrade) > 100 and $(sent third sorted) > 100"
check "other memory is told, and nothing is sorted from it" \
	test "$(fact 2 lost_sorted) $(fact 2 status.lost)" = "false 143"
check "without room to lock memory auto takes tcp" sorted locked tcp
check "and verbs is refused with the limit's name and remedy" holds \
	"$(fact 2 refusal) | test(\"RLIMIT_MEMLOCK is 64 KiB.*ulimit -l unlimited\")"
check "where verbs is not offered auto says so" holds \
	"$(fact 2 not_offered) | test(\"offers no verbs data address; it offers tcp:\")"
check "doctor finds the hosts ready" holds "$(fact 1 doctor) == 0 and $(fact 2 doctor) == 0"
check "an idle memserverd uses no CPU" holds "$(fact 1 idle_ticks) <= 2"
check "memserverd ends, with its arena gone" holds "$(fact 1 status.fourth) == 0 and $(fact 1 left) == 0"
check "no sanitizer complains" no_sanitizer_complains
((failed == 0)) || tail -n 40 "$work"/[12].log
exit "$failed"
