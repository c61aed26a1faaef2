#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sources of all kinds: with the shim of smemv-run, and started by anybody and reached by ptrace; as
# a user without privileges in QEMU's sandbox, and as a daemon that gave its privileges up. Each is
# migrated while it works, and its memory verified at the main host.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck disable=SC2034 # for scenario.sh
GUEST_MIB=192 TEST_MIB=112 HOT_MIB=12 SWEEP_PPS=30000 MAIN_CONSOLE='' BUDGET_KIB=$((56 * 1024))
DAEMON_USER=nobody
SANDBOX=on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
WAY=shim-sandbox
VMS=/tmp/vms

unprivileged=(setpriv "--reuid=$DAEMON_USER" --regid=nogroup --clear-groups --inh-caps=-all
	--bounding-set=-all --no-new-privs)

# QEMU's user may open /dev/userfaultfd in the source's host, and only there.
grant_userfaultfd() {
	host_run source mknod -m 666 /tmp/userfaultfd c 10 "$((0x$(stat -c %T /dev/userfaultfd)))"
	host_run source mount --bind /tmp/userfaultfd /dev/userfaultfd
}

scenario_start_source() {
	local -a line
	[[ -e $(host_path source /tmp/userfaultfd) ]] || grant_userfaultfd
	scenario_qemu_line source
	# shellcheck disable=SC2054 # the commas are QEMU's
	line=("${QEMU_LINE[@]}" -serial file:/tmp/source.console -pidfile /tmp/qemu.pid)
	case $WAY in
	*-sandbox) line+=(-sandbox "$SANDBOX") ;;
	*-daemon) line+=(-daemonize -runas "$DAEMON_USER") ;;
	esac
	case $WAY in
	shim-*)
		line=("$SMEMV_BIN/vmm/smemv-run" --vm guest --runtime-dir "$VMS" -- "${line[@]}")
		SOURCE_VM=(--vm guest --runtime-dir "$VMS")
		;;
	ptrace-*) line+=(-qmp "unix:/tmp/qmp.sock,server=on,wait=off") ;;
	esac
	[[ $WAY != *-sandbox ]] || line=("${unprivileged[@]}" "${line[@]}")
	scenario_start source-vm source "$LAB_DIR/source.log" "${line[@]}"
	scenario_wait 20 "QEMU's pid file" test -s "$(host_path source /tmp/qemu.pid)"
	QEMU_PID=$(<"$(host_path source /tmp/qemu.pid)")
	# shellcheck disable=SC2034 # for scenario.sh
	[[ $WAY != ptrace-* ]] || SOURCE_VM=(--pid "$QEMU_PID" --qmp /tmp/qmp.sock)
	[[ $WAY != *-daemon ]] || SCENARIO_PID["source-vm"]=$QEMU_PID
}

is_unprivileged() {
	[[ $(stat -c %U "/proc/$QEMU_PID") == "$DAEMON_USER" ]] &&
		grep -q '^CapEff:.0*$' "/proc/$QEMU_PID/status"
}
in_a_sandbox() {
	grep -q '^Seccomp:.2' "/proc/$QEMU_PID/status"
}
is_daemon() {
	grep -q '^PPid:.1$' "/proc/$QEMU_PID/status" && [[ $(readlink "/proc/$QEMU_PID/fd/0") == /dev/null ]]
}
no_userfaultfd_left() {
	! find "/proc/$QEMU_PID/fd" -lname '*userfaultfd*' | grep -q .
}
not_traced() {
	! grep -h '^TracerPid:' "/proc/$QEMU_PID"/task/*/status | grep -qv '	0$'
}
many_calls() {
	"$SMEMV_BIN/tests/unit/inject_stress" "$QEMU_PID" 200 | tee "$LAB_DIR/inject" &&
		grep -q '^injections=200 failed=0 ' "$LAB_DIR/inject"
}

# What differs from start to start is removed.
again() {
	WAY=$1
	scenario_end main-vm TERM
	scenario_end source-vm TERM
	scenario_wait 15 "the release of all leases" scenario_no_leases
	rm -f "$LAB_DIR"/*.console "$(host_path source /dev/shm/source.ram)" \
		"$(host_path main /dev/shm/main.ram)" "$(host_path source /tmp/qemu.pid)" \
		"$(host_path source /tmp/source.console)"
	link_console
	scenario_start_source
	scenario_start_destination
	scenario_wait 30 "the destination's registration" scenario_registered
	scenario_wait 60 "the guest's READY" scenario_guest_ready
}

link_console() {
	ln -sf "$(host_path source /tmp/source.console)" "$LAB_DIR/source.console"
}

journey() {
	check "$WAY: QEMU runs without privileges" is_unprivileged
	case $WAY in
	*-sandbox) check "$WAY: in a sandbox" in_a_sandbox ;;
	*-daemon) check "$WAY: as a daemon" is_daemon ;;
	esac
	if [[ $WAY == ptrace-sandbox ]]; then
		SCENARIO_ENV[migrate]="SMEMV_FAULT=round-0:kill"
		migrate --on-no-converge stop
		SCENARIO_ENV[migrate]=
		check "$WAY: smemv-migrate was killed" test "$RC" -eq 137
		check "$WAY: its supervisor leaves nothing in the source" \
			scenario_wait 20 "the supervisor" no_userfaultfd_left
		check "$WAY: the source runs on" runs_on source
		host_run source "$SMEMV_BIN/migrator/smemv-migrate" recover 2>>"$LAB_DIR/migrate.log" || :
	fi
	if [[ $WAY == ptrace-daemon ]]; then
		check "$WAY: 200 of 200 system calls in a VM that works" many_calls
		check "$WAY: it works on" runs_on source
	fi
	migrate --on-no-converge stop
	check "$WAY: the migration completes" is '.status == "completed" and .source_state == "postmigrate"'
	if ((RC != 0)); then
		tail -n 5 "$LAB_DIR/migrate.log" >&2
		exit 1
	fi
	check "$WAY: hot pages were found" is '.pages.hot > 0 and .pages.cold > 0'
	check "$WAY: nothing of ours is left in the source" no_userfaultfd_left
	check "$WAY: nobody traces it" not_traced
	check "$WAY: the guest runs at the main host" runs_on main
	scenario_wait 120 "a sweep" has_sweeps main 1
	check "$WAY: after a whole sweep there is no mismatch" \
		test "$(last_heartbeat main mismatches)" -eq 0
}

# The console is made in the host's /tmp, which exists once the host does.
scenario_guest_ready() {
	link_console
	grep -aq 'SMEMV READY' "$LAB_DIR/source.console" 2>/dev/null
}
lab_create
scenario_up
journey
for way in ptrace-sandbox ptrace-daemon shim-daemon; do
	again "$way"
	journey
done
down
