# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# One split migration in a lab: a source, a main host, two sub-hosts, a guest that verifies its
# memory. For the demo and the tests; to be sourced after lib.sh (bash).
#
#   scenario_up            hosts, daemons, the waiting destination, the running guest
#   scenario_migrate ...   smemv-migrate on the source; further options as arguments
#   scenario_down          ends the VMs and the daemons in order
#
# Set before: SMEMV_BIN (build directory), and what differs from the defaults below.

: "${SEED:=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}"
: "${GUEST_MIB:=512}" "${TEST_MIB:=384}" "${HOT_MIB:=32}" "${SWEEP_PPS:=20000}" "${HOT_PERIOD_MS:=400}"
: "${BUDGET_KIB:=$((GUEST_MIB * 1024 * 30 / 100 / 4 * 4))}"
# Per sub-host; by default exactly what docs/architecture.md asks for, in extents of 2 MiB.
: "${SUB_HOST_MIB:=}"
SOURCE_IP=10.77.0.1 MAIN_IP=10.77.0.2 SUB1_IP=10.77.0.3 SUB2_IP=10.77.0.4
PAGERD_SOCKET=/run/smemv-pagerd.sock
# Processes in the hosts, by what they are.
declare -A SCENARIO_PID=()
# Environment of single programs, e.g. [pagerd]="SMEMV_FAULT=..."; for tests.
declare -A SCENARIO_ENV=()
# How smemv-migrate names the source VM.
SOURCE_VM=(--vm guest)
# A second VM on the same hosts: set this to 2 and SOURCE_VM to guest2, start and migrate it. Its consoles
# are source2.console and main2.console; who starts it ends it (source-vm2, main-vm2).
VM_SUFFIX=''
# More of QEMU's options, for source and destination, and words for the guest's kernel.
SCENARIO_QEMU=() GUEST_WORDS=''
# A kernel other than the usual one, and modules for the guest.
GUEST_KERNEL='' GUEST_MODULES=()
# More options of the daemons.
SCENARIO_PAGERD=() SCENARIO_SUB_HOST=()
# More options of smemv-run at the destination.
SCENARIO_DESTINATION=()
# Where the guest's console goes: a file, or a fifo that somebody reads.
SOURCE_CONSOLE='' MAIN_CONSOLE=''

scenario_error() {
	echo "scenario: $*" >&2
	return 1
}

# What the sub-hosts must lend together: VM - budget + slack (5 %, at least 64 MiB), whole extents.
scenario_room_extents() {
	local ram=$((GUEST_MIB * 1024)) slack
	slack=$((ram / 20 > 65536 ? ram / 20 : 65536))
	echo $(((ram - BUDGET_KIB + slack + 2047) / 2048))
}

# scenario_sub_host_mib HOST: what it lends.
scenario_sub_host_mib() {
	local extents
	extents=$(scenario_room_extents)
	[[ $1 == sub1 ]] || ((extents--))
	echo "${SUB_HOST_MIB:-$(((extents + 1) / 2 * 2))}"
}

# scenario_wait SECONDS WHAT COMMAND...: until the command succeeds.
scenario_wait() {
	local end=$((SECONDS + $1)) what=$2
	until "${@:3}"; do
		((SECONDS < end)) || scenario_error "$what: not within $1 s" || return
		sleep 0.1
	done
}

# scenario_start WHAT HOST LOG COMMAND...
scenario_start() {
	local -a environment
	read -r -a environment <<<"${SCENARIO_ENV[$1]-}"
	host_start "$2" "$3" env "${environment[@]}" "${@:4}"
	SCENARIO_PID[$1]=$HOST_PID
}

# scenario_ready WHAT LOG PATTERN: the program has said so, or is dead.
scenario_ready() {
	scenario_wait 30 "$1" scenario_said_or_dead "$1" "$2" "$3" && grep -q -e "$3" "$2" || {
		tail -n 20 "$2" >&2
		return 1
	}
}

scenario_said_or_dead() {
	grep -q -e "$3" "$2" 2>/dev/null || ! kill -0 "${SCENARIO_PID[$1]}" 2>/dev/null
}

scenario_start_sub_host() {
	local name=$1 ip=$2 mib=$3
	scenario_start "$name" "$name" "$LAB_DIR/$name.log" "$SMEMV_BIN/memserver/memserverd" \
		--name "$name" --memory "${mib}M" --listen "$ip:7000" --data "tcp:$ip:7001" --insecure \
		"${SCENARIO_SUB_HOST[@]}"
}

# scenario_qemu_line HOST: QEMU's command line there, into QEMU_LINE.
scenario_qemu_line() {
	QEMU_LINE=(qemu-system-x86_64 -accel "tcg,thread=multi" -cpu "max,-erms,-la57,-smap" -smp 2
		-M "pc,memory-backend=ram0" -m "${GUEST_MIB}M"
		-object "memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/$1$VM_SUFFIX.ram,size=${GUEST_MIB}M"
		-nodefaults -no-user-config -display none -no-reboot
		-kernel /tmp/vmlinuz -initrd /tmp/initramfs.gz "${SCENARIO_QEMU[@]}"
		-append "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off smemv.seed=$SEED \
smemv.test_mib=$TEST_MIB smemv.hot_mib=$HOT_MIB smemv.hot_period_ms=$HOT_PERIOD_MS \
smemv.sweep_pps=$SWEEP_PPS $GUEST_WORDS")
}

# scenario_start_pagerd: also again, after its end.
scenario_start_pagerd() {
	scenario_start pagerd main "$LAB_DIR/pagerd.log" "$SMEMV_BIN/pagerd/smemv-pagerd" \
		--listen "unix:$PAGERD_SOCKET" --listen "$MAIN_IP:7000" --data "tcp:$MAIN_IP:7001" --insecure \
		"${SCENARIO_PAGERD[@]}"
}

# scenario_start_qemu WHAT HOST CONSOLE SMEMV-RUN-OPTIONS...
scenario_start_qemu() {
	scenario_qemu_line "$2"
	scenario_start "$1" "$2" "$3" "$SMEMV_BIN/vmm/smemv-run" "${@:4}" -- \
		"${QEMU_LINE[@]}" -serial stdio
}

scenario_start_source() {
	scenario_start_qemu "source-vm$VM_SUFFIX" source \
		"${SOURCE_CONSOLE:=$LAB_DIR/source$VM_SUFFIX.console}" --vm "guest$VM_SUFFIX"
}

scenario_start_destination() {
	scenario_start_qemu "main-vm$VM_SUFFIX" main "${MAIN_CONSOLE:=$LAB_DIR/main$VM_SUFFIX.console}" \
		--vm "guest$VM_SUFFIX" --pager "unix:$PAGERD_SOCKET" "${SCENARIO_DESTINATION[@]}"
}

scenario_guest_ready() {
	grep -q 'SMEMV READY' "$LAB_DIR/source$VM_SUFFIX.console"
}

scenario_guest_booted() {
	scenario_guest_ready || grep -aq 'Kernel panic' "$LAB_DIR/source$VM_SUFFIX.console"
}

# An emulated processor crashes once in a while as the guest's kernel patches itself, before it has done
# anything: it is booted once more.
scenario_boot() {
	scenario_wait 60 "the guest's READY" scenario_guest_booted || return
	scenario_guest_ready && return
	echo "scenario: the guest's kernel crashed as it booted; once more" >&2
	scenario_end "source-vm$VM_SUFFIX" KILL || return
	rm -f "$(host_path source "/dev/shm/source$VM_SUFFIX.ram")"
	scenario_start_source
	scenario_wait 60 "the guest's READY" scenario_guest_ready
}

scenario_registered() {
	scenario_ctl vms --json 2>/dev/null |
		jq -e --arg vm "guest$VM_SUFFIX" 'any(.vms[]; .name == $vm)' >/dev/null
}

scenario_up() {
	local kernel=$GUEST_KERNEL
	[[ -n $kernel ]] || kernel=$("$SMEMV_SOURCE/deploy/guest/kernel.sh") || return
	"$SMEMV_SOURCE/deploy/guest/build.sh" "$LAB_DIR" "${GUEST_MODULES[@]}" || return
	host_create source "$SOURCE_IP" && host_create main "$MAIN_IP" &&
		host_create sub1 "$SUB1_IP" && host_create sub2 "$SUB2_IP" || return
	# The hosts' /tmp is their own; they get copies of the guest.
	local host
	for host in source main; do
		cp "$kernel" "$(host_path "$host" /tmp/vmlinuz)"
		cp "$LAB_DIR/initramfs.gz" "$(host_path "$host" /tmp/initramfs.gz)"
	done
	scenario_start_source
	scenario_start_sub_host sub1 "$SUB1_IP" "$(scenario_sub_host_mib sub1)"
	scenario_start_sub_host sub2 "$SUB2_IP" "$(scenario_sub_host_mib sub2)"
	scenario_start_pagerd
	scenario_ready sub1 "$LAB_DIR/sub1.log" ready: && scenario_ready sub2 "$LAB_DIR/sub2.log" ready: &&
		scenario_ready pagerd "$LAB_DIR/pagerd.log" ready: || return
	scenario_start_destination
	scenario_wait 30 "the destination's registration" scenario_registered || return
	scenario_boot
}

scenario_migrate() {
	local -a environment
	read -r -a environment <<<"${SCENARIO_ENV[migrate]-}"
	host_run source env "${environment[@]}" "$SMEMV_BIN/migrator/smemv-migrate" run "${SOURCE_VM[@]}" \
		--to "$MAIN_IP:7000" --to-vm "guest$VM_SUFFIX" --sub-host "$SUB1_IP:7000" --sub-host "$SUB2_IP:7000" \
		--budget "${BUDGET_KIB}K" --insecure "$@"
}

# scenario_ctl COMMAND...: smemvctl on the main host, of the pager there.
scenario_ctl() {
	host_run main "$SMEMV_BIN/ctl/smemvctl" --pager "unix:$PAGERD_SOCKET" "$@"
}

scenario_stats() {
	scenario_ctl stats guest --json
}

# scenario_sub_host NAME COMMAND: smemvctl on a sub-host, JSON.
scenario_sub_host() {
	local ip=$SUB1_IP
	[[ $1 == sub1 ]] || ip=$SUB2_IP
	host_run "$1" "$SMEMV_BIN/ctl/smemvctl" --server "$ip:7000" --insecure "$2" --json
}

# scenario_end WHAT SIGNAL: and wait for it, 20 s at most.
scenario_end() {
	local pid=${SCENARIO_PID[$1]-}
	[[ -n $pid ]] || return 0
	kill "-$2" "$pid" 2>/dev/null || :
	scenario_wait 20 "$1's end" scenario_gone "$pid" || scenario_end_stuck_qemu "$pid" || return
	wait "$pid" 2>/dev/null || :
	unset "SCENARIO_PID[$1]"
}

# scenario_end_stuck_qemu PID: QEMU (or smemv-run, its parent) has not ended after SIGTERM. QEMU 7.2 may wait
# for ever in monitor_cleanup() if a QMP command comes just then; its vCPUs and disks have ended before. Not
# so if a thread still waits for a page: that would be ours.
scenario_end_stuck_qemu() {
	local pid=$1 qemu
	qemu=$(pgrep -P "$pid" -f '^qemu-system-') || qemu=$pid
	grep -q '^qemu-system-' "/proc/$qemu/cmdline" || return
	! grep -q handle_userfault /proc/"$qemu"/task/*/wchan || scenario_error "a thread of QEMU waits for a page" || return
	echo "scenario: QEMU stands in its own end; killing it" >&2
	kill -KILL "$qemu"
	scenario_wait 10 "the end of a killed QEMU" scenario_gone "$pid"
}

scenario_gone() {
	[[ ! -e /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null
}

scenario_no_leases() {
	local host
	for host in sub1 sub2; do
		[[ -n ${SCENARIO_PID[$host]-} ]] || continue
		scenario_sub_host "$host" leases | jq -e '.leases | length == 0' >/dev/null || return
	done
}

scenario_down() {
	scenario_end source-vm TERM && scenario_end main-vm TERM || return
	# The pager notices by itself that a VM is gone, and gives its leases back.
	scenario_wait 15 "the release of all leases" scenario_no_leases || return
	scenario_end pagerd TERM && scenario_end sub1 TERM && scenario_end sub2 TERM
}
