#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# While the VM is stopped for the switch-over, an independent reader finds every page of the source
# through the map, byte for byte. Then the guest runs on.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
small_guest
SEED=20181

SCENARIO_ENV[migrate]="SMEMV_FAULT=map-confirmed:wait SMEMV_FAULT_DIR=$FAULT_DIR"
up
migrate &
migration=$!
wait_at source map-confirmed
for host in sub1 sub2; do
	scenario_sub_host "$host" leases >"$LAB_DIR/$host.leases.json"
done
# read_through_map ARENA-OF-SUB1
read_through_map() {
	python3 "$E2E_DIR/verify_map.py" \
		"$(host_path source /dev/shm/source.ram)" "$(host_path main /dev/shm/main.ram)" \
		"$(host_path main /run/smemv/pagerd/guest.map)" \
		"$(host_path main /run/smemv/pagerd/guest.extents.json)" \
		"$1=$LAB_DIR/sub1.leases.json" \
		"$(host_path sub2 /dev/shm/smemv/memserverd-sub2/arena)=$LAB_DIR/sub2.leases.json"
}
arena=$(host_path sub1 /dev/shm/smemv/memserverd-sub1/arena)
check "every page of the source is found through the map" read_through_map "$arena"

# The reader would see a mistake: flip one bit in a copy of an arena.
cp --sparse=always "$arena" "$LAB_DIR/arena"
python3 -c 'import sys
with open(sys.argv[1], "r+b") as arena:
    arena.seek(4096 + 7)
    byte = arena.read(1)[0] ^ 1
    arena.seek(4096 + 7)
    arena.write(bytes([byte]))' "$LAB_DIR/arena"
sees_flipped_bit() {
	local seen
	seen=$(read_through_map "$LAB_DIR/arena") || :
	[[ $seen == *'"wrong": 1}' ]]
}
check "one flipped bit is seen" sees_flipped_bit

go_on source map-confirmed
wait "$migration" || :
check "the migration completes" is '.status == "completed"'
check "the guest runs at the main host" runs_on main
SCENARIO_ENV[migrate]=
migrate
check "a source that was migrated already is refused" \
	is '.status == "refused" and .error.code == "migrated-already"'
scenario_wait 120 "a sweep" has_sweeps main 1
check "a whole sweep finds no mismatch" test "$(last_heartbeat main mismatches)" -eq 0
down
