#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What cannot be migrated is refused before anything moves, with what to change.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
GUEST_MIB=128 BUDGET_KIB=$((40 * 1024))

lab_create
host_create source "$SOURCE_IP" && host_create main "$MAIN_IP" &&
	host_create sub1 "$SUB1_IP" && host_create sub2 "$SUB2_IP"
extents=$(scenario_room_extents)
# One extent less than what is needed.
scenario_start_sub_host sub1 "$SUB1_IP" $(((extents + 1) / 2 * 2))
scenario_start_sub_host sub2 "$SUB2_IP" $(((extents / 2 - 1) * 2))
scenario_start pagerd main "$LAB_DIR/pagerd.log" "$SMEMV_BIN/pagerd/smemv-pagerd" \
	--listen "unix:$PAGERD_SOCKET" --listen "$MAIN_IP:7000" --data "tcp:$MAIN_IP:7001" --insecure
for daemon in sub1 sub2 pagerd; do
	scenario_ready "$daemon" "$LAB_DIR/$daemon.log" ready:
done

# qemu WHAT HOST OPTIONS-OF-SMEMV-RUN -- MEMORY-AND-DEVICES: a VM without an operating system.
qemu() {
	local what=$1 host=$2
	local -a run_options=()
	shift 2
	while [[ $1 != -- ]]; do
		run_options+=("$1")
		shift
	done
	shift
	scenario_start "$what" "$host" "$LAB_DIR/$what.log" "$SMEMV_BIN/vmm/smemv-run" --vm guest \
		"${run_options[@]}" -- qemu-system-x86_64 -accel tcg -M pc,memory-backend=ram0 \
		-m "${GUEST_MIB}M" -nodefaults -display none "$@"
}
shared_ram=(-object "memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/vm.ram,size=${GUEST_MIB}M")
has_qmp() {
	[[ -S $(host_path "$1" /run/smemv/vms/guest/qmp.sock) ]] && qmp "$1" query-status >/dev/null 2>&1
}
start_source() {
	rm -f "$(host_path source /dev/shm/vm.ram)"
	qemu source-vm source -- "$@"
	scenario_wait 10 "the source's QMP" has_qmp source
}
vms_gone() {
	! scenario_registered
}
start_destination() {
	scenario_wait 10 "the end of the former VM" vms_gone
	qemu main-vm main --pager "unix:$PAGERD_SOCKET" -- "$@"
	scenario_wait 10 "the destination's registration" scenario_registered
}
still_running() {
	qmp source query-status | jq -e '.status == "running"' >/dev/null
}
# refused WHAT CODE PATTERN [OPTIONS...]: exit code 4, that error code, words in message and hint.
refused() {
	migrate "${@:4}"
	field '.error | "     \(.code): \(.message) | \(.hint)"'
	check "$1: exit code 4" test "$RC" -eq 4
	check "$1: the error is $2" \
		is ".status == \"refused\" and .error.code == \"$2\" and ((.error.message + .error.hint) | test(\"$3\"))"
	check "$1: the source is untouched" still_running
	check "$1: its capabilities too" capabilities_untouched
	check "$1: nothing is leased" scenario_no_leases
}

start_destination "${shared_ram[@]}"
start_source "${shared_ram[@]}"
refused "one extent too little" no-room "needed $((extents * 2)) MiB .*free $(((extents - 1) * 2)) MiB"
refused "a VM that is not there" no-vm nobody --to-vm nobody
refused "a budget of nothing" budget "16 MiB" --budget 1M
SCENARIO_ENV[migrate]="SMEMV_FAULT=kernel-features"
refused "a kernel without the features" kernel "$(uname -r).*6\\\\.7"
SCENARIO_ENV[migrate]=
scenario_end main-vm TERM

# The same RAM file again: QEMU wrote nothing to it, but now somebody else has.
printf 'data' | dd of="$(host_path main /dev/shm/vm.ram)" bs=1 seek=8192 conv=notrunc status=none
start_destination "${shared_ram[@]}"
refused "a destination RAM file with data" ram-not-empty "holds data"
scenario_end main-vm TERM
rm "$(host_path main /dev/shm/vm.ram)"

GUEST_MIB=192
start_destination -object "memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/vm.ram,size=192M"
GUEST_MIB=128
refused "differing RAM layouts" ram-layout "134217728.*201326592"
scenario_end source-vm TERM

start_source -object "memory-backend-ram,id=ram0,size=${GUEST_MIB}M"
refused "RAM that is in no file" ram-backend "share=on"
scenario_end source-vm TERM

start_source -object "memory-backend-file,id=ram0,share=off,mem-path=/dev/shm/vm.ram,size=${GUEST_MIB}M"
refused "RAM that is not shared" ram-not-shared "share=on"
scenario_end source-vm TERM

start_source "${shared_ram[@]}" -device edu
refused "a device that is not on the list" device-not-allowed "a edu"
scenario_end source-vm TERM

# Since Linux 6.6 tmpfs takes O_DIRECT.
truncate -s 1M "$(host_path source /tmp/disk.raw)"
start_source "${shared_ram[@]}" -drive file=/tmp/disk.raw,format=raw,if=virtio,cache=none
refused "a disk with cache.direct" cache-direct "cache"
scenario_end source-vm TERM

# Bad usage.
usage() {
	local rc=0
	host_run source "$SMEMV_BIN/$1" "${@:2}" >/dev/null 2>"$LAB_DIR/usage.log" || rc=$?
	[[ $rc -eq 2 && -s $LAB_DIR/usage.log ]]
}
check "usage: no command" usage migrator/smemv-migrate
check "usage: unknown option" usage migrator/smemv-migrate run --frobnicate
check "usage: a size that is none" usage migrator/smemv-migrate run --budget 12Q
check "usage: plaintext over the network without --insecure" usage migrator/smemv-migrate run --vm guest \
	--to 10.77.0.2:7000 --to-vm guest --sub-host 10.77.0.3:7000 --budget 64M
check "usage: memserverd without a name" usage memserver/memserverd --memory 64M
check "usage: pagerd without addresses" usage pagerd/smemv-pagerd
check "usage: smemv-run without a program" usage vmm/smemv-run --vm guest
rm "$(host_path source /tmp/disk.raw)"
scenario_end main-vm TERM
down
