#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A disk with cache=none (O_DIRECT, aio=native), on which the guest writes and verifies all the time
# from the RAM that is moved and paged, is reopened for a migration by --reopen-disks, on both sides.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck disable=SC2034 # for scenario.sh
GUEST_MIB=320 TEST_MIB=112 HOT_MIB=12 SWEEP_PPS=20000 BUDGET_KIB=$((80 * 1024))
DISK_DIR=$(mktemp -d "/var/tmp/smemv-lab-disk.XXXXXX")
DISK=$DISK_DIR/disk.raw
E2E_REMOVE+=("$DISK_DIR")
truncate -s 64M "$DISK"

modules=$("$SMEMV_SOURCE/deploy/guest/kernel.sh" --modules)
# shellcheck disable=SC2034 # for scenario.sh
GUEST_KERNEL=$(echo "$modules"/vmlinuz-*) GUEST_WORDS=smemv.disk=1 \
	GUEST_MODULES=("$modules"/lib/modules/*/kernel/drivers/block/virtio_blk.ko*)
# shellcheck disable=SC2034 # for scenario.sh
SCENARIO_DESTINATION=(--reopen-disks)
SCENARIO_QEMU=(-drive "if=none,id=disk,format=raw,cache=none,aio=native,file=$DISK"
	-object "iothread,id=io" -device "virtio-blk-pci,drive=disk,iothread=io")

# Both hosts see the same file, as on shared storage.
LAB_VISIBLE+=("$DISK_DIR")
share_disk() {
	host_run "$1" mount -o remount,bind,rw "$DISK_DIR"
}
scenario_start_source() {
	share_disk source
	share_disk main
	scenario_start_qemu source-vm source "$SOURCE_CONSOLE" --vm guest
}

# direct HOST: is QEMU's descriptor of the disk open with O_DIRECT?
direct() {
	local pid fd
	pid=$(qemu_in "$1")
	fd=$(find "/proc/$pid/fd" -lname '*/disk.raw' -printf '%f\n' | head -n 1)
	(($(awk '$1 == "flags:" { print "0" $2 }' "/proc/$pid/fdinfo/$fd" 2>/dev/null || echo 0) & 040000))
}
not_direct() {
	! direct "$1"
}
disk_works_on() {
	local before
	before=$(last_heartbeat "$1" disk)
	scenario_wait 30 "the disk on $1" heartbeat_beyond "$1" disk $((before + 50)) &&
		[[ $(last_heartbeat "$1" mismatches) == 0 ]]
}

up
check "the source's disk is open with O_DIRECT" direct source
check "and the destination's is not" not_direct main
check "the guest works on its disk" disk_works_on source

migrate
check "without --reopen-disks it is refused" is '.status == "refused" and .error.code == "cache-direct"'
check "and left as it is" direct source

# Cancelled while it is under way: put back.
SCENARIO_ENV[migrate]="SMEMV_FAULT=round-0:kill"
migrate --reopen-disks
SCENARIO_ENV[migrate]=
check "smemv-migrate was killed" test "$RC" -eq 137
check "its supervisor puts the disk back" scenario_wait 20 "O_DIRECT" direct source
check "the source's disk works on" disk_works_on source
host_run source "$SMEMV_BIN/migrator/smemv-migrate" recover 2>>"$LAB_DIR/migrate.log" || :

SCENARIO_ENV[migrate]="SMEMV_FAULT=round-0:wait SMEMV_FAULT_DIR=$FAULT_DIR"
migrate --reopen-disks --on-no-converge stop &
migration=$!
wait_at source round-0
check "while it is tracked the disk is not" not_direct source
go_on source round-0
wait "$migration" || :
check "the migration completes" is '.status == "completed" and .source_state == "postmigrate"'
check "the source's disk is as before" direct source
check "the guest runs at the main host" runs_on main
check "and works on its disk" disk_works_on main
check "without O_DIRECT" not_direct main
scenario_wait 200 "a sweep" has_sweeps main 1
check "after a whole sweep there is no mismatch, in RAM or on the disk" \
	test "$(last_heartbeat main mismatches)" -eq 0
blocks=$(last_heartbeat main disk)
echo "     $blocks blocks of 32 KiB were written and verified"
scenario_stats >"$LAB_DIR/stats.json"
check "the VM was paged meanwhile" jq -e '.page_ins > 1000 and .evictions > 1000' "$LAB_DIR/stats.json"
down
