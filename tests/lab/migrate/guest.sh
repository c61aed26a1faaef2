# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the lab guests of tests/lab/migrate.sh share. To be sourced, with the work directory of
# migrate.sh as the argument. What a guest finds out it prints as lines "fact NAME JSON"; migrate.sh judges.
set -euo pipefail

# shellcheck source=vm.sh
. "$(dirname "${BASH_SOURCE[0]}")/vm.sh"
# shellcheck disable=SC1091 # made by migrate.sh: SMEMV_BIN, VM_KERNEL, VM_INITRD, VM_STATE
. "$1/environment"

BARRIERS=(ready migrated swept stopped observed continued ended returned)
COUNTERS=/sys/class/infiniband/rxe0/ports/1/hw_counters
LOGS=/run/lab-migrate
mkdir "$LOGS"
declare -A PID=()

# A guest that has failed lets the others pass, so that they end as well.
finish() {
	local status=$? name log
	if ((status != 0)); then
		fact failed "$status"
		for name in "${BARRIERS[@]}"; do
			: >"/run/lab/barrier/$name"
		done
	fi
	grep -H -v '^0$' "$COUNTERS"/* | sed "s|^.*/|rxe0: |"
	for log in "$LOGS"/*; do
		sed "s/^/${log##*/}: /" "$log"
	done
	((${#PID[@]} == 0)) || kill -KILL "${PID[@]}" 2>/dev/null || :
}
trap finish EXIT

step() {
	echo "[$(cut -d ' ' -f 1 /proc/uptime) s] $*"
}

# fact NAME JSON
fact() {
	echo "fact $1 $2"
}

meet() {
	barrier "$1" 300
	step "all are at '$1'"
}

# begin NAME COMMAND...: in the background, with a log.
begin() {
	"${@:2}" </dev/null >"$LOGS/$1" 2>&1 &
	PID[$1]=$!
}

# end NAME: asks it to end, and tells its exit status.
end() {
	local status=0
	kill -TERM "${PID[$1]}"
	wait "${PID[$1]}" || status=$?
	unset "PID[$1]"
	fact "status.$1" "$status"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
	local end=$((SECONDS + $1)) what=$2
	until "${@:3}"; do
		((SECONDS < end)) || {
			echo "$what: not within $1 s"
			return 1
		}
		sleep 0.3
	done
	step "$what"
}

says() {
	grep -qa -e "$2" "$LOGS/$1"
}

# packets NAME: the RDMA device's own counters, as a fact.
packets() {
	fact "packets.$1" "{\"received\": $(<"$COUNTERS/rcvd_pkts"), \"sent\": $(<"$COUNTERS/sent_pkts")}"
}

# payload_of_a_packet: as a fact, at most.
payload_of_a_packet() {
	fact mtu "$(ibv_devinfo -d rxe0 | awk '$1 == "active_mtu:" { print $2 }')"
}

# Loading it takes an emulated CPU a second or more: not for polling.
smemvctl() {
	"$SMEMV_BIN/ctl/smemvctl" --insecure --timeout 30 --json "$@" | jq -c .
}

# start_vm SMEMV-RUN-OPTION... -- QEMU-OPTION...
start_vm() {
	local -a options=()
	while [[ $1 != -- ]]; do
		options+=("$1")
		shift
	done
	vm_command "$VM_KERNEL" "$VM_INITRD" memory-backend-file,share=on,mem-path=/dev/shm/guest.ram
	begin vm "$SMEMV_BIN/vmm/smemv-run" --vm guest "${options[@]}" -- \
		"${VM_COMMAND[@]}" -serial stdio "${@:2}"
}

# heartbeat_beyond FIELD NUMBER
heartbeat_beyond() {
	local now
	now=$(vm_heartbeat "$LOGS/vm" "$1")
	((${now:-0} > $2))
}
