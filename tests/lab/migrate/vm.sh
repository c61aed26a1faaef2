# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The VM that is migrated, the same in all places: on the machine itself, where it boots and is saved,
# and in the lab guests of the source and the main host. To be sourced.

# An emulated CPU within an emulated CPU: small, and in no hurry. The guest's kernel takes 62 MiB, of which
# it touches few again; those few and the RAM under test are more than the budget, so that paging never ends.
# shellcheck disable=SC2034 # for those who source this
VM_MIB=80 VM_TEST_MIB=16 VM_BUDGET_KIB=18432
VM_PARAMETERS="smemv.seed=77 smemv.test_mib=$VM_TEST_MIB smemv.hot_mib=2 smemv.hot_period_ms=8000 \
smemv.sweep_pps=600 smemv.heartbeat_ms=500"

# vm_command KERNEL INITRD BACKEND: sets VM_COMMAND. BACKEND is a -object for the RAM, without id and size.
vm_command() {
	# shellcheck disable=SC2034,SC2054 # for those who source this; the commas are QEMU's
	VM_COMMAND=(qemu-system-x86_64 -accel tcg,tb-size=64 -cpu "max,-erms,-la57,-smap" -smp 1
		-M pc,memory-backend=ram0 -m "${VM_MIB}M" -object "$3,id=ram0,size=${VM_MIB}M"
		-nodefaults -no-user-config -display none -no-reboot -kernel "$1" -initrd "$2"
		-append "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off no_timer_check $VM_PARAMETERS")
}

# vm_heartbeat CONSOLE FIELD: n, verified, mismatches or sweeps of the last one; empty without any.
vm_heartbeat() {
	grep -ao "HB n=.* sweeps=[0-9]*" "$1" 2>/dev/null | tail -n 1 | grep -o "$2=[0-9]*" | cut -d= -f2
}
