#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The source, for tests/lab/migrate.sh: goes on with the saved VM, and migrates it.
# shellcheck source=guest.sh
. "$(dirname "$(readlink -f "$0")")/guest.sh"

payload_of_a_packet
step "starting the VM from its saved state"
start_vm -- -incoming "exec:cat '$VM_STATE'"
timeout 120 python3 "$(dirname "$0")/resume.py" /run/smemv/vms/guest/qmp.sock
step "the VM is loaded"
wait_for 60 "the VM runs" heartbeat_beyond verified 0
meet ready

# By default, auto: it has to find out that all hosts can do verbs.
status=0
"$SMEMV_BIN/migrator/smemv-migrate" run --vm guest --to lab2:7000 --to-vm guest \
	--sub-host lab3:7000 --sub-host lab4:7000 --budget "${VM_BUDGET_KIB}K" \
	--insecure --max-downtime 20000 --timeout 200 --log-level debug --json \
	>/run/result.json 2>>"$LOGS/smemv-migrate" || status=$?
fact result "$(jq -c . /run/result.json)"
((status == 0))
step "migrated"
for name in "${BARRIERS[@]:1}"; do
	meet "$name"
	[[ $name != migrated ]] || end vm
done
