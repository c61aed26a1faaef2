# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the lab guests of tests/lab/migrate.sh share. To be sourced, with the work directory of
# migrate.sh as the argument.

migrate_dir=$(dirname "${BASH_SOURCE[0]}")
# shellcheck disable=SC1091 # made by migrate.sh: SMEMV_BIN, VM_KERNEL, VM_INITRD, VM_STATE
. "$1/environment"
# shellcheck disable=SC2034 # for guest.sh
BARRIERS=(ready migrated swept stopped observed continued taken_over restarted ended returned)
# shellcheck source=../guest.sh
. "$migrate_dir/../guest.sh"
# shellcheck source=vm.sh
. "$migrate_dir/vm.sh"

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
