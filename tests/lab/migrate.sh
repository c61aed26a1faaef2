#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A whole split migration over verbs, between four lab guests: source, main host, two sub-hosts. The VM
# is a QEMU inside a lab guest; it boots outside, where that takes seconds, and goes on inside from its
# saved state. One line per check; exit status 1 if any failed. Five minutes and more.
set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh" lab-migrate
# shellcheck source=migrate/vm.sh
. "$lab_dir/migrate/vm.sh"
qemu=''

# shellcheck disable=SC2317 # called by a trap
kill_vm() {
	[[ -z $qemu ]] || kill -KILL "$qemu" 2>/dev/null
}
# shellcheck disable=SC2034 # for lib.sh
lab_cleanup=kill_vm

step() {
	echo "[$SECONDS s] $*"
}

# ---- the VM, saved ----

qmp() {
	python3 "$lab_source/tests/e2e/qmp.py" "$work/qmp" "$@"
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
	local end=$((SECONDS + $1)) what=$2
	until "${@:3}"; do
		((SECONDS < end)) || {
			echo "lab-migrate: $what: not within $1 s" >&2
			tail -n 20 "$work"/*.console >&2
			return 1
		}
		sleep 0.1
	done
}

saved() {
	[[ $(qmp query-migrate | jq -r .status) == completed ]]
}

# save FILE: boots the VM and saves its state, RAM included, as soon as it works.
save() {
	vm_command "$VM_KERNEL" "$VM_INITRD" memory-backend-ram
	"${VM_COMMAND[@]}" -serial "file:$work/vm.console" -qmp "unix:$work/qmp,server=on,wait=off" \
		</dev/null >"$work/vm.log" 2>&1 &
	qemu=$!
	wait_for 60 "the VM's boot" grep -qs "HB n=2 " "$work/vm.console"
	qmp stop >/dev/null
	qmp migrate "{\"uri\": \"exec:cat > '$1.new'\"}" >/dev/null
	wait_for 60 "the VM's state" saved
	qmp quit >/dev/null
	wait "$qemu"
	qemu=''
	mv "$1.new" "$1"
}

# prepare: sets VM_KERNEL, VM_INITRD and VM_STATE, which are kept in the build directory.
prepare() {
	local cache=$SMEMV_BIN/lab-migrate key
	VM_KERNEL=$("$lab_source/deploy/guest/kernel.sh")
	"$lab_source/deploy/guest/build.sh" "$cache"
	VM_INITRD=$cache/initramfs.gz
	key=$(cat "$VM_KERNEL" "$VM_INITRD" "$lab_dir/migrate/vm.sh" <(qemu-system-x86_64 --version) |
		sha256sum | cut -c 1-16)
	VM_STATE=$cache/state-$key
	if [[ ! -e $VM_STATE ]]; then
		rm -f "$cache"/state-*
		save "$VM_STATE"
		step "the VM has booted and is saved"
	fi
	# What the sub-hosts lend together: VM - budget + a slack of 64 MiB, in extents of 2 MiB; see
	# docs/architecture.md.
	printf '%s=%q\n' SMEMV_BIN "$SMEMV_BIN" VM_KERNEL "$VM_KERNEL" VM_INITRD "$VM_INITRD" \
		VM_STATE "$VM_STATE" \
		SUB_HOST_MIB "$(((VM_MIB - VM_BUDGET_KIB / 1024 + 64 + 3) / 4 * 2))" >"$work/environment"
}

# ---- what the guests found out ----

# is GUEST NAME EXPRESSION: jq says that it is true of the fact.
is() {
	local value
	value=$(fact "$1" "$2")
	jq -e "$3" <<<"$value" >/dev/null || {
		echo "guest $1: $2: not ($3): $value" >&2
		return 1
	}
}

# Guest 3 is the first sub-host, guest 4 the second.
sub_hosts_received() {
	local id
	for id in 3 4; do
		rose "$id" received begin migrated "$(fact 1 result | jq ".sub_hosts[$id - 3].bytes // 0")" || return
	done
}

# pages_sent FROM TO: the sub-hosts together sent what the pager says that it read.
pages_sent() {
	local bytes sent
	bytes=$(jq -n "($(fact 2 "stats.$2").bytes_read // 0) - ($(fact 2 "stats.$1").bytes_read // 0)")
	sent=$(jq -n "[$(fact 3 "packets.$2").sent // 0, -($(fact 3 "packets.$1").sent // 0),
		$(fact 4 "packets.$2").sent // 0, -($(fact 4 "packets.$1").sent // 0)] | add")
	echo "     the pager read $bytes bytes from '$1' to '$2'; the sub-hosts sent $sent packets"
	((bytes > 0 && sent >= bytes / $(fact 3 mtu)))
}

judge() {
	local budget_pages=$((VM_BUDGET_KIB / 4))
	check "every guest comes to its end" test "$lab_status" -eq 0
	check "the migration completes" is 1 result '.status == "completed" and .committed and .error == null'
	check "hot + cold + zero = total = the VM's RAM" is 1 result \
		".pages | .hot + .cold + .zero == .total and .total == $((VM_MIB * 256))"
	check "hot pages fit the budget, and both sub-hosts got cold ones" is 1 result \
		".pages.hot <= $budget_pages and .pages.hot > 0 and (.sub_hosts | length == 2 and all(.bytes > 0))"
	check "smemv-migrate took verbs, by itself" is 1 result \
		'.transport == "verbs" and (.transport_reason | startswith("verbs: all hosts can"))'
	check "the pager took verbs" is 2 stats.stopped '.transport == "verbs"'
	check "the cold pages came to the sub-hosts by RDMA" sub_hosts_received
	check "the hot pages came to the main host by RDMA" rose 2 received begin migrated \
		"$(fact 1 result | jq '.bytes.to_main // 0')"
	check "the VM has swept all its memory at the main host" is 2 sweeps \
		"length >= 2 and (.[1] | test(\"pages=$((VM_TEST_MIB * 256)) mismatches=0\"))"
	check "pages were paged in and evicted, none is lost" is 2 stats.stopped \
		'.page_ins > 0 and .evictions > 0 and .pages_lost == 0 and .trouble == ""'
	check "the VM stays within its budget" is 2 stats.stopped ".resident_bytes <= $((VM_BUDGET_KIB * 1024))"
	check "pages are paged in by RDMA" pages_sent begin stopped
	check "both memserverds were stopped all the while" holds "$(fact 3 stopped) and $(fact 4 stopped)"
	check "page-ins complete while they are" holds \
		"($(fact 2 stats.observed).page_ins // 0) > ($(fact 2 stats.stopped).page_ins // 0)"
	check "and by RDMA" pages_sent stopped observed
	check "the VM goes on verifying while they are" is 2 while_stopped '.after > .before'
	check "and the pager says that their leases are not renewed" grep -q "the pager's alarm$" "$work/2.log"
	check "it does under the pager that follows one that was killed" is 2 taken_over '.after > .before'
	check "and that says so" is 2 vms \
		'.vms | length == 1 and all(.name == "guest" and .state == "running" and .trouble == "")'
	check "that pager took verbs, too, and lost nothing" is 2 stats.taken_over \
		'.transport == "verbs" and .page_ins > 0 and .pages_lost == 0'
	check "both memserverds were killed and have their leases again" \
		test "$(fact 3 taken_over) $(fact 4 taken_over)" = "1 1"
	check "the VM goes on after that as well" is 2 restarted '.after > .before'
	check "and the pager reads and writes there" is 2 stats.restarted \
		".page_ins > $(fact 2 stats.taken_over | jq '.page_ins? // 0') and .pages_lost == 0"
	check "there was no mismatch at all" test "$(fact 2 mismatches)" = 0
	check "the leases are returned and the daemons end" \
		test "$(fact 2 status.second) $(fact 3 status.second) $(fact 4 status.second)" = "0 0 0"
	check "no sanitizer complains" no_sanitizer_complains
}

prepare
lab_status=0
guest="'$lab_dir/migrate"
"$lab_dir/lab.sh" --memory 640 --timeout 900 --output "$work" \
	--cmd 1 "$guest/source.sh' '$work'" --cmd 2 "$guest/main_host.sh' '$work'" \
	--cmd 3 "$guest/sub_host.sh' '$work'" --cmd 4 "$guest/sub_host.sh' '$work'" || lab_status=$?
step "the lab has ended: status $lab_status"
grep "^\[.* s\] " "$work"/[1-4].log | sed "s|^$work/|     guest |" || :
fact 1 result | jq -c '{total_time_ms, setup_time_ms, downtime_ms, rounds, pages, bytes}'
fact 2 stats.stopped | jq -c '{page_ins, evictions, evictions_clean, fault_latency_us}'
judge
exit "$failed"
